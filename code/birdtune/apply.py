"""A trained model put to use: predict, embed, and the TensorFlow 1 export.

Importing this loads TensorFlow.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from birdtune.config import Config
from birdtune.errors import EXIT_DONE, InputError, shown
from birdtune.events import Interrupts, Journal
from birdtune.learning import build_classifier
from birdtune.model import classifier as classifiers
from birdtune.model import network, slim, trunks
from birdtune.model.trunks import TRUNKS
from birdtune.results.predict import ExportedModel, Outcome, Scorer, embed_files, open_model, predict_files
from birdtune.run import newest_trained, versions
from birdtune.sound.logmel import FrontEnd
from birdtune.training import devices
from birdtune.training.checkpoints import WEIGHTS_NAME, Checkpoints, read_arrays

Embed = Callable[[npt.NDArray[np.float32]], Any]


def predict(
    config: Config,
    source: Path | None,
    files: Sequence[Path],
    out: Path,
    patches: Path | None,
    journal: Journal,
    interrupts: Interrupts,
) -> int:
    """Score files with the exported model in `source`, or the newest one of the output folder.

    Args:
        source: a version folder of an exported model; or weights that were published with a classifier of their
            own, as YAMNet's with its 521 classes, to learn what these hear in some sounds.
    """
    devices.prepare_devices()
    place = source or _newest_exported(config)
    model = _scorer(place)
    journal.say(f"predict: {shown(place)}, {len(model.classes):,} classes")
    outcome = predict_files(
        files,
        model,
        out,
        calibration=model.calibration if isinstance(model, ExportedModel) else None,
        thresholds=model.thresholds if isinstance(model, ExportedModel) else None,
        strangeness=model.strangeness if isinstance(model, ExportedModel) else None,
        patches_out=patches,
        resampler=config.sound.resampler,
        batch_size=config.evaluate.batch_size,
        longest_s=config.sound.max_hours * 3600,
        check=interrupts.check,
    )
    return _tell(outcome, out, journal)


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
    function, front_end = _embedder(config, place)
    journal.say(f"embed: {shown(place)}")
    outcome = embed_files(
        files,
        function,
        out,
        front_end=front_end,
        resampler=config.sound.resampler,
        hop_frames=config.train.hop_frames,
        batch_size=config.evaluate.batch_size,
        longest_s=config.sound.max_hours * 3600,
        check=interrupts.check,
    )
    return _tell(outcome, out, journal)


def _tell(outcome: Outcome, out: Path, journal: Journal) -> int:
    for problem in outcome.problems:
        journal.say(f"  not used: {problem.name}: {problem.problem}, {problem.detail}")
    journal.say(
        f"{shown(out)}: {outcome.patches:,} patches of {outcome.files:,} files, {len(outcome.problems):,} not used"
    )
    if not outcome.files:
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
    trunk = trunks.recognised(place) if place.is_file() else None
    if trunk is None or trunk.published is None:
        return open_model(place)
    return classifiers.published(trunk, trunks.read_weights(trunk, place), trunk.published.read_classes(place))


def _embedder(config: Config, place: Path) -> tuple[Embed, FrontEnd]:
    if (place / "model.json").exists():
        model = open_model(place)
        return model.embed, model.front_end
    is_own = (place / WEIGHTS_NAME).exists()
    trunk = TRUNKS[config.model.backbone]
    if not is_own and (found := trunks.recognised(place)) is not None and not trunk.recognises(place):
        trunk = found  # the file itself says what it is of
    net = network.build_trunk(
        trunk.name,
        embedding_activation=config.model.embedding_activation,
        precision="float32",
        seed=None,
    )
    if is_own:
        variables = network.checkpoint_variables(trunk.name, read_arrays(place / WEIGHTS_NAME))
    else:
        variables = trunks.read_weights(trunk, place)
    network.load_trunk(net, variables, source=shown(place))
    return lambda patches: net(patches), trunk.front_end


def export_slim_model(config: Config, journal: Journal) -> None:
    """Write the newest trained model as a TensorFlow 1 graph, checkpoint and SavedModel, under output/slim/<v>."""
    version, record = newest_trained(config.output)
    arrays = Checkpoints(config.output / "checkpoints" / str(version), config.train.keep).best()
    classes = tuple(record["classes"])
    classifier = build_classifier(config, classes, "float32", seed=None)
    classifiers.load_weights(classifier, arrays, source=f"version {version}")
    folder = config.output / "slim" / str(version)
    slim.export_slim(classifier, folder)
    journal.say(f"slim    {shown(folder)}")
