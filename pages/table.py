"""A table for people: OUT/table.md, OUT/figure.svg and the page OUT/report.html, all from OUT/table.json."""
import importlib.util
import math
from html import escape
from pathlib import Path

import numpy as np

import pages.run
from engine.files import read_json, read_jsonl, write_json, write_text
from engine.runs import short_commit
from pages.card import script_of
from pages.parts import (
    INK, LINES, MUTED, PALETTE, arm_boxes, draw_intervals, html_table, intervals_figure, mark, new_figure, number,
    page, svg, swatch, wide_svg, with_interval,
)
from pages.run import (
    CURVES, TOTALS, certificate_section, dense_rewards_section, draw_curve, finding, series, smoothed, the_one,
)
from pages.statistics import counted, describe, share_interval, students

GREY = "#7d8792"            # of rows that are for reference


def write_table_files(out: Path) -> None:
    """table.json with its statistics, table.md and, if matplotlib is there, figure.svg and report.html.

    figure.svg has a white ground of its own, since others show it on black.
    """
    table = describe(read_json(out / "table.json"))
    write_json(out / "table.json", table)
    write_text(out / "table.md", markdown(table))
    if importlib.util.find_spec("matplotlib"):
        text = svg(table_figure(table, False), table["about"]).replace("<svg", "<svg style='background:#fff'", 1)
        write_text(out / "figure.svg", text[text.index("<svg"):].removesuffix("</figure>"))
        write_table_page(table, out)


def settings_of(table: dict) -> list[str]:
    return list(dict.fromkeys(row["setting"] for row in table["rows"] if row["setting"])) or [""]


def colours_of(table: dict) -> dict[str, str]:
    """row -> its colour, everywhere; grey for base models and for a teacher on the way to a student."""
    trained = students(table["rows"])
    colours = dict(zip(trained[::-1], PALETTE * len(trained)))
    return {row["row"]: colours.get(row["row"], GREY) for row in table["rows"]}


# ---------------------------------------------------------------- table.md


def markdown(table: dict) -> str:
    """A line a row or, if the table goes through settings, a line a setting; then the tests, and what units share."""
    settings, unit, rows = settings_of(table), table["unit"], table["rows"]
    units = max(row["units"] for row in rows)
    so_far = "" if table.get("finished", True) else ", so far"
    labels = {row["labels"] for row in rows} - {None}
    title = f"{table['table']}, {table['scale']} scale{f', {labels.pop()} labels' if len(labels) == 1 else ''}{so_far}"
    over = f"median and mean over {counted(units, unit)}, a bootstrap over {unit}s" if units > 1 else \
        f"one {unit}, the interval over problems"
    lines = [f"## {title}", "", f"{table['about']}  Scores are {rows[0]['metric']}: {over}.", ""]
    lines += setting_lines(rows, settings) if len(settings) > 1 else bars(*row_cells(rows, unit))
    lines += ["", table["lead"], "", *[f"- {ordering['sentence']}" for ordering in table["orderings"]], ""]
    lines += [f"- {text}" for text in notes(table)]
    return "\n".join([*lines, "", f"`{table['command']}`, commit {short_commit(table['commit'])}, {table['machine']}, "
                      f"{table['date']}.", ""])


def notes(table: dict) -> list[str]:
    """What a reader must know beside the figures."""
    shared = ["Rows with the same letter stand on the same runs of one stage or more."] if run_letters(table) else []
    stuck = ["A run is stuck that has brought its model less than 0.05 over the base student."]
    stuck *= any(row.get("stuck") for row in table["rows"])
    made = [f"{name} {' or '.join([value] if isinstance(value, str) else value)}"
            for name, value in table.get("versions", {}).items()]
    return [*stuck, *shared, *table.get("shared", ()), *[f"Made with {', '.join(made)}."] * bool(made)]


def run_letters(table: dict) -> dict[str, str]:
    """row -> a letter, the same for rows that begin with the same run."""
    first = {row["row"]: row["runs"][0] for row in table["rows"] if row["runs"]}
    several = [run for run in dict.fromkeys(first.values()) if list(first.values()).count(run) > 1]
    return {row: "ᵃᵇᶜᵈᵉ"[several.index(run)] for row, run in first.items() if run in several}


def score(row: dict) -> str:
    """0.575 [0.209, 0.779], median 0.661; 1 of 5 stuck"""
    interval = interval_of(row)
    text = with_interval(row["mean"], interval) if interval else f"{row['mean']:.3f}"
    text += f", median {row['median']:.3f}" * (row["units"] > 1)
    return text + f"; {row.get('stuck')} of {len(row['seeds'])} stuck" * bool(row.get("stuck"))


