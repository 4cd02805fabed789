"""Why a request failed, in words, and what to do about it: found in the texts of obstore's errors.

obstore's errors hold what a server answered and the chain of errors below a connection, but only as text. Pure.
Neighbours: `requests` above makes errors of ours of it; what is shown is made fit by `secrets`.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from vstore.errors import (
    AccessDeniedError,
    BucketNotFoundError,
    OutOfSpaceError,
    StorageError,
    UnreachableError,
    WrongEndpointError,
)


class Place(NamedTuple):
    """What a store was told to ask: `service` is obstore's name for its kind, such as "S3".

    `bucket` is empty where there are none; `endpoint` is the one that was given, without secrets. `is_unsigned` if
    requests bear no credentials because that was asked for.
    """

    service: str = ""
    bucket: str = ""
    endpoint: str = ""
    is_unsigned: bool = False

    @property
    def bucket_words(self) -> str:
        kind = "container" if self.service == "Azure" else "bucket"
        return f"the {kind} {self.bucket!r}" if self.bucket else f"the {kind}"


class Cause(NamedTuple):
    """Why a request failed: `finding` continues "could not do this: ", `remedy` is one or more whole sentences.

    `lasts` if the same request fails again. `refuses` if the service itself said no, so that nothing was done.
    """

    error: type[StorageError]
    finding: str
    remedy: str
    lasts: bool = True
    refuses: bool = False


def find_cause(text: str, place: Place) -> Cause | None:
    """Return what the text of an obstore error says of the cause, None if that is nothing known."""
    said = Said.of(text, place)
    provided = _PROVIDER.search(text)
    if provided is not None:
        return _of_provider(provided[1], place)
    if said.is_for_credentials:
        return _of_credentials(said, place)
    if said.is_of_connection:
        return _of_connection(said, place)
    if place.service == "HTTP" and "Error performing PROPFIND" in text and said.status in _LISTS_NOTHING:
        return Cause(
            StorageError,
            f"{said.host} lists no files, as web servers do not (status {said.status})",
            "Do this where the files are.",
            refuses=True,
        )
    return _of_code(said, place) or _of_page(said, place) or _of_unsigned(said, place)


class Said(NamedTuple):
    """The parts of an error's text. `chain` is obstore's own account of the errors below, as Rust prints it."""

    status: int | None
    code: str
    message: str
    body: str
    chain: str
    url: str
    host: str

    @classmethod
    def of(cls, text: str, place: Place) -> Said:
        shown, _, chain = text.partition("\n\nDebug source:")
        found = _STATUS.search(shown)
        url = _URL.search(shown)
        body = shown[found.end() :].lstrip(": \n") if found is not None else ""
        message = _MESSAGE.search(shown)
        return cls(
            status=int(found[1]) if found else None,
            code=code_of(shown),
            message=_shown(message[1] or message[2]) if message else "",
            body=body,
            chain=chain,
            url=url[1] if url else "",
            host=_host_of(url[1] if url else place.endpoint),
        )

    @property
    def is_of_connection(self) -> bool:
        return self.status is None and "HttpError {" in self.chain

    @property
    def is_for_credentials(self) -> bool:
        return _CREDENTIALS_URL.match(self.url) is not None or "TokenRequest {" in self.chain

    @property
    def answer(self) -> str:
        """What the service answered, for people."""
        if self.message:
            return f"{self.code}: {self.message}".rstrip(".")
        return self.code or (
            f"status {self.status}" if self.status is not None else "it says that it is not here"
        )


_STATUS = re.compile(r"status code: (\d{3})(?: [A-Za-z '-]+)?")
_CODE = re.compile(r"<Code>\s*([\w.]+)\s*</Code>|\(code: (\w+)\)")
_MESSAGE = re.compile(r"<Message>([^<]*)<|for key [^\n]*?: ([^\n]*) \(code")
_URL = re.compile(r"Error performing [A-Z]+ (https?://\S+) in ")
_CREDENTIALS_URL = re.compile(r"http://(169\.254\.\d+\.\d+|\[fd00:ec2|metadata)")
_LISTS_NOTHING = frozenset({400, 403, 404, 405, 501})
_PROVIDER = re.compile(r"External \w+ credential provider: ([^\n]{1,300})")
_PAGE = re.compile(r"\s*(<!doctype html|<html|<head|<body)", re.IGNORECASE)
_TITLE = re.compile(r"<title>([^<]{1,100})</title>", re.IGNORECASE)
_SYSTEM_MESSAGE = re.compile(r'(?:message|error): "([^"]{1,200})"')
_ADDRESS = re.compile(r'"tcp connect error",\s*([\d.]+:\d+|\[[\da-fA-F:.%]+\]:\d+),')
_CERTIFICATE = re.compile(r"InvalidCertificate\(\s*(\w+)(?:\(\s*OtherError\(\s*(\w+))?")
_TLS = re.compile(r"AlertReceived\(\s*(\w+)|PeerIncompatible\(\s*(\w+)|PeerMisbehaved\(\s*(\w+)")
_EXPECTS_TLS = re.compile(r"HTTP request (?:was sent )?to an? HTTPS (?:port|server)", re.IGNORECASE)
_REGION = re.compile(r"expecting '([\w-]+)'|<Region>([\w-]+)</Region>")
_SERVER_TIME = re.compile(r"<ServerTime>([\w:.+-]{1,40})</ServerTime>")
_SHOWN_CHARACTERS = 300


def code_of(text: str) -> str:
    """Return the service's code in the text of an error, or ""."""
    found = _CODE.search(text)
    return (found[1] or found[2]) if found else ""


