"""Defines the networks that are exported: they accept images of any size, as a trained model does.

Shapes: B batch, H W pixels, h w feature cells, D embedding, C classes, c classes of a chunk, N channels of the network.
"""

from __future__ import annotations

import io
import json

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from kiloseg.inference.model import TrainedModel
from kiloseg.inference.tiling import STRIDE
from kiloseg.models import Segmenter

EXAMPLE_SIZE = (2, 3, 100, 150)
"""Size of the images with which a network is traced; all but the channels are variable in the result."""
MIN_CHUNK = 64
"""Fewest classes of a chunk."""
MAX_CHUNKS = 64
"""Most chunks, each of which adds a few operations to the program."""


class PaddedNetwork(nn.Module):
    """Computes the network's outputs for images of any size, which are padded with zeros on the right and at the bottom."""

    def __init__(self, segmenter: Segmenter) -> None:
        super().__init__()
        self.segmenter = segmenter

    def forward(self, images: Tensor) -> Tensor:
        """Returns embeddings or logits (B, N, h, w) of uint8 images (B, 3, H, W)."""
        outputs: Tensor = self.segmenter(padded(images))
        return outputs


class Predictor(PaddedNetwork):
    """Predicts the label of every pixel in plain operations of torch, in chunks of classes."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Returns labels, int64 (B, H, W), and the network's outputs (B, N, h, w), of uint8 images (B, 3, H, W)."""
        images_B3HW = padded(images)
        outputs = self.segmenter(images_B3HW)
        table = self.segmenter.head.table
        rows_CD = None if table is None else F.normalize(table(), dim=1)
        # A class may have several rows, of which the nearest decides.
        per_class = self.segmenter.head.rows_per_class
        num_scores = self.segmenter.num_classes * per_class
        chunk = max(MIN_CHUNK, -(-num_scores // MAX_CHUNKS))
        best_BHW = labels_BHW = None
        for start in range(0, num_scores, chunk):
            if rows_CD is None:
                scores_Bchw = outputs[:, start : start + chunk]
            else:
                # Upsampling keeps the order of scores, and so does dividing them by a pixel's length.
                scores_Bchw = F.conv2d(outputs, rows_CD[start : start + chunk, :, None, None])
            scores_BcHW = F.interpolate(scores_Bchw, size=images_B3HW.shape[2:], mode="bilinear", align_corners=False)
            values_BHW, ids_BHW = scores_BcHW.max(1)
            if best_BHW is None or labels_BHW is None:
                best_BHW, labels_BHW = values_BHW, ids_BHW
            else:
                better_BHW = values_BHW > best_BHW
                best_BHW = torch.where(better_BHW, values_BHW, best_BHW)
                labels_BHW = torch.where(better_BHW, ids_BHW + start, labels_BHW)
        assert labels_BHW is not None, "a model has classes"
        if per_class > 1:
            labels_BHW = labels_BHW.div(per_class, rounding_mode="floor")
        # A slice would make torch.export guard that it leaves something out, as it does in the example.
        for dim in (1, 2):
            labels_BHW = labels_BHW.index_select(dim, torch.arange(images.shape[dim + 1], device=images.device))
        return labels_BHW, outputs


def padded(images: Tensor) -> Tensor:
    """Returns images whose sides are multiples of 32."""
    return F.pad(images, (0, -images.shape[3] % STRIDE, 0, -images.shape[2] % STRIDE))


@torch.no_grad()
def program_of(network: PaddedNetwork, model: TrainedModel) -> ExportedProgram:
    """Traces a network with variable batch, height and width.

    Raises:
        ValueError: the architecture cannot be traced so.
    """
    images = torch.randint(0, 256, EXAMPLE_SIZE, dtype=torch.uint8)
    sizes = ({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC},)
    try:
        return torch.export.export(network.eval(), (images,), dynamic_shapes=sizes)
    except Exception as error:  # torch.export raises many kinds
        settings = model.config.model
        raise ValueError(
            f"{model.source}: {settings.arch} over {settings.backbone} cannot be exported for images of any size "
            f"({type(error).__name__}: {str(error)[:300]}); use --format folder, or train another model.arch"
        ) from error


def torch_program(model: TrainedModel) -> bytes:
    """Returns the content of a file for `torch.export.load`: a program from uint8 images to labels and the network's outputs.

    The class table is a tensor of the program's state, and its extra file "classes.json" describes the classes.

    Args:
        model: a model on the CPU, in full precision.

    Raises:
        ValueError: the architecture cannot be exported.
    """
    program = program_of(Predictor(model.segmenter), model)
    content = io.BytesIO()
    classes = json.dumps(dict(model.classes.record()), ensure_ascii=False)
    torch.export.save(program, content, extra_files={"classes.json": classes})
    return content.getvalue()
