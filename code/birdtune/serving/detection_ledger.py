"""Which recordings have been scored, and what was detected in them: what a stopped run goes on with.

    OUT/detections.jsonl   one line a recording, appended once all of it was scored; and one of the model
    OUT/detections.part.json   how far the recording has come that is being scored, each minute

A recording is recognised by its content, whatever it is called now; that of a file of unchanged place, size and time
is taken to be what it was. Only where each line begins is in memory.
"""

import contextlib
import json
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from birdtune.runtime.files import file_sha256, read_json, sync_folder, write_json
from birdtune.runtime.storage import storage_faults
from birdtune.serving.detect import Call
from birdtune.serving.inference import Channel

NAME, PART_NAME = "detections.jsonl", "detections.part.json"
_KEPT_EACH_S = 60.0
# First key of a line that is of no recording, but of the model.
_ASKED = "asked"


@dataclass(frozen=True)
class Entry:
    """A recording that was scored."""

    name: str
    path: str
    channel: int  # from 1
    size: int
    mtime_ns: int
    sha256: str
    made_by: str  # digest of model and settings
    duration_s: float
    windows: int
    recorded_at: datetime | None
    problem: str
    detail: str
    calls: tuple[Call, ...]

    def row(self) -> dict[str, Any]:
        """As a line of the file has it."""
        when = None if self.recorded_at is None else self.recorded_at.isoformat()
        return {**asdict(self), "recorded_at": when}

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "Entry":
        """What `row` gave. Raises LookupError, TypeError or ValueError if it did not."""
        when = row["recorded_at"]
        calls = tuple(Call(**call) for call in row["calls"])
        return cls(**{**row, "recorded_at": None if when is None else datetime.fromisoformat(when), "calls": calls})


@dataclass(frozen=True)
class Described:
    """What tables need to know of a model, so that it need not be opened where all recordings were scored before."""

    made_by: str  # digest of model and settings
    n_classes: int
    band_hz: tuple[float, float]  # lowest and highest frequency that it hears

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "Described":
        """What `Ledger.describe` wrote. Raises LookupError, TypeError or ValueError if it did not."""
        low_hz, high_hz = map(float, row["band_hz"])
        return cls(str(row["made_by"]), int(row["n_classes"]), (low_hz, high_hz))


