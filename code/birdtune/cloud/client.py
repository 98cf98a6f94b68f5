"""A client of S3, and what its refusals mean: which are worth another start, and what to do about the others."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import boto3
import boto3.exceptions
import botocore
import botocore.exceptions
from botocore.config import Config as ClientConfig

from birdtune.cloud.places import Place
from birdtune.errors import BirdtuneError, InputError, RetryableError, SettingsError, shown
from birdtune.settings import CloudSettings

# Waiting for bytes that do not come: long enough for a slow disk behind the storage, short beside a spot's 120 s.
_TIMEOUT_S = 20
_ATTEMPTS = 6

_CREDENTIALS = (
    "Credentials come from the machine's or task's role, from AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and "
    "AWS_SESSION_TOKEN, or from a profile"
)
_REFUSED: dict[str, str] = {
    "NoSuchBucket": "there is no such bucket. Check its name, and with --cloud.endpoint the storage.",
    "AccessDenied": "access is denied. The role or user needs s3:ListBucket on the bucket, and s3:GetObject (for an "
    "output s3:PutObject and s3:DeleteObject, too) on what is in it; buckets whose readers pay need "
    "--cloud.requester-pays true.",
    "InvalidAccessKeyId": f"the access key is not known there. {_CREDENTIALS}.",
    "SignatureDoesNotMatch": f"the secret key does not belong to the access key. {_CREDENTIALS}.",
    "PermanentRedirect": "the bucket lies in another region{region}. Set AWS_REGION to it.",
    "AuthorizationHeaderMalformed": "the bucket lies in another region{region}. Set AWS_REGION to it.",
    "RequestTimeTooSkewed": "this machine's clock differs from that of S3 by more than 15 minutes. Set it, e.g. by "
    "chrony, and run again.",
    "ExpiredToken": f"the session token has expired. {_CREDENTIALS}.",
    "InvalidToken": f"the session token is not valid. {_CREDENTIALS}.",
    "AllAccessDisabled": "the bucket is closed to everybody.",
    "InvalidObjectState": "is archived (Glacier). Restore it first.",
    "NotImplemented": "the storage does not know this request ({operation}). Is it recent enough?",
}  # fmt: skip
# As plain statuses, which answers without a body (to HEAD) have in place of a code.
_REFUSED |= {
    "403": _REFUSED["AccessDenied"], "301": _REFUSED["PermanentRedirect"],
}  # fmt: skip
_PASSING = "Run again to continue; what was finished is safe."


@dataclass(frozen=True)
class Storage:
    """A client of S3, and what goes with each of its requests."""

    client: Any
    extra: Mapping[str, Any]
    settings: CloudSettings

    @property
    def connections(self) -> int:
        """How many transfers go on at once."""
        return self.settings.connections

    def impatient(self, timeout_s: float = 10, attempts: int = 3) -> "Storage":
        """The same that gives a request up sooner: for what is tried again anyway, and for a job that has to stop."""
        return connect(self.settings, timeout_s=timeout_s, attempts=attempts)


def connect(settings: CloudSettings, *, timeout_s: float = _TIMEOUT_S, attempts: int = _ATTEMPTS) -> Storage:
    """A client by the settings; credentials and region are found as boto3 finds them, or the region by AWS_REGION.

    Args:
        timeout_s: of waiting for a connection, or for bytes.
        attempts: of a request, with growing pauses.

    Raises:
        SettingsError: the endpoint is no address, or has a password in it.
    """
    if settings.endpoint is not None and "@" in settings.endpoint:
        raise SettingsError(f"--cloud.endpoint: an address with a user or password in it is not used. {_CREDENTIALS}.")
    options = ClientConfig(
        connect_timeout=timeout_s, read_timeout=timeout_s, max_pool_connections=settings.connections + 4,
        retries={"mode": "standard", "total_max_attempts": attempts},
        s3={"addressing_style": "path"} if settings.path_style else {},
        signature_version=botocore.UNSIGNED if settings.anonymous else None,
        # Storages that speak S3 may not know the newer checksums; what is sent is verified by its ETag instead.
        request_checksum_calculation="when_required" if settings.endpoint else None,
    )  # fmt: skip
    try:
        session = boto3.Session()
        # Unlike other tools, boto3 does not read AWS_REGION, which containers of clouds are given.
        region = session.region_name or os.environ.get("AWS_REGION") or "us-east-1"
        client = session.client("s3", endpoint_url=settings.endpoint, config=options, region_name=region)
    except (ValueError, botocore.exceptions.BotoCoreError) as fault:
        raise SettingsError(f"--cloud.endpoint {shown(settings.endpoint)}: {shown(fault)}") from fault
    extra = {"RequestPayer": "requester"} if settings.requester_pays else {}
    return Storage(client, extra, settings)


@contextlib.contextmanager
def faults(place: Place) -> Iterator[None]:
    """Raise what S3 refuses with what to do about it.

    Raises:
        InputError: a bucket or object is not there, access is denied, or the clock is wrong.
        RetryableError: the network or the storage failed, and went on failing.
    """
    try:
        yield
    except (botocore.exceptions.BotoCoreError, boto3.exceptions.Boto3Error, botocore.exceptions.ClientError) as fault:
        raise _error(fault, place) from fault


def code_of(fault: botocore.exceptions.ClientError) -> str:
    """The code of a refusal: "NoSuchKey", "412", …"""
    return str(fault.response.get("Error", {}).get("Code", ""))


def _error(fault: Exception, place: Place) -> BirdtuneError:
    cause = fault
    # s3transfer reports in words of its own what a request met.
    while not isinstance(cause, botocore.exceptions.ClientError) and isinstance(cause.__context__, Exception):
        cause = cause.__context__
    where = shown(place)
    if isinstance(cause, botocore.exceptions.ClientError):
        code = code_of(cause)
        if code in ("NoSuchKey", "404"):
            return RetryableError(f"{where}: is gone; something removed it meanwhile. {_PASSING}")
        if code in _REFUSED:
            headers = cause.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
            region = headers.get("x-amz-bucket-region")
            sentence = _REFUSED[code].format(
                region=f" ({shown(region)})" if region else "", operation=cause.operation_name
            )
            return InputError(f"{where}: {sentence}")
        message = shown(str(cause.response.get("Error", {}).get("Message", ""))[:200])
        return RetryableError(f"{where}: S3 refused ({shown(code)}: {message}). {_PASSING}")
    if isinstance(fault, botocore.exceptions.NoCredentialsError | botocore.exceptions.PartialCredentialsError):
        return InputError(
            f"{where}: no credentials were found. {_CREDENTIALS}; public buckets need none: --cloud.anonymous true."
        )
    if isinstance(fault, botocore.exceptions.ParamValidationError | botocore.exceptions.ProfileNotFound):
        return InputError(f"{where}: {shown(fault)}")
    return RetryableError(f"{where}: S3 cannot be reached ({shown(str(fault)[:200])}). {_PASSING}")
