"""VGGish as Google's demo has it, in tf-slim, with random weights: what checkpoints are made of.

Written out line by line from the published description, not from birdtune's table, so that a mistake
in the table shows.
"""

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tensorflow as tf
import tf_slim as slim

Arrays = dict[str, npt.NDArray[np.float32]]


def features(n: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """Noise as strong as real log-mel. [n, 96, 64]"""
    return np.random.default_rng(seed).normal(-3.43, 2.13, (n, 96, 64)).astype(np.float32)


def vggish_graph(*, relu: bool, divisor: int = 1) -> None:
    """Add VGGish to the default graph; `divisor` makes it narrower."""

    def wide(width: int) -> int:
        return width // divisor

    with tf.compat.v1.variable_scope("vggish"):
        features = tf.compat.v1.placeholder(tf.float32, (None, 96, 64), name="input_features")
        net = tf.reshape(features, [-1, 96, 64, 1])
        net = slim.conv2d(net, wide(64), [3, 3], scope="conv1")
        net = slim.max_pool2d(net, [2, 2], stride=2, padding="SAME", scope="pool1")
        net = slim.conv2d(net, wide(128), [3, 3], scope="conv2")
        net = slim.max_pool2d(net, [2, 2], stride=2, padding="SAME", scope="pool2")
        net = slim.repeat(net, 2, slim.conv2d, wide(256), [3, 3], scope="conv3")
        net = slim.max_pool2d(net, [2, 2], stride=2, padding="SAME", scope="pool3")
        net = slim.repeat(net, 2, slim.conv2d, wide(512), [3, 3], scope="conv4")
        net = slim.max_pool2d(net, [2, 2], stride=2, padding="SAME", scope="pool4")
        net = slim.flatten(net)
        net = slim.repeat(net, 2, slim.fully_connected, wide(4096), scope="fc1")
        net = slim.fully_connected(net, 128, activation_fn=tf.nn.relu if relu else None, scope="fc2")
        tf.identity(net, name="embedding")


@contextlib.contextmanager
def slim_session(*, relu: bool = True, divisor: int = 1, seed: int = 0) -> Iterator[tf.compat.v1.Session]:
    """A session over VGGish whose weights keep the signal alive (He), biases included."""
    graph = tf.Graph()
    with graph.as_default(), tf.compat.v1.Session(graph=graph) as session, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # The weights are drawn below; but where a run in this process made TensorFlow repeatable, it insists.
        tf.compat.v1.set_random_seed(seed)
        vggish_graph(relu=relu, divisor=divisor)
        random = np.random.default_rng(seed)
        for variable in tf.compat.v1.global_variables():
            shape = variable.shape.as_list()
            scale = 0.1 if len(shape) == 1 else np.sqrt(2.0 / np.prod(shape[:-1]))
            value = random.standard_normal(shape, np.float32) * np.float32(scale)
            session.run(variable.initializer, {variable.initial_value: value})
        yield session


def embed(session: tf.compat.v1.Session, features: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """What the tf-slim graph makes of windows. [N, 128]"""
    return np.asarray(session.run("vggish/embedding:0", {"vggish/input_features:0": features}))


def values(session: tf.compat.v1.Session) -> Arrays:
    """The session's variables by name."""
    variables = session.graph.get_collection(tf.compat.v1.GraphKeys.GLOBAL_VARIABLES)
    return {variable.op.name: session.run(variable) for variable in variables}


def save(session: tf.compat.v1.Session, prefix: Path, version: int) -> Path:
    """Write the session's variables as a checkpoint of format 1 or 2."""
    with session.graph.as_default():
        saver = tf.compat.v1.train.Saver(write_version=version, save_relative_paths=True)
    saver.save(session, str(prefix), write_meta_graph=False)
    return prefix


def write_checkpoint(prefix: Path, arrays: Arrays, version: int = 2) -> Path:
    """Write arrays under any names as a checkpoint of format 1 or 2."""
    graph = tf.Graph()
    with graph.as_default(), tf.compat.v1.Session(graph=graph) as session:
        variables = {
            name: tf.compat.v1.Variable(
                tf.zeros(array.shape, array.dtype), use_resource=False, dtype=array.dtype
            )
            for name, array in arrays.items()
        }
        for name, variable in variables.items():
            session.run(variable.initializer, {variable.initial_value: arrays[name]})
        saver = tf.compat.v1.train.Saver(variables, write_version=version, save_relative_paths=True)
        saver.save(session, str(prefix), write_meta_graph=False)
    return prefix
