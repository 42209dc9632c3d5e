"""Search spaces: what ships, draws that extend each other, grids, and messages that help."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from lada_ray.config import StreamConfig, find_problems, known_keys, nested
from lada_ray.errors import ConfigError
from lada_ray.space import Space, searchable, shipped_space

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = sorted((ROOT / "tune_spaces").glob("*.yaml"))


def problems(space: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        Space.from_plain(space)
    return caught.value.problems


# ---------------------------------------------------------------- what ships


def test_four_spaces_ship():
    assert [file.stem for file in SHIPPED] == ["beta", "full", "prototypes", "training"]


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_a_shipped_space_gives_configurations_that_hold(file):
    space = Space.from_yaml(file)
    assert Space.from_yaml(file.stem) == space  # by its bare name
    assert Space.from_plain(space.plain()) == space
    drawn = space.sample(100, seed=0)
    assert len(drawn) == (16 if file.stem == "prototypes" else 100)
    for values in drawn:
        config = StreamConfig.from_yaml("demo", overrides=values)
        said = config.model_dump()
        for key, value in values.items():
            section, _, name = key.rpartition(".")
            assert (said[section] if section else said)[name] == value


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_the_first_line_of_a_shipped_space_runs_it(file):
    first = file.read_text().splitlines()[0]
    assert (
        first
        == f"# python jobs/tune_stream.py --config configs/demo.yaml --space {file.relative_to(ROOT).as_posix()}"
    )


def test_the_full_space_is_the_others_together():
    beta, full, prototypes, training = (Space.from_yaml(file).plain() for file in SHIPPED)
    assert full == beta | prototypes | training
    assert set(beta) == {"method.beta", "method.alpha"}
    assert set(prototypes) == {"method.memory_per_class", "method.mixture_components"}
    assert set(training) == {
        "method.lr", "method.epochs", "method.replay_weight", "method.tuner_bottleneck", "views"
    }  # fmt: skip


def test_the_defaults_lie_in_the_shipped_spaces():
    space = Space.from_yaml("full")
    defaults = {key: known_keys(StreamConfig)[key].default for key in space.parameters}
    positions = space.positions(defaults)
    assert positions is not None
    assert positions["method.alpha"] == pytest.approx(0.5)
    assert positions["views"] == pytest.approx(5 / 6)


# ---------------------------------------------------------------- draws


def test_more_samples_extend_the_list():
    space = Space.from_yaml("full")
    assert space.sample(30, seed=3) == space.sample(50, seed=3)[:30]
    assert space.sample(30, seed=3) == Space.from_yaml("full").sample(30, seed=3)


def test_another_seed_draws_others():
    space = Space.from_yaml("beta")
    assert not {tuple(d.values()) for d in space.sample(50, 0)} & {
        tuple(d.values()) for d in space.sample(50, 1)
    }


def test_draws_are_those_of_every_machine():
    # Philox and these few operations: the same numbers everywhere, up to rounding.
    (first, second) = Space.from_yaml("beta").sample(2, seed=0)
    assert first == pytest.approx({"method.beta": 0.805037415, "method.alpha": 0.186669813})
    assert second == pytest.approx({"method.beta": 5.308783274, "method.alpha": 0.376641552})


def test_a_parameter_is_drawn_alike_whatever_else_is_searched():
    beta, full = Space.from_yaml("beta").sample(20, 0), Space.from_yaml("full").sample(20, 0)
    assert [d["method.beta"] for d in beta] == [d["method.beta"] for d in full]


def test_no_configuration_is_drawn_twice_and_all_are_drawn():
    plain: dict[str, Any] = {
        "method.epochs": {"randint": [1, 21]},
        "views": {"choice": [0, 4, 8]},
        "method.beta": {"quniform": [0.5, 1.0, 0.25]},
    }
    space = Space.from_plain(plain)
    drawn = space.sample(500, seed=0)
    assert len(drawn) == 20 * 3 * 3
    assert len({tuple(values.values()) for values in drawn}) == 180
    assert drawn[:170] == space.sample(170, seed=0)


def test_a_skewed_space_is_still_drawn_to_its_end():
    space = Space.from_plain({"method.batch_size": {"lograndint": [1, 301]}})
    assert sorted(values["method.batch_size"] for values in space.sample(400, 0)) == list(range(1, 301))


def test_a_space_that_cannot_be_listed_ends_when_nothing_new_is_drawn():
    space = Space.from_plain({"method.beta": {"qrandn": [10, 0.1, 5]}})
    assert space.sample(5, 0) == [{"method.beta": 10.0}]


# ---------------------------------------------------------------- grid, positions, views, Ray Tune


def test_a_grid_holds_every_combination_in_order():
    space = Space.from_plain({"views": {"choice": [8, 0]}, "method.beta": {"loguniform": [0.1, 10]}})
    grid = space.grid(points=3)
    assert [values["views"] for values in grid] == [8, 8, 8, 0, 0, 0]
    assert [values["method.beta"] for values in grid] == pytest.approx([0.1, 1, 10, 0.1, 1, 10])
    assert len(space.grid()) == 8
    assert grid == space.grid(points=3)


def test_values_from_elsewhere_have_no_position():
    space = Space.from_plain({"method.beta": {"uniform": [1, 2]}, "views": {"choice": [0, 4]}})
    assert space.positions({"method.beta": 1.5, "views": 4}) == {"method.beta": 0.5, "views": 0.75}
    assert space.positions({"method.beta": 2.5, "views": 4}) is None
    assert space.positions({"method.beta": 1.5, "views": 8}) is None
    assert space.positions({"method.beta": 1.5}) is None


def test_the_largest_number_of_views():
    assert Space.from_yaml("beta").largest_views(6) == 6
    assert Space.from_yaml("training").largest_views(2) == 8
    assert Space.from_plain({"views": {"choice": [9, 0, 4]}}).largest_views(2) == 9
    assert Space.from_plain({"views": {"randint": [0, 9]}}).largest_views(2) == 8
    assert Space.from_plain({"views": {"qrandint": [0, 11, 4]}}).largest_views(20) == 8


def test_optuna_searches_the_same_values():
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
    from ray.tune.search.optuna import OptunaSearch

    plain: dict[str, Any] = {
        "method.beta": {"loguniform": [0.3, 10]},
        "method.alpha": {"quniform": [0, 1, 0.25]},
        "method.replay_weight": {"uniform": [1, 2]},
        "method.epochs": {"lograndint": [10, 121]},
        "method.batch_size": {"qrandint": [3, 21, 4]},
        "method.memory_per_class": {"qrandint": [3, 9, 1]},
        "method.mixture_components": {"grid_search": [1, 4]},
        "method.text_tuner": {"choice": ["none", "adaptformer"]},
    }
    assert OptunaSearch.convert_search_space(Space.from_plain(plain).tune()) == {
        "method.beta": FloatDistribution(0.3, 10, log=True),
        "method.alpha": FloatDistribution(0, 1, step=0.25),
        "method.replay_weight": FloatDistribution(1, 2),
        "method.epochs": IntDistribution(10, 120, log=True),
        "method.batch_size": IntDistribution(4, 20, step=4),
        "method.memory_per_class": IntDistribution(3, 8),
        "method.mixture_components": CategoricalDistribution([1, 4]),
        "method.text_tuner": CategoricalDistribution(["none", "adaptformer"]),
    }


def test_what_optuna_cannot_search_is_refused_when_it_is_asked_to():
    space = Space.from_plain(
        {
            "method.beta": {"qloguniform": [0.5, 8, 0.5]},
            "method.alpha": {"randn": [10, 1]},
            "method.epochs": {"qlograndint": [4, 40, 4]},
        }
    )
    with pytest.raises(ConfigError) as caught:
        space.tune()
    assert [re.sub(r";.*", "", problem) for problem in caught.value.problems] == [
        "method.beta: Optuna cannot search qloguniform",
        "method.alpha: Optuna cannot search randn",
        "method.epochs: Optuna cannot search qlograndint",
    ]


# ---------------------------------------------------------------- messages


def test_all_problems_are_told_at_once():
    said = problems({"method.betta": {"uniform": [1, 2]}, "views": {"choise": [1]}, "seed": {"choice": [1]}})
    assert [line.partition(":")[0] for line in said] == ["method.betta", "views", "seed"]


@pytest.mark.parametrize(
    ("key", "near"), [("method.betta", "method.beta"), ("beta", "method.beta"), ("view", "views")]
)
def test_unknown_parameters(key, near):
    assert problems({key: {"uniform": [1, 2]}}) == [f"{key}: unknown parameter; did you mean {near}?"]


@pytest.mark.parametrize(
    "key", ["seed", "shots", "method.kind", "encoder.model", "domains", "domains.0.epochs", "storage"]
)
def test_what_may_not_be_searched(key):
    (line,) = problems({key: {"choice": [1]}})
    assert line.startswith(f"{key}: may not be searched; only views and method.* may")
    assert "what a sweep is about" in line


def test_every_other_setting_of_the_method_may_be_searched():
    method = {key for key in known_keys(StreamConfig) if key.startswith("method.")}
    assert set(searchable()) == method - {"method.kind"} | {"views"}


def test_sections_are_written_with_dots():
    (line,) = problems({"method": {"beta": {"uniform": [1, 2]}}})
    assert line.startswith("method: a section; write its keys with dots")


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (2, "must be one distribution, as in {loguniform: [0.3, 10]} (got 2)"),
        (
            {"uniform": [1, 2], "choice": [1]},
            "must be one distribution, as in {loguniform: [0.3, 10]} "
            "(got {'uniform': [1, 2], 'choice': [1]})",
        ),
        ({"uniform": 2}, "uniform takes a list (got 2)"),
        ({"uniform": [1]}, "uniform takes [lower, upper] (got [1])"),
        ({"quniform": [1, 2]}, "quniform takes [lower, upper, q] (got [1, 2])"),
        ({"randn": [10, 1, 1]}, "randn takes [mean, sd] (got [10, 1, 1])"),
        ({"choice": []}, "choice needs at least one value"),
        ({"choice": [1, 2, "1.0"]}, "choice has 1.0 more than once"),
        ({"uniform": [2, 1]}, "uniform [2, 1]: the lower bound 2 is not below the upper bound 1"),
        ({"uniform": [2, 2]}, "uniform [2, 2]: the lower bound 2 is not below the upper bound 2"),
        ({"uniform": ["low", 2]}, "uniform: 'low' is no number"),
        ({"uniform": [True, 2]}, "uniform: True is no finite number"),
        ({"uniform": [1, math.inf]}, "uniform: inf is no finite number"),
        ({"uniform": [None, 2]}, "uniform: None is no number"),
        ({"randint": [1, 2.5]}, "randint: 2.5 is no whole number"),
        (
            {"loguniform": [0, 2]},
            "loguniform [0, 2]: both bounds must be greater than 0, for the scale is logarithmic",
        ),
        ({"quniform": [1, 2, 0]}, "quniform [1, 2, 0]: q must be greater than 0 (got 0)"),
        ({"quniform": [1, 2, 0.3]}, "quniform [1, 2, 0.3]: 1 is no multiple of q"),
        ({"qrandint": [5, 7, 4]}, "qrandint [5, 7, 4]: no multiple of q lies between the bounds"),
        ({"randn": [10, 0]}, "randn: sd must be greater than 0 (got 0)"),
        ({"uniform": [0, 2]}, "must be greater than 0 (got 0.0), which uniform [0, 2] can give"),
        ({"choice": [1, -1]}, "must be greater than 0 (got -1), which choice [1, -1] can give"),
    ],
    ids=str,
)
def test_complaints_about_a_number(given, complaint):
    assert complaint in [line.removeprefix("method.beta: ") for line in problems({"method.beta": given})]


def test_an_unknown_distribution():
    (line,) = problems({"method.beta": {"loguniforn": [1, 2]}})
    assert line.startswith(
        "method.beta: unknown distribution 'loguniforn'; did you mean loguniform? (one of "
    )
    assert "qlograndint, choice, grid_search)" in line


def test_a_normal_distribution_that_falls_below_zero():
    (line,) = problems({"method.beta": {"randn": []}})
    assert line.startswith("method.beta: must be greater than 0 (got -8.2")


def test_whole_numbers_want_distributions_of_whole_numbers():
    for name, instead in {"uniform": "randint", "quniform": "qrandint", "loguniform": "lograndint"}.items():
        assert problems({"method.epochs": {name: [1, 2]}}) == [
            f"method.epochs: takes whole numbers, so write {instead} instead of {name}"
        ]


def test_what_is_no_number_wants_a_choice():
    assert problems({"method.replay": {"randint": [0, 2]}, "method.fusion": {"choice": ["gatted"]}}) == [
        "method.replay: is no number, so randint cannot draw it; write choice: [...]",
        "method.fusion: must be 'gated' or 'additive' (got 'gatted'), which choice ['gatted'] can give",
    ]
    space = Space.from_plain(
        {"method.replay": {"choice": [True, False]}, "method.fusion": {"choice": ["gated"]}}
    )
    assert space.grid() == [
        {"method.replay": True, "method.fusion": "gated"},
        {"method.replay": False, "method.fusion": "gated"},
    ]


def test_numbers_that_yaml_takes_for_text(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("method.lr: {loguniform: [1e-4, 1e-2]}\nmethod.weight_decay: {choice: [1e-4, 0]}\n")
    assert yaml.safe_load(file.read_text())["method.lr"] == {"loguniform": ["1e-4", "1e-2"]}
    space = Space.from_yaml(file)
    assert space.plain() == {
        "method.lr": {"loguniform": [0.0001, 0.01]},
        "method.weight_decay": {"choice": [0.0001, 0.0]},
    }
    for values in space.sample(5, 0):
        assert not [line for line in find_problems(nested(values)) if line.startswith("method.")]


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match=r"no search space called 'betta' is shipped; did you mean beta\?"):
        Space.from_yaml("betta")
    with pytest.raises(ConfigError, match=r"there is no file /nowhere/mine\.yaml"):
        Space.from_yaml("/nowhere/mine.yaml")
    file = tmp_path / "mine.yaml"
    file.write_text("method.beta: {uniform: [1, 2]}\nmethod.beta: {uniform: [1, 3]}\n")
    with pytest.raises(ConfigError, match=r"cannot be read:\n.*line 2: key 'method\.beta' stands twice"):
        Space.from_yaml(file)
    file.write_text("# nothing\n")
    with pytest.raises(ConfigError, match=r"not valid \(.*mine\.yaml\):\n.*it searches nothing"):
        Space.from_yaml(file)


def test_shipped_spaces_are_found_in_a_wheel_too(tmp_path, monkeypatch):
    inside = tmp_path / "lada_ray" / "tune_spaces"
    inside.mkdir(parents=True)
    (inside / "own.yaml").touch()
    monkeypatch.setattr("lada_ray.space.__file__", str(tmp_path / "lada_ray" / "space.py"))
    assert shipped_space("own") == inside / "own.yaml"
