"""Every random draw of training, as a pure function of (seed, task, step): stopping and going on is harmless.

NumPy's Philox generator is used everywhere, on the CPU: its streams are the same on every machine, so a run
on a GPU, or one that is split over workers, sees the same batches, views and noise.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
import torch

GOLDEN = (5**0.5 - 1) / 2


def generator(seed: int, purpose: str, *position: int) -> np.random.Generator:
    """An independent stream for one purpose at one position, such as (task, step)."""
    tag = int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:8], "big")
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, tag, *position])))


def torch_generator(seed: int, purpose: str, *position: int) -> torch.Generator:
    """Like `generator`, for torch's own initialisers (CPU)."""
    value = generator(seed, purpose, *position).integers(2**63 - 1)
    return torch.Generator().manual_seed(int(value))


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Steps of an epoch; the last partial batch is kept."""
    return -(-images // batch_size)


def batch_rows(seed: int, task: int, step: int, images: int, batch_size: int) -> npt.NDArray[np.int64]:
    """Which images make up the batch of a step: a slice of the epoch's own permutation, [<= batch_size]."""
    epoch, part = divmod(step, steps_per_epoch(images, batch_size))
    order = generator(seed, "order", task, epoch).permutation(images)
    return order[part * batch_size : (part + 1) * batch_size]


def view_choice(seed: int, task: int, step: int, rows: int, views: int) -> npt.NDArray[np.int64]:
    """Which of its `views` stored views each row of the batch shows at this step, [rows]."""
    return generator(seed, "view", task, step).integers(views, size=rows)


def replay_start(seed: int, task: int, step: int) -> float:
    """Where a step's draw of components starts, in [0, 1): uniform over seeds, evenly spread over following steps.

    Steps of the golden ratio leave no part of [0, 1) unvisited for long, so that every component's turn comes.
    """
    return (generator(seed, "replay", task).random() + step * GOLDEN) % 1.0


def replay_noise(seed: int, task: int, step: int, components: int, width: int) -> npt.NDArray[np.float32]:
    """Standard normal noise for every replayed component at this step, [components, width]."""
    return generator(seed, "noise", task, step).standard_normal((components, width), np.float32)
