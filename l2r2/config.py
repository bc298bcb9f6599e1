"""Settings: every threshold with its name, unit, default and source. The only reader of TOML."""

from __future__ import annotations

import difflib
import hashlib
import json
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Discriminator, Field, PositiveFloat, Tag, ValidationError

from l2r2.errors import ConfigError
from l2r2.types import View

Channel = Annotated[int, Field(ge=0, le=255)]


class Settings(BaseModel):
    """Frozen, and strict about unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def digest(self) -> str:
        """Twelve hexadecimal digits that change with any field."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


class ImageSettings(Settings):
    """What a photograph may be."""

    max_bytes: int = Field(32 * 2**20, gt=0)
    """Encoded size; 32 MiB holds a 50 MP phone JPEG."""
    max_pixels: int = Field(64_000_000, gt=0, le=178_956_970)
    """Decoded size; a decompression bomb is refused before it is decoded. Pillow opens nothing above the bound."""
    min_side_px: int = Field(16, ge=1)
    """A smaller photograph has nothing to recognize."""


class SaliencySettings(Settings):
    """The largest salient object."""

    name: Literal["u2netp"] = "u2netp"
    size_px: int = Field(320, ge=256, le=1024, multiple_of=32)
    """The network's square input. Below 256 U²-Netp breaks."""
    threshold: float = Field(0.5, gt=0, lt=1)
    """Of the min-max scaled saliency; above it a pixel is foreground. Source: U²-Net's own test code."""
    min_score: float = Field(0.5, ge=0, le=1)
    """Mean unscaled saliency of the component; below it nothing is found."""
    min_area: float = Field(0.001, ge=0, lt=1)
    """Share of the photograph that a component must cover."""


class SegmenterSettings(Settings):
    """SAM: from boxes to masks."""

    model: Literal["vit_h", "vit_l", "vit_b"] = "vit_h"
    """Source: the paper's nearest public code takes ViT-H."""
    checkpoint: Path
    """A file as Segment Anything publishes it (.pth, read without pickles) or safetensors."""


class DetectorSettings(Settings):
    """A zero-shot detector, prompted by text."""

    name: Literal["grounding_dino", "owlv2", "owlvit"]
    model: str
    """A local folder or a hub's name, such as IDEA-Research/grounding-dino-base."""
    prompt: Literal["meta", "oracle", "candidates"] = "meta"
    """meta: `texts`, for every photograph; oracle: the words of the photograph's own label (an upper bound, for
    experiments only); candidates: the words of the classes that FULL finds likeliest (the paper's appendix C.1)."""
    texts: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """The meta-prompts; more than one are averaged as the detector's docstring says. For oracle and candidates:
    templates, {} is the words."""
    box_threshold: float = Field(0.3, ge=0, lt=1)
    """Score below which a box is nothing. Source: the nearest public code, for Grounding DINO; OWL's is about 0.1."""
    min_side: float = Field(0.01, ge=0, lt=1)
    """Both sides of a box as shares of the photograph's; a smaller box is nothing."""
    nms_iou: float = Field(0.7, gt=0, le=1)
    """Of two boxes that overlap more, the surer stays."""
    max_detections: int = Field(20, ge=1)
    candidates: int = Field(5, ge=1)
    """How many of FULL's classes prompt a photograph; at most so many are then used, chosen on validation."""
    combine: Literal["best", "union"] = "union"
    """best: the surest box; union: all instances as one region."""
    segmenter: SegmenterSettings | None = None
    """Where masks are wanted (FG_M, BG_S; the paper crops FG_C by the mask's box too)."""


class TruthSettings(Settings):
    """The data set's own boxes or masks, for experiments only."""

    name: Literal["gt"] = "gt"
    what: Literal["mask", "box"] = "mask"


_TAGS = ("saliency", "detector", "truth")


def _localizer_name(value: object) -> str:
    name = value.get("name", "u2netp") if isinstance(value, dict) else getattr(value, "name", None)
    return {"u2netp": "saliency", "gt": "truth"}.get(str(name), "detector")


LocalizerSettings = Annotated[
    Annotated[SaliencySettings, Tag("saliency")]
    | Annotated[DetectorSettings, Tag("detector")]
    | Annotated[TruthSettings, Tag("truth")],
    Discriminator(_localizer_name),
]
"""How the foreground is found; `name` says by what."""


class ViewSettings(Settings):
    """From a photograph to a classifier's input; the same in training, evaluation and serving."""

    size_px: int = Field(224, ge=32, le=1024)
    margin: float = Field(0.05, ge=0, le=1)
    """Added to each side of the foreground's box, as a share of its longer side."""
    full_fit: Literal["squash", "pad", "center_crop"] = "squash"
    """How a whole photograph becomes a square; squash keeps every pixel, as the paper's FULL does."""
    fg_fit: Literal["pad", "squash"] = "pad"
    """How a foreground crop becomes a square; squash is the paper's "distorted" (table 15)."""
    center_share: float = Field(0.875, gt=0, le=1)
    """CENTERCROP's side as a share of the shorter side: 224 of 256, the usual evaluation crop. The paper gives none."""
    fill_rgb: tuple[Channel, Channel, Channel] = (127, 127, 127)
    """Padding and masked pixels, [0, 255]."""
    mean: tuple[float, float, float] = (127 / 255, 127 / 255, 127 / 255)
    """Subtracted after scaling to [0, 1]. Default: EfficientNet-Lite's."""
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (128 / 255, 128 / 255, 128 / 255)


