"""Chunks follow paths alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lada_ray.prediction import listing
from lada_ray.prediction.listing import Chunk, cut, list_folder
from lada_ray.store import Entry
from tests.prediction.conftest import IMAGES


def test_chunks_follow_the_paths_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [Entry(f"{i:05d}.png", 10, "1", 0.0) for i in range(20_000)]
    chunks = list(cut(entries))
    assert [e for chunk in chunks for e in chunk.entries] == entries
    sizes = [len(chunk.entries) for chunk in chunks]
    assert max(sizes) <= listing.CHUNK_LIMIT
    assert 500 < np.mean(sizes) < 2000
    names = {chunk.name for chunk in chunks}
    more = sorted([*entries, Entry("07000b.png", 10, "1", 0.0)], key=lambda e: e.key)
    assert len({chunk.name for chunk in cut(more)} - names) <= 2
    touched = [replace(e, version="2") if e.key == "00003.png" else e for e in entries]
    assert len({chunk.name for chunk in cut(touched)} - names) == 1
    monkeypatch.setattr(listing, "CHUNK_LIMIT", 100)
    assert max(len(chunk.entries) for chunk in cut(entries)) == 100
    assert list(cut([])) == []


def test_a_listing_reads_nothing(images: Path) -> None:
    found = list_folder(str(images))
    assert (found.images, found.others, len(found.chunks)) == (IMAGES, 1, 1)
    assert isinstance(found.chunks[0], Chunk)
