"""The arguments of `collect`, and what its help says of them.

    command line ─▶ argparse.Namespace ─▶ pipeline.collect
"""

import argparse
from pathlib import Path
from typing import Final

from birdtune.errors import shown

HELP: Final = "fetch recordings of AudioSet, xeno-canto, or a CSV of addresses; it goes on where it was stopped"
USAGE: Final = (
    "audioset --ontology ontology.json --segments LIST.csv... --categories NAME|ID... --per-class N [--seed 1] "
    "[--format flac|wav] | xeno-canto --query TAGS [--quality A,B] [--length 3-60] [--licence by,by-sa,cc0] "
    "[--per-class N] [--seed 1] | csv LIST.csv; each: [--to OUTPUT/collected] [--dry-run] [--retry]"
)
MORE: Final = (
    "Nothing is fetched but by this command, and --collect.max-gb bounds it. Of AudioSet, N segments of each category "
    "are drawn by --seed, with all that is below it in the ontology, and fetched from YouTube by yt-dlp "
    "(./entrypoint.sh extras collect); others replace those that are gone. A list of csv has a column url, and "
    "may have recording, label, secondary_labels, sha256, md5, author, licence and source; an address may be "
    "s3://BUCKET/PREFIX/. TAGS are those of xeno-canto's API, e.g. 'gen:Strix cnt:Poland'; its key is read from "
    "XENO_CANTO_API_KEY. --per-class draws so many of each species. --dry-run shows the plan; --retry tries again what "
    "failed for good. What came of each recording is in collected.csv (docs/collect.md)."
)


def add(parser: argparse.ArgumentParser) -> None:
    """Add the arguments to the parser of the command."""
    parser.add_argument("source", choices=("audioset", "xeno-canto", "csv"))
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE")
    for flag in ("--query", "--quality", "--length", "--licence"):
        parser.add_argument(flag, default=None)
    parser.add_argument("--ontology", type=Path, default=None)
    parser.add_argument("--segments", type=Path, nargs="+", default=None)
    parser.add_argument("--categories", nargs="+", default=None)
    parser.add_argument("--format", choices=("flac", "wav"), default=None)
    parser.add_argument("--per-class", type=_whole_number, default=None)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--to", type=_folder_here, default=None)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--retry", action="store_true")


def _whole_number(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1_000_000:
        raise argparse.ArgumentTypeError(f"{shown(text)}: expected a whole number from 1 to 1,000,000")
    return int(text)


def _folder_here(text: str) -> Path:
    if text.startswith("s3:") or not text.strip():
        raise argparse.ArgumentTypeError(f"{shown(text)}: expected a folder of this machine; --output may lie in S3")
    return Path(text)
