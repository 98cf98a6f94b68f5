"""Prediction: birdtune's exported model beside the tf-slim graph and PyTorch, and whole files beside the reference way.

patches ─▶ scores, seconds a patch of each;   wav files ─▶ predictions.csv beside resampy + NumPy + the graph
"""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from bench import networks
from bench.frames import make_clips
from bench.harness import (
    Here,
    Line,
    Measure,
    Noting,
    Result,
    Settings,
    candidate,
    interleaved,
    is_installed,
    judged,
)
from bench.step import best_rate, products, share_line

_FILES_TARGET, _NARROW_TARGET, _PEER_TARGET = 1.9, 1.6, 1.0
_BATCH_SIZE = 64
_CLIPS = 60


def measure(settings: Settings) -> Result:
    """The network alone, then files from sound to scores."""
    backbone = "vggish-small" if settings.quick else "vggish"
    n_batches = 1 if settings.quick else 4
    model = settings.folder / "model"
    with ExitStack() as stack:
        candidate(stack, settings, "bench.predict:exported", str(model), backbone)()
    lines: list[Line] = []
    found: dict[str, Any] = {}
    with ExitStack() as stack:

        def child_of(maker: str, *arguments: Any) -> Noting | Here:
            return candidate(stack, settings, maker, *arguments)

        children = {
            "birdtune": child_of("bench.predict:scores", str(model), n_batches, False),
            "birdtune, bfloat16": child_of("bench.predict:scores", str(model), n_batches, True),
            "slim graph": child_of("bench.networks:slim_scores", _BATCH_SIZE, n_batches, backbone),
        }
        if is_installed("torch"):
            for kind in networks.TORCH_KINDS[-1:] if settings.quick else networks.TORCH_KINDS:
                name = f"PyTorch, {kind}"
                children[name] = child_of(
                    "bench.networks:torch_scores", kind, _BATCH_SIZE, n_batches, backbone
                )
        rates = products(stack, settings)
        rounds = 1 if settings.quick else 7
        seconds = interleaved({**children, "products": rates}, rounds=rounds)
        del seconds["products"]
        found["s a patch"] = {
            name: [v / n_batches / _BATCH_SIZE for v in values] for name, values in seconds.items()
        }
        found["GFLOP/s of products"] = rates.values[-rounds:]
    lines += _network_lines(found)
    found["s a clip"] = _whole_files(settings, model, backbone)
    ours, theirs = (Measure(name, values, per="clip") for name, values in found["s a clip"].items())
    lines.append(
        judged("clips of 10 s, 44.1 kHz stereo, from file to scores", ours, theirs, at_least=_FILES_TARGET)
    )
    return Result("predict", lines, found)


def _network_lines(found: dict[str, Any]) -> list[Line]:
    measures = {name: Measure(name, values, per="patch") for name, values in found["s a patch"].items()}
    ours, slim, rates = measures["birdtune"], measures["slim graph"], found["GFLOP/s of products"]
    halves = best_rate(rates, "bfloat16")[0] / best_rate(rates, "float32")[0]
    narrow = measures["birdtune, bfloat16"]

    def best_of_torch(precision: str) -> Measure | None:
        of_kind = [measure for name, measure in measures.items() if name.startswith(f"PyTorch, {precision}")]
        return min(of_kind, key=lambda measure: measure.median, default=None)

    flops = networks.flops_of_a_patch()
    share = "patches to scores: share of the machine's rate of matrix products"
    return [
        judged("patches to scores, beside the slim graph", ours, slim,
               note="the same products by the same library, near to what the processor reaches"),
        judged("patches to scores, beside PyTorch in float32", ours, best_of_torch("float32"), at_least=_PEER_TARGET),
        share_line(f"{share}, float32", ours, flops, rates, "float32", None),
        judged("patches to scores in bfloat16 (--predict.precision=bfloat16), beside the slim graph", narrow, slim,
               at_least=_NARROW_TARGET,
               note=f"products of bfloat16 are {halves:.2f} times as fast as those of float32 here"),
        judged("patches to scores in bfloat16, beside PyTorch in bfloat16", narrow, best_of_torch("bfloat16"),
               at_least=_PEER_TARGET),
        share_line(f"{share}, bfloat16", narrow, flops, rates, "bfloat16", None),
    ]  # fmt: skip


def _whole_files(settings: Settings, model: Path, backbone: str) -> dict[str, list[float]]:
    n_clips = 3 if settings.quick else _CLIPS
    few = 1 if settings.quick else _CLIPS // 10
    paths = [str(path) for path in make_clips(settings.folder / "clips", n_clips, 44_100, 2, settings.seed)]
    with ExitStack() as stack:
        ours = candidate(stack, settings, "bench.predict:files", str(model), paths)
        theirs = candidate(stack, settings, "bench.predict:reference_files", paths[:few], backbone)
        seconds = interleaved({"birdtune": ours, "reference way": theirs}, rounds=1 if settings.quick else 3)
    counts = {"birdtune": n_clips, "reference way": few}
    return {name: [value / counts[name] for value in values] for name, values in seconds.items()}


# ---- the ways, each in a process of its own ------------------------------------------------------


def exported(folder: str, backbone: str) -> Callable[[], None]:
    """Write a model as the job exports it."""
    from birdtune.evaluation.calibration import Calibration
    from birdtune.serving.export import export_model, training_side

    classifier = networks.trainer("float32", _BATCH_SIZE, backbone=backbone).classifier
    patches, _ = networks.patches_of(4, 1)
    sound = np.random.default_rng(0).normal(0, 0.1, 32_000).astype(np.float32)
    calibration = Calibration(classifier.kind)

    def turn() -> None:
        export_model(
            classifier, Path(folder), facts={"version": 1}, example_waveform=sound,
            expected=training_side(classifier, patches, calibration), calibration=calibration, class_ids={},
        )  # fmt: skip

    return turn


def scores(folder: str, n_batches: int, in_bfloat16: bool) -> Callable[[], float]:
    """Scores of patches by the exported model, as `predict` asks it; or with its products in bfloat16."""
    from birdtune.runtime import bfloat16
    from birdtune.training import devices

    devices.prepare_devices()
    bfloat16.use(in_bfloat16)
    model = _opened(folder)
    patches, _ = networks.patches_of(_BATCH_SIZE, 0)
    return lambda: float(np.mean([np.asarray(model.scores(patches)[0]).mean() for _ in range(n_batches)]))


def _opened(folder: str) -> Any:
    from birdtune.serving.predict import open_model

    return open_model(Path(folder))


def files(folder: str, paths: list[str]) -> Callable[[], int]:
    """`predict` on files, the model loaded before."""
    from birdtune.serving.predict import predict_files
    from birdtune.training import devices

    devices.prepare_devices()
    model = _opened(folder)
    out = Path(folder).parent / "predictions.csv"
    return lambda: predict_files([Path(path) for path in paths], model, out, batch_size=_BATCH_SIZE).windows


def reference_files(paths: list[str], backbone: str) -> Callable[[], float]:
    """The published way: resampy, log-mel in NumPy, the graph on the patches of each file."""
    from bench.frames import reference_front_end

    frames_of = reference_front_end()
    session, features, _, fetch = networks.slim_session(backbone, train="nothing")

    def scores_of(path: str) -> float:
        frames = frames_of(path)
        patches = frames[: len(frames) // 96 * 96].reshape(-1, 96, 64)
        return float(session.run(fetch, {features: patches}).mean())

    def turn() -> float:
        return float(np.mean([scores_of(path) for path in paths]))

    return turn
