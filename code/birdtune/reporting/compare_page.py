"""What `compare` found, drawn: candidates, recordings before and after the best of them, and its mistakes.

    Compared ─▶ write_page ─▶ compare.html   (one file; works offline)
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import birdtune
from birdtune.evaluation.mistakes import FALSE_NEGATIVE, FALSE_POSITIVE, TABLE_NAME
from birdtune.evaluation.scores import Scores
from birdtune.reporting import embedding_map, report
from birdtune.runtime.text import count

Row = Mapping[str, Any]

PAGE_NAME = "compare.html"
MOST_MISTAKES = 1000


@dataclass(frozen=True, eq=False)
class Compared:
    """A comparison.

    Attributes:
        created: ISO time.
        rows: as `tuning.compare.evaluate`, with `seconds`; the first is the best.
        few: classes by which nothing is scored → source recordings that they have.
        advice, command: what to run next, in words and as it is typed.
        scores: of the best candidate, each recording with one window, by what did not learn from its source recording.
        before, after: as `evaluation.embedding_map.measure`, of the embeddings, and of the best candidate's scores.
        mistakes: as `evaluation.mistakes.mistakes`, of the best candidate.
        several: whether a recording may have several classes.
    """

    created: str
    rows: Sequence[Row]
    n_folds: int
    n_sources: int
    few: Mapping[str, int]
    advice: str
    command: str
    scores: Scores
    before: Row
    after: Row
    mistakes: Sequence[Row]
    several: bool


def write_page(path: Path, found: Compared) -> None:
    """Write the page, whole or not at all. Raises as `files.storage_faults`."""
    sizes = found.scores.positive.sum(axis=0).tolist()
    class_rows = [
        {"class": name, "recordings": size} for name, size in zip(found.scores.classes, sizes, strict=True) if size
    ]
    before, after = (
        embedding_map.section(
            measured, {embedding_map.CROSS_VALIDATED: found.scores}, embedding_map.CROSS_VALIDATED, class_rows, [], {},
            first=first,
        )
        for measured, first in ((found.before, True), (found.after, False))
    )  # fmt: skip
    report.write_page(path, "compare.html.j2", {
        "found": found,
        "birdtune_version": birdtune.__version__,
        "best": found.rows[0],
        "ties": [row["candidate"] for row in found.rows if row["tie"]],
        "before": before,
        "after": after,
        "legend": _legend(before, after, found.mistakes),
        "coloured": embedding_map.COLOURED,
        "mistakes": found.mistakes[:MOST_MISTAKES],
        "n_wrong": len({row["recording"] for row in found.mistakes}),
        "table": TABLE_NAME,
        "count": count,
    })  # fmt: skip


def _legend(before: Row | None, after: Row | None, mistakes: Sequence[Row]) -> list[Row]:
    """Per class: as of the first map, with the share after the head, and its mistakes; none without maps."""
    if not before or before["reason"]:
        return []
    later = {row["class"]: row["same"] for row in (after or {}).get("legend", ())}
    wrong = Counter((row["kind"], row["class"]) for row in mistakes)
    return [
        {
            **row,
            "after": later.get(row["class"]),
            "false_positives": wrong[FALSE_POSITIVE, row["class"]],
            "false_negatives": wrong[FALSE_NEGATIVE, row["class"]],
        }
        for row in before["legend"]
    ]
