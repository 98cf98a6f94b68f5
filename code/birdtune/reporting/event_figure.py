"""A stretch of a recording as one picture: its spectrogram, and below it what was annotated and what was detected.

    frames, events of some classes, their scores ─▶ draw ─▶ Picture: SVG, and where in it time runs

Drawn here rather than by matplotlib because every bar says what it is when pointed at. Right is filled, missed is
hollow and dashed, false is hatched, so that none of it rests on colour. Names are outside text: they pass `shown` and
are escaped.
"""

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import matplotlib.image
import numpy as np
import numpy.typing as npt
from markupsafe import Markup, escape

from birdtune.audio.logmel import LogMel, mel_from_hz
from birdtune.errors import shown

ANNOTATED, DETECTED = "annotated", "detected"
# What is said of an event; they are classes of the page's style sheet, too.
RIGHT, MISSED, FALSE, UNCOUNTED = "right", "missed", "false", "uncounted"

# All in units of the picture, which are about pixels.
_WIDTH, _LEFT, _RIGHT = 1100, 240, 12
_TOP, _SPECTROGRAM, _ROW, _AXIS = 6, 120, 46, 24
_BARS = {ANNOTATED: (4, 11), DETECTED: (18, 11)}  # top and height in a row
_SCORE = (31, 12)
_MOST_COLUMNS = 1_000  # of the spectrogram: more are not seen
_LONGEST_NAME = 23
_TICKS_HZ = (1_000, 2_000, 4_000, 8_000)
_TICKS_S = (0.5, 1, 2, 5, 10)
_MOST_TICKS = 13
_HATCH = "hatch"  # id of the pattern of what is false; `hatch` draws it, once a page


class Bar(NamedTuple):
    """An event of a class."""

    kind: str  # ANNOTATED or DETECTED
    is_what: str  # RIGHT, MISSED, FALSE or UNCOUNTED
    start_s: float
    end_s: float


@dataclass(frozen=True, eq=False)
class ClassRow:
    """What is drawn of a class.

    Attributes:
        start_s: [n] from when each score counts, rising; scores: [n] 0…1.
        threshold: from which score on there is a detection.
    """

    name: str
    bars: Sequence[Bar]
    start_s: npt.NDArray[np.float64]
    scores: npt.NDArray[np.float64]
    threshold: float


@dataclass(frozen=True)
class Picture:
    """A picture; `box`: left, top, width and height of the part where time runs, in percent."""

    svg: Markup
    box: tuple[float, float, float, float]


def hatch() -> Markup:
    """What pictures need once a page."""
    lines = '<path d="M0 6L6 0M-1 1L1 -1M5 7L7 5" stroke="var(--miss)" stroke-width="1.6"/>'
    return Markup(
        '<svg width="0" height="0" aria-hidden="true" style="position:absolute"><defs>'
        f'<pattern id="{_HATCH}" width="6" height="6" patternUnits="userSpaceOnUse">{lines}</pattern></defs></svg>'
    )


def draw(
    frames: npt.NDArray[np.floating], spec: LogMel, rows: Sequence[ClassRow], span_s: tuple[float, float]
) -> Picture:
    """The picture of a stretch.

    Args:
        frames: [n, n_mels] log-mel of the stretch; none where it cannot be read.
        spec: what they were made with.
        span_s: begin and end of the stretch in the recording.
    """
    top = _TOP + (_SPECTROGRAM if len(frames) else 0)
    bottom = top + _ROW * len(rows)
    parts = [*_axis(span_s, top, bottom), *(_spectrogram(frames, spec) if len(frames) else [])]
    for number, row in enumerate(rows):
        parts += _row(row, top + number * _ROW, span_s)
    height = bottom + _AXIS
    label = f"Spectrogram, annotated and detected events, {span_s[0]:.0f} to {span_s[1]:.0f} s"
    svg = (
        f'<svg role="img" aria-label="{label}" viewBox="0 0 {_WIDTH} {height}" font-size="12">{"".join(parts)}</svg>'
    )
    plot = _WIDTH - _LEFT - _RIGHT
    percent = (100 * _LEFT / _WIDTH, 100 * _TOP / height, 100 * plot / _WIDTH, 100 * (bottom - _TOP) / height)
    left, above, width, tall = (round(side, 2) for side in percent)
    return Picture(Markup(svg), (left, above, width, tall))


