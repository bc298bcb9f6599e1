"""Where a server's settings come from: defaults, a file, the environment, flags; the later wins, each is checked."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from l2r2.config import parse_settings
from l2r2.errors import ConfigError
from l2r2_serving.settings import ServerSettings

PREFIX = "L2R2_SERVE_"
"""Of environment variables: L2R2_SERVE_PORT is `port`, L2R2_SERVE_TLS__KEY is `tls.key`."""

Values = dict[str, Any]


def load_settings(
    file: Path | None = None, environment: Mapping[str, str] | None = None, flags: Mapping[str, Any] | None = None
) -> ServerSettings:
    """Put the sources together.

    Args:
        file: TOML, keys as in `ServerSettings`, sections for what is nested.
        environment: All of it; what does not begin with `PREFIX` is not looked at.
        flags: Dotted names ("tls.key") → values; None was not given.
    Raises:
        ConfigError: a file that cannot be read, an unknown key or variable (the nearest known one is named) or a value
            outside its range; the message begins with the source that brought it.
    """
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    layers = [
        (str(file), _file(file)),
        ("environment", _nested(_variables(environment or {}), "__")),
        ("flags", _nested(given, ".")),
    ]
    values: Values = {}
    for place, (origin, layer) in enumerate(layers):
        if layer:
            values = _joined(values, layer)
            if place < len(layers) - 1 and _lacks_only(values):
                continue  # the next source may bring the rest of a section
            parse_settings(ServerSettings, values, origin)
    return parse_settings(ServerSettings, values, "settings")


def as_toml(settings: ServerSettings) -> str:
    """The settings as a file that gives the same settings."""
    lines, sections = [], []
    for name, value in settings.model_dump(mode="json", exclude_none=True).items():
        if isinstance(value, dict):
            sections += ["", f"[{name}]", *(f"{key} = {_literal(each)}" for key, each in value.items())]
        else:
            lines.append(f"{name} = {_literal(value)}")
    return "\n".join([*lines, *sections]) + "\n"


def _file(path: Path | None) -> Values:
    if path is None:
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(
            f"{path} is no readable TOML: {getattr(error, 'strerror', None) or error}; `l2r2 serve --check` prints one"
        ) from None


def _variables(environment: Mapping[str, str]) -> Values:
    found: Values = {}
    for variable, text in environment.items():
        if variable.startswith(PREFIX):
            name = variable.removeprefix(PREFIX).lower()
            found[name] = [part.strip() for part in text.split(",") if part.strip()] if name == "bundles" else text
    return found


def _nested(flat: Mapping[str, Any], separator: str) -> Values:
    values: Values = {}
    for name, value in flat.items():
        *sections, key = name.split(separator)
        place = values
        for section in sections:
            place = place.setdefault(section, {})
        place[key] = value
    return values


def _joined(under: Values, over: Values) -> Values:
    both = dict(under)
    for key, value in over.items():
        old = both.get(key)
        both[key] = _joined(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return both


def _lacks_only(values: Values) -> bool:
    """Whether all that is wrong is something missing."""
    try:
        ServerSettings.model_validate(values)
    except ValidationError as error:
        return all(each["type"] == "missing" for each in error.errors())
    return False


def _literal(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ", ".join(_literal(each) for each in value) + "]"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    return str(value)
