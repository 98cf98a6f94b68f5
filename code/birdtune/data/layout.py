"""Folders below the data folder → the class of each recording, and its side of the split.

    Listing + settings ─▶ arrange ─▶ Arranged: the Listing with classes, a split if there is one, notices

Conventions of other tools are followed, each with a notice:

    train/<class>, val/<class>, test/<class>      sides of the split; also <class>/train, <class>/test
    fold1/<class>, fold2/<class> …                folds
    -<class>                                      sounds that are not of that class (BirdNET-Analyzer): background
"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from birdtune.audio.channels import count as count_channels
from birdtune.data.class_names import SCIENTIFIC, is_negative, joined, quoted
from birdtune.data.labels import background_class, background_of, folded
from birdtune.data.row_books import RowBooks
from birdtune.data.scan import Listing, Problem, SoundFile
from birdtune.data.split import Given
from birdtune.data.tables import fold_of, sides_of
from birdtune.errors import InputError, shown
from birdtune.runtime.text import count

_NUMBER = re.compile(r"0*(\d{1,4})")
_PLACE = (
    r"[\W\d_]+|[A-Z0-9_-]*\d{2,}[A-Z0-9_-]*"
    r"|(?i:rec|tape|track|file|session|site|station|plot|point|place|device|recorder|mic|channel|transect|visit|year)"
    r"(?:\b|[ _-]|\d).*"
)
# A folder that is called so is a date, a place or a device, and one that is called so is no class in a class, either:
# a kind of sound, or a clip. eBird's codes (`abethr1`) are names.
_IS_PLACE = re.compile(_PLACE)
_IS_NO_NAME = re.compile(
    rf"(?![a-z]{{4,6}}\d$).*\d.*|.{{0,2}}|{_PLACE}|(?i:songs?|calls?|alarm|drumming|flight|male|female|adult|"
    r"juvenile|day|night|dawn|dusk|raw|audio|sounds?|recordings?|clips?|segments?|wavs?|flac|other|misc|new|old|"
    r"original|edited|good|bad|background|noise)",
)
_DEEPEST_FAMILY = 4  # order, family, genus, species
_MOST_FIT = 0.8


def is_place(name: str) -> bool:
    """Whether a folder is called like a date, a place or a device."""
    return _IS_PLACE.fullmatch(name.strip()) is not None


def is_no_name(name: str) -> bool:
    """Whether something is called like a place, a kind of sound or a clip, so that it is no species."""
    return _IS_NO_NAME.fullmatch(name.strip()) is not None


@dataclass(frozen=True)
class Arranged:
    """A listing whose files have their classes."""

    listing: Listing
    given: Given | None  # the split that the data bring themselves
    notices: list[str]
    groups: Mapping[str, str] = field(default_factory=dict)  # recording → source, by --split.group-column
    rows: RowBooks | None = None  # what became of the rows of a table or of annotations


@dataclass(frozen=True)
class _Sides:
    """Folders that are sides of a split."""

    depth: int  # 0: above the class folders, 1: directly in them
    of_folder: Mapping[str, str | int]  # folder → side, or fold


def arrange(listing: Listing, *, level: int, background: str, title: str) -> Arranged:
    """Give each file the class that its folders name, and find the split that they are sorted by.

    Args:
        listing: of `scan.scan`.
        level: which folder names the class, counted from the data folder or from the one that names the side: 1 is
            the first.
        background: as --labels.negative-classes.
        title: what the data folder is called in messages.

    Raises:
        InputError: the folders can be read in two ways, and one of them would train on nonsense.
    """
    sides = _sides([_folders(file.name) for file in listing.files], background, title)
    given, notices = None, []
    if sides is not None:
        given, notice = _given(listing, sides, title)
        notices.append(notice)
    families = _families([_without_side(_folders(file.name), sides) for file in listing.files], level)
    if sides is None and level == 1 and not families:
        families = _near_layouts([_folders(file.name) for file in listing.files])
    notices += families
    if sides is not None or level != 1:
        listing = _with_classes(listing, sides, level)
    return Arranged(listing, given, notices)


def given_by_folders(listing: Listing, title: str) -> tuple[Given, str] | None:
    """The split that top folders name, of recordings whose classes stand elsewhere, and its notice."""
    tops = {(_folders(file.name) or [""])[0] for file in listing.files}
    sides = _read_sides(tops)
    return _given(listing, _Sides(0, sides), title) if sides is not None and set(sides) == tops else None


def _folders(name: str) -> list[str]:
    return name.split("/")[:-1]


def _label(folder: str) -> str:
    """The class that a folder names; in names of files a backslash is doubled."""
    return unicodedata.normalize("NFC", folder.replace("\\\\", "\\"))


# ---- sides of a split -----------------------------------------------------------------------------------------------


def _sides(folders: Sequence[list[str]], background: str, title: str) -> _Sides | None:
    """The split that folders with sound in them are sorted by, if they are."""
    inside = _inside(folders)
    tops = [top for top in inside if not background_of([_label(top)], background)]
    below = [inside[top] for top in tops]
    sides = _read_sides(tops)
    if sides is None and tops and all(_NUMBER.fullmatch(top) for top in tops) and _share(below):
        sides = _read_numbers(tops)
    if sides is None:
        second = set().union(*below) - {""}
        if (sides := _read_sides(second)) is not None and set(sides) == second:
            return _Sides(1, sides)
        return None
    others = [top for top in tops if top not in sides]
    holding = [top for top in sides if inside[top] - {""}]
    if others:
        if _share([inside[top] - {""} for top in holding]):
            raise InputError(
                f"{title}: {quoted(sides)} look like sides of a split, with the same class folders in them, and "
                f"beside them lies {quoted(others)}. Move what is beside them into them or out of the data folder; or "
                "give the folders of which each is a class names that are no sides."
            )
        return None
    if not holding:
        raise InputError(
            f"{title}: its folders are {quoted(sides)}, and no class folders are in them, so there would be classes "
            f"of these names. Put class folders into them, e.g. {title}/{sorted(sides)[0]}/Turdus_merula/one.wav; or "
            "name a table that says the class of each recording: --labels.table CSV."
        )
    return _Sides(0, sides)


def _inside(folders: Sequence[list[str]]) -> dict[str, set[str]]:
    """Top folder → the folders with sound in it, "" for sound itself."""
    inside: dict[str, set[str]] = defaultdict(set)
    for path in folders:
        inside[path[0]].add(path[1] if len(path) > 1 else "")
    return inside


def _near_layouts(folders: Sequence[list[str]]) -> list[str]:
    """Notices of folders that look like a split or like classes, and are taken for neither."""
    inside = _inside(folders)
    second = set().union(*inside.values()) - {""}
    notices = []
    if sides := _read_sides(second):
        others = second - set(sides)
        notices.append(
            f"Folders {quoted(sorted(sides))} in the class folders look like sides of a split. They are not taken for "
            f"one, because {quoted(sorted(others))} lies beside them: take it away, or give the split by --split.file."
        )
    same = next(iter(inside.values()), set[str]())
    classes = [name for name in same if not is_no_name(name)]
    species = any(SCIENTIFIC.fullmatch(_label(top)) for top in inside)  # in which lie, e.g., habitats
    alike = len(inside) > 1 and all(names == same for names in inside.values())
    if alike and len(classes) > 1 and not sides and not species:
        notices.append(
            f"The folders {quoted(sorted(inside))} all hold the same folders, {quoted(sorted(same))}. If those are the "
            "classes: --labels.level 2."
        )
    return notices


def _share(names: Sequence[set[str]]) -> bool:
    """Whether most names of folders stand in several of the sets."""
    counts = Counter(name for inside in names for name in inside)
    return "" not in counts and sum(count > 1 for count in counts.values()) > 0.5 * len(counts)


def _read_sides(names: Iterable[str]) -> dict[str, str | int] | None:
    """Those of the names that are sides or folds, if there are at least two different ones: name → side or fold."""
    names = list(names)
    folds = {name: fold for name in names if (fold := fold_of(name)) is not None}
    if len(set(folds.values())) > 1:
        return dict(folds)
    sides = sides_of(names)
    return dict(sides) if len(set(sides.values())) > 1 else None


def _read_numbers(names: Sequence[str]) -> dict[str, str | int] | None:
    numbers = {name: int(name) for name in names}
    first = min(numbers.values())
    whole = sorted(numbers.values()) == list(range(first, first + len(numbers)))
    return dict(numbers) if whole and first in (0, 1) and len(numbers) > 1 else None


def _given(listing: Listing, sides: _Sides, title: str) -> tuple[Given, str]:
    """The split, and the sentence that says which folder became which side."""
    of_file = {
        file.name: sides.of_folder[inside[sides.depth]]
        for file in listing.files
        if len(inside := _folders(file.name)) > sides.depth and inside[sides.depth] in sides.of_folder
    }
    counts = Counter(_folders(name)[sides.depth] for name in of_file)
    where = "" if sides.depth == 0 else "in the class folders "
    order = {"train": 0, "val": 1, "test": 2}
    folders = sorted((order[side] if isinstance(side, str) else side, name) for name, side in sides.of_folder.items())
    parts = [
        f'"{name}" ({count(counts[name], "recording")}) is '
        f"{side if isinstance(side := sides.of_folder[name], str) else f'fold {side}'}"
        for _, name in folders
    ]
    notice = (
        f"Folders {where}are taken for a split, not for classes: {joined(parts)}. Another split is obeyed by "
        "--split.file."
    )
    folds = {name: side for name, side in of_file.items() if isinstance(side, int)}
    names = {name: side for name, side in of_file.items() if isinstance(side, str)}
    return Given(f"the layout of {title}", names, folds), notice


# ---- classes --------------------------------------------------------------------------------------------------------


def _with_classes(listing: Listing, sides: _Sides | None, level: int) -> Listing:
    """The same files with the class of the folder that names it; what lies above these folders is a problem."""
    files = []
    problems = []
    placed = {file.name: _class_of(file.name, sides, level) for file in listing.files}
    counts = Counter(placed.values())
    for file in listing.files:
        label, below = placed[file.name]
        if label:
            # Where a name comes again on another side, names only count, and say nothing of the source.
            shared = counts[label, below] > 1
            files.append(replace(file, label=label, below=file.name if shared else below))
        else:
            detail = "it lies above the folders that name classes, so its class is unknown"
            problems.append(Problem(file.name, "", "outside-class", detail))
    kept = [replace(problem, label=_class_of(problem.recording, sides, level)[0]) for problem in listing.problems]
    labels = {file.label for file in files} | {problem.label for problem in kept}
    return Listing(files, [*kept, *problems], sorted(labels - {""}))


def _class_of(name: str, sides: _Sides | None, level: int) -> tuple[str, str]:
    """Class, and the path below its folder; "" where no folder names one."""
    folders, file = _without_side(_folders(name), sides), name.rpartition("/")[2]
    if len(folders) < level:
        return "", ""
    return _label(folders[level - 1]), "/".join([*folders[level:], file])


def _without_side(folders: list[str], sides: _Sides | None) -> list[str]:
    if sides is None or len(folders) <= sides.depth or folders[sides.depth] not in sides.of_folder:
        return folders
    return [*folders[: sides.depth], *folders[sides.depth + 1 :]]


def with_negatives(listing: Listing, background: str) -> tuple[Listing, list[str]]:
    """The same listing with negatives of classes as background, and the notices of that.

    Args:
        background: as --labels.negative-classes.
    """
    names = sorted({file.label for file in listing.files if is_negative(file.label)})
    if not names:
        return listing, []
    label = background_class(listing.folders, background)
    counts = Counter(file.label for file in listing.files)
    new = dict.fromkeys(names, label)
    files = [
        replace(_renamed(file, new), below=file.name) if is_negative(file.label) else file for file in listing.files
    ]
    problems = [
        replace(problem, label=label) if is_negative(problem.label) else problem for problem in listing.problems
    ]
    folders = [*(name for name in listing.folders if not is_negative(name)), label]
    kinds = [f'"{name}" ({counts[name]:,})' for name in names]
    notice = (
        f"Recordings of {joined(kinds)} are negatives: a class is absent from them. They count as "
        f'"{label}", which is never a decision, for all classes. Leave out those in which another class of '
        "the data can be heard."
    )
    return Listing(files, problems, list(dict.fromkeys(folders))), [notice]


def spelt_alike(arranged: Arranged) -> Arranged:
    """The same with one class for names that differ only in case, blanks, `_` or `-`, each on other sides of the split.

    Otherwise no class of the test would be learnt. Where two spellings lie on one side, they are kept apart, as
    without a split.
    """
    listing, given = arranged.listing, arranged.given
    if given is None:
        return arranged
    side_of: dict[str, str | int] = {**given.sides, **given.folds}
    sides: dict[str, Counter[str | int]] = defaultdict(Counter)  # class → its recordings on each side
    for file in listing.files:
        sides[file.label][side_of.get(file.name, "")] += 1
    alike: dict[str, list[str]] = defaultdict(list)
    for label in sorted(sides):
        if not is_negative(label):
            alike[folded(label)].append(label)
    groups = [
        sorted(names, key=lambda name: (-sides[name]["train"], -sides[name].total(), name))
        for names in alike.values()
        if len(names) > 1 and "" not in (all_sides := [side for name in names for side in sides[name]])
        and len(set(all_sides)) == len(all_sides)
    ]  # fmt: skip
    if not groups:
        return arranged
    new = {name: names[0].strip() for names in groups for name in names}
    files = [_renamed(file, new) for file in listing.files]
    counts = Counter((file.label, file.below) for file in files)
    files = [replace(file, below=file.name) if counts[file.label, file.below] > 1 else file for file in files]
    problems = [replace(problem, label=new.get(problem.label, problem.label)) for problem in listing.problems]
    folders = sorted({new.get(name, name) for name in listing.folders})
    notices = [
        f'Classes {quoted(names)} differ only in case, blanks, "_" or "-", and each lies on other sides of the split: '
        f'they are taken for one class, "{names[0].strip()}".'
        for names in groups
    ]
    return replace(arranged, listing=Listing(files, problems, folders), notices=[*arranged.notices, *notices])


def _renamed(file: SoundFile, new: Mapping[str, str]) -> SoundFile:
    labels = tuple(replace(label, class_name=new.get(label.class_name, label.class_name)) for label in file.labels)
    return replace(file, label=new.get(file.label, file.label), labels=labels)


_Side = TypeVar("_Side")


def each_channel(listing: Listing, given: Given | None) -> tuple[Listing, Given | None]:
    """Each channel as a file of its own, for --audio.channels each, and the split of these.

    `wood.wav` with two channels becomes `wood.wav#1` and `wood.wav#2`. A file of one channel keeps its name, and so
    does one that cannot be opened.
    """
    channels = {file.name: _channels(file) for file in listing.files}
    files = [one for file in listing.files for one in channels[file.name]]
    if given is not None:
        given = replace(given, sides=_for_all(given.sides, channels), folds=_for_all(given.folds, channels))
    return replace(listing, files=files), given


def _channels(file: SoundFile) -> list[SoundFile]:
    n_channels = count_channels(file.path)
    if n_channels == 1:
        return [file]
    # The source recording is that of the file.
    below = file.name.partition("/")[2] if file.below is None else file.below
    return [replace(file, name=f"{file.name}#{k + 1}", channel=k, below=below) for k in range(n_channels)]


def _for_all(sides: Mapping[str, _Side], channels: Mapping[str, Sequence[SoundFile]]) -> dict[str, _Side]:
    return {one.name: side for name, side in sides.items() for one in channels.get(name, ())}


def _families(paths: Sequence[list[str]], level: int) -> list[str]:
    """A notice where the folders in class folders look like the classes.

    Args:
        paths: the folders of each recording, without that of its side.
    """
    deeper = [path[level - 1 :] for path in paths if len(path) >= level]
    # The deepest folders that look like classes, where most of them lie.
    inner = max((_inner_names(deeper, depth) for depth in range(_DEEPEST_FAMILY, 0, -1)), key=len)
    if not inner:
        return []
    example, inside = inner[0][:-1], inner[0][-1]
    return [
        f'Folders in {quoted(sorted({_label(path[0]) for path in inner}))} look like classes, but the class is named '
        f'by the folder above: "{shown("/".join([*example, inside]))}" is of the class "{_label(example[0])}". If it '
        f'is to be of "{_label(inside)}": --labels.level {level + len(example)}.'
    ]


def _inner_names(paths: Sequence[list[str]], depth: int) -> list[list[str]]:
    """The folders that look like classes, in folders of this depth that hold no sound themselves."""
    inside: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for path in paths:
        if len(path) >= depth:
            inside[tuple(path[:depth])].add(path[depth] if len(path) > depth else "")
    places = Counter(name for names in inside.values() for name in names)
    inner = []
    for above, names in sorted(inside.items()):
        of_place = is_place(above[-1])
        fit = {name for name in names if not is_no_name(name)
               and (of_place or places[name] == 1 or SCIENTIFIC.fullmatch(name))}  # fmt: skip
        is_family = len(fit) > 1 or any(map(SCIENTIFIC.fullmatch, fit))
        if is_family and len(fit) >= _MOST_FIT * len(names) and not any(map(SCIENTIFIC.fullmatch, above)):
            inner += [[*above, name] for name in sorted(fit)]
    return inner
