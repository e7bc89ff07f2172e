"""`kiloseg.train(config, report)` runs the training loop; `kiloseg.train.train` is the same function.

The name stands for the function and, for code that imports it from here, for this module: so the module can be called.
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
