"""What operations of TensorFlow Lite are in Keras: stock layers where they have weights, functions of `keras.ops` else.

    operation, inputs ─▶ compute ─▶ outputs: KerasTensors, of complex numbers pairs of them

An operation that is neither in `FUNCTIONS` nor in `tflite.WEIGHTED` has no equivalent. Importing this loads TensorFlow.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from keras import layers, ops

from birdtune.models.tflite import WEIGHTED, Graph, Operation

Options = Mapping[str, Any]

# By the schema's numbers.
_PADDINGS = {0: "same", 1: "valid"}
_ACTIVATIONS: Mapping[int, Callable[[Any], Any]] = {
    0: lambda x: x,
    1: ops.relu,
    2: lambda x: ops.clip(x, -1.0, 1.0),
    3: ops.relu6,
    4: ops.tanh,
}


class Complex(NamedTuple):
    """The parts of a complex tensor, of which Keras has none."""

    real: Any
    imag: Any


def compute(graph: Graph, operation: Operation, inputs: Sequence[Any]) -> list[Any]:
    """The outputs of an operation.

    Args:
        operation: one of `FUNCTIONS` or of `tflite.WEIGHTED`.
        inputs: KerasTensors, arrays of constants, and sizes, in which None depends on the number of windows; None
            where an optional one is left out.

    Raises:
        ValueError: its options, or its sizes, have no equivalent in Keras.
    """
    if operation.name in WEIGHTED:
        found = _layer(graph, operation, inputs[0])
    else:
        found = FUNCTIONS[operation.name](list(inputs), operation.options)
    activation = _ACTIVATIONS[operation.options.get("fusedActivationFunction", 0)]
    return [activation(one) for one in (found if isinstance(found, list) else [found])]


def _layer(graph: Graph, operation: Operation, given: Any) -> Any:
    """A stock layer with an operation's weights, applied."""
    o, kernel, bias = operation.options, graph.kernel(operation), graph.bias(operation)
    more: dict[str, Any] = {"use_bias": bias is not None, "name": f"{WEIGHTED[operation.name]}_{operation.number}"}
    if operation.name == "FULLY_CONNECTED":
        if not o["keepNumDims"]:
            given = ops.reshape(given, (-1, kernel.shape[0]))
        layer = layers.Dense(kernel.shape[1], **more)
    else:
        more |= {"padding": _PADDINGS[o["padding"]], "strides": (o["strideH"], o["strideW"])}
        more |= {"dilation_rate": (o["dilationHFactor"], o["dilationWFactor"])}
        if operation.name == "CONV_2D":
            layer = layers.Conv2D(kernel.shape[3], kernel.shape[:2], groups=given.shape[-1] // kernel.shape[2], **more)
        elif o["strideH"] == o["strideW"]:
            kernel = kernel.reshape(*kernel.shape[:2], given.shape[-1], -1)
            layer = layers.DepthwiseConv2D(kernel.shape[:2], depth_multiplier=kernel.shape[3], **more)
        else:  # which that layer does not have; a grouped convolution says the same
            kernel = kernel.reshape(*kernel.shape[:2], 1, -1)
            layer = layers.Conv2D(kernel.shape[3], kernel.shape[:2], groups=given.shape[-1], **more)
    made = layer(given)
    layer.set_weights([kernel] if bias is None else [kernel, bias])
    return made


def _fixed(sizes: Any) -> list[int]:
    """Sizes that do not depend on the number of windows."""
    found = np.asarray(sizes, object).ravel().tolist()
    if None in found:
        raise ValueError("a size that depends on the number of windows, where Keras takes a fixed one")
    return [int(size) for size in found]


def _axes(axes: Any) -> Any:
    found = _fixed(axes)
    return found[0] if len(found) == 1 else tuple(found)


def _each(function: Callable[..., Any]) -> Callable[[list[Any], Options], Any]:
    """A function that does the same to both parts of complex numbers."""

    def both(i: list[Any], o: Options) -> Any:
        if isinstance(i[0], Complex):
            return Complex(*(function([part, *i[1:]], o) for part in i[0]))
        return function(i, o)

    return both


def _reshape(i: list[Any], o: Options) -> Any:
    target = i[1] if len(i) > 1 and i[1] is not None else o["newShape"]
    return ops.reshape(i[0], [-1 if size is None else int(size) for size in np.asarray(target, object).ravel()])


def _strided_slice(i: list[Any], o: Options) -> Any:
    if o["ellipsisMask"] or o["newAxisMask"]:
        raise ValueError("STRIDED_SLICE with an ellipsis or a new axis")
    key = list[Any]()
    for axis, (begin, end, step) in enumerate(zip(*(np.asarray(part, object) for part in i[1:4]), strict=True)):
        if o["shrinkAxisMask"] >> axis & 1:
            key.append(int(begin))
            continue
        begin = None if o["beginMask"] >> axis & 1 else begin
        end = None if o["endMask"] >> axis & 1 else end
        key.append(slice(*(None if part is None else int(part) for part in (begin, end, step))))
    return i[0][tuple(key)]


def _slice(i: list[Any], o: Options) -> Any:
    pairs = zip(*(np.asarray(part, object) for part in i[1:3]), strict=True)
    return i[0][tuple(slice(int(at), None if size in (None, -1) else int(at + size)) for at, size in pairs)]


def _rfft2d(i: list[Any], o: Options) -> Any:
    rows, length = _fixed(i[1])
    if rows != 1 or i[0].shape[-2] != 1:
        raise ValueError("RFFT2D over two axes")
    # In float64, as TensorFlow Lite and the backbone compute it (`models.tflite_operations`).
    parts = ops.rfft(ops.cast(i[0], "float64"), fft_length=length)
    return Complex(*(ops.cast(part, "float32") for part in parts))


def _cast(i: list[Any], o: Options) -> Any:
    return ops.cast(i[0].real if isinstance(i[0], Complex) else i[0], o["to"])


def _gather(i: list[Any], o: Options) -> Any:
    if o["batchDims"]:
        raise ValueError("GATHER with batch dimensions")
    return ops.take(i[0], np.asarray(_fixed(i[1])).reshape(np.shape(i[1])), axis=o["axis"])


def _squeeze(i: list[Any], o: Options) -> Any:
    return ops.squeeze(i[0], axis=tuple(int(axis) for axis in o["squeezeDims"]) or None)


def _pad(i: list[Any], o: Options) -> Any:
    value = float(i[2]) if len(i) > 2 else None
    return ops.pad(i[0], np.asarray(_fixed(i[1])).reshape(-1, 2).tolist(), constant_values=value)


def _pool(function: Callable[..., Any]) -> Callable[[list[Any], Options], Any]:
    return lambda i, o: function(
        i[0], (o["filterHeight"], o["filterWidth"]), (o["strideH"], o["strideW"]), _PADDINGS[o["padding"]],
        "channels_last",
    )  # fmt: skip


def _plain(function: Callable[..., Any]) -> Callable[[list[Any], Options], Any]:
    return lambda i, o: function(*i)


def _reduce(function: Callable[..., Any]) -> Callable[[list[Any], Options], Any]:
    return lambda i, o: function(i[0], axis=_axes(i[1]), keepdims=bool(o["keepDims"]))


def _matmul(i: list[Any], o: Options) -> Any:
    turned = [ops.swapaxes(one, -1, -2) if o[flag] else one for one, flag in zip(i, ("adjX", "adjY"), strict=True)]
    return ops.matmul(*turned)


def _absolute(i: list[Any], o: Options) -> Any:
    return ops.sqrt(ops.square(i[0].real) + ops.square(i[0].imag))


def _l2_normalised(i: list[Any], o: Options) -> Any:
    return i[0] * ops.rsqrt(ops.maximum(ops.sum(ops.square(i[0]), axis=-1, keepdims=True), 1e-12))


_PLAIN: Mapping[str, Callable[..., Any]] = {
    "ABS": ops.abs, "ADD": ops.add, "CEIL": ops.ceil, "COS": ops.cos, "DIV": ops.divide, "ELU": ops.elu,
    "EQUAL": ops.equal, "EXP": ops.exp, "FLOOR": ops.floor, "FLOOR_DIV": ops.floor_divide, "FLOOR_MOD": ops.mod,
    "GREATER": ops.greater,
    "GREATER_EQUAL": ops.greater_equal, "HARD_SWISH": ops.hard_silu, "LESS": ops.less, "LESS_EQUAL": ops.less_equal,
    "LOG": ops.log, "LOGISTIC": ops.sigmoid, "LOG_SOFTMAX": ops.log_softmax, "MAXIMUM": ops.maximum,
    "MINIMUM": ops.minimum, "MUL": ops.multiply, "NEG": ops.negative, "POW": ops.power, "RELU": ops.relu,
    "RELU6": ops.relu6, "ROUND": ops.round, "RSQRT": ops.rsqrt, "SELECT": ops.where, "SELECT_V2": ops.where,
    "SIN": ops.sin, "SQRT": ops.sqrt, "SQUARE": ops.square, "SUB": ops.subtract, "TANH": ops.tanh,
}  # fmt: skip
FUNCTIONS: Mapping[str, Callable[[list[Any], Options], Any]] = {
    **{name: _plain(function) for name, function in _PLAIN.items()},
    # element by element
    "GELU": lambda i, o: ops.gelu(i[0], approximate=bool(o["approximate"])),
    "LEAKY_RELU": lambda i, o: ops.leaky_relu(i[0], o["alpha"]),
    "PRELU": lambda i, o: ops.maximum(i[0], 0.0) + i[1] * ops.minimum(i[0], 0.0),
    "SOFTMAX": lambda i, o: ops.softmax(i[0] * float(o["beta"])),
    "SQUARED_DIFFERENCE": lambda i, o: ops.square(i[0] - i[1]),
    "CAST": _cast,
    # over axes
    "AVERAGE_POOL_2D": _pool(ops.average_pool),
    "BATCH_MATMUL": _matmul,
    "L2_NORMALIZATION": _l2_normalised,
    "MAX_POOL_2D": _pool(ops.max_pool),
    "MEAN": _reduce(ops.mean),
    "REDUCE_MAX": _reduce(ops.max),
    "REDUCE_MIN": _reduce(ops.min),
    "SUM": _reduce(ops.sum),
    # spectra
    "COMPLEX_ABS": _absolute,
    "IMAG": lambda i, o: i[0].imag,
    "REAL": lambda i, o: i[0].real,
    "RFFT2D": _rfft2d,
    # shapes
    "CONCATENATION": lambda i, o: ops.concatenate(i, axis=o["axis"]),
    "EXPAND_DIMS": _each(lambda i, o: ops.expand_dims(i[0], _axes(i[1]))),
    "FILL": lambda i, o: i[1].item(),  # of any size: it is an operand of what broadcasts
    "GATHER": _each(_gather),
    "MIRROR_PAD": lambda i, o: ops.pad(i[0], np.asarray(i[1]).tolist(), "reflect" if o["mode"] == 0 else "symmetric"),
    "PACK": lambda i, o: ops.stack(i, axis=o["axis"]),
    "PAD": _pad,
    "PADV2": _pad,
    "RESHAPE": _each(_reshape),
    "REVERSE_V2": lambda i, o: ops.flip(i[0], _axes(i[1])),
    "SLICE": _each(_slice),
    "SPLIT": lambda i, o: list(ops.split(i[1], o["numSplits"], axis=_axes(i[0]))),
    "SPLIT_V": lambda i, o: list(ops.split(i[0], np.cumsum(_fixed(i[1]))[:-1].tolist(), axis=_axes(i[2]))),
    "SQUEEZE": _each(_squeeze),
    "STRIDED_SLICE": _each(_strided_slice),
    "TILE": lambda i, o: ops.tile(i[0], _fixed(i[1])),
    "TRANSPOSE": _each(lambda i, o: ops.transpose(i[0], _fixed(i[1]))),
    "UNPACK": lambda i, o: list(ops.unstack(i[0], o["num"], axis=o["axis"])),
    "ZEROS_LIKE": lambda i, o: ops.zeros_like(i[0]),
}
