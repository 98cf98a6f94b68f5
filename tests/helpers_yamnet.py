"""YAMNet as others wrote it down: Google's network with batch normalisation, its HDF5 and its TensorFlow Lite file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flatbuffers
import h5py
import keras
import numpy as np
import numpy.typing as npt
from tensorflow.lite.python import schema_py_generated as schema

from birdtune.models import yamnet
from birdtune.models.layers import Step

Array = npt.NDArray[np.float32]

# (kernel, stride, output channels) of layer1 to layer14, as Google's yamnet.py has them.
PUBLISHED = [
    ("conv", 2, 32), ("separable", 1, 64), ("separable", 2, 128), ("separable", 1, 128), ("separable", 2, 256),
    ("separable", 1, 256), ("separable", 2, 512), *[("separable", 1, 512)] * 5, ("separable", 2, 1024),
    ("separable", 1, 1024),
]  # fmt: skip


def originals_layers() -> list[tuple[str, keras.layers.Layer]]:
    """Google's layers with weights by the names of its code, batch normalisation among them."""
    found: list[tuple[str, keras.layers.Layer]] = []

    def add(scope: str, layer: keras.layers.Layer) -> None:
        found.append((scope, layer))
        found.append((f"{scope}/bn", keras.layers.BatchNormalization(scale=False, epsilon=1e-4)))

    for number, (kind, stride, width) in enumerate(PUBLISHED, start=1):
        how: dict[str, Any] = {"padding": "same", "use_bias": False}
        if kind == "conv":
            add(f"layer{number}/conv", keras.layers.Conv2D(width, 3, strides=stride, **how))
        else:
            add(f"layer{number}/depthwise_conv", keras.layers.DepthwiseConv2D(3, strides=stride, **how))
            add(f"layer{number}/pointwise_conv", keras.layers.Conv2D(width, 1, **how))
    return found


def original() -> tuple[keras.Model, dict[str, Array]]:
    """Google's network as its code has it, and its weights by the names in its file; they keep the signal alive."""
    features = keras.Input((96, 64))
    net = keras.layers.Reshape((96, 64, 1))(features)
    layers = originals_layers()
    for scope, layer in layers:
        net = layer(net)
        net = keras.layers.ReLU()(net) if scope.endswith("/bn") else net
    embedding = keras.layers.GlobalAveragePooling2D()(net)
    layers.append(("logits", keras.layers.Dense(521)))
    scores = keras.ops.sigmoid(layers[-1][1](embedding))
    random, arrays = np.random.default_rng(1), {}
    for scope, layer in layers:
        for variable in layer.weights:
            name = "depthwise_kernel" if "depthwise" in scope and variable.name == "kernel" else variable.name
            n_inputs = 9 if name == "depthwise_kernel" else np.prod(variable.shape[:-1], dtype=float)
            spread = np.sqrt(2 / n_inputs) if name.endswith("kernel") else 0.2
            values = random.normal(0, spread, variable.shape)
            variable.assign(np.exp(values) if name == "moving_variance" else values)
            arrays[f"{scope}/{name}"] = variable.numpy()
    return keras.Model(features, [embedding, scores]), arrays


def write_hdf5(path: Path, arrays: Mapping[str, Array]) -> Path:
    """Weights as Keras 2 wrote them: a group for each layer, in it the variable under the layer's name again."""
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            layer, _, variable = name.rpartition("/")
            file.create_dataset(f"{layer}/{layer}/{variable}:0", data=array)
    return path


