"""The tables of a collected folder: what came of each recording, its labels, and whom to name.

    collected.csv      a row for each recording that was wanted: collected, failed with a reason, or waiting
    labels.csv         the labels of those that are there, as a run reads them
    attribution.csv    author, licence and page of those that are there
"""

import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit, urlunsplit

from birdtune.collect.item import PASSING, Item, RefusedError
from birdtune.errors import InputError, shown
from birdtune.runtime.files import make_folder, read_csv, write_csv

BOOK_NAME, LABELS_NAME, ATTRIBUTION_NAME = "collected.csv", "labels.csv", "attribution.csv"
_COLUMNS: Final = ("recording", "url", "segment", "status", "reason", "detail", "bytes", "sha256")
_LABELS: Final = ("recording", "label", "secondary_labels")
_ATTRIBUTION: Final = ("recording", "author", "licence", "source")
_EVERY_S = 10.0


class Book:
    """The tables of a folder, in memory and on the disk.

    Args:
        folder: of `collect`; it need not be there.

    Raises:
        InputError: the folder holds something else, or its tables cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._rows, self._labels, self._attribution = (
            _by_recording(folder / name) for name in (BOOK_NAME, LABELS_NAME, ATTRIBUTION_NAME)
        )
        if not self._rows and folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
            raise InputError(
                f"{shown(folder)}: is not empty, and has no {BOOK_NAME} of an earlier `collect`. Give a folder of its "
                "own, so that nothing in it is written over."
            )
        self._written_s = time.monotonic()

    @property
    def bytes_there(self) -> int:
        """Of all recordings that were collected."""
        return sum(int(_only(rows)["bytes"] or 0) for rows in self._rows.values())

    def status(self, name: str) -> str:
        """`collected`, `failed`, `waiting`; "" for what nobody wanted yet."""
        return _only(self._rows[name])["status"] if name in self._rows else ""

    def names(self, status: str) -> set[str]:
        """The recordings of a status."""
        return {name for name, rows in self._rows.items() if _only(rows)["status"] == status}

    def is_done(self, item: Item) -> bool:
        """Whether nothing is to be fetched: it is there as it is wanted, or failed for good."""
        row = _only(self._rows.get(item.name, [{}]))
        if row.get("status") != "collected":
            return row.get("status") == "failed" and row["url"] == public(item.url)
        kind, _, digest = item.checksum.partition(":")
        return (self.folder / item.name).is_file() and (kind != "sha256" or digest == row["sha256"])

    def forget_failures(self) -> None:
        """Let what failed for good be tried again."""
        for rows in self._rows.values():
            if _only(rows)["status"] == "failed":
                _only(rows)["status"] = "waiting"

    def want(self, items: Iterable[Item]) -> None:
        """Note what is to be fetched, with its labels as the list has them now."""
        for item in items:
            if not self.is_done(item) and self.status(item.name) != "waiting":
                self._note(item, "waiting", reason="waiting")
            secondary = ",".join(item.secondary)
            self._labels[item.name] = [
                {"recording": item.name, "label": label, "secondary_labels": secondary} for label in item.classes
            ]
            row = {"recording": item.name, "author": item.author, "licence": item.licence, "source": item.page}
            self._attribution[item.name] = [row] if item.author or item.licence or item.page else []

    def collected(self, item: Item, n_bytes: int, sha256: str) -> None:
        """Note a recording that is there."""
        self._note(item, "collected", bytes=str(n_bytes), sha256=sha256)

    def refused(self, item: Item, why: RefusedError) -> None:
        """Note why one is not."""
        status = "waiting" if why.reason in PASSING else "failed"
        self._note(item, status, reason=why.reason, detail=why.detail)

    def _note(self, item: Item, status: str, **cells: str) -> None:
        segment = "" if item.segment_s is None else f"{item.segment_s[0]:g}-{item.segment_s[1]:g} s"
        row = dict.fromkeys(_COLUMNS, "")
        self._rows[item.name] = [
            {**row, "recording": item.name, "url": public(item.url), "segment": segment, "status": status, **cells}
        ]

    def reasons(self, items: Iterable[Item]) -> Counter[str]:
        """How many of some items were not collected, by reason."""
        rows = [_only(self._rows[item.name]) for item in items if item.name in self._rows]
        return Counter(row["reason"] or "waiting" for row in rows if row["status"] != "collected")

    def write(self, *, every_s: float = 0.0) -> None:
        """Write the tables, unless they were in the last seconds. Raises as `storage_faults`."""
        if time.monotonic() - self._written_s < every_s:
            return
        make_folder(self.folder)
        there = self.names("collected")
        labels = [row for name, rows in sorted(self._labels.items()) if name in there for row in rows]
        attribution = [row for name, rows in sorted(self._attribution.items()) if name in there for row in rows]
        # What is there without a row would be taken for new; a row without its file is fetched again.
        write_csv(self.folder / BOOK_NAME, _COLUMNS, [_only(rows) for _, rows in sorted(self._rows.items())])
        for name, columns, rows in (
            (LABELS_NAME, _LABELS, labels), (ATTRIBUTION_NAME, _ATTRIBUTION, attribution),
        ):  # fmt: skip
            if rows or (self.folder / name).exists():
                write_csv(self.folder / name, columns, rows)
        self._written_s = time.monotonic()

    def keep(self) -> None:
        """Write the tables now and then."""
        self.write(every_s=_EVERY_S)


def public(url: str) -> str:
    """An address without what may be secret or changes from day to day: user, password, query."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""  # it is no address
    host = parts.netloc.rpartition("@")[2]
    query = parts.query if host.endswith("youtube.com") else ""
    return urlunsplit((parts.scheme, host, parts.path, query, ""))


def _by_recording(path: Path) -> dict[str, list[dict[str, str]]]:
    found: dict[str, list[dict[str, str]]] = {}
    for row in read_csv(path) if path.exists() else []:
        if "recording" not in row:
            raise InputError(f"{shown(path)}: has no column recording, so it is not of `collect`. Move it away.")
        found.setdefault(row["recording"], []).append(row)
    return found


def _only(rows: list[dict[str, str]]) -> dict[str, str]:
    return rows[0]


