"""Every setting: type, unit, default, one line of help.

    values by name (configure.py) ─▶ Config (frozen, checked);  options() ─▶ the same for people
"""

import os
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from birdtune.errors import shown

ENVIRONMENT_PREFIX = "BIRDTUNE_"

# In place of a version's number: the newest.
LATEST = "latest"

_HIDDEN_UNITS = 100


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


def _setting(default: Any, help_line: str, *, unit: str = "", unset: str = "unset", **limits: Any) -> Any:
    """A field; `unset` is what people read as the default of a setting that has none of its own."""
    extra: dict[str, Any] = {"unit": unit, "unset": unset}
    return Field(default, description=help_line, json_schema_extra=extra, **limits)


class AudioSettings(_Section):
    """Sound in."""

    resampler: Literal["soxr", "resampy"] = _setting(
        "soxr", "what brings sound to 16 kHz; resampy is VGGish's own"
    )
    short_clips: Literal["pad", "skip"] = _setting(
        "pad", "sounds shorter than a patch: pad with zeros, or skip them"
    )
    max_hours: float = _setting(48.0, "a longer file is left out", unit="h", gt=0)
    truncated: Literal["use", "refuse"] = _setting(
        "use", "recordings that break off: use what can be decoded, from 1 s or half of it on, or refuse them"
    )
    channels: Literal["best", "mix", "first", "each"] = _setting(
        "best", "of several; best: mixed where they agree, else the clearest; each: each is a recording of its own"
    )
    band_limit: float | None = _setting(
        None, "what is above is not heard, e.g. the lowest bandwidth of all recordings", unit="Hz",
        unset="the backbone's band, up to 7,500", ge=500, le=8000,
    )

    @property
    def cache_key(self) -> str:
        """Names all settings on which decoded samples depend; part of what caches are called."""
        return f"{self.resampler}-{self.channels}-{self.truncated}"


class LabelSettings(_Section):
    """Classes."""

    map: str | None = _setting(
        None,
        "label map, name to external id (.pickle .json .csv .yaml)",
        unit="path",
        unset="INPUT/bird_id_map.*",
    )
    negative_classes: str = _setting(
        "background,noise,silence,other,others,nocall,no call,no bird,no birds,negative,negatives,unknown,"
        "unknown sp,unknown sp.,background noise,ambient,ambience,ambient noise,hintergrund,rauschen,stille,unbekannt,"
        "bruit,bruit de fond,inconnu,ruido,silencio,desconocido",
        "names of classes that are no answer, separated by commas; case, `_`, `-` and blanks do not matter",
    )
    level: int = _setting(
        1, "which folder names the class: 1 is the first below the data folder, 2 the one in it", ge=1, le=10
    )
    table: str | None = _setting(
        None, "CSV `recording,label` that names the classes in place of folders", unit="path", unset="DATA/labels.csv"
    )
    columns: str | None = _setting(
        None, "what the table's columns are called, e.g. recording=filename,label=category; also split=, fold="
    )


class SplitSettings(_Section):
    """Train, validation, test."""

    file: str | None = _setting(None, "CSV `recording,split` or `recording,fold` to obey", unit="path")
    test_fold: int | None = _setting(
        None, "the fold that is test, where there are folds", unset="the last, of folders or a table of labels"
    )
    val_fold: int | None = _setting(None, "the fold that is validation", unset="the one after test-fold")
    val_fraction: float = _setting(0.15, "share of each class for validation", ge=0, lt=1)
    test_fraction: float = _setting(0.15, "share of each class for test", ge=0, lt=1)
    group_regex: str | None = _setting(
        None,
        "names a recording's source: first group, searched in its path below the class folder",
        unit="regex",
    )
    acoustic: Literal["join", "warn", "off"] = _setting(
        "warn", "recordings with nearly the same noise floor: of one source, or only pointed out, or not compared"
    )
    seed: int = _setting(1, "which of the possible splits", ge=0, lt=2**32)


