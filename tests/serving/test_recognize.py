"""Recognize on a real server: the same answers as in this process, and clear refusals."""

import math

import grpc
import pytest

from l2r2.errors import ImageError, InputError, MetadataError
from l2r2.types import Caution, Metadata, Stage, make_metadata
from l2r2_serving.answer import Answer
from l2r2_serving.bundles import OpenBundle
from l2r2_serving.errors import UnknownBundle
from l2r2_serving.v1 import recognition_pb2 as pb
from tests.serving.running import Running
from tests.serving.statuses import fields, reason, refused
from tests.tiny import DARK, DARK_BLUE, DARK_GREEN, GREEN, MUDDY, RED, encode, make_photo, make_uniform

CASES = {
    "sure": (make_photo(RED), {}),
    "sure of green": (make_photo(GREEN), make_metadata(habitat="meadow", month=4)),
    "asks FULL": (make_photo(MUDDY, DARK), {}),
    "swayed by its ground": (make_photo(MUDDY, DARK_GREEN), {}),
    "flipped by its habitat": (make_photo(MUDDY, DARK_BLUE), make_metadata(habitat="meadow", substrate="wood")),
    "nothing found": (make_uniform(RED), make_metadata(month="12")),
    "nothing known": (make_photo(MUDDY), make_metadata(habitat="lava", soil="chalk")),
}


def same(answer: Answer, other: Answer) -> None:
    """All but the times, which differ from run to run."""
    a, b = answer.prediction, other.prediction
    assert a.candidates == b.candidates
    assert (a.region is None) == (b.region is None)
    if a.region and b.region:
        assert (a.region.box_xyxy_px, a.region.score) == (b.region.box_xyxy_px, b.region.score)
    assert (a.size_px, a.stages, a.stage_confidence) == (b.size_px, b.stages, b.stage_confidence)
    assert a.explanation == b.explanation
    assert (a.cautions, a.unrecognized) == (b.cautions, b.unrecognized)
    assert list(a.latency_ms) == list(b.latency_ms)
    assert (answer.bundle_name, answer.bundle_version) == (other.bundle_name, other.bundle_version)
    assert answer.unrecognized == other.unrecognized


@pytest.mark.parametrize("case", CASES)
def test_server_answers_as_this_process_does(case: str, served: Running, opened: OpenBundle) -> None:
    photo, metadata = CASES[case]
    with served.client() as client:
        same(client.recognize(encode(photo), metadata), opened.answer(encode(photo), metadata, 5))


@pytest.mark.parametrize(
    ("case", "name", "stages", "cautions"),
    [
        ("sure", "red", (Stage.FG,), ()),
        ("asks FULL", "red", (Stage.FG, Stage.FULL), ()),
        ("swayed by its ground", "green", (Stage.FG, Stage.FULL), (Caution.FG_UNSURE_FULL_SURE,)),
        ("flipped by its habitat", "green", (Stage.FG,), (Caution.FLIPPED_BY_PRIOR,)),
        ("nothing found", "red", (Stage.FULL,), (Caution.NOTHING_FOUND,)),
    ],
)
def test_answers_are_the_ones_the_eye_gives(
    case: str, name: str, stages: tuple[Stage, ...], cautions: tuple[Caution, ...], served: Running
) -> None:
    photo, metadata = CASES[case]
    with served.client() as client:
        prediction = client.recognize(encode(photo), metadata).prediction
    assert prediction.answer.name == name
    assert prediction.stages == stages
    assert prediction.cautions == cautions


@pytest.mark.parametrize("case", CASES)
def test_parts_sum_to_the_total(case: str, served: Running) -> None:
    photo, metadata = CASES[case]
    with served.client() as client:
        prediction = client.recognize(encode(photo), metadata).prediction
    why = prediction.explanation
    assert why is not None
    assert set(why.parts) == {"FG", "FULL", *metadata} - {"soil"}  # a source that the bundle does not use
    assert math.isclose(sum(why.parts.values()), why.total, abs_tol=1e-9)
    first, second = prediction.candidates[:2]
    assert why.rival == second.name
    assert math.isclose(why.total, math.log(first.probability / second.probability), rel_tol=1e-5, abs_tol=1e-5)


def test_region_in_pixels_and_as_shares(served: Running) -> None:
    with served.stub() as stub:
        response = stub.Recognize(pb.RecognizeRequest(image=encode(make_photo(RED))))
    size, px, share = response.image_size, response.region.box_px, response.region.box_normalized
    assert (size.width_px, size.height_px) == (160, 120)
    # The object is drawn at x 52 to 108 and y 36 to 84; a cell of the localizer's grid is 160 / 256 px wide.
    assert [px.x_min, px.y_min, px.x_max, px.y_max] == pytest.approx([52, 36, 108, 84], abs=1.0)
    assert [share.x_min * 160, share.y_min * 120] == pytest.approx([px.x_min, px.y_min])
    assert [share.x_max * 160, share.y_max * 120] == pytest.approx([px.x_max, px.y_max])
    assert 0.9 < response.region.score <= 1.0


def test_region_is_absent_when_nothing_was_found(served: Running) -> None:
    with served.stub() as stub:
        response = stub.Recognize(pb.RecognizeRequest(image=encode(make_uniform())))
    assert not response.HasField("region")
    assert response.cautions == [pb.CAUTION_NOTHING_FOUND]


