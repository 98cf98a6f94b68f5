"""Epoch 0: what a published classifier begins with is validated, and kept if no epoch of training is better."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from makers import StopAt
from test_head_start import LABELS
from test_keep_classes import data as data  # a fixture
from test_keep_classes import model as model  # a fixture
from test_loop import MadeBatches, build, rows_without_times, trainer_of
from test_tflite_backbone import arguments

from birdtune import cli
from birdtune.errors import Interrupted
from birdtune.evaluation.diagnostics import of_training
from birdtune.models import classifier as classifiers
from birdtune.reporting import figures
from birdtune.runtime.files import read_csv, read_json
from birdtune.runtime.log import Journal
from birdtune.runtime.signals import Interrupts
from birdtune.settings import TrainSettings
from birdtune.training.checkpoints import Checkpoints
from birdtune.training.loop import Loop
from tests.faults.helpers_compare import points_of

UNTRAINED = "BirdNET's own classifier"
# The average of no update is zero: epoch 0 is of the weights themselves.
AVERAGED: Any = {"epochs": 2, "jit": False, "learning_rate": 1e-3, "ema_decay": 0.9}


def loop_of(
    folder: Path, settings: TrainSettings, accuracies: list[float], *, interrupts: Interrupts | None = None,
    journal: Journal | None = None,
) -> Loop:  # fmt: skip
    """A loop whose n-th validation, epoch 0 first, finds the n-th accuracy; a resumed one finds that of its epoch."""
    trainer, said = trainer_of(build(), settings, dropout=0.3), dict(enumerate(accuracies))

    def validate() -> dict[str, Any]:
        weights = classifiers.weights(trainer.classifier)
        done = loop.state.epoch + bool(loop.state.history)
        loss = sum(float(np.abs(array).sum()) for array in weights.values())
        return {"val_accuracy": said[done], "val_macro_ap": said[done], "val_loss": loss}

    loop = Loop(
        trainer, MadeBatches(), settings, Checkpoints(folder / "checkpoints", settings.keep_checkpoints),
        validate=validate, journal=journal or Journal(quiet=True), interrupts=interrupts or Interrupts(),
        tensorboard=folder / "tensorboard", untrained=UNTRAINED,
    )  # fmt: skip
    return loop


def test_what_training_began_with_is_kept_if_no_epoch_beats_it(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "logs", quiet=True)
    settings = TrainSettings(keep_checkpoints=1, **AVERAGED)
    loop = loop_of(tmp_path, settings, [0.9, 0.5, 0.9], journal=journal)
    began = classifiers.weights_sha256(classifiers.weights(loop.trainer.classifier))
    state = loop.run()
    assert [row["epoch"] for row in state.history] == [0, 1, 2] and state.best == state.history[0]
    assert loop.checkpoints.names() == ["epoch-0000-step-000000", "epoch-0002-step-000000"]
    assert classifiers.weights_sha256(loop.checkpoints.best()) == began
    losses = [row["val_loss"] for row in state.history]
    assert len(set(losses)) == 3  # the same sums are of the same weights
    journal.close()
    said = (tmp_path / "logs/run.log").read_text("utf-8")
    assert f"epoch   0 of 2  {UNTRAINED}, untrained  val loss" in said
    assert f"no epoch did better on validation than {UNTRAINED}" in said
    points = points_of(tmp_path / "tensorboard")
    assert points["epoch/val_loss"] == [
        (step, pytest.approx(loss)) for step, loss in zip((0, 4, 8), losses, strict=True)
    ]
    assert [step for step, _ in points["epoch/train_loss"]] == [4, 8]


def test_an_epoch_that_is_better_is_kept_and_patience_counts_from_epoch_0(tmp_path: Path) -> None:
    settings = TrainSettings(epochs=9, early_stopping_patience=2, jit=False)
    state = loop_of(tmp_path / "better", settings, [0.5, 0.4, 0.6, 0.6, 0.6]).run()
    assert state.best is not None and state.best["epoch"] == 2 and state.epoch == 4
    state = loop_of(tmp_path / "worse", settings, [0.5, 0.4, 0.4]).run()
    assert state.best is not None and state.best["epoch"] == 0 and state.epoch == 2


# As epoch 0 has been validated, as it was saved, and within the first epoch and the second.
@pytest.mark.parametrize("stop_at", [1, 2, 5, 12])
def test_a_stopped_training_goes_on_to_the_same_history_and_weights(
    straight: Any, tmp_path: Path, stop_at: int
) -> None:
    settings = TrainSettings(**AVERAGED)
    with pytest.raises(Interrupted):
        loop_of(tmp_path, settings, [0.9, 0.5, 0.6], interrupts=StopAt(stop_at)).run()
    assert (stop_at == 1) == (not Checkpoints(tmp_path / "checkpoints", 1).names())
    resumed = loop_of(tmp_path, settings, [0.9, 0.5, 0.6])
    assert (rows_without_times(resumed.run()), _digests(resumed), points_of(tmp_path / "tensorboard")) == straight


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What a training that nothing stops has made: history, weights, curves."""
    folder = tmp_path_factory.mktemp("straight")
    loop = loop_of(folder, TrainSettings(**AVERAGED), [0.9, 0.5, 0.6])
    return rows_without_times(loop.run()), _digests(loop), points_of(folder / "tensorboard")


