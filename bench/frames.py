"""Sound → log-mel frames: birdtune beside the published VGGish way, librosa, PyTorch and TensorFlow.

    wav files ─▶ seconds a clip of each way; on one core, birdtune also on two; and of its parts alone

Each way is written anew from the published numbers (25 ms Hann windows every 10 ms, FFT 512, 64 mel bands of
125-7,500 Hz, ln(mel + 0.01)). birdtune alone also hashes the files, checks them, and keeps what it makes.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile

from bench.harness import Child, Line, Measure, Result, Settings, interleaved, is_installed, judged

RATE_HZ, WINDOW, HOP, FFT, BANDS, LOW_HZ, HIGH_HZ, OFFSET = 16_000, 400, 160, 512, 64, 125.0, 7_500.0, 0.01
CLIP_S = 10.0
CLASSES = 10
_PART = 3  # one of so many clips makes the smaller input, with some of each class
Waveform = npt.NDArray[Any]


def measure(settings: Settings) -> Result:
    """Two inputs: 44.1 kHz stereo, which must be resampled, and 16 kHz mono, which must not."""
    lines: list[Line] = []
    details: dict[str, Any] = {}
    for kind, rate_hz, channels, target in (
        ("44.1 kHz stereo", 44_100, 2, 30.0),
        ("16 kHz mono", 16_000, 1, 2.5),
    ):
        folder = settings.folder / kind.split()[-1]
        paths = make_clips(folder / "data", 8 if settings.quick else 300, rate_hz, channels, settings.seed)
        seconds = _seconds(folder, [str(path) for path in paths], settings)
        details[kind] = seconds
        lines += _lines(kind, len(paths), seconds, target)
    return Result("frames", lines, details)


def make_clips(
    folder: Path, n: int, rate_hz: int, channels: int, seed: int, seconds: float = CLIP_S
) -> list[Path]:
    """Clips of noise and a chirp of their own, 16-bit wav, in folders of classes."""
    random = np.random.default_rng(seed)
    time_s = np.arange(round(seconds * rate_hz)) / rate_hz
    paths = []
    for number in range(n):
        chirp = 0.3 * np.sin(2 * np.pi * (1500 + 40 * number + 200 * time_s) * time_s)
        sound = chirp[:, None] + 0.05 * random.standard_normal((time_s.size, channels))
        path = folder / f"Class_{number % CLASSES:02}" / f"Class_{number % CLASSES:02}-{1000 + number}_0.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, sound, rate_hz, subtype="PCM_16")
        paths.append(path)
    return paths


def _seconds(folder: Path, paths: list[str], settings: Settings) -> dict[str, list[float]]:
    """Seconds a clip, one a round. The slow ways hear fewer clips; all take turns.

    Of birdtune also the seconds of a clip more: what the whole takes beyond a part of it. The difference to its
    whole is what it costs to begin, above all to load Python in the workers, and that is not counted of the others.
    """
    few = paths[:: 2 if settings.quick else 15]
    some = _part_of(folder, paths[::_PART])
    ways: dict[str, tuple[str, Sequence[str], int]] = {
        "birdtune": ("prepare", paths, 1),
        "birdtune, two cores": ("prepare", paths, 2),
        "birdtune, a part": ("prepare", some, 1),
        "birdtune, two cores, a part": ("prepare", some, 2),
        "decode": ("decode_alone", paths, 1),
        "soxr": ("soxr_alone", few, 1),
        "FFT": ("fft_alone", few, 1),
        "hash": ("hash_alone", few, 1),
        "log-mel": ("log_mel_alone", few, 1),
        "reference": ("reference_way", few, 1),
    }
    if not settings.quick:
        ways["tf.signal"] = ("tensorflow_way", few, 1)
    if is_installed("librosa"):
        ways["librosa"] = ("librosa_way", few, 1)
    if is_installed("torch"):
        ways["PyTorch"] = ("pytorch_way", few, 1)
    with ExitStack() as stack:
        children = {
            name: stack.enter_context(Child(f"bench.frames:{maker}", heard, cores=cores))
            for name, (maker, heard, cores) in ways.items()
        }
        found = interleaved(children, rounds=1 if settings.quick else 7, warmups=0 if settings.quick else 1)
    each = {name: [value / len(ways[name][1]) for value in values] for name, values in found.items()}
    for name in ("birdtune", "birdtune, two cores"):
        rounds = zip(found[name], found[f"{name}, a part"], strict=True)
        each[f"{name}, a clip more"] = [(whole - part) / (len(paths) - len(some)) for whole, part in rounds]
    return each


def _part_of(folder: Path, paths: Sequence[str]) -> list[str]:
    """Some of the clips as an input of their own."""
    links = []
    for path in map(Path, paths):
        link = folder / "part" / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.hardlink_to(path)
        links.append(str(link))
    return links


def _lines(kind: str, n: int, seconds: dict[str, list[float]], target: float) -> Iterator[Line]:
    measures = {name: Measure(name, values, per="clip") for name, values in seconds.items()}
    ours, more = measures["birdtune"], measures["birdtune, a clip more"]
    parts = [name for name in ("decode", "soxr", "FFT") if name != "soxr" or kind.startswith("44")]
    rounds = zip(*(seconds[name] for name in parts), strict=True)
    alone = Measure(" + ".join(parts), [sum(values) for values in rounds], per="clip")
    wanted = Measure("wanted", [value / target for value in seconds["reference"]], per="clip")
    yield judged(
        f"{kind}, one core, beside the reference way", ours, measures["reference"], at_least=target,
        note=f"{n} clips, from scan to split, with the start of a worker, as of none of the others; each clip "
        f"more takes {more.text()}. {target:g}× would be {wanted.text()}, and {alone.name} alone take {alone.text()}",
    )  # fmt: skip
    for name in ("librosa", "PyTorch", "tf.signal"):
        has_none = name != "librosa" and kind.startswith("44")
        note = f"{'TensorFlow' if name == 'tf.signal' else name} has no resampler: soxr's" if has_none else ""
        yield judged(f"{kind}, one core, beside {name}", ours, measures.get(name), note=note)
    told = ", ".join(f"{name} {measures[name].median * 1e3:.2f} ms" for name in parts)
    yield judged(
        f"{kind}, one core, beside its parts alone", ours, alone, at_most=1.4, inverse=True,
        note=f"birdtune / parts; {told}. {_rest(measures)}",
    )  # fmt: skip
    if len(os.sched_getaffinity(0)) < 2:
        yield Line(f"{kind}, two cores", "one core is all there is here", target="≥ 1.8×")
        return
    two, two_more = measures["birdtune, two cores"], measures["birdtune, two cores, a clip more"]
    yield judged(
        f"{kind}, two cores", two, Measure("one core", ours.values, per="clip"), at_least=1.8,
        note=f"two workers start, which two cores do not speed up; each clip more takes {two_more.text()}: "
        f"{more.median / two_more.median:.2f}×",
    )  # fmt: skip


def _rest(measures: dict[str, Measure]) -> str:
    """What the others do not do, or not so, with what it takes."""
    return (
        f"SHA-256 of the file {measures['hash'].median * 1e3:.2f} ms; log-mel, in float64 where float32 would err by "
        f"more than 1e-4, {measures['log-mel'].median * 1e3:.2f} ms; measures of the sound, float16, CRC, writing, "
        "handing over to workers"
    )


# ---- the ways, each in a process of its own ------------------------------------------------------


def prepare(paths: list[str]) -> tuple[Callable[[], None], Callable[[], int]]:
    """birdtune's own stage on all of a folder data/: found, hashed, checked, decoded, kept, split."""
    from birdtune.audio.logmel import VGGISH
    from birdtune.config import Config
    from birdtune.data import dataset as gather
    from birdtune.runtime.log import Journal
    from birdtune.runtime.signals import Interrupts

    data = Path(paths[0]).parents[1]
    output = data.parent / f"output-{len(os.sched_getaffinity(0))}"
    config = Config(input=str(data.parent), data=str(data), output=str(output))

    def turn() -> int:
        dataset, store = gather.prepare(config, VGGISH, Journal(quiet=True), Interrupts())
        assert len(dataset.recordings) == len(store) == len(paths)
        return len(store)

    return lambda: shutil.rmtree(output, ignore_errors=True), turn


