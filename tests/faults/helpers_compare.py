"""Two output folders that must be the same, although one of the jobs was killed, interrupted or moved.

    folder, folder ─▶ compare ─▶ (what was compared, what is wrong or "")
"""

import hashlib
import json
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Findings = list[tuple[str, str]]

_REPORTS = ("metrics.json", "predictions.csv", "per_class.csv", "confusion.csv", "classes.csv", "problems.csv")
_MODEL = ("variables/variables.data-00000-of-00001", "labels.csv", "train_id_list.pickle")
# What a run took is its own affair.
_TIMES = frozenset({"seconds"})


def compare(expected: Path, found: Path) -> Findings:
    """Everything that must be the same, and what must not be there at all."""
    return [
        *compare_results(expected, found),
        ("cache: the frames of the same recordings", _differ(expected, found, _contents)),
        ("the newest checkpoint stands at the same place", _differ(expected, found, _state)),
        ("curves for TensorBoard: every point once", _differ(expected, found, _curves)),
        ("events.jsonl keeps its books", "; ".join(books(found))),
        ("nothing unfinished was left", ", ".join(str(path) for path in sorted(found.rglob(".unfinished*")))),
    ]


def compare_results(expected: Path, found: Path) -> Findings:
    """What a user gets: weights, figures, model."""
    weights = _json(found / "run.json").get("weights_sha256")
    findings = [
        (f"run.json: done, version 1, weights {str(weights)[:12]}", _differ(expected, found, _record)),
        ("history.json: the same figures of each epoch, the same best", _differ(expected, found, _history)),
        ("the best checkpoint and the newest: the same weights and optimizer", _differ(expected, found, _checkpoints)),
        ("split.csv", _differ(expected, found, lambda folder: _digest(folder / "split.csv"))),
    ]
    for folder, names in (("reports/1", _REPORTS), ("model/birdtune/1", _MODEL)):
        for name in names:
            findings.append((f"{folder}/{name}", _differ(expected, found, _digest_of(f"{folder}/{name}"))))
    findings.append(("model.json: verified to the same closeness", _differ(expected, found, _model_facts)))
    return findings


def _differ(expected: Path, found: Path, look: Callable[[Path], Any]) -> str:
    try:
        wanted, is_there = look(expected), look(found)
    except (OSError, LookupError, TypeError, ValueError) as fault:
        return f"{type(fault).__name__}: {fault}"
    return "" if wanted == is_there else _first_difference(wanted, is_there)


def _first_difference(wanted: Any, found: Any, where: str = "") -> str:
    if isinstance(wanted, dict) and isinstance(found, dict):
        for key in sorted(wanted.keys() | found.keys(), key=str):
            if wanted.get(key) != found.get(key):
                return _first_difference(wanted.get(key), found.get(key), f"{where}/{key}")
    if isinstance(wanted, list) and isinstance(found, list) and len(wanted) == len(found):
        for place, (one, other) in enumerate(zip(wanted, found, strict=True)):
            if one != other:
                return _first_difference(one, other, f"{where}/{place}")
    return f"{where} {str(found)[:200]}, not {str(wanted)[:200]}"


# ---- what is looked at --------------------------------------------------------------------------


def _json(path: Path) -> dict[str, Any]:
    found = json.loads(path.read_text("utf-8"))
    assert isinstance(found, dict)
    return found


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _digest_of(name: str) -> Callable[[Path], str]:
    return lambda folder: _digest(folder / name)


def _timeless(value: Any) -> Any:
    """Without what a run took."""
    if isinstance(value, dict):
        return {key: _timeless(item) for key, item in value.items() if key not in _TIMES}
    return [_timeless(item) for item in value] if isinstance(value, list) else value


def _record(folder: Path) -> dict[str, Any]:
    record = _json(folder / "run.json")
    names = ("status", "stage", "version", "exit_code", "precision", "weights_sha256", "classes")
    return {name: record[name] for name in names}


def _history(folder: Path) -> Any:
    return _timeless(_json(folder / "logs/1/history.json"))


def _checkpoints(folder: Path) -> dict[str, list[str]]:
    """Of the best epoch and of the newest; which others are kept depends on when the job was saved last."""
    best = _json(folder / "logs/1/history.json")["best_epoch"]
    newest = max(path.name for path in folder.glob("checkpoints/1/epoch-*"))
    return {
        name: [_digest(folder / f"checkpoints/1/{name}/{part}.safetensors") for part in ("weights", "optimizer")]
        for name in (f"epoch-{best:04d}-step-000000", newest)
    }


def _state(folder: Path) -> Any:
    newest = max(folder.glob("checkpoints/1/epoch-*"))
    return newest.name, _timeless(_json(newest / "state.json")["state"])


def _model_facts(folder: Path) -> Any:
    facts = _json(folder / "model/birdtune/1/model.json")
    return {name: facts[name] for name in ("classes", "weights_sha256", "verification", "version")}


def _contents(folder: Path) -> Any:
    found = {}
    for path in folder.glob("cache/*/index.jsonl"):
        for line in path.read_text("utf-8").splitlines():
            if line:
                entry = json.loads(line)
                found[entry["content"]] = (entry["n_rows"], entry["crc"])
    shards = {path.name for path in folder.glob("cache/*/shard-*")}
    return found, bool(shards)


# ---- books --------------------------------------------------------------------------------------


def books(folder: Path) -> list[str]:
    """What is wrong with events.jsonl; run.json and history.json say what it should tell."""
    lines = (folder / "logs/1/events.jsonl").read_text("utf-8").splitlines()
    try:
        events = [json.loads(line) for line in lines]
    except ValueError as fault:
        return [f"a line is no JSON ({fault})"]
    history = _json(folder / "logs/1/history.json")["epochs"]
    told = [event["epoch"] for event in events if event["event"] == "epoch"]
    wrong = []
    if told != [row["epoch"] for row in history]:
        wrong.append(f"epochs told {told}")
    ends = Counter(event["stage"] for event in events if event["event"] == "stage" and event["state"] == "end")
    if any(count > 1 for name, count in ends.items() if name != "prepare"):
        wrong.append(f"a stage ended twice: {dict(ends)}")
    places = [(event["epoch"], event["step"]) for event in events if event["event"] == "resumed"]
    if places != sorted(places):
        wrong.append(f"it went back: {places}")
    if [event["status"] for event in events if event["event"] == "end"][-1:] != ["done"]:
        wrong.append("it does not end with `done`")
    return wrong


def _curves(folder: Path) -> Any:
    return points_of(folder / "logs/1/tensorboard")


def points_of(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Every point of the TensorBoard files in a folder: tag → (step, value), without those that are times."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.util.tensor_util import make_ndarray

    found: dict[str, list[tuple[int, float]]] = {}
    for path in sorted(folder.iterdir()):
        for record in _records(path):
            event = Event.FromString(record)
            for value in event.summary.value:
                if value.tag.split("/")[-1] not in _TIMES:
                    point = (event.step, float(make_ndarray(value.tensor)))
                    found.setdefault(value.tag, []).append(point)
    return found


def _records(path: Path) -> Iterator[bytes]:
    """The records of a TFRecord file: length [8], its checksum [4], the bytes, their checksum [4]."""
    content, place = path.read_bytes(), 0
    while place < len(content):
        (length,) = struct.unpack_from("<Q", content, place)
        yield content[place + 12 : place + 12 + length]
        place += 16 + length
