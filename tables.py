"""The tables of the paper: what each compares, as commands and rows, and the scales at which they run.

A line of a table is a name and a command; the run goes by that name.  In a command
    @name       is the run of that name
    {name}      is a setting of the scale, or seed or labels
    <…>         is a number taken from runs that are done:  <steps of teacher bridge>,
                <steps of direct in the seconds of teacher shape>,  <steps of teacher bridge less those of raw_bridge>
A row is a model to evaluate and the runs that it cost.  An ordering is two rows, the lower first, and who says so.
Lines that no row needs are not run.  A table that goes `over` something is run once for each of that word's settings
at a scale, which stand above its own.

Labels are the budget.  `prepare.py labels` draws {labels} labelled problems by the seed, and everything that sees a
label is paid from them: direct GRPO gets all of them; the workflow three quarters for the teacher's RL and one quarter
for C1.  Distillation samples on the whole training file without its answers.  C2, where the bridge ends, needs held-out
prompts and no answers of theirs; nothing that is measured with a label of the held-out or the test problems decides.

Fixed before the table in question was run (toy):
    steps       100 of RL on the teacher, up to 40 of the bridge, 100 of distillation; direct GRPO has a row with as
                many as these together, one with as many as fit in their seconds, and one with 800 (its plateau),
                whose best point on the way is reported, too, though nobody could choose it without labels.
    labels      32, 128, 512 and all 2,048 in `labels`.  In the other tables one set binds every arm: the smallest of
                32, 64, 128, 256 at which the RL teacher's held-out accuracy, mean of the seeds 100 and 101, which are
                not reported, is at least 0.9.
    models      the shipped pair; in `family` a Llama pair pretrained by the same rule; in `teacher-size` teachers of
                the student's size, the shipped one's and a larger one, by the rule's words on teachers; in `regime`
                students of three bands of skill and three shares of worked answers, by its words on students.
    C1          where so few problems cannot certify it, the run goes on, and the table says on how many seeds it held.

Fixed before any pair was pretrained but the shipped one (toy):
    unit        the base pair.  A --seed of `pairs`, `controls` and `decoding` is a fresh pair (prepare.py toy --pretrain
                pair), with its own labels, sampling and order.  1 to 10 are reported; 11 and 12 choose, and are not.
                In `regime` a --seed is a fresh student of each kind.
    sweep       9 points of direct GRPO with 64 labels: rates 1e-4, 3e-4, 1e-3; groups of 8, 16, 32.  Each has 128
                rollouts in an optimiser step and 400 steps: as many rollouts and as many steps, so as much compute.
                400 is half of the plateau, and nearly twice what the workflow takes.  The best is the one with the
                highest avg@16 on the held-out problems, decoded as the tables are, mean of the two pairs.  At it four
                additions: a KL to the start of 0.001 and of 0.01, an entropy bonus of 0.01, no baseline (exercise 4).
                `direct GRPO, tuned` is the best of the 13, with 800 steps; the best point on its way is chosen on the
                test problems themselves, 4 answers each at temperature 1, every 20 steps.
    workflow    its sweep has 13 points, too: RL's rate 1e-4, 3e-4, 1e-3; the rate of bridge and distillation 3e-4,
                1e-3, 3e-3; then at the best RL in groups of 16 and of 32, and the bridge alone at the two other rates.
                It decides nothing: whatever it says, the workflow of the tables keeps the rates that it had.
    controls    64 labels each.  The workflow on the labelled prompts alone: 32 teacher rollouts of each, C2 on them.
                Rejection sampling: 32 answers of the RL teacher to each labelled problem; cross-entropy on the right
                ones for the steps of bridge and distillation.  Expert iteration: five times 32 own answers to each
                labelled problem and 20 steps of cross-entropy on the right ones, from where the last round ended.
    equal time  has no row over pairs: their runs share two cores with other work, and their seconds tell nothing.
                The plateau takes more steps than equal time did on an idle machine (800 against 615).
    decoding    the tables' own (0.7, without top-p and top-k), the paper's (0.7, 0.8, 20), temperature 1, and greedy.
    C1          beside the whole, among worked completions alone (more than 4 tokens): not what is certified.
    seeds       `labels` at 32, 64, 128 and 256 with ten seeds; `regime` with three students of each kind.

Fixed before any table was run (laptop):
    models      by the rule that `prepare.py --help` states.  labels: 256; 64, 256 and 768 of 830 in `labels`.
    settings    learning rates and batches by bench/laptop_sweep.py, on problems and a seed that no table has.
    left out    direct GRPO in the workflow's seconds: a night holds its row with as many steps, and its plateau.
"""
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Table:
    about: str
    commands: str
    rows: dict                          # row -> (model, the runs that it cost)
    orderings: tuple = ()               # (lower row, higher row)
    over: str = ""                      # what it goes through: one of the scale's lists of settings
    once: tuple[str, ...] = ()          # rows that hang on none of the settings: measured at the first


