"""TRIM: counts of rows by what each output keeps; beside every allocation, in plans, resumed."""

import json

import pytest
import torch

from compress.checkpoints.source import open_source
from compress.checkpoints.walk import open_writer, walk
from compress.errors import RequestError
from compress.sparsity.allocation_checks import ROW_METHODS
from compress.sparsity.allocators.table import ALLOCATORS
from compress.sparsity.branches import Branch, Branches
from compress.sparsity.masks import wanda_score
from compress.sparsity.methods import METHODS
from compress.sparsity.pruner import STREAM, TRIM, Pruner, Target
from compress.sparsity.trim import MOST, trim_rows
from tests.sparsity.test_resume import files

CHEAP = {"atp": {"atp_candidates": 2, "atp_held_out": 1}}


def layer(out=12, width=16, tokens=200, seed=0, dtype=torch.float32):
    """A weight whose rows differ in what they can spare, inputs that correlate, Wanda's scores."""
    g = torch.Generator().manual_seed(seed)
    weight = torch.randn(out, width, generator=g)
    weight[: out // 2] = weight[: out // 2].sign() * weight[: out // 2].abs() ** 4  # few large ones
    weight /= weight.norm(dim=1, keepdim=True)  # no output outweighs the others
    inputs = torch.randn(tokens, width, generator=g) @ torch.randn(width, width, generator=g)
    weight = weight.to(dtype)
    return weight, inputs, wanda_score(weight, inputs.norm(dim=0)), inputs.T @ inputs


def pruned_by(weight, score, counts):
    """The definition, row by row."""
    rows = []
    for row, scores, count in zip(weight.double(), score.tolist(), counts):
        order = sorted(range(len(scores)), key=lambda j: (scores[j], j))
        rows.append(row.clone().index_fill_(0, torch.tensor(order[:count], dtype=torch.long), 0))
    return torch.stack(rows)


def cosine(a, b):
    return float((a * b).sum() / (a.norm() * b.norm()))


def slow_trim(weight, inputs, score, share, rate, steps=10):
    """One rate of TRIM from the outputs themselves, shares shifted by bisection."""
    dense = inputs.double() @ weight.double().T
    out, width = weight.shape
    count = round(share * out * width)
    x = [count / (out * width)] * out
    best, kept_counts, counts = -2.0, None, None
    base, extra = divmod(count, out)
    counts = [base + (i < extra) for i in range(out)]
    for step in range(steps + 1):
        after = inputs.double() @ pruned_by(weight, score, counts).T
        if step and cosine(dense, after) > best:
            best, kept_counts = cosine(dense, after), counts
        c = [cosine(dense[:, i], after[:, i]) for i in range(out)]
        place = [(v - min(c)) / (max(c) - min(c) + 1e-6) for v in c]
        x = [a + 2 * rate * b for a, b in zip(x, place)]
        low, high = -2.0, 2.0
        for _ in range(100):
            shift = (low + high) / 2
            total = sum(min(max(v + shift, 0), MOST) for v in x)
            low, high = (shift, high) if total < count / width else (low, shift)
        x = [min(max(v + low, 0), MOST) for v in x]
        floors = [int(v * width + 1e-9) for v in x]
        order = sorted(range(out), key=lambda i: -(x[i] * width - floors[i]))
        for i in order[: count - sum(floors)]:
            floors[i] += 1
        counts = floors
    return best, kept_counts


@pytest.mark.parametrize("rate", [0.04, -0.02])
@pytest.mark.parametrize("share", [0.5, 0.7])
def test_one_rate_is_the_definition_on_the_outputs_themselves(share, rate):
    weight, inputs, score, gram = layer()
    count = round(share * weight.numel())
    found = trim_rows(weight, score, gram, count, rates=(rate,), opposite=(rate,))
    best, counts = slow_trim(weight, inputs, score, share, rate)
    if found.rate:
        assert found.counts.tolist() == counts
        assert found.kept == pytest.approx(best, abs=1e-5)
    else:  # even counts are better than any step
        assert best <= found.even + 1e-6


def test_the_cosines_are_those_of_the_outputs():
    weight, inputs, score, gram = layer(seed=3)
    found = trim_rows(weight, score, gram, 120)
    dense = inputs.double() @ weight.double().T
    for counts, kept in ((found.counts.tolist(), found.kept), ([10] * 12, found.even)):
        after = inputs.double() @ pruned_by(weight, score, counts).T
        assert kept == pytest.approx(cosine(dense, after), abs=1e-5)


@pytest.mark.parametrize("seed", range(6))
def test_counts_are_exact_within_their_bounds_and_never_worse_than_even(seed):
    weight, _, score, gram = layer(9, 20, seed=seed)
    for count in (0, 1, 90, 126, 170, 179, 180):
        found = trim_rows(weight, score, gram, count)
        assert int(found.counts.sum()) == count
        assert 0 <= int(found.counts.min()) <= int(found.counts.max()) <= 20
        if count <= 0.95 * 180:
            assert int(found.counts.max()) <= 19  # ceil of 0.95 * 20
        assert found.kept >= found.even


def test_rows_that_hold_up_lose_more_and_the_outputs_keep_more():
    weight, _, score, gram = layer(64, 32, seed=1)
    found = trim_rows(weight, score, gram, round(0.7 * weight.numel()))
    assert found.rate > 0
    assert found.kept > found.even + 0.002
    few, many = found.counts[:32].double().mean(), found.counts[32:].double().mean()
    assert few > many + 1  # half of the rows rest on few large weights


def test_the_scale_of_inputs_and_rows_of_zeros():
    weight, _, score, gram = layer()
    plain = trim_rows(weight, score, gram, 100)
    assert torch.equal(trim_rows(weight, score, gram * 64, 100).counts, plain.counts)
    weight[3], score[3] = 0, 0
    found = trim_rows(weight, score, gram, 100)
    assert int(found.counts.sum()) == 100
    dead = trim_rows(torch.zeros(2, 4), torch.zeros(2, 4), torch.eye(4), 4)
    assert (dead.counts.tolist(), dead.even, dead.rate) == ([2, 2], 1.0, 0.0)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="Gram matrix"):
        trim_rows(torch.ones(2, 4), torch.ones(2, 4), torch.eye(3), 2)
    with pytest.raises(ValueError, match="can't drop 9"):
        trim_rows(torch.ones(2, 4), torch.ones(2, 4), torch.eye(4), 9)


