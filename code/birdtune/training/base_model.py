"""The served model that a run begins from: found, understood, its weights read back.

    --init-from ─▶ find ─▶ Ancestor ─▶ read_weights ─▶ arrays by name
                                     └─▶ heard ─▶ Heard: which recordings it learnt from

The weights are those of the SavedModel: the best epoch's in float32, the very ones that are in service, and there when
checkpoints were deleted. Their SHA-256 must be the one that model.json and the run's record have.
"""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from birdtune.config import LATEST, Config
from birdtune.data.dataset import Dataset
from birdtune.data.label_map import ExternalId
from birdtune.data.labels import refuse_no_answer
from birdtune.data.scan import Recording
from birdtune.errors import CheckpointError, InputError, SettingsError, shown
from birdtune.evaluation import class_alignment
from birdtune.evaluation.calibration import Calibration
from birdtune.evaluation.decision import Thresholds
from birdtune.evaluation.ood import Novelty, Scale
from birdtune.models import saved_model
from birdtune.models.registry import BACKBONES
from birdtune.models.weights import verify_once
from birdtune.runtime.files import read_csv, read_json, value_sha256
from birdtune.runtime.runs import newest_version, read_record

# Beside the logs of a version: what it was trained, chosen and tested on.
SPLIT_NAME = "split.csv"
_MODEL = "model.json"


# As long as it may be to be repeated to people.
_Word = Annotated[str, Field(max_length=80)]


