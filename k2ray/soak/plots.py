"""Line plots as inline SVG: no script, no network, readable in any browser. Pure."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping, Sequence
from html import escape

Series = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 860, 220
LEFT, RIGHT, TOP, BOTTOM = 70, 12, 10, 24
COLOURS = ("#2563eb", "#dc2626", "#059669", "#d97706", "#7c3aed", "#0891b2", "#be185d", "#4d7c0f", "#475569")
TICKS = 4


def plot(title: str, unit: str, series: Mapping[str, Series], *, marks: Sequence[tuple[float, str]] = ()) -> str:
    """Return a figure with one line a series.

    Args:
        title: Its heading.
        unit: Of the values.
        series: Name -> (unix time, value), in order of time.
        marks: Moments with a word each, as vertical lines.
    """
    drawn = {name: [point for point in points if math.isfinite(point[1])] for name, points in series.items()}
    drawn = {name: points for name, points in drawn.items() if points}
    heading = f"<h2>{escape(title)} <small>{escape(unit)}</small></h2>"
    if not drawn:
        return f"<figure>{heading}<p class='none'>nothing was recorded</p></figure>"
    times = [at for points in drawn.values() for at, _ in points]
    first, last = min(times), max(times)
    top = _round_up(max(value for points in drawn.values() for _, value in points))
    x = _Scale(first, last if last > first else first + 1, LEFT, WIDTH - RIGHT)
    y = _Scale(0.0, top, HEIGHT - BOTTOM, TOP)
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']
    for n in range(TICKS + 1):
        value = top * n / TICKS
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{_number(value)}</text>')
        at = first + (last - first) * n / TICKS
        anchor = "start" if n == 0 else "end" if n == TICKS else "middle"
        parts.append(f'<text x="{x(at):.1f}" y="{HEIGHT - 6}" text-anchor="{anchor}">{_clock(at)}</text>')
    for at, word in marks:
        if first <= at <= last:
            parts.append(f'<line class="mark" x1="{x(at):.1f}" x2="{x(at):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}">')
            parts.append(f"<title>{escape(word)}</title></line>")
    legend = []
    for number, (name, points) in enumerate(sorted(drawn.items())):
        colour = COLOURS[number % len(COLOURS)]
        if len(points) == 1:
            parts.append(f'<circle cx="{x(points[0][0]):.1f}" cy="{y(points[0][1]):.1f}" r="2" fill="{colour}"/>')
        path = " ".join(f"{x(at):.1f},{y(value):.1f}" for at, value in points)
        parts.append(f'<polyline points="{path}" stroke="{colour}"/>')
        legend.append(f'<span style="color:{colour}">&#9644; {escape(name)} ({_number(points[-1][1])})</span>')
    parts.append("</svg>")
    return f"<figure>{heading}{''.join(parts)}<figcaption>{' '.join(legend)}</figcaption></figure>"


class _Scale:
    """Maps values to pixels."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self._low, self._start = low, start
        self._factor = (end - start) / (high - low)

    def __call__(self, value: float) -> float:
        return self._start + (value - self._low) * self._factor


def _round_up(value: float) -> float:
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10, 20) if factor * power >= value)


def _number(value: float) -> str:
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _clock(at: float) -> str:
    return datetime.datetime.fromtimestamp(at, datetime.UTC).strftime("%d %H:%M:%S")
