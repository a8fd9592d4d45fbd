"""Losses against loops written out by hand, and under two processes."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import distributed, multiprocessing

import minicliplib as mc
from minicliplib.loss import LOSSES

SCALE = torch.tensor(10.0)


def unit(n: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(n, 8, generator=torch.Generator().manual_seed(seed)), dim=1)


@pytest.mark.parametrize("name", ["infonce", "multi_positive"])
@pytest.mark.parametrize("batch", [2, 7, 64])
def test_collapsed_vectors_cost_exactly_ln_batch(name, batch):
    same = F.normalize(torch.ones(batch, 8), dim=1)
    assert mc.contrastive_loss(name, same, same, SCALE).item() == pytest.approx(
        math.log(batch), abs=1e-6
    )


@pytest.mark.parametrize("name", LOSSES)
def test_a_perfect_match_costs_nearly_nothing(name):
    eye = torch.eye(8)
    assert mc.contrastive_loss(name, eye, eye, torch.tensor(100.0)).item() < (
        0.01 if name != "sigmoid" else 3
    )
    wrong = mc.contrastive_loss(name, eye, eye.roll(1, 0), torch.tensor(100.0)).item()
    assert wrong == pytest.approx(2.4) if name == "max_margin" else wrong > 10


@pytest.mark.parametrize("name", ["infonce", "sigmoid", "multi_positive"])
def test_order_and_direction_do_not_matter(name):
    image, text, order = unit(6), unit(6, 1), torch.randperm(6)
    loss = mc.contrastive_loss(name, image, text, SCALE)
    assert torch.allclose(mc.contrastive_loss(name, image[order], text[order], SCALE), loss)
    assert torch.allclose(mc.contrastive_loss(name, text, image, SCALE), loss)


def test_infonce_is_two_classifications():
    image, text, total = unit(4), unit(4, 1), 0.0
    logits = [
        [10 * sum(a * b for a, b in zip(i, t, strict=True)) for t in text.tolist()]
        for i in image.tolist()
    ]
    for k in range(4):
        row = math.log(sum(math.exp(v) for v in logits[k])) - logits[k][k]
        column = math.log(sum(math.exp(r[k]) for r in logits)) - logits[k][k]
        total += (row + column) / 8
    assert mc.contrastive_loss("infonce", image, text, SCALE).item() == pytest.approx(
        total, rel=1e-5
    )


def test_multi_positive_by_a_loop():
    image, text, image_of_caption = unit(3), unit(5, 1), torch.tensor([0, 0, 1, 2, 2])
    logits, rows, columns = (10 * image @ text.T).double(), [], []
    for i in range(3):
        others = sum(logits[i, j].exp() for j in range(5) if image_of_caption[j] != i)
        own = [j for j in range(5) if image_of_caption[j] == i]
        rows.append(sum((others + logits[i, j].exp()).log() - logits[i, j] for j in own) / len(own))
    for j in range(5):
        columns.append(logits[:, j].exp().sum().log() - logits[image_of_caption[j], j])
    expected = (sum(rows) / 3 + sum(columns) / 5) / 2
    assert mc.contrastive_loss(
        "multi_positive", image, text, SCALE, image_of_caption
    ).item() == pytest.approx(expected.item())


def test_captions_of_one_image_are_not_each_others_negatives():
    image, image_of_caption = torch.eye(8)[:2], torch.tensor([0, 0, 1])
    text = unit(3, 1).requires_grad_()
    mc.contrastive_loss("multi_positive", image, text, SCALE, image_of_caption).backward()
    # each caption of image 0 is drawn towards it, none is pushed away for its sister's sake
    assert (text.grad[:2] @ image[0] < 0).all()
    # and bringing one to its image leaves what the other pays from the image's side as it was
    logits = torch.tensor([[1.0, 2.0, 0.5]])
    row = lambda scores: F.softplus(scores[0, 2] - scores[0, 0])
    assert row(logits) == row(logits + torch.tensor([[0, 5.0, 0]]))
    naive = F.cross_entropy(10 * image @ torch.stack([image[0], image[0]]).T, torch.tensor([0, 1]))
    assert naive.item() > math.log(2) - 1e-6  # as negatives, twins cost at least ln 2


def test_sigmoid_by_a_loop():
    image, text = unit(3), unit(3, 1)
    logits, total = (10 * image @ text.T) - math.log(2), 0.0
    for i in range(3):
        for j in range(3):
            sign = 1 if i == j else -1
            total += math.log(1 + math.exp(-sign * logits[i, j].item())) / 3
    assert mc.contrastive_loss("sigmoid", image, text, SCALE).item() == pytest.approx(
        total, rel=1e-5
    )


def test_with_one_caption_each_multi_positive_is_infonce():
    image, text = unit(5), unit(5, 1)
    expected = mc.contrastive_loss("infonce", image, text, SCALE)
    for image_of_caption in (None, torch.arange(5)):
        assert torch.allclose(
            mc.contrastive_loss("multi_positive", image, text, SCALE, image_of_caption), expected
        )


@pytest.mark.parametrize("name", LOSSES)
def test_the_largest_scale_and_equal_vectors_have_finite_gradients(name):
    for image, text in (
        (torch.eye(8), torch.eye(8)),
        (torch.eye(8), torch.eye(8).roll(1, 0)),
        (unit(1).expand(4, 8),) * 2,
    ):
        image, text, scale = (
            t.clone().requires_grad_() for t in (image, text, torch.tensor(100.0))
        )
        mc.contrastive_loss(name, image, text, scale).backward()
        assert all(t.grad.isfinite().all() for t in (image, text, scale))


def test_bad_input_gets_one_clear_error():
    one, three = unit(1), unit(3)
    with pytest.raises(ValueError, match="at least two images"):
        mc.contrastive_loss("infonce", one, one, SCALE)
    with pytest.raises(ValueError, match="at least two images"):  # its gradient would be NaN
        mc.contrastive_loss("multi_positive", unit(2), three, SCALE, torch.tensor([1, 1, 1]))
    with pytest.raises(ValueError, match="3 captions do not match 2 images"):
        mc.contrastive_loss("multi_positive", unit(2), three, SCALE)
    with pytest.raises(ValueError, match="one caption per image"):
        mc.contrastive_loss("infonce", unit(2), three, SCALE, torch.tensor([0, 0, 1]))
    with pytest.raises(ValueError, match="Known: infonce, multi_positive, sigmoid, max_margin"):
        mc.contrastive_loss("triplet", three, three, SCALE)


def test_max_margin_by_a_loop():
    image, text, image_of_caption = unit(4), unit(7, 1), torch.tensor([0, 0, 1, 2, 2, 3, 3])
    sim, total = image @ text.T, 0.0
    for j, i in enumerate(image_of_caption.tolist()):
        other_image = max(sim[k, j] for k in range(4) if k != i)
        other_caption = max(sim[i, k] for k in range(7) if image_of_caption[k] != i)
        total += (
            sum(
                max(0.0, 0.2 + wrong.item() - sim[i, j].item())
                for wrong in (other_image, other_caption)
            )
            / 7
        )
    assert mc.contrastive_loss(
        "max_margin", image, text, SCALE, image_of_caption
    ).item() == pytest.approx(total, rel=1e-5)


def test_soft_targets_by_a_loop():
    image, text, image_of_caption, teacher_text = (
        unit(3),
        unit(5, 1),
        torch.tensor([0, 0, 1, 2, 2]),
        unit(5, 2),
    )
    logits, alike, total = 10 * image @ text.T, teacher_text @ teacher_text.T / 0.1, 0.0
    own = [[j for j in range(5) if image_of_caption[j] == i] for i in range(3)]
    for i in range(3):
        target = torch.stack([alike[own[i], j].mean() for j in range(5)]).softmax(0)
        total -= (target * logits[i].log_softmax(0)).sum() / 6
    for j in range(5):
        target = torch.stack([alike[j, own[i]].mean() for i in range(3)]).softmax(0)
        total -= (target * logits[:, j].log_softmax(0)).sum() / 10
    loss = lambda soft: mc.contrastive_loss(
        "multi_positive", image, text, SCALE, image_of_caption, teacher_text, soft
    )
    assert loss(1.0).item() == pytest.approx(total.item(), rel=1e-5)
    assert loss(0.25).item() == pytest.approx(
        0.75 * loss(0.0).item() + 0.25 * total.item(), rel=1e-5
    )
    assert loss(0.0) == mc.contrastive_loss("multi_positive", image, text, SCALE, image_of_caption)


def gradients(
    name: str, per_image: int, soft: float, rank: int = 0, world: int = 1
) -> list[torch.Tensor]:
    """Loss and gradients of a small model on this process's part of a fixed batch of eight."""
    weight, log_scale = torch.eye(8, requires_grad=True), torch.tensor(2.0, requires_grad=True)
    rows, texts = 8 // world, 8 * per_image // world
    image = F.normalize(unit(8)[rank * rows :][:rows] @ weight, dim=1)
    text = F.normalize(unit(8 * per_image, 1)[rank * texts :][:texts] @ weight.T, dim=1)
    image_of_caption = torch.arange(rows).repeat_interleave(per_image)
    teacher_text = unit(8 * per_image, 2)[rank * texts :][:texts]
    loss = mc.contrastive_loss(
        name, image, text, log_scale.exp(), image_of_caption, teacher_text, soft
    )
    loss.backward()
    return [loss.detach(), weight.grad, log_scale.grad]


CASES = [
    ("infonce", 1, 0.0),
    ("multi_positive", 2, 0.5),
    ("sigmoid", 2, 0.0),
    ("max_margin", 2, 0.0),
]


def one_of_two(rank: int, folder: str) -> None:
    distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    for name, *options in CASES:
        result = gradients(name, *options, rank, 2)
        for gradient in result[1:]:
            distributed.all_reduce(gradient)
            gradient /= 2  # what DistributedDataParallel does
        torch.save(result, f"{folder}/{name}-{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_equal_one_of_twice_the_batch(tmp_path):
    multiprocessing.spawn(one_of_two, (str(tmp_path),), nprocs=2)
    for name, *options in CASES:
        for rank in (0, 1):
            together = torch.load(tmp_path / f"{name}-{rank}.pt", weights_only=True)
            for here, there in zip(gradients(name, *options), together, strict=True):
                assert torch.allclose(here, there, atol=1e-5)
