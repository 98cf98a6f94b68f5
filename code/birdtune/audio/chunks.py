"""Where the samples lie in a WAV, AIFF, AU, CAF or W64, by its content, not its header.

    file ─▶ find_chunk ─▶ Chunk: where it begins, how long its header says it is, how long it is

Recorders write sizes last. After a power cut they are 0, above 4 GiB they have begun again at 0, and a copy
that was cut short promises what never came. Only headers are read, and the end of a file whose sizes are wrong.
"""

import io
import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

_4_GIB: Final = 1 << 32
# Files with sizes of 64 bits.
_WIDE = (b"riff", b"caff", b"RF64", b"BW64")
# A header with more chunks, or longer than this, is not looked through; the longest known, of Zoom, takes 0.4 MB.
_MOST_CHUNKS, _LONGEST_HEADER = 200, 1 << 24
# Where chunks behind the samples are looked for when the samples' own size is wrong.
_TAIL_BYTES = 1 << 20
_NAME = re.compile(rb"[ -~]{4}")
# Programs that write to a pipe put these where the length belongs, or these less the length of the header.
_UNKNOWN_LENGTHS = (0xFFFFFFFF, 0x7FFFFFFF, 0x80000000, 0x7FFFF000, 0x7F000008)
_LESS_HEADER = 256


class _Form(NamedTuple):
    """How a kind of file is made of chunks."""

    head: struct.Struct  # name and size of a chunk
    first: int  # where the first chunk begins
    sound: bytes  # name of the chunk with the samples
    lead: int  # bytes in that chunk before the samples
    pad: int  # chunks begin at multiples of it
    counted: int = 0  # bytes of `head` that sizes include


_RIFF = _Form(struct.Struct("<4sI"), 12, b"data", 0, 2)
_FORMS = {
    b"RIFF": _RIFF,
    b"RF64": _RIFF,
    b"BW64": _RIFF,
    b"RIFX": _RIFF._replace(head=struct.Struct(">4sI")),
    b"FORM": _Form(struct.Struct(">4sI"), 12, b"SSND", 8, 2),
    b"caff": _Form(struct.Struct(">4sq"), 8, b"data", 4, 1),
    b"riff": _Form(struct.Struct("<16sQ"), 40, b"data\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a", 0, 8, 24),
}


@dataclass(frozen=True)
class Chunk:
    """The samples of a file, as bytes.

    Attributes:
        kind: the first four bytes of the file.
        begin: the first byte.
        promised: how many its header says they are; None: it was written to a pipe, and does not say.
        there: how many there are.
        ds64: where the 64-bit sizes of RF64 stand.
    """

    kind: bytes
    begin: int
    promised: int | None
    there: int
    file_bytes: int
    ds64: int | None = None

    @property
    def is_right(self) -> bool:
        """Whether a decoder that believes the header, but not beyond the end of the file, finds all and no more."""
        if self.kind == b"BW64":
            return False  # as RF64, but libsndfile does not know that
        left = self.file_bytes - self.begin
        if self.promised is None:
            return self.there == left < _4_GIB
        if self.kind == b"caff" and self.promised > left:
            return False
        return min(self.promised, left) == self.there

    @property
    def has_wrapped(self) -> bool:
        """Whether sizes of 32 bits have begun again at 0: the file has more than 4 GiB."""
        return self.kind not in _WIDE and self.file_bytes >= _4_GIB

    def header(self, file: IO[bytes]) -> bytes:
        """What stands before the samples, saying how many bytes there are, as far as its fields can hold it."""
        file.seek(0)
        header = bytearray(file.read(self.begin))
        beyond = self.begin - 8 + self.there
        if self.kind == b"RIFF" and beyond >= _4_GIB:
            # RF64 holds the same, and sizes of 64 bits besides.
            sizes = struct.pack("<4sIQQQI", b"ds64", 28, beyond + 36, self.there, 0, 0)
            header[0:12] = b"RF64\xff\xff\xff\xffWAVE" + sizes
            header[-4:] = b"\xff\xff\xff\xff"
        elif self.ds64 is not None:
            header[0:8] = b"RF64\xff\xff\xff\xff"
            struct.pack_into("<QQ", header, self.ds64, beyond, self.there)
            header[-4:] = b"\xff\xff\xff\xff"
        elif self.kind in (b"RIFF", b"RIFX", b"FORM"):
            order = "<" if self.kind == b"RIFF" else ">"
            lead = _FORMS[self.kind].lead
            struct.pack_into(f"{order}I", header, 4, min(beyond, _4_GIB - 1))
            struct.pack_into(f"{order}I", header, self.begin - lead - 4, min(self.there + lead, _4_GIB - 1))
        elif self.kind == b"riff":
            struct.pack_into("<Q", header, 16, self.begin + self.there)
            struct.pack_into("<Q", header, self.begin - 8, self.there + 24)
        elif self.kind == b"caff":
            struct.pack_into(">q", header, self.begin - 12, self.there + 4)
        else:
            struct.pack_into(">I" if self.kind == b".snd" else "<I", header, 8, min(self.there, _4_GIB - 1))
        return bytes(header)


class View(io.RawIOBase):
    """A file to be read: some bytes, and behind them another file from `begin` to `end`."""

    def __init__(self, path: Path, head: bytes, begin: int, end: int) -> None:
        super().__init__()
        self._file = io.FileIO(path)
        self._head, self.begin = head, begin
        self._size = len(head) + max(0, end - begin)
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        """As any file's; all that was asked for, up to the end."""
        wanted = max(0, min(len(buffer), self._size - self._at))
        done = 0
        if self._at < len(self._head):
            part = self._head[self._at : self._at + wanted]
            done = len(part)
            buffer[:done] = part
        if done < wanted:
            self._file.seek(self.begin + self._at + done - len(self._head))
            done += self._file.readinto(memoryview(buffer)[done:wanted])
        self._at += done
        return done

    def close(self) -> None:
        self._file.close()
        super().close()


