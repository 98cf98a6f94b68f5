"""Labels by a table in place of folders, without times: which class each recording is of.

    labels.csv | --labels.table ─▶ find ─▶ LabelTable
    Listing + LabelTable ─▶ apply ─▶ Arranged: the Listing with the table's classes, its split, sentences to say

A row of the table names a recording by its path below the data folder, or by an end of that; where the
endings differ, as after a conversion, by the name without it.
"""

import os
import shlex
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from birdtune.config import Config
from birdtune.dataset.class_names import quoted
from birdtune.dataset.layout import Arranged, given_by_folders
from birdtune.dataset.recordings import Listing, Problem, SoundFile
from birdtune.dataset.split import SPELLINGS, Given
from birdtune.dataset.tables import LABEL_NAMES, RECORDING_NAMES, likely_columns
from birdtune.errors import InputError, SettingsError, shown
from birdtune.files import read_csv, require_file
from birdtune.sound.container import FOREIGN_ENDINGS, SOUND_ENDINGS

TABLE_NAME = "labels.csv"
_KEYS = ("recording", "label", "split", "fold")
_EXPECTED = "a CSV `recording,label`, or with other columns by --labels.columns recording=NAME,label=NAME"


@dataclass(frozen=True)
class LabelTable:
    """What a table of labels says."""

    path: Path
    labels: Mapping[str, tuple[str, ...]]  # recording as listed → its classes, each once; () where the cell is empty
    sides: Mapping[str, str]  # recording as listed → train, val or test
    folds: Mapping[str, int]  # recording as listed → fold
    notices: tuple[str, ...] = ()


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
    if config.labels.table is not None:
        path = Path(config.labels.table)
        require_file(path, "--labels.table", _EXPECTED)
        return read(path, columns), []
    places = (config.data_folder / TABLE_NAME, config.input / TABLE_NAME)
    found = [path for path in places if os.path.lexists(path)]
    if len(found) > 1:
        raise InputError(f"{shown(found[0])} and {shown(found[1])}: which one counts? Name it: --labels.table CSV.")
    if not found:
        if columns:
            raise SettingsError("--labels.columns names columns of a table of labels; name that: --labels.table CSV.")
        return None, []
    try:
        return read(found[0], columns), []
    except _NoSuchColumnError as fault:
        if columns:
            raise
        return None, [f"Not used as a table of labels, so folders name the classes: {fault}"]


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


def read(path: Path, columns: Mapping[str, str]) -> LabelTable:
    """Read a table of labels.

    Args:
        columns: as of `parse_columns`; a key that is not in it is the name of the column itself.

    Raises:
        InputError: it cannot be read, lacks a column, or says of a recording two sides of the split.
    """
    rows = read_csv(path, what="a table of labels")
    header = list(rows[0]) if rows else []
    name = {key: columns.get(key, key) for key in _KEYS}
    needed = ["recording", "label", *(key for key in ("split", "fold") if key in columns)]
    if missing := [name[key] for key in needed if name[key] not in header]:
        raise _NoSuchColumnError(
            f"{shown(path)}: has no column {quoted(missing)}; its columns are {quoted(header) or '(none)'}. Expected "
            f"{_EXPECTED}.{_guess(header)}"
        )
    labels: dict[str, dict[str, None]] = defaultdict(dict)
    for row in rows:
        recording, label = _recording_name(row[name["recording"]]), unicodedata.normalize("NFC", row[name["label"]])
        if recording:
            labels[recording] |= {shown(label.strip()): None} if label.strip() else {}
    sides, folds, notices = _split(path, rows, name, columns)
    return LabelTable(path, {key: tuple(found) for key, found in labels.items()}, sides, folds, notices)


def _guess(header: Sequence[str]) -> str:
    guess = likely_columns(header)
    if guess is None:
        return f" Columns of that kind are called {', '.join(RECORDING_NAMES[:4])}; {', '.join(LABEL_NAMES[:4])}."
    return f" Probably: --labels.columns {shlex.quote(shown(f'recording={guess[0]},label={guess[1]}'))}"


def _recording_name(cell: str) -> str:
    return unicodedata.normalize("NFC", cell.strip().removeprefix("./"))


def _split(
    path: Path, rows: Sequence[Mapping[str, str]], name: Mapping[str, str], columns: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, int], tuple[str, ...]]:
    """The split that the table has: sides, folds, and what is said of columns that are no split."""
    notices: list[str] = []
    for key in ("split", "fold"):
        if name[key] not in rows[0]:
            continue
        cells = [(_recording_name(row[name["recording"]]), row[name[key]].strip()) for row in rows]
        cells = [(recording, cell) for recording, cell in cells if recording and cell]
        wrong = next((cell for _, cell in cells if not _is_side(key, cell)), None)
        if wrong is not None or not cells:
            expected = "train, val or test" if key == "split" else "a whole number"
            said = f"{shown(path)}, column {shown(name[key])}: holds {shown(wrong or '')!r}; expected {expected}."
            if key in columns:
                raise InputError(said)
            notices.append(f"No split: {said}")
            continue
        found: dict[str, str] = {}
        for recording, cell in cells:
            if found.setdefault(recording, cell) != cell:
                raise InputError(f"{shown(path)}: {shown(recording)} stands there twice, on two sides. Keep one.")
        if key == "split":
            return {recording: SPELLINGS[cell.lower()] for recording, cell in found.items()}, {}, tuple(notices)
        return {}, {recording: int(cell) for recording, cell in found.items()}, tuple(notices)
    return {}, {}, tuple(notices)


