"""The pages that people read: RUN/report.html for a run, OUT/report.html for a table of reproduce.py.

Each is one self-contained file: plots as inline SVG, no script, nothing from the network.  Every figure on it comes
from the files of the directory.  Needs matplotlib; the stages and reproduce.py do without it where it is missing.

    python report.py runs/teacher      writes the page of a run anew (any stage)
    python report.py runs/main         writes the page of a table anew, and the pages of its runs that have none
"""
import importlib.util
import io
import json
import math
import os
import re
from html import escape
from pathlib import Path

import numpy as np

from common import FlagParser
from engine.files import read_jsonl, write_text
from engine.ranks import fail, rank, say

TOTALS = {"optimiser_steps": "optimiser steps", "labels_seen": "labels seen", "tokens_sampled": "tokens sampled",
          "seconds": "seconds"}
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

INK, MUTED, RULE = "#1c2530", "#66717e", "#dde2e7"
PALETTE = ["#0072b2", "#c08a00", "#d55e00", "#00805e", "#a8578a", "#3d98cf"]    # colour-blind readers tell these apart
POSITIVE, NEGATIVE = (96, 168, 220), (240, 146, 84)                             # of the dense reward, under dark text

STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "report", "font.size": 8, "lines.linewidth": 1.6, "text.color": INK,
    "axes.titlesize": 9, "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.edgecolor": "#aab3bd",
    "axes.labelcolor": MUTED, "axes.linewidth": 0.7, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "axes.axisbelow": True, "grid.color": "#edf0f3", "grid.linewidth": 0.7,
    "xtick.color": MUTED, "ytick.color": MUTED, "xtick.major.width": 0.7, "ytick.major.width": 0.7}

CSS = """
@page{margin:14mm} *{box-sizing:border-box}
body{max-width:1000px;margin:40px auto 64px;padding:0 20px;color:#1c2530;background:#fff;print-color-adjust:exact;
 font:15px/1.55 system-ui,-apple-system,"Segoe UI","Helvetica Neue",Arial,sans-serif;-webkit-print-color-adjust:exact}
h1{font-size:26px;line-height:1.2;margin:0 0 10px} h3{font-size:14px;margin:18px 0 6px}
h2{font-size:18px;margin:44px 0 10px;padding-top:14px;border-top:1px solid #dde2e7}
p{margin:8px 0;max-width:840px} a{color:#00609a} .lead{font-size:18px;line-height:1.5;max-width:none}
.muted,.kicker,footer{color:#66717e;font-size:13px} .kicker{margin:0 0 4px}
.tiles{display:flex;flex-wrap:wrap;gap:10px 44px;margin:18px 0} .tiles b{display:block;font-size:22px;line-height:1.2}
.tiles span{color:#66717e;font-size:13px} svg{display:block} svg text{font-family:inherit!important}
figure{margin:14px 0;break-inside:avoid} figure svg{width:100%;height:auto} .grid figure{margin:0}
.grid{display:grid;gap:18px 20px;grid-template-columns:repeat(3,1fr)}
.two{display:grid;gap:0 26px;grid-template-columns:repeat(2,minmax(0,1fr))}
table{border-collapse:collapse;width:100%;font-size:14px;margin:12px 0}
th,td{padding:6px 16px 6px 0;border-bottom:1px solid #e9edf0;text-align:left} td svg,th svg{overflow:visible}
th{font-size:12.5px;line-height:1.3;color:#66717e;vertical-align:bottom} tr{break-inside:avoid}
.n{text-align:right;font-variant-numeric:tabular-nums} td.n{white-space:nowrap} tr>:last-child{padding-right:0}
tr.reference td{color:#7d8792} td small{color:#66717e;display:block;line-height:1.35}
pre,code,.tokens{font:12.5px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,"Liberation Mono",monospace}
pre{background:#f6f8f9;border-radius:4px;padding:8px 10px;margin:4px 0 12px;max-height:260px;overflow:auto}
pre i{font-style:normal;color:#66717e} pre,.tokens{white-space:pre-wrap;overflow-wrap:anywhere}
.flags{columns:3;font-size:12.5px;padding:0;list-style:none} .flags li{break-inside:avoid;overflow-wrap:anywhere}
.rollout{display:grid;grid-template-columns:140px minmax(0,1fr);gap:0 14px;padding:5px 0;break-inside:avoid}
.rollout .says{font-size:13px;line-height:1.35} .rollout pre{margin:14px 0 0} .prompt{padding-top:14px}
.tokens{line-height:1.75;max-height:420px;overflow:auto} .tokens span{border-radius:2px;padding:1px 0}
.tokens.short span{display:inline-block;white-space:pre;text-align:center;min-width:38px;margin:0 2px 4px 0;
 padding:3px 4px 2px;line-height:1.25;border:1px solid #e6eaee}
.tokens small{display:block;font-size:10px;color:#3c4753}
.scale{height:12px;border-radius:2px;width:340px}
.ticks{display:flex;justify-content:space-between;width:340px;font-size:12px;color:#66717e}
footer{margin-top:48px;padding-top:12px;border-top:1px solid #dde2e7}
@media (max-width:700px){.grid,.two,.rollout{grid-template-columns:1fr}.flags{columns:1}}
@media (prefers-color-scheme:dark){body{background:#14181c;color:#e3e7eb}a{color:#6cb6f0}pre{background:#1d2329}
 th,td,h2,footer{border-color:#333c45}figure svg,td svg,th svg{filter:invert(.92) hue-rotate(180deg)}
 .tokens span{color:#14181c}}
@media print{body{margin:0;font-size:12px}pre,.tokens{max-height:none}h2,h3{break-after:avoid}}
"""

