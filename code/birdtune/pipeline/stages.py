"""The stages `train`, `export` and `report` of a run; `evaluate` has a file of its own.

    Job ─▶ train ─▶ checkpoints/<v>, logs/<v>/history.json
    reports/<v>/metrics.json ─▶ export ─▶ model/<name>/<v>, or candidates/<v> where the gate does not promote it
                             ─▶ report ─▶ report.html and its tables

Importing this loads TensorFlow.
"""

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy

import birdtune
from birdtune.audio import decode
from birdtune.audio.faults import SoundError
from birdtune.audio.front_end import FrontEnd
from birdtune.audio.waveform import as_float
from birdtune.data import augment
from birdtune.data.scan import Recording
from birdtune.errors import shown
from birdtune.models import classifier as classifiers
from birdtune.models.backbone import ALL_BUT_HEAD, Arrays
from birdtune.models.classifier import Classifier, weights_sha256
from birdtune.models.weights import sound_of
from birdtune.pipeline import gate, label_check, published_classes
from birdtune.pipeline.metrics import read_ood, read_served
from birdtune.pipeline.release import remove_model
from birdtune.reporting import attribution, augmentation_sheet, croissant, history, model_card, tables
from birdtune.reporting.report import write_report
from birdtune.reporting.report_data import report_data, write_companions
from birdtune.runtime import bfloat16
from birdtune.runtime.files import make_folder, read_json, write_bytes, write_text
from birdtune.runtime.runs import HISTORY_NAME
from birdtune.serving.export import export_model, training_side
from birdtune.training import base_model, ensemble
from birdtune.training import train as training
from birdtune.training.job import Job
from birdtune.training.served_model import BEFORE_REFIT
from birdtune.training.trained import best_classifier

# The recording that an export is verified with: long enough for several windows, short enough to be quick.
_EXAMPLE_S = 10.0
_EXAMPLE_WINDOWS, _EXAMPLE_RECORDINGS = 16, 8
# Of validation, to be scored in bfloat16 as well; VGGish takes some seconds for them.
_COMPARED_WINDOWS = 500


def train(job: Job) -> list[Path]:
    """Train, and once more on training and validation, or other members of an ensemble, where the settings ask for it;
    the file that says it is done.
    """
    if job.config.train.ensemble:
        ensemble.members(job)  # raises where there are too few recordings
    training.train(job, label_shares=_label_shares(job))
    if job.config.train.ensemble:
        ensemble.train(job, _label_shares)
    elif job.served.refit:
        training.refit(job.served, label_shares=_label_shares(job.served))
    elif job.config.train.refit:
        job.journal.warn("--train.refit: there are no validation recordings to learn from as well.")
    return [job.run.logs / HISTORY_NAME]


def _label_shares(job: Job) -> npt.NDArray[np.float32] | None:
    """The refined labels of a training, where the settings ask for them; the chief's, in all processes. [windows]"""
    if not job.config.train.label_refinement:
        return None
    if not job.world.is_chief:
        return job.world.broadcast(None)
    kept = job.run.logs / (f"{job.later}-{label_check.KEPT_NAME}" if job.later else label_check.KEPT_NAME)
    shares = label_check.kept_shares(job.config, job.dataset, job.store, kept, job.journal, job.interrupts)
    return job.world.broadcast(shares)


def export(job: Job) -> list[Path]:
    """Write the model, verify it in a fresh process, put it in service or among the candidates; its folder."""
    decision = gate.decide(job.config, job.run.reports, job.run.record)
    places = [job.run.model, job.run.candidate]
    place, other = places if decision.promoted else reversed(places)
    facts = _export_to(job, place)
    verification = facts["verification"]
    largest = max(verification["differences"].values())
    job.journal.say(f"  loaded in a fresh process, its scores differ by at most {largest:.0e}")
    if facts.get("backbone_file"):
        job.journal.say(
            "  TensorFlow Serving takes embeddings of this model, as its backbone is an ONNX file; `predict` "
            f"takes sound, by {shown(place / facts['backbone_file']['file'])}"
        )
    job.journal.event("exported", folder=str(place), promoted=decision.promoted, **verification)
    # Earlier decided otherwise: only now that the model has its new place does it leave the old one.
    remove_model(other)
    job.run.record.update(promoted=decision.promoted, gate=decision.row())
    history.note(job.config.output, int(job.run.version or 0), promoted=decision.promoted, reason=decision.reason)
    return [place]


def _export_to(job: Job, folder: Path) -> dict[str, Any]:
    """Export the weights to a folder; what stands in its model.json."""
    classifier = _with_sound(job, best_classifier(job.served))
    example, examples = _examples(job, classifier.front_end)
    lengths_s = [recording.facts.duration_s for recording in job.dataset.part("val")]
    calibration, thresholds, of_detections = read_served(job.run.reports, len(job.dataset.classes), classifier.kind)
    published, before_refit = published_classes.served(job), _head_before_refit(job, classifier)
    return export_model(
        classifier,
        folder,
        facts={
            "name": job.config.export.name,
            "version": job.run.version,
            "birdtune": birdtune.__version__,
            "fingerprint": job.run.record["fingerprint"],
            "first_started": job.run.record["first_started"],  # of two outputs with the same model, tells which
            "init_from": job.run.record["init_from"],
            "backbone_origin": base_model.origin(job.config, job.base).row(),
            "refit": job.run.record["refit"],
            **_genera(job),
            # What the backbone's own list calls the classes, by which a list of species may name them.
            "published_names": dict(job.head_start.labels) if job.head_start is not None else {},
            "ensemble": job.run.record["ensemble"],
            "before_refit": before_refit and weights_sha256(before_refit),
            "hidden_units_before": job.config.model.head_units if job.run.record["ensemble"] else None,
            "published": None if published is None else published[1],
            "calibration_clip_s": round(float(np.median(lengths_s)), 3) if lengths_s else None,
        },
        example_waveform=example,
        expected=training_side(classifier, examples, calibration),
        calibration=calibration,
        thresholds=thresholds,
        detection_thresholds=of_detections,
        ood=read_ood(job.run.reports),
        published=None if published is None else published[0],
        class_ids=job.dataset.class_ids,
        validation=_to_compare(job, classifier),
        describe=lambda building, facts: _describe(job, building, facts, before_refit),
        check=job.interrupts.check,
    )


