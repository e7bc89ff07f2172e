"""Tables of experiments: rows of other columns are refused before anything is read or written wrongly."""

import pytest

from kiloseg.tuning.result_tables import append_row, read_rows, read_table

COLUMNS = ("head", "miou")


def test_rows_come_back(tmp_path):
    path = tmp_path / "folder" / "table.csv"
    assert read_rows(path, COLUMNS) == []
    append_row(path, COLUMNS, {"head": "dense", "miou": 1 / 3, "other": 1})
    append_row(path, COLUMNS, {"head": "one, two"})
    assert read_rows(path, COLUMNS) == [{"head": "dense", "miou": "0.333333"}, {"head": "one, two", "miou": ""}]


@pytest.mark.parametrize("header", ["head,miou,network", "head", "miou,head", ""])
def test_a_table_of_other_columns_is_refused(tmp_path, header):
    path = tmp_path / "table.csv"
    path.write_text(f"{header}\n")
    calls = [lambda: append_row(path, COLUMNS, {"head": "dense", "miou": 0.5}), lambda: read_rows(path, COLUMNS)]
    for call in [*calls, lambda: read_table(path, COLUMNS)] if header else calls:
        with pytest.raises(ValueError, match="expected head, miou"):
            call()
    assert path.read_text() == f"{header}\n"
