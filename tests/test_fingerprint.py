"""birdtune.audio.fingerprint: noise floors of made sound."""

import numpy as np
import pytest

from birdtune.audio.fingerprint import N_BANDS, floors_of
from birdtune.audio.measures import Meter

RATE_HZ = 16_000


def fingerprint(*blocks: np.ndarray) -> str:
    meter = Meter(RATE_HZ, 1)
    for block in blocks:
        sound = block.astype(np.float32)
        meter.feed(sound[:, None], sound, float(np.abs(sound).max()))
    return meter.measures().fingerprint


def noise(n: int, seed: int = 0) -> np.ndarray:
    return 0.01 * np.random.default_rng(seed).standard_normal(n)


def test_white_noise_has_its_level_in_every_band_of_both_halves() -> None:
    floors = floors_of(fingerprint(noise(160_000)))
    assert floors.shape == (2, N_BANDS)
    assert np.abs(floors + 42.0).max() < 3.5  # -40 dB, and the floor is below the mean


def test_a_call_in_a_third_of_the_frames_leaves_the_floor_as_it_is() -> None:
    quiet = noise(160_000)
    called = quiet.copy()
    for begin in range(0, 160_000, 16_000):
        called[begin : begin + 5_000] += 0.5 * np.sin(2 * np.pi * 0.2 * np.arange(5_000))
    change = floors_of(fingerprint(called)) - floors_of(fingerprint(quiet))
    assert np.abs(change).max() < 6  # the call itself is 35 dB above


def test_a_low_pass_shows_where_it_ends() -> None:
    spectrum = np.fft.rfft(noise(160_000))
    spectrum[len(spectrum) // 2 :] = 0
    floors = floors_of(fingerprint(np.fft.irfft(spectrum)))
    assert floors[:, :31].min() > -45 and floors[:, 34:].max() < -80


def test_halves_are_told_apart() -> None:
    floors = floors_of(fingerprint(np.concatenate([noise(80_000), 10 * noise(80_000)])))
    assert np.median(floors[1] - floors[0]) == pytest.approx(20.0, abs=1.0)


@pytest.mark.parametrize("sound", [noise(4_000), np.zeros(160_000)], ids=["a quarter of a second", "silence"])
def test_too_little_sound_has_none(sound: np.ndarray) -> None:
    assert fingerprint(sound) == ""


def test_it_takes_as_much_room_whatever_the_length() -> None:
    long = fingerprint(*(noise(100_000, seed) for seed in range(40)))
    assert len(long) == len(fingerprint(noise(50_000))) <= 200
    assert np.abs(floors_of(long) + 42.0).max() < 3.5
