"""YAMNet: its table of layers, and its weights out of Google's two files.

    yamnet.h5 | yamnet.tflite ─▶ read_weights ─▶ {"layer1/conv/kernel": array, "layer1/conv/bias": array, …}

Google's published network (tensorflow/models, research/audioset/yamnet): MobileNet v1 on log-mel windows of
0.96 s every 0.48 s, trained on AudioSet's 521 classes; 3.2 million weights up to the embedding of 1024 numbers.

Batch normalisation is folded into kernel and bias, as it already is in the .tflite: with its statistics fixed
it is one factor and one offset a channel. So there is one network for both files, and fine-tuning moves what
the normalisation did along with the kernels, but never its statistics, which small data would spoil.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from birdtune.audio.logmel import YAMNET
from birdtune.errors import CheckpointError, InputError, shown
from birdtune.models import tflite
from birdtune.models.backbone import Arrays, Published
from birdtune.models.known import KNOWN
from birdtune.models.layer_backbone import LayerBackbone
from birdtune.models.layers import MEAN, Layer
from birdtune.models.tf_checkpoint import check_variables
from birdtune.runtime.files import read_csv
from birdtune.runtime.workers import Crashed, Isolated

# Output channels and stride of the separable convolutions, layer2 to layer14.
_SEPARABLE = (
    (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1),
)  # fmt: skip


def _layers() -> Iterator[Layer]:
    width = 32
    yield Layer("layer1", "conv", width, "layer1/conv", stride=2)
    for number, (wider, stride) in enumerate(_SEPARABLE, start=2):
        name = f"layer{number}"
        yield Layer(f"{name}_depthwise", "depthwise", width, f"{name}/depthwise_conv", stride=stride)
        pool = MEAN if number == len(_SEPARABLE) + 1 else ""
        yield Layer(name, "pointwise", wider, f"{name}/pointwise_conv", pool=pool)
        width = wider


LAYERS = tuple(_layers())
HEAD = "logits"
CLASS_MAP_NAME = "yamnet_class_map.csv"
N_CLASSES = 521
WHERE_TO_GET = (
    "Download Google's weights from https://storage.googleapis.com/audioset/yamnet.h5 (15 MB); the same network as "
    "yamnet.tflite (4 MB) does as well."
)

_BATCH_NORM_EPSILON = 1e-4  # Google's params.py
_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"


def is_weights(path: Path) -> bool:
    """Whether a file begins as one of the two kinds does. Raises OSError."""
    return path.is_file() and (_is_hdf5(path) or tflite.is_tflite(path))


def recognises(path: Path) -> bool:
    """Whether a file has YAMNet's weights. Raises OSError, and CheckpointError for a damaged TensorFlow Lite file."""
    if not is_weights(path) or _is_hdf5(path):
        return is_weights(path)
    graph = tflite.read(path)
    return any(graph.tensors[number].shape[-1:] == (N_CLASSES,) for number in graph.outputs)


def _is_hdf5(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_HDF5_MAGIC)) == _HDF5_MAGIC


def read_weights(path: Path) -> Arrays:
    """Kernels and biases with batch normalisation folded in, the published classifier's among them.

    Args:
        path: yamnet.h5, weights of Google's Keras model by layer; or yamnet.tflite, whose kernels may be kept
            in whole numbers.

    Returns:
        "layer1/conv/kernel" [3, 3, 1, 32], "layer1/conv/bias" [32], "layer2/depthwise_conv/kernel" [3, 3, 32, 1]
        and so on, "logits/kernel" [1024, 521], "logits/bias" [521]; all float32.

    Raises:
        CheckpointError: absent, unreadable, damaged, or of another network.
    """
    try:
        if not is_weights(path):
            raise CheckpointError(
                f"{shown(path)}: is neither HDF5 (yamnet.h5) nor TensorFlow Lite (yamnet.tflite). Likely cause: a "
                f"download that stopped, or another file under this name. {WHERE_TO_GET}"
            )
        is_hdf5 = _is_hdf5(path)
    except OSError as fault:
        raise CheckpointError(
            f"{shown(path)}: cannot be read ({shown(fault.strerror)}). Check the path and its rights."
        ) from fault
    return _from_hdf5(path) if is_hdf5 else _from_tflite(path)


