"""The pages that people read: RUN/report.html for a run, OUT/report.html for a table of reproduce.py.

Each is one self-contained file: plots as inline SVG, no script, nothing from the network.  Every figure on it comes
from the files of the directory.  Needs matplotlib; the stages and reproduce.py do without it where it is missing.

    python report.py runs/teacher                   # the page of a run anew (any stage), finished or not
    python report.py runs/main                      # the page of a table anew, and those of its runs that have none
    python report.py runs/a runs/b --out ab.html    # the curves of several runs, finished or not, side by side
"""
import argparse
import importlib.util
import json
import math
import os
import time
from html import escape
from itertools import cycle
from pathlib import Path

import numpy as np

from card import COSTS, certificate_in_words, script_of, write_card
from common import FlagParser
from engine.files import NotJson, read_json, read_jsonl, read_record, write_text
from engine.pages import (
    INK, LINES, MUTED, PALETTE, html_table, interval_axis, interval_plot, new_figure, number, page, svg, swatch,
    with_interval,
)
from engine.ranks import fail, rank, say
from engine.runs import short_commit

TOTALS = COSTS | {"seconds": "seconds"}
CURVES = {  # key of metrics.jsonl -> title, y axis with its unit, whether that axis is a share from 0 to 1
    "eval_accuracy": ("Held-out accuracy", "fraction right", True),
    "reward_mean": ("Mean reward of the rollouts", "fraction right", True),
    "reverse_kl_nats": ("Reverse KL(student‖teacher)", "nats per token", False),
    "c2_reverse_kl_nats": ("C2: reverse KL, held out", "nats per token", False),
    "forward_kl_nats": ("Forward KL(teacher‖student)", "nats per token", False),
    "mixed_groups_fraction": ("Groups with both outcomes", "fraction of groups", True),
    "entropy_estimate_nats": ("Entropy, estimated", "nats per token", False),
    "clipped_fraction": ("Clipped by the surrogate", "fraction of tokens", False),
    "truncated_fraction": ("Cut at the longest length", "fraction of completions", True),
    "mean_length_tokens": ("Mean completion length", "tokens", False),
    "grad_norm": ("Gradient norm before clipping", "L2 norm", False),
    "sampler_gap_max_nats": ("Largest sampler–trainer gap", "nats, one token", False),
    "tokens_per_second": ("Speed", "tokens per second", False)}

POSITIVE, NEGATIVE = (96, 168, 220), (240, 146, 84)                             # of the dense reward, under dark text

# ---------------------------------------------------------------- small parts


def the_one(values: list):
    """The value that all have that have one; None if they differ."""
    values = set(values) - {None}
    return values.pop() if len(values) == 1 else None


def model_text(text: str, longest: int = 4000) -> str:
    """What a model wrote or read: escaped, and cut where it is very long."""
    return escape(text if len(text) <= longest else text[:longest] + " …")


# ---------------------------------------------------------------- what stage 2 writes for its page


def write_samples(path: Path, rows: list[dict], tokenizer, count: int = 8) -> None:
    """samples.jsonl: a few rollouts as text.  rows: stage 2's, one a rollout."""
    write_text(path, "".join(json.dumps({
        "step": 0, "prompt": tokenizer.decode(row["prompt_ids"]), "completion": tokenizer.decode(row["completion_ids"]),
        "finished": row["finished"], "reward": row["reward"]}) + "\n" for row in rows[:count]))


def write_rewards(out: Path, rows: list[dict], tokenizer, samples_per_prompt: int, count: int = 8) -> None:
    """What C1 ranked, in implicit_rewards.jsonl: a line a prompt, R of each completion in nats, reward and length; and of
    `count` prompts, those with both outcomes first, a right and a wrong completion by token in dense_rewards.jsonl.
    """
    groups = [rows[start:start + samples_per_prompt] for start in range(0, len(rows), samples_per_prompt)]
    write_text(out / "implicit_rewards.jsonl", "".join(json.dumps({"id": group[0]["id"], **{
        key: [row[key] for row in group] for key in ("implicit_reward_nats", "reward")},
        "length_tokens": [len(row["completion_ids"]) for row in group]}) + "\n" for group in groups))
    groups.sort(key=lambda group: len({row["reward"] for row in group}), reverse=True)
    lines = []
    for group in groups[:count]:
        for row in {row["reward"]: row for row in reversed(group)}.values():
            lines.append(json.dumps({
                "prompt": tokenizer.decode(row["prompt_ids"]), "reward": row["reward"],
                "tokens": [tokenizer.decode([token]) for token in row["completion_ids"]],
                "dense_rewards_nats": row["dense_rewards_nats"],
                "implicit_reward_nats": row["implicit_reward_nats"]}) + "\n")
    write_text(out / "dense_rewards.jsonl", "".join(lines))


# ---------------------------------------------------------------- the page of a run


def draw_page(run: Path) -> None:
    """The last line of a stage: its model's card and, if matplotlib is there, RUN/report.html.  Neither costs a run."""
    if rank() == 0:
        try:
            write_card(run)
            if importlib.util.find_spec("matplotlib"):
                write_run_page(run)
        except (Exception, SystemExit) as error:                # a disk that is full
            say(f"{run}: no card or page ({type(error).__name__}: {error}); `python report.py {run}` tries again")


