"""A model on its way to the nodes of a cluster."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lada_ray.cluster import result
from lada_ray.encoder import EncoderSpec
from lada_ray.model import LadaModel


@dataclass(frozen=True)
class Shipment:
    """A model in the cluster's object store, without its encoder's weights; `send` makes one."""

    spec: EncoderSpec
    model: Any
    """Reference to (ModelFile, packs, calibration)."""
    node: str
    """The driver's. Weights that are a file there (MLflow's download, say) other nodes may not have."""

    @classmethod
    def send(cls, model: LadaModel) -> Shipment:
        """Put a model into the object store; its encoder's weights stay where they are."""
        import ray

        node = ray.get_runtime_context().get_node_id()
        return cls(model.spec, ray.put((model.file, model.packs, model.calibration)), node)

    @contextmanager
    def received(self) -> Iterator[tuple[EncoderSpec, LadaModel]]:
        """What to build the encoder of on this node, and the model without it."""
        import ray

        file, packs, calibration = ray.get(self.model)
        model, weights = LadaModel(file, packs, calibration=calibration), Path(self.spec.pretrained)
        if not weights.is_absolute() or weights.is_file():
            yield self.spec, model
            return
        folder = tempfile.mkdtemp(prefix="lada_ray-")
        try:
            copy = Path(folder) / weights.name
            copy.write_bytes(read_on(self.node, weights))
            yield replace(self.spec, pretrained=str(copy)), model
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def read_on(node: str, file: Path) -> bytes:
    """The content of a file on another node of the cluster.

    Raises:
        LadaError: it cannot be read there.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node, soft=False)
    task: Any = ray.remote(Path.read_bytes)
    return result(task.options(num_cpus=0, scheduling_strategy=there).remote(file))
