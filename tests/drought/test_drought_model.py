"""The estimator itself: where it starts, what it can't see, what it finds, how it is resumed."""

import itertools
import json
import random
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

import compress
from compress.drought import metrics, scoring
from compress.drought.configuration import SideConfig
from compress.drought.embedding import HashedText
from compress.drought.features import fit_statistics, make_inputs
from compress.drought.fitting import DELTA, FitOptions, _Joint, estimate, losses, new_model
from compress.drought.modeling import CausalCrossAttention, SideModel, TextPool
from compress.drought.preparing import prepare
from compress.drought.settings import SideSettings
from compress.drought.simulated import simulate
from compress.errors import RequestError

PLACES = ["SIM-A", "SIM-B", "SIM-C", "SIM-D"]
QUICK = {"horizons": (0, 1, 4), "context": 8, "baselines": "none", "encoder": "tfidf"}
LEARN = {**QUICK, "epochs": 15, "patience": 6, "lr": 2e-3}


@pytest.fixture(scope="module")
def small():
    return simulate(weeks=240, regions=PLACES)


@pytest.fixture(scope="module")
def files(small, tmp_path_factory):
    return small.write(tmp_path_factory.mktemp("small") / "set")


def data_of(files, **more):
    series, texts, impact = files
    given = {"horizons": (0, 1, 4), "context": 8, **more}
    return prepare(
        SideSettings(series=str(series), texts=str(texts), impact=str(impact), **given).resolved()
    )


def model_of(data, loss="bce", **more):
    table = data.table
    train = [t.text for t in data.texts.items[:400]]
    vectors = HashedText.fit(train)([t.text for t in data.texts.items])
    statistics = fit_statistics(table, vectors, loss)
    inputs = make_inputs(table, vectors, statistics, loss, table.regions)
    config = SideConfig(
        text_width=vectors.shape[1], physical=table.physical_names, regions=table.regions,
        horizons=table.horizons, categories=table.categories, context=table.context,
        hidden_size=16, impact_loss=loss, **more,
    )  # fmt: skip
    return new_model(config, statistics.prior, loss, seed=0), inputs, statistics


def run(files, output=None, **more):
    series, texts, impact = files
    return compress.train_side(output, series=series, texts=texts, impact=impact, **more)


# --- where it starts ----------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["bce", "poisson"])
def test_before_training_it_is_persistence_and_the_prior(files, loss):
    data = data_of(files)
    model, inputs, statistics = model_of(data, loss)
    rows = data.table.anchors(2)
    severity, impact = estimate(model.eval(), inputs, rows, len(data.table.days), loss)
    for column, h in enumerate(data.table.horizons):
        assert np.array_equal(severity[rows, column], data.table.base(h)[rows])
    own = np.broadcast_to(np.array(statistics.prior), impact[rows].shape)
    assert impact[rows] == pytest.approx(own, rel=1e-6)
    values = data.table.impacts[(data.table.part == 0) & data.table.impacts_known]
    share = (values > 0).mean(axis=0) if loss == "bce" else values.mean(axis=0)
    assert statistics.prior == pytest.approx(share, abs=0.01)


def test_weights_come_from_the_seed_alone(files):
    data = data_of(files)
    one = model_of(data)[0].state_dict()
    torch.rand(7)
    two = model_of(data)[0].state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)


# --- its parts ----------------------------------------------------------------------------------


def test_pooling_is_the_softmax_written_slowly():
    torch.manual_seed(0)
    pool = TextPool(6, 4)
    pool.nothing.data.fill_(3.0)
    vectors, week = torch.randn(7, 6), torch.tensor([0, 0, 0, 2, 2, 4, 4])
    found = pool(vectors, week, 5)
    for w in range(5):
        own = vectors[week == w]
        if len(own) == 0:
            assert torch.equal(found[w], pool.nothing)
            continue
        score = torch.stack([pool.score(torch.tanh(pool.project(z))) for z in own]).flatten()
        wanted = (torch.softmax(score, 0)[:, None] * own).sum(0)
        assert torch.allclose(found[w], wanted, atol=1e-6)
    assert torch.equal(pool(vectors[:0], week[:0], 2), pool.nothing.expand(2, -1))


