"""The section on the embedding map: a picture of all recordings, its legend, and the number that goes with it.

    embedding_map.json + scores + label issues ─▶ section ─▶ SVG, legend, sentence

There are at most `embedding_map.MOST_POINTS` points, so they are SVG: it prints, follows light and dark, and can be
read without the script, which (templates/embedding_map.js) adds tips, keys, the choice of a class, and plays the clips
that the page has. Names are outside text: they pass `shown` and are escaped.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape

from birdtune.errors import shown
from birdtune.evaluation.embedding_map import TABLE_NAME
from birdtune.evaluation.scores import Scores, clip_scores
from birdtune.runtime.text import count, percent, span

Row = Mapping[str, Any]

COLOURED = 20  # classes; more colours are not told apart
_SIDE, _MARGIN = 720, 16  # of the picture, in its own units
_NARROWEST = 0.4  # of the shorter side, of the longer one
CROSS_VALIDATED = "fold"  # the part of recordings that are each scored by what did not learn from them
_PARTS = {"train": "training", "val": "validation", "test": "test", CROSS_VALIDATED: "cross-validated"}


def section(
    found: Row | None,
    scores: Mapping[str, Scores],
    part: str | None,
    class_rows: Sequence[Row],
    issues: Sequence[Row],
    clips: Mapping[str, int],
    *,
    first: bool = True,
) -> Row | None:
    """What the template shows; None where the run has no map, nor a reason for that.

    Args:
        found: as `embedding_map.measure`.
        scores: "val", "test" or `CROSS_VALIDATED` → scores; each may be missing.
        part: the one whose errors are marked, as in the rest of the page; None: there is none.
        class_rows: `class` and `recordings`, of all recordings, though not all are on the map.
        issues: rows of label_issues.csv.
        clips: recording → number of its clip, where the page has one to play.
        first: whether it is the first map of the page, which brings the shapes for all.
    """
    if found is None or found["reason"]:
        return found
    rows = found["rows"]
    on_map = {name for row in rows for name in row["classes"]}
    sizes = {row["class"]: row["recordings"] for row in class_rows if row["class"] in on_map}
    rank = {name: k for k, name in enumerate(sorted(sizes, key=lambda name: (-sizes[name], name)))}
    predictions = {name: said for each in scores.values() for name, said in _predictions(each).items()}
    doubts: dict[str, list[str]] = defaultdict(list)
    for row in issues:
        doubts[row["recording"]].append(_doubt(row))
    return {
        **found,
        "picture": _picture(rows, rank, predictions, doubts, clips, part, _MARKS if first else ""),
        "legend": _legend(rows, rank, sizes),
        "coloured": COLOURED,
        "parts": [(part, name) for part, name in _PARTS.items() if any(row["split"] == part for row in rows)],
        "errors": part is not None and part in scores,
        "issues": any(row["recording"] in doubts for row in rows),
        "table": TABLE_NAME,
        "sentence": _sentence(found),
    }


def _sentence(found: Row) -> str:
    """How many recordings have a nearest neighbour of their class, in words."""
    if found["same"] is None:
        return "No class has recordings of two sources, so nearest neighbours cannot be compared."
    ends = f" (95 % interval: {span(found['same_ci'])})" if found["same_ci"] else ""
    return (
        f"of {count(found['compared'], 'recording')}{ends} have a nearest neighbour of the same class; "
        f"by chance it would be {percent(found['same_by_chance'])}. Nearest means the largest cosine of mean "
        "embeddings among recordings of other sources; this does not depend on the picture."
    )


def _predictions(scores: Scores) -> dict[str, tuple[str, float, bool]]:
    """Recording → predicted class, its score, and whether it is right; of recordings that have a class."""
    pooled = clip_scores(scores)  # [N, C]
    best = pooled.argmax(axis=1).tolist()
    return {
        recording: (scores.classes[best[k]], float(pooled[k, best[k]]), bool(scores.top1[k]))
        for k, recording in enumerate(scores.recordings)
        if scores.has_class[k]
    }


def _legend(rows: Sequence[Row], rank: Mapping[str, int], sizes: Mapping[str, int]) -> list[Row]:
    """Per class: number, name, recordings, and the share of the map's whose nearest neighbour has the same class."""
    same: dict[str, list[bool]] = defaultdict(list)
    for row in rows:
        if row["same_class"] is not None:
            for name in row["classes"]:
                same[name].append(row["same_class"] == "yes")
    return [
        {
            "number": k,
            "class": name,
            "recordings": sizes[name],
            "same": sum(same[name]) / len(same[name]) if same[name] else None,
        }
        for name, k in rank.items()
    ]


