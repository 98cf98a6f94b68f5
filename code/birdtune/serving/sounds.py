"""What a user names → the sound files in it, and why the others are none.

    files, folders ─▶ find_sounds ─▶ Path | Unused, in the order in which they were named
"""

import codecs
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote_to_bytes

from birdtune.audio.channels import count
from birdtune.audio.container import FOREIGN_ENDINGS, SOUND_ENDINGS
from birdtune.audio.formats import kind_of
from birdtune.errors import InputError, shown
from birdtune.runtime.parsing import is_wide
from birdtune.serving.inference import Channel, Unused


def find_sounds(given: Sequence[Path]) -> list[Path | Unused]:
    """Files as given, and those below the folders given, sorted; each path once, or why it cannot be used.

    Below a folder each file is taken that is sound by its ending or by its first bytes, and every other one is named
    with what it is; only names that begin with a dot are passed over; links to folders are named, not followed. A
    file given by its own name is taken whatever it is.
    """
    found: dict[Path, Path | Unused] = {}
    for path in given:
        fault = _fault(path)
        if fault is None and path.is_dir():
            below = _walk(path)
            found |= {place: below[place] for place in sorted(below.keys() - found.keys())}
        else:
            found.setdefault(path, fault or path)
    return list(found.values())


def channel_by_channel(sounds: Sequence[Path | Unused]) -> list[Path | Channel | Unused]:
    """The same with each channel of a file of several as a recording of its own."""
    found: list[Path | Channel | Unused] = []
    for given in sounds:
        n_channels = 1 if isinstance(given, Unused) else count(given)
        if isinstance(given, Unused) or n_channels == 1:
            found.append(given)
        else:
            found += [Channel(given, channel) for channel in range(n_channels)]
    return found


def _walk(folder: Path) -> dict[Path, Path | Unused]:
    found: dict[Path, Path | Unused] = {}

    def not_listed(fault: OSError) -> None:
        detail = f"cannot be listed ({fault.strerror})"
        found[Path(fault.filename)] = Unused(shown(fault.filename), "unreadable", detail)

    for place, folders, names in os.walk(folder, onerror=not_listed):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for link in (path for name in folders if (path := Path(place, name)).is_symlink()):
            detail = "it is a link to a folder, which is not followed; give the folder itself"
            found[link] = Unused(shown(link), "not-a-file", detail)
        for path in (Path(place, name) for name in names if not name.startswith(".")):
            found[path] = _fault(path) or _sound_or_not(path)
    if not found:
        found[folder] = Unused(shown(folder), "not-audio", "there is no file in this folder")
    return found


def _sound_or_not(path: Path) -> Path | Unused:
    if path.suffix.lower() in SOUND_ENDINGS:
        return path
    try:
        kind = kind_of(path)
    except OSError as fault:
        return Unused(shown(path), "unreadable", f"the system refuses to open it ({fault.strerror})")
    if kind.is_sound or kind.demuxer is not None or path.suffix.lower() in FOREIGN_ENDINGS:
        return path
    detail = f"it is {kind.words}. {kind.advice}".rstrip(". ")
    return Unused(shown(path), "not-audio", detail)


def read_list(content: bytes) -> list[Path]:
    """Names of files, one a line, as `--list` takes them.

    Blank lines, a byte order mark and the carriage returns of other systems are ignored; where names end in a null
    character, as `find -print0` writes them, they may hold any other one. UTF-16 with a mark, as PowerShell writes it,
    is read; what begins with `file://` is an address, with its %20. Quotes and `#` are characters of a name.

    Raises:
        InputError: UTF-16 without a mark or broken off, the name of the working folder itself, or a file elsewhere.
    """
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        try:
            content = os.fsencode(content.decode("utf-16"))
        except UnicodeError as fault:
            raise InputError("--list: the list is UTF-16 that breaks off. Write it again, best in UTF-8.") from fault
    elif is_wide(content):
        raise InputError(
            "--list: the list is UTF-16 without a mark. Write it in UTF-8 (PowerShell: Out-File -Encoding utf8)."
        )
    content = content.removeprefix(codecs.BOM_UTF8)
    names = content.split(b"\0") if b"\0" in content else [line.rstrip(b"\r") for line in content.split(b"\n")]
    return [_listed(name, number) for number, name in enumerate(names, start=1) if name.strip()]


def _listed(name: bytes, number: int) -> Path:
    where = f"--list, name {number:,}"
    if name[:7].lower() == b"file://":
        host, slash, rest = name[7:].partition(b"/")
        # What follows is unescaped once; a null character is in no name.
        if host.lower() not in (b"", b"localhost") or not slash or b"\0" in unquote_to_bytes(rest):
            raise InputError(
                f"{where}: {shown(os.fsdecode(name))} is no address of a file on this computer; expected "
                "file:///folder/one.wav, or the plain name."
            )
        name = b"/" + unquote_to_bytes(rest)
    path = Path(os.fsdecode(name))
    if path == Path():
        raise InputError(
            f"{where}: {shown(os.fsdecode(name))!r} is the working folder itself, with all that is in it. Take it out "
            "of the list (find: -type f); if all of it is meant, name it as an argument."
        )
    return path


def _fault(path: Path) -> Unused | None:
    """Why a path cannot be opened at all; a pipe, for one, would be waited for without end."""
    try:
        mode = path.stat().st_mode
    except OSError as fault:
        return Unused(shown(path), "unreadable", f"the system refuses to look at it ({fault.strerror})")
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        return Unused(shown(path), "not-a-file", "it is no regular file")
    return None
