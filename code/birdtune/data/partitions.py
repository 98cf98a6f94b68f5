"""Which classes are held out: drawn, in folds, by a file, or as a published partition has them.

    --split.hold-out-classes, classes of the data, seed ─▶ held_out ─▶ HeldOut, one or one a fold

Published partitions are of ESC-50 (Piczak 2015) and FSC22 (Bandara et al. 2023), by the numbers that both sets give
their classes. ESC-50 counts from 0. FSC22's files count from 1 and its partition from 0: whoever compares the two
learns from two of the seven test classes. Here numbers are names before anything is compared.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from birdtune.errors import InputError, SettingsError, shown
from birdtune.runtime.files import read_csv, require_file
from birdtune.runtime.text import some

SETTING = "--split.hold-out-classes"
DEFAULT = "5-fold"
_FEWEST = 2  # unseen classes that can be told apart, seen ones that can be learnt from

# Position = number in the set, from 0.
ESC50 = (
    "dog", "rooster", "pig", "cow", "frog", "cat", "hen", "insects", "sheep", "crow",
    "rain", "sea_waves", "crackling_fire", "crickets", "chirping_birds", "water_drops", "wind", "pouring_water",
    "toilet_flush", "thunderstorm",
    "crying_baby", "sneezing", "clapping", "breathing", "coughing", "footsteps", "laughing", "brushing_teeth",
    "snoring", "drinking_sipping",
    "door_wood_knock", "mouse_click", "keyboard_typing", "door_wood_creaks", "can_opening", "washing_machine",
    "vacuum_cleaner", "clock_alarm", "clock_tick", "glass_breaking",
    "helicopter", "chainsaw", "siren", "car_horn", "engine", "train", "church_bells", "airplane", "fireworks",
    "hand_saw",
)  # fmt: skip
FSC22 = (
    "fire", "rain", "thunderstorm", "water_drops", "wind", "silence", "tree_falling", "helicopter", "vehicle_engine",
    "axe", "chainsaw", "generator", "handsaw", "firework", "gunshot", "wood_chop", "whistling", "speaking",
    "footsteps", "clapping", "insect", "frog", "bird_chirping", "wing_flapping", "lion", "wolf_howl", "squirrel",
)  # fmt: skip
# Other spellings: of ESC-10, and of FSC22's folders.
_ALSO = {
    "Dog bark": "dog", "Fire crackling": "crackling_fire", "Baby cry": "crying_baby", "Person sneeze": "sneezing",
    "Wing flaping": "wing_flapping", "Ax": "axe", "Fireworks": "firework",
}  # fmt: skip

_ESC50_FOLDS = (
    (27, 46, 38, 3, 29, 48, 40, 31, 2, 35), (22, 13, 39, 49, 32, 26, 42, 21, 19, 36),
    (23, 41, 14, 24, 33, 30, 4, 17, 10, 45), (34, 47, 20, 44, 25, 6, 7, 1, 28, 18),
    (43, 5, 37, 12, 9, 0, 11, 8, 15, 16),
)  # fmt: skip
_FSC22_VALIDATION, _FSC22_TEST = (6, 8, 9, 12, 13, 18, 22), (5, 7, 15, 17, 21, 23, 26)

# Name → classes of the set, numbers of those held out, to choose by, and left out.
_PARTITIONS: Mapping[str, tuple[Sequence[str], Sequence[int], Sequence[int], Sequence[int]]] = {
    "esc50-test": (ESC50, _ESC50_FOLDS[4], _ESC50_FOLDS[0], ()),
    **{f"esc50-fold{n}": (ESC50, _ESC50_FOLDS[n], (), _ESC50_FOLDS[4]) for n in range(4)},
    "fsc22-test": (FSC22, _FSC22_TEST, _FSC22_VALIDATION, ()),
    "fsc22-val": (FSC22, _FSC22_VALIDATION, (), _FSC22_TEST),
}


@dataclass(frozen=True)
class HeldOut:
    """Classes by their names in the data.

    Attributes:
        unseen: not learnt from, and recognised by their vectors.
        validation: not learnt from, and chosen by; (): by folds of the seen ones.
        left_out: neither learnt from nor recognised.
    """

    unseen: tuple[str, ...]
    validation: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    def seen(self, classes: Sequence[str]) -> tuple[str, ...]:
        """All others."""
        return tuple(name for name in classes if name not in {*self.unseen, *self.validation, *self.left_out})


def key_of(name: str) -> str:
    """A name without case, blanks and marks: of `Wing_flapping` and `WingFlapping` the same."""
    return "".join(filter(str.isalnum, unicodedata.normalize("NFKC", name).casefold()))


def held_out(setting: str | None, classes: Sequence[str], seed: int) -> list[HeldOut]:
    """The classes that are held out together, one after another.

    Args:
        setting: a number of classes, "K-fold", the name of a published partition, or a file; None: 5-fold, or fewer.
        seed: of what is drawn.

    Raises:
        SettingsError: too few classes for a number.
        InputError: a file cannot be read, names no class of the data, or leaves too few classes.
    """
    asked = (setting or DEFAULT).strip()
    if match := re.fullmatch(r"(\d+)(-fold)?", asked):
        n, is_folds = int(match[1]), bool(match[2])
        if setting is None:
            n = max(2, min(n, len(classes) // _FEWEST))
        return _drawn(n, classes, seed, is_folds=is_folds)
    found = _published(asked, classes) if asked.lower() in _PARTITIONS else _of_file(Path(asked), classes)
    if len(found.unseen) < _FEWEST or len(found.seen(classes)) < _FEWEST:
        raise InputError(
            f"{SETTING} {shown(asked)}: of the {len(classes)} classes of the data, {len(found.unseen)} are held out "
            f"({some(found.unseen) or 'none'}) and {len(found.seen(classes))} learnt from; expected {_FEWEST} of each "
            "at least. Add their recordings, or hold out others."
        )
    return [found]


def _drawn(n: int, classes: Sequence[str], seed: int, *, is_folds: bool) -> list[HeldOut]:
    fits = 2 <= n <= len(classes) // _FEWEST if is_folds else _FEWEST <= n <= len(classes) - _FEWEST
    if not fits:
        most = f"2-fold to {len(classes) // _FEWEST}-fold" if is_folds else f"{_FEWEST} to {len(classes) - _FEWEST}"
        raise SettingsError(
            f"{SETTING} {n}{'-fold' if is_folds else ''}: there are {len(classes)} classes, and {_FEWEST} at least are "
            f"held out at a time and {_FEWEST} learnt from. "
            + (f"Give {most}." if len(classes) >= 2 * _FEWEST else "Add classes.")
        )
    order = np.random.default_rng(seed).permutation(len(classes))
    parts = [order[number::n] for number in range(n)] if is_folds else [order[:n]]
    return [HeldOut(tuple(classes[number] for number in sorted(part))) for part in parts]


def _published(name: str, classes: Sequence[str]) -> HeldOut:
    names, *parts = _PARTITIONS[name.lower()]
    of_number: dict[str, list[str]] = {each: [] for each in names}
    for own in classes:
        if (known := _published_name(own, names, classes)) is not None:
            of_number[known].append(own)
    unseen, validation, left_out = (tuple(own for n in part for own in of_number[names[n]]) for part in parts)
    others = tuple(own for own in classes if not any(own in found for found in of_number.values()))
    return HeldOut(unseen, validation, (*left_out, *others))


def _published_name(own: str, names: Sequence[str], classes: Sequence[str]) -> str | None:
    """What a published set calls a class; None: it has none such.

    Raises InputError: classes are numbers, and it does not show whether they count from 0 or from 1.
    """
    keys = {key_of(name): name for name in names}
    keys |= {key_of(other): name for other, name in _ALSO.items() if name in names}
    if not all(each.isdecimal() for each in classes):
        return keys.get(key_of(own))
    numbers = {int(each) for each in classes}
    if 0 in numbers and max(numbers) < len(names):
        return names[int(own)]
    if max(numbers) == len(names) and 0 not in numbers:
        return names[int(own) - 1]
    raise InputError(
        f"{SETTING}: the classes of the data are the numbers {some(sorted(classes, key=int))}, and it does not show "
        f"whether they count from 0 or from 1. Give classes their names, e.g. {names[0]}, {names[1]}."
    )


def _of_file(path: Path, classes: Sequence[str]) -> HeldOut:
    if not path.exists() and path.suffix == "":
        raise SettingsError(
            f"{SETTING} {shown(path)}: expected a number of classes, folds such as 5-fold, a CSV `class,split`, or one "
            f"of {', '.join(_PARTITIONS)}."
        )
    require_file(path, SETTING, "a CSV `class,split`, with train, val or test")
    rows = read_csv(path, what="a list of classes")
    if not rows or "class" not in rows[0]:
        raise InputError(f"{shown(path)}: has no column `class`; expected `class,split`, with train, val or test.")
    own = {key_of(name): name for name in classes}
    parts: dict[str, list[str]] = {"train": [], "val": [], "test": [], "none": []}
    for number, row in enumerate(rows, start=2):
        name, part = row["class"].strip(), (row.get("split") or "test").strip().lower()
        if part not in parts or key_of(name) not in own:
            wrong = f"{shown(name)!r} is no class of the data" if part in parts else f"{shown(part)!r} is no part"
            raise InputError(
                f"{shown(path)}, row {number}: {wrong}; parts are train, val, test and none, classes {some(classes)}."
            )
        parts[part].append(own[key_of(name)])
    return HeldOut(*(tuple(dict.fromkeys(parts[part])) for part in ("test", "val", "none")))
