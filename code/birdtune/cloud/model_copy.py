"""A model in S3 for servers that look there: below PLACE, as TensorFlow Serving takes it from a bucket.

    model/<name>/<v>/ ─▶ ModelPlace.put ─▶ PLACE/<v>/variables/..., labels.csv, ..., and last saved_model.pb

S3 has no renaming. A server can load a model from the moment its graph is there, which therefore comes last and goes
first: whoever looks before finds nothing to load.
"""

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import botocore.exceptions

from birdtune.cloud.client import Storage, code_of, faults
from birdtune.cloud.fetch import SHA256, listing
from birdtune.cloud.places import Place
from birdtune.cloud.publish import send

_GRAPH = "saved_model.pb"


class ModelPlace:
    """Where the versions of a model lie in S3. Every method raises as `client.faults`."""

    def __init__(self, storage: Storage, place: Place) -> None:
        self._storage, self._place = storage, place

    def __str__(self) -> str:
        return str(self._place)

    def facts(self, version: int) -> Any:
        """model.json of a version; {}: it has none; None: there is no such version."""
        at, names = self._place.below(str(version)), self._names(version)
        if _GRAPH not in names:
            return None  # what a killed job has left, or nothing
        if "model.json" not in names:
            return {}
        with faults(at):
            key = at.below("model.json").key
            body = self._storage.client.get_object(Bucket=at.bucket, Key=key, **self._storage.extra)["Body"]
            try:
                return json.loads(body.read())
            except ValueError:
                return {}

    def newest(self) -> int | None:
        """The version that a server takes: the highest number with a graph; None: there is none."""
        source, objects = listing(self._storage, self._place)
        parts = [each.name.split("/") for each in objects] if source == self._place else []
        return max((int(path[0]) for path in parts if path[0].isdecimal() and path[1:] == [_GRAPH]), default=None)

    def has(self, version: int, digests: Mapping[str, str]) -> bool:
        """Whether a version has exactly these files: relative name → SHA-256."""
        at = self._place.below(str(version))
        if self._names(version) != digests.keys():
            return False
        with faults(at), ThreadPoolExecutor(self._storage.connections) as threads:
            return list(threads.map(lambda name: self._stored_sha256(at.below(name)), digests)) == [*digests.values()]

    def put(self, folder: Path, version: int, digests: Mapping[str, str]) -> None:
        """Make a version what `folder` is. Raises InputError, RetryableError: as `publish.send`."""
        at = self._place.below(str(version))
        left = self._names(version)
        self._remove(at, left & {_GRAPH})
        self._remove(at, left - digests.keys() - {_GRAPH})
        with ThreadPoolExecutor(self._storage.connections) as threads:
            first = [name for name in digests if name != _GRAPH]
            list(threads.map(lambda name: send(self._storage, at.below(name), folder / name), first))
        send(self._storage, at.below(_GRAPH), folder / _GRAPH)

    def remove(self, version: int) -> None:
        """Remove a version."""
        at, names = self._place.below(str(version)), self._names(version)
        self._remove(at, names & {_GRAPH})
        self._remove(at, names - {_GRAPH})

    def _names(self, version: int) -> set[str]:
        at = self._place.below(str(version))
        source, objects = listing(self._storage, at)
        return {each.name for each in objects} if source == at else set()

    def _remove(self, at: Place, names: set[str]) -> None:
        for name in sorted(names):
            with faults(at):
                key = at.below(name).key
                self._storage.client.delete_object(Bucket=at.bucket, Key=key, **self._storage.extra)

    def _stored_sha256(self, place: Place) -> str | None:
        try:
            found = self._storage.client.head_object(Bucket=place.bucket, Key=place.key, **self._storage.extra)
        except botocore.exceptions.ClientError as fault:
            if code_of(fault) == "404":
                return None
            raise
        return found["Metadata"].get(SHA256)  # type: ignore[no-any-return]