def zeros_by_row(place, plan):
    weights = dict(open_source(place).load().named_parameters())
    return {
        row["module"]: (weights[f"{row['module']}.weight"] == 0).sum(1).tolist()
        for row in plan.rows
    }


@pytest.mark.parametrize("method", ROW_METHODS)
def test_the_rows_on_disk_are_the_plans_and_the_totals_exact(method, checkpoint, prune, tmp_path):
    done = prune(checkpoint(), tmp_path / "out", method=method, rows="trim", epsilon=0.2)
    found = zeros_by_row(tmp_path / "out", done.plan)
    size = sum(row["size"] for row in done.plan.rows)
    assert sum(row["zeros"] for row in done.plan.rows) == round(0.6 * size)
    for row in done.plan.rows:
        assert row["rows"] == found[row["module"]]
        assert sum(row["rows"]) == row["zeros"]
    assert any(max(row["rows"]) - min(row["rows"]) > 1 for row in done.plan.rows)
    assert "trim: cosine of the outputs" in " ".join(done.receipt.notes)
    even = prune(checkpoint(), tmp_path / "even", method=method, epsilon=0.2)
    assert [r["zeros"] for r in even.plan.rows] == [r["zeros"] for r in done.plan.rows]


def test_the_table_of_methods_says_the_same():
    assert tuple(name for name, method in METHODS.items() if method.by_rows) == ROW_METHODS


@pytest.mark.parametrize("allocation", ALLOCATORS)
def test_beside_every_allocation(allocation, checkpoint, prune):
    given = {"allocation": allocation, "rows": "trim", **CHEAP.get(allocation, {})}
    plan = prune(checkpoint(), dry_run=True, **given).plan
    assert {row["rows"] for row in plan.rows if row["zeros"]} == {TRIM}
    assert sum(r["zeros"] for r in plan.rows) == round(0.6 * sum(r["size"] for r in plan.rows))


def test_the_allocation_trim_is_uniform_with_it(checkpoint, prune, tmp_path):
    one = prune(checkpoint(), tmp_path / "a", allocation="trim")
    two = prune(checkpoint(), tmp_path / "b", allocation="uniform", rows="trim")
    assert one.plan.rows == two.plan.rows
    assert files(tmp_path / "a")["model.safetensors"] == files(tmp_path / "b")["model.safetensors"]


def test_plans_of_the_rule_and_of_its_counts_give_the_same_bytes(checkpoint, prune, tmp_path):
    rule = tmp_path / "rule.json"
    done = prune(checkpoint(), tmp_path / "a", rows="trim", plan_out=rule)
    assert all(row["rows"] == TRIM for row in json.loads(rule.read_text())["rows"])
    again = prune(checkpoint(), tmp_path / "b", plan=rule)
    given = prune(checkpoint(), tmp_path / "c", plan=tmp_path / "a" / "plan.json")
    weights = files(tmp_path / "a")["model.safetensors"]
    assert files(tmp_path / "b")["model.safetensors"] == weights
    assert files(tmp_path / "c")["model.safetensors"] == weights
    assert again.plan.rows == given.plan.rows == done.plan.rows
    assert done.receipt.as_dict()["plan"]["digest"] == done.plan.digest()


def test_counts_of_rows_hold_for_another_method(checkpoint, prune, tmp_path):
    done = prune(checkpoint(), tmp_path / "a", rows="trim")
    other = prune(
        checkpoint(), tmp_path / "b", plan=tmp_path / "a" / "plan.json", method="magnitude"
    )
    assert zeros_by_row(tmp_path / "b", other.plan) == zeros_by_row(tmp_path / "a", done.plan)


