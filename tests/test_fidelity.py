"""Our losses, gradients and steps beside independent sources: TRL, Liger, torch, closed forms, simulation.

docs/fidelity.md has the table.  What needs TRL or Liger (pip install -e '.[bench]') is skipped without them.
"""
import argparse
import faulthandler
import itertools
import math
import sys
from collections import defaultdict
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import gradients as gradients_script
import numpy as np
import pytest
import torch
import transformers
from conftest import EOS, PAD, run
from forks import run_ranks
from tokenizers.processors import TemplateProcessing

import common
from engine import problems, runs
from experiments.toy import toy_model
import stage1_grpo
import stage3_kl
import stage4_distill
from bench import coverage
from engine.logprobs import linear_divergence, linear_logprobs
from engine.ranks import rank, setup_distributed, world_size
from engine.rollouts import even_micro_batches
from engine.sharding import shard, whole
from eval import pass_at_k
from stage1_grpo import clipped_surrogate, group_advantages, token_weights
from stage2_shape import certify
from stage3_kl import forward_kl
from stage4_distill import jsd, reverse_kl, sampled_token_loss

ROOT = Path(__file__).parent.parent
DIVERGENCES = [(forward_kl, 0.0), (jsd, 0.5), (reverse_kl, 1.0)]        # and TRL's and Liger's beta


def a_batch():
    """8 rollouts of 1 to 9 tokens; ratios from e^-3 to e^3, so that every clip acts; advantages of both signs and 0."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.arange(9) < torch.tensor([1, 9, 4, 7, 2, 9, 5, 3])[:, None]
    old = -3 * torch.rand(8, 9, generator=generator, dtype=torch.float64) - 3
    new = (old + 3 * (2 * torch.rand(8, 9, generator=generator, dtype=torch.float64) - 1)).requires_grad_()
    return new, old, torch.tensor([1.5, -1.5, 0.3, -0.3, 0, 0, 2, -0.7], dtype=torch.float64), mask


def our_loss(new, old, advantages, mask, loss_mean):
    weights = token_weights(mask.double(), loss_mean, mask.sum(), len(mask))
    return -(clipped_surrogate(new, old, advantages, 0.2, 0.28, 10.0)[0] * weights).sum()


def value_and_gradient(loss, *tensors):
    return loss.detach(), *torch.autograd.grad(loss, tensors, retain_graph=True)


def assert_equal(got, expected, tolerance):
    for one, other in zip(got, expected, strict=True):
        assert (one - other).norm() <= tolerance * other.norm(), f"off by {(one - other).norm() / other.norm():.1e}"


# ---------------------------------------------------------------- GRPO


def trl_grpo_loss(new, old, advantages, mask, loss_type):
    """GRPOTrainer's own loss over one batch, its forward pass replaced by the logprobs `new`."""
    trainer = pytest.importorskip("trl.trainer.grpo_trainer", reason="needs TRL: the bench extra").GRPOTrainer
    same = SimpleNamespace(gather=lambda x: x, gather_for_metrics=lambda x: x, reduce=lambda x, **_: x, num_processes=1)
    nothing = torch.zeros(mask.shape, dtype=torch.int64)
    self = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (new, torch.zeros_like(new), None), aux_loss_enabled=False,
        top_entropy_quantile=1.0, off_policy_mask_threshold=None, importance_sampling_level="token", beta=0.0,
        loss_type=loss_type, epsilon_low=0.2, epsilon_high=0.28, use_vllm=False, model=SimpleNamespace(training=True),
        args=SimpleNamespace(delta=10.0, steps_per_generation=1), current_gradient_accumulation_steps=1, accelerator=same,
        _entropy_bonus_enabled=False, _metrics={"train": defaultdict(list)})
    return trainer._compute_loss(self, None, {
        "prompt_ids": nothing, "prompt_mask": mask, "completion_ids": nothing, "completion_mask": mask.double(),
        "advantages": advantages, "old_per_token_logps": old, "num_items_in_batch": mask.sum()})


@pytest.mark.parametrize("loss_type, loss_mean", [("dapo", "token"), ("bnpo", "token"), ("grpo", "sequence")])
def test_grpo_is_trls(loss_type, loss_mean):
    new, *rest = a_batch()
    expected = value_and_gradient(trl_grpo_loss(new, *rest, loss_type), new)
    assert_equal(value_and_gradient(our_loss(new, *rest, loss_mean), new), expected, 1e-7)


