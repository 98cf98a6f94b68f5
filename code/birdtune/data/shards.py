"""Rows of numbers on disk, by the content of the sound that they were made of.

    content, rows ─▶ FOLDER/shard-*     flat [rows, ...], only ever appended to
                     FOLDER/index.jsonl  content → shard, first row, count, CRC
                     FOLDER/whole.json   the shards' sizes and times when last found whole
    shard, row ─▶ ShardStore.read_into ─▶ [n, ...]

A content counts once its line stands in the index, so that a job killed at any moment loses at most what it
was about to write. So are kept: features of recordings, what frozen layers
make of their windows, and embeddings.
"""

import contextlib
import json
import math
import os
import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter

from birdtune.data.shard_writer import ENDING, Entry
from birdtune.errors import BirdtuneError, RetryableError, shown
from birdtune.runtime.files import read_json, sync_folder, write_json, write_text
from birdtune.runtime.parsing import open_regular

INDEX_NAME = "index.jsonl"
WHOLE_NAME = "whole.json"
_BLOCK_BYTES = 1 << 22
# Shards held open for reading; years of monthly additions must stay below the usual limit of 1,024 files.
_MOST_OPEN = 256


_parse_entry = TypeAdapter(Entry).validate_json


def _read_entry(line: str) -> Entry:
    """A line of an index. Raises ValueError if it is none."""
    entry = _parse_entry(line)
    if entry.start < 0 or entry.n_rows < 0:
        raise ValueError(f"rows from {entry.start} on, {entry.n_rows} of them")
    return entry


