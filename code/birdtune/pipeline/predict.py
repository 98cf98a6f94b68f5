"""A trained model put to use: predict, embed, and the TensorFlow 1 export.

Importing this loads TensorFlow.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from birdtune.audio.front_end import FrontEnd
from birdtune.config import Config
from birdtune.errors import EXIT_DONE, InputError, naming, shown
from birdtune.models import classifier as classifiers
from birdtune.models import registry, tf1
from birdtune.models.custom import is_saved_model
from birdtune.runtime.log import Journal
from birdtune.runtime.runs import newest_trained, versions
from birdtune.runtime.signals import Interrupts
from birdtune.serving.predict import LONG, ExportedModel, Outcome, embed_files, open_model, predict_files
from birdtune.serving.rows import Scorer
from birdtune.training import devices
from birdtune.training.checkpoints import WEIGHTS_NAME, Checkpoints, read_arrays
from birdtune.training.train import build_classifier

Embed = Callable[[npt.NDArray[np.float32]], Any]


def predict(
    config: Config,
    source: Path | None,
    files: Sequence[Path],
    out: Path,
    features: Path | None,
    journal: Journal,
    interrupts: Interrupts,
    window_s: float | None = None,
) -> int:
    """Score files with the exported model in `source`, or the newest one of the output folder.

    Args:
        window_s: as `predict_files`.
        source: a version folder of an exported model; or weights that were published with a classifier of their
            own, as YAMNet's with its 521 classes.
    """
    devices.prepare_devices()
    place = source or _newest_exported(config)
    with naming("--model" if source is not None else None):
        model = _scorer(place)
    journal.say(f"predict: {shown(place)}, {len(model.classes):,} classes")
    exported = model if isinstance(model, ExportedModel) else None
    clip_s = None if exported is None else exported.calibration_clip_s
    outcome = predict_files(
        files,
        model,
        out,
        calibration=None if exported is None else exported.calibration,
        thresholds=None if exported is None else exported.thresholds,
        ood_score=None if exported is None else exported.ood_score,
        windows_out=features,
        segment_s=window_s,
        calibration_clip_s=clip_s,
        sound=config.audio,
        batch_size=config.evaluate.batch_size,
        longest_s=config.audio.max_hours * 3600,
        check=interrupts.check,
    )
    code = _report(outcome, out, journal)
    if outcome.long and clip_s is not None:
        journal.say(_long(outcome.long, clip_s))
    return code


def _long(n: int, calibration_clip_s: float) -> str:
    """What to do about files that are too long for one row."""
    who, rows = ("1 file is", "its row is") if n == 1 else (f"{n:,} files are", "their rows are")
    # Half of the median: a song of that length, wherever it begins, then fills a window from end to end. Windows with
    # two songs are rejected as unknown: of 48 clips among others, 45 were found so, and 37 by windows of their length.
    window_s = max(1.0, float(f"{calibration_clip_s / 2:.2g}"))
    return (
        f"{who} more than {LONG:g} times longer than the recordings that the model was calibrated on (median "
        f"{calibration_clip_s:.3g} s), and {rows} about all of it. `--window {window_s:g}` scores each window."
    )


def embed(
    config: Config,
    source: Path | None,
    files: Sequence[Path],
    out: Path,
    journal: Journal,
    interrupts: Interrupts,
) -> int:
    """Write the embeddings of files, by `source` or by the newest exported model of the output folder.

    Args:
        source: a version folder of an exported model, one of birdtune's own checkpoints, or a checkpoint
            of TensorFlow in any form that `run` takes.
    """
    devices.prepare_devices()
    place = source or _newest_exported(config)
    with naming("--model" if source is not None else None):
        function, front_end = _embedder(config, place)
    journal.say(f"embed: {shown(place)}")
    outcome = embed_files(
        files,
        function,
        out,
        front_end=front_end,
        sound=config.audio,
        hop_s=config.train.hop_s,
        batch_size=config.evaluate.batch_size,
        longest_s=config.audio.max_hours * 3600,
        check=interrupts.check,
    )
    return _report(outcome, out, journal)


def _report(outcome: Outcome, out: Path, journal: Journal) -> int:
    """Report the files: those used, the silent and those not used are as many as were given."""
    for problem in outcome.problems:
        kind = "used in part" if problem.in_part else "used" if problem.is_used else "not used"
        if outcome.silent and problem.problem == "silent":
            kind = "silent"
        journal.say(f"  {kind}: {problem.name}: {problem.problem}, {problem.detail}")
    journal.say(
        f"{shown(out)}: {outcome.windows:,} windows of {outcome.files:,} files"
        + (f" ({outcome.in_part:,} of them in part)" if outcome.in_part else "")
        + (f", {outcome.silent:,} silent" if outcome.silent else "")
        + f", {outcome.unused:,} not used"
    )
    if not outcome.files + outcome.silent:
        raise InputError("None of the files could be used; the reasons stand above.")
    return EXIT_DONE


def _newest_exported(config: Config) -> Path:
    for version in reversed(versions(config.output)):
        folder = config.output / "model" / config.export.name / str(version)
        if (folder / "model.json").exists():
            return folder
    raise InputError(
        f"{shown(config.output)}: there is no exported model in this output folder. Run `./entrypoint.sh run` first, "
        "give another --output, or name a model's folder with --model (e.g. output/model/birdtune/1)."
    )


def _scorer(place: Path) -> Scorer:
    backbone = registry.recognised(place) if place.is_file() else None
    if backbone is None or backbone.published is None:
        return open_model(place)
    weights = registry.read_weights(backbone, place)
    return classifiers.published(backbone, weights, backbone.published.read_classes(place))


def _embedder(config: Config, place: Path) -> tuple[Embed, FrontEnd]:
    if (place / "model.json").exists():
        model = open_model(place)
        return model.embed, model.front_end
    if is_saved_model(place):
        given = registry.opened(place, config)
        graph = given.network(embedding_activation="", precision="float32", seed=None)
        return lambda windows: graph(windows), given.front_end
    is_own = (place / WEIGHTS_NAME).exists()
    backbone = registry.named(config.model.backbone)
    if not is_own and (found := registry.recognised(place)) is not None and not backbone.recognises(place):
        backbone = found  # the file shows which backbone it is of
    network = backbone.network(
        embedding_activation=config.model.embedding_activation, precision="float32", seed=None
    )
    if is_own:
        variables = backbone.from_trained(read_arrays(place / WEIGHTS_NAME))
    else:
        variables = registry.read_weights(backbone, place)
    backbone.load(network, variables, source=shown(place))
    return lambda windows: network(windows), backbone.limited(config.audio.band_limit).front_end


def export_slim_model(config: Config, journal: Journal) -> None:
    """Write the newest trained model as a TensorFlow 1 graph, checkpoint and SavedModel, under output/slim/<v>."""
    version, record = newest_trained(config.output)
    arrays = Checkpoints(config.output / "checkpoints" / str(version), config.train.keep_checkpoints).best()
    classes = tuple(record["classes"])
    classifier = build_classifier(config, classes, "float32", seed=None)
    classifiers.load_weights(classifier, arrays, source=f"version {version}")
    folder = config.output / "slim" / str(version)
    tf1.export_slim(classifier, folder)
    journal.say(f"slim    {shown(folder)}")
