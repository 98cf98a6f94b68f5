"""AudioSet: its ontology and lists of segments → which segments are fetched.

    ontology.json, *_segments.csv, categories ─▶ Listing ─▶ plan ─▶ items, and a table of categories
"""

import csv
import hashlib
import io
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from birdtune.collect.item import Item
from birdtune.errors import InputError, shown
from birdtune.runtime.configure import nearest
from birdtune.runtime.files import require_file
from birdtune.runtime.parsing import finite, open_regular, parse_json, read_bounded
from birdtune.runtime.text import count

_MOST_BYTES = 64 << 20
_VIDEO = re.compile(r"[A-Za-z0-9_-]{11}")
_LONGEST_S = 600.0
_LICENCE: Final = "its uploader's terms (YouTube); labels: AudioSet, CC BY 4.0"


@dataclass(frozen=True)
class Category:
    """A category that is wanted: its id and name, and the ids of it and all below it."""

    id: str
    name: str
    ids: frozenset[str]


@dataclass(frozen=True)
class Segment:
    """A segment of a video, with the ids of its labels."""

    video: str
    start_s: float
    end_s: float
    labels: tuple[str, ...]

    @property
    def name(self) -> str:
        """Of its file, without an ending; the span makes the video its source recording."""
        return f"Y{self.video}_{self.start_s:g}s_{self.end_s:g}s"


class Ontology:
    """The categories of AudioSet.

    Raises:
        InputError: the file cannot be read, or is no ontology.
    """

    def __init__(self, path: Path) -> None:
        require_file(path, "--ontology", "AudioSet's ontology.json")
        try:
            rows = parse_json(read_bounded(path, _MOST_BYTES, "an ontology").decode())
            self.names: dict[str, str] = {str(row["id"]): str(row["name"]) for row in rows}
            self._below: dict[str, list[str]] = {row["id"]: list(map(str, row["child_ids"])) for row in rows}
            if not self.names:
                raise ValueError("it is empty")
        except (ValueError, TypeError, KeyError) as fault:
            raise InputError(
                f"{shown(path)}: is no ontology of AudioSet; expected a list of {{id, name, child_ids}}."
            ) from fault

    def category(self, text: str) -> Category:
        """A category by its id or name, in any case. Raises InputError: there is none, or there are several."""
        wanted = text.strip().casefold()
        found = [text] if text in self.names else [id_ for id_, name in self.names.items() if name.casefold() == wanted]
        if not found:
            raise InputError(
                f"--categories {shown(text)}: AudioSet has no such category{nearest(text, self.names.values())}. Names "
                "with commas or blanks need quotes."
            )
        if len(found) > 1:
            raise InputError(f"--categories {shown(text)}: several are called so: {', '.join(found)}. Give the id.")
        return Category(found[0], self.names[found[0]], frozenset(self._all_below(found[0])))

    def _all_below(self, id_: str) -> Iterator[str]:
        seen, left = set[str](), [id_]
        while left:
            one = left.pop()
            if one not in seen:
                seen.add(one)
                yield one
                left += self._below.get(one, [])


def read_segments(paths: Sequence[Path], wanted: frozenset[str]) -> tuple[list[Segment], list[str]]:
    """The segments with a label that is wanted, each once.

    Returns: them, and what is to be said of rows that are none.

    Raises:
        InputError: a file cannot be read, or has no segment in it.
    """
    found, notes = dict[str, Segment](), list[str]()
    for path in paths:
        require_file(path, "--segments", "a list of segments of AudioSet")
        n_rows, odd = 0, list[int]()
        with open_regular(path, "a list of segments") as file, io.TextIOWrapper(file, "utf-8", "replace") as text:
            for number, row in enumerate(_rows(text, path), start=1):
                n_rows += bool(row)
                segment = _segment(row) if row else None
                if row and segment is None:
                    odd.append(number)
                if segment is not None and not wanted.isdisjoint(segment.labels):
                    found.setdefault(segment.name, segment)
        if n_rows == len(odd):
            raise InputError(
                f"{shown(path)}: has no segments; expected rows `YTID, start_seconds, end_seconds, positive_labels` as "
                "in balanced_train_segments.csv."
            )
        if odd:
            notes.append(f"{shown(path)}: {len(odd):,} of {n_rows:,} rows are no segments, the first is row {odd[0]:,}")
    return list(found.values()), notes


