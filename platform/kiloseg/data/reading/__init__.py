"""This package reads data sets into training batches."""
