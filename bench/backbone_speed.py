"""BirdNET's embeddings beside TensorFlow Lite's interpreter.

    BirdNET as a TensorFlow graph, beside the interpreter ─▶ windows a second, largest difference

BirdNET's weights lie where BENCH_BIRDNET says (BirdNET_GLOBAL_6K_V2.4_Model_FP32.tflite).
"""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from bench import learning
from bench.harness import Line, Measure, Result, Settings, candidate, interleaved
from bench.learning import birdnet


def measure(settings: Settings) -> Result:
    """Rates and differences."""
    lines, seconds = _rates(settings)
    return Result("backbone_speed", lines, seconds)


# ---- beside the interpreter -------------------------------------------------------------------------

_BATCH, _BATCHES = 8, 4


def _rates(settings: Settings) -> tuple[list[Line], Any]:
    with ExitStack() as stack:
        path, sounds = str(birdnet()), str(learning.place("warblers"))
        children = {
            "graph": candidate(stack, settings, "bench.backbone_speed:graph", path, sounds),
            "bfloat16": candidate(stack, settings, "bench.backbone_speed:in_bfloat16", sounds),
            "1 thread": candidate(stack, settings, "bench.backbone_speed:interpreter", path, sounds, 1),
            "2 threads": candidate(stack, settings, "bench.backbone_speed:interpreter", path, sounds, 2),
        }
        seconds = interleaved(children, rounds=1 if settings.quick else 7)
        difference, cosine = max(children["graph"].values), min(children["bfloat16"].values)
    n_windows = _BATCH * _BATCHES
    ours = Measure("graph", [value / n_windows for value in seconds["graph"]], per="window")
    lines = []
    for threads in ("1 thread", "2 threads"):
        theirs = Measure("interpreter", [value / n_windows for value in seconds[threads]], per="window")
        ratio = theirs.median / ours.median
        lines.append(
            Line(f"BirdNET's embeddings, graph in batches of {_BATCH} on two cores", ours.text(),
                 f"interpreter, {threads}: {theirs.text()}", ratio, "≥ 1×", ratio >= 1)
        )  # fmt: skip
    note = f"{n_windows} windows of warblers"
    narrow = Measure("bfloat16", [value / n_windows for value in seconds["bfloat16"]], per="window")
    lines.append(
        Line("BirdNET's embeddings, graph in bfloat16 beside float32", narrow.text(), ours.text(),
             ours.median / narrow.median, note=f"{note}; least cosine of an embedding {cosine:.4f}")
    )  # fmt: skip
    lines.append(
        Line("BirdNET's embeddings: largest difference from the interpreter", f"{difference:.1e}", "", None, "≤ 1e-4",
             difference <= 1e-4, note)
    )  # fmt: skip
    return lines, seconds


def _waveforms(sounds: str) -> Any:
    """The first 3 s of some recordings, at BirdNET's rate. [n, samples] float32"""
    from birdtune.audio import decode

    paths = sorted(Path(sounds).glob("*/*.ogg"))[: _BATCH * _BATCHES]
    return np.stack([decode.read(path, rate_hz=48_000)[:144_000] for path in paths])


def _interpreted(path: str, sounds: str, threads: int, *, embeds: bool) -> tuple[Any, Any]:
    """Waveforms, and what TensorFlow Lite's interpreter gives for one: its embedding, or as is usual its scores.

    Embeddings are to be had only where the interpreter keeps all tensors, which may cost it time.
    """
    import tensorflow as tf

    from birdtune.models import tflite_backbone

    made = tf.lite.Interpreter(path, num_threads=threads, experimental_preserve_all_tensors=embeds)
    made.allocate_tensors()
    output = tflite_backbone.look(Path(path), None).embeddings if embeds else made.get_output_details()[0]["index"]

    def one(waveform: Any) -> Any:
        made.set_tensor(made.get_input_details()[0]["index"], waveform[None])
        made.invoke()
        return made.get_tensor(output)[0]

    return _waveforms(sounds), one


def interpreter(path: str, sounds: str, threads: int) -> Callable[[], float]:
    """A turn scores all windows one by one; its value is the largest score."""
    waveforms, one = _interpreted(path, sounds, threads, embeds=False)
    return lambda: float(np.abs([one(waveform) for waveform in waveforms]).max())


def loaded(precision: str = "float32") -> tuple[Any, Any]:
    """BirdNET as a backbone, and a function from windows to its embeddings."""
    import tensorflow as tf

    from birdtune.models import files

    backbone: Any = files.open_file(birdnet(), "birdnet", rate_hz=None, window_s=None, output=None)
    network = backbone.network(embedding_activation="", precision=precision, seed=None)
    backbone.load(network, backbone.arrays())
    return backbone, tf.function(network, autograph=False)


def _embedded(waveforms: Any, precision: str) -> Callable[[], Any]:
    """A function that embeds waveforms in batches, by birdtune's graph. [n, K]"""
    import tensorflow as tf

    backbone, compute = loaded(precision)
    batches = [
        tf.constant(waveforms[begin : begin + _BATCH].reshape(-1, *backbone.front_end.window_shape))
        for begin in range(0, len(waveforms), _BATCH)
    ]
    return lambda: np.concatenate([compute(batch).numpy() for batch in batches])


def graph(path: str, sounds: str) -> Callable[[], float]:
    """A turn embeds all windows in batches; its value is the largest difference from the interpreter."""
    waveforms, one = _interpreted(path, sounds, 2, embeds=True)
    theirs = np.stack([one(waveform) for waveform in waveforms])
    ours = _embedded(waveforms, "float32")
    return lambda: float(np.abs(ours() - theirs).max())


def in_bfloat16(sounds: str) -> Callable[[], float]:
    """As `graph`, in bfloat16 behind the spectrogram; its value is the least cosine with an embedding in float32."""
    waveforms = _waveforms(sounds)
    wide, narrow = _embedded(waveforms, "float32")(), _embedded(waveforms, "mixed_bfloat16")
    wide /= np.linalg.norm(wide, axis=1, keepdims=True)

    def turn() -> float:
        found = narrow()
        return float(((found * wide).sum(axis=1) / np.linalg.norm(found, axis=1)).min())

    return turn
