"""Classes of a trained model are rows: they are renamed, removed, merged and added without training."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from room import save_room

import kiloseg
from kiloseg import cli
from kiloseg.config import Loss
from kiloseg.inference import editing
from kiloseg.inference.classes import ModelClasses
from kiloseg.inference.loading import classes_of, content_of, model_of
from kiloseg.inference.row_fitting import fit_rows, outside_weight
from kiloseg.overrides import head_overrides
from kiloseg.training.checkpoint import load_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = ["background", "cup", "chair", "lamp", "plant"]


@pytest.fixture
def source(tmp_path):
    return save_room(tmp_path / "model", NAMES)


def table(path):
    return F.normalize(load_checkpoint(path)["model"]["head.table.rows_CD"], dim=1)


def test_classes_are_listed_renamed_removed_and_merged(source, tmp_path, capsys):
    cli.main(["classes", source, "list"])
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 6 and shown[2].split()[:3] == ["3", "5", "cup"]
    before = table(source)

    cli.main(["classes", source, "rename", "cup", "mug", "--out", str(tmp_path / "renamed")])
    assert kiloseg.load(tmp_path / "renamed").classes.names == ["background", "mug", "chair", "lamp", "plant"]

    cli.main(["classes", source, "remove", "background", "lamp", "--out", str(tmp_path / "removed")])
    model = kiloseg.load(tmp_path / "removed")
    assert model.classes.names == ["cup", "chair", "plant"] and model.classes.ids.tolist() == [3, 4, 9]
    assert model.classes.background is None and model.classes.train_samples.tolist() == [5, 4, 2]
    torch.testing.assert_close(table(tmp_path / "removed" / "step-00000007.pt"), before[[1, 2, 4]])
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    assert set(model(pixels).names) <= {"cup", "chair", "plant"}

    cli.main(["classes", source, "merge", "cup", "plant", "--out", str(tmp_path / "merged")])
    assert kiloseg.load(tmp_path / "merged").classes.names == NAMES[:4]
    merged = table(tmp_path / "merged" / "step-00000007.pt")
    torch.testing.assert_close(merged[1], F.normalize(before[1] + before[4], dim=0))
    torch.testing.assert_close(merged[[0, 2, 3]], before[[0, 2, 3]])


def test_a_class_that_is_added_is_found_where_it_was_shown(source, tmp_path):
    generator = np.random.default_rng(1)
    pixels = generator.integers(0, 60, (96, 96, 3)).astype(np.uint8)
    pixels[32:64, 32:64] = (250, 20, 20)
    mask = np.zeros((96, 96), dtype=np.uint8)
    mask[32:64, 32:64] = 255
    Image.fromarray(pixels).save(tmp_path / "image.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    example = [str(tmp_path / "image.png"), str(tmp_path / "mask.png")]
    cli.main(["classes", source, "add", "brick", *example, "--out", str(tmp_path / "more")])
    model = kiloseg.load(tmp_path / "more")
    assert model.classes.names == [*NAMES, "brick"] and model.classes.ids[-1] == 10
    # By hand: unit vectors at full resolution, their mean over the mask.
    with torch.no_grad():
        outputs = model.outputs(torch.from_numpy(pixels).permute(2, 0, 1)[None])
        units = F.normalize(F.interpolate(outputs, size=(96, 96), mode="bilinear", align_corners=False), dim=1)
    expected = F.normalize(units[0][:, torch.from_numpy(mask > 0)].mean(1), dim=0)
    torch.testing.assert_close(table(tmp_path / "more" / "step-00000007.pt")[-1], expected, rtol=1e-4, atol=1e-5)
    assert (model(pixels).labels[mask > 0] == 5).mean() > 0.5


def scene(generator, color):
    """A square of some color on noise, and its mask."""
    pixels = generator.integers(0, 60, (96, 96, 3)).astype(np.uint8)
    top, left = generator.integers(0, 64, 2)
    pixels[top : top + 32, left : left + 32] = color
    mask = np.zeros((96, 96), dtype=np.uint8)
    mask[top : top + 32, left : left + 32] = 1
    return pixels, mask


def test_fitting_changes_the_new_row_alone_and_finds_more(source):
    generator = np.random.default_rng(2)
    content = content_of(source)
    examples = {
        name: [scene(generator, color) for _ in range(4)]
        for name, color in (("brick", (250, 20, 20)), ("sky", (40, 90, 250)))
    }
    shown = {name: scene(generator, pairs[0][0][pairs[0][1] > 0][0]) for name, pairs in examples.items()}
    right = {}
    for fit in (False, True):
        changed = editing.add(content, examples, fit=fit)
        rows, before = (each["model"]["head.table.rows_CD"] for each in (changed, content))
        assert torch.equal(rows[:5], before) and torch.allclose(rows[5:].norm(dim=1), torch.ones(2))
        model = model_of(changed, source)
        assert model.classes.names == [*NAMES, "brick", "sky"] and model.classes.edited
        found = {name: model(pixels).labels == model.classes.names.index(name) for name, (pixels, _) in shown.items()}
        ious = [(found[n] & (m > 0)).sum() / (found[n] | (m > 0)).sum() for n, (_, m) in shown.items()]
        right[fit] = np.mean(ious)
    assert right[True] > right[False], right


def test_fitted_rows_lower_their_loss_and_stay_unit_vectors():
    torch.manual_seed(0)
    rows, *inside = (F.normalize(torch.randn(count, 8), dim=1) for count in (30, 50, 40))
    outside = [F.normalize(torch.randn(count, 8), dim=1) for count in (60, 0)]
    inside = [F.normalize(pixels + 1.5 * torch.eye(8)[axis], dim=1) for axis, pixels in enumerate(inside)]
    starts = torch.stack([pixels[0] for pixels in inside])
    shares = [[0.5], [0.2, 0.4, 0.2, 0.6]]
    assert outside_weight(shares) == pytest.approx(0.6 * (1 - 0.38) / 0.38)
    for logit in ("cosine", "distance"):
        loss = Loss(logit=logit)

        def objective(new, loss=loss):
            logits = [pixels @ torch.cat([rows, new]).T for pixels in (*inside, *outside)]
            if loss.logit == "distance":
                logits = [-(2 - 2 * each).clamp(min=0).sqrt() for each in logits]
            first, second, other, _ = ((loss.temperature * each).log_softmax(1)[:, -2:] for each in logits)
            right = torch.cat([first[:, 0], second[:, 1]])
            return -(right.mean() + outside_weight(shares) * (1 - other.exp().sum(1)).log().mean())

        fitted = fit_rows(starts, rows, inside, outside, shares=shares, loss=loss)
        assert fitted.norm(dim=1).tolist() == pytest.approx([1, 1], abs=1e-5)
        assert objective(fitted) < 0.7 * objective(starts)
        # Of the two, only one has a large weight on what it starts with.
        held = (fitted * starts).sum(1)
        assert (held < 0.999).all()


def test_fitting_spares_the_pixels_of_trained_classes():
    """Means of few pixels lie where all pixels are dense, and take what belongs to others; fitted rows do not."""
    torch.manual_seed(0)
    shared = F.normalize(torch.randn(16), dim=0)
    centers = F.normalize(torch.randn(12, 16) + 4 * shared, dim=1)
    directions = F.normalize(
        centers - centers.mean(0), dim=1
    )  # what softmax learns is the difference from other classes

    def pixels(number, count=300):
        return F.normalize(centers[number] + 0.12 * torch.randn(count, 16), dim=1)

    old, new = directions[:9], [pixels(number) for number in (9, 10, 11)]
    starts = F.normalize(torch.stack([each[:20].mean(0) for each in new]), dim=1)
    trained = torch.cat([pixels(number) for number in range(9)])
    outside = [trained[torch.randperm(len(trained))[:200]] for _ in new]
    fitted = fit_rows(starts, old, [each[:20] for each in new], outside, shares=[[0.1]] * 3, loss=Loss())

    def share_taken(rows):
        return ((trained @ torch.cat([old, rows]).T).argmax(1) >= 9).float().mean().item()

    found = [((each[20:] @ torch.cat([old, fitted]).T).argmax(1) == 9 + n).float().mean() for n, each in enumerate(new)]
    assert share_taken(starts) > 0.3 and share_taken(fitted) < 0.01
    assert min(found) > 0.9


@pytest.mark.parametrize("k", [1, 3])
def test_classes_of_several_prototypes(k, tmp_path, capsys):
    """They are listed, renamed, removed and added to with all their prototypes; what takes one vector a class says so."""
    source = save_room(tmp_path / "model", NAMES, **head_overrides("prototype"), **{"model.prototypes": k})
    content = content_of(source)
    before = content["model"]["head.table.rows_CkD"]
    cli.main(["classes", source, "list"])
    shown = capsys.readouterr().out.splitlines()
    means = F.normalize(before.mean(1), dim=1)
    cosine = (means @ means.T).fill_diagonal_(-2)
    assert f"({NAMES[cosine[1].argmax()]}, {cosine[1].max():.2f})" in shown[2]

    pixels, mask = scene(np.random.default_rng(3), (250, 20, 20))
    fewer = editing.rename(editing.remove(content, ["lamp"]), "cup", "mug")
    changed = editing.add(fewer, {"brick": [(pixels, mask)]})
    rows = changed["model"]["head.table.rows_CkD"]
    assert torch.equal(rows[:4], before[[0, 1, 2, 4]]) and rows.shape == (5, k, 6)
    assert torch.equal(rows[4], rows[4, :1].expand(k, -1))
    model = model_of(changed, source)
    result = model(pixels)
    assert model.classes.names == ["background", "mug", "chair", "plant", "brick"]
    assert (result.labels[mask > 0] == 4).mean() > 0.5 and result.confidence.min() >= 0.5

    if k == 1:
        merged = editing.merge(content, "cup", ["lamp"])["model"]["head.table.rows_CkD"]
        torch.testing.assert_close(merged[1, 0], F.normalize(before[1, 0] + before[3, 0], dim=0))
        assert editing.add(content, {"x": [(pixels, mask)]}, fit=True)["num_classes"] == 6
        return
    with pytest.raises(ValueError, match="has 3 prototypes a class, and merge takes one vector a class: train it with"):
        editing.merge(content, "cup", ["lamp"])
    with pytest.raises(
        ValueError, match="has 3 prototypes a class, and add --fit takes one vector a class: train it with"
    ):
        editing.add(content, {"x": [(pixels, mask)]}, fit=True)


def test_names_of_changed_classes_are_kept_for_data_that_has_them(source, tmp_path):
    content = content_of(source)
    changed = editing.rename(editing.merge(content, "cup", ["plant", "lamp"]), "cup", "thing")
    classes = classes_of(editing.remove(changed, ["background"]))
    assert classes.names == ["thing", "chair"] and classes.removed == ["background"] and classes.edited
    assert classes.other_names == [["plant", "lamp", "cup"], []]
    assert ModelClasses.from_record(classes.record()).record() == classes.record()


def test_refusals_name_what_is_wrong(source, tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "empty.png")
    Image.new("L", (9, 8), 1).save(tmp_path / "wide.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
    image = str(tmp_path / "image.png")
    out = ["--out", str(tmp_path / "out")]
    for words, message in (
        (["rename", "cup", "chair", *out], "a class called 'chair' exists already"),
        (["rename", "mug", "bowl", *out], "no classes are called 'mug'"),
        (["remove", *NAMES[1:], *out], "leaves 1: expected at least 2"),
        (["merge", "cup", "cup", *out], "expected two different classes or more"),
        (["rename", "cup", *out], "rename cup: expected rename OLD NEW"),
        (["remove", "cup"], "--out is missing"),
        (["remove", "cup", "--out", str(tmp_path / "model")], "holds checkpoints already"),
        (["add", "brick", image, str(tmp_path / "empty.png"), *out], "empty.png is empty"),
        (["add", "brick", image, str(tmp_path / "wide.png"), *out], r"wide.png is \(8, 9\), its image .* \(8, 8\)"),
        (["add", "cup", image, image, *out], "a class called 'cup' exists already"),
    ):
        with pytest.raises(SystemExit, match=message):
            cli.main(["classes", source, *words])
    assert not (tmp_path / "out").exists()
