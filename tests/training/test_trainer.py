"""The Trainer: steps that aren't finite, accumulation, clipping, what it refuses."""

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from compress.errors import RequestError, RunError
from compress.training import trainer as module
from compress.training.checkpointing import saved_checkpoints
from compress.training.command import train_spam
from compress.training.display import read_metrics
from compress.training.trainer import batch_digest, check_sharded


def losses(place):
    return [e["loss"] for e in read_metrics(place / "metrics.jsonl") if "loss" in e]


def weights(place):
    return load_file(place / "model.safetensors")


def poison(monkeypatch, at, what):
    """Make the loss, or one gradient entry, of 1-based step `at` infinite."""
    if what == "loss":
        real = module.Trainer.compute_loss

        def compute(self, *args, **kwargs):
            loss = real(self, *args, **kwargs)
            return loss * float("inf") if self.state.global_step + 1 == at else loss

        monkeypatch.setattr(module.Trainer, "compute_loss", compute)
    else:
        real = module.Trainer._get_grad_norm

        def norm(self, model, grad_norm=None):
            if self.state.global_step + 1 == at and grad_norm is None:
                next(model.parameters()).grad[0, 0] = float("inf")
            return real(self, model, grad_norm)

        monkeypatch.setattr(module.Trainer, "_get_grad_norm", norm)


@pytest.mark.parametrize("clip", [1.0, 0.0])
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_what_is_not_finite_ends_the_run_before_it_does_harm(
    what, clip, config, options, tmp_path, monkeypatch
):
    place = tmp_path / "out"
    with monkeypatch.context() as patch:
        poison(patch, 5, what)
        with pytest.raises(RunError) as caught:
            train_spam(config, place, max_grad_norm=clip, **options)
    assert f"the {what} isn't finite in step 5 (positions 16 to 19, batch sha256:" in str(
        caught.value
    )
    assert "from step 4" in caught.value.hint
    assert "--resume --skip-nonfinite 1" in caught.value.hint
    assert not place.exists()
    (last,) = saved_checkpoints(tmp_path / "out.partial" / "checkpoints")[-1:]
    assert last.name == "checkpoint-4"
    assert all(torch.isfinite(t).all() for t in weights(last).values())


def test_a_step_can_be_left_out(config, options, tmp_path, monkeypatch):
    place = tmp_path / "out"
    poison(monkeypatch, 5, "loss")
    with pytest.raises(RunError):
        train_spam(config, place, **options)
    done = train_spam(config, place, resume=True, skip_nonfinite=1, **options)
    assert done.receipt.extra["training"]["skipped"] == 1
    assert all(torch.isfinite(t).all() for t in weights(place).values())
    logged = [e["step"] for e in read_metrics(place / "metrics.jsonl")]
    assert logged == [1, 2, 3, 4, 6]
    again = train_spam(config, tmp_path / "again", skip_nonfinite=1, **options)
    assert done.losses == again.losses
    assert weights(place).keys() == weights(tmp_path / "again").keys()
    assert all(
        torch.equal(a, b)
        for a, b in zip(weights(place).values(), weights(tmp_path / "again").values())
    )


def test_a_step_left_out_changes_no_weight(config, options, tmp_path, monkeypatch):
    poison(monkeypatch, 6, "gradient")  # the last one
    five = train_spam(config, tmp_path / "six", skip_nonfinite=1, keep=9, **options)
    assert five.receipt.extra["training"]["skipped"] == 1
    with monkeypatch.context() as patch:
        patch.setattr(module.Trainer, "_take_skip", lambda self: self.state.global_step == 5)
        train_spam(config, tmp_path / "by-hand", skip_nonfinite=1, **options)
    one, two = weights(tmp_path / "six"), weights(tmp_path / "by-hand")
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_the_second_bad_step_ends_a_run_that_may_skip_one(config, options, tmp_path, monkeypatch):
    real = module.Trainer.compute_loss
    monkeypatch.setattr(
        module.Trainer,
        "compute_loss",
        lambda self, *a, **k: real(self, *a, **k) * (1 if self.state.global_step < 2 else 1e39),
    )
    with pytest.raises(RunError, match="in step 4"):
        train_spam(config, tmp_path / "out", skip_nonfinite=1, **options)


def test_clipping_is_of_the_whole_gradient(config, options, tmp_path, monkeypatch):
    seen = []
    real = module.Trainer._clip_grad_norm

    def clip(self, model):
        norm = real(self, model)
        after = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
        seen.append((float(norm), float(after)))
        return norm

    monkeypatch.setattr(module.Trainer, "_clip_grad_norm", clip)
    train_spam(config, tmp_path / "out", max_grad_norm=0.1, **options)
    assert len(seen) == 6
    for before, after in seen:
        assert before > 0.1
        assert after == pytest.approx(0.1, rel=1e-4)
    logged = [e["grad_norm"] for e in read_metrics(tmp_path / "out" / "metrics.jsonl")]
    assert logged == pytest.approx([before for before, _ in seen])


def test_accumulation_changes_no_loss(config, options, tmp_path):
    places = [tmp_path / str(micro) for micro in (1, 2, 4)]
    for place, micro in zip(places, (1, 2, 4)):
        train_spam(config, place, **{**options, "micro_batch": micro})
    for place in places[1:]:
        assert losses(place) == pytest.approx(losses(places[0]), abs=1e-5)


def test_accumulation_of_unequal_samples_changes_no_loss(config, questions, options, tmp_path):
    """Means of micro-batches would weigh short answers more: only sums over all labels don't."""
    places = [tmp_path / str(micro) for micro in (1, 4)]
    own = {"data": str(questions), "sft": "q:a", "seqlen": 48}
    for place, micro in zip(places, (1, 4)):
        train_spam(config, place, **{**options, **own, "micro_batch": micro})
    assert losses(places[1]) == pytest.approx(losses(places[0]), abs=1e-5)


def test_workers_change_nothing(config, options, tmp_path):
    places = [tmp_path / "none", tmp_path / "two"]
    for place, workers in zip(places, (0, 2)):
        train_spam(config, place, objective="meap", workers=workers, **options)
    assert losses(places[0]) == losses(places[1])
    one, two = weights(places[0]), weights(places[1])
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_sharding_that_did_not_happen_is_refused():
    args = SimpleNamespace(fsdp=True, device=torch.device("cpu"))
    with pytest.raises(RequestError, match="unsharded model on cpu"):
        check_sharded(args, torch.nn.Linear(2, 2))
    check_sharded(SimpleNamespace(fsdp=False), torch.nn.Linear(2, 2))


def test_the_digest_is_of_tokens_and_labels():
    batch = {"input_ids": torch.arange(6).view(2, 3), "labels": torch.arange(6).view(2, 3)}
    other = {**batch, "labels": batch["labels"].clone()}
    assert batch_digest([batch]) == batch_digest([other])
    other["labels"][0, 0] = 9
    assert batch_digest([batch]) != batch_digest([other])
    assert batch_digest([batch]) != batch_digest([batch, batch])
