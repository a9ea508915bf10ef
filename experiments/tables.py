"""The tables of the paper, and those that question them: what each compares, as plain functions of runs.

A function notes the runs of a table (experiments/runner.py) and returns its rows: a model to evaluate, and the runs
that it cost.  Runs that no row needs are not made.  An ordering is two rows, the lower first, and who says so.  A table
that goes `over` something is run once for each of that word's settings at a scale: pairs, budgets of labels, students.

Labels are the budget.  `prepare.py labels` draws the labelled problems by the seed, and everything that sees a label is
paid from them: direct GRPO gets all of them; the workflow three quarters for the teacher's RL and one quarter for C1.
Distillation samples on the whole training file without its answers.  C2, where the bridge ends, needs held-out prompts
and no answers; nothing that is measured with a label of the held-out or the test problems decides, but in the sweeps.

A scale (experiments/toy.py and those beside it) gives models, problems and flags, the settings of what tables go
through, and the rows that it does without.  What was fixed before the runs stands there.
"""
from collections.abc import Callable
from dataclasses import dataclass

from engine.ranks import fail
from experiments.laptop import LAPTOP
from experiments.paper import PAPER, SMALL
from experiments.runner import Settings, steps_in_the_time_of, steps_of
from experiments.smollm2 import SMOLLM2
from experiments.toy import TOY

SCALES = {"toy": TOY, "smollm2": SMOLLM2, "laptop": LAPTOP, "small": SMALL, "paper": PAPER}
ANYWAY = "--allow-failed-certificate"


@dataclass(frozen=True)
class Table:
    about: str
    rows: Callable                          # (run, settings) -> row -> (model, the runs that it cost)
    orderings: tuple = ()                   # (lower row, higher row)
    over: str = ""                          # what it goes through: a key of the scale's OVER
    once: tuple[str, ...] = ()              # rows that depend on none of the settings: measured at the first
    unit: str = "seed"                      # what is drawn anew: seed (labels, sampling, order), or also pair, student
    shared: tuple[str, ...] = ()            # what the units have in common


# ================================================================ the runs


def workflow(run, s: Settings, *more) -> list:
    """The teacher learns from the sparse reward; C1; the bridge; on-policy distillation."""
    teacher = run("teacher", "stage1_grpo.py --model", s.teacher, "--problems", s.rl, s.grpo, s.rl_point, "--max-steps",
                  s.grpo_steps, *more)
    shape = shaped(run, s, "shape", teacher, s.teacher, s.prompts, s.if_failed)
    bridge = bridged(run, s, "bridge", s.student, teacher, shape, s.bridge_point, s.if_failed)
    return [teacher, shape, bridge, distilled(run, s, "student", bridge, teacher, s.opd_steps, *more, s.if_failed)]


def shaped(run, s: Settings, name: str, teacher, reference, problems, *more):
    """Rollouts of the teacher, and C1."""
    return run(name, "stage2_shape.py --teacher", teacher, "--reference", reference, "--problems", problems,
               "--certify-problems", s.certify, s.shape, *more)


def bridged(run, s: Settings, name: str, student, teacher, shape, *more, problems=None):
    """The bridge, on the rollouts of `shape`.  problems: of C2, in place of the held-out ones."""
    return run(name, "stage3_kl.py --student", student, "--teacher", teacher, "--rollouts", shape / "rollouts.jsonl",
               "--problems", problems or s.heldout, s.bridge, *more)


def distilled(run, s: Settings, name: str, student, teacher, steps, *more, problems=None):
    """On-policy distillation."""
    return run(name, "stage4_distill.py --student", student, "--teacher", teacher, "--problems", problems or s.prompts,
               s.opd, s.opd_point, "--max-steps", steps, *more)


def direct(run, s: Settings, name: str, *flags):
    """Direct GRPO of the student."""
    return run(name, "stage1_grpo.py --model", s.student, "--problems", s.labelled, s.grpo, *flags)


