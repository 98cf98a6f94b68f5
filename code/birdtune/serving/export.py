"""Trained classifier → a folder that TensorFlow Serving can serve.

    Classifier ─▶ export_model ─▶ <name>/<version>/
        saved_model.pb, variables/   signatures (`graph.py`), weights in float32, once
        labels.csv                   column, class, external_id, threshold, detection_threshold
        published_labels.csv         column, class: of `published_scores`, if published classes are kept
        train_id_list.pickle         the class names in the order of the columns, for jibjib-query
        model.json                   what the model is, and how closely it was verified
        assets.extra/                warm-up requests for TensorFlow Serving; an ONNX backbone

The export is loaded in a fresh process (`verify`) and must give the scores of the training side before it gets its
name; until then the folder has another one, which no server looks at. An ONNX backbone is not part of the SavedModel,
which then takes embeddings; in that process ONNX Runtime makes them.
"""

import contextlib
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from birdtune.audio.front_end import FrontEnd
from birdtune.errors import ExportError, shown
from birdtune.evaluation.calibration import Calibration
from birdtune.evaluation.decision import Thresholds
from birdtune.evaluation.ood import OodCollector, Pooler
from birdtune.evaluation.scores import shares
from birdtune.models import embedded
from birdtune.models.classifier import Classifier, in_float32, weights, weights_sha256
from birdtune.models.onnx_backbone import OnnxBackbone
from birdtune.models.published import Served
from birdtune.runtime.files import make_folder, new_folder, write_bytes, write_csv, write_json
from birdtune.serving import backbone_file
from birdtune.serving.graph import NO_OOD_SCORE, PIECE, Ood, OodGraph, PublishedGraph, ServedGraph
from birdtune.serving.verify import FORMAT, PUBLISHED_LABELS, InBfloat16, fresh_process

Floats = npt.NDArray[np.float32]
Arrays = dict[str, npt.NDArray[Any]]

WARMUP_FILE = Path("assets.extra") / "tf_serving_warmup_requests"

# Beside the weights: graphs of the signatures, warm-up requests; measured 0.5 MB.
_GRAPH_BYTES = 1_000_000
# Outputs whose size has no bound; float32 carries a share of the largest of them.
_UNBOUND = ("embeddings", "embed.embeddings", "sound.ood_score", "sound.window_start_s", "embed.window_start_s")


@dataclass(frozen=True, eq=False)
class TrainingSide:
    """What the export must reproduce: windows, and what the trained classifier makes of them.

    Scores and embeddings must have been computed in float32 (`training_side` does so): the mixed
    precisions, and TF32 on a GPU, err by a hundred times the tolerance.
    """

    windows: Floats  # [n, window_rows, ...]
    scores: Floats  # [n, C]
    embeddings: Floats  # [n, K]


@dataclass(frozen=True, eq=False)
class ServedParts:
    """What becomes part of the graph."""

    classifier: Classifier  # in float32
    calibration: Calibration
    ood: Ood | None
    published: Served | None

    @property
    def takes_sound(self) -> bool:
        """Whether the SavedModel does; else it takes embeddings."""
        return self.classifier.front_end.has_sound and self.onnx is None

    @property
    def onnx(self) -> OnnxBackbone | None:
        """A backbone that no SavedModel can hold."""
        backbone = self.classifier.backbone
        return backbone if isinstance(backbone, OnnxBackbone) else None


def training_side(classifier: Classifier, windows: Floats, calibration: Calibration) -> TrainingSide:
    """Calibrated scores of windows [n, window_rows, ...], in full float32 whatever the classifier's precision."""
    logits, embeddings = _logits(in_float32(classifier), windows)
    return TrainingSide(windows, calibration.windows(logits), embeddings)


