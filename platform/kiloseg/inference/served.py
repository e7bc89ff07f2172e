"""Predicts images inside MLflow: the module that `mlflow.pyfunc.load_model` and `mlflow models serve` load a model with.

A row of the input has the content of an image file; a row of the output has the label map as a PNG, and a JSON of its regions.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from kiloseg.data.codec import encode_mask
from kiloseg.inference.images import decoded_pixels
from kiloseg.inference.loading import load
from kiloseg.inference.model import TrainedModel

if TYPE_CHECKING:
    import pandas

INPUTS = {"image": "binary"}
"""image: the content of an image file (JPEG, PNG, ...); as base64 in JSON."""
OUTPUTS = {"labels": "binary", "regions": "string"}
"""labels: a PNG of 16 bits whose values are class ids, upright and of the image's size; as base64 in JSON. regions: the content of
NAME.json, as `kiloseg predict` writes it."""


class ServedModel:
    """A trained model with the interface that MLflow expects."""

    def __init__(self, model: TrainedModel) -> None:
        self.model = model

    def predict(self, model_input: pandas.DataFrame, params: dict[str, Any] | None = None) -> pandas.DataFrame:
        """Predicts a table with the columns of `OUTPUTS` from one with the columns of `INPUTS`.

        Raises:
            ValueError: a row is no image; the message says which.
        """
        import pandas

        labels, regions = [], []
        for number, content in enumerate(model_input["image"]):
            result = self.model(decoded_pixels(bytes(content), f"image {number} of the request"))
            labels.append(encode_mask(result.class_ids))
            regions.append(json.dumps(result.summary()))
        return pandas.DataFrame({"labels": labels, "regions": regions})


def _load_pyfunc(path: str) -> ServedModel:
    """Loads the folder that `kiloseg export --format folder` wrote; MLflow calls this."""
    return ServedModel(load(path))