def test_cross_attention_is_causal_to_the_last_bit():
    torch.manual_seed(0)
    attention = CausalCrossAttention(16, 12)
    states, others = torch.randn(3, 12, 16), torch.randn(3, 12, 16)
    before = attention(states, others)
    for t in range(11):
        later, noisy = others.clone(), states.clone()
        later[:, t + 1 :] = 1e3 * torch.randn(3, 11 - t, 16)
        noisy[:, t + 1 :] = 1e3 * torch.randn(3, 11 - t, 16)
        assert torch.equal(attention(noisy, later)[:, : t + 1], before[:, : t + 1])
    assert not torch.equal(attention(states, others.roll(1, 1)), before)


def test_states_up_to_a_week_dont_see_the_next(files):
    data = data_of(files)
    model, inputs, _ = model_of(data)
    model.eval()
    rows = torch.from_numpy(data.table.anchors(0)[:1])
    windows = inputs.windows_of(rows)
    now = torch.zeros(1, dtype=torch.int64)
    s, p = model.states(**windows, delay=now)
    changed = {k: v.clone() for k, v in windows.items()}
    last = int(windows["windows"][0, -1])
    changed["physical"][last] += 9
    changed["social"][last] += 9
    changed["text_vectors"][windows["text_week"] == last] -= 9
    s2, p2 = model.states(**changed, delay=now)
    assert torch.equal(s[:, :-1], s2[:, :-1])
    assert torch.equal(p[:, :-1], p2[:, :-1])
    assert not torch.equal(p[:, -1], p2[:, -1])


def test_a_nowcast_doesnt_see_its_own_map_or_reports(files):
    data = data_of(files)
    model, inputs, _ = model_of(data)
    model.eval()
    torch.nn.init.normal_(model.heads.severity.weight)
    torch.nn.init.normal_(model.heads.impact.weight)
    rows = data.table.anchors(2)[5:6]
    weeks = len(data.table.days)
    before = estimate(model, inputs, rows, weeks, "bce")
    changed = {k: v.clone() if torch.is_tensor(v) else v for k, v in vars(inputs).items()}
    changed["physical"][rows] += 9
    changed["social"][rows, 1:] += 9
    after = estimate(model, replace(inputs, **changed), rows, weeks, "bce")
    for one, two in zip(before, after):
        assert np.array_equal(one[rows, 0], two[rows, 0])
        assert not np.array_equal(one[rows, 1:], two[rows, 1:])
    counts = inputs.social.clone()
    counts[rows, 0] += 9  # texts of the week are seen
    seen = estimate(model, replace(inputs, social=counts), rows, weeks, "bce")
    assert not np.array_equal(before[0][rows, 0], seen[0][rows, 0])


@pytest.mark.parametrize(("part", "name"), [("use_text", "social"), ("use_physical", "physical")])
def test_an_ablation_leaves_its_input_out(files, part, name):
    data = data_of(files)
    model, inputs, _ = model_of(data, **{part: False})
    model.eval()
    torch.nn.init.normal_(model.heads.severity.weight)
    rows, weeks = data.table.anchors(2), len(data.table.days)
    before = estimate(model, inputs, rows, weeks, "bce")[0]
    if name == "social":
        other = replace(inputs, vectors=inputs.vectors + 5)
    else:
        other = replace(inputs, physical=inputs.physical + 5)
    assert np.array_equal(before, estimate(model, other, rows, weeks, "bce")[0], equal_nan=True)


def test_without_cross_attention_texts_dont_reach_severity(files):
    data = data_of(files)
    model, inputs, _ = model_of(data, use_cross=False)
    model.eval()
    torch.nn.init.normal_(model.heads.severity.weight)
    rows, weeks = data.table.anchors(2), len(data.table.days)
    one = estimate(model, inputs, rows, weeks, "bce")[0]
    two = estimate(model, replace(inputs, vectors=-inputs.vectors), rows, weeks, "bce")[0]
    assert np.array_equal(one, two, equal_nan=True)


