"""A network that is recomputed or compiled gives the same numbers; what cannot be recomputed is refused."""

import pytest
import torch
from torch._dynamo.utils import counters
from torch.nn.modules.batchnorm import _BatchNorm

from kiloseg.config import Config
from kiloseg.models import build_segmenter
from kiloseg.models.architectures import ARCHITECTURES
from kiloseg.models.depthwise import Depthwise, InFloat32, quicken_depthwise
from kiloseg.models.execution import blocks
from kiloseg.ops import cpu
from kiloseg.overrides import override

pytestmark = pytest.mark.usefixtures("one_thread")


def model_of(values, num_classes=7):
    torch.manual_seed(0)
    return build_segmenter(override(Config(), {"model.embed_dim": 5, **values}), num_classes)


def stepped(model, side=64, precision=torch.float32):
    """Loss, gradients and buffers after forward and backward of one batch with dropout as drawn."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8, generator=generator)
    labels = torch.randint(-1, 7, (2, side, side), generator=generator)
    torch.manual_seed(2)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        outputs = model(images)
    loss = model.head.loss(outputs, labels).cross_entropy
    loss.backward()
    grads = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return loss.detach(), grads, dict(model.named_buffers())


def assert_same(got, expected, rtol=1e-4, buffers=0.0):
    assert got[0].isfinite()
    torch.testing.assert_close(got[0], expected[0], rtol=1e-5, atol=1e-6)
    assert got[1].keys() == expected[1].keys()
    scale = max(grad.abs().max() for grad in expected[1].values())
    for name, grad in expected[1].items():
        torch.testing.assert_close(got[1][name], grad, rtol=rtol, atol=float(1e-5 * scale), msg=name)
    assert got[2].keys() == expected[2].keys()
    for name, buffer in expected[2].items():
        torch.testing.assert_close(got[2][name], buffer, rtol=buffers, atol=buffers, msg=name)


@pytest.mark.parametrize("arch", sorted(ARCHITECTURES))
def test_recomputed_network_equals_the_plain_one(arch):
    values = {"model.arch": arch, "model.backbone": "test_vit" if arch == "dpt" else "test_resnet"}
    side = 128 if arch == "pan" else 64
    plain, recomputed = (model_of(values | {"trainer.checkpoint_activations": on}) for on in (False, True))
    assert plain.state_dict().keys() == recomputed.state_dict().keys()
    before = {name: buffer.clone() for name, buffer in plain.named_buffers()}
    expected = stepped(plain, side)
    assert_same(stepped(recomputed, side), expected)
    norms = [name for name, module in plain.named_modules() if isinstance(module, _BatchNorm)]
    for name in norms:
        assert expected[2][f"{name}.num_batches_tracked"] == 1
        assert not torch.equal(expected[2][f"{name}.running_mean"], before[f"{name}.running_mean"])


@pytest.mark.parametrize(
    "backbone",
    ["tf_efficientnet_lite0", "test_convnext", "test_efficientnet", "test_nfnet", "test_byobnet", "densenet121"],
)
def test_backbones_of_other_families_are_recomputed(backbone):
    values = {"model.arch": "fpn", "model.backbone": backbone}
    plain, recomputed = (model_of(values | {"trainer.checkpoint_activations": on}) for on in (False, True))
    assert_same(stepped(recomputed), stepped(plain))


def test_recomputed_under_bf16_autocast():
    values = {"model.arch": "deeplabv3plus", "model.backbone": "test_resnet"}
    plain, recomputed = (model_of(values | {"trainer.checkpoint_activations": on}) for on in (False, True))
    assert_same(stepped(recomputed, precision=torch.bfloat16), stepped(plain, precision=torch.bfloat16), rtol=1e-2)


def test_blocks_are_those_of_backbone_and_decoder():
    names = [
        name for name, _ in blocks(model_of({"model.arch": "deeplabv3plus", "model.backbone": "resnet18"}).network)
    ]
    backbone = [f"encoder.model.layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)]
    assert names[:8] == backbone
    assert {"decoder.aspp.0.convs.1", "decoder.aspp.0.project", "decoder.block1", "decoder.block2"} <= set(names)


def test_evaluation_is_not_recomputed():
    values = {"model.arch": "fpn", "model.backbone": "test_resnet"}
    plain, recomputed = (model_of(values | {"trainer.checkpoint_activations": on}).eval() for on in (False, True))
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    assert torch.equal(plain.predict(images), recomputed.predict(images))


def test_block_that_changes_its_input_is_named():
    model = model_of({"model.arch": "fpn", "model.backbone": "test_resnet", "trainer.checkpoint_activations": True})
    name, block = next(iter(blocks(model.network)))
    kind = type(block)
    block.__class__ = type("Doubling", (kind,), {"forward": lambda self, x: kind.forward(self, x.mul_(2))})
    with pytest.raises(ValueError, match=rf"checkpoint_activations = True: {name} \(Doubling\).*changed in place"):
        stepped(model)


def test_compiled_network_equals_the_plain_one(monkeypatch):
    """Traced and differentiated as for the default backend, whose C++ takes minutes to build on a CPU."""
    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compile_module(self, backend="aot_eager"))
    values = {"model.arch": "fpn", "model.backbone": "test_resnet"}
    plain, compiled = (model_of(values | {"trainer.compile": on}) for on in (False, True))
    assert plain.state_dict().keys() == compiled.state_dict().keys()
    counters.clear()
    got = stepped(compiled)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    assert_same(got, stepped(plain), rtol=1e-3, buffers=1e-6)


def dtypes(segmenter):
    """The types of an encoder's features on a CPU under bf16 autocast."""
    with torch.autocast("cpu", torch.bfloat16):
        features = segmenter.network.encoder(torch.rand(2, 3, 32, 32))
    return {feature.dtype for feature in features[1:]}


