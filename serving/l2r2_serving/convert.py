"""Messages ↔ types."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from l2r2.errors import InputError, MetadataError
from l2r2.types import (
    Candidate,
    Caution,
    Explanation,
    Metadata,
    Prediction,
    PredictionSet,
    Region,
    Stage,
    make_metadata,
)
from l2r2_serving.answer import Answer, Options
from l2r2_serving.limits import (
    DEFAULT_TOP_K,
    MAX_BATCH,
    MAX_DETECTIONS,
    MAX_ID_CHARS,
    MAX_NAME_CHARS,
    MAX_SOURCES,
    MAX_VALUE_CHARS,
    MIN_SESSION_CHARS,
    THUMBNAIL_PX,
    check_top_k,
)
from l2r2_serving.pictures import mask_png, read_mask
from l2r2_serving.status import naming
from l2r2_serving.v1 import recognition_pb2 as pb

OWN_FIELDS = ("habitat", "substrate", "month")
"""Metadata sources that a request has a field for."""

STAGES: Mapping[Stage, pb.Stage] = {Stage.FG: pb.STAGE_FG, Stage.FULL: pb.STAGE_FULL}

CAUTIONS: Mapping[Caution, pb.Caution] = {
    Caution.NOTHING_FOUND: pb.CAUTION_NOTHING_FOUND,
    Caution.FG_UNSURE_FULL_SURE: pb.CAUTION_FG_UNSURE_FULL_SURE,
    Caution.FLIPPED_BY_PRIOR: pb.CAUTION_FLIPPED_BY_PRIOR,
    Caution.HAZARD: pb.CAUTION_HAZARD,
}


def read_metadata(request: pb.RecognizeRequest) -> Metadata:
    """What is known of a photograph; blanks dropped.

    Raises:
        FieldError: around a MetadataError: month outside 1 to 12, too long, too many, or a name that is not free.
    """
    own: dict[str, str] = {}
    for source in ("habitat", "substrate"):
        if request.HasField(source):
            own[source] = getattr(request, source)
            _check_value(source, own[source])
    with naming("metadata"):
        if len(request.metadata) > MAX_SOURCES:
            raise MetadataError(f"{len(request.metadata)} metadata sources; at most {MAX_SOURCES} are taken")
    for source, value in request.metadata.items():
        field = f"metadata[{source[:MAX_NAME_CHARS]}]"
        with naming(field):
            _check_source(source)
        _check_value(field, value)
    with naming("month"):
        month = request.month if request.HasField("month") else None
        return make_metadata(**own, month=month, **request.metadata)


def read_top_k(request: pb.RecognizeRequest) -> int:
    """Candidates wanted, 1 to `MAX_TOP_K`.

    Raises:
        FieldError: outside that.
    """
    with naming("top_k"):
        return check_top_k(request.top_k) if request.top_k else DEFAULT_TOP_K


def read_options(request: pb.RecognizeRequest) -> Options:
    """What the caller wants beside the class.

    Raises:
        FieldError: a number outside its range, or fields that do not go together.
    """
    given = request.WhichOneof("foreground")
    box = getattr(request, given) if given in {"box_px", "box_normalized"} else None
    crop = given == "crop" and request.crop
    threshold = request.localizer_threshold if request.HasField("localizer_threshold") else None
    if threshold is not None:
        with naming("localizer_threshold"):
            _check_range("localizer_threshold", threshold, 0, 1, "a confidence")
    with naming("max_detections"):
        _check_range("max_detections", request.max_detections, 0, MAX_DETECTIONS, "answers")
    with naming("thumbnail_px"):
        if request.thumbnail_px:
            _check_range("thumbnail_px", request.thumbnail_px, *THUMBNAIL_PX, "pixels, or 0 for none")
    if box is not None or crop:
        for field, is_set in (
            ("localizer_threshold", threshold is not None),
            ("max_detections", request.max_detections > 1),
        ):
            with naming(field):
                if is_set:
                    raise InputError(f"{field} is set together with {given}: nothing is located then; leave one out")
    return Options(
        localizer_threshold=threshold,
        max_detections=max(request.max_detections, 1),
        box=None if box is None else (box.x_min, box.y_min, box.x_max, box.y_max),
        box_normalized=given == "box_normalized",
        crop=crop,
        explanation=request.explanation if request.HasField("explanation") else True,
        prediction_set=request.prediction_set if request.HasField("prediction_set") else True,
        thumbnail_px=request.thumbnail_px,
        mask=request.mask,
    )


def _check_range(field: str, value: float, low: float, high: float, unit: str) -> None:
    if not low <= value <= high:  # so, since NaN is in no range
        raise InputError(f"{field} is {value:g}; expected {low:g} to {high:g} {unit}")


def check_batch(request: pb.BatchRecognizeRequest) -> None:
    """Refuse more than `MAX_BATCH` requests.

    Raises:
        FieldError: more.
    """
    with naming("requests"):
        if len(request.requests) > MAX_BATCH:
            raise InputError(
                f"a batch of {len(request.requests)} requests; at most {MAX_BATCH} are taken, send several"
            )


def check_item(item: pb.StreamRecognizeRequest) -> None:
    """Refuse an item that could not be told from another.

    Raises:
        FieldError: its id or session is too short or too long, or the photograph is missing.
    """
    for field, value, least in (("id", item.id, 1), ("session", item.session, MIN_SESSION_CHARS)):
        with naming(field):
            if not least <= len(value) <= MAX_ID_CHARS and not (field == "session" and not value):
                raise InputError(f"{field} has {len(value)} characters; expected {least} to {MAX_ID_CHARS}")
    with naming("request"):
        if not item.HasField("request"):
            raise InputError("the item has no request; expected one with a photograph")


def to_request(
    data: bytes,
    metadata: Metadata,
    top_k: int,
    bundle: str,
    options: Options = Options(),  # noqa: B008
) -> pb.RecognizeRequest:
    """Say a question.

    Args:
        metadata: Checked as by `l2r2.types.make_metadata`.
        top_k: 1 to `MAX_TOP_K`.
    Raises:
        MetadataError: a month outside 1 to 12, or text that is no Unicode.
        InputError: top_k outside its range.
    """
    checked = make_metadata(**{str(source): value for source, value in metadata.items()})
    request = pb.RecognizeRequest(image=data, top_k=check_top_k(top_k))
    _write_options(request, options)
    try:
        for source, value in checked.items():
            if source == "month":
                request.month = int(value)
            elif source in OWN_FIELDS:
                setattr(request, source, value)
            else:
                request.metadata[source] = value
        request.bundle = bundle
    except UnicodeEncodeError as error:
        raise MetadataError(
            f"{error.object[:80]!r} holds characters that are no Unicode text; expected UTF-8"
        ) from None
    return request


def _write_options(request: pb.RecognizeRequest, options: Options) -> None:
    """Only what differs from saying nothing, so that an older service understands what it can."""
    if options.localizer_threshold is not None:
        request.localizer_threshold = options.localizer_threshold
    if options.max_detections > 1:
        request.max_detections = options.max_detections
    if options.box is not None:
        (request.box_normalized if options.box_normalized else request.box_px).CopyFrom(_to_box(options.box))
    if options.crop:
        request.crop = True
    if not options.explanation:
        request.explanation = False
    if not options.prediction_set:
        request.prediction_set = False
    request.thumbnail_px = options.thumbnail_px
    request.mask = options.mask


def to_response(answer: Answer) -> pb.RecognizeResponse:
    """Say an answer."""
    prediction = answer.prediction
    width, height = prediction.size_px
    thumbnails = answer.thumbnails or (b"",) * max(len(answer.detections), 1)
    return pb.RecognizeResponse(
        candidates=_to_candidates(prediction.candidates),
        region=_to_region(prediction) if prediction.region else None,
        image_size=pb.ImageSize(width_px=width, height_px=height),
        stages=_to_stages(prediction),
        explanation=_to_explanation(prediction.explanation) if prediction.explanation else None,
        cautions=[CAUTIONS[caution] for caution in prediction.cautions],
        unrecognized=[pb.UnrecognizedMetadata(source=s, value=v) for s, v in answer.unrecognized.items()],
        bundle=pb.BundleInfo(name=answer.bundle_name, version=answer.bundle_version),
        latencies=[pb.StepLatency(step=step, latency_ms=ms) for step, ms in prediction.latency_ms.items()],
        prediction_set=_to_set(prediction.prediction_set) if prediction.prediction_set else None,
        withheld=prediction.withheld,
        degraded=prediction.degraded,
        detections=[_to_detection(*each) for each in zip(answer.detections, thumbnails, strict=False)],
        thumbnail_jpeg=thumbnails[0],
    )


def _to_detection(prediction: Prediction, thumbnail: bytes) -> pb.Detection:
    return pb.Detection(
        region=_to_region(prediction),
        candidates=_to_candidates(prediction.candidates),
        stages=_to_stages(prediction),
        explanation=_to_explanation(prediction.explanation) if prediction.explanation else None,
        cautions=[CAUTIONS[caution] for caution in prediction.cautions],
        prediction_set=_to_set(prediction.prediction_set) if prediction.prediction_set else None,
        withheld=prediction.withheld,
        degraded=prediction.degraded,
        thumbnail_jpeg=thumbnail,
    )


def _to_stages(prediction: Prediction) -> list[pb.StageRun]:
    return [
        pb.StageRun(
            stage=STAGES[stage],
            confidence=prediction.stage_confidence[stage],
            candidates=_to_candidates(prediction.stage_candidates.get(stage, ())),
        )
        for stage in prediction.stages
    ]


def to_answer(response: pb.RecognizeResponse) -> Answer:
    """Hear an answer. Stages and cautions of a newer server are left out.

    Raises:
        InputError: a region that is none; the server is broken.
    """
    detections = tuple(_prediction(detection, response) for detection in response.detections)
    thumbnails = [detection.thumbnail_jpeg for detection in response.detections] or [response.thumbnail_jpeg]
    return Answer(
        prediction=_prediction(response, response),
        detections=detections,
        thumbnails=tuple(thumbnails) if any(thumbnails) else (),
        bundle_name=response.bundle.name,
        bundle_version=response.bundle.version,
        unrecognized={item.source: item.value for item in response.unrecognized},
    )


def _prediction(told: pb.RecognizeResponse | pb.Detection, response: pb.RecognizeResponse) -> Prediction:
    """What both messages have, and what concerns the whole photograph."""
    stages = {number: stage for stage, number in STAGES.items()}
    cautions = {number: caution for caution, number in CAUTIONS.items()}
    ran = {stages[run.stage]: run.confidence for run in told.stages if run.stage in stages}
    return Prediction(
        candidates=_candidates(told.candidates),
        region=_region(told.region) if told.HasField("region") else None,
        size_px=(response.image_size.width_px, response.image_size.height_px),
        stages=tuple(ran),
        stage_confidence=ran,
        explanation=_explanation(told.explanation) if told.HasField("explanation") else None,
        cautions=tuple(cautions[number] for number in told.cautions if number in cautions),
        unrecognized=tuple(item.source for item in response.unrecognized),
        prediction_set=_set(told.prediction_set) if told.HasField("prediction_set") else None,
        withheld=told.withheld,
        degraded=told.degraded,
        stage_candidates={stages[run.stage]: _candidates(run.candidates) for run in told.stages if run.stage in stages},
        latency_ms={item.step: item.latency_ms for item in response.latencies},
    )


def normalized(box_xyxy_px: tuple[float, float, float, float], width: int, height: int) -> tuple[float, ...]:
    """A box in pixels as shares of the photograph's width and height, [0, 1]."""
    return tuple(min(max(value / side, 0.0), 1.0) for value, side in zip(box_xyxy_px, (width, height) * 2, strict=True))


