"""Detections as the tables of other programs: Raven, Audacity, BirdNET-Analyzer; and as CSV, JSON and Parquet.

    recordings with their detections ─▶ write_table ─▶ one table, of one recording or of all
    names of the recordings ─▶ table_places ─▶ where the table of each is written
"""

import contextlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

from birdtune.data.class_names import SCIENTIFIC
from birdtune.data.embedding_files import require_pyarrow
from birdtune.errors import shown
from birdtune.evaluation.decision import UNKNOWN_NAME
from birdtune.runtime.files import growing_csv, new_file
from birdtune.serving.detect import Call
from birdtune.serving.inference import Channel

# Format → what the table of a recording is called behind its name, and that of all.
ENDINGS: Final = {
    "raven": (".birdtune.selections.txt", "detections.selections.txt"),
    "audacity": (".birdtune.txt", "detections.txt"),
    "csv": (".birdtune.csv", "detections.csv"),
    "json": (".birdtune.json", "detections.json"),
    "parquet": (".birdtune.parquet", "detections.parquet"),
    "birdnet": (".birdtune.BirdNET.results.csv", "detections.BirdNET.results.csv"),
}
COLUMNS: Final = (
    "recording", "start_s", "end_s", "class", "score", "decision", "ood_score", "peak_s", "start_time",
)  # fmt: skip
# As Raven Pro 1.6 names them; what it does not know, it keeps as an annotation.
RAVEN: Final = (
    "Selection", "View", "Channel", "Begin Time (s)", "End Time (s)", "Low Freq (Hz)", "High Freq (Hz)", "Begin File",
    "Begin Path", "File Offset (s)", "Species", "Score", "OOD Score",
)  # fmt: skip
# As BirdNET-Analyzer 2 writes its results.
BIRDNET: Final = ("Start (s)", "End (s)", "Scientific name", "Common name", "Confidence", "File")


@dataclass(frozen=True)
class Listed:
    """A recording and the detections of it that a table lists.

    Attributes:
        name: as it is shown.
        channel: from 1.
        recorded_at: when it began, where that is known.
    """

    name: str
    file_name: str
    channel: int
    duration_s: float
    recorded_at: datetime | None
    calls: tuple[Call, ...]

    def time_of(self, at_s: float) -> datetime | None:
        """When so many seconds had passed in it."""
        return None if self.recorded_at is None else self.recorded_at + timedelta(seconds=at_s)


def write_table(path: Path, kind: str, recordings: Iterable[Listed], band_hz: tuple[float, float]) -> int:
    """Write the detections of some recordings, whole or not at all; how many they are.

    Args:
        kind: of `ENDINGS`.
        band_hz: lowest and highest frequency that the model hears.

    Raises:
        InputError: the packages of a format are missing; else as `storage_faults`.
    """
    n = 0

    def counted() -> Iterator[Listed]:
        nonlocal n
        for recording in recordings:
            n += len(recording.calls)
            yield recording

    _WRITERS[kind](path, counted(), band_hz)
    return n


def table_places(
    given: Sequence[Path | Channel], out: Path, kind: str, *, beside: bool
) -> dict[Path | Channel, Path]:
    """Where the table of each recording is written: beside it, or below `out` as it lies below what all have in common.

    Recordings of one folder that differ in their ending alone, or in the channel, have it in the table's name.
    """
    paths = {each: Path(os.path.abspath(_path(each))) for each in given}  # noqa: PTH100 - links are not followed
    folders = {os.fspath(path.parent) for path in paths.values()}
    base = Path(os.path.commonpath(folders)) if folders else Path()
    stems = Counter((path.parent, path.stem.casefold()) for path in set(paths.values()))
    places = {}
    for each, path in paths.items():
        folder = path.parent if beside else out / path.parent.relative_to(base)
        name = path.stem if stems[path.parent, path.stem.casefold()] == 1 else path.name
        channel = f".channel{each.channel + 1}" if isinstance(each, Channel) else ""
        places[each] = folder / f"{name}{channel}{ENDINGS[kind][0]}"
    return places


def _path(given: Path | Channel) -> Path:
    return given.path if isinstance(given, Channel) else given


# ---- tables of lines ----------------------------------------------------------------------------

_Band = tuple[float, float]


