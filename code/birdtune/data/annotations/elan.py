"""ELAN's .eaf: annotations of tiers, whose times are slots in milliseconds.

The XML is read as a stream of elements by Python's expat. A document type is refused, so that no entity is defined and
none is looked up.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from xml.parsers import expat

from birdtune.data.annotations.rows import Options, Row

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
    by_id = {one.attributes.get("ANNOTATION_ID", ""): one for one in document.found}
    recording = PurePosixPath(document.media.removeprefix("file://").replace("\\", "/")).name
    rows = []
    for one in document.found:
        if options.tiers and one.tier not in options.tiers:
            continue
        class_name = one.tier if options.columns.get("label") == "tier" else one.value.strip()
        times = [_seconds(document.slots.get(slot, "")) for slot in _slots(one, by_id)]
        if "" in times:
            rows.append(Row(one.number, class_name, recording=recording, fault="has no time, or hangs on one without"))
        else:
            rows.append(Row(one.number, class_name, {"start_s": times[0], "end_s": times[1]}, recording))
    return rows


def _refuse(*_: object) -> None:
    raise ValueError("it has a document type (<!DOCTYPE), which is not read")


def _slots(one: _Annotation, by_id: Mapping[str, _Annotation]) -> tuple[str, str]:
    """Where an annotation begins and ends: its own slots, or those of the annotation that it hangs on."""
    seen = set[str]()
    while "ANNOTATION_REF" in one.attributes:
        above = one.attributes["ANNOTATION_REF"]
        if above in seen or above not in by_id:
            return "", ""
        seen.add(above)
        one = by_id[above]
    return one.attributes.get("TIME_SLOT_REF1", ""), one.attributes.get("TIME_SLOT_REF2", "")


def _seconds(milliseconds: str) -> str:
    return str(int(milliseconds) / 1000) if milliseconds.isdecimal() and len(milliseconds) < 16 else ""
