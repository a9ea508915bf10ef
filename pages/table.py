"""A table for people: OUT/table.md, OUT/figure.svg and the page OUT/report.html, all from OUT/table.json."""
import importlib.util
import math
from functools import partial
from html import escape
from pathlib import Path

import numpy as np

import pages.run
from engine.files import read_json, read_jsonl, write_json, write_text
from engine.runs import short_commit
from pages.card import script_of
from pages.parts import (
    INK, MUTED, PALETTE, WIDE, arm_boxes, curves_svg, draw_intervals, filled, html_table, mark, markdown_table,
    new_figure, page, svg, with_interval,
)
from pages.run import CURVES, TOTALS, certificate_section, dense_rewards_section, finding, smoothed
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
        height, panels, _ = panels_of(table)
        figure = figure_of(panels, height, 2 * WIDE if len(panels) == 1 else WIDE, columns=min(2, len(panels)))
        text = svg(figure, table["about"]).replace("<svg", "<svg style='background:#fff'", 1)
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
    lines += markdown_table(*(by_setting(rows, settings) if len(settings) > 1 else by_row(rows, unit)))
    lines += beside_settings(rows) if len(settings) > 1 else []
    lines += ["", table["lead"], "", *[f"- {ordering['sentence']}" for ordering in table["orderings"]], ""]
    lines += [f"- {text}" for text in notes(table)]
    return "\n".join([*lines, "", f"`{table['command']}`, commit {short_commit(table['commit'])}, {table['machine']}, "
                      f"{table['date']}.", ""])


def notes(table: dict) -> list[str]:
    """What a reader must know beside the figures."""
    shared = ["Rows with the same letter stand on the same runs of one stage or more."] * bool(
        run_letters(table["rows"]))
    stuck = ["A run is stuck that has brought its model less than 0.05 over the base student."]
    stuck *= any(row.get("stuck") for row in table["rows"])
    made = [f"{name} {' or '.join([value] if isinstance(value, str) else value)}"
            for name, value in table.get("versions", {}).items()]
    return [*stuck, *shared, *c1_in_short(table), *table.get("shared", ()),
            *[f"Made with {', '.join(made)}."] * bool(made)]


def c1_in_short(table: dict) -> list[str]:
    """What C1 ranks: where all completions of the RL teacher work, its AUC cannot be that of a style."""
    seeds = next((row["seeds"] for row in table["rows"] if row["row"] == "full workflow"), [])
    worked = [seed for seed in seeds if "c1_auc_worked" in seed]
    return worked and [
        f"C1's AUC within prompts is {np.mean([seed['c1_auc'] for seed in worked]):.3f} over all completions and "
        f"{np.mean([seed['c1_auc_worked'] for seed in worked]):.3f} among those that work: the full workflow's mean "
        f"over {len(worked)} of {counted(len(seeds), table['unit'])}, which had right and wrong ones among these."]


def run_letters(rows: list[dict]) -> dict[str, str]:
    """row -> a letter, the same for rows that begin with the same run."""
    first = {row["row"]: row["runs"][0] for row in rows if row["runs"]}
    several = [run for run in dict.fromkeys(first.values()) if list(first.values()).count(run) > 1]
    return {row: "ᵃᵇᶜᵈᵉ"[several.index(run)] for row, run in first.items() if run in several}


def interval_of(row: dict) -> list[float] | None:
    """Over units; of one run, over the problems of its evaluation; None for one unit with several runs."""
    return row["interval"] or (row["seeds"][0]["interval"] if len(row["seeds"]) == 1 else None)


def mean_text(row: dict) -> str:
    """0.575 [0.209, 0.779]"""
    return with_interval(row["mean"], interval_of(row)) if interval_of(row) else f"{row['mean']:.3f}"


def score(row: dict) -> str:
    """0.575 [0.209, 0.779], median 0.661; 1 of 5 stuck"""
    text = mean_text(row) + f", median {row['median']:.3f}" * (row["units"] > 1)
    return text + f"; {row.get('stuck')} of {len(row['seeds'])} stuck" * bool(row.get("stuck"))


def mean_of(row: dict, key: str, form: str = ".3f") -> str:
    """Nothing where the row's runs were not evaluated on the way."""
    return format(np.mean([seed[key] for seed in row["seeds"]]), form) if key in row["seeds"][0] else ""


