"""What the storage refuses: errno → the error to raise, which has the exit code, and its sentence.

    OSError, or what TensorFlow and safetensors raise in its place ─▶ RetryableError (75) | InputError (42)

A full disk, a failing one, and storage that went away may be back at the next start, which goes on from there. A
place that is read-only or not permitted stays so until the settings change.
"""

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from birdtune.errors import BirdtuneError, InputError, RetryableError, shown

# What is being built has this prefix, by which a later run recognises what a killed one left behind.
UNFINISHED = ".unfinished-"

_SAFE = "What was finished before is safe."
_FREE_SOME = f"{_SAFE} Free some space or give another place, then run again to continue."
_FAILING = "if it stays so, the disk or the network that holds it is failing."
_FAILED = (
    errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.ENODEV, errno.ENXIO, errno.EREMOTEIO,
    errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.ECONNRESET,
    errno.ECONNREFUSED, errno.ESHUTDOWN, errno.ENOLINK,
)  # fmt: skip
_FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM)
_ERRORS: dict[int, tuple[type[RetryableError | InputError], str]] = {
    errno.ENOSPC: (RetryableError, f"the disk is full{{doing}}{{amounts}}. {_FREE_SOME}"),
    errno.EDQUOT: (RetryableError, f"this user's disk quota is used up{{doing}}{{amounts}}. {_FREE_SOME}"),
    errno.ENOENT: (
        RetryableError,
        "is gone{doing}; something removed it, or its storage, while birdtune worked. Run again to continue with what "
        "is left.",
    ),
    **dict.fromkeys(
        _FAILED, (RetryableError, f"the storage failed ({{why}}){{doing}}. {_SAFE} Run again to continue; {_FAILING}")
    ),
    **dict.fromkeys(
        _FORBIDDEN,
        (
            InputError,
            "cannot be {verb} ({why}){doing}. This user (uid {uid}) lacks the rights. In a container: mount output/ "
            'without `:ro` and run with `--user "$(id -u):$(id -g)"`.',
        ),
    ),
    **dict.fromkeys(
        (errno.EISDIR, errno.ENOTDIR, errno.EEXIST),
        (
            InputError,
            "birdtune keeps something of its own in this place, and something of another kind is there ({why}). Move "
            "it away, and run again.",
        ),
    ),
    **dict.fromkeys(
        (errno.ENAMETOOLONG, errno.ELOOP), (InputError, "no such name can be used ({why}). Give another place.")
    ),
    errno.EFBIG: (
        InputError,
        "grows larger than the file system or `ulimit -f` allows{doing}. Give another place, or raise the limit.",
    ),
}
# Libraries that report in words of their own what the system refused.
_REPORTERS = ("tensorflow.", "safetensors")

Needed = int | Callable[[], int] | None


@contextlib.contextmanager
def storage_faults(path: Path, what: str = "", needed: Needed = None, *, verb: str = "written") -> Iterator[None]:
    """Raise errors of the system with what to do about them; all other errors pass.

    What is not there is an error of the storage only where birdtune had made it: `path`, what is above or below it,
    and a folder; not a file that is to be read.

    Args:
        path: what is written or read; named unless the system names something better.
        what: the same in words, e.g. "a checkpoint".
        needed: bytes that it takes, or a function that finds out.
        verb: what cannot be done: "written", "read"; "used" around a whole command.

    Raises:
        RetryableError: the disk is full or failing, or the folder was removed.
        InputError: the place is read-only or not permitted, or its name is impossible.
    """
    try:
        yield
    except Exception as fault:
        number = None if isinstance(fault, BirdtuneError) else _errno(fault)
        named = getattr(fault, "filename", None)
        # Of a whole command: what is refused without a name need not be a file.
        if number not in _ERRORS or (verb == "used" and number in _FORBIDDEN and named is None):
            raise
        place = _place(fault, path)
        if number == errno.ENOENT:
            whole, part = path.absolute(), place.absolute()
            if not os.path.lexists(part.parent):
                place = place.parent
            elif not (part.is_relative_to(whole) or whole.is_relative_to(part)) or (part == whole and verb == "read"):
                raise
        n_bytes = needed() if callable(needed) else needed
        raise _error(number, place, f" while writing {what}" if what else "", n_bytes, verb) from fault