def _shown(message: str) -> str:
    """Return a service's message as one line; Azure's end with lines for its operators."""
    return " ".join(message.partition("RequestId:")[0].split())[:_SHOWN_CHARACTERS]


def _host_of(url: str) -> str:
    """Return scheme, host and port of `url`, without user and password."""
    found = re.match(r"(https?://)(?:[^/?#]*@)?([^/?#\s]+)", url)
    return found[1] + found[2] if found else "the service"


# --- what a service answers ------------------------------------------------------------------------------------

_NO_BUCKET = frozenset({"NoSuchBucket", "ContainerNotFound", "ContainerBeingDeleted", "ContainerDisabled"})
_BAD_BUCKET_NAME = frozenset({"InvalidBucketName", "InvalidResourceName"})
_ELSEWHERE = frozenset({"PermanentRedirect", "TemporaryRedirect", "IllegalLocationConstraintException"})
_CLOCK = frozenset({"RequestTimeTooSkewed", "RequestInTheFuture"})
_EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"})
_NOT_ACCEPTED = frozenset(
    {
        "AuthFailure",
        "AuthenticationFailed",
        "AuthenticationRequired",
        "AuthorizationFailure",
        "AuthorizationHeaderMalformed",
        "InvalidAccessKeyId",
        "InvalidAuthenticationInfo",
        "InvalidClientTokenId",
        "InvalidSecurity",
        "InvalidToken",
        "MissingSecurityHeader",
        "NoAuthenticationInformation",
        "NotSignedUp",
        "SignatureDoesNotMatch",
        "UnrecognizedClientException",
    }
)
_DENIED = frozenset(
    {
        "AccessDenied",
        "AccountIsDisabled",
        "AccountProblem",
        "AllAccessDisabled",
        "AuthorizationPermissionMismatch",
        "Forbidden",
        "InsufficientAccountPermissions",
        "KMS.DisabledException",
        "PublicAccessNotPermitted",
    }
)
_ARCHIVED = frozenset({"InvalidObjectState", "BlobArchived"})
_FULL = frozenset({"QuotaExceeded", "XMinioStorageFull", "InsufficientStorage", "AccountLimitExceeded"})


def _of_code(said: Said, place: Place) -> Cause | None:
    found = _meaning_of_code(said, place)
    refuses = said.status is not None and 300 <= said.status < 500
    return found and found._replace(refuses=refuses)


def _meaning_of_code(said: Said, place: Place) -> Cause | None:
    code, answer, bucket = said.code, said.answer, place.bucket_words
    if code in _NO_BUCKET:
        return Cause(
            BucketNotFoundError,
            f"there is no {bucket.removeprefix('the ')} at {said.host} ({answer})",
            "Check its name, and the endpoint, region or account; vstore makes none: create it with the tools of the "
            "service.",
        )
    if code in _BAD_BUCKET_NAME:
        return Cause(
            BucketNotFoundError, f"{bucket} has a name that none can have ({answer})", "Correct the name."
        )
    if "BareRedirect" in said.chain or code in _ELSEWHERE or _is_wrong_region(said):
        region = _REGION.search(said.body)
        named = f", {region[1] or region[2]}" if region else ""
        return Cause(
            WrongEndpointError,
            f"{bucket} is in another region{named} ({answer})",
            'Give the region of the bucket: storage_options={"region": ...}, or AWS_REGION; `aws s3api '
            "get-bucket-location --bucket NAME` tells it. For other services than AWS check the endpoint.",
        )
    if code in _CLOCK or (code in _NOT_ACCEPTED and "date header too old" in said.body):
        its = _SERVER_TIME.search(said.body)
        return Cause(
            AccessDeniedError,
            f"this machine's clock differs too much from that of the service ({answer})",
            f"Set the clock{f'; it was {its[1]} there' if its else ''}.",
        )
    if code in _EXPIRED or "not valid in the specified time frame" in said.body:
        return Cause(
            AccessDeniedError,
            f"the credentials have expired ({answer})",
            "Get new ones and open the repository with them; a credential_provider renews them in time.",
        )
    if code in _NOT_ACCEPTED:
        return Cause(
            AccessDeniedError,
            f"the credentials are not accepted ({answer})",
            "Check the key and its secret, for temporary ones also the token, and that they are for "
            f"{place.endpoint or 'this service'}.",
        )
    if code == "UserProjectMissing":
        return Cause(
            AccessDeniedError,
            f"readers of {bucket} pay for it ({answer})",
            'Name who pays: storage_options={"client_options": {"default_headers": {"x-goog-user-project": ...}}}.',
        )
    if code in _DENIED:
        return _denied(answer, place)
    if code in _ARCHIVED:
        return Cause(
            StorageError,
            f"it was moved to an archive ({answer})",
            "Restore it with the tools of the service, and take the rule that archives off this location.",
        )
    if code in _FULL or said.status == 507:
        return Cause(OutOfSpaceError, f"the storage or quota is full ({answer})", "Make room, or raise it.")
    return None


