"""`kiloseg best` reads the table that a search wrote."""

import pytest
from trial_rows import ROWS

from kiloseg.commands.best import Arguments, main, read_study
from kiloseg.tuning.summary import TABLE, table


@pytest.fixture
def runs(tmp_path):
    """Two studies of one name, of which the older has one trial, one that is not finished, and one of a longer name."""
    for name, rows in {
        "mine-20261101-000000-0000": ROWS[:1],
        "mine-20261102-000000-0000": ROWS,
        "mine-20261103-000000-0000": None,
        "mine-too-20261104-000000-0000": ROWS[1:2],
    }.items():
        folder = tmp_path / "studies" / name
        folder.mkdir(parents=True)
        if rows is not None:
            table(rows).to_csv(folder / TABLE, index=False)
    return str(tmp_path)


def test_best_within_memory(runs, capsys):
    main(Arguments(study="mine", under="12GiB", top=2, runs=runs))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "study mine-20261102-000000-0000"
    assert [line for line in lines if line.startswith("trial")] == [
        "trial middle: val/miou 0.6000, training 11.000 GiB, validation 0.000 GiB, finished at step 10",
        "trial equal: val/miou 0.6000, training 11.000 GiB, validation 0.000 GiB, finished at step 10",
    ]
    assert lines.count("    --model.embed-dim 8") == 2


def test_best_of_all_and_of_a_study_by_its_id(runs, capsys):
    main(Arguments(study="mine", top=1, runs=runs))
    assert "trial large: val/miou 0.8000" in capsys.readouterr().out
    name, rows = read_study("mine-20261101-000000-0000", runs)
    assert (name, len(rows)) == ("mine-20261101-000000-0000", 1)


def test_what_is_not_there_is_said(runs):
    with pytest.raises(
        ValueError, match=r"study mine-20261102-000000-0000 has no trial within 1GiB; the smallest needed 2\.000 GiB"
    ):
        main(Arguments(study="mine", under="1GiB", runs=runs))
    with pytest.raises(ValueError, match="no finished study 'other' in"):
        main(Arguments(study="other", runs=runs))
    with pytest.raises(ValueError, match=r"--under 'a lot': expected an amount such as 24GiB"):
        main(Arguments(study="mine", under="a lot", runs=runs))
