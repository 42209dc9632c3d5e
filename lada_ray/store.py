"""Where all state goes: one small set of storage operations over local folders and object stores.

Everything the project keeps (packs, `model.json`, leases, features, reports) is written and read through
`Store`, so that the rules which make a run survive being killed stand in one place: an object is there whole
or not at all, it can be written once (`create`), and it can be replaced only if it is still the one that was
read (`replace`).

Local folders and shared file systems: `LocalStore`, plain files (temporary file, fsync, rename). Object
stores (s3://, gs://, az://): `ObjectStore`, on obstore, with conditional puts. Both are pickled as their URI,
so they travel to Ray workers.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import os
import re
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol
from urllib.parse import unquote

from lada_ray.errors import Conflict, LadaError

if TYPE_CHECKING:
    import obstore.store

# Files of ours that stand beside the objects of a local store while they are being written; never listed.
TEMPORARY = ".lada-tmp-"
LOCK = ".lada-lock-"
# A lock is held for one read, one comparison and one rename: who waits longer waits for a stopped process or
# a broken mount.
LOCK_TIMEOUT = 30.0
READ_BUFFER = 64 * 1024


@dataclass(frozen=True)
class Entry:
    """One object in a listing.

    Attributes:
        key: path relative to the store's root, "/" between its parts.
        size: bytes.
        version: changes when the object does: its etag, for files the modification time in ns. Not
            `replace`'s token.
        modified: unix seconds.
    """

    key: str
    size: int
    version: str
    modified: float


class Store(Protocol):
    """A tree of objects under one URI.

    Keys are relative paths with "/" between the parts; absolute ones, empty parts, "." and ".." are refused
    with LadaError. An object that is not there raises FileNotFoundError naming its URI; whatever else goes
    wrong (permission, connection, disk full) raises LadaError.
    """

    @property
    def uri(self) -> str:
        """The root: an absolute local path, or scheme://bucket/prefix."""
        ...

    def read(self, key: str) -> bytes:
        """Return the whole object."""
        ...

    def read_version(self, key: str) -> tuple[bytes, str] | None:
        """Return the object and the token that `replace` takes as `expected`; None when it is absent."""
        ...

    def write(self, key: str, data: bytes) -> None:
        """Put the object there, whole or not at all; the last writer wins."""
        ...

    def create(self, key: str, data: bytes) -> bool:
        """Put the object there unless there is one already.

        Returns:
            False when something is there (on object stores perhaps our own earlier attempt whose answer was
            lost, so compare the contents before you conclude that somebody else wrote it).
        """
        ...

    def replace(self, key: str, data: bytes, expected: str | None) -> str:
        """Put the object there if the one that is there is still the one that was read.

        Args:
            key: the object.
            data: its new content. It should differ from every earlier one (carry a counter or an id), since
                stores tell contents apart, not writes.
            expected: token from `read_version` or an earlier `replace`; None: nothing may be there yet.

        Returns:
            The token of what was written.

        Raises:
            Conflict: somebody else replaced, created or deleted it (or our own attempt went through after
                all, as with `create`).
        """
        ...

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """Iterate over the objects in and below the folder `prefix`, sorted by key; none if it is absent."""
        ...

    def exists(self, key: str) -> bool:
        """Tell whether there is such an object (a folder is none)."""
        ...

    def stat(self, key: str) -> Entry:
        """Describe one object (FileNotFoundError when there is none), as `list` would."""
        ...

    def delete(self, key: str) -> None:
        """Remove the object; nothing happens when there is none."""
        ...

    def open(self, key: str) -> BinaryIO:
        """Open a seekable binary file; on object stores only what is asked for is fetched."""
        ...

    def child(self, prefix: str) -> Store:
        """Return the store whose root is the folder `prefix` of this one."""
        ...


def open_store(uri: str | Path) -> Store:
    """Return the store at a local path, file://, s3://, gs:// or az:// URI.

    Relative paths count from the working folder, ~ is expanded. Object stores take endpoint, region and
    credentials from their standard environment variables (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID,
    GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_ACCOUNT_NAME ...). Nothing is contacted yet.

    Raises:
        LadaError: the URI's scheme is none of these, or it names no bucket.
    """
    if is_remote(uri):
        return ObjectStore(str(uri))
    return LocalStore(_local_path(uri))


