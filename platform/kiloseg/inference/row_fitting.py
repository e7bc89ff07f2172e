"""Fits the rows of new classes to example pixels while the network and all other rows stay as they are.

Since the other rows are fixed, their logits at the example pixels enter the loss only as one log-sum-exp per pixel, which is
computed once. A step of the fit then costs as many products as there are pixels in a batch, new classes and dimensions,
however many classes the table has.

Shapes: C other classes, N new classes, D embedding, I pixels inside of masks, O outside, B pixels of a batch.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kiloseg.config import Loss
from kiloseg.ops.tiles import tile_pixels, tiles

STEPS = 300
"""Steps of Adam."""
RATE = 0.02
"""Learning rate of Adam for rows of unit length at the first step; it falls to 0 linearly."""
BATCH = 2048
"""Most pixels of a step, inside and outside each."""
OUTSIDE = 0.6
"""Weight of pixels outside of the masks against those inside, relative to the areas of both in the examples. With equal weights
of both kinds, whatever their area, new rows take pixels from trained classes; with 2 instead of 0.6, few pixels of the new classes
are found (experiments/LOG.md)."""
MAX_WEIGHT = 100.0
"""Largest weight of pixels outside, whatever the area of the masks."""
HOLD = 1.0
"""Weight of the distance to the start, 1 - cosine, of a row with one example. It keeps it close to the mean of few examples; with
n examples it is divided by n."""


def fit_rows(
    starts_ND: Tensor,
    rows_CD: Tensor,
    inside: Sequence[Tensor],
    outside: Sequence[Tensor],
    *,
    shares: Sequence[Sequence[float]],
    loss: Loss,
) -> Tensor:
    """Fits rows so that pixels inside the masks are nearest to the row of their class, and pixels outside to one of the others.

    It minimizes the cross-entropy of pixels inside over all classes, new ones included, and -log(1 - p) of pixels outside, where
    p is the probability of all new classes together.

    Args:
        starts_ND: the rows to start with, such as the means of `inside`.
        rows_CD: rows of all other classes, unit vectors.
        inside: for each new class, pixels that show it (I, D), unit vectors.
        outside: for each new class, other pixels of its examples (O, D), unit vectors; may be none.
        shares: for each new class and example, the share of the image that its mask marks, above 0 and up to 1.
        loss: settings of the loss of training, for temperature and logit.

    Returns:
        The fitted rows, of unit length, shape (N, D).
    """
    inside_ID, outside_OD = torch.cat(list(inside)), torch.cat(list(outside))
    others_I, others_O = (_log_sum(pixels, rows_CD, loss) for pixels in (inside_ID, outside_OD))
    class_I = torch.cat([torch.full((len(pixels),), number) for number, pixels in enumerate(inside)])
    starts_ND = F.normalize(starts_ND.float(), dim=1)
    hold_N = HOLD / torch.tensor([len(each) for each in shares], dtype=torch.float32)
    weight = outside_weight(shares)
    rows_ND = starts_ND.clone().requires_grad_()
    optimizer = torch.optim.Adam([rows_ND], lr=RATE)
    generator = torch.Generator().manual_seed(0)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = RATE * (1 - step / STEPS)
        units_ND = F.normalize(rows_ND, dim=1)
        chosen = _batch(len(inside_ID), generator)
        new_BN = _logits(inside_ID[chosen] @ units_ND.T, loss)
        every_BC = torch.cat([new_BN, others_I[chosen, None]], dim=1)
        total = F.cross_entropy(every_BC, class_I[chosen])
        if len(outside_OD):
            chosen = _batch(len(outside_OD), generator)
            new_B = _logits(outside_OD[chosen] @ units_ND.T, loss).logsumexp(1)
            total = total + weight * F.softplus(new_B - others_O[chosen]).mean()
        total = total + (hold_N * (1 - (units_ND * starts_ND).sum(1))).mean()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    return F.normalize(rows_ND.detach(), dim=1)


def outside_weight(shares: Sequence[Sequence[float]]) -> float:
    """Returns the weight of the mean over pixels outside against that over pixels inside, for shares as `fit_rows` takes them."""
    marked = statistics.fmean(itertools.chain.from_iterable(shares))
    return min(OUTSIDE * (1 - marked) / marked, MAX_WEIGHT)


def _batch(count: int, generator: torch.Generator) -> Tensor:
    """Returns the numbers of all pixels, or of a random batch if there are too many."""
    if count <= BATCH:
        return torch.arange(count)
    return torch.randint(count, (BATCH,), generator=generator)


def _log_sum(pixels_PD: Tensor, rows_CD: Tensor, loss: Loss) -> Tensor:
    """Returns the log-sum-exp over classes of the logits of every pixel."""
    size = tile_pixels(len(rows_CD), pixels_PD)
    parts = [torch.logsumexp(_logits(pixels_PD[tile] @ rows_CD.T, loss), dim=1) for tile in tiles(len(pixels_PD), size)]
    return torch.cat(parts) if parts else pixels_PD.new_zeros(0)


def _logits(cosine: Tensor, loss: Loss) -> Tensor:
    if loss.logit == "distance":
        # For unit vectors ||o - e||^2 = 2 - 2 o.e; the lower bound keeps the gradient of the root finite.
        cosine = -(2 - 2 * cosine).clamp(min=1e-6).sqrt()
    return loss.temperature * cosine
