"""TLS contexts from PEM files, for both command lines: a side's own certificate, and the CAs that it trusts.

It reads files and knows no socket. Any problem with a file is a ``ValueError``, whose message is one line and names the
file. Each file is read once, and checked, before OpenSSL gets it: OpenSSL passes over what it does not recognize, and
must not do that with a list of revoked certificates.
"""

from __future__ import annotations

import binascii
import re
import ssl
import sys
import weakref
from typing import Any, Callable, ContextManager, NamedTuple, Optional

from ..files import named_copy, read_file, without_marks

_CERTIFICATE = re.compile(rb"-----BEGIN (?:X509 |TRUSTED )?CERTIFICATE-----")
_KEY = re.compile(rb"-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----")
_REVOCATION_LIST = re.compile(rb"-----BEGIN [A-Z0-9 ]*CRL-----")
_CRL_CONTENT = re.compile(rb"-----BEGIN X509 CRL-----(.*?)-----END", re.DOTALL)
_DELTA = b"\x06\x03\x55\x1d\x1b"
"""The identifier 2.5.29.27, which marks a list that only adds to another one (RFC 5280, section 5.2.4)."""

_BLOCK = re.compile(rb"-----BEGIN ((?:X509 |TRUSTED )?CERTIFICATE|X509 CRL)-----.*?-----END \1-----", re.DOTALL)
_PASSED_OVER = re.compile(rb"(?im)[\0-\x08]|^[^\w\n]*(?:BEGIN|END)\W[\w#. \x80-\xff-]*(?:CRL|REVOCATION|PKCS|CMS)")
"""Outside of these blocks: binary data, as which CAs publish their lists, containers, and first or last lines that are
misspelt or alone."""
_HEADING = re.compile(rb"(?im)^[ \t]*Certificate Revocation List \(CRL\)(?::[ \t\r]*$|[ \t\r\n]*\Z)")
"""The line that ``openssl crl -text`` writes before a list and, with ``-noout``, in its place. At the end,
where a full disk may have cut it, it needs no colon."""
_FIRST_LINE = re.compile(rb"-----BEGIN ([^\n-]*)-----")
_ANY_BLOCK = re.compile(rb"-----BEGIN ([^\n-]+)-----.*?-----END \1-----", re.DOTALL)
_BASE64 = re.compile(rb"(?m)^[^\w\n+/]*MI[A-Za-z0-9+/]{58,}={0,2}[ \t\r]*$")
"""The first line of a block's content (in DER, a long sequence). Outside of all blocks: one that has lost its marks."""
_CUT = re.compile(rb"(?m)^-(?:-{0,4}|----B(?:E|EG|EGI|EGIN|EGIN [A-Z0-9 ]*-*)?\s*)\Z")
"""At the end, outside of these blocks: a first line that was cut, by a full disk for example."""


def server_context(
    certificate: str,
    key: Optional[str] = None,
    client_ca: Optional[str] = None,
    *,
    read: Callable[[str], bytes] = read_file,
) -> ssl.SSLContext:
    """The context of a server, from PEM files. The minimum is TLS 1.2.

    ``certificate`` holds the server's certificate with its intermediate certificates, ``key`` its key (default: in the
    same file). With ``client_ca``, a client needs a certificate that this CA has issued and, if the file also holds
    revocation lists (CRLs), one that is not revoked. ``read`` returns a file's content. ``ValueError`` names a file
    that cannot be used.
    """
    context = _context(ssl.PROTOCOL_TLS_SERVER)
    _load_chain(context, certificate, key, read)
    if client_ca is not None:
        _load_authorities(context, _PEM(client_ca, read(client_ca)))
        context.verify_mode = ssl.CERT_REQUIRED
        # The certificate of a session that is resumed is not verified again, so none can be resumed by a ticket.
        # TLSSocket checks the ones that TLS 1.2 resumes without.
        context.options |= ssl.OP_NO_TICKET
        context.num_tickets = 0
    return context


def client_context(
    authorities: Optional[str] = None,
    certificate: Optional[str] = None,
    key: Optional[str] = None,
    *,
    verify: bool = True,
    read: Callable[[str], bytes] = read_file,
) -> ssl.SSLContext:
    """The context of a client, from PEM files. The minimum is TLS 1.2.

    The server's certificate and host name are verified with the CAs, and the revocation lists if there are any, in
    ``authorities`` (default: the system's CAs), unless ``verify`` is false. ``certificate`` and ``key`` are the
    client's own, for a server that asks for them. ``read`` returns a file's content. ``ValueError`` names a file that
    cannot be used.
    """
    context = _context(ssl.PROTOCOL_TLS_CLIENT)
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif authorities is None:
        context.load_default_certs()
    else:
        _load_authorities(context, _PEM(authorities, read(authorities)))
    if certificate is not None:
        _load_chain(context, certificate, key, read)
    return context


def _context(protocol: Any) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    return context


class _PEM(NamedTuple):
    """A file and its content."""

    path: str
    content: bytes

    def has(self, pattern: re.Pattern[bytes]) -> bool:
        return pattern.search(without_marks(self.content)) is not None

    def for_openssl(self) -> ContextManager[str]:
        """A path to read the content from. It is not the file's own: another program may write to that now. Not every
        version of OpenSSL passes over a byte-order mark."""
        return named_copy(without_marks(self.content))


