"""Ogg files looked at page by page: what their decoders pass over in silence.

    path ─▶ fault ─▶ None, or (problem, detail)

Decoders of Ogg look for the next page after damage and go on, so that a file with a hole in its middle
sounds like a shorter one. Pages, their order and their ends are those of RFC 3533.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

# Capture pattern, version, flags, granule position, stream, number of the page, checksum, segments.
_HEADER = struct.Struct("<4sBBqIIIB")
_MARK = b"OggS"
_FIRST, _LAST = 2, 4  # of the flags
_NOTHING_ENDS = -1  # granule position of a page on which no packet ends
_OPUS_RATE_HZ = 48_000  # whatever the sound's own rate
# First bytes of a stream's first packet, for kinds that count samples from its beginning to the end of a page.
_SOUND_STARTS = (b"\x01vorbis", b"OpusHead", b"\x7fFLAC", b"Speex   ")
# Encoders may cut some samples off at the beginning and the end; Opus half a second at most.
_SLACK_S = 0.6


@dataclass
class _Stream:
    """One stream of sound, as far as it was seen."""

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
    at: int  # byte with which it begins


class _Hole(Exception):  # noqa: N818 -- it never leaves this file
    """There is no page where one should be; with what is there instead."""


def fault(path: Path, rate_hz: int, heard: int | None = None) -> tuple[str, str] | None:
    """What is wrong with an Ogg file.

    Args:
        rate_hz: of its sound.
        heard: samples that a decoder got out of it, if it was heard.

    Returns:
        a code of `recordings.PROBLEMS` and words for it, or None.

    Raises:
        OSError: it cannot be read.
    """
    streams: dict[int, _Stream] = {}
    with path.open("rb") as file:
        try:
            for page in _pages(file):
                if heard is not None and _is_another(streams, page):
                    if found := _too_short(streams, rate_hz, heard):
                        return found
                    if heard / rate_hz <= sum(stream.last / stream.rate_hz for stream in streams.values()) + _SLACK_S:
                        return "another-follows", f"another Ogg stream begins at byte {page.at:,} and is not heard"
                if found := _follow(streams, page, rate_hz):
                    return found
        except _Hole as hole:
            # What follows a whole stream, a tag for instance, is none of its business.
            if not streams or not all(stream.ended for stream in streams.values()):
                return _hole(file, str(hole))
    if not all(stream.ended for stream in streams.values()):
        return "truncated", "the Ogg stream stops before its last page"
    return None if heard is None else _too_short(streams, rate_hz, heard)


def _is_another(streams: dict[int, _Stream], page: _Page) -> bool:
    """Whether a stream of sound begins behind the end of all before."""
    begins = bool(page.flags & _FIRST) and page.body.startswith(_SOUND_STARTS)
    return begins and bool(streams) and all(stream.ended for stream in streams.values())


def _too_short(streams: dict[int, _Stream], rate_hz: int, heard: int) -> tuple[str, str] | None:
    least = sum((stream.last - (stream.first or 0)) / stream.rate_hz - _SLACK_S for stream in streams.values())
    if heard / rate_hz < least:
        return "corrupt", f"{heard / rate_hz:.1f} s can be decoded of what should be {least + _SLACK_S:.1f} s at least"
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
        yield _Page(flags, granule, stream, number, body[:8], at)


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
    seen = b""
    while block := file.read(1 << 16):
        if _MARK in seen[-3:] + block:
            return "corrupt", f"{where}, but pages of the Ogg stream follow it"
        seen = block
    return "truncated", "the Ogg stream stops before its last page"
