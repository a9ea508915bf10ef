"""Which Hugging Face causal LMs are served, and in which way: a matrix of tiny random models of many architectures.

    python bench/architectures.py                            # prints the table, in some minutes on one core
    python bench/architectures.py --write                    # and puts it into docs/architectures.md
    python bench/architectures.py --only "Gemma 2" LFM2      # of these

Each model has a few thousand random weights and the toy vocabulary, sliding windows shorter than its texts, and prompts
of unequal length.  It is saved, and measured as the scripts load it, in float32:

sampler     whether a prompt is prefilled once for its samples (shared) or each row holds a copy (plain); whether greedy
            completions are those of `generate()`, prompt by prompt; the largest difference of the logprobs of sampled
            completions from those of the model's own forward pass over each rollout alone, without padding, nats
training    whether a prompt goes through once for its rollouts (shared) or a padded row a rollout (plain); the same
            difference of `completion_logprobs`
steps       which stages take an optimiser step, by their main(); a random model is never right, so an even number of
            characters counts as right
saved       the largest difference of the logits of the model that AutoModelForCausalLM loads from what stage 1 has
            saved, from those of the policy before it was saved
two ranks   the largest difference of stage 1's gradient on two ranks (FSDP2, gloo) from that on one, as a share of its
            largest entry
"""
import argparse
import contextlib
import importlib.metadata
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import common  # noqa: E402
import pages.run  # noqa: E402
from experiments.toy import EOS, PAD, toy_tokenizer  # noqa: E402
import stage1_grpo  # noqa: E402
import stage2_shape  # noqa: E402
import stage3_kl  # noqa: E402
import stage4_distill  # noqa: E402
from common import FlagParser, completion_logprobs, load_model, load_tokenizer, sample  # noqa: E402
from engine import ranks, runs  # noqa: E402
from engine.files import write_jsonl, write_text  # noqa: E402
from engine.packed import Packed, layout  # noqa: E402
from engine.ranks import first_line  # noqa: E402
from engine.sampler import has_plain_attention  # noqa: E402
from engine.sharding import whole  # noqa: E402

PAGE = ROOT / "docs" / "architectures.md"
BEGIN, END = "<!-- bench/architectures.py --write -->", "<!-- end -->"

EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
TWO_KINDS = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 5}
DELTA = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
STATE = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}

# name -> transformers' model_type, what its config has beyond `config_of`'s sizes
ARCHITECTURES: dict[str, tuple[str, dict]] = {
    "Qwen3": ("qwen3", {}),
    "Qwen2.5": ("qwen2", {"tie_word_embeddings": True}),
    "Llama": ("llama", {}),
    "Mistral, sliding window": ("mistral", {"sliding_window": 5}),
    "Phi-3": ("phi3", {}),
    "OLMo 2": ("olmo2", {}),
    "SmolLM3": ("smollm3", {"num_hidden_layers": 4}),                       # its fourth layer has no positions
    "Granite": ("granite", {"logits_scaling": 4.0, "residual_multiplier": 0.5, "embedding_multiplier": 3.0,
                            "attention_multiplier": 0.2}),
    "Cohere": ("cohere", {"logit_scale": 0.25}),
    "Cohere2": ("cohere2", {"logit_scale": 0.25, **TWO_KINDS}),
    "Gemma 2": ("gemma2", {"query_pre_attn_scalar": 8, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0,
                           **TWO_KINDS}),
    "Gemma 3": ("gemma3_text", {"query_pre_attn_scalar": 8, **TWO_KINDS}),
    "Gemma 4": ("gemma4_text", {"vocab_size_per_layer_input": 15, "hidden_size_per_layer_input": 8,
                                "num_kv_shared_layers": 0, "global_head_dim": 8, **TWO_KINDS}),
    "Llama 4": ("llama4_text", {"num_local_experts": 2, "num_experts_per_tok": 1, "intermediate_size_mlp": 48}),
    "GPT-NeoX": ("gpt_neox", {}),
    "GPT-2": ("gpt2", {}),
    "OPT": ("opt", {"word_embed_proj_dim": 32, "ffn_dim": 48}),
    "BLOOM, ALiBi": ("bloom", {}),
    "gpt-oss": ("gpt_oss", {**EXPERTS, **TWO_KINDS, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}),
    "Mixtral": ("mixtral", EXPERTS),
    "Qwen3-MoE": ("qwen3_moe", EXPERTS),
    "DeepSeek-V3": ("deepseek_v3", {**EXPERTS, **LATENT, "n_routed_experts": 4, "n_group": 2, "topk_group": 1,
                                    "first_k_dense_replace": 1, "num_key_value_heads": 4}),
    "Qwen3-Next": ("qwen3_next", {**EXPERTS, **DELTA, "shared_expert_intermediate_size": 16,
                                  "layer_types": ["linear_attention", "full_attention"]}),
    "Qwen3.5": ("qwen3_5_text", {**DELTA, "layer_types": ["linear_attention", "full_attention"]}),
    "LFM2": ("lfm2", {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False}),
    "Falcon-H1": ("falcon_h1", STATE),
    "Mamba": ("mamba", {"state_size": 8}),
    "Mamba 2": ("mamba2", {"num_heads": 8, "n_groups": 1, "state_size": 8}),
    "MiniMax": ("minimax", {**EXPERTS, "layer_types": ["linear_attention", "full_attention"]}),
    "RecurrentGemma": ("recurrent_gemma", {"block_types": ["recurrent", "attention"], "attention_window_size": 5,
                                           "lru_width": 32}),
    "RWKV": ("rwkv", {}),
}
PROMPTS = [[5, 6, 2], [7] * 9, [8], [9, 10, 11, 2], [5, 6, 2], [5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 3, 4]]
STOP = [EOS, 6, 9]                               # several, so that some completions end
IDS = torch.arange(12)[None] + 2


