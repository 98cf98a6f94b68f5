"""What tuning searches: which settings, and between which values.

    settings + what the data is like ─▶ Space: dimensions, and what is left out and why
    values of the dimensions ─▶ effective (those that mean something together) ─▶ with_settings ─▶ Config
    settings + what was chosen ─▶ run_flags, which `run` takes, and what of them had to go; with_chosen, these settings

What a person has set is not searched. The ranges are wider than what is usually good, and hold the defaults.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pydantic

from birdtune.config import Config
from birdtune.data.embedding_input import is_embeddings
from birdtune.errors import SettingsError, shown
from birdtune.runtime.configure import nearest
from birdtune.settings import ATTENTION_HEADS, SEQUENCE_HEADS

Value = str | int | float

# Classes whose numbers of recordings differ by less than this are alike: there is nothing to balance.
_ALIKE = 1.5
_AUGMENT = "augment."


@dataclass(frozen=True)
class Dimension:
    """One setting that is searched: a range of numbers, or choices."""

    name: str
    words: str  # what it is, for people
    low: float = 0.0
    high: float = 0.0
    choices: tuple[Value, ...] = ()
    log: bool = False
    whole: bool = False

    @property
    def text(self) -> str:
        """The range as it is written in tune.space."""
        if self.choices:
            return "|".join(
                f"{choice:g}" if isinstance(choice, float) else str(choice) for choice in self.choices
            )
        return f"{self.low:g}..{self.high:g}"

    def holds(self, value: Any) -> bool:
        """Whether a value lies within."""
        if self.choices:
            return value in self.choices
        return isinstance(value, int | float) and self.low <= value <= self.high

    def row(self) -> dict[str, Any]:
        """For people and for machines."""
        return {"setting": self.name, "range": self.text, "log": self.log, "words": self.words}


EMBEDDINGS = (
    Dimension("model.head", "what learns on the embeddings", choices=("linear", "mlp", "attention", "prototype")),
    Dimension(
        "model.hidden-units", "width of the hidden layer (mlp, attention)", 16, 256, log=True, whole=True
    ),
    Dimension("model.prototypes", "prototypes of each class (prototype)", 1, 10, log=True, whole=True),
    Dimension("model.dropout", "share of the embedding dropped in training", 0.0, 0.6),
    Dimension("train.learning-rate", "how fast it learns", 1e-5, 1e-2, log=True),
    Dimension("train.epochs", "how long it learns", 5, 60, log=True, whole=True),
    Dimension("train.weight-decay", "pull of the weights to zero", choices=(0.0, 1e-4, 1e-3, 1e-2, 0.1)),
    Dimension("train.label-smoothing", "doubt in the labels", 0.0, 0.3),
    Dimension("train.focal-gamma", "less weight for what is known already", 0.0, 3.0),
    Dimension("train.sampling-power", "how often rare classes come", 0.0, 1.0),
    Dimension("train.class-weight-alpha", "how much rare classes count", 0.0, 1.0),
)
TRAINING = (
    Dimension("model.freeze", "what of the backbone is left as it is", choices=("none", "conv", "all-but-head")),
    Dimension("train.learning-rate", "how fast the backbone learns", 1e-6, 1e-3, log=True),
    Dimension("train.head-lr-multiplier", "how much faster the head does", 1.0, 100.0, log=True),
    Dimension("train.head-warmup-epochs", "epochs in which the head learns alone", 0, 5, whole=True),
    Dimension("train.layer-decay", "deeper layers learn slower", 0.5, 1.0),
    Dimension("train.ema-decay", "averaging of the weights", choices=(0.0, 0.9, 0.99, 0.999)),
    Dimension("train.epochs", "how long it learns", 5, 60, log=True, whole=True),
    Dimension("model.dropout", "share of the embedding dropped in training", 0.0, 0.6),
    Dimension("train.label-smoothing", "doubt in the labels", 0.0, 0.3),
    Dimension("train.jitter-s", "how far windows start from their place", 0.0, 0.48),
    Dimension("augment.gain-db", "louder and softer", 0.0, 12.0),
    Dimension("augment.pink-noise", "share of windows with noise", 0.0, 0.5),
    Dimension("augment.background", "share of windows with background of the place", 0.0, 0.5),
    Dimension("augment.mixup", "share of windows mixed with another", 0.0, 0.5),
    Dimension("augment.time-mask-s", "longest time mask", 0.0, 0.4),
    Dimension("augment.band-mask", "range of pitch masked", 0, 16, whole=True),
)
# Settings of some heads only, and whose.
_OF_HEADS: Mapping[str, tuple[str, ...]] = {
    "model.hidden-units": ("mlp", *ATTENTION_HEADS),
    "model.prototypes": ("prototype",),
    "model.context-windows": SEQUENCE_HEADS,
}
# Settings that cannot be combined with a head over time (see config.py).
_HOPS = ("train.hop-s", "evaluate.hop-s", "detect.hop-s")
TABLES: Mapping[str, Sequence[Dimension]] = {"embeddings": EMBEDDINGS, "training": TRAINING}


@dataclass(frozen=True)
class Space:
    """What is searched, and what could be and is not."""

    dimensions: tuple[Dimension, ...]
    left_out: Mapping[str, str]  # setting → why


def space_of(
    config: Config, *, freeze_points: Sequence[str], recordings: Sequence[int], has_background: bool
) -> Space:
    """What is searched with these settings on these data.

    Args:
        freeze_points: what model.freeze may be with this backbone.
        recordings: of each class.
        has_background: whether a class of the data is background.

    Raises:
        SettingsError: tune.space is not understood, or names what is set; or nothing is left to search.
    """
    table = {row.name: row for row in TABLES[config.tune.on]}
    if "model.freeze" in table:
        middle = "conv" if "conv" in freeze_points else freeze_points[len(freeze_points) // 2]
        points = ("none", middle, "all-but-head")
        table["model.freeze"] = replace(table["model.freeze"], choices=points)
    given, flat = config.given(), config.flat()
    # See config.py.
    no_attention = "train.label-refinement true" if config.train.label_refinement else ""
    if "model.head" in table and no_attention:
        choices = tuple(head for head in table["model.head"].choices if head != "attention")
        table["model.head"] = replace(table["model.head"], choices=choices)
    if "train.head-warmup-epochs" in given:  # which must stay below epochs
        low = max(table["train.epochs"].low, config.train.head_warmup_epochs + 1)
        table["train.epochs"] = replace(table["train.epochs"], low=low)
    if config.tune.space is not None:
        wanted = _narrowed(config.tune.space, table, config)
        if twice := sorted(wanted.keys() & given):
            raise SettingsError(
                f"tune.space searches {twice[0]}, which is set to {shown(flat[twice[0]])}. Leave out one of the two."
            )
        left_out = {name: "not in tune.space" for name in table if name not in wanted}
    else:
        wanted = table
        left_out = {name: f"set to {shown(flat[name])}" for name in table if name in given}
        left_out |= _pointless(config, table, recordings, has_background)
        if no_attention and "model.head" in table and "model.head" not in left_out:
            left_out["model.head attention"] = f"not with {no_attention}"
    kept = tuple(row for name, row in wanted.items() if name not in left_out)
    if not kept:
        raise SettingsError(
            f"Every setting that could be searched is set: {', '.join(left_out)}. Leave some to be tuned."
        )
    return Space(kept, left_out)


def _pointless(
    config: Config, table: Mapping[str, Dimension], recordings: Sequence[int], has_background: bool
) -> dict[str, str]:
    """Settings that would change nothing, or may not be changed, and why."""
    found: dict[str, str] = {}
    if max(recordings) < _ALIKE * min(recordings):
        reason = f"classes are alike, {min(recordings)} to {max(recordings)} recordings each"
        found |= dict.fromkeys(("train.sampling-power", "train.class-weight-alpha"), reason)
    head = config.model.head
    if "model.head" not in table or "model.head" in config.given():
        found |= {name: f"not with the {head} head" for name, of in _OF_HEADS.items() if head not in of}
    if config.model.freeze_point == "all-but-head" and "model.freeze" in config.given():
        found |= dict.fromkeys(("train.layer-decay", "train.head-warmup-epochs"), "the backbone is frozen")
    if config.train.label_refinement:
        found["augment.mixup"] = "not with train.label-refinement true"  # see config.py
    if is_embeddings(config.data_folder):
        on_sound = (name for name in table if name.startswith(_AUGMENT) or name == "train.jitter-s")
        found |= dict.fromkeys(on_sound, "the data are embeddings")
    if not has_background:
        found["augment.background"] = "there is no background"
    return {name: why for name, why in found.items() if name in table}


def _narrowed(text: str, table: Mapping[str, Dimension], config: Config) -> dict[str, Dimension]:
    """The dimensions that tune.space names, each with its range if it gives one."""
    found: dict[str, Dimension] = {}
    for part in filter(None, re.split(r"[,;\s]+", text)):
        name, has_range, values = part.partition("=")
        name = name.removeprefix("--").replace("_", "-")
        if name not in table:
            raise SettingsError(
                f"tune.space: {shown(name)} cannot be searched on {config.tune.on}{nearest(name, table)}. "
                f"What can: {', '.join(table)}."
            )
        if name in found:
            raise SettingsError(f"tune.space: {name} stands twice. Keep one.")
        found[name] = _ranged(table[name], values) if has_range else table[name]
        for end in found[name].choices or (found[name].low, found[name].high):
            value = int(end) if found[name].whole else end
            with_settings(config, effective({name: value}, config))  # raises if it may not be
    if not found:
        raise SettingsError("tune.space: names no setting. Leave it out to search all that matter.")
    return found


def _ranged(row: Dimension, text: str) -> Dimension:
    """A dimension with a range of one's own: `low..high`, or `one|another`."""
    low, is_range, high = text.partition("..")
    try:
        if is_range and not row.choices:
            number = int if row.whole else float
            found = replace(row, low=number(low), high=number(high))
            if found.low >= found.high or (row.log and found.low <= 0):
                raise ValueError
        else:
            sample = row.choices[0] if row.choices else int(row.low) if row.whole else row.low
            found = replace(row, choices=tuple(type(sample)(part) for part in text.split("|")), log=False)
            if len(set(found.choices)) < max(2, len(found.choices)):
                raise ValueError
    except ValueError:
        raise SettingsError(
            f"tune.space: {row.name}={shown(text)} is not understood. Write "
            + ("choices" if row.choices else "a range, low to high")
            + f" such as {row.name}={row.text}"
            + ("; the low end above 0." if row.log else ".")
        ) from None
    return found


