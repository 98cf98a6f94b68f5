"""Places in S3 that a command reads are fetched, and those that it writes are kept in step while it works."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from birdtune.cloud import lease
from birdtune.cloud.client import Storage, connect
from birdtune.cloud.fetch import fetch, listing
from birdtune.cloud.places import Place
from birdtune.cloud.publish import Mirror, send
from birdtune.config import Config
from birdtune.errors import BirdtuneError, Interrupted
from birdtune.runtime.log import Journal
from birdtune.runtime.rank import rank
from birdtune.runtime.signals import Interrupts

# Folders of an output that only a run needs, to go on.
_FOR_WRITERS = ("checkpoints",)


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


@contextmanager
def staged(
    config: Config, settings: Mapping[str, Place], arguments: Mapping[str, Sequence[Place]], journal: Journal,
    interrupts: Interrupts, *, only_reads: bool,
) -> Iterator[Callable[[Place], Path]]:
    """Fetch what settings and arguments name, and publish what is made, for as long as the block lasts.

    Yields: the path of this machine for a place.

    Raises:
        BusyError: another job works at the output.
        InputError, RetryableError: S3 refuses or fails.
    """  # fmt: skip
    storage, folder = connect(config.cloud), folder_of(config)
    output = settings.get("output")
    made = list(arguments.get("out", ())) + ([output] if output is not None and not only_reads else [])
    read = [place for name, place in settings.items() if name != "output"]
    read += [place for name, places in arguments.items() if name != "out" for place in places]
    with ExitStack() as stack:
        for place in made:
            if Path(place.key).suffix and place != output:
                stack.enter_context(_sent(storage, place, folder))
            else:
                mirror = Mirror(storage, place, folder, journal, config.cloud.publish_s)
                stack.enter_context(_published(mirror, journal, interrupts))
        if output is not None and only_reads:
            Mirror(storage, output, folder, journal, config.cloud.publish_s).fetch(interrupts, without=_FOR_WRITERS)
        for place in _outermost(read, output):
            fetch(storage, place, folder, journal, interrupts)
        yield lambda place: place.local(folder)


@contextmanager
def _published(mirror: Mirror, journal: Journal, interrupts: Interrupts) -> Iterator[None]:
    """Keep an output alone, as it was published last, and publish what is made in it."""
    with lease.alone_at(mirror.storage, mirror.place, journal, interrupts):
        mirror.fetch(interrupts)
        mirror.start()
        try:
            yield
        except (Exception, Interrupted):
            with interrupts.held():
                try:
                    mirror.finish()
                except BirdtuneError as fault:  # what stopped the command is the one to report
                    journal.warn(f"not all was published: {fault}")
            raise
        with interrupts.held():
            mirror.finish()


@contextmanager
def _sent(storage: Storage, place: Place, folder: Path) -> Iterator[None]:
    """Publish one file, when it is made."""
    place.local(folder).parent.mkdir(parents=True, exist_ok=True)
    yield
    send(storage, place, place.local(folder))


def _outermost(wanted: Iterable[Place], output: Place | None) -> list[Place]:
    """The places without those that lie in another one, or in the output, which is fetched by itself."""
    found: list[Place] = []
    for place in sorted(set(wanted), key=lambda place: (place.bucket, place.key)):
        around = [*found, *([output] if output is not None else [])]
        if not any(place.bucket == other.bucket and place.key.startswith(other.prefix) for other in around):
            found.append(place)
    return found
