"""Waveforms as features: rows, windows, and how sounds are mixed in them."""

import numpy as np
import pytest

from birdtune.audio.waveform import as_float, waveform
from birdtune.data import augment
from birdtune.data.mixing import mixing_of
from birdtune.settings import AugmentSettings

SPEC = waveform("birds", rate_hz=48_000, window_s=3.0, hop_s=1.5)


def test_rows_are_whole_samples_at_any_rate() -> None:
    assert (SPEC.row_width, SPEC.window_rows, SPEC.hop_rows, SPEC.window_s, SPEC.hop_s) == (480, 300, 150, 3.0, 1.5)
    assert SPEC.detection_hop == 50 == waveform("birds", rate_hz=48_000, window_s=3.0, hop_s=3.0).detection_hop
    assert waveform("birds", rate_hz=32_000, window_s=5.0, hop_s=5.0).detection_hop == 83  # a sixth of 5 s
    assert waveform("birds", rate_hz=16_000, window_s=0.8, hop_s=0.8).detection_hop == 40  # half, where that is less
    assert [SPEC.smoothed_windows(hop) for hop in (50, 100, 101, 300)] == [5, 3, 1, 1]
    odd = waveform("odd", rate_hz=22_050, window_s=1.0, hop_s=1.0)
    assert (odd.row_width, odd.rows_per_s, odd.window_s) == (441, 50.0, 1.0)
    beyond = waveform("beyond", rate_hz=16_000, window_s=0.975, hop_s=0.5)
    assert (beyond.window_rows, beyond.window_samples) == (98, 15_680)  # the last row reaches beyond the window


@pytest.mark.parametrize("seconds", [0.0, 1.0, 3.0, 3.004, 7.7])
def test_windows_hold_every_sample_and_blocks_change_nothing(seconds: float) -> None:
    samples = np.random.default_rng(0).uniform(-1, 1, round(seconds * 48_000)).astype(np.float32)
    blocks = np.split(samples, [100, 1000, 5000]) if samples.size > 5000 else [samples]
    found = list(SPEC.cut(SPEC.rows_of(blocks)))
    assert [first for first, _ in found] == SPEC.starts(found[-1][0] + 300).tolist()
    assert len(found) == SPEC.windows_in(seconds)
    whole = np.zeros((found[-1][0] + 300) * 480, np.float32)
    for first, window in found:
        whole[first * 480 : (first + 300) * 480] = window.ravel()
    assert np.array_equal(whole[: samples.size], samples) and not whole[samples.size :].any()
    assert whole.size - samples.size < 480 or len(found) == 1


def test_samples_are_stored_in_16_bits_and_clipped_above_full_scale() -> None:
    rows = np.array([[0.0, 0.5, -0.5, 1.0, -1.0, 7.0, -7.0, 1e-6]], np.float32)
    stored = SPEC.stored(rows)
    assert stored.dtype == np.int16
    assert stored.tolist() == [[0, 16_384, -16_384, 32_767, -32_768, 32_767, -32_768, 0]]
    np.testing.assert_allclose(as_float(stored)[0, :3], rows[0, :3])


def test_a_window_counts_by_its_share_of_rows_with_sound() -> None:
    windows = np.zeros((3, 300, 480), np.int16)
    windows[1, :75, 7] = 400
    windows[2] = 400
    np.testing.assert_allclose(SPEC.held(windows), [0.0, 0.25, 1.0], atol=1e-5)
    assert SPEC.is_still(windows[0]) and SPEC.is_still(windows[2]) and not SPEC.is_still(windows[1])


def test_noise_has_the_power_that_was_asked_for_and_sounds_add_up() -> None:
    mixing = mixing_of(SPEC)
    tone = 0.1 * np.sin(np.arange(144_000) / 20).astype(np.float32).reshape(1, 300, 480)
    for colour in ("white", "pink"):
        noisy = mixing.with_noise(tone, np.array([0.05]), colour, np.array([0.3]), np.array([0.5]))
        assert np.sqrt(np.mean((noisy - tone) ** 2)) == pytest.approx(0.05, rel=0.2)
    assert np.array_equal(mixing.summed(tone, tone), 2 * tone)
    assert mixing.power(tone)[0] == pytest.approx(0.005, rel=0.01)
    np.testing.assert_allclose(mixing.amplitudes(mixing.stored(tone)), tone, atol=1 / 65_536)


def test_windows_of_waveform_roll_and_are_masked_in_time() -> None:
    windows = np.arange(1, 301, dtype=np.int16)[None, :, None] * np.ones((1, 1, 480), np.int16)
    drawn = augment.draw(1, 0, 0, 1)
    rolled = augment.shifted(windows, AugmentSettings(time_roll_s=1.0), drawn, SPEC)
    assert not np.array_equal(rolled, windows) and sorted(rolled[0, :, 0]) == list(range(1, 301))
    masked = augment.masked(windows, AugmentSettings(time_mask_s=2.0, mask_with="silence"), drawn, SPEC)
    hidden = np.flatnonzero(masked[0, :, 0] == 0)
    assert 0 < hidden.size <= 200 and np.ptp(hidden) + 1 == hidden.size
