"""What lies in S3 is on this machine while a command works, and what it makes goes back.

    settings with addresses ─▶ fetch ─▶ settings with paths ─▶ the command ─▶ publish

A start that fails before the command begins leaves a run.json, too: that of the start before says "done".
"""

from argparse import SUPPRESS, ArgumentError, ArgumentParser, Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from birdtune.cloud import places, spot
from birdtune.config import Config, options
from birdtune.errors import BirdtuneError, BusyError, InputError, Interrupted, SettingsError, ended_by, shown
from birdtune.options import ENVIRONMENT_PREFIX, paths_of
from birdtune.runtime import configure
from birdtune.runtime.files import make_folder, read_json
from birdtune.runtime.lock import alone_in
from birdtune.runtime.log import Journal, clock
from birdtune.runtime.rank import is_chief
from birdtune.runtime.runs import RECORD_NAME, Run, newest_settings
from birdtune.runtime.signals import Interrupts
from birdtune.runtime.storage import storage_faults


def settings_folder(
    flags: Mapping[str, Any], environment: Mapping[str, str], journal: Journal, interrupts: Interrupts
) -> Path | None:
    """The folder of this machine with the job.yaml of an input in S3, fetched alone; None: the input is none in S3.

    Raises:
        SettingsError, InputError, RetryableError: the address is wrong, or S3 refuses or fails.
    """
    config = _only("input", flags, environment)
    place = places.place_of(config.input)
    if place is None:
        return None
    from birdtune.cloud import staging

    staging.fetch_one(config, place.below(configure.JOB_YAML), journal, interrupts)
    return place.local(staging.folder_of(config))


def earlier_settings(
    config: Config, journal: Journal, interrupts: Interrupts
) -> tuple[int, dict[str, Any]] | None:
    """As `newest_settings`, of an output in S3, too, where no settings are given but places; None: some are.

    Raises:
        SettingsError, InputError, RetryableError: the address is wrong, or S3 refuses or fails.
    """
    if not all(name == "output" or name.startswith("cloud.") for name in config.given()):
        return None
    place = places.place_of(config.output)
    if place is None:
        return newest_settings(config.output)
    from birdtune.cloud import staging

    return newest_settings(staging.fetch_records(config, place, journal, interrupts))


def require_published(config: Config) -> None:
    """Refuse places in S3 of `--gate.publish-to` that no model can go to, before the long work.

    Raises:
        SettingsError: one is no address, or lies in the output.
        InputError, RetryableError: S3 refuses or fails.
    """
    setting, output = "--gate.publish-to", places.place_of(config.flat()["output"])
    for place in filter(None, map(places.place_of, paths_of(config.gate.publish_to or ""))):
        if output is not None and (place == output or place.is_below(output)):
            raise SettingsError(
                f"{setting} {shown(place)}: lies in the output, {shown(output)}, which has the promoted models in "
                f"model/{config.export.name} anyway. Give a prefix outside of it."
            )
        from birdtune.cloud.client import connect
        from birdtune.cloud.fetch import listing

        try:
            listing(connect(config.cloud), place)
        except InputError as fault:
            raise InputError(f"{setting} {fault}") from fault


def _only(name: str, flags: Mapping[str, Any], environment: Mapping[str, str]) -> Config:
    """A folder and `cloud` as flags and environment have them, whatever is wrong with other settings."""
    first = tuple(f"{ENVIRONMENT_PREFIX}{each}" for each in (name.upper(), "CLOUD__"))
    return configure.load(
        {flag: value for flag, value in flags.items() if flag == name or flag.startswith("cloud.")},
        {variable: value for variable, value in environment.items() if variable.startswith(first)}, job_yaml=False,
    )  # fmt: skip