def write_run_page(run: Path) -> None:
    """RUN/report.html, from as many of a run's files as there are."""
    record, rows = read_json(run / "args.json"), read_jsonl(run / "metrics.jsonl")
    totals = read_json(run / "DONE") or (rows[-1] if rows else {})        # without DONE, so far
    tiles = "".join(f"<div><b>{number(totals[key])}</b><span>{name}</span></div>"
                    for key, name in TOTALS.items() if key in totals)
    state = state_of(run)
    sections = [f"<p class='state'>{state}</p>" * (state != "finished"),
                f"<p class='lead'>{finding(run)}</p><div class='tiles'>{tiles}</div>",
                certificate_section(run), curves_section([rows], record.get("args", {}).get("max_kl")),
                dense_rewards_section(run), samples_section(read_jsonl(run / "samples.jsonl")),
                origin_section(run, record)]
    write_text(run / "report.html", page(run.resolve().name, f"A run of {script_of(run)}", sections, run))


def write_runs_page(runs: list[Path], out: Path) -> None:
    """The curves of several runs, finished or not: a panel a metric, a line a run."""
    common = os.path.commonpath([run.absolute() for run in runs])
    names = [os.path.relpath(run, common) for run in runs]
    metrics = [read_jsonl(run / "metrics.jsonl") for run in runs]
    lines = [[swatch(*style), f"<a href='{escape(os.path.relpath(run / 'report.html', out.parent))}'>{escape(name)}</a>"
              if (run / "report.html").is_file() else escape(name), script_of(run), state_of(run), finding(run)]
             for run, name, style in zip(runs, names, cycle(LINES))]
    bounds = [read_json(run / "args.json").get("args", {}).get("max_kl") for run in runs]
    sections = [html_table(["", "run", "script", "state", "what came of it"], lines),
                curves_section(metrics, the_one(bounds)) or "<p>None of them has logged a step yet.</p>"]
    as_of = f"As of {time.strftime('%Y-%m-%d %H:%M:%S')}"
    write_text(out, page(f"{len(runs)} runs", as_of, sections, *runs, "--out", out))


def state_of(run: Path) -> str:
    """finished, or how far a run without DONE has come."""
    if (run / "DONE").is_file():
        return "finished"
    file, steps = run / "metrics.jsonl", read_json(run / "args.json").get("args", {}).get("max_steps")
    if not (rows := read_jsonl(file)):
        return "Not finished: nothing logged yet."
    logged = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(file.stat().st_mtime))
    of = f" of {steps:,}" if steps else ""
    return f"Not finished: step {rows[-1]['step']:,}{of}, logged {logged}; still running, or stopped."


def series(rows: list[dict], key: str) -> list[tuple]:
    """(step, value) wherever the metric was logged and is finite."""
    return [(row["step"], row[key]) for row in rows if row.get(key) is not None and math.isfinite(row[key])]


def finding(run: Path) -> str:
    """What came of a run, in a sentence or two."""
    certificate, rows, sentences = read_json(run / "certificate.json"), read_jsonl(run / "metrics.jsonl"), []
    if words := certificate_in_words(certificate):
        holds = f"{certificate['condition']} {'holds' if certificate['passed'] else 'does not hold'}"
        sentences.append(escape(words).replace(holds, f"<b>{holds}</b>", 1) + ".")
    for key, name, unit in (("reward_mean", "Mean reward", ""), ("reverse_kl_nats", "Reverse KL", " nats per token"),
                            ("eval_accuracy", "Held-out accuracy", "")):
        if points := series(rows, key):
            (first, before), (last, after) = points[0], points[-1]
            change = "rose" if after > before else "fell" if after < before else "did not change"
            since = f"{change} from {number(before)} at step {first} to" if len(points) > 1 else "was"
            sentences.append(f"{name} {since} {number(after)}{unit} at step {last}.")
    return " ".join(sentences) or "This run logged nothing that tells how it went."


def certificate_section(run: Path) -> str:
    """The certificate in figures; the page's first sentence says whether it holds."""
    certificate = read_json(run / "certificate.json")
    if certificate.get("condition") == "C2":
        kl = with_interval(certificate["c2_reverse_kl_nats"], certificate["c2_interval_nats"])
        bound, tokens, prompts, forward = (number(certificate[key]) for key in (
            "max_kl_nats", "c2_tokens", "c2_prompts", "forward_kl_on_teacher_rollouts_nats"))
        return f"""<h2>Certificate C2</h2><p>Is the student near the teacher where the student goes?  C2 holds if
            KL(student‖teacher), exact over the vocabulary, is at most {bound} nats per token on fresh
            rollouts of the student.  It is {kl} (95% interval
            over prompts), on {tokens} tokens of {prompts} prompts.  KL(teacher‖student) on
            the teacher’s rollouts, which the bridge minimises, is
            {forward}; a small one does not imply the other.</p>"""
    if certificate.get("condition") != "C1":
        return ""
    rows = []
    for variant, per in (("sum", "summed over the completion"), ("per_token", "mean per token")):
        for kind, where in (("within_prompt_auc", "within prompts"), ("pooled_auc", "pooled")):
            value, interval, prompts = (certificate[variant][kind][key] for key in ("value", "interval", "prompts"))
            rows.append([f"{where}, {per}", interval_plot([(value, interval)], 1, PALETTE[0], certificate["min_auc"]),
                         with_interval(value, interval), f"{prompts:,}"])
    table = html_table(["AUC of R", interval_axis(1), "value, 95% interval", "prompts"], rows, (2, 3))
    return f"""<h2>Certificate C1</h2><p>Does the implicit reward R, the teacher’s log-ratio to its reference, rank
        right above wrong completions of the same prompt?  Ranked were {certificate["samples_per_prompt"]} completions
        of each of {certificate["num_prompts"]:,} prompts, sampled from the
        {escape(certificate.get("certified_on", "teacher"))}; {certificate["accuracy"]:.1%} are right, and R is
        {number(certificate["mean_implicit_reward_nats"])} nats on average.  C1 holds if the interval in the first row
        lies above {certificate["min_auc"]:g} (dashed).  A teacher equal to its reference gives 0.5.</p>{table}
        {draw_implicit_rewards(read_jsonl(run / "implicit_rewards.jsonl"), certificate)}"""


