"""What the step is fed with: frozen layers once and for all, the same training as without."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tensorflow as tf
from makers import Said, StopAt, make_store, one_class_each, quiet

from birdtune.data.batches import Batches, Windows
from birdtune.data.clips import ClipBatches
from birdtune.data.embedding_cache import KeptWindows
from birdtune.errors import DivergedError, Interrupted, RetryableError
from birdtune.models import classifier as classifiers
from birdtune.models import yamnet
from birdtune.models.classifier import Classifier
from birdtune.models.registry import BACKBONES
from birdtune.runtime import storage
from birdtune.runtime.log import Journal
from birdtune.runtime.signals import Interrupts
from birdtune.settings import TrainSettings
from birdtune.training import devices, inputs
from birdtune.training.checkpoints import Checkpoints, State
from birdtune.training.inputs import Feed, Frozen, Resident, in_memory
from birdtune.training.loop import Loop
from birdtune.training.scoring import make_scorer, score_windows
from birdtune.training.step import StepSettings, Trainer

LENGTHS = {"a": 96, "b": 249, "c": 949, "d": 96, "e": 149}  # 17 windows


def build(
    freeze: str, precision: str = "float32", embedding_activation: str = "relu", head: str = "linear"
) -> Classifier:
    return classifiers.build(
        backbone=BACKBONES["vggish-small"], head=head, hidden_units=8, prototypes=2, context=3,
        scores="sigmoid" if head == "sed-attention" else "softmax",
        embedding_activation=embedding_activation, freeze=freeze, classes=("A", "B", "C"), precision=precision, seed=1,
    )  # fmt: skip


@pytest.fixture
def windows(tmp_path: Path) -> Windows:
    store = make_store(tmp_path / "cache", LENGTHS)
    for path in store.folder.glob("shard-*"):
        frames = np.fromfile(path, "<f2").reshape(-1, 64)
        # Log-mel that differs from place to place, with a band of its own for each recording.
        rng = np.random.default_rng(len(frames))
        sound = rng.normal(-3, 1, frames.shape)
        sound[np.arange(len(frames)), frames[:, 0].astype(int) * 10 + 5] += 4
        path.write_bytes(sound.astype("<f2").tobytes())
    return Windows(store, list(LENGTHS), hop_rows=96)


def frozen(classifier: Classifier, windows: Windows, journal: Journal | None = None, **how: Any) -> Frozen:
    given = {"most_bytes": 1e9, "interrupts": Interrupts(), **how}
    return Frozen(classifier, store=windows.store, journal=journal or quiet(), **given)


# ---- the network in two parts -------------------------------------------------------------------


@pytest.mark.parametrize("point", ["conv1", "conv3_1", "conv", "fc1_1", "fc1_2", "all-but-head"])
@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_beginning_and_rest_are_the_whole_network(point: str, precision: str) -> None:
    backbone = build(point, precision).network
    features = np.random.default_rng(0).normal(-3, 1, (3, 96, 64)).astype(np.float32)
    beginning, rest = BACKBONES["vggish-small"].split(backbone)
    assert not beginning.trainable_variables
    given = beginning(features)
    np.testing.assert_array_equal(given if rest is None else rest(given), backbone(features))
    assert (rest is None) == (point == "all-but-head")


@pytest.mark.parametrize("backbone", ["vggish-small", "yamnet"])
@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_what_a_cut_is_said_to_leave_is_what_the_beginning_leaves(backbone: str, precision: str) -> None:
    net = BACKBONES[backbone].network(embedding_activation="relu", precision=precision, seed=None)
    for n, row in enumerate(BACKBONES[backbone].layers, start=1):
        BACKBONES[backbone].freeze(net, row.name)
        output = BACKBONES[backbone].split(net)[0].output
        cut = BACKBONES[backbone].cut(n)
        assert cut.numbers == np.prod(output.shape[1:])
        assert cut.row_bytes(precision) == cut.numbers * tf.as_dtype(output.dtype).size
        assert cut.frozen_flops + cut.rest_flops == BACKBONES[backbone].window_flops()
        assert cut.is_whole == (not cut.rest_flops)


def test_yamnet_has_two_parts_as_well() -> None:
    backbone = yamnet.BACKBONE.network(embedding_activation="relu", precision="float32", seed=2)
    features = np.random.default_rng(0).normal(-3, 1, (2, 96, 64)).astype(np.float32)
    yamnet.BACKBONE.freeze(backbone, "layer6_depthwise")
    beginning, rest = yamnet.BACKBONE.split(backbone)
    assert rest is not None and rest.trainable_variables and not beginning.trainable_variables
    np.testing.assert_allclose(rest(beginning(features)), backbone(features), atol=1e-5)


def test_where_nothing_is_frozen_there_is_one_part(windows: Windows) -> None:
    classifier = build("none")
    assert classifier.backbone.n_frozen(classifier.network) == 0
    feed = frozen(classifier, windows).feed(windows, what="training")
    assert feed.source is windows and feed.convolves


# ---- the same training ---------------------------------------------------------------------------


def loop_of(
    folder: Path, windows: Windows, point: str, *, kept: bool = True, interrupts: Interrupts | None = None,
    settings: TrainSettings | None = None, dropout: float = 0.3, memory: bool = True, head: str = "linear",
) -> Loop:  # fmt: skip
    settings = settings or TrainSettings(epochs=3, batch_size=4, learning_rate=1e-2, jit=True)
    classifier = build(point, head=head)
    feed = inputs.whole(classifier, windows)
    if kept:
        feed = frozen(classifier, windows).feed(windows, what="training")
        feed = in_memory(feed) if memory else feed
    how = {"batch_size": settings.batch_size, "seed": settings.seed, "jitter_rows": round(100 * settings.jitter_s)}
    targets = one_class_each(windows, [0, 1, 2, 1, 0], classifier.kind)
    batches = Batches(feed.source, targets, **how)
    if classifier.by_recording:
        batches = ClipBatches(feed.source, targets, **how, context=classifier.pooling.context)
    return Loop(
        Trainer(classifier, settings, StepSettings(dropout, np.ones(3, np.float32), "float32"), feed), batches,
        settings, Checkpoints(folder / "checkpoints", settings.keep_checkpoints), validate=dict, journal=quiet(),
        interrupts=interrupts or Interrupts(), tensorboard=folder / "tensorboard",
    )  # fmt: skip


def rows_without_times(state: State) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in state.history]


def weights_of(loop: Loop) -> dict[str, npt.NDArray[np.float32]]:
    return classifiers.weights(loop.trainer.classifier)


@pytest.mark.parametrize(
    ("point", "head"),
    [("conv", "linear"), ("fc1_2", "linear"), ("all-but-head", "linear"), ("fc1_2", "attention"), ("fc1_2", "gru")],
)
def test_training_on_what_is_kept_is_training_on_the_sound(
    tmp_path: Path, windows: Windows, point: str, head: str
) -> None:
    # Four layers of recurrences at a high rate make much of what processors round differently.
    rate = 1e-3 if head == "gru" else 1e-2
    settings = TrainSettings(epochs=3, batch_size=4, learning_rate=rate, jit=head == "attention")
    # Without dropout, whose masks XLA draws otherwise.
    how: dict[str, Any] = {"dropout": 0.0, "head": head, "settings": settings}
    plain = loop_of(tmp_path / "plain", windows, point, kept=False, **how)
    begun = weights_of(plain)
    kept = loop_of(tmp_path / "kept", windows, point, **how)
    expected, state = plain.run(), kept.run()
    assert plain.trainer.updates_per_call == 1 and kept.trainer.updates_per_call > 1
    assert state.updates == expected.updates == 3 * 5  # of 17 windows by four, or five recordings one by one
    for one, other in zip(state.history, expected.history, strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-4)
    for name, array in weights_of(plain).items():
        moved = np.abs(array - begun[name]).max()
        np.testing.assert_allclose(weights_of(kept)[name], array, atol=0.02 * moved, err_msg=name)


@pytest.mark.parametrize(
    ("leap", "stop_at", "head"),
    [
        (1, 2, "linear"), (2, 1, "linear"), (2, 4, "linear"), (256, 2, "linear"), (2, 4, "attention"),
        (2, 4, "prototype"), (2, 4, "sed-attention"), (2, 4, "self-attention"), (2, 4, "lstm"), (2, 1, "gru"),
        (1, 7, "attention"),
    ],
)
def test_a_stopped_run_goes_on_to_the_very_same_weights(
    tmp_path: Path, windows: Windows, monkeypatch: pytest.MonkeyPatch, leap: int, stop_at: int, head: str
) -> None:
    monkeypatch.setattr("birdtune.training.step._MOST_UPDATES_A_CALL", leap)
    average = 0.8 if head == "attention" else 0.0
    compiled = (leap, stop_at) == (2, 4)  # that XLA does not change it, each head shows once
    settings = TrainSettings(epochs=3, batch_size=4, learning_rate=1e-2, ema_decay=average, jit=compiled)
    how: dict[str, Any] = {"head": head, "settings": settings}
    straight = loop_of(tmp_path / "straight", windows, "all-but-head", **how)
    expected = straight.run()
    with pytest.raises(Interrupted):
        loop_of(tmp_path / "stopped", windows, "all-but-head", interrupts=StopAt(stop_at), **how).run()
    resumed = loop_of(tmp_path / "stopped", windows, "all-but-head", **how)
    state = resumed.run()
    assert len({classifiers.weights_sha256(weights_of(loop)) for loop in (straight, resumed)}) == 1
    bests = [loop.checkpoints.best() for loop in (straight, resumed)]
    assert len({classifiers.weights_sha256(best) for best in bests}) == 1
    newest, _ = resumed.checkpoints.newest()
    assert newest is not None
    is_raw = [np.array_equal(newest.weights[name], array) for name, array in weights_of(resumed).items()]
    assert all(is_raw) == (not average)  # what is kept, judged and exported is the average, if there is one
    assert rows_without_times(state) == rows_without_times(expected)


def test_how_many_updates_a_call_does_changes_nothing(
    tmp_path: Path, windows: Windows, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = set()
    for leap in (2, 3, 256):
        monkeypatch.setattr("birdtune.training.step._MOST_UPDATES_A_CALL", leap)
        loop = loop_of(tmp_path / str(leap), windows, "all-but-head", memory=leap != 3)
        loop.run()
        digests.add(classifiers.weights_sha256(weights_of(loop)))
    assert len(digests) == 1


def test_accumulated_updates_are_done_one_by_one(tmp_path: Path, windows: Windows) -> None:
    settings = TrainSettings(epochs=1, batch_size=4, accumulate=2, jit=False)
    loop = loop_of(tmp_path, windows, "all-but-head", settings=settings)
    assert loop.trainer.updates_per_call == 1
    assert loop.run().updates == 3


def test_nan_in_the_middle_of_a_call_is_told_with_its_update(tmp_path: Path, windows: Windows) -> None:
    loop = loop_of(tmp_path, windows, "all-but-head")
    real = loop.trainer.updates

    def spoilt(*arguments: Any) -> npt.NDArray[np.float32]:
        found = real(*arguments).copy()
        found[2, 0] = np.nan
        return found

    loop.trainer.updates = spoilt  # type: ignore[method-assign]
    with pytest.raises(DivergedError, match="epoch 1, update 3: the loss is nan"):
        loop.run()
    assert loop.checkpoints.names() == []


# ---- scoring -------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", ["conv", "all-but-head"])
def test_scores_of_what_is_kept_are_those_of_the_sound(windows: Windows, point: str) -> None:
    classifier = build(point)
    feed = frozen(classifier, windows).feed(windows, what="validation")
    assert isinstance(feed.source, KeptWindows)
    found = score_windows(make_scorer(classifier, feed.embed), feed.source, 8, Interrupts())
    expected = score_windows(make_scorer(classifier), windows, 8, Interrupts())
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_job_with_few_windows_is_not_warned_of_compiling_often(
    windows: Windows, monkeypatch: pytest.MonkeyPatch
) -> None:
    warned: list[object] = []
    monkeypatch.setattr(tf.get_logger(), "warning", lambda *said: warned.append(said))
    classifier = build("none")
    for _ in range(6):  # each part of a job makes its own, and calls it once where there is one batch
        score_windows(make_scorer(classifier), windows, len(windows), Interrupts())
    assert warned == []


# ---- kept or not ---------------------------------------------------------------------------------


def test_frozen_layers_are_computed_once_and_again_for_other_weights(windows: Windows) -> None:
    journal = Said()
    frozen(build("conv"), windows, journal).feed(windows, what="training")
    frozen(build("conv"), windows, journal).feed(windows, what="training")
    other = build("conv")
    other.network.get_layer("conv3_1").bias.assign(np.ones(32))
    frozen(other, windows, journal).feed(windows, what="training")
    assert [("computed once, for 17 windows" in line, "is there" in line) for line in journal.lines] == [
        (True, False), (False, True), (True, False),
    ]  # fmt: skip
    # What is trained does not count.
    head = build("conv")
    head.network.get_layer("fc2").bias.assign(np.ones(128))
    frozen(head, windows, journal).feed(windows, what="training")
    assert "is there" in journal.lines[-1]


@pytest.mark.parametrize(
    ("point", "how", "why"),
    [
        ("conv", {"moves": "jitter"}, "jitter"),
        ("conv", {"most_bytes": 1000.0}, r"104 kB \(--train.cache-gb\)"),
        ("conv1", {}, "faster than reading"),
    ],
)
def test_what_cannot_be_kept_is_computed_in_each_epoch_and_that_is_said(
    windows: Windows, point: str, how: dict[str, Any], why: str
) -> None:
    journal = Said()
    moves = how.pop("moves", False)
    feed = frozen(build(point), windows, journal, **how).feed(windows, what="training", moves=moves)
    assert feed.source is windows and feed.convolves
    (line,) = journal.lines
    assert re.search(why, line), line


def test_a_run_that_goes_on_keeps_them_if_it_began_so(
    windows: Windows, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = frozen(build("conv"), windows)
    begun.feed(windows, what="training")
    assert begun.kept == {"training": True}
    no_room = {"most_bytes": 0.0}
    feed = frozen(build("conv"), windows, kept={"training": True}, **no_room).feed(windows, what="training")
    assert isinstance(feed.source, KeptWindows)
    feed = frozen(build("conv"), windows, kept={"training": False}).feed(windows, what="training")
    assert feed.source is windows
    # Nor is it begun where it cannot be finished.
    monkeypatch.setattr(storage, "free_bytes", lambda path: 100)
    with pytest.raises(RetryableError, match="the frozen layers make of 17 windows"):
        frozen(build("conv3_2"), windows, kept={"training": True}).feed(windows, what="training")


def test_damaged_activations_are_told_and_made_again(windows: Windows) -> None:
    feed = frozen(build("conv"), windows).feed(windows, what="training")
    before = feed.source.features(np.arange(17))
    (folder,) = windows.store.folder.glob("frozen-*")
    (shard,) = folder.glob("shard-*")
    damaged = bytearray(shard.read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    shard.write_bytes(damaged)
    journal = Said()
    feed = frozen(build("conv"), windows, journal).feed(windows, what="training")
    assert "1 recordings had damaged numbers" in journal.lines[0]
    np.testing.assert_array_equal(feed.source.features(np.arange(17)), before)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"freeze": "conv"}, {"freeze": "fc1_1"}),
        ({"freeze": "conv"}, {"freeze": "conv", "precision": "mixed_bfloat16"}),
        ({"freeze": "all-but-head"}, {"freeze": "all-but-head", "embedding_activation": "none"}),
    ],
)
def test_what_other_layers_made_is_not_taken_for_theirs(
    windows: Windows, one: dict[str, str], other: dict[str, str]
) -> None:
    journal = Said()
    for how in (one, other):
        frozen(build(**how), windows, journal).feed(windows, what="training")
    assert ["computed once" in line for line in journal.lines] == [True, True]
    assert len(list(windows.store.folder.glob("frozen-*"))) == 2


def test_a_full_disk_is_foreseen(windows: Windows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "free_bytes", lambda path: 100_000)
    journal = Said()
    feed = frozen(build("conv"), windows, journal).feed(windows, what="training")
    assert feed.source is windows and "100 kB are free" in journal.lines[0]


def test_room_for_the_checkpoints_is_left(windows: Windows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "free_bytes", lambda path: 10**9)
    journal = Said()
    for reserved_bytes, is_kept in ((10**9 - 100_000, False), (0, True)):
        feed = frozen(build("conv"), windows, journal, reserved_bytes=reserved_bytes).feed(windows, what="training")
        assert (feed.source is not windows) == is_kept
    assert "1.0 GB are free (1,000 MB of it for checkpoints)" in journal.lines[0]


def test_what_other_settings_left_is_given_back(windows: Windows) -> None:
    cache = windows.store.folder
    frozen(build("fc1_2"), windows).feed(windows, what="training")
    windows.store.in_use.clear()  # as a later run begins
    kept = frozen(build("conv"), windows)
    kept.feed(windows, what="training")
    assert len(list(cache.glob("frozen-*"))) == 2
    kept.drop_unused()
    (left,) = cache.glob("frozen-*")
    assert len(list(left.glob("shard-*"))) == 1
    windows.store.in_use.clear()
    frozen(build("none"), windows).drop_unused()
    assert not list(cache.glob("frozen-*")) and list(cache.glob("shard-*"))


# ---- in memory -----------------------------------------------------------------------------------


@pytest.fixture
def large_card(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Frames are put into memory only where that is a card's; here is none."""
    monkeypatch.setattr(devices, "memory_bytes", lambda: 1 << 30)
    yield