def _raven(recordings: Iterable[Listed], band_hz: _Band) -> Iterator[str]:
    """Times run on over several files, as Raven has them when these are opened as one sequence.

    The path tells files of one name in several folders apart.
    """
    yield "\t".join(RAVEN)
    number, before_s = 0, 0.0
    for recording in recordings:
        path = shown(recording.name.removesuffix(f"#{recording.channel}"))
        for call in recording.calls:
            number += 1
            ood = "" if call.ood_score is None else f"{call.ood_score:.4f}"
            cells = (
                number, "Spectrogram 1", recording.channel, f"{before_s + call.start_s:.3f}",
                f"{before_s + call.end_s:.3f}", f"{band_hz[0]:g}", f"{band_hz[1]:g}", shown(recording.file_name),
                path, f"{call.start_s:.3f}", shown(call.decision), f"{call.score:.4f}", ood,
            )  # fmt: skip
            yield "\t".join(map(str, cells))
        before_s += recording.duration_s


def _audacity(recordings: Iterable[Listed], _: _Band) -> Iterator[str]:
    """A label track: its text is the class alone, so that it can be read again as annotations."""
    for recording in recordings:
        for call in recording.calls:
            yield f"{call.start_s:.6f}\t{call.end_s:.6f}\t{shown(call.decision)}"


def _json(recordings: Iterable[Listed], _: _Band) -> Iterator[str]:
    rows = (row for recording in recordings for row in _rows(recording))
    before = "["
    for row in rows:
        yield before + json.dumps(row, ensure_ascii=False)
        before = ","
    yield "]" if before == "," else "[]"


def _in_lines(lines: Callable[[Iterable[Listed], _Band], Iterator[str]]) -> Callable[..., None]:
    def write(path: Path, recordings: Iterable[Listed], band_hz: _Band) -> None:
        with new_file(path) as place, place.open("w", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines(f"{line}\n" for line in lines(recordings, band_hz))

    return write


# ---- tables of cells ----------------------------------------------------------------------------


def _rows(recording: Listed) -> Iterator[dict[str, Any]]:
    for call in recording.calls:
        time = recording.time_of(call.start_s)
        yield {
            "recording": recording.name, "start_s": call.start_s, "end_s": call.end_s, "class": call.class_name,
            "score": call.score, "decision": call.decision, "ood_score": call.ood_score, "peak_s": call.peak_s,
            "start_time": None if time is None else time.isoformat(timespec="seconds"),
        }  # fmt: skip


def _birdnet_rows(recording: Listed) -> Iterator[dict[str, Any]]:
    for call in recording.calls:
        scientific, common = names_of(call.decision)
        cells = (call.start_s, call.end_s, scientific, common, call.score, recording.name)
        yield dict(zip(BIRDNET, cells, strict=True))


def names_of(class_name: str) -> tuple[str, str]:
    """Scientific and common name of a class: of `Genus species_Common name` both, else twice its own."""
    scientific, _, common = class_name.partition("_")
    if common and " " in scientific.strip() and SCIENTIFIC.fullmatch(scientific.strip()):
        return scientific.strip(), common.strip()
    return class_name, class_name


def _in_cells(
    columns: Sequence[str], rows: Callable[[Listed], Iterator[Mapping[str, Any]]]
) -> Callable[..., None]:
    def write(path: Path, recordings: Iterable[Listed], _: _Band) -> None:
        with growing_csv(path, columns) as add:
            for recording in recordings:
                for row in rows(recording):
                    add(row)

    return write


def _parquet(path: Path, recordings: Iterable[Listed], _: _Band) -> None:
    pa, parquet = require_pyarrow("--format parquet")
    numbers = {"start_s", "end_s", "score", "ood_score", "peak_s"}
    schema = pa.schema([(name, pa.float64() if name in numbers else pa.string()) for name in COLUMNS])
    with new_file(path) as place, contextlib.closing(parquet.ParquetWriter(str(place), schema)) as writer:
        for recording in recordings:
            if rows := list(_rows(recording)):
                writer.write_table(pa.Table.from_pylist(rows, schema=schema))


_WRITERS: Final[dict[str, Callable[..., None]]] = {
    "raven": _in_lines(_raven),
    "audacity": _in_lines(_audacity),
    "csv": _in_cells(COLUMNS, _rows),
    "json": _in_lines(_json),
    "parquet": _parquet,
    "birdnet": _in_cells(BIRDNET, _birdnet_rows),
}


def listed(calls: Iterable[Call], *, unknown: bool) -> tuple[Call, ...]:
    """The detections that tables have: with those that are rejected as unknown, or without."""
    return tuple(call for call in calls if unknown or call.decision != UNKNOWN_NAME)
