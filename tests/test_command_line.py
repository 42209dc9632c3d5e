"""The command line: flags from the configuration's model, precedence, messages, help."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from lada_ray.command_line import JobFlags, parse_command_line, parse_flags
from lada_ray.config import StreamConfig, known_keys
from lada_ray.errors import ConfigError

SMALL = """
name: small
storage: /store
encoder: {model: demo-clip, pretrained: demo}
domains: [{name: cats, kind: folder, root: cats}]
method: {beta: 3, lr: 1e-4}
"""


class Flags(JobFlags):
    """Flags of a job in a test."""

    plan: bool = False
    """Print what would be done, 100 % of it, and stop."""
    keep: int | None = None
    """Days (null: for ever)."""


class Positional(JobFlags):
    """A job that takes a folder."""

    folder: str
    """The run's folder."""


class Lists(JobFlags):
    """A job that takes lists."""

    seeds: tuple[int, ...] = (0, 1)
    """Seeds."""
    methods: tuple[Literal["ncm", "lada"], ...] = ("lada",)
    """Learners."""
    names: tuple[str, ...] = ()
    """Names."""
    mean: tuple[float, float] = (0.5, 1.0)
    """Not a list, but a pair."""


@pytest.fixture
def small(tmp_path: Path) -> str:
    (tmp_path / "yaml").mkdir()
    file = tmp_path / "yaml" / "run.yaml"
    file.write_text(SMALL)
    return str(file)


def problems(*argv: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_command_line(argv, Flags)
    return caught.value.problems


def test_command_line_beats_yaml_beats_defaults(small: str) -> None:
    config, flags = parse_command_line(
        ["--config", small, "--method.beta", "2", "--name=hot", "--plan"], Flags
    )
    assert (config.name, config.method.beta, config.method.lr, config.method.alpha) == ("hot", 2.0, 1e-4, 1.0)
    assert flags == Flags(config=small, plan=True)
    assert config == StreamConfig.from_yaml(small, {"method.beta": 2, "name": "hot"})


def test_every_kind_of_value(small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    argv = ["--config", small, "--shots", "4", "--method.replay", "false", "--method.text_tuner", "none"]
    argv += ["--encoder.quick_gelu", "true", "--encoder.preprocess.mean", "[0.1, 0.2, 0.3]", "--keep", "null"]
    argv += ["--method.lr", "3e-5", "--encoder.pretrained", "w.safetensors", "--name", "1"]
    argv += ["--domains", '[{"name": "a", "kind": "folder", "root": "a"}]']
    config, flags = parse_command_line(argv, Flags)
    assert (config.shots, config.method.replay, config.method.text_tuner, config.name) == (
        4,
        False,
        "none",
        "1",
    )
    assert config.encoder.quick_gelu is True
    assert config.encoder.preprocess is not None
    assert config.encoder.preprocess.mean == (0.1, 0.2, 0.3)
    assert (config.method.lr, flags.keep) == (3e-5, None)
    assert config.encoder.pretrained == str(tmp_path / "w.safetensors")
    assert config.domains[0].root == str(tmp_path / "a")  # type: ignore[union-attr]


def test_null_takes_back_what_the_yaml_says(small: str) -> None:
    Path(small).write_text(SMALL + "shots: 3\n")
    assert parse_command_line(["--config", small], Flags)[0].shots == 3
    assert parse_command_line(["--config", small, "--shots", "null"], Flags)[0].shots is None


def test_no_yaml_is_needed() -> None:
    domains = '[{"name": "a", "kind": "demo", "drawing": "shapes"}]'
    config, _ = parse_command_line(["--name", "x", "--encoder.model", "m", "--domains", domains], Flags)
    assert config.domains[0].name == "a"


def test_all_problems_of_flags_yaml_and_values_at_once(small: str) -> None:
    Path(small).write_text(SMALL + "vews: 3\n")
    argv = ["--method.bta", "2", "--plna", "stray", "--seed=-1", "--domains", "[{", "--keep", "x"]
    assert problems("--config", small, *argv) == [
        "--method.bta: unknown option; did you mean --method.beta?",
        "--plna: unknown option; did you mean --plan?",
        "domains: must be JSON (got '[{')",
        "keep: must be a valid integer, unable to parse string as an integer (got 'x')",
        "seed: must be greater than or equal to 0 (got '-1')",
        "vews: unknown key; did you mean views?",
    ]


def test_abbreviations_and_stray_arguments_are_refused(small: str) -> None:
    assert problems("stray", "--config", small, "--pla") == [
        "stray: unexpected argument (options start with --)",
        "--pla: unknown option; did you mean --plan?",
    ]
    assert problems("--config") == ["argument --config: expected one argument (--help lists all options)"]


def test_flags_without_a_configuration() -> None:
    assert parse_flags(["runs/a"], Positional) == Positional(folder="runs/a")
    with pytest.raises(ConfigError, match="the following arguments are required: folder"):
        parse_flags([], Positional)


def test_help_lists_every_key_with_meaning_and_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_command_line(["--help"], Flags, "Learn a stream.")
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for key, field in known_keys(StreamConfig).items():
        assert f" --{key} " in text
        assert field.description, key
    for said in (
        "Learn a stream.",
        "--plan Print what would be done, 100 % of it, and stop.",
        "--method.beta NUMBER Sharpness of the memory's affinity exp(-beta (1 - cosine)). (default: 1.0)",
        "--shots INT Training images per class (default null: all).",
        "--method.fusion {gated,additive}",
        "--name TEXT Name of the run, and of its folder in the storage: letters, digits, _ . - (required)",
        "kind: folder. A folder of images",
        "root Folder, or s3:// or gs:// prefix, with the images",
    ):
        assert said in text


def test_lists_are_separated_by_commas() -> None:
    argv = ["--seeds", "3, 1,,2", "--methods", "ncm,lada", "--names=a b,c", "--mean", "[1, 2]"]
    flags = parse_flags(argv, Lists)
    assert (flags.seeds, flags.methods, flags.names) == ((3, 1, 2), ("ncm", "lada"), ("a b", "c"))
    assert flags.mean == (1.0, 2.0)
    assert parse_flags(["--seeds", "7"], Lists).seeds == (7,)
    assert parse_flags([], Lists) == Lists()
    assert parse_flags(["--seeds", "", "--names", ","], Lists) == Lists(seeds=(), names=())


def test_problems_in_lists_name_the_place() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_flags(["--seeds", "0,one", "--methods", "lada,rail,ncm"], Lists)
    assert caught.value.problems == [
        "seeds.1: must be a valid integer, unable to parse string as an integer (got 'one')",
        "methods.1: must be 'ncm' or 'lada' (got 'rail')",
    ]


def test_help_shows_lists_as_they_are_typed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_flags(["--help"], Lists)
    text = " ".join(capsys.readouterr().out.split())
    for said in (
        "--seeds INT,... Seeds. (default: 0,1)",
        "--methods {ncm,lada},... Learners. (default: lada)",
        "--names TEXT,... Names. (default: none)",
    ):
        assert said in text
