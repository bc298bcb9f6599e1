"""What is under serving/deploy/ fits together, and fits the service; no engine and no cluster is needed."""

import copy
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import trustme
import yaml

from l2r2.bundle import Bundle
from l2r2_serving import probe
from l2r2_serving.auth import Tokens
from l2r2_serving.client import Client
from l2r2_serving.configuration import as_toml, load_settings
from l2r2_serving.errors import Unauthenticated
from l2r2_serving.metrics import Metrics
from l2r2_serving.server import SERVICE
from l2r2_serving.settings import ServerSettings
from tests.serving.running import PATIENCE_S, Running, eventually
from tests.tiny import RED, encode, make_photo

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "serving" / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
BASE, TLS = KUBERNETES / "base", KUBERNETES / "tls"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
OLDEST, NEWEST = "1.28", kubernetes_validate.latest_version()
YAMLLINT = "{extends: default, rules: {line-length: {max: 120}, document-start: disable}}"

Object = dict[str, Any]


def read(path: Path) -> list[Object]:
    return list(yaml.safe_load_all(path.read_text()))


def the(kind: str, objects: list[Object]) -> Object:
    (found,) = (each for each in objects if each["kind"] == kind)
    return found


@pytest.fixture(scope="module")
def kustomization() -> Object:
    (found,) = read(BASE / "kustomization.yaml")
    return found


@pytest.fixture(scope="module")
def objects(kustomization: Object) -> list[Object]:
    return [each for name in kustomization["resources"] for each in read(BASE / name)]


@pytest.fixture(scope="module")
def pod(objects: list[Object]) -> Object:
    return the("Deployment", objects)["spec"]["template"]


@pytest.fixture(scope="module")
def container(pod: Object) -> Object:
    (found,) = pod["spec"]["containers"]
    return found


@pytest.fixture(scope="module")
def settings() -> ServerSettings:
    return load_settings(BASE / "server.toml")


def rendered(folder: Path) -> list[Object]:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_manifests_are_what_kubernetes_takes(version: str, objects: list[Object]) -> None:
    for each in [*objects, *read(KUBERNETES / "secrets.example.yaml")]:
        kubernetes_validate.validate(each, version, strict=True)


@pytest.mark.parametrize(
    "broken",
    [
        lambda spec: spec["containers"][0].update(imagePolicy="Always"),
        lambda spec: spec["containers"][0]["startupProbe"]["grpc"].update(port="grpc"),
        lambda spec: spec["containers"][0].pop("name"),
        lambda spec: spec.update(terminationGracePeriodSeconds="55s"),
    ],
)
def test_a_broken_manifest_is_found(broken: Any, objects: list[Object]) -> None:
    deployment = copy.deepcopy(the("Deployment", objects))
    broken(deployment["spec"]["template"]["spec"])
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, NEWEST, strict=True)


def test_every_manifest_is_used(kustomization: Object) -> None:
    named = {*kustomization["resources"], *kustomization["configMapGenerator"][0]["files"], "kustomization.yaml"}
    assert {path.name for path in BASE.iterdir()} == named


def test_yaml_is_clean() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "yamllint", "--strict", "-d", YAMLLINT, KUBERNETES], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("folder", [BASE, TLS])
def test_kustomize_puts_it_together(folder: Path, objects: list[Object]) -> None:
    found = rendered(folder)
    for each in found:
        kubernetes_validate.validate(each, NEWEST, strict=True)
    assert {each["kind"] for each in found} == {each["kind"] for each in objects} | {"ConfigMap"}
    config = the("ConfigMap", found)
    assert config["data"]["server.toml"] == (BASE / "server.toml").read_text()
    spec = the("Deployment", found)["spec"]["template"]["spec"]
    assert config["metadata"]["name"] in [each["configMap"]["name"] for each in spec["volumes"] if "configMap" in each]
    assert spec["containers"][0]["image"] == f"registry.example/l2r2:{VERSION}"


