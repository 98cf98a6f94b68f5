"""The names of the classes of a model that has none in its own file.

    path of the model, number of classes ─▶ read_labels ─▶ the lines of the text beside it, or "class 0", "class 1", …
"""

from collections.abc import Sequence
from pathlib import Path

from birdtune.errors import InputError, shown
from birdtune.models.installed import birdnet_files
from birdtune.runtime.parsing import read_bounded
from birdtune.runtime.storage import read_error

_LONGEST_BYTES = 16 << 20


def are_named(labels: Sequence[str]) -> bool:
    """Whether these are names, and no numbers in their place."""
    return labels[0] != "class 0"


def how_to_name(place: Path, n_classes: int) -> str:
    """What to do about a model whose classes have no names."""
    return (
        f"The names of the {n_classes:,} classes of {shown(place)} are not known, so they are numbered from 0. Put the "
        "list that was published with it, a class a line, beside it as a .txt with `label` in its name."
    )


def read_labels(path: Path, n_classes: int) -> tuple[str, ...]:
    """The names of a model's classes: the text file beside it with as many lines; else those that were installed with
    BirdNET, if they are as many; else numbers.

    Raises:
        InputError: a file of labels has another number of lines.
        RetryableError: the storage fails.
    """
    tables = [one for one in sorted(path.parent.glob("*.txt")) if "label" in one.name.lower()]
    counts = []
    for table in tables:
        names = _lines(table)
        if len(names) == n_classes:
            return names
        counts.append(f"{shown(table.name)} has {len(names):,} different lines")
    if counts:
        raise InputError(
            f"{shown(path)}: has {n_classes:,} classes, and {'; '.join(counts)}. Put the list that was published with "
            "it beside it, a class a line."
        )
    installed = birdnet_files()
    if installed is not None and len(names := _lines(installed[1])) == n_classes:
        return names
    return tuple(f"class {column}" for column in range(n_classes))


def _lines(table: Path) -> tuple[str, ...]:
    """Its lines without blank ones and repetitions."""
    try:
        content = read_bounded(table, _LONGEST_BYTES, "a list of labels")
    except OSError as fault:
        message = f"{shown(table)}: cannot be read ({shown(fault.strerror)}). Check its rights."
        raise read_error(fault, table, message, InputError) from fault
    lines = (line.strip() for line in content.decode("utf-8-sig", errors="replace").splitlines())
    return tuple(dict.fromkeys(line for line in lines if line))
