"""The loop: what an update does, what stops it, and that stopping changes nothing."""

import itertools
import math
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from makers import StopAt

from birdtune.data.batches import Batch
from birdtune.errors import DivergedError, Interrupted, RetryableError
from birdtune.models import classifier as classifiers
from birdtune.models.classifier import Classifier
from birdtune.models.vggish import SMALL
from birdtune.runtime.log import Journal
from birdtune.runtime.signals import Interrupts
from birdtune.settings import TrainSettings
from birdtune.training import inputs, tensorboard
from birdtune.training.checkpoints import Checkpoints, State
from birdtune.training.loop import Loop, is_better, learning_rate
from birdtune.training.step import StepSettings, Trainer, viewed
from tests.faults.helpers_compare import points_of

CLASSES = ("A", "B", "C")
# The reduced network without its middle: a step of it is traced in half the time.
_LAYERS = {row.name: row for row in SMALL.layers}
NETWORK = replace(
    SMALL, layers=(_LAYERS["conv1"], _LAYERS["conv2"], _LAYERS["fc1_1"]._replace(width=64), _LAYERS["fc2"])
)
RATES = TrainSettings(epochs=10, warmup_epochs=1, learning_rate=1e-3)


def build(freeze: str = "none", scores: str = "softmax", precision: str = "float32") -> Classifier:
    return classifiers.build(
        backbone=NETWORK, head="linear", scores=scores, hidden_units=0, embedding_activation="relu",
        freeze=freeze, classes=CLASSES, precision=precision, seed=1,
    )  # fmt: skip


def batch_of(n: int = 8, seed: int = 0, weights: Sequence[float] | None = None) -> Batch:
    rng = np.random.default_rng(seed)
    labels = (np.arange(n) % 3).astype(np.int32)
    features = rng.normal(-3, 1, (n, 96, 64))
    features[np.arange(n), :, labels * 20 + 5] += 4  # a band of its own for each class
    rows = np.ones(n) if weights is None else np.asarray(weights)
    targets = np.eye(3, dtype=np.float32)[labels]
    known = np.ones_like(targets)
    return Batch(features.astype(np.float16), rows.astype(np.float32), np.arange(n), targets, known)


def trainer_of(
    classifier: Classifier, settings: TrainSettings | None = None, *, dropout: float = 0.0,
    class_weights: Sequence[float] = (1, 1, 1), precision: str = "float32",
    untaught: tuple[int, ...] = (),
) -> Trainer:  # fmt: skip
    step = StepSettings(dropout, np.asarray(class_weights, np.float32), precision, untaught)
    return Trainer(classifier, settings or TrainSettings(jit=False), step, inputs.whole(classifier, MadeBatches()))


# ---- the learning rate --------------------------------------------------------------------------


def test_the_rate_rises_through_the_warm_up_and_falls_by_a_cosine_to_zero() -> None:
    rates = [learning_rate(RATES, update, per_epoch=4) for update in range(40)]
    np.testing.assert_allclose(rates[:4], [2.5e-4, 5e-4, 7.5e-4, 1e-3])
    assert rates[4] == 1e-3
    assert math.isclose(learning_rate(RATES, 4 + 18, 4), 5e-4)  # half-way down
    assert all(a >= b for a, b in itertools.pairwise(rates[4:]))
    assert learning_rate(RATES, 40, 4) == pytest.approx(0.0, abs=1e-12)


def test_a_constant_rate_stays() -> None:
    settings = RATES.model_copy(update={"schedule": "constant"})
    assert {learning_rate(settings, update, 4) for update in range(4, 60)} == {1e-3}


def test_a_cosine_may_begin_anew_and_the_last_one_ends_at_zero() -> None:
    changes = {"schedule": "cosine-restarts", "restart_epochs": 4, "warmup_epochs": 1, "epochs": 11}
    settings = RATES.model_copy(update=changes)
    rates = np.array([learning_rate(settings, update, per_epoch=4) for update in range(45)])
    highest = [k for k in range(4, 44) if rates[k] == settings.learning_rate]
    assert highest == [4, 20, 36]
    assert rates[12] == pytest.approx(settings.learning_rate / 2) and rates[19] < 0.02 * settings.learning_rate
    # The last has two epochs left of its four.
    assert rates[40] == pytest.approx(settings.learning_rate / 2)


