"""Soundscapes of known content: calls lie where the tables say, as loud as they say, from sources of their own."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from bench.made_sets import Clip, rms
from bench.soundscapes import RATE_HZ, by_source, write_labels, write_soundscapes

TONES_HZ = {"a": 3000, "b": 6000}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Clip]:
    folder, made = tmp_path_factory.mktemp("calls"), []
    for label, hz in TONES_HZ.items():
        for number in range(4):
            time_s = np.arange(6 * RATE_HZ) / RATE_HZ
            sound = np.sin(2 * np.pi * hz * time_s) * np.where((time_s > 1) & (time_s < 5), 0.5, 0.01)
            sound += 0.3 * np.sin(2 * np.pi * 100 * time_s)  # rumble, which is no part of a call
            soundfile.write(folder / f"{label}{number}.wav", sound, RATE_HZ)
            made.append(Clip(folder / f"{label}{number}.wav", label))
    return made


def test_each_part_has_sources_of_every_class_that_no_other_has(clips: list[Clip]) -> None:
    parts = by_source(clips, {"train": 0.5, "val": 0.2, "test": 0.3}, 1)
    assert sorted(clip for part in parts.values() for clip in part) == sorted(clips)
    assert [{clip.label for clip in part} for part in parts.values()] == [{"a", "b"}] * 3
    assert parts == by_source(clips, {"train": 0.5, "val": 0.2, "test": 0.3}, 1)


def test_calls_lie_where_the_tables_say_as_loud_above_the_background_as_they_say(
    clips: list[Clip], tmp_path: Path
) -> None:
    made = write_soundscapes(clips, [], tmp_path, "x", 2, 1, snr_db=(10.0, 20.0), per_minute=6, seconds=20.0)
    assert [call.recording for call in made] == ["x-001.wav"] * 2 + ["x-002.wav"] * 2
    assert {call.label for call in made} == {"a", "b"}
    write_labels(tmp_path / "labels.csv", made)
    assert (tmp_path / "labels.csv").read_text().splitlines()[1] == (
        f"x-001.wav,{made[0].start_s},{made[0].end_s},{made[0].label}"
    )
    rows = (tmp_path / "x-002.selections.txt").read_text().splitlines()
    assert len(rows) == 3 and rows[1].split("\t")[3:5] == [str(made[2].start_s), str(made[2].end_s)]
    for call in made:
        sound, _ = soundfile.read(tmp_path / call.recording)
        assert 1.0 <= call.end_s - call.start_s <= 4.0 and 10 <= call.snr_db <= 20
        begin, end = round((call.start_s + 0.05) * RATE_HZ), round((call.end_s - 0.05) * RATE_HZ)
        spectrum = np.abs(np.fft.rfft(sound[begin:end] * np.hanning(end - begin)))
        hz = np.fft.rfftfreq(end - begin, 1 / RATE_HZ)
        peak_hz = float(hz[int(np.where(hz > 1000, spectrum, 0.0).argmax())])
        others = [other for other in made if other.recording == call.recording and other is not call]
        if not any(other.start_s < call.end_s and call.start_s < other.end_s for other in others):
            assert peak_hz == pytest.approx(TONES_HZ[call.label], abs=2)


def test_stretches_that_are_calls_are_laid_as_they_are(clips: list[Clip], tmp_path: Path) -> None:
    calls = {clip.path: [(1.5, 3.25)] for clip in clips}
    made = write_soundscapes(
        clips, [], tmp_path, "x", 1, 1, per_minute=6, seconds=20.0, stretches=calls, are_calls=True
    )  # fmt: skip
    assert [call.end_s - call.start_s for call in made] == pytest.approx([1.75, 1.75], abs=0.002)


def test_the_level_of_a_call_is_that_over_the_background_below_it_from_1_khz_on(
    clips: list[Clip], tmp_path: Path
) -> None:
    made = {}
    for snr_db in (5.0, 25.0):
        folder = tmp_path / f"{snr_db}"
        (call,) = write_soundscapes(
            clips, [], folder, "x", 1, 3, snr_db=(snr_db, snr_db), per_minute=6, seconds=10.0
        )
        made[snr_db] = soundfile.read(folder / "x-001.wav")[0]
    # 20 dB more are ten times the amplitude, so that the difference is nine times the fainter call.
    faint = (made[25.0] - made[5.0]) / 9
    part = slice(round((call.start_s + 0.03) * RATE_HZ), round((call.end_s - 0.03) * RATE_HZ))
    high = [_above_1_khz(sound)[part] for sound in (faint, made[5.0] - faint)]
    assert 20 * np.log10(rms(high[0]) / rms(high[1])) == pytest.approx(5, abs=0.4)
    outside = np.ones(len(faint), bool)
    outside[round((call.start_s - 0.01) * RATE_HZ) : round((call.end_s + 0.01) * RATE_HZ)] = False
    assert np.abs(faint[outside]).max() < 1e-4


def _above_1_khz(sound: np.ndarray) -> np.ndarray:
    spectrum = np.fft.rfft(sound)
    spectrum[np.fft.rfftfreq(len(sound), 1 / RATE_HZ) < 1000] = 0
    return np.fft.irfft(spectrum, len(sound))