def test_selectors_find_the_pods(pod: Object, objects: list[Object]) -> None:
    labels = pod["metadata"]["labels"].items()
    selectors = [
        the("Deployment", objects)["spec"]["selector"]["matchLabels"],
        the("Service", objects)["spec"]["selector"],
        the("PodDisruptionBudget", objects)["spec"]["selector"]["matchLabels"],
        the("NetworkPolicy", objects)["spec"]["podSelector"]["matchLabels"],
        *(each["labelSelector"]["matchLabels"] for each in pod["spec"]["topologySpreadConstraints"]),
    ]
    for selector in selectors:
        assert selector
        assert selector.items() <= labels
    (scrape,) = yaml.safe_load((KUBERNETES / "prometheus-scrape.yaml").read_text())
    assert re.fullmatch("l2r2.*", scrape["job_name"]), "observe/alerts.yml looks for such jobs"
    (keep,) = (each for each in scrape["relabel_configs"] if each.get("action") == "keep")
    prefix = "__meta_kubernetes_pod_label_"
    named = [source for source in keep["source_labels"] if source.startswith(prefix)]
    for source, value in zip(named, keep["regex"].split(";"), strict=False):
        key = next(key for key, _ in labels if prefix + re.sub(r"\W", "_", key) == source)
        assert (key, value) in labels


def test_ports_match(
    container: Object, pod: Object, objects: list[Object], settings: ServerSettings, kustomization: Object
) -> None:
    ports = {each["name"]: each["containerPort"] for each in container["ports"]}
    assert settings.metrics is not None
    assert ports == {"grpc": settings.port, "metrics": settings.metrics.port}
    assert pod["metadata"]["annotations"]["prometheus.io/port"] == str(ports["metrics"])
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[kind]["grpc"]["port"] == ports["grpc"]
    for each in the("Service", objects)["spec"]["ports"]:
        assert each["targetPort"] in ports
        assert each["port"] == settings.port
    rules = the("NetworkPolicy", objects)["spec"]["ingress"]
    assert {port["port"] for rule in rules for port in rule["ports"]} == set(ports)
    assert all(rule["from"] for rule in rules), "without `from` everybody may come"
    assert set(map(int, re.search(r"^EXPOSE (.+)$", DOCKERFILE, re.MULTILINE)[1].split())) == set(ports.values())


def test_health_is_asked_of_services_that_there_are(container: Object, served: Running) -> None:
    assert container["readinessProbe"]["grpc"]["service"] == SERVICE
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert probe.main([served.address, "--service", container[kind]["grpc"].get("service", "")]) == 0


def test_what_is_mounted_is_there(container: Object, pod: Object, objects: list[Object], kustomization: Object) -> None:
    volumes = {each["name"]: each for each in pod["spec"]["volumes"]}
    mounts = {each["name"]: each for each in container["volumeMounts"]}
    assert set(volumes) == set(mounts)
    assert all(each.get("readOnly") or name == "tmp" for name, each in mounts.items())
    secrets = {each["metadata"]["name"]: each for each in read(KUBERNETES / "secrets.example.yaml")}
    (overlay,) = read(TLS / "deployment.yaml")
    for each in [*volumes.values(), *overlay["spec"]["template"]["spec"]["volumes"]]:
        if "secret" in each:
            assert each["secret"]["secretName"] in secrets
        if "configMap" in each:
            assert each["configMap"]["name"] in [made["name"] for made in kustomization["configMapGenerator"]]
        if "persistentVolumeClaim" in each:
            assert (
                each["persistentVolumeClaim"]["claimName"] == the("PersistentVolumeClaim", objects)["metadata"]["name"]
            )
    assert set(secrets) == {"l2r2-tokens", "l2r2-tls"}


def test_settings_are_those_of_the_server_and_fit_the_mounts(container: Object, settings: ServerSettings) -> None:
    mounts = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
    assert container["args"] == ["serve", "--config", f"{mounts['config']}/server.toml"]
    assert settings.bundles == (mounts["bundle"],)
    (tokens, _) = read(KUBERNETES / "secrets.example.yaml")
    assert [f"{mounts['tokens']}/{key}" for key in tokens["stringData"]] == [str(settings.tokens)]
    assert settings.worker_count == int(container["resources"]["requests"]["cpu"])


def test_a_pod_has_time_to_finish(container: Object, pod: Object, settings: ServerSettings) -> None:
    assert pod["spec"]["terminationGracePeriodSeconds"] > settings.drain_s + settings.grace_s
    ready = container["readinessProbe"]
    assert ready["failureThreshold"] * ready["periodSeconds"] < settings.drain_s
    startup = container["startupProbe"]
    assert startup["failureThreshold"] * startup["periodSeconds"] >= 60


