"""The main job, whole: as a process that is killed and started again, and in this process for everything else."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from mlflow import MlflowClient

import lada_ray
from lada_ray.config import StreamConfig
from lada_ray.console import Console
from lada_ray.domains import Domain
from lada_ray.errors import InputError
from lada_ray.store import join, open_store
from tests.conftest import TINY_DOMAINS, draw_domain, write_tiny_clip
from tests.processes import Job

PACKS = 3


@pytest.fixture(scope="module")
def tiny_yaml(tmp_path_factory: pytest.TempPathFactory, tiny_domains: tuple[Domain, ...]) -> Path:
    """Three domains of three classes, a random encoder, few epochs."""
    folder = tmp_path_factory.mktemp("tiny")
    architecture, weights = write_tiny_clip(folder)
    roots = [Path(d.train[0].uri).parents[2] for d in tiny_domains]
    domains = [{"name": r.name, "kind": "folder", "root": str(r)} for r in roots]
    values = {
        "name": "tiny",
        "encoder": {"model": "tiny", "pretrained": str(weights), "architecture": str(architecture)},
        "views": 2,
        "method": {"epochs": 3, "batch_size": 8, "memory_per_class": 3, "mixture_components": 2},
        "domains": domains,
    }
    path = folder / "tiny.yaml"
    path.write_text(json.dumps(values))
    return path


Learn = Callable[..., Any]


@pytest.fixture
def learn(tiny_yaml: Path, tmp_path: Path, ray_local: None, monkeypatch: pytest.MonkeyPatch) -> Learn:
    """Learn the tiny stream in this process, with overrides."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def run(fresh: bool = False, say: list[str] | None = None, **overrides: Any) -> Any:
        resources = {"resources.train_workers": 0, "resources.encoders": 1}  # processes take longest to start
        more = {"storage": str(tmp_path), **resources, **overrides}
        config = StreamConfig.from_yaml(
            tiny_yaml, overrides={k.replace("__", "."): v for k, v in more.items()}
        )
        console = Console(quiet=True)
        if say is not None:
            console.say = say.append  # type: ignore[method-assign]
        return lada_ray.run_stream(config, fresh=fresh, console=console)

    return run