def raw_transfer(run, s: Settings) -> list:
    """The same distillation from the teacher before RL, with all of the workflow's optimiser steps."""
    teacher, _, bridge, student = workflow(run, s)
    raw_shape = shaped(run, s, "raw_shape", s.teacher, s.teacher, s.prompts, ANYWAY)
    raw_bridge = bridged(run, s, "raw_bridge", s.student, s.teacher, raw_shape, ANYWAY)
    steps = steps_of(teacher, bridge, student) - steps_of(raw_bridge)
    return [raw_shape, raw_bridge, distilled(run, s, "raw_student", raw_bridge, s.teacher, steps, ANYWAY)]


# ================================================================ the rows


def main(run, s: Settings) -> dict:
    """All rows that main, pairs, labels, family, teacher-size, regime and decoding choose from."""
    arm, raw = workflow(run, s), raw_transfer(run, s)
    teacher, _, bridge, student = arm
    equal_steps = direct(run, s, "direct", "--max-steps", steps_of(teacher, bridge, student))
    equal_time = direct(run, s, "direct_equal_time", "--max-steps", steps_in_the_time_of(equal_steps, arm))
    plateau = direct(run, s, "direct_plateau", "--max-steps", s.plateau_steps)
    # With the flags that the sweep chose; its curve is measured on the test problems themselves.
    tuned = direct(run, s, "direct_tuned", s.tuned, "--max-steps", s.plateau_steps, "--eval-problems", s.test,
                   "--eval-every 20 --eval-samples 4")
    return {"base student": (s.student, []), "raw teacher": (s.teacher, []), "RL teacher": (teacher, [teacher]),
            "raw-teacher transfer": (raw[-1], raw), "direct GRPO, equal steps": (equal_steps, [equal_steps]),
            "direct GRPO, equal time": (equal_time, [equal_time]), "direct GRPO, plateau": (plateau, [plateau]),
            "direct GRPO, tuned": (tuned, [tuned]), "full workflow": (student, arm)}


def main_rows(*names: str) -> Callable:
    def rows(run, s: Settings) -> dict:
        found = main(run, s)
        return {name: found[name] for name in names}
    return rows


def ablation(run, s: Settings) -> dict:
    """Each part left out: its steps left out, too, or given to the part that stays."""
    arm, raw = workflow(run, s), raw_transfer(run, s)
    teacher, shape, bridge, student = arm
    both = steps_of(bridge, student)
    cold = distilled(run, s, "cold", s.student, teacher, s.opd_steps, ANYWAY)
    cold_matched = distilled(run, s, "cold_matched", s.student, teacher, both, ANYWAY)
    alone = ["--max-kl 1e-9 --max-steps", both]
    bridge_matched = bridged(run, s, "bridge_matched", s.student, teacher, shape, alone, ANYWAY)
    imitation = bridged(run, s, "imitation", s.student, teacher, shape, alone, "--estimator sampled", ANYWAY)
    return {"raw-teacher transfer": (raw[-1], raw), "no bridge": (cold, [teacher, cold]),
            "no bridge, equal steps": (cold_matched, [teacher, cold_matched]),
            "bridge alone": (bridge, [teacher, shape, bridge]),
            "bridge alone, equal steps": (bridge_matched, [teacher, shape, bridge_matched]),
            "cross-entropy alone, equal steps": (imitation, [teacher, shape, imitation]),
            "full workflow": (student, arm)}


def student_rl(run, s: Settings) -> dict:
    """As many labels again: RL of the distilled student on them; as many more steps without; RL of the cold one."""
    arm = workflow(run, s)
    on_new = ["--problems", s.more, s.grpo, "--max-steps", s.student_rl_steps]
    warm = run("student_rl", "stage1_grpo.py --model", arm[-1], on_new)
    replay = distilled(run, s, "replay", arm[-1], arm[0], s.student_rl_steps, ANYWAY)
    cold = run("cold_rl", "stage1_grpo.py --model", s.student, on_new)
    return {"cold student, RL on the new labels": (cold, [cold]), "full workflow": (arm[-1], arm),
            "replay, no new labels": (replay, [*arm, replay]), "RL on the new labels": (warm, [*arm, warm])}


def estimator(run, s: Settings) -> dict:
    """The dense reward in other forms, from the same bridge, with the same steps."""
    *before, student = workflow(run, s)
    forms = {"sampled token": ("sampled", "--estimator sampled"), "forward KL": ("forward", "--divergence forward"),
             "JSD": ("jsd", "--divergence jsd")}
    made = {row: distilled(run, s, name, before[-1], before[0], s.opd_steps, flags, ANYWAY)
            for row, (name, flags) in forms.items()}
    return {row: (model, [*before, model]) for row, model in (made | {"exact reverse KL": student}).items()}


