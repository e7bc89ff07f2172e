"""The network from images to the outputs of its head."""

from __future__ import annotations

import difflib
from typing import Any

import segmentation_models_pytorch as smp
import timm
import torch
from segmentation_models_pytorch.base import SegmentationHead
from torch import Tensor, nn

from kiloseg.config import Loss, Model
from kiloseg.models.heads import head_class
from kiloseg.models.pretrained import check_file_weights, load_package_weights, timm_options


class Segmenter(nn.Module):
    """A segmentation-models-pytorch network over a timm backbone, and the head that its outputs are for.

    The decoder's own final upsampling is taken out where it has one (all but dpt, unet and their kin, which end at full
    resolution or near it): loss and prediction upsample in bands instead.

    Args:
        model: what to build.
        num_classes: C.
        loss: settings of the head's loss.

    Raises:
        ValueError: an architecture, backbone or weights that do not exist (the message names what does), or settings of the
            head that cannot work.
    """

    network: Any
    mean_311: Tensor
    std_311: Tensor

    def __init__(self, model: Model, num_classes: int, loss: Loss | None = None) -> None:
        super().__init__()
        self.num_classes = num_classes
        head = head_class(model.head)
        self.network = _build_network(model, head.num_outputs(model, num_classes))
        # After the network: seeds draw weights in this order, and checkpoints number the optimizer's parameters by it.
        self.head = head(model, loss or Loss(), num_classes)
        statistics = timm.get_pretrained_cfg(model.backbone)
        mean, std = (statistics.mean, statistics.std) if statistics else ((0.5,) * 3, (0.5,) * 3)
        self.register_buffer("mean_311", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std_311", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """What `head.loss` and `head.predict` take: pixel embeddings (B, D, h, w), or logits (B, C, h, w).

        Args:
            images_B3HW: uint8, H and W multiples of 32.
        """
        normalised = (images_B3HW.float() / 255 - self.mean_311) / self.std_311
        if next(self.network.parameters()).is_contiguous(memory_format=torch.channels_last):
            normalised = normalised.contiguous(memory_format=torch.channels_last)
        outputs: Tensor = self.head(self.network(normalised))
        return outputs

    @torch.no_grad()
    def predict(self, images_B3HW: Tensor) -> Tensor:
        """The class of every pixel: int64 of shape (B, H, W)."""
        return self.head.predict(self(images_B3HW), (images_B3HW.shape[2], images_B3HW.shape[3]))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Also takes the names of checkpoints from before there were heads, whose table was the segmenter's own."""
        for name in [name for name in state_dict if name.startswith(f"{prefix}table.")]:
            state_dict[f"{prefix}head.{name.removeprefix(prefix)}"] = state_dict.pop(name)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def backbone_parameters(self) -> list[nn.Parameter]:
        """Parameters of the pretrained part, which may learn at a rate of their own."""
        return list(self.network.encoder.parameters())


def _build_network(model: Model, outputs: int) -> nn.Module:
    architectures = sorted(smp.MODEL_ARCHITECTURES_MAPPING)
    if model.arch.lower() not in architectures:
        raise ValueError(f"model.arch = {model.arch!r} is not known; there are: {', '.join(architectures)}")
    if not timm.is_model(model.backbone):
        near = difflib.get_close_matches(model.backbone, timm.list_models(), n=6, cutoff=0)
        raise ValueError(
            f"model.backbone = {model.backbone!r} is no timm model; the nearest names are: {', '.join(near)}"
        )
    weights, options = timm_options(model.weights)
    try:
        if options:  # before timm loads the file itself, so that nothing but tensors is ever unpickled
            check_file_weights(model.weights, model.backbone)
        network = smp.create_model(
            model.arch, encoder_name=f"tu-{model.backbone}", encoder_weights=weights, classes=outputs, **options
        )
    except Exception as error:
        if weights is None:
            reason = f"model.arch = {model.arch!r} cannot be built over model.backbone = {model.backbone!r}"
        else:
            reason = (
                f"model.weights = {model.weights!r} could not be loaded for {model.backbone!r}; without a network use a "
                "file, package or none"
            )
        raise ValueError(f"{reason} ({type(error).__name__}: {error})") from error
    if model.weights == "package":
        load_package_weights(model.backbone, network.encoder.model)
    if isinstance(network.segmentation_head, SegmentationHead):
        network.segmentation_head[1] = nn.Identity()
    return network
