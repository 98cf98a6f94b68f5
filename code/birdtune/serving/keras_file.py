"""A served model as a Keras model of stock layers, which plain Keras 3 loads without birdtune.

    version folder ─▶ model_of ─▶ a .keras file: waveform [N, samples] → scores [N, C], for VGGish and YAMNet
                                                 embedding [N, K] → scores [N, C], for all other backbones

Any other backbone is a graph, or has layers of its author's choice; of a model on it, the head alone is written.
Importing this loads TensorFlow.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from birdtune.audio.logmel import LogMel, hann_window, mel_matrix
from birdtune.evaluation.calibration import Calibration
from birdtune.models import registry, saved_model
from birdtune.models.network import Convolution
from birdtune.runtime.files import temporary_folder

Floats = npt.NDArray[np.float32]
Arrays = Mapping[str, Floats]


def model_of(folder: Path, facts: Mapping[str, Any]) -> tuple[str, bytes]:
    """What the one input of the file is, "waveform" or "embedding", and its content.

    Args:
        folder: of the version; the caller has opened it.
        facts: its model.json.
    """
    front_end = registry.read_front_end(facts["front_end"])
    arrays = saved_model.read(folder, tuple(facts["weights"]), facts["weights_sha256"])
    if facts["backbone"] in registry.BACKBONES and isinstance(front_end, LogMel):
        given = keras.Input((front_end.window_samples,), dtype="float32", name="waveform")
        embedding = _network(facts, arrays)(_log_mel(front_end, given))
    else:
        size = next(array.shape[0] for name, array in arrays.items() if name.startswith("head/"))
        given = embedding = keras.Input((size,), dtype="float32", name="embedding")
    model = keras.Model(given, _scores(facts, _logits(arrays, embedding)), name="birdtune")
    with temporary_folder("keras") as room:
        path = room / "model.keras"
        model.save(path)
        return given.name, path.read_bytes()


def _network(facts: Mapping[str, Any], arrays: Arrays) -> keras.Model:
    """The backbone's network with its weights, without layers of our own."""

    def stock(layer: keras.layers.Layer) -> keras.layers.Layer:
        kind = keras.layers.Conv2D if isinstance(layer, Convolution) else type(layer)
        return kind.from_config(layer.get_config())

    network = registry.BACKBONES[facts["backbone"]].network(
        embedding_activation=facts["embedding_activation"], precision="float32", seed=None
    )
    copy = keras.models.clone_model(network, clone_function=stock)
    for layer in copy.layers:
        for variable in layer.weights:
            variable.assign(arrays[f"backbone/{layer.name}/{variable.name}"])
    return copy


def _logits(arrays: Arrays, net: Any) -> Any:
    """Embeddings [N, K] → logits [N, C]. Raises ValueError for a head that stock layers do not make."""
    weights = {name.removeprefix("head/"): array for name, array in arrays.items() if name.startswith("head/")}
    if "logits/log_scale" in weights:
        return _prototypes(weights, net)
    layers = dict.fromkeys(name.partition("/")[0] for name in weights)
    for name in (*(layer for layer in layers if layer.startswith("hidden")), "logits"):
        if f"{name}/kernel" in weights:
            activation = None if name == "logits" else "relu"
            net = _dense(name, activation, weights.pop(f"{name}/kernel"), weights.pop(f"{name}/bias"), net)
    if weights:
        raise ValueError(f"a head with the weights {', '.join(weights)}")
    return net


def _dense(name: str, activation: str | None, kernel: Floats, bias: Floats, net: Any) -> Any:
    layer = keras.layers.Dense(kernel.shape[1], activation=activation, name=name)
    made = layer(net)
    layer.set_weights([kernel, bias])
    return made


def _prototypes(weights: Arrays, net: Any) -> Any:
    """As `heads.Prototypes`, with the kernel's directions and the scales in one dense layer."""
    kernel, bias, log_scale = (weights[f"logits/{name}"] for name in ("kernel", "bias", "log_scale"))
    n_inputs, n_prototypes, n_classes = kernel.shape
    directions = kernel / np.maximum(np.linalg.norm(kernel, axis=0), 1e-6) * np.exp(log_scale)
    each = np.tile(bias - np.log(n_prototypes), n_prototypes)  # in each exponent, as well as in their sum
    net = keras.layers.UnitNormalization(name="direction")(net)
    net = _dense("similarity", None, directions.reshape(n_inputs, -1), each, net)
    net = keras.layers.Reshape((n_prototypes, n_classes), name="prototypes")(net)
    return keras.ops.logsumexp(net, axis=1)


def _log_mel(spec: LogMel, waveform: Any) -> Any:
    """Waveforms [N, samples] → log-mel windows [N, frames, mels] float32, computed in float64 as in training."""
    ops, layers = keras.ops, keras.layers
    columns = layers.Reshape((spec.window_samples, 1), name="samples")(waveform)
    # Not keras' own spectrogram layer: its kernels are cosines of angles in float32, which are wrong by a thousandth.
    turns = 2 * np.pi * (np.arange(spec.frame)[:, None] * np.arange(spec.n_bins) % spec.fft) / spec.fft
    parts = []
    for name, wave in (("cosines", np.cos(turns)), ("sines", np.sin(turns))):
        layer = layers.Conv1D(
            spec.n_bins, spec.frame, strides=spec.frame_hop, use_bias=False, dtype="float64", trainable=False, name=name
        )
        parts.append(layer(columns))  # [N, frames, bins]
        layer.kernel.assign((wave * hann_window(spec)[:, None])[:, None, :])
    magnitude = ops.sqrt(ops.square(parts[0]) + ops.square(parts[1]))
    mel = layers.Dense(spec.n_mels, use_bias=False, dtype="float64", trainable=False, name="mel")
    bands = mel(magnitude)
    mel.kernel.assign(mel_matrix(spec))
    return ops.cast(ops.log(bands + spec.log_offset), "float32")


def _scores(facts: Mapping[str, Any], logits: Any) -> Any:
    calibration = Calibration.of(facts["calibration"])
    scaled = keras.layers.Rescaling(calibration.window.slope, calibration.window.offset, name="calibrated")(logits)
    return keras.layers.Activation(calibration.kind, name="scores")(scaled)