def export_model(
    classifier: Classifier,
    folder: Path,
    *,
    facts: Mapping[str, object],
    example_waveform: Floats | None,
    expected: TrainingSide,
    class_ids: Mapping[str, int | str | None],
    calibration: Calibration,
    thresholds: Thresholds | None = None,
    detection_thresholds: Thresholds | None = None,
    ood: Ood | None = None,
    published: Served | None = None,
    tolerance: float = 1e-4,
    validation: Floats | None = None,
    describe: Callable[[Path, Mapping[str, Any]], None] = lambda building, facts: None,
    check: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Write the classifier as a servable model, verify it in a fresh process, put it in place.

    Args:
        classifier: of any precision; a float32 copy with the same weights is exported.
        folder: where it goes, `<base>/<name>/<version>`; one already there is replaced.
        facts: JSON-able, what the caller wants to stand in model.json beside the facts found here.
        example_waveform: [samples] float32 at the backbone's rate; `sound` and `embed` are verified with a batch of it
            and of a beginning too short for a window, and warmed up with one window of it. None: it takes embeddings,
            as it also does where the backbone does not fit into a SavedModel.
        expected: what the training side makes of some windows; at least one.
        class_ids: class → external id; classes that are missing have none.
        calibration: what makes the logits scores; it becomes part of the graph.
        thresholds: from which score on each class counts; for labels.csv and model.json.
        detection_thresholds: from which score of a window on each is detected; None: those above.
        ood: OOD statistics; they become part of the graph. None: `ood_score` is -1.
        published: published classes that `sound` scores as well; `published` of `facts` says more of them.
        tolerance: largest difference allowed for scores, which lie in 0…1; for embeddings and OOD scores it counts
            relative to the largest of them, if that is above 1.
        validation: windows [v, window_rows, ...] to compare scores in float32 and in bfloat16 on, for `predict`; None:
            bfloat16 is no gain.
        describe: writes what is to lie beside the model, given its folder and what stands in model.json.
        check: called several times a second while waiting; it may raise to stop, and then nothing is left.

    Returns:
        what stands in model.json.

    Raises:
        ExportError: the fresh process failed or disagrees; nothing was put in place.
        RetryableError: it was killed, or did not end in time; or the storage failed.
        InputError: the place cannot be written.
    """
    exported = in_float32(classifier)
    model = ServedParts(exported, calibration, ood, published)
    batch: Arrays = {}
    if example_waveform is not None and model.takes_sound:
        batch = _example_batch(example_waveform, exported.front_end)
    wanted = _expected_answers(model, expected, batch)
    requests = _warmup_requests(exported.front_end, expected, batch)
    place = new_folder(folder, what="the exported model", needed=_bytes(model))
    with place as building, fresh_process() as fresh_answers:
        _save(model, building)
        _write_labels(building, model, class_ids, thresholds, detection_thresholds or thresholds)
        _write_warmup(building / WARMUP_FILE, str(facts.get("name", folder.parent.name)), requests)
        of_detections = detection_thresholds and detection_thresholds.row(exported.classes)
        described = {
            **facts, **_facts(model, thresholds, facts.get("published")), "detection_thresholds": of_detections
        }  # fmt: skip
        if model.onnx is not None:
            described["backbone_file"] = backbone_file.put(model.onnx, building)
        check()
        compared = {} if validation is None or thresholds is None else {"validation": validation}
        answers = fresh_answers(building, {"windows": expected.windows, **batch, **compared}, described)
        differences = _differences(wanted, answers)
        _refuse(differences, tolerance, folder)
        found = {
            **described, "bfloat16": _in_bfloat16(answers, thresholds),
            "verification": {"tolerance": tolerance, "differences": differences},
        }  # fmt: skip
        write_json(building / "model.json", found)
        describe(building, found)
        check()
    return found


def _bytes(model: ServedParts) -> int:
    """Room that the export takes on disk."""
    needed = sum(array.nbytes for array in weights(model.classifier).values()) + _GRAPH_BYTES
    if model.ood is not None:
        needed += model.ood[0].whitening.nbytes + model.ood[0].centres.nbytes
    if model.published is not None:
        needed += model.published.layer.kernel.nbytes
    if model.onnx is not None:
        needed += model.onnx.path.stat().st_size
    return needed


def _write_labels(
    folder: Path, model: ServedParts, ids: Mapping[str, int | str | None], *thresholds: Thresholds | None
) -> None:
    """The tables of the columns; a class of background has no threshold: it is no decision."""
    classes = model.classifier.classes
    of_recordings, of_detections = (
        [row["threshold"] for row in each.row(classes)["classes"]] if each else [None] * len(classes)
        for each in thresholds
    )
    labels = (
        {
            "column": column, "class": name, "external_id": ids.get(name), "threshold": of_recordings[column],
            "detection_threshold": of_detections[column],
        }
        for column, name in enumerate(classes)
    )  # fmt: skip
    write_csv(folder / "labels.csv", ("column", "class", "external_id", "threshold", "detection_threshold"), labels)
    if model.published is not None:
        published = ({"column": column, "class": label} for column, label in enumerate(model.published.labels))
        write_csv(folder / PUBLISHED_LABELS, ("column", "class"), published)
    write_bytes(folder / "train_id_list.pickle", train_id_list(classes))


def train_id_list(classes: Sequence[str]) -> bytes:
    """The list of class names as a pickle of protocol 2, which Python 2 (jibjib-query) can load."""
    return pickle.dumps([str(name) for name in classes], protocol=2)


def _facts(model: ServedParts, thresholds: Thresholds | None, published: object) -> dict[str, Any]:
    """What model.json says of the model's parts; `published`: what the caller says of published classes."""
    classifier = model.classifier
    spec = classifier.front_end
    if model.published is not None:
        published = {**cast(Mapping[str, object], published), "calibration": model.published.calibration.row()}
    return {
        "format": FORMAT,
        "classes": list(classifier.classes),
        "backbone": classifier.backbone.name,
        "head": classifier.head_name,
        "hidden_units": classifier.hidden_units,
        "prototypes": classifier.prototypes,
        "context_windows": classifier.pooling.context,
        "embedding_size": classifier.pooling.embedding_size,
        "scores": classifier.kind,
        "embedding_activation": classifier.embedding_activation,
        "front_end": {**spec.row(), "digest": spec.digest},
        "graph_sha256": classifier.backbone.graph_sha256,
        # Of the window scores; then calibrated once more, as `calibration.clip` says.
        "clip_pooling": classifier.head_name if classifier.attention is not None else "mean",
        "precision": "float32",
        "weights": list(weights(classifier)),
        "weights_sha256": weights_sha256(weights(classifier)),
        "tensorflow": tf.__version__,
        "calibration": model.calibration.row(),
        "thresholds": thresholds and thresholds.row(classifier.classes),
        "ood": model.ood and model.ood[1].row(),
        "published": published if model.published is not None else None,
    }


def _save(model: ServedParts, folder: Path) -> None:
    kept = PublishedGraph(model.published) if model.published is not None else None
    ood = model.ood and OodGraph(model.classifier, *model.ood)
    classifier = model.classifier if model.takes_sound else _on_embeddings(model.classifier)
    module = ServedGraph(classifier, model.calibration, ood, kept).module()
    names = ("sound", "embed") if model.takes_sound else ("embeddings",)
    names = (*names, "sequence") if classifier.pooling.context else names
    signatures = {name: getattr(module, name) for name in ("serving_default", *names)}
    tf.saved_model.save(module, str(folder), signatures=signatures)


def _on_embeddings(classifier: Classifier) -> Classifier:
    """The same head on embeddings."""
    backbone = embedded.in_place_of(classifier.backbone)
    network = backbone.network(embedding_activation="", precision="float32", seed=None)
    return replace(classifier, backbone=backbone, network=network)


def _warmup_requests(spec: FrontEnd, expected: TrainingSide, batch: Arrays) -> dict[str, Arrays]:
    """One small request for each signature, so that the first client does not wait for a first run."""
    if not batch:
        one = expected.embeddings[:1]
        return {"serving_default": {"inputs": one[:, None]}, "embeddings": {"embeddings": one}}
    of_sound = {"waveforms": batch["waveforms"][:1, : spec.window_samples], "lengths": batch["lengths"][:1]}
    return {"serving_default": {"inputs": expected.windows[:1]}, "sound": of_sound, "embed": of_sound}


def _write_warmup(path: Path, model: str, requests: Mapping[str, Arrays]) -> None:
    from tensorflow_serving.apis import model_pb2, predict_pb2, prediction_log_pb2

    make_folder(path.parent)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for signature, inputs in requests.items():
            request = predict_pb2.PredictRequest(
                model_spec=model_pb2.ModelSpec(name=model, signature_name=signature),
                inputs={name: tf.make_tensor_proto(array) for name, array in inputs.items()},
            )
            record = prediction_log_pb2.PredictionLog(
                predict_log=prediction_log_pb2.PredictLog(request=request)
            )
            writer.write(record.SerializeToString())


# ---- what the export must answer ----------------------------------------------------------------


@contextlib.contextmanager
def _full_float32() -> Iterator[None]:
    """Without TF32, which rounds float32 to 10 bits of mantissa on GPUs since Ampere."""
    before = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    try:
        yield
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(before)


def _logits(classifier: Classifier, windows: Floats) -> tuple[Floats, Floats]:
    with _full_float32():
        parts = [classifier.logits(windows[start : start + PIECE]) for start in range(0, len(windows), PIECE)]
    logits, embeddings = zip(*parts, strict=True)
    return np.concatenate([np.asarray(part) for part in logits]), np.concatenate([np.asarray(e) for e in embeddings])


def _example_batch(waveform: Floats, spec: FrontEnd) -> Arrays:
    """The example, and half a window from its beginning, which has to be padded. [2, samples], [2]"""
    whole = np.asarray(waveform, np.float32)
    lengths = np.array([whole.size, min(whole.size, spec.window_samples // 2)], np.int32)
    # What follows behind a recording's length must not count.
    return {"waveforms": np.stack([whole, whole]), "lengths": lengths}


def _expected_answers(model: ServedParts, expected: TrainingSide, batch: Arrays) -> Arrays:
    """What the fresh process must answer, computed by the training side; names as `verify` has them."""
    of_windows = {"outputs": expected.scores, "embeddings": expected.embeddings}
    if model.classifier.pooling.context:
        of_windows["sequence.scores"] = model.calibration.windows(_in_sequence(model.classifier, expected.embeddings))
    if not batch:
        return {**of_windows, "embeddings.scores": expected.scores}
    waveforms = zip(batch["waveforms"], batch["lengths"], strict=True)
    rows = [_expected_of_sound(model, waveform[:length]) for waveform, length in waveforms]
    longest = max(int(row["windows"]) for row in rows)

    def table(name: str) -> npt.NDArray[Any]:
        values = [row[name] for row in rows]
        if name.startswith(("window_", "embeddings")):
            values = [np.pad(value, [(0, longest - len(value)), *[(0, 0)] * (value.ndim - 1)]) for value in values]
        return np.stack(values)

    of_embed = ("embeddings", "windows", "window_start_s")
    return {
        **of_windows,
        **{f"sound.{name}": table(name) for name in rows[0] if name != "embeddings"},
        **{f"embed.{name}": table(name) for name in of_embed},
    }


def _expected_of_sound(model: ServedParts, waveform: Floats) -> Arrays:
    """Outputs of `sound` and `embed` for one waveform [samples]."""
    classifier, calibration, published = model.classifier, model.calibration, model.published
    spec = classifier.front_end
    found = list(spec.cut(spec.rows_of([waveform])))
    windows = np.stack([window for _, window in found])  # [W, window_rows, ...]
    logits, embeddings = _logits(classifier, windows)
    if classifier.pooling.context:
        logits = _in_sequence(classifier, embeddings)
    scores = calibration.windows(logits)  # [W, C]
    share = shares(np.asarray(classifier.attend(embeddings)), np.zeros(len(scores), np.int64))  # [W] or [W, C]
    by_class = share.ndim > 1
    row = {
        "scores": calibration.clips(((share * scores).sum(axis=0) if by_class else share @ scores)[None])[0],
        "ood_score": _expected_ood(classifier, model.ood, windows, embeddings),
        "windows": np.array(len(scores), np.int32),
        "window_start_s": np.array([first for first, _ in found], np.float32) / np.float32(spec.rows_per_s),
        "window_scores": scores,
        "embeddings": embeddings,
    }
    if published is not None:
        of_published = published.windows(embeddings)
        means = of_published.mean(axis=0, keepdims=True) if by_class else (share @ of_published)[None]
        row["published_scores"] = published.calibration.clips(means)[0]
    return row


def _in_sequence(classifier: Classifier, embeddings: Floats) -> Floats:
    """Logits of the windows of one recording. [W, K] → [W, C]"""
    with _full_float32():
        return np.asarray(classifier.sequence_logits(embeddings, np.zeros(len(embeddings), np.int32)))


def _expected_ood(classifier: Classifier, ood: Ood | None, windows: Floats, embeddings: Floats) -> Any:
    if ood is None:
        return np.float32(NO_OOD_SCORE)
    statistics, limits = ood
    measures = OodCollector(statistics, lambda pooled: np.asarray(classifier.of_places(pooled)))
    Pooler(np.zeros(len(windows), np.int64), classifier.front_end, measures.take).note(windows, embeddings)
    return limits.ood_score(measures.found())[0]


def _differences(wanted: Mapping[str, npt.NDArray[Any]], answers: Mapping[str, npt.NDArray[Any]]) -> dict[str, float]:
    """Largest difference for each output; infinite for one that is missing, misshapen or not finite."""
    found = {}
    for name, expected in wanted.items():
        answer = answers.get(name)
        if answer is None or answer.shape != expected.shape or answer.dtype != expected.dtype:
            found[name] = np.inf
            continue
        scale = max(1.0, float(np.abs(expected).max())) if name in _UNBOUND else 1.0
        largest = float(np.abs(answer.astype(np.float64) - expected).max()) / scale
        found[name] = largest if np.isfinite(largest) else np.inf
    return found


def _in_bfloat16(answers: Arrays, thresholds: Thresholds | None) -> dict[str, Any] | None:
    """How scores in bfloat16 differ, as it stands in model.json."""
    if "bfloat16" not in answers or thresholds is None:
        return None
    return asdict(InBfloat16.between(answers["float32"], answers["bfloat16"], thresholds))


def _refuse(differences: Mapping[str, float], tolerance: float, folder: Path) -> None:
    above = {name: value for name, value in differences.items() if value > tolerance}
    if above:
        listed = ", ".join(f"{name} by {value:.3g}" for name, value in above.items())
        raise ExportError(
            f"{shown(folder)}: the exported model, loaded in a fresh process, differs from the trained one "
            f"by {max(above.values()):.3g}, allowed is {tolerance:g} ({listed}); nothing was put in place. "
            "Likely cause: a defect of the export, or scores of the training side that were not computed in "
            "float32. Please report it."
        )
