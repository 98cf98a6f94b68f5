"""What a file beside recordings is, if it is no sound; and what tables call their columns, and the sides of a split.

    path ─▶ describe ─▶ (code of `scan.PROBLEMS`, words) | None
    names of folders | cells of a column ─▶ sides_of ─▶ train, val or test;  fold_of ─▶ number of a fold

A file is described by its name where that is enough, else by its first 4 KiB.
"""

import codecs
import csv
import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from birdtune.errors import InputError, shown
from birdtune.runtime.parsing import open_regular

_HEAD_BYTES = 4096

# Endings that only annotations have → the program that writes them.
_ANNOTATION_ENDINGS = {
    ".eaf": "annotations of ELAN", ".textgrid": "annotations of Praat", ".svl": "annotations of Sonic Visualiser",
    ".lab": "labels with times", ".trs": "annotations of Transcriber", ".antx": "annotations of ANVIL or MAUS",
}  # fmt: skip
# Endings of what programs leave beside recordings, or people put there.
_METADATA_ENDINGS = {
    **dict.fromkeys((".jpg", ".jpeg", ".png", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".svg", ".heic"), "a picture"),
    **dict.fromkeys((".asd", ".reapeaks", ".pkf", ".pk", ".sfk", ".sfl", ".gpk", ".ovw", ".mrk", ".xmp"),
                    "what an audio editor keeps beside a recording"),
    **dict.fromkeys((".aup", ".aup3", ".rpp", ".als", ".sesx"), "a project of an audio editor, not its sound"),
    **dict.fromkeys((".pdf", ".doc", ".docx", ".odt", ".rtf", ".html", ".htm", ".md"), "a document"),
    **dict.fromkeys((".xls", ".xlsx", ".ods", ".numbers"), "a spreadsheet"),
    **dict.fromkeys((".md5", ".sha1", ".sha256", ".sfv"), "checksums"),
    **dict.fromkeys((".gpx", ".kml", ".kmz", ".shp"), "places"),
    **dict.fromkeys((".lnk", ".url", ".webloc", ".m3u", ".cue", ".nfo", ".torrent"), "a link or a list"),
    **dict.fromkeys((".h5", ".hdf5", ".npy", ".npz", ".parquet", ".feather", ".pkl", ".pickle", ".mat", ".sqlite"),
                    "data of another program"),
}  # fmt: skip
_METADATA_NAMES = {
    "collected.csv": "what `collect` says came of each recording", "xeno-canto.json": "what xeno-canto says of them",
    "attribution.csv": "whose recordings these are, for the report and the model card",
    "thumbs.db": "Windows' pictures of the folder", "ehthumbs.db": "Windows' pictures of the folder",
    "desktop.ini": "Windows' settings of the folder", "config.txt": "the settings of an AudioMoth",
}  # fmt: skip
EMPTY = ("metadata", "an empty text")
_DOCUMENTS = re.compile(r"(?:readme|licen[cs]e|copying|copyright|notice|authors|changelog|citation)\b", re.IGNORECASE)
_TEXT_ENDINGS = frozenset(
    [".txt", ".csv", ".tsv", ".tab", ".json", ".jsonl", ".geojson", ".xml", ".yaml", ".yml", ".log", ".ini", ".cfg",
     ".conf", ".data", ".tags", ".dat", ".sel", ".table", ".label", ".labels", ".ann", ".annotations"]
)  # fmt: skip

# Columns of tables of events, in lower case without units: Raven, Kaleidoscope, BirdNET, Audition, DCASE, AviaNZ.
_START = re.compile(r"(?:begin|start|onset|from|t_?min|min[ _]?t|t_?0|offset|time_?start|tstart|anfang|d[ée]but)")
_END = re.compile(r"(?:end|stop|offset|until|to\b|t_?max|max[ _]?t|t_?1|dur|length|time_?end|tend|ende|fin\b)")
_LENGTH = re.compile(r"dur|length")
_NO_SECONDS = re.compile(r"(?:\b|_)ms\b|milli|sample|frame")
_ONE_TIME = re.compile(r"(?:start|begin|onset|offset)(?:[ _]?(?:time|s|sec|seconds))?|time|times|seconds?|t")
_NOT_TIMES = re.compile(r"file|path|date|freq|clock")
_EVENT_ROW = re.compile(r"^\s*\d+(?:[.,]\d+)?[\t,; ]+\d+(?:[.,]\d+)?(?:[\t,; ].*)?$")
_EVENT_KEYS = re.compile(
    r'"(?:start\w*|begin\w*|onset\w*|t_?min|segments|annotations|regions|events|bounding_?boxes)"\s*:', re.IGNORECASE
)
# What tables call a recording and its class, the likeliest first.
RECORDING_NAMES = ("recording", "filename", "file_name", "file", "fname", "slice_file_name", "path", "filepath",
                   "file_path", "filepaths", "audio", "audio_filename", "wav", "clip", "name", "id",
                   "itemid", "associatedmedia")  # fmt: skip
