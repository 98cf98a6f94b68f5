"""Every setting: type, unit, default, one line of help.

    flags, environment, INPUT/job.yaml ─▶ load() ─▶ Config (frozen, checked)

The first that names a setting wins: flag > environment > job.yaml > default. Where a value came
from is remembered, so that a complaint can say which file or variable to mend. The layers are
flattened here and checked by pydantic; pydantic-settings would do the layering, but not the
provenance, nor the nearest name for an unknown one.
"""

import difflib
import os
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pydantic
import yaml
from pydantic import BaseModel, ConfigDict, Field

from birdtune.errors import CheckpointError, InputError, SettingsError, shown

CHECKPOINT_NAME = "vggish_model.ckpt"
ENVIRONMENT_PREFIX = "BIRDTUNE_"
# Variables with the prefix that belong to the image or the entrypoint, not to a setting.
_OTHER_VARIABLES = frozenset({"BIRDTUNE_IN_IMAGE"})


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


def _setting(default: Any, help_line: str, *, unit: str = "", **limits: Any) -> Any:
    return Field(default, description=help_line, json_schema_extra={"unit": unit}, **limits)


class SoundSettings(_Section):
    """Sound in."""

    resampler: Literal["soxr", "resampy"] = _setting(
        "soxr", "what brings sound to 16 kHz; resampy is VGGish's own"
    )
    short: Literal["pad", "skip"] = _setting(
        "pad", "sounds shorter than a patch: pad with zeros, or skip them"
    )
    max_hours: float = _setting(48.0, "a longer file is left out", unit="h", gt=0)


class LabelSettings(_Section):
    """Classes."""

    map: str | None = _setting(
        None, "label map, name to external id (.pickle .json .csv .yaml) [INPUT/bird_id_map.*]", unit="path"
    )


class SplitSettings(_Section):
    """Train, validation, test."""

    file: str | None = _setting(None, "CSV `recording,split` or `recording,fold` to obey", unit="path")
    test_fold: int | None = _setting(None, "the fold that is test, when the file has folds")
    val_fold: int | None = _setting(None, "the fold that is validation [the one after test-fold]")
    val_fraction: float = _setting(0.15, "share of each class for validation", ge=0, lt=1)
    test_fraction: float = _setting(0.15, "share of each class for test", ge=0, lt=1)
    group_regex: str | None = _setting(
        None,
        "names a recording's source: first group, searched in its path below the class folder",
        unit="regex",
    )
    seed: int = _setting(1, "which of the possible splits", ge=0, lt=2**32)


class ModelSettings(_Section):
    """The network."""

    backbone: Literal["vggish", "vggish-small"] = _setting("vggish", "trunk; -small is for trying things out")
    checkpoint: str | None = _setting(
        None,
        "trunk weights: V1/V2 file, folder or .tgz; `none` trains from scratch [INPUT/vggish_model.ckpt]",
        unit="path",
    )
    freeze: str = _setting("none", "not trained: none, conv, all-but-head, or up to and with a layer's name")
    head: Literal["softmax", "sigmoid"] = _setting("softmax", "one class a recording, or several at once")
    hidden_units: int = _setting(
        0, "units of a hidden layer before the classes; 0: none (jibjib: 100)", ge=0, le=65536
    )
    embedding_activation: Literal["relu", "none"] = _setting("relu", "after the last layer of the trunk")
    dropout: float = _setting(0.0, "share of embedding values dropped in training", ge=0, lt=1)


class TrainSettings(_Section):
    """Training."""

    epochs: int = _setting(30, "passes over the training patches, at most", ge=1, le=100_000)
    batch_size: int = _setting(32, "patches a step", unit="patches", ge=1, le=65536)
    accumulate: int = _setting(1, "batches whose gradients are added before one update", ge=1, le=4096)
    precision: Literal["auto", "float32", "mixed_bfloat16", "mixed_float16"] = _setting(
        "auto", "arithmetic of the layers; auto: the fast one on this machine"
    )
    seed: int = _setting(1, "order of batches, first weights, dropout", ge=0, lt=2**32)
    learning_rate: float = _setting(1e-4, "of Adam", gt=0, le=10)
    epsilon: float = _setting(1e-8, "of Adam", gt=0, le=1)
    schedule: Literal["cosine", "constant"] = _setting("cosine", "of the learning rate, after the warm-up")
    warmup_epochs: float = _setting(0.5, "rising from zero to the learning rate", unit="epochs", ge=0)
    weight_decay: float = _setting(0.0, "decoupled (AdamW), kernels only", ge=0, lt=1)
    clip_norm: float = _setting(1.0, "global norm of the gradients is cut to this; 0: never", ge=0)
    label_smoothing: float = _setting(0.0, "moved from the true class to all", ge=0, lt=1)
    class_weight_alpha: float = _setting(0.0, "classes weigh frequency^-alpha; 0: all alike", ge=0, le=2)
    hop_frames: int = _setting(96, "from one training patch to the next", unit="frames of 10 ms", ge=1, le=96)
    jitter_frames: int = _setting(
        0, "each patch starts up to this much earlier or later, anew each epoch", unit="frames of 10 ms", ge=0, le=9600
    )
    patience: int = _setting(
        8, "epochs without a better validation before stopping; 0: never", unit="epochs", ge=0
    )
    checkpoint_minutes: float = _setting(
        10.0, "a checkpoint within an epoch at least this often", unit="min", gt=0
    )
    keep: int = _setting(2, "newest checkpoints kept, beside the best", ge=1)
    jit: bool = _setting(True, "compile the optimizer's update with XLA (--train.jit false if it fails)")


