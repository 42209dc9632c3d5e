"""The inbox, in a folder and on S3: what is found, what is refused, what is recognised."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import pickle
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from lada_ray.domains import KINDS
from lada_ray.domains.base import Domain, Sample
from lada_ray.domains.folder import in_test
from lada_ray.errors import InputError, LadaError
from lada_ray.inbox import (
    ADVICE,
    CARD_LIMIT,
    Arrival,
    Card,
    Entry,
    Known,
    clear_rejection,
    content_key,
    images_by_class,
    overlap_share,
    parse_card,
    recognise,
    reject,
    scan,
    validate,
)
from lada_ray.inbox.entries import REJECTED_LIMIT
from lada_ray.inbox.folder import list_unfollowed
from lada_ray.store import Store, join, open_store

PETS = [
    f"{split}/{name}/{i}.png"
    for split, n in (("train", 4), ("test", 3))
    for name in ("cat", "dog")
    for i in range(n)
]
CARD = "name: pets\nkind: folder\n"


@pytest.fixture(params=["local", "s3"])
def inbox(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        (tmp_path / "in box").mkdir()
        return open_store(tmp_path / "in box")
    return open_store(join(request.getfixturevalue("s3"), uuid.uuid4().hex))


@pytest.fixture
def local(tmp_path: Path) -> Store:
    (tmp_path / "in").mkdir()
    return open_store(tmp_path / "in")


def put(
    inbox: Store, name: str, card: str | None = CARD, files: Sequence[str] = PETS, ready: bool = True
) -> Entry | None:
    """Write an entry, and find it."""
    folder = inbox.child(name)
    for path in files:
        folder.write(path, path.encode())
    if card is not None:
        folder.write("domain.yaml", card.encode())
    if ready:
        folder.write("_READY", b"")
    return next((entry for entry in scan(inbox.uri).entries if entry.name == name), None)


def entry_of(*arguments: Any, **keys: Any) -> Entry:
    found = put(*arguments, **keys)
    assert found is not None
    return found


def arrival_of(entry: Entry, known: Sequence[Known] = (), **keys: Any) -> Arrival:
    return validate(entry, known, "unused", **keys)


def refused(entry: Entry, known: Sequence[Known] = (), **keys: Any) -> list[str]:
    with pytest.raises(InputError) as caught:
        validate(entry, known, "unused", **keys)
    assert caught.value.heading == f"{entry.uri} cannot be learnt"
    assert pickle.loads(pickle.dumps(caught.value)).problems == caught.value.problems
    return caught.value.problems


def names(entries: Sequence[Entry]) -> list[str]:
    return [entry.name for entry in entries]


# ---------------------------------------------------------------- scanning


def test_entries_come_in_the_order_of_their_arrival(inbox: Store) -> None:
    for name in ("c", "a", "b"):
        put(inbox, name, files=["x.png"])
    if inbox.uri.startswith("s3://"):
        found = scan(inbox.uri).entries
        assert names(found) == [e.name for e in sorted(found, key=lambda e: (e.arrived, e.name))]
        return
    for name, age in (("a", 3), ("b", 1), ("c", 3)):
        os.utime(f"{inbox.uri}/{name}/_READY", (time.time(), 1_700_000_000 - age))
    found = scan(inbox.uri).entries
    assert names(found) == ["a", "c", "b"]
    assert [entry.arrived for entry in found] == [1_699_999_997, 1_699_999_997, 1_699_999_999]


def test_what_is_not_ready_is_counted_and_not_looked_at(inbox: Store) -> None:
    put(inbox, "done")
    put(inbox, "half way", ready=False)
    put(inbox, "nested", ready=False, files=["data/_READY"])
    put(inbox, ".hidden")
    inbox.write("_READY", b"")
    inbox.write("readme.txt", b"x")
    found = scan(inbox.uri)
    assert (names(found.entries), found.incomplete, found.rejected) == (["done"], ("half way", "nested"), ())
    assert found.entries[0].uri == join(inbox.uri, "done")


def test_an_empty_inbox_is_no_error_and_a_missing_folder_is(inbox: Store, tmp_path: Path) -> None:
    assert scan(inbox.uri) == scan(inbox.uri + "/")
    assert scan(inbox.uri).entries == ()
    with pytest.raises(InputError, match=r"there is no folder .*nowhere; make it, or correct --inbox"):
        scan(tmp_path / "nowhere")


def test_a_rejected_entry_is_skipped_until_it_changes(inbox: Store) -> None:
    entry, other = entry_of(inbox, "pets"), entry_of(inbox, "other")
    when = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
    uri = reject(entry, ["pets: too few\nimages", "Tür"], when)
    assert uri == join(inbox.uri, "pets/_REJECTED.json")
    assert json.loads(inbox.read("pets/_REJECTED.json")) == {
        "problems": ["pets: too few\\nimages", "Tür"],
        "what_to_do": ADVICE,
        "when": "2030-01-02T03:04:05+00:00",
        "fingerprint": entry.fingerprint,
    }
    found = scan(inbox.uri)
    assert (found.entries, found.rejected) == ((other,), ("pets",))
    inbox.write("pets/train/cat/9.png", b"one more")
    (again,) = [e for e in scan(inbox.uri).entries if e.name == "pets"]
    assert again.fingerprint != entry.fingerprint
    reject(again, ["still bad"])
    assert scan(inbox.uri).rejected == ("pets",)
    inbox.delete("pets/train/cat/0.png")
    assert scan(inbox.uri).rejected == ()


def test_a_rejection_is_lifted_by_removing_it_or_writing_ready_again(inbox: Store) -> None:
    entry = entry_of(inbox, "pets")
    reject(entry, ["bad"])
    assert scan(inbox.uri).rejected == ("pets",)
    clear_rejection(entry)
    assert scan(inbox.uri).entries == (entry,)
    reject(entry, ["bad"])
    time.sleep(1.1)  # S3 tells times to the second
    inbox.write("pets/_READY", b"")
    assert names(scan(inbox.uri).entries) == ["pets"]


@pytest.mark.parametrize("said", [b"", b"[]", b"{", b'"x"', b'{"fingerprint": 3}', b"[" * 100_000])
def test_a_rejection_that_nobody_can_read_does_not_hold(local: Store, said: bytes) -> None:
    entry = entry_of(local, "pets")
    local.write("pets/_REJECTED.json", said)
    assert scan(local.uri).entries == (entry,)


def test_what_changed_while_it_was_looked_at_is_tried_again(inbox: Store) -> None:
    entry = entry_of(inbox, "pets")
    inbox.write("pets/domain.yaml", b"corrected meanwhile")
    reject(entry, ["a mistake in domain.yaml"])
    assert names(scan(inbox.uri).entries) == ["pets"]


def test_what_links_lead_to_is_not_listed(
    local: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "all/deep").mkdir(parents=True)
    (tmp_path / "all/deep/_READY").touch()
    listed, scandir = list[str](), os.scandir

    def noted(path: str) -> Any:
        listed.append(path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", noted)
    entry = entry_of(local, "bad")
    Path(entry.uri, "all").symlink_to(tmp_path / "all")
    Path(local.uri, "whole").symlink_to(tmp_path / "all")
    Path(local.uri, "loop").symlink_to("loop")
    found = scan(local.uri)
    assert (names(found.entries), found.incomplete, found.unreadable) == (["bad"], ("whole",), ())
    assert found.entries[0].fingerprint != entry.fingerprint
    assert listed
    assert not [path for path in listed if "all" in path or "whole" in path]
    Path(tmp_path, "all/deep/more").touch()
    assert scan(local.uri) == found


def test_a_folder_that_cannot_be_listed_costs_this_entry_alone(
    local: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad, shut = entry_of(local, "good"), entry_of(local, "bad"), entry_of(local, "shut")
    scandir, access = os.scandir, os.access

    def closed(path: str) -> Any:
        if path.endswith("bad/test/dog"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)  # root may list whatever its mode says
    monkeypatch.setattr(os, "access", lambda path, mode: "shut/" not in path and access(path, mode))
    found = scan(local.uri)
    assert (found.entries, found.incomplete, found.rejected) == ((good,), (), ())
    assert found.unreadable == (
        f"bad: cannot be read: Permission denied: {bad.uri}/test/dog",
        f"shut: cannot be read: Permission denied: {shut.uri}/domain.yaml",
    )
    assert refused(bad) == [f"{bad.uri} cannot be listed: Permission denied: {bad.uri}/test/dog"]
    monkeypatch.undo()
    assert scan(local.uri).entries == (good, bad, shut)


def test_the_listing_of_a_folder_is_that_of_its_storage(local: Store) -> None:
    files = ["a/b/c.png", "a/b.png", "a.b/c.png", "a-b", "a b", "odd/_READY", "ü/é.png"]
    entry = entry_of(local, "odd", files=files)
    os.mkfifo(f"{entry.uri}/pipe")
    Path(entry.uri, ".lada-tmp-1").touch()
    assert list_unfollowed(entry.uri) == list(open_store(entry.uri).list())


def test_a_rejection_that_cannot_be_written_is_told(local: Store) -> None:
    entry = entry_of(local, "pets")
    Path(entry.uri, "_REJECTED.json").mkdir()
    assert reject(entry, ["bad"]) is None
    clear_rejection(entry)
    assert scan(local.uri).entries == (entry,)


def test_a_rejection_is_small_enough_to_be_read(local: Store, tmp_path: Path) -> None:
    entry = entry_of(local, "pets")
    uri = reject(entry, ["\U0010ffff" * 10_000, *["\U0001f600" * 10_000] * 300])
    assert uri is not None
    said = json.loads(Path(uri).read_text())["problems"]
    assert ([len(line) for line in said[:200]], said[200:]) == ([1001] * 200, ["… and 101 more problems"])
    assert scan(local.uri).rejected == ("pets",)
    # One that is larger, or a link, is none of ours.
    text = Path(uri).read_text()
    Path(uri).write_text(text + " " * REJECTED_LIMIT)
    assert scan(local.uri).entries == (entry,)
    (tmp_path / "said").write_text(text)
    Path(uri).unlink()
    Path(uri).symlink_to(tmp_path / "said")
    assert scan(local.uri).entries == (entry,)


# ---------------------------------------------------------------- what is learnt


def test_a_good_entry(inbox: Store) -> None:
    card = (
        "name: pets\nkind: folder\nprompt: a photo of a {}, a pet.\nclass_names: {dog: good dog}\n"
        "augment: none\nepochs: 3\nowner: ada@example.org\nshots: 16\n"
    )
    entry = entry_of(inbox, "2030-01 upload", card, [*PETS, "readme.md"])
    arrival = arrival_of(entry)
    domain = arrival.domain
    assert (domain.name, domain.class_names, len(domain.train), len(domain.test)) == (
        "pets",
        ("cat", "good dog"),
        8,
        6,
    )
    assert (domain.prompt, domain.augment, domain.epochs) == ("a photo of a {}, a pet.", "none", 3)
    assert arrival.card == Card(owner="ada@example.org", shots=16, extends=False)
    assert arrival.spec.model_dump()["root"] == entry.uri
    assert domain.train[0].uri == join(entry.uri, "train/cat/0.png")
    assert domain.ignored == ("readme.md",)
    assert arrival.notes == ("pets: files that are no images of it: readme.md",)


def test_relative_roots_count_from_the_entry(inbox: Store) -> None:
    for root in ("data", "./data/", "other/../data"):
        entry = entry_of(inbox, "pets", f"{CARD}root: {root}\n", [f"data/{path}" for path in PETS])
        arrival = arrival_of(entry)
        assert arrival.domain.test[0].uri == join(entry.uri, "data/test/cat/0.png")
        assert (arrival.domain.test[0].path, arrival.notes) == ("test/cat/0.png", ())


@pytest.mark.parametrize("root", [".", "", "~"])
def test_the_entry_itself_is_the_root_where_none_is_given(inbox: Store, root: str) -> None:
    entry = entry_of(inbox, "pets", f"{CARD}root: {root}\n" if root != "~" else f"{CARD}root: null\n")
    assert len(arrival_of(entry).domain.train) == 8


def table(rows: Sequence[tuple[str, str, str]]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows([("path", "label", "split"), *rows])
    return text.getvalue()


def rows_of(paths: Sequence[str]) -> list[tuple[str, str, str]]:
    return [(path, path.split("/")[1], path.split("/")[0]) for path in paths]


def test_other_kinds_find_their_files_beside_the_card(inbox: Store) -> None:
    entry = entry_of(inbox, "pets", "name: pets\nkind: manifest\nfile: list.csv\n")
    inbox.write("pets/list.csv", table(rows_of(PETS)).encode())
    assert len(arrival_of(entry).domain.train) == 8
    split = {
        s: [[path, int("dog" in path), path.split("/")[1]] for path in PETS if path.startswith(s)]
        for s in ("train", "test")
    }
    entry = entry_of(inbox, "coop", "name: pets\nkind: coop\nimages: ''\n")
    inbox.write("coop/split_zhou_OxfordPets.json", json.dumps(split).encode())
    assert len(arrival_of(entry).domain.test) == 6


def test_a_kind_that_makes_its_own_images_keeps_them_in_the_storage(local: Store, tmp_path: Path) -> None:
    entry = entry_of(local, "shapes", "{name: shapes, kind: demo, drawing: shapes, train_per_class: 1}", [])
    arrival = validate(entry, (), str(tmp_path / "storage"))
    assert arrival.domain.train[0].uri.startswith(f"{tmp_path}/storage/demo-images/shapes/")


def test_the_keys_of_a_card_are_those_of_no_kind() -> None:
    for spec in KINDS.values():
        assert not set(spec.model_fields) & set(Card.model_fields)
    assert all(f.description for f in Card.model_fields.values())


# ---------------------------------------------------------------- what is refused


def test_all_problems_of_an_entry_are_told_at_once(inbox: Store) -> None:
    card = (
        "name: pets\nkind: folder\nonwer: ada\nshots: 0\nepochs: many\nprompt: a pet\nprompt: a dog\n"
        "class_names: {dgo: good dog}\n"
    )
    files = ["train/cat/0.png", "train/dog/0.png", "test/cat/0.png", "test/cow/0.png"]
    entry = entry_of(inbox, "pets", card, files)
    assert refused(entry, [Known("pets", ("cat",))]) == [
        "domain.yaml: key 'prompt' stands twice (from line 1)",
        "domain.yaml: prompt: must contain {} where the class name goes",
        "domain.yaml: epochs: must be a valid integer, unable to parse string as an integer (got 'many')",
        "domain.yaml: shots: must be greater than or equal to 1 (got 0)",
        "domain.yaml: onwer: unknown key; did you mean owner?",
        "pets: class_names renames 'dgo', which is no class here; did you mean dog?",
        "pets: class 'cow' has no training images",
        "pets: class 'dog' stands in train/ and not in test/",
        "pets: a known domain has this name; if these are other images, choose another one, or say extends: true if "
        "they are more images of its classes",
    ]


def test_a_wrong_name_does_not_hide_what_is_wrong_with_the_images(inbox: Store) -> None:
    entry = entry_of(inbox, "up load", "kind: folder\nname: ../pets\n", ["train/cat/0.png"])
    lines = refused(entry)
    assert lines[0].startswith("domain.yaml: name: must start with a letter or digit")
    assert lines[1].startswith("domain: no test images")
    entry = entry_of(inbox, "pets2", "kind: folder\n", ["train/cat/0.png"])
    assert [line.partition(";")[0] for line in refused(entry)] == [
        "domain.yaml: name: missing",
        "pets2: no test images",
    ]


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("", "kind: missing; one of aircraft, coop, demo, folder, manifest, mnist, parquet"),
        ("kind: fodler", "kind: unknown kind 'fodler'; did you mean folder? (one of aircraft, coop,"),
        ("kind: [folder]", "kind: unknown kind \"['folder']\"; did you mean folder? (one of aircraft, coop,"),
    ],
)
def test_an_unknown_kind(local: Store, kind: str, said: str) -> None:
    first, *more = refused(entry_of(local, "pets", f"name: pets\n{kind}\nfile: x\nshots: -1\nepochs: 0\n"))
    assert first.startswith(f"domain.yaml: {said}")
    assert more == [
        "domain.yaml: epochs: must be greater than or equal to 1 (got 0)",
        "domain.yaml: shots: must be greater than or equal to 1 (got -1)",
    ]


def test_a_missing_card_names_the_nearest_file(inbox: Store) -> None:
    entry = entry_of(inbox, "pets", None, ["domain.yml"])
    assert refused(entry) == ["there is no domain.yaml; did you mean domain.yml?"]
    assert refused(entry_of(inbox, "b", None, ["x.png"])) == ["there is no domain.yaml"]


BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nname: [*b, *b]\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "domain.yaml: must be keys with values, as in `name: pets`"),
        ("- name", "domain.yaml: must be keys with values, as in `name: pets`"),
        ("name: [", "domain.yaml, line 1, column 8: expected the node content"),
        (BOMB, "domain.yaml, line 2, column 8: aliases (*name) are not read here"),
        ("[" * 2_000, "domain.yaml: is nested too deeply"),
        ("name: 2025-13-45", "domain.yaml: month must be in 1..12"),
        ("a: 1\n---\nb: 2", "domain.yaml, line 2, column 1: but found another document"),
        (
            "name: !!python/object:os.system x",
            "domain.yaml, line 1, column 7: could not determine a constructor",
        ),
        ("name: \x07", "domain.yaml: unacceptable character #x0007"),
    ],
)
def test_what_is_no_card(local: Store, text: str, said: str) -> None:
    (line,) = refused(entry_of(local, "pets", text))
    assert line.startswith(said)


def test_a_card_may_not_be_large_nor_of_another_encoding(local: Store) -> None:
    entry = entry_of(local, "pets", CARD + "#" * CARD_LIMIT)
    assert refused(entry) == [
        f"domain.yaml: has {CARD_LIMIT + len(CARD)} bytes, and at most {CARD_LIMIT} are read"
    ]
    assert parse_card("name: Tür".encode("latin-1"))[1][0].startswith(
        "domain.yaml: 'utf-8' codec can't decode"
    )
    assert parse_card("\ufeffname: Tür\n1: 2".encode()) == ({"name": "Tür", "1": 2}, [])


def test_roots_that_lead_elsewhere_are_refused(inbox: Store, tmp_path: Path) -> None:
    put(inbox, "secret", None)
    put(inbox, "pets")
    for root in (
        "../secret",
        "data/../../secret",
        "/etc",
        "s3://other/pets",
        "..",
        f"file://{tmp_path}",
        "~",
    ):
        entry = entry_of(inbox, "pets", f"{CARD}root: '{root}'\nepochs: 0\n", [])
        assert refused(entry) == [
            "domain.yaml: epochs: must be greater than or equal to 1 (got 0)",
            f"domain.yaml: root: {root!r} leads out of {entry.uri}; the data has to lie in the entry's own folder, "
            "unless whoever runs the job allows more",
        ]
    entry = entry_of(inbox, "pets", f"{CARD}root: ../secret\n", [])
    assert len(arrival_of(entry, outside=True).domain.train) == 8
    entry = entry_of(inbox, "pets", f"{CARD}root: {join(inbox.uri, 'secret')}\n", [])
    assert len(arrival_of(entry, outside=True).domain.train) == 8
    # A folder whose name begins like the entry's is another one.
    put(inbox, "pets-secret", None)
    assert len(refused(entry_of(inbox, "pets", f"{CARD}root: ../pets-secret\n", []))) == 1


def test_a_root_of_no_known_kind_is_refused_in_its_own_words(local: Store) -> None:
    (line,) = refused(entry_of(local, "pets", f"{CARD}root: ftp://x/y\n"))
    assert line.startswith("domain.yaml: root: Storage at ftp://x/y: ftp:// is not supported")


def test_tables_do_not_lead_elsewhere(inbox: Store) -> None:
    put(inbox, "secret", None)
    outside = [f"../secret/{path}" for path in PETS[:2]] if "://" not in inbox.uri else []
    absolute = [join(inbox.uri, "secret", path) for path in PETS[2:4]]
    put(inbox, "pets", "name: pets\nkind: manifest\nfile: list.csv\n", ready=False)
    rows = rows_of(PETS) + [(path, "cat", "train") for path in (*outside, *absolute)]
    inbox.write("pets/list.csv", table(rows).encode())
    entry = entry_of(inbox, "pets", None, [])
    (line,) = refused(entry)
    assert line.startswith(f"pets: images outside {entry.uri}: ")
    assert len(arrival_of(entry, outside=True).domain.train) == 8 + len(outside) + 2
    # Nor is it told whether there is a file where they lead.
    inbox.write(
        "pets/list.csv", table([*rows, (join(inbox.uri, "secret", "none.png"), "cat", "train")]).encode()
    )
    (line,) = refused(entry_of(inbox, "pets", None, []))
    assert line.startswith(f"pets: images outside {entry.uri}: ")


def test_names_within_a_kind_do_not_lead_elsewhere(inbox: Store) -> None:
    inbox.write("split.json", b'{"train": [["a/1.png", 0, "a"]], "test": [["a/1.png", 0, "a"]]}')
    for keys in ("split_file: ../split.json", "split_file: x.json\nimages: ../../secret"):
        entry = entry_of(inbox, "pets", f"name: pets\nkind: coop\n{keys}\n", ["a/1.png"])
        inbox.write("pets/x.json", inbox.read("split.json"))
        (line,) = refused(entry)
        assert line.startswith("pets: ")
        assert "'.." in line


def test_links_do_not_lead_elsewhere(local: Store, tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    entry = entry_of(local, "pets", f"{CARD}shots: 0\n")
    folder = Path(entry.uri)
    before = refused(entry)
    assert before == ["domain.yaml: shots: must be greater than or equal to 1 (got 0)"]
    (folder / "train/cat/within.png").symlink_to("0.png")
    (folder / "train/cow").symlink_to(tmp_path / "secret")
    (folder / "train/dog/hosts.png").symlink_to("/etc/hosts")
    assert refused(entry) == [
        f"links that lead out of {entry.uri}: train/cow, train/dog/hosts.png; the data has to lie in the entry's own "
        "folder, unless whoever runs the job allows more",
    ]
    (folder / "domain.yaml").write_text(CARD)
    assert len(arrival_of(entry, outside=True).domain.train) == 10
    (Path(local.uri) / "linked").symlink_to(tmp_path / "secret")
    for name in ("_READY", "domain.yaml"):
        (tmp_path / "secret" / name).write_text(CARD)
    (linked,) = [e for e in scan(local.uri).entries if e.name == "linked"]
    assert refused(linked)[0].startswith(f"{linked.uri} is a link that leads out of {local.uri}; ")
    # Nor is anything written or removed where it leads.
    assert reject(linked, ["bad"]) is None
    (tmp_path / "secret/_REJECTED.json").write_text("theirs")
    clear_rejection(linked)
    assert (tmp_path / "secret/_REJECTED.json").read_text() == "theirs"


def test_a_card_that_is_a_link_tells_nothing_of_what_it_leads_to(local: Store, tmp_path: Path) -> None:
    (tmp_path / "secret.yaml").write_text("password: [hunter2\n")
    entry = entry_of(local, "pets", None)
    Path(entry.uri, "domain.yaml").symlink_to(tmp_path / "secret.yaml")
    (line,) = refused(entry)
    assert line.startswith(f"links that lead out of {entry.uri}: domain.yaml; ")
    assert refused(entry, outside=True)[0].startswith("domain.yaml, line 2")


def test_folders_that_link_to_each_other_are_refused(local: Store) -> None:
    entry = entry_of(local, "pets")
    for name in ("one", "two"):
        Path(entry.uri, name).mkdir()
    Path(entry.uri, "one/two").symlink_to("../two")
    Path(entry.uri, "two/one").symlink_to("../one")
    assert refused(entry) == [
        "links to folders: one/two, two/one; put the files there, or links to each of them"
    ]


def test_a_card_may_not_ask_for_too_much(local: Store) -> None:
    text = f"kind: folder\nname: {'n' * 101}\nprompt: '{{}}{'p' * 999}'\nclass_names: {{dog: {'d' * 201}}}\n"
    lines = refused(entry_of(local, "pets", f"{text}epochs: 10001\n"))
    assert [line.partition(" (got ")[0] for line in lines] == [
        "domain.yaml: name: string must have at most 100 characters",
        "domain.yaml: prompt: string must have at most 1000 characters",
        "domain.yaml: class_names.dog: string must have at most 200 characters",
        "domain.yaml: epochs: must be less than or equal to 10000",
    ]
    text = f"kind: folder\nname: {'n' * 100}\nprompt: '{{}}{'p' * 998}'\nclass_names: {{dog: {'d' * 200}}}\n"
    assert arrival_of(entry_of(local, "pets", f"{text}epochs: 10000\n")).domain.epochs == 10_000
    local.write("pets/domain.yaml", CARD.encode())
    for split in ("train", "test"):
        Path(local.uri, "pets", split, "dog").rename(Path(local.uri, "pets", split, "d" * 201))
    assert refused(entry_of(local, "pets", None, [])) == [
        f"pets: names of classes with more than 200 characters: '{'d' * 30}…'"
    ]


def test_too_few_images_to_test(local: Store) -> None:
    files = [f"{name}/{i}.png" for name in ("cat", "dog") for i in range(8)]
    entry = entry_of(local, "pets", CARD, [*files, "cow/1.png"])
    assert refused(entry) == [
        "pets: class 'cow' has 1 image, and needs two: one to learn from, one to test on",
        "pets: 4 test images; with fewer than 6 nobody can tell whether it was learnt: add images, or hold out more "
        "of them (test_share)",
    ]
    (Path(entry.uri) / "cow/1.png").rename(Path(entry.uri) / "cat/9.png")
    assert len(arrival_of(entry_of(local, "pets", f"{CARD}test_share: 0.6\n", [])).domain.test) >= 6


def test_classes_without_test_images_are_noted(local: Store) -> None:
    dogs = [path for path in (f"dog/{i}.png" for i in range(20)) if not in_test(path, 0.2, 0)]
    files = [f"cat/{i}.png" for i in range(60)] + dogs
    arrival = arrival_of(entry_of(local, "pets", CARD, files))
    assert len(arrival.domain.test) >= 6
    assert arrival.notes == ("pets: classes without test images: 'dog'",)


def test_names_that_cannot_be_written_down_are_refused(local: Store) -> None:
    entry = entry_of(local, "pets", f'{CARD}class_names: {{dog: "\\e[2Jdog"}}\n')
    os.rename(f"{entry.uri}/train/cat/0.png", os.fsencode(f"{entry.uri}/train/cat/") + b"\xff.png")
    assert refused(entry) == [
        "pets: names of classes with characters that cannot be shown: '\\x1b[2Jdog'",
        "pets: names of files that are no UTF-8: 'train/cat/\\udcff.png'; rename them",
    ]
    # A name of the owner's choice breaks neither the file nor a terminal.
    uri = reject(entry, ["\udcff\x1b[2J\n"])
    assert uri is not None
    assert json.loads(Path(uri).read_text())["problems"] == ["\\udcff\\x1b[2J\\n"]


def test_a_reader_that_stumbles_costs_this_entry_alone(local: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def stumble(self: object, storage: str) -> Domain:
        raise NotImplementedError("a strange file")

    entry = entry_of(local, "pets")
    monkeypatch.setattr(KINDS["folder"], "load", stumble)
    assert refused(entry) == ["pets: cannot be read: a strange file"]


def test_storage_that_cannot_be_reached_is_not_the_entrys_fault(
    local: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = entry_of(local, "pets")

    def gone(self: object, storage: str) -> Domain:
        Path(entry.uri, "domain.yaml").unlink()
        raise LadaError("no connection")

    monkeypatch.setattr(KINDS["folder"], "load", gone)
    with pytest.raises(LadaError, match="was taken away while it was looked at"):
        validate(entry, (), "unused")


# ---------------------------------------------------------------- what is recognised


def hashes(domain: Domain, changed: Mapping[str, str] = {}) -> dict[str, str]:
    """SHA-256 by URI; the test's images hold their own path."""
    samples = (*domain.train, *domain.test)
    return {s.uri: changed.get(s.path) or hashlib.sha256(s.path.encode()).hexdigest() for s in samples}


