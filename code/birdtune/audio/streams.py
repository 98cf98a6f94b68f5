"""How much sound a FLAC, an MP3 or an Ogg holds, by its frames and pages and not by its header.

    FLAC ─▶ find_flac ─▶ Flac: samples by the header, and by the last frame (RFC 9639, section 9.1)
    MP3  ─▶ counts_its_frames ─▶ OpenEnded, where its count is missing or wrong; next_frame: where its sound goes on
    Ogg  ─▶ ogg_fault ─▶ what its decoders skip without an error: holes between pages (RFC 3533)
"""

import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from birdtune.audio.chunks import View

# ---- FLAC ---------------------------------------------------------------------------------------

# So far from its end a file is looked at: mostly, its last frame begins there; 4,096 samples of 8 channels of 24 bits
# that cannot be compressed begin here at the latest.
_TAIL_BYTES = 1 << 14, 1 << 17
_TOTAL_BITS = 36
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


def _last_frame(tail: bytes, longest_block: int) -> tuple[int, int] | None:
    at = len(tail)
    while (at := max(tail.rfind(b"\xff\xf8", 0, at), tail.rfind(b"\xff\xf9", 0, at))) >= 0:
        if (frame := _frame(tail[at : at + _LONGEST_FRAME_HEADER], longest_block)) is not None:
            return frame
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


# ---- MP3 ----------------------------------------------------------------------------------------

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

    Of an MP3 without its length, libsndfile guesses it by the file's size and the bit rate
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
    mark, flags, n_frames, _ = _counts(file, begin)
    return mark == b"VBRI" or bool(flags & _HAS_COUNT and n_frames)


def missing_bytes(file: IO[bytes], begin: int) -> int | None:
    """How many of the bytes that the first frame of an open MP3 counts are not there; None: it counts none."""
    mark, flags, _, n_bytes = _counts(file, begin)
    if mark == b"VBRI" or n_bytes is None or flags & (_HAS_COUNT | _HAS_BYTES) != _HAS_COUNT | _HAS_BYTES:
        return None
    return max(0, begin + n_bytes - file.seek(0, os.SEEK_END))


def _counts(file: IO[bytes], begin: int) -> tuple[bytes, int, int, int | None]:
    """Mark, flags, number of frames and of bytes (None: cut off) of the first frame of an open MP3."""
    file.seek(begin)
    first = file.read(_FRAME_BYTES)
    mark = _COUNTS.search(first)
    if mark is None:
        return b"", 0, 0, None
    fields = first[mark.end() : mark.end() + 12]
    flags, n_frames, n_bytes = (int.from_bytes(fields[at : at + 4], "big") for at in (0, 4, 8))
    return mark[0], flags, n_frames, n_bytes if len(fields) == 12 else None


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


# ---- Ogg ----------------------------------------------------------------------------------------

# Capture pattern, version, flags, granule position, stream, number of the page, checksum, segments.
_HEADER = struct.Struct("<4sBBqIIIB")
_MARK = b"OggS"
_LAST = 4  # of the flags
_NOTHING_ENDS = -1  # granule position of a page on which no packet ends
_OPUS_RATE_HZ = 48_000  # whatever the sound's own rate
# First bytes of a stream's first packet, for kinds that count samples from its beginning to the end of a page.
_SOUND_STARTS = (b"\x01vorbis", b"OpusHead", b"\x7fFLAC", b"Speex   ")
# Encoders may cut some samples off at the beginning and the end; Opus half a second at most.
_SLACK_S = 0.6


@dataclass
class _Stream:
    """One stream of sound, as far as it was read."""

    rate_hz: int
    next_number: int = 0
    first: int | None = None  # samples at the end of the first page with sound
    last: int = 0
    ended: bool = False


@dataclass(frozen=True)
class _Page:
    flags: int
    granule: int
    stream: int
    number: int
    body: bytes  # its beginning


class _Hole(Exception):  # noqa: N818 -- it never leaves this file
    """There is no page where one should be; with what is there instead."""


def ogg_fault(path: Path, rate_hz: int, n_decoded: int | None = None) -> tuple[str, str] | None:
    """What is wrong with an Ogg file.

    Args:
        rate_hz: of its sound.
        n_decoded: samples that a decoder made of it; None: it was not decoded.

    Returns:
        a code of `scan.PROBLEMS` and words for it, or None.

    Raises:
        OSError: it cannot be read.
    """
    streams: dict[int, _Stream] = {}
    with path.open("rb") as file:
        try:
            for page in _pages(file):
                if fault := _follow(streams, page, rate_hz):
                    return fault
        except _Hole as hole:
            # What follows a whole stream, a tag for instance, is not part of it.
            if not streams or not all(stream.ended for stream in streams.values()):
                return _hole(file, str(hole))
    if not all(stream.ended for stream in streams.values()):
        return "truncated", "the Ogg stream stops before its last page"
    return None if n_decoded is None else _too_short(streams, rate_hz, n_decoded)


def _too_short(streams: dict[int, _Stream], rate_hz: int, n_decoded: int) -> tuple[str, str] | None:
    least = sum((stream.last - (stream.first or 0)) / stream.rate_hz - _SLACK_S for stream in streams.values())
    if (there := n_decoded / rate_hz) < least:
        return "corrupt", f"{there:.1f} s can be decoded of what should be {least + _SLACK_S:.1f} s at least"
    return None


def _pages(file: IO[bytes]) -> Iterator[_Page]:
    while header := file.read(_HEADER.size):
        at = file.tell() - len(header)
        if len(header) < _HEADER.size or not header.startswith(_MARK):
            raise _Hole(f"no page begins at byte {at:,}")
        _, _, flags, granule, stream, number, _, n_segments = _HEADER.unpack(header)
        segments = file.read(n_segments)
        body = file.read(sum(segments))
        if len(segments) < n_segments or len(body) < sum(segments):
            raise _Hole("the file ends within a page")
        yield _Page(flags, granule, stream, number, body[:8])


def _follow(streams: dict[int, _Stream], page: _Page, rate_hz: int) -> tuple[str, str] | None:
    stream = streams.get(page.stream)
    if stream is None:
        if not page.body.startswith(_SOUND_STARTS):
            return None  # pictures, texts
        rate = _OPUS_RATE_HZ if page.body.startswith(b"OpusHead") else rate_hz
        stream = streams[page.stream] = _Stream(rate, page.number)
    if page.number != stream.next_number:
        return "corrupt", f"page {stream.next_number:,} of the Ogg stream is missing"
    stream.next_number = (page.number + 1) % 2**32
    stream.ended = bool(page.flags & _LAST)
    if page.granule not in (0, _NOTHING_ENDS):
        stream.first = page.granule if stream.first is None else stream.first
        stream.last = page.granule
    return None


def _hole(file: IO[bytes], where: str) -> tuple[str, str]:
    """Whether pages go on behind a hole."""
    before = b""
    while block := file.read(1 << 16):
        if _MARK in before[-3:] + block:
            return "corrupt", f"{where}, but pages of the Ogg stream follow it"
        before = block
    return "truncated", "the Ogg stream stops before its last page"
