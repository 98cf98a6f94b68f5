"""Archives of checkpoints, unpacked as if an enemy had packed them.

    .tar | .tgz | .tar.bz2 | .tar.xz ─▶ unpack ─▶ the checkpoint's files below a folder

`tarfile` reads them. Nothing is written outside the folder, only checkpoint files are written, and the archive is read
forward only, in small reads, up to a limit: neither a member's size nor a header decides how much memory, disk or time
is spent. Files are copied rather than extracted with `filter="data"`, which Debian 12's Python (3.11.2) does not have.
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
from typing import Any

from birdtune.errors import CheckpointError, shown
from birdtune.runtime.storage import storage_faults

_OPENERS: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
_TAR, _TAR_AT = b"ustar", 257
# VGGish with Adam's slots is 0.87 GB; what unpacks to more than this was not made by a training.
_LIMIT_BYTES = 8 << 30
_MOST_MEMBERS = 10_000
# Headers of the longest names have some kB; tarfile reads a header whole, however long it says it is.
_MOST_AT_ONCE = 1 << 14
_OTHER_MODELS = (".tflite", ".onnx", ".keras", ".h5")
_DAMAGE = (
    EOFError, tarfile.TarError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, ValueError, RecursionError, OverflowError,
)  # fmt: skip


def is_archive(path: Path) -> bool:
    """Whether a file begins as an archive does. Raises OSError."""
    with path.open("rb") as file:
        start = file.read(_TAR_AT + len(_TAR))
    return start.startswith(tuple(_OPENERS)) or start[_TAR_AT:] == _TAR


def unpack(archive: Path, folder: Path) -> None:
    """Put the checkpoint files of an archive below `folder`; nothing else of it reaches the disk.

    Raises:
        CheckpointError: it is damaged or too large, or a member climbs out of the folder, is a link or a
            device. It is refused whole then: nobody packs these into a checkpoint by accident.
        RetryableError, InputError: as storage.storage_faults.
    """
    with _faults(archive), archive.open("rb") as packed:
        start = packed.read(8)
        packed.seek(0)
        opener = next((opener for mark, opener in _OPENERS.items() if start.startswith(mark)), None)
        content = _Forward(archive, packed if opener is None else opener(packed))
        # typeshed wants a whole file object; TarFile reads, seeks and tells.
        with tarfile.TarFile(fileobj=content) as tar:  # type: ignore[arg-type]
            for number, member in enumerate(tar, start=1):
                if number > _MOST_MEMBERS:
                    raise CheckpointError(
                        f"{shown(archive)}: holds more than {_MOST_MEMBERS:,} files, which no checkpoint does. "
                        "Give the checkpoint itself, or an archive of it alone."
                    )
                _refuse_unsafe(archive, member)
                _refuse_other_model(archive, PurePosixPath(member.name))
                if member.isreg() and _may_be_checkpoint(PurePosixPath(member.name).name):
                    _copy_out(tar, member, folder, archive)


def _refuse_unsafe(archive: Path, member: tarfile.TarInfo) -> None:
    place = PurePosixPath(member.name)
    if place.is_absolute() or ".." in place.parts or "\0" in member.name:
        fault = "would be written outside of the folder it is unpacked in"
    elif not (member.isreg() or member.isdir()) or member.issparse():
        fault = "is a link or a device, or full of holes, which no checkpoint needs"
    else:
        return
    raise CheckpointError(
        f"{shown(archive)}: member {shown(member.name[:200])} {fault}. The archive is not used; get it from a source "
        "you trust."
    )


def _refuse_other_model(archive: Path, place: PurePosixPath) -> None:
    """Refuse what is read from a folder or a file of its own."""
    is_saved_model = place.name == "saved_model.pb"
    if is_saved_model or place.suffix.lower() in _OTHER_MODELS:
        what = "the folder of it" if is_saved_model else "that file"
        raise CheckpointError(
            f"{shown(archive)}: is an archive with a model in it, {shown(str(place)[:200])}, and only checkpoints of "
            f"TensorFlow are read from archives. Unpack it (tar -xf), and give {what}."
        )


def _may_be_checkpoint(name: str) -> bool:
    return name == "checkpoint" or name.endswith(".index") or (".ckpt" in name and not name.endswith(".meta"))


def _copy_out(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path, archive: Path) -> None:
    content = tar.extractfile(member)
    assert content is not None  # only links and devices have none, and those were refused
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
    except (*_DAMAGE, OSError) as fault:
        if isinstance(fault, OSError) and fault.errno is not None:
            raise  # of the system; bz2 and gzip raise one without a number for what is no such stream
        reason = shown(str(fault)[:100]) or type(fault).__name__
        cause = "a download that stopped; get it again"
        if isinstance(fault, tarfile.ReadError) and "header" in reason:  # what was unpacked is no archive
            cause += ". Or it is one file that was compressed: unpack it (gunzip), and give that"
        raise CheckpointError(
            f"{shown(archive)}: the archive is damaged or cut off ({reason}). Likely cause: {cause}."
        ) from fault


class _Forward:
    """A file that is read forward only, a little at a time, and only so far."""

    def __init__(self, archive: Path, file: Any) -> None:
        self._archive, self._file, self._at = archive, file, 0

    def tell(self) -> int:
        return self._at

    def read(self, n_bytes: int) -> bytes:
        if not 0 <= n_bytes <= _MOST_AT_ONCE:
            raise tarfile.ReadError(f"a header of {n_bytes} bytes")
        content: bytes = self._file.read(n_bytes)
        self._at += len(content)
        if self._at > _LIMIT_BYTES:
            raise CheckpointError(
                f"{shown(self._archive)}: unpacks to more than {_LIMIT_BYTES / 1e9:.1f} GB. Likely cause: many "
                "steps in one archive; give one of them."
            )
        return content

    def seek(self, position: int) -> int:
        if position < self._at:
            raise tarfile.ReadError("a member that begins before the one before it ends")
        while self._at < position and self.read(min(position - self._at, _MOST_AT_ONCE)):
            pass
        return self._at

    def seekable(self) -> bool:
        return True
