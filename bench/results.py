"""results/<part>.json ─▶ RESULTS.md: every figure of the table comes from a file that a run has written."""

import json
import statistics
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bench.harness import ORDER

_HEAD = """# birdtune beside its peers

Written by `./entrypoint.sh bench` from `bench/results/*.json`, where the single values stand. A figure is the median
of its rounds, ± half the distance between the quartiles; candidates took turns in every round. A figure without ± is of
a single run, or put together from others as its note says. A ratio says how many times faster birdtune is, unless its
line says otherwise; in brackets stands that of the run before this one, for ± knows nothing of what changes from run to
run: the machine's other tenants, above all. Each section names the commit that it measured, and calls settings and
files as that commit did: birdtune refuses an earlier name of a setting with its present one. `./entrypoint.sh bench
--help` says how to run it; parts `learn_…`, `backbone_speed`, `jobs…`, `detect` and `sources` need the sound and
weights that `bench/learning.py` names.
"""
_TITLES = {
    "frames": "Sound → frames",
    "unchanged": "Unchanged input, again",
    "step": "A training step",
    "epochs": "Whole epochs from disk",
    "frozen": "Frozen backbone",
    "predict": "Prediction",
    "checkpoint": "A checkpoint of every epoch",
    "start": "Start",
    "memory": "Peak memory",
    "image": "The image for CPUs",
    "linear": "Cost grows linearly",
    "scale": "A million recordings",
    "gpu": "GPU",
    "backbone_speed": "BirdNET's embeddings",
    "jobs": "Whole jobs, as people wait for them",
    "jobs_birdnet": "A whole job on BirdNET",
    "detect": "Detections in long recordings",
    "learn_backbones": "What is learned: on which backbone",
    "learn_blocks": "What is learned: with the last blocks of a backbone trained",
    "learn_heads": "What is learned: heads on a frozen backbone",
    "learn_sequences": "What is learned: heads over time, and attention of each class",
    "learn_ensemble": "What is learned: by several heads served as one",
    "learn_jobs": "What is learned: the whole job",
    "learn_unknown": "What is learned: sounds of classes never trained on",
    "learn_elsewhere": "What is learned: of known sounds in other places",
    "learn_unseen": "What is learned: to recognise classes without recordings",
    "learn_unbalanced": "What is learned: from classes as unlike as 100 : 1",
    "learn_smote": "What is learned: of rare classes, with recordings made by SMOTE",
    "learn_weak": "What is learned: from labels that are true of a fifth of the sound",
    "learn_soundscapes": "What is learned: detections in soundscapes of known content",
    "learn_soundscapes_few": "What is learned: detections of four species",
    "learn_soundscapes_doubtful": "What is learned: detections of calls that may not be of their species",
    "learn_review": "What is learned: from a hundred reviewed detections",
    "learn_noisy": "What is learned: which labels are wrong",
    "learn_finetuned": "What is learned: by which fine-tuning, of few recordings",
    "learn_augmented": "What is learned: with augmentation, of few recordings",
    "learn_robust": "What is learned: with augmentation of sound, where test sounds differ",
    "learn_robust_trained": "What is learned: fine-tuned with noise, where test sounds differ",
    "learn_short": "What is learned: from clips shorter than a window",
    "sources": "Clips of one recording, found by their sound",
}
_COLUMNS = ("what", "birdtune", "beside", "ratio", "to reach", "reached", "notes")


def keep(folder: Path, result: Mapping[str, Any]) -> None:
    """Write a part's result to folder/results/, in place of an earlier one whose ratios it then names, and RESULTS.md
    anew.
    """
    (folder / "results").mkdir(parents=True, exist_ok=True)
    earlier = next((old for old in read(folder) if old["part"] == result["part"]), None)
    if earlier is not None and earlier["quick"] == result["quick"]:
        before = {line["what"]: line["ratio"] for line in earlier["lines"]}
        result = {**result, "lines": [{**line, "before": before.get(line["what"])} for line in result["lines"]]}
    text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
    _write(folder / "results" / f"{result['part']}.json", text)
    refresh(folder)


def refresh(folder: Path) -> None:
    """Write RESULTS.md of the results that are kept. Raises OSError."""
    (folder / "results").mkdir(parents=True, exist_ok=True)
    _write(folder / "RESULTS.md", render(read(folder)))


def _write(path: Path, text: str) -> None:
    """Whole or not at all."""
    unfinished = path.with_name(f".unfinished-{path.name}")
    unfinished.write_text(text, "utf-8")
    unfinished.replace(path)


def read(folder: Path) -> list[dict[str, Any]]:
    """All results that are kept, in the order of the parts; a damaged one is told and passed over."""
    found = []
    for path in (folder / "results" / f"{part}.json" for part in ORDER):
        try:
            found.append(json.loads(path.read_text("utf-8")))
        except FileNotFoundError:
            continue
        except ValueError as fault:
            print(f"bench: {path}: is damaged ({fault}); measure the part again", file=sys.stderr)
    return found


def render(results: Iterable[Mapping[str, Any]]) -> str:
    """RESULTS.md of some parts' results."""
    results = list(results)
    return "\n".join([_HEAD, *_between_runs(results), *map(_section, results)])


def _between_runs(results: Iterable[Mapping[str, Any]]) -> list[str]:
    """How far the ratios of two runs lie apart, in a sentence, if there were two."""
    lines = [line for result in results for line in result["lines"]]
    moved = [abs(line["ratio"] / line["before"] - 1) for line in lines if line["ratio"] and line.get("before")]
    if not moved:
        return []
    low, most = statistics.median(moved), max(moved)
    return [
        f"Of {len(moved)} ratios that two runs have, half moved by less than {low:.0%} from one to the other, and none "
        f"by more than {most:.0%}.\n"
    ]


def _section(result: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    quick = " **In its tiniest form (--quick): the figures mean nothing.**" if result["quick"] else ""
    return "\n".join(
        [
            f"## {_TITLES[result['part']]}",
            "",
            *table(result["lines"]),
            "",
            f"`{result['command']}` took {result['seconds']:.0f} s on {result['date']}.{quick}  ",
            f"{result['machine']}; {versions}; commit `{result['commit'] or 'unknown'}`.",
            "",
        ]
    )


def table(lines: Iterable[Mapping[str, Any]]) -> list[str]:
    """Lines of a result as a Markdown table."""
    rows = [_row(line) for line in lines]
    return [f"| {' | '.join(row)} |" for row in (_COLUMNS, ["---"] * len(_COLUMNS), *rows)]


def _row(line: Mapping[str, Any]) -> list[str]:
    ratio = "" if line["ratio"] is None else f"{_times(line['ratio'])}×"
    if ratio and line.get("before"):
        ratio += f" ({_times(line['before'])}×)"
    reached = {True: "yes", False: "**no**", None: ""}[line["reached"]]
    cells = (line["what"], line["figure"], line["beside"], ratio, line["target"], reached, line["note"])
    return [cell.replace("|", "\\|") for cell in cells]


def _times(ratio: float) -> str:
    return f"{ratio:.0f}" if ratio >= 100 else f"{ratio:.3g}" if ratio >= 10 else f"{ratio:.2f}"
