"""Every mistake of a recipe is told before anything starts, with its place and a near name."""

import pytest

import compress
from compress.cli.main import call
from compress.errors import RequestError

STEPS = """\
steps:
  prune:
    run: alpha-prune
    model: ./m
    method: magnitude
"""


def refused(name, tmp_path, **options):
    with pytest.raises(RequestError) as caught:
        compress.run(name, "out", **options)
    assert sorted(p.name for p in tmp_path.iterdir() if p.suffix != ".yaml") == []
    assert caught.value.code == 2
    return caught.value


@pytest.mark.parametrize(
    ("text", "place", "words", "near"),
    [
        ("stpes: {}\n", "1:1", "no `stpes:`", "steps"),
        ("about: x\n", "1:1", "no `steps:`", ""),
        ("steps:\n  a: {run: alpha-prun, model: m}\n", "2:12", "`alpha-prun` isn't a command",
         "alpha-prune"),
        ("steps:\n  a: {run: run, model: m}\n", "2:12", "`run` isn't a command", "include:"),
        ("steps:\n  a: {model: m}\n", "2:3", "no `run:`", ""),
        ("steps:\n  a: {run: inspect}\n", "2:3", "no `model:`", ""),
        ("steps:\n  a: {run: inspect, model: [m, n]}\n", "2:21", "one at a time", ""),
        ("steps:\n  a b: {run: inspect, model: m}\n", "2:3", "can't name a step", ""),
        (STEPS + "    sparsty: 0.5\n", "6:5", "`sparsty` isn't an option",
         "sparsity"),
        (STEPS + "    sparsity: lots\n", "6:15", "'lots' is not a valid float", ""),
        (STEPS + "    esd-exact: 3\n", "6:16", "true or false is needed", ""),
        (STEPS + "    sparsity: {a: 1}\n", "6:15", "can't be a mapping", ""),
        (STEPS + "    resume: true\n", "6:5", "the run's own to say", ""),
        (STEPS + "    plan-out: a/b.json\n", "6:15", "bare file name", ""),
        (STEPS + "    needs: prun\n", "6:12", "no step `prun`", "prune"),
        (STEPS + "    retain: nothing\n", "6:13", "`retain: nothing`", "receipt"),
        (STEPS + "    epsilon: ${epsilom}\nvars: {epsilon: 1}\n", "6:14", "names nothing",
         "epsilon"),
        (STEPS + "    seed: ${env.COMPRESS_NO_SUCH}\n", "6:11", "has no `COMPRESS_NO_SUCH`", ":-"),
        (STEPS + "    plan: ${shipped.tiny-lama}\n", "6:11", "ships no `tiny-lama`", "tiny-llama"),
        (STEPS + "    plan: ${steps.prun.output}\n", "6:11", "there is no step `prun`", "prune"),
        (STEPS + "    plan: ${steps.prune.outptu}\n", "6:11", "`output`, `files`", "output"),
        (STEPS + "    plan: ${steps.prune.output}\n", "2:3", "circle: prune -> prune", ""),
        (STEPS + "  b: {run: eval, models: '${steps.c.receipt.x}'}\n"
         "  c: {run: eval, models: '${steps.b.receipt.x}'}\n", "6:3", "circle: b -> c -> b", ""),
        (STEPS + "  b: {run: inspect, model: x}\n  c: {run: inspect, model: '${steps.b.output}'}\n",
         "7:28", "step `b` (inspect) writes no output", "receipt"),
        (STEPS + "    seed: ${x}\nvars: {x: '${y}', y: '${x}'}\n", "7:22",
         "variables in a circle: x -> y -> x", ""),
        (STEPS + "    seed: ${steps}\n", "6:11", "there is no step ``", "prune"),
        (STEPS + "vars: {steps: 3}\n", "6:8", "can't name a variable", ""),
        (STEPS + "matrix: {metric: []}\n", "6:10", "no value: the grid has no cell", ""),
        (STEPS + "matrix: {metric: 3}\n", "6:10", "is a list of values", ""),
        (STEPS + "matrix: {metric: [a, b]}\n", "6:10", "no step depends on the axis", ""),
        (STEPS + "    epsilon: ${e}\nmatrix: {e: [0.1, 0.1]}\n", "7:19", "`0.1` twice", ""),
        (STEPS + "    epsilon: ${e}\nmatrix: {e: [0.1], exclude: [{f: 1}]}\n", "7:31",
         "no axis `f`", "e"),
        (STEPS + "    epsilon: ${e}\nmatrix: {e: [0.1], exclude: [{e: 0.1}]}\n", "7:20",
         "no cell left", ""),
        (STEPS + "report: [prone]\n", "6:10", "no step `prone`", "prune"),
        (STEPS + "seeds: some\n", "6:1", "how many, or a list", ""),
        (STEPS + "defaults: {smaples: 3}\n", "6:12", "no step has an option `smaples`", "samples"),
        (STEPS + "include: other.yaml\n", "6:10", "no `other.yaml` to include", ""),
        (STEPS + "  prune: {run: inspect, model: m}\n", "6:3", "`prune` stands here twice", ""),
        ("steps:\n  a: !!python/object:os.system {run: x}\n", "2:6", "aren't allowed", ""),
        ("steps: [1\n", "2:1", "expected ',' or ']'", ""),
        (STEPS + "    metric: alpha_peek\n", "2:3", "alpha_peek", "alpha_peak"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_its_place(text, place, words, near, recipe, tmp_path, stub):
    error = refused(recipe(text), tmp_path)
    told = f"{error.message} {error.hint or ''}"
    assert error.message.startswith(f"r.yaml:{place}: "), error.message
    assert words in error.message
    assert near in told
    assert "\n" not in error.message
    assert stub.ran == []


def test_all_mistakes_are_told_at_once(recipe, tmp_path, stub):
    name = recipe(STEPS + "    sparsty: 1\n    epsilon: x\n  b: {run: exprt, model: m}\nabot: x\n")
    error = refused(name, tmp_path)
    for words in ("r.yaml:6:5: `sparsty`", "`sparsity`?", "7:14", "'x' is not a valid float",
                  "`exprt`", "`export`?", "9:1", "`about`?"):  # fmt: skip
        assert words in error.message
    assert error.hint == "4 mistakes; nothing was started"


def test_a_grid_too_large_is_refused_without_being_listed(recipe, tmp_path, stub):
    axes = "".join(f"  a{i}: [{', '.join(map(str, range(30)))}]\n" for i in range(8))
    used = "".join(f"${{a{i}}}" for i in range(8))
    name = recipe(STEPS.replace("./m", used) + "matrix:\n" + axes)
    error = refused(name, tmp_path)
    assert f"{30**8} cells, more than 500" in error.message
    assert "--max-cells" in error.hint
    name = recipe(STEPS + "    seed: ${s}\nmatrix: {s: [1, 2, 3]}\n")
    assert "3 cells, more than 2" in refused(name, tmp_path, max_cells=2).message


def test_includes_in_a_circle_and_broken_ones(recipe, tmp_path, stub):
    recipe("include: b.yaml\n", "a.yaml")
    recipe("include: a.yaml\n", "b.yaml")
    error = refused("a.yaml", tmp_path)
    assert (
        "b.yaml:1:10: a cycle of includes: a.yaml includes b.yaml includes a.yaml" in error.message
    )
    recipe("steps: {a: {run: inspct, model: m}}\n", "b.yaml")
    assert refused("a.yaml", tmp_path).message.startswith("b.yaml:1:18: `inspct`")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("nothing", "isn't key=value"),
        ("quick=true", "no quick form"),
        ("sparsty=1", "no variable `sparsty`"),
        ("steps.prone.sparsity=1", "`steps` has no `prone"),
        ("stps.prune=1", "no `stps` to set"),
        ("steps.prune.sparsity=lots", "'lots' is not a valid float"),
        ("steps.prune.sparsty=1", "`sparsty` isn't an option"),
    ],
)
def test_wrong_overrides(given, words, recipe, tmp_path, stub):
    name = recipe(STEPS + "vars: {sparsity: 1}\n")
    assert words in refused(name, tmp_path, set=[given]).message


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"backend": "rey"}, "`--backend rey`"),
        ({"jobs": 0}, "`--jobs 0`"),
        ({"shard": (3, 2)}, "`--shard 3/2`"),
        ({"shard": (2, 2)}, "`--shard 2/2` is empty"),
        ({"reuse": ["nowhere"]}, "is no run"),
        ({"resume": True}, "nothing to resume"),
    ],
)
def test_wrong_options(options, words, recipe, tmp_path, stub):
    assert words in refused(recipe(STEPS), tmp_path, **options).message


def test_no_recipe_and_one_of_that_name(recipe, capsys):
    assert call(["run", "alpha-prune-s07", "-o", "out"]) == 2
    assert "there is no recipe" in capsys.readouterr().err
    assert call(["run"]) == 2
    assert "no recipe" in capsys.readouterr().err


def test_an_output_that_is_something_else_is_kept(recipe, tmp_path, stub):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(RequestError, match="not empty"):
        compress.run(recipe(STEPS), "out")
    assert stub.ran == []
    compress.run("r.yaml", "out", overwrite=True)
    assert not (tmp_path / "out" / "mine").exists()
