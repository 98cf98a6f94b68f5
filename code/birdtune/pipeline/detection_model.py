"""Which model detects, from which score on; opened, with TensorFlow, when a recording is to be scored.

    Config, Asked ─▶ Model ─▶ described: what tables need to know of it, kept where the same was asked for before
                          └─▶ used: the model itself
"""

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import birdtune
from birdtune.config import Config
from birdtune.errors import SettingsError, naming, shown
from birdtune.evaluation.decision import BACKGROUND, LEAST, NOMINAL, Thresholds
from birdtune.evaluation.detections import Rule
from birdtune.pipeline.shards import Shard
from birdtune.pipeline.species_list import classes_on
from birdtune.runtime import bfloat16, fingerprints
from birdtune.runtime.files import file_sha256, value_sha256
from birdtune.runtime.log import Journal
from birdtune.runtime.runs import newest_exported
from birdtune.runtime.tensorflow_import import load_tensorflow
from birdtune.runtime.text import count, some
from birdtune.serving import detection_ledger
from birdtune.serving.detect import WithPublished
from birdtune.serving.detection_ledger import Described
from birdtune.serving.rows import PublishedChoice, Scorer
from birdtune.serving.verify import PUBLISHED_LABELS, ExportedModel


class Asked(NamedTuple):
    """What the command line asks for."""

    files: Sequence[Path]
    out: Path
    kind: str  # of `detection_tables.ENDINGS`
    model: Path | None
    species_list: Path | None
    classes: str = "own"  # as `predict.predict` has them
    published_threshold: float | None = None
    shard: Shard | None = None
    merges: bool = False  # take over what shards have scored into their folders below `out`


class Used(NamedTuple):
    """What scores windows, and from which score on a class is detected."""

    scorer: Scorer
    exported: ExportedModel | None  # None: published weights with a classifier of their own
    thresholds: Thresholds
    n_own: int  # classes of the data; those behind them are published ones
    in_bfloat16: bool = False

    @classmethod
    def of(cls, model: Scorer, published: PublishedChoice | None) -> "Used":
        """A model, with published classes beside its own or in their place; 0.5 where it has no thresholds."""
        exported, n = model if isinstance(model, ExportedModel) else None, len(model.classes)
        found = None if exported is None else exported.detection_thresholds or exported.thresholds
        thresholds = found or Thresholds((LEAST,) * n, (NOMINAL,) * n, "", "")
        if published is None:
            return cls(model, exported, thresholds, n)
        if published.alone:
            thresholds = Thresholds((math.inf,) * n, (BACKGROUND,) * n, "", "")
        kept = len(published.classes.labels)
        values, origins = (published.threshold,) * kept, (NOMINAL,) * kept
        both = replace(thresholds, values=thresholds.values + values, origins=thresholds.origins + origins)
        return cls(WithPublished(model, published.classes), exported, both, n)


@dataclass
class Model:
    """The model that is asked for; the newest one where none is.

    Raises:
        InputError: there is none.
    """

    config: Config
    asked: Asked
    journal: Journal

    def __post_init__(self) -> None:
        self.place = self.asked.model or newest_exported(self.config)
        self.key = _key(self.config, self.asked, self.place)

    @cached_property
    def described(self) -> Described:
        """What tables need to know of it. Raises as `used`."""
        kept = detection_ledger.described(self.asked.out, self.key) if self.key else None
        if kept is not None:
            return kept
        spec = self.used.scorer.front_end
        made_by = _made_by(self.config, self.used, self.place, self.rule)
        return Described(made_by, len(self.used.scorer.classes), (spec.low_hz, spec.top_hz))

    @property
    def is_open(self) -> bool:
        """Whether it had to be opened."""
        return "used" in self.__dict__

    @cached_property
    def used(self) -> Used:
        """The model itself. Raises CheckpointError or InputError."""
        load_tensorflow()
        from birdtune.pipeline import precision
        from birdtune.pipeline.predict import published_choice, scorer_in
        from birdtune.training import devices

        devices.prepare_devices()
        asked = self.asked
        with naming("--model" if asked.model is not None else None):
            model = scorer_in(self.place)
        published = published_choice(model, self.place, asked.classes, asked.published_threshold, of_windows=True)
        in_bfloat16 = precision.settle(self.config, model, self.journal)
        return Used.of(model, published)._replace(in_bfloat16=in_bfloat16)

    @cached_property
    def rule(self) -> Rule:
        """By its thresholds, and for the classes on the list. Raises as `used`; also SettingsError."""
        return _rule(self.config, self.used, self.asked.species_list, self.journal)

    @property
    def hop_rows(self) -> int:
        """From one window to the next."""
        return _hop_rows(self.config, self.used.scorer)

    @property
    def batch_size(self) -> int:
        """Windows that are scored at once."""
        from birdtune.training import devices

        return devices.windows_at_once(self.config.evaluate.batch_size, self.used.scorer.front_end)