# ---------------------------------------------------------------- small parts


def read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def number(value) -> str:
    """A figure for people: thousands separated, else three digits."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:,.0f}" if isinstance(value, int) or abs(value) >= 100 else f"{value:.3g}"


def with_interval(value, interval) -> str:
    if value is None or interval[0] is None:
        return "not defined"
    return f"{value:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def model_text(text: str, longest: int = 4000) -> str:
    """What a model wrote or read: escaped, and cut where it is very long."""
    return escape(text if len(text) <= longest else text[:longest] + " …")


def page(title: str, kicker: str, sections: list[str], directory: Path) -> str:
    newline = "\n"
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{escape(title)}</title><style>{CSS}</style></head><body>
<p class="kicker">{escape(kicker)}</p><h1>{escape(title)}</h1>
{newline.join(sections)}
<footer>Every figure here was read from the files of this directory.  This page anew:
<code>python report.py {escape(str(directory))}</code></footer></body></html>
"""


def html_table(head: list[str], rows: list[list[str]], numeric=(), classes=()) -> str:
    """Cells are HTML already; `numeric` columns are set flush right."""
    def line(cells: list[str], tag: str) -> str:
        return "".join(f"<{tag}{' class=n' * (i in numeric)}>{cell}</{tag}>" for i, cell in enumerate(cells))
    classes = classes or [""] * len(rows)
    body = "\n".join(f"<tr class='{name}'>{line(cells, 'td')}</tr>" for cells, name in zip(rows, classes))
    return f"<table><thead><tr>{line(head, 'th')}</tr></thead>\n<tbody>{body}</tbody></table>"


def new_figure(width: float, height: float):
    """-> a matplotlib figure, in inches.  Imported here: the stages do without where it is missing."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams.update(STYLE)
    return Figure(figsize=(width, height), layout="constrained")


def svg(figure, label: str) -> str:
    """Inline SVG as wide as its place on the page; its text is text, in the page's font."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = file.getvalue()
    text = re.sub(r' (width|height)="[\d.]+pt"', "", text[text.index("<svg"):], count=2)
    return f"<figure>{text.replace('<svg', f'<svg role=img aria-label={json.dumps(escape(label))}', 1)}</figure>"


def interval_plot(points: list[tuple], top: float, colour: str, threshold: float | None = None) -> str:
    """A line for each (value, interval), on an axis from 0 to `top`; of several, a tall tick marks the mean."""
    def line(low, high, y1, y2, style):
        return f"<line x1='{4 + 202 * low / top:.1f}' x2='{4 + 202 * high / top:.1f}' y1='{y1}' y2='{y2}' {style}/>"
    points = [(value, interval) for value, interval in points if value is not None and interval[0] is not None]
    height = 12 * max(len(points), 1) + 8
    parts = [line(tick, tick, 0, height, f"stroke='{RULE}'") for tick in np.linspace(0, top, 6)]
    if threshold is not None:
        parts.append(line(threshold, threshold, 0, height, f"stroke='{INK}' stroke-dasharray='3 2'"))
    for y, (value, (low, high)) in zip(range(10, height, 12), points):
        parts.append(line(low, high, y, y, f"stroke='{colour}' stroke-width='5' stroke-opacity='.4'"))
        parts.append(f"<circle cx='{4 + 202 * value / top:.1f}' cy='{y}' r='2.5' fill='{colour}'/>")
    if len(points) > 1:
        mean = float(np.mean([value for value, _ in points]))
        parts.append(line(mean, mean, 2, height - 2, f"stroke='{colour}' stroke-width='2'"))
    return f"<svg width='210' height='{height}'>{''.join(parts)}</svg>"