def _errno(fault: BaseException) -> int | None:
    """The system's error number behind an exception; None if the system is not behind it."""
    if isinstance(fault, OSError):
        return fault.errno
    if not type(fault).__module__.startswith(_REPORTERS):
        return None
    text = str(fault)
    if match := re.search(r"\(os error (\d+)\)", text):  # as Rust says it
        return int(match[1])
    return next((number for number in _ERRORS if os.strerror(number) in text), None)


def _place(fault: Exception, path: Path) -> Path:
    """What to name: as the system does, but no temporary name, which nobody could find afterwards."""
    named = getattr(fault, "filename", None)
    for place in (Path(os.fsdecode(named)) if isinstance(named, str | bytes) and named else path, path):
        if not any(part.startswith(UNFINISHED) for part in place.parts):
            return place
    return next(place for place in path.parents if not place.name.startswith(UNFINISHED))


def _error(number: int, place: Path, doing: str, needed: int | None, verb: str) -> BirdtuneError:
    kind, sentence = _ERRORS[number]
    free = free_bytes(place) if number == errno.ENOSPC else None  # of a quota, no file system tells it in one way
    amounts = [f"{size_text(needed)} needed"] if needed is not None else []
    if free is not None:
        inodes = os.statvfs(_standing(place))
        lacking = ", but no inodes" if inodes.f_files and not inodes.f_favail else ""
        amounts.append(f"{size_text(free)} free{lacking}")
    words = {
        "why": os.strerror(number), "doing": doing, "verb": verb, "uid": os.geteuid(),
        "amounts": f" ({', '.join(amounts)})" if amounts else "",
    }  # fmt: skip
    return kind(f"{shown(place)}: {sentence.format(**words)}")


def gone(place: Path) -> BirdtuneError:
    """The error to raise when what birdtune made is not there any more."""
    return _error(errno.ENOENT, place, "", None, "")


def has_failed(fault: BaseException) -> bool:
    """Whether the storage itself failed or went away, rather than refusing this one thing."""
    return _errno(fault) in _FAILED


def read_error(fault: Exception, path: Path, message: str, kind: type[InputError] = InputError) -> BirdtuneError:
    """The error to raise for what cannot be read: RetryableError if its storage failed, else `kind` with `message`."""
    if not has_failed(fault):
        return kind(message)
    why = os.strerror(_errno(fault) or 0)
    return RetryableError(
        f"{shown(path)}: the storage failed while it was read ({why}). Run again when it is back; {_FAILING}"
    )


def need_space(path: Path, n_bytes: int, what: str) -> None:
    """Refuse to begin what the disk has no room for.

    Args:
        path: what would be written; nothing of it need exist.
        n_bytes: what it takes at least.

    Raises:
        RetryableError: there is less.
    """
    free = free_bytes(path)
    if free is not None and n_bytes > free:
        raise RetryableError(
            f"{shown(path)}: the disk is too full for {what} ({size_text(n_bytes)} needed, {size_text(free)} free). "
            f"{_FREE_SOME}"
        )


def free_bytes(path: Path) -> int | None:
    """Bytes free for this user where a path is or would be; None where the file system does not say."""
    try:
        usage = shutil.disk_usage(_standing(path))
    except OSError:
        return None
    # Some file systems in user space know no sizes and give zero for everything.
    return usage.free if usage.total else None


def _standing(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    return next(place for place in (path, *path.absolute().parents) if os.access(place, os.F_OK))


def size_text(n_bytes: float) -> str:
    """Bytes as people say them: "13 bytes", "4.1 kB", "14 MB", "3.5 GB"."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n_bytes >= size:
            value = n_bytes / size
            return f"{value:.1f} {unit}" if value < 10 else f"{value:,.0f} {unit}"
    return f"{n_bytes:.0f} bytes"