class _Facts(BaseModel):
    """What is relied on in a model.json; `results.export` writes it."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())

    format: Literal[2]  # verify.FORMAT
    version: int
    classes: list[str]
    backbone: _Word
    head: _Word
    scores: _Word
    embedding_activation: _Word
    weights_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    hidden_units: int | None = None  # models of earlier exports do not say
    calibration: dict[str, Any] | None = None
    thresholds: dict[str, Any] | None = None
    novelty: dict[str, Any] | None = None
    front_end: dict[str, Any] = {}


@dataclass(frozen=True)
class Ancestor:
    """A served model that a run can begin from.

    Attributes:
        folder: of the exported model.
        is_own: whether it is a version of the run's own output folder.
        class_ids: class → external id, as its labels.csv has them.
    """

    folder: Path
    is_own: bool
    facts: _Facts
    class_ids: dict[str, ExternalId]

    @property
    def version(self) -> int:
        """Its number, in whatever output folder it was made."""
        return int(self.folder.name) if self.is_own else self.facts.version

    @property
    def title(self) -> str:
        """For people."""
        return f"version {self.version}" if self.is_own else f"the model in {shown(self.folder)}"

    @property
    def classes(self) -> tuple[str, ...]:
        """In the order of its columns."""
        return tuple(self.facts.classes)

    @property
    def calibration(self) -> Calibration:
        """What makes its logits the scores that are served."""
        row = self.facts.calibration
        return Calibration.of(row) if row else Calibration(self.facts.scores)

    @property
    def thresholds(self) -> Thresholds | None:
        """From which score on its classes are answers; None where it has no thresholds."""
        with contextlib.suppress(LookupError, TypeError, ValueError):
            found = Thresholds.of(self.facts.thresholds or {})
            return found if len(found.values) == len(self.classes) else None
        return None

    @property
    def scale(self) -> Scale | None:
        """From which distance on sounds are strange to it; None where it does not tell."""
        with contextlib.suppress(LookupError, TypeError, ValueError):
            return Scale.of(self.facts.novelty or {})
        return None

    def _record(self) -> tuple[Path, dict[str, Any] | None]:
        """The output folder that it would lie in, and the record there of the run that made it, if there is one."""
        above = self.folder.absolute().parents
        home = above[min(2, len(above) - 1)]
        is_there = above[0] != above[-1] and above[1].name == "model" and _is_number(self.folder.name)
        return home, read_record(home, int(self.folder.name)) if is_there else None

    def digest(self) -> str:
        """SHA-256 of all that a run that begins from it takes over."""
        return value_sha256([self.facts.weights_sha256, self.facts.classes])

    def row(self) -> dict[str, Any]:
        """As it stands in run.json and model.json."""
        place = None if self.is_own else str(self.folder)
        return {"version": self.version, "folder": place, "weights_sha256": self.facts.weights_sha256}

    def require_fit(self, config: Config) -> None:
        """Refuse settings of another network than this one's, and a class that no model may have.

        Raises:
            SettingsError: naming each with both values, and what to do.
        """
        facts, wanted = self.facts, config.model
        pairs: dict[str, tuple[Any, Any]] = {
            "model.backbone": (facts.backbone, wanted.backbone),
            "model.head": (facts.head, wanted.head),
            "model.output": (facts.scores, wanted.output),
            "model.embedding-activation": (facts.embedding_activation, wanted.embedding_activation),
        }
        if facts.hidden_units is not None and facts.head == wanted.head:
            pairs["model.hidden-units"] = (facts.hidden_units, wanted.head_units)
        others = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
        if others:
            told = "; ".join(f"{name} is {theirs} there and {ours} here" for name, (theirs, ours) in others.items())
            flags = " ".join(f"--{name} {theirs}" for name, (theirs, _) in others.items())
            raise SettingsError(
                f"--init-from: {self.title} is another network than the settings ask for: {shown(told)}. To begin "
                f"from it, give {shown(flags)}; to train another network, leave --init-from out."
            )
        theirs, ours = facts.front_end.get("limit_hz"), config.audio.band_limit
        if theirs != ours:
            give = "leave --audio.band-limit out" if theirs is None else f"give --audio.band-limit {shown(str(theirs))}"
            raise SettingsError(
                f"--init-from: {self.title} is given sound up to {shown(str(theirs or 'the end of its band'))} Hz, "
                f"and the settings ask for {ours or 'the end of its band'} Hz. To begin from it, {give}."
            )
        where = f"--init-from: {self.title}"
        refuse_no_answer(self.classes, config.labels.negative_classes, where, "Begin from another model, or from none")

    def learnt(self) -> dict[str, str]:
        """Content of each recording that it was trained, chosen and tested on → its class then; empty: nobody knows."""
        home, record = self._record()
        split = home / "logs" / self.folder.name / SPLIT_NAME
        if record is None or record["weights_sha256"] != self.facts.weights_sha256 or not split.is_file():
            return {}
        return {row["content"]: row["class"] for row in read_csv(split)}

    def heard(self) -> "Heard | None":
        """Which recordings it learnt from, or was chosen by; None where nobody knows.

        As far as the logs tell, those of the versions before it count as well, whose weights live on in it.
        """
        home, record = self._record()
        if record is None or record["weights_sha256"] != self.facts.weights_sha256:
            return None
        number: Any = int(self.folder.name)
        if not (home / "logs" / str(number) / SPLIT_NAME).is_file():
            predictions = home / "reports" / str(number) / "predictions.csv"
            if not predictions.is_file():
                return None
            rows = read_csv(predictions)
            return Heard(only_tested=frozenset(row["recording"] for row in rows if row["split"] == "test"))
        columns: dict[str, set[str]] = {"recording": set(), "group": set(), "content": set()}
        while record is not None:
            split = home / "logs" / str(number) / SPLIT_NAME
            for row in read_csv(split) if split.is_file() else ():
                if row["split"] != "test":
                    for name, found in columns.items():
                        found.add(row[name])
            before = record.get("init_from") or {}
            # A number is always above that of what it began from: no circle.
            is_before = before.get("folder") is None and before.get("version") in range(number)
            number = before.get("version")
            record = read_record(home, number) if is_before else None
        return Heard(*map(frozenset, columns.values()))


@dataclass(frozen=True)
class Heard:
    """What a model learnt from or was chosen by: names, sources and contents of recordings.

    Attributes:
        only_tested: of runs that left no such list, the names of those that it was tested on, and none else.
    """

    names: frozenset[str] = frozenset()
    groups: frozenset[str] = frozenset()
    contents: frozenset[str] = frozenset()
    only_tested: frozenset[str] | None = None

    def knows(self, recording: Recording, group: str) -> bool:
        """Whether a recording, or another of its source, was among them, or may have been."""
        if self.only_tested is not None:
            return recording.name not in self.only_tested
        return recording.name in self.names or group in self.groups or recording.content in self.contents


# ---- finding it ---------------------------------------------------------------------------------


def find(config: Config) -> list[Ancestor]:
    """What `--init-from` may mean: nothing, one model, or two of which the first counts if the run goes on.

    With `latest` there are two: a run that began from the newest version must, when it is started again, not begin
    from what it has made of it.

    Raises:
        InputError: there is no such model; the version is under way; the model is damaged.
        SettingsError: it is another network than the settings ask for.
    """
    wanted = config.init_from
    if wanted is None:
        return []
    if wanted == LATEST:
        return _latest(config)
    found = _of_number(config, int(wanted)) if _is_number(wanted) else _of_folder(config, Path(wanted))
    found.require_fit(config)
    return [found]


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 10


def _served(config: Config) -> dict[int, Path]:
    """The exported models of the output folder, by number; those under the run's own name before others."""
    folders = sorted(
        (config.output / "model").glob(f"*/*/{_MODEL}"), key=lambda path: path.parts[-3] == config.export.name
    )
    return {int(path.parent.name): path.parent for path in folders if _is_number(path.parent.name)}


def _under_way(config: Config, number: int) -> bool:
    """Whether a version has begun and is not done, and is the one that would be gone on with."""
    record = read_record(config.output, number)
    if record is None or number != newest_version(config.output):
        return False
    return record.get("status") != "done" and "report" not in record["done"]


def _of_number(config: Config, number: int) -> Ancestor:
    models = _served(config)
    if _under_way(config, number):
        before = read_record(config.output, number) or {}
        raise InputError(
            f"--init-from {number}: version {number} itself is under way (its stage {before.get('stage')} is not "
            f"done). To finish it, give the command that it was begun with again"
            f"{_begun_with(before)}; then a next version can begin from it."
        )
    if number not in models:
        known = ", ".join(map(str, sorted(models))) or "none"
        raise InputError(
            f"--init-from {number}: there is no exported model of that number in {shown(config.output / 'model')} "
            f"(there are: {known}). Give one of these, the folder of a model, or another --output."
        )
    return _read(models[number], is_own=True)