def interval_axis(top: float) -> str:
    """The numbers above a column of interval_plot."""
    style = f"y='11' font-size='11' text-anchor='middle' fill='{MUTED}'"
    texts = [f"<text x='{4 + 202 * tick / top:.1f}' {style}>{tick:.2g}</text>" for tick in np.linspace(0, top, 6)]
    return f"<svg width='210' height='14'>{''.join(texts)}</svg>"


# ---------------------------------------------------------------- what stage 2 writes for its page


def write_samples(path: Path, rows: list[dict], tokenizer, count: int = 8) -> None:
    """samples.jsonl: a few rollouts as text.  rows: stage 2's, one a rollout."""
    write_text(path, "".join(json.dumps({
        "step": 0, "prompt": tokenizer.decode(row["prompt_ids"]), "completion": tokenizer.decode(row["completion_ids"]),
        "finished": row["finished"], "reward": row["reward"]}) + "\n" for row in rows[:count]))


def write_dense_rewards(path: Path, rows: list[dict], tokenizer, samples_per_prompt: int, count: int = 8) -> None:
    """dense_rewards.jsonl: each token of a right and a wrong completion beside its reward, nats.

    The rule: in the problems' order, but those with both outcomes first; of each the first completion of an outcome.
    """
    groups = [rows[start:start + samples_per_prompt] for start in range(0, len(rows), samples_per_prompt)]
    groups.sort(key=lambda group: len({row["reward"] for row in group}), reverse=True)
    lines = []
    for group in groups[:count]:
        for row in {row["reward"]: row for row in reversed(group)}.values():
            lines.append(json.dumps({
                "prompt": tokenizer.decode(row["prompt_ids"]), "reward": row["reward"],
                "tokens": [tokenizer.decode([token]) for token in row["completion_ids"]],
                "dense_rewards_nats": row["dense_rewards_nats"],
                "implicit_reward_nats": row["implicit_reward_nats"]}) + "\n")
    write_text(path, "".join(lines))


# ---------------------------------------------------------------- the page of a run


def draw_page(run: Path) -> None:
    """The last line of a stage: RUN/report.html, if matplotlib is there.  A page that cannot be drawn costs no run."""
    if rank() == 0 and importlib.util.find_spec("matplotlib"):
        try:
            write_run_page(run)
        except Exception as error:
            say(f"{run}: no report.html ({type(error).__name__}: {error}); `python report.py {run}` tries again")


def write_run_page(run: Path) -> None:
    """RUN/report.html, from as many of a run's files as there are."""
    record, rows = read_json(run / "args.json"), read_jsonl(run / "metrics.jsonl")
    totals = read_json(run / "DONE") or (rows[-1] if rows else {})        # without DONE, so far
    tiles = "".join(f"<div><b>{number(totals[key])}</b><span>{name}</span></div>"
                    for key, name in TOTALS.items() if key in totals)
    sections = [f"<p class='lead'>{finding(run)}</p><div class='tiles'>{tiles}</div>",
                certificate_section(read_json(run / "certificate.json")),
                curves_section(rows, record.get("args", {})), dense_rewards_section(run),
                samples_section(read_jsonl(run / "samples.jsonl")), origin_section(run, record)]
    write_text(run / "report.html", page(run.resolve().name, f"A run of {script_of(run)}", sections, run))


def script_of(run: Path) -> str:
    """Which script wrote this run directory: stage1_grpo.py, …"""
    return Path(read_json(run / "args.json").get("command", "").split(".py")[0]).name + ".py"


def series(rows: list[dict], key: str) -> list[tuple]:
    """(step, value) wherever the metric was logged and is finite."""
    return [(row["step"], row[key]) for row in rows if row.get(key) is not None and math.isfinite(row[key])]


