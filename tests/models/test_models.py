"""Networks give maps of D channels, and prediction is the nearest class."""

import pytest
import timm
import torch
import torch.nn.functional as F

from kiloseg.config import Model
from kiloseg.models import ClassTable, Segmenter, nearest_class, nearest_two
from kiloseg.models.architectures import ARCHITECTURES

SIZE = (64, 96)

STRIDES = {
    "deeplabv3": 8,
    "deeplabv3plus": 4,
    "dpt": 1,
    "fpn": 4,
    "fpn8": 8,
    "linknet": 1,
    "manet": 1,
    "pan": 4,
    "pspnet": 8,
    "segformer": 4,
    "unet": 1,
    "unetplusplus": 1,
    "upernet": 4,
}
"""Image pixels per cell of the map that each architecture gives, its own last upsampling taken out."""


pytestmark = pytest.mark.usefixtures("one_thread")


def images(count=2, size=SIZE, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, generator=generator)


def segmenter(num_classes=7, **model):
    torch.manual_seed(0)
    return Segmenter(Model(**{"arch": "fpn", "backbone": "test_resnet", "embed_dim": 5} | model), num_classes).eval()


# Networks


def test_every_architecture_is_known_here():
    assert set(STRIDES) == set(ARCHITECTURES)


@pytest.mark.parametrize("head", ["embedding", "dense"])
@pytest.mark.parametrize("arch", STRIDES)
def test_architectures_give_maps_of_the_outputs(arch, head):
    model = segmenter(9, arch=arch, head=head, backbone="test_vit" if arch == "dpt" else "test_resnet")
    height, width = (128, 160) if arch == "pan" else SIZE  # pan pools its coarsest map three times more
    outputs = model(images(size=(height, width)))
    stride = STRIDES[arch]
    assert outputs.shape == (2, 5 if head == "embedding" else 9, height // stride, width // stride)
    assert outputs.isfinite().all()
    assert outputs.std() > 0
    if head == "embedding":
        assert model.head.table().shape == (9, 5)
    else:
        assert model.head.table is None
    outputs.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in list(model.backbone_parameters())[:2])


@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("head", ["embedding", "dense"])
def test_enlarged_images_give_finer_maps_and_labels_of_the_image(head, scale):
    model, plain = segmenter(9, head=head, input_scale=scale), segmenter(9, head=head)
    larger = F.interpolate(images().float(), scale_factor=scale, mode="bilinear")
    expected = plain(larger.round().to(torch.uint8))
    outputs = model(images())
    assert outputs.shape == expected.shape == (2, *outputs.shape[1:2], SIZE[0] * scale // 4, SIZE[1] * scale // 4)
    # The enlarged image was rounded to whole gray values here only.
    assert (outputs - expected).abs().mean() < 0.05 * expected.std()
    assert model.predict(images()).shape == (2, *SIZE)


def test_enlarged_images_whose_maps_would_be_finer_than_the_image_are_refused():
    with pytest.raises(
        ValueError,
        match=r"model\.input_scale = 2: the network's outputs have 128 rows for images of 64; choose a smaller factor, or an "
        "architecture with coarser outputs than unet",
    ):
        segmenter(arch="unet", input_scale=2)(images())


@pytest.mark.parametrize("arch", ["fpn", "deeplabv3plus", "pspnet"])
def test_decoder_dropout_is_what_was_asked_for(arch):
    without = segmenter(arch=arch, decoder_dropout=0.0).train()
    torch.manual_seed(1)
    first = without.network.decoder(without.network.encoder(images().float()))
    torch.manual_seed(2)
    assert torch.equal(without.network.decoder(without.network.encoder(images().float())), first)
    high = segmenter(arch=arch, decoder_dropout=0.9).train()
    assert not torch.allclose(high.network.decoder(high.network.encoder(images().float())), first)


def test_decoder_dropout_of_an_architecture_is_kept_by_default_and_refused_where_there_is_none():
    dropouts = [layer.p for layer in segmenter().network.decoder.modules() if isinstance(layer, torch.nn.Dropout2d)]
    assert dropouts == [0.2]
    segmenter(arch="unet", decoder_dropout=0.0)
    with pytest.raises(
        ValueError, match=r"model\.decoder_dropout = 0\.1: the decoder of model\.arch = 'unet' has no dropout"
    ):
        segmenter(arch="unet", decoder_dropout=0.1)


def test_architecture_may_be_spelled_in_capitals():
    assert segmenter(arch="FPN")(images()).shape == (2, 5, 16, 24)


def test_table_starts_on_the_sphere_with_other_rows_for_other_seeds():
    tables = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        table = ClassTable(3000, 6)()
        assert table.shape == (3000, 6)
        assert table.requires_grad
        torch.testing.assert_close(table.detach().double().square().sum(1).sqrt(), torch.ones(3000).double())
        tables.append(table.detach())
    assert not torch.equal(*tables)
    assert tables[0].unique(dim=0).shape == (3000, 6)
    assert tables[0].mean(0).abs().max() < 0.05, "no side of the sphere is preferred"


def test_backbone_parameters_are_those_of_the_backbone():
    model = segmenter()
    backbone = {id(parameter) for parameter in model.backbone_parameters()}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in backbone}
    assert names == {name for name, _ in model.named_parameters() if name.startswith("network.encoder.")}
    assert len(names) == len(list(timm.create_model("test_resnet", num_classes=0).parameters()))


