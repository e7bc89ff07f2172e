"""Groups of classes by tables, WordNet and clusters; answers by groups and "unknown"; and the bad input of each."""

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from room import save_room

import kiloseg
from kiloseg import cli
from kiloseg.config import Loss, Model
from kiloseg.inference import group_sources
from kiloseg.inference.answering import Answer, answering
from kiloseg.inference.classes import ModelClasses
from kiloseg.inference.groups import check_paths, levels_of
from kiloseg.inference.loading import classes_of, content_of
from kiloseg.models.heads import DenseHead, EmbeddingHead
from kiloseg.tracking.runs import Tracker

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = ["background", "cup", "chair", "armchair", "plant"]
PATHS = [[], ["thing"], ["thing", "seat"], ["thing", "seat"], ["life"]]
TABLE = "class,group,subgroup\ncup,thing,\nchair,thing,seat\n8,thing,seat\nplant,life\n"


@pytest.fixture
def source(tmp_path):
    return save_room(tmp_path / "model", NAMES)


def grouped(paths=PATHS, **fields):
    return ModelClasses(ids=np.array([0, 3, 4, 8, 9]), names=NAMES, background=0, groups=paths, **fields)


def test_a_table_groups_by_name_or_id_and_travels_with_the_model(source, tmp_path, capsys):
    (tmp_path / "groups.csv").write_text(TABLE)
    cli.main(["classes", source, "group", "table", str(tmp_path / "groups.csv"), "--out", str(tmp_path / "grouped")])
    assert "level 1: 2 groups, and 1 classes without a group" in capsys.readouterr().out
    model = kiloseg.load(tmp_path / "grouped")
    assert model.classes.groups == PATHS and not model.classes.edited
    assert ModelClasses.from_record(model.classes.record()).groups == PATHS
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    out = tmp_path / "predicted"
    cli.main(["predict", str(tmp_path / "grouped"), str(tmp_path / "image.png"), "--out", str(out), "--level", "1"])
    regions = json.loads((out / "image.json").read_text())["regions"]
    assert {region["name"] for region in regions} <= {"background", "thing", "life"}
    assert {region["id"] for region in regions} <= {0, 10, 11, 12}
    with Image.open(out / "image.labels.png") as stored:
        assert set(np.unique(stored)) == {region["id"] for region in regions}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (TABLE + "chair,thing\n", r"line 6: class 'chair' is there twice, first in line 3"),
        (TABLE + "4,thing\n", r"line 6: class 'chair' is there twice, first in line 3"),
        (TABLE + "sofa,thing\n", "line 6: the model has no class 'sofa'"),
        (TABLE + "background,,seat\n", "line 6: a group of class 'background' has no name"),
        (TABLE + "background,seat\n", "group 'seat' is below .* and below .*: expected one place"),
        ("class,group\n", "expected a header such as class,group,subgroup, and a line for each class"),
        ("class,group\ncup,\n", "no class has a group"),
    ],
)
def test_tables_that_cannot_be_are_refused(source, tmp_path, table, message):
    (tmp_path / "groups.csv").write_text(table)
    words = ["classes", source, "group", "table", str(tmp_path / "groups.csv"), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match=message):
        cli.main(words)
    assert not (tmp_path / "out").exists()


def test_clusters_find_what_lies_together():
    generator = torch.Generator().manual_seed(0)
    centers = torch.eye(8)[:3]
    rows = (centers.repeat_interleave(5, 0) + 0.05 * torch.randn(15, 8, generator=generator)) * 3
    rows[5:10] += 0.6 * centers[0] * 3  # the second cluster is nearer to the first than the third is
    classes = ModelClasses(ids=np.arange(16), names=["background", *(f"thing {n}" for n in range(15))], background=0)
    paths = group_sources.groups_of_clusters(classes, torch.cat([torch.zeros(1, 8), rows]), [2, 3])
    assert paths[0] == []
    levels = levels_of(ModelClasses(ids=classes.ids, names=classes.names, background=0, groups=paths))
    assert levels[0].group_of[1:].tolist() == [1] * 10 + [2] * 5
    assert levels[1].group_of[1:].tolist() == [1] * 5 + [2] * 5 + [3] * 5
    check_paths(paths, "clusters")
    for numbers in ([], [3, 2], [1, 2], [2, 15], [2, 2]):
        with pytest.raises(ValueError, match="numbers of groups"):
            group_sources.groups_of_clusters(classes, torch.randn(16, 8), numbers)


