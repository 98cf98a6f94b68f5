"""Properties of recordings other than their song, by which a model could separate classes without any bird.

    recordings ─▶ properties_of ─▶ [Property, …], a value of each for every recording
    recordings, labels ─▶ recorder_notices ─▶ sentences for `check`

Some belong to the recorder: sample rate, format, level, the site in the name. Others may belong to the species (`own`):
a cicada is a noise floor, and owls are recorded at night.
"""

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from birdtune.audio.measures import BAND_EDGES_HZ, NO_BAND
from birdtune.data.scan import Recording
from birdtune.data.source_names import PLACES, STAMP, read, words
from birdtune.errors import shown

Floats = npt.NDArray[np.float64]

# What stands for a value that a recording does not have; far from all others.
NO_VALUE: Final = -1e6
_NO_BANDS: Final = np.full(len(BAND_EDGES_HZ) - 1, NO_BAND)
# Templates for the numbers of each column.
_LEVELS: Final = ("level {} dB", "level in the band that all have {} dB", "peak {} dB")
_FAULTS: Final = ("offset {}", "share clipped {}", "share empty {}", "share of gaps {}")
_DATE: Final = ("year {}", "day {} of the year")
# Bandwidths are compared in kilohertz, and above this not at all: no backbone has a band there.
_TOP_HZ: Final = 7_500
# For `check`: so much of a class has a value, and so little of all others has it; of no fewer recordings.
_MOST, _FEW, _ENOUGH = 0.9, 0.05, 3


@dataclass(frozen=True, eq=False)
class Property:
    """One property of all recordings.

    Attributes:
        key: as it stands in metrics.json.
        name: for people.
        own: it may belong to the species, so that a model that uses it may still recognise the bird.
        columns: numbers to learn from. [N, F]
        texts: the value of each recording, where there are few different ones; else empty.
        templates: words for each column, with {} for the number. F
    """

    key: str
    name: str
    own: bool
    columns: Floats
    texts: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()

    @property
    def differs(self) -> bool:
        """Whether the recordings do not all have the same value."""
        return bool((self.columns != self.columns[:1]).any())


def properties_of(recordings: Sequence[Recording]) -> list[Property]:
    """The properties in which recordings differ, the most important first."""
    read_names = [_NameParts.of(recording) for recording in recordings]
    properties = [
        _category("rate", "sample rate", [f"{r.facts.rate_hz:,} Hz" for r in recordings]),
        _number("bandwidth", "bandwidth", [_bandwidth_hz(r) for r in recordings], "{} Hz"),
        _category("format", "file format", [r.facts.format for r in recordings]),
        _category("channels", "number of channels", [str(r.facts.channels) for r in recordings]),
        _number("length", "length", [r.facts.duration_s for r in recordings], "{} s"),
        Property("level", "level and peak", False, _levels(recordings), templates=_LEVELS),
        Property("faults", "offset, clipping and gaps", False, _faults(recordings), templates=_FAULTS),
        _category("place", "place or recorder in the name", _places(recordings, read_names)),
        Property("date", "date in the name", True, np.array([[n.year, n.day] for n in read_names]), templates=_DATE),
        _number("hour", "time of day in the name", [n.hour for n in read_names], "{} h", own=True),
        _floor(recordings),
    ]
    return [each for each in properties if each.columns.shape[1] and each.differs]


def _floor(recordings: Sequence[Recording]) -> Property:
    """Noise floor in the bands that the recordings have in common, decibels of full scale."""
    inside = _inside(recordings)
    bands = np.array([r.facts.measures.floor_db if r.facts.measures else _NO_BANDS for r in recordings], np.float64)
    edges = itertools.compress(itertools.pairwise(BAND_EDGES_HZ), inside)
    templates = tuple(f"{{}} dB from {low:.0f} to {high:.0f} Hz" for low, high in edges)
    return Property("floor", "noise floor", True, bands[:, inside], templates=templates)


def _inside(recordings: Sequence[Recording]) -> npt.NDArray[np.bool_]:
    """Bands that the recordings have in common: others depend on the bandwidth, which is another property. [36]"""
    return np.asarray(BAND_EDGES_HZ[1:] <= common_bandwidth_hz(recordings))


def common_bandwidth_hz(recordings: Sequence[Recording]) -> float:
    """The bandwidth that three in four recordings of each class have."""
    by_class: dict[str, list[float]] = defaultdict(list)
    for recording in recordings:
        for name in recording.classes:
            by_class[name].append(_bandwidth_hz(recording))
    # Of a recording that is mostly silent it is measured too low.
    return min(float(np.quantile(values, 0.25, method="lower")) for values in by_class.values())


def _category(key: str, name: str, texts: Sequence[str]) -> Property:
    # A number each: trees that are grown to their ends separate them, and a column each would take much memory.
    codes = np.unique(np.asarray(texts, dtype=object), return_inverse=True)[1]
    return Property(key, name, False, codes.astype(np.float64)[:, None], tuple(texts))


def _number(key: str, name: str, values: Sequence[float], template: str, *, own: bool = False) -> Property:
    return Property(key, name, own, np.array(values, np.float64)[:, None], templates=(template,))


def _bandwidth_hz(recording: Recording) -> float:
    measures = recording.facts.measures
    return float(measures.bandwidth_hz) if measures else recording.facts.rate_hz / 2


def _levels(recordings: Sequence[Recording]) -> Floats:
    """Level of the whole and in the common band, and peak, decibels of full scale. [N, 3]"""
    inside = _inside(recordings)
    rows = []
    for recording in recordings:
        measures, band_db = recording.facts.measures, NO_VALUE
        if measures and inside.any():
            band_db = float(10 * np.log10((10 ** (measures.spectrum_db[inside] / 10.0)).sum()))
        rows.append([measures.level_db if measures else NO_VALUE, band_db, recording.facts.peak_db])
    return np.array(rows, np.float64)


