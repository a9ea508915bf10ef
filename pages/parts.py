"""What a page is made of: its style for light and dark, desk and phone, its tables, and its plots as inline SVG."""
import io
import math
import re
import shlex
from html import escape
from pathlib import Path

import numpy as np

INK, MUTED, RULE = "#1c2530", "#66717e", "#dde2e7"
PALETTE = ["#0072b2", "#c08a00", "#d55e00", "#00805e", "#a8578a", "#3d98cf",
           "#5b4b9a", "#7a6a2f", "#b0306a", "#4d7f17", "#8c4a2f", "#2f7f8c"]   # the first six: told apart by all
LINES = [(colour, dash) for dash in ("-", (0, (4, 2)), (0, (1, 1.5))) for colour in PALETTE]       # a run each

STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "report", "font.size": 8, "lines.linewidth": 1.6, "text.color": INK,
    "axes.titlesize": 9, "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.edgecolor": "#aab3bd",
    "axes.labelcolor": MUTED, "axes.linewidth": 0.7, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "axes.axisbelow": True, "grid.color": "#edf0f3", "grid.linewidth": 0.7,
    "xtick.color": MUTED, "ytick.color": MUTED, "xtick.major.width": 0.7, "ytick.major.width": 0.7}

CSS = Path(__file__).with_name("style.css").read_text(encoding="utf-8")


def number(value) -> str:
    """A figure for people: thousands separated, else three digits."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:,.0f}" if isinstance(value, int) or abs(value) >= 100 else f"{value:.3g}"


def with_interval(value, interval) -> str:
    if value is None or interval[0] is None:
        return "not defined"
    return f"{value:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"


def slug(name: str) -> str:
    return re.sub(r"\W+", "_", name).strip("_").lower()


def page(title: str, kicker: str, sections: list[str], *flags) -> str:
    """Each heading is a link to itself.  flags: of the command that writes this page."""
    body = re.sub(r"<h2>(.*?)</h2>", lambda heading: f"<h2 id='{slug(heading[1])}'><a href='#{slug(heading[1])}'>"
                                                     f"{heading[1]}</a></h2>", "\n".join(sections))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>{escape(title)}</title><style>{CSS}</style></head><body>
<p class="kicker">{escape(kicker)}</p><h1>{escape(title)}</h1>
{body}
<footer>Every figure here was read from the runs’ files.  This page anew:
<code>python report.py {escape(shlex.join(map(str, flags)))}</code></footer></body></html>
"""