class ModelSettings(_Section):
    """The network."""

    backbone: Literal["vggish", "vggish-small", "yamnet"] = _setting(
        "vggish", "backbone; yamnet computes a thirteenth; -small is for trying things out"
    )
    checkpoint: str | None = _setting(
        None,
        "backbone weights: V1/V2 file, folder or .tgz; yamnet: .h5 or .tflite; `none` trains from scratch",
        unit="path",
        unset="INPUT/vggish_model.ckpt, INPUT/yamnet.h5 or .tflite",
    )
    freeze: str = _setting("none", "not trained: none, conv, all-but-head, or up to and with a layer's name")
    head: Literal["linear", "mlp", "attention"] = _setting(
        "linear", "embeddings to classes; mlp: by a hidden layer; attention: learns which patches of a recording count"
    )
    output: Literal["softmax", "sigmoid"] = _setting("softmax", "one class a recording, or several at once")
    hidden_units: int | None = _setting(
        None, "width of the hidden layer, where the head has one", unset="100, as jibjib's", ge=1, le=65536
    )
    embedding_activation: Literal["relu", "none"] = _setting("relu", "after the last layer of the backbone")
    dropout: float = _setting(0.0, "share of embedding values dropped in training", ge=0, lt=1)


    @pydantic.field_validator("head", mode="before")
    @classmethod
    def _not_the_kind_of_scores(cls, head: Any) -> Any:
        if head in ("softmax", "sigmoid"):
            raise ValueError(
                f"that is a kind of scores: give --model.output {head}; the head itself is linear, mlp or attention"
            )
        return head

    @property
    def head_units(self) -> int:
        """Width of the head's hidden layer, 0 = it has none."""
        return 0 if self.head == "linear" else self.hidden_units or _HIDDEN_UNITS


class TrainSettings(_Section):
    """Training."""

    epochs: int = _setting(30, "passes over the training patches, at most", ge=1, le=100_000)
    batch_size: int = _setting(32, "patches a step", unit="patches", ge=1, le=65536)
    accumulate: int = _setting(1, "batches whose gradients are added before one update", ge=1, le=4096)
    precision: Literal["auto", "float32", "mixed_bfloat16", "mixed_float16"] = _setting(
        "auto", "arithmetic of the layers; auto: the fast one on this machine"
    )
    seed: int = _setting(1, "order of batches, first weights, dropout", ge=0, lt=2**32)
    learning_rate: float = _setting(1e-4, "of Adam for the backbone, at its highest", gt=0, le=10)
    head_lr_multiplier: float = _setting(10.0, "the head's learning rate, times that of the backbone", gt=0, le=10_000)
    head_warmup_epochs: int = _setting(
        0, "in which the head learns alone, before the backbone's weights move", unit="epochs", ge=0
    )
    layer_decay: float = _setting(
        1.0, "each layer of the backbone is trained with this share of the rate of the next one", gt=0, le=1
    )
    ema_decay: float = _setting(
        0.0, "weights are averaged, each update keeping this share of the average; 0: they are not", ge=0, lt=1
    )
    epsilon: float = _setting(1e-8, "of Adam, against division by zero", gt=0, le=1)
    schedule: Literal["cosine", "constant"] = _setting("cosine", "of the learning rate, after the warm-up")
    warmup_epochs: float = _setting(0.5, "rising from zero to the learning rate", unit="epochs", ge=0)
    weight_decay: float = _setting(0.0, "decoupled (AdamW), kernels only", ge=0, lt=1)
    clip_norm: float = _setting(1.0, "global norm of the gradients is cut to this; 0: never", ge=0)
    label_smoothing: float = _setting(0.0, "moved from the true class to all", ge=0, lt=1)
    class_weight_alpha: float = _setting(0.0, "classes weigh frequency^-alpha; 0: all alike", ge=0, le=2)
    focal_gamma: float = _setting(
        0.0, "patches that are known already count less: (1 - score)^gamma; 0: all alike", ge=0, le=10
    )
    sampling_power: float = _setting(
        0.0, "how often classes come: 0 as they were found, 1 all alike, 0.5 half-way", ge=0, le=1
    )
    min_samples_per_class: int = _setting(
        0, "classes with fewer are named, and come so often an epoch", unit="patches", ge=0, le=1_000_000
    )
    min_samples_action: Literal["keep", "leave-out"] = _setting("keep", "classes below train.min-samples-per-class")
    sample_weights: str | None = _setting(
        None, "CSV `recording,weight`: how much each counts in training", unit="path", unset="INPUT/quality.csv"
    )
    label_refinement: bool = _setting(
        False, "windows that do not fit their recording's label keep a share of it, found by cross-validation"
    )
    hop_frames: int | None = _setting(
        None,
        "from one training patch to the next",
        unit="frames of 10 ms",
        unset="the backbone's: 96, yamnet 48",
        ge=1,
        le=96,
    )
    jitter_frames: int = _setting(
        0, "each patch starts up to this much earlier or later, anew each epoch", unit="frames of 10 ms", ge=0, le=9600
    )
    early_stopping_patience: int = _setting(
        8, "epochs without a better validation before stopping; 0: never", unit="epochs", ge=0
    )
    checkpoint_minutes: float = _setting(
        10.0, "a checkpoint within an epoch at least this often", unit="min", gt=0
    )
    keep_checkpoints: int = _setting(2, "newest checkpoints kept, beside the best", ge=1)
    cache_gb: float = _setting(
        50.0, "of disk for what frozen layers make of the patches, computed once; 0: each epoch", unit="GB", ge=0
    )
    jit: bool = _setting(True, "compile the optimizer's update with XLA (--train.jit false if it fails)")


