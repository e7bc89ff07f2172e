"""Tiny exports of annotation tools of a cat and a dog, and what the builder of folders makes of them."""

from trees import IGNORE, read_split, write_jpeg, write_json

import folder
from folders.arguments import Arguments

X = IGNORE
LEFT, RIGHT = [[0, 0], [3, 0], [3, 4], [0, 4]], [[3, 0], [6, 0], [6, 4], [3, 4]]
BOTH = [[0, 0, 0, 1, 1, 1]] * 4


def build(tmp_path, path, **fields):
    return folder.build_folder(Arguments(path=path, out=str(tmp_path / "out"), processes=1, **fields))


def masks_of(tmp_path, name="train"):
    return {key: sample[1] for key, sample in read_split(tmp_path / "out", name).items()}


def flat(points):
    return [value for point in points for value in point]


def region(points, **attributes):
    xs, ys = zip(*points, strict=True)
    shape = {"name": "polygon", "all_points_x": list(xs), "all_points_y": list(ys)}
    return {"shape_attributes": shape, "region_attributes": attributes}


def via(root, regions, project=False, name="a.jpg"):
    write_jpeg(root / "images" / name, 4, 6)
    images = {f"{name}1234": {"filename": name, "size": 1234, "regions": regions, "file_attributes": {}}}
    content = {"_via_settings": {}, "_via_img_metadata": images, "_via_attributes": {"region": {}}}
    write_json(root / "via_region_data.json", content if project else images)


def coco(root, images, shapes):
    """`images`: files; `shapes`: number of the image, category and points."""
    content = {
        "images": [{"id": n, "file_name": name, "height": 4, "width": 6} for n, name in enumerate(images)],
        "annotations": [{"image_id": n, "category_id": c, "segmentation": [flat(s)]} for n, c, s in shapes],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }
    for name in images:
        write_jpeg(root / name, 4, 6)
    write_json(root / "i.json", content)


def masked(root, save, names):
    write_jpeg(root / "images/a.jpg", 1, 4)
    (root / "masks").mkdir(parents=True, exist_ok=True)
    save(root / "masks/a.png")
    write_json(root / "classes.json", names)
