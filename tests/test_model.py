"""The model from the user's side: unit vectors out, whatever the batch, the order or the mode."""

import math

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import minicliplib as mc
from minicliplib.config import HeadConfig
from minicliplib.model import ProjectionHead, best_device, eval_mode

TEXTS = [
    "a dog",
    "Two brown dogs run along a sunny beach, and a child looks on.",
    "a kite in the snow",
    "a red car",
]


@pytest.fixture(scope="module")
def images(pairs) -> list[Image.Image]:
    return pairs.images[:5]


@pytest.fixture(params=["locked", "tuned"])
def model(request) -> mc.MiniCLIP:
    """Frozen towers, and partly trainable ones."""
    return request.getfixturevalue(request.param)


# ---- vectors -------------------------------------------------------------------------------------


def test_vectors_have_length_one(model, images):
    for vectors, n in ((model.encode_image(images), 5), (model.encode_text(TEXTS), 4)):
        assert vectors.shape == (n, model.dim) == (n, 256)
        assert vectors.dtype == torch.float32
        assert vectors.device == model.device
        assert torch.allclose(vectors.norm(dim=1), torch.ones(n), atol=1e-5)


def test_the_size_of_a_batch_does_not_matter(model, images):
    of_images = model.encode_image(images)
    one_by_one = torch.cat([model.encode_image(image) for image in images])
    assert torch.allclose(model.encode_image(images, batch_size=2), of_images, atol=1e-5)
    assert torch.allclose(one_by_one, of_images, atol=1e-5)

    of_texts = model.encode_text(TEXTS)
    one_by_one = torch.cat([model.encode_text(text) for text in TEXTS])
    assert torch.allclose(model.encode_text(TEXTS, batch_size=3), of_texts, atol=1e-5)
    assert torch.allclose(one_by_one, of_texts, atol=1e-5)


def test_the_order_does_not_matter(model, images):
    images_backwards = model.encode_image(images[::-1])
    texts_backwards = model.encode_text(TEXTS[::-1])
    assert torch.allclose(images_backwards, model.encode_image(images).flip(0), atol=1e-5)
    assert torch.allclose(texts_backwards, model.encode_text(TEXTS).flip(0), atol=1e-5)


def test_paths_images_and_pixels_give_the_same_vectors(locked, images, tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(5)]
    for path, image in zip(paths, images, strict=True):
        image.save(path)
    expected = locked.encode_image(images)
    assert torch.equal(locked.encode_image(paths), expected)
    assert torch.equal(locked.encode_image(locked.image_encoder.prepare(images)), expected)
    assert torch.equal(locked.encode_image(str(paths[0])), locked.encode_image(images[0]))


def test_nothing_in_gives_nothing_out(locked):
    assert locked.encode_image([]).shape == (0, 256)
    assert locked.encode_text([]).shape == (0, 256)


@pytest.mark.parametrize("empty", ["", " ", ["a dog", ""]])
def test_an_empty_text_is_an_error(locked, empty):
    locked.train()
    with pytest.raises(ValueError, match="empty"):
        locked.encode_text(empty)
    assert locked.training
    locked.eval()


