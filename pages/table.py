"""The page of a table, OUT/report.html, and its figure, OUT/figure.svg."""
import math
from html import escape
from pathlib import Path

import numpy as np

import pages.run
from engine.files import read_json, read_jsonl, write_text
from pages.card import script_of
from pages.parts import (
    LINES, MUTED, PALETTE, html_table, interval_axis, interval_plot, new_figure, number, page, svg, swatch,
    with_interval,
)
from pages.run import (
    CURVES, TOTALS, certificate_section, dense_rewards_section, draw_curve, finding, series, smoothed, the_one,
)

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
            pages.run.write_run_page(run)
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