def noun(offset, lemma, above=None):
    pointer = f"001 @ {above} n 0000" if above else "000"
    return f"{offset} 06 n 01 {lemma} 0 {pointer} | a {lemma}  \n"


def test_hypernyms_of_synsets(tmp_path, source):
    """WordNet's files, in small: furniture is an artifact in its first sense and a supply in its second."""
    header = "  1 This software and database is being provided to you\n"
    (tmp_path / "data.noun").write_text(
        header
        + noun("00000010", "entity")
        + noun("00000020", "artifact", "00000010")
        + noun("00000030", "furniture", "00000020")
        + noun("00000040", "seat", "00000030")
        + noun("00000050", "chair", "00000040")
        + noun("00000060", "armchair", "00000050")
        + noun("00000070", "living_thing", "00000010")
        + noun("00000080", "plant", "00000070")
        + noun("00000090", "plant", "00000020")
        + noun("00000100", "cup", "00000020")
    )
    lines = {"plant": ["00000090", "00000080"]}
    words = ["entity", "artifact", "furniture", "seat", "chair", "armchair", "living_thing", "cup"]
    lines |= {word: [f"{10 * number:08}"] for word, number in zip(words, (1, 2, 3, 4, 5, 6, 7, 10), strict=True)}
    (tmp_path / "index.noun").write_text(
        header + "".join(f"{w} n {len(o)} 1 @ {len(o)} 0 {' '.join(o)}  \n" for w, o in sorted(lines.items()))
    )
    categories = [("cup", "cup.n.01"), ("chair", "chair.n.01"), ("armchair", "armchair.n.01"), ("plant", "plant.n.02")]
    lvis = tmp_path / "lvis.json"
    lvis.write_text(json.dumps({"categories": [{"name": name, "synset": synset} for name, synset in categories]}))
    out = tmp_path / "grouped"
    cli.main(["classes", source, "group", "synsets", str(lvis), str(tmp_path), "--out", str(out)])
    classes = classes_of(content_of(str(out)))
    # Of furniture and seat, which hold the same classes, the nearest stays; so no living thing, which would hold one class.
    assert classes.groups == [[], ["artifact"], ["artifact", "seat"], ["artifact", "seat"], []]
    lvis.write_text(json.dumps({"categories": [{"name": "sofa", "synset": "sofa.n.01"}]}))
    with pytest.raises(SystemExit, match=r"no category with a synset .* is called as a class"):
        cli.main(["classes", source, "group", "synsets", str(lvis), str(tmp_path), "--out", str(tmp_path / "x")])
    with pytest.raises(SystemExit, match=r"index.noun cannot be read .*expected WordNet's folder dict"):
        cli.main(
            ["classes", source, "group", "synsets", str(lvis), str(tmp_path / "gone"), "--out", str(tmp_path / "x")]
        )


@pytest.mark.parametrize("head", [EmbeddingHead, DenseHead])
def test_answers_are_those_of_sums_over_all_probabilities(head):
    torch.manual_seed(1)
    made = head(Model(embed_dim=4), Loss(temperature=3.0), 5)
    classes = grouped()
    outputs = torch.randn(1, head.num_outputs(Model(embed_dim=4), 5), 9, 6)
    size = (36, 24)
    full = F.interpolate(outputs, size=size, mode="bilinear", align_corners=False)
    if made.table is None:
        logits = full
        familiarity = full.softmax(1).amax(1)[0]
    else:
        cosine = torch.einsum("bdhw,cd->bchw", F.normalize(full, dim=1), F.normalize(made.table(), dim=1))
        logits, familiarity = 3.0 * cosine.detach(), cosine.amax(1)[0].detach()
    p = logits.softmax(1)[0]
    decide, words = answering(made, classes, Answer(level=1))
    assert words.names == [*NAMES, "thing", "life", "seat", "unknown"] and words.ids.tolist()[-4:] == [
        10,
        11,
        12,
        65535,
    ]
    sums = torch.stack([p[0], p[1] + p[2] + p[3], p[4]])
    found = decide(outputs, size)
    assert torch.equal(found.labels[0], torch.tensor([0, 5, 6])[sums.argmax(0)])
    torch.testing.assert_close(found.confidence[0], sums.amax(0), rtol=1e-4, atol=1e-5)

    decide, _ = answering(made, classes, Answer(sure=0.6, unknown_below=float(familiarity.median())))
    best = p.max(0)
    fine = torch.stack([p[0], p[1], p[2] + p[3], p[4]]).max(0)
    coarse = sums.max(0)
    expected = torch.tensor([0, 5, 6])[coarse.indices]
    expected = torch.where(fine.values >= 0.6, torch.tensor([0, 5, 7, 6])[fine.indices], expected)
    expected = torch.where(best.values >= 0.6, best.indices, expected)
    expected = torch.where(familiarity < familiarity.median(), torch.tensor(8), expected)
    given = decide(outputs, size).labels[0]
    assert (given == expected).float().mean() > 0.99 and len(given.unique()) >= 4