def test_the_losses_are_the_definition(files):
    data = data_of(files)
    table = data.table
    model, inputs, _ = model_of(data)
    model.eval()
    torch.nn.init.normal_(model.heads.severity.weight, std=0.1)
    rows = table.anchors(0)[:40]
    severity, impact = losses(model, inputs, torch.from_numpy(rows), "bce")
    said, chance = estimate(model, inputs, rows, len(table.days), "bce")
    wanted = [0.0, 0.0]
    for column, h in enumerate(table.horizons):
        errors, surprise = [], []
        for row in rows:
            if not table.valid[row, column]:
                continue
            error = (said[row, column] - table.severity[row + h]) / float(inputs.scale[row, column])
            off = abs(error)
            errors.append(off**2 / 2 if off <= DELTA else DELTA * (off - DELTA / 2))
            for c in range(3):
                if table.impacts_known[row + h]:
                    true, q = table.impacts[row + h, c] > 0, chance[row, column, c]
                    surprise.append(-np.log(q if true else 1 - q))
        wanted[0] += np.mean(errors)
        wanted[1] += np.mean(surprise)
    assert severity.item() == pytest.approx(wanted[0], rel=1e-4)
    assert impact.item() == pytest.approx(wanted[1], rel=1e-4)
    joint = _Joint(model, FitOptions())
    joint.tau.data.fill_(0.3)
    whole = wanted[0] + np.exp(-0.3) * wanted[1] + 0.3
    assert float(joint.loss(severity, impact)) == pytest.approx(whole, rel=1e-4)
    fixed = _Joint(model, FitOptions(task_weight="0.5"))
    assert fixed.tau is None
    assert float(fixed.loss(severity, impact)) == pytest.approx(
        wanted[0] + 0.5 * wanted[1], rel=1e-4
    )


def test_words_of_later_texts_fit_nothing(files, tmp_path):
    data = data_of(files)
    train = [t.text for t in data.texts.items if t.day < data.split.val_from]
    one = HashedText.fit(train)
    assert one(["[simulated] parched days"]).any()
    unseen = one(["zebra xylophone quartz"])
    assert not unseen.any()
    one.save(tmp_path / "text.npz")
    again = HashedText.load(tmp_path / "text.npz")
    assert np.array_equal(again(train[:5]), one(train[:5]))


# --- what it finds ------------------------------------------------------------------------------


def test_the_planted_dependence_is_found_and_only_with_its_texts(files):
    joint = run(files, **LEARN).report["skill"]["4"]
    assert joint["skill"] > 0.5
    assert joint["verdict"] == "skill"
    for ablation in ({"no_text": True}, {"shuffle_texts": True}):
        alone = run(files, **LEARN, **ablation).report["skill"]["4"]
        assert abs(alone["skill"]) < 0.15, ablation


# --- the command --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(files, tmp_path_factory):
    place = tmp_path_factory.mktemp("trained") / "out"
    result = run(files, place, **{**QUICK, "baselines": "all"}, epochs=2, seeds=2)
    return place, result


def test_out_holds_what_is_promised(trained):
    from compress.reports.validate import check

    place, result = trained
    names = {path.name for path in place.iterdir()}
    assert names >= {
        "config.json", "model.safetensors", "statistics.json", "text.npz", "report.json",
        "report.html", "receipt.json", "series.png", "estimates.csv",
    }  # fmt: skip
    receipt = json.loads((place / "receipt.json").read_text())
    assert check(receipt) == []
    assert set(receipt["skill"]) == {"0", "1", "4"}
    assert set(receipt["skill"]["4"]) >= {"mae", "persistence_mae", "skill", "ci95"}
    assert any("SIMULATED" in note for note in receipt["notes"])
    page = (place / "report.html").read_text(encoding="utf-8")
    assert page.count("SIMULATED DATA") == 1
    assert page.index("SIMULATED DATA") < page.index("skill against persistence")
    assert "http" not in page.replace("http-equiv", "")
    report = json.loads((place / "report.json").read_text())
    assert set(report["baselines"]) == {
        "persistence", "drift", "climatology", "seasonal", "ridge", "ridge + text", "text alone",
        "boosting",
    }  # fmt: skip
    assert set(report["impacts"]["horizons"]["4"]) == {
        "model", "prior", "last value", "regression",
    }  # fmt: skip
    assert set(report["places"]) == set(PLACES)
    assert [s["kept"] for s in report["seeds"]].count(True) == 1
    text = result.render()
    assert text.startswith("SIMULATED DATA")
    assert max(map(len, text.splitlines())) <= 80


def test_intervals_are_split_conformal(trained, files):
    place, _ = trained
    lines = [line.split(",") for line in (place / "estimates.csv").read_text().splitlines()]
    at = {name: i for i, name in enumerate(lines[0])}
    own = [line for line in lines[1:] if line[at["horizon"]] == "4"]
    inside = [float(r[at["low"]]) <= float(r[at["truth"]]) <= float(r[at["high"]]) for r in own]
    report = json.loads((place / "report.json").read_text())
    said = [r for r in report["reliability"] if (r["horizon"], r["level"]) == (4, 0.9)]
    assert np.mean(inside) == pytest.approx(said[0]["coverage"], abs=1e-9)
    # widths grow with the level
    for _, group in itertools.groupby(report["reliability"], key=lambda r: r["horizon"]):
        widths = [r["mean_width"] for r in group]
        assert widths == sorted(widths)


