"""Heads: logits from embeddings, scores from logits."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from birdtune.errors import SettingsError
from birdtune.models import classifier as classifiers
from birdtune.models import heads, losses
from birdtune.models.growth import grown
from birdtune.models.head_kinds import HEAD_KINDS, require_tensorflow_1
from birdtune.models.registry import BACKBONES
from birdtune.settings import ModelSettings


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
        ({"head": "softmax"}, r"model\.head: softmax.*linear, mlp, attention, sed-attention, prototype"),
        ({"n_classes": 1}, "at least 2 classes, and got 1"),
        ({"head": "mlp", "hidden_units": 0}, "hidden-units: 0"),
        ({"head": "prototype", "prototypes": 0}, r"model\.prototypes: 0"),
    ],
)
def test_settings_that_make_no_head_are_refused(arguments, message):
    with pytest.raises(SettingsError, match=message):
        head(**arguments)


def test_scores_of_an_unknown_kind_are_refused():
    with pytest.raises(SettingsError, match="softmax, sigmoid"):
        heads.scores(np.zeros((1, 2)), "none")


def test_several_hidden_layers_lie_one_behind_another():
    model = head(hidden_units="64,32,5")
    assert [layer.name for layer in model.layers if layer.weights] == ["hidden", "hidden2", "hidden3", "logits"]
    assert [layer.units for layer in model.layers if layer.weights] == [64, 32, 5, 5]


# ---- every head -----------------------------------------------------------------------------------


def test_every_head_can_be_set_and_its_weights_are_those_that_are_written_of_it():
    assert set(HEAD_KINDS) == set(heads.HEADS) == set(ModelSettings.model_fields["head"].annotation.__args__)
    for name, kind in HEAD_KINDS.items():
        found = classifiers.build(
            BACKBONES["vggish-small"], head=name, scores="sigmoid", hidden_units=3, prototypes=2, context=4,
            embedding_activation="relu", freeze="all-but-head", classes=("a", "b"), precision="float32", seed=1,
        )
        assert kind.weights == tuple(each for each in classifiers.weights(found) if not each.startswith("backbone/"))


def test_a_head_without_a_tensorflow_1_graph_is_refused_and_those_with_one_are_named():
    require_tensorflow_1("mlp")
    with pytest.raises(SettingsError, match=r"model\.head prototype.*--model\.head linear or mlp"):
        require_tensorflow_1("prototype")


# ---- prototypes -----------------------------------------------------------------------------------


def prototypes(scores="softmax", n_classes=5, n=3, **changes):
    return head(scores, n_classes, head="prototype", prototypes=n, **changes)


def test_a_logit_is_the_scaled_similarity_to_the_nearest_prototype_of_the_class():
    model = prototypes()
    layer = model.get_layer("logits")
    layer.log_scale.assign(np.log([30.0, 60.0, 60.0, 60.0, 1e4]))
    layer.bias.assign([0.0, 1.0, 2.0, 3.0, 4.0])

    found = model(embeddings()).numpy()

    directions = layer.kernel.numpy() / np.linalg.norm(layer.kernel.numpy(), axis=0)
    rows = embeddings() / np.linalg.norm(embeddings(), axis=1, keepdims=True)
    cosines = np.einsum("nk,kpc->npc", rows, directions)
    scale = np.array([30.0, 60.0, 60.0, 60.0, 1e4])
    smooth = np.log(np.exp(scale[:4] * cosines[..., :4]).mean(axis=1)) + np.arange(4)
    np.testing.assert_allclose(found[:, :4], smooth, rtol=1e-4, atol=1e-4)
    # However large the scale, nothing overflows: then it is the nearest alone.
    np.testing.assert_allclose(found[:, 4] / 1e4, cosines[..., 4].max(axis=1), atol=1e-3)


def test_how_loud_an_embedding_is_does_not_matter_and_silence_is_like_nothing():
    model = prototypes()

    np.testing.assert_allclose(model(embeddings()), model(100.0 * embeddings()), atol=1e-4)
    assert not model(np.zeros((2, 128), np.float32)).numpy().any()  # neither NaN


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_first_scores_of_prototypes_are_near_one_over_c_and_yet_tell_windows_apart(kind):
    scores = heads.scores(prototypes(kind, n_classes=50)(embeddings(64)), kind).numpy()

    assert scores.mean() == pytest.approx(1 / 50, rel=0.8) and scores.max() < 0.3
    assert np.ptp(scores, axis=0).max() > 1e-4


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_prototypes_learn_classes_of_sounds_that_have_nothing_in_common(kind):
    rng = np.random.default_rng(4)
    one = rng.normal(0, 1, (3, 128)).astype(np.float32)
    number = np.arange(240) % 6
    # Of each class two kinds of sound, the opposite of each other: no single direction is like both.
    rows = np.concatenate([one, -one])[number] + rng.normal(0, 0.1, (240, 128)).astype(np.float32)
    truth = np.eye(3, dtype=np.float32)[number % 3]
    right = {}
    for n in (1, 2):
        model = prototypes(kind, n_classes=3, n=n)
        optimizer = keras.optimizers.Adam(1e-2)
        for _ in range(60):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(losses.example_losses(model(rows), truth, kind, label_smoothing=0.0))
            gradients = tape.gradient(loss, model.trainable_variables)
            # Every prototype moves, also one that is not the nearest to anything at first.
            assert (np.linalg.norm(gradients[0].numpy(), axis=0) > 0).all()
            optimizer.apply(gradients, model.trainable_variables)
        right[n] = (model(rows).numpy().argmax(axis=1) == number % 3).mean()

    assert right[1] < 0.8 and right[2] == 1.0


def test_a_new_class_is_like_nothing_that_was_learnt_and_the_old_logits_stay():
    old, fresh = prototypes(n_classes=3), prototypes(n_classes=4, seed=2)
    layer = old.get_layer("logits")
    # As learnt from embeddings that have much in common, and other sounds like these.
    rng = np.random.default_rng(5)
    common = rng.gamma(1.0, 1.0, 128)
    layer.kernel.assign(np.abs(common[:, None, None] + rng.normal(0, 1, layer.kernel.shape)))
    rows = np.abs(common + rng.normal(0, 1, (64, 128))).astype(np.float32)
    layer.log_scale.assign([3.4, 3.5, 3.6])
    layer.bias.assign([-0.1, 0.0, 0.1])
    before, after = ({f"head/logits/{v.name}": v.numpy() for v in model.variables} for model in (old, fresh))

    found = grown(before, after)
    for variable in fresh.variables:
        variable.assign(found[f"head/logits/{variable.name}"])

    logits = fresh(rows).numpy()
    np.testing.assert_allclose(logits[:, :3], old(rows).numpy(), atol=1e-4)
    assert heads.scores(logits, "softmax").numpy()[:, 3].max() < 1 / 4
    assert found["head/logits/log_scale"][3] == pytest.approx(3.5) and found["head/logits/bias"][3] == 0.0


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
