"""VGGish: the table of layers, weights from a checkpoint, freeze points.

    log-mel patches [N, 96 frames, 64 bands] float32 ─▶ embeddings [N, 128] float32

Written with keras layers alone, after Google's published network (AudioSet; Hershey et al., "CNN
architectures for large-scale audio classification", 2017), to the letter: a checkpoint trained there
gives the same embeddings here. `vggish-small` is the same network at an eighth of the width, for tests
and quick looks; nobody publishes weights for it.
"""

import hashlib
from collections.abc import Collection, Mapping
from typing import NamedTuple

import keras
import numpy as np
import numpy.typing as npt

from birdtune.errors import CheckpointError, SettingsError, shown

PATCH_FRAMES = 96
N_BANDS = 64
EMBEDDING_SIZE = 128

# What every width but the embedding's is divided by.
BACKBONES: Mapping[str, int] = {"vggish": 1, "vggish-small": 8}
ACTIVATIONS: Mapping[str, str | None] = {"relu": "relu", "none": None}

_KERNEL = 3  # every convolution looks at 3 frames by 3 bands
_POOL = 2  # every pooling halves both time and frequency
_NAMES_SHOWN = 8


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
            shapes[f"{row.scope}/weights"] = (_KERNEL, _KERNEL, channels, width)
        else:
            # The first dense layer sees what the last pooling left, flattened; later ones see [1, 1, width].
            shapes[f"{row.scope}/weights"] = (frames * bands * channels, width)
            frames, bands = 1, 1
        shapes[f"{row.scope}/biases"] = (width,)
        channels = width
        if row.pool:
            frames, bands = frames // _POOL, bands // _POOL
    return shapes


def first_weights(seed: int | None, layer: str, *, scale: float = 2.0) -> keras.initializers.Initializer:
    """How a layer's kernel starts: truncated normal with variance `scale` / inputs.

    2 is He-normal (He et al., "Delving deep into rectifiers", 2015), which keeps a signal's strength
    through ReLU layers.

    Not the original's normal of 0.01, with which the signal all but dies on its way through nine layers.

    Args:
        seed: of the whole network; each layer draws from a seed of its own, made of this and its name.
            None = zeros: drawing 72 million numbers takes seconds, and who loads weights next needs none.
        layer: the layer's name.
        scale: variance of the weights times the number of inputs.
    """
    if seed is None:
        return keras.initializers.Zeros()
    digest = hashlib.sha256(f"{seed}/{layer}".encode()).digest()
    own_seed = int.from_bytes(digest[:4], "little") >> 1
    return keras.initializers.VarianceScaling(scale, "fan_in", "truncated_normal", seed=own_seed)


def build_trunk(backbone: str, *, embedding_activation: str, precision: str, seed: int | None) -> keras.Model:
    """The network from patches to embeddings, with fresh weights.

    Args:
        backbone: a name in `BACKBONES`; it becomes the model's name.
        embedding_activation: what follows fc2: "relu" (as it was trained) or "none".
        precision: a keras dtype policy: "float32", "mixed_bfloat16" or "mixed_float16".
        seed: of the initial weights; the same seed gives the same weights. None = zeros, for weights
            that are loaded next.

    Returns:
        A model [N, 96, 64] float32 → [N, 128] float32, one keras layer a row of `LAYERS`.

    Raises:
        SettingsError: an unknown backbone or activation.
    """
    choose(backbone, BACKBONES, "model.backbone")
    choose(embedding_activation, ACTIVATIONS, "model.embedding-activation")
    patches = keras.Input((PATCH_FRAMES, N_BANDS), dtype="float32", name="input_features")
    net = keras.layers.Reshape((PATCH_FRAMES, N_BANDS, 1), name="channel", dtype=precision)(patches)
    for row in LAYERS:
        if row.kind == "dense" and len(net.shape) == 4:
            # [N, 6, 4, 512] → [N, 12288]: time slowest, channels fastest, as the checkpoint expects.
            net = keras.layers.Flatten(name="flatten", data_format="channels_last", dtype=precision)(net)
        net = _layer(row, layer_width(row, backbone), embedding_activation, precision, seed)(net)
        if row.pool:
            net = keras.layers.MaxPooling2D(
                _POOL, padding="same", data_format="channels_last", name=row.pool, dtype=precision
            )(net)
    return keras.Model(patches, net, name=backbone)