def interval_of(row: dict) -> list[float] | None:
    """Over units; of one run, over the problems of its evaluation; None for one unit with several runs."""
    return row["interval"] or (row["seeds"][0]["interval"] if len(row["seeds"]) == 1 else None)


def mean_of(row: dict, key: str) -> float | None:
    """None where the row's runs were not evaluated on the way."""
    return float(np.mean([seed[key] for seed in row["seeds"]])) if key in row["seeds"][0] else None


def row_cells(rows: list[dict], unit: str) -> tuple[list[str], list[list[str]]]:
    """-> the head, and a line a row: its score in figures and what it cost.  For table.md and for the page."""
    letters, lines = run_letters({"rows": rows}), []
    for row in rows:
        interval, stuck, runs = interval_of(row), row.get("stuck"), len(row["seeds"])
        mean = with_interval(row["mean"], interval) if interval else f"{row['mean']:.3f}"
        best = mean_of(row, "best_on_the_way") if "plateau" in row["row"] or "tuned" in row["row"] else None
        least, most = share_interval(stuck or 0, runs)
        costs = [f"{mean_of(row, key):,.0f}" if row["runs"] else "–" for key in TOTALS]
        cut = mean_of(row, "truncated_fraction")
        lines.append([
            f"{row['row']} {letters.get(row['row'], '')}".strip(), f"{row['median']:.3f}",
            mean + ("" if best is None else f" [best on the way {best:.3f}]"),
            "–" if stuck is None else f"{stuck} of {runs} [{least:.0%}, {most:.0%}]", spread(row), *costs,
            "–" if cut is None else f"{cut:.1%}"])
    return ["row", "median", "mean [95% interval]", "stuck", f"spread of {unit}s / noise",
            *TOTALS.values(), "cut off"], lines


def bars(head: list[str], lines: list[list[str]]) -> list[str]:
    """The lines of a Markdown table."""
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---", *["---:"] * (len(head) - 1)], *lines)]


def spread(row: dict) -> str:
    return f"{'–' if row['sd'] is None else format(row['sd'], '.3f')} / {row['evaluation_sd']:.3f}"


def setting_lines(rows: list[dict], settings: list[str]) -> list[str]:
    letters, once = run_letters({"rows": rows}), [row for row in rows if not row["setting"]]
    names = list(dict.fromkeys(row["row"] for row in rows if row["setting"]))
    direct = next((name for name in names if "plateau" in name), None)
    head = ["", *(f"{name} {letters.get(name, '')}".strip() for name in names)]
    head += [f"{direct}: best on the way", "its reward in training"] * bool(direct) + ["C1 held"]
    lines = []
    for setting in settings:
        at = {row["row"]: row for row in rows if row["setting"] == setting}
        cells = [setting, *(score(at[name]) if name in at else "" for name in names)]
        for key in ("best_on_the_way", "training_reward") * bool(direct):
            value = mean_of(at[direct], key) if direct in at else None
            cells.append("" if value is None else f"{value:.3f}")
        held = [seed["c1_passed"] for seed in at.get("full workflow", {"seeds": []})["seeds"]]
        lines.append([*cells, f"{sum(held)} of {len(held)}"])
    lines = bars(head, lines)
    same = "; ".join(f"{row['row']} {score(row)}" for row in once)
    lines += ["", f"The same at every setting: {same}."] * bool(once)
    for name in (name for name in names if any(row["runs"] for row in rows if row["row"] == name)):
        took = [[seed[key] for row in rows if row["row"] == name for seed in row["seeds"]]
                for key in ("optimiser_steps", "seconds")]
        steps, seconds = (" to ".join(dict.fromkeys((f"{min(each):,.0f}", f"{max(each):,.0f}"))) for each in took)
        lines += ["", f"{name[0].upper() + name[1:]}: {steps} optimiser steps, {seconds} seconds."]
    return lines


# ---------------------------------------------------------------- figure.svg


def table_figure(table: dict, narrow: bool):
    """Scores over labels; a heat map where settings are pairs; else each row with its units, a panel a setting."""
    settings = [setting.split(", ") for setting in settings_of(table)]
    if len({scope["labels"] for scope in table["scopes"]}) > 1:
        return labels_figure(table, narrow)
    if all(len(parts) == 2 for parts in settings) and len(settings) > 3:
        return heat_map(table, settings, narrow)
    return rows_figure(table, narrow)


