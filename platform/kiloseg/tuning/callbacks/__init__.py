"""What listens to a study: the recorder for MLflow, and the console."""
