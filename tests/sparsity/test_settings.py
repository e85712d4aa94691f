"""What `alpha-prune` refuses before it reads anything."""

import pytest

from compress.errors import RequestError
from compress.sparsity.patterns import parse_pattern
from compress.sparsity.settings import AlphaPruneSettings

METRICS = ("alpha_peak", "alpha_mid", "stable_rank")


def check(**given):
    AlphaPruneSettings(**given).check(METRICS)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"sparsity": 1.0}, ["`--sparsity 1` is outside [0, 1)"]),
        ({"sparsity": -0.1}, ["outside [0, 1)"]),
        ({"sparsity": float("nan")}, ["outside [0, 1)"]),
        ({"method": "wandaa"}, ["`--method wandaa` isn't a method", "did you mean `wanda`?"]),
        ({"refit": "exakt"}, ["`--refit exakt` isn't a refit", "did you mean `exact`?"]),
        ({"metric": "alpha_peek"}, ["isn't a metric", "did you mean `alpha_peak`?"]),
        ({"allocation": "beta"}, ["isn't an allocation", "alpha, uniform, owl"]),
        ({"epsilon": 1.0}, ["`--epsilon 1`"]),
        ({"min_sparsity": 0.8, "max_sparsity": 0.5}, ["0 <= min <= max <= 1"]),
        ({"samples": 0}, ["`--samples 0`"]),
        ({"damp": 0.0}, ["`--damp 0`"]),
        ({"pattern": "4:2"}, ["isn't N:M", "2:4"]),
        ({"pattern": "2-4"}, ["isn't N:M"]),
        ({"pattern": "2:4", "sparsity": 0.6}, ["removes 0.5", "leave `--sparsity` out"]),
        ({"pattern": "2:4", "allocation": "alpha"}, ["`--allocation alpha` can't act"]),
        ({"pattern": "2:4", "max_sparsity": 0.4}, ["removes 0.5 of every matrix", "0.4"]),
        ({"pattern": "1:4", "min_sparsity": 0.8}, ["removes 0.75 of every matrix"]),
        ({"pattern": "2:7", "method": "sparsegpt"}, ["isn't a multiple of 7"]),
        ({"pattern": "mixed:7", "method": "sparsegpt"}, ["isn't a multiple of 7"]),
        ({"pattern": "mixed:1"}, ["at least 2 is needed"]),
        ({"channel_permutation": True}, ["has no `--pattern`", "add `--pattern 2:4`"]),
        (
            {"channel_permutation": True, "pattern": "2:4", "propagate": "dense"},
            ["`--channel-permutation` runs blocks again", "use `--propagate pruned`"],
        ),
        ({"refit": "block", "propagate": "dense"}, ["`--refit block` runs blocks again"]),
        ({"refit_steps": 0}, ["`--refit-steps 0` is less than 1"]),
        ({"refit_lr": -1.0}, ["`--refit-lr -1` isn't positive"]),
    ],
)
def test_a_wrong_setting_is_named(given, words):
    with pytest.raises(RequestError) as caught:
        check(**given)
    text = f"{caught.value.message} {caught.value.hint}"
    for word in words:
        assert word in text


def test_all_faults_are_told_at_once():
    with pytest.raises(RequestError) as caught:
        check(sparsity=2, method="x", epsilon=5)
    assert caught.value.message.count(";") == 2


@pytest.mark.parametrize(
    "given",
    [{}, {"sparsity": 0.0}, {"pattern": "2:4"}, {"pattern": "2:4", "sparsity": 0.5}],
    ids=str,
)
def test_what_can_be_meant_passes(given):
    check(**given)


def test_a_pattern_keeps_n_of_m():
    assert parse_pattern("1:4") == (1, 4)
    settings = AlphaPruneSettings(pattern="1:4")
    assert settings.share == 0.75
    assert settings.rule == "uniform"
