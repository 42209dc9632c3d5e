"""Imports MLflow, for whoever has seconds to spare before it is needed: as quietly as it is used, without telemetry."""

from lada_ray.tracking.connection import quiet_client

with quiet_client():
    import mlflow  # noqa: F401
