"""All versions of an output folder on one page: what was promoted when and why, scores, and how the data changed.

    each decision ─▶ note ─▶ history.csv
    history.csv, model/, logs/<v>/run.json, reports/<v>/metrics.json ─▶ history.html
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import birdtune
from birdtune.errors import InputError, shown
from birdtune.reporting import figures, report
from birdtune.runtime import runs
from birdtune.runtime.files import read_csv, read_json, write_csv
from birdtune.runtime.log import clock
from birdtune.runtime.text import count

PAGE = "history.html"
TABLE = "history.csv"
# Of the classes whose share of the recordings changed, as many are named.
_MOST_CLASSES = 5
_PARTS = ("val", "test")


class Decided(NamedTuple):
    """A row of history.csv: whether a version goes into service."""

    date: str
    version: int
    promoted: bool
    reason: str


def note(output: Path, version: int, *, promoted: bool, reason: str) -> None:
    """Add a decision to history.csv, unless the last one about this version is the same.

    Raises:
        InputError: as `decisions`. Also as `files.storage_faults`.
    """
    rows = decisions(output)
    last = next((row.promoted for row in reversed(rows) if row.version == version), None)
    if promoted != last:
        rows.append(Decided(clock(), version, promoted, reason))
        words = ({**row._asdict(), "promoted": "yes" if row.promoted else "no"} for row in rows)
        write_csv(output / TABLE, Decided._fields, words)


def decisions(output: Path) -> list[Decided]:
    """The rows of history.csv, the oldest first.

    Raises:
        InputError: the file cannot be read, or is not as `note` writes it.
    """
    path = output / TABLE
    rows = read_csv(path) if path.exists() else []
    try:
        return [Decided(row["date"], int(row["version"]), row["promoted"] == "yes", row["reason"]) for row in rows]
    except (KeyError, ValueError) as fault:
        raise InputError(
            f"{shown(path)}: expected the columns {', '.join(Decided._fields)}, and numbers as versions; somebody "
            "edited it. Restore it, or remove it: the page of versions begins anew then."
        ) from fault


@dataclass(frozen=True)
class Version:
    """What the page says of a version.

    Attributes:
        date: when its training began.
        decided: whether it was promoted, at each decision about it.
        scores: "accuracy" and "macro_ap" on the test recordings, each (value, low, high); low and high None: unknown.
        recordings: by class, of all parts.
        unknown: share of the test recordings that it rejects as unlike its training data; None: not determined.
        champion: the model in service then, as the gate calls it; None: there was none.
        rejected: share of the test recordings that the champion has not learnt from and rejects; None: not determined.
        shift: share of the recordings that would have to change class for the shares of the version before; None: there
            is none before.
        moved: (class, share before, share now), the largest changes first.
    """

    number: int
    date: str | None
    decided: tuple[bool, ...]
    verdict: str | None
    scores: Mapping[str, tuple[float, float | None, float | None]]
    recordings: Mapping[str, int]
    unknown: float | None
    champion: str | None
    rejected: float | None
    shift: float | None = None
    moved: tuple[tuple[str, float, float], ...] = ()


def write_history(output: Path) -> Path:
    """Write the page of all versions, whole or not at all; its path. Raises as `files.storage_faults`."""
    found = list(versions(output))
    # As the gate and servers look for the one in service: somebody may have removed a model by hand.
    folders = (path.parent.name for path in output.glob("model/*/*/model.json"))
    report.write_page(
        output / PAGE,
        "history.html.j2",
        {
            "birdtune_version": birdtune.__version__,
            "versions": found[::-1],
            "decisions": decisions(output)[::-1],
            "in_service": max(map(int, filter(str.isdecimal, folders)), default=None),
            "drawn": {
                title: figures.versions(
                    [(each.number, each.decided[-1:] == (True,), each.scores.get(name)) for each in found], title
                )
                for name, title in (("accuracy", "accuracy"), ("macro_ap", "macro average precision"))
            },
            "count": count,
        },
    )
    return output / PAGE


def versions(output: Path) -> Iterator[Version]:
    """All versions of an output folder that were evaluated, ascending."""
    before: Mapping[str, int] = {}
    rows = decisions(output)
    for number in runs.versions(output):
        record = runs.read_record(output, number)
        metrics = read_json(output / "reports" / str(number) / "metrics.json")
        if record is None or not isinstance(metrics, dict) or not metrics.get("test"):
            continue
        decided = tuple(row.promoted for row in rows if row.version == number)
        found = _version(number, decided, record, metrics, before)
        before = found.recordings
        yield found


def _version(
    number: int, decided: tuple[bool, ...], record: Mapping[str, Any], metrics: Mapping[str, Any],
    before: Mapping[str, int],
) -> Version:  # fmt: skip
    test, clip = metrics["test"], metrics["test"]["clip"]
    accepted = (test.get("ood") or {}).get("accepted")
    recordings, gate = _recordings(metrics), metrics.get("gate") or {}
    moved = _moved(before, recordings)
    return Version(
        number,
        record.get("first_started"),
        decided,
        record.get("verdict"),
        {
            name: (clip[name], *(clip.get(f"{name}_ci") or (None, None)))
            for name in ("accuracy", "macro_ap") if clip.get(name) is not None
        },
        recordings,
        None if accepted is None else 1 - accepted,
        gate.get("title"),
        gate.get("rejected"),
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