def find_chunk(file: IO[bytes]) -> Chunk | None:
    """The samples of an open file; None: it is of another kind, or its chunks lead nowhere.

    Raises:
        OSError: it cannot be read.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    start = file.read(12)
    kind = start[:4]
    if kind in (b".snd", b"dns.") and len(start) == 12:
        begin, promised = struct.unpack(">4xII" if kind == b".snd" else "<4xII", start)
        return _measured(file, Chunk(kind, begin, promised, 0, size), None) if begin <= size else None
    form = _FORMS.get(kind)
    if form is None:
        return None
    ds64 = None
    for name, begin, length in _walk(file, form, form.first, size):
        if name == b"ds64":
            ds64 = begin
        if name == form.sound:
            begin += form.lead
            if begin > min(size, _LONGEST_HEADER):
                return None
            return _measured(file, Chunk(kind, begin, max(0, length - form.lead), 0, size, ds64=ds64), form)
    return None


def wav_chunks(file: IO[bytes]) -> Iterator[tuple[bytes, int, int]]:
    """Name, first byte and length of each chunk of a WAV, RF64 or BW64; of another file none. Raises OSError."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    start = file.read(12)
    if start[:4] in (b"RIFF", b"RF64", b"BW64") and start[8:] == b"WAVE":
        yield from _walk(file, _RIFF, _RIFF.first, size)


def _walk(file: IO[bytes], form: _Form, at: int, size: int) -> Iterator[tuple[bytes, int, int]]:
    """Name, first byte and length of each chunk from `at` on; of samples, as ds64 has it where there is one."""
    wide = None
    for _ in range(_MOST_CHUNKS):
        file.seek(at)
        head = file.read(form.head.size)
        if len(head) < form.head.size:
            return
        name, length = form.head.unpack(head)
        if _NAME.match(name) is None or name in _FORMS:  # not a chunk, but another recording put behind this one
            return
        begin = at + form.head.size
        length -= form.counted
        if length < 0:
            length = 1 << 62 if form.lead else 0  # of CAF: up to the end of the file
        if name == b"ds64":
            file.seek(begin + 8)
            wide = int.from_bytes(file.read(8), "little")
        elif name == form.sound and length == 0xFFFFFFFF and wide is not None:
            length = wide
        yield name, begin, length
        at = begin + length + -length % form.pad
        if at > size + 1:
            return


def _leads_to_end(file: IO[bytes], form: _Form, at: int, size: int) -> bool:
    """Whether chunks lie one behind the other from `at` to the end of the file, give or take a byte of padding.

    Not those of another recording, which have samples.
    """
    chunks = list(_walk(file, form, at, size))
    if not chunks or any(name == form.sound for name, _, _ in chunks):
        return False
    _, begin, length = chunks[-1]
    return -form.pad < begin + length - size <= 0


def _measured(file: IO[bytes], chunk: Chunk, form: _Form | None) -> Chunk:
    """The same, with what is there."""
    left = chunk.file_bytes - chunk.begin
    promised = chunk.promised or 0
    if 0 <= left - promised <= 1 or (form is not None and promised < left and _is_followed(file, form, chunk)):
        return replace(chunk, there=promised)
    if 0 < promised < left and _is_zero(file, chunk.begin + promised):
        return replace(chunk, there=promised)
    there = _end(file, form, chunk) - chunk.begin
    return replace(chunk, promised=None if _is_unknown(chunk.kind, promised) else chunk.promised, there=there)


def _is_zero(file: IO[bytes], at: int) -> bool:
    """Whether nothing but zeros follows, as where a recorder fills up its last block."""
    file.seek(at)
    while block := file.read(_TAIL_BYTES):
        if block.strip(b"\0"):
            return False
    return True


def _is_followed(file: IO[bytes], form: _Form, chunk: Chunk) -> bool:
    """Whether another chunk begins where the samples end by their size; then the size is right."""
    promised = chunk.promised or 0
    for at in {chunk.begin + promised + -promised % form.pad, chunk.begin + promised}:
        _, begin, length = next(_walk(file, form, at, chunk.file_bytes), (b"", 0, chunk.file_bytes + 1))
        # Where no samples are promised, they may be what follows; only chunks up to the end are no chance.
        if begin + length <= chunk.file_bytes and (promised or _leads_to_end(file, form, at, chunk.file_bytes)):
            return True
    return False


def _end(file: IO[bytes], form: _Form | None, chunk: Chunk) -> int:
    """Where the samples end if their size says nothing: where chunks begin that lead to the end, or there."""
    size = chunk.file_bytes
    if form is None:
        return size
    start = max(chunk.begin, size - _TAIL_BYTES)
    file.seek(start)
    tail = file.read()
    for match in re.finditer(rb"(?=[ -~]{4})", tail):
        at = match.start()
        if len(tail) - at < form.head.size or (form.pad == 8 and (start + at) % 8):
            continue
        length = form.head.unpack_from(tail, at)[1] - form.counted
        if 0 <= length <= len(tail) - at and _leads_to_end(file, form, start + at, size):
            return start + at
    return size


def _is_unknown(kind: bytes, promised: int) -> bool:
    if kind in _WIDE:
        return promised >= 1 << 62
    return any(length - _LESS_HEADER < promised <= length for length in _UNKNOWN_LENGTHS)
