"""Teach a CLIP classifier one image domain after another on Ray, without forgetting (LADA, ICML 2025).

import lada_ray

config = lada_ray.StreamConfig.from_yaml("configs/demo.yaml", overrides={"method.beta": 2.0})
result = lada_ray.run_stream(config)
model = lada_ray.load(result.model_path)
model.predict(["photo.jpg"], extra_classes=["a class not learnt"])
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lada_ray.version import __version__

if TYPE_CHECKING:
    from lada_ray.config import StreamConfig
    from lada_ray.model import LadaModel
    from lada_ray.results import StreamResult
    from lada_ray.stream import run_stream
    from lada_ray.tracking import load

__all__ = ["LadaModel", "StreamConfig", "StreamResult", "__version__", "load", "run_stream"]

# Imported when first asked for: a Ray worker that only hashes files should not wait for torch and MLflow.
_HOMES = {
    "LadaModel": "lada_ray.model",
    "StreamConfig": "lada_ray.config",
    "StreamResult": "lada_ray.results",
    "load": "lada_ray.tracking",
    "run_stream": "lada_ray.stream",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'lada_ray' has no attribute {name!r}")
