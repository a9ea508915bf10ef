r"""A real pair for a laptop's CPU, the toy's situation in English.  MAWPS, one- and two-step word problems, is
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
"""
import random
import shutil
import time
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import torch
from tqdm import tqdm

from common import completion_logprobs, from_zero, load_model, load_tokenizer, positive, share_of_one
from engine.checkpoints import save_model
from engine.files import read_json, write_json, write_jsonl
from engine.models import eos_ids
from engine.problems import Problem, encode_prompts, load_problems
from engine.ranks import fail, setup_distributed
from engine.rollouts import from_rows
from engine.runs import leave_if_asked, load_state, save_or_leave
from eval import Sampling, evaluate
from experiments.smollm2 import keep_layers, write_smollm2

LAPTOP_INSTRUCTION = "Give the result as \\boxed{number}."
NUM_SWEEP, NUM_SWEEP_HELDOUT = 160, 96


def prepare(args, mawps: dict[str, list[dict]], dropped: dict[str, int]) -> None:
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
    stop, model = eos_ids(base, tokenizer), load_model(base, tokenizer, "float32", device, trainable=True)
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


def add_flags(parser) -> None:
    parser.add_argument("--data", type=Path, help="the folder that holds MAWPS")
    parser.add_argument("--smollm2", type=Path, help="what `prepare.py smollm2` has written (default: written anew)")
    parser.add_argument("--num-examples", type=positive, default=320, help="problems of the cold start")
    parser.add_argument("--teacher-worked", type=share_of_one, default=0.2, help="share of worked examples")
    parser.add_argument("--student-worked", type=share_of_one, default=0.05, help="the same")
    parser.add_argument("--student-layers", type=positive, nargs="+", default=[20, 22, 24, 26, 28],
                        help="how many are tried, in this order")
    parser.add_argument("--upper-bound", type=share_of_one, default=0.15, help="right after fine-tuning on all")
    parser.add_argument("--epochs", type=positive, default=3, help="of every fine-tuning")
    parser.add_argument("--lr", type=from_zero, default=1e-4, help="of the teacher's")
    parser.add_argument("--student-lr", type=from_zero, default=2e-4, help="of those with fewer layers, to heal")
    parser.add_argument("--instruction", default=LAPTOP_INSTRUCTION, help="end of the user message")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="compute dtype")
