"""Every setting: type, unit, default, one line of help. Each section is a class, each setting a field."""

from typing import Annotated, Any, Literal

import pydantic

from birdtune.options import PATHS, Section, setting

_HIDDEN_UNITS = 100
_WIDEST = 65_536
_PROTOTYPES = 3
# jibjib's second network read ten windows.
_CONTEXT_WINDOWS = 10
# Heads that learn which windows of a recording count, and heads that see several windows at once.
ATTENTION_HEADS = ("attention", "sed-attention")
SEQUENCE_HEADS = ("gru", "lstm", "self-attention")
_HEAD_LR_MULTIPLIER = 10

# A model by its version's number, as "latest" or by its folder; a number in job.yaml is no text.
Version = Annotated[
    str | None, pydantic.BeforeValidator(lambda given: str(given) if type(given) is int else given)
]


class AudioSettings(Section):
    """Audio."""

    resampler: Literal["soxr", "resampy"] = setting(
        "soxr", "resampling library; resampy is the one VGGish was trained with"
    )
    short_clips: Literal["pad", "skip"] = setting(
        "pad", "recordings shorter than a window: pad with zeros, or leave out"
    )
    max_hours: float = setting(48.0, "longer files are left out", unit="h", gt=0)
    truncated: Literal["use", "refuse"] = setting(
        "use", "recordings that break off: use what decodes (if 1 s or half of it does), or leave out"
    )
    channels: Literal["best", "mix", "first", "each"] = setting(
        "best", "several channels: mix those that agree, else take the best; mix all; the first; or each as a recording"
    )
    band_limit: float | None = setting(
        None, "remove what is above, e.g. above the lowest bandwidth of all recordings", unit="Hz",
        unset="the backbone's band, up to 7,500", ge=500, le=8000,
    )

    @property
    def cache_key(self) -> str:
        """Names all settings on which decoded samples depend; part of what caches are called."""
        return f"{self.resampler}-{self.channels}-{self.truncated}"


class LabelSettings(Section):
    """Classes."""

    map: str | None = setting(
        None,
        "label map, name to external id (.pickle .json .csv .yaml)",
        unit="path",
        unset="INPUT/bird_id_map.*",
    )
    negative_classes: str = setting(
        "background,noise,silence,other,others,nocall,no call,no bird,no birds,negative,negatives,unknown,"
        "unknown sp,unknown sp.,background noise,ambient,ambience,ambient noise,hintergrund,rauschen,stille,unbekannt,"
        "bruit,bruit de fond,inconnu,ruido,silencio,desconocido",
        "classes that are never a decision, separated by commas; case, `_`, `-` and blanks do not matter",
    )
    level: int = setting(
        1, "depth of the class folders: 1 is the first level below the data folder", ge=1, le=10
    )
    table: str | None = setting(
        None,
        "CSV `recording,label` or `recording,start_s,end_s,label` in place of class folders",
        unit="path",
        unset="DATA/labels.csv",
    )
    columns: str | None = setting(
        None,
        "names of a table's columns, e.g. recording=filename,label=category,start=onset,end=offset; also split=, fold=",
    )
    annotations: str | None = setting(
        None, "annotation files, or folders of them, with commas: Raven, Audacity, ELAN, Praat, tables, xeno-canto; "
        "none: of none",
        unit=PATHS, unset="beside recordings without class folders, or in folders of sites, by name",
    )
    review: str | None = setting(
        None, "review.csv that the page of `review` saved, or a folder of such tables; beside all other labels",
        unit="path",
    )
    tiers: str | None = setting(None, "tiers of ELAN and Praat that are read, with commas", unset="all")
    taxonomy: str | None = setting(
        None, "CSV `label,class`: the class of each label, e.g. the species of a call type; - or nothing: not learnt",
        unit="path",
    )
    unlabelled: Literal["negative", "unknown"] = setting(
        "negative", "what windows beside the labels of an annotated recording are; unknown: annotated in part"
    )
    window_rule: Literal["overlap", "centre"] = setting(
        "overlap", "a window is of the classes it overlaps by labels.min-overlap, or of those at its centre"
    )
    min_overlap: float = setting(
        0.5, "least share of the shorter of window and label that makes the window one of its class", gt=0, le=1
    )


