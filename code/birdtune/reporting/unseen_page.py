"""The page of the command `unseen`: how well classes are recognised that were held out, and the proof that they were.

    what unseen.json holds ─▶ write_page ─▶ unseen.html
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import birdtune
from birdtune.reporting import report
from birdtune.runtime.text import count


def write_page(path: Path, found: Mapping[str, Any]) -> None:
    """Write the page, whole or not at all.

    Args:
        found: as unseen.json has it: hold_out_classes, seeds, classes, recordings, rows, proof.

    Raises as `files.storage_faults`.
    """
    best = max(found["rows"], key=lambda row: row["top1"] - row["chance"])
    values = {"found": found, "proof": found["proof"], "best": best, "count": count}
    report.write_page(path, "unseen.html.j2", {**values, "birdtune_version": birdtune.__version__})
