"""One frozen dataclass per service, filled once at start: command line, then environment, then file, then default.

Each field is declared with `setting`, which carries what `--help`, the reference page and an error need to say:

    @dataclass(frozen=True, kw_only=True)
    class TyphaConfig(RuntimeConfig):
        env_prefix: ClassVar[str] = "TYPHA_"
        batch_s: float = setting(0.005, "How long changes are collected.", unit="s", minimum=0)
        instance: str = required("Name on the bus.", env=("*NAME",))  # "*" stands for the prefix: TYPHA_NAME

Field types: str, bool, int, float, Path, Secret, an Enum, a Literal, an address or network of `ipaddress`, `X | None`
and `tuple[X, ...]`. A text is parsed the same way from every source: lists are split at commas, `unit="s"` also accepts
Go durations ("1m30s"), "none" clears an optional value, and an empty text counts as not set (as in Felix). Secrets have
no flag, since command lines are public.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import enum
import ipaddress
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, TypeVar, Union

from libs.runtime.redact import Secret, is_secret_name, redact

C = TypeVar("C")
T = TypeVar("T")

_META: Final = "calico.setting"
_REQUIRED: Final = object()
_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")
_DURATION_UNITS_S: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_TRUE: Final = {"true", "yes", "on", "1", "enabled", "t", "y"}
_FALSE: Final = {"false", "no", "off", "0", "disabled", "f", "n"}


class ConfigError(ValueError):
    """The configuration cannot be used. `problems` has one line for each thing to correct, each naming its source."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = list(problems)


@dataclass(frozen=True, slots=True)
class _Meta:
    sentence: str = ""
    env: tuple[str, ...] = ()
    unit: str = ""
    minimum: float | None = None
    maximum: float | None = None
    parse: Callable[[str], Any] | None = None


def setting(
    default: T,
    sentence: str,
    *,
    env: tuple[str, ...] = (),
    unit: str = "",
    minimum: float | None = None,
    maximum: float | None = None,
    parse: Callable[[str], T] | None = None,
) -> T:
    """Declare a field of a configuration class. (Typed as the default it stands for; dataclasses sees a Field.)

    env: names tried in this order before `<env_prefix><FIELD_NAME>`; a leading "*" stands for the class's env_prefix.
    unit: as in "s", "bytes"; shown in help. parse: text -> value, for a type of its own; its ValueError is the error.
    """
    meta = _Meta(sentence, env, unit, minimum, maximum, parse)
    field: Any = dataclasses.field(default=default, metadata={_META: meta})
    return field  # type: ignore[no-any-return]


def required(sentence: str, *, env: tuple[str, ...] = (), unit: str = "") -> Any:
    """A field without a default: starting without it is an error that names every place where it can be given."""
    return dataclasses.field(metadata={_META: _Meta(sentence, env, unit)})


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """What every service can be told. Subclasses set `env_prefix` and add their own fields."""

    env_prefix: ClassVar[str] = ""

    log_level: str = setting(
        "info", "Least severe level on stderr: debug, info, warning, error or none.", env=("LOG_LEVEL",)
    )
    log_format: Literal["auto", "json", "text"] = setting(
        "auto", "Form of log lines; auto is text on a terminal, JSON elsewhere.", env=("LOG_FORMAT",)
    )
    log_file: Path | None = setting(None, "File that also receives the logs, as JSON lines.", env=("LOG_FILE_PATH",))
    log_file_level: str = setting("info", "Least severe level written to the file.", env=("LOG_FILE_LEVEL",))
    log_syslog_level: str = setting("none", "Least severe level sent to /dev/log.", env=("LOG_SYSLOG_LEVEL",))
    health_host: str = setting("localhost", "Address of /liveness, /readiness and /metrics.", env=("*HEALTHHOST",))
    health_port: int | None = setting(
        None,
        "Port of them; 0 takes a free one, none switches them off.",
        env=("*HEALTHPORT",),
        minimum=0,
        maximum=65535,
    )
    shutdown_grace_s: float = setting(30.0, "How long an orderly stop may take.", unit="s", minimum=0)


