"""The X-TAIL configurations: as published, and on miniatures of all ten datasets in the layout that they have."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import lada_ray
from jobs.run_stream import Flags, main
from lada_ray.command_line import parse_command_line
from lada_ray.config import StreamConfig
from lada_ray.console import Console
from lada_ray.domains import Domain, choose, load_domains, shared_class_names
from lada_ray.encoder import EncoderSpec
from lada_ray.errors import InputError
from lada_ray.features.index import FileIndex
from lada_ray.prepare import check_input
from lada_ray.store import open_store
from tests.xtail import COOP, TEST, TRAIN, draw_xtail

ROOT = Path(__file__).resolve().parent.parent
GUIDE = (ROOT / "configs" / "XTAIL.md").read_text(encoding="utf-8")
NAMES = ["xtail_16shot", "xtail_16shot_order2", "xtail_full", "xtail_full_order2"]
FOLDERS = {
    **{name: folder for name, (folder, *_) in COOP.items()},
    "aircraft": "fgvc_aircraft",
    "mnist": "mnist",
}
# ../shared/method.md, which took them from the public implementation
SHOTS_16 = {
    **{
        "aircraft": 40,
        "caltech101": 10,
        "dtd": 30,
        "eurosat": 100,
        "flowers": 30,
        "food101": 5,
        "mnist": 200,
    },
    **{"oxford_pets": 10, "stanford_cars": 30, "sun397": 10},
}
FULL = {
    **{"aircraft": 60, "caltech101": 20, "dtd": 30, "eurosat": 20, "flowers": 40, "food101": 10, "mnist": 20},
    **{"oxford_pets": 10, "stanford_cars": 20, "sun397": 2},
}
ORDER_2 = [
    *("stanford_cars", "aircraft", "oxford_pets", "food101", "sun397", "mnist", "flowers", "dtd"),
    *("caltech101", "eurosat"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_xtail(tmp_path_factory.mktemp("data"))


def listed(name: str, data: Path) -> tuple[StreamConfig, tuple[Domain, ...]]:
    config = StreamConfig.from_yaml(name, {"data": str(data)})
    return config, load_domains(config.domains, config.storage)


@pytest.mark.parametrize("name", NAMES)
def test_as_published(name: str) -> None:
    config = StreamConfig.from_yaml(name)
    full, second = "full" in name, "order2" in name
    epochs = FULL if full else SHOTS_16
    assert {d.name: d.epochs for d in config.domains} == epochs
    assert [d.name for d in config.domains] == (ORDER_2 if second else list(epochs))
    assert [d.name for d in config.domains if d.augment == "none"] == (
        ["mnist", "eurosat"] if second else ["eurosat", "mnist"]
    )
    assert (config.shots, config.views, config.seed) == (None if full else 16, 8, 0)
    assert (config.encoder.model, config.encoder.pretrained) == ("ViT-B-16-quickgelu", "openai")
    assert config.method == StreamConfig.from_yaml("demo", {"method.epochs": 30}).method
    assert config.data == str(ROOT / "data")


@pytest.mark.parametrize("name", NAMES)
def test_all_ten_layouts_are_listed_and_shots_chosen(name: str, data: Path) -> None:
    config, domains = listed(name, data)
    assert len(domains) == 10
    for domain in domains:
        classes = len(domain.class_names)
        assert classes == {"mnist": 10, "aircraft": 3}.get(domain.name, 2)
        assert (len(domain.train), len(domain.test)) == (TRAIN * classes, TEST * classes)
        assert len(choose(domain, config.shots, config.seed)) == TRAIN * classes
        assert len(choose(domain, 2, config.seed)) == 2 * classes
    assert shared_class_names(domains) == {}


def test_prompts_are_the_published_ones(data: Path) -> None:
    config, domains = listed("xtail_16shot", data)
    prompts = {d.name: (d.prompt or config.encoder.prompt).replace("{}", d.class_names[0]) for d in domains}
    assert prompts == {
        "aircraft": "a photo of a 707-320.",
        "caltech101": "a photo of a face.",
        "dtd": "a photo of a banded.",
        "eurosat": "a photo of a Annual Crop Land satellite location.",
        "flowers": "a photo of a pink primrose.",
        "food101": "a photo of a apple pie.",
        "mnist": 'a photo of a number: "0 - zero".',
        "oxford_pets": "a photo of a abyssinian.",
        "stanford_cars": "a photo of a 2000 AM General Hummer SUV.",
        "sun397": "a photo of a abbey.",
    }


def test_plan_names_everything_that_is_missing(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = draw_xtail(tmp_path / "data")
    (broken / "fgvc_aircraft" / "variants.txt").unlink()
    (broken / "caltech-101" / "split_zhou_Caltech101.json").unlink()
    (broken / "dtd" / "images").rename(broken / "dtd" / "pictures")
    (broken / "mnist" / "t10k-labels-idx1-ubyte.gz").unlink()
    (broken / "oxford_pets" / "images" / "Abyssinian_50.jpg").unlink()
    (broken / "sun397").rename(broken / "SUN")
    storage = tmp_path / "storage"
    argv = ["--config", "xtail_16shot", "--data", str(broken), "--storage", str(storage), "--plan"]
    assert main([*argv, "--encoder.model", "ViT-B-17"]) == 1
    shown = capsys.readouterr().err
    for line in (
        f"aircraft: no variants.txt in {broken}/fgvc_aircraft",
        f"caltech101: no split_zhou_*.json in {broken}/caltech-101 (there is 101_ObjectCategories, README.txt)",
        f"dtd: none of the 14 listed images is there; they belong into {broken}/dtd/images",
        f"mnist: no t10k-labels-idx1-ubyte in {broken}/mnist",
        f"oxford_pets: 1 of 14 listed images are not in {broken}/oxford_pets: images/Abyssinian_50.jpg",
        f"sun397: no folder {broken}/sun397",
        "encoder.model: open_clip has no 'ViT-B-17'",
    ):
        assert f"  - {line}" in shown
    assert len(re.findall("^  - ", shown, re.MULTILINE)) == 8  # the seventh twice: the model, and its tag
    assert not storage.exists()


def test_without_any_data_every_dataset_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        check_input(StreamConfig.from_yaml("xtail_full", {"data": str(tmp_path)}), Console(quiet=True))
    assert [problem.split("; ")[0] for problem in caught.value.problems] == [
        f"{name}: no folder {tmp_path}/{FOLDERS[name]}" for name in FULL
    ]


def test_a_miniature_runs_through_each_configuration(
    data: Path,
    tiny_encoder: EncoderSpec,
    tmp_path: Path,
    ray_local: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    weights = str(tiny_encoder.pretrained)
    overrides: dict[str, Any] = {
        "data": str(data),
        "storage": str(tmp_path),
        "encoder.model": "tiny",
        "encoder.pretrained": weights,
        "encoder.architecture": weights.replace(".safetensors", ".json"),
        "shots": 3,
        "views": 2,
        "method.memory_per_class": 3,
        "method.mixture_components": 2,
        "resources.train_workers": 0,
    }
    encoded = {}
    for name in NAMES:
        config = StreamConfig.from_yaml(name, overrides)
        few = tuple(domain.model_copy(update={"epochs": 1}) for domain in config.domains)
        config = config.model_copy(update={"domains": few})
        result = lada_ray.run_stream(config, console=Console(quiet=True))
        names = [domain.name for domain in config.domains]
        assert list(result.accuracy.index) == list(result.accuracy.columns) == names
        assert pd.read_csv(Path(result.folder) / "accuracy_matrix.csv", index_col="learnt").shape == (10, 10)
        assert (Path(result.folder) / "bad_images.csv").read_text() == "domain,path,reason\n"
        encoded[name] = result.metrics["images_encoded"]
    # 29 classes; of mnist's and eurosat's 12 the deterministic view alone. Later runs find all of it in the bank.
    assert encoded == {name: 29 * (3 * 3 + TEST) - 12 * 3 * 2 if name == NAMES[0] else 0 for name in NAMES}
    domains = load_domains(config.domains, "")
    tested = [sample for domain in domains for sample in domain.test]
    assert (
        len(FileIndex(open_store(tmp_path / "features")).known(tested)) == 29 * TEST
    )  # listed again: unchanged


def test_the_guide_names_the_folders_and_its_commands_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    rows = dict(re.findall(r"^\| (\w+) \| `([\w-]+)/` \|", GUIDE, re.MULTILINE))
    assert rows == FOLDERS
    blocks = re.findall(r"```sh\n(.*?)```", GUIDE, re.DOTALL)
    commands = [shlex.split(line) for block in blocks for line in block.splitlines()]
    links = [words for words in commands if words[0] == "ln"]
    assert sorted(words[3] for words in links) == sorted(FOLDERS.values())
    for python, job, *arguments in (words for words in commands if words not in links):
        assert (python, job) == ("python", "jobs/run_stream.py")
        config, _ = parse_command_line(arguments, Flags)
        assert len(config.domains) == 10
    assert set(re.findall(r"`(xtail_\w+)\.yaml`", GUIDE)) == set(NAMES)
