"""Explanations are held against what is known: where things stand in a scene, and what leaving a word out does."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import spearmanr

import minicliplib as mc
from minicliplib.analysis import figures as visualize
from minicliplib.datasets.scenes import Group, make_scene, noun

PHOTOGRAPHED = {
    "dog",
    "cat",
    "child",
    "car",
    "bicycle",
    "horse",
    "ball",
    "boat",
    "bus",
    "surfer",
    "snowboarder",
}


@pytest.fixture(scope="module")
def shipped() -> mc.MiniCLIP:
    return mc.load("flickr8k")


@pytest.fixture(scope="module")
def vit() -> mc.MiniCLIP:
    mc.set_seed(0)
    return mc.MiniCLIP(
        mc.Config().updated(**{"encoders.image": "vit_tiny_patch16_224"}), pretrained=False
    )


@pytest.fixture(scope="module")
def named() -> list[tuple]:
    """Scenes of several things, and of each a thing that Flickr8k's photos show: (picture, it, the others)."""
    scenes = [
        scene for scene in (make_scene("train", i) for i in range(200)) if len(scene.groups) > 1
    ]
    found = [
        (scene, group) for scene in scenes for group in scene.groups if group.name in PHOTOGRAPHED
    ]
    return [
        (scene.render(), group, [g for g in scene.groups if g != group])
        for scene, group in found[:16]
    ]


@pytest.fixture(scope="module")
def maps(shipped, named) -> list[np.ndarray]:
    return [
        mc.relevance_map(shipped, picture, noun(group.name, group.count))
        for picture, group, _ in named
    ]


@pytest.fixture(scope="module")
def forgetful(shipped) -> dict[float, mc.MiniCLIP]:
    """Copies by how far down they forgot."""
    return {share: mc.randomised(shipped, share) for share in (0, 0.3, 1)}


def box(group: Group, size: int = 224) -> np.ndarray:
    """Return where a group of things stands: (size, size) bool, generous by less than a glyph."""
    half = group.scale * (0.5 if group.count == 1 else 1.02)
    x, y = np.meshgrid(*[(np.arange(size) + 0.5) / size] * 2)
    return (abs(x - group.x) < half) & (
        abs(y - group.y) < (half if group.count > 2 else group.scale / 2)
    )


# ---- maps ------------------------------------------------------------------------------------------


def test_a_map_covers_the_picture_and_repeats(shipped, named, maps):
    picture, group, _ = named[0]
    first, again = maps[0], mc.relevance_map(shipped, picture, noun(group.name, group.count))
    assert first.shape == (224, 224)
    assert first.dtype == np.float32
    assert first.min() >= 0
    assert first.max() == 1
    assert np.array_equal(first, again)


def test_a_caption_looks_at_the_thing_it_names_and_not_at_the_others(named, maps):
    peak, mass, elsewhere, chance = [], [], [], []
    for relevance, (_, group, others) in zip(maps, named, strict=True):
        own, other = box(group), np.logical_or.reduce([box(g) for g in others])
        peak.append(own.flat[relevance.argmax()])
        chance.append(own.mean())
        mass.append(relevance[own].mean() / relevance.mean())
        elsewhere.append(relevance[other].mean() / relevance.mean())
    assert np.mean(chance) < 0.15
    assert np.mean(peak) > 0.3  # of chance 0.11
    assert np.mean(mass) > max(1.5, 1.25 * np.mean(elsewhere)), (
        np.mean(peak),
        np.mean(mass),
        np.mean(elsewhere),
    )


@pytest.mark.parametrize("share", [0, 1])
def test_a_map_of_a_model_that_forgot_is_another(forgetful, named, maps, share):
    forgot = forgetful[share]
    seen = [
        (mc.relevance_map(forgot, p, noun(g.name, g.count)), old)
        for (p, g, _), old in zip(named[:5], maps[:5], strict=True)
    ]
    same = np.mean(
        [spearmanr(new[::4, ::4], old[::4, ::4], axis=None).statistic for new, old in seen]
    )
    assert abs(same) < 0.35


