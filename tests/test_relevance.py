"""Explanations are held against what is known: where things stand, and what each word does."""

from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.stats import spearmanr

import minicliplib as mc
from minicliplib.analysis import relevance as relevance_module
from minicliplib.analysis.relevance import overlay, text_attention
from minicliplib.datasets.scenes import Group, make_scene, noun
from minicliplib.encoders import Encoder

pytestmark = pytest.mark.slow

# Things that Flickr8k's photos show, so that a model trained on them knows the words.
PHOTOGRAPHED = {
    *("dog", "cat", "child", "car", "bicycle", "horse"),
    *("ball", "boat", "bus", "surfer", "snowboarder"),
}


class Named(NamedTuple):
    """A scene of several things, and one of them that Flickr8k's photos show."""

    image: Image.Image
    group: Group
    others: list[Group]

    @property
    def text(self) -> str:
        return noun(self.group.name, self.group.count)


@pytest.fixture(scope="module")
def shipped() -> mc.MiniCLIP:
    return mc.load("flickr8k")


@pytest.fixture(scope="module")
def vit() -> mc.MiniCLIP:
    mc.set_seed(0)
    config = mc.Config().updated(encoders={"image": "vit_tiny_patch16_224"})
    return mc.MiniCLIP(config, pretrained=False)


@pytest.fixture(scope="module")
def named() -> list[Named]:
    found = []
    for scene in (make_scene("train", i) for i in range(200)):
        if len(scene.groups) == 1:
            continue
        for group in scene.groups:
            if group.name in PHOTOGRAPHED:
                others = [other for other in scene.groups if other != group]
                found.append(Named(scene.render(), group, others))
    return found[:16]


@pytest.fixture(scope="module")
def maps(shipped, named) -> list[np.ndarray]:
    return [mc.relevance_map(shipped, scene.image, scene.text) for scene in named]


@pytest.fixture(scope="module")
def forgetful(shipped) -> dict[float, mc.MiniCLIP]:
    """Copies, by how far down they forgot."""
    return {share: mc.randomised(shipped, share) for share in (0, 0.3, 1)}


def box(group: Group, size: int) -> np.ndarray:
    """Return where a group of things stands: (size, size) bool, generous by less than a glyph."""
    half_width = group.scale * (0.5 if group.count == 1 else 1.02)
    half_height = half_width if group.count > 2 else group.scale / 2
    middles = (np.arange(size) + 0.5) / size
    inside_x = abs(middles - group.x) < half_width
    inside_y = abs(middles - group.y) < half_height
    return inside_y[:, None] & inside_x


# ---- maps ------------------------------------------------------------------------------


def test_a_map_covers_the_image_and_repeats(shipped, named, maps):
    first = maps[0]
    again = mc.relevance_map(shipped, named[0].image, named[0].text)
    side = shipped.image_encoder.size
    assert first.shape == (side, side)
    assert first.dtype == np.float32
    assert first.min() >= 0
    assert first.max() == 1
    assert np.array_equal(first, again)


def test_a_caption_looks_at_the_thing_it_names_and_not_at_the_others(named, maps):
    chances = []  # the share of the image that the thing covers
    peaks = []  # whether the map's peak lies on it
    on_thing = []  # the map's mean there, relative to its mean
    on_others = []
    for relevance, scene in zip(maps, named, strict=True):
        side = len(relevance)
        own = box(scene.group, side)
        other = np.logical_or.reduce([box(group, side) for group in scene.others])
        chances.append(own.mean())
        peaks.append(own.flat[relevance.argmax()])
        on_thing.append(relevance[own].mean() / relevance.mean())
        on_others.append(relevance[other].mean() / relevance.mean())
    assert np.mean(chances) < 0.15
    assert np.mean(peaks) > 0.3
    assert np.mean(on_thing) > max(1.5, 1.25 * np.mean(on_others))


@pytest.mark.parametrize("share", [0, 1])
def test_a_map_of_a_model_that_forgot_is_another(forgetful, named, maps, share):
    agreements = []
    for scene, old in zip(named, maps, strict=True):
        new = mc.relevance_map(forgetful[share], scene.image, scene.text)
        agreements.append(spearmanr(new[::4, ::4], old[::4, ::4], axis=None).statistic)
    assert abs(np.mean(agreements)) < 0.35


