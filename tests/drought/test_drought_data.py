"""Layouts, identities, dates, texts, splits: what the model is given, and never given."""

import hashlib
import json
import random
from dataclasses import replace
from datetime import date, timedelta

import numpy as np
import pytest

from compress.drought import baselines, metrics
from compress.drought.impacts import outside, read_impacts, weekly
from compress.drought.masking import mask_label_terms
from compress.drought.reading import parse_date, parse_number
from compress.drought.series import read_series
from compress.drought.splitting import make_split, valid_samples
from compress.drought.table import join, window_digests
from compress.drought.texts import (
    Text,
    Texts,
    drop_repeats,
    mask_texts,
    read_texts,
    text_key,
    within,
)
from compress.drought.usdm import cumulated, dsci, identities, worst_category
from compress.errors import RequestError

CUMULATIVE = (73.61, 26.39, 11.71, 4.07, 0.68, 0.05)  # all US, 2024-05-14
CATEGORICAL = (73.61, 14.68, 7.64, 3.39, 0.63, 0.05)


def rows_of(weeks=120, start=date(2015, 1, 6), shares=CUMULATIVE, **more):
    return [
        {
            "MapDate": f"{start + timedelta(days=7 * w):%Y%m%d}",
            "StateAbbreviation": "CA",
            **dict(zip(("None", "D0", "D1", "D2", "D3", "D4"), map(str, shares))),
            **more,
        }
        for w in range(weeks)
    ]


def table_of(path, texts=None, impacts=None, horizons=(0, 1, 4), context=8, **more):
    series = read_series(path)
    days = np.unique(np.concatenate([r.days for r in series.regions]))
    split = make_split(days, (0.7, 0.15, 0.15))
    kept = Texts()
    if texts is not None:
        names = [r.name for r in series.regions]
        kept = within(read_texts(texts), names, int(days[0]) - 7, int(days[-1]))
        kept = drop_repeats(mask_texts(kept), split.val_from, split.test_from)
    found = read_impacts(impacts) if impacts else None
    return join(series, kept, found, split, horizons=horizons, context=context, **more)


# --- severity -----------------------------------------------------------------------------------


def test_the_index_from_both_forms_is_the_printed_one():
    assert dsci(np.array(CUMULATIVE[1:])) == pytest.approx(42.90)
    weights = np.arange(1, 6)
    assert dsci(cumulated(np.array(CATEGORICAL[1:]))) == pytest.approx(CATEGORICAL[1:] @ weights)
    assert dsci(cumulated(np.array(CATEGORICAL[1:]))) == pytest.approx(42.90)


def test_identities_tell_the_forms_apart():
    both = np.array([100.0, 0, 0, 0, 0, 0])
    cumulative, categorical = identities(np.array([CUMULATIVE, CATEGORICAL, both]))
    assert cumulative.tolist() == [True, False, True]
    assert categorical.tolist() == [False, True, True]


@pytest.mark.parametrize("shares", [CUMULATIVE, CATEGORICAL])
@pytest.mark.parametrize("flag", ["1", "2"])
def test_the_values_decide_and_not_the_flag(write_rows, shares, flag):
    series = read_series(write_rows(rows_of(shares=shares, StatisticFormatID=flag)))
    assert series.form == ("cumulative" if shares is CUMULATIVE else "categorical")
    assert series.regions[0].dsci == pytest.approx(np.full(120, 42.90))


def test_areas_with_thousands_separators_become_percentages(write_rows):
    whole = 163_694.74
    areas = [f"{share * whole / 100:,.2f}" for share in CUMULATIVE]
    assert areas[0] == "120,495.70"
    series = read_series(write_rows(rows_of(shares=areas)))
    assert series.regions[0].dsci == pytest.approx(np.full(120, 42.90), abs=1e-3)


