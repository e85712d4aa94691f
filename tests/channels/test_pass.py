"""PASS end to end on digits: it finds better masks than none, resumes to the bit, keeps rules."""

import copy
from dataclasses import replace

import image_sets
import pytest
import torch
from teams import in_ranks
from transformers import TrainerCallback

from compress.channels import hypernet, searching
from compress.channels.budget import bounds, keep_for_budget, kept
from compress.channels.costs import measure_costs
from compress.channels.cutting import cut
from compress.channels.groups import find_groups
from compress.channels.hypernet import unit_statistics
from compress.channels.presets import build_image_model, image_preset
from compress.channels.repair import reestimate
from compress.channels.searching import SearchSettings, search
from compress.channels.tuning import Tuner, TuneSettings, distillation, tune
from compress.data.images import Augmentation, load_images, read_processing
from compress.errors import RequestError
from compress.evaluation.accuracy import accuracy
from compress.training import looping

STILL = Augmentation(flip=False, crop=1)
QUICK = SearchSettings(epochs=4, batch_size=50, lr=1e-2, hidden=16, save_every=6)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A trained dense network, its groups, its costs and its data."""
    place = image_sets.digit_splits(tmp_path_factory.mktemp("pass") / "digits", 400, 100, 300)
    model = build_image_model("resnet-8-slim", tuple(f"digit{n}" for n in range(10)), 0)
    data = load_images(str(place), read_processing(None, 8), model.config)
    settings = TuneSettings(epochs=10, lr=0.1, batch_size=50, warmup=0.1)
    tune(model, data.train, settings, place / "dense", augmentation=STILL)
    example = next(data.train.batches(2))["pixel_values"]
    groups = find_groups(model, example)
    costs = measure_costs(model, example, groups)
    return model, groups, costs, data


def _search(work, place, settings=QUICK, share=0.4, **options):
    model, groups, costs, data = work
    target = share * float(costs.macs_of(costs.widths))
    return search(
        model, groups, costs.macs_of, target, bounds(groups), data, settings, place,
        augmentation=STILL, **options,
    )  # fmt: skip


def _l1(work):
    model, groups, _, _ = work
    return [unit_statistics(model, group)[:, 0] for group in groups]


class Killed(Exception):
    pass


class Kill(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise Killed


def _killing(monkeypatch, step):
    real = looping.loop

    def loop(*args, callbacks=(), **options):
        return real(*args, callbacks=(*callbacks, Kill(step)), **options)

    for module in ("searching", "tuning"):
        monkeypatch.setattr(f"compress.channels.{module}.loop", loop)


def test_one_shot_masks_beat_uniform_l1_and_the_network_comes_back(work, tmp_path):
    model, groups, costs, data = work
    before = copy.deepcopy(model.state_dict())
    settings = SearchSettings(epochs=12, batch_size=50, lr=3e-2)
    found = _search(work, tmp_path, settings, share=0.5)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())
    whole = float(costs.macs_of(costs.widths))
    plain = keep_for_budget(
        _l1(work), groups, costs.macs_of, 0.5 * whole, limits=bounds(groups), scope="uniform"
    )
    scores = {}
    for name, keep, prompt in (("pass", found.keep, found.prompt), ("l1", plain, None)):
        assert float(costs.macs_of(kept(keep))) <= 0.5 * whole
        small = copy.deepcopy(model)
        cut(small, groups, keep)
        scores[name] = accuracy(small, data.test, prompt=prompt).top1
    assert accuracy(model, data.test).top1 > 0.85
    assert scores["pass"] > scores["l1"] + 0.1
    best = max(top1 for _, top1, _ in found.history)
    first = min(epoch for epoch, top1, _ in found.history if top1 == best)
    assert found.epoch == first  # chosen on validation


@pytest.fixture(scope="module")
def whole(work, tmp_path_factory):
    """What an uninterrupted search finds."""
    return _search(work, tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("step", [4, 17])
def test_a_killed_search_resumes_to_the_same_bits(work, whole, tmp_path, monkeypatch, step):
    with monkeypatch.context() as patch:
        _killing(patch, step)
        with pytest.raises(Killed):
            _search(work, tmp_path / "b")
    again = _search(work, tmp_path / "b")
    assert again.history == whole.history
    assert again.losses == whole.losses
    for ours, theirs in zip((*again.keep, *again.scores), (*whole.keep, *whole.scores)):
        assert torch.equal(ours, theirs)
    assert torch.equal(again.prompt.values, whole.prompt.values)


def test_seeds_decide(work, tmp_path):
    short = SearchSettings(epochs=1, batch_size=100, hidden=8)
    one, same, other = (
        _search(work, tmp_path / str(n), short, seed=seed) for n, seed in enumerate((0, 0, 1))
    )
    assert all(torch.equal(a, b) for a, b in zip(one.scores, same.scores))
    assert not all(torch.equal(a, b) for a, b in zip(one.scores, other.scores))


def test_a_criterion_to_start_from_is_never_left_for_worse(work, tmp_path):
    _, groups, costs, _ = work
    base = _l1(work)
    short = SearchSettings(epochs=1, batch_size=100, hidden=8, lr=1e-4)
    found = _search(work, tmp_path, short, base=base)
    assert found.history[0][0] == 0
    if found.epoch == 0:
        target = 0.4 * float(costs.macs_of(costs.widths))
        wanted = keep_for_budget(base, groups, costs.macs_of, target, limits=bounds(groups))
        assert all(torch.equal(a, b) for a, b in zip(found.keep, wanted))


@pytest.mark.parametrize(
    "option", [{"prompt": "none"}, {"recurrent": False}, {"stats": "none"},
               {"mapper": "shared"}, {"prompt": "expand"}, {"ste": "sigmoid"},
               {"stats": "quantiles"}, {"norms": "batch"}, {"precision": "bf16"}],
)  # fmt: skip
def test_every_form_runs(work, tmp_path, option):
    short = SearchSettings(epochs=0.5, batch_size=100, hidden=8, **option)
    found = _search(work, tmp_path, short)
    assert (found.prompt is None) == (option.get("prompt") == "none")
    assert found.steps == 2


def test_a_search_by_the_batchs_statistics_leaves_no_trace(work, tmp_path):
    model, _, _, data = work
    before = copy.deepcopy(model.state_dict())
    found = _search(work, tmp_path, replace(QUICK, norms="batch"))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(module.training for module in model.modules())
    small = copy.deepcopy(model)
    cut(small, work[1], found.keep)
    images = found.prompt(next(data.train.batches(400, normalised=False))["images"])
    reestimate(small, [{"pixel_values": data.processing.normalise(images)}])
    chosen = accuracy(small, data.validation, prompt=found.prompt).top1
    assert chosen == pytest.approx({e: t for e, t, _ in found.history}[found.epoch], abs=0.05)


def test_batch_norms_stand_still_while_masks_are_searched(work, tmp_path, monkeypatch):
    model = work[0]
    seen = []
    real = searching.Searcher.forward

    def forward(self, *args, **kwargs):
        seen.append(any(m.training for m in model.modules()))
        return real(self, *args, **kwargs)

    monkeypatch.setattr(searching.Searcher, "forward", forward)
    _search(work, tmp_path, SearchSettings(epochs=0.5, batch_size=100, hidden=8))
    assert seen == [False, False]


def test_two_processes_find_what_one_finds(work, tmp_path):
    from accelerate.state import AcceleratorState

    from compress.numerics.ranks import joined

    settings = SearchSettings(epochs=1, batch_size=100, hidden=8, micro_batch=50)
    alone = _search(work, tmp_path / "one", settings)

    def run():
        AcceleratorState._reset_state(reset_partial_state=True)  # that of a lone process
        with joined("cpu") as team:
            found = _search(work, tmp_path / "two", settings, team=team)
            if team.first:
                torch.save([found.keep, found.scores, found.losses], tmp_path / "found.pt")

    ended = in_ranks(2, run, tmp_path / "said")
    assert [e.code for e in ended] == [0, 0], ended
    keep, scores, losses = torch.load(tmp_path / "found.pt", weights_only=True)
    assert losses == alone.losses
    for ours, theirs in zip((*keep, *scores), (*alone.keep, *alone.scores)):
        assert torch.equal(ours, theirs)


def _tune(work, place, settings, **options):
    model, _, _, data = work
    own = copy.deepcopy(model)
    return own, tune(own, data.train, settings, place, augmentation=STILL, **options)


@pytest.fixture
def prompt():
    made = hypernet.make_prompt("pad", 8, 1)
    with torch.no_grad():
        made.values.fill_(0.2)
    return made.saved(needed=True)


def test_a_killed_tuning_resumes_to_the_same_bits(work, tmp_path, monkeypatch, prompt):
    settings = TuneSettings(
        epochs=2, batch_size=50, lr=0.05, distill=0.5, prompt_share=0.5, save_every=3
    )
    options = {"prompt": prompt, "teacher": copy.deepcopy(work[0])}
    whole, done = _tune(work, tmp_path / "a", settings, **options)
    for step in (5, 13):
        with monkeypatch.context() as patch:
            _killing(patch, step)
            with pytest.raises(Killed):
                _tune(work, tmp_path / f"b{step}", settings, **options)
        again, resumed = _tune(work, tmp_path / f"b{step}", settings, **options)
        assert resumed.looped.resumed == step - step % 3
        theirs = again.state_dict()
        assert all(torch.equal(v, theirs[k]) for k, v in whole.state_dict().items())
        assert torch.equal(resumed.prompt.values, done.prompt.values)


@pytest.mark.parametrize(("share", "needed"), [(0.0, None), (0.5, False), (1.0, True)])
def test_the_prompt_goes_when_its_share_is_over(work, tmp_path, prompt, share, needed):
    settings = TuneSettings(epochs=1, batch_size=100, prompt_share=share)
    _, done = _tune(work, tmp_path, settings, prompt=prompt)
    if needed is None:
        assert done.prompt is None
    else:
        assert done.prompt.needed is needed
        assert not torch.equal(done.prompt.values, prompt.values)  # it was trained


def test_the_prompt_stands_still_afterwards(work, tmp_path, prompt):
    long = TuneSettings(epochs=1, batch_size=100, prompt_share=0.5, lr=0.05)
    seen = []

    class Watch(Tuner):
        def forward(self, *args, **kwargs):
            seen.append((self.prompted, self.prompt.values.detach().clone()))
            return super().forward(*args, **kwargs)

    import compress.channels.tuning as tuning

    real, tuning.Tuner = tuning.Tuner, Watch
    try:
        _, done = _tune(work, tmp_path, long, prompt=prompt)
    finally:
        tuning.Tuner = real
    assert [prompted for prompted, _ in seen] == [True, True, False, False]
    assert torch.equal(seen[2][1], seen[3][1])
    assert torch.equal(done.prompt.values, seen[3][1] * hypernet.make_prompt("pad", 8, 1).mask)


def test_distillation_is_the_divergence():
    draws = torch.Generator().manual_seed(0)
    own, wanted = (torch.randn(4, 7, generator=draws, dtype=torch.float64) for _ in range(2))
    for t in (1.0, 4.0):
        p, q = (torch.softmax(x / t, 1) for x in (wanted, own))
        by_hand = t * t * (p * (p.log() - q.log())).sum(1).mean()
        assert float(distillation(own, wanted, t)) == pytest.approx(float(by_hand), rel=1e-9)
    assert float(distillation(own, own, 2.0)) == pytest.approx(0, abs=1e-12)


def test_presets_save_and_load_plainly(tmp_path):
    from transformers import AutoModelForImageClassification

    model = build_image_model("resnet-20", tuple("abc"), 3)
    images = torch.rand(1, 3, 32, 32)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(270_000, rel=0.02)
    hidden = model.resnet(images).last_hidden_state
    assert hidden.shape == (1, 64, 8, 8)  # 32 / 4: the stem keeps every pixel
    model.save_pretrained(tmp_path)
    again = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert torch.equal(again(images).logits, model(images).logits)
    assert again.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert torch.equal(
        build_image_model("resnet-20", tuple("abc"), 3).classifier[1].weight,
        model.classifier[1].weight,
    )
    with pytest.raises(RequestError, match="no preset `resnet-21`"):
        image_preset("resnet-21")


def test_a_cut_preset_keeps_its_stem(tmp_path):
    from transformers import AutoModelForImageClassification

    model = build_image_model("resnet-8-slim", tuple("ab"), 0)
    images = torch.rand(2, 3, 16, 16)
    groups = find_groups(model, images)
    keep = [torch.arange(group.width) % 2 == 0 for group in groups]
    cut(model, groups, keep)
    model.save_pretrained(tmp_path)
    again = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert again.resnet.embedder.embedder.convolution.weight.shape == (4, 3, 3, 3)
    assert torch.equal(again(images).logits, model(images).logits)
