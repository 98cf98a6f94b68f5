"""pipeline.rare_class_ablation: what each measure for rare classes did to them, by heads with it and without."""

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from test_job import run, settings, write_data

from birdtune.config import Config
from birdtune.data import dataset as gather
from birdtune.data.dataset import Dataset
from birdtune.errors import DivergedError, Interrupted
from birdtune.models.registry import BACKBONES
from birdtune.pipeline import rare_class_ablation
from birdtune.runtime.files import read_json
from birdtune.runtime.log import Journal
from birdtune.runtime.signals import Interrupts
from birdtune.training import embeddings

pytestmark = pytest.mark.usefixtures("in_one_process")

ALL_ON = {
    "train__sampling_power": 0.7, "train__class_weight_alpha": 0.5, "train__focal_gamma": 1.0,
    "train__min_samples_per_class": 9,
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of 14, 14 and 8 recordings, and one of a single source; two slices of each source."""
    folder = write_data(tmp_path_factory.mktemp("in") / "data")
    for source in range(4, 7):
        for part in range(2):
            (folder / "Apus_apus" / f"Apus_apus-3{source:03d}_{part}.wav").unlink()
    (folder / "Dryocopus_martius").mkdir()
    for part in range(2):
        first = next((folder / "Bubo_bubo").glob(f"*_{part}.wav"))
        sound = bytearray(first.read_bytes())
        sound[-4000:] = bytes(4000)  # not the same sound
        (folder / "Dryocopus_martius" / f"Dryocopus_martius-6000_{part}.wav").write_bytes(sound)
    return folder


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh weights stand for a backbone that knows sounds: these differ in pitch alone."""
    monkeypatch.setattr(rare_class_ablation, "no_first_backbone", lambda config: "")


def prepared(data: Path, output: Path, **changes: Any) -> tuple[Config, Dataset, Any]:
    config = settings(data, output, **{"model__freeze": "all-but-head", "evaluate__bootstrap": 20, **changes})
    spec = BACKBONES[config.model.backbone].front_end
    return config, *gather.prepare(config, spec, Journal(quiet=True), Interrupts())


def measured(config: Config, dataset: Dataset, store: Any) -> Any:
    return rare_class_ablation.measure(config, dataset, store, Journal(quiet=True), Interrupts())


def test_what_leaves_classes_out_or_is_not_set_does_nothing_for_them(tmp_path: Path) -> None:
    def on(weights: Any = None, **changes: Any) -> list[str]:
        return rare_class_ablation.active(settings(tmp_path / "data", tmp_path / "out", **changes), weights or {})

    assert on() == []
    assert on({"Apus_apus/1.wav": 0.5}) == ["train.sample-weights"]
    assert on(**ALL_ON) == [
        "train.sampling-power", "train.class-weight-alpha", "train.focal-gamma", "train.min-samples-per-class",
    ]  # fmt: skip
    assert on(train__min_samples_per_class=9, train__min_samples_action="leave-out") == []


class Watched:
    """Stands in for a head: notes what it would be trained with, and knows a recording where balance is on."""

    made: ClassVar[list["Watched"]] = []

    def __init__(self, head: str, classifier: Any, embedded: Any, config: Config, interrupts: Any) -> None:
        self.head, self.config, self.embedded = head, config, embedded
        self.folds: list[tuple[Any, Any]] = []
        Watched.made.append(self)

    def __call__(self, training: Any, evaluated: Any) -> Any:
        self.folds.append((training, evaluated))
        scores = np.full((len(evaluated), 4), 0.2)
        if self.config.train.sampling_power:
            scores[np.arange(len(evaluated)), self.embedded.labels[evaluated]] = 0.9
        return scores


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[Watched]:
    Watched.made = []
    monkeypatch.setattr(rare_class_ablation, "Head", Watched)
    return Watched.made


def test_heads_are_trained_with_all_that_is_set_without_each_and_with_none_and_never_on_test(
    data: Path, tmp_path: Path, known: None, watched: list[Watched]
) -> None:
    config, dataset, store = prepared(data, tmp_path / "out", model__head="attention", **ALL_ON)
    dataset = replace(dataset, weights={dataset.part("train")[0].name: 0.5})
    found = measured(config, dataset, store)

    def taught(head: Watched) -> tuple[Any, ...]:
        train = head.config.train
        quality = bool((head.embedded.weights != 1).any())
        return train.sampling_power, train.class_weight_alpha, train.focal_gamma, train.min_samples_per_class, quality

    assert [taught(head) for head in watched] == [
        (0.7, 0.5, 1.0, 9, True),
        (0.0, 0.5, 1.0, 9, True), (0.7, 0.0, 1.0, 9, True), (0.7, 0.5, 0.0, 9, True), (0.7, 0.5, 1.0, 0, True),
        (0.7, 0.5, 1.0, 9, False),
        (0.0, 0.0, 0.0, 0, False),
    ]  # fmt: skip
    assert {head.head for head in watched} == {"attention"} == {found["head"]}
    heard = {dataset.places[name].split for head in watched for name in head.embedded.names}
    assert heard == {"train", "val"}
    names, groups = np.array(watched[0].embedded.names), np.array(watched[0].embedded.groups)
    for training, evaluated in watched[0].folds:
        assert not set(groups[training]) & set(groups[evaluated])
        assert any("Dryocopus" in name for name in names[training])  # of one source: trained on, never evaluated
        assert not any("Dryocopus" in name for name in names[evaluated])

    assert found["classes"] == ["Apus_apus"] and found["unjudged"] == ["Dryocopus_martius"]
    assert [list(row["settings"]) for row in found["rows"]] == [
        *([name] for name in found["on"]),
        found["on"],
    ]
    assert [row["changed"] for row in found["rows"]] == [True, False, False, False, False, True]
    balance = found["rows"][0]
    assert (balance["rare_recall"]["without"], balance["rare_recall"]["with"]) == (
        1.0,
        1.0,
    )  # the first of equals
    assert balance["rare_ap"]["without"] < 0.5 < balance["rare_ap"]["with"] == 1.0
    assert balance["accuracy"]["without"] < 0.5 < balance["accuracy"]["with"] == 1.0
    assert balance["accuracy"]["ci"][0] > 0


def test_of_one_measure_there_is_one_row(
    data: Path, tmp_path: Path, known: None, watched: list[Watched]
) -> None:
    found = measured(*prepared(data, tmp_path / "out", train__sampling_power=1.0))
    assert len(found["rows"]) == 1 and len(watched) == 2


def test_of_many_windows_every_second_is_learnt_from_and_the_floor_falls_with_them(
    data: Path, tmp_path: Path, known: None, watched: list[Watched], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, dataset, store = prepared(data, tmp_path / "out", train__hop_s=0.24, **ALL_ON)
    part = [*dataset.part("train"), *dataset.part("val")]
    _, whole = embeddings.embed(config, dataset, store, part, Journal(quiet=True), Interrupts(), what="test")
    monkeypatch.setattr(rare_class_ablation, "MOST_WINDOWS", len(whole.embeddings) - 1)
    assert measured(config, dataset, store)["every"] == 2
    thinned = watched[0].embedded
    places, fewer = (list(zip(w.recording, w.offset, strict=True)) for w in (whole.windows, thinned.windows))
    kept = np.array([place in fewer for place in places])
    assert len(fewer) < 0.7 * len(places)
    np.testing.assert_array_equal(thinned.embeddings, whole.embeddings[kept])
    np.testing.assert_array_equal(thinned.windows.recording, whole.windows.recording[kept])
    assert watched[0].config.train.min_samples_per_class == 4  # round(9 / 2)

    monkeypatch.setattr(rare_class_ablation, "MOST_WINDOWS", len(part) - 1)
    assert "recordings that takes too long" in measured(config, dataset, store)["reason"]


def test_where_it_cannot_be_measured_it_is_said_why(
    data: Path, tmp_path: Path, watched: list[Watched], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, dataset, store = prepared(data, tmp_path / "out", train__sampling_power=1.0)
    assert "from scratch" in measured(config, dataset, store)["reason"]
    monkeypatch.setattr(rare_class_ablation, "no_first_backbone", lambda config: "")
    alone = {name: replace(place, group=name.split("/")[0]) for name, place in dataset.places.items()}
    reason = measured(config, replace(dataset, places=alone), store)["reason"]
    assert reason == "there are fewer than three classes with recordings of two sources"

    def astray(*given: Any) -> None:
        raise DivergedError("it went astray.")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(rare_class_ablation.rare_classes, "_ALIKE", 0.0)  # whatever they have, none is rare
        assert measured(config, dataset, store)["reason"] == (
            "no class with recordings of two sources is clearly rarer in training than the others"
        )
    monkeypatch.setattr(rare_class_ablation, "out_of_fold", astray)
    found = measured(config, dataset, store)
    assert found == {"on": ["train.sampling-power"], "reason": "it went astray"}
    off, dataset, store = prepared(data, tmp_path / "out")
    assert measured(off, dataset, store) is None


def test_a_run_has_it_in_its_metrics_the_same_after_a_stop(
    data: Path, tmp_path: Path, known: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"train__min_samples_per_class": 40, "evaluate__label_issues": False, "train__epochs": 2}
    config = settings(data, tmp_path / "out", **given)
    learn = rare_class_ablation.out_of_fold

    def stopped(*given: Any) -> Any:
        learn(*given)
        raise Interrupted(15)

    monkeypatch.setattr(rare_class_ablation, "out_of_fold", stopped)
    with pytest.raises(Interrupted):
        run(config, until="evaluate")
    assert not (tmp_path / "out/reports/1/metrics.json").exists()
    monkeypatch.setattr(rare_class_ablation, "out_of_fold", learn)
    assert run(config, until="evaluate") == 0
    found = read_json(tmp_path / "out/reports/1/metrics.json")["rare_class_ablation"]
    (row,) = found["rows"]
    assert row["settings"] == {"train.min-samples-per-class": 40} and row["changed"]

    spared = settings(data, tmp_path / "out", **given, evaluate__rare_class_ablation=False)
    assert run(spared, until="evaluate") == 0
    assert "rare_class_ablation" not in read_json(tmp_path / "out/reports/1/metrics.json")
    assert run(config, until="evaluate") == 0
    assert read_json(tmp_path / "out/reports/1/metrics.json")["rare_class_ablation"] == found