def test_layouts(write_rows):
    state = rows_of()
    county = [
        {"MapDate": "5/14/24", "FIPS": "1001", "County": "Autauga", "State": "AL"}
        | {k: v for k, v in row.items() if k not in ("MapDate", "StateAbbreviation")}
        for row in state[:1]
    ]
    us = [
        {"MapDate": row["MapDate"], "AreaOfInterest": "Total", "OT": row["None"]}
        | {k: row[k] for k in ("D0", "D1", "D2", "D3", "D4")}
        for row in state
    ]
    plain = [
        {"region": "x", "date": f"{date(2015, 1, 6) + timedelta(days=7 * w)}", "dsci": w, "rain": 2}
        for w in range(100)
    ]
    lower = [{k.lower(): v for k, v in row.items()} for row in state]
    assert read_series(write_rows(state)).layout.name == "state"
    found = read_series(write_rows(county))
    assert (found.layout.name, found.regions[0].name) == ("county", "01001")
    assert date.fromordinal(int(found.regions[0].days[0])) == date(2024, 5, 14)
    assert read_series(write_rows(us)).layout.name == "us"
    assert read_series(write_rows(lower)).layout.name == "state"
    table = read_series(write_rows(plain))
    assert (table.layout.severity, table.layout.extra) == ("dsci", ("rain",))
    assert table.regions[0].dsci[7] == 7


def test_severity_as_a_class(write_rows):
    kinds = ["None", "D0", "d4"] * 40
    rows = [
        {"region": "x", "date": str(date(2015, 1, 6) + timedelta(days=7 * w)), "severity": k}
        for w, k in enumerate(kinds)
    ]
    region = read_series(write_rows(rows)).regions[0]
    assert region.dsci[:3].tolist() == [0, 100, 500]
    assert worst_category(region.cumulative)[:3].tolist() == [0, 1, 5]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("20240514", date(2024, 5, 14)),
        ("2024-05-14", date(2024, 5, 14)),
        ("2024-05-14T23:00:00Z", date(2024, 5, 14)),
        ("5/14/24", date(2024, 5, 14)),
        ("12/7/1999", date(1999, 12, 7)),
        ("2/30/24", None),
        ("yesterday", None),
        ("2024-05-1433", None),
        ("", None),
    ],
)
def test_dates(text, found):
    assert parse_date(text) == found


def test_numbers():
    assert parse_number("1,234,567.8") == 1234567.8
    assert parse_number("12,34") is None
    assert parse_number("nan") is None
    assert parse_number("inf") is None


# --- what is refused ----------------------------------------------------------------------------


def spoiled(rows, at, **cells):
    rows = [dict(row) for row in rows]
    rows[at].update(cells)
    return rows


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"a": 1, "b": 2}], "lacks a region column and a date column; its columns are a, b"),
        ([{"region": "x", "date": "2020-01-07", "rain": "2"}], "lacks a column of severity"),
        ([{"MapDate": "20200107", "FIPS": "1", "D0": "2"}], "lacks the columns None, D1, D2"),
        (spoiled(rows_of(), 3, MapDate="soon"), "csv:5`: `MapDate` is 'soon', not a date"),
        (spoiled(rows_of(), 3, D0="many"), "csv:5`: `D0` is 'many', not a number"),
        (spoiled(rows_of(), 3, D0="101"), "csv:5`: `D0` is 101, outside 0 … 100.05"),
        (spoiled(rows_of(), 3, D0="50"), "csv:5`: None 73.61, D0 50"),
        (rows_of(60) + rows_of(60, date(2018, 1, 2), CATEGORICAL), "mixes cumulative rows"),
        (spoiled(rows_of(StatisticFormatID="1"), 4, StatisticFormatID="2"), "mixes `Statis"),
        (spoiled(rows_of(), 4, MapDate="20150106", None_="1"), "gaps"),
        (rows_of() + rows_of(1, shares=(*CUMULATIVE[:5], 0.06)),
         "CA 2015-01-06 stands on line 2 too"),
        (rows_of(50) + rows_of(50, date(2016, 1, 6)), "weekly rows are needed"),
        (rows_of(50) + rows_of(50, date(2016, 1, 5)), "has gaps, in weeks: 2 after 2015-12-15"),
        ([{"region": "x", "date": "2020-01-07", "severity": "D7"}], "'D7', not a drought class"),
    ],
)  # fmt: skip
def test_a_series_that_cant_be_used(write_rows, rows, said):
    rows = [{k: v for k, v in row.items() if k != "None_"} for row in rows]
    with pytest.raises(RequestError) as error:
        read_series(write_rows(rows))
    assert said in error.value.message
    assert "\n" not in error.value.message
    assert error.value.hint


