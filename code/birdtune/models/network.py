"""A backbone's table of layers made into a network: weights put in, freeze points.

    log-mel windows [N, 96 frames, 64 bands] float32 ─▶ embeddings [N, 128 or 1024] float32

Written with keras layers alone.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from birdtune.models.backbone import choose
from birdtune.models.layers import KERNEL, MEAN, POOL, Layer, LayerTable
from birdtune.models.tf_checkpoint import check_variables
from birdtune.runtime.files import value_sha256

_ACTIVATIONS: Mapping[str, str | None] = {"relu": "relu", "none": None}


class Convolution(keras.layers.Conv2D):  # type: ignore[misc]  # keras is untyped
    """A convolution that shows what goes in and out, before the bias, to whoever sets `watcher`."""

    watcher: Callable[[Any, Any], None] | None = None

    def convolution_op(self, inputs: Any, kernel: Any) -> Any:
        """Convolve [N, H, W, inputs] with a kernel [3, 3, inputs, outputs]: [N, H, W, outputs]."""
        outputs = super().convolution_op(inputs, kernel)
        if self.watcher is not None:
            self.watcher(inputs, outputs)
        return outputs


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


def build(
    table: LayerTable, *, embedding_activation: str, precision: str, seed: int | None
) -> keras.Model:
    """The network from windows to embeddings, with fresh weights: one keras layer a row of the backbone's table.

    Arguments, result and errors as `Backbone.network`.
    """
    choose(embedding_activation, table.activations, "model.embedding-activation")
    shape = table.front_end.window_shape
    features = keras.Input(shape, dtype="float32", name="input_features")
    net = keras.layers.Reshape((*shape, 1), name="channel", dtype=precision)(features)
    for row in table.layers:
        if row.kind == "dense" and len(net.shape) == 4:
            # [N, 6, 4, 512] → [N, 12288]: time slowest, channels fastest, as the checkpoint expects.
            net = keras.layers.Flatten(name="flatten", data_format="channels_last", dtype=precision)(net)
        is_last = row is table.layers[-1]
        activation = embedding_activation if is_last else "relu"
        # ReLU comes after a pooling: the same numbers, as the largest stays the largest, for a quarter of the work
        # in both directions. A mean wants it before.
        is_late = row.pool not in ("", MEAN)
        net = _layer(row, "none" if is_late else activation, is_last, precision, seed)(net)
        if row.pool:
            net = _pooling(row, is_last, precision)(net)
        if is_late:
            net = keras.layers.Activation(activation, name=f"{row.name}_{activation}", dtype=precision)(net)
    return keras.Model(features, net, name=table.name)


def _layer(
    row: Layer, activation: str, is_last: bool, precision: str, seed: int | None
) -> keras.layers.Layer:
    common: dict[str, Any] = {"activation": _ACTIVATIONS[activation], "name": row.name}
    if row.kind == "dense":
        # The embedding leaves the network: it is worth its full precision, and at 0.06 % of the work
        # costs nothing.
        dtype = "float32" if is_last else precision
        initial = first_weights(seed, row.name)
        return keras.layers.Dense(row.width, kernel_initializer=initial, dtype=dtype, **common)
    common |= {"padding": "same", "data_format": "channels_last", "strides": row.stride, "dtype": precision}
    if row.kind == "depthwise":
        # Keras counts all channels as inputs of each output, which has but its own.
        initial = first_weights(seed, row.name, scale=2.0 * row.width)
        return keras.layers.DepthwiseConv2D(KERNEL, depthwise_initializer=initial, **common)
    initial = first_weights(seed, row.name)
    if row.kind == "pointwise":
        return keras.layers.Conv2D(row.width, 1, kernel_initializer=initial, **common)
    return Convolution(row.width, KERNEL, kernel_initializer=initial, **common)


def _pooling(row: Layer, is_last: bool, precision: str) -> keras.layers.Layer:
    dtype = "float32" if is_last else precision
    if row.pool == MEAN:
        return keras.layers.GlobalAveragePooling2D(data_format="channels_last", name=MEAN, dtype=dtype)
    return keras.layers.MaxPooling2D(
        POOL, padding="same", data_format="channels_last", name=row.pool, dtype=dtype
    )


def load(
    table: LayerTable, network: keras.Model, variables: Mapping[str, npt.NDArray[np.generic]], *, source: str
) -> None:
    """Put a checkpoint's weights into the network, as `Backbone.load`."""
    check_variables(variables, table.variables(), source=source)
    for row in table.layers:
        layer = network.get_layer(row.name)
        for variable, name in zip((layer.kernel, layer.bias), table.variable_names(row), strict=True):
            variable.assign(np.asarray(variables[name], np.float32))


def n_frozen(layers: Sequence[str], network: keras.Model) -> int:
    """How many of these layers are frozen."""
    return sum(not network.get_layer(name).trainable for name in layers)


def split(layers: Sequence[str], network: keras.Model) -> tuple[keras.Model, keras.Model | None]:
    """The frozen beginning and the rest, as `Backbone.split`.

    Args:
        layers: names of those with weights, in their order.
    """
    names = [layer.name for layer in network.layers]
    n = n_frozen(layers, network)
    # What follows a frozen layer without weights of its own, as a pooling, is frozen with it.
    end = names.index(layers[n]) if n < len(layers) else len(names)
    activations = network.layers[end - 1].output
    beginning = keras.Model(network.input, activations, name="frozen")
    if end == len(names):
        return beginning, None
    given = keras.Input(activations.shape[1:], dtype=activations.dtype, name="activations")
    net = given
    for layer in network.layers[end:]:
        net = layer(net)
    return beginning, keras.Model(given, net, name="rest")


def digest(table: LayerTable, network: keras.Model) -> str:
    """SHA-256 of the frozen layers, their weights and the types in which they compute, as `Backbone.digest`."""
    rows = table.layers[: n_frozen([row.name for row in table.layers], network)]
    weights = hashlib.sha256()
    for row in rows:
        for variable in network.get_layer(row.name).weights:
            weights.update(np.ascontiguousarray(variable.numpy(), "<f4").data)
    last = network.get_layer(table.layers[-1].name)
    facts = {
        "layers": [list(row) for row in rows],
        "types": [network.get_layer(row.name).dtype_policy.name for row in rows],
        "activation": keras.activations.serialize(last.activation),
        "weights": weights.hexdigest(),
    }
    return value_sha256(facts)
