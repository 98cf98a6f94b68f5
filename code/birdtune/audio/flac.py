"""How many samples a FLAC holds, by its last frame and not by its header.

    file ─▶ find_flac ─▶ Flac: what its header counts, and what its frames do

Recorders write the count last; it may be 0, or wrong. Every frame says which of the stream's samples it begins
with (RFC 9639, section 9.1), so that a look at the end of the file tells how many there are.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import IO

# So far from its end a file is looked at: mostly, its last frame begins there; 4,096 samples of 8 channels of 24 bits
# that cannot be compressed begin here at the latest.
_TAIL_BYTES = 1 << 14, 1 << 17
_TOTAL_BITS = 36
# The mark of a stream and the head of its first block, which says that 34 bytes follow.
_START, _START_BYTES = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22"), 8
_READ_BYTES = 1 << 20
# Samples in a block by code; 6 and 7 say that the number itself follows.
_SIZES = (0, 192, 576, 1152, 2304, 4608, 0, 0, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
_LONGEST_FRAME_HEADER = 16


@dataclass(frozen=True)
class Flac:
    """Samples of each channel, as far as they are counted.

    Attributes:
        begin: the first byte of the stream; before it, a tag.
        total: by the header; 0: it does not say.
        start, end: the first of the last frame, and the first behind it; 0 if there is none.
    """

    begin: int
    total: int
    start: int
    end: int

    def header(self, file: IO[bytes]) -> bytes:
        """The beginning of the stream, without its count: decoders go on to the end then."""
        file.seek(self.begin)
        head = bytearray(file.read(26))
        head[21:26] = bytes([head[21] & 0xF0, 0, 0, 0, 0])
        return bytes(head)


def find_flac(file: IO[bytes], begin: int) -> Flac | None:
    """The counts of an open file whose stream begins at this byte; None: it is no FLAC.

    Raises:
        OSError: it cannot be read.
    """
    file.seek(begin)
    head = file.read(26)
    if not head.startswith(b"fLaC") or len(head) < 26:
        return None
    longest_block = int.from_bytes(head[10:12], "big")
    total = int.from_bytes(head[18:26], "big") & ((1 << _TOTAL_BITS) - 1)
    size = file.seek(0, os.SEEK_END)
    for n_bytes in _TAIL_BYTES:
        file.seek(max(begin + 26, size - n_bytes))
        if (last := _last_frame(file.read(), longest_block)) is not None:
            return Flac(begin, total, *last)
    return Flac(begin, total, 0, 0)


def next_flac(path: Path, begin: int) -> int | None:
    """Where another stream begins in a file, behind this byte; None: nowhere. Reads the file up to there."""
    with path.open("rb") as file:
        at = begin + 1
        file.seek(at)
        near = b""
        while block := file.read(_READ_BYTES):
            near += block
            if (found := _START.search(near)) is not None:
                return at + found.start()
            at += len(near) - _START_BYTES
            near = near[-_START_BYTES:]
    return None


def _last_frame(tail: bytes, longest_block: int) -> tuple[int, int] | None:
    at = len(tail)
    while (at := max(tail.rfind(b"\xff\xf8", 0, at), tail.rfind(b"\xff\xf9", 0, at))) >= 0:
        if (found := _frame(tail[at : at + _LONGEST_FRAME_HEADER], longest_block)) is not None:
            return found
    return None


def _frame(head: bytes, longest_block: int) -> tuple[int, int] | None:
    """The first sample of the frame that begins here, and the first behind it; None: none does."""
    if len(head) < 6 or head[3] & 1:
        return None
    number, at = _number(head[4:])
    at += 4
    size_code, rate_code = head[2] >> 4, head[2] & 15
    if number is None or size_code == 0 or rate_code == 15:
        return None
    if size_code in (6, 7):
        width = size_code - 5
        block = int.from_bytes(head[at : at + width], "big") + 1
        at += width
    else:
        block = _SIZES[size_code]
    at += {12: 1, 13: 2, 14: 2}.get(rate_code, 0)
    if at >= len(head) or block > longest_block or _crc8(head[:at]) != head[at]:
        return None
    # With blocks of one size, frames are counted; else samples are. The last block may be shorter than the others.
    start = number if head[1] & 1 else number * longest_block
    return start, start + block


def _number(coded: bytes) -> tuple[int | None, int]:
    """A number coded as UTF-8 codes characters, of up to 36 bits; and how many bytes it takes."""
    first = coded[0]
    if first < 0x80:
        return first, 1
    n = 8 - (first ^ 0xFF).bit_length()
    more = coded[1:n]
    if n < 2 or len(more) < n - 1 or any(byte & 0xC0 != 0x80 for byte in more):
        return None, 1
    value = first & (0x7F >> n)
    for byte in more:
        value = value << 6 | byte & 0x3F
    return value, n


def _crc8(content: bytes) -> int:
    crc = 0
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = crc << 1 ^ (0x107 if crc & 0x80 else 0)
    return crc
