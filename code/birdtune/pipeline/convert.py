"""The newest model of the output folder in another format, beside its SavedModel.

    model/<name>/<v> or candidates/<v>, recordings of its test part ─▶ convert_model ─▶ output/tflite|onnx|keras|h5/<v>
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from birdtune.audio import decode
from birdtune.audio.faults import SoundError
from birdtune.audio.front_end import FrontEnd
from birdtune.config import Config
from birdtune.errors import InputError, shown
from birdtune.models import files, registry
from birdtune.models.file_backbone import FileBackbone
from birdtune.models.labels_file import are_named
from birdtune.models.published_names import Names
from birdtune.runtime.files import read_csv, read_json
from birdtune.runtime.log import Journal
from birdtune.runtime.runs import newest_trained
from birdtune.runtime.signals import Interrupts
from birdtune.runtime.text import count
from birdtune.serving.convert import FORMATS, convert

_WINDOWS = 32
# Where in a recording a window is taken: behind the silence with which many begin.
_START_S = 1.0


def convert_model(config: Config, kind: str, journal: Journal, interrupts: Interrupts) -> None:
    """Write the newest trained model as one of `FORMATS` under output/<kind>/<v>. Raises as `convert`."""
    version, _ = newest_trained(config.output)
    places = [config.output / "model" / config.export.name, config.output / "candidates"]
    source = next((place / str(version) for place in places if (place / str(version) / "model.json").is_file()), None)
    front_end = None if source is None else registry.read_front_end(read_json(source / "model.json")["front_end"])
    if source is None or front_end is None:
        raise InputError(
            f"{shown(config.output)}: version {version} has no exported model that this birdtune reads. Run "
            "`./entrypoint.sh export` again with the settings that it was trained with."
        )
    facts = read_json(source / "model.json")
    if facts.get("context_windows"):
        raise InputError(
            f"--format {kind}: takes a window at a time, and --model.head {facts['head']} scores it by those around "
            "it. Use the SavedModel, or train another head."
        )
    published = _published(config, facts["classes"]) if kind == "tflite" and facts["backbone"] in files.NAMES else {}
    inputs, what = _inputs(config, version, front_end, interrupts)
    folder = config.output / kind / str(version)
    found = convert(source, folder, kind, inputs, published=published, check=interrupts.check)
    largest = found["verification"]["difference"]
    journal.say(f"{kind:<7} {shown(folder / found['file'])}")
    if "description" in found:
        journal.say(f"{'':<7} {shown(folder / found['description'])}: of its layers, for keras.models.model_from_json")
    journal.say(f"  run in a fresh process with {len(inputs):,} {what}, its scores differ by at most {largest:.0e}")
    for left_out in not_held(kind, facts):
        journal.warn(left_out)


def _published(config: Config, classes: Sequence[str]) -> dict[str, str]:
    """Class → its label in the list that was published with the backbone, of those that have one."""
    backbone = registry.sound_backbone(config)
    if not isinstance(backbone, FileBackbone) or backbone.published is None:
        return {}
    labels = backbone.published.read_classes(backbone.path)
    columns = Names(labels).only(classes) if are_named(labels) else {}
    return {name: labels[column] for name, column in columns.items()}


def not_held(kind: str, facts: Mapping[str, Any]) -> Iterator[str]:
    """What a file does not hold of its model, in sentences.

    Args:
        kind: one of `FORMATS`.
        facts: the model's model.json.
    """
    title = FORMATS[kind].title
    if facts.get("backbone_file"):
        yield (
            f"The {title} file holds the head alone and takes embeddings: the backbone is an ONNX file, "
            f"{facts['backbone_file']['file']} in the folder of the SavedModel."
        )
    if facts.get("published"):
        yield (
            f"The {title} file scores the model's own {count(len(facts['classes']), 'class')} alone. Only the "
            f"SavedModel has the {count(facts['published']['n_kept'], 'published class')} that are kept "
            "(--model.keep-classes)."
        )


def _inputs(
    config: Config, version: int, front_end: FrontEnd, interrupts: Interrupts
) -> tuple[npt.NDArray[np.float32], str]:
    """What to verify with [n, ...], and what it is: windows of recordings where there are any."""
    rng = np.random.default_rng(0)
    if not front_end.has_sound:
        made = np.abs(rng.normal(0, 1, (_WINDOWS, *front_end.window_shape)))
        return made.reshape(_WINDOWS, -1).astype(np.float32), "made embeddings"
    found = list[npt.NDArray[np.float32]]()
    for name in _test_recordings(config, version):
        interrupts.check()
        with contextlib.suppress(SoundError):
            waveform = decode.read(
                config.data_folder / name, config.audio, rate_hz=front_end.rate_hz, start_s=_START_S,
                longest_s=front_end.receptive_s,
            )  # fmt: skip
            found.append(np.pad(waveform, (0, max(0, front_end.window_samples - waveform.size))))
        if len(found) == _WINDOWS:
            break
    if found:
        return np.stack([waveform[: front_end.window_samples] for waveform in found]), "windows of recordings"
    noise = rng.normal(0, 1, (_WINDOWS, front_end.window_samples)) * rng.uniform(0.001, 0.3, (_WINDOWS, 1))
    return noise.astype(np.float32), "windows of made sound"


def _test_recordings(config: Config, version: int) -> Iterator[str]:
    """Names of a version's recordings, those of test before all others."""
    path = config.output / "logs" / str(version) / "split.csv"
    rows = read_csv(path) if path.is_file() else []
    yield from (row["recording"] for row in sorted(rows, key=lambda row: row["split"] != "test"))
