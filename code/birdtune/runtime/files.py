"""Files that are written whole or not at all, and the few formats birdtune writes.

A file appears under its name only when all of it is on the disk: it is written beside its place
under a temporary name, flushed, renamed, and the folder is synced. A reader never meets half a file.
"""

import contextlib
import csv
import errno
import hashlib
import io
import json
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from birdtune.errors import InputError, RetryableError, UsageError, shown
from birdtune.runtime.parsing import decode_old_text, decode_text, open_regular, read_bounded
from birdtune.runtime.storage import UNFINISHED, need_space, read_error, storage_faults

_TRIAL_BYTES = 1 << 16
_HASH_BLOCK_BYTES = 1 << 16
# What makes quotes around a cell necessary, or wise: readers strip blanks, and spreadsheets look for formulas.
_QUOTED = re.compile(r"[\",\r\n]|^[=+\-@\s]|\s$")
_EMPTY_ROW = '""'
# A row for each of a million recordings takes 200 MB.
_LARGEST_TABLE_BYTES = 256 << 20
_LARGEST_RECORD_BYTES = 1 << 30
GIVEN_DELIMITER = re.compile(r'"?sep=([,;\t])"?[,;\t]*\r?\n', re.IGNORECASE)


def make_folder(path: Path) -> Path:
    """Create a folder and its parents, durably; an existing one is fine. Raises as `storage_faults`."""
    with storage_faults(path):
        missing = [place for place in (path, *path.parents) if not place.is_dir()]
        try:
            path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as fault:
            blocked = f", for {shown(path)}" if blocking_file(path) != path else ""
            raise InputError(
                f"{shown(blocking_file(path))}: is a file where a folder is needed{blocked}. Move it away, or "
                "give another place (--output; for a single file --out)."
            ) from fault
        for place in missing:
            sync_folder(place.parent)
    return path


def blocking_file(path: Path) -> Path:
    """The file that keeps a path from being a folder: itself, or one above it; itself where none does."""
    return next((place for place in (*reversed(path.parents), path) if place.is_file()), path)


def require_file(path: Path, setting: str, expected: str) -> None:
    """Refuse a file that somebody names and that is none, by the name of the setting.

    Args:
        setting: as on the command line.
        expected: what it should be, e.g. "a CSV `recording,split`".

    Raises:
        InputError: it is not there, or a folder. What else may be wrong with it, reading will say.
    """
    try:
        is_folder = stat.S_ISDIR(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError) as fault:
        raise InputError(
            f"{setting} {shown(path)}: there is no such file; expected {expected}. Paths on the command line begin "
            "where it is called, those in job.yaml at the input folder; in a container, it must be mounted."
        ) from fault
    except OSError:
        return
    if is_folder:
        raise InputError(f"{setting} {shown(path)}: is a folder; expected {expected}. Name the file itself.")


