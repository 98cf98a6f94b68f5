"""Sets with a known flaw: as flawed as they say, the same from the same seed, and nothing else changed."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from bench import made_sets
from bench.made_sets import RATE_HZ, Clip

CLIPS = [Clip(Path(f"{label}/{label}-{number}.wav"), label) for label in "abcde" for number in range(40)]


def test_the_unbalanced_set_falls_from_the_commonest_class_to_the_rarest_by_the_ratio() -> None:
    counts = Counter(clip.label for clip in made_sets.unbalanced(CLIPS, 1, ratio=20))
    assert sorted(counts.values()) == [2, 4, 9, 19, 40]
    assert sorted(Counter(clip.label for clip in made_sets.unbalanced(CLIPS, 1)).values())[0] == 1
    assert made_sets.unbalanced(CLIPS, 1) == made_sets.unbalanced(CLIPS, 1) != made_sets.unbalanced(CLIPS, 2)


def test_pieces_of_clips_hold_all_of_their_sound_and_leave_out_silence(tmp_path: Path) -> None:
    sound = np.concatenate([np.full(RATE_HZ, 0.25), np.zeros(RATE_HZ), np.full(RATE_HZ + 100, 0.5)])
    soundfile.write(tmp_path / "1-77-A.wav", sound, RATE_HZ)
    made_sets.write_stretches([Clip(tmp_path / "1-77-A.wav", "Apus")], tmp_path / "out", 1.0)
    found = {path.name: soundfile.read(path)[0] for path in sorted((tmp_path / "out" / "Apus").iterdir())}
    assert list(found) == ["1-77-A-1.wav", "1-77-A-3.wav"]
    assert [len(piece) for piece in found.values()] == [RATE_HZ, RATE_HZ]
    assert [float(np.median(piece)) for piece in found.values()] == [0.25, 0.5]


def test_noise_is_as_much_fainter_than_the_sound_as_was_asked_for_and_high_sounds_go_where_asked() -> None:
    time_s = np.arange(2 * RATE_HZ) / RATE_HZ
    low, high = (np.sin(2 * np.pi * hz * time_s).astype(np.float32) * 0.1 for hz in (1000, 6000))
    noise = made_sets.in_noise(low, np.random.default_rng(1), 20.0) - low
    assert 20 * np.log10(low.std() / noise.std()) == pytest.approx(20, abs=0.5)
    dull = made_sets.dulled(low + high, np.random.default_rng(1), 4000.0)
    assert np.abs(dull - low).max() < 1e-4


def test_in_the_noisy_set_as_many_labels_are_wrong_as_was_asked_for_and_it_is_known_which() -> None:
    made, wrong = made_sets.noisy(CLIPS, 1, share=0.1)
    assert [number for number, clip in enumerate(made) if clip.label != CLIPS[number].label] == wrong
    assert len(wrong) == 20
    assert [clip.path for clip in made] == [clip.path for clip in CLIPS]
    assert made_sets.noisy(CLIPS, 2)[1] != made_sets.noisy(CLIPS, 1)[1]


def test_the_weak_set_has_the_loudest_of_each_clip_in_a_fifth_of_each_sound(tmp_path: Path) -> None:
    source = tmp_path / "in" / "Apus"
    source.mkdir(parents=True)
    time_s = np.arange(5 * RATE_HZ) / RATE_HZ
    tone = np.where((time_s > 1) & (time_s < 3), 1.0, 0.01) * np.sin(2 * np.pi * 3000 * time_s)
    soundfile.write(source / "a.wav", 0.5 * tone, RATE_HZ)
    clips = made_sets.clips_of(tmp_path / "in")

    (made,) = made_sets.write_weak(
        clips, tmp_path / "out", 1, snr_db=(20.0, 20.0), background=[source / "a.wav"]
    )
    sound, rate_hz = soundfile.read(made.path)
    assert (rate_hz, len(sound), made.label) == (RATE_HZ, 10 * RATE_HZ, "Apus")
    inside = np.zeros(len(sound), bool)
    inside[round(made.begin_s * RATE_HZ) : round(made.end_s * RATE_HZ)] = True
    assert inside.mean() == pytest.approx(0.2)
    at_tone = np.abs(np.fft.rfft(sound[inside]))[2 * 3000]
    assert at_tone == np.abs(np.fft.rfft(sound[inside])).max()
    assert np.square(sound[inside]).mean() > 10 * np.square(sound[~inside]).mean()

    (again,) = made_sets.write_weak(
        clips, tmp_path / "again", 1, snr_db=(20.0, 20.0), background=[source / "a.wav"]
    )
    assert again.path.read_bytes() == made.path.read_bytes()


def test_sounds_are_laid_out_as_class_folders(tmp_path: Path) -> None:
    (tmp_path / "in" / "Apus").mkdir(parents=True)
    (tmp_path / "in" / "Apus" / "a.wav").write_bytes(b"sound")
    (clip,) = made_sets.clips_of(tmp_path / "in")
    made_sets.lay_out([Clip(clip.path, "Bubo")], tmp_path / "out")
    assert (tmp_path / "out" / "Bubo" / "a.wav").read_bytes() == b"sound"
    with pytest.raises(FileNotFoundError, match="no sounds"):
        made_sets.clips_of(tmp_path / "out" / "Bubo")
