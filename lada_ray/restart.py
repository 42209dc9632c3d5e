"""A configuration that learns all that a production model knows again from data: another encoder needs that."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from lada_ray.config import StreamConfig
from lada_ray.domains import KINDS, DomainSpec
from lada_ray.errors import InputError
from lada_ray.known import KnownDomain, read_known
from lada_ray.production import Settings
from lada_ray.versions import TOMBSTONE, Version, history, read_production, restorable


def restart_config(settings: Settings) -> tuple[StreamConfig, list[str]]:
    """What the champion knows as one stream's configuration, its domains in the order in which they were learnt.

    Args:
        settings: which model.

    Returns:
        The configuration, to be given another name; and what it cannot say.

    Raises:
        InputError: there is no such model, or the history does not tell where a domain came from.
    """
    config, file = settings.config(), read_production(settings.store.child("model"))[0]
    versions = history(file)
    if not versions:
        return config, []
    known = [read_known(settings.store, key) for key in versions[-1].state.domains]
    specs = {spec.name: spec for spec in config.domains} | dict(_arrived(versions))
    names = list(dict.fromkeys(one.name for one in known))
    if unknown := [name for name in names if name not in specs]:
        what = f"where the images of {', '.join(unknown)} came from is not recorded"
        raise InputError([f"{what}: take their domain.yaml from the inbox"], "No configuration")
    domains = tuple(specs[name] for name in names)
    # Before it is copied: what `--name` gives then is the other one's.
    return config.model_copy(update={"domains": domains}), list(_untold(config, versions, known))


def _arrived(versions: Sequence[Version]) -> Iterator[tuple[str, DomainSpec]]:
    """Each domain of an inbox as it was first learnt, where that was not forgotten."""
    for version in reversed(restorable(versions)):
        spec: dict[str, Any] = version.details.get("spec", {})
        if spec:
            yield spec["name"], KINDS[spec["kind"]].model_validate(spec)


def _untold(config: StreamConfig, versions: Sequence[Version], known: Sequence[KnownDomain]) -> Iterator[str]:
    """What one stream's configuration has no word for."""
    names = [one.name for one in known]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"{name} got more images later, which are not listed: put them into one folder"
    for version in versions:
        shots = version.details.get("shots")
        if shots not in (None, config.shots) and version.subject in names:
            yield f"{version.subject} was learnt with {shots} shots; here all domains have shots: {config.shots}"
        tombstone = version.details.get(TOMBSTONE)
        if tombstone and tombstone["domain"] in names and tombstone["class_name"]:
            yield f"the class {tombstone['class_name']} of {tombstone['domain']} was forgotten: remove its images"
