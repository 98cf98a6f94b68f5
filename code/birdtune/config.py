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
_WIDEST = 65_536
_PROTOTYPES = 3

_WHERE_GIVEN = (
    "Each is a flag (`--train.epochs 5`), an environment variable (`BIRDTUNE_TRAIN__EPOCHS=5`) and a key of\n"
    "`input/job.yaml` (`train: {epochs: 5}`). The first of these that names it wins. Relative paths in `job.yaml`\n"
    "begin at the input folder."
)


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


def _setting(default: Any, help_line: str, *, unit: str = "", unset: str = "unset", **limits: Any) -> Any:
    """A field; `unset` is what people read as the default of a setting that has none of its own."""
    extra: dict[str, Any] = {"unit": unit, "unset": unset}
    return Field(default, description=help_line, json_schema_extra=extra, **limits)


class AudioSettings(_Section):
    """Audio."""

    resampler: Literal["soxr", "resampy"] = _setting(
        "soxr", "resampling library; resampy is the one VGGish was trained with"
    )
    short_clips: Literal["pad", "skip"] = _setting(
        "pad", "recordings shorter than a window: pad with zeros, or leave out"
    )
    max_hours: float = _setting(48.0, "longer files are left out", unit="h", gt=0)
    truncated: Literal["use", "refuse"] = _setting(
        "use", "recordings that break off: use what decodes (if 1 s or half of it does), or leave out"
    )
    channels: Literal["best", "mix", "first", "each"] = _setting(
        "best", "several channels: mix those that agree, else take the best; mix all; the first; or each as a recording"
    )
    band_limit: float | None = _setting(
        None, "remove what is above, e.g. above the lowest bandwidth of all recordings", unit="Hz",
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
        "classes that are never a decision, separated by commas; case, `_`, `-` and blanks do not matter",
    )
    level: int = _setting(
        1, "depth of the class folders: 1 is the first level below the data folder", ge=1, le=10
    )
    table: str | None = _setting(
        None,
        "CSV `recording,label` or `recording,start_s,end_s,label` in place of class folders",
        unit="path",
        unset="DATA/labels.csv",
    )
    columns: str | None = _setting(
        None,
        "names of the table's columns, e.g. recording=filename,label=category; also start_s=, end_s=, split=, fold=",
    )


class SplitSettings(_Section):
    """Train, validation, test."""

    file: str | None = _setting(
        None, "CSV `recording,split` or `recording,fold` that sets the split", unit="path"
    )
    test_fold: int | None = _setting(
        None, "test fold, where there are folds", unset="the last, of folders or a table of labels"
    )
    val_fold: int | None = _setting(None, "validation fold", unset="the one after test-fold")
    val_fraction: float = _setting(0.15, "share of each class for validation", ge=0, lt=1)
    test_fraction: float = _setting(0.15, "share of each class for test", ge=0, lt=1)
    group_regex: str | None = _setting(
        None,
        "source recording: first group of this pattern, searched in the path below the class folder",
        unit="regex",
    )
    acoustic: Literal["join", "warn", "off"] = _setting(
        "warn", "recordings with nearly the same noise floor: join as one source, warn, or do not compare"
    )
    seed: int = _setting(1, "seed of the split", ge=0, lt=2**32)


