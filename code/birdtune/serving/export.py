"""Trained classifier → a folder that TensorFlow Serving can serve.

    Classifier ─▶ export_model ─▶ <name>/<version>/
        saved_model.pb, variables/   signatures `serving_default` and `sound`, weights in float32, once
        labels.csv                   column, class, external_id, threshold
        train_id_list.pickle         the class names in the order of the columns, for jibjib-query
        model.json                   what the model is, and how closely it was verified
        assets.extra/                warm-up requests for TensorFlow Serving

The export is loaded in a fresh process (`results.verify`) and must give the scores of the training side
before it gets its name; until then the folder has another one, which no server looks at.
"""

import contextlib
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from birdtune.audio.logmel import FrontEnd, cut, frames_of, hann_window, mel_matrix
from birdtune.errors import ExportError, shown
from birdtune.evaluation.calibration import LARGEST, SMALLEST, Calibration, Scale
from birdtune.evaluation.decision import Thresholds
from birdtune.evaluation.ood import Measures, Novelty, Pooler
from birdtune.evaluation.ood import Scale as Limits
from birdtune.evaluation.scores import shares
from birdtune.models.classifier import Classifier, in_float32, weights, weights_sha256
from birdtune.runtime.files import make_folder, new_folder, write_bytes, write_csv, write_json
from birdtune.serving.ood_graph import GraphNovelty, graph_held
from birdtune.serving.verify import FORMAT, fresh_answers

Floats = npt.NDArray[np.float32]
# How strange sounds are told: by what training sounded like, and from where on.
Told = tuple[Novelty, Limits]

WARMUP_FILE = Path("assets.extra") / "tf_serving_warmup_requests"

# Beside the weights: graphs of both signatures, warm-up requests; measured 0.4 MB.
_GRAPH_BYTES = 1_000_000
# The `sound` signature works through a recording in pieces of this many patches, so that its memory does
# not grow with the recording: 64 patches of VGGish take some 200 MB, an hour of sound at once 10 GB.
_PIECE_PATCHES = 64


@dataclass(frozen=True, eq=False)
class TrainingSide:
    """What the export must reproduce: patches, and what the trained classifier makes of them.

    Scores and embeddings must have been computed in float32 (`training_side` does so): the mixed
    precisions, and TF32 on a GPU, err by a hundred times the tolerance.
    """

    patches: Floats  # [n, 96, 64]
    scores: Floats  # [n, C]
    embeddings: Floats  # [n, K]


def training_side(classifier: Classifier, patches: Floats, calibration: Calibration) -> TrainingSide:
    """Score patches [n, 96, 64] with the trained classifier, in full float32 whatever its precision, and calibrate."""
    logits, embeddings = _logits(in_float32(classifier), patches)
    return TrainingSide(patches, calibration.patches(logits), embeddings)


