"""`export --to remote-code`: transformers alone loads an edited model, and lm-eval does too."""

import ast
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import edited_models
import pytest
import torch
from edited_models import CASES

import compress
from compress.checkpoints import edits
from compress.checkpoints.export import export
from compress.checkpoints.remote import EDITS, FILE
from compress.checkpoints.source import open_source
from compress.errors import RequestError

NAMES = [
    name for name, case in CASES.items() if any(e["kind"] != "bitmask" for e in case.edits.values())
]
# One fresh process for all: this package can't be imported in it.
STRANGER = textwrap.dedent("""
    import json, sys
    from pathlib import Path

    class Blocked:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] == "compress":
                raise ImportError("compress is not installed here")

    sys.meta_path.insert(0, Blocked())
    import torch, transformers
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    root = Path(sys.argv[1])
    report = {}
    for name, auto in json.loads((root / "cases.json").read_text()).items():
        place, found = root / name, {}
        load = getattr(transformers, auto).from_pretrained
        try:
            model = load(place, trust_remote_code=True)
            inputs, logits = torch.load(root / f"{name}.pt")
            found["equal"] = torch.equal(model(**inputs).logits, logits)
            model.save_pretrained(root / f"{name}.again")
            model = load(root / f"{name}.again", trust_remote_code=True)
            found["equal again"] = torch.equal(model(**inputs).logits, logits)
            found["base"] = type(
                transformers.AutoModel.from_pretrained(place, trust_remote_code=True)
            ).__name__
        except Exception as error:
            found["error"] = f"{type(error).__name__}: {error}"
        try:
            load(place, trust_remote_code=False)
            found["untrusted"] = "loaded"
        except Exception as error:
            found["untrusted"] = f"{type(error).__name__}: {error}"
        report[name] = found
    (root / "report.json").write_text(json.dumps(report))
""")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Every case exported, with inputs and the logits of the model in memory."""
    root = tmp_path_factory.mktemp("remote")
    for name in NAMES:
        model, place = edited_models.make(name), _place(name)
        torch.save((edited_models.batch(model), edited_models.logits(model)), root / f"{place}.pt")
        compress.save(model, root / f"{place}_ours")
        export(root / f"{place}_ours", root / place, to="remote-code")
    cases = {_place(name): CASES[name].auto for name in NAMES}
    (root / "cases.json").write_text(json.dumps(cases))
    return root


@pytest.fixture(scope="module")
def report(root):
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(root / "hf"), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, str(root)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((root / "report.json").read_text())


def _place(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name)


@pytest.mark.parametrize("name", NAMES)
def test_without_this_package_the_logits_are_the_same_bits(report, name):
    found = report[_place(name)]
    assert "error" not in found, found["error"]
    assert found["equal"]
    assert found["equal again"]
    assert found["base"].startswith("Compressed")


@pytest.mark.parametrize("name", NAMES)
def test_without_trust_it_is_an_error_and_no_other_model(report, name):
    assert "trust_remote_code" in report[_place(name)]["untrusted"]


@pytest.mark.parametrize("name", ["lowrank llama", "several llama"])
def test_the_file_imports_transformers_torch_and_the_library_alone(root, name):
    tree = ast.parse((root / _place(name) / FILE).read_text())
    heads = {
        alias.name if isinstance(node, ast.Import) else str(node.module)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    }
    outside = {head.partition(".")[0] for head in heads} - set(sys.stdlib_module_names)
    assert outside <= {"torch", "transformers"}


def test_the_config_holds_the_edits_and_no_quantisation(root):
    config = json.loads((root / _place("lowrank llama") / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["model_type"] == "compressed_llama"
    assert set(config[EDITS]) == set(CASES["lowrank llama"].edits)


def test_a_model_without_edits_is_sent_elsewhere(tmp_path):
    edited_models.tiny("llama")().save_pretrained(tmp_path / "stock")
    with pytest.raises(RequestError) as caught:
        export(tmp_path / "stock", tmp_path / "out", to="remote-code")
    assert "--to stock" in str(caught.value.hint)
    assert not Path(tmp_path / "out").exists()


LM_EVAL = textwrap.dedent("""
    import json, sys

    class Blocked:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] == "compress":
                raise ImportError("compress is not installed here")

    sys.meta_path.insert(0, Blocked())
    import lm_eval
    from lm_eval.tasks import TaskManager

    tasks = TaskManager(include_path=sys.argv[1], include_defaults=False)
    found = {}
    for place in sys.argv[3:]:
        result = lm_eval.simple_evaluate(
            model="hf", model_args=f"pretrained={place},trust_remote_code=True,dtype=float32",
            tasks=["choose"], task_manager=tasks, device="cpu", batch_size=4, log_samples=True,
            bootstrap_iters=0,
        )
        found[place] = [[float(r[0][0]) for r in s["resps"]] for s in result["samples"]["choose"]]
    with open(sys.argv[2], "w") as file:
        json.dump(found, file)
""")


def test_lm_eval_called_by_hand_scores_stock_and_edited_outputs(demo_model, tmp_path):
    lines = [
        {"q": "Tom had a", "choices": [" red ball.", " seven."], "gold": 0},
        {"q": "3 plus 4 is", "choices": [" Tom.", " 7."], "gold": 1},
    ]
    (tmp_path / "items.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "choose.yaml").write_text(
        "task: choose\ndataset_path: json\noutput_type: multiple_choice\ntest_split: test\n"
        f"dataset_kwargs: {{data_files: {{test: {tmp_path / 'items.jsonl'}}}}}\n"
        'doc_to_text: "{{q}}"\ndoc_to_choice: choices\ndoc_to_target: gold\n'
        "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
    )
    model = open_source(demo_model).load().float()
    module = "model.layers.0.mlp.down_proj"
    dense = model.get_submodule(module).weight.detach().clone()
    rank = min(dense.shape)  # all of it: the function stays nearly the same
    edits.apply(model, {module: {"kind": "lowrank", "rank": rank}})
    pair = model.get_submodule(module)
    u, s, v = torch.linalg.svd(dense, full_matrices=False)
    with torch.no_grad():
        pair.up.weight.copy_(u * s)
        pair.down.weight.copy_(v)
    compress.save(model, tmp_path / "ours", companions=open_source(demo_model).companions())
    export(tmp_path / "ours", tmp_path / "remote", to="remote-code")
    places = [str(demo_model), str(tmp_path / "remote")]
    done = subprocess.run(
        [sys.executable, "-c", LM_EVAL, str(tmp_path), str(tmp_path / "found.json"), *places],
        capture_output=True, text=True, cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    stock, remote = json.loads((tmp_path / "found.json").read_text()).values()
    assert torch.allclose(torch.tensor(stock), torch.tensor(remote), atol=1e-3)
    assert torch.tensor(stock).std() > 0.1
