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

    text: unit text features, [C, d]. memory: [C, L, d]. mask: [C, L].
    """

    text: Tensor
    memory: Tensor
    mask: Tensor


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
    return logits + alpha * memory_logits(unit_features, classes.memory, beta, classes.mask)


def weighted_loss_backward(
    rows: Rows,
    old: Classifier,
    new: Classifier,
    scales: tuple[float, float, float],
    total_rows: int,
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

    Returns:
        This worker's share of the loss.
    """
    tau, alpha, beta = scales
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
        with torch.no_grad():
            frozen = class_logits(features, old, tau, alpha, beta)
        logits = torch.cat([frozen, class_logits(features, new, tau, alpha, beta)], dim=1)
        share = (weights * F.cross_entropy(logits, labels, reduction="none")).sum() / total_rows
        share.backward()
        loss += share.item()
    return loss