# ================================================================ the commands

WORKFLOW = """
# The teacher learns from the sparse reward; C1; the bridge; on-policy distillation.
teacher     stage1_grpo.py --model {teacher} --problems {rl} {grpo} --max-steps {grpo_steps}
shape       stage2_shape.py --teacher @teacher --reference {teacher} --problems {prompts} --certify-problems {certify} {shape} {if_failed}
bridge      stage3_kl.py --student {student} --teacher @teacher --rollouts @shape/rollouts.jsonl --problems {heldout} {bridge} {if_failed}
student     stage4_distill.py --student @bridge --teacher @teacher --problems {prompts} {opd} --max-steps {opd_steps} {if_failed}
"""
DIRECT = """
# Direct GRPO of the student: as many optimiser steps as the workflow took; as many as fit in its time; to its plateau.
direct              stage1_grpo.py --model {student} --problems {labelled} {grpo} --max-steps <steps of teacher bridge student>
direct_equal_time   stage1_grpo.py --model {student} --problems {labelled} {grpo} --max-steps <steps of direct in the seconds of teacher shape bridge student>
direct_plateau      stage1_grpo.py --model {student} --problems {labelled} {grpo} --max-steps {plateau_steps}
"""
TUNED = """
# Direct GRPO with the flags that the sweep chose, to its plateau; its curve is measured on the test problems themselves.
direct_tuned        stage1_grpo.py --model {student} --problems {labelled} {grpo} {tuned} --max-steps {plateau_steps} --eval-problems {test} --eval-every 20 --eval-samples 4
"""
RAW = """
# Raw-teacher transfer: the same distillation from the teacher before RL, with all of the workflow's optimiser steps.
raw_shape   stage2_shape.py --teacher {teacher} --reference {teacher} --problems {prompts} --certify-problems {certify} {shape} --allow-failed-certificate
raw_bridge  stage3_kl.py --student {student} --teacher {teacher} --rollouts @raw_shape/rollouts.jsonl --problems {heldout} {bridge} --allow-failed-certificate
raw_student stage4_distill.py --student @raw_bridge --teacher {teacher} --problems {prompts} {opd} --max-steps <steps of teacher bridge student less those of raw_bridge> --allow-failed-certificate
"""
PARTS = """
# Each part left out: its steps left out, too, or given to the part that stays.
cold            stage4_distill.py --student {student} --teacher @teacher --problems {prompts} {opd} --max-steps {opd_steps} --allow-failed-certificate
cold_matched    stage4_distill.py --student {student} --teacher @teacher --problems {prompts} {opd} --max-steps <steps of bridge student> --allow-failed-certificate
bridge_matched  stage3_kl.py --student {student} --teacher @teacher --rollouts @shape/rollouts.jsonl --problems {heldout} {bridge} --max-kl 1e-9 --max-steps <steps of bridge student> --allow-failed-certificate
imitation       stage3_kl.py --student {student} --teacher @teacher --rollouts @shape/rollouts.jsonl --problems {heldout} {bridge} --max-kl 1e-9 --max-steps <steps of bridge student> --estimator sampled --allow-failed-certificate
"""
STUDENT_RL = """
# As many labels again: RL of the distilled student on them; as many more steps without them; RL of the cold student on them.
student_rl  stage1_grpo.py --model @student --problems {more} {grpo} --max-steps {student_rl_steps}
replay      stage4_distill.py --student @student --teacher @teacher --problems {prompts} {opd} --max-steps {student_rl_steps} --allow-failed-certificate
cold_rl     stage1_grpo.py --model {student} --problems {more} {grpo} --max-steps {student_rl_steps}
"""
ESTIMATORS = """
# The dense reward in other forms, from the same bridge, with the same steps.
sampled     stage4_distill.py --student @bridge --teacher @teacher --problems {prompts} {opd} --max-steps {opd_steps} --estimator sampled --allow-failed-certificate
forward     stage4_distill.py --student @bridge --teacher @teacher --problems {prompts} {opd} --max-steps {opd_steps} --divergence forward --allow-failed-certificate
jsd         stage4_distill.py --student @bridge --teacher @teacher --problems {prompts} {opd} --max-steps {opd_steps} --divergence jsd --allow-failed-certificate
"""
ON_THE_LABELS = """
# The workflow when it has the labelled prompts alone: the teacher's rollouts, C2 and distillation on these.
few_shape   stage2_shape.py --teacher @teacher --reference {teacher} --problems {labelled} --certify-problems {certify} {shape} --samples-per-prompt 32 {if_failed}
few_bridge  stage3_kl.py --student {student} --teacher @teacher --rollouts @few_shape/rollouts.jsonl --problems {labelled} {bridge} {if_failed}
few_student stage4_distill.py --student @few_bridge --teacher @teacher --problems {labelled} {opd} --max-steps {opd_steps} {if_failed}
# Rejection sampling: the RL teacher answers the labelled problems, and the student is fine-tuned on what was right.
rejection_shape  stage2_shape.py --teacher @teacher --reference {teacher} --problems {labelled} --certify-problems {certify} {shape} --samples-per-prompt 32 --keep right {if_failed}
rejection        stage3_kl.py --student {student} --teacher @teacher --rollouts @rejection_shape/rollouts.jsonl --problems {heldout} {bridge} --max-kl 1e-9 --max-steps <steps of bridge student> --estimator sampled --allow-failed-certificate
"""
# Expert iteration: the student answers the labelled problems itself, is fine-tuned on what was right, and so on.
EXPERT = "".join(f"""
own{i}     stage2_shape.py --teacher {model} --reference {model} --problems {{labelled}} --certify-problems {{labelled}} {{shape}} --samples-per-prompt 32 --num-certify-problems 4 --keep right --allow-failed-certificate
expert{i}  stage3_kl.py --student {model} --teacher {model} --rollouts @own{i}/rollouts.jsonl --problems {{heldout}} {{bridge}} --max-kl 1e-9 --max-steps {{expert_steps}} --eval-every {{expert_steps}} --estimator sampled --allow-failed-certificate
""" for i, model in enumerate(["{student}", "@expert1", "@expert2", "@expert3", "@expert4"], 1))
SWEEP = """
# One point of the baseline's sweep: as many rollouts, and optimiser steps, at every point.
swept       stage1_grpo.py --model {student} --problems {labelled} {grpo} {point} --max-steps {sweep_steps} --eval-every 50
"""
SWEEP_WORKFLOW = """
# One point of the workflow's sweep.
teacher     stage1_grpo.py --model {teacher} --problems {rl} {grpo} {rl_point} --max-steps {grpo_steps} --eval-every 50
shape       stage2_shape.py --teacher @teacher --reference {teacher} --problems {prompts} --certify-problems {certify} {shape} {if_failed}
bridge      stage3_kl.py --student {student} --teacher @teacher --rollouts @shape/rollouts.jsonl --problems {heldout} {bridge} {bridge_point} {if_failed}
student     stage4_distill.py --student @bridge --teacher @teacher --problems {prompts} {opd} {opd_point} --max-steps {opd_steps} --eval-every 50 {if_failed}
"""
EVALUATE = "eval.py --model {model} --problems {test} {eval} --seed {seed} --allow-failed-certificate"

