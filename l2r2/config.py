"""Settings: every threshold with its name, unit, default and source. The only reader of TOML."""

from __future__ import annotations

import difflib
import hashlib
import json
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, ValidationError

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


class LocalizerSettings(Settings):
    """How the foreground is found."""

    name: Literal["u2netp"] = "u2netp"
    size_px: int = Field(320, ge=256, le=1024, multiple_of=32)
    """The network's square input. Below 256 U²-Netp breaks."""
    threshold: float = Field(0.5, gt=0, lt=1)
    """Of the min-max scaled saliency; above it a pixel is foreground. Source: U²-Net's own test code."""
    min_score: float = Field(0.5, ge=0, le=1)
    """Mean unscaled saliency of the component; below it nothing is found."""
    min_area: float = Field(0.001, ge=0, lt=1)
    """Share of the photograph that a component must cover."""


class ViewSettings(Settings):
    """From a photograph to a classifier's input; the same in training, evaluation and serving."""

    size_px: int = Field(224, ge=32, le=1024)
    margin: float = Field(0.05, ge=0, le=1)
    """Added to each side of the foreground's box, as a share of its longer side."""
    full_fit: Literal["squash", "pad", "center_crop"] = "squash"
    """How a whole photograph becomes a square; squash keeps every pixel, as the paper's FULL does."""
    fill_rgb: tuple[Channel, Channel, Channel] = (127, 127, 127)
    """Padding and masked pixels, [0, 255]."""
    mean: tuple[float, float, float] = (127 / 255, 127 / 255, 127 / 255)
    """Subtracted after scaling to [0, 1]. Default: EfficientNet-Lite's."""
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (128 / 255, 128 / 255, 128 / 255)


class TrainSettings(Settings):
    """How one classifier is fitted."""

    model: str = "tf_efficientnet_lite0"
    """Any timm name."""
    weights: Literal["package", "hub", "none"] = "package"
    """package: the weights that a package ships (EfficientNet-Lite0 only); hub: timm's own; none: random."""
    checkpoint: Path | None = None
    """A local safetensors file to start from, before `weights`."""
    trainable: Literal["all", "head"] = "head"
    """head: the backbone is frozen and its features are computed once."""
    epochs: int = Field(60, ge=1)
    patience: int = Field(10, ge=1)
    """Epochs without a better validation loss before stopping."""
    batch_size: int = Field(64, ge=1)
    learning_rate: float = Field(3e-3, gt=0)
    weight_decay: float = Field(1e-2, ge=0)
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    flip: bool = True
    """Mirror half of the training views."""
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field((0, 1), min_length=1)
    """One classifier a view and seed; the first is deployed."""
    workers: int = Field(0, ge=0)
    """Loader processes."""


class CalibrationSettings(Settings):
    """How logits become probabilities."""

    kind: Literal["single", "classwise"] = "single"
    """One temperature, or one a class (greedy on the ECE; slow for many classes)."""


class FusionSettings(Settings):
    """How FG and FULL become one answer."""

    fit_on: Literal["train", "val"] = "train"
    """Which logits fit the weights of WL and FC; train is the paper's way."""
    operator: Literal["max", "smax", "R", "avg", "wavg", "FC", "WL", "best"] = "R"
    """What the cascade fuses with once FULL has run; best: the most accurate on validation."""
    fc_hidden: int = Field(64, ge=1)
    """Units of the hidden layer of FC."""


class GateSettings(Settings):
    """When FG is sure enough."""

    threshold: float | None = Field(None, ge=0, le=1)
    """Calibrated confidence above which FULL is skipped; None: chosen on validation."""
    rule: Literal["one_se", "best"] = "one_se"
    """one_se: the lowest threshold whose validation accuracy is within one paired standard error of the best
    (Breiman et al. 1984, section 3.4.3); best: the highest validation accuracy, as the paper."""


class PriorSettings(Settings):
    """How metadata speak."""

    sources: tuple[str, ...] = ("habitat", "substrate", "month")


class Recipe(Settings):
    """One experiment, whole."""

    name: str = Field(min_length=1, pattern=r"^[a-z0-9][a-z0-9_-]*$")
    views: tuple[View, ...] = (View.FG_C, View.FULL)
    images: ImageSettings = ImageSettings()
    localizer: LocalizerSettings = LocalizerSettings()
    view: ViewSettings = ViewSettings()
    train: TrainSettings = TrainSettings()
    calibration: CalibrationSettings = CalibrationSettings()
    fusion: FusionSettings = FusionSettings()
    gate: GateSettings = GateSettings()
    prior: PriorSettings = PriorSettings()


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
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            near = difflib.get_close_matches(str(first["loc"][-1]), _known_keys(kind, first["loc"][:-1]), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"{origin}: unknown setting {place!r}{hint}") from None
        raise ConfigError(f"{origin}: {place} = {first.get('input')!r}: {first['msg']}") from None


def load_recipe(path: Path, overrides: dict[str, Any] | None = None) -> Recipe:
    """Read a recipe file; `overrides` maps dotted names ("train.epochs") to values that win over the file.

    Raises:
        ConfigError: no such file, no TOML, an unknown key or a value outside its range.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = ", ".join(sorted(p.stem for p in RECIPES.glob("*.toml")))
        raise ConfigError(f"no recipe at {path}; give a TOML file or one of: {known}") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} is no readable TOML: {error}") from None
    for name, value in (overrides or {}).items():
        *sections, key = name.split(".")
        place = values
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise ConfigError(f"{name}: {section!r} is one setting, not a section; it has no {key!r}")
        place[key] = value
    return parse_settings(Recipe, values, str(path))


RECIPES = Path(__file__).parent / "recipes"
"""The recipes that come with the library; `find_recipe` takes their bare names."""


def find_recipe(name: str) -> Path:
    """A path as it is, or the bundled recipe of that name."""
    bundled = RECIPES / f"{name}.toml"
    return bundled if bundled.is_file() else Path(name)


def _known_keys(kind: type[BaseModel], place: tuple[int | str, ...]) -> list[str]:
    for part in place:
        annotation = kind.model_fields[str(part)].annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            kind = annotation
    return list(kind.model_fields)