def learnt(arrival: Arrival, **changes: str) -> Known:
    domain = arrival.domain
    return Known(domain.name, domain.class_names, images_by_class(domain, hashes(domain, changes)))


def test_content_does_not_depend_on_names_order_or_folder() -> None:
    key = content_key({"cat": ["1", "2"], "dog": ["3"]})
    assert len(key) == 64
    assert content_key({"z": ["3"], "a": ["2", "1", "1"], "empty": []}) == key
    assert content_key({"cat": ["1"], "dog": ["2", "3"]}) != key
    assert content_key({"cat": ["1", "2"], "dog": ["3", "4"]}) != key
    assert content_key({"cat": ["1", "2"]}) != key
    assert content_key({"all": ["1", "2", "3"]}) != key


def test_images_by_class_takes_both_splits_and_leaves_out_bad_ones() -> None:
    def sample(path: str, label: int) -> Sample:
        return Sample(f"/d/{path}", path, label, 1, "")

    domain = Domain("d", ("a", "b"), (sample("1", 0), sample("2", 1)), (sample("3", 0), sample("4", 1)))
    shas = {"/d/1": "A", "/d/3": "C", "/d/4": "D"}
    assert images_by_class(domain, shas) == {"a": {"A", "C"}, "b": {"D"}}


def test_what_was_uploaded_again_is_recognised(inbox: Store) -> None:
    known = learnt(arrival_of(entry_of(inbox, "first")))
    again = arrival_of(
        entry_of(inbox, "again", "name: animals\nkind: folder\nclass_names: {cat: Katze}\n"), [known]
    )
    found = recognise(again, images_by_class(again.domain, hashes(again.domain)), [known])
    assert (found.same, found.content) == ("pets", known.content)
    assert found.notes == (
        "animals: all its images are those of the known domain pets: there is nothing to learn",
    )


