"""How often each class is trained on, and how much each recording counts."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from makers import make_store, one_class_each, recording
from test_augment import Sounds

from birdtune.audio.logmel import VGGISH, YAMNET
from birdtune.config import Config
from birdtune.data import sampling
from birdtune.data.batches import Batches, Windows
from birdtune.data.clips import ClipBatches
from birdtune.data.labels import Label
from birdtune.data.sampling import Examples, Sampler, quotas
from birdtune.data.targets import WindowTargets, targets_of
from birdtune.errors import InputError
from birdtune.settings import TrainSettings

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

# ---- classes ------------------------------------------------------------------------------------

class _Each:
    """As many recordings as windows, of a second each."""

    def __init__(self, n: int) -> None:
        self.recording = np.arange(n)

    def __len__(self) -> int:
        return len(self.recording)

    def seconds(self, windows: Ints, shift: Ints | None = None) -> tuple[Floats, Floats]:
        return np.zeros(len(windows)), np.ones(len(windows))


def examples_of(classes: Ints | list[list[Label]], kind: str = "softmax", n_classes: int = 4) -> Examples:
    """Windows of one class each, or with these labels."""
    labels = [[Label(str(some))] if np.isscalar(some) else some for some in classes]
    names = [str(column) for column in range(n_classes)]
    return Examples(WindowTargets(targets_of(labels, names), _Each(len(labels)), kind))



def test_without_a_power_the_classes_stay_as_they_were_found() -> None:
    assert quotas([100, 7, 1], 0.0).tolist() == [100, 7, 1]
    assert sampling.sampler(examples_of(np.repeat(np.arange(3), [9, 4, 2])), TrainSettings()) is None


def test_power_one_makes_all_alike_and_the_epoch_stays_as_long() -> None:
    assert quotas([100, 7, 1], 1.0).tolist() == [36, 36, 36]
    assert quotas([100, 0, 10], 1.0).tolist() == [55, 0, 55], "a class without a window gets none"


def test_half_way_the_classes_come_by_the_root_of_their_number() -> None:
    drawn = quotas([10_000, 100], 0.5)
    assert drawn.sum() == 10_100
    assert drawn[0] / drawn[1] == pytest.approx(10, rel=0.01)


def test_a_floor_is_added_to_what_the_others_get() -> None:
    assert quotas([100, 7, 0], 0.0, at_least=20).tolist() == [100, 20, 0]


@settings(derandomize=True, max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(0, 500), min_size=1, max_size=30),
    power=st.floats(0, 1),
    at_least=st.integers(0, 50),
)
def test_no_class_is_lost_and_no_order_turned(counts: list[int], power: float, at_least: int) -> None:
    drawn = quotas(counts, power, at_least)
    assert drawn.sum() >= sum(counts)
    for mine, got in zip(counts, drawn.tolist(), strict=True):
        assert (got >= max(at_least, 1)) if mine else got == 0
        for other, theirs in zip(counts, drawn.tolist(), strict=True):
            assert mine <= other or got >= theirs - 1, "rounding may give the later of two equals one less"


def test_windows_of_several_classes_are_sampled_as_the_rarest_of_them() -> None:
    labels = [[Label("0")]] * 4 + [[Label("1")]] * 2 + [[Label("0"), Label("1")], [Label("0"), Label("2")]]
    examples = examples_of(labels, "sigmoid")
    assert examples.stratum.tolist() == [0] * 4 + [1] * 2 + [1, 2]
    drawn = sampling.sampler(examples, TrainSettings(min_samples_per_class=3))
    assert drawn is not None and drawn.quotas.tolist() == [4, 3, 3, 0, 0]
    sums = sampling.totals(examples, TrainSettings(min_samples_per_class=3))
    assert sums.positive.tolist() == [4 + 1 + 3, 3, 3, 0] and sums.examples == 10


def test_windows_without_a_class_are_negatives_for_sigmoid_and_left_out_of_softmax() -> None:
    labels = [[Label("0", 0, 1)], [Label("0", 5, 6)], [Label("1", 5, 6)]]
    assert sampling.sampler(examples_of(labels, "sigmoid"), TrainSettings()) is None
    sums = sampling.totals(examples_of(labels, "sigmoid"), TrainSettings())
    assert sums.positive.tolist() == [1, 0, 0, 0] and sums.known.tolist() == [3, 3, 0, 0] and sums.examples == 3
    drawn = sampling.sampler(examples_of(labels, "softmax"), TrainSettings())
    assert drawn is not None and drawn.order(np.random.default_rng(0)).tolist() == [0]


def test_an_epoch_has_each_window_of_a_class_as_often_but_for_one() -> None:
    label = np.repeat(np.arange(3, dtype=np.int32), [50, 6, 4])
    sampler = Sampler(label, quotas([50, 6, 4], 1.0))
    seen = []
    for epoch in range(30):
        order = sampler.order(np.random.default_rng(epoch))
        assert order.size == len(sampler) == 60
        assert np.bincount(label[order]).tolist() == [20, 20, 20]
        times = np.bincount(order, minlength=60)
        assert set(times[:50].tolist()) == {0, 1}
        assert set(times[50:56].tolist()) == {3, 4}
        assert times[56:].tolist() == [5] * 4
        seen.append(times)
    assert np.sum(seen, axis=0)[:50].min() > 2, "which of the common ones is drawn anew"


def test_balanced_batches_are_functions_of_seed_epoch_and_step() -> None:
    sounds = Sounds()
    sounds.label = np.array([0] * 8 + [1] * 3 + [2], np.int32)

    def made() -> Batches:
        examples = examples_of(sounds.label)
        sampler = sampling.sampler(examples, TrainSettings(sampling_power=1.0, min_samples_per_class=6))
        return Batches(sounds, examples.targets, batch_size=5, seed=3, sampler=sampler)

    straight = made()
    assert len(straight) == 4, "three classes of six are 18 windows"
    labels = np.concatenate(
        [straight.batch(1, step).targets[straight.batch(1, step).weights > 0].argmax(axis=1) for step in range(4)]
    )
    assert np.bincount(labels).tolist() == [6, 6, 6]
    for epoch, step in ((2, 3), (0, 1), (1, 0)):
        assert np.array_equal(made().batch(epoch, step).windows, straight.batch(epoch, step).windows)
    assert not np.array_equal(straight.batch(0, 0).windows, straight.batch(1, 0).windows)


def test_rows_weigh_what_their_recording_does() -> None:
    weights = np.linspace(0.5, 2, 12).astype(np.float32)
    sounds = Sounds()
    batches = Batches(sounds, sounds.targets(), batch_size=5, seed=3, weights=weights)
    for step in range(3):
        batch = batches.batch(0, step)
        real = 5 if step < 2 else 2
        assert np.array_equal(batch.weights[:real], weights[batch.windows[:real]])
        assert not batch.weights[real:].any(), "rows that only fill up the batch still weigh nothing"


def test_recordings_are_balanced_and_weighed_where_the_head_learns_from_them(tmp_path: Path) -> None:
    windows = Windows(make_store(tmp_path, dict.fromkeys("abcdef", 250)), list("abcdef"), 96)
    targets = one_class_each(windows, [0, 0, 0, 0, 0, 1])
    examples = Examples(targets, by_recording=True)
    sampler = sampling.sampler(examples, TrainSettings(sampling_power=1.0))
    weights = np.array([1, 1, 1, 1, 1, 0.5], np.float32)
    batches = ClipBatches(windows, targets, batch_size=6, seed=3, sampler=sampler, weights=weights)
    assert len(batches) == 3
    made = [batches.batch(0, step) for step in range(3)]
    labels = np.concatenate([batch.targets.argmax(axis=1) for batch in made])
    assert sorted(labels.tolist()) == [0, 0, 0, 1, 1, 1]
    assert np.concatenate([batch.weights for batch in made])[labels == 1].tolist() == [0.5] * 3


def test_recordings_are_counted_block_by_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    windows = Windows(make_store(tmp_path, dict.fromkeys("abcdef", 250)), list("abcdef"), 96)
    examples = Examples(one_class_each(windows, [0, 1, 1, 0, 2, 1]), by_recording=True)
    monkeypatch.setattr(sampling, "BLOCK", 4)
    assert [numbers.tolist() for numbers, _, _ in examples.blocks()] == [[0, 1, 2, 3], [4, 5]]
    assert examples.stratum.tolist() == [0, 1, 1, 0, 2, 1]
    assert sampling.totals(examples, TrainSettings()).positive.tolist() == [2, 3, 1]


# ---- rare classes -------------------------------------------------------------------------------

RECORDINGS = [recording(f"Owl/{k}.wav", duration_s=10.0) for k in range(3)] + [
    recording("Wren/1.wav", duration_s=3.0)
]


def test_patches_are_counted_as_they_will_be_cut() -> None:
    assert sampling.windows_per_class(RECORDINGS, VGGISH, 0.96) == {"Owl": 33, "Wren": 4}
    assert sampling.windows_per_class(RECORDINGS, YAMNET, None)["Wren"] == 6


def test_rare_classes_are_named() -> None:
    assert sampling.rare_classes(RECORDINGS, RECORDINGS, VGGISH, TrainSettings()) == ([], [])
    assert sampling.rare_classes(RECORDINGS, RECORDINGS, VGGISH, TrainSettings(min_samples_per_class=4)) == ([], [])
    rare, (words,) = sampling.rare_classes(RECORDINGS, RECORDINGS, VGGISH, TrainSettings(min_samples_per_class=10))
    assert rare == ["Wren"]
    assert "fewer than 10 training windows: Wren (4); their windows come more often" in words
    rare, _ = sampling.rare_classes(RECORDINGS, RECORDINGS[3:], VGGISH, TrainSettings(min_samples_per_class=3))
    assert rare == ["Owl"], "only what is trained on counts"


def test_recordings_of_classes_that_are_left_out_say_why() -> None:
    strict = TrainSettings(min_samples_per_class=10, min_samples_action="leave-out")
    assert "left out" in sampling.rare_classes(RECORDINGS, RECORDINGS, VGGISH, strict)[1][0]
    kept, (problem,) = sampling.without(RECORDINGS, ["Wren"], strict)
    assert [recording.name for recording in kept] == [row.name for row in RECORDINGS if row.name != "Wren/1.wav"]
    assert (problem.recording, problem.problem, problem.used) == ("Wren/1.wav", "rare-class", False)
    assert "train.min-samples-per-class" in str(problem.row()["advice"])


# ---- recordings ---------------------------------------------------------------------------------


def weigh(folder: Path, text: str) -> tuple[dict[str, float], list[str]]:
    (folder / "quality.csv").write_text(text)
    return sampling.recording_weights(Config(input=folder), RECORDINGS)


def test_without_a_table_all_recordings_weigh_the_same(tmp_path: Path) -> None:
    assert sampling.recording_weights(Config(input=tmp_path), RECORDINGS) == ({}, [])
    missing = Config(input=tmp_path, train=TrainSettings(sample_weights=str(tmp_path / "no.csv")))
    with pytest.raises(InputError, match=r"no\.csv"):
        sampling.recording_weights(missing, RECORDINGS)


def test_the_table_is_found_by_paths_and_by_their_ends(tmp_path: Path) -> None:
    weights, notices = weigh(tmp_path, "recording,weight,note\nOwl/0.wav,0.5,x\n1.wav,2,\nOwl/2.wav,1,\n")
    # 1.wav is Owl/1.wav as well as Wren/1.wav: both end so.
    assert weights == {"Owl/0.wav": 0.5, "Owl/1.wav": 2.0, "Wren/1.wav": 2.0}
    assert "weighs 3 of 4 recordings" in notices[0]
    assert len(notices) == 1


def test_names_that_are_not_there_are_told(tmp_path: Path) -> None:
    weights, notices = weigh(tmp_path, "recording;weight\nOwl/0.wav;0.5\nFinch/9.wav;1\n")
    assert weights == {"Owl/0.wav": 0.5}
    assert "Finch/9.wav" in notices[1]
    with pytest.raises(InputError, match="lists none of the recordings"):
        weigh(tmp_path, "recording,weight\nFinch/9.wav,1\n")


@pytest.mark.parametrize("weight", ["", "good", "-1", "nan", "inf", "0", "101"])
def test_a_weight_that_is_none_is_refused_by_its_row(tmp_path: Path, weight: str) -> None:
    with pytest.raises(InputError, match=r"row 3: the weight of Owl/1\.wav"):
        weigh(tmp_path, f"recording,weight\nOwl/0.wav,1\nOwl/1.wav,{weight}\n")


@pytest.mark.parametrize("text", ["", "recording,stars\nOwl/0.wav,3\n", "recording,weight\n"])
def test_a_table_without_its_columns_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match="expected `recording,weight`"):
        weigh(tmp_path, text)


def test_a_recording_that_stands_there_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"row 3: Owl/0\.wav stands there twice"):
        weigh(tmp_path, "recording,weight\nOwl/0.wav,1\nOwl/0.wav,2\n")
