"""The weights of an exported model, read back under the names that they were trained with; and what it trained on.

    <name>/<version>/variables ─▶ verify (in a process of its own), read ─▶ arrays by name, as `classifier.weights`
                                                          └─▶ read_ood_model ─▶ OodModel, if it has one

Where nothing is known of the files yet, TensorFlow's reader may die on them, so it works apart. They are believed when
their SHA-256 is that of model.json, names and all: so their order, too, is as it was exported.
"""

import contextlib
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from birdtune.errors import CheckpointError, shown
from birdtune.evaluation.ood import OodModel
from birdtune.runtime.files import temporary_folder
from birdtune.runtime.storage import read_error
from birdtune.runtime.workers import Crashed, Isolated

Arrays = dict[str, npt.NDArray[np.float32]]

# What TensorFlow calls the members of the module's list of weights (`results.export`).
_KEY = "weights/{}/.ATTRIBUTES/VARIABLE_VALUE"
_OOD_KEY = "ood/{}/.ATTRIBUTES/VARIABLE_VALUE"  # in the order of `graph.OodScore.arrays`
_FLOAT_BYTES = 4
_SHA256 = "sha256"
_AGAIN = "Copy or export the model again, or begin from another."


@dataclass(frozen=True)
class _Task:
    folder: Path
    names: tuple[str, ...]


def verify(folder: Path, names: tuple[str, ...], sha256: str) -> None:
    """Read the weights in a process of its own.

    Args:
        folder: the version folder.
        names: of the weights, in the order of model.json.
        sha256: of the weights, as `classifier.weights_sha256`.

    Raises:
        CheckpointError: they are missing, damaged, or others.
        RetryableError: the storage fails.
    """
    with Isolated(_apart) as reader:
        try:
            _checked(folder, reader.items(_Task(folder, names)), sha256)
        except Crashed as fault:
            raise CheckpointError(
                f"{shown(folder)}: its variables are damaged: TensorFlow's reader died on them. {_AGAIN}"
            ) from fault


def read(folder: Path, names: tuple[str, ...], sha256: str) -> Arrays:
    """The weights by name; loads TensorFlow. Arguments and raises as `verify`, which must have seen them."""
    return _checked(folder, _variables(_Task(folder, names)), sha256)


def read_ood_model(folder: Path) -> OodModel | None:
    """The model's OOD model; None where it has none.

    Loads TensorFlow; `verify` must have seen the files.

    Raises:
        CheckpointError: they are damaged.
        RetryableError: the storage fails.
    """
    import tensorflow as tf

    try:
        with _linked(folder / "variables") as room:
            reader = tf.train.load_checkpoint(str(room / "variables"))
            if not reader.has_tensor(_OOD_KEY.format(0)):
                return None
            origin, whitening, centres, widening = (
                reader.get_tensor(_OOD_KEY.format(k)) for k in range(4)
            )
    except Exception as fault:  # whatever it is, the files are the cause
        reason = shown(" ".join(str(fault).split())[:200])
        message = f"{shown(folder)}: its OOD model cannot be read ({reason}). {_AGAIN}"
        raise read_error(fault, folder, message, CheckpointError) from fault
    known = np.isfinite(widening)
    share = np.where(known, widening, 0.0).astype(np.float64)
    counts = np.round(share / (1.0 - share), 2)  # widening = n / (n + 1)
    return OodModel(origin, whitening, centres, counts)


@contextlib.contextmanager
def _linked(folder: Path) -> Iterator[Path]:
    """A folder with a plain name that holds the same files: TensorFlow takes its argument for a pattern."""
    with temporary_folder("variables") as room:
        for path in folder.iterdir():
            (room / path.name).symlink_to(path.resolve())
        yield room


def _checked(folder: Path, pieces: Iterable[tuple[str, Any]], sha256: str) -> Arrays:
    found = dict(pieces)
    if (theirs := found.pop(_SHA256)) != sha256:
        raise CheckpointError(
            f"{shown(folder)}: its weights are not those that were exported: their SHA-256 is {theirs[:12]}…, and "
            f"model.json says {shown(sha256[:12])}…. {_AGAIN}"
        )
    return found


def _apart(task: _Task) -> Iterator[tuple[str, Any]]:
    """In the process of its own, from which only the verdict comes back."""
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # this process has no business there
    yield from (piece for piece in _variables(task) if piece[0] == _SHA256)


def _variables(task: _Task) -> Iterator[tuple[str, Any]]:
    """The SHA-256 of all arrays, and the arrays."""
    import tensorflow as tf

    from birdtune.models.classifier import weights_sha256

    folder = task.folder / "variables"
    try:
        with _linked(folder) as room:
            n_bytes = sum(path.stat().st_size for path in room.iterdir())
            found = _arrays(tf.train.load_checkpoint(str(room / "variables")), task.names, n_bytes)
    except Exception as fault:  # whatever it is (OpError, IndexError, ValueError …), the files are the cause
        reason = shown(" ".join(str(fault).split())[:200])
        message = f"{shown(folder)}: not as birdtune exports variables ({type(fault).__name__}: {reason}). {_AGAIN}"
        raise read_error(fault, folder, message, CheckpointError) from fault
    yield _SHA256, weights_sha256(found)
    yield from found.items()


def _arrays(reader: Any, wanted: tuple[str, ...], n_bytes: int) -> Arrays:
    shapes: dict[str, list[int]] = reader.get_variable_to_shape_map()
    keys = [_KEY.format(position) for position in range(len(wanted))]
    if any(key not in shapes for key in keys) or _KEY.format(len(keys)) in shapes:
        raise ValueError(f"expected {len(keys)} weights")
    # A damaged shape could ask for all memory.
    if sum(math.prod(shapes[key]) for key in keys) * _FLOAT_BYTES > n_bytes:
        raise ValueError("weights that are larger than their files")
    return {
        name: np.asarray(reader.get_tensor(key), np.float32) for name, key in zip(wanted, keys, strict=True)
    }
