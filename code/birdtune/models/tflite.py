"""TensorFlow Lite files, read as data.

    .tflite ─▶ read ─▶ Graph(operations, constants, …) ─▶ read_layers ─▶ [Weighted(kind, kernel, bias, …), …]

Nothing is run and no interpreter is started. TensorFlow's generated reader of the schema walks the flatbuffer; it is
plain Python, so a damaged file ends in an exception, never in a process that is gone. `tflite_graph.py` makes a
network of what was read.
"""

import contextlib
import functools
import importlib.util
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from birdtune.errors import CheckpointError, shown

MAGIC, MAGIC_AT = b"TFL3", 4

# Larger than any network that comes as one such file for phones; whoever names a film by mistake is told at once.
_LIMIT_BYTES = 256 << 20
# Tensors and operations; in a damaged file there may seem to be billions.
_MOST = 10_000
# How numbers lie in a file.
_TYPES = {
    "FLOAT32": "<f4", "FLOAT16": "<f2", "INT32": "<i4", "INT64": "<i8", "UINT8": "u1", "INT8": "i1", "BOOL": "?",
}  # fmt: skip
# Operations with weights, and the kinds of layers that they are.
WEIGHTED: Mapping[str, str] = {"CONV_2D": "conv", "DEPTHWISE_CONV_2D": "depthwise", "FULLY_CONNECTED": "dense"}
# What the reader makes of offsets that lead nowhere.
_DAMAGE = (
    struct.error, ValueError, TypeError, LookupError, AttributeError, OverflowError, MemoryError, RecursionError,
)  # fmt: skip


