"""TensorFlow Lite files, read as data: which layers with weights there are, and what stands in them.

    .tflite ─▶ read_layers ─▶ [Weighted(kind, kernel, bias, …), …] in the order of the graph, float32

Nothing is run and no interpreter is started: a file is a flatbuffer, whose tables are walked here by the
numbers of their fields in the published schema (tensorflow/lite/schema/schema.fbs, version 3). A damaged
file ends in a Python exception, never in a process that is gone.
"""

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from flatbuffers import encode, number_types
from flatbuffers.table import Table

from birdtune.errors import CheckpointError, shown

MAGIC, MAGIC_AT = b"TFL3", 4

# Larger than any network that comes as one such file for phones; whoever names a film by mistake is told at once.
_LIMIT_BYTES = 256 << 20
# Tensors, operations, and inputs of one operation; in a damaged file there may seem to be billions.
_MOST = 10_000

# Fields of the schema's tables, by their position in it.
_MODEL_CODES, _MODEL_GRAPHS, _MODEL_BUFFERS = 1, 2, 4
_CODE_OLD, _CODE_NEW = 0, 3
_GRAPH_TENSORS, _GRAPH_OPERATORS = 0, 3
_TENSOR_SHAPE, _TENSOR_TYPE, _TENSOR_BUFFER, _TENSOR_QUANTIZATION = 0, 1, 2, 4
_SCALE, _ZERO_POINT, _QUANTIZED_DIMENSION = 2, 3, 6
_OPERATOR_CODE, _OPERATOR_INPUTS, _OPERATOR_OUTPUTS, _OPERATOR_OPTIONS = 0, 1, 2, 4
_BUFFER_DATA = 0

# Numbers of the schema's enumerations.
_TYPES: Mapping[int, np.dtype[Any]] = {
    0: np.dtype("<f4"), 1: np.dtype("<f2"), 2: np.dtype("<i4"), 3: np.dtype("u1"), 9: np.dtype("i1"),
}  # fmt: skip
_DEQUANTIZE = 6
_PADDINGS = {0: "same", 1: "valid"}
_ACTIVATIONS = {0: "none", 1: "relu"}
# Of an operation's options: padding, stride over the width, stride over the height, activation.
_OPTION_SIZES = (number_types.Int8Flags, number_types.Int32Flags, number_types.Int32Flags, number_types.Int8Flags)


@dataclass(frozen=True)
class _Kind:
    """How an operation with weights is written down."""

    name: str
    axes: tuple[int, ...]  # of the kernel as it lies in the file, in the order of Keras' layers
    options: tuple[int | None, int | None, int | None, int]  # fields, as _OPTION_SIZES has them


_KINDS: Mapping[int, _Kind] = {
    3: _Kind("conv", (1, 2, 3, 0), (0, 1, 2, 3)),
    4: _Kind("depthwise", (1, 2, 3, 0), (0, 1, 2, 4)),
    9: _Kind("dense", (1, 0), (None, None, None, 0)),
}


@dataclass(frozen=True)
class Weighted:
    """One operation with weights."""

    kind: str  # "conv", "depthwise" or "dense"
    kernel: npt.NDArray[np.float32]  # [height, width, in, out], depthwise [height, width, channels, 1], dense [in, out]
    bias: npt.NDArray[np.float32]  # [out]
    strides: tuple[int, int]  # over height and width; (0, 0) of a dense one
    padding: str  # "same", "valid", or a number of the schema
    activation: str  # "relu", "none", or a number of the schema
    is_quantized: bool  # whether the kernel was kept in whole numbers
    # How its input comes from the operation with weights before it: "direct", "through" others, or "none".
    link: str


def is_tflite(path: Path) -> bool:
    """Whether a file begins as TensorFlow Lite's do. Raises OSError."""
    with path.open("rb") as file:
        return file.read(MAGIC_AT + len(MAGIC))[MAGIC_AT:] == MAGIC


