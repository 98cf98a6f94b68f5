"""When a recording began, by the recorder's own clock: from what it wrote into the file, or into its name.

    path ─▶ recorded_at ─▶ date and time without a time zone, or None

Of these the first that is there: GUANO's timestamp; the name; other metadata of WAV files (`origin.py`). What a clock
showed is kept and not converted, because dawn is at an hour of the day. Names that are a number in hexadecimal, as
AudioMoth's first firmware gives them, count seconds since 1970 in UTC.
"""

import contextlib
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from birdtune.audio.chunks import wav_chunks
from birdtune.audio.origin import read_origin

# Of metadata: more is a damaged header.
_MOST_BYTES: Final = 1 << 16
# 20240517_043000 (AudioMoth, and Song Meter behind a site), 2024-05-17T04:30:00, 2024-05-17 04.30, 20240517T0430Z
_STAMP = re.compile(
    r"(?<!\d)((?:19|20)\d\d)([-_.]?)(0[1-9]|1[0-2])\2(0[1-9]|[12]\d|3[01])"
    r"(?:[T_\-.\s$]{1,3}|\sat\s)?"
    r"([01]\d|2[0-3])[-_.:h]?([0-5]\d)(?:[-_.:m]?([0-5]\d))?(?!\d)"
)
_HEXADECIMAL = re.compile(r"[0-9A-F]{8}")
# AudioMoth was first sold in 2017, and wrote such names until 2019; some still run.
_FIRST, _LAST = datetime(2017, 1, 1), datetime(2038, 1, 1)


def recorded_at(path: Path) -> datetime | None:
    """When a recording began; None: neither the file nor its name say. Raises nothing for what the file holds."""
    return _guano(path) or of_name(path.name) or _other_metadata(path)


def of_name(name: str) -> datetime | None:
    """The time in the name of a file, if there is a date with hour and minute; of several, the last."""
    stem = name.rpartition(".")[0] or name
    if _HEXADECIMAL.fullmatch(stem):
        found = datetime.fromtimestamp(int(stem, 16), UTC).replace(tzinfo=None)
        return found if _FIRST <= found < _LAST else None
    for match in reversed(list(_STAMP.finditer(stem))):
        year, _, month, day, hour, minute, second = match.groups()
        with contextlib.suppress(ValueError):  # 31 June
            return datetime(int(year), int(month), int(day), int(hour), int(minute), int(second or 0))
    return None


def _guano(path: Path) -> datetime | None:
    with contextlib.suppress(OSError, ValueError, OverflowError), path.open("rb") as file:
        for name, begin, length in wav_chunks(file):
            if name == b"guan":
                file.seek(begin)
                text = file.read(min(length, _MOST_BYTES)).decode("utf-8", "replace")
                fields = dict(line.partition(":")[::2] for line in text.splitlines())
                stamp = datetime.fromisoformat(fields.get("Timestamp", "").strip(" \t\r\0"))
                return stamp.replace(tzinfo=None)
    return None


def _other_metadata(path: Path) -> datetime | None:
    origin = read_origin(path, {}, 0)
    if origin is None or origin.start_s is None:
        return None
    with contextlib.suppress(OverflowError, OSError, ValueError):
        return datetime.fromtimestamp(origin.start_s, UTC).replace(tzinfo=None)
    return None