class Ledger:
    """The recordings that were scored with one model and one set of settings.

    Args:
        folder: where its file lies or will lie.
        made_by: digest of model and settings; entries of others are kept and not used.

    Raises: as `storage_faults`.
    """

    def __init__(self, folder: Path, made_by: str, check: Callable[[], None] = lambda: None) -> None:
        self.path, self.made_by, self._check = folder / NAME, made_by, check
        self._at: dict[tuple[str, int], int] = {}  # content and channel → where its line begins
        self._stats: dict[tuple[str, int, int], str] = {}  # path, size, time → content
        self._sizes: set[int] = set()
        self._part, self._kept_s = folder / PART_NAME, time.monotonic()
        found = read_json(self._part)
        self._unfinished: dict[str, Any] = found if isinstance(found, dict) else {}
        with storage_faults(self.path):
            self._file: IO[bytes] = self.path.open("a+b")
            sync_folder(folder)
            self._read()

    def _read(self) -> None:
        self._file.seek(0)
        at = 0
        for line in iter(self._file.readline, b""):
            if not line.endswith(b"\n"):  # cut short by a kill or a full disk
                self._file.truncate(at)
                break
            entry = _parsed(line)
            if entry is not None and entry.made_by == self.made_by:
                self._note(entry, at)
            at += len(line)

    def _note(self, entry: Entry, at: int) -> None:
        self._at[entry.sha256, entry.channel] = at
        self._stats[entry.path, entry.size, entry.mtime_ns] = entry.sha256
        self._sizes.add(entry.size)

    def find(self, given: Path | Channel) -> Entry | None:
        """What is known of a recording, under its present name; None: it is to be scored. Raises OSError."""
        path, channel = (given.path, given.channel + 1) if isinstance(given, Channel) else (given, 1)
        facts = path.stat()
        place = os.path.abspath(path)  # noqa: PTH100 - links are not followed
        content = self._stats.get((place, facts.st_size, facts.st_mtime_ns))
        if content is None and facts.st_size in self._sizes:
            content = file_sha256(path, self._check)
        at = None if content is None else self._at.get((content, channel))
        return None if at is None else self._entry(at)

    def add(self, entry: Entry) -> None:
        """Keep what was found in a recording; durably, before its table is written. Raises as `storage_faults`."""
        line = json.dumps(entry.row(), ensure_ascii=True).encode() + b"\n"
        with storage_faults(self.path, needed=len(line)):
            at = self._file.seek(0, os.SEEK_END)
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())
        self._note(entry, at)
        self._part.unlink(missing_ok=True)

    def keep_part(self, given: Path | Channel, state: Callable[[], dict[str, Any]]) -> None:
        """Keep how far a recording has come, unless that was done a moment ago. Raises as `write_json`."""
        if time.monotonic() >= self._kept_s + _KEPT_EACH_S:
            write_json(self._part, {"of": self._facts(given), "state": state()})
            self._kept_s = time.monotonic()

    def part(self, given: Path | Channel) -> dict[str, Any] | None:
        """What was kept of a recording; None: nothing was, or it has changed. Raises OSError."""
        is_its = bool(self._unfinished) and self._unfinished.get("of") == self._facts(given)
        return self._unfinished["state"] if is_its else None

    def _facts(self, given: Path | Channel) -> list[Any]:
        path, channel = (given.path, given.channel + 1) if isinstance(given, Channel) else (given, 1)
        facts = path.stat()
        return [os.path.abspath(path), channel, facts.st_size, facts.st_mtime_ns, self.made_by]  # noqa: PTH100

    def describe(self, asked: str, model: Described) -> None:
        """Keep what is to be known of the model, for `described`. Raises as `storage_faults`."""
        with storage_faults(self.path):
            self._file.seek(0, os.SEEK_END)
            self._file.write(json.dumps({_ASKED: asked, **asdict(model)}).encode() + b"\n")
            self._file.flush()

    def absorb(self, folder: Path) -> dict[tuple[str, int], str]:
        """Add what was scored into another folder with the same model and settings; its content and channel → name.

        Raises: as `storage_faults`.
        """
        found = {}
        with storage_faults(folder / NAME, verb="read"), (folder / NAME).open("rb") as file:
            for line in file:
                self._check()
                entry = _parsed(line)
                if entry and entry.made_by == self.made_by:
                    found[entry.sha256, entry.channel] = entry.name
                    if (entry.sha256, entry.channel) not in self._at:
                        self.add(entry)
        return found

    def entries(self, found: Mapping[Path | Channel, tuple[str, int]]) -> Iterator[tuple[Path | Channel, Entry]]:
        """The entries of some recordings by content and channel, in their order."""
        for given, key in found.items():
            yield given, self._entry(self._at[key])

    def _entry(self, at: int) -> Entry:
        self._file.seek(at)
        entry = _parsed(self._file.readline())
        assert entry is not None, "it was read before"
        return entry

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def described(folder: Path, asked: str) -> Described | None:
    """The model that was opened when the same was asked for before; None: none was, or nobody knows.

    Raises: as `storage_faults`.
    """
    path, found = folder / NAME, None
    if not path.is_file():
        return None
    with storage_faults(path, verb="read"), path.open("rb") as file:
        for line in file:
            if line.startswith(f'{{"{_ASKED}"'.encode()):
                with contextlib.suppress(ValueError, LookupError, TypeError):
                    row = json.loads(line)
                    found = Described.of(row) if row[_ASKED] == asked else found
    return found


def durations(folder: Path) -> dict[str, float]:
    """The recordings that were scored into a folder, by name → seconds; {} where nothing says so.

    Raises: as `storage_faults`.
    """
    path = folder / NAME
    if not path.is_file():
        return {}
    with storage_faults(path, verb="read"), path.open("rb") as file:
        return {entry.name: entry.duration_s for line in file if (entry := _parsed(line)) is not None}


def newest(folder: Path) -> Iterator[Entry]:
    """The recordings that were scored with the model and settings of the last one, each once, in their order.

    Raises: as `storage_faults`; FileNotFoundError: nothing was scored there.
    """
    at: defaultdict[str, dict[tuple[str, int], int]] = defaultdict(dict)  # of each model: as of a Ledger
    last = ""
    with (folder / NAME).open("rb") as file:
        begins = 0
        for line in iter(file.readline, b""):
            if line.endswith(b"\n") and (entry := _parsed(line)) is not None:
                last = entry.made_by
                at[last][entry.sha256, entry.channel] = begins
            begins += len(line)
        for begins in at[last].values():
            file.seek(begins)
            if (entry := _parsed(file.readline())) is not None:
                yield entry


def _parsed(line: bytes) -> Entry | None:
    try:
        return Entry.of(json.loads(line))
    except (ValueError, LookupError, TypeError):
        return None  # of an earlier birdtune, or damaged: that recording is scored again
