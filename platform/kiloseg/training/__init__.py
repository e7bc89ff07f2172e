"""This package contains the training loop and its parts."""
