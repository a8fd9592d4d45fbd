"""The hub correction: a planted hub leaves the lists it does not belong in, and facts by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from minicliplib.analysis.hubs import hub_bias

DIM = 32
ITEMS = 60


def random_units(count: int, seed: int, dim: int = DIM) -> Tensor:
    return F.normalize(
        torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)), dim=1
    )


def queries_about(items: Tensor, common: Tensor, seed: int) -> Tensor:
    """Return one noisy query for each item, all of which lean to one common direction."""
    noise = random_units(len(items), seed)
    return F.normalize(items + 0.5 * noise + 1.5 * common, dim=1)


def share_found(scores: Tensor) -> float:
    """Return how many queries have their own item on top; query i is about item i."""
    return (scores.argmax(1) == torch.arange(len(scores))).float().mean().item()


# ---- a planted hub -------------------------------------------------------------------------------


def test_a_planted_hub_is_demoted_and_recall_rises():
    items = random_units(ITEMS, seed=0)
    common = random_units(1, seed=1)
    gallery = torch.cat([items, common])  # the last item is close to all queries, and is no answer
    queries = queries_about(items, common, seed=2)
    bank = queries_about(random_units(300, seed=3), common, seed=4)  # queries about other items

    before = queries @ gallery.T
    bias = hub_bias(gallery, bank)
    after = before - bias

    assert bias.argmax() == ITEMS
    assert (before.argmax(1) == ITEMS).float().mean() > 0.8
    assert (after.argmax(1) == ITEMS).float().mean() < 0.05
    assert share_found(before) < 0.2
    assert share_found(after) > 0.9


def test_items_that_are_equally_close_to_the_bank_keep_their_order():
    gallery = torch.eye(DIM)
    bias = hub_bias(gallery, torch.eye(DIM))
    torch.testing.assert_close(bias, bias[:1].expand(DIM))

    scores = random_units(10, seed=0) @ gallery.T
    assert torch.equal((scores - bias).argsort(1), scores.argsort(1))


# ---- what it is ----------------------------------------------------------------------------------


def test_bias_by_hand():
    gallery = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    bank = torch.tensor([[1.0, 0.0], [0.8, 0.6]])
    cosines = torch.tensor([[1.0, 0.8], [0.0, 0.6], [0.6, 0.96]])
    expected = torch.log(torch.exp(5 * cosines).mean(1)) / 5
    torch.testing.assert_close(hub_bias(gallery, bank, scale=5), expected)


def test_from_the_mean_cosine_to_the_highest_one_as_the_scale_grows():
    gallery = random_units(ITEMS, seed=0)
    bank = random_units(200, seed=1)
    cosines = gallery @ bank.T

    small = hub_bias(gallery, bank, scale=0.01)
    middle = hub_bias(gallery, bank)
    large = hub_bias(gallery, bank, scale=100_000.0)
    torch.testing.assert_close(small, cosines.mean(1), rtol=0, atol=1e-3)
    torch.testing.assert_close(large, cosines.amax(1), rtol=0, atol=1e-3)
    assert (small < middle).all()
    assert (middle < large).all()


def test_a_bank_of_one_query_gives_its_cosines():
    gallery = random_units(ITEMS, seed=0)
    query = random_units(1, seed=1)
    for scale in (0.5, 20.0, 200.0):
        torch.testing.assert_close(hub_bias(gallery, query, scale), (gallery @ query.T).squeeze(1))


# ---- what does not matter ------------------------------------------------------------------------


def test_order_and_repetition_of_the_bank_do_not_matter():
    gallery = random_units(ITEMS, seed=0)
    bank = random_units(200, seed=1)
    bias = hub_bias(gallery, bank)
    torch.testing.assert_close(hub_bias(gallery, bank.flip(0)), bias)
    torch.testing.assert_close(hub_bias(gallery, torch.cat([bank, bank])), bias)

    # One query that comes twice is one of two hundred, and hardly counts.
    one_twice = torch.cat([bank, bank[:1]])
    torch.testing.assert_close(hub_bias(gallery, one_twice), bias, rtol=0, atol=0.02)


def test_an_item_has_the_same_bias_in_any_gallery():
    gallery = random_units(2500, seed=0)  # more than are computed at once
    bank = random_units(50, seed=1)
    bias = hub_bias(gallery, bank)
    assert bias.shape == (2500,)
    rows = [0, 1023, 1024, 2499]
    torch.testing.assert_close(hub_bias(gallery[rows], bank), bias[rows])
    assert hub_bias(gallery[:0], bank).shape == (0,)


# ---- wrong input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gallery_shape", "bank_shape"),
    [((4, 3), (5, 2)), ((3,), (5, 3)), ((4, 3), (3,)), ((1, 4, 3), (5, 3))],
)
def test_vectors_of_unequal_widths_are_named(gallery_shape, bank_shape):
    with pytest.raises(ValueError, match="one width") as error:
        hub_bias(torch.ones(gallery_shape), torch.ones(bank_shape))
    assert str(gallery_shape) in str(error.value)
    assert str(bank_shape) in str(error.value)


@pytest.mark.parametrize("scale", [0, -1.0])
def test_a_scale_that_is_not_above_zero_is_named(scale):
    with pytest.raises(ValueError, match=f"above 0, not {scale}"):
        hub_bias(torch.eye(2), torch.eye(2), scale)


def test_an_empty_bank_is_refused():
    with pytest.raises(ValueError, match="bank is empty"):
        hub_bias(torch.eye(3), torch.zeros(0, 3))