def effective(values: Mapping[str, Value], config: Config) -> dict[str, Value]:
    """Those of the values that mean something together, as settings that may stand beside each other."""
    found = dict(values)
    for name, of in _OF_HEADS.items():
        if found.get("model.head", config.model.head) not in of:
            found.pop(name, None)
    if found.get("model.freeze", config.model.freeze_point) == "all-but-head":
        for name in ("train.layer-decay", "train.head-warmup-epochs"):
            found.pop(name, None)
    if "train.head-warmup-epochs" in found:
        epochs = int(found.get("train.epochs", config.train.epochs))
        found["train.head-warmup-epochs"] = min(int(found["train.head-warmup-epochs"]), epochs - 1)
    return found


def defaults(space: Space, config: Config) -> dict[str, Value]:
    """What each dimension is where nobody tunes it."""
    flat = config.flat()
    heads = {head: config.model.model_copy(update={"head": head}) for head in ("mlp", "prototype")}
    usual = {
        "model.hidden-units": heads["mlp"].head_units,
        "model.prototypes": heads["prototype"].head_prototypes,
        "train.head-lr-multiplier": config.train.head_factor,
    }
    return {row.name: usual.get(row.name, flat[row.name]) for row in space.dimensions}


def with_settings(config: Config, values: Mapping[str, Any]) -> Config:
    """The settings with some of them replaced.

    Raises:
        SettingsError: one of the values is out of range, or fights another.
    """
    tree = config.model_dump()
    for name, value in values.items():
        *sections, key = name.replace("-", "_").split(".")
        branch = tree
        for section in sections:
            branch = branch[section]
        branch[key] = value
    try:
        return Config.model_validate(tree)
    except pydantic.ValidationError as fault:
        reasons = "; ".join(str(error["msg"]).removeprefix("Value error, ") for error in fault.errors())
        tried = ", ".join(f"{name} {shown(value)}" for name, value in values.items())
        # What it is beside, and not what it advises to give instead.
        named = {name for name in config.given() if "." in name and name in reasons and f"--{name}" not in reasons}
        other = sorted(named - values.keys())
        tried += "".join(f" beside --{name} {shown(config.flat()[name])}" for name in other)
        raise SettingsError(
            f"tune.space searches {tried}, which do not go together: {reasons}. Narrow tune.space, or change "
            f"--{other[0]}."
            if other
            else f"tune.space: {tried}: {reasons}."
        ) from fault


