"""The served model that a run begins from: found, its columns kept, its weights read back.

    --init-from ─▶ find ─▶ ServedModel ─▶ with_columns ─▶ Dataset;  read_weights ─▶ arrays by name

The weights are those of the SavedModel: the best epoch's in float32, the very ones that are in service, and there when
checkpoints were deleted. Their SHA-256 must be the one that model.json and the run's record have.
"""

import contextlib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from birdtune.config import LATEST, Config
from birdtune.data.dataset import Dataset
from birdtune.data.embedding_input import is_embeddings
from birdtune.data.labels import refuse_no_answer
from birdtune.errors import CheckpointError, InputError, SettingsError, shown
from birdtune.evaluation import class_alignment
from birdtune.evaluation.ood import OodModel
from birdtune.models import files, head_start, published, saved_model
from birdtune.models.head_start import HeadStart
from birdtune.models.known import OWN, Origin
from birdtune.models.registry import BACKBONES, backbone_of
from birdtune.models.weights import verify_once
from birdtune.runtime.files import read_json
from birdtune.runtime.runs import newest_version, read_record
from birdtune.training.checkpoints import read_arrays
from birdtune.training.served_model import (
    BEFORE_REFIT,
    ServedModel,
    is_number,
    of_folder,
    of_number,
    read,
    served_models,
    under_way,
)

_SETTING = "--init-from"


def settled(config: Config) -> tuple[Config, list[str]]:
    """The settings with the backbone of the base model where they name none, and a sentence about that.

    Of a model of this output folder the file of the backbone as well, and what was said of it, as it was trained with.
    """
    wanted = config.init_from
    if wanted is None or "model.backbone" in config.given() or is_embeddings(config.data_folder):
        return config, []
    models = {number: path for number, path in served_models(config).items() if not under_way(config, number)}
    number = max(models, default=None) if wanted == LATEST else int(wanted) if is_number(wanted) else None
    folder = Path(wanted) if wanted != LATEST and number is None else models.get(number or 0)
    facts = (read_json(folder / "model.json") or {}) if folder is not None else {}
    name = facts.get("backbone") if isinstance(facts, dict) else None
    if name not in (*BACKBONES, *files.NAMES):
        return config, []  # what is wrong with it shows when it is read
    config = config.with_model(backbone=str(name))
    before = (read_record(config.output, number) or {}).get("settings", {}) if number is not None else {}
    for key in ("checkpoint", "sample_rate_hz", "window_s", "embedding_output"):
        value = before.get(f"model.{key.replace('_', '-')}")
        is_there = value is not None and (key != "checkpoint" or os.path.lexists(value))
        if is_there and f"model.{key.replace('_', '-')}" not in config.given():
            config = config.with_model(**{key: value})
    title = f"version {number}" if number is not None else f"the model in {shown(wanted)}"
    return config, [f"{_SETTING} {shown(wanted)}: {title} has the backbone {name}: --model.backbone {name}"]


def find(config: Config) -> list[ServedModel]:
    """What `--init-from` may mean: nothing, one model, or two of which the first counts if the run goes on.

    With `latest` there are two: a run that began from the newest version must, when it is started again, not begin
    from what it has made of it.

    Raises:
        InputError: there is no such model, or the version is under way.
        CheckpointError: the model is damaged.
        SettingsError: it is another network than the settings ask for.
    """
    wanted = config.init_from
    if wanted is None:
        return []
    if wanted == LATEST:
        return _latest(config)
    number = is_number(wanted)
    found = of_number(config, _SETTING, int(wanted)) if number else of_folder(config, _SETTING, Path(wanted))
    require_fit(found, config)
    return [found]


def _latest(config: Config) -> list[ServedModel]:
    models = {number: path for number, path in served_models(config).items() if not under_way(config, number)}
    found: list[ServedModel] = []
    record = read_record(config.output, newest_version(config.output)) or {}
    row = record.get("init_from")
    if isinstance(row, dict) and row.get("folder") is None and row.get("version") in models:
        before = read(models[row["version"]], is_own=True)
        with contextlib.suppress(SettingsError):  # then the run that began from it is not this one
            require_fit(before, config)
            found.append(before)
    if not models:
        raise InputError(
            f"{_SETTING} {LATEST}: there is no exported model in {shown(config.output / 'model')} yet. Train the "
            f"first version without {_SETTING}, or give the folder of a model."
        )
    newest = read(models[max(models)], is_own=True)
    require_fit(newest, config)
    return [*found, newest]


