"""TLS and mTLS over real sockets: the right certificate is heard, and every wrong one is not."""

import datetime
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from grpc_health.v1 import health_pb2, health_pb2_grpc

from l2r2.bundle import Bundle
from l2r2.errors import ConfigError
from l2r2_serving import renewing
from l2r2_serving.auth import TokenInterceptor, Tokens, hash_of
from l2r2_serving.settings import ServerSettings, TlsSettings
from l2r2_serving.tls import credentials, is_loopback, require_safe
from l2r2_serving.v1 import recognition_pb2 as pb
from l2r2_serving.v1 import recognition_pb2_grpc
from tests.serving.renewed import aged, put
from tests.serving.running import Running, running
from tests.serving.statuses import reason, refused
from tests.tiny import RED, encode, make_photo

REQUEST = pb.RecognizeRequest(image=encode(make_photo(RED)))
CA, OTHER_CA = trustme.CA(), trustme.CA()
LONG_AGO = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)


def settings(folder: Path, cert: trustme.LeafCert, client_ca: trustme.CA | None = None) -> TlsSettings:
    folder.mkdir(exist_ok=True)
    key, chain = folder / "key.pem", folder / "cert.pem"
    cert.private_key_pem.write_to_path(key)
    chain.write_bytes(b"".join(part.bytes() for part in cert.cert_chain_pems))
    aged(key, chain)
    if client_ca is not None:
        put(folder / "ca.pem", client_ca.cert_pem.bytes())
    return TlsSettings(
        certificate=folder / "cert.pem",
        key=folder / "key.pem",
        client_ca=None if client_ca is None else folder / "ca.pem",
    )


def ask(place: Running, ca: trustme.CA = CA, client: trustme.LeafCert | None = None, host: str = "localhost") -> str:
    """Who answers "red", or the code of a failure."""
    key = None if client is None else client.private_key_pem.bytes()
    chain = None if client is None else b"".join(part.bytes() for part in client.cert_chain_pems)
    safe = grpc.ssl_channel_credentials(ca.cert_pem.bytes(), key, chain)
    with grpc.secure_channel(place.address, safe, [("grpc.ssl_target_name_override", host)]) as channel:
        try:
            return (
                recognition_pb2_grpc.RecognitionServiceStub(channel).Recognize(REQUEST, timeout=10).candidates[0].name
            )
        except grpc.RpcError as error:
            return error.code().name


