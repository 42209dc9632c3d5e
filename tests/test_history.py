"""What people are told of a model's history."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lada_ray.console import Console
from lada_ray.errors import InputError
from lada_ray.history import History, log_lines, read_history, table_lines, version_lines, write_page
from lada_ray.production import Production, Settings
from lada_ray.versions import TOMBSTONE, Change


def settings(storage: Path) -> Settings:
    return Settings(model="lada", storage=str(storage))


@pytest.fixture
def told(two_versions: Path) -> History:
    """Three versions: three domains learnt; one left out, by force; and with a tombstone that says so."""
    with Production.open(settings(two_versions), Console(quiet=True)) as production:
        champion = production.champion
        details = {
            "forced": True,
            "gate": {"said": "passed", "checks": [{"said": "fruit (max_drop): <b>0.0</b>"}]},
            TOMBSTONE: {
                **{"domain": "toys", "class_name": "ball", "reason": "their owner asked", "images": 12},
                **{"views": 24, "packs": ["0" * 32], "versions": [1], "relearnt": False},
                "trained_beside": ["flags"],
            },
        }
        change = Change("forget", "toys: ball", champion.state, {"fruit": 3.25}, details)
        production.promote(champion, change)
    return read_history(settings(two_versions))


def test_a_line_for_each_version(told: History) -> None:
    lines = list(log_lines(told))
    assert [line.split()[0] for line in lines] == ["3", "2", "1"]
    assert [line.split("packs")[1].strip() for line in lines] == ["(champion, forced)", "", "(forgotten)"]
    assert all(version.digest[:12] in line for version, line in zip(told.versions[::-1], lines, strict=True))


def test_a_table_of_accuracies(told: History) -> None:
    assert told.table.loc[2, ["fruit", "flags"]].tolist() == [1.0, 2.0]
    assert np.isnan(told.table.loc[2, "toys"])
    table, legend, going_on = table_lines(told)
    assert "forget toys: ball" in table
    assert legend.endswith("the champion is version 3")
    assert "not deleted everywhere yet" in going_on


def test_a_version_in_full(told: History) -> None:
    lines = [line.strip() for line in version_lines(told, 3)]
    assert lines[0] == "version 3: forget toys: ball  (champion, forced)"
    assert sum(line.startswith("pack ") for line in lines) == 2
    for line in (
        "fruit: 3.25 %",
        "fruit (max_drop): <b>0.0</b>",
        "forgotten: the class ball of toys (their owner asked)",
        "deleted: 24 views of 12 images, 1 packs; versions that are gone with them: 1",
        "trained beside it, and not again since: flags",
    ):
        assert line in lines
    assert "3 packs, which are gone: something in them was forgotten" in "\n".join(version_lines(told, 1))
    with pytest.raises(InputError, match="no version 4"):
        list(version_lines(told, 4))


def test_the_page_shows_all_of_it_and_runs_nothing(told: History) -> None:
    html = Path(write_page(told).removeprefix("file://")).read_text()
    for text in ("their owner asked", "3.2", "rollback less", "&lt;b&gt;0.0&lt;/b&gt;"):
        assert text in html
    assert "<b>0.0</b>" not in html


def test_a_model_without_a_history_says_how_to_start_one(two_versions: Path, told: History) -> None:
    path = two_versions / "lada" / "model" / "model.json"
    path.write_bytes(replace(told.file, history=()).to_bytes())
    with pytest.raises(InputError, match=r"has no history yet: jobs/retrain\.py"):
        read_history(settings(two_versions))
