"""Numbers → the sounds of the demonstration: invented birds, weather, machines, rooms, distances.

    Song (a species' table row) + a source's own voice and place + a seed ─▶ waveform [samples] float32

Nothing here imitates a real species. A species is a row of numbers; an individual draws its own
pitch, tempo and timbre from the row's ranges, and every call of it varies again. Several species share
their band and differ only in time (rising and falling, high-low and low-high, slow and fast), so that a
mean spectrum does not separate them and a network that takes time into account does.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.fft
import scipy.signal

Sound = npt.NDArray[np.float64]

NOISE_CLASS = "Noise_noise"
# Above this share of the rate nothing is synthesised: a recorder's own low-pass begins about here.
_HIGHEST_SHARE_OF_RATE = 0.46


@dataclass(frozen=True)
class Song:
    """How a species sings. Pairs are the ranges that individuals and phrases draw from."""

    species: str
    pitch_hz: tuple[float, float]  # where a note starts, by individual
    note_s: tuple[float, float]
    gap_s: tuple[float, float]  # between the notes of a phrase
    notes: tuple[int, int]  # in a phrase
    pause_s: tuple[float, float]  # between phrases
    glide: float = 1.0  # pitch at a note's end / at its start
    steps: tuple[float, ...] = (1.0,)  # pitch of successive notes, as ratios, repeated
    harmonics: tuple[float, ...] = (1.0, 0.12)  # amplitudes of f, 2f, ...
    warble_hz: float = 0.0  # vibrato: how often ...
    warble: float = 0.0  # ... and how far, as a share of the pitch
    buzz_hz: float = 0.0  # beats of the amplitude
    breath: float = 0.0  # share of the note that is noise around the pitch
    scatter: float = 0.02  # spread of pitch from note to note, as a share
    hurry: float = 1.0  # last gap / first gap of a phrase
    sinking: float = 1.0  # last pitch / first pitch of a phrase


SONGS = (
    Song("Fictavis_sibilans", (2500, 3300), (0.34, 0.50), (0.12, 0.24), (2, 5), (0.25, 0.45)),
    Song("Fictavis_cadens", (3300, 4500), (0.26, 0.38), (0.10, 0.20), (2, 5), (0.25, 0.45), glide=0.60),
    Song("Fictavis_surgens", (2000, 2700), (0.26, 0.38), (0.10, 0.20), (2, 5), (0.25, 0.45), glide=1.65),
    Song("Imaginatrix_crepitans", (3300, 4500), (0.030, 0.040), (0.022, 0.034), (14, 26), (0.15, 0.32),
         glide=0.75),
    Song("Imaginatrix_lenta", (2500, 3400), (0.050, 0.070), (0.11, 0.16), (5, 10), (0.25, 0.40), glide=0.75),
    Song("Pseudornis_bina", (2900, 3800), (0.14, 0.20), (0.02, 0.05), (2, 2), (0.26, 0.42),
         steps=(1.0, 0.74)),
    Song("Pseudornis_inversa", (3200, 4200), (0.14, 0.20), (0.02, 0.05), (2, 2), (0.26, 0.42),
         steps=(0.74, 1.0)),
    Song("Nullopica_harmonica", (620, 950), (0.20, 0.34), (0.10, 0.20), (2, 5), (0.22, 0.40), glide=0.84,
         harmonics=(0.5, 0.9, 1.0, 0.8, 0.7, 0.5, 0.3), breath=0.15),
    Song("Nullopica_stridens", (3000, 4200), (0.36, 0.55), (0.12, 0.22), (1, 3), (0.25, 0.40),
         buzz_hz=30.0, breath=0.45),
    Song("Somniavis_garrula", (2300, 3300), (0.035, 0.070), (0.020, 0.110), (5, 12), (0.15, 0.35),
         breath=0.75, scatter=0.22),
    Song("Somniavis_undans", (2600, 3500), (0.70, 1.10), (0.10, 0.20), (1, 2), (0.20, 0.35),
         warble_hz=8.0, warble=0.20),
    Song("Somniavis_festinans", (2900, 3800), (0.060, 0.080), (0.17, 0.21), (9, 12), (0.20, 0.35),
         glide=1.40, hurry=0.12, sinking=0.80),
)  # fmt: skip

SCENES = ("wind", "rain", "hum", "insects", "traffic")


@dataclass(frozen=True)
class Voice:
    """What stays the same in one source recording: the individual, the place and the day."""

    pitch: float  # position in the species' range, 0 to 1
    tempo: float  # times faster than the species' middle
    tilt: float  # harmonics fall by this factor more (below 1) or less (above 1)
    warmth: float  # exponent of the background's spectrum: amplitude ~ f^-warmth
    scenes: tuple[str, str]  # what else sounds: mainly, and faintly
    snr_db: float  # song against background while the bird sings
    low_pass_hz: float  # distance takes the treble
    echo_s: float  # time in which the place's echo falls by 60 dB
    echo: float  # its level beside the direct sound
    level: float  # peak of the recording, full scale 1


def draw_voice(rng: np.random.Generator, scene: int) -> Voice:
    """One individual at one place. `scene` counts sources, so that all kinds of noise occur equally often."""
    second = (scene + int(rng.integers(1, len(SCENES)))) % len(SCENES)
    return Voice(
        pitch=float(rng.uniform()),
        tempo=float(rng.uniform(0.88, 1.14)),
        tilt=float(rng.uniform(0.7, 1.3)),
        warmth=float(rng.uniform(0.1, 1.0)),
        scenes=(SCENES[scene % len(SCENES)], SCENES[second]),
        snr_db=float(rng.uniform(8.0, 22.0)),
        low_pass_hz=float(rng.uniform(5_000.0, 12_000.0)),
        echo_s=float(rng.uniform(0.15, 0.5)),
        echo=float(rng.uniform(0.02, 0.30)),
        level=float(rng.uniform(0.2, 0.8)),
    )


def record(song: Song | None, voice: Voice, seconds: float, rate_hz: int, rng: np.random.Generator) -> Sound:
    """A clip of one source, as recorded; no song gives a clip of `Noise_noise`.

    Returns:
        [samples] at `rate_hz`, peak `voice.level` give or take 1 dB.
    """
    samples = round(seconds * rate_hz)
    background = _background(voice, samples, rate_hz, rng)
    if song is None:
        main, faint = (_scene(kind, samples, rate_hz, rng) for kind in voice.scenes)
        sound = main + 0.25 * faint + 0.15 * background
    else:
        sung = _at_a_distance(sing(song, voice, samples, rate_hz, rng), voice, rate_hz, rng)
        snr_db = voice.snr_db + rng.uniform(-2.0, 2.0)
        sound = _unit(sung) + _unit(background) * 10.0 ** (-snr_db / 20.0)
    peak = voice.level * 10.0 ** (rng.uniform(-1.0, 1.0) / 20.0)
    return np.asarray(sound * (peak / np.abs(sound).max()))


def sing(song: Song, voice: Voice, samples: int, rate_hz: int, rng: np.random.Generator) -> Sound:
    """Phrases of one individual from the first to the last of [samples], close by and in silence."""
    low, high = song.pitch_hz
    own_pitch = low * (high / low) ** voice.pitch
    out = np.zeros(samples)
    # The clip begins anywhere in the singing, not with a phrase.
    clock_s = -float(rng.uniform(0.0, 0.5))
    while clock_s * rate_hz < samples:
        count = int(rng.integers(song.notes[0], song.notes[1] + 1))
        pitch = own_pitch * rng.uniform(0.96, 1.04)
        note_s, gap_s = rng.uniform(*song.note_s), rng.uniform(*song.gap_s)
        loudness = rng.uniform(0.7, 1.0)
        for number in range(count):
            progress = number / max(1, count - 1)
            hertz = pitch * song.steps[number % len(song.steps)] * song.sinking**progress
            hertz *= 1.0 + song.scatter * rng.uniform(-1.0, 1.0)
            length_s = note_s * rng.uniform(0.9, 1.1) / voice.tempo
            _add(out, loudness * rng.uniform(0.8, 1.0) * _note(song, voice, hertz, length_s, rate_hz, rng),
                 round(clock_s * rate_hz))  # fmt: skip
            clock_s += length_s + gap_s * song.hurry**progress * rng.uniform(0.85, 1.15) / voice.tempo
        clock_s += rng.uniform(*song.pause_s) / voice.tempo
    return out


def _note(song: Song, voice: Voice, hertz: float, length_s: float, rate_hz: int, rng: np.random.Generator) -> Sound:
    n = max(8, round(length_s * rate_hz))
    time_s = np.arange(n) / rate_hz
    vibrato = 1.0 + song.warble * np.sin(2 * np.pi * (song.warble_hz * voice.tempo * time_s + rng.uniform()))
    frequency = hertz * song.glide ** np.linspace(0.0, 1.0, n) * vibrato
    phase = 2 * np.pi * np.cumsum(frequency) / rate_hz
    tone = np.zeros(n)
    for order, amplitude in enumerate(song.harmonics, start=1):
        if order * frequency.max() < _HIGHEST_SHARE_OF_RATE * rate_hz:
            tone += amplitude * voice.tilt ** (order - 1) * np.sin(order * phase)
    if song.breath:
        # Slow noise on a carrier is noise around the carrier: some 600 Hz to both sides.
        knots = rng.standard_normal(2 + int(length_s * 1_200))
        slow = np.interp(np.linspace(0, knots.size - 1, n), np.arange(knots.size), knots)
        tone = (1.0 - song.breath) * tone + song.breath * 1.5 * slow * np.sin(phase + rng.uniform(0, 6))
    if song.buzz_hz:
        tone *= 0.5 - 0.5 * np.cos(2 * np.pi * song.buzz_hz * voice.tempo * time_s)
    # Rises within a fifth of the note or 15 ms, falls within two fifths or 60 ms.
    rise, fall = min(0.2 * length_s, 0.015), min(0.4 * length_s, 0.060)
    envelope = np.minimum(1.0, np.minimum(time_s / rise, (length_s - time_s) / fall)).clip(0.0)
    return np.asarray(tone * np.sin(0.5 * np.pi * envelope) ** 2)


def _add(out: Sound, part: Sound, start: int) -> None:
    """Add a part where it falls within `out`; what sticks out is cut."""
    begin, end = max(0, start), min(out.size, start + part.size)
    if begin < end:
        out[begin:end] += part[begin - start : end - start]


def _at_a_distance(dry: Sound, voice: Voice, rate_hz: int, rng: np.random.Generator) -> Sound:
    """Echo of the place and loss of treble, of the same length as `dry`."""
    n = round(voice.echo_s * rate_hz)
    tail = rng.standard_normal(n) * 10.0 ** (-3.0 * np.arange(n) / n)  # falls by 60 dB
    tail *= voice.echo / np.sqrt(np.sum(tail**2))
    wet = dry + scipy.signal.fftconvolve(dry, tail)[: dry.size]
    if voice.low_pass_hz < _HIGHEST_SHARE_OF_RATE * rate_hz:
        wet = scipy.signal.sosfilt(scipy.signal.butter(1, voice.low_pass_hz, fs=rate_hz, output="sos"), wet)
    return np.asarray(wet)


def _background(voice: Voice, samples: int, rate_hz: int, rng: np.random.Generator) -> Sound:
    """A recording without birds: coloured hiss, and the place's own noises, faintly."""
    hiss = _coloured(samples, rate_hz, voice.warmth, rng)
    main, faint = (_scene(kind, samples, rate_hz, rng) for kind in voice.scenes)
    return _unit(hiss) + 0.5 * main + 0.2 * faint


