"""What is done to batches: formulas against sound itself, and that the same is done each time."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from makers import make_store, one_class_each
from test_noise import song, white

from birdtune.audio import noise
from birdtune.audio.logmel import VGGISH, YAMNET, LogMel, log_mel
from birdtune.data import augment
from birdtune.data.augment import Augmenter
from birdtune.data.batches import Batch, Batches, Windows
from birdtune.data.labels import Label
from birdtune.data.mixing import LogMelMixing
from birdtune.data.sound_changes import CHANGES
from birdtune.data.targets import WindowTargets, targets_of
from birdtune.errors import InputError
from birdtune.settings import AugmentSettings

# All at once, at strengths that leave no row untouched for long.
ALL = AugmentSettings(
    gain_db=6, white_noise=0.5, pink_noise=0.5, background=0.5, mixup=0.5, time_roll_s=0.1, pitch_shift=2,
    time_mask_s=0.2, band_mask=10, cutmix=0.3, time_masks=2, band_masks=3,
)  # fmt: skip
CLASSES = 4


class Sounds:
    """Twelve windows of four classes; class 3 is background."""

    def __init__(self, spec: LogMel = VGGISH) -> None:
        waveforms = [song(spec) * gain for gain in (1.0, 0.2, 0.05)]
        waveforms += [0.05 * white(spec.window_samples, spec, seed) for seed in range(9)]
        self.frames = np.stack([log_mel(waveform, spec) for waveform in waveforms]).astype(np.float16)
        self.label = np.arange(12, dtype=np.int32) % CLASSES
        self.asked: list[int] = []

    def __len__(self) -> int:
        return 12

    @property
    def recording(self) -> npt.NDArray[np.int64]:
        return np.arange(12)

    def seconds(self, windows: npt.NDArray[np.int64], shift: object = None) -> tuple[npt.NDArray[np.float64], ...]:
        return np.zeros(len(windows)), np.ones(len(windows))

    def targets(self, kind: str = "softmax") -> WindowTargets:
        return one_class_each(self, self.label.tolist(), kind)

    def features(
        self, windows: npt.NDArray[np.int64], shift: npt.NDArray[np.int64] | None = None
    ) -> npt.NDArray[np.float16]:
        self.asked += windows.tolist()
        return self.frames[windows]


def augmenter(
    settings: AugmentSettings, sounds: Sounds | None = None, kind: str = "softmax", seed: int = 7
) -> Augmenter:
    sounds = sounds or Sounds()
    return Augmenter(settings, VGGISH, sounds, sounds.targets(kind), seed=seed, kind=kind, backgrounds=(3,))


def batches(settings: AugmentSettings, batch_size: int = 12, seed: int = 7, kind: str = "softmax") -> Batches:
    sounds = Sounds()
    made = augmenter(settings, sounds, kind, seed)
    return Batches(sounds, sounds.targets(kind), batch_size=batch_size, seed=seed, augment=made)


def one(
    settings: AugmentSettings, row: int = 0, epoch: int = 0
) -> tuple[npt.NDArray[np.float16], npt.NDArray]:
    """A window before and after."""
    sounds = Sounds()
    windows = np.full(1, row)
    batch = Batch(sounds.frames[windows], np.ones(1, np.float32), windows, *sounds.targets().of(windows))
    made = augmenter(settings, sounds)(batch, epoch, 0, np.arange(12))
    return sounds.frames[row], made.features[0]


# ---- what is random -----------------------------------------------------------------------------


def test_the_numbers_of_a_row_are_its_own_whatever_is_drawn_with_it() -> None:
    whole = augment.draw(7, 3, 0, 40)
    for first, n in ((0, 1), (5, 10), (39, 1), (12, 28)):
        part = augment.draw(7, 3, first, n)
        for name, numbers in part.items():
            assert np.array_equal(numbers, whole[name][first : first + n]), name
    everything = np.concatenate(list(whole.values()))
    assert np.unique(everything).size == everything.size
    assert 0.45 < everything.mean() < 0.55
    assert not np.array_equal(whole["gain"], augment.draw(7, 4, 0, 40)["gain"])
    assert not np.array_equal(whole["gain"], augment.draw(8, 3, 0, 40)["gain"])


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_a_batch_is_the_same_after_a_restart_and_in_slices(kind: str) -> None:
    whole = batches(ALL, 12, kind=kind).batch(2, 0)
    again = batches(ALL, 12, kind=kind)
    again.batch(0, 0)
    sliced = [batches(ALL, 4, kind=kind).batch(2, step) for step in (2, 0, 1)]
    for name in ("windows", "targets", "known", "windows"):
        assert np.array_equal(getattr(again.batch(2, 0), name), getattr(whole, name)), name
        parts = [getattr(sliced[k], name) for k in (1, 2, 0)]
        assert np.array_equal(np.concatenate(parts), getattr(whole, name)), name
    assert not np.array_equal(whole.features, batches(ALL, 12, seed=8, kind=kind).batch(2, 0).features)
    assert not np.array_equal(whole.features, batches(ALL, 12, kind=kind).batch(3, 0).features)


def test_pieces_that_threads_do_are_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = batches(ALL).batch(1, 0)
    monkeypatch.setattr(augment, "_PIECE", 5)

    assert np.array_equal(batches(ALL).batch(1, 0).features, whole.features)


def test_nothing_on_changes_nothing() -> None:
    assert augment.active(AugmentSettings()) == []
    made = batches(AugmentSettings()).batch(0, 0)
    sounds = Sounds()
    plain = Batches(sounds, sounds.targets(), batch_size=12, seed=7).batch(0, 0)
    assert np.array_equal(made.features, plain.features)
    assert np.array_equal(made.targets, plain.targets)


@pytest.mark.parametrize("name", [name for name in augment.NAMES if name not in CHANGES])
def test_each_does_something_and_rows_not_drawn_keep_every_bit(name: str) -> None:
    is_share = name in ("white_noise", "pink_noise", "background", "mixup", "cutmix")
    changed = np.zeros(12, bool)
    for epoch in range(16):
        made = batches(AugmentSettings(**{name: 0.3 if is_share else 3})).batch(epoch, 0)
        plain = batches(AugmentSettings()).batch(epoch, 0)
        rows = (made.features != plain.features).any(axis=(1, 2))
        if is_share:
            assert not rows.all()
        assert made.features.dtype == np.float16
        assert np.isfinite(made.features).all()
        changed[made.windows[rows]] = True
    assert augment.active(AugmentSettings(**{name: 1})) == [name]
    assert changed.sum() >= 10


def test_real_windows_of_a_store_are_augmented(tmp_path: Path) -> None:
    store = make_store(tmp_path, {"a": 500, "b": 300}, shards=1)
    frames = np.random.default_rng(0).normal(-1, 2, (800, 64)).astype("<f2")
    (store.folder / "shard-0.rows").write_bytes(frames.tobytes())
    windows = Windows(store, ["a", "b"], 96)
    targets = one_class_each(windows, [0, 1])
    made = Augmenter(ALL, VGGISH, windows, targets, seed=1, kind="softmax")
    batch = Batches(windows, targets, batch_size=8, seed=1, augment=made).batch(0, 0)
    assert batch.features.shape == (8, 96, 64)
    assert batch.targets.shape == (8, 2)


# ---- sounds -------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", (VGGISH, YAMNET), ids=lambda spec: spec.name)
@pytest.mark.parametrize("gain_db", [-20.0, -3.0, 12.0])
def test_gain_is_that_of_the_waveform(spec: LogMel, gain_db: float) -> None:
    factor = 10 ** (gain_db / 20)
    mel = LogMelMixing(spec).amplitudes(log_mel(song(spec), spec)[None].astype(np.float16))
    expected = log_mel(factor * song(spec), spec)

    # A factor of 4 makes float16's rounding of quiet places beside the offset four times as large.
    np.testing.assert_allclose(LogMelMixing(spec).stored(mel * np.float32(factor))[0], expected, atol=0.02)


def test_gain_reaches_both_ends_and_no_further() -> None:
    loud = np.float16(2.0)  # far above the offset, where a gain is a shift
    moved = []
    for epoch in range(200):
        before, after = one(AugmentSettings(gain_db=6), epoch=epoch)
        moved.append(float((after - before)[before > loud].astype(np.float32).mean()) * 20 / np.log(10))
    assert -6.02 < min(moved) < -5.5
    assert 5.5 < max(moved) < 6.02


@pytest.mark.parametrize("spec", (VGGISH, YAMNET), ids=lambda spec: spec.name)
@pytest.mark.parametrize("snr_db", [0.0, 10.0, 20.0])
def test_noise_is_what_the_front_end_makes_of_noise_in_the_waveform(spec: LogMel, snr_db: float) -> None:
    draws = 60
    waveform = song(spec)
    level = np.sqrt(noise.band_power(waveform, spec) * 10 ** (-snr_db / 10))
    long = level * white(20 * 16_000, spec, 5)
    starts = np.linspace(0, long.size - waveform.size, draws).astype(int)
    truth = np.stack([log_mel(waveform + long[start : start + waveform.size], spec) for start in starts])
    mixing = LogMelMixing(spec)
    mel = mixing.amplitudes(np.repeat(log_mel(waveform, spec)[None].astype(np.float16), draws, axis=0))
    numbers = np.random.default_rng(3).random((2, draws))
    made = mixing.stored(mixing.with_noise(mel, np.full(draws, level), "white", *numbers)).astype(np.float64)

    # Natural logarithms: 0.1 is 0.9 dB; the means of so few draws are known to 0.05.
    assert abs(made.mean() - truth.mean()) < 0.02
    assert np.sqrt(np.mean((made.mean(axis=0) - truth.mean(axis=0)) ** 2)) < 0.1
    assert made.std(axis=0).mean() == pytest.approx(truth.std(axis=0).mean(), rel=0.08)
    loud = mel[0] > 3 * level * noise.mean_magnitudes(spec, "white")  # where only the meeting of both makes it vary
    assert made.std(axis=0)[loud].mean() == pytest.approx(truth.std(axis=0)[loud].mean(), rel=0.33)  # of a pure tone
    neighbours = [np.corrcoef((x - x.mean(axis=0))[:, 40, :-1].ravel(), (x - x.mean(axis=0))[:, 40, 1:].ravel())[0, 1]
                  for x in (truth, made)]  # fmt: skip
    if snr_db == 0.0:
        assert neighbours[1] == pytest.approx(neighbours[0], abs=0.2), (
            "bands dance together as they do in noise"
        )


def test_silence_is_given_no_noise() -> None:
    silent = np.zeros((1, 96, 64), np.float32)
    half = np.full(1, 0.5)
    made = LogMelMixing(VGGISH).with_noise(silent, np.zeros(1), "pink", half, half)

    assert not made.any()


def test_two_sounds_at_once_are_the_sum_of_their_waveforms() -> None:
    first, second = song(VGGISH), 0.1 * white(VGGISH.window_samples, VGGISH, 9)
    mixing = LogMelMixing(VGGISH)
    one_by_one = [mixing.amplitudes(log_mel(waveform).astype(np.float16)[None]) for waveform in (first, second)]
    difference = mixing.stored(mixing.summed(*one_by_one))[0] - log_mel(first + second)

    assert abs(difference.mean()) < 0.03
    assert np.sqrt((difference**2).mean()) < 0.25  # where both are as loud, their phases decide


def test_background_is_as_faint_as_asked_for() -> None:
    sounds = Sounds()
    background = sounds.frames[sounds.label == 3]
    levels = []
    for epoch in range(60):
        before, after = one(AugmentSettings(background=1.0, snr_db=5), epoch=epoch)
        mel, made = (LogMelMixing(VGGISH).amplitudes(frames[None]) for frames in (before, after))
        added = noise.power(np.maximum(made**2 - mel**2, 0), VGGISH)
        levels.append(float(10 * np.log10(noise.power(mel**2, VGGISH) / added)[0]))
    assert 4.5 < min(levels) < 7
    assert 22 < max(levels) < 26
    assert len(background) == 3


def test_only_background_is_taken_for_background() -> None:
    sounds = Sounds()
    everything = np.arange(12)
    batch = Batch(sounds.frames, np.ones(12, np.float32), everything, *sounds.targets().of(everything))
    made = augmenter(AugmentSettings(background=1.0), sounds)(batch, 0, 0, np.arange(12))

    assert {int(sounds.label[window]) for window in sounds.asked} == {3}
    assert np.array_equal(made.targets.argmax(axis=1), sounds.label)


def test_background_that_is_not_there_is_refused_when_asked_for() -> None:
    wanted = AugmentSettings(background=0.2)
    augment.require_background(wanted, ("Background",))
    augment.require_background(AugmentSettings(), ())
    with pytest.raises(InputError, match="there is none"):
        augment.require_background(wanted, ())
    assert augment.background_columns(("a", "Background", "b"), ("Background",)) == (1,)


# ---- mixup --------------------------------------------------------------------------------------


def test_softmax_shares_the_labels_as_the_sounds_are_shared() -> None:
    batch = batches(AugmentSettings(mixup=1.0)).batch(0, 0)

    assert batch.targets.dtype == np.float32
    np.testing.assert_allclose(batch.targets.sum(axis=1), 1.0, atol=1e-6)
    own = batch.targets[np.arange(12), Sounds().label[batch.windows]]
    assert own.min() < 0.3 and own.max() > 0.7
    mixed = (batch.targets > 0).sum(axis=1)
    assert mixed.max() == 2


def test_sigmoid_joins_the_labels_of_birds_and_background_is_none() -> None:
    seen = set()
    for epoch in range(10):
        batch = batches(AugmentSettings(mixup=1.0), kind="sigmoid").batch(epoch, 0)
        assert set(np.unique(batch.targets)) == {0.0, 1.0}
        assert not batch.targets[batch.targets[:, :3].any(axis=1), 3].any(), (
            "where a bird sings is no background"
        )
        seen |= {tuple(row) for row in batch.targets.astype(int).tolist()}
    assert (0, 0, 0, 1) in seen, "background with background stays what it is"
    assert (1, 1, 0, 0) in seen
    assert max(map(sum, seen)) == 2


def test_rows_that_are_not_mixed_keep_their_label() -> None:
    batch = batches(AugmentSettings(mixup=0.4)).batch(1, 0)
    plain = batches(AugmentSettings()).batch(1, 0)
    same = (batch.features == plain.features).all(axis=(1, 2))

    assert 0 < same.sum() < 12
    assert np.array_equal(batch.targets[same], plain.targets[same])


def test_a_mixture_is_about_as_loud_as_its_first_sound_was() -> None:
    batch = batches(AugmentSettings(mixup=1.0)).batch(0, 0)
    before = LogMelMixing(VGGISH).power(LogMelMixing(VGGISH).amplitudes(Sounds().frames[batch.windows]))
    after = LogMelMixing(VGGISH).power(LogMelMixing(VGGISH).amplitudes(batch.features))

    assert np.abs(10 * np.log10(after / before)).max() < 3


def test_partners_are_drawn_from_what_is_trained_on() -> None:
    sounds = Sounds()
    everything = np.arange(12)
    batch = Batch(sounds.frames, np.ones(12, np.float32), everything, *sounds.targets().of(everything))
    augmenter(AugmentSettings(mixup=1.0), sounds)(batch, 0, 0, np.array([5, 6]))

    assert set(sounds.asked) == {5, 6}


def test_what_is_known_of_mixed_windows_is_what_is_in_one_or_known_to_be_in_neither() -> None:
    sounds = Sounds()
    timed = [[Label("0", 0, 1)], [Label("1", 0, 1, weight=0.5)]]
    labels = targets_of([*timed, *[[Label("2")]] * 10], ["0", "1", "2", "3"])
    made = Augmenter(
        AugmentSettings(mixup=1.0), VGGISH, sounds, WindowTargets(labels, sounds, "sigmoid"), seed=1, kind="sigmoid"
    )
    first = np.array([0])
    batch = Batch(sounds.frames[first], np.ones(1, np.float32), first, *made.targets.of(first))
    mixed = made(batch, 0, 0, np.array([1]))
    assert mixed.targets.tolist() == [[1, 1, 0, 0]]
    assert mixed.known.tolist() == [[1, 0.5, 0, 0]], "nobody marked classes 2 and 3"


# ---- pictures -----------------------------------------------------------------------------------


def test_time_is_turned_and_nothing_is_lost() -> None:
    turns = set()
    for epoch in range(60):
        before, after = one(AugmentSettings(time_roll_s=0.03), epoch=epoch)
        found = [turn for turn in range(-3, 4) if np.array_equal(np.roll(before, turn, axis=0), after)]
        assert len(found) == 1
        turns.add(found[0])
    assert turns == set(range(-3, 4))


def test_pitch_is_moved_and_the_outermost_band_stands_in() -> None:
    moves = set()
    for epoch in range(40):
        before, after = one(AugmentSettings(pitch_shift=2), epoch=epoch)
        (move,) = (
            move
            for move in range(-2, 3)
            if np.array_equal(after, before[:, np.clip(np.arange(64) - move, 0, 63)])
        )
        moves.add(move)
    assert moves == set(range(-2, 3))


@pytest.mark.parametrize("mask_with", ["mean", "silence"])
@pytest.mark.parametrize(("name", "axis"), [("time_mask_s", 1), ("band_mask", 0)])
def test_masks_hide_one_stretch_up_to_the_widest(name: str, axis: int, mask_with: str) -> None:
    widths = []
    for epoch in range(80):
        settings = AugmentSettings(**{name: 12 if axis == 0 else 0.12}, mask_with=mask_with)
        before, after = one(settings, row=4, epoch=epoch)
        hidden = np.flatnonzero((before != after).any(axis=axis))
        widths.append(hidden.size)
        if hidden.size:
            assert hidden[-1] - hidden[0] + 1 == hidden.size, "one stretch"
            value = after.take(hidden, axis=1 - axis)
            expected = before.astype(np.float32).mean() if mask_with == "mean" else np.log(VGGISH.log_offset)
            np.testing.assert_allclose(value, expected, atol=0.01)
    assert min(widths) == 0
    assert max(widths) == 12


def test_several_masks_hide_as_many_parts_and_the_first_is_the_same() -> None:
    how = {"time_mask_s": 0.12, "band_mask": 8, "mask_with": "silence"}
    several = AugmentSettings(**how, time_masks=3, band_masks=2)
    parts = []
    for epoch in range(40):
        before, single = one(AugmentSettings(**how), row=4, epoch=epoch)
        _, after = one(several, row=4, epoch=epoch)
        assert (after == single)[before != single].all()
        for axis in (1, 0):
            hidden = (after == after.min()).all(axis=axis)
            parts.append(int((np.diff(hidden.astype(int), prepend=0) == 1).sum()))
    assert (max(parts[::2]), max(parts[1::2])) == (3, 2)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_a_stretch_is_anothers_and_the_labels_are_shared_as_the_time_is(kind: str) -> None:
    shares = []
    for epoch in range(20):
        made = batches(AugmentSettings(cutmix=1.0), kind=kind).batch(epoch, 0)
        sounds = Sounds()
        for window, frames, targets in zip(made.windows, made.features, made.targets, strict=True):
            kept = (frames == sounds.frames[window]).all(axis=1)
            if kept.all():  # a partner of its own
                continue
            cut = np.flatnonzero(~kept)
            assert cut[-1] - cut[0] + 1 == cut.size, "one stretch"
            (partner,) = (
                other for other in range(12) if (frames[cut] == sounds.frames[other, cut]).all() and other != window
            )
            share, own, others = kept.mean(), sounds.label[window], sounds.label[partner]
            shares.append(share)
            wanted = np.zeros(CLASSES)
            if kind == "softmax":
                wanted[own] += share
                wanted[others] += 1 - share
            else:
                wanted[[own, others]] = 1.0
                wanted[3] *= own == others == 3  # background is none where a bird sings
            np.testing.assert_allclose(targets, wanted, atol=0.01)
    assert 0.24 < min(shares) < 0.4 and 0.6 < max(shares) < 0.76
