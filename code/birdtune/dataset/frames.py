"""The frame store: every recording's log-mel frames on disk, as the network will see them.

    SoundFile ─▶ fill ─▶ cache/<front end>/shard-*.f16   flat [frames, 64] float16, little-endian
                         cache/<front end>/index.jsonl   content → shard, first frame, count, CRC
                         cache/<front end>/whole.json    the shards' sizes and times when last found whole
    content ─▶ FrameStore.frames ─▶ [n, 64]

Frames, not patches, are kept: a window at any hop is a slice. The key is the content of the sound
file, and the folder's name is the front end's digest and the resampler, so a later run computes only
what is new. Each worker appends to a shard of its own; a recording counts once its line stands in the
index, so that a job killed at any moment loses at most what was being decoded at that moment.
"""

import contextlib
import json
import os
import threading
import time
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
from pydantic import NonNegativeInt, TypeAdapter

from birdtune.dataset.ledger import Examined, Ledger, crashed, note_examined
from birdtune.dataset.recordings import Problem, SoundFile, unchanged
from birdtune.errors import BirdtuneError, PassingError, shown
from birdtune.events import Interrupts, Journal
from birdtune.files import make_folder, read_json, sync_folder, write_json, write_text
from birdtune.sound.audio import SoundError, SoundFacts, SoundStream
from birdtune.sound.logmel import FrontEnd, frames_of
from birdtune.storage import need_space, storage_faults
from birdtune.workers import Crashed, run_tasks, worker_count

Frames = npt.NDArray[np.float16]
FRAME_DTYPE = np.dtype("<f2")
INDEX_NAME = "index.jsonl"
# A shard is closed when it has grown to this; a longer recording makes a longer shard.
_SHARD_BYTES = 1 << 30
_WHOLE_NAME = "whole.json"
_BLOCK_BYTES = 1 << 22
# Frames take 12.8 kB a second; this share of the file's size if that holds 16-bit sound at 16 kHz.
_USUAL_SHARE = 0.4
# Shards held open for reading; years of monthly additions must stay below the usual limit of 1,024 files.
_MOST_OPEN = 256


@dataclass(frozen=True)
class Entry:
    """Where the frames of one content lie."""

    content: str
    shard: str
    start: NonNegativeInt  # frames from the beginning of the shard
    n_frames: NonNegativeInt
    crc: int  # CRC-32 of the frames' bytes
    facts: SoundFacts  # what the ledger knows too, unless the run was killed before it was saved