class Drawn:
    """A TensorFlow Lite file drawn by TensorFlow's own schema: YAMNet, or its first layers, from windows to scores.

    Kernels lie in whole numbers, those of convolutions with a scale for each output channel, the others with one.

    Args:
        arrays: kernels and biases by the names that `yamnet.read_weights` gives them.
        steps: which layers; all of them by default.
        dequantizes: whether an operation brings them to float32 before they are used, so that the interpreter
            computes in float32; else it rounds what it multiplies them with.
        changes: to the options of an operation, by its scope.
    """

    def __init__(
        self, arrays: Mapping[str, Array], steps: Sequence[Step] = (), *, dequantizes: bool = True, **changes: Any
    ) -> None:
        self.arrays, self.dequantizes, self.changes = arrays, dequantizes, changes
        self.tensors: list[Any] = []
        self.buffers = [schema.BufferT()]
        self.operators: list[Any] = []
        self.codes: list[int] = []
        now = self.tensor([1, 96, 64, 1])
        for step in steps or yamnet.BACKBONE.steps():
            now = self.convolution(step, now)
        width = self.tensors[now].shape[-1]
        axes = self.tensor([2], data=np.array([1, 2], np.int32), kind=schema.TensorType.INT32)
        mean = self.operator(schema.BuiltinOperator.MEAN, [now, axes], [1, width])
        full = schema.FullyConnectedOptionsT()
        weights = [self.kernel("logits", self.arrays["logits/kernel"][:width].T, 0), self.bias("logits")]
        logits = self.operator(schema.BuiltinOperator.FULLY_CONNECTED, [mean, *weights], [1, 521], full)
        self.outputs = [self.operator(schema.BuiltinOperator.LOGISTIC, [logits], [1, 521]), mean]

    def convolution(self, step: Step, now: int) -> int:
        row, scope = step.row, step.row.scope
        is_depthwise = row.kind == "depthwise"
        options = schema.DepthwiseConv2DOptionsT() if is_depthwise else schema.Conv2DOptionsT()
        options.padding, options.fusedActivationFunction = 0, schema.ActivationFunctionType.RELU
        options.strideW = options.strideH = row.stride
        if is_depthwise:
            options.depthMultiplier = 1
        for name, value in self.changes.get(scope, {}).items():
            setattr(options, name, value)
        kernel = self.arrays[f"{scope}/kernel"].transpose(3, 0, 1, 2)
        inputs = [now, self.kernel(scope, kernel, None if is_depthwise else 0), self.bias(scope)]
        code = schema.BuiltinOperator.DEPTHWISE_CONV_2D if is_depthwise else schema.BuiltinOperator.CONV_2D
        before = self.tensors[now].shape
        shape = [1, -(-before[1] // row.stride), -(-before[2] // row.stride), row.width]
        return self.operator(code, inputs, shape, options)

    def kernel(self, scope: str, kernel: Array, axis: int | None) -> int:
        others = None if axis is None else tuple(other for other in range(kernel.ndim) if other != axis)
        scale = np.abs(kernel).max(axis=others, keepdims=True) / 127
        whole = np.round(kernel / scale).astype(np.int8)
        how = schema.QuantizationParametersT()
        how.scale, how.zeroPoint = scale.ravel().tolist(), [0] * scale.size
        how.quantizedDimension = axis or 0
        tensor = self.tensor(list(kernel.shape), data=whole, kind=schema.TensorType.INT8, how=how)
        if not self.dequantizes:
            return tensor
        return self.operator(schema.BuiltinOperator.DEQUANTIZE, [tensor], list(kernel.shape))

    def bias(self, scope: str) -> int:
        return self.tensor([len(self.arrays[f"{scope}/bias"])], data=self.arrays[f"{scope}/bias"])

    def tensor(self, shape: list[int], *, data: Any = None, kind: int = 0, how: Any = None) -> int:
        made = schema.TensorT()
        made.shape, made.type, made.buffer, made.quantization = shape, kind, 0, how
        made.name = f"t{len(self.tensors)}"
        if data is not None:
            made.buffer = len(self.buffers)
            self.buffers.append(schema.BufferT())
            self.buffers[-1].data = np.frombuffer(np.ascontiguousarray(data).tobytes(), np.uint8)
        self.tensors.append(made)
        return len(self.tensors) - 1

    def operator(self, code: int, inputs: list[int], shape: list[int], options: Any = None) -> int:
        if code not in self.codes:
            self.codes.append(code)
        made = schema.OperatorT()
        made.opcodeIndex, made.inputs, made.outputs = self.codes.index(code), inputs, [self.tensor(shape)]
        if options is not None:
            made.builtinOptionsType = getattr(schema.BuiltinOptions, type(options).__name__.removesuffix("T"))
            made.builtinOptions = options
        self.operators.append(made)
        return made.outputs[0]

    def write(self, path: Path) -> Path:
        graph, model = schema.SubGraphT(), schema.ModelT()
        graph.tensors, graph.operators, graph.inputs, graph.outputs = self.tensors, self.operators, [0], self.outputs
        model.version, model.subgraphs, model.buffers, model.operatorCodes = 3, [graph], self.buffers, []
        for number in self.codes:
            code = schema.OperatorCodeT()
            code.builtinCode = code.deprecatedBuiltinCode = number
            code.version = 3  # of every operation used here there is one
            model.operatorCodes.append(code)
        builder = flatbuffers.Builder(1 << 22)
        builder.Finish(model.Pack(builder), b"TFL3")
        path.write_bytes(builder.Output())
        return path

