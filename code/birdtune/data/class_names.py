"""Names of classes: of several at once, of classes that are absent, and names that are nearly another one.

    Listing ─▶ with_several ─▶ Listing with several labels a file;  names ─▶ refuse_several, folder_notices
"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from difflib import SequenceMatcher

from birdtune.data.labels import Label
from birdtune.data.scan import Listing, SoundFile
from birdtune.errors import InputError, shown
from birdtune.runtime.text import count

_NAMES_IN_A_NOTICE = 8
# A class may be a misspelt one if it has so few labels, or so small a share of the other's, and that has many more.
_RARE, _RARE_SHARE, _TIMES_RARER = 2, 0.02, 5
_NEAR_WORDS, _NEAR_NAMES = 0.8, 0.88
_JOIN = "join them by --labels.taxonomy map.csv, with a row `label,class` for the name that is to go"

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


def with_several(listing: Listing) -> Listing:
    """The same files; those whose folder or table names several classes at once have a label of each.

    A comma alone is no sign of that: "Thrush, Song" is one bird. It is where a part is a class itself or a scientific
    name, and where no blank follows it, as tools write several labels. A class that is named as absent (`-Parus`)
    beside others is left out.
    """
    names = {name for file in listing.files for name in file.classes}
    known = {_folded(name): name for name in names if not is_negative(name)}
    parts = {name: found for name in names if (found := _parts(name, known))}
    # Two folders of one name are kept as two: `folder_notices` speaks of them.
    folders = [folder for folder in listing.folders if folder not in parts]
    more = dict.fromkeys(name for folder in listing.folders for name in parts.get(folder, ()))
    files = [_with_labels(file, parts) for file in listing.files]
    return Listing(files, listing.problems, [*folders, *(name for name in more if name not in folders)])


def _with_labels(file: SoundFile, parts: Mapping[str, tuple[str, ...]]) -> SoundFile:
    given = file.labels or (Label(file.label),)
    labels = [replace(label, class_name=name) for label in given
              for name in parts.get(label.class_name, (label.class_name,))]  # fmt: skip
    present = [label for label in labels if not is_negative(label.class_name)] or labels
    return file if tuple(present) == given else replace(file, labels=tuple(dict.fromkeys(present)))


def refuse_several(labels: Iterable[str], where: str) -> None:
    """Refuse classes whose names are those of several classes, as `with_several` finds them: softmax has one.

    Args:
        where: what has the classes.

    Raises:
        InputError: there are some.
    """
    labels = set(labels)
    known = {_folded(label): label for label in labels}
    if found := sorted(label for label in labels if _parts(label, known)):
        raise InputError(
            f"{where}: {quoted(found)} {'names' if len(found) == 1 else 'name'} several classes at once, and with "
            "--model.output softmax a recording has one. Use --model.output auto or sigmoid, give each recording one "
            f'class, or take it out of the data. If "{shown(found[0])}" is one class, give it a name without '
            f"{_separator(found[0])}."
        )


def _parts(label: str, known: Mapping[str, str]) -> tuple[str, ...]:
    """The classes that a name is made of, spelled as they are elsewhere; () where it is the name of one class.

    Args:
        known: folded name → class, of all names.
    """
    parts = [part.strip() for part in label.split(",") if part.strip()]
    if len(parts) > 1:
        tight = re.search(r",[^\W\d]|,-", label) is not None
        is_several = tight or any(_folded(part) in known or SCIENTIFIC.fullmatch(part) for part in parts)
    else:
        parts = [part for part in _SEVERAL.split(label) if part]
        is_several = len(parts) > 1 and all(_folded(part) in known for part in parts)
    if any(re.fullmatch(r"[\d\W]+", part) for part in parts):  # Strix aluco Linnaeus, 1758
        return ()
    present = [known.get(_folded(part), part) for part in parts if not is_negative(part)]
    return tuple(dict.fromkeys(present)) if is_several else ()


def _separator(label: str) -> str:
    """What stands between the classes of such a name, in words."""
    mark = "," if "," in label else next(iter(_SEVERAL.findall(label)), ",").strip()
    return {",": 'the comma, e.g. "Song Thrush" for "Thrush,Song"'}.get(mark, f'the "{mark}"')


def folder_notices(listing: Listing, classes: Sequence[str]) -> list[str]:
    """Notices of class folders that are empty, or whose names are nearly those of others.

    Args:
        classes: those with usable recordings.
    """
    empty = sorted(set(listing.folders) - set(classes))
    notices = [f"Class folders without a usable recording, left out: {quoted(empty)}."] if empty else []
    same = [name for name, n in Counter(listing.folders).items() if n > 1]
    if same:
        notices.append(
            f"Several class folders look the same but are spelt with other characters (é as one or as two); they "
            f"count as one class: {quoted(same)}."
        )
    known = {_folded(name): name for file in listing.files for name in file.classes}
    if commas := [name for name in classes if "," in name and not _parts(name, known)]:
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
            f"apart: {joined(groups)}. If they are the same bird, put their recordings into one folder; or, where "
            f"labels come from a table or annotations, {_JOIN}."
        )
    return notices


def misspelt_notices(labels: Counter[str], *, by_rows: bool) -> list[str]:
    """A notice of rare classes whose names are nearly those of frequent ones. They are never joined: both may be birds.

    Args:
        labels: class → how many labels it has.
        by_rows: whether labels come from a table or annotations.
    """
    frequent: dict[str, list[str]] = defaultdict(list)  # initials of the words, or all letters → names
    for name, _ in labels.most_common():
        for key in _near_keys(name):
            frequent[key].append(name)
    found = []
    for name, n in sorted(labels.items()):
        for other in dict.fromkeys(other for key in _near_keys(name) for other in frequent[key]):
            is_rare = labels[other] >= _TIMES_RARER * n and (n <= _RARE or n <= _RARE_SHARE * labels[other])
            if is_rare and _is_near(name, other):
                found.append(f'"{shown(name)}" ({count(n, "label")}) is nearly "{shown(other)}" ({labels[other]:,})')
                break
    if not found:
        return []
    return [f"Perhaps misspelt: {joined(found)}. If so, {_JOIN if by_rows else 'rename the folder'}."]


def _near_keys(name: str) -> tuple[str, str]:
    words = _folded(name).split("_")
    return " ".join(word[:1] for word in words), "".join(words)


def _is_near(name: str, other: str) -> bool:
    """Whether one may be the other with a letter or two astray; not the other with another number.

    Word by word, as long names of two birds may differ in one short word: Black-bellied and Black-billed Cuckoo.
    """
    one, two = _folded(name), _folded(other)
    if one == two or re.findall(r"\d+", one) != re.findall(r"\d+", two):
        return False
    pairs = list(zip(one.split("_"), two.split("_"), strict=False))
    same_letters = one.replace("_", "") == two.replace("_", "")
    alike = all(_similarity(*pair) >= _NEAR_WORDS for pair in pairs) and _similarity(one, two) >= _NEAR_NAMES
    return same_letters or alike


def _similarity(one: str, two: str) -> float:
    return SequenceMatcher(None, one, two, autojunk=False).ratio()


def _folded(name: str) -> str:
    return re.sub(r"[\W_]+", "_", unicodedata.normalize("NFKC", name).casefold()).strip("_") or name


def quoted(names: Iterable[str]) -> str:
    """Names in quotes, so that blanks at their ends are seen; the first eight."""
    return joined([f'"{shown(name)}"' for name in names])


def joined(parts: Sequence[str]) -> str:
    """The first eight parts, and how many more there are."""
    more = len(parts) - _NAMES_IN_A_NOTICE
    return ", ".join(parts[:_NAMES_IN_A_NOTICE]) + (f" and {more:,} more" if more > 0 else "")