def is_remote(uri: str | Path) -> bool:
    """Tell whether the URI is one of an object store (LadaError when its kind is not supported)."""
    scheme = _scheme(uri)
    if scheme not in {"", "file", *_OBJECT_STORES}:
        supported = "a local path, file://, " + ", ".join(f"{name}://" for name in _OBJECT_STORES)
        raise LadaError(f"Storage at {uri}: {scheme}:// is not supported. Use {supported}.")
    return scheme in _OBJECT_STORES


def join(uri: str | Path, *parts: str) -> str:
    """Return the URI of something below `uri`. Nothing is escaped: "#" and "%" stand for themselves."""
    remote = is_remote(uri)
    base = str(uri) if remote or _scheme(uri) == "" else _local_path(uri)
    for part in parts:
        base = base.rstrip("/") + "/" + check_key(part)
    return base


def check_key(key: str) -> str:
    """Return the key itself, if it is a proper one (LadaError otherwise)."""
    parts = key.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\0" in key:
        raise LadaError(
            f"{key!r} cannot name an object in storage: use a relative path without empty parts, '.' or '..'."
        )
    if parts[-1].startswith((TEMPORARY, LOCK)):
        raise LadaError(
            f"{key!r} cannot name an object: {TEMPORARY}* and {LOCK}* are kept for temporary files."
        )
    return key


def _check_prefix(prefix: str) -> str:
    stripped = prefix.removesuffix("/")
    return check_key(stripped) if stripped else ""


def _scheme(uri: str | Path) -> str:
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", uri) if isinstance(uri, str) else None
    return match.group(1).lower() if match else ""


def _local_path(uri: str | Path) -> str:
    if _scheme(uri) == "":
        return os.path.abspath(os.path.expanduser(uri))
    path = unquote(str(uri)[len("file://") :])
    if path.startswith("localhost/"):
        path = path.removeprefix("localhost")
    if not path.startswith("/"):
        raise LadaError(f"{uri} names no absolute path: write file:///folder, or the path alone.")
    return os.path.abspath(path)


# ---------------------------------------------------------------- files


class LocalStore:
    """A folder on a local or shared file system; see `Store`.

    Args:
        root: absolute path; made at the first write.
    """

    def __init__(self, root: str) -> None:
        self.uri = root

    def __reduce__(self) -> tuple[Callable[[str], LocalStore], tuple[str]]:
        return LocalStore, (self.uri,)

    def __repr__(self) -> str:
        return f"LocalStore({self.uri!r})"

    def _path(self, key: str) -> str:
        return join(self.uri, key)

    def read(self, key: str) -> bytes:
        """See `Store.read`."""
        path = self._path(key)
        with _explained(path, "read"), open(path, "rb") as file:
            return file.read()

    def read_version(self, key: str) -> tuple[bytes, str] | None:
        """See `Store.read_version`; the token is the content's SHA-256."""
        try:
            data = self.read(key)
        except FileNotFoundError:
            return None
        return data, hashlib.sha256(data).hexdigest()

    def write(self, key: str, data: bytes) -> None:
        """See `Store.write`."""
        path = self._path(key)
        with _temporary_file(path, data) as temporary:
            os.replace(temporary, path)

    def create(self, key: str, data: bytes) -> bool:
        """See `Store.create`."""
        path = self._path(key)
        with _temporary_file(path, data) as temporary:
            return _link(temporary, path)

    def replace(self, key: str, data: bytes, expected: str | None) -> str:
        """See `Store.replace`. It excludes other `replace`s, not `write`s: never mix them on one object."""
        path = self._path(key)
        with _temporary_file(path, data) as temporary, _locked(path):
            found = self.read_version(key)
            if (found[1] if found else None) != expected:
                raise _conflict(path)
            if expected is None and not _link(temporary, path, locked=True):
                raise _conflict(path)
            if expected is not None:
                os.replace(temporary, path)
        return hashlib.sha256(data).hexdigest()

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """See `Store.list`.

        Links are followed (a folder that contains itself is not entered again). A link that leads nowhere is
        listed with size 0 and version "broken link", so that it is missed when it is read, not lost silently.
        """
        prefix = _check_prefix(prefix)
        folder = self._path(prefix) if prefix else self.uri
        return _walk(folder, f"{prefix}/" if prefix else "", frozenset())

    def exists(self, key: str) -> bool:
        """See `Store.exists`."""
        path = self._path(key)
        with _explained(path, "looked up"):
            return os.path.isfile(path)

    def stat(self, key: str) -> Entry:
        """See `Store.stat`."""
        path = self._path(key)
        with _explained(path, "looked up"):
            status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise _not_found(path)
        return Entry(key, status.st_size, str(status.st_mtime_ns), status.st_mtime)

    def delete(self, key: str) -> None:
        """See `Store.delete`."""
        path = self._path(key)
        with suppress(FileNotFoundError), _explained(path, "deleted"):
            os.unlink(path)

    def open(self, key: str) -> BinaryIO:
        """See `Store.open`."""
        path = self._path(key)
        with _explained(path, "read"):
            return open(path, "rb")

    def child(self, prefix: str) -> LocalStore:
        """See `Store.child`."""
        return LocalStore(self._path(prefix))


