"""This package holds the losses, as pure functions of tensors."""

from kiloseg.config import Negatives
from kiloseg.losses.dense import dense_cross_entropy
from kiloseg.losses.embedding import check_labels, embedding_cross_entropy
from kiloseg.losses.official import official_cross_entropy
from kiloseg.losses.prototype import PrototypeTerms, assign_prototypes, prototype_cross_entropy, prototype_terms
from kiloseg.losses.separation import class_separation

__all__ = [
    "Negatives",
    "PrototypeTerms",
    "assign_prototypes",
    "check_labels",
    "class_separation",
    "dense_cross_entropy",
    "embedding_cross_entropy",
    "official_cross_entropy",
    "prototype_cross_entropy",
    "prototype_terms",
]