def draw_implicit_rewards(rows: list[dict], certificate: dict) -> str:
    """How R lies over right and over wrong completions: all of them, and each beside its prompt's mean."""
    if not rows:
        return ""
    groups = [(np.array(row["implicit_reward_nats"]), np.array(row["reward"]) > 0) for row in rows]
    mixed = [(scores - scores.mean(), right) for scores, right in groups if len(set(right)) > 1]
    plots, auc = "", certificate["sum"]
    for parts, title, unit, area in (
            (groups, "All completions", "R, nats", auc["pooled_auc"]),
            (mixed, "Of prompts with both outcomes", "R less its prompt’s mean, nats", auc["within_prompt_auc"])):
        figure = new_figure(4.9, 2.4)
        axes = figure.subplots()
        scores, right = map(np.concatenate, zip(*parts or [(np.empty(0), np.empty(0, bool))]))
        low, high = np.percentile(scores, (0.5, 99.5)) if parts else (0, 0)
        low, high = (low, high) if high > low else (low - 1, high + 1)
        bins, scores = np.linspace(low, high, 41), scores.clip(low, high)
        for name, those, colour in (("wrong", ~right, PALETTE[2]), ("right", right, PALETTE[0])):
            share = np.full(those.sum(), 1 / max(those.sum(), 1))
            for style in ({"alpha": 0.4, "label": f"{name}: {those.sum():,}"}, {"histtype": "step", "linewidth": 1.2}):
                axes.hist(scores[those], bins, weights=share, color=colour, **style)
        axes.set(title=f"{title}: AUC {number(area['value'])}", xlabel=unit, ylabel="share of each kind")
        axes.legend(frameon=False, labelcolor=MUTED)
        plots += svg(figure, f"{title}: R of the right and of the wrong")
    return f"""<div class=two>{plots}</div><p class='muted'>The AUC is the chance that a right completion’s R exceeds a
        wrong one’s: of all completions, then of two of the same prompt, averaged over prompts, which is what C1 is
        about.  The outermost bars hold what lies beyond.</p>"""


