"""Report data of a run: from the dataset, the record and the result files.

Run + Dataset + reports/<v>/metrics.json ─▶ ReportData
"""

import shlex
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import birdtune
from birdtune.audio import decode
from birdtune.audio.faults import SoundError
from birdtune.data import augment
from birdtune.data.dataset import Dataset
from birdtune.data.frames import FrameStore
from birdtune.data.scan import PROBLEM_COLUMNS, Recording
from birdtune.errors import InputError, shown
from birdtune.evaluation import embedding_map, recording_events
from birdtune.evaluation.decision import Thresholds
from birdtune.evaluation.diagnostics import Diagnostic
from birdtune.evaluation.label_issues import FACTS_NAME
from birdtune.evaluation.scores import Scores
from birdtune.models import registry
from birdtune.models.known import Origin
from birdtune.models.onnx_backbone import OnnxBackbone
from birdtune.reporting import attribution, published_section, tune_page, tuned
from birdtune.reporting.event_section import RecordingEvents
from birdtune.reporting.listening import Clip
from birdtune.reporting.report import ReportData
from birdtune.reporting.verdict import Verdict, all_diagnostics, verdict
from birdtune.runtime.files import read_json, write_csv, write_text
from birdtune.runtime.runs import HISTORY_NAME, Run
from birdtune.runtime.text import count

_OF_ONNX = "the head, which takes embeddings; `predict` takes sound, by the copy of the ONNX file in assets.extra/"


def report_data(run: Run, dataset: Dataset, store: FrameStore, origin: Origin) -> ReportData:
    """What `report.write_report` needs.

    Args:
        origin: of the weights that the backbone began with.

    Raises:
        InputError: the stage `evaluate` has left no figures.
    """
    figures = read_json(run.reports / "metrics.json")
    if not isinstance(figures, dict):
        raise InputError(
            f"{shown(run.reports / 'metrics.json')}: no figures to report. Run `./entrypoint.sh evaluate` first."
        )
    trained = _trained(run)
    found, word = diagnose(run, figures)
    metrics = {name: figures.get(name) for name in ("val", "test")}
    scores = {name: Scores.load(run.reports / f"scores-{name}.npz") for name, own in metrics.items() if own}
    return ReportData(
        version=int(run.version or 0),
        created=str(run.record["started"]),
        birdtune_version=birdtune.__version__,
        command=_command(run),
        settings={name: "" if value is None else str(value) for name, value in run.config.flat().items()},
        changed=frozenset(run.config.changed()),
        classes=dataset.classes,
        class_rows=class_rows(dataset),
        totals={
            "recordings": len(dataset.recordings), "train": len(dataset.part("train")),
            "minutes": sum(recording.facts.duration_s for recording in dataset.recordings) / 60,
        },
        metrics=metrics,
        scores=scores,
        history=trained["epochs"],
        best_epoch=trained["best_epoch"],
        best_epoch_by=trained["best_epoch_by"],
        problems=[problem.row() for problem in dataset.problems],
        books=dataset.books(),
        label_rows=dataset.rows,
        notices=dataset.notices,
        diagnostics=found,
        verdict=word,
        hardware=_hardware(run.record),
        stages=run.record["stages"],
        window_s=store.spec.window_s,
        backbone=backbone_rows(run, origin, figures.get("published_alone")),
        licences=attribution.by_licence(attribution.rows_of(run.config, dataset)),
        listen=_listener(dataset, store),
        promotion=_promotion(run),
        tuning=tune_page.section(tuned.of_run(run.config)),
        model_comparison=figures.get("model_comparison"),
        label_issues=_label_issues(run),
        embedding_map=_embedding_map(run),
        rare_class_ablation=figures.get("rare_class_ablation"),
        shortcuts=figures.get("shortcuts"),
        leak=figures.get("leak"),
        events=_events(dataset, store, figures, scores.get("test")),
        trust=figures,
    )


def write_companions(run: Run, dataset: Dataset) -> None:
    """The small files beside the report: classes.csv, problems.csv, config.yaml."""
    import yaml

    rows = class_rows(dataset)
    write_csv(run.reports / "classes.csv", tuple(rows[0]), rows)
    write_csv(run.reports / "problems.csv", PROBLEM_COLUMNS, [problem.row() for problem in dataset.problems])
    text = yaml.safe_dump(run.config.tree(), sort_keys=False, allow_unicode=True)
    write_text(run.reports / "config.yaml", text)


def _command(run: Run) -> str:
    return shlex.join(
        ["./entrypoint.sh", "run", *(f"--{name}={value}" for name, value in run.config.changed().items())]
    )


