"""What lies in S3 is on this machine while a command works, and what it makes goes back.

    settings with addresses ─▶ fetch ─▶ settings with paths ─▶ the command ─▶ publish
"""

from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from birdtune.cloud import places, spot
from birdtune.config import Config
from birdtune.runtime import configure
from birdtune.runtime.log import Journal
from birdtune.runtime.signals import Interrupts


def settings_folder(
    flags: Mapping[str, Any], environment: Mapping[str, str], journal: Journal, interrupts: Interrupts
) -> Path | None:
    """The folder of this machine with the job.yaml of an input in S3, fetched alone; None: the input is none in S3.

    Raises:
        SettingsError, InputError, RetryableError: the address is wrong, or S3 refuses or fails.
    """
    flags = {name: value for name, value in flags.items() if name == "input" or name.startswith("cloud.")}
    first = ("BIRDTUNE_INPUT", "BIRDTUNE_CLOUD__")
    environment = {name: value for name, value in environment.items() if name.startswith(first)}
    config = configure.load(flags, environment, job_yaml=False)
    place = places.place_of(config.input)
    if place is None:
        return None
    from birdtune.cloud import staging

    staging.fetch_one(config, place.below(configure.JOB_YAML), journal, interrupts)
    return place.local(staging.folder_of(config))


@contextmanager
def staged(
    config: Config, options: Namespace, journal: Journal, interrupts: Interrupts, *, only_reads: bool
) -> Iterator[tuple[Config, Namespace]]:
    """Settings and arguments with paths of this machine in place of addresses, for as long as the block lasts.

    Args:
        options: a command's own arguments.
        only_reads: the command makes nothing in the output folder that is to be kept.

    Raises:
        BusyError: another job works at the output.
        SettingsError, InputError, RetryableError: an address is wrong, or S3 refuses or fails.
    """
    named, given = places.settings(config), places.arguments(options)
    watches = config.cloud.spot_notice == "true" or (config.cloud.spot_notice == "auto" and "output" in named)
    with spot.watched(journal) if watches else nullcontext():
        if not named and not given:
            yield config, options
            return
        # It loads boto3, which takes its time.
        from birdtune.cloud import staging

        # Of `predict`, detections are a folder; everything else that a command is given a place for is a file.
        makes_folder = "merge" in options and options.format is not None
        with staging.staged(
            config, named, given, journal, interrupts, only_reads=only_reads, makes_folder=makes_folder
        ) as locate:
            yield places.with_local_settings(config, locate), places.with_local_arguments(options, locate)
