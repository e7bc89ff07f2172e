"""Says what the two releases of ADE20K, that of the challenge and the full one, have in common."""

from __future__ import annotations

from common.pairs import Place

FOLDERS = {"train": "training", "val": "validation"}
"""Maps splits to folders of either release."""

LICENSE = (
    "ADE20K: images for non-commercial research and education, annotations BSD 3-Clause; see the terms at "
    "https://ade20k.csail.mit.edu. Cite Zhou et al., CVPR 2017."
)


def places(folder: str, num_train: int) -> dict[str, Place]:
    """Returns the folder and number of images of each split; `num_train` differs between releases, val has 2,000 in both."""
    return {
        "train": Place(f"{folder}/{FOLDERS['train']}", num_train),
        "val": Place(f"{folder}/{FOLDERS['val']}", 2000),
    }