class ModelSettings(_Section):
    """The network."""

    backbone: Literal["vggish", "vggish-small", "yamnet", "birdnet", "perch", "custom"] = _setting(
        "vggish",
        "what turns sound into embeddings; vggish-small is for trials; custom: any model that takes a waveform",
        unset="the one whose weights lie in INPUT, else vggish",
    )
    checkpoint: str | None = _setting(
        None,
        "weights: V1/V2 file, folder or .tgz; yamnet: .h5 or .tflite; .tflite or SavedModel; `none`: from scratch",
        unit="path",
        unset="INPUT/vggish_model.ckpt, INPUT/yamnet.h5 or .tflite",
    )
    sample_rate_hz: int | None = _setting(
        None, "of the waveform that a custom model takes", unit="Hz", ge=1000, le=400_000
    )
    window_s: float | None = _setting(
        None, "of waveform that a custom model takes at a time", unit="s", unset="as it says itself", gt=0, le=60
    )
    embedding_output: str | None = _setting(
        None, "output of a custom model that is its embedding", unset="found by its shape and name"
    )
    freeze: str = _setting(
        "auto", "what is not trained: none, conv, all-but-head, all layers up to the one named; auto: by backbone"
    )
    head: Literal["linear", "mlp", "attention", "prototype"] = _setting(
        "linear", "from embeddings to classes; mlp: with a hidden layer; attention: learns which windows count; "
        "prototype: by similarity to learnt examples",
    )
    output: Literal["auto", "softmax", "sigmoid"] = _setting(
        "auto", "one class a recording (softmax), or each class on its own (sigmoid); auto: as the labels are"
    )
    hidden_units: str | int | None = _setting(
        None, "width of the hidden layer (mlp, attention); of several, one after another (mlp), e.g. 64,32", unset="100"
    )
    prototypes: int | None = _setting(
        None, "of each class (prototype)", unset=str(_PROTOTYPES), ge=1, le=1000
    )
    embedding_activation: Literal["relu", "none"] = _setting(
        "relu", "activation after the backbone's last layer"
    )
    dropout: float = _setting(0.0, "share of embedding values dropped in training", ge=0, lt=1)
    keep_classes: str | None = _setting(
        None, "published classes of a frozen backbone to serve as well: all, names with commas, or a file of names",
        unit="names|path", unset="none",
    )


    @pydantic.field_validator("head", mode="before")
    @classmethod
    def _not_the_kind_of_scores(cls, head: Any) -> Any:
        if head in ("softmax", "sigmoid"):
            raise ValueError(
                f"that is a kind of scores: give --model.output {head}; the head itself is linear, mlp, attention or "
                "prototype"
            )
        return head

    @pydantic.field_validator("hidden_units", mode="before")
    @classmethod
    def _are_widths(cls, given: Any) -> Any:
        widths = [part.strip() for part in str(given).split(",")]
        if given is not None and not all(part.isdecimal() and 1 <= int(part) <= _WIDEST for part in widths):
            raise ValueError(
                f"expected a whole number from 1 to {_WIDEST:,}, or several with commas, one for each hidden layer"
            )
        return given if given is None else int(widths[0]) if len(widths) == 1 else ",".join(widths)

    @property
    def freeze_point(self) -> str:
        """What is not trained, with auto settled by backbone."""
        if self.freeze != "auto":
            return self.freeze
        # VGGish is trained as it was published; what begins from random weights has to be.
        return "none" if self.backbone.startswith("vggish") or self.checkpoint == "none" else "all-but-head"

    @property
    def head_units(self) -> int | str:
        """Width of the head's hidden layer, or of several with commas; 0 = it has none."""
        return (self.hidden_units or _HIDDEN_UNITS) if self.head in ("mlp", "attention") else 0

    @property
    def head_prototypes(self) -> int:
        """Prototypes of each class, 0 = the head has none."""
        return (self.prototypes or _PROTOTYPES) if self.head == "prototype" else 0


class TrainSettings(_Section):
    """Training."""

    epochs: int = _setting(30, "most passes over the training windows", ge=1, le=100_000)
    batch_size: int = _setting(32, "windows a step", unit="windows", ge=1, le=65536)
    accumulate: int = _setting(1, "batches whose gradients are added before one update", ge=1, le=4096)
    precision: Literal["auto", "float32", "mixed_bfloat16", "mixed_float16"] = _setting(
        "auto", "arithmetic of the layers; auto: the fast one on this machine"
    )
    seed: int = _setting(1, "order of batches, first weights, dropout", ge=0, lt=2**32)
    learning_rate: float = _setting(1e-4, "of Adam for the backbone, at its highest", gt=0, le=10)
    head_lr_multiplier: float = _setting(
        10.0, "the head's learning rate, times that of the backbone", gt=0, le=10_000
    )
    head_warmup_epochs: int = _setting(
        0, "first epochs, in which only the head is trained", unit="epochs", ge=0
    )
    layer_decay: float = _setting(
        1.0, "learning rate of each layer, as a share of that of the layer above", gt=0, le=1
    )
    ema_decay: float = _setting(
        0.0, "exponential moving average of the weights: share kept at each update; 0: none", ge=0, lt=1
    )
    epsilon: float = _setting(1e-8, "of Adam, against division by zero", gt=0, le=1)
    schedule: Literal["cosine", "constant"] = _setting("cosine", "of the learning rate, after the warm-up")
    warmup_epochs: float = _setting(0.5, "linear warm-up from zero", unit="epochs", ge=0)
    weight_decay: float = _setting(0.0, "decoupled (AdamW), kernels only", ge=0, lt=1)
    clip_norm: float = _setting(1.0, "most global norm of the gradients; 0: no limit", ge=0)
    label_smoothing: float = _setting(0.0, "share of the target spread over all classes", ge=0, lt=1)
    class_weight_alpha: float = _setting(0.0, "classes weigh frequency^-alpha; 0: all equally", ge=0, le=2)
    focal_gamma: float = _setting(
        0.0, "focal loss: windows weigh (1 - score)^gamma; 0: all equally", ge=0, le=10
    )
    sampling_power: float = _setting(
        0.0, "how often classes are drawn: 0 as often as found, 1 all equally", ge=0, le=1
    )
    min_samples_per_class: int = _setting(
        0, "classes with fewer are reported, and drawn this often an epoch", unit="windows", ge=0, le=1_000_000
    )
    min_samples_action: Literal["keep", "leave-out"] = _setting(
        "keep", "classes below train.min-samples-per-class"
    )
    sample_weights: str | None = _setting(
        None, "CSV `recording,weight`: weights in training", unit="path", unset="INPUT/quality.csv"
    )
    label_refinement: bool = _setting(
        False, "windows that do not fit their recording's label keep a share of it, by cross-validation"
    )
    refit: bool = _setting(
        False, "once the best epoch is known, train once more on training and validation recordings together"
    )
    hop_s: float | None = _setting(
        None, "from one training window to the next; at most a window", unit="s",
        unset="the backbone's: 0.96, yamnet 0.48, birdnet 1.5, perch 2.5", gt=0, le=60,
    )
    jitter_s: float = _setting(
        0.0, "windows start at most this much earlier or later, drawn each epoch", unit="s", ge=0, le=96
    )
    early_stopping_patience: int = _setting(
        8, "epochs without improvement on validation before stopping; 0: never", unit="epochs", ge=0
    )
    checkpoint_minutes: float = _setting(
        10.0, "a checkpoint within an epoch at least this often", unit="min", gt=0
    )
    keep_checkpoints: int = _setting(2, "newest checkpoints kept, beside the best", ge=1)
    cache_gb: float = _setting(
        50.0, "most disk for outputs of frozen layers, computed once; 0: compute each epoch", unit="GB", ge=0
    )
    jit: bool = _setting(True, "compile the optimizer's update with XLA (--train.jit false if it fails)")