def _load_chain(context: ssl.SSLContext, certificate: str, key: Optional[str], read: Callable[[str], bytes]) -> None:
    chain = _PEM(certificate, read(certificate))
    own = chain if key is None or key == certificate else _PEM(key, read(key))
    try:
        with chain.for_openssl() as chain_path, own.for_openssl() as key_path:
            # Without this, OpenSSL would ask for a password at the terminal, and a service would hang.
            context.load_cert_chain(chain_path, key_path, password=lambda: _no_password(own.path))
    except ssl.SSLError as exc:
        raise ValueError(_explain(exc, chain, own)) from None
    except OSError as exc:  # no descriptor for a copy, for example
        raise ValueError(f"cannot read {chain.path} or {own.path}: {exc.strerror}") from exc


def _explain(exc: ssl.SSLError, chain: _PEM, own: _PEM) -> str:
    if not (chain.has(_CERTIFICATE) and own.has(_KEY)):
        if own is chain:
            return f"{chain.path} holds no certificate with its key, as PEM; name the key's file, too"
        lacks = f"{own.path} holds no private key" if chain.has(_CERTIFICATE) else f"{chain.path} holds no certificate"
        return f"{lacks}, as PEM"
    if exc.reason in ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED"):
        return f"the key in {own.path} is not that of the certificate in {chain.path}"
    return f"cannot use the certificate in {chain.path} with the key in {own.path}: {_reason(exc)}"


def _reason(exc: ssl.SSLError) -> str:
    """OpenSSL's reason. It has none for data that cannot be decoded."""
    return exc.reason.lower().replace("_", " ") if exc.reason else "one of its blocks is damaged"


def _no_password(path: str) -> str:
    raise ValueError(f"the key in {path} needs a password; give one without")


_IS_GUARDED = sys.version_info >= (3, 12, 3) or (3, 11, 9) <= sys.version_info < (3, 12)
"""Whether a context may be asked for its lists while another thread shakes hands with it, which may load certificates.
Other versions may crash (CVE-2024-0397); later ones of 3.8 to 3.10 do not, but count as such here."""

_checked: weakref.WeakSet[ssl.SSLContext] = weakref.WeakSet()
"""Contexts of clients that did not ignore their lists when they were asked for the first time."""


def check_server(context: ssl.SSLContext) -> None:
    """``check_revocation``, for a server, before each handshake: lists may be added to a context in use. A server asks
    when it gets the context, too; where CPython may crash, only then."""
    if _IS_GUARDED:
        check_revocation(context)


def check_client(context: ssl.SSLContext) -> None:
    """``check_revocation``, for a client, before each handshake. Where CPython may crash, only before the first one
    with this context."""
    if _IS_GUARDED:
        check_revocation(context)
    elif context.verify_mode != ssl.CERT_NONE and context not in _checked:
        check_revocation(context)
        _checked.add(context)


def check_revocation(context: ssl.SSLContext) -> None:
    """``ValueError`` for a context that has revocation lists and ignores them, as OpenSSL does by default."""
    if context.verify_mode == ssl.CERT_NONE:
        return
    try:
        lists = context.cert_store_stats()["crl"]
    except NotImplementedError:  # truststore: the system verifies, and knows its own lists
        lists = 0
    if lists and not context.verify_flags & ssl.VERIFY_CRL_CHECK_LEAF:
        raise ValueError(
            "ssl_context has revocation lists (CRLs) and ignores them; to reject revoked certificates, set"
            " context.verify_flags |= ssl.VERIFY_CRL_CHECK_CHAIN"
        )


def _load_authorities(context: ssl.SSLContext, authorities: _PEM) -> None:
    if not authorities.has(_CERTIFICATE):
        raise ValueError(f"{authorities.path} holds no certificate, as PEM")
    try:
        with authorities.for_openssl() as path:
            context.load_verify_locations(path)
    except ssl.SSLError as exc:
        raise ValueError(f"cannot use the certificates in {authorities.path}: {_reason(exc)}") from None
    except OSError as exc:
        raise ValueError(f"cannot read {authorities.path}: {exc.strerror}") from exc
    lists = len(_REVOCATION_LIST.findall(without_marks(authorities.content)))
    crls = [b"".join(found.split()) for found in _CRL_CONTENT.findall(without_marks(authorities.content))]
    if lists - (len(crls) - len(set(crls))) != context.cert_store_stats()["crl"]:  # OpenSSL keeps equal ones once
        raise ValueError(f"{authorities.path} holds {lists} revocation lists (CRLs), and not all of them are usable")
    outside = _BLOCK.sub(b"", without_marks(authorities.content))
    if _CUT.search(outside):
        raise ValueError(
            f"{authorities.path} ends in a first line that was cut, maybe of a revocation list (CRL); give it whole"
        )
    if _PASSED_OVER.search(outside):
        raise ValueError(
            f"{authorities.path} holds data that is not PEM, maybe a revocation list (CRL); convert that with"
            " openssl crl -inform DER"
        )
    if _BASE64.search(_ANY_BLOCK.sub(b"", outside)):
        raise ValueError(
            f"{authorities.path} holds data outside of its PEM blocks, maybe a revocation list (CRL); add its first and"
            " last line"
        )
    for after in _HEADING.split(without_marks(authorities.content))[1:]:
        block = _FIRST_LINE.search(after)
        if block is None or block.group(1) != b"X509 CRL":
            raise ValueError(
                f"{authorities.path} holds the text of a revocation list (CRL) that no list follows; give it as PEM"
            )
    if any(_DELTA in binascii.a2b_base64(found) for found in crls):
        raise ValueError(
            f"{authorities.path} holds a delta revocation list (CRL), which OpenSSL ignores; give the complete list"
        )
    if lists:
        # For every certificate of the chain, as nginx and HAProxy do: without a list, its issuer's certificates are
        # rejected.
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_CHAIN
