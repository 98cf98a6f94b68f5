"""Labels by a table in place of folders: which classes are in each recording, and when if the table has times.

    labels.csv | --labels.table ─▶ find ─▶ LabelTable
    Listing + LabelTable ─▶ apply ─▶ Arranged: the Listing with the table's labels, its split, sentences to say

A row of the table names a recording by its path below the data folder, or by an end of that; where the
endings differ, as after a conversion, by the name without it.
"""

import math
import os
import shlex
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from birdtune.audio.container import FOREIGN_ENDINGS, SOUND_ENDINGS
from birdtune.config import Config
from birdtune.data.class_names import quoted
from birdtune.data.labels import Label, class_names_of
from birdtune.data.layout import Arranged, given_by_folders
from birdtune.data.scan import Listing, Problem, SoundFile
from birdtune.data.split import Given
from birdtune.data.tables import (
    LABEL_NAMES,
    RECORDING_NAMES,
    SIDE_WORDS,
    fold_of,
    likely_columns,
    sides_of,
    time_columns,
    with_names,
)
from birdtune.errors import InputError, SettingsError, shown
from birdtune.runtime.files import read_csv, require_file
from birdtune.runtime.text import count

TABLE_NAME = "labels.csv"
_TIMES = ("start_s", "end_s")
_KEYS = ("recording", "label", "split", "fold", *_TIMES, "low_hz", "high_hz", "weight")
_EXPECTED = (
    "a CSV `recording,label` or `recording,start_s,end_s,label`, or with other columns by --labels.columns "
    "recording=NAME,label=NAME"
)
_MOST_WEIGHT = 100.0

_EXPECTED_SIDES = {"split": SIDE_WORDS, "fold": "the whole number of a fold"}


@dataclass(frozen=True)
class LabelTable:
    """What a table of labels says."""

    path: Path
    labels: Mapping[str, tuple[Label, ...]]  # recording as listed → its labels, each once; () where the cell is empty
    sides: Mapping[str, str]  # recording as listed → train, val or test
    folds: Mapping[str, int]  # recording as listed → fold
    notices: tuple[str, ...] = ()
    times: tuple[str, ...] = ()  # columns that may be times in a recording, and are not used
    invalid: Mapping[str, Sequence[str]] = field(default_factory=dict)  # recording as listed → rows that are no label


class _NoSuchColumnError(InputError):
    """A table lacks the columns of a table of labels; it may be another one."""


def find(config: Config) -> tuple[LabelTable | None, list[str]]:
    """The table that names the classes, if there is one: as the setting says, or in the data folder or the input.

    Returns:
        the table, and what is said of a labels.csv that is none.

    Raises:
        SettingsError: --labels.columns cannot be read, or is given without a table.
        InputError: the table cannot be read, or lacks its columns.
    """
    columns = parse_columns(config.labels.columns)
    obeyed = config.split.file is None
    if config.labels.table is not None:
        path = Path(config.labels.table)
        require_file(path, "--labels.table", _EXPECTED)
        return read(path, columns, obeyed=obeyed), []
    folders = {os.path.realpath(folder): folder for folder in (config.input, config.data_folder)}
    found = [path for folder in reversed(folders.values()) for path in _named_so(folder)]
    if len(found) > 1:
        raise InputError(f"{shown(found[0])} and {shown(found[1])}: which one counts? Name it: --labels.table CSV.")
    if not found:
        if columns:
            raise SettingsError("--labels.columns names columns of a table of labels; name that: --labels.table CSV.")
        return None, []
    try:
        return read(found[0], columns, obeyed=obeyed), []
    except _NoSuchColumnError as fault:
        if columns:
            raise
        return None, [f"Not used as a table of labels, so folders name the classes: {fault}"]


def _named_so(folder: Path) -> list[Path]:
    """Tables of labels in a folder, whatever the case of their name; [] where it cannot be listed."""
    try:
        return sorted(path for path in folder.iterdir() if path.name.casefold() == TABLE_NAME)
    except OSError:
        return []


def parse_columns(text: str | None) -> dict[str, str]:
    """`recording=filename,label=category` → what each column is called in the table. Raises SettingsError."""
    found: dict[str, str] = {}
    for part in filter(None, (text or "").split(",")):
        key, equals, name = (piece.strip() for piece in part.partition("="))
        if key not in _KEYS or not equals or not name or key in found:
            raise SettingsError(
                f"--labels.columns {shown(text)}: {shown(part.strip())!r} is not understood; expected each of "
                f"{', '.join(_KEYS)} at most once, e.g. recording=filename,label=category."
            )
        found[key] = name
    return found


