"""Labels an image with an exported model, without torch.

pip install numpy onnxruntime pillow
python examples/predict_onnx.py MODEL.onnx IMAGE LABELS.png
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

model, image, out = sys.argv[1:]
onnxruntime.set_default_logger_severity(3)  # it warns that the class table is an input with a default
session = onnxruntime.InferenceSession(model)
pixels = np.asarray(ImageOps.exif_transpose(Image.open(image)).convert("RGB"))
(labels,) = session.run(["labels"], {"images": pixels.transpose(2, 0, 1)[None]})[0]
classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
Image.fromarray(np.asarray(classes["ids"], dtype=np.uint16)[labels]).save(out)
for label, count in zip(*np.unique(labels, return_counts=True), strict=True):
    print(f"{count / labels.size:6.1%}  {classes['names'][label]}")
