"""birdtune.training.optimizer: each part of the network at its own rate, and averages on the way."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from test_loop import batch_of, build, trainer_of

from birdtune.models import classifier as classifiers
from birdtune.models.classifier import Classifier
from birdtune.settings import TrainSettings
from birdtune.training.optimizer import make_optimizer

RATE = 1e-3


def moved(classifier: Classifier, gradient: float, **settings: Any) -> dict[str, Any]:
    """How far one update by the same gradient everywhere has moved each weight."""
    before = classifiers.weights(classifier)
    optimizer = make_optimizer(classifier, TrainSettings(learning_rate=RATE, **settings), "float32")
    variables = classifier.trainable_variables
    optimizer.apply([np.full(variable.shape, gradient, np.float32) for variable in variables], variables)
    return {name: before[name] - array for name, array in classifiers.weights(classifier).items()}


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_the_head_learns_faster_and_what_is_deep_slower(optimizer: str) -> None:
    classifier = build()
    found = moved(classifier, 1.0, head_lr_multiplier=20, layer_decay=0.5, optimizer=optimizer)
    backbone = [layer.name for layer in classifier.network.layers if layer.weights]
    expected = {f"backbone/{name}": 0.5**place for place, name in enumerate(reversed(backbone))} | {"head/logits": 20}
    for name, array in found.items():
        # Adam's first step is as long as the rate; that of SGD as the rate times the gradient, which is 1.
        np.testing.assert_allclose(array, RATE * expected[name.rpartition("/")[0]], rtol=2e-2, err_msg=name)


def test_sgd_goes_by_the_size_of_gradients_and_keeps_a_share_of_its_last_update() -> None:
    classifier = build()
    assert np.allclose(moved(classifier, 3.0, optimizer="sgd")["backbone/conv1/kernel"], 3 * RATE, rtol=2e-2)
    for momentum, expected in ((0.0, 1.0), (0.5, 1.5)):
        settings = TrainSettings(optimizer="sgd", momentum=momentum, learning_rate=RATE)
        optimizer, variables = make_optimizer(classifier, settings, "float32"), classifier.trainable_variables
        ones = [np.ones(variable.shape, np.float32) for variable in variables]
        optimizer.apply(ones, variables)
        before = classifiers.weights(classifier)["backbone/conv1/kernel"]
        optimizer.apply(ones, variables)
        after = classifiers.weights(classifier)["backbone/conv1/kernel"]
        np.testing.assert_allclose(before - after, expected * RATE, rtol=2e-2)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_while_the_head_learns_alone_the_backbone_stays_as_it_is(optimizer: Any) -> None:
    # Momentum is not gone back to here, as a checkpoint would.
    settings = TrainSettings(jit=False, head_warmup_epochs=2, weight_decay=0.1, optimizer=optimizer, momentum=0.0)
    trainer = trainer_of(build(), settings)
    moved_in: dict[int, set[str]] = {}
    for epoch in (0, 1, 2, 1):  # the last as after going back to a checkpoint
        before = classifiers.weights(trainer.classifier)
        trainer.begin_epoch(epoch)
        _, weight, gradients = trainer.gradients(batch_of(), epoch)
        trainer.apply(gradients, weight, 1e-2)
        after = classifiers.weights(trainer.classifier)
        moved_in[epoch] = {name.partition("/")[0] for name in after if not np.array_equal(after[name], before[name])}
    assert moved_in == {0: {"head"}, 1: {"head"}, 2: {"head", "backbone"}}


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_weight_decay_goes_with_the_rate_of_the_part_and_leaves_biases_alone(optimizer: str) -> None:
    classifier = build()
    for variable in classifier.trainable_variables:
        variable.assign(np.ones(variable.shape, np.float32))
    found = moved(classifier, 0.0, head_lr_multiplier=20, weight_decay=0.5, optimizer=optimizer)
    assert found["head/logits/kernel"] == pytest.approx(20 * RATE * 0.5, rel=1e-3)
    assert found["backbone/conv1/kernel"] == pytest.approx(RATE * 0.5, rel=1e-2)
    assert not found["head/logits/bias"].any()


@pytest.mark.parametrize(
    ("jit", "optimizer", "rate"), [(True, "adam", 1e-2), (False, "adam", 1e-2), (True, "sgd", 1.0)]
)
def test_weight_decay_and_averaging_leave_columns_that_are_not_taught_as_they_are(
    jit: bool, optimizer: Any, rate: float
) -> None:
    settings = TrainSettings(jit=jit, weight_decay=0.5, ema_decay=0.9, optimizer=optimizer)
    trainer = trainer_of(build(), settings, untaught=(1,))
    before = classifiers.weights(trainer.classifier)
    for position in range(3):
        batch = batch_of()
        targets = batch.targets.copy()
        targets[:, 2] += targets[:, 1]
        targets[:, 1] = 0
        batch = replace(batch, targets=targets)
        _, weight, gradients = trainer.gradients(batch, position)
        trainer.apply(gradients, weight, rate)
    for name in ("head/logits/kernel", "head/logits/bias"):
        after = classifiers.weights(trainer.classifier)[name]
        np.testing.assert_array_equal(after[..., 1], before[name][..., 1])
        assert not np.isclose(after[..., [0, 2]], before[name][..., [0, 2]]).any()
        with trainer.averaged():
            average = classifiers.weights(trainer.classifier)[name]
        np.testing.assert_allclose(average[..., 1], before[name][..., 1], rtol=1e-6)


@pytest.mark.parametrize("precision", ["float32", "mixed_float16"])
def test_averages_follow_the_weights_and_are_there_only_while_asked_for(precision: str) -> None:
    trainer = trainer_of(build(), TrainSettings(jit=False, ema_decay=0.75), precision=precision)
    average: dict[str, Any] = {}
    for position in range(3):
        _, weight, gradients = trainer.gradients(batch_of(), position)
        trainer.apply(gradients, weight, 1e-2)
        under_way = classifiers.weights(trainer.classifier)
        average = {name: 0.75 * average.get(name, array) + 0.25 * array for name, array in under_way.items()}
    with trainer.averaged():
        for name, array in classifiers.weights(trainer.classifier).items():
            np.testing.assert_allclose(array, average[name], atol=1e-6, err_msg=name)
    for name, array in classifiers.weights(trainer.classifier).items():
        np.testing.assert_array_equal(array, under_way[name])
    assert np.abs(under_way["head/logits/kernel"] - average["head/logits/kernel"]).max() > 1e-3


def test_without_averaging_the_weights_are_the_weights() -> None:
    trainer = trainer_of(build())
    plain = classifiers.weights(trainer.classifier)
    with trainer.averaged():
        assert all(np.array_equal(a, plain[name]) for name, a in classifiers.weights(trainer.classifier).items())
    assert not any(name.startswith("weights/") for name in trainer.state_arrays())
