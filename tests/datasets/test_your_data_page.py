"""The page "I have ... from ...": every row is a form that a test builds, and every format has a row."""

import ast
import dataclasses
import re
from pathlib import Path

from folders.arguments import Arguments
from folders.readings import LOOKS

ROOT = Path(__file__).parents[2]
TESTS = {
    "anything": ("masks", "test_formats.test_layouts"),
    "Roboflow, Semantic Segmentation Masks": ("masks", "test_formats.test_roboflow_masks"),
    "Roboflow, COCO Segmentation": ("coco", "test_formats.test_roboflow_coco"),
    "CVAT for images 1.1, with images": ("cvat", "test_formats.test_cvat_for_images"),
    "CVAT, COCO 1.0": ("coco", "test_common_exports.test_a_file_for_each_split_of_cvat"),
    "CVAT, Segmentation mask 1.1, with images": ("masks", "test_formats.test_cvat_segmentation_mask"),
    "labelme": ("labelme", "test_formats.test_labelme"),
    "Label Studio, JSON": ("labelstudio", "test_formats.test_label_studio"),
    "Supervisely": ("supervisely", "test_formats.test_supervisely"),
    "YOLO segmentation (Ultralytics, Roboflow)": ("yolo", "test_ultralytics.test_data_yaml_of_ultralytics"),
    "Ultralytics, semantic masks": ("masks", "test_ultralytics.test_ultralytics_masks_with_a_label_mapping"),
    "COCO itself, LVIS style": ("coco", "test_formats.test_coco_archive_layout"),
    "panoptic COCO (also of Cityscapes, ADE20K)": ("panoptic", "test_formats_masks.test_panoptic_coco"),
    "FiftyOne, COCODetectionDataset with segmentations": ("coco", "test_formats_masks.test_fiftyone_coco"),
    "FiftyOne, FiftyOneDataset": ("fiftyone", "test_fiftyone.test_fiftyone_detections_with_masks"),
    "FiftyOne, ImageSegmentationDirectory": ("masks", "test_fiftyone.test_fiftyone_segmentation_directory"),
    "VGG Image Annotator 1 or 2": ("via", "test_via.test_via"),
    "datumaro": ("datumaro", "test_datumaro.test_datumaro"),
    "Open Images; FiftyOne, OpenImagesV6Dataset": ("openimages", "test_formats_masks.test_open_images"),
    "Hugging Face Hub: an image and a mask a row": ("parquet", "test_formats_masks.test_parquet_of_the_hub"),
    "MMSegmentation": ("masks", "test_formats.test_reduce_zero_label"),
    "Mapillary Vistas 2.0": ("masks", "test_formats.test_mapillary_vistas"),
    "PASCAL VOC style": ("masks", "test_formats_masks.test_voc_without_labelmap"),
    "CamVid style": ("masks", "test_formats_masks.test_folders_that_say_split_and_role"),
    "KITTI": ("masks", "test_datumaro.test_id_0_of_datumaros_kitti_asks"),
    "ADE20K, full": ("", "test_ade20k_full.test_the_847_classes_of_the_benchmark"),
}
"""What the page calls a tool: its format, and the test that builds the form."""


def rows():
    text = (ROOT / "docs/how-to/your-data.md").read_text(encoding="utf-8")
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")
    ][1:]


def test_each_row_has_a_test_and_each_format_a_row():
    assert {row[1] for row in rows()} == set(TESTS)
    assert {kind for kind, _ in TESTS.values()} - {""} == set(LOOKS)
    for _, name in TESTS.values():
        module, _, function = name.partition(".")
        tree = ast.parse((ROOT / f"tests/datasets/{module}.py").read_text(encoding="utf-8"))
        assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, name


def test_the_flags_of_the_page_exist():
    text = (ROOT / "docs/how-to/your-data.md").read_text(encoding="utf-8")
    known = {"--" + field.name.replace("_", "-") for field in dataclasses.fields(Arguments)}
    others = {"--root"}  # of ade20k_full.py
    assert set(re.findall(r"--[a-z][a-z-]+", text)) - others <= known
