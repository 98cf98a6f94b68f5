"""The networks as tables of layers: sizes, names and costs, without loading any library.

    backbone's name ─▶ layers, checkpoint variables, weights, operations a patch

VGGish is Google's published network (AudioSet; Hershey et al., "CNN architectures for large-scale audio
classification", 2017). `vggish-small` is the same at an eighth of the width, for tests and quick looks;
nobody publishes weights for it.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

from birdtune.errors import SettingsError, shown

PATCH_FRAMES = 96
N_BANDS = 64
EMBEDDING_SIZE = 128

# What every width but the embedding's is divided by.
BACKBONES: Mapping[str, int] = {"vggish": 1, "vggish-small": 8}

KERNEL = 3  # every convolution looks at 3 frames by 3 bands
POOL = 2  # every pooling halves both time and frequency


class Layer(NamedTuple):
    """One row of the network: a layer with weights, and the pooling that follows it, if any."""

    name: str
    kind: str  # "conv" or "dense"
    width: int  # output channels at full size
    pool: str  # name of the max-pooling after it; "" = none
    scope: str  # where a checkpoint keeps `weights` and `biases`


LAYERS = (
    Layer("conv1", "conv", 64, "pool1", "vggish/conv1"),
    Layer("conv2", "conv", 128, "pool2", "vggish/conv2"),
    Layer("conv3_1", "conv", 256, "", "vggish/conv3/conv3_1"),
    Layer("conv3_2", "conv", 256, "pool3", "vggish/conv3/conv3_2"),
    Layer("conv4_1", "conv", 512, "", "vggish/conv4/conv4_1"),
    Layer("conv4_2", "conv", 512, "pool4", "vggish/conv4/conv4_2"),
    Layer("fc1_1", "dense", 4096, "", "vggish/fc1/fc1_1"),
    Layer("fc1_2", "dense", 4096, "", "vggish/fc1/fc1_2"),
    Layer("fc2", "dense", EMBEDDING_SIZE, "", "vggish/fc2"),
)

FREEZE_POINTS = ("none", "conv", "all-but-head", *(row.name for row in LAYERS))


def choose(value: str, choices: Mapping[str, object], setting: str) -> None:
    """Refuse a value that is not among the choices.

    Raises:
        SettingsError: naming the setting, the value and the choices.
    """
    if value not in choices:
        raise SettingsError(f"{setting}: {shown(value)} is not known. Choose one of {', '.join(choices)}.")


def layer_width(row: Layer, backbone: str) -> int:
    """Output channels of a layer in this backbone; the embedding is 128 wide in all of them."""
    return row.width if row.name == "fc2" else row.width // BACKBONES[backbone]


def checkpoint_variables(backbone: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the variables that a TensorFlow checkpoint of this backbone holds."""
    choose(backbone, BACKBONES, "model.backbone")
    shapes: dict[str, tuple[int, ...]] = {}
    frames, bands, channels = PATCH_FRAMES, N_BANDS, 1
    for row in LAYERS:
        width = layer_width(row, backbone)
        if row.kind == "conv":
            shapes[f"{row.scope}/weights"] = (KERNEL, KERNEL, channels, width)
        else:
            # The first dense layer sees what the last pooling left, flattened; later ones see [1, 1, width].
            shapes[f"{row.scope}/weights"] = (frames * bands * channels, width)
            frames, bands = 1, 1
        shapes[f"{row.scope}/biases"] = (width,)
        channels = width
        if row.pool:
            frames, bands = frames // POOL, bands // POOL
    return shapes


def weight_count(backbone: str) -> int:
    """Trainable numbers in the trunk: 72,141,184 for VGGish."""
    return sum(math.prod(shape) for shape in checkpoint_variables(backbone).values())


def patch_flops(backbone: str) -> float:
    """Floating-point operations of one patch forward, a multiply-add counted as two: 1.73e9 for VGGish."""
    total, frames, bands = 0, PATCH_FRAMES, N_BANDS
    shapes = checkpoint_variables(backbone)
    for row in LAYERS:
        places = frames * bands if row.kind == "conv" else 1
        total += 2 * places * math.prod(shapes[f"{row.scope}/weights"])
        if row.pool:
            frames, bands = frames // POOL, bands // POOL
    return float(total)
