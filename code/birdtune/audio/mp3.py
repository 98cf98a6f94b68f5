"""What an MP3 says of its own length, and where it goes on behind that.

    file ─▶ is_mp3, counts_its_frames ─▶ OpenEnded, where its count cannot be believed
    path, bytes that were read ─▶ next_frame ─▶ where its sound goes on, or None
"""

import os
import re
from pathlib import Path
from typing import IO, Any

from birdtune.audio.chunks import View

# Marks in a first frame that holds the number of frames; behind the first two stands what else it holds.
_COUNTS = re.compile(rb"Xing|Info|VBRI")
_HAS_COUNT, _HAS_BYTES = 1, 2
# Where a count is looked for behind the tag, and a next frame: some frames of the highest bit rate.
_FRAME_BYTES = 2048
_SEARCH_BYTES = 1 << 16
# kbit/s of layer III by code, of MPEG 1 and of MPEG 2 and 2.5; samples a second of MPEG 1.
_KBITS = (
    (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
)
_RATES_HZ = (44_100, 48_000, 32_000)
# As many frames, one behind the other, are no chance.
_FRAMES = 3


class OpenEnded(View):
    """An MP3, or its part from `begin` on, that claims to be far longer than it is.

    Of an MP3 that does not tell its length, libsndfile guesses it by the file's size and the bit rate
    of the first frame, and reads no further than it guessed. Beside tags (counted as sound) and
    changing bit rates the guess is wrong; at 64 times the size it is at least never too short (the
    lowest and the highest bit rate, 8 and 448 kbit/s, are 56 apart).
    """

    def __init__(self, path: Path, begin: int = 0) -> None:
        self._n_bytes = path.stat().st_size - begin
        super().__init__(path, b"", begin, begin + 64 * self._n_bytes)

    def readinto(self, buffer: Any) -> int:
        """As any file's, but at the claimed end, where a tag of 128 bytes is looked for, are zeros."""
        if self.tell() >= 64 * self._n_bytes - 128:
            buffer[:] = bytes(len(buffer))
            return len(buffer)
        return super().readinto(buffer)


def id3_bytes(file: IO[bytes]) -> int:
    """Length of the ID3v2 tag at the beginning of a file; 0: it has none."""
    file.seek(0)
    head = file.read(10)
    if len(head) < 10 or not head.startswith(b"ID3"):
        return 0
    # Four bytes of seven bits each.
    return 10 + sum((byte & 0x7F) << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True))


def is_mp3(file: IO[bytes], begin: int) -> bool:
    """Whether a frame begins at this byte of an open file."""
    file.seek(begin)
    return _frame_bytes(file.read(4)) > 0


def counts_its_frames(file: IO[bytes], begin: int) -> bool:
    """Whether the first frame of an open MP3 is one of those that hold the number of frames (Xing, Info, VBRI)."""
    file.seek(begin)
    first = file.read(_FRAME_BYTES)
    found = _COUNTS.search(first)
    if found is None:
        return False
    flags = int.from_bytes(first[found.end() : found.end() + 4], "big")
    return found[0] == b"VBRI" or bool(flags & _HAS_COUNT and any(first[found.end() + 4 : found.end() + 8]))


def missing_bytes(file: IO[bytes], begin: int) -> int | None:
    """How many of the bytes that the first frame of an open MP3 counts are not there; None: it counts none."""
    file.seek(begin)
    first = file.read(_FRAME_BYTES)
    found = _COUNTS.search(first)
    if found is None or found[0] == b"VBRI" or len(first) < found.end() + 12:
        return None
    flags, counted = (int.from_bytes(first[at : at + 4], "big") for at in (found.end(), found.end() + 8))
    if flags & (_HAS_COUNT | _HAS_BYTES) != _HAS_COUNT | _HAS_BYTES:
        return None
    return max(0, begin + counted - file.seek(0, os.SEEK_END))


def next_frame(path: Path, read: int) -> int | None:
    """Where frames go on from this byte on, or behind a tag; None: nowhere near."""
    with path.open("rb") as file:
        file.seek(max(0, read))
        near = file.read(_SEARCH_BYTES)
    for match in re.finditer(rb"\xff[\xe0-\xff]", near):
        at = match.start()
        for _ in range(_FRAMES):
            size = _frame_bytes(near[at : at + 4])
            at += size
            if not size or at > len(near):
                break
        else:
            return read + match.start()
    return None


def _frame_bytes(head: bytes) -> int:
    """Length of the frame of layer III with this header of four bytes; 0: it is none."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE6 != 0xE2:
        return 0
    version, rate, bits, padded = head[1] >> 3 & 3, head[2] >> 2 & 3, head[2] >> 4, head[2] >> 1 & 1
    if version == 1 or rate == 3 or not 0 < bits < 15:
        return 0
    is_first = version == 3
    rate_hz = _RATES_HZ[rate] >> {3: 0, 2: 1, 0: 2}[version]
    return (144 if is_first else 72) * 1000 * _KBITS[not is_first][bits] // rate_hz + padded
