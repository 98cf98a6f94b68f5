"""train.refit: a second training on all recordings but those of test, and what is calibrated by then."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from makers import StopAt
from test_job import record, run, settings, write_data

from birdtune.errors import CheckpointError, Interrupted
from birdtune.models.classifier import weights_sha256
from birdtune.pipeline import evaluate
from birdtune.runtime.files import read_csv, read_json
from birdtune.runtime.signals import Interrupts
from birdtune.training import base_model, cross_fit, probes, served_model
from birdtune.training.checkpoints import Checkpoints
from birdtune.training.job import Job

pytestmark = pytest.mark.usefixtures("in_one_process")

FROZEN = {"model__freeze": "all-but-head", "train__learning_rate": 1e-2}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("input") / "data")


@pytest.fixture(scope="module")
def seen() -> list[Any]:
    """What heads were trained on by folds: embeddings, training, evaluated."""
    return []


@pytest.fixture(scope="module")
def done(data: Path, seen: list[Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of one whole run on a frozen backbone."""

    class Seen(probes.Head):
        def logits(self, training: Any, evaluated: Any) -> Any:
            seen.append((self._embedded, training, evaluated))
            return super().logits(training, evaluated)

    output = tmp_path_factory.mktemp("output")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cross_fit, "Head", Seen)
        assert run(settings(data, output, train__refit=True, **FROZEN)) == 0
    return output


