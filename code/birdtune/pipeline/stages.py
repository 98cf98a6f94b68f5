"""What each computing stage does: train (learning.py), evaluate, export, report.

    Run + Dataset + FrameStore ─▶ checkpoints/<v> ─▶ reports/<v>/metrics.json ─▶ model/<name>/<v> ─▶ report.html

Importing this loads TensorFlow.
"""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

import birdtune
from birdtune.audio import decode
from birdtune.audio.faults import SoundError
from birdtune.audio.resample import TARGET_RATE_HZ
from birdtune.data import acoustic, augment
from birdtune.data.scan import Recording
from birdtune.evaluation import class_alignment, leak, model_comparison, rare_classes, shortcuts
from birdtune.evaluation.decision import Thresholds
from birdtune.evaluation.ood import Measures, Novelty
from birdtune.evaluation.scores import Scores
from birdtune.evaluation.thresholds import only
from birdtune.models import classifier as classifiers
from birdtune.models.classifier import Classifier
from birdtune.pipeline import evaluate as judging
from birdtune.pipeline import label_check, rare_class_ablation
from birdtune.reporting import augmentation_sheet, report, shortcut_section, tables
from birdtune.reporting.report_data import judgement, report_facts, write_companions
from birdtune.runtime.files import make_folder, write_bytes, write_json
from birdtune.runtime.words import plain
from birdtune.serving.export import export_model, training_side
from birdtune.training.base_model import Ancestor, read_novelty, read_weights
from birdtune.training.ood_fit import chosen_windows, moments_of, watched
from birdtune.training.scoring import Scorer, make_scorer
from birdtune.training.train import Learning, build_classifier

# The example that an export is verified with: long enough for several patches, short enough to be quick.
_EXAMPLE_S = 10.0