class PrepareSettings(_Section):
    """Preparation."""

    workers: int = _setting(0, "processes that decode sound; 0: one a core", ge=0, le=1024)


class EvaluateSettings(_Section):
    """Judgement."""

    batch_size: int = _setting(64, "patches scored at a time", unit="patches", ge=1, le=65536)
    bootstrap: int = _setting(1000, "resamples behind each 95 % interval", ge=20, le=100_000)


class ExportSettings(_Section):
    """Export."""

    name: str = _setting(
        "birdtune", "of the model in TensorFlow Serving", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
    )


class Config(_Section):
    """All settings of a run."""

    input: Path = _setting(
        Path("input"), "folder with data/, the checkpoint, the label map, job.yaml", unit="path"
    )
    output: Path = _setting(Path("output"), "folder for everything that is made", unit="path")
    data: Path | None = _setting(None, "folder of class folders [INPUT/data]", unit="path")
    sound: SoundSettings = SoundSettings()
    labels: LabelSettings = LabelSettings()
    split: SplitSettings = SplitSettings()
    model: ModelSettings = ModelSettings()
    train: TrainSettings = TrainSettings()
    prepare: PrepareSettings = PrepareSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    export: ExportSettings = ExportSettings()

    @pydantic.model_validator(mode="after")
    def _fractions_leave_training(self) -> "Config":
        if self.split.val_fraction + self.split.test_fraction >= 1:
            raise ValueError(
                f"split.val-fraction {self.split.val_fraction:g} and split.test-fraction "
                f"{self.split.test_fraction:g} leave nothing for training; together they must stay below 1"
            )
        return self

    @property
    def data_folder(self) -> Path:
        """Where the class folders are."""
        return self.data if self.data is not None else self.input / "data"

    def checkpoint_path(self) -> Path | None:
        """Where the trunk's first weights come from; None: training from scratch was asked for.

        Raises:
            CheckpointError: no checkpoint is named and none is in its usual place.
        """
        given = self.model.checkpoint
        if given is not None:
            return None if given == "none" else Path(given)
        usual = self.input / CHECKPOINT_NAME
        for path in (usual, usual.with_name(f"{usual.name}.index")):
            if path.exists():
                return usual
        raise CheckpointError(
            f"{shown(usual)}: there is no VGGish checkpoint. Download vggish_model.ckpt (288 MB) from "
            "storage.googleapis.com/audioset/vggish_model.ckpt into the input folder, name another place with "
            "--model.checkpoint PATH, or train from scratch with --model.checkpoint none (needs far more data)."
        )

    def flat(self) -> dict[str, Any]:
        """Every setting under its full name ("train.batch-size"), JSON-able."""
        dumped = self.model_dump(mode="json")
        return {option.name: _dig(dumped, option.path) for option in options()}

    def changed(self) -> dict[str, Any]:
        """The settings that differ from their defaults."""
        defaults = Config().flat()
        return {name: value for name, value in self.flat().items() if value != defaults[name]}


@dataclass(frozen=True)
class Option:
    """One setting as a person meets it."""

    name: str  # "train.batch-size"
    path: tuple[str, ...]  # ("train", "batch_size")
    type: str
    unit: str
    default: Any
    help: str
    section: str

    @property
    def flag(self) -> str:
        """The command-line flag."""
        return f"--{self.name}"

    @property
    def variable(self) -> str:
        """The environment variable."""
        return ENVIRONMENT_PREFIX + "__".join(self.path).upper()


def options() -> list[Option]:
    """Every setting, in the order of the help text."""
    return list(_walk(Config, (), "Folders"))


def _walk(model: type[BaseModel], path: tuple[str, ...], section: str) -> Iterator[Option]:
    for key, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, _Section):
            yield from _walk(field.annotation, (*path, key), (field.annotation.__doc__ or key).rstrip("."))
            continue
        extra = typing.cast(dict[str, Any], field.json_schema_extra or {})
        where = (*path, key)
        name = ".".join(where).replace("_", "-")
        yield Option(
            name,
            where,
            _type_name(field.annotation),
            extra["unit"],
            field.default,
            field.description or "",
            section,
        )


