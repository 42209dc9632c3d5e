"""What is shipped for clusters is what they take: KubeRay's schemas, Ray's own check of `ray up`, AWS's machines."""

from __future__ import annotations

import copy
import itertools
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from jobs.retrain import Flags
from lada_ray import StreamConfig
from lada_ray.command_line import parse_flags
from lada_ray.config import ResourceConfig

ROOT = Path(__file__).resolve().parent.parent
SCHEMAS = ROOT.parent / "shared" / "reference" / "kuberay"
MANIFESTS = {"rayjob.yaml": "ray.io_rayjobs.yaml", "raycronjob.yaml": "ray.io_raycronjobs.yaml"}
PINS = dict(
    line.split("==")
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
)
needs_schemas = pytest.mark.skipif(not SCHEMAS.is_dir(), reason=f"KubeRay's schemas are not in {SCHEMAS}")


def load(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def job_spec(name: str) -> Any:
    spec = load(f"deploy/{name}")["spec"]
    return spec.get("jobTemplate", spec)


# --- KubeRay's schemas ---


def strict(schema: Any) -> Any:
    """A Kubernetes schema in which an unknown field is an error: the API server would drop it, or refuse it."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("type") == "object" and not schema.get("x-kubernetes-preserve-unknown-fields"):
        schema = {"additionalProperties": False, **schema}
    # The names under "properties" are fields, not words of the schema: a field may be called "properties" or "type".
    return {
        key: {name: strict(part) for name, part in value.items()} if key == "properties" else strict(value)
        for key, value in schema.items()
    }


@pytest.fixture(scope="module")
def validators() -> dict[str, Draft202012Validator]:
    """For each manifest, the schema of the version that it states."""
    found = {}
    for manifest, file in MANIFESTS.items():
        with (SCHEMAS / file).open() as stream:
            definition = yaml.load(stream, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        group, _, version = load(f"deploy/{manifest}")["apiVersion"].partition("/")
        assert definition["spec"]["group"] == group
        (schema,) = (
            v["schema"] for v in definition["spec"]["versions"] if v["name"] == version and v["served"]
        )
        schema = strict(schema["openAPIV3Schema"])
        schema["properties"]["metadata"] = METADATA  # of the API server itself: the definition leaves it open
        schema["properties"]["kind"] = {"const": definition["spec"]["names"]["kind"]}
        found[manifest] = Draft202012Validator(schema)
    return found


NAME = {"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$", "maxLength": 41}  # a tick's job adds 6
METADATA = {
    "type": "object",
    "required": ["name"],
    "additionalProperties": False,
    "properties": {
        "name": NAME,
        "namespace": NAME,
        "labels": {"additionalProperties": {"type": "string"}},
        "annotations": {"additionalProperties": {"type": "string"}},
    },
}


def problems(validator: Draft202012Validator, manifest: Any) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(manifest)]


@needs_schemas
@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_fit_kuberays_schemas(validators: dict[str, Draft202012Validator], name: str) -> None:
    assert problems(validators[name], load(f"deploy/{name}")) == []


@needs_schemas
@pytest.mark.parametrize("name", MANIFESTS)
@pytest.mark.parametrize(
    ("path", "old", "new", "told"),
    [
        ("", "backoffLimit", "backofLimit", "'backofLimit' was unexpected"),
        (
            "rayClusterSpec",
            "enableInTreeAutoscaling",
            "enableAutoscaling",
            "'enableAutoscaling' was unexpected",
        ),
        ("rayClusterSpec.headGroupSpec", "template", "podTemplate", "'template' is a required property"),
        ("rayClusterSpec.workerGroupSpecs.0", "maxReplicas", "maxReplica", "'maxReplica' was unexpected"),
        ("rayClusterSpec.headGroupSpec.template.spec.containers.0", "env", "environment", "unexpected"),
        (
            "rayClusterSpec.workerGroupSpecs.0.template.spec.tolerations.0",
            "key",
            "kay",
            "'kay' was unexpected",
        ),
    ],
)
def test_a_misspelt_field_is_found_wherever_it_stands(
    validators: dict[str, Draft202012Validator], name: str, path: str, old: str, new: str, told: str
) -> None:
    # Through JSON: what YAML's anchors share is copied, so that one place alone is changed.
    manifest = json.loads(json.dumps(load(f"deploy/{name}")))
    part = manifest["spec"].get("jobTemplate", manifest["spec"])
    for step in filter(None, path.split(".")):
        part = part[int(step)] if step.isdigit() else part[step]
    part[new] = part.pop(old)
    found = problems(validators[name], manifest)
    assert found
    assert any(told in line for line in found), found


@needs_schemas
@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"backoffLimit": "1"}, "$.spec.backoffLimit: '1' is not of type 'integer'"),
        ({"concurrencyPolicy": "Forbid"}, "'concurrencyPolicy' was unexpected"),
    ],
)
def test_wrong_values_and_fields_that_kuberay_lacks_are_found(
    validators: dict[str, Draft202012Validator], change: dict[str, Any], told: str
) -> None:
    manifest = load("deploy/rayjob.yaml")
    manifest["spec"] |= change
    (problem,) = problems(validators["rayjob.yaml"], manifest)
    assert told in problem


# --- What no schema says of the manifests ---


def test_the_scheduled_job_is_the_single_one() -> None:
    assert job_spec("raycronjob.yaml") == job_spec("rayjob.yaml")
    assert re.fullmatch(r"[\d*]+( [\d*]+){4}", load("deploy/raycronjob.yaml")["spec"]["schedule"])


def containers() -> dict[str, Any]:
    """The one container of the head and of each worker group, by the group's name."""
    cluster = job_spec("rayjob.yaml")["rayClusterSpec"]
    groups = {"head": cluster["headGroupSpec"]} | {g["groupName"]: g for g in cluster["workerGroupSpecs"]}
    return {name: one for name, g in groups.items() for one in g["template"]["spec"]["containers"]}


def test_all_pods_run_one_image_with_the_tested_ray_and_know_mlflow() -> None:
    cluster = job_spec("rayjob.yaml")["rayClusterSpec"]
    assert cluster["rayVersion"] == PINS["ray"]
    (image,) = {c["image"] for c in containers().values()}
    assert f"docker build --tag {image} ." in (ROOT / "deploy/README.md").read_text()
    for container in containers().values():
        assert "MLFLOW_TRACKING_URI" in {variable["name"] for variable in container["env"]}
    pods = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    assert {p["template"]["spec"]["serviceAccountName"] for p in pods} == {"lada-ray"}


def test_the_manifests_keep_rules_that_kuberay_checks_late() -> None:
    """Each is refused by the operator, not by the API server: nobody would see why no job starts."""
    job = job_spec("rayjob.yaml")
    cluster = job["rayClusterSpec"]
    assert job["shutdownAfterJobFinishes"] is True  # else it may have no time to live
    assert (job["ttlSecondsAfterFinished"], job["activeDeadlineSeconds"], job["backoffLimit"]) == (
        600,
        21600,
        0,
    )
    assert cluster["authOptions"] == {"mode": "token", "secretName": "lada-ray-auth"}
    assert "lada-ray-auth --from-literal=auth_token=" in (ROOT / "deploy/README.md").read_text()
    assert cluster["autoscalerOptions"]["version"] == "v2"  # which takes pods that are never restarted alone
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert "restartPolicy" not in group["template"]["spec"]
    assert yaml.safe_load(job["runtimeEnvYAML"]) == {"env_vars": {"PYTHONUNBUFFERED": "1"}}


def test_workers_come_on_demand_and_the_head_takes_no_work() -> None:
    cluster = job_spec("rayjob.yaml")["rayClusterSpec"]
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    sizes = {g["groupName"]: (g["minReplicas"], g["replicas"]) for g in cluster["workerGroupSpecs"]}
    assert sizes == {"encode": (0, 0), "fit": (0, 0)}


# --- Commands ---

RETRAIN = ["--inbox", "s3://BUCKET/inbox", "--model", "lada", "--storage", "s3://BUCKET/lada"]


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


def entrypoints() -> dict[str, list[str]]:
    return {
        "rayjob.yaml": shlex.split(job_spec("rayjob.yaml")["entrypoint"]),
        "crontab": submitted((ROOT / "deploy/crontab").read_text()),
        "README.md": submitted((ROOT / "deploy/README.md").read_text()),
    }


def test_all_schedulers_run_the_same_command() -> None:
    given = entrypoints()
    assert given["rayjob.yaml"][:3] == ["python", "-m", "lada_ray.jobs.retrain"]  # the image has no checkout
    assert given["crontab"] == given["README.md"] == ["python", "jobs/retrain.py", *given["rayjob.yaml"][3:]]
    assert given["rayjob.yaml"][3:9] == RETRAIN
    assert f"python jobs/retrain.py {' '.join(RETRAIN)}\n" in (ROOT / "deploy/README.md").read_text()


def test_the_job_takes_the_command() -> None:
    flags = parse_flags(entrypoints()["rayjob.yaml"][3:], Flags)
    assert (flags.model, flags.inbox, flags.storage) == ("lada", "s3://BUCKET/inbox", "s3://BUCKET/lada")
    assert (flags.resources.encoders, flags.resources.cpus_per_train_worker) == (4, 6)


def test_the_crontab_has_one_line_with_five_times() -> None:
    lines = [x for x in (ROOT / "deploy/crontab").read_text().splitlines() if x and not x.startswith("#")]
    variables, (entry,) = lines[:-1], lines[-1:]
    assert [line.partition("=")[0] for line in variables] == ["RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"]
    assert re.match(r"0 2 \* \* \* cd /\S+ && \.venv/bin/ray job submit ", entry)
    assert "%" not in entry  # a new line, to cron


def test_what_the_job_asks_for_is_what_the_pods_have() -> None:
    asked = resources(entrypoints()["rayjob.yaml"])
    sizes = {name: c["resources"]["limits"] for name, c in containers().items()}
    groups = {g["groupName"]: g for g in job_spec("rayjob.yaml")["rayClusterSpec"]["workerGroupSpecs"]}
    gpus = float(sizes["encode"]["nvidia.com/gpu"]) * groups["encode"]["maxReplicas"]
    check_fits(asked, gpus, float(sizes["encode"]["cpu"]), float(sizes["fit"]["cpu"]))
    for name in ("encode", "fit"):
        assert containers()[name]["resources"]["requests"] == sizes[name]
        assert sizes["fit"].get("nvidia.com/gpu") is None


def check_fits(asked: ResourceConfig, gpus: float, encode_cpus: float, fit_cpus: float) -> None:
    """Else it waits for ever: an encoder per GPU, a core of the GPU's machine for it, training on a CPU machine."""
    assert asked.encoders is not None
    assert asked.gpus_per_encoder == 1
    assert asked.encoders == gpus
    assert encode_cpus >= 1 + 0.5
    assert asked.gpus_per_train_worker == 0
    assert asked.cpus_per_train_worker is not None
    assert asked.train_workers * asked.cpus_per_train_worker <= fit_cpus


# --- ray up ---


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
    project = {"pyproject.toml", "constraints.txt", "README.md", "LICENSE", "lada_ray", "jobs"}
    project |= {"configs", "tune_spaces"}
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
