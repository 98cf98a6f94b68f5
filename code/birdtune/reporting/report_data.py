"""What the report is told of a run: gathered from the dataset, the record and the result files.

Run + Dataset + reports/<v>/metrics.json ─▶ ReportFacts
"""

import shlex
from collections.abc import Callable, Mapping
from typing import Any

import birdtune
from birdtune.audio import decode
from birdtune.audio.faults import SoundError
from birdtune.data import augment
from birdtune.data.dataset import Dataset
from birdtune.data.frames import FrameStore
from birdtune.data.scan import PROBLEM_COLUMNS
from birdtune.errors import InputError, shown
from birdtune.evaluation.diagnostics import Doubt
from birdtune.evaluation.scores import Scores
from birdtune.reporting import tune_page, tuned
from birdtune.reporting.listening import Clip
from birdtune.reporting.report import ReportFacts
from birdtune.reporting.verdict import Verdict, all_doubts, verdict
from birdtune.runtime.files import read_json, write_csv, write_text
from birdtune.runtime.runs import HISTORY_NAME, Run


def report_facts(run: Run, dataset: Dataset, store: FrameStore) -> ReportFacts:
    """Gather what `report.write_report` needs.

    Raises:
        InputError: the stage `evaluate` has left no figures.
    """
    judged = read_json(run.reports / "metrics.json")
    if not isinstance(judged, dict):
        raise InputError(
            f"{shown(run.reports / 'metrics.json')}: no figures to report. Run `./entrypoint.sh evaluate` first."
        )
    trained = _trained(run)
    found, word = judgement(run, judged)
    figures = {name: judged.get(name) for name in ("val", "test")}
    return ReportFacts(
        version=int(run.version or 0),
        created=str(run.record["started"]),
        birdtune_version=birdtune.__version__,
        command=_command(run),
        settings={name: "" if value is None else str(value) for name, value in run.config.flat().items()},
        changed=frozenset(run.config.changed()),
        classes=dataset.classes,
        class_rows=class_rows(dataset),
        metrics=figures,
        scores={
            name: Scores.load(run.reports / f"scores-{name}.npz") for name, found in figures.items() if found
        },
        history=trained["epochs"],
        best_epoch=trained["best_epoch"],
        problems=[problem.row() for problem in dataset.problems],
        books=dataset.books(),
        notices=dataset.notices,
        doubts=found,
        verdict=word,
        hardware={**run.record.get("hardware", {}), "precision": str(run.record.get("precision", ""))},
        stages=run.record["stages"],
        window_s=store.spec.window_s,
        listen=_listener(dataset, store),
        tuning=tune_page.section(tuned.of_run(run.config)),
        succession=judged.get("init_from"),
        promotion=_promotion(run),
        suspects=_suspects(run),
        remedies=judged.get("remedies"),
        shortcuts=judged.get("shortcuts"),
        trust=judged if {"calibration", "thresholds", "false_alarms"} <= set(judged) else None,
    )


def write_companions(run: Run, dataset: Dataset) -> None:
    """The small files beside the report: classes.csv, problems.csv, config.yaml."""
    import yaml

    rows = class_rows(dataset)
    write_csv(run.reports / "classes.csv", tuple(rows[0]), rows)
    write_csv(run.reports / "problems.csv", PROBLEM_COLUMNS, [problem.row() for problem in dataset.problems])
    text = yaml.safe_dump(run.config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    write_text(run.reports / "config.yaml", text)


def _command(run: Run) -> str:
    return shlex.join(
        ["./entrypoint.sh", "run", *(f"--{name}={value}" for name, value in run.config.changed().items())]
    )


def class_rows(dataset: Dataset) -> list[dict[str, Any]]:
    """Per class: recordings, minutes, how many on each side, external id."""
    rows = []
    for name in dataset.classes:
        inside = [recording for recording in dataset.recordings if recording.label == name]
        sides = [dataset.places[recording.name].split for recording in inside]
        rows.append(
            {
                "class": name,
                "external_id": dataset.class_ids.get(name),
                "recordings": len(inside),
                "sources": len({dataset.places[recording.name].group for recording in inside}),
                "minutes": round(sum(recording.facts.duration_s for recording in inside) / 60, 2),
                **{side: sides.count(side) for side in ("train", "val", "test")},
            }
        )
    return rows


def judgement(run: Run, figures: Mapping[str, Any]) -> tuple[list[Doubt], Verdict]:
    """What speaks against the run's model, and how far to trust it; `figures`: of metrics.json."""
    parts = {name: figures.get(name) for name in ("val", "test")}
    noise = figures.get("false_alarms", {}).get("noise", [])
    trained = {**_trained(run), "augmented": augment.spoken(run.config.augment)}
    heard = figures.get("leak"), figures.get("shortcuts")
    found = all_doubts(trained, parts, figures.get("init_from"), noise, _suspects(run), *heard)
    return found, verdict(parts, found)


def _promotion(run: Run) -> dict[str, Any] | None:
    if run.config.gate.champion is None or run.record["promoted"] is None:
        return None
    return {"promoted": run.record["promoted"], "reason": run.record["gate"]["reason"]}


def _suspects(run: Run) -> dict[str, Any] | None:
    found = read_json(run.reports / "suspects.json") if run.config.evaluate.label_issues else None
    return found if isinstance(found, dict) else None


def _trained(run: Run) -> dict[str, Any]:
    trained = read_json(run.logs / HISTORY_NAME)
    return trained if isinstance(trained, dict) else {"best_epoch": None, "epochs": []}


def _listener(dataset: Dataset, store: FrameStore) -> Callable[[str, float, float], Clip | None]:
    by_name = {recording.name: recording for recording in dataset.recordings}
    rate_hz = store.spec.rate_hz

    def listen(name: str, start_s: float, seconds: float) -> Clip | None:
        recording = by_name.get(name)
        if recording is None:
            return None
        try:
            waveform = decode.read(
                recording.path, store.sound, rate_hz=rate_hz, start_s=start_s, longest_s=seconds,
                channel=recording.channel,
            )  # fmt: skip
        except SoundError:
            return None  # it was readable when the frames were made; the page says that it is gone
        return Clip(waveform, rate_hz)

    return listen