def read_layers(path: Path) -> list[Weighted]:
    """The operations with weights of a file's first graph, in their order.

    Kernels in whole numbers come as float32: (number - zero point) * scale, the scale of each output channel
    or of the tensor.

    Raises:
        CheckpointError: it cannot be read, is damaged, or keeps numbers in a way that is not known here.
    """
    try:
        n_bytes = path.stat().st_size
        if n_bytes > _LIMIT_BYTES:
            raise CheckpointError(
                f"{shown(path)}: has {n_bytes / 1e6:,.0f} MB, and a network for TensorFlow Lite has less than "
                f"{_LIMIT_BYTES / 1e6:,.0f}. Likely cause: another file under this name."
            )
        content = path.read_bytes()
    except OSError as fault:
        raise CheckpointError(
            f"{shown(path)}: cannot be read ({shown(fault.strerror)}). Check the path and its rights."
        ) from fault
    try:
        return _Graph(content).weighted()
    except (struct.error, ValueError, TypeError, LookupError, OverflowError, MemoryError) as fault:
        raise CheckpointError(
            f"{shown(path)}: the TensorFlow Lite file is damaged or cut off ({type(fault).__name__}: "
            f"{shown(str(fault)[:100])}). Likely cause: a download or copy that stopped; get it again."
        ) from fault


class _Graph:
    """The first graph of a file."""

    def __init__(self, content: bytes) -> None:
        if content[MAGIC_AT : MAGIC_AT + len(MAGIC)] != MAGIC:
            raise ValueError("it does not begin as one")
        model = Table(content, encode.Get(number_types.UOffsetTFlags.packer_type, content, 0))
        self._buffers = _tables(model, _MODEL_BUFFERS)
        self._codes = [_code(code) for code in _tables(model, _MODEL_CODES)]
        graph = _tables(model, _MODEL_GRAPHS)[0]
        self._tensors = _tables(graph, _GRAPH_TENSORS)
        self._operators = _tables(graph, _GRAPH_OPERATORS)
        # Which operation makes a tensor; those that nobody makes are constants or inputs.
        self._maker = {
            tensor: operator
            for operator in self._operators
            for tensor in _ports(operator, _OPERATOR_OUTPUTS)
        }

    def weighted(self) -> list[Weighted]:
        """All operations with weights."""
        found: list[Weighted] = []
        last: set[int] = set()  # what the last one put out
        reached: set[int] = set()  # and what others made of that
        for operator in self._operators:
            inputs, outputs = _ports(operator, _OPERATOR_INPUTS), _ports(operator, _OPERATOR_OUTPUTS)
            kind = _KINDS.get(self._codes[_number(operator, _OPERATOR_CODE, number_types.Uint32Flags)])
            if kind is None:
                if (last | reached) & set(inputs):
                    reached.update(outputs)
                continue
            link = "direct" if inputs[0] in last else "through" if inputs[0] in reached else "none"
            found.append(self._layer(operator, kind, inputs, link))
            last, reached = set(outputs), set()
        return found

    def _layer(self, operator: Table, kind: _Kind, inputs: list[int], link: str) -> Weighted:
        kernel, is_quantized = self._constant(inputs[1])
        kernel = np.ascontiguousarray(kernel.transpose(kind.axes))
        width = kernel.shape[-2] if kind.name == "depthwise" else kernel.shape[-1]
        has_bias = len(inputs) > 2 and inputs[2] >= 0
        bias = self._constant(inputs[2])[0] if has_bias else np.zeros(width, np.float32)
        options = _table(operator, _OPERATOR_OPTIONS)
        padding, stride_x, stride_y, activation = (
            0 if field is None or options is None else _number(options, field, size)
            for field, size in zip(kind.options, _OPTION_SIZES, strict=True)
        )
        return Weighted(
            kind.name,
            kernel,
            bias,
            (stride_y, stride_x),
            _PADDINGS.get(padding, str(padding)),
            _ACTIVATIONS.get(activation, str(activation)),
            is_quantized,
            link,
        )

    def _constant(self, number: int) -> tuple[npt.NDArray[np.float32], bool]:
        """The numbers in a constant tensor as float32, and whether they were kept as whole numbers."""
        tensor = self._tensors[number]
        shape = _numbers(tensor, _TENSOR_SHAPE, np.dtype("<i4")).tolist()
        kind = _TYPES[_number(tensor, _TENSOR_TYPE, number_types.Int8Flags)]
        buffer = self._buffers[_number(tensor, _TENSOR_BUFFER, number_types.Uint32Flags)]
        data = _numbers(buffer, _BUFFER_DATA, np.dtype("u1"))
        if not data.size and number in self._maker:
            maker = self._maker[number]
            if self._codes[_number(maker, _OPERATOR_CODE, number_types.Uint32Flags)] != _DEQUANTIZE:
                raise ValueError("weights that are computed")
            return self._constant(_ports(maker, _OPERATOR_INPUTS)[0])
        if data.size != math.prod(shape) * kind.itemsize:
            raise ValueError(f"{data.size} bytes for numbers of shape {shape}")
        values = data.view(kind).reshape(shape)
        if kind.kind == "f":
            return np.asarray(values, np.float32), False
        return _dequantized(values, _table(tensor, _TENSOR_QUANTIZATION)), True


