"""Heads: logits from embeddings, scores from logits."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from birdtune.errors import SettingsError
from birdtune.models import heads, losses


def head(scores="softmax", n_classes=5, **changes):
    named = {"head": "mlp" if changes.get("hidden_units") else "linear", "scores": scores}
    settings = named | {"hidden_units": 0, "embedding_size": 128, "precision": "float32", "seed": 1}
    return heads.build_head(n_classes=n_classes, **(settings | changes))


def embeddings(n=6):
    return np.random.default_rng(0).gamma(1.0, 5.0, (n, 128)).astype(np.float32)


def test_a_plain_head_is_one_matrix_and_a_bias():
    model = head()

    assert [layer.name for layer in model.layers if layer.weights] == ["logits"]
    kernel, bias = model.get_weights()
    np.testing.assert_allclose(
        model(embeddings()).numpy(), embeddings() @ kernel + bias, rtol=1e-4, atol=1e-5
    )


def test_a_hidden_layer_stands_between_with_relu():
    model = head(hidden_units=100)

    assert [layer.name for layer in model.layers if layer.weights] == ["hidden", "logits"]
    first, first_bias, second, bias = model.get_weights()
    assert first.shape == (128, 100) and second.shape == (100, 5)
    expected = np.maximum(embeddings() @ first + first_bias, 0.0) @ second + bias
    np.testing.assert_allclose(model(embeddings()).numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize("hidden_units", [0, 100])
def test_first_scores_are_near_one_over_c_and_yet_tell_patches_apart(kind, hidden_units):
    model = head(kind, n_classes=50, hidden_units=hidden_units)

    scores = heads.scores(model(embeddings(64)), kind).numpy()

    assert scores.mean() == pytest.approx(1 / 50, rel=0.8)
    assert scores.max() < 0.3
    assert np.ptp(scores, axis=0).max() > 1e-4


def test_softmax_scores_sum_to_one():
    logits = np.array([[0.0, np.log(3.0)], [1000.0, -1000.0]])

    scores = heads.scores(logits, "softmax").numpy()

    np.testing.assert_allclose(scores, [[0.25, 0.75], [1.0, 0.0]], atol=1e-6)
    assert scores.dtype == np.float32


def test_sigmoid_scores_each_class_by_itself():
    logits = np.array([[0.0, np.log(3.0), -1000.0, 1000.0]], np.float32)

    np.testing.assert_allclose(heads.scores(logits, "sigmoid").numpy(), [[0.5, 0.75, 0.0, 1.0]], atol=1e-6)


def test_logits_stay_float32_in_mixed_precision():
    model = head(hidden_units=100, precision="mixed_bfloat16")

    assert model.get_layer("hidden").compute_dtype == "bfloat16"
    assert model(embeddings()).numpy().dtype == np.float32
    assert model.get_layer("logits").compute_dtype == "float32"


def test_the_seed_decides_the_weights():
    one, same, other = (head(hidden_units=10, seed=seed).get_weights() for seed in (5, 5, 6))

    assert all(np.array_equal(a, b) for a, b in zip(one, same, strict=True))
    assert not np.array_equal(one[0], other[0])
    assert not np.array_equal(one[2], other[2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scores": "tanh"}, r"model\.output: tanh.*softmax, sigmoid"),
        ({"head": "softmax"}, r"model\.head: softmax.*linear, mlp, attention"),
        ({"n_classes": 1}, "at least 2 classes, and got 1"),
        ({"head": "mlp", "hidden_units": 0}, "hidden-units: 0"),
    ],
)
def test_settings_that_make_no_head_are_refused(arguments, message):
    with pytest.raises(SettingsError, match=message):
        head(**arguments)


def test_scores_of_an_unknown_kind_are_refused():
    with pytest.raises(SettingsError, match="softmax, sigmoid"):
        heads.scores(np.zeros((1, 2)), "none")


# ---- attention ------------------------------------------------------------------------------------


def patches_of(recordings=3, places=4, n_classes=5, size=3.0):
    rng = np.random.default_rng(2)
    logits = rng.normal(0, size, (recordings * places, n_classes)).astype(np.float32)
    inside = np.arange(places) < np.array([[places], [2], [1]])[:recordings]
    return logits, rng.normal(0, 2, recordings * places).astype(np.float32), inside


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_the_score_of_a_recording_is_the_mean_of_its_patches_scores_by_attention(kind):
    logits, attention, inside = patches_of()

    found = heads.scores(heads.clip_logits(logits, attention, inside, kind), kind).numpy()

    of_windows = heads.scores(logits, kind).numpy().reshape(3, 4, 5)
    for row, count in enumerate((4, 2, 1)):
        share = np.exp(attention.reshape(3, 4)[row, :count])
        expected = (share / share.sum()) @ of_windows[row, :count]
        np.testing.assert_allclose(found[row], expected, atol=1e-6)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_what_fills_up_a_recording_has_no_say(kind):
    logits, attention, inside = patches_of()
    other = np.where(inside.reshape(-1, 1), logits, 99.0), np.where(inside.reshape(-1), attention, 99.0)

    found = heads.clip_logits(*(array.astype(np.float32) for array in other), inside, kind).numpy()

    np.testing.assert_array_equal(found, heads.clip_logits(logits, attention, inside, kind).numpy())


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_however_sure_the_patches_are_the_gradients_are_finite(kind):
    logits, attention, inside = (tf.constant(array) for array in patches_of(size=300.0))

    with tf.GradientTape() as tape:
        tape.watch([logits, attention])
        found = heads.clip_logits(logits, attention, inside, kind)
        targets = np.eye(found.shape[-1])[[0, 1, 2]]
        loss = tf.reduce_sum(losses.example_losses(found, targets, kind, label_smoothing=0.0))

    assert np.isfinite(found.numpy()).all() and loss > 10
    assert all(np.isfinite(gradient.numpy()).all() for gradient in tape.gradient(loss, [logits, attention]))


def test_attention_begins_with_all_patches_alike_and_can_learn_to_tell_them_apart():
    model = heads.build_attention(hidden_units=8, embedding_size=128, precision="float32", seed=1)

    assert model(embeddings()).numpy().tolist() == [0.0] * 6
    hidden = keras.Model(model.input, model.get_layer("hidden").output)(embeddings()).numpy()
    assert np.ptp(hidden, axis=0).min() > 0.05  # neither dead nor saturated
