"""What each operation of TensorFlow Lite computes, in TensorFlow.

    operation, inputs ─▶ compute ─▶ outputs

Semantics are those of the schema that TensorFlow ships; an operation that is not in `OPERATIONS` is refused by its
name before anything is computed. Importing this loads TensorFlow.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

Options = Mapping[str, Any]

# By the schema's numbers.
_PADDINGS = {0: "SAME", 1: "VALID"}
_ACTIVATIONS: Mapping[int, Callable[[Any], Any]] = {
    0: lambda x: x,
    1: tf.nn.relu,
    2: lambda x: tf.clip_by_value(x, -1.0, 1.0),
    3: tf.nn.relu6,
    4: tf.tanh,
}


def compute(name: str, inputs: Sequence[Any], options: Options) -> list[Any]:
    """The outputs of an operation.

    Args:
        name: one of `OPERATIONS`.
        inputs: tensors or arrays; None where an optional one is left out. Kernels have their dimensions in
            TensorFlow's order.
    """
    found = OPERATIONS[name](list(inputs), options)
    found = _ACTIVATIONS[options.get("fusedActivationFunction", 0)](found)
    return list(found) if isinstance(found, list | tuple) else [found]


def _strides(o: Options) -> list[int]:
    return [1, o["strideH"], o["strideW"], 1]


def _with_bias(x: Any, inputs: Sequence[Any]) -> Any:
    return x if len(inputs) < 3 or inputs[2] is None else tf.nn.bias_add(x, inputs[2])


def _conv(i: list[Any], o: Options) -> Any:
    dilations = [1, o["dilationHFactor"], o["dilationWFactor"], 1]
    return _with_bias(tf.nn.conv2d(i[0], i[1], _strides(o), _PADDINGS[o["padding"]], dilations=dilations), i)


def _depthwise(i: list[Any], o: Options) -> Any:
    # TensorFlow Lite keeps [height, width, channels · multiplier, 1] once its first axis is last.
    height, width, n_outputs, _ = i[1].shape
    n_inputs = i[0].shape[-1]
    kernel = tf.reshape(i[1], [height, width, n_inputs, n_outputs // n_inputs])
    dilations = [o["dilationHFactor"], o["dilationWFactor"]]
    padding = _PADDINGS[o["padding"]]
    if o["strideH"] == o["strideW"]:
        return _with_bias(tf.nn.depthwise_conv2d(i[0], kernel, _strides(o), padding, dilations=dilations), i)
    # TensorFlow knows equal strides alone: where they differ, a grouped convolution says the same.
    grouped = tf.reshape(kernel, [height, width, 1, n_outputs])
    return _with_bias(tf.nn.conv2d(i[0], grouped, _strides(o), padding, dilations=[1, *dilations, 1]), i)


def _fully_connected(i: list[Any], o: Options) -> Any:
    x = i[0] if o["keepNumDims"] else tf.reshape(i[0], [-1, i[1].shape[0]])
    return _with_bias(tf.matmul(x, i[1]) if len(x.shape) == 2 else tf.tensordot(x, i[1], 1), i)


def _pool(kind: str) -> Callable[[list[Any], Options], Any]:
    def pool(i: list[Any], o: Options) -> Any:
        function = tf.nn.max_pool2d if kind == "max" else tf.nn.avg_pool2d
        size, strides = [o["filterHeight"], o["filterWidth"]], [o["strideH"], o["strideW"]]
        return function(i[0], size, strides, _PADDINGS[o["padding"]])

    return pool


def _reduce(function: Callable[..., Any]) -> Callable[[list[Any], Options], Any]:
    return lambda i, o: function(i[0], axis=i[1], keepdims=o["keepDims"])


def _strided_slice(i: list[Any], o: Options) -> Any:
    return tf.strided_slice(
        i[0], i[1], i[2], i[3], begin_mask=o["beginMask"], end_mask=o["endMask"], ellipsis_mask=o["ellipsisMask"],
        new_axis_mask=o["newAxisMask"], shrink_axis_mask=o["shrinkAxisMask"],
    )  # fmt: skip


def _rfft2d(i: list[Any], o: Options) -> Any:
    # In float64, as the interpreter does: BirdNET takes a root of real parts near zero, where the rounding of a float32
    # transform shows as differences of 3e-3 in its embeddings, and of 4e-6 so.
    wide = tf.cast(i[0], tf.float64)
    lengths = tf.get_static_value(i[1])
    if lengths is not None and lengths[0] == 1 and i[0].shape[-2] == 1:  # one dimension in fact, and far faster so
        return tf.cast(tf.signal.rfft(wide, fft_length=[int(lengths[1])]), tf.complex64)
    return tf.cast(tf.signal.rfft2d(wide, i[1]), tf.complex64)


def _cast(i: list[Any], o: Options) -> Any:
    to = tf.as_dtype(o["to"])
    return tf.cast(tf.math.real(i[0]) if i[0].dtype.is_complex and not to.is_complex else i[0], to)


def _squeeze(i: list[Any], o: Options) -> Any:
    axes = o["squeezeDims"]
    return tf.squeeze(i[0], axis=[int(axis) for axis in axes] if axes is not None and len(axes) else None)


def _gather(i: list[Any], o: Options) -> Any:
    return tf.gather(i[0], i[1], axis=o["axis"], batch_dims=o["batchDims"])


def _simple(function: Callable[..., Any]) -> Callable[[list[Any], Options], Any]:
    return lambda i, o: function(*i)


def _floor_div(i: list[Any], o: Options) -> Any:
    return tf.math.floordiv(i[0], i[1])


def _mirror_pad(i: list[Any], o: Options) -> Any:
    return tf.pad(i[0], i[1], "REFLECT" if o["mode"] == 0 else "SYMMETRIC")


OPERATIONS: Mapping[str, Callable[[list[Any], Options], Any]] = {
    # with weights
    "CONV_2D": _conv,
    "DEPTHWISE_CONV_2D": _depthwise,
    "FULLY_CONNECTED": _fully_connected,
    "BATCH_MATMUL": lambda i, o: tf.matmul(i[0], i[1], adjoint_a=o["adjX"], adjoint_b=o["adjY"]),
    "PRELU": lambda i, o: tf.maximum(i[0], 0) + i[1] * tf.minimum(i[0], 0),
    # element by element
    "ABS": _simple(tf.abs),
    "ADD": _simple(tf.add),
    "CAST": _cast,
    "CEIL": _simple(tf.math.ceil),
    "COS": _simple(tf.cos),
    "DEQUANTIZE": lambda i, o: tf.cast(i[0], tf.float32),
    "DIV": _simple(tf.divide),
    "ELU": _simple(tf.nn.elu),
    "EQUAL": _simple(tf.equal),
    "EXP": _simple(tf.exp),
    "FLOOR": _simple(tf.floor),
    "FLOOR_DIV": _floor_div,
    "FLOOR_MOD": _simple(tf.math.floormod),
    "GELU": lambda i, o: tf.nn.gelu(i[0], approximate=o["approximate"]),
    "GREATER": _simple(tf.greater),
    "GREATER_EQUAL": _simple(tf.greater_equal),
    "HARD_SWISH": lambda i, o: i[0] * tf.nn.relu6(i[0] + 3) / 6,
    "LEAKY_RELU": lambda i, o: tf.nn.leaky_relu(i[0], o["alpha"]),
    "LESS": _simple(tf.less),
    "LESS_EQUAL": _simple(tf.less_equal),
    "LOG": _simple(tf.math.log),
    "LOGISTIC": _simple(tf.sigmoid),
    "LOG_SOFTMAX": _simple(tf.nn.log_softmax),
    "MAXIMUM": _simple(tf.maximum),
    "MINIMUM": _simple(tf.minimum),
    "MUL": _simple(tf.multiply),
    "NEG": _simple(tf.negative),
    "POW": _simple(tf.pow),
    "RELU": _simple(tf.nn.relu),
    "RELU6": _simple(tf.nn.relu6),
    "ROUND": _simple(tf.round),
    "RSQRT": _simple(tf.math.rsqrt),
    "SELECT": _simple(tf.where),
    "SELECT_V2": _simple(tf.where),
    "SIN": _simple(tf.sin),
    "SOFTMAX": lambda i, o: tf.nn.softmax(i[0] * o["beta"]),
    "SQRT": _simple(tf.sqrt),
    "SQUARE": _simple(tf.square),
    "SQUARED_DIFFERENCE": _simple(tf.math.squared_difference),
    "SUB": _simple(tf.subtract),
    "TANH": _simple(tf.tanh),
    # over axes
    "AVERAGE_POOL_2D": _pool("average"),
    "CUMSUM": lambda i, o: tf.cumsum(i[0], i[1], exclusive=o["exclusive"], reverse=o["reverse"]),
    "L2_NORMALIZATION": lambda i, o: tf.nn.l2_normalize(i[0], axis=-1),
    "MAX_POOL_2D": _pool("max"),
    "MEAN": _reduce(tf.reduce_mean),
    "REDUCE_MAX": _reduce(tf.reduce_max),
    "REDUCE_MIN": _reduce(tf.reduce_min),
    "REDUCE_PROD": _reduce(tf.reduce_prod),
    "SUM": _reduce(tf.reduce_sum),
    # spectra
    "COMPLEX_ABS": _simple(tf.abs),
    "IMAG": _simple(tf.math.imag),
    "REAL": _simple(tf.math.real),
    "RFFT2D": _rfft2d,
    # shapes
    "BROADCAST_TO": _simple(tf.broadcast_to),
    "CONCATENATION": lambda i, o: tf.concat(i, o["axis"]),
    "EXPAND_DIMS": _simple(tf.expand_dims),
    "FILL": _simple(tf.fill),
    "GATHER": _gather,
    "GATHER_ND": _simple(tf.gather_nd),
    "MIRROR_PAD": _mirror_pad,
    "PACK": lambda i, o: tf.stack(i, o["axis"]),
    "PAD": _simple(tf.pad),
    "PADV2": lambda i, o: tf.pad(i[0], i[1], constant_values=i[2]),
    "RANGE": _simple(tf.range),
    "RESHAPE": lambda i, o: tf.reshape(i[0], i[1] if len(i) > 1 else np.asarray(o["newShape"])),
    "REVERSE_V2": _simple(tf.reverse),
    "SHAPE": _simple(tf.shape),
    "SLICE": _simple(tf.slice),
    "SPLIT": lambda i, o: tf.split(i[1], o["numSplits"], axis=i[0]),
    "SPLIT_V": lambda i, o: tf.split(i[0], i[1], axis=i[2]),
    "SQUEEZE": _squeeze,
    "STRIDED_SLICE": _strided_slice,
    "TILE": _simple(tf.tile),
    "TRANSPOSE": _simple(tf.transpose),
    "UNPACK": lambda i, o: tf.unstack(i[0], o["num"], axis=o["axis"]),
    "ZEROS_LIKE": _simple(tf.zeros_like),
}  # fmt: skip
