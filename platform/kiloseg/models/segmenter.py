"""Defines the network from images to the outputs of its head."""

from __future__ import annotations

import dataclasses
import difflib
import functools
from typing import Any, cast

import timm
import torch
import torch.nn.functional as F
from segmentation_models_pytorch.base import SegmentationHead
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from kiloseg.config import Loss, Model
from kiloseg.models.architectures import ARCHITECTURES
from kiloseg.models.backbone import examine
from kiloseg.models.heads import head_class
from kiloseg.models.pretrained import check_file_weights, load_package_weights, timm_options
from kiloseg.models.pyramid import register


class Segmenter(nn.Module):
    """Combines a segmentation-models-pytorch network over a timm backbone with the head that uses its outputs.

    The decoder's own final upsampling is removed if it has one (all except dpt, unet and related ones, which end at or near
    full resolution), since loss and prediction upsample in bands instead.

    Args:
        model: the settings of the model to build.
        num_classes: the number of classes C.
        loss: the settings of the head's loss.

    Raises:
        ValueError: an architecture, backbone or weights do not exist (the message names those that do), or settings of the
            head cannot work.
    """

    network: Any
    mean_311: Tensor
    std_311: Tensor

    def __init__(self, model: Model, num_classes: int, loss: Loss | None = None) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.arch, self.input_scale = model.arch, model.input_scale
        model = dataclasses.replace(model, embed_dim=model.dimensions(num_classes))
        head = head_class(model.head)
        self.network = _build_network(model, head.num_outputs(model, num_classes))
        # The head comes after the network: weights are drawn from seeds in this order, and checkpoints number the
        # optimizer's parameters in this order.
        self.head = head(model, loss or Loss(), num_classes)
        statistics = timm.get_pretrained_cfg(model.backbone)
        mean, std = (statistics.mean, statistics.std) if statistics else ((0.5,) * 3, (0.5,) * 3)
        self.register_buffer("mean_311", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std_311", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """Returns the input of `head.loss` and `head.predict`: pixel embeddings (B, D, h, w), or logits (B, C, h, w).

        Args:
            images_B3HW: uint8 images whose H and W are multiples of 32.
        """
        outputs: Tensor = self.head(self.network_outputs(images_B3HW))
        return outputs

    def network_outputs(self, images_B3HW: Tensor) -> Tensor:
        """Returns what the network makes of images, before the head sees it: (B, N, h, w).

        Args:
            images_B3HW: as for `forward`.

        Raises:
            ValueError: the outputs of enlarged images would be finer than the images.
        """
        normalized = (images_B3HW.float() / 255 - self.mean_311) / self.std_311
        if self.input_scale > 1:
            normalized = F.interpolate(normalized, scale_factor=float(self.input_scale), mode="bilinear")
        if next(self.network.parameters()).is_contiguous(memory_format=torch.channels_last):
            normalized = normalized.contiguous(memory_format=torch.channels_last)
        outputs: Tensor = self.network(normalized)
        if outputs.shape[2] > images_B3HW.shape[2]:
            raise ValueError(
                f"model.input_scale = {self.input_scale}: the network's outputs have {outputs.shape[2]} rows for images of "
                f"{images_B3HW.shape[2]}; choose a smaller factor, or an architecture with coarser outputs than {self.arch}"
            )
        return outputs

    @torch.no_grad()
    def predict(self, images_B3HW: Tensor) -> Tensor:
        """Predicts the class of every pixel: int64 of shape (B, H, W)."""
        return self.head.predict(self(images_B3HW), (images_B3HW.shape[2], images_B3HW.shape[3]))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Also accepts the names in checkpoints from before heads existed, when the table belonged to the segmenter."""
        for name in [name for name in state_dict if name.startswith(f"{prefix}table.")]:
            state_dict[f"{prefix}head.{name.removeprefix(prefix)}"] = state_dict.pop(name)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def backbone_parameters(self) -> list[nn.Parameter]:
        """Returns the parameters of the pretrained part, which may have their own learning rate."""
        return list(self.network.encoder.parameters())


OWN_ENCODER = ("dpt",)
"""Architectures that have an encoder of their own, for vision transformers only."""


@functools.cache
def _has_encoder(arch: str, backbone: str) -> bool:
    """Returns whether segmentation-models-pytorch itself has an encoder for the backbone that fits the architecture."""
    if arch.lower() in OWN_ENCODER:
        return True
    traits = examine(backbone)
    if traits.native is not None or not traits.exact:
        return False
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        try:
            ARCHITECTURES[arch.lower()](
                encoder_name=f"tu-{backbone}", encoder_weights=None, classes=1, **traits.options
            )
        except Exception:  # of many kinds: strides that it does not know, or a network that cannot be dilated
            return False
    return True


def _build_network(model: Model, outputs: int) -> nn.Module:
    architecture = ARCHITECTURES.get(model.arch.lower())
    if architecture is None:
        names = ", ".join(sorted(ARCHITECTURES))
        raise ValueError(f"model.arch = {model.arch!r} is unknown; the architectures are: {names}")
    if not timm.is_model(model.backbone):
        near = difflib.get_close_matches(model.backbone, timm.list_models(), n=6, cutoff=0)
        raise ValueError(
            f"model.backbone = {model.backbone!r} is not a timm model; the nearest names are: {', '.join(near)}"
        )
    if model.arch.lower() not in OWN_ENCODER:
        examine(model.backbone)  # refuses what cannot be a backbone
    weights, options = timm_options(model.weights)
    try:
        if options:  # checked before timm loads the file itself, so that only tensors are ever unpickled
            check_file_weights(model.weights, model.backbone)
        if _has_encoder(model.arch, model.backbone):
            more = {} if model.arch.lower() in OWN_ENCODER else examine(model.backbone).options
            network: Any = architecture(
                encoder_name=f"tu-{model.backbone}",
                encoder_weights=weights,
                classes=outputs,
                **options,
                **more,
            )
        else:
            encoder = register(model.backbone, pretrained=weights is not None, options=options)
            network = architecture(encoder_name=encoder, encoder_weights=None, classes=outputs)
    except Exception as error:
        if weights is None:
            reason = f"model.arch = {model.arch!r} cannot be built over model.backbone = {model.backbone!r}"
        else:
            reason = (
                f"model.weights = {model.weights!r} could not be loaded for {model.backbone!r}; without a network, use a "
                "file, package or none"
            )
        raise ValueError(f"{reason} ({type(error).__name__}: {error})") from error
    if model.weights == "package":
        load_package_weights(model.backbone, network.encoder.model)
    if isinstance(network.segmentation_head, SegmentationHead):
        network.segmentation_head[1] = nn.Identity()
    if model.decoder_dropout is not None:
        _set_dropout(model, network.decoder)
    return network


def _set_dropout(model: Model, decoder: nn.Module) -> None:
    """Sets the probability of all dropout layers of a decoder."""
    layers = [layer for layer in decoder.modules() if isinstance(layer, _DropoutNd)]
    if not layers and model.decoder_dropout:
        raise ValueError(
            f"model.decoder_dropout = {model.decoder_dropout}: the decoder of model.arch = {model.arch!r} has no dropout; leave "
            "the setting out"
        )
    for layer in layers:
        layer.p = cast(float, model.decoder_dropout)
