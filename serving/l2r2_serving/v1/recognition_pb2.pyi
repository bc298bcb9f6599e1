from google.protobuf import any_pb2 as _any_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Stage(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STAGE_UNSPECIFIED: _ClassVar[Stage]
    STAGE_FG: _ClassVar[Stage]
    STAGE_FULL: _ClassVar[Stage]

class Caution(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CAUTION_UNSPECIFIED: _ClassVar[Caution]
    CAUTION_NOTHING_FOUND: _ClassVar[Caution]
    CAUTION_FG_UNSURE_FULL_SURE: _ClassVar[Caution]
    CAUTION_FLIPPED_BY_PRIOR: _ClassVar[Caution]
    CAUTION_HAZARD: _ClassVar[Caution]
STAGE_UNSPECIFIED: Stage
STAGE_FG: Stage
STAGE_FULL: Stage
CAUTION_UNSPECIFIED: Caution
CAUTION_NOTHING_FOUND: Caution
CAUTION_FG_UNSURE_FULL_SURE: Caution
CAUTION_FLIPPED_BY_PRIOR: Caution
CAUTION_HAZARD: Caution

class RecognizeRequest(_message.Message):
    __slots__ = ("image", "habitat", "substrate", "month", "metadata", "top_k", "bundle", "localizer_threshold", "max_detections", "box_px", "box_normalized", "crop", "explanation", "prediction_set", "thumbnail_px", "mask")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    HABITAT_FIELD_NUMBER: _ClassVar[int]
    SUBSTRATE_FIELD_NUMBER: _ClassVar[int]
    MONTH_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    LOCALIZER_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    MAX_DETECTIONS_FIELD_NUMBER: _ClassVar[int]
    BOX_PX_FIELD_NUMBER: _ClassVar[int]
    BOX_NORMALIZED_FIELD_NUMBER: _ClassVar[int]
    CROP_FIELD_NUMBER: _ClassVar[int]
    EXPLANATION_FIELD_NUMBER: _ClassVar[int]
    PREDICTION_SET_FIELD_NUMBER: _ClassVar[int]
    THUMBNAIL_PX_FIELD_NUMBER: _ClassVar[int]
    MASK_FIELD_NUMBER: _ClassVar[int]
    image: bytes
    habitat: str
    substrate: str
    month: int
    metadata: _containers.ScalarMap[str, str]
    top_k: int
    bundle: str
    localizer_threshold: float
    max_detections: int
    box_px: Box
    box_normalized: Box
    crop: bool
    explanation: bool
    prediction_set: bool
    thumbnail_px: int
    mask: bool
    def __init__(self, image: _Optional[bytes] = ..., habitat: _Optional[str] = ..., substrate: _Optional[str] = ..., month: _Optional[int] = ..., metadata: _Optional[_Mapping[str, str]] = ..., top_k: _Optional[int] = ..., bundle: _Optional[str] = ..., localizer_threshold: _Optional[float] = ..., max_detections: _Optional[int] = ..., box_px: _Optional[_Union[Box, _Mapping]] = ..., box_normalized: _Optional[_Union[Box, _Mapping]] = ..., crop: _Optional[bool] = ..., explanation: _Optional[bool] = ..., prediction_set: _Optional[bool] = ..., thumbnail_px: _Optional[int] = ..., mask: _Optional[bool] = ...) -> None: ...

class RecognizeResponse(_message.Message):
    __slots__ = ("candidates", "region", "image_size", "stages", "explanation", "cautions", "unrecognized", "bundle", "latencies", "prediction_set", "withheld", "degraded", "detections", "thumbnail_jpeg")
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    IMAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    EXPLANATION_FIELD_NUMBER: _ClassVar[int]
    CAUTIONS_FIELD_NUMBER: _ClassVar[int]
    UNRECOGNIZED_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    LATENCIES_FIELD_NUMBER: _ClassVar[int]
    PREDICTION_SET_FIELD_NUMBER: _ClassVar[int]
    WITHHELD_FIELD_NUMBER: _ClassVar[int]
    DEGRADED_FIELD_NUMBER: _ClassVar[int]
    DETECTIONS_FIELD_NUMBER: _ClassVar[int]
    THUMBNAIL_JPEG_FIELD_NUMBER: _ClassVar[int]
    candidates: _containers.RepeatedCompositeFieldContainer[Candidate]
    region: Region
    image_size: ImageSize
    stages: _containers.RepeatedCompositeFieldContainer[StageRun]
    explanation: Explanation
    cautions: _containers.RepeatedScalarFieldContainer[Caution]
    unrecognized: _containers.RepeatedCompositeFieldContainer[UnrecognizedMetadata]
    bundle: BundleInfo
    latencies: _containers.RepeatedCompositeFieldContainer[StepLatency]
    prediction_set: PredictionSet
    withheld: bool
    degraded: bool
    detections: _containers.RepeatedCompositeFieldContainer[Detection]
    thumbnail_jpeg: bytes
    def __init__(self, candidates: _Optional[_Iterable[_Union[Candidate, _Mapping]]] = ..., region: _Optional[_Union[Region, _Mapping]] = ..., image_size: _Optional[_Union[ImageSize, _Mapping]] = ..., stages: _Optional[_Iterable[_Union[StageRun, _Mapping]]] = ..., explanation: _Optional[_Union[Explanation, _Mapping]] = ..., cautions: _Optional[_Iterable[_Union[Caution, str]]] = ..., unrecognized: _Optional[_Iterable[_Union[UnrecognizedMetadata, _Mapping]]] = ..., bundle: _Optional[_Union[BundleInfo, _Mapping]] = ..., latencies: _Optional[_Iterable[_Union[StepLatency, _Mapping]]] = ..., prediction_set: _Optional[_Union[PredictionSet, _Mapping]] = ..., withheld: _Optional[bool] = ..., degraded: _Optional[bool] = ..., detections: _Optional[_Iterable[_Union[Detection, _Mapping]]] = ..., thumbnail_jpeg: _Optional[bytes] = ...) -> None: ...

class Detection(_message.Message):
    __slots__ = ("region", "candidates", "stages", "explanation", "cautions", "prediction_set", "withheld", "degraded", "thumbnail_jpeg")
    REGION_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    EXPLANATION_FIELD_NUMBER: _ClassVar[int]
    CAUTIONS_FIELD_NUMBER: _ClassVar[int]
    PREDICTION_SET_FIELD_NUMBER: _ClassVar[int]
    WITHHELD_FIELD_NUMBER: _ClassVar[int]
    DEGRADED_FIELD_NUMBER: _ClassVar[int]
    THUMBNAIL_JPEG_FIELD_NUMBER: _ClassVar[int]
    region: Region
    candidates: _containers.RepeatedCompositeFieldContainer[Candidate]
    stages: _containers.RepeatedCompositeFieldContainer[StageRun]
    explanation: Explanation
    cautions: _containers.RepeatedScalarFieldContainer[Caution]
    prediction_set: PredictionSet
    withheld: bool
    degraded: bool
    thumbnail_jpeg: bytes
    def __init__(self, region: _Optional[_Union[Region, _Mapping]] = ..., candidates: _Optional[_Iterable[_Union[Candidate, _Mapping]]] = ..., stages: _Optional[_Iterable[_Union[StageRun, _Mapping]]] = ..., explanation: _Optional[_Union[Explanation, _Mapping]] = ..., cautions: _Optional[_Iterable[_Union[Caution, str]]] = ..., prediction_set: _Optional[_Union[PredictionSet, _Mapping]] = ..., withheld: _Optional[bool] = ..., degraded: _Optional[bool] = ..., thumbnail_jpeg: _Optional[bytes] = ...) -> None: ...

class StreamRecognizeRequest(_message.Message):
    __slots__ = ("id", "session", "request")
    ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    id: str
    session: str
    request: RecognizeRequest
    def __init__(self, id: _Optional[str] = ..., session: _Optional[str] = ..., request: _Optional[_Union[RecognizeRequest, _Mapping]] = ...) -> None: ...

class StreamRecognizeResponse(_message.Message):
    __slots__ = ("id", "response", "status", "replayed")
    ID_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    REPLAYED_FIELD_NUMBER: _ClassVar[int]
    id: str
    response: RecognizeResponse
    status: ItemStatus
    replayed: bool
    def __init__(self, id: _Optional[str] = ..., response: _Optional[_Union[RecognizeResponse, _Mapping]] = ..., status: _Optional[_Union[ItemStatus, _Mapping]] = ..., replayed: _Optional[bool] = ...) -> None: ...

class GetBundleRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetBundleResponse(_message.Message):
    __slots__ = ("bundle",)
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    bundle: BundleDescription
    def __init__(self, bundle: _Optional[_Union[BundleDescription, _Mapping]] = ...) -> None: ...

class ListBundlesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListBundlesResponse(_message.Message):
    __slots__ = ("bundles",)
    BUNDLES_FIELD_NUMBER: _ClassVar[int]
    bundles: _containers.RepeatedCompositeFieldContainer[BundleInfo]
    def __init__(self, bundles: _Optional[_Iterable[_Union[BundleInfo, _Mapping]]] = ...) -> None: ...

class BundleDescription(_message.Message):
    __slots__ = ("info", "class_names", "hazardous_class_names", "vocabularies", "gate_threshold", "localizer_threshold", "coverage", "fusion", "localizer", "deployment", "image_limits")
    INFO_FIELD_NUMBER: _ClassVar[int]
    CLASS_NAMES_FIELD_NUMBER: _ClassVar[int]
    HAZARDOUS_CLASS_NAMES_FIELD_NUMBER: _ClassVar[int]
    VOCABULARIES_FIELD_NUMBER: _ClassVar[int]
    GATE_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    LOCALIZER_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    COVERAGE_FIELD_NUMBER: _ClassVar[int]
    FUSION_FIELD_NUMBER: _ClassVar[int]
    LOCALIZER_FIELD_NUMBER: _ClassVar[int]
    DEPLOYMENT_FIELD_NUMBER: _ClassVar[int]
    IMAGE_LIMITS_FIELD_NUMBER: _ClassVar[int]
    info: BundleInfo
    class_names: _containers.RepeatedScalarFieldContainer[str]
    hazardous_class_names: _containers.RepeatedScalarFieldContainer[str]
    vocabularies: _containers.RepeatedCompositeFieldContainer[Vocabulary]
    gate_threshold: float
    localizer_threshold: float
    coverage: float
    fusion: str
    localizer: str
    deployment: str
    image_limits: ImageLimits
    def __init__(self, info: _Optional[_Union[BundleInfo, _Mapping]] = ..., class_names: _Optional[_Iterable[str]] = ..., hazardous_class_names: _Optional[_Iterable[str]] = ..., vocabularies: _Optional[_Iterable[_Union[Vocabulary, _Mapping]]] = ..., gate_threshold: _Optional[float] = ..., localizer_threshold: _Optional[float] = ..., coverage: _Optional[float] = ..., fusion: _Optional[str] = ..., localizer: _Optional[str] = ..., deployment: _Optional[str] = ..., image_limits: _Optional[_Union[ImageLimits, _Mapping]] = ...) -> None: ...

class Vocabulary(_message.Message):
    __slots__ = ("source", "values")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    source: str
    values: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, source: _Optional[str] = ..., values: _Optional[_Iterable[str]] = ...) -> None: ...

class ImageLimits(_message.Message):
    __slots__ = ("max_bytes", "max_pixels", "min_side_px")
    MAX_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_PIXELS_FIELD_NUMBER: _ClassVar[int]
    MIN_SIDE_PX_FIELD_NUMBER: _ClassVar[int]
    max_bytes: int
    max_pixels: int
    min_side_px: int
    def __init__(self, max_bytes: _Optional[int] = ..., max_pixels: _Optional[int] = ..., min_side_px: _Optional[int] = ...) -> None: ...

class BatchRecognizeRequest(_message.Message):
    __slots__ = ("requests",)
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    requests: _containers.RepeatedCompositeFieldContainer[RecognizeRequest]
    def __init__(self, requests: _Optional[_Iterable[_Union[RecognizeRequest, _Mapping]]] = ...) -> None: ...

class BatchRecognizeResponse(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[BatchRecognizeResult]
    def __init__(self, results: _Optional[_Iterable[_Union[BatchRecognizeResult, _Mapping]]] = ...) -> None: ...

class BatchRecognizeResult(_message.Message):
    __slots__ = ("response", "status")
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    response: RecognizeResponse
    status: ItemStatus
    def __init__(self, response: _Optional[_Union[RecognizeResponse, _Mapping]] = ..., status: _Optional[_Union[ItemStatus, _Mapping]] = ...) -> None: ...

class ItemStatus(_message.Message):
    __slots__ = ("code", "message", "details")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    DETAILS_FIELD_NUMBER: _ClassVar[int]
    code: int
    message: str
    details: _containers.RepeatedCompositeFieldContainer[_any_pb2.Any]
    def __init__(self, code: _Optional[int] = ..., message: _Optional[str] = ..., details: _Optional[_Iterable[_Union[_any_pb2.Any, _Mapping]]] = ...) -> None: ...

class Candidate(_message.Message):
    __slots__ = ("index", "name", "probability")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    index: int
    name: str
    probability: float
    def __init__(self, index: _Optional[int] = ..., name: _Optional[str] = ..., probability: _Optional[float] = ...) -> None: ...

class PredictionSet(_message.Message):
    __slots__ = ("members", "size", "coverage")
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    COVERAGE_FIELD_NUMBER: _ClassVar[int]
    members: _containers.RepeatedCompositeFieldContainer[Candidate]
    size: int
    coverage: float
    def __init__(self, members: _Optional[_Iterable[_Union[Candidate, _Mapping]]] = ..., size: _Optional[int] = ..., coverage: _Optional[float] = ...) -> None: ...

class Region(_message.Message):
    __slots__ = ("box_px", "box_normalized", "score", "mask_png")
    BOX_PX_FIELD_NUMBER: _ClassVar[int]
    BOX_NORMALIZED_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    MASK_PNG_FIELD_NUMBER: _ClassVar[int]
    box_px: Box
    box_normalized: Box
    score: float
    mask_png: bytes
    def __init__(self, box_px: _Optional[_Union[Box, _Mapping]] = ..., box_normalized: _Optional[_Union[Box, _Mapping]] = ..., score: _Optional[float] = ..., mask_png: _Optional[bytes] = ...) -> None: ...

class Box(_message.Message):
    __slots__ = ("x_min", "y_min", "x_max", "y_max")
    X_MIN_FIELD_NUMBER: _ClassVar[int]
    Y_MIN_FIELD_NUMBER: _ClassVar[int]
    X_MAX_FIELD_NUMBER: _ClassVar[int]
    Y_MAX_FIELD_NUMBER: _ClassVar[int]
    x_min: float
    y_min: float
    x_max: float
    y_max: float
    def __init__(self, x_min: _Optional[float] = ..., y_min: _Optional[float] = ..., x_max: _Optional[float] = ..., y_max: _Optional[float] = ...) -> None: ...

class ImageSize(_message.Message):
    __slots__ = ("width_px", "height_px")
    WIDTH_PX_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_PX_FIELD_NUMBER: _ClassVar[int]
    width_px: int
    height_px: int
    def __init__(self, width_px: _Optional[int] = ..., height_px: _Optional[int] = ...) -> None: ...

class StageRun(_message.Message):
    __slots__ = ("stage", "confidence", "candidates")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    stage: Stage
    confidence: float
    candidates: _containers.RepeatedCompositeFieldContainer[Candidate]
    def __init__(self, stage: _Optional[_Union[Stage, str]] = ..., confidence: _Optional[float] = ..., candidates: _Optional[_Iterable[_Union[Candidate, _Mapping]]] = ...) -> None: ...

class Explanation(_message.Message):
    __slots__ = ("rival", "total_log_odds", "parts")
    RIVAL_FIELD_NUMBER: _ClassVar[int]
    TOTAL_LOG_ODDS_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    rival: str
    total_log_odds: float
    parts: _containers.RepeatedCompositeFieldContainer[EvidencePart]
    def __init__(self, rival: _Optional[str] = ..., total_log_odds: _Optional[float] = ..., parts: _Optional[_Iterable[_Union[EvidencePart, _Mapping]]] = ...) -> None: ...

class EvidencePart(_message.Message):
    __slots__ = ("source", "log_odds")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    LOG_ODDS_FIELD_NUMBER: _ClassVar[int]
    source: str
    log_odds: float
    def __init__(self, source: _Optional[str] = ..., log_odds: _Optional[float] = ...) -> None: ...

class UnrecognizedMetadata(_message.Message):
    __slots__ = ("source", "value")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    source: str
    value: str
    def __init__(self, source: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...

class BundleInfo(_message.Message):
    __slots__ = ("name", "version")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ...) -> None: ...

class StepLatency(_message.Message):
    __slots__ = ("step", "latency_ms")
    STEP_FIELD_NUMBER: _ClassVar[int]
    LATENCY_MS_FIELD_NUMBER: _ClassVar[int]
    step: str
    latency_ms: float
    def __init__(self, step: _Optional[str] = ..., latency_ms: _Optional[float] = ...) -> None: ...