def test_conformal_by_hand(files):
    table = data_of(files).table
    scale = np.ones((len(table.days), 3))
    off = np.zeros_like(scale)
    rows = table.anchors(1, 4)
    truth = table.shifted(table.severity, 4)
    off[:, 2] = truth
    off[rows, 2] += np.arange(1, len(rows) + 1)
    found = scoring.conformal(table, np.nan_to_num(off), scale, (0.5, 0.9))["4"]
    n = len(rows)
    assert found == {"0.5": np.ceil((n + 1) * 0.5), "0.9": np.ceil((n + 1) * 0.9)}


def test_a_killed_run_resumes_to_the_same_bytes(trained, files, tmp_path):
    place, _ = trained
    options = {**QUICK, "baselines": "all", "epochs": 2, "seeds": 2}

    def die(task, done, total, note=""):
        if task == "train, seed 1" and done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(files, tmp_path / "out", **options, progress=die)
    assert not (tmp_path / "out").exists()
    with pytest.raises(RequestError, match=r"can't resume: `options\.lr`"):
        run(files, tmp_path / "out", **options, lr=0.5, resume=True)
    told = []
    run(files, tmp_path / "out", **options, resume=True,
        progress=lambda task, done, total, note="": told.append((task, done)))  # fmt: skip
    assert ("train, seed 0", 1) not in told  # what was finished isn't done again
    assert ("train, seed 1", 1) not in told
    assert ("train, seed 1", 2) in told
    for name in ("model.safetensors", "report.json", "estimates.csv", "statistics.json"):
        assert (tmp_path / "out" / name).read_bytes() == (place / name).read_bytes(), name
    assert not (tmp_path / "out.partial").exists()


def test_row_order_and_repeats_give_the_same_model(small, files, tmp_path):
    rng = random.Random(3)

    def mixed(rows):
        doubled = [*rows, *rng.sample(list(rows), 30)]
        rng.shuffle(doubled)
        return tuple(doubled)

    other = replace(
        small, series=mixed(small.series), texts=mixed(small.texts), impacts=mixed(small.impacts)
    )
    options = {**QUICK, "epochs": 1, "hidden": 8}
    run(files, tmp_path / "a", **options)
    run(other.write(tmp_path / "set"), tmp_path / "b", **options)
    one, two = (load_file(tmp_path / n / "model.safetensors") for n in "ab")
    assert all(torch.equal(one[k], two[k]) for k in one)


def test_it_loads_through_auto_classes_in_a_fresh_process(trained):
    place, _ = trained
    code = """
import sys
first, second = sys.argv[2:]
__import__(first); __import__(second)
from transformers import AutoConfig, AutoModel
assert AutoConfig.from_pretrained(sys.argv[1]).model_type == "side"
model = AutoModel.from_pretrained(sys.argv[1])
print(type(model).__module__, type(model).__name__, model.heads.severity.weight.abs().sum().item())
"""
    weights = load_file(place / "model.safetensors")
    wanted = float(weights["parts.1.severity.weight"].abs().sum())
    for order in (("compress", "transformers"), ("transformers", "compress")):
        done = subprocess.run(
            [sys.executable, "-c", code, str(place), *order], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-1500:]
        module, name, total = done.stdout.split()
        assert (module, name) == ("compress.drought.modeling", "SideModel")
        assert float(total) == pytest.approx(wanted)


def test_the_suite_takes_its_linear_layers_and_lists_the_rest(trained, files, tmp_path):
    from compress.checkpoints.anatomy import read_anatomy

    place, _ = trained
    anatomy = read_anatomy(SideModel.from_pretrained(place))
    names = {matrix.name for matrix in anatomy.matrices}
    assert {"parts.1.severity", "parts.1.impact", "parts.0.to_physical.q_proj"} <= names
    skipped = {n: why for block in anatomy.blocks for n, why in block.skipped}
    recurrent = [n for n in skipped if "weight_ih" in n or "weight_hh" in n]
    assert len(recurrent) == 4
    assert all("recurrent" in skipped[n] for n in recurrent)
    done = compress.alpha_prune(place, tmp_path / "pruned", method="magnitude", sparsity=0.5,
                                allocation="uniform")  # fmt: skip
    rows = done.plan.rows
    assert {row["module"] for row in rows} == names
    pruned = SideModel.from_pretrained(tmp_path / "pruned")
    weight = pruned.heads.impact.weight
    assert float((weight == 0).float().mean()) == pytest.approx(0.5, abs=0.01)
    assert torch.equal(
        pruned.dynamics.social.weight_ih_l0,
        SideModel.from_pretrained(place).dynamics.social.weight_ih_l0,
    )
    assert compress.inspect(place).rows
    thin = compress.lowrank_svd(place, tmp_path / "thin", keep=0.8, method="svd")
    assert thin.receipt.after.parameters < thin.receipt.before.parameters
    series, texts, impact = files
    for name in ("pruned", "thin"):  # a compressed copy estimates as the model itself does
        found = compress.predict_side(tmp_path / name, series=series, texts=texts, impact=impact)
        assert len(found.rows) == len(PLACES) * 3


