"""The model card: README.md in a run's model/, from which models, data and commands it came, and what is known of it.

A stage writes it when it has ended, `python report.py RUN` at any time, and eval.py whenever it has evaluated that run,
whose scores then stand in RUN/scores.jsonl.
Every line comes from the files of the run and of those that led to it; none tells the time, so that the same run has
the same card.
"""
import json
import re
from pathlib import Path

from engine.checkpoints import READ_BY_4
from engine.files import lock, read_json, read_jsonl, write_text
from engine.ranks import say
from pages.parts import with_interval

# ---------------------------------------------------------------- certificates in words


def c1_in_words(certificate: dict) -> str:
    """The certificate of stage 2 in one sentence."""
    within = certificate["sum"]["within_prompt_auc"]
    if within["value"] is None:
        return (f"C1 does not hold: none of {certificate['num_prompts']} prompts has both a right and a wrong "
                "completion, so nothing can be ranked; take harder or easier problems or more --samples-per-prompt")
    low, high = within["interval"]
    figures = (f"within-prompt AUC {within['value']:.3f}, 95% interval [{low:.3f}, {high:.3f}], "
               f"{within['prompts']} prompts with both outcomes")
    if certificate["passed"]:
        few = "; on so few, chance alone makes C1 hold in 5 to 40% of cases: certify on more problems"
        return (f"C1 holds: the teacher's log-ratio ranks right above wrong completions ({figures}"
                f"{few * (within['prompts'] < 8)})")
    return (f"C1 does not hold ({figures}; the lower end must exceed {certificate['min_auc']}): RL has not shaped this "
            "teacher towards the reward, so its dense reward would teach the student style but not to be right")


def c2_in_words(certificate: dict) -> str:
    """The certificate of stage 3 in one sentence."""
    bound, interval = certificate["max_kl_nats"], certificate["c2_interval_nats"]
    spans = " (the interval spans it)" if None not in interval and interval[0] <= bound < interval[1] else ""
    return (f"C2 {'holds' if certificate['passed'] else 'does not hold'} after {certificate['optimiser_steps']:,} "
            "optimiser steps: KL(student || teacher) on the student's own rollouts is "
            f"{with_interval(certificate['c2_reverse_kl_nats'], interval)} nats per token, against a bound of "
            f"{bound:g}{spans}" + ("" if certificate["passed"] else "; stage 4 refuses this run"))


def certificate_in_words(certificate: dict) -> str:
    """Of either kind; nothing where there is none."""
    words = {"C1": c1_in_words, "C2": c2_in_words}.get(certificate.get("condition"))
    return words(certificate) if words else ""


# ---------------------------------------------------------------- the card

COSTS = {"optimiser_steps": "optimiser steps", "labels_seen": "labels seen", "tokens_sampled": "tokens sampled"}
SAMPLING = ("temperature", "top_p", "top_k", "max_new_tokens", "seed", "dtype")


def write_card(run: Path) -> None:
    """RUN/model/README.md, if there is a model."""
    if not (run / "model").is_dir():
        return
    (runs, bases), trained_from = lineage(run), first_parents(run)
    licence = licence_of(trained_from[0]) if trained_from else None
    on_the_hub = [parent["hub"].split("@")[0] for parent in trained_from if "hub" in parent]
    front = [*[f"license: {licence}"] * bool(licence), *[f"base_model: {name}" for name in on_the_hub[:1]],
             "library_name: transformers", "tags: [sparse-to-dense]"]
    newline = "\n"
    write_text(run / "model" / "README.md", f"""---
{newline.join(front)}
---
# {run.resolve().name}

Trained with sparse-to-dense (arXiv 2605.12483): labels spent on a teacher by reinforcement learning, its dense reward
for every token given to a student.  The licence of the model that this one was trained from: {licence or "not stated"}.
{readers(run / "model")}

## Models it began from

{newline.join(base_line(base) for base in bases)}

## The runs that led here, this one last

{newline.join(run_lines(each) for each in runs)}
## Scores

{score_table(read_jsonl(run / "scores.jsonl"))}
""")


def readers(model_dir: Path) -> str:
    """Which programs read what was saved.  vLLM was read, not run: since 0.24 it takes transformers 5 alone, before it
    took 4, too, and finds the same rope under the names of either (vllm/transformers_utils/config.py)."""
    config = read_json(model_dir / "config.json")
    whys = {f"no model of type {config.get('model_type')} was seen to be": config.get("model_type") not in READ_BY_4,
            "they have no words for its rope_parameters": config.get("rope_parameters") and "rope_theta" not in config,
            "it has no tokenizer.json": not (model_dir / "tokenizer.json").is_file()}
    why = next((f"are not known to read it right ({why})" for why, holds in whys.items() if holds), "read it, too")
    return ("Transformers 5 reads it, and vLLM from 0.24 on where that knows the architecture; transformers 4.57, and "
            f"an older vLLM with it, {why}.")