def test_an_unreadable_image_is_named(locked, images, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no image")
    with pytest.raises(mc.DataError, match=r"bad\.jpg"):
        locked.encode_image([bad])
    # This one is read while another batch is embedded.
    with pytest.raises(mc.DataError, match=r"bad\.jpg"):
        locked.encode_image([*images, bad], batch_size=2)


# ---- test-time views -----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_vector_is_the_mean_over_the_views(locked, images, count):
    # The same weights as those of ``locked``, which takes one view.
    mc.set_seed(0)
    model = mc.MiniCLIP(mc.Config().updated(inference={"tta_views": count}))
    pixels = model.image_encoder.prepare(images[:2])
    middle = F.interpolate(pixels[..., 17:207, 17:207], (224, 224), mode="bicubic")
    views = [pixels, pixels.flip(-1), middle, middle.flip(-1)]

    mean = sum(locked.encode_image(view) for view in views[:count])
    expected = mean / mean.norm(dim=1, keepdim=True)
    vectors = model.encode_image(images[:2])
    assert torch.allclose(vectors, expected, atol=1e-5)
    assert torch.equal(locked.encode_image(images[:2], tta_views=count), vectors)
    # A mirrored image is the same to it.
    if count > 1:
        mirrored = model.encode_image(pixels.flip(-1))
        assert torch.allclose(mirrored, model.encode_image(pixels), atol=1e-4)


@pytest.mark.parametrize("count", [-1, 3, 8])
def test_an_unknown_number_of_views_is_refused(locked, images, count):
    with pytest.raises(ValueError, match="tta_views"):
        mc.MiniCLIP(mc.Config().updated(inference={"tta_views": count}))
    with pytest.raises(ValueError, match="tta_views"):
        locked.encode_image(images, tta_views=count)


# ---- modes ---------------------------------------------------------------------------------------


def test_encoding_leaves_no_trace(tuned, images):
    tuned.train()
    of_images = tuned.encode_image(images)
    of_texts = tuned.encode_text(TEXTS)
    assert tuned.training
    tuned.eval()
    # There is no dropout, whatever the mode.
    assert torch.equal(of_images, tuned.encode_image(images))
    assert torch.equal(of_texts, tuned.encode_text(TEXTS))
    assert not of_images.requires_grad


def test_every_module_gets_its_own_mode_back(tuned):
    tuned.eval()
    tuned.image_head.train()
    before = [module.training for module in tuned.modules()]
    with eval_mode(tuned):
        assert not any(module.training for module in tuned.modules())
    assert [module.training for module in tuned.modules()] == before
    tuned.eval()


# ---- parts ---------------------------------------------------------------------------------------


def test_the_scale_starts_at_the_inverse_temperature(locked):
    assert locked.scale().item() == pytest.approx(1 / 0.07)
    model = mc.MiniCLIP(mc.Config().updated(heads={"temperature": 0.5, "learn_temperature": False}))
    assert model.scale().item() == pytest.approx(2)
    assert not model.logit_scale.requires_grad


def test_the_scale_ends_at_its_bound(locked, monkeypatch):
    monkeypatch.setattr(locked.logit_scale, "data", torch.tensor(math.log(1000)))
    assert locked.scale().item() == pytest.approx(100)

    # Brought back below the bound it has a gradient again.
    locked.bound_scale()
    assert locked.scale().item() == pytest.approx(100, rel=1e-5)
    gradient = torch.autograd.grad(locked.scale(), locked.logit_scale)[0]
    assert gradient.item() == pytest.approx(100, rel=1e-5)


def test_a_linear_head_is_one_matrix_and_a_bias():
    linear = ProjectionHead(12, HeadConfig("linear", 8))
    x = torch.randn(3, 12)
    assert torch.equal(linear(x), x @ linear.project.weight.T + linear.project.bias)


def test_an_mlp_head_adds_a_residual_and_ends_with_a_norm():
    mlp = ProjectionHead(12, HeadConfig("mlp", 8, dropout=0.0))
    x = torch.randn(3, 12)
    inner = mlp.project(x)
    assert torch.allclose(mlp(x), mlp.norm(inner + mlp.residual(inner)))
    # LayerNorm is last.
    assert mlp(x).mean(1).abs().max() < 1e-5


def test_an_unknown_kind_of_head_is_named_beside_the_known():
    with pytest.raises(ValueError, match=r"'conv'.*linear, mlp"):
        ProjectionHead(12, HeadConfig("conv"))
    with pytest.raises(ValueError, match="'conv'"):
        mc.MiniCLIP(mc.Config().updated(heads={"kind": "conv"}))


def test_what_was_learned_is_what_may_train(locked, tuned):
    trainable = {name for name, p in tuned.named_parameters() if p.requires_grad}
    assert tuned.learned_state().keys() == trainable
    parts = {name.split(".")[0] for name in locked.learned_state()}
    assert parts == {"image_head", "text_head", "logit_scale"}


def test_a_fingerprint_tells_models_apart_whose_vectors_differ(locked, monkeypatch):
    # The same weights have the same one, and other weights or other views another.
    mc.set_seed(0)
    same = mc.MiniCLIP(mc.Config())
    mc.set_seed(0)
    other_views = mc.MiniCLIP(mc.Config().updated(inference={"tta_views": 2}))
    assert same.fingerprint() == locked.fingerprint()
    assert other_views.fingerprint() != locked.fingerprint()
    monkeypatch.setattr(same.logit_scale, "data", torch.tensor(1.0))
    assert same.fingerprint() != locked.fingerprint()


@pytest.mark.parametrize(
    ("cuda", "mps", "best"),
    [(True, True, "cuda"), (True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_the_best_device_is_found(monkeypatch, cuda, mps, best):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert best_device() == best
