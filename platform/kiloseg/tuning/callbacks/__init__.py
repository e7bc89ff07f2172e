"""Tune callbacks of a study: the recorder for MLflow, and the progress on the console as a table or as lines."""
