"""From this machine to S3: an output folder is kept in step with a place, in the background, while a job works.

    files of the output, new, changed or gone since the last look ─▶ objects below the place

Every file that birdtune makes appears whole, under its name, so that a look at the folder finds nothing half-made.
What refers to other files goes behind them, run.json last of all, and what is gone is removed after that: whoever reads
the place at any moment finds a state of which the job can go on, TensorFlow Serving finds no model without its weights,
and run.json says nothing of what is not there.
"""

import hashlib
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from boto3.s3.transfer import TransferConfig

from birdtune.cloud.client import Storage, faults
from birdtune.cloud.fetch import SHA256, bring, bring_all, index_of, listing
from birdtune.cloud.lease import NAME
from birdtune.cloud.places import Place, is_safe
from birdtune.data.shard_writer import ENDING
from birdtune.data.shards import INDEX_NAME, WHOLE_NAME
from birdtune.errors import BirdtuneError, RetryableError, shown
from birdtune.runtime.files import file_sha256, make_folder, read_json, write_text
from birdtune.runtime.lock import LEASE_NAME, LOCK_NAME, OWNER_NAME
from birdtune.runtime.log import Journal
from birdtune.runtime.runs import RECORD_NAME, RESERVE_NAME
from birdtune.runtime.signals import Interrupts
from birdtune.runtime.storage import UNFINISHED, free_bytes, size_text
from birdtune.runtime.storage import gone as gone_away
from birdtune.runtime.text import count

# Features are made again from the recordings wherever they are missing; for embeddings there is `EmbeddingsMirror`.
_CACHE, _SHARE_OF_DISK = "cache", 0.5
_MARK = ".published"  # in a folder that is kept in step with S3
_LOCAL = (_CACHE, LOCK_NAME, LEASE_NAME, OWNER_NAME, RESERVE_NAME, NAME, _MARK)
_GRAPH = "saved_model.pb"
_PART_BYTES = 16 << 20
_ATTEMPTS = 3
_PAUSE_S = 5.0
_LEAVING_S, _LAST_TIMEOUT_S = 30.0, 5.0
_SUPERSEDED = ".superseded-"