@dataclass(frozen=True, slots=True)
class SettingRow:
    """One field as documentation shows it. `default` is None for a required one, "none" for one that may be empty."""

    name: str
    flag: str | None
    env: tuple[str, ...]
    type_name: str
    unit: str
    default: str | None
    sentence: str


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    kind: Any
    meta: _Meta
    env: tuple[str, ...]
    default: Any  # _REQUIRED when there is none

    @property
    def flag(self) -> str | None:
        return None if _is_secret(self.kind) else "--" + self.name.replace("_", "-")


def _fields(cls: type[Any]) -> list[_Field]:
    hints = typing.get_type_hints(cls)
    prefix: str = getattr(cls, "env_prefix", "")
    found: list[_Field] = []
    for field in dataclasses.fields(cls):
        kind, meta = hints[field.name], field.metadata.get(_META, _Meta())
        names = [prefix + name[1:] if name.startswith("*") else name for name in meta.env]
        if prefix:
            names.append(prefix + field.name.upper())
        default = field.default
        if default is dataclasses.MISSING:
            default = _REQUIRED if field.default_factory is dataclasses.MISSING else field.default_factory()
        found.append(_Field(field.name, kind, meta, tuple(dict.fromkeys(names)), default))
    return found


def settings_of(cls: type[Any]) -> list[SettingRow]:
    """Every field of a configuration class, for the reference page."""
    return [
        SettingRow(
            f.name,
            f.flag,
            f.env,
            _type_name(f.kind),
            f.meta.unit,
            None if f.default is _REQUIRED else _show(f.default),
            f.meta.sentence,
        )
        for f in _fields(cls)
    ]


def load(
    cls: type[C],
    argv: Sequence[str] | None = None,
    environ: Mapping[str, str] | None = None,
    *,
    prog: str,
    description: str = "",
) -> C:
    """Fill `cls` from argv (default: the process's), environ (same) and the file of --config or CALICO_CONFIG.

    Raises ConfigError with every problem found, not only the first; prints help and raises SystemExit(0) for --help.
    """
    environ = os.environ if environ is None else environ
    fields = _fields(cls)
    flags = _parse_argv(fields, sys.argv[1:] if argv is None else argv, prog, description)
    path_text = flags.pop("config", None) or environ.get("CALICO_CONFIG") or None
    problems: list[str] = []
    file_values = _read_file(Path(path_text), fields, problems) if path_text else {}
    folded = {name.casefold(): value for name, value in environ.items()}
    prefix = str(getattr(cls, "env_prefix", "")).casefold()

    values: dict[str, Any] = {}
    for field in fields:
        raw, source = _find(field, flags, environ, folded, prefix, file_values, path_text)
        if source is None:
            if field.default is _REQUIRED:
                places = [p for p in (field.flag, *field.env) if p]
                problems.append(f"{field.name} is not set: give one of {', '.join(places)}")
            else:
                values[field.name] = field.default
            continue
        try:
            values[field.name] = _convert(field, raw)
        except ValueError as error:
            problems.append(f"{source}: {error}")
    if problems:
        raise ConfigError([redact(p) for p in problems])
    return cls(**values)


def describe(config: Any) -> dict[str, str]:
    """field -> text of a loaded configuration, with secrets masked: what a service may log when it starts."""
    return {
        f.name: "***" if is_secret_name(f.name) and getattr(config, f.name) else redact(_show(getattr(config, f.name)))
        for f in dataclasses.fields(config)
    }


def _find(
    field: _Field,
    flags: Mapping[str, Any],
    environ: Mapping[str, str],
    folded: Mapping[str, str],
    prefix: str,
    file_values: Mapping[str, Any],
    path: str | None,
) -> tuple[Any, str | None]:
    if field.name in flags:
        return flags[field.name], f"{field.flag} on the command line"
    for name in field.env:
        # Felix has always read FELIX_HealthPort and FELIX_HEALTHPORT alike; other variables keep the shell's rule.
        ours = bool(prefix) and name.casefold().startswith(prefix)
        value = folded.get(name.casefold()) if ours else environ.get(name)
        if value:
            return value, f"{name} in the environment"
    if file_values.get(field.name) not in (None, ""):
        return file_values[field.name], f"{field.name} in {path}"
    return None, None