def _layer(
    row: Layer, width: int, embedding_activation: str, precision: str, seed: int | None
) -> keras.layers.Layer:
    initial = first_weights(seed, row.name)
    if row.kind == "conv":
        return keras.layers.Conv2D(
            width,
            _KERNEL,
            padding="same",
            activation="relu",
            kernel_initializer=initial,
            data_format="channels_last",
            name=row.name,
            dtype=precision,
        )
    is_embedding = row.name == "fc2"
    return keras.layers.Dense(
        width,
        activation=ACTIVATIONS[embedding_activation] if is_embedding else "relu",
        kernel_initializer=initial,
        name=row.name,
        # The embedding leaves the network: it is worth its full precision, and at 0.06 % of the work
        # costs nothing.
        dtype="float32" if is_embedding else precision,
    )


def check_variables(
    found: Mapping[str, npt.NDArray[np.generic]],
    expected: Mapping[str, tuple[int, ...]],
    *,
    source: str,
    strict: bool = False,
) -> None:
    """Compare what was found with what a network needs, and tell all differences at once.

    Args:
        found: arrays by name.
        expected: shapes by name.
        source: what the message calls the origin of the arrays.
        strict: whether names that are not expected are a fault too.

    Raises:
        CheckpointError: naming every missing, misshapen and non-finite variable.
    """
    faults = []
    if missing := [name for name in expected if name not in found]:
        faults.append(f"missing: {', '.join(missing)}")
    present = [name for name in expected if name in found]
    if misshapen := [name for name in present if found[name].shape != expected[name]]:
        faults.append(
            "of another shape: "
            + "; ".join(
                f"{name} is {list(found[name].shape)}, not {list(expected[name])}" for name in misshapen
            )
        )
    if broken := [name for name in present if not np.isfinite(found[name]).all()]:
        faults.append(f"holding NaN or infinity: {', '.join(broken)}")
    others = [name for name in found if name not in expected]
    if faults or (strict and others):
        if others:
            faults.append(f"not expected, but there: {listed(others)}")
        raise CheckpointError(
            f"{source}: does not fit this network. Variables {'. Variables '.join(faults)}. "
            "Likely cause: the file is of another network or was trained with other model settings; "
            "give the matching checkpoint, or set the model as it was trained."
        )


def listed(names: Collection[str]) -> str:
    """The first few names, safe to print, and how many more there are."""
    first = ", ".join(shown(name) for name in sorted(names)[:_NAMES_SHOWN])
    return f"{first} and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else first


def load_trunk(
    trunk: keras.Model, variables: Mapping[str, npt.NDArray[np.generic]], *, source: str = "the checkpoint"
) -> None:
    """Put a checkpoint's weights into the network; other variables in it (a head's) are passed over.

    Args:
        trunk: as `build_trunk` made it.
        variables: arrays by checkpoint name, as `slim.read_checkpoint` gives them.
        source: what an error message calls the checkpoint.

    Raises:
        CheckpointError: naming every missing, misshapen and non-finite variable; nothing is loaded then.
    """
    check_variables(variables, checkpoint_variables(trunk.name), source=source)
    for row in LAYERS:
        layer = trunk.get_layer(row.name)
        for variable, name in ((layer.kernel, "weights"), (layer.bias, "biases")):
            variable.assign(np.asarray(variables[f"{row.scope}/{name}"], np.float32))


def freeze(trunk: keras.Model, point: str) -> None:
    """Freeze the network up to a point; what comes after it is free.

    Args:
        trunk: as `build_trunk` made it.
        point: "none", "conv" (all convolutions), "all-but-head" (everything here), or a layer's name:
            that layer and all before it.

    Raises:
        SettingsError: an unknown point.
    """
    choose(point, dict.fromkeys(FREEZE_POINTS), "model.freeze")
    names = [row.name for row in LAYERS]
    aliases = {"conv": [row.name for row in LAYERS if row.kind == "conv"][-1], "all-but-head": names[-1]}
    frozen = 0 if point == "none" else names.index(aliases.get(point, point)) + 1
    for position, name in enumerate(names):
        trunk.get_layer(name).trainable = position >= frozen
