"""xeno-canto: a query → its recordings by version 3 of the API → items.

    query ─▶ answers ─▶ [{"id": "134880", "gen": "Strix", "sp": "aluco", …}] ─▶ chosen ─▶ items

The key of the API stands in the addresses of its pages; no address of them is kept or shown.
"""

import hashlib
import io
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urljoin

from birdtune.audio.container import SOUND_ENDINGS
from birdtune.collect.item import Item, RefusedError, has_sound_ending
from birdtune.collect.web import Downloader
from birdtune.errors import InputError, RetryableError, SettingsError, shown
from birdtune.runtime.files import read_json, write_json
from birdtune.runtime.parsing import parse_json

API: Final = "https://xeno-canto.org/api/3/recordings"
KEY: Final = "XENO_CANTO_API_KEY"
METADATA_NAME: Final = "xeno-canto.json"
_PER_PAGE, _MOST_PAGES = 500, 2000
_MOST_BYTES = 64 << 20
_ID = re.compile(r"\d{1,10}")
_CREATIVE_COMMONS = re.compile(r"creativecommons\.org/(?:licenses/([a-z-]+)|publicdomain/(zero|mark))/(\d\.\d)")
# As genera of recordings without a species: mysteries, and soundscapes.
_NO_SPECIES: Final = frozenset({"", "mystery", "sonus"})
# Why a recording is not wanted → in words, behind a number.
NOT_WANTED: Final = {
    "quality": "of another quality", "length": "shorter or longer", "licence": "under another licence",
    "id": "without an id", "more": "more than were asked for",
}  # fmt: skip

Recording = Mapping[str, Any]


@dataclass(frozen=True)
class Filter:
    """Which recordings of an answer are wanted; what is empty or None excludes nothing.

    Attributes:
        qualities: of A (best) to E.
        length_s: shortest and longest.
        licences: as of `licence_code`.
        per_species: how many of each species, drawn by `seed`.
    """

    qualities: Collection[str] = ()
    length_s: tuple[float, float] | None = None
    licences: Collection[str] = ()
    per_species: int | None = None
    seed: int = 1

    def refusal(self, one: Recording) -> str:
        """Why a recording is not wanted; "" if it is."""
        if not _ID.fullmatch(_text(one, "id")):
            return "id"
        if self.qualities and _text(one, "q").upper() not in self.qualities:
            return "quality"
        seconds = _seconds(_text(one, "length"))
        if self.length_s is not None and not (
            seconds is not None and self.length_s[0] <= seconds <= self.length_s[1]
        ):
            return "length"
        return "licence" if self.licences and licence_code(_text(one, "lic")) not in self.licences else ""


def answers(downloader: Downloader, query: str, key: str) -> list[Recording]:
    """All recordings that a query finds.

    Raises:
        InputError: the key or the query is refused, or the answer is none.
        RetryableError: the server is away or busy.
    """
    found: dict[str, Recording] = {}
    page = n_pages = 1
    while page <= min(n_pages, _MOST_PAGES):
        fields = {"query": query, "key": key, "per_page": str(_PER_PAGE), "page": str(page)}
        answer = _answer(downloader, fields)
        found |= {_text(one, "id"): one for one in answer["recordings"] if isinstance(one, dict)}
        n_pages = int(answer["numPages"]) if str(answer.get("numPages", "")).isdecimal() else 1
        page += 1
    return list(found.values())


def _answer(downloader: Downloader, fields: Mapping[str, str]) -> dict[str, Any]:
    file = io.BytesIO()
    try:
        downloader.fetch(API, file, _MOST_BYTES, fields)
        answer = parse_json(file.getvalue().decode())
    except RefusedError as why:
        if why.is_passing:
            raise RetryableError(f"xeno-canto cannot be asked now ({why}). Run again to continue.") from why
        raise InputError(
            f"xeno-canto refuses to answer ({why.detail}). Is the key of {KEY} that of your account there, and is the "
            "query of tags alone, e.g. gen:Strix sp:aluco?"
        ) from why
    except ValueError as fault:
        raise InputError("xeno-canto: the answer is no JSON. Does a proxy change it?") from fault
    if not isinstance(answer, dict) or not isinstance(answer.get("recordings"), list):
        said = str(answer.get("message") or answer.get("error") or "") if isinstance(answer, dict) else ""
        raise InputError(
            "xeno-canto: the answer has no recordings"
            f"{': ' + shown(said.replace(fields['key'], '…')[:200]) if said else ''}. Check the query."
        )
    return answer