def finding(run: Path) -> str:
    """What came of a run, in a sentence or two."""
    certificate, rows, sentences = read_json(run / "certificate.json"), read_jsonl(run / "metrics.jsonl"), []
    if words := {"C1": c1_in_words, "C2": c2_in_words}.get(certificate.get("condition")):
        holds = f"{certificate['condition']} {'holds' if certificate['passed'] else 'does not hold'}"
        sentences.append(escape(words(certificate)).replace(holds, f"<b>{holds}</b>", 1) + ".")
    for key, name, unit in (("reward_mean", "Mean reward", ""), ("reverse_kl_nats", "Reverse KL", " nats per token"),
                            ("eval_accuracy", "Held-out accuracy", "")):
        if points := series(rows, key):
            (first, before), (last, after) = points[0], points[-1]
            change = "rose" if after > before else "fell" if after < before else "did not change"
            since = f"{change} from {number(before)} at step {first} to" if len(points) > 1 else "was"
            sentences.append(f"{name} {since} {number(after)}{unit} at step {last}.")
    return " ".join(sentences) or "This run logged nothing that tells how it went."


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
        return f"C1 holds: the teacher's log-ratio ranks right above wrong completions ({figures})"
    return (f"C1 does not hold ({figures}; the lower end must exceed {certificate['min_auc']}): RL has not shaped this "
            "teacher towards the reward, so its dense reward would teach the student style but not to be right")


def c2_in_words(certificate: dict) -> str:
    """The certificate of stage 3 in one sentence."""
    bound, interval = certificate["max_kl_nats"], certificate.get("c2_interval_nats", [None, None])
    spans = " (the interval spans it)" if None not in interval and interval[0] <= bound < interval[1] else ""
    return (f"C2 {'holds' if certificate['passed'] else 'does not hold'} after {certificate['optimiser_steps']:,} "
            "optimiser steps: KL(student || teacher) on the student's own rollouts is "
            f"{with_interval(certificate['c2_reverse_kl_nats'], interval)} nats per token, against a bound of "
            f"{bound:g}{spans}" + ("" if certificate["passed"] else "; stage 4 refuses this run"))