def _faults(recordings: Sequence[Recording]) -> Floats:
    measured = (recording.facts.measures for recording in recordings)
    return np.array([[m.offset, m.clipped, m.empty, m.gaps] if m else [0.0] * 4 for m in measured])


# ---- names --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _NameParts:
    """What the path below the class folder says of place and time."""

    places: tuple[str, ...]  # words that may name a site or a recorder, lower case
    year: float
    day: float  # of the year, about
    hour: float

    @classmethod
    def of(cls, recording: Recording) -> "_NameParts":
        reading = read(recording)
        label = "".join(words(recording.label))
        stamp = STAMP.search(reading.text)
        texts = [*reading.folder.split("/"), *([reading.text[: stamp.start()]] if stamp else [])]
        texts += [match[0] for match in _PLACE.finditer(reading.text)]
        named = (_canonical(text) for text in texts)
        places = tuple(sorted({text for text in named if text and not _abbreviates(text, label)}))
        return cls(places, *(_moment(stamp[0]) if stamp else (NO_VALUE,) * 3))


_PLACE = re.compile(rf"(?<![^\W\d_])(?:{'|'.join(sorted(PLACES, key=len, reverse=True))})[ _-]?\d+", re.IGNORECASE)
_DAY = re.compile(r"(?P<y>(?:19|20)?\d\d)[-_.]?(?P<m>\d\d)[-_.]?(?P<d>\d\d)\D{0,11}(?P<h>\d\d)")
_DAY_BACKWARDS = re.compile(r"(?P<d>\d\d)[-_.](?P<m>\d\d)[-_.](?P<y>(?:19|20)\d\d)\D{0,11}(?P<h>\d\d)")


def _moment(stamp: str) -> tuple[float, float, float]:
    """Year, day of the year (months of 31 days) and hour; NO_VALUE for each that is not there."""
    match = _DAY_BACKWARDS.match(stamp) or _DAY.match(stamp)
    if match is None:
        return NO_VALUE, NO_VALUE, NO_VALUE
    year, month, day, hour = (float(match[part]) for part in "ymdh")
    return year + (2000 if year < 100 else 0), 31 * (month - 1) + day, hour if hour < 24 else NO_VALUE


def _canonical(text: str) -> str:
    return re.sub(r"[\W_]+", " ", text).strip().casefold()


def _abbreviates(text: str, label: str) -> bool:
    """Whether a word is the class itself or a code for it: its letters come in the class's name in this order."""
    if re.search(r"\d", text):
        return False
    letters = iter(label)
    return all(letter in letters for letter in text.replace(" ", ""))


def _places(recordings: Sequence[Recording], parts: Sequence[_NameParts]) -> list[str]:
    """The place of each recording, "" where its name has none.

    Of the words in a name, the one that most sources share: the others are often counters of recordings.
    """
    shared: dict[str, int] = Counter(place for part in parts for place in part.places)
    texts = [max(part.places, key=lambda place: (shared[place], place), default="") for part in parts]
    by_class: dict[str, set[str]] = defaultdict(set)
    for recording, text in zip(recordings, texts, strict=True):
        for name in recording.classes:
            by_class[name].add(text)
    # One word without a digit for each class, and each its own: those are codes of the classes.
    alone = [next(iter(places)) for places in by_class.values() if len(places) == 1]
    codes = len(alone) == len(by_class) == len(set(alone)) and not any(re.search(r"\d", text) for text in alone)
    return [""] * len(texts) if codes else texts


# ---- before any training ------------------------------------------------------------------------


def recorder_notices(recordings: Sequence[Recording]) -> Iterator[str]:
    """A sentence for each property of the recorder that alone separates classes from all others."""
    values: dict[str, Callable[[Recording], str]] = {
        "sample rate": lambda r: f"{r.facts.rate_hz:,} Hz",
        "bandwidth": _spoken_bandwidth,
        "file format": lambda r: r.facts.format,
        "number of channels": lambda r: str(r.facts.channels),
    }
    reported: set[str] = set()
    for name, value_of in values.items():
        rows = telling_values([r.label for r in recordings], [value_of(r) for r in recordings])
        rows = [row for row in rows if row[0] not in reported]
        reported |= {row[0] for row in rows}
        if rows:
            examples = "; ".join(f"{shown(label)} has {value} in {n:,} of {of:,}" for label, value, n, of in rows[:3])
            more = f"; and {len(rows) - 3:,} more" if len(rows) > 3 else ""
            yield (
                f"The {name} alone separates classes: {examples}{more}. A model can learn the recorder in place of "
                "the bird; the report says how far that may have happened. Add recordings of each class by other "
                "recorders, or see --audio.band-limit."
            )


def _spoken_bandwidth(recording: Recording) -> str:
    hertz = _bandwidth_hz(recording)
    return f"{hertz / 1000:.0f} kHz" if hertz < _TOP_HZ else "all of the backbone's band"


def telling_values(labels: Sequence[str], values: Sequence[str]) -> list[tuple[str, str, int, int]]:
    """Classes nearly all of whose recordings have a value that hardly any other class's have.

    Returns:
        class, value, recordings of the class that have it, recordings of the class; the largest classes first.
    """
    by_class, by_value = Counter(labels), Counter(values)
    both = Counter(zip(labels, values, strict=True))
    rows = []
    for (label, value), n in both.items():
        others = len(labels) - by_class[label]
        if value and n >= _ENOUGH and n >= _MOST * by_class[label] and by_value[value] - n <= _FEW * others:
            rows.append((label, value, n, by_class[label]))
    return sorted(rows, key=lambda row: (-row[2], row[0]))