def _x(second: float, span_s: tuple[float, float]) -> float:
    share = (min(max(second, span_s[0]), span_s[1]) - span_s[0]) / (span_s[1] - span_s[0])
    return round(_LEFT + share * (_WIDTH - _LEFT - _RIGHT), 1)


def _spectrogram(frames: npt.NDArray[np.floating], spec: LogMel) -> Iterator[str]:
    """The image, of no more columns than are seen, and its frequencies."""
    step = -(-len(frames) // _MOST_COLUMNS)
    image = np.add.reduceat(frames, np.arange(0, len(frames), step), axis=0) / step  # [columns, bands]
    quiet, loud = np.percentile(image[: len(frames) // step], [25, 99.8])
    buffer = io.BytesIO()
    matplotlib.image.imsave(
        buffer, image.T, cmap="magma", origin="lower", vmin=quiet, vmax=max(loud, quiet + 1.0), format="png"
    )
    data = base64.b64encode(buffer.getvalue()).decode()
    yield (
        f'<image x="{_LEFT}" y="{_TOP}" width="{_WIDTH - _LEFT - _RIGHT}" height="{_SPECTROGRAM}" '
        f'preserveAspectRatio="none" href="data:image/png;base64,{data}"/>'
    )
    low, high = mel_from_hz(spec.low_hz), mel_from_hz(spec.high_hz)
    for hz in _TICKS_HZ:
        if hz < spec.high_hz:
            y = _TOP + _SPECTROGRAM * (1 - float((mel_from_hz(hz) - low) / (high - low)))
            yield f'<text class="tick" x="{_LEFT - 6}" y="{y:.0f}" text-anchor="end">{hz // 1000} kHz</text>'


def _axis(span_s: tuple[float, float], top: float, bottom: float) -> Iterator[str]:
    length_s = span_s[1] - span_s[0]
    step = next((step for step in _TICKS_S if length_s / step <= _MOST_TICKS), _TICKS_S[-1])
    for number in range(int(np.ceil(span_s[0] / step - 1e-6)), int(span_s[1] / step + 1e-6) + 1):
        x = _x(number * step, span_s)
        yield f'<path class="tick" d="M{x} {top}V{bottom}"/>'
        yield f'<text class="tick" x="{x}" y="{bottom + 14}" text-anchor="middle">{number * step:g} s</text>'


def _row(row: ClassRow, top: float, span_s: tuple[float, float]) -> Iterator[str]:
    """A class: its name, annotated events, detected ones, and scores with the threshold."""
    yield f'<path class="line" d="M0 {top}H{_WIDTH - _RIGHT}"/>'
    name = shown(row.name)
    brief = name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"
    yield f'<text x="0" y="{top + 20}" class="name"><title>{escape(name)}</title>{escape(brief)}</text>'
    for what, (above, tall) in (*_BARS.items(), ("score", _SCORE)):
        yield f'<text class="tick" x="{_LEFT - 6}" y="{top + above + tall - 2}" text-anchor="end">{what}</text>'
    yield from _score(row, top + _SCORE[0], span_s)
    for bar in row.bars:
        above, tall = _BARS[bar.kind]
        x, end = _x(bar.start_s, span_s), _x(bar.end_s, span_s)
        said = {RIGHT: "correct", UNCOUNTED: "not counted, as nobody knows what is there"}.get(bar.is_what, bar.is_what)
        title = f"{name}, {bar.kind} {bar.start_s:.1f} to {bar.end_s:.1f} s: {said}"
        yield (
            f'<rect class="{bar.is_what}" x="{x}" y="{top + above}" width="{max(end - x, 1.5):.1f}" height="{tall}">'
            f"<title>{escape(title)}</title></rect>"
        )


def _score(row: ClassRow, top: float, span_s: tuple[float, float]) -> Iterator[str]:
    """The scores as steps, and the threshold as a dashed line."""
    tall = _SCORE[1]
    inside = np.flatnonzero((row.start_s < span_s[1]) & (np.append(row.start_s[1:], np.inf) > span_s[0]))
    steps = "".join(
        f"H{_x(float(row.start_s[k]), span_s)}V{top + tall * (1 - float(row.scores[k])):.1f}" for k in inside
    )
    yield f'<path class="score" d="M{_LEFT} {top + tall}{steps}H{_WIDTH - _RIGHT}V{top + tall}Z"/>'
    if np.isfinite(row.threshold):
        y = top + tall * (1 - row.threshold)
        yield f'<path class="threshold" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>'