def by_row(rows: list[dict], unit: str) -> tuple[list[str], list[list[str]]]:
    """-> the head, and a line a row: its score in figures and what it cost.  For table.md and for the page."""
    letters, lines = run_letters(rows), []
    for row in rows:
        stuck, runs = row.get("stuck"), len(row["seeds"])
        best = mean_of(row, "best_on_the_way") if "plateau" in row["row"] or "tuned" in row["row"] else ""
        least, most = share_interval(stuck or 0, runs)
        lines.append([
            f"{row['row']} {letters.get(row['row'], '')}".strip(), f"{row['median']:.3f}",
            mean_text(row) + f" [best on the way {best}]" * bool(best),
            "–" if stuck is None else f"{stuck} of {runs} [{least:.0%}, {most:.0%}]",
            f"{'–' if row['sd'] is None else format(row['sd'], '.3f')} / {row['evaluation_sd']:.3f}",
            *(mean_of(row, key, ",.0f") if row["runs"] else "–" for key in TOTALS),
            mean_of(row, "truncated_fraction", ".1%")])
    return filled(["row", "median", "mean [95% interval]", "stuck", f"spread of {unit}s / noise",
                   *TOTALS.values(), "cut off"], lines)


def by_setting(rows: list[dict], settings: list[str]) -> tuple[list[str], list[list[str]]]:
    """-> the head, and a line a setting: each row's score; how RL went on the way; how often C1 held."""
    letters, head, lines = run_letters(rows), [""], [[setting] for setting in settings]

    def add(title: str, name: str, text) -> None:
        head.append(title)
        at = {row["setting"]: text(row) for row in rows if row["row"] == name}
        for line, setting in zip(lines, settings):
            line.append(at.get(setting, ""))

    def c1_held(row: dict) -> str:
        held = [seed["c1_passed"] for seed in row["seeds"]]
        return f"{sum(held)} of {len(held)}"

    names = dict.fromkeys(row["row"] for row in rows if row["setting"])
    for name in names:
        add(f"{name} {letters.get(name, '')}".strip(), name, score)
    for name in [name for name in names if "plateau" in name][:1]:
        add(f"{name}: best on the way", name, lambda row: mean_of(row, "best_on_the_way"))
        add("its reward in training", name, lambda row: mean_of(row, "training_reward"))
    add("C1 held", "full workflow", c1_held)
    return filled(head, lines)


def beside_settings(rows: list[dict]) -> list[str]:
    """What is the same at every setting, and what each row took."""
    same = "; ".join(f"{row['row']} {score(row)}" for row in rows if not row["setting"])
    lines = ["", f"The same at every setting: {same}."] * bool(same)
    for name in dict.fromkeys(row["row"] for row in rows if row["setting"] and row["runs"]):
        seeds = [seed for row in rows if row["row"] == name for seed in row["seeds"]]
        steps, seconds = (span([seed[key] for seed in seeds], ",.0f") for key in ("optimiser_steps", "seconds"))
        lines += ["", f"{name[0].upper() + name[1:]}: {steps} optimiser steps, {seconds} seconds."]
    return lines


# ---------------------------------------------------------------- figure.svg

DOT = "A dot is one run’s score; pointing at it names it.  A box that is not ticked hides its arm in all plots."
BAR = "An upright is the mean, a pale bar its 95% interval: over units or, of a single unit, over the problems."


def panels_of(table: dict) -> tuple[float, list, str]:
    """-> inches of height, panels, each a function of axes, and what to say of them.

    Scores over labels; a heat map a row, where settings are pairs; else a panel a setting, each row with its units.
    """
    settings, colours, rows = settings_of(table), colours_of(table), table["rows"]
    parts = [setting.split(", ") for setting in settings]
    if len({scope["labels"] for scope in table["scopes"]}) > 1:
        return 3.6, [partial(draw_labels, table=table, colours=colours)], f"{DOT}  A line goes through the medians."
    if all(len(part) == 2 for part in parts) and len(settings) > 3:
        downs, acrosses = (list(dict.fromkeys(part[place] for part in parts)) for place in (0, 1))
        names = dict.fromkeys(row["row"] for row in rows if row["setting"] and row["runs"])
        panels = [partial(draw_heat_map, rows=[row for row in rows if row["row"] == name],
                          downs=downs, acrosses=acrosses) for name in names]
        return 0.7 + 0.5 * len(downs), panels, "A field is the median over its runs, which stand below it."
    panels = [partial(draw_rows, table=table, colours=colours, setting=setting) for setting in settings]
    return 0.8 + 0.4 * len(colours), panels, f"{DOT}  {BAR}"