@pytest.mark.parametrize("loss_type, loss_mean", [("dapo", "token"), ("bnpo", "token"), ("grpo", "sequence")])
def test_grpo_over_the_vocabulary_is_ligers(loss_type, loss_mean):
    """From hidden states and a head, the gradients of both; temperature 0.7."""
    liger = pytest.importorskip("liger_kernel.chunked_loss", reason="needs Liger: the bench extra")
    generator = torch.Generator().manual_seed(1)
    hidden, weight = torch.randn(8, 9, 16, generator=generator), torch.randn(50, 16, generator=generator)
    hidden.requires_grad_(), weight.requires_grad_()
    ids = torch.randint(50, (8, 9), generator=generator)
    new, old, advantages, mask = a_batch()
    old = (linear_logprobs(hidden, weight, ids, 0.7) + (old - new)).detach().float()
    loss = liger.LigerFusedLinearGRPOLoss(beta=0.0, compiled=False, use_ref_model=False, epsilon_low=0.2, epsilon_high=0.28,
                                          loss_type=loss_type, temperature=0.7, delta=10.0)
    expected = value_and_gradient(loss(hidden, weight, ids, mask.float(), advantages.float(), old_per_token_logps=old)[0],
                                  hidden, weight)
    logprobs = linear_logprobs(hidden, weight, ids, 0.7)
    assert_equal(value_and_gradient(our_loss(logprobs, old, advantages.float(), mask, loss_mean), hidden, weight), expected, 1e-5)


def test_grpo_is_plain_float64():
    """Token by token, without a tensor."""
    new, old, advantages, mask = a_batch()
    total = 0.0
    for i, t in mask.nonzero().tolist():
        ratio, advantage = math.exp((new[i, t] - old[i, t]).item()), advantages[i].item()
        term = min(ratio * advantage, min(max(ratio, 0.8), 1.28) * advantage)
        total -= max(term, 10 * advantage) if advantage < 0 else term
    assert our_loss(*a_batch(), "token").item() == pytest.approx(total / mask.sum().item(), rel=1e-7)


def test_advantages_are_trls_but_for_the_sample_standard_deviation():
    """TRL divides by the deviation of a sample (G − 1), we by the group's own (G): √(G / (G − 1)), the same for all."""
    utils = pytest.importorskip("trl.trainer.utils", reason="needs TRL: the bench extra")
    rewards = torch.tensor([1.0, 0, 0, 0, 1, 1, 1, 0, 1, 1, 1, 1])
    groups = rewards.view(3, 4)
    theirs = ((groups - groups.mean(1, keepdim=True)) / (utils.nanstd(groups, dim=1)[:, None] + 1e-4)).flatten()
    torch.testing.assert_close(group_advantages(rewards, 4), theirs * (4 / 3) ** 0.5, rtol=1e-4, atol=0)


def test_a_sampled_kl_penalty_has_another_gradient():
    """The k3 estimate that TRL and Liger add: right in value, and its gradient is the other direction's, KL(ref ‖ π)."""
    logits = torch.tensor([[0.3, -1.0, 1.2]], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([[2.0, -2.0, -1.0]], dtype=torch.float64)
    log_ratio = reference.log_softmax(-1) - logits.log_softmax(-1)
    k3 = (logits.softmax(-1).detach() * (log_ratio.exp() - log_ratio - 1)).sum()
    value, gradient = value_and_gradient(k3, logits)
    ours = value_and_gradient(reverse_kl(logits, reference).sum(), logits)
    assert_equal([value], ours[:1], 1e-6)
    assert (gradient - ours[1]).norm() > 0.1 * ours[1].norm()
    assert_equal([gradient], torch.autograd.grad(forward_kl(logits, reference).sum(), logits), 1e-6)


# ---------------------------------------------------------------- distillation


def a_pair():
    """Hidden states of different widths, one vocabulary; 2 rollouts, a third of the tokens masked."""
    generator = torch.Generator().manual_seed(2)
    shapes = (2, 6, 16), (50, 16), (2, 6, 24), (50, 24)
    tensors = [torch.randn(shape, generator=generator) / shape[-1] ** 0.25 for shape in shapes]
    tensors[0].requires_grad_(), tensors[1].requires_grad_()
    return *tensors, torch.arange(6) < torch.tensor([[6], [2]])


def our_distillation(equation, student, head, teacher, teacher_head, mask):
    ids = torch.zeros(mask.shape, dtype=torch.int64)
    loss = linear_divergence(student, head, teacher, teacher_head, equation, mask / mask.sum(), ids, temperature=0.7)[0]
    return value_and_gradient(loss, student, head)


@pytest.mark.parametrize("equation, beta", DIVERGENCES)
def test_distillation_is_trls(equation, beta):
    trl = pytest.importorskip("trl.trainer.distillation_trainer", reason="needs TRL: the bench extra")
    student, head, teacher, teacher_head, mask = a_pair()
    loss = trl._chunked_divergence_loss(student, teacher, head, teacher_head, mask, beta, num_items_in_batch=mask.sum(), temperature=0.7)[0]
    expected = value_and_gradient(loss, student, head)
    assert_equal(our_distillation(equation, student, head, teacher, teacher_head, mask), expected, 1e-5)


@pytest.mark.parametrize("equation, beta", DIVERGENCES)
def test_distillation_is_ligers(equation, beta):
    """Its loss over hidden states; it has no mask of its own, but labels to ignore, which the mean leaves out."""
    liger = pytest.importorskip("liger_kernel.chunked_loss", reason="needs Liger: the bench extra")
    student, head, teacher, teacher_head, mask = a_pair()
    fused = liger.LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=beta, temperature=0.7, compiled=False)
    labels = torch.where(mask, 0, -100).flatten()
    loss = fused(student.view(-1, 16), head, teacher.view(-1, 24), teacher_head, labels)
    assert_equal(our_distillation(equation, student, head, teacher, teacher_head, mask), value_and_gradient(loss, student, head), 1e-5)


