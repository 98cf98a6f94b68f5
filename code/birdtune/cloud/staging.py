"""Places in S3 that a command reads are fetched, and those that it writes are kept in step while it works."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from birdtune.audio.container import FOREIGN_ENDINGS, SOUND_ENDINGS
from birdtune.cloud import lease
from birdtune.cloud.client import Storage, connect
from birdtune.cloud.fetch import bring, fetch, index_of, listing
from birdtune.cloud.places import Place
from birdtune.cloud.publish import EmbeddingsMirror, Mirror, send
from birdtune.config import Config
from birdtune.errors import BirdtuneError, Interrupted, SettingsError, shown
from birdtune.runtime.log import Journal
from birdtune.runtime.rank import cluster, is_chief
from birdtune.runtime.runs import RECORD_NAME
from birdtune.runtime.signals import Interrupts

_SOUND = SOUND_ENDINGS | FOREIGN_ENDINGS
_FOR_READERS, _FOR_RECORDS = "read", "records"
_MADE = ("out", "patches")  # arguments that name what a command makes
_PATIENCE_S = 120.0  # S3 may be away for so long when a command is done


def folder_of(config: Config) -> Path:
    """Where this machine keeps what lies in S3; of several machines on one disk, each has its own."""
    folder, first = Path(config.cloud.folder), cluster().first_here
    return folder / f"rank-{first}" if first else folder


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
    interrupts: Interrupts, *, only_reads: bool, makes_folder: bool, share: Callable[[list[Place]], list[Place]] | None,
) -> Iterator[tuple[Callable[[Place], Path], Callable[[], None] | None]]:
    """Fetch what settings and arguments name, and publish what is made, for as long as the block lasts.

    Args:
        only_reads: the command makes nothing in the output folder that is to be kept.
        makes_folder: what it makes at `--out` is a folder.
        share: of the recordings that the arguments name, those that are this machine's; None: all are.

    Yields: the path of this machine for a place; what publishes the output as it is, where that lies in S3.

    Raises:
        SettingsError: input and output lie in one another.
        BusyError: another job works at the output.
        InputError, RetryableError: S3 refuses or fails.
    """  # fmt: skip
    if cluster().local_rank:  # the first process of this machine fetches for all
        yield lambda place: place.local(folder_of(config)), None
        return
    storage, folder = connect(config.cloud), folder_of(config)
    output = next(iter(settings.get("output", ())), None)
    made = [place for name in _MADE for place in arguments.get(name, ())]
    read = [place for name, places in settings.items() if name != "output" for place in places]
    read += [place for name, places in arguments.items() if name not in _MADE for place in places]
    keep: Callable[[], None] | None = None
    with ExitStack() as stack:
        if output is not None:
            require_apart(output, settings)
            if only_reads or not is_chief():
                _fetch_to_read(storage, output, config, read, journal, interrupts, only_reads=only_reads)
            else:
                keep = stack.enter_context(_published(storage, output, config, journal, interrupts))
        for place in made:
            if makes_folder:
                stack.enter_context(_published(storage, place, config, journal, interrupts))
            else:
                stack.enter_context(_sent(storage, place, folder))
        without = _of_others(storage, arguments.get("files", ()), share) if share is not None else frozenset()
        for place in _outermost(read, output):
            fetch(storage, place, folder, journal, interrupts, without)
            # What a model has learnt from stands in the logs of its run: without them the gate knows nothing.
            if (logs := _logs_of(place)) is not None and listing(storage, logs)[1]:
                fetch(storage, logs, folder, journal, interrupts)

        def locate(place: Place) -> Path:
            inside = output is not None and (place == output or place.is_below(output))
            return place.local(folder / _FOR_READERS if only_reads and inside else folder)

        yield locate, keep


def _fetch_to_read(
    storage: Storage, output: Place, config: Config, read: Sequence[Place], journal: Journal, interrupts: Interrupts,
    *, only_reads: bool,
) -> None:  # fmt: skip
    """Bring of an output what a command needs that publishes nothing there.

    Args:
        read: places that the command reads, some of them perhaps in the output.
        only_reads: it makes nothing there at all; else it is a process of a run, and makes no results.
    """
    folder = folder_of(config)
    if only_reads:  # in a place of its own: a job may work at the same output on this machine
        named = [place.key.removeprefix(output.prefix) for place in read if place.is_below(output)]
        mirror = Mirror(storage, output, folder / _FOR_READERS, journal, config.cloud.publish_s)
        mirror.fetch(interrupts, partial(_read_by_readers, named=named))
    else:  # what it may begin from
        mirror = Mirror(storage, output, folder, journal, config.cloud.publish_s)
        mirror.fetch(interrupts, lambda names: {name for name in names if not name.startswith("checkpoints/")})


@contextmanager
def _published(
    storage: Storage, place: Place, config: Config, journal: Journal, interrupts: Interrupts
) -> Iterator[Callable[[], None]]:
    """Keep an output alone, as it was published last, and publish what is made in it.

    Yields: what publishes at once.
    """
    with lease.alone_at(storage, place, journal, interrupts) as is_held:
        how = (storage, place, folder_of(config), journal, config.cloud.publish_s, is_held)
        mirror, embeddings = Mirror(*how), EmbeddingsMirror(*how)
        mirror.fetch(interrupts, _read_by_writers)
        embeddings.fetch(interrupts)
        mirror.start()
        embeddings.start()
        try:
            yield mirror.publish
        except (Exception, Interrupted):
            embeddings.stop()
            with interrupts.held():
                try:
                    mirror.leave()
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


def require_apart(output: Place, settings: Mapping[str, Sequence[Place]]) -> None:
    """Refuse an input in the output, which would be fetched as results, and an output in the input."""
    for name in ("input", "data"):
        for place in settings.get(name, ()):
            if place == output or place.is_below(output) or output.is_below(place):
                raise SettingsError(
                    f"--{name} {shown(place)} and --output {shown(output)} lie in one another, so that each would be "
                    "fetched with the other. Give each a prefix of its own, e.g. .../input and .../output."
                )


def _read_by_writers(names: Collection[str]) -> set[str]:
    """What a run may go on with: all of an output but the checkpoints of versions before the newest one."""
    paths = {name: name.split("/") for name in names}
    numbers = [int(path[1]) for path in paths.values() if path[0] in ("logs", "checkpoints") and path[1].isdecimal()]
    newest = str(max(numbers, default=0))
    return {name for name, path in paths.items() if path[0] != "checkpoints" or path[1] == newest}


def _read_by_readers(names: Collection[str], named: Collection[str]) -> set[str]:
    """What a command that makes nothing in the output needs: records, the newest models, what its arguments name."""
    paths = {name: name.split("/") for name in names}
    models = [path for path in paths.values() if path[0] == "model" and path[2:3] and path[2].isdecimal()]
    newest = {path[1]: path[2] for path in sorted(models, key=lambda path: int(path[2]))}
    return {
        name for name, path in paths.items()
        if len(path) == 1 or path[0] == "logs" or (path[0] == "model" and path[2:3] == [newest.get(path[1])])
        or any(name == each or name.startswith(f"{each}/") for each in named)
    }  # fmt: skip


def _logs_of(place: Place) -> Place | None:
    """The logs beside a place OUTPUT/model/NAME/VERSION; None: it is no such place."""
    *above, model, _, version = ["", "", *place.key.split("/")]
    if model != "model" or not version.isdecimal():
        return None
    return Place(place.bucket, "/".join([*filter(None, above), "logs", version]))


def _of_others(
    storage: Storage, places: Sequence[Place], share: Callable[[list[Place]], list[Place]]
) -> frozenset[Place]:
    """Recordings at these places that are not this machine's share of all; by their names, as none is here yet."""
    found = dict[Place, None]()
    for place in places:
        source, objects = listing(storage, place)
        found |= {source.below(each.name): None for each in objects if Path(each.name).suffix.lower() in _SOUND}
    recordings = sorted(found, key=str)
    return frozenset(recordings).difference(share(recordings))


def _outermost(wanted: Iterable[Place], output: Place | None) -> list[Place]:
    """The places without those that lie in another one, or in the output, which is fetched by itself."""
    found: list[Place] = []
    for place in sorted(set(wanted), key=lambda place: (place.bucket, place.key)):
        around = [*found, *([output] if output is not None else [])]
        if not any(place.is_below(other) for other in around):
            found.append(place)
    return found
