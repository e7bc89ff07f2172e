"""Recording of runs in MLflow, which reads the variables that are set here when it is imported."""

import os

# MLflow's telemetry is off: it must not send anything about a run.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "1")
# By default MLflow retries 7 times with doubling pauses, so that a wrong address would be reported only after minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
# At the end of a run MLflow would print its address, including the password.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
# A model is hundreds of small files, each a line of the bar where the output is no terminal.
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
