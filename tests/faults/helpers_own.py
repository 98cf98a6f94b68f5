"""Targets of fuzzing (helpers_targets.py): what birdtune writes and reads again, and names of files."""

import contextlib
import csv
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np

from birdtune.audio.decode import SoundFacts
from birdtune.audio.logmel import VGGISH
from birdtune.config import Config
from birdtune.data import selection, split
from birdtune.data.file_index import Examined, FileIndex
from birdtune.data.frames import FrameStore
from birdtune.data.labels import Label
from birdtune.data.scan import Recording, SoundFile, scan
from birdtune.data.shards import INDEX_NAME
from birdtune.errors import shown
from birdtune.evaluation.calibration import Calibration, Scale
from birdtune.evaluation.scores import Scores
from birdtune.runtime import runs
from birdtune.runtime.files import read_csv, write_csv
from birdtune.runtime.log import Journal
from birdtune.settings import AudioSettings, SplitSettings
from birdtune.training import base_model

RATE_HZ = 16_000

_CONTENT = "c" * 64
_FACTS = SoundFacts(RATE_HZ, 1, 2.0, -8.0, "WAV PCM_16")


def file_indexes() -> list[bytes]:
    with tempfile.TemporaryDirectory() as name:
        file_index = FileIndex(Path(name) / "ledger.json", AudioSettings())
        file_index.set_content(_sound_file(), _CONTENT)
        file_index.set_examined(_CONTENT, Examined(_FACTS))
        file_index.set_examined("d", Examined(None, "silent", "every sample is zero"))
        file_index.save()
        return [(Path(name) / "ledger.json").read_bytes(), b"{}"]


def _sound_file() -> SoundFile:
    return SoundFile("A/a.wav", Path("/data/A/a.wav"), "A", 5, 7)


def file_index(data: bytes, room: Path) -> None:
    (room / "ledger.json").write_bytes(data)
    file_index = FileIndex(room / "ledger.json", AudioSettings())
    content = file_index.content(_sound_file())
    for known in (content, _CONTENT, "d"):
        found = file_index.examined(known) if known is not None else None
        if found is not None:
            selection._outcome(_sound_file(), found, VGGISH, "skip", 60.0)
    file_index.set_content(_sound_file(), _CONTENT)
    file_index.set_examined(_CONTENT, Examined(_FACTS))
    file_index.save()
    again = FileIndex(room / "ledger.json", AudioSettings())
    assert again.content(_sound_file()) == _CONTENT and again.examined(_CONTENT) == Examined(_FACTS)


def indexes() -> list[bytes]:
    line = {
        "content": _CONTENT,
        "shard": "shard-1-1.rows",
        "start": 0,
        "n_rows": 3,
        "crc": 0,
        "facts": asdict(_FACTS),
    }
    other = {**line, "content": "d", "start": 2, "n_rows": 1}
    lines = json.dumps(line).encode() + b"\n" + json.dumps(other).encode() + b"\n"
    lines += json.dumps({**line, "content": "e", "facts": None}).encode() + b"\n"
    return [lines + b"\0{}", lines + b'{"content": \n\n\0{"shard-1-1.rows": [384, 1, 1]}']


def index(data: bytes, room: Path) -> None:
    folder = FrameStore(room, VGGISH, AudioSettings()).folder
    folder.mkdir()
    (folder / "shard-1-1.rows").write_bytes(bytes(3 * 128))
    index, _, whole = data.partition(b"\0")
    (folder / INDEX_NAME).write_bytes(index)
    (folder / "whole.json").write_bytes(whole)
    store = FrameStore(room, VGGISH, AudioSettings())
    for content in store.contents():
        entry = store.entry(content)
        assert store.rows(content).shape == (entry.n_rows, VGGISH.n_mels)
        selection._outcome(_sound_file(), Examined(entry.facts), VGGISH, "skip", 60.0)
    store.verify(store.contents(), thorough=False)
    store.verify([*store.contents(), "nobody"])
    assert all(
        store.entry(content).crc == 0x0 or store.rows(content) is not None for content in store.contents()
    )
    store.note_whole()
    store.close()