def _is_wrong_region(said: Said) -> bool:
    return said.code in ("AuthorizationHeaderMalformed", "SignatureDoesNotMatch", "InvalidRegion") and (
        _REGION.search(said.body) is not None
    )


def _denied(answer: str, place: Place) -> Cause:
    pays = " If its readers pay, give request_payer=True." if place.service == "S3" else ""
    return Cause(
        AccessDeniedError,
        f"access is denied ({answer})",
        f"Check the credentials, and that they allow to read, list and, for changes, write and delete below this "
        f"location in {place.bucket_words}.{pays}",
    )


def _of_page(said: Said, place: Place) -> Cause | None:
    """Return the cause of an answer that no object store gives: a web page, a redirection, a method refused."""
    if _EXPECTS_TLS.search(said.body):
        return Cause(
            WrongEndpointError,
            f"{said.host} expects TLS, and was spoken to without",
            f"Write {said.host.replace('http://', 'https://', 1)} for the endpoint.",
        )
    if place.service in ("", "HTTP"):
        return None
    title = _TITLE.search(said.body)
    shown = f"a web page{f' ({title[1].strip()!r})' if title else ''} with status {said.status}"
    is_page = _PAGE.match(said.body) is not None
    if said.status in (401, 403) and is_page:
        return Cause(
            AccessDeniedError,
            f"{said.host} answered {shown}, which no {place.service} service does",
            "Check the endpoint, and whether a proxy or a firewall answers in its place.",
            refuses=True,
        )
    is_elsewhere = said.status in (302, 303, 307, 308)
    if is_elsewhere or said.status == 405 or (is_page and said.status is not None and said.status < 500):
        if is_elsewhere:
            shown = "by sending on to another address"
        elif not is_page:
            shown = f"that it does not know the request (status {said.status})"
        return Cause(WrongEndpointError, f"{said.host} answered {shown}", _wrong(place))
    return None


def _of_unsigned(said: Said, place: Place) -> Cause | None:
    """Return the cause of a 400 without a reason, or with that of a missing signature (rclone's)."""
    if not place.is_unsigned or said.status != 400 or said.code not in ("", "UnsupportedAlgorithm"):
        return None
    return Cause(
        AccessDeniedError,
        f"{said.host} did not accept a request without credentials ({said.answer})",
        "skip_signature=True is for public data: give credentials in its place.",
        refuses=True,
    )


def _wrong(place: Place) -> str:
    return (
        f"That is no {place.service} service: check the endpoint. Many services have their web console on another "
        "port; in between may be a proxy, or a network that wants a log-in first."
    )


# --- connections -----------------------------------------------------------------------------------------------