def filled(head: list[str], rows: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """A table without the columns that say nothing in any row."""
    kept = [i for i in range(len(head)) if any(row[i].strip(" –/") for row in rows)]
    return [head[i] for i in kept], [[row[i] for i in kept] for row in rows]


def markdown_table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Its lines; the first column is set flush left."""
    rule = ["-" * max(len(head[0]), 3), *("-" * max(len(cell) - 1, 3) + ":" for cell in head[1:])]
    return [f"| {' | '.join(cells)} |" for cells in (head, rule, *rows)]


def html_table(head: list[str], rows: list[list[str]], numeric=(), classes=()) -> str:
    """Cells are HTML already; `numeric` columns are set flush right.  On a phone a row becomes a list."""
    def line(cells: list[str], tag: str) -> str:
        return "".join(f"<{tag}{' class=n' * (i in numeric)} data-label='{re.sub('<.*', '', head[i])}'>{cell}</{tag}>"
                       for i, cell in enumerate(cells))
    classes = classes or [""] * len(rows)
    body = "\n".join(f"<tr class='{name}'>{line(cells, 'td')}</tr>" for cells, name in zip(rows, classes))
    return f"<table><thead><tr>{line(head, 'th')}</tr></thead>\n<tbody>{body}</tbody></table>"


def arm_boxes(colours: dict[str, str]) -> str:
    """The legend of a page: a checkbox an arm, which hides what is drawn of it by the style sheet, without script."""
    boxes = "".join(f"<label style='color:{colour}'><input type=checkbox checked id='{slug(arm)}'> "
                    f"{escape(arm)}</label>" for arm, colour in colours.items())
    rules = "".join(f"body:has(#{slug(arm)}:not(:checked)) .arm-{slug(arm)}{{display:none}}" for arm in colours)
    return f"<style>{rules}</style><p class=arms>{boxes}</p>"


# ---------------------------------------------------------------- plots

WIDE = 4.2          # inches: half a page on a desk, a whole one on a phone, and its text can be read on both


def new_figure(width: float, height: float):
    """-> a matplotlib figure, in inches.  Imported here: the stages do without where it is missing."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams.update(STYLE)
    return Figure(figsize=(width, height), layout="constrained")


def mark(arm: str = "", titles=()) -> str:
    """The gid of an artist that belongs to an arm, and what its markers say when one points at them; svg() reads it."""
    return "mark:" + "|".join(text.replace("|", "/") for text in (arm and f"arm-{slug(arm)}", *titles))


def with_marks(text: str) -> str:
    """What mark() has put into the ids of an SVG, as classes and as a <title> in each marker."""
    def marked(part: str) -> str:
        found = re.match(r'<g id="mark:([^"|]*)\|?([^"]*)">', part)
        if not found:
            return part
        titles = iter(found[2].split("|"))
        return f'<g class="{found[1]}">' + re.sub(
            r"<use ([^>]*)/>", lambda use: f"<use {use[1]}><title>{next(titles, '')}</title></use>", part[found.end():])
    return "".join(map(marked, re.split(r'(?=<g id=")', text)))


def svg(figure, label: str) -> str:
    """Inline SVG as wide as its place on the page; its text is text, in the page's font."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = with_marks(file.getvalue())
    text = re.sub(r' (width|height)="[\d.]+pt"', "", text[text.index("<svg"):], count=2)
    text = text.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)       # figure.svg is XML
    return f"<figure>{text}</figure>"


def draw_intervals(axes, lines: list[tuple], threshold: float | None = None) -> None:
    """A line each (name, colour, [(value, title)], interval): a dot a value, their mean upright, the interval pale."""
    for place, (name, colour, points, interval) in enumerate(lines):
        axes.annotate(name, (0, place - 0.32), (3, 0), ("axes fraction", "data"), "offset points", va="bottom",
                      color=MUTED, gid=mark(name), bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5})
        if interval is not None and None not in interval:
            axes.plot(interval, [place] * 2, color=colour, linewidth=7, alpha=0.25, solid_capstyle="butt",
                      gid=mark(name))
        if points:
            values, heights = [value for value, _ in points], place + np.linspace(-0.2, 0.2, len(points) + 2)[1:-1]
            axes.plot([np.mean(values)] * 2, [place - 0.3, place + 0.3], color=colour, linewidth=1.8, gid=mark(name))
            axes.plot(values, heights, "o", color=colour, markersize=4, alpha=0.75, markeredgewidth=0, clip_on=False,
                      gid=mark(name, [title for _, title in points]))
    if threshold is not None:
        axes.axvline(threshold, color=INK, linestyle=(0, (4, 3)), linewidth=1)
    axes.set_yticks([])
    axes.set(xlim=(0, 1.02), ylim=(len(lines) - 0.5, -0.8))


def intervals_svg(lines: list[tuple], label: str, threshold: float | None = None) -> str:
    figure = new_figure(WIDE, 0.5 + 0.4 * len(lines))
    draw_intervals(figure.subplots(), lines, threshold)
    return svg(figure, label)


def curves_svg(lines: list[tuple], title: str, x: str, y: str, width: float, is_share: bool = False,
               bound: float | None = None, last: str = "") -> str:
    """A line each (points, style, arm, name): what matplotlib is told, and what a point says when one points at it.

    points: (n, 2).  A line without a name is mute.  bound: a level to draw.  last: a figure at the upper right.
    """
    figure = new_figure(width, 0.63 * width)
    axes, every = figure.subplots(), np.concatenate([points for points, *_ in lines])
    for points, style, arm, name in lines:
        axes.plot(*points.T, gid=mark(arm), **style)
        some = points[::math.ceil(len(points) / 60)]
        titles = [f"{name} {number(float(a))}: {number(float(b))}" for a, b in some]
        if name:
            axes.plot(*some.T, "o", markersize=7, alpha=0, gid=mark(arm, titles))           # for the pointer alone
    (left, lowest), (right, highest) = every.min(axis=0), every.max(axis=0)
    if bound is not None and bound > lowest / 30:                                           # else far below the plot
        axes.axhline(bound, color=INK, linestyle=(0, (4, 3)), linewidth=1)
        axes.annotate(f"bound {bound:g}", (0.02, bound), xycoords=("axes fraction", "data"), xytext=(0, 3),
                      textcoords="offset points", fontsize=7.5)
        highest = max(highest, bound)
    if use_log := bool(not is_share and 0 < 30 * lowest < highest):
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter("")
    else:
        top = 1.06 if is_share and highest > 0.3 else 1.1 * highest if highest > 0 else 1
        axes.set_ylim(min(-0.03 * top * is_share, lowest), top)
    if left == right:
        axes.set_xlim(left - 1, right + 1)
    axes.locator_params("x", nbins=5, integer=True, steps=[1, 2, 5, 10])
    axes.set(title=title, xlabel=x, ylabel=y + ", log scale" * use_log)
    axes.annotate(last, (1, 1.02), xycoords="axes fraction", ha="right", va="bottom", color=PALETTE[0])
    return svg(figure, f"{title} ({y}) against {x}")


def swatch(colour: str, dash) -> str:
    """A line of a legend."""
    dashes = "" if dash == "-" else f"stroke-dasharray='{' '.join(str(2 * length) for length in dash[1])}'"
    line = f"<line x1='0' x2='28' y1='4' y2='4' stroke='{colour}' stroke-width='3' {dashes}/>"
    return f"<svg width='28' height='8'>{line}</svg>"
