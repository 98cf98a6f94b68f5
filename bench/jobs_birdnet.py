"""A whole job on BirdNET as people wait for it, beside its bare embeddings and beside the usual way.

    100 folders of 100 clips ─▶ seconds of `run`, of bare embeddings, of the interpreter and a dense layer behind it

BirdNET's weights lie where BENCH_BIRDNET says.
"""

import statistics
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bench.frames import make_clips
from bench.harness import Line, Result, Settings, birdtune, interleaved
from bench.jobs import stages
from bench.learning import birdnet

BIRDNET_JOB = 1.1  # times its bare embeddings
_CLASSES, _CLIPS, _BATCH = 100, 100, 8


def measure(settings: Settings) -> Result:
    """`run` on clips of 3 s, beside their bare embeddings, and beside what tools around BirdNET do with them."""
    n_classes, n_clips = (4, 20) if settings.quick else (_CLASSES, _CLIPS)
    data = settings.folder / "folders"
    for number in range(n_classes):
        clips = make_clips(settings.folder / "clips" / str(number), n_clips, 48_000, 1, number, seconds=3.0)
        (data / f"class {number:03}").mkdir(parents=True)
        for clip in clips:
            clip.rename(data / f"class {number:03}" / f"{number:03}-{clip.name}")
    output = settings.folder / "birdnet"
    seconds = interleaved({
        "birdtune": birdtune("run", "--data", str(data), "--output", str(output), "--model.backbone", "birdnet",
                             "--model.checkpoint", str(birdnet())),
        "bare embeddings": birdtune("bare_embeddings", str(data), module="bench.jobs_birdnet"),
        "interpreter (2 threads) and a dense layer": birdtune("plain_way", str(data), f"{output}-plain",
                                                              module="bench.jobs_birdnet"),
    }, rounds=1, warmups=0)  # fmt: skip
    took = {name: statistics.median(values) for name, values in seconds.items()}
    ours, bare, plain = took.values()
    what = f"from {n_classes} folders of {n_clips} clips of 3 s, by BirdNET, to a served model"
    lines = [
        Line(what, f"{ours:.0f} s", f"bare embeddings: {bare:.0f} s", ours / bare, f"≤ {BIRDNET_JOB:g}×",
             ours / bare <= BIRDNET_JOB, f"birdtune / bare embeddings; {stages(output)}"),
        Line(what, f"{ours:.0f} s", f"interpreter (2 threads) and a dense layer: {plain:.0f} s", plain / ours,
             note="birdtune's has a split, calibration, thresholds, OOD rejection, a report and a verified export"),
    ]  # fmt: skip
    return Result("jobs_birdnet", lines)


def bare_embeddings(data: str) -> None:
    """Decode every clip and embed it by birdtune's graph, and nothing else."""
    import soundfile

    from bench.backbone_speed import loaded

    backbone, compute = loaded()
    waveforms = [soundfile.read(path, dtype="float32")[0] for path in sorted(Path(data).glob("*/*"))]
    for begin in range(0, len(waveforms), _BATCH):
        given = np.stack(waveforms[begin : begin + _BATCH]).reshape(-1, *backbone.front_end.window_shape)
        compute(given)


def plain_way(data: str, output: str) -> None:
    """What tools around BirdNET do: embed window by window, train a dense layer of sigmoids, save it."""
    import keras
    import soundfile
    import tensorflow as tf

    from birdtune.models import tflite_backbone

    weights = birdnet()
    made = tf.lite.Interpreter(str(weights), num_threads=2, experimental_preserve_all_tensors=True)
    made.allocate_tensors()
    given, found = made.get_input_details()[0]["index"], tflite_backbone.look(weights, None).embeddings
    folders = sorted(Path(data).iterdir())
    embeddings, labels = [], []
    for label, folder in enumerate(folders):
        for path in sorted(folder.iterdir()):
            made.set_tensor(given, soundfile.read(path, dtype="float32")[0][None])
            made.invoke()
            embeddings.append(made.get_tensor(found)[0])
            labels.append(label)
    layer = keras.Sequential([keras.Input((1024,)), keras.layers.Dense(len(folders), activation="sigmoid")])
    layer.compile(keras.optimizers.Adam(1e-3), "binary_crossentropy")
    stop = keras.callbacks.EarlyStopping(patience=5, restore_best_weights=True)
    order = np.random.default_rng(0).permutation(len(labels))
    targets = np.eye(len(folders), dtype=np.float32)[labels]
    layer.fit(np.stack(embeddings)[order], targets[order], batch_size=32, epochs=50, validation_split=0.2, verbose=0,
              callbacks=[stop])  # fmt: skip
    layer.export(output, verbose=False)


_WAYS: Mapping[str, Callable[..., Any]] = {"bare_embeddings": bare_embeddings, "plain_way": plain_way}

if __name__ == "__main__":
    _WAYS[sys.argv[1]](*sys.argv[2:])
