"""The command `collect`: what is asked for → a plan → files, labels and whom to name.

    Asked ─▶ collect ─▶ FOLDER/*, labels.csv, attribution.csv, collected.csv
"""

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from birdtune.collect import audioset, url_table, xeno_canto, youtube
from birdtune.collect.book import Book
from birdtune.collect.bring import Plan, bring
from birdtune.collect.item import Budget, Fetch, Item
from birdtune.collect.web import Downloader, Pace
from birdtune.config import Config
from birdtune.errors import EXIT_DONE, InputError, shown
from birdtune.runtime.files import make_folder
from birdtune.runtime.log import Journal
from birdtune.runtime.signals import Interrupts
from birdtune.runtime.text import count


@dataclass(frozen=True)
class Asked:
    """What the command line asks for.

    Attributes:
        folder: where recordings and tables go.
        dry_run: show the plan, and fetch no recording.
        retry: try again what failed for good.
    """

    folder: Path
    dry_run: bool = False
    retry: bool = False


class Tools:
    """What all sources share: the limit, the pauses, and the end of all waiting."""

    def __init__(self, config: Config, book: Book) -> None:
        settings = config.collect
        self.stop = threading.Event()
        self.budget = Budget(settings.max_gb * 1e9, book.bytes_there)
        self.pace = Pace(settings.pause_s, self.stop)
        self.most_bytes = round(settings.max_file_mb * 1e6)
        self.downloader = Downloader(settings, self.pace, self.stop, self.budget)

    def web_file(self, item: Item, target: Path) -> None:
        """A `Fetch` by HTTP(S)."""
        with target.open("xb") as file:
            self.downloader.fetch(item.url, file, self.most_bytes)


def from_urls(config: Config, asked: Asked, table: Path, journal: Journal, interrupts: Interrupts) -> int:
    """Collect what a list of addresses names. Returns the exit code. Raises as `bring`, and as `url_table.read`."""
    book = Book(asked.folder)
    tools = Tools(config, book)
    items, fetch = url_table.read(table), tools.web_file
    if any(item.url.startswith("s3://") for item in items):
        from birdtune.collect import bucket  # it loads boto3, which takes its time

        items = url_table.named(bucket.expanded(items, config.cloud, journal))
        of_s3 = bucket.Bucket(config.cloud, tools.most_bytes, tools.budget, interrupts)
        web_file = tools.web_file

        def fetch(item: Item, target: Path) -> None:
            (of_s3.fetch if bucket.is_in_s3(item) else web_file)(item, target)

    return _collect(config, asked, book, tools, lambda _: items, fetch, journal, interrupts)


@dataclass(frozen=True)
class Segments:
    """What is wanted of AudioSet: files, categories by name or id, how many segments of each, and as which files."""

    ontology: Path
    lists: Sequence[Path]
    categories: Sequence[str]
    per_class: int
    seed: int
    kind: str


def from_audioset(config: Config, asked: Asked, wanted: Segments, journal: Journal, interrupts: Interrupts) -> int:
    """Collect segments of AudioSet. Returns the exit code.

    Raises:
        InputError: a file is none of AudioSet, has no such category, or a program is not there.
        others as `bring`.
    """
    ontology = audioset.Ontology(wanted.ontology)
    categories = list({one.id: one for one in map(ontology.category, wanted.categories)}.values())
    ids = frozenset[str]().union(*(category.ids for category in categories))
    segments, notes = audioset.read_segments(wanted.lists, ids)
    for note in notes:
        journal.warn(note)
    if not segments:
        raise InputError("--segments: no segment of these lists is of one of the categories.")
    listing = audioset.Listing(ontology, categories, segments, wanted.per_class, wanted.seed, wanted.kind)
    program = "" if asked.dry_run else youtube.programs()
    book = Book(asked.folder)
    tools = Tools(config, book)
    if asked.retry:
        book.forget_failures()
    failed = book.names("failed")
    for line in listing.table(listing.plan(failed), failed, book.names("collected")):
        journal.say(line)
    if asked.dry_run:
        return EXIT_DONE
    videos = youtube.YouTube(
        program, wanted.kind, config.collect.timeout_s, tools.most_bytes, tools.budget, tools.pace, tools.stop
    )
    return _collect(
        config, asked, book, tools, lambda book: listing.plan(book.names("failed")), videos.fetch, journal, interrupts
    )


@dataclass(frozen=True)
class Query:
    """What is asked of xeno-canto: its own query, with the key of the API, and what is wanted of the answer."""

    text: str
    key: str
    wanted: xeno_canto.Filter


def from_xeno_canto(config: Config, asked: Asked, query: Query, journal: Journal, interrupts: Interrupts) -> int:
    """Collect what xeno-canto finds. Returns the exit code. Raises as `bring`, and as `xeno_canto.answers`."""
    book = Book(asked.folder)
    tools = Tools(config, book)
    asking = Downloader(config.collect, tools.pace, tools.stop, None)
    found = xeno_canto.answers(asking, query.text, query.key)
    chosen, refused = xeno_canto.chosen(found, query.wanted)
    left = "".join(f", {n:,} {xeno_canto.NOT_WANTED[why]}" for why, n in refused.items())
    journal.say(f"xeno-canto: {count(len(found), 'recording')} found, {len(chosen):,} wanted{left}")
    if not chosen:
        raise InputError("xeno-canto has no recording that is wanted. Check the query and the filters.")
    items = xeno_canto.items(chosen)
    if not asked.dry_run:
        make_folder(asked.folder)
        book.want(items)
        book.write()  # before the first other file, so that the folder is known to be ours
        xeno_canto.keep_metadata(asked.folder, chosen)
    return _collect(config, asked, book, tools, lambda _: items, tools.web_file, journal, interrupts)


def _collect(
    config: Config, asked: Asked, book: Book, tools: Tools, plan: Plan, fetch: Fetch, journal: Journal,
    interrupts: Interrupts,
) -> int:  # fmt: skip
    if asked.retry:
        book.forget_failures()
    if asked.dry_run:
        items = plan(book)
        there = sum(book.status(item.name) == "collected" for item in items)
        planned = Counter(name for item in items for name in item.classes)
        for name, n in sorted(planned.items()):
            journal.say(f"  {n:>7,}  {shown(name)}")
        journal.say(f"{count(len(items), 'recording')} planned, {there:,} of them there already; nothing was fetched")
        return EXIT_DONE
    return bring(plan, book, fetch, config.collect.connections, tools.stop, journal, interrupts)
