"""Detections → how many there are by class, day and hour: a table, and a page to look at and listen to.

    recordings with their detections ─▶ write ─▶ summary.csv, summary.html   (one file; works offline)

Hours are those of the recorders' clocks. How much was recorded in each hour counts, too: ten calls in five minutes are
more than ten in an hour. Nothing of a recording is kept but counts and its best detections.
"""

import heapq
import io
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

import numpy as np
from markupsafe import Markup, escape

import birdtune
from birdtune.errors import shown
from birdtune.reporting import figures, listening
from birdtune.reporting.listening import Clip
from birdtune.reporting.report import write_page
from birdtune.runtime.files import write_csv
from birdtune.runtime.text import count
from birdtune.serving.detect import Call
from birdtune.serving.detection_tables import Listed
from birdtune.serving.inference import Channel

TABLE_NAME, PAGE_NAME = "summary.csv", "summary.html"
COLUMNS: Final = ("class", "date", "hour", "detections", "recorded_min", "detections_per_hour")
# Each takes 60 kB of the page.
_EXAMPLES, _MOST_CLASSES = 3, 40
# Of less, a number an hour would be of calls that nobody recorded.
_LEAST_FOR_A_RATE_S = 3600.0
# The same of one hour of one day: recorders that are on for a minute each ten, or five each hour, have as much.
_LEAST_OF_AN_HOUR_S = 300.0
UNDATED = "undated"  # in place of a date
# Pixels: a heat map is at most so wide, as long as cells can be narrower; a day is named where there is room.
_WIDE, _CELL, _NARROWEST, _DAY_NAME = 1000, 34, 3, 34

Hour = tuple[str, int]  # date, hour of the day


@dataclass
class Summary:
    """Counts of detections, and the best of each class.

    Attributes:
        detections: (class, hour) → how many began in it; of recordings without a date under the hour None.
        recorded_s: hour → seconds that were recorded in it.
        best: class → at most three detections of the highest score, each of another recording where there are so many.
    """

    detections: Counter[tuple[str, Hour | None]] = field(default_factory=Counter)
    recorded_s: defaultdict[Hour | None, float] = field(default_factory=lambda: defaultdict(float))
    best: defaultdict[str, list[tuple[float, str, Call]]] = field(default_factory=lambda: defaultdict(list))
    recordings: int = 0
    undated: int = 0

    def add(self, recording: Listed) -> None:
        """Count a recording."""
        self.recordings += 1
        self.undated += recording.recorded_at is None
        for hour, seconds in _hours(recording.recorded_at, recording.duration_s):
            self.recorded_s[hour] += seconds
        highest: dict[str, Call] = {}
        for call in recording.calls:
            began = recording.time_of(call.start_s)
            self.detections[call.decision, _hour(began)] += 1
            if call.decision not in highest or call.score > highest[call.decision].score:
                highest[call.decision] = call
        for name, call in highest.items():
            self.best[name] = heapq.nlargest(
                _EXAMPLES, [*self.best[name], (call.score, recording.name, call)], key=lambda each: each[0]
            )

    @property
    def classes(self) -> list[str]:
        """Those with a detection, the most frequent first."""
        totals: Counter[str] = Counter()
        for (name, _), n in self.detections.items():
            totals[name] += n
        return sorted(totals, key=lambda name: (-totals[name], name))

    def total(self, name: str) -> int:
        """Detections of a class."""
        return sum(n for (each, _), n in self.detections.items() if each == name)

    def rows(self) -> Iterator[dict[str, object]]:
        """Of summary.csv: every class in every hour that was recorded, those without a detection, too.

        Where hardly anything was recorded of an hour, there is no number an hour.
        """
        hours = sorted(self.recorded_s, key=lambda hour: hour or ("~", 0))  # what has no date comes last
        for name in sorted(self.classes):
            for hour in hours:
                n, seconds = self.detections[name, hour], self.recorded_s[hour]
                rate = round(n / seconds * 3600, 2) if seconds >= _LEAST_OF_AN_HOUR_S else ""
                date, of_day = hour or (UNDATED, "")
                yield dict(zip(COLUMNS, (name, date, of_day, n, round(seconds / 60, 2), rate), strict=True))


def _hour(time: datetime | None) -> Hour | None:
    return None if time is None else (time.date().isoformat(), time.hour)


def _hours(began: datetime | None, duration_s: float) -> Iterator[tuple[Hour | None, float]]:
    """The hours of the clock that a recording lies in, and how much of it in each."""
    if began is None:
        yield None, duration_s
        return
    left_s, at = duration_s, began
    while left_s > 0:
        following = at.replace(minute=0, second=0, microsecond=0) + timedelta(hours=1)
        part_s = min(left_s, (following - at).total_seconds())
        yield _hour(at), part_s
        left_s, at = left_s - part_s, following


