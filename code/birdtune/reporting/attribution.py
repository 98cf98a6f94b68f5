"""Whose recordings a model was trained and tested on, where attribution.csv among them says so.

    DATA/attribution.csv, Dataset ─▶ rows_of ─▶ write: the same beside the model
                                            └─▶ by_licence ─▶ model card, report
"""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from birdtune.config import Config
from birdtune.data.dataset import Dataset
from birdtune.runtime.files import read_csv, write_csv
from birdtune.runtime.text import some

ATTRIBUTION_NAME: Final = "attribution.csv"
COLUMNS: Final = ("recording", "author", "licence", "source")
_UNKNOWN: Final = "not said"
_MOST_AUTHORS = 200  # the table beside the model has all
_CHANNEL = re.compile(r"#\d+$")


def rows_of(config: Config, dataset: Dataset) -> list[dict[str, str]]:
    """The rows of the recordings that are used; [] where there is no such table.

    Raises:
        InputError: it cannot be read.
    """
    path = config.data_folder / ATTRIBUTION_NAME
    if not path.is_file():
        return []
    rows = [{name: row.get(name, "").strip() for name in COLUMNS} for row in read_csv(path, notes=[])]
    known = {row["recording"]: row for row in rows}
    used = {one.name: one.name if one.name in known else _CHANNEL.sub("", one.name) for one in dataset.recordings}
    return [known[name] for name in sorted({*used.values()} & known.keys())]


def by_licence(rows: Sequence[dict[str, str]]) -> list[dict[str, Any]]:
    """Of each licence, the most frequent first: `licence`, how many `recordings`, and their `authors` in words."""
    authors: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        authors[row["licence"] or _UNKNOWN][row["author"] or _UNKNOWN] += 1
    return [
        {
            "licence": licence, "recordings": own.total(),
            "authors": some([f"{author} ({n:,})" for author, n in own.most_common()], _MOST_AUTHORS),
        }
        for licence, own in sorted(authors.items(), key=lambda pair: (-pair[1].total(), pair[0]))
    ]  # fmt: skip


def write(folder: Path, rows: Sequence[dict[str, str]]) -> None:
    """Write the table beside a model, if there is one. Raises as `storage_faults`."""
    if rows:
        write_csv(folder / ATTRIBUTION_NAME, COLUMNS, rows)