def test_a_tower_whose_pooling_widens_its_map_is_summed_over_channels(named):
    mc.set_seed(0)
    config = mc.Config().updated(encoders={"image": "mobilenetv3_small_050"})
    model = mc.MiniCLIP(config, pretrained=False)
    encoder = model.image_encoder
    image, text = named[0].image, named[0].text

    # Grad-CAM by hand, at the one size that a tower which is not cut accepts.
    hidden = encoder.run(encoder.prepare([image])).detach().requires_grad_()  # (1, 288, 7, 7)
    vector = F.normalize(model.image_head(encoder.pool(hidden)), dim=-1)[0]
    (gradient,) = torch.autograd.grad(vector @ model.encode_text(text)[0].clone(), hidden)
    places = (hidden * gradient).sum(1).relu()[None]
    by_hand = F.interpolate(places, (encoder.size, encoder.size), mode="bilinear")[0, 0].detach()
    expected = (by_hand / by_hand.max()).numpy()
    assert np.allclose(mc.relevance_map(model, image, text), expected, atol=1e-4)


READS = {
    "efficientnet_lite0": "block9+block15+last",
    "resnet18": "block4+last",
    "vit_tiny_patch16_224": "block6+block9",
}


@pytest.mark.parametrize("name", READS)
def test_a_map_of_a_head_that_reads_several_stages(name, named):
    mc.set_seed(0)
    config = mc.Config().updated(encoders={"image": name, "image_reads": READS[name]})
    model = mc.MiniCLIP(config, pretrained=name == "efficientnet_lite0")
    image = named[0].image
    dog = mc.relevance_map(model, image, "a dog")
    assert dog.shape == (224, 224)
    assert dog.min() >= 0
    assert dog.max() == 1
    assert not np.allclose(dog, mc.relevance_map(model, image, "snow"), atol=0.01)


@pytest.mark.parametrize("listens_to", ["block10", "last"])
def test_a_head_that_listens_to_one_stage_of_two_shows_that_stage(named, listens_to):
    mc.set_seed(0)
    one = mc.MiniCLIP(mc.Config().updated(encoders={"image_reads": listens_to}))
    both = mc.MiniCLIP(mc.Config().updated(encoders={"image_reads": "block10+last"}))
    both.text_head.load_state_dict(one.text_head.state_dict())
    state = one.image_head.state_dict()
    deaf = torch.zeros(256, both.image_encoder.dim - one.image_encoder.dim)
    weights = [state["project.weight"], deaf]
    state["project.weight"] = torch.cat(weights if listens_to == "block10" else weights[::-1], 1)
    both.image_head.load_state_dict(state)

    alone = mc.relevance_map(one, named[0].image, "a dog")
    found = mc.relevance_map(both, named[0].image, "a dog")
    if listens_to == "block10":
        assert np.allclose(found, alone, atol=1e-4)
    else:  # enlarged from 7 x 7 places in two steps instead of one
        assert np.corrcoef(found.flat, alone.flat)[0, 1] > 0.97