class SplitSettings(Section):
    """Train, validation, test."""

    file: str | None = setting(
        None, "CSV `recording,split` or `recording,fold` that sets the split", unit="path"
    )
    test_fold: int | None = setting(
        None, "test fold, where there are folds", unset="the last, of folders or a table of labels"
    )
    val_fold: int | None = setting(None, "validation fold", unset="the one after test-fold")
    val_fraction: float = setting(0.15, "share of each class for validation", ge=0, lt=1)
    test_fraction: float = setting(0.15, "share of each class for test", ge=0, lt=1)
    group_regex: str | None = setting(
        None,
        "source recording: first group of this pattern, searched in the path below the class folder",
        unit="regex",
    )
    group_column: str | None = setting(
        None, "source recording: column of the table of labels or annotations, e.g. site or date"
    )
    hold_out_classes: str | None = setting(
        None, "classes that `unseen` does not learn from: a number, drawn by seeds; 5-fold; CSV `class,split`; or "
        "esc50-test, esc50-fold0 to -fold3, fsc22-test, fsc22-val",
        unit="classes|path", unset="5-fold",
    )
    acoustic: Literal["join", "warn", "off"] = setting(
        "warn", "recordings with nearly the same noise floor: join as one source, warn, or do not compare"
    )
    seed: int = setting(1, "seed of the split", ge=0, lt=2**32)


class ModelSettings(Section):
    """The network."""

    backbone: Literal["vggish", "vggish-small", "yamnet", "birdnet", "perch", "custom"] = setting(
        "vggish",
        "what turns sound into embeddings; vggish-small is for trials; custom: any model that takes a waveform",
        unset="the one whose weights lie in INPUT, else vggish",
    )
    checkpoint: str | None = setting(
        None,
        "weights: V1/V2 file, folder or .tgz; yamnet: .h5; .tflite, .keras, .onnx or SavedModel; `none`: from scratch",
        unit="path",
        unset="INPUT/vggish_model.ckpt, INPUT/yamnet.h5 or .tflite",
    )
    sample_rate_hz: int | None = setting(
        None, "of the waveform that a custom model takes", unit="Hz", ge=1000, le=400_000
    )
    window_s: float | None = setting(
        None, "of waveform that a custom model takes at a time", unit="s", unset="as it says itself", gt=0, le=60
    )
    embedding_output: str | None = setting(
        None, "output of a custom model that is its embedding; of .keras a layer", unset="found by its shape and name"
    )
    freeze: str = setting(
        "auto", "what is not trained: none, conv, all-but-head, all layers up to the one named; auto: by backbone"
    )
    head: Literal[
        "linear", "mlp", "attention", "sed-attention", "prototype", "gru", "lstm", "self-attention"
    ] = setting(
        "linear", "from embeddings to classes; mlp: with a hidden layer; attention: learns which windows count, "
        "sed-attention for each class; prototype: by similarity to learnt examples; gru, lstm, self-attention: of "
        "consecutive windows",
    )
    context_windows: int | None = setting(
        None, "consecutive windows that a head over time sees at once (gru, lstm, self-attention)", unit="windows",
        unset=str(_CONTEXT_WINDOWS), ge=2, le=64,
    )
    output: Literal["auto", "softmax", "sigmoid"] = setting(
        "auto", "one class a recording (softmax), or each class on its own (sigmoid); auto: as the labels are"
    )
    head_weights: Literal["auto", "published", "random"] = setting(
        "auto", "the head's first weights; published: of classes that the backbone was published with, by their names; "
        "auto: published with BirdNET, else random",
    )
    hidden_units: str | int | None = setting(
        None, "width of the hidden layer (mlp, attention, sed-attention); of several, one after another (mlp): 64,32",
        unset="100",
    )
    prototypes: int | None = setting(None, "of each class (prototype)", unset=str(_PROTOTYPES), ge=1, le=1000)
    embedding_activation: Literal["relu", "none"] = setting(
        "relu", "activation after the backbone's last layer"
    )
    dropout: float = setting(0.0, "share of embedding values dropped in training", ge=0, lt=1)
    keep_classes: str | None = setting(
        None, "published classes of a frozen backbone to serve as well: all, names with commas, or a file of names",
        unit="names|path", unset="none",
    )

    @pydantic.field_validator("head", mode="before")
    @classmethod
    def _not_the_kind_of_scores(cls, head: Any) -> Any:
        if head in ("softmax", "sigmoid"):
            raise ValueError(
                f"that is a kind of scores: give --model.output {head}; the head itself is linear, mlp, attention, "
                "sed-attention, prototype, gru, lstm or self-attention"
            )
        return head

    @pydantic.field_validator("hidden_units", mode="before")
    @classmethod
    def _are_widths(cls, given: Any) -> Any:
        widths = [part.strip() for part in str(given).split(",")]
        if given is not None and not all(part.isdecimal() and 1 <= int(part) <= _WIDEST for part in widths):
            raise ValueError(
                f"expected a whole number from 1 to {_WIDEST:,}, or several with commas, one for each hidden layer"
            )
        return given if given is None else int(widths[0]) if len(widths) == 1 else ",".join(widths)

    @property
    def freeze_point(self) -> str:
        """What is not trained, with auto settled by backbone."""
        if self.freeze != "auto":
            return self.freeze
        # VGGish is trained as it was published; what begins from random weights has to be.
        return "none" if self.backbone.startswith("vggish") or self.checkpoint == "none" else "all-but-head"

    @property
    def head_units(self) -> int | str:
        """Width of the head's hidden layer, or of several with commas; 0 = it has none."""
        return (self.hidden_units or _HIDDEN_UNITS) if self.head in ("mlp", *ATTENTION_HEADS) else 0

    @property
    def head_prototypes(self) -> int:
        """Prototypes of each class, 0 = the head has none."""
        return (self.prototypes or _PROTOTYPES) if self.head == "prototype" else 0

    @property
    def context(self) -> int:
        """Consecutive windows that a head over time sees at once, 0 = the head sees each by itself."""
        return (self.context_windows or _CONTEXT_WINDOWS) if self.head in SEQUENCE_HEADS else 0

    @property
    def by_recording(self) -> bool:
        """Whether the head learns from whole recordings, of which it scores several windows."""
        return self.head in (*ATTENTION_HEADS, *SEQUENCE_HEADS)


