"""What is known of a class without its recordings: words, taxonomy, traits; as one vector each.

    classes, their scientific names, files of the user ─▶ taxonomy, traits, words ─▶ [C, D]

Rows of a table are matched with classes by their names, scientific or common, as eBird/Clements and AVONET head them.
"""

import gzip
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from birdtune.data.partitions import key_of
from birdtune.errors import InputError, shown
from birdtune.runtime.files import read_csv, require_file
from birdtune.runtime.storage import storage_faults
from birdtune.runtime.text import some

Floats = npt.NDArray[np.float64]

# Headers, as `key_of` leaves them.
_NAMES = (
    "class", "sciname", "scientificname", "primarycomname", "commonname", "englishname", "species1", "species2",
    "species3", "species",
)  # fmt: skip
_LEVELS = ("order", "family", "genus")
_BINOMIAL = re.compile(r"([A-Z][a-z]{2,}) ([a-z]{2,})(?![a-z])")
_WORD = re.compile(r"[A-Z]?[^\W\d_A-Z]+|[A-Z]+(?![^\W\d_A-Z])")


@dataclass(frozen=True)
class ClassNames:
    """What classes are called.

    Attributes:
        classes: [C] of the data.
        scientific: class → `Genus species`, perhaps with a common name behind `_`, where that is known.
    """

    classes: tuple[str, ...]
    scientific: Mapping[str, str]

    def binomial(self, name: str) -> tuple[str, str] | None:
        """Genus and species; None where they are not known. A subspecies is of its species."""
        match = _BINOMIAL.match(self.scientific.get(name, "").replace("_", " "))
        return (match[1], match[2]) if match else None

    def keys(self, name: str) -> set[str]:
        """All names of a class, by which it may be found in a table or be the same as another."""
        label = self.scientific.get(name, "")
        both = self.binomial(name)
        # `Parus major_Great Tit` are two names, `Parus_major` is one.
        parts = label.split("_") if " " in label.partition("_")[0] else [label]
        found = {key_of(name), *map(key_of, parts), key_of(" ".join(both)) if both else ""}
        return found - {""}

    def same(self) -> list[tuple[str, str, str]]:
        """Pairs of classes that are one taxon, and the name that both have."""
        first: dict[str, str] = {}
        found = []
        for name in self.classes:
            for key in sorted(self.keys(name)):
                if (other := first.setdefault(key, name)) != name:
                    found.append((other, name, key))
                    break
        return found


def rows_of(path: Path, setting: str, names: ClassNames, *, may_lack: bool = False) -> dict[str, dict[str, str]]:
    """The row of each class: header as `key_of` leaves it → cell.

    Args:
        may_lack: classes without a row are left out.

    Raises InputError: the table cannot be read, has no column of names, or no row of some class.
    """
    require_file(path, setting, "a table with a row for each class")
    table = read_csv(path, what="a table of classes")
    rows = [{key_of(key): cell.strip() for key, cell in row.items()} for row in table]
    columns = [name for name in _NAMES if rows and name in rows[0]]
    if not columns:
        raise InputError(
            f"{setting} {shown(path)}: has no column of names. Expected `class`, `SCI_NAME` or `PRIMARY_COM_NAME` "
            "(eBird), `Species1` (AVONET) or `scientific name`."
        )
    of_key: dict[str, dict[str, str]] = {}
    for row in rows:
        for column in columns:
            of_key.setdefault(key_of(row[column]), row)
    found = {
        name: of_key[key] for name in names.classes for key in sorted(names.keys(name), key=len) if key in of_key
    }
    if (missing := [name for name in names.classes if name not in found]) and not may_lack:
        raise InputError(
            f"{setting} {shown(path)}: has no row of {some(missing)}. Name them there as the data do, or by their "
            "scientific names."
        )
    return found


def taxonomy(names: ClassNames, rows: Mapping[str, Mapping[str, str]]) -> Floats | None:
    """One-hot order, family and genus, as far as classes differ in them; None: they do not, or genera are not known.

    Args:
        rows: of classes, as `rows_of`; {}: genera alone, of scientific names.
    """
    blocks = []
    for level in _LEVELS:
        values = [level_of(names, rows.get(name, {}), name, level) for name in names.classes]
        if all(values) and len(set(values)) > 1:
            blocks.append(_one_hot(values))
    return np.concatenate(blocks, axis=1) if blocks else None


def level_of(names: ClassNames, row: Mapping[str, str], name: str, level: str) -> str:
    """The order, family or genus of a class; "" where it is not known."""
    written = next((row[key] for key in (level, f"{level}1", f"{level}2", f"{level}3") if row.get(key)), "")
    if written or level != "genus":
        return written
    of_row = next((row[key] for key in _NAMES[1:] if _BINOMIAL.match(row.get(key, ""))), "")
    both = names.binomial(name) or tuple(of_row.split()[:2])
    return both[0] if both else ""


