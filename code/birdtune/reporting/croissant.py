"""What a model was trained and tested on, as Croissant metadata (MLCommons, version 1.0).

    Dataset, labels.csv of the model, logs/<v>/split.csv ─▶ write ─▶ croissant.json and split.csv beside the model

https://docs.mlcommons.org/croissant/docs/croissant-spec.html. The recordings themselves are not part of it; of each
there is its name, class, source recording, side of the split and SHA-256.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from birdtune.data.dataset import Dataset
from birdtune.runtime.files import file_sha256, write_bytes, write_json
from birdtune.runtime.runs import Run
from birdtune.training.served_model import SPLIT_NAME

CROISSANT_NAME: Final = "croissant.json"
LABELS_NAME: Final = "labels.csv"

# As the specification gives it.
_TERMS: Final = (
    "citeAs", "column", "equivalentProperty", "extract", "field", "fileObject", "fileProperty", "fileSet", "format",
    "includes", "isLiveDataset", "jsonPath", "key", "md5", "parentField", "path", "recordSet", "references", "regex",
    "repeated", "replace", "samplingRate", "separator", "source", "subField", "transform",
)  # fmt: skip
_CONTEXT: Final = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "dct": "http://purl.org/dc/terms/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "sc": "https://schema.org/",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    **{term: f"cr:{term}" for term in _TERMS},
}
# Side of the split → what Croissant calls it.
_SPLITS: Final = {"train": "cr:TrainingSplit", "val": "cr:ValidationSplit", "test": "cr:TestSplit"}
# Column → type and meaning.
_COLUMNS: Final = {
    "recording": ("sc:Text", "Path of the recording below the data folder."),
    "class": ("sc:Text", "Its class; of several, all of them."),
    "group": ("sc:Text", "Its source recording: recordings of one are on one side of the split."),
    "split": ("sc:Text", "Its side of the split."),
    "content": ("sc:Text", "SHA-256 of the file, or of the file and the channel."),
}
_LABELS: Final = {
    "column": ("sc:Integer", "Column of the model's scores."),
    "class": ("sc:Text", "Name of the class."),
}


def write(folder: Path, run: Run, dataset: Dataset) -> None:
    """Write croissant.json and split.csv beside a model, whose labels.csv is there. Raises as `storage_faults`."""
    split = run.logs / SPLIT_NAME
    if split.is_file():  # else its logs were removed
        write_bytes(folder / SPLIT_NAME, split.read_bytes())
        write_json(folder / CROISSANT_NAME, _metadata(folder, run, dataset))


def _metadata(folder: Path, run: Run, dataset: Dataset) -> dict[str, Any]:
    name = f"{run.config.export.name} {run.version}"
    sides = ", ".join(f"{len(dataset.part(side))} {side}" for side in _SPLITS)
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": f"recordings of {name}",
        "description": (
            f"What the model {name} was trained and tested on: {len(dataset.recordings)} recordings of "
            f"{len(dataset.classes)} classes ({sides}). The recordings themselves are not part of it."
        ),
        "version": f"{run.version}.0.0",
        "datePublished": str(run.record["first_started"])[:10],
        "distribution": [_file(folder, SPLIT_NAME), _file(folder, LABELS_NAME)],
        "recordSet": [
            _sides(),
            _record_set("classes", LABELS_NAME, _LABELS, key="class"),
            _record_set("recordings", SPLIT_NAME, _COLUMNS, key="recording"),
        ],
    }


def _file(folder: Path, name: str) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject", "@id": name, "name": name, "contentUrl": name, "encodingFormat": "text/csv",
        "contentSize": f"{(folder / name).stat().st_size} B", "sha256": file_sha256(folder / name),
    }  # fmt: skip


def _record_set(name: str, file: str, columns: dict[str, tuple[str, str]], key: str) -> dict[str, Any]:
    fields = [
        {
            "@type": "cr:Field", "@id": f"{name}/{column}", "name": column, "description": meaning, "dataType": kind,
            "source": {"fileObject": {"@id": file}, "extract": {"column": column}},
        }
        for column, (kind, meaning) in columns.items()
    ]  # fmt: skip
    for field in fields:
        if field["@id"] == "recordings/split":
            field |= {"references": {"field": {"@id": "splits/name"}}}
    return {"@type": "cr:RecordSet", "@id": name, "name": name, "key": {"@id": f"{name}/{key}"}, "field": fields}


def _sides() -> dict[str, Any]:
    kinds: Sequence[tuple[str, str]] = (("name", "sc:Text"), ("url", "sc:URL"))
    return {
        "@type": "cr:RecordSet", "@id": "splits", "name": "splits", "dataType": "cr:Split",
        "key": {"@id": "splits/name"},
        "field": [
            {"@type": "cr:Field", "@id": f"splits/{name}", "name": name, "dataType": kind} for name, kind in kinds
        ],
        "data": [{"splits/name": side, "splits/url": url} for side, url in _SPLITS.items()],
    }  # fmt: skip
