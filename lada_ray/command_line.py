"""The jobs' command line, made from the configuration's own model: a flag per key, its docstring as help."""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NoReturn, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from lada_ray.config import (
    HEADING,
    StreamConfig,
    combined,
    config_path,
    find_problems,
    known_keys,
    nearest_key,
    nested,
    section_model,
    shortened,
)
from lada_ray.domains import KINDS
from lada_ray.domains.base import STRICT
from lada_ray.errors import ConfigError

NAMED = "named"
"""Marks a field without default that is given by its name all the same: `Annotated[str, NAMED]`."""


class JobFlags(BaseModel):
    """Flags that a job has beside the configuration's; a job adds its own in a subclass.

    A bool is a switch (`--plan`), a field without default a positional argument (unless it is `NAMED`), others
    flags with a value.
    """

    model_config = STRICT

    config: str | None = None
    """YAML file of the run, or the bare name of a shipped one (demo)."""


Flags = TypeVar("Flags", bound=BaseModel)
WithConfig = TypeVar("WithConfig", bound=JobFlags)


def parse_command_line(
    argv: Sequence[str], flags: type[WithConfig], description: str = ""
) -> tuple[StreamConfig, WithConfig]:
    """Read a job's command line: its own flags, and any key of the configuration as `--method.beta 2`.

    What is given on the command line beats the YAML of `--config`, which beats the defaults. Relative paths
    given here count from the current directory.

    Args:
        argv: arguments without the program's name.
        flags: the job's own flags.
        description: what the job does, for --help.

    Raises:
        ConfigError: with every problem of command line and YAML.
        SystemExit: after --help.
    """
    parser = _parser(flags, description, "[--config YAML] [--KEY VALUE ...]")
    _add_configuration(parser)
    given, problems = _given(parser, argv, flags.model_fields, known_keys(StreamConfig))
    own = {key: given.pop(key) for key in flags.model_fields if key in given}
    problems += find_problems(own, flags)
    raw = combined(nested(given), config_path(own["config"]) if isinstance(own.get("config"), str) else None)
    problems += find_problems(raw)
    if problems:
        raise ConfigError(problems, HEADING)
    return StreamConfig.model_validate(raw), flags.model_validate(own)


def parse_flags(argv: Sequence[str], flags: type[Flags], description: str = "") -> Flags:
    """Read the command line of a job that takes no run configuration; a section has a flag per key, `--gate.max_drop`.

    Raises:
        ConfigError: with every problem.
        SystemExit: after --help.
    """
    own = {name: field for name, field in flags.model_fields.items() if not section_model(field.annotation)}
    sections = {key: field for key, field in known_keys(flags).items() if key not in own}
    parser = _parser(flags, description)
    _add_sections(parser, flags, sections)
    given, problems = _given(parser, argv, own, sections)
    raw = nested(given)
    problems += find_problems(raw, flags)
    if problems:
        raise ConfigError(problems, "The command line is not valid")
    return flags.model_validate(raw)


class _Parser(argparse.ArgumentParser):
    """Reports through our errors, which a job prints like any other."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError([f"{message} (--help lists all options)"], "The command line is not valid")


def _parser(flags: type[BaseModel], description: str, usage: str = "") -> argparse.ArgumentParser:
    parser = _Parser(
        usage=f"%(prog)s [-h] {usage}" if usage else None,
        description=description,
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(
            prog, max_help_position=34, width=110
        ),
    )
    for name, field in flags.model_fields.items():
        if section_model(field.annotation):
            continue
        if _is_positional(field):
            parser.add_argument(name, help=_escaped(_meaning(field)))
        elif field.annotation is bool:
            parser.add_argument(
                f"--{name}", action="store_true", default=argparse.SUPPRESS, help=_escaped(_meaning(field))
            )
        else:
            _add_flag(parser, name, field)
    return parser


def _is_positional(field: FieldInfo) -> bool:
    return field.is_required() and NAMED not in field.metadata


def _add_flag(group: argparse._ActionsContainer, key: str, field: FieldInfo) -> None:
    group.add_argument(
        f"--{key}",
        dest=key,
        default=argparse.SUPPRESS,
        metavar=_metavar(field.annotation),
        help=_escaped(_help(field)),
    )


def _add_configuration(parser: argparse.ArgumentParser) -> None:
    """Add a flag for every key, grouped by section, and the keys of domains as text."""
    keys = known_keys(StreamConfig)
    run = parser.add_argument_group("the run")
    for key in [key for key in keys if "." not in key]:
        _add_flag(run, key, keys.pop(key))
    _add_sections(parser, StreamConfig, keys)
    parser.epilog = _domain_keys()


def _add_sections(
    parser: argparse.ArgumentParser, model: type[BaseModel], keys: Mapping[str, FieldInfo]
) -> None:
    """Add a flag for every key of a model's sections, by its dotted name."""
    groups: dict[str, argparse._ArgumentGroup] = {}
    for key, field in keys.items():
        name = key.partition(".")[0]
        if name not in groups:
            section = section_model(model.model_fields[name].annotation)
            groups[name] = parser.add_argument_group(name, section.__doc__ if section else None)
        _add_flag(groups[name], key, field)


