"""TensorFlow Lite files, read as data: which layers with weights there are, and what stands in them.

    .tflite ─▶ read_layers ─▶ [Weighted(kind, kernel, bias, …), …] in the order of the graph, float32

Nothing is run and no interpreter is started. TensorFlow's generated reader of the schema walks the flatbuffer; it is
plain Python, so a damaged file ends in an exception, never in a process that is gone.
"""

import functools
import importlib.util
import math
import struct
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
    except _DAMAGE as fault:
        raise CheckpointError(
            f"{shown(path)}: the TensorFlow Lite file is damaged or cut off ({type(fault).__name__}: "
            f"{shown(str(fault)[:100])}). Likely cause: a download or copy that stopped; get it again."
        ) from fault


class _Graph:
    """The first graph of a file."""

    def __init__(self, content: bytes) -> None:
        if content[MAGIC_AT : MAGIC_AT + len(MAGIC)] != MAGIC:
            raise ValueError("it does not begin as one")
        model = _schema().Model.GetRootAs(content, 0)
        graph = model.Subgraphs(0)
        counts = [graph.TensorsLength(), graph.OperatorsLength(), model.BuffersLength(), model.OperatorCodesLength()]
        if max(counts) > _MOST:
            raise ValueError(f"{max(counts):,} tables in one list")
        self._model, self._graph = model, graph
        codes = [model.OperatorCodes(position) for position in range(counts[3])]
        # Files from before 2020 have the number of an operation in the old field alone.
        numbers = [max(code.BuiltinCode(), code.DeprecatedBuiltinCode()) for code in codes]
        operators = [graph.Operators(position) for position in range(counts[1])]
        self._operators = [(operator, numbers[operator.OpcodeIndex()]) for operator in operators]
        # Which operation makes a tensor; those that nobody makes are constants or inputs.
        self._maker = {tensor: made for made in self._operators for tensor in _numbers(made[0].OutputsAsNumpy())}

    def weighted(self) -> list[Weighted]:
        """All operations with weights."""
        found: list[Weighted] = []
        last: set[int] = set()  # what the last one put out
        reached: set[int] = set()  # and what others made of that
        operations = _schema().BuiltinOperator
        kinds = {operations.CONV_2D: "conv", operations.DEPTHWISE_CONV_2D: "depthwise",
                 operations.FULLY_CONNECTED: "dense"}  # fmt: skip
        for operator, number in self._operators:
            inputs, outputs = _numbers(operator.InputsAsNumpy()), _numbers(operator.OutputsAsNumpy())
            if number not in kinds:
                if (last | reached) & set(inputs):
                    reached.update(outputs)
                continue
            link = "direct" if inputs[0] in last else "through" if inputs[0] in reached else "none"
            found.append(self._layer(operator, kinds[number], inputs, link))
            last, reached = set(outputs), set()
        return found

    def _layer(self, operator: Any, kind: str, inputs: list[int], link: str) -> Weighted:
        kernel, is_quantized = self._constant(inputs[1])
        kernel = np.ascontiguousarray(kernel.transpose((1, 0) if kind == "dense" else (1, 2, 3, 0)))
        width = kernel.shape[-2] if kind == "depthwise" else kernel.shape[-1]
        has_bias = len(inputs) > 2 and inputs[2] >= 0
        bias = self._constant(inputs[2])[0] if has_bias else np.zeros(width, np.float32)
        schema, table = _schema(), operator.BuiltinOptions()
        options = {
            "conv": schema.Conv2DOptions, "depthwise": schema.DepthwiseConv2DOptions,
            "dense": schema.FullyConnectedOptions,
        }[kind]()  # fmt: skip
        options.Init(table.Bytes, table.Pos)
        activation = options.FusedActivationFunction()
        activations = {schema.ActivationFunctionType.NONE: "none", schema.ActivationFunctionType.RELU: "relu"}
        padding, strides = schema.Padding.SAME, (0, 0)
        if kind != "dense":
            padding, strides = options.Padding(), (options.StrideH(), options.StrideW())
        paddings = {schema.Padding.SAME: "same", schema.Padding.VALID: "valid"}
        return Weighted(
            kind, kernel, bias, strides, paddings.get(padding, str(padding)),
            activations.get(activation, str(activation)), is_quantized, link,
        )  # fmt: skip

    def _constant(self, number: int) -> tuple[npt.NDArray[np.float32], bool]:
        """The numbers in a constant tensor as float32, and whether they were kept as whole numbers."""
        if not 0 <= number < self._graph.TensorsLength():
            raise ValueError(f"no tensor has the number {number}")
        tensor = self._graph.Tensors(number)
        if not 0 <= tensor.Buffer() < self._model.BuffersLength():
            raise ValueError(f"no buffer has the number {tensor.Buffer()}")
        shape, data = _numbers(tensor.ShapeAsNumpy()), self._model.Buffers(tensor.Buffer()).DataAsNumpy()
        if _is_absent(data) and number in self._maker:
            maker, operation = self._maker[number]
            if operation != _schema().BuiltinOperator.DEQUANTIZE:
                raise ValueError("weights that are computed")
            return self._constant(maker.Inputs(0))
        kinds = _schema().TensorType
        kind = np.dtype({
            kinds.FLOAT32: "<f4", kinds.FLOAT16: "<f2", kinds.INT32: "<i4", kinds.UINT8: "u1", kinds.INT8: "i1"
        }[tensor.Type()])  # fmt: skip
        n_bytes = 0 if _is_absent(data) else data.size
        if n_bytes != math.prod(shape) * kind.itemsize or not n_bytes:
            raise ValueError(f"{n_bytes} bytes for numbers of shape {shape}")
        values = data.view(kind).reshape(shape)
        if kind.kind == "f":
            return np.asarray(values, np.float32), False
        return _dequantized(values, tensor.Quantization()), True


def _dequantized(values: npt.NDArray[Any], how: Any) -> npt.NDArray[np.float32]:
    if how is None or not how.ScaleLength():
        raise ValueError("whole numbers without a scale")
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


def _numbers(vector: Any) -> list[int]:
    return [] if _is_absent(vector) else [int(number) for number in vector]