@functools.cache
def _schema() -> Any:
    """`tensorflow.lite.python.schema_py_generated`, by its path: to import it by its name loads all of TensorFlow,
    which `check` does without."""
    tensorflow = importlib.util.find_spec("tensorflow")
    assert tensorflow is not None and tensorflow.origin is not None
    path = Path(tensorflow.origin).parent / "lite" / "python" / "schema_py_generated.py"
    spec = importlib.util.spec_from_file_location("tflite_schema", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Operation:
    """One operation of a graph; tensors are named by their numbers."""

    number: int  # position in the graph
    name: str  # as the schema has it, e.g. "CONV_2D"; of a custom one, the name that its maker gave it
    inputs: tuple[int, ...]  # -1: left out
    outputs: tuple[int, ...]
    options: Mapping[str, Any]  # as the schema names them, e.g. {"strideW": 2}


@dataclass(frozen=True)
class Tensor:
    """What the file says of a tensor."""

    name: str
    shape: tuple[int, ...]  # for one example
    dtype: str  # e.g. "float32"


@dataclass(frozen=True)
class Graph:
    """The first graph of a file."""

    operations: tuple[Operation, ...]  # in an order in which they can be computed
    tensors: tuple[Tensor, ...]
    constants: Mapping[int, npt.NDArray[Any]]  # tensor → its numbers; quantized ones as float32
    quantized: frozenset[int]  # constants that were kept in whole numbers
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    def constant(self, number: int) -> npt.NDArray[Any]:
        """The numbers of a constant. Raises ValueError where the tensor is computed."""
        if number not in self.constants:
            raise ValueError(f"the weights in tensor {number} are computed or missing")
        return self.constants[number]

    def kernel(self, operation: Operation) -> npt.NDArray[np.float32]:
        """The kernel of an operation of `WEIGHTED`, with its dimensions in TensorFlow's order."""
        kernel = self.constant(operation.inputs[1])
        axes = (1, 0) if operation.name == "FULLY_CONNECTED" else (1, 2, 3, 0)
        return np.ascontiguousarray(kernel.transpose(axes), np.float32)

    def bias(self, operation: Operation) -> npt.NDArray[np.float32] | None:
        """Its bias; None: it has none."""
        if len(operation.inputs) < 3 or operation.inputs[2] < 0:
            return None
        return np.asarray(self.constant(operation.inputs[2]), np.float32)


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


def read(path: Path) -> Graph:
    """The first graph of a file, with its numbers.

    Kernels in whole numbers come as float32: (number - zero point) * scale, the scale of each output channel
    or of the tensor.

    Raises:
        CheckpointError: it cannot be read, is damaged, or keeps numbers in a way that is not known here.
    """
    try:
        facts = path.stat()
        if facts.st_size > _LIMIT_BYTES:
            raise CheckpointError(
                f"{shown(path)}: has {facts.st_size / 1e6:,.0f} MB, and a network for TensorFlow Lite has less than "
                f"{_LIMIT_BYTES / 1e6:,.0f}. Likely cause: another file under this name."
            )
        return _read(path, (facts.st_size, facts.st_mtime_ns))
    except OSError as fault:
        raise CheckpointError(
            f"{shown(path)}: cannot be read ({shown(fault.strerror)}). Check the path and its rights."
        ) from fault


def graph_of(content: bytes) -> Graph:
    """The first graph of a file that was just converted."""
    return _Reader(content).graph()


@functools.lru_cache(maxsize=2)
def _read(path: Path, stamp: object) -> Graph:
    del stamp  # another file is read anew
    content = path.read_bytes()
    with _damage(path):
        return graph_of(content)


@contextlib.contextmanager
def _damage(path: Path) -> Iterator[None]:
    try:
        yield
    except _DAMAGE as fault:
        raise CheckpointError(
            f"{shown(path)}: the TensorFlow Lite file is damaged or cut off ({type(fault).__name__}: "
            f"{shown(str(fault)[:100])}). Likely cause: a download or copy that stopped; get it again."
        ) from fault


def read_layers(path: Path) -> list[Weighted]:
    """The operations with weights of a file's first graph, in their order. Raises as `read`."""
    graph, found = read(path), list[Weighted]()
    last: set[int] = set()  # what the last one put out
    reached: set[int] = set()  # and what others made of that
    with _damage(path):
        for operation in graph.operations:
            inputs = operation.inputs
            if operation.name not in WEIGHTED:
                if (last | reached) & set(inputs):
                    reached.update(operation.outputs)
                continue
            link = "direct" if inputs[0] in last else "through" if inputs[0] in reached else "none"
            found.append(_layer(graph, operation, link))
            last, reached = set(operation.outputs), set()
    return found


def _layer(graph: Graph, operation: Operation, link: str) -> Weighted:
    kind, options, schema = WEIGHTED[operation.name], operation.options, _schema()
    kernel = graph.kernel(operation)
    bias = graph.bias(operation)
    if bias is None:
        bias = np.zeros(kernel.shape[-2] if kind == "depthwise" else kernel.shape[-1], np.float32)
    activation = options["fusedActivationFunction"]
    activations = {schema.ActivationFunctionType.NONE: "none", schema.ActivationFunctionType.RELU: "relu"}
    padding, strides = schema.Padding.SAME, (0, 0)
    if kind != "dense":
        padding, strides = options["padding"], (options["strideH"], options["strideW"])
    paddings = {schema.Padding.SAME: "same", schema.Padding.VALID: "valid"}
    return Weighted(
        kind, kernel, bias, strides, paddings.get(padding, str(padding)),
        activations.get(activation, str(activation)), operation.inputs[1] in graph.quantized, link,
    )  # fmt: skip


class _Reader:
    """Reads a file's content."""

    def __init__(self, content: bytes) -> None:
        if content[MAGIC_AT : MAGIC_AT + len(MAGIC)] != MAGIC:
            raise ValueError("it does not begin as one")
        self._model = _schema().Model.GetRootAs(content, 0)
        self._graph = self._model.Subgraphs(0)
        counts = [
            self._graph.TensorsLength(), self._graph.OperatorsLength(), self._model.BuffersLength(),
            self._model.OperatorCodesLength(),
        ]  # fmt: skip
        if max(counts) > _MOST:
            raise ValueError(f"{max(counts):,} tables in one list")
        self._tensors = [self._graph.Tensors(number) for number in range(counts[0])]
        self._n_operators, self._n_buffers = counts[1], counts[2]
        self._codes = [_operation_name(self._model.OperatorCodes(number)) for number in range(counts[3])]

    def graph(self) -> Graph:
        """All of it; constants that are only dequantized count as constants."""
        operations = [self._operation(number) for number in range(self._n_operators)]
        inputs, outputs = _numbers(self._graph.InputsAsNumpy()), _numbers(self._graph.OutputsAsNumpy())
        computed = {number for operation in operations for number in operation.outputs} | set(inputs)
        quantized = {number for number, tensor in enumerate(self._tensors) if _scale(tensor) is not None}
        constants = {
            number: values
            for number, tensor in enumerate(self._tensors)
            if number not in computed and (values := self._values(tensor)) is not None
        }
        kept = []
        for operation in operations:
            if operation.name == "DEQUANTIZE" and (given := operation.inputs[0]) in constants:
                constants[operation.outputs[0]] = np.asarray(constants[given], np.float32)
                quantized |= {operation.outputs[0]} if given in quantized else set()
            else:
                kept.append(operation)
        described = tuple(_described(tensor) for tensor in self._tensors)
        return Graph(tuple(kept), described, constants, frozenset(quantized), inputs, outputs)

    def _operation(self, number: int) -> Operation:
        operator = self._graph.Operators(number)
        inputs, outputs = _numbers(operator.InputsAsNumpy()), _numbers(operator.OutputsAsNumpy())
        if not outputs or not -1 <= min(inputs, default=0) <= max((*inputs, *outputs)) < len(self._tensors):
            raise ValueError(f"operation {number} has tensors that there are not")
        options = _schema().BuiltinOptionsCreator(operator.BuiltinOptionsType(), operator.BuiltinOptions())
        name, known = self._codes[operator.OpcodeIndex()], {} if options is None else vars(options)
        if name == "CAST":  # which has no options in files of some converters
            known = {"to": _described(self._tensors[outputs[0]]).dtype}
        return Operation(number, name, inputs, outputs, known)

    def _values(self, tensor: Any) -> npt.NDArray[Any] | None:
        """The numbers of a tensor that nothing computes; None where they are of a type that is not known here."""
        if not 0 <= tensor.Buffer() < self._n_buffers:
            raise ValueError(f"no buffer has the number {tensor.Buffer()}")
        name = _names_of("TensorType").get(tensor.Type(), "")
        if name not in _TYPES:
            return None
        kind, shape = np.dtype(_TYPES[name]), _numbers(tensor.ShapeAsNumpy())
        data = self._model.Buffers(tensor.Buffer()).DataAsNumpy()
        n_bytes = 0 if _is_absent(data) else data.size
        if min(shape, default=1) < 0 or n_bytes != math.prod(shape) * kind.itemsize:
            raise ValueError(f"{n_bytes} bytes for numbers of shape {list(shape)}")
        values = (data.view(kind) if n_bytes else np.zeros(0, kind)).reshape(shape)
        scale = _scale(tensor)
        return values if scale is None else _dequantized(values, scale)


def _operation_name(code: Any) -> str:
    # Files from before 2020 have the number of an operation in the old field alone.
    number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
    if number == _schema().BuiltinOperator.CUSTOM:
        return (code.CustomCode() or b"").decode(errors="replace")
    return _names_of("BuiltinOperator").get(number, f"number {number}")


@functools.cache
def _names_of(enumeration: str) -> dict[int, str]:
    """Number → name, of an enumeration of the schema."""
    found = vars(getattr(_schema(), enumeration))
    return {number: name for name, number in found.items() if isinstance(number, int)}


def _described(tensor: Any) -> Tensor:
    kind = _names_of("TensorType").get(tensor.Type(), f"type {tensor.Type()}")
    name = (tensor.Name() or b"").decode(errors="replace")
    return Tensor(name, _numbers(tensor.ShapeAsNumpy()), kind.lower())


def _scale(tensor: Any) -> Any | None:
    """How whole numbers stand for others; None where they stand for themselves, or are none."""
    how = tensor.Quantization()
    is_whole = _names_of("TensorType").get(tensor.Type()) in ("INT8", "UINT8", "INT32")
    return how if is_whole and how is not None and how.ScaleLength() else None


def _dequantized(values: npt.NDArray[Any], how: Any) -> npt.NDArray[np.float32]:
    scale = how.ScaleAsNumpy()
    zero = how.ZeroPointAsNumpy() if how.ZeroPointLength() else np.zeros(scale.size, np.int64)
    if scale.size > 1:
        axis = how.QuantizedDimension()
        if scale.size != values.shape[axis]:
            raise ValueError(f"{scale.size} scales for {values.shape[axis]} channels")
        along = [1] * values.ndim
        along[axis] = scale.size
        scale, zero = scale.reshape(along), zero.reshape(along)
    with np.errstate(over="ignore", invalid="ignore"):  # a damaged scale; what comes of it is looked at later
        return np.asarray((values.astype(np.int64) - zero) * scale.astype(np.float64), np.float32)


def _is_absent(vector: Any) -> bool:
    return isinstance(vector, int) or not vector.size  # the generated reader gives 0 where a table has no such field


def _numbers(vector: Any) -> tuple[int, ...]:
    return () if _is_absent(vector) else tuple(int(number) for number in vector)
