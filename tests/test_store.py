"""One contract, tested on a local folder and on an S3 server."""

from __future__ import annotations

import errno
import io
import os
import pickle
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lada_ray import store as store_module
from lada_ray.errors import Conflict, LadaError
from lada_ray.store import LOCK, TEMPORARY, Entry, LocalStore, ObjectStore, Store, is_remote, join, open_store

ODD_NAMES = [
    *("a b", "a#b", "a%20b", "100%", "a?b", "a+b", "a\\b", "[x]*{y}", "a'\"&b", "a:b;c=d,@!$"),
    *("Tür", "e\u0301", "\U0001f600.png", "~", " lead", ".hidden", "x."),
]


@pytest.fixture(params=["local", "s3"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "some folder")
    return join(request.getfixturevalue("s3"), uuid.uuid4().hex)


@pytest.fixture
def store(uri: str) -> Store:
    return open_store(uri)


@pytest.fixture
def local(tmp_path: Path) -> LocalStore:
    return LocalStore(str(tmp_path / "root"))


def keys(store: Store, prefix: str = "") -> list[str]:
    return [entry.key for entry in store.list(prefix)]


def run_processes(code: str, count: int, *arguments: str) -> list[str]:
    """Run the code in that many processes at once; what each one printed."""
    command = [sys.executable, "-c", code, *arguments]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(count)]
    printed = [process.communicate(timeout=60)[0].strip() for process in processes]
    assert [process.returncode for process in processes] == [0] * count
    return printed


# ---------------------------------------------------------------- the contract


def test_read_gives_what_was_written_and_the_last_writer_wins(store: Store) -> None:
    store.write("a/b.bin", b"first")
    store.write("a/b.bin", bytes(range(256)))
    assert store.read("a/b.bin") == bytes(range(256))
    store.write("empty", b"")
    assert store.read("empty") == b""


def test_objects_larger_than_one_upload_part(store: Store) -> None:
    data = os.urandom(1_000_000) * 12
    store.write("x", data)
    assert store.read("x") == data
    assert store.create("y", data)
    assert store.replace("y", data[1:], store.read_version("y")[1])  # type: ignore[index]
    assert store.read("y") == data[1:]


def test_what_is_absent_raises_file_not_found_with_its_uri(store: Store) -> None:
    store.write("folder/x", b"1")
    for key in ("nothing", "folder", "folder/x/y"):
        with pytest.raises(FileNotFoundError) as raised:
            store.read(key)
        assert raised.value.filename == join(store.uri, key)
        with pytest.raises(FileNotFoundError):
            store.open(key).read()
        assert store.read_version(key) is None
        assert not store.exists(key)
    assert store.exists("folder/x")


def test_create_writes_once(store: Store) -> None:
    assert store.create("packs/x", b"1")
    assert not store.create("packs/x", b"2")
    assert not store.create("packs/x", b"1")
    assert store.read("packs/x") == b"1"


def test_replace_only_what_was_read(store: Store) -> None:
    first = store.replace("model.json", b"1", None)
    assert store.read_version("model.json") == (b"1", first)
    second = store.replace("model.json", b"2", first)
    assert store.read_version("model.json") == (b"2", second)
    for stale in (first, None, "never given"):
        with pytest.raises(Conflict, match=r"model\.json"):
            store.replace("model.json", b"3", stale)
    assert store.read("model.json") == b"2"


def test_replace_of_what_was_deleted_is_a_conflict(store: Store) -> None:
    version = store.replace("x", b"1", None)
    store.delete("x")
    with pytest.raises(Conflict):
        store.replace("x", b"2", version)
    assert not store.exists("x")


def test_delete(store: Store) -> None:
    store.write("x", b"1")
    store.delete("x")
    store.delete("x")
    store.delete("never/there")
    assert keys(store) == []


def test_list_is_recursive_sorted_and_by_folder(store: Store) -> None:
    names = ["b", "a/x", "a-b/x", "a.x", "a/b/c", "aa/x", "B", "é", "\uffee", "\U0001f600"]
    for name in names:
        store.write(name, name.encode())
    assert keys(store) == sorted(names)
    assert keys(store, "a") == keys(store, "a/") == ["a/b/c", "a/x"]
    assert keys(store, "a/b") == ["a/b/c"]
    assert keys(store, "a.x") == keys(store, "nothing") == []
    entries = {entry.key: entry for entry in store.list()}
    assert entries["é"].size == 2
    assert abs(entries["é"].modified - time.time()) < 60
    assert all(entry.version for entry in entries.values())


