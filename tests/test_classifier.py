"""Backbone and head together, and their weights as named arrays."""

import numpy as np
import pytest

from birdtune.errors import CheckpointError, SettingsError
from birdtune.models import classifier as classifiers
from birdtune.models import heads
from birdtune.models.registry import BACKBONES

CLASSES = ("Aquila_ficta", "Noise_noise", "Parus_ficta")


def made(**changes):
    settings = {
        "backbone": BACKBONES["vggish-small"],
        "head": "linear",
        "scores": "softmax",
        "hidden_units": 0,
        "embedding_activation": "relu",
        "freeze": "none",
        "classes": CLASSES,
        "precision": "float32",
        "seed": 1,
    }
    return classifiers.build(**(settings | changes))


def noise(n=4):
    return np.random.default_rng(0).normal(-3.43, 2.13, (n, 96, 64)).astype(np.float32)


def test_the_classifier_remembers_what_it_was_built_of():
    model = made(head="mlp", scores="sigmoid", hidden_units=100, embedding_activation="none")

    assert (model.head_name, model.kind, model.classes) == ("mlp", "sigmoid", CLASSES)
    assert (model.backbone.name, model.hidden_units, model.embedding_activation) == ("vggish-small", 100, "none")
    assert (made().hidden_units, made().embedding_activation) == (0, "relu")


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_scores_are_those_of_the_head_on_the_embedding(kind):
    model = made(scores=kind)

    scores, embeddings = model.scores(noise())

    assert scores.shape == (4, 3) and embeddings.shape == (4, 128)
    np.testing.assert_array_equal(embeddings.numpy(), model.embed(noise()).numpy())
    expected = heads.scores(model.head(model.network(noise())), kind).numpy()
    np.testing.assert_allclose(scores.numpy(), expected, atol=1e-6)


def test_mixed_precision_gives_float32_embeddings_and_scores():
    model = made(precision="mixed_bfloat16", head="mlp", hidden_units=10)

    scores, embeddings = model.scores(noise())

    assert scores.numpy().dtype == embeddings.numpy().dtype == np.float32
    assert model.head(embeddings).numpy().dtype == np.float32


def test_the_float32_copy_has_the_weights_and_none_of_the_rounding():
    settings = {"head": "mlp", "scores": "sigmoid", "hidden_units": 10, "embedding_activation": "none", "seed": 7}
    mixed, plain = made(precision="mixed_bfloat16", freeze="conv", **settings), made(**settings)

    copy = classifiers.in_float32(mixed)

    np.testing.assert_allclose(copy.scores(noise())[0].numpy(), plain.scores(noise())[0].numpy(), atol=1e-6)
    assert not np.allclose(mixed.scores(noise())[0].numpy(), plain.scores(noise())[0].numpy(), atol=1e-6)
    assert (copy.kind, copy.classes) == (mixed.kind, mixed.classes)


def test_freezing_leaves_the_head_free_and_all_variables_listed():
    model = made(freeze="all-but-head", head="mlp", hidden_units=10)

    assert [variable.path for variable in model.trainable_variables] == [
        "hidden/kernel",
        "hidden/bias",
        "logits/kernel",
        "logits/bias",
    ]
    assert len(model.variables) == 18 + 4


def test_weights_have_stable_names():
    names = list(classifiers.weights(made(head="mlp", hidden_units=10)))

    assert names[:2] == ["backbone/conv1/kernel", "backbone/conv1/bias"]
    assert "backbone/conv3_2/kernel" in names
    assert names[-4:] == ["head/hidden/kernel", "head/hidden/bias", "head/logits/kernel", "head/logits/bias"]
    assert len(names) == 22


def test_frozen_weights_are_among_the_weights():
    assert list(classifiers.weights(made(freeze="all-but-head"))) == list(classifiers.weights(made()))


def test_weights_are_a_copy_that_later_training_does_not_change():
    model = made()
    before = classifiers.weights(model)
    kept = before["head/logits/bias"].copy()

    model.head.get_layer("logits").bias.assign([9.0, 9.0, 9.0])

    np.testing.assert_array_equal(before["head/logits/bias"], kept)


