"""One row of an annotation file or of a table of labels, and the label that it makes.

    reader of a format ─▶ Row, as text ─▶ label_of ─▶ Label, or what is wrong with it
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from birdtune.data.labels import Label
from birdtune.errors import shown

# Numbers that a row may have, by their names in a Label.
TIMES = ("start_s", "end_s")
NUMBERS = (*TIMES, "low_hz", "high_hz", "weight")
_MOST_WEIGHT = 100.0
# Minutes and seconds, or hours, minutes and seconds, as players show where they are.
_CLOCK = re.compile(r"(?:(\d{1,3}):(?=[0-5]\d:))?(\d{1,3}):([0-5]\d(?:[.,]\d+)?)")


@dataclass(frozen=True)
class Row:
    """One annotation as a file has it.

    Attributes:
        number: of its line, from 1; of the annotation in its file, where the format has no lines. No other has it.
        class_name: as it stands there; "" where there is none.
        cells: numbers as text, by the names of `NUMBERS`.
        recording: as the file names it; "": the recording that the file itself is named after.
        path: the same with its folders, where the file has both; "" else.
        also: classes that are in it as well, somewhere (secondary labels).
        group: of the column that names the source recording.
        is_view: whether a row above is of the same selection, as Raven has one for each view and channel.
        score: how sure the program was that detected it; "" where none did.
        fault: why it is no annotation; "" where its cells will tell.
    """

    number: int
    class_name: str
    cells: Mapping[str, str] = field(default_factory=dict)
    recording: str = ""
    path: str = ""
    also: tuple[str, ...] = ()
    group: str = ""
    is_view: bool = False
    score: str = ""
    fault: str = ""


@dataclass(frozen=True)
class Options:
    """What people say of their annotation files.

    Attributes:
        columns: key of `label_table.parse_columns` → what the column is called.
        tiers: of ELAN and Praat that are read; empty: all.
        group_column: that names the source recording; "" for none.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    tiers: frozenset[str] = frozenset()
    group_column: str = ""


def label_of(class_name: str, cells: Mapping[str, str]) -> Label | str:
    """The label of a row, or what is wrong with it.

    Args:
        cells: as those of a Row; empty ones count as missing.
    """
    values: dict[str, float] = {}
    for key, cell in cells.items():
        if not cell:
            continue
        try:
            values[key] = seconds_of(cell) if key in TIMES else _number(cell)
        except ValueError:
            more = " of seconds from the recording's beginning, or a time such as 1:23.5" if key in TIMES else ""
            return f"{key} is {shown(cell[:40])!r}, expected a number{more}"
        if not math.isfinite(values[key]) or values[key] < 0:
            return f"{key} is {shown(cell[:40])}, expected a number from 0 on"
    if len({":" in cells[key] for key in TIMES if cells.get(key)}) > 1:
        both = " and ".join(f"{key} is {shown(cells[key][:40])!r}" for key in TIMES)
        return f"{both}, expected both in seconds or both in minutes and seconds"
    for first, last in (TIMES, ("low_hz", "high_hz")):
        if first in values and last in values and values[first] >= values[last]:
            return f"{first} is {values[first]:g} and {last} {values[last]:g}, expected a larger {last}"
    if (TIMES[0] in values) != (TIMES[1] in values):
        return "start_s or end_s is empty, expected both or none"
    if not 0 < values.get("weight", 1.0) <= _MOST_WEIGHT:
        return f"weight is {values['weight']:g}, expected more than 0, up to {_MOST_WEIGHT:g}"
    times = values.get("start_s", 0.0), values.get("end_s", math.inf)
    return Label(class_name, *times, values.get("low_hz"), values.get("high_hz"), values.get("weight", 1.0))


def seconds_of(cell: str) -> float:
    """A time in a recording: seconds, or hours, minutes and seconds such as 0:01:23.5 or 1:23.5.

    Raises:
        ValueError: it is neither.
    """
    if (match := _CLOCK.fullmatch(cell)) is None:
        return _number(cell)
    hours, minutes, seconds = (_number(part or "0") for part in match.groups())
    return 3600 * hours + 60 * minutes + seconds


def _number(cell: str) -> float:
    return float(cell.replace(",", "."))  # as spreadsheets write numbers in much of Europe
