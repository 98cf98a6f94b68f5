"""A backbone made of a table of layers, which is trained or frozen at any of them.

    LayerBackbone (layers, front end, where its weights come from) ─▶ network, freeze points, costs

Each is described in a file of its own (`vggish.py`, `yamnet.py`) and becomes a network in `network.py`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from birdtune.models.backbone import ALL_BUT_HEAD, Arrays, Backbone, Cut, choose
from birdtune.models.layers import LayerTable


@dataclass(frozen=True, kw_only=True)
class LayerBackbone(LayerTable, Backbone):
    """A table of layers, and what is known of its weights."""

    checkpoint_names: tuple[str, ...]  # looked for in the input folder, in this order
    where_to_get: str  # the weights, in a sentence
    read: Callable[[Path], Arrays]  # checkpoint → its variables; raises CheckpointError
    recognises: Callable[[Path], bool]  # whether a file begins as its weights do; raises OSError

    @property
    def embedding_size(self) -> int:
        """Numbers in an embedding."""
        return self.layers[-1].width

    @property
    def trainable(self) -> bool:
        return True

    @property
    def layer_names(self) -> tuple[str, ...]:
        return tuple(row.name for row in self.layers)

    @property
    def freeze_points(self) -> tuple[str, ...]:
        """What `model.freeze` may be."""
        dense = any(row.kind == "dense" for row in self.layers)
        return ("none", *(("conv",) if dense else ()), ALL_BUT_HEAD, *self.layer_names)

    def frozen_layers(self, point: str) -> int:
        """How many layers, from the first on, are frozen at a freeze point.

        Args:
            point: "none", "conv" (all convolutions), "all-but-head" (everything here), or a layer's name: that
                layer and all before it.

        Raises:
            SettingsError: an unknown point.
        """
        choose(point, self.freeze_points, "model.freeze")
        names = self.layer_names
        last_conv = [row.name for row in self.layers if row.kind != "dense"][-1]
        aliases = {"conv": last_conv, ALL_BUT_HEAD: names[-1]}
        return 0 if point == "none" else names.index(aliases.get(point, point)) + 1

    def weight_count(self) -> int:
        """Trainable numbers: 72,141,184 for VGGish."""
        return sum(math.prod(shape) for shape in self.variables().values())

    def window_flops(self) -> float:
        """Floating-point operations of one window forward: 1.73e9 for VGGish."""
        return sum(self.layer_flops().values())

    def cut(self, n_frozen: int) -> Cut:
        """The backbone cut behind its first layers, of which there is one at least."""
        flops, steps = list(self.layer_flops().values()), self.steps()
        last = steps[n_frozen - 1]
        return Cut(
            n_frozen,
            numbers=last.pooled * last.row.width,
            is_whole=n_frozen == len(steps),
            frozen_flops=sum(flops[:n_frozen]),
            rest_flops=sum(flops[n_frozen:]),
            rest_convolves=any(step.row.kind != "dense" for step in steps[n_frozen:]),
        )

    def window_activations(self) -> int:
        """Numbers that leave the layers for one window: 0.89 million for VGGish."""
        return sum(step.places * step.row.width for step in self.steps())


    # ---- the network (network.py, which loads keras) ----

    def network(self, *, embedding_activation: str, precision: str, seed: int | None) -> Any:
        from birdtune.models import network as networks

        return networks.build(self, embedding_activation=embedding_activation, precision=precision, seed=seed)

    def load(
        self, network: Any, variables: Mapping[str, npt.NDArray[np.generic]], *, source: str = "the checkpoint"
    ) -> None:
        from birdtune.models import network as networks

        networks.load(self, network, variables, source=source)

    def split(self, network: Any) -> tuple[Any, Any | None]:
        from birdtune.models import network as networks

        return networks.split(self.layer_names, network)

    def digest(self, network: Any) -> str:
        from birdtune.models import network as networks

        return networks.digest(self, network)

    def n_frozen(self, network: Any) -> int:
        from birdtune.models import network as networks

        return networks.n_frozen(self.layer_names, network)

    def from_trained(self, weights: Mapping[str, npt.NDArray[np.float32]]) -> Arrays:
        """Weights as `classifier.weights` names them ("backbone/conv1/kernel") under a checkpoint's names."""
        return {
            variable: weights[f"backbone/{row.name}/{ending}"]
            for row in self.layers
            for ending, variable in zip(("kernel", "bias"), self.variable_names(row), strict=True)
            if f"backbone/{row.name}/{ending}" in weights
        }
