"""From S3 to this machine: what is new or changed, several objects at a time, each verified.

    Place ─▶ listing ─▶ objects that differ from what the index knows ─▶ files, and the index

An object is fetched under a temporary name and takes its place when it is whole: its length, and the SHA-256 that
birdtune stored with it or the MD5 of its ETag, agree. A transfer that breaks off goes on at the byte where it did, also
in a later process, where such a sum tells that the two parts fit.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import tempfile
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any

import botocore.exceptions
import urllib3.exceptions

from birdtune.cloud.client import Storage, faults
from birdtune.cloud.places import Place, is_safe
from birdtune.errors import InputError, RetryableError, shown
from birdtune.runtime.files import make_folder, read_json, write_json
from birdtune.runtime.log import Journal
from birdtune.runtime.signals import Interrupts
from birdtune.runtime.storage import need_space, size_text, storage_faults
from birdtune.runtime.text import count, some

SHA256 = "sha256"  # the metadata of an object in which birdtune stores it
_BLOCK_BYTES = 1 << 18
_INDEX_EVERY_S = 5.0  # a killed process has at most so much to fetch again
# How often a transfer goes on after a break without a byte in between, and the pause before, which doubles.
_ATTEMPTS, _PAUSE_S = 6, 0.25
_MD5 = re.compile(r"[0-9a-f]{32}")  # an ETag with a hyphen is that of several parts, and no MD5
_BROKEN = (
    botocore.exceptions.IncompleteReadError, botocore.exceptions.ResponseStreamingError,
    botocore.exceptions.ReadTimeoutError, botocore.exceptions.ConnectionClosedError, urllib3.exceptions.HTTPError,
)  # fmt: skip


@dataclass(frozen=True)
class Object:
    """An object, by its key relative to the place."""

    name: str
    size: int
    etag: str


@dataclass
class Index:
    """Which files of a local folder are as objects of a place are: name → [ETag, size, mtime_ns]."""

    path: Path
    rows: dict[str, list[Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "Index":
        """An index as it was written; an empty one where it is missing or damaged."""
        rows = read_json(path)
        return cls(path, {name: row for name, row in rows.items() if is_safe(name)} if isinstance(rows, dict) else {})

    def temporary(self, name: str) -> Path:
        """Where the file of an object is while it is fetched."""
        return self.path.with_suffix("") / hashlib.sha256(name.encode()).hexdigest()[:32]

    def write(self) -> None:
        """Keep it on the disk. Raises as `storage_faults`."""
        make_folder(self.path.parent)
        write_json(self.path, self.rows, durable=False)

    def note(self, name: str, etag: str, status: os.stat_result) -> None:
        """A file of this status is as the object is."""
        self.rows[name] = [etag, status.st_size, status.st_mtime_ns]

    def has(self, name: str, file: Path, etag: str | None = None) -> bool:
        """Whether a file is as it was when it was noted; with `etag`, also whether the object still is."""
        row = self.rows.get(name)
        if row is None or len(row) != 3 or (etag is not None and row[0] != etag):
            return False
        try:
            status = file.stat()
        except OSError:
            return False
        return row[1:] == [status.st_size, status.st_mtime_ns]


def index_of(place: Place, folder: Path) -> Index:
    """The index of a place below `--cloud.folder`."""
    return Index.read(folder / ".index" / f"{hashlib.sha256(str(place).encode()).hexdigest()[:32]}.json")


def listing(storage: Storage, place: Place) -> tuple[Place, list[Object]]:
    """What lies at a place: all below it; else the object itself; else what continues its name behind a point, as the
    files of TensorFlow's checkpoints do.

    Returns: the place that the names of the objects begin at, and the objects.

    Raises:
        InputError, RetryableError: as `client.faults`.
    """
    with faults(place):
        if below := list(_listed(storage, place, place.prefix)):
            return place, below
        parent = Place(place.bucket, place.key.rpartition("/")[0])
        name = place.key.removeprefix(parent.prefix)
        beside = list(_listed(storage, parent, place.key)) if place.key else []
    one = [found for found in beside if found.name == name]
    return parent, one or [found for found in beside if found.name.startswith(f"{name}.")]


def _listed(storage: Storage, place: Place, prefix: str) -> Iterator[Object]:
    """Objects whose keys begin with a prefix, by names relative to a place."""
    pages = storage.client.get_paginator("list_objects_v2").paginate(
        Bucket=place.bucket, Prefix=prefix, **storage.extra
    )
    for page in pages:
        for row in page.get("Contents", ()):
            if not row["Key"].endswith("/"):  # what consoles make to show a folder
                yield Object(row["Key"].removeprefix(place.prefix), int(row["Size"]), row["ETag"].strip('"'))


def fetch(
    storage: Storage, place: Place, folder: Path, journal: Journal, interrupts: Interrupts,
    without: Collection[Place] = (),
) -> Path:  # fmt: skip
    """Bring what lies at a place to this machine; what is there and unchanged is not fetched again.

    Args:
        folder: `--cloud.folder`.
        without: objects that are not needed here.

    Returns: the file or folder of this machine.

    Raises:
        InputError: nothing lies there; or as `client.faults`.
        RetryableError: the disk is too full, the transfer fails, or what arrives is not what was stored.
    """
    source, objects = listing(storage, place)
    if not objects:
        raise InputError(f"{shown(place)}: nothing lies there. Check the bucket and the key.")
    needed = [each for each in objects if source.below(each.name) not in without]
    bring(storage, source, source.local(folder), needed, index_of(place, folder), journal, interrupts)
    return place.local(folder)


def bring(
    storage: Storage, source: Place, base: Path, objects: Sequence[Object], index: Index, journal: Journal,
    interrupts: Interrupts,
) -> None:
    """Make files below `base` of objects below `source`; what the index knows and the objects lack is removed.

    Raises as `fetch`.
    """  # fmt: skip
    objects = _with_usable_names(objects, source, journal)
    for name in index.rows.keys() - {each.name for each in objects}:
        _remove(base, name)
        del index.rows[name]
    due = [each for each in objects if not index.has(each.name, base / each.name, each.etag)]
    if due:
        need_space(base, sum(each.size for each in due), f"what lies at {shown(source)}")
        bring_all(storage, source, base, due, index, journal, interrupts)
    if objects:
        size = size_text(sum(each.size for each in objects))
        new = f"{len(due):,} new or changed" if due else "all here already"
        journal.say(f"  {shown(source)}: {count(len(objects), 'object')} ({size}), {new}")


def _remove(base: Path, name: str) -> None:
    """Remove a file, and the folders that it leaves empty."""
    (base / name).unlink(missing_ok=True)
    for folder in (base / name).parents:
        if folder == base:
            return
        with contextlib.suppress(OSError):
            folder.rmdir()


def _with_usable_names(objects: Sequence[Object], source: Place, journal: Journal) -> list[Object]:
    folders = {parent.as_posix() for each in objects for parent in PurePosixPath(each.name).parents}
    usable = [each for each in objects if is_safe(each.name) and each.name not in folders]
    if left := sorted({each.name for each in objects} - {each.name for each in usable}):
        journal.warn(
            f"{shown(source)}: {count(len(left), 'object')} cannot be files, as their keys have empty parts, `.`, "
            f"`..`, names of more than 255 bytes, or are folders of others, and are left out: {some(left)}"
        )
    return usable


def bring_all(
    storage: Storage, source: Place, base: Path, due: Sequence[Object], index: Index, journal: Journal,
    interrupts: Interrupts,
) -> None:  # fmt: skip
    """Make files below `base` of objects below `source`, whatever is there. Raises as `fetch`."""
    stop = threading.Event()
    threads = ThreadPoolExecutor(storage.connections)
    try:
        with journal.progress("fetch", len(due), "objects") as progress:
            tasks = {threads.submit(_bring_one, storage, source, each, base, index, stop): each for each in due}
            left, written_s = set(tasks), time.monotonic()
            while left:
                interrupts.check()
                ready, left = wait(left, timeout=0.5, return_when=FIRST_COMPLETED)
                for task in ready:
                    index.note(tasks[task].name, task.result(), (base / tasks[task].name).stat())
                    progress.advance()
                if time.monotonic() > written_s + _INDEX_EVERY_S:
                    index.write()
                    written_s = time.monotonic()
    finally:
        stop.set()
        threads.shutdown(cancel_futures=True)
        index.write()  # what has arrived need not be fetched again


def _bring_one(
    storage: Storage, source: Place, wanted: Object, base: Path, index: Index, stop: threading.Event
) -> str:
    """Fetch one object; its ETag."""
    place, target, temporary = source.below(wanted.name), base / wanted.name, index.temporary(wanted.name)
    make_folder(target.parent)
    make_folder(temporary.parent)
    with faults(place), storage_faults(target, needed=wanted.size):
        for _ in range(_ATTEMPTS):
            with _alone(temporary) as file:
                etag, is_whole = _transfer(storage, place, file, stop)
                if is_whole:
                    Path(file.name).replace(target)
                    return etag
                file.truncate(0)
    raise RetryableError(
        f"{shown(place)}: what arrives is not what was stored ({_ATTEMPTS} times, by its checksum). The network or the "
        "storage damages it. Run again to continue; if it stays so, store the object anew."
    )


@contextlib.contextmanager
def _alone(temporary: Path) -> Iterator[IO[bytes]]:
    """A file to append to and read; where another process fetches the same object, one of its own."""
    with temporary.open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not temporary.exists():
                raise BlockingIOError  # the other process has just put it in its place
        except BlockingIOError:
            with tempfile.NamedTemporaryFile(dir=temporary.parent, delete=False) as own:
                try:
                    yield own
                finally:
                    Path(own.name).unlink(missing_ok=True)
            return
        yield file


def _transfer(storage: Storage, place: Place, file: IO[bytes], stop: threading.Event) -> tuple[str, bool]:
    """The bytes of an object, from break to break; its ETag, and whether they are as stored."""
    sums = {"sha256": hashlib.sha256(), "md5": hashlib.md5(usedforsecurity=False)}
    stored: tuple[str, str] | None = None
    etag, breaks, n_bytes, size = "", 0, 0, None
    if file.tell():  # of an earlier process
        head = storage.client.head_object(Bucket=place.bucket, Key=place.key, **storage.extra)
        etag, size, stored = _identity(head)
        n_bytes = _begun(file, sums, size) if stored is not None else 0
        file.truncate(n_bytes)
    while size is None or n_bytes < size:
        before = n_bytes
        try:
            part = {"Range": f"bytes={n_bytes}-", "IfMatch": f'"{etag}"'} if n_bytes else {}
            answer = storage.client.get_object(Bucket=place.bucket, Key=place.key, **part, **storage.extra)
            if not n_bytes:
                etag, size, stored = _identity(answer)
            for block in iter(partial(answer["Body"].read, _BLOCK_BYTES), b""):
                if stop.is_set():
                    raise RetryableError(f"{shown(place)}: its transfer was stopped. Run again to continue.")
                file.write(block)
                n_bytes += len(block)
                for each in sums.values():
                    each.update(block)
        except botocore.exceptions.FlexibleChecksumError:
            return etag, False
        except _BROKEN:
            breaks = breaks + 1 if n_bytes == before else 0
            if breaks == _ATTEMPTS:
                raise
            stop.wait(_PAUSE_S * 2**breaks)
    file.flush()
    return etag, n_bytes == size and (stored is None or sums[stored[0]].hexdigest() == stored[1])


def _begun(file: IO[bytes], sums: Mapping[str, Any], size: int) -> int:
    """How many bytes of an object are there from an earlier process; they are added to the sums."""
    file.seek(0)
    n_bytes = 0
    while n_bytes < size and (block := file.read(min(_BLOCK_BYTES, size - n_bytes))):
        n_bytes += len(block)
        for each in sums.values():
            each.update(block)
    return n_bytes


def _identity(answer: Mapping[str, Any]) -> tuple[str, int, tuple[str, str] | None]:
    """ETag, size and stored checksum of an object."""
    return answer["ETag"].strip('"'), int(answer["ContentLength"]), _stored_sum(answer)


def _stored_sum(answer: Mapping[str, Any]) -> tuple[str, str] | None:
    """The checksum that an object was stored with: its kind and value; None: it has none that can be compared."""
    if SHA256 in answer["Metadata"]:
        return "sha256", answer["Metadata"][SHA256]
    etag = answer["ETag"].strip('"')
    # With keys of one's own, an ETag looks like an MD5 and is none.
    is_plain = answer.get("ServerSideEncryption", "AES256") == "AES256" and "SSECustomerAlgorithm" not in answer
    return ("md5", etag) if is_plain and _MD5.fullmatch(etag) else None
