"""Finished graphs as networks: windows of waveform in, embeddings out.

    SavedModelBackbone ─▶ of_saved_model ─▶ keras.Model;  OnnxBackbone, function of arrays ─▶ of_function ─▶ keras.Model

Importing this loads TensorFlow.
"""

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from birdtune.errors import CheckpointError, shown
from birdtune.runtime.tensorflow_import import tensorflow_words


class Samples(keras.layers.Layer):  # type: ignore[misc]  # keras is untyped
    """Windows [N, rows, samples a row] → waveforms [N, samples]; the last row may reach beyond the window."""

    def __init__(self, n_samples: int, **kwargs: Any) -> None:
        super().__init__(trainable=False, **kwargs)
        self._n_samples = n_samples

    def call(self, windows: Any) -> Any:
        """As above."""
        return tf.reshape(windows, [-1, math.prod(windows.shape[1:])])[:, : self._n_samples]

    def compute_output_shape(self, input_shape: Any) -> Any:
        """[N, samples]"""
        return (input_shape[0], self._n_samples)


class SavedModelGraph(keras.layers.Layer):  # type: ignore[misc]  # keras is untyped
    """Calls a signature of a SavedModel.

    Args:
        loaded: the SavedModel; a module that is saved with this layer's graph must hold it.
    """

    def __init__(self, loaded: Any, backbone: Any) -> None:
        super().__init__(name=backbone.name, trainable=False, dtype="float32")
        self.loaded, self._signature = loaded, backbone.signature

    def call(self, samples: Any) -> Any:
        """Waveforms [N, samples] → embeddings [N, K]."""
        function = self.loaded.signatures[self._signature.name]
        return function(**{self._signature.input: samples})[self._signature.output]

    def compute_output_shape(self, input_shape: Any) -> Any:
        """[N, K]"""
        return (input_shape[0], self._signature.size)


class Function(keras.layers.Layer):  # type: ignore[misc]  # keras is untyped
    """Calls a function of arrays, as ONNX Runtime gives one."""

    def __init__(self, embed: Any, backbone: Any) -> None:
        super().__init__(name=backbone.name, trainable=False, dtype="float32")
        self._embed, self._size = embed, backbone.embedding_size

    def call(self, samples: Any) -> Any:
        """Waveforms [N, samples] → embeddings [N, K]."""
        found = tf.numpy_function(self._embed, [samples], tf.float32)
        found.set_shape([None, self._size])
        return found

    def compute_output_shape(self, input_shape: Any) -> Any:
        """[N, K]"""
        return (input_shape[0], self._size)


def of_saved_model(backbone: Any) -> keras.Model:
    """The network of a `SavedModelBackbone`. Raises CheckpointError where TensorFlow cannot load it."""
    return on_waveforms(backbone, SavedModelGraph(_loaded(backbone.path, backbone.sha256), backbone))


def of_function(backbone: Any, embed: Any) -> keras.Model:
    """The network of a `FileBackbone` that a function of arrays computes, which TensorFlow cannot save.

    Args:
        embed: waveforms [N, samples] float32 → embeddings [N, K] float32.
    """
    return on_waveforms(backbone, Function(embed, backbone))


def on_waveforms(backbone: Any, embed: Callable[[Any], Any]) -> keras.Model:
    """The network of a `FileBackbone`, of what makes waveforms [N, samples] into embeddings [N, K]."""
    windows = keras.Input(backbone.front_end.window_shape, dtype="float32", name="windows")
    samples = Samples(backbone.n_samples, name="samples", dtype="float32")(windows)
    return keras.Model(windows, embed(samples), name=backbone.name)


@functools.lru_cache(maxsize=1)
def _loaded(folder: Path, sha256: str) -> Any:
    del sha256  # other files are another model
    try:
        return tf.saved_model.load(str(folder))
    except Exception as fault:  # whatever TensorFlow makes of it, the files are the cause
        reason = tensorflow_words(fault)
        raise CheckpointError(
            f"{shown(folder)}: TensorFlow cannot load it ({type(fault).__name__}: {reason}). Likely cause: a copy that "
            "stopped, or a model of another version of TensorFlow. Copy or export it again."
        ) from fault