def test_how_far_down_a_model_forgets(shipped, forgetful):
    before = shipped.state_dict()
    changed = []
    for share in (0, 0.3, 1):
        state = forgetful[share].state_dict()
        changed.append({name for name in before if not torch.equal(state[name], before[name])})
        for name in ("image_head.project.weight", "text_head.norm.weight"):
            assert torch.equal(state[name].flatten().sort()[0], before[name].flatten().sort()[0])
    fresh = mc.load("flickr8k").state_dict()
    assert all(torch.equal(tensor, fresh[name]) for name, tensor in before.items())
    assert all("head." in name and "encoder" not in name for name in changed[0])
    assert changed[0] < changed[1] < changed[2]
    assert "image_encoder.model.conv_head.weight" in changed[1]
    assert "image_encoder.model.conv_stem.weight" in changed[2] - changed[1]
    with pytest.raises(ValueError, match="share must be 0"):
        mc.randomised(shipped, 1.5)


def test_a_vision_transformer_shows_its_attention(vit, named):
    picture = named[0][0]
    dog, snow = (
        mc.relevance_map(vit, picture, text) for text in ("a dog", "a mountain in the snow")
    )
    assert dog.shape == (224, 224)
    assert 0 <= dog.min() < 0.1
    assert dog.max() == 1
    assert not np.allclose(dog, snow, atol=0.01)  # the text matters, unlike to plain rollout


def test_a_tower_without_a_map_is_one_clear_error(named):
    config = mc.Config().updated(**{"encoders.image": "mixer_s32_224"})
    with pytest.raises(ValueError, match=r"^MlpMixer gives no map of the picture"):
        mc.relevance_map(mc.MiniCLIP(config, pretrained=False), named[0][0], "a dog")


# ---- words -----------------------------------------------------------------------------------------


def test_the_shares_of_words_agree_with_leaving_them_out(shipped):
    scenes = [make_scene("train", i) for i in range(30)]
    agreement = []
    for scene in scenes:
        by_gradient, by_removal = (
            explain(shipped, scene.render(), scene.captions[1])
            for explain in (mc.word_relevance, mc.leave_one_out)
        )
        assert (
            [w for w, _ in by_gradient] == [w for w, _ in by_removal] == scene.captions[1].split()
        )
        agreement.append(
            spearmanr([s for _, s in by_gradient], [s for _, s in by_removal]).statistic
        )
    assert np.mean(agreement) > 0.4, np.mean(agreement)


def test_the_shares_add_up_to_what_the_words_change(shipped, named):
    picture, text = named[0][0], "Snowboarders' grandmother, re-photographed (twice)!"
    pixels, encoder = shipped.image_encoder.prepare([picture]), shipped.text_encoder
    ids, mask = encoder.prepare([text])
    blank = ids.clone()
    blank[:, 1:-1] = encoder.tokenizer.unk_token_id
    with torch.no_grad():
        image = shipped.project_image(shipped.image_encoder.trunk(pixels))[0]
        full, none = (
            shipped.project_text(encoder.trunk(i, mask), mask)[0] @ image for i in (ids, blank)
        )
    shares = mc.word_relevance(shipped, picture, text)
    assert [word for word, _ in shares] == text.split()
    assert sum(share for _, share in shares) == pytest.approx((full - none).item(), abs=0.03)


def test_captions_of_one_word_and_of_too_many(shipped, named):
    picture = named[0][0]
    for explain in (mc.word_relevance, mc.leave_one_out):
        [(word, share)] = explain(shipped, picture, " dog ")
        assert word == "dog"
        assert share != 0
        long = explain(shipped, picture, "dog " * 60)
        assert len(long) == 60
        assert long[-1][1] == pytest.approx(0, abs=1e-5)  # beyond max_tokens


# ---- on the whole ----------------------------------------------------------------------------------


def traces(model) -> list:
    modules = list(model.modules())
    return [
        [m.training for m in modules],
        [p.requires_grad for p in model.parameters()],
        [p.grad for p in model.parameters()],
        [
            len(m._forward_hooks) + len(m._backward_hooks) + len(m._forward_pre_hooks)
            for m in modules
        ],
        [m.fused_attn for m in modules if hasattr(m, "fused_attn")],
    ]


