"""Recordings in S3: a prefix → items, and an item → a file, by `birdtune.cloud`."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from birdtune.cloud.client import Storage, connect
from birdtune.cloud.fetch import Index, Object, bring_all, listing
from birdtune.cloud.places import Place, place_of
from birdtune.collect.item import Budget, Item, RefusedError, has_sound_ending, safe_name
from birdtune.errors import InputError, RetryableError, SettingsError, shown
from birdtune.runtime.files import make_folder
from birdtune.runtime.log import Journal
from birdtune.runtime.signals import Interrupts
from birdtune.runtime.storage import UNFINISHED
from birdtune.settings import CloudSettings

_SCHEME: Final = "s3://"


def is_in_s3(item: Item) -> bool:
    """Whether it lies in S3."""
    return item.url.startswith(_SCHEME)


def expanded(items: Sequence[Item], settings: CloudSettings, journal: Journal) -> list[Item]:
    """The same items, with the recordings below it in place of each `s3://BUCKET/PREFIX/`.

    Raises:
        InputError, RetryableError: nothing lies there; or S3 refuses or fails.
    """
    if not any(is_in_s3(item) and item.url.endswith("/") and not item.refused for item in items):
        return list(items)
    storage, found = connect(settings), list[Item]()
    for item in items:
        if not (is_in_s3(item) and item.url.endswith("/")) or item.refused:
            found.append(item)
            continue
        source, objects = listing(storage, _place(item))
        sounds = [one for one in objects if has_sound_ending(one.name)]
        if not sounds:
            raise InputError(f"{shown(item.url)}: no recordings lie there. Check the bucket and the prefix.")
        if others := len(objects) - len(sounds):
            journal.say(f"note: {shown(item.url)}: {others:,} other files there are no recordings by their names")
        folder = "" if item.name.startswith("row-") else f"{item.name}/"
        found += [
            replace(item, name=safe_name(f"{folder}{one.name}"), url=str(source.below(one.name)), checksum="")
            for one in sounds
        ]
    return found


class Bucket:
    """Fetches from S3.

    Args:
        budget: of all recordings together.
    """

    def __init__(
        self, settings: CloudSettings, most_bytes: int, budget: Budget, interrupts: Interrupts
    ) -> None:  # fmt: skip
        self._storage: Storage = connect(settings)
        self._most_bytes, self._budget, self._interrupts = most_bytes, budget, interrupts

    def fetch(self, item: Item, target: Path) -> None:
        """Write an object into a file that is not there yet. Raises RefusedError or BudgetSpentError."""
        place = _place(item)
        try:
            source, objects = listing(self._storage, place)
            one = next((found for found in objects if source.below(found.name) == place), None)
            if one is None:
                raise RefusedError("not-found", "there is no such object")
            if one.size > self._most_bytes:
                raise RefusedError("too-large", f"{one.size:,} bytes")
            self._budget.take(one.size)
            self._bring(source, one, target)
        except RetryableError as fault:
            raise RefusedError("server", str(fault)) from fault
        except InputError as fault:
            raise RefusedError("forbidden", str(fault)) from fault

    def _bring(self, source: Place, one: Object, target: Path) -> None:
        with TemporaryDirectory(prefix=UNFINISHED, dir=target.parent) as room:
            index, place = Index(Path(room) / "index.json"), make_folder(Path(room) / "object")
            bring_all(self._storage, source, place, [one], index, Journal(quiet=True), self._interrupts)
            (place / one.name).replace(target)


def _place(item: Item) -> Place:
    try:
        place = place_of(item.url)
    except SettingsError as fault:
        raise RefusedError("invalid", str(fault)) from fault
    assert place is not None
    return place