def test_answers_that_cannot_be_are_refused(source, tmp_path):
    made = EmbeddingHead(Model(embed_dim=4), Loss(), 5)
    for wrong, message in (
        ({"sure": 0.0}, "sure = 0.0: expected a probability"),
        ({"sure": 0.5, "level": 1}, "level and sure exclude each other"),
    ):
        with pytest.raises(ValueError, match=message):
            Answer(**wrong)
    with pytest.raises(ValueError, match=r"level 3: expected 1 \(the largest groups\) to 2"):
        answering(made, grouped(), Answer(level=3))
    with pytest.raises(ValueError, match="the model's classes have no groups"):
        answering(made, grouped(None), Answer(sure=0.5))
    Image.new("RGB", (32, 32)).save(tmp_path / "image.png")
    words = ["predict", source, str(tmp_path / "image.png"), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match=r"--unknown: .* is not calibrated"):
        cli.main([*words, "--unknown"])
    with pytest.raises(SystemExit, match="the model's classes have no groups"):
        cli.main([*words, "--level", "1"])


def test_unknown_is_calibrated_on_validation_data(trained, squares, tmp_path, capsys):
    known = tmp_path / "known"
    cli.main(["classes", str(trained.checkpoint), "unknown", str(squares), "--keep", "0.9", "--out", str(known)])
    assert "keeps 90.0% of the pixels of known classes" in capsys.readouterr().out
    model = kiloseg.load(known)
    evaluation = kiloseg.evaluate(model, squares, progress=False)
    counts = evaluation.familiarity.counts_b
    below = counts[: round((model.classes.known_from + 1) / 2 * len(counts))].sum() / counts.sum()
    assert below == pytest.approx(0.1, abs=0.02)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    words = ["predict", str(known), str(tmp_path / "noise.png"), "--out", str(tmp_path / "out")]
    cli.main([*words, "--unknown-below", "1.01"])
    summary = json.loads((tmp_path / "out" / "noise.json").read_text())
    assert [(region["id"], region["name"]) for region in summary["regions"]] == [(65535, "unknown")]
    cli.main([*words, "--unknown", "--overwrite"])
    names = {region["name"] for region in json.loads((tmp_path / "out" / "noise.json").read_text())["regions"]}
    assert names <= {*model.classes.names, "unknown"}


@pytest.mark.parametrize("by", ["path", "run"])
def test_what_predict_says_about_unknown_helps(by, trained, squares, tmp_path, monkeypatch):
    """Its command calibrates the same model, also where that is found in the database of another folder."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    place = tmp_path / "my models"
    shutil.copytree(Path(trained.checkpoint).parent, place / "first")
    source, runs = str(place / "first"), []
    if by == "run":
        run = Tracker.open("study", place / "runs").study_run("first", {"trainer.output": source}, {})
        source, runs = f"runs:/{run.run_id}", ["--runs", str(place / "runs")]
    Image.new("RGB", (32, 32)).save(tmp_path / "image.png")
    words = [str(tmp_path / "image.png"), "--out", str(tmp_path / "out"), "--unknown"]
    with pytest.raises(SystemExit) as refused:
        cli.main(["predict", source, *words, *runs])
    command = re.search(r"the model that (.*) writes into FOLDER, DATA being a data set", str(refused.value))[1]
    given = {"DATA": str(squares), "FOLDER": str(tmp_path / "known")}
    program, *rest = [given.get(word, word) for word in shlex.split(command)]
    assert Path(program).name == "kiloseg" and set(given.values()) < set(rest)
    cli.main(rest)
    cli.main(["predict", str(tmp_path / "known"), *words])
    assert (tmp_path / "out" / "image.json").is_file()
