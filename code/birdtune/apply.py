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
from birdtune.model import classifier as classifiers
from birdtune.model import slim, vggish
from birdtune.results.predict import ExportedModel, Outcome, embed_files, open_model, predict_files
from birdtune.run import newest_trained, versions
from birdtune.stages import build_classifier
from birdtune.training import devices
from birdtune.training.checkpoints import Checkpoints

Embed = Callable[[npt.NDArray[np.float32]], Any]


def predict(
    config: Config,
    files: Sequence[Path],
    out: Path,
    patches: Path | None,
    journal: Journal,
    interrupts: Interrupts,
) -> int:
    """Score files with the newest exported model, or the one named by --model.checkpoint."""
    devices.prepare_devices()
    model, place = _exported(config)
    journal.say(f"predict: {shown(place)}")
    outcome = predict_files(
        files,
        model,
        out,
        patches_out=patches,
        resampler=config.sound.resampler,
        batch_size=config.evaluate.batch_size,
        longest_s=config.sound.max_hours * 3600,
        check=interrupts.check,
    )
    return _tell(outcome, out, journal)


def embed(config: Config, files: Sequence[Path], out: Path, journal: Journal, interrupts: Interrupts) -> int:
    """Write the embeddings of files, by the newest model or by the trunk of --model.checkpoint."""
    devices.prepare_devices()
    function, source = _embedder(config)
    journal.say(f"embed: {source}")
    outcome = embed_files(
        files,
        function,
        out,
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


def _exported(config: Config) -> tuple[ExportedModel, Path]:
    """The exported model that the settings mean, and where it is."""
    given = config.model.checkpoint
    if given is not None and given != "none":
        return open_model(Path(given)), Path(given)
    for version in reversed(versions(config.output)):
        folder = config.output / "model" / config.export.name / str(version)
        if (folder / "model.json").exists():
            return open_model(folder), folder
    raise InputError(
        f"{shown(config.output)}: there is no exported model in this output folder. Run `birdtune run` first, give "
        "another --output, or name a model's folder with --model.checkpoint (e.g. output/model/birdtune/1)."
    )


def _embedder(config: Config) -> tuple[Embed, str]:
    given = config.model.checkpoint
    path = config.checkpoint_path() if given is not None else None
    if path is None or (path / "model.json").exists():
        model, place = _exported(config)
        return lambda patches: model.scores(patches)[1], shown(place)
    trunk = vggish.build_trunk(
        config.model.backbone,
        embedding_activation=config.model.embedding_activation,
        precision="float32",
        seed=None,
    )
    vggish.load_trunk(trunk, slim.read_checkpoint(path), source=shown(path))
    return trunk, shown(path)


def export_slim_model(config: Config, journal: Journal) -> None:
    """Write the newest trained model as a TensorFlow 1 graph, checkpoint and SavedModel, under output/slim/<v>."""
    version, record = newest_trained(config.output)
    arrays, _ = Checkpoints(config.output / "checkpoints" / str(version), config.train.keep).best()
    classes = tuple(record["classes"])
    classifier = build_classifier(config, classes, "float32", seed=None)
    classifiers.load_weights(classifier, arrays, source=f"version {version}")
    folder = config.output / "slim" / str(version)
    slim.export_slim(classifier, folder)
    journal.say(f"slim    {shown(folder)}")