def test_times_begin_with_decoding(served: Running) -> None:
    with served.client() as client:
        latency = client.recognize(encode(make_photo(MUDDY))).prediction.latency_ms
    assert list(latency) == ["decode", "locate", "render FG", "classify FG", "render FULL", "classify FULL", "fuse"]
    assert all(ms >= 0 for ms in latency.values())


def test_unknown_metadata_are_echoed_and_neutral(served: Running) -> None:
    with served.client() as client:
        plain = client.recognize(encode(make_photo(MUDDY)))
        odd = client.recognize(encode(make_photo(MUDDY)), {"habitat": " lava ", "soil": "chalk", "month": "7"})
    assert odd.unrecognized == {"habitat": "lava", "soil": "chalk"}
    assert odd.prediction.explanation is not None
    assert odd.prediction.explanation.parts["habitat"] == 0.0
    assert plain.unrecognized == {}


@pytest.mark.parametrize("absent", [{}, {"habitat": "", "substrate": "  "}])
def test_blank_is_not_known(absent: Metadata, served: Running) -> None:
    with served.stub() as stub:
        response = stub.Recognize(pb.RecognizeRequest(image=encode(make_photo(RED)), **absent))
    assert not response.unrecognized
    assert [part.source for part in response.explanation.parts] == ["FG", "FULL"]


@pytest.mark.parametrize(("top_k", "count"), [(0, 3), (1, 1), (2, 2), (100, 3)])
def test_top_k(top_k: int, count: int, served: Running) -> None:
    with served.stub() as stub:
        response = stub.Recognize(pb.RecognizeRequest(image=encode(make_photo(RED)), top_k=top_k))
    probabilities = [candidate.probability for candidate in response.candidates]
    assert len(probabilities) == count
    assert probabilities == sorted(probabilities, reverse=True)
    if count == 3:
        assert sum(probabilities) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "field", "says"),
    [
        ({"month": 13}, "month", "month is '13'; expected a whole number from 1 (January) to 12"),
        ({"month": 0}, "month", "month is '0'"),
        ({"month": -1}, "month", "month is '-1'"),
        ({"top_k": -1}, "top_k", "top_k is -1; expected 1 to 100"),
        ({"top_k": 101}, "top_k", "top_k is 101; expected 1 to 100"),
        ({"habitat": "x" * 257}, "habitat", "habitat has 257 characters; at most 256"),
        ({"metadata": {"soil": "x" * 257}}, "metadata[soil]", "at most 256"),
        ({"metadata": {"month": "13"}}, "metadata[month]", "a field of its own"),
        ({"metadata": {"": "x"}}, "metadata[]", "expected 1 to 64 characters"),
        ({"metadata": {"n" * 65: "x"}}, f"metadata[{'n' * 64}]", "expected 1 to 64 characters"),
        ({"metadata": {f"s{i}": "x" for i in range(33)}}, "metadata", "33 metadata sources; at most 32"),
    ],
)
def test_field_out_of_range_is_named(changes: dict[str, object], field: str, says: str, served: Running) -> None:
    with served.stub() as stub:
        code, status = refused(lambda: stub.Recognize(pb.RecognizeRequest(image=encode(make_photo(RED)), **changes)))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert fields(status) == [field]
    assert says in status.message
    assert reason(status) == ("INPUT_ERROR" if field == "top_k" else "METADATA_ERROR")


def test_bundle_by_its_name(served: Running) -> None:
    with served.client(bundle="tiny") as client:
        assert client.recognize(encode(make_photo(RED))).bundle_name == "tiny"


@pytest.mark.parametrize("name", ["other", "x" * 1_000_000, "ß" * 10_000])
def test_unknown_bundle_is_not_found(name: str, served: Running) -> None:
    with served.stub() as stub:
        code, status = refused(lambda: stub.Recognize(pb.RecognizeRequest(image=encode(make_photo(RED)), bundle=name)))
    assert code is grpc.StatusCode.NOT_FOUND
    assert reason(status) == "UNKNOWN_BUNDLE"
    assert status.message.endswith("is served; expected one of: tiny, or no name")


def test_client_raises_what_the_server_raised(served: Running) -> None:
    photo = make_photo(RED)
    with served.client() as client:
        with pytest.raises(ImageError, match=r"the photograph is empty \(0 bytes\)"):
            client.recognize(b"")
        with pytest.raises(MetadataError, match="habitat has 300 characters"):
            client.recognize(encode(photo), {"habitat": "x" * 300})
        with pytest.raises(MetadataError, match="month is '13'"):
            client.recognize(encode(photo), {"month": "13"})
        with pytest.raises(InputError, match="top_k is 0"):
            client.recognize(encode(photo), top_k=0)
    with served.client(bundle="other") as client, pytest.raises(UnknownBundle, match="no bundle 'other' is served"):
        client.recognize(encode(photo))


def test_text_that_is_no_unicode_is_refused_before_it_is_sent(served: Running) -> None:
    with served.client() as client, pytest.raises(MetadataError, match="no Unicode text"):
        client.recognize(encode(make_photo(RED)), {"habitat": "\udcff"})