class TrainSettings(Section):
    """Training."""

    epochs: int = setting(30, "most passes over the training windows", ge=1, le=100_000)
    batch_size: int = setting(32, "windows a step", unit="windows", ge=1, le=65536)
    accumulate: int = setting(1, "batches whose gradients are added before one update", ge=1, le=4096)
    precision: Literal["auto", "float32", "mixed_bfloat16", "mixed_float16"] = setting(
        "auto", "arithmetic of the layers; auto: the fast one on this machine"
    )
    seed: int = setting(1, "order of batches, first weights, dropout", ge=0, lt=2**32)
    optimizer: Literal["adam", "sgd"] = setting(
        "adam", "adam (AdamW), or sgd: stochastic gradient descent, whose rates are others, e.g. 1e-5 for the backbone "
        "and 1e-3 for the head",
    )
    learning_rate: float = setting(1e-4, "of the backbone, at its highest", gt=0, le=10)
    head_lr_multiplier: float | None = setting(
        None, "the head's learning rate, times that of the backbone", gt=0, le=10_000,
        unset=f"{_HEAD_LR_MULTIPLIER}; 1 where all classes begin from published ones",
    )
    head_warmup_epochs: int = setting(
        0, "first epochs, in which only the head is trained", unit="epochs", ge=0
    )
    layer_decay: float = setting(
        1.0, "learning rate of each layer, as a share of that of the layer above", gt=0, le=1
    )
    ema_decay: float = setting(
        0.0, "exponential moving average of the weights: share kept at each update; 0: none", ge=0, lt=1
    )
    epsilon: float = setting(1e-8, "of Adam, against division by zero", gt=0, le=1)
    momentum: float = setting(0.9, "of SGD: share of the last update that each one keeps", ge=0, lt=1)
    schedule: Literal["cosine", "cosine-restarts", "constant"] = setting(
        "cosine", "of the learning rate, after the warm-up; cosine-restarts: warm restarts"
    )
    restart_epochs: int = setting(10, "from one warm restart to the next", unit="epochs", ge=1)
    warmup_epochs: float = setting(0.5, "linear warm-up from zero", unit="epochs", ge=0)
    weight_decay: float = setting(0.0, "decoupled, kernels only", ge=0, lt=1)
    clip_norm: float = setting(1.0, "most global norm of the gradients; 0: no limit", ge=0)
    label_smoothing: float = setting(0.0, "share of the target spread over all classes", ge=0, lt=1)
    class_weight_alpha: float = setting(0.0, "classes weigh frequency^-alpha; 0: all equally", ge=0, le=2)
    focal_gamma: float = setting(
        0.0, "focal loss: windows weigh (1 - score)^gamma; 0: all equally", ge=0, le=10
    )
    sampling_power: float = setting(
        0.0, "how often classes are drawn: 0 as often as found, 1 all equally", ge=0, le=1
    )
    min_samples_per_class: int = setting(
        0, "classes with fewer are reported, and drawn this often an epoch", unit="windows", ge=0, le=1_000_000
    )
    min_samples_action: Literal["keep", "leave-out"] = setting(
        "keep", "classes below train.min-samples-per-class"
    )
    sample_weights: str | None = setting(
        None, "CSV `recording,weight`: weights in training", unit="path", unset="INPUT/quality.csv"
    )
    label_refinement: bool = setting(
        False, "windows that do not fit their recording's label keep a share of it, by cross-validation"
    )
    refit: bool | None = setting(
        None, "once the best epoch is known, train once more on training and validation recordings together",
        unset="auto: where only a head is trained, on embeddings that are computed once; not with an ensemble",
    )
    ensemble: int | None = setting(
        None, "heads that are trained, each validated on another fold of the recordings, and served as one: their mean",
        unset="one head", ge=3, le=20,
    )
    hop_s: float | None = setting(
        None, "from one training window to the next; at most a window", unit="s",
        unset="the backbone's: 0.96, yamnet 0.48, birdnet 1.5, perch 2.5", gt=0, le=60,
    )
    jitter_s: float = setting(
        0.0, "windows start at most this much earlier or later, drawn each epoch", unit="s", ge=0, le=96
    )
    early_stopping_patience: int = setting(
        8, "epochs without improvement on validation before stopping; 0: never", unit="epochs", ge=0
    )
    checkpoint_minutes: float = setting(
        10.0, "a checkpoint within an epoch at least this often", unit="min", gt=0
    )
    keep_checkpoints: int = setting(2, "newest checkpoints kept, beside the best", ge=1)
    keep_weights: Literal["best", "every-epoch"] = setting(
        "best", "weights that stay: of the best epoch; or of every epoch, in checkpoints/N/weights-epoch-*.safetensors"
    )
    cache_gb: float = setting(
        50.0, "most disk for outputs of frozen layers, computed once; 0: compute each epoch", unit="GB", ge=0
    )
    processes: int | None = setting(
        None, "processes on each machine, one a device, which share each batch; auto or a number",
        unset="auto: one a GPU where the backbone is trained, else 1", ge=1, le=64,
    )
    jit: bool = setting(True, "compile the optimizer's update with XLA (--train.jit false if it fails)")

    @pydantic.field_validator("processes", "refit", mode="before")
    @classmethod
    def _may_be_auto(cls, given: Any) -> Any:
        return None if given == "auto" else given

    @property
    def head_factor(self) -> float:
        """How many times the backbone's learning rate the head's is; where it is not set, as for a fresh head."""
        return _HEAD_LR_MULTIPLIER if self.head_lr_multiplier is None else self.head_lr_multiplier


