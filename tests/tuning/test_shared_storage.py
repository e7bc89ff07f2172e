"""Where the trials of several drivers meet: journals and databases, and what cannot be one."""

import shutil
import tempfile
from pathlib import Path
from urllib.parse import quote

import optuna
import pytest
import sqlalchemy
from mlflow import MlflowClient

from kiloseg.tracking.services import NotStartedError, Postgres
from kiloseg.tuning.search import Search
from kiloseg.tuning.shared_storage import SharedPlace, open_storage, shared_place


@pytest.fixture
def postgres(monkeypatch):
    folder = Path(tempfile.mkdtemp(prefix="kiloseg-shared-"))
    folder.chmod(0o755)
    try:
        server = Postgres(folder / "postgres")
    except NotStartedError as error:
        if "not installed" not in str(error):
            raise
        pytest.skip(str(error))
    monkeypatch.setenv("PGUSER", "mlflow")
    yield server
    server.stop()
    shutil.rmtree(folder)


def test_a_word_is_a_journal_among_the_results_and_a_url_a_database(tmp_path):
    assert shared_place("mine", str(tmp_path), "s").location == f"{tmp_path}/shared/mine.journal"
    assert shared_place("mine", f"file://{tmp_path}", "s").location == f"{tmp_path}/shared/mine.journal"
    url = "postgresql+psycopg2://host/database"
    assert shared_place(url, "s3://bucket/runs", "s") == SharedPlace(name="s", location=url)
    assert shared_place(f"{url}#mine", "s3://bucket/runs", "s") == SharedPlace(name="mine", location=url)
    with pytest.raises(
        ValueError, match=r"--share mine: results are at s3://bucket/runs, .* give the URL of a database"
    ):
        shared_place("mine", "s3://bucket/runs?region=eu-west-1", "s")


@pytest.mark.parametrize(
    ("share", "message"),
    [
        ("a/b", "share = 'a/b': expected a word without slashes and quotes"),
        ("", "share = '': expected a word"),
        ("postgresql+psycopg2://me:secret@host/database", "expected a URL without user and password"),
    ],
)
def test_what_is_no_place_is_refused(share, message):
    with pytest.raises(ValueError) as refused:
        Search(name="s", share=share)
    assert message in str(refused.value) and "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "kind", "message"),
    [
        ("nosql://host/database", ValueError, "expected the URL of a database that SQLAlchemy knows"),
        ("postgresql+psycopg2://127.0.0.1:9/database", ConnectionError, "127.0.0.1:9/database does not answer"),
    ],
)
def test_what_is_no_database_is_named(url, kind, message):
    with pytest.raises(kind, match=message):
        open_storage(SharedPlace(name="s", location=url))


def tables(url):
    return sqlalchemy.inspect(sqlalchemy.create_engine(url)).get_table_names()


def test_database_of_mlflow_is_refused_and_left_as_it_is(tmp_path):
    """Both keep the version of their tables under one name; Optuna would leave its tables there before it fails."""
    url = f"sqlite:///{tmp_path}/mlflow.db"
    MlflowClient(url).create_experiment("one")
    before = tables(url)
    with pytest.raises(ValueError, match=r"this database belongs to MLflow.* give a database of its own"):
        open_storage(SharedPlace(name="s", location=url))
    assert tables(url) == before
    with pytest.raises(RuntimeError, match="no longer compatible"):
        optuna.storages.RDBStorage(url)


def test_schema_of_its_own_beside_mlflow(postgres):
    """As the message says, in one database of PostgreSQL."""
    socket = postgres.uri.partition("host=")[2]
    url = f"postgresql+psycopg2:///postgres?host={socket}"
    MlflowClient(postgres.uri).create_experiment("one")
    with pytest.raises(ValueError, match="belongs to MLflow") as refused:
        open_storage(SharedPlace(name="s", location=url))
    engine = sqlalchemy.create_engine(url)
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("CREATE SCHEMA optuna"))
    option = "options=-csearch_path%3Doptuna"
    assert option in str(refused.value)
    storage = open_storage(SharedPlace(name="s", location=f"{url}&{option}"))
    study = optuna.create_study(storage=storage, study_name="s")
    study.add_trial(optuna.create_trial(value=1.0))
    again = open_storage(SharedPlace(name="s", location=f"{url}&{option}"))
    assert [trial.value for trial in optuna.load_study(storage=again, study_name="s").trials] == [1.0]
    assert MlflowClient(postgres.uri).create_experiment("two")
    assert "trials" not in tables(url) and quote(option) not in postgres.uri
    for each in (storage, again):
        each.engine.dispose()
    engine.dispose()
