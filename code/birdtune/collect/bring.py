"""Items → files in a folder, several at a time; every one is noted, with a reason if it is not there.

    plan ─▶ bring ─▶ Book, exit code
"""

import hashlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

from birdtune.audio.formats import kind_of
from birdtune.collect.book import BOOK_NAME, Book
from birdtune.collect.item import PASSING, REASONS, BudgetSpentError, Fetch, Item, RefusedError
from birdtune.errors import EXIT_DONE, InputError, RetryableError, shown
from birdtune.runtime.files import file_sha256, make_folder, new_file, remove_unfinished
from birdtune.runtime.log import Journal
from birdtune.runtime.signals import Interrupts
from birdtune.runtime.storage import size_text
from birdtune.runtime.text import count

# So many refusals that pass, one after another, mean that the network or the server is away.
_GIVE_UP = 10

# What is wanted, given what came of it so far.
Plan = Callable[[Book], list[Item]]


def bring(
    plan: Plan, book: Book, fetch: Fetch, connections: int, stop: threading.Event, journal: Journal,
    interrupts: Interrupts,
) -> int:  # fmt: skip
    """Fetch what is wanted and not there.

    Args:
        plan: asked again when its items are done, as others may replace those that failed.
        stop: set when all is to end; `fetch` heeds it.

    Returns: the exit code: all that can be had is there.

    Raises:
        RetryableError: some may be had next time.
        InputError: nothing could be had, or the limit is reached.
    """  # fmt: skip
    wanted, tried, is_limit = dict[str, Item](), set[str](), False
    while not stop.is_set():
        items = plan(book)
        wanted |= {item.name: item for item in items}
        due = [item for item in items if item.name not in tried and not book.is_done(item)]
        book.want(items)
        book.write()  # before the first file, so that the folder is known to be ours
        if not due:
            break
        tried |= {item.name for item in due}
        for folder in {(book.folder / item.name).parent for item in due}:
            remove_unfinished(folder)
        is_limit = _round(due, book, fetch, connections, stop, journal, interrupts)
    return _ended(list(wanted.values()), book, is_limit=is_limit, journal=journal)


def _round(
    due: Sequence[Item], book: Book, fetch: Fetch, connections: int, stop: threading.Event, journal: Journal,
    interrupts: Interrupts,
) -> bool:  # fmt: skip
    """Fetch some items; whether the limit was reached. Stops all where the network is away."""
    threads, spent, in_a_row = ThreadPoolExecutor(connections), False, 0
    try:
        with journal.progress("collect", len(due), "recordings") as progress:
            tasks = {threads.submit(_bring_one, item, book.folder, fetch): item for item in due}
            left: set[Future[tuple[int, str]]] = set(tasks)
            while left and not stop.is_set():
                interrupts.check()
                ready, left = wait(left, timeout=0.5, return_when=FIRST_COMPLETED)
                for task in ready:
                    progress.advance()
                    try:
                        book.collected(tasks[task], *task.result())
                        in_a_row = 0
                    except RefusedError as why:
                        book.refused(tasks[task], why)
                        in_a_row = in_a_row + 1 if why.is_passing else 0
                    except BudgetSpentError:
                        spent = True
                if spent or in_a_row >= _GIVE_UP:
                    stop.set()
                book.keep()
    finally:
        if left:
            stop.set()
        threads.shutdown(cancel_futures=True)
        for task in left:  # what arrived meanwhile
            if not task.cancelled() and task.exception() is None:
                book.collected(tasks[task], *task.result())
        book.write()
    return spent


def _bring_one(item: Item, folder: Path, fetch: Fetch) -> tuple[int, str]:
    """Bytes and SHA-256 of one recording, fetched unless it is there. Raises RefusedError or BudgetSpentError."""
    if item.refused:
        raise RefusedError(item.refused)
    target = folder / item.name
    if not target.resolve().is_relative_to(folder.resolve()):
        raise RefusedError("invalid", "a link leads its name out of the folder")
    make_folder(target.parent)
    if not target.is_file() or not _agrees(item, target):
        with new_file(target, "a recording") as temporary:
            fetch(item, temporary)
            if not temporary.stat().st_size:
                raise RefusedError("not-audio", "it is empty")
            if not (kind := kind_of(temporary)).is_sound and kind.demuxer is None:
                raise RefusedError("not-audio", f"it is {kind.words}")
            if not _agrees(item, temporary):
                raise RefusedError("checksum", f"it is not that of the list ({item.checksum[:20]}…)")
    return target.stat().st_size, file_sha256(target)


def _agrees(item: Item, path: Path) -> bool:
    kind, _, digest = item.checksum.partition(":")
    if kind == "md5":
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest() == digest
    return not kind or file_sha256(path) == digest


def _ended(items: Sequence[Item], book: Book, *, is_limit: bool, journal: Journal) -> int:
    """Say what is there and what is not; the exit code, or an error."""
    there = [item for item in items if book.status(item.name) == "collected"]
    classes = {name for item in there for name in item.classes}
    sizes = size_text(sum((book.folder / item.name).stat().st_size for item in there))
    of = f", {count(len(classes), 'class')}" if classes else ""
    journal.say(f"{shown(book.folder)}: {len(there):,} of {count(len(items), 'recording')} ({sizes}{of})")
    reasons = book.reasons(items)
    for reason, n in sorted(reasons.items(), key=lambda pair: (-pair[1], pair[0])):
        journal.say(f"  {n:>7,}  {reason:<13} {REASONS.get(reason, '')}")
    table = shown(book.folder / BOOK_NAME)
    passing = sum(n for reason, n in reasons.items() if reason in PASSING)
    if is_limit:
        raise InputError(
            f"--collect.max-gb is reached, with {count(passing, 'recording')} left. What is there is whole. Raise the "
            "limit and run again to continue."
        )
    if passing:
        raise RetryableError(
            f"{count(passing, 'recording')} could not be fetched now ({table} says why). Run again to continue; what "
            "is there is not fetched again."
        )
    if items and not there:
        raise InputError(f"none of {count(len(items), 'recording')} could be fetched; {table} says why.")
    if there:
        journal.say(f"To train on them: ./entrypoint.sh run --data {shown(book.folder)}")
    return EXIT_DONE
