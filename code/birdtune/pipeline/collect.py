"""The command `collect`: arguments → what is asked for, with only one job in the folder.

    argparse.Namespace ─▶ collect ─▶ birdtune.collect
"""

import argparse
import os
from typing import Final

from birdtune.collect import collect as sources
from birdtune.collect import xeno_canto
from birdtune.collect.youtube import FORMATS
from birdtune.config import Config
from birdtune.errors import InputError, UsageError
from birdtune.runtime.lock import alone_in
from birdtune.runtime.log import Journal
from birdtune.runtime.signals import Interrupts
from birdtune.runtime.storage import storage_faults

# Source → its arguments, and those of them that it needs.
_ARGUMENTS: Final = {
    "csv": (("files",), ("files",)),
    "audioset": (
        ("ontology", "segments", "categories", "per_class", "seed", "format"),
        ("ontology", "segments", "categories", "per_class"),
    ),
    "xeno-canto": (("query", "quality", "length", "licence", "per_class", "seed"), ("query",)),
}


def collect(config: Config, options: argparse.Namespace, journal: Journal, interrupts: Interrupts) -> int:
    """Fetch what is asked for. Returns the exit code.

    Raises:
        UsageError: arguments are missing, or belong to another source.
        BusyError: another job works there.
        InputError, RetryableError: as `bring.bring`.
    """
    _check_arguments(options)
    folder = options.to or config.output / "collected"
    asked = sources.Asked(folder, options.dry_run, options.retry)
    if options.source == "csv" and len(options.files) > 1:
        raise UsageError("collect csv: expected one file, a CSV with a column url.")
    query = _query(options) if options.source == "xeno-canto" else None
    # The lock of the output covers what lies in it.
    place = config.output if folder.is_relative_to(config.output) else folder
    with alone_in(place, journal), storage_faults(folder, verb="used"):
        if options.source == "audioset":
            wanted = sources.Segments(
                options.ontology, options.segments, options.categories, options.per_class, _seed(options),
                options.format or FORMATS[0],
            )  # fmt: skip
            return sources.from_audioset(config, asked, wanted, journal, interrupts)
        if query is not None:
            return sources.from_xeno_canto(config, asked, query, journal, interrupts)
        return sources.from_urls(config, asked, options.files[0], journal, interrupts)


def _check_arguments(options: argparse.Namespace) -> None:
    own, needed = _ARGUMENTS[options.source]
    given = {name for names, _ in _ARGUMENTS.values() for name in names if getattr(options, name) not in (None, [])}
    if other := sorted(given - set(own)):
        raise UsageError(f"collect {options.source}: {_flag(other[0])} is not for this source.")
    if missing := [name for name in needed if name not in given]:
        raise UsageError(f"collect {options.source}: {_flag(missing[0])} is missing.")


def _seed(options: argparse.Namespace) -> int:
    return 1 if options.seed is None else int(options.seed)


def _flag(name: str) -> str:
    return "FILE" if name == "files" else f"--{name.replace('_', '-')}"


def _query(options: argparse.Namespace) -> sources.Query:
    key = os.environ.get(xeno_canto.KEY, "").strip()
    if not key:
        raise InputError(
            f"{xeno_canto.KEY} is not set. The API of xeno-canto needs the key that your account page there shows: "
            f"export {xeno_canto.KEY}=... (no flag takes it, as others could see that)."
        )
    wanted = xeno_canto.Filter(
        xeno_canto.qualities_of(options.quality), xeno_canto.length_of(options.length),
        xeno_canto.licences_of(options.licence), options.per_class, _seed(options),
    )  # fmt: skip
    return sources.Query(options.query, key, wanted)