LITE = {"model.arch": "fpn", "model.backbone": "tf_efficientnet_lite0"}
GROUPED = {"model.arch": "fpn", "model.backbone": "resnext50_32x4d"}


@pytest.mark.skipif(cpu.library() is None, reason="no compiler")
def test_an_encoder_of_depthwise_convolutions_follows_autocast():
    assert dtypes(model_of(LITE)) == {torch.bfloat16}


@pytest.mark.parametrize("values", [GROUPED, LITE | {"trainer.compile": True}], ids=["groups of several", "compiled"])
def test_without_fast_gradients_an_encoder_stays_in_float32(values):
    assert dtypes(model_of(values)) == {torch.float32}


@pytest.mark.skipif(cpu.library() is None, reason="no compiler")
@pytest.mark.parametrize(("side", "replaced"), [(13, True), (15, False)])
def test_kernels_for_which_torch_hangs_in_bfloat16_are_left_in_float32(side, replaced):
    network = torch.nn.Module()
    network.encoder = torch.nn.Conv2d(4, 4, side, padding=side // 2, groups=4)
    quicken_depthwise(network, by_kernel=True)
    assert isinstance(network.encoder.forward, Depthwise if replaced else InFloat32)


@pytest.mark.skipif(cpu.library() is None, reason="no compiler")
def test_grouped_convolutions_of_a_decoder_say_nothing_about_the_encoder():
    network = torch.nn.Module()
    network.encoder = torch.nn.Conv2d(4, 4, 5, padding=2, groups=4)
    network.decoder = torch.nn.Conv2d(4, 4, 3, groups=2)
    quicken_depthwise(network, by_kernel=True)
    assert isinstance(network.encoder.forward, Depthwise)
    assert "forward" not in vars(network.decoder)


def test_without_a_compiler_an_encoder_stays_in_float32(monkeypatch):
    monkeypatch.setenv("KILOSEG_NATIVE", "0")
    segmenter = model_of(LITE).eval()
    assert dtypes(segmenter) == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16):
        outputs = segmenter(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    assert outputs.dtype == torch.bfloat16, "the decoder is still in mixed precision"


@pytest.mark.skipif(cpu.library() is None, reason="no compiler")
@pytest.mark.parametrize("layout", [False, True], ids=["channels first", "channels last"])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("arch", "backbone", "convolutions"),
    [("fpn", "tf_efficientnet_lite0", 11), ("fpn", "test_convnext", 4), ("deeplabv3plus", "test_efficientnet", 1)],
)
def test_depthwise_gradients_equal_those_of_torch(arch, backbone, convolutions, precision, layout, monkeypatch):
    values = {"model.arch": arch, "model.backbone": backbone, "trainer.channels_last": layout}
    quick = model_of(values)
    monkeypatch.setenv("KILOSEG_NATIVE", "0")
    plain = model_of(values)
    monkeypatch.delenv("KILOSEG_NATIVE")
    vars(plain.network.encoder).pop("forward", None)  # torch's own gradients also in bfloat16
    assert sum("forward" in vars(module) for module in quick.network.modules()) >= convolutions
    assert quick.state_dict().keys() == plain.state_dict().keys()
    side = 128 if arch == "deeplabv3plus" else 64
    got, expected = (stepped(model, side, precision) for model in (quick, plain))
    if precision == torch.float32:
        assert_same(got, expected)
    assert torch.equal(got[0], expected[0]), "the forward pass is torch's own"
    one, other = (torch.cat([grad.flatten() for grad in grads.values()]) for _, grads, _ in (got, expected))
    assert torch.nn.functional.cosine_similarity(one, other, 0) > 0.999
