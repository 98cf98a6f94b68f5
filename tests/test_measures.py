"""What is measured of recordings while they are decoded."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
from makers import write_sound

from birdtune.audio.decode import examine
from birdtune.audio.fingerprint import N_BANDS, floors_of
from birdtune.audio.measures import BAND_EDGES_HZ, NO_BAND, Measures, Meter

RATE_HZ = 16_000


def measures_of(path: Path) -> Measures:
    found = examine(path).measures
    assert found is not None
    return found


def noise(seconds: float, rate_hz: int, seed: int = 0, level: float = 0.05) -> np.ndarray:
    return level * np.random.default_rng(seed).standard_normal(round(seconds * rate_hz))


@pytest.mark.parametrize("rate_hz", [8_000, 22_050, 48_000, 384_000, 2_000_000])
def test_a_tone_is_in_its_band_at_its_level_whatever_the_rate(tmp_path: Path, rate_hz: int) -> None:
    tone = 0.5 * np.sin(2 * np.pi * 900 * np.arange(2 * rate_hz) / rate_hz)
    found = measures_of(write_sound(tmp_path / "a.wav", tone, rate_hz))
    bands = found.spectrum_db
    assert BAND_EDGES_HZ[bands.argmax()] <= 900 < BAND_EDGES_HZ[bands.argmax() + 1]
    assert bands.max() == pytest.approx(-9, abs=1) and found.level_db == pytest.approx(-9.0, abs=0.1)
    assert np.array_equal(bands == NO_BAND, BAND_EDGES_HZ[:-1] >= rate_hz / 2)


def test_the_floor_is_that_of_the_pauses_and_the_spectrum_that_of_the_song(tmp_path: Path) -> None:
    sound = noise(4.0, 16_000, level=0.001)
    sound[16_000:32_000] += 0.5 * np.sin(2 * np.pi * 3_000 * np.arange(16_000) / 16_000)
    found = measures_of(write_sound(tmp_path / "a.wav", sound, subtype="FLOAT"))
    band = int(np.searchsorted(BAND_EDGES_HZ, 3_000) - 1)
    assert found.spectrum_db[band] > -20 and found.floor_db[band] < -60


def test_the_bandwidth_is_where_the_spectrum_ends(tmp_path: Path) -> None:
    spectrum = np.fft.rfft(noise(2.0, 44_100))
    spectrum[np.fft.rfftfreq(88_200, 1 / 44_100) > 15_000] = 0
    cut = write_sound(tmp_path / "cut.wav", np.fft.irfft(spectrum), 44_100)
    assert measures_of(cut).bandwidth_hz == pytest.approx(15_000, rel=0.05)
    assert measures_of(write_sound(tmp_path / "whole.wav", noise(2.0, 44_100), 44_100)).bandwidth_hz == 22_050


def test_a_tone_above_its_noise_is_no_end_of_the_band(tmp_path: Path) -> None:
    tone = 0.3 * np.sin(2 * np.pi * 700 * np.arange(32_000) / 16_000)
    path = write_sound(tmp_path / "tone.wav", tone + noise(2.0, 16_000, level=0.01))
    assert measures_of(path).bandwidth_hz == 8_000


def test_offset_clipping_and_clicks_are_measured(tmp_path: Path) -> None:
    offset = measures_of(write_sound(tmp_path / "offset.wav", 0.25 + noise(1.0, 16_000)))
    assert offset.offset == pytest.approx(0.25, abs=0.01) and offset.level_db == pytest.approx(-26, abs=0.5)
    clipped = measures_of(write_sound(tmp_path / "clipped.wav", np.clip(20 * noise(1.0, 16_000), -1, 1)))
    assert 0.2 < clipped.clipped < 0.5 and offset.clipped == 0
    click = np.zeros(16_000)
    click[500] = 0.9
    assert measures_of(write_sound(tmp_path / "click.wav", click)).click > 0.99 and offset.click < 0.1
    across = np.full(16_000, 0.3)  # an offset; and the click in two steps of the envelope
    across[799:802] += 0.5
    assert measures_of(write_sound(tmp_path / "across.wav", across, subtype="FLOAT")).click > 0.99


def test_an_offset_alone_is_silence_and_gaps_are_what_sound_follows(tmp_path: Path) -> None:
    alone = measures_of(write_sound(tmp_path / "alone.wav", np.full(32_000, -0.3), subtype="FLOAT"))
    assert alone.level_db == -999.0 and alone.empty == 1.0 and alone.gaps == 0.0
    sound = noise(10.0, 16_000)
    sound[:16_000] = sound[48_000:80_000] = sound[-32_000:] = 0.0
    found = measures_of(write_sound(tmp_path / "gaps.wav", sound))
    assert (found.empty, found.gaps) == (pytest.approx(0.5, abs=0.01), pytest.approx(0.2, abs=0.01))


def test_the_digest_of_samples_is_that_of_the_sound_not_of_the_file(tmp_path: Path) -> None:
    samples = np.round(noise(3.0, 44_100) * 32767).astype(np.int16)
    paths = []
    for name, subtype in (("a.wav", "PCM_16"), ("b.flac", "PCM_16"), ("c.wav", "PCM_24"), ("d.w64", "FLOAT")):
        paths.append(tmp_path / name)
        soundfile.write(paths[-1], samples / 32768, 44_100, subtype=subtype)
    assert len({examine(path).samples for path in paths}) == 1
    soundfile.write(tmp_path / "longer.wav", np.append(samples, np.int16(0)), 44_100)
    samples[44_097] += 1  # one sample of many
    soundfile.write(tmp_path / "other.wav", samples, 44_100)
    assert len({examine(tmp_path / name).samples for name in ("a.wav", "longer.wav", "other.wav")}) == 3


def test_measures_do_not_depend_on_the_length_of_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = noise(20.0, 16_000, 3)
    sound[50_000:130_000] = sound[-40_000:] = 0.0
    path = write_sound(tmp_path / "a.wav", sound)
    whole = examine(path)
    monkeypatch.setattr("birdtune.audio.decode._BLOCK_VALUES", 50_000)
    pieces = examine(path)
    assert pieces.samples == whole.samples and pieces.measures is not None and whole.measures is not None
    assert pieces.measures.gaps == pytest.approx(whole.measures.gaps, abs=0.002) and 0.2 < whole.measures.gaps < 0.3
    assert np.abs(pieces.measures.floor_db - whole.measures.floor_db).max() <= 3


# ---- fingerprints ---------------------------------------------------------------------------------------------------


def quiet(seconds: float, seed: int = 0) -> np.ndarray:
    """White noise of -40 dB."""
    return noise(seconds, RATE_HZ, seed, level=0.01)


def fingerprint(*blocks: np.ndarray) -> str:
    meter = Meter(RATE_HZ, 1)
    for block in blocks:
        sound = block.astype(np.float32)
        meter.feed(sound[:, None], sound, float(np.abs(sound).max()))
    return meter.measures().fingerprint


def test_white_noise_has_its_level_in_every_band_of_both_halves() -> None:
    floors = floors_of(fingerprint(quiet(10)))
    assert floors.shape == (2, N_BANDS)
    assert np.abs(floors + 42.0).max() < 3.5  # -40 dB, and the floor is below the mean


def test_a_call_in_a_third_of_the_frames_leaves_the_floor_as_it_is() -> None:
    plain = quiet(10)
    called = plain.copy()
    for begin in range(0, 160_000, 16_000):
        called[begin : begin + 5_000] += 0.5 * np.sin(2 * np.pi * 0.2 * np.arange(5_000))
    change = floors_of(fingerprint(called)) - floors_of(fingerprint(plain))
    assert np.abs(change).max() < 6  # the call itself is 35 dB above


def test_a_low_pass_shows_where_it_ends() -> None:
    spectrum = np.fft.rfft(quiet(10))
    spectrum[len(spectrum) // 2 :] = 0
    floors = floors_of(fingerprint(np.fft.irfft(spectrum)))
    assert floors[:, :31].min() > -45 and floors[:, 34:].max() < -80


def test_each_half_has_its_floor() -> None:
    floors = floors_of(fingerprint(np.concatenate([quiet(5), 10 * quiet(5)])))
    assert np.median(floors[1] - floors[0]) == pytest.approx(20.0, abs=1.0)


@pytest.mark.parametrize("sound", [quiet(0.25), np.zeros(160_000)], ids=["a quarter of a second", "silence"])
def test_too_little_sound_has_none(sound: np.ndarray) -> None:
    assert fingerprint(sound) == ""


def test_it_takes_as_much_room_whatever_the_length() -> None:
    long = fingerprint(*(quiet(6.25, seed) for seed in range(40)))
    assert len(long) == len(fingerprint(quiet(3.125))) <= 200
    assert np.abs(floors_of(long) + 42.0).max() < 3.5