# ================================================================ the tables

BASES = {"base student": ("{student}", ""), "raw teacher": ("{teacher}", "")}
TEACHER = {"RL teacher": ("@teacher", "teacher")}
FULL = {"full workflow": ("@student", "teacher shape bridge student")}
TRANSFER = {"raw-teacher transfer": ("@raw_student", "raw_shape raw_bridge raw_student")}
EQUAL_STEPS = {"direct GRPO, equal steps": ("@direct", "direct")}
PLATEAU = {"direct GRPO, plateau": ("@direct_plateau", "direct_plateau")}
BEST = {"direct GRPO, tuned": ("@direct_tuned", "direct_tuned")}
PAPERS_ORDER = (("raw-teacher transfer", "direct GRPO, equal steps"), ("direct GRPO, equal steps", "full workflow"))

TABLES = {
    "main": Table(
        "The paper's claim: with the same labels the workflow beats direct GRPO, and distilling the raw teacher does not.",
        WORKFLOW + DIRECT + TUNED + RAW,
        BASES | TEACHER | TRANSFER | EQUAL_STEPS
        | {"direct GRPO, equal time": ("@direct_equal_time", "direct_equal_time")} | PLATEAU | BEST | FULL,
        (*PAPERS_ORDER, ("direct GRPO, equal time", "full workflow"), ("direct GRPO, plateau", "full workflow"),
         ("direct GRPO, tuned", "full workflow"))),
    "labels": Table(
        "Accuracy against the number of labelled problems.",
        WORKFLOW + DIRECT + TUNED + RAW, BASES | TRANSFER | TEACHER | PLATEAU | BEST | FULL,
        (("raw-teacher transfer", "direct GRPO, plateau"), ("direct GRPO, plateau", "full workflow"),
         ("direct GRPO, tuned", "full workflow")),
        over="budgets", once=("base student", "raw teacher", "raw-teacher transfer")),
    "pairs": Table(
        "The paper's claim over base pairs: each unit is a fresh pair, with labels and a seed of its own.",
        WORKFLOW + DIRECT + TUNED + RAW, BASES | TEACHER | TRANSFER | EQUAL_STEPS | PLATEAU | BEST | FULL,
        (*PAPERS_ORDER, ("raw-teacher transfer", "direct GRPO, plateau"), ("direct GRPO, plateau", "full workflow"),
         ("direct GRPO, tuned", "full workflow")), over="pairs"),
    "controls": Table(
        "The same labels spent otherwise, over base pairs.",
        WORKFLOW + DIRECT + TUNED + ON_THE_LABELS + EXPERT,
        EQUAL_STEPS | BEST
        | {"expert iteration": ("@expert5", " ".join(f"own{i} expert{i}" for i in range(1, 6))),
           "rejection sampling from the RL teacher": ("@rejection", "teacher rejection_shape rejection"),
           "workflow on the labelled prompts alone": ("@few_student", "teacher few_shape few_bridge few_student")} | FULL,
        (("expert iteration", "full workflow"), ("rejection sampling from the RL teacher", "full workflow"),
         ("workflow on the labelled prompts alone", "full workflow"),
         ("direct GRPO, tuned", "workflow on the labelled prompts alone")), over="pairs"),
    "decoding": Table(
        "The main rows over base pairs, decoded in other ways.",
        WORKFLOW + DIRECT + TUNED + RAW, TRANSFER | EQUAL_STEPS | BEST | FULL,
        (*PAPERS_ORDER, ("direct GRPO, tuned", "full workflow")), over="decodings"),
    "sweep": Table("Direct GRPO's rate and group size, on two pairs that no table reports.",
                   SWEEP, {"direct GRPO": ("@swept", "swept")}, over="points"),
    "sweep-more": Table("What may be added to direct GRPO, at the sweep's best rate and group size.",
                        SWEEP, {"direct GRPO": ("@swept", "swept")}, over="additions"),
    "sweep-workflow": Table("The workflow's own rates, on the same pairs.",
                            SWEEP_WORKFLOW, {"full workflow": FULL["full workflow"]}, over="workflow_points"),
    "sweep-workflow-more": Table("The workflow's group size and its bridge's rate, at its sweep's best rates.",
                                 SWEEP_WORKFLOW, {"full workflow": FULL["full workflow"]}, over="workflow_additions"),
    "ablation": Table(
        "What each part brings: left out, and left out with its steps given to what stays.",
        WORKFLOW + RAW + PARTS,
        TRANSFER | {"no bridge": ("@cold", "teacher cold"), "no bridge, equal steps": ("@cold_matched", "teacher cold_matched"),
                    "bridge alone": ("@bridge", "teacher shape bridge"),
                    "bridge alone, equal steps": ("@bridge_matched", "teacher shape bridge_matched"),
                    "cross-entropy alone, equal steps": ("@imitation", "teacher shape imitation")} | FULL,
        (("raw-teacher transfer", "full workflow"), ("no bridge", "full workflow"), ("no bridge, equal steps", "full workflow"),
         ("bridge alone", "full workflow"), ("bridge alone, equal steps", "full workflow"),
         ("cross-entropy alone, equal steps", "full workflow"))),
    "student-rl": Table(
        "As many labels again: what they bring after distillation, and to a cold student.",
        WORKFLOW + STUDENT_RL,
        {"cold student, RL on the new labels": ("@cold_rl", "cold_rl")} | FULL
        | {"replay, no new labels": ("@replay", "teacher shape bridge student replay"),
           "RL on the new labels": ("@student_rl", "teacher shape bridge student student_rl")},
        (("full workflow", "RL on the new labels"), ("replay, no new labels", "RL on the new labels"),
         ("cold student, RL on the new labels", "RL on the new labels"))),
    "estimator": Table(
        "The divergence that the student learns by, from the same bridge with the same steps.",
        WORKFLOW + ESTIMATORS,
        {"sampled token": ("@sampled", "teacher shape bridge sampled"), "forward KL": ("@forward", "teacher shape bridge forward"),
         "JSD": ("@jsd", "teacher shape bridge jsd"), "exact reverse KL": ("@student", "teacher shape bridge student")},
        (("sampled token", "exact reverse KL"), ("forward KL", "exact reverse KL"), ("JSD", "exact reverse KL"))),
    "family": Table(
        "The order of the arms with models of a second family.",
        WORKFLOW + DIRECT + RAW, BASES | TEACHER | TRANSFER | EQUAL_STEPS | FULL, PAPERS_ORDER, over="families"),
    "teacher-size": Table(
        "Teachers of several sizes, each with as much RL, for the same student.",
        WORKFLOW + DIRECT + RAW, BASES | TEACHER | TRANSFER | EQUAL_STEPS | FULL, PAPERS_ORDER, over="teachers",
        once=("base student",)),
    "regime": Table(
        "Where each order holds: over the student's skill and how often it works, at the start.",
        WORKFLOW + DIRECT + RAW, TEACHER | {"base student": BASES["base student"]} | TRANSFER | EQUAL_STEPS | PLATEAU | FULL,
        (*PAPERS_ORDER, ("raw-teacher transfer", "direct GRPO, plateau"), ("direct GRPO, plateau", "full workflow")),
        over="students", once=("RL teacher",)),
}

