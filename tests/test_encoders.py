"""The towers: their stages add up to the whole model, frozen means frozen, and what goes in."""

import pytest
import torch
import transformers
from PIL import Image, ImageOps
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from tower_files import VOCABULARY, load_only_once, write_tokenizer

import minicliplib as mc
from minicliplib.encoders import Encoder, Hidden, ImageEncoder, TextEncoder
from minicliplib.interop.side_by_side import SideBySide

TEXTS = [
    "A dog.",
    "Two brown dogs run along a sunny beach, and a child looks on.",
    "A red kite in the snow",
    "cat",
]


@pytest.fixture
def image(locked) -> ImageEncoder:
    return locked.image_encoder


@pytest.fixture
def text(locked) -> TextEncoder:
    return locked.text_encoder


def pixels(encoder: ImageEncoder, n: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 3, encoder.size, encoder.size, generator=generator)


def count_trainable(encoder: Encoder) -> int:
    return sum(p.numel() for p in encoder.parameters() if p.requires_grad)


# ---- stages --------------------------------------------------------------------------------------


def blocks(count: int) -> list[str]:
    return [f"block{i}" for i in range(1, count + 1)]


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("efficientnet_lite0", ["stem", *blocks(16), "head"]),
        ("resnet18", ["stem", *blocks(8)]),
        ("vit_tiny_patch16_224", ["stem", *blocks(12), "norm"]),
        # a family that is not cut
        ("convnext_atto", ["whole"]),
        # alike by its names, but not by its head
        ("mobilenetv3_small_050", ["whole"]),
        # not quite a ViT: its positions are rotary
        ("eva02_tiny_patch14_224", ["whole"]),
    ],
)
def test_trunk_and_top_are_the_whole_image_tower(name, stages):
    for depth in sorted({0, 1, len(stages) // 2, len(stages)}):
        torch.manual_seed(0)
        encoder = ImageEncoder(name, depth, pretrained=False)
        assert [stage for stage, _ in encoder.stages] == stages
        batch = pixels(encoder)
        with torch.no_grad():
            features = encoder.model.forward_features(batch)
            whole = encoder.model.forward_head(features, pre_logits=True)
            assert whole.shape == (2, encoder.dim)
            assert torch.equal(encoder.top(encoder.trunk(batch)), whole)


SIZES = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
SMALL = {
    "bert": transformers.BertConfig(**SIZES),
    "distilbert": transformers.DistilBertConfig(
        vocab_size=len(VOCABULARY), dim=16, n_layers=3, n_heads=2, hidden_dim=32
    ),
    "roberta": transformers.RobertaConfig(**SIZES, pad_token_id=0),
    "mpnet": transformers.MPNetConfig(**SIZES, pad_token_id=0),
}


@pytest.mark.parametrize("name", SMALL)
def test_trunk_and_top_are_the_whole_text_tower(name, tmp_path):
    write_tokenizer(tmp_path)
    transformers.AutoModel.from_config(SMALL[name]).save_pretrained(tmp_path)
    direct = transformers.AutoModel.from_pretrained(tmp_path).eval()

    # MPNet is not cut: its layers share a bias of their distances.
    staged = name != "mpnet"
    stages = ["embeddings", "layer1", "layer2", "layer3"] if staged else ["whole"]
    for trainable in (0, 2, -1) if staged else (0, 1):
        encoder = TextEncoder(str(tmp_path), trainable)
        assert [stage for stage, _ in encoder.stages] == stages
        ids, mask = encoder.prepare(TEXTS)
        with torch.no_grad():
            states = direct(input_ids=ids, attention_mask=mask).last_hidden_state
            total = (states * mask.unsqueeze(-1)).sum(1)
            mean = total / mask.sum(1, keepdim=True)
            assert torch.allclose(encoder(ids, mask), mean, atol=1e-6)


@pytest.mark.parametrize("trainable", [2, 7, -1])
def test_captions_bucketed_by_length_are_the_same_captions(trainable):
    encoder = TextEncoder(trainable=trainable)
    texts = [" ".join(["dog"] * n) for n in (9, 1, 4, 30, 2, 12, 3)]
    ids, mask = encoder.prepare(texts)
    with torch.no_grad():
        hidden = encoder.trunk(ids, mask)
        plain = encoder.pool(encoder.run(hidden.state, mask, encoder.frozen), mask)
        assert torch.allclose(encoder.top(hidden, mask), plain, atol=1e-5)


# ---- what the head reads -------------------------------------------------------------------------

# Stages of each tower, from the first to one before the last.
IMAGE_READS = {
    "efficientnet_lite0": "stem+block9+block15",
    "resnet18": "block1+block6+last",
    "vit_tiny_patch16_224": "stem+block4+norm",
}


def random_tower(name: str, trainable: int, reads: str) -> ImageEncoder:
    """Return a tower of the same random weights each time, none of them 0.

    The last norm of a new ResNet's block is 0, so that blocks do nothing.
    """
    mc.set_seed(0)
    encoder = ImageEncoder(name, trainable, reads, pretrained=False)
    for module in encoder.modules():
        if isinstance(module, _BatchNorm):
            module.weight.data.uniform_(0.5, 1.5)
    return encoder


def read_one_by_one(encoder: Encoder, x: torch.Tensor, mask: torch.Tensor | None = None):
    """Return what the head reads, each stage by a run of its own from the input on."""
    pooled = []
    for stage in encoder.reads:
        pooled.append(encoder.pool(encoder.run(x, mask, 0, stage + 1), mask))
    return torch.cat(pooled, 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", IMAGE_READS)
def test_an_image_tower_cut_anywhere_reads_the_same_stages(name):
    whole = random_tower(name, 0, IMAGE_READS[name])
    batch = pixels(whole)
    expected = read_one_by_one(whole, batch)
    assert whole.dim == expected.shape[1]
    assert len(whole.reads) == 3
    shares = set()  # how many of the features come from the trunk
    for trainable in range(-1, len(whole.stages) + 1):
        cut = random_tower(name, trainable, IMAGE_READS[name])
        hidden = cut.trunk(batch)
        assert hidden.state.shape[1:] == cut.state_shape
        shares.add(hidden.pooled.shape[1])
        with torch.no_grad():
            assert torch.equal(cut.top(hidden), expected)
    assert len(shares) == 4


@pytest.mark.parametrize("reads", ["layer2+layer5", "embeddings+layer6", "layer4"])
def test_a_text_tower_cut_anywhere_reads_the_same_stages(reads, monkeypatch):
    load_only_once(monkeypatch, "load_text_model")
    whole = TextEncoder(reads=reads)
    ids, mask = whole.prepare(TEXTS)
    expected = read_one_by_one(whole, ids, mask)
    assert whole.dim == expected.shape[1] == 384 * len(whole.reads)
    for trainable in range(-1, len(whole.stages) + 1):
        cut = TextEncoder(trainable=trainable, reads=reads)
        with torch.no_grad():
            assert torch.allclose(cut(ids, mask), expected, atol=1e-5)


def test_the_trunk_gives_what_is_read_below_the_cut_and_the_top_the_rest():
    encoder = random_tower("resnet18", 3, "block2+block6+block8")
    batch = pixels(encoder)
    with torch.no_grad():
        hidden = encoder.trunk(batch)
        read = encoder.top(hidden)
        assert torch.equal(hidden.state, encoder.run(batch, None, 0, 6))
    # after layer1, layer3 and layer4
    assert encoder.dim == 64 + 256 + 512
    assert hidden.pooled.shape == (2, 64)
    assert torch.equal(read[:, :64], hidden.pooled)
    # The state alone decides on the rest.
    with torch.no_grad():
        assert torch.equal(encoder.top(Hidden(hidden.state, -hidden.pooled))[:, 64:], read[:, 64:])


def test_a_locked_tower_keeps_no_state_and_a_free_one_reads_nothing_below():
    locked = random_tower("resnet18", 0, "block2+last")
    hidden = locked.trunk(pixels(locked))
    assert hidden.state.shape == (2, 0)
    assert hidden.pooled.shape == (2, locked.dim) == (2, 576)

    free = random_tower("resnet18", -1, "block2+last")
    hidden = free.trunk(pixels(free))
    assert torch.equal(hidden.state, pixels(free))
    assert hidden.pooled.shape == (2, 0)


def test_reads_by_any_name_and_in_any_order_are_one_set_of_stages():
    orders = ("block3+last", "last+block3", "block8+block3+last")
    for reads in orders:
        assert ImageEncoder("resnet18", 0, reads, pretrained=False).reads == [3, 8]
    assert ImageEncoder("resnet18", pretrained=False).reads == [8]


@pytest.mark.parametrize("reads", ["block3+block17", "", "block3, last", "layer3"])
def test_a_stage_that_is_not_there_is_named_beside_those_that_are(reads):
    unknown = {"block3+block17": "block17"}.get(reads, reads)
    with pytest.raises(ValueError, match=f"'{unknown}'.* stem, block1, .*block8, or last"):
        ImageEncoder("resnet18", 0, reads, pretrained=False)


def test_stages_after_the_last_one_that_is_read_are_gone():
    text = TextEncoder(trainable=1, reads="layer2+layer4")
    assert [name for name, _ in text.stages][-1] == "layer4"
    assert text.frozen == 4
    # So the one that trains is the fourth layer.
    trained = {name for name, p in text.named_parameters() if p.requires_grad}
    assert trained
    assert all(name.startswith("model.encoder.layer.3.") for name in trained)
    with pytest.raises(ValueError, match=r"5, not 6.* layer4\."):
        TextEncoder(trainable=6, reads="layer4")


@pytest.mark.parametrize("trainable", [-1, 7])
def test_no_stage_after_the_last_one_that_is_read_waits_for_a_gradient(trainable):
    encoder = random_tower("resnet18", trainable, "block2+block6")
    encoder(pixels(encoder)).square().mean().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None), name


def changed_by_a_step(encoder: ImageEncoder) -> set[str]:
    """Let an optimiser take a step with a tower; return the names of the tensors that changed."""
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    optimiser = torch.optim.AdamW(encoder.parameters(), 1e-2)
    encoder(pixels(encoder)).square().mean().backward()
    optimiser.step()
    after = encoder.state_dict()
    return {name for name in before if not torch.equal(after[name], before[name])}


def test_reads_below_the_cut_send_no_gradient_into_frozen_stages():
    encoder = random_tower("resnet18", 2, "block2+block7+last").train()
    changed = changed_by_a_step(encoder)
    assert changed == {name for name, p in encoder.named_parameters() if p.requires_grad}
    assert {name.split(".")[1] for name in changed} == {"layer4"}


# ---- towers side by side -------------------------------------------------------------------------

PAIR = "efficientnet_lite1+efficientnet_lite2"


@pytest.mark.slow
def test_towers_side_by_side_are_both_towers_at_one_size(photo):
    reads = "block9+last"
    pair = SideBySide(PAIR, 0, reads)
    towers = [ImageEncoder(name, 0, reads) for name in PAIR.split("+")]
    batch = pair.prepare([photo, photo.rotate(90)])
    assert batch.shape == (2, 3, 260, 260)
    # the size that the larger of the two wants
    assert torch.equal(batch, towers[1].prepare([photo, photo.rotate(90)]))

    with torch.no_grad():
        # The channels of both at one stage, and after them those at the next.
        one, other = (tower(batch) for tower in towers)
        width, other_width = one.shape[1] - 1280, other.shape[1] - 1280
        expected = [one[:, :width], other[:, :other_width], one[:, width:], other[:, other_width:]]
        assert torch.allclose(pair(batch), torch.cat(expected, 1), atol=1e-5)
        maps = [tower.run(batch, None, 0, 7) for tower in towers]
        assert torch.equal(pair.run(batch, None, 0, 7), torch.cat(maps, 1))
    assert pair.dim == width + other_width + 2 * 1280


@pytest.mark.slow
def test_towers_side_by_side_share_a_precision():
    mc.set_seed(0)
    pair = SideBySide(PAIR, 0, pretrained=False)
    batch = pixels(pair)
    with torch.no_grad():
        exact = pair(batch)
        pair.precision = torch.bfloat16
        rounded = pair(batch)
        for tower in pair.towers:
            tower.precision = torch.bfloat16
        apart = torch.cat([tower(batch) for tower in pair.towers], 1)
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, exact)
    assert torch.equal(rounded, apart)


@pytest.mark.slow
@pytest.mark.parametrize("trainable", [-1, 1, 9, 22, 23])
def test_towers_side_by_side_can_be_cut_anywhere(trainable):
    mc.set_seed(0)
    whole = SideBySide(PAIR, 0, "block5+block14+last", pretrained=False)
    mc.set_seed(0)
    cut = SideBySide(PAIR, trainable, "block5+block14+last", pretrained=False)
    batch = pixels(whole)
    with torch.no_grad():
        hidden = cut.trunk(batch)
        assert hidden.state.shape[1:] == cut.state_shape
        assert torch.allclose(cut.top(hidden), whole(batch), atol=1e-5)
    assert [name for name, _ in cut.stages] == ["stem", *blocks(21), "head"]


@pytest.mark.slow
def test_the_top_stages_of_both_towers_side_by_side_train():
    pair = SideBySide(PAIR, 2, pretrained=False).train()
    changed = changed_by_a_step(pair)
    assert changed == {name for name, p in pair.named_parameters() if p.requires_grad}
    # the last block and the head of each, and no weight is there twice
    assert all(name.startswith("model.") for name in pair.state_dict())
    parts = {tuple(name.split(".")[1:3]) for name in changed}
    assert parts == {(tower, part) for tower in "01" for part in ("blocks", "conv_head", "bn2")}


# ---- how many stages train -----------------------------------------------------------------------


def test_trainable_stages_are_counted_from_the_top():
    locked = ImageEncoder(trainable=0, pretrained=False)
    head = ImageEncoder(trainable=1, pretrained=False)
    top = ImageEncoder(trainable=3, pretrained=False)
    full = ImageEncoder(trainable=-1, pretrained=False)
    assert locked.locked
    assert not head.locked
    assert count_trainable(locked) == 0
    # the last 1x1 convolution and its batch norm
    assert count_trainable(head) == 1280 * 320 + 2 * 1280
    assert count_trainable(head) < count_trainable(top) < count_trainable(full)
    assert count_trainable(full) == sum(p.numel() for p in full.parameters())


def test_the_last_two_layers_of_the_text_tower_train():
    text = TextEncoder(trainable=2)
    layers = set()
    for name, parameter in text.model.named_parameters():
        if parameter.requires_grad:
            layers.add(name.split(".")[2])
    # of six layers
    assert layers == {"4", "5"}


@pytest.mark.parametrize("trainable", [-2, 19])
def test_more_stages_than_there_are_is_an_error(trainable):
    # The message says how many there are, and their names.
    with pytest.raises(ValueError, match=rf"18, not {trainable}.* stem, block1, .*head"):
        ImageEncoder(trainable=trainable, pretrained=False)


@pytest.mark.parametrize("trainable", [3, -1])
def test_frozen_stages_and_batch_norm_statistics_stay_bit_equal(trainable):
    encoder = ImageEncoder(trainable=trainable).train()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    optimiser = torch.optim.AdamW(encoder.parameters(), 1e-2)
    encoder(pixels(encoder)).square().mean().backward()
    optimiser.step()

    changed = set()
    for name, tensor in encoder.state_dict().items():
        if not torch.equal(tensor, before[name]):
            changed.add(name)
    assert changed == {name for name, p in encoder.named_parameters() if p.requires_grad}
    assert any("running_mean" in name for name in before)


def test_train_mode_reaches_the_top_only():
    encoder = TextEncoder(trainable=2, dropout=0.5).train()
    assert encoder.training
    layers = encoder.model.encoder.layer
    assert [layer.training for layer in layers] == [False] * 4 + [True] * 2

    # no dropout in the frozen stages, and some in the others
    ids, mask = encoder.prepare(TEXTS)
    hidden = encoder.trunk(ids, mask)
    assert torch.equal(hidden.state, encoder.trunk(ids, mask).state)
    assert not torch.equal(encoder.top(hidden, mask), encoder.top(hidden, mask))

    encoder.eval()
    assert not any(module.training for module in encoder.modules())


def test_batch_norms_never_go_into_train_mode():
    encoder = ImageEncoder(trainable=-1, pretrained=False).train()
    norms = [module for module in encoder.modules() if isinstance(module, _BatchNorm)]
    assert norms
    assert not any(norm.training for norm in norms)


def test_modules_from_a_stage_on(image, text):
    assert image.modules_from(17) == [image.model.conv_head, image.model.bn2]
    assert text.modules_from(5) == list(text.model.encoder.layer)[4:]
    assert image.modules_from(18) == []
    assert all(isinstance(module, nn.Module) for module in image.modules_from(0))


# ---- what goes in --------------------------------------------------------------------------------


def test_images_become_pixels(image, photo, tmp_path):
    path = tmp_path / "photo.png"
    photo.save(path)
    batch = image.prepare([photo, path, str(path), photo.convert("L")])
    assert batch.shape == (4, 3, 224, 224)
    assert batch.dtype == torch.float32
    assert torch.equal(batch[0], batch[1])
    assert torch.equal(batch[0], batch[2])
    # grey, in three equal channels
    assert batch[3][0].equal(batch[3][1])

    # mean and std of this tower are 0.5
    white = image.prepare([Image.new("RGB", (5, 5), "white")])
    assert white.max() == white.min() == 1.0


def test_views_are_plain_mirrored_and_repeatable_crops(image, photo):
    views = image.prepare([photo] * 5, [0, 1, 2, 2, 3], [7] * 5)
    assert torch.equal(views[1], image.prepare([ImageOps.mirror(photo)])[0])
    # but for the rounding of the resizing
    assert torch.allclose(views[1], views[0].flip(-1), atol=0.02)
    assert torch.equal(views[2], views[3])
    assert not torch.equal(views[2], views[4])
    assert not torch.equal(views[2], image.prepare([photo], [2], [8])[0])


def test_texts_become_tokens(text):
    ids, mask = text.prepare(TEXTS)
    assert ids.shape == mask.shape == (4, mask.sum(1).max())
    # longer texts are cut
    assert text.prepare(["dog " * 100])[0].shape == (1, 40)
    assert text.prepare(["dog"], "max_length")[0].shape == (1, 40)


@pytest.mark.parametrize("empty", ["", " \n", None])
def test_an_empty_text_is_named(text, empty):
    with pytest.raises(ValueError, match="Text 1"):
        text.prepare(["a dog", empty])
