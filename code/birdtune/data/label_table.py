"""A table of labels in place of folders: which classes are in each recording, and when if the table has times.

    labels.csv | --labels.table ─▶ find ─▶ LabelTable, which `labelling.apply` brings to the files
"""

import os
import shlex
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from birdtune.config import Config
from birdtune.data.annotations.rows import NUMBERS, TIMES, label_of
from birdtune.data.annotations.table import end_after, secondary_of
from birdtune.data.class_names import quoted
from birdtune.data.labelling import LabelRow, LabelTable, twice
from birdtune.data.labels import IGNORED, Label
from birdtune.data.tables import (
    LABEL_NAMES,
    RECORDING_NAMES,
    SIDE_WORDS,
    fold_of,
    likely_columns,
    sides_of,
    time_columns,
    times_setting,
    with_names,
)
from birdtune.data.taxonomy import Taxonomy
from birdtune.errors import InputError, SettingsError, shown
from birdtune.runtime.files import read_csv, require_file

TABLE_NAME = "labels.csv"
_DURATION = "duration_s"  # in place of an end
_KEYS = ("recording", "label", "split", "fold", *NUMBERS, _DURATION)
_SECONDARY = "secondary_labels"
_SHORT = {"start": "start_s", "end": "end_s", "duration": _DURATION}
_EXPECTED = (
    "a CSV `recording,label` or `recording,start_s,end_s,label`, or with other columns by --labels.columns "
    "recording=NAME,label=NAME"
)

_EXPECTED_SIDES = {"split": SIDE_WORDS, "fold": "the whole number of a fold"}


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
    taxonomy, group = Taxonomy.of(config), config.split.group_column
    obeyed = config.split.file is None
    if config.labels.table is not None:
        path = Path(config.labels.table)
        require_file(path, "--labels.table", _EXPECTED)
        return read(path, columns, obeyed=obeyed, taxonomy=taxonomy, group_column=group), []
    folders = {os.path.realpath(folder): folder for folder in (config.input, config.data_folder)}
    found = [path for folder in reversed(folders.values()) for path in _named_so(folder)]
    if len(found) > 1:
        raise InputError(f"{shown(found[0])} and {shown(found[1])}: which one counts? Name it: --labels.table CSV.")
    if not found:
        return None, []
    try:
        return read(found[0], columns, obeyed=obeyed, taxonomy=taxonomy, group_column=group), []
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
        key = _SHORT.get(key, key)
        if key not in _KEYS or not equals or not name or key in found:
            raise SettingsError(
                f"--labels.columns {shown(text)}: {shown(part.strip())!r} is not understood; expected each of "
                f"{', '.join(_KEYS)} at most once, e.g. recording=filename,label=category."
            )
        found[key] = name
    return found


