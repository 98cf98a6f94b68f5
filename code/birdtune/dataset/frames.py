"""The frame store: every recording's log-mel frames on disk, as the network will see them.

    SoundFile ─▶ fill ─▶ cache/<front end>/shard-*.f16   flat [frames, 64] float16, little-endian
                         cache/<front end>/index.jsonl   content → shard, first frame, count, CRC
    content ─▶ FrameStore.frames ─▶ memory-mapped [n, 64]

Frames, not patches, are kept: a window at any hop is a slice. The key is the content of the sound
file, and the folder's name is the front end's digest and the resampler, so a later run computes only
what is new. Each worker appends to a shard of its own; a recording counts once its line stands in the
index, so that a job killed at any moment loses at most what was being decoded at that moment.
"""

import json
import os
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from birdtune.dataset.ledger import Examined, Ledger, crashed
from birdtune.dataset.recordings import SoundFile
from birdtune.events import Interrupts, Journal
from birdtune.files import make_folder, storage_faults, sync_folder
from birdtune.sound.audio import SoundError, SoundFacts, SoundStream
from birdtune.sound.logmel import FrontEnd, frames_of
from birdtune.workers import Crashed, run_tasks, worker_count

Frames = npt.NDArray[np.float16]
FRAME_DTYPE = np.dtype("<f2")
INDEX_NAME = "index.jsonl"
# A shard is closed when it has grown to this; a longer recording makes a longer shard.
_SHARD_BYTES = 1 << 30


@dataclass(frozen=True)
class Entry:
    """Where the frames of one content lie."""

    content: str
    shard: str
    start: int  # frames from the beginning of the shard
    n_frames: int
    crc: int  # CRC-32 of the frames' bytes
    facts: SoundFacts  # what the ledger knows too, unless the run was killed before it was saved


