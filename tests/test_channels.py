"""Which channels of a recording are used, and what is said of it."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from makers import codes, scan_and_select, write_sound

from birdtune.audio import channels
from birdtune.audio.channels import Choice, mixed
from birdtune.audio.decode import SoundStream, examine, read
from birdtune.settings import AudioSettings

RATE_HZ = 22_050
Sound = npt.NDArray[np.float64]


def noise(level: float, seed: int, seconds: float = 6.0) -> Sound:
    return level * np.random.default_rng(seed).standard_normal(round(seconds * RATE_HZ))


def song(seconds: float = 6.0, frequency_hz: float = 3_000.0, width_hz: float = 1_200.0, seed: int = 0) -> Sound:
    """A syllable of a third of a second in each second, in faint noise; each sweeps over a band."""
    time_s = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    within = time_s % 1.0
    sung = np.sin(2 * np.pi * (frequency_hz + width_hz * within) * within) * (within < 0.33)
    return np.asarray(0.3 * sung + noise(0.002, seed, seconds))


def late(sound: Sound, seconds: float) -> Sound:
    return np.concatenate([np.zeros(round(seconds * RATE_HZ)), sound])[: sound.size]


def until(sound: Sound, share: float) -> Sound:
    """Its first part, and digital silence behind that."""
    return sound * (np.arange(sound.size) < share * sound.size)


def stereo(*channels: Sound) -> Sound:
    return np.stack(channels, axis=1)


def choice(path: Path, sound: Sound, **how: Any) -> Choice | None:
    return examine(write_sound(path, sound, RATE_HZ, **how)).choice


S = song()
ORDINARY = {
    "both the same": stereo(S, S),
    "noise of its own": stereo(S, S + noise(0.004, 5)),
    "panned": stereo(S, 0.25 * S + noise(0.002, 5)),
    "on one side mostly": stereo(S, 0.1 * S + noise(0.002, 5)),
    "microphones apart": stereo(S, late(S, 0.0004) + noise(0.002, 5)),
    "far apart": stereo(S, late(S, 0.0027) + noise(0.002, 5)),
    "noise without song": stereo(noise(0.01, 1), noise(0.01, 2)),
    "wind in both": stereo(S + noise(0.05, 1), S + noise(0.05, 2)),
    "loud": stereo(np.clip(4 * S, -1, 1), np.clip(4 * S, -1, 1)),
    "one after the other": stereo(until(S, 0.5), S - until(S, 0.5)),
    "four": stereo(*(S + noise(0.002, k) for k in range(4))),
}


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_stereo_is_mixed(tmp_path: Path, name: str) -> None:
    path = write_sound(tmp_path / "a.wav", ORDINARY[name], RATE_HZ)
    assert examine(path).choice is None
    assert np.array_equal(read(path, rate_hz=RATE_HZ), read(path, AudioSettings(channels="mix"), rate_hz=RATE_HZ))


FAULTY = {
    "inverted": (stereo(S, -S), 0, "inverted"),
    "inverted, one fainter": (stereo(0.5 * S, -S), 1, "inverted"),
    "inverted, in noise of its own": (stereo(S, -S + noise(0.004, 5)), 0, "inverted"),
    "inverted and late": (stereo(S, -late(S, 0.0001)), 0, "inverted"),
    "inverted noise": (stereo(noise(0.01, 1), -noise(0.01, 1)), 0, "inverted"),
    "a whistle that cancels itself": (
        stereo(song(width_hz=0), late(song(width_hz=0), 1 / 6000) + noise(0.002, 5)), 0, "inverted",
    ),
    "first dead": (stereo(0 * S, S), 1, "dead"),
    "second hisses": (stereo(S, noise(0.0001, 5)), 0, "dead"),
    "noisy": (stereo(0.25 * noise(1.0, 5), S), 1, "noisy"),
    "offset": (stereo(0.4 + S, S), 1, "offset"),
    "first dies": (stereo(until(S, 0.3), S), 1, "dead"),
    "second comes late": (stereo(S, S - until(S, 0.8)), 0, "dead"),
    "noise, second dies": (stereo(noise(0.05, 1), until(noise(0.05, 1), 0.2)), 0, "dead"),
    "first gated": (stereo(until(0.5 * S, 0.12) + late(until(0.5 * S, 0.1), 4.0), S), 1, "dead"),
    "clipped": (stereo(np.clip(20 * S, -1, 1), S), 1, "clipped"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTY)
def test_where_channels_disagree_the_better_one_is_used_alone(tmp_path: Path, name: str) -> None:
    sound, kept, fault = FAULTY[name]
    path = write_sound(tmp_path / "a.wav", sound, RATE_HZ)
    assert examine(path).choice == Choice((kept,), fault)
    alone = write_sound(tmp_path / "alone.wav", sound[:, kept], RATE_HZ)
    assert np.array_equal(read(path, rate_hz=RATE_HZ), read(alone, rate_hz=RATE_HZ))


@pytest.mark.parametrize("ending", [".flac", ".ogg", ".mp3", ".w64"])
def test_the_choice_is_the_same_in_every_format(tmp_path: Path, ending: str) -> None:
    for name in ("inverted", "first dead", "noisy"):
        sound, kept, fault = FAULTY[name]
        assert choice(tmp_path / f"{name}{ending}", sound) == Choice((kept,), fault), name
    assert choice(tmp_path / f"both{ending}", ORDINARY["panned"]) is None


def test_of_an_array_those_that_agree_are_mixed(tmp_path: Path) -> None:
    eight = stereo(*(S + noise(0.002, k) for k in range(5)), -S, 0 * S, noise(0.3, 9))
    path = write_sound(tmp_path / "a.wav", eight, RATE_HZ, subtype="FLOAT")
    found = examine(path).choice
    assert found is not None and found.kept == (0, 1, 2, 3, 4)
    mono = write_sound(tmp_path / "b.wav", mixed(eight[:, :5].astype(np.float32)), RATE_HZ, subtype="FLOAT")
    assert np.allclose(read(path, rate_hz=RATE_HZ), read(mono, rate_hz=RATE_HZ), atol=1e-6)


def test_a_short_song_in_digital_silence_is_not_cancelled(tmp_path: Path) -> None:
    sound = np.zeros(30 * RATE_HZ)
    sound[200_000:204_000] = S[:4_000]
    assert choice(tmp_path / "a.wav", stereo(sound, -sound)) == Choice((0,), "inverted")
    assert choice(tmp_path / "b.flac", stereo(sound, sound)) is None


@pytest.mark.parametrize("n", [1, 100, 2_000, 9_000])
def test_clips_of_any_length_are_decided(tmp_path: Path, n: int) -> None:
    sound = noise(0.1, 1)[:n]
    assert choice(tmp_path / "a.wav", stereo(sound, -sound)) == (Choice((0,), "inverted") if n > 1 else None)
    assert choice(tmp_path / "b.wav", stereo(sound, sound)) is None


@pytest.mark.parametrize("rate_hz", [1_000, 4_000, 8_000, 96_000, 384_000])
def test_recordings_of_any_rate_are_decided(tmp_path: Path, rate_hz: int) -> None:
    sound = noise(0.1, 1)[:rate_hz]
    path = write_sound(tmp_path / "a.wav", stereo(sound, -sound), rate_hz)
    assert examine(path).choice == Choice((0,), "inverted")


def test_the_choice_is_the_same_in_blocks_of_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [
        write_sound(tmp_path / f"{number}.wav", sound, RATE_HZ) for number, (sound, _, _) in enumerate(FAULTY.values())
    ]
    before = [(examine(path).choice, read(path, rate_hz=RATE_HZ)) for path in paths]
    monkeypatch.setattr("birdtune.audio.decode._BLOCK_VALUES", 3_000)
    for path, (found, sound) in zip(paths, before, strict=True):
        assert examine(path).choice == found and np.allclose(read(path, rate_hz=RATE_HZ), sound, atol=1e-6)


@pytest.mark.parametrize(("ending", "subtype"), [("wav", "PCM_16"), ("wav", "FLOAT"), ("flac", None), ("ogg", None)])
def test_a_short_recording_is_decoded_once_and_its_choice_that_of_a_long_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, subtype: str | None
) -> None:
    opened: list[Path] = []
    real = channels.open_sound
    monkeypatch.setattr(channels, "open_sound", lambda path: opened.append(path) or real(path))
    found = []
    for number, (sound, _, _) in enumerate(FAULTY.values()):
        how = {} if subtype is None else {"subtype": subtype}
        path = write_sound(tmp_path / f"{number}.{ending}", sound, RATE_HZ, **how)
        found.append((path, examine(path), read(path, rate_hz=RATE_HZ)))
    assert not opened
    monkeypatch.setattr("birdtune.audio.decode._SHORT_VALUES", 0)
    for path, facts, sound in found:
        assert examine(path) == facts and np.array_equal(read(path, rate_hz=RATE_HZ), sound)
    assert opened


def test_channels_can_be_mixed_or_the_first_taken_without_a_look(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "a.wav", stereo(0.25 * noise(1.0, 5), S), RATE_HZ)
    first = write_sound(tmp_path / "first.wav", 0.25 * noise(1.0, 5), RATE_HZ)
    found = read(path, AudioSettings(channels="first"), rate_hz=RATE_HZ)
    assert np.array_equal(found, read(first, rate_hz=RATE_HZ))
    assert np.array_equal(found, np.concatenate(list(SoundStream(first))))
    assert examine(path, AudioSettings(channels="mix")).choice is None


def test_settings_of_channels_have_caches_of_their_own() -> None:
    keys = {AudioSettings(channels=how).cache_key for how in ("best", "mix", "first")}
    assert len(keys) == 3


# ---- what is said of it -------------------------------------------------------------------------


def test_faults_of_the_sound_are_named_file_by_file(tmp_path: Path) -> None:
    click = np.zeros(2 * RATE_HZ)
    click[9_000:9_020] = 0.9
    gone = S.copy()
    gone[20_000:80_000] = 0
    drift = np.linspace(-0.5, 0.5, 6 * RATE_HZ)
    folder = tmp_path / "A_a"
    sounds = {
        "good": S, "inverted": stereo(S, -S), "dead": stereo(0 * S, S), "noisy": stereo(S, noise(0.25, 1)),
        "offset": 0.1 + S, "clipped": np.clip(9 * S, -1, 1), "click": click[:, None] + noise(0.001, 1, 2.0)[:, None],
        "gaps": gone, "starts late": S - until(S, 0.9), "ends early": until(S, 0.1),
        "dies": stereo(until(S, 0.2), S), "four": stereo(S, 0 * S, -S, S), "drift": drift,
        "drift of both": stereo(drift, drift),
        "silence": 0 * S, "offset alone": 0 * S + 0.3, "click alone": click,
        "click in both": stereo(click, click), "click and offset": click + 0.1,
    }  # fmt: skip
    for name, sound in sounds.items():
        write_sound(folder / f"{name}.wav", sound, RATE_HZ)
    _, used, problems = scan_and_select(tmp_path)
    silent = {"silence", "offset alone", "click alone", "click in both", "click and offset", "drift", "drift of both"}
    assert {Path(one.name).stem for one in used} == set(sounds) - silent
    assert {Path(name).stem: code for name, code in codes(problems).items()} == {
        **dict.fromkeys(silent, "silent"), "inverted": "channels-inverted", "dead": "channel-dead",
        "noisy": "channel-noisy", "offset": "offset", "clipped": "clipped", "click": "click", "gaps": "gaps",
        "starts late": "gaps", "ends early": "gaps", "dies": "channel-dead", "four": "channel-dead",
    }  # fmt: skip
    assert all(problem.used == (problem.problem != "silent") for problem in problems)
    said = {Path(problem.recording).stem: problem.detail for problem in problems}
    assert said["noisy"] == "channel 2 is much noisier; channel 1 is used"
    assert said["dies"] == "channel 1 is dead for about 80% of the recording; channel 2 is used"
    assert said["four"] == (
        "channel 2 is dead, mixed with channel 3, the sound would cancel itself; channels 1 and 4 are mixed and used"
    )
    assert (said["starts late"], said["ends early"]) == ("the first 90% of it is empty", "the last 90% of it is empty")
    assert said["drift"] == "a slow drift, and nothing else"
    assert said["offset alone"] == "a constant offset of 0.3 of full scale, and nothing else"


def test_a_short_song_in_a_quiet_clip_is_no_click(tmp_path: Path) -> None:
    sound = noise(0.0005, 1, 3.5)
    at = np.arange(round(0.03 * RATE_HZ))
    sound[20_000 : 20_000 + at.size] += 0.1 * np.hanning(at.size) * np.sin(at)
    write_sound(tmp_path / "A_a" / "a.wav", sound, RATE_HZ, subtype="FLOAT")
    assert codes(scan_and_select(tmp_path)[2]) == {}
