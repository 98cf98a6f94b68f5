"""The network: its table, its weights, its freeze points."""

import keras
import numpy as np
import pytest

from birdtune.errors import CheckpointError, SettingsError
from birdtune.models import vggish
from birdtune.models.registry import BACKBONES, named


def small(**changes):
    settings = {"embedding_activation": "relu", "precision": "float32", "seed": 1}
    return BACKBONES["vggish-small"].network(**(settings | changes))


def noise(n=4):
    return np.random.default_rng(0).normal(-3.43, 2.13, (n, 96, 64)).astype(np.float32)


def arrays_for(backbone, scale=0.05):
    random = np.random.default_rng(3)
    return {
        name: (scale * random.standard_normal(shape)).astype(np.float32)
        for name, shape in BACKBONES[backbone].variables().items()
    }


def test_the_variables_of_vggish_are_the_published_ones():
    def layer(scope, *shape):
        return {f"vggish/{scope}/weights": shape, f"vggish/{scope}/biases": shape[-1:]}

    assert BACKBONES["vggish"].variables() == {
        **layer("conv1", 3, 3, 1, 64),
        **layer("conv2", 3, 3, 64, 128),
        **layer("conv3/conv3_1", 3, 3, 128, 256),
        **layer("conv3/conv3_2", 3, 3, 256, 256),
        **layer("conv4/conv4_1", 3, 3, 256, 512),
        **layer("conv4/conv4_2", 3, 3, 512, 512),
        **layer("fc1/fc1_1", 12288, 4096),
        **layer("fc1/fc1_2", 4096, 4096),
        **layer("fc2", 4096, 128),
    }


def test_vggish_has_the_published_number_of_parameters():
    backbone = BACKBONES["vggish"].network(embedding_activation="relu", precision="float32", seed=None)

    assert backbone.count_params() == 72_141_184


def test_the_small_network_is_an_eighth_as_wide_with_the_same_embedding():
    full, reduced = BACKBONES["vggish"].variables(), BACKBONES["vggish-small"].variables()

    assert list(full) == list(reduced)
    assert reduced["vggish/conv1/weights"] == (3, 3, 1, 8)
    assert reduced["vggish/fc1/fc1_1/weights"] == (1536, 512)
    assert reduced["vggish/fc2/weights"] == (512, 128)


def test_every_layer_of_the_table_has_the_shape_of_its_variable():
    backbone = small()

    for row in vggish.LAYERS:
        layer = backbone.get_layer(row.name)
        assert (
            tuple(layer.kernel.shape) == BACKBONES["vggish-small"].variables()[f"{row.scope}/weights"]
        )
    pools = [layer.name for layer in backbone.layers if layer.name.startswith("pool")]
    assert pools == ["pool1", "pool2", "pool3", "pool4"]
    assert tuple(backbone.get_layer("pool4").output.shape) == (None, 6, 4, 64)


def test_windows_become_embeddings_of_128_numbers():
    backbone = small()

    assert backbone.input_shape == (None, 96, 64)
    assert backbone.inputs[0].name == "input_features"
    assert backbone(noise(2)).shape == (2, 128)


def test_relu_cuts_the_embedding_at_zero_and_none_does_not():
    cut, uncut = small(), small(embedding_activation="none")

    raw = uncut(noise()).numpy()
    assert raw.min() < -0.1
    np.testing.assert_allclose(cut(noise()).numpy(), np.maximum(raw, 0.0), atol=1e-5)


def test_fresh_weights_keep_the_signal_alive_through_all_layers():
    embeddings = small(embedding_activation="none")(noise(16)).numpy()

    assert 0.5 < embeddings.std() < 50.0
    assert np.ptp(embeddings, axis=0).max() > 0.1  # windows differ from one another


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    one, same, other = (small(seed=seed).get_weights() for seed in (5, 5, 6))

    assert all(np.array_equal(a, b) for a, b in zip(one, same, strict=True))
    assert not np.array_equal(one[0], other[0])


def test_layers_of_one_shape_start_from_different_weights():
    backbone = small()

    # Without seeds of their own these would share their first numbers.
    first = backbone.get_layer("fc1_2").kernel.numpy().ravel()[:100] * np.sqrt(512)
    second = backbone.get_layer("fc2").kernel.numpy().ravel()[:100] * np.sqrt(512)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.5


def test_weights_start_with_he_variance_and_biases_at_zero():
    layer = small().get_layer("fc1_1")

    assert layer.kernel.numpy().std() == pytest.approx(np.sqrt(2 / 1536), rel=0.02)
    assert not layer.bias.numpy().any()


def test_without_a_seed_nothing_is_drawn():
    assert not any(weight.any() for weight in small(seed=None).get_weights())


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_computes_low_and_gives_float32(precision):
    mixed, plain = small(precision=precision), small()

    embeddings = mixed(noise())
    assert keras.backend.standardize_dtype(embeddings.dtype) == "float32"
    assert mixed.get_layer("conv1").compute_dtype == precision.removeprefix("mixed_")
    assert mixed.get_layer("pool4").compute_dtype == precision.removeprefix("mixed_")
    assert mixed.get_layer("conv1").kernel.dtype == "float32"
    expected = plain(noise()).numpy()
    difference = np.abs(embeddings.numpy() - expected).max()
    assert 0.0 < difference < 0.03 * expected.max()