def read(
    path: Path, columns: Mapping[str, str], *, obeyed: bool = True, taxonomy: Taxonomy | None = None,
    group_column: str | None = None,
) -> LabelTable:  # fmt: skip
    """Read a table of labels.

    Args:
        columns: as of `parse_columns`; a key that is not in it is the name of the column itself.
        obeyed: whether its split counts; else what is wrong with that does not matter.
        taxonomy: what its labels are called in training.
        group_column: that names the source recording.

    Raises:
        InputError: it cannot be read, lacks a column, or says of a recording two sides of the split, or what is none.
    """
    name = {key: columns.get(key, key) for key in _KEYS}
    read_as = list[str]()
    given = read_csv(path, what="a table of labels", notes=read_as)
    rows = with_names(given, [*name.values(), _SECONDARY, *filter(None, [group_column])])
    header = list(rows[0]) if rows else []
    needed = ["recording", "label", *(key for key in _KEYS[2:] if key in columns)]
    lasts = name["end_s"] not in header and name[_DURATION] in header
    times = ("start_s", _DURATION) if lasts or _DURATION in columns else TIMES
    has_times = all(name[key] in header for key in times)
    if not has_times:
        needed += [key for key in times if key not in needed and columns.keys() & {*TIMES, _DURATION}]
    if missing := [name[key] for key in needed if name[key] not in header]:
        raise _NoSuchColumnError(
            f"{shown(path)}: has no column {quoted(missing)}; its columns are {quoted(header) or '(none)'}. Expected "
            f"{_EXPECTED}.{_guess(header)}"
        )
    if group_column and group_column not in header:
        raise InputError(
            f"{shown(path)}: has no column {shown(group_column)!r} (--split.group-column); its columns are "
            f"{quoted(header)}."
        )
    numbers = {key: name[key] for key in NUMBERS if name[key] in header and (has_times or key not in TIMES)}
    found, groups = list[LabelRow](), dict[str, str]()
    for number, row in enumerate(rows, start=2):
        recording = _recording_name(row[name["recording"]])
        if not recording:
            continue
        cells = {key: row[column].strip() for key, column in numbers.items()}
        if has_times and _DURATION in times:
            cells["end_s"] = end_after(cells["start_s"], row[name[_DURATION]].strip())
        also = secondary_of(row.get(_SECONDARY, ""))
        origin = f"{shown(path.name)}, row {number:,}"
        found.append(row_of(origin, recording, row[name["label"]], cells, taxonomy, also))
        group = row[group_column].strip() if group_column else ""
        if group and groups.setdefault(recording, group) != group:
            raise InputError(twice(shown(path), recording, f"two values of {shown(group_column)}"))
    sides, folds, notices = _split(path, rows, name, columns, obeyed=obeyed)
    unused = [] if has_times else unused_times(path, time_columns(header))
    return LabelTable(
        shown(path), (path,), tuple(found), frozenset(), sides, folds, groups,
        (*read_as, *unused, *notices, *(taxonomy.notices() if taxonomy else ())),
    )  # fmt: skip


def row_of(
    origin: str, recording: str, class_name: str, cells: Mapping[str, str], taxonomy: Taxonomy | None = None,
    also: Sequence[str] = (),
) -> LabelRow:  # fmt: skip
    """What one row says.

    Args:
        origin: its file and number.
        class_name, cells, also: as of a `rows.Row`.
        taxonomy: what labels are called in training; None: as they stand.
    """
    taxonomy = taxonomy or Taxonomy({})
    written = shown(unicodedata.normalize("NFC", class_name).strip())
    found = label_of(taxonomy.class_of(written), cells)
    if not isinstance(found, Label):
        return LabelRow(origin, recording, (), "row-invalid", f"{written}: {found}" if written else found)
    if found.class_name != IGNORED:
        label = replace(found, origin=origin)
        others = (taxonomy.class_of(shown(unicodedata.normalize("NFC", other))) for other in also)
        behind = (Label(other, found.start_s, found.end_s, weight=0.0)
                  for other in others if other not in (IGNORED, label.class_name))  # fmt: skip
        return LabelRow(origin, recording, (label, *behind))
    # Something was marked there: whatever it is, it is no proof that nothing is.
    masked = (found,) if found.has_times else ()
    if taxonomy.knows(written):
        return LabelRow(origin, recording, masked, "row-ignored")
    why = f"{found.start_s:g} to {found.end_s:g} s: has no class" if masked else ""
    return LabelRow(origin, recording, masked, "row-without-label", why)


def unused_times(path: Path, times: Sequence[str]) -> list[str]:
    """A notice of columns of a table that may be when labels begin and end, and are not used."""
    if len(times) < 2:
        return []
    setting = shown(times_setting(*times))
    how = f"--labels.columns {shlex.quote(setting)}" if setting else "write them in seconds"
    return [
        f"{shown(path)} has the columns {quoted(times)}, which may be times and are not used: each label "
        f"holds for its whole recording. To use them: {how}."
    ]


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
                raise InputError(twice(shown(path), recording))
        sides = {recording: side for recording, side in found.items() if isinstance(side, str)}
        return sides, {recording: side for recording, side in found.items() if isinstance(side, int)}, tuple(notices)
    return {}, {}, tuple(notices)


def _meant(key: str, cells: Iterable[str]) -> dict[str, str | int]:
    if key == "split":
        return dict(sides_of(cells))
    return {cell: fold for cell in cells if (fold := fold_of(cell, number=True)) is not None}