def read(path: Path, columns: Mapping[str, str], *, obeyed: bool = True) -> LabelTable:
    """Read a table of labels.

    Args:
        columns: as of `parse_columns`; a key that is not in it is the name of the column itself.
        obeyed: whether its split counts; else what is wrong with that does not matter.

    Raises:
        InputError: it cannot be read, lacks a column, or says of a recording two sides of the split, or what is none.
    """
    name = {key: columns.get(key, key) for key in _KEYS}
    rows = with_names(read_csv(path, what="a table of labels"), list(name.values()))
    header = list(rows[0]) if rows else []
    needed = ["recording", "label", *(key for key in _KEYS[2:] if key in columns)]
    has_times = all(name[key] in header for key in _TIMES)
    if not has_times:
        needed += [key for key in _TIMES if key not in needed and columns.keys() & set(_TIMES)]
    if missing := [name[key] for key in needed if name[key] not in header]:
        raise _NoSuchColumnError(
            f"{shown(path)}: has no column {quoted(missing)}; its columns are {quoted(header) or '(none)'}. Expected "
            f"{_EXPECTED}.{_guess(header)}"
        )
    labels: dict[str, dict[Label, None]] = defaultdict(dict)
    invalid: dict[str, list[str]] = defaultdict(list)
    numbers = {key: name[key] for key in _KEYS[4:] if name[key] in header and (has_times or key not in _TIMES)}
    for number, row in enumerate(rows, start=2):
        recording = _recording_name(row[name["recording"]])
        class_name = shown(unicodedata.normalize("NFC", row[name["label"]]).strip())
        if not recording:
            continue
        found = labels[recording]
        if class_name:
            label = _label(class_name, {key: row[column].strip() for key, column in numbers.items()})
            if isinstance(label, Label):
                found[label] = None
            else:
                invalid[recording].append(f"row {number:,}, {class_name}: {label}")
    sides, folds, notices = _split(path, rows, name, columns, obeyed=obeyed)
    unused = () if has_times else time_columns(header)
    return LabelTable(path, {key: tuple(some) for key, some in labels.items()}, sides, folds, notices, unused, invalid)


def _label(class_name: str, cells: Mapping[str, str]) -> Label | str:
    """The label of a row, or what is wrong with it.

    Args:
        cells: of `start_s`, `end_s`, `low_hz`, `high_hz` and `weight`, as far as the table has them.
    """
    values: dict[str, float] = {}
    for key, cell in cells.items():
        if not cell:
            continue
        try:
            values[key] = float(cell.replace(",", "."))  # as spreadsheets write numbers in much of Europe
        except ValueError:
            return f"{key} is {shown(cell)!r}, expected a number"
        if not math.isfinite(values[key]) or values[key] < 0:
            return f"{key} is {shown(cell)}, expected a number from 0 on"
    for first, last in (_TIMES, ("low_hz", "high_hz")):
        if first in values and last in values and values[first] >= values[last]:
            return f"{first} is {values[first]:g} and {last} {values[last]:g}, expected a larger {last}"
    if (_TIMES[0] in values) != (_TIMES[1] in values):
        return "start_s or end_s is empty, expected both or none"
    if not 0 < values.get("weight", 1.0) <= _MOST_WEIGHT:
        return f"weight is {values['weight']:g}, expected more than 0, up to {_MOST_WEIGHT:g}"
    return Label(class_name, **values)


def _guess(header: Sequence[str]) -> str:
    guess = likely_columns(header)
    if guess is None:
        return f" Columns of that kind are called {', '.join(RECORDING_NAMES[:4])}; {', '.join(LABEL_NAMES[:4])}."
    return f" Probably: --labels.columns {shlex.quote(shown(f'recording={guess[0]},label={guess[1]}'))}"


def _recording_name(cell: str) -> str:
    return unicodedata.normalize("NFC", cell.strip().removeprefix("./"))