def _coloured(
    samples: int, rate_hz: int, warmth: float, rng: np.random.Generator,
    low_hz: float = 80.0, high_hz: float = 1e9,
) -> Sound:  # fmt: skip
    """Noise whose amplitude falls as f^-warmth between two frequencies, and is nothing outside."""
    n = scipy.fft.next_fast_len(samples, real=True)
    hertz = np.arange(n // 2 + 1) * (rate_hz / n)
    begin, end = np.searchsorted(hertz, (low_hz, high_hz))
    spectrum = np.zeros(hertz.size, np.complex128)
    spectrum[begin:end] = rng.standard_normal((end - begin, 2)).view(np.complex128)[:, 0]
    spectrum[begin:end] *= hertz[begin:end] ** -warmth
    return _unit(scipy.fft.irfft(spectrum, n)[:samples])


def _scene(kind: str, samples: int, rate_hz: int, rng: np.random.Generator) -> Sound:
    """One kind of noise, RMS 1."""
    makers = {"wind": _wind, "rain": _rain, "hum": _hum, "insects": _insects, "traffic": _traffic}
    return _unit(makers[kind](samples, rate_hz, rng))


def _wind(samples: int, rate_hz: int, rng: np.random.Generator) -> Sound:
    gusts = np.interp(np.linspace(0, 12, samples), np.arange(13), rng.uniform(0.1, 1.0, 13))
    return _coloured(samples, rate_hz, rng.uniform(1.0, 1.6), rng) * gusts


def _rain(samples: int, rate_hz: int, rng: np.random.Generator) -> Sound:
    drops = np.zeros(samples)
    count = int(rng.uniform(60, 250) * samples / rate_hz)
    drops[rng.integers(0, samples, count)] = rng.exponential(1.0, count) * rng.choice((-1.0, 1.0), count)
    n = round(0.01 * rate_hz)
    splash = rng.standard_normal(n) * np.exp(-6.0 * np.arange(n) / n)
    falling = scipy.signal.fftconvolve(drops, splash)[:samples]
    return _unit(falling) + 0.5 * _coloured(samples, rate_hz, 0.1, rng, low_hz=500.0)


def _hum(samples: int, rate_hz: int, rng: np.random.Generator) -> Sound:
    mains_hz = rng.choice((50.0, 60.0)) * rng.uniform(0.995, 1.005)
    turn, one_period = np.linspace(0.0, 1.0, 1_001), np.zeros(1_001)
    for order in range(1, 40):
        amplitude = rng.uniform(0.2, 1.0) / order**0.7
        one_period += amplitude * np.sin(2 * np.pi * (order * turn + rng.uniform()))
    hum = np.interp(mains_hz * np.arange(samples) / rate_hz % 1.0, turn, one_period)
    return np.asarray(hum + 0.05 * _coloured(samples, rate_hz, 0.5, rng))


def _insects(samples: int, rate_hz: int, rng: np.random.Generator) -> Sound:
    time_s = np.arange(samples) / rate_hz
    out = 0.05 * _coloured(samples, rate_hz, 0.3, rng)
    for _ in range(int(rng.integers(1, 4))):
        centre, rate = rng.uniform(3_800, 6_500), rng.uniform(12, 45)
        band = _coloured(samples, rate_hz, 0.0, rng, low_hz=centre - 150, high_hz=centre + 150)
        beats = 0.6 + 0.4 * np.sin(2 * np.pi * (rate * time_s + rng.uniform()))
        out += rng.uniform(0.4, 1.0) * band * beats
    return out


def _traffic(samples: int, rate_hz: int, rng: np.random.Generator) -> Sound:
    time_s, passing_s = np.arange(samples) / rate_hz, rng.uniform(0.0, samples / rate_hz)
    swell = 0.3 + np.exp(-(((time_s - passing_s) / rng.uniform(0.6, 1.5)) ** 2))
    engine = scipy.signal.sawtooth(2 * np.pi * rng.uniform(60, 130) * time_s)
    rumble = _coloured(samples, rate_hz, 1.2, rng) + 0.3 * _coloured(samples, rate_hz, 0.5, rng, 300, 2_500)
    return swell * (rumble + 0.4 * _unit(engine) * rng.uniform(0.0, 1.0))


def _unit(sound: Sound) -> Sound:
    """The same sound with RMS 1; silence stays silence."""
    rms = float(np.sqrt(np.mean(sound**2)))
    return sound / rms if rms > 0.0 else sound