@pytest.mark.usefixtures("large_card")
def test_frames_in_memory_are_those_on_the_disk(windows: Windows) -> None:
    classifier = build("none")
    plain = inputs.whole(classifier, windows)
    resident = in_memory(plain)
    assert isinstance(resident.source, Resident) and len(resident.source) == len(windows)
    one, other = (
        Batches(feed.source, one_class_each(windows, [0] * 5), batch_size=5, seed=3, jitter_rows=40).batch(1, 2)
        for feed in (plain, resident)
    )
    assert other.features.shape == (5,) and one.windows.tolist() == other.windows.tolist()
    np.testing.assert_array_equal(
        plain.embed(tf.constant(one.features)), resident.embed(tf.constant(other.features))
    )


def test_what_does_not_fit_into_memory_stays_on_the_disk(
    windows: Windows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "_MOST_RESIDENT_BYTES", 1000)
    feed = frozen(build("conv"), windows).feed(windows, what="training")
    assert in_memory(feed) is feed
    assert in_memory(inputs.whole(build("none"), windows)).source is windows


def test_a_card_is_given_many_updates_at_once(windows: Windows, monkeypatch: pytest.MonkeyPatch) -> None:
    def calls(feed: Feed, **how: Any) -> int:
        step = StepSettings(0.0, np.ones(3, np.float32), "float32")
        return Trainer(classifier, TrainSettings(jit=False, **how), step, feed).updates_per_call

    classifier = build("none")
    assert calls(inputs.whole(classifier, windows)) == 1
    monkeypatch.setattr(devices, "has_gpu", lambda: True)
    assert calls(inputs.whole(classifier, windows), batch_size=128) > 100
    assert calls(inputs.whole(classifier, windows), accumulate=2) == 1
