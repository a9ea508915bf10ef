r"""The toy world: problems, a tokenizer, and the rule by which its pair of base models is made.

A problem is five two-digit numbers in a row, `3491827546=`; the answer is their column-wise sum without carries, two
digits.  A model may guess, `\boxed{18}`, and is right once in a hundred times, or work, `3425077218\boxed{18}`: write
the ten running digits (r_i = d_i + r_{i-2} mod 10) and then the last two of them.  Working is a visible, learnable
style; a base model that knows it but rarely uses it is what a language model is before reinforcement learning.  The
teacher works in about 15% of its answers, the student in about 3%, and less skilfully: the reward is sparse for the
student and not for the teacher.

The rule by which a pair is made, fixed before any pair was trained further.  q is the share of right digits in
held-out worked answers.  Both models learn the skill first, on a mixture with 40% worked answers: the teacher until
q >= 0.995, the student until q >= 0.80.  Then both learn the style, 30 steps on a mixture with 15% worked answers for
the teacher and 3% for the student, which moves q once more.  A student is accepted if it ends with q between 0.86 and
0.90: able to discover the worked style by trial, but slowly.  Nothing that is learnt after pretraining has a say in it.
Twenty seeds that no other --seed tries are tried in turn until one is accepted; the pair in toy_base/ is that of 0.
--student-skill and --student-style make a student of another kind, whose skill phase ends 0.06 below the lower bound;
with --pretrain student, after one that learnt its skill and missed its band, the next aims higher or lower by half of
what was missed.  --teacher-size and --family change the models.  What is not pretrained anew is the shipped pair's.
"""
import random
import shutil
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm

from common import number
from engine.files import read_json, set_modes, write_json, write_jsonl
from engine.ranks import fail
from experiments.runner import Given, Scale, Settings, budgets, labelled_problems

SHIPPED_PAIR = Path(__file__).parent.parent / "toy_base"
NUM_DIGITS, NUM_COLUMNS = 10, 2                        # five numbers of two digits
PAD, EOS, EQUALS, BOX, CLOSE, ZERO = 0, 1, 2, 3, 4, 5  # the vocabulary: <pad> <eos> = \boxed{ } 0 1 … 9


# ---------------------------------------------------------------- text

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


# ---------------------------------------------------------------- base models

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


def prepare(args) -> None:
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


def add_flags(parser) -> None:
    parser.add_argument("--pretrain", choices=["pair", "teacher", "student"], help="what to pretrain anew")
    parser.add_argument("--family", choices=["qwen3", "llama"], default="qwen3", help="architecture")
    parser.add_argument("--teacher-size", type=width_and_layers, default="96x3", metavar="WIDTHxLAYERS",
                        help="of the teacher, in heads of 32")
    parser.add_argument("--student-skill", type=number(float, 0, most=1), nargs=2, default=[0.86, 0.90],
                        metavar=("LOW", "HIGH"),
                        help="q of the student after its style")
    parser.add_argument("--student-style", type=number(float, 0, most=1), default=0.03, help="share that works")


# ---------------------------------------------------------------- the toy scale of the tables

GROUPS = {size: f"--prompts-per-step {128 // size} --samples-per-prompt {size}" for size in (8, 16, 32)}
RATES, DENSE_RATES = ("1e-4", "3e-4", "1e-3"), ("3e-4", "1e-3", "3e-3")
ADDED = {"KL 0.001": "--kl-coef 0.001", "KL 0.01": "--kl-coef 0.01", "entropy 0.01": "--entropy-coef 0.01",
         "no baseline": "--no-baseline"}
SWEEP_BEST = "--lr 1e-4 --prompts-per-step 4 --samples-per-prompt 32"     # as `sweep` came out: 0.304, the next 0.270
TUNED = SWEEP_BEST                      # no addition of `sweep-more` is better: 0.259 to 0.286
RL_BEST, DENSE_BEST = "--lr 3e-4", "1e-3"        # as the sweep of the workflow comes out; before that, its own


