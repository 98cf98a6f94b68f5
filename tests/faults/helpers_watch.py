"""What reading must never do: start a program, or change a file outside of its folder.

watched(room) ─▶ Misdeed, by the interpreter's audit events
"""

import contextlib
import inspect
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Events of the interpreter (https://docs.python.org/3/library/audit_events.html) that no reading of data needs.
_PROGRAMS = re.compile(
    r"os\.(system|exec|posix_spawn|spawn|fork|forkpty|startfile)|subprocess\.Popen|pty\.spawn|pickle\.find_class"
    r"|ctypes\.dlopen|socket\.(connect|bind|sendto|sendmsg|getaddrinfo)|code\.__new__|urllib|ftplib|http\.client"
)
_WRITES = re.compile(
    r"os\.(remove|rename|rmdir|mkdir|link|symlink|chmod|chown|truncate|utime|setxattr)|shutil\.rmtree"
)
# Where these events have the open folder that their path begins at.
_FOLDER_AT = {"os.remove": 1, "os.rmdir": 1, "os.mkdir": 2, "os.symlink": 2}
# What birdtune's own processes tell each other.
_OWN_MESSAGES = ("numpy", "birdtune.errors")
_WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

_room: Path | None = None
_noted: list[str] = []


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if _room is None:
        return
    if event == "pickle.find_class" and str(arguments[0]).startswith(_OWN_MESSAGES):
        return
    if event == "code.__new__" and str(arguments[1]).startswith("av/"):
        return  # PyAV's compiled code, which names its lines so in a traceback
    if _PROGRAMS.match(event):
        _add(f"{event}{arguments!r}")
    elif event == "exec" and getattr(arguments[0], "co_filename", "").startswith("<string"):
        # dataclasses and namedtuples are made so, too; but by imports, not by reading.
        _add(f"exec {arguments!r}")
    elif (event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITE_FLAGS) or _WRITES.match(
        event
    ):
        changed = {"os.rename": arguments[:2], "os.link": arguments[1:2], "os.symlink": arguments[1:2]}
        for path in changed.get(event, arguments[:1]):
            if not isinstance(path, str | bytes | os.PathLike):
                continue  # an open file, whose opening was looked at
            folder = arguments[_FOLDER_AT[event]] if event in _FOLDER_AT else -1
            if not _is_inside(os.fsdecode(path), _room, folder):
                _add(f"{event} of {os.fsdecode(path)!r}")


def _add(deed: str) -> None:
    """Note a deed, unless a module is being loaded: what its code does is the program's doing, not that of data."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
        frame = frame.f_back
    if frame is None:
        _noted.append(deed[:300])


def _is_inside(path: str, room: Path, folder: int) -> bool:
    # Not resolved: that would ask the system, and be noted in turn. Nothing in the room is a link to the outside.
    base = Path(os.readlink(f"/proc/self/fd/{folder}")) if folder >= 0 else Path.cwd()  # noqa: PTH115
    return path == os.devnull or Path(os.path.normpath(base / path)).is_relative_to(room)


class Misdeed(Exception):  # noqa: N818 -- it is the finding
    """What was read made something happen that must not."""


@contextlib.contextmanager
def watched(room: Path) -> Iterator[None]:
    """Note programs that are started and files that are changed outside of `room`, while the block lasts.

    Raises:
        Misdeed: there was one.
    """
    global _room
    if not _hooked:
        sys.addaudithook(_note)
        _hooked.append(True)
    _noted.clear()
    _room = room
    try:
        yield
    finally:
        _room = None
    if _noted:
        raise Misdeed("; ".join(_noted))


_hooked: list[bool] = []