def class_rows(dataset: Dataset) -> list[dict[str, Any]]:
    """Per class: recordings, minutes, how many in each part, external id."""
    of_class: dict[str, list[Recording]] = defaultdict(list)
    for recording in dataset.recordings:
        for name in recording.classes:
            of_class[name].append(recording)
    rows = []
    for name in dataset.classes:
        inside = of_class[name]
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


def diagnose(run: Run, figures: Mapping[str, Any]) -> tuple[list[Diagnostic], Verdict]:
    """Warnings about the run's model, and how far to trust it; `figures`: of metrics.json."""
    trained = {**_trained(run), "augmented": augment.spoken(run.config.augment)}
    found = all_diagnostics(trained, figures, _label_issues(run))
    return found, verdict(figures, found)


def backbone_rows(run: Run, origin: Origin, alone: dict[str, Any] | None = None) -> list[tuple[str, str]]:
    """The backbone, where its weights come from, and what the head begins from; `alone`: of metrics.json."""
    backbone = registry.backbone_of(run.config)
    hop_s = run.config.train.hop_s or backbone.hop_s
    sha256 = run.record["weights_sha256"]
    return [
        ("backbone", backbone.title if backbone.title == backbone.name else f"{backbone.title} ({backbone.name})"),
        ("sample rate", f"{backbone.sample_rate_hz:,} Hz"),
        ("window", f"{backbone.front_end.receptive_s:g} s; in training, one begins every {hop_s:g} s"),
        ("embedding", f"{backbone.embedding_size:,} numbers"),
        *origin.lines(),
        *_head_start(run),
        *([("without your recordings", published_section.alone(alone))] if alone else []),
        *([("SHA-256 of this model's weights", str(sha256))] if sha256 else []),
        *([("SHA-256 of the backbone's files", backbone.graph_sha256)] if backbone.graph_sha256 else []),
        *([("what is served", _OF_ONNX)] if isinstance(backbone, OnnxBackbone) else []),
    ]


def _hardware(record: Mapping[str, Any]) -> dict[str, str]:
    rows = {**record.get("hardware", {}), "precision": str(record.get("precision", ""))}
    return {"memory" if name == "memory_gb" else name: f"{value} GB" if name == "memory_gb" else str(value)
            for name, value in rows.items()}  # fmt: skip


def _head_start(run: Run) -> list[tuple[str, str]]:
    found = run.record["head_start"]
    if not found or not found["classes"]:
        return []
    n, classes = len(found["classes"]), count(len(run.record["classes"]), "class")
    said = (
        f"the classifier that {found['backbone']} was published with, for {n:,} of {classes}. It may "
        "have learnt from the same public recordings that are tested on here; from recordings of your own it has not"
    )
    return [("head begins from", said)]


def _promotion(run: Run) -> dict[str, Any] | None:
    if run.config.gate.champion is None or run.record["promoted"] is None:
        return None
    return {"promoted": run.record["promoted"], "reason": run.record["gate"]["reason"]}


def _label_issues(run: Run) -> dict[str, Any] | None:
    found = read_json(run.reports / FACTS_NAME) if run.config.evaluate.label_issues else None
    return found if isinstance(found, dict) else None


def _embedding_map(run: Run) -> dict[str, Any] | None:
    if not run.config.evaluate.label_issues:
        return embedding_map.no_map("it is made of the embeddings that --evaluate.label-issues computes, which is off")
    found = read_json(run.reports / embedding_map.FACTS_NAME)
    return found if isinstance(found, dict) else None


def _events(
    dataset: Dataset, store: FrameStore, figures: Mapping[str, Any], test: Scores | None
) -> RecordingEvents | None:
    """Annotated and detected events of the test recordings, where they were evaluated."""
    if test is None or not figures["test"].get("events"):
        return None
    part, spec = dataset.part("test"), store.spec
    thresholds = Thresholds.of(figures.get("detection_thresholds") or figures["thresholds"])
    found = recording_events.compare(
        test, part, thresholds, dataset.background, marked=recording_events.marked_classes(dataset, part),
        window_s=spec.window_s, smooth_windows=spec.smoothed_windows(spec.hop(figures["test"]["events"]["hop_s"])),
    )  # fmt: skip
    return RecordingEvents(*found, thresholds, spec.window_s)


def _trained(run: Run) -> dict[str, Any]:
    trained = read_json(run.logs / HISTORY_NAME)
    return trained if isinstance(trained, dict) else {"best_epoch": None, "best_epoch_by": "recordings", "epochs": []}


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
