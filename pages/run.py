"""The page of a run, RUN/report.html, and a page of several runs side by side."""
import importlib.util
import math
import os
import time
from html import escape
from itertools import cycle
from pathlib import Path

import numpy as np

from engine.files import read_json, read_jsonl, read_record, write_text
from engine.ranks import rank, say
from engine.runs import short_commit
from pages.card import COSTS, certificate_in_words, script_of, write_card
from pages.parts import (
    LINES, MUTED, PALETTE, WIDE, curves_svg, html_table, intervals_svg, new_figure, number, page, svg, swatch,
    with_interval,
)

TOTALS = COSTS | {"seconds": "seconds"}
PHASES = {"sample_seconds": "of them sampling", "train_seconds": "scoring and update"}
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


def model_text(text: str, longest: int = 4000) -> str:
    """What a model wrote or read: escaped, and cut where it is very long."""
    return escape(text if len(text) <= longest else text[:longest] + " …")


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
    totals |= {key: sum(row.get(key) or 0.0 for row in rows) for key in PHASES if any(key in row for row in rows)}
    tiles = "".join(f"<div><b>{number(totals[key])}</b><span>{name}</span></div>"
                    for key, name in (TOTALS | PHASES).items() if key in totals)
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
    bounds = {read_json(run / "args.json").get("args", {}).get("max_kl") for run in runs} - {None}
    curves = curves_section(metrics, bounds.pop() if len(bounds) == 1 else None)
    sections = [html_table(["", "run", "script", "state", "what came of it"], lines),
                curves or "<p>None of them has logged a step yet.</p>"]
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
    """C1 in figures.  What C2 comes to is in the page's first sentence and among its curves."""
    certificate = read_json(run / "certificate.json")
    if certificate.get("condition") != "C1":
        return ""
    lines = []
    for variant, per in (("sum", "summed"), ("per_token", "mean per token")):
        for kind, where in (("within_prompt_auc", "within prompts"), ("pooled_auc", "pooled")):
            value, interval, prompts = (certificate[variant][kind][key] for key in ("value", "interval", "prompts"))
            text = f"{where}, {per}: {with_interval(value, interval)}, {prompts:,} prompts"
            lines.append((text, PALETTE[0], [(value, text)] if value is not None else [], interval))
    return f"""<h2>Certificate C1</h2><div class=two><p>Does the implicit reward R, the teacher’s log-ratio to its
        reference, rank right above wrong completions of the same prompt?  Ranked were
        {certificate["samples_per_prompt"]} completions of each of {certificate["num_prompts"]:,} prompts, sampled from
        the {escape(certificate.get("certified_on", "teacher"))} ({escape(f"{run.parent.name}/{run.name}")});
        {certificate["accuracy"]:.1%} are right, and R is
        {number(certificate["mean_implicit_reward_nats"])} nats on average.  C1 holds if the interval in the first row
        lies above {certificate["min_auc"]:g} (dashed).  A teacher equal to its reference gives 0.5.  The AUC is the
        chance that a right completion’s R exceeds a wrong one’s: of all completions, or of two of the same prompt,
        averaged over prompts, which is what C1 is about.</p>{intervals_svg(lines, "AUC of R", certificate["min_auc"])}
        {draw_implicit_rewards(read_jsonl(run / "implicit_rewards.jsonl"), certificate)}</div>"""


