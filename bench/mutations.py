"""Does a test fail where it should?  Known mistakes of such code, each put into a copy of the tree.

    python bench/mutations.py [--only 12 13] [--jobs 2]

A mistake is a few words in one file; the test named beside it must fail in the copy, and pass in the tree itself.
Prints the table of docs/fidelity.md; exit code 1 if a mistake was not caught.
"""
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from common import FlagParser  # noqa: E402


@dataclass
class Mistake:
    pitfall: str                # its number and name, the same for several mistakes of a kind
    mistake: str
    file: str
    changes: dict[str, str]     # text, wherever it occurs in the file -> what is put in its place
    test: str                   # file::name below tests/


LEFT_PADDING = "1 left padding and positions"
TRUNCATED = "8 truncated completions"
GROUPS = "9 groups without variance"
RANKS = "12 accumulation and ranks"
VOCABULARY = "14 vocabulary"
DIRECTION = "16 KL direction, estimator"
CHUNKS = "19 chunked is not bounded"
GRADER = "20 grader"

MISTAKES = [
    Mistake(LEFT_PADDING, "positions count the padding", "engine/rollouts.py",
            {"return (mask.long().cumsum(1) - 1).clamp(min=0)":
             "return torch.arange(mask.shape[1], device=mask.device).expand(mask.shape)"},
            "test_fidelity.py::test_padding_changes_nothing_with_learned_positions"),
    Mistake("2 generation_config leaks", "its top_k truncates the sampling", "engine/sampler.py",
            {"top_p, top_k = top_p or 1.0, top_k or 0 ":
             "top_p, top_k = top_p or 1.0, top_k or getattr(model.generation_config, 'top_k', 0) or 0 "},
            "test_sampler.py::test_generation_config_has_no_say"),
    Mistake("3 temperature and support", "scored at 1 what was sampled at 0.7", "common.py",
            {"hidden, head, token_ids[mask], temperature, entropy": "hidden, head, token_ids[mask], 1.0, entropy"},
            "test_sampler.py::test_sampler_logprobs_are_those_of_the_trainer"),
    Mistake("4 old logprobs", "taken from the sampler", "stage1_grpo.py",
            {"micro.old_logprobs = logprobs.detach()": "micro.old_logprobs = micro.sampler_logprobs"},
            "test_training.py::test_old_logprobs_equal_the_first_pass_bit_for_bit"),
    Mistake("5 softmax in bf16", "the divergence in the dtype of the logits", "stage3_kl.py",
            {"p_logits.float()": "p_logits", "q_logits.float()": "q_logits"},
            "test_losses.py::test_divergences_match_float64_and_are_not_negative"),
    Mistake("6 end token outside of the loss", "the mask ends before it", "engine/sampler.py",
            {"device=device) < lengths[:, None]": "device=device) < (lengths - finished.long())[:, None]"},
            "test_sampler.py::test_mask_covers_the_eos_and_nothing_after"),
    Mistake("7 different end tokens", "a pair without one in common is taken", "engine/models.py",
            {"if not set(student_stop) & set(teacher_stop):": "if False:"},
            "test_bad_input.py::test_pairs_that_do_not_fit"),
    Mistake(TRUNCATED, "left out of the numerator alone", "stage1_grpo.py",
            {"rollouts.completion_mask &= rollouts.finished[:, None]": "rollouts.advantages *= rollouts.finished"},
            "test_training.py::test_masked_truncated_rows_are_as_if_they_were_not_there"),
    Mistake(TRUNCATED, "a run of nothing else goes on", "stage1_grpo.py",
            {'figures["truncated_fraction"] > 0.9': 'figures["truncated_fraction"] > 1.1'},
            "test_training.py::test_a_run_that_cannot_learn_is_stopped"),
    Mistake(GROUPS, "ε where equal rewards are not centred", "stage1_grpo.py",
            {"return (centred / (": "return (groups / ("}, "test_losses.py::test_group_advantages_by_hand"),
    Mistake(GROUPS, "groups of every G-th rollout", "stage1_grpo.py",
            {"rewards.float().view(-1, group_size)": "rewards.float().view(group_size, -1).T.contiguous()"},
            "test_losses.py::test_group_advantages_do_not_mix_groups"),
    Mistake(GROUPS, "their tokens not in the denominator", "stage1_grpo.py",
            {"all_sum(part.completion_mask.sum(),":
             "all_sum((part.completion_mask & (part.advantages != 0)[:, None]).sum(),"},
            "test_training.py::test_a_batch_without_any_advantage_has_gradient_zero_and_still_counts"),
    Mistake("10 bf16 weights", "no float32 master", "engine/models.py",
            {'"float32" if trainable else dtype': "dtype"},
            "test_training.py::test_master_weights_move_at_a_small_learning_rate_in_bf16"),
    Mistake("11 which mean", "the mean over sequences for the one over tokens", "stage1_grpo.py",
            {'if loss_mean == "token"': 'if loss_mean == "sequence"'},
            "test_losses.py::test_loss_means_of_a_short_and_a_long_completion"),
    Mistake(RANKS, "a mean per micro-batch, then their mean", "stage1_grpo.py",
            {"args.loss_mean, num_tokens, num_sequences)":
             "args.loss_mean, len(micro_batches) * micro.completion_mask.sum(), num_sequences)"},
            "test_training.py::test_gradient_is_the_same_under_any_micro_batch_split"),
    Mistake(RANKS, "a mean over ranks", "engine/sharding.py",
            {"set_gradient_divide_factor(1.0)": "set_gradient_divide_factor(2.0)"},
            "test_fidelity.py::test_adamw_and_the_clip_on_two_ranks"),
    Mistake("13 ranks out of step", "a rank with less work calls the model less often", "engine/rollouts.py",
            {"micro_batches += [without_tokens(rollouts)] * (int(most) - len(micro_batches))": "pass"},
            "test_fidelity.py::test_adamw_and_the_clip_on_two_ranks"),
    Mistake(VOCABULARY, "untrained rows stay in the softmax", "engine/models.py",
            {"model.resize_token_embeddings(vocab_size)": "pass"}, "test_sampler.py::test_padded_vocabulary_is_cut"),
    Mistake(VOCABULARY, "the same size is taken for the same ids", "engine/models.py",
            {"if student_vocab != teacher_vocab:": "if len(student_vocab) != len(teacher_vocab):"},
            "test_bad_input.py::test_pairs_that_do_not_fit"),
    Mistake("15 chat template", "rendered as text, then tokenised: two begin tokens", "engine/problems.py",
            {"else tokenizer.apply_chat_template(": "else tokenizer(tokenizer.apply_chat_template(",
             "tokenize=True,": "tokenize=False,",
             'return_dict=True, **template_args)["input_ids"]': '**template_args))["input_ids"]'},
            "test_fidelity.py::test_a_chat_prompt_begins_once"),
    Mistake(DIRECTION, "the directions exchanged", "stage4_distill.py",
            {"return kl(student_logits, teacher_logits)": "return kl(teacher_logits, student_logits)"},
            "test_losses.py::test_gradients_of_both_directions"),
    Mistake(DIRECTION, "the KL estimate itself as a loss", "stage4_distill.py",
            {"return -ratio * advantage": "return logprobs - teacher_logprobs"},
            "test_losses.py::test_sampled_form_has_the_gradient_of_the_reverse_kl_in_expectation"),
    Mistake("17 gradient where it must not be", "the teacher's weights want one", "engine/models.py",
            {"requires_grad_(trainable)": "requires_grad_(True)"},
            "test_training.py::test_the_teacher_does_not_change"),
    Mistake("17 gradient where it must not be", "dropout stays on", "engine/checkpoints.py",
            {'if "drop" in name and type(value) is float': "if False"},
            "test_sampler.py::test_dropout_is_off_in_a_loaded_model"),
    Mistake("18 top-k shortcuts", "the 20 likeliest tokens stand for all", "stage3_kl.py",
            {"return (p * (log_p - log_q) - p + q).sum(dim=-1)":
             "return (p * (log_p - log_q)).gather(-1, p.topk(min(20, p.shape[-1])).indices).sum(dim=-1)"},
            "test_losses.py::test_divergences_match_float64_and_are_not_negative"),
    Mistake(CHUNKS, "every piece is kept for the backward pass", "engine/logprobs.py",
            {"ctx.save_for_backward(hidden, weight, bias, token_ids, maximum, log_total, entropies)":
             "ctx.save_for_backward(hidden, weight, bias, token_ids, maximum, log_total, entropies, "
             "*[head.logits(states, tile) for tile in ctx.tiles])",
             "entropies = ctx.saved_tensors": "entropies, *_ = ctx.saved_tensors"},
            "test_logprobs.py::test_what_is_kept_for_backward_is_not_the_logits"),
    Mistake(CHUNKS, "one piece holds all", "engine/logprobs.py",
            {"min(start + size, total)) for start in range(0, total, size)]": "total) for start in range(0, 1)]"},
            "test_logprobs.py::test_no_tensor_of_all_logits_is_ever_alive"),
    Mistake(GRADER, "numbers are the same if their texts are", "judge/answers.py",
            {"def is_equal(": "def is_equal(a, b):\n    return a == b\n\n\ndef was_equal("},
            "test_grader.py::test_a_careful_marker_would_say_the_same"),
    Mistake(GRADER, "a comparison that does not end is waited for", "judge/answers.py",
            {'if arrived else "timeout"': 'if arrived else time.sleep(25) or "timeout"'},
            "test_grader.py::test_a_slow_comparison_is_killed_and_counted"),
    Mistake("21 C1 and length", "the sum in place of the per-token variant", "stage2_shape.py",
            {'("per_token", scores / lengths)': '("per_token", scores)'},
            "test_certificates.py::test_length_confounds_the_sum_and_the_per_token_figure_shows_it"),
    Mistake("21 C1 and length", "decided on the pooled AUC", "stage2_shape.py",
            {'figures["sum"]["within_prompt_auc"]["interval"][0]': 'figures["sum"]["pooled_auc"]["interval"][0]'},
            "test_fidelity.py::test_c1_is_decided_within_prompts"),
    Mistake("22 the reference", "any model is taken for the one that RL began from", "stage2_shape.py",
            {'parent["sha256"] != reference["sha256"]': "False"},
            "test_certificates.py::test_reference_must_be_the_model_that_rl_began_from"),
    Mistake("23 certified on training data", "problems that RL has seen are not left out", "stage2_shape.py",
            {"if problem.id not in seen]\n": "if True]\n"},
            "test_certificates.py::test_c1_is_certified_on_problems_that_rl_has_not_seen"),
    Mistake("24 C2's two measures", "the forward KL is taken for C2", "stage3_kl.py",
            {"return kl(student_logits, teacher_logits)": "return kl(teacher_logits, student_logits)"},
            "test_fidelity.py::test_c2_is_the_reverse_kl_on_the_students_own_rollouts"),
]


