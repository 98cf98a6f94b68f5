"""A list of species, and the classes of a model that are on it.

    --species-list FILE, classes ─▶ classes_on ─▶ their columns, and the names that are no class

A line is a name: scientific, common, or `Genus species_Common name` as BirdNET-Analyzer writes its lists. Case, blanks,
underscores, hyphens and apostrophes do not matter; a genus alone means all its species.
"""

from collections.abc import Sequence
from pathlib import Path

from birdtune.errors import InputError, shown
from birdtune.models.published_names import Names
from birdtune.runtime.files import require_file
from birdtune.runtime.parsing import decode_text, read_bounded
from birdtune.runtime.storage import storage_faults
from birdtune.runtime.text import count, some

_SETTING = "--species-list"
_LARGEST_LIST_BYTES = 16 << 20


def classes_on(path: Path, classes: Sequence[str]) -> tuple[list[int], list[str]]:
    """Columns of the classes on a list, ascending, and the names on it that are no class.

    Raises:
        InputError: the file cannot be read, or no class is on it.
    """
    require_file(path, _SETTING, "a text with a name on each line")
    with storage_faults(path, verb="read"):
        text = decode_text(read_bounded(path, _LARGEST_LIST_BYTES, "a list of species"), path)
    names = Names(classes)
    found: set[int] = set()
    unknown = []
    for line in dict.fromkeys(filter(None, map(str.strip, text.splitlines()))):
        fits = names.columns(line) or [column for part in line.split("_") for column in names.columns(part.strip())]
        found |= set(fits)
        if not fits:
            unknown.append(line)
    if not found:
        raise InputError(
            f"{_SETTING} {shown(path)}: none of its {count(len(unknown), 'name')} is a class of the model "
            f"({some(unknown)}); its classes: {some(classes)}. Names are scientific or common, one a line."
        )
    return sorted(found), unknown
