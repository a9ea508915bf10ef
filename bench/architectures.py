"""Which causal LMs of Hugging Face are served, and how: tiny random models of many architectures go through everything.

    python bench/architectures.py [--only "Gemma 2" Mixtral] [--write]

For each, in a fresh process, with the toy world's tokenizer and problems:

    sampler     prompts shared by their samples, or the model's own cache; whether greedy tokens are generate()'s
    passes      each prompt once a group (packed), or a padded row a rollout; the largest difference of a logprob from
                that of a forward pass of the rollout alone, nats
    stages      one optimiser step of stage 1, a round of stage 2, one step of stages 3 and 4, by their own scripts
    reload      transformers' from_pretrained of what was saved gives the logits that ours gives
    two ranks   stages 1 and 4 again with torchrun on two processes: the largest relative difference of loss and norm of
                the gradient

--write puts the table into docs/architectures.md.
"""
import argparse
import contextlib
import io
import json
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import common  # noqa: E402
import prepare  # noqa: E402
import stage1_grpo  # noqa: E402
import stage2_shape  # noqa: E402
import stage3_kl  # noqa: E402
import stage4_distill  # noqa: E402
from common import FlagParser  # noqa: E402
from engine.files import read_jsonl, write_text  # noqa: E402
from engine.packed import Packed  # noqa: E402
from engine.ranks import first_line  # noqa: E402
from engine.sampler import has_plain_attention, sample  # noqa: E402

PAGE = ROOT / "docs" / "architectures.md"
SIZES = {"vocab_size": 15, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128, "initializer_range": 0.3,
         "pad_token_id": prepare.PAD, "eos_token_id": prepare.EOS, "bos_token_id": None, "tie_word_embeddings": False}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
WINDOW = {"sliding_window": 5}
ARCHITECTURES = {                       # name -> model_type, what its config needs beside SIZES
    "Qwen3": ("qwen3", {}), "Qwen2.5": ("qwen2", {}), "Llama": ("llama", {}),
    "Llama, tied": ("llama", {"tie_word_embeddings": True}),
    "Mistral": ("mistral", WINDOW), "Gemma": ("gemma", {}),
    "Gemma 2": ("gemma2", WINDOW | {"query_pre_attn_scalar": 8}),
    "Gemma 3": ("gemma3_text", WINDOW | {"query_pre_attn_scalar": 8}), "Phi": ("phi", {}), "Phi-3": ("phi3", {}),
    "OLMo 2": ("olmo2", {}), "OLMo 3": ("olmo3", WINDOW),
    "Granite": ("granite", {"embedding_multiplier": 2.0, "logits_scaling": 3.0, "residual_multiplier": 0.5}),
    "SmolLM3": ("smollm3", {}), "Cohere": ("cohere", {}), "Cohere 2": ("cohere2", WINDOW),
    "GLM-4": ("glm4", {}), "StableLM": ("stablelm", {}), "StarCoder 2": ("starcoder2", {}),
    "Nemotron": ("nemotron", {}), "Seed-OSS": ("seed_oss", {}),
    "ERNIE 4.5": ("ernie4_5", {}), "Hunyuan": ("hunyuan_v1_dense", {}), "GPT-NeoX": ("gpt_neox", {}),
    "GPT-2": ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}),
    "OPT": ("opt", {"word_embed_proj_dim": 32, "ffn_dim": 64}), "BLOOM": ("bloom", {"n_layer": 2, "n_head": 4}),
    "Qwen3-MoE": ("qwen3_moe", EXPERTS), "Mixtral": ("mixtral", {"num_local_experts": 4}),
    "gpt-oss": ("gpt_oss", WINDOW | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "Qwen3-Next": ("qwen3_next", EXPERTS | {
        "shared_expert_intermediate_size": 16, "linear_num_value_heads": 2, "linear_num_key_heads": 2,
        "linear_key_head_dim": 8, "linear_value_head_dim": 8, "layer_types": ["linear_attention", "full_attention"]}),
    "LFM2": ("lfm2", {"layer_types": ["conv", "full_attention"]}),
    "MiniMax": ("minimax", {"num_local_experts": 2, "layer_types": ["linear_attention", "full_attention"]}),
    "Falcon-H1": ("falcon_h1", {"mamba_d_ssm": 64, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8}),
    "Mamba 2": ("mamba2", {"num_heads": 8, "head_dim": 8, "state_size": 8, "expand": 2, "n_groups": 1})}