def _check_source(source: str) -> None:
    if not source.strip() or source != source.strip() or len(source) > MAX_NAME_CHARS:
        raise MetadataError(
            f"a metadata source is named {source[:80]!r}; expected 1 to {MAX_NAME_CHARS} characters, no blanks around"
        )
    if source in OWN_FIELDS:
        raise MetadataError(f"metadata holds {source!r}, which has a field of its own; set that one")


def _check_value(field: str, value: str) -> None:
    with naming(field):
        if len(value) > MAX_VALUE_CHARS:
            raise MetadataError(f"{field} has {len(value)} characters; at most {MAX_VALUE_CHARS} are taken")


def _to_candidates(candidates: Iterable[Candidate]) -> list[pb.Candidate]:
    return [pb.Candidate(index=c.index, name=c.name, probability=c.probability) for c in candidates]


def _candidates(candidates: Iterable[pb.Candidate]) -> tuple[Candidate, ...]:
    return tuple(Candidate(c.index, c.name, c.probability) for c in candidates)


def _to_set(found: PredictionSet) -> pb.PredictionSet:
    return pb.PredictionSet(members=_to_candidates(found.members), size=found.size, coverage=found.coverage)


def _set(found: pb.PredictionSet) -> PredictionSet:
    return PredictionSet(_candidates(found.members), found.size, found.coverage)


def _to_box(corners: tuple[float, ...]) -> pb.Box:
    return pb.Box(x_min=corners[0], y_min=corners[1], x_max=corners[2], y_max=corners[3])


def _to_region(prediction: Prediction) -> pb.Region:
    region = prediction.region
    assert region is not None
    box = region.box_xyxy_px
    return pb.Region(
        box_px=_to_box(box),
        box_normalized=_to_box(normalized(box, *prediction.size_px)),
        score=region.score,
        mask_png=b"" if region.mask is None else mask_png(region.mask),
    )


def _region(region: pb.Region) -> Region:
    box = region.box_px
    mask = read_mask(region.mask_png) if region.mask_png else None
    return Region((box.x_min, box.y_min, box.x_max, box.y_max), region.score, mask)


def _to_explanation(explanation: Explanation) -> pb.Explanation:
    return pb.Explanation(
        rival=explanation.rival,
        total_log_odds=explanation.total,
        parts=[pb.EvidencePart(source=source, log_odds=part) for source, part in explanation.parts.items()],
    )


def _explanation(explanation: pb.Explanation) -> Explanation:
    parts = {part.source: part.log_odds for part in explanation.parts}
    return Explanation(explanation.rival, explanation.total_log_odds, parts)