def test_a_pod_may_do_little(container: Object, pod: Object) -> None:
    spec, own = pod["spec"], container["securityContext"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False
    assert own["capabilities"] == {"drop": ["ALL"]}
    assert own["readOnlyRootFilesystem"] is True
    assert own["allowPrivilegeEscalation"] is False
    user = spec["securityContext"]
    assert f"USER {user['runAsUser']}:{user['runAsGroup']}" in DOCKERFILE
    assert user["runAsUser"] > 0


def test_pods_are_counted_by_how_long_photographs_wait(objects: list[Object]) -> None:
    scaler = the("HorizontalPodAutoscaler", objects)["spec"]
    assert scaler["scaleTargetRef"]["name"] == the("Deployment", objects)["metadata"]["name"]
    assert "replicas" not in the("Deployment", objects)["spec"]
    (rule,) = yaml.safe_load((KUBERNETES / "prometheus-adapter.yaml").read_text())["rules"]["custom"]
    (metric,) = scaler["metrics"]
    assert metric["pods"]["metric"]["name"] == rule["name"]["as"]
    shown = {sample.name for family in Metrics().registry.collect() for sample in family.samples}
    used = set(re.findall(r"\bl2r2_\w+", rule["seriesQuery"] + rule["metricsQuery"]))
    assert used == {"l2r2_queue_seconds_sum", "l2r2_queue_seconds_count"}
    assert used <= shown
    (scrape,) = yaml.safe_load((KUBERNETES / "prometheus-scrape.yaml").read_text())
    assert set(rule["resources"]["overrides"]) <= {each.get("target_label") for each in scrape["relabel_configs"]}


def written_certificate(ca: trustme.CA, folder: Path, name: str) -> tuple[Path, Path]:
    cert = ca.issue_cert(name)
    cert.private_key_pem.write_to_path(folder / "tls.key")
    (folder / "tls.crt").write_bytes(b"".join(part.bytes() for part in cert.cert_chain_pems))
    return folder / "tls.crt", folder / "tls.key"


@contextmanager
def pod_like(bundle: Bundle, folder: Path, environment: dict[str, str]) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A server with the settings of the ConfigMap, but for places and ports; no home, nothing of ours in its
    environment."""
    own = load_settings(BASE / "server.toml")
    tokens = read(KUBERNETES / "secrets.example.yaml")[0]["stringData"]["tokens.toml"]
    (folder / "tokens.toml").write_text(tokens)
    Tokens(folder / "tokens.toml")
    here = own.model_copy(
        update={
            "bundles": (str(bundle.folder),),
            "host": "127.0.0.1",
            "port": 0,
            "tokens": folder / "tokens.toml",
            "drain_s": 5.0,
            "metrics": own.metrics.model_copy(update={"host": "127.0.0.1", "port": 0}),
        }
    )
    (folder / "server.toml").write_text(as_toml(here))
    process = subprocess.Popen(
        [sys.executable, "-m", "l2r2", "serve", "--config", folder / "server.toml"],
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", "PYTHONDONTWRITEBYTECODE": "1", **environment},
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            line = process.stdout.readline()
            yield re.search(r"ready on (\S+),", line)[1], process
        finally:
            process.kill()


def probed(command: list[str], address: str, **places: Path) -> int:
    """Run a container's own probe, here."""
    words = [address if word == "127.0.0.1:50051" else word for word in command]
    for name, path in places.items():
        words = [word.replace(f"/etc/l2r2/{name}", str(path)) for word in words]
    return subprocess.run([sys.executable, *words[1:]], timeout=PATIENCE_S).returncode


@pytest.mark.slow
@pytest.mark.parametrize("overlay", [False, True])
def test_the_settings_serve(overlay: bool, bundle: Bundle, tmp_path: Path) -> None:
    words = yaml.safe_load(re.search(r"^\s+CMD (\[.+\])$", DOCKERFILE, re.MULTILINE)[1])
    environment, tls = {}, None
    if overlay:
        (patch,) = read(TLS / "deployment.yaml")
        (part,) = patch["spec"]["template"]["spec"]["containers"]
        words = part["livenessProbe"]["exec"]["command"]
        environment = {each["name"]: each["value"].replace("/etc/l2r2/tls", str(tmp_path)) for each in part["env"]}
        ca = trustme.CA()
        written_certificate(ca, tmp_path, "l2r2")
        tls = tmp_path
    with pod_like(bundle, tmp_path, environment) as (address, process):
        assert probed(words, address, **({"tls": tls} if tls else {})) == 0
        if overlay:
            assert probe.main([address, "--timeout-s", "1"]) == 1, "plain text is heard"
        else:
            with Client(address, token="one") as client, pytest.raises(Unauthenticated):
                client.recognize(encode(make_photo(RED)))
        process.send_signal(signal.SIGTERM)
        if not overlay:
            eventually(lambda: probe.main([address]) == 1)
            assert process.poll() is None, "it drains"
        assert process.wait(PATIENCE_S) == 0
