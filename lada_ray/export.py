"""A version of a production model as a folder that needs neither MLflow nor Ray nor the storage."""

from __future__ import annotations

from dataclasses import replace

from lada_ray.errors import InputError
from lada_ray.model import LadaModel
from lada_ray.production import Settings
from lada_ray.publish import load_state
from lada_ray.store import open_store
from lada_ray.versions import find_restorable, read_production


def export(settings: Settings, folder: str, number: int | None = None) -> str:
    """Write a model to a folder, for `LadaModel.load`.

    Args:
        settings: which model.
        folder: path or URI; must not hold another model.
        number: of the version; None: the champion.

    Returns:
        The folder's URI.

    Raises:
        InputError: there is no such version, it was forgotten, or the folder holds something.
        IntegrityError: a pack is missing or damaged.
    """
    model_store = settings.store.child("model")
    file = read_production(model_store)[0]
    target = open_store(folder)
    if next(iter(target.list()), None) is not None:
        raise InputError([f"{target.uri} is not empty: name a new folder"], "Nothing exported")
    if number is None:
        model = LadaModel.load(model_store.uri)
        # Who did what to the model is its keepers' business.
        LadaModel(replace(model.file, history=()), model.packs, calibration=model.calibration).save(folder)
    else:
        load_state(model_store.uri, file, find_restorable(file, number).state).save(folder)
    return target.uri
