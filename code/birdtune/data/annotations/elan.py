"""ELAN's .eaf: annotations of tiers, whose times are slots in milliseconds.

The XML is read as a stream of elements by Python's expat. A document type is refused, so that no entity is defined and
none is looked up.
"""

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from xml.parsers import expat

from birdtune.data.annotations.rows import Options, Row

_MILLISECONDS = re.compile(r"[0-9]{1,15}")
_ANNOTATIONS = ("ALIGNABLE_ANNOTATION", "REF_ANNOTATION")


def recognises(text: str) -> bool:
    """Whether a text is of ELAN by its first element."""
    return "<ANNOTATION_DOCUMENT" in text[:4096]


@dataclass
class _Annotation:
    number: int  # which of the document it is, from 1: one line may hold several
    tier: str
    attributes: Mapping[str, str]
    value: str = ""

    @property
    def slots(self) -> tuple[str, str]:
        """Where it begins and ends; "" where it hangs on another."""
        return self.attributes.get("TIME_SLOT_REF1", ""), self.attributes.get("TIME_SLOT_REF2", "")


@dataclass
class _Document:
    """What is met while the elements go by."""

    media: str = ""  # the recording
    slots: dict[str, str] = field(default_factory=dict)  # → milliseconds, "" for one that is not aligned
    found: list[_Annotation] = field(default_factory=list)
    tier: str = ""
    is_value: bool = False

    def begin(self, name: str, attributes: dict[str, str]) -> None:
        if name == "MEDIA_DESCRIPTOR" and not self.media:
            self.media = attributes.get("RELATIVE_MEDIA_URL") or attributes.get("MEDIA_URL", "")
        elif name == "TIME_SLOT":
            self.slots[attributes.get("TIME_SLOT_ID", "")] = attributes.get("TIME_VALUE", "")
        elif name == "TIER":
            self.tier = attributes.get("TIER_ID", "").strip()
        elif name in _ANNOTATIONS:
            self.found.append(_Annotation(len(self.found) + 1, self.tier, attributes))
        self.is_value = name == "ANNOTATION_VALUE"

    def text(self, text: str) -> None:
        if self.is_value and self.found:
            self.found[-1].value += text

    def end(self, _: str) -> None:
        self.is_value = False


def read(content: bytes, options: Options) -> list[Row]:
    """The annotations of the tiers.

    Raises:
        ValueError: it is no whole XML, or has a document type.
    """
    document = _Document()
    parser = expat.ParserCreate("utf-8")  # whatever its first line says: it was decoded
    parser.StartElementHandler, parser.EndElementHandler = document.begin, document.end
    parser.CharacterDataHandler = document.text
    parser.StartDoctypeDeclHandler = _refuse
    try:
        parser.Parse(content, True)
    except expat.ExpatError as fault:
        raise ValueError(f"it is no whole XML: {fault}") from fault
    times = _Times.of(document)
    recording = PurePosixPath(document.media.removeprefix("file://").replace("\\", "/")).name
    rows = []
    for one in document.found:
        if options.tiers and one.tier not in options.tiers:
            continue
        class_name = one.tier if options.columns.get("label") == "tier" else one.value.strip()
        if (span := times.span(one)) is None:
            rows.append(Row(one.number, class_name, recording=recording, fault="has no time, or hangs on one without"))
        else:
            start_s, end_s = (repr(round(each, 6)) for each in span)
            rows.append(Row(one.number, class_name, {"start_s": start_s, "end_s": end_s}, recording))
    return rows


def _refuse(*_: object) -> None:
    raise ValueError("it has a document type (<!DOCTYPE), which is not read")


@dataclass
class _Times:
    """When annotations begin and end.

    Attributes:
        slots: → seconds; of those that are not aligned, spaced evenly between those that are, as ELAN shows them.
        by_id: → annotation.
        places: tier and annotation that is hung on → which of those that divide it evenly each is, by its number.
    """

    slots: Mapping[str, float]
    by_id: Mapping[str, _Annotation]
    places: Mapping[tuple[str, str], Mapping[int, int]]

    @classmethod
    def of(cls, document: _Document) -> "_Times":
        places = defaultdict[tuple[str, str], dict[int, int]](dict)
        following = defaultdict[str, dict[str, str]](dict)  # tier → slot → the next one
        for one in document.found:
            if (above := one.attributes.get("ANNOTATION_REF")) is not None:
                places[one.tier, above][one.number] = len(places[one.tier, above])
            else:
                following[one.tier][one.slots[0]] = one.slots[1]
        known = {slot: int(ms) / 1000 for slot, ms in document.slots.items() if slot and _MILLISECONDS.fullmatch(ms)}
        for links in following.values():
            known |= _between(known, links)
        by_id = {one.attributes.get("ANNOTATION_ID", ""): one for one in document.found}
        return cls(known, by_id, places)

    def span(self, one: _Annotation) -> tuple[float, float] | None:
        """Begin and end of an annotation, by the one that it hangs on where it has no slots; None: not known."""
        parts, seen = list[tuple[int, int]](), set[str]()
        while (above := one.attributes.get("ANNOTATION_REF")) is not None:
            if above in seen or above not in self.by_id:
                return None
            seen.add(above)
            dividing = self.places[one.tier, above]
            parts.append((dividing[one.number], len(dividing)))
            one = self.by_id[above]
        if not self.slots.keys() >= set(one.slots):
            return None
        start_s, end_s = (self.slots[slot] for slot in one.slots)
        for number, n in reversed(parts):
            part_s = (end_s - start_s) / n
            start_s, end_s = start_s + number * part_s, start_s + (number + 1) * part_s
        return start_s, end_s


def _between(known: Mapping[str, float], following: Mapping[str, str]) -> dict[str, float]:
    """Times of the slots without one, along the annotations of a tier from one slot with a time to the next."""
    found: dict[str, float] = {}
    for first in following.keys() & known.keys():
        slots, at = list[str](), following[first]
        while at not in known and at in following and len(slots) < len(following):
            slots.append(at)
            at = following[at]
        if at in known:
            step_s = (known[at] - known[first]) / (len(slots) + 1)
            found |= {slot: known[first] + number * step_s for number, slot in enumerate(slots, start=1)}
    return found