LABEL_NAMES = ("label", "labels", "class", "category", "species", "primary_label", "ebird_code", "target_name",
               "scientific_name", "scientificname", "common_name", "bird", "taxon", "tag", "target", "y")  # fmt: skip


def describe(path: Path) -> tuple[str, str] | None:
    """Why a file that has no ending of sound is no recording: a code and words; None: unknown.

    A link is described by its name alone, as it may lead anywhere.
    """
    name, ending = path.name.casefold(), path.suffix.casefold()
    if ending in _ANNOTATION_ENDINGS:
        return "annotation", _ANNOTATION_ENDINGS[ending]
    if what := _METADATA_NAMES.get(name) or _METADATA_ENDINGS.get(ending):
        return "metadata", what
    if _DOCUMENTS.match(name) and ending in ("", ".txt"):
        return "metadata", "a document"
    if ending not in _TEXT_ENDINGS or path.is_symlink() or (text := _head(path)) is None:
        return None
    return _of_text(text)


def _head(path: Path) -> str | None:
    """The beginning of a text; None: it is none, or the system does not give it."""
    try:
        with open_regular(path) as file:
            head = file.read(_HEAD_BYTES)
    except (OSError, InputError):
        return None
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return head.decode("utf-16", "replace")
    return None if b"\0" in head else head.decode("utf-8-sig", "replace")


def header_of(path: Path) -> list[str] | None:
    """The cells of the first line of a text that is a table, perhaps; None: it is no text."""
    text = _head(path)
    lines = [line for line in (text or "").splitlines() if line.strip()]
    return cells(lines[0]) if lines else None


def _of_text(text: str) -> tuple[str, str]:
    start = text.lstrip()
    if not start:
        return EMPTY
    if start.startswith(("{", "[")):
        events = _EVENT_KEYS.search(text) or re.match(r'\[\s*(?:\{[^}]*\}\s*,\s*)?\[\s*\d', start)
        return ("annotation", "annotations as JSON") if events else ("metadata", "JSON")
    if start.startswith("<"):
        elan = "<ANNOTATION_DOCUMENT" in text or "<Transcription" in text
        return ("annotation", "annotations as XML") if elan else ("metadata", "XML or HTML")
    if 'Object class = "TextGrid"' in text or '"TextGrid"' in text:
        return "annotation", "annotations of Praat"
    lines = [line for line in text.splitlines() if line.strip()]
    if columns := event_columns(cells(lines[0])):
        raven = any(cell.casefold() == "selection" for cell in cells(lines[0]))
        what = "a selection table of Raven" if raven else "a table of events"
        return "annotation", f"{what} (columns {' and '.join(map(shown, columns))})"
    # The last line may be cut, and those of Audacity with frequencies begin with a backslash.
    rows = [line for line in (lines[:-1] or lines)[:20] if not line.startswith("\\")]
    if rows and sum(bool(_EVENT_ROW.match(line)) for line in rows) >= 0.8 * len(rows):
        return "annotation", "labels with times, as Audacity exports them"
    if guess := likely_columns(cells(lines[0])):
        recording, label = guess
        return "metadata", (
            "a table of labels without times: to use it, --labels.table with --labels.columns "
            f"{shlex.quote(shown(f'recording={recording},label={label}'))}"
        )
    return "metadata", "a text"


def cells(line: str) -> list[str]:
    """The cells of a line of a table whose delimiter is unknown."""
    delimiter = max("\t,;", key=line.count)
    try:
        return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter), [])]
    except csv.Error:
        return []


