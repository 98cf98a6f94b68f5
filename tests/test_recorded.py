"""birdtune.audio.origin and dataset.recorded: clips are known by what recorders write into files."""

import struct
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from makers import recording, tone, write_sound

from birdtune.audio import decode
from birdtune.audio.origin import Origin
from birdtune.data.recorded import recorded_links
from birdtune.data.scan import Recording
from birdtune.data.sources import find_sources

AUDIOMOTH = (
    "Recorded at 19:17:30 22/03/2018 (UTC) by AudioMoth 24F319055FDF2902 at gain setting 2 while battery state was 4.5V"
)
AT_19_17_30 = 1521746250.0


def chunk(name: bytes, body: bytes) -> bytes:
    return name + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)


def bext(originator: str, date: str, clock: str, samples: int = 0) -> bytes:
    text = b"a session".ljust(256, b"\0") + originator.encode().ljust(32, b"\0") + bytes(32)
    return chunk(b"bext", text + date.encode() + clock.encode() + struct.pack("<QH", samples, 1) + bytes(254))


def guan(**fields: str) -> bytes:
    lines = "\n".join(f"{key.replace('_', ' ')}: {value}" for key, value in fields.items())
    return chunk(b"guan", f"GUANO|Version: 1.0\n{lines}\n".encode())


def wamd(*parts: tuple[int, str]) -> bytes:
    inside = b"".join(struct.pack("<HI", key, len(text)) + text.encode() for key, text in parts)
    return chunk(b"wamd", struct.pack("<HIH", 0, 2, 1) + inside)


def info(comment: str) -> bytes:
    return chunk(b"LIST", b"INFO" + chunk(b"ICMT", comment.encode() + b"\0"))


def wav(path: Path, *more: bytes, before: Sequence[bytes] = (), rate_hz: int = 16_000) -> Path:
    """A WAV with chunks behind the sound, and before its format."""
    write_sound(path, tone(1.0, rate_hz), rate_hz)
    content = path.read_bytes()
    body = content[8:12] + b"".join(before) + content[12:] + b"".join(more)
    path.write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    return path


def origin(path: Path) -> Origin | None:
    return decode.examine(path).origin


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (info(AUDIOMOTH), Origin("AudioMoth 24F319055FDF2902", AT_19_17_30)),
        (info(AUDIOMOTH.replace("UTC", "UTC+2")), Origin("AudioMoth 24F319055FDF2902", AT_19_17_30 - 7200)),
        (info(AUDIOMOTH.replace("UTC", "UTC-3:30")), Origin("AudioMoth 24F319055FDF2902", AT_19_17_30 + 12600)),
        (info("Recorded at 99:99:99 22/03/2018 (UTC) by AudioMoth 24F319055FDF2902"), None),
        (info("recorded by me, https://xeno-canto.org/123456"), Origin(original="XC123456")),
        (info("XC123456 - Common Blackbird - Turdus merula"), Origin(original="XC123456")),
        (info("compare with XC123456"), None),
        (info("XC123456 is more like it"), None),
        (info(AUDIOMOTH.replace("19:17:30 22/03/2018", "00:00:00 01/01/1970")), None),
        (info("a nice day"), None),
        (bext("ZOOM F3", "2018-03-22", "19:17:30"), Origin("ZOOM F3", AT_19_17_30)),
        (bext("ZOOM F3", "2018:03:22", "19-17-30"), Origin("ZOOM F3", AT_19_17_30)),
        # A clip carries the time of its recording, and its own place in that day.
        (bext("ZOOM F3", "2018-03-22", "19:00:00", 16_000 * 69_450), Origin("ZOOM F3", AT_19_17_30)),
        (bext("ZOOM F3", "2018-03-22", "23:59:59", 16_000 * 69_450), Origin("ZOOM F3")),
        (bext("ZOOM F3", "2018-03-22", "05:00:00", 16_000 * 3), Origin("ZOOM F3")),
        (bext("H5", "2000-01-01", "00:00:00"), None),
        (bext("H5", "2000-01-01", "00:07:12"), None),
        (bext("H5", "1980-01-01", "00:00:00"), None),
        (bext("H5", "2015-01-01", "00:00:00"), None),
        (guan(Timestamp="2000-01-01 00:00:00", Serial="7"), None),
        (bext("Lavf58.29.100", "2018-03-22", "19:17:30"), None),
        (bext("", "2018-03-22", "19:17:30"), None),
        (bext("ZOOM F3", "0000-00-00", "00:00:00"), None),
        (bext("ZOOM F3", "1970-01-01", "00:00:00"), None),
        (
            guan(Timestamp="2018-03-22T19:17:30Z", Make="Titley", Model="Chorus", Serial="7",
                 Original_Filename="a.wav"),
            Origin("Titley Chorus 7", AT_19_17_30, "a.wav"),
        ),
        (guan(Timestamp="2018-03-22 20:17:30+01:00"), Origin("", AT_19_17_30)),
        (guan(Timestamp="yesterday"), None),
        (wamd((1, "SM4"), (2, "S4A03895"), (5, "2018-03-22 19:17:30.000+00:00")), Origin("SM4 S4A03895", AT_19_17_30)),
        (chunk(b"wamd", b"\x01\x00\xff\xff\xff\xff"), None),
        (chunk(b"bext", b"short"), None),
        (chunk(b"guan", b"\xff\xfe\x00"), None),
    ],
)
@pytest.mark.parametrize("place", ["behind", "before"])
def test_what_recorders_write_is_read(tmp_path: Path, more: bytes, expected: Origin | None, place: str) -> None:
    path = tmp_path / "x.wav"
    wav(path, more) if place == "behind" else wav(path, before=[more])
    assert origin(path) == expected


