"""A `.keras` file read as data, before Keras may load it.

    .keras ─▶ require_layers_only ─▶ nothing, or CheckpointError that names what is not a layer of Keras' own

A `.keras` file is a zip of a description of layers and their weights. Keras makes of the description whatever Python
object it names; so it may name nothing but layers and operations that compute numbers, by a list of what is allowed,
and no function. Weights are read once in a process of their own: on a damaged file the HDF5 library may do anything.
"""

import json
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from birdtune.errors import CheckpointError, shown
from birdtune.models.backbone import Arrays
from birdtune.runtime.storage import read_error
from birdtune.runtime.text import some
from birdtune.runtime.workers import Crashed, Isolated

NETWORK = "network"  # the one layer of a backbone of such a file, which holds the layers of the file
CONFIG, WEIGHTS = "config.json", "model.weights.h5"
_MEMBERS = {CONFIG, WEIGHTS, "metadata.json"}
_LARGEST_CONFIG_BYTES, _LARGEST_BYTES = 64 << 20, 2 << 30
_AGAIN = "Save the model again with model.save, or give it as a SavedModel (model.export)."

# What the readers make of a damaged archive.
_DAMAGE = (
    zipfile.BadZipFile, zlib.error, EOFError, ValueError, KeyError, RecursionError, NotImplementedError, RuntimeError,
)  # fmt: skip

# Layers that compute numbers of numbers. Not among them: Lambda and what runs other code (TFSMLayer, JaxLayer,
# TorchModuleWrapper), what reads files (StringLookup, TextVectorization and the like), pictures and random draws.
_LAYERS = """
    Activation AdditiveAttention Add AlphaDropout Attention Average AveragePooling1D AveragePooling2D AveragePooling3D
    BatchNormalization Bidirectional Concatenate Conv1D Conv1DTranspose Conv2D Conv2DTranspose Conv3D Conv3DTranspose
    ConvLSTM1D ConvLSTM2D Cropping1D Cropping2D Dense DepthwiseConv1D DepthwiseConv2D Dot Dropout ELU EinsumDense
    Flatten GRU GRUCell GaussianDropout GaussianNoise GlobalAveragePooling1D GlobalAveragePooling2D
    GlobalAveragePooling3D GlobalMaxPooling1D GlobalMaxPooling2D GlobalMaxPooling3D GroupNormalization
    GroupQueryAttention Identity InputLayer LSTM LSTMCell LayerNormalization LeakyReLU Masking MaxPooling1D
    MaxPooling2D MaxPooling3D Maximum MelSpectrogram Minimum MultiHeadAttention Multiply Normalization PReLU Permute RNN
    RMSNormalization ReLU RepeatVector Rescaling Reshape STFTSpectrogram SeparableConv1D SeparableConv2D SimpleRNN
    SimpleRNNCell Softmax SpatialDropout1D SpatialDropout2D SpectralNormalization StackedRNNCells Subtract
    TimeDistributed UnitNormalization UpSampling1D UpSampling2D ZeroPadding1D ZeroPadding2D
"""
# Modules all of whose classes are numbers, types, or operations on numbers.
_MODULES = {
    "keras.initializers", "keras.regularizers", "keras.constraints", "keras.dtype_policies", "keras.src.ops.numpy",
    "keras.src.ops.nn", "keras.src.ops.math",
}  # fmt: skip
_ALLOWED = {
    ("keras.layers", name) for name in _LAYERS.split()
} | {
    *(("keras", name) for name in ("Functional", "Sequential", "Model", "DTypePolicy", "FloatDTypePolicy")),
    ("keras.src.models.functional", "Functional"), ("keras.src.models.sequential", "Sequential"),
    *(("keras.src.ops.core", name) for name in ("Cast", "SaturateCast", "Slice", "StopGradient", "Unstack")),
}  # fmt: skip
# How Keras writes what is no object: tensors between layers, numbers, slices.
_PLAIN = {"__keras_tensor__", "__tensor__", "__numpy__", "__slice__", "__ellipsis__", "__tuple__", "__complex__"}


