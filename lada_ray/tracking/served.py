"""What MLflow runs to serve a model ("models from code"): a copy of this file lies in every version's folder.

It is no module to import: MLflow executes it, asks for the model that it sets, and calls that. No pickle is involved.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext

from lada_ray.errors import InputError
from lada_ray.model import LadaModel
from lada_ray.serving import Service


class ServedModel(PythonModel):
    """`lada_ray.serving.Service`, as MLflow calls a model."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the model that lies in the version's folder."""
        self._service = Service(LadaModel.load(context.artifacts["model"]))

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Classify the images of the column `image`; see `lada_ray.tracking.pyfunc`.

        Raises:
            MlflowException: what `Service.predict` refuses; the server answers with status 400.
        """
        given = params or {}
        names = [str(name) for name in given.get("extra_classes") or ()]
        try:
            return self._service.predict(list(model_input["image"]), names, int(given.get("top_k", 1)))
        except InputError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from error


set_model(ServedModel())
