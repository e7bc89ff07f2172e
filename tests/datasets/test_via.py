"""Regions of the VGG Image Annotator are read in the forms of versions 1 and 2, by the attribute that names a class."""

import pytest
from exports import BOTH, LEFT, RIGHT, X, build, masks_of, region, via
from trees import write_jpeg

from kiloseg.storage.errors import DataError


@pytest.mark.parametrize("project", [True, False])
@pytest.mark.parametrize("version", [1, 2])
def test_via(tmp_path, project, version):
    regions = [region(LEFT, kind="cat"), region(RIGHT, kind="dog")]
    via(tmp_path / "set", regions if version == 2 else {"0": regions[0], "1": regions[1]}, project)
    info = build(tmp_path, tmp_path / "set")
    assert info.classes == ["cat", "dog"] and masks_of(tmp_path) == {"images_a": BOTH}


def test_via_shapes_and_attributes(tmp_path):
    rect = {"name": "rect", "x": 0, "y": 0, "width": 3, "height": 4}
    circle = {"name": "circle", "cx": 4.5, "cy": 1.5, "r": 0.6}
    point = {"name": "point", "cx": 1, "cy": 1}
    regions = [
        {"shape_attributes": rect, "region_attributes": {"kind": {"cat": True, "dog": False}, "seen": "yes"}},
        {"shape_attributes": circle, "region_attributes": {"kind": {"dog": True}, "seen": "no"}},
        {"shape_attributes": point, "region_attributes": {"kind": {"dog": True}, "seen": "no"}},
    ]
    via(tmp_path / "set", regions)
    with pytest.raises(DataError, match=r"the attributes kind, seen: choose the one .* --label-field kind"):
        build(tmp_path, tmp_path / "set")
    info = build(tmp_path, tmp_path / "set", label_field="kind")
    ours = [[0, 0, 0, X, X, X], [0, 0, 0, X, 1, X], [0, 0, 0, X, X, X], [0, 0, 0, X, X, X]]
    assert info.report["regions_without_shape"] == 1 and masks_of(tmp_path) == {"images_a": ours}
    regions[0]["region_attributes"]["kind"]["dog"] = True
    via(tmp_path / "set", regions)
    with pytest.raises(DataError, match=r"image a.jpg, region 0 has 2 values of kind: expected one class"):
        build(tmp_path, tmp_path / "set", label_field="kind")
    via(tmp_path / "set", [region(LEFT), region(RIGHT)])
    with pytest.raises(DataError, match="no region has an attribute with a value, so no class: give them one in VIA"):
        build(tmp_path, tmp_path / "set")


def test_names_in_two_cases_are_warned_of(tmp_path, capsys):
    write_jpeg(tmp_path / "set/a.jpg", 4, 6)
    via(tmp_path / "set", [region(LEFT, kind="Traffic light"), region(RIGHT, kind="traffic  light")])
    build(tmp_path, tmp_path / "set")
    assert "1 names of classes differ from another in case or blanks alone: 'Traffic light'" in capsys.readouterr().out
