"""VGGish: the table of layers made into a network, weights from a checkpoint, freeze points.

    log-mel patches [N, 96 frames, 64 bands] float32 ─▶ embeddings [N, 128] float32

Written with keras layers alone, after Google's published network (AudioSet; Hershey et al., "CNN
architectures for large-scale audio classification", 2017), to the letter: a checkpoint trained there
gives the same embeddings here. `vggish-small` is the same network at an eighth of the width, for tests
and quick looks; nobody publishes weights for it.
"""

import hashlib
from collections.abc import Mapping

import keras
import numpy as np
import numpy.typing as npt

from birdtune.model.architecture import (
    BACKBONES,
    FREEZE_POINTS,
    KERNEL,
    LAYERS,
    N_BANDS,
    PATCH_FRAMES,
    POOL,
    Layer,
    checkpoint_variables,
    choose,
    layer_width,
)
from birdtune.model.checkpoint import check_variables

ACTIVATIONS: Mapping[str, str | None] = {"relu": "relu", "none": None}


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
                POOL, padding="same", data_format="channels_last", name=row.pool, dtype=precision
            )(net)
    return keras.Model(patches, net, name=backbone)


def _layer(
    row: Layer, width: int, embedding_activation: str, precision: str, seed: int | None
) -> keras.layers.Layer:
    initial = first_weights(seed, row.name)
    if row.kind == "conv":
        return keras.layers.Conv2D(
            width,
            KERNEL,
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


def load_trunk(
    trunk: keras.Model, variables: Mapping[str, npt.NDArray[np.generic]], *, source: str = "the checkpoint"
) -> None:
    """Put a checkpoint's weights into the network; other variables in it (a head's) are passed over.

    Args:
        trunk: as `build_trunk` made it.
        variables: arrays by checkpoint name, as `checkpoint.read_checkpoint` gives them.
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
