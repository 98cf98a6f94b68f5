"""Numbers → figures, as SVG that stands in the page itself.

Colours are CSS variables of the page (`--ink`, `--accent` …), so that a figure follows light, dark and
print. matplotlib knows no such thing: it draws in stand-in colours that are replaced afterwards. Text
stays text (it can be searched and read aloud). Figures are built on `Figure` objects, without
pyplot and its global state.

Names of classes are outside text: the confusion matrix passes them through `shown` and escapes them.
matplotlib is given our own text only, because it would take a class named $x$ for a formula.
"""

import io
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from birdtune.audio.logmel import LogMel, mel_from_hz
from birdtune.errors import shown
from birdtune.evaluation import metrics
from birdtune.evaluation.metrics import Metric

_MOST_TICKS = 4  # of a logarithmic axis: their labels stand side by side
# Stand-in colour → CSS variable. Black is what matplotlib takes where nobody says a colour.
INK, SOFT, LINE, ACCENT, SECOND, PAPER = (f"#0a0b0{k}" for k in range(1, 7))
_VARIABLES = {
    INK: "var(--ink)",
    SOFT: "var(--soft)",
    LINE: "var(--line)",
    ACCENT: "var(--accent)",
    SECOND: "var(--second)",
    PAPER: "var(--paper)",
    "#000000": "var(--ink)",
}
# Of curves side by side.
_COLOURS = (ACCENT, SECOND, SOFT, INK)
_STYLE: Any = {  # Any: matplotlib's type wants every key as a literal
    "svg.fonttype": "none",
    "svg.hashsalt": "birdtune",  # the same figure gives the same bytes
    "font.size": 9.0,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": SOFT,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.major.size": 0.0,
    "ytick.major.size": 0.0,
    "lines.solid_capstyle": "round",
}
# Left, bottom, width and height of a spectrogram's plot as shares of its figure: the page puts the line
# that moves while the sound plays by the same numbers.
SPECTROGRAM_BOX = (0.085, 0.13, 0.905, 0.84)
_TICKS_HZ = (250, 500, 1_000, 2_000, 4_000, 7_000, 10_000)
# Up to this many classes a confusion matrix has numbers in its cells.
NUMBERED_CLASSES = 30
_LONGEST_NAME = 34


def headline(rows: Sequence[tuple[str, float, Sequence[float] | None, bool]]) -> Markup:
    """Metrics with their intervals, one below the other.

    Args:
        rows: (name, value 0…1, [low, high] or None, whether it is the baseline).
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(6.2, 0.55 + 0.36 * len(rows)), layout="constrained")
        axes = figure.add_subplot()
        for y, (_, value, ends, is_baseline) in enumerate(rows):
            colour = SECOND if is_baseline else ACCENT
            if ends is not None:
                axes.plot(ends, [y, y], color=colour, linewidth=5, alpha=0.35)
            axes.plot([value], [y], "D" if is_baseline else "o", color=colour, markersize=7)
            at, side = _beside(value, *(ends or (value, value)))
            axes.text(at, y, f"{100 * value:.0f} %", ha=side, va="center", fontweight="bold")
        axes.set_yticks(range(len(rows)), [name for name, *_ in rows], color=INK)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        _percent_axis(axes, "x")
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        return _svg(figure, "Metrics with 95 % intervals, and the majority baseline")


def _beside(value: float, low: float, high: float) -> tuple[float, str]:
    """Where a figure stands: beside its interval where there is room, else on it, beside its point."""
    if max(value, high) < 0.88:
        return max(value, high) + 0.025, "left"
    if min(value, low) >= 0.14:
        return min(value, low) - 0.025, "right"
    return (value + 0.035, "left") if value < 0.5 else (value - 0.035, "right")


def learning_curves(
    history: Sequence[Mapping[str, Any]], best_epoch: int | None, of_windows: bool = False
) -> Markup:
    """Loss on the left, the headline metrics of validation on the right, by epoch."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(7.4, 2.7), layout="constrained")
        left, right = figure.subplots(1, 2)
        _curve(left, history, "train_loss", "training", ACCENT)
        _curve(left, history, "val_loss", "validation", SECOND)
        left.set_title("Loss", loc="left", fontsize=9, color=SOFT)
        left.set_ylim(bottom=0)
        for (key, metric), colour in zip(validation_metrics(history, of_windows=of_windows), itertools.cycle(_COLOURS)):
            _curve(right, history, key, metric.title, colour)
        right.set_title("Validation metrics", loc="left", fontsize=9, color=SOFT)
        _percent_axis(right, "y")
        for axes in (left, right):
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            if best_epoch is not None:
                axes.axvline(best_epoch, color=INK, linewidth=1, linestyle=":", label="best epoch")
            if axes.get_legend_handles_labels()[0]:
                axes.legend(frameon=False, fontsize=8, labelcolor=INK)
        return _svg(figure, "Learning curves by epoch; the table below has the figures")