def _type_name(annotation: Any) -> str:
    if typing.get_origin(annotation) is Literal:
        return "|".join(typing.get_args(annotation))
    if isinstance(annotation, types.UnionType):
        return _type_name(next(part for part in typing.get_args(annotation) if part is not type(None)))
    name = str(annotation.__name__)
    return {"str": "text", "Path": "path", "bool": "true|false"}.get(name, name)


def _dig(tree: Mapping[str, Any], path: Iterable[str]) -> Any:
    value: Any = tree
    for key in path:
        value = value[key]
    return value


@dataclass(frozen=True)
class _Given:
    value: Any
    origin: str


def load(
    flags: Mapping[str, Any],
    environment: Mapping[str, str] = os.environ,
    defaults: Mapping[str, Any] = types.MappingProxyType({}),
) -> Config:
    """Join all layers into one checked Config.

    Args:
        flags: settings from the command line, full name → value.
        environment: variables; those that begin with BIRDTUNE_ must name settings.
        defaults: a command's own, for what is given nowhere else.

    Raises:
        SettingsError: an unknown setting (with the nearest known one), or a value of the wrong type
            or out of range, with where it was given.
        InputError: job.yaml cannot be read or is not a mapping.
    """
    known = {option.name: option for option in options()}
    given = {name: _Given(value, f"--{name}") for name, value in flags.items()}
    for name, item in _from_environment(environment, known).items():
        given.setdefault(name, item)
    folder = Path(str(given["input"].value)) if "input" in given else Path("input")
    for name, item in _from_yaml(folder / "job.yaml", known).items():
        given.setdefault(name, item)
    for name, value in defaults.items():
        given.setdefault(name, _Given(value, name))
    tree: dict[str, Any] = {}
    for name, item in given.items():
        *sections, key = known[name].path
        branch = tree
        for section in sections:
            branch = branch.setdefault(section, {})
        branch[key] = item.value
    try:
        return Config.model_validate(tree)
    except pydantic.ValidationError as fault:
        raise SettingsError("; ".join(_complaint(error, given, known) for error in fault.errors())) from fault


def _complaint(error: Any, given: Mapping[str, _Given], known: Mapping[str, Option]) -> str:
    name = ".".join(str(part) for part in error["loc"]).replace("_", "-")
    message = str(error["msg"]).removeprefix("Value error, ")
    if name not in given:
        return message
    option = known[name]
    unit = f" {option.unit}" if option.unit else ""
    expected = message[:1].lower() + message[1:]
    return (
        f"{given[name].origin} = {shown(repr(given[name].value))}: {expected} "
        f"({name} is {option.type}{unit}: {option.help}; default {option.default})"
    )


def _from_environment(environment: Mapping[str, str], known: Mapping[str, Option]) -> dict[str, _Given]:
    by_variable = {option.variable: name for name, option in known.items()}
    found = {}
    for variable, value in environment.items():
        if not variable.startswith(ENVIRONMENT_PREFIX) or variable in _OTHER_VARIABLES:
            continue
        if variable not in by_variable:
            raise _unknown(f"environment variable {shown(variable)}", variable, by_variable)
        found[by_variable[variable]] = _Given(value, variable)
    return found


def _from_yaml(path: Path, known: Mapping[str, Option]) -> dict[str, _Given]:
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as fault:
        raise InputError(f"{shown(path)}: cannot be read ({fault.strerror}). Check its rights.") from fault
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as fault:
        first = shown(" ".join(str(fault).split())[:300])
        raise InputError(
            f"{shown(path)}: is not plain YAML ({first}). Write `section: {{name: value}}`."
        ) from fault
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise InputError(
            f"{shown(path)}: holds a {type(content).__name__}; expected `section:` with `name: value` below."
        )
    found = {}
    for name, value in _flatten(content, known):
        if name not in known:
            raise _unknown(f"{shown(path)}: setting {shown(name)}", name, known)
        if name == "input":
            raise SettingsError(f"{shown(path)}: `input` cannot be set here; this file is found through it.")
        found[name] = _Given(value, f"{name} in {shown(path)}")
    return found


def _flatten(
    content: Mapping[Any, Any], known: Mapping[str, Option], prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        name = prefix + str(key).replace("_", "-")
        if isinstance(value, dict) and name not in known:
            yield from _flatten(value, known, f"{name}.")
        else:
            yield name, value


def _unknown(what: str, name: str, known: Iterable[str]) -> SettingsError:
    return SettingsError(f"{what} is not known{nearest(name, known)}. `birdtune --help` lists all settings.")


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint at the known name that is most like `name`, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""
