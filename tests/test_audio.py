"""birdtune.audio.decode: whatever the file, the same mono sound at 16 kHz; or why not."""

import math
import pickle
import struct
import tracemalloc
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import resampy
import soundfile
import soxr
from makers import Samples, cut, patched, tone, write_sound

from birdtune.audio import decode
from birdtune.audio.container import SOUND_ENDINGS
from birdtune.audio.decode import DEFAULT, SoundStream, examine, read
from birdtune.audio.faults import SoundError
from birdtune.data.scan import PROBLEMS
from birdtune.settings import AudioSettings


def problem_of(path: Path, *, longest_s: float = math.inf) -> str:
    with pytest.raises(SoundError) as caught:
        examine(path, longest_s=longest_s)
    assert caught.value.problem in PROBLEMS
    return caught.value.problem


def damage_of(path: Path, seconds: float | None = None, slack_s: float = 0.1) -> str:
    """What is wrong with a file that is used all the same, for so many seconds."""
    facts = examine(path)
    assert facts.damage in PROBLEMS and facts.damage_detail
    assert seconds is None or facts.duration_s == pytest.approx(seconds, abs=slack_s)
    return facts.damage


def whole(path: Path, sound: AudioSettings = DEFAULT) -> Samples:
    return np.concatenate(list(SoundStream(path, sound, rate_hz=16_000)))


def frequency_hz(sound: Samples) -> float:
    """Of the strongest component, at 16 kHz."""
    spectrum = np.abs(np.fft.rfft(sound * np.hanning(sound.size)))
    return float(np.argmax(spectrum) * 16_000 / sound.size)


# ---- what can be read ---------------------------------------------------------------------------

# Encoding → how far its samples may be from what was written (half a step, or what the codec loses).
WAV_ENCODINGS = {
    "PCM_U8": 2**-7, "PCM_16": 2**-15, "PCM_24": 2**-23, "PCM_32": 1e-7, "FLOAT": 0.0, "DOUBLE": 0.0,
    "ALAW": 0.02, "ULAW": 0.02, "MS_ADPCM": 0.1, "IMA_ADPCM": 0.1,
}  # fmt: skip


@pytest.mark.parametrize(("encoding", "error"), WAV_ENCODINGS.items())
def test_wav_in_every_encoding_holds_what_was_written(tmp_path: Path, encoding: str, error: float) -> None:
    written = tone(2.0)
    path = write_sound(tmp_path / "a.wav", written, subtype=encoding)
    facts = examine(path)
    sound = whole(path)
    # ADPCM needs some samples to find its step.
    assert np.abs(sound[100:32_000] - written[100:, 0]).max() <= error
    assert sound.dtype == np.float32
    # ADPCM comes in blocks, the last of which is filled up.
    assert 32_000 <= sound.size <= 32_000 + (1100 if "ADPCM" in encoding else 0)
    assert round(facts.duration_s * 16_000) == sound.size
    assert (facts.rate_hz, facts.channels, facts.format) == (16_000, 1, f"WAV {encoding}")


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("a.flac", {"subtype": "PCM_16"}), ("a.flac", {"subtype": "PCM_24"}), ("a.ogg", {"subtype": "VORBIS"}),
        ("a.opus", {"subtype": "OPUS"}), ("a.mp3", {}), ("a.aif", {}), ("a.au", {}), ("a.caf", {}), ("a.w64", {}),
        ("a.rf64", {}), ("A.WAV", {}), ("A.Flac", {}), ("A.OGG", {}), ("A.MP3", {}),
    ],
)  # fmt: skip
def test_every_format_gives_the_tone_that_was_written(tmp_path: Path, name: str, how: dict[str, str]) -> None:
    path = write_sound(tmp_path / name, tone(2.0, 48_000), 48_000, **how)
    sound = whole(path)
    assert path.suffix.lower() in SOUND_ENDINGS
    assert sound.size == 32_000
    assert frequency_hz(sound) == pytest.approx(1000, abs=1)
    assert np.abs(sound).max() == pytest.approx(0.43, abs=0.05)


@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 96_000])
@pytest.mark.parametrize("channels", [1, 2, 4])
def test_any_rate_and_number_of_channels_become_16_khz_mono(tmp_path: Path, rate_hz: int, channels: int) -> None:
    path = write_sound(tmp_path / "a.wav", tone(1.5, rate_hz, channels=channels), rate_hz)
    facts = examine(path)
    sound = whole(path)
    assert (facts.rate_hz, facts.channels) == (rate_hz, channels)
    assert facts.duration_s == pytest.approx(1.5, abs=1e-4)
    assert abs(sound.size - 24_000) <= 1
    assert frequency_hz(sound) == pytest.approx(1000, abs=1)


