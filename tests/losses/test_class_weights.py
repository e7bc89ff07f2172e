"""Class weights: every loss gives the weighted mean of torch.nn.CrossEntropyLoss, whatever computes it."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import NUM_CLASSES
from dense import loss_and_gradients, reference

from kiloseg.config import Loss, Model, Negatives
from kiloseg.data.class_weights import class_weights
from kiloseg.data.description import read_info
from kiloseg.data.index import read_index, write_index
from kiloseg.losses import dense_cross_entropy, embedding_cross_entropy, official_cross_entropy
from kiloseg.models.heads import EmbeddingHead, Head, head_class
from kiloseg.overrides import override
from kiloseg.storage.errors import DataError

pytestmark = pytest.mark.usefixtures("one_thread")

C, D, K = 7, 5, 3
WEIGHTS = torch.tensor([0.5, 2.0, 0.0, 1.0, 3.0, 0.25, 1.5])


def batch(dtype=torch.float64):
    generator = torch.Generator().manual_seed(5)
    pixels = torch.randn(2, D, 4, 3, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    table = torch.randn(C, D, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    return pixels, table, torch.randint(-1, C, (2, 13, 10), generator=generator)


@pytest.mark.parametrize("logit", ["distance", "cosine"])
@pytest.mark.parametrize("kind", ["all", "nearest", "random", "mixed"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 2e-5)])
def test_embedding_loss_equals_the_weighted_formula(kind, logit, dtype, tolerance):
    pixels, table, labels = batch(dtype)
    negatives = Negatives(kind=kind, count=K)
    torch.manual_seed(3)
    ours = loss_and_gradients(
        lambda: embedding_cross_entropy(
            pixels, table, labels, negatives=negatives, temperature=7.0, logit=logit, class_weights_C=WEIGHTS
        ),
        pixels,
        table,
    )
    wide_pixels, wide_table = (tensor.detach().double().requires_grad_() for tensor in (pixels, table))
    torch.manual_seed(3)
    expected = loss_and_gradients(
        lambda: reference(wide_pixels, wide_table, labels, kind, K, 7.0, logit, WEIGHTS), wide_pixels, wide_table
    )
    for got, want in zip(ours, expected, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance)


def of_single_classes(loss, labels):
    """The weighted mean, from unweighted losses of the pixels of one class at a time."""
    total, whole = 0.0, 0.0
    for label, weight in enumerate(WEIGHTS.tolist()):
        only = labels.where(labels == label, -1)
        number = int((only >= 0).sum())
        total += weight * number * loss(only).item()
        whole += weight * number
    return total / whole


@pytest.mark.parametrize("kind", ["all", "nearest"])
def test_weights_agree_with_the_compiled_kernel(kind):
    """Which computes losses without weights."""
    pixels, table, labels = batch(torch.float32)

    def loss(labels, **weights):
        negatives = Negatives(kind=kind, count=K)
        return embedding_cross_entropy(pixels, table, labels, negatives=negatives, temperature=7.0, **weights)

    assert loss(labels, class_weights_C=WEIGHTS).item() == pytest.approx(of_single_classes(loss, labels), rel=1e-5)
    assert loss(labels, class_weights_C=torch.full((C,), 3.0)).item() == pytest.approx(loss(labels).item(), rel=1e-5)


def test_loss_of_the_paper_takes_weights():
    pixels, table, labels = batch(torch.float32)

    def loss(labels, **weights):
        return official_cross_entropy(pixels, table, labels, count=K, temperature=7.0, **weights)

    assert loss(labels, class_weights_C=WEIGHTS).item() == pytest.approx(of_single_classes(loss, labels), rel=1e-5)


def test_dense_loss_is_that_of_torch():
    logits = torch.randn(2, C, 4, 3, generator=torch.Generator().manual_seed(1)).requires_grad_()
    labels = batch()[2]
    ours = dense_cross_entropy(logits, labels, class_weights_C=WEIGHTS)
    whole = F.interpolate(logits, size=labels.shape[1:], mode="bilinear", align_corners=False)
    torch.testing.assert_close(ours, F.cross_entropy(whole, labels, weight=WEIGHTS, ignore_index=-1))


@pytest.mark.parametrize("name", ["embedding", "dense", "official"])
def test_heads_use_the_weights(name):
    labels = batch()[2]
    torch.manual_seed(0)
    settings = Loss(negatives=Negatives(kind="nearest", count=K), logit="distance")
    head = head_class(name)(Model(embed_dim=D, head=name), settings, C)
    outputs = torch.randn(2, C if name == "dense" else D, 4, 3)
    plain = head.loss(outputs, labels).cross_entropy
    assert head.total_weight(labels) == (labels >= 0).sum()
    head.weigh_classes(WEIGHTS)
    weighted = head.loss(outputs, labels).cross_entropy
    assert not math.isclose(plain.item(), weighted.item(), rel_tol=1e-3)
    assert head.total_weight(labels).item() == pytest.approx(WEIGHTS[labels[labels >= 0]].sum().item())
    assert "class_weights_C" not in head.state_dict(), "checkpoints are as before"
    for nothing in (labels.clamp(max=-1), labels.where(labels == 2, -1)):
        loss = head.loss(outputs.requires_grad_(), nothing).cross_entropy
        assert loss.item() == 0, "no labeled pixel of any weight"


def test_a_head_without_weights_refuses_them():
    class Own(EmbeddingHead):
        takes_class_weights = Head.takes_class_weights

    head = Own(Model(embed_dim=D), Loss(class_weights="inverse"), C)
    head.weigh_classes(None)
    with pytest.raises(ValueError, match=r"loss.class_weights = 'inverse': head Own uses no class weights"):
        head.weigh_classes(WEIGHTS)


def pixels_of(directory, num_classes):
    counts = np.zeros(num_classes)
    for row in read_index(directory, "train").to_pylist():
        for label, pixels in zip(row["class_ids"], row["class_pixels"], strict=True):
            counts[label] += pixels
    return counts


@pytest.mark.parametrize(("word", "power"), [("inverse", 1.0), ("sqrt", 0.5)])
def test_weights_by_the_share_of_pixels(quick, squares, word, power):
    info = read_info(squares)
    weights = class_weights(word, quick.data, info)
    shares = pixels_of(squares, NUM_CLASSES) / pixels_of(squares, NUM_CLASSES).sum()
    expected = shares**-power
    np.testing.assert_allclose(weights, expected / (expected * shares).sum(), rtol=1e-6)
    assert (weights * shares).sum() == pytest.approx(1), "the mean weight of a pixel"
    assert class_weights("none", quick.data, info) is None


def test_pixels_of_other_classes_count_as_background(quick, squares):
    info = read_info(squares)
    data = override(quick, {"data.num_classes": 3}).data
    as_background = class_weights("inverse", data, info)
    ignored = class_weights(
        "inverse", override(quick, {"data.num_classes": 3, "data.other_classes": "ignore"}).data, info
    )
    assert as_background.shape == ignored.shape == (3,)
    assert as_background[0] / as_background[1] < ignored[0] / ignored[1], "more background, less weight"


def test_classes_without_pixels_get_1_and_an_index_is_needed(quick, tmp_path, squares):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(squares, copy)
    rows = read_index(copy).to_pylist()
    for row in rows:
        kept = [place for place, label in enumerate(row["class_ids"]) if label != 3]
        row["class_ids"] = [row["class_ids"][place] for place in kept]
        row["class_pixels"] = [row["class_pixels"][place] for place in kept]
    write_index(copy, rows)
    data = override(quick, {"data.path": str(copy)}).data
    assert class_weights("inverse", data, read_info(copy))[3] == 1
    (copy / "index.parquet").unlink()
    with pytest.raises(DataError, match=r"index.parquet does not exist"):
        class_weights("inverse", data, read_info(copy))


def test_weights_from_a_file(quick, squares, tmp_path):
    path = tmp_path / "my weights.csv"
    path.write_text("name,weight\nsquare 2,2.5\nbackground,0\n")
    assert class_weights(str(path), quick.data, read_info(squares)).tolist() == [0, 1, 2.5, 1, 1, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,weight\nsquare 9,1\n", "line 2: this run has no class 'square 9'"),
        ("name,weight\nsquare 1,-1\n", "line 2: weight of 'square 1' is '-1': expected a number, 0 or more"),
        ("name,weight\nsquare 1,nan\n", "expected a number, 0 or more"),
        ("name,weight\nsquare 1,\n", "expected a number, 0 or more"),
        ("name,weight\nsquare 1\n", "expected a number, 0 or more"),
        ("class,w\nsquare 1,1\n", "expected the columns name and weight"),
        ("name,weight\nbackground,0\n" + "".join(f"square {c},0\n" for c in range(1, 6)), "all weights are 0"),
        (None, "is not a file: expected none, inverse, sqrt, or a CSV file"),
    ],
)
def test_files_that_cannot_be_used_are_named(quick, squares, tmp_path, text, message):
    path = tmp_path / "weights.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=message):
        class_weights(str(path), quick.data, read_info(squares))
