"""The gradient of narrow convolutions' kernels, by matrix products."""

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from birdtune.data.batches import Batch
from birdtune.models import classifier as classifiers
from birdtune.models.network import Convolution
from birdtune.models.registry import BACKBONES
from birdtune.runtime import bfloat16
from birdtune.settings import TrainSettings
from birdtune.training import convolution, devices
from birdtune.training import inputs as feeds
from birdtune.training.step import StepSettings, Trainer


def trainer(precision: str, freeze: str = "none") -> Trainer:
    classifier = classifiers.build(
        backbone=BACKBONES["vggish-small"],
        head="linear", scores="softmax", hidden_units=0, embedding_activation="relu",
        freeze=freeze, classes=("A", "B", "C"), precision=precision, seed=1,
    )  # fmt: skip
    step = StepSettings(0.0, np.ones(3, np.float32), precision)
    return Trainer(classifier, TrainSettings(jit=False), step, feeds.whole(classifier, None))


def batch() -> Batch:
    rng = np.random.default_rng(0)
    features = rng.normal(-3, 1, (6, 96, 64)).astype(np.float16)
    targets = np.eye(3, dtype=np.float32)[np.arange(6) % 3]
    return Batch(features, np.ones(6, np.float32), np.arange(6), targets, np.ones_like(targets))


def test_nine_products_are_the_gradient_of_the_kernel() -> None:
    rng = np.random.default_rng(0)
    inputs = tf.constant(rng.normal(size=(2, 5, 4, 3)), tf.float32)
    kernel = tf.constant(rng.normal(size=(3, 3, 3, 7)), tf.float32)
    after = tf.constant(rng.normal(size=(2, 5, 4, 7)), tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(kernel)
        loss = tf.reduce_sum(tf.nn.conv2d(inputs, kernel, 1, "SAME") * after)
    found = convolution.kernel_gradient(inputs, after)
    np.testing.assert_allclose(found, tape.gradient(loss, kernel), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("freeze", "n_narrow"), [("none", 2), ("conv4_1", 1), ("conv", 0)])
def test_the_step_computes_the_same_gradients_either_way(
    monkeypatch: pytest.MonkeyPatch, freeze: str, n_narrow: int
) -> None:
    gradients: dict[bool, Any] = {}
    products = []
    real = convolution.kernel_gradient
    monkeypatch.setattr(
        convolution, "kernel_gradient", lambda *arguments: products.append(1) or real(*arguments)
    )
    for by_products in (False, True):
        monkeypatch.setattr(
            devices,
            "multiplies_better_than_it_convolves",
            lambda precision, by_products=by_products: by_products,
        )
        gradients[by_products] = trainer("float32", freeze).gradients(batch(), 0)[2]
    assert len(products) == n_narrow
    for one, other in zip(gradients[False], gradients[True], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4 * float(tf.reduce_max(tf.abs(one))))


def test_only_bfloat16_on_a_cpu_that_has_it_in_avx512_is_computed_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(flags: str, precision: str = "mixed_bfloat16") -> bool:
        monkeypatch.setattr(bfloat16, "cpuinfo", lambda key: flags)
        return devices.multiplies_better_than_it_convolves(precision)

    assert chosen("avx2 avx512f avx512_bf16")
    assert not chosen("avx2 avx512f avx512_bf16", "float32")
    assert not chosen("avx2 avx512f avx512_bf16 amx_bf16")
    assert not chosen("avx2")


def test_nobody_watches_once_the_block_has_ended() -> None:
    layer = Convolution(2, 3, padding="same")
    images = keras.ops.ones((1, 4, 4, 1))
    with convolution.watched([layer]) as seen:
        layer(images)
    layer(images)
    assert len(seen) == 1 and seen[0].outputs.shape == (1, 4, 4, 2)
