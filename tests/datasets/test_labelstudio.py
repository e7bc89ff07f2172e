"""Label Studio's exports of several annotators, and of several labels a region, are read as is said."""

import pytest
from exports import BOTH, LEFT, RIGHT, build, masks_of
from trees import write_jpeg, write_json

from kiloseg.storage.errors import DataError


def labels_of(kind, points, *labels, **more):
    shares = [[x / 6 * 100, y / 4 * 100] for x, y in points]
    size = {"original_width": 6, "original_height": 4}
    return {**size, "type": kind, "value": {"points": shares, kind: list(labels)}, **more}


def by(person, *results, **more):
    return {"completed_by": person, "result": list(results), **more}


def tasks(root, *annotations):
    for number in range(len(annotations)):
        write_jpeg(root / f"{number}.jpg", 4, 6)
    content = [
        {"id": number, "data": {"image": f"/data/upload/1/0a1b2c3d-{number}.jpg"}, "annotations": made}
        for number, made in enumerate(annotations)
    ]
    write_json(root / "p.json", content)


CAT_DOG = labels_of("polygonlabels", LEFT, "cat"), labels_of("polygonlabels", RIGHT, "dog")
DOG_CAT = labels_of("polygonlabels", LEFT, "dog"), labels_of("polygonlabels", RIGHT, "cat")


def test_several_annotators(tmp_path, capsys):
    """Who counts is said, counted and chosen; an image that nobody annotated is not one without objects."""
    root = tmp_path / "set"
    other = [[1, 1, 1, 0, 0, 0]] * 4
    first, second = by({"id": 3, "email": "a@b.c"}, *CAT_DOG), by(4, *DOG_CAT)
    tasks(root, [by(9, *DOG_CAT, was_cancelled=True), first, second], [by(9, was_cancelled=True)], [])
    build(tmp_path, root, unlabeled="ignore")
    printed = capsys.readouterr().out
    assert "report: left out: 1 annotations of images that have several (--annotator first)" in printed
    assert "report: left out: 2 images without an annotation that counts" in printed
    assert masks_of(tmp_path) == {"0": BOTH}
    for annotator, expected in (("last", other), ("4", other), ("a@b.c", BOTH), ("3", BOTH)):
        build(tmp_path, root, annotator=annotator)
        assert masks_of(tmp_path) == {"0": expected}
    with pytest.raises(DataError, match=r"no annotation is by 5: expected --annotator first, last or 3, 4, a@b\.c"):
        build(tmp_path, root, annotator="5")
    tasks(root, [first, {**second, "ground_truth": True}])
    build(tmp_path, root)
    assert masks_of(tmp_path) == {"0": other}


def test_several_labels_of_a_region(tmp_path, capsys):
    root = tmp_path / "set"
    twice = labels_of("polygonlabels", RIGHT, "dog", "bird")
    tasks(root, [by(1, CAT_DOG[0], twice, labels_of("polygonlabels", [[0, 0], [0, 1], [0, 2]], "bird"))])
    build(tmp_path, root)
    assert "left out: 1 further labels of regions that have several (--region-label first)" in capsys.readouterr().out
    assert masks_of(tmp_path) == {"0": [[1, 1, 1, 2, 2, 2]] * 4}
    build(tmp_path, root, region_label="last")
    assert masks_of(tmp_path) == {"0": [[1, 1, 1, 0, 0, 0]] * 4}


def test_labels_apart_from_shapes(tmp_path):
    """A template of Polygon and Labels exports a shape and its labels as two results with one id."""
    results = []
    for number, (points, label) in enumerate(((LEFT, "cat"), (RIGHT, "dog"))):
        shape = labels_of("polygon", points, id=f"r{number}")
        del shape["value"]["polygon"]
        results += [shape, {**shape, "type": "labels", "value": {**shape["value"], "labels": [label]}}]
    tasks(tmp_path / "set", [by(1, *results)])
    build(tmp_path, tmp_path / "set")
    assert masks_of(tmp_path) == {"0": BOTH}