def _rows(text: io.TextIOWrapper, path: Path) -> Iterator[list[str]]:
    """The rows of a list; of comments and empty lines, []."""
    try:
        for row in csv.reader(text, skipinitialspace=True):
            yield [] if not row or row[0].startswith("#") else [cell.strip() for cell in row]
    except csv.Error as fault:
        raise InputError(f"{shown(path)}: is no CSV table ({fault}).") from fault


def _segment(row: Sequence[str]) -> Segment | None:
    if len(row) != 4 or not _VIDEO.fullmatch(row[0]):
        return None
    try:
        start_s, end_s = finite(row[1]), finite(row[2])
    except ValueError:
        return None
    labels = tuple(dict.fromkeys(filter(None, (label.strip() for label in row[3].split(",")))))
    return Segment(row[0], start_s, end_s, labels) if 0 <= start_s < end_s <= start_s + _LONGEST_S and labels else None


class Listing:
    """The segments of some categories, and which of them are wanted.

    Args:
        per_class: segments of each category.
        seed: draws them: a larger number adds to those of a smaller one.
        kind: ending of their files.
    """

    def __init__(
        self, ontology: Ontology, categories: Sequence[Category], segments: Sequence[Segment], per_class: int,
        seed: int, kind: str,
    ) -> None:  # fmt: skip
        self._names, self._per_class, self._kind = ontology.names, per_class, kind
        ranked = sorted(segments, key=lambda one: hashlib.sha256(f"{seed}:{one.name}".encode()).digest())
        self.of_category: Mapping[Category, list[Segment]] = {
            category: [one for one in ranked if not category.ids.isdisjoint(one.labels)] for category in categories
        }

    def file_name(self, segment: Segment) -> str:
        """The name of a segment's file."""
        return f"{segment.name}.{self._kind}"

    def plan(self, failed: Collection[str]) -> list[Item]:
        """What is wanted; of what failed for good, others of its category replace it.

        The rarest category is dealt with first, as its segments are often of others, too.

        Args:
            failed: names of files.
        """
        chosen = dict[str, Segment]()
        for segments in sorted(self.of_category.values(), key=len):
            usable = [one for one in segments if self.file_name(one) not in failed]
            lack = self._per_class - sum(one.name in chosen for one in usable)
            fresh = [one for one in usable if one.name not in chosen]
            chosen |= {one.name: one for one in fresh[: max(0, lack)]}
        return [self._item(one) for one in chosen.values()]

    def table(self, items: Sequence[Item], failed: Collection[str], there: Collection[str]) -> Iterator[str]:
        """A line for each category: listed, wanted, there already, failed."""
        names = {item.name for item in items}
        width = min(48, max(len(category.name) for category in self.of_category) + 2)
        yield f"  {'category':<{width}}{'listed':>9}{'planned':>9}{'there':>9}{'failed':>9}"
        for category, segments in self.of_category.items():
            own = {self.file_name(one) for one in segments}
            counts = (len(own), len(own & names), len(own & names & {*there}), len(own & {*failed}))
            yield f"  {category.name[: width - 2]:<{width}}" + "".join(f"{n:>9,}" for n in counts)
        seconds = sum(item.segment_s[1] - item.segment_s[0] for item in items if item.segment_s)
        yield f"  {count(len(items), 'segment')}, {seconds / 3600:.2f} h"

    def _item(self, segment: Segment) -> Item:
        url = f"https://www.youtube.com/watch?v={segment.video}"
        classes = tuple(dict.fromkeys(self._names.get(label, label) for label in segment.labels))
        return Item(
            self.file_name(segment), url, classes, segment_s=(segment.start_s, segment.end_s), licence=_LICENCE,
            page=url,
        )  # fmt: skip