def test_equation_9_over_all_completions():
    """Every completion of two tokens over three, its prefix a constant: the sampled form's gradient is that of (8)."""
    generator = torch.Generator().manual_seed(3)
    student = torch.randn(4, 3, generator=generator, dtype=torch.float64).requires_grad_()      # logits after "", a, b, c
    teacher = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    log_p, log_q = student.log_softmax(-1), teacher.log_softmax(-1)
    sampled, exact = 0.0, 0.0
    for first, second in itertools.product(range(3), repeat=2):
        chance = (log_p[0, first] + log_p[1 + first, second]).exp().detach()
        tokens = (torch.stack([table[0, first], table[1 + first, second]]) for table in (log_p, log_q))
        sampled += chance * sampled_token_loss(*(row[None] for row in tokens)).sum()
        exact += chance * (log_p[[0, 1 + first]].exp() * (log_p - log_q)[[0, 1 + first]]).sum()
    assert_equal(value_and_gradient(sampled, student), value_and_gradient(exact, student), 1e-12)
    states = torch.cat([torch.ones(1, dtype=torch.float64), log_p[0].exp().detach()])           # how often each is met
    ours = value_and_gradient((reverse_kl(student, teacher) * states).sum(), student)
    assert_equal(ours, value_and_gradient(exact, student), 1e-6)


# ---------------------------------------------------------------- certificates and scores


@pytest.mark.parametrize("name, passes, low, high", [("perfect", True, 1, 1), ("random", False, 0.4, 0.6), ("anti", False, 0, 0)])
def test_c1_on_planted_teachers(name, passes, low, high):
    """A log-ratio of r/β − log Z(x), with another Z for each prompt; of noise; of −r/β."""
    rng = np.random.default_rng(0)
    right, lengths, log_z = rng.random((100, 8)) < 0.5, rng.integers(5, 50, (100, 8)), rng.normal(0, 20, (100, 1))
    scores = {"perfect": right * 3.0, "random": rng.normal(size=right.shape), "anti": right * -3.0}[name] - log_z
    figures = certify(scores, lengths, right, 0.5)
    assert figures["passed"] == passes and low <= figures["sum"]["within_prompt_auc"]["value"] <= high


def test_pass_at_k_in_closed_form():
    """The share of k-subsets with a right one; over binomial draws, 1 − (1 − p)^k."""
    verdicts = [True, False, True, False, False, False]
    for k in range(1, 7):
        subsets = list(itertools.combinations(verdicts, k))
        assert pass_at_k(6, 2, k) == pytest.approx(np.mean([any(subset) for subset in subsets]))
        expectation = sum(math.comb(6, c) * 0.3**c * 0.7 ** (6 - c) * pass_at_k(6, c, k) for c in range(7))
        assert expectation == pytest.approx(1 - 0.7**k)


