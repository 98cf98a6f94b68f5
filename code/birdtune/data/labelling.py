"""Rows of tables and annotation files → the labels of the files that they name; every row is used or has a reason.

    Listing + LabelTable ─▶ apply ─▶ Arranged: the Listing with labels, split, sources and the books of the rows

A row names a recording by its path below the data folder, or by an end of that; where the endings differ, as after a
conversion, by the name without it.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from birdtune.data.class_names import quoted
from birdtune.data.labels import Label, class_names_of
from birdtune.data.layout import Arranged, given_by_folders
from birdtune.data.row_books import REPEATED_VIEW, RowBooks
from birdtune.data.row_files import match
from birdtune.data.scan import Listing, Problem, SoundFile, name_below
from birdtune.data.split import Given
from birdtune.errors import InputError, shown
from birdtune.runtime.text import count, some

Value = TypeVar("Value")


@dataclass(frozen=True)
class LabelRow:
    """One row, and what it says or why it says nothing.

    Attributes:
        origin: its file and number, as messages name it.
        recording: as it is listed there.
        labels: the label of its class, and with weight 0 those of classes that are in it somewhere as well.
        problem: a key of `scan.PROBLEMS`; "" where it has a label.
        detail: what is wrong with it.
        is_view: as of a `rows.Row`.
    """

    origin: str
    recording: str
    labels: tuple[Label, ...] = ()
    problem: str = ""
    detail: str = ""
    is_view: bool = False


@dataclass(frozen=True)
class LabelTable:
    """What a table, or some annotation files, say.

    Attributes:
        title: what they are called in messages.
        files: where they were read from.
        surveyed: recordings, as listed, that somebody went through, whether or not anything was marked.
        sides, folds, groups: recording as listed → train, val or test; fold; source recording.
        is_annotations: whether folders name the classes of recordings that it does not list, and one that is listed
            without a class holds none.
        sites: folders that name no class.
        unread: files that were meant, and why they could not be read.
    """

    title: str
    files: tuple[Path, ...]
    rows: tuple[LabelRow, ...]
    surveyed: frozenset[str] = frozenset()
    sides: Mapping[str, str] = field(default_factory=dict)
    folds: Mapping[str, int] = field(default_factory=dict)
    groups: Mapping[str, str] = field(default_factory=dict)
    notices: tuple[str, ...] = ()
    unread: tuple[tuple[Path, str], ...] = ()
    is_annotations: bool = False
    sites: frozenset[str] = frozenset()


def apply(
    listing: Listing, table: LabelTable, title: str, root: Path, *, one_class: bool = False, background: str = ""
) -> Arranged:
    """The same files with the labels that the table has; those of which it has none are problems.

    Args:
        listing: of `scan.scan`, flat.
        title: what the data folder is called in messages.
        root: the data folder.
        one_class: whether those with several classes are problems, too.
        background: the class of annotated recordings in which nothing was marked; "" where that says nothing.

    Raises:
        InputError: the table lists none of the files, or says two things of one.
    """
    by_listed: dict[str, list[LabelRow]] = {name: [] for name in sorted(table.surveyed)}
    for row in table.rows:
        by_listed.setdefault(row.recording, []).append(row)
    matched = match(listing.files, by_listed)
    rows_of = matched.rows_of
    if not rows_of and not matched.vague:
        example = listing.files[0].name if listing.files else "one.wav"
        raise InputError(
            f"{table.title}: lists none of the recordings in {title}. It names "
            f"{shown(next(iter(by_listed), '(nothing)'))}, where {example} was found. Expected paths below the data "
            "folder, or ends of them."
        )
    named = _Labeller(table, one_class, background, _class_folders(listing, rows_of, by_listed) - table.sites)
    read = {name_below(path, root) for path in (*table.files, *(path for path, _ in table.unread))}
    problems = [problem for problem in listing.problems if problem.recording not in read]
    named.problems += problems if table.is_annotations else [replace(problem, label="") for problem in problems]
    for file in listing.files:
        listed = rows_of.get(file.name, [])
        named.take(file, listed, [row for name in listed for row in by_listed[name]], matched.vague.get(file.name))
    for name in matched.unused:
        named.without_file(name, by_listed[name], "row-without-file", "there is no such recording")
    for name, fit in matched.ambiguous.items():
        named.without_file(name, by_listed[name], "row-ambiguous", f"may be any of {some(fit)}")
    named.problems += [
        Problem(name_below(path, root) or shown(path.name), "", "annotation-unreadable", why)
        for path, why in table.unread
    ]
    every_class = sorted({name for file in named.files for name in file.classes})
    given, said = _given(table, rows_of, listing, title)
    books = RowBooks(len(table.rows), dict(named.left_out), named.placed)
    notices = [*named.notices(listing.files, every_class), *said, *table.notices]
    groups = _of_files(table.groups, rows_of, "two values in the column of --split.group-column", table.title)
    return Arranged(Listing(named.files, named.problems, every_class), given, notices, groups, books)


class _Labeller:
    """Gives files their labels, and keeps what is not used."""

    def __init__(self, table: LabelTable, one_class: bool, background: str, folders: frozenset[str]) -> None:
        self._table, self._one_class, self._background, self._folders = table, one_class, background, folders
        self.files: list[SoundFile] = []
        self.problems: list[Problem] = []
        self.left_out = Counter[str]()
        self.placed: dict[str, int] = {}
        self._by_folder, self._nothing_marked = list[str](), list[str]()

    def take(self, file: SoundFile, listed: Sequence[str], rows: Sequence[LabelRow], vague: str | None) -> None:
        """Give a file the labels of its rows, or say why it has none.

        Args:
            listed: the names under which it has rows, [] if none.
            vague: a name that may be its own or another's.
        """
        where = self._table.title
        own, invalid, nameless = self._labels(file, rows)
        classes = class_names_of(own)
        if len(classes) > 1 and (self._one_class or self._contradict(listed, rows)):
            detail = f"it has {len(classes)} classes in {where}: {quoted(classes)}"
            if len(listed) > 1:
                detail += f", by rows of several names: {quoted(listed)}"
            self._leave_out(file, "several-labels", detail)
        elif classes:
            self.files.append(replace(file, label=", ".join(classes), labels=own, below=file.name))
        elif invalid:
            some = f"{len(invalid):,} of its rows are no label, e.g. {invalid[0].origin}: {invalid[0].detail}"
            self._leave_out(file, "invalid-label", some)
        elif nameless and self._table.is_annotations:
            some = f"{len(nameless):,} of its rows have neither class nor times, e.g. {nameless[0].origin}"
            self._leave_out(file, "no-label", f"nobody knows what is in it: {some}")
        elif listed and self._table.is_annotations and self._background:
            self._nothing_marked.append(file.name)
            labels = (Label(self._background), *own) if own else ()
            self.files.append(replace(file, label=self._background, labels=labels, below=file.name))
        elif listed:
            self._leave_out(file, "no-label", f"it has no class in {where}")
        elif vague is not None:
            detail = f"{shown(vague)} in {where} is the end of several names; give its path below the data folder"
            self._leave_out(file, "no-label", detail)
        elif file.label and file.label in self._folders:
            self._by_folder.append(file.name)
            self.files.append(file)
        else:
            self._leave_out(file, "no-label", f"it is not in {where}")

    def _contradict(self, listed: Sequence[str], rows: Sequence[LabelRow]) -> bool:
        """Whether a table names a file in several ways, with other classes each time."""
        if self._table.is_annotations:
            return False
        of_name = {name: tuple(label for row in rows if row.recording == name for label in row.labels)
                   for name in listed}  # fmt: skip
        return len({class_names_of(labels) for labels in of_name.values()}) > 1

    def _labels(
        self, file: SoundFile, rows: Sequence[LabelRow]
    ) -> tuple[tuple[Label, ...], list[LabelRow], list[LabelRow]]:
        """The labels of some rows, each once; the rows that are none for a fault of theirs; and those that mark
        something, nobody knows where.
        """
        found: dict[tuple[object, ...], list[Label]] = defaultdict(list)
        invalid, nameless = list[LabelRow](), list[LabelRow]()
        for row in rows:
            if row.problem and row.is_view:
                self.left_out[REPEATED_VIEW] += 1
            elif row.problem:
                self.left_out[row.problem] += 1
                if row.problem == "row-invalid":
                    invalid.append(row)
                if row.problem == "row-without-label" and not row.labels:
                    nameless.append(row)
                if row.problem != "row-ignored" and (row.detail or self._table.is_annotations):
                    self._note(file.name, row)
            else:
                self.placed[file.name] = self.placed.get(file.name, 0) + 1
            for label in row.labels:
                same = found[label.class_name, label.start_s, label.end_s]
                # The same call in two views of Raven, which may have other frequencies or none, or on two channels.
                twin = next((k for k, other in enumerate(same) if row.is_view or _is_same(label, other)), None)
                if twin is None:
                    same.append(label)
                    continue
                if label.origin and label is row.labels[0]:
                    self.left_out[REPEATED_VIEW if row.is_view else "row-repeated"] += 1
                    self.placed[file.name] -= 1
                if same[twin].low_hz is None and label.low_hz is not None:
                    same[twin] = label
        return tuple(label for same in found.values() for label in same), invalid, nameless

    def without_file(self, name: str, rows: Sequence[LabelRow], problem: str, why: str) -> None:
        """Note rows of a recording that is not there, or is one of several."""
        classes = class_names_of(label for row in rows for label in row.labels)
        self.left_out[problem] += len(rows)
        rows_too = f" ({count(len(rows), 'row')}, e.g. {rows[0].origin})" if rows and self._table.is_annotations else ""
        detail = f"it is in {self._table.title}, and {why}{rows_too}"
        self.problems.append(Problem(shown(name), ", ".join(classes), problem, detail))

    def _leave_out(self, file: SoundFile, problem: str, detail: str) -> None:
        self.problems.append(Problem(file.name, "", problem, detail))

    def _note(self, name: str, row: LabelRow) -> None:
        self.problems.append(Problem(name, ", ".join(class_names_of(row.labels)), row.problem,
                                     f"{row.origin}: {row.detail or 'has no class'}"))  # fmt: skip

    def notices(self, listed: Sequence[SoundFile], classes: Sequence[str]) -> list[str]:
        """What should be known of where the labels are from."""
        n_weak = len(self._by_folder)
        said = (
            f"{len(self.files) - n_weak:,} of {len(listed):,} recordings have their classes, {len(classes):,} in all, "
            f"from {self._table.title}"
        )
        if not self._table.is_annotations:
            said += f"; names of folders do not count.{self._other_folders(listed)}"
        elif n_weak:
            folders = sorted({file.label for file in self.files if file.name in set(self._by_folder)})
            said += f"; {count(n_weak, 'recording')} without annotations, by the folders {quoted(folders)}, which hold "
            said += "throughout."
        else:
            said += "."
        found = [said]
        if self._nothing_marked:
            found.append(
                f"{count(len(self._nothing_marked), 'annotated recording')} in which nothing is marked, e.g. "
                f'{self._nothing_marked[0]}: "{self._background}", a negative of all classes.'
            )
        return found

    def _other_folders(self, listed: Sequence[SoundFile]) -> str:
        """A sentence where folders agree with the classes of the table, but for some recordings."""
        folder_of = {file.name: file.label for file in listed}
        named = sum(folder_of[file.name] == file.label for file in self.files)
        other = [file for file in self.files if folder_of[file.name] != file.label]
        if not (named and other):
            return ""
        return (
            f" In a folder of another name than the class: {count(len(other), 'recording')}, {other[0].name} for one, "
            f'which is of "{other[0].label}".'
        )


def _is_same(label: Label, other: Label) -> bool:
    """Whether two labels of one class and time are one, of which only one may have frequencies."""
    bounds = (label.low_hz, label.high_hz)
    return label.weight == other.weight and (
        bounds == (other.low_hz, other.high_hz) or label.low_hz is None or other.low_hz is None
    )


def _class_folders(
    listing: Listing, rows_of: Mapping[str, Sequence[str]], by_listed: Mapping[str, Sequence[LabelRow]]
) -> frozenset[str]:
    """The folders that name the class of what no annotation lists: those of an annotated class, and those in which
    nothing is annotated, unlike folders of sites.
    """
    annotated = {file.label for file in listing.files if file.name in rows_of}
    classes = {label.class_name for rows in by_listed.values() for row in rows for label in row.labels}
    return frozenset({file.label for file in listing.files} - (annotated - classes))


# ---- split and sources ---------------------------------------------------------------------------------------------


def _of_files(
    said: Mapping[str, Value], rows_of: Mapping[str, Sequence[str]], two: str, where: str
) -> dict[str, Value]:
    """What is said of recordings as listed, by the names of their files.

    Raises:
        InputError: two things are said of one; `two` in words.
    """
    found: dict[str, Value] = {}
    for name, rows in rows_of.items():
        for row in rows:
            if row in said and found.setdefault(name, said[row]) != said[row]:
                raise InputError(twice(where, name, two))
    return found


def twice(where: str, recording: str, two: str = "two sides") -> str:
    """What is said of a recording that a table puts into two places."""
    return f"{where}: {shown(recording)} stands there twice, on {two}. Keep one."


def _given(
    table: LabelTable, rows_of: Mapping[str, Sequence[str]], listing: Listing, title: str
) -> tuple[Given | None, list[str]]:
    """The split that the table has, else the one that the folders have."""
    sides = _of_files(table.sides, rows_of, "two sides", table.title)
    folds = _of_files(table.folds, rows_of, "two sides", table.title)
    if sides or folds:
        column = "train, val and test" if sides else count(len(set(folds.values())), "fold")
        said = f"{table.title} also divides the recordings, by {column}; another split is obeyed by --split.file."
        return Given(table.title, sides, folds), [said]
    found = given_by_folders(listing, title)
    return (found[0], [found[1]]) if found is not None else (None, [])