def _picture(
    rows: Sequence[Row],
    rank: Mapping[str, int],
    predictions: Mapping[str, tuple[str, float, bool]],
    doubts: Mapping[str, Sequence[str]],
    clips: Mapping[str, int],
    part: str | None,
    marks: str,
) -> Markup:
    """The points as SVG; those that matter most are drawn last, so that they lie on top."""
    sides = {axis: max(row[axis] for row in rows) for axis in "xy"}
    width, height = (round(_SIDE * max(side, _NARROWEST)) + 2 * _MARGIN for side in sides.values())
    spaces = {axis: max(_NARROWEST - side, 0) / 2 for axis, side in sides.items()}
    points = []
    for row in rows:
        x, y = (round(_MARGIN + _SIDE * (row[axis] + space), 1) for axis, space in spaces.items())
        recording = row["recording"]
        predicted, issues = predictions.get(recording), doubts.get(recording, ())
        is_error = row["split"] == part and predicted is not None and not predicted[2]
        shapes = [row["split"], *(["issue"] if issues else []), *(["error"] if is_error else [])]
        numbers = [rank[name] for name in row["classes"]]
        colour = f"k{numbers[0]}" if numbers and numbers[0] < COLOURED else "rest"
        clip = f' data-clip="{clips[recording]}"' if recording in clips else ""
        drawn = (
            f'<g class="{colour}" data-k="{" ".join(map(str, numbers))}"{clip} transform="translate({x:g} {y:g})">'
            f"<title>{escape(_words(row, predicted, issues))}</title>"
            + "".join(f'<use href="#map-{shape}"/>' for shape in shapes)
            + "</g>"
        )
        points.append(((len(shapes), row["split"] == "test"), drawn))
    points.sort(key=lambda point: point[0])
    label = f"Embedding map of {count(len(rows), 'recording')}; its points are in {TABLE_NAME}"
    return Markup(
        f'<svg role="group" viewBox="0 0 {width} {height}" aria-label="{label}">'
        f'{marks}<g class="points">{"".join(drawn for _, drawn in points)}</g></svg>'
    )


def _doubt(row: Row) -> str:
    """A label issue in a few words."""
    if not row["suggested"]:
        return f"may not be {shown(row['class'])}"
    return f"sounds like {shown(row['suggested'])}{'' if row['class'] else ', too'}"


def _words(row: Row, predicted: tuple[str, float, bool] | None, doubts: Sequence[str]) -> str:
    """What is said of a point, line by line; the first is the recording."""
    classes = ", ".join(row["classes"]) or "no class"
    lines = [shown(row["recording"]), f"{shown(classes)}, {_PARTS[row['split']]}"]
    if predicted:
        name, score, is_right = predicted
        lines.append(f"predicted {shown(name)} ({percent(score)}){'' if is_right else ': error'}")
    return "\n".join([*lines, *(f"label issue: {doubt}" for doubt in doubts)])


# Shapes say the part, so that they are told apart without colours, too.
_MARKS = (
    '<defs><circle id="map-train" r="4.2"/><circle id="map-fold" r="4.2"/>'
    '<rect id="map-val" x="-4.2" y="-4.2" width="8.4" height="8.4"/>'
    '<path id="map-test" d="M0-7.5L7.5 0L0 7.5L-7.5 0Z"/>'
    '<path id="map-error" class="mark" d="M-5.6-5.6L5.6 5.6M-5.6 5.6L5.6-5.6"/>'
    '<circle id="map-issue" class="mark" r="9.5"/></defs>'
)
