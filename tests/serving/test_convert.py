"""Messages ↔ types, without a server."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l2r2.errors import InputError
from l2r2.types import Candidate, Caution, Explanation, Prediction, PredictionSet, Region, Stage
from l2r2_serving.answer import Answer, Options
from l2r2_serving.convert import (
    CAUTIONS,
    STAGES,
    normalized,
    read_metadata,
    read_options,
    to_answer,
    to_request,
    to_response,
)
from l2r2_serving.v1 import recognition_pb2 as pb

ANSWER = Answer(
    Prediction(
        candidates=(Candidate(2, "blue", 0.75), Candidate(0, "red", 0.25)),
        region=Region((10.0, 20.0, 30.0, 60.0), 0.5),
        size_px=(100, 80),
        stages=(Stage.FG, Stage.FULL),
        stage_confidence={Stage.FG: 0.4, Stage.FULL: 0.9},
        explanation=Explanation("red", 1.0, {"FG": 0.25, "FULL": 1.0, "month": -0.25}),
        cautions=tuple(Caution),
        unrecognized=("soil",),
        prediction_set=PredictionSet((Candidate(2, "blue", 0.75), Candidate(0, "red", 0.25)), 7, 0.9),
        withheld=True,
        degraded=True,
        stage_candidates={Stage.FG: (Candidate(0, "red", 0.4),), Stage.FULL: (Candidate(2, "blue", 0.9),)},
        latency_ms={"decode": 1.5, "locate": 2.5},
    ),
    "tiny",
    "0123456789ab",
    {"soil": "chalk"},
)


def test_every_stage_and_caution_has_a_number() -> None:
    assert set(STAGES) == set(Stage)
    assert set(CAUTIONS) == set(Caution)
    assert set(STAGES.values()) == set(pb.Stage.values()) - {pb.STAGE_UNSPECIFIED}
    assert set(CAUTIONS.values()) == set(pb.Caution.values()) - {pb.CAUTION_UNSPECIFIED}


def test_an_answer_there_and_back() -> None:
    again = to_answer(pb.RecognizeResponse.FromString(to_response(ANSWER).SerializeToString()))
    for name in ("bundle_name", "bundle_version", "unrecognized"):
        assert getattr(again, name) == getattr(ANSWER, name)
    a, b = again.prediction, ANSWER.prediction
    assert a.region is not None
    assert b.region is not None
    assert (a.region.box_xyxy_px, a.region.score) == (b.region.box_xyxy_px, b.region.score)
    for name in Prediction.__slots__:
        if name != "region":
            assert getattr(a, name) == getattr(b, name)


def test_detections_there_and_back() -> None:
    other = replace(ANSWER.prediction, candidates=(Candidate(1, "green", 1.0),), withheld=False)
    answer = replace(ANSWER, detections=(ANSWER.prediction, other), thumbnails=(b"one", b""))
    again = to_answer(pb.RecognizeResponse.FromString(to_response(answer).SerializeToString()))
    assert [each.answer.name for each in again.detections] == ["blue", "green"]
    assert [each.withheld for each in again.detections] == [True, False]
    assert again.thumbnails == (b"one", b"")
    assert to_answer(to_response(ANSWER)).thumbnails == ()


OPTIONS = st.builds(
    Options,
    localizer_threshold=st.none() | st.floats(0, 1),
    max_detections=st.integers(1, 16),
    explanation=st.booleans(),
    prediction_set=st.booleans(),
    thumbnail_px=st.just(0) | st.integers(32, 512),
    mask=st.booleans(),
) | st.builds(
    Options,
    box=st.none() | st.tuples(*[st.floats(0, 1)] * 4),
    box_normalized=st.booleans(),
    mask=st.booleans(),
)


@given(options=OPTIONS)
def test_options_there_and_back(options: Options) -> None:
    sent = pb.RecognizeRequest.FromString(to_request(b"photo", {}, 5, "", options).SerializeToString())
    assert read_options(sent) == (options if options.box is not None else replace(options, box_normalized=False))


def test_a_crop_there_and_back() -> None:
    assert read_options(to_request(b"photo", {}, 5, "", Options(crop=True))) == Options(crop=True)
    assert read_options(pb.RecognizeRequest(image=b"photo")) == Options()


def test_what_is_absent_stays_absent() -> None:
    bare = replace(ANSWER, prediction=replace(ANSWER.prediction, region=None, explanation=None, prediction_set=None))
    response = to_response(bare)
    assert not response.HasField("region")
    assert not response.HasField("explanation")
    assert not response.HasField("prediction_set")
    again = to_answer(response).prediction
    assert again.region is None
    assert again.explanation is None


def test_what_a_newer_server_says_is_left_out() -> None:
    response = to_response(ANSWER)
    response.cautions.append(99)
    response.stages.add(stage=99, confidence=0.5)
    again = to_answer(response).prediction
    assert again.cautions == ANSWER.prediction.cautions
    assert again.stages == ANSWER.prediction.stages


def test_a_box_as_shares() -> None:
    # 10 / 100, 20 / 80, 30 / 100, 60 / 80
    assert normalized((10.0, 20.0, 30.0, 60.0), 100, 80) == (0.1, 0.25, 0.3, 0.75)
    assert normalized((-1.0, 0.0, 100.5, 80.0), 100, 80) == (0.0, 0.0, 1.0, 1.0)


@given(
    st.dictionaries(
        st.sampled_from(["habitat", "substrate", "soil", "host tree"]),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=256),
    ),
    st.none() | st.integers(1, 12),
)
def test_metadata_there_and_back(values: dict[str, str], month: int | None) -> None:
    given_values = {**values, **({} if month is None else {"month": str(month)})}
    wanted = {source: value.strip() for source, value in given_values.items() if value.strip()}
    assert read_metadata(to_request(b"", given_values, 5, "")) == wanted


def test_top_k_that_no_message_can_hold() -> None:
    with pytest.raises(InputError, match="expected 1 to 100"):
        to_request(b"", {}, 2**40, "")
