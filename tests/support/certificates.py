"""Keys and certificates for the tests, made by the ``openssl`` command: CAs, and certificates that are valid or not.

Each is made when a test first needs it, and only once. A certificate takes two processes, a CA one, of about 5 ms each:
the keys are on elliptic curves.
"""

import functools
import os
import subprocess
from typing import NamedTuple

from . import DEADLINE

CONFIGURATION = """\
[req]
distinguished_name = nothing
[nothing]
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[holder]
basicConstraints = critical, CA:FALSE
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = {names}
"""


class Pair(NamedTuple):
    """The paths of a certificate and its key."""

    certificate: str
    key: str


class Certificates:
    """All of them, in ``folder``. ``authority`` issues each except ``stranger``, which ``other_authority`` issues."""

    def __init__(self, folder):
        self.folder = str(folder)

    @functools.cached_property
    def authority(self):
        return self._make("authority", "/CN=The tests' CA", None)

    @functools.cached_property
    def other_authority(self):
        return self._make("other", "/CN=Some other CA", None)

    @functools.cached_property
    def server(self):
        return self.issue("server", "/CN=localhost")

    @functools.cached_property
    def next_server(self):
        """The certificate that replaces the server's."""
        return self.issue("next", "/CN=localhost/O=Next")

    @functools.cached_property
    def expired(self):
        return self.issue("expired", "/CN=localhost", days=0)

    @functools.cached_property
    def misnamed(self):
        """The certificate of another host."""
        return self.issue("misnamed", "/CN=elsewhere.example", "DNS:elsewhere.example")

    @functools.cached_property
    def client(self):
        return self.issue("client", "/O=Example/CN=alice")

    @functools.cached_property
    def expired_client(self):
        return self.issue("expired-client", "/CN=late", days=0)

    @functools.cached_property
    def stranger(self):
        return self.issue("stranger", "/CN=mallory", issuer=self.other_authority)

    @functools.cached_property
    def locked_key(self):
        """The server's key, encrypted with a password."""
        path = self._path("locked.key")
        openssl("pkcs8", "-topk8", "-in", self.server.key, "-out", path, "-passout", "pass:secret")
        return path

    def issue(self, name, subject, names="DNS:localhost,IP:127.0.0.1", *, days=30, issuer=None):
        """A certificate of ``subject``, in the form ``/O=Example/CN=alice``.

        ``days=0`` makes one that has expired: openssl 3.6 rejects an end before the beginning.
        """
        return self._make(name, subject, issuer or self.authority, names, days)

    def _make(self, name, subject, issuer, names="DNS:localhost", days=30):
        pair = Pair(self._path(f"{name}.pem"), self._path(f"{name}.key"))
        configuration, unsigned = self._path(f"{name}.cnf"), self._path(f"{name}.csr")
        with open(configuration, "w", encoding="utf-8") as file:
            file.write(CONFIGURATION.format(names=names))
        request = [
            *("req", "-new", "-config", configuration, "-utf8", "-subj", subject),
            *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", pair.key),
        ]
        if issuer is None:
            openssl(
                *request, "-x509", "-sha256", "-days", str(days), "-extensions", "authority", "-out", pair.certificate
            )
        else:
            openssl(*request, "-out", unsigned)
            openssl(
                *("x509", "-req", "-in", unsigned, "-out", pair.certificate, "-days", str(days), "-sha256"),
                *(
                    "-CA",
                    issuer.certificate,
                    "-CAkey",
                    issuer.key,
                    "-CAserial",
                    self._path("serial"),
                    "-CAcreateserial",
                ),
                *("-extfile", configuration, "-extensions", "holder"),
            )
        return pair

    def _path(self, name):
        return os.path.join(self.folder, name)


def openssl(*arguments):
    done = subprocess.run(
        ["openssl", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == 0, done.stdout.decode(errors="replace")
