"""Does twice the work take twice the time, and not more?

1×, 4×, 16× the sound ─▶ seconds an hour of sound, in each stage of the job
10, 195, 2,000 classes ─▶ seconds a training step
"""

import json
import shutil
import sys
from collections.abc import Callable

import numpy as np

from bench.frames import CLIP_S, make_clips
from bench.harness import Child, Line, Measure, Result, Settings, birdtune, figure, interleaved

TIMES = (1, 4, 16)
CLIPS = 180  # half an hour, so that what a start costs does not hide how it grows
CLASSES = (10, 195, 2_000)
BATCH = 32
# Linear, as far as a machine with others on it can show.
FLAT = 1.1


def measure(settings: Settings) -> Result:
    """The job on more and more sound, then steps of heads for more and more classes."""
    clips = 30 if settings.quick else CLIPS
    stages = {times: _job(settings, clips * times) for times in (TIMES[:1] if settings.quick else TIMES)}
    hours = {times: clips * times * CLIP_S / 3600 for times in stages}
    lines = [_line_of_stage(stage, stages, hours) for stage in stages[1]]
    steps = _steps(settings)
    lines.append(_line_of_steps(steps))
    return Result("linear", lines, {"stages": stages, "hours": hours, "steps": steps})


def _job(settings: Settings, n_clips: int) -> dict[str, float]:
    """Seconds of each stage of a job that hears everything once, with the network that is quick to train."""
    print(f"  {n_clips:,} clips", file=sys.stderr, flush=True)
    data, output = settings.folder / "data", settings.folder / "output"
    make_clips(data, n_clips, 16_000, 1, settings.seed)
    birdtune("run", "--data", str(data), "--output", str(output), "--model.checkpoint", "none",
             "--model.backbone", "vggish-small", "--train.epochs", "1")()  # fmt: skip
    record = json.loads((output / "run.json").read_text("utf-8"))
    history = json.loads((output / "logs" / "1" / "history.json").read_text("utf-8"))
    shutil.rmtree(data)
    shutil.rmtree(output)
    return {
        "prepare": record["stages"]["prepare"],
        "train, an epoch": history["epochs"][0]["seconds"],
        "evaluate": record["stages"]["evaluate"],
    }


def _line_of_stage(stage: str, stages: dict[int, dict[str, float]], hours: dict[int, float]) -> Line:
    an_hour = {times: found[stage] / hours[times] for times, found in stages.items()}
    figures = [f"{times}×: {figure(value)}" for times, value in an_hour.items()]
    first, last = an_hour[1], an_hour[max(an_hour)]
    return Line(
        f"{stage}: time an hour of sound, of {figure(hours[1] * 60, 'min')} and more", ", ".join(figures), "the least",
        last / first, f"≤ {FLAT:g}×", last / first <= FLAT,
        "the most sound / the least, an hour; what a start costs counts for less and less",
    )  # fmt: skip


def _line_of_steps(steps: dict[str, list[float]]) -> Line:
    measures = [Measure(name, values) for name, values in steps.items()]
    ratio = measures[-1].median / measures[0].median
    return Line(
        f"a training step of VGGish, batch {BATCH}", ", ".join(f"{m.name} classes: {m.text()}" for m in measures),
        f"{measures[0].name} classes", ratio, f"≤ {FLAT:g}×", ratio <= FLAT, "the most classes / the fewest",
    )  # fmt: skip


def _steps(settings: Settings) -> dict[str, list[float]]:
    backbone = "vggish-small" if settings.quick else "vggish"
    found: dict[str, list[float]] = {}
    children = {
        f"{n:,}": Child("bench.linear:step", n, backbone) for n in CLASSES[: 1 if settings.quick else None]
    }
    try:
        found = interleaved(children, rounds=1 if settings.quick else 9, warmups=1)
    finally:
        for child in children.values():
            child.close()
    return found


def step(n_classes: int, backbone: str) -> Callable[[], None]:
    """One update of all weights, by the job's own trainer, on one constant batch; for a Child."""
    from birdtune.runtime.tensorflow_import import load_tensorflow

    load_tensorflow()
    from birdtune.config import Config
    from birdtune.data.batches import Batch
    from birdtune.training import devices, first_weights, inputs
    from birdtune.training.step import StepSettings, Trainer

    config = Config(model={"backbone": backbone, "checkpoint": "none"})
    devices.prepare_devices()
    precision, _ = devices.choose_precision("auto", gains_on_cpu=True)
    classifier = first_weights.build_classifier(config, tuple(f"{n:04}" for n in range(n_classes)), precision)
    settings = StepSettings(0.0, np.ones(n_classes, np.float32), precision)
    trainer = Trainer(classifier, config.train, settings, inputs.whole(classifier, None))  # type: ignore[arg-type]
    random = np.random.default_rng(0)
    targets = np.eye(n_classes, dtype=np.float32)[random.integers(0, n_classes, BATCH)]
    features = random.standard_normal((BATCH, 96, 64)).astype(np.float16)
    batch = Batch(features, np.ones(BATCH, np.float32), np.arange(BATCH), targets, np.ones_like(targets))

    def turn() -> None:
        _, weight, gradients = trainer.gradients(batch, 0)
        float(trainer.apply(gradients, weight, 1e-4))  # which waits until it is done

    return turn