def smoothed(points: np.ndarray) -> np.ndarray:
    """Of 60 points or more, the mean of a sliding tenth, shorter at both ends.  (points, 2) -> (points, 2)"""
    if len(points) < 60:
        return points
    window, (places, values) = np.ones(len(points) // 10), points.T
    counts = np.convolve(np.ones(len(points)), window, "same")
    return np.stack([places, np.convolve(values, window, "same") / counts], axis=1)


def curves_section(runs: list[list[dict]], max_kl: float | None) -> str:
    """A small plot a metric.  runs: the rows of metrics.jsonl of each."""
    figures = [draw_curve(runs, key, max_kl) for key in CURVES if any(series(rows, key) for rows in runs)]
    caption = "<p class='muted'>Pale: each step.  Strong: the mean of a sliding tenth of the run.</p>"
    caption *= any(len(series(rows, key)) >= 60 for key in CURVES for rows in runs)
    return f"<h2>Curves</h2>{caption}<div class='grid'>{''.join(figures)}</div>" if figures else ""


def draw_curve(runs: list[list[dict]], key: str, max_kl: float | None = None) -> str:
    """One small plot, a line a run.  Values that are not finite are left out, and counted below it."""
    (title, unit, is_share), figure, every, lost = CURVES[key], new_figure(3.3, 2.1), [], 0
    axes = figure.subplots()
    for rows, (colour, dash) in zip(runs, cycle(LINES)):
        if not (points := series(rows, key)):
            continue
        style, points = {"color": colour, "linestyle": dash}, np.array(points, dtype=float)
        lost += sum(key in row for row in rows) - len(points)
        if len(points) < 60:
            axes.plot(*points.T, marker="o" if len(points) <= 20 else None, markersize=3, **style)
        else:
            axes.plot(*points.T, color=colour, alpha=0.35 if len(runs) == 1 else 0.15, linewidth=0.8)
            axes.plot(*smoothed(points).T, **style)
        every += points.tolist()
        intervals = [(row["step"], row["c2_interval_nats"]) for row in rows if key == "c2_reverse_kl_nats"
                     and None not in row.get("c2_interval_nats", [None])]
        for step, bounds in intervals:
            axes.plot([step] * 2, bounds, color=colour, alpha=0.45, linewidth=3)
            every += [(step, bounds[1])]
    steps, values = np.array(every).T
    highest, use_log = values.max(), not is_share and bool(0 < 30 * values.min() < values.max())
    if key == "c2_reverse_kl_nats" and (max_kl or 0) > values.min() / 30:             # else far below the plot
        axes.axhline(max_kl, color=INK, linestyle=(0, (4, 3)), linewidth=1)
        axes.annotate(f"bound {max_kl:g}", (0.02, max_kl), xycoords=("axes fraction", "data"), xytext=(0, 3),
                      textcoords="offset points", fontsize=7.5)
        highest = max(highest, max_kl)
    if use_log:
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter("")
    else:
        axes.set_ylim(min(-0.03 * is_share, values.min()), 1.06 if is_share else 1.1 * highest if highest > 0 else 1)
    if steps.min() == steps.max():
        axes.set_xlim(steps[0] - 1, steps[0] + 1)
    axes.locator_params("x", nbins=5, integer=True, steps=[1, 2, 5, 10])
    axes.set(title=title, ylabel=unit + ", log scale" * use_log,
             xlabel="optimiser step" + f" ({lost} not finite)" * (lost > 0))
    if len(runs) == 1:
        axes.annotate(number(series(runs[0], key)[-1][1]), (1, 1.02), xycoords="axes fraction", ha="right", va="bottom",
                      color=PALETTE[0])
    return svg(figure, f"{title} ({unit}) against optimiser steps")


def verdict_of(reward) -> str:
    return "not graded" if reward is None else "✓ right" if reward > 0 else "✗ wrong"


def samples_section(rows: list[dict]) -> str:
    """Rollouts from early and late in training, at most two of each verdict."""
    half = len(rows) // 2
    columns = []
    for name, part in (("First ones logged", rows[:half]), ("Last ones logged", rows[half:][::-1])):
        by_verdict: dict[str, list] = {}
        for row in part:
            by_verdict.setdefault(verdict_of(row.get("reward")), []).append(row)
        cards = [f"""<p class="muted">step {row["step"]}, <b>{verdict}</b>
            {"(cut at the longest length)" * (row.get("finished") is False)}</p>
            <pre><i>{model_text(row["prompt"], 1500)}</i>\n{model_text(row["completion"])}</pre>"""
                 for verdict, group in by_verdict.items() for row in group[:2]]
        columns.append(f"<div><h3>{name}</h3>{''.join(cards)}</div>" if cards else "")
    return f"<h2>Samples</h2><div class='two'>{''.join(columns)}</div>" if rows else ""


def origin_section(run: Path, record: dict) -> str:
    """What ran: the command, its flags, versions and parents."""
    parents = []
    for name, parent in record.get("parents", {}).items():
        where, target = escape(parent.get("run", parent["path"])), Path(parent.get("run", "nowhere")) / "report.html"
        link = f"<a href='{escape(os.path.relpath(target, run))}'>{where}</a>" if target.is_file() else where
        parents.append([escape(name), link, f"<code>{parent['sha256'][:16]}</code>"])
    facts = {"started": record.get("started"), "git commit": short_commit(record.get("git_commit") or ""),
             "processes": record.get("world_size"), **record.get("versions", {})}
    flags = "".join(f"<li><code>--{escape(key.replace('_', '-'))}</code> {escape(str(value))}</li>"
                    for key, value in record.get("args", {}).items())
    return f"""<h2>What ran</h2><pre>{escape(record.get("command", "unknown"))}</pre>
        <p class="muted">{" · ".join(f"{name} {escape(str(value))}" for name, value in facts.items() if value)}</p>
        {html_table(["parent", "where", "SHA-256 of its weights"], parents) if parents else ""}
        <h3>All flags, defaults too</h3><ul class="flags">{flags}</ul>"""


# ---------------------------------------------------------------- the dense reward, token by token


def dense_rewards_section(run: Path, num_prompts: int = 4) -> str:
    """Rollouts of stage 2, each token coloured by log π_T* − log π_ref, its part of equation 4."""
    rows = read_jsonl(run / "dense_rewards.jsonl")
    prompts = list(dict.fromkeys(row["prompt"] for row in rows))[:num_prompts]
    rows = [row for row in rows if row["prompt"] in prompts]
    if not rows:
        return ""
    sizes = [np.abs(row["dense_rewards_nats"]) for row in rows]
    limit = max((float(size.max()) for size in sizes if np.isfinite(size).all() and size.size), default=0.0)
    shares = [size.max() / size.sum() for size in sizes if size.sum() > 0]
    tells = (f"Below, a completion’s largest token holds {np.mean(shares):.0%} of its absolute rewards, on average."
             if shares else "Here every number is 0: the teacher is its own reference.")
    sampler = escape(read_json(run / "certificate.json").get("certified_on", "teacher"))
    blocks = [f"""<h2>The teacher’s dense reward</h2><p>Completions sampled from the {sampler}, each token coloured by
        log π<sub>T*</sub> − log π<sub>ref</sub>.  <b>Blue</b>: after what stands before it, the shaped teacher finds
        this token likelier than its reference does; <b>orange</b>: less likely; white: as likely.  Their sum is the
        completion’s implicit reward R, and C1 holds if right completions have the larger R.  The teacher’s RL was told
        one bit for each answer; this is the number for each token that it made of it.  {tells}  Shown are the first
        prompts of C1’s on which completions came out both ways, with the first right and the first wrong one.</p>
        {colour_legend(limit)}"""]
    for prompt in prompts:
        blocks.append(f"""<div class="rollout"><div class="says prompt muted">prompt</div>
            <pre>{model_text(prompt, 1500)}</pre></div>""")
        group = [row for row in rows if row["prompt"] == prompt]
        blocks += [coloured_rollout(row, limit) for row in sorted(group, key=lambda row: -row["reward"])]
    return "\n".join(blocks)


def colour_of(reward: float, limit: float) -> str:
    """White at 0, full colour at ±limit; the square root lets small rewards be seen beside large ones."""
    depth = math.sqrt(min(1.0, abs(reward) / limit)) if limit and math.isfinite(reward) else 0.0
    return "#" + "".join(f"{round(255 + (end - 255) * depth):02x}" for end in (POSITIVE if reward > 0 else NEGATIVE))


def colour_legend(limit: float) -> str:
    colours = ",".join(colour_of(limit * (i / 10) * abs(i / 10), limit) for i in range(-10, 11))
    ticks = "".join(f"<span>{share * limit:+.2g}</span>" if share else "<span>0</span>"
                    for share in (-1, -0.25, 0, 0.25, 1))
    legend = f"""<div class="scale" style="background:linear-gradient(to right,{colours})"></div>
        <div class="ticks">{ticks}</div><p class="muted">nats; the colour deepens with the square root</p>"""
    return legend if limit else ""


def coloured_rollout(row: dict, limit: float, longest: int = 600) -> str:
    """One completion; each number is its token's tooltip, and stands below it where the completion is short."""
    is_short, spans = len(row["tokens"]) <= 24, []
    for token, reward in list(zip(row["tokens"], row["dense_rewards_nats"]))[:longest]:
        below = f"<small>{'0' if abs(reward) < 0.005 else f'{reward:+.2f}'}</small>" if is_short else ""
        text = escape(token).replace("\n", "⏎" if is_short else "⏎\n")
        style = f"style='background:{colour_of(reward, limit)}' title='{reward:+.4f} nats'"
        spans.append(f"<span {style}>{text}{below}</span>")
    more = " …" * (len(row["tokens"]) > longest)
    return f"""<div class="rollout"><div class="says"><b>{verdict_of(row["reward"])}</b><br>
        R = {row["implicit_reward_nats"]:+.2f} nats<br><span class="muted">{len(row["tokens"])} tokens</span></div>
        <div class="tokens{" short" * is_short}">{"".join(spans)}{more}</div></div>"""


# ---------------------------------------------------------------- the page of a table


def write_table_page(out: Path) -> None:
    """OUT/report.html, from table.json and the runs that it names; of several settings, those of the middle one.

    While the table is running: of the settings and the seeds that have come in.
    """
    table = read_json(out / "table.json")
    settings = list(dict.fromkeys(row["setting"] for row in table["rows"] if row["setting"] is not None))
    settings = settings or [table["scopes"][0]["setting"]]
    chosen = settings[(len(settings) - 1) // 2]
    rows = [row for row in table["rows"] if row["setting"] in (None, chosen)]
    seed_dirs = [out / scope["directory"] for scope in table["scopes"] if scope["setting"] == chosen]
    seed_dirs = [seed_dir for seed_dir in seed_dirs if all(
        (seed_dir / name).is_dir() for row in rows for name in row["runs"])] or seed_dirs[:1]
    rows = [row for row in rows
            if all((seed_dir / name).is_dir() for seed_dir in seed_dirs for name in row["runs"])] or rows
    trained = [row for row in rows if not is_reference(row, rows)] or rows
    colours = dict(zip([row["row"] for row in trained[::-1]], PALETTE * len(trained)))
    names = list(dict.fromkeys(name for row in rows for name in row["runs"]))
    for run in (seed_dir / name for seed_dir in seed_dirs for name in names):
        if (run / "args.json").is_file() and not (run / "report.html").is_file():
            write_run_page(run)
    shaped = [row["runs"][len(teachers)] for row in rows if (teachers := teacher_runs(row, seed_dirs[0]))]
    sentences = "".join(f"<li>{escape(ordering['sentence'])}</li>" for ordering in table["orderings"])
    figure = (out / "figure.svg").read_text(encoding="utf-8") if (out / "figure.svg").is_file() else ""
    sections = [f"<p class='lead'>{escape(table['about'])}</p><figure class=wide>{figure}</figure><ul>{sentences}</ul>",
                f"<h2>At one setting: {escape(chosen)}</h2>" if len(settings) > 1 else "",
                score_section(rows, colours, seed_dirs)]
    if any((seed_dirs[0] / name).is_dir() for name in names):           # results/ keeps tables without their runs
        sections += [
            learning_section(trained, colours, seed_dirs),
            certificate_section(seed_dirs[0] / shaped[0]) if shaped else "",
            f"<p class='muted'>Drawn: {seed_dirs[0].name}/{shaped[0]}, the first seed’s.</p>" if shaped else "",
            certificates_section(names, seed_dirs), length_section(trained, colours, seed_dirs),
            time_section(names, seed_dirs), dense_rewards_section(seed_dirs[0] / shaped[0]) if shaped else "",
            runs_section(names, seed_dirs, table, out)]
    so_far = "" if table.get("finished", True) else ", so far"
    title = f"{table['table'].capitalize()} table, {table['scale']} scale{so_far}"
    write_text(out / "report.html", page(title, "Sparse-to-dense reward post-training", sections, out))


def write_table_figure(out: Path) -> None:
    """OUT/figure.svg: accuracy over labels with bands, or each row's score with its interval, a panel a setting."""
    table = read_json(out / "table.json")
    figure = labels_figure(table) if len({scope["labels"] for scope in table["scopes"]}) > 1 else rows_figure(table)
    text = svg(figure, table["about"]).replace("<svg", "<svg style='background:#fff'", 1)     # others show it on black
    write_text(out / "figure.svg", text[text.index("<svg"):].removesuffix("</figure>"))


def labels_figure(table: dict):
    figure = new_figure(8, 4)
    axes, by_name = figure.subplots(), {}
    for row in table["rows"]:
        by_name.setdefault(row["row"], []).append(row)
    every = [scope["labels"] for scope in table["scopes"]]
    shown = [name for name, rows in by_name.items() if rows[0]["runs"] or rows[0]["labels"]]
    for name, colour in zip(shown[::-1], PALETTE):
        rows = by_name[name]
        labels = [row["labels"] for row in rows] if rows[0]["labels"] else [min(every), max(every)]
        rows = rows if rows[0]["labels"] else rows * 2                      # without labels: a level
        low, high = zip(*(row["interval"] or row["seeds"][0]["interval"] for row in rows))
        axes.fill_between(labels, low, high, color=colour, alpha=0.18, linewidth=0)
        axes.plot(labels, [row["mean"] for row in rows], "o-", color=colour, label=name, markersize=4)
    axes.set(xscale="log", xlabel="labelled problems", ylim=(0, 1.03),
             ylabel=f"{table['rows'][0]['metric']}, fraction right")
    axes.set_xticks(sorted(set(every)), [f"{labels:,}" for labels in sorted(set(every))])
    axes.minorticks_off()
    if shown:
        axes.legend(frameon=False, labelcolor=MUTED, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def rows_figure(table: dict):
    settings = list(dict.fromkeys(scope["setting"] for scope in table["scopes"]))
    names = list(dict.fromkeys(row["row"] for row in table["rows"]))[::-1]
    columns = min(3, len(settings))
    down = math.ceil(len(settings) / columns)
    figure = new_figure(8 + 2 * (columns - 1), down * (0.7 + 0.32 * len(names)))
    panels = figure.subplots(down, columns, sharex=True, sharey=True, squeeze=False).flat
    for setting, axes in zip(settings, panels):
        for row in (row for row in table["rows"] if row["setting"] in (None, setting)):
            place, (low, high) = names.index(row["row"]), row["interval"] or row["seeds"][0]["interval"]
            axes.plot([low, high], [place, place], color=PALETTE[0], linewidth=5, alpha=0.35, solid_capstyle="butt")
            axes.plot([seed["value"] for seed in row["seeds"]], [place] * len(row["seeds"]), "|", color=PALETTE[0])
            axes.plot(row["mean"], place, "o", color=PALETTE[0], markersize=5)
        axes.set(xlim=(0, 1.02), title=setting)
    figure.supxlabel(f"{table['rows'][0]['metric']}, fraction right", fontsize=8, color=MUTED)
    axes.set_yticks(range(len(names)), names)
    return figure


def is_reference(row: dict, rows: list[dict]) -> bool:
    """Rows that others build on: base models, and a teacher on the way to a student."""
    length = len(row["runs"])
    return any(len(other["runs"]) > length and other["runs"][:length] == row["runs"] for other in rows)


def teacher_runs(row: dict, seed_dir: Path) -> list[str]:
    """The runs of a row that made its teacher: those before stage 2."""
    shapes = [i for i, name in enumerate(row["runs"]) if is_shape(seed_dir / name)]
    return row["runs"][:shapes[0]] if shapes else []


def is_shape(run: Path) -> bool:
    return read_json(run / "certificate.json").get("condition") == "C1"


def score_section(rows: list[dict], colours: dict, seed_dirs: list[Path]) -> str:
    """The table: each row's intervals, one a seed, and what it cost."""
    top = min(1.0, math.ceil(10 * max(seed["interval"][1] for row in rows for seed in row["seeds"]) + 1e-9) / 10)
    lines = []
    for row in rows:
        points = [(seed["value"], seed["interval"]) for seed in row["seeds"]]
        low, high = row["interval"] or points[0][1]
        score = f"<b>{row['mean']:.3f}</b><small>[{low:.3f}, {high:.3f}]</small>"
        costs = [f"{np.mean([seed[key] for seed in row['seeds']]):,.0f}" if row["runs"] else "–" for key in TOTALS]
        lines.append([escape(row["row"]), interval_plot(points, top, colours.get(row["row"], "#9aa4ae")), score, *costs,
                      f"{np.mean([seed['truncated_fraction'] for seed in row['seeds']]):.1%}"])
    head = ["", interval_axis(top), f"{rows[0]['metric']}, 95% interval", *TOTALS.values(), "cut off"]
    several = len(seed_dirs) > 1
    return f"""<h2>Scores and costs</h2>
        {html_table(head, lines, range(2, 8), ["" if row["row"] in colours else "reference" for row in rows])}
        <p class="muted">{evaluation_settings(seed_dirs[0])}  The intervals drawn are bootstrapped over problems{
        "; a line a seed, the upright their mean, with its interval over seeds beside it; costs are means" * several}.
        Grey rows are for reference: what the students began from or learnt from.  A row’s costs are those of every run
        that led to it, its teacher’s too.  Cut off: completions that reached the longest length.</p>"""


def names_of(paths: list[str]) -> str:
    return escape(", ".join(Path(path).name for path in paths))


def evaluation_settings(seed_dir: Path) -> str:
    """How the scores were sampled, as the first evaluation that is there has it."""
    for run in sorted(seed_dir.glob("eval_*")):
        args, scores = read_json(run / "args.json").get("args"), read_json(run / "scores.json")
        if args and scores:
            return (f"{scores['num_problems']:,} problems of {names_of(args['problems'])}, "
                    f"{scores['samples']} completions each, temperature {args['temperature']:g}, "
                    f"top-p {args['top_p']:g}, top-k {args['top_k'] or 'off'}, "
                    f"up to {args['max_new_tokens']:,} tokens.")
    return ""


def row_curves(row: dict, seed_dir: Path, axis: str, key: str = "eval_accuracy") -> dict[str, np.ndarray]:
    """run -> (points, 2), the row's cost so far and the metric: each run goes on at the cost of those before it."""
    curves, spent, nothing, teachers = {}, 0.0, np.empty((0, 2)), teacher_runs(row, seed_dir)
    last = nothing
    for name in row["runs"]:
        points = [[spent + line[axis], line[key]] for line in read_jsonl(seed_dir / name / "metrics.jsonl")
                  if axis in line and line.get(key) is not None]
        spent += read_json(seed_dir / name / "DONE").get(axis, 0)
        if points:
            points = np.array(points)
            curves[name] = np.concatenate([last, points if key == "eval_accuracy" else smoothed(points)])
            last = nothing if name in teachers else curves[name][-1:]               # a student is not its teacher
    return curves


def mean_curve(curves: list[np.ndarray]) -> np.ndarray:
    """The mean of the seeds' curves, of cost as of metric, at equal fractions of each run: seeds differ in length."""
    places = np.linspace(0, 1, max(map(len, curves)))
    return np.mean([[np.interp(places, np.linspace(0, 1, len(curve)), column) for column in curve.T]
                    for curve in curves], axis=0).T


def learning_section(rows: list[dict], colours: dict, seed_dirs: list[Path]) -> str:
    """Held-out accuracy while training, against each cost."""
    measured = [seed_dirs[0] / name for row in rows for name in row_curves(row, seed_dirs[0], "seconds")]
    if not measured:
        return "<h2>Learning curves</h2><p>None: these runs were not evaluated while training (--eval-problems).</p>"
    record = read_json(measured[0] / "args.json")
    args, device = record["args"], escape(str(record["versions"]["device"]))
    return f"""<h2>Learning curves</h2><p>Accuracy on {names_of(args["eval_problems"])} while training,
        {args["eval_samples"]} completions a problem at temperature {args["temperature"]:g} (the scores above have
        settings of their own, given there).  A student whose teacher had to be trained begins where that (dashed) and
        the teacher’s sampling end.  A label counts each time that it is seen; distillation sees none, so it rises
        upright.  Seconds are those of training on {device}, without these evaluations.
        {"Thin: each seed; thick: their mean." * (len(seed_dirs) > 1)}</p>
        {"".join(draw_learning(rows, colours, seed_dirs, axis) for axis in TOTALS if axis != "tokens_sampled")}"""


def length_section(rows: list[dict], colours: dict, seed_dirs: list[Path]) -> str:
    """Completion length and truncation while training."""
    plots = "".join(draw_learning(rows, colours, seed_dirs, "optimiser_steps", key)
                    for key in ("mean_length_tokens", "truncated_fraction"))
    return f"<h2>Length and truncation</h2><p>Of the completions that were trained on.</p>{plots}" if plots else ""


def draw_learning(rows: list[dict], colours: dict, seed_dirs: list[Path], axis: str, key: str = "eval_accuracy") -> str:
    """One wide plot, each curve named at its end and, in a row of several runs, each run named beside its part."""
    figure, (title, unit, is_share) = new_figure(10, 3.5), CURVES[key]
    axes, parts, ends, highest = figure.subplots(), [], [], 0.0
    for row in rows[::-1]:
        seeds, colour = [row_curves(row, seed_dir, axis, key) for seed_dir in seed_dirs], colours[row["row"]]
        names, mean = [name for name in row["runs"] if all(name in seed for seed in seeds)], None
        teachers = teacher_runs(row, seed_dirs[0])
        for name in names:
            style = {"color": colour, "linestyle": (0, (4, 2)) if name in teachers else "-"}
            for curve in [seed[name] for seed in seeds] if len(seeds) > 1 else []:
                axes.plot(*curve.T, linewidth=0.7, alpha=0.5, **style)
            mean = mean_curve([seed[name] for seed in seeds])
            axes.plot(*mean.T, linewidth=2.2, **style)
            highest = max(highest, *(seed[name][:, 1].max() for seed in seeds))
            if len(names) > 1 and mean[-1, 0] > mean[0, 0]:
                parts.append((*mean[len(mean) // 2], name, colour))
        if mean is not None:
            axes.plot(*mean[-1], "o", color=colour, markersize=5, zorder=4)
            ends.append((*mean[-1], row["row"], colour))
    if not ends:
        return ""
    right, top = max(end[0] for end in ends) or 1, 1.05 if is_share and highest > 0.3 else 1.1 * highest or 1
    axes.set(xlim=(0, 1.22 * right), ylim=(-0.02 * top, top), title=title, ylabel=unit,
             xlabel=f"{TOTALS[axis]}, of every run that led there")
    axes.locator_params("x", nbins=8, integer=True, steps=[1, 2, 5, 10])
    placed = []                                                     # (from, to, height) of what is written already
    for labels, size, weight in ((ends, 8.5, "bold"), (parts, 7.5, "normal")):
        for x, y, name, colour in sorted(labels, key=lambda label: -label[1]):
            until = x + 0.0011 * size * len(name) * right
            height = free_height(y / top - 0.05 * (x < 0.95 * right), x, until, placed)     # a curve may go on above it
            placed.append((x, until, height))
            axes.annotate(name, (x, height * top), (8, 0), textcoords="offset points", color=colour, va="center",
                          fontsize=size, fontweight=weight,
                          bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.8})
    return svg(figure, f"{title} against {TOTALS[axis]}")


def free_height(wanted: float, x: float, until: float, placed: list[tuple]) -> float:
    """The height next to the wanted one, from 0 to 1, at which a text from x to `until` lies on no other."""
    heights = sorted(np.linspace(0.02, 1, 99), key=lambda height: abs(height - wanted))
    return next((height for height in heights if all(abs(height - other) > 0.065 or until < first or last < x
                                                     for first, last, other in placed)), wanted)


def certificates_section(names: list[str], seed_dirs: list[Path]) -> str:
    """C1 of every teacher, and C2 before and after every bridge, seed by seed."""
    ranked, bridged, metrics, bounds = [], [], [], []
    for run in (seed_dir / name for name in names for seed_dir in seed_dirs):
        certificate, place = read_json(run / "certificate.json"), escape(f"{run.parent.name}/{run.name}")
        holds = "holds" if certificate.get("passed") else "does not hold"
        if certificate.get("condition") == "C1":
            within = certificate["sum"]["within_prompt_auc"]
            plot = interval_plot([(within["value"], within["interval"])], 1, PALETTE[0], certificate["min_auc"])
            ranked.append([place, plot, with_interval(within["value"], within["interval"]), holds])
        elif certificate.get("condition") == "C2":
            rows = read_jsonl(run / "metrics.jsonl")
            before = next(row for row in rows if "c2_reverse_kl_nats" in row)
            kls = [with_interval(row["c2_reverse_kl_nats"], row["c2_interval_nats"]) for row in (before, certificate)]
            bridged.append([swatch(*LINES[len(bridged) % len(LINES)]), place, *kls, f"{certificate['max_kl_nats']:g}",
                            str(certificate["optimiser_steps"]), holds])
            metrics.append(rows)
            bounds.append(certificate["max_kl_nats"])
    c1 = f"<h3>C1 of every teacher</h3>{html_table(['', interval_axis(1), 'AUC within prompts', 'C1'], ranked, (2,))}"
    head = ["", "bridge", "before", "after", "bound", "steps", "C2"]
    plots = "".join(draw_curve(metrics, key, the_one(bounds))
                    for key in ("c2_reverse_kl_nats", "forward_kl_nats") if any(series(rows, key) for rows in metrics))
    c2 = f"""<h2>C2: is the student near the teacher?</h2><p>KL(student‖teacher), nats per token [95% interval], exact
        over the vocabulary, on the student’s own rollouts to held-out prompts, before and after the bridge.</p>
        {html_table(head, bridged, range(2, 6))}<div class=grid>{plots}</div>"""
    return c1 * bool(ranked) + c2 * bool(bridged)


def seconds_by_phase(run: Path) -> dict[str, float]:
    """What a run's seconds went into, as far as it logged them apart."""
    rows, total = read_jsonl(run / "metrics.jsonl"), read_json(run / "DONE").get("seconds", 0.0)
    sampling, update = (sum(row.get(key) or 0.0 for row in rows) for key in ("sample_seconds", "train_seconds"))
    rest = "stage 2: sampling and scoring" if is_shape(run) else "measuring C2"
    return {"sampling": sampling, "scoring and update": update, rest: max(total - sampling - update, 0.0)}


def time_section(names: list[str], seed_dirs: list[Path]) -> str:
    """A bar a run, in phases; of several seeds, their mean."""
    if not names:
        return ""
    spent = {name: [seconds_by_phase(seed_dir / name) for seed_dir in seed_dirs] for name in names}
    figure = new_figure(10, 0.9 + 0.24 * len(names))
    axes, left = figure.subplots(), np.zeros(len(names))
    phases = dict.fromkeys(phase for seeds in spent.values() for seed in seeds for phase in seed)
    for phase, colour in zip(phases, PALETTE):
        seconds = np.array([np.mean([seed.get(phase, 0.0) for seed in seeds]) for seeds in spent.values()])
        if seconds.sum() > 0.005 * sum(left):
            axes.barh(names, seconds, left=left, color=colour, label=phase, height=0.7)
        left += seconds
    for place, seconds in enumerate(left):
        axes.annotate(number(float(seconds)), (seconds, place), (5, 0), textcoords="offset points", va="center")
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set(xlabel="seconds", xlim=(0, 1.08 * max(left) or 1))
    axes.legend(frameon=False, labelcolor=MUTED)
    return f"""<h2>Time by phase</h2><p>Seconds of each run{", mean over seeds" * (len(seed_dirs) > 1)}.  Scoring is
        what the teacher says to a completion, or the judge.  Loading, saving and evaluation are in none of them.</p>
        {svg(figure, "seconds of each run by phase")}"""


def runs_section(names: list[str], seed_dirs: list[Path], table: dict, out: Path) -> str:
    """Each run with what came of it, and the command for all of it."""
    runs = [seed_dir / name for seed_dir in seed_dirs for name in names if (seed_dir / name / "args.json").is_file()]
    paths = [str(run.relative_to(out)) for run in runs]
    lines = [[f"<a href='{escape(path)}/report.html'>{escape(path)}</a>", script_of(run), finding(run)]
             for path, run in zip(paths, runs)]
    return f"""<h2>Runs</h2><p>Each has a page of its own, with its curves, its samples and its exact command.</p>
        {html_table(["run", "script", "what came of it"], lines)}
        <h3>All of it again</h3><pre>{escape(table["command"])}</pre>
        <p class="muted">On a directory that is there it goes on where it stopped; --dry-run prints the commands.</p>"""


def is_run(directory: Path) -> bool:
    """Of a stage, from its first moment on."""
    return read_record(directory) is not None and (script_of(directory).startswith("stage") or any(
        (directory / name).is_file() for name in ("metrics.jsonl", "certificate.json")))


def parse_args(argv=None) -> argparse.Namespace:
    parser = FlagParser(__doc__)
    parser.add_argument("directories", metavar="DIRECTORY", type=Path, nargs="+",
                        help="a run, or the --out of reproduce.py: its report.html; or several runs: one page of all")
    parser.add_argument("--out", type=Path, help="file to write for several runs (default: report.html, here)")
    return parser.parse_args(argv)


def main(args) -> None:
    if not importlib.util.find_spec("matplotlib"):
        fail("the pages need matplotlib: pip install matplotlib")
    first, *others = args.directories
    if args.out and not others:
        fail(f"--out is for several runs; the page of one directory is {first / 'report.html'}")
    out = (args.out or Path("report.html")) if others else first / "report.html"
    for directory in args.directories:
        if not directory.is_dir():
            fail(f"{directory}: there is no such directory")
    if out.is_dir() or not out.parent.is_dir():
        fail(f"--out {out}: give a file in a directory that is there")
    is_table = not others and (first / "table.json").is_file()
    for directory in args.directories:
        if not is_table and not is_run(directory):
            fail(f"{directory}: neither the run of a stage (args.json, metrics or a certificate) nor, alone, a table")
    try:
        if others:
            write_runs_page(args.directories, out)
        else:
            write_table_page(first) if is_table else write_run_page(first)
            write_card(first)
    except NotJson as error:
        fail(f"{error}; mend it or delete it")
    print(out)


if __name__ == "__main__":
    main(parse_args())
