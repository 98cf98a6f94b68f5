"""What all stages of a run work with: its record, its data, and the model that it begins from."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from birdtune.config import Config
from birdtune.data import augment
from birdtune.data.batches import Windows
from birdtune.data.dataset import Dataset
from birdtune.data.frames import FrameStore
from birdtune.data.scan import Recording
from birdtune.evaluation import class_alignment
from birdtune.evaluation.diagnostics import STRONG, Diagnostic
from birdtune.models import ensemble, registry
from birdtune.models.backbone import ALL_BUT_HEAD, Backbone
from birdtune.models.head_start import HeadStart
from birdtune.runtime.log import Journal
from birdtune.runtime.runs import Run
from birdtune.runtime.signals import Interrupts
from birdtune.training.checkpoints import Checkpoints
from birdtune.training.served_model import ServedModel
from birdtune.training.world import World

# In the checkpoints of a run: those of its second training, and the average of an ensemble's members.
REFIT_NAME, ENSEMBLE_NAME = "refit", "ensemble"


@dataclass(frozen=True)
class Job:
    """One run at work.

    Attributes:
        base: the model that the run begins from; None: it begins from the backbone's weights.
        head_start: the classes that begin from a published classifier; None: none does.
        world: the processes that train together.
        later: which training of the run this is, if not the first: `REFIT_NAME`, on training and validation recordings
            together; `member-2` and so on, see `training.ensemble`; or `ENSEMBLE_NAME`, what these come to.
        member: of an ensemble, from 1 on.
    """

    run: Run
    dataset: Dataset
    store: FrameStore
    interrupts: Interrupts
    base: ServedModel | None = None
    head_start: HeadStart | None = None
    later: str = ""
    member: int = 1
    world: World = field(default_factory=World)
    _warned: set[str] = field(default_factory=set, repr=False)  # texts of what was warned of

    @property
    def config(self) -> Config:
        config = self.run.config
        return as_ensemble(config, config.train.ensemble or 1) if self.later == ENSEMBLE_NAME else config

    @property
    def refit(self) -> bool:
        """Whether this is the second training of the run, on training and validation recordings together."""
        return self.later == REFIT_NAME

    @property
    def journal(self) -> Journal:
        return self.run.journal

    @property
    def backbone(self) -> Backbone:
        return registry.backbone_of(self.config)

    @property
    def checkpoints(self) -> Checkpoints:
        settings = self.config.train
        keep = settings.keep_checkpoints if self.member == 1 else 1  # of many trainings, little of each
        every_epoch = settings.keep_weights == "every-epoch"
        return Checkpoints(self.run.checkpoints / self.later, keep, every_epoch=every_epoch)

    @property
    def changes_windows(self) -> bool:
        """Whether training windows are others in each epoch."""
        return bool(augment.active(self.config.augment) or self.config.train.jitter_s)

    @property
    def makes_copies(self) -> bool:
        """Whether augmented copies of windows are embedded once, by a backbone that is frozen as a whole."""
        config = self.config
        is_frozen = config.model.freeze_point == ALL_BUT_HEAD and not config.train.jitter_s
        return is_frozen and config.augment.copies > 0 and bool(augment.active(config.augment))

    @property
    def refits(self) -> bool:
        """Whether a second training follows, if there are validation recordings."""
        wanted = self.config.train.refit
        # On embeddings it takes seconds, and was better by every measure (docs/tuning.md).
        is_quick = self.config.model.freeze_point == ALL_BUT_HEAD and not self.changes_windows
        return is_quick if wanted is None else wanted

    @property
    def served(self) -> "Job":
        """The training whose weights are served: the second, in which validation recordings are training ones, or the
        average of an ensemble, if there is one; else this one.
        """
        if self.later or not self.dataset.part("val") or not (self.config.train.ensemble or self.refits):
            return self
        taught = {recording.name: "train" for recording in self.dataset.part("val")}
        return self.moved(taught, later=ENSEMBLE_NAME if self.config.train.ensemble else REFIT_NAME)

    def moved(self, to: Mapping[str, str], **changes: Any) -> "Job":
        """Another training of the run, with some recordings on another side of the split.

        Args:
            to: name of a recording → its side.
            changes: `later` and `member`.
        """
        places = {
            name: replace(place, split=to[name]) if name in to else place for name, place in self.dataset.places.items()
        }
        return replace(self, dataset=replace(self.dataset, places=places), **changes)

    @property
    def untaught(self) -> tuple[int, ...]:
        """Columns of the base model without training recordings now."""
        return class_alignment.untaught(self.dataset, len(self.base.classes)) if self.base is not None else ()

    def windows(self, part: Sequence[Recording], hop_s: float | None = None) -> Windows:
        """All windows of some recordings, those of one after those of another."""
        contents = [recording.content for recording in part]
        return Windows(self.store, contents, self.store.spec.hop(hop_s))

    def warn(self, diagnostics: Iterable[Diagnostic]) -> None:
        """Report each diagnostic once, though several stages come upon it."""
        for found in diagnostics:
            if found.text not in self._warned:
                self._warned.add(found.text)
                word = "warning" if found.severity == STRONG else "note"
                self.journal.warn(str(found), word=word, code=found.code, severity=found.severity)


def as_ensemble(config: Config, n: int) -> Config:
    """The settings of the network that n heads come to: hidden layers are n times as wide."""
    units = config.model.head_units
    return config.with_model(hidden_units=ensemble.wide(units, n)) if units else config


def trained_as(config: Config, record: Mapping[str, Any]) -> tuple[Config, str]:
    """The settings of the network that a run serves, and the name of its training, as `Job.later`, by its record."""
    if record.get("ensemble"):
        return as_ensemble(config, len(record["ensemble"])), ENSEMBLE_NAME
    return config, REFIT_NAME if record.get("refit") else ""
