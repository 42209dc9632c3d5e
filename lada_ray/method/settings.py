"""The hyperparameters of LADA, with the values of the published runs as defaults, and the constants of RAIL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class LadaSettings:
    """What the method needs to know, besides data; names as in the paper where it has one."""

    alpha: float = 1.0
    """Weight of the memory logits beside the text logits."""
    beta: float = 1.0
    """Sharpness of the affinity exp(-beta (1 - cos))."""
    memory_per_class: int = 16
    """λ1, memory vectors per class."""
    mixture_components: int = 4
    """λ2, Gaussian components per class."""
    replay: bool = True
    """Replay features of older classes from their mixtures."""
    replay_noise: bool = True
    """Draw replayed features around the component means instead of replaying the means themselves."""
    replay_weight: float = 64.0
    """A replayed component of mixture weight π counts replay_weight · π, a current image 1."""
    replay_rows: int | None = 512
    """Components replayed per step, drawn anew (unbiased) where there are more; None: all of them."""
    text_tuner: Literal["adaptformer", "none"] = "adaptformer"
    tuner_bottleneck: int = 16
    epochs: int = 30
    lr: float = 1e-3
    """Peak learning rate of the one-cycle schedule."""
    weight_decay: float = 5e-4
    batch_size: int = 64
    pack_precision: Literal["float32", "float16"] = "float32"
    """In which text features, memory vectors and component means are kept."""


# RAIL's as published (method.rail says what each is).
DIMENSIONS = 15000
PRIMAL_RIDGE = 0.1
DUAL_RIDGE = 1e-3
GAMMA = 0.1
MIX = 0.8

FIXED: Mapping[str, Mapping[str, float]] = {
    "rail_primal": {"ridge": PRIMAL_RIDGE, "dimensions": DIMENSIONS, "mix": MIX},
    "rail_dual": {"ridge": DUAL_RIDGE, "gamma": GAMMA, "mix": MIX},
}
"""What decides the packs and predictions of a learner without settings, by kind: every pack keeps its own."""
