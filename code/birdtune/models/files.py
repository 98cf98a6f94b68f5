"""Backbones that are a file, and how a file shows which one it is of.

    file or folder ─▶ kind_of ─▶ "birdnet", "perch", "custom";  ─▶ open_file ─▶ Backbone

Recognised by what is in it, never by its name: the input and output of its graph.
"""

import contextlib
import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from birdtune.errors import CheckpointError, InputError, SettingsError, shown
from birdtune.models import custom, tflite_backbone
from birdtune.models.backbone import Backbone
from birdtune.models.installed import HOW_TO_GET_BIRDNET, birdnet_files
from birdtune.models.known import KNOWN as ORIGINS
from birdtune.models.tflite import is_tflite
from birdtune.runtime.fingerprints import checkpoint_files
from birdtune.runtime.parsing import read_bounded
from birdtune.runtime.storage import read_error

CUSTOM = "custom"
_LONGEST_LABELS_BYTES = 16 << 20
_BIRDNET_CLASSES = 6522


@dataclass(frozen=True)
class Known:
    """A published model: what its file takes and gives."""

    name: str
    title: str
    rate_hz: int
    n_samples: int
    embedding_size: int
    patterns: tuple[str, ...]  # of names in the input folder
    where_to_get: str
    flops: float | None = None  # of a window


BIRDNET = Known(
    "birdnet", "BirdNET 2.4", 48_000, 144_000, 1024, ("*.tflite",),
    f"Install it with {HOW_TO_GET_BIRDNET}, or put BirdNET_GLOBAL_6K_V2.4_Model_FP32.tflite into the input folder.",
    flops=8e8,
)  # fmt: skip
PERCH = Known(
    "perch", "Perch 2", 32_000, 160_000, 1536, ("*/saved_model.pb", "saved_model.pb"),
    "Download its SavedModel (Apache-2.0) from Kaggle: google/bird-vocalization-classifier, perch_v2. Put its folder "
    "into the input folder, or name it with --model.checkpoint.",
)  # fmt: skip
KNOWN: Mapping[str, Known] = {known.name: known for known in (BIRDNET, PERCH)}
NAMES = (*KNOWN, CUSTOM)


def _refuse_birdnet(found: Backbone, path: Path) -> None:
    """Refuse BirdNET as `custom`: its rate and its licence are known. Raises SettingsError."""
    is_birdnet = found.published is not None and found.published.n_classes == _BIRDNET_CLASSES
    if is_birdnet and found.embedding_size == BIRDNET.embedding_size:
        raise SettingsError(
            f"{shown(path)}: is {BIRDNET.title}. Give --model.backbone {BIRDNET.name}, and leave "
            "--model.sample-rate-hz and --model.window-s out."
        )


def is_model(path: Path) -> bool:
    """Whether there is a graph at this place that a backbone can be made of. Raises OSError."""
    return custom.is_saved_model(path) if path.is_dir() else path.is_file() and is_tflite(path)


def open_file(
    path: Path, name: str, *, rate_hz: int | None, window_s: float | None, output: str | None
) -> Backbone:
    """The model in a file or folder as a backbone, read once as long as its files stay as they are.

    Args:
        name: of `NAMES`.
        rate_hz, window_s, output: `model.sample-rate-hz`, `model.window-s` and `model.embedding-output`.

    Raises:
        CheckpointError: it is damaged, could do more than compute, or is another model.
        SettingsError: rate or window are missing, or do not fit.
        RetryableError: the storage fails.
    """
    stamp = tuple((str(part), part.stat().st_size, part.stat().st_mtime_ns) for part in checkpoint_files(path))
    return _opened(path, stamp, name, rate_hz, window_s, output)


