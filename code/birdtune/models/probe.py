"""A trial of a network on made sound, before anything long is begun. Importing this loads TensorFlow."""

import time
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from birdtune.errors import CheckpointError
from birdtune.models.backbone import Arrays, Backbone
from birdtune.runtime.tensorflow_import import tensorflow_words

_TOLERANCE = 1e-5
_MIXED = 0.1  # of the difference between two windows; what rounding makes is 0.001 at most
_BATCH = 16


def window_s(backbone: Backbone, weights: Arrays) -> float:
    """Seconds that the network takes for one window on this machine, of a batch; measured. Raises CheckpointError."""
    network = backbone.network(embedding_activation=backbone.activations[0], precision="float32", seed=None)
    backbone.load(network, weights)
    compute = tf.function(network, autograph=False)
    windows = np.zeros((_BATCH, *backbone.front_end.window_shape), np.float32)
    took = []
    for _ in range(3):  # the first builds the graph
        began = time.perf_counter()
        _called(backbone, compute, windows)
        took.append(time.perf_counter() - began)
    return min(took[1:]) / _BATCH


def probe(backbone: Backbone, weights: Arrays) -> None:
    """Try the network with its published weights on two made windows.

    Raises:
        CheckpointError: it fails, or its embeddings are not finite, not the same twice, do not depend
            on the sound, or depend on the other windows of a batch.
    """
    network = backbone.network(embedding_activation="", precision="float32", seed=None)
    backbone.load(network, weights)
    noise = np.random.default_rng(0).normal(0.0, 0.1, (2, *backbone.front_end.window_shape)).astype(np.float32)
    first, again = (_called(backbone, network, noise) for _ in range(2))
    problem = ""
    if not np.isfinite(first).all():
        problem = "are NaN or infinite"
    elif np.abs(first - again).max() > _TOLERANCE * max(1.0, float(np.abs(first).max())):
        problem = "differ between two calls with the same sound: it draws random numbers, as in training"
    elif np.array_equal(first[0], first[1]):
        problem = "do not depend on the sound"
    elif not _is_alike(first, np.concatenate([_called(backbone, network, one[None]) for one in noise])):
        raise CheckpointError(
            f"{backbone.title}: its embedding of a made sound depends on the windows that it is computed with. "
            "Likely cause: it was made for one window at a time, or saved as it is in training. Convert or save it "
            "again with an open batch [None, samples], for inference."
        )
    if problem:
        raise CheckpointError(f"{backbone.title}: its embeddings of a made sound {problem}. Give another model.")


def _is_alike(batch: npt.NDArray[np.float32], alone: npt.NDArray[np.float32]) -> bool:
    """Whether windows have the embeddings of a batch when they are computed alone.

    Other windows must not matter; that another algorithm computes one window than computes two may, in the digits.
    """
    size = max(float(np.abs(batch - batch.mean(axis=0)).max()), _TOLERANCE * float(np.abs(batch).max()))
    return batch.shape == alone.shape and float(np.abs(batch - alone).max()) <= _MIXED * size


def _called(backbone: Backbone, function: Any, windows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    try:
        return np.asarray(function(tf.constant(windows)))
    except tf.errors.OpError as fault:
        reason = tensorflow_words(fault)
        raise CheckpointError(f"{backbone.title}: fails on a made sound ({reason}). Export it again.") from fault
