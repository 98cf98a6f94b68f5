"""What the API of xeno-canto answers: a recording of one species each, and the others that can be heard behind it.

    {"recordings": [{"id": "134880", "gen": "Turdus", "sp": "merula", "en": "Common Blackbird",
                     "file-name": "XC134880-Merle.mp3", "also": ["Parus major"]}]}
"""

from collections.abc import Mapping
from typing import Any

from birdtune.data.annotations.rows import Options, Row
from birdtune.runtime.parsing import parse_json


def recognises(text: str) -> bool:
    """Whether a text is such an answer: JSON whose recordings have a genus and a species."""
    start = text.lstrip()[:65_536]
    return start.startswith(("{", "[")) and all(f'"{key}"' in start for key in ("gen", "sp"))


def read(text: str, options: Options) -> list[Row]:
    """The recordings of an answer, or of a list of answers, as pages come; what is neither is a fault of its row.

    Raises:
        ValueError: it is no JSON, or has no list of recordings.
    """
    pages = parse_json(text)
    found = [_recordings(page) for page in (pages if isinstance(pages, list) else [pages])]
    if all(recordings is None for recordings in found):
        raise ValueError("it has no list of recordings")
    each = [one for recordings in found for one in ([None] if recordings is None else recordings)]
    return [_row(number, one, options) for number, one in enumerate(each, start=1)]


def _recordings(page: Any) -> list[Any] | None:
    """Those of an answer; None: it is none."""
    if not isinstance(page, dict):
        return None
    recordings = page.get("recordings", [page] if "gen" in page else None)
    return recordings if isinstance(recordings, list) else None


def _row(number: int, one: Any, options: Options) -> Row:
    if not isinstance(one, dict):
        return Row(number, "", fault="is no recording of xeno-canto, as it has no genus and species")
    name = f"{_text(one, 'gen')} {_text(one, 'sp')}".strip()
    if (key := options.columns.get("label")) is not None:
        name = _text(one, key)
    also = one.get("also")
    others = [other.strip() for other in also if isinstance(other, str)] if isinstance(also, list) else []
    recording = f"XC{_text(one, 'id').removeprefix('XC')}"
    if recording == "XC":
        return Row(number, name, fault="has no id")
    return Row(
        number, name, recording=recording, path=_text(one, "file-name"), also=tuple(filter(None, others)),
        group=_text(one, options.group_column),
    )  # fmt: skip


def _text(one: Mapping[str, Any], key: str) -> str:
    value = one.get(key)
    return str(value).strip() if isinstance(value, str | int) else ""