class FrameStore:
    """Frames by content, read from the shards as they are asked for.

    Nothing is mapped into memory, where what was touched would stay and count: what the store takes is
    its index, and the system's own cache of files keeps near what is read often.

    Args:
        cache: the folder of all front ends' frames.
        spec, resampler: what the frames are made with; they name the folder.
    """

    def __init__(self, cache: Path, spec: FrontEnd, resampler: str) -> None:
        self.folder = cache / f"{spec.name}-{spec.digest}-{resampler}"
        self.spec = spec
        self.resampler = resampler
        self._frame_bytes = spec.n_mels * FRAME_DTYPE.itemsize
        self._entries: dict[str, Entry] = {}
        self._open: OrderedDict[str, IO[bytes]] = OrderedDict()
        self._reading = threading.Lock()  # batches are made by a thread of their own
        self._read_index()

    def __contains__(self, content: str) -> bool:
        return content in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def entry(self, content: str) -> Entry:
        """Where a content's frames lie. Raises KeyError if they are not there."""
        return self._entries[content]

    def contents(self) -> list[str]:
        """All contents that are there."""
        return list(self._entries)

    def add(self, entry: Entry) -> None:
        """Note an entry in memory; `fill` writes it to the index."""
        self._entries[entry.content] = entry

    def frames(self, content: str, first: int = 0, n: int | None = None) -> Frames:
        """Frames of a content, from `first` on, at most `n` of them. [n, n_mels] float16

        Raises: as `read_into`; KeyError if the content is not there.
        """
        entry = self._entries[content]
        left = max(0, entry.n_frames - first)
        found = np.empty((left if n is None else min(n, left), self.spec.n_mels), FRAME_DTYPE)
        self.read_into(found, entry.shard, entry.start + first)
        return found

    def read_into(self, found: Frames, shard: str, row: int) -> None:
        """Fill an array [n, n_mels] float16 (C order) with a shard's frames from `row` on.

        Raises:
            PassingError: they are not there any more, or the storage fails.
        """
        if not found.size:
            return
        try:
            with self._reading:
                n_bytes = os.preadv(self._shard(shard).fileno(), [found.data], row * self._frame_bytes)
        except OSError as fault:
            raise self._lost(shard, str(fault.strerror)) from fault
        if n_bytes != found.nbytes:
            raise self._lost(shard, f"{n_bytes:,} bytes are there where {found.nbytes:,} were written")

    def _shard(self, name: str) -> IO[bytes]:
        """A shard's file, open; the one used longest ago is closed when there are many."""
        if name not in self._open:
            if len(self._open) >= _MOST_OPEN:
                self._open.popitem(last=False)[1].close()
            self._open[name] = (self.folder / name).open("rb", buffering=0)
        self._open.move_to_end(name)
        return self._open[name]

    def _lost(self, shard: str, why: str) -> PassingError:
        return PassingError(
            f"{shown(self.folder / shard)}: the frames cannot be read ({why}). Something removed or changed the cache "
            "while the job used it, or the storage failed. Run again: what is missing is made again."
        )

    def close(self) -> None:
        """Close the shards; reading opens them again."""
        with self._reading:
            while self._open:
                self._open.popitem()[1].close()

    def __del__(self) -> None:
        self.close()

    # ---- is it still what was written? ----------------------------------------------------------

    def verify(self, contents: Sequence[str], *, thorough: bool = True) -> list[str]:
        """Compare frames with their checksums; forget those that are damaged, and return them, sorted.

        What is damaged also leaves the index, so that it stays forgotten and is made again.

        Args:
            thorough: read everything, about a second for some gigabytes; else only those shards whose size or
                times are not as they were when they were last found whole.
        """
        known = {} if thorough else self._known_whole()
        whole = {shard for shard, stamp in self._stamps().items() if known.get(shard) == stamp}
        to_read = [
            content
            for content in dict.fromkeys(contents)
            if content in self and self.entry(content).shard not in whole
        ]
        # Reading and checksums both let go of the interpreter.
        with ThreadPoolExecutor(min(8, len(os.sched_getaffinity(0)))) as threads:
            fine = list(threads.map(self._is_whole, to_read))
        damaged = sorted(content for content, good in zip(to_read, fine, strict=True) if not good)
        for content in damaged:
            del self._entries[content]
        if damaged:
            self._rewrite_index()
        return damaged

    def note_whole(self) -> None:
        """Note that all shards are as they were written or verified. Raises as files.storage_faults."""
        stamps = self._stamps()
        if stamps and stamps != self._known_whole():
            write_json(self.folder / _WHOLE_NAME, stamps, durable=False)

    def _is_whole(self, content: str) -> bool:
        entry, crc = self.entry(content), 0
        try:
            with (self.folder / entry.shard).open("rb", buffering=0) as file:
                file.seek(entry.start * self._frame_bytes)
                left = entry.n_frames * self._frame_bytes
                while left and (block := file.read(min(left, _BLOCK_BYTES))):
                    crc, left = zlib.crc32(block, crc), left - len(block)
        except OSError:
            return False
        return left == 0 and crc == entry.crc

    def _stamps(self) -> dict[str, list[int]]:
        """Size and times of each shard that is in use: a write changes one of them."""
        found = {}
        for name in sorted({entry.shard for entry in self._entries.values()}):
            with contextlib.suppress(OSError):
                facts = (self.folder / name).stat()
                found[name] = [facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns]
        return found

    def _known_whole(self) -> dict[str, list[int]]:
        known = read_json(self.folder / _WHOLE_NAME)
        return known if isinstance(known, dict) else {}

    def _read_index(self) -> None:
        try:
            lines = (self.folder / INDEX_NAME).read_text("utf-8", "replace").splitlines()
        except (FileNotFoundError, NotADirectoryError):
            return
        sizes = {path.name: path.stat().st_size for path in self.folder.glob("shard-*.f16")}
        read_entry = TypeAdapter(Entry).validate_json
        for line in lines:
            try:
                entry = read_entry(line)
            except ValueError:
                continue  # the last line of a run that was killed while writing it, or of another version
            if (entry.start + entry.n_frames) * self._frame_bytes <= sizes.get(entry.shard, 0):
                self._entries[entry.content] = entry

    def _rewrite_index(self) -> None:
        write_text(self.folder / INDEX_NAME, "".join(_line(entry) for entry in self._entries.values()))