@functools.lru_cache(maxsize=4)
def _opened(
    path: Path, stamp: object, name: str, rate_hz: int | None, window_s: float | None, output: str | None
) -> Backbone:
    del stamp  # other files are read anew
    known = KNOWN.get(name)
    if known is not None and rate_hz not in (None, known.rate_hz):
        raise SettingsError(
            f"--model.sample-rate-hz {rate_hz}: {known.title} takes {known.rate_hz:,} Hz. Leave the setting out."
        )
    rate_hz = rate_hz or (known.rate_hz if known else None)
    title = known.title if known else f"the model {shown(path.name)}"
    if path.is_file() and is_tflite(path):
        found: Backbone = tflite_backbone.open_backbone(
            path, name=name, title=title, rate_hz=rate_hz, window_s=window_s, output=output,
            flops=known.flops if known else None, read_labels=read_labels,
        )  # fmt: skip
    elif path.is_file():
        raise CheckpointError(
            f"{shown(path)}: is neither a TensorFlow Lite file nor the folder of a SavedModel. Likely cause: an empty "
            "or damaged file, or another format. Get it again, or convert the model."
        )
    else:
        if known is not None and window_s is None:
            window_s = known.n_samples / known.rate_hz
        found = custom.open_backbone(path, name=name, title=title, rate_hz=rate_hz, window_s=window_s, output=output)
    if known is None:
        _refuse_birdnet(found, path)
        return found
    _require(known, found, path)
    return replace(found, origin=ORIGINS[name])


def _require(known: Known, found: Backbone, path: Path) -> None:
    theirs = (found.sample_rate_hz, round(found.window_s * found.sample_rate_hz), found.embedding_size)
    ours = (known.rate_hz, known.n_samples, known.embedding_size)
    if theirs != ours:
        samples, size = theirs[1:]
        raise CheckpointError(
            f"{shown(path)}: is not {known.title}: it makes {size:,} numbers of {samples:,} samples at {theirs[0]:,} "
            f"Hz, and {known.title} makes {known.embedding_size:,} of {known.n_samples:,} at {known.rate_hz:,} Hz. "
            f"Give --model.backbone {CUSTOM} with its own rate, or another file. {known.where_to_get}"
        )


def installed(name: str) -> Path | None:
    """Where a known model was installed to by `./entrypoint.sh extras`; None: it was not."""
    found = birdnet_files() if name == BIRDNET.name else None
    return None if found is None else found[0]


def kind_of(path: Path) -> str | None:
    """Which backbone a model is of: a name of `NAMES`; None: it is no graph.

    Raises:
        CheckpointError: it is damaged.
        OSError: it cannot be read.
    """
    if not is_model(path):
        return None
    for name in KNOWN:
        with contextlib.suppress(CheckpointError, SettingsError):
            open_file(path, name, rate_hz=None, window_s=None, output=None)
            return name
    return CUSTOM


# ---- the classifier that was published with a model ---------------------------------------------


def read_labels(path: Path, n_classes: int) -> tuple[str, ...]:
    """The names of a model's classes: the text file beside it with as many lines; without one, "class 0" and so on.

    Raises:
        InputError: a file of labels has another number of lines.
        RetryableError: the storage fails.
    """
    tables = [one for one in sorted(path.parent.glob("*.txt")) if "label" in one.name.lower()]
    if not tables:
        return tuple(f"class {column}" for column in range(n_classes))
    counts = []
    for table in tables:
        try:
            content = read_bounded(table, _LONGEST_LABELS_BYTES, "a list of labels")
        except OSError as fault:
            message = f"{shown(table)}: cannot be read ({shown(fault.strerror)}). Check its rights."
            raise read_error(fault, table, message, InputError) from fault
        text = content.decode("utf-8-sig", errors="replace")
        names = tuple(line.strip() for line in text.splitlines() if line.strip())
        if len(names) == n_classes == len(set(names)):
            return names
        counts.append(f"{shown(table.name)} has {len(names):,} different lines")
    raise InputError(
        f"{shown(path)}: has {n_classes:,} classes, and {'; '.join(counts)}. Put the list that was published with it "
        "beside it, a class a line."
    )
