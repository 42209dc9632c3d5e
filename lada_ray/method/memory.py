"""Label-specific memory vectors: their k-means initialisation and their logits.

    memory_j(z) = Σ_l φ(z·w_{j,l}),   φ(x) = exp(-β (1 - x))

The sum runs over class j's own vectors only. It is computed as a grouped sum: a dense (all vectors x all
classes) matrix, as a cache-style classifier would use, is never built.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lada_ray.method.kmeans import (
    MOST_IMAGES,
    batches,
    distinct_counts,
    distinct_rows,
    inner_products,
    kmeans,
    one_thread,
)

# The method keeps these fixed, whatever the run's seed: runs with the same shots share their k-means.
KMEANS_SEED = 42
KMEANS_INITS = 10

# Affinities [N, classes, L] held at once without gradients: 2^25 float32 are 128 MiB. On a CPU, 4 MiB at once stay in
# its cache between the product and the sum, which are a quarter faster so.
MAX_AFFINITIES = 2**25
CPU_AFFINITIES = 2**20


def init_memory(unit_features: npt.NDArray[np.floating], vectors: int) -> npt.NDArray[np.float32]:
    """Initial memory vectors of one class.

    Args:
        unit_features: unit features of the class's training images under the deterministic view, [n, d],
            n >= 1.
        vectors: λ1, the number of memory vectors wanted.

    Returns:
        k-means centres (10 inits, fixed seed), [λ1, d]; with λ1 or fewer distinct images the distinct
        features themselves, [distinct, d]. Centres are means of unit vectors, not normalised again.
    """
    return init_memories([unit_features], vectors)[0]


def init_memories(classes: Sequence[npt.NDArray[np.floating]], vectors: int) -> list[npt.NDArray[np.float32]]:
    """`init_memory` of many classes, each [n_j, d]: those with equally many images are done at once.

    The vectors of a class do not depend, in any bit, on the classes that are done with it.
    """
    made: dict[int, npt.NDArray[np.float32]] = {}
    with one_thread():
        for group in batches([len(rows) for rows in classes], vectors * KMEANS_INITS):
            made |= zip(group, _init_equal([classes[j] for j in group], vectors), strict=True)
    return [made[j] for j in range(len(classes))]


def _init_equal(classes: Sequence[npt.NDArray[np.floating]], vectors: int) -> list[npt.NDArray[np.float32]]:
    """Initial memory of classes of equally many images."""
    images = len(classes[0])
    if images <= vectors:
        return [distinct_rows(rows).astype(np.float32) for rows in classes]
    rows = np.stack(classes).astype(np.float64)
    if images > MOST_IMAGES:
        return [_init_large(one, vectors) for one in rows]
    gram = inner_products(rows)
    many = distinct_counts(rows, gram) > vectors
    made = {b: distinct_rows(classes[b]).astype(np.float32) for b in np.flatnonzero(~many).tolist()}
    if many.any():
        centres = kmeans(gram[many], vectors, KMEANS_INITS, KMEANS_SEED).coefficients @ rows[many]
        made |= zip(np.flatnonzero(many).tolist(), centres.astype(np.float32), strict=True)
    return [made[b] for b in range(len(classes))]


def _init_large(rows: npt.NDArray[np.float64], vectors: int) -> npt.NDArray[np.float32]:
    """Initial memory of one class of many images, with scikit-learn itself."""
    from sklearn.cluster import KMeans  # slow to import, and few classes have so many images

    distinct = distinct_rows(rows)
    if len(distinct) <= vectors:
        return distinct.astype(np.float32)
    model = KMeans(n_clusters=vectors, n_init=KMEANS_INITS, random_state=KMEANS_SEED)
    return model.fit(rows).cluster_centers_.astype(np.float32)


def stack_memory(
    groups: list[npt.NDArray[np.float32]],
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Pad the memory vectors of several classes, each [L_j, d], to one array.

    Returns:
        memory [C, L, d] with L = max L_j, zeros where a class has fewer vectors, and the mask [C, L] of real
        vectors.
    """
    longest = max(len(group) for group in groups)
    memory = np.zeros((len(groups), longest, groups[0].shape[1]), np.float32)
    mask = np.zeros((len(groups), longest), np.bool_)
    for j, group in enumerate(groups):
        memory[j, : len(group)] = group
        mask[j, : len(group)] = True
    return memory, mask


def memory_logits(unit_features: Tensor, memory: Tensor, beta: float, mask: Tensor | None = None) -> Tensor:
    """Grouped sums of affinities between features and each class's own memory vectors.

    Args:
        unit_features: z, [N, d], rows of unit length.
        memory: w, [C, L, d].
        beta: sharpness β of the affinity exp(-β (1 - z·w)).
        mask: which of the vectors exist, [C, L] boolean; None when all do.

    Returns:
        [N, C]. Without gradients the classes are done in chunks, so that few affinities exist at once; with gradients
        the caller bounds N (`objective.weighted_loss_backward`).
    """
    classes, length, _ = memory.shape
    if torch.is_grad_enabled() and (memory.requires_grad or unit_features.requires_grad):
        return _grouped_affinity(unit_features, memory, beta, mask)
    logits = unit_features.new_empty(len(unit_features), classes)
    most = CPU_AFFINITIES if memory.device.type == "cpu" else MAX_AFFINITIES
    step = max(1, most // max(1, len(unit_features) * length))
    for start in range(0, classes, step):
        part = slice(start, start + step)
        logits[:, part] = _grouped_affinity(
            unit_features, memory[part], beta, None if mask is None else mask[part]
        )
    return logits


def _grouped_affinity(unit_features: Tensor, memory: Tensor, beta: float, mask: Tensor | None) -> Tensor:
    cosines = (unit_features @ memory.flatten(0, 1).T).unflatten(1, memory.shape[:2])
    if not cosines.requires_grad:
        # In place: beside the product itself, moving the affinities through memory is what takes the time.
        affinities = cosines.sub_(1.0).mul_(beta).exp_()
        return (affinities if mask is None else affinities.mul_(mask)).sum(-1)
    affinities = torch.exp(beta * (cosines - 1.0))
    if mask is not None:
        affinities = affinities * mask
    return affinities.sum(-1)
