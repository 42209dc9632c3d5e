"""The configuration as a YAML schema: precedence, paths, messages, and where a run may write."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from lada_ray import config as config_module
from lada_ray.config import (
    LATER,
    StreamConfig,
    in_submitted_job,
    merged,
    mlflow_uri,
    nested,
    network_file_system,
    shipped_config,
    tracking_uri,
)
from lada_ray.domains import FolderSpec
from lada_ray.errors import ConfigError

SMALL = """
name: small
storage: /store
encoder: {model: demo-clip, pretrained: demo}
domains:
  - {name: cats, kind: folder, root: data/cats}
  - {name: shapes, kind: demo, drawing: shapes}
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    def written(text: str) -> Path:
        file = tmp_path / "folder" / "run.yaml"
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
        return file

    return written


@pytest.fixture
def small(write: Callable[[str], Path]) -> Path:
    return write(SMALL)


def problems(path: Path, overrides: dict[str, Any] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        StreamConfig.from_yaml(path, overrides)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again)) == (ConfigError, str(caught.value))
    return caught.value.problems


def test_defaults_are_the_published_ones(small: Path) -> None:
    config = StreamConfig.from_yaml(small)
    assert config.method.model_dump(mode="json") == {
        "kind": "lada",
        "alpha": 1.0,
        "beta": 1.0,
        "memory_per_class": 16,
        "mixture_components": 4,
        "replay": True,
        "replay_noise": True,
        "replay_weight": 64.0,
        "replay_rows": 512,
        "fusion": "gated",
        "text_tuner": "adaptformer",
        "tuner_bottleneck": 16,
        "epochs": 30,
        "lr": 1e-3,
        "weight_decay": 5e-4,
        "batch_size": 64,
        "pack_precision": "float32",
    }
    assert (config.shots, config.views, config.seed, config.max_bad_share) == (None, 8, 0, 0.01)
    assert config.encoder.prompt == "a photo of a {}."
    assert (config.resources.train_workers, config.resources.encoders) == (1, None)
    assert [domain.kind for domain in config.domains] == ["folder", "demo"]


def test_settings_of_later_versions_are_said_where_they_are_not_what_was_before(small: Path) -> None:
    """A run that was started before they existed goes on; one with another value is another run."""
    plain = StreamConfig.from_yaml(
        small, {f"method.{key}": value for key, value in LATER.items()}
    ).method.identity
    assert not LATER.keys() & plain.keys()
    # They replayed all components, which is not what is done by default now.
    assert StreamConfig.from_yaml(small).method.identity == {**plain, "replay_rows": 512}
    changes = {"method.replay_rows": 100, "method.pack_precision": "float16"}
    changed = StreamConfig.from_yaml(small, changes).method.identity
    assert changed == {**plain, "replay_rows": 100, "pack_precision": "float16"}


@pytest.mark.parametrize(
    ("kind", "constants"),
    [
        ("lada", None),
        ("joint", None),
        ("zero_shot", {}),
        ("ncm", {}),
        ("rail_primal", {"ridge": 0.1, "dimensions": 15000, "mix": 0.8}),
        ("rail_dual", {"ridge": 1e-3, "gamma": 0.1, "mix": 0.8}),
    ],
)
def test_what_a_kind_of_learner_takes_from_the_configuration(
    small: Path, kind: str, constants: dict[str, float] | None
) -> None:
    config = StreamConfig.from_yaml(small, {"method.kind": kind, "method.beta": 2.0, "views": 5})
    method = config.method
    assert (method.kind, method.trains) == (kind, constants is None)
    # A learner in closed form has no settings and sees no augmented view: neither identifies its run.
    closed = constants is not None
    settings = method.model_dump(mode="json")
    settings = {key: value for key, value in settings.items() if value != LATER.get(key, ...)}
    assert method.identity == ({"kind": kind, **(constants or {})} if closed else settings)
    assert config.training_views == (0 if closed else 5)
    assert config.views == 5


def test_overrides_beat_the_yaml_which_beats_the_defaults(write: Callable[[str], Path]) -> None:
    file = write(SMALL + "method: {beta: 3, lr: 1e-4}\nviews: 2\n")
    config = StreamConfig.from_yaml(file, {"method.beta": 2.0, "shots": 4})
    assert (config.method.beta, config.method.lr, config.method.alpha) == (2.0, 1e-4, 1.0)
    assert (config.views, config.shots) == (2, 4)


