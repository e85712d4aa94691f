import pytest
import torch

from compress.data.batches import given_batches
from compress.errors import RequestError


def test_batches_are_described():
    batches = [{"input_ids": torch.zeros(2, 5, dtype=torch.int64)}, {"input_ids": torch.ones(1, 7)}]
    kept, report = given_batches(batches)
    assert kept == batches
    assert (report.windows, report.seqlen, report.tokens) == (3, 7, 17)


def test_images_have_no_tokens_but_samples():
    _, report = given_batches([{"pixel_values": torch.zeros(4, 3, 8, 8), "mode": "x"}])
    assert (report.windows, report.tokens) == (4, 4)


def test_the_digest_is_of_every_tensor():
    def digest(**tensors):
        return given_batches([tensors])[1].digest

    one = digest(a=torch.zeros(3), b=torch.ones(3))
    assert one == digest(b=torch.ones(3), a=torch.zeros(3))
    assert one != digest(a=torch.zeros(3), b=torch.zeros(3))
    assert one != digest(a=torch.zeros(3, dtype=torch.float64), b=torch.ones(3))
    assert one != digest(a=torch.zeros(3), c=torch.ones(3))


@pytest.mark.parametrize(("batches", "said"), [([], "empty"), ([{"mode": 1}], "no tensor")])
def test_nothing_to_run_on_is_refused(batches, said):
    with pytest.raises(RequestError, match=said):
        given_batches(batches)