def _genera(job: Job) -> dict[str, Any]:
    """Genera and families that a recording can be decided for, as model.json has them."""
    figures = read_json(job.run.reports / "metrics.json") or {}
    rows = {name: figures.get(name) for name in ("genera", "families")}
    return {name: row and {key: row[key] for key in row if key != "test"} for name, row in rows.items()}


def _describe(job: Job, building: Path, facts: Mapping[str, Any], before_refit: Arrays | None) -> None:
    write_text(building / model_card.CARD_NAME, model_card.card(job.run, job.dataset, facts))
    croissant.write(building, job.run, job.dataset)
    attribution.write(building, attribution.rows_of(job.config, job.dataset))
    if before_refit is not None:
        make_folder((building / BEFORE_REFIT).parent)
        safetensors.numpy.save_file(before_refit, building / BEFORE_REFIT)


def _head_before_refit(job: Job, classifier: Classifier) -> Arrays | None:
    """The head that has not learnt from validation recordings, for models that begin from this one; None: it is served.

    With the head that is served, validation would tell such a model nothing any more.
    """
    if not job.served.later or not classifier.is_frozen:
        return None
    trained = classifiers.trained_weights(classifier)
    return {name: array for name, array in job.checkpoints.best().items() if name in trained}


def _with_sound(job: Job, classifier: Classifier) -> Classifier:
    """The classifier on the backbone that made the embeddings it was trained on, where that is given."""
    found = sound_of(job.config) if not classifier.front_end.has_sound else None
    if found is None:
        return classifier
    backbone, variables = found
    activation = job.config.model.embedding_activation
    network = backbone.network(embedding_activation=activation, precision="float32", seed=None)
    backbone.load(network, variables)
    backbone.freeze(network, ALL_BUT_HEAD)
    job.journal.say(f"  the head is put on {backbone.title}, which made its embeddings: the model takes sound")
    return replace(classifier, backbone=backbone, network=network)


def _examples(
    job: Job, spec: FrontEnd
) -> tuple[npt.NDArray[np.float32] | None, npt.NDArray[np.float32]]:
    """Sound [samples] and windows [n, ...] to verify the export with; no sound where the model takes none."""
    part = job.dataset.part("test") or job.dataset.part("train")
    if spec.has_sound and not job.store.spec.has_sound:
        noise = _noise(spec.rate_hz)
        return noise, np.asarray(spec.windows_of(noise)[:_EXAMPLE_WINDOWS], np.float32)
    windows = job.windows(part[:_EXAMPLE_RECORDINGS])
    examples = as_float(windows.features(np.arange(min(_EXAMPLE_WINDOWS, len(windows)))))
    return _example(job, part) if spec.has_sound else None, examples


def _to_compare(job: Job, classifier: Classifier) -> npt.NDArray[np.float32] | None:
    """Windows of validation to compare bfloat16 with float32 on [v, ...]; None: it would be no gain."""
    part = job.dataset.part("val")
    gains = classifier.backbone.bfloat16_gain > 1 and job.store.spec.has_sound and bfloat16.instructions() is not None
    if not gains or not part:
        return None
    windows = job.windows(part)
    n = min(_COMPARED_WINDOWS, len(windows))
    return as_float(windows.features(np.linspace(0, len(windows) - 1, n).astype(np.int64)))


def _noise(rate_hz: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(0).normal(0, 0.1, round(_EXAMPLE_S * rate_hz)).astype(np.float32)


def _example(job: Job, part: list[Recording]) -> npt.NDArray[np.float32]:
    """Sound to verify the export with: the beginning of a recording, or noise where none is there any more."""
    for recording in part:
        job.interrupts.check()
        with contextlib.suppress(SoundError):
            return decode.read(
                recording.path, job.store.sound, rate_hz=job.store.spec.rate_hz, longest_s=_EXAMPLE_S,
                channel=recording.channel,
            )  # fmt: skip
    job.journal.warn("No recording can be read any more; the export is verified with noise.")
    return _noise(job.store.spec.rate_hz)


def report(job: Job) -> list[Path]:
    """Write report.html and the tables beside it; their paths."""
    folder = job.run.reports
    write_companions(job.run, job.dataset)
    data = report_data(job.run, job.dataset, job.store, base_model.origin(job.config, job.base))
    if augment.active(job.config.augment) or job.config.train.jitter_s:
        picture = augmentation_sheet.sheet_of(job.config, job.config.augment, job.dataset, job.store)
        write_bytes(folder / "augmentation.png", picture)
        data = replace(data, augmentation=picture)
    tables.write_tables(folder, data)
    write_report(folder / "report.html", data)
    history.write_history(job.config.output)
    names = (f"{name}.csv" for name in ("classes", "problems", "per_class", "predictions", "confusion"))
    return [folder / name for name in ("report.html", "config.yaml", "augmentation.png", *names)]
