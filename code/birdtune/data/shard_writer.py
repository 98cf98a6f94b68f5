"""Rows of numbers → a shard, as `shards.py` reads it. What a worker needs of that, which imports little.

    content, rows ─▶ ShardWriter ─▶ FOLDER/shard-*, Entry
"""

import contextlib
import os
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from birdtune.audio.decode import SoundFacts

ENDING = ".rows"
# A shard is closed when it has grown to this; a longer recording makes a longer shard.
_SHARD_BYTES = 1 << 30


@dataclass(frozen=True)
class Entry:
    """Where the rows of one content lie: a line of the index."""

    content: str
    shard: str
    start: int  # rows from the beginning of the shard
    n_rows: int
    crc: int  # CRC-32 of the rows' bytes
    facts: SoundFacts | None = None  # of features: what the file index has too, unless the run was killed before


class ShardWriter:
    """Appends rows to a shard of its own, opened when the first come; the index makes them count."""

    def __init__(self, folder: Path, row_bytes: int) -> None:
        self._folder, self._row_bytes = folder, row_bytes
        self._file: IO[bytes] | None = None
        self._begin = self._crc = 0

    def begin(self) -> None:
        """Begin a content."""
        if self._file is not None and self._file.tell() >= _SHARD_BYTES:
            self.close()
        if self._file is None:
            # Time and process make the name new, also among hosts that share a cache.
            self._file = (self._folder / f"shard-{time.time_ns():x}-{os.getpid()}{ENDING}").open("xb")
        self._begin, self._crc = self._file.tell(), 0

    def write(self, rows: npt.NDArray[Any]) -> int:
        """Append rows of the content; how many it has by now."""
        assert self._file is not None, "begin comes first"
        block = np.ascontiguousarray(rows).view(np.uint8).data  # bfloat16 has none of its own
        self._file.write(block)
        self._crc = zlib.crc32(block, self._crc)
        return (self._file.tell() - self._begin) // self._row_bytes

    def end(self, content: str, facts: SoundFacts | None = None) -> Entry:
        """End the content: its entry, to be added to a store."""
        assert self._file is not None, "begin comes first"
        self._file.flush()
        start, n_bytes = self._begin // self._row_bytes, self._file.tell() - self._begin
        return Entry(content, Path(self._file.name).name, start, n_bytes // self._row_bytes, self._crc, facts)

    def drop(self) -> None:
        """Take back what there is of the content."""
        if self._file is not None:
            self._file.seek(self._begin)
            self._file.truncate()

    def give_back(self) -> None:
        """As `drop`, on a disk that takes no more bytes: what is buffered is lost."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.truncate(self._file.fileno(), self._begin)

    def close(self) -> None:
        """Close the shard; the next content opens another."""
        if self._file is not None:
            self._file.close()
            self._file = None
