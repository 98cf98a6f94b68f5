"""Annotation files → the labels of the recordings that they name.

    --labels.annotations FILE | FOLDER ─▶ named ─▶ LabelTable
    files beside recordings that lie flat, by name ─▶ beside ─▶ LabelTable | None
"""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from birdtune.audio.container import FOREIGN_ENDINGS, SOUND_ENDINGS
from birdtune.config import Config
from birdtune.data import tables
from birdtune.data.annotations import formats
from birdtune.data.annotations.formats import AnnotationFile
from birdtune.data.annotations.names import Names
from birdtune.data.annotations.rows import Options
from birdtune.data.class_names import joined, quoted
from birdtune.data.label_table import parse_columns, row_of
from birdtune.data.labelling import LabelRow, LabelTable, twice
from birdtune.data.scan import Listing, name_below
from birdtune.data.taxonomy import Taxonomy
from birdtune.errors import InputError, SettingsError, shown
from birdtune.runtime.text import count

_SETTING = "--labels.annotations"


def options_of(config: Config) -> Options:
    """What the settings say of annotation files. Raises SettingsError."""
    tiers = frozenset(tier.strip() for tier in (config.labels.tiers or "").split(",") if tier.strip())
    return Options(parse_columns(config.labels.columns), tiers, config.split.group_column or "")


def named(config: Config, listing: Listing) -> LabelTable:
    """The labels of the annotation files that the settings name.

    Raises:
        SettingsError: a table of labels is named as well.
        InputError: there is no such file or folder, or no annotation in it.
    """
    assert config.labels.annotations is not None
    place = Path(config.labels.annotations)
    if config.labels.table is not None:
        raise SettingsError(
            f"{_SETTING} and --labels.table both say what is in the recordings. Give one: a table `recording,start_s,"
            "end_s,label` among the annotation files is read with them."
        )
    if not os.path.lexists(place):
        raise InputError(
            f"{_SETTING} {shown(place)}: there is no such file or folder; expected selection tables of Raven, label "
            "tracks of Audacity, .eaf of ELAN, TextGrids of Praat, tables with a header, or JSON of xeno-canto. In a "
            "container, it must be mounted."
        )
    if place.is_file():
        table = _collected(config, listing, [place], shown(place), place.parent)
    else:
        table = _collected(config, listing, annotation_files(place), shown(place), place)
    if not table.files:
        why = table.unread[0][1] if table.unread else "none of its files is one of a format that is read"
        raise InputError(f"{_SETTING} {shown(place)}: has no annotations. {why}")
    return table


def beside(config: Config, listing: Listing) -> LabelTable | None:
    """The labels of annotation files beside recordings that lie directly in the data folder; None: there are none.

    What programs detected is no annotation before somebody says so by name.
    """
    flat = [file for file in listing.files if "/" not in file.name]
    folder = Path(config.data_folder)
    described = {path: tables.describe(path) for path in _in(folder)} if flat else {}
    if not any(found is not None and found[0] == "annotation" for found in described.values()):
        return None
    # A track without labels is saved as an empty text.
    there = [path for path, found in described.items() if found is not None and (found[0] == "annotation" or
             found == tables.EMPTY)]  # fmt: skip
    names, flat_names = Names(flat), {file.name for file in flat}
    there = [path for path in there if names.of_file(path.name) in flat_names]
    title = f"annotation files in {shown(folder)}"
    return _collected(config, listing, there, title, folder, checked=True) if there else None


def _in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.is_symlink())


def annotation_files(place: Path) -> Iterator[Path]:
    """The files of a folder that may be annotations, in their order; no link is followed, as it may lead anywhere."""
    for folder, folders, names in os.walk(place):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(folder) / name
            if not name.startswith(".") and path.suffix.lower() not in SOUND_ENDINGS | FOREIGN_ENDINGS:
                described = None if path.is_symlink() else tables.describe(path)
                if described is not None and (described[0] == "annotation" or path.suffix.lower() in _TEXTS):
                    yield path


_TEXTS = (".txt", ".csv", ".tsv", ".json")


def _collected(
    config: Config, listing: Listing, paths: Iterable[Path], title: str, base: Path, *, checked: bool = False
) -> LabelTable:
    """The labels of some files.

    Args:
        title: what they are called together in messages; each is called by its path below `base`.
        checked: leave out what programs detected.
    """
    options, taxonomy, names = options_of(config), Taxonomy.of(config), Names(listing.files)
    found, unread, detected = list[AnnotationFile](), list[tuple[Path, str]](), list[Path]()
    for path in paths:
        try:
            one = formats.read(path, options)
        except InputError as fault:
            unread.append((path, str(fault)))
            continue
        if one is not None and one.is_detected and checked:
            detected.append(path)
        elif one is not None:
            found.append(one)
    rows, surveyed, groups = list[LabelRow](), set[str](), dict[str, str]()
    for one in found:
        below = name_below(one.path, config.data_folder) or one.path.relative_to(base).as_posix()
        own = unicodedata.normalize("NFC", names.of_file(below))
        if not one.rows:
            surveyed.add(own)
        for row in one.rows:
            listed = unicodedata.normalize("NFC", row.recording or row.path)
            recording = names.of_row(below, listed, row.path) if listed else own
            origin = f"{shown(one.path.relative_to(base))}, row {row.number:,}"
            surveyed.add(recording)
            if row.fault:
                rows.append(LabelRow(origin, recording, (), "row-invalid", row.fault))
            else:
                made = row_of(origin, recording, row.class_name, row.cells, taxonomy, row.also)
                rows.append(replace(made, is_view=row.is_view))
            if row.group and groups.setdefault(recording, row.group) != row.group:
                raise InputError(twice(shown(one.path), recording, f"two values of {shown(options.group_column)}"))
    if options.group_column and not groups:
        raise InputError(f"{title}: no file has a column {shown(options.group_column)!r} (--split.group-column).")
    notices = [*_notices(found, detected, taxonomy)]
    return LabelTable(
        title, tuple(one.path for one in found), tuple(rows), frozenset(surveyed), groups=groups,
        notices=tuple(notices), unread=tuple(unread), is_annotations=True,
    )  # fmt: skip


def _notices(found: list[AnnotationFile], detected: list[Path], taxonomy: Taxonomy) -> Iterator[str]:
    kinds = Counter(one.kind for one in found)
    n_rows = sum(len(one.rows) for one in found)
    of_kinds = joined([count(n, kind) if kind == "table" else f"{n:,} {kind}" for kind, n in sorted(kinds.items())])
    yield f"{count(n_rows, 'row')} in {count(len(found), 'annotation file')} ({of_kinds})."
    if odd := [one for one in found if one.note]:
        more = f" So were {quoted([one.path.name for one in odd[1:]])}." if len(odd) > 1 else ""
        yield odd[0].note + more
    if detected:
        yield (
            f"Not read, as a program detected what they say ({_SETTING} reads them all the same): "
            f"{quoted([path.name for path in detected])}."
        )
    elif any(one.is_detected for one in found):
        some = [one.path.name for one in found if one.is_detected]
        yield f"What a program detected is taken for true: {quoted(some)}. Check some of it by ear."
    yield from taxonomy.notices()