def test_wrong_encoding_names_the_line(tmp_path):
    path = tmp_path / "texts.csv"
    path.write_bytes(b"published_at,text\n2020-01-01,fine\n2020-01-02,Espa\xf1ol\n")
    with pytest.raises(RequestError, match=r"texts.csv:3` isn't UTF-8: byte 0xf1"):
        read_texts(path)


def test_short_gaps_are_carried_forward_and_marked(write_rows):
    rows = rows_of(120)
    del rows[50:52]
    with pytest.raises(RequestError, match="2 after 2015-12-15"):
        read_series(write_rows(rows))
    region = read_series(write_rows(rows), fill="forward").regions[0]
    assert len(region.days) == 120
    assert np.flatnonzero(region.filled).tolist() == [50, 51]
    del rows[50]
    with pytest.raises(RequestError, match="has gaps, in weeks: 3 after"):
        read_series(write_rows(rows), fill="forward")


def test_filled_weeks_are_inputs_but_never_targets(write_rows):
    rows = rows_of(160)
    del rows[100]
    series = read_series(write_rows(rows), fill="forward")
    days = series.regions[0].days
    table = join(series, Texts(), None, make_split(days, (0.7, 0.15, 0.15)),
                 horizons=(1, 4), context=8)  # fmt: skip
    assert not table.valid[100].any()
    assert not table.valid[99, 0]
    assert not table.valid[96, 1]
    assert table.physical[100, -1] == 1


# --- texts --------------------------------------------------------------------------------------


def test_label_terms_are_taken_out():
    masked, touched = mask_label_terms("Extreme drought (D3) spread. DSCI was 300. Wells fail.")
    assert touched
    assert masked == "drought spread. Wells fail."
    assert mask_label_terms("Wells fail in dry weather.") == ("Wells fail in dry weather.", False)
    assert mask_label_terms("The U.S. Drought Monitor shows 40 % of the area in drought.")[0] == ""
    assert "D3" not in mask_label_terms("D3-D4 in the north")[0]
    assert mask_label_terms("severe to exceptional drought")[0] == "drought"


def test_reposts_have_one_key():
    words = "Wells FAIL in Fresno!"
    assert text_key(words) == text_key("RT @you: wells fail in fresno https://t.co/x")
    assert text_key(words) != text_key("Wells fail in Fresno county")


def test_repeats_go_inside_training_and_across_borders():
    def text(day, words, region=""):
        return Text(region, day, words)

    found = drop_repeats(
        Texts((text(1, "a"), text(2, "a"), text(3, "b", "CA"), text(4, "b", "TX"), text(11, "a"),
               text(12, "c"), text(13, "c"), text(21, "c"), text(22, "d"), text(23, "d"),
               text(23, "D"))),
        10, 20,
    )  # fmt: skip
    days = [t.day for t in found.items]
    assert days == [1, 3, 4, 12, 13, 22, 23]
    assert found.duplicates == 4


