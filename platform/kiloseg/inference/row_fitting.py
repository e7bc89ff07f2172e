"""Fits the row of one new class to example pixels while the network and all other rows stay as they are.

Since the other rows are fixed, their logits at the example pixels enter the loss only as one log-sum-exp per pixel, which is
computed once. A step of the fit then costs P x D multiplications whatever the number of classes.

Shapes: C classes, D embedding, P pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kiloseg.config import Loss
from kiloseg.ops.tiles import tile_pixels, tiles

STEPS = 150
"""Steps of Adam over all example pixels."""
RATE = 0.02
"""Learning rate of Adam for a row of unit length."""
HOLD = 1.0
"""Weight of the distance to the start, 1 - cosine. It keeps a row close to the mean of few examples."""


def fit_row(start_D: Tensor, rows_CD: Tensor, inside_PD: Tensor, outside_PD: Tensor, *, loss: Loss) -> Tensor:
    """Fits a row so that pixels inside the masks are nearest to it and pixels outside are nearer to another row.

    It minimizes the cross-entropy of the new class against all others together: -log p inside, -log(1 - p) outside, where p is
    the softmax probability of the new class.

    Args:
        start_D: the row to start with, such as the mean of `inside_PD`.
        rows_CD: rows of all other classes, unit vectors.
        inside_PD: pixels of the class, unit vectors.
        outside_PD: pixels of other classes, unit vectors; may be none.
        loss: settings of the loss of training, for temperature and logit.

    Returns:
        The fitted row, of unit length, shape (D,).
    """
    others_P = _log_sum(torch.cat([inside_PD, outside_PD]), rows_CD, loss)
    inside_others_P, outside_others_P = others_P.split([len(inside_PD), len(outside_PD)])
    start_D = F.normalize(start_D.float(), dim=0)
    row_D = start_D.clone().requires_grad_()
    optimizer = torch.optim.Adam([row_D], lr=RATE)
    for _ in range(STEPS):
        unit_D = F.normalize(row_D, dim=0)
        total = F.softplus(inside_others_P - _logits(inside_PD @ unit_D, loss)).mean()
        if len(outside_PD):
            total = total + F.softplus(_logits(outside_PD @ unit_D, loss) - outside_others_P).mean()
        total = total + HOLD * (1 - unit_D @ start_D)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    return F.normalize(row_D.detach(), dim=0)


def _log_sum(pixels_PD: Tensor, rows_CD: Tensor, loss: Loss) -> Tensor:
    """Returns the log-sum-exp over classes of the logits of every pixel."""
    size = tile_pixels(len(rows_CD), pixels_PD)
    parts = [torch.logsumexp(_logits(pixels_PD[tile] @ rows_CD.T, loss), dim=1) for tile in tiles(len(pixels_PD), size)]
    return torch.cat(parts)


def _logits(cosine: Tensor, loss: Loss) -> Tensor:
    if loss.logit == "distance":
        # For unit vectors ||o - e||^2 = 2 - 2 o.e; the lower bound keeps the gradient of the root finite.
        cosine = -(2 - 2 * cosine).clamp(min=1e-6).sqrt()
    return loss.temperature * cosine
