"""TLS in words for people: why a handshake failed, and who a certificate is for.

It turns errors and certificates into text. It knows no socket.
"""

from __future__ import annotations

import re
import ssl
from itertools import starmap
from time import time
from typing import Any, Dict, Optional, Union

from ..text import printable


def explain(exc: BaseException) -> str:
    """Why a handshake, or a read or write after it, has failed."""
    if isinstance(exc, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted: {exc.verify_message.rstrip('.')}"
    if isinstance(exc, ssl.SSLError):
        reason = str(exc.reason or "")
        if "ALERT_" in reason:
            alert = reason.partition("ALERT_")[2].lower().replace("_", " ")
            return f"the peer says: {_ALERTS.get(alert, alert)}"
        if reason in _NOT_TLS:
            return "the data received is not TLS"
        return _REASONS.get(reason, reason.lower().replace("_", " ") or str(exc))
    if isinstance(exc, OSError):
        return exc.strerror or str(exc)
    return str(exc)


def check_certificate(tls: ssl.SSLObject, context: ssl.SSLContext) -> None:
    """Raise ``ssl.SSLCertVerificationError`` for a client that OpenSSL accepts, and that must not get in. ``context``
    is the server's own. A ``sni_callback`` may have chosen another one, whose mode OpenSSL does not look at."""
    chosen = tls.context
    required = ssl.CERT_REQUIRED in (context.verify_mode, chosen.verify_mode)
    if tls.session_reused:  # OpenSSL has verified the first session only
        given = tls.getpeercert(True) is not None
        try:
            if chosen.verify_mode == ssl.CERT_NONE:  # Python shows no certificate then
                tls.context = context
            certificate = tls.getpeercert()
        except (ValueError, ssl.SSLError):  # its texts are not in the encoding that they claim
            raise _rejected(1, "it cannot be decoded, and so not be verified again") from None
        finally:
            tls.context = chosen
        if certificate and ssl.cert_time_to_seconds(str(certificate["notAfter"])) < time():
            raise _rejected(10, "certificate has expired")
        if required and not given:
            raise _rejected(1, "the session began without a certificate")
    elif required and (chosen is not context or getattr(context, "post_handshake_auth", False)):
        if tls.getpeercert(True) is None:
            raise _rejected(1, "there is none, and one is required (by sni_callback, or with post_handshake_auth)")


def _rejected(code: int, message: str) -> ssl.SSLCertVerificationError:
    """``code``: of OpenSSL's ``X509_V_ERR``; 1 is "unspecified", 10 "has expired"."""
    rejected = ssl.SSLCertVerificationError(message)
    rejected.verify_code, rejected.verify_message = code, message
    return rejected


_NOT_TLS = {
    "BAD_RECORD_TYPE",
    "HTTP_REQUEST",
    "HTTPS_PROXY_REQUEST",
    "PACKET_LENGTH_TOO_LONG",
    "UNKNOWN_PROTOCOL",
    "WRONG_VERSION_NUMBER",
}
_REASONS: Dict[str, str] = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "it gave no certificate",
    "UNSUPPORTED_PROTOCOL": "it offers only versions of TLS that are too old",
    "NO_SHARED_CIPHER": "it offers no cipher that is allowed here, or the server has no certificate",
    "RECORD_LAYER_FAILURE": "the data received is not TLS, or was damaged",  # OpenSSL 3.6 does not say which
}
_ALERTS: Dict[str, str] = {  # RFC 8446, section 6.2: those whose name alone does not say what to do
    "unknown ca": "unknown CA; it does not trust the issuer of the certificate",
    "certificate required": "a client certificate is required",
    "handshake failure": "handshake failure; versions, ciphers or certificates do not match",
    "protocol version": "protocol version; it supports none of the offered versions of TLS",
}


def format_subject(certificate: Any) -> Optional[str]:
    """The subject of a certificate, as ``getpeercert`` returns it, in the form of RFC 4514: ``CN=alice,O=Example``.

    It is safe to show. None without a certificate.
    """
    if not certificate:
        return None
    names = ["+".join(starmap(_attribute, pairs)) for pairs in reversed(certificate.get("subject", ()))]
    return printable(",".join(names))


def _attribute(name: str, value: Union[str, bytes]) -> str:
    if isinstance(value, bytes):  # the content of a BIT STRING, as a unique identifier is; Python gives no more of it
        return f"{_SHORT_NAMES.get(name, name)}=#{value.hex()}"
    # Escaped so that no value can look like another attribute (RFC 4514, section 2.4).
    return f"{_SHORT_NAMES.get(name, name)}={re.sub(_SPECIAL, _ESCAPED, value)}"


_SPECIAL = r'^[# ]|[,+"\\<>;]| $'
_ESCAPED = r"\\\g<0>"

_SHORT_NAMES = {  # RFC 4514, section 3
    "commonName": "CN",
    "localityName": "L",
    "stateOrProvinceName": "ST",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "countryName": "C",
    "streetAddress": "STREET",
    "domainComponent": "DC",
    "userId": "UID",
}
