"""Sets with a known flaw, made out of a good one: unbalanced, with wrong labels, or labelled weakly.

    folder of class folders ─▶ Clip (path, class) ─▶ unbalanced, noisy ─▶ the same, chosen or relabelled
                                                  ─▶ write_changed ─▶ the same, as they sound elsewhere
                                                  ─▶ write_stretches ─▶ pieces of them, of which there are more
                                                  ─▶ write_weak ─▶ sounds of which a fifth has the class in it

All are functions of the clips and a seed. `lay_out` makes a folder of some clips, which birdtune can be pointed at.
"""


import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

RATE_HZ = 16_000
EVENT_S = 2.0
SHARE = 0.2  # of each weakly labelled sound, what its label is true of
HEARD = 1e-3  # the least peak of a stretch that holds sound: -60 dB
SOUNDS = (".ogg", ".wav", ".flac", ".mp3")

Wave = npt.NDArray[np.float32]


class Clip(NamedTuple):
    """A sound file, and the class it is given."""

    path: Path
    label: str


@dataclass(frozen=True)
class Weak:
    """A weakly labelled sound, and the stretch of it that its label is true of."""

    path: Path
    label: str
    begin_s: float
    end_s: float


def clips_of(folder: Path) -> list[Clip]:
    """The sounds of a folder of class folders, by class and name.

    Raises:
        FileNotFoundError: there is none.
    """
    found = [
        Clip(path, path.parent.name) for path in sorted(folder.glob("*/*")) if path.suffix.lower() in SOUNDS
    ]
    if not found:
        raise FileNotFoundError(
            f"{folder}: no sounds in class folders; expected Class/sound with {', '.join(SOUNDS)}"
        )
    return found


def unbalanced(clips: Sequence[Clip], seed: int, *, ratio: float = 100.0) -> list[Clip]:
    """Fewer clips of most classes: numbers fall from class to class by one factor, `ratio` : 1 from first to last.

    Which class is which in that order, and which clips stay, is drawn; of no class nothing is left.
    """
    generator = np.random.default_rng([seed, 1])
    labels = sorted({clip.label for clip in clips})
    most = max(sum(clip.label == label for clip in clips) for label in labels)
    kept: list[Clip] = []
    for place, number in enumerate(generator.permutation(len(labels))):
        inside = [clip for clip in clips if clip.label == labels[number]]
        wanted = max(1, round(most * ratio ** (-place / max(len(labels) - 1, 1))))
        kept += [inside[k] for k in sorted(generator.permutation(len(inside))[:wanted])]
    return sorted(kept)


