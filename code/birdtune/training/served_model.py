"""A served model that a later run looks back at: to begin from it, or to be compared with it.

    model/<name>/<v>/model.json ─▶ read ─▶ ServedModel ─▶ learnt_from ─▶ LearntFrom: recordings that cannot test it

Everything that is relied on in a model.json is validated here; its weights are checked where they are read.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from birdtune.config import Config
from birdtune.data.label_map import ExternalId
from birdtune.data.scan import Recording
from birdtune.errors import CheckpointError, InputError, shown
from birdtune.evaluation.calibration import Calibration
from birdtune.evaluation.decision import Thresholds
from birdtune.evaluation.ood import OodScale
from birdtune.models.known import UNKNOWN, Origin
from birdtune.models.registry import is_known
from birdtune.runtime.files import read_csv, read_json, value_sha256
from birdtune.runtime.runs import newest_version, read_record

# In the logs of a version: the recordings it was trained, chosen and tested on.
SPLIT_NAME = "split.csv"
_MODEL = "model.json"
# In the folder of a version: the head as it was before it learnt from validation recordings, too (`train.refit`), or
# of the first member of an ensemble (`train.ensemble`).
BEFORE_REFIT = Path("assets.extra") / "head-before-refit.safetensors"

# Short enough to be repeated to people.
_Word = Annotated[str, Field(max_length=80)]
_Name = Annotated[str, Field(max_length=200)]


class _Facts(BaseModel):
    """What is relied on in a model.json; `serving.export` writes it."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())

    format: Literal[4]  # verify.FORMAT
    version: int
    classes: list[str]
    backbone: _Word
    head: _Word
    scores: _Word
    embedding_activation: _Word
    weights: tuple[_Name, ...] = Field(min_length=2, max_length=10_000)  # names, in the order of the variables
    weights_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    before_refit: str | None = Field(None, pattern="^[0-9a-f]{64}$")  # SHA-256 of that head
    hidden_units: int | _Word  # of several hidden layers, with commas
    hidden_units_before: int | _Word | None = None  # of the head before, where members of an ensemble lie side by side
    prototypes: int = 0  # of models from before there were any
    context_windows: int = 0  # the same
    calibration: dict[str, Any]
    thresholds: dict[str, Any] | None
    detection_thresholds: dict[str, Any] | None = None
    ood: dict[str, Any] | None
    front_end: dict[str, Any]
    graph_sha256: str | None = None
    backbone_origin: Origin = UNKNOWN