def test_avg_at_k_and_its_intervals_cover_what_they_say():
    """60 of the simulations of bench/coverage.py, which makes 2,000."""
    over_problems, over_samples = coverage.evaluations(60)
    assert over_problems >= 52 and over_samples >= 52, "of 60 intervals of 95%, fewer than 52 once in 200 runs"


def test_the_interval_of_c1_covers_what_it_says():
    assert coverage.certificates(60) >= 52


def test_c1_is_decided_within_prompts():
    """Easy prompts score high and inside each prompt nothing is ranked: the pooled AUC alone is far from chance."""
    rng = np.random.default_rng(0)
    ease = rng.random((100, 1))
    right = rng.random((100, 8)) < ease
    figures = certify(20 * ease + rng.normal(size=right.shape), np.ones(right.shape), right, 0.5)
    assert figures["sum"]["pooled_auc"]["interval"][0] > 0.7 and not figures["passed"]


def test_c2_is_the_reverse_kl_on_the_students_own_rollouts(toy, tmp_path, monkeypatch):
    """Beside the plain equation over whole logits, in float64; the forward KL of the same tokens is another number."""
    monkeypatch.setattr(runs, "sample", gradients_script.canned_sample)
    args = stage3_kl.parse_args(["--student", str(toy / "student"), "--teacher", str(toy / "teacher"), "--rollouts", "-", "--problems", "-", "--max-kl", "1", "--out", str(tmp_path),
                                 "--rollouts-per-step", "2", "--samples-per-prompt", "2", "--max-new-tokens", "9"])
    here, prompts = runs.Run(args, ["student", "teacher"], problems=common.load_problems(toy / "few_train.jsonl")[:3]), [[5, 6, 7], [8, 9], [7, 7]]
    student, teacher, here.prompts = here.load("student"), here.load("teacher"), {"problems": prompts}
    got = stage3_kl.measure_c2(student, teacher, here, 0, nullcontext())
    rollouts = gradients_script.canned_sample(None, prompts, samples_per_prompt=2, max_new_tokens=9, eos_ids=[EOS], pad_id=PAD)
    with torch.no_grad():
        log_p, log_q = (common.completion_logits(model, rollouts)[rollouts.completion_mask].double().log_softmax(-1) for model in (student, teacher))
    assert got["c2_tokens"] == len(log_p) and got["c2_prompts"] == 3
    assert got["c2_reverse_kl_nats"] == pytest.approx((log_p.exp() * (log_p - log_q)).sum(-1).mean().item(), rel=1e-4)
    assert got["c2_reverse_kl_nats"] != pytest.approx((log_q.exp() * (log_q - log_p)).sum(-1).mean().item(), rel=0.1)


# ---------------------------------------------------------------- what the models are given


def test_padding_changes_nothing_with_learned_positions():
    """RoPE forgives positions that are all shifted alike; a table of positions does not."""
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=15, n_embd=16, n_layer=2, n_head=2, n_positions=32)).eval()
    model.transformer.wpe.weight.data.normal_()
    together = gradients_script.canned_sample(None, [[5, 6, 7, 8, 9, 10], [8, 9]], samples_per_prompt=1, max_new_tokens=9, eos_ids=[EOS], pad_id=PAD)
    alone = together.select(slice(1, 2))
    assert together.prompt_ids.shape[1] == 6 and alone.prompt_ids.shape[1] == 2
    length = alone.completion_ids.shape[1]
    for function in (common.completion_logprobs, lambda *args: common.completion_logits(*args).flatten(2)):
        torch.testing.assert_close(function(model, together)[1:, :length], function(model, alone), rtol=0, atol=1e-5)


def test_a_chat_prompt_begins_once(toy):
    """A template that writes the begin token, and a tokenizer that adds one to any text."""
    tokenizer = common.load_tokenizer(toy / "student")
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    bos = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    tokenizer.chat_template = "{{ bos_token }}{{ messages[0]['content'] }}"
    assert tokenizer("5=")["input_ids"][0] == bos
    args = argparse.Namespace(instruction="", enable_thinking=False, template_args=None)
    ids, = problems.encode_prompts(tokenizer, common.load_problems(toy / "few_train.jsonl")[:1], args)
    assert ids.count(bos) == 1 and ids[0] == bos and len(ids) > 5


# ---------------------------------------------------------------- the optimiser