def test_report_shows_skill(trained, tmp_path):
    place, _ = trained
    other = shutil.copytree(place, tmp_path / "other")
    text = compress.report(place).render(width=120, terminal=False)
    assert "MAE, 4 weeks ahead; persistence" in text
    assert "skill" in text
    both = compress.report([place, other]).render(width=120, terminal=False)
    assert "skill 4" in both
    assert both.count("SIMULATED DATA") == 2


def test_predict_continues_the_series(trained, files):
    place, _ = trained
    series, texts, impact = files
    found = compress.predict_side(place, series=series, texts=texts, impact=impact)
    assert len(found.rows) == len(PLACES) * 3
    row = next(r for r in found.rows if r["region"] == "SIM-B" and r["horizon"] == 4)
    assert row["intervals"]["0.5"][0] < row["estimate"] < row["intervals"]["0.5"][1]
    assert set(row["impact"]) == set(prepare_categories(place))
    assert "SIMULATED" in found.render()
    # the last test anchor of the report is the same estimate, from the same weeks
    lines = (place / "estimates.csv").read_text().splitlines()
    head = lines[0].split(",")
    last = [dict(zip(head, line.split(","))) for line in lines[1:]]
    own = [r for r in last if r["region"] == "SIM-B" and r["horizon"] == "0"]
    now = next(r for r in found.rows if r["region"] == "SIM-B" and r["horizon"] == 0)
    assert now["made"] == own[-1]["made"]
    assert now["estimate"] == pytest.approx(float(own[-1]["estimate"]), abs=0.02)
    assert found.as_dict()["forecasts"]


def prepare_categories(place):
    return json.loads((place / "config.json").read_text())["categories"]


def test_poisson_transfer_and_worst_category(files, tmp_path):
    options = {**QUICK, "epochs": 1, "hidden": 8, "baselines": "all"}
    result = run(files, **options, impact_loss="poisson", transfer_to=("SIM-D",),
                 target="worst-category", task_weight="0.5", optimizer="stable-spam")  # fmt: skip
    report = result.report
    assert set(report["places"]) == {"SIM-D"}
    assert set(report["impacts"]["horizons"]["4"]["model"]) == {
        "n", "deviance", "mae", "skill", "ci95",
    }  # fmt: skip
    assert report["seeds"][0]["impact_weight"] == 0.5
    assert report["classes"]["4"]["persistence"]["ordinal_mae"] >= 0


def test_a_random_split_says_so_first(files):
    result = run(files, **QUICK, epochs=1, hidden=8, unsafe_random_split=True)
    assert result.render().splitlines()[0].startswith("UNSAFE RANDOM SPLIT")
    assert result.report["warnings"][0].startswith("UNSAFE RANDOM SPLIT")


def test_series_alone_is_enough(files):
    series, _, _ = files
    options = {**QUICK, "encoder": "auto", "epochs": 1}
    result = compress.train_side(series=series, regions=("SIM-A",), **options)
    assert set(result.report["skill"]) == {"0", "1", "4"}
    assert "impacts" not in result.report


def test_huber_is_torchs():
    errors = torch.linspace(-1, 1, 9)
    off = errors.abs()
    wanted = torch.where(off <= DELTA, off**2 / 2, DELTA * (off - DELTA / 2)).mean()
    found = functional.huber_loss(errors, torch.zeros(9), delta=DELTA)
    assert found.item() == pytest.approx(wanted.item())


def test_average_precision_of_a_perfect_ranking():
    assert metrics.average_precision(np.array([0, 1, 1]), np.array([0.1, 0.8, 0.9])) == 1.0
    assert metrics.poisson_deviance(np.array([2.0, 0.0]), np.array([2.0, 0.0])) == pytest.approx(
        0, abs=1e-8
    )
