"""The feature store: rows of every recording on disk, as the backbone will see them.

    SoundFile ─▶ fill ─▶ cache/<front end>/   shards of flat [rows, ...], little-endian, and their index
    content ─▶ FrameStore.rows ─▶ [n, ...]

Rows, not windows, are kept: a window at any hop is a slice. The key is the content of the sound
file, and the folder's name is the front end's digest and how sound is decoded, so a later run computes only
what is new. Each worker appends to a shard of its own; how shards and index are kept: `shards.py`.
"""

import contextlib
import os
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from pydantic import NonNegativeInt

from birdtune.audio.decode import SoundFacts, SoundStream
from birdtune.audio.faults import SoundError
from birdtune.audio.front_end import FrontEnd
from birdtune.config import AudioSettings
from birdtune.data.ledger import Examined, Ledger, crashed, note_examined
from birdtune.data.scan import Problem, SoundFile, unchanged
from birdtune.data.shards import ShardStore
from birdtune.runtime.files import make_folder
from birdtune.runtime.log import Journal
from birdtune.runtime.signals import Interrupts
from birdtune.runtime.storage import need_space, storage_faults
from birdtune.runtime.workers import Crashed, run_tasks, worker_count

_ENDING = ".rows"
# A shard is closed when it has grown to this; a longer recording makes a longer shard.
_SHARD_BYTES = 1 << 30
# Bytes of rows for each byte of a file, before any is known: those of log-mel beside 16-bit sound at 16 kHz.
_USUAL_SHARE = 0.4


@dataclass(frozen=True)
class Entry:
    """Where the rows of one content lie."""

    content: str
    shard: str
    start: NonNegativeInt  # rows from the beginning of the shard
    n_rows: NonNegativeInt
    crc: int  # CRC-32 of the rows' bytes
    facts: SoundFacts  # what the ledger knows too, unless the run was killed before it was saved


class FrameStore(ShardStore[Entry]):
    """Rows by content.

    Args:
        cache: the folder of all front ends' rows.
        spec, sound: what the rows are made with; they name the folder.
    """

    def __init__(self, cache: Path, spec: FrontEnd, sound: AudioSettings) -> None:
        self.spec = spec
        self.sound = sound
        self.in_use: set[Path] = set()  # folders below, of what was made of the rows and is needed again
        super().__init__(
            cache / f"{spec.name}-{spec.digest}-{sound.cache_key}",
            Entry,
            row_bytes=spec.row_bytes,
            ending=_ENDING,
            what="the features",
        )

    def rows(self, content: str, first: int = 0, n: int | None = None) -> npt.NDArray[Any]:
        """Rows of a content, from `first` on, at most `n` of them. [n, *row_shape]

        Raises: as `read_into`; KeyError if the content is not there.
        """
        entry = self.entry(content)
        left = max(0, entry.n_rows - first)
        found = np.empty((left if n is None else min(n, left), *self.spec.row_shape), self.spec.row_dtype)
        self.read_into(found, entry.shard, entry.start + first)
        return found


@dataclass(frozen=True)
class _Task:
    file: SoundFile
    content: str


@dataclass(frozen=True)
class _Made:
    examined: Examined
    entry: Entry | None = None


