"""A backbone that no SavedModel can hold, as a file beside the served head.

    OnnxBackbone ─▶ put ─▶ assets.extra/backbone.onnx, and `backbone_file` of model.json
    version folder, its model.json ─▶ opened ─▶ function of windows [n, window_rows, ...] → embeddings [n, K]

TensorFlow Serving leaves the folder `assets.extra` alone.
"""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from birdtune.errors import CheckpointError, shown
from birdtune.models import onnx_backbone
from birdtune.models.onnx_backbone import OnnxBackbone
from birdtune.runtime.files import make_folder
from birdtune.runtime.fingerprints import checkpoint_digest

Floats = npt.NDArray[np.float32]

FILE = Path("assets.extra") / "backbone.onnx"


def put(backbone: OnnxBackbone, folder: Path) -> dict[str, Any]:
    """Copy the file into a version folder; `backbone_file` of model.json. Raises OSError."""
    make_folder((folder / FILE).parent)
    shutil.copyfile(backbone.path, folder / FILE)
    return {
        "file": str(FILE),
        "tensor": backbone.found.tensor,
        "n_samples": backbone.n_samples,
        "embedding_size": backbone.embedding_size,
    }


def opened(folder: Path, facts: Mapping[str, Any]) -> Callable[[Floats], Floats] | None:
    """From windows [n, window_rows, ...] to embeddings [n, K], by ONNX Runtime; None: the SavedModel takes windows.

    Args:
        facts: model.json.

    Raises:
        LookupError, TypeError, ValueError: model.json is not as it was written.
        SettingsError: the extra `onnx` is not installed.
        CheckpointError: the file is missing, damaged, or another one.
        RetryableError: the storage fails.
    """
    if (row := facts.get("backbone_file")) is None:
        return None
    path, n_samples, sha256 = folder / FILE, int(row["n_samples"]), str(facts["graph_sha256"])
    if (found := checkpoint_digest(path)) != sha256:
        raise CheckpointError(
            f"{shown(path)}: is not the backbone that the head was trained on: its digest is {found[:12]}…, and "
            f"model.json says {shown(sha256[:12])}…. Copy or export the model again."
        )
    embed = onnx_backbone.opened(path, onnx_backbone.look(path, str(row["tensor"])))
    return lambda windows: embed(np.asarray(windows).reshape(len(windows), -1)[:, :n_samples])
