"""Settings from a file, the environment and flags: the later wins, and what is wrong is named with its source."""

from pathlib import Path

import pytest

from l2r2.errors import ConfigError
from l2r2_serving.configuration import as_toml, load_settings
from l2r2_serving.settings import MetricsSettings, ServerSettings, TlsSettings


def written(folder: Path, text: str) -> Path:
    path = folder / "serve.toml"
    path.write_text(text)
    return path


def test_nothing_gives_the_defaults() -> None:
    assert load_settings() == ServerSettings()


def test_the_later_source_wins_key_by_key(tmp_path: Path) -> None:
    file = written(tmp_path, 'port = 1\nworkers = 1\nmax_queue = 1\n[tls]\ncertificate = "file"\nkey = "file"\n')
    environment = {"L2R2_SERVE_WORKERS": "2", "L2R2_SERVE_TLS__KEY": "variable", "HOME": "/root"}
    found = load_settings(file, environment, {"max_queue": 3, "port": None})
    assert (found.port, found.workers, found.max_queue) == (1, 2, 3)
    assert found.tls == TlsSettings(certificate=Path("file"), key=Path("variable"))


def test_a_section_may_come_from_several_sources(tmp_path: Path) -> None:
    file = written(tmp_path, '[tls]\ncertificate = "file"\n')
    found = load_settings(file, {"L2R2_SERVE_TLS__KEY": "secret"})
    assert found.tls == TlsSettings(certificate=Path("file"), key=Path("secret"))
    with pytest.raises(ConfigError, match=r"tls\.key"):
        load_settings(file)


def test_several_bundles_in_a_variable() -> None:
    assert load_settings(None, {"L2R2_SERVE_BUNDLES": "a, models:/b@champion"}).bundles == ("a", "models:/b@champion")


@pytest.mark.parametrize(
    ("text", "environment", "flags", "message"),
    [
        ("prot = 1", {}, {}, r"serve\.toml: unknown setting 'prot'; did you mean 'port'\?"),
        ("[tls]\ncertificat = 'a'", {}, {}, r"unknown setting 'tls\.certificat'; did you mean 'certificate'\?"),
        ("port = 70000", {}, {}, r"serve\.toml: port = 70000: "),
        ("port = ", {}, {}, r"serve\.toml is no readable TOML"),
        ("", {"L2R2_SERVE_PROT": "1"}, {}, r"^environment: unknown setting 'prot'; did you mean 'port'\?"),
        ("", {"L2R2_SERVE_PORT": "many"}, {}, r"^environment: port = 'many'"),
        ("", {"L2R2_SERVE_TLS__KEI": "many"}, {}, r"^environment: unknown setting 'tls\.kei'; did you mean 'key'\?"),
        ("port = 1", {"L2R2_SERVE_WORKERS": "1"}, {"grace_s": -1.0}, r"^flags: grace_s = -1\.0"),
    ],
)
def test_what_is_wrong_is_named_with_its_source(
    text: str, environment: dict[str, str], flags: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_settings(written(tmp_path, text), environment, flags)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.toml is no readable TOML: No such file"):
        load_settings(tmp_path / "nothing.toml")


def test_what_is_printed_gives_the_same_settings(tmp_path: Path) -> None:
    settings = ServerSettings(
        bundles=("a", 'b "quoted" \\ c'),
        port=0,
        max_per_client=3,
        reflection=True,
        tls=TlsSettings(certificate=Path("c.pem"), key=Path("k.pem"), client_ca=Path("ca.pem")),
        metrics=MetricsSettings(port=0),
    )
    assert load_settings(written(tmp_path, as_toml(settings))) == settings
    assert load_settings(written(tmp_path, as_toml(ServerSettings()))) == ServerSettings()