@contextmanager
def _explained(path: str, done: str) -> Iterator[None]:
    """Turn the operating system's errors into ours: what, where, what to do."""
    try:
        yield
    except OSError as error:
        if done != "written" and isinstance(
            error, FileNotFoundError | IsADirectoryError | NotADirectoryError
        ):
            raise _not_found(path) from None
        reason = error.strerror or str(error)
        raise LadaError(
            f"{path} cannot be {done}: {reason}. Check the folder's owner, permissions, free space and mount."
        ) from error


@contextmanager
def _temporary_file(path: str, data: bytes) -> Iterator[str]:
    """Hold `data` in a synced file beside `path`; killed meanwhile, we leave it there, unlisted."""
    folder = os.path.dirname(path)
    temporary = f"{folder}/{TEMPORARY}{uuid.uuid4().hex}"
    with _explained(path, "written"):
        os.makedirs(folder, exist_ok=True)
        try:
            # os.open, as tempfile's files can be read by their owner only, whatever the umask says.
            with open(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            yield temporary
            _sync_folder(folder)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(temporary)


def _sync_folder(folder: str) -> None:
    """Make a rename survive a power cut (some network mounts refuse this; they sync on their own)."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _link(temporary: str, path: str, locked: bool = False) -> bool:
    """Give the file its name unless the name is taken; on file systems without hard links under the lock."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
            raise
        if not locked:
            with _locked(path):
                return _link(temporary, path, locked=True)
        if os.path.lexists(path):
            return False
        os.replace(temporary, path)
    return True


@contextmanager
def _locked(path: str) -> Iterator[None]:
    """Hold the lock of one object, which dies with its holder. Its file stays behind, unlisted."""
    folder, name = os.path.split(path)
    lock = f"{folder}/{LOCK}{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}"
    descriptor = os.open(lock, os.O_CREAT | os.O_RDWR, 0o666)
    try:
        deadline = time.monotonic() + LOCK_TIMEOUT
        while not _try_lock(descriptor):
            if time.monotonic() > deadline:
                raise LadaError(
                    f"{path} cannot be replaced: another process has held its lock for {LOCK_TIMEOUT:.0f} s. "
                    f"Look for a stopped process that has {lock} open, and end it."
                )
            time.sleep(0.005)
        yield
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _not_found(uri: str) -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, "There is no such object in storage", uri)


def _conflict(uri: str) -> Conflict:
    return Conflict(
        f"{uri} is no longer the object that was read: another process replaced it. Read it again."
    )


def _walk(folder: str, base: str, above: frozenset[tuple[int, int]]) -> Iterator[Entry]:
    """Iterate over files below `folder` by key; `above` are the folders we are in, as (device, inode)."""
    found: list[tuple[str, os.DirEntry[str]]] = []
    with suppress(FileNotFoundError), _explained(folder, "listed"):
        status = os.stat(folder)
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            return
        above = above | {identity}
        with os.scandir(folder) as entries:
            # With its "/" a folder sorts among the files where the keys in it belong.
            found = [(e.name + "/" if _is_folder(e) else e.name, e) for e in entries]
    for name, entry in sorted(found, key=lambda pair: pair[0]):
        if name.endswith("/"):
            yield from _walk(entry.path, base + name, above)
        elif not name.startswith((TEMPORARY, LOCK)) and (item := _file_entry(entry, base + name)):
            yield item


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # entry.is_dir() raises for a link that leads to itself.
    return entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and os.path.isdir(entry.path))


def _file_entry(entry: os.DirEntry[str], key: str) -> Entry | None:
    """Describe the file; None for what is no regular file (a pipe would hang its reader) or has vanished."""
    link = entry.is_symlink()
    with suppress(FileNotFoundError), _explained(entry.path, "listed"):
        if link and not os.path.exists(entry.path):
            return Entry(key, 0, "broken link", entry.stat(follow_symlinks=False).st_mtime)
        if os.path.isfile(entry.path) if link else entry.is_file():
            status = entry.stat()
            return Entry(key, status.st_size, str(status.st_mtime_ns), status.st_mtime)
    return None


