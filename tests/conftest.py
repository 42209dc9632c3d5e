"""Fixtures that several test files share."""

from __future__ import annotations

import colorsys
import hashlib
import json
import logging
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from lada_ray.store import open_store

if TYPE_CHECKING:
    from lada_ray.config import StreamConfig
    from lada_ray.domains import Domain
    from lada_ray.encoder import EncoderSpec
    from lada_ray.features.fill import Images
    from lada_ray.fit.classes import ClassFits
    from lada_ray.fit.plan import FitPlan
    from lada_ray.prepare import Stream
    from lada_ray.run import Run, RunLedger


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """Run an S3 server of our own: yields s3://bucket/prefix, with the environment set up to reach it."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    with pytest.MonkeyPatch.context() as patch:
        _write_in_turn(patch)
        server.start()
        host, port = server.get_host_and_port()
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT", "AWS_REGION", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
            patch.delenv(name, raising=False)
        _make_bucket("lada-tests")
        yield "s3://lada-tests/some folder"
    server.stop()


def _write_in_turn(patch: pytest.MonkeyPatch) -> None:
    """moto compares (If-Match) and then writes, in a thread per request; S3 does both at once."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication

    call, lock = DomainDispatcherApplication.__call__, threading.Lock()

    def in_turn(self: Any, environ: Any, start_response: Any) -> Any:
        with lock if environ["REQUEST_METHOD"] == "PUT" else nullcontext():
            return call(self, environ, start_response)

    patch.setattr(DomainDispatcherApplication, "__call__", in_turn)


def _make_bucket(name: str) -> None:
    import boto3  # comes with moto

    boto3.client("s3").create_bucket(Bucket=name)


@pytest.fixture(scope="session")
def ray_local(s3: str) -> Iterator[None]:
    """One Ray cluster of our own for all tests; after `s3`, as workers get the environment it starts with."""
    import ray

    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> EncoderSpec:
    """A CLIP with random weights in a real open_clip configuration: 32 pixels, d = 32, native text tower."""
    from lada_ray.config import EncoderConfig
    from lada_ray.encoder import resolve_encoder

    architecture, weights = write_tiny_clip(tmp_path_factory.mktemp("encoder"))
    config = EncoderConfig(model="tiny", pretrained=str(weights), architecture=str(architecture))
    return resolve_encoder(config, "fp32")


def write_tiny_clip(folder: Path, **text: Any) -> tuple[Path, Path]:
    """Architecture and weights of a tiny CLIP; returns both files.

    `text` is added to the settings of its text tower.
    """
    import open_clip
    import torch
    from safetensors.torch import save_file

    settings = {
        "embed_dim": 32,
        "quick_gelu": False,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2, **text},
    }
    architecture, weights = folder / "tiny.json", folder / "tiny.safetensors"
    architecture.write_text(json.dumps(settings))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = open_clip.CLIP(**settings)  # type: ignore[arg-type]
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, weights)
    return architecture, weights


@pytest.fixture(scope="session")
def tiny_domains(tmp_path_factory: pytest.TempPathFactory) -> tuple[Domain, ...]:
    """Three folders of three classes with 6 training and 4 test images each; colours tell classes apart."""
    from lada_ray.domains import FolderSpec

    root = tmp_path_factory.mktemp("domains")
    for position, name in enumerate(TINY_DOMAINS):
        draw_domain(root / name, hue=position / 9)
    return tuple(FolderSpec(name=name, root=str(root / name)).load("") for name in TINY_DOMAINS)


TINY_DOMAINS = ("fruit", "flags", "toys")


