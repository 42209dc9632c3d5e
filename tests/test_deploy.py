"""`cluster.yaml` is what `ray up` takes: Ray's own check of it, and AWS's machines."""

from __future__ import annotations

import copy
import itertools
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from lada_ray import StreamConfig
from lada_ray.config import ResourceConfig

ROOT = Path(__file__).resolve().parent.parent
PINS = dict(
    line.split("==")
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
)


def load(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def command(text: str) -> list[str]:
    """The one submitted command of a text, as words, without a comment sign before and a redirection after it."""
    (line,) = re.findall(r"ray job submit (.*?)(?: >>.*)?$", text, re.MULTILINE)
    return shlex.split(line)


def submitted(text: str) -> list[str]:
    """What `ray job submit` is given to run; its own options are read as Ray reads them."""
    from ray.dashboard.modules.job.cli import submit

    words = command(text)
    given = submit.make_context("submit", list(words)).params
    assert given["working_dir"] == "."
    assert given["runtime_env"] == "runtime_env.yaml"
    assert given["address"].startswith("http://")
    assert list(given["entrypoint"]) == words[words.index("--") + 1 :]
    return list(given["entrypoint"])


def resources(words: list[str]) -> ResourceConfig:
    """The resources that a command states, as the product's own schema reads them."""
    pairs = itertools.pairwise(words)
    stated = {k.removeprefix("--resources."): float(v) for k, v in pairs if k.startswith("--resources.")}
    return ResourceConfig(**stated)  # type: ignore[arg-type]


def check_fits(asked: ResourceConfig, gpus: float, encode_cpus: float, fit_cpus: float) -> None:
    """Else it waits for ever: an encoder per GPU, a core of the GPU's machine for it, training on a CPU machine."""
    assert asked.encoders is not None
    assert asked.gpus_per_encoder == 1
    assert asked.encoders == gpus
    assert encode_cpus >= 1 + 0.5
    assert asked.gpus_per_train_worker == 0
    assert asked.cpus_per_train_worker is not None
    assert asked.train_workers * asked.cpus_per_train_worker <= fit_cpus


def checked(config: Any) -> Any:
    """A configuration as `ray up` completes and checks it."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


def test_ray_takes_the_cluster() -> None:
    prepared = checked(load("cluster.yaml"))
    types = prepared["available_node_types"]
    limits = {name: (t["min_workers"], t["max_workers"]) for name, t in types.items()}
    assert limits == {"head": (0, 0), "encode": (0, 4), "fit": (0, 4)}
    assert prepared["max_workers"] == 8
    assert prepared["idle_timeout_minutes"] == 5


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda c: c.update(idle_timeout_minute=5), "'idle_timeout_minute' was unexpected"),
        (lambda c: c["available_node_types"]["fit"].update(max_worker=5), "'max_worker' was unexpected"),
        (lambda c: c["available_node_types"]["fit"].update(resources={"CPU": "16"}), "not of type 'integer'"),
        (lambda c: c["docker"].update(images="ray"), "'images' was unexpected"),
        (lambda c: c.update(head_node_type="heads"), "`head_node_type` must be one of"),
    ],
)
def test_ray_refuses_what_is_misspelt(change: Any, told: str) -> None:
    config = load("cluster.yaml")
    change(config)
    with pytest.raises(Exception, match=re.escape(told)):  # jsonschema's and Ray's own
        checked(config)


def test_workers_may_be_spot_machines_and_the_head_may_not() -> None:
    types = load("cluster.yaml")["available_node_types"]
    spot = {n for n, t in types.items() if "InstanceMarketOptions" in t["node_config"]}
    assert spot == {"encode", "fit"}
    assert load("cluster.yaml")["provider"]["cache_stopped_nodes"] is False
    assert types["head"]["resources"] == {"CPU": 0}


def test_the_machines_are_what_the_cluster_says_they_are(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that `ray up` does before it starts machines, on moto's copy of AWS and of its catalogue."""
    import boto3  # comes with moto
    from ray.autoscaler._private.aws import node_provider
    from ray.autoscaler._private.commands import _bootstrap_config

    config = load("cluster.yaml")
    types = config["available_node_types"]
    stated = {name: types[name].pop("resources") for name in ("encode", "fit")}
    names = [t["node_config"]["InstanceType"] for t in types.values()]
    ec2 = boto3.client("ec2", region_name=config["provider"]["region"])
    catalogue = ec2.describe_instance_types(InstanceTypes=names)["InstanceTypes"]
    monkeypatch.setattr(node_provider, "list_ec2_instances", lambda *_: catalogue)  # not all 1400: seconds
    monkeypatch.setenv("HOME", str(tmp_path))  # where the key pair goes
    (tmp_path / ".ssh").mkdir()
    own = _bootstrap_config(config, no_config_cache=True)["available_node_types"]
    assert {name: {key: own[name]["resources"][key] for key in stated[name]} for name in stated} == stated
    assert own["encode"]["resources"]["accelerator_type:L4"] == 1
    assert own["head"]["resources"] == {"CPU": 0}
    assert all(t["node_config"]["SubnetIds"] and t["node_config"]["SecurityGroupIds"] for t in own.values())


def test_nodes_run_the_tested_versions_and_share_a_token() -> None:
    config = load("cluster.yaml")
    assert config["docker"]["image"] == f"rayproject/ray:{PINS['ray']}-py311"
    mounts = config["file_mounts"]
    folder = "/home/ray/lada_ray"
    assert config["setup_commands"] == [f"pip install --quiet --constraint {folder}/constraints.txt {folder}"]
    # What the package is built from, and nothing that is not in a checkout but the token.
    project = {"pyproject.toml", "constraints.txt", "README.md", "LICENSE"}
    project |= {"lada_ray", "jobs", "configs", "tune_spaces"}
    assert {remote.removeprefix(f"{folder}/") for remote in mounts} == project | {"auth_token"}
    assert {local for local in mounts.values() if (ROOT / local).exists()} == project
    options = dict(option.removeprefix("-e ").split("=", 1) for option in config["docker"]["run_options"])
    assert options["RAY_AUTH_MODE"] == "token"
    assert mounts[options["RAY_AUTH_TOKEN_PATH"]] == "~/.ray/auth_token"


def test_the_command_in_the_clusters_file_asks_for_what_it_has() -> None:
    text = (ROOT / "cluster.yaml").read_text()
    words = submitted(text)
    assert words[:4] == ["python", "jobs/run_stream.py", "--config", "configs/demo.yaml"]
    flags = dict(zip(words[4::2], words[5::2], strict=True))
    overrides = {key.removeprefix("--"): value for key, value in flags.items()}
    read = StreamConfig.from_yaml(ROOT / "configs/demo.yaml", overrides=overrides)
    types = load("cluster.yaml")["available_node_types"]
    encode, fit = types["encode"]["resources"], types["fit"]["resources"]
    gpus = encode["GPU"] * types["encode"]["max_workers"]
    check_fits(read.resources, gpus, encode["CPU"], fit["CPU"])
    assert resources(words) == read.resources


def test_everything_to_change_is_marked() -> None:
    text = (ROOT / "cluster.yaml").read_text()
    marked = text.split("CHANGE")
    assert len(marked) - 1 == 6  # five places, and the line that says so
    for word in ("ami-0000", "000000000000:instance-profile", "MLFLOW:5000", "us-east-1"):
        assert word in text