# ---- yamnet.tflite ------------------------------------------------------------------------------


def _from_tflite(path: Path) -> Arrays:
    """Names are lost on the way into this file: layers are told by their order, and each must look as it should."""
    found = tflite.read_layers(path)
    # What stands before the first convolution makes log-mel frames, by a Fourier transform in whole numbers.
    first = next((position for position, layer in enumerate(found) if layer.kind == "conv"), 0)
    found = found[first:]
    wanted = [*BACKBONE.steps(), None]
    if len(found) != len(wanted):
        raise CheckpointError(
            f"{shown(path)}: is of another network: YAMNet has {len(wanted)} layers with weights, this file "
            f"{len(found)}. {WHERE_TO_GET}"
        )
    arrays: Arrays = {}
    for position, (layer, step) in enumerate(zip(found, wanted, strict=True)):
        if step is None:
            expected: tuple[Any, ...] = ("dense", (BACKBONE.embedding_size, N_CLASSES), "none")
            looks: tuple[Any, ...] = (layer.kind, layer.kernel.shape, layer.activation)
            name, is_linked = HEAD, layer.link != "none"
        else:
            row = step.row
            kind = "depthwise" if row.kind == "depthwise" else "conv"
            expected = (kind, step.kernel, "relu", (row.stride, row.stride), "same")
            looks = (layer.kind, layer.kernel.shape, layer.activation, layer.strides, layer.padding)
            name, is_linked = row.scope, position == 0 or layer.link == "direct"
        if looks != expected or not is_linked:
            raise CheckpointError(
                f"{shown(path)}: is of another network: where {name} should be ({_words(expected)}), it has "
                f"{_words(looks)}{'' if is_linked else ', which does not follow on the layer before'}. {WHERE_TO_GET}"
            )
        arrays[f"{name}/kernel"], arrays[f"{name}/bias"] = layer.kernel, layer.bias
    _check(arrays, path)
    return arrays


def _words(parts: tuple[Any, ...]) -> str:
    return ", ".join(str(list(part)) if isinstance(part, tuple) else str(part) for part in parts)


# ---- yamnet.h5 ----------------------------------------------------------------------------------


def _from_hdf5(path: Path) -> Arrays:
    raw: Arrays = {}
    try:
        # In a process of its own: on a damaged file the HDF5 library may do anything.
        with Isolated(_datasets) as reader:
            raw.update(reader.items(path))
    except Crashed as fault:
        raise CheckpointError(
            f"{shown(path)}: the HDF5 library died reading it. Likely cause: a damaged file; get it again."
        ) from fault
    check_variables(raw, hdf5_variables(), source=shown(path), strict=True)
    arrays: Arrays = {f"{HEAD}/{ending}": raw[f"{HEAD}/{ending}"] for ending in ("kernel", "bias")}
    for row in LAYERS:
        kernel, beta, mean, variance = (raw[name].astype(np.float64) for name in _hdf5_names(row))
        with np.errstate(invalid="ignore"):  # a variance below zero gives NaN, which is refused next
            factor = 1.0 / np.sqrt(variance + _BATCH_NORM_EPSILON)  # [channels]
        along = factor[:, None] if row.kind == "depthwise" else factor
        arrays[f"{row.scope}/kernel"] = (kernel * along).astype(np.float32)
        arrays[f"{row.scope}/bias"] = (beta - mean * factor).astype(np.float32)
    _check(arrays, path)
    return arrays


def _hdf5_names(row: Layer) -> tuple[str, str, str, str]:
    kernel = "depthwise_kernel" if row.kind == "depthwise" else "kernel"
    norm = f"{row.scope}/bn"
    return f"{row.scope}/{kernel}", f"{norm}/beta", f"{norm}/moving_mean", f"{norm}/moving_variance"


def hdf5_variables() -> dict[str, tuple[int, ...]]:
    """Names and shapes of what yamnet.h5 holds: kernels, and of each normalisation offset, mean and variance."""
    shapes: dict[str, tuple[int, ...]] = {
        f"{HEAD}/kernel": (BACKBONE.embedding_size, N_CLASSES), f"{HEAD}/bias": (N_CLASSES,)
    }  # fmt: skip
    for step in BACKBONE.steps():
        kernel, *norms = _hdf5_names(step.row)
        shapes[kernel] = step.kernel
        shapes |= dict.fromkeys(norms, (step.row.width,))
    return shapes


