"""The head's first weights from the classifier that the backbone was published with."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from test_tflite_backbone import SIZE, Made, config, converted

from birdtune.config import Config
from birdtune.errors import CheckpointError, SettingsError
from birdtune.models import head_start, registry
from birdtune.models import published as published_classes
from birdtune.training.first_weights import build_classifier, load_first_weights, with_head_rate

LABELS = ("Apus apus_Swift", "Bubo bubo_Eagle-Owl", "Pica pica_Raven", "Corvus corax_Raven")


@pytest.fixture(scope="module")
def kernel() -> np.ndarray[Any, Any]:
    return np.random.default_rng(3).normal(0, 0.5, (SIZE, len(LABELS))).astype(np.float32)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory, kernel: np.ndarray[Any, Any]) -> Path:
    """A model built like BirdNET's, which ends in a layer of four classes."""
    made = Made()
    made.dense = tf.Variable(kernel)
    path = converted(tmp_path_factory.mktemp("model") / "made.tflite", made.function, made)
    path.with_name("made labels.txt").write_text("\n".join(LABELS))
    return path


def published(path: Path, **settings: Any) -> Config:
    return config(path, head_weights="published", **settings)


def labels_of(config: Config, *classes: str) -> dict[str, str]:
    found = head_start.find(config, classes)
    return {} if found is None else dict(found.labels)


def test_classes_begin_from_the_published_class_of_their_name_and_others_do_not(path: Path) -> None:
    found = labels_of(published(path), "Parus major", "eagle owl", "Apus_apus", "Raven")  # two labels are "Raven"
    assert found == {"eagle owl": LABELS[1], "Apus_apus": LABELS[0]}


@pytest.mark.parametrize("changed", [{"head_weights": "random"}, {"head": "mlp"}, {"head": "prototype"}])
def test_heads_that_the_published_classifier_does_not_fit_begin_at_random(path: Path, changed: Any) -> None:
    assert head_start.find(config(path, **changed), ("Apus apus",)) is None


def test_published_weights_that_are_asked_for_and_do_not_fit_are_refused(path: Path) -> None:
    for changed, classes, said in (
        ({"head": "mlp"}, (), "a published classifier is linear, and --model.head mlp is not"),
        ({}, ("Parus major", "Rain"), "of its own classes, but no class of the data is among them"),
    ):
        with pytest.raises(SettingsError, match=said):
            head_start.find(published(path, **changed), classes)
    unlike = {"backbone": "yamnet", "embedding_activation": "none", "head_weights": "published"}
    with pytest.raises(SettingsError, match=r"published with --model\.embedding-activation relu"):
        head_start.require(Config(model=unlike))
    with pytest.raises(SettingsError, match="comes without a classifier of its own"):
        head_start.find(Config(model={"head_weights": "published", "backbone": "vggish"}), ())


def test_on_embeddings_published_weights_and_classes_are_refused_with_the_reason(tmp_path: Path) -> None:
    arrays = {"embeddings": np.eye(4, dtype=np.float32), "recording": np.array(list("abcd"))}
    np.savez(tmp_path / "e.npz", label=np.array(list("xxyy")), **arrays)
    of_both = {"head_weights": "published", "keep_classes": "all"}
    settings = Config(data=tmp_path / "e.npz", model=of_both)
    with pytest.raises(SettingsError, match=r"published: the data are embeddings, on which every head begins at rand"):
        head_start.find(settings, ())
    with pytest.raises(SettingsError, match=r"keep-classes: works on sound, and .*e\.npz holds embeddings"):
        published_classes.keep(settings, ())