@dataclass(frozen=True)
class ServedModel:
    """An exported model.

    Attributes:
        folder: of the version.
        is_own: whether it is a version of the run's own output folder.
        class_ids: class → external id, as its labels.csv has them.
        called: the folder as it was given; an address where it was fetched from one.
    """

    folder: Path
    is_own: bool
    facts: _Facts
    class_ids: dict[str, ExternalId]
    called: str

    @property
    def version(self) -> int:
        """Its number, in whatever output folder it was made."""
        return int(self.folder.name) if self.is_own else self.facts.version

    @property
    def title(self) -> str:
        """For people."""
        return f"version {self.version}" if self.is_own else f"the model in {shown(self.called)}"

    @property
    def classes(self) -> tuple[str, ...]:
        """In the order of its columns."""
        return tuple(self.facts.classes)

    @property
    def calibration(self) -> Calibration:
        """What makes its logits the scores that are served."""
        return Calibration.of(self.facts.calibration)

    @property
    def thresholds(self) -> Thresholds | None:
        """From which score on its classes are decided for; None where it has no thresholds."""
        return None if self.facts.thresholds is None else Thresholds.of(self.facts.thresholds)

    @property
    def detection_thresholds(self) -> Thresholds | None:
        """From which score of a window on its classes are detected."""
        row = self.facts.detection_thresholds
        return self.thresholds if row is None else Thresholds.of(row)

    @property
    def scale(self) -> OodScale | None:
        """From which distance on a recording is rejected as unknown; None where it rejects none."""
        return None if self.facts.ood is None else OodScale.of(self.facts.ood)

    @property
    def keeps_published(self) -> bool:
        """Whether it serves classes that its backbone was published with, beside its own."""
        return (self.folder / "published_labels.csv").is_file()

    def digest(self) -> str:
        """SHA-256 of all that a run that begins from it takes over."""
        return value_sha256([self.facts.weights_sha256, self.facts.classes])

    def row(self) -> dict[str, Any]:
        """As it stands in run.json and model.json."""
        place = None if self.is_own else self.called
        return {"version": self.version, "folder": place, "weights_sha256": self.facts.weights_sha256}

    def record(self) -> dict[str, Any] | None:
        """The record of the run that made it, if that lies in the output folder around it."""
        above = self.folder.absolute().parents
        inside = len(above) > 2 and above[1].name == "model" and is_number(self.folder.name)
        found = read_record(above[2], int(self.folder.name)) if inside else None
        return found if found is not None and found["weights_sha256"] == self.facts.weights_sha256 else None

    def _split(self, number: int | str) -> list[dict[str, str]]:
        path = self.folder.absolute().parents[2] / "logs" / str(number) / SPLIT_NAME
        return read_csv(path) if path.is_file() else []

    def learnt(self) -> dict[str, str]:
        """Content of each recording it was trained, chosen and tested on → its class then; empty: not known.

        Of those with several classes nothing is said.
        """
        rows = self._split(self.folder.name) if self.record() is not None else []
        return {row["content"]: row["class"] for row in rows if row["class"] in self.classes}

    def learnt_from(self) -> "LearntFrom | None":
        """Which recordings it learnt from, or was chosen by; None where that is not known.

        Those of the models that it began from count as well, as far as their logs are there: their weights live on.
        """
        record = self.record()
        if record is None or not self._split(self.folder.name):
            return None
        columns: dict[str, set[str]] = {"recording": set(), "group": set(), "content": set()}
        number: Any = int(self.folder.name)
        while record is not None:
            for row in self._split(number):
                if row["split"] != "test":
                    for name, found in columns.items():
                        found.add(row[name])
            before = record.get("init_from") or {}
            # A number is always above that of what it began from: no circle.
            is_before = before.get("folder") is None and before.get("version") in range(number)
            number = before.get("version")
            record = read_record(self.folder.absolute().parents[2], number) if is_before else None
        return LearntFrom(*map(frozenset, columns.values()))


@dataclass(frozen=True)
class LearntFrom:
    """Names, source recordings and contents of the recordings that a model learnt from or was chosen by."""

    names: frozenset[str]
    groups: frozenset[str]
    contents: frozenset[str]

    def has(self, recording: Recording, group: str) -> bool:
        """Whether a recording, or another of its source recording, is among them."""
        return recording.name in self.names or group in self.groups or recording.content in self.contents


# ---- finding and reading -------------------------------------------------------------------------


def is_number(text: str) -> bool:
    """Whether a text is the number of a version."""
    return text.isascii() and text.isdecimal() and len(text) < 10


def served_models(config: Config) -> dict[int, Path]:
    """The exported models of the output folder, by number; those under the run's own name before others."""
    folders = sorted(
        (config.output / "model").glob(f"*/*/{_MODEL}"), key=lambda path: path.parts[-3] == config.export.name
    )
    return {int(path.parent.name): path.parent for path in folders if is_number(path.parent.name)}


def under_way(config: Config, number: int) -> bool:
    """Whether a version has begun and is not done, and is the one that would be gone on with."""
    record = read_record(config.output, number)
    if record is None or number != newest_version(config.output):
        return False
    return record.get("status") != "done" and "report" not in record["done"]