def config_of(name: str):
    model_type, more = ARCHITECTURES[name]
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "initializer_range": 0.4,
             "tie_word_embeddings": False, "vocab_size": 15, "pad_token_id": PAD, "eos_token_id": EOS,
             "bos_token_id": None}
    return AutoConfig.for_model(model_type, **(sizes | more))


def make(name: str, directory: Path, seed: int = 0) -> Path:
    """A checkpoint directory as one would download it; nothing in it is 0 or 1 for lack of training."""
    torch.manual_seed(seed)
    with quiet():
        model = AutoModelForCausalLM.from_config(config_of(name), dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model.generation_config.eos_token_id = STOP
    model.save_pretrained(directory)
    toy_tokenizer().save_pretrained(directory)
    return directory


def write_problems(path: Path) -> None:
    """Prompts of 2 to 11 tokens."""
    write_jsonl(path, [{"problem": "3491827546"[:length] + "=", "answer": str(length)}
                       for length in (10, 1, 5, 3, 7, 2)])


@contextlib.contextmanager
def quiet():
    """Without what transformers warns of: kernels that are not installed, positions of scaled RoPE."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.set_verbosity(verbosity)


# ---------------------------------------------------------------- what is measured

def draw(model, samples_per_prompt: int, temperature: float):
    return sample(model, PROMPTS, samples_per_prompt=samples_per_prompt, max_new_tokens=16, temperature=temperature,
                  eos_ids=STOP, pad_id=PAD, generator=torch.Generator().manual_seed(0))


def as_generate(model) -> bool:
    """Greedy completions token by token; rows end at different times, and the last ones take their places."""
    rollouts = draw(model, 1, 0.0)
    for prompt, completion in zip(PROMPTS, rollouts.completions()):
        expected = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=16, repetition_penalty=1.0,
                                  eos_token_id=STOP, pad_token_id=PAD)
        if completion != expected[0, len(prompt):].tolist():
            return False
    return True


@torch.no_grad()
def own_logprobs(model, rollouts) -> torch.Tensor:
    """By the model's own forward pass, each rollout alone and without padding."""
    rows = torch.zeros(rollouts.completion_ids.shape)
    for row, (prompt, completion) in zip(rows, zip(rollouts.prompts(), rollouts.completions())):
        logits = model(torch.tensor([prompt + completion]), use_cache=False).logits[0, len(prompt) - 1:-1]
        row[:len(completion)] = logits.float().log_softmax(-1).gather(-1, torch.tensor(completion)[:, None])[:, 0]
    return rows


def sampler_and_training(directory: Path) -> dict:
    """The first five columns."""
    model = load_model(directory, load_tokenizer(directory), "float32", "cpu")
    shared = has_plain_attention(model)
    greedy, rollouts = as_generate(model), draw(model, 4, 1.0)
    expected = own_logprobs(model, rollouts)
    model.requires_grad_(True)
    packed = isinstance(layout(model, rollouts), Packed)
    scored = completion_logprobs(model, rollouts).detach()
    return {"sampler": "shared" if shared else "plain", "generate": "yes" if greedy else "no",
            "sampler_nats": (rollouts.sampler_logprobs - expected).abs().max().item(),
            "training": "shared" if packed else "plain", "training_nats": (scored - expected).abs().max().item()}


def stage1_with_gradient(directory: Path, out: Path) -> tuple[list[torch.Tensor], float | None]:
    """One step of stage 1's main().  -> its gradient, whole; on one rank, how far off what it saved reloads."""
    gradients, kept = [], []
    step, save_model = torch.optim.AdamW.step, runs.save_model

    def keep_gradient(optimizer, closure=None):
        gradients.extend(whole(parameter.grad).clone() for group in optimizer.param_groups
                         for parameter in group["params"] if parameter.grad is not None)
        return step(optimizer)

    def keep_logits(model, *rest):
        with torch.no_grad():
            kept.append(model(IDS, use_cache=False).logits)
        save_model(model, *rest)

    try:
        torch.optim.AdamW.step, runs.save_model = keep_gradient, keep_logits
        run(stage1_grpo, "--model", directory, "--problems", directory.parent / "problems.jsonl", "--out", out,
            "--samples-per-prompt", 6, "--prompts-per-step", 6, "--steps-per-rollout", 1, "--give-up-after", 0,
            "--max-grad-norm", 1e9, "--lr", 1e-3)
    finally:
        torch.optim.AdamW.step, runs.save_model = step, save_model
    if ranks.world_size() > 1:
        return gradients, None
    with torch.no_grad():
        reloaded = AutoModelForCausalLM.from_pretrained(out / "model")(IDS, use_cache=False).logits
    return gradients, (reloaded - kept[0]).abs().max().item()


def run(module, *flags) -> None:
    more = ["--max-new-tokens", "10", "--micro-batch-size", "5"]
    more += ["--max-steps", "1"] if module is not stage2_shape else []
    module.main(module.parse_args([*map(str, flags), *more]))


def other_stages(directory: Path, teacher: Path) -> list:
    """Stages 2, 3 and 4, each a function to be called."""
    folder, given = directory.parent, directory.parent / "problems.jsonl"
    allow, pair = "--allow-failed-certificate", ["--student", directory, "--teacher", teacher]
    return [
        lambda: run(stage2_shape, "--teacher", teacher, "--reference", directory, "--problems", given,
                    "--certify-problems", given, "--samples-per-prompt", 2, "--out", folder / "shape", allow),
        lambda: run(stage3_kl, *pair, "--problems", given, "--rollouts", folder / "shape" / "rollouts.jsonl",
                    "--max-kl", 1e9, "--out", folder / "bridge", allow),
        lambda: run(stage4_distill, *pair, "--problems", given, "--out", folder / "taught")]


def attempt(function):
    """-> what the function returns and None; or None and the sentence of a refusal, or else the error."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), quiet():
            return function(), None
    except SystemExit as end:
        sentences = [line for line in said.getvalue().splitlines() if line.startswith("error: ")]
        return None, sentences[0].removeprefix("error: ") if end.code == 2 and sentences else f"exit code {end.code}"
    except Exception as error:
        return None, first_line(error)


def measure(name: str, folder: Path) -> dict:
    """A row of the table, but for the two ranks, and what there is to say of it."""
    print(f"{name} …", flush=True)
    directory, teacher = make(name, folder / "student"), make(name, folder / "teacher", seed=1)
    write_problems(folder / "problems.jsonl")
    row, told = {"name": name, "steps": [], "reasons": {}, "problems": []}, io.StringIO()
    with contextlib.redirect_stdout(told):
        done, problem = attempt(lambda: stage1_with_gradient(directory, folder / "rl"))
        if problem:
            return row | {"problems": [problem.removeprefix(f"{directory}: ")]}
        gradient, row["saved"] = done
        assert max(part.abs().max() for part in gradient) > 0, "no group had both outcomes: nothing was measured"
        torch.save(gradient, folder / "gradient.pt")
        row |= sampler_and_training(directory)
        problems = [None, *(attempt(stage)[1] for stage in other_stages(directory, teacher))]
    row["steps"] = [stage for stage, problem in enumerate(problems, 1) if problem is None]
    row["problems"] = list(dict.fromkeys(filter(None, problems)))
    for line in told.getvalue().splitlines():
        purpose, colon, reason = line.partition(": ")
        if colon and purpose in ("sampler", "training") and "plain way" in reason:
            row["reasons"].setdefault(reason.split("slower: ")[-1], []).append(purpose)
    return row


# ---------------------------------------------------------------- two ranks

def on_two_ranks(folders: dict[str, Path]) -> dict[str, str | float]:
    """name -> the difference of the gradient, or the error; all of them under one torchrun."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    jobs = json.dumps({name: str(folder) for name, folder in folders.items()})
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run([*launch, __file__, "--rank-of", jobs], capture_output=True, text=True, env=environment)
    answers = answers_in(done.stdout)
    if missing := folders.keys() - answers.keys():
        print(f"two ranks ended early, without {sorted(missing)}:\n{done.stderr[-3000:]}")
    return answers


def answers_in(text: str) -> dict[str, str | float]:
    answers = [json.loads(line) for line in text.splitlines() if line.startswith('{"two')]
    return {answer["two"]: answer["answer"] for answer in answers}


def rank_of(folders: dict[str, str]) -> None:
    """One of the two processes."""
    ranks.setup_distributed()
    for name, folder in folders.items():
        answer, problem = attempt(lambda: stage1_with_gradient(Path(folder, "student"), Path(folder, "rl2")))  # noqa: B023
        if answer and ranks.rank() == 0:
            alone = torch.load(Path(folder, "gradient.pt"))
            largest = max(gradient.abs().max() for gradient in alone)
            answer = max(((one - two).abs().max() / largest).item() for one, two in zip(alone, answer[0], strict=True))
        if ranks.rank() == 0:
            print("\n" + json.dumps({"two": name, "answer": answer if problem is None else problem}), flush=True)


# ---------------------------------------------------------------- the table

HEAD = ["| architecture | sampler | `generate()` | nats off | training | nats off | stages | saved | two ranks |",
        "| --- | --- | --- | ---: | --- | ---: | --- | ---: | ---: |"]


def table(rows: list[dict]) -> str:
    lines = list(HEAD)
    for row in rows:
        cells = [row["name"], row.get("sampler"), row.get("generate"), number(row.get("sampler_nats")),
                 row.get("training"), number(row.get("training_nats")), " ".join(map(str, row["steps"])) or "refused",
                 number(row.get("saved")), number(row.get("two_ranks"))]
        lines.append(f"| {' | '.join(str(cell or '') for cell in cells)} |")
    lines.append("")
    for row in rows:
        reasons = [f"plain {' and '.join(sorted(purposes))}: {reason}" for reason, purposes in row["reasons"].items()]
        if said := [*reasons, *row["problems"]]:
            lines.append(f"- {row['name']}: {'; '.join(said)}.")
    return "\n".join(lines) + "\n"


def number(x: float | None) -> str | None:
    return x if x is None else "0" if x == 0 else f"{x:.0e}"


def main() -> None:
    parser = FlagParser(__doc__)
    parser.add_argument("--only", nargs="+", choices=list(ARCHITECTURES), default=list(ARCHITECTURES), metavar="NAME",
                        help="these (default: all)")
    parser.add_argument("--one-rank", action="store_true", help="leave out the last column")
    parser.add_argument("--write", action="store_true", help=f"put the table into {PAGE.name}")
    parser.add_argument("--rank-of", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.write and len(args.only) < len(ARCHITECTURES):
        parser.error("--write puts the whole table down: without --only")
    torch.set_num_threads(1)
    common.grade = lambda completion, gold: len(completion) % 2 == 0
    pages.run.write_run_page = lambda run: None          # drawing takes longer than these runs
    if args.rank_of:
        return rank_of(args.rank_of)
    folder = Path(tempfile.mkdtemp())
    folders = {name: folder / str(place) for place, name in enumerate(args.only)}
    rows = [measure(name, folders[name]) for name in folders]
    if not args.one_rank:
        answers = on_two_ranks({row["name"]: folders[row["name"]] for row in rows if 1 in row["steps"]})
        for row in rows:
            answer = answers.get(row["name"], "no answer" if 1 in row["steps"] else None)
            row["two_ranks"] = answer if not isinstance(answer, str) else None
            row["problems"] += [f"two ranks: {answer}"] if isinstance(answer, str) else []
    shutil.rmtree(folder)
    versions = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in ("torch", "transformers"))
    text = f"{versions}, float32 on a CPU:\n\n{table(rows)}"
    print(text)
    if args.write:
        before, rest = PAGE.read_text().split(BEGIN)
        write_text(PAGE, before + BEGIN + "\n\n" + text + "\n" + END + rest.split(END)[1])


if __name__ == "__main__":
    main()
