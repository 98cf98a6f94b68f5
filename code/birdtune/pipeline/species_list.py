"""A list of species, and the classes of a model that are on it.

    --species-list FILE, classes ─▶ classes_on ─▶ their columns, and the names that are no class

A line is a name: scientific, common, or `Genus species_Common name` as BirdNET-Analyzer writes its lists. Case, blanks,
underscores, hyphens and apostrophes do not matter; a genus alone means all its species.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from birdtune.errors import InputError, shown
from birdtune.models.published_names import Names
from birdtune.runtime.files import require_file
from birdtune.runtime.parsing import decode_text, read_bounded
from birdtune.runtime.storage import storage_faults
from birdtune.runtime.text import count, some

_SETTING = "--species-list"
_LARGEST_LIST_BYTES = 16 << 20


def classes_on(
    path: Path, classes: Sequence[str], labels: Mapping[str, str] | None = None
) -> tuple[list[int], list[str]]:
    """Columns of the classes on a list, ascending, and the names on it that are no class.

    Args:
        labels: class → what the backbone's own list calls it, by which it may stand on the list, too.

    Raises:
        InputError: the file cannot be read, or no class is on it.
    """
    require_file(path, _SETTING, "a text with a name on each line")
    with storage_faults(path, verb="read"):
        text = decode_text(read_bounded(path, _LARGEST_LIST_BYTES, "a list of species"), path)
    both = [Names(classes), Names([(labels or {}).get(name, name) for name in classes])]
    found: set[int] = set()
    unknown = []
    for line in dict.fromkeys(filter(None, map(str.strip, text.splitlines()))):
        parts = [part.strip() for part in line.split("_")]
        fits = [column for names in both for column in names.columns(line)] or [
            column for names in both for part in parts for column in names.columns(part)
        ]
        found |= set(fits)
        if not fits:
            unknown.append(line)
    if not found and not unknown:
        raise InputError(f"{_SETTING} {shown(path)}: is empty. Expected a name on each line, scientific or common.")
    if not found:
        raise InputError(
            f"{_SETTING} {shown(path)}: none of its {count(len(unknown), 'name')} is a class of the model "
            f"({some(unknown)}); its classes: {some(classes)}. Names are scientific or common, one a line."
        )
    return sorted(found), unknown