class Mirror:
    """An output folder and the place in S3 that it belongs to.

    Args:
        every_s: how often the folder is looked at.
        is_held: whether the place is this job's alone.
    """

    def __init__(
        self, storage: Storage, place: Place, folder: Path, journal: Journal, every_s: float,
        is_held: Callable[[], bool] = lambda: True,
    ) -> None:  # fmt: skip
        self.storage, self.place, self.output = storage, place, place.local(folder)
        self._journal, self._every_s, self._is_held = journal, every_s, is_held
        self._index = index_of(place, folder)
        self._stop, self._at_work, self._is_marked = threading.Event(), threading.Lock(), False
        self._thread = threading.Thread(target=self._work, name="publish", daemon=True)
        self._complaint = ""

    def fetch(self, interrupts: Interrupts, needed: Callable[[Collection[str]], Collection[str]] = set) -> None:
        """Make the folder what was published last; its caches stay as they are.

        What this machine made and could not publish stays, too, if nobody has published anything since: it is what
        the job goes on with. Else it is out of date, and is moved to SUPERSEDED.

        Args:
            needed: names of all that was published → names of what is needed of it; the rest stays in S3 alone.

        Raises as `fetch.fetch`.
        """
        source, objects = listing(self.storage, self.place)
        published = [each for each in objects if source == self.place and not _stays(Path(each.name))]
        there = {each.name: each for each in published}
        names = needed(there.keys() | self._index.rows.keys())
        kept = [each for name, each in there.items() if name in names]
        how = (self._index, self._journal, interrupts)
        for name in self._index.rows.keys() - names:
            if not (self.output / name).exists():
                del self._index.rows[name]  # it was not removed by a job, and stays in S3
        known = {name: row[0] for name, row in self._index.rows.items() if name in names}
        if known == {each.name: each.etag for each in kept}:
            lost = [each for each in kept if not (self.output / each.name).is_file()]
            bring_all(self.storage, self.place, self.output, lost, *how)
            return
        self._supersede()
        bring(self.storage, self.place, self.output, kept, *how)

    def _supersede(self) -> None:
        """Move away what was made here since it was last published."""
        stale = [(name, path) for name, path in _files(self.output) if not self._index.has(name, path)]
        if not stale:
            return
        when = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        aside = self.output.with_name(f"{self.output.name}{_SUPERSEDED}{when}")
        for name, path in stale:
            make_folder((aside / name).parent)
            path.rename(aside / name)
        self._journal.warn(
            f"{shown(self.output)}: {count(len(stale), 'file')} of an earlier start here were not published, and "
            f"another job has gone on since: they are in {shown(aside)} now."
        )

    def start(self) -> None:
        """Begin to publish what changes."""
        self.storage = self.storage.impatient()
        write_text(make_folder(self.output) / _MARK, "")
        self._is_marked = True
        self._thread.start()

    def stop(self) -> None:
        """Publish no more; what is on its way need not arrive."""
        self._stop.set()

    def leave(self) -> None:
        """Publish what is left of a job that has to stop: where S3 is slow or away, give up after seconds.

        Raises as `finish`.
        """
        self.stop()
        self._thread.join(_LEAVING_S)
        if self._thread.is_alive():
            raise RetryableError(f"{shown(self.place)}: S3 does not answer. Run again to continue.")
        self.storage = self.storage.impatient(_LAST_TIMEOUT_S, 2)
        self.publish()

    def finish(self, patience_s: float) -> None:
        """Publish what is left.

        Args:
            patience_s: how long S3 may be away.

        Raises:
            InputError, RetryableError: not all of it could be published.
        """
        self.stop()
        self._thread.join()
        until = time.monotonic() + patience_s
        while True:
            try:
                return self.publish()
            except RetryableError:
                if time.monotonic() > until:
                    raise
                time.sleep(_PAUSE_S)

    def _work(self) -> None:
        while not self._stop.wait(self._every_s):
            try:
                self.publish()
                self._complaint = ""
            except BirdtuneError as fault:
                # The job goes on: the next look tries again, and the last one decides.
                if str(fault) != self._complaint:
                    self._journal.warn(f"not yet published: {fault}")
                self._complaint = str(fault)

    def publish(self) -> None:
        """Make the place what the folder is now.

        Raises:
            InputError, RetryableError: as `client.faults`.
        """
        with self._at_work:
            self._publish()

    def _publish(self) -> None:
        before = self._records()
        files = dict(self._files())
        due = [name for name, path in files.items() if not self._index.has(name, path)]
        gone = [name for name in self._index.rows if not (self.output / name).exists()]
        if self._is_marked and not (self.output / _MARK).exists():
            raise gone_away(self.output)  # what is not there was not removed by this job
        if not due and not gone:
            return
        if not self._is_held():
            raise RetryableError(
                f"{shown(self.place)}: S3 was away, or this job did not run, for so long that another may work there; "
                "nothing is published until that is known. Run again to continue; what was finished is safe."
            )
        try:
            with ThreadPoolExecutor(self.storage.connections) as threads:
                for _, names in groupby(sorted(due, key=_turn), key=_turn):
                    # A record that has changed may name what this look has not seen: it goes with the next one.
                    now = self._records()
                    unchanged = [name for name in names if now.get(name) == before.get(name)]
                    sent = threads.map(lambda name: self._send(name, files[name]), unchanged)
                    for name, (etag, status) in filter(None, sent):
                        self._index.note(name, etag, status)
                list(threads.map(self._remove, gone))
        finally:
            self._index.write()

    def _files(self) -> Iterator[tuple[str, Path]]:
        """The files that belong in S3, by relative name."""
        return _files(self.output)

    def _records(self) -> dict[str, int]:
        """When each run.json was written: relative name → mtime_ns."""
        found = [path for name in (RECORD_NAME, f"logs/*/{RECORD_NAME}") for path in self.output.glob(name)]
        return {path.relative_to(self.output).as_posix(): path.stat().st_mtime_ns for path in found}

    def _send(self, name: str, path: Path) -> tuple[str, tuple[str, os.stat_result]] | None:
        if not self._is_held():
            return None
        try:
            return name, send(self.storage, self.place.below(name), path)
        except FileNotFoundError:
            return None  # removed meanwhile, as old checkpoints are; the next look sees to it

    def _remove(self, name: str) -> None:
        if not self._is_held():
            return
        place = self.place.below(name)
        with faults(place):
            self.storage.client.delete_object(Bucket=place.bucket, Key=place.key, **self.storage.extra)
        del self._index.rows[name]


