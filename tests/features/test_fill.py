"""From domains to a filled bank: each view once, damaged images replaced and listed, restarts bit-equal."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from lada_ray.domains import Domain, FolderSpec, choose
from lada_ray.encoder import EncoderSpec
from lada_ray.errors import InputError
from lada_ray.features import extract as extract_module
from lada_ray.features.bank import FeatureBank
from lada_ray.features.extract import EncodeViews, Extraction, Gap, Pool, RenderViews
from lada_ray.features.fill import Choice, Images, choose_images, fill_bank, find_gaps
from lada_ray.features.index import FileIndex
from lada_ray.store import join, open_store

ALL = Choice(shots=None, views=2, seed=0)


@dataclass
class Filling:
    """A features folder and everything that `fill_bank` needs besides the domains."""

    folder: str
    spec: EncoderSpec
    key: str

    @property
    def bank(self) -> FeatureBank:
        return FeatureBank(open_store(self.folder), self.key, 32)

    @property
    def index(self) -> FileIndex:
        return FileIndex(open_store(self.folder))

    def fill(self, domains: Sequence[Domain], choice: Choice, run: str = "r") -> tuple[Images, Extraction]:
        (images,), extraction = fill_bank(
            domains, self.spec, self.bank, self.index, [choice], Pool(1, 1, 0), run, lambda *_: None
        )
        return images, extraction


def fetched(filling: Filling, images: Images) -> dict[tuple[str, str], bytes]:
    """The bytes of every feature that a run needs."""
    return {(sha, view): filling.bank.fetch([sha], [view]).tobytes() for sha, view in images.pairs()}


@pytest.fixture(scope="module")
def filled(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_encoder: EncoderSpec,
    tiny_key: str,
    tiny_domains: tuple[Domain, ...],
    ray_local: None,
) -> Filling:
    """All images of the tiny domains under two views. Not to be changed."""
    filling = Filling(str(tmp_path_factory.mktemp("filled")), tiny_encoder, tiny_key)
    images, done = filling.fill(tiny_domains, ALL, "first")
    assert images.bad == []
    # 3 domains: 18 training images under 3 views, 12 test images under one.
    assert (done.added, filling.bank.size().views) == (3 * (18 * 3 + 12), 198)
    return filling


@pytest.fixture
def without_actors(filled: Filling, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read and encode in this process, as an actor takes seconds to start; `filled` was made by real ones."""

    def pipeline(
        gaps: Sequence[Gap], spec: EncoderSpec, bank: FeatureBank, pool: Pool, run: str
    ) -> Iterator[dict[str, object]]:
        columns = {
            "uri": np.array([g.uri for g in gaps]),
            "sha256": np.array([g.sha256 for g in gaps]),
            "views": np.array([" ".join(g.views) for g in gaps]),
        }
        actor = EncodeViews(spec, bank, run, threads=1)
        yield from map(json.loads, actor(RenderViews(spec.preprocess)(columns))["row"])

    monkeypatch.setattr(extract_module, "_pipeline", pipeline)


def copied(filled: Filling, folder: Path) -> Filling:
    shutil.copytree(filled.folder, folder)
    return Filling(str(folder), filled.spec, filled.key)


@pytest.mark.parametrize("choice", [ALL, Choice(3, 2, 1), Choice(2, 1, 7), Choice(None, 0, 3)])
def test_what_is_in_the_bank_is_not_encoded_again(
    filled: Filling, tiny_domains: tuple[Domain, ...], choice: Choice, tmp_path: Path
) -> None:
    filling = copied(filled, tmp_path / "copy")
    images, done = filling.fill(tiny_domains, choice, "second")
    assert (done, filling.bank.table.added_by("second")) == (Extraction(), 0)
    assert [s.train for s in images.selections] == [
        tuple(choose(d, choice.shots, choice.seed)) for d in tiny_domains
    ]


@pytest.mark.usefixtures("without_actors")
def test_a_restart_fills_the_gaps_with_the_same_bytes_and_more_views_extend(
    filled: Filling, tiny_domains: tuple[Domain, ...], tmp_path: Path
) -> None:
    filling = copied(filled, tmp_path / "copy")
    images = choose_images(tiny_domains, filling.index, ALL, "r", lambda *_: None)
    before = fetched(filling, images)
    lost = _lose_rows(filling.bank, share=0.4)
    assert 40 < lost < 160
    assert sum(len(g.views) for g in find_gaps(images.pairs(), filling.bank)) == lost
    images, done = filling.fill(tiny_domains, replace(ALL, views=3), "r")
    assert done.added == lost + 3 * 18
    after = fetched(filling, images)
    assert len(after) == len(before) + 54
    assert {pair: after[pair] for pair in before} == before