class AugmentSettings(Section):
    """Augmentation of training windows; see also train.jitter-s."""

    gain_db: float = setting(0.0, "random gain, up or down by at most this", unit="dB", ge=0, le=60)
    white_noise: float = setting(0.0, "share of windows with white noise added", ge=0, le=1)
    pink_noise: float = setting(0.0, "share of windows with pink noise (1/f) added", ge=0, le=1)
    background: float = setting(0.0, "share of windows mixed with one of a negative class", ge=0, le=1)
    snr_db: float = setting(
        5.0, "signal-to-noise ratio of added noise and background: this to this + 20",
        unit="dB", ge=-30, le=60,
    )
    mixup: float = setting(
        0.0, "share of windows mixed with another (softmax: labels shared; sigmoid: both labels)", ge=0, le=1
    )
    cutmix: float = setting(
        0.0, "share of windows with a part of another in place of their own; labels as with mixup", ge=0, le=1
    )
    speed: float = setting(0.0, "tempo and pitch together, up or down by at most this share", ge=0, le=0.5)
    tempo: float = setting(0.0, "tempo alone, up or down by at most this share", ge=0, le=0.5)
    pitch_semitones: float = setting(0.0, "pitch alone, up or down by at most this", unit="semitones", ge=0, le=12)
    filter: float = setting(0.0, "share of windows through a low-pass, high-pass or band-stop", ge=0, le=1)
    reverberation: float = setting(0.0, "share of windows as in a place that reverberates", ge=0, le=1)
    impulse_responses: str | None = setting(
        None, "folder of impulse responses (WAV, FLAC)", unit="path", unset="made reverberation"
    )
    clipping: float = setting(0.0, "share of windows too loud for the recorder", ge=0, le=1)
    codec: float = setting(0.0, "share of windows through a lossy codec", ge=0, le=1)
    copies: int = setting(
        4, "augmented copies of each window that a frozen backbone embeds once, for epochs in turn; 0: anew each epoch",
        ge=0, le=100,
    )
    time_roll_s: float = setting(0.0, "windows rotated in time by at most this", unit="s", ge=0, le=60)
    pitch_shift: int = setting(0, "windows shifted in pitch by at most this", unit="mel bands", ge=0, le=16)
    time_mask_s: float = setting(0.0, "longest time mask in each window", unit="s", ge=0, le=60)
    band_mask: int = setting(0, "widest frequency mask in each window", unit="mel bands", ge=0, le=63)
    time_masks: int = setting(1, "time masks in each window", ge=1, le=8)
    band_masks: int = setting(1, "frequency masks in each window", ge=1, le=8)
    mask_with: Literal["mean", "silence"] = setting(
        "mean", "value of masked parts: the window's mean, or silence"
    )