# ================================================================ the scales


def table_at(name: str, scale: str) -> Table:
    """The table without the rows that its scale does without."""
    table, without = TABLES[name], SCALES[scale].get("without", ())
    return replace(table, rows={row: how for row, how in table.rows.items() if row not in without},
                   orderings=tuple(pair for pair in table.orderings if not {*pair} & {*without}))


# What `prepare.py labels` writes.
DRAWN = {"rl": "@labels/rl.jsonl", "certify": "@labels/certify.jsonl", "labelled": "@labels/labelled.jsonl",
         "more": "@labels/more.jsonl", "prompts": "@labels/prompts.jsonl"}


def budgets(*numbers: int) -> dict[str, dict]:
    return {f"{number:,} labels": {"labels": number, **DRAWN} for number in numbers}


TOY_FLAGS = "--max-new-tokens 16 --micro-batch-size 128 --seed {seed}"
TOY_CURVE = "--weight-decay 0 --eval-problems {heldout} --eval-every 10 --eval-samples 2"
SMOL_FLAGS = "--temperature 0.5 --max-new-tokens 128 --micro-batch-size 4 --dtype {dtype} --seed {seed}"
LAPTOP_FLAGS = r"--instruction 'Give the result as \boxed{number}.' --max-new-tokens 64 --dtype {dtype} --seed {seed}"
LAPTOP_CURVE = "--weight-decay 0 --eval-problems {heldout} --eval-every 20 --eval-samples 1"
PAPER_FLAGS = "--max-new-tokens 8192 --micro-batch-size 2 --rollout-tokens 300000 --dtype bfloat16 --seed {seed}"
PAPER_CURVE = "--eval-problems {data}/math500.jsonl --eval-every 5 --eval-samples 4 --save-every 20"