def reference_way(paths: list[str]) -> Callable[[], int]:
    """As VGGish was published."""
    frames = reference_front_end()
    return lambda: sum(len(frames(path)) for path in paths)


def reference_front_end() -> Callable[[str], Waveform]:
    """File → log-mel [frames, 64]: wav read, mean, resampy kaiser_best, log-mel in float64 by NumPy."""
    import resampy

    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    mel = _mel_matrix()

    def frames(path: str) -> Waveform:
        samples, rate_hz = soundfile.read(path, dtype="int16", always_2d=True)
        waveform = (samples / 32768.0).mean(axis=1)  # float64
        if rate_hz != RATE_HZ:
            waveform = resampy.resample(waveform, rate_hz, RATE_HZ, filter="kaiser_best")
        n = (waveform.size - WINDOW) // HOP + 1
        windows = np.lib.stride_tricks.as_strided(
            waveform, (n, WINDOW), (waveform.strides[0] * HOP, *waveform.strides)
        )
        magnitude = np.abs(np.fft.rfft(windows * window, FFT))  # [frames, 257]
        return np.log(magnitude @ mel + OFFSET)

    return frames


def _mel_matrix() -> Waveform:
    """Triangles that are linear in mel, not normalised. [257, 64] float64"""
    edges = np.linspace(*(1127.0 * np.log1p(np.array([LOW_HZ, HIGH_HZ]) / 700.0)), BANDS + 2)
    bins = 1127.0 * np.log1p(np.linspace(0.0, RATE_HZ / 2, FFT // 2 + 1) / 700.0)[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    weights = np.maximum(0.0, np.minimum(rising, falling))
    weights[0] = 0.0
    return weights


def librosa_way(paths: list[str]) -> Callable[[], int]:
    """librosa.load, which resamples by soxr, and librosa.feature.melspectrogram."""
    import librosa

    def frames(path: str) -> Waveform:
        waveform, _ = librosa.load(path, sr=RATE_HZ, mono=True)
        mel = librosa.feature.melspectrogram(
            y=waveform, sr=RATE_HZ, n_fft=FFT, win_length=WINDOW, hop_length=HOP, power=1.0, center=False,
            n_mels=BANDS, fmin=LOW_HZ, fmax=HIGH_HZ, htk=True, norm=None,
        )  # fmt: skip
        return np.log(mel + OFFSET)

    return lambda: sum(frames(path).shape[1] for path in paths)


def pytorch_way(paths: list[str]) -> Callable[[], int]:
    """torch.stft and a product with the mel matrix, as torchaudio has it (which does not load beside every PyTorch)."""
    import soxr
    import torch

    torch.set_num_threads(1)
    window, mel = torch.hann_window(WINDOW), torch.from_numpy(_mel_matrix().T.astype(np.float32))

    @torch.inference_mode()
    def frames(path: str) -> Waveform:
        samples, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
        waveform = samples.mean(axis=1)
        if rate_hz != RATE_HZ:
            waveform = soxr.resample(waveform, rate_hz, RATE_HZ)
        spectrum = torch.stft(
            torch.from_numpy(waveform), FFT, HOP, WINDOW, window, center=False, return_complex=True
        )  # fmt: skip
        return torch.log(mel @ spectrum.abs() + OFFSET).numpy()

    return lambda: sum(frames(path).shape[1] for path in paths)


def tensorflow_way(paths: list[str]) -> Callable[[], int]:
    """tf.audio.decode_wav and tf.signal, compiled into one function."""
    import soxr
    import tensorflow as tf

    mel = tf.signal.linear_to_mel_weight_matrix(BANDS, FFT // 2 + 1, RATE_HZ, LOW_HZ, HIGH_HZ)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32)])
    def log_mel(waveform: Any) -> Any:
        magnitude = tf.abs(tf.signal.stft(waveform, WINDOW, HOP, FFT))
        return tf.math.log(magnitude @ mel + OFFSET)

    def frames(path: str) -> Any:
        samples, rate_hz = tf.audio.decode_wav(tf.io.read_file(path))
        waveform = tf.reduce_mean(samples, axis=1)
        if int(rate_hz) != RATE_HZ:
            waveform = soxr.resample(waveform.numpy(), int(rate_hz), RATE_HZ)
        return log_mel(waveform).numpy()

    return lambda: sum(len(frames(path)) for path in paths)


# ---- the parts alone -----------------------------------------------------------------------------


def decode_alone(paths: list[str]) -> Callable[[], int]:
    """Nothing but reading each file whole as float32."""
    return lambda: sum(len(soundfile.read(path, dtype="float32")[0]) for path in paths)


def soxr_alone(paths: list[str]) -> Callable[[], int]:
    """Nothing but resampling one channel, at the quality that birdtune asks for."""
    import soxr

    sounds = [soundfile.read(path, dtype="float32", always_2d=True) for path in paths]
    waveforms = [(np.ascontiguousarray(samples[:, 0]), rate_hz) for samples, rate_hz in sounds]
    return lambda: sum(
        len(soxr.resample(waveform, rate_hz, RATE_HZ, quality="HQ")) for waveform, rate_hz in waveforms
    )


def fft_alone(paths: list[str]) -> Callable[[], int]:
    """Nothing but scipy's float32 transforms of windows that lie ready."""
    import scipy.fft

    n = (round(CLIP_S * RATE_HZ) - WINDOW) // HOP + 1
    windows = np.random.default_rng(0).standard_normal((n, FFT)).astype(np.float32)
    return lambda: sum(len(scipy.fft.rfft(windows, axis=1)) for _ in paths)


def hash_alone(paths: list[str]) -> Callable[[], int]:
    """Nothing but the digest that a file's content is known by."""
    from birdtune.runtime.files import file_sha256

    return lambda: sum(len(file_sha256(Path(path), lambda: None)) for path in paths)


def log_mel_alone(paths: list[str]) -> Callable[[], int]:
    """Nothing but birdtune's log-mel of a sound that lies ready."""
    from birdtune.audio.logmel import log_mel

    waveform = np.random.default_rng(0).standard_normal(round(CLIP_S * RATE_HZ)).astype(np.float32) / 10
    return lambda: sum(len(log_mel(waveform)) for _ in paths)