@pytest.fixture(scope="module")
def finished(tiny_yaml: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The job as a process, with a real training worker, while a second start finds it running: storage, output."""
    storage = tmp_path_factory.mktemp("finished")
    arguments = ["--config", str(tiny_yaml), "--storage", str(storage)]
    with Job("run_stream.py", arguments, storage / "first.log") as first:
        assert first.wait_for(lambda: (storage / "tiny" / "lease.json").exists(), 120), first.output()
        with Job("run_stream.py", arguments, storage / "second.log") as second:
            assert second.wait(200) == 75, second.output()
            assert "is alive" in second.output()
        assert first.wait(200) == 0, first.output()
        return storage, first.output()


def test_everything_is_left_behind(finished: tuple[Path, str]) -> None:
    storage, output = finished
    run = storage / "tiny"
    matrix = pd.read_csv(run / "accuracy_matrix.csv", index_col="learnt")
    assert list(matrix.index) == list(matrix.columns) == list(TINY_DOMAINS)
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["images_encoded"] == 3 * (18 * 3 + 12)  # 18 training images under 3 views, 12 test images
    assert metrics["last"] == pytest.approx(matrix.iloc[-1].mean())
    assert set(metrics["zero_shot_per_domain"]) == set(TINY_DOMAINS)
    assert "<html" in (run / "report.html").read_text()
    assert (run / "bad_images.csv").read_text() == "domain,path,reason\n"
    assert len(json.loads((run / "model" / "model.json").read_text())["packs"]) == PACKS
    assert f"report:\n  {run}/report.html" in output
    assert "Transfer" in output


def test_the_output_is_quiet(finished: tuple[Path, str]) -> None:
    _, output = finished
    noise = [
        line for line in output.splitlines() if "warning" in line.lower() or "[202" in line or "INFO" in line
    ]
    assert noise == []


def test_the_model_can_be_asked(finished: tuple[Path, str], tiny_domains: tuple[Domain, ...]) -> None:
    model = lada_ray.load(str(finished[0] / "tiny" / "model"))
    assert model.domains == list(TINY_DOMAINS)
    answers = model.predict([s.uri for s in tiny_domains[0].test], extra_classes=["a zebra"])
    assert list(answers.columns) == ["domain", "class", "score"]
    assert len(answers) == 12
    assert answers["score"].between(0, 1).all()


def test_mlflow_has_a_parent_and_a_run_per_task(finished: tuple[Path, str]) -> None:
    client = MlflowClient(f"sqlite:///{finished[0]}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("lada_ray").experiment_id])
    assert [run.info.status for run in runs] == ["FINISHED"] * (PACKS + 1)
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = {run.info.run_name: run for run in runs if run is not parent}
    assert sorted(children) == [f"{i + 1:02d} {name}" for i, name in enumerate(TINY_DOMAINS)]
    assert all(run.data.tags["mlflow.parentRunId"] == parent.info.run_id for run in children.values())
    matrix = pd.read_csv(finished[0] / "tiny" / "accuracy_matrix.csv", index_col="learnt")
    first = children[f"01 {TINY_DOMAINS[0]}"]
    assert first.data.metrics[f"accuracy/{TINY_DOMAINS[2]}"] == pytest.approx(matrix.iloc[0, 2])
    assert {"report.html", "accuracy_matrix.csv", "model"} <= {
        a.path for a in client.list_artifacts(parent.info.run_id)
    }


def test_killed_and_started_again_is_the_same(
    finished: tuple[Path, str], tiny_yaml: Path, tmp_path: Path
) -> None:
    arguments = ["--config", str(tiny_yaml), "--storage", str(tmp_path), "--method.epochs", "3"]
    packs = tmp_path / "tiny" / "model" / "packs"
    with Job("run_stream.py", arguments, tmp_path / "log") as job:
        assert job.wait_for(lambda: list(packs.glob("*/pack.json")), 120), job.output()
        assert job.process.poll() is None
        job.kill()
    with Job("run_stream.py", arguments, tmp_path / "log") as again:
        assert again.wait(200) == 0, again.output()
    for name in ("accuracy_matrix.csv", "metrics.json", "bad_images.csv"):
        assert (tmp_path / "tiny" / name).read_bytes() == (finished[0] / "tiny" / name).read_bytes()
    assert _packs(tmp_path / "tiny") == _packs(finished[0] / "tiny")
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("lada_ray").experiment_id])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert [run.info.status for run in parents] == ["FINISHED"]
    assert not [run for run in runs if run.info.status == "RUNNING"]


def _packs(folder: Path) -> list[str]:
    return json.loads((folder / "model" / "model.json").read_text())["packs"]


def test_in_process_training_gives_the_same_packs(finished: tuple[Path, str], learn: Learn) -> None:
    assert list(learn().digests) == _packs(finished[0] / "tiny")


def test_a_second_start_only_looks_up(learn: Learn, tmp_path: Path) -> None:
    first = learn()
    report = (tmp_path / "tiny" / "report.html").stat().st_mtime_ns
    started = time.monotonic()
    second = learn()
    assert time.monotonic() - started < 10
    assert second.digests == first.digests
    assert (tmp_path / "tiny" / "report.html").stat().st_mtime_ns == report
    pd.testing.assert_frame_equal(first.accuracy, second.accuracy)


def test_another_way_encodes_nothing(learn: Learn) -> None:
    assert learn().metrics["images_encoded"] > 0
    assert learn(name="hot", method__beta=2.0, seed=1).metrics["images_encoded"] == 0
    # More views extend: only the third view of each of the 54 training images is new.
    assert learn(name="views", views=3).metrics["images_encoded"] == 54


def test_another_configuration_under_one_name_is_refused(learn: Learn, tmp_path: Path) -> None:
    first = learn()
    with pytest.raises(InputError) as error:
        learn(method__beta=2.0, seed=3)
    assert "method.beta: 1.0 in the run, 2.0 now" in str(error.value)
    assert "seed: 0 in the run, 3 now" in str(error.value)
    assert learn(resources__cpus_per_encoder=0.6).digests == first.digests
    fresh = learn(fresh=True, method__beta=2.0)
    assert fresh.digests != first.digests
    assert fresh.metrics["images_encoded"] == 0


def test_appended_domains_continue_the_stream(learn: Learn, tiny_yaml: Path, tmp_path: Path) -> None:
    domains = json.loads(tiny_yaml.read_text())["domains"]
    two = learn(domains=domains[:2])
    three = learn(domains=domains)
    assert three.digests[:2] == two.digests
    assert three.accuracy.shape == (3, 3)
    # The first rows are tested again: there are more classes to choose from now.
    pd.testing.assert_frame_equal(learn(name="at-once").accuracy, three.accuracy)
    with pytest.raises(InputError, match="new domains go to the end"):
        learn(domains=[domains[1], domains[0], domains[2]])


def test_all_problems_are_told_at_once(learn: Learn, tmp_path: Path) -> None:
    domains = [{"name": "a", "kind": "folder", "root": str(tmp_path / "nothing")}]
    with pytest.raises(InputError) as error:
        learn(domains=domains, encoder__pretrained=str(tmp_path / "none.safetensors"))
    assert [p.split(":")[0] for p in error.value.problems] == ["a", "encoder.pretrained"]


def test_a_test_image_that_is_trained_on_is_refused(learn: Learn, tmp_path: Path) -> None:
    draw_domain(tmp_path / "leaky", hue=0.5)
    train = tmp_path / "leaky" / "train" / "class_0" / "0.png"
    (tmp_path / "leaky" / "test" / "class_0" / "0.png").write_bytes(train.read_bytes())
    with pytest.raises(InputError, match="1 of 12 test images"):
        learn(domains=[{"name": "leaky", "kind": "folder", "root": str(tmp_path / "leaky")}])


def test_mlflow_that_cannot_be_reached_costs_no_learning(learn: Learn, tmp_path: Path) -> None:
    said: list[str] = []
    result = learn(say=said, tracking__uri="http://127.0.0.1:9")
    assert len(result.digests) == PACKS
    assert any("jobs/log_run.py" in line for line in said)
    from lada_ray.tracking import log_run

    uri = f"sqlite:///{tmp_path}/later.db"
    assert log_run(str(tmp_path / "tiny"), uri, say=said.append)
    client = MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name("lada_ray").experiment_id])
    assert sorted(run.info.status for run in runs) == ["FINISHED"] * (PACKS + 1)


def test_storage_in_s3(learn: Learn, s3: str, tmp_path: Path, finished: tuple[Path, str]) -> None:
    storage = join(s3, "runs")
    result = learn(
        storage=storage, tracking__uri=f"sqlite:///{tmp_path}/mlflow.db", tracking__registered_model="tiny"
    )
    assert list(result.digests) == _packs(finished[0] / "tiny")
    model = lada_ray.LadaModel.load(result.model_path)
    assert model.domains == list(TINY_DOMAINS)
    assert open_store(storage).exists("tiny/report.html")
    same = lada_ray.load("models:/tiny/1", tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    assert [pack.digest for pack in same.packs] == list(result.digests)
    assert learn(storage=storage, tracking__uri=f"sqlite:///{tmp_path}/mlflow.db").digests == result.digests


def test_plan_changes_nothing(
    tiny_yaml: Path, tmp_path: Path, ray_local: None, capsys: pytest.CaptureFixture[str]
) -> None:
    from lada_ray.plan import print_plan

    config = StreamConfig.from_yaml(tiny_yaml, overrides={"storage": str(tmp_path / "new")})
    assert print_plan(config, Console()) == 0
    printed = capsys.readouterr().out
    assert "quick_gelu false" in printed
    assert "fruit" in printed
    assert "estimated from a probe" in printed
    assert "class 'class 0' stands in fruit, flags, toys" in printed
    assert not (tmp_path / "new" / "tiny").exists()
    # 18 images in batches of 8, 3 times.
    assert [line.split()[-1] for line in printed.splitlines() if line.startswith(TINY_DOMAINS)] == ["9"] * 3
    assert "16 images and 3 steps" in printed


def test_plan_of_a_learner_in_closed_form_trains_nothing(
    tiny_yaml: Path, tmp_path: Path, ray_local: None, capsys: pytest.CaptureFixture[str]
) -> None:
    from lada_ray.plan import print_plan

    # No tuner can tune such a text tower: with LADA this is an error.
    architecture, weights = write_tiny_clip(tmp_path, no_causal_mask=True)
    encoder = {"model": "tiny", "pretrained": str(weights), "architecture": str(architecture)}
    overrides = {"storage": str(tmp_path / "new"), "encoder": encoder}
    with pytest.raises(InputError, match=r"text tower is bidirectional.*text_tuner none"):
        print_plan(StreamConfig.from_yaml(tiny_yaml, overrides=overrides), Console())
    capsys.readouterr()
    config = StreamConfig.from_yaml(tiny_yaml, overrides={**overrides, "method.kind": "ncm"})
    assert print_plan(config, Console()) == 0
    printed = capsys.readouterr().out
    assert "steps" not in printed
    assert "a probe of 16 images: encode" in printed
    assert "learning in closed form not estimated" in printed
    fruit = next(line for line in printed.splitlines() if line.startswith("fruit"))
    assert fruit.split()[1:] == ["3", "18", "12", "30", "0", "30"]  # augmented views are not asked for


def test_plan_of_joint_training_has_one_task(
    learn: Learn, tiny_yaml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from lada_ray.plan import print_plan

    overrides = {"storage": str(tmp_path), "method.kind": "joint"}
    config = StreamConfig.from_yaml(tiny_yaml, overrides=overrides)
    for learnt in ([], ["learnt"]):
        assert print_plan(config, Console()) == 0
        printed = capsys.readouterr().out.splitlines()
        rows = [line.split() for line in printed if line.startswith((*TINY_DOMAINS, "all domains"))]
        views = ["198", "0"] if learnt else ["0", "198"]
        assert rows[3] == ["all", "domains", "9", "54", "36", "198", *views, "21", *learnt]
        assert [row[7:] for row in rows[:3]] == [learnt] * 3
        if not learnt:
            learn(method__kind="joint")
            capsys.readouterr()
