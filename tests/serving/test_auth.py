"""Who may call what: tokens whose hashes alone are kept, and listed certificates."""

from base64 import b64encode
from collections.abc import Callable
from contextlib import suppress
from datetime import date
from pathlib import Path

import grpc
import pytest
import time_machine
import typer
from grpc_health.v1 import health_pb2, health_pb2_grpc
from typer.testing import CliRunner

from l2r2.bundle import Bundle
from l2r2.errors import ConfigError
from l2r2_serving import renewing
from l2r2_serving.auth import Token, TokenInterceptor, Tokens, hash_of, new_token, read_callers
from l2r2_serving.errors import NotAllowed, Unauthenticated
from l2r2_serving.logs import AccessLog
from l2r2_serving.token_command import token as token_command
from l2r2_serving.v1 import recognition_pb2 as pb
from tests.serving.renewed import aged, put
from tests.serving.running import eventually, running
from tests.serving.statuses import reason, refused
from tests.tiny import RED, encode, make_photo

METHOD = "/l2r2.v1.RecognitionService/Recognize"
REQUEST = pb.RecognizeRequest(image=encode(make_photo(RED)))


def written(path: Path, **tokens: Token) -> Path:
    text = ""
    for name, token in tokens.items():
        text += f'[tokens.{name}]\nsha256 = "{token.sha256}"\n'
        text += "" if token.methods is None else f"methods = {list(token.methods)}\n"
        text += f"expires = {token.expires}\n" if token.expires else ""
    return put(path, text)


def test_the_right_token_names_its_caller(tmp_path: Path) -> None:
    tokens = Tokens(written(tmp_path / "t.toml", a=Token(sha256=hash_of("one")), b=Token(sha256=hash_of("two"))))
    assert tokens.check("Bearer one", METHOD) == "a"
    assert tokens.check("bearer two", METHOD) == "b"


@pytest.mark.parametrize(
    "header", ["", "one", "Bearer", "Bearer ", "Bearer on", "Bearer onee", "Basic one", "Bearer ONE"]
)
def test_anything_else_is_refused_in_the_same_words(header: str, tmp_path: Path) -> None:
    tokens = Tokens(written(tmp_path / "t.toml", a=Token(sha256=hash_of("one"))))
    with pytest.raises(Unauthenticated, match=r"^no token, or none that is good"):
        tokens.check(header, METHOD)


def test_a_token_expires_after_its_last_day(tmp_path: Path) -> None:
    tokens = Tokens(written(tmp_path / "t.toml", app=Token(sha256=hash_of("t"), expires=date(2030, 1, 31))))
    with time_machine.travel("2030-01-31T23:59:59Z", tick=False):
        assert tokens.check("Bearer t", METHOD) == "app"
    with (
        time_machine.travel("2030-02-01T00:00:00Z", tick=False),
        pytest.raises(Unauthenticated, match=r"^no token, or none that is good"),
    ):
        tokens.check("Bearer t", METHOD)


def test_a_token_may_be_for_some_methods(tmp_path: Path) -> None:
    tokens = Tokens(written(tmp_path / "t.toml", a=Token(sha256=hash_of("one"), methods=("GetBundle",))))
    assert tokens.check("Bearer one", "/l2r2.v1.RecognitionService/GetBundle") == "a"
    with pytest.raises(NotAllowed, match="a may not call Recognize; it may call GetBundle"):
        tokens.check("Bearer one", METHOD)


def test_a_changed_file_is_taken_up_and_a_broken_one_is_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = written(tmp_path / "t.toml", a=Token(sha256=hash_of("one")))
    tokens = Tokens(path)
    written(path, b=Token(sha256=hash_of("two")))
    assert tokens.check("Bearer two", METHOD) == "b"
    with pytest.raises(Unauthenticated):  # taken away
        tokens.check("Bearer one", METHOD)
    put(path, "[tokens")
    assert tokens.check("Bearer two", METHOD) == "b"
    path.unlink()
    assert tokens.check("Bearer two", METHOD) == "b"
    assert len(caplog.messages) == 2


