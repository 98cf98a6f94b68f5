"""birdtune.data.sound_changes: what each does to a sound, the same each time; what can be done to which features."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import soundfile

from birdtune.audio.logmel import VGGISH
from birdtune.audio.waveform import waveform
from birdtune.data import augment
from birdtune.data.sound_changes import CHANGES, SHARES, changed, impulse_responses
from birdtune.errors import InputError, SettingsError
from birdtune.settings import AugmentSettings

RATE_HZ = 48_000
STRENGTH = {"speed": 0.2, "tempo": 0.2, "pitch_semitones": 4.0} | dict.fromkeys(SHARES, 1.0)
Wave = npt.NDArray[np.float32]


def tone(hz: float, seconds: float = 1.0) -> Wave:
    t = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    return np.asarray(0.3 * np.sin(2 * np.pi * hz * t), np.float32)


def noise(seconds: float = 1.0) -> Wave:
    samples = np.random.default_rng(0).standard_normal(round(seconds * RATE_HZ))
    return np.asarray(0.1 * samples, np.float32)


def made(wave: Wave, seed: int = 0, **settings: Any) -> Wave:
    return changed(wave, RATE_HZ, np.random.default_rng(seed), AugmentSettings(**settings))


def loudest_hz(wave: Wave) -> float:
    spectrum = np.abs(np.fft.rfft(wave * np.hanning(len(wave))))
    return float(spectrum.argmax() * RATE_HZ / len(wave))


def rms(wave: Wave) -> float:
    return float(np.sqrt(np.mean(np.square(wave, dtype=np.float64))))


@pytest.mark.parametrize("name", CHANGES)
def test_each_is_a_function_of_sound_and_seed_and_keeps_the_length(name: str) -> None:
    sound = noise()
    first, again, other = (made(sound, seed, **{name: STRENGTH[name]}) for seed in (3, 3, 4))
    assert first.shape == sound.shape and first.dtype == np.float32 and np.isfinite(first).all()
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, sound) and not np.array_equal(first, other)
    assert made(sound) is sound


def test_speed_moves_pitch_and_tempo_and_the_others_one_of_them() -> None:
    tempos, pitches, speeds = (
        np.array([loudest_hz(made(tone(4000), seed, **{name: STRENGTH[name]})) for seed in range(5)])
        for name in ("tempo", "pitch_semitones", "speed")
    )
    np.testing.assert_allclose(tempos, 4000, atol=10)
    for found, most in ((pitches, 2 ** (4 / 12)), (speeds, 1.2)):
        assert np.ptp(found) > 200 and 3960 / most < found.min() and found.max() < 4040 * most


def test_a_tempo_of_less_or_more_moves_what_comes_later() -> None:
    clicks = np.zeros(RATE_HZ, np.float32)
    clicks[RATE_HZ // 2 : RATE_HZ // 2 + 480] = tone(6000, 0.01)
    # Of several draws, some are slower and some faster; the click comes later, and earlier.
    places = [int(np.square(made(clicks, seed, tempo=0.3)).argmax()) for seed in range(8)]
    assert min(places) < RATE_HZ // 2 < max(places)


def test_filters_take_away_some_of_a_spectrum_and_no_more() -> None:
    found = [rms(made(noise(), seed, filter=1.0)) / rms(noise()) for seed in range(12)]
    assert max(found) < 1.0 and min(found) > 0.1


def test_reverberation_lasts_and_is_as_loud() -> None:
    sound = np.concatenate([tone(5000, 0.2), np.zeros(RATE_HZ, np.float32)])
    found = made(sound, reverberation=1.0)
    assert rms(found) == pytest.approx(rms(sound), rel=0.01)
    after = found[round(0.22 * RATE_HZ) : round(0.3 * RATE_HZ)]
    assert rms(after) > 1e-4 and rms(sound[round(0.22 * RATE_HZ) :]) == 0.0


def test_impulse_responses_of_a_folder_are_used_from_their_loudest_sample_on(tmp_path: Path) -> None:
    response = np.zeros(2_400, np.float32)
    response[400], response[1_400] = 0.9, 0.45
    soundfile.write(tmp_path / "wood.wav", response, RATE_HZ, subtype="FLOAT")
    sound = np.concatenate([[1.0], np.zeros(4_799)]).astype(np.float32)
    found = made(sound, reverberation=1.0, impulse_responses=str(tmp_path))
    assert np.flatnonzero(np.abs(found) > 1e-3).tolist() == [0, 1_000] and found[1_000] / found[0] == pytest.approx(0.5)
    settings = AugmentSettings(reverberation=1.0, impulse_responses=str(tmp_path / "none"))
    spec = waveform("made", rate_hz=RATE_HZ, window_s=3.0, hop_s=3.0)
    with pytest.raises(InputError, match="no impulse responses"):
        augment.require_front_end(settings, spec)
    (tmp_path / "silent").mkdir()
    soundfile.write(tmp_path / "silent" / "a.wav", np.zeros(100), RATE_HZ)
    with pytest.raises(InputError, match=r"a.wav: cannot be used .*it is silent"):
        impulse_responses(tmp_path / "silent", RATE_HZ)


def test_clipping_limits_and_a_codec_comes_back_nearly_the_same() -> None:
    clipped = made(noise(), clipping=1.0)
    assert np.abs(clipped).max() < np.abs(noise()).max()
    assert (np.abs(clipped) == np.abs(clipped).max()).sum() > 20
    through = made(tone(3000), codec=1.0)
    assert 0 < rms(through - tone(3000)) < 0.3 * rms(tone(3000))
    loud = made(10 * tone(3000), codec=1.0)  # above full scale, as sums of sounds may be
    assert rms(loud) == pytest.approx(rms(10 * tone(3000)), rel=0.1)


def test_a_share_of_windows_is_changed() -> None:
    sound = noise(0.1)
    same = sum(np.array_equal(made(sound, seed, clipping=0.3), sound) for seed in range(100))
    assert 55 < same < 85


@pytest.mark.parametrize(
    ("settings", "names"), [({"codec": 0.5}, "--augment.codec"), ({"pitch_semitones": 2}, "--augment.pitch-semitones")]
)
def test_changes_of_sound_are_refused_for_features_that_hold_none(settings: dict[str, Any], names: str) -> None:
    with pytest.raises(SettingsError, match=names):
        augment.require_front_end(AugmentSettings(**settings), VGGISH)
    augment.require_front_end(AugmentSettings(**settings), waveform("w", rate_hz=RATE_HZ, window_s=1.0, hop_s=1.0))


def test_changes_of_log_mel_are_refused_for_waveforms() -> None:
    spec = waveform("w", rate_hz=RATE_HZ, window_s=1.0, hop_s=1.0)
    for name in ("pitch_shift", "band_mask"):
        with pytest.raises(SettingsError, match=name.replace("_", "-")):
            augment.require_front_end(AugmentSettings(**{name: 2}), spec)
        augment.require_front_end(AugmentSettings(**{name: 2}), VGGISH)