class PrepareSettings(Section):
    """Preparation."""

    workers: int = setting(0, "processes that decode audio; 0: one a core", ge=0, le=1024)


class EvaluateSettings(Section):
    """Evaluation."""

    batch_size: int = setting(
        64, "windows scored at a time; on a CPU, predict and embed take fewer if they are large (BirdNET: 8)",
        unit="windows", ge=1, le=65536,
    )
    hop_s: float | None = setting(
        None, "from one window to the next in validation and test; at most a window", unit="s",
        unset="the backbone's; as detect.hop-s, where labels have times", gt=0, le=60,
    )
    bootstrap: int = setting(1000, "bootstrap resamples of each 95 % interval", ge=20, le=100_000)
    precision: float = setting(0.9, "precision of the decisions that thresholds are chosen for", ge=0.5, lt=1)
    false_alarms_per_hour: float | None = setting(
        None, "most false alarms that thresholds are chosen for, in place of precision and, of detections, of F1",
        unit="per h", unset="by precision", gt=0,
    )
    genera: bool | None = setting(
        None, "decide for a genus where no species passes; true: classes are called by scientific names",
        unset="auto: if the backbone's list or names such as `Parus major_Great Tit` say so",
    )
    taxonomy: str | None = setting(
        None, "CSV with order, family and genus of species, e.g. eBird's: to decide for a family where no genus "
        "passes, and for the command unseen", unit="path", unset="genera of scientific names",
    )
    label_issues: bool = setting(True, "look for wrong labels by cross-validation")
    rare_class_ablation: bool = setting(True, "measure what each setting for rare classes did to them")


class OodSettings(Section):
    """Out-of-distribution detection."""

    target_recall: float = setting(
        0.9, "share of known recordings not to be rejected as unknown; 1: reject none", ge=0.5, le=1
    )


class PredictSettings(Section):
    """Prediction."""

    precision: Literal["float32", "bfloat16"] = setting(
        "float32", "arithmetic of predict; bfloat16: where this CPU has it, and scores agree by what export measured"
    )


class DetectSettings(Section):
    """Detections, by predict --format."""

    hop_s: float | None = setting(
        None, "from one window to the next; at most a window", unit="s",
        unset="half a window; birdnet 0.5, perch 0.83", gt=0, le=60,
    )
    smooth_windows: int | None = setting(
        None, "each window's log odds are a weighted mean over this many around it; odd, 1: its own", unit="windows",
        unset="those within a third of a window", ge=1, le=999,
    )
    on: float | None = setting(
        None, "score that a detection must reach", unset="each class's threshold", gt=0, le=1
    )
    off: float | None = setting(
        None, "score below which it begins and ends", unset="three quarters of the score that it must reach", ge=0, le=1
    )
    min_s: float = setting(0.0, "shorter detections are left out", unit="s", ge=0, le=3600)
    merge_gap_s: float = setting(
        0.0, "detections of a class with at most this between them are one", unit="s", ge=0, le=3600
    )
    unknown: bool = setting(False, "list detections that are rejected as unknown, too")
    one_table: bool = setting(False, "one table of all recordings, in place of one each")
    beside: bool = setting(False, "tables lie beside their recordings, not below --out")

    @pydantic.field_validator("smooth_windows")
    @classmethod
    def _windows_have_a_middle(cls, windows: int | None) -> int | None:
        if windows is not None and windows % 2 == 0:
            raise ValueError(f"{windows} windows have no middle one; give {windows - 1} or {windows + 1}")
        return windows


