"""Going back is a new version, behind the gate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lada_ray import rollback as module
from lada_ray.console import Console
from lada_ray.errors import InputError
from lada_ray.gate import Limits
from lada_ray.known import KnownDomain
from lada_ray.model import LadaModel
from lada_ray.production import Production, Settings
from lada_ray.rollback import RolledBack, rollback
from lada_ray.versions import State, Version, history, read_production

QUIET = Console(quiet=True)


@pytest.fixture
def storage(two_versions: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What MLflow shows is another test's business."""
    monkeypatch.setattr(module, "publish", lambda production: True)
    return two_versions


def settings(storage: Path) -> Settings:
    return Settings(model="lada", storage=str(storage))


def back(storage: Path, number: int, limits: Limits | None = None, **more: Any) -> RolledBack:
    return rollback(settings(storage), number, limits=limits, console=QUIET, **more)


def versions(storage: Path) -> list[Version]:
    return history(read_production(settings(storage).store.child("model"))[0])


def test_going_back_is_a_new_version_of_the_same_packs(storage: Path) -> None:
    first = versions(storage)[0]
    done = back(storage, 1, Limits(max_drop=100, min_gain=0), reason="the new one was slow")
    assert (done.version, done.refused) == (3, False)
    newest = versions(storage)[-1]
    assert (newest.action, newest.subject, newest.state) == ("rollback", "1", first.state)
    assert newest.accuracy == first.accuracy
    assert newest.details["reason"] == "the new one was slow"
    # Both domains of the champion may not drop, and the one that comes back has to be worth it.
    checks = newest.details["gate"]["checks"]
    assert [(check["name"], check["domain"]) for check in checks] == [
        ("max_drop", "fruit"),
        ("max_drop", "flags"),
        ("min_gain", "toys"),
    ]
    after = {check["domain"]: check["after"] for check in checks}
    assert after == first.accuracy
    assert LadaModel.load(storage / "lada" / "model").domains == ["fruit", "flags", "toys"]

    again = back(storage, 1)
    assert (again.version, again.gate, again.refused) == (3, None, False)
    assert len(versions(storage)) == 3


def test_the_gate_refuses_and_force_overrules(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Nobody is as wrong about toys as one who is told other classes than they are.
    read = Production.known

    def swapped(production: Production, state: State) -> list[KnownDomain]:
        records = read(production, state)
        for known in records:
            if known.name == "toys":
                known.rows["label"] = (known.rows["label"] + 1) % 3
        return records

    monkeypatch.setattr(Production, "known", swapped)
    before = [version.digest for version in versions(storage)]
    done = back(storage, 1)
    assert (done.version, done.refused) == (2, True)
    assert done.gate is not None
    assert [check.domain for check in done.gate.blocked] == ["toys"]
    assert [version.digest for version in versions(storage)] == before

    done = back(storage, 1, force=True)
    assert (done.version, done.refused) == (3, False)
    assert versions(storage)[-1].details["forced"] is True


def test_a_version_that_never_was_is_refused(storage: Path) -> None:
    with pytest.raises(InputError, match=r"no version 7 \(versions: 1 to 2\)"):
        back(storage, 7)