def draw_implicit_rewards(rows: list[dict], certificate: dict) -> str:
    """How R lies over right and over wrong completions: all of them, and each beside its prompt's mean.

    The outermost bars hold what lies beyond.
    """
    groups = [(np.array(row["implicit_reward_nats"]), np.array(row["reward"]) > 0) for row in rows]
    mixed = [(scores - scores.mean(), right) for scores, right in groups if len(set(right)) > 1]
    plots, auc = "", certificate["sum"]
    for parts, title, unit, area in (
            (groups, "All completions", "R, nats", auc["pooled_auc"]),
            (mixed, "Of prompts with both outcomes", "R less its prompt’s mean, nats", auc["within_prompt_auc"])):
        if not parts:
            continue
        figure = new_figure(WIDE, 2.2)
        axes, (scores, right) = figure.subplots(), map(np.concatenate, zip(*parts))
        low, high = np.percentile(scores, (0.5, 99.5))
        low, high = (low, high) if high > low else (low - 1, high + 1)
        bins, scores = np.linspace(low, high, 41), scores.clip(low, high)
        for name, those, colour in (("wrong", ~right, PALETTE[2]), ("right", right, PALETTE[0])):
            share = np.full(those.sum(), 1 / max(those.sum(), 1))
            axes.hist(scores[those], bins, weights=share, color=colour, alpha=0.4, label=f"{name}: {those.sum():,}")
            axes.hist(scores[those], bins, weights=share, color=colour, histtype="step", linewidth=1.2)
        axes.set(title=f"{title}: AUC {number(area['value'])}", xlabel=unit, ylabel="share of each kind")
        axes.legend(frameon=False, labelcolor=MUTED)
        plots += svg(figure, f"{title}: R of the right and of the wrong")
    return plots


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
    (title, unit, is_share), is_c2, lines, lost = CURVES[key], key == "c2_reverse_kl_nats", [], 0
    for rows, (colour, dash) in zip(runs, cycle(LINES)):
        if not (points := np.array(series(rows, key), dtype=float)).size:
            continue
        lost += sum(key in row for row in rows) - len(points)
        if len(points) >= 60:
            pale = {"alpha": 0.35 if len(runs) == 1 else 0.15, "linewidth": 0.8}
            lines.append((points, {"color": colour, **pale}, "", ""))
        style = {"color": colour, "linestyle": dash, "marker": "o" if len(points) <= 20 else None, "markersize": 3}
        lines.append((smoothed(points), style, "", "step"))
        for row in rows * is_c2:
            if None not in row.get("c2_interval_nats", [None]):
                bounds = np.array([[row["step"], bound] for bound in row["c2_interval_nats"]])
                lines.append((bounds, {"color": colour, "alpha": 0.45, "linewidth": 3}, "", ""))
    return curves_svg(lines, title, "optimiser step" + f" ({lost} not finite)" * (lost > 0), unit, 3.3, is_share,
                      bound=max_kl if is_c2 else None,
                      last=number(series(runs[0], key)[-1][1]) if len(runs) == 1 else "")


def verdict_of(reward) -> str:
    return "not graded" if reward is None else "✓ right" if reward > 0 else "✗ wrong"


def samples_section(rows: list[dict]) -> str:
    """Rollouts from early and late in training, at most two of each verdict."""
    half, columns = len(rows) // 2, ""
    for name, part in (("First ones logged", rows[:half]), ("Last ones logged", rows[half:][::-1])):
        verdicts, cards = [verdict_of(row.get("reward")) for row in part], ""
        for i, (row, verdict) in enumerate(zip(part, verdicts)):
            if verdicts[:i].count(verdict) < 2:
                cut_off = "(cut at the longest length)" * (row.get("finished") is False)
                cards += f"""<p class="muted">step {row["step"]}, <b>{verdict}</b> {cut_off}</p>
                    <pre><i>{model_text(row["prompt"], 1500)}</i>\n{model_text(row["completion"])}</pre>"""
        columns += f"<div><h3>{name}</h3>{cards}</div>" * bool(cards)
    return f"<h2>Samples</h2><div class='two'>{columns}</div>" if rows else ""


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
    blocks = ""
    for prompt in prompts:
        blocks += f"""<div class="rollout"><div class="says prompt muted">prompt</div>
            <pre>{model_text(prompt, 1500)}</pre></div>"""
        group = [row for row in rows if row["prompt"] == prompt]
        blocks += "".join(coloured_rollout(row, limit) for row in sorted(group, key=lambda row: -row["reward"]))
    return f"""<h2>The teacher’s dense reward</h2><p>Completions sampled from the {sampler}, each token coloured by
        log π<sub>T*</sub> − log π<sub>ref</sub>.  <b>Blue</b>: after what stands before it, the shaped teacher finds
        this token likelier than its reference does; <b>orange</b>: less likely; white: as likely.  Their sum is the
        completion’s implicit reward R, and C1 holds if right completions have the larger R.  The teacher’s RL was told
        one bit for each answer; this is the number for each token that it made of it.  {tells}  Shown are the first
        prompts of C1’s on which completions came out both ways, with the first right and the first wrong one.</p>
        {colour_legend(limit)}{blocks}"""


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


def is_run(directory: Path) -> bool:
    """Of a stage, from its first moment on."""
    return read_record(directory) is not None and (script_of(directory).startswith("stage") or any(
        (directory / name).is_file() for name in ("metrics.jsonl", "certificate.json")))
