"""Logits over all seen classes and the weighted cross-entropy, with its gradient, in bounded memory."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lada_ray.method.memory import memory_logits

# Rows x (classes + the task's affinities) held at once with gradients: 2^25 float32 are 128 MiB.
MAX_LOGITS = 2**25


class Classifier(NamedTuple):
    """Everything frozen or trained that turns a unit feature into logits over C classes.

    text: unit text features, [C, d]. memory: [B, L, d], a block of vectors for each class in order. mask: [B, L].
    owner: the class of each block, [B], where a class that was learnt in several tasks has several; its memory logit
    is the largest of their sums. None: a block per class.
    """

    text: Tensor
    memory: Tensor
    mask: Tensor
    owner: Tensor | None = None

    def at_mean_memory(self) -> Classifier:
        """The same classes with one memory vector a block, the mean, that is counted as often as the block has vectors.

        A block's sum of affinities takes λ1 times fewer products so, and stays close where its vectors are.
        """
        exists = self.mask.to(self.memory.dtype)
        count = exists.sum(1, keepdim=True)
        mean = torch.einsum("bl,bld->bd", exists, self.memory) / count.clamp(min=1)
        return self._replace(memory=mean[:, None], mask=count)


class Rows(NamedTuple):
    """The rows of a step: unit features [N, d], global labels [N], weights [N]."""

    features: Tensor
    labels: Tensor
    weights: Tensor


def class_logits(unit_features: Tensor, classes: Classifier, tau: float, alpha: float, beta: float) -> Tensor:
    """logit_j(z) = τ z·t̂_j + α memory_j(z), [N, C]."""
    logits = tau * unit_features @ classes.text.T
    if alpha == 0 or len(classes.memory) == 0:
        return logits
    return logits + alpha * class_memory(unit_features, classes, beta)


def class_memory(unit_features: Tensor, classes: Classifier, beta: float) -> Tensor:
    """memory_j(z), the largest over a class's blocks, [N, C]."""
    sums = memory_logits(unit_features, classes.memory, beta, classes.mask)
    if classes.owner is None:
        return sums
    largest = sums.new_full((len(sums), len(classes.text)), -torch.inf)
    return largest.scatter_reduce(1, classes.owner.expand(len(sums), -1), sums, "amax")


def task_logits(
    unit_features: Tensor,
    old: Classifier,
    new: Classifier,
    scales: tuple[float, float, float],
    columns: Tensor | None = None,
) -> Tensor:
    """Logits over all seen classes while a task is learnt; gradients reach `new` alone.

    Args:
        unit_features: [N, d].
        old: the frozen classes of earlier tasks.
        new: the task's c classes.
        scales: (τ, α, β).
        columns: index of each of the task's classes among all, [c]: one that was learnt before keeps its own, has the
            task's text feature, and the larger of its old and new memory logits. None: all are new.

    Returns:
        [N, C + number of new classes].
    """
    tau, alpha, beta = scales
    with torch.no_grad():
        frozen = class_logits(unit_features, old, tau, alpha, beta)
    if columns is None:
        return torch.cat([frozen, class_logits(unit_features, new, tau, alpha, beta)], dim=1)
    own = tau * unit_features @ new.text.T
    before = columns < len(old.text)
    if alpha != 0:
        memory = class_memory(unit_features, new, beta)
        with torch.no_grad():
            floor = torch.full_like(memory, -torch.inf)
            floor[:, before] = class_memory(unit_features, old, beta)[:, columns[before]]
        own = own + alpha * torch.maximum(memory, floor)
    room = frozen.new_zeros(len(frozen), int((~before).sum()))
    return torch.cat([frozen, room], dim=1).index_copy(1, columns, own)


def weighted_loss_backward(
    rows: Rows,
    old: Classifier,
    new: Classifier,
    scales: tuple[float, float, float],
    total_rows: int,
    columns: Tensor | None = None,
) -> float:
    """The objective of a step, and its gradient added to the leaves `new.text` and `new.memory`.

    Loss = 1/total_rows · Σ_i weight_i · CE(logits_i over old and new classes, label_i). The rows are done in
    chunks: each chunk's graph is freed before the next, so memory does not grow with rows x classes. Nothing
    is ever differentiated with respect to features or older classes.

    Args:
        rows: this worker's rows.
        old: the frozen classes of earlier tasks (first in label order).
        new: the current task's classes; text and memory are leaves that require gradients.
        scales: (τ, α, β).
        total_rows: rows of this step over all workers.
        columns: as of `task_logits`.

    Returns:
        This worker's share of the loss.
    """
    width = len(old.text) + len(new.text) * (1 + new.memory.shape[1])
    # A worker without rows (more workers than rows) still shares gradients with the others: of zeros.
    for leaf in (new.text, new.memory):
        if leaf.requires_grad and leaf.grad is None:
            leaf.grad = torch.zeros_like(leaf)
    loss = 0.0
    if len(rows.features) == 0:
        return loss
    for part in torch.arange(len(rows.features)).split(max(1, MAX_LOGITS // max(1, width))):
        features, labels, weights = (t[part[0] : part[-1] + 1] for t in rows)
        logits = task_logits(features, old, new, scales, columns)
        share = (weights * F.cross_entropy(logits, labels, reduction="none")).sum() / total_rows
        share.backward()
        loss += share.item()
    return loss