def test_a_backbone_whose_classifier_is_worth_it_starts_heads_without_being_told(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = registry.backbone_of(config(path))
    assert backbone.published is not None
    assert labels_of(config(path), "Apus apus") == {}
    like_birdnet = replace(backbone, published=replace(backbone.published, starts_heads=True))
    monkeypatch.setattr(registry, "backbone_of", lambda settings: like_birdnet)
    assert labels_of(config(path), "Apus apus") == {"Apus apus": LABELS[0]}


def test_what_is_said_names_each_pair(path: Path) -> None:
    found = head_start.find(published(path), ("Parus major", "Apus_apus"))
    assert found is not None
    (line,) = found.lines()
    assert line.startswith("head: 1 of 2 classes begins from ") and line.endswith("Apus_apus = Apus apus_Swift")
    assert "none of 2 classes has the name" in next(replace(found, columns={}, labels={}).lines())
    assert "are not known" in next(replace(found, columns={}, labels={}, are_named=False).lines())


@pytest.mark.parametrize("head", ["linear", "attention"])
def test_the_head_begins_with_the_columns_of_its_classes(path: Path, kernel: Any, head: str) -> None:
    chosen, classes = published(path, head=head), ("Bubo bubo", "Parus major", "Apus apus")
    classifier = build_classifier(chosen, classes, "float32")
    fresh = classifier.head.get_layer("logits").kernel.numpy()
    load_first_weights(classifier, chosen, start=head_start.find(chosen, classes))
    logits = classifier.head.get_layer("logits")
    np.testing.assert_allclose(logits.kernel.numpy()[:, [0, 2]], kernel[:, [1, 0]], atol=1e-6)
    np.testing.assert_array_equal(logits.kernel.numpy()[:, 1], fresh[:, 1])
    # One against the two others, as published logits are of yes against no.
    np.testing.assert_allclose(logits.bias.numpy(), [0, -np.log(2), 0], atol=1e-6)


def test_a_head_that_knows_all_its_classes_learns_slower_unless_a_rate_is_set(path: Path) -> None:
    def rate(chosen: Config, *classes: str) -> float:
        return with_head_rate(chosen.train, head_start.find(chosen, classes)).head_factor

    assert rate(published(path), "Apus apus", "Bubo bubo") == 1
    assert rate(published(path), "Apus apus", "Parus major") == 10
    assert rate(config(path, head_weights="random"), "Apus apus", "Bubo bubo") == 10
    chosen = published(path)
    chosen = chosen.model_copy(update={"train": chosen.train.model_copy(update={"head_lr_multiplier": 30.0})})
    assert rate(chosen, "Apus apus", "Bubo bubo") == 30


def test_behind_a_base_model_new_classes_alone_begin_so_and_the_rate_is_by_all_of_them(path: Path) -> None:
    def found(*classes: str, **settings: Any) -> head_start.HeadStart:
        start = head_start.find(published(path, **settings), classes, "version 3", 2)
        assert start is not None
        return start

    some = found("Parus major", "Apus apus", "Bubo bubo", "Turdus merula")
    assert some.columns == {"Bubo bubo": 1} and not some.knows_all
    (line,) = some.lines()
    assert line.startswith("head: 1 of 2 new classes begins from ")
    everything, none_new = found("Bubo bubo", "Apus apus", "eagle owl"), found("Bubo bubo", "Apus apus")
    assert everything.knows_all and none_new.knows_all and not list(none_new.lines()) and not none_new.columns
    changed = replace(some, columns={}, labels={}, has_changed=True)
    assert "as the mean of the others; the backbone of version 3 was trained" in next(iter(changed.lines()))
    with pytest.raises(SettingsError, match="no class of the data is among them"):
        found("Bubo bubo", "Apus apus", "Turdus merula")


def test_two_names_of_one_published_class_are_pointed_out(path: Path) -> None:
    found = head_start.find(published(path), ("Apus apus", "Swift", "Bubo bubo"))
    assert found is not None
    _, remark = found.lines()
    assert "Apus apus and Swift are both" in remark and "one folder" in remark


def test_a_classifier_that_is_damaged_is_refused_before_anything_begins_from_it(path: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.tflite"
    content = path.read_bytes()
    kernel = registry.backbone_of(config(path)).arrays()["logits/kernel"].T.tobytes()  # as the file has it
    assert content.count(kernel) == 1
    damaged.write_bytes(content.replace(kernel, b"\xff" * len(kernel)))
    with pytest.raises(CheckpointError, match=r"NaN or infinity among its weights .logits/kernel.*damaged"):
        registry.backbone_of(config(damaged)).arrays()