def controls(run, s: Settings) -> dict:
    """The same labels spent otherwise."""
    rows = main(run, s)
    teacher, _, bridge, student = rows["full workflow"][1]
    right = answers(run, s, "rejection_shape", teacher, "--keep right")
    rejection = bridged(run, s, "rejection", s.student, teacher, right, "--max-kl 1e-9 --max-steps",
                        steps_of(bridge, student), "--estimator sampled", ANYWAY)
    few, own = on_the_labels(run, s, teacher), expert_iteration(run, s)
    return {"direct GRPO, equal steps": rows["direct GRPO, equal steps"],
            "direct GRPO, tuned": rows["direct GRPO, tuned"],
            "expert iteration": (own[-1], own),
            "rejection sampling from the RL teacher": (rejection, [teacher, right, rejection]),
            "workflow on the labelled prompts alone": (few[-1], [teacher, *few]),
            "full workflow": rows["full workflow"]}


def answers(run, s: Settings, name: str, teacher, *flags):
    """32 answers of the RL teacher to each labelled problem."""
    return shaped(run, s, name, teacher, s.teacher, s.labelled, "--samples-per-prompt 32", *flags, s.if_failed)


def on_the_labels(run, s: Settings, teacher) -> list:
    """The workflow when it has the labelled prompts alone: the teacher's rollouts, C2 and distillation on these."""
    shape = answers(run, s, "few_shape", teacher)
    bridge = bridged(run, s, "few_bridge", s.student, teacher, shape, s.if_failed, problems=s.labelled)
    student = distilled(run, s, "few_student", bridge, teacher, s.opd_steps, s.if_failed, problems=s.labelled)
    return [shape, bridge, student]


def expert_iteration(run, s: Settings) -> list:
    """The student answers the labelled problems itself, is fine-tuned on what was right, and so on: five rounds."""
    model, runs = s.student, []
    for i in range(1, 6):
        own = run(f"own{i}", "stage2_shape.py --teacher", model, "--reference", model, "--problems", s.labelled,
                  "--certify-problems", s.labelled, s.shape,
                  "--samples-per-prompt 32 --num-certify-problems 4 --keep right", ANYWAY)
        model = bridged(run, s, f"expert{i}", model, model, own, "--max-kl 1e-9 --max-steps", s.expert_steps,
                        "--eval-every", s.expert_steps, "--estimator sampled", ANYWAY)
        runs += [own, model]
    return runs


def sweep(run, s: Settings) -> dict:
    """One point of the baseline's sweep: as many rollouts, and optimiser steps, at every point."""
    swept = direct(run, s, "swept", s.point, "--max-steps", s.sweep_steps, "--eval-every 50")
    return {"direct GRPO": (swept, [swept])}


def sweep_workflow(run, s: Settings) -> dict:
    """One point of the workflow's sweep."""
    arm = workflow(run, s, "--eval-every 50")
    return {"full workflow": (arm[-1], arm)}


# ================================================================ the tables

ONE_PAIR = ("All seeds begin from one pair of base models: a seed varies the labels, the sampling and the order.",)
FRESH_PAIRS = ("Each unit has its own pair of base models, pretrained anew, its own labels, sampling and order; the "
               "problems are the same.",)
PROMPTS = ("The workflow also samples on training problems without their answers; direct GRPO has the labelled ones.",)
PAPERS_ORDER = (("raw-teacher transfer", "direct GRPO, equal steps"), ("direct GRPO, equal steps", "full workflow"))
PLATEAU = (("raw-teacher transfer", "direct GRPO, plateau"), ("direct GRPO, plateau", "full workflow"))
TUNED = (("direct GRPO, tuned", "full workflow"),)
ARMS = ("base student", "raw teacher", "RL teacher", "raw-teacher transfer", "direct GRPO, equal steps",
        "full workflow")

