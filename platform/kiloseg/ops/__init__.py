"""Arithmetic that losses and prediction share."""
