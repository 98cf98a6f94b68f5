"""What a user names → the sound files in it, and why the others are none.

    files, folders ─▶ find_sounds ─▶ Path | Unused, in the order in which they were named
"""

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from birdtune.errors import shown
from birdtune.results.hearing import Unused
from birdtune.sound.container import FOREIGN_ENDINGS, SOUND_ENDINGS


def find_sounds(given: Sequence[Path]) -> list[Path | Unused]:
    """Files as given, and those below the folders given, sorted; each path once, or why it cannot be used.

    Below a folder only names that end as sound does are taken, and none that begin with a dot; links to
    folders are not followed. A file given by its own name is taken whatever its ending.
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


def _walk(folder: Path) -> dict[Path, Path | Unused]:
    found: dict[Path, Path | Unused] = {}

    def not_listed(fault: OSError) -> None:
        detail = f"cannot be listed ({fault.strerror})"
        found[Path(fault.filename)] = Unused(shown(fault.filename), "unreadable", detail)

    for place, folders, names in os.walk(folder, onerror=not_listed):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (Path(place, name) for name in names if not name.startswith(".")):
            ending = path.suffix.lower()
            if ending in FOREIGN_ENDINGS:
                found[path] = Unused(shown(path), "unsupported-format", f"{ending} cannot be read")
            elif ending in SOUND_ENDINGS:
                found[path] = _fault(path) or path
    if not found:
        found[folder] = Unused(shown(folder), "not-audio", "no file in this folder has an ending of sound")
    return found


def _fault(path: Path) -> Unused | None:
    """Why a path cannot be opened at all; a pipe, for one, would be waited for without end."""
    try:
        mode = path.stat().st_mode
    except OSError as fault:
        return Unused(shown(path), "unreadable", f"the system refuses to look at it ({fault.strerror})")
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        return Unused(shown(path), "not-a-file", "it is no regular file")
    return None
