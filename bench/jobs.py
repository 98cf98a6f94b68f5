"""Whole jobs as people wait for them, and where their time goes.

    ESC-10 on frozen YAMNet ─▶ seconds of `run`, from nothing and after `prepare`; of each stage; of `predict`
    100 folders of 100 clips on BirdNET ─▶ seconds of `run`, beside bare embeddings, and beside a dense layer on them
    100,000 small files that were checked before ─▶ seconds and memory of `check`

BirdNET's weights lie where BENCH_BIRDNET says.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bench import learning, unchanged
from bench.frames import make_clips
from bench.harness import ROOT, Line, Measure, Result, Settings, as_users_have_it, birdtune, interleaved
from bench.learning import birdnet

STAGES = ("prepare", "train", "evaluate", "export", "report")
# A job, one after preparation, the first row of `predict`: seconds; a job on BirdNET: times its bare embeddings.
JOB_S, AFTER_PREPARE_S, FIRST_ROW_S, BIRDNET_JOB, CHECK_S = 30.0, 20.0, 3.0, 1.1, 20.0
_CLASSES, _CLIPS, _BATCH = 100, 100, 8
_CHECKED = 100_000


def measure(settings: Settings) -> Result:
    """How long jobs take from start to end."""
    lines = [*_on_yamnet(settings), *_on_birdnet(settings), *_checked(settings)]
    return Result("jobs", lines)


# ---- ESC-10 on YAMNet -------------------------------------------------------------------------------


def _on_yamnet(settings: Settings) -> list[Line]:
    """A job with the backbone frozen, from nothing and after preparation, and `predict` with its model."""
    whole, prepared = settings.folder / "whole", settings.folder / "prepared"
    flags = ("--data", str(learning.esc10()), "--model.backbone", "yamnet", "--model.checkpoint",
             str(learning.yamnet()), "--model.freeze", "all-but-head")  # fmt: skip

    def again(name: str) -> None:
        shutil.rmtree(settings.folder / name, ignore_errors=True)
        if name == prepared.name:
            birdtune("prepare", *flags, "--output", str(prepared))()

    jobs = {place.name: birdtune("run", *flags, "--output", str(place)) for place in (whole, prepared)}
    seconds = interleaved(jobs, rounds=1 if settings.quick else 3, warmups=0, before=again)
    clip = next(learning.esc10().glob("*/*.ogg"))
    predict = birdtune("predict", str(clip), "--output", str(whole), "--out", str(settings.folder / "rows.csv"))
    first_row = interleaved({"predict": predict}, rounds=1 if settings.quick else 7)["predict"]
    what = "ESC-10, YAMNet frozen: from 400 clips of 5 s to a served model and its report"
    return [
        _within(what, seconds[whole.name], JOB_S, _stages(whole)),
        _within(f"{what}, after `prepare`", seconds[prepared.name], AFTER_PREPARE_S, _stages(prepared)),
        _within("`predict`: from its start to the scores of one recording", first_row, FIRST_ROW_S, ""),
    ]


def _stages(output: Path) -> str:
    """Where the time of a job went, by its run.json."""
    took = json.loads((output / "run.json").read_text("utf-8"))["stages"]
    return ", ".join(f"{stage} {took[stage]:.1f} s" for stage in STAGES)


def _within(what: str, seconds: list[float], most_s: float, note: str) -> Line:
    found = Measure(what, seconds)
    return Line(what, found.text(), "", None, f"≤ {most_s:g} s", found.median <= most_s, note)


# ---- folders of clips on BirdNET --------------------------------------------------------------------


def _on_birdnet(settings: Settings) -> list[Line]:
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
        "bare embeddings": birdtune("bare_embeddings", str(data), module="bench.jobs"),
        "interpreter (2 threads) and a dense layer": birdtune("plain_way", str(data), f"{output}-plain",
                                                              module="bench.jobs"),
    }, rounds=1, warmups=0)  # fmt: skip
    took = {name: statistics.median(values) for name, values in seconds.items()}
    ours, bare, plain = took.values()
    what = f"from {n_classes} folders of {n_clips} clips of 3 s, by BirdNET, to a served model"
    return [
        Line(what, f"{ours:.0f} s", f"bare embeddings: {bare:.0f} s", ours / bare, f"≤ {BIRDNET_JOB:g}×",
             ours / bare <= BIRDNET_JOB, f"birdtune / bare embeddings; {_stages(output)}"),
        Line(what, f"{ours:.0f} s", f"interpreter (2 threads) and a dense layer: {plain:.0f} s", plain / ours,
             note="birdtune's has a split, calibration, thresholds, OOD rejection, a report and a verified export"),
    ]  # fmt: skip


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


# ---- many files -------------------------------------------------------------------------------------


def _checked(settings: Settings) -> list[Line]:
    n = 60 if settings.quick else _CHECKED
    data, output = settings.folder / "many", settings.folder / "checked"
    unchanged.make_recordings(data, n, settings.seed)
    arguments = ("check", "--data", str(data), "--output", str(output), "--model.checkpoint", "none")
    first_s = birdtune(*arguments)()
    seconds = interleaved({"check": birdtune(*arguments)}, rounds=1 if settings.quick else 3)["check"]
    note = f"the first time, with every file decoded: {first_s:.0f} s; peak of memory {_peak_mb(arguments):,.0f} MB"
    return [_within(f"`check` on {n:,} files that were checked before", seconds, CHECK_S, note)]


def _peak_mb(arguments: tuple[str, ...]) -> float:
    """The most memory of a command in one process."""
    environment = as_users_have_it({"PYTHONPATH": str(ROOT / "code")})
    command = [sys.executable, "-m", "birdtune", *arguments]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    return used.ru_maxrss / 1000


_WAYS: Mapping[str, Callable[..., Any]] = {"bare_embeddings": bare_embeddings, "plain_way": plain_way}

if __name__ == "__main__":
    _WAYS[sys.argv[1]](*sys.argv[2:])