def _one_hot(values: Sequence[str]) -> Floats:
    different = sorted(set(values))
    return np.array([[float(value == other) for other in different] for value in values])


def traits(names: ClassNames, rows: Mapping[str, Mapping[str, str]]) -> tuple[Floats | None, list[str]]:
    """Columns of numbers, standardised, and of few different words, one-hot; and the columns that are used.

    A column that is empty for a class, the same for all, or different for each is not.
    """
    blocks, used = [], []
    for column in next(iter(rows.values())):
        values = [rows[name][column] for name in names.classes]
        if column in (*_NAMES, *_LEVELS) or not all(values) or len(set(values)) == 1 or column == "taxonorder":
            continue
        try:
            numbers = np.array([float(value) for value in values])
        except ValueError:
            if len(set(values)) == len(values):
                continue
            blocks.append(_one_hot(values))
        else:
            if not np.isfinite(numbers).all() or np.ptp(numbers) == 0:
                continue
            blocks.append(((numbers - numbers.mean()) / numbers.std())[:, None])
        used.append(column)
    return (np.concatenate(blocks, axis=1) if blocks else None), used


# ---- words --------------------------------------------------------------------------------------


def words_of(name: str) -> tuple[str, ...]:
    """The words of a class name in small letters: of `Genus species_Common name` those of the common name."""
    scientific, _, common = name.partition("_")
    return tuple(word.casefold() for word in _WORD.findall(common if common and _BINOMIAL.match(scientific) else name))


def words(path: Path, setting: str, of_class: Mapping[str, Sequence[str]]) -> tuple[Floats, list[str]]:
    """Mean of the word vectors of each class, and the words that the file does not have.

    Args:
        path: GloVe's or word2vec's text format, or that compressed with gzip: a word and its numbers on each line.
        of_class: class → words.

    Raises:
        InputError: it is no such file, or has no word of some class.
    """
    require_file(path, setting, "word vectors as text: a word and its numbers on each line")
    wanted = {word for own in of_class.values() for word in own}
    found: dict[str, Floats] = {}
    with storage_faults(path, verb="read"), (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
        for number, word, cells in _lines(file, path):
            key = word.casefold()
            if key in wanted and (key not in found or word == key):
                found[key] = _vector(cells, path, number)
    if len({len(vector) for vector in found.values()}) > 1:
        raise InputError(f"{shown(path)}: vectors have different lengths. The file is damaged: fetch it once more.")
    if missing := [name for name, own in of_class.items() if not any(word in found for word in own)]:
        raise InputError(
            f"{setting} {shown(path)}: has no word of {some(missing)}. Give such classes other words, in a table "
            "`class,words` (--unseen.synonyms)."
        )
    vectors = [np.mean([found[word] for word in own if word in found], axis=0) for own in of_class.values()]
    return np.stack(vectors), sorted(wanted - set(found))


def _lines(file: Iterable[bytes], path: Path) -> Iterator[tuple[int, str, list[bytes]]]:
    """Number, word and numbers of each line. The first of word2vec's has numbers alone, and so no word of a class."""
    for number, line in enumerate(file, start=1):
        word, *cells = line.split()  or [b""]
        try:
            text = word.decode("utf-8")
        except UnicodeDecodeError as fault:
            raise InputError(
                f"{shown(path)}, line {number:,}: is no text. Likely cause: the binary format of word2vec. Save the "
                "vectors in the text format."
            ) from fault
        yield number, text, cells


def _vector(cells: Sequence[bytes], path: Path, number: int) -> Floats:
    try:
        vector = np.array([float(cell) for cell in cells])
    except ValueError:
        vector = np.array([np.nan])
    if not len(vector) or not np.isfinite(vector).all():
        raise InputError(
            f"{shown(path)}, line {number:,}: expected a word and its numbers, with blanks between. Is it another file?"
        )
    return vector


def synonyms(path: Path, setting: str, classes: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Words of classes out of a table `class,words`; of classes that it lacks, those of their names.

    Raises InputError: it is no such table, or names no class.
    """
    require_file(path, setting, "a table `class,words`")
    rows = read_csv(path, what="words of classes")
    if not rows or not {"class", "words"} <= rows[0].keys():
        raise InputError(f"{setting} {shown(path)}: expected a table with the columns `class` and `words`.")
    given = {key_of(row["class"]): row["words"] for row in rows}
    if strange := sorted(set(given) - {key_of(name) for name in classes}):
        raise InputError(f"{setting} {shown(path)}: {some(strange)} is no class of the data.")
    return {name: words_of(given[key_of(name)]) if key_of(name) in given else words_of(name) for name in classes}