@contextmanager
def failure_recorded(
    arguments: Sequence[str], environment: Mapping[str, str], journal: Journal, interrupts: Interrupts
) -> Iterator[list[Config]]:
    """Let run.json say why a start failed that got no further than its settings, its input or its lock.

    On a disk, where there is a run.json of an earlier start. That of another job that works there stays.

    Args:
        arguments: of the command line, for where the output is if it is not understood.

    Yields: [], for the settings, once they are known.
    """
    known, began = list[Config](), clock()
    try:
        with storage_faults(Path(), verb="used"):
            yield known
    except BusyError:
        raise
    except (Exception, Interrupted) as caught:
        with interrupts.held():
            try:
                config = known[0] if known else _output_alone(arguments, environment)
                if config is not None and is_chief():
                    _record(config, ended_by(interrupts.unmasked(caught)), began, journal, interrupts)
            except BusyError:
                pass  # it is that of the other job
            except (BirdtuneError, OSError, ArgumentError) as fault:
                journal.warn(f"run.json of this output may be that of an earlier start: {fault}")
        raise


def _output_alone(arguments: Sequence[str], environment: Mapping[str, str]) -> Config | None:
    parser = ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for option in options():
        if option.name == "output" or option.name.startswith("cloud."):
            parser.add_argument(option.flag, dest=option.name, default=SUPPRESS)
    config = _only("output", vars(parser.parse_known_args(arguments)[0]), environment)
    return config if "output" in config.given() else None


def _record(config: Config, end: tuple[int, str], began: str, journal: Journal, interrupts: Interrupts) -> None:
    place = places.place_of(config.output)
    if place is not None:
        from birdtune.cloud import staging

        try:
            staging.require_apart(place, places.settings(config))
        except SettingsError:
            return  # in an input, a record would be one more file
        output = place.local(staging.folder_of(config))
    else:
        output = config.output
    found = read_json(output / RECORD_NAME)
    if isinstance(found, dict) and str(found.get("started")) >= began:
        return  # the command has said it itself

    def write(folder: Path) -> None:
        run = Run(config.model_copy(update={"output": folder}), journal)
        run.record.update(started=began, settings={})  # they may be what was wrong
        run.end("failed" if end[0] < 128 else "interrupted", *end)

    if place is not None:
        staging.send_record(config, place, write, journal, interrupts)
    elif found is not None:
        with alone_in(output, journal):
            write(output)


@contextmanager
def staged(
    config: Config, options: Namespace, journal: Journal, interrupts: Interrupts, *, only_reads: bool
) -> Iterator[tuple[Config, Namespace]]:
    """Settings and arguments with paths of this machine in place of addresses, for as long as the block lasts.

    Args:
        options: a command's own arguments; it gets `keep`, which publishes what the output holds at that moment.
        only_reads: the command makes nothing in the output folder that is to be kept.

    Raises:
        BusyError: another job works at the output.
        SettingsError, InputError, RetryableError: an address is wrong, or S3 refuses or fails.
    """
    named, given = places.settings(config), places.arguments(options)
    options = Namespace(**vars(options), keep=lambda: None)
    watches = config.cloud.spot_notice == "true" or (config.cloud.spot_notice == "auto" and "output" in named)
    with spot.watched(journal) if watches else nullcontext():
        if not named and not given:
            yield config, options
            return
        # It loads boto3, which takes its time.
        from birdtune.cloud import staging

        # Of `predict`, detections are a folder; everything else that a command is given a place for is a file.
        makes_folder = "merge" in options and options.format is not None
        shard = _shard_of_places(options, given)
        with staging.staged(
            config, named, given, journal, interrupts, only_reads=only_reads, makes_folder=makes_folder,
            share=shard and shard.part,
        ) as (locate, keep):
            fetched = [place for rows in (*named.values(), *given.values()) for place in rows]
            config = places.with_local_settings(config, locate)
            addresses = {str(locate(place)): str(place) for place in fetched}
            options.keep = keep or options.keep
            options = places.with_local_arguments(options, locate)
            if shard is not None:
                options.shard = shard._replace(is_taken=True)
                there = [path for path in options.files if path.exists()]
                options.files = there or [make_folder(Path(config.cloud.folder) / "no-recordings")]
            yield config.fetched_from(addresses), options


def _shard_of_places(options: Namespace, given: Mapping[str, Any]) -> Any:
    """The part of the recordings that `predict` is asked for, where all of them lie in S3; None: it is all of them.

    Of `prepare` all is fetched: its tables name recordings of other parts.
    """
    named = len(given.get("files", ())) == len(getattr(options, "files", ())) > 0
    return options.shard if named and "shard" in options and options.list is None else None