PAIR = {"teacher": "@pair/teacher", "student": "@pair/student"}
SWEPT = PAIR | {"test": "{heldout}"}
GROUPS = {size: f"--prompts-per-step {128 // size} --samples-per-prompt {size}" for size in (8, 16, 32)}
RATES = ("1e-4", "3e-4", "1e-3")
ADDED = {"KL 0.001": "--kl-coef 0.001", "KL 0.01": "--kl-coef 0.01", "entropy 0.01": "--entropy-coef 0.01", "no baseline": "--no-baseline"}
SWEEP_BEST = "--lr 1e-4 --prompts-per-step 4 --samples-per-prompt 32"           # as the sweep came out: 0.304, the next 0.270
WORKFLOW_BEST = TUNED_FLAGS = ""           # as the sweeps come out: flags of RL; of {grpo}
DENSE_BEST, OTHER_DENSE = "", ()                        # of bridge and distillation; the two other rates
PAIR_SETTINGS = {
    "pairs": {"fresh pairs": PAIR},
    "decodings": {"T 0.7": PAIR, "T 0.7, top-p 0.8, top-k 20": PAIR | {"eval": "{plain_eval} --top-p 0.8 --top-k 20"},
                  "T 1": PAIR | {"eval": "{plain_eval} --temperature 1"}, "greedy": PAIR | {"eval": "{plain_eval} --temperature 0 --samples 1"}},
    "points": {f"rate {rate}, groups of {size}": SWEPT | {"point": f"--lr {rate} {GROUPS[size]}"} for rate in RATES for size in GROUPS},
    "workflow_points": {f"RL {rate}, bridge and distillation {dense}": SWEPT | {
        "rl_point": f"--lr {rate}", "bridge_point": f"--lr {dense}", "opd_point": f"--lr {dense}"} for rate in RATES for dense in ("3e-4", "1e-3", "3e-3")},
    "additions": {name: SWEPT | {"point": f"{SWEEP_BEST} {flags}"} for name, flags in ADDED.items()},
    "workflow_additions": {f"RL in groups of {size}": SWEPT | {
        "rl_point": f"{WORKFLOW_BEST} {GROUPS[size]}", "bridge_point": DENSE_BEST, "opd_point": DENSE_BEST} for size in (16, 32)}
    | {f"bridge at {rate}": SWEPT | {
        "rl_point": WORKFLOW_BEST, "bridge_point": f"--lr {rate}", "opd_point": DENSE_BEST} for rate in OTHER_DENSE},
}