def validation_metrics(history: Sequence[Mapping[str, Any]], *, of_windows: bool = False) -> list[tuple[str, Metric]]:
    """Keys and metrics of validation that the history has a curve of."""
    found = metrics.headline({key: None for row in history for key in row}, "val_")
    if of_windows:
        return [(key, replace(each, title=f"{each.title.removeprefix('top-1 ')} of windows")) for key, each in found]
    return found


def _curve(axes: Axes, history: Sequence[Mapping[str, Any]], key: str, label: str, colour: str) -> None:
    points = [(row["epoch"], row[key]) for row in history if row.get(key) is not None]
    if points:
        # A lone epoch makes no line: hence the dots as long as they do not crowd.
        marker = "o" if len(points) <= 20 else None
        axes.plot(*zip(*points, strict=True), color=colour, label=label, marker=marker, markersize=3.5)


def reliability(bins: Sequence[Mapping[str, Any]], title: str) -> Markup:
    """Reliability diagram: accuracy against confidence; a bar spans the confidences of a bin.

    Args:
        bins: as `reliability.bins`.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(3.9, 3.6), layout="constrained")
        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1], color=SOFT, linewidth=1, linestyle=":")
        said, was = [row["confidence"] for row in bins], [row["accuracy"] for row in bins]
        low, high = [row["lo"] for row in bins], [row["hi"] for row in bins]
        axes.hlines(was, low, high, color=ACCENT, linewidth=4, alpha=0.35)
        axes.vlines(said, said, was, color=SECOND, linewidth=1.5)
        axes.scatter(said, was, s=36, color=ACCENT, zorder=3, alpha=0.9, linewidths=0)
        axes.set_title(title, loc="left", fontsize=9, color=SOFT)
        axes.set_ylabel("accuracy")
        axes.set_xlabel("confidence")
        axes.set_ylim(-0.03, 1.03)
        _percent_axis(axes, "y", limits=False)
        _percent_axis(axes, "x")
        return _svg(figure, f"Reliability diagram, {title}: accuracy against confidence")


def ood_scores(rows: Sequence[tuple[str, Sequence[float]]]) -> Markup:
    """OOD scores, a row of dots for each kind of recording; right of the line they are rejected.

    Args:
        rows: (name, OOD score of each); the first are recordings of known classes.
    """
    most = max(2.0, *(value for _, values in rows for value in values))
    right = min(most, 6.0)  # what is farther lies at the edge
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(6.2, 0.75 + 0.3 * len(rows)), layout="constrained")
        axes = figure.add_subplot()
        axes.axvline(1.0, color=INK, linewidth=1, linestyle=":")
        for y, (_, values) in enumerate(rows):
            colour = SECOND if y else ACCENT
            at = [min(value, right) for value in values]
            axes.scatter(at, [y] * len(at), s=36, color=colour, alpha=0.9 if y else 0.35, linewidths=0, zorder=3)
        axes.set_yticks(range(len(rows)), [name for name, _ in rows], color=INK)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(-0.04 * right, 1.04 * right)
        axes.set_xlabel("OOD score: rejected as unknown above 1")
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        return _svg(figure, "OOD scores of known recordings and of synthetic noises; rejected as unknown above 1")


def importances(shares: Mapping[str, float]) -> Markup:
    """Share of the variance between trials that each setting explains, the most important on top.

    Args:
        shares: setting → share, the largest first.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(6.2, 0.7 + 0.28 * len(shares)), layout="constrained")
        axes = figure.add_subplot()
        axes.barh(range(len(shares)), list(shares.values()), height=0.62, color=ACCENT, alpha=0.85)
        for y, share in enumerate(shares.values()):
            axes.text(share + 0.01, y, f"{100 * share:.0f} %", va="center")
        axes.set_yticks(range(len(shares)), list(shares), color=INK)
        axes.set_ylim(len(shares) - 0.4, -0.6)
        axes.set_xlabel("share of the variance between trials")
        _percent_axis(axes, "x", limits=False)
        axes.set_xlim(0, min(1.1, max(shares.values()) * 1.15))
        axes.grid(visible=False, axis="y")
        return _svg(figure, "Importance of each setting that was searched")