def test_weights_go_from_one_classifier_to_another_bit_by_bit():
    source, target = made(seed=1), made(seed=2)
    assert not np.array_equal(source.scores(noise())[0].numpy(), target.scores(noise())[0].numpy())

    classifiers.load_weights(target, classifiers.weights(source))

    np.testing.assert_array_equal(source.scores(noise())[0].numpy(), target.scores(noise())[0].numpy())


def test_loading_names_all_that_does_not_fit_and_loads_nothing():
    model, arrays = made(head="mlp", hidden_units=10), classifiers.weights(made(seed=2))
    before = classifiers.weights(model)
    arrays["head/surplus/kernel"] = np.zeros(2, np.float32)
    arrays["backbone/conv1/bias"] = np.zeros(9, np.float32)

    with pytest.raises(CheckpointError) as caught:
        classifiers.load_weights(model, arrays, source="epoch-0003")

    message = str(caught.value)
    assert message.startswith("epoch-0003: ")
    assert "missing: head/hidden/kernel, head/hidden/bias." in message
    assert "backbone/conv1/bias is [9], not [8]" in message
    assert "head/logits/kernel is [128, 3], not [10, 3]" in message
    assert "not expected, but there: head/surplus/kernel." in message
    after = classifiers.weights(model)
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_weights_that_nobody_expects_are_refused_even_if_all_others_fit():
    arrays = classifiers.weights(made(head="mlp", hidden_units=128))

    with pytest.raises(
        CheckpointError, match="not expected, but there: head/hidden/bias, head/hidden/kernel"
    ):
        classifiers.load_weights(made(), arrays)


def test_the_digest_is_the_same_for_the_same_seed_and_another_for_another():
    one, same, other = (classifiers.weights_sha256(classifiers.weights(made(seed=s))) for s in (1, 1, 2))

    assert len(one) == 64
    assert one == same != other


def test_the_digest_does_not_depend_on_order_byte_order_or_memory_layout():
    a, b = np.arange(6, dtype="<f4").reshape(2, 3), np.ones(2, "<f4")
    digest = classifiers.weights_sha256({"a": a, "b": b})

    assert digest == classifiers.weights_sha256({"b": b, "a": a})
    assert digest == classifiers.weights_sha256({"a": a.astype(">f4"), "b": b})
    assert digest == classifiers.weights_sha256({"a": np.asfortranarray(a), "b": b})


@pytest.mark.parametrize(
    "other",
    [
        {"a": np.arange(6, dtype="<f4").reshape(3, 2), "b": np.ones(2, "<f4")},  # another shape
        {"c": np.arange(6, dtype="<f4").reshape(2, 3), "b": np.ones(2, "<f4")},  # another name
        {"a": np.arange(6, dtype="<i4").reshape(2, 3), "b": np.ones(2, "<f4")},  # another type
        {"a": np.arange(6, dtype="<f4").reshape(2, 3), "b": np.array([1, 1.0000001], "<f4")},  # one bit
        {"a": np.arange(6, dtype="<f4").reshape(2, 3)},
    ],
)
def test_the_digest_changes_with_anything_else(other):
    arrays = {"a": np.arange(6, dtype="<f4").reshape(2, 3), "b": np.ones(2, "<f4")}

    assert classifiers.weights_sha256(arrays) != classifiers.weights_sha256(other)


def test_the_digest_is_one_that_was_written_down():
    arrays = {"b": np.array([1.5], np.float32), "a": np.zeros((1, 2), np.float32)}

    # Of '["a", "<f4", [1, 2]]\n', eight zero bytes, '["b", "<f4", [1]]\n', 00 00 c0 3f.
    assert (
        classifiers.weights_sha256(arrays)
        == "a7f99fa131c1e5f4739fb870b5fcb607549cc49a88f69a0e97a155f4ecf96999"
    )


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"head": "softmax"}, "model.head"),
        ({"scores": "linear"}, "model.output"),
        ({"freeze": "half"}, "model.freeze"),
        ({"embedding_activation": "tanh"}, "model.embedding-activation"),
        ({"classes": ("only",)}, "at least 2 classes"),
    ],
)
def test_settings_that_make_no_classifier_are_refused(change, word):
    with pytest.raises(SettingsError, match=word):
        made(**change)