def _split(
    path: Path, rows: Sequence[Mapping[str, str]], name: Mapping[str, str], columns: Mapping[str, str], *, obeyed: bool
) -> tuple[dict[str, str], dict[str, int], tuple[str, ...]]:
    """The split that the table has: sides, folds, and what is said of columns that are no split."""
    notices: list[str] = []
    for key in ("split", "fold"):
        if not rows or name[key] not in rows[0]:
            continue
        cells = [(number, _recording_name(row[name["recording"]]), row[name[key]].strip())
                 for number, row in enumerate(rows, start=2)]  # fmt: skip
        cells = [(number, recording, cell) for number, recording, cell in cells if recording and cell]
        meant = _meant(key, {cell for _, _, cell in cells})
        wrong = next(((number, cell) for number, _, cell in cells if cell not in meant), None)
        where = f"{shown(path)}, column {shown(name[key])}"
        if not cells:
            if key in columns:
                raise InputError(f"{where}: is empty; expected {_EXPECTED_SIDES[key]}.")
            notices.append(f"No split: {where} is empty.")
            continue
        if wrong is not None and obeyed:
            raise InputError(
                f"{where}, row {wrong[0]:,}: holds {shown(wrong[1])!r}; expected {_EXPECTED_SIDES[key]}. Nothing is "
                "guessed, as recordings of the test might be trained on. A recording that is not to be used has no "
                "row; one without a word here is divided as usual. If this column is no split, rename it; a column of "
                "folds is named by --labels.columns fold=NAME."
            )
        if wrong is not None:
            continue
        found: dict[str, str | int] = {}
        for _, recording, cell in cells:
            if found.setdefault(recording, meant[cell]) != meant[cell]:
                raise InputError(_twice(path, recording))
        sides = {recording: side for recording, side in found.items() if isinstance(side, str)}
        return sides, {recording: side for recording, side in found.items() if isinstance(side, int)}, tuple(notices)
    return {}, {}, tuple(notices)


def _meant(key: str, cells: Iterable[str]) -> dict[str, str | int]:
    if key == "split":
        return dict(sides_of(cells))
    return {cell: fold for cell in cells if (fold := fold_of(cell, number=True)) is not None}


def _twice(path: Path, recording: str) -> str:
    return f"{shown(path)}: {shown(recording)} stands there twice, on two sides. Keep one."


# ---- files and rows -------------------------------------------------------------------------------------------------


def apply(listing: Listing, table: LabelTable, title: str, root: Path, *, one_class: bool = False) -> Arranged:
    """The same files with the labels that the table has; those of which it has none are problems.

    Args:
        one_class: whether those with several classes are problems, too.
        listing: of `scan.scan`, flat.
        title: what the data folder is called in messages.
        root: the data folder.

    Raises:
        InputError: the table lists none of the files.
    """
    matched = _match(listing.files, table.labels)
    rows_of = matched.rows_of
    if not rows_of and not matched.vague:
        example = listing.files[0].name if listing.files else "one.wav"
        listed = next(iter(table.labels), "(nothing)")
        raise InputError(
            f"{shown(table.path)}: lists none of the recordings in {title}. It names {shown(listed)}, where {example} "
            "was found. Expected paths below the data folder, or ends of them."
        )
    where = shown(table.path)
    files: list[SoundFile] = []
    problems = [problem for problem in listing.problems if problem.recording != _name_below(table.path, root)]
    problems = [replace(problem, label="") for problem in problems]
    for file in listing.files:
        rows = rows_of.get(file.name, ())
        labels = tuple(dict.fromkeys(label for row in rows for label in table.labels[row]))
        classes = class_names_of(labels)
        if invalid := [why for row in rows for why in table.invalid.get(row, ())]:
            detail = f"{where}: {len(invalid):,} of its rows are no label, e.g. {invalid[0]}"
            problems.append(Problem(file.name, ", ".join(classes), "invalid-label", detail, used=bool(labels)))
        contradict = len({class_names_of(table.labels[row]) for row in rows}) > 1  # rows of several names
        if len(classes) > 1 and (one_class or contradict):
            problems.append(_several(file, rows, classes, table))
        elif labels:
            plain = labels == (Label(classes[0]),)
            label = ", ".join(classes)
            files.append(replace(file, label=label, labels=() if plain else labels, below=file.name))
        elif invalid:
            continue
        elif rows:
            problems.append(Problem(file.name, "", "no-label", f"{where} has no class in its row"))
        elif row := matched.vague.get(file.name):
            detail = f"{where} lists {shown(row)}, the end of several names; give its path below the data folder"
            problems.append(Problem(file.name, "", "no-label", detail))
        else:
            problems.append(Problem(file.name, "", "no-label", f"{where} does not list it"))
    problems += [
        Problem(shown(name), ", ".join(class_names_of(table.labels[name])), "row-without-file",
                f"{where} lists it, and there is no such recording")
        for name in matched.unused
    ]  # fmt: skip
    every_class = sorted({name for file in files for name in file.classes})
    given, said = _given(table, rows_of, listing, title)
    notices = [_said(table, listing.files, files, every_class), *_said_of_times(table, files), *said, *table.notices]
    return Arranged(Listing(files, problems, every_class), given, notices)


def _several(file: SoundFile, rows: Sequence[str], labels: Sequence[str], table: LabelTable) -> Problem:
    detail = f"{shown(table.path)} gives it {len(labels)} classes: {quoted(labels)}"
    if len(rows) > 1:
        detail += f", by rows of several names: {quoted(rows)}"
    return Problem(file.name, "", "several-labels", detail)