class SpotAndMirrored:
    """A tower of two stages: a fine map of the image, and a coarse one of its mirror image."""

    stages = ("fine", "coarse")
    reads = (0, 1)
    size = 64
    run_and_keep = Encoder.run_and_keep

    def run(self, x: torch.Tensor, mask: None, start: int, stop: int) -> torch.Tensor:
        for stage in range(start, stop):
            x = F.avg_pool2d(x.flip(-1) if stage == 1 else x, 4)
        return x

    def pool(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden.mean((2, 3))


def test_what_a_coarse_map_shows_counts_as_much_as_what_a_fine_one_shows():
    def head(features: torch.Tensor) -> torch.Tensor:
        return F.pad(features.sum(1, keepdim=True), (1, 0), value=1.0)

    model = SimpleNamespace(image_encoder=SpotAndMirrored(), image_head=head)
    spot = torch.zeros(1, 1, 64, 64)
    spot[..., 24:40, 8:24] = 1
    seen = relevance_module._grad_cam(model, spot, torch.tensor([0.0, 1.0]))
    assert seen[:, :32].sum() == pytest.approx(seen[:, 32:].sum().item(), rel=0.1)


def test_a_map_of_two_towers_side_by_side(named):
    mc.set_seed(0)
    config = mc.Config().updated(encoders={"image": "efficientnet_lite1+efficientnet_lite2"})
    model = mc.MiniCLIP(config, pretrained=False)
    dog = mc.relevance_map(model, named[0].image, "a dog")
    assert dog.shape == (260, 260)
    assert dog.max() == 1


def test_a_vision_transformer_shows_its_attention(vit, named):
    image = named[0].image
    dog = mc.relevance_map(vit, image, "a dog")
    snow = mc.relevance_map(vit, image, "a mountain in the snow")
    assert dog.shape == (224, 224)
    assert 0 <= dog.min() < 0.1
    assert dog.max() == 1
    assert not np.allclose(dog, snow, atol=0.01)  # plain rollout would ignore the text


def test_a_tower_without_a_map_is_one_clear_error(named):
    config = mc.Config().updated(encoders={"image": "mixer_s32_224"})
    model = mc.MiniCLIP(config, pretrained=False)
    with pytest.raises(ValueError, match=r"^MlpMixer gives no map"):
        mc.relevance_map(model, named[0].image, "a dog")


def test_an_overlay_is_grey_where_nothing_is_relevant_and_brightest_at_the_peak():
    heat = np.zeros((8, 8), np.float32)
    heat[2, 5] = 1
    image = Image.new("RGB", (80, 40), (100, 150, 120))
    seen = np.asarray(overlay(image, heat)).astype(int)
    assert seen.shape == (40, 80, 3)

    # Far from the peak the image is 85% of its grey and 15% of black.
    far = seen[30, 10]
    assert np.ptp(far) <= 2
    assert (far < 150).all()

    y, x = np.unravel_index(seen.sum(-1).argmax(), (40, 80))
    assert abs(y - 12) <= 4
    assert abs(x - 55) <= 8


# ---- words -----------------------------------------------------------------------------


def test_the_shares_of_words_agree_with_leaving_them_out(shipped):
    agreements = []
    for scene in (make_scene("train", i) for i in range(30)):
        image = scene.render()
        caption = scene.captions[1]
        by_gradient = mc.word_relevance(shipped, image, caption)
        by_removal = mc.leave_one_out(shipped, image, caption)
        assert [word for word, _ in by_gradient] == caption.split()
        assert [word for word, _ in by_removal] == caption.split()

        gradient_shares = [share for _, share in by_gradient]
        removal_shares = [share for _, share in by_removal]
        agreements.append(spearmanr(gradient_shares, removal_shares).statistic)
    assert np.mean(agreements) > 0.4


def change_by_words(model: mc.MiniCLIP, image: Image.Image, text: str) -> float:
    """Return a cosine less the same cosine with every wordpiece unknown."""
    encoder = model.text_encoder
    ids, mask = encoder.prepare([text])
    blank = ids.clone()
    blank[:, 1:-1] = encoder.tokenizer.unk_token_id
    with torch.no_grad():
        pixels = model.image_encoder.prepare([image])
        vector = model.project_image(model.image_encoder.trunk(pixels))[0]
        full = model.project_text(encoder.trunk(ids, mask), mask)[0] @ vector
        none = model.project_text(encoder.trunk(blank, mask), mask)[0] @ vector
    return (full - none).item()


def test_the_shares_add_up_to_what_the_words_change(shipped, named):
    text = "Snowboarders' grandmother, re-photographed (twice)!"
    image = named[0].image
    shares = mc.word_relevance(shipped, image, text)
    assert [word for word, _ in shares] == text.split()
    total = sum(share for _, share in shares)
    assert total == pytest.approx(change_by_words(shipped, image, text), abs=0.03)


@pytest.mark.parametrize("reads", ["layer2+layer4+last", "embeddings+layer3", "embeddings+last"])
def test_in_small_steps_the_shares_add_up_exactly_whatever_is_read(named, reads, monkeypatch):
    monkeypatch.setattr(relevance_module, "PATH_STEPS", 256)
    mc.set_seed(0)
    model = mc.MiniCLIP(mc.Config().updated(encoders={"text_reads": reads}))
    text = "Two dogs run in the snow."
    shares = mc.word_relevance(model, named[0].image, text)
    total = sum(share for _, share in shares)
    assert total == pytest.approx(change_by_words(model, named[0].image, text), abs=3e-4)
    assert max(abs(share) for _, share in shares) > 3e-3


@pytest.mark.parametrize("explain", [mc.word_relevance, mc.leave_one_out])
def test_captions_of_one_word_and_of_too_many(explain, shipped, named):
    image = named[0].image
    [(word, share)] = explain(shipped, image, " dog ")
    assert word == "dog"
    assert share != 0

    long = explain(shipped, image, "dog " * 60)
    assert len(long) == 60
    _, last_share = long[-1]
    assert last_share == pytest.approx(0, abs=1e-5)  # beyond max_tokens


# ---- checks ----------------------------------------------------------------------------


def test_how_far_down_a_model_forgets(shipped, forgetful):
    before = shipped.state_dict()
    changed = {}
    for share, copy in forgetful.items():
        after = copy.state_dict()
        changed[share] = {name for name in before if not torch.equal(after[name], before[name])}

        # The values are the same, in other places.
        for name in ("image_head.project.weight", "text_head.norm.weight"):
            assert torch.equal(after[name].flatten().sort()[0], before[name].flatten().sort()[0])

    assert all(name.startswith(("image_head.", "text_head.")) for name in changed[0])
    assert changed[0] < changed[0.3] < changed[1]
    for tower in ("image_encoder.model.0", "image_encoder.model.1"):  # side by side
        assert f"{tower}.conv_head.weight" in changed[0.3]
        assert f"{tower}.conv_stem.weight" in changed[1] - changed[0.3]

    # The model itself forgot nothing.
    fresh = mc.load("flickr8k").state_dict()
    assert all(torch.equal(tensor, fresh[name]) for name, tensor in before.items())


def test_forgetting_more_than_everything_is_a_clear_error(shipped):
    with pytest.raises(ValueError, match="share"):
        mc.randomised(shipped, 1.5)


def traces(model: mc.MiniCLIP) -> list[list]:
    """Return all that an explanation could leave behind in a model."""
    modules = list(model.modules())
    hooks = []
    for module in modules:
        hooks.append(len(module._forward_hooks))
        hooks.append(len(module._forward_pre_hooks))
        hooks.append(len(module._backward_hooks))
    return [
        hooks,
        [module.training for module in modules],
        [module.fused_attn for module in modules if hasattr(module, "fused_attn")],
        [parameter.requires_grad for parameter in model.parameters()],
        [parameter.grad for parameter in model.parameters()],
    ]


@pytest.mark.parametrize("which", ["shipped", "locked", "vit"])
def test_a_model_is_left_as_it_was(which, request, named, monkeypatch):
    model = request.getfixturevalue(which)
    image = named[0].image
    model.train()
    model.text_head.eval()  # not all in one mode
    before = traces(model)
    for explain in (mc.relevance_map, mc.word_relevance, mc.leave_one_out):
        explain(model, image, "a dog on a beach")
        assert traces(model) == before

    # So is it where the explanation fails on its way.
    monkeypatch.setattr(model.image_head, "forward", lambda features: 1 / 0)
    for explain in (mc.relevance_map, mc.word_relevance):
        with pytest.raises(ZeroDivisionError):
            explain(model, image, "a dog on a beach")
        assert traces(model) == before
    monkeypatch.undo()
    model.eval()


@pytest.mark.parametrize("explain", [mc.relevance_map, mc.word_relevance, mc.leave_one_out])
def test_what_cannot_be_explained_is_a_clear_error(explain, shipped, named, tmp_path):
    with pytest.raises(ValueError, match="empty"):
        explain(shipped, named[0].image, " ")
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    with pytest.raises(mc.DataError, match=r"bad\.jpg"):
        explain(shipped, tmp_path / "bad.jpg", "a dog")


# ---- attention ----------------------------------------------------------------------------------


def test_attention_sums_to_one_and_leaves_the_model_as_it_was(shipped):
    before = shipped.encode_text("a dog in snow")
    tokens, weights = text_attention(shipped, "a dog in snow")
    assert tokens == ["[CLS]", "a", "dog", "in", "snow", "[SEP]"]
    assert weights.shape == (6, 12, 6, 6)  # layers, heads, tokens, tokens
    assert torch.allclose(weights.sum(-1), torch.ones(6, 12, 6), atol=1e-5)
    assert torch.equal(shipped.encode_text("a dog in snow"), before)


def test_attention_to_nothing_is_refused(shipped):
    with pytest.raises(ValueError, match="needs at least one word"):
        text_attention(shipped, " ")
