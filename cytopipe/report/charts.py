"""Charts as inline SVG: a stacked histogram, and lines over iterations. They scale with the page and need no script.

Enters: numbers.  Leaves: SVG markup. `charts.js` adds a readout under the pointer to line charts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from cytopipe.report.encode import escaped, number, swatch

Points = list[tuple[float, float]]
"""(x, y) pairs by ascending x; a y that is not finite is a gap."""

LINE_COLOURS = ("#0b6e75", "#d1600a", "#6b4fb3", "#b0254f", "#3b7d23", "#2f66b8", "#8a6d00", "#6a737d")

_SMOOTHING_POINTS = 60  # a curve longer than this is also drawn as its running mean over a 60th of its points


def stacked_histogram(
    values: Mapping[str, NDArray[np.floating]],
    colours: Mapping[str, str],
    *,
    bins: int = 20,
    span: tuple[float, float] = (0.0, 1.0),
    label: str = "score",
    things: str = "objects",
    width: float = 640.0,
) -> str:
    """A histogram over `span`, one colour a name, stacked in the order of `values`; '' without any value.

    values    name -> (n,) numbers; those outside of `span` are counted in the first or the last bar
    The other arguments are those of `stacked_bars`.
    """
    edges = np.linspace(*span, bins + 1)
    counts = {name: np.histogram(np.clip(v, *span), edges)[0] for name, v in values.items()}
    return stacked_bars(counts, colours, span=span, label=label, things=things, width=width)


def stacked_bars(
    counts: Mapping[str, NDArray[np.integer]],
    colours: Mapping[str, str],
    *,
    span: tuple[float, float] = (0.0, 1.0),
    label: str = "score",
    things: str = "objects",
    width: float = 640.0,
) -> str:
    """A histogram that is counted already, one colour a name, stacked in the order of `counts`; '' without any.

    counts    name -> (bins,) counts, bars of equal width over `span`, as many for each name
    colours   name -> CSS colour
    label     what the numbers are, below the axis;  things    what is counted
    width     of the drawing, px at its full size: the narrower, the larger its text is beside it
    """
    total = np.sum(list(counts.values()), axis=0) if counts else np.zeros(1, int)
    if total.sum() == 0:
        return ""
    bins = len(total)
    edges = np.linspace(*span, bins + 1)
    ticks = _ticks(0, float(total.max()), 4, whole=True)
    left = max(44.0, 14 + 7.0 * len(number(ticks[-1])))  # px: a digit of 12 px text is about 7 px wide
    height, bottom, top = 134 + 0.1875 * width, 40.0, 10.0
    plot_w, plot_h = width - left - 8, height - bottom - top
    highest = max(ticks[-1], float(total.max()))
    view = f'viewBox="0 0 {width:g} {height:g}" role="img" aria-label="Histogram: {escaped(label)}"'
    parts = [f'<svg class="chart" {view}>']
    for tick in ticks:
        y = top + plot_h * (1 - tick / highest)
        parts.append(f'<path class="rule" d="M{left:g} {y:.1f}H{width - 8:g}"/>')
        parts.append(f'<text x="{left - 8:g}" y="{y + 4:.1f}" text-anchor="end">{number(tick)}</text>')
    step = plot_w / bins
    form = ".2f" if span[1] <= 1 else ".4g"
    for k in range(bins):
        base = top + plot_h
        x = left + k * step + 1.5
        tip = f"{label} {edges[k]:{form}} to {edges[k + 1]:{form}}: {int(total[k])} {things}"
        bars = []
        for name, count in counts.items():
            tall = plot_h * float(count[k]) / highest
            if tall > 0:
                base -= tall
                place = f'x="{x:.1f}" y="{base:.2f}" width="{step - 3:.1f}" height="{tall:.2f}"'
                bars.append(f'<rect {place} fill="{colours[name]}"/>')
        parts.append(f"<g>{''.join(bars)}<title>{escaped(tip)}</title></g>")
    for tick in _ticks(*span, 4):
        if tick <= span[1] * (1 + 1e-9):
            x = left + plot_w * (tick - span[0]) / (span[1] - span[0])
            parts.append(f'<text x="{x:.1f}" y="{height - 22:g}" text-anchor="middle">{_short(tick)}</text>')
    middle = f'x="{left + plot_w / 2:.1f}" y="{height - 5:g}" text-anchor="middle"'
    parts.append(f'<text class="axis" {middle}>{escaped(label)}</text></svg>')
    return "".join(parts)


def line_chart(title: str, lines: Mapping[str, Points], *, unit: str = "iteration") -> str:
    """A small chart with one line a name over the same x; '' without any finite point.

    lines    name -> points
    """
    finite = [(x, y) for points in lines.values() for x, y in points if math.isfinite(y)]
    if not finite:
        return ""
    width, height, bottom, top = 360.0, 200.0, 26.0, 8.0
    xs, ys = [p[0] for p in finite], [p[1] for p in finite]
    x_low, x_high = min(xs), max(max(xs), min(xs) + 1)
    low, high = _range(ys)
    ticks = _ticks(low, high, 4)
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    left = max(46.0, 12 + 7.0 * max(len(_short(tick)) for tick in ticks))  # px: a digit of 12 px text is about 7 wide

    def place(x: float, y: float) -> tuple[float, float]:
        across = left + (width - left - 10) * (x - x_low) / (x_high - x_low)
        up = min((y - low) / (high - low), 1.0)  # a spike above the axis runs along its top
        return across, top + (height - bottom - top) * (1 - up)

    parts = []
    for tick in ticks:
        y = place(x_low, tick)[1]
        parts.append(f'<path class="rule" d="M{left:g} {y:.1f}H{width - 10:g}"/>')
        parts.append(f'<text x="{left - 7:g}" y="{y + 4:.1f}" text-anchor="end">{escaped(_short(tick))}</text>')
    for tick in _ticks(x_low, x_high, 4, whole=True):
        if x_low <= tick <= x_high:
            x = place(tick, low)[0]
            parts.append(f'<text x="{x:.1f}" y="{height - 8:g}" text-anchor="middle">{escaped(_short(tick))}</text>')
    legend, data = [], []
    for k, (name, points) in enumerate(lines.items()):
        colour = LINE_COLOURS[k % len(LINE_COLOURS)]
        smooth = _smoothed(points)
        if smooth is not points:
            parts.append(f'<path class="line raw" stroke="{colour}" d="{_path(points, place)}"/>')
        parts.append(f'<path class="line" stroke="{colour}" d="{_path(smooth, place)}"/>')
        last = next((y for _, y in reversed(smooth) if math.isfinite(y)), math.nan)
        label = f"{escaped(name)} " if name else ""
        legend.append(f"<span>{swatch(colour)}{label}<b>{number(last, 3)}</b></span>")
        thinned = [(x, y) for x, y in smooth[:: max(1, len(smooth) // 300)] if math.isfinite(y)]
        placed = [place(x, y) for x, y in thinned]
        data.append(
            [[x, round(px, 1), round(py, 1), number(y, 4)] for (x, y), (px, py) in zip(thinned, placed, strict=True)]
        )
    points_json = escaped(json.dumps(data, separators=(",", ":")))
    return (
        f'<figure class="plot" data-lines="{points_json}" data-unit="{escaped(unit)}">'
        f'<figcaption><h3>{escaped(title)}</h3><p class="legend">{"".join(legend)}</p></figcaption>'
        f'<svg class="chart" viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escaped(title)}">'
        f'{"".join(parts)}<g class="readout"></g></svg></figure>'
    )


def _range(ys: Sequence[float]) -> tuple[float, float]:
    """The span of an axis: from 0 where the values are near it, without the few spikes that would dwarf the rest."""
    low, high = min(ys), max(ys)
    usual = float(np.quantile(ys, 0.98))
    if len(ys) >= 50 and usual > 0 and high > 3 * usual:
        high = usual * 1.2
    if low >= 0 and low < 0.6 * high:
        low = 0.0
    return (low, high) if high > low else (low, low + (abs(low) or 1.0) * 0.1)


def _ticks(low: float, high: float, count: int, *, whole: bool = False) -> list[float]:
    """Round numbers from at or below `low` to at or above `high`, about `count` steps."""
    step = (high - low) / count or 1.0
    decade = 10.0 ** math.floor(math.log10(step))
    step = next(f * decade for f in (1, 2, 2.5, 5, 10) if f * decade >= step * (1 - 1e-9))
    if whole:
        step = max(1.0, math.ceil(step))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [k * step for k in range(first, last + 1)]


def _short(value: float) -> str:
    if value and abs(value) < 1e-3:
        return f"{value:.0e}".replace("e-0", "e-").replace("-", "−")
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:.6g}".replace("-", "−")


def _smoothed(points: Points) -> Points:
    """The running mean of a long curve; a short one or one with gaps as it is."""
    if len(points) < _SMOOTHING_POINTS or not all(math.isfinite(y) for _, y in points):
        return points
    half = max(2, len(points) // _SMOOTHING_POINTS)
    sums = np.concatenate([[0.0], np.cumsum([y for _, y in points])])
    index = np.arange(len(points))
    low, high = np.maximum(index - half, 0), np.minimum(index + half + 1, len(points))
    means = (sums[high] - sums[low]) / (high - low)
    return [(x, float(mean)) for (x, _), mean in zip(points, means, strict=True)]


def _path(points: Points, place: Callable[[float, float], tuple[float, float]]) -> str:
    """The `d` of a line, broken where a value is missing; at most about 600 points, which is more than its pixels."""
    pieces, pen_up = [], True
    for x, y in points[:: max(1, len(points) // 600)]:
        if not math.isfinite(y):
            pen_up = True
            continue
        across, down = place(x, y)
        pieces.append(f"{'M' if pen_up else 'L'}{across:.1f} {down:.1f}")
        pen_up = False
    return "".join(pieces)
