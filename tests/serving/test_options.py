"""What a request may ask for beside the class, and what a bundle says of itself."""

import io
import math
import time
from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

import grpc
import numpy as np
import pytest
from PIL import Image

from l2r2.bundle import Bundle
from l2r2.errors import DeadlinePassed
from l2r2.images import Photograph
from l2r2.types import Pixels, Region, Stage
from l2r2_serving.answer import Options
from l2r2_serving.bundles import OpenBundle, open_bundle
from l2r2_serving.deadline import Deadline
from l2r2_serving.pictures import MASK_PX, mask_png, read_mask
from l2r2_serving.v1 import recognition_pb2 as pb
from tests.serving.running import ChangedBundle, GatedLocalizer, Running, running
from tests.serving.statuses import fields, refused
from tests.tiny import (
    BLUE,
    DARK,
    GREEN,
    MUDDY,
    RED,
    encode,
    make_photo,
    make_tiny_bundle,
    make_tiny_manifest,
    make_uniform,
)

MUDDY_PHOTO = encode(make_photo(MUDDY, DARK))


def two_things() -> np.ndarray:
    """A large red and a small blue object."""
    photo = make_photo(RED)
    photo[90:110, 5:25] = BLUE
    return photo


def ask(place: Running, photo: np.ndarray, **fields: object) -> pb.RecognizeResponse:
    with place.stub() as stub:
        return stub.Recognize(pb.RecognizeRequest(image=encode(photo), **fields))


def size_of(data: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(data)) as image:
        return image.size


def test_decoding_and_locating_are_told_apart_where_the_caller_chooses(opened: OpenBundle) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1500, 2000, 3), dtype=np.uint8)
    steps = opened.answer(encode(noise), {}, 1, Options(mask=True)).prediction.latency_ms
    assert list(steps)[:2] == ["decode", "locate"]
    assert steps["decode"] > 5  # no machine decodes nine megabytes of PNG in less


def test_each_thing_is_answered_where_several_were_asked_for(served: Running) -> None:
    response = ask(served, two_things(), max_detections=5)
    assert [each.candidates[0].name for each in response.detections] == ["red", "blue"]
    assert response.candidates[0].name == "red"
    assert response.region == response.detections[0].region
    corners = [side for each in response.detections for side in (each.region.box_px.x_min, each.region.box_px.y_max)]
    assert corners == pytest.approx([52, 84, 5, 110], abs=1)
    assert all(each.explanation.parts and each.stages for each in response.detections)
    one = ask(served, two_things(), max_detections=1)
    assert not one.detections
    assert one.candidates == ask(served, two_things()).candidates


def test_no_more_detections_than_asked_for(served: Running) -> None:
    assert len(ask(served, two_things(), max_detections=2).detections) == 2
    nothing = ask(served, make_uniform(), max_detections=5)
    assert not nothing.detections
    assert not nothing.HasField("region")
    assert nothing.candidates[0].name == "red"


def test_the_localizers_threshold_is_the_callers(served: Running) -> None:
    assert ask(served, make_photo(), localizer_threshold=0.5).HasField("region")
    assert not ask(served, make_photo(), localizer_threshold=1.0).HasField("region")
    assert ask(served, make_photo(), localizer_threshold=0.0).HasField("region")


@pytest.mark.parametrize(
    "box", [{"box_px": pb.Box(x_min=5, y_min=90, x_max=25, y_max=110)},
            {"box_normalized": pb.Box(x_min=5 / 160, y_min=90 / 120, x_max=25 / 160, y_max=110 / 120)}],
    ids=["pixels", "shares"],
)  # fmt: skip
def test_a_callers_box_is_taken_as_it_is(box: dict[str, pb.Box], served: Running) -> None:
    response = ask(served, two_things(), **box)
    assert response.candidates[0].name == "blue"
    assert response.region.score == 1.0
    found = response.region.box_px
    assert (found.x_min, found.y_min, found.x_max, found.y_max) == pytest.approx((5, 90, 25, 110))
    assert "locate" not in {each.step for each in response.latencies}


def test_a_box_is_cut_to_the_photograph(served: Running) -> None:
    response = ask(served, make_photo(), box_px=pb.Box(x_min=-50, y_min=36, x_max=108, y_max=1000))
    found = response.region.box_px
    assert (found.x_min, found.y_min, found.x_max, found.y_max) == (0, 36, 108, 120)


@pytest.mark.parametrize(
    "box",
    [(200, 0, 300, 50), (50, 50, 50, 80), (80, 50, 20, 80), (math.nan, 0, 50, 50), (0, 0, 0.4, 0.4)],
    ids=["outside", "empty", "turned", "nan", "below a pixel"],
)
@pytest.mark.parametrize("field", ["box_px", "box_normalized"])
def test_a_box_without_a_pixel_is_refused(field: str, box: tuple[float, ...], served: Running) -> None:
    sides = [
        side / (160 if place % 2 == 0 else 120) if field == "box_normalized" else side for place, side in enumerate(box)
    ]
    given = pb.Box(**dict(zip(("x_min", "y_min", "x_max", "y_max"), sides, strict=True)))
    code, status = refused(lambda: ask(served, make_photo(), **{field: given}))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert fields(status) == [field]
    assert "has no pixel of the 160×120 photograph" in status.message