def _datasets(path: Path) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    """The variables of a file that Keras 2 wrote, by their names without ":0".

    Keras puts a variable into a group of its layer's name, under its own name, which begins with that again:
    layer1/conv/layer1/conv/kernel:0. What is not of the expected shape is not read: it could ask for all the memory.
    """
    import h5py  # in the process that may die of it

    expected = hdf5_variables()
    try:
        with h5py.File(path, "r") as file:
            places: list[str] = []
            file.visititems(lambda place, thing: places.append(place) if isinstance(thing, h5py.Dataset) else None)
            for place in places:
                name, dataset = _variable_name(place), file[place]
                if name not in expected:
                    yield name, np.zeros(0, np.float32)  # the name is told
                elif dataset.shape != expected[name] or dataset.dtype.kind != "f":
                    raise CheckpointError(
                        f"{shown(path)}: is of another network: {shown(place)} holds {dataset.dtype} of shape "
                        f"{list(dataset.shape)}, expected are floats of shape {list(expected[name])}. {WHERE_TO_GET}"
                    )
                elif dataset.external or dataset.is_virtual:
                    raise ValueError("it takes its numbers from other files")
                else:
                    yield name, np.asarray(dataset[()], np.float32)
    except (OSError, ValueError, LookupError, RuntimeError, TypeError, MemoryError) as fault:
        raise CheckpointError(
            f"{shown(path)}: the HDF5 file is damaged or cut off ({shown(str(fault)[:100])}). Likely cause: a "
            "download or copy that stopped; get it again."
        ) from fault


def _variable_name(place: str) -> str:
    name = place.removeprefix("model_weights/").removesuffix(":0")
    parts = name.split("/")
    layer, variable = parts[:-1], parts[-1]
    half = len(layer) // 2
    if len(layer) % 2 == 0 and layer[:half] == layer[half:]:
        layer = layer[:half]
    # Keras names a layer that was given no name by its kind.
    return "/".join([HEAD if layer == ["dense"] else "/".join(layer), variable])


# ---- both ---------------------------------------------------------------------------------------


def _check(arrays: Mapping[str, npt.NDArray[np.float32]], path: Path) -> None:
    head = {f"{HEAD}/kernel": (BACKBONE.embedding_size, N_CLASSES), f"{HEAD}/bias": (N_CLASSES,)}
    check_variables(arrays, BACKBONE.variables() | head, source=shown(path))


def read_classes(path: Path) -> tuple[str, ...]:
    """The names of the 521 classes, from yamnet_class_map.csv beside the weights; without it, "class 0" and so on.

    Raises:
        InputError: the file is there and is not Google's class map.
    """
    table = path.with_name(CLASS_MAP_NAME)
    if not table.exists():
        return tuple(f"class {column}" for column in range(N_CLASSES))
    rows = read_csv(table)
    names = tuple(row.get("display_name", "") for row in rows)
    if [row.get("index") for row in rows] != [str(column) for column in range(N_CLASSES)] or "" in names:
        raise InputError(
            f"{shown(table)}: is not YAMNet's class map: expected are the columns index, mid and display_name, and "
            f"{N_CLASSES} rows in the order of index. It is in tensorflow/models, research/audioset/yamnet."
        )
    return names


BACKBONE = LayerBackbone(
    name="yamnet",
    title="YAMNet",
    front_end=YAMNET,
    origin=KNOWN["yamnet"],
    layers=LAYERS,
    endings=("kernel", "bias"),
    activations=("relu",),
    checkpoint_names=("yamnet.h5", "yamnet.tflite"),
    where_to_get=WHERE_TO_GET,
    read=read_weights,
    recognises=recognises,
    step_efficiency=0.3,
    # Depthwise convolutions are bound by memory: what is won in the pointwise ones is lost in them.
    bfloat16_gain=0.8,
    published=Published((f"{HEAD}/kernel", f"{HEAD}/bias"), N_CLASSES, read_classes),
)
