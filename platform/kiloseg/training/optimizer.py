"""Builds the optimizer with its parameter groups, and the learning-rate schedule."""

from __future__ import annotations

import torch
from torch import nn

from kiloseg.config import Optimizer
from kiloseg.models import Segmenter


def build_optimizer(segmenter: Segmenter, optimizer: Optimizer) -> torch.optim.Optimizer:
    """Builds the optimizer over four groups: backbone and the rest, each with and without weight decay.

    A backbone that does not learn (`backbone_lr_factor` = 0) is in no group, and gradients of its weights are not computed.
    Every group keeps its peak learning rate as "peak_lr"; `set_learning_rate` scales it.
    """
    backbone = {id(parameter) for parameter in segmenter.backbone_parameters()}
    undecayed = {id(parameter) for parameter in segmenter.head.undecayed()}
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for parameter in segmenter.backbone_parameters():
        parameter.requires_grad_(optimizer.backbone_lr_factor > 0)
    for parameter in segmenter.parameters():
        if not parameter.requires_grad:
            continue
        decays = parameter.dim() > 1 and id(parameter) not in undecayed
        groups.setdefault((id(parameter) in backbone, decays), []).append(parameter)
    settings = [
        {
            "params": parameters,
            "peak_lr": optimizer.lr * (optimizer.backbone_lr_factor if in_backbone else 1.0),
            "weight_decay": optimizer.weight_decay if decays else 0.0,
        }
        for (in_backbone, decays), parameters in groups.items()
    ]
    # Fused, because on two CPU cores, updating parameters one by one took a quarter of a small model's step.
    if optimizer.name == "adamw":
        return torch.optim.AdamW(settings, lr=optimizer.lr, fused=True)
    return torch.optim.SGD(settings, lr=optimizer.lr, momentum=optimizer.momentum, fused=True)


def learning_rate_factor(step: int, steps: int, optimizer: Optimizer) -> float:
    """Returns the fraction of the peak rate at a step (from 0): linear warm-up, then (1 - progress) ** poly_power."""
    if step < optimizer.warmup_steps:
        return (step + 1) / optimizer.warmup_steps
    return (1 - (step - optimizer.warmup_steps) / (steps - optimizer.warmup_steps)) ** optimizer.poly_power


def set_learning_rate(torch_optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Sets the learning rate of every group to `factor` times its peak."""
    for group in torch_optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
