"""birdtune.data.quality: what of the recordings is padding, and what lies above the backbone's band."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from makers import codes, recording, scan_and_select, tone, write_sound

from birdtune.audio.decode import examine
from birdtune.audio.logmel import VGGISH
from birdtune.data import quality

Array = npt.NDArray[np.floating]


# ---- padding ------------------------------------------------------------------------------------


def test_padding_is_counted_from_a_millisecond_on() -> None:
    for n_samples, is_reported in ((15_584, True), (15_585, False), (15_600, False), (40_000, False)):
        notice = quality.padding_notices([recording("A/1.wav", duration_s=n_samples / 16_000)], VGGISH)
        assert bool(notice) == is_reported, n_samples


def test_the_share_of_padding_is_reported_and_the_classes_that_have_it() -> None:
    short = [recording(f"Troglodytes/{k}.wav", duration_s=0.39) for k in range(3)]
    (notice,) = quality.padding_notices([*short, recording("Turdus/1.wav", duration_s=9.0)], VGGISH)
    assert notice == (
        "3 recordings are shorter than a window of 0.975 s and padded with zeros: 60 % of these windows is padding. "
        "Classes with much padding: Troglodytes (60 %). A model can learn padding instead of song where other classes "
        "have none. --audio.short-clips skip leaves such recordings out."
    )
    (notice,) = quality.padding_notices([recording("Turdus/1.wav", duration_s=0.97), recording("B/1.wav")], VGGISH)
    assert "1 recording is shorter" in notice
    assert "less than 1 % of that window is padding. --audio.short-clips" in notice


def test_recordings_of_whose_window_much_is_padding_have_a_remark_and_are_used(tmp_path: Path) -> None:
    for name, seconds in (("half", 0.4), ("nearly", 0.9), ("whole", 1.5)):
        write_sound(tmp_path / "A" / f"{name}.wav", tone(seconds))
    _, used, problems = scan_and_select(tmp_path)
    assert codes(problems) == {"A/half.wav": "padded"} and len(used) == 3
    (problem,) = problems
    assert problem.detail == "0.4 s long: 59 % of its window of 0.975 s is zeros"
    assert problem.row()["used"] == "yes"
    assert codes(scan_and_select(tmp_path, short="skip")[2])["A/half.wav"] == "too-short"


# ---- energy above the band ----------------------------------------------------------------------


def noise(seconds: float, rate_hz: int, amplitude: float = 0.001, colour: float = 0.0, seed: int = 0) -> Array:
    """Noise whose power falls by frequency to the power of `colour`."""
    white = np.fft.rfft(np.random.default_rng(seed).normal(size=round(seconds * rate_hz)))
    white[1:] /= np.arange(1, white.size) ** (colour / 2)
    made = np.fft.irfft(white, round(seconds * rate_hz))
    return np.asarray(amplitude * made / made.std())


def song(seconds: float, rate_hz: int, low_hz: float, high_hz: float) -> Array:
    """Sweeps of 0.1 s, four a second."""
    t = np.arange(round(seconds * rate_hz)) / rate_hz
    inside = t % 0.25
    sweep = np.sin(2 * np.pi * (low_hz * inside + (high_hz - low_hz) * inside**2 / 0.2))
    return np.where(inside < 0.1, 0.2 * sweep, 0.0)


def share_of(folder: Path, samples: Array, rate_hz: int) -> float:
    facts = examine(write_sound(folder / "x.wav", samples, rate_hz, subtype="PCM_16"))
    assert facts.measures is not None
    return float(quality.shares_above([facts.measures], VGGISH)[0])


def steady(frequency_hz: float, seconds: float, rate_hz: int) -> Array:
    return 0.5 * np.sin(2 * np.pi * frequency_hz * np.arange(round(seconds * rate_hz)) / rate_hz)


@pytest.mark.parametrize(
    ("low_hz", "high_hz", "rate_hz", "above"),
    [(2000, 4000, 48_000, 0.0), (3000, 6000, 22_050, 0.0), (8300, 9500, 48_000, 1.0), (8300, 9500, 22_050, 1.0),
     (25_000, 60_000, 384_000, 1.0), (5000, 10_000, 44_100, 0.5)],
)  # fmt: skip
def test_of_song_the_share_above_the_band_is_found_in_noise_that_reaches_there(
    tmp_path: Path, low_hz: float, high_hz: float, rate_hz: int, above: float
) -> None:
    sound = song(3.0, rate_hz, low_hz, high_hz) + noise(3.0, rate_hz)
    assert share_of(tmp_path, sound, rate_hz) == pytest.approx(above, abs=0.05)


def test_song_and_calls_share_the_energy(tmp_path: Path) -> None:
    sound = song(3.0, 96_000, 2000, 4000) + song(3.0, 96_000, 20_000, 30_000) + noise(3.0, 96_000)
    assert share_of(tmp_path, sound, 96_000) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("colour", [-1.0, 0.0, 1.0, 2.0])
@pytest.mark.parametrize(("seconds", "rate_hz"), [(1.0, 48_000), (10.0, 48_000), (4.0, 384_000)])
def test_even_noise_that_reaches_far_up_is_no_energy_above(
    tmp_path: Path, colour: float, seconds: float, rate_hz: int
) -> None:
    assert share_of(tmp_path, noise(seconds, rate_hz, 0.01, colour), rate_hz) < 0.05


@pytest.mark.parametrize("amplitude", [0.0, 0.0001, 0.01])
@pytest.mark.parametrize(
    ("frequency_hz", "rate_hz", "above"), [(45_000, 384_000, 1), (9500, 48_000, 1), (3000, 48_000, 0)]
)
def test_a_steady_tone_counts_where_it_is(
    tmp_path: Path, frequency_hz: float, rate_hz: int, above: int, amplitude: float
) -> None:
    sound = steady(frequency_hz, 2.0, rate_hz) + noise(2.0, rate_hz, amplitude)
    assert share_of(tmp_path, sound, rate_hz) == pytest.approx(above, abs=0.02)


def test_a_faint_whine_of_the_recorder_does_not_count_beside_song(tmp_path: Path) -> None:
    sound = song(3.0, 48_000, 2000, 4000) + 0.1 * steady(16_000, 3.0, 48_000) + noise(3.0, 48_000)
    assert share_of(tmp_path, sound, 48_000) < 0.05


def test_classes_most_of_whose_energy_lies_above_are_warned_of(tmp_path: Path) -> None:
    for k in range(2):
        for name, low_hz, high_hz in (("Bat", 30_000, 60_000), ("Tit", 3000, 5000), ("noise", 9000, 9900)):
            sound = song(1.0, 192_000, low_hz, high_hz) + noise(1.0, 192_000, seed=k)
            write_sound(tmp_path / name / f"{k}.wav", sound, 192_000)
    _, used, _ = scan_and_select(tmp_path)
    shares = quality.class_shares(used, VGGISH, ["noise"])
    assert shares == {"Bat": pytest.approx(1.0, abs=0.02), "Tit": pytest.approx(0.0, abs=0.02)}
    (notice,) = quality.band_notices(shares, VGGISH)
    assert notice.startswith(
        "Most of the energy of these classes lies above the backbone's band (125 to 7,500 Hz): Bat (100 %). It"
    )
    assert list(quality.band_lines(shares, VGGISH)) == []
    assert list(quality.band_lines({"A": 0.3, "B": 0.09, "C": 0.7}, VGGISH)) == [
        "energy above the backbone's band (125 to 7,500 Hz), not used: A (30 %)"
    ]
    assert quality.band_notices({"A": 0.3}, VGGISH) == []


def test_recordings_that_nobody_measured_say_nothing() -> None:
    assert quality.class_shares([recording("A/1.wav")], VGGISH) == {}
