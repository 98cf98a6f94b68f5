"""Detections → a page on which somebody says what each of them is.

    detections to review, classes ─▶ write ─▶ review.html   (one file; works offline; saves review.csv)

The page is worked through with the keyboard. Decisions stay in the browser until they are saved.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

import birdtune
from birdtune.data.annotations import review
from birdtune.reporting import figures, listening
from birdtune.reporting.report import write_page
from birdtune.runtime.text import count
from birdtune.serving.inference import Channel

PAGE_NAME = "review.html"


@dataclass(frozen=True)
class Doubtful:
    """A detection to review.

    Attributes:
        recording: as it is shown, and stands in the table.
        given: where it can be listened to.
        duration_s: of the recording.
        start_s, end_s, peak_s: as of a Call.
        threshold: from which score on its class is decided for.
    """

    recording: str
    given: Path | Channel
    duration_s: float
    class_name: str
    start_s: float
    end_s: float
    peak_s: float
    score: float
    threshold: float

    @property
    def span_s(self) -> tuple[float, float]:
        """What is played and decided on: of a long detection the six seconds from its highest score on, or its last."""
        return listening.span_of(self.start_s, self.end_s, self.peak_s)


def shown_clip(one: Doubtful) -> dict[str, Any] | None:
    """What the page shows of a detection; None: it cannot be listened to."""

    def listen(_: str, start_s: float, length_s: float) -> listening.Clip | None:
        return listening.from_file(one.given, start_s, length_s)

    start_s, end_s = one.span_s
    clip = listening.clip(listen, one.recording, start_s, one.duration_s, end_s - start_s)
    if clip["picture"] is None or clip["sound"] is None:
        return None
    cells = zip(review.COLUMNS[:4], (one.recording, f"{start_s:g}", f"{end_s:g}", one.class_name), strict=True)
    return {**clip, "cells": {key: _exact(cell) for key, cell in cells}, "score": one.score, "name": one.class_name,
            "threshold": one.threshold, "start_s": start_s, "end_s": end_s, "recording": one.recording}  # fmt: skip


def write(path: Path, clips: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> None:
    """Write the page, whole or not at all.

    Args:
        clips: as of `shown_clip`, those of a class behind one another.
        classes: what a detection can be instead.

    Raises: as `files.storage_faults`.
    """
    left, bottom, width, height = (round(100 * side, 1) for side in figures.SPECTROGRAM_BOX)
    write_page(path, "review.html.j2", {
        "birdtune_version": birdtune.__version__,
        "key": key_of(clips),
        "total": len(clips),
        "groups": list(_by_class(clips)),
        "classes": [_exact(name) for name in classes],
        "columns": ",".join(review.COLUMNS),
        "table_name": review.TABLE_NAME,
        "box": {"left": left, "width": width, "top": round(100 - bottom - height, 1), "height": height},
        "count": count,
    })  # fmt: skip


def key_of(clips: Sequence[Mapping[str, Any]]) -> str:
    """Names a page by its detections: of each the browser keeps the decisions apart."""
    rows = json.dumps([[str(cell) for cell in clip["cells"].values()] for clip in clips])
    return hashlib.sha256(rows.encode()).hexdigest()[:16]


def _by_class(clips: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, list[Mapping[str, Any]]]]:
    for name in dict.fromkeys(clip["name"] for clip in clips):
        yield name, [clip for clip in clips if clip["name"] == name]


def _exact(cell: str) -> Markup:
    """Escaped and not changed otherwise: names in the table must be those of the model and of the recordings."""
    return escape(cell)
