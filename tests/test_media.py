"""What a file is by its first bytes, and the second decoder: m4a, aac, wv and others."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from makers import tone, write_sound

from birdtune.audio import formats
from birdtune.audio.decode import examine, read
from birdtune.audio.faults import SoundError
from birdtune.audio.formats import kind_of, kind_of_bytes
from birdtune.cli import main
from birdtune.data import scan as recordings
from birdtune.data.scan import scan
from birdtune.errors import InputError
from birdtune.serving.inference import Unused
from birdtune.serving.sounds import find_sounds, read_list

RATE_HZ = 48_000


def write_media(path: Path, format_name: str, codec: str, seconds: float = 2.0) -> Path:
    """A tone of 1 kHz on the left, silence on the right, encoded by FFmpeg."""
    import av

    samples = np.zeros((2, round(seconds * RATE_HZ)), np.float32)
    samples[0] = tone(seconds, RATE_HZ)[:, 0]
    with av.open(str(path), "w", format=format_name) as file:
        stream: Any = file.add_stream(codec, rate=RATE_HZ)
        stream.layout = "stereo"
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="stereo")
        frame.rate = RATE_HZ
        pieces = av.AudioResampler(
            format=stream.codec_context.format, layout="stereo", rate=RATE_HZ,
            frame_size=stream.codec_context.frame_size or 1024,
        )  # fmt: skip
        for piece in [*pieces.resample(frame), *pieces.resample(None)]:
            file.mux(stream.encode(piece))
        file.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("name", "format_name", "codec"),
    [("a.m4a", "mp4", "aac"), ("a.aac", "adts", "aac"), ("a.wv", "wv", "wavpack"), ("a.webm", "webm", "libopus"),
     ("a.MOV", "mov", "alac"), ("renamed.wav", "mp4", "aac"), ("renamed.flac", "wv", "wavpack")],
)  # fmt: skip
def test_sound_in_other_wrappers_is_decoded(tmp_path: Path, name: str, format_name: str, codec: str) -> None:
    path = write_media(tmp_path / name, format_name, codec)
    facts = examine(path)
    assert (facts.rate_hz, facts.channels) == (RATE_HZ, 2) and facts.duration_s == pytest.approx(2.0, abs=0.1)
    sound = read(path, rate_hz=RATE_HZ)
    spectrum = np.abs(np.fft.rfft(sound * np.hanning(sound.size)))
    assert np.argmax(spectrum) * RATE_HZ / sound.size == pytest.approx(1000, abs=2)


def test_without_the_second_decoder_the_command_that_installs_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_media(tmp_path / "A.wav", "mp4", "aac")
    (tmp_path / "data/A").mkdir(parents=True)
    (tmp_path / "data/A/b.m4a").write_bytes(path.read_bytes())
    assert [file.name for file in scan(tmp_path / "data").files] == ["A/b.m4a"]
    for module in (formats, recordings):
        monkeypatch.setattr(module, "is_installed", lambda: False)
    with pytest.raises(SoundError, match=r"MP4 or M4A.*extras media.*EXTRAS=media") as caught:
        examine(path)
    assert caught.value.problem == "unsupported-format"
    (problem,) = scan(tmp_path / "data").problems
    assert problem.problem == "unsupported-format" and "extras media" in problem.row()["advice"]  # type: ignore[operator]


def test_a_video_without_sound_and_a_cut_one_are_problems_of_their_own(tmp_path: Path) -> None:
    whole = write_media(tmp_path / "a.m4a", "mp4", "aac").read_bytes()
    (tmp_path / "cut.m4a").write_bytes(whole[:300])
    with pytest.raises(SoundError, match="MP4 or M4A") as caught:
        examine(tmp_path / "cut.m4a")
    assert caught.value.problem == "corrupt"
    assert "Errno" not in str(caught.value) and str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize(
    ("head", "words", "advice"),
    [(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer", "git lfs pull"),
     (b"/annex/objects/SHA256E-s1--0.wav\n", "git-annex pointer", "git annex get"),
     (b"\n<!DOCTYPE html>\n<html><title>Sign in", "web page", "Download"),
     (b"PK\x03\x04" + bytes(60), "ZIP", "Unpack"),
     (b"Selection\tView\tBegin Time (s)\tEnd Time (s)\n", "Raven selection table", "beside the recording"),
     (bytes(1024), "nothing but zeros", "Copy it again"), (b"\xff" * 1024, "of no kind", ""),
     (b"{\"a\": 1}", "JSON", ""),
     ("Zaunkönig".encode() + b"\xc3", "a text", ""),
     (b"\x00\x01\x02\x03" * 9, "of no kind", "")],
)  # fmt: skip
def test_what_is_no_sound_is_named_with_what_to_do(tmp_path: Path, head: bytes, words: str, advice: str) -> None:
    kind = kind_of_bytes(head)
    assert words in kind.words and advice in kind.advice and not kind.is_sound
    (tmp_path / "a.wav").write_bytes(head)
    with pytest.raises(SoundError, match=words) as caught:
        examine(tmp_path / "a.wav")
    assert caught.value.problem == "not-audio" and advice.rstrip(".") in str(caught.value)
    assert not any(advice.startswith("Remove") for advice in recordings.PROBLEMS.values() if "record" in advice)


def test_below_a_folder_every_file_is_taken_or_named(tmp_path: Path) -> None:
    sound = write_sound(tmp_path / "a.wav").read_bytes()
    for name in ("noending", "b.w4v", "c.dat"):
        (tmp_path / name).write_bytes(sound)
    (tmp_path / "d.wac").write_bytes(b"WAC0" + bytes(100))
    (tmp_path / "notes.txt").write_text("windy")
    (tmp_path / ".DS_Store").write_bytes(b"x")
    found = find_sounds([tmp_path])
    assert [path.name for path in found if isinstance(path, Path)] == ["a.wav", "b.w4v", "c.dat", "noending"]
    unused = {Path(item.name).name: item.detail for item in found if isinstance(item, Unused)}
    assert set(unused) == {"d.wac", "notes.txt"}
    assert "Wildlife Acoustics" in unused["d.wac"] and "a text" in unused["notes.txt"]


def test_a_list_of_names_is_read_as_other_programs_write_it() -> None:
    assert read_list(b"\xef\xbb\xbfa b.wav\r\n\r\n  \nc.wav") == [Path("a b.wav"), Path("c.wav")]
    assert read_list(b"odd\nname.wav\0b.wav\0") == [Path("odd\nname.wav"), Path("b.wav")]
    for encoding in ("utf-16-le", "utf-16-be"):
        content = "\ufeffC:\\Möwe 1.wav\r\nψφλ.wav\r\n".encode(encoding)
        assert read_list(content) == [Path("C:\\Möwe 1.wav"), Path("ψφλ.wav")]
    assert read_list(b"abc\0def\0ghi\0") == [Path("abc"), Path("def"), Path("ghi")]
    assert read_list(b"# a.wav\n'b.wav'\n") == [Path("# a.wav"), Path("'b.wav'")]
    assert read_list(b"file:///x/a%20b.wav\nFILE://localhost/%C3%A9.wav") == [Path("/x/a b.wav"), Path("/é.wav")]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a.wav\nb.wav\n".encode("utf-16-le"), "the list is UTF-16 without a mark"),
        ("a.wav\nb.wav\n".encode("utf-16-be"), "the list is UTF-16 without a mark"),
        (b"\xff\xfea\0b", "UTF-16 that breaks off"),
        (b"a.wav\n.\nb.wav\n", r"name 2: '\.' is the working folder itself"),
        (b"./\n", "is the working folder itself"), (b"a\0./.\0", "is the working folder itself"),
        (b"file://server/a.wav", "is no address of a file on this computer"),
        (b"file:///a%00.wav", "is no address of a file on this computer"),
    ],
)  # fmt: skip
def test_a_list_that_cannot_be_meant_is_refused(content: bytes, words: str) -> None:
    with pytest.raises(InputError, match=words):
        read_list(content)


@pytest.mark.parametrize("command", ["predict", "embed"])
def test_an_empty_name_on_the_command_line_is_not_the_working_folder(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, ""]) == 2
    assert "the name of a file is empty" in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("name", "words"),
    [("a.wav", "a WAV file"), ("a.flac", "a FLAC file"), ("a.ogg", "an Ogg file"), ("a.aiff", "an AIFF file")],
)
def test_damaged_first_bytes_are_named(tmp_path: Path, name: str, words: str) -> None:
    path = tmp_path / name
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(RATE_HZ), RATE_HZ)
    assert kind_of(path).words == words
    content = path.read_bytes()
    for first in (bytes(4), bytes([content[0] ^ 0x20]) + content[1:4]):
        path.write_bytes(first + content[4:])
        with pytest.raises(SoundError, match=f"it is {words} whose first four bytes are damaged. Copy it") as caught:
            examine(path)
        assert caught.value.problem == "not-audio"
