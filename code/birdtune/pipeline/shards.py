"""Work that is shared out over machines without a coordinator: each takes every n-th recording.

    --shard 3/10, or /10 in an array job ─▶ Shard ─▶ its recordings, its folder OUT/shards/3-of-10
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from birdtune.errors import InputError, RetryableError, UsageError, shown
from birdtune.runtime.files import read_json, write_json
from birdtune.runtime.text import count, some

FOLDER = "shards"
_DONE = "finished.json"
_MOST = 100_000
# Numbers that array jobs give their tasks, all from 0: AWS Batch, and indexed jobs of Kubernetes.
_VARIABLES = ("AWS_BATCH_JOB_ARRAY_INDEX", "JOB_COMPLETION_INDEX")
_NAME = re.compile(r"(\d+)-of-(\d+)")

Item = TypeVar("Item")


class Shard(NamedTuple):
    """One of `total` parts, counted from 1.

    Attributes:
        is_taken: what it is asked for the share of is that share already.
    """

    number: int
    total: int
    is_taken: bool = False

    @classmethod
    def of(cls, text: str, environment: Mapping[str, str]) -> "Shard":
        """A part as it was given: "3/10", or "/10" where an array job numbers its tasks.

        Raises:
            UsageError: it is none, or nothing numbers it.
        """
        match = re.fullmatch(r"(\d{0,9})/(\d{1,9})", text)
        number, total = match.groups() if match else ("", "0")
        if match and not number:
            given = next((environment[name] for name in _VARIABLES if environment.get(name, "").isdecimal()), None)
            if given is None:
                raise UsageError(
                    f"--shard {shown(text)}: nothing says which part this is. Give 1/{total}, or run it as an array "
                    f"job, which sets {' or '.join(_VARIABLES)}."
                )
            number = str(int(given) + 1)
        if not 1 <= int(number or 0) <= int(total) <= _MOST:
            raise UsageError(f"--shard {shown(text)}: {_wrong(match is not None, int(number or 0), int(total))}")
        return cls(int(number), int(total))

    def part(self, items: Sequence[Item]) -> list[Item]:
        """Its share of what all parts have in the same order."""
        return list(items) if self.is_taken else list(items[self.number - 1 :: self.total])

    def folder(self, out: Path) -> Path:
        """Where it works."""
        return out / FOLDER / f"{self.number}-of-{self.total}"


def _wrong(is_pair: bool, number: int, total: int) -> str:
    """Why a part is none, and what to do."""
    if not is_pair:
        return "expected PART/PARTS, e.g. 3/10 for the third of ten."
    if not 1 <= total <= _MOST:
        return f"there cannot be {total:,} parts; expected PART/PARTS with 1 to {_MOST:,} parts, e.g. 3/10."
    return (
        f"there is no part {number:,} of {total:,}; parts are counted from 1 to {total:,}. PART comes first: 3/10 is "
        "the third of ten."
    )


def note_finished(folder: Path, made_by: str) -> None:
    """Note that a part is done. Raises as `files.storage_faults`.

    Args:
        made_by: what tells model and settings apart.
    """
    write_json(folder / _DONE, {"made_by": made_by})


def parts(out: Path) -> dict[Shard, Path]:
    """The folders of the parts that have begun, in their order.

    Raises:
        InputError: they are of several divisions.
    """
    found = {
        Shard(int(match[1]), int(match[2])): path for path in (out / FOLDER).glob("*")
        if (match := _NAME.fullmatch(path.name))
    }  # fmt: skip
    if len(totals := {shard.total for shard in found}) > 1:
        raise InputError(
            f"{shown(out / FOLDER)}: expected the parts of one division, found "
            f"{some([f'{total} parts' for total in sorted(totals)])}. Remove the folders of another division."
        )
    return dict(sorted(found.items()))


def lacking(found: Mapping[Shard, Path], made_by: str) -> list[str]:
    """The parts that are not there, not finished, or made by another model or other settings; found: of `parts`."""
    total = next(iter(found)).total
    every = [Shard(number, total) for number in range(1, total + 1)]
    return [f"{shard.number}/{total}" for shard in every if not _is_done(found.get(shard), made_by)]


def finished(out: Path, made_by: str, called: str) -> list[Path]:
    """The folders of all parts, in their order.

    Args:
        called: how people know the place of `out`.

    Raises:
        InputError: there are none, or parts of several divisions.
        RetryableError: some are not finished, or were made by another model or other settings.
    """
    if not (found := parts(out)):
        raise InputError(
            f"{shown(called)}: has no parts. Run `predict --shard 1/N` to N/N with the same --out first."
        )
    if names := lacking(found, made_by):
        raise RetryableError(
            f"{shown(called)}: {count(len(names), 'part')} of {next(iter(found)).total} not finished with this model "
            f"and these settings: {some(names)}. Run them (--shard), then this again."
        )
    return list(found.values())


def _is_done(folder: Path | None, made_by: str) -> bool:
    record = None if folder is None else read_json(folder / _DONE)
    return isinstance(record, dict) and record.get("made_by") == made_by