def test_the_right_ca_hears_the_server_and_no_other_does(bundle: Bundle, tmp_path: Path) -> None:
    with running(bundle, credentials=credentials(settings(tmp_path, CA.issue_cert("localhost")))) as place:
        assert ask(place) == "red"
        assert ask(place, OTHER_CA) == "UNAVAILABLE"
        assert ask(place, host="elsewhere.example") == "UNAVAILABLE"
        with place.stub() as plain, pytest.raises(grpc.RpcError) as caught:
            plain.Recognize(REQUEST, timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert ask(place) == "red"


def self_signed(name: str) -> trustme.LeafCert:
    """A certificate that nobody but itself vouches for, as `openssl req -x509` makes them."""
    own = trustme.CA().issue_cert(name)
    leaf = x509.load_pem_x509_certificate(own.cert_chain_pems[0].bytes())
    key = serialization.load_pem_private_key(own.private_key_pem.bytes(), None)
    made = x509.CertificateBuilder(subject_name=leaf.subject, issuer_name=leaf.subject, public_key=key.public_key())
    made = made.serial_number(1).not_valid_before(leaf.not_valid_before_utc).not_valid_after(leaf.not_valid_after_utc)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    signed = made.add_extension(names.value, critical=False).sign(key, hashes.SHA256())
    return trustme.LeafCert(own.private_key_pem.bytes(), signed.public_bytes(serialization.Encoding.PEM), [])


class Itself:
    """A self-signed certificate in the place of an authority's."""

    def __init__(self, leaf: trustme.LeafCert) -> None:
        self.cert_pem = leaf.cert_chain_pems[0]


def test_a_self_signed_server_is_heard_only_by_those_who_trust_it(bundle: Bundle, tmp_path: Path) -> None:
    own = self_signed("localhost")
    with running(bundle, credentials=credentials(settings(tmp_path, own))) as place:
        assert ask(place) == "UNAVAILABLE"
        assert ask(place, Itself(self_signed("localhost"))) == "UNAVAILABLE"
        assert ask(place, Itself(own)) == "red"


def test_a_server_whose_certificate_has_expired_is_not_heard(bundle: Bundle) -> None:
    """As it would while it serves: at its start it is refused."""
    old = CA.issue_cert("localhost", not_after=LONG_AGO)
    chain = b"".join(each.bytes() for each in old.cert_chain_pems)
    with running(bundle, credentials=grpc.ssl_server_credentials([(old.private_key_pem.bytes(), chain)])) as place:
        assert ask(place) == "UNAVAILABLE"


def test_mtls_wants_a_certificate_of_its_own_ca(bundle: Bundle, tmp_path: Path) -> None:
    calls = []

    class Watching:
        def item(self, call: object, item: object) -> None:
            pass

        def call(self, call: object) -> None:
            calls.append(call)

    safe = credentials(settings(tmp_path, CA.issue_cert("localhost"), CA))
    with running(bundle, credentials=safe, observer=Watching()) as place:
        assert ask(place) == "UNAVAILABLE"
        assert ask(place, client=OTHER_CA.issue_cert("app.example")) == "UNAVAILABLE"
        assert ask(place, client=self_signed("app.example")) == "UNAVAILABLE"
        assert ask(place, client=CA.issue_cert("app.example", not_after=LONG_AGO)) == "UNAVAILABLE"
        assert ask(place, client=CA.issue_cert("app.example")) == "red"
    assert [call.caller for call in calls] == ["app.example"]


LISTED = """
[certificates.app]
name = "app.example"
[certificates.reader]
name = "reader"
methods = ["ListBundles"]
[certificates.probe]
name = "10.1.2.3"
methods = ["StreamRecognize"]
"""


def try_all(place: Running, client: trustme.LeafCert, token: str = "") -> list[str]:
    """How each kind of call ends: Recognize, ListBundles, an empty StreamRecognize, another service, health."""
    sent = [("authorization", f"Bearer {token}")] if token else []
    chain = b"".join(part.bytes() for part in client.cert_chain_pems)
    safe = grpc.ssl_channel_credentials(CA.cert_pem.bytes(), client.private_key_pem.bytes(), chain)
    codes = []
    with grpc.secure_channel(place.address, safe, [("grpc.ssl_target_name_override", "localhost")]) as channel:
        stub = recognition_pb2_grpc.RecognitionServiceStub(channel)
        inference = channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
        health = health_pb2_grpc.HealthStub(channel)
        for call in (
            lambda: stub.Recognize(REQUEST, timeout=10, metadata=sent),
            lambda: stub.ListBundles(pb.ListBundlesRequest(), timeout=10, metadata=sent),
            lambda: list(stub.StreamRecognize(iter([]), timeout=10, metadata=sent)),
            lambda: inference(b"", timeout=10, metadata=sent),
            lambda: health.Check(health_pb2.HealthCheckRequest(), timeout=10),
        ):
            try:
                call()
                codes.append("OK")
            except grpc.RpcError as error:
                codes.append(error.code().name)
    return codes


def test_listed_certificates_call_what_they_may_and_others_nothing(bundle: Bundle, tmp_path: Path) -> None:
    listed = tmp_path / "callers.toml"
    listed.write_text(LISTED)
    door = TokenInterceptor(Tokens(listed))
    calls = []

    class Watching:
        def item(self, call: object, item: object) -> None:
            pass

        def call(self, call: object) -> None:
            calls.append(call)

    safe = credentials(settings(tmp_path / "tls", CA.issue_cert("localhost"), CA))
    no, unknown = "PERMISSION_DENIED", "UNAUTHENTICATED"
    with running(bundle, credentials=safe, interceptors=[door], observer=Watching()) as place:
        assert try_all(place, CA.issue_cert("app.example")) == ["OK", "OK", "OK", no, "OK"]
        assert try_all(place, CA.issue_cert("first.example", "app.example")) == ["OK", "OK", "OK", no, "OK"]  # renewed
        assert {call.caller for call in calls} == {"app"}
        assert try_all(place, CA.issue_cert(common_name="reader")) == [no, "OK", no, no, "OK"]
        assert try_all(place, CA.issue_cert("10.1.2.3")) == [no, no, "OK", no, "OK"]
        seen = len(calls)
        assert try_all(place, CA.issue_cert("stranger.example")) == [no, no, no, no, "OK"]
        assert try_all(place, CA.issue_cert("stranger.example", common_name="reader")) == [no, no, no, no, "OK"]
        assert len(calls) == seen
        assert ask(place, client=OTHER_CA.issue_cert("app.example")) == "UNAVAILABLE"
        assert try_all(place, CA.issue_cert("app.example"), "wrong") == [unknown, unknown, unknown, unknown, "OK"]
        put(listed, f'[tokens.app]\nsha256 = "{hash_of("one")}"\n')
        assert try_all(place, CA.issue_cert("app.example")) == [unknown, unknown, unknown, unknown, "OK"]
        assert try_all(place, CA.issue_cert("app.example"), "one") == ["OK", "OK", "OK", no, "OK"]


@pytest.mark.parametrize("method", ["Recognize", "BatchRecognize", "StreamRecognize"])
def test_a_refused_certificate_gets_the_reason_without_sending_a_message(
    method: str, bundle: Bundle, tmp_path: Path
) -> None:
    listed = tmp_path / "callers.toml"
    listed.write_text(LISTED)
    client = CA.issue_cert("stranger.example")
    chain = b"".join(part.bytes() for part in client.cert_chain_pems)
    sent = threading.Event()

    def silent() -> Iterator[bytes]:
        sent.wait(10)
        yield from ()

    safe = credentials(settings(tmp_path / "tls", CA.issue_cert("localhost"), CA))
    caller = grpc.ssl_channel_credentials(CA.cert_pem.bytes(), client.private_key_pem.bytes(), chain)
    with (
        running(bundle, credentials=safe, interceptors=[TokenInterceptor(Tokens(listed))]) as place,
        grpc.secure_channel(place.address, caller, [("grpc.ssl_target_name_override", "localhost")]) as channel,
    ):
        call = channel.stream_stream(f"/l2r2.v1.RecognitionService/{method}")  # on the wire as a unary one
        code, status = refused(lambda: list(call(silent(), timeout=10)))
        sent.set()
    assert (code, reason(status)) == (grpc.StatusCode.PERMISSION_DENIED, "NOT_ALLOWED")
    assert "the certificate of stranger.example is not listed here" in status.message


def test_a_list_of_certificates_wants_an_authority(tmp_path: Path) -> None:
    listed = tmp_path / "callers.toml"
    listed.write_text(LISTED)
    safe = settings(tmp_path / "tls", CA.issue_cert("localhost"), CA)
    require_safe(ServerSettings(tokens=listed, tls=safe))
    for tls in (None, safe.model_copy(update={"client_ca": None})):
        with pytest.raises(ConfigError, match=r"callers\.toml lists certificates, but .* give --tls-client-ca"):
            require_safe(ServerSettings(tokens=listed, tls=tls))
    listed.write_text(f'[tokens.app]\nsha256 = "{hash_of("one")}"\n')
    require_safe(ServerSettings(tokens=listed))


def test_a_renewed_certificate_is_taken_up_and_a_bad_one_is_not(
    bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = settings(tmp_path, CA.issue_cert("localhost"))
    with running(bundle, credentials=credentials(first)) as place:
        assert ask(place) == "red"
        settings(tmp_path, OTHER_CA.issue_cert("localhost"))
        assert ask(place, OTHER_CA) == "red"
        assert ask(place) == "UNAVAILABLE"
        put(first.key, "no key")
        assert ask(place, OTHER_CA) == "red"
    assert "the new certificate is refused, the old one is used on" in caplog.text


def test_a_certificate_whose_key_is_not_yet_written_is_waited_for(
    bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renewing, "QUIET_S", 1000.0)
    now = settings(tmp_path / "now", CA.issue_cert("localhost"))
    to_be = settings(tmp_path / "to be", OTHER_CA.issue_cert("localhost"))
    with running(bundle, credentials=credentials(now)) as place:
        now.certificate.write_bytes(to_be.certificate.read_bytes())
        assert ask(place) == "red"
        now.key.write_bytes(to_be.key.read_bytes())
        assert ask(place) == "red"
        aged(now.certificate, now.key)
        assert ask(place, OTHER_CA) == "red"
    assert "refused" not in caplog.text


def damaged(folder: Path, what: str) -> TlsSettings:
    found = settings(folder, CA.issue_cert("localhost", not_after=LONG_AGO if what == "expired" else None), CA)
    if what == "no certificate":
        found.certificate.unlink()
    elif what == "text":
        found.certificate.write_text("text")
    elif what == "another key":
        CA.issue_cert("other").private_key_pem.write_to_path(found.key)
    elif what == "no ca":
        found.client_ca.write_text("text")
    elif what == "a caller as ca":
        CA.issue_cert("app.example").cert_chain_pems[0].write_to_path(found.client_ca)
    elif what == "passphrase":
        from cryptography.hazmat.primitives import serialization

        key = serialization.load_pem_private_key(found.key.read_bytes(), None)
        locked = serialization.BestAvailableEncryption(b"secret")
        form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked
        found.key.write_bytes(key.private_bytes(*form))
    return found


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("no certificate", r"cert\.pem cannot be read: No such file"),
        ("text", r"key\.pem cannot be used with the certificate .*cert\.pem"),
        ("another key", r"key\.pem is not of the certificate .*cert\.pem \(key values mismatch\)"),
        ("passphrase", r"the key without a passphrase"),
        ("expired", r"cert\.pem is not good now: certificate has expired"),
        ("no ca", r"ca\.pem holds no certificate"),
        ("a caller as ca", r"ca\.pem holds no certificate of an authority"),
    ],
)
def test_what_is_wrong_is_said_before_anybody_is_served(what: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        credentials(damaged(tmp_path / "tls", what))


def test_a_self_signed_certificate_may_be_served(tmp_path: Path) -> None:
    """Whether it is trusted is the callers' to say."""
    own = tmp_path / "own"
    own.mkdir()
    CA.cert_pem.write_to_path(own / "cert.pem")
    CA.private_key_pem.write_to_path(own / "key.pem")
    credentials(TlsSettings(certificate=own / "cert.pem", key=own / "key.pem"))


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        *[(host, True) for host in ("127.0.0.1", "127.8.9.1", "::1", "[::1]", "localhost", "unix:/tmp/s")],
        *[(host, False) for host in ("0.0.0.0", "::", "192.168.0.1", "example.org", "localhost.example.org")],
    ],
)
def test_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_plain_text_stays_on_this_machine_unless_asked_for(tmp_path: Path) -> None:
    require_safe(ServerSettings())
    require_safe(ServerSettings(host="0.0.0.0", insecure=True))
    require_safe(ServerSettings(host="0.0.0.0", tls=settings(tmp_path, CA.issue_cert("localhost"))))
    with pytest.raises(ConfigError, match=r"0\.0\.0\.0 is not loopback.*--tls-certificate.*--insecure"):
        require_safe(ServerSettings(host="0.0.0.0"))