def write(folder: Path, recordings: Iterable[Listed], by_name: Mapping[str, Path | Channel]) -> Summary:
    """Write both files, each whole or not at all.

    Args:
        by_name: where the recordings can be listened to.

    Raises: as `files.storage_faults`.
    """
    summary = Summary()
    for recording in recordings:
        summary.add(recording)
    write_csv(folder / TABLE_NAME, COLUMNS, summary.rows())
    names = summary.classes
    left, bottom, width, height = (round(100 * side, 1) for side in figures.SPECTROGRAM_BOX)
    write_page(folder / PAGE_NAME, "detections.html.j2", {
        "birdtune_version": birdtune.__version__,
        "summary": summary,
        "total": sum(summary.detections.values()),
        "recorded": _length(sum(summary.recorded_s.values())),
        "has_rates": sum(summary.recorded_s.values()) >= _LEAST_FOR_A_RATE_S,
        "dated": any(hour is not None for hour in summary.recorded_s),
        "classes": [_section(summary, name, by_name, number) for number, name in enumerate(names)],
        "most_classes": _MOST_CLASSES,
        "box": {"left": left, "width": width, "top": round(100 - bottom - height, 1), "height": height},
        "count": count,
    })  # fmt: skip
    return summary


def _length(seconds: float) -> str:
    return f"{seconds / 3600:,.1f} hours" if seconds >= _LEAST_FOR_A_RATE_S else f"{seconds / 60:.1f} minutes"


def _section(summary: Summary, name: str, by_name: Mapping[str, Path | Channel], number: int) -> dict[str, Any]:
    """What the page shows of a class."""

    def listen(recording: str, start_s: float, length_s: float) -> Clip | None:
        return listening.from_file(by_name[recording], start_s, length_s)

    def example(recording: str, call: Call) -> dict[str, Any]:
        start_s, end_s = listening.span_of(call.start_s, call.end_s, call.peak_s)
        clip = listening.clip(listen, recording, start_s, np.inf, end_s - start_s)
        return {**clip, "recording": recording, "start_s": call.start_s, "end_s": call.end_s, "score": call.score}

    seconds = sum(summary.recorded_s.values())
    examples = summary.best[name] if number < _MOST_CLASSES else []
    return {
        "name": name,
        "total": summary.total(name),
        "rate": summary.total(name) / seconds * 3600 if seconds >= _LEAST_FOR_A_RATE_S else None,
        "map": heat_map(summary, name),
        "most": max(_rates(summary, name).values(), default=0.0),
        "examples": [example(recording, call) for _, recording, call in examples],
    }


# ---- the heat map -------------------------------------------------------------------------------


def heat_map(summary: Summary, name: str) -> Markup | None:
    """Detections of a class in an hour of recording: hours of the day upwards, days to the right.

    A cell is the darker the more there are; an empty one with a frame was recorded without a detection, and where there
    is none, nothing was recorded. An hour of which hardly anything was recorded counts as if five minutes were, so that
    one call in some seconds is not the darkest. None where no recording has a date.
    """
    rates = _rates(summary, name)
    if not rates:
        return None
    days = _days(sorted({date for date, _ in rates}))
    most = max(rates.values())
    cell = max(_NARROWEST, min(_CELL, _WIDE // len(days)))
    left, top, height = 34, 6, 12
    width = left + max(len(days) * cell, 160) + 8
    buffer = io.StringIO()
    buffer.write(
        f'<svg role="img" class="heat" width="{width}" height="{top + 24 * height + 32}" '
        f'viewBox="0 0 {width} {top + 24 * height + 32}" font-size="10" '
        f'aria-label="Detections of {escape(shown(name))} by day and hour; the figures are in {TABLE_NAME}">'
    )
    for hour in range(0, 25, 6):
        y = top + (24 - hour) * height
        buffer.write(f'<text x="{left - 5}" y="{y}" text-anchor="end" dominant-baseline="middle">{hour:02d}</text>')
        buffer.write(f'<path class="grid" d="M{left} {y}H{left + len(days) * cell}"/>')
    column = {day: k for k, day in enumerate(days)}
    for (date, hour), rate in sorted(rates.items()):
        n, minutes = summary.detections[name, (date, hour)], summary.recorded_s[date, hour] / 60
        x, y = left + column[date] * cell, top + (23 - hour) * height
        said = f"{date}, {hour:02d} to {hour + 1:02d} h: {count(n, 'detection')} in {minutes:.0f} min recorded"
        deep = 0.15 + 0.85 * rate / most if n else 0.0
        buffer.write(
            f'<g><title>{said}</title><rect x="{x}" y="{y}" width="{cell}" height="{height}" '
            f'fill-opacity="{deep:.2f}"/></g>'
        )
    year = ""
    for k in range(0, len(days), -(-_DAY_NAME // cell)):
        x, y = left + k * cell, top + 24 * height + 14
        buffer.write(f'<text x="{x}" y="{y}">{days[k][5:]}</text>')
        if days[k][:4] != year:
            year = days[k][:4]
            buffer.write(f'<text x="{x}" y="{y + 12}">{year}</text>')
    buffer.write("</svg>")
    return Markup(buffer.getvalue())


def _rates(summary: Summary, name: str) -> dict[Hour, float]:
    """Detections of a class in an hour of recording, where any of it was recorded: date and hour → number."""
    return {
        hour: summary.detections[name, hour] / max(seconds, _LEAST_OF_AN_HOUR_S) * 3600
        for hour, seconds in summary.recorded_s.items() if hour is not None and seconds > 0
    }  # fmt: skip


def _days(dates: Sequence[str]) -> list[str]:
    """All days from the first to the last; of clocks that are years apart, only those that were recorded."""
    first, last = (datetime.fromisoformat(date) for date in (dates[0], dates[-1]))
    n = (last - first).days + 1
    if n > 400:
        return list(dates)
    return [(first + timedelta(days=k)).date().isoformat() for k in range(n)]