def _line(entry: Entry) -> str:
    return f"{json.dumps(vars(entry) | {'facts': vars(entry.facts)})}\n"


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

    def __init__(self, folder: Path, spec: FrontEnd, resampler: str, longest_s: float) -> None:
        self.folder, self.spec, self.resampler, self.longest_s = folder, spec, resampler, longest_s
        self._file: IO[bytes] | None = None

    def make(self, task: _Task) -> _Made:
        """Decode one file and append its frames; of a file that fails nothing stays in the shard."""
        shard = self._shard()
        begin = shard.tell()
        stream = SoundStream(task.file.path, resampler=self.resampler, longest_s=self.longest_s)
        crc = 0
        try:
            with unchanged(task.file):
                for frames in frames_of(stream, self.spec):
                    half = np.ascontiguousarray(frames, dtype=FRAME_DTYPE)
                    # The decoder refuses what could come to this; but one NaN here would spoil all of the training.
                    if not np.isfinite(half).all():
                        raise SoundError("not-finite", "its log-mel frames are NaN or infinite")
                    block = half.tobytes()
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
        frame_bytes = self.spec.n_mels * FRAME_DTYPE.itemsize
        n_frames = (shard.tell() - begin) // frame_bytes
        start = begin // frame_bytes
        entry = Entry(task.content, Path(shard.name).name, start, n_frames, crc, stream.facts)
        return _Made(Examined(stream.facts), entry)

    def _shard(self) -> IO[bytes]:
        if self._file is not None and self._file.tell() >= _SHARD_BYTES:
            self._file.close()
            self._file = None
        if self._file is None:
            # Time and process make the name new, also among hosts that share a cache.
            self._file = (self.folder / f"shard-{time.time_ns():x}-{os.getpid()}.f16").open("xb")
        return self._file


# The one writer of a worker process.
_writer: _ShardWriter | None = None


def _begin_worker(folder: Path, spec: FrontEnd, resampler: str, longest_s: float) -> None:
    global _writer
    _writer = _ShardWriter(folder, spec, resampler, longest_s)


def _make(task: _Task) -> _Made:
    assert _writer is not None
    return _writer.make(task)