def unit_title(row: dict, seed: dict, unit: str) -> str:
    at = f", {row['setting']}" * bool(row["setting"])
    return f"{row['row']}{at}, {unit} {seed.get('unit', seed['seed'])}: {seed['value']:.3f}"


def titled_points(row: dict, unit: str) -> list[tuple]:
    return [(seed["value"], unit_title(row, seed, unit)) for seed in row["seeds"]]


def rows_figure(table: dict, narrow: bool):
    settings, colours = settings_of(table), colours_of(table)
    columns = 1 if narrow else min(3, len(settings))
    down, height = math.ceil(len(settings) / columns), (0.34 + 0.14 * narrow) * len(colours)
    figure = new_figure(4.2 if narrow else 8 + 2 * (columns - 1), down * (0.7 + height))
    panels = figure.subplots(down, columns, sharex=True, squeeze=False).flat
    for place, (setting, axes) in enumerate(zip(settings, panels)):
        draw_intervals(axes, [(row["row"], colours[row["row"]], titled_points(row, table["unit"]), interval_of(row))
                              for row in table["rows"] if row["setting"] in (None, "", setting)], narrow)
        axes.set(title=setting)
        axes.tick_params(labelleft=place % columns == 0)
    figure.supxlabel(f"{table['rows'][0]['metric']}, fraction right", fontsize=8, color=MUTED)
    return figure


def labels_figure(table: dict, narrow: bool):
    """A dot a unit, a line through the medians.  No band: the scores have two peaks, and no unit lies between."""
    figure, colours = new_figure(4.2 if narrow else 8, 4.6 if narrow else 4), colours_of(table)
    axes, budgets = figure.subplots(), sorted({scope["labels"] for scope in table["scopes"]})
    by_name = {name: [row for row in table["rows"] if row["row"] == name] for name in colours}
    for place, (name, rows) in enumerate(by_name.items()):
        shift, style = 1.05 ** (place - len(by_name) / 2), {"color": colours[name], "gid": mark(name)}
        if rows[0]["labels"]:
            axes.plot([row["labels"] * shift for row in rows], [row["median"] for row in rows], label=name, **style)
        elif rows[0]["runs"] or name == "raw teacher":                  # one that sees no label: a level
            axes.axhline(rows[0]["median"], linestyle=(0, (4, 2)), linewidth=1.2, label=name, **style)
        for row in rows * bool(rows[0]["labels"]):
            values, titles = zip(*titled_points(row, table["unit"]))
            axes.plot([row["labels"] * shift] * len(values), values, "o", color=colours[name], markersize=4, alpha=0.6,
                      markeredgewidth=0, clip_on=False, gid=mark(name, titles))
    axes.set(xscale="log", xlabel="labelled problems, log scale", ylim=(0, 1.02),
             ylabel=f"{table['rows'][0]['metric']}, fraction right")
    axes.set_xticks(budgets, [f"{labels:,}" for labels in budgets])
    axes.minorticks_off()
    figure.legend(frameon=False, labelcolor=MUTED, loc="outside lower left" if narrow else "outside right center")
    return figure


def heat_map(table: dict, settings: list[list[str]], narrow: bool):
    """A panel a row: the median of each pair of settings by colour and in figures, its units below it."""
    downs, acrosses = (list(dict.fromkeys(parts[place] for parts in settings)) for place in (0, 1))
    names = list(dict.fromkeys(row["row"] for row in table["rows"] if row["setting"] and row["runs"]))
    columns = 1 if narrow else 2
    figure = new_figure(4.2 if narrow else 9, math.ceil(len(names) / columns) * (0.7 + 0.55 * len(downs)))
    panels = figure.subplots(math.ceil(len(names) / columns), columns, squeeze=False).ravel()
    for axes in panels:
        axes.set_axis_off()
    for name, axes in zip(names, panels):
        medians = np.full((len(downs), len(acrosses)), np.nan)
        for row in (row for row in table["rows"] if row["row"] == name):
            down, across = row["setting"].split(", ")
            y, x = downs.index(down), acrosses.index(across)
            medians[y, x] = row["median"]
            colour = "white" if 0.5 < row["median"] else INK
            axes.text(x, y - 0.12, f"{row['median']:.2f}", ha="center", va="center", color=colour, fontsize=10)
            each = " ".join(f"{seed['value']:.2f}".lstrip("0") for seed in row["seeds"])
            axes.text(x, y + 0.25, each, ha="center", va="center", color=colour, fontsize=7)
        axes.set_axis_on()
        axes.pcolormesh(np.arange(len(acrosses) + 1) - 0.5, np.arange(len(downs) + 1) - 0.5, medians, vmin=0, vmax=1,
                        cmap="Blues")
        axes.set(title=name, ylim=(len(downs) - 0.5, -0.5))
        axes.set_xticks(range(len(acrosses)), acrosses)
        axes.set_yticks(range(len(downs)), downs)
        axes.grid(visible=False)
    figure.supxlabel(f"{table['rows'][0]['metric']}: the median over {table['unit']}s, and below it each run",
                    fontsize=8, color=MUTED)
    return figure


