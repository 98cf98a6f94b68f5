"""Tables of annotations with a header: Raven's selections, BirdNET-Analyzer's results, BirdCLEF's metadata, one's own.

Columns are known by names that say their unit, so that nothing is guessed; others are named by --labels.columns.
"""

import csv
import io
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median

from birdtune.data.annotations.rows import NUMBERS, TIMES, Options, Row, seconds_of
from birdtune.runtime.files import GIVEN_DELIMITER

# A table that has one of these is what a program detected, and nobody checked.
_DETECTED = ("confidence", "score", "probability")
# Of a row's parts, the names of their columns in lower case, the first that has a filled cell counts.
_NAMES: Mapping[str, tuple[str, ...]] = {
    "start_s": ("start_s", "begin time (s)", "start (s)"),
    "end_s": ("end_s", "end time (s)", "end (s)"),
    "duration_s": ("duration_s", "duration (s)"),
    "low_hz": ("low_hz", "low freq (hz)"),
    "high_hz": ("high_hz", "high freq (hz)"),
    "weight": ("weight",),
    "rating": ("rating",),
    "score": _DETECTED,
    "offset_s": ("file offset (s)",),
    "recording": ("recording", "begin file", "filename", "file", "associatedmedia"),
    "path": ("begin path",),
    "selection": ("selection",),
    "channel": ("channel",),
    "also": ("secondary_labels",),
    "label": ("label", "annotation", "annotations", "class", "species", "scientific name", "scientificname",
              "common name", "vernacularname", "tag", "call type", "call_type", "primary_label", "species code"),
}  # fmt: skip
LEAST_WEIGHT = 0.1  # of what was rated worst, beside 1 of the best
_WORD = re.compile(r"[^\[\]'\",]+")


def columns_of(header: Sequence[str], options: Options) -> dict[str, list[str]] | None:
    """The columns of each part of a row, the likeliest first; None: it is no table of annotations.

    One has times, or names recordings and their classes.
    """
    by_name = {cell.casefold(): cell for cell in header if cell}
    found = {key: [by_name[name] for name in names if name in by_name] for key, names in _NAMES.items()}
    for key, name in options.columns.items():
        if name.casefold() in by_name:
            found[key] = [by_name[name.casefold()]]
    has_times = found["start_s"] and (found["end_s"] or found["duration_s"])
    return found if (found["label"] and found["recording"]) or has_times else None