@pytest.mark.parametrize(
    ("rate_hz", "n", "expected"), [(44_100, 44_100, 16_000), (44_100, 100, 36), (8_000, 1, 2), (96_000, 2, 0)]
)
def test_length_is_exact_to_the_sample(tmp_path: Path, rate_hz: int, n: int, expected: int) -> None:
    path = write_sound(tmp_path / "a.wav", np.full((n, 1), 0.5), rate_hz)
    assert (whole(path).size, examine(path).duration_s) == (expected, n / rate_hz)


@pytest.mark.parametrize(
    ("name", "encoding"), [("a.wav", "PCM_16"), ("a.flac", "PCM_16"), ("a.aiff", "PCM_16"), ("a.wav", "FLOAT")]
)
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_shortcuts_give_the_very_bits_of_decoding_to_floats_and_averaging(
    tmp_path: Path, name: str, encoding: str, channels: int
) -> None:
    written = 2.4 * tone(9.0, channels=channels)  # up to full scale and, clipped, to -32,768
    path = write_sound(tmp_path / name, written, subtype=encoding)
    plain = soundfile.read(path, dtype="float32", always_2d=True)[0]
    assert encoding == "FLOAT" or (plain.min(), plain.max()) == (-1, 32767 / 32768)
    assert np.array_equal(whole(path), plain.mean(axis=1, dtype=np.float32))
    assert examine(path).peak_db == round(20 * math.log10(np.abs(plain).max()), 1)


def test_channels_are_averaged_and_the_peak_is_measured_before(tmp_path: Path) -> None:
    left = tone(1.0)
    path = write_sound(tmp_path / "a.wav", np.hstack([left, -left, left, left]), subtype="FLOAT")
    assert whole(path, AudioSettings(channels="mix")) == pytest.approx(left[:, 0] / 2, abs=1e-7)
    # A signal in opposite phase on two channels is not silent.
    path = write_sound(tmp_path / "b.wav", np.hstack([left, -left]), subtype="FLOAT")
    assert examine(path).peak_db == pytest.approx(20 * np.log10(np.abs(left).max()), abs=0.06)
    assert np.abs(whole(path, AudioSettings(channels="mix"))).max() == 0 and np.abs(whole(path)).max() > 0.3


# ---- MP3 whose header does not tell its length --------------------------------------------------


def mp3_without_length(path: Path, samples: Samples, *, variable: bool) -> Path:
    """An MP3 as old encoders and recorders write it: the first frame, which holds the count, is taken away."""
    mode = {"bitrate_mode": "VARIABLE" if variable else "CONSTANT", "compression_level": 0.5}
    content = write_sound(path, samples, 44_100, **mode).read_bytes()
    frame = content.index(b"\xff\xfb")
    assert b"Xing" in content[frame : frame + 200] or b"Info" in content[frame : frame + 200]
    path.write_bytes(content[content.index(b"\xff\xfb", frame + 4) :])
    return path


ID3V2 = b"ID3\x03\x00\x00\x00\x00\x10\x00" + bytes(2048)
ID3V1 = b"TAG" + bytes(125)


@pytest.mark.parametrize("variable", [False, True])
@pytest.mark.parametrize(("before", "after"), [(b"", b""), (ID3V2, ID3V1)])
def test_mp3_that_does_not_tell_its_length_is_read_to_its_end(
    tmp_path: Path, variable: bool, before: bytes, after: bytes
) -> None:
    # First soft, then loud: by its first frame, a decoder guesses far too short.
    path = mp3_without_length(
        tmp_path / "a.mp3", np.vstack([0.001 * tone(4, 44_100), tone(12, 44_100)]), variable=variable
    )
    path.write_bytes(before + path.read_bytes() + after)
    facts = examine(path)
    assert facts.duration_s == pytest.approx(16.0, abs=0.06)
    assert whole(path).size == pytest.approx(facts.duration_s * 16_000, abs=1)
    assert soundfile.info(path).frames != facts.duration_s * 44_100, "the guess was right: this tests nothing"