def _read_file(path: Path, fields: Sequence[_Field], problems: list[str]) -> dict[str, Any]:
    import yaml  # 2 MB of every service, most of which have no file

    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        problems.append(f"{path}: cannot be read: {error}")
        return {}
    if document is None:
        return {}
    if not isinstance(document, dict):
        problems.append(f"{path}: expected a mapping of names to values, found {type(document).__name__}")
        return {}
    by_squashed = {_squash(f.name): f.name for f in fields}
    values: dict[str, Any] = {}
    for key, value in document.items():
        name = by_squashed.get(_squash(str(key)))
        if name is None:
            near = difflib.get_close_matches(_squash(str(key)), by_squashed, n=1)
            hint = f"; did you mean {by_squashed[near[0]]}?" if near else ""
            problems.append(f"{path}: no such setting: {key}{hint}")
        elif name in values:
            problems.append(f"{path}: {name} is given twice")
        else:
            values[name] = value
    return values


def _squash(name: str) -> str:
    """health_port, health-port and healthPort are one name."""
    return name.replace("_", "").replace("-", "").casefold()


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> typing.NoReturn:
        raise ConfigError([f"command line: {message}"])


def _parse_argv(fields: Sequence[_Field], argv: Sequence[str], prog: str, description: str) -> dict[str, Any]:
    parser = _Parser(
        prog=prog,
        description=description or None,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        epilog="A flag wins over the environment, which wins over the file. Names in the file are those of the flags.",
    )
    parser.add_argument("--config", metavar="FILE", help="YAML or JSON file with settings [env CALICO_CONFIG]")
    for field in fields:
        text = _help(field).replace("%", "%%")
        if field.flag is None:
            continue
        if _strip_optional(field.kind) is bool:
            # Text, not store_true: "--flag", "--flag=false" and "--no-flag" all mean what they say.
            parser.add_argument(field.flag, dest=field.name, nargs="?", const="true", metavar="BOOL", help=text)
            negative = "--no-" + field.flag[2:]
            parser.add_argument(negative, dest=field.name, action="store_const", const="false", help=argparse.SUPPRESS)
        else:
            metavar = (field.meta.unit or _type_name(field.kind)).upper()
            parser.add_argument(field.flag, dest=field.name, metavar=metavar.replace(" ", ""), help=text)
    secrets = [f for f in fields if f.flag is None]
    if secrets:
        lines = "; ".join(f"{f.name}: {f.meta.sentence} [env {', '.join(f.env)}]" for f in secrets)
        parser.epilog = f"{parser.epilog} Secrets have no flag. {lines}".replace("%", "%%")
    for secret in secrets:
        name = "--" + secret.name.replace("_", "-")
        if any(word == name or word.startswith(name + "=") for word in argv):  # its value must not be repeated here
            raise ConfigError([f"command line: {name} is a secret: set {' or '.join(secret.env)} instead"])
    return vars(parser.parse_args(list(argv)))


def _help(field: _Field) -> str:
    parts = [field.meta.sentence]
    if field.default is _REQUIRED:
        parts.append("[required]")
    else:
        unit = f" {field.meta.unit}" if field.meta.unit else ""
        parts.append(f"[default {_show(field.default) or 'empty'}{unit}]")
    if field.env:
        parts.append(f"[env {', '.join(field.env)}]")
    return " ".join(parts)


def _show(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return ",".join(_show(v) for v in value)
    if isinstance(value, enum.Enum):
        return str(value.value)
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)


def _strip_optional(kind: Any) -> Any:
    if typing.get_origin(kind) in (Union, types.UnionType):
        rest = [k for k in typing.get_args(kind) if k is not type(None)]
        return rest[0] if len(rest) == 1 else kind
    return kind


def _is_optional(kind: Any) -> bool:
    return typing.get_origin(kind) in (Union, types.UnionType) and type(None) in typing.get_args(kind)


def _is_secret(kind: Any) -> bool:
    return _strip_optional(kind) is Secret


