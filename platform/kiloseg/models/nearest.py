"""Prediction: the class whose embedding is nearest to the pixel's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kiloseg.upsample import Bands

BAND_BYTES = 4 * 2**20
"""Size aimed at for one matrix of scores of a band of rows."""


@torch.no_grad()
def nearest_class(pixels_BDhw: Tensor, table_CD: Tensor, *, size: tuple[int, int]) -> Tensor:
    """The nearest class of every pixel at full resolution: argmin_c ||o - e_c||, which for unit vectors is argmax_c o.e_c.

    Works in bands of rows: a C-channel map never exists at any resolution, and beyond the labels memory is h*W*D and
    about BAND_BYTES.

    Args:
        pixels_BDhw: output of the embedding head.
        table_CD: the class table; rows are normalised here.
        size: (H, W) of the labels.

    Returns:
        int64 labels of shape (B, H, W).
    """
    B, _, h, w = pixels_BDhw.shape
    H, W = size
    with torch.autocast(pixels_BDhw.device.type, enabled=False):
        pixels_BDhw = pixels_BDhw if pixels_BDhw.dtype == torch.float64 else pixels_BDhw.float()
        rows_DC = F.normalize(table_CD.to(pixels_BDhw.dtype), dim=1).T
        bands = Bands((h, w), size, pixels_BDhw)
        max_rows = max(BAND_BYTES // (pixels_BDhw.element_size() * rows_DC.shape[1] * W), 1)
        labels_BHW = torch.empty((B, H, W), dtype=torch.int64, device=pixels_BDhw.device)
        for image in range(B):
            widened_hWD = bands.widen(pixels_BDhw[image])
            for band, cells in bands.spans(max_rows):
                # A pixel's own norm scales all its scores alike, so it need not be divided out.
                labels_BHW[image, band] = (bands.take(widened_hWD, band, cells) @ rows_DC).argmax(1).view(-1, W)
    return labels_BHW