def test_texts_outside_area_and_period_are_counted(tmp_path):
    lines = [
        {"region": "CA", "published_at": "2015-03-01", "text": "inside"},
        {"region": "", "published_at": "2015-03-02", "text": "everywhere"},
        {"region": "NV", "published_at": "2015-03-03", "text": "elsewhere"},
        {"region": "CA", "published_at": "2031-03-01", "text": "later"},
    ]
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    first, last = date(2015, 1, 6).toordinal(), date(2016, 1, 5).toordinal()
    found = within(read_texts(path), ["CA"], first, last)
    assert found.outside == {"area": 1, "period": 1}
    assert len(found.items) == 2
    with pytest.raises(RequestError, match="no text belongs to a place and week"):
        within(read_texts(path), ["OR"], last + 1, last + 2)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"published_at": "2020-01-01", "text": " "}', "t.jsonl:2`: `text` is empty"),
        ('{"published_at": "x", "text": "a"}', "t.jsonl:2`: `published_at` is 'x', not a date"),
        ("{oops", "t.jsonl:2` isn't JSON"),
        ("[1]", "t.jsonl:2` isn't an object"),
    ],
)
def test_texts_that_cant_be_used(tmp_path, line, said):
    path = tmp_path / "t.jsonl"
    path.write_text('{"published_at": "2020-01-01", "text": "fine"}\n' + line)
    with pytest.raises(RequestError) as error:
        read_texts(path)
    assert said in error.value.message
    path.write_text('{"when": "2020-01-01", "words": "fine"}')
    with pytest.raises(RequestError, match="lacks `text` and `published_at`; its columns are when"):
        read_texts(path)


# --- impacts ------------------------------------------------------------------------------------


def test_impacts_by_week(write_rows):
    rows = [
        {"region": "CA", "date": "2015-01-06", "category": "Fire; Energy", "value": 2},
        {"region": "CA", "date": "2015-01-13", "category": "Fire", "value": 1},
        {"region": "ca", "date": "2015-01-12", "category": "Fire", "value": 1},
        {"region": "CA", "date": "2015-01-13", "category": "Fire", "value": 1},  # a repeated row
        {"region": "TX", "date": "2015-01-20", "category": "Fire", "value": 5},
    ]
    found = read_impacts(write_rows(rows, "impacts.csv"))
    days = np.arange(date(2015, 1, 6).toordinal(), date(2015, 2, 10).toordinal(), 7)
    values, known = weekly(found, "CA", days)
    assert found.categories == ("Energy", "Fire")
    # the map's own day belongs to the next week
    assert values[:, 1].tolist() == [0, 3, 1, 0, 0]
    assert known.tolist() == [False, True, True, True, False]
    assert outside(found, ["CA"], int(days[0]) - 7, int(days[-1])) == {"area": 1, "period": 0}
    assert outside(found, ["CA", "TX"], int(days[0]), int(days[1])) == {"area": 0, "period": 2}


# --- splitting ----------------------------------------------------------------------------------


def test_parts_follow_each_other_and_targets_stay_inside():
    part = np.repeat([0, 1, 2], [70, 15, 15])
    valid, purged = valid_samples(part, np.ones(100, bool), (0, 1, 4), lead=8)
    assert valid[:8].sum() == 0
    for column, h in enumerate((0, 1, 4)):
        rows = np.flatnonzero(valid[:, column])
        assert (part[rows] == part[rows + h]).all()
        assert len(rows) == 100 - 8 - 3 * h
    assert purged.tolist() == [0, 2, 8]
    valid, purged = valid_samples(part, np.ones(100, bool), (1,), lead=8, embargo=4)
    assert not valid[70:74].any()
    assert not valid[85:89].any()
    assert purged.tolist() == [2 + 8]


def test_shares_and_dates_of_a_split():
    days = np.arange(1272) * 7 + date(2000, 1, 4).toordinal()
    split = make_split(days, (0.7, 0.15, 0.15))
    assert [count for _, _, count in split.ranges.values()] == [890, 191, 191]
    dated = make_split(
        days, (0.5, 0.2, 0.3), val_from=date(2017, 1, 24), test_from=date(2020, 9, 22)
    )
    assert dated.ranges == split.ranges
    with pytest.raises(RequestError, match="leave a part empty"):
        make_split(days, (1.0, 0.0, 0.0))


def test_too_few_weeks(write_rows):
    with pytest.raises(RequestError, match="CA has 60 weeks, too few to split: 64 are needed"):
        table_of(write_rows(rows_of(60)))


def test_a_place_that_begins_after_training(write_rows):
    late = [{**row, "StateAbbreviation": "TX"} for row in rows_of(80, date(2019, 1, 1))]
    with pytest.raises(RequestError, match="TX has 0 weeks before validation begins"):
        table_of(write_rows(rows_of(288) + late))