def event_columns(header: Sequence[str]) -> tuple[str, str] | None:
    """The columns that say when an event begins and ends, if there are some."""
    plain = {cell: re.sub(r"[\[(].*", "", cell).strip().casefold() for cell in header if len(cell) <= 40}
    times = {cell: name for cell, name in plain.items() if not _NOT_TIMES.search(name)}
    starts = [cell for cell, name in times.items() if _START.match(name)]
    ends = [cell for cell, name in times.items() if _END.match(name)]
    # Kaleidoscope's offset is a beginning, that of others an end.
    return next(((start, end) for start in starts for end in ends if start != end), None)


def times_setting(start: str, end: str) -> str:
    """Columns of `event_columns` as --labels.columns names them; "" where they seem to hold no seconds."""
    if any(_NO_SECONDS.search(name.casefold()) for name in (start, end)):
        return ""
    return f"start={start},{'duration' if _LENGTH.search(end.casefold()) else 'end'}={end}"


def time_columns(header: Sequence[str]) -> tuple[str, ...]:
    """The columns that say when an event begins and ends, or the one that says when it is; () if there is none."""
    if pair := event_columns(header):
        return pair
    return tuple(cell for cell in header if _ONE_TIME.fullmatch(re.sub(r"[\[(].*", "", cell).strip().casefold()))[:1]


def with_names(rows: Sequence[dict[str, str]], wanted: Sequence[str]) -> list[dict[str, str]]:
    """The same rows with the columns of these names called so, also where the table has them in another case."""
    header = list(rows[0]) if rows else []
    lower = [cell.casefold() for cell in header]
    new = {
        header[lower.index(name.casefold())]: name
        for name in wanted if name not in header and lower.count(name.casefold()) == 1
    }  # fmt: skip
    if not new:
        return list(rows)
    return [{new.get(cell, cell): value for cell, value in row.items()} for row in rows]


def likely_columns(header: Sequence[str]) -> tuple[str, str] | None:
    """The columns that probably name recordings and their classes, if there are both."""
    found = {re.sub(r"[ -]+", "_", cell.casefold()): cell for cell in header if cell}
    recording = next((found[name] for name in RECORDING_NAMES if name in found), None)
    label = next((found[name] for name in LABEL_NAMES if name in found), None)
    return (recording, label) if recording and label else None


# ---- sides of a split -----------------------------------------------------------------------------------------------

_SIDE = re.compile(
    r"(?:(?P<train>train|training|trn)|(?P<val>val|valid|validation)|(?P<dev>dev|devel|development)"
    r"|(?P<test>test|testing|tst)|(?P<eval>eval|evaluation|holdout))(?:[ _-]?(?:set|data|split|audio))?",
    re.IGNORECASE,
)
_FOLD = re.compile(r"(?:cv[ _-]*)?fold[ _-]*0*(\d{1,4})", re.IGNORECASE)
# As pandas writes whole numbers in a column that has empty cells: 1.0.
_NUMBER = re.compile(r"0*(\d{1,4})(?:\.0+)?")

SIDE_WORDS = "train, val or test (also training, valid, validation, dev, testing, eval, holdout)"


def sides_of(names: Iterable[str]) -> dict[str, str]:
    """Those of the names that are words for a side → train, val or test.

    As in FSD50K and DCASE, `dev` is validation, or train where nothing is called train; `eval` and `holdout` are the
    test, or validation where something is called test.

    Args:
        names: all that are called so in one place, as each word may depend on the others.
    """
    words = {name: str(match.lastgroup) for name in names if (match := _SIDE.fullmatch(name.strip()))}
    present = set(words.values())
    meaning = {"dev": "val" if "train" in present else "train", "eval": "val" if "test" in present else "test"}
    return {name: meaning.get(word, word) for name, word in words.items()}


def fold_of(name: str, *, number: bool = False) -> int | None:
    """The number of a fold that is called `fold 1`, `cv_fold_01`; None: it is called otherwise.

    Args:
        number: a bare number is one, too.
    """
    match = _FOLD.fullmatch(name.strip()) or (_NUMBER.fullmatch(name.strip()) if number else None)
    return int(match[1]) if match else None
