"""VGGish's network on Keras's JAX backend: one step of training comes to what it comes to on TensorFlow."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="jax is not installed"),
]

CLOSE = 1e-4
# The first backend makes weights, which the second one begins from: random numbers are a backend's own.
PROGRAM = """
import sys
from pathlib import Path
import keras, numpy as np
from birdtune.models import classifier as classifiers
from birdtune.models.registry import BACKBONES

first, after = map(Path, sys.argv[1:])
ours = classifiers.build(
    BACKBONES["vggish-small"], head="linear", scores="softmax", hidden_units=0, embedding_activation="relu",
    freeze="none", classes=["A", "B", "C"], precision="float32", seed=0,
)
if first.exists():
    classifiers.load_weights(ours, dict(np.load(first)))
else:
    np.savez(first, **classifiers.weights(ours))
model = keras.Model(ours.network.input, ours.head(ours.network.output))
model.compile(keras.optimizers.SGD(1e-2), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
random = np.random.default_rng(0)
loss = model.train_on_batch(random.normal(-3, 2, (8, 96, 64)).astype(np.float32), np.arange(8) % 3)
np.savez(after, loss=np.float32(loss), backend=np.array(keras.backend.backend()), **classifiers.weights(ours))
"""


def test_a_step_on_jax_is_that_on_tensorflow(tmp_path: Path) -> None:
    found = {}
    for backend in ("tensorflow", "jax"):
        path = tmp_path / f"{backend}.npz"
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(tmp_path / "first.npz"), str(path)], capture_output=True, text=True,
            env={**os.environ, "KERAS_BACKEND": backend, "JAX_PLATFORMS": "cpu"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found[backend] = dict(np.load(path))
        assert str(found[backend].pop("backend")) == backend
    first = np.load(tmp_path / "first.npz")
    assert all((found["jax"][name] != first[name]).any() for name in first), "every weight has moved"
    assert found["jax"].keys() == found["tensorflow"].keys() == {"loss", *first}
    for name, array in found["tensorflow"].items():
        np.testing.assert_allclose(found["jax"][name], array, atol=CLOSE, err_msg=name)
