"""Annotation files → the labels of the recordings that they name.

    --labels.annotations FILE | FOLDER, ... ─▶ named ─▶ LabelTable
    files beside their recordings, by name ─▶ beside ─▶ LabelTable | None
"""

import os
import shlex
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from birdtune.audio.container import FOREIGN_ENDINGS, SOUND_ENDINGS
from birdtune.config import Config
from birdtune.data import tables
from birdtune.data.annotations import formats, review, sites
from birdtune.data.annotations.formats import AnnotationFile
from birdtune.data.annotations.names import Names
from birdtune.data.annotations.rows import Options, Row
from birdtune.data.annotations.table import LEAST_WEIGHT, columns_of, is_rated
from birdtune.data.class_names import joined, quoted
from birdtune.data.label_table import parse_columns, row_of, unused_times
from birdtune.data.labelling import LabelRow, LabelTable, twice
from birdtune.data.scan import Listing, name_below
from birdtune.data.taxonomy import Taxonomy
from birdtune.errors import InputError, SettingsError, shown
from birdtune.options import paths_of
from birdtune.runtime.text import count

_SETTING = "--labels.annotations"
NONE = "none"  # its value where annotations beside recordings are not to be read


def options_of(config: Config) -> Options:
    """What the settings say of annotation files. Raises SettingsError."""
    tiers = frozenset(tier.strip() for tier in (config.labels.tiers or "").split(",") if tier.strip())
    return Options(parse_columns(config.labels.columns), tiers, config.split.group_column or "")


def named(config: Config, listing: Listing) -> LabelTable:
    """The labels of the annotation files that the settings name.

    Raises:
        SettingsError: a table of labels is named as well, or no file.
        InputError: one of the files or folders is not there, or has no annotation in it.
    """
    assert config.labels.annotations is not None
    if config.labels.table is not None:
        raise SettingsError(
            f"{_SETTING} and --labels.table both say what is in the recordings. Give one: a table `recording,start_s,"
            "end_s,label` among the annotation files is read with them."
        )
    places = [Path(each) for each in paths_of(config.labels.annotations)]
    if not places:
        raise SettingsError(f"{_SETTING}: names no file. Give a file or a folder of annotations, or none.")
    read, base_of, known = _Read(), dict[Path, Path](), set[str]()
    for place in places:
        _require(place)
        paths = [place] if place.is_file() else list(annotation_files(place))
        base_of |= dict.fromkeys(paths, place.parent if place.is_file() else place)
        own = _read([path for path in paths if os.path.realpath(path) not in known], options_of(config))
        if not own.found and known.isdisjoint(map(os.path.realpath, paths)):
            why = own.unread[0][1] if own.unread else "none of its files is one of a format that is read"
            raise InputError(f"{_SETTING} {shown(place)}: has no annotations. {why}")
        known |= set(map(os.path.realpath, paths))
        read = read.joined(own)
    return _table(config, listing, read, joined([shown(place) for place in places]), base_of)


def _require(place: Path) -> None:
    if not os.path.lexists(place):
        raise InputError(
            f"{_SETTING} {shown(place)}: there is no such file or folder; expected selection tables of Raven, label "
            "tracks of Audacity, .eaf of ELAN, TextGrids of Praat, tables with a header, or JSON; several with commas "
            "between them. In a container, it must be mounted."
        )


def unread_notice(config: Config, unread: Sequence[str]) -> str:
    """What is said of annotation files in the data folder where the setting names others.

    Args:
        unread: their names below the data folder.
    """
    both = f"{config.labels.annotations},{config.data_folder}"
    return (
        f"{count(len(unread), 'annotation file')} among the recordings, e.g. {unread[0]}, "
        f"{'is' if len(unread) == 1 else 'are'} not read, as {_SETTING} names others. To read all: "
        f"{_SETTING} {shlex.quote(shown(both))}."
    )