class EmbeddingsMirror(Mirror):
    """What the frozen layers of a backbone made of all recordings, in the cache of an output, for machines without one.

    A store goes to S3 when it is complete; while more is added to it, S3 has it as it was.

    Args: as `Mirror`.
    """

    def __init__(self, storage: Storage, output: Place, *more: Any) -> None:
        super().__init__(storage, output.below(_CACHE), *more)

    def fetch(self, interrupts: Interrupts, needed: Callable[[Collection[str]], Collection[str]] = set) -> None:
        """Bring the stores of which there is nothing here. Raises as `fetch.fetch`."""
        source, objects = listing(self.storage, self.place)
        safe = [each for each in objects if source == self.place and is_safe(each.name)]
        lacking = [each for each in safe if not (self.output / each.name).with_name(INDEX_NAME).exists()]
        size, free = sum(each.size for each in lacking), free_bytes(self.output)
        if free is not None and size > _SHARE_OF_DISK * free:
            left = f"{size_text(size)} not fetched, as {size_text(free)} are free"
            self._journal.say(f"note: {shown(self.place)}: {left}")
        elif lacking:
            self._journal.say(f"  {shown(self.place)}: what frozen layers made ({size_text(size)})")
            rows = [each for each in lacking if each.name.endswith(ENDING)]
            for part in (rows, [each for each in lacking if each not in rows]):  # no index without its rows
                bring_all(self.storage, self.place, self.output, part, self._index, self._journal, interrupts)

    def _files(self) -> Iterator[tuple[str, Path]]:
        for noted in self.output.glob(f"*/frozen-*/{WHOLE_NAME}"):
            shards = {path.name: path.stat().st_size for path in noted.parent.glob(f"*{ENDING}")}
            stamps = read_json(noted)
            if isinstance(stamps, dict) and {name: stamp[0] for name, stamp in stamps.items()} == shards:
                for name in (*shards, INDEX_NAME, WHOLE_NAME):
                    yield (noted.parent / name).relative_to(self.output).as_posix(), noted.parent / name


def _turn(name: str) -> tuple[bool, ...]:
    """When a file goes: rows of a store before their index, a model's graph behind its weights, records behind what
    they name, that of the output last."""
    own = Path(name).name
    return name == RECORD_NAME, own == RECORD_NAME, own == _GRAPH, not own.endswith(ENDING)


def send(storage: Storage, place: Place, path: Path) -> tuple[str, os.stat_result]:
    """Upload a file, and verify what was stored.

    Returns: the ETag of the object, and what the file was before it was read: a log may have grown since.

    Raises:
        InputError, RetryableError: as `client.faults`, or it is stored damaged.
    """
    with faults(place):
        for _ in range(_ATTEMPTS):
            status = path.stat()
            put = _put if status.st_size <= _PART_BYTES else _put_in_parts
            stored, expected = put(storage, place, path)
            etag = str(stored["ETag"]).strip('"')
            if etag == expected or stored.get("ServerSideEncryption", "AES256") != "AES256":
                return etag, status
    raise RetryableError(
        f"{shown(place)}: what was stored is not what was sent ({_ATTEMPTS} times, by its ETag). The network or the "
        "storage damages it. Run again to continue; what was finished before is safe."
    )


def _put(storage: Storage, place: Place, path: Path) -> tuple[Mapping[str, Any], str]:
    """Send a file as it is now; S3's answer, and the ETag to expect."""
    content = path.read_bytes()
    answer = storage.client.put_object(
        Bucket=place.bucket, Key=place.key, Body=content, Metadata={SHA256: hashlib.sha256(content).hexdigest()},
        **storage.extra,
    )  # fmt: skip
    return answer, _md5(content).hexdigest()


def _put_in_parts(storage: Storage, place: Place, path: Path) -> tuple[Mapping[str, Any], str]:
    """As `_put`, of a large file, which nobody appends to."""
    storage.client.upload_file(
        str(path), place.bucket, place.key, {"Metadata": {SHA256: file_sha256(path)}, **storage.extra},
        Config=TransferConfig(multipart_chunksize=_PART_BYTES, multipart_threshold=_PART_BYTES),
    )  # fmt: skip
    parts = []
    with path.open("rb") as file:
        while part := file.read(_PART_BYTES):
            parts.append(_md5(part).digest())
    answer = storage.client.head_object(Bucket=place.bucket, Key=place.key, **storage.extra)
    return answer, f"{_md5(b''.join(parts)).hexdigest()}-{len(parts)}"


_md5 = partial(hashlib.md5, usedforsecurity=False)


def _files(output: Path) -> Iterator[tuple[str, Path]]:
    """The files of an output folder that belong in S3, by relative name."""
    for place, folders, names in os.walk(output):
        folder = Path(place)
        folders[:] = [name for name in folders if not _stays((folder / name).relative_to(output))]
        for name in names:
            path = folder / name
            if not _stays(path.relative_to(output)) and path.is_file():
                yield path.relative_to(output).as_posix(), path


def _stays(path: Path) -> bool:
    """Whether something of an output folder, by its relative path, is this machine's own."""
    return path.parts[0] in _LOCAL or any(part.startswith(UNFINISHED) for part in path.parts)
