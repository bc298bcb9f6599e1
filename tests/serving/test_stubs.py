"""The interfaces: committed stubs match the .proto files, which keep to buf's rules and this project's."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from l2r2.errors import ArtifactError, BackendError
from l2r2_serving import generate, limits
from l2r2_serving.inference import grpc_predict_v2_pb2 as kserve
from l2r2_serving.v1 import recognition_pb2 as pb

ROOT = Path(__file__).parents[2]
TEXT = (generate.PROTO / generate.SOURCE).read_text(encoding="utf-8")
KSERVE_TEXT = (generate.PROTO / generate.KSERVE).read_text(encoding="utf-8")

pytest.importorskip("grpc_tools", reason="grpcio-tools is not installed; pip install 'l2r2[dev]'")


def copy_stubs(place: Path) -> None:
    for folder in generate.FOLDERS.values():
        shutil.copytree(generate.STUBS / folder, place / folder)


def test_stubs_match_the_protos() -> None:
    assert generate.differing() == []


def test_this_check_can_fail(tmp_path: Path) -> None:
    copy_stubs(tmp_path)
    changed = tmp_path / "v1" / "recognition_pb2.pyi"
    changed.write_text(changed.read_text().replace("top_k", "top_n"))
    (tmp_path / "inference" / "grpc_predict_v2_pb2_grpc.py").unlink()
    assert generate.differing(tmp_path) == ["v1/recognition_pb2.pyi", "inference/grpc_predict_v2_pb2_grpc.py"]


def test_another_version_of_the_generator_is_no_difference(tmp_path: Path) -> None:
    copy_stubs(tmp_path)
    for path in tmp_path.glob("*/*_pb2*"):
        text = re.sub(r"'1\.\d+\.\d+'", "'1.99.0'", path.read_text())
        path.write_text(text.replace("Protobuf Python Version: 7.", "Protobuf Python Version: 70."))
    assert generate.differing(tmp_path) == []


def test_a_proto_that_is_wrong_or_missing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ArtifactError, match="run this in a checkout"):
        generate.stubs(tmp_path)
    (tmp_path / generate.SOURCE).parent.mkdir(parents=True)
    (tmp_path / generate.SOURCE).write_text("this is no proto")
    with pytest.raises(BackendError, match="protoc refused"):
        generate.stubs(tmp_path)


def test_the_descriptors_keep_their_names() -> None:
    assert pb.DESCRIPTOR.name == "l2r2/v1/recognition.proto"
    assert pb.DESCRIPTOR.package == "l2r2.v1"
    assert kserve.DESCRIPTOR.name == "inference/grpc_predict_v2.proto"
    assert kserve.DESCRIPTOR.package == "inference"


def test_buf_lints() -> None:
    buf = shutil.which("buf", path=f"{Path(sys.executable).parent}:{Path('/usr/local/bin')}:{Path('/usr/bin')}")
    if buf is None:
        pytest.skip("buf is not installed; pip install 'l2r2[dev]'")
    done = subprocess.run([buf, "lint"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_nothing_breaks_callers_of_what_was_released() -> None:
    assert generate.breaking() == ""


def test_what_breaks_them_is_found(tmp_path: Path) -> None:
    image = json.loads(generate.RELEASED.read_text())
    (ours,) = [file for file in image["file"] if file["name"] == generate.SOURCE]
    (box,) = [message for message in ours["messageType"] if message["name"] == "Box"]
    box["field"].append({**box["field"][0], "name": "angle", "jsonName": "angle", "number": 9})
    (tmp_path / "older.json").write_text(json.dumps(image))
    assert 'Previously present field "9" with name "angle" on message "Box" was deleted' in generate.breaking(
        tmp_path / "older.json"
    )


def test_a_release_keeps_the_interface_as_text_that_a_diff_can_show(tmp_path: Path) -> None:
    assert generate.release(tmp_path / "now.json") == 0
    lines = (tmp_path / "now.json").read_text().splitlines()
    assert max(map(len, lines)) < 200
    assert any('"name": "StreamRecognize"' in line for line in lines)
    assert generate.breaking(tmp_path / "now.json") == ""


def test_one_request_and_one_response_a_method() -> None:
    (service,) = pb.DESCRIPTOR.services_by_name.values()
    for method in service.methods:
        assert method.input_type.name == f"{method.name}Request"
        assert method.output_type.name == f"{method.name}Response"


@pytest.mark.parametrize("enum", ["Stage", "Caution"])
def test_zero_is_unspecified(enum: str) -> None:
    assert pb.DESCRIPTOR.enum_types_by_name[enum].values_by_number[0].name == f"{enum.upper()}_UNSPECIFIED"


def test_the_numbers_in_the_comments_are_the_ones_that_are_checked() -> None:
    assert f"Candidates wanted, at most {limits.MAX_TOP_K}; 0 means {limits.DEFAULT_TOP_K}." in TEXT
    assert f"  // At most {limits.MAX_BATCH}.\n" in TEXT
    assert f"at most {limits.MAX_SOURCES}, names of 1 to {limits.MAX_NAME_CHARS} and values of" in TEXT
    assert f"at most {limits.MAX_VALUE_CHARS} characters. Absent or blank: not known." in TEXT
    assert f"A message may have up to {limits.MAX_MESSAGE_MB} MiB" in TEXT
    assert f"each at least 1; at most {limits.MAX_BATCH} along the first." in KSERVE_TEXT