def test_mp3_with_a_cover_picture_before_its_length_is_not_misread(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "a.mp3", tone(5, 44_100), 44_100)
    size = 100_000
    tag = b"ID3\x03\x00\x00" + bytes([size >> 21 & 127, size >> 14 & 127, size >> 7 & 127, size & 127])
    path.write_bytes(tag + bytes(size) + path.read_bytes())
    assert examine(path).duration_s == 5.0
    bytes_of_sound = path.stat().st_size - size
    path.write_bytes(path.read_bytes()[: -bytes_of_sound // 5])
    assert damage_of(path, 4.0) == "truncated"


def test_mp3_without_length_can_be_too_long_and_truncated(tmp_path: Path) -> None:
    path = mp3_without_length(tmp_path / "a.mp3", tone(3, 44_100), variable=False)
    assert problem_of(path, longest_s=2.0) == "too-long"
    assert examine(path, longest_s=4.0).duration_s > 2.9
    path.write_bytes(path.read_bytes()[:-100])
    assert damage_of(path, 3.0) == "truncated"


# ---- streaming ----------------------------------------------------------------------------------


@pytest.mark.parametrize("rate_hz", [44_100, 8_000])
def test_soxr_in_blocks_equals_soxr_at_once(tmp_path: Path, rate_hz: int) -> None:
    samples = tone(40.0, rate_hz)
    path = write_sound(tmp_path / "a.wav", samples, rate_hz, subtype="FLOAT")
    assert len(list(SoundStream(path, rate_hz=16_000))) > 2, "one block proves nothing"
    at_once = soxr.resample(samples[:, 0], rate_hz, 16_000, quality="HQ")
    assert whole(path) == pytest.approx(at_once, abs=1e-6)


@pytest.mark.parametrize(
    ("rate_hz", "seconds"), [(44_100, 25.003), (22_050, 11.5), (48_000, 21.0), (8_000, 31.0), (11_025, 10.0)]
)
def test_resampy_in_pieces_equals_resampy_at_once(tmp_path: Path, rate_hz: int, seconds: float) -> None:
    samples = tone(seconds, rate_hz)
    path = write_sound(tmp_path / "a.wav", samples, rate_hz, subtype="FLOAT")
    at_once = resampy.resample(samples[:, 0], rate_hz, 16_000, filter="kaiser_best")
    in_pieces = whole(path, AudioSettings(resampler="resampy"))
    assert in_pieces.size == at_once.size
    assert np.abs(in_pieces - at_once).max() < 1e-6


@pytest.mark.parametrize("n", [1, 3, 10])
def test_resampy_takes_sounds_shorter_than_one_sample_at_16_khz(tmp_path: Path, n: int) -> None:
    path = write_sound(tmp_path / "a.wav", np.full((n, 1), 0.5), 96_000)
    assert whole(path, AudioSettings(resampler="resampy")).size >= 1


@pytest.mark.parametrize(("resampler", "minutes"), [("soxr", 10), ("resampy", 3)])
def test_memory_does_not_grow_with_the_length_of_a_file(tmp_path: Path, resampler: str, minutes: int) -> None:
    def peak_bytes(minutes: int) -> int:
        path = write_sound(tmp_path / "a.wav", np.tile(tone(60.0, 8_000), (minutes, 1)), 8_000)
        tracemalloc.start()
        try:
            stream = SoundStream(path, AudioSettings(resampler=resampler), rate_hz=16_000)
            n_samples = sum(block.size for block in stream)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert n_samples == minutes * 60 * 16_000
        return peak

    peak_bytes(1)  # what is loaded at the first use must not count
    assert peak_bytes(minutes) < 1.1 * peak_bytes(2)  # some blocks


def test_blocks_of_many_channels_are_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_sound(tmp_path / "a.wav", tone(1.0, channels=8))
    monkeypatch.setattr(decode, "_BLOCK_VALUES", 8 * 1000)
    assert [block.size for block in SoundStream(path)] == [1000] * 16


def test_facts_appear_when_all_is_read(tmp_path: Path) -> None:
    stream = SoundStream(write_sound(tmp_path / "a.wav", tone(40.0)))
    blocks = iter(stream)
    next(blocks)
    assert stream.facts is None
    assert sum(1 for _ in blocks) == 2
    assert stream.facts is not None
    assert stream.facts.duration_s == 40.0


# ---- parts --------------------------------------------------------------------------------------


def test_read_gives_the_part_that_was_asked_for(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "a.wav", tone(25.0), subtype="FLOAT")
    everything = whole(path)
    assert np.array_equal(read(path, rate_hz=16_000), everything)
    assert np.array_equal(
        read(path, start_s=9.5, longest_s=11.0, rate_hz=16_000), everything[152_000:328_000]
    )  # over two borders of blocks
    assert np.array_equal(read(path, start_s=24.0, longest_s=9.0, rate_hz=16_000), everything[384_000:])
    assert read(path, start_s=30.0, rate_hz=16_000).size == 0
    assert read(path, longest_s=0.0, rate_hz=16_000).size == 0


def test_read_does_not_decode_further_than_asked(tmp_path: Path) -> None:
    path = cut(write_sound(tmp_path / "a.ogg", tone(40.0)), 0.8)
    refusing = AudioSettings(truncated="refuse")
    assert read(path, refusing, longest_s=5.0, rate_hz=16_000).size == 80_000
    with pytest.raises(SoundError):
        read(path, refusing, rate_hz=16_000)


# ---- what cannot be read ------------------------------------------------------------------------


def test_a_file_without_bytes_or_samples_is_empty(tmp_path: Path) -> None:
    (tmp_path / "a.wav").touch()
    assert problem_of(tmp_path / "a.wav") == "empty"
    assert problem_of(write_sound(tmp_path / "a.wav", np.zeros((0, 1)))) == "empty"


def test_a_header_that_makes_no_sense_is_corrupt(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "a.wav")
    assert problem_of(patched(path, (22, struct.pack("<H", 0)))) == "corrupt"  # no channels
    assert problem_of(patched(path, (24, struct.pack("<I", 0x7FFFFFFF)))) == "corrupt"  # samples a second
    assert problem_of(patched(path, (24, struct.pack("<I", 10)))) == "corrupt"
    path.write_bytes(path.read_bytes()[:30])
    assert problem_of(path) == "corrupt"


def test_silence_is_what_does_not_reach_one_step_of_16_bits(tmp_path: Path) -> None:
    assert problem_of(write_sound(tmp_path / "a.wav", np.zeros((16_000, 2)))) == "silent"
    assert problem_of(write_sound(tmp_path / "a.wav", np.full((16_000, 1), 3e-5), subtype="FLOAT")) == "silent"
    one_step = np.zeros((16_000, 1), np.int16)
    one_step[5000] = 2
    assert examine(write_sound(tmp_path / "a.wav", one_step)).peak_db == pytest.approx(-84.3)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_comes_before_samples_that_are_no_numbers_is_used(tmp_path: Path, value: float) -> None:
    samples = tone(25.0)
    samples[390_000:] = value
    path = write_sound(tmp_path / "a.wav", samples, subtype="FLOAT")
    assert np.array_equal(whole(path), samples[:390_000, 0])
    facts = examine(path)
    assert facts.damage == "not-finite" and facts.duration_s == 390_000 / 16_000
    assert "after 390,000 good ones; 24.38 s of 25.00 s (97.5 %) are used" in facts.damage_detail
    samples[9_000:] = value
    assert problem_of(write_sound(path, samples, subtype="FLOAT")) == "not-finite"


def test_samples_that_would_overflow_are_refused(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "a.wav", np.full((1000, 2), 3e38, np.float32), subtype="FLOAT")
    assert problem_of(path) == "not-finite"
    # Integers that somebody stored as float are only loud.
    path = write_sound(tmp_path / "a.wav", 32_768 * tone(), subtype="FLOAT")
    assert examine(path).peak_db == pytest.approx(90.3 - 7.5, abs=0.5)


def test_too_long_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "a.wav", tone(3.0))
    assert examine(path, longest_s=3.0).duration_s == 3.0
    with pytest.raises(SoundError, match=r"audio\.max-hours") as caught:
        next(iter(SoundStream(path, longest_s=2.9)))
    assert caught.value.problem == "too-long"


def test_a_decoder_that_was_refused_half_of_the_file_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = cut(write_sound(tmp_path / "a.flac", tone(4.0)), 0.5)
    assert damage_of(path) == "truncated"
    real = Path.open

    def refuse(self: Path, mode: str = "r", buffering: int = -1) -> Any:
        if buffering == 0:
            raise OSError(5, "Input/output error")
        return real(self, mode, buffering)

    monkeypatch.setattr(Path, "open", refuse)
    assert problem_of(path) == "storage-failed"


def test_a_folder_is_unreadable_and_a_missing_file_vanished(tmp_path: Path) -> None:
    (tmp_path / "a.wav").mkdir()
    assert problem_of(tmp_path / "a.wav") == "unreadable"
    assert problem_of(tmp_path / "b.wav") == "vanished"


def test_a_file_that_vanishes_while_it_is_read_has_vanished(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "a.ogg", tone(25.0))
    blocks = iter(SoundStream(path))
    next(blocks)
    path.unlink()
    with pytest.raises(SoundError) as caught:
        deque(blocks, maxlen=0)
    assert caught.value.problem == "vanished"


def test_a_sound_error_crosses_between_processes_whole() -> None:
    copy = pickle.loads(pickle.dumps(SoundError("silent", "nothing")))
    assert (copy.problem, str(copy)) == ("silent", "nothing")


def test_workers_decode_as_the_settings_say_where_they_say_nothing() -> None:
    assert decode.PlainDecoding.of(AudioSettings()) == decode.DEFAULT