Objective = Literal[
    "erm", "groupdro", "mixup", "irm", "vrex", "coral", "mmd", "causirl", "fish", "w2d", "jtt"
]  # fmt: skip
"""What training minimises; one file each in `l2r2.training.objectives`."""


class TrainSettings(Settings):
    """How one classifier is fitted."""

    model: str = "tf_efficientnet_lite0"
    """Any timm name."""
    weights: Literal["package", "hub", "torchvision", "none"] = "package"
    """package: the weights that a package ships (EfficientNet-Lite0 only); hub: timm's own; torchvision: that
    first version (V1), for resnet50 (or the file `checkpoint`, in torchvision's own names); none: random."""
    checkpoint: Path | None = None
    """A local safetensors file to start from, before `weights`; position embeddings are resampled to the view."""
    trainable: Literal["all", "head"] = "head"
    """head: the backbone is frozen and its features are computed once."""
    shared: bool = False
    """One encoder for all views, a head each, trained together (the paper's remark in section 4.2)."""
    objective: Objective = "erm"
    """Anything but erm needs `environment`."""
    objective_settings: dict[str, float] = {}
    """The objective's own numbers, by name; its file has the defaults and their source."""
    environment: str | None = None
    """Column of the data set that says which training environment a photograph is from; each then has an equal share of
    a batch. Needs trainable = "all"."""
    epochs: int = Field(60, ge=1)
    patience: int = Field(10, ge=1)
    """Epochs without a better validation loss before stopping."""
    batch_size: int = Field(64, ge=1)
    """Of each environment, where there are several."""
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    learning_rate: float = Field(3e-3, gt=0)
    weight_decay: float = Field(1e-2, ge=0)
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_epochs: int = Field(0, ge=0)
    """Linear, from a hundredth of the learning rate."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    drop_path: float = Field(0.0, ge=0, lt=1)
    """Stochastic depth, where the model has it. It and the augmentations below act where the whole network trains; of
    a frozen backbone's photographs only the mirrored half is used."""
    flip: bool = True
    """Mirror half of the training views."""
    crop_scale: float = Field(1.0, gt=0, le=1)
    """Least share of a training view's area that a random crop keeps (aspect 3:4 to 4:3); 1: no crop."""
    color_jitter: float = Field(0.0, ge=0, le=1)
    """Largest relative change of a training view's brightness, contrast and saturation."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    """16-mixed needs a GPU."""
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field((0, 1), min_length=1)
    """One classifier a view and seed; the first is deployed."""
    workers: int = Field(0, ge=0)
    """Loader processes."""


class VlmSettings(Settings):
    """A vision-language model that classifies without training (the paper's section 4.3)."""

    model: str = "siglip2-so"
    """clip-b, clip-l, bioclip, siglip2-so, or an open_clip name: NAME@TAG where it has several published weights,
    hf-hub:… and local-dir:… included."""
    checkpoint: Path | None = None
    """A local file of weights, or a folder that says itself what model it holds, where no hub is to be asked."""
    template: str = Field("A photo of a {}", pattern=r"\{\}")
    """With the class's words in the braces."""


class CalibrationSettings(Settings):
    """How logits become probabilities."""

    kind: Literal["single", "classwise"] = "single"
    """One temperature, or one a class (greedy on the ECE; slow for many classes)."""


class FusionSettings(Settings):
    """How FG and FULL become one answer."""

    fit_on: Literal["train", "val", "crossfit"] = "train"
    """Which logits fit the weights of WL and FC. train: the paper's way, on logits of photographs that the classifiers
    were fitted on; crossfit: on logits of classifiers that never saw the photograph."""
    folds: int = Field(5, ge=2)
    """Of crossfit, by group; each costs one more fit a view and seed."""
    operator: Literal["max", "smax", "R", "avg", "wavg", "FC", "WL", "best"] = "R"
    """What the cascade fuses with once FULL has run; best: the most accurate on validation."""
    fc_hidden: int = Field(64, ge=1)
    """Units of the hidden layer of FC."""


class GateSettings(Settings):
    """When FG is sure enough."""

    threshold: float | None = Field(None, ge=0, le=1)
    """Calibrated confidence above which FULL is skipped; None: chosen on validation."""
    rule: Literal["one_se", "best", "risk"] = "one_se"
    """one_se: the lowest threshold whose validation accuracy is within one paired standard error of the best
    (Breiman et al. 1984, section 3.4.3); best: the highest validation accuracy, as the paper; risk: the lowest of which
    it is certain, at level `delta`, that it loses at most `epsilon` against always running both."""
    epsilon: float = Field(0.02, gt=0, lt=1)
    """Tolerated loss of accuracy, [0, 1], of rule risk."""
    delta: float = Field(0.1, gt=0, lt=1)
    """Tolerated probability that the loss is larger after all."""


class PriorSettings(Settings):
    """How metadata speak."""

    sources: tuple[str, ...] = ("habitat", "substrate", "month")
    cap: float | None = Field(None, gt=0)
    """Most that all metadata together may change the log-odds of a class against the average, in nats; None: no cap."""


class SafetySettings(Settings):
    """What an answer may be used for."""

    coverage: float | None = Field(0.95, gt=0, lt=1)
    """Share of photographs whose class is to be in the prediction set; None: no sets."""
    hazardous: tuple[str, ...] = ()
    """Classes that must never be decided by the background or by metadata; with those of the data set's card."""
    hazard_mass: float = Field(0.05, ge=0, le=1)
    """Probability that an unsure FG may give to hazardous classes before the answer is withheld."""


class Recipe(Settings):
    """One experiment, whole."""

    name: str = Field(min_length=1, pattern=r"^[a-z0-9][a-z0-9_-]*$")
    views: tuple[View, ...] = (View.FG_C, View.FULL)
    images: ImageSettings = ImageSettings()
    localizer: LocalizerSettings = SaliencySettings()
    view: ViewSettings = ViewSettings()
    train: TrainSettings = TrainSettings()
    vlm: VlmSettings | None = None
    """Where given, nothing is trained."""
    calibration: CalibrationSettings = CalibrationSettings()
    fusion: FusionSettings = FusionSettings()
    gate: GateSettings = GateSettings()
    prior: PriorSettings = PriorSettings()
    safety: SafetySettings = SafetySettings()


S = TypeVar("S", bound=Settings)


def parse_settings(kind: type[S], values: dict[str, Any], origin: str) -> S:
    """Check values against a settings class.

    Args:
        origin: Where the values came from, for the message.
    Raises:
        ConfigError: an unknown key (the nearest known one is named) or a value outside its range.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
        place = ".".join(str(part) for part in first["loc"] if part not in _TAGS)
        if first["type"] == "extra_forbidden":
            near = difflib.get_close_matches(str(first["loc"][-1]), _known_keys(kind, first["loc"][:-1]), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"{origin}: unknown setting {place!r}{hint}") from None
        raise ConfigError(f"{origin}: {place} = {first.get('input')!r}: {first['msg']}") from None


def load_recipe(path: Path, overrides: dict[str, Any] | None = None) -> Recipe:
    """Read a recipe file; `overrides` maps dotted names ("train.epochs") to values that win over the file.

    A recipe with `base = "NAME"` holds only what differs from that recipe; sections are joined key by key.

    Raises:
        ConfigError: no such file, no TOML, a base of itself, an unknown key or a value outside its range.
    """
    values = _read(path, ())
    for name, value in (overrides or {}).items():
        *sections, key = name.split(".")
        place = values
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise ConfigError(f"{name}: {section!r} is one setting, not a section; it has no {key!r}")
        place[key] = value
    return parse_settings(Recipe, values, str(path))


def _read(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    if path in above:
        raise ConfigError(f"{path} is a base of itself ({' → '.join(p.stem for p in (*above, path))})")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = ", ".join(sorted(p.stem for p in RECIPES.glob("*.toml")))
        raise ConfigError(f"no recipe at {path}; give a TOML file or one of: {known}") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} is no readable TOML: {error}") from None
    base = values.pop("base", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise ConfigError(f"{path}: base = {base!r}; expected the name of a recipe or a path beside this file")
    beside = path.parent / f"{base}.toml"
    return _joined(_read(beside if beside.is_file() else find_recipe(base), (*above, path)), values)


def _joined(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    both = dict(under)
    for key, value in over.items():
        old = both.get(key)
        both[key] = _joined(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return both


RECIPES = Path(__file__).parent / "recipes"
"""The recipes that come with the library; `find_recipe` takes their bare names."""


def find_recipe(name: str) -> Path:
    """A path as it is, or the bundled recipe of that name."""
    bundled = RECIPES / f"{name}.toml"
    return bundled if bundled.is_file() else Path(name)


def _known_keys(kind: type[BaseModel], place: tuple[int | str, ...]) -> list[str]:
    kinds = [kind]
    for part in place:
        if not any(str(part) in k.model_fields for k in kinds):
            continue  # the tag of a union
        annotations = [k.model_fields[str(part)].annotation for k in kinds if str(part) in k.model_fields]
        kinds = [model for annotation in annotations for model in _models(annotation)] or kinds
    return [name for k in kinds for name in k.model_fields]


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [model for part in get_args(annotation) for model in _models(part)]