def _dequantized(values: npt.NDArray[Any], how: Table | None) -> npt.NDArray[np.float32]:
    if how is None:
        raise ValueError("whole numbers without a scale")
    scale = _numbers(how, _SCALE, np.dtype("<f4"))
    zero = _numbers(how, _ZERO_POINT, np.dtype("<i8"))
    if scale.size > 1:
        axis = _number(how, _QUANTIZED_DIMENSION, number_types.Int32Flags)
        if scale.size != values.shape[axis]:
            raise ValueError(f"{scale.size} scales for {values.shape[axis]} channels")
        along = [1] * values.ndim
        along[axis] = scale.size
        scale, zero = scale.reshape(along), zero.reshape(along)
    with np.errstate(over="ignore", invalid="ignore"):  # a damaged scale; what comes of it is looked at later
        return np.asarray((values.astype(np.int64) - zero) * scale.astype(np.float64), np.float32)


# ---- flatbuffers --------------------------------------------------------------------------------


def _slot(field: int) -> int:
    """Where a table's list of fields says where a field lies."""
    return 4 + 2 * field


def _number(table: Table, field: int, size: Any) -> int:
    return int(table.GetSlot(_slot(field), 0, size))


def _table(table: Table, field: int) -> Table | None:
    offset = table.Offset(_slot(field))
    return Table(table.Bytes, table.Indirect(offset + table.Pos)) if offset else None


def _tables(table: Table, field: int) -> list[Table]:
    offset = table.Offset(_slot(field))
    if not offset:
        return []
    start, count = table.Vector(offset), table.VectorLen(offset)
    if count > _MOST:
        raise ValueError(f"{count:,} tables in one list")
    return [Table(table.Bytes, table.Indirect(start + 4 * position)) for position in range(count)]


def _numbers(table: Table, field: int, kind: np.dtype[Any]) -> npt.NDArray[Any]:
    offset = table.Offset(_slot(field))
    if not offset:
        return np.zeros(0, kind)
    return np.frombuffer(table.Bytes, kind, table.VectorLen(offset), table.Vector(offset))


def _ports(operator: Table, field: int) -> list[int]:
    """The tensors that enter or leave an operation; -1 = none in this place."""
    found = _numbers(operator, field, np.dtype("<i4"))
    if found.size > _MOST:
        raise ValueError(f"{found.size:,} tensors at one operation")
    return [int(tensor) for tensor in found]


def _code(code: Table) -> int:
    """The number of an operation; files from before 2020 have it in the old field alone."""
    return max(_number(code, _CODE_OLD, number_types.Int8Flags), _number(code, _CODE_NEW, number_types.Int32Flags))