class AugmentSettings(_Section):
    """Augmentation of training patches; see also train.jitter-frames."""

    gain_db: float = _setting(0.0, "louder or softer by up to this", unit="dB", ge=0, le=60)
    white_noise: float = _setting(0.0, "share of patches that are given white noise", ge=0, le=1)
    pink_noise: float = _setting(0.0, "share of patches that are given pink noise (1/f)", ge=0, le=1)
    background: float = _setting(
        0.0, "share of patches mixed with one of a background class", ge=0, le=1
    )
    snr_db: float = _setting(
        5.0, "noise and background are fainter than the patch by this to this + 20 (below 0: louder)",
        unit="dB", ge=-30, le=60,
    )
    mixup: float = _setting(
        0.0, "share of patches mixed with another; sigmoid heads: both labels, softmax: shared", ge=0, le=1
    )
    time_roll: int = _setting(
        0, "each patch turned by up to this in time; what leaves it comes in again", unit="frames of 10 ms", ge=0, le=96
    )
    pitch_shift: int = _setting(0, "each patch moved up or down in pitch by up to this", unit="mel bands", ge=0, le=16)
    time_mask: int = _setting(0, "widest stretch of time masked in each patch", unit="frames of 10 ms", ge=0, le=95)
    band_mask: int = _setting(0, "widest range of pitch masked in each patch", unit="mel bands", ge=0, le=63)
    mask_with: Literal["mean", "silence"] = _setting("mean", "what masked places hold: the patch's mean, or silence")

class PrepareSettings(_Section):
    """Preparation."""

    workers: int = _setting(0, "processes that decode sound; 0: one a core", ge=0, le=1024)


class EvaluateSettings(_Section):
    """Judgement."""

    batch_size: int = _setting(64, "patches scored at a time", unit="patches", ge=1, le=65536)
    bootstrap: int = _setting(1000, "resamples behind each 95 % interval", ge=20, le=100_000)
    precision: float = _setting(
        0.9, "wanted of the answers that pass: thresholds are chosen for it", ge=0.5, lt=1
    )
    false_alarms_per_hour: float | None = _setting(
        None, "wanted at most, on background; goes before precision", unit="per h", unset="by precision", gt=0
    )
    label_issues: bool = _setting(
        True, "check labels against each other by cross-validation: suspect_labels.csv, and sounds in the report"
    )
    rare_class_ablation: bool = _setting(
        True, "where rare classes come more often or weigh more: measure what each of that did to them"
    )


class OodSettings(_Section):
    """Out-of-distribution detection."""

    target_recall: float = _setting(
        0.9,
        "share of known sounds to keep when strange ones are answered `none`; 1: nothing is strange",
        ge=0.5,
        le=1,
    )


class ExportSettings(_Section):
    """Export."""

    name: str = _setting(
        "birdtune",
        "of the model in TensorFlow Serving: letters, digits and . _ -",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$",
    )


class TuneSettings(_Section):
    """Tuning, by the command tune."""

    on: Literal["embeddings", "training"] = _setting(
        "embeddings", "heads by cross-validation on embeddings of the frozen backbone, or whole training"
    )
    trials: int = _setting(30, "settings tried, over all starts together", ge=1, le=10_000)
    minutes: float | None = _setting(
        None, "after so long no trial is begun; the same command goes on", unit="min", unset="no limit", gt=0
    )
    space: str | None = _setting(
        None,
        "what is searched, e.g. `model.head=linear|mlp, train.epochs=10..40, model.dropout`",
        unset="all that matters and is not set",
    )