TABLES = {
    "main": Table(
        "The paper's claim: with the same labels the workflow beats direct GRPO, and distilling the raw teacher "
        "does not.", main, (*PAPERS_ORDER, ("direct GRPO, equal time", "full workflow"), PLATEAU[1], *TUNED),
        shared=ONE_PAIR + PROMPTS),
    "pairs": Table(
        "The paper's claim over base pairs: each unit is a fresh pair, with labels and a seed of its own.",
        main_rows(*ARMS[:-1], "direct GRPO, plateau", "direct GRPO, tuned", "full workflow"),
        (*PAPERS_ORDER, *PLATEAU, *TUNED), over="pairs", unit="pair", shared=FRESH_PAIRS + PROMPTS),
    "controls": Table(
        "The same labels spent otherwise, over base pairs.", controls,
        (("expert iteration", "full workflow"), ("rejection sampling from the RL teacher", "full workflow"),
         ("workflow on the labelled prompts alone", "full workflow"),
         ("direct GRPO, tuned", "workflow on the labelled prompts alone")), over="pairs", unit="pair",
        shared=FRESH_PAIRS),
    "decoding": Table(
        "The main rows over base pairs, decoded in other ways.",
        main_rows("raw-teacher transfer", "direct GRPO, equal steps", "direct GRPO, tuned", "full workflow"),
        (*PAPERS_ORDER, *TUNED), over="decodings", shared=FRESH_PAIRS + PROMPTS),
    "labels": Table(
        "Accuracy against the number of labelled problems.",
        main_rows("base student", "raw teacher", "raw-teacher transfer", "RL teacher", "direct GRPO, plateau",
                  "direct GRPO, tuned", "full workflow"),
        (*PLATEAU, *TUNED), over="budgets", once=("base student", "raw teacher", "raw-teacher transfer"),
        shared=ONE_PAIR + PROMPTS),
    "ablation": Table(
        "What each part brings: left out, and left out with its steps given to what stays.", ablation,
        tuple((part, "full workflow") for part in (
            "raw-teacher transfer", "no bridge", "no bridge, equal steps", "bridge alone", "bridge alone, equal steps",
            "cross-entropy alone, equal steps")), shared=ONE_PAIR),
    "student-rl": Table(
        "As many labels again: what they bring after distillation, and to a cold student.", student_rl,
        (("full workflow", "RL on the new labels"), ("replay, no new labels", "RL on the new labels"),
         ("cold student, RL on the new labels", "RL on the new labels")), shared=ONE_PAIR),
    "estimator": Table(
        "The divergence that the student learns by, from the same bridge with the same steps.", estimator,
        tuple((form, "exact reverse KL") for form in ("sampled token", "forward KL", "JSD")), shared=ONE_PAIR),
    "family": Table("The order of the arms with models of a second family.", main_rows(*ARMS), PAPERS_ORDER,
                    over="families", shared=ONE_PAIR),
    "teacher-size": Table("Teachers of several sizes, each with as much RL, for the same student.", main_rows(*ARMS),
                          PAPERS_ORDER, over="teachers", once=("base student",), shared=ONE_PAIR),
    "regime": Table(
        "Where each order holds: over the student's skill and how often it works, at the start.",
        main_rows("RL teacher", "base student", "raw-teacher transfer", "direct GRPO, equal steps",
                  "direct GRPO, plateau", "full workflow"), (*PAPERS_ORDER, *PLATEAU),
        over="students", once=("RL teacher",), unit="student", shared=("All students have the same teacher.",)),
    "sweep": Table("Direct GRPO's rate and group size, on pairs and labels that no other table has.", sweep,
                   over="points"),
    "sweep-more": Table("What may be added to direct GRPO, at the sweep's best point.", sweep, over="additions"),
    "sweep-workflow": Table("The workflow's own rates, on the same models and labels.", sweep_workflow,
                            over="workflow_points"),
    "sweep-workflow-more": Table("The workflow's group size and its bridge's rate, at its sweep's best rates.",
                                 sweep_workflow, over="workflow_additions"),
}


def settings_of(table: str, scale: str) -> dict[str, dict]:
    """What a table goes through at a scale: setting -> what it changes in the scale's `settings`."""
    over = TABLES[table].over
    if over and over not in SCALES[scale].over:
        fail(f"--scale {scale} has no {over}, which `{table}` goes through")
    return SCALES[scale].over[over] if over else {"": {}}
