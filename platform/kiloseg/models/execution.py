"""Sets up how the network between images and pixel outputs is run: memory layout, recomputation, compilation.

None of this changes the results, except for rounding.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.checkpoint import checkpoint

from kiloseg.config import Config
from kiloseg.models.depthwise import quicken_depthwise
from kiloseg.models.forward import Forward
from kiloseg.models.segmenter import Segmenter

_LISTS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def build_segmenter(
    config: Config, num_classes: int, device: torch.device | str = "cpu", *, runs_on: str | None = None
) -> Segmenter:
    """Builds the model of a run on its device, in training mode, with its network run as `config.trainer` says.

    The settings are channels_last, checkpoint_activations and compile. The state dict has the names of a plain Segmenter.

    Args:
        config: the run, of which `model`, `loss` and `trainer` are used.
        num_classes: the number of classes C, which `config.data` may leave to the data set.
        device: the device for the model. On "meta" nothing is allocated.
        runs_on: the type of the device that the model computes as on, "cpu" or "cuda"; None means that of `device`.

    Raises:
        ValueError: `Segmenter` raised it.
    """
    with torch.device("meta") if torch.device(device).type == "meta" else contextlib.nullcontext():
        segmenter = Segmenter(config.model, num_classes, config.loss).to(device)
    if (runs_on or torch.device(device).type) == "cpu":
        quicken_depthwise(segmenter.network, by_kernel=not config.trainer.compile)
    if config.trainer.channels_last:
        segmenter.network.to(memory_format=torch.channels_last)
    if config.trainer.checkpoint_activations:
        for name, block in blocks(segmenter.network):
            block.forward = _Recomputed(name, block)
    if config.trainer.compile:
        segmenter.network.compile()
    return segmenter.train()


def blocks(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yields the parts of a network that are recomputed one by one as (name, module). None is inside another.

    An entry of an nn.Sequential, ModuleList or ModuleDict counts as a block if it has at least two layers with weights:
    residual blocks and transformer blocks of a backbone, branches and stages of a decoder. A module that itself contains
    such a list is entered instead.
    """
    for name, child in module.named_children():
        if not _holds_layers(child):
            continue
        if isinstance(child, nn.ModuleList | nn.ModuleDict) or any(_lists_blocks(inner) for inner in child.modules()):
            yield from blocks(child, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", child


def _holds_layers(module: nn.Module) -> bool:
    with_weights = (inner for inner in module.modules() if any(True for _ in inner.parameters(recurse=False)))
    return len(list(with_weights)) > 1


def _lists_blocks(module: nn.Module) -> bool:
    return isinstance(module, _LISTS) and sum(_holds_layers(child) for child in module.children()) > 1


class _Recomputed(Forward):
    """Runs a block's forward but keeps only the block's inputs, and computes the rest again in the backward pass."""

    def __init__(self, name: str, block: nn.Module) -> None:
        super().__init__(block)
        self._name = name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        block: Any = self.module()
        forward = functools.partial(type(block).forward, block)
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        # Lists are copied, since a caller may append to its own, as DenseNet does.
        args, kwargs = tree_map(lambda leaf: leaf, (args, kwargs))
        versions = _versions(args, kwargs)

        def run(*args: Any, **kwargs: Any) -> Any:
            self._check(block, versions, args, kwargs)  # the inputs have not changed since
            return forward(*args, **kwargs)

        contexts = functools.partial(_contexts, block)
        outputs = checkpoint(run, *args, use_reentrant=False, context_fn=contexts, **kwargs)
        self._check(block, versions, args, kwargs)  # the block itself has not changed them
        return outputs

    def _check(self, block: nn.Module, versions: list[int], *inputs: Any) -> None:
        if _versions(*inputs) != versions:
            raise ValueError(
                f"trainer.checkpoint_activations = True: {self._name} ({type(block).__name__}) cannot be computed again, "
                "because its input is changed in place; use False with this network"
            )


def _versions(*inputs: Any) -> list[int]:
    """Returns how often each of the input tensors was changed in place."""
    return [leaf._version for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]


def _contexts(
    block: nn.Module,
) -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
    return contextlib.nullcontext(), _buffers_kept(block)


@contextlib.contextmanager
def _buffers_kept(block: nn.Module) -> Iterator[None]:
    """Lets the block work on copies of its buffers while entered, so running statistics change once per step, not twice."""
    own = [(module, dict(module._buffers)) for module in block.modules() if module._buffers]
    for module, buffers in own:
        for name, buffer in buffers.items():
            module._buffers[name] = None if buffer is None else buffer.clone()
    try:
        yield
    finally:
        for module, buffers in own:
            module._buffers.update(buffers)