def test_an_expert_without_a_token_is_pruned_and_its_counts_are_told(checkpoint, prune, tmp_path):
    done = prune(checkpoint("mixtral"), tmp_path / "out", rows="trim", samples=1, seqlen=4)
    assert "no calibration token reached it" in " ".join(done.receipt.notes)
    assert all(sum(row["rows"]) == row["zeros"] for row in done.plan.rows)
    again = prune(checkpoint("mixtral"), tmp_path / "again", plan=tmp_path / "out" / "plan.json",
                  samples=1, seqlen=4)  # fmt: skip
    assert again.plan.rows == done.plan.rows
    assert (
        files(tmp_path / "out")["model.safetensors"]
        == files(tmp_path / "again")["model.safetensors"]
    )


def test_an_interrupted_run_resumes_to_the_same_bytes_and_plan(checkpoint, prune, tmp_path):
    prune(checkpoint(), tmp_path / "alone", rows="trim", refit="exact")

    def stop(task, done, total, note=""):
        if task == "prune" and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prune(checkpoint(), tmp_path / "out", rows="trim", refit="exact", progress=stop)
    prune(checkpoint(), tmp_path / "out", rows="trim", refit="exact", resume=True)
    assert files(tmp_path / "out") == files(tmp_path / "alone")


def test_a_branch_with_trim_equals_a_walk_of_its_own(checkpoint, tmp_path):
    source = open_source(checkpoint())
    torch.manual_seed(2)
    batches = [{"input_ids": torch.randint(4, 100, (2, 12))} for _ in range(2)]
    from compress.checkpoints.anatomy import read_anatomy
    from compress.checkpoints.loader import skeleton

    matrices = read_anatomy(skeleton(source)).matrices
    targets = {
        rows: {m.name: Target(m.numel // 2, None, TRIM if rows else None) for m in matrices}
        for rows in (True, False)
    }
    branches = {"even": Branch(targets[False], "wanda"), "trim": Branch(targets[True], "wanda")}
    writers = {name: open_writer(tmp_path / name, source) for name in branches}
    method = Branches(branches)
    walk(source, batches, method, writers, streams=list(branches))
    alone = open_writer(tmp_path / "alone", source)
    own = Pruner(targets[True], "wanda")
    walk(source, batches, own, alone, streams=(STREAM,))
    assert method.pruners["trim"].rows() == own.rows()
    for part in alone.parts():
        expected, found = alone.read(part), writers["trim"].read(part)
        assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"rows": "trim", "method": "sparsegpt"}, ["--rows trim", "--method sparsegpt", "wanda"]),
        ({"allocation": "trim", "method": "alps"}, ["--allocation trim", "--method alps"]),
        ({"rows": "trim", "pattern": "2:4", "sparsity": None}, ["--rows trim", "--pattern 2:4"]),
        ({"rows": "trim", "pattern": "mixed:8"}, ["--rows trim", "--pattern mixed:8"]),
        ({"allocation": "trim", "pattern": "mixed:8"}, ["--allocation trim", "mixed:8"]),
        ({"rows": "trimm"}, ["--rows trimm", "trim"]),
    ],
)
def test_what_it_cannot_go_with_is_named(given, words, checkpoint, prune):
    with pytest.raises(RequestError) as caught:
        prune(checkpoint(), dry_run=True, **given)
    for word in words:
        assert word in f"{caught.value.message} {caught.value.hint}"


@pytest.mark.parametrize("rows", [[1, 2], "even", [-1, 5], [1.5] * 32, {"a": 1}])
def test_a_plan_with_rows_that_do_not_fit_is_named(rows, checkpoint, prune, tmp_path):
    file = tmp_path / "plan.json"
    plan = prune(checkpoint(), dry_run=True, plan_out=file).plan
    data = json.loads(file.read_text())
    data["rows"][0]["rows"] = rows
    file.write_text(json.dumps(data))
    with pytest.raises(RequestError, match="rows") as caught:
        prune(checkpoint(), tmp_path / "out", plan=file)
    assert plan.rows[0]["module"] in caught.value.message
    assert not (tmp_path / "out").exists()


def test_a_plan_of_rows_is_refused_for_a_method_that_cannot_follow(checkpoint, prune, tmp_path):
    file = tmp_path / "plan.json"
    prune(checkpoint(), dry_run=True, rows="trim", plan_out=file)
    with pytest.raises(RequestError, match="--method sparsegpt"):
        prune(checkpoint(), tmp_path / "out", plan=file, method="sparsegpt")
    prune(checkpoint(), tmp_path / "done", rows="trim")
    with pytest.raises(RequestError, match="--method alps"):
        prune(checkpoint(), tmp_path / "o", plan=tmp_path / "done" / "plan.json", method="alps")