def _is_side(key: str, cell: str) -> bool:
    return cell.lower() in SPELLINGS if key == "split" else cell.isdecimal() and len(cell) < 5


# ---- files and rows -------------------------------------------------------------------------------------------------


def apply(listing: Listing, table: LabelTable, title: str, root: Path) -> Arranged:
    """The same files with the classes that the table says; those of which it says none, or several, are problems.

    Args:
        listing: of `recordings.scan`, flat.
        title: what the data folder is called in messages.
        root: the data folder.

    Raises:
        InputError: the table lists none of the files.
    """
    row_of = _rows_of(listing.files, table.labels)
    shared = {row for row, count in Counter(row_of.values()).items() if count > 1} - set(row_of)
    if not row_of:
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
        row = row_of.get(file.name, "")
        labels = table.labels.get(row, ())
        if row in shared:
            detail = f"{where} lists {shown(row)}, the end of several names; give its path below the data folder"
            problems.append(Problem(file.name, "", "no-label", detail))
        elif len(labels) == 1:
            files.append(replace(file, label=labels[0], below=file.name))
        elif labels:
            detail = f"{where} gives it {len(labels)} classes: {quoted(labels)}"
            problems.append(Problem(file.name, "", "several-labels", detail))
        else:
            detail = f"{where} {'has no class in its row' if file.name in row_of else 'does not list it'}"
            problems.append(Problem(file.name, "", "no-label", detail))
    used = set(row_of.values())
    problems += [
        Problem(shown(name), ", ".join(labels), "row-without-file", f"{where} lists it, and there is no such recording")
        for name, labels in table.labels.items()
        if name not in used
    ]
    classes = sorted({file.label for file in files})
    given, said = _given(table, row_of, listing, title)
    notices = [_said(table, listing.files, files, classes), *said, *table.notices]
    return Arranged(Listing(files, problems, classes), given, notices)


def _rows_of(files: Sequence[SoundFile], listed: Iterable[str]) -> dict[str, str]:
    """Name of a file → how the table calls it; what could be several rows is left out."""
    found: dict[str, str] = {}
    # Without endings only what nothing fits with it: after a conversion, or where the table has none.
    for bare in (False, True):
        used = set(found.values())
        entries = {_key(entry, bare): entry for entry in listed if entry not in used}
        by_last: dict[str, list[str]] = defaultdict(list)
        for key in entries:
            by_last[key.rpartition("/")[2]].append(key)
        for file in files:
            if file.name not in found:
                key = _key(file.name, bare)
                fit = [key] if key in entries else [
                    entry for entry in by_last.get(key.rpartition("/")[2], ())
                    if key.endswith(f"/{entry}") or entry.endswith(f"/{key}")
                ]  # fmt: skip
                found |= {file.name: entries[fit[0]]} if len(fit) == 1 else {}
    return found


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
    table: LabelTable, row_of: Mapping[str, str], listing: Listing, title: str
) -> tuple[Given | None, list[str]]:
    """The split that the table has, else the one that the folders have."""
    where = shown(table.path)
    sides = {name: table.sides[row] for name, row in row_of.items() if row in table.sides}
    folds = {name: table.folds[row] for name, row in row_of.items() if row in table.folds}
    if sides or folds:
        column = "train, val and test" if sides else f"{len(set(folds.values()))} folds"
        said = f"{where} also divides the recordings, by {column}; another split is obeyed by --split.file."
        return Given(where, sides, folds), [said]
    found = given_by_folders(listing, title)
    return (found[0], [found[1]]) if found is not None else (None, [])


def _said(table: LabelTable, listed: Sequence[SoundFile], files: Sequence[SoundFile], classes: Sequence[str]) -> str:
    said = (
        f"{shown(table.path)} says the class of {len(files):,} of {len(listed):,} recordings, {len(classes):,} classes "
        "in all; names of folders do not count."
    )
    folder_of = {file.name: file.label for file in listed}
    named = sum(folder_of[file.name] == file.label for file in files)
    other = [file for file in files if folder_of[file.name] != file.label]
    if named and other:
        said += (
            f" {len(other):,} recordings lie in a folder of another name than their class: {other[0].name} for one is "
            f'of "{other[0].label}".'
        )
    return said
