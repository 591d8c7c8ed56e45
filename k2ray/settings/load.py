"""Read the settings: arguments, then `K2RAY_...` variables, then `k2ray.yaml`; explain what is wrong with them.

The only reader of the environment. Unknown keys and sections are errors that name the nearest known one.
"""

from __future__ import annotations

import difflib
import json
import os
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from k2ray.errors import SettingsError
from k2ray.settings.secrets import is_secret
from k2ray.settings.sections import ENV_PREFIX, Settings

CONFIG_VARIABLE = "K2RAY_CONFIG"
DEFAULT_CONFIG = Path("k2ray.yaml")


def load_settings(
    config: Path | None = None,
    *,
    arguments: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """Read the settings: `arguments` win over the environment, which wins over the file.

    Args:
        config: The YAML file; None takes `K2RAY_CONFIG`, else ./k2ray.yaml if it exists, else defaults alone.
        arguments: Nested overrides, for example `{"api": {"port": 9000}}`.
        environ: The environment; None takes the process's.

    Raises:
        SettingsError: Something is unknown or invalid; the message names it. Stop the start.
    """
    environ = os.environ if environ is None else environ
    path, values = _read_file(config, environ)
    variables: dict[tuple[str, ...], str] = {}
    merged = _merge(values, _read_environment(environ, variables))
    merged = _merge(merged, arguments or {})
    try:
        settings = Settings(**merged)
    except ValidationError as error:
        raise SettingsError(_explain(error, path, variables)) from None
    base = path.parent.resolve() if path else Path.cwd()
    return _with_absolute_paths(settings, base)


def _read_file(config: Path | None, environ: Mapping[str, str]) -> tuple[Path | None, dict[str, Any]]:
    path = config or (Path(environ[CONFIG_VARIABLE]) if environ.get(CONFIG_VARIABLE) else None)
    if path is None:
        if not DEFAULT_CONFIG.exists():
            return None, {}
        path = DEFAULT_CONFIG
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read ({error.strerror})") from error
    except yaml.YAMLError as error:
        raise SettingsError(f"{path}: is not valid YAML: {error}") from error
    if loaded is None:
        return path, {}
    if not isinstance(loaded, dict):
        raise SettingsError(f"{path}: must hold sections (`key: value`), not a {type(loaded).__name__}")
    return path, loaded


def _read_environment(environ: Mapping[str, str], variables: dict[tuple[str, ...], str]) -> dict[str, Any]:
    """Nest `K2RAY_A__B=value`; fills `variables` with path -> the variable's name for error messages."""
    nested: dict[str, Any] = {}
    for name in sorted(environ):
        if not name.startswith(ENV_PREFIX) or name == CONFIG_VARIABLE:
            continue
        path = tuple(part.lower() for part in name.removeprefix(ENV_PREFIX).split("__"))
        variables[path] = name
        level = nested
        for part in path[:-1]:
            level = level.setdefault(part, {})
            if not isinstance(level, dict):
                raise SettingsError(f"{name}: another variable sets its section as a whole")
        level[path[-1]] = _parse_variable(name, environ[name])
    return nested


def _parse_variable(name: str, text: str) -> Any:
    if text == "null":
        return None
    if text[:1] in {"[", "{"}:
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise SettingsError(f"{name}: is not valid JSON ({error})") from None
    return text


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        under = merged.get(key)
        if isinstance(value, Mapping) and isinstance(under, Mapping):
            merged[key] = _merge(under, value)
        else:
            merged[key] = value
    return merged


def _explain(error: ValidationError, path: Path | None, variables: Mapping[tuple[str, ...], str]) -> str:
    lines = []
    for item in error.errors():
        location = tuple(str(part) for part in item["loc"])
        variable = next((name for known, name in variables.items() if known[: len(location)] == location), None)
        where = f"{variable} (setting {'.'.join(location)})" if variable else ".".join(location)
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = f"unknown setting{_nearest(location)}"
        elif item["type"] == "missing":
            message = "is required"
        elif not is_secret(location):
            message = f"{message}, got {item['input']!r}" if where and "got" not in message else message
        lines.append(f"{where}: {message}" if where else message)
    source = f" (file {path})" if path else ""
    return f"settings{source}:\n  " + "\n  ".join(lines)


def _nearest(location: tuple[str, ...]) -> str:
    model = _model_at(location[:-1])
    if model is None:
        return ""
    known = sorted(model.model_fields)
    close = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known here: {', '.join(known)}"


def _model_at(location: tuple[str, ...]) -> type[BaseModel] | None:
    model: type[BaseModel] = Settings
    for part in location:
        field = model.model_fields.get(part)
        inner = model_of(field.annotation) if field else None
        if inner is None:
            return None
        model = inner
    return model


def model_of(annotation: Any) -> type[BaseModel] | None:
    """Return the section that a field's annotation names, None for a plain value."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if typing.get_origin(annotation) in {types.UnionType, typing.Union}:
        for option in typing.get_args(annotation):
            found = model_of(option)
            if found:
                return found
    return None


def _with_absolute_paths(settings: Settings, base: Path) -> Settings:
    """Resolve relative paths against the config file's folder, whatever the working directory is later."""
    changes: dict[str, Any] = {"data_dir": (base / settings.data_dir.expanduser()).resolve()}
    files = {"ca_file": settings.tls.ca_file, "crl_file": settings.tls.crl_file}
    absolute_files = {name: (base / file.expanduser()).resolve() for name, file in files.items() if file is not None}
    changes["tls"] = settings.tls.model_copy(update=absolute_files)
    warehouse = settings.lake.warehouse
    if warehouse is not None and "://" not in warehouse:
        absolute = str((base / Path(warehouse).expanduser()).resolve())
        changes["lake"] = settings.lake.model_copy(update={"warehouse": absolute})
    return settings.model_copy(update=changes)
