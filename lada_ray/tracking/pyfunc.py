"""A model as an MLflow pyfunc: a folder that `mlflow models serve` answers requests from, without any pickle.

    MLmodel, requirements.txt, ...   MLflow's own
    served.py                        what MLflow executes
    artifacts/model/                 the model, as `LadaModel.save` writes it: `lada_ray.load` reads this alone
    code/lada_ray/                   what it needs of the package that made it, which is in no package index

The request (`/invocations`, JSON; in a notebook a DataFrame whose column `image` holds bytes):

    {"dataframe_split": {"columns": ["image"], "data": [["<an image file in base64>"], ...]},
     "params": {"extra_classes": ["zebra crossing"], "top_k": 3}}

The answer is a list of rows `image` (position in the request), `rank`, `domain`, `class`, `score` and `error`
(`lada_ray.serving.Service.predict`). An image that cannot be used costs its row; a request beyond the limits
(`lada_ray.serving.Limits`), or with text that is not base64 at all, is answered with status 400.
"""

from __future__ import annotations

import io
import shutil
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from lada_ray.config import DEMO
from lada_ray.encoder.resolve import SHIPPED
from lada_ray.model import LadaModel
from lada_ray.tracking.connection import quiet_client

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.models import ModelSignature

PACKAGE = Path(__file__).parent.parent
MODEL_INSIDE = "artifacts/model"
"""Where the model lies in the folder."""
REQUIRED = (
    *("mlflow", "torch", "torchvision", "open_clip_torch", "safetensors", "scikit-learn"),
    *("numpy", "pandas", "pillow", "pydantic", "pyyaml"),
)
"""What serving imports; lada_ray itself comes along as code."""
CODE = (
    *("__init__", "version", "errors", "store", "domains", "config", "pixels", "views", "encoder", "method"),
    *("pack", "calibration", "head", "model", "serving"),
)
"""The modules of lada_ray that serving imports: an upload to a server takes a request per file."""


def save_pyfunc(save: Callable[[Path], None], path: Path) -> None:
    """Write a model as a pyfunc's folder.

    Args:
        save: writes the model to a folder, as `LadaModel.save` does.
        path: the pyfunc's folder; must not be there yet.
    """
    with quiet_client(), tempfile.TemporaryDirectory(prefix="lada_ray_") as temporary:
        from mlflow import pyfunc

        model, code = Path(temporary) / "model", Path(temporary) / "lada_ray"
        save(model)
        _copy_package(code, with_demo=LadaModel.load(model).spec.pretrained == DEMO)
        pyfunc.save_model(
            path=str(path),
            python_model=str(Path(__file__).with_name("served.py")),
            artifacts={"model": str(model)},
            code_paths=[str(code)],
            pip_requirements=requirements(),
            signature=signature(),
            input_example=(_example(), {"extra_classes": ["zebra crossing"], "top_k": 3}),
            uv_project_path=temporary,  # else it copies pyproject.toml and uv.lock from wherever we are
        )


def requirements() -> list[str]:
    """The versions that run here, for pip; without local parts such as +cpu, which no package index has."""
    return [f"{name}=={version(name).partition('+')[0]}" for name in REQUIRED]


def signature() -> ModelSignature:
    """What a request holds, and what an answer does."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

    answer: dict[str, DataType] = {
        "image": DataType.long,
        "rank": DataType.long,
        "domain": DataType.string,
        "class": DataType.string,
        "score": DataType.double,
        "error": DataType.string,
    }
    optional = ("domain", "class", "score", "error")
    params = [
        ParamSpec("extra_classes", DataType.string, [], shape=(-1,)),
        ParamSpec("top_k", DataType.long, 1),
    ]
    return ModelSignature(
        inputs=Schema([ColSpec(DataType.binary, "image")]),
        outputs=Schema([ColSpec(kind, name, name not in optional) for name, kind in answer.items()]),
        params=ParamSchema(params),
    )


def _example() -> pd.DataFrame:
    import pandas as pd
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (8, 8), "teal").save(file, "PNG")
    return pd.DataFrame({"image": [file.getvalue()]})


def _copy_package(target: Path, with_demo: bool) -> None:
    """Copy the modules that serving imports, and the demo's encoder for a model that names it."""
    wanted = (*CODE, SHIPPED.name) if with_demo else CODE

    def unneeded(folder: str, names: list[str]) -> list[str]:
        inside = Path(folder)
        if inside == PACKAGE:
            return [name for name in names if name.removesuffix(".py") not in wanted]
        return [name for name in names if name == "__pycache__"]

    shutil.copytree(PACKAGE, target, ignore=unneeded)