SCALES = {
    # 128 rollouts in every optimiser step of every arm.
    "toy": {
        "prepare": """
            base    prepare.py toy
            llamas  prepare.py toy --pretrain pair --family llama
            sized   prepare.py toy --pretrain teacher --teacher-size {size}
            skilled prepare.py toy --pretrain student --student-skill {skill} --student-style {style} --seed {seed}
            pair    prepare.py toy --pretrain pair --seed {seed}
            labels  prepare.py labels --problems @base/train.jsonl --num-labels {labels} --seed {seed}""",
        "teacher": "@base/teacher", "student": "@base/student", "labels": 64, "size": "", "skill": "", "style": "",
        "budgets": budgets(32, 64, 128, 256, 512, 2048),
        **PAIR_SETTINGS, "tuned": TUNED_FLAGS, "sweep_steps": 400, "expert_steps": 20,
        "point": "", "rl_point": "", "bridge_point": "", "opd_point": "",
        "families": {"Qwen3": {}, "Llama": {"teacher": "@llamas/teacher", "student": "@llamas/student"}},
        "teachers": {f"teacher of {size}": {"teacher": "@sized/teacher", "size": size} for size in ("64x2", "96x3", "128x4")},
        "students": {f"skill {skill}, works {style:.0%}": {"student": "@skilled/student", "skill": skill, "style": style}
                     for skill in ("0.80 0.84", "0.86 0.90", "0.92 0.96") for style in (0.01, 0.03, 0.1)},
        **DRAWN, "heldout": "@base/heldout.jsonl", "test": "@base/test.jsonl",
        "grpo": f"--prompts-per-step 16 --samples-per-prompt 8 --steps-per-rollout 2 --lr 3e-4 {TOY_FLAGS} {TOY_CURVE}",
        "shape": f"--num-problems 512 --samples-per-prompt 4 --prompts-per-step 128 --certify-on reference {TOY_FLAGS}",
        "bridge": f"--max-kl 0.3 --max-steps 40 --rollouts-per-step 128 --lr 1e-3 {TOY_FLAGS} {TOY_CURVE.replace('-every 10', '-every 5')}",
        "opd": f"--prompts-per-step 128 --lr 1e-3 {TOY_FLAGS} {TOY_CURVE}",
        "eval": "--samples 16 --temperature 0.7 --top-p 1 --top-k 0 --max-new-tokens 16 --batch-size 1024",
        "plain_eval": "--samples 16 --temperature 0.7 --top-p 1 --top-k 0 --max-new-tokens 16 --batch-size 1024",
        "grpo_steps": 100, "opd_steps": 100, "plateau_steps": 800, "student_rl_steps": 60,
        "launch": "{python}", "if_failed": "--allow-failed-certificate"},
    # Shows that the code meets a real model, tokenizer and data; a few steps teach nobody anything.  The student is the
    # teacher without its last layers.  A model of 135M hardly ever boxes a right answer: expect rewards of 0.
    "smollm2": {
        "prepare": """
            base_teacher    prepare.py smollm2
            base_student    prepare.py smollm2 --num-layers 27
            labels          prepare.py labels --problems {data}/gsm8k_train.jsonl --num-labels {labels} --seed {seed}""",
        "teacher": "@base_teacher", "student": "@base_student", "labels": 256, "budgets": budgets(64, 256),
        "shapes": {"teacher": "SmolLM2-135M", "student": "SmolLM2-135M"},
        **DRAWN, "heldout": "{data}/gsm8k_test.jsonl", "test": "{data}/gsm8k_test.jsonl",
        "grpo": f"--prompts-per-step 2 --samples-per-prompt 4 --steps-per-rollout 2 --lr 1e-5 --give-up-after 0 {SMOL_FLAGS}",
        "shape": f"--num-problems 8 --num-certify-problems 4 --samples-per-prompt 2 --prompts-per-step 8 {SMOL_FLAGS}",
        "bridge": f"--max-kl 0.1 --num-certify-problems 4 --max-steps 3 --rollouts-per-step 8 --lr 1e-4 {SMOL_FLAGS}",
        "opd": f"--prompts-per-step 8 --lr 1e-4 {SMOL_FLAGS}",
        "eval": "--samples 2 --num-problems 4 --temperature 0.5 --max-new-tokens 128 --dtype {dtype}",
        "grpo_steps": 2, "opd_steps": 2, "plateau_steps": 6, "student_rl_steps": 2,
        "launch": "{python}", "if_failed": "--allow-failed-certificate"},
    # A night on a laptop's CPU, minutes on a GPU: SmolLM2-135M on MAWPS, the toy's situation in English.
    "laptop": {
        "prepare": """
            base    prepare.py laptop --data {data} --dtype {dtype}
            labels  prepare.py labels --problems @base/train.jsonl --num-labels {labels} --seed {seed}""",
        "teacher": "@base/teacher", "student": "@base/student", "labels": 256, "budgets": budgets(64, 256, 768),
        "shapes": {"teacher": "SmolLM2-135M", "student": "SmolLM2-135M"},
        **DRAWN, "heldout": "@base/heldout.jsonl", "test": "@base/test.jsonl",
        "grpo": f"--prompts-per-step 16 --samples-per-prompt 8 --steps-per-rollout 1 --micro-batch-size 32 --lr 1e-5 {LAPTOP_FLAGS} {LAPTOP_CURVE}",
        "shape": f"--num-problems 256 --samples-per-prompt 4 --prompts-per-step 64 --micro-batch-size 32 {LAPTOP_FLAGS}",
        "bridge": f"--max-kl 0.1 --max-steps 40 --rollouts-per-step 64 --micro-batch-size 16 --lr 2e-5 --num-certify-problems 64 {LAPTOP_FLAGS} {LAPTOP_CURVE.replace('-every 20', '-every 10')}",
        "opd": f"--prompts-per-step 64 --micro-batch-size 16 --lr 1e-5 {LAPTOP_FLAGS} {LAPTOP_CURVE}",
        "eval": r"--samples 8 --temperature 1 --top-p 1 --top-k 0 --instruction 'Give the result as \boxed{number}.' --max-new-tokens 64 --dtype {dtype}",
        "without": ("direct GRPO, equal time",),
        "grpo_steps": 60, "opd_steps": 80, "plateau_steps": 300, "student_rl_steps": 40,
        "launch": "{python}", "if_failed": "--allow-failed-certificate"},
    # One 80 GB GPU and about a day: Qwen3 of 1.7B teaches 0.6B, on GSM8K; tested on MATH-500.
    "small": {
        "prepare": """
            labels  prepare.py labels --problems {data}/gsm8k_train.jsonl --num-labels {labels} --seed {seed}""",
        "teacher": "Qwen/Qwen3-1.7B", "student": "Qwen/Qwen3-0.6B", "labels": 1024, "budgets": budgets(64, 256, 1024, 4096),
        "families": {"Qwen3": {}, "Llama": {"teacher": "meta-llama/Llama-3.2-3B-Instruct", "student": "meta-llama/Llama-3.2-1B-Instruct"}},
        "teachers": {"1.7B": {}, "4B": {"teacher": "Qwen/Qwen3-4B"}},
        **DRAWN, "heldout": "{data}/gsm8k_test.jsonl", "test": "{data}/math500.jsonl",
        "grpo": "--prompts-per-step 32 --samples-per-prompt 8 --steps-per-rollout 2 --activation-checkpointing --lr 1e-6 --max-new-tokens 1024 --micro-batch-size 4 --rollout-tokens 140000 --dtype bfloat16 --seed {seed}",
        "shape": "--num-problems 1024 --samples-per-prompt 4 --prompts-per-step 128 --max-new-tokens 1024 --micro-batch-size 16 --rollout-tokens 400000 --dtype bfloat16 --seed {seed}",
        "bridge": "--max-kl 0.1 --max-steps 100 --rollouts-per-step 64 --activation-checkpointing --lr 1e-6 --max-new-tokens 1024 --micro-batch-size 8 --dtype bfloat16 --seed {seed}",
        "opd": "--prompts-per-step 64 --activation-checkpointing --lr 1e-6 --max-new-tokens 1024 --micro-batch-size 8 --dtype bfloat16 --seed {seed}",
        "eval": "--samples 8 --temperature 0.7 --top-p 0.8 --top-k 20 --max-new-tokens 2048 --rollout-tokens 400000 --dtype bfloat16",
        "grpo_steps": 200, "opd_steps": 200, "plateau_steps": 600, "student_rl_steps": 100,
        "launch": "{torchrun} --nproc_per_node={gpus}", "if_failed": "--allow-failed-certificate"},
    # The paper's settings: RL is 15 epochs of 80% of DAPO-Math-17k, distillation 4; needs a GPU node.  Checkpointing and
    # the bound on the cache change no figure; without them no stage fits 80 GB (plan.py).  The split is the paper's, too,
    # where no --labels are given: RL has all of the 80%, of the teacher as of the student; C1 has 512 labels of the 20%
    # that direct GRPO does not get, and student-rl's new labels are that 20%, these among them.
    "paper": {
        "prepare": """
            base    prepare.py dapo --parquet {data}/dapo-math-17k.parquet
            labels  prepare.py labels --problems @base/train.jsonl --num-labels {labels} --seed {seed}""",
        "teacher": "{models}/Qwen3-8B", "student": "{models}/Qwen3-1.7B", "labels": "all", "budgets": budgets(256, 1024, 4096),
        "families": {"Qwen3": {}, "Llama": {"teacher": "{models}/Llama-3.3-70B-Instruct", "student": "{models}/Llama-3.1-8B-Instruct"}},
        "teachers": {"8B": {}, "14B": {"teacher": "{models}/Qwen3-14B"}},
        "rl": "@base/train.jsonl", "certify": "@base/heldout.jsonl", "labelled": "@base/train.jsonl",
        "more": "@base/heldout.jsonl", "prompts": "@base/train.jsonl",
        "heldout": "@base/heldout.jsonl", "test": "{data}/math500.jsonl",
        "grpo": f"--prompts-per-step 128 --samples-per-prompt 8 --steps-per-rollout 4 --activation-checkpointing --lr 1e-6 {PAPER_FLAGS} {PAPER_CURVE}",
        "shape": f"--samples-per-prompt 2 --num-certify-problems 512 --prompts-per-step 512 {PAPER_FLAGS}",
        "bridge": f"--max-kl 0.1 --max-steps 200 --rollouts-per-step 64 --activation-checkpointing --lr 1e-6 {PAPER_FLAGS} {PAPER_CURVE}",
        "opd": f"--prompts-per-step 64 --activation-checkpointing --lr 1e-6 {PAPER_FLAGS} {PAPER_CURVE}",
        "eval": "--samples 16 --temperature 0.7 --top-p 0.8 --top-k 20 --max-new-tokens 16384 --rollout-tokens 300000 --dtype bfloat16",
        "grpo_steps": 1600, "opd_steps": 800, "plateau_steps": 4000, "student_rl_steps": 200,
        "launch": "{torchrun} --nproc_per_node={gpus}", "if_failed": ""},
}
