"""Reading data sets into training batches."""