def _digests(loop: Loop) -> list[str]:
    weights = [loop.checkpoints.best(), classifiers.weights(loop.trainer.classifier)]
    return [classifiers.weights_sha256(each) for each in weights]


def test_epoch_0_is_no_part_of_the_course_of_training() -> None:
    rows = [{"epoch": 0, "train_loss": None, "val_loss": 0.5, "val_accuracy": 0.8, "val_live_embeddings": 9}]
    for epoch, loss in enumerate((2.0, 1.0, 0.3, 0.1), 1):
        rows.append({"epoch": epoch, "train_loss": loss, "val_loss": 1.0 + epoch, "val_accuracy": 0.5})
    trained = {"epochs": rows, "constant_loss": 2.3, "moved": {"head/logits": 0.0}}
    assert of_training({**trained, "best_epoch": 0}) == []
    assert {each.code for each in of_training({**trained, "best_epoch": 1})} == {"overfitting", "weights-unmoved"}
    drawn = figures.learning_curves(rows, 0)
    assert "training" in drawn and "validation" in drawn


@pytest.fixture(scope="module")
def refitted(model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory, in_one_process: None) -> Path:
    """The output of a run that learns nothing, and is then to learn once more."""
    output = tmp_path_factory.mktemp("run") / "output"
    more = {
        "model.head-weights": "published", "train.learning-rate": "1e-30", "train.refit": "true",
        "split.val-fraction": "0.4", "split.test-fraction": "0.25",
    }  # fmt: skip
    given = itertools.chain.from_iterable((f"--{name}", value) for name, value in more.items())
    assert cli.main(arguments(data, output, model, *given)) == 0
    return output


def test_of_an_untrained_head_the_second_training_is_none(refitted: Path) -> None:
    record, history = read_json(refitted / "run.json"), read_json(refitted / "logs/1/history.json")
    assert history["best_epoch"] == 0 and [row["epoch"] for row in history["epochs"]] == [0, 1, 2, 3]
    sides = [row["split"] for row in read_csv(refitted / "split.csv")]
    assert record["refit"] == {"epochs": 0, "recordings": len(sides) - sides.count("test")}
    first, second = (Checkpoints(refitted / "checkpoints/1" / part, 1).best() for part in ("", "refit"))
    assert record["weights_sha256"] == classifiers.weights_sha256(second) == classifiers.weights_sha256(first)
    assert "weights-unmoved" not in {row["code"] for row in record["warnings"]}
    assert record["head_start"]["classes"]["Apus_apus"] == LABELS[0]
    metrics = read_json(refitted / "reports/1/metrics.json")
    assert metrics["refit"]["cross_fitted"] and metrics["calibration"]["sources"] == record["refit"]["recordings"]


def test_the_report_and_the_log_say_that_it_is_untrained(refitted: Path) -> None:
    page = " ".join((refitted / "reports/1/report.html").read_text("utf-8").split())
    assert "<dd>0 of 3</dd>" in page and "Trained without improvement" in page and "3 epochs (passes over" in page
    assert "no epoch did better on validation. A" in page and "So there was nothing to train once more." in page
    said = (refitted / "logs/1/run.log").read_text("utf-8")
    assert "own classifier, untrained  val loss" in said and "nothing to train once more" in said
