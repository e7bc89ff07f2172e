"""A single run ends early where validations no longer get better, and keeps its best checkpoint."""

from pathlib import Path

import pytest

from kiloseg.metrics import IoU
from kiloseg.overrides import override
from kiloseg.training import loop
from kiloseg.training.checkpoint import load_checkpoint
from kiloseg.training.loop import train


@pytest.fixture
def scripted(monkeypatch):
    """Validations that give the listed mIoUs, one after another."""

    def use(mious):
        left = iter(mious)

        class Counts(IoU):
            def compute(self):
                return super().compute() | {"miou": next(left)}

        def evaluate(segmenter, batches, **keywords):
            counts = Counts(segmenter.num_classes)
            for images, labels in batches:
                counts.update(segmenter.predict(images), labels)
            return counts

        monkeypatch.setattr(loop, "evaluate", evaluate)

    return use


def checkpoints(config):
    return sorted(path.name for path in Path(config.trainer.output).glob("step-*.pt"))


@pytest.mark.parametrize(
    ("patience", "mious", "last", "best"),
    [
        (1, [0.1, 0.2, 0.2, 0.9], 3, 2),
        (2, [0.3, 0.2, 0.25, 0.9], 3, 1),
        (2, [0.3, 0.2, 0.4, 0.1, 0.2, 0.9], 5, 3),
        (0, [0.3, 0.2, 0.1, 0.1], 4, None),
        (9, [0.3, 0.2, 0.1, 0.1], 4, 1),
    ],
)
def test_run_ends_when_patience_is_over(quick, scripted, patience, mious, last, best):
    scripted(mious)
    config = override(
        quick,
        {
            "trainer.steps": len(mious),
            "trainer.validate_every": 1,
            "trainer.patience": patience,
            "trainer.keep_checkpoints": 1,
        },
    )
    reports = []
    final = train(config, reports.append)
    assert final.step == last
    assert [report["val/miou"] for report in reports] == mious[:last]
    kept = {last} | ({best} if patience else set())
    assert checkpoints(config) == [f"step-{step:08d}.pt" for step in sorted(kept)]
    again = []
    assert train(config, again.append, resume=config.trainer.output).step == last
    assert not again, "a run that ended early is over"


def test_resumed_run_knows_how_long_it_has_waited(quick, scripted, tmp_path):
    config = override(
        quick,
        {
            "trainer.steps": 6,
            "trainer.validate_every": 1,
            "trainer.patience": 3,
            "trainer.keep_checkpoints": 9,
        },
    )
    mious = [0.5, 0.1, 0.2, 0.3, 0.9, 0.9]
    scripted(mious)
    assert train(config, lambda report: None).step == 4
    other = override(config, {"trainer.output": str(tmp_path / "other")})
    scripted(mious[2:])
    state = load_checkpoint(Path(config.trainer.output) / "step-00000002.pt")
    assert train(other, lambda report: None, resume=state).step == 4


def test_patience_needs_several_validations(quick):
    with pytest.raises(ValueError, match=r"trainer.patience = 2: expected .* trainer.validate_every > 0"):
        override(quick, {"trainer.patience": 2, "trainer.validate_every": 0})
