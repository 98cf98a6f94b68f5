r"""Audacity's label tracks: start, end and text of each label, with tabs; a second line may have its frequencies.

    12.400000	14.100000	Strix aluco
    \	400.000000	1200.000000
"""

import re
from dataclasses import replace

from birdtune.data.annotations.rows import Row

# Behind the label, in tracks that programs write: how sure they were.
_SCORE = re.compile(r"[01][.,]\d+")
# Whatever they hold, lines of two cells or more are rows: what is wrong with one is said of that row.
_FIRST = re.compile(r"\s*\d+(?:[.,]\d+)?\t\s*\d+(?:[.,]\d+)?(?:\t.*)?\s*")


def recognises(text: str) -> bool:
    """Whether a text begins as a label track does."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    return _FIRST.fullmatch(first) is not None


def read(text: str) -> list[Row]:
    """The labels of a track. An end that is missing, as of a point, is a fault of its row."""
    rows: list[Row] = []
    for number, line in enumerate(text.splitlines(), start=1):
        cells = [cell.strip() for cell in line.split("\t")]
        if cells[0] == "\\":
            if rows and len(cells) >= 3:
                low_hz, high_hz = (_frequency(cell) for cell in cells[1:3])
                rows[-1] = replace(rows[-1], cells={**rows[-1].cells, "low_hz": low_hz, "high_hz": high_hz})
        elif len(cells) >= 2:
            *words, score = cells[2:] if len(cells) == 4 and _SCORE.fullmatch(cells[3]) else [*cells[2:], ""]
            times = {"start_s": cells[0], "end_s": cells[1]}
            rows.append(Row(number, "\t".join(words).strip(), times, score=score))
        elif cells[0]:
            rows.append(Row(number, "", fault="is no label: expected start, end and text with tabs between them"))
    return rows


def _frequency(cell: str) -> str:
    """A bound of frequency; "" where Audacity writes that there is none (-1)."""
    return "" if cell.startswith("-") else cell