def figure_of(panels: list, height: float, width: float = WIDE, columns: int = 1):
    down = math.ceil(len(panels) / columns)
    figure = new_figure(columns * width, down * height)
    every = figure.subplots(down, columns, squeeze=False).ravel()
    for draw, axes in zip(panels, every):
        draw(axes)
    for axes in every[len(panels):]:
        axes.set_axis_off()
    return figure


def draw_rows(axes, table: dict, colours: dict, setting: str) -> None:
    draw_intervals(axes, [(row["row"], colours[row["row"]], titled_points(row, table["unit"]), interval_of(row))
                          for row in table["rows"] if row["setting"] in (None, "", setting)])
    axes.set(title=setting, xlabel=f"{table['rows'][0]['metric']}, fraction right")


def titled_points(row: dict, unit: str) -> list[tuple]:
    """(score, what its point says) of each seed."""
    at = f", {row['setting']}" * bool(row["setting"])
    return [(seed["value"], f"{row['row']}{at}, {unit} {seed.get('unit', seed['seed'])}: {seed['value']:.3f}")
            for seed in row["seeds"]]


def draw_labels(axes, table: dict, colours: dict) -> None:
    """A dot a unit, a line through the medians.  No band: the scores have two peaks, and no unit lies between."""
    for place, (name, colour) in enumerate(colours.items()):
        rows, style = [row for row in table["rows"] if row["row"] == name], {"color": colour, "gid": mark(name)}
        shift = 1.05 ** (place - len(colours) / 2)
        if not rows[0]["labels"]:                                       # one that sees no label: a level
            axes.axhline(rows[0]["median"], linestyle=(0, (4, 2)), linewidth=1.2, label=name, **style)
            continue
        axes.plot([row["labels"] * shift for row in rows], [row["median"] for row in rows], label=name, **style)
        for row in rows:
            values, titles = zip(*titled_points(row, table["unit"]))
            axes.plot([row["labels"] * shift] * len(values), values, "o", color=colour, markersize=4, alpha=0.6,
                      markeredgewidth=0, clip_on=False, gid=mark(name, titles))
    budgets = sorted({scope["labels"] for scope in table["scopes"]})
    axes.set(xscale="log", xlabel="labelled problems, log scale", ylim=(0, 1.02),
             ylabel=f"{table['rows'][0]['metric']}, fraction right")
    axes.set_xticks(budgets, [f"{labels:,}" for labels in budgets])
    axes.minorticks_off()
    axes.legend(frameon=False, labelcolor=MUTED, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)


def draw_heat_map(axes, rows: list[dict], downs: list[str], acrosses: list[str]) -> None:
    """The median of each pair of settings by colour and in figures, and below it each run."""
    medians = np.full((len(downs), len(acrosses)), np.nan)
    for row in rows:
        y, x = (names.index(part) for names, part in zip((downs, acrosses), row["setting"].split(", ")))
        medians[y, x] = row["median"]
        style = {"ha": "center", "va": "center", "color": "white" if row["median"] > 0.5 else INK}
        each = " ".join(f"{seed['value']:.2f}".lstrip("0") for seed in row["seeds"])
        axes.text(x, y - 0.12, f"{row['median']:.2f}", fontsize=10, **style)
        axes.text(x, y + 0.25, each, fontsize=7, **style)
    axes.pcolormesh(np.arange(len(acrosses) + 1) - 0.5, np.arange(len(downs) + 1) - 0.5, medians, vmin=0, vmax=1,
                    cmap="Blues")
    axes.set(title=rows[0]["row"], ylim=(len(downs) - 0.5, -0.5), xlabel="each median, and below it its runs")
    axes.set_xticks(range(len(acrosses)), acrosses)
    axes.set_yticks(range(len(downs)), downs)
    axes.grid(visible=False)


# ---------------------------------------------------------------- report.html

