"""Any timm model is a backbone: one of every family gives maps at the strides of decoders, from images of any size."""

import itertools

import pytest
import timm
import torch

from kiloseg.config import Model
from kiloseg.models.backbone import examine
from kiloseg.models.pyramid import Pyramid, _starts
from kiloseg.models.segmenter import Segmenter

FAMILIES = {
    "beit": "beit_base_patch16_224",
    "byoanet": "eca_halonext26ts",
    "byobnet": "test_byobnet",
    "cait": "cait_xxs24_224",
    "coat": "coat_tiny",
    "convit": "convit_tiny",
    "convmixer": "convmixer_768_32",
    "convnext": "test_convnext",
    "cpubone": "cpubone_nano",
    "crossvit": "crossvit_tiny_240",
    "csatv2": "csatv2",
    "cspnet": "cs3darknet_s",
    "cspnext": "cspnext_tiny",
    "davit": "davit_tiny",
    "deepseek_vit": "deepseek_vit_412m",
    "deit": "deit_tiny_patch16_224",
    "densenet": "densenet121",
    "dla": "dla34",
    "dpn": "dpn48b",
    "edgenext": "edgenext_xx_small",
    "efficientformer": "efficientformer_l1",
    "efficientformer_v2": "efficientformerv2_s0",
    "efficientnet": "test_efficientnet",
    "efficientvim": "efficientvim_m1",
    "efficientvit_mit": "efficientvit_b0",
    "efficientvit_msra": "efficientvit_m0",
    "eva": "vit_tiny_patch16_dinov3_qkvb",
    "fasternet": "fasternet_t0",
    "fastvit": "fastvit_t8",
    "focalnet": "focalnet_tiny_srf",
    "gcvit": "gcvit_xxtiny",
    "gemma4_vit": "gemma4_vit_167m",
    "ghostnet": "ghostnet_050",
    "hardcorenas": "hardcorenas_b",
    "hgnet": "hgnetv2_b0",
    "hiera": "hiera_tiny_224",
    "hieradet_sam2": "sam2_hiera_tiny",
    "hrnet": "hrnet_w18_small",
    "iformer": "iformer_t",
    "inception_next": "inception_next_atto",
    "inception_resnet_v2": "inception_resnet_v2",
    "inception_v3": "inception_v3",
    "inception_v4": "inception_v4",
    "lcnetv2": "lcnetv2_small",
    "levit": "levit_128s",
    "lowformer": "lowformer_b0",
    "mambaout": "test_mambaout",
    "maxxvit": "test_coatnet",
    "metaformer": "poolformer_s12",
    "mlp_mixer": "gmlp_ti16_224",
    "mobilenetv3": "mobilenetv3_small_050",
    "mobilenetv5": "mobilenetv5_base",
    "mobilevit": "mobilevit_xxs",
    "mvitv2": "mvitv2_tiny",
    "naflexvit": "naflexvit_base_patch16_gap",
    "nasnet": "nasnetalarge",
    "nest": "nest_tiny",
    "nextvit": "nextvit_small",
    "nfnet": "test_nfnet",
    "pit": "pit_ti_224",
    "pnasnet": "pnasnet5large",
    "pvt_v2": "pvt_v2_b0",
    "qwen3_vit": "qwen3_vit_88m",
    "rdnet": "rdnet_tiny",
    "regnet": "regnetx_004_tv",
    "repghost": "repghostnet_050",
    "repvit": "repvit_m1",
    "res2net": "res2next50",
    "resnest": "resnest14d",
    "resnet": "test_resnet",
    "resnetv2": "resnetv2_18",
    "rexnet": "rexnet_100",
    "selecsls": "selecsls42",
    "senet": "legacy_seresnet18",
    "sequencer": "sequencer2d_s",
    "shvit": "shvit_s1",
    "sknet": "skresnet18",
    "starnet": "starnet_s050",
    "swiftformer": "swiftformer_xs",
    "swin_transformer": "swin_tiny_patch4_window7_224",
    "swin_transformer_v2": "swinv2_tiny_window8_256",
    "swin_transformer_v2_cr": "swinv2_cr_tiny_224",
    "tiny_vit": "tiny_vit_5m_224",
    "tnt": "tnt_s_legacy_patch16_224",
    "tresnet": "tresnet_m",
    "twins": "twins_svt_small",
    "vgg": "vgg11",
    "visformer": "visformer_tiny",
    "vision_transformer": "test_vit",
    "vision_transformer_hybrid": "vit_tiny_r_s16_p8_224",
    "vision_transformer_relpos": "test_vit_relpos",
    "vision_transformer_sam": "samvit_base_patch16_224",
    "vitamin": "vitamin_small_224",
    "volo": "volo_d1_224",
    "vovnet": "ese_vovnet19b_slim",
    "xception": "legacy_xception",
    "xception_aligned": "xception41p",
    "xcit": "xcit_nano_12_p8_224",
}
"""A small model of every module of timm."""

QUICK = ("test_resnet", "test_vit", "test_coatnet", "test_mambaout", "starnet_s050", "efficientvit_m0")
"""One of each kind: standard strides; one stride; a fixed size; channels last; strides from 4; strides from 16."""

REFUSED = {"gemma4_vit_167m": "Tensor.item"}
"""Models that cannot be backbones, with a part of the reason."""


def test_every_family_is_in_the_table():
    assert set(FAMILIES) == {module for module in timm.list_modules() if timm.list_models(module=module)}