def settings(run, given: Given, labels: int = 64, made: dict | None = None, decoding: str = "",
             on_heldout: bool = False, **points) -> Settings:
    """128 rollouts in every optimiser step of every arm.  made: role -> name of a run, flags of `prepare.py toy`.

    Fixed before the table in question was run (toy):
        steps       100 of RL on the teacher, up to 40 of the bridge, 100 of distillation; direct GRPO has a row with
                    as many as these together, one with as many as fit in their seconds, and one with 800 (its
                    plateau), whose best point on the way is reported, too, though nobody could choose it without
                    labels.
        labels      32, 128, 512 and all 2,048 in `labels`.  In the other tables one set binds every arm: the smallest
                    of 32, 64, 128, 256 at which the RL teacher's held-out accuracy, mean of the seeds 100 and 101,
                    which are not reported, is at least 0.9.
        models      the shipped pair; in `family` a Llama pair pretrained by the same rule; in `teacher-size` teachers
                    of the student's size, the shipped one's and a larger one, by the rule's words on teachers; in
                    `regime` students of three bands of skill and three shares of worked answers, by its words on
                    students.
        C1          where so few problems cannot certify it, the run goes on, and the table says on how many seeds it
                    held.

    Fixed before any pair was pretrained but the shipped one (toy):
        unit        the base pair.  A --seed of `pairs`, `controls` and `decoding` is a fresh pair (prepare.py toy
                    --pretrain pair), with its own labels, sampling and order.  1 to 10 are reported; 11 and 12
                    choose, and are not. In `regime` a --seed is a fresh student of each kind.
        sweep       9 points of direct GRPO with 64 labels: rates 1e-4, 3e-4, 1e-3; groups of 8, 16, 32.  Each has 128
                    rollouts in an optimiser step and 400 steps: as many rollouts and as many steps, so as much
                    compute. 400 is half of the plateau, and nearly twice what the workflow takes.  The best is the
                    one with the highest avg@16 on the held-out problems, decoded as the tables are, mean of the two
                    pairs.  At it four additions: a KL to the start of 0.001 and of 0.01, an entropy bonus of 0.01, no
                    baseline (exercise 4). `direct GRPO, tuned` is the best of the 13, with 800 steps; the best point
                    on its way is chosen on the test problems themselves, 4 answers each at temperature 1, every 20
                    steps.
        workflow    its sweep has 13 points, too: RL's rate 1e-4, 3e-4, 1e-3; the rate of bridge and distillation
                    3e-4, 1e-3, 3e-3; then at the best RL in groups of 16 and of 32, and the bridge alone at the two
                    other rates. It decides nothing: whatever it says, the workflow of the tables keeps the rates that
                    it had.
        controls    64 labels each.  The workflow on the labelled prompts alone: 32 teacher rollouts of each, C2 on
                    them. Rejection sampling: 32 answers of the RL teacher to each labelled problem; cross-entropy on
                    the right ones for the steps of bridge and distillation.  Expert iteration: five times 32 own
                    answers to each labelled problem and 20 steps of cross-entropy on the right ones, from where the
                    last round ended.
        equal time  has no row over pairs: their runs share two cores with other work, and their seconds tell nothing.
                    The plateau takes more steps than equal time did on an idle machine (800 against 615).
        decoding    the tables' own (0.7, without top-p and top-k), the paper's (0.7, 0.8, 20), temperature 1, and
                    greedy.
        C1          beside the whole, among worked completions alone (more than 4 tokens): not what is certified.
        seeds       `labels` at 32, 64, 128 and 256 with ten seeds; `regime` with three students of each kind.
    """
    base, seed = run("base", "prepare.py toy"), f"--seed {given.seed}"
    models = {role: base / role for role in ("teacher", "student")}
    models |= {role: run(name, "prepare.py toy", more.replace("--seed N", seed)) / role
               for role, (name, more) in (made or {}).items()}
    flags = f"--max-new-tokens 16 --micro-batch-size 128 {seed}"

    def curve(every: int) -> list:
        return ["--weight-decay 0 --eval-problems", base / "heldout.jsonl", f"--eval-every {every} --eval-samples 2"]

    return Settings(
        **models, **labelled_problems(run, base / "train.jsonl", labels, given.seed), **points,
        heldout=base / "heldout.jsonl", test=base / ("heldout.jsonl" if on_heldout else "test.jsonl"),
        grpo=["--prompts-per-step 16 --samples-per-prompt 8 --steps-per-rollout 2 --lr 3e-4", flags, curve(10)],
        shape=["--num-problems 512 --samples-per-prompt 4 --prompts-per-step 128 --certify-on reference", flags],
        bridge=["--max-kl 0.3 --max-steps 40 --rollouts-per-step 128 --lr 1e-3", flags, curve(5)],
        opd=["--prompts-per-step 128 --lr 1e-3", flags, curve(10)],
        eval=["--samples 16 --temperature 0.7 --top-p 1 --top-k 0 --max-new-tokens 16 --batch-size 1024", decoding],
        grpo_steps=100, opd_steps=100, plateau_steps=800, student_rl_steps=60, tuned=TUNED)


def both(name: str, more: str) -> dict:
    return {"made": {role: (name, more) for role in ("teacher", "student")}}


def one(role: str, name: str, more: str) -> dict:
    return {"made": {role: (name, f"--pretrain {role} {more}")}}


def dense(rl: str, bridge: str, opd: str) -> dict:
    return SWEPT | {"rl_point": rl, "bridge_point": f"--lr {bridge}", "opd_point": f"--lr {opd}"}


PAIR = both("pair", "--pretrain pair --seed N")
SWEPT = PAIR | {"on_heldout": True}
TOY = Scale(settings, {
    "budgets": budgets(32, 64, 128, 256, 512, 2048),
    "pairs": {"fresh pairs": PAIR},
    "decodings": {"T 0.7": PAIR, "T 0.7, top-p 0.8, top-k 20": PAIR | {"decoding": "--top-p 0.8 --top-k 20"},
                  "T 1": PAIR | {"decoding": "--temperature 1"},
                  "greedy": PAIR | {"decoding": "--temperature 0 --samples 1"}},
    "families": {"Qwen3": {}, "Llama": both("llamas", "--pretrain pair --family llama")},
    "teachers": {f"teacher of {size}": one("teacher", "sized", f"--teacher-size {size}")
                 for size in ("64x2", "96x3", "128x4")},
    "students": {f"skill {skill}, works {style:.0%}": one(
        "student", "skilled", f"--student-skill {skill} --student-style {style} --seed N")
        for skill in ("0.80 0.84", "0.86 0.90", "0.92 0.96") for style in (0.01, 0.03, 0.1)},
    "points": {f"rate {rate}, groups of {size}": SWEPT | {"point": f"--lr {rate} {group}"}
               for rate in RATES for size, group in GROUPS.items()},
    "additions": {name: SWEPT | {"point": f"{SWEEP_BEST} {more}"} for name, more in ADDED.items()},
    "workflow_points": {f"RL {rate}, bridge and distillation {rest}": dense(f"--lr {rate}", rest, rest)
                        for rate in RATES for rest in DENSE_RATES},
    "workflow_additions": {f"RL in groups of {size}": dense(f"{RL_BEST} {GROUPS[size]}", DENSE_BEST, DENSE_BEST)
                           for size in (16, 32)}
    | {f"bridge at {rate}": dense(RL_BEST, rate, DENSE_BEST) for rate in DENSE_RATES if rate != DENSE_BEST}})