def tuning_history(trials: Sequence[Mapping[str, Any]]) -> Markup:
    """The score of each trial in the order in which they were tried, and the best so far.

    Args:
        trials: `number` from 0, drawn from 1; `state`, `score` (None: it was not evaluated).
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(7.4, 2.8), layout="constrained")
        axes = figure.add_subplot()
        done = [(row["number"] + 1, row["score"]) for row in trials if row["state"] == "done"]
        numbers, scores = zip(*done, strict=True)
        axes.scatter(numbers, scores, s=22, color=ACCENT, linewidths=0, zorder=3, label="trial")
        axes.step(numbers, np.maximum.accumulate(scores), where="post", color=SECOND, label="best so far")
        axes.scatter(
            *done[0], s=70, facecolors="none", edgecolors=INK, zorder=4, label="current settings"
        )
        lowest = min(scores)
        if unfinished := [row["number"] + 1 for row in trials if row["state"] != "done"]:
            at = [lowest] * len(unfinished)
            axes.scatter(unfinished, at, s=22, marker="x", color=SOFT, label="pruned or diverged")
        axes.set_xlabel("trial")
        axes.set_ylabel("score")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(frameon=False, fontsize=8, labelcolor=INK, loc="lower right")
        return _svg(figure, "Score of each trial; the figures stand in the table below")


def versions(
    rows: Sequence[tuple[int, bool | None, tuple[float, float | None, float | None] | None]], what: str
) -> Markup:
    """A score of each version, with its interval; the promoted ones filled.

    Args:
        rows: number, whether it was promoted, and the score with the ends of its interval.
        what: the score's name.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(7.4, 2.6), layout="constrained")
        axes = figure.add_subplot()
        for number, promoted, score in rows:
            if score is None:
                continue
            value, low, high = score
            if low is not None and high is not None:
                axes.plot([number, number], [low, high], color=SOFT, linewidth=1.4, zorder=2)
            axes.scatter(number, value, s=34, facecolors=ACCENT if promoted else "none", edgecolors=ACCENT, zorder=3)
        for label, face in (("promoted", ACCENT), ("not promoted", "none")):
            axes.scatter([], [], s=34, facecolors=face, edgecolors=ACCENT, label=label)
        axes.set_xlabel("version")
        axes.set_ylabel(what)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(frameon=False, fontsize=8, labelcolor=INK, loc="lower right")
        return _svg(figure, f"Test {what} of each version; the figures stand in the table below")