class _Forecast:
    """How many bytes the frames of some recordings take that are still to be made.

    Known of recordings that were heard before, as by `check`; of others it follows from the size of their
    files and what came of those that are done.
    """

    def __init__(self, tasks: Sequence[_Task], ledger: Ledger, spec: FrontEnd) -> None:
        self._frame_bytes = spec.n_mels * FRAME_DTYPE.itemsize
        self._unknown: dict[str, int] = {}  # content → bytes of the file
        self._known: dict[str, int] = {}  # content → bytes of its frames
        self._read, self._made = 0, 0
        for task in tasks:
            found = ledger.examined(task.content)
            if found is None or found.facts is None:
                self._unknown[task.content] = task.file.size
            else:
                n_frames = spec.frame_count(spec.padded_samples(found.facts.n_samples))
                self._known[task.content] = n_frames * self._frame_bytes

    def note(self, task: _Task, made: _Made) -> None:
        """Count a recording as done."""
        self._known.pop(task.content, None)
        self._unknown.pop(task.content, None)
        self._read += task.file.size
        self._made += made.entry.n_frames * self._frame_bytes if made.entry is not None else 0

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
    """Make the frames that are missing, of every content whose file can be decoded.

    What was learnt of each content goes to the ledger.

    Args:
        unusable: as `ledger.note_examined`; where such a file has a copy, that is decoded in its place.

    Returns:
        how many recordings were decoded.

    Raises:
        Interrupted: what was finished is kept.
        PassingError, InputError: the storage refuses, of the frames (see storage.storage_faults) or of the
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
        drop_leftovers(store)
        forecast = _Forecast(tasks, ledger, store.spec)
        need_space(store.folder, forecast.bytes_surely_left(), f"the frames of {len(tasks):,} recordings")
        results = run_tasks(
            _make,
            tasks,
            n_workers=worker_count(workers, len(tasks)),
            interrupts=interrupts,
            initializer=_begin_worker,
            initargs=(store.folder, store.spec, store.resampler, longest_s),
        )
        with (
            storage_faults(store.folder, "frames", forecast.bytes_left),
            journal.progress("preparing", len(tasks), "recordings") as progress,
            _index(store, ledger) as index,
            # However the block ends, the workers end with it: what they still had would count for nothing.
            contextlib.closing(results),
        ):
            for n_done, (task, result) in enumerate(results):
                made = _Made(crashed()) if isinstance(result, Crashed) else result
                forecast.note(task, made)
                progress.advance()
                if made.entry is not None:
                    # The frames are in the shard already: the line makes them count.
                    index.write(_line(made.entry).encode())
                    index.flush()
                    store.add(made.entry)
                note_examined(ledger, task.file, made.examined, unusable, len(tasks) - n_done)
    ledger.save()
    return len(tried)


@contextlib.contextmanager
def _index(store: FrameStore, ledger: Ledger) -> Iterator[IO[bytes]]:
    """The index to append to; at the end, however it comes, what was made is on the disk."""
    with (store.folder / INDEX_NAME).open("ab") as index:
        if index.tell():
            index.write(b"\n")  # ends a line that a killed run left half-written
        try:
            yield index
        except BaseException:
            # Nobody writes to the shards any more. Of several faults the first is the one to tell: others that
            # come here are of the same full disk.
            for keep in (lambda: drop_leftovers(store), ledger.save, lambda: _sync(store, index)):
                with contextlib.suppress(BirdtuneError, OSError):
                    keep()
            raise
        _sync(store, index)


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


def _sync(store: FrameStore, index: IO[bytes]) -> None:
    for shard in {store.entry(content).shard for content in store.contents()}:
        with (store.folder / shard).open("rb") as file:
            os.fsync(file.fileno())
    os.fsync(index.fileno())
    sync_folder(store.folder)


def drop_leftovers(store: FrameStore) -> int:
    """Give back what killed runs left: shards, and ends of shards, that no entry of the index points to.

    Returns:
        how many shards were deleted.
    """
    frame_bytes = store.spec.n_mels * FRAME_DTYPE.itemsize
    ends: dict[str, int] = {}
    for entry in map(store.entry, store.contents()):
        ends[entry.shard] = max(ends.get(entry.shard, 0), (entry.start + entry.n_frames) * frame_bytes)
    n_unused = 0
    for path in store.folder.glob("shard-*.f16"):
        if path.name not in ends:
            path.unlink(missing_ok=True)
            n_unused += 1
        elif path.stat().st_size > ends[path.name]:
            os.truncate(path, ends[path.name])
    return n_unused