def adamw_in_float64(weight, gradients, lr, betas, weight_decay, eps=1e-8):
    """Loshchilov and Hutter's, written out."""
    first = second = torch.zeros_like(weight, dtype=torch.float64)
    for step, gradient in enumerate(gradients, 1):
        first, second = betas[0] * first + (1 - betas[0]) * gradient, betas[1] * second + (1 - betas[1]) * gradient**2
        update = (first / (1 - betas[0] ** step)) / ((second / (1 - betas[1] ** step)).sqrt() + eps)
        weight = weight * (1 - lr * weight_decay) - lr * update
    return weight


def three_clipped_steps(model):
    """As the stages take them, on four rollouts: of two ranks the second has three.  -> of each step: norm before the
    clip, gradients after it, weights"""
    rollouts = gradients_script.canned_sample(None, [[5, 6, 7], [8, 9]], samples_per_prompt=2, max_new_tokens=9, eos_ids=[EOS], pad_id=PAD)
    mine = rollouts.select(slice(None) if world_size() == 1 else slice(1) if rank() == 0 else slice(1, 4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    steps = []
    for scale in (1.0, -3.0, 0.01):                             # clipped, clipped, not clipped
        for micro in even_micro_batches(mine, 1):
            (scale * common.completion_logprobs(model, micro).sum()).backward()
        norm = float(whole(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)))
        gradients = [whole(parameter.grad).clone() for parameter in model.parameters()]
        optimizer.step()
        optimizer.zero_grad()
        steps.append((norm, gradients, [whole(parameter.detach()).clone() for parameter in model.parameters()]))
    return steps


def test_adamw_and_the_clip_in_float64():
    model = toy_model(64, 2, seed=0)
    before = [parameter.detach().double() for parameter in model.parameters()]
    steps = three_clipped_steps(model)
    for norm, gradients, _ in steps:
        clipped = torch.cat([gradient.double().flatten() for gradient in gradients]).norm().item()
        assert clipped == pytest.approx(min(norm, 1.0), rel=1e-5)
    assert steps[0][0] > 1 and steps[1][0] > 1 > steps[2][0]
    for place, weight in enumerate(before):
        expected = adamw_in_float64(weight, [gradients[place].double() for _, gradients, _ in steps], 1e-2, (0.9, 0.95), 0.1)
        torch.testing.assert_close(steps[-1][2][place].double(), expected, rtol=1e-5, atol=1e-6)


def test_adamw_and_the_clip_on_two_ranks(tmp_path):
    """Sharded parameters: the norm is that of all ranks' shards, and each rank steps its own, however little work it has."""
    run_ranks(2, Path(__file__), tmp_path / "steps.pt")
    for alone, shared in zip(three_clipped_steps(toy_model(64, 2, seed=0)), torch.load(tmp_path / "steps.pt"), strict=True):
        assert shared[0] == pytest.approx(alone[0], rel=1e-5)
        for one, other in zip(alone[1] + alone[2], shared[1] + shared[2], strict=True):
            torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-5)


def on_two_ranks(file):
    faulthandler.dump_traceback_later(60, exit=True)            # one that waits for the other for ever would outlive the test
    setup_distributed()
    steps = three_clipped_steps(shard(toy_model(64, 2, seed=0), torch.float32, trainable=True))
    if rank() == 0:
        torch.save(steps, file)


# ---------------------------------------------------------------- whole steps

STEPS, PROMPTS, GROUP = 3, 4, 3
LR = 1e-3


def our_weights(monkeypatch, stage, *flags):
    """The weights after each optimiser step of a stage that is handed its rollouts."""
    weights, step = [], torch.optim.AdamW.step

    def step_and_keep(optimizer, closure=None):
        step(optimizer, closure)
        weights.append([parameter.detach().clone() for group in optimizer.param_groups for parameter in group["params"]])

    monkeypatch.setattr(torch.optim.AdamW, "step", step_and_keep)
    monkeypatch.setattr(runs, "sample", gradients_script.canned_sample)
    monkeypatch.setattr(common, "grade", is_right)
    run(stage, *flags, "--max-steps", STEPS, "--prompts-per-step", PROMPTS, "--max-new-tokens", 12, "--lr", LR, "--weight-decay", 0,
        "--micro-batch-size", 6)
    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    return weights


def is_right(completion, gold):
    return len(completion) % 2 == 0


