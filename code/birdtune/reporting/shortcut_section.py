"""The metadata baseline in words.

    `shortcuts` of metrics.json ─▶ of_shortcuts ─▶ [Doubt];  line ─▶ the log;  section ─▶ the report
"""

from collections.abc import Iterator, Mapping
from typing import Any

from birdtune.errors import shown
from birdtune.evaluation.diagnostics import MILD, STRONG, Doubt
from birdtune.runtime.text import count, plain
from birdtune.runtime.text import percent as _percent

Row = Mapping[str, Any]

# A resampler lets little pass in the last tenth below half the rate.
_SURE_SHARE = 0.9
# No backbone hears above this, so a limit there changes nothing; and none is of use below the lowest song.
_TOP_HZ, _LOWEST_HZ = 7_500, 500
# Properties whose names are plural.
PLURAL = frozenset({"level", "faults"})
_ADVICE: Mapping[str, str] = {
    "channels": "Several channels are mixed to one before the model hears them; the recorders differ all the same.",
    "level": "--augment.gain-db 20 makes loudness say nothing.",
    "format": "Converting all to one format does not bring back what lossy coding took.",
    "place": "Recordings of each class from several of the places would show what it knows.",
    "length": "Clips cut to one length, at random from longer recordings, would not differ in it.",
}


def limit_hz(row: Row) -> int | None:
    """The --audio.band-limit that would leave what all recordings have; None where it would change nothing."""
    limit = int(_SURE_SHARE * (row["common_bandwidth_hz"] or 0) // 100) * 100
    return limit if _LOWEST_HZ <= limit < _TOP_HZ else None


def of_shortcuts(row: Row | None) -> Iterator[Doubt]:
    """What speaks against the model where something that is no song tells the classes as well as it does."""
    found = row and row["shortcut"]
    if not row or not found:
        return
    part = _part(row)
    severity = MILD if found["own"] or not found["heard"] or found["counter"]["cleared"] else STRONG
    values = _values(found)
    yield Doubt(
        "shortcut",
        severity,
        f"{_alone(found)} the classes about as well as the model: without any song, "
        f"{percent(found['test_accuracy'])} of the {part} recordings are told right by it, {percent(row['model'])} by "
        f"the model{f' ({values})' if values else ''}. {_counter(found, part)}",
        " ".join(filter(None, _advice(row, found))),
    )


def _alone(found: Row) -> str:
    if found["property"] == "all":
        return "What differs between recorders (sample rate, format, level and the like) tells"
    return f"The {found['name']} alone {'tell' if found['property'] in PLURAL else 'tells'}"


def _values(found: Row) -> str:
    return "; ".join(f"{shown(each['class'])}: {each['value']}" for each in found["values"])


def _counter(found: Row, part: str) -> str:
    """What the recordings say on which the property points to a wrong class."""
    against = found["counter"]
    if not against["recordings"]:
        return (
            f"On no {part} recording does it point to a wrong class, so the {part} cannot tell which of the two the "
            "model knows."
        )
    text = (
        f"On {count(against['recordings'], f'{part} recording')} it points to a wrong class: there the model is right "
        f"for {against['right']:,} and follows it for {against['followed']:,}"
    )
    if against["cleared"]:
        return f"{text}, so this is not all that it knows."
    return f"{text}, which does not show that it knows more."


def _advice(row: Row, found: Row) -> Iterator[str]:
    if found["own"]:
        yield (
            "That may be the species' own: a cicada is a noise floor, and owls are recorded at night. If it may be the "
            "recorder's or the place's, add recordings of each class from others."
        )
        return
    if not found["heard"]:
        yield (
            f"--audio.band-limit {row['band_limit_hz']:g} keeps the bandwidth from the model, not what else the "
            "recorders may differ in, such as their noise."
        )
    yield "Add recordings of each class that were made as those of the others, and run again."
    limit = limit_hz(row)
    if found["heard"] and limit and found["property"] in ("rate", "bandwidth", "all", "format"):
        yield f"Or let the model hear only what all recordings have: --audio.band-limit {limit}."
    yield _ADVICE.get(found["property"], "")


def line(row: Row) -> str:
    """For the log, behind the majority baseline; "" where nothing was measured."""
    best = strongest(row)
    if best is None:
        return ""
    return (
        f"{row['part']}: metadata baseline {best['test_accuracy']:.3f} (from {best['name']}, without any song; "
        f"{best['accuracy']:.3f} by cross-validation)"
    )


def strongest(row: Row) -> Row | None:
    """Of the properties that are heard and no species' own, the one that tells most by cross-validation."""
    alien = [each for each in row["rows"] if each["heard"] and not each["own"]]
    return max(alien, key=lambda each: round(each["accuracy"], 2), default=None)


def section(row: Row | None) -> Row | None:
    """What the report says of it, on its first screen and in a section; None where nobody measured."""
    if row is None:
        return None
    best, part = strongest(row), _part(row)
    sentence = ""
    if best is not None:
        what = "sample rate, format, level and the like" if best["property"] == "all" else f"the {best['name']} alone"
        sentence = f"By {what}, without any song, {percent(best['test_accuracy'])} are told right."
    found = row["shortcut"]
    return {
        "sentence": sentence,
        "reason": row["reason"],
        "part": part,
        "rows": row["rows"],
        "majority": row["majority"],
        "model": row["model"],
        "shortcut": found,
        "counter": _counter(found, part) if found else "",
        "limit_hz": limit_hz(row),
        "band_limit_hz": row["band_limit_hz"],
        "common_hz": row["common_bandwidth_hz"],
    }


def percent(value: float | None) -> str:
    """A share in words, for logs too."""
    return plain(_percent(value))


def _part(row: Row) -> str:
    return {"test": "test", "val": "validation"}[row["part"]]

