"""Growing regularisation, timings and the pictures of widths."""

import copy

import pytest
import torch

from compress.channels.command import pass_prune
from compress.channels.groups import unit_rows
from compress.channels.growing import grow
from compress.channels.measuring import stride_of, time_networks
from compress.channels.preparing import open_job
from compress.channels.result import PruneResult, widths_chart
from compress.channels.settings import PruneSettings
from compress.checkpoints.plan import Plan
from compress.checkpoints.source import open_source
from compress.progress import silent
from compress.reports.clock import Clock
from tests.channels.families import build, images
from tests.channels.test_command import checkpoint, pictures


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    place = tmp_path_factory.mktemp("grow")
    model = checkpoint(place / "model", "resnet-basic")
    data = pictures(place / "images")
    settings = PruneSettings(
        data=str(data), keep=0.5, method="growreg", batch_size=16, growreg_epochs=6,
        growreg_lr=0.02,
    )  # fmt: skip
    return open_job(open_source(model), settings.resolved(), silent, Clock())


def test_what_will_go_fades_and_the_rest_does_not(job):
    masks = [torch.arange(group.width) % 2 == 0 for group in job.groups]
    model = copy.deepcopy(job.model)
    grow(job, model, masks)
    for group, mask in zip(job.groups, masks, strict=True):
        for member in group.writers:
            before, after = (
                unit_rows(network, member).detach().norm(dim=1) for network in (job.model, model)
            )
            change = after / before
            assert change[~mask].mean() < 0.9 * change[mask].mean(), member.module
    again = copy.deepcopy(job.model)
    grow(job, again, masks)
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_growreg_is_a_method_like_the_others(job, monkeypatch):
    monkeypatch.setattr("compress.channels.measuring._ROUNDS", 2)
    options = {"growreg_epochs": 1, "batch_size": 16, "round_to": 1, "calib_samples": 16}
    result = pass_prune(
        job.source.directory, data=job.settings.data, keep=0.5, method="growreg", **options
    )
    arms = result.as_dict()["channels"]["methods"]
    assert set(arms) == {"growreg", "l1"}
    assert arms["growreg"]["macs"] <= 0.5
    assert "removal" not in arms["growreg"]  # its weights are others than the dense network's


def test_timings_are_of_every_network_and_size():
    models = [build("resnet-basic", dtype=torch.float32) for _ in range(2)]
    models[0].train()
    found = time_networks(models, images(dtype=torch.float32), batches=(1, 3), rounds=3)
    assert [set(latency.timings) for latency in found] == [{1, 3}, {1, 3}]
    assert all(t.median > 0 and t.iqr >= 0 for one in found for t in one.timings.values())
    assert all(latency.peak_bytes > 0 for latency in found)
    assert models[0].training
    assert not models[1].training


@pytest.mark.parametrize(("family", "stride"), [("resnet-basic", 8), ("vit", 8)])
def test_stride_of_a_network(family, stride):
    assert stride_of(build(family), images(32)) == stride


def test_widths_as_bars():
    rows = [
        {"module": "vit.layers.0.mlp.fc1", "kind": "mlp", "width": 48, "kept": 12},
        {"module": "vit.layers.0.attention heads", "kind": "heads", "width": 4, "kept": 4},
    ]
    drawn = widths_chart(Plan("pass-prune", "sha256:0", rows))
    first, second = drawn.splitlines()[1:]
    assert "fc1 12/48" in first
    assert "0.25" in first
    assert "heads 4/4" in second
    assert len(second) > len(first)
    assert PruneResult(Plan("pass-prune", "sha256:0", rows)).render() == drawn