def export_model(
    classifier: Classifier,
    folder: Path,
    *,
    facts: Mapping[str, object],
    example_waveform: Floats,
    expected: TrainingSide,
    class_ids: Mapping[str, int | str | None],
    calibration: Calibration,
    thresholds: Thresholds | None = None,
    novelty: Told | None = None,
    tolerance: float = 1e-4,
    check: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Write the classifier as a servable model, verify it in a fresh process, put it in place.

    Args:
        classifier: of any precision; a float32 copy with the same weights is exported.
        folder: where it goes, `<base>/<name>/<version>`; one already there is replaced.
        facts: JSON-able, what the caller wants to stand in model.json beside the facts found here.
        example_waveform: [samples] float32 at 16 kHz; the `sound` signature is verified with it, with a
            piece of it too short for a patch, and warmed up with its beginning.
        expected: what the training side makes of some patches; at least one.
        class_ids: class → external id; classes that are missing have none.
        calibration: what makes the logits scores; it becomes part of the graph.
        thresholds: from which score on each class counts; for labels.csv and model.json.
        novelty: how strange sounds are told; it becomes part of the graph. None: they are not.
        tolerance: largest difference allowed for scores, which lie in 0…1; for embeddings it counts
            relative to the largest of them, if that is above 1.
        check: called several times a second while waiting; it may raise to stop, and then nothing is left.

    Returns:
        what stands in model.json.

    Raises:
        ExportError: the fresh process failed or disagrees; nothing was put in place.
        PassingError: it was killed, or did not end in time; or the storage failed.
        InputError: the place cannot be written.
    """
    exported = in_float32(classifier)
    waveforms = _example_waveforms(example_waveform, exported.front_end)
    wanted = _expected_answers(exported, calibration, novelty, expected, waveforms)
    needed = sum(array.nbytes for array in weights(exported).values()) + _GRAPH_BYTES
    needed += novelty[0].whitening.nbytes + novelty[0].centres.nbytes if novelty else 0
    with new_folder(folder, what="the exported model", needed=needed) as building:
        _save(exported, calibration, novelty, building)
        labels = _labels(exported.classes, class_ids, thresholds)
        write_csv(building / "labels.csv", ("column", "class", "external_id", "threshold"), labels)
        write_bytes(building / "train_id_list.pickle", train_id_list(exported.classes))
        beginning = waveforms[0][: exported.front_end.patch_samples]
        name = str(facts.get("name", folder.parent.name))
        _write_warmup(building / WARMUP_FILE, name, expected.patches[:1], beginning)
        check()
        inputs = {"patches": expected.patches} | {
            f"waveform_{i}": waveform for i, waveform in enumerate(waveforms)
        }
        differences = _differences(wanted, fresh_answers(building, inputs, check))
        _refuse(differences, tolerance, folder)
        verification = {"tolerance": tolerance, "differences": differences}
        found = {
            **facts,
            **_facts(exported),
            "calibration": calibration.row(),
            "thresholds": thresholds and thresholds.row(exported.classes),
            "novelty": novelty and novelty[1].row(),
            "verification": verification,
        }
        write_json(building / "model.json", found)
        check()
    return found


def train_id_list(classes: Sequence[str]) -> bytes:
    """The list of class names as a pickle of protocol 2, which Python 2 (jibjib-query) can load."""
    return pickle.dumps([str(name) for name in classes], protocol=2)


def _labels(
    classes: Sequence[str], ids: Mapping[str, int | str | None], thresholds: Thresholds | None
) -> Iterator[dict[str, object]]:
    """A background class has no threshold: it is no answer."""
    rows = thresholds.row(classes)["classes"] if thresholds else [{"threshold": None}] * len(classes)
    for column, name in enumerate(classes):
        yield {
            "column": column, "class": name, "external_id": ids.get(name), "threshold": rows[column]["threshold"],
        }  # fmt: skip


def _facts(classifier: Classifier) -> dict[str, Any]:
    spec = classifier.front_end
    return {
        "format": FORMAT,
        "classes": list(classifier.classes),
        "backbone": classifier.backbone_name,
        "head": classifier.head_name,
        "hidden_units": classifier.hidden_units,
        "scores": classifier.kind,
        "embedding_activation": classifier.embedding_activation,
        "front_end": {**asdict(spec), "digest": spec.digest},
        # Of the patch scores; then calibrated once more, as `calibration.clip` says.
        "clip_pooling": "mean" if classifier.attention is None else "attention",
        "precision": "float32",
        "weights_sha256": weights_sha256(weights(classifier)),
        "tensorflow": tf.__version__,
    }


# ---- the graph ----------------------------------------------------------------------------------


def graph_log_mel(waveform: tf.Tensor, spec: FrontEnd) -> tf.Tensor:
    """`sound.logmel.log_mel` as TensorFlow operations: [samples] float32 → [frames, n_mels] float32.

    In float64 up to the logarithm. A float32 transform differs by up to 3e-4 where a band is quiet beside
    a loud one (measured: sine of 0.9 with one of 1e-4), in float64 by 1e-6; and a float32 matrix product
    on a GPU would be computed in TF32, with a thousandth of error.
    """
    windows = tf.signal.frame(tf.cast(waveform, tf.float64), spec.window, spec.hop)  # [frames, window]
    spectrum = tf.signal.rfft(windows * hann_window(spec), [spec.fft])  # [frames, n_bins] complex128
    mel = tf.matmul(tf.abs(spectrum), tf.constant(mel_matrix(spec), tf.float64))  # [frames, n_mels]
    return tf.cast(tf.math.log(mel + spec.log_offset), tf.float32)  # [frames, n_mels]


def _linked(logits: tf.Tensor, kind: str, scale: Scale) -> tf.Tensor:
    """`calibration.Calibration` as TensorFlow operations; slope and offset are constants of the graph."""
    scaled = tf.constant(scale.slope, logits.dtype) * logits + tf.constant(scale.offset, logits.dtype)
    return tf.nn.softmax(scaled) if kind == "softmax" else tf.sigmoid(scaled)


def graph_clip_scores(means: tf.Tensor, calibration: Calibration) -> tf.Tensor:
    """Mean of the calibrated patch scores of a recording [C] → its scores [C], as `Calibration.clips`."""
    if calibration.clip == Scale():
        return means
    inside = tf.maximum(tf.cast(means, tf.float64), SMALLEST)
    logits = tf.math.log(inside)
    if calibration.kind != "softmax":
        inside = tf.minimum(inside, LARGEST)
        logits = tf.math.log(inside) - tf.math.log1p(-inside)
    return tf.cast(_linked(logits, calibration.kind, calibration.clip), tf.float32)


def _module(classifier: Classifier, calibration: Calibration, novelty: Told | None) -> tf.Module:
    """What is saved: the variables, and `patches`, `attention`, `serving_default` and `sound` as functions of them.

    And `strangeness` of mean embeddings, where that is told.
    """
    module = tf.Module()
    # The bare variables, not the Keras models: those would save their layers' call functions as well.
    module.weights = [variable.value for variable in classifier.variables]
    strange = None
    if novelty is not None:
        strange = GraphNovelty(classifier, *novelty)
        module.novelty = strange.arrays
    spec = classifier.front_end
    inputs = tf.TensorSpec([None, spec.patch_frames, spec.n_mels], tf.float32, name="inputs")
    waveform = tf.TensorSpec([None], tf.float32, name="waveform")

    def scores_of(patches: tf.Tensor) -> dict[str, tf.Tensor]:
        scores, embeddings = _scores(classifier, calibration, patches)
        return {"scores": scores, "embeddings": embeddings}  # [N, C], [N, K]

    def serve_patches(inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"outputs": _scores(classifier, calibration, inputs)[0]}  # [N, C]

    def serve_sound(waveform: tf.Tensor) -> dict[str, tf.Tensor]:
        return _serve_sound(classifier, calibration, strange, waveform)

    embeddings = tf.TensorSpec([None, classifier.backbone.output_shape[-1]], tf.float32, name="embeddings")
    module.attention = tf.function(classifier.attend, input_signature=[embeddings], autograph=False)
    module.patches = tf.function(scores_of, input_signature=[inputs], autograph=False)
    module.serving_default = tf.function(serve_patches, input_signature=[inputs], autograph=False)
    if strange is not None:
        module.strangeness = tf.function(strange, input_signature=[embeddings], autograph=False)
    module.sound = tf.function(serve_sound, input_signature=[waveform], autograph=False)
    return module


def _scores(classifier: Classifier, calibration: Calibration, patches: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    logits, embeddings = classifier.logits(patches)
    return _linked(tf.cast(logits, tf.float32), calibration.kind, calibration.patch), embeddings  # [N, C], [N, K]


def _serve_sound(
    classifier: Classifier, calibration: Calibration, strange: GraphNovelty | None, waveform: tf.Tensor
) -> dict[str, tf.Tensor]:
    spec = classifier.front_end
    # NaN and infinity count as silence: one such sample would make all scores of the recording NaN.
    finite = tf.where(tf.math.is_finite(waveform), waveform, tf.zeros_like(waveform))
    padded = tf.pad(finite, [[0, _padded_samples(tf.size(finite), spec) - tf.size(finite)]])  # [≥ 15600]
    starts = _starts((tf.size(padded) - spec.window) // spec.hop + 1, spec)  # [P], 1 or more
    n_pieces = (tf.size(starts) + _PIECE_PATCHES - 1) // _PIECE_PATCHES

    def piece(number: tf.Tensor, *arrays: tf.TensorArray) -> tuple[Any, ...]:
        some = starts[number * _PIECE_PATCHES : (number + 1) * _PIECE_PATCHES]  # [≤ 64]
        first, last = some[0] * spec.hop, (some[-1] + spec.patch_frames - 1) * spec.hop
        frames = graph_log_mel(padded[first : last + spec.window], spec)
        inside = (some - some[0])[:, None] + tf.range(spec.patch_frames)
        patches = tf.gather(frames, inside)  # [≤ 64, 96, 64]
        found = (*_scores(classifier, calibration, patches), graph_held(patches, spec))
        return number + 1, *(array.write(number, value) for array, value in zip(arrays, found, strict=True))

    empty = [
        tf.TensorArray(tf.float32, size=n_pieces, infer_shape=False, element_shape=[None, *width])
        for width in ([len(classifier.classes)], [classifier.backbone.output_shape[-1]], [])
    ]
    _, scores, embeddings, held = tf.while_loop(
        lambda number, *_: number < n_pieces, piece, (tf.constant(0), *empty), parallel_iterations=1
    )
    patch_scores = scores.concat()  # [P, C]
    patch_embeddings = embeddings.concat()  # [P, K]
    told = {}
    if strange is not None:
        weight = held.concat()[:, None]  # [P, 1]
        pooled = tf.reduce_sum(weight * patch_embeddings, axis=0) / tf.reduce_sum(weight)  # [K]
        told["strangeness"] = strange(pooled[None])[0]
    return {
        **told,
        "patch_scores": patch_scores,
        "clip_scores": graph_clip_scores(_pooled(classifier, patch_scores, patch_embeddings), calibration),  # [C]
        "embeddings": patch_embeddings,
    }


def _pooled(classifier: Classifier, patch_scores: tf.Tensor, embeddings: tf.Tensor) -> tf.Tensor:
    """The score of a recording: the mean over its patches, by attention where the head has one. [C]"""
    if classifier.attention is None:
        return tf.reduce_mean(patch_scores, axis=0)
    share = tf.nn.softmax(classifier.attend(embeddings))  # [P]
    return tf.reduce_sum(share[:, None] * patch_scores, axis=0)


def _padded_samples(n_samples: tf.Tensor, spec: FrontEnd) -> tf.Tensor:
    """`spec.padded_samples` as TensorFlow operations."""
    hops = -((spec.window - n_samples) // spec.hop)
    return spec.window + tf.maximum(hops, spec.patch_frames - 1) * spec.hop


def _starts(n_frames: tf.Tensor, spec: FrontEnd) -> tf.Tensor:
    """`spec.starts` as TensorFlow operations. [P]"""
    last = n_frames - spec.patch_frames
    count = (last + spec.patch_hop - 1) // spec.patch_hop + 1
    return tf.minimum(tf.range(count) * spec.patch_hop, last)


def _save(classifier: Classifier, calibration: Calibration, novelty: Told | None, folder: Path) -> None:
    module = _module(classifier, calibration, novelty)
    signatures = {"serving_default": module.serving_default, "sound": module.sound}
    tf.saved_model.save(module, str(folder), signatures=signatures)


def _write_warmup(path: Path, model: str, patches: Floats, waveform: Floats) -> None:
    """One small request for each signature, so that the first client does not wait for a first run."""
    from tensorflow_serving.apis import model_pb2, predict_pb2, prediction_log_pb2

    make_folder(path.parent)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for signature, name, array in (
            ("serving_default", "inputs", patches),
            ("sound", "waveform", waveform),
        ):
            request = predict_pb2.PredictRequest(
                model_spec=model_pb2.ModelSpec(name=model, signature_name=signature),
                inputs={name: tf.make_tensor_proto(array, tf.float32)},
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


def _logits(classifier: Classifier, patches: Floats) -> tuple[Floats, Floats]:
    with _full_float32():
        parts = [
            classifier.logits(patches[start : start + _PIECE_PATCHES])
            for start in range(0, len(patches), _PIECE_PATCHES)
        ]
    return np.concatenate([np.asarray(part[0]) for part in parts]), np.concatenate(
        [np.asarray(part[1]) for part in parts]
    )


def _example_waveforms(waveform: Floats, spec: FrontEnd) -> list[Floats]:
    """The example, and half a patch from its beginning, which has to be padded."""
    whole = np.asarray(waveform, np.float32)
    return [whole, whole[: spec.patch_samples // 2]]


def _expected_answers(
    classifier: Classifier,
    calibration: Calibration,
    novelty: Told | None,
    expected: TrainingSide,
    waveforms: Sequence[Floats],
) -> dict[str, Floats]:
    wanted = {"outputs": expected.scores, "embeddings": expected.embeddings}
    spec = classifier.front_end
    for number, waveform in enumerate(waveforms):
        patches = np.stack([patch for _, patch in cut(frames_of([waveform], spec), spec)])  # [P, 96, 64]
        logits, embeddings = _logits(classifier, patches)
        scores = calibration.patches(logits)  # [P, C]
        wanted[f"patch_scores_{number}"] = scores
        share = shares(np.asarray(classifier.attend(embeddings)), np.zeros(len(scores), np.int64))  # [P]
        wanted[f"clip_scores_{number}"] = calibration.clips((share @ scores)[None])[0]
        wanted[f"embeddings_{number}"] = embeddings
        if novelty is not None:
            wanted[f"strangeness_{number}"] = _expected_strangeness(classifier, novelty, patches, embeddings)
    return wanted


def _expected_strangeness(classifier: Classifier, novelty: Told, patches: Floats, embeddings: Floats) -> Floats:
    known, scale = novelty
    measures = Measures(known, lambda pooled: np.asarray(classifier.head(pooled)))
    recording = np.zeros(len(patches), np.int64)
    Pooler(recording, classifier.front_end, measures.take).note(patches, embeddings)
    return scale.strangeness(measures.found())[0, ...]


def _differences(wanted: Mapping[str, Floats], answers: Mapping[str, Floats]) -> dict[str, float]:
    """Largest difference for each answer; infinite for one that is missing, misshapen or not finite."""
    found = {}
    for name, expected in wanted.items():
        answer = answers.get(name)
        if answer is None or answer.shape != expected.shape or answer.dtype != np.float32:
            found[name] = np.inf
            continue
        # Embeddings and strangeness have no bounds; float32 carries a share of the largest of them.
        unbound = name.startswith(("embeddings", "strangeness"))
        scale = max(1.0, float(np.abs(expected).max())) if unbound else 1.0
        largest = float(np.abs(answer.astype(np.float64) - expected).max()) / scale
        found[name] = largest if np.isfinite(largest) else np.inf
    return found


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
