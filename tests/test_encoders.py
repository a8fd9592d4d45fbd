"""The towers: their stages add up to the whole model, frozen means frozen, and what goes in."""

import pytest
import torch
import transformers
from PIL import Image, ImageOps
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from tower_files import VOCABULARY, write_tokenizer

from minicliplib.encoders import Encoder, ImageEncoder, TextEncoder

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
        plain = encoder.pool(encoder.run(hidden, mask, encoder.frozen), mask)
        assert torch.allclose(encoder.top(hidden, mask), plain, atol=1e-5)


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
    assert torch.equal(hidden, encoder.trunk(ids, mask))
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