def segments(backbone, arch):
    """Runs a network over the backbone on images without data, in training and in validation, at two sizes."""
    with torch.device("meta"):
        segmenter = Segmenter(Model(arch=arch, backbone=backbone, embed_dim=4), 5)
    for training, size in ((True, (224, 288)), (False, (192, 128))):
        segmenter.train(training)
        with torch.no_grad():
            outputs = segmenter(torch.empty((2, 3, *size), dtype=torch.uint8, device="meta"))
        assert outputs.shape[:2] == (2, 4)
        assert tuple(outputs.shape[2:]) == (size[0] // 4, size[1] // 4)


@pytest.mark.parametrize("arch", ["fpn", "deeplabv3plus"])
@pytest.mark.parametrize("backbone", QUICK)
def test_kinds_of_backbones(backbone, arch):
    segments(backbone, arch)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["fpn", "deeplabv3plus"])
@pytest.mark.parametrize("backbone", FAMILIES.values())
def test_families(backbone, arch):
    if backbone in REFUSED:
        with pytest.raises(
            ValueError, match=f"model.backbone = '{backbone}' cannot be a backbone.*{REFUSED[backbone]}"
        ):
            segments(backbone, arch)
        return
    segments(backbone, arch)


def test_position_embeddings_are_resized():
    assert examine("test_vit").native is None
    assert examine("test_vit").options == {"dynamic_img_size": True}


def test_maps_of_one_size_give_a_pyramid():
    """Whose deepest map is the model's own, and whose others are resized from it."""
    encoder = Pyramid(name="test_vit", pretrained=False, options={}).eval()
    assert encoder.out_channels == [3, 0, 64, 64, 64, 64]
    images = torch.rand(1, 3, 96, 64)
    with torch.no_grad():
        maps = encoder(images)
        own = encoder.model(images)
    assert [tuple(each.shape[2:]) for each in maps] == [(96, 64), (48, 32), (24, 16), (12, 8), (6, 4), (3, 2)]
    torch.testing.assert_close(maps[4], own[1])


def test_windows_cover_an_image_and_are_averaged():
    """A map of windows equals, at each cell, the mean over the windows that hold it."""
    encoder = Pyramid(name="test_coatnet", pretrained=False, options={}).eval()
    side = examine("test_coatnet").window
    assert side == examine("test_coatnet").native == 160
    images = torch.rand(2, 3, 192, 160)
    with torch.no_grad():
        whole = encoder(images)
        top, bottom = (encoder(images[:, :, start : start + 160]) for start in (0, 32))
        alone = encoder(images[:, :, :160])
    for level, (maps, upper, lower) in enumerate(zip(whole, top, bottom, strict=True)):
        if not level:
            continue
        shift = 32 // 2**level
        torch.testing.assert_close(maps[:, :, :shift], upper[:, :, :shift], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(maps[:, :, -shift:], lower[:, :, -shift:], rtol=1e-4, atol=1e-5)
        middle = (upper[:, :, shift:] + lower[:, :, :-shift]) / 2
        torch.testing.assert_close(maps[:, :, shift:-shift], middle, rtol=1e-4, atol=1e-5)
    # An image of the model's own size is a single window.
    with torch.no_grad():
        own = encoder.model(images[:, :, :160])
    for maps, expected in zip(alone[1:], own, strict=True):
        torch.testing.assert_close(maps, expected)
    with torch.no_grad():
        assert [tuple(each.shape[2:]) for each in encoder(images[:, :, :64, :96])][-1] == (2, 3)


@pytest.mark.parametrize("side", [32, 160, 224])
@pytest.mark.parametrize("length", [32, 160, 192, 224, 352, 512, 1024])
def test_windows_leave_no_gap(side, length):
    length = max(length, side)
    starts = _starts(length, side)
    assert starts[0] == 0 and starts[-1] + side == length
    assert all(start % 32 == 0 for start in starts)
    assert all(after - before <= side for before, after in itertools.pairwise(starts))


def test_gradients_reach_a_model_that_runs_on_windows():
    segmenter = Segmenter(Model(arch="fpn", backbone="test_coatnet", embed_dim=4), 5)
    segmenter(torch.randint(0, 255, (2, 3, 192, 160), dtype=torch.uint8)).square().sum().backward()
    gradients = [parameter.grad for parameter in segmenter.backbone_parameters()]
    assert sum(gradient is not None and bool(gradient.any()) for gradient in gradients) > 0.9 * len(gradients)


def test_networks_of_before_are_built_as_before():
    """With the encoder of segmentation-models-pytorch, whose names are in checkpoints, and from the same random numbers."""
    import segmentation_models_pytorch as smp

    torch.manual_seed(3)
    ours = Segmenter(Model(arch="fpn", backbone="test_resnet", embed_dim=4), 5).network.state_dict()
    torch.manual_seed(3)
    theirs = smp.create_model("fpn", encoder_name="tu-test_resnet", encoder_weights=None, classes=4).state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_model_without_maps_is_refused_by_name(monkeypatch):
    def create(name, *, features_only=False, **options):
        if features_only:
            raise RuntimeError("features_only not implemented for this")
        return torch.nn.Identity()

    monkeypatch.setattr(timm, "create_model", create)
    examine.cache_clear()
    with pytest.raises(
        ValueError, match=r"model.backbone = 'test_resnet' gives no feature maps and cannot be a backbone"
    ):
        examine("test_resnet")
    monkeypatch.undo()
    examine.cache_clear()
