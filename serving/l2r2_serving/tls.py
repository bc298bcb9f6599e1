"""TLS and mTLS: certificates that are checked before the server listens, and taken up anew when they are renewed."""

from __future__ import annotations

import ipaddress
import logging
import ssl
import time
from pathlib import Path

import grpc

from l2r2.errors import ConfigError
from l2r2_serving.auth import read_callers
from l2r2_serving.renewing import RenewedFiles
from l2r2_serving.settings import ServerSettings, TlsSettings

_log = logging.getLogger(__name__)


def credentials(settings: TlsSettings) -> grpc.ServerCredentials:
    """What a server listens with.

    With `client_ca` a caller without a certificate from it is not heard. Renewed files are read at the next handshake;
    while they are being written or do not fit together the old ones are used.

    Raises:
        ConfigError: a file is missing or no PEM, the key is not the certificate's, or that has expired.
    """
    found = _Renewing(settings)
    return grpc.dynamic_ssl_server_credentials(found.current, found.renewed, settings.client_ca is not None)


def require_safe(settings: ServerSettings) -> None:
    """Refuse plain text where others can read it, unless it was asked for, and a list of certificates never asked for.

    Raises:
        ConfigError: it would leave this machine; or callers are listed who cannot show who they are.
    """
    if settings.tls is None and not settings.insecure and not is_loopback(settings.host):
        raise ConfigError(
            f"{settings.host} is not loopback, and photographs would travel as plain text; give --tls-certificate and "
            "--tls-key, or --insecure where something else encrypts"
        )
    asked = settings.tls is not None and settings.tls.client_ca is not None
    if settings.tokens is not None and not asked and read_callers(settings.tokens).certificates:
        raise ConfigError(
            f"{settings.tokens} lists certificates, but callers are asked for none; give --tls-client-ca, or take them "
            "out: l2r2 token NAME --revoke"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address; a name but localhost may be anywhere."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost" or host.startswith("unix:")


class _Renewing:
    """Certificates as they are on disk now, if they are good."""

    def __init__(self, settings: TlsSettings) -> None:
        self._settings = settings
        self._files = RenewedFiles(_files(settings))
        self.current = _load(settings)

    def renewed(self) -> grpc.ServerCertificateConfiguration | None:
        """Called by gRPC at each handshake; None: as before."""
        try:
            found = self._files.reread(lambda: _load(self._settings))
        except ConfigError as error:
            _log.error("the new certificate is refused, the old one is used on: %s", error)
            return None
        if found is None:
            return None
        self.current = found
        _log.warning("a new certificate is used from now on: %s", self._settings.certificate)
        return self.current


def _files(settings: TlsSettings) -> list[Path]:
    return [path for path in (settings.certificate, settings.key, settings.client_ca) if path is not None]


def _load(settings: TlsSettings) -> grpc.ServerCertificateConfiguration:
    texts = {}
    for path in _files(settings):
        try:
            texts[path] = path.read_bytes()
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}; expected a PEM file for TLS") from None
    _check(settings)
    if settings.client_ca is not None:
        _check_roots(settings.client_ca)
    return grpc.ssl_server_certificate_configuration(
        [(texts[settings.key], texts[settings.certificate])],
        None if settings.client_ca is None else texts[settings.client_ca],
    )


def _check_roots(path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_verify_locations(path)
    except ssl.SSLError:
        raise ConfigError(f"{path} holds no certificate; expected those that callers' own come from, as PEM") from None
    now, roots = time.time(), context.get_ca_certs()
    if not roots:
        raise ConfigError(f"{path} holds no certificate of an authority; expected those that callers' own come from")
    if all(ssl.cert_time_to_seconds(str(root["notAfter"])) < now for root in roots):
        raise ConfigError(f"the certificate of {path} is not good now: it has expired; expected one that is")


def _check(settings: TlsSettings) -> None:
    """Shake hands in memory with a caller that trusts this very certificate: it fits its key, and its time is now."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        server.load_cert_chain(settings.certificate, settings.key, password=_no_passphrase)
    except ssl.SSLError as error:
        why = "is not of" if "KEY_VALUES_MISMATCH" in str(error) else "cannot be used with"
        raise ConfigError(
            f"the key {settings.key} {why} the certificate {settings.certificate} ({_reason(error)}); expected both as "
            "PEM, the key without a passphrase"
        ) from None
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    client.load_verify_locations(settings.certificate)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    try:
        for _ in range(4):
            for end in ends:
                try:
                    end.do_handshake()
                except ssl.SSLWantReadError:
                    continue
    except ssl.SSLCertVerificationError as error:
        raise ConfigError(
            f"the certificate {settings.certificate} is not good now: {error.verify_message}; expected one that is"
        ) from None
    except ssl.SSLError as error:
        raise ConfigError(f"the certificate {settings.certificate} cannot be used: {_reason(error)}") from None


def _no_passphrase() -> str:
    return ""  # else OpenSSL asks for one on the terminal


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or str(error) or "unknown").lower().replace("_", " ")
