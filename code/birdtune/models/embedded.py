"""Which backbone made some embeddings: a digest of all that it computes.

    Backbone, its weights ─▶ digest ─▶ SHA-256, the same for a checkpoint and for a model exported with it frozen
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from birdtune.audio.front_end import FrontEnd
from birdtune.models.backbone import Backbone
from birdtune.runtime.files import value_sha256


def digest(
    backbone: Backbone, variables: Mapping[str, npt.NDArray[Any]] | None = None, activation: str = ""
) -> str:
    """SHA-256 that changes with anything that a backbone computes of sound.

    Args:
        variables: its weights, as `registry.read_weights` gives them; others in it do not count. None: of a finished
            graph, which has them.
        activation: `model.embedding-activation`.
    """
    if backbone.graph_sha256 is not None:
        return digest_of_graph(backbone.graph_sha256, backbone.front_end)
    arrays = hashlib.sha256()
    for name in sorted(backbone.variables()):
        arrays.update(name.encode() + b"\n")
        arrays.update(np.ascontiguousarray((variables or {})[name], "<f4").tobytes())
    return value_sha256([backbone.name, backbone.front_end.digest, activation, arrays.hexdigest()])


def digest_of_graph(graph_sha256: str, front_end: FrontEnd) -> str:
    """As `digest`, of a graph that is not trained."""
    return value_sha256([graph_sha256, front_end.digest])
