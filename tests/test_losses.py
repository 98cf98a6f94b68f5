"""Losses per window, and weights per class."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from birdtune.errors import InputError, SettingsError
from birdtune.models import heads, losses

LOGITS = np.array([[2.0, -1.0, 0.5], [0.0, 0.0, 0.0], [-3.0, 4.0, 1.0]], np.float32)
LABELS = np.array([0, 2, 0])


def one_hot(labels, n_classes=3):
    return np.eye(n_classes, dtype=np.float32)[np.asarray(labels)]


def loss(kind, smoothing=0.0, logits=LOGITS, labels=LABELS, **how):
    targets = one_hot(labels) if np.ndim(labels) == 1 else labels
    return losses.example_losses(logits, targets, kind, label_smoothing=smoothing, **how).numpy()


def least(counts, weights, kind, **how):
    return losses.constant_loss(np.multiply(counts, weights), kind, **how)


def test_softmax_loss_is_the_cross_entropy_of_the_scores():
    scores = heads.scores(LOGITS, "softmax").numpy()

    np.testing.assert_allclose(loss("softmax"), -np.log(scores[np.arange(3), LABELS]), rtol=1e-5)
    assert loss("softmax")[1] == pytest.approx(np.log(3))


def test_sigmoid_loss_sums_over_the_classes():
    scores = heads.scores(LOGITS, "sigmoid").numpy()
    truth = np.eye(3)[LABELS]
    expected = -(truth * np.log(scores) + (1 - truth) * np.log(1 - scores)).sum(axis=1)

    np.testing.assert_allclose(loss("sigmoid"), expected, rtol=1e-4)
    assert loss("sigmoid")[1] == pytest.approx(3 * np.log(2))


@pytest.mark.parametrize(
    ("kind", "reference"),
    [
        ("softmax", lambda y, z: keras.losses.categorical_crossentropy(y, z, True, label_smoothing=0.1)),
        ("sigmoid", lambda y, z: 3 * keras.losses.binary_crossentropy(y, z, True, label_smoothing=0.1)),
    ],
)
def test_smoothing_is_the_usual_one(kind, reference):
    truth = np.eye(3, dtype=np.float32)[LABELS]

    np.testing.assert_allclose(loss(kind, 0.1), reference(truth, LOGITS).numpy(), rtol=1e-5)
    assert not np.allclose(loss(kind, 0.1), loss(kind, 0.0))


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_extreme_logits_give_finite_losses_and_gradients(kind):
    logits = tf.constant([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4]])
    with tf.GradientTape() as tape:
        tape.watch(logits)
        values = losses.example_losses(logits, one_hot([1, 1]), kind, label_smoothing=0.1)

    assert np.isfinite(values.numpy()).all()
    assert np.isfinite(tape.gradient(values, logits).numpy()).all()


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_the_gradient_is_score_minus_target(kind):
    logits = tf.constant(LOGITS)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        values = losses.example_losses(logits, one_hot(LABELS), kind, label_smoothing=0.0)

    expected = heads.scores(LOGITS, kind).numpy() - np.eye(3)[LABELS]
    np.testing.assert_allclose(tape.gradient(values, logits).numpy(), expected, atol=1e-6)


def test_half_precision_logits_give_float32_losses():
    values = losses.example_losses(tf.constant(LOGITS, tf.bfloat16), one_hot(LABELS), "softmax", label_smoothing=0.0)

    assert values.dtype == tf.float32
    np.testing.assert_allclose(values.numpy(), loss("softmax"), rtol=0.02)


def test_the_loss_of_an_unknown_kind_is_refused():
    with pytest.raises(SettingsError, match="softmax, sigmoid"):
        loss("hinge")


def test_weights_go_with_frequency_to_the_minus_alpha():
    weights = losses.class_weights([400, 100, 25], 0.5)

    assert weights.dtype == np.float32
    np.testing.assert_allclose(weights / weights[0], [1.0, 2.0, 4.0], rtol=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_the_mean_weight_over_training_examples_is_one(alpha):
    counts = np.array([1000, 10, 1, 77])

    weights = losses.class_weights(counts, alpha)

    assert (counts * weights).sum() / counts.sum() == pytest.approx(1.0, rel=1e-6)


def test_alpha_zero_treats_all_examples_alike_and_one_all_classes():
    np.testing.assert_array_equal(losses.class_weights([5, 50, 500], 0.0), [1.0, 1.0, 1.0])
    counts = np.array([5, 50, 500])
    np.testing.assert_allclose(losses.class_weights(counts, 1.0) * counts, 555 / 3, rtol=1e-6)


def test_a_class_without_examples_gets_a_finite_weight_and_changes_no_other():
    with_empty = losses.class_weights([100, 0, 4], 0.5)

    assert np.isfinite(with_empty).all()
    np.testing.assert_allclose(with_empty[[0, 2]], losses.class_weights([100, 4], 0.5), rtol=1e-6)
    assert with_empty[1] == pytest.approx(with_empty[2] * 2)


def test_weights_that_cannot_be_are_refused():
    with pytest.raises(SettingsError, match=r"alpha is -0\.5"):
        losses.class_weights([1, 2], -0.5)
    with pytest.raises(SettingsError, match="alpha is nan"):
        losses.class_weights([1, 2], float("nan"))
    with pytest.raises(InputError, match=r"no class has a training example.*split\.csv"):
        losses.class_weights([0, 0], 0.5)


# ---- the loss of an answer that does not listen ---------------------------------------------------


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_no_constant_logits_have_a_lower_mean_loss_than_it_says(kind, smoothing):
    counts, weights = np.array([7, 2, 1]), np.array([0.5, 1.0, 3.0], np.float32)
    labels = np.repeat(np.arange(3), counts)
    shares = counts * weights / (counts * weights).sum()
    mean = (1 - smoothing) * shares + smoothing / {"softmax": 3, "sigmoid": 2}[kind]
    best = np.log(mean) if kind == "softmax" else np.log(mean / (1 - mean))

    def mean_loss(logits):
        each = loss(kind, smoothing, np.tile(np.float32(logits), (10, 1)), labels)
        return (each * weights[labels]).sum() / weights[labels].sum()

    found = least(counts, weights, kind, label_smoothing=smoothing)

    assert found == pytest.approx(mean_loss(best), abs=1e-5)
    rng = np.random.default_rng(0)
    assert all(mean_loss(best + 0.1 * rng.standard_normal(3)) > found for _ in range(20))


def test_a_class_without_examples_does_not_spoil_the_constant_prediction():
    for kind in ("softmax", "sigmoid"):
        with_it = least([3, 1, 0], [1, 1, 1], kind, label_smoothing=0.0)
        assert with_it == pytest.approx(least([3, 1], [1, 1], kind, label_smoothing=0.0))


def test_the_loss_of_a_shared_label_is_shared_too():
    labels = np.array([[0.25, 0.75, 0.0]], np.float32)
    first, second = (loss("softmax", logits=LOGITS[:1], labels=np.array([c]))[0] for c in (0, 1))

    assert loss("softmax", logits=LOGITS[:1], labels=labels)[0] == pytest.approx(0.25 * first + 0.75 * second)


def test_an_example_counts_by_the_mean_over_its_classes():
    weights = tf.constant([1.0, 2.0, 5.0])
    targets = np.array([[0, 0, 1], [1, 1, 0], [0.5, 0, 0.5], [0, 0, 0]], np.float32)

    assert losses.example_weights(targets, weights).numpy().tolist() == [5.0, 1.5, 3.0, 1.0]


def test_what_nobody_knows_has_no_loss_and_no_gradient():
    known = np.array([[1, 1, 0], [1, 0, 0.5], [0, 0, 0]], np.float32)
    scores = heads.scores(LOGITS, "sigmoid").numpy()
    truth = one_hot(LABELS)
    terms = -(truth * np.log(scores) + (1 - truth) * np.log(1 - scores))
    logits = tf.constant(LOGITS)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        found = losses.example_losses(logits, truth, "sigmoid", label_smoothing=0.0, known=known)

    np.testing.assert_allclose(found.numpy(), (known * terms).sum(axis=1), rtol=1e-4)
    assert not tape.gradient(found, logits).numpy()[known == 0].any()
    np.testing.assert_allclose(loss("softmax", known=known), loss("softmax") * [1, 0.5, 0], rtol=1e-6)


def test_no_constant_scores_have_a_lower_loss_where_some_targets_are_not_known():
    rng = np.random.default_rng(0)
    targets = (rng.random((40, 3)) < [0.5, 0.2, 0.1]).astype(np.float32)
    known = (rng.random((40, 3)) < 0.6).astype(np.float32)
    sums, counts = (targets * known).sum(axis=0), known.sum(axis=0)
    lowest = losses.constant_loss(sums, "sigmoid", label_smoothing=0.0, known=counts, examples=40)

    def mean(logits):
        given = np.tile(np.float32(logits), (40, 1))
        return loss("sigmoid", logits=given, labels=targets, known=known).mean()

    best = np.log(sums / (counts - sums))
    assert lowest == pytest.approx(mean(best), abs=1e-5)
    assert all(mean(best + 0.2 * rng.standard_normal(3)) > lowest for _ in range(20))


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_loss_counts_less_what_is_known(gamma):
    def focal(kind):
        return losses.example_losses(LOGITS, one_hot(LABELS), kind, label_smoothing=0.0, focal_gamma=gamma).numpy()

    softmax = heads.scores(LOGITS, "softmax").numpy()
    own = softmax[np.arange(3), LABELS]
    np.testing.assert_allclose(focal("softmax"), -((1 - own) ** gamma) * np.log(own), rtol=1e-4)
    p = heads.scores(LOGITS, "sigmoid").numpy()
    truth = np.eye(3)[LABELS]
    expected = -(truth * (1 - p) ** gamma * np.log(p) + (1 - truth) * p**gamma * np.log(1 - p)).sum(axis=1)
    np.testing.assert_allclose(focal("sigmoid"), expected, rtol=1e-4)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_loss_is_finite_at_its_ends(kind, gamma):
    logits = tf.constant([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4], [40.0, -40.0, -40.0]])
    with tf.GradientTape() as tape:
        tape.watch(logits)
        values = losses.example_losses(logits, one_hot([1, 1, 0]), kind, label_smoothing=0.1, focal_gamma=gamma)

    assert np.isfinite(values.numpy()).all()
    assert np.isfinite(tape.gradient(values, logits).numpy()).all()


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize("gamma", [0.7, 2.0])
def test_no_constant_prediction_has_a_lower_focal_loss(kind, gamma):
    counts, labels = [6, 3, 1], np.repeat([0, 1, 2], [6, 3, 1])
    lowest = least(counts, [1, 1, 1], kind, label_smoothing=0.1, focal_gamma=gamma)

    def mean(logits):
        given = np.tile(np.asarray(logits, np.float32), (10, 1))
        return loss(kind, 0.1, given, labels, focal_gamma=gamma).mean()

    tried = np.random.default_rng(0).normal(0, 1, (60, 3))
    found = [mean(logits) for logits in tried]
    assert lowest <= min(found) + 1e-6
    assert lowest > 0.5 * min(found)


def test_mixing_makes_more_classes_true_for_sigmoid_heads():
    plain, mixed = (
        least([5, 5, 5, 5], [1] * 4, "sigmoid", label_smoothing=0.0, mixup=mixup) for mixup in (0, 1)
    )
    share = 1 - 0.75**2
    assert mixed == pytest.approx(-4 * (share * np.log(share) + (1 - share) * np.log(1 - share)))
    assert mixed > plain
