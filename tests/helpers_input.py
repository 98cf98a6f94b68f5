"""Input folders for tests: made sounds, and every way in which a file can be bad."""

import csv
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

RATE_HZ = 16_000
CLASSES = ("Apus_apus", "Bubo_bubo", "Corvus_corax")


# Of the bad files, those that are used all the same.
USED = frozenset(
    f"{CLASSES[0]}/{name}" for name in ("broken-off.wav", "unfinished.wav", "flipped.flac", "flac-inside.wav")
)


def tone(number: int, seconds: float = 1.5) -> npt.NDArray[np.float64]:
    """A tone in noise, unlike that of any other number; loud in a band of its own for each hundred. [samples]"""
    time_s = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    noise = np.random.default_rng(number).standard_normal(time_s.size)
    sound: npt.NDArray[np.float64] = 0.3 * np.sin(2 * np.pi * (600 + 9 * number) * time_s) + 0.01 * noise
    return sound


def write_tone(path: Path, number: int, seconds: float = 1.5, *, kind: str | None = None) -> Path:
    """A sound file; `kind` is soundfile's format if the name's ending does not say it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, tone(number, seconds), RATE_HZ, format=kind)
    return path


def write_good(data: Path, classes: tuple[str, ...] = CLASSES, recordings: int = 6) -> None:
    """Class folders with recordings that are fine."""
    for column, name in enumerate(classes):
        for number in range(recordings):
            write_tone(data / name / f"rec{number}.wav", 100 * column + number)


def write_bad(data: Path) -> dict[str, str]:
    """One bad file of each kind beside good ones; returns recording → problem code, as it must be found.

    Needs --audio.max-hours 0.001 (3.6 s) for the one that is too long.
    """
    apus, bubo = data / CLASSES[0], data / CLASSES[1]
    whole = write_tone(apus / "whole.wav", 900, 3.0).read_bytes()
    (apus / "truncated.wav").write_bytes(whole[: len(whole) // 10])
    (apus / "broken-off.wav").write_bytes(write_tone(apus / "whole.wav", 909, 3.0).read_bytes()[: len(whole) // 2])
    unfinished = write_tone(apus / "whole.wav", 910, 3.0).read_bytes()
    (apus / "unfinished.wav").write_bytes(unfinished[:40] + bytes(4) + unfinished[44:])
    (apus / "whole.wav").unlink()
    (apus / "noise.wav").write_bytes(b"this is a letter, not a song\n" * 40)
    (apus / "letter.txt").write_text("not a sound")
    (apus / "phone.m4a").write_bytes(b"\0" * 100)
    (apus / "nothing.wav").touch()
    flac = bytearray(write_tone(apus / "flipped.flac", 901, 3.0).read_bytes())
    flac[len(flac) // 2 : len(flac) // 2 + 2000] = os.urandom(2000)
    (apus / "flipped.flac").write_bytes(flac)
    soundfile.write(apus / "headonly.wav", np.zeros(0), RATE_HZ)
    soundfile.write(apus / "silence.wav", np.zeros(2 * RATE_HZ), RATE_HZ)
    infinite = tone(902)
    infinite[100:] = np.inf
    soundfile.write(apus / "infinite.wav", infinite, RATE_HZ, subtype="FLOAT")
    write_tone(apus / "long.wav", 903, 4.0)
    write_tone(apus / "flac-inside.wav", 904, kind="FLAC")
    write_tone(apus / ".trash.wav", 905)
    write_tone(data / "stray.wav", 906)
    (apus / "again.wav").write_bytes((apus / "rec0.wav").read_bytes())
    write_tone(apus / "both-a.wav", 907)
    (bubo / "both-b.wav").write_bytes((apus / "both-a.wav").read_bytes())
    (bubo / "gone.wav").symlink_to("nowhere.wav")
    (bubo / "round").symlink_to("..")
    os.mkfifo(bubo / "pipe.wav")
    outside = write_tone(data.parent / "outside.wav", 908)
    (bubo / "out.wav").symlink_to(outside)
    (data / "Empty_class").mkdir()
    return {
        f"{CLASSES[0]}/truncated.wav": "truncated",
        f"{CLASSES[0]}/broken-off.wav": "truncated",
        f"{CLASSES[0]}/unfinished.wav": "repaired",
        f"{CLASSES[0]}/noise.wav": "not-audio",
        f"{CLASSES[0]}/letter.txt": "metadata",
        f"{CLASSES[0]}/phone.m4a": "not-audio",
        f"{CLASSES[0]}/nothing.wav": "empty",
        f"{CLASSES[0]}/flipped.flac": "corrupt",
        f"{CLASSES[0]}/headonly.wav": "empty",
        f"{CLASSES[0]}/silence.wav": "silent",
        f"{CLASSES[0]}/infinite.wav": "not-finite",
        f"{CLASSES[0]}/long.wav": "too-long",
        f"{CLASSES[0]}/flac-inside.wav": "misnamed",
        f"{CLASSES[0]}/.trash.wav": "hidden",
        "stray.wav": "outside-class",
        # The first of two copies by name is the one that is used.
        f"{CLASSES[0]}/rec0.wav": "duplicate-in-class",
        f"{CLASSES[0]}/both-a.wav": "duplicate-across-classes",
        f"{CLASSES[1]}/both-b.wav": "duplicate-across-classes",
        f"{CLASSES[1]}/gone.wav": "link-broken",
        f"{CLASSES[1]}/round": "link-loop",
        f"{CLASSES[1]}/pipe.wav": "not-a-file",
        f"{CLASSES[1]}/out.wav": "link-outside",
    }


def problems(folder: Path) -> dict[str, dict[str, str]]:
    """problems.csv by recording."""
    with (folder / "problems.csv").open(encoding="utf-8", newline="") as file:
        return {row["recording"]: row for row in csv.DictReader(file)}