@pytest.mark.parametrize(
    ("backbone", "mean", "std"),
    [
        ("resnet18", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("tf_efficientnet_lite0", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    ],
)
@pytest.mark.parametrize("channels_last", [False, True])
def test_images_are_normalized_as_the_backbone_was_trained(backbone, mean, std, channels_last):
    model = segmenter(backbone=backbone)
    if channels_last:
        model.network.to(memory_format=torch.channels_last)
    seen = []
    model.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    given = images(size=(32, 64))
    model(given)
    by_hand = (given.double() / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    torch.testing.assert_close(seen[0], by_hand.float(), rtol=1e-5, atol=1e-5)
    assert seen[0].is_contiguous(memory_format=torch.channels_last) == channels_last
    assert not {"mean_311", "std_311"} & set(model.state_dict()), "constants are no weights"


# Prediction


def brute_force(pixels, table, size):
    """Distances of normalized full-resolution pixels to normalized rows, (B, H, W, C) in float64."""
    full = F.interpolate(pixels.double(), size=size, mode="bilinear", align_corners=False)
    unit = F.normalize(full, dim=1).permute(0, 2, 3, 1)
    return (unit[..., None, :] - F.normalize(table.double(), dim=1)).norm(dim=-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("band_bytes", [1, 11 * 4 * 29 * 5, 2**22])
@pytest.mark.parametrize(
    ("cells", "size"), [((6, 7), (24, 29)), ((5, 3), (5, 3)), ((9, 12), (7, 5)), ((1, 1), (13, 8))]
)
def test_nearest_class_by_brute_force(monkeypatch, dtype, band_bytes, cells, size):
    monkeypatch.setattr("kiloseg.models.prediction.BLOCK_BYTES", band_bytes)
    generator = torch.Generator().manual_seed(4)
    # Rows and pixels far from unit length, which must not matter.
    table = torch.randn(11, 4, generator=generator) * torch.rand(11, 1, generator=generator) * 9
    pixels = (torch.randn(3, 4, *cells, generator=generator) * 5).to(dtype)
    got = nearest_class(pixels, table, size=size)
    distances = brute_force(pixels, table, size)
    two = distances.topk(2, largest=False).values
    clear = two[..., 1] - two[..., 0] > 1e-5
    assert clear.double().mean() > 0.95
    assert got.shape == (3, *size)
    assert got.dtype == torch.int64
    assert torch.equal(got[clear], distances.argmin(-1)[clear])
    assert len(got.unique()) > 2


def test_two_nearest_classes_with_their_cosines():
    generator = torch.Generator().manual_seed(4)
    table = torch.randn(40, 5, generator=generator) * torch.rand(40, 1, generator=generator) * 9
    pixels = torch.randn(2, 5, 6, 7, generator=generator) * 5
    got = nearest_two(pixels, table, size=(24, 29))
    cosines = 1 - brute_force(pixels, table, (24, 29)).square() / 2
    two = cosines.topk(2)
    for values, mine in zip(two.values.unbind(-1), (got.cosine, got.runner_up_cosine), strict=True):
        torch.testing.assert_close(mine, values.float(), rtol=0, atol=2e-6)
    clear = (cosines.topk(3).values.diff(dim=-1).abs() > 1e-5).all(-1)
    assert clear.double().mean() > 0.95
    for ids, mine in zip(two.indices.unbind(-1), (got.labels, got.runner_up), strict=True):
        assert torch.equal(mine[clear], ids[clear])
    assert torch.equal(got.labels, nearest_class(pixels, table, size=(24, 29)))
    with pytest.raises(ValueError, match="at least 2, since one class has no runner-up"):
        nearest_two(pixels, table[:1], size=(24, 29))


def test_nearest_class_under_autocast_is_not_rounded():
    generator = torch.Generator().manual_seed(4)
    table, pixels = torch.randn(500, 6, generator=generator), torch.randn(1, 6, 8, 8, generator=generator)
    distances = brute_force(pixels, table, (32, 32))
    two = distances.topk(2, largest=False).values
    clear = two[..., 1] - two[..., 0] > 1e-5
    with torch.autocast("cpu", torch.bfloat16):
        got = nearest_class(pixels, table, size=(32, 32))
    assert clear.double().mean() > 0.95
    assert torch.equal(got[clear], distances.argmin(-1)[clear])


def test_predict_of_embeddings_is_the_nearest_row():
    model = segmenter(40)
    given = images(size=(64, 96))
    with torch.no_grad():
        pixels, table = model(given), model.head.table()
    distances = brute_force(pixels, table, (64, 96))
    two = distances.topk(2, largest=False).values
    clear = two[..., 1] - two[..., 0] > 1e-5
    predicted = model.predict(given)
    assert torch.equal(predicted[clear], distances.argmin(-1)[clear])
    assert clear.double().mean() > 0.9
    assert len(predicted.unique()) > 1


@pytest.mark.parametrize("arch", ["fpn", "unet"])
def test_predict_of_the_dense_head_is_the_largest_upsampled_logit(arch):
    model = segmenter(9, arch=arch, head="dense")
    given = images(count=3, size=(64, 96))
    with torch.no_grad():
        logits = model(given)
    expected = F.interpolate(logits, size=(64, 96), mode="bilinear", align_corners=False).argmax(1)
    predicted = model.predict(given)
    assert predicted.dtype == torch.int64
    assert torch.equal(predicted, expected)
    assert len(predicted.unique()) > 1
