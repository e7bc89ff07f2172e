"""The loss by its formula, pixel by pixel in float64: what every backend is compared with."""

import itertools

import torch
import torch.nn.functional as F


def reference(pixels, table, labels, kind, count, temperature, logit, weights=None):
    """The paper's formula, pixel by pixel, with everything at full resolution.

    Drawn classes are those of `labels` first, then the others, each in the order of its random number. The
    mean over pixels is weighted by the `weights` of their classes.
    """
    num_classes = len(table)
    present = set(labels[labels >= 0].tolist())
    keys = torch.rand(num_classes).tolist() if kind in ("random", "mixed") else [0.0] * num_classes
    drawn = sorted(range(num_classes), key=lambda c: (c not in present, -keys[c]))[: count + 1]
    o = F.normalize(F.interpolate(pixels, size=labels.shape[1:], mode="bilinear", align_corners=False), dim=1)
    e = F.normalize(table, dim=1)
    losses, shares = [], []
    for image in range(len(labels)):
        for y, x in itertools.product(*map(range, labels.shape[1:])):
            t = int(labels[image, y, x])
            if t == -1:
                continue
            distance = (o[image, :, y, x] - e).norm(dim=1)
            z = -temperature * distance if logit == "distance" else temperature * (e @ o[image, :, y, x])
            by_distance = [c for c in distance.argsort().tolist() if c != t]
            by_draw = [c for c in drawn if c != t]
            if kind == "all":
                chosen = by_distance
            elif kind == "nearest":
                chosen = by_distance[:count]
            elif kind == "random":
                chosen = by_draw[:count]
            else:
                chosen = by_distance[: count - count // 2]
                chosen = chosen + [c for c in by_draw if c not in chosen][: count // 2]
                assert len(chosen) == count
            assert t not in chosen
            losses.append(-z[t] + torch.logsumexp(z[[t, *chosen]], 0))
            shares.append(1.0 if weights is None else float(weights[t]))
    shares = torch.tensor(shares, dtype=torch.float64)
    return (torch.stack(losses) * shares).sum() / shares.sum()


def loss_and_gradients(function, pixels, table):
    loss = function()
    return [loss, *torch.autograd.grad(loss, [pixels, table])]
