"""What the storage refuses, in birdtune's words.

    OSError, or what TensorFlow and safetensors raise in its place ─▶ PassingError (75) | InputError (42)

A full disk, a failing one, and storage that went away are passing faults: somebody frees space or mounts
it again, and the same command goes on. A place that is read-only or not permitted stays so until the
settings change.
"""

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from birdtune.errors import BirdtuneError, InputError, PassingError, shown

# What is being built carries this prefix, so that a later run knows what a killed one left behind.
UNFINISHED = ".unfinished-"

_FULL = (errno.ENOSPC, errno.EDQUOT)
_REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM)
_NO_NAME = (errno.ENAMETOOLONG, errno.ELOOP)
# A folder where a file belongs, or a file where a folder does.
_OTHER_KIND = (errno.EISDIR, errno.ENOTDIR, errno.EEXIST)
# Disks that fail; network file systems whose server went away, or whose file another machine removed.
_FAILED = (
    errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.ENODEV, errno.ENXIO, errno.EREMOTEIO,
    errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.ECONNRESET,
    errno.ECONNREFUSED, errno.ESHUTDOWN, errno.ENOLINK,
)  # fmt: skip
_KNOWN = (*_FULL, *_REFUSED, *_NO_NAME, *_OTHER_KIND, *_FAILED, errno.EFBIG, errno.ENOENT)
# Libraries that say in words of their own what the system refused.
_SPOKESMEN = ("tensorflow.", "safetensors")

Needed = int | Callable[[], int] | None


def fault_number(fault: BaseException) -> int | None:
    """The system's error number behind an exception; None if the system is not behind it."""
    if isinstance(fault, OSError):
        return fault.errno
    if not type(fault).__module__.startswith(_SPOKESMEN):
        return None
    text = str(fault)
    if match := re.search(r"\(os error (\d+)\)", text):  # as Rust says it
        return int(match[1])
    return next((number for number in _KNOWN if os.strerror(number) in text), None)


def has_failed(fault: BaseException) -> bool:
    """Whether the storage itself failed or went away, rather than refusing this one thing."""
    return fault_number(fault) in _FAILED


@contextlib.contextmanager
def storage_faults(path: Path, what: str = "", needed: Needed = None) -> Iterator[None]:
    """Turn the system's refusals to write into birdtune's words.

    Args:
        path: what is written; named unless the system names something better.
        what: the same in words, e.g. "a checkpoint".
        needed: bytes that it takes, or a function that finds out.

    Raises:
        PassingError: the disk is full or failing, or the folder was removed meanwhile.
        InputError: the place is read-only or not permitted, or its name is impossible.
    """
    try:
        yield
    except Exception as fault:
        told = _in_words(fault, path, what, needed)
        if told is None:
            raise
        raise told from fault


def _in_words(fault: Exception, path: Path, what: str, needed: Needed) -> BirdtuneError | None:
    number = None if isinstance(fault, BirdtuneError) else fault_number(fault)
    if number is None:
        return None
    place, why = _place(fault, path), os.strerror(number)
    where, doing = shown(place), f" while writing {what}" if what else ""
    if number in _FULL:
        return _full(number, where, path, doing, needed() if callable(needed) else needed)
    if number in _REFUSED:
        return InputError(
            f"{where}: cannot be written ({why}){doing}. birdtune needs a folder that this user (uid {os.geteuid()}) "
            'may write to. In a container: mount output/ without `:ro` and run with `--user "$(id -u):$(id -g)"`.'
        )
    if number in _OTHER_KIND:
        return other_kind(place, why)
    if number in _NO_NAME:
        return InputError(f"{where}: no such name can be used ({why}). Give another place.")
    if number == errno.EFBIG:
        return InputError(
            f"{where}: grows larger than the file system or `ulimit -f` allows{doing}. Give another place, or raise "
            "the limit."
        )
    if number in _FAILED:
        return PassingError(
            f"{where}: the storage failed ({why}){doing}. What was finished before is safe. Run again to continue; if "
            "it stays so, the disk or the network that holds it is failing."
        )
    if number == errno.ENOENT and not _exists(place.parent):
        return gone(place.parent, doing)
    return None


def _place(fault: Exception, path: Path) -> Path:
    """What to name: as the system does, but no temporary name, which nobody could find afterwards."""
    named = getattr(fault, "filename", None)
    for place in (Path(os.fsdecode(named)) if isinstance(named, str | bytes) and named else path, path):
        if not any(part.startswith(UNFINISHED) for part in place.parts):
            return place
    return next(place for place in path.parents if not place.name.startswith(UNFINISHED))