def _lose_rows(bank: FeatureBank, share: float) -> int:
    """Drop a random share of the bank's rows, as if they had been in flight when a run was killed."""
    rng, lost = np.random.default_rng(0), 0
    for part in list(bank.table.manifest().parts.values()):
        table = bank.table.read(part.name, bank.table.schema.names)
        keep = rng.random(table.num_rows) >= share
        lost += int((~keep).sum())
        bank.table.rewrite([part], table.filter(pa.array(keep)))
    return lost


def damaged_domain(root: Path) -> tuple[Domain, dict[str, str]]:
    """40 images of two classes, five of them damaged; and what is wrong, by path."""
    rng = np.random.default_rng(0)
    for part, number in (("train", 12), ("test", 8)):
        for name in ("cat", "dog"):
            (root / part / name).mkdir(parents=True)
            for i in range(number):
                pixels = rng.integers(0, 256, (40, 40, 3), np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{i:02}.png")
    domain = FolderSpec(name="damaged", root=str(root)).load("")
    cats = [s.path for s in choose(domain, 12, 0) if s.label == 0]
    wrong = {
        cats[0]: "OSError: image file is truncated",
        cats[1]: "not an image that Pillow can read",
        "test/cat/03.png": "the file is empty",
        "test/dog/01.png": "too large: 10001 x 10000 pixels",
    }
    data = (root / cats[0]).read_bytes()
    (root / cats[0]).write_bytes(data[: len(data) // 2])
    (root / cats[1]).write_text("this is a text")
    (root / "test/cat/03.png").write_bytes(b"")
    Image.new("1", (10001, 10000)).save(root / "test/dog/01.png")
    # The same picture under another name, in the other part: it is encoded once.
    shutil.copy(root / "test/cat/00.png", root / "test/cat/01.png")
    # It was never chosen, so nobody finds out.
    (root / cats[11]).write_bytes(b"")
    return FolderSpec(name="damaged", root=str(root)).load(""), wrong


@pytest.mark.usefixtures("without_actors")
def test_damaged_images_cost_themselves_and_are_replaced(
    tmp_path: Path, tiny_encoder: EncoderSpec, tiny_key: str
) -> None:
    domain, wrong = damaged_domain(tmp_path / "images")
    filling = Filling(str(tmp_path / "features"), tiny_encoder, tiny_key)
    choice = Choice(shots=3, views=1, seed=0, max_bad_share=0.2)
    images, done = filling.fill([domain], choice)
    (selection,) = images.selections
    listed = {str(Path(bad.uri).relative_to(tmp_path / "images")): bad.reason for bad in images.bad}
    assert sorted(listed) == sorted(wrong)
    assert all(listed[path].startswith(reason) for path, reason in wrong.items()), listed
    order = choose(domain, 12, 0)
    assert selection.train == (*order[2:5], *order[12:15])
    assert len(selection.test) == 16 - 2
    # 6 shots under two views and 14 test images, two of which are the same picture.
    assert done.added == filling.bank.table.added_by("r") == 6 * 2 + 13
    assert find_gaps(images.pairs(), filling.bank) == []

    again, nothing = filling.fill([domain], choice, "second")
    assert (again.selections, again.bad, nothing.added) == (images.selections, images.bad, 0)

    with pytest.raises(InputError) as refused:
        filling.fill([domain], replace(choice, max_bad_share=0.1))
    assert "4 of 24 images are bad (16.7 %" in str(refused.value)
    assert all(path in str(refused.value) for path in wrong)


def test_a_class_without_a_usable_image_is_refused_whatever_the_share(
    tmp_path: Path, tiny_encoder: EncoderSpec, tiny_key: str, ray_local: None
) -> None:
    domain, _ = damaged_domain(tmp_path / "images")
    filling = Filling(str(tmp_path / "features"), tiny_encoder, tiny_key)
    cats = {s.uri: s for s in domain.train if s.label == 0}
    shas = {hashlib.sha256(Path(uri).read_bytes()).hexdigest(): "broken" for uri in cats}
    filling.index.add_bad(shas, "another run")
    with pytest.raises(InputError, match="damaged: every training image of 'cat' is unusable"):
        filling.fill([domain], Choice(3, 0, 0, max_bad_share=1.0))


@pytest.mark.usefixtures("without_actors")
def test_a_file_that_vanished_says_nothing_about_its_bytes(
    filled: Filling, tiny_domains: tuple[Domain, ...], tmp_path: Path
) -> None:
    shutil.copytree(Path(tiny_domains[0].train[0].uri).parents[2], tmp_path / "fruit")
    (domain,) = [FolderSpec(name="fruit", root=str(tmp_path / "fruit")).load("")]
    filling = Filling(str(tmp_path / "features"), filled.spec, filled.key)
    choice = Choice(2, 0, 0, max_bad_share=0.5)
    first = choose(domain, 2, 0)[0]
    choose_images([domain], filling.index, choice, "r", lambda *_: None)
    content = Path(first.uri).read_bytes()
    Path(first.uri).unlink()
    images, _ = filling.fill([domain], choice)
    assert [bad.uri for bad in images.bad] == [first.uri]
    assert filling.index.bad() == {}
    Path(first.uri).write_bytes(content)
    images, done = filling.fill([domain], choice)
    assert (images.bad, done.added) == ([], 1)


@pytest.mark.usefixtures("without_actors")
def test_images_and_bank_in_an_object_store(
    s3: str, filled: Filling, tiny_domains: tuple[Domain, ...]
) -> None:
    local = tiny_domains[0]
    remote = open_store(join(s3, "images"))
    for sample in local.train + local.test:
        remote.write(sample.path, Path(sample.uri).read_bytes())
    domain = FolderSpec(name=local.name, root=remote.uri).load("")
    assert [s.path for s in domain.train] == [s.path for s in local.train]
    filling = Filling(join(s3, "features"), filled.spec, filled.key)
    images, done = filling.fill([domain], replace(ALL, views=1))
    assert done.added == filling.bank.table.added_by("r") == 18 * 2 + 12
    here, there = filled.bank, filling.bank
    shas = images.shas(domain.train)
    assert np.array_equal(
        there.fetch(shas, ["test", "crop_flip/0"]), here.fetch(shas, ["test", "crop_flip/0"])
    )
    assert filling.fill([domain], replace(ALL, views=1))[1].added == 0


@pytest.mark.usefixtures("without_actors")
def test_several_choices_at_once_encode_their_union_once(
    filled: Filling, tiny_domains: tuple[Domain, ...], tmp_path: Path
) -> None:
    """As for a comparison's seeds: each gets its own images, and what they share is encoded once."""
    filling = Filling(str(tmp_path / "features"), filled.spec, filled.key)
    choices = [Choice(2, 1, 0), Choice(2, 2, 1), Choice(None, 0, 0)]
    images, done = fill_bank(
        tiny_domains, filling.spec, filling.bank, filling.index, choices, Pool(1, 1, 0), "r", lambda *_: None
    )
    assert len(images) == 3
    for one, choice in zip(images, choices, strict=True):
        assert [s.train for s in one.selections] == [
            tuple(choose(d, choice.shots, choice.seed)) for d in tiny_domains
        ]
        assert find_gaps(one.pairs(), filling.bank) == []
    union = {pair for one in images for pair in one.pairs()}
    assert done.added == filling.bank.size().views == len(union) < sum(len(one.pairs()) for one in images)
    # Nothing beyond it: the seeds' shots alone have augmented views.
    augmented = [{s.uri for d in tiny_domains for s in choose(d, 2, seed)} for seed in (0, 1)]
    assert len(union) == 3 * (18 + 12) + len(augmented[0] | augmented[1]) + len(augmented[1])


def listed(filled: Filling, domains: Sequence[Domain]) -> Images:
    return choose_images(domains, filled.index, ALL, "r", lambda *_: None)


def test_another_number_of_views(filled: Filling, tiny_domains: tuple[Domain, ...]) -> None:
    flat = replace(tiny_domains[2], augment="none")
    images = listed(filled, [*tiny_domains[:2], flat])
    assert [s.views for s in images.selections] == [("crop_flip/0", "crop_flip/1")] * 2 + [("test",)]
    assert [s.views for s in images.with_views(1).selections] == [("crop_flip/0",)] * 2 + [("test",)]
    assert [s.views for s in images.with_views(0).selections] == [("test",)] * 3
    # It is a copy, and the rest of it is the same.
    assert images.selections[0].views == ("crop_flip/0", "crop_flip/1")
    assert images.with_views(1).with_views(2) == images
    assert set(images.with_views(0).pairs()) < set(images.with_views(1).pairs()) < set(images.pairs())


def test_another_order_of_domains(filled: Filling, tiny_domains: tuple[Domain, ...]) -> None:
    images = listed(filled, tiny_domains)
    names = [d.name for d in tiny_domains]
    turned = images.in_order(names[::-1])
    assert [s.domain.name for s in turned.selections] == names[::-1]
    assert turned.selections == images.selections[::-1]
    assert (turned.hashes, turned.in_order(names)) == (images.hashes, images)
    assert [s.domain.name for s in images.selections] == names


@pytest.mark.usefixtures("without_actors")
def test_a_bad_image_of_a_domain_without_test_images_costs_itself(
    tmp_path: Path, tiny_encoder: EncoderSpec, tiny_key: str
) -> None:
    """A sweep's trials have no test images; that is no fault of the bad one."""
    domain, _ = damaged_domain(tmp_path / "images")
    filling = Filling(str(tmp_path / "features"), tiny_encoder, tiny_key)
    images, _ = filling.fill([replace(domain, test=())], Choice(3, 0, 0, max_bad_share=0.5))
    assert len(images.bad) == 2
    assert len(images.selections[0].train) == 6