def _said_of_times(table: LabelTable, files: Sequence[SoundFile]) -> list[str]:
    if timed := [file for file in files if any(label.has_times for label in file.labels)]:
        labels = sum(label.has_times for file in timed for label in file.labels)
        return [
            f"{count(labels, 'label')} with times in {count(len(timed), 'recording')}: elsewhere in these recordings, "
            "the annotated classes are absent."
        ]
    if len(table.times) < 2:
        return []
    start, end = (shown(name) for name in table.times)
    return [
        f"{shown(table.path)} has the columns {quoted(table.times)}, which may be times and are not used: each label "
        f"holds for its whole recording. To use them: --labels.columns {shlex.quote(f'start_s={start},end_s={end}')}."
    ]


@dataclass(frozen=True)
class _Matched:
    """Which rows are of which files."""

    rows_of: Mapping[str, Sequence[str]]  # name of a file → names in the table
    vague: Mapping[str, str]  # name of a file → a row that may be it or another one
    unused: Sequence[str]  # rows of no file


def _match(files: Sequence[SoundFile], listed: Iterable[str]) -> _Matched:
    """Find the files of each row: by the whole name, else by an end of it, else without its ending.

    Of the files that fit, one that no row fits better is taken before one that has its row; two rows of one file are
    both kept, as they may contradict each other.
    """
    rows_of: dict[str, list[str]] = defaultdict(list)
    vague: dict[str, str] = {}
    left = list(listed)
    for bare in (False, True):
        by_key: dict[str, list[str]] = defaultdict(list)
        by_last: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for file in files:
            key = _key(file.name, bare)
            by_key[key].append(file.name)
            by_last[key.rpartition("/")[2]].append((key, file.name))
        for whole in (True, False):
            taken, rest = set(rows_of), []
            for row in left:
                key = _key(row, bare)
                fit = by_key.get(key, []) if whole else [
                    name for other, name in by_last.get(key.rpartition("/")[2], ())
                    if key.endswith(f"/{other}") or other.endswith(f"/{key}")
                ]  # fmt: skip
                fit = [name for name in fit if name not in taken] or fit
                if len(fit) == 1:
                    rows_of[fit[0]].append(row)
                elif fit and not taken.issuperset(fit):
                    vague |= dict.fromkeys(fit, row)
                else:
                    rest.append(row)
            left = rest
    return _Matched(rows_of, vague, left)


def _key(name: str, bare: bool) -> str:
    """A name as it is compared: with slashes, and without its ending if `bare`."""
    name = unicodedata.normalize("NFC", name).replace("\\", "/")
    stem, dot, ending = name.rpartition(".")
    return stem if bare and f"{dot}{ending}".lower() in SOUND_ENDINGS | FOREIGN_ENDINGS else name


def _name_below(path: Path, root: Path) -> str:
    """How a file is called in the listing of the data folder; "" outside of it."""
    real = Path(os.path.realpath(path))
    return shown(real.relative_to(root)) if real.is_relative_to(root := Path(os.path.realpath(root))) else ""


def _given(
    table: LabelTable, rows_of: Mapping[str, Sequence[str]], listing: Listing, title: str
) -> tuple[Given | None, list[str]]:
    """The split that the table has, else the one that the folders have."""
    where = shown(table.path)
    sides: dict[str, str] = {}
    folds: dict[str, int] = {}
    for name, rows in rows_of.items():
        for row in rows:
            if row in table.sides and sides.setdefault(name, table.sides[row]) != table.sides[row]:
                raise InputError(_twice(table.path, name))
            if row in table.folds and folds.setdefault(name, table.folds[row]) != table.folds[row]:
                raise InputError(_twice(table.path, name))
    if sides or folds:
        column = "train, val and test" if sides else count(len(set(folds.values())), "fold")
        said = f"{where} also divides the recordings, by {column}; another split is obeyed by --split.file."
        return Given(where, sides, folds), [said]
    found = given_by_folders(listing, title)
    return (found[0], [found[1]]) if found is not None else (None, [])


def _said(table: LabelTable, listed: Sequence[SoundFile], files: Sequence[SoundFile], classes: Sequence[str]) -> str:
    said = (
        f"{shown(table.path)} says the class of {len(files):,} of {len(listed):,} recordings, "
        f"{count(len(classes), 'class')} in all; names of folders do not count."
    )
    folder_of = {file.name: file.label for file in listed}
    named = sum(folder_of[file.name] == file.label for file in files)
    other = [file for file in files if folder_of[file.name] != file.label]
    if named and other:
        said += (
            f" In a folder of another name than the class: {count(len(other), 'recording')}, {other[0].name} for one, "
            f'which is of "{other[0].label}".'
        )
    return said
