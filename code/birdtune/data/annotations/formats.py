"""Which format an annotation file has, by what it holds, and its rows.

    path ─▶ read ─▶ AnnotationFile: rows as text, or None for a file that is no annotation
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from birdtune.data.annotations import audacity, elan, records, table, textgrid, xeno_canto
from birdtune.data.annotations.rows import Options, Row
from birdtune.errors import InputError, shown
from birdtune.runtime.parsing import decode_old_text, read_bounded
from birdtune.runtime.storage import read_error

# A day of annotations takes a megabyte in ELAN's words.
_LARGEST_BYTES = 256 << 20

_RECOGNISED: Mapping[str, Callable[[str, Options], bool]] = {
    "ELAN": lambda text, _: elan.recognises(text),
    "Praat": lambda text, _: textgrid.recognises(text),
    "xeno-canto": lambda text, _: xeno_canto.recognises(text),
    "JSON": records.recognises,
    "table": table.recognises,
    "Audacity": lambda text, _: audacity.recognises(text),
}
_READERS: Mapping[str, Callable[[str, Options], list[Row]]] = {
    "ELAN": lambda text, options: elan.read(text.encode("utf-8"), options),
    "Praat": textgrid.read,
    "xeno-canto": xeno_canto.read,
    "JSON": records.read,
    "table": table.read,
    "Audacity": lambda text, _: audacity.read(text),
}
_HEADERS: Mapping[str, Callable[[str], list[str]]] = {"JSON": records.header_of, "table": table.header_of}


# In the names of tables of detections beside their recordings: labels of Audacity have no column that tells them apart.
OWN_MARK = ".birdtune."


@dataclass(frozen=True)
class AnnotationFile:
    """The rows of one file.

    Attributes:
        kind: a key of `_READERS`.
        header: the names of its columns; () where the format has none.
        note: what is to be said of how its text was read; "" for nothing.
    """

    path: Path
    kind: str
    rows: tuple[Row, ...]
    header: tuple[str, ...] = ()
    note: str = ""

    @property
    def is_detected(self) -> bool:
        """Whether a program found them, and nobody checked: it says how sure it was, or `predict` wrote the file."""
        is_scored = self.kind == "Audacity" and any(row.score for row in self.rows)
        return is_scored or table.has_score(self.header) or OWN_MARK in self.path.name


def read(path: Path, options: Options) -> AnnotationFile | None:
    """The annotations of a file; None: it is no annotation file.

    Raises:
        InputError: it is one and damaged, or no text.
    """
    try:
        content = read_bounded(path, _LARGEST_BYTES, "annotations")
    except OSError as fault:
        raise read_error(fault, path, f"{shown(path)}: cannot be read ({fault.strerror}). Check its rights.") from fault
    text, note = decode_old_text(content, path)
    if not text.strip():
        # Nothing was marked: so tracks and tables of nothing are saved.
        return AnnotationFile(path, "empty", ())
    kind = next((name for name, recognises in _RECOGNISED.items() if recognises(text, options)), None)
    if kind is None:
        return None
    try:
        rows = _READERS[kind](text, options)
    except ValueError as fault:
        raise InputError(f"{shown(path)}: is damaged, or no whole file of {kind}: {shown(fault)}.") from fault
    header = tuple(_HEADERS[kind](text)) if kind in _HEADERS else ()
    return AnnotationFile(path, kind, tuple(rows), header, note)
