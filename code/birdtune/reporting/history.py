"""All versions of an output folder on one page: what was promoted when and why, scores, and how the data changed.

    logs/<v>/run.json, reports/<v>/metrics.json ─▶ history.html
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import birdtune
from birdtune.reporting import figures, report
from birdtune.runtime import runs
from birdtune.runtime.files import read_json
from birdtune.runtime.text import count

PAGE = "history.html"
# Of the classes whose share of the recordings changed, as many are named.
_MOST_CLASSES = 5
_PARTS = ("val", "test")


@dataclass(frozen=True)
class Version:
    """What the page says of a version.

    Attributes:
        promoted: whether it went into service; None: it did not come so far.
        reason: of the gate.
        scores: "accuracy" and "macro_ap" on the test recordings, each (value, low, high); low and high None: unknown.
        recordings: by class, of all parts.
        unknown: share of the test recordings that it rejects as unlike its training data; None: not determined.
        shift: share of the recordings that would have to change class for the shares of the version before; None: there
            is none before.
        moved: (class, share before, share now), the largest changes first.
    """

    number: int
    date: str | None
    promoted: bool | None
    reason: str
    verdict: str | None
    scores: Mapping[str, tuple[float, float | None, float | None]]
    recordings: Mapping[str, int]
    unknown: float | None
    shift: float | None = None
    moved: tuple[tuple[str, float, float], ...] = ()


def write_history(output: Path) -> Path:
    """Write the page of all versions, whole or not at all; its path. Raises as `files.storage_faults`."""
    found = list(versions(output))
    report.write_page(
        output / PAGE,
        "history.html.j2",
        {
            "birdtune_version": birdtune.__version__,
            "versions": found[::-1],
            "in_service": max((each.number for each in found if each.promoted), default=None),
            "drawn": {
                title: figures.versions([(each.number, each.promoted, each.scores.get(name)) for each in found], title)
                for name, title in (("accuracy", "accuracy"), ("macro_ap", "macro average precision"))
            },
            "count": count,
        },
    )
    return output / PAGE


def versions(output: Path) -> Iterator[Version]:
    """All versions of an output folder that were evaluated, ascending."""
    before: Mapping[str, int] = {}
    for number in runs.versions(output):
        record = runs.read_record(output, number)
        metrics = read_json(output / "reports" / str(number) / "metrics.json")
        if record is None or not isinstance(metrics, dict) or not metrics.get("test"):
            continue
        found = _version(number, record, metrics, before)
        before = found.recordings
        yield found


def _version(number: int, record: Mapping[str, Any], metrics: Mapping[str, Any], before: Mapping[str, int]) -> Version:
    test, clip = metrics["test"], metrics["test"]["clip"]
    accepted = (test.get("ood") or {}).get("accepted")
    recordings = _recordings(metrics)
    moved = _moved(before, recordings)
    return Version(
        number,
        record.get("finished") or record.get("started"),
        record.get("promoted"),
        (record.get("gate") or {}).get("reason") or "",
        record.get("verdict"),
        {
            name: (clip[name], *(clip.get(f"{name}_ci") or (None, None)))
            for name in ("accuracy", "macro_ap") if clip.get(name) is not None
        },
        recordings,
        None if accepted is None else 1 - accepted,
        sum(abs(now - then) for _, then, now in moved) / 2 if before else None,
        tuple(moved[:_MOST_CLASSES]),
    )  # fmt: skip


def _recordings(metrics: Mapping[str, Any]) -> dict[str, int]:
    """Recordings of each class, of all parts."""
    found: dict[str, int] = {}
    for part in _PARTS:
        for row in (metrics.get(part) or {}).get("per_class", ()):
            found[row["class"]] = found.get(row["class"], 0) + row["support"]
            if part == "test":
                found[row["class"]] += row["train_recordings"]
    return found


def _moved(before: Mapping[str, int], now: Mapping[str, int]) -> list[tuple[str, float, float]]:
    """Classes whose share of the recordings changed: name, share before and now; the largest change first."""
    if not before or not sum(now.values()):
        return []
    totals = sum(before.values()), sum(now.values())
    rows = [(name, before.get(name, 0) / totals[0], now.get(name, 0) / totals[1]) for name in {**before, **now}]
    return sorted((row for row in rows if row[1] != row[2]), key=lambda row: -abs(row[2] - row[1]))