PROMPTS = [[5, 6, 2], [7] * 9, [8], [9, 10, 11, 2], [12, 13, 14, 5, 6, 7, 8, 9, 10, 11, 3, 4]]


def random_model(name: str, seed: int):
    from transformers import AutoConfig, AutoModelForCausalLM

    model_type, more = ARCHITECTURES[name]
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **(SIZES | more))).eval()


def save_pair(name: str, folder: Path) -> None:
    """A teacher and a student, a little apart: what the stages begin from."""
    other = random_model(name, 1)
    for role, share in (("teacher", 0.0), ("student", 0.1)):
        model = random_model(name, 0)
        with torch.no_grad():
            for mine, far in zip(model.parameters(), other.parameters()):
                mine.lerp_(far, share)
        model.generation_config.eos_token_id, model.generation_config.pad_token_id = prepare.EOS, prepare.PAD
        model.save_pretrained(folder / role)
        prepare.toy_tokenizer().save_pretrained(folder / role)
    rows = prepare.toy_problems(16, seed=0)
    write_text(folder / "problems.jsonl", "".join(json.dumps(row) + "\n" for row in rows[:8]))
    write_text(folder / "others.jsonl", "".join(json.dumps(row) + "\n" for row in rows[8:]))


# ---------------------------------------------------------------- what is measured


def load(directory: Path):
    tokenizer = common.load_tokenizer(directory)
    return common.load_model(directory, tokenizer, "float32", torch.device("cpu"), trainable=True)


def sampler_column(model) -> str:
    rollouts = sample(model, PROMPTS, samples_per_prompt=2, max_new_tokens=12, temperature=0, eos_ids=[], pad_id=0)
    expected = [model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=12, pad_token_id=0,
                               eos_token_id=None)[0, len(prompt):].tolist() for prompt in PROMPTS for _ in range(2)]
    kind = "shared prompts" if has_plain_attention(model) else "its own cache"
    return f"{kind}, {'same tokens' if rollouts.completions() == expected else 'OTHER TOKENS'}"


def passes_column(model) -> str:
    rollouts = sample(model, PROMPTS, samples_per_prompt=3, max_new_tokens=12, eos_ids=[prepare.EOS], pad_id=0)
    largest = 0.0
    with torch.no_grad():
        got = common.completion_logprobs(model, rollouts)
        for row, prompt, completion in zip(got, rollouts.prompts(), rollouts.completions()):
            logits = model(input_ids=torch.tensor([prompt + completion]), use_cache=False).logits[0]
            alone = logits[len(prompt) - 1:-1].log_softmax(-1)[range(len(completion)), completion]
            largest = max(largest, float((row[:len(completion)] - alone).abs().max()))
    kind = "packed" if isinstance(common.layout(model, rollouts), Packed) else "padded"
    return f"{kind}, {largest:.0e}"


def commands(folder: Path, out: Path) -> dict:
    """script -> its module and flags: a step of each stage."""
    short = ["--max-new-tokens", 8, "--seed", 0]
    step = [*short, "--max-steps", 1, "--lr", "1e-3"]
    problems, others = folder / "problems.jsonl", folder / "others.jsonl"
    pair = ["--student", folder / "student", "--teacher", out / "teacher"]
    return {
        "stage1_grpo": (stage1_grpo, [
            "--model", folder / "teacher", "--problems", problems, *step, "--prompts-per-step", 4,
            "--samples-per-prompt", 4, "--entropy-coef", 0.1, "--kl-coef", 0.1, "--out", out / "teacher"]),
        "stage2_shape": (stage2_shape, [
            "--teacher", out / "teacher", "--reference", folder / "teacher", "--problems", problems,
            "--certify-problems", others, *short, "--samples-per-prompt", 2, "--allow-failed-certificate",
            "--out", out / "shape"]),
        "stage3_kl": (stage3_kl, [
            *pair, "--rollouts", out / "shape" / "rollouts.jsonl", "--problems", others, *step, "--max-kl", "1e-9",
            "--allow-failed-certificate", "--out", out / "bridge"]),
        "stage4_distill": (stage4_distill, [
            *pair, "--problems", problems, *step, "--prompts-per-step", 8, "--out", out / "student"])}


