"""birdtune.audio.recorded_at: when a recording began."""

import struct
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import soundfile

from birdtune.audio.recorded_at import of_name, recorded_at

DAWN = datetime(2024, 5, 17, 4, 30)


@pytest.mark.parametrize(
    "name",
    [
        "20240517_043000.WAV", "20240517_043000T.WAV", "SITE-7_20240517_043000.wav", "SMM01234_20240517_043000.wav",
        "2024-05-17T04:30:00.flac", "2024-05-17T04-30-00Z.wav", "2024-05-17 04.30.00.wav", "20240517T0430.mp3",
        "20240517043000.wav", "2024-05-17_04h30m00.wav", "plot 3 2024.05.17 at 04.30.ogg", "20240517_043000",
        "MSD-20240517_043000.wav", "20240517_043000+0200_0000.wav", "20230101_000000_to_20240517_043000.wav",
    ],
)  # fmt: skip
def test_the_time_is_read_from_names_as_recorders_give_them(name: str) -> None:
    assert of_name(name) == DAWN


def test_a_name_in_hexadecimal_counts_seconds_since_1970() -> None:
    assert of_name("5CDE4A28.WAV") == datetime(2019, 5, 17, 5, 44, 8)
    assert of_name("20240517.WAV") is None  # a date, which as a number would be of 1987
    assert of_name("FFFFFFFF.WAV") is None


@pytest.mark.parametrize(
    "name", ["XC123456.mp3", "20240517.wav", "20240631_043000.wav", "20240517_253000.wav", "take 12345678901234.wav",
             "a.wav", ".wav", ""],
)  # fmt: skip
def test_what_is_no_date_with_a_time_is_none(name: str) -> None:
    assert of_name(name) is None


def with_guano(path: Path, text: str) -> Path:
    soundfile.write(path, np.zeros(100), 16_000)
    content, body = path.read_bytes(), text.encode()
    body += b"\0" * (len(body) % 2)
    content += b"guan" + struct.pack("<I", len(body)) + body
    path.write_bytes(content[:4] + struct.pack("<I", len(content) - 8) + content[8:])
    return path


def test_what_the_file_says_counts_before_its_name_and_is_not_converted(tmp_path: Path) -> None:
    path = with_guano(tmp_path / "20200101_000000.wav", "GUANO|Version:1.0\nTimestamp: 2024-05-17T04:30:00+02:00\n")
    assert recorded_at(path) == DAWN
    damaged = with_guano(tmp_path / "20240517_043000.wav", "GUANO|Version:1.0\nTimestamp: yesterday\n")
    assert recorded_at(damaged) == DAWN


def test_a_file_that_cannot_be_read_or_says_nothing_has_the_time_of_its_name_or_none(tmp_path: Path) -> None:
    assert recorded_at(tmp_path / "20240517_043000.wav") == DAWN
    (tmp_path / "a.wav").write_bytes(b"RIFF\xff\xff\xff\xffWAVEguan\xff\xff")
    assert recorded_at(tmp_path / "a.wav") is None