def parse_args(argv=None):
    parser = FlagParser(__doc__)
    parser.add_argument("--only", nargs="+", help="numbers of pitfalls (default: all)")
    parser.add_argument("--jobs", type=int, default=2, help="at the same time")
    return parser.parse_args(argv)


def mutated(mistake: Mistake) -> str:
    """The file with the mistake in it.  Raises ValueError where the text that it changes is no longer there."""
    text = (ROOT / mistake.file).read_text()
    for right, wrong in mistake.changes.items():
        if right not in text:
            raise ValueError(f"{mistake.file} has no {right!r} any more: say in bench/mutations.py how "
                             f"{mistake.mistake!r} looks now")
        text = text.replace(right, wrong)
    return text


def run_tests(tree: Path, *tests: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", *tests], cwd=tree / "tests",
                          capture_output=True, text=True, stdin=subprocess.DEVNULL)


def is_caught(mistake: Mistake) -> bool:
    """By a test that fails; one that does not even start has caught nothing."""
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    with tempfile.TemporaryDirectory() as folder:
        for name in files:
            (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, Path(folder) / name)
        (Path(folder) / mistake.file).write_text(mutated(mistake))
        done = run_tests(Path(folder), mistake.test)
        if done.returncode > 1:
            print(f"{mistake.test} did not run:\n{done.stdout[-2000:]}{done.stderr[-2000:]}", file=sys.stderr)
        return done.returncode == 1


def main(args) -> None:
    chosen = [mistake for mistake in MISTAKES if not args.only or mistake.pitfall.split()[0] in args.only]
    sound = run_tests(ROOT, *sorted({mistake.test for mistake in chosen}))
    if sound.returncode:
        sys.exit(f"the tests do not pass as they are:\n{sound.stdout[-3000:]}")
    print("| pitfall | the mistake | the test that fails |\n| --- | --- | --- |")
    verdicts = []
    with ThreadPoolExecutor(args.jobs) as pool:
        for mistake, caught in zip(chosen, pool.map(is_caught, chosen)):
            verdicts.append(caught)
            caught_by = f"`{mistake.test}`" if caught else "**none**"
            print(f"| {mistake.pitfall} | {mistake.mistake} | {caught_by} |", flush=True)
    sys.exit(0 if all(verdicts) else 1)


if __name__ == "__main__":
    main(parse_args())