def test_a_ready_made_crop_is_answered_by_fg_alone(served: Running) -> None:
    crop = make_uniform(GREEN)
    response = ask(served, crop, crop=True)
    assert response.candidates[0].name == "green"
    assert [run.stage for run in response.stages] == [pb.STAGE_FG]
    assert not response.degraded
    assert ask(served, make_uniform(MUDDY), crop=True).degraded
    assert not ask(served, crop, crop=False).HasField("region")


def test_thumbnail_and_mask(served: Running) -> None:
    response = ask(served, two_things(), max_detections=2, thumbnail_px=40, mask=True)
    sides = [side for each in response.detections for side in size_of(each.thumbnail_jpeg)]
    assert sides == pytest.approx([40, 34, 20, 20], abs=1)
    assert response.thumbnail_jpeg == response.detections[0].thumbnail_jpeg
    with Image.open(io.BytesIO(response.thumbnail_jpeg)) as image:
        assert image.format == "JPEG"
        assert np.asarray(image).mean(axis=(0, 1)) == pytest.approx([250, 0, 0], abs=12)
    mask = read_mask(response.region.mask_png)
    assert mask.shape == (120, 160)
    x0, y0, x1, y1 = 52, 36, 108, 84
    assert mask[y0 + 2 : y1 - 2, x0 + 2 : x1 - 2].all()
    assert mask.sum() == pytest.approx((x1 - x0) * (y1 - y0), rel=0.1)
    plain = ask(served, two_things())
    assert not plain.thumbnail_jpeg
    assert not plain.region.mask_png


def test_no_thumbnail_of_nothing(served: Running) -> None:
    assert not ask(served, make_uniform(), thumbnail_px=64).thumbnail_jpeg


def test_a_mask_that_is_sent_is_small() -> None:
    mask = np.zeros((2000, 3000), bool)
    mask[500:1500, 1000:2000] = True
    small = read_mask(mask_png(mask))
    assert small.shape == (341, MASK_PX)
    assert small.mean() == pytest.approx(mask.mean(), rel=0.02)


def test_what_is_not_wanted_is_left_out(tmp_path_factory: pytest.TempPathFactory) -> None:
    whole = make_tiny_manifest().policy
    policy = whole.model_copy(update={"coverage": 0.9, "set_threshold": 0.05})
    with running(make_tiny_bundle(tmp_path_factory.mktemp("sets") / "sets", policy=policy)) as place:
        whole = ask(place, make_photo(MUDDY))
        assert whole.HasField("explanation")
        assert whole.HasField("prediction_set")
        less = ask(place, make_photo(MUDDY), explanation=False, prediction_set=False)
        assert not less.HasField("explanation")
        assert not less.HasField("prediction_set")
        assert less.candidates == whole.candidates


def test_stages_say_what_they_would_answer_alone(served: Running) -> None:
    response = ask(served, make_photo(MUDDY, DARK), top_k=2)
    assert [run.stage for run in response.stages] == [pb.STAGE_FG, pb.STAGE_FULL]
    for run in response.stages:
        assert len(run.candidates) == 2
        assert run.confidence == run.candidates[0].probability


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"localizer_threshold": 1.5}, "localizer_threshold"),
        ({"localizer_threshold": math.nan}, "localizer_threshold"),
        ({"max_detections": 17}, "max_detections"),
        ({"max_detections": -1}, "max_detections"),
        ({"thumbnail_px": 31}, "thumbnail_px"),
        ({"thumbnail_px": 513}, "thumbnail_px"),
        ({"crop": True, "max_detections": 2}, "max_detections"),
        ({"box_px": pb.Box(x_max=50, y_max=50), "localizer_threshold": 0.5}, "localizer_threshold"),
    ],
)
def test_a_wrong_option_is_refused_by_name(wrong: dict[str, object], field: str, served: Running) -> None:
    code, status = refused(lambda: ask(served, make_photo(), **wrong))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert fields(status) == [field]
    assert field in status.message


def test_where_full_cannot_fit_fg_answers_and_says_so(opened: OpenBundle) -> None:
    for _ in range(50):
        opened.costs.learn({"classify FULL": 3_600_000.0})  # an hour
    try:
        answer = opened.answer(MUDDY_PHOTO, {}, 5, deadline=Deadline(time.monotonic() + 60))
        assert answer.prediction.degraded
        assert answer.prediction.stages == (Stage.FG,)
        assert not opened.answer(MUDDY_PHOTO, {}, 5).prediction.degraded  # who waits for ever can have it
        sure = opened.answer(encode(make_photo(RED)), {}, 5, deadline=Deadline(time.monotonic() + 60))
        assert not sure.prediction.degraded  # nothing was wanted that it did not get
    finally:
        opened.costs.__init__()


