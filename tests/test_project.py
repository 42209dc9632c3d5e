"""pyproject.toml and constraints.txt agree with each other and with what the code imports."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = dict(
    line.split("==")
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
)


def requirements(*extras):
    lines = PROJECT["dependencies"] + [
        line for extra in extras for line in PROJECT["optional-dependencies"][extra]
    ]
    return [Requirement(line) for line in lines]


def imported():
    """The distributions that each module the product imports may come from."""
    modules = set()
    for file in [*(ROOT / "lada_ray").rglob("*.py"), *(ROOT / "jobs").glob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                modules.add((node.module or "").partition(".")[0])
    owners = packages_distributions()
    others = modules - sys.stdlib_module_names - {"lada_ray", "jobs"}
    return {module: {canonicalize_name(name) for name in owners[module]} for module in others}


def test_every_import_is_declared_and_nothing_else():
    declared = {canonicalize_name(requirement.name) for requirement in requirements()}
    modules = imported()
    assert [m for m, owners in modules.items() if not owners & declared] in ([], ["pydantic_core"])
    # open_clip imports torchvision without a bound, and MLflow psutil without saying so.
    assert declared - set().union(*modules.values()) - {"torchvision", "psutil"} == set()


def test_pins_lie_within_the_bounds():
    pins = {canonicalize_name(name): version for name, version in PINS.items()}
    for requirement in requirements("dev"):
        version = pins[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement}: {version} is pinned"
        assert list(requirement.specifier) != [], f"{requirement} has no bound"


def test_constraints_are_nothing_but_pins():
    for name, version in PINS.items():
        assert re.fullmatch(r"[A-Za-z0-9._-]+", name)
        assert re.fullmatch(r"[0-9][0-9A-Za-z.]*", version)  # no local builds, no paths, no addresses
