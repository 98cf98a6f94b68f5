"""Tables as lists of records, of which each has all its columns: the JSON that `predict --format json` writes.

    [{"recording": "night1.wav", "start_s": 12.4, "end_s": 14.1, "label": "Strix aluco"}]
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from birdtune.data.annotations import table
from birdtune.data.annotations.rows import Options, Row
from birdtune.runtime.parsing import parse_json


def recognises(text: str, options: Options) -> bool:
    """Whether a text is such a list, by its first record; also the list of none that stands for no detections."""
    start = text.strip()
    if start == "[]":
        return True
    at = start.find("{")
    if at < 0 or start[:at].strip() != "[":
        return False
    try:
        first = json.JSONDecoder().raw_decode(start, at)[0]
    except (ValueError, RecursionError):
        return False
    return table.columns_of(list(first), options) is not None


def read(text: str, options: Options) -> list[Row]:
    """The rows of a JSON text. Raises ValueError: it is none, or no list of records."""
    return of(parse_json(text), options)


def header_of(text: str) -> list[str]:
    """The names of the columns."""
    return _header(parse_json(text))


def of(records: Any, options: Options) -> list[Row]:
    """The rows of some records, numbered from 1; what is no record is a fault of its row.

    Raises:
        ValueError: they are no list of records, or have no columns of annotations.
    """
    if not isinstance(records, Sequence) or (records and not any(isinstance(one, Mapping) for one in records)):
        raise ValueError("it is no list of records")
    header = _header(records)
    lines = [
        (number, [_cell(one.get(key)) for key in header])
        for number, one in enumerate(records, start=1) if isinstance(one, Mapping)
    ]  # fmt: skip
    rows = table.rows_of(header, lines, options) if lines else []
    odd = [
        Row(number, "", fault="is no record: expected {...} with the columns of the others")
        for number, one in enumerate(records, start=1) if not isinstance(one, Mapping)
    ]  # fmt: skip
    return sorted([*rows, *odd], key=lambda row: row.number)


def _header(records: Sequence[Any]) -> list[str]:
    return list(dict.fromkeys(key for one in records if isinstance(one, Mapping) for key in one))


def _cell(value: Any) -> str:
    return str(value).strip() if isinstance(value, str | int | float) else ""