def run_flags(config: Config, chosen: Mapping[str, Value]) -> tuple[list[str], str]:
    """What `run` is given for settings that somebody has, with some of them chosen by a search.

    Returns:
        flags; and in words which settings had to go, as the chosen head does not take them (empty: none).
    """
    wanted = {
        **{name: value for name, value in config.changed().items() if not name.startswith("tune.")},
        **chosen,
    }
    head = wanted.get("model.head", config.model.head)
    gone = _not_taken(wanted, head)
    flags = [f"--{name}={value}" for name, value in wanted.items() if name not in gone]
    return flags, f"without {', '.join(gone)}: not with the {head} head" if gone else ""


def _not_taken(settings: Mapping[str, Any], head: Value) -> list[str]:
    """Which of some settings a head does not take, by their names and values."""
    return [
        name
        for name, value in settings.items()
        if head not in _OF_HEADS.get(name, (head,))
        or (head in (*ATTENTION_HEADS, *SEQUENCE_HEADS) and name == "train.label-refinement")
        or (head in SEQUENCE_HEADS and name in _HOPS)
        or (head == "sed-attention" and (name, value) == ("model.output", "softmax"))
    ]


def with_chosen(config: Config, chosen: Mapping[str, Value]) -> Config:
    """The settings that `run_flags` writes out; what had to go is as if nobody had given it."""
    gone = _not_taken(config.changed(), chosen.get("model.head", config.model.head))
    for name in (*chosen, *gone):
        section, key = name.replace("-", "_").split(".")
        part = getattr(config, section)
        value = chosen[name] if name in chosen else type(part).model_fields[key].default
        part = part.model_copy(update={key: value})
        if name in gone:
            part.model_fields_set.discard(key)
        config = config.model_copy(update={section: part})
    return config
