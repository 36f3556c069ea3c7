"""Configuration that people write: YAML in, one frozen checked value out, and one line for each mistake."""

from __future__ import annotations

import json
import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from rlhf_bench.harness.errors import UnknownName, UserError


class Config(BaseModel):
    """What every recipe and policy derives from: frozen, no unknown keys, no NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


C = TypeVar("C", bound=Config)


def read_config(cls: type[C], path: Path, overrides: Sequence[str] = ()) -> C:
    """The `cls` in the YAML file at `path`, after overrides such as `optimizer.lr=5e-7` or `guards.0.margin=0.05`.

    Raises UserError, one line: the file (or override), the key, the value given and what is allowed; an unknown key
    comes with the nearest known one.
    """
    data = _read_yaml(path)
    overridden = {override.partition("=")[0]: override for override in overrides}
    for override in overrides:
        _set(data, override)
    return check(cls, data, str(path), overridden)


def check(cls: type[C], data: Any, source: str, overridden: Mapping[str, str] = {}) -> C:
    """The `cls` that `data` is. Raises UserError, one line, that names `source`, or the override by its key."""
    try:
        return cls.model_validate(data)
    except ValidationError as error:
        raise UserError(" ".join(_explain(cls, source, overridden, error).split())) from None


def schema(cls: type[Config]) -> str:
    """The JSON schema of `cls`, for editors that check YAML as it is written."""
    return json.dumps(cls.model_json_schema(), indent=2, ensure_ascii=False)


class _Loader(yaml.SafeLoader):
    """Safe YAML in which a key stands once in its mapping, and 5e-7 is a number (YAML 1.1 wants 5.0e-7)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} twice", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {k: list(v) for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _parse(text: str, source: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}:" if mark else ""
        raise UserError(f"{source}:{line} not YAML: {getattr(error, 'problem', None) or error}") from None
    except (RecursionError, ValueError) as error:
        raise UserError(f"{source}: not YAML: {error}") from None


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read '{path}': {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not YAML: the file is not UTF-8 text") from None
    data = _parse(text, str(path))
    if not isinstance(data, dict):
        raise UserError(f"{path}: it must hold `key: value` lines, not {_shown(data)}")
    return data


def _set(data: Any, override: str) -> None:
    """Set `a.b.0.c=value` in place; mappings that are not there yet are made."""
    where, equals, text = override.partition("=")
    if not equals or not where:
        raise UserError(f"override '{override}': write it as key=value or key.sub=value")
    *parents, last = where.split(".")
    for part in parents:
        data = data.setdefault(part, {}) if isinstance(data, dict) else _items(data, part, override)[int(part)]
    value = _parse(text, f"override '{override}'")
    if isinstance(data, dict):
        data[last] = value
    else:
        _items(data, last, override)[int(last)] = value


def _items(data: Any, part: str, override: str) -> list[Any]:
    if not isinstance(data, list):
        raise UserError(f"override '{override}': there is nothing inside {_shown(data)} to call '{part}'")
    if not part.isdigit() or int(part) >= len(data):
        raise UserError(f"override '{override}': '{part}' must be a number from 0 to {len(data) - 1}")
    return data


def _explain(cls: type[Config], given: str, overridden: Mapping[str, str], error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    near = [
        override
        for name, override in overridden.items()
        if f"{name}.".startswith(f"{key}.") or f"{key}.".startswith(f"{name}.")
    ]
    of_all = f"{given} with {', '.join(overridden.values())}" if overridden and not key else given
    source = f"override '{near[0]}'" if near and key else of_all
    rest = f" ({error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        *parents, name = (str(part) for part in first["loc"])
        where = f" in '{'.'.join(parents)}'" if parents else ""
        offer = str(UnknownName("key", name, _keys_at(cls, parents))).partition(f"'{name}'.")[2]
        return f"{source}: no key named '{name}'{where}.{offer}{rest}"
    if first["type"] == "missing":
        return f"{source}: key '{key}' is missing{rest}"
    allowed = first["msg"].removeprefix("Value error, ")
    allowed = re.sub(r"^Input should (be|have)", r"it must \1", allowed)
    allowed = re.sub(r"^\w+ should have (.*?)(?: after validation, not .*)?$", r"it must have \1", allowed)
    allowed = re.sub(r"valid tuple$", "list", re.sub(r"valid dictionary(?: or instance of \w+)?", "mapping", allowed))
    if not key:
        return f"{source}: {allowed}{rest}"
    return f"{source}: key '{key}' is {_shown(first['input'])}: {allowed}{rest}"


def _shown(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except ValueError:  # a YAML alias inside what it stands for
        text = "a value that holds itself"
    return text if len(text) <= 60 else f"{text[:59]}…"


def _keys_at(cls: type[BaseModel], location: Sequence[str]) -> set[str]:
    """The keys that are known where `location` points; positions and union tags on the way are passed over."""
    found = {cls}
    for part in location:
        inner = {m for f in found if part in f.model_fields for m in _models_in(f.model_fields[part].annotation)}
        found = inner or found
    return {name for model in found for name in model.model_fields}


def _models_in(annotation: Any) -> set[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {annotation}
    return {model for argument in get_args(annotation) for model in _models_in(argument)}