def test_a_file_that_is_being_written_takes_nothing_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An editor empties it first, and an empty list is a good one."""
    monkeypatch.setattr(renewing, "QUIET_S", 1000.0)
    path = written(tmp_path / "t.toml", a=Token(sha256=hash_of("one")), b=Token(sha256=hash_of("two")))
    tokens = Tokens(path)
    for part in ("", "[tokens.b]\n", f'[tokens.b]\nsha256 = "{hash_of("two")}"\n'):
        path.write_text(part)
        for sent in ("one", "two"):
            assert tokens.check(f"Bearer {sent}", METHOD)
    aged(path)
    assert tokens.check("Bearer two", METHOD) == "b"
    with pytest.raises(Unauthenticated):
        tokens.check("Bearer one", METHOD)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[tokens", "is no token file"),
        ('[tokens.a]\nsha256 = "short"', r"tokens\.a\.sha256"),
        ('[tokens.a]\nsha = "short"', r"unknown setting 'tokens\.a\.sha'"),
        ("[tokens.a]\nmethods = []", r"tokens\.a\.sha256"),
    ],
)
def test_a_file_that_is_none_is_named(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "t.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_callers(path)


def test_a_token_in_place_of_its_hash_is_not_repeated(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made, path = new_token(), written(tmp_path / "t.toml", a=Token(sha256=hash_of("one")))
    tokens = Tokens(path)
    for text in (f'[tokens.a]\nsha256 = "{made}"', f"[tokens.a]\nsha256 = {made}", f'[tokens.a]\nmethods = "{made}"'):
        put(path, text)
        with pytest.raises(ConfigError) as caught:
            read_callers(path)
        assert made not in str(caught.value)
        assert tokens.check("Bearer one", METHOD) == "a"
    assert len(caplog.messages) == 3
    assert made not in caplog.text


def test_other_services_are_named(tmp_path: Path) -> None:
    inference = "inference.GRPCInferenceService"
    listed = {"a": None, "b": (inference,), "c": ("Recognize", inference), "d": ("ModelInfer",), "e": ()}
    path = written(tmp_path / "t.toml", **{n: Token(sha256=hash_of(n), methods=m) for n, m in listed.items()})
    tokens = read_callers(path).tokens

    def may(method: str) -> str:
        return "".join(name for name, token in tokens.items() if token.may_call(method))

    assert may(METHOD) == "ac"
    assert may("/l2r2.v1.RecognitionService/GetBundle") == "a"
    assert may(f"/{inference}/ModelInfer") == "bc"
    assert may("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo") == "abcde"
    assert may("/other.Service/Recognize") == ""


LISTED = """
[certificates.lab]
name = "lab.example"
methods = ["GetBundle"]
[certificates.old]
name = "old.example"
expires = 2020-01-31
[certificates.site]
name = "site.example"
"""


def test_a_certificate_is_known_by_any_of_its_names(tmp_path: Path) -> None:
    path = tmp_path / "t.toml"
    path.write_text(LISTED)
    tokens = Tokens(path)
    assert tokens.check("", METHOD, ["site.example"]) == "site"
    assert tokens.check("", METHOD, ["other.example", "site.example"]) == "site"
    assert tokens.check("", "/l2r2.v1.RecognitionService/GetBundle", ["lab.example"]) == "lab"
    with pytest.raises(NotAllowed, match="lab may not call Recognize; it may call GetBundle"):
        tokens.check("", METHOD, ["lab.example"])
    for stranger in ("old.example", "example", "site.example.org", "SITE.EXAMPLE", "site", "*"):
        with pytest.raises(NotAllowed, match=r"the certificate of .* is not listed here, or no longer"):
            tokens.check("", METHOD, [stranger])
    with pytest.raises(Unauthenticated):  # shows none
        tokens.check("", METHOD)


def test_a_token_is_judged_before_a_certificate(tmp_path: Path) -> None:
    path = tmp_path / "t.toml"
    path.write_text(LISTED + f'[tokens.app]\nsha256 = "{hash_of("one")}"\n')
    tokens = Tokens(path)
    assert tokens.check("Bearer one", METHOD, ["stranger.example"]) == "app"
    assert tokens.check("", METHOD, ["site.example"]) == "site"
    with pytest.raises(Unauthenticated):
        tokens.check("Bearer two", METHOD, ["site.example"])


def test_a_list_that_became_empty_lets_nobody_in(tmp_path: Path) -> None:
    path = tmp_path / "t.toml"
    path.write_text(LISTED)
    tokens = Tokens(path)
    put(path, "")
    for header, certified in (("", ["site.example"]), ("Bearer one", ["site.example"]), ("Bearer ", []), ("", [])):
        with pytest.raises(Unauthenticated):
            tokens.check(header, METHOD, certified)


def test_a_flood_is_counted_and_one_line(bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    door = TokenInterceptor(
        Tokens(written(tmp_path / "t.toml", app=Token(sha256=hash_of("one"), methods=("Recognize",))))
    )
    with running(bundle, interceptors=[door]) as place, place.stub() as stub:
        for n in range(100):
            refused(lambda n=n: stub.Recognize(REQUEST, metadata=[("authorization", f"Bearer {n}")]))
        refused(lambda: stub.ListBundles(pb.ListBundlesRequest(), metadata=[("authorization", "Bearer one")]))
    assert door.refused == {"UNAUTHENTICATED": 100, "PERMISSION_DENIED": 1}
    lines = [record.getMessage() for record in caplog.records if record.name == "l2r2_serving.auth"]
    assert lines == ["calls refused: 1; the last one UNAUTHENTICATED, from 127.0.0.1"]


def test_the_log_of_everything_has_nothing_that_was_sent(
    bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    for name in ("l2r2", "l2r2_serving", "grpc", "grpc.aio", "asyncio"):
        caplog.set_level("DEBUG", name)
    good, wrong, habitat = new_token(), new_token(), "under-the-secret-oak"
    path = written(tmp_path / "t.toml", app=Token(sha256=hash_of(good)))
    photo = encode(make_photo(RED))
    request = pb.RecognizeRequest(image=photo, habitat=habitat, metadata={"place": habitat})
    with (
        running(bundle, observer=AccessLog(), interceptors=[TokenInterceptor(Tokens(path))]) as place,
        place.stub() as stub,
    ):
        for token in (good, wrong):
            sent = [("authorization", f"Bearer {token}"), ("x-private", habitat)]
            for call in (
                lambda sent=sent: stub.Recognize(request, metadata=sent),
                lambda sent=sent: stub.BatchRecognize(pb.BatchRecognizeRequest(requests=[request]), metadata=sent),
                lambda sent=sent: list(
                    stub.StreamRecognize(iter([pb.StreamRecognizeRequest(id="a", request=request)]), metadata=sent)
                ),
                lambda sent=sent: stub.Recognize(pb.RecognizeRequest(image=habitat.encode()), metadata=sent),
                lambda sent=sent: stub.Recognize(
                    pb.RecognizeRequest(image=photo, month=13, habitat=habitat), metadata=sent
                ),
            ):
                with suppress(grpc.RpcError):
                    call()
    said = "\n".join(f"{record.getMessage()} {vars(record)}" for record in caplog.records)
    assert "'caller': 'app'" in said  # it is looked at where a handler would find it
    encoded = (photo[:16].hex(), b64encode(photo[:15]).decode(), repr(photo[:16])[2:-1])
    for private in (good, wrong, hash_of(good), habitat, *encoded):
        assert private not in said


def test_tokens_are_long_and_never_the_same() -> None:
    made = {new_token() for _ in range(100)}
    assert len(made) == 100
    assert all(len(each) == 43 for each in made)


@pytest.fixture
def command() -> Callable[..., tuple[int, str]]:
    app = typer.Typer()
    app.command()(token_command)

    def run(*words: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, words)
        return done.exit_code, done.output if done.exception is None else str(done.exception)

    return run


def test_the_command_prints_a_token_once_and_keeps_its_hash(
    command: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    file = tmp_path / "t.toml"
    with time_machine.travel("2030-01-31T23:59:59Z", tick=False):
        code, one = command("app", "--file", str(file), "--methods", "Recognize,GetBundle", "--days", "2")
    assert code == 0
    _, other = command("other-app", "--file", str(file))
    assert one.strip() not in file.read_text()
    found = read_callers(file).tokens
    assert found["app"] == Token(
        sha256=hash_of(one.strip()), methods=("Recognize", "GetBundle"), expires=date(2030, 2, 2)
    )
    assert found["other-app"] == Token(sha256=hash_of(other.strip()))
    assert "already" in command("app", "--file", str(file))[1]
    assert command("app", "--file", str(file), "--revoke")[0] == 0
    assert set(read_callers(file).tokens) == {"other-app"}
    assert "has no caller 'app'" in command("app", "--file", str(file), "--revoke")[1]
    assert "expected letters" in command("no such.name", "--file", str(file))[1]


def test_over_the_wire(bundle: Bundle, tmp_path: Path) -> None:
    path = written(
        tmp_path / "t.toml",
        app=Token(sha256=hash_of("one")),
        reader=Token(sha256=hash_of("two"), methods=("ListBundles",)),
    )
    calls = []

    class Watching:
        def item(self, call: object, item: object) -> None:
            pass

        def call(self, call: object) -> None:
            calls.append(call)

    with (
        running(bundle, observer=Watching(), interceptors=[TokenInterceptor(Tokens(path))]) as place,
        place.stub() as stub,
    ):
        for sent in ([], [("authorization", "Bearer three")], [("authorization", "Bearer on")]):
            for refusal in (
                lambda sent=sent: stub.Recognize(REQUEST, metadata=sent),
                lambda sent=sent: list(stub.StreamRecognize(iter([]), metadata=sent)),
                lambda sent=sent: stub.ListBundles(pb.ListBundlesRequest(), metadata=sent),
            ):
                code, status = refused(refusal)
                assert code is grpc.StatusCode.UNAUTHENTICATED
                assert reason(status) == "UNAUTHENTICATED"
        good, reader = [("authorization", "Bearer one")], [("authorization", "Bearer two")]
        assert stub.Recognize(REQUEST, metadata=good).candidates[0].name == "red"
        item = pb.StreamRecognizeRequest(id="a", request=REQUEST)
        assert [each.id for each in stub.StreamRecognize(iter([item]), metadata=good)] == ["a"]
        assert stub.ListBundles(pb.ListBundlesRequest(), metadata=reader).bundles
        code, status = refused(lambda: stub.Recognize(REQUEST, metadata=reader))
        assert (code, reason(status)) == (grpc.StatusCode.PERMISSION_DENIED, "NOT_ALLOWED")
        with place.channel() as channel:
            asked = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
            assert asked.status == health_pb2.HealthCheckResponse.SERVING
        written(path, reader=Token(sha256=hash_of("two")))  # app's was taken away
        code, _ = refused(lambda: stub.Recognize(REQUEST, metadata=good))
        assert code is grpc.StatusCode.UNAUTHENTICATED
        eventually(lambda: len(calls) == 3)
        assert [each.caller for each in calls] == ["app", "app", "reader"]


def test_a_flood_of_wrong_tokens_takes_no_slot(bundle: Bundle, tmp_path: Path) -> None:
    path = written(tmp_path / "t.toml", app=Token(sha256=hash_of("one")))
    with running(bundle, interceptors=[TokenInterceptor(Tokens(path))], max_queue=1) as place, place.stub() as stub:
        wrong = [stub.Recognize.future(REQUEST, metadata=[("authorization", f"Bearer {n}")]) for n in range(200)]
        assert {each.code() for each in wrong} <= {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.RESOURCE_EXHAUSTED}
        right = [("authorization", "Bearer one")]
        assert stub.Recognize(REQUEST, metadata=right).candidates[0].name == "red"