def draw_domain(root: Path, hue: float, classes: int = 3, train: int = 6, test: int = 4) -> None:
    """Draw a folder of images; class c has its own colour, every image its own noise."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(int(hue * 1e6))
    for c in range(classes):
        colour = np.array(colorsys.hsv_to_rgb((hue + c / classes) % 1, 1, 1)) * 200
        for part, number in (("train", train), ("test", test)):
            folder = root / part / f"class_{c}"
            folder.mkdir(parents=True)
            for i in range(number):
                pixels = colour + rng.uniform(0, 55, (40, 48, 3))
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")


@pytest.fixture(scope="session")
def tiny_world(
    tmp_path_factory: pytest.TempPathFactory, tiny_encoder: EncoderSpec, ray_local: None
) -> TinyWorld:
    """A storage whose bank holds drawn features of two made-up domains, with k-means and mixtures fitted."""
    return TinyWorld(tmp_path_factory.mktemp("world"), tiny_encoder)


class TinyWorld:
    """Two domains without image files.

    Features are drawn around a centre per class, which is its text feature and something of its own.

    "pets" has the classes cat, dog and red fox, "wild" has dog and wolf.
    """

    classes: ClassVar = {"pets": ("cat", "dog", "red fox"), "wild": ("dog", "wolf")}
    method: ClassVar = {
        "epochs": 4,
        "batch_size": 8,
        "lr": 0.01,
        "memory_per_class": 2,
        "mixture_components": 2,
    }

    def __init__(self, storage: Path, spec: EncoderSpec) -> None:
        from lada_ray.features.bank import FeatureBank
        from lada_ray.features.text import describe, make_prompts

        self.storage, self.spec = storage, spec
        features = open_store(storage / "features")
        prompts = [make_prompts("a photo of a {}.", names) for names in self.classes.values()]
        self.info = describe(features, spec, prompts)
        self.bank = FeatureBank(features, self.info.feature_key, self.info.width)
        self.domains = tuple(self._domain(name) for name in self.classes)
        self._fill()
        self.fit_classes()

    def _domain(self, name: str) -> Domain:
        from lada_ray.domains import Domain, Sample

        def samples(part: str, number: int) -> tuple[Sample, ...]:
            paths = [
                (j, f"{part}/{c}/{i}.png") for j, c in enumerate(self.classes[name]) for i in range(number)
            ]
            return tuple(Sample(f"{name}/{path}", path, j, 1, "v") for j, path in paths)

        return Domain(name, self.classes[name], samples("train", 6), samples("test", 5))

    def _fill(self) -> None:
        import numpy as np

        from lada_ray.features.text import make_prompts, read_text

        rng = np.random.default_rng(0)
        shas, views, features = [], [], []
        for domain in self.domains:
            text = read_text(self.bank, make_prompts("a photo of a {}.", domain.class_names))
            centres = text / np.linalg.norm(text, axis=1, keepdims=True) + 0.3 * rng.normal(size=text.shape)
            for sample in (*domain.train, *domain.test):
                for view in ("test", "crop_flip/0", "crop_flip/1"):
                    shas.append(sha256(sample.uri))
                    views.append(view)
                    features.append(3 * centres[sample.label] + 0.2 * rng.normal(size=self.info.width))
        self.bank.table.enter([self.bank.write(shas, views, np.array(features, np.float32), "drawn")])

    def fit_classes(self) -> ClassFits:
        """k-means and mixtures of all classes, over Ray tasks."""
        from lada_ray.fit.classes import fit_classes

        tasks = self.plan().tasks
        return fit_classes(
            self.bank, [task.parts[0].images for task in tasks], 2, 2, lambda done, total: None
        )

    def config(self, name: str = "run", **changes: Any) -> StreamConfig:
        """The configuration of a run in this world; `method` is added to the tiny settings."""
        from lada_ray.config import StreamConfig

        values = {
            "name": name,
            "storage": str(self.storage),
            "encoder": {"model": "tiny", "pretrained": self.spec.pretrained},
            "domains": [
                {"name": domain.name, "kind": "folder", "root": "/nowhere"} for domain in self.domains
            ],
            "views": 2,
            **changes,
            "method": {**self.method, **changes.get("method", {})},
        }
        return StreamConfig(**values)

    def stream(self, config: StreamConfig | None = None, domains: tuple[Domain, ...] | None = None) -> Stream:
        """The prepared stream of a configuration."""
        from lada_ray.cluster import Resources
        from lada_ray.features.index import FileIndex
        from lada_ray.prepare import Stream

        return Stream(
            config or self.config(),
            self.domains if domains is None else domains,
            self.spec,
            self.info,
            Resources(1, 1, 0, 0, 1, 0),
            self.bank,
            FileIndex(open_store(self.storage / "features")),
        )

    def images(self, stream: Stream) -> Images:
        """The choice of images; the hash of one is that of its URI."""
        from lada_ray.features.fill import Images
        from lada_ray.features.selection import select

        c = stream.choice
        selections = [select(domain, {}, c.shots, c.views, c.seed) for domain in stream.domains]
        return Images(selections, {s.uri: sha256(s.uri) for x in selections for s in x.samples})

    def plan(self, config: StreamConfig | None = None) -> FitPlan:
        """What a training worker gets."""
        from lada_ray.prepare import plan_fit, plan_tasks

        stream = self.stream(config)
        return plan_fit(stream, plan_tasks(stream, self.images(stream)))

    @contextmanager
    def run(self, config: StreamConfig, fresh: bool = False) -> Iterator[tuple[Run, RunLedger]]:
        """A run that was acquired and begun, with its ledger."""
        from lada_ray.prepare import pack_identities
        from lada_ray.run import Run, RunLedger

        stream = self.stream(config)
        identities = pack_identities(stream, self.images(stream))
        with Run.acquire(config, fresh, print) as run:
            run.begin(config, self.spec, self.info, identities)
            yield run, RunLedger(run.store.uri, run.epoch, identities)


def sha256(text: str) -> str:
    """Hex digest of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.fixture(scope="session")
