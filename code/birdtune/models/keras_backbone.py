"""A backbone that is a `.keras` file with a waveform as input; frozen, or trained as a whole.

    file ─▶ look ─▶ Found ─▶ backbone ─▶ KerasBackbone, once its description was read as data and only then loaded

Its embedding is what the last dense layer takes, which makes classes of it; where it does not end in one, its output.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from birdtune.models import keras_archive
from birdtune.models.backbone import ALL_BUT_HEAD, Arrays, Cut, choose
from birdtune.models.file_backbone import FileBackbone, Wanted, facts_of
from birdtune.models.keras_archive import NETWORK, Found
from birdtune.models.tf_checkpoint import check_variables
from birdtune.runtime.files import value_sha256
from birdtune.runtime.tensorflow_import import load_tensorflow


@dataclass(frozen=True, kw_only=True, eq=False)
class KerasBackbone(FileBackbone):
    """Layers of Keras' own."""

    found: Found

    @property
    def embedding_size(self) -> int:
        return self.found.size

    @property
    def trainable(self) -> bool:
        return bool(self.found.arrays)

    @property
    def layer_names(self) -> tuple[str, ...]:
        return (NETWORK,)

    @property
    def freeze_points(self) -> tuple[str, ...]:
        """`none` where there is something to train."""
        return ("none", ALL_BUT_HEAD) if self.trainable else (ALL_BUT_HEAD,)

    def frozen_layers(self, point: str) -> int:
        choose(point, self.freeze_points, "model.freeze")
        return int(point == ALL_BUT_HEAD)

    def next_freeze_point(self, point: str) -> str | None:
        return None if self.freezes_all(point) else ALL_BUT_HEAD

    def cut(self, n_frozen: int) -> Cut:
        return Cut(n_frozen, self.embedding_size, True, self.flops, 0.0, rest_convolves=False)

    def arrays(self) -> Arrays:
        return self.found.arrays

    def variables(self) -> dict[str, tuple[int, ...]]:
        return {name: array.shape for name, array in self.found.arrays.items()}

    def weight_count(self) -> int:
        return sum(array.size for array in self.found.arrays.values())

    def network(self, *, embedding_activation: str, precision: str, seed: int | None) -> Any:
        from birdtune.models import keras_network

        del embedding_activation, precision, seed  # it computes in the types that it was saved with
        return keras_network.build(self)

    def load(
        self, network: Any, variables: Mapping[str, npt.NDArray[np.generic]], *, source: str = "the checkpoint"
    ) -> None:
        check_variables(variables, self.variables(), source=source)
        for variable in network.get_layer(NETWORK).weights:
            variable.assign(np.asarray(variables[f"{NETWORK}/{variable.path}"], np.float32))

    def split(self, network: Any) -> tuple[Any, Any | None]:
        return network, None

    def digest(self, network: Any) -> str:
        from birdtune.models.classifier import weights_sha256

        arrays = {variable.path: variable.numpy() for variable in network.get_layer(NETWORK).weights}
        return value_sha256([self.sha256, weights_sha256(arrays)])

    def n_frozen(self, network: Any) -> int:
        return int(not network.get_layer(NETWORK).trainable)


def is_one(path: Path) -> bool:
    """Whether a file is a `.keras` file by what is in it. Raises OSError."""
    return keras_archive.is_one(path)


def look(path: Path, output: str | None) -> Found:
    """What a file takes and gives; loads TensorFlow.

    Args:
        output: name of the layer whose output is the embedding; None: as the module says.

    Raises:
        CheckpointError: damaged, described by more than Keras' layers, or no network from waveforms to embeddings.
        RetryableError: the storage fails.
    """
    keras_archive.require_layers_only(path)
    load_tensorflow()
    from birdtune.models import keras_network

    return keras_network.look(path, output)


def backbone(path: Path, found: Found, wanted: Wanted) -> KerasBackbone:
    """A `.keras` file as a backbone. Raises as `file_backbone.facts_of`."""
    return KerasBackbone(**facts_of(path, wanted, found.n_samples), found=found, embedding=found.where)