def _begun_with(record: Mapping[str, Any]) -> str:
    row = record.get("init_from")
    if not isinstance(row, dict):
        return " (without --init-from)"
    return f" (--init-from {shown(row.get('folder') or row.get('version'))})"


def _latest(config: Config) -> list[Ancestor]:
    models = {number: path for number, path in _served(config).items() if not _under_way(config, number)}
    found: list[Ancestor] = []
    record = read_record(config.output, newest_version(config.output)) or {}
    row = record.get("init_from")
    if isinstance(row, dict) and row.get("folder") is None and row.get("version") in models:
        before = _read(models[row["version"]], is_own=True)
        try:
            before.require_fit(config)
            found.append(before)
        except SettingsError:
            pass  # then the run that began from it is not this one
    if not models:
        raise InputError(
            f"--init-from {LATEST}: there is no exported model in {shown(config.output / 'model')} yet. Train the "
            "first version without --init-from, or give the folder of a model."
        )
    newest = _read(models[max(models)], is_own=True)
    newest.require_fit(config)
    return [*found, newest]


def _of_folder(config: Config, folder: Path) -> Ancestor:
    if not (folder / _MODEL).is_file():
        inside = sorted(path.parent.name for path in folder.glob(f"*/{_MODEL}"))
        hint = f" It holds the versions {', '.join(map(shown, inside))}: give one of them." if inside else ""
        raise InputError(
            f"--init-from {shown(folder)}: expected the number of a version, `{LATEST}`, or the folder of an "
            f"exported model, e.g. output/model/birdtune/1; there is no {_MODEL} in it.{hint}"
        )
    own = [path for path in _served(config).values() if path.resolve() == folder.resolve()]
    return _of_number(config, int(own[0].name)) if own else _read(folder, is_own=False)


def _read(folder: Path, *, is_own: bool) -> Ancestor:
    try:
        facts = _Facts.model_validate(read_json(folder / _MODEL))
        found = Ancestor(folder, is_own, facts, _ids(folder / "labels.csv", facts.classes))
        _ = found.calibration
    except (pydantic.ValidationError, LookupError, TypeError, ValueError) as fault:
        reason = shown(" ".join(str(fault).split())[:200])
        raise CheckpointError(
            f"{shown(folder / _MODEL)}: is missing, damaged, or another birdtune's ({reason}). Export the model again, "
            "or begin from another."
        ) from fault
    named = {name for name in facts.classes if name == shown(name)}
    if len(named) != len(facts.classes) or len(named) < 2 or facts.backbone not in BACKBONES:
        raise CheckpointError(
            f"{shown(folder / _MODEL)}: says nothing that makes sense ({len(facts.classes)} classes, backbone "
            f"{shown(facts.backbone[:80])}). Export the model again, or begin from another."
        )
    _, record = found._record()
    if is_own and record is not None and record["weights_sha256"] not in (None, facts.weights_sha256):
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


def with_columns(config: Config, dataset: Dataset, ancestor: Ancestor | None) -> Dataset:
    """The dataset with the columns of the model that a run begins from, if it does."""
    if ancestor is None:
        return dataset
    # Behind another backbone, what the model knew of the sounds of classes without recordings says nothing.
    forgets = config.model.freeze != "all-but-head" and config.ood.target_recall < 1
    return class_alignment.keep(
        dataset, ancestor.classes, ancestor.class_ids, config.labels.negative_classes, ancestor.title,
        forgets=forgets, learnt=ancestor.learnt(),
    )  # fmt: skip


# ---- its weights --------------------------------------------------------------------------------


def verify(ancestor: Ancestor, config: Config, *, remember: bool) -> None:
    """Read the weights once, and see whether they are whole; that they are is remembered in the cache.

    Raises:
        CheckpointError: they are damaged, or not those of which model.json speaks.
        PassingError: the storage fails.
    """
    facts = ancestor.facts

    def read() -> None:
        saved_model.verify(ancestor.folder, facts.backbone, facts.head, facts.weights_sha256)

    if not remember:
        read()
        return
    files = sorted(path for path in ancestor.folder.rglob("*") if path.is_file())
    of = {"weights_sha256": facts.weights_sha256}
    verify_once(config.output / "cache" / "init-from.json", of, files, read)


def read_weights(ancestor: Ancestor) -> saved_model.Arrays:
    """The weights by name, as `classifier.weights` gives them. `verify` has seen them before; loads TensorFlow.

    Raises: as `verify`.
    """
    facts = ancestor.facts
    return saved_model.read(ancestor.folder, facts.backbone, facts.head, facts.weights_sha256)


def read_novelty(ancestor: Ancestor) -> Novelty | None:
    """What its training recordings sounded like, if it tells strange sounds. As `read_weights`."""
    return saved_model.read_novelty(ancestor.folder) if ancestor.scale is not None else None
