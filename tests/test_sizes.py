"""Sizes that are "auto": what they become, that a run has numbers for them, and how they are given."""

import pytest
from mlflow import MlflowClient
from test_train_command import words

from kiloseg import cli
from kiloseg.config import Config, Loss, Model, Negatives, sizes
from kiloseg.config.sizes import auto_embed_dim, auto_negatives
from kiloseg.losses.negatives import resolve_negatives
from kiloseg.memory import plan
from kiloseg.models import Segmenter
from kiloseg.ops import cpu
from kiloseg.overrides import flatten, override, with_sizes
from kiloseg.training.checkpoint import load_checkpoint
from kiloseg.tuning.search import Search, search
from kiloseg.tuning.space import Space, choice

AUTO = {"model.embed_dim": "auto", "loss.negatives.kind": "random", "loss.negatives.count": "auto"}


@pytest.mark.parametrize("kind", ["random", "nearest", "mixed"])
def test_sizes_grow_with_the_classes_and_fit_them(kind):
    counts = [*range(3, 70), 256, 1024, 10_000, 65_535]
    dims = [auto_embed_dim(C) for C in counts]
    negatives = [auto_negatives(C, kind) for C in counts]
    assert dims == sorted(dims) and dims[0] < dims[-1] <= 512
    assert all(dim >= 8 and dim % 8 == 0 for dim in dims)
    assert negatives == sorted(negatives) and negatives[0] < negatives[-1]
    assert all(2 <= K <= C - 1 for K, C in zip(negatives, counts, strict=True))
    assert auto_negatives(2, kind) == 1


def test_only_sizes_that_are_auto_are_replaced():
    config = override(Config(), AUTO)
    sized = with_sizes(config, 300)
    assert sized.model.embed_dim == auto_embed_dim(300)
    assert sized.loss.negatives.count == auto_negatives(300, "random")
    changed = {name for name, value in flatten(sized).items() if value != flatten(config)[name]}
    assert changed == {"model.embed_dim", "loss.negatives.count"}
    assert with_sizes(sized, 1000) == sized
    assert with_sizes(Config(), 300) == Config()


@pytest.mark.parametrize(
    ("part", "named"),
    [
        (lambda: Model(embed_dim="much"), "model.embed_dim = 'much': expected at least 2, or auto"),
        (
            lambda: Negatives(count="many"),
            "loss.negatives.count = 'many': expected at least 1 negative per pixel, or auto",
        ),
        (
            lambda: override(Config(), {"model.embed_dim": "much"}),
            "model.embed_dim = 'much' is a str: expected int | 'auto'",
        ),
    ],
)
def test_no_other_word_is_a_size(part, named):
    with pytest.raises(ValueError) as caught:
        part()
    assert str(caught.value).startswith(named)


@pytest.mark.parametrize("head", ["embedding", "prototype"])
def test_a_model_and_its_loss_have_the_sizes_of_their_classes(head):
    model = Model(arch="fpn", backbone="test_resnet", head=head, embed_dim="auto", prototypes=1)
    segmenter = Segmenter(model, 300, Loss(negatives=Negatives(kind="all")))
    assert segmenter.head.table().shape[-1] == auto_embed_dim(300)
    assert resolve_negatives(Negatives(kind="random", count="auto"), 300).drawn == auto_negatives(300, "random") + 1


def test_plans_are_those_of_the_numbers(quick):
    config = override(quick, AUTO)
    assert plan(config, num_classes=300) == plan(with_sizes(config, 300), num_classes=300)
    assert plan(config, num_classes=300) > plan(override(config, {"model.embed_dim": 2}), num_classes=300)


def test_a_run_stores_shows_and_resumes_with_numbers(squares, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    output = tmp_path / "train"
    flags = {"model__embed_dim": "auto", "loss__negatives__kind": "random", "loss__negatives__count": "auto"}
    command = ["train", *words(squares, output, **flags)]
    cli.main(command)
    stored = load_checkpoint(output / "step-00000004.pt")["config"]
    numbers = {"model.embed_dim": auto_embed_dim(6), "loss.negatives.count": auto_negatives(6, "random")}
    assert {name: stored[name] for name in numbers} == numbers
    run = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db").get_run((output / "mlflow_run_id").read_text().strip())
    assert {name: run.data.params[name] for name in numbers} == {name: str(size) for name, size in numbers.items()}
    cli.main([*command, "--resume"])


def test_auto_is_no_value_to_choose(quick, tmp_path):
    with pytest.raises(ValueError, match=r"search of model\.embed_dim: expected numbers to choose from, not auto"):
        Space(quick, (choice("model.embed_dim", (8, "auto")),)).check(6)


def test_a_search_over_a_run_with_auto_refuses_what_has_no_room(quick, tmp_path):
    space = Space(override(quick, AUTO), (choice("loss.negatives.count", (2, 7)),))
    study = Search(name="sizes", runs=str(tmp_path))
    with (
        pytest.raises(ValueError, match=r"negatives\.count = 7: 6 classes leave a pixel only 5 others"),
        search(study, space, first=[], script="here"),
    ):
        pass


def test_sizes_end_where_the_kernels_of_the_cpu_end():
    """The settings may not import torch, so they have the kernels' limits as numbers of their own."""
    assert sizes.MAX_DIM == cpu.MAX_DIM
    assert set(sizes.MAX_NEGATIVES.values()) == {cpu.MAX_NEAREST}