def certificate_section(certificate: dict) -> str:
    """The certificate in figures; the page's first sentence says whether it holds."""
    if certificate.get("condition") == "C2":
        figures = {key: number(certificate.get(key)) for key in
                   ("max_kl_nats", "c2_tokens", "c2_prompts", "forward_kl_on_teacher_rollouts_nats")}
        interval = certificate.get("c2_interval_nats", [None, None])
        return f"""<h2>Certificate C2</h2><p>Is the student near the teacher where the student goes?  C2 holds if
            KL(student‖teacher), exact over the vocabulary, is at most {figures["max_kl_nats"]} nats per token on fresh
            rollouts of the student.  It is {with_interval(certificate["c2_reverse_kl_nats"], interval)} (95% interval
            over prompts), on {figures["c2_tokens"]} tokens of {figures["c2_prompts"]} prompts.  KL(teacher‖student) on
            the teacher’s rollouts, which the bridge minimises, is
            {figures["forward_kl_on_teacher_rollouts_nats"]}; a small one does not imply the other.</p>"""
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
        lies above {certificate["min_auc"]:g} (dashed).  A teacher equal to its reference gives 0.5.</p>{table}"""


def curves_section(rows: list[dict], flags: dict) -> str:
    figures = [draw_curve(rows, key, flags.get("max_kl")) for key in CURVES if series(rows, key)]
    caption = "<p class='muted'>Pale: each step.  Strong: the mean of a sliding tenth of the run.</p>"
    caption *= any(len(series(rows, key)) >= 60 for key in CURVES)
    return f"<h2>Curves</h2>{caption}<div class='grid'>{''.join(figures)}</div>" if figures else ""


def draw_curve(rows: list[dict], key: str, max_kl: float | None) -> str:
    """One small plot.  Values that are not finite are left out, and counted below it."""
    (title, unit, is_share), points = CURVES[key], series(rows, key)
    steps, values = np.array(points, dtype=float).T
    figure = new_figure(3.3, 2.1)
    axes, tenth = figure.subplots(), len(points) // 10
    if len(points) < 60:
        axes.plot(steps, values, color=PALETTE[0], marker="o" if len(points) <= 20 else None, markersize=3)
    else:
        axes.plot(steps, values, color=PALETTE[0], alpha=0.35, linewidth=0.8)
        window = np.ones(tenth) / tenth
        axes.plot(*(np.convolve(column, window, "valid") for column in (steps, values)), color=PALETTE[0])
    highest = values.max()
    if key == "c2_reverse_kl_nats":
        for row in rows:
            if None not in (bounds := row.get("c2_interval_nats", [None])):
                axes.plot([row["step"]] * 2, bounds, color=PALETTE[0], alpha=0.45, linewidth=3)
                highest = max(highest, bounds[1])
        if max_kl is not None:
            axes.axhline(max_kl, color=INK, linestyle=(0, (4, 3)), linewidth=1)
            axes.annotate(f"bound {max_kl:g}", (0.02, max_kl), xycoords=("axes fraction", "data"), xytext=(0, 3),
                          textcoords="offset points", fontsize=7.5)
            highest = max(highest, max_kl)
    use_log = not is_share and bool(0 < 30 * values.min() < values.max())
    if use_log:
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter("")
    else:
        axes.set_ylim(min(-0.03 * is_share, values.min()), 1.06 if is_share else 1.1 * highest if highest > 0 else 1)
    if len(points) == 1:
        axes.set_xlim(steps[0] - 1, steps[0] + 1)
    axes.locator_params("x", nbins=5, integer=True, steps=[1, 2, 5, 10])
    lost = sum(key in row for row in rows) - len(points)
    axes.set(title=title, ylabel=unit + ", log scale" * use_log,
             xlabel="optimiser step" + f" ({lost} not finite)" * (lost > 0))
    axes.annotate(number(values[-1]), (1, 1.02), xycoords="axes fraction", ha="right", va="bottom", color=PALETTE[0])
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
    facts = {"started": record.get("started"), "git commit": (record.get("git_commit") or "")[:12],
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
    rows = [row for row in rows if all((seed_dir / name).is_dir() for seed_dir in seed_dirs for name in row["runs"])]
    trained = [row for row in rows if not is_reference(row, rows)] or rows
    colours = dict(zip([row["row"] for row in trained[::-1]], PALETTE * len(trained)))
    names = list(dict.fromkeys(name for row in rows for name in row["runs"]))
    for run in (seed_dir / name for seed_dir in seed_dirs for name in names):
        if (run / "args.json").is_file() and not (run / "report.html").is_file():
            write_run_page(run)
    shaped = [row["runs"][len(teachers)] for row in rows if (teachers := teacher_runs(row, seed_dirs[0]))]
    sentences = "".join(f"<li>{escape(ordering['sentence'])}</li>" for ordering in table["orderings"])
    figure = (out / "figure.svg").read_text(encoding="utf-8") if (out / "figure.svg").is_file() else ""
    sections = [f"<p class='lead'>{escape(table['about'])}</p><figure>{figure}</figure><ul>{sentences}</ul>",
                f"<h2>At one setting: {escape(chosen)}</h2>" if len(settings) > 1 else "",
                score_section(rows, colours, seed_dirs), learning_section(trained, colours, seed_dirs),
                dense_rewards_section(seed_dirs[0] / shaped[0]) if shaped else "",
                runs_section(names, seed_dirs, table, out)]
    title = f"{capital(table['table'])} table, {table['scale']} scale"
    write_text(out / "report.html", page(title, "Sparse-to-dense reward post-training", sections, out))


def write_table_figure(out: Path) -> None:
    """OUT/figure.svg: accuracy over labels with bands, or each row's score with its interval, a panel a setting."""
    table = read_json(out / "table.json")
    figure = labels_figure(table) if len({scope["labels"] for scope in table["scopes"]}) > 1 else rows_figure(table)
    write_text(out / "figure.svg", svg(figure, table["about"]).removeprefix("<figure>").removesuffix("</figure>"))


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
    shapes = [i for i, name in enumerate(row["runs"]) if script_of(seed_dir / name) == "stage2_shape.py"]
    return row["runs"][:shapes[0]] if shapes else []


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


def names_of(paths: str | list[str]) -> str:
    return escape(", ".join(Path(path).name for path in ([paths] if isinstance(paths, str) else paths)))


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


def row_curves(row: dict, seed_dir: Path, axis: str) -> dict[str, np.ndarray]:
    """run -> (points, 2), the row's cost so far and the accuracy: each run goes on at the cost of those before it."""
    curves, spent, last = {}, 0.0, []
    for name in row["runs"]:
        points = [[spent + line[axis], line["eval_accuracy"]] for line in read_jsonl(seed_dir / name / "metrics.jsonl")
                  if axis in line and line.get("eval_accuracy") is not None]
        spent += read_json(seed_dir / name / "DONE").get(axis, 0)
        if points:
            curves[name] = np.array(last + points)
            last = [] if name in teacher_runs(row, seed_dir) else points[-1:]    # a student is not its teacher
    return curves


