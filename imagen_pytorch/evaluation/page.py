"""Pages of HTML in one file that opens offline: charts, films of images, tables and texts; every value is escaped."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from ..wording import printable
from .plots import COLOURS, Curve, axes_of, log_ticks, smoothed, step_ticks

#: points of a curve in a chart, at most
POINTS = 600
#: side of the square in whose units the curves of a chart are drawn; the page stretches it
_SIDE = 1000

#: nothing is fetched from elsewhere, and no script runs but the page's own
_HEAD = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>TITLE</title><style>
*{box-sizing:border-box}
body{font:16px/1.5 system-ui,sans-serif;color:#202024;background:#fff;max-width:1000px;margin:0 auto}
body{padding:1.5rem 1rem}
h1{font-size:1.6rem;margin:0 0 .25rem;overflow-wrap:anywhere}h2{font-size:1.15rem;margin:2.25rem 0 .5rem}
.scroll{overflow-x:auto}table{border-collapse:collapse}
th,td{text-align:left;white-space:nowrap;padding:.25rem 1.25rem .25rem 0;border-bottom:1px solid #dedee2}
td{font-variant-numeric:tabular-nums}
pre{white-space:pre-wrap;overflow-wrap:anywhere;background:#f5f5f7;padding:.75rem;font-size:.8rem;margin:.5rem 0}
summary{cursor:pointer}details{margin:.5rem 0}
.legend{display:flex;flex-wrap:wrap;gap:0 1.25rem;font-size:.9rem}.legend i{display:inline-block;width:1.1em;height:3px;
vertical-align:middle;margin-right:.4em}
.chart{margin:.5rem 1rem 0 3.2rem;height:18rem;position:relative}.chart svg{width:100%;height:100%;display:block}
.chart span{position:absolute;font-size:.75rem;line-height:1}.chart .y{right:100%;margin-right:.4rem;translate:0 50%}
.chart .x{top:100%;margin-top:.4rem;translate:-50% 0}.axis{font-size:.8rem;text-align:center;margin:1.4rem 0 0 3.2rem}
polyline,path{fill:none;vector-effect:non-scaling-stroke}
.film input{display:block;width:100%;max-width:40rem;margin:.25rem 0 .5rem}.film img{max-width:100%;display:block}
[hidden]{display:none !important}
</style></head><body>
"""
_TAIL = """<script>
for (const film of document.querySelectorAll(".film")) {
  const slider = film.querySelector("input"), images = [...film.querySelectorAll("img")];
  const show = () => images.forEach((image, index) => {
    image.hidden = index != slider.value;
    if (!image.hidden) film.querySelector("output").textContent = image.alt;
  });
  slider.addEventListener("input", show);
  show();
}
</script></body></html>
"""


class Frame(NamedTuple):
    """An image of a film: its label, the contents of its file, and their media type."""

    label: str
    contents: bytes
    kind: str


def _escaped(value: object) -> str:
    """A value as text of the page, in which control characters are visible."""
    return html.escape("\n".join(printable(line) for line in str(value).split("\n")))


def _heading(title: str) -> str:
    return f"<h2>{_escaped(title)}</h2>"


def _thinned(curve: Curve) -> Curve:
    """At most `POINTS` points of a curve, the last one among them."""
    apart = -(-len(curve) // POINTS)
    return curve[::-apart][::-1] if apart > 1 else curve


def _line(points: Iterable[tuple[float, float]], colour: str, style: str) -> str:
    places = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{places}" stroke="{colour}" {style}/>'


def chart(title: str, curves: Mapping[str, Curve]) -> str:
    """Return a chart of losses over training steps on a logarithmic scale: pale raw values, and their running mean.

    Args:
        title: of the chart.
        curves: (step, loss) pairs in order, by name; all finite and positive, and none of them empty.
    """
    axes = axes_of(curves, (0, 0, _SIDE, _SIDE))
    drawn, labels, legend = [], [], []
    for loss in log_ticks(*axes.losses):
        drawn.append(f'<path d="M0 {axes.y(loss):.1f}H{_SIDE}" stroke="#dedee2"/>')
        labels.append(f'<span class="y" style="bottom:{100 - axes.y(loss) / _SIDE * 100:.2f}%">{loss:.3g}</span>')
    for step in step_ticks(*axes.steps, count=5):
        label = str(step) if step < 1e5 else f"{step / 1000:g}k"
        labels.append(f'<span class="x" style="left:{axes.x(step) / _SIDE * 100:.2f}%">{label}</span>')
    for index, (name, curve) in enumerate(curves.items()):
        colour, steady = f"rgb{COLOURS[index % len(COLOURS)]}", smoothed(curve)
        drawn.append(_line(axes.line(_thinned(curve)), colour, 'stroke-opacity=".3"'))
        dot = ' stroke-width="7" stroke-linecap="round"' if len(curve) == 1 else ' stroke-width="2"'
        drawn.append(_line(axes.line(_thinned(steady)) * (2 if len(curve) == 1 else 1), colour, dot))
        mark = f'<i style="background:{colour}"></i>'
        legend.append(f"<span>{mark}{_escaped(name)}: {steady[-1][1]:.3g}</span>")
    lines = f'<svg viewBox="0 0 {_SIDE} {_SIDE}" preserveAspectRatio="none" aria-hidden="true">{"".join(drawn)}</svg>'
    axis = '<div class="axis">training step (the loss is on a logarithmic scale)</div>'
    shown = f'<div class="legend">{"".join(legend)}</div><div class="chart">{lines}{"".join(labels)}</div>{axis}'
    return _heading(title) + shown


def film(title: str, frames: Sequence[Frame]) -> str:
    """Return a film: images of which a slider shows one, at first the last."""
    last, images = len(frames) - 1, []
    for index, frame in enumerate(frames):
        data = base64.b64encode(frame.contents).decode("ascii")
        hidden = "" if index == last else " hidden"
        images.append(f'<img alt="{_escaped(frame.label)}" src="data:{frame.kind};base64,{data}"{hidden}>')
    alone = "" if last else " hidden"
    slider = f'<input type="range" min="0" max="{last}" value="{last}" aria-label="{_escaped(title)}"{alone}>'
    label = f"<output>{_escaped(frames[-1].label)}</output>"
    return f'{_heading(title)}<div class="film">{label}{slider}<div class="scroll">{"".join(images)}</div></div>'


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table with a heading for each column."""
    head = "".join(f"<th>{_escaped(name)}</th>" for name in columns)
    cells = (("".join(f"<td>{_escaped(value)}</td>" for value in row)) for row in rows)
    body = "".join(f"<tr>{row}</tr>" for row in cells)
    return f'{_heading(title)}<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def paragraphs(texts: Iterable[str]) -> str:
    """Return texts, each as a paragraph."""
    return "".join(f"<p>{_escaped(text)}</p>" for text in texts)


def quoted(title: str, text: str) -> str:
    """Return a text that is shown as it is, once its title is clicked."""
    return f"<details><summary>{_escaped(title)}</summary><pre>{_escaped(text)}</pre></details>"


def page(title: str, parts: Iterable[str]) -> bytes:
    """Return a page with a title and the results of the functions above, as the contents of a file."""
    head = _HEAD.replace("TITLE", _escaped(title))
    return f"{head}<h1>{_escaped(title)}</h1>{''.join(parts)}{_TAIL}".encode("utf-8", "replace")