def trl_weights(toy, trainer_class, config_class, group, config, *models, **more):
    """The same of a trainer, whose completions are the same function of the prompt."""
    from datasets import Dataset
    from transformers import TrainerCallback

    weights, tokenizer = [], common.load_tokenizer(toy / "student")
    chat = argparse.Namespace(instruction=None, enable_thinking=False, template_args=None)
    prompts = problems.encode_prompts(tokenizer, common.load_problems(toy / "few_train.jsonl"), chat)
    in_our_order = [tokenizer.decode(prompts[i]) for step in range(STEPS) for i in common.batch_indices(len(prompts), PROMPTS, step, seed=0)]

    class Keep(TrainerCallback):
        def on_step_end(self, *_, model, **__):
            weights.append([parameter.detach().clone() for parameter in model.parameters()])

    class HandedIn(trainer_class):
        def _generate_single_turn(self, prompt_ids, *_, **__):
            rollouts = gradients_script.canned_sample(None, [list(ids) for ids in prompt_ids[::group]], samples_per_prompt=group,
                                                      max_new_tokens=12, eos_ids=[EOS], pad_id=PAD)
            return (rollouts.completions(), None) if group > 1 else rollouts.completions()

    micro_batches = PROMPTS * group // 2
    arguments = config_class(
        use_cpu=True, bf16=False, max_steps=STEPS, report_to="none", save_strategy="no", logging_strategy="no", disable_tqdm=True,
        gradient_checkpointing=False, learning_rate=LR, lr_scheduler_type="constant", weight_decay=0.0, adam_beta2=0.95, max_grad_norm=1.0,
        optim="adamw_torch", per_device_train_batch_size=2, gradient_accumulation_steps=micro_batches, shuffle_dataset=False,
        max_completion_length=12, temperature=1.0, **config)
    HandedIn(*models, args=arguments, train_dataset=Dataset.from_dict({"prompt": in_our_order}), processing_class=tokenizer,
             callbacks=[Keep()], **more).train()
    return weights


def assert_the_same_steps(ours, theirs, start):
    assert len(ours) == len(theirs) == STEPS
    for step in range(STEPS):
        apart = max((one - other).abs().max().item() for one, other in zip(ours[step], theirs[step], strict=True))
        moved = max((one - other).abs().max().item() for one, other in zip(ours[step], start, strict=True))
        assert apart <= 1e-5 and moved > 100 * apart, f"step {step + 1}: {apart:.1e} apart, where {moved:.1e} were gone"


def model_of(directory):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)


@pytest.mark.filterwarnings("ignore")
def test_three_steps_of_stage_1_are_trls(toy, tmp_path, monkeypatch):
    """The advantages are handed in: those of TRL differ by the factor that is tested above."""
    trl = pytest.importorskip("trl", reason="needs TRL: the bench extra")
    tokenizer = common.load_tokenizer(toy / "student")

    def advantages(completion_ids, **_):
        texts = tokenizer.batch_decode(completion_ids, skip_special_tokens=True)
        rewards = [float(ids[-1] == EOS and is_right(text, None)) for ids, text in zip(completion_ids, texts)]
        return group_advantages(torch.tensor(rewards), GROUP).tolist()

    start = list(model_of(toy / "student").parameters())
    ours = our_weights(monkeypatch, stage1_grpo, "--model", toy / "student", "--problems", toy / "few_train.jsonl", "--out", tmp_path / "ours",
                       "--samples-per-prompt", GROUP, "--steps-per-rollout", 1, "--give-up-after", 0)
    config = dict(output_dir=str(tmp_path / "theirs"), num_generations=GROUP, beta=0.0, epsilon=0.2, epsilon_high=0.28, loss_type="dapo",
                  scale_rewards="none")
    theirs = trl_weights(toy, trl.GRPOTrainer, trl.GRPOConfig, GROUP, config, model_of(toy / "student"), advantages)
    assert_the_same_steps(ours, theirs, start)


@pytest.mark.filterwarnings("ignore")
def test_three_steps_of_stage_4_are_trls(toy, tmp_path, monkeypatch):
    trl = pytest.importorskip("trl", reason="needs TRL: the bench extra")
    start = list(model_of(toy / "student").parameters())
    ours = our_weights(monkeypatch, stage4_distill, "--student", toy / "student", "--teacher", toy / "teacher", "--problems", toy / "few_train.jsonl",
                       "--out", tmp_path / "ours")
    theirs = trl_weights(toy, trl.DistillationTrainer, trl.DistillationConfig, 1, dict(output_dir=str(tmp_path / "theirs"), beta=1.0),
                         model_of(toy / "student"), model_of(toy / "teacher"))
    assert_the_same_steps(ours, theirs, start)


if __name__ == "__main__":
    on_two_ranks(*sys.argv[1:])