def test_a_degraded_answer_travels(bundle: Bundle) -> None:
    held = ChangedBundle(bundle, GatedLocalizer)
    with running(held) as place, place.stub() as stub:
        (opened,) = place.server._shelf.all()
        for _ in range(50):
            opened.costs.learn({"classify FULL": 3_600_000.0})
        response = stub.Recognize(pb.RecognizeRequest(image=MUDDY_PHOTO), timeout=30)
        assert response.degraded
        assert [run.stage for run in response.stages] == [pb.STAGE_FG]


class CountedLocalizer(GatedLocalizer):
    """Tells instances, too."""

    def instances(
        self, photos: Sequence[Pixels], min_score: float | None = None, *, masks: bool = False
    ) -> list[list[Region]]:
        self.reached += len(photos)
        return self.inner.instances(photos, min_score, masks=masks)  # type: ignore[attr-defined, no-any-return]

    def decide(self, photo: Pixels, instances: Sequence[Region]) -> Region | None:
        return self.inner.decide(photo, instances)  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize("options", [Options(), Options(max_detections=2), Options(mask=True)])
def test_nothing_is_looked_for_once_decoding_took_too_long(options: Options, bundle: Bundle) -> None:
    held = ChangedBundle(bundle, CountedLocalizer)
    opened = open_bundle(held)  # type: ignore[arg-type]
    late, before = Deadline(), held.localizer.reached

    class Slow(Photograph):
        def at(self, scale: float) -> Any:
            late.at = time.monotonic()
            return super().at(scale)

    with patch("l2r2_serving.bundles.Photograph", Slow), pytest.raises(DeadlinePassed, match="the deadline passed"):
        opened.answer(MUDDY_PHOTO, {}, 5, options, late)
    assert held.localizer.reached == before
    late.at = math.inf
    assert opened.answer(MUDDY_PHOTO, {}, 5, options).prediction.answer.name
    assert held.localizer.reached == before + 1


def test_work_stops_between_stages_for_who_has_left(opened: OpenBundle) -> None:
    calls: list[str] = []

    class Leaving(Deadline):
        def require(self) -> None:
            calls.append("asked")
            if len(calls) == 3:
                self.gone = True
            super().require()

    with pytest.raises(Exception, match="the caller has hung up"):
        opened.answer(MUDDY_PHOTO, {}, 5, deadline=Leaving())
    assert len(calls) == 3


def test_options_are_the_same_in_this_process(opened: OpenBundle, served: Running) -> None:
    answer = opened.answer(encode(two_things()), {}, 5, Options(max_detections=3, thumbnail_px=32))
    response = ask(served, two_things(), max_detections=3, thumbnail_px=32)
    assert [each.answer.name for each in answer.detections] == [each.candidates[0].name for each in response.detections]
    assert list(answer.thumbnails) == [each.thumbnail_jpeg for each in response.detections]


def test_a_bundle_says_what_it_knows(served: Running, bundle: Bundle) -> None:
    with served.stub() as stub:
        described = stub.GetBundle(pb.GetBundleRequest()).bundle
        assert stub.GetBundle(pb.GetBundleRequest(name="tiny")).bundle == described
        (listed,) = stub.ListBundles(pb.ListBundlesRequest()).bundles
        code, _status = refused(lambda: stub.GetBundle(pb.GetBundleRequest(name="none")))
    assert code is grpc.StatusCode.NOT_FOUND
    assert listed == described.info
    assert (described.info.name, described.info.version) == ("tiny", bundle.version)
    assert list(described.class_names) == ["red", "green", "blue"]
    words = {each.source: list(each.values) for each in described.vocabularies}
    assert words["habitat"] == ["forest", "meadow", "shore"]
    assert words["month"] == [str(month) for month in range(1, 13)]
    assert (described.gate_threshold, described.localizer_threshold) == (0.8, 0.5)
    assert (described.fusion, described.localizer, described.deployment) == ("smax", "u2netp", "onnxruntime/fp32")
    assert not described.HasField("coverage")
    assert (described.image_limits.max_bytes, described.image_limits.min_side_px) == (32 * 2**20, 16)


def test_nothing_is_listed_before_it_is_ready(bundle: Bundle) -> None:
    with running(bundle, warm=False) as place, place.stub() as stub:
        assert not stub.ListBundles(pb.ListBundlesRequest()).bundles
        code, _status = refused(lambda: stub.GetBundle(pb.GetBundleRequest()))
        assert code is grpc.StatusCode.FAILED_PRECONDITION


def test_a_request_id_comes_back(served: Running) -> None:
    with served.stub() as stub:
        for sent, wanted in (("my-request-7", "my-request-7"), ("x" * 200, None), (None, None)):
            metadata = [("x-request-id", sent)] if sent else []
            _response, call = stub.ListBundles.with_call(pb.ListBundlesRequest(), metadata=metadata)
            (got,) = [value for key, value in call.trailing_metadata() if key == "x-request-id"]
            assert got == wanted if wanted else len(got) == 16


def test_opening_a_bundle_learns_what_full_costs(bundle: Bundle) -> None:
    opened = open_bundle(bundle)
    opened.warm_up()
    assert 0 < opened.costs.expected_s(Stage.FULL) < 10