def of_number(config: Config, setting: str, number: int) -> ServedModel:
    """A version of the output folder.

    Args:
        setting: by which it is named, as on the command line.

    Raises:
        InputError: there is none of that number, it is under way, or was not promoted.
        CheckpointError: it is damaged.
    """
    models = served_models(config)
    if under_way(config, number):
        before = read_record(config.output, number) or {}
        raise InputError(
            f"{setting} {number}: version {number} itself is under way (its stage {before.get('stage')} is not "
            f"done). To finish it, give the command that it was begun with again{_begun_with(before)}; then a next "
            "version can refer to it."
        )
    if number not in models:
        known = ", ".join(map(str, sorted(models))) or "none"
        candidate = config.output / "candidates" / str(number)
        hint = f" Version {number} was not promoted; its model is {shown(candidate)}." if candidate.is_dir() else ""
        raise InputError(
            f"{setting} {number}: there is no exported model of that number in {shown(config.output / 'model')} "
            f"(there are: {known}).{hint} Give one of these, the folder of a model, or another --output."
        )
    return read(models[number], is_own=True)


def _begun_with(record: Mapping[str, Any]) -> str:
    row = record.get("init_from")
    if not isinstance(row, dict):
        return " (without --init-from)"
    return f" (--init-from {shown(row.get('folder') or row.get('version'))})"


def of_folder(config: Config, setting: str, folder: Path) -> ServedModel:
    """The model of a version folder, wherever it lies. Raises as `of_number`."""
    if not (folder / _MODEL).is_file():
        inside = sorted(path.parent.name for path in folder.glob(f"*/{_MODEL}"))
        hint = f" It holds the versions {', '.join(map(shown, inside))}: give one of them." if inside else ""
        raise InputError(
            f"{setting} {shown(folder)}: expected the number of a version, `latest`, or the folder of an "
            f"exported model, e.g. output/model/birdtune/1; there is no {_MODEL} in it.{hint}"
        )
    own = [path for path in served_models(config).values() if path.resolve() == folder.resolve()]
    if own:
        return of_number(config, setting, int(own[0].name))
    return read(folder, is_own=False, called=config.as_given(folder))


def read(folder: Path, *, is_own: bool, called: str = "") -> ServedModel:
    """The model of a version folder; `called`: as it was given, if otherwise.

    Raises:
        CheckpointError: it is damaged, of another birdtune, or not the one that its run made.
    """
    try:
        facts = _Facts.model_validate(read_json(folder / _MODEL))
        ids = _ids(folder / "labels.csv", facts.classes)
        found = ServedModel(folder, is_own, facts, ids, called or str(folder))
        for each in (found.thresholds, found.detection_thresholds):
            if each is not None and len(each.values) != len(facts.classes):
                raise ValueError(f"{len(each.values)} thresholds of {len(facts.classes)} classes")
        _ = found.calibration, found.scale
    except (pydantic.ValidationError, LookupError, TypeError, ValueError) as fault:
        reason = shown(" ".join(str(fault).split())[:200])
        raise CheckpointError(
            f"{shown(folder / _MODEL)}: is missing, damaged, or another birdtune's ({reason}). Export the model again, "
            "or give another."
        ) from fault
    named = {name for name in facts.classes if name == shown(name)}
    if len(named) != len(facts.classes) or len(named) < 2 or not is_known(facts.backbone):
        raise CheckpointError(
            f"{shown(folder / _MODEL)}: makes no sense ({len(facts.classes)} classes, backbone "
            f"{shown(facts.backbone)}). Export the model again, or give another."
        )
    record = read_record(folder.absolute().parents[2], int(folder.name)) if is_own else None
    if record is not None and record["weights_sha256"] not in (None, facts.weights_sha256):
        raise CheckpointError(
            f"{shown(folder)}: is not the model that its run made: the record of version {folder.name} has weights "
            f"{record['weights_sha256'][:12]}…, the model {facts.weights_sha256[:12]}…. Export that version again."
        )
    return found


def _ids(path: Path, classes: list[str]) -> dict[str, ExternalId]:
    """External ids in a labels.csv. Raises InputError, LookupError, ValueError where it is not as it was written."""
    rows = read_csv(path)
    if [row["class"] for row in rows] != classes:
        raise ValueError(f"labels.csv has other classes than {_MODEL}")
    ids: dict[str, ExternalId] = {}
    for row in rows:
        if text := row["external_id"]:
            # Numbers were written as numbers; what only looks like one, as 007, was text.
            is_whole = text.removeprefix("-").isdecimal() and str(int(text)) == text
            ids[row["class"]] = int(text) if is_whole else text
    return ids
