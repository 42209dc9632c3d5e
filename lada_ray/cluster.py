"""The Ray cluster: joining it, and sensible resources on a laptop, on one GPU and on many machines."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from lada_ray.config import ResourceConfig
from lada_ray.console import IMPORTS, START_RAY, Console
from lada_ray.errors import LadaError

GPU_SHARE = 0.25
# Of a test or a calibration: either finds room beside training on a small machine.
TASK_CPUS = 0.5
# Without GPUs: while one encoder waits for images, or hands features on, the other one has the cores.
ENCODERS_PER_NODE = 2


@dataclass(frozen=True)
class Resources:
    """Settled numbers of actors and workers, and the cores and GPUs of each."""

    encoders: int
    cpus_per_encoder: float
    gpus_per_encoder: float
    train_workers: int
    cpus_per_train_worker: float
    gpus_per_train_worker: float

    @property
    def gpu_share(self) -> float:
        """GPUs of a task that learns one of many streams side by side: its tasks are small, so some share a GPU."""
        return min(GPU_SHARE, self.gpus_per_train_worker)

    @property
    def precision(self) -> str:
        """Of the encoder where the configuration leaves it open: bf16 on GPUs, float32 on CPUs."""
        return "bf16" if self.gpus_per_encoder > 0 else "fp32"


def join_cluster() -> None:
    """Connect to the cluster that RAY_ADDRESS (or `ray job submit`, or `ray start` here) names, else start one here."""
    import ray

    if ray.is_initialized():
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        with _held_back_stderr():
            ray.init(log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
    # Ray raises many kinds here: no such host, a version that differs, a token that is missing or wrong.
    except Exception as error:
        address = os.environ.get("RAY_ADDRESS", "this machine")
        raise LadaError(
            f"cannot join the Ray cluster at {address}: {error}. Check RAY_ADDRESS, that Ray has the same version "
            "there, and RAY_AUTH_MODE and RAY_AUTH_TOKEN if it asks for a token; RAY_ADDRESS=local starts one here"
        ) from error
    if threading.current_thread() is threading.main_thread() and before is not None:
        # Ray's C++ core sets a handler that prints a stack and aborts: how schedulers end a job is no crash.
        signal.signal(signal.SIGTERM, before)


def join_while_importing(console: Console, *modules: str) -> None:
    """`join_cluster`, and import modules meanwhile: each takes seconds, and joining is mostly waiting for processes.

    What an import writes to stderr is held back with Ray's greeting.

    Args:
        console: shows how long starting Ray took, and how much longer the imports did.
        modules: what is imported soon. An error in one shows where it is needed.

    Raises:
        LadaError: the cluster cannot be joined.
    """
    with console.stage(IMPORTS):
        import ray  # noqa: F401 (before the thread: two should not load it at once)

    def load() -> None:
        for module in modules:
            with suppress(Exception):
                import_module(module)

    loading = threading.Thread(target=load, name="imports", daemon=True)
    loading.start()
    try:
        with console.stage(START_RAY):
            join_cluster()
    finally:
        with console.stage(IMPORTS):
            loading.join()


def result(reference: Any) -> Any:
    """`ray.get`, with an error of ours raised as itself: its message alone, not Ray's remote traceback around it.

    Raises:
        LadaError: raised in the task, or telling what became of the task (its node died, its code failed).
    """
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayError as error:
        raise cause(error) from error


def cause(error: BaseException) -> LadaError:
    """The error of ours behind an error of Ray's; else one that says in a line what happened."""
    seen: list[BaseException | None] = [error, getattr(error, "cause", None), error.__cause__]
    for one in seen:
        if isinstance(one, LadaError) and not hasattr(one, "cause"):
            return one
    inner = getattr(error, "cause", None) or error
    lines = [line for line in str(inner).strip().splitlines() if line.strip()]
    return LadaError(f"a Ray task failed: {type(inner).__name__}: {lines[-1] if lines else ''}")


def grouped(sizes: Sequence[int], most: int) -> list[tuple[int, int]]:
    """What each of several Ray tasks does: runs of items of at most `most` in all, or of a single larger one.

    Returns:
        (first item, item after the last) of each.
    """
    groups, start, total = [], 0, 0
    for i, size in enumerate(sizes):
        if i > start and total + size > most:
            groups.append((start, i))
            start, total = i, 0
        total += size
    return [*groups, (start, len(sizes))] if sizes else []


@contextmanager
def _held_back_stderr() -> Iterator[None]:
    """Ray's C++ core greets on file descriptor 2, whatever the log level; shown only if joining fails."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(kept, held.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def shortages(resources: Resources) -> list[str]:
    """What is asked for and the cluster does not have now: it waits for that, for ever unless nodes are added."""
    import ray

    have = ray.cluster_resources()
    asked = {
        "encoders": (resources.encoders, resources.cpus_per_encoder, resources.gpus_per_encoder),
        "train_workers": (
            resources.train_workers,
            resources.cpus_per_train_worker,
            resources.gpus_per_train_worker,
        ),
    }
    lines = []
    for name, (number, cpus, gpus) in asked.items():
        for what, each in (("CPU", cpus), ("GPU", gpus)):
            if number * each > have.get(what, 0):
                lines.append(
                    f"{number} {name} with {each:g} {what}s each are more than the cluster has now "
                    f"({have.get(what, 0):g}): unless it adds nodes, the run waits for ever; see --help, resources"
                )
    return lines


def settle_resources(config: ResourceConfig) -> Resources:
    """Fill in what the configuration leaves open from what the cluster has now.

    With GPUs: an encoder per GPU, training on one. Without: two encoders per node (one on a single core) that reserve
    half of its cores, and training with the same half. Either way encoders reserve at most half of all cores, so that
    reading and decoding always find free ones: else encoders would wait for images, and images for cores. A cluster
    that adds its GPUs on demand has none at the start: state `gpus_per_encoder` there.
    """
    import ray

    nodes = [n["Resources"] for n in ray.nodes() if n["Alive"] and n["Resources"].get("CPU", 0) > 0]
    gpus = sum(n.get("GPU", 0) for n in nodes)
    cores = min((n["CPU"] for n in nodes), default=1)
    per_encoder = config.gpus_per_encoder if config.gpus_per_encoder is not None else float(gpus > 0)
    on_gpu = per_encoder > 0
    half = 1.0 if on_gpu else float(cores // 2 or 0.5)
    per_node = ENCODERS_PER_NODE if cores > 1 and not on_gpu else 1
    pool = max(1, int(gpus // per_encoder)) if on_gpu else max(1, len(nodes)) * per_node
    encoders = config.encoders or pool
    most = half if config.encoders else half / per_node
    share = min(most, sum(n["CPU"] for n in nodes) / 2 / encoders if nodes else half)
    share = int(share) or share  # Ray takes no fractions above 1
    train_gpus = config.gpus_per_train_worker
    return Resources(
        encoders=encoders,
        cpus_per_encoder=config.cpus_per_encoder or share,
        gpus_per_encoder=per_encoder,
        train_workers=config.train_workers,
        cpus_per_train_worker=config.cpus_per_train_worker or half,
        gpus_per_train_worker=train_gpus if train_gpus is not None else float(on_gpu),
    )
