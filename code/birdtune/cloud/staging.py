"""Places in S3 that a command reads are fetched, and those that it writes are kept in step while it works."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from birdtune.cloud import lease
from birdtune.cloud.client import Storage, connect
from birdtune.cloud.fetch import bring, fetch, index_of, listing
from birdtune.cloud.places import Place
from birdtune.cloud.publish import EmbeddingsMirror, Mirror, send
from birdtune.config import Config
from birdtune.errors import BirdtuneError, Interrupted
from birdtune.runtime.log import Journal
from birdtune.runtime.rank import is_chief, rank
from birdtune.runtime.runs import RECORD_NAME
from birdtune.runtime.signals import Interrupts

# Folders of an output that only a run needs, to go on.
_FOR_WRITERS = ("checkpoints",)
_FOR_READERS, _FOR_RECORDS = "read", "records"
_MADE = ("out", "patches")  # arguments that name what a command makes
_PATIENCE_S = 120.0  # S3 may be away for so long when a command is done


def folder_of(config: Config) -> Path:
    """Where this process keeps what lies in S3."""
    folder = Path(config.cloud.folder)
    return folder / f"rank-{rank()}" if rank() else folder


def fetch_one(config: Config, place: Place, journal: Journal, interrupts: Interrupts) -> None:
    """Bring one object to this machine; where it is not there, nothing is. Raises as `fetch`."""
    storage, folder = connect(config.cloud), folder_of(config)
    source, found = listing(storage, place)
    if [source.below(each.name) for each in found] == [place]:
        fetch(storage, place, folder, journal, interrupts)
    else:
        place.local(folder).unlink(missing_ok=True)


def fetch_records(config: Config, output: Place, journal: Journal, interrupts: Interrupts) -> Path:
    """Bring the records of an output's runs, and nothing else of it, to a folder of their own. Raises as `fetch`."""
    storage, folder, logs = connect(config.cloud), folder_of(config) / _FOR_RECORDS, output.below("logs")
    source, objects = listing(storage, logs)
    records = [each for each in objects if source == logs and Path(each.name).name == RECORD_NAME]
    bring(storage, logs, logs.local(folder), records, index_of(logs, folder), journal, interrupts)
    return output.local(folder)


def send_record(
    config: Config, output: Place, write: Callable[[Path], None], journal: Journal, interrupts: Interrupts
) -> None:
    """Publish the run.json of a start that failed before its output was there.

    Args:
        write: writes it into an output folder.

    Raises:
        BusyError: another job works at the output, whose run.json it is.
        InputError, RetryableError: S3 refuses or fails.
    """
    storage, folder = connect(config.cloud), folder_of(config)
    with lease.alone_at(storage, output, journal, interrupts, waits=False):
        write(output.local(folder))
        etag, status = send(storage, output.below(RECORD_NAME), output.local(folder) / RECORD_NAME)
        index = index_of(output, folder)  # what this machine could not publish yet is none the older for it
        index.note(RECORD_NAME, etag, status)
        index.write()


@contextmanager
def staged(
    config: Config, settings: Mapping[str, Sequence[Place]], arguments: Mapping[str, Sequence[Place]], journal: Journal,
    interrupts: Interrupts, *, only_reads: bool, makes_folder: bool,
) -> Iterator[Callable[[Place], Path]]:
    """Fetch what settings and arguments name, and publish what is made, for as long as the block lasts.

    Args:
        only_reads: the command makes nothing in the output folder that is to be kept.
        makes_folder: what it makes at `--out` is a folder.

    Yields: the path of this machine for a place.

    Raises:
        BusyError: another job works at the output.
        InputError, RetryableError: S3 refuses or fails.
    """  # fmt: skip
    storage, folder = connect(config.cloud), folder_of(config)
    output = next(iter(settings.get("output", ())), None)
    made = [place for name in _MADE for place in arguments.get(name, ())]
    read = [place for name, places in settings.items() if name != "output" for place in places]
    read += [place for name, places in arguments.items() if name not in _MADE for place in places]
    with ExitStack() as stack:
        if output is not None and only_reads:
            # In a place of its own: a job may work at the same output on this machine.
            mirror = Mirror(storage, output, folder / _FOR_READERS, journal, config.cloud.publish_s)
            mirror.fetch(interrupts, without=_FOR_WRITERS)
        elif output is not None and not is_chief():
            # It makes no results, and what it may begin from is there.
            mirror = Mirror(storage, output, folder, journal, config.cloud.publish_s)
            mirror.fetch(interrupts, without=_FOR_WRITERS)
        elif output is not None:
            stack.enter_context(_published(storage, output, config, journal, interrupts))
        for place in made:
            if makes_folder:
                stack.enter_context(_published(storage, place, config, journal, interrupts))
            else:
                stack.enter_context(_sent(storage, place, folder))
        for place in _outermost(read, output):
            fetch(storage, place, folder, journal, interrupts)
            # What a model has learnt from stands in the logs of its run: without them the gate knows nothing.
            if (logs := _logs_of(place)) is not None and listing(storage, logs)[1]:
                fetch(storage, logs, folder, journal, interrupts)

        def locate(place: Place) -> Path:
            inside = output is not None and (place == output or place.is_below(output))
            return place.local(folder / _FOR_READERS if only_reads and inside else folder)

        yield locate


@contextmanager
def _published(
    storage: Storage, place: Place, config: Config, journal: Journal, interrupts: Interrupts
) -> Iterator[None]:
    """Keep an output alone, as it was published last, and publish what is made in it."""
    with lease.alone_at(storage, place, journal, interrupts) as is_held:
        how = (storage, place, folder_of(config), journal, config.cloud.publish_s, is_held)
        mirror, embeddings = Mirror(*how), EmbeddingsMirror(*how)
        mirror.fetch(interrupts)
        embeddings.fetch(interrupts)
        mirror.start()
        embeddings.start()
        try:
            yield
        except (Exception, Interrupted):
            embeddings.stop()
            with interrupts.held():
                try:
                    mirror.finish(patience_s=0)
                except BirdtuneError as fault:  # what stopped the command is the one to report
                    journal.warn(f"not all was published: {fault}")
            raise
        mirror.finish(_PATIENCE_S)
        try:
            embeddings.finish(patience_s=0)
        except BirdtuneError as fault:
            journal.warn(f"embeddings were not published, and another machine makes them again: {fault}")


@contextmanager
def _sent(storage: Storage, place: Place, folder: Path) -> Iterator[None]:
    """Publish one file, when it is made."""
    place.local(folder).parent.mkdir(parents=True, exist_ok=True)
    yield
    send(storage, place, place.local(folder))


def _logs_of(place: Place) -> Place | None:
    """The logs beside a place OUTPUT/model/NAME/VERSION; None: it is no such place."""
    *above, model, _, version = ["", "", *place.key.split("/")]
    if model != "model" or not version.isdecimal():
        return None
    return Place(place.bucket, "/".join([*filter(None, above), "logs", version]))


def _outermost(wanted: Iterable[Place], output: Place | None) -> list[Place]:
    """The places without those that lie in another one, or in the output, which is fetched by itself."""
    found: list[Place] = []
    for place in sorted(set(wanted), key=lambda place: (place.bucket, place.key)):
        around = [*found, *([output] if output is not None else [])]
        if not any(place.is_below(other) for other in around):
            found.append(place)
    return found
