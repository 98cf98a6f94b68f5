"""Shortcuts, the metadata baseline in words.

    `shortcuts` of metrics.json ─▶ of_shortcuts ─▶ [Diagnostic];  line ─▶ the log;  section ─▶ the report
"""

from collections.abc import Iterator, Mapping
from typing import Any

from birdtune.errors import shown
from birdtune.evaluation.diagnostics import MILD, STRONG, Diagnostic
from birdtune.runtime.text import count
from birdtune.runtime.text import plain_percent as percent

Row = Mapping[str, Any]

# A resampler lets little pass in the last tenth below half the rate.
_SURE_SHARE = 0.9
# No backbone hears above this, so a limit there changes nothing; and none is of use below the lowest song.
_TOP_HZ, _LOWEST_HZ = 7_500, 500
# Properties whose names are plural.
PLURAL = frozenset({"level", "faults"})
_ADVICE: Mapping[str, str] = {
    "channels": "Channels are mixed to one before the model; the recorders differ all the same.",
    "level": "--augment.gain-db 20 makes the level uninformative.",
    "format": "Converting all to one format does not bring back what lossy coding took.",
    "place": "Recordings of each class from several of the places would show which.",
    "length": "Clips cut to one length, at random from longer recordings, would not differ in it.",
}


def limit_hz(row: Row) -> int | None:
    """The --audio.band-limit that would leave what all recordings have; None where it would change nothing."""
    limit = int(_SURE_SHARE * (row["common_bandwidth_hz"] or 0) // 100) * 100
    return limit if _LOWEST_HZ <= limit < _TOP_HZ else None


def of_shortcuts(row: Row | None) -> Iterator[Diagnostic]:
    """The warning where recording conditions predict the classes as well as the model does."""
    found = row and row["shortcut"]
    if not row or not found:
        return
    part = _part(row)
    severity = MILD if found["biological"] or not found["audible"] or found["conflict"]["cleared"] else STRONG
    values = _values(found)
    yield Diagnostic(
        "shortcut",
        severity,
        f"{_alone(found)} the classes about as well as the model: without the song, {percent(found['test_accuracy'])} "
        f"of the {part} recordings are predicted correctly, {percent(row['model'])} by the model"
        f"{f' ({values})' if values else ''}. {_conflict(found, part)}",
        " ".join(filter(None, _advice(row, found))),
    )


def _alone(found: Row) -> str:
    if found["property"] == "all":
        return "Recording conditions (sample rate, format, level and the like) predict"
    return f"The {found['name']} alone {'predict' if found['property'] in PLURAL else 'predicts'}"


def _values(found: Row) -> str:
    return "; ".join(f"{shown(each['class'])}: {each['value']}" for each in found["values"])


def _conflict(found: Row, part: str) -> str:
    """The recordings on which the property points to a wrong class, in words."""
    against = found["conflict"]
    if not against["recordings"]:
        return (
            f"On no {part} recording does it point to a wrong class, so the {part} cannot tell which of the two the "
            "model uses."
        )
    text = (
        f"On {count(against['recordings'], f'{part} recording')} it points to a wrong class: there the model is right "
        f"for {against['right']:,} and follows it for {against['followed']:,}"
    )
    if against["cleared"]:
        return f"{text}, so the model uses more than this."
    return f"{text}, which does not show that the model uses more."


def _advice(row: Row, found: Row) -> Iterator[str]:
    if found["biological"]:
        yield (
            "That may be the species' own: a cicada is a noise floor, and owls are recorded at night. If it may be the "
            "recorder's or the place's, add recordings of each class from others."
        )
        return
    if not found["audible"]:
        yield (
            f"--audio.band-limit {row['band_limit_hz']:g} removes the bandwidth, not what else the recorders may "
            "differ in, such as their noise."
        )
    yield "Add recordings of each class that were made as those of the others, and run again."
    limit = limit_hz(row)
    if found["audible"] and limit and found["property"] in ("rate", "bandwidth", "all", "format"):
        yield f"Or restrict the model to the band that all recordings have: --audio.band-limit {limit}."
    yield _ADVICE.get(found["property"], "")


def line(row: Row) -> str:
    """For the log, behind the majority baseline; "" where nothing was measured."""
    best = strongest(row)
    if best is None:
        return ""
    return (
        f"{row['part']}: metadata baseline {best['test_accuracy']:.3f} (from {best['name']}; "
        f"{best['accuracy']:.3f} by cross-validation)"
    )


def strongest(row: Row) -> Row | None:
    """Of the properties that are audible and cannot be a species' own, the most predictive by cross-validation."""
    alien = [each for each in row["rows"] if each["audible"] and not each["biological"]]
    return max(alien, key=lambda each: round(each["accuracy"], 2), default=None)


def section(row: Row | None) -> Row | None:
    """What the report says of it, on its first screen and in a section; None where it was not measured."""
    if row is None:
        return None
    best, part = strongest(row), _part(row)
    sentence = ""
    if best is not None:
        what = "sample rate, format, level and the like" if best["property"] == "all" else f"the {best['name']}"
        sentence = f"From {what} alone, without the song, {percent(best['test_accuracy'])} are predicted correctly."
    found = row["shortcut"]
    return {
        "sentence": sentence,
        "reason": row["reason"],
        "several": row.get("several", False),
        "part": part,
        "rows": row["rows"],
        "majority": row["majority"],
        "model": row["model"],
        "shortcut": found,
        "conflict": _conflict(found, part) if found else "",
        "limit_hz": limit_hz(row),
        "band_limit_hz": row["band_limit_hz"],
        "common_hz": row["common_bandwidth_hz"],
    }


def _part(row: Row) -> str:
    return {"test": "test", "val": "validation"}[row["part"]]

