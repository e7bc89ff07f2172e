"""One run, by name or by its settings: the rows of the paper's tables, and those that need neither archives nor a GPU.

    python experiments/train.py --list                                        all presets, and what they are held against
    python experiments/train.py --preset ade20k-resnet50 --data.path data/ade20k
    python experiments/train.py --preset emoji --data.path data/emoji-96 --loss.negatives.kind random
    python experiments/train.py --preset ade20k-resnet50 --data.path data/ade20k --resume      go on from its newest checkpoint

A preset sets every setting that is not given. The run goes to MLflow (experiment "train", or --experiment), its checkpoints to
trainer.output. The settings of the paper's code that are not in its text are those of independent runs,
https://github.com/shipra25jain/ESSNet/issues/5.

Expected: the published figures that --list prints; experiments/LOG.md has those that were measured.
"""

from __future__ import annotations

import sys
from pathlib import Path

# This uses the library beside this file, not an installed one: a submitted job runs the code that was submitted.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

from kiloseg import cli
from kiloseg.commands.train import Arguments, main

if __name__ == "__main__":
    cli.run(lambda arguments: main(arguments, "experiments/train.py"), Arguments, __doc__)
