"""Losses against loops written out by hand, and under two processes."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, distributed, multiprocessing

import minicliplib as mc
from minicliplib.loss import LOSSES

SCALE = torch.tensor(10.0)


def unit(n: int, seed: int = 0) -> Tensor:
    """Return n random vectors of length one."""
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(n, 8, generator=generator), dim=1)


def loss_of(name: str, *arguments: Tensor) -> float:
    return mc.contrastive_loss(name, *arguments).item()


# ---- what every loss is like ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["infonce", "multi_positive"])
@pytest.mark.parametrize("batch", [2, 7, 64])
def test_collapsed_vectors_cost_exactly_ln_batch(name, batch):
    same = F.normalize(torch.ones(batch, 8), dim=1)
    assert loss_of(name, same, same, SCALE) == pytest.approx(math.log(batch), abs=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_a_perfect_match_costs_nearly_nothing(name):
    eye = torch.eye(8)
    largest_scale = torch.tensor(100.0)
    # The bias of the sigmoid loss leaves it something to pay.
    bound = 3 if name == "sigmoid" else 0.01
    assert loss_of(name, eye, eye, largest_scale) < bound

    wrong = loss_of(name, eye, eye.roll(1, 0), largest_scale)
    if name == "max_margin":
        assert wrong == pytest.approx(2.4)
    else:
        assert wrong > 10


@pytest.mark.parametrize("name", ["infonce", "sigmoid", "multi_positive"])
def test_order_and_direction_do_not_matter(name):
    image = unit(6)
    text = unit(6, 1)
    order = torch.randperm(6)
    loss = mc.contrastive_loss(name, image, text, SCALE)
    shuffled = mc.contrastive_loss(name, image[order], text[order], SCALE)
    other_way = mc.contrastive_loss(name, text, image, SCALE)
    assert torch.allclose(shuffled, loss)
    assert torch.allclose(other_way, loss)


@pytest.mark.parametrize("name", LOSSES)
def test_the_largest_scale_and_equal_vectors_have_finite_gradients(name):
    eye = torch.eye(8)
    same = unit(1).expand(4, 8)
    for image, text in ((eye, eye), (eye, eye.roll(1, 0)), (same, same)):
        inputs = []
        for value in (image, text, torch.tensor(100.0)):
            inputs.append(value.clone().requires_grad_())
        mc.contrastive_loss(name, *inputs).backward()
        assert all(value.grad.isfinite().all() for value in inputs)


# ---- each against a loop -------------------------------------------------------------------------


def test_infonce_is_two_classifications():
    image = unit(4)
    text = unit(4, 1)
    logits = (10 * image @ text.T).tolist()
    total = 0.0
    for k in range(4):
        row = math.log(sum(math.exp(value) for value in logits[k])) - logits[k][k]
        column = math.log(sum(math.exp(line[k]) for line in logits)) - logits[k][k]
        total += (row + column) / 8
    assert loss_of("infonce", image, text, SCALE) == pytest.approx(total, rel=1e-5)


def test_multi_positive_by_a_loop():
    image = unit(3)
    text = unit(5, 1)
    image_of_caption = torch.tensor([0, 0, 1, 2, 2])
    logits = (10 * image @ text.T).double()

    # An image pays for each of its captions against the captions of other images.
    of_images = 0.0
    for i in range(3):
        own = [j for j in range(5) if image_of_caption[j] == i]
        others = sum(logits[i, j].exp() for j in range(5) if j not in own)
        for j in own:
            of_images += ((others + logits[i, j].exp()).log() - logits[i, j]) / len(own)

    # A caption pays against all images.
    of_captions = 0.0
    for j in range(5):
        of_captions += logits[:, j].exp().sum().log() - logits[image_of_caption[j], j]

    expected = (of_images / 3 + of_captions / 5) / 2
    loss = loss_of("multi_positive", image, text, SCALE, image_of_caption)
    assert loss == pytest.approx(expected.item())


def test_captions_of_one_image_do_not_push_each_other_away():
    image = torch.eye(8)[:2]
    image_of_caption = torch.tensor([0, 0, 1])
    pulls = []
    # The second caption lies elsewhere each time.
    for seed in (1, 2):
        text = unit(3, 1)
        text[1] = unit(1, seed)
        text.requires_grad_()
        mc.contrastive_loss("multi_positive", image, text, SCALE, image_of_caption).backward()
        pulls.append(-text.grad @ image[0])

    # Both captions of image 0 are drawn towards it, and the other caption is pushed away.
    for pull in pulls:
        assert (pull[:2] > 0).all()
        assert pull[2] < 0
    # Where the second one lies does not change how strongly the first one is drawn.
    assert pulls[0][0] == pulls[1][0]
    assert pulls[0][1] != pulls[1][1]


def test_with_one_caption_each_multi_positive_is_infonce():
    image = unit(5)
    text = unit(5, 1)
    expected = mc.contrastive_loss("infonce", image, text, SCALE)
    for image_of_caption in (None, torch.arange(5)):
        loss = mc.contrastive_loss("multi_positive", image, text, SCALE, image_of_caption)
        assert torch.allclose(loss, expected)


def test_sigmoid_by_a_loop():
    image = unit(3)
    text = unit(3, 1)
    logits = (10 * image @ text.T) - math.log(2)
    total = 0.0
    for i in range(3):
        for j in range(3):
            sign = 1 if i == j else -1
            total += math.log(1 + math.exp(-sign * logits[i, j].item())) / 3
    assert loss_of("sigmoid", image, text, SCALE) == pytest.approx(total, rel=1e-5)


def test_max_margin_by_a_loop():
    image = unit(4)
    text = unit(7, 1)
    image_of_caption = torch.tensor([0, 0, 1, 2, 2, 3, 3])
    cosines = (image @ text.T).tolist()
    total = 0.0
    for j, i in enumerate(image_of_caption.tolist()):
        hardest_image = max(cosines[k][j] for k in range(4) if k != i)
        hardest_caption = max(cosines[i][k] for k in range(7) if image_of_caption[k] != i)
        for wrong in (hardest_image, hardest_caption):
            total += max(0.0, 0.2 + wrong - cosines[i][j]) / 7
    loss = loss_of("max_margin", image, text, SCALE, image_of_caption)
    assert loss == pytest.approx(total, rel=1e-5)


def test_soft_targets_by_a_loop():
    image = unit(3)
    text = unit(5, 1)
    image_of_caption = torch.tensor([0, 0, 1, 2, 2])
    teacher_text = unit(5, 2)
    logits = 10 * image @ text.T
    alike = teacher_text @ teacher_text.T / 0.1
    own = [[0, 1], [2], [3, 4]]

    # An image stands for the mean over its captions.
    softened = 0.0
    for i in range(3):
        target = torch.stack([alike[own[i], j].mean() for j in range(5)]).softmax(0)
        softened -= (target * logits[i].log_softmax(0)).sum().item() / 6
    for j in range(5):
        target = torch.stack([alike[j, own[i]].mean() for i in range(3)]).softmax(0)
        softened -= (target * logits[:, j].log_softmax(0)).sum().item() / 10

    def loss(soft: float) -> float:
        inputs = (image, text, SCALE, image_of_caption, teacher_text, soft)
        return mc.contrastive_loss("multi_positive", *inputs).item()

    hard = loss_of("multi_positive", image, text, SCALE, image_of_caption)
    assert loss(1.0) == pytest.approx(softened, rel=1e-5)
    assert loss(0.25) == pytest.approx(0.75 * hard + 0.25 * softened, rel=1e-5)
    assert loss(0.0) == hard


# ---- bad input -----------------------------------------------------------------------------------


def test_captions_of_one_image_alone_are_refused():
    with pytest.raises(ValueError, match="two images"):
        mc.contrastive_loss("infonce", unit(1), unit(1), SCALE)
    # Its gradient would be NaN.
    with pytest.raises(ValueError, match="two images"):
        mc.contrastive_loss("multi_positive", unit(2), unit(3), SCALE, torch.tensor([1, 1, 1]))


def test_numbers_that_disagree_are_refused():
    with pytest.raises(ValueError, match="3 captions"):
        mc.contrastive_loss("multi_positive", unit(2), unit(3), SCALE)
    with pytest.raises(ValueError, match="one caption"):
        mc.contrastive_loss("infonce", unit(2), unit(3), SCALE, torch.tensor([0, 0, 1]))
    with pytest.raises(ValueError, match="order"):
        mc.contrastive_loss("infonce", unit(2), unit(2), SCALE, torch.tensor([1, 0]))
    with pytest.raises(ValueError, match="teacher_text"):
        mc.contrastive_loss("infonce", unit(2), unit(2), SCALE, soft=0.5)


def test_an_unknown_loss_is_named_beside_the_known():
    known = "infonce, multi_positive, sigmoid, max_margin"
    with pytest.raises(ValueError, match=f"'triplet'.*{known}"):
        mc.contrastive_loss("triplet", unit(3), unit(3), SCALE)


# ---- two processes -------------------------------------------------------------------------------

# The loss, how many captions an image has, and the share of soft targets.
CASES = [
    ("infonce", 1, 0.0),
    ("multi_positive", 2, 0.5),
    ("sigmoid", 2, 0.0),
    ("max_margin", 2, 0.0),
]


def gradients(
    name: str, per_image: int, soft: float, rank: int = 0, world: int = 1
) -> list[Tensor]:
    """Loss and gradients of a small model on this process's part of a fixed batch of eight."""
    weight = torch.eye(8, requires_grad=True)
    log_scale = torch.tensor(2.0, requires_grad=True)

    # This process's images and captions.
    n_images = 8 // world
    n_texts = n_images * per_image
    images = slice(rank * n_images, (rank + 1) * n_images)
    texts = slice(rank * n_texts, (rank + 1) * n_texts)
    image = F.normalize(unit(8)[images] @ weight, dim=1)
    text = F.normalize(unit(8 * per_image, 1)[texts] @ weight.T, dim=1)
    teacher_text = unit(8 * per_image, 2)[texts]
    image_of_caption = torch.arange(n_images).repeat_interleave(per_image)

    loss = mc.contrastive_loss(
        name, image, text, log_scale.exp(), image_of_caption, teacher_text, soft
    )
    loss.backward()
    return [loss.detach(), weight.grad, log_scale.grad]


def one_of_two(rank: int, folder: str) -> None:
    """Run as one of two processes, and write the loss and gradients of every case."""
    distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    for name, per_image, soft in CASES:
        result = gradients(name, per_image, soft, rank, 2)
        for gradient in result[1:]:
            # what DistributedDataParallel does
            distributed.all_reduce(gradient)
            gradient /= 2
        torch.save(result, f"{folder}/{name}-{rank}.pt")
    distributed.barrier()  # a process that is left alone by the other may abort as it ends
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_equal_one_of_twice_the_batch(tmp_path):
    multiprocessing.spawn(one_of_two, (str(tmp_path),), nprocs=2)
    for name, per_image, soft in CASES:
        alone = gradients(name, per_image, soft)
        for rank in (0, 1):
            together = torch.load(tmp_path / f"{name}-{rank}.pt", weights_only=True)
            for here, there in zip(alone, together, strict=True):
                assert torch.allclose(here, there, atol=1e-5)
