"""What noise is to a front end, against waveforms that pass through it."""

import numpy as np
import pytest

from birdtune.audio import noise
from birdtune.audio.logmel import VGGISH, YAMNET, LogMel, log_mel


def magnitudes(waveform: np.ndarray, spec: LogMel) -> np.ndarray:
    return np.exp(log_mel(waveform, spec).astype(np.float64)) - spec.log_offset


def white(n: int, spec: LogMel, seed: int) -> np.ndarray:
    """White noise with power 1 in the front end's band, made otherwise than the table."""
    samples = np.random.default_rng(seed).uniform(-1, 1, n)
    return samples / np.sqrt(noise.band_power(samples, spec))


def song(spec: LogMel) -> np.ndarray:
    """A rising whistle with a harmonic and pauses, over a faint hum: some of it tonal, some of it near silence."""
    t = np.arange(spec.window_samples) / spec.rate_hz
    sweep = np.sin(2 * np.pi * (1500 * t + 800 * t**2)) + 0.3 * np.sin(2 * np.pi * (3000 * t + 1600 * t**2))
    return 0.3 * sweep * (np.sin(2 * np.pi * 3 * t) > 0) + 0.01 * np.sin(2 * np.pi * 300 * t)


@pytest.mark.parametrize("spec", (VGGISH, YAMNET), ids=lambda spec: spec.name)
@pytest.mark.parametrize("colour", noise.COLOURS)
def test_the_filter_bank_foretells_what_noise_is_in_each_band(colour: noise.Colour, spec: LogMel) -> None:
    table = noise.noise_frames(spec, colour)

    # A minute has some 2,000 frames that do not overlap: 1 to 3 % of doubt. Within a bin, pink noise is not even.
    np.testing.assert_allclose(table.mean(axis=0), noise.mean_magnitudes(spec, colour), rtol=0.04)
    np.testing.assert_allclose(table.var(axis=0), noise.magnitude_variances(spec, colour), rtol=0.12)
    assert noise.power(table[None] ** 2, spec) == pytest.approx(1.0, rel=0.03)


def test_other_white_noise_is_like_the_table() -> None:
    made = magnitudes(white(30 * 16_000, VGGISH, 1), VGGISH)

    np.testing.assert_allclose(made.mean(axis=0), noise.noise_frames(VGGISH, "white").mean(axis=0), rtol=0.05)


def test_pink_noise_falls_by_three_decibels_an_octave() -> None:
    powers = noise.bin_powers(VGGISH, "pink")

    assert powers[0] == 0
    assert 10 * np.log10(powers[40] / powers[80]) == pytest.approx(3.01, abs=0.01)


@pytest.mark.parametrize("gain", [0.003, 0.1, 1.0])
def test_the_power_of_a_window_is_that_of_its_waveform(gain: float) -> None:
    for waveform in (song(VGGISH), white(VGGISH.window_samples, VGGISH, 2)):
        found = noise.power(magnitudes(gain * waveform, VGGISH)[None].astype(np.float32) ** 2, VGGISH)[0]
        error_db = 10 * np.log10(found / noise.band_power(gain * waveform, VGGISH))
        assert abs(error_db) < 1.5


def test_a_minute_of_noise_is_the_same_each_time() -> None:
    first = noise.noise_frames(VGGISH, "pink").copy()
    noise.noise_frames.cache_clear()

    assert np.array_equal(noise.noise_frames(VGGISH, "pink"), first)
    assert len(first) == 5_998


def test_sounds_and_noise_meet_by_no_more_than_their_sum() -> None:
    met = noise.interference(VGGISH)

    assert np.abs(met).max() <= 1.0
    assert abs(met.mean()) < 0.01
    assert met.std(axis=0)[0] > 1.5 * met.std(axis=0)[-1], "wide bands average it out"
