"""A base for what takes the place of a module's forward."""

from __future__ import annotations

import weakref

from torch import nn


class Forward:
    """Takes the place of a module's forward.

    Args:
        module: the module.
    """

    def __init__(self, module: nn.Module) -> None:
        # A strong reference would form a cycle, and an unused model's memory would wait for the garbage collector.
        self._module = weakref.ref(module)

    def module(self) -> nn.Module:
        """Returns the module, which exists whenever it calls its forward."""
        module = self._module()
        assert module is not None, "called by the module itself"
        return module
