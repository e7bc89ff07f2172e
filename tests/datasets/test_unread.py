"""What is recognized and cannot be read is refused with a sentence that says what to export instead."""

import json

import pytest
from exports import build
from trees import write_jpeg, write_text

from kiloseg.storage.errors import DataError


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (
            "sa_1.json",
            json.dumps(
                {
                    "image": {"image_id": 1, "width": 6, "height": 4, "file_name": "a.jpg"},
                    "annotations": [{"segmentation": {"size": [4, 6], "counts": "4T1"}, "predicted_iou": 0.9, "id": 1}],
                }
            ),
            "is of Segment Anything: its masks have no class",
        ),
        (
            "Annotations/a.xml",
            "<annotation><filename>a.jpg</filename><object><name>cat</name><deleted>0</deleted><polygon><pt><x>1</x>"
            "<y>2</y></pt></polygon></object></annotation>",
            "is of the LabelMe of the web, whose xml is not read",
        ),
        (
            "Annotations/a.xml",
            "<annotation><object><name>cat</name><bndbox><xmin>1</xmin></bndbox></object></annotation>",
            "holds PASCAL VOC's boxes, which do not label pixels",
        ),
        (
            "labels.json",
            '[{"name": "a.jpg", "labels": [{"category": "cat", "poly2d": []}]}]',
            "is of BDD100K or Scalabel",
        ),
        (
            "labels.json",
            '{"classes": null,"labels": {"a": [{"label": "cat","bounding_box": [0,0,1,1]}]}}',
            "is FiftyOneImageDetectionDataset, which holds boxes without masks",
        ),
        (
            "p.json",
            '[{"image": "/data/upload/a.jpg", "label": [{"points": [[0,0]], "polygonlabels": ["cat"]}]}]',
            "is not Label Studio's full export: choose JSON, not JSON-MIN",
        ),
        ("via_region_data.csv", "filename,file_size\n", "is VIA's csv, which is not read: export json"),
        ("export.zip", "PK", "is an archive: unpack it and name the folder"),
        ("train.tfrecord", "x", "is a TFRecord, which is not read"),
        ("a.datum", "x", "is datumaro's binary format, which is not read"),
    ],
)
def test_what_is_recognized_is_refused_with_a_sentence(tmp_path, file, text, message):
    write_jpeg(tmp_path / "set/a.jpg", 4, 6)
    write_text(tmp_path / "set" / file, text)
    with pytest.raises(DataError, match=message):
        build(tmp_path, tmp_path / "set")
