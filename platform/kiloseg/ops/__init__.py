"""This package holds the arithmetic that losses and prediction share."""