def log_ticks(low: float, high: float) -> list[float]:
    """Two to four round numbers within a range above 0, or its ends where it holds fewer."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        found = [factor * 10.0**power for power in decades for factor in factors]
        found = [value for value in found if low * 0.999 <= value <= high * 1.001]
        if len(found) <= _MOST_TICKS:
            break
    return found[:: -(-len(found) // _MOST_TICKS)] if len(found) > 1 else sorted({low, high})


def tuned_setting(pairs: Sequence[tuple[Any, float]], name: str, *, log: bool) -> Markup:
    """The scores of all trials against one of the settings.

    Args:
        pairs: (value, score); values are numbers, or words.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(2.7, 2.2), layout="constrained")
        axes = figure.add_subplot()
        words = [value for value, _ in pairs if isinstance(value, str)]
        names = list(dict.fromkeys(sorted(words)))
        at = [names.index(value) if words else value for value, _ in pairs]
        axes.scatter(at, [score for _, score in pairs], s=20, color=ACCENT, alpha=0.75, linewidths=0)
        if words:
            axes.set_xticks(range(len(names)), names)
            axes.set_xlim(-0.5, len(names) - 0.5)
        elif log:
            axes.set_xscale("log")
            ticks = log_ticks(min(at), max(at))
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_title(name, loc="left", fontsize=9, color=SOFT)
        axes.set_ylabel("score")
        return _svg(figure, f"Score against {name}")


def spectrogram(
    frames: npt.NDArray[np.floating[Any]], spec: LogMel, start_s: float, mark_s: tuple[float, float]
) -> Markup:
    """Log-mel frames as a picture: time to the right, pitch upwards, bright is loud.

    Args:
        frames: [n, bands] log-mel of `spec`, n ≥ 1.
        start_s: where they begin in the recording, in seconds.
        mark_s: the window to frame, in seconds of the recording.
    """
    n, n_mels = frames.shape
    with matplotlib.rc_context({**_STYLE, "axes.grid": False}):
        figure = Figure(figsize=(4.9, 1.85))
        axes = figure.add_axes(SPECTROGRAM_BOX)
        end_s = start_s + n / spec.rows_per_s
        quiet, loud = np.percentile(frames, [25, 99.8])
        axes.imshow(
            frames.T.astype(np.float32),  # [mels, n]
            origin="lower",
            aspect="auto",
            cmap="magma",
            interpolation="none",  # the SVG then holds the very pixels, and the browser scales them
            vmin=float(quiet),
            vmax=float(max(loud, quiet + 1.0)),  # silence stays dark rather than becoming noise
            extent=(start_s, end_s, -0.5, n_mels - 0.5),
        )
        low, high = max(mark_s[0], start_s), min(mark_s[1], end_s)
        axes.axvspan(low, high, fill=False, edgecolor="#ffffff", linewidth=1.2, linestyle="--")
        step = float(mel_from_hz(spec.high_hz) - mel_from_hz(spec.low_hz)) / (n_mels + 1)
        bands = (mel_from_hz(_TICKS_HZ) - mel_from_hz(spec.low_hz)) / step - 1
        inside = [(band, f"{hz:,}") for band, hz in zip(bands.tolist(), _TICKS_HZ, strict=True) if hz <= spec.high_hz]
        axes.set_yticks(*map(list, zip(*inside, strict=True)), fontsize=6.5)
        axes.tick_params(pad=2)
        axes.set_ylim(-0.5, n_mels - 0.5)
        axes.set_xlim(start_s, end_s)
        axes.xaxis.set_major_locator(MaxNLocator(7))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda second, _: f"{second:g} s"))
        corner: Any = {
            "transform": axes.transAxes,
            "ha": "right",
            "va": "top",
            "color": SOFT,
            "fontsize": 6.5,
        }
        axes.text(-0.035, -0.02, "Hz", **corner)
        axes.tick_params(axis="x", labelsize=7)
        return _svg(figure, f"Spectrogram, {start_s:.1f} to {end_s:.1f} s; the window is framed")


