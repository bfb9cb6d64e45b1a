"""TLS contexts from PEM files, for both command lines: a side's own certificate, and the CAs that it trusts.

It reads files and knows no socket. Any problem with a file is a ``ValueError``, whose message is one line and names the
file.
"""

from __future__ import annotations

import ssl
from typing import Any, Optional


def server_context(certificate: str, key: Optional[str] = None, client_ca: Optional[str] = None) -> ssl.SSLContext:
    """The context of a server, from PEM files. The minimum is TLS 1.2.

    ``certificate`` holds the server's certificate with its intermediate certificates, ``key`` its key (default: in the
    same file). With ``client_ca``, a client needs a certificate that this CA has issued. ``ValueError`` names a file
    that cannot be used.
    """
    context = _context(ssl.PROTOCOL_TLS_SERVER)
    _load_chain(context, certificate, key or certificate)
    if client_ca is not None:
        _load_authorities(context, client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(
    authorities: Optional[str] = None,
    certificate: Optional[str] = None,
    key: Optional[str] = None,
    *,
    verify: bool = True,
) -> ssl.SSLContext:
    """The context of a client, from PEM files. The minimum is TLS 1.2.

    The server's certificate and host name are verified with the CAs in ``authorities`` (default: the system's), unless
    ``verify`` is false. ``certificate`` and ``key`` are the client's own, for a server that asks for them.
    ``ValueError`` names a file that cannot be used.
    """
    context = _context(ssl.PROTOCOL_TLS_CLIENT)
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif authorities is None:
        context.load_default_certs()
    else:
        _load_authorities(context, authorities)
    if certificate is not None:
        _load_chain(context, certificate, key or certificate)
    return context


def _context(protocol: Any) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    return context


def _load_chain(context: ssl.SSLContext, certificate: str, key: str) -> None:
    _check_readable(certificate, key)
    try:
        # Without this, OpenSSL would ask for a password at the terminal, and a service would hang.
        context.load_cert_chain(certificate, key, password=lambda: _no_password(key))
    except ssl.SSLError as exc:
        if exc.reason == "KEY_VALUES_MISMATCH":
            raise ValueError(f"the key in {key} is not that of the certificate in {certificate}") from None
        if key == certificate:
            raise ValueError(
                f"{certificate} holds no certificate with its key, as PEM; name the key's file, too"
            ) from None
        raise ValueError(f"{certificate} and {key} hold no certificate with its key, as PEM") from None
    except OSError as exc:  # one of the files has changed after the check
        raise ValueError(f"cannot read {certificate} or {key}: {exc.strerror}") from None


def _no_password(path: str) -> str:
    raise ValueError(f"the key in {path} needs a password; give one without")


def _load_authorities(context: ssl.SSLContext, path: str) -> None:
    _check_readable(path)
    try:
        context.load_verify_locations(path)
    except ssl.SSLError:
        raise ValueError(f"{path} holds no certificate, as PEM") from None
    except OSError as exc:
        raise ValueError(f"cannot read {path}: {exc.strerror}") from None


def _check_readable(*paths: str) -> None:
    for path in paths:
        try:
            open(path, "rb").close()
        except OSError as exc:
            raise ValueError(f"cannot read {path}: {exc.strerror}") from None