def beside(config: Config, listing: Listing) -> LabelTable | None:
    """The labels of annotation files that lie beside their recordings; None: there are none, or folders name classes.

    Those of recordings directly in the data folder are taken, and those in folders that are sites by them
    (`sites.find`). What programs detected is no annotation before somebody says so by name.
    """
    if config.labels.annotations == NONE or not any(one.problem == "annotation" for one in listing.problems):
        return None
    folder, names = Path(config.data_folder), Names(listing.files)
    read = _read(_in(folder, names), options_of(config), checked=True)
    taxonomy, marked = Taxonomy.of(config), dict[str, set[str]]()
    for one in read.found:
        for recording, row in _recordings(one, _below(one, config, folder), names):
            classes = marked.setdefault(recording, set())
            classes |= {taxonomy.class_of(row.class_name)} if row is not None else set()
    reviewed = review.sites(listing, set().union(*marked.values()), config)
    files = [file for file in listing.files if file.name in marked or file.label not in reviewed]
    rest = replace(listing, files=files)  # what was reviewed says nothing of the other folders
    found = sites.find(rest, marked, config.labels) if config.labels.level == 1 else frozenset[str]()
    flat = {file.name for file in listing.files if not file.label}
    if not found:
        read = read.only(lambda path: path.parent == folder)
    if not (found or flat & marked.keys()):
        return None
    base_of = dict.fromkeys([one.path for one in read.found], folder)
    table = _table(config, listing, read, f"annotation files in {shown(folder)}", base_of)
    notices = sites.notices(found, config) if found else []
    return replace(table, sites=found, notices=(*notices, *table.notices))


def _in(folder: Path, names: Names) -> Iterator[Path]:
    """The annotation files in a folder; of texts without anything those that are called after a recording."""
    for path in annotation_files(folder):
        described = tables.describe(path)
        # A track without labels is saved as an empty text.
        is_track = described == tables.EMPTY and names.has(path.relative_to(folder).as_posix())
        if is_track or (described is not None and described[0] == "annotation"):
            yield path


def annotation_files(place: Path) -> Iterator[Path]:
    """The files of a folder that may be annotations, in their order; no link is followed, as it may lead anywhere."""
    for folder, folders, names in os.walk(place):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(folder) / name
            if not name.startswith(".") and path.suffix.lower() not in SOUND_ENDINGS | FOREIGN_ENDINGS:
                if path.is_symlink():
                    continue
                described, is_text = tables.describe(path), path.suffix.lower() in _TEXTS
                if is_text or (described is not None and described[0] == "annotation"):
                    yield path  # what is called a text and is none is refused where it is read


_TEXTS = (".txt", ".csv", ".tsv", ".json")


@dataclass
class _Read:
    """What came of some files: those that are annotations, damaged ones and why, those of programs, and others."""

    found: list[AnnotationFile] = field(default_factory=list)
    unread: list[tuple[Path, str]] = field(default_factory=list)
    detected: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)

    def joined(self, other: "_Read") -> "_Read":
        """Of these files and others."""
        return _Read(
            self.found + other.found, self.unread + other.unread, self.detected + other.detected,
            self.others + other.others,
        )  # fmt: skip

    def only(self, wanted: Callable[[Path], bool]) -> "_Read":
        """The same of some of the files."""
        return _Read(
            [one for one in self.found if wanted(one.path)], [each for each in self.unread if wanted(each[0])],
            [path for path in self.detected if wanted(path)], [path for path in self.others if wanted(path)],
        )  # fmt: skip


def _read(paths: Iterable[Path], options: Options, *, checked: bool = False) -> _Read:
    """Read some files; with `checked`, what programs detected is left out."""
    read = _Read()
    for path in paths:
        try:
            one = formats.read(path, options)
        except InputError as fault:
            read.unread.append((path, str(fault)))
            continue
        if one is not None and one.is_detected and checked:
            read.detected.append(path)
        elif one is not None:
            read.found.append(one)
        elif (described := tables.describe(path)) is not None and described[0] == "annotation":
            why = f"{shown(path)}: holds {described[1]}, of no format that is read.{_hint(path)}"
            read.unread.append((path, why))
        else:
            read.others.append(path)
    return read


def _hint(path: Path) -> str:
    """How the columns of a table can be named."""
    if (header := tables.header_of(path)) is None or (times := tables.event_columns(header)) is None:
        return ""
    own = next((cell for name in tables.LABEL_NAMES for cell in header if cell.casefold() == name), "NAME")
    recording, label = tables.likely_columns(header) or ("", own)
    if not (setting := tables.times_setting(*times)):
        return f" Write {quoted(times)} in seconds, as start_s and end_s."
    parts = [f"recording={recording}"] * bool(recording) + [f"{setting},label={label}"]
    return f" Name its columns: --labels.columns {shlex.quote(shown(','.join(parts)))}"


def _below(one: AnnotationFile, config: Config, base: Path) -> str:
    return name_below(one.path, config.data_folder) or one.path.relative_to(base).as_posix()