def test_a_few_changed_images_are_noted(inbox: Store) -> None:
    arrival = arrival_of(entry_of(inbox, "first"))
    known, other = learnt(arrival), Known("birds", ("owl",), {"owl": ["x"]})
    renamed = replace(arrival, domain=replace(arrival.domain, name="animals"))
    images = images_by_class(renamed.domain, hashes(renamed.domain, {"train/cat/0.png": "new"}))
    found = recognise(renamed, images, [other, known])
    assert found.same is None
    assert found.notes == ("animals: 13 of its 14 images (92.9 %) are those of the known domain pets",)
    assert overlap_share(images, known.images) == pytest.approx(13 / 14)
    assert overlap_share({}, known.images) == overlap_share(images, {}) == 0.0


def test_another_domain_of_a_known_name_is_refused(inbox: Store) -> None:
    entry = entry_of(inbox, "first")
    arrival = arrival_of(entry)
    known = learnt(arrival, **{"test/dog/0.png": "another"})
    images = images_by_class(arrival.domain, hashes(arrival.domain))
    assert arrival_of(entry, [known]) == arrival  # until its images are known, they may be the same
    with pytest.raises(InputError) as caught:
        recognise(arrival, images, [known])
    assert caught.value.problems == [
        "pets: 13 of its 14 images (92.9 %) are those of the known domain pets",
        "pets: a known domain has this name; choose another one, or say extends: true if they are more images of its "
        "classes",
    ]
    # A model that does not tell its images knows names all the same.
    with pytest.raises(InputError, match="a known domain has this name"):
        recognise(arrival, images, [Known("pets", ("cat",))])