def _type_name(kind: Any) -> str:
    kind = _strip_optional(kind)
    origin = typing.get_origin(kind)
    if origin is tuple:
        return f"list of {_type_name(typing.get_args(kind)[0])}"
    if origin is Literal:
        return "|".join(str(a) for a in typing.get_args(kind))
    if origin in (Union, types.UnionType):
        return " or ".join(_type_name(k) for k in typing.get_args(kind) if k is not type(None))
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return "|".join(str(m.value) for m in kind)
    return {str: "text", int: "int", float: "number", bool: "bool", Path: "path", Secret: "secret"}.get(
        kind, getattr(kind, "__name__", str(kind))
    )


def _convert(field: _Field, raw: Any) -> Any:
    """The value of a field from text or from what YAML made of the file. Raises ValueError with a sentence."""
    optional = _is_optional(field.kind)
    kind = _strip_optional(field.kind)
    if optional and isinstance(raw, str) and raw.strip().casefold() == "none":
        return None
    if field.meta.parse is not None:
        value = field.meta.parse(raw if isinstance(raw, str) else _show(raw))
    elif typing.get_origin(kind) is tuple:
        item_kind = typing.get_args(kind)[0]
        items = [i.strip() for i in raw.split(",")] if isinstance(raw, str) else raw
        if not isinstance(items, list):
            raise ValueError(f"expected a list, found {raw!r}")
        return tuple(_scalar(item_kind, i, field.meta.unit) for i in items if i != "")
    else:
        value = _scalar(kind, raw, field.meta.unit)
    low, high = field.meta.minimum, field.meta.maximum
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if low is not None and value < low:
            raise ValueError(f"{_show(value)} is below the minimum of {low:g}")
        if high is not None and value > high:
            raise ValueError(f"{_show(value)} is above the maximum of {high:g}")
    return value


def _scalar(kind: Any, raw: Any, unit: str) -> Any:
    if kind is Secret:
        return Secret(raw if isinstance(raw, str) else _show(raw))
    if isinstance(raw, (dict, list)):
        raise ValueError(f"expected {_type_name(kind)}, found {type(raw).__name__}")
    text = raw if isinstance(raw, str) else _show(raw)
    text = text.strip()
    if kind is str:
        return text
    if kind is Path:
        return Path(text)
    if kind is bool:
        if text.casefold() in _TRUE:
            return True
        if text.casefold() in _FALSE:
            return False
        raise ValueError(f"{text!r} is neither true nor false")
    if kind is int:
        try:
            return int(text, 0)
        except ValueError:
            raise ValueError(f"{text!r} is not a whole number") from None
    if kind is float:
        return _number(text, unit)
    if typing.get_origin(kind) is Literal:
        choices = {str(a).casefold(): a for a in typing.get_args(kind)}
        if text.casefold() not in choices:
            raise ValueError(f"{text!r} is not one of {', '.join(str(a) for a in choices.values())}")
        return choices[text.casefold()]
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        members = {str(m.value).casefold(): m for m in kind}
        if text.casefold() not in members:
            raise ValueError(f"{text!r} is not one of {', '.join(str(m.value) for m in kind)}")
        return members[text.casefold()]
    if typing.get_origin(kind) in (Union, types.UnionType):
        for one in typing.get_args(kind):
            if one is type(None):
                continue
            try:
                return _scalar(one, raw, unit)
            except ValueError:
                continue
        raise ValueError(f"{text!r} is not {_type_name(kind)}")
    if kind in (ipaddress.IPv4Address, ipaddress.IPv6Address, ipaddress.IPv4Network, ipaddress.IPv6Network):
        try:
            return kind(text)
        except ValueError as error:
            raise ValueError(f"{text!r} is not {_type_name(kind)}: {error}") from None
    raise TypeError(f"no way to read a setting of type {kind!r}")


def _number(text: str, unit: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
        parts = _DURATION.findall(text) if unit == "s" else []
        if parts and "".join(n + u for n, u in parts) == text:
            return float(sum(float(n) * _DURATION_UNITS_S[u] for n, u in parts))
    if value != value or value in (float("inf"), float("-inf")):
        what = "number of seconds or duration such as 1m30s" if unit == "s" else "number"
        raise ValueError(f"{text!r} is not a {what}")
    return value
