"""What the name of a class tells beside the class: several classes at once, what is not heard, or nearly another name.

    names ─▶ is_negative, refuse_several, folder_notices ─▶ yes or no, InputError, sentences
"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from birdtune.data.scan import Listing
from birdtune.errors import InputError, shown

_NAMES_IN_A_NOTICE = 8

# The first two words of a name as biology has it; and what follows them, as BirdNET writes `Turdus merula_Blackbird`.
SCIENTIFIC = re.compile(r"[A-Z][a-z]+[ _][a-z]{3,}(?:[ _-].*)?")
_SEVERAL = re.compile(r"\s*[;+&|]\s*|\s+and\s+|\s+und\s+|\s+et\s+")
# What copying, unpacking and cutting into parts put behind a name.
_COPY_MARK = re.compile(
    r"(?:[ _-]*(?:\(\d+\)|\((?:copy|kopie|copie|copia)(?: \d+)?\)|\bcopy(?: ?\(?\d+\)?)?|\bkopie(?: ?\(?\d+\)?)?"
    r"|\bcopie(?: ?\(?\d+\)?)?|\bcopia(?: ?\(?\d+\)?)?|(?:part|pt|teil|disc|disk|cd|batch|vol)[ _-]*\d+))+$"
)
_TRAILING_NUMBER = re.compile(r"[ _-]+\d+$")


def is_negative(label: str) -> bool:
    """Whether a class is called as BirdNET-Analyzer calls the negatives of another one."""
    return label.startswith("-") and bool(label.strip("- "))


def refuse_several(labels: Iterable[str], where: str) -> None:
    """Refuse classes whose names are those of several classes.

    A comma alone does not tell: "Thrush, Song" is one bird. It does where a part is a class itself or a scientific
    name, and where no blank follows it, as tools write several labels.

    Args:
        where: what has the classes.

    Raises:
        InputError: there are some.
    """
    labels = set(labels)
    known = {_folded(label) for label in labels}
    if found := sorted(label for label in labels if _is_several(label, known)):
        raise InputError(
            f"{where}: {quoted(found)} {'names' if len(found) == 1 else 'name'} several classes at once, and a "
            "recording can have only one label so far; as it is, they would be trained as a class of their own. "
            f"Give each recording the class that it is to be an example of, or take it out of the data. If "
            f'"{shown(found[0])}" is one class, give it a name without {_separator(found[0])}.'
        )


def _is_several(label: str, known: set[str]) -> bool:
    parts = [part.strip() for part in label.split(",") if part.strip()]
    if len(parts) > 1:
        tight = re.search(r",[^\W\d]", label) is not None
        return tight or any(_folded(part) in known or SCIENTIFIC.fullmatch(part) for part in parts)
    parts = [part for part in _SEVERAL.split(label) if part]
    return len(parts) > 1 and all(_folded(part) in known for part in parts)


def _separator(label: str) -> str:
    """What stands between the classes of such a name, in words."""
    mark = "," if "," in label else next(iter(_SEVERAL.findall(label)), ",").strip()
    return {",": 'the comma, e.g. "Song Thrush" for "Thrush,Song"'}.get(mark, f'the "{mark}"')


def folder_notices(listing: Listing, classes: Sequence[str]) -> list[str]:
    """What is said of class folders that are empty, or whose names are nearly those of others.

    Args:
        classes: those with usable recordings.
    """
    empty = sorted(set(listing.folders) - set(classes))
    notices = [f"Class folders without a usable recording, left out: {quoted(empty)}."] if empty else []
    same = [name for name, count in Counter(listing.folders).items() if count > 1]
    if same:
        notices.append(
            f"Several class folders look the same but are spelt with other characters (é as one or as two); they "
            f"count as one class: {quoted(same)}."
        )
    known = {_folded(file.label) for file in listing.files}
    if commas := [name for name in classes if "," in name and not _is_several(name, known)]:
        notices.append(f"Taken for the name of one class each, in spite of the comma: {quoted(commas)}.")
    plain = {_folded(name) for name in classes}
    alike: dict[str, list[str]] = defaultdict(list)
    for name in classes:
        own, without = _folded(name), _folded(_TRAILING_NUMBER.sub("", name.strip()))
        bare = _folded(_COPY_MARK.sub("", name.strip().casefold()) or name)
        alike[without if without in plain - {own} else bare].append(name)
    if groups := [" and ".join(f'"{shown(name)}"' for name in names) for names in alike.values() if len(names) > 1]:
        notices.append(
            f"Classes whose names differ only in case, in blanks, or by a number or a mark of a copy, and are kept "
            f"apart: {joined(groups)}. If they are the same bird, put their recordings into one folder."
        )
    return notices


def _folded(name: str) -> str:
    return re.sub(r"[\W_]+", "_", unicodedata.normalize("NFKC", name).casefold()).strip("_") or name


def quoted(names: Iterable[str]) -> str:
    """Names in quotes, so that blanks at their ends are seen; the first eight."""
    return joined([f'"{shown(name)}"' for name in names])


def joined(parts: Sequence[str]) -> str:
    """The first eight parts, and how many more there are."""
    more = len(parts) - _NAMES_IN_A_NOTICE
    return ", ".join(parts[:_NAMES_IN_A_NOTICE]) + (f" and {more:,} more" if more > 0 else "")