def test_entry_version_changes_with_the_object(store: Store) -> None:
    store.write("x", b"1")
    before = list(store.list())
    assert list(store.list()) == before
    store.write("x", b"2")
    assert next(store.list()).version != before[0].version


def test_stat_is_the_entry_of_a_listing(store: Store) -> None:
    store.write("a/b #1", b"data")
    assert [store.stat("a/b #1")] == list(store.list())
    for absent in ("a", "c"):
        with pytest.raises(FileNotFoundError):
            store.stat(absent)


def test_child_is_a_folder_of_the_store(store: Store) -> None:
    child = store.child("model").child("packs/a")
    child.write("x", b"1")
    assert child.uri == join(store.uri, "model/packs/a")
    assert keys(store) == ["model/packs/a/x"]
    assert keys(child) == ["x"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names_round_trip(store: Store, name: str) -> None:
    key = f"{name}/{name}"
    store.write(key, b"1")
    assert keys(store) == keys(store, name) == [key]
    assert store.read(key) == store.open(key).read() == b"1"
    assert store.child(name).read(name) == b"1"
    assert open_store(join(store.uri, name)).read(name) == b"1"
    store.delete(key)
    assert keys(store) == []


@pytest.mark.parametrize(
    "key", ["", "/x", "x/", "a//b", ".", "a/../b", "..", "./a", "a\0b", f"a/{TEMPORARY}x", f"{LOCK}x"]
)
def test_improper_keys_are_refused(store: Store, key: str) -> None:
    for call in (store.read, store.delete, store.exists, store.open, store.read_version, store.child):
        with pytest.raises(LadaError, match="cannot name an object"):
            call(key)
    with pytest.raises(LadaError):
        store.write(key, b"1")


def test_open_seeks_and_reads_parts(store: Store) -> None:
    data = os.urandom(300_000)
    store.write("x", data)
    with store.open("x") as file:
        assert file.seek(-10, io.SEEK_END) == 299_990
        assert file.read() == data[-10:]
        assert file.seek(5) == 5
        assert file.read(200_000) == data[5:200_005]
        assert file.tell() == 200_005
        assert file.seek(400_000) == 400_000
        assert file.read(1) == b""


def test_parquet_columns_are_read_without_the_rest(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pa.table({"small": range(1000), "large": [os.urandom(2000) for _ in range(1000)]})
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    store.write("x.parquet", buffer.getvalue())
    fetched = count_fetched_bytes(monkeypatch)
    with store.open("x.parquet") as file:
        assert pq.ParquetFile(file).read(columns=["small"])["small"].to_pylist() == list(range(1000))
    if isinstance(store, ObjectStore):
        assert 0 < sum(fetched) < 300_000 < len(buffer.getvalue())


def count_fetched_bytes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    fetched: list[int] = []
    reader: Any = store_module._RangeReader
    real = reader.readinto

    def counted(self: Any, target: Any) -> int:
        fetched.append(real(self, target))
        return fetched[-1]

    monkeypatch.setattr(reader, "readinto", counted)
    return fetched


def test_stores_travel_as_their_uri(store: Store) -> None:
    store.write("x", b"1")
    copy = pickle.loads(pickle.dumps(store))
    assert (type(copy), copy.uri, copy.read("x")) == (type(store), store.uri, b"1")


CREATE = """
import sys, uuid
from lada_ray.store import open_store
store = open_store(sys.argv[1])
print(sum(store.create(f"packs/{i}", uuid.uuid4().bytes) for i in range(20)))
"""


def test_create_is_exclusive_among_processes(uri: str) -> None:
    assert sum(int(printed) for printed in run_processes(CREATE, 4, uri)) == 20


COUNT = """
import sys, time
from lada_ray.errors import Conflict
from lada_ray.store import open_store
store = open_store(sys.argv[1])
for _ in range(25):
    while True:
        data, version = store.read_version("count")
        time.sleep(0.001)  # so that the processes do meet
        try:
            store.replace("count", b"%d" % (int(data) + 1), version)
            break
        except Conflict:
            pass
"""


def test_replace_loses_no_update_among_processes(uri: str) -> None:
    open_store(uri).write("count", b"0")
    run_processes(COUNT, 4, uri)
    assert open_store(uri).read("count") == b"100"
    assert keys(open_store(uri)) == ["count"]


# ---------------------------------------------------------------- files


WRITE_FOREVER = """
import sys
from lada_ray.store import open_store
store = open_store(sys.argv[1])
store.write("x", b"2" * 100)
print("ready", flush=True)
while True:
    for size in (5_000_000, 100):
        store.write("x", b"%d" % (size % 7) * size)
"""


def test_killed_while_writing_leaves_whole_objects_only(local: LocalStore) -> None:
    whole = {b"%d" % (size % 7) * size for size in (100, 5_000_000)}
    for attempt in range(5):
        command = [sys.executable, "-c", WRITE_FOREVER, local.uri]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(0.03 + 0.013 * attempt)
            process.send_signal(signal.SIGKILL)
        assert keys(local) == ["x"]
        assert local.read("x") in whole
    assert local.replace("x", b"1", local.read_version("x")[1])  # type: ignore[index]


def test_leftover_temporary_files_and_locks_are_not_listed(local: LocalStore) -> None:
    local.write("a/x", b"1")
    Path(local.uri, "a", f"{TEMPORARY}123").write_bytes(b"half")
    Path(local.uri, "a", f"{LOCK}123").touch()
    assert keys(local) == keys(local, "a") == ["a/x"]


def test_files_are_readable_as_the_umask_says(local: LocalStore) -> None:
    old = os.umask(0o022)
    try:
        local.write("x", b"1")
    finally:
        os.umask(old)
    assert Path(local.uri, "x").stat().st_mode & 0o777 == 0o644


def test_links_are_followed_loops_are_not(tmp_path: Path, local: LocalStore) -> None:
    outside = tmp_path / "outside"
    (outside / "deep").mkdir(parents=True)
    (outside / "deep" / "x").write_bytes(b"123")
    local.write("real", b"1")
    root = Path(local.uri)
    (root / "folder").symlink_to(outside)
    (root / "file").symlink_to(outside / "deep" / "x")
    (outside / "loop").symlink_to(root)
    (root / "nowhere").symlink_to("gone")
    (root / "itself").symlink_to("itself")
    os.mkfifo(root / "pipe")
    sizes = {entry.key: (entry.size, entry.version == "broken link") for entry in local.list()}
    assert sizes == {
        "file": (3, False),
        "folder/deep/x": (3, False),
        "itself": (0, True),
        "nowhere": (0, True),
        "real": (1, False),
    }
    assert local.read("folder/deep/x") == b"123"
    with pytest.raises(FileNotFoundError):
        local.read("nowhere")


def test_names_that_are_no_unicode(local: LocalStore) -> None:
    local.write("x", b"1")
    name = os.fsdecode(b"caf\xe9 \n.png")
    Path(local.uri, name).write_bytes(b"2")
    assert keys(local) == [name, "x"]
    assert local.read(name) == b"2"


def test_listing_asks_once_per_folder(local: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in range(10):
        os.makedirs(f"{local.uri}/{folder}")
        for number in range(200):
            os.close(os.open(f"{local.uri}/{folder}/{number}", os.O_CREAT))
    asked: list[str] = []

    def counting(name: str) -> Any:
        real = getattr(os, name)
        return lambda *given, **more: asked.append(name) or real(*given, **more)

    for name in ("scandir", "stat"):
        monkeypatch.setattr(os, name, counting(name))
    assert len(keys(local)) == 2_000
    assert asked.count("scandir") == 11
    assert asked.count("stat") <= 11  # none per file beside the directory entry's own


def test_create_without_hard_links(local: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: str) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    assert local.create("x", b"1")
    assert not local.create("x", b"2")
    assert local.replace("y", b"1", None)
    with pytest.raises(Conflict):
        local.replace("y", b"2", None)
    assert (local.read("x"), local.read("y")) == (b"1", b"1")


def test_a_lock_that_is_never_released_is_reported(
    local: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "LOCK_TIMEOUT", 0.05)
    version = local.replace("x", b"1", None)
    with store_module._locked(f"{local.uri}/x"), pytest.raises(LadaError, match="stopped process"):
        local.replace("x", b"2", version)
    assert local.replace("x", b"2", version)


def test_trouble_says_what_where_and_what_to_do(local: LocalStore) -> None:
    local.write("file", b"1")
    with pytest.raises(LadaError, match=r"root/file/x cannot be written.*Check"):
        local.write("file/x", b"1")
    with pytest.raises(LadaError, match=r"cannot be written: File name too long"):
        local.write("x" * 300, b"1")
    local.write("folder/x", b"1")
    with pytest.raises(LadaError, match=r"root/folder cannot be written"):
        local.write("folder", b"1")
    assert keys(local) == ["file", "folder/x"]


# ---------------------------------------------------------------- object stores


def test_consoles_folder_placeholders_are_not_listed(s3: str) -> None:
    import boto3

    store = open_store(join(s3, "consoles"))
    for key in ("", "train/", "train/cat/", "train/cat/1.png", "empty/", "nothing"):
        boto3.client("s3").put_object(Bucket="lada-tests", Key=f"some folder/consoles/{key}", Body=b"")
    assert keys(store) == ["nothing", "train/cat/1.png"]
    assert keys(store, "train/cat") == ["train/cat/1.png"]


def test_names_that_a_bucket_cannot_have_are_refused(s3: str) -> None:
    store = open_store(s3)
    for name in ("a\tb", "a\nb", "\x7f", os.fsdecode(b"\xe9")):
        with pytest.raises(LadaError, match="Rename it"):
            store.write(name, b"1")
        with pytest.raises(LadaError, match="Rename it"):
            store.child(name)


def test_a_missing_bucket_is_named(s3: str) -> None:
    store = open_store("s3://no-such-bucket/x")
    for call in (lambda: store.read("y"), lambda: store.write("y", b""), lambda: list(store.list())):
        with pytest.raises(LadaError, match=r"s3://no-such-bucket/x.*no such bucket"):
            call()


def test_an_unreachable_server_is_named(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(store_module, "RETRY", {"max_retries": 0})
    with pytest.raises(LadaError, match=r"s3://b/k cannot be read\. Check the network and.*AWS_ENDPOINT_URL"):
        open_store("s3://b").read("k")


def test_an_incomplete_configuration_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_CONNECTION_STRING"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(LadaError, match=r"az://b cannot be opened\. Check .*AZURE_STORAGE_ACCOUNT_NAME"):
        open_store("az://b")


def test_refused_credentials_are_named(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from obstore import exceptions

    def refuse(*arguments: Any, **options: Any) -> None:
        raise exceptions.PermissionDeniedError("403")

    monkeypatch.setattr("obstore.put", refuse)
    with pytest.raises(
        LadaError, match=r"x cannot be written\. The credentials must allow.*AWS_ACCESS_KEY_ID"
    ):
        open_store(s3).write("x", b"1")


def test_an_object_replaced_while_it_is_read_is_noticed(s3: str) -> None:
    store = open_store(s3)
    store.write("big", b"1" * 200_000)
    with store.open("big") as file:
        assert file.read(1) == b"1"
        store.write("big", b"2" * 200_000)
        file.seek(150_000)
        with pytest.raises(LadaError, match="replaced while"):
            file.read(1)


# ---------------------------------------------------------------- URIs


def test_open_store_makes_paths_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert open_store("runs/../runs/x").uri == f"{tmp_path}/runs/x"
    assert open_store(Path("runs")).uri == f"{tmp_path}/runs"
    assert open_store("~/runs").uri == f"{tmp_path}/home/runs"
    assert open_store(f"file://{tmp_path}/a%20b%23").uri == f"{tmp_path}/a b#"
    assert open_store(f"file://localhost{tmp_path}").uri == str(tmp_path)
    assert open_store("/a b#%20").uri == "/a b#%20"
    assert list(open_store("not/there").list()) == []


def test_open_store_refuses_what_it_does_not_know() -> None:
    with pytest.raises(LadaError, match=r"hdfs://x: hdfs:// is not supported\. Use a local path.*s3://"):
        open_store("hdfs://x")
    assert open_store("S3://b/x/").uri == "S3://b/x"
    with pytest.raises(LadaError, match="names no bucket"):
        open_store("s3://")
    with pytest.raises(LadaError, match="names no absolute path"):
        open_store("file://server/share")


def test_join_and_is_remote() -> None:
    assert join("s3://b/p", "x") == "s3://b/p/x"
    assert join("s3://b/", "x", "y/z #") == "s3://b/x/y/z #"
    assert join("runs", "x") == "runs/x"
    assert join("/", "x") == "/x"
    assert join(Path("/a b"), "c") == "/a b/c"
    assert join("file:///a%20b", "c") == "/a b/c"
    assert [is_remote(uri) for uri in ("s3://b", "gs://b", "az://b", "b", "/b", "file:///b")] == [
        True
    ] * 3 + [False] * 3
    for part in ("/etc", "../x", ""):
        with pytest.raises(LadaError):
            join("s3://b", part)


def test_entry_is_a_value() -> None:
    assert Entry("x", 1, "v", 2.0) == Entry("x", 1, "v", 2.0)
