"""What training minimises: the head's own cross-entropy, with the regularizer for embeddings."""

from __future__ import annotations

from torch import Tensor

from kiloseg.config import Loss
from kiloseg.losses.dense import dense_cross_entropy
from kiloseg.losses.embedding import embedding_cross_entropy
from kiloseg.losses.official import official_cross_entropy
from kiloseg.losses.separation import class_separation


def objective(
    outputs_BDhw: Tensor,
    table_CD: Tensor | None,
    labels_BHW: Tensor,
    loss: Loss,
) -> tuple[Tensor, Tensor | None]:
    """Cross-entropy of labelled pixels, and the weighted regularizer, which does not depend on the batch.

    The two come apart because only the first has to be averaged over labelled pixels of all workers.

    Args:
        outputs_BDhw: embeddings, or logits where `table_CD` is None.
        table_CD: the class table of an embedding head, None for a dense head.
        labels_BHW: int64, -1 for ignore.
        loss: its settings; a dense head uses none of them.
    """
    if table_CD is None:
        return dense_cross_entropy(outputs_BDhw, labels_BHW), None
    if loss.formula == "kiloseg":
        cross_entropy = embedding_cross_entropy(
            outputs_BDhw,
            table_CD,
            labels_BHW,
            negatives=loss.negatives,
            temperature=loss.temperature,
            logit=loss.logit,
        )
    else:
        cross_entropy = official_cross_entropy(
            outputs_BDhw,
            table_CD,
            labels_BHW,
            count=loss.negatives.count,
            temperature=loss.temperature,
        )
    if loss.separation_weight == 0:
        return cross_entropy, None
    separation = class_separation(table_CD, margin=loss.separation_margin, sample=loss.separation_sample)
    return cross_entropy, loss.separation_weight * separation