def records() -> list[bytes]:
    record = {
        "status": "interrupted", "stage": "train", "version": 1, "format": 2, "fingerprint": "f",
        "stages": {"prepare": 1.5, "train": 2},
        "done": {"train": "x"}, "weights_sha256": "0" * 64, "precision": "float32",
        "first_started": "2020-01-01T00:00:00Z",
        "hardware": {"cpu": "some"}, "classes": ["a", "b"],
    }  # fmt: skip
    return [json.dumps(record).encode(), b"{}"]


def record(data: bytes, room: Path) -> None:
    for folder in (room / "logs" / "1", room):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "run.json").write_bytes(data)
    journal = Journal(quiet=True)
    current = runs.Run(Config(output=room), journal)
    current.take_version("f")
    with current.stage("train"):
        current.is_current("train", "x")
    current.done("train", "x", [room / "none"])
    current.end("done", 0)
    (room / "logs" / "1" / "run.json").write_bytes(data)
    _, record = runs.newest_trained(room)
    assert all(isinstance(name, str) for name in record["classes"])


def scores() -> list[bytes]:
    scores = Scores(
        classes=("a", "b"), recordings=("a/1.wav", "b/2.wav"), groups=("1", "2"), targets=np.eye(2, dtype=np.float32),
        window_scores=np.full((3, 2), 0.5, np.float32), window_recording=np.array([0, 0, 1]),
        window_start_s=np.zeros(3, np.float32),
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        scores.save(Path(name) / "s.npz")
        return [(Path(name) / "s.npz").read_bytes()]


def read_scores(data: bytes, room: Path) -> None:
    (room / "scores.npz").write_bytes(data)
    Scores.load(room / "scores.npz")


def ancestors() -> list[bytes]:
    """A model.json and the labels.csv beside it, of a served model that a run may begin from."""
    rows = [{"class": name, "threshold": 0.5, "from": "class"} for name in ("a", "b")]
    facts = {
        "format": 4, "version": 1, "classes": ["a", "b"], "backbone": "vggish", "head": "linear", "scores": "softmax",
        "embedding_activation": "relu", "weights": ["a", "b"], "weights_sha256": "0" * 64, "hidden_units": 0,
        "calibration": Calibration("softmax", Scale(1.25), Scale(2.0), 30).row(),
        "thresholds": {"goal": "a precision of 0.9", "reason": "", "classes": rows},
        "front_end": {**VGGISH.row(), "digest": VGGISH.digest},
        "ood": {"energy_weight": 1.0, "median": 2.0, "limit": 3.0, "target_recall": 0.9, "sources": 40},
    }  # fmt: skip
    labels = b"column,class,external_id,threshold\r\n0,a,7,0.5\r\n1,b,'007,0.5\r\n"
    bare = {**facts, "thresholds": None, "ood": None}
    return [json.dumps(each).encode() + b"\0" + labels for each in (facts, bare)]


def begin_from(data: bytes, room: Path) -> None:
    """All that is asked of a served model before its weights are read."""
    folder = room / "model" / "birdtune" / "1"
    folder.mkdir(parents=True)
    described, _, labels = data.partition(b"\0")
    (folder / "model.json").write_bytes(described)
    (folder / "labels.csv").write_bytes(labels)
    (found,) = base_model.find(Config(output=room, init_from="1"))
    (elsewhere,) = base_model.find(Config(output=room / "out", init_from=str(folder)))
    assert found.is_own and not elsewhere.is_own and found.facts == elsewhere.facts
    assert len(set(found.classes)) == len(found.classes) > 1 and set(found.class_ids) <= set(found.classes)
    assert found.digest() == elsewhere.digest() and found.learnt_from() is None
    json.dumps([found.row(), elsewhere.row(), found.calibration.row()], allow_nan=False)
    thresholds, scale = found.thresholds, found.scale
    assert thresholds is None or len(thresholds.values) == len(found.classes)
    told = [elsewhere.title, *(() if scale is None else [json.dumps(scale.row(), allow_nan=False)])]
    assert all(text == shown(text) for text in told)


# ---- names --------------------------------------------------------------------------------------


def names() -> list[bytes]:
    return [
        b"A/a.wav\0B/b.flac\0A/sub/c.mp3\0.hidden\0stray.wav\0C/x.m4a", b"<b>/<script>.wav\0\xff/\xe9.wav\0=1+1/-x.wav",
        "Gru\u0308n/\u202ea.wav\0Gr\u00fcn/\u2028b.wav\0'=/c\\n.wav\0a\nb/d\te.wav".encode(),
        b"x" * 255 + b"/" + b"y" * 251 + b".wav",
        b"A\x01../A\0A/l\x01../B/b.wav\0B/b.wav\0B/up\x01..\0C\x01/etc\0D/x\x01x",
    ]  # fmt: skip


def make_names(data: bytes, room: Path) -> None:
    """A data folder with files of these names; what stands behind a \\x01 is where a link leads."""
    root = room / "data"
    (root / "Always").mkdir(parents=True)
    (root / "Always" / "a.wav").write_bytes(b"x")
    n_entries = 0
    for raw in data.split(b"\0")[:20]:
        name, arrow, target = os.fsdecode(raw).partition("\x01")
        parts = [part for part in name.split("/") if part not in ("", ".", "..")]
        if not parts:
            continue
        path = root.joinpath(*parts)
        with contextlib.suppress(OSError):  # names too long, or a folder where a file should be
            # A link made before must not lead the writing out of the room.
            if any(above.is_symlink() for above in path.parents):
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            if arrow:
                path.symlink_to(target)
            elif not path.is_symlink():
                path.write_bytes(b"x")
            n_entries += 1
    listing = scan(root)
    names = [file.name for file in listing.files] + [problem.recording for problem in listing.problems]
    assert len(set(names)) == len(names), "two entries share a name"
    assert all(name == shown(name) for name in [*names, *listing.folders])
    for file in listing.files:
        assert file.path.resolve().is_relative_to(root.resolve())
    found = sum(
        len(files) + sum(_stands_alone(place, f) for f in folders) for place, folders, files in _walk(root)
    )
    assert len(names) == found, f"{found} entries, {len(names)} accounted for"
    _tables(room, listing.files)


def _walk(root: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    for place, folders, files in os.walk(root):
        kept = list(folders)
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield place, kept, files


def _stands_alone(place: str, folder: str) -> bool:
    """Whether a folder is an entry of the books itself: hidden ones, and links to folders, which are not entered."""
    return folder.startswith(".") or Path(place, folder).is_symlink()


def _tables(room: Path, files: list[SoundFile]) -> None:
    facts = SoundFacts(RATE_HZ, 1, 2.0, -8.0, "WAV PCM_16")
    recordings = [
        Recording(file.name, file.path, (Label(file.label),), f"{k:064x}", facts) for k, file in enumerate(files)
    ]
    write_csv(
        room / "t.csv", ("recording", "class"), [{"recording": r.name, "class": r.label} for r in recordings]
    )
    assert [(row["recording"], row["class"]) for row in read_csv(room / "t.csv")] == [
        (r.name, r.label) for r in recordings
    ]
    with (room / "t.csv").open(newline="", encoding="utf-8") as file:
        # As any program reads it: names are never changed.
        assert [row[0] for row in csv.reader(file)][1:] == [r.name for r in recordings]
    result = split.assign(recordings, SplitSettings(), room / "split.csv")
    split.write(room / "split.csv", recordings, result.places, room / "split.csv")
    again = split.assign(recordings, SplitSettings(seed=9), room / "split.csv")
    assert again.places == result.places