def learnt_run(tiny_world: TinyWorld) -> tuple[TinyWorld, str]:
    """A run in the tiny world that learnt both domains: the world, the run's folder. Not to be changed."""
    from lada_ray.fit.learners import learn_remaining

    config = tiny_world.config("learnt", method={"epochs": 15})
    with tiny_world.run(config) as (run, ledger):
        list(learn_remaining(tiny_world.plan(config), ledger, "cpu"))
        return tiny_world, run.store.uri


@pytest.fixture(scope="session")
def learnt_three(tmp_path_factory: pytest.TempPathFactory, ray_local: None) -> Path:
    """A folder with a storage whose model `lada` has learnt three tiny domains; not to be changed, but copied."""
    folder = tmp_path_factory.mktemp("three")
    for position, name in enumerate(TINY_DOMAINS):
        draw_domain(folder / name, hue=position / 9, test=8)
    write_tiny_clip(folder)
    learn_tiny(folder, "lada", TINY_DOMAINS)
    return folder


@pytest.fixture
def two_versions(learnt_three: Path, tmp_path: Path) -> Path:
    """A storage whose model `lada` has two versions: three domains, and then only the first two of them."""
    from lada_ray.console import Console
    from lada_ray.production import Production, Settings
    from lada_ray.versions import Change, State

    folder = Path(shutil.copytree(learnt_three / "storage", tmp_path / "storage"))
    with Production.open(Settings(model="lada", storage=str(folder)), Console(quiet=True)) as production:
        first = production.champion
        prompts = {name: first.state.prompts[name] for name in ("fruit", "flags")}
        state = State(first.state.packs[:2], prompts, first.state.domains[:2])
        production.promote(first, Change("rollback", "less", state, {"fruit": 1.0, "flags": 2.0}))
    return folder


def learn_tiny(folder: Path, model: str, names: Sequence[str], **method: Any) -> str:
    """Learn domains that are drawn in a folder, with the tiny encoder there; returns the model's run folder."""
    from lada_ray.config import StreamConfig
    from lada_ray.console import Console
    from lada_ray.stream import run_stream

    values = {
        "name": model,
        "storage": str(folder / "storage"),
        "encoder": {
            "model": "tiny",
            "pretrained": str(folder / "tiny.safetensors"),
            "architecture": str(folder / "tiny.json"),
        },
        "views": 1,
        # A gate of random text features would send every image to the same side.
        "method": {
            **{"epochs": 4, "batch_size": 8, "memory_per_class": 2, "mixture_components": 1},
            **{"fusion": "additive", "alpha": 10, "beta": 20, **method},
        },
        "domains": [
            {"name": name.rpartition("/")[2], "kind": "folder", "root": str(folder / name)} for name in names
        ],
        "resources": {"train_workers": 0, "encoders": 1},
        "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
    }
    return run_stream(StreamConfig.model_validate(values), console=Console(quiet=True)).folder
