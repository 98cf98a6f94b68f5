"""Soundscapes of known content: real calls laid into real and made background at known times and levels.

    recordings of classes, background ─▶ write_soundscapes ─▶ WAV, labels.csv (and Raven tables), Placed

Calls overlap. Those of training, validation and test come from different source recordings (`by_source`), and so do the
backgrounds.
"""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import soundfile

from bench.made_sets import Clip, Wave, behind, loudest, read, rms

RATE_HZ: Final = 48_000
SECONDS: Final = 60.0
# Of each call, drawn: as songs are long.
CALL_S: Final = (1.0, 4.0)
# A call begins and ends within this, so that no click gives it away.
_FADE_S: Final = 0.02
_LEVEL: Final = 0.02  # RMS of the background, of full scale
_HISS: Final = 0.3  # white noise in made backgrounds, beside the rest
# Below this is wind and traffic: no part of a call, nor of its level beside the background's.
_LOWEST_HZ: Final = 1000.0

# Of a recording, begin and end of what surely is of its class.
Stretches = Mapping[Path, Sequence[tuple[float, float]]]


class Placed(NamedTuple):
    """A call in a soundscape."""

    recording: str
    label: str
    start_s: float
    end_s: float
    snr_db: float  # of the call over the background below it, from 1 kHz on
    source: str  # the recording that it was taken from


def by_source(clips: Sequence[Clip], shares: Mapping[str, float], seed: int) -> dict[str, list[Clip]]:
    """Parts of some recordings, each a source of its own: of each class at least one for each part.

    Args:
        shares: part → share of the recordings; the first part gets the rest.
    """
    generator = np.random.default_rng([seed, 10])
    first, *others = shares
    parts: dict[str, list[Clip]] = {part: [] for part in shares}
    for label in sorted({clip.label for clip in clips}):
        drawn = [clips[k] for k in generator.permutation(len(clips)) if clips[k].label == label]
        for part in others:
            n = max(1, round(shares[part] * len(drawn)))
            parts[part] += drawn[:n]
            drawn = drawn[n:]
        parts[first] += drawn
    return parts


def write_soundscapes(
    calls: Sequence[Clip], backgrounds: Sequence[Path], folder: Path, name: str, n: int, seed: int,
    *, snr_db: tuple[float, float] = (0.0, 20.0), per_minute: int = 10, seconds: float = SECONDS,
    stretches: Stretches | None = None, are_calls: bool = False,
) -> list[Placed]:  # fmt: skip
    """Write soundscapes as FOLDER/NAME-001.wav and so on, each with a Raven table beside it.

    Every second one has a real background, repeated to its length, the others noise of a colour of their own.

    Args:
        snr_db: of each call, drawn between these.
        per_minute: calls; as many of each class, as far as they go round.
        stretches: of each recording; None: all of it. Of the one that is drawn, the loudest part is the call.
        are_calls: whether each stretch is a call as it is.
    """
    generator = np.random.default_rng([seed, 11])
    sounds = {clip.path: _stretches(clip.path, stretches) for clip in calls}
    behind_them = [read(path, RATE_HZ) for path in backgrounds]
    labels = sorted({clip.label for clip in calls})
    folder.mkdir(parents=True, exist_ok=True)
    placed: list[Placed] = []
    due: list[str] = []
    for number in range(n):
        recording = f"{name}-{number + 1:03d}.wav"
        sound = _background(behind_them, round(seconds * RATE_HZ), number, generator)
        quiet, own = _without_rumble(sound), []
        for _ in range(round(per_minute * seconds / 60)):
            due = due or [labels[k] for k in generator.permutation(len(labels))]
            label = due.pop()
            choice = [clip for clip in calls if clip.label == label]
            clip = choice[int(generator.integers(len(choice)))]
            parts = sounds[clip.path]
            part = parts[int(generator.integers(len(parts)))]
            call = part if are_calls else loudest(part, round(generator.uniform(*CALL_S) * RATE_HZ))
            own.append(_lay(sound, quiet, clip, call, recording, snr_db, generator))
        sound *= np.float32(min(1.0, 0.99 / max(float(np.abs(sound).max()), 1e-6)))
        soundfile.write(folder / recording, sound, RATE_HZ, subtype="PCM_16")
        placed += sorted(own, key=lambda call: call.start_s)
        _write_raven(folder / f"{name}-{number + 1:03d}.selections.txt", sorted(own, key=lambda call: call.start_s))
    return placed


def calls_sound(path: Path) -> Wave:
    """Of a recording, what calls are taken from. [n] at `RATE_HZ`"""
    return _without_rumble(read(path, RATE_HZ))


def faded(call: Wave) -> Wave:
    """A call that begins and ends softly."""
    fade = np.minimum(1.0, np.arange(1, len(call) + 1) / (_FADE_S * RATE_HZ)).astype(np.float32)
    return np.asarray(call * fade * fade[::-1], np.float32)


def _stretches(path: Path, stretches: Stretches | None) -> list[Wave]:
    whole = calls_sound(path)
    if stretches is None:
        return [whole]
    return [whole[round(begin_s * RATE_HZ) : round(end_s * RATE_HZ)] for begin_s, end_s in stretches[path]]


def _background(real: Sequence[Wave], n_samples: int, number: int, generator: np.random.Generator) -> Wave:
    if number % 2 and real:
        one = real[int(generator.integers(len(real)))]
        sound = np.resize(np.concatenate([one, one[::-1]]), n_samples)  # there and back: without a step between
    else:
        # Of a steep spectrum nothing would be left where calls are but what 16 bits round off.
        sound = behind(n_samples, (), generator) + _HISS * generator.normal(size=n_samples).astype(np.float32)
    return np.asarray(sound * np.float32(_LEVEL / max(rms(sound), 1e-9)), np.float32)


def _without_rumble(sound: Wave) -> Wave:
    spectrum = np.fft.rfft(sound)
    spectrum[np.fft.rfftfreq(len(sound), 1 / RATE_HZ) < _LOWEST_HZ] = 0
    return np.fft.irfft(spectrum, len(sound)).astype(np.float32)


def _lay(
    sound: Wave, quiet: Wave, clip: Clip, call: Wave, recording: str, snr_db: tuple[float, float],
    generator: np.random.Generator,
) -> Placed:  # fmt: skip
    """Add a call somewhere."""
    call = faded(call)
    begin = int(generator.integers(len(sound) - len(call) + 1))
    gain_db = float(generator.uniform(*snr_db))
    below = max(rms(quiet[begin : begin + len(call)]), 1e-4)
    sound[begin : begin + len(call)] += call * np.float32(below / max(rms(call), 1e-6) * 10 ** (gain_db / 20))
    start_s, end_s = begin / RATE_HZ, (begin + len(call)) / RATE_HZ
    return Placed(recording, clip.label, round(start_s, 3), round(end_s, 3), round(gain_db, 2), clip.path.name)


def _write_raven(path: Path, placed: Sequence[Placed]) -> None:
    rows = ["Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\tHigh Freq (Hz)\tSpecies"]
    for number, call in enumerate(placed, start=1):
        rows.append(f"{number}\tSpectrogram 1\t1\t{call.start_s}\t{call.end_s}\t0\t{RATE_HZ // 2}\t{call.label}")
    path.write_text("\n".join(rows) + "\n", "utf-8")


def write_labels(path: Path, placed: Sequence[Placed]) -> None:
    """A table `recording,start_s,end_s,label` of some calls, as birdtune reads it."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("recording", "start_s", "end_s", "label"))
        writer.writerows((call.recording, call.start_s, call.end_s, call.label) for call in placed)
