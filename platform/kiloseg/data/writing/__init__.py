"""This package builds data sets."""
