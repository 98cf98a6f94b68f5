"""A SavedModel as a network: windows of waveform in, embeddings out.

Importing this loads TensorFlow.
"""

import functools
import math
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from birdtune.errors import CheckpointError, shown


class Graph(keras.layers.Layer):  # type: ignore[misc]  # keras is untyped
    """Calls a signature of a SavedModel.

    Args:
        loaded: the SavedModel; a module that is saved with this layer's graph must hold it.
    """

    def __init__(self, loaded: Any, backbone: Any) -> None:
        super().__init__(name=backbone.name, trainable=False, dtype="float32")
        self.loaded = loaded
        self._signature, self._n_samples = backbone.signature, backbone.n_samples

    def call(self, windows: Any) -> Any:
        """Windows [N, rows, samples a row] → embeddings [N, K]."""
        # The last row may reach beyond the window.
        samples = tf.reshape(windows, [-1, math.prod(windows.shape[1:])])[:, : self._n_samples]
        function = self.loaded.signatures[self._signature.name]
        return function(**{self._signature.input: samples})[self._signature.output]

    def compute_output_shape(self, input_shape: Any) -> Any:
        """[N, K]"""
        return (input_shape[0], self._signature.size)


def build(backbone: Any) -> keras.Model:
    """The network of a `SavedModelBackbone`.

    Raises:
        CheckpointError: TensorFlow cannot load it.
    """
    windows = keras.Input(backbone.front_end.window_shape, dtype="float32", name="windows")
    layer = Graph(_loaded(backbone.folder, backbone.sha256), backbone)
    return keras.Model(windows, layer(windows), name=backbone.name)


@functools.lru_cache(maxsize=1)
def _loaded(folder: Path, sha256: str) -> Any:
    del sha256  # other files are another model
    try:
        return tf.saved_model.load(str(folder))
    except Exception as fault:  # whatever TensorFlow makes of it, the files are the cause
        reason = shown(" ".join(str(fault).split())[:200])
        raise CheckpointError(
            f"{shown(folder)}: TensorFlow cannot load it ({type(fault).__name__}: {reason}). Likely cause: a copy that "
            "stopped, or a model of another version of TensorFlow. Copy or export it again."
        ) from fault