def _domain_keys() -> str:
    """The keys of each kind of domain, which stand in the YAML's list rather than in flags of their own."""
    lines = [
        "keys of a domain, in the YAML's list or as JSON:",
        """  --domains '[{"name": "cats", "kind": "folder", "root": "cats"}]'""",
        "",
    ]
    shared = set.intersection(*(set(spec.model_fields) for spec in KINDS.values())) - {"kind"}
    some = next(iter(KINDS.values()))
    lines += _key_lines({name: field for name, field in some.model_fields.items() if name in shared})
    for kind, spec in KINDS.items():
        lines += ["", f"kind: {kind}. {(spec.__doc__ or '').partition('.')[0]}."]
        own = {n: f for n, f in spec.model_fields.items() if n not in shared and n != "kind"}
        lines += _key_lines(own)
    return "\n".join(lines)


def _key_lines(fields: Mapping[str, FieldInfo]) -> list[str]:
    return [
        line
        for name, field in fields.items()
        for line in textwrap.wrap(
            _help(field), 106, initial_indent=f"  {name:18}", subsequent_indent=" " * 20
        )
    ]


def _escaped(text: str) -> str:
    return text.replace("%", "%%")  # argparse fills in its help texts with %


def _meaning(field: FieldInfo) -> str:
    return " ".join((field.description or "").split())


def _help(field: FieldInfo) -> str:
    """Meaning and default of a key, in one line."""
    meaning = _meaning(field)
    if field.is_required():
        return f"{meaning} (required)"
    default = field.get_default(call_default_factory=True)
    if default is None and "(null: " in meaning:
        return meaning.replace("(null: ", "(default null: ")
    if _is_list(field.annotation):
        return f"{meaning} (default: {','.join(map(str, default)) or 'none'})"
    return f"{meaning} (default: {default if isinstance(default, str) else json.dumps(default)})"


def _metavar(annotation: Any) -> str:
    """What kind of value a flag takes, in a word."""
    if get_origin(annotation) is Annotated:
        return _metavar(get_args(annotation)[0])
    if get_origin(annotation) is Literal:
        return "{" + ",".join(map(str, get_args(annotation))) + "}"
    options = [option for option in get_args(annotation) if option is not type(None)]
    if options and type(None) in get_args(annotation):
        return _metavar(options[0]) if len(options) == 1 else "VALUE"
    if _is_list(annotation):
        return f"{_metavar(get_args(annotation)[0])},..."
    words = {int: "INT", float: "NUMBER", bool: "{true,false}", str: "TEXT"}
    return words.get(annotation, "JSON")


def _is_list(annotation: Any) -> bool:
    """Whether it is a list of words or numbers, which are separated by commas; or null."""
    if type(None) in get_args(annotation):
        return any(_is_list(option) for option in get_args(annotation))
    inner = get_args(annotation)
    plain = bool(inner) and (inner[0] in (int, float, str) or get_origin(inner[0]) is Literal)
    return get_origin(annotation) is tuple and inner[1:] == (...,) and plain


def _given(
    parser: argparse.ArgumentParser,
    argv: Sequence[str],
    flags: Mapping[str, FieldInfo],
    keys: Mapping[str, FieldInfo],
) -> tuple[dict[str, Any], list[str]]:
    """Read the arguments that were given, by key, and problems: unknown flags, values that are no JSON."""
    known, unknown = parser.parse_known_args(list(argv))
    options = [*(name for name, field in flags.items() if not _is_positional(field)), *keys]
    problems = _unknown_arguments(unknown, options)
    given: dict[str, Any] = {}
    for key, text in vars(known).items():
        try:
            given[key] = _value(text, {**flags, **keys}[key].annotation)
        except yaml.YAMLError:
            problems.append(f"{key}: must be JSON (got {shortened(text)})")
    return given, problems


def _value(text: Any, annotation: Any) -> Any:
    """Read a flag's text: null where it is allowed, words separated by commas, JSON (or YAML), or the text itself."""
    if not isinstance(text, str):
        return text
    if text == "null" and type(None) in get_args(annotation):
        return None
    if _is_list(annotation):
        return [part.strip() for part in text.split(",") if part.strip()]
    return yaml.safe_load(text) if _metavar(annotation) == "JSON" else text


def _unknown_arguments(arguments: Sequence[str], options: Sequence[str]) -> list[str]:
    """List the arguments that no option takes; the value of an unknown option is not counted as another."""
    known = [f"--{option}" for option in options]
    lines, follows = [], False
    for argument in arguments:
        option, given, _ = argument.partition("=")
        if argument.startswith("-"):
            lines.append(f"{option}: unknown option{nearest_key(option, known)}")
        elif not follows:
            lines.append(f"{argument}: unexpected argument (options start with --)")
        follows = argument.startswith("-") and not given
    return lines
