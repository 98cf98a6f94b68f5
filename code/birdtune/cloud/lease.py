"""One job at a time at an output in S3: an object that is renewed, and expires with its job.

    OUTPUT/.lease.json   who works there: command, host, process, since when

It is made, renewed and taken over by conditional writes (`If-None-Match`, `If-Match`), so that of two jobs one gets it.
How old it is, the storage's own clock says.
"""

import contextlib
import email.utils
import json
import math
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import botocore.exceptions

from birdtune.cloud.client import Storage, code_of, faults
from birdtune.cloud.places import Place
from birdtune.errors import EXIT_RETRY, BirdtuneError, BusyError, InputError, shown
from birdtune.runtime.lock import LEASE_S, RENEWAL_S, myself, who
from birdtune.runtime.log import Journal, print_error
from birdtune.runtime.rank import is_chief
from birdtune.runtime.signals import Interrupts

NAME = ".lease.json"
_POLL_S = 1.0
_LAST_TIMEOUT_S = 5.0  # of a job that ends
_LOST = ("PreconditionFailed", "ConditionalRequestConflict", "412", "409", "NoSuchKey", "404")


class _Lease:
    """The object, and what of it is this job's."""

    def __init__(self, storage: Storage, output: Place) -> None:
        self.output, self.storage, self._place = output, storage, output.below(NAME)
        self._etag: str | None = None  # of what this job wrote last
        self._renewed_s = -math.inf  # when it did
        self._name = secrets.token_hex(8)

    def take(self, seen: str | None) -> bool:
        """Write it, if it is still as it was seen (None: not there). Returns whether that was so."""
        condition = {"IfNoneMatch": "*"} if seen is None else {"IfMatch": f'"{seen}"'}
        before_s = _now_s()
        # The time makes each renewal another object, which others see by its ETag.
        body = json.dumps(myself() | {"job": self._name, "renewed": time.time()}).encode()
        with faults(self._place):
            try:
                answer = self.storage.client.put_object(
                    Bucket=self._place.bucket, Key=self._place.key, Body=body, **condition, **self.storage.extra
                )
            except botocore.exceptions.ClientError as fault:
                if code_of(fault) not in _LOST:
                    raise
                answer = None
        if answer is not None:
            self._etag, self._renewed_s = answer["ETag"].strip('"'), before_s
            return True
        # A request whose answer was lost is sent again, and meets what it wrote itself.
        found = self.look()
        is_ours = found is not None and isinstance(found[2], dict) and found[2].get("job") == self._name
        if found is not None and is_ours:
            self._etag, self._renewed_s = found[0], before_s
        return is_ours

    def is_held(self) -> bool:
        """Whether nobody else can have taken it over yet."""
        return _now_s() - self._renewed_s < LEASE_S

    def was_seen(self) -> bool:
        """Whether S3 answered when it was to be renewed last."""
        return _now_s() - self._renewed_s < 2 * RENEWAL_S

    def renew(self) -> bool:
        """Whether it was still this job's."""
        return self.take(self._etag)

    def look(self) -> tuple[str, float, Any] | None:
        """Its ETag, its age in seconds, and who wrote it; None: it is not there."""
        with faults(self._place):
            try:
                answer = self.storage.client.get_object(
                    Bucket=self._place.bucket, Key=self._place.key, **self.storage.extra
                )
                body = answer["Body"].read()
            except botocore.exceptions.ClientError as fault:
                if code_of(fault) in ("NoSuchKey", "404"):
                    return None
                raise
        now = email.utils.parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
        owner = None
        with contextlib.suppress(ValueError):
            owner = json.loads(body)
        return answer["ETag"].strip('"'), (now - answer["LastModified"]).total_seconds(), owner

    def require_conditions(self) -> None:
        """Refuse a storage that writes whatever the condition, in which two jobs would have one lease.

        Raises:
            InputError: it does.
        """
        held, self._name = self._name, ""
        try:
            if self.take(None):
                raise InputError(
                    f"{shown(self.output)}: this storage ignores `If-None-Match`, without which two jobs could work at "
                    "one output. Give an output on a disk, NFS or EFS, or a storage that knows conditional writes."
                )
        finally:
            self._name = held

    def release(self) -> None:
        """Remove it, if it is still this job's."""
        found = self.look()
        if found is not None and found[0] == self._etag:
            self.storage.client.delete_object(Bucket=self._place.bucket, Key=self._place.key, **self.storage.extra)


def _now_s() -> float:
    """Seconds on a clock that goes on while a machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@contextlib.contextmanager
def alone_at(
    storage: Storage, output: Place, journal: Journal, interrupts: Interrupts, *, waits: bool = True
) -> Iterator[Callable[[], bool]]:
    """Keep other jobs away from an output in S3 while the block lasts.

    Args:
        waits: for a sign of life of a job to which it belongs; else that job is taken to live.

    Yields: whether the output is still this job's alone; after S3 was away for a while, that has to be seen first.

    Raises:
        BusyError: another job works there.
        InputError, RetryableError: as `client.faults`.
    """
    if not is_chief():
        yield lambda: True
        return
    lease = _Lease(storage, output)
    _acquire(lease, journal, interrupts, waits=waits)
    lease.require_conditions()
    lease.storage = storage.impatient()
    stop = threading.Event()
    heart = threading.Thread(target=_renew, args=(lease, stop), name="lease", daemon=True)
    heart.start()
    try:
        yield lease.is_held
    finally:
        stop.set()
        heart.join(_LAST_TIMEOUT_S)
        if lease.was_seen():  # else S3 is away: it expires by itself
            lease.storage = storage.impatient(_LAST_TIMEOUT_S, 1)
            with contextlib.suppress(BirdtuneError, botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError):
                lease.release()


def _acquire(lease: _Lease, journal: Journal, interrupts: Interrupts, *, waits: bool) -> None:
    first: str | None = None
    until = time.monotonic() + LEASE_S + RENEWAL_S
    while True:
        found = lease.look()
        etag, age_s, owner = found or (None, 0.0, None)
        if etag is None or age_s > LEASE_S:
            if lease.take(etag):
                if etag is not None:
                    journal.warn(f"The last job there ended without finishing: {who(owner)}. Continuing in its place.")
                return
        elif first is None and waits:
            first = etag
            journal.say(
                f"note: {shown(lease.output)} belongs to another job: {who(owner)}. Waiting up to {LEASE_S:.0f} s for "
                "a sign of life from it"
            )
        elif etag != first or time.monotonic() > until:
            raise BusyError(
                f"{shown(lease.output)}: another job is working there: {who(owner)}. Wait for it, or give another "
                "--output.", who(owner),
            )  # fmt: skip
        interrupts.check()
        time.sleep(_POLL_S)


def _renew(lease: _Lease, stop: threading.Event) -> None:
    while not stop.wait(RENEWAL_S):
        try:
            is_ours = lease.renew()
        except BirdtuneError:
            continue  # S3 is away: nothing is published before it is seen again whose the lease is
        if not is_ours:
            print_error(
                f"error: {shown(lease.output)}: this job lost its lock: it did not run, or S3 was away, for a while, "
                "and another works there now. What was published is safe. Run again to continue."
            )
            os._exit(EXIT_RETRY)
