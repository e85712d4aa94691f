"""`compress train-side` from the shell: exit codes, one line, JSON, dry runs."""

import csv
import json
from datetime import date, timedelta

import pytest

from compress.cli.main import call
from compress.drought.settings import SideSettings
from compress.drought.simulated import simulate
from compress.errors import RequestError


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    made = simulate(weeks=140, regions=["SIM-A", "SIM-B"])
    return made.write(tmp_path_factory.mktemp("set") / "set")


def refused(capsys, *argv):
    """The first line of a refusal; one line and a hint, code 2."""
    code = call(["train-side", *map(str, argv)])
    err = capsys.readouterr().err
    assert code == 2, err
    assert "Traceback" not in err
    first, *rest = err.rstrip("\n").split("\n")
    assert first.startswith("error: ")
    assert not rest or rest[0] == ""
    return first


QUICK = (
    "--horizons",
    "1,4",
    "--context",
    "8",
    "--epochs",
    "1",
    "--hidden",
    "8",
    "--baselines",
    "none",
)
HASHED = ("--encoder", "tfidf")  # fmt: skip


def test_a_run_and_its_json(files, tmp_path, capsys):
    series, texts, impact = files
    out = tmp_path / "out"
    argv = ["train-side", "--series", series, "--texts", texts, "--impact", impact, "-o", out]
    assert call([*map(str, argv), *QUICK, *HASHED, "--json"]) == 0
    printed = capsys.readouterr()
    receipt = json.loads(printed.out)
    assert receipt["command"] == "train-side"
    assert receipt == json.loads((out / "receipt.json").read_text())
    assert call([*map(str, argv), *QUICK]) == 2  # OUT isn't empty
    assert "--overwrite" in capsys.readouterr().err
    assert call(["train-side", "--predict", str(out), "--series", str(series), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["forecasts"]) == 4
    assert "SIMULATED" in found["warnings"][0]


def test_a_dry_run_says_what_it_read_and_writes_nothing(files, tmp_path, capsys):
    series, texts, impact = files
    argv = ["train-side", "--series", series, "--texts", texts, "--impact", impact, "--dry-run"]
    assert call([*map(str, argv), *QUICK, "--json", "-o", str(tmp_path / "out")]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["series"]["form"] == "cumulative"
    assert plan["split"]["train"]["weeks"] == 98
    assert plan["purged"] == {"1": 4, "4": 16}  # two places, two borders
    assert set(plan["window_digests"]) == {"train", "val", "test"}
    assert plan["texts"]["by_week"]["median"] >= 1
    assert call([*map(str, argv), *QUICK]) == 0
    text = capsys.readouterr().out
    assert text.startswith("SIMULATED DATA")
    assert "purged" in text
    assert not list(tmp_path.iterdir())


def test_simulate(tmp_path, capsys):
    assert call(["train-side", "--simulate", str(tmp_path / "sim")]) == 0
    assert "SIMULATED" in capsys.readouterr().out
    assert len(list((tmp_path / "sim").iterdir())) == 3


def write(path, rows):
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def weekly(weeks=140, region="CA", **more):
    start = date(2015, 1, 6)
    return [
        {"region": region, "date": str(start + timedelta(days=7 * w)), "dsci": 100 + w % 7, **more}
        for w in range(weeks)
    ]


BAD_SERIES = {
    "columns": ([{"a": 1}], "lacks a region column and a date column; its columns are a"),
    "date": ([{**weekly(1)[0], "date": "soon"}], ":2`: `date` is 'soon', not a date"),
    "class": ([{"region": "CA", "date": "2015-01-06", "severity": "D9"}], "not a drought class"),
    "twice": ([*weekly(), {**weekly(1)[0], "dsci": 9}], "stands on line 2 too"),
    "short": (weekly(60), "CA has 60 weeks, too few to split"),
    "shorter": (weekly(6), "6 weeks are too few to split"),
    "none": ([{**row, "dsci": 0} for row in weekly()], "no week of drought"),
    "gap": (weekly()[:50] + weekly()[60:], "has gaps, in weeks: 10 after"),
    "range": ([{**weekly(1)[0], "dsci": 600}], "`dsci` is 600, outside 0 … 500"),
}


@pytest.mark.parametrize("case", BAD_SERIES)
def test_bad_series(case, tmp_path, capsys):
    rows, said = BAD_SERIES[case]
    path = write(tmp_path / "series.csv", rows)
    line = refused(capsys, "--series", path, "-o", tmp_path / "out", *QUICK)
    assert said in line
    assert {p.name for p in tmp_path.iterdir()} == {"series.csv"}


BAD_TEXTS = {
    "empty": ('{"published_at": "2015-03-01", "text": ""}', "t.jsonl:1`: `text` is empty"),
    "elsewhere": ('{"region": "NV", "published_at": "2015-03-01", "text": "a"}',
                  "no text belongs to a place and week of the series"),
    "columns": ('{"words": "a"}', "lacks `text` and `published_at`; its columns are words"),
    "date": ('{"published_at": "x", "text": "a"}', "t.jsonl:1`: `published_at` is 'x'"),
    "few": ('{"published_at": "2015-03-03", "text": "one"}', "too few to learn words from"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_TEXTS)
def test_bad_texts(case, tmp_path, capsys):
    line, said = BAD_TEXTS[case]
    (tmp_path / "t.jsonl").write_text(line)
    series = write(tmp_path / "series.csv", weekly())
    told = refused(capsys, "--series", series, "--texts", tmp_path / "t.jsonl",
                   "-o", tmp_path / "out", *QUICK, *HASHED)  # fmt: skip
    assert said in told
    assert not (tmp_path / "out").exists()


def test_bad_encoding_and_impacts(tmp_path, capsys):
    series = write(tmp_path / "series.csv", weekly())
    (tmp_path / "t.csv").write_bytes(b"published_at,text\n2015-03-01,ma\xf1ana\n")
    told = refused(capsys, "--series", series, "--texts", tmp_path / "t.csv", "-o", "o", *QUICK)
    assert "t.csv:2` isn't UTF-8" in told
    impact = write(tmp_path / "i.csv", [{"region": "NV", "date": "2015-03-01", "category": "Fire"}])
    told = refused(capsys, "--series", series, "--impact", impact, "-o", "o", *QUICK)
    assert "no impact is reported in the training weeks" in told
    impact = write(tmp_path / "i.csv", [{"region": "CA", "day": "2015-03-01"}])
    told = refused(capsys, "--series", series, "--impact", impact, "-o", "o", *QUICK)
    assert "lacks `date` and `category`; its columns are region, day" in told


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ((), "no series"),
        (("--series", "absent.csv", "-o", "x"), "`--series absent.csv`: there is no such file"),
        (("--series", "notes.docx", "-o", "x"), "there is no such file"),
        (("--series", "SERIES"), "no output directory"),
        (("--series", "SERIES", "-o", "x", "--target", "dsic"), "`--target dsic` isn't a choice"),
        (("--series", "SERIES", "-o", "x", "--no-text"), "`--no-text` needs texts"),
        (("--series", "SERIES", "-o", "x", "--split", "0.5,0.6,0.2"), "sum to 1.3"),
        (("--series", "SERIES", "-o", "x", "--regions", "Ohio"), "has no region `Ohio`"),
        (("--series", "SERIES", "-o", "x", "--transfer-to", "CA"), "isn't a region beside others"),
        (("--series", "SERIES", "-o", "x", "--target", "worst-category"), "the series has dsci"),
        (("--series", "SERIES", "-o", "x", "--optimizer", "adm"), "`--optimizer adm` isn't"),
        (("--series", "SERIES", "-o", "x", "--task-weight", "many"), "isn't a weight"),
        (("--series", "SERIES", "-o", "x", "--val-from", "2030-01-01"), "leave a part empty"),
        (("--series", "SERIES", "-o", "x", "--horizons", "1,x"), "`--horizons x`"),
        (("--predict", "absent", "--series", "SERIES"), "`--predict absent`"),
    ],
)
def test_bad_options(argv, said, tmp_path, capsys):
    series = write(tmp_path / "series.csv", weekly())
    line = refused(capsys, *(str(series) if word == "SERIES" else word for word in argv))
    assert said in line


def test_all_faults_are_told_together():
    with pytest.raises(RequestError) as error:
        SideSettings(
            series="s.csv", target="x", context=0, lr=-1.0, single_task="impact"
        ).resolved()
    for said in ("--target x", "--context` is 0", "--lr` is -1.0", "needs impacts"):
        assert said in error.value.message


def test_help_fits_the_screen(capsys):
    assert call(["train-side", "--help"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert "--predict" in text
