"""What DeepSpeed asks of a run; weights that were gathered are stored as few as before."""

import importlib.util
import json

import pytest
import torch

import compress
from compress.errors import RequestError
from compress.training.optimizers import OPTIMIZERS, build_optimizer
from compress.training.sharding import ENTRY_BY_ENTRY, check_deepspeed, save_whole

GATHERED = "stage3_gather_16bit_weights_on_model_save"


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Writes a config; the package counts as installed, and a launcher as having been there."""
    known = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: name == "deepspeed" or known(name)
    )
    told = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in told.items():
        monkeypatch.setenv(name, value)

    def write(content):
        path = tmp_path / "ds.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(path)

    return write


def test_optimizers_that_need_whole_tensors_are_refused_with_zero_alone(config):
    for name in OPTIMIZERS:
        check_deepspeed(config({"zero_optimization": {"stage": 0}}), name)
        check_deepspeed(config({}), name)
        for stage in (1, 2, 3):
            path = config({"zero_optimization": {"stage": stage, GATHERED: True}})
            if name in ENTRY_BY_ENTRY:
                check_deepspeed(path, name)
            else:
                with pytest.raises(RequestError, match=f"stage {stage} cuts tensors"):
                    check_deepspeed(path, name)


def test_stage_3_without_weights_at_the_end_is_refused_at_the_beginning(config):
    with pytest.raises(RequestError, match="no process has the weights to store"):
        check_deepspeed(config({"zero_optimization": {"stage": 3}}), "adamw")


@pytest.mark.parametrize("name", ENTRY_BY_ENTRY)
def test_entry_by_entry_optimizers_do_the_same_on_a_flat_piece(name):
    """A step on two tensors is a step on one flat vector of both."""
    torch.manual_seed(0)
    first, second = torch.randn(6, 4), torch.randn(5, 4)
    grads = [[torch.randn(6, 4), torch.randn(5, 4)] for _ in range(3)]
    parts = [torch.nn.Parameter(first.clone()), torch.nn.Parameter(second.clone())]
    flat = torch.nn.Parameter(torch.cat([first.flatten(), second.flatten()]))
    options = {"weight_decay": 0.0}
    whole = build_optimizer(name, [("a.weight", parts[0]), ("b.weight", parts[1])], 0.1, **options)
    piece = build_optimizer(name, [("a.weight", flat)], 0.1, **options)
    for pair in grads:
        for part, grad in zip(parts, pair):
            part.grad = grad.clone()
        flat.grad = torch.cat([grad.flatten() for grad in pair])
        whole.step()
        piece.step()
    found = torch.cat([part.detach().flatten() for part in parts])
    torch.testing.assert_close(flat.detach(), found, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("content", "said"),
    [("{", "isn't JSON"), ("[]", "isn't a config"), ({"zero_optimization": 3}, "isn't a config"),
     ({"zero_optimization": {"stage": 9}}, "isn't a config")],
)  # fmt: skip
def test_a_file_that_is_no_config(config, content, said):
    with pytest.raises(RequestError, match=said):
        check_deepspeed(config(content), "adamw")


def test_a_missing_file_and_a_missing_launcher(config, tmp_path, monkeypatch):
    with pytest.raises(RequestError, match="can't be read: No such file"):
        check_deepspeed(str(tmp_path / "none.json"), "adamw")
    monkeypatch.delenv("RANK")
    with pytest.raises(RequestError, match="needs a launcher"):
        check_deepspeed(config({}), "adamw")


def test_state_in_the_place_of_parameters_is_no_broken_promise():
    """ZeRO exchanges the parameters of an optimizer for flat pieces before the first step."""
    weight = torch.nn.Parameter(torch.randn(8, 8))
    optimizer = build_optimizer("spam", [("a.weight", weight)], 0.1)
    piece = torch.nn.Parameter(weight.detach().flatten().clone())
    for group in optimizer.param_groups:
        group["params"] = [piece for _ in group["params"]]
    piece.grad = torch.randn(64)
    optimizer.step()
    assert not torch.equal(piece.detach(), weight.detach().flatten())


def test_gathered_copies_of_tied_weights_are_stored_once(checkpoint, tmp_path):
    model = compress.load(checkpoint("qwen3"))
    assert model.all_tied_weights_keys
    copies = {name: value.clone() for name, value in model.state_dict().items()}
    save_whole(model, tmp_path / "plain", None)
    save_whole(model, tmp_path / "gathered", copies)
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("plain", "gathered")]
    assert files[0] == files[1]


def test_gathered_weights_of_an_edited_model_are_those_that_are_stored(checkpoint, tmp_path):
    """`save_pretrained` asks a quantizer for weights, and would store the shard at hand."""
    compress.lowrank_svd(checkpoint("llama"), tmp_path / "low", method="svd", keep=0.6)
    model = compress.load(tmp_path / "low")
    assert model.hf_quantizer is not None
    gathered = {name: value + 1 for name, value in model.state_dict().items()}
    save_whole(model, tmp_path / "out", gathered)
    again = compress.load(tmp_path / "out").state_dict()
    assert all(torch.equal(again[name], value) for name, value in gathered.items())
    save_whole(model, tmp_path / "own", None)
    own = compress.load(tmp_path / "own").state_dict()
    assert all(torch.equal(own[name], value) for name, value in model.state_dict().items())
