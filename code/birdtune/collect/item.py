"""What is to be fetched, and why something was not.

    list of URLs | AudioSet | xeno-canto ─▶ Item ─▶ Fetch ─▶ a file, or RefusedError with a reason
"""

import re
import threading
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from birdtune.audio.container import FOREIGN_ENDINGS, SOUND_ENDINGS
from birdtune.errors import shown

# Reason → what a person can do about it. Those of `PASSING` are tried again by the next call.
REASONS: Final = {
    "removed": "nothing: it is gone",
    "private": "nothing: its owner shows it to some people only",
    "region": "collect from another country",
    "age": "nothing: it is shown after a login only",
    "copyright": "nothing: it is blocked",
    "no-sound": "nothing: there is no sound to fetch",
    "too-short": "nothing: it ends before the segment does",
    "too-large": "raise --collect.max-file-mb",
    "not-found": "correct the address",
    "forbidden": "check that you may fetch it",
    "not-audio": "look at the address: it leads to something else than a recording",
    "checksum": "correct the checksum in the list, or the address",
    "restricted": "nothing: the recording of a threatened species is not given out",
    "no-species": "nothing: it is of no single species that is known",
    "invalid": "correct the row",
    "failed": "read the detail",
    "timeout": "run again",
    "rate-limited": "run again later, with a longer --collect.pause-s",
    "server": "run again",
    "network": "run again",
    "cut-off": "run again",
    "waiting": "run again",
}
PASSING: Final = frozenset({"timeout", "rate-limited", "server", "network", "cut-off", "waiting"})

_ODD = re.compile(r"[^\w .,()+#=-]")
_LONGEST = 120  # characters of a part of a name; in UTF-8 at most 4 bytes each, more than file systems take: cut below
_LONGEST_BYTES = 200


@dataclass(frozen=True)
class Item:
    """One recording to fetch.

    Attributes:
        name: path below the folder, as of `safe_name`.
        url: http, https or s3.
        classes: its labels; none: its folder names the class.
        secondary: classes that are in it somewhere as well.
        checksum: "sha256:…" or "md5:…" in small letters; "": none is known.
        segment_s: begin and end of the part that is wanted; None: all of it.
        author, licence, page: whom to name, under which terms, and where it was published.
        refused: why it cannot be fetched, known beforehand: a key of REASONS.
    """

    name: str
    url: str
    classes: tuple[str, ...] = ()
    secondary: tuple[str, ...] = ()
    checksum: str = ""
    segment_s: tuple[float, float] | None = None
    author: str = ""
    licence: str = ""
    page: str = ""
    refused: str = ""


# Writes what an item is into a file that is not there yet. Raises RefusedError or BudgetSpentError.
Fetch = Callable[[Item, Path], None]


class RefusedError(Exception):
    """An item was not fetched.

    Args:
        reason: a key of REASONS.
        detail: in words; nothing secret, such as an address with a key in it.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, shown(detail)[:200]

    @property
    def is_passing(self) -> bool:
        """Whether the next call may have more luck."""
        return self.reason in PASSING


class BudgetSpentError(Exception):
    """What may be fetched in all has been."""


class Budget:
    """How many bytes may come from the network; threads share it.

    Args:
        limit: in bytes.
        used: by what is there already.
    """

    def __init__(self, limit: float, used: int = 0) -> None:
        self._limit, self._used, self._lock = limit, used, threading.Lock()

    def take(self, n_bytes: int) -> None:
        """Count bytes as they arrive. Raises BudgetSpentError: they are too many."""
        with self._lock:
            if self._used + n_bytes > self._limit:
                raise BudgetSpentError
            self._used += n_bytes


def safe_name(text: str) -> str:
    """A relative path that stays below any folder: no `..`, no leading dot or hyphen, odd characters as `_`.

    Returns "" where nothing is left of it.
    """
    parts = [_safe_part(part) for part in unicodedata.normalize("NFC", text).replace("\\", "/").split("/")]
    return "/".join(filter(None, parts))


def _safe_part(part: str) -> str:
    clean = _ODD.sub("_", part).lstrip(" .-").rstrip(" .")
    path = PurePosixPath(clean or "_")
    stem, ending = path.stem[: _LONGEST - len(path.suffix)], path.suffix[:_LONGEST]
    while len(f"{stem}{ending}".encode()) > _LONGEST_BYTES:
        stem, ending = stem[:-1], ending if stem else ending[:-1]
    return f"{stem}{ending}" if clean else ""


def has_sound_ending(name: str) -> bool:
    """Whether a name ends as that of a recording does."""
    return PurePosixPath(name).suffix.lower() in SOUND_ENDINGS | FOREIGN_ENDINGS