def test_a_test_part_without_drought(write_rows):
    rows = rows_of(100) + rows_of(60, date(2016, 12, 6), (100, 0, 0, 0, 0, 0))
    with pytest.raises(RequestError, match="no week of drought"):
        table_of(write_rows(rows))


# --- leakage ------------------------------------------------------------------------------------


def noisy_after(simulated, cut, rng):
    """Everything dated `cut` or later replaced: measured values from the map of `cut` on."""
    series = [
        {**row, "None": "40.00", "D0": "60.00", "D1": f"{rng.uniform(0, 50):.2f}", "D2": "0.00",
         "D3": "0.00", "D4": "0.00"} if row["date"] >= cut else row
        for row in simulated.series
    ]  # fmt: skip
    texts = [
        {**t, "text": f"noise {rng.random()}"} if t["published_at"] >= cut else t
        for t in simulated.texts
    ]
    impacts = [{**i, "value": 9} if i["date"] >= cut else i for i in simulated.impacts]
    return replace(simulated, series=tuple(series), texts=tuple(texts), impacts=tuple(impacts))


@pytest.mark.parametrize("week", [60, 300, 380])
def test_no_sample_sees_what_comes_after_its_anchor(simulated, tmp_path, week):
    cut = date(2010, 1, 5) + timedelta(days=7 * week)
    before = window_digests(table_of(*simulated.write(tmp_path / "a")))
    changed = noisy_after(simulated, str(cut), random.Random(0))
    after = window_digests(table_of(*changed.write(tmp_path / "b")))
    same = {key for key in before if before[key] == after[key]}
    for key in before:
        _, day, kind = key
        # the map of the cut week is noise: a forecast from it changes, its nowcast doesn't
        blind = day < str(cut) or (kind == "nowcast" and day == str(cut))
        assert (key in same) == blind, key
    assert any(day == str(cut) and kind == "nowcast" for _, day, kind in same)


def test_row_order_and_repeated_rows_change_nothing(simulated, tmp_path):
    plain = table_of(*simulated.write(tmp_path / "a"))
    rng = random.Random(1)

    def mixed(rows):
        doubled = [*rows, *rng.sample(list(rows), 50)]
        rng.shuffle(doubled)
        return tuple(doubled)

    other = replace(
        simulated,
        series=mixed(simulated.series),
        texts=mixed(simulated.texts),
        impacts=mixed(simulated.impacts),
    )
    again = table_of(*other.write(tmp_path / "b"))
    assert window_digests(again) == window_digests(plain)
    assert np.array_equal(again.valid, plain.valid)
    assert np.array_equal(again.impacts, plain.impacts)


def test_random_split_deals_every_place_alike():
    days = np.arange(400) * 7 + date(2000, 1, 4).toordinal()
    split = make_split(days, (0.7, 0.15, 0.15), unsafe=True, seed=3)
    part = split.part_of(days)
    assert np.array_equal(part[100:], split.part_of(days[100:]))
    assert np.abs(np.bincount(part) / 400 - [0.7, 0.15, 0.15]).max() < 0.06
    assert (np.diff(part) != 0).sum() > 100


# --- the real series ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def us(assets):
    series = read_series(assets / "drought" / "Climate.csv")
    days = series.regions[0].days
    split = make_split(days, (0.7, 0.15, 0.15))
    return join(series, Texts(), None, split, horizons=(0, 1, 4, 8, 13), context=26)


@pytest.mark.parametrize(
    ("h", "n", "mae", "rmse"),
    [(1, 190, 3.17, 3.96), (4, 187, 9.08, 11.23), (8, 183, 13.64, 17.49), (13, 178, 17.00, 22.99)],
)
def test_persistence_is_the_printed_table(us, h, n, mae, rmse):
    row = metrics.severity_row(us, baselines.persistence(us), h)
    assert (row.n, round(row.mae, 2), round(row.rmse, 2)) == (n, mae, rmse)
    assert (row.skill, row.verdict) == (0.0, "no skill")