def _of_connection(said: Said, place: Place) -> Cause | None:
    chain, host = said.chain, said.host
    system, address = _SYSTEM_MESSAGE.search(chain), _ADDRESS.search(chain)
    reason = f" ({system[1]})" if system else ""
    if system and address and address[1] not in host:
        # Of a name, or of a proxy.
        reason = f" ({address[1]}: {system[1]})"
    if "kind: Redirect" in chain and place.service != "HTTP":
        return Cause(
            WrongEndpointError, f"{host} answered by sending on, again and again", _wrong(place), refuses=True
        )
    if "ConnectFailed(" in chain or "TunnelUnsuccessful" in chain:
        return Cause(
            UnreachableError,
            f"the proxy on the way to {host} can't be used{reason}",
            "Check proxy_url in client_options, or HTTPS_PROXY and NO_PROXY in the environment.",
            lasts=False,
        )
    certificate = _CERTIFICATE.search(chain)
    if certificate is not None:
        return _of_certificate(certificate[2] or certificate[1], host)
    if "InvalidMessage(" in chain:
        return Cause(
            WrongEndpointError,
            f"{host} does not speak TLS",
            f"If it is meant to be plain, write {host.replace('https://', 'http://', 1)}.",
        )
    tls = _TLS.search(chain)
    if tls is not None:
        return Cause(
            UnreachableError,
            f"TLS with {host} failed ({tls[1] or tls[2] or tls[3]})",
            "Check the port, and which versions of TLS the server has; obstore speaks 1.2 and 1.3.",
        )
    if '"dns error"' in chain:
        return Cause(
            UnreachableError, f"the host of {host} is not known{reason}", _name_to_check(host), False
        )
    if "tcp connect error" in chain:
        if "ConnectionRefused" in chain:
            finding, remedy = f"nothing listens at {host}{reason}", "Check host and port, and that it runs."
        elif "TimedOut" in chain:
            finding = f"no connection to {host} came about in time"
            remedy = "Check host and port, and whether a firewall or a missing VPN is in the way."
        else:
            finding, remedy = f"{host} can't be reached{reason}", "Check this machine's network."
        return Cause(UnreachableError, finding, remedy, False)
    if "TimedOut" in chain:
        remedy = (
            "Check the endpoint and the service; for a slow one raise the storage option attempt_timeout_s."
        )
        if "Connect" in chain and host.startswith("https://"):
            remedy = (
                f"If the port is meant to be plain, write {host.replace('https://', 'http://', 1)}. {remedy}"
            )
        return Cause(UnreachableError, f"{host} did not answer in time", remedy, False)
    if "Parse(" in chain:
        return Cause(
            WrongEndpointError, f"what answers at {host} does not speak HTTP", "Check host and port.", False
        )
    if "SendRequest" in chain:
        closed = f"{host} closed the connection without an answer{reason}"
        tip = " If the port expects TLS, write https://." if host.startswith("http://") else ""
        return Cause(UnreachableError, closed, f"Check the service, then try again.{tip}", False)
    return None


def _of_certificate(problem: str, host: str) -> Cause:
    if problem.startswith("NotValidForName"):
        remedy = "It is for another host: write the name that is in it."
    elif problem.startswith(("Expired", "NotValidYet")):
        remedy = "Check this machine's clock, and have the server's certificate renewed."
    else:
        remedy = (
            "For a server with an authority of its own give that one's certificate: storage_options="
            '{"client_options": {"root_certificate": Path("ca.pem").read_bytes()}}.'
        )
    return Cause(UnreachableError, f"the certificate of {host} is not trusted ({problem})", remedy)


def _name_to_check(host: str) -> str:
    if "amazonaws.com" in host:
        return "Check the region and the bucket's name, which it is made of, and this machine's network."
    if ".core.windows.net" in host:
        return "Check account_name, which it is made of, and this machine's network."
    return "Check the name, and this machine's network."


def _of_credentials(said: Said, place: Place) -> Cause:
    """Return the cause of a request for credentials that failed; the store itself was asked nothing."""
    if _CREDENTIALS_URL.match(said.url) is not None:
        return Cause(
            AccessDeniedError,
            "no credentials were given, none are in the environment, and this machine's own could not be asked for "
            f"({said.host}: {said.answer if said.status else 'not reached'})",
            f"Give credentials, or skip_signature=True for public data.{_FILES if place.service == 'S3' else ''}",
            lasts=said.status is not None and said.status < 500,
            refuses=True,
        )
    return Cause(
        AccessDeniedError,
        f"{said.host} gave no token for the credentials ({said.answer})",
        "Check the credentials, and that this machine can reach that address.",
        lasts=said.status is not None and said.status < 500,
        refuses=True,
    )


_FILES = " Profiles in ~/.aws are read by obstore.auth.boto3.Boto3CredentialProvider() alone, as credential_provider."

_PROVIDED = {
    "S3": '{"access_key_id": ..., "secret_access_key": ..., "token": ... or None, "expires_at": ...}',
    "Google": '{"token": ..., "expires_at": ...}',
    "Azure": '{"access_key": ..., "expires_at": ...}, or "sas_token" or "token" in place of "access_key"',
}


def _of_provider(raised: str, place: Place) -> Cause:
    return Cause(
        AccessDeniedError,
        f"the credential_provider gave no credentials ({raised.rstrip('.')})",
        f"It must return {_PROVIDED.get(place.service, 'credentials')}, where expires_at is a datetime with a time "
        "zone, or None for never.",
        refuses=True,
    )
