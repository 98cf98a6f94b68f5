"""A network as a table of layers, and what follows from it, without loading any library.

    LayerTable ─▶ variables, sizes, operations of each layer
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

from birdtune.audio.front_end import FrontEnd

KERNEL = 3  # convolutions look at 3 rows by 3 bands, all but the pointwise ones
POOL = 2  # a max-pooling halves both time and frequency
MEAN = "mean"


class Layer(NamedTuple):
    """One row of the network: a layer with weights and ReLU, and the pooling that follows it, if any."""

    name: str
    kind: str  # "conv", "depthwise", "pointwise" (a convolution of 1 × 1) or "dense"
    width: int  # output channels
    scope: str  # where a checkpoint keeps its two variables
    stride: int = 1  # over time and over frequency
    pool: str = (
        ""  # name of the max-pooling after it; MEAN: the mean over all places that are left; "" = none
    )


class Step(NamedTuple):
    """A row, and what the rows before it make of it."""

    row: Layer
    kernel: tuple[
        int, ...
    ]  # [height, width, in, out], depthwise [height, width, channels, 1], dense [in, out]
    places: int  # frames times bands that leave it
    pooled: int  # frames times bands that are left after the pooling


@dataclass(frozen=True, kw_only=True)
class LayerTable:
    """A table of convolutions and dense layers on windows [rows, bands]."""

    name: str
    front_end: FrontEnd
    activations: tuple[str, ...]  # what may follow the last layer; first: as published
    layers: tuple[Layer, ...]
    endings: tuple[str, str]  # what a checkpoint calls a layer's kernel and bias

    def steps(self) -> list[Step]:
        """The rows with the sizes that follow from their order."""
        found = []
        (frames, bands), channels = self.front_end.window_shape, 1
        for row in self.layers:
            frames, bands = math.ceil(frames / row.stride), math.ceil(bands / row.stride)
            kernel: tuple[int, ...]
            if row.kind == "dense":
                # The first dense layer sees what the last pooling left, flattened; later ones see [1, 1, width].
                kernel = (frames * bands * channels, row.width)
                frames, bands = 1, 1
            else:
                side = 1 if row.kind == "pointwise" else KERNEL
                kernel = (side, side, channels, 1 if row.kind == "depthwise" else row.width)
            places, channels = frames * bands, row.width
            if row.pool == MEAN:
                frames, bands = 1, 1
            elif row.pool:
                frames, bands = frames // POOL, bands // POOL
            found.append(Step(row, kernel, places, frames * bands))
        return found

    def variables(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the variables that a checkpoint of this backbone holds."""
        shapes: dict[str, tuple[int, ...]] = {}
        for step in self.steps():
            sizes = (step.kernel, (step.row.width,))
            for name, shape in zip(self.variable_names(step.row), sizes, strict=True):
                shapes[name] = shape
        return shapes

    def variable_names(self, row: Layer) -> tuple[str, str]:
        """What a checkpoint calls a layer's kernel and bias."""
        kernel, bias = self.endings
        return f"{row.scope}/{kernel}", f"{row.scope}/{bias}"

    def layer_flops(self) -> dict[str, float]:
        """Floating-point operations of each layer for one window forward, a multiply-add counted as two."""
        return {step.row.name: 2.0 * step.places * math.prod(step.kernel) for step in self.steps()}