class AugmentSettings(_Section):
    """Augmentation of training windows; see also train.jitter-s."""

    gain_db: float = _setting(0.0, "random gain, up or down by at most this", unit="dB", ge=0, le=60)
    white_noise: float = _setting(0.0, "share of windows with white noise added", ge=0, le=1)
    pink_noise: float = _setting(0.0, "share of windows with pink noise (1/f) added", ge=0, le=1)
    background: float = _setting(
        0.0, "share of windows mixed with one of a negative class", ge=0, le=1
    )
    snr_db: float = _setting(
        5.0, "signal-to-noise ratio of added noise and background: this to this + 20",
        unit="dB", ge=-30, le=60,
    )
    mixup: float = _setting(
        0.0, "share of windows mixed with another (softmax: labels shared; sigmoid: both labels)", ge=0, le=1
    )
    time_roll_s: float = _setting(0.0, "windows rotated in time by at most this", unit="s", ge=0, le=60)
    pitch_shift: int = _setting(0, "windows shifted in pitch by at most this", unit="mel bands", ge=0, le=16)
    time_mask_s: float = _setting(0.0, "longest time mask in each window", unit="s", ge=0, le=60)
    band_mask: int = _setting(0, "widest frequency mask in each window", unit="mel bands", ge=0, le=63)
    mask_with: Literal["mean", "silence"] = _setting(
        "mean", "value of masked parts: the window's mean, or silence"
    )

class PrepareSettings(_Section):
    """Preparation."""

    workers: int = _setting(0, "processes that decode audio; 0: one a core", ge=0, le=1024)


class EvaluateSettings(_Section):
    """Evaluation."""

    batch_size: int = _setting(64, "windows scored at a time", unit="windows", ge=1, le=65536)
    bootstrap: int = _setting(1000, "bootstrap resamples of each 95 % interval", ge=20, le=100_000)
    precision: float = _setting(
        0.9, "precision of the decisions that thresholds are chosen for", ge=0.5, lt=1
    )
    false_alarms_per_hour: float | None = _setting(
        None, "most false alarms on background that thresholds are chosen for, in place of precision",
        unit="per h", unset="by precision", gt=0,
    )
    label_issues: bool = _setting(
        True, "look for wrong labels by cross-validation"
    )
    rare_class_ablation: bool = _setting(
        True, "measure what each setting for rare classes did to them"
    )


class OodSettings(_Section):
    """Out-of-distribution detection."""

    target_recall: float = _setting(
        0.9,
        "share of known recordings not to be rejected as unknown; 1: reject none",
        ge=0.5,
        le=1,
    )


class ExportSettings(_Section):
    """Export."""

    name: str = _setting(
        "birdtune",
        "name of the model in TensorFlow Serving: letters, digits and . _ -",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$",
    )