def _full(
    number: int, where: str, path: Path, doing: str, needed: int | None, disk: str = "the disk is full"
) -> PassingError:
    free = free_bytes(path)
    if number == errno.EDQUOT:
        # How much is left of a quota, no file system says in one way.
        free, disk = None, "this user's disk quota is used up"
    elif free and (needed is None or free > needed) and not _inodes_left(path):
        disk = "the disk can hold no more files (it has no inodes left, however many bytes are free)"
    amounts = [f"{size_text(needed)} needed"] if needed is not None else []
    amounts += [f"{size_text(free)} free"] if free is not None else []
    amount = f" ({', '.join(amounts)})" if amounts else ""
    return PassingError(
        f"{where}: {disk}{doing}{amount}. What was finished before is safe. Free some space or give another place, "
        "then run again to continue."
    )


def need_space(path: Path, n_bytes: int, what: str) -> None:
    """Refuse to begin what the disk has no room for.

    Args:
        path: what would be written; nothing of it need exist.
        n_bytes: what it takes at least.

    Raises:
        PassingError: there is less.
    """
    free = free_bytes(path)
    if free is not None and n_bytes > free:
        raise _full(errno.ENOSPC, shown(path), path, f" for {what}", n_bytes, "the disk is too full")


def free_bytes(path: Path) -> int | None:
    """Bytes free for this user where a path is or would be; None where the file system does not say."""
    try:
        usage = shutil.disk_usage(_standing(path))
    except OSError:
        return None
    # Some file systems in user space know no sizes and answer zero to everything.
    return usage.free if usage.total else None


def _inodes_left(path: Path) -> bool:
    try:
        facts = os.statvfs(_standing(path))
    except OSError:
        return True
    return facts.f_files == 0 or facts.f_favail > 0


def _standing(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    return next(place for place in (path, *path.absolute().parents) if _exists(place))


def _exists(path: Path) -> bool:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True  # there is something that must not be looked at
    return True


def size_text(n_bytes: float) -> str:
    """Bytes as people say them: "13 bytes", "4.1 kB", "14 MB", "3.5 GB"."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n_bytes >= size:
            value = n_bytes / size
            return f"{value:.1f} {unit}" if value < 10 else f"{value:,.0f} {unit}"
    return f"{n_bytes:.0f} bytes"


@contextlib.contextmanager
def unmet_faults(folder: Path) -> Iterator[None]:
    """Turn refusals that were not met where they happened into birdtune's words; a defect stays one.

    Args:
        folder: where most of the work's files are; what is gone from there was removed meanwhile.

    Raises: as `storage_faults`.
    """
    try:
        yield
    except Exception as fault:
        number, named = fault_number(fault), getattr(fault, "filename", None)
        place = _place(fault, folder)
        if isinstance(fault, BirdtuneError) or (number in _REFUSED and named is None):
            raise
        if number in _REFUSED:
            raise InputError(
                f"{shown(place)}: the system refuses it to this user (uid {os.geteuid()}): {os.strerror(number or 0)}. "
                "Check its rights."
            ) from fault
        if (
            number == errno.ENOENT
            and named is not None
            and place.absolute().is_relative_to(folder.absolute())
        ):
            raise gone(place) from fault
        told = _in_words(fault, folder, "", None)
        if told is None:
            raise
        raise told from fault


def gone(place: Path, doing: str = "") -> PassingError:
    """The error to raise when what birdtune made is not there any more."""
    return PassingError(
        f"{shown(place)}: is gone{doing}; something removed it, or its storage, while birdtune worked. Run again to go "
        "on with what is left."
    )


def other_kind(place: Path, why: str) -> InputError:
    """The error to raise when something else stands in the place of one of birdtune's own files or folders."""
    return InputError(
        f"{shown(place)}: birdtune keeps something of its own in this place, and something of another kind is there "
        f"({why}). Move it away, and run again."
    )


@contextlib.contextmanager
def reading_faults(path: Path) -> Iterator[None]:
    """Turn the system's refusals to read into birdtune's words; that a file is not there stays as it is.

    Raises:
        PassingError: the storage failed or went away.
        InputError: reading is not permitted.
    """
    try:
        yield
    except OSError as fault:
        place = _place(fault, path)
        if fault.errno == errno.EISDIR:
            raise other_kind(place, os.strerror(errno.EISDIR)) from fault
        if fault.errno not in (*_FAILED, *_REFUSED):
            raise
        message = (
            f"{shown(place)}: cannot be read ({fault.strerror}) by this user (uid {os.geteuid()}). Check its rights."
        )
        raise refused(fault, place, message) from fault


def refused(fault: Exception, path: Path, message: str, kind: type[InputError] = InputError) -> BirdtuneError:
    """The error to raise for what cannot be read: a passing one if its storage failed, else `kind` with `message`."""
    if not has_failed(fault):
        return kind(message)
    why = os.strerror(fault_number(fault) or 0)
    return PassingError(
        f"{shown(path)}: the storage failed while it was read ({why}). Run again when it is back; if it stays so, the "
        "disk or the network that holds it is failing."
    )
