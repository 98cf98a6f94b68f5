"""A CSV of addresses → items.

    url,recording,label,secondary_labels,sha256,md5,author,licence,source     all but url may be missing
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Final
from urllib.parse import unquote, urlsplit

from birdtune.collect.item import Item, has_sound_ending, safe_name
from birdtune.data.annotations.table import secondary_of
from birdtune.data.tables import with_names
from birdtune.errors import InputError, shown
from birdtune.runtime.files import read_csv, require_file

COLUMNS: Final = (
    "url", "recording", "label", "secondary_labels", "sha256", "md5", "author", "licence", "source",
)  # fmt: skip
_SUMS: Final = {"sha256": re.compile(r"[0-9a-f]{64}"), "md5": re.compile(r"[0-9a-f]{32}")}
_SCHEMES: Final = ("http", "https", "s3")


def read(path: Path) -> list[Item]:
    """The items of a list; a row that is none is an item refused as `invalid`.

    Raises:
        InputError: it cannot be read, has no column url, or no row.
    """
    require_file(path, "collect csv", "a CSV with a column url")
    rows = with_names(read_csv(path, what="a list of addresses"), COLUMNS)
    if not rows or "url" not in rows[0]:
        has = ", ".join(map(shown, rows[0])) if rows else "no row"
        expected = f"expected the columns {', '.join(COLUMNS)}, of which url is needed"
        raise InputError(f"{shown(path)}: {expected}; has {has}.")
    return named([_item(number, row) for number, row in enumerate(rows, start=2)])


def _item(number: int, row: Mapping[str, str]) -> Item:
    cell = {name: (row.get(name) or "").strip() for name in COLUMNS}
    try:
        parts = urlsplit(cell["url"])
        is_address = parts.scheme in _SCHEMES and bool(parts.hostname)
    except ValueError:
        is_address = False
    sums = [f"{kind}:{cell[kind].lower()}" for kind in _SUMS if cell[kind]]
    is_sum = all(_SUMS[kind].fullmatch(cell[kind].lower()) for kind in _SUMS if cell[kind])
    path = unquote(parts.path) if is_address else ""
    name = safe_name(cell["recording"] or PurePosixPath(path).name)
    is_prefix = is_address and parts.scheme == "s3" and path.endswith("/")
    if is_prefix:
        name = safe_name(cell["recording"])
    refused = "" if is_address and is_sum and (is_prefix or has_sound_ending(name)) else "invalid"
    return Item(
        name or f"row-{number}", cell["url"], (cell["label"],) if cell["label"] else (),
        secondary_of(cell["secondary_labels"]), next(iter(sums), ""), None,
        cell["author"], cell["licence"], cell["source"], refused,
    )  # fmt: skip


def named(items: Sequence[Item]) -> list[Item]:
    """Items with a name each: rows of one address are one item, and names that several have get a digest."""
    by_url: dict[tuple[str, str], list[Item]] = defaultdict(list)
    for item in items:
        by_url[item.name, item.url].append(item)
    joined = [_joined(same) for same in by_url.values()]
    by_name: dict[str, list[Item]] = defaultdict(list)
    for item in joined:
        by_name[item.name].append(item)
    return [item for same in by_name.values() for item in _apart(same)]


def _joined(rows: Sequence[Item]) -> Item:
    first = rows[0]
    classes = dict.fromkeys(name for row in rows for name in row.classes)
    secondary = dict.fromkeys(name for row in rows for name in row.secondary if name not in classes)
    refused = next((row.refused for row in rows if row.refused), "")
    return replace(first, classes=tuple(classes), secondary=tuple(secondary), refused=refused)


def _apart(same: Sequence[Item]) -> Iterator[Item]:
    for item in same:
        path = PurePosixPath(item.name)
        digest = hashlib.sha256(item.url.encode()).hexdigest()[:8]
        yield item if len(same) == 1 else replace(item, name=path.with_stem(f"{path.stem}-{digest}").as_posix())
