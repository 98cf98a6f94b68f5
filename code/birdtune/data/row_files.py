"""Which file each row of a table is of, by its name.

    files, names as listed ─▶ match ─▶ Matched
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from birdtune.audio.container import FOREIGN_ENDINGS, SOUND_ENDINGS
from birdtune.data.scan import SoundFile

_XENO_CANTO = re.compile(r"XC\d+(?!\d)")


@dataclass(frozen=True)
class Matched:
    """Which rows are of which files."""

    rows_of: Mapping[str, Sequence[str]]  # name of a file → names in the table
    vague: Mapping[str, str]  # name of a file → a row that may be it or another one
    unused: Sequence[str]  # rows of no file
    ambiguous: Mapping[str, Sequence[str]]  # rows of neither of several files → the names of these


def match(files: Sequence[SoundFile], listed: Iterable[str]) -> Matched:
    """Find the files of each row: by the whole name, else by an end of it, else without its ending, or by its number
    at xeno-canto.

    Of the files that fit, one that no row fits better is taken before one that has its row; two rows of one file are
    both kept, as they may contradict each other.
    """
    rows_of: dict[str, list[str]] = defaultdict(list)
    vague: dict[str, str] = {}
    ambiguous: dict[str, list[str]] = {}
    left = list(listed)
    for bare in (False, True):
        by_key: dict[str, list[str]] = defaultdict(list)
        by_last: dict[str, list[tuple[str, str]]] = defaultdict(list)
        by_number: dict[str, list[str]] = defaultdict(list)
        for file in files:
            key = _key(file.name, bare)
            by_key[key].append(file.name)
            by_last[key.rpartition("/")[2]].append((key, file.name))
            if bare and (number := _XENO_CANTO.match(key.rpartition("/")[2])):
                by_number[number[0]].append(file.name)
        for whole in (True, False):
            taken, rest = set(rows_of), []
            for row in left:
                key = _key(row, bare)
                fit = by_key.get(key) or by_number.get(key, []) if whole else [
                    name for other, name in by_last.get(key.rpartition("/")[2], ())
                    if key.endswith(f"/{other}") or other.endswith(f"/{key}")
                ]  # fmt: skip
                fit = [name for name in fit if name not in taken] or fit
                if len(fit) == 1:
                    rows_of[fit[0]].append(row)
                    ambiguous.pop(row, None)
                    continue
                if fit:
                    ambiguous.setdefault(row, fit)
                if fit and not taken.issuperset(fit):
                    vague |= dict.fromkeys(fit, row)
                else:
                    rest.append(row)
            left = rest
    return Matched(rows_of, vague, [row for row in left if row not in ambiguous], ambiguous)


def _key(name: str, bare: bool) -> str:
    """A name as it is compared: with slashes, and without its ending if `bare`."""
    name = unicodedata.normalize("NFC", name).replace("\\", "/")
    stem, dot, ending = name.rpartition(".")
    return stem if bare and f"{dot}{ending}".lower() in SOUND_ENDINGS | FOREIGN_ENDINGS else name
