"""What a page is made of: its style for light and dark, desk and phone, its tables, and its plots as inline SVG."""
import io
import math
import re
import shlex
from html import escape

import numpy as np

INK, MUTED, RULE = "#1c2530", "#66717e", "#dde2e7"
PALETTE = ["#0072b2", "#c08a00", "#d55e00", "#00805e", "#a8578a", "#3d98cf"]    # colour-blind readers tell these apart
LINES = [(colour, dash) for dash in ("-", (0, (4, 2)), (0, (1, 1.5))) for colour in PALETTE]       # a run each

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
h1{font-size:26px;line-height:1.2;margin:0 0 10px} h1,code{overflow-wrap:anywhere} h3{font-size:14px;margin:18px 0 6px}
h2{font-size:18px;margin:44px 0 10px;padding-top:14px;border-top:1px solid #dde2e7}
p{margin:8px 0;max-width:840px} a{color:#00609a} .lead{font-size:18px;line-height:1.5;max-width:none}
.muted,.kicker,footer{color:#66717e;font-size:13px} .kicker{margin:0 0 4px}
.tiles{display:flex;flex-wrap:wrap;gap:10px 44px;margin:18px 0} .tiles b{display:block;font-size:22px;line-height:1.2}
.tiles span{color:#66717e;font-size:13px} svg{display:block} svg text{font-family:inherit!important}
figure{margin:14px 0;break-inside:avoid} figure svg{width:100%;height:auto} .grid figure{margin:0}
.wide{overflow-x:auto} .state{font-weight:bold}
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
.scale{height:12px;border-radius:2px} .scale,.ticks{width:340px;max-width:100%}
.ticks{display:flex;justify-content:space-between;font-size:12px;color:#66717e}
footer{margin-top:48px;padding-top:12px;border-top:1px solid #dde2e7}
@media (max-width:700px){.grid,.two,.rollout{grid-template-columns:minmax(0,1fr)}.flags{columns:1}
 .wide>svg{min-width:680px}.wide>table{min-width:640px}}
@media (prefers-color-scheme:dark){body{background:#14181c;color:#e3e7eb}a{color:#6cb6f0}pre{background:#1d2329}
 th,td,h2,footer{border-color:#333c45}figure svg,td svg,th svg{filter:invert(.92) hue-rotate(180deg) brightness(1.2)}
 .muted,.kicker,footer,th,td small,tr.reference td,.ticks,.tiles span,pre i{color:#9aa5b1} .tokens span{color:#14181c}}
@media print{body{margin:0;font-size:12px}pre,.tokens{max-height:none}h2,h3{break-after:avoid}}
"""


def number(value) -> str:
    """A figure for people: thousands separated, else three digits."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:,.0f}" if isinstance(value, int) or abs(value) >= 100 else f"{value:.3g}"


def with_interval(value, interval) -> str:
    if value is None or interval[0] is None:
        return "not defined"
    return f"{value:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"


def page(title: str, kicker: str, sections: list[str], *flags) -> str:
    """flags: of the command that writes this page."""
    newline = "\n"
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>{escape(title)}</title><style>{CSS}</style></head><body>
<p class="kicker">{escape(kicker)}</p><h1>{escape(title)}</h1>
{newline.join(sections)}
<footer>Every figure here was read from the runs’ files.  This page anew:
<code>python report.py {escape(shlex.join(map(str, flags)))}</code></footer></body></html>
"""


def html_table(head: list[str], rows: list[list[str]], numeric=(), classes=()) -> str:
    """Cells are HTML already; `numeric` columns are set flush right."""
    def line(cells: list[str], tag: str) -> str:
        return "".join(f"<{tag}{' class=n' * (i in numeric)}>{cell}</{tag}>" for i, cell in enumerate(cells))
    classes = classes or [""] * len(rows)
    body = "\n".join(f"<tr class='{name}'>{line(cells, 'td')}</tr>" for cells, name in zip(rows, classes))
    return (f"<div class=wide><table><thead><tr>{line(head, 'th')}</tr></thead>\n<tbody>{body}</tbody></table></div>")


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
    text = text.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)       # figure.svg is XML
    return f"<figure{' class=wide' * bool(figure.get_figwidth() > 5)}>{text}</figure>"


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


def swatch(colour: str, dash) -> str:
    """A line of a legend."""
    dashes = "" if dash == "-" else f"stroke-dasharray='{' '.join(str(2 * length) for length in dash[1])}'"
    line = f"<line x1='0' x2='28' y1='4' y2='4' stroke='{colour}' stroke-width='3' {dashes}/>"
    return f"<svg width='28' height='8'>{line}</svg>"