def require_place(path: Path, setting: str, endings: Sequence[str], what: str) -> None:
    """Refuse a place for a file that cannot be one, or promises another format, before anything is computed for it.

    Args:
        endings: those that fit, with their dots; none at all fits, too.
        what: what is written, e.g. "a table, with commas".

    Raises:
        UsageError, InputError: naming the setting.
    """
    ending = path.suffix.lower()
    if ending and ending not in endings:
        raise UsageError(
            f"{setting} {shown(path)}: its ending {shown(ending)} is that of another format than {what}. "
            f"Give it a name that ends in {' or '.join(endings)}, e.g. {shown(path.name.split('.')[0] + endings[0])}."
        )
    with storage_faults(path):
        if path.is_dir():
            raise InputError(f"{setting} {shown(path)}: is a folder; expected the name of a file to write in it.")
        if (place := blocking_file(path.parent)).is_file():
            raise InputError(
                f"{setting} {shown(path)}: {shown(place)} is a file where a folder is needed. Give another place."
            )


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable: after a power cut a rename must not be undone."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:
        return  # it may be written and not be listed; then only the system decides when
    try:
        os.fsync(descriptor)
    except OSError as fault:
        # Some network file systems cannot sync a folder; they make renames durable by themselves.
        if fault.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def write_bytes(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Write a file whole or not at all. Raises as `storage_faults`.

    Args:
        durable: also if the power fails; without it, the file may be empty or an earlier one then, but writing
            does not wait for the disk.
    """
    with storage_faults(path, needed=len(content)), _in_place(path, durable) as file:
        file.write(content)


@contextlib.contextmanager
def _in_place(path: Path, durable: bool) -> Iterator[IO[bytes]]:
    """A file to write, which takes its place under `path` only when the block ends well."""
    temporary = path.with_name(f"{UNFINISHED}{secrets.token_hex(8)}")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        sync_folder(path.parent)


@contextlib.contextmanager
def new_file(path: Path, what: str = "") -> Iterator[Path]:
    """A name to write a file under, which takes its place under `path` only when the block ends well.

    Raises: as `storage_faults`; `what` is written, in words.
    """
    temporary = path.with_name(f"{UNFINISHED}{secrets.token_hex(8)}")
    with storage_faults(path, what):
        try:
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


@contextlib.contextmanager
def new_folder(path: Path, *, what: str = "", needed: int | None = None) -> Iterator[Path]:
    """A folder to fill, which takes its place under `path` only when the block ends well.

    A folder already at `path` is replaced.

    Args:
        what: what is written, in words, e.g. "a checkpoint".
        needed: bytes that it takes at least; nothing is begun where fewer are free.

    Raises: as `storage_faults`.
    """
    make_folder(path.parent)
    with storage_faults(path, what, needed):
        building, earlier = (path.parent / f"{UNFINISHED}{name}" for name in (path.name, f"{path.name}.old"))
        for left in (building, earlier):
            shutil.rmtree(left, ignore_errors=True)
        if needed is not None:
            need_space(path, needed, what)
        building.mkdir()
        try:
            yield building
            _sync_tree(building)
        except BaseException:
            shutil.rmtree(building, ignore_errors=True)
            raise
        # Out of the way by a rename, so that no half-deleted folder ever has the name.
        if path.exists():
            path.replace(earlier)
        building.replace(path)
        sync_folder(path.parent)
        shutil.rmtree(earlier, ignore_errors=True)


def _sync_tree(folder: Path) -> None:
    """Make a folder durable with all that is in it: each file, then each folder's names."""
    entries = list(folder.rglob("*"))
    for entry in entries:
        if entry.is_file():
            with entry.open("rb") as file:
                os.fsync(file.fileno())
    for place in (*(entry for entry in entries if entry.is_dir()), folder):
        sync_folder(place)


def remove_unfinished(folder: Path) -> None:
    """Remove what killed runs left half-written directly in a folder; call it where nobody else writes.

    A folder that was being replaced, and has no successor yet, gets its name back.
    """
    with contextlib.suppress(OSError):  # it costs some space, and nothing else
        for left in folder.glob(f"{UNFINISHED}*"):
            name = left.name.removeprefix(UNFINISHED)
            if name.endswith(".old") and not (folder / name.removesuffix(".old")).exists():
                left.replace(folder / name.removesuffix(".old"))
            elif left.is_dir() and not left.is_symlink():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)


@contextlib.contextmanager
def temporary_folder(name: str) -> Iterator[Path]:
    """A folder for what is needed only while the block lasts, where TMPDIR says.

    Raises:
        RetryableError, InputError: none can be made; the disk is full, or nothing may be written.
    """
    place = os.environ.get("TMPDIR") or "/tmp"
    try:
        room = tempfile.TemporaryDirectory(prefix=f"birdtune-{name}-", ignore_cleanup_errors=True)
    except OSError as fault:
        kind = RetryableError if os.access(place, os.W_OK) else InputError
        raise kind(
            f"{shown(place)}: no temporary folder can be made ({fault.strerror}). Free some space there, or name a "
            "folder that can be written by the variable TMPDIR."
        ) from fault
    with room as path:
        yield Path(path)


def try_to_write(folder: Path) -> None:
    """Find out that nothing can be written to a folder before long work, not after. Raises as `storage_faults`."""
    make_folder(folder)
    with storage_faults(folder, needed=_TRIAL_BYTES):
        try:
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(os.urandom(_TRIAL_BYTES))  # zeros, some file systems would not store
        except OSError as fault:
            # The folder is what a person can mend, not the name tried in it.
            raise OSError(fault.errno, fault.strerror, str(folder)) from fault


def write_text(path: Path, text: str, *, durable: bool = True) -> None:
    """Write UTF-8 text as `write_bytes`; what UTF-8 cannot hold becomes a backslash escape."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"), durable=durable)


def write_json(path: Path, value: object, *, durable: bool = True) -> None:
    """Write a value as readable JSON, as `write_bytes`."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", durable=durable)


def read_json(path: Path) -> Any:
    """Read a JSON file of birdtune's own; None when it is absent or damaged.

    Raises:
        InputError: it may not be read, or is a folder, a pipe or a device.
        RetryableError: the storage failed.
    """
    with storage_faults(path, verb="read"):
        try:
            return json.loads(read_bounded(path, _LARGEST_RECORD_BYTES, "a record of birdtune's own"))
        except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
            return None


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> None:
    """Write rows as CSV (UTF-8, header first), whole or not at all.

    Text is written as it is, so that programs find names again by their letters. What looks like a formula is
    quoted and no more: a spreadsheet may still run it, unless it imports the column as text.
    """
    lines: list[str] = []
    take = _rows_into(lines.append, columns)
    for row in rows:
        take(row)
    write_text(path, "".join(lines))