def chosen(found: Sequence[Recording], wanted: Filter) -> tuple[list[Recording], Counter[str]]:
    """The recordings that are wanted, and how many are not, by why; `more` are those above `per_species`."""
    refused = Counter[str]()
    by_species: dict[str, list[Recording]] = defaultdict(list)
    for one in found:
        if why := wanted.refusal(one):
            refused[why] += 1
        else:
            by_species[_species(one)].append(one)
    kept = list[Recording]()
    for _, some in sorted(by_species.items()):
        ranked = sorted(some, key=lambda one: hashlib.sha256(f"{wanted.seed}:{_text(one, 'id')}".encode()).digest())
        kept += ranked[: wanted.per_species]
        refused["more"] += len(ranked) - len(ranked[: wanted.per_species])
    return kept, +refused


def items(found: Sequence[Recording]) -> list[Item]:
    """One item a recording, which is one source recording: `XC134880.mp3`."""
    return list(map(_item, found))


def _item(one: Recording) -> Item:
    number, name = _text(one, "id"), _text(one, "file-name")
    ending = f".{name.rpartition('.')[2].lower()}" if has_sound_ending(name) else ".mp3"
    address, species = _text(one, "file"), _species(one)
    no_species = _text(one, "gen").casefold() in _NO_SPECIES
    also = one.get("also")
    others = [each.strip() for each in also if isinstance(each, str)] if isinstance(also, list) else []
    return Item(
        f"XC{number}{ending if ending in SOUND_ENDINGS else '.mp3'}", urljoin(API, address) if address else "",
        (species,), tuple(dict.fromkeys(each for each in others if each and each != species)),
        author=_text(one, "rec"), licence=licence_words(_text(one, "lic")), page=f"https://xeno-canto.org/{number}",
        refused="no-species" if no_species else "" if address else "restricted",
    )  # fmt: skip


def keep_metadata(folder: Path, found: Sequence[Recording]) -> None:
    """Add recordings to the folder's xeno-canto.json, in the shape of the API. Raises as `storage_faults`."""
    path = folder / METADATA_NAME
    before = read_json(path)
    kept = before.get("recordings", []) if isinstance(before, dict) else []
    by_id = {_text(one, "id"): one for one in [*kept, *found] if isinstance(one, dict)}
    write_json(path, {"recordings": [by_id[number] for number in sorted(by_id)]})


def licence_code(address: str) -> str:
    """`//creativecommons.org/licenses/by-nc-sa/4.0/` → by-nc-sa; "" for what is of another kind."""
    match = _CREATIVE_COMMONS.search(address)
    return (match[1] or {"zero": "cc0", "mark": "pd"}[match[2]]) if match else ""


def licence_words(address: str) -> str:
    """The same as people write it: CC BY-NC-SA 4.0; what is of another kind as it stands."""
    match = _CREATIVE_COMMONS.search(address)
    if match is None:
        return address
    return f"CC {match[1].upper()} {match[3]}" if match[1] else {"zero": "CC0", "mark": "public domain"}[match[2]]


def qualities_of(text: str | None) -> frozenset[str]:
    """`A,B` → {"A", "B"}. Raises SettingsError."""
    found = frozenset(_parts(text, str.upper))
    if not found <= frozenset("ABCDE"):
        raise SettingsError(f"--quality {shown(text)}: expected some of A, B, C, D, E, e.g. A,B.")
    return found


def licences_of(text: str | None) -> frozenset[str]:
    """`by,CC-BY-SA` → {"by", "by-sa"}. Raises SettingsError."""
    found = frozenset(part if part == "cc0" else part.removeprefix("cc-") for part in _parts(text, str.lower))
    known = {"by", "by-sa", "by-nd", "by-nc", "by-nc-sa", "by-nc-nd", "cc0", "pd"}
    if not found <= known:
        raise SettingsError(f"--licence {shown(text)}: expected some of {', '.join(sorted(known))}, e.g. by,by-sa,cc0.")
    return found


def length_of(text: str | None) -> tuple[float, float] | None:
    """`3-60` → seconds. Raises SettingsError."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,6}(?:\.\d+)?)-(\d{1,6}(?:\.\d+)?)", text.strip())
    if match is None or float(match[1]) > float(match[2]):
        raise SettingsError(f"--length {shown(text)}: expected seconds from the shortest to the longest, e.g. 3-60.")
    return float(match[1]), float(match[2])


def _parts(text: str | None, case: Any) -> Iterator[str]:
    return (case(part.strip()) for part in (text or "").split(",") if part.strip())


def _species(one: Recording) -> str:
    return f"{_text(one, 'gen')} {_text(one, 'sp')}".strip()


def _seconds(text: str) -> float | None:
    """`1:02:03` or `0:46` → seconds."""
    if not re.fullmatch(r"\d{1,5}(?::\d{1,2}){0,2}(?:\.\d+)?", text):
        return None
    seconds = 0.0
    for part in text.split(":"):
        seconds = 60 * seconds + float(part)
    return seconds


def _text(one: Recording, key: str) -> str:
    value = one.get(key)
    return str(value).strip() if isinstance(value, str | int) else ""