class Config(_Section):
    """All settings of a run."""

    input: Path = _setting(
        Path("input"), "folder with data/, the checkpoint, the label map, job.yaml", unit="path"
    )
    output: Path = _setting(Path("output"), "folder for everything that is made", unit="path")
    data: Path | None = _setting(None, "folder of class folders", unit="path", unset="INPUT/data")
    background: Path | None = _setting(
        None, "folder of sound without any class, made a class of its own", unit="path", unset="INPUT/background"
    )
    init_from: str | None = _setting(
        None, "served model to begin from, whose columns stay: its number, latest, or its folder", unit="version|path",
        unset="from the backbone's weights",
    )
    audio: AudioSettings = AudioSettings()
    labels: LabelSettings = LabelSettings()
    split: SplitSettings = SplitSettings()
    model: ModelSettings = ModelSettings()
    train: TrainSettings = TrainSettings()
    augment: AugmentSettings = AugmentSettings()
    prepare: PrepareSettings = PrepareSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    ood: OodSettings = OodSettings()
    export: ExportSettings = ExportSettings()
    tune: TuneSettings = TuneSettings()

    @pydantic.field_validator("init_from", mode="before")
    @classmethod
    def _version_may_be_a_number(cls, version: Any) -> Any:
        return str(version) if isinstance(version, int) and not isinstance(version, bool) else version

    @pydantic.model_validator(mode="after")
    def _fractions_leave_training(self) -> "Config":
        if self.split.val_fraction + self.split.test_fraction >= 1:
            raise ValueError(
                f"split.val-fraction {self.split.val_fraction:g} and split.test-fraction "
                f"{self.split.test_fraction:g} leave nothing for training; together they must stay below 1"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _hidden_units_are_there(self) -> "Config":
        if self.model.head == "linear" and self.model.hidden_units is not None:
            raise ValueError(
                f"model.hidden-units is {self.model.hidden_units}, and a linear head has no hidden layer; give "
                "--model.head mlp, or leave the units out"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _backbone_has_its_turn(self) -> "Config":
        if self.train.head_warmup_epochs >= self.train.epochs:
            raise ValueError(
                f"train.head-warmup-epochs {self.train.head_warmup_epochs} of train.epochs {self.train.epochs} leave "
                "none for the backbone; to train the head alone, give --model.freeze all-but-head"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _labels_are_shared_once(self) -> "Config":
        if self.train.label_refinement and (self.model.head == "attention" or self.augment.mixup):
            raise ValueError(
                "train.label-refinement leaves each patch a share of its recording's label, but the attention head "
                "learns from whole recordings, and augment.mixup shares labels itself; leave one of both out"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _attention_is_not_augmented(self) -> "Config":
        if self.model.head == "attention" and self.augment != AugmentSettings():
            raise ValueError(
                "augmentation changes and mixes single patches, and the attention head learns from whole recordings; "
                "leave the settings of augment out, or give --model.head linear or mlp"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _output_outside_data(self) -> "Config":
        # realpath, because resolve() fails on links that lead in circles.
        output = Path(os.path.realpath(self.output))
        for folder in (self.data_folder, self.background or self.input / "background"):
            if output.is_relative_to(os.path.realpath(folder)):
                raise ValueError(
                    f"--output {shown(self.output)} lies in the data folder {shown(folder)}, so what is made "
                    "would be taken for recordings; give a folder outside of it"
                )
        return self

    @property
    def data_folder(self) -> Path:
        """Where the class folders are."""
        return self.data if self.data is not None else self.input / "data"

    @property
    def background_folder(self) -> Path | None:
        """Where sound of no class is, if there is any."""
        usual = self.input / "background"
        return self.background or (usual if os.path.lexists(usual) else None)

    def flat(self) -> dict[str, Any]:
        """Every setting under its full name ("train.batch-size"), JSON-able."""
        dumped = self.model_dump(mode="json")
        return {option.name: _dig(dumped, option.path) for option in options()}

    def given(self) -> frozenset[str]:
        """Names of the settings that somebody gave, at their default or not."""
        sections = {option.path[0]: getattr(self, option.path[0]) for option in options() if len(option.path) > 1}
        return frozenset(
            option.name
            for option in options()
            if option.path[-1] in (sections.get(option.path[0], self)).model_fields_set
        )

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
    default_text: str  # as a person reads it
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
            _default_text(field.default, extra["unset"]),
            field.description or "",
            section,
        )


def _default_text(default: Any, unset: str) -> str:
    if default is None:
        return unset
    return str(default).lower() if isinstance(default, bool) else str(default)


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