class GateSettings(_Section):
    """Which model goes into service."""

    champion: str | None = _setting(
        None, "model in service, which the new one must beat to take its place: its number, latest, or its folder",
        unit="version|path", unset="every model is promoted",
    )
    margin: float = _setting(0.0, "loss of the score that still counts as no worse; 0: it must be better", ge=0, lt=1)

    @pydantic.field_validator("champion", mode="before")
    @classmethod
    def _version_may_be_a_number(cls, version: Any) -> Any:
        return str(version) if isinstance(version, int) and not isinstance(version, bool) else version


class TuneSettings(_Section):
    """Tuning, by the command tune."""

    on: Literal["embeddings", "training"] = _setting(
        "embeddings", "what a trial is: a head on embeddings, by cross-validation, or a whole training"
    )
    trials: int = _setting(30, "trials, over all starts together", ge=1, le=10_000)
    minutes: float | None = _setting(
        None, "no trial begins after this; the same command continues", unit="min", unset="no limit", gt=0
    )
    space: str | None = _setting(
        None,
        "what to search, e.g. `model.head=linear|mlp, train.epochs=10..40, model.dropout`",
        unset="all that matters and is not given",
    )


class Config(_Section):
    """All settings of a run."""

    input: Path = _setting(
        Path("input"), "folder with data/, the checkpoint, the label map, job.yaml", unit="path"
    )
    output: Path = _setting(Path("output"), "folder for everything that is made", unit="path")
    data: Path | None = _setting(
        None, "folder of class folders; or embeddings: .npz, .parquet, .tfrecord", unit="path", unset="INPUT/data"
    )
    background: Path | None = _setting(
        None, "folder of recordings without any class, which become a class of their own",
        unit="path", unset="INPUT/background",
    )
    init_from: str | None = _setting(
        None, "base model, whose classes keep their columns: number, latest, or folder", unit="version|path",
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
    gate: GateSettings = GateSettings()
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
        if not self.model.head_units and self.model.hidden_units is not None:
            raise ValueError(
                f"model.hidden-units is {self.model.hidden_units}, and the {self.model.head} head has no hidden layer; "
                "give --model.head mlp, or leave the units out"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _attention_has_one_hidden_layer(self) -> "Config":
        if self.model.head == "attention" and isinstance(self.model.hidden_units, str):
            raise ValueError(
                f"model.hidden-units is {self.model.hidden_units}, and the attention head has one hidden layer; give "
                "one width, or --model.head mlp"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _prototypes_are_there(self) -> "Config":
        if not self.model.head_prototypes and self.model.prototypes is not None:
            raise ValueError(
                f"model.prototypes is {self.model.prototypes}, and the {self.model.head} head has none; give "
                "--model.head prototype, or leave the number out"
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
                "train.label-refinement leaves each window a share of its recording's label, but the attention head "
                "learns from whole recordings, and augment.mixup shares labels itself; leave one of both out"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _attention_is_not_augmented(self) -> "Config":
        if self.model.head == "attention" and self.augment != AugmentSettings():
            raise ValueError(
                "augmentation changes and mixes single windows, and the attention head learns from whole recordings; "
                "leave the settings of augment out, or give another --model.head"
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

    def with_output(self, output: str) -> "Config":
        """The same settings with the kind of scores that `model.output` auto comes to."""
        return self.with_model(output=output)

    def with_model(self, **settings: str) -> "Config":
        """The same settings but for some of `model`."""
        return self.model_copy(update={"model": self.model.model_copy(update=settings)})

    def with_train(self, **settings: float) -> "Config":
        """The same settings but for some of `train`."""
        return self.model_copy(update={"train": self.train.model_copy(update=settings)})

    def flat(self) -> dict[str, Any]:
        """Every setting under its full name ("train.batch-size"), JSON-able; `model.freeze` auto is settled."""
        dumped = self.model_dump(mode="json")
        dumped["model"]["freeze"] = self.model.freeze_point
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


def settings_page() -> str:
    """Every setting as a page of Markdown, a table for each section."""
    lines = ["# Settings", "", "Written by `./entrypoint.sh settings`.", "", _WHERE_GIVEN]
    section = ""
    for option in options():
        if option.section != section:
            section = option.section
            lines += ["", f"## {section}", "", "| setting | value | default | |", "|---|---|---|---|"]
        value = " ".join(dict.fromkeys(filter(None, [option.type, option.unit]))).replace("|", " \\| ")
        what = option.help.replace("|", "\\|")
        lines.append(f"| `{option.name}` | {value} | {option.default_text} | {what} |")
    return "\n".join(lines) + "\n"


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
