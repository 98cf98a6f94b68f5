"""A `.keras` file as a network: windows of waveform in, embeddings out. Importing this loads TensorFlow."""

from pathlib import Path
from typing import Any

import keras
import numpy as np

from birdtune.errors import CheckpointError, shown
from birdtune.models.graph_network import on_waveforms
from birdtune.models.keras_archive import NETWORK, Found
from birdtune.runtime.files import temporary_folder

_SCORING = (keras.layers.Activation, keras.layers.Softmax, keras.layers.Dropout)
_SCORING_OPERATIONS = ("Softmax", "Sigmoid", "LogSoftmax")  # of keras.ops, which are no layers


def look(path: Path, output: str | None) -> Found:
    """As `keras_backbone.look`, of a file that `keras_archive.require_layers_only` has passed."""
    model = _loaded(path)
    shape = tuple(model.inputs[0].shape)
    if len(model.inputs) != 1 or len(shape) != 2 or model.inputs[0].dtype != "float32":
        given = ", ".join(f"{shown(one.name)} {list(one.shape)} {one.dtype}" for one in model.inputs)
        raise CheckpointError(
            f"{shown(path)}: takes {given}; expected is one waveform [N, samples] float32. Likely cause: a model of "
            "pictures or of spectrograms."
        )
    layer, where = _embedding(path, model, output)
    embedding = _cut(model, layer)
    arrays = {f"{NETWORK}/{one.path}": np.asarray(one.numpy(), np.float32) for one in embedding.weights}
    return Found(shape[1], int(embedding.output.shape[1]), layer, where, arrays)


def build(backbone: Any) -> keras.Model:
    """The network of a `KerasBackbone`, with the weights of its file."""
    network = _cut(_loaded(backbone.path), backbone.found.layer)
    network.trainable = True
    last = keras.layers.Activation("linear", name="embedding", dtype="float32")
    return on_waveforms(backbone, lambda samples: last(network(samples, training=False)))


def _loaded(path: Path) -> Any:
    """The model in a file, whatever its name; Keras knows it by the ending alone."""
    try:
        with temporary_folder("keras") as room:
            link = room / "model.keras"
            link.symlink_to(path.resolve())
            model = keras.saving.load_model(link, compile=False, safe_mode=True)
        if not isinstance(model, keras.Model) or not model.built or not model.inputs:
            raise ValueError("no network with an input")
        return model
    except Exception as fault:  # whatever Keras makes of it, the file is the cause
        reason = shown(" ".join(str(fault).split())[:200])
        raise CheckpointError(
            f"{shown(path)}: Keras cannot load it ({type(fault).__name__}: {reason}). Likely cause: a damaged copy, or "
            "a model of another version of Keras. Save it again, or give it as a SavedModel (model.export)."
        ) from fault


def _cut(model: Any, layer: str) -> keras.Model:
    """The model as far as the output of a layer, or of an operation."""
    found = {one.name: one for one in (*getattr(model, "operations", ()), *model.layers)}
    return keras.Model(model.inputs[0], found[layer].output, name=NETWORK)


def _embedding(path: Path, model: Any, output: str | None) -> tuple[str, str]:
    """The layer whose output is the embedding, and where that is, in words."""
    if output is not None:
        if output not in {layer.name for layer in model.layers} or not _is_flat(model.get_layer(output)):
            raise _no_embedding(path, model, f"has no layer called {shown(output)} with an output [N, K]")
        return output, f"output of its layer {shown(output)}"
    ends = [history.operation for history in (one._keras_history for one in model.outputs)]
    last = [_before_scoring(layer) for layer in ends]
    dense = [layer for layer in last if isinstance(layer, keras.layers.Dense)]
    if len(dense) == 1:
        [given] = dense[0]._inbound_nodes[0].parent_nodes
        name = given.operation.name
        if name in {layer.name for layer in model.layers} and _is_flat(given.operation):
            return name, f"what its last dense layer {shown(dense[0].name)} takes"
    flat = [layer for layer in ends if isinstance(layer, keras.Operation) and _is_flat(layer)]
    flat = [layer for layer in flat if "embedding" in layer.name.lower()] or flat
    if len(flat) != 1:
        raise _no_embedding(path, model, "does not show which of its outputs is the embedding")
    return flat[0].name, f"output of its layer {shown(flat[0].name)}"


def _before_scoring(layer: Any) -> Any:
    while isinstance(layer, _SCORING) or type(layer).__name__ in _SCORING_OPERATIONS:
        layer = layer._inbound_nodes[0].parent_nodes[0].operation
    return layer


def _is_flat(layer: Any) -> bool:
    shape = getattr(layer.output, "shape", None)
    return shape is not None and len(shape) == 2 and shape[1] is not None and layer.output.dtype == "float32"


def _no_embedding(path: Path, model: Any, problem: str) -> CheckpointError:
    layers = [layer.name for layer in model.layers if _is_flat(layer)]
    return CheckpointError(
        f"{shown(path)}: {problem}. Layers with such outputs are {', '.join(map(shown, layers)) or 'none'}. Name one "
        "with --model.embedding-output."
    )