def lines_of(text: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Header and rows of a table with commas, semicolons or tabs; each row with the number of its line.

    Raises:
        ValueError: it is none.
    """
    delimiter, before = max(",;\t", key=text.lstrip("\r\n").split("\n", 1)[0].count), 0
    if given := GIVEN_DELIMITER.match(text):
        delimiter, text, before = given[1], text[given.end() :], 1
    # Most tables with tabs are of programs that know no quotes: one in a cell is a character like any other. Those of R
    # begin with one.
    knows_quotes = delimiter != "\t" or text.lstrip().startswith('"')
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=delimiter,
        quoting=csv.QUOTE_MINIMAL if knows_quotes else csv.QUOTE_NONE,
    )  # fmt: skip
    try:
        rows = [(before + reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except csv.Error as fault:
        raise ValueError(str(fault)) from fault
    rows = [(number, row) for number, row in rows if any(row)]
    return (rows[0][1], rows[1:]) if rows else ([], [])


def recognises(text: str, options: Options) -> bool:
    """Whether a text is such a table by its header."""
    first = next((line for line in text.splitlines() if line.strip() and not GIVEN_DELIMITER.match(f"{line}\n")), "")
    try:
        return columns_of(lines_of(first)[0], options) is not None
    except ValueError:
        return False


def header_of(text: str) -> list[str]:
    """The names of the columns of a table."""
    return lines_of(text)[0]


def has_score(header: Sequence[str]) -> bool:
    """Whether there is a column for how sure a program was."""
    return any(cell.casefold() in _DETECTED for cell in header)


def read(text: str, options: Options) -> list[Row]:
    """The rows of a table. Raises ValueError: as `rows_of`."""
    return rows_of(*lines_of(text), options)


def rows_of(header: Sequence[str], lines: Sequence[tuple[int, Sequence[str]]], options: Options) -> list[Row]:
    """The rows of a table whose cells are known, with the number of each.

    Raises:
        ValueError: it has no columns of annotations, or two columns of one name.
    """
    columns = columns_of(header, options)
    if columns is None:
        raise ValueError("it has no columns of times, nor of recordings and their classes")
    if twice := next((cell for cell in header if cell and header.count(cell) > 1), None):
        raise ValueError(f"two columns are named {twice[:40]!r}")
    columns["label"].sort(key=lambda name: _is_rare(header.index(name), lines))
    seen = _Seen()
    rows = [_row(number, header, cells, columns, options, seen) for number, cells in lines]
    if not is_rated(header):
        return rows
    ratings = [_rating(dict(zip(header, cells, strict=False)).get(columns["rating"][0], "")) for _, cells in lines]
    weights = _weights([row.class_name for row in rows], ratings)
    return [
        replace(row, cells={**row.cells, "weight": f"{weight:g}"}) for row, weight in zip(rows, weights, strict=True)
    ]


def _is_rare(column: int, lines: Sequence[tuple[int, Sequence[str]]]) -> bool:
    """Whether fewer than half of the rows fill a column, as one for remarks, which then comes after the others."""
    return 2 * sum(any(cells[column : column + 1]) for _, cells in lines) < len(lines)


def is_rated(header: Sequence[str]) -> bool:
    """Whether labels weigh by how good a recording was rated, as no column says their weight itself."""
    names = {cell.casefold() for cell in header}
    return "rating" in names and "weight" not in names


def _rating(cell: str) -> float:
    """A rating; nan where there is none, for which BirdCLEF and xeno-canto have 0."""
    try:
        found = float(cell.replace(",", "."))
    except ValueError:
        return math.nan
    return found if 0 < found < math.inf else math.nan


def _weights(classes: Sequence[str], ratings: Sequence[float]) -> list[float]:
    """Weights by ratings: the best has 1. Without a rating, a label has the median of its class, else of all."""
    rated = [rating for rating in ratings if rating == rating]
    if not rated:
        return [1.0] * len(ratings)
    of_class: dict[str, list[float]] = {}
    for name, rating in zip(classes, ratings, strict=True):
        of_class.setdefault(name, []).extend([rating] if rating == rating else [])
    return [
        max(LEAST_WEIGHT, (rating if rating == rating else median(of_class[name] or rated)) / max(rated))
        for name, rating in zip(classes, ratings, strict=True)
    ]


class _Seen:
    """The selections of the rows above."""

    def __init__(self) -> None:
        self._numbered = set[tuple[str, ...]]()
        self._n = Counter[tuple[str, ...]]()  # what was marked, and the channel → selections
        self._most = Counter[tuple[str, ...]]()  # what was marked → selections on the channel that has most

    def repeats(self, marked: tuple[str, ...], selection: str, channel: str) -> bool:
        """Whether a row is another view of a selection, by its number, or the same on another channel.

        Args:
            marked: recording, label and times. Numbers may begin again, where tables were put together.
        """
        if selection and (selection, *marked) in self._numbered:
            return True
        self._numbered.add((selection, *marked))
        self._n[*marked, channel] += 1
        # Two calls at one time, marked on two channels, are four rows and two labels.
        if channel and self._n[*marked, channel] <= self._most[marked]:
            return True
        self._most[marked] = self._n[*marked, channel]
        return False


def _row(
    number: int, header: Sequence[str], cells: Sequence[str], columns: Mapping[str, Sequence[str]], options: Options,
    seen: _Seen,
) -> Row:  # fmt: skip
    """One row; `seen` knows the selections above it, and then its own."""
    row = dict(zip(header, cells, strict=False))

    def first(key: str) -> str:
        return next((row[name] for name in columns[key] if row.get(name)), "")

    if any(cells[len(header) :]):  # those of spreadsheets may end in empty ones
        fault = f"has {len(cells)} cells, and the header {len(header)}; a text with the delimiter in it needs quotes"
        return Row(number, first("label"), recording=first("recording"), path=first("path"), fault=fault)
    numbers = {key: first(key) for key in NUMBERS if columns[key]}
    if columns["duration_s"] and not numbers.get("end_s"):
        numbers["end_s"] = end_after(numbers.get("start_s", ""), first("duration_s"))
    if offset := first("offset_s"):
        # Over several files Raven's times go on, and this is the one within the file.
        moved = _moved(numbers.get("start_s", ""), numbers.get("end_s", ""), offset)
        numbers |= dict(zip(TIMES, moved, strict=True))
    marked = (*map(first, ("recording", "path", "label")), *(numbers.get(key, "") for key in TIMES))
    is_view = seen.repeats(marked, first("selection"), first("channel"))
    return Row(
        number, first("label"), numbers, recording=first("recording"), path=first("path"),
        also=secondary_of(first("also")),
        group=row.get(options.group_column, ""), is_view=is_view, score=first("score"),
    )  # fmt: skip


def end_after(start: str, duration: str) -> str:
    """When a label ends that begins then and lasts so long; the duration as it stands where one is no time.

    "" where nothing says when it begins: then the duration is that of a recording.
    """
    if not start:
        return ""
    if not _is_time(start) or not _is_time(duration):
        return duration
    return repr(round(seconds_of(start) + seconds_of(duration), 6))


def secondary_of(cell: str) -> tuple[str, ...]:
    """The classes of a cell of secondary labels: `a, b`, or a list as Python writes it."""
    return tuple(filter(None, (word.strip() for word in _WORD.findall(cell))))


def _moved(start: str, end: str, offset: str) -> tuple[str, str]:
    """Begin and end within a file, in seconds; as they stand where one is no time, which is then a fault of the row."""
    for cell in (start, offset):
        if not _is_time(cell):
            return cell, end
    if not _is_time(end):
        return offset, end
    offset_s = seconds_of(offset)
    return repr(offset_s), repr(round(offset_s + seconds_of(end) - seconds_of(start), 6))


def _is_time(cell: str) -> bool:
    try:
        seconds_of(cell)
    except ValueError:
        return False
    return True