# ---------------------------------------------------------------- report.html


def write_table_page(table: dict, out: Path) -> None:
    """OUT/report.html, from the table and the runs that it names; of several settings, those of the middle one.

    While the table is running: of the settings and the seeds that have come in.
    """
    settings, colours = settings_of(table), colours_of(table)
    chosen = settings[(len(settings) - 1) // 2]
    rows = [row for row in table["rows"] if row["setting"] in (None, chosen)]
    seed_dirs = [out / scope["directory"] for scope in table["scopes"] if chosen in ("", scope["setting"])]
    seed_dirs = [seed_dir for seed_dir in seed_dirs if all(
        (seed_dir / name).is_dir() for row in rows for name in row["runs"])] or seed_dirs[:1]
    names = list(dict.fromkeys(name for row in rows for name in row["runs"]))
    has_runs = any((seed_dirs[0] / name).is_dir() for name in names)                # results/ keeps tables without
    rows = [row for row in rows if not has_runs
            or all((seed_dir / name).is_dir() for seed_dir in seed_dirs for name in row["runs"])]
    trained = [row for row in rows if colours[row["row"]] != GREY] or rows
    names = [name for name in names if any(name in row["runs"] for row in rows)]
    for run in (seed_dir / name for seed_dir in seed_dirs for name in names):
        if (run / "args.json").is_file() and not (run / "report.html").is_file():
            pages.run.write_run_page(run)
    shaped = [row["runs"][len(teachers)] for row in rows if (teachers := teacher_runs(row, seed_dirs[0]))]
    items = "".join(f"<li>{escape(ordering['sentence'])}</li>" for ordering in table["orderings"])
    sections = [
        f"<p class=lead>{escape(table['lead'])}</p><p class=muted>{escape(table['about'])}</p>",
        arm_boxes(colours) + wide_svg(lambda narrow: table_figure(table, narrow), table["about"]),
        f"<p class=muted>{HOW_DRAWN}</p>", f"<h2>The comparisons</h2><ul>{items}</ul>" * bool(items),
        f"<ul class=muted>{''.join(f'<li>{escape(text)}</li>' for text in notes(table))}</ul>",
        score_section(rows, table, seed_dirs, f", {chosen}" * (len(settings) > 1))]
    if has_runs:
        sections += [
            learning_section(trained, colours, seed_dirs),
            certificate_section(seed_dirs[0] / shaped[0]) if shaped else "",
            f"<p class='muted'>Drawn: {seed_dirs[0].name}/{shaped[0]}, the first seed’s.</p>" if shaped else "",
            certificates_section(names, seed_dirs),
            dense_rewards_section(seed_dirs[0] / shaped[0]) if shaped else "",
            runs_section(names, seed_dirs, table, out)]
    so_far = "" if table.get("finished", True) else ", so far"
    title = f"{table['table'].capitalize()} table, {table['scale']} scale{so_far}"
    write_text(out / "report.html", page(title, "Sparse-to-dense reward post-training", sections, out))


HOW_DRAWN = """A dot is one run’s score, and pointing at it names it.  An upright is the mean, a pale bar its 95%
interval: a bootstrap over units or, of a single unit, over the problems.  A box that is not ticked hides its arm
in all plots."""


def teacher_runs(row: dict, seed_dir: Path) -> list[str]:
    """The runs of a row that made its teacher: those before stage 2."""
    shapes = [i for i, name in enumerate(row["runs"]) if is_shape(seed_dir / name)]
    return row["runs"][:shapes[0]] if shapes else []


def is_shape(run: Path) -> bool:
    return read_json(run / "certificate.json").get("condition") == "C1"


def score_section(rows: list[dict], table: dict, seed_dirs: list[Path], at: str) -> str:
    """Each row's score in figures, and what it cost."""
    unit, (head, lines) = table["unit"], row_cells(rows, table["unit"])
    lines = [[escape(cell).replace("[", "<small>[").replace("]", "]</small>") for cell in cells] for cells in lines]
    several = max(row["units"] for row in rows) > 1
    return f"""<h2>Scores and costs{escape(at)}</h2>
        {html_table(head, lines, range(1, len(head)),
                    ["reference" if colours_of(table)[row["row"]] == GREY else "" for row in rows])}
        <p class="muted">{evaluation_settings(seed_dirs[0])}  The interval is {f"a bootstrap over {unit}s" if several
        else "over the problems of the one evaluation"}.  Stuck: how many runs, with the exact interval of that
        share.  Spread: the standard deviation over {unit}s; noise: that of one evaluation, by its problems.  Grey rows
        are for reference: what the students began from or learnt from.  A row’s costs are those of every run that led
        to it, its teacher’s too, on average.  Cut
        off: completions that reached the longest length.</p>"""


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
    """Held-out accuracy while training, against each cost, and the length of the completions."""
    measured = [seed_dirs[0] / name for row in rows for name in row_curves(row, seed_dirs[0], "seconds")]
    if not measured:
        return "<h2>Learning curves</h2><p>None: these runs were not evaluated while training (--eval-problems).</p>"
    record = read_json(measured[0] / "args.json")
    args, device = record["args"], escape(str(record["versions"]["device"]))
    accuracy = [learning_svg(rows, colours, seed_dirs, axis) for axis in TOTALS if axis != "tokens_sampled"]
    lengths = [learning_svg(rows, colours, seed_dirs, "optimiser_steps", key)
               for key in ("mean_length_tokens", "truncated_fraction")]
    return f"""<h2>Learning curves</h2><p>Accuracy on {names_of(args["eval_problems"])} while training,
        {args["eval_samples"]} completions a problem at temperature {args["temperature"]:g} (the scores above have
        settings of their own, given there).  A student whose teacher had to be trained begins where that (dashed) and
        the teacher’s sampling end.  A label counts each time that it is seen; distillation sees none, so it rises
        upright.  Seconds are those of training on {device}, without these evaluations.
        {"Thin: each seed; thick: their mean." * (len(seed_dirs) > 1)}</p>{"".join(accuracy)}
        {"<h2>Length and truncation</h2><p>Of the completions that were trained on.</p>" * any(lengths)}
        {"".join(lengths)}"""


def learning_svg(rows: list[dict], colours: dict, seed_dirs: list[Path], axis: str, key: str = "eval_accuracy") -> str:
    """One wide plot; nothing where no row has this metric."""
    curves = {row["row"]: [row_curves(row, seed_dir, axis, key) for seed_dir in seed_dirs] for row in rows}
    curves = {row: [[seed[name] for seed in seeds] for name in seeds[0] if all(name in seed for seed in seeds)]
              for row, seeds in curves.items()}
    dashed = {row["row"]: len(teacher_runs(row, seed_dirs[0])) for row in rows}
    title = f"{CURVES[key][0]} against {TOTALS[axis]}"
    return wide_svg(lambda narrow: draw_learning(curves, dashed, colours, axis, key, title, narrow), title) \
        if any(curves.values()) else ""


def draw_learning(curves: dict, dashed: dict, colours: dict, axis: str, key: str, title: str, narrow: bool):
    """curves: row -> its runs, each a curve a seed.  Rows are named beside the plot, where no curve is."""
    figure, is_share, ends = new_figure(4.2 if narrow else 10, 2.8 if narrow else 3.5), CURVES[key][2], []
    axes = figure.subplots()
    for row, runs in curves.items():
        for place, seeds in enumerate(runs):
            style = {"color": colours[row], "linestyle": (0, (4, 2)) if place < dashed[row] else "-"}
            for curve in seeds * (len(seeds) > 1):
                axes.plot(*curve.T, linewidth=0.7, alpha=0.5, gid=mark(row), **style)
            mean = mean_curve(seeds)
            axes.plot(*mean.T, linewidth=2.2, gid=mark(row), **style)
            titles = [f"{row}, {TOTALS[axis]} {number(float(x))}: {number(float(y))}" for x, y in mean]
            axes.plot(*mean.T, "o", markersize=7, alpha=0, gid=mark(row, titles))       # seen by the pointer alone
            ends += [(mean[-1, 1], row)] if place == len(runs) - 1 else []
    highest = max(curve[:, 1].max() for runs in curves.values() for seeds in runs for curve in seeds)
    top = 1.05 if is_share and highest > 0.3 else 1.1 * highest or 1
    axes.set(xlim=(0, None), ylim=(-0.02 * top, top), title=title, ylabel=CURVES[key][1],
             xlabel=f"{TOTALS[axis]}, of every run that led there")
    axes.locator_params("x", nbins=5 if narrow else 8, integer=True, steps=[1, 2, 5, 10])
    below = 2.0
    for height, row in sorted(ends, reverse=True) * (not narrow):
        below = min(height / top, below - 0.07)
        axes.annotate(row, (1.01, below), xycoords="axes fraction", color=colours[row], va="center", fontsize=8.5,
                      fontweight="bold", gid=mark(row), annotation_clip=False)
    return figure


def certificates_section(names: list[str], seed_dirs: list[Path]) -> str:
    """C1 of every teacher, and C2 before and after every bridge, seed by seed."""
    ranked, bridged, metrics, bounds = [], [], [], []
    for run in (seed_dir / name for name in names for seed_dir in seed_dirs):
        certificate, where = read_json(run / "certificate.json"), f"{run.parent.name}/{run.name}"
        holds = "holds" if certificate.get("passed") else "does not hold"
        if certificate.get("condition") == "C1":
            within = certificate["sum"]["within_prompt_auc"]
            text = f"{where}: {with_interval(within['value'], within['interval'])}, C1 {holds}"
            points = [(within["value"], text)] if within["value"] is not None else []
            ranked.append((text, PALETTE[0], points, within["interval"]))
        elif certificate.get("condition") == "C2":
            rows = read_jsonl(run / "metrics.jsonl")
            before = next(row for row in rows if "c2_reverse_kl_nats" in row)
            kls = [with_interval(row["c2_reverse_kl_nats"], row["c2_interval_nats"]) for row in (before, certificate)]
            bridged.append([swatch(*LINES[len(bridged) % len(LINES)]), escape(where), *kls,
                            f"{certificate['max_kl_nats']:g}", str(certificate["optimiser_steps"]), holds])
            metrics.append(rows)
            bounds.append(certificate["max_kl_nats"])
    c1 = "<h2>C1 of every teacher</h2><p>The AUC of R within prompts [95% interval]; a half is chance.</p>"
    c1 += wide_svg(lambda narrow: intervals_figure(ranked, narrow, 0.5), "AUC within prompts") if ranked else ""
    head = ["", "bridge", "before", "after", "bound", "steps", "C2"]
    plots = "".join(draw_curve(metrics, key, the_one(bounds))
                    for key in ("c2_reverse_kl_nats", "forward_kl_nats") if any(series(rows, key) for rows in metrics))
    c2 = f"""<h2>C2: is the student near the teacher?</h2><p>KL(student‖teacher), nats per token [95% interval], exact
        over the vocabulary, on the student’s own rollouts to held-out prompts, before and after the bridge.</p>
        {html_table(head, bridged, range(2, 6))}<div class=grid>{plots}</div>"""
    return c1 * bool(ranked) + c2 * bool(bridged)


def seconds_by_phase(run: Path) -> list[float]:
    """A run's seconds: of sampling, of scoring and the update, and the rest, as far as it logged them apart."""
    rows, total = read_jsonl(run / "metrics.jsonl"), read_json(run / "DONE").get("seconds", 0.0)
    sampling, update = (sum(row.get(key) or 0.0 for row in rows) for key in ("sample_seconds", "train_seconds"))
    return [sampling, update, max(total - sampling - update, 0.0)]


def runs_section(names: list[str], seed_dirs: list[Path], table: dict, out: Path) -> str:
    """Each run with what came of it, and the command for all of it."""
    runs = [seed_dir / name for seed_dir in seed_dirs for name in names if (seed_dir / name / "args.json").is_file()]
    paths = [str(run.relative_to(out)) for run in runs]
    lines = [[f"<a href='{escape(path)}/report.html'>{escape(path)}</a>", script_of(run),
              " + ".join(map(number, seconds_by_phase(run))), finding(run)] for path, run in zip(paths, runs)]
    return f"""<h2>Runs</h2><p>Each has a page of its own, with its curves, its samples and its exact command.  Seconds
        are those of sampling, of scoring with the update, and of the rest: all of stage 2, or the measuring of C2.</p>
        {html_table(["run", "script", "seconds", "what came of it"], lines)}
        <h2>All of it again</h2><pre>{escape(table["command"])}</pre>
        <p class="muted">On a directory that is there it goes on where it stopped; --dry-run prints the commands.</p>"""
