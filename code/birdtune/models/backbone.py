"""What a backbone is: a table of layers, and what follows from it, without loading any library.

    Backbone (layers, front end, where its weights come from) ─▶ variables, weights, operations a patch, freeze points

A backbone takes log-mel patches to embeddings. Each is described in a file of its own (`vggish.py`, `yamnet.py`),
is one entry in `backbones.BACKBONES`, and becomes a network in `network.py`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from birdtune.audio.logmel import FrontEnd
from birdtune.errors import SettingsError, shown

Arrays = dict[str, npt.NDArray[np.float32]]

KERNEL = 3  # convolutions look at 3 frames by 3 bands, all but the pointwise ones
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


@dataclass(frozen=True)
class Cut:
    """A backbone in two parts: the frozen beginning, and the rest."""

    n_frozen: int  # layers with weights
    numbers: int  # that leave the beginning for one patch
    is_whole: bool  # whether nothing is left: the numbers are the embedding
    frozen_flops: float  # operations of one patch forward
    rest_flops: float
    rest_convolves: bool

    def row_bytes(self, precision: str) -> int:
        """Bytes of what leaves the beginning for one patch, in a keras dtype policy; the embedding is float32."""
        return self.numbers * (4 if self.is_whole or precision == "float32" else 2)


@dataclass(frozen=True)
class Published:
    """The classifier that was published with a backbone: one layer of sigmoids on its embedding."""

    scope: str  # where a checkpoint keeps its two variables
    n_classes: int
    read_classes: Callable[[Path], tuple[str, ...]]  # checkpoint → names of the classes


@dataclass(frozen=True)
class Backbone:
    """Everything that the house must know of a backbone."""

    name: str  # as `model.backbone` names it
    title: str  # as people name it
    front_end: FrontEnd
    layers: tuple[Layer, ...]
    endings: tuple[str, str]  # what a checkpoint calls a layer's kernel and bias
    activations: tuple[
        str, ...
    ]  # what may follow the last layer (model.embedding-activation); first: as published
    checkpoint_names: tuple[str, ...]  # looked for in the input folder, in this order
    where_to_get: str  # the weights, in a sentence
    read: Callable[[Path], Arrays]  # checkpoint → its variables; raises CheckpointError
    recognises: Callable[[Path], bool]  # whether a file begins as its weights do; raises OSError
    # Share of the plain matrix-product rate that a whole training step reaches, and how much faster it is in
    # bfloat16; measured on two cores of an EPYC with AVX512-BF16. Other machines differ by a factor of two.
    step_efficiency: float
    bfloat16_gain: float
    published: Published | None = None
    has_tensorflow_1: bool = False  # whether `slim` knows its graph

    @property
    def embedding_size(self) -> int:
        """Numbers in an embedding."""
        return self.layers[-1].width

    @property
    def freeze_points(self) -> tuple[str, ...]:
        """What `model.freeze` may be."""
        dense = any(row.kind == "dense" for row in self.layers)
        return ("none", *(("conv",) if dense else ()), "all-but-head", *(row.name for row in self.layers))

    def next_freeze_point(self, point: str) -> str | None:
        """What to freeze where training what `point` leaves is too much: half of it, then all; None: all is frozen."""
        if point in ("all-but-head", self.layers[-1].name):
            return None
        middle = "conv" if "conv" in self.freeze_points else self.layers[len(self.layers) // 2].name
        return middle if self.frozen_layers(point) < self.frozen_layers(middle) else "all-but-head"

    def frozen_layers(self, point: str) -> int:
        """How many layers, from the first on, are frozen at a freeze point.

        Args:
            point: "none", "conv" (all convolutions), "all-but-head" (everything here), or a layer's name: that
                layer and all before it.

        Raises:
            SettingsError: an unknown point.
        """
        choose(point, dict.fromkeys(self.freeze_points), "model.freeze")
        names = [row.name for row in self.layers]
        last_conv = [row.name for row in self.layers if row.kind != "dense"][-1]
        aliases = {"conv": last_conv, "all-but-head": names[-1]}
        return 0 if point == "none" else names.index(aliases.get(point, point)) + 1

    def steps(self) -> list[Step]:
        """The rows with the sizes that follow from their order."""
        found = []
        frames, bands, channels = self.front_end.patch_frames, self.front_end.n_mels, 1
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

    def weight_count(self) -> int:
        """Trainable numbers: 72,141,184 for VGGish."""
        return sum(math.prod(shape) for shape in self.variables().values())

    def layer_flops(self) -> dict[str, float]:
        """Floating-point operations of each layer for one patch forward, a multiply-add counted as two."""
        return {step.row.name: 2.0 * step.places * math.prod(step.kernel) for step in self.steps()}

    def patch_flops(self) -> float:
        """Floating-point operations of one patch forward: 1.73e9 for VGGish."""
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

    def patch_activations(self) -> int:
        """Numbers that leave the layers for one patch: 0.89 million for VGGish."""
        return sum(step.places * step.row.width for step in self.steps())


def choose(value: str, choices: Mapping[str, object], setting: str) -> None:
    """Refuse a value that is not among the choices.

    Raises:
        SettingsError: naming the setting, the value and the choices.
    """
    if value not in choices:
        raise SettingsError(f"{setting}: {shown(value)} is not known. Choose one of {', '.join(choices)}.")