def test_a_comment_is_read_from_flac_too(tmp_path: Path) -> None:
    import soundfile

    with soundfile.SoundFile(tmp_path / "x.flac", "w", 16_000, 1) as file:
        file.comment = AUDIOMOTH
        file.write(tone())
    assert origin(tmp_path / "x.flac") == Origin("AudioMoth 24F319055FDF2902", AT_19_17_30)


def test_files_without_metadata_say_nothing(tmp_path: Path) -> None:
    for ending in ("wav", "flac", "ogg", "mp3"):
        assert origin(write_sound(tmp_path / f"x.{ending}")) is None


# ---- which recordings that links ----------------------------------------------------------------


def made(name: str, origin: Origin | None, duration_s: float = 3.0) -> Recording:
    plain = recording(name, duration_s=duration_s)
    return replace(plain, facts=replace(plain.facts, origin=origin))


def n_sources(*recordings: Recording) -> int:
    return len(set(find_sources(recordings, links=recorded_links(recordings)).keys.values()))


def test_clips_that_follow_on_one_another_are_of_one_recording() -> None:
    clips = [made(f"A/{name}.wav", Origin("SM4 1", 100.0 + 3 * k)) for k, name in enumerate("bdac")]
    assert n_sources(*clips) == 1
    assert n_sources(*clips[::2]) == 2, "three seconds are missing between them"
    assert n_sources(*clips[:2], made("B/x.wav", Origin("SM4 2", 103.0))) == 2, "another recorder"
    assert n_sources(*(made(f"A/{k}.wav", Origin("", 3.0 * k)) for k in range(3))) == 3, "no recorder is known"


def test_files_that_a_recorder_writes_all_day_are_not_of_one_recording() -> None:
    assert n_sources(*(made(f"A/{name}.wav", Origin("SM4 1", 3600.0 * k), 3600.0) for k, name in enumerate("abc"))) == 3


def test_clips_that_overlap_or_carry_the_time_of_the_whole_are_of_one_recording() -> None:
    assert n_sources(*(made(f"A/{name}.wav", Origin("SM4 1", 100.0 + k), 3.0) for k, name in enumerate("abc"))) == 1
    assert n_sources(*(made(f"{name}/x.wav", Origin("AudioMoth 24F3", 100.0), 90.0) for name in "ABC")) == 1
    # A long one, a clip of its beginning and one of its end.
    long = made("A/long.wav", Origin("SM4 1", 0.0), 300.0)
    assert n_sources(long, made("A/b.wav", Origin("SM4 1", 9.0)), made("A/e.wav", Origin("SM4 1", 290.0))) == 1


def test_the_same_original_is_one_recording() -> None:
    assert n_sources(*(made(f"A/{name}.wav", Origin("", None, "REC_dawn.wav")) for name in "abc")) == 1
    assert n_sources(*(made(f"A/{name}.wav", Origin("SM4 1", None, "REC7.wav")) for name in "abc")) == 1
    assert n_sources(*(made(f"A/{k}.wav", Origin(f"SM4 {k}", None, "REC7.wav")) for k in range(3))) == 3


def test_a_counter_of_an_unknown_recorder_proves_nothing() -> None:
    for original in ("ZOOM0001.WAV", "REC7.wav", "DR0000_0001.wav", "0001.wav", "STE-003"):
        links = list(recorded_links([made(f"{label}/x.wav", Origin("", None, original)) for label in "ABC"]))
        assert len(links) == 2 and not any(link.joins for link in links), original
    stamped = "20230501_050000.WAV"
    assert n_sources(*(made(f"{label}/x.wav", Origin("", None, stamped)) for label in "ABC")) == 1


def test_times_that_contradict_go_before_the_same_original() -> None:
    days = [made(f"A/{day}.wav", Origin("SM4 1", 86_400.0 * 3 * day, "dawn.wav")) for day in range(12)]
    assert n_sources(*days) == 12
    assert n_sources(*days, made("B/x.wav", Origin("SM4 1", None, "dawn.wav"))) == 13
    assert n_sources(*(made(f"A/{k}.wav", Origin("SM4 1", 600.0 * k, "dawn.wav")) for k in range(12))) == 1
    assert n_sources(*(made(f"A/{k}.wav", Origin("", 864_000.0 * k, "XC1234")) for k in range(3))) == 1


def test_clips_named_by_the_second_follow_on_one_another() -> None:
    def named(form: str, step_s: int, duration_s: float, label: str = "A") -> list[Recording]:
        return [recording(f"{label}/{form.format(f'20230501_0500{step_s * k:02}')}.wav", duration_s=duration_s)
                for k in range(4)]

    assert n_sources(*named("SITE1_{}", 3, 3.0)) == 1
    assert n_sources(*named("{}", 3, 3.0)) == 1
    assert n_sources(*named("{}", 10, 3.0)) == 4
    assert n_sources(*named("SITE1_{}", 3, 3.0), *named("SITE2_{}", 3, 3.0)) == 2
    assert n_sources(*named("{}", 3, 3.0), *named("{}", 3, 3.0, "B")) == 2
    long = [recording(f"A/20230501_05{10 * k:02}00.wav", duration_s=600.0) for k in range(3)]
    assert n_sources(*long) == 3


def test_how_they_were_found_is_reported() -> None:
    clips = [made(f"A/{name}.wav", Origin("SM4 1", 3.0 * k)) for k, name in enumerate("abc")]
    (found,) = find_sources(clips, links=recorded_links(clips)).by_rule
    assert (found.rule, found.recordings, found.sources) == ("recorder and time in the files", 3, 1)
    assert found.detail == "SM4 1, 1970-01-01 00:00:00 UTC"