def test_the_real_files_are_read(assets):
    us = read_series(assets / "drought" / "Climate.csv").regions[0]
    assert (len(us.days), us.dsci.mean().round(1), us.dsci.std().round(1)) == (1272, 92.2, 36.9)
    california = read_series(assets / "drought" / "usdm_california_weekly.csv")
    assert (california.layout.name, california.form) == ("state", "cumulative")
    assert len(california.regions[0].days) == 1214
    assert len(read_texts(assets / "drought" / "Climate_search.csv").items) == 1948
    assert len(read_texts(assets / "drought" / "Climate_report.csv").items) == 582


# --- baselines and figures ----------------------------------------------------------------------


def test_baselines_by_hand(write_rows):
    weeks = 200
    rows = [
        {"region": "x", "date": str(date(2015, 1, 6) + timedelta(days=7 * w)), "dsci": w}
        for w in range(weeks)
    ]
    table = table_of(write_rows(rows), horizons=(0, 1, 4))
    t = 190
    assert baselines.persistence(table)[t].tolist() == [t - 1, t, t]
    assert baselines.drift(table)[t].tolist() == [t, t + 1, t + 4]
    assert baselines.seasonal(table)[t].tolist() == [t - 52, t - 51, t - 48]
    ridge = baselines.ridge(table)
    assert ridge[t] == pytest.approx([t, t + 1, t + 4], abs=1e-3)  # a straight line is learned
    for name, estimate in baselines.severity_baselines(table).items():
        row = metrics.severity_row(table, estimate, 4)
        assert row.persistence_mae == pytest.approx(4), name
    assert metrics.severity_row(table, ridge, 4).verdict == "skill"


def test_baselines_see_training_weeks_only(simulated, tmp_path):
    paths = simulated.write(tmp_path / "a")
    plain = table_of(*paths)
    test = [row["date"] for row in simulated.series][int(0.85 * 420)]
    changed = noisy_after(simulated, test, random.Random(0))
    other = table_of(*changed.write(tmp_path / "b"))
    rows = plain.anchors(1, 4)
    one, two = baselines.severity_baselines(plain), baselines.severity_baselines(other)
    for name in one:
        assert np.array_equal(one[name][rows], two[name][rows], equal_nan=True), name


def test_the_bootstrap_draws_whole_blocks():
    draws = metrics.block_draws(100, draws=500, block=26, seed=0)
    assert (draws.sum(axis=1) == 100).all()
    # every week as often as another, the first and last ones too
    assert np.abs(draws.mean(axis=0) - 1).max() < 0.25
    # neighbours are drawn together: their counts hardly differ
    together = np.abs(np.diff(draws, axis=1)).mean()
    alone = np.abs(np.diff(np.random.default_rng(0).multinomial(100, [0.01] * 100, 500))).mean()
    assert together < 0.25 * alone
    # an interval of a mean of autocorrelated errors is wider than that of independent draws
    noise = np.repeat(np.random.default_rng(1).normal(size=4), 25)
    wide = metrics.interval((draws @ noise) / 100)
    assert wide[1] - wide[0] > 0.5


def test_class_thresholds_are_those_with_fewest_errors():
    severity = np.array([0.0, 40, 90, 120, 160, 210, 260])
    worst = np.array([0, 0, 1, 1, 2, 2, 2])
    cuts = metrics.class_thresholds(severity, worst)
    assert cuts[:2].tolist() == [65, 140]
    assert np.isinf(cuts[2:]).all()
    called = np.searchsorted(cuts, severity, side="right")
    assert metrics.class_scores(worst, called)["macro_f1"] == 1.0


def test_simulated_data_say_what_they_are(simulated, tmp_path):
    series, texts, impacts = simulated.write(tmp_path / "sim")
    assert read_series(series).simulated
    assert read_texts(texts).simulated
    assert read_impacts(impacts).simulated
    assert all("simulated" in text["text"] for text in simulated.texts)
    digest = hashlib.sha256(series.read_bytes()).hexdigest()
    assert read_series(series).digest == f"sha256:{digest}"
    with pytest.raises(RequestError, match="holds a simulated set already"):
        simulated.write(tmp_path / "sim")