# ---------------------------------------------------------------- object stores

# Their schemes, and where obstore finds what it needs to reach them.
_OBJECT_STORES = {
    "s3": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL (~/.aws is not read)",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME, AZURE_STORAGE_ACCOUNT_KEY",
}
# obstore can neither write nor list names with these.
_CONTROL_CHARACTERS = re.compile("[\x00-\x1f\x7f]")
RETRY: obstore.store.RetryConfig = {"max_retries": 6, "retry_timeout": timedelta(seconds=30)}
_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound", "specified bucket does not exist")


class ObjectStore:
    """A bucket, or a folder in one, on S3, Google Cloud Storage or Azure; see `Store`.

    Args:
        uri: scheme://bucket or scheme://bucket/prefix, nothing in it escaped.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")
        self._scheme = _scheme(uri)
        bucket, _, prefix = self.uri.partition("://")[2].partition("/")
        if not bucket:
            raise LadaError(f"Storage at {uri}: it names no bucket. Write {self._scheme}://bucket/folder.")
        with _reached(self.uri, "opened"):
            self._client = _connect(self._scheme, bucket, _check_object_key(prefix) if prefix else None)

    def __reduce__(self) -> tuple[Callable[[str], ObjectStore], tuple[str]]:
        return ObjectStore, (self.uri,)

    def __repr__(self) -> str:
        return f"ObjectStore({self.uri!r})"

    def read(self, key: str) -> bytes:
        """See `Store.read`."""
        return self._get(key)[0]

    def read_version(self, key: str) -> tuple[bytes, str] | None:
        """See `Store.read_version`; the token is the etag, on Google Cloud Storage the generation."""
        try:
            data, meta = self._get(key)
        except FileNotFoundError:
            return None
        return data, self._token(key, meta)

    def _get(self, key: str) -> tuple[bytes, Any]:
        import obstore

        with _reached(join(self.uri, _check_object_key(key)), "read"):
            result = obstore.get(self._client, key)
            return result.bytes().to_bytes(), result.meta

    def _token(self, key: str, meta: Any) -> str:
        token = meta[self._token_name]
        if token is None:
            raise LadaError(
                f"{join(self.uri, key)}: this storage does not say which version of an object it returns: "
                "two runs could overwrite each other unnoticed. Use one with etags, or a shared file system."
            )
        return str(token)

    @property
    def _token_name(self) -> str:
        # Google's conditional put goes by generation; the others go by etag, and refuse a version they never
        # gave.
        return "version" if self._scheme == "gs" else "e_tag"

    def _put(self, key: str, data: bytes, mode: Any = None) -> Any:
        import obstore

        with _reached(join(self.uri, _check_object_key(key)), "written"):
            return obstore.put(self._client, key, data, mode=mode)

    def write(self, key: str, data: bytes) -> None:
        """See `Store.write`."""
        self._put(key, data)

    def create(self, key: str, data: bytes) -> bool:
        """See `Store.create`."""
        try:
            self._put(key, data, "create")
        except Conflict:
            return False
        return True

    def replace(self, key: str, data: bytes, expected: str | None) -> str:
        """See `Store.replace`."""
        mode = "create" if expected is None else {self._token_name: expected}
        return self._token(key, self._put(key, data, mode))

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """See `Store.list`. The empty objects that consoles make for folders ("folder/") are left out."""
        import obstore

        prefix = _check_prefix(prefix)
        with _reached(join(self.uri, prefix) if prefix else self.uri, "listed"):
            pages = obstore.list(self._client, prefix or None)
            metas = sorted((meta for page in pages for meta in page), key=lambda meta: meta["path"])
        for meta in metas:
            key, size = meta["path"], meta["size"]
            # obstore drops the "/" at the end of a folder's placeholder: asking tells it from an empty
            # object.
            if size == 0 and (key == prefix or not self.exists(key)):
                continue
            yield _object_entry(key, meta)

    def exists(self, key: str) -> bool:
        """See `Store.exists`."""
        try:
            self._head(key)
        except FileNotFoundError:
            return False
        return True

    def stat(self, key: str) -> Entry:
        """See `Store.stat`."""
        return _object_entry(key, self._head(key))

    def _head(self, key: str) -> Any:
        import obstore

        with _reached(join(self.uri, _check_object_key(key)), "looked up"):
            return obstore.head(self._client, key)

    def delete(self, key: str) -> None:
        """See `Store.delete`."""
        import obstore

        with suppress(FileNotFoundError), _reached(join(self.uri, _check_object_key(key)), "deleted"):
            obstore.delete(self._client, key)

    def open(self, key: str) -> BinaryIO:
        """See `Store.open`. An object that is replaced while it is read raises LadaError."""
        raw = _RangeReader(self._client, join(self.uri, key), key, self._head(key))
        return io.BufferedReader(raw, READ_BUFFER)

    def child(self, prefix: str) -> ObjectStore:
        """See `Store.child`."""
        return ObjectStore(join(self.uri, prefix))


def _object_entry(key: str, meta: Any) -> Entry:
    return Entry(key, meta["size"], meta["e_tag"] or str(meta["version"]), meta["last_modified"].timestamp())


class _RangeReader(io.RawIOBase):
    """Reads ranges of one object; io.BufferedReader makes a file of it."""

    def __init__(self, client: obstore.store.ObjectStore, uri: str, key: str, meta: Any) -> None:
        super().__init__()
        self._client, self._uri, self._key = client, uri, key
        self._size, self._etag, self._position = meta["size"], meta["e_tag"], 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise ValueError(f"{self._uri}: cannot seek to {start + offset}")
        self._position = start + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        import obstore

        end = min(self._position + len(buffer), self._size)
        if end <= self._position:
            return 0
        options: Any = {"range": (self._position, end)} | ({"if_match": self._etag} if self._etag else {})
        with _reached(self._uri, "read"):
            data = memoryview(obstore.get(self._client, self._key, options=options).bytes())
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def _connect(scheme: str, bucket: str, prefix: str | None) -> obstore.store.ObjectStore:
    from obstore.store import AzureStore, GCSStore, S3Store

    # No limit on a whole request (a pack may be large, a link slow), but on silence.
    client: Any = {"connect_timeout": "5s", "read_timeout": "60s", "timeout": "30m"}
    if scheme == "s3":
        names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
        if any(os.environ.get(name, "").startswith("http://") for name in names):
            client["allow_http"] = True
        return S3Store(bucket, prefix=prefix, client_options=client, retry_config=RETRY)
    if scheme == "gs":
        return GCSStore(bucket, prefix=prefix, client_options=client, retry_config=RETRY)
    return AzureStore(bucket, prefix=prefix, client_options=client, retry_config=RETRY)


def _check_object_key(key: str) -> str:
    check_key(key)
    if _CONTROL_CHARACTERS.search(key) or any("\ud800" <= character <= "\udfff" for character in key):
        raise LadaError(
            f"{key!r} cannot name an object in a bucket: control characters, or not Unicode. Rename it."
        )
    return key


@contextmanager
def _reached(uri: str, done: str) -> Iterator[None]:
    """Turn obstore's errors into ours: what, where, what to do."""
    from obstore import exceptions

    try:
        yield
    except (exceptions.AlreadyExistsError, exceptions.PreconditionError):
        if done == "written":
            raise _conflict(uri) from None
        raise LadaError(f"{uri} was replaced while it was being read. Start again.") from None
    except (FileNotFoundError, exceptions.BaseError, ValueError) as error:
        reason = " ".join(str(error).partition("\n\nDebug source")[0].split())[:500]
        if isinstance(error, FileNotFoundError) and done != "written" and not _names_no_bucket(reason):
            raise _not_found(uri) from None
        raise LadaError(
            f"{uri} cannot be {done}. {_advice(uri, error, reason)} The storage said: {reason}"
        ) from error


def _names_no_bucket(reason: str) -> bool:
    return any(sign in reason for sign in _NO_BUCKET)


def _advice(uri: str, error: Exception, reason: str) -> str:
    from obstore import exceptions

    settings = _OBJECT_STORES[_scheme(uri)]
    if _names_no_bucket(reason):
        return "There is no such bucket: make it, or correct its name, the endpoint or the region."
    if isinstance(error, exceptions.PermissionDeniedError | exceptions.UnauthenticatedError):
        return f"The credentials must allow list, get, put and delete there; they come from {settings}."
    if isinstance(error, exceptions.InvalidPathError):
        return "An object there has a name with empty parts or control characters: rename or remove it."
    return f"Check the network and the environment variables {settings}."
