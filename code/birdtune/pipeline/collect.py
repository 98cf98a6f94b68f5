"""The command `collect`: arguments → what is asked for, with only one job in the folder.

    argparse.Namespace ─▶ collect ─▶ birdtune.collect
"""

import argparse

from birdtune.collect import collect as sources
from birdtune.config import Config
from birdtune.errors import UsageError
from birdtune.runtime.lock import alone_in
from birdtune.runtime.log import Journal
from birdtune.runtime.signals import Interrupts
from birdtune.runtime.storage import storage_faults


def collect(config: Config, options: argparse.Namespace, journal: Journal, interrupts: Interrupts) -> int:
    """Fetch what is asked for. Returns the exit code.

    Raises:
        UsageError: arguments are missing, or belong to another source.
        BusyError: another job works there.
        InputError, RetryableError: as `bring.bring`.
    """
    folder = options.to or config.output / "collected"
    asked = sources.Asked(folder, options.dry_run, options.retry)
    if len(options.files) != 1:
        raise UsageError("collect csv: expected one file, a CSV with a column url.")
    # The lock of the output covers what lies in it.
    place = config.output if folder.is_relative_to(config.output) else folder
    with alone_in(place, journal), storage_faults(folder, verb="used"):
        return sources.from_urls(config, asked, options.files[0], journal, interrupts)
