"""Where the data of an entry may lie: in its own folder, unless whoever runs the job allows more."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Mapping, Sequence
from typing import Any

from lada_ray.config import is_relative
from lada_ray.domains import DomainSpec
from lada_ray.domains.base import absolute
from lada_ray.domains.listed import some
from lada_ray.domains.parts import split_part
from lada_ray.errors import LadaError
from lada_ray.inbox.entries import Entry
from lada_ray.inbox.folder import below
from lada_ray.store import is_remote, open_store


def with_paths(
    entry: Entry, spec: type[DomainSpec], raw: Mapping[str, Any], outside: bool
) -> tuple[dict[str, Any], dict[str, str]]:
    """A card's keys with paths counted from the entry's folder; and, by key, what leads out of it."""
    result, out = dict(raw), {}
    root = spec.model_fields.get("root")
    if root is not None and root.is_required() and raw.get("root") is None:
        result["root"] = entry.uri
    for key in spec.path_fields:
        value = raw.get(key)
        if not isinstance(value, str) or not value.strip():
            continue  # absent, or refused with the other keys
        try:
            result[key] = _located(value, entry.uri)
        except (ValueError, LadaError):
            continue
        if not outside and not _inside(result[key], entry.uri):
            out[key] = f"{key}: {value!r} leads out of {entry.uri}; {OUTSIDE}"
    return result, out


OUTSIDE = "the data has to lie in the entry's own folder, unless whoever runs the job allows more"


def _located(value: str, folder: str) -> str:
    """Where a path or URI in domain.yaml leads, a relative one counted from the entry's folder."""
    if not is_relative(value):
        return absolute(value)
    if not is_remote(folder):
        return os.path.normpath(os.path.join(folder, value))
    scheme, _, path = folder.partition("://")
    return f"{scheme}://{posixpath.normpath(posixpath.join(path, value))}"


def _inside(uri: str, folder: str) -> bool:
    """Whether a path or URI leads into a folder, ".." and "." taken for what they mean."""
    where, base = _normal(split_part(uri)[0]), _normal(folder)
    return where == base or where.startswith(base.rstrip("/") + "/")


def _normal(uri: str) -> str:
    if not is_remote(uri):
        return open_store(uri).uri
    scheme, _, path = uri.partition("://")
    return f"{scheme.lower()}://{posixpath.normpath(path)}"


def images_out(entry: Entry, name: str, uris: Mapping[str, str]) -> list[str]:
    """One line about images of a domain of this name, given by their paths, that lie outside the entry's folder."""
    out = [path for path, uri in uris.items() if not _inside(uri, entry.uri)]
    if not out:
        return []
    return [f"{name}: images outside {entry.uri}: {some(out)}; {OUTSIDE}"]


def links_out(folder: str) -> list[str]:
    """What is wrong with the links in an entry's folder; nothing in an object store, which has no links."""
    if is_remote(folder):
        return []
    real, inbox = os.path.realpath(folder), os.path.realpath(os.path.dirname(folder))
    if not _inside(real, inbox):
        return [f"{folder} is a link that leads out of {inbox}; {OUTSIDE}"]
    try:
        links = sorted(entry.path for entry in below(folder) if entry.is_symlink())
    except OSError as error:
        return [f"{folder} cannot be listed: {error.strerror}: {error.filename}"]
    out = [link for link in links if not _inside(os.path.realpath(link), real)]
    # A few folders that link to each other have more paths than can ever be listed.
    folders = [link for link in links if os.path.isdir(link) and link not in out]
    lines = []
    if out:
        lines.append(f"links that lead out of {folder}: {_named(out, folder)}; {OUTSIDE}")
    if folders:
        lines.append(
            f"links to folders: {_named(folders, folder)}; put the files there, or links to each of them"
        )
    return lines


def _named(links: Sequence[str], folder: str) -> str:
    return some([os.path.relpath(link, folder) for link in links])
