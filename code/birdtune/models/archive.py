"""Archives of checkpoints, unpacked as if an enemy had packed them.

    .tar | .tgz | .tar.bz2 | .tar.xz ─▶ unpack ─▶ the checkpoint's files below a folder

Nothing leaves the folder, nothing but checkpoint files reaches the disk, and neither a member's size nor
what a header claims decides how much memory, disk or time is spent: the unpacked bytes are read forward
only, a little at a time, and no further than any checkpoint reaches.
"""

import bz2
import contextlib
import gzip
import lzma
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from birdtune.errors import CheckpointError, shown
from birdtune.runtime.storage import storage_faults

_GZIP, _BZIP2, _XZ = b"\x1f\x8b", b"BZh", b"\xfd7zXZ"
_TAR, _TAR_AT = b"ustar", 257
# VGGish with Adam's slots is 0.87 GB; what unpacks to more than this was not made by a training.
_LIMIT_BYTES = 8 << 30
_MOST_MEMBERS = 10_000
# Headers of the longest names have some kB; and readers of headers take time with the square of their length.
_MOST_AT_ONCE = 1 << 14
# What `xz -9` needs to unpack is 65 MB; the format allows for 4 GB.
_XZ_MEMORY_BYTES = 128 << 20


def is_archive(path: Path) -> bool:
    """Whether a file begins as an archive does. Raises OSError."""
    with path.open("rb") as file:
        start = file.read(_TAR_AT + len(_TAR))
    return start.startswith((_GZIP, _BZIP2, _XZ)) or start[_TAR_AT:] == _TAR


def unpack(archive: Path, folder: Path) -> None:
    """Put the checkpoint files of an archive below `folder`; nothing else of it reaches the disk.

    Raises:
        CheckpointError: it is damaged or too large, or a member climbs out of the folder, is a link or a
            device. It is refused whole then: nobody packs these into a checkpoint by accident.
        PassingError, InputError: as storage.storage_faults.
    """
    n_members = 0
    with _faults(archive), archive.open("rb") as file:
        tape = _Tape(archive, _pieces(file))
        # typeshed wants a whole file object; TarFile reads, seeks and tells.
        with tarfile.TarFile(fileobj=tape) as tar:  # type: ignore[arg-type]
            for member in tar:
                n_members += 1
                if n_members > _MOST_MEMBERS:
                    raise CheckpointError(
                        f"{shown(archive)}: holds more than {_MOST_MEMBERS:,} files, which no checkpoint does. "
                        "Give the checkpoint itself, or an archive of it alone."
                    )
                _refuse_unsafe(archive, member)
                if member.isreg() and _may_be_checkpoint(PurePosixPath(member.name).name):
                    _copy_out(tar, member, folder, archive)


def _refuse_unsafe(archive: Path, member: tarfile.TarInfo) -> None:
    place = PurePosixPath(member.name)
    if place.is_absolute() or ".." in place.parts or "\0" in member.name:
        raise CheckpointError(
            f"{shown(archive)}: member {_named(member)} would be written outside of the folder "
            "it is unpacked in. The archive is not used; get it from a source you trust."
        )
    if not (member.isreg() or member.isdir()) or member.issparse():
        raise CheckpointError(
            f"{shown(archive)}: member {_named(member)} is a link or a device, or full of holes, which no "
            "checkpoint needs. The archive is not used; get it from a source you trust."
        )


def _named(member: tarfile.TarInfo) -> str:
    return shown(member.name[:200])


def _may_be_checkpoint(name: str) -> bool:
    return name == "checkpoint" or name.endswith(".index") or (".ckpt" in name and not name.endswith(".meta"))


def _copy_out(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path, archive: Path) -> None:
    content = tar.extractfile(member)
    assert content is not None  # only links and devices have none, and those were refused
    # Copied out by hand: what guards `extract` came with Python 3.11.4, and Debian 12 has 3.11.2.
    target = folder / PurePosixPath(member.name)
    with storage_faults(folder, "what the archive of the checkpoint holds", member.size):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with content, target.open("wb") as file:
                shutil.copyfileobj(content, file, _MOST_AT_ONCE)
        except (FileExistsError, NotADirectoryError, IsADirectoryError) as fault:
            raise CheckpointError(
                f"{shown(archive)}: the archive is damaged: {shown(member.name)} lies where it has "
                "something of another kind. Get it again."
            ) from fault


@contextlib.contextmanager
def _faults(archive: Path) -> Iterator[None]:
    try:
        yield
    except (
        EOFError, tarfile.TarError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, ValueError, RecursionError,
        OverflowError,
    ) as fault:  # fmt: skip
        raise CheckpointError(
            f"{shown(archive)}: the archive is damaged or cut off ({_reason(fault)}). Likely cause: a download "
            "that stopped; get it again."
        ) from fault
    except OSError as fault:
        if fault.errno is not None:
            raise
        # bz2's own way of saying that the data are no such stream.
        raise CheckpointError(f"{shown(archive)}: the archive is damaged ({_reason(fault)}). Get it again.") from fault


def _reason(fault: BaseException) -> str:
    return shown(str(fault)[:100]) or type(fault).__name__


def _pieces(file: IO[bytes]) -> Iterator[bytes]:
    """What the archive unpacks to, in pieces of bounded size."""
    start = file.read(len(_XZ))
    file.seek(0)
    if start == _XZ:
        unpacker = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY_BYTES)
        while not unpacker.eof:
            packed = file.read(_MOST_AT_ONCE) if unpacker.needs_input else b""
            if unpacker.needs_input and not packed:
                raise EOFError("its end is missing")
            yield unpacker.decompress(packed, _MOST_AT_ONCE)
        return
    opened: IO[bytes] = file
    if start.startswith(_GZIP):
        opened = gzip.GzipFile(fileobj=file)  # type: ignore[assignment]  # it reads, which is all that is asked
    elif start.startswith(_BZIP2):
        opened = bz2.BZ2File(file)
    while piece := opened.read(_MOST_AT_ONCE):
        yield piece


class _Tape:
    """Bytes that come in pieces, as a file that can only be read forward, a little at a time, and not for ever."""

    def __init__(self, archive: Path, pieces: Iterator[bytes]) -> None:
        self._archive = archive
        self._pieces = pieces
        self._waiting = b""
        self._at = 0

    def tell(self) -> int:
        return self._at

    def read(self, n_bytes: int) -> bytes:
        if not 0 <= n_bytes <= _MOST_AT_ONCE:
            raise tarfile.ReadError(f"a header of {n_bytes} bytes")
        while len(self._waiting) < n_bytes and (piece := next(self._pieces, None)) is not None:
            self._waiting += piece
        found, self._waiting = self._waiting[:n_bytes], self._waiting[n_bytes:]
        self._at += len(found)
        if self._at > _LIMIT_BYTES:
            raise CheckpointError(
                f"{shown(self._archive)}: unpacks to more than {_LIMIT_BYTES / 1e9:.1f} GB. Likely cause: many "
                "steps in one archive; give one of them."
            )
        return found

    def seek(self, position: int) -> int:
        if position < self._at:
            raise tarfile.ReadError("a member that begins before the one before it ends")
        while self._at < position and self.read(min(position - self._at, _MOST_AT_ONCE)):
            pass
        return self._at

    def seekable(self) -> bool:
        return True
