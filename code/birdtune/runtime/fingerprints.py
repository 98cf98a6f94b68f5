"""Fingerprints: what a run and its stages are made from, by which a later start recognises what is current.

    settings, digests of data and checkpoints ─▶ fingerprint, stage_fingerprint ─▶ SHA-256
"""

import glob
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import birdtune
from birdtune.config import Config
from birdtune.errors import CheckpointError, shown
from birdtune.runtime.files import file_sha256, value_sha256
from birdtune.runtime.storage import read_error

# Settings that change how a run is made, but not what comes of it; those of sound only decide which
# recordings are used, and that the data's own digest says.
_WITHOUT_EFFECT = frozenset(
    # The content of quality.csv, and which classes are left out, are in the data's digest.
    {
        "train.sample-weights", "train.min-samples-action", "train.keep-checkpoints", "train.keep-weights",
        "train.checkpoint-minutes", "train.processes", "train.cache-gb", "audio.max-hours",
        "audio.short-clips",
        "model.keep-classes",  # changes what is evaluated and served; the fingerprint of that has its labels
    }
)  # fmt: skip

def fingerprint(
    config: Config,
    dataset_digest: str,
    checkpoint: Path | None,
    ancestor_digest: str | None = None,
    head_start: Mapping[str, int] | None = None,
) -> str:
    """SHA-256 of all that decides what is trained: data, settings, first weights, code.

    Args:
        checkpoint: of the backbone.
        ancestor_digest: of the model that the run begins from, if it does.
        head_start: class → column of the published classifier that it begins from.
    """
    settings = {
        name: value
        for name, value in config.flat().items()
        if name.startswith(("audio.", "model.", "train.", "augment.")) and name not in _WITHOUT_EFFECT
    }
    settings.pop("model.checkpoint")  # its content counts, not its place
    return value_sha256(
        {
            "birdtune": birdtune.__version__,
            "dataset": dataset_digest,
            "settings": settings,
            "checkpoint": checkpoint_digest(checkpoint) if checkpoint is not None else None,
            **({"ancestor": ancestor_digest} if ancestor_digest is not None else {}),
            **({"head_start": dict(head_start)} if head_start else {}),
        }
    )


def checkpoint_digest(path: Path) -> str:
    """SHA-256 over the files of a checkpoint: one file, a prefix of several, or a folder.

    Raises:
        CheckpointError: one of them cannot be read, or there is none.
        RetryableError: the storage fails.
    """
    try:
        digests = [file_sha256(part) for part in checkpoint_files(path)]
    except OSError as fault:
        message = f"{shown(fault.filename or path)}: cannot be read ({fault.strerror}). Check its rights."
        raise read_error(fault, path, message, CheckpointError) from fault
    if not digests:
        raise CheckpointError(f"{shown(path)}: the checkpoint is not there any more. Restore it, and run again.")
    return value_sha256(digests)


def checkpoint_files(path: Path) -> list[Path]:
    """The files of a checkpoint, sorted."""
    if path.is_dir():
        return sorted(entry for entry in path.rglob("*") if entry.is_file())
    return [path] if path.is_file() else sorted(path.parent.glob(f"{glob.escape(path.name)}.*"))


def stage_fingerprint(before: str, config: Config, section: str, *more: Any) -> str:
    """Fingerprint of a later stage: what came before it, and its own settings."""
    sections = (f"{section}.", "ood.") if section == "evaluate" else f"{section}."
    own = {name: value for name, value in config.flat().items() if name.startswith(sections)}
    return value_sha256({"before": before, "settings": own, "more": list(more)})