def write_table_page(table: dict, out: Path) -> None:
    """OUT/report.html, from the table and the runs that it names; of several settings, those of the middle one.

    While the table is running: of the runs that have come in.
    """
    settings, colours = settings_of(table), colours_of(table)
    chosen = settings[(len(settings) - 1) // 2]
    rows = [row for row in table["rows"] if row["setting"] in (None, chosen)]
    seed_dirs = [out / scope["directory"] for scope in table["scopes"] if chosen in ("", scope["setting"])]
    runs = [seed_dir / name for name in dict.fromkeys(name for row in rows for name in row["runs"])
            for seed_dir in seed_dirs if (seed_dir / name / "args.json").is_file()]
    for run in runs:
        if not (run / "report.html").is_file():
            pages.run.write_run_page(run)
    height, panels, how_drawn = panels_of(table)
    figures = [svg(figure_of([draw], height), table["about"]) for draw in panels]
    items = "".join(f"<li>{escape(ordering['sentence'])}</li>" for ordering in table["orderings"])
    comparisons = f"<div><h2>The comparisons</h2><ul>{items}</ul></div>" * bool(items)
    sections = [
        f"<p class=lead>{escape(table['lead'])}</p><p class=muted>{escape(table['about'])}</p>{arm_boxes(colours)}",
        f"<div class=two>{''.join(figures)}{comparisons if len(figures) == 1 else ''}</div>",
        f"<p class=muted>{how_drawn}</p>{comparisons if len(figures) > 1 else ''}",
        f"<ul class=muted>{''.join(f'<li>{escape(text)}</li>' for text in notes(table))}</ul>",
        score_section(rows, table, seed_dirs, f", {chosen}" * (len(settings) > 1))]
    if runs:                                                    # results/ keeps tables without
        trained = [row for row in rows if colours[row["row"]] != GREY] or rows
        taught = [row["runs"][len(teachers)] for row in rows if (teachers := teacher_runs(row, seed_dirs))]
        shaped = [run for run in runs if run.name in taught][:1]
        sections += [
            learning_section(trained, colours, seed_dirs, runs), *map(certificate_section, shaped),
            *map(dense_rewards_section, shaped), runs_section(runs, table, out)]
    so_far = "" if table.get("finished", True) else ", so far"
    title = f"{table['table'].capitalize()} table, {table['scale']} scale{so_far}"
    write_text(out / "report.html", page(title, "Sparse-to-dense reward post-training", sections, out))


def teacher_runs(row: dict, seed_dirs: list[Path]) -> list[str]:
    """The runs of a row that made its teacher: those before stage 2."""
    shapes = [i for i, name in enumerate(row["runs"]) if any(
        read_json(seed_dir / name / "certificate.json").get("condition") == "C1" for seed_dir in seed_dirs)]
    return row["runs"][:shapes[0]] if shapes else []


def score_section(rows: list[dict], table: dict, seed_dirs: list[Path], at: str) -> str:
    """Each row's score in figures, and what it cost."""
    unit, (head, lines) = table["unit"], by_row(rows, table["unit"])
    lines = [[escape(cell).replace("[", "<small>[").replace("]", "]</small>") for cell in cells] for cells in lines]
    several = max(row["units"] for row in rows) > 1
    return f"""<h2>Scores and costs{escape(at)}</h2>
        {html_table(head, lines, range(1, len(head)),
                    ["reference" if colours_of(table)[row["row"]] == GREY else "" for row in rows])}
        <p class="muted">{evaluation_settings(seed_dirs)}  The interval is {f"a bootstrap over {unit}s" if several
        else "over the problems of the one evaluation"}.  Stuck: how many runs, with the exact interval of that
        share.  Spread: the standard deviation over {unit}s; noise: that of one evaluation, by its problems.  Grey rows
        are for reference: what the students began from or learnt from.  A row’s costs are those of every run that led
        to it, its teacher’s too, on average.  Cut
        off: completions that reached the longest length.</p>"""


def names_of(paths: list[str]) -> str:
    return escape(", ".join(Path(path).name for path in paths))


def evaluation_settings(seed_dirs: list[Path]) -> str:
    """How the scores were sampled, as the first evaluation that is there has it."""
    for run in sorted(run for seed_dir in seed_dirs for run in seed_dir.glob("eval_*")):
        args, scores = read_json(run / "args.json").get("args"), read_json(run / "scores.json")
        if args and scores:
            return (f"{scores['num_problems']:,} problems of {names_of(args['problems'])}, "
                    f"{scores['samples']} completions each, temperature {args['temperature']:g}, "
                    f"top-p {args['top_p']:g}, top-k {args['top_k'] or 'off'}, "
                    f"up to {args['max_new_tokens']:,} tokens.")
    return ""


def row_curves(row: dict, teachers: list[str], seed_dir: Path, axis: str, key: str) -> dict[str, np.ndarray]:
    """run -> (points, 2), the row's cost so far and the metric: each run goes on at the cost of those before it."""
    curves, spent, nothing = {}, 0.0, np.empty((0, 2))
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


def learning_section(rows: list[dict], colours: dict, seed_dirs: list[Path], runs: list[Path]) -> str:
    """Held-out accuracy while training, against each cost, and the length of the completions."""
    draw = partial(draw_learning, rows, colours, seed_dirs)
    accuracy = "".join(draw(axis, "eval_accuracy") for axis in TOTALS if axis != "tokens_sampled")
    lengths = "".join(draw("optimiser_steps", key) for key in ("mean_length_tokens", "truncated_fraction"))
    if not accuracy:
        return "<h2>Learning curves</h2><p>None: these runs were not evaluated while training (--eval-problems).</p>"
    record = next(record for run in runs if (record := read_json(run / "args.json"))["args"].get("eval_problems"))
    args, device = record["args"], escape(str(record["versions"]["device"]))
    return f"""<h2>Learning curves</h2><p>Accuracy on {names_of(args["eval_problems"])} while training,
        {args["eval_samples"]} completions a problem at temperature {args["temperature"]:g} (the scores above have
        settings of their own, given there).  A student whose teacher had to be trained begins where that (dashed) and
        the teacher’s sampling end.  A label counts each time that it is seen; distillation sees none, so it rises
        upright.  Seconds are those of training on {device}, without these evaluations.
        {"Thin: each seed; thick: their mean." * (len(seed_dirs) > 1)}</p><div class=two>{accuracy}</div>
        {"<h2>Length and truncation</h2><p>Of the completions that were trained on.</p>" * bool(lengths)}
        <div class=two>{lengths}</div>"""


def draw_learning(rows: list[dict], colours: dict, seed_dirs: list[Path], axis: str, key: str) -> str:
    """A line a row, thick over thin ones of its seeds; nothing where no row has this metric."""
    lines = []
    for row in rows:
        name, teachers = row["row"], teacher_runs(row, seed_dirs)
        seeds = [row_curves(row, teachers, seed_dir, axis, key) for seed_dir in seed_dirs]
        for run in row["runs"]:
            curves = [seed[run] for seed in seeds if run in seed]
            style = {"color": colours[name], "linestyle": (0, (4, 2)) if run in teachers else "-"}
            thin = style | {"linewidth": 0.7, "alpha": 0.5}
            lines += [(curve, thin, name, "") for curve in curves * (len(curves) > 1)]
            if curves:
                lines.append((mean_curve(curves), style | {"linewidth": 2.2}, name, f"{name}, {TOTALS[axis]}"))
    title, unit, is_share = CURVES[key]
    return curves_svg(lines, f"{title} against {TOTALS[axis]}", f"{TOTALS[axis]}, of every run that led there", unit,
                      WIDE, is_share) if lines else ""


def runs_section(runs: list[Path], table: dict, out: Path) -> str:
    """Each run, seed by seed, its certificates, and what came of the first; the command for all of it."""
    lines = []
    for name in dict.fromkeys(run.name for run in runs):
        own = [run for run in runs if run.name == name]
        links = " ".join(f"<a href='{escape(str(run.relative_to(out)))}/report.html'>{escape(run.parent.name)}</a>"
                         for run in own)
        lines.append([escape(name), script_of(own[0]), links, certificates_in_short(own), finding(own[0])])
    head = ["run", "script", "pages", "certificate", "what came of the first"]
    return f"""<h2>Runs</h2><p>Each has a page of its own, with its curves, its samples and its exact command.  C1: the
        AUC of R within prompts, a half is chance.  C2: KL(student‖teacher), nats per token, exact over the vocabulary,
        on the student’s own rollouts to held-out prompts, before the bridge and after it.</p>
        {html_table(*filled(head, lines))}
        <h2>All of it again</h2><pre>{escape(table["command"])}</pre>
        <p class="muted">On a directory that is there it goes on where it stopped; --dry-run prints the commands.</p>"""


def certificates_in_short(runs: list[Path]) -> str:
    """On how many seeds C1 or C2 held, and with which figures."""
    found = [(run, certificate) for run in runs if (certificate := read_json(run / "certificate.json"))]
    if not found:
        return ""
    condition, held = found[0][1]["condition"], sum(certificate["passed"] for _, certificate in found)
    if condition == "C1":
        figures = [certificate["sum"]["within_prompt_auc"]["value"] for _, certificate in found]
    else:
        before = [next(row["c2_reverse_kl_nats"] for row in read_jsonl(run / "metrics.jsonl")
                       if "c2_reverse_kl_nats" in row) for run, _ in found]
        figures = [certificate["c2_reverse_kl_nats"] for _, certificate in found]
    told = f"{span(before)}, then {span(figures)}" if condition == "C2" else span(figures)
    return f"{condition} held on {held} of {len(found)}: {told}"


def span(values: list[float | None], form: str = ".3f") -> str:
    """0.905 to 1.000"""
    known = [value for value in values if value is not None]
    return " to ".join(dict.fromkeys(format(pick(known), form) for pick in (min, max))) if known else "not defined"