@dataclass(frozen=True)
class Found:
    """What a file takes and gives."""

    n_samples: int | None  # of a window; None: any
    size: int
    layer: str  # whose output is the embedding
    where: str  # in words
    arrays: Arrays  # its weights, "network/<layer>/<weight>"


def is_one(path: Path) -> bool:
    """Whether a file is such a zip, whatever its name. Raises OSError."""
    if not path.is_file() or not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return {CONFIG, "metadata.json"} <= set(archive.namelist())
    except zipfile.BadZipFile:
        return False


def require_layers_only(path: Path) -> None:
    """Refuse a file that describes more than layers of numbers, or whose weights cannot be read.

    Raises:
        CheckpointError: naming what it describes, or what is wrong with it.
        RetryableError: the storage fails.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = {member.filename: member.file_size for member in archive.infolist()}
            if others := sorted(set(members) - _MEMBERS):
                raise CheckpointError(
                    f"{shown(path)}: was not loaded: it holds {some(others)} beside its layers and weights, for layers "
                    f"that read files. {_AGAIN}"
                )
            if members[CONFIG] > _LARGEST_CONFIG_BYTES or members[WEIGHTS] > _LARGEST_BYTES:
                raise ValueError("it unpacks to more than 2 GB")
            described = json.loads(archive.read(CONFIG))
        bad = sorted(set(_not_layers(described)))
    except _DAMAGE as fault:
        raise _damaged(path, str(fault)) from fault
    except OSError as fault:
        message = f"{shown(path)}: cannot be read ({shown(fault.strerror)}). Check its rights."
        raise read_error(fault, path, message, CheckpointError) from fault
    if bad:
        raise CheckpointError(
            f"{shown(path)}: was not loaded: it describes {some(bad)}. Only layers of Keras' own that compute numbers "
            "are loaded; Lambda layers, custom classes and functions are code of whoever made the file. Build the "
            "model of Keras' layers alone, or give it as a SavedModel (model.export), whose graph can be checked."
        )
    try:
        with Isolated(_read_weights) as reader:
            problem = dict(reader.items(path)).get("problem")
    except Crashed as fault:
        raise _damaged(path, "the HDF5 library died reading its weights") from fault
    if problem:
        raise _damaged(path, problem)


def _damaged(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{shown(path)}: the Keras file is damaged or cut off ({shown(reason[:100])}). Likely cause: a download or "
        "copy that stopped; get it again."
    )


def _not_layers(described: Any) -> Iterator[str]:
    """The names of all that a description has beside what is allowed."""
    if isinstance(described, list):
        for each in described:
            yield from _not_layers(each)
    elif isinstance(described, dict):
        name = described.get("class_name")
        if name is not None and name not in _PLAIN:
            module = described.get("module")
            if module not in _MODULES and (module, name) not in _ALLOWED:
                yield f"{module}.{name}" if module else str(name)
            elif described.get("registered_name") not in (None, name):
                yield str(described["registered_name"])  # a class of somebody's own under this name
        for each in described.values():
            yield from _not_layers(each)


def _read_weights(path: Path) -> Iterator[tuple[str, str]]:
    """What is wrong with the weights, if anything is; in a process of its own."""
    import h5py

    def look(name: str, thing: Any) -> None:
        if isinstance(thing, h5py.Dataset):
            if thing.external or thing.is_virtual:
                raise ValueError(f"{name} takes its numbers from other files")
            thing[()]

    def links(name: str, link: Any) -> None:
        if not isinstance(link, h5py.HardLink):
            raise ValueError(f"{name} leads to another place")

    try:
        with zipfile.ZipFile(path) as archive, archive.open(WEIGHTS) as content, h5py.File(content, "r") as file:
            file.visititems_links(links)
            file.visititems(look)
    except Exception as fault:  # whatever the libraries make of it, the file is the cause
        yield "problem", f"{type(fault).__name__}: {fault}"
