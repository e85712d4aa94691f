"""Cut networks through torch.export, ONNX and remote code."""

import json

import pytest
import torch

from compress.channels.cutting import cut
from compress.channels.groups import find_groups
from compress.checkpoints.export import export
from compress.checkpoints.onnx_form import exported_program
from compress.checkpoints.save import save
from compress.cli.main import call
from compress.data.images import read_processing
from compress.errors import RequestError
from tests.channels.families import build, images


def cut_network(family):
    model, example = build(family, dtype=torch.float32), images(dtype=torch.float32)
    groups = find_groups(model, example)
    cut(model, groups, [torch.arange(g.width) < max(1, g.width * 2 // 3) for g in groups])
    return model, example


@pytest.mark.parametrize("family", ["resnet-basic", "convnextv2", "beit"])
def test_torch_export_with_a_free_batch(family):
    model, example = cut_network(family)
    program = exported_program(model, example).module()
    for count in (1, 3):
        batch = images(count=count, dtype=torch.float32, seed=count)
        with torch.no_grad():
            assert torch.allclose(program(batch), model(batch).logits, atol=1e-5)
    assert model.config._attn_implementation in (None, "sdpa", "eager")


@pytest.mark.parametrize("family", ["resnet-basic", "vit"])
def test_export_to_onnx_is_compared_with_onnxruntime(family, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    model, _ = cut_network(family)
    save(model, tmp_path / "cut")
    read_processing(None, 32).save(tmp_path / "cut")
    assert call(["export", str(tmp_path / "cut"), "-o", str(tmp_path / "out"), "--to", "onnx"]) == 0
    receipt = json.loads((tmp_path / "out" / "receipt.json").read_text())
    assert receipt["after"]["bytes"] > 0
    assert any("onnxruntime's logits differ by" in note for note in receipt["notes"])
    assert (tmp_path / "out" / "preprocessor_config.json").is_file()
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"))
    batch = images(count=4, dtype=torch.float32, seed=5)
    (found,) = session.run(None, {"pixel_values": batch.numpy()})
    with torch.no_grad():
        assert torch.allclose(torch.from_numpy(found), model(batch).logits, atol=1e-4)


def test_a_text_model_is_not_written_as_onnx(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=8)).save_pretrained(
        tmp_path / "gpt2"
    )
    with pytest.raises(RequestError, match="is no image classifier"):
        export(tmp_path / "gpt2", tmp_path / "out", "onnx")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("family", ["regnet-y", "convnextv2", "beit"])
def test_remote_code_opens_a_cut_network(family, tmp_path):
    from transformers import AutoModelForImageClassification

    model, example = cut_network(family)
    save(model, tmp_path / "cut")
    export(tmp_path / "cut", tmp_path / "out", "remote-code")
    again = AutoModelForImageClassification.from_pretrained(
        tmp_path / "out", trust_remote_code=True
    )
    with torch.no_grad():
        assert torch.allclose(again(example).logits, model(example).logits, atol=1e-5)