def _percent_axis(axes: Axes, which: str, *, limits: bool = True) -> None:
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
    axis.set_ticks([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    if limits:
        (axes.set_xlim if which == "x" else axes.set_ylim)(0, 1.015)


def _svg(figure: Figure, description: str) -> Markup:
    """The figure as an `svg` element with a description for those who cannot see it."""
    buffer = io.StringIO()
    nothing: dict[str, Any] = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = re.sub(
        r"<metadata>.*?</metadata>|<style .*?</style>", "", text[text.index("<svg") :], flags=re.DOTALL
    )
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # figure_1, axes_1 …: a page has every id once
    for stand_in, variable in _VARIABLES.items():
        text = text.replace(stand_in, variable)
    label = f'<svg role="img" aria-label="{escape(description)}"'
    return Markup(text.strip().replace("<svg", label, 1))


def confusion(counts: npt.NDArray[np.int64], classes: Sequence[str], columns: Sequence[str]) -> Markup:
    """A confusion matrix: rows are true classes, columns predicted ones.

    Drawn here rather than by matplotlib because every filled cell names its classes when pointed at, which
    makes 195 classes legible. The depth of a cell is its share of the row; the diagonal holds the right ones.

    Args:
        counts: [R, K] recordings.
        classes: [R] names of the rows.
        columns: [K] names of the columns; the first R are those of the rows.
    """
    n_rows, n_columns = counts.shape
    numbered = n_columns <= NUMBERED_CLASSES + 1
    cell = (34 if n_columns <= 16 else 26) if numbered else 10
    font = 12 if numbered else 8.5
    names, heads = [_short(name) for name in classes], [_short(name) for name in columns]
    left = round(0.57 * font * max(map(len, names)) + 12)
    # Column names lean, so that they take 0.82 of their length in height and 0.57 to the right.
    top = round(0.57 * font * 0.82 * max(map(len, heads)) + 16)
    width, height = left + n_columns * cell + round(0.6 * top) + 8, top + n_rows * cell + 4
    parts = [
        f'<svg role="img" class="confusion" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'font-size="{font}" aria-label="Confusion matrix; its figures are in confusion.csv">',
        *_grid(left, top, cell, n_rows, n_columns),
    ]
    for k, head in enumerate(heads):
        at = f"{left + (k + 0.68) * cell:.1f} {top - 5}"
        parts.append(f'<text transform="translate({at}) rotate(-55)">{escape(head)}</text>')
    for row, name in enumerate(names):
        text_y, total = top + (row + 0.5) * cell, int(counts[row].sum())
        parts.append(f'<text x="{left - 6}" y="{text_y:g}" class="row">{escape(name)}</text>')
        for column in np.flatnonzero(counts[row]).tolist():
            count = int(counts[row, column])
            title = f"{shown(classes[row])}: {count} of {total} predicted as {shown(columns[column])}"
            x = left + column * cell
            number = f'<text x="{x + cell / 2:g}" y="{text_y:g}">{count}</text>' if numbered else ""
            kind = ("hit" if row == column else "miss") + (" deep" if count > 0.6 * total else "")
            parts.append(
                f'<g class="{kind}"><title>{escape(title)}</title>'
                f'<rect x="{x}" y="{top + row * cell}" width="{cell}" height="{cell}" '
                f'fill-opacity="{0.18 + 0.72 * count / total:.2f}"/>{number}</g>'
            )
    return Markup("".join([*parts, "</svg>"]))


def _grid(left: int, top: int, cell: int, n_rows: int, n_columns: int) -> list[str]:
    right, bottom = left + n_columns * cell, top + n_rows * cell
    rows = "".join(f"M{left} {top + k * cell}H{right}" for k in range(n_rows + 1))
    columns = "".join(f"M{left + k * cell} {top}V{bottom}" for k in range(n_columns + 1))
    return [f'<path class="grid" d="{rows}{columns}"/>']


def _short(name: str) -> str:
    safe = shown(name)
    return safe if len(safe) <= _LONGEST_NAME else f"{safe[: _LONGEST_NAME - 1]}…"