class Stages(Learning):
    """The computing stages of one run."""

    # ---- train ----------------------------------------------------------------------------------

    def train(self) -> None:
        """As `Learning.train`; with `train.label-refinement`, patches first lose what is doubtful of their label."""
        if self.config.train.label_refinement:
            self.kept = label_check.kept_shares(
                self.config, self.dataset, self.store, self.run.logs / label_check.KEPT_NAME, self.journal,
                self.interrupts,
            )  # fmt: skip
        super().train()

    # ---- evaluate -------------------------------------------------------------------------------

    def evaluate(self) -> None:
        """Score validation and test with the best weights, in float32, calibrated, as the exported model will."""
        classifier = self._best()
        scorer = make_scorer(classifier, logits=True)
        backbone_kept = self._backbone_kept(classifier)
        known = self._known(scorer, backbone_kept)
        found, alive = self._judged(classifier, scorer, known)
        make_folder(self.run.reports)
        if known is not None:
            known.save(self.run.reports / judging.NOVELTY_NAME)
        for name, scores in found.scores.items():
            scores.save(self.run.reports / f"scores-{name}.npz")
            found.figures[name]["live_embeddings"] = alive[name]
            found.figures[name]["rarest_third"] = self._rarest(scores)
            self._tell(name, found.figures[name])
        found.figures["leak"] = self._leak(found.scores.get("test"))
        if self.ancestor is not None:
            strange = known if found.figures["novelty"]["scale"] is not None else None
            found.figures["init_from"] = {
                **self._beside(self.ancestor, found.scores.get("test"), found.figures),
                "backbone_kept": backbone_kept,
                "unreachable": self._unreachable(strange),
            }
        found.figures["shortcuts"] = self._shortcuts(found.scores)
        if self.config.evaluate.rare_class_ablation:
            found.figures["remedies"] = rare_class_ablation.measure(
                self.config, self.dataset, self.store, self.journal, self.interrupts
            )
        if self.config.evaluate.label_issues:  # before the verdict, which speaks of them
            label_check.check_labels(
                self.config, self.dataset, self.store, self.run.reports, self.journal, self.interrupts
            )
        self._judge(found.figures)

    def _judged(
        self, classifier: Classifier, scorer: Scorer, known: Novelty | None
    ) -> tuple[judging.Judged, dict[str, int | None]]:
        """What is found of validation, test and made noise; and how many embeddings are alive, of each part."""
        heard: dict[str, Measures] = {}
        if known is not None:
            heard = {name: Measures(known, _to_logits(classifier)) for name in ("val", "test", "noise")}
        takes = {name: of.take for name, of in heard.items()}
        logits: dict[str, Scores | None] = {}
        alive: dict[str, int | None] = {}
        for name in ("val", "test"):
            part = self.dataset.part(name)
            logits[name] = None
            if part:
                windows = self.windows(part)
                seen = watched(scorer, windows, takes[name]) if takes else scorer
                with self.journal.progress(f"scoring {name}", len(windows), "patches") as progress:
                    logits[name], alive[name] = self.score(classifier, seen, windows, part, progress.advance)
        size = self.config.evaluate.batch_size
        noise = judging.noise_logits(scorer, self.dataset.classes, self.store.spec, size, takes.get("noise"))
        found = judging.judge_run(
            logits,
            noise,
            kind=classifier.kind,
            classes=self.dataset.classes,
            background=self.dataset.background,
            train_counts=np.array(self.dataset.counts(self.dataset.part("train")), np.int64),
            patch_s=self.store.spec.patch_s,
            settings=self.config.evaluate,
            target_recall=self.config.ood.target_recall,
            seed=self.config.train.seed,
            heard={name: of.found() for name, of in heard.items()},
        )
        return found, alive

    def _leak(self, test: Scores | None) -> dict[str, Any] | None:
        """How well test recordings do that sound like one training recording, and the others."""
        if test is None:
            return None
        near, compared = acoustic.near_training(self.dataset.part("train"), self.dataset.part("test"))
        evaluate = self.config.evaluate
        found = leak.measure(
            test, near, compared=compared, n_bootstrap=evaluate.bootstrap, seed=self.config.train.seed
        )
        self.journal.say(
            f"  test: {found['near']:,} of {found['recordings']:,} recordings have the noise floor of a training "
            f"recording ({compared:,} could be compared). {leak.sentence(found) if near else ''}"
        )
        return found

    def _rarest(self, scores: Scores) -> dict[str, Any] | None:
        return rare_classes.rarest_third(
            scores,
            np.array(self.dataset.counts(self.dataset.part("train")), np.int64),
            background=self.dataset.background,
            n_bootstrap=self.config.evaluate.bootstrap,
            seed=self.config.train.seed,
        )

    def _shortcuts(self, scores: Mapping[str, Scores]) -> dict[str, Any] | None:
        """How well the classes are told by what is no song: `shortcuts` of metrics.json."""
        part = next((name for name in ("test", "val") if name in scores), None)
        if part is None:
            return None
        row = shortcuts.measure(
            self.dataset, scores[part], part, n_bootstrap=self.config.evaluate.bootstrap,
            seed=self.config.train.seed, check=self.interrupts.check,
        )  # fmt: skip
        if said := shortcut_section.line(row):
            self.journal.say(f"  {said}")
        return row

    def _backbone_kept(self, classifier: Classifier) -> bool:
        """Whether sounds are embedded as by the model that the run began from, if it did."""
        if self.ancestor is None:
            return False
        before, now = read_weights(self.ancestor), classifiers.weights(classifier)
        return all(
            np.array_equal(now[name], array) for name, array in before.items() if name.startswith("backbone/")
        )

    def _unreachable(self, known: Novelty | None) -> list[str]:
        """Classes of an earlier model whose sounds will be strange: nothing is known of them any more."""
        if known is None:
            return []
        names = [self.dataset.classes[column] for column in self._untaught() if not known.counts[column]]
        return [name for name in names if name not in self.dataset.background]

    def _known(self, scorer: Scorer, backbone_kept: bool) -> Novelty | None:
        """What the training recordings sound like to the network; None where nobody asks, or they do not differ.

        Of classes without any, what the model knew that the run began from, if its backbone was kept.
        """
        if self.config.ood.target_recall >= 1:
            return None
        part = self.dataset.part("train")
        labels = np.array(self.dataset.labels(part), np.int64)
        windows = self.windows(part)
        numbers = chosen_windows(windows, labels)
        with self.journal.progress("embedding training", len(numbers), "patches") as progress:
            found = moments_of(
                scorer, windows, labels, numbers, len(self.dataset.classes), self.config.evaluate.batch_size,
                self.interrupts, progress.advance,
            )  # fmt: skip
        untaught = self._untaught()
        before = (
            read_novelty(self.ancestor) if self.ancestor is not None and untaught and backbone_kept else None
        )
        if found is None or before is None:
            return found
        return found.with_centres_of(before, np.array(untaught, np.int64))

    def _beside(self, ancestor: Ancestor, test: Scores | None, figures: Mapping[str, Any]) -> dict[str, Any]:
        """The new model beside the one that it began from: `init_from` of metrics.json."""
        n_old = len(ancestor.classes)
        row: dict[str, Any] = {
            **ancestor.row(),
            "title": ancestor.title,
            "kept": list(ancestor.classes),
            "untaught": [self.dataset.classes[column] for column in self._untaught()],
            "moved": class_alignment.moved(self.dataset, ancestor.learnt()),
            "new": model_comparison.row_of_new(figures["test"], self.dataset.classes, n_old),
            "comparison": None,
            "reason": "",
            "left_out": 0,
            "unknown": 0,
        }
        before = ancestor.thresholds
        part = [r for r in self.dataset.part("test") if r.label in ancestor.classes]
        heard = ancestor.heard()
        places = self.dataset.places
        clean = [r for r in part if heard is not None and not heard.knows(r, places[r.name].group)]
        row["left_out"] = len(part) - len(clean) if heard is not None else 0
        if test is None or not part:
            row["reason"] = "there are no test recordings of them"
        elif heard is None:
            row["unknown"] = len(part)
            row["reason"] = (
                f"nobody knows which of the {len(part):,} test recordings {ancestor.title} had learnt from, as the "
                "logs of its run are not beside it (its output folder has them)"
            )
        elif not clean:
            row["reason"] = f"{ancestor.title} had learnt from all test recordings, or was chosen by them"
        else:
            row["comparison"] = model_comparison.compare(
                self._as_before(ancestor, clean),
                only(test, np.isin(test.recordings, [r.name for r in clean])),
                n_bootstrap=self.config.evaluate.bootstrap,
                seed=self.config.train.seed,
                thresholds=(before, Thresholds.of(figures["thresholds"])) if before is not None else None,
            )
        for sentence in model_comparison.sentences(row):
            self.journal.say(f"  {plain(sentence)}")
        return row

    def _as_before(self, ancestor: Ancestor, part: list[Recording]) -> Scores:
        """What the model that the run began from says of recordings, as it is served."""
        classifier = build_classifier(self.config, ancestor.classes, "float32", seed=None)
        classifiers.load_weights(classifier, read_weights(ancestor), source=ancestor.title)
        windows = self.windows(part)
        known, scale = read_novelty(ancestor), ancestor.scale
        measures = Measures(known, _to_logits(classifier)) if known is not None else None
        scorer = make_scorer(classifier, logits=True)
        seen = watched(scorer, windows, measures.take) if measures is not None else scorer
        with self.journal.progress(f"scoring, {ancestor.title}", len(windows), "patches") as progress:
            logits, _ = self.score(classifier, seen, windows, part, progress.advance)
        scores = ancestor.calibration.scores(logits)
        if measures is None or scale is None:
            return scores
        return replace(scores, strangeness=scale.strangeness(measures.found()))

    def _judge(self, figures: dict[str, Any]) -> None:
        """Say how far to trust the model, and write metrics.json."""
        for part in ("calibration", "thresholds", "novelty"):
            if reason := figures[part]["reason"]:
                self.journal.say(f"  {reason}")
        found, word = judgement(self.run, figures)
        rows = [doubt.row() for doubt in found]
        whole = {
            "version": self.run.version,
            "weights_sha256": self.run.record["weights_sha256"],
            **figures,
            "verdict": word.level,
            "warnings": rows,
        }
        write_json(self.run.reports / "metrics.json", whole)
        self.run.record.update(verdict=word.level, warnings=rows)
        self.warn(found)

    def _tell(self, name: str, judged: Mapping[str, Any]) -> None:
        clip = judged["clip"]
        self.journal.say(
            f"  {name}: clip accuracy {clip['accuracy']:.3f}, macro average precision "
            f"{clip['macro_ap'] if clip['macro_ap'] is not None else float('nan'):.3f}; "
            f"baseline {judged['majority_baseline']:.3f} (always {judged['majority_class']})"
        )
        before, after = judged["certainty"]["before"], judged["certainty"]["after"]
        self.journal.say(
            f"  {name}: calibration error {after['ece']:.3f} (before calibration {before['ece']:.3f}; "
            f"were every score exactly true, {after['ece_if_true']:.3f} on as few)"
        )
        self.journal.event(
            "judged", split=name, baseline=judged["majority_baseline"],
            **{key: clip[key] for key in ("accuracy", "accuracy_ci", "top3", "macro_ap", "roc_auc")},
        )  # fmt: skip

    def _best(self) -> Classifier:
        classifier = build_classifier(self.config, self.dataset.classes, "float32", seed=None)
        classifiers.load_weights(classifier, self.checkpoints.best(), source=str(self.run.checkpoints))
        return classifier

    # ---- export ---------------------------------------------------------------------------------

    def export(self) -> None:
        """Write the servable model, compare it in a fresh process, put it in place."""
        classifier = self._best()
        part = self.dataset.part("test") or self.dataset.part("train")
        chosen = self.windows(part[:8])
        patches = chosen.patches(np.arange(min(16, len(chosen)))).astype(np.float32)
        lengths_s = [recording.facts.duration_s for recording in self.dataset.part("val")]
        calibration, thresholds = judging.read_judged(
            self.run.reports / "metrics.json", len(self.dataset.classes), classifier.kind
        )
        facts = export_model(
            classifier,
            self.run.model,
            facts={
                "version": self.run.version,
                "birdtune": birdtune.__version__,
                "fingerprint": self.run.record["fingerprint"],
                "init_from": self.run.record["init_from"],
                "usual_s": round(float(np.median(lengths_s)), 3) if lengths_s else None,
            },
            example_waveform=self._example(part),
            expected=training_side(classifier, patches, calibration),
            calibration=calibration,
            thresholds=thresholds,
            novelty=judging.read_novelty(self.run.reports),
            class_ids=self.dataset.class_ids,
            check=self.interrupts.check,
        )
        largest = max(facts["verification"]["differences"].values())
        self.journal.say(f"  loaded in a fresh process, its scores differ by at most {largest:.0e}")
        self.journal.event("exported", folder=str(self.run.model), **facts["verification"])

    def _example(self, part: list[Recording]) -> npt.NDArray[np.float32]:
        """Sound to verify the export with: the beginning of a recording, or noise where none is there any more."""
        for recording in part:
            self.interrupts.check()
            with contextlib.suppress(SoundError):
                return decode.read(
                    recording.path, self.store.sound, longest_s=_EXAMPLE_S, channel=recording.channel
                )
        self.journal.warn("No recording can be read any more; the export is verified with noise.")
        n_samples = round(_EXAMPLE_S * TARGET_RATE_HZ)
        return np.random.default_rng(0).normal(0, 0.1, n_samples).astype(np.float32)

    # ---- report ---------------------------------------------------------------------------------

    def report(self) -> None:
        """Write report.html and the tables beside it."""
        write_companions(self.run, self.dataset)
        facts = report_facts(self.run, self.dataset, self.store)
        if augment.active(self.config.augment) or self.config.train.jitter_frames:
            picture = augmentation_sheet.sheet_of(self.config, self.config.augment, self.dataset, self.store)
            write_bytes(self.run.reports / "augmentation.png", picture)
            facts = replace(facts, augmentation=picture)
        tables.write_tables(self.run.reports, facts)
        report.write_report(self.run.reports / "report.html", facts)


def _to_logits(classifier: Classifier) -> Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]:
    """What the head makes of mean embeddings. [n, K] → [n, C]"""
    return lambda pooled: np.asarray(classifier.head(pooled), np.float32)