class ShardStore:
    """Rows by content, read from the shards as they are asked for.

    Nothing is mapped into memory, where what was touched would stay and count: what the store takes is
    its index, and the system's own cache of files keeps near what is read often.

    Args:
        folder: its own; its name says what made the rows.
        shape, dtype: of one row.
        what: the rows, in an error message.
    """

    def __init__(self, folder: Path, shape: Sequence[int], dtype: npt.DTypeLike, *, what: str) -> None:
        self.folder = folder
        self.shape = tuple(shape)
        self.dtype = np.dtype(dtype)
        self.row_bytes = self.dtype.itemsize * math.prod(self.shape)
        self._what = what
        self._entries: dict[str, Entry] = {}
        self._open: OrderedDict[str, IO[bytes]] = OrderedDict()
        self._reading = threading.Lock()  # batches are made by a thread of their own
        self._read_index()

    def __contains__(self, content: str) -> bool:
        return content in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def entry(self, content: str) -> Entry:
        """Where a content's rows lie. Raises KeyError if they are not there."""
        return self._entries[content]

    def contents(self) -> list[str]:
        """All contents that are there."""
        return list(self._entries)

    def rows(self, content: str, first: int = 0, n: int | None = None) -> npt.NDArray[Any]:
        """Rows of a content, from `first` on, at most `n` of them. [n, *shape]

        Raises: as `read_into`; KeyError if the content is not there.
        """
        entry = self.entry(content)
        left = max(0, entry.n_rows - first)
        found = np.empty((left if n is None else min(n, left), *self.shape), self.dtype)
        self.read_into(found, entry.shard, entry.start + first)
        return found

    def read_into(self, found: npt.NDArray[Any], shard: str, row: int) -> None:
        """Fill an array [n, ...] (C order) with a shard's rows from `row` on.

        Raises:
            RetryableError: they are not there any more, or the storage fails.
        """
        if not found.size:
            return
        buffer = found.view(np.uint8).data  # bfloat16 has none of its own
        try:
            with self._reading:
                n_bytes = os.preadv(self._shard(shard).fileno(), [buffer], row * self.row_bytes)
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

    def _lost(self, shard: str, why: str) -> RetryableError:
        return RetryableError(
            f"{shown(self.folder / shard)}: {self._what} cannot be read ({why}). Something removed or changed the "
            "cache while the job used it, or the storage failed. Run again: what is missing is made again."
        )

    def close(self) -> None:
        """Close the shards; reading opens them again."""
        with self._reading:
            while self._open:
                self._open.popitem()[1].close()

    def __del__(self) -> None:
        self.close()

    # ---- writing --------------------------------------------------------------------------------

    def add(self, entry: Entry, index: IO[bytes] | None = None) -> None:
        """Note an entry in memory, and in the index: its rows are in the shard already, the line makes them count."""
        if index is not None:
            index.write(_line(entry).encode())
            index.flush()
        self._entries[entry.content] = entry

    @contextlib.contextmanager
    def appending(self, *finally_do: Callable[[], object]) -> Iterator[IO[bytes]]:
        """The index to append to; at the end, however it comes, what was added is on the disk.

        Args:
            finally_do: what else is to be done when a fault ends it.
        """
        with (self.folder / INDEX_NAME).open("ab") as index:
            if index.tell():
                index.write(b"\n")  # ends a line that a killed run left half-written
            keeping: list[Callable[[], object]] = [
                self.drop_leftovers,
                *finally_do,
                lambda: self._sync(index),
            ]
            try:
                yield index
            except BaseException:
                # Nobody writes to the shards any more. Of several faults the first is the one to tell: others that
                # come here are of the same full disk.
                for keep in keeping:
                    with contextlib.suppress(BirdtuneError, OSError):
                        keep()
                raise
            self._sync(index)

    def _sync(self, index: IO[bytes]) -> None:
        for shard in {entry.shard for entry in self._entries.values()}:
            with (self.folder / shard).open("rb") as file:
                os.fsync(file.fileno())
        os.fsync(index.fileno())
        sync_folder(self.folder)

    def drop_leftovers(self) -> int:
        """Give back what killed runs left: shards, and ends of shards, that no entry of the index points to.

        Returns:
            how many shards were deleted.
        """
        ends: dict[str, int] = {}
        for entry in self._entries.values():
            ends[entry.shard] = max(ends.get(entry.shard, 0), (entry.start + entry.n_rows) * self.row_bytes)
        n_unused = 0
        for path in self.folder.glob(f"shard-*{ENDING}"):
            if path.name not in ends:
                path.unlink(missing_ok=True)
                n_unused += 1
            elif path.stat().st_size > ends[path.name]:
                os.truncate(path, ends[path.name])
        return n_unused

    # ---- is it still what was written? ----------------------------------------------------------

    def verify(self, contents: Sequence[str], *, thorough: bool = True) -> list[str]:
        """Compare rows with their checksums; forget those that are damaged, and return them, sorted.

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
        """Note that all shards are as they were written or verified. Raises as storage.storage_faults."""
        stamps = self._stamps()
        if stamps and stamps != self._known_whole():
            write_json(self.folder / WHOLE_NAME, stamps, durable=False)

    def _is_whole(self, content: str) -> bool:
        entry, crc = self.entry(content), 0
        try:
            with (self.folder / entry.shard).open("rb", buffering=0) as file:
                file.seek(entry.start * self.row_bytes)
                left = entry.n_rows * self.row_bytes
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
        known = read_json(self.folder / WHOLE_NAME)
        return known if isinstance(known, dict) else {}

    def _read_index(self) -> None:
        try:
            with open_regular(self.folder / INDEX_NAME, "an index of birdtune's own") as file:
                lines = file.read().decode("utf-8", "replace").splitlines()
        except (FileNotFoundError, NotADirectoryError):
            return
        sizes = {path.name: path.stat().st_size for path in self.folder.glob(f"shard-*{ENDING}")}
        for line in lines:
            try:
                entry = _read_entry(line)
            except ValueError:
                continue  # the last line of a run that was killed while writing it, or of another version
            if (entry.start + entry.n_rows) * self.row_bytes <= sizes.get(entry.shard, 0):
                self._entries[entry.content] = entry

    def _rewrite_index(self) -> None:
        write_text(self.folder / INDEX_NAME, "".join(_line(entry) for entry in self._entries.values()))


def forget(folder: Path, wanted: Set[str]) -> int:
    """Delete the shards of a store that hold nothing wanted, whatever their rows are; the bytes given back.

    A shard with anything wanted stays whole: to write it anew would take the room that is to be given back.
    """
    lines: dict[str, list[str]] = {}
    used: set[str] = set()
    for line in (folder / INDEX_NAME).read_text("utf-8", "replace").splitlines():
        with contextlib.suppress(ValueError):  # cut off by a kill
            entry = _read_entry(line)
            lines.setdefault(entry.shard, []).append(f"{line}\n")
            used |= {entry.shard} if entry.content in wanted else set()
    if lines.keys() == used:
        return 0
    # The index first: a line without its rows would be no harm, but rows without a line are.
    write_text(folder / INDEX_NAME, "".join(line for shard in lines if shard in used for line in lines[shard]))
    unused = [path for path in folder.glob(f"shard-*{ENDING}") if path.name not in used]
    size = sum(path.stat().st_size for path in unused)
    for path in unused:
        path.unlink()
    return size


def _line(entry: Entry) -> str:
    return f"{json.dumps(vars(entry), default=vars)}\n"  # `asdict` copies all that is within