class ExportSettings(Section):
    """Export."""

    name: str = setting(
        "birdtune",
        "name of the model in TensorFlow Serving: letters, digits and . _ -",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$",
    )


class GateSettings(Section):
    """Which model goes into service."""

    champion: Version = setting(
        None, "model in service, which the new one must beat to take its place: its number, latest, or its folder",
        unit="version|path", unset="every model is promoted",
    )
    margin: float = setting(0.0, "loss of the score that still counts as no worse; 0: it must be better", ge=0, lt=1)
    publish_to: str | None = setting(
        None, "further places that get the promoted models, e.g. /srv/models/birds or s3://bucket/birds; with commas "
        "several", unit=PATHS, unset="none",
    )


class TuneSettings(Section):
    """Tuning, by the command tune."""

    on: Literal["embeddings", "training"] = setting(
        "embeddings", "what a trial is: a head on embeddings, by cross-validation, or a whole training"
    )
    trials: int = setting(30, "trials, over all starts together", ge=1, le=10_000)
    minutes: float | None = setting(
        None, "no trial begins after this; the same command continues", unit="min", unset="no limit", gt=0
    )
    space: str | None = setting(
        None,
        "what to search, e.g. `model.head=linear|mlp, train.epochs=10..40, model.dropout`",
        unset="all that matters and is not given",
    )


class UnseenSettings(Section):
    """Unseen classes, by the command unseen."""

    seeds: int = setting(10, "draws, over which mean and standard deviation are taken", ge=1, le=1000)
    embedding: Literal["backbone", "trained"] = setting(
        "backbone", "embeddings of the backbone, or 128 numbers of layers that are trained on them, on seen classes"
    )
    shots: int = setting(3, "recordings of an unseen class that make its prototype; 0: none", ge=0, le=1000)
    words: str | None = setting(
        None, "word vectors as text, GloVe's or word2vec's, also .gz: a vector for each class by its name", unit="path"
    )
    synonyms: str | None = setting(
        None, "CSV `class,words`: words in place of a class's name", unit="path"
    )
    traits: str | None = setting(
        None, "CSV with a row of traits for each class, e.g. AVONET's", unit="path"
    )


class CollectSettings(Section):
    """Collecting recordings from the network."""

    max_gb: float = setting(
        10.0, "nothing more is fetched once the folder holds so much, broken transfers counted", unit="GB", gt=0
    )
    max_file_mb: float = setting(200.0, "larger recordings are not fetched", unit="MB", gt=0)
    connections: int = setting(4, "recordings fetched at a time", ge=1, le=32)
    pause_s: float = setting(1.0, "between two requests to one host", unit="s", ge=0, le=3600)
    timeout_s: float = setting(20.0, "silence of a server after which a request is given up", unit="s", gt=0, le=600)


class CloudSettings(Section):
    """S3 and cloud machines."""

    folder: str = setting(
        "output/s3", "where this machine keeps what lies at s3:// addresses; it may be lost", unit="folder"
    )
    endpoint: str | None = setting(
        None, "address of a storage that speaks S3, e.g. http://minio:9000", unit="URL", unset="Amazon's"
    )
    path_style: bool = setting(False, "address buckets as ENDPOINT/BUCKET, as some such storages need")
    anonymous: bool = setting(False, "read public buckets without credentials")
    requester_pays: bool = setting(False, "accept the costs of buckets that ask their readers to pay")
    connections: int = setting(16, "transfers at a time", ge=1, le=256)
    publish_s: float = setting(15.0, "how often what is new in the output goes to S3", unit="s", ge=1, le=3600)
    spot_notice: Literal["auto", "true", "false"] = setting(
        "auto", "save and stop when EC2 announces the end of a spot instance; auto: where the output lies in S3"
    )
