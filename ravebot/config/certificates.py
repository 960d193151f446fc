"""Reads a file of certificates that are to be trusted, so that a wrong one is told when ravebot starts."""

from __future__ import annotations

import ssl
import stat
from pathlib import Path

MAX_BYTES = 1024 * 1024


def check_certificates(path: Path) -> None:
    """Raises ValueError, which says what to do, unless the file has certificates in PEM."""
    try:
        facts = path.stat()  # opening a named pipe could wait for ever
        if not stat.S_ISREG(facts.st_mode):
            raise ValueError(f"{path} is no regular file: name a file with the CA's certificate")
        if facts.st_size > MAX_BYTES:
            raise ValueError(f"{path} is larger than 1 MiB: put only the CA's certificate in it")
        text = path.read_bytes().decode("ascii", "replace")
    except FileNotFoundError:
        raise ValueError(f"there is no file {path}: put the certificate of GitLab's CA there, in PEM") from None
    except OSError as error:
        raise ValueError(f"{path} can't be read ({error.strerror}): let ravebot's user read it") from error
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=_only_certificates(text))
    except (ssl.SSLError, ValueError) as error:
        raise ValueError(
            f"{path} has no certificate in PEM: it begins with -----BEGIN CERTIFICATE-----; of one in DER,"
            " `openssl x509 -inform der -in FILE` makes PEM"
        ) from error


def _only_certificates(text: str) -> str:
    if "-----BEGIN CERTIFICATE-----" not in text:
        raise ValueError("no certificate")
    return text