# ---- one update ---------------------------------------------------------------------------------


def test_rows_of_weight_zero_count_for_nothing() -> None:
    trainer = trainer_of(build())
    full = trainer.gradients(batch_of(8), 0)
    doubled = batch_of(8)
    padded = Batch(
        np.concatenate([doubled.features, doubled.features]), np.repeat(np.float32([1, 0]), 8), np.arange(16),
        np.tile(doubled.targets, (2, 1)), np.tile(doubled.known, (2, 1)),
    )  # fmt: skip
    filled = trainer.gradients(padded, 0)
    assert float(filled[1]) == 8.0
    assert float(filled[0]) == pytest.approx(float(full[0]), rel=1e-5)
    for one, other in zip(full[2], filled[2], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_class_weights_weigh_the_loss() -> None:
    plain = trainer_of(build()).gradients(batch_of(9), 0)
    weighed = trainer_of(build(), class_weights=(2, 0, 1)).gradients(batch_of(9), 0)
    only_a = trainer_of(build()).gradients(batch_of(9, weights=[2, 0, 1] * 3), 0)
    assert float(weighed[1]) == 9.0
    assert float(weighed[0]) == pytest.approx(float(only_a[0]), rel=1e-5)
    assert float(weighed[0]) != pytest.approx(float(plain[0]), rel=1e-3)


def test_accumulated_batches_update_as_one_large_batch_does() -> None:
    large, first, second = batch_of(16), batch_of(16), batch_of(16)
    halves = [
        Batch(
            whole.features[part], whole.weights[part], whole.windows[part], whole.targets[part], whole.known[part]
        )
        for whole, part in ((first, slice(0, 8)), (second, slice(8, 16)))
    ]
    at_once, in_two = build(), build()
    one = trainer_of(at_once)
    _, weight, gradients = one.gradients(large, 0)
    one.apply(gradients, weight, 1e-3)
    two = trainer_of(in_two)
    (_, w1, g1), (_, w2, g2) = (two.gradients(half, k) for k, half in enumerate(halves))
    two.apply(two.add(g1, g2), w1 + w2, 1e-3)
    for name, array in classifiers.weights(at_once).items():
        np.testing.assert_allclose(array, classifiers.weights(in_two)[name], atol=2e-5, err_msg=name)


def test_frozen_layers_stay_and_the_others_move() -> None:
    classifier = build(freeze="conv")
    before = classifiers.weights(classifier)
    trainer = trainer_of(classifier)
    _, weight, gradients = trainer.gradients(batch_of(), 0)
    trainer.apply(gradients, weight, 1e-2)
    moved = {name for name, array in classifiers.weights(classifier).items() if (array != before[name]).any()}
    assert {"backbone/fc1_1/kernel", "backbone/fc2/bias", "head/logits/kernel"} <= moved
    assert not any(name.startswith("backbone/conv") for name in moved)


def test_weight_decay_shrinks_kernels_and_leaves_biases() -> None:
    classifier = build()
    settings = TrainSettings(jit=False, weight_decay=0.5)
    trainer = trainer_of(classifier, settings)
    classifier.head.get_layer("logits").bias.assign([1.0, 2.0, 3.0])
    before = classifiers.weights(classifier)
    nothing = [np.zeros(v.shape, np.float32) for v in classifier.trainable_variables]
    trainer.apply(nothing, np.float32(1), 0.1)
    after = classifiers.weights(classifier)
    np.testing.assert_allclose(after["backbone/conv1/kernel"], before["backbone/conv1/kernel"] * 0.95, rtol=1e-5)
    np.testing.assert_array_equal(after["head/logits/bias"], before["head/logits/bias"])


def test_dropout_is_drawn_from_seed_and_position_alone() -> None:
    trainer = trainer_of(build(), dropout=0.5)
    losses = [float(trainer.gradients(batch_of(), position)[0]) for position in (0, 1, 0)]
    assert losses[0] == losses[2] != losses[1]
    again = trainer_of(build(), dropout=0.5)
    assert float(again.gradients(batch_of(), 1)[0]) == losses[1]


@pytest.mark.parametrize(
    ("scores", "precision"),
    [("softmax", "float32"), ("sigmoid", "mixed_bfloat16"), ("softmax", "mixed_float16")],
)
def test_it_learns_what_can_be_learnt(scores: str, precision: str) -> None:
    trainer = trainer_of(build(scores=scores, precision=precision), precision=precision)
    losses = []
    for position in range(25):
        loss, weight, gradients = trainer.gradients(batch_of(12, seed=position), position)
        trainer.apply(gradients, weight, 1e-3)
        losses.append(float(loss) / float(weight))
    assert losses[-1] < 0.5 * losses[0]


# ---- which epoch is best ------------------------------------------------------------------------


def test_the_higher_mean_of_accuracy_and_precision_wins_then_the_lower_loss() -> None:
    best = {"val_macro_ap": 0.8, "val_accuracy": 0.7, "val_loss": 0.5, "train_loss": 0.1}
    assert is_better({**best, "val_macro_ap": 0.75, "val_accuracy": 0.8}, best)
    assert not is_better({**best, "val_macro_ap": 0.85, "val_accuracy": 0.6}, best)
    assert is_better({**best, "val_macro_ap": 0.9, "val_loss": 9.0}, best)
    assert not is_better({**best, "val_macro_ap": 0.7, "val_loss": 0.1}, best)
    assert is_better({**best, "val_macro_ap": 0.80001, "val_loss": 0.4}, best)
    assert not is_better(dict(best), best)
    assert is_better(best, None)


def test_without_validation_the_training_loss_decides() -> None:
    assert is_better({"train_loss": 0.1}, {"train_loss": 0.2})
    assert not is_better({"train_loss": 0.3}, {"train_loss": 0.2})


# ---- whole loops --------------------------------------------------------------------------------


class MadeBatches:
    """Stands in for Batches: four batches an epoch, a function of (epoch, step) as the real ones are."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return 4

    def batch(self, epoch: int, step: int) -> Batch:
        self.asked.append((epoch, step))
        return batch_of(6, seed=epoch * 4 + step)


def loop_of(
    folder: Path, settings: TrainSettings, *, interrupts: Interrupts | None = None,
    validations: Iterator[Any] | None = None, batches: Any = None, classifier: Classifier | None = None,
    dropout: float = 0.0, journal: Journal | None = None,
) -> Loop:  # fmt: skip
    trainer = trainer_of(classifier or build(), settings, dropout=dropout)
    return Loop(
        trainer, batches or MadeBatches(), settings, Checkpoints(folder / "checkpoints", settings.keep_checkpoints),
        validate=(lambda: next(validations)) if validations else dict, journal=journal or Journal(quiet=True),
        interrupts=interrupts or Interrupts(), tensorboard=folder / "tensorboard",
    )  # fmt: skip


def rows_without_times(state: State) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in state.history]


# Before anything is saved, in the second epoch, and where an epoch's last update takes fewer batches.
@pytest.mark.parametrize(("stop_at", "accumulate"), [(1, 1), (6, 1), (3, 3)])
def test_a_stopped_loop_goes_on_to_the_very_same_weights(
    tmp_path: Path, stop_at: int, accumulate: int
) -> None:
    settings = TrainSettings(epochs=2, jit=False, accumulate=accumulate, learning_rate=1e-3)
    straight = loop_of(tmp_path / "straight", settings, dropout=0.3)
    expected = straight.run()
    with pytest.raises(Interrupted):
        loop_of(tmp_path / "stopped", settings, dropout=0.3, interrupts=StopAt(stop_at)).run()
    resumed = loop_of(tmp_path / "stopped", settings, dropout=0.3)
    state = resumed.run()
    digests = {
        classifiers.weights_sha256(classifiers.weights(loop.trainer.classifier))
        for loop in (straight, resumed)
    }
    assert len(digests) == 1
    assert rows_without_times(state) == rows_without_times(expected)
    assert state.updates == expected.updates == 2 * -(-4 // accumulate)


def test_figures_of_a_validation_that_swallowed_a_stop_are_not_believed(tmp_path: Path) -> None:
    settings = TrainSettings(epochs=1, jit=False)
    stop = StopAt(10_000)
    loop = loop_of(tmp_path, settings, interrupts=stop)

    def validate() -> dict[str, float]:
        stop.left = 1
        return {"val_loss": 99.0}

    loop.validate = validate
    with pytest.raises(Interrupted):
        loop.run()
    assert loop.checkpoints.names() == ["epoch-0000-step-000004"]
    state = loop_of(tmp_path, settings, validations=iter([{"val_loss": 1.0}])).run()
    assert [row["val_loss"] for row in state.history] == [1.0]


def test_before_the_first_update_there_is_nothing_to_save(tmp_path: Path) -> None:
    loop = loop_of(tmp_path, TrainSettings(epochs=1, jit=False), interrupts=StopAt(1))
    with pytest.raises(Interrupted):
        loop.run()
    assert loop.checkpoints.names() == []


@pytest.mark.parametrize(
    ("minutes", "looks", "saved"),
    [
        (1e-9, 3, [1]),  # between the first update, which was saved when it was done, and the second
        (10, 3, [1]),  # the same place, where nothing was saved before
        (10, 2, []),  # right after the first update: compiling it has taken longer than doing it again
        (10, 4, [2]),
    ],
)
def test_what_is_saved_already_or_soon_done_again_is_not_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, minutes: float, looks: int, saved: list[int]
) -> None:
    settings = TrainSettings(epochs=2, jit=False, checkpoint_minutes=minutes)
    loop = loop_of(tmp_path, settings, interrupts=StopAt(looks))
    found = []
    monkeypatch.setattr(loop.checkpoints, "save", lambda weights, optimizer, state: found.append(state.updates))
    with pytest.raises(Interrupted):
        loop.run()
    assert found == saved


def test_a_stop_that_meets_a_full_disk_is_a_stop_and_says_what_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path, quiet=True)
    settings = TrainSettings(epochs=1, jit=False)
    loop = loop_of(tmp_path, settings, interrupts=StopAt(4), journal=journal)

    def refuse(*arguments: object) -> None:
        raise RetryableError("checkpoints: the disk is full")

    monkeypatch.setattr(loop.checkpoints, "save", refuse)
    with pytest.raises(Interrupted):
        loop.run()
    journal.close()
    assert "could not be saved" in (tmp_path / "run.log").read_text("utf-8")
    journal.write_to(tmp_path / "again")
    monkeypatch.setattr(journal, "warn", refuse)
    loop = loop_of(tmp_path, settings, interrupts=StopAt(4), journal=journal)
    monkeypatch.setattr(loop.checkpoints, "save", refuse)
    with pytest.raises(Interrupted):
        loop.run()
    journal.close()


@pytest.mark.parametrize("epochs", [2, 9])  # by the last epoch, or by the next
def test_a_checkpoint_that_the_storage_refuses_ends_it_and_its_epoch_is_in_no_event(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epochs: int
) -> None:
    journal, saved = Journal(tmp_path, quiet=True), Checkpoints.save

    def refuse(self: Checkpoints, weights: Any, optimizer: Any, state: State) -> Path:
        if state.epoch == 2:
            raise RetryableError("checkpoints: the disk is full")
        return saved(self, weights, optimizer, state)

    monkeypatch.setattr(Checkpoints, "save", refuse)
    settings = TrainSettings(epochs=epochs, jit=False)
    with pytest.raises(RetryableError, match="disk is full"):
        loop_of(tmp_path, settings, journal=journal).run()
    assert [event["epoch"] for event in journal.events("epoch")] == [1]
    assert Checkpoints(tmp_path / "checkpoints", 2).names() == ["epoch-0001-step-000000"]
    journal.close()


def test_a_stop_waits_for_the_checkpoint_that_is_being_written_and_saves_no_second_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = loop_of(tmp_path, TrainSettings(epochs=3, jit=False), interrupts=StopAt(12))  # in the second epoch
    stopped, saved = threading.Event(), loop.checkpoints.save
    say = loop.journal.say

    def save(weights: Any, optimizer: Any, state: State) -> Path:
        assert stopped.wait(60)
        return saved(weights, optimizer, state)

    def listen(line: str) -> None:
        say(line)
        if "told to stop: saving" in line:
            stopped.set()

    monkeypatch.setattr(loop.checkpoints, "save", save)
    monkeypatch.setattr(loop.journal, "say", listen)
    with pytest.raises(Interrupted):
        loop.run()
    assert loop.state.updates > 4
    assert loop.checkpoints.names() == ["epoch-0001-step-000000"]


def test_a_signal_does_not_wait_for_gradients_that_nobody_needs_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Interrupts().watching() as interrupts:
        loop = loop_of(tmp_path, TrainSettings(epochs=3, jit=False), interrupts=interrupts)
        computed, ended, gradients = threading.Event(), list[int](), loop.trainer.gradients

        def slow(batch: Batch, position: int) -> Any:
            if position != 2:
                return gradients(batch, position)
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                assert computed.wait(60)
            finally:
                ended.append(position)

        monkeypatch.setattr(loop.trainer, "gradients", slow)
        with pytest.raises(Interrupted):
            loop.run()
        assert ended == []
        assert loop.checkpoints.names() == ["epoch-0000-step-000002"]
        computed.set()


def test_room_for_the_checkpoints_is_asked_for_before_the_first_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = loop_of(tmp_path, TrainSettings(epochs=5, jit=False, keep_checkpoints=1))
    arrays = [*classifiers.weights(loop.trainer.classifier).values(), *loop.trainer.state_arrays().values()]
    assert loop.trainer.state_bytes == sum(array.nbytes for array in arrays)
    monkeypatch.setattr("birdtune.runtime.storage.free_bytes", lambda path: 2 * loop.trainer.state_bytes - 1)
    with pytest.raises(RetryableError, match="for 2 more checkpoints"):
        loop.run()
    assert loop.batches.asked == []


def test_curves_have_each_point_once_however_often_the_job_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorboard, "_POINT_EVERY", 2)
    settings = TrainSettings(epochs=3, jit=False, learning_rate=1e-3)
    figures = [{"val_loss": loss, "val_accuracy": 0.5, "val_macro_ap": 0.5} for loss in (3.0, 2.0, 1.0)]
    loop_of(tmp_path / "straight", settings, validations=iter(figures)).run()

    class Killed(Exception):  # noqa: N818 -- unlike an interruption it leaves no time to save
        pass

    class KilledAt(StopAt):
        def check(self) -> None:
            try:
                super().check()
            except Interrupted:
                raise Killed from None

    for looks in (12, 7):  # in the second epoch, after its second and after its third update
        with pytest.raises(Killed):
            stopped = loop_of(
                tmp_path / "killed", settings, validations=iter(figures), interrupts=KilledAt(looks)
            )
            stopped.run()
        figures_left = figures[stopped.state.epoch :]
    loop_of(tmp_path / "killed", settings, validations=iter(figures_left)).run()
    found = points_of(tmp_path / "killed/tensorboard")
    assert found == points_of(tmp_path / "straight/tensorboard")
    assert [step for step, _ in found["train/loss"]] == [2, 4, 6, 8, 10, 12]
    assert found["epoch/val_loss"] == [(4, 3.0), (8, 2.0), (12, 1.0)]


def test_a_long_curve_is_thinned_out_by_the_number_of_updates_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorboard, "_MOST_POINTS", 8)
    monkeypatch.setattr(tensorboard, "_POINT_EVERY", 5)
    trace: list[list[float]] = []
    new = [update for update in range(1, 201) if tensorboard.add_point(trace, update, update / 2, 0.1)]
    assert [point[0] for point in trace] == [40, 80, 120, 160, 200]
    assert trace[0] == [40, 20.0, 0.1]
    assert new[:9] == [5, 10, 15, 20, 25, 30, 35, 40, 45] and new[9:11] == [50, 60]


def test_epochs_that_a_killed_job_did_not_report_are_reported_by_the_next(tmp_path: Path) -> None:
    settings = TrainSettings(epochs=3, jit=False)
    journal = Journal(tmp_path / "logs", quiet=True)
    loop = loop_of(tmp_path, settings, journal=journal)

    def killed(row: dict[str, Any], best: bool) -> None:
        raise Interrupted(9)

    loop._tell = killed  # type: ignore[method-assign]
    with pytest.raises(Interrupted):
        loop.run()
    loop_of(tmp_path, settings, journal=journal).run()
    told = journal.events("epoch")
    assert [event["epoch"] for event in told] == [1, 2, 3]
    assert told[0]["best"] is True and told[0]["train_loss"] > 0
    journal.close()


def test_a_start_of_which_nothing_is_left_is_reported(tmp_path: Path) -> None:
    settings = TrainSettings(epochs=1, jit=False)
    journal = Journal(tmp_path / "logs", quiet=True)
    first = loop_of(tmp_path, settings, journal=journal)
    first.run()
    assert journal.events("resumed") == []
    first.checkpoints.clear()
    loop_of(tmp_path, settings, journal=journal).run()
    assert [(event["epoch"], event["step"]) for event in journal.events("resumed")] == [(0, 0)]
    journal.close()


def test_a_finished_loop_asks_for_no_batch_and_clears_up(tmp_path: Path) -> None:
    settings = TrainSettings(epochs=1, jit=False, keep_checkpoints=1)
    loop_of(tmp_path, settings).run()
    (tmp_path / "checkpoints/epoch-0000-step-000003").mkdir()  # what is left of it: the job was killed
    batches = MadeBatches()
    state = loop_of(tmp_path, settings, batches=batches).run()
    assert batches.asked == [] and state.finished
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["epoch-0001-step-000000"]


def test_patience_ends_it_and_the_best_epoch_is_kept(tmp_path: Path) -> None:
    settings = TrainSettings(epochs=9, early_stopping_patience=2, jit=False, keep_checkpoints=1)
    figures = iter(
        [{"val_macro_ap": ap, "val_loss": 1.0, "val_accuracy": ap} for ap in (0.5, 0.9, 0.8, 0.7, 0.6)]
    )
    loop = loop_of(tmp_path, settings, validations=figures)
    state = loop.run()
    assert [row["epoch"] for row in state.history] == [1, 2, 3, 4]
    assert state.finished and state.best is not None and state.best["epoch"] == 2
    assert loop.checkpoints.names() == ["epoch-0002-step-000000", "epoch-0004-step-000000"]
    kept = Checkpoints(tmp_path / "checkpoints", 1).best()
    assert classifiers.weights_sha256(kept) != classifiers.weights_sha256(
        classifiers.weights(loop.trainer.classifier)
    )


def test_nan_stops_with_the_step_the_rate_and_advice_and_is_not_saved(tmp_path: Path) -> None:
    class Poisoned(MadeBatches):
        def batch(self, epoch: int, step: int) -> Batch:
            made = super().batch(epoch, step)
            if (epoch, step) == (1, 2):
                made.features[0, 0, 0] = np.nan
            return made

    loop = loop_of(tmp_path, TrainSettings(epochs=3, jit=False, learning_rate=1e-3), batches=Poisoned())
    with pytest.raises(
        DivergedError,
        match=r"epoch 2, update 7: the (loss is|gradients are) nan at learning rate \d.*--train\.learning-rate",
    ):
        loop.run()
    saved, _ = loop.checkpoints.newest()
    assert saved is not None and (saved.state.epoch, saved.state.step) == (1, 0)
    assert all(np.isfinite(array).all() for array in saved.weights.values())


def test_nan_before_any_update_is_not_blamed_on_the_learning_rate(tmp_path: Path) -> None:
    classifier = build()
    for layer in classifier.network.layers:
        if layer.weights:
            layer.kernel.assign(1e30 * layer.kernel)
    loop = loop_of(tmp_path, TrainSettings(epochs=3, jit=False), classifier=classifier)
    with pytest.raises(DivergedError, match=r"epoch 1, update 1: .* before any weight.*--model\.checkpoint") as fault:
        loop.run()
    assert "learning-rate" not in str(fault.value)


def test_after_each_epoch_the_state_is_shown(tmp_path: Path) -> None:
    shown: list[tuple[int, bool]] = []
    loop = loop_of(tmp_path, TrainSettings(epochs=2, jit=False))
    loop.after_epoch = lambda state: shown.append((len(state.history), state.finished))
    loop.run()
    assert shown == [(1, False), (2, True)]


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    classifier = build()
    loop = loop_of(
        tmp_path, TrainSettings(epochs=1, jit=False), classifier=classifier, validations=iter([{}])
    )

    def spoil() -> dict[str, Any]:
        classifier.head.get_layer("logits").bias.assign([np.inf, 0, 0])
        return {}

    loop.validate = spoil
    with pytest.raises(DivergedError, match="head/logits/bias"):
        loop.run()
    assert loop.checkpoints.names() == []


def test_a_checkpoint_is_written_within_an_epoch_when_the_time_has_come(tmp_path: Path) -> None:
    settings = TrainSettings(epochs=1, jit=False, checkpoint_minutes=1e-9, keep_checkpoints=10)
    loop = loop_of(tmp_path, settings)
    loop.run()
    assert [name[-6:] for name in loop.checkpoints.names()] == ["000001", "000002", "000003", "000000"]


def test_the_compiled_update_is_the_plain_one() -> None:
    plain, compiled = build(), build()
    for classifier, jit in ((plain, False), (compiled, True)):
        trainer = trainer_of(classifier, TrainSettings(jit=jit))
        for position in range(2):
            _, weight, gradients = trainer.gradients(batch_of(seed=position), position)
            trainer.apply(gradients, weight, 1e-3)
    for name, array in classifiers.weights(plain).items():
        np.testing.assert_allclose(array, classifiers.weights(compiled)[name], atol=1e-5, err_msg=name)


def test_optimizer_state_has_a_name_for_each_variable() -> None:
    trainer = trainer_of(build())
    arrays = trainer.state_arrays()
    assert len(arrays) == len(trainer.optimizer.variables) > 2 * len(trainer.classifier.trainable_variables)
    assert isinstance(trainer.optimizer, keras.optimizers.AdamW)


@pytest.mark.parametrize("jit", [False, True])
def test_what_is_seen_of_the_weights_stays_while_training_goes_on(jit: bool) -> None:
    trainer = trainer_of(build(), TrainSettings(jit=jit))

    def update(position: int) -> None:
        _, weight, gradients = trainer.gradients(batch_of(seed=position), position)
        trainer.apply(gradients, weight, 1e-2)

    update(0)
    seen = classifiers.weights(trainer.classifier, viewed) | trainer.state_arrays()
    before = {name: array.copy() for name, array in seen.items()}
    update(1)
    for name, array in seen.items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)
    after = classifiers.weights(trainer.classifier, viewed)
    assert any((after[name] != before[name]).any() for name in after)


def test_a_disk_too_full_for_the_curves_is_reported_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = tf.errors.ResourceExhaustedError(None, None, "events.out.tfevents; No space left on device")

    def refuse(*arguments: object, **how: object) -> None:
        raise full

    drawn = tensorboard.Curves(tmp_path / "tensorboard", State(), 4)
    monkeypatch.setattr(tf.summary, "scalar", refuse)
    monkeypatch.setattr(drawn._writer, "close", refuse)
    with pytest.raises(RetryableError, match=r"tensorboard: the disk is full while writing the curves"), drawn:
        drawn.draw_epoch({"loss": 0.5}, 4)
    with pytest.raises(RetryableError, match="disk is full"):
        drawn.close()
    with pytest.raises(Interrupted), tensorboard.Curves(tmp_path / "tensorboard", State(), 4) as drawn:
        monkeypatch.setattr(drawn._writer, "close", refuse)
        raise Interrupted(15)
