"""Defines constants that all kernels of logits over unit vectors share."""

import math

LOG2E = math.log2(math.e)
"""Exponentials use base 2, which torch computes in half the time on a CPU with AVX2."""

MIN_SQUARED_DISTANCE = 1e-7
"""2 - 2 o.e of unit vectors is only this exact in float32. Below it, a distance has no slope."""

SAFE_EXPONENT = 80.0
"""exp(-80), and a million times exp(40), are far from the limits of float32. Logits of unit vectors span at most 2 tau, so a
softmax needs no maximum up to tau = 40."""