@pytest.mark.parametrize("which", ["shipped", "locked", "vit"])
def test_a_model_is_left_as_it_was(which, request, named, monkeypatch):
    model, picture = request.getfixturevalue(which), named[0][0]
    model.train()
    model.text_head.eval()  # not all in one mode
    before = traces(model)
    for explain in (mc.relevance_map, mc.word_relevance, mc.leave_one_out):
        explain(model, picture, "a dog on a beach")
        assert traces(model) == before
    monkeypatch.setattr(model.image_head, "forward", lambda x: 1 / 0)
    for explain in (mc.relevance_map, mc.word_relevance):
        with pytest.raises(ZeroDivisionError):
            explain(model, picture, "a dog on a beach")
        assert traces(model) == before
    monkeypatch.undo()
    model.eval()


def test_what_cannot_be_explained_is_a_clear_error(shipped, named, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    for explain in (mc.relevance_map, mc.word_relevance, mc.leave_one_out):
        with pytest.raises(ValueError, match="empty"):
            explain(shipped, named[0][0], " ")
        with pytest.raises(mc.DataError, match=r"bad\.jpg"):
            explain(shipped, tmp_path / "bad.jpg", "a dog")


def test_an_overlay_is_grey_where_nothing_is_relevant_and_brightest_at_the_peak():
    heat = np.zeros((8, 8), np.float32)
    heat[2, 5] = 1
    picture = np.asarray(
        mc.explain.overlay(Image.new("RGB", (80, 40), (100, 150, 120)), heat)
    ).astype(int)
    assert picture.shape == (40, 80, 3)
    assert np.ptp(picture[30, 10]) <= 2  # 85% of its grey, 15% of black
    assert (picture[30, 10] < 150).all()
    peak = np.unravel_index(picture.sum(-1).argmax(), (40, 80))
    assert (abs(np.array(peak) - [12, 55]) <= [4, 8]).all()


def test_figures(named, maps):
    fig = visualize.relevance(
        [picture for picture, _, _ in named[:2]], [maps[0], None], ["a", "b"], columns=2
    )
    assert fig.axes[-1].get_ylabel() == "relevance (0 to 1)"
    assert [len(ax.images) for ax in fig.axes[:2]] == [1, 1]
    drawn = [mc.explain.overlay(named[0][0], maps[0]), mc.load_image(named[1][0], hint=224)]
    for ax, picture in zip(fig.axes, drawn, strict=False):
        expected = picture.resize((160, 160), Image.Resampling.BILINEAR)
        assert np.array_equal(ax.images[0].get_array(), np.asarray(expected))
    fig = visualize.words(
        [("right", [("good", 0.2), ("bad", -0.1)], [("good", 0.1), ("bad", 0.3)])]
    )
    assert [bar.get_width() for bar in fig.axes[0].patches] == [0.2, -0.1, 0.1, 0.3]
    assert [label.get_text() for label in fig.axes[0].get_yticklabels()] == ["good", "bad"]


# ---- false twins -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "caption", "expected"),
    [
        ("number", "Two dogs on a beach.", {"Three dogs on a beach.", "Four dogs on a beach."}),
        ("side", "An owl to the left of a cat.", {"An owl to the right of a cat."}),
        ("roles", "An owl to the left of a cat.", {"A cat to the left of an owl."}),
        ("colour", "A dog in the snow.", {None}),
        ("number", "A dog.", {None}),
        ("roles", "A dog beside a dog.", {None}),
        ("order", "Dog.", {None}),
    ],
)
def test_a_twin_changes_one_thing_or_there_is_none(kind, caption, expected):
    rng = np.random.default_rng(0)
    assert {mc.altered(caption, kind, rng) for _ in range(30)} == expected


def test_a_twin_is_never_true_of_a_scene_and_articles_fit():
    rng = np.random.default_rng(0)
    for scene in (make_scene("dev", i) for i in range(80)):
        for kind in ("order", "subject", "colour", "number"):
            for caption in scene.captions:
                twin = mc.altered(caption, kind, rng)
                assert twin is None or twin.lower() != caption.lower()
                if twin and kind == "order":
                    assert sorted(twin.lower().rstrip(".").split()) == sorted(
                        caption.lower().rstrip(".").split()
                    )
                elif twin:
                    assert len(twin.split()) == len(caption.split())
                    assert " a owl" not in twin.lower()
                    assert " an c" not in twin.lower()