def lineage(run: Path) -> tuple[list[Path], list[dict]]:
    """Every run that this one hangs on, parents first, itself last; and the models that no run made."""
    runs: list[Path] = []
    bases: dict[str, dict] = {}

    def follow(each: Path) -> None:
        record = read_json(each / "args.json")
        for parent in record.get("parents", {}).values():
            if "run" in parent:
                follow(Path(parent["run"]))
            else:
                bases.setdefault(parent["sha256"], parent)
        for rollouts in record.get("inputs", {}).get("rollouts", {}):      # stage 2's, which has certified the teacher
            follow(Path(rollouts).parent)
        if each not in runs:
            runs.append(each)
    follow(run)
    return runs, list(bases.values())


def first_parents(run: Path) -> list[dict]:
    """The model that was trained, and on: the first parent of each run, back to one that no run made."""
    parent = next(iter(read_json(run / "args.json").get("parents", {}).values()), None)
    if parent is None:
        return []
    return [parent, *(first_parents(Path(parent["run"])) if "run" in parent else [])]


def licence_of(model: dict) -> str | None:
    """What `license:` says at the head of a model's own card."""
    card = Path(model["path"]) / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    front = re.match(r"---\n(.*?)\n---", text, re.S)
    found = re.search(r"^license:\s*(\S.*)$", front[1], re.M) if front else None
    return found[1].strip() if found else None


def base_line(base: dict) -> str:
    name = base.get("hub") or Path(base["path"]).name
    return f"- {name}, licence {licence_of(base) or 'not stated'}, sha256 of config and weights {base['sha256'][:16]}"


def run_lines(run: Path) -> str:
    """One run: its command, code, data, costs and certificate."""
    record = read_json(run / "args.json")
    if not record:
        return f"### {run.name}\n\nIts directory is no longer there.\n"
    flags = split_command(record["command"])[1]
    lines = [f"### {run.resolve().name}", "", f"`{script_of(run)}{shortened(flags)}`", "",
             f"- code: commit {record['git_commit'] or 'unknown'}; torch {record['versions']['torch']}, transformers "
             f"{record['versions']['transformers']}; processes: {record['world_size']}"]
    for kind in ("problems", "certify_problems", "eval_problems", "rollouts"):
        for path, digest in (record["inputs"].get(kind) or {}).items():
            lines.append(f"- {kind.replace('_', ' ')}: {Path(path).name}, digest of the contents {digest}")
    done = read_json(run / "DONE")
    if costs := [f"{done[key]:,} {name}" for key, name in COSTS.items() if done.get(key)]:
        lines.append(f"- cost: {', '.join(costs)}")
    if words := certificate_in_words(read_json(run / "certificate.json")):
        lines.append(f"- {words}")
    return "\n".join(lines) + "\n"


def script_of(run: Path) -> str:
    """Which script wrote this run directory: stage1_grpo.py, …"""
    return split_command(read_json(run / "args.json").get("command", ""))[0]


def split_command(command: str) -> tuple[str, str]:
    """-> the script's name, without its folders, and its flags"""
    found = re.search(r"(\w+\.py)(?=\s|$)(.*)", command, re.S)
    return (found[1], found[2]) if found else (".py", "")


def shortened(flags: str) -> str:
    """The flags as they were given, of each path the last part; where it was written is nobody's concern."""
    flags = re.sub(r" --out \S+", "", flags)
    return re.sub(r"(?<= )[^\s\"'{]*/([^\s/]+)/?(?=\s|$)", r"\1", flags)


def score_table(scores: list[dict]) -> str:
    if not scores:
        return "None yet: `python eval.py --model RUN` adds them."
    lines = ["| problems | metric | score, 95% interval over problems | sampling |", "| --- | --- | --- | --- |"]
    for row in scores:
        figures = row[row["metric"]]
        lines.append(f"| {row['num_problems']:,} of {row['problems']} | {row['metric']} | "
                     f"{with_interval(figures['value'], figures['interval_over_problems'])} | {row['sampling']} |")
    return "\n".join(lines)


def add_scores(evaluation: Path) -> None:
    """Keep what eval.py found beside the run that it evaluated, once for the same problems and settings."""
    record, scores = read_json(evaluation / "args.json"), read_json(evaluation / "scores.json")
    run, args = record["parents"].get("model", {}).get("run"), record["args"]
    if run is None:
        return
    row = {"problems": ", ".join(Path(path).name for path in args["problems"]), "metric": f"avg@{scores['samples']}",
           "sampling": ", ".join(f"{flag.replace('_', '-')} {args[flag]}" for flag in SAMPLING), **scores}
    try:                                                        # it may be somebody else's
        with lock(Path(run) / ".scores.lock", wait=True):       # two evaluations may end at the same moment
            rows = {(each["problems"], each["metric"], each["sampling"]): each
                    for each in [*read_jsonl(Path(run) / "scores.jsonl"), row]}
            write_text(Path(run) / "scores.jsonl", "".join(json.dumps(each) + "\n" for each in rows.values()))
            write_card(Path(run))
    except (OSError, SystemExit) as error:                      # write_text has said what it could not write
        say(f"{run}: its model's card does not have these scores ({getattr(error, 'strerror', 'see above')})")
