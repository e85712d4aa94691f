"""Masks: how many, where, drawn by whom; the mask token."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import tiny_models
from compress.errors import RequestError
from compress.training import MaskedNextTokenCollator
from compress.training.data import Positions
from compress.training.objectives.mask_token import choose_mask_token, give_embedding
from compress.training.objectives.masked import choose, how_many


@pytest.fixture
def tokenizer():
    found = tiny_models.tiny_tokenizer()
    found.add_special_tokens({"mask_token": "~"})
    return found


def rows(count, length, seed=0):
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(10, 97, (count, length), generator=draw)
    return [{"input_ids": own, "row": i, "epoch": 0} for i, own in enumerate(ids)]


@pytest.mark.parametrize("length", [2, 6, 7, 20, 64, 100])
@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.15, 0.29, 0.9])
def test_every_row_has_exactly_k_masks_and_its_own_labels(ratio, length, tokenizer):
    examples = rows(30, length)
    batch = MaskedNextTokenCollator(tokenizer, ratio)(examples)
    masked = batch["input_ids"] == tokenizer.mask_token_id
    k = 0 if ratio == 0 else max(1, math.floor(round(ratio * length, 9)))
    assert masked.sum(1).tolist() == [min(k, length - 1)] * 30
    assert not masked[:, -1].any()  # it has nothing to predict inside the row
    original = torch.stack([example["input_ids"] for example in examples])
    assert torch.equal(batch["labels"], original)
    assert torch.equal(batch["input_ids"][~masked], original[~masked])
    assert "attention_mask" not in batch


def test_lists_without_an_epoch_will_do(tokenizer):
    plain = [{"input_ids": list(range(10, 30)), "row": 3}]
    batch = MaskedNextTokenCollator(tokenizer)(plain)
    again = MaskedNextTokenCollator(tokenizer)([{**plain[0], "epoch": 0}])
    assert torch.equal(batch["input_ids"], again["input_ids"])
    assert (batch["input_ids"] == tokenizer.mask_token_id).sum() == 3


def test_special_tokens_stay_unless_told_and_are_not_counted(tokenizer):
    ids = torch.arange(10, 50)
    ids[::2] = tokenizer.eos_token_id
    example = [{"input_ids": ids, "row": 0}]
    masked = MaskedNextTokenCollator(tokenizer, 0.5)(example)["input_ids"] == 98
    assert tokenizer.mask_token_id == 98
    assert masked.sum() == 10  # half of the 20 ordinary ones
    assert not masked[0, ::2].any()
    masked = MaskedNextTokenCollator(tokenizer, 0.5, mask_special=True)(example)["input_ids"] == 98
    assert masked.sum() == 20
    assert masked[0, ::2].any()


def test_a_mask_depends_on_seed_epoch_and_row_alone(tokenizer):
    examples = rows(8, 40)
    collate = MaskedNextTokenCollator(tokenizer, seed=5)
    whole = collate(examples)["input_ids"]
    backwards = collate(examples[::-1])["input_ids"].flip(0)
    alone = torch.cat([collate([example])["input_ids"] for example in examples])
    assert torch.equal(whole, backwards)
    assert torch.equal(whole, alone)
    torch.manual_seed(1)
    assert torch.equal(whole, MaskedNextTokenCollator(tokenizer, seed=5)(examples)["input_ids"])
    mask = tokenizer.mask_token_id
    for change in ({"epoch": 1}, {"row": 9}):
        other = collate([{**examples[0], **change}])["input_ids"][0]
        assert not torch.equal(other == mask, whole[0] == mask)
    seeded = MaskedNextTokenCollator(tokenizer, seed=6)(examples)["input_ids"]
    assert not torch.equal(seeded == mask, whole == mask)


def test_positions_are_chosen_uniformly_and_independently():
    eligible = np.ones(20, bool)
    eligible[7] = False
    n, k = 4000, 5
    counts, pairs = np.zeros(20), Counter()
    for row in range(n):
        chosen = choose(eligible, k, 0, row % 3, row)
        assert len(set(chosen.tolist())) == k
        counts[chosen] += 1
        pairs[bool(0 in chosen), bool(1 in chosen)] += 1
    assert counts[7] == 0
    share = k / 19
    sd = math.sqrt(n * share * (1 - share))
    assert np.abs(counts[eligible] - n * share).max() < 4.5 * sd
    both = n * k * (k - 1) / (19 * 18)
    assert abs(pairs[True, True] - both) < 4.5 * math.sqrt(both)


def test_fewer_eligible_than_k_are_all_taken():
    assert choose(np.array([True, False, True]), 5, 0, 0, 0).tolist() == [0, 2]
    assert choose(np.array([False, False]), 1, 0, 0, 0).tolist() == []
    assert (how_many(0.0, 9), how_many(0.1, 0), how_many(0.1, 3), how_many(0.29, 100)) == (
        0, 0, 1, 29,
    )  # fmt: skip


def test_rows_with_a_token_ahead_keep_all_labels(tokenizer):
    example = {**rows(1, 20)[0], "next": 77}
    batch = MaskedNextTokenCollator(tokenizer)([example])
    expected = [*example["input_ids"].tolist()[1:], 77]
    assert batch["shift_labels"][0].tolist() == expected


def test_annealing_ends_at_zero(tokenizer):
    collate = MaskedNextTokenCollator(tokenizer, 0.5, anneal=(100, 200))
    assert [collate.ratio_at(p) for p in (0, 100, 150, 200, 300)] == [0.5, 0.5, 0.25, 0, 0]
    masks = [
        (collate([{**rows(1, 40)[0], "position": p}])["input_ids"] == 98).sum().item()
        for p in (0, 150, 200)
    ]
    assert masks == [20, 10, 0]


def test_a_dataset_gives_what_the_collator_needs(tokenizer):
    class Rows:
        def __len__(self):
            return 3

        def __getitem__(self, row):
            return {"input_ids": torch.arange(10, 30) + row}

    run = Positions(Rows(), 6, 0)
    batch = MaskedNextTokenCollator(tokenizer)([run[p] for p in range(6)])
    assert batch["input_ids"].shape == (6, 20)


@pytest.mark.parametrize("ratio", [-0.1, 1.0, 1.5, float("nan")])
def test_a_ratio_outside_is_refused(ratio, tokenizer):
    with pytest.raises(ValueError, match="mask ratio"):
        MaskedNextTokenCollator(tokenizer, ratio)


def test_a_tokenizer_without_a_mask_token_is_refused():
    with pytest.raises(ValueError, match="no mask token"):
        MaskedNextTokenCollator(tiny_models.tiny_tokenizer())


# The mask token


def test_the_own_mask_token_is_taken(tokenizer):
    assert choose_mask_token(tokenizer) == ("~", 98, "own")


def test_an_unused_token_is_taken_before_a_new_one():
    tokenizer = tiny_models.tiny_tokenizer()
    tokenizer.add_tokens(["<|reserved_special_token_1|>", "<unused0>"])
    found = choose_mask_token(tokenizer)
    assert found == ("<|reserved_special_token_1|>", len(tokenizer) - 2, "unused")
    assert tokenizer.mask_token_id == found.id


def test_else_a_new_one_is_added():
    tokenizer = tiny_models.tiny_tokenizer()
    size = len(tokenizer)
    assert choose_mask_token(tokenizer) == ("<mask>", size, "new")
    assert len(tokenizer) == size + 1


def test_a_named_one_is_taken_or_added():
    tokenizer = tiny_models.tiny_tokenizer()
    assert choose_mask_token(tokenizer, "~") == ("~", 98, "unused")
    assert choose_mask_token(tiny_models.tiny_tokenizer(), "[GAP]").origin == "new"


@pytest.mark.parametrize("token", ["</s>", "<s>", "<unk>", "<pad>"])
def test_a_token_with_another_role_is_refused(token):
    with pytest.raises(RequestError, match="is the tokenizer's"):
        choose_mask_token(tiny_models.tiny_tokenizer(), token)


def test_a_tokenizer_that_takes_none_is_refused():
    class Closed:
        mask_token = unk_token_id = None
        get_vocab = lambda self: {"a": 0}

        def add_special_tokens(self, tokens):
            raise NotImplementedError("fixed vocabulary")

    with pytest.raises(RequestError, match="no mask token is possible"):
        choose_mask_token(Closed())


@pytest.mark.parametrize("tied", [True, False])
def test_a_new_row_is_the_mean_and_the_others_stay(tied):
    config = GPT2Config(
        vocab_size=100, n_embd=8, n_layer=1, n_head=2, n_positions=16, tie_word_embeddings=tied
    )
    model = GPT2LMHeadModel(config)
    before = model.get_input_embeddings().weight.detach().clone()
    head = model.get_output_embeddings().weight.detach().clone()
    tokenizer = tiny_models.tiny_tokenizer()
    mask = choose_mask_token(tokenizer)
    give_embedding(model, mask._replace(id=100), 101)
    for weight, old in (
        (model.get_input_embeddings().weight, before),
        (model.get_output_embeddings().weight, head),
    ):
        assert weight.shape == (128, 8)  # a multiple of 64
        assert torch.equal(weight[:100], old)
        assert torch.allclose(weight[100], old.mean(0))
    assert model.config.vocab_size == 128


def test_room_that_is_there_is_used_without_resizing():
    model = GPT2LMHeadModel(GPT2Config(vocab_size=128, n_embd=8, n_layer=1, n_head=2))
    mean = model.get_input_embeddings().weight.mean(0).detach().clone()
    mask = choose_mask_token(tiny_models.tiny_tokenizer())
    give_embedding(model, mask, mask.id + 1)
    assert model.get_input_embeddings().weight.shape[0] == 128
    assert torch.allclose(model.get_input_embeddings().weight[mask.id], mean)
