"""A TensorFlow Lite graph as a keras network, batched and with its weights as variables.

    TFLiteBackbone ─▶ build ─▶ keras.Model: windows [N, rows, samples a row] float32 → embeddings [N, K] float32

Converted graphs compute the sizes of their tensors as they go, from the number of windows; where that does not change
them they are constants here, found by computing one and two windows once. Importing this loads TensorFlow.
"""

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from birdtune.errors import CheckpointError, shown
from birdtune.models.file_backbone import ONE_WINDOW
from birdtune.models.graph_network import on_waveforms
from birdtune.models.tflite import WEIGHTED, Graph, Operation
from birdtune.models.tflite_operations import OPERATIONS, compute
from birdtune.models.tflite_parts import FRONT, Part, weights_of
from birdtune.runtime.files import value_sha256
from birdtune.runtime.tensorflow_import import tensorflow_words


@dataclass(frozen=True)
class _Sizes:
    """What stays the same however many windows there are."""

    shapes: Mapping[int, tuple[int | None, ...]]  # of tensors that are computed
    constants: Mapping[int, npt.NDArray[Any]]  # whole numbers that are computed, as sizes are
    one_by_one: bool  # the front takes one window at a time


class Block(keras.layers.Layer):  # type: ignore[misc]  # keras is untyped
    """A part of the graph; kernels and biases are its weights, all other numbers constants."""

    def __init__(self, backbone: Any, part: Part, sizes: _Sizes, dtype: str) -> None:
        super().__init__(name=part.name, dtype=dtype)
        self._graph, self._part, self._sizes = backbone.graph, part, sizes
        self._weights_of: dict[tuple[int, int], keras.Variable] = {}
        for operation in part.weighted(self._graph):
            for place, name, array in weights_of(self._graph, operation):
                variable = self.add_weight(shape=array.shape, initializer="zeros", name=name)
                self._weights_of[operation.number, place] = variable

    def call(self, given: Any) -> Any:
        """What leads into the part → what leads out of it."""
        if self._part.name == FRONT and self._sizes.one_by_one:
            shape = self._sizes.shapes[self._part.made]
            return tf.map_fn(
                lambda one: self._compute(one[None])[0], given, fn_output_signature=tf.TensorSpec(shape[1:], tf.float32)
            )
        return self._compute(given)

    def _compute(self, given: Any) -> Any:
        made: dict[int, Any] = {self._part.given: given}
        if self._part.name == FRONT:
            is_flat = len(self._graph.tensors[self._part.given].shape) == 1
            made[self._part.given] = tf.reshape(given, [-1]) if is_flat else given

        def fetch(operation: Operation, place: int) -> Any:
            tensor = operation.inputs[place]
            if (operation.number, place) in self._weights_of:
                return tf.convert_to_tensor(self._weights_of[operation.number, place])
            if tensor in made or tensor < 0:
                return made.get(tensor)
            return self._constant(operation, place)

        for operation in self._part.operations:
            if all(tensor in self._sizes.constants for tensor in operation.outputs):
                continue
            inputs = [fetch(operation, place) for place in range(len(operation.inputs))]
            outputs = compute(operation.name, inputs, operation.options)
            for tensor, value in zip(operation.outputs, outputs, strict=True):
                if tensor in self._sizes.shapes and not self._sizes.one_by_one:
                    value.set_shape(self._sizes.shapes[tensor])
                made[tensor] = value
        return made[self._part.made]

    def _constant(self, operation: Operation, place: int) -> Any:
        tensor = operation.inputs[place]
        if tensor in self._sizes.constants:
            return self._sizes.constants[tensor]
        values = _constant(self._graph, operation, place)
        return tf.cast(values, self.compute_dtype) if values.dtype == np.float32 else values

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Shape of what leads out, [N, …]."""
        return (input_shape[0], *self._sizes.shapes[self._part.made][1:])


def _constant(graph: Graph, operation: Operation, place: int) -> npt.NDArray[Any]:
    if operation.name in WEIGHTED and place == 1:
        return graph.kernel(operation)
    values = graph.constant(operation.inputs[place])
    return values.astype(np.float32) if values.dtype.kind == "f" else values


def build(backbone: Any, *, precision: str) -> keras.Model:
    """The network of a `TFLiteBackbone`, with zeros for weights. Raises CheckpointError where it cannot be computed."""
    sizes = _sizes(backbone)

    def embed(net: Any) -> Any:
        net = Block(backbone, backbone.parts.front, sizes, "float32")(net)
        for part in backbone.parts.blocks:
            net = Block(backbone, part, sizes, precision)(net)
        return keras.layers.Activation("linear", name="embedding", dtype="float32")(net)

    return on_waveforms(backbone, embed)


@functools.lru_cache(maxsize=2)
def _sizes(backbone: Any) -> _Sizes:
    """Compute one window and two, and see what differs."""
    graph, parts = backbone.graph, backbone.parts
    whole = (parts.front, *parts.blocks)
    chosen = [one for part in whole for one in part.operations]
    if unknown := sorted({one.name for one in chosen} - set(OPERATIONS)):
        raise CheckpointError(
            f"{shown(backbone.path)}: has operations that birdtune does not compute: {', '.join(map(shown, unknown))}. "
            "Give the model as a SavedModel, or convert it with TensorFlow Lite's built-in operations alone."
        )
    noise = np.random.default_rng(0).normal(0.0, 0.1, (2, backbone.n_samples)).astype(np.float32)
    try:
        first = computed(graph, whole, noise[:1])
    except Exception as fault:  # whatever TensorFlow makes of it, the file is the cause
        raise _cannot(backbone, fault) from fault
    made, end = parts.front.made, parts.blocks[-1].made
    try:
        both = computed(graph, whole, noise)
        one_by_one = both[made].shape[0] != 2 or not _alike(both[made][:1], first[made])
    except Exception:  # a graph that was made for one window
        one_by_one = True
    if one_by_one:
        entry = np.concatenate([first[made]] * 2)
        try:
            both = first | computed(graph, parts.blocks, entry)
        except Exception as fault:  # it computes one window, and not two
            raise CheckpointError(f"{shown(backbone.path)}: {ONE_WINDOW}") from fault
    if both[end].shape != (2, *first[end].shape[1:]):
        raise CheckpointError(f"{shown(backbone.path)}: {ONE_WINDOW}")
    shapes = {
        tensor: tuple(a if a == b else None for a, b in zip(value.shape, both[tensor].shape, strict=True))
        for tensor, value in first.items()
        if value.ndim == both[tensor].ndim
    }
    shapes[parts.front.made] = (None, *first[parts.front.made].shape[1:])
    constants = {
        tensor: value
        for tensor, value in first.items()
        if value.dtype.kind in "iub" and np.array_equal(value, both[tensor])
    }
    return _Sizes(shapes, constants, one_by_one)


def _alike(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> bool:
    """Whether two arrays are the same but for the rounding of spectra, which is coarse where they are near zero."""
    return one.shape == other.shape and np.allclose(one, other, rtol=0.0, atol=1e-2 * max(1.0, np.abs(other).max()))


def computed(graph: Graph, parts: Sequence[Part], given: Any) -> dict[int, npt.NDArray[Any]]:
    """All tensors on the way through parts of a graph, from what goes into the first of them."""
    entry = parts[0].given
    is_flat = entry == graph.inputs[0] and len(graph.tensors[entry].shape) == 1
    made: dict[int, Any] = {entry: tf.reshape(given, [-1]) if is_flat else tf.constant(given)}
    for operation in (one for part in parts for one in part.operations):
        inputs = [
            None if tensor < 0 else made[tensor] if tensor in made else _constant(graph, operation, place)
            for place, tensor in enumerate(operation.inputs)
        ]
        made |= zip(operation.outputs, compute(operation.name, inputs, operation.options), strict=True)
    return {tensor: np.asarray(value) for tensor, value in made.items()}


def _cannot(backbone: Any, fault: Exception) -> CheckpointError:
    reason = tensorflow_words(fault)
    return CheckpointError(
        f"{shown(backbone.path)}: its graph cannot be computed in TensorFlow ({type(fault).__name__}: {reason}). "
        "Likely cause: a damaged file, or a converter that birdtune does not know. Give the model as a SavedModel."
    )


def digest(backbone: Any, network: keras.Model, n_frozen: int) -> str:
    """SHA-256 of the frozen part: the graph, its weights as they are, and the types in which they compute."""
    layers = [network.get_layer(name) for name in backbone.layer_names[:n_frozen]]
    weights = hashlib.sha256()
    for layer in layers:
        for variable in layer.weights:
            weights.update(np.ascontiguousarray(variable.numpy(), "<f4").data)
    types = [layer.dtype_policy.name for layer in layers]
    return value_sha256([backbone.sha256, n_frozen, types, weights.hexdigest()])