@pytest.fixture(scope="module")
def plain(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without a second training."""
    output = tmp_path_factory.mktemp("plain")
    assert run(settings(data, output, train__refit=False, **FROZEN), until="evaluate") == 0
    return output


def best(output: Path, *inside: str) -> Any:
    return Checkpoints(output.joinpath("checkpoints/1", *inside), 2).best()


def sides(output: Path) -> dict[str, str]:
    return {row["recording"]: row["split"] for row in read_csv(output / "split.csv")}


def metrics(output: Path) -> Any:
    return read_json(output / "reports/1/metrics.json")


def test_the_second_training_is_one_on_training_and_validation_and_its_weights_are_served(
    data: Path, done: Path, tmp_path: Path
) -> None:
    history, told = read_json(done / "logs/1/history.json"), record(done)
    epochs, of = history["best_epoch"], sides(done)
    n = sum(side != "test" for side in of.values())
    assert told["refit"] == {"epochs": epochs, "recordings": n} and 0 < n < len(of)
    assert len(history["refit"]["history"]) == epochs <= len(history["epochs"])
    assert told["weights_sha256"] == weights_sha256(best(done, "refit")) != weights_sha256(best(done))
    assert read_json(done / "model/birdtune/1/model.json")["weights_sha256"] == told["weights_sha256"]
    # Somebody moves validation to training by hand.
    moved = tmp_path / "moved.csv"
    rows = [f"{name},{'test' if side == 'test' else 'train'}" for name, side in of.items()]
    moved.write_text("\n".join(["recording,split", *rows]), "utf-8")
    by_hand = settings(data, tmp_path / "out", split__file=str(moved), train__epochs=epochs, **FROZEN)
    assert run(by_hand, until="train") == 0
    newest, _ = Checkpoints(tmp_path / "out/checkpoints/1", 2).newest()
    assert newest is not None
    for name, array in best(done, "refit").items():
        np.testing.assert_array_equal(newest.weights[name], array, err_msg=name)


def test_validation_is_scored_by_the_first_training_and_test_by_the_second(done: Path, plain: Path) -> None:
    assert weights_sha256(best(done)) == record(plain)["weights_sha256"]
    before = {
        part: [metrics(output)[part]["calibration"]["before"]["confidence"] for output in (done, plain)]
        for part in ("val", "test")
    }
    assert before["val"][0] == before["val"][1] and before["test"][0] != before["test"][1]
    assert metrics(plain)["refit"] is None and record(plain)["refit"] is None


def test_calibration_comes_from_heads_that_learnt_from_other_sources_and_never_from_test(
    done: Path, plain: Path, seen: list[Any]
) -> None:
    of = sides(done)
    scored: set[str] = set()
    for embedded, training, evaluated in seen:
        groups = np.asarray(embedded.groups)
        assert not set(groups[training]) & set(groups[evaluated])
        scored |= {embedded.names[k] for k in evaluated}
        assert {of[name] for name in embedded.names} == {"train", "val"}
    assert scored == {name for name, side in of.items() if side != "test"}
    found = metrics(done)
    assert found["refit"]["cross_fitted"] and not found["refit"]["reason"]
    # Validation alone has three sources, which a temperature is not fitted on.
    assert metrics(plain)["calibration"]["sources"] == 3 and metrics(plain)["calibration"]["reason"]
    assert found["calibration"]["sources"] == len({name.rsplit("_", 1)[0] for name in scored})
    assert not found["calibration"]["reason"] and found["calibration"]["clip"]["slope"] != 1.0
    page = (done / "reports/1/report.html").read_text("utf-8")
    assert "trained once more" in page and "cross-fitting" in page
    assert "of training and validation by cross-fitting: temperature" in " ".join(page.split())


def test_a_model_that_begins_from_it_begins_with_the_head_that_validation_can_judge(
    data: Path, done: Path, tmp_path: Path
) -> None:
    shutil.copytree(done / "model/birdtune/1", tmp_path / "model")
    base = served_model.of_folder(settings(data, tmp_path / "out"), "--init-from", tmp_path / "model")
    found, first, second = base_model.read_weights(base), best(done), best(done, "refit")
    heads = [name for name in found if not np.array_equal(first[name], second[name])]
    assert heads and all(np.array_equal(found[name], first[name]) for name in found)
    path = tmp_path / "model" / served_model.BEFORE_REFIT
    safetensors.numpy.save_file({name: second[name] for name in heads}, path)
    with pytest.raises(CheckpointError, match="is not the head that was exported"):
        base_model.read_weights(base)


@pytest.mark.parametrize(
    ("changes", "refits"),
    [
        (FROZEN, True),
        (FROZEN | {"train__refit": False}, False),
        (FROZEN | {"train__refit": "auto", "augment__mixup": 0.2}, False),
        ({}, False),
        ({"train__refit": True}, True),
    ],
)
def test_unless_set_a_second_training_follows_where_a_head_is_trained_on_embeddings(
    changes: dict[str, Any], refits: bool, data: Path, tmp_path: Path
) -> None:
    asked: Any = SimpleNamespace(config=settings(data, tmp_path, **changes))
    nothing: Any = None
    assert Job(asked, nothing, nothing, nothing).refits is refits


def test_detections_are_judged_by_held_out_recordings_if_all_of_their_windows_are_there(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    def windows(hop_s: float) -> Any:
        return SimpleNamespace(window_recording=np.array([0, 0, 1]), window_start_s=np.array([0.0, hop_s, 0.0]))

    asked: list[Any] = []
    monkeypatch.setattr(evaluate, "_compared", lambda job, scores, tried: asked.append(scores))
    monkeypatch.setattr(evaluate.event_thresholds, "choose", lambda compared_at, *more, **others: compared_at(None))
    settings_of = SimpleNamespace(evaluate=SimpleNamespace(false_alarms_per_hour=None))
    job: Any = SimpleNamespace(dataset=SimpleNamespace(classes=()), config=settings_of)
    val, whole, thinned = windows(1.5), windows(1.5), windows(3.0)
    for held_out, wanted in ((whole, whole), (thinned, val)):
        found: Any = SimpleNamespace(scores={"val": val}, held_out=held_out)
        evaluate._detection_thresholds(job, found, None)  # type: ignore[arg-type]
        assert asked.pop() is wanted


class StopInRefit(Interrupts):
    """A signal that comes at the n-th look for one after the second training has saved its first epoch."""

    def __init__(self, output: Path, n: int) -> None:
        super().__init__()
        self._folder, self._left = output / "checkpoints/1/refit", n

    def check(self) -> None:
        self._left -= self._folder.exists()
        if self._left == 0:
            raise Interrupted(15)


def test_however_often_it_is_stopped_the_weights_are_the_same(data: Path, done: Path, tmp_path: Path) -> None:
    assert record(done)["refit"]["epochs"] > 1
    config = settings(data, tmp_path, train__refit=True, **FROZEN)
    with pytest.raises(Interrupted):
        run(config, StopAt(20))
    assert not (tmp_path / "checkpoints/1/refit").exists()
    with pytest.raises(Interrupted):
        run(config, StopInRefit(tmp_path, 2))
    newest, _ = Checkpoints(tmp_path / "checkpoints/1/refit", 2).newest()
    assert newest is not None and not newest.state.finished
    assert run(config, until="train") == 0
    assert record(tmp_path)["weights_sha256"] == record(done)["weights_sha256"]
    assert record(tmp_path)["refit"] == record(done)["refit"]


def test_where_the_backbone_is_trained_the_calibration_of_the_first_training_is_kept_and_it_is_said(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("birdtune.evaluation.calibration.FEWEST_SOURCES", 3)
    found = {}
    for refit in (True, False):
        output = tmp_path / str(refit)
        assert run(settings(data, output, train__refit=refit, train__epochs=1), until="evaluate") == 0
        found[refit] = metrics(output)
    assert found[True]["calibration"] == found[False]["calibration"] and not found[True]["calibration"]["reason"]
    assert found[True]["thresholds"] == found[False]["thresholds"]
    assert found[True]["ood"] == found[False]["ood"]
    assert found[True]["weights_sha256"] != found[False]["weights_sha256"]
    assert not found[True]["refit"]["cross_fitted"]
    assert found[True]["refit"]["reason"] == "the backbone is trained as well"


def test_without_validation_there_is_nothing_more_to_learn_from(data: Path, tmp_path: Path) -> None:
    assert run(settings(data, tmp_path, train__refit=True, split__val_fraction=0, **FROZEN), until="evaluate") == 0
    assert metrics(tmp_path)["refit"] is None and record(tmp_path)["refit"] is None
    assert not (tmp_path / "checkpoints/1/refit").exists()
    assert "no validation recordings to learn from as well" in (tmp_path / "logs/1/run.log").read_text("utf-8")
