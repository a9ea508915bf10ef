"""DAPO-Math-17k, the problems that the paper trains on: out of verl's parquet file, as it is published."""
import random

from engine.files import write_jsonl
from engine.problems import Problem
from experiments.runner import Given, Scale, Settings, budgets, labelled_problems


def prepare(args, published: list[Problem]) -> None:
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


def small_settings(run, given: Given, labels: int = 1024, teacher: str = "Qwen/Qwen3-1.7B",
                   student: str = "Qwen/Qwen3-0.6B") -> Settings:
    """One 80 GB GPU and about a day: Qwen3 of 1.7B teaches 0.6B, on GSM8K; tested on MATH-500."""
    flags = f"--dtype bfloat16 --seed {given.seed}"
    return Settings(
        teacher=teacher, student=student, heldout=f"{given.data}/gsm8k_test.jsonl", test=f"{given.data}/math500.jsonl",
        **labelled_problems(run, f"{given.data}/gsm8k_train.jsonl", labels, given.seed),
        grpo=["--prompts-per-step 32 --samples-per-prompt 8 --steps-per-rollout 2 --activation-checkpointing --lr 1e-6",
              "--max-new-tokens 1024 --micro-batch-size 4 --rollout-tokens 140000", flags],
        shape=["--num-problems 1024 --samples-per-prompt 4 --prompts-per-step 128 --max-new-tokens 1024",
               "--micro-batch-size 16 --rollout-tokens 400000", flags],
        bridge=["--max-kl 0.1 --max-steps 100 --rollouts-per-step 64 --activation-checkpointing --lr 1e-6",
                "--max-new-tokens 1024 --micro-batch-size 8", flags],
        opd=["--prompts-per-step 64 --activation-checkpointing --lr 1e-6 --max-new-tokens 1024 --micro-batch-size 8",
             flags],
        eval=["--samples 8 --temperature 0.7 --top-p 0.8 --top-k 20 --max-new-tokens 2048 --rollout-tokens 400000",
              "--dtype bfloat16"],
        grpo_steps=200, opd_steps=200, plateau_steps=600, student_rl_steps=100, distributed=True)


SMALL = Scale(small_settings, {
    "budgets": budgets(64, 256, 1024, 4096),
    "families": {"Qwen3": {}, "Llama": {"teacher": "meta-llama/Llama-3.2-3B-Instruct",
                                        "student": "meta-llama/Llama-3.2-1B-Instruct"}},
    "teachers": {"1.7B": {}, "4B": {"teacher": "Qwen/Qwen3-4B"}}}, without=("direct GRPO, tuned",),
    data=("gsm8k_train.jsonl", "gsm8k_test.jsonl", "math500.jsonl"))


def settings(run, given: Given, labels: int | str = "all", teacher: str = "Qwen3-8B",
             student: str = "Qwen3-1.7B") -> Settings:
    """The paper's: RL is 15 epochs of 80% of DAPO-Math-17k, distillation 4; needs a GPU node.

    Checkpointing and the bound on the cache change no figure; without them no stage fits 80 GB (plan.py).  The split is
    the paper's, too, where no --labels are given: RL has all of the 80%, of the teacher as of the student; C1 has 512
    labels of the 20% that direct GRPO does not get, and student-rl's new labels are that 20%, these among them.
    """
    base = run("base", "prepare.py dapo --parquet", f"{given.data}/dapo-math-17k.parquet")
    train, heldout = base / "train.jsonl", base / "heldout.jsonl"
    problems = {"rl": train, "labelled": train, "prompts": train, "certify": heldout, "more": heldout, "labels": "all"}
    if labels != "all":
        problems = labelled_problems(run, train, labels, given.seed)
    flags = f"--max-new-tokens 8192 --micro-batch-size 2 --rollout-tokens 300000 --dtype bfloat16 --seed {given.seed}"
    curve = f"--eval-problems {given.data}/math500.jsonl --eval-every 5 --eval-samples 4 --save-every 20"
    return Settings(
        teacher=f"{given.models}/{teacher}", student=f"{given.models}/{student}", **problems,
        heldout=heldout, test=f"{given.data}/math500.jsonl",
        grpo=["--prompts-per-step 128 --samples-per-prompt 8 --steps-per-rollout 4 --activation-checkpointing",
              "--lr 1e-6", flags, curve],
        shape=["--samples-per-prompt 2 --num-certify-problems 512 --prompts-per-step 512", flags],
        bridge=["--max-kl 0.1 --max-steps 200 --rollouts-per-step 64 --activation-checkpointing --lr 1e-6",
                flags, curve],
        opd=["--prompts-per-step 64 --activation-checkpointing --lr 1e-6", flags, curve],
        eval=["--samples 16 --temperature 0.7 --top-p 0.8 --top-k 20 --max-new-tokens 16384 --rollout-tokens 300000",
              "--dtype bfloat16"],
        grpo_steps=1600, opd_steps=800, plateau_steps=4000, student_rl_steps=200, if_failed="", distributed=True)


PAPER = Scale(settings, {
    "budgets": budgets(256, 1024, 4096),
    "families": {"Qwen3": {}, "Llama": {"teacher": "Llama-3.3-70B-Instruct", "student": "Llama-3.1-8B-Instruct"}},
    "teachers": {"8B": {}, "14B": {"teacher": "Qwen3-14B"}}}, without=("direct GRPO, tuned",),
    data=("dapo-math-17k.parquet", "math500.jsonl"))
