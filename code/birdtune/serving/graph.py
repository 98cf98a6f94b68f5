"""What is served: the classifier as TensorFlow functions of windows and of waveforms.

    Classifier, Calibration, OOD statistics ─▶ ServedGraph.module ─▶ tf.Module with these signatures

    serving_default  inputs [n, window_rows, ...]         ─▶ outputs [n, C]
    sound            waveforms [n, samples], lengths [n]  ─▶ scores [n, C], ood_score [n], windows [n],
                                                             window_start_s [n, W], window_scores [n, W, C],
                                                             published_scores [n, M] if published classes are kept
    embed            waveforms [n, samples], lengths [n]  ─▶ embeddings [n, W, K], windows [n], window_start_s [n, W]

and where embeddings are all that the model takes, in place of `sound` and `embed`

    embeddings       embeddings [n, K]                    ─▶ scores [n, C]

and of a head over time, for which `serving_default` and `embeddings` score each window by itself

    sequence         embeddings [n, K], recording [n]     ─▶ scores [n, C] of windows in their recordings

The first dimension of every input and output of `sound` and `embed` counts recordings, as batching and the REST API of
TensorFlow Serving need it. W is the largest number of windows of a recording in the batch; what is beyond a
recording's own `windows` is zero.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from birdtune.audio.front_end import FrontEnd
from birdtune.evaluation.calibration import LARGEST, SMALLEST, Calibration, Scale
from birdtune.evaluation.ood import OodModel, OodScale
from birdtune.models import front_end_graph
from birdtune.models.classifier import Classifier
from birdtune.models.published import Served

Tensors = dict[str, tf.Tensor]
# What the training recordings sounded like, and the scale of the OOD score.
Ood = tuple[OodModel, OodScale]

# `ood_score` of a model without OOD statistics; a score of its own is never below 0. NaN is no JSON.
NO_OOD_SCORE = -1.0
# Windows of waveforms are scored this many at a time, so that memory does not grow with recordings: 64 windows of
# VGGish take some 200 MB, an hour of sound at once 10 GB.
PIECE = 64


@dataclass(frozen=True, eq=False)
class _Windows:
    """Where the windows of a batch of recordings lie; T windows of all n recordings together."""

    samples: tf.Tensor  # all recordings, padded to one length, one behind the other
    length: tf.Tensor  # samples of each after padding
    recording: tf.Tensor  # [T] which recording a window is of, ascending
    number: tf.Tensor  # [T] of a window within its recording
    start: tf.Tensor  # [T] its first row
    counts: tf.Tensor  # [n] windows of each recording

    @classmethod
    def of(cls, waveforms: tf.Tensor, lengths: tf.Tensor, spec: FrontEnd) -> "_Windows":
        """Cut waveforms as `FrontEnd.starts` does; what is not finite counts as silence."""
        lengths = tf.clip_by_value(lengths, 0, tf.shape(waveforms)[1])
        is_sound = tf.sequence_mask(lengths, tf.shape(waveforms)[1]) & tf.math.is_finite(waveforms)
        samples = tf.where(is_sound, waveforms, 0.0)
        hops = tf.maximum(-((spec.row_samples - lengths) // spec.row_hop), spec.window_rows - 1)  # [n] `padded_samples`
        last = hops + 1 - spec.window_rows  # [n] first row of the last window
        counts = (last + spec.hop_rows - 1) // spec.hop_rows + 1
        missing = spec.row_samples + tf.reduce_max(hops) * spec.row_hop - tf.shape(waveforms)[1]
        samples = tf.pad(samples, [[0, 0], [0, tf.maximum(missing, 0)]])
        recording = tf.repeat(tf.range(tf.size(counts)), counts)
        number = tf.range(tf.size(recording)) - tf.gather(tf.cumsum(counts, exclusive=True), recording)
        start = tf.minimum(number * spec.hop_rows, tf.gather(last, recording))
        return cls(tf.reshape(samples, [-1]), tf.shape(samples)[1], recording, number, start, counts)

    def waveforms(self, begin: tf.Tensor, spec: FrontEnd) -> tf.Tensor:
        """The samples of some windows from the number `begin` on. [≤ PIECE, window samples]"""
        recording, start = self.recording[begin : begin + PIECE], self.start[begin : begin + PIECE]
        # int64: a batch may have more samples than int32 can count.
        first = tf.cast(recording, tf.int64) * tf.cast(self.length, tf.int64) + tf.cast(start * spec.row_hop, tf.int64)
        return tf.gather(self.samples, first[:, None] + tf.range(spec.window_samples, dtype=tf.int64))

    def sums(self, values: tf.Tensor) -> tf.Tensor:
        """Sums over the windows of each recording, in float64. [T, …] → [n, …]"""
        return tf.math.segment_sum(tf.cast(values, tf.float64), self.recording)

    def means(self, values: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        """Weighted means over the windows of each recording. [T, K], [T] or [T, K] → [n, K]"""
        weights = weights if weights.shape.rank == 2 else weights[:, None]
        weighted = tf.cast(weights, tf.float64) * tf.cast(values, tf.float64)
        return tf.cast(self.sums(weighted) / self.sums(weights), tf.float32)

    def exponentials(self, logits: tf.Tensor) -> tf.Tensor:
        """What a softmax over the windows of each recording divides by its sum. [T] or [T, C]"""
        return tf.exp(logits - tf.gather(tf.math.segment_max(logits, self.recording), self.recording))

    def table(self, values: tf.Tensor) -> tf.Tensor:
        """Values of windows by recording, filled up with zeros. [T, …] → [n, W, …]"""
        shape = tf.concat([[tf.size(self.counts), tf.reduce_max(self.counts)], tf.shape(values)[1:]], axis=0)
        return tf.scatter_nd(tf.stack([self.recording, self.number], axis=1), values, shape)

    def places(self, spec: FrontEnd) -> Tensors:
        """How many windows each recording has, and where they begin."""
        start_s = tf.cast(self.start, tf.float32) / spec.rows_per_s
        return {"windows": self.counts, "window_start_s": self.table(start_s)}


@dataclass(frozen=True, eq=False)
class ServedGraph:
    """The functions of a served model."""

    classifier: Classifier
    calibration: Calibration
    ood: "OodGraph | None"
    published: "PublishedGraph | None" = None

    def module(self) -> tf.Module:
        """What is saved: the variables, and the functions that `ExportedModel` and servers call."""
        module, spec = tf.Module(), self.classifier.front_end
        # The bare variables, not the Keras models: those would save their layers' call functions as well.
        module.weights = [variable.value for variable in self.classifier.variables]
        module.resources = self.classifier.backbone.resources(self.classifier.network)

        def saved(function: Callable[..., Any], **inputs: tf.TensorSpec) -> Any:
            specs = [tf.TensorSpec(spec.shape, spec.dtype, name=name) for name, spec in inputs.items()]
            return tf.function(function, input_signature=specs, autograph=False)

        windows = tf.TensorSpec([None, *spec.window_shape], tf.float32)
        embeddings = tf.TensorSpec([None, self.classifier.backbone.embedding_size], tf.float32)
        sound = {"waveforms": tf.TensorSpec([None, None], tf.float32), "lengths": tf.TensorSpec([None], tf.int32)}
        module.windows = saved(self.windows, inputs=windows)
        module.attention = saved(self.classifier.attend, embeddings=embeddings)
        if self.classifier.pooling.context:
            of = tf.TensorSpec([None], tf.int32)
            module.sequence = saved(self.sequence, embeddings=embeddings, recording=of)
        module.serving_default = saved(lambda inputs: {"outputs": self.windows(inputs)["scores"]}, inputs=windows)
        if spec.has_sound:
            module.sound = saved(self.sound, **sound)
            module.embed = saved(self.embed, **sound)
        else:
            module.embeddings = saved(self.of_embeddings, embeddings=embeddings)
        if self.ood is not None:
            module.ood = self.ood.arrays
            module.ood_score = saved(self.ood, embeddings=embeddings)
        if self.published is not None:
            module.published_weights = self.published.arrays
            module.published = saved(self.published, embeddings=embeddings)
        return module

    def windows(self, inputs: tf.Tensor) -> Tensors:
        """Windows [n, window_rows, ...] → scores [n, C] and embeddings [n, K]."""
        logits, embeddings = self.classifier.logits(inputs)
        scores = _linked(tf.cast(logits, tf.float32), self.calibration.kind, self.calibration.window)
        return {"scores": scores, "embeddings": embeddings}

    def sequence(self, embeddings: tf.Tensor, recording: tf.Tensor) -> Tensors:
        """The signature `sequence`. [n, K], [n]: which recording each window is of, ascending"""
        logits = self.classifier.sequence_logits(embeddings, recording)
        return {"scores": _linked(tf.cast(logits, tf.float32), self.calibration.kind, self.calibration.window)}

    def of_embeddings(self, embeddings: tf.Tensor) -> Tensors:
        """The signature `embeddings`. [n, K]"""
        return {"scores": self.windows(embeddings[:, None])["scores"]}

    def sound(self, waveforms: tf.Tensor, lengths: tf.Tensor) -> Tensors:
        """The signature `sound`. [n, samples], [n]"""
        spec = self.classifier.front_end
        cut = _Windows.of(waveforms, lengths, spec)

        def of_windows(inputs: tf.Tensor) -> Tensors:
            return {**self.windows(inputs), "held": front_end_graph.held(spec, inputs)}

        found = self._in_pieces(cut, of_windows, {"scores": len(self.classifier.classes), "embeddings": self._width,
                                                  "held": None})  # fmt: skip
        if self.classifier.pooling.context:
            found |= self.sequence(found["embeddings"], cut.recording)
        attention = cut.exponentials(self.classifier.attend(found["embeddings"]))
        ood_score = tf.fill([tf.size(cut.counts)], NO_OOD_SCORE)
        if self.ood is not None:
            ood_score = self.ood(cut.means(found["embeddings"], found["held"]))
        more = {}
        if self.published is not None:
            # Attention to each of the model's own classes says nothing of these.
            alike = attention if attention.shape.rank == 1 else tf.ones_like(attention[:, 0])
            means = _published_means(self.published, cut, found["embeddings"], alike)
            more = {"published_scores": clip_scores(means, self.published.calibration)}
        return {
            "scores": clip_scores(cut.means(found["scores"], attention), self.calibration),
            "ood_score": ood_score,
            **cut.places(spec),
            "window_scores": cut.table(found["scores"]),
            **more,
        }

    def embed(self, waveforms: tf.Tensor, lengths: tf.Tensor) -> Tensors:
        """The signature `embed`. [n, samples], [n]"""
        spec = self.classifier.front_end
        cut = _Windows.of(waveforms, lengths, spec)
        found = self._in_pieces(
            cut, lambda inputs: {"embeddings": self.classifier.embed(inputs)}, {"embeddings": self._width}
        )
        return {"embeddings": cut.table(found["embeddings"]), **cut.places(spec)}

    @property
    def _width(self) -> int:
        return self.classifier.backbone.embedding_size

    def _in_pieces(
        self, cut: _Windows, function: Callable[[tf.Tensor], Tensors], widths: Mapping[str, int | None]
    ) -> Tensors:
        """What a function makes of all windows, some at a time. Its outputs are [n, width], or [n] (None)."""
        spec, n_pieces = self.classifier.front_end, (tf.size(cut.recording) + PIECE - 1) // PIECE
        shapes = [[None] if width is None else [None, width] for width in widths.values()]
        empty = [tf.TensorArray(tf.float32, n_pieces, infer_shape=False, element_shape=shape) for shape in shapes]

        def piece(number: tf.Tensor, *arrays: tf.TensorArray) -> tuple[Any, ...]:
            found = function(front_end_graph.rows(spec, cut.waveforms(number * PIECE, spec)))
            return number + 1, *(array.write(number, found[name]) for name, array in zip(widths, arrays, strict=True))

        _, *full = tf.while_loop(
            lambda number, *_: number < n_pieces, piece, (tf.constant(0), *empty), parallel_iterations=1
        )
        return {name: array.concat() for name, array in zip(widths, full, strict=True)}


def _published_means(
    function: "PublishedGraph", cut: _Windows, embeddings: tf.Tensor, weights: tf.Tensor
) -> tf.Tensor:
    """Means of the published scores over the windows of each recording, some at a time: M is thousands. [n, M]"""
    n, total = tf.size(cut.counts), tf.size(cut.recording)

    def piece(begin: tf.Tensor, sums: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        part = slice(begin, begin + PIECE)
        weighted = tf.cast(weights[part], tf.float64)[:, None] * tf.cast(function(embeddings[part]), tf.float64)
        return begin + PIECE, sums + tf.math.unsorted_segment_sum(weighted, cut.recording[part], n)

    first = tf.zeros([n, function.width], tf.float64)
    _, sums = tf.while_loop(lambda begin, _: begin < total, piece, (tf.constant(0), first), parallel_iterations=1)
    return tf.cast(sums / cut.sums(weights)[:, None], tf.float32)


def _linked(logits: tf.Tensor, kind: str, scale: Scale) -> tf.Tensor:
    """`calibration.Calibration` as TensorFlow operations; slope and offset are constants of the graph."""
    scaled = tf.constant(scale.slope, logits.dtype) * logits + tf.constant(scale.offset, logits.dtype)
    return tf.nn.softmax(scaled) if kind == "softmax" else tf.sigmoid(scaled)


def clip_scores(means: tf.Tensor, calibration: Calibration) -> tf.Tensor:
    """Means of the calibrated window scores of recordings [n, C] → their scores [n, C], as `Calibration.clips`."""
    if calibration.clip == Scale():
        return means
    inside = tf.maximum(tf.cast(means, tf.float64), SMALLEST)
    logits = tf.math.log(inside)
    if calibration.kind != "softmax":
        inside = tf.minimum(inside, LARGEST)
        logits = tf.math.log(inside) - tf.math.log1p(-inside)
    return tf.cast(_linked(logits, calibration.kind, calibration.clip), tf.float32)


class PublishedGraph:
    """Embeddings of windows [n, K] → scores of the published classes that are kept [n, M].

    Attributes:
        arrays: what it computes with; a module that is saved must hold them.
        calibration: of its scores.
        width: M.
    """

    def __init__(self, served: Served) -> None:
        self.calibration, self.width = served.calibration, len(served.labels)
        self.arrays = [tf.Variable(array, trainable=False) for array in (served.layer.kernel, served.layer.bias)]

    def __call__(self, embeddings: tf.Tensor) -> tf.Tensor:
        """[n, K] → [n, M]"""
        kernel, bias = (tf.convert_to_tensor(array) for array in self.arrays)
        return _linked(embeddings @ kernel + bias, self.calibration.kind, self.calibration.window)


class OodGraph:
    """Mean embeddings, silence left out [n, K] → OOD scores [n], as `evaluation.ood` gives them.

    In float64 where a difference of large numbers is taken, for a GPU would take it in TF32.

    Attributes:
        arrays: what it computes with; a module that is saved must hold them.
    """

    def __init__(self, classifier: Classifier, model: OodModel, limits: OodScale) -> None:
        self._classifier, self._limits = classifier, limits
        self.arrays = [
            tf.Variable(array, trainable=False)
            for array in (model.origin, model.whitening, model.centres, model.widening)
        ]

    def __call__(self, embeddings: tf.Tensor) -> tf.Tensor:
        """Mean embeddings [n, K] → [n]"""
        origin, whitening, centres, widening = (tf.cast(array, tf.float64) for array in self.arrays)
        means = tf.cast(embeddings, tf.float64)
        placed = (tf.sign(means) * tf.sqrt(tf.abs(means)) - origin) @ whitening  # [n, K]
        # |a - b|² = |a|² - 2ab + |b|², so that nothing is [n, C, K]; float64 bears the difference.
        crossed = placed @ tf.transpose(centres)  # [n, C]
        lengths = [tf.reduce_sum(part**2, axis=1) for part in (placed, centres)]
        squared = tf.maximum(lengths[0][:, None] - 2.0 * crossed + lengths[1], 0.0)
        distance = tf.sqrt(tf.reduce_min(squared * widening, axis=1))
        energy = tf.reduce_logsumexp(tf.cast(self._classifier.of_places(embeddings), tf.float64), axis=1)
        apart = distance - self._limits.energy_weight * energy
        score = (apart - self._limits.median) / (self._limits.limit - self._limits.median)
        return tf.cast(tf.maximum(score, 0.0), tf.float32)