def test_loaded_weights_are_the_weights_in_use():
    backbone, arrays = small(), arrays_for("vggish-small")

    BACKBONES["vggish-small"].load(backbone, arrays)

    for row in vggish.LAYERS:
        kernel, bias = backbone.get_layer(row.name).get_weights()
        np.testing.assert_array_equal(kernel, arrays[f"{row.scope}/weights"])
        np.testing.assert_array_equal(bias, arrays[f"{row.scope}/biases"])


def test_a_head_in_the_checkpoint_is_passed_over_and_doubles_are_taken():
    arrays = {name: array.astype(np.float64) for name, array in arrays_for("vggish-small").items()}

    BACKBONES["vggish-small"].load(small(), arrays | {"mymodel/logits/weights": np.zeros((100, 3))})


def test_all_that_is_missing_or_misshapen_stands_in_one_message():
    backbone, arrays = small(), arrays_for("vggish-small")
    before = backbone.get_weights()
    del arrays["vggish/conv2/biases"], arrays["vggish/fc2/weights"]
    arrays["vggish/conv1/weights"] = np.zeros((3, 3, 3, 8), np.float32)
    arrays["vggish/fc1/fc1_1/biases"] = np.zeros(7, np.float32)
    arrays["vggish/conv4/conv4_2/biases"][3] = np.nan
    arrays["resnet/stem\x1b[2J"] = np.zeros(1, np.float32)

    with pytest.raises(CheckpointError) as caught:
        BACKBONES["vggish-small"].load(backbone, arrays, source="birds.ckpt")

    message = str(caught.value)
    assert message.startswith("birds.ckpt: ")
    assert "missing: vggish/conv2/biases, vggish/fc2/weights." in message
    assert "vggish/conv1/weights is [3, 3, 3, 8], not [3, 3, 1, 8]" in message
    assert "vggish/fc1/fc1_1/biases is [7], not [512]" in message
    assert "NaN or infinity: vggish/conv4/conv4_2/biases." in message
    assert "not expected, but there: resnet/stem\\x1b[2J." in message
    assert "conv3" not in message
    assert all(np.array_equal(a, b) for a, b in zip(before, backbone.get_weights(), strict=True))


def test_a_long_list_of_other_variables_is_cut():
    with pytest.raises(CheckpointError, match=r"other00, .*other07 and 13 more"):
        BACKBONES["vggish-small"].load(small(), {f"other{i:02}": np.zeros(1) for i in range(21)})


def trainable(backbone):
    return [row.name for row in vggish.LAYERS if backbone.get_layer(row.name).trainable]


@pytest.mark.parametrize(
    ("point", "first_free"),
    [("none", 0), ("conv1", 1), ("conv3_1", 3), ("conv", 6), ("fc1_1", 7), ("fc2", 9), ("all-but-head", 9)],
)
def test_freezing_holds_a_layer_and_all_before_it(point, first_free):
    backbone = small()

    BACKBONES["vggish-small"].freeze(backbone, point)

    free = [row.name for row in vggish.LAYERS][first_free:]
    assert trainable(backbone) == free
    assert [variable.path.split("/")[0] for variable in backbone.trainable_variables[::2]] == free
    assert len(backbone.variables) == 18


def test_a_later_freeze_replaces_an_earlier_one():
    backbone = small()
    BACKBONES["vggish-small"].freeze(backbone, "all-but-head")

    BACKBONES["vggish-small"].freeze(backbone, "conv1")

    assert trainable(backbone)[0] == "conv2"


def test_what_to_freeze_next_is_a_freeze_point_of_the_backbone_with_less_left_to_train() -> None:
    for backbone in BACKBONES.values():
        for point in backbone.freeze_points:
            further = backbone.next_freeze_point(point)
            frozen = backbone.frozen_layers(point)
            assert (further is None) == (frozen == len(backbone.layers))
            assert further is None or backbone.frozen_layers(further) > frozen
    assert BACKBONES["vggish"].next_freeze_point("none") == "conv" != BACKBONES["yamnet"].next_freeze_point("none")


@pytest.mark.parametrize("point", ["conv9", "", "None", "pool1"])
def test_an_unknown_freeze_point_is_refused_with_the_choices(point):
    with pytest.raises(SettingsError, match=r"model\.freeze.*none, conv, all-but-head, conv1, .*fc2"):
        BACKBONES["vggish-small"].freeze(small(), point)


def test_unknown_backbones_and_activations_are_refused_with_the_choices():
    with pytest.raises(SettingsError, match=r"resnet.*vggish, vggish-small"):
        named("resnet")
    with pytest.raises(SettingsError, match=r"gelu.*relu, none"):
        small(embedding_activation="gelu")