def write_stretches(clips: Sequence[Clip], folder: Path, seconds: float) -> None:
    """Write clips in pieces, as FOLDER/Class/name-1.wav and so on; those that hold no sound are left out."""
    length = round(seconds * RATE_HZ)
    for clip in clips:
        sound = read(clip.path)
        (folder / clip.label).mkdir(parents=True, exist_ok=True)
        for number in range(len(sound) // length):
            piece = sound[number * length : (number + 1) * length]
            if np.abs(piece).max() > HEARD:
                path = folder / clip.label / f"{clip.path.stem}-{number + 1}.wav"
                soundfile.write(path, piece, RATE_HZ, subtype="PCM_16")


def write_changed(
    clips: Sequence[Clip], folder: Path, change: Callable[[Wave, np.random.Generator], Wave], rate_hz: int = RATE_HZ
) -> None:
    """Write clips as FOLDER/Class/name.wav, each changed; what is drawn for each depends on its place in the row."""
    for number, clip in enumerate(clips):
        sound = change(read(clip.path, rate_hz), np.random.default_rng([4, number]))
        sound *= np.float32(min(1.0, 0.99 / max(float(np.abs(sound).max()), 1e-6)))
        path = folder / clip.label / f"{clip.path.stem}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, sound, rate_hz, subtype="PCM_16")


def in_noise(sound: Wave, generator: np.random.Generator, snr_db: float) -> Wave:
    """A sound in pink noise, which is so much fainter than the sound is on average where it can be heard."""
    spectrum = np.fft.rfft(generator.normal(size=len(sound)))
    spectrum[1:] *= np.arange(1, len(spectrum)) ** -0.5
    noise = np.fft.irfft(spectrum, len(sound)).astype(np.float32)
    level = rms(sound[np.abs(sound) > HEARD]) * 10 ** (-snr_db / 20)
    return np.asarray(sound + noise * np.float32(level / max(rms(noise), 1e-6)), np.float32)


def dulled(sound: Wave, generator: np.random.Generator, above_hz: float, rate_hz: int = RATE_HZ) -> Wave:
    """A sound without what is higher than so many Hz, as poor microphones have it."""
    spectrum = np.fft.rfft(sound)
    spectrum[np.fft.rfftfreq(len(sound), 1 / rate_hz) > above_hz] = 0
    return np.fft.irfft(spectrum, len(sound)).astype(np.float32)


def noisy(clips: Sequence[Clip], seed: int, *, share: float = 0.05) -> tuple[list[Clip], list[int]]:
    """Some clips with the label of another class, drawn.

    Args:
        share: of the clips, that are given a wrong one.

    Returns:
        the clips in their order, and which of them are wrong.
    """
    generator = np.random.default_rng([seed, 2])
    labels = sorted({clip.label for clip in clips})
    wrong = sorted(generator.permutation(len(clips))[: round(share * len(clips))].tolist())
    made = list(clips)
    for number in wrong:
        others = [label for label in labels if label != clips[number].label]
        made[number] = Clip(clips[number].path, others[int(generator.integers(len(others)))])
    return made, wrong


def lay_out(clips: Sequence[Clip], folder: Path) -> None:
    """Lay clips out as class folders, for `--data`; copies, as links that lead out of it would not be followed."""
    for clip in clips:
        place = folder / clip.label / clip.path.name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(clip.path, place)


# ---- weak labels --------------------------------------------------------------------------------


def write_weak(
    clips: Sequence[Clip],
    folder: Path,
    seed: int,
    *,
    background: Sequence[Path] = (),
    snr_db: tuple[float, float] = (0.0, 12.0),
) -> list[Weak]:
    """Write for each clip a sound of ten seconds, of which two are the clip's loudest, and all is background.

    Background is noise of a colour of its own in each sound and, now and then, a piece of another sound.

    Args:
        background: sounds of none of the classes.
        snr_db: of the two seconds over the background, drawn between these.

    Returns:
        in the order of the clips, what was written as FOLDER/Class/name.wav.
    """
    others = [read(path) for path in background]
    made = []
    for number, clip in enumerate(clips):
        generator = np.random.default_rng([seed, 3, number])
        event = loudest(read(clip.path), round(EVENT_S * RATE_HZ))
        sound = behind(round(EVENT_S / SHARE * RATE_HZ), others, generator)
        begin = int(generator.integers(len(sound) - len(event) + 1))
        gain_db = generator.uniform(*snr_db)
        place = sound[begin : begin + len(event)]
        place += event * np.float32(rms(place) / max(rms(event), 1e-6) * 10 ** (gain_db / 20))
        sound *= np.float32(0.5 / max(float(np.abs(sound).max()), 1e-6))
        path = folder / clip.label / f"{clip.path.stem}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, sound, RATE_HZ, subtype="PCM_16")
        made.append(Weak(path, clip.label, begin / RATE_HZ, (begin + len(event)) / RATE_HZ))
    return made


def behind(n_samples: int, others: Sequence[Wave], generator: np.random.Generator) -> Wave:
    """Background: noise whose spectrum falls by 0 to 9 dB an octave and that swells; up to four pieces of others."""
    spectrum = np.fft.rfft(generator.normal(size=n_samples))
    spectrum[1:] *= np.arange(1, len(spectrum)) ** -generator.uniform(0.0, 1.5)
    sound = np.fft.irfft(spectrum, n_samples).astype(np.float32)
    swell = np.interp(
        np.arange(n_samples), np.linspace(0, n_samples, 12), generator.uniform(-6.0, 6.0, 12)
    )  # dB
    sound *= (10 ** (swell / 20) / max(rms(sound), 1e-6)).astype(np.float32)
    for _ in range(int(generator.integers(0, 5)) if others else 0):
        other = others[int(generator.integers(len(others)))][:n_samples]
        begin = int(generator.integers(n_samples - len(other) + 1))
        gain_db = generator.uniform(-6.0, 6.0)
        sound[begin : begin + len(other)] += other * np.float32(10 ** (gain_db / 20) / max(rms(other), 1e-6))
    return sound


def read(path: Path, to_hz: int = RATE_HZ) -> Wave:
    """A sound, mono at a rate."""
    sound, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
    return np.asarray(soxr.resample(sound.mean(axis=1), rate_hz, to_hz), np.float32)


def loudest(sound: Wave, n_samples: int) -> Wave:
    """The stretch of a sound with the most energy; a shorter sound as it is."""
    begin = loudest_from(sound, n_samples)
    return sound[begin : begin + n_samples]


def loudest_from(sound: Wave, n_samples: int) -> int:
    """Where `loudest` begins."""
    if len(sound) <= n_samples:
        return 0
    energy = np.concatenate([[0.0], np.cumsum(sound.astype(np.float64) ** 2)])
    return int(np.argmax(energy[n_samples:] - energy[:-n_samples]))


def rms(sound: Wave) -> float:
    """Root mean square; 0 of nothing."""
    return float(np.sqrt(np.mean(sound.astype(np.float64) ** 2))) if len(sound) else 0.0
