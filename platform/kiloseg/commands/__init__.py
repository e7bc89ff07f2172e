"""The commands of `kiloseg COMMAND`, one module each, with `Arguments` and `main`.

The modules import what they need only when they run, so --help and completion do not import torch.
"""