def mean_curve(curves: list[np.ndarray]) -> np.ndarray:
    """The mean of the seeds' curves, of cost as of accuracy, at equal fractions of each run: seeds differ in length."""
    if len(curves) == 1:
        return curves[0]
    grids = [np.linspace(curve[0, 0], curve[-1, 0], 200) for curve in curves]
    return np.mean([[grid, np.interp(grid, *curve.T)] for grid, curve in zip(grids, curves)], axis=0).T


def learning_section(rows: list[dict], colours: dict, seed_dirs: list[Path]) -> str:
    """Held-out accuracy while training, against optimiser steps and against seconds."""
    measured = [seed_dirs[0] / name for row in rows for name in row_curves(row, seed_dirs[0], "seconds")]
    if not measured:
        return "<h2>Learning curves</h2><p>None: these runs were not evaluated while training (--eval-problems).</p>"
    record = read_json(measured[0] / "args.json")
    args, device = record["args"], escape(str(record["versions"]["device"]))
    return f"""<h2>Learning curves</h2><p>Accuracy on {names_of(args["eval_problems"])} while training,
        {args["eval_samples"]} completions a problem at temperature {args["temperature"]:g} (the scores above have
        settings of their own, given there).  A student whose teacher had to be trained begins where that (dashed) and
        the teacher’s sampling end.  Seconds are those of training on {device}, without these evaluations.
        {"Thin: each seed; thick: their mean." * (len(seed_dirs) > 1)}</p>
        {draw_learning(rows, colours, seed_dirs, "optimiser_steps")}
        {draw_learning(rows, colours, seed_dirs, "seconds")}"""


def draw_learning(rows: list[dict], colours: dict, seed_dirs: list[Path], axis: str) -> str:
    """One wide plot, each curve named at its end and, in a row of several runs, each run named beside its part."""
    figure = new_figure(10, 3.5)
    axes, ends = figure.subplots(), []
    for row in rows[::-1]:
        seeds, colour = [row_curves(row, seed_dir, axis) for seed_dir in seed_dirs], colours[row["row"]]
        names, mean = [name for name in row["runs"] if all(name in seed for seed in seeds)], None
        for name in names:
            style = {"color": colour, "linestyle": (0, (4, 2)) if name in teacher_runs(row, seed_dirs[0]) else "-"}
            for curve in [seed[name] for seed in seeds] if len(seeds) > 1 else []:
                axes.plot(*curve.T, linewidth=0.7, alpha=0.5, **style)
            mean = mean_curve([seed[name] for seed in seeds])
            axes.plot(*mean.T, linewidth=2.2, **style)
            if len(names) > 1:
                axes.annotate(name, mean[len(mean) // 2], (8, -10), textcoords="offset points", color=colour,
                              fontsize=7.5,
                              bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8})     # it may lie on a curve
        if mean is not None:
            axes.plot(*mean[-1], "o", color=colour, markersize=5)
            ends.append((*mean[-1], row["row"], colour))
    right, height = max((end[0] for end in ends), default=1), 1.09
    axes.set(xlim=(0, 1.22 * right), ylim=(0, 1.05), ylabel="accuracy, fraction right",
             xlabel=f"{TOTALS[axis]}, of every run that led there")
    axes.locator_params("x", nbins=8, integer=True, steps=[1, 2, 5, 10])
    for place, (x, y, name, colour) in enumerate(sorted(ends, key=lambda end: -end[1])):
        above, below = 0.04 * (place == 0), 0.05 * (0 < place and x < 0.95 * right)
        height = min(y + above - below, height - 0.07)                      # from the top, each clear of the last
        axes.annotate(name, (x, height), (8, 0), textcoords="offset points", color=colour, va="center", fontsize=8.5,
                      fontweight="bold")
    return svg(figure, f"accuracy against {TOTALS[axis]}")


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


def main(directory: Path) -> None:
    if not importlib.util.find_spec("matplotlib"):
        fail("the pages need matplotlib: pip install matplotlib")
    is_run = any((directory / name).is_file() for name in ("metrics.jsonl", "certificate.json"))
    if (directory / "table.json").is_file():
        write_table_page(directory)
    elif is_run and (directory / "args.json").is_file():
        write_run_page(directory)
    else:
        fail(f"{directory}: neither a table (table.json) nor the run of a stage (args.json, metrics or a certificate)")
    print(directory / "report.html")


if __name__ == "__main__":
    parser = FlagParser(__doc__)
    parser.add_argument("directory", type=Path, help="a run, or the --out of reproduce.py")
    main(parser.parse_args().directory)