def _recordings(one: AnnotationFile, below: str, names: Names) -> Iterator[tuple[str, Row | None]]:
    """The recording of each row of a file; of a file without rows the one that it is called after."""
    own = unicodedata.normalize("NFC", names.of_file(below))
    if not one.rows:
        yield own, None
    for row in one.rows:
        listed = unicodedata.normalize("NFC", row.recording or row.path)
        yield names.of_row(below, listed, row.path) if listed else own, row


def _table(config: Config, listing: Listing, read: _Read, title: str, base_of: Mapping[Path, Path]) -> LabelTable:
    """The labels of some files.

    Args:
        title: what they are called together in messages.
        base_of: the folder of each, below which its path is what it is called.
    """
    options, taxonomy, names = options_of(config), Taxonomy.of(config), Names(listing.files)
    rows, surveyed, groups = list[LabelRow](), set[str](), dict[str, str]()
    called = _called(read.found, base_of)
    for one in read.found:
        for recording, row in _recordings(one, _below(one, config, base_of[one.path]), names):
            surveyed.add(recording)
            if row is None:
                continue
            origin = f"{called[one.path]}, row {row.number:,}"
            if row.fault:
                rows.append(LabelRow(origin, recording, (), "row-invalid", row.fault))
            else:
                made = row_of(origin, recording, row.class_name, row.cells, taxonomy, row.also)
                rows.append(replace(made, is_view=row.is_view))
            if row.group and groups.setdefault(recording, row.group) != row.group:
                raise InputError(twice(shown(one.path), recording, f"two values of {shown(options.group_column)}"))
    _require_columns(read.found, options, title)
    if options.group_column and not groups:
        raise InputError(f"{title}: no file has a column {shown(options.group_column)!r} (--split.group-column).")
    said = [*_unused_times(read.found, options), *_nameless(read.found, options)]
    said += _notices(read.found, read.detected, taxonomy)
    if read.others:
        names_of = quoted([path.name for path in read.others])
        said.append(f"Not read, as no annotations are in them, or they are damaged: {names_of}.")
    return LabelTable(
        title, tuple(one.path for one in read.found), tuple(rows), frozenset(surveyed), groups=groups,
        notices=tuple(said), unread=tuple(read.unread), is_annotations=True,
    )  # fmt: skip


def _called(found: Sequence[AnnotationFile], base_of: Mapping[Path, Path]) -> dict[Path, str]:
    """What each file is called in messages; no two alike, as rows are counted by that."""
    below = {one.path: one.path.relative_to(base_of[one.path]) for one in found}
    n_alike = Counter(below.values())
    return {path: shown(path if n_alike[name] > 1 else name) for path, name in below.items()}


def _require_columns(found: Sequence[AnnotationFile], options: Options, title: str) -> None:
    """Refuse columns that are named and that no table has; other formats give names of columns another meaning."""
    there = {name.casefold() for one in found for name in one.header}
    missing = [name for name in options.columns.values() if name.casefold() not in there]
    if missing and there and all(one.header or not one.rows for one in found):
        table = next(one for one in found if one.header)
        raise InputError(
            f"{title}: no table has a column {quoted(missing)} (--labels.columns); those of {shown(table.path.name)} "
            f"are {quoted(table.header)}."
        )


def _unused_times(found: Sequence[AnnotationFile], options: Options) -> list[str]:
    """A notice of each kind of table whose labels hold throughout although it has columns that may be times."""
    by_times = {
        times: one.path for one in reversed(found)
        if one.header and not (columns_of(one.header, options) or {}).get("start_s")
        and (times := tables.time_columns(one.header))
    }  # fmt: skip
    return [notice for times, path in by_times.items() for notice in unused_times(path, times)]


def _nameless(found: Sequence[AnnotationFile], options: Options) -> list[str]:
    """A notice of each kind of table without a column of classes that is known."""
    by_header = {one.header: one.path for one in reversed(found) if one.header and one.rows}
    return [
        f"{shown(path.name)} has no column that is known for classes, so none of its rows has one; its columns are "
        f"{quoted(header)}. Name it: --labels.columns label=NAME."
        for header, path in by_header.items() if not (columns_of(header, options) or {"label": [""]})["label"]
    ]  # fmt: skip


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
    if rated := [one.path.name for one in found if is_rated(one.header)]:
        yield (
            f"Ratings in {quoted(rated)} are weights: of the best 1, of others in proportion, at least "
            f"{LEAST_WEIGHT:g}; a label without a rating has the median of its class."
        )
    yield from taxonomy.notices()
