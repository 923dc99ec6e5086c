"""Small charts as inline SVG, whose colours and fonts are the page's: curves with bands, and stacked areas, by round.

Every text is escaped, and nothing has a `style` attribute, which the page's Content-Security-Policy would ignore.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from reval_jax.tools.report import headline

WIDTH, HEIGHT = 560, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 12, 34  # margins
_MAX_BINS = 300  # a longer curve is drawn by the smallest and largest value in each of so many parts
_MAX_DOTS = 80  # points of a curve that are drawn as dots, which say their numbers under the pointer
_SMALLEST = 1e-290  # between ticks: powers of ten below it are not exact, or 0
NUM_COLOURS = 8

Point = tuple[float, float]


class Curve(NamedTuple):
    """One curve; x is the round."""

    label: str
    points: Sequence[Point]  # ascending in x
    band: Sequence[tuple[float, float, float]] = ()  # x, low, high
    colour: int = 0  # 0 … NUM_COLOURS - 1
    is_dashed: bool = False


class Axes(NamedTuple):
    """What charts side by side share."""

    x: tuple[float, float]
    y: tuple[float, float]
    is_log: bool = False
    marks: Sequence[float] = ()  # rounds with a vertical line


def axes_of(
    curves: Iterable[Curve],
    *,
    marks: Sequence[float] = (),
    limits: tuple[float, float] | None = None,
    may_be_log: bool = False,
) -> Axes:
    """Axes that hold all the curves and their bands.

    Args:
      limits: of y, instead of the curves' own.
      may_be_log: y is logarithmic if all values are above 0 and the largest is 100 times the smallest or more.
    """
    curves = list(curves)
    xs = [x for curve in curves for x, _ in curve.points]
    ys = [y for curve in curves for _, y in curve.points]
    ys += [bound for curve in curves for _, *bounds in curve.band for bound in bounds]
    low, high = min(ys), max(ys)
    is_log = may_be_log and low > 0 and high / low >= 100
    if limits:
        low, high = limits
    elif low == high:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    elif not is_log:
        # A quantity that begins near 0 shows its 0.
        room = (high - low) / 15
        low, high = (0.0 if 0 <= low < high / 2 else low - room), high + room
    return Axes((min(xs), max(max(xs), min(xs) + 1)), (low, high), is_log, marks)


def curves(drawn: Sequence[Curve], axes: Axes, *, name: str) -> str:
    """The SVG of the curves.

    Args:
      name: of the chart, for those who hear the page.
    """
    to_x, to_y = _scales(axes)
    parts = [_frame(axes, to_x, to_y)]
    for curve in drawn:
        band = [(x, low, high) for x, low, high in _thinned_band(curve.band)]
        if len(band) > 1:
            edge = [(x, high) for x, _, high in band] + [(x, low) for x, low, _ in reversed(band)]
            parts.append(f'<path class="band f{curve.colour}" d="{_path(edge, to_x, to_y)}Z"/>')
        elif band:
            ((x, low, high),) = band
            parts.append(f'<path class="line c{curve.colour}" d="{_path([(x, low), (x, high)], to_x, to_y)}"/>')
    for curve in drawn:
        dashed = " dashed" if curve.is_dashed else ""
        points = _thinned(curve.points)
        parts.append(f'<path class="line c{curve.colour}{dashed}" d="{_path(points, to_x, to_y)}"/>')
        if len(curve.points) <= _MAX_DOTS:
            bounds = {x: f" [{number(low)}, {number(high)}]" for x, low, high in curve.band if low < high}
            parts += [
                f'<circle class="f{curve.colour}" cx="{to_x(x):.1f}" cy="{to_y(y):.1f}" r="2.4"><title>'
                f"{headline.text(curve.label)}, round {x:g}: {number(y)}{bounds.get(x, '')}</title></circle>"
                for x, y in curve.points
            ]
    return _svg(parts, name)


def stacked(layers: Sequence[Curve], axes: Axes, *, name: str) -> str:
    """The SVG of areas upon each other, the first at the bottom; all layers have the same rounds."""
    to_x, to_y = _scales(axes)
    parts = []
    below = {x: 0.0 for layer in layers for x, _ in layer.points}
    for layer in layers:
        top = [(x, below[x] + y) for x, y in layer.points]
        bottom = [(x, below[x]) for x, _ in layer.points]
        below |= dict(top)
        bins = list(zip(_averaged(top), _averaged(bottom), strict=True))
        if len(bins) == 1:  # one round has no width
            ((x, high), (_, low)) = bins[0]
            bins = [((x, high), (x, low)), ((axes.x[1], high), (axes.x[1], low))]
        edge = [point for point, _ in bins] + [point for _, point in reversed(bins)]
        parts.append(
            f'<path class="area f{layer.colour}" d="{_path(edge, to_x, to_y)}Z"><title>{headline.text(layer.label)}'
            "</title></path>"
        )
    return _svg([*parts, _frame(axes, to_x, to_y)], name)


def legend(curves: Iterable[tuple[str, int, bool]]) -> str:
    """HTML of the keys of a chart: (label, colour, is dashed) each."""
    keys = "".join(
        f'<li><svg class="key" viewBox="0 0 22 8" aria-hidden="true"><path class="line c{colour}'
        f'{" dashed" if is_dashed else ""}" d="M1 4H21"/></svg>{headline.text(label)}</li>'
        for label, colour, is_dashed in curves
    )
    return f'<ul class="legend">{keys}</ul>'


def number(value: float) -> str:
    """Three significant digits, without an exponent where a person reads better."""
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        digits = 0 if abs(value) >= 100 else 3 if abs(value) < 1 else 2
        text = f"{value:,.{digits}f}"
        return text.rstrip("0").rstrip(".") if "." in text and abs(value) >= 1 else text
    return f"{value:.2g}"


def _svg(parts: Iterable[str], name: str) -> str:
    shape = f'viewBox="0 0 {WIDTH} {HEIGHT}" role="img"'
    return f'<svg class="chart" {shape} aria-label="{headline.text(name)}">{"".join(parts)}</svg>'


def _scales(axes: Axes) -> tuple[Callable[[float], float], Callable[[float], float]]:
    (left, right), (low, high) = axes.x, axes.y
    if axes.is_log:
        low, high = math.log10(low), math.log10(high)

    def to_x(x: float) -> float:
        return _LEFT + (x - left) / (right - left) * (WIDTH - _LEFT - _RIGHT)

    def to_y(y: float) -> float:
        if axes.is_log:
            y = math.log10(y)
        # What lies beyond stated limits stays at the edge.
        share = min(1.0, max(0.0, (y - low) / ((high - low) or 1)))
        return HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM)

    return to_x, to_y


def _frame(axes: Axes, to_x: Callable[[float], float], to_y: Callable[[float], float]) -> str:
    right, bottom = WIDTH - _RIGHT, HEIGHT - _BOTTOM
    parts = []
    for y in _log_ticks(*axes.y) if axes.is_log else _ticks(*axes.y, 5):
        parts.append(f'<path class="grid" d="M{_LEFT} {to_y(y):.1f}H{right}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 6}" y="{to_y(y) + 4:.1f}" text-anchor="end">{_tick(y)}</text>')
    for x in _ticks(*axes.x, 8):
        if x == int(x):
            parts.append(f'<path class="grid" d="M{to_x(x):.1f} {bottom}v4"/>')
            parts.append(f'<text class="tick" x="{to_x(x):.1f}" y="{bottom + 16}" text-anchor="middle">{int(x)}</text>')
    parts.append(f'<path class="axis" d="M{_LEFT} {_TOP}V{bottom}H{right}"/>')
    parts.append(f'<text class="tick" x="{right}" y="{HEIGHT - 4}" text-anchor="end">round</text>')
    parts += [
        f'<path class="mark" d="M{to_x(x):.1f} {_TOP}V{bottom}"><title>round {x:g}</title></path>' for x in axes.marks
    ]
    return "".join(parts)


def _tick(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers from low to high, about `count` of them."""
    step = (high - low) / count
    if step < _SMALLEST:
        return [low]
    size = 10.0 ** math.floor(math.log10(step))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= step * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    powers = range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)
    every = max(1, len(powers) // 5)
    return [10.0**power for power in powers[::every]]


def _path(points: Iterable[Point], to_x: Callable[[float], float], to_y: Callable[[float], float]) -> str:
    return "M" + "L".join(f"{to_x(x):.1f} {to_y(y):.1f}" for x, y in points)


def _parts(points: Sequence[tuple[float, ...]]) -> list[Sequence[tuple[float, ...]]]:
    size = math.ceil(len(points) / _MAX_BINS)
    return [points[start : start + size] for start in range(0, len(points), size)]


def _thinned(points: Sequence[Point]) -> list[Point]:
    """The points, or of many the smallest and largest of each part, so that no spike is lost."""
    if len(points) <= 2 * _MAX_BINS:
        return list(points)
    kept: list[Point] = []
    for part in _parts(points):
        extremes = {min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])}
        kept += sorted((x, y) for x, y in extremes)
    return kept


def _thinned_band(band: Sequence[tuple[float, float, float]]) -> list[tuple[float, float, float]]:
    if len(band) <= 2 * _MAX_BINS:
        return list(band)
    return [(part[0][0], min(low for _, low, _ in part), max(high for *_, high in part)) for part in _parts(band)]


def _averaged(points: Sequence[Point]) -> list[Point]:
    if len(points) <= 2 * _MAX_BINS:
        return list(points)
    return [(part[0][0], sum(y for _, y in part) / len(part)) for part in _parts(points)]