def test_an_override_can_open_an_optional_section_and_close_it(small: Path, tmp_path: Path) -> None:
    config = StreamConfig.from_yaml(small, {"encoder.preprocess.interpolation": "bilinear"})
    assert config.encoder.preprocess is not None
    assert config.encoder.preprocess.interpolation == "bilinear"
    (tmp_path / "again.yaml").write_text(config.to_yaml())
    assert (
        StreamConfig.from_yaml(tmp_path / "again.yaml", {"encoder.preprocess": None}).encoder.preprocess
        is None
    )


def test_domains_can_be_made_in_python(small: Path, tmp_path: Path) -> None:
    spec = FolderSpec(name="a", root=str(tmp_path))
    assert StreamConfig.from_yaml(small, {"domains": [spec]}).domains == (spec,)


DATA = """
name: a
data: sets
encoder: {model: demo-clip, pretrained: demo}
domains: [{name: cats, kind: folder, root: cats}, {name: m, kind: manifest, file: m.csv, root: /images}]
"""


def roots(config: StreamConfig) -> tuple[str, str, str]:
    cats, table = (domain.model_dump() for domain in config.domains)
    return cats["root"], table["file"], table["root"]


def test_relative_roots_count_from_data(
    write: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(DATA)
    base = file.parent
    assert roots(StreamConfig.from_yaml(file)) == (f"{base}/sets/cats", f"{base}/sets/m.csv", "/images")
    monkeypatch.chdir("/usr")  # what is given here counts from here
    assert roots(StreamConfig.from_yaml(file, {"data": "x"})) == ("/usr/x/cats", "/usr/x/m.csv", "/images")
    remote = StreamConfig.from_yaml(file, {"data": "s3://bucket/some sets"})
    assert roots(remote) == ("s3://bucket/some sets/cats", "s3://bucket/some sets/m.csv", "/images")
    assert roots(StreamConfig.from_yaml(file, {"data": None}))[0] == f"{base}/cats"
    without = write(DATA.replace("data: sets", ""))
    assert roots(StreamConfig.from_yaml(without, {"data": "/d"}))[0] == "/d/cats"
    with pytest.raises(ConfigError, match="data: Storage at hdfs://x: hdfs:// is not supported"):
        StreamConfig.from_yaml(file, {"data": "hdfs://x"})


def test_data_holds_for_configurations_made_in_python_and_round_trips(tmp_path: Path) -> None:
    values = yaml.safe_load(DATA)
    config = StreamConfig(**{**values, "data": "/sets"})
    assert roots(config) == ("/sets/cats", "/sets/m.csv", "/images")
    (tmp_path / "again.yaml").write_text(config.to_yaml())
    assert StreamConfig.from_yaml(tmp_path / "again.yaml") == config


def test_empty_sections_are_their_defaults(write: Callable[[str], Path]) -> None:
    assert StreamConfig.from_yaml(write(SMALL + "method:\ntracking:\n")).method.epochs == 30


def test_environment_variables_are_not_read(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NAME", "SEED", "VIEWS", "METHOD__BETA", "STORAGE"):
        monkeypatch.setenv(name, "7")
    config = StreamConfig.from_yaml(small)
    assert (config.name, config.seed, config.views, config.storage) == ("small", 0, 8, "/store")


def test_the_round_trip_is_exact(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = {
        "method.lr": 3e-05,
        "encoder.preprocess.mean": [0.1, 0.2, 0.3],
        "encoder.prompt": "ein Bild: {} ü",
    }
    config = StreamConfig.from_yaml(small, overrides)
    other = tmp_path / "elsewhere"
    other.mkdir()
    (other / "config.yaml").write_text(config.to_yaml())
    monkeypatch.chdir(other)
    assert StreamConfig.from_yaml("config.yaml") == config
    assert StreamConfig.model_validate(json.loads(json.dumps(config.model_dump(mode="json")))) == config
    assert pickle.loads(pickle.dumps(config)) == config


def test_renames_survive_the_round_trip(write: Callable[[str], Path], tmp_path: Path) -> None:
    text = SMALL.replace("data/cats}", "data/cats, class_names: {0: zero, '01': one}}")
    config = StreamConfig.from_yaml(write(text))
    assert config.domains[0].class_names == {"0": "zero", "01": "one"}
    (tmp_path / "again.yaml").write_text(config.to_yaml())
    assert StreamConfig.from_yaml(tmp_path / "again.yaml") == config


def test_a_configuration_does_not_change(small: Path) -> None:
    config = StreamConfig.from_yaml(small)
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 1  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        config.method.beta = 1  # type: ignore[misc]


# ---------------------------------------------------------------- paths


def test_paths_count_from_the_yaml_and_in_overrides_from_here(
    write: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(
        SMALL.replace(
            "{model: demo-clip, pretrained: demo}", "{model: m, pretrained: w.pt, architecture: m.json}"
        )
    )
    monkeypatch.chdir(tmp_path)
    config = StreamConfig.from_yaml("folder/run.yaml")
    assert config.domains[0].root == str(file.parent / "data" / "cats")  # type: ignore[union-attr]
    assert config.encoder.pretrained == str(file.parent / "w.pt")
    assert config.encoder.architecture == str(file.parent / "m.json")
    over = StreamConfig.from_yaml(
        file,
        {
            "encoder.pretrained": "w/x",
            "domains": [{"name": "a", "kind": "folder", "root": "a"}],
        },
    )
    assert over.encoder.pretrained == str(tmp_path / "w" / "x")
    assert over.domains[0].root == str(tmp_path / "a")  # type: ignore[union-attr]


@pytest.mark.parametrize("tag", ["demo", "openai", "laion2b_s34b_b88k"])
def test_a_tag_is_no_path_unless_there_is_such_a_file(small: Path, tag: str) -> None:
    assert StreamConfig.from_yaml(small, {"encoder.pretrained": tag}).encoder.pretrained == tag
    text = small.read_text().replace("pretrained: demo", f"pretrained: {tag}")
    small.write_text(text)
    (small.parent / tag).mkdir()
    assert StreamConfig.from_yaml(small).encoder.pretrained == tag
    (small.parent / tag).rmdir()
    (small.parent / tag).write_bytes(b"")
    assert StreamConfig.from_yaml(small).encoder.pretrained == str(small.parent / tag)


def test_object_stores_are_left_as_they_are(write: Callable[[str], Path]) -> None:
    config = StreamConfig.from_yaml(
        write(SMALL.replace("data/cats", "s3://b/cats").replace("/store", "gs://b/runs"))
    )
    assert (config.domains[0].root, config.storage) == ("s3://b/cats", "gs://b/runs")  # type: ignore[union-attr]


def test_storage_counts_from_here(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    small.write_text(SMALL.replace("storage: /store\n", ""))
    assert StreamConfig.from_yaml(small).storage == str(tmp_path / "runs")
    assert StreamConfig.from_yaml(small, {"storage": "out"}).storage == str(tmp_path / "out")
    assert StreamConfig.from_yaml(small, {"storage": "file:///a%20b"}).storage == "/a b"


def test_inside_a_submitted_job_storage_must_be_absolute(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    working = tmp_path / "session" / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    working.mkdir(parents=True)
    monkeypatch.chdir(working)
    expected = (
        f"this job's working folder {working}, which is deleted with the Ray session; give "
        "the absolute path of a folder that all nodes share, or s3://… or gs://…"
    )
    assert problems(small, {"storage": "runs"}) == [f"storage: 'runs' lies in {expected}"]
    inside = f"{working}/runs"
    assert problems(small, {"storage": inside}) == [f"storage: {inside!r} lies in {expected}"]
    assert StreamConfig.from_yaml(small).storage == "/store"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert problems(small, {"storage": "runs"})[0].startswith(
        f"storage: 'runs' lies in this job's working folder {tmp_path}"
    )


def test_in_submitted_job() -> None:
    assert not in_submitted_job({}, "/home/me/project")
    assert in_submitted_job({"RAY_JOB_CONFIG_JSON_ENV_VAR": "{}"}, "/home/me/project")
    assert in_submitted_job({}, "/tmp/ray/session_1/runtime_resources/working_dir_files/_ray_pkg_2/sub")


# ---------------------------------------------------------------- messages


def test_every_problem_is_listed_with_its_key(write: Callable[[str], Path]) -> None:
    kinds = "aircraft, coop, demo, folder, manifest, mnist, parquet"
    file = write("""
name: a/b
encoder: {model: demo-clip, prompt: nothing}
domains:
  - {name: a, kind: foldr}
  - {name: b, kind: folder, rot: x}
  - {name: c}
  - 3
  - {name: e, kind: folder, root: x, epochs: 0, class_names: {yes: x}}
method: {bta: 2, lr: fast, fusion: gatd, replay: maybe, kind: rail}
beta: 3
views: -1
tracking: here
max_bad_share: 1.5
""")
    assert problems(file, {"resources.encodrs": 1, "method.alpha": float("inf")}) == [
        "name: must start with a letter or digit and go on with letters, digits, _ . - (got 'a/b')",
        "encoder.prompt: must contain {} where the class name goes",
        f"domains.0.kind: unknown kind 'foldr'; did you mean folder? (one of {kinds})",
        "domains.1.root: missing",
        "domains.1.rot: unknown key; did you mean domains.1.root?",
        f"domains.2.kind: missing; one of {kinds}",
        "domains.3: must be a section with keys (got 3)",
        "domains.4.class_names.1: must be text, in the YAML perhaps in quotes (got True)",
        "domains.4.epochs: must be greater than or equal to 1 (got 0)",
        "views: must be greater than or equal to 0 (got -1)",
        "method.kind: must be 'lada', 'joint', 'zero_shot', 'ncm', 'rail_primal' or 'rail_dual' (got 'rail')",
        "method.alpha: must be a finite number (got inf)",
        "method.replay: must be a valid boolean, unable to interpret input (got 'maybe')",
        "method.fusion: must be 'gated' or 'additive' (got 'gatd')",
        "method.lr: must be a valid number, unable to parse string as a number (got 'fast')",
        "method.bta: unknown key; did you mean method.beta?",
        "resources.encodrs: unknown key; did you mean resources.encoders?",
        "tracking: must be a section with keys (got 'here')",
        "max_bad_share: must be less than or equal to 1 (got 1.5)",
        "beta: unknown key; did you mean method.beta?",
    ]


def test_what_is_missing_is_named(write: Callable[[str], Path]) -> None:
    assert problems(write("")) == ["name: missing", "encoder: missing", "domains: missing"]


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("method.bta", 2, "method.bta: unknown key; did you mean method.beta?"),
        ("method.beta", 0, "method.beta: must be greater than 0 (got 0)"),
        ("method.batch_size", 0, "method.batch_size: must be greater than or equal to 1 (got 0)"),
        ("shots", 0, "shots: must be greater than or equal to 1 (got 0)"),
        ("domains", [], "domains: must hold at least one domain"),
        ("name", "features", "name: 'features' is kept for what lies beside the runs; choose another name"),
        (
            "encoder.preprocess.std",
            [1, 0, 1],
            "encoder.preprocess.std: must be greater than 0 (got [1.0, 0.0, 1.0])",
        ),
        ("seed.x", 1, "seed: must be a valid integer (got {'x': 1})"),
        ("zzz", 1, "zzz: unknown key"),
        (
            "storage",
            "hdfs://a/b",
            "storage: Storage at hdfs://a/b: hdfs:// is not supported. "
            "Use a local path, file://, s3://, gs://, az://.",
        ),
    ],
)
def test_one_problem(small: Path, key: str, value: Any, problem: str) -> None:
    assert problems(small, {key: value}) == [problem]


def test_two_domains_of_one_name(write: Callable[[str], Path]) -> None:
    assert problems(write(SMALL.replace("name: shapes", "name: cats"))) == [
        "domains: several domains are called cats; each needs its own name"
    ]


def test_yaml_errors_say_where(write: Callable[[str], Path], tmp_path: Path) -> None:
    file = write("name: a\nencoder: {model: [}\n")
    (only,) = problems(file)
    assert only.startswith(f"{file}, line 2, column 19: ")
    assert problems(write("- 1\n")) == [f"{file}: must be keys with values, as in `name: demo`"]
    assert problems(tmp_path / "gone.yaml") == [f"there is no file {tmp_path}/gone.yaml"]


def test_yaml_cannot_run_code(write: Callable[[str], Path]) -> None:
    (only,) = problems(write("name: !!python/object/apply:os.getcwd []\n"))
    assert "could not determine a constructor" in only


def test_keys_that_stand_twice_are_errors(write: Callable[[str], Path]) -> None:
    file = write("name: a\nmethod:\n  beta: 1\n  beta: 2\nname: b\n")
    assert problems(file) == [
        f"{file}, line 5: key 'name' stands twice",
        f"{file}, line 4: key 'beta' stands twice",
    ]


def test_nested_and_merged() -> None:
    assert nested({"a.b": 1, "a.c": 2, "d": 3}) == {"a": {"b": 1, "c": 2}, "d": 3}
    below = {"a": {"b": 1, "c": 1}, "d": [1]}
    assert merged(below, {"a": {"b": 2}, "d": [2]}) == {"a": {"b": 2, "c": 1}, "d": [2]}
    assert below == {"a": {"b": 1, "c": 1}, "d": [1]}


# ---------------------------------------------------------------- shipped files


def test_shipped_configurations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "lada_ray"
    (tmp_path / "configs").mkdir()
    package.mkdir()
    for name in ("demo", "other"):
        (tmp_path / "configs" / f"{name}.yaml").write_text(SMALL)
    monkeypatch.setattr(config_module, "__file__", str(package / "config.py"))
    assert shipped_config("demo") == tmp_path / "configs" / "demo.yaml"
    assert StreamConfig.from_yaml("demo").name == "small"
    with pytest.raises(ConfigError) as caught:
        StreamConfig.from_yaml("dmo")
    assert caught.value.problems == [
        "no configuration called 'dmo' is shipped; did you mean demo? (shipped: demo, other)",
        "for a file of your own write dmo.yaml, or its path",
    ]
    (package / "configs").mkdir()  # as in a wheel
    (package / "configs" / "demo.yaml").write_text(SMALL)
    assert shipped_config("demo") == package / "configs" / "demo.yaml"


# ---------------------------------------------------------------- MLflow

MOUNTS = """overlay / overlay rw 0 0
server:/x /mnt/nfs nfs4 rw 0 0
s3fs /mnt/with\\040space fuse.s3fs rw 0 0
/dev/sda1 /mnt/nfs/local ext4 rw 0 0
fuse-overlayfs /home fuse.fuse-overlayfs rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "system"),
    [
        ("/data", None),
        ("/mnt/nfs", "nfs4"),
        ("/mnt/nfs/a/b", "nfs4"),
        ("/mnt/nfs2/a", None),
        ("/mnt/nfs/local/a", None),
        ("/mnt/with space/a", "fuse.s3fs"),
        ("/home/me", None),
    ],
)
def test_network_file_systems(path: str, system: str | None) -> None:
    assert network_file_system(path, MOUNTS) == system
    assert network_file_system("/proc") is None


def made(storage: str, uri: str | None = None) -> StreamConfig:
    raw = yaml.safe_load(SMALL) | {"storage": storage, "tracking": {"uri": uri}}
    return StreamConfig.model_validate(raw)


def test_folders_are_no_place_for_mlflow() -> None:
    for uri in ("./mlruns", "file:///tmp/mlruns"):
        with pytest.raises(ConfigError, match="MLflow no longer logs to folders"):
            mlflow_uri(uri, "/data/runs", {})
    assert mlflow_uri("databricks", "/data/runs", {}) == "databricks"


def test_tracking_uri_precedence() -> None:
    environ = {"MLFLOW_TRACKING_URI": "http://env"}
    assert tracking_uri(made("s3://b/p", "http://own"), environ, MOUNTS) == "http://own"
    assert tracking_uri(made("s3://b/p"), environ, MOUNTS) == "http://env"
    assert tracking_uri(made("/data/runs"), {}, MOUNTS) == "sqlite:////data/runs/mlflow.db"


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (made("s3://b/p"), "s3://b/p/mlflow.db would lie on an object store"),
        (made("/mnt/nfs/runs"), "/mnt/nfs/runs/mlflow.db would lie on nfs4"),
        (made("/data", "sqlite:////mnt/nfs/x.db"), "/mnt/nfs/x.db would lie on nfs4"),
    ],
)
def test_a_database_only_on_a_local_disk(config: StreamConfig, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        tracking_uri(config, {}, MOUNTS)
    assert str(caught.value) == (
        f"MLflow has nowhere to record this run:\n  - {reason}, where a database file breaks or cannot be "
        "kept at all. Start an MLflow server and pass --tracking.uri http://host:5000 or set "
        "MLFLOW_TRACKING_URI, "
        "or use a storage on a local disk"
    )


def test_a_relative_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = made("/data", "sqlite:///mlflow.db")
    assert tracking_uri(config, {}, "") == f"sqlite:///{tmp_path}/mlflow.db"
    with pytest.raises(ConfigError, match=r"sqlite:///mlflow\.db lies in this job's working folder"):
        tracking_uri(config, {"RAY_JOB_CONFIG_JSON_ENV_VAR": "{}"}, "")