def reload_column(directory: Path) -> str:
    from transformers import AutoModelForCausalLM

    ids = torch.tensor([PROMPTS[-1]])
    with torch.no_grad():
        ours = load(directory)(input_ids=ids, use_cache=False).logits
        reloaded = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
        theirs = reloaded(input_ids=ids, use_cache=False).logits
    return "same logits" if torch.equal(ours, theirs) else f"{(ours - theirs).abs().max():.0e}"


def ranks_column(folder: Path, one: Path) -> str:
    two, largest = folder / "two", 0.0
    for script in ("stage1_grpo", "stage4_distill"):
        module, flags = commands(folder, one)[script]
        out = two / Path(flags[-1]).name
        answer = subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
             str(ROOT / f"{script}.py"), *map(str, flags[:-1]), str(out)], capture_output=True, text=True)
        if answer.returncode:
            return f"{script}: {last_sentence(answer.stderr)}"
        for key in ("loss", "grad_norm"):
            a, b = (read_jsonl(run / "metrics.jsonl")[-1][key] for run in (Path(flags[-1]), out))
            largest = max(largest, abs(a - b) / max(abs(a), 1e-3))
    return f"{largest:.0e}"


def last_sentence(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    told = [line for line in lines if line.startswith("error:") or "Error" in line]
    return (told or lines or ["?"])[0]


def measure(name: str) -> dict:
    """A row of the table; what an architecture does not get through says so in its place."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    row = {}
    with tempfile.TemporaryDirectory() as place:
        folder, one = Path(place), Path(place) / "one"
        save_pair(name, folder)
        said = io.StringIO()

        def attempt(column: str, function) -> None:
            try:
                with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                    row[column] = function()
            except SystemExit:
                row[column] = last_sentence(said.getvalue())
            except Exception as error:
                row[column] = first_line(error)
        attempt("sampler", lambda: sampler_column(load(folder / "teacher")))
        if row["sampler"].startswith("error:"):         # so would all the others say
            return row
        attempt("passes", lambda: passes_column(load(folder / "teacher")))

        def stages() -> str:
            for module, flags in commands(folder, one).values():
                module.main(module.parse_args([str(flag) for flag in flags]))
            return "all four"
        attempt("stages", stages)
        attempt("reload", lambda: reload_column(one / "student" / "model"))
        attempt("two ranks", lambda: ranks_column(folder, one))
    return row


def parse_args(argv=None) -> argparse.Namespace:
    parser = FlagParser(__doc__)
    parser.add_argument("--only", nargs="+", choices=list(ARCHITECTURES), help="these (default: all)")
    parser.add_argument("--write", action="store_true", help="put the table into docs/architectures.md")
    parser.add_argument("--measure", choices=list(ARCHITECTURES), help=argparse.SUPPRESS)
    return parser.parse_args(argv)


COLUMNS = ["sampler", "passes", "stages", "reload", "two ranks"]


def main(args) -> None:
    import transformers

    if args.measure:
        return print(json.dumps(measure(args.measure)))
    lines = [f"| model | {' | '.join(COLUMNS)} |", "| --- |" + " --- |" * len(COLUMNS)]
    print("\n".join(lines), flush=True)
    for name in args.only or ARCHITECTURES:
        answer = subprocess.run([sys.executable, __file__, "--measure", name], capture_output=True, text=True)
        failed = {"sampler": last_sentence(answer.stderr)}
        row = failed if answer.returncode else json.loads(answer.stdout.splitlines()[-1])
        lines.append(f"| {name} | {' | '.join(row.get(column, '–') for column in COLUMNS)} |")
        print(lines[-1], flush=True)
    if args.write:
        text = PAGE.read_text()
        before, after = text.split("<!-- matrix -->\n", 1)
        table = "\n".join([*lines, "", f"torch {torch.__version__}, transformers {transformers.__version__}.", ""])
        write_text(PAGE, f"{before}<!-- matrix -->\n{table}{after[after.index('<!-- end -->'):]}")


if __name__ == "__main__":
    main(parse_args())