def _key(config: Config, asked: Asked, place: Path) -> str:
    """Digest of all that decides what is detected, as far as it is known before the model is opened; "": it is not."""
    how = config.detect
    settings = [how.hop_s, how.smooth_windows, how.on, how.off, how.min_s, how.merge_gap_s, config.audio.cache_key]
    if config.predict.precision == "bfloat16":
        settings.append(f"bfloat16 by {bfloat16.instructions()}")
    beside = list[Any]()
    with contextlib.suppress(OSError):
        if (place / "model.json").is_file():
            model = [file_sha256(path) for name in ("model.json", PUBLISHED_LABELS) if (path := place / name).is_file()]
        elif place.is_file():
            model = [fingerprints.checkpoint_digest(place)]
            # One of them names its classes, perhaps.
            tables = sorted(path for path in place.parent.iterdir() if path.suffix.lower() in (".txt", ".csv"))
            beside = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in tables]
        else:
            return ""
        species = None if asked.species_list is None else file_sha256(asked.species_list)
        choice = [asked.classes, asked.published_threshold, species, birdtune.__version__]
        return value_sha256([settings, model, beside, choice])
    return ""


def _rule(config: Config, used: Used, species_list: Path | None, journal: Journal) -> Rule:
    wanted, thresholds = config.detect, used.thresholds
    if wanted.on is not None and wanted.off is not None and wanted.off > wanted.on:
        raise SettingsError(
            f"--detect.off {wanted.off:g} is above --detect.on {wanted.on:g}: a detection would end before it begins. "
            "Give a lower one, or leave it out."
        )
    spec = used.scorer.front_end
    rule = Rule.of(
        thresholds, wanted.on, wanted.off,
        smooth_windows=wanted.smooth_windows or spec.smoothed_windows(_hop_rows(config, used.scorer)),
        merge_gap_s=wanted.merge_gap_s, min_s=wanted.min_s,
    )  # fmt: skip
    if species_list is None:
        return rule
    labels = {} if used.exported is None else used.exported.facts.get("published_names") or {}
    columns, unknown = classes_on(species_list, used.scorer.classes, labels)
    background = [column for column in columns if thresholds.origins[column] == BACKGROUND]
    journal.say(f"  {shown(species_list)}: detections of {len(columns) - len(background):,} of the classes only")
    if unknown:
        journal.say(f"  {count(len(unknown), 'name')} on it {'is' if len(unknown) == 1 else 'are'} no class of the "
                    f"model: {some(unknown)}")  # fmt: skip
    return rule.only(columns)


def _made_by(config: Config, used: Used, place: Path, rule: Rule) -> str:
    """Digest of all that decides what is detected."""
    facts: Any = fingerprints.checkpoint_digest(place) if used.exported is None else used.exported.facts
    thresholds = [[None if np.isinf(value) else value for value in each.tolist()] for each in (rule.on, rule.off)]
    hop = _hop_rows(config, used.scorer)
    rest = [rule.smooth_windows, rule.merge_gap_s, rule.min_s, hop, config.audio.cache_key, used.in_bfloat16]
    return value_sha256([facts, list(used.scorer.classes), thresholds, rest])


def _hop_rows(config: Config, scorer: Scorer) -> int:
    """Raises SettingsError: the hop that is asked for is not that of a head over time."""
    spec, hop_s = scorer.front_end, config.detect.hop_s
    if not scorer.pooling.context:
        return spec.detection_hop if hop_s is None else spec.hop(hop_s)
    if hop_s is not None and spec.hop(hop_s) != spec.hop_rows:
        raise SettingsError(
            f"--detect.hop-s {hop_s:g}: the model's head hears what follows what, and learnt from windows "
            f"{spec.hop_s:g} s apart. Leave the setting out."
        )
    return spec.hop_rows