def require_fit(base: ServedModel, config: Config) -> None:
    """Refuse settings of another network than the base model's, and a class that no model may have.

    Raises:
        SettingsError: naming each with both values, and what to do.
    """
    facts, wanted = base.facts, config.model
    pairs: dict[str, tuple[Any, Any]] = {
        "model.backbone": (facts.backbone, backbone_of(config).name),
        "model.head": (facts.head, wanted.head),
        "model.output": (facts.scores, facts.scores if wanted.output == "auto" else wanted.output),
        "model.embedding-activation": (facts.embedding_activation, wanted.embedding_activation),
    }
    if facts.head == wanted.head:
        # Of an ensemble it begins from the first member.
        before = facts.hidden_units if facts.hidden_units_before is None else facts.hidden_units_before
        pairs["model.hidden-units"] = (before, wanted.head_units)
        pairs["model.prototypes"] = (facts.prototypes, wanted.head_prototypes)
        pairs["model.context-windows"] = (facts.context_windows, wanted.context)
    others = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    if others:
        listed = "; ".join(f"{name} is {theirs} there and {ours} here" for name, (theirs, ours) in others.items())
        flags = " ".join(f"--{name} {theirs}" for name, (theirs, _) in others.items())
        raise SettingsError(
            f"{_SETTING}: {base.title} is another network than the settings ask for: {shown(listed)}. To begin "
            f"from it, give {shown(flags)}; to train another network, leave {_SETTING} out."
        )
    backbone = backbone_of(config)
    if facts.graph_sha256 is not None and facts.graph_sha256 != backbone.graph_sha256:
        given = f"another SavedModel than --model.checkpoint {shown(str(config.model.checkpoint))}"
        if not backbone.front_end.has_sound:
            given = f"embeddings of another backbone than those in {shown(config.data_folder)}"
        raise SettingsError(
            f"{_SETTING}: {base.title} was trained on {given}. Give that one, or leave {_SETTING} out."
        )
    theirs, ours = facts.front_end.get("limit_hz"), config.audio.band_limit
    if theirs != ours:
        limit = shown(str(theirs)[:20])
        give = "leave --audio.band-limit out" if theirs is None else f"give --audio.band-limit {limit}"
        raise SettingsError(
            f"{_SETTING}: {base.title} is given sound up to {limit if theirs else 'the end of its band'} Hz, "
            f"and the settings ask for {ours or 'the end of its band'} Hz. To begin from it, {give}."
        )
    where = f"{_SETTING}: {base.title}"
    refuse_no_answer(base.classes, config.labels.negative_classes, where, "Begin from another model, or from none")


def origin(config: Config, base: ServedModel | None) -> Origin:
    """Where the backbone's weights come from that a run begins with; those of a base model keep their origin."""
    if base is not None:
        return base.facts.backbone_origin
    return OWN if config.model.checkpoint == "none" else backbone_of(config).origin


def with_columns(config: Config, dataset: Dataset, base: ServedModel | None) -> Dataset:
    """The dataset with the columns of the base model, if there is one."""
    if base is None:
        return dataset
    # Embeddings of another backbone cannot be compared with what the base model knew of classes without recordings.
    forgets = config.model.freeze_point != "all-but-head" and config.ood.target_recall < 1
    return class_alignment.keep(
        dataset, base.classes, base.class_ids, config.labels.negative_classes, base.title,
        forgets=forgets, learnt=base.learnt(),
    )  # fmt: skip


# ---- its weights ---------------------------------------------------------------------------------


def verify(base: ServedModel, config: Config, *, remember: bool) -> None:
    """Read the weights once, and check that they are whole; that they are is remembered in the cache.

    Raises:
        CheckpointError: they are damaged, or not those of which model.json speaks.
        RetryableError: the storage fails.
    """
    facts = base.facts

    def read_once() -> None:
        saved_model.verify(base.folder, facts.weights, facts.weights_sha256)

    if not remember:
        read_once()
        return
    files = sorted(path for path in base.folder.rglob("*") if path.is_file())
    of = {"weights_sha256": facts.weights_sha256}
    verify_once(config.output / "cache" / "init-from.json", of, files, read_once)


def require_published(base: ServedModel, config: Config) -> None:
    """Refuse a base model that the published classifier does not fit, where published classes are kept.

    Raises:
        SettingsError: its backbone was trained.
        CheckpointError: as `verify`, which must have seen it.
    """
    if config.model.keep_classes is not None:
        published.require_backbone(config, read_weights(base), base.title)


def find_head_start(config: Config, classes: Sequence[str], base: ServedModel | None) -> HeadStart | None:
    """Which classes begin from a published classifier: with a base model of those that it lacks. None: none.

    Raises:
        SettingsError: as `head_start.find`; or published weights are asked for, and the base model's backbone was
            trained, so that they do not fit it.
        CheckpointError: as `verify`, which must have seen it.
    """
    if base is None:
        return head_start.find(config, classes)
    start = head_start.find(config, classes, base.title, len(base.classes))
    if start is None or not start.columns or published.is_backbone_of(config, read_weights(base)):
        return start
    if config.model.head_weights == "published":
        raise SettingsError(
            f"--model.head-weights published: the backbone of {base.title} was trained, and the classifier that "
            f"{start.backbone} was published with does not fit it. Leave the setting out, or begin from another model."
        )
    return replace(start, columns={}, labels={}, knows_all=False, has_changed=True)


def read_weights(base: ServedModel) -> saved_model.Arrays:
    """The weights by name, as `classifier.weights` gives them; loads TensorFlow. Raises as `verify`.

    The head is the one that has not learnt from validation recordings, if there was a second training or an ensemble.
    """
    facts = base.facts
    found = saved_model.read(base.folder, facts.weights, facts.weights_sha256)
    return found if facts.before_refit is None else found | _head_before_refit(base, found)


def _head_before_refit(base: ServedModel, served: saved_model.Arrays) -> saved_model.Arrays:
    from birdtune.models.classifier import weights_sha256

    path = base.folder / BEFORE_REFIT
    head = read_arrays(path)
    if weights_sha256(head) != base.facts.before_refit or not served.keys() >= head.keys():
        raise CheckpointError(
            f"{shown(path)}: is not the head that was exported. Copy or export the model again, or begin from another."
        )
    return head


def read_ood_model(base: ServedModel) -> OodModel | None:
    """Statistics of its training embeddings, if it rejects unknown sounds. Raises as `verify`."""
    return saved_model.read_ood_model(base.folder) if base.scale is not None else None
