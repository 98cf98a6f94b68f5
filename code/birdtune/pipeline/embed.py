"""Embeddings of files, or of the data that a run trains on.

Importing this loads TensorFlow.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from birdtune.audio.front_end import FrontEnd
from birdtune.audio.logmel import LogMel
from birdtune.audio.waveform import as_float
from birdtune.config import Config
from birdtune.data import dataset as data
from birdtune.data.batches import Windows, batch_of
from birdtune.data.dataset import Dataset
from birdtune.data.embedding_files import EmbeddedRecording, MadeBy, writing, writing_by_split
from birdtune.data.embedding_input import is_embeddings
from birdtune.data.targets import WindowTargets
from birdtune.errors import EXIT_DONE, CheckpointError, InputError, naming, shown
from birdtune.models import embedded, postprocess, registry
from birdtune.models.layer_backbone import LayerBackbone
from birdtune.pipeline import messages
from birdtune.pipeline.predict import compiled, opened, report
from birdtune.runtime.files import try_to_write, value_sha256
from birdtune.runtime.log import Journal
from birdtune.runtime.runs import newest_exported
from birdtune.runtime.signals import Interrupts
from birdtune.serving.predict import embed_files
from birdtune.serving.verify import ExportedModel
from birdtune.training import base_model, devices, served_model
from birdtune.training.checkpoints import WEIGHTS_NAME, read_arrays

Embed = Callable[[npt.NDArray[np.float32]], Any]
# Of a data set so many windows are embedded before they are written; a longer recording is embedded as a whole.
_AT_ONCE = 2048


class Embedder(NamedTuple):
    """What makes embeddings of windows."""

    function: Embed  # windows [n, window_rows, ...] float32 → embeddings [n, K]
    front_end: FrontEnd
    backbone: str  # its name
    digest: str  # as `embedded.digest`
    quantised: bool = False

    def made(self, hop_s: float | None) -> MadeBy:
        """As it stands in files of embeddings."""
        return replace(MadeBy.of(self.front_end, hop_s, self.backbone, self.digest), quantised=self.quantised)

    def with_postprocess(self, path: Path | None) -> "Embedder":
        """With AudioSet's post-processing of VGGish's embeddings behind it; None: as it is. Raises InputError."""
        if path is None:
            return self
        if not self.backbone.startswith("vggish"):
            raise InputError(f"--postprocess: is for VGGish's embeddings; these are {self.backbone}'s. Leave it out.")
        found = postprocess.read(path, "--postprocess")

        def function(windows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
            embeddings = np.asarray(self.function(windows))
            # What is broken must not become a byte like any other.
            return found(embeddings).astype(np.float32) if np.isfinite(embeddings).all() else embeddings

        return self._replace(function=function, digest=value_sha256([self.digest, found.digest]), quantised=True)


def embed(
    config: Config,
    source: Path | None,
    files: Sequence[Path],
    out: Path,
    journal: Journal,
    interrupts: Interrupts,
    kind: str = "npz",
    pca: Path | None = None,
) -> int:
    """Write the embeddings of files, by `source` or by the newest exported model of the output folder.

    Args:
        kind: of `embedding_files.ENDINGS`.
        pca: parameters of AudioSet's post-processing; None: embeddings are as the backbone makes them.
        source: a version folder of an exported model, one of birdtune's own checkpoints, or a checkpoint
            of TensorFlow in any form that `run` takes.
    """
    devices.prepare_devices()
    place = source or newest_exported(config)
    with naming("--model" if source is not None else None):
        embedder = _embedder(config, place)
    embedder = embedder.with_postprocess(pca)
    journal.say(f"embed: {shown(place)}")
    outcome = embed_files(
        files,
        embedder.function,
        out,
        front_end=embedder.front_end,
        kind=kind,
        made=embedder.made(config.train.hop_s),
        sound=config.audio,
        hop_s=config.train.hop_s,
        batch_size=devices.windows_at_once(config.evaluate.batch_size, embedder.front_end),
        longest_s=config.audio.max_hours * 3600,
        check=interrupts.check,
        called=config.as_given,
    )
    return report(outcome, config.as_given(out), journal)


def embed_data(
    config: Config, source: Path | None, out: Path, kind: str, journal: Journal, interrupts: Interrupts,
    *, by_split: bool = False, pca: Path | None = None,
) -> int:  # fmt: skip
    """Write the embeddings of the data that a run trains on, with labels and split.

    Args:
        source, kind, pca: as `embed`; None: the weights that a run begins from.
        by_split: a file for each part of the split.
    """
    if is_embeddings(config.data_folder):
        raise InputError(f"{shown(config.data_folder)}: holds embeddings, and no sound to embed. Give recordings.")
    devices.prepare_devices()
    try_to_write(out.parent)
    place = source or registry.checkpoint_path(config)
    if place is None:
        raise CheckpointError("--model.checkpoint none: a backbone without weights knows no sounds. Give its weights.")
    with naming("--model" if source is not None else None):
        embedder = _embedder(config, place)
    embedder = embedder.with_postprocess(pca)
    if kind == "find-tune-npz" and not isinstance(embedder.front_end, LogMel):
        raise InputError(
            f"--format {kind}: has log-mel beside the embeddings, and {embedder.backbone} takes none. Give --format "
            "npz, or a backbone of log-mel (vggish, yamnet)."
        )
    journal.say(f"embed: {shown(config.data_folder)} by {shown(place)}")
    dataset, store = data.prepare(config, embedder.front_end, journal, interrupts)
    dataset, store = data.recheck(config, dataset, store, journal, interrupts)
    messages.say_dataset(dataset, journal)
    size = devices.windows_at_once(config.evaluate.batch_size, embedder.front_end)
    contents = [recording.content for recording in dataset.recordings]
    windows = Windows(store, contents, store.spec.hop(config.train.hop_s))
    with (
        (writing_by_split if by_split else writing)(out, kind, embedder.made(config.train.hop_s)) as add,
        journal.progress("embeddings", len(windows), "windows") as progress,
    ):
        for recording in _embedded(embedder, dataset, windows, size, interrupts):
            add(recording)
            progress.advance(len(recording.embeddings))
    where = out.with_name(f"{out.stem}.train|val|test{out.suffix}") if by_split else out
    journal.say(f"{shown(where)}: {len(windows):,} windows of {len(contents):,} recordings")
    return EXIT_DONE


def _embedded(
    embedder: Embedder, dataset: Dataset, windows: Windows, size: int, interrupts: Interrupts
) -> Iterator[EmbeddedRecording]:
    """The recordings of a data set, one after another, as files of embeddings have them."""
    ends = np.cumsum(windows.per_recording)
    targets = WindowTargets(dataset.targets(dataset.recordings), windows)
    names = np.array(dataset.classes, object)
    first = begin = 0  # the next recording, and its first window
    while first < len(ends):
        last = max(first, int(np.searchsorted(ends, begin + _AT_ONCE, side="right")) - 1)
        found = []
        for start in range(begin, int(ends[last]), size):
            interrupts.check()
            numbers = np.arange(start, min(start + size, int(ends[last])))
            given = as_float(batch_of(windows, numbers, size).features)
            found.append(np.asarray(embedder.function(given), np.float32)[: numbers.size])
        embeddings = np.concatenate(found)
        if not np.isfinite(embeddings).all():
            raise CheckpointError("the backbone answers NaN or infinity; its weights are broken. Give others.")
        for recording, end in zip(dataset.recordings[first : last + 1], ends[first : last + 1], strict=True):
            numbers = np.arange(begin, end)
            start_s, end_s = windows.seconds(numbers)
            part, embeddings = embeddings[: numbers.size], embeddings[numbers.size :]
            yield EmbeddedRecording(
                recording.name, part, start_s, np.minimum(end_s, recording.facts.duration_s),
                tuple(tuple(names[row > 0]) for row in targets.of(numbers)[0]), recording.classes,
                dataset.places[recording.name].split, as_float(windows.features(numbers)),
            )  # fmt: skip
            begin = int(end)
        first = last + 1


def _embedder(config: Config, place: Path) -> Embedder:
    if (place / "model.json").exists():
        model = opened(place)
        return Embedder(model.embed, model.front_end, str(model.facts["backbone"]), _digest_of_model(model, place))
    if (name := registry.file_backbone(config, place)) is not None:
        given = registry.opened(place, config, name)
        graph = given.network(embedding_activation="", precision="float32", seed=None)
        weights = registry.read_weights(given, place)
        given.load(graph, weights, source=shown(place))
        digest = embedded.digest(given, weights)
        return Embedder(compiled(graph, given.front_end), given.front_end, given.name, digest)
    is_own = (place / WEIGHTS_NAME).exists()
    backbone = registry.named(config.model.backbone)
    found = None if is_own else registry.recognised(place)
    if isinstance(found, LayerBackbone) and not backbone.recognises(place):
        backbone = found  # the file shows which backbone it is of
    activation = config.model.embedding_activation
    network = backbone.network(embedding_activation=activation, precision="float32", seed=None)
    if is_own:
        variables = backbone.from_trained(read_arrays(place / WEIGHTS_NAME))
    else:
        variables = registry.read_weights(backbone, place)
    backbone.load(network, variables, source=shown(place))
    limited = backbone.limited(config.audio.band_limit)
    digest = embedded.digest(limited, variables, activation)
    return Embedder(compiled(network, limited.front_end), limited.front_end, backbone.name, digest)


def _digest_of_model(model: ExportedModel, place: Path) -> str:
    """As `embedded.digest`, of the backbone in an exported model."""
    facts = served_model.read(place, is_own=False)
    backbone = registry.BACKBONES.get(facts.facts.backbone)
    weights = base_model.read_weights(facts)
    if backbone is None:
        own = {name.removeprefix("backbone/"): array for name, array in weights.items() if name.startswith("backbone/")}
        return embedded.digest_of_graph(str(model.facts["graph_sha256"]), model.front_end, own)
    variables = backbone.from_trained(weights)
    limited = backbone.limited(model.front_end.limit_hz)
    return embedded.digest(limited, variables, facts.facts.embedding_activation)