class _ShardWriter:
    """A worker's own shard, opened when the first recording comes."""

    def __init__(self, folder: Path, spec: FrontEnd, sound: AudioSettings, longest_s: float) -> None:
        self.folder, self.spec, self.sound, self.longest_s = folder, spec, sound, longest_s
        self._file: IO[bytes] | None = None

    def make(self, task: _Task) -> _Made:
        """Decode one file and append its rows; of a file that fails nothing stays in the shard."""
        shard = self._shard()
        begin = shard.tell()
        file = task.file
        stream = SoundStream(
            file.path, self.sound, rate_hz=self.spec.rate_hz, longest_s=self.longest_s, measured=True,
            channel=file.channel,
        )  # fmt: skip
        crc = 0
        try:
            with unchanged(task.file):
                for rows in self.spec.rows_of(stream):
                    stored = self.spec.stored(rows)
                    # The decoder refuses what could come to this; but one NaN here would spoil all of the training.
                    if not np.isfinite(stored).all():
                        raise SoundError("not-finite", "its features are NaN or infinite")
                    block = stored.tobytes()
                    shard.write(block)
                    crc = zlib.crc32(block, crc)
            shard.flush()
        except SoundError as fault:
            shard.seek(begin)
            shard.truncate()
            return _Made(Examined(None, fault.problem, str(fault)))
        except OSError:
            # The disk is full, most likely: what there is of this recording only takes space from others.
            with contextlib.suppress(OSError):
                os.truncate(shard.fileno(), begin)
            raise
        assert stream.facts is not None
        row_bytes = self.spec.row_bytes
        n_rows = (shard.tell() - begin) // row_bytes
        entry = Entry(task.content, Path(shard.name).name, begin // row_bytes, n_rows, crc, stream.facts)
        return _Made(Examined(stream.facts), entry)

    def _shard(self) -> IO[bytes]:
        if self._file is not None and self._file.tell() >= _SHARD_BYTES:
            self._file.close()
            self._file = None
        if self._file is None:
            # Time and process make the name new, also among hosts that share a cache.
            self._file = (self.folder / f"shard-{time.time_ns():x}-{os.getpid()}{_ENDING}").open("xb")
        return self._file


# The one writer of a worker process.
_writer: _ShardWriter | None = None


def _begin_worker(folder: Path, spec: FrontEnd, sound: AudioSettings, longest_s: float) -> None:
    global _writer
    _writer = _ShardWriter(folder, spec, sound, longest_s)


def _make(task: _Task) -> _Made:
    assert _writer is not None
    return _writer.make(task)


class _Forecast:
    """How many bytes the rows of some recordings take that are still to be made.

    Known of recordings that were heard before, as by `check`; of others it follows from the size of their
    files and what came of those that are done.
    """

    def __init__(self, tasks: Sequence[_Task], ledger: Ledger, spec: FrontEnd) -> None:
        self._row_bytes = spec.row_bytes
        self._unknown: dict[str, int] = {}  # content → bytes of the file
        self._known: dict[str, int] = {}  # content → bytes of its rows
        self._read, self._made = 0, 0
        for task in tasks:
            found = ledger.examined(task.content)
            if found is None or found.facts is None:
                self._unknown[task.content] = task.file.size
            else:
                n_rows = spec.row_count(spec.padded_samples(spec.samples(found.facts.duration_s)))
                self._known[task.content] = n_rows * self._row_bytes

    def note(self, task: _Task, made: _Made) -> None:
        """Count a recording as done."""
        self._known.pop(task.content, None)
        self._unknown.pop(task.content, None)
        self._read += task.file.size
        self._made += made.entry.n_rows * self._row_bytes if made.entry is not None else 0

    def bytes_surely_left(self) -> int:
        """What those take whose length is known."""
        return sum(self._known.values())

    def bytes_left(self) -> int:
        """The best guess of what all take."""
        share = self._made / self._read if self._made else _USUAL_SHARE
        return self.bytes_surely_left() + round(share * sum(self._unknown.values()))


def fill(
    store: FrameStore,
    files: Sequence[SoundFile],
    ledger: Ledger,
    unusable: dict[str, Problem],
    *,
    longest_s: float,
    workers: int,
    journal: Journal,
    interrupts: Interrupts,
) -> int:
    """Make the rows that are missing, of every content whose file can be decoded.

    What was learnt of each content goes to the ledger.

    Args:
        unusable: as `ledger.note_examined`; where such a file has a copy, that is decoded in its place.

    Returns:
        how many recordings were decoded.

    Raises:
        Interrupted: what was finished is kept.
        RetryableError, InputError: the storage refuses, of the features (see storage.storage_faults) or of the
            sound; likewise.
    """
    make_folder(store.folder)
    for content in store.contents():
        if ledger.examined(content) is None:
            ledger.set_examined(content, Examined(store.entry(content).facts))
    tried: set[str] = set()
    # None left: spare the workers' start.
    while tasks := list(_wanted(store, files, ledger, unusable)):
        tried |= {task.content for task in tasks}
        store.drop_leftovers()
        forecast = _Forecast(tasks, ledger, store.spec)
        need_space(store.folder, forecast.bytes_surely_left(), f"the features of {len(tasks):,} recordings")
        results = run_tasks(
            _make,
            tasks,
            n_workers=worker_count(workers, len(tasks)),
            interrupts=interrupts,
            initializer=_begin_worker,
            initargs=(store.folder, store.spec, store.sound, longest_s),
        )
        with (
            storage_faults(store.folder, "features", forecast.bytes_left),
            journal.progress("preparing", len(tasks), "recordings") as progress,
            store.appending(ledger.save) as index,
            # However the block ends, the workers end with it: what they still had would count for nothing.
            contextlib.closing(results),
        ):
            for n_done, (task, result) in enumerate(results):
                made = _Made(crashed()) if isinstance(result, Crashed) else result
                forecast.note(task, made)
                progress.advance()
                if made.entry is not None:
                    store.add(made.entry, index)
                note_examined(ledger, task.file, made.examined, unusable, len(tasks) - n_done)
    ledger.save()
    return len(tried)


def _wanted(
    store: FrameStore, files: Sequence[SoundFile], ledger: Ledger, unusable: Mapping[str, Problem]
) -> Iterator[_Task]:
    """One task for each content that is not in the store, unless it is known to be unusable."""
    seen: set[str] = set()
    for file in files:
        content = ledger.content(file) if file.name not in unusable else None
        if content is None or content in seen or content in store:
            continue
        seen.add(content)
        known = ledger.examined(content)
        if known is None or known.facts is not None:
            yield _Task(file, content)