class FrameStore:
    """Frames by content, memory-mapped.

    Args:
        cache: the folder of all front ends' frames.
        spec, resampler: what the frames are made with; they name the folder.
    """

    def __init__(self, cache: Path, spec: FrontEnd, resampler: str) -> None:
        self.folder = cache / f"{spec.name}-{spec.digest}-{resampler}"
        self.spec = spec
        self.resampler = resampler
        self._entries: dict[str, Entry] = {}
        self._maps: dict[str, Frames] = {}
        self._read_index()

    def __contains__(self, content: str) -> bool:
        return content in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def entry(self, content: str) -> Entry:
        """Where a content's frames lie. Raises KeyError if they are not there."""
        return self._entries[content]

    def shard(self, name: str) -> Frames:
        """A whole shard, memory-mapped, read-only. [frames, n_mels]"""
        if name not in self._maps:
            # As bytes: a killed run may have ended its shard in the middle of a number.
            flat = np.memmap(self.folder / name, dtype=np.uint8, mode="r")
            frame_bytes = self.spec.n_mels * FRAME_DTYPE.itemsize
            whole = flat[: flat.size // frame_bytes * frame_bytes].view(FRAME_DTYPE)
            self._maps[name] = whole.reshape(-1, self.spec.n_mels)
        return self._maps[name]

    def frames(self, content: str) -> Frames:
        """All frames of a content. [n, n_mels] float16, a view of the memory map"""
        entry = self._entries[content]
        return self.shard(entry.shard)[entry.start : entry.start + entry.n_frames]

    def verify(self, contents: Sequence[str]) -> list[str]:
        """Compare frames with their checksums; forget those that are damaged, and return them."""
        damaged = []
        for content in contents:
            if (
                content in self
                and zlib.crc32(np.ascontiguousarray(self.frames(content)).data) != self.entry(content).crc
            ):
                damaged.append(content)
                del self._entries[content]
        return damaged

    def contents(self) -> list[str]:
        """All contents that are there."""
        return list(self._entries)

    def add(self, entry: Entry) -> None:
        """Note an entry in memory; `fill` writes it to the index."""
        self._entries[entry.content] = entry

    def _read_index(self) -> None:
        try:
            lines = (self.folder / INDEX_NAME).read_text("utf-8", "replace").splitlines()
        except (FileNotFoundError, NotADirectoryError):
            return
        sizes = {path.name: path.stat().st_size for path in self.folder.glob("shard-*.f16")}
        frame_bytes = self.spec.n_mels * FRAME_DTYPE.itemsize
        for line in lines:
            try:
                fields = json.loads(line)
                entry = Entry(**{**fields, "facts": SoundFacts(**fields["facts"])})
                if (entry.start + entry.n_frames) * frame_bytes <= sizes.get(entry.shard, 0):
                    self._entries[entry.content] = entry
            except (ValueError, TypeError, KeyError):
                continue  # the last line of a run that was killed while writing it, or of another version


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
            for frames in frames_of(stream, self.spec):
                block = np.ascontiguousarray(frames, dtype=FRAME_DTYPE).tobytes()
                shard.write(block)
                crc = zlib.crc32(block, crc)
            shard.flush()
        except SoundError as fault:
            shard.seek(begin)
            shard.truncate()
            return _Made(Examined(None, fault.problem, str(fault)))
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


def fill(
    store: FrameStore,
    files: Sequence[SoundFile],
    ledger: Ledger,
    *,
    longest_s: float,
    workers: int,
    journal: Journal,
    interrupts: Interrupts,
) -> int:
    """Make the frames that are missing, of every content whose file can be decoded.

    What was learnt of each content goes to the ledger.

    Returns:
        how many recordings were decoded.

    Raises:
        Interrupted: what was finished is kept.
        PassingError, InputError: the storage refuses (see files.storage_faults); likewise.
    """
    make_folder(store.folder)
    for content in store.contents():
        if ledger.examined(content) is None:
            ledger.set_examined(content, Examined(store.entry(content).facts))
    tasks = list(_wanted(store, files, ledger))
    # None left: spare the workers' start.
    if not tasks:
        ledger.save()
        return 0
    with storage_faults(store.folder), (store.folder / INDEX_NAME).open("ab") as index:
        if index.tell():
            index.write(b"\n")  # ends a line that a killed run left half-written
        try:
            with journal.progress("preparing", len(tasks), "recordings") as progress:
                for task, result in run_tasks(
                    _make,
                    tasks,
                    n_workers=worker_count(workers, len(tasks)),
                    interrupts=interrupts,
                    initializer=_begin_worker,
                    initargs=(store.folder, store.spec, store.resampler, longest_s),
                ):
                    progress.advance()
                    _note(store, index, ledger, task, result)
        finally:
            ledger.save()
            _sync(store, index)
    return len(tasks)


def _wanted(store: FrameStore, files: Sequence[SoundFile], ledger: Ledger) -> Iterator[_Task]:
    """One task for each content that is not in the store, unless it is known to be unusable."""
    seen: set[str] = set()
    for file in files:
        content = ledger.content(file)
        if content is None or content in seen or content in store:
            continue
        seen.add(content)
        known = ledger.examined(content)
        if known is None or known.facts is not None:
            yield _Task(file, content)


def _note(store: FrameStore, index: IO[bytes], ledger: Ledger, task: _Task, result: _Made | Crashed) -> None:
    made = _Made(crashed()) if isinstance(result, Crashed) else result
    if made.entry is not None:
        # The frames are in the shard already: the line makes them count.
        index.write(json.dumps(asdict(made.entry)).encode() + b"\n")
        index.flush()
        store.add(made.entry)
    ledger.set_examined(task.content, made.examined)


def _sync(store: FrameStore, index: IO[bytes]) -> None:
    for shard in {store.entry(content).shard for content in store.contents()}:
        with (store.folder / shard).open("rb") as file:
            os.fsync(file.fileno())
    os.fsync(index.fileno())
    sync_folder(store.folder)


def drop_unused_shards(store: FrameStore) -> int:
    """Delete shards that no entry of the index points to (left by killed runs). Returns how many."""
    used = {store.entry(content).shard for content in store.contents()}
    unused = [path for path in store.folder.glob("shard-*.f16") if path.name not in used]
    for path in unused:
        path.unlink(missing_ok=True)
    return len(unused)