@contextlib.contextmanager
def growing_csv(path: Path, columns: Sequence[str]) -> Iterator[Callable[[Mapping[str, object]], None]]:
    """What `write_csv` writes, by a function that takes a row at a time and keeps none.

    Raises: as `storage_faults`; the file takes its place under `path` only when the block ends well.
    """
    with storage_faults(path), _in_place(path, durable=True) as file:
        yield _rows_into(lambda line: file.write(line.encode("utf-8", "backslashreplace")), columns)


def _rows_into(take: Callable[[str], object], columns: Sequence[str]) -> Callable[[Mapping[str, object]], None]:
    """A function that makes a line of CSV of each row, and gives it to `take`, the header first."""
    known = frozenset(columns)

    def take_row(row: Mapping[str, object]) -> None:
        if unknown := row.keys() - known:
            raise ValueError(f"a row has cells of unknown columns: {sorted(unknown)}")
        # An empty line would be none to those who read it.
        take(f"{','.join(_cell(row.get(column)) for column in columns) or _EMPTY_ROW}\n")

    take_row({column: column for column in columns})
    return take_row


def _cell(value: object) -> str:
    """A cell as it is written. The module `csv` cannot quote one cell of text and not the next."""
    text = "" if value is None else str(value)
    if isinstance(value, str) and _QUOTED.search(text):
        return '"' + text.replace('"', '""') + '"'
    return text


def read_csv(
    path: Path, *, most_bytes: int = _LARGEST_TABLE_BYTES, what: str = "a table", notes: list[str] | None = None
) -> list[dict[str, str]]:
    """Read a CSV file that a person or birdtune wrote: comma, semicolon or tab; text as `parsing.decode_text` reads it.

    A first line `sep=;`, which gives Excel the delimiter, is obeyed.

    Args:
        most_bytes, what: as `parsing.read_bounded`.
        notes: where given, text in an older encoding is read, too, and what is to be said of that is appended.

    Raises:
        InputError: the file cannot be read, is too large or no text, two columns have one name, or a row
            has more cells than the header.
    """
    try:
        content = read_bounded(path, most_bytes, what)
        text, note = decode_old_text(content, path) if notes is not None else (decode_text(content, path), "")
    except OSError as fault:
        message = f"{shown(path)}: cannot be read ({fault.strerror}). Check the path and its rights."
        raise read_error(fault, path, message) from fault
    if notes is not None and note:
        notes.append(note)
    delimiter = max(",;\t", key=text.split("\n", 1)[0].count)
    if given := GIVEN_DELIMITER.match(text):
        delimiter, text = given[1], text[given.end() :]
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
        _check_columns(path, [column.strip() for column in reader.fieldnames or ()])
        rows = list(reader)
    except csv.Error as fault:
        raise InputError(f"{shown(path)}: is not a CSV table ({fault}). Save it as CSV UTF-8.") from fault
    for number, row in enumerate(rows, start=2):
        # DictReader puts cells beyond the header's under None; empty ones come of spreadsheets.
        if any(cell.strip() for cell in row.pop(None, ())):
            raise InputError(
                f"{shown(path)}, row {number}: has more cells than the header. "
                "A name with a comma needs double quotes."
            )
    return [{str(key).strip(): value or "" for key, value in row.items()} for row in rows]


def _check_columns(path: Path, columns: list[str]) -> None:
    # Spreadsheets leave columns without a name at the end; those hold nothing.
    if twice := [column for column, count in Counter(filter(None, columns)).items() if count > 1]:
        raise InputError(f"{shown(path)}: two columns are named {shown(twice[0][:80])}. Keep one.")


def file_sha256(path: Path, check: Callable[[], None] = lambda: None) -> str:
    """SHA-256 of a file's content, in hexadecimal; `check` is called now and then, and may raise to stop.

    Raises:
        InputError: it is a pipe or a device.
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    # The same memory for all blocks: to take it anew for each takes as long as the digest.
    buffer = memoryview(bytearray(_HASH_BLOCK_BYTES))
    with open_regular(path) as file:
        while n := file.readinto(buffer):
            digest.update(buffer[:n])
            check()
    return digest.hexdigest()


def value_sha256(value: object) -> str:
    """SHA-256 of a JSON-able value, the same for equal values whatever their order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, allow_nan=False).encode()).hexdigest()
