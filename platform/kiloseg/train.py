"""`kiloseg.train(config, report)` runs the training loop; `kiloseg.train.train` is the same function.

The name `kiloseg.train` means both this module and the function, so the module is callable.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from kiloseg.training.loop import train

__all__ = ["train"]


class _CallableModule(ModuleType):
    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return train(*arguments, **keywords)


sys.modules[__name__].__class__ = _CallableModule
