"""All settings of a run in one frozen object, checked against each other.

    values by name (configure.py) ─▶ Config;  options() ─▶ the same for people
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import pydantic

from birdtune.errors import shown
from birdtune.options import Option, Section, options_of, setting
from birdtune.settings import (
    ATTENTION_HEADS,
    AudioSettings,
    AugmentSettings,
    CloudSettings,
    CollectSettings,
    DetectSettings,
    EvaluateSettings,
    ExportSettings,
    GateSettings,
    LabelSettings,
    ModelSettings,
    OodSettings,
    PredictSettings,
    PrepareSettings,
    SplitSettings,
    TrainSettings,
    TuneSettings,
    UnseenSettings,
    Version,
)  # fmt: skip

# In place of a version's number: the newest.
LATEST = "latest"


class Config(Section):
    """All settings of a run."""

    input: Path = setting(
        Path("input"), "folder with data/, the checkpoint, the label map, job.yaml", unit="path"
    )
    output: Path = setting(Path("output"), "folder for everything that is made", unit="path")
    data: Path | None = setting(
        None, "folder of class folders; or embeddings: .npz, .parquet, .tfrecord", unit="path", unset="INPUT/data"
    )
    background: Path | None = setting(
        None, "folder of recordings without any class, which become a class of their own",
        unit="path", unset="INPUT/background",
    )
    init_from: Version = setting(
        None, "base model, whose classes keep their columns: number, latest, or folder", unit="version|path",
        unset="from the backbone's weights",
    )
    track: Literal["none", "mlflow"] = setting(
        "none", "send settings, figures, report and model to MLflow, too: to MLFLOW_TRACKING_URI, else to OUTPUT/mlruns"
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
    predict: PredictSettings = PredictSettings()
    detect: DetectSettings = DetectSettings()
    export: ExportSettings = ExportSettings()
    gate: GateSettings = GateSettings()
    tune: TuneSettings = TuneSettings()
    unseen: UnseenSettings = UnseenSettings()
    collect: CollectSettings = CollectSettings()
    cloud: CloudSettings = CloudSettings()
    _addresses: dict[str, str] = pydantic.PrivateAttr(default_factory=dict)  # path of this machine → where it is from

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
        if self.model.head in ATTENTION_HEADS and isinstance(self.model.hidden_units, str):
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
        mixes = self.augment.mixup or self.augment.cutmix
        if self.train.label_refinement and (self.model.by_recording or mixes):
            raise ValueError(
                "train.label-refinement leaves each window a share of its recording's label, but the heads attention, "
                "sed-attention, gru, lstm and self-attention learn from whole recordings, and augment.mixup and "
                "augment.cutmix share labels themselves; leave one of both out"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _sed_attention_scores_each_class(self) -> "Config":
        if self.model.head == "sed-attention" and self.model.output == "softmax":
            raise ValueError(
                "model.head sed-attention weighs windows for each class by itself, so that scores of classes do not "
                "sum to one as model.output softmax has them; give --model.output sigmoid, or --model.head attention"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _windows_over_time_are_alike(self) -> "Config":
        if not self.model.context:
            if self.model.context_windows is not None:
                raise ValueError(
                    f"model.context-windows is {self.model.context_windows}, and the {self.model.head} head sees each "
                    "window by itself; give --model.head gru, lstm or self-attention, or leave the number out"
                )
            return self
        for name in ("train", "evaluate", "detect"):
            hop_s = getattr(self, name).hop_s
            if hop_s is not None:
                raise ValueError(
                    f"{name}.hop-s is {hop_s:g}, and model.head {self.model.head} hears what follows what: its windows "
                    "must be as far apart in training as in the model that is served, which is the backbone's own hop; "
                    "leave it out, or give another --model.head"
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

    def with_model(self, **settings: Any) -> "Config":
        """The same settings but for some of `model`."""
        return self.model_copy(update={"model": self.model.model_copy(update=settings)})

    def with_evaluate(self, **settings: float) -> "Config":
        """The same settings but for some of `evaluate`."""
        return self.model_copy(update={"evaluate": self.evaluate.model_copy(update=settings)})

    def with_train(self, **settings: float) -> "Config":
        """The same settings but for some of `train`."""
        return self.model_copy(update={"train": self.train.model_copy(update=settings)})

    def with_train_default(self, **settings: float) -> "Config":
        """As `with_train`, of settings that nobody gave: `given` does not name them afterwards either."""
        config = self.with_train(**settings)
        config.train.model_fields_set.difference_update(settings)
        return config

    def fetched_from(self, addresses: Mapping[str, str]) -> "Config":
        """The same settings, some of whose paths stand for addresses: path → address."""
        config = self.model_copy()
        config._addresses = dict(sorted(addresses.items(), reverse=True))  # what lies in another one comes first
        return config

    def as_given(self, path: Path | str) -> str:
        """A path, or several with commas, with an address in place of what was fetched from one."""
        return ",".join(map(self._address, str(path).split(","))) if self._addresses else str(path)

    def _address(self, path: str) -> str:
        for local, address in self._addresses.items():
            if path == local or path.startswith(f"{local}/"):
                return address + path.removeprefix(local)
        return path

    def tree(self) -> dict[str, Any]:
        """Every setting by section, JSON-able; what was given as an address is one."""
        dumped = self.model_dump(mode="json")
        for section in (dumped, *(value for value in dumped.values() if isinstance(value, dict))):
            section.update({name: self.as_given(value) for name, value in section.items() if isinstance(value, str)})
        return dumped

    def flat(self) -> dict[str, Any]:
        """As `tree`, under full names ("train.batch-size"); `model.freeze` auto is settled."""
        dumped = self.tree()
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


def options() -> list[Option]:
    """Every setting of Config."""
    return options_of(Config)


def _dig(tree: Mapping[str, Any], path: Iterable[str]) -> Any:
    value: Any = tree
    for key in path:
        value = value[key]
    return value