def test_more_images_of_known_classes(inbox: Store) -> None:
    files = [f"{split}/dog/{i}.png" for split in ("train", "test") for i in range(50, 53)]
    entry = entry_of(inbox, "more", f"{CARD}extends: true\n", files)
    known = learnt(arrival_of(entry_of(inbox, "first")))
    more = arrival_of(entry, [known])
    assert (more.card.extends, more.domain.class_names) == (True, ("dog",))
    images = images_by_class(more.domain, hashes(more.domain))
    found = recognise(more, images, [known])
    assert (found.same, found.notes) == (None, ())
    # Once it was learnt, the first upload, this one, and a part of both are known.
    tasks = [known, learnt(more)]
    assert recognise(more, images, tasks).same == "pets"
    part = {"dog": {*list(images["dog"])[:2], *list(known.images["dog"])[:2]}}
    assert recognise(more, part, tasks).same == "pets"
    assert recognise(more, {"cat": list(images["dog"])[:2]}, tasks).same is None
    assert recognise(more, {"dog": frozenset()}, tasks).same is None


def test_few_shots_that_come_again_with_more_images_are_learnt(local: Store) -> None:
    arrival = arrival_of(entry_of(local, "first"))
    known = replace(learnt(arrival), complete=False)
    images = images_by_class(arrival.domain, hashes(arrival.domain))
    more = {name: shas | {f"new {name} {i}" for i in range(50)} for name, shas in images.items()}
    assert recognise(arrival, more, [known]).same == "pets"
    (note,) = recognise(arrival, more, [known]).notes
    assert note.startswith("pets: its classes have the images that were learnt of the known domain pets")
    # A class more is something to learn, whatever it came along with.
    renamed = replace(arrival, domain=replace(arrival.domain, name="pets_2"))
    assert recognise(renamed, {**more, "horse": frozenset({"a horse"})}, [known]).same is None
    with pytest.raises(InputError, match="a known domain has this name"):
        recognise(arrival, {**more, "horse": frozenset({"a horse"})}, [known])
    extending = replace(arrival, card=Card(extends=True))
    assert recognise(extending, more, [known]).same is None
    assert recognise(extending, images, [known]).same == "pets"


def test_only_what_is_known_can_be_extended(inbox: Store) -> None:
    known = [Known("pets", ("cat", "dog")), Known("pets", ("dog", "horse"))]
    entry = entry_of(inbox, "more", "name: pet\nkind: folder\nextends: true\n")
    assert refused(entry, known) == [
        "pet: extends is true, and the model knows no domain of this name; did you mean pets?"
    ]
    card = f"{CARD}extends: true\nclass_names: {{cat: horses, dog: good dog}}\n"
    assert refused(entry_of(inbox, "more", card), known) == [
        "pets: extends is true, and the known domain has no class 'horses', 'good dog'; did you mean horse?; "
        "new classes make a domain of their own"
    ]


def test_many_class_names_find_room_in_a_card() -> None:
    text = yaml.safe_dump({"class_names": {f"n{i:08}": f"the name of class {i}" for i in range(1000)}})
    assert 10 * len(text) < CARD_LIMIT
    raw, problems = parse_card(text.encode())
    assert (len(raw["class_names"]), problems) == (1000, [])
