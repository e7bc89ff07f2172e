"""The network: image to pixel embeddings and class table, or to logits for the dense baseline."""

from __future__ import annotations

import difflib
from typing import Any

import segmentation_models_pytorch as smp
import timm
import torch
import torch.nn.functional as F
from segmentation_models_pytorch.base import SegmentationHead
from torch import Tensor, nn

from kiloseg.config import Model
from kiloseg.models.class_table import ClassTable
from kiloseg.models.prediction import nearest_class
from kiloseg.models.pretrained import check_file_weights, load_package_weights, timm_options


class Segmenter(nn.Module):
    """A segmentation-models-pytorch network over a timm backbone whose outputs are embeddings, with its class table.

    The decoder's own final upsampling is taken out where it has one (all but dpt, unet and their kin, which end at full
    resolution or near it): loss and prediction upsample in bands instead.

    Args:
        model: what to build.
        num_classes: C, rows of the table, or outputs of the dense head.

    Raises:
        ValueError: an architecture, backbone or weights that do not exist; the message names what does.
    """

    network: Any
    mean_311: Tensor
    std_311: Tensor

    def __init__(self, model: Model, num_classes: int) -> None:
        super().__init__()
        outputs = model.embed_dim if model.head == "embedding" else num_classes
        self.num_classes = num_classes
        self.normalise_early = model.normalise_early
        self.network = _build_network(model, outputs)
        self.table = ClassTable(num_classes, model.embed_dim) if model.head == "embedding" else None
        statistics = timm.get_pretrained_cfg(model.backbone)
        mean, std = (statistics.mean, statistics.std) if statistics else ((0.5,) * 3, (0.5,) * 3)
        self.register_buffer("mean_311", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std_311", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, images_B3HW: Tensor) -> tuple[Tensor, Tensor | None]:
        """Pixel embeddings (B, D, h, w) and the table (C, D), or logits (B, C, h, w) and None.

        Args:
            images_B3HW: uint8, H and W multiples of 32.
        """
        normalised = (images_B3HW.float() / 255 - self.mean_311) / self.std_311
        if next(self.network.parameters()).is_contiguous(memory_format=torch.channels_last):
            normalised = normalised.contiguous(memory_format=torch.channels_last)
        outputs = self.network(normalised)
        if self.table is None:
            return outputs, None
        return F.normalize(outputs, dim=1) if self.normalise_early else outputs, self.table()

    @torch.no_grad()
    def predict(self, images_B3HW: Tensor) -> Tensor:
        """The class of every pixel: int64 of shape (B, H, W)."""
        pixels_BDhw, table_CD = self(images_B3HW)
        size = (images_B3HW.shape[2], images_B3HW.shape[3])
        if table_CD is not None:
            return nearest_class(pixels_BDhw, table_CD, size=size)
        # One image at a time, so that the dense head is not charged with a whole batch of full-size logits.
        logits = (
            F.interpolate(one[None].float(), size=size, mode="bilinear", align_corners=False) for one in pixels_BDhw
        )
        return torch.cat([one.argmax(1) for one in logits])

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
