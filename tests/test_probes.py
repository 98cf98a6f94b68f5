"""birdtune.training.probes: heads on embeddings obey the settings of training that concern their examples."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_job import settings, write_data

from birdtune.config import Config
from birdtune.data import dataset as gather
from birdtune.models.registry import BACKBONES
from birdtune.runtime.log import Journal
from birdtune.runtime.signals import Interrupts
from birdtune.training import embeddings, probes

pytestmark = pytest.mark.usefixtures("in_one_process")


@pytest.mark.parametrize("head", ["linear", "attention"])
def test_folds_share_what_is_compiled_and_classes_weigh_by_how_often_they_are_among_a_fold_s_own_examples(
    tmp_path: Path, head: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(write_data(tmp_path / "in" / "data"), tmp_path / "out", train__class_weight_alpha=1.0)
    config = config.with_output("softmax")
    journal, interrupts = Journal(quiet=True), Interrupts()
    dataset, store = gather.prepare(config, BACKBONES["vggish-small"].front_end, journal, interrupts)
    classifier, found = embeddings.embed(
        config, dataset, store, dataset.recordings, journal, interrupts, what="test"
    )
    learner = probes.Head(head, classifier, found, config, interrupts)
    shapes: list[object] = []
    forward = learner._scorer
    monkeypatch.setattr(learner, "_scorer", lambda given: shapes.append(given.shape) or forward(given))
    monkeypatch.setattr(probes, "make_scorer", lambda *given: pytest.fail("compiled anew for a fold"))
    scores = probes.out_of_fold(learner, np.arange(len(found.labels)) % 2, 3, interrupts)
    assert len(shapes) >= 2 and len(set(shapes)) == 1
    evaluated = np.flatnonzero(np.arange(len(found.labels)) % 2)
    # By the weights as the last fold left them.
    np.testing.assert_allclose(learner._score(found.some(evaluated)), scores[evaluated], atol=1e-6)
    rare = np.concatenate([np.flatnonzero(found.labels == 0)[:1], np.flatnonzero(found.labels != 0)])
    examples, weight = learner._examples(found.some(rare))
    alike, _ = learner._examples(found)
    assert len(examples.recording) < len(alike.recording)  # fewer, and of one class
    label = examples.stratum
    totals = np.bincount(label, weight)
    assert totals == pytest.approx(
        np.full(3, totals.mean()), rel=1e-4
    )  # each class counts as much as the others
    assert weight[label == 0].min() > 2 * weight[label != 0].max()


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Any, Any]:
    """Embeddings of three classes, of the first of which there are few recordings."""
    folder = tmp_path_factory.mktemp("bench")
    config = settings(write_data(folder / "in" / "data"), folder / "out").with_output("softmax")
    journal, interrupts = Journal(quiet=True), Interrupts()
    dataset, store = gather.prepare(config, BACKBONES["vggish-small"].front_end, journal, interrupts)
    classifier, found = embeddings.embed(
        config, dataset, store, dataset.recordings, journal, interrupts, what="test"
    )
    few = np.concatenate([np.flatnonzero(found.labels == 0)[:4], np.flatnonzero(found.labels != 0)])
    return config, classifier, found.some(few)


def with_train(config: Config, **changes: Any) -> Config:
    return config.model_copy(update={"train": config.train.model_copy(update=changes)})


SETTINGS: dict[str, dict[str, Any]] = {
    "balance": {"sampling_power": 1.0}, "weights": {"class_weight_alpha": 1.0}, "focal": {"focal_gamma": 2.0},
    "floor": {"min_samples_per_class": 40}, "quality": {},
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_all_that_is_set_for_rare_classes_is_heeded_by_heads_and_where_it_can_be_by_baselines(
    bench: tuple[Config, Any, Any], name: str
) -> None:
    config, classifier, found = bench
    weights = np.where(found.labels == 0, 5.0, 1.0).astype(np.float32)
    given = replace(found, weights=weights) if name == "quality" else found
    training, evaluated = np.arange(1, len(found.labels), 2), np.arange(0, len(found.labels), 2)

    def scores(kind: str, embedded: Any, config: Config) -> Any:
        if kind == "head":
            return probes.Head("linear", classifier, embedded, config, Interrupts())(training, evaluated)
        return probes.Baseline(kind, embedded, config)(training, evaluated)

    for kind in ("head", "logistic regression"):
        plain, changed = (
            scores(kind, found, config),
            scores(kind, given, with_train(config, **SETTINGS[name])),
        )
        if name == "focal" and kind != "head":
            np.testing.assert_array_equal(changed, plain)
        elif name == "focal":
            assert not np.allclose(changed, plain, atol=1e-4)
        else:  # the rare class is thought of more often
            assert changed[:, 0].mean() > plain[:, 0].mean() + 1e-4, kind


def test_given_once_a_recording_counts_by_its_quality_its_class_and_how_often_that_comes(
    bench: tuple[Config, Any, Any],
) -> None:
    config, _, found = bench
    share = np.bincount(found.labels) / len(found.labels)

    def of_classes(embedded: Any, **changes: Any) -> Any:
        weights = probes.recording_weights(embedded, with_train(config, **changes).train)
        assert weights.mean() == pytest.approx(1.0)
        return np.bincount(embedded.labels, weights) / len(weights)

    assert of_classes(found) == pytest.approx(share)
    assert of_classes(found, sampling_power=1.0) == pytest.approx([1 / 3] * 3, rel=0.05)
    assert of_classes(found, class_weight_alpha=1.0) == pytest.approx([1 / 3] * 3)
    # What sampling has made alike, class weights leave alone.
    assert of_classes(found, sampling_power=1.0, class_weight_alpha=1.0) == pytest.approx([1 / 3] * 3, rel=0.05)
    half = share**0.5 / (share**0.5).sum()
    assert of_classes(found, class_weight_alpha=0.5) == pytest.approx(half, rel=1e-4)
    good = replace(found, weights=np.where(np.arange(len(found.labels)) == 0, 3.0, 1.0).astype(np.float32))
    weights = probes.recording_weights(good, config.train)
    assert weights[0] == pytest.approx(3 * weights[1])


def test_what_has_no_fold_is_always_trained_on_and_never_evaluated() -> None:
    seen: list[tuple[list[int], list[int]]] = []

    def candidate(training: Any, evaluated: Any) -> Any:
        seen.append((training.tolist(), evaluated.tolist()))
        return np.ones((len(evaluated), 2))

    scores = probes.out_of_fold(candidate, np.array([0, 1, -1, 0]), 2, Interrupts())
    assert seen == [([1, 2], [0, 3]), ([0, 2, 3], [1])]
    assert scores[:, 0].tolist() == [1, 1, 0, 1]
