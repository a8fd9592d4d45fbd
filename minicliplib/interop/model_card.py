"""Model cards: what a checkpoint is, what it learned from, what it reaches, and its limits.

A card is the ``README.md`` of a checkpoint's folder: a YAML header that the hub reads, and a page
for people (Mitchell et al. 2019, "Model Cards for Model Reporting").
"""

from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from ..config import Config
from ..paths import write_atomically

# What each dataset is, and on which terms it may be used.
DATASETS = {
    "flickr8k": (
        "Flickr8k (Hodosh et al. 2013): photos and captions for research and education only"
    ),
    "coco": (
        "MS COCO captions (Lin et al. 2014): captions CC BY 4.0, each photo under its own licence"
    ),
    "sample": "the built-in scenes, drawn from OpenMoji glyphs (CC BY-SA 4.0)",
    "folder": "a folder of the user's own images",
}
RESEARCH_ONLY = ("flickr8k", "coco")
# What each tower was pretrained on, where that matters for reading the numbers.
TOWERS = {
    "efficientnet_lite0": "EfficientNet-Lite0, pretrained on ImageNet-1k's labels",
    "efficientnet_lite1": "EfficientNet-Lite1, pretrained on ImageNet-1k's labels",
    "efficientnet_lite2": "EfficientNet-Lite2, pretrained on ImageNet-1k's labels",
    "resnet50": "ResNet-50, pretrained on ImageNet-1k's labels",
    "vit_small": "ViT-Small, pretrained on the labels of ImageNet-21k and ImageNet-1k",
    "minilm": (
        "MiniLM (all-MiniLM-L6-v2), pretrained on sentence pairs that include captions of "
        "Flickr30k and COCO"
    ),
    "distilbert": "DistilBERT, pretrained on Wikipedia and books",
    "bert_tiny": "BERT-Tiny, pretrained on Wikipedia and books",
}
TRAINED_ON_IMAGENET = (
    "efficientnet_lite0",
    "efficientnet_lite1",
    "efficientnet_lite2",
    "resnet50",
    "vit_small",
)


def write_model_card(folder: Path, config: Config, facts: dict[str, Any]) -> Path:
    """Write a checkpoint's card to ``folder/README.md`` and return the path.

    Args:
        folder: where the checkpoint lies.
        config: the settings that made it.
        facts: what the settings do not say. ``trained_on``: the training data's ``name``, and
            their numbers of ``images`` and ``captions`` (default: the config's dataset).
            ``results``: what was measured, each with ``dataset``, ``split``, the sizes of the pool
            (``images``, ``captions`` or ``classes``) and ``metrics`` from 0 to 1.

    """
    path = folder / "README.md"
    text = model_card(config, facts)
    write_atomically(path, lambda part: part.write_text(text, encoding="utf-8"))
    return path


def model_card(config: Config, facts: dict[str, Any]) -> str:
    """Return a checkpoint's card: the hub's YAML header, and the page."""
    data = {"name": config.data.name} | facts.get("trained_on", {})
    results = facts.get("results", [])
    return f"---\n{_header(data, results)}\n---\n\n{_page(config, data, results)}"


def _header(data: dict[str, Any], results: list[dict[str, Any]]) -> str:
    """Return what the hub reads, as YAML."""
    names = data["name"].split("+")
    header = ModelCardData(
        language="en",
        license="other" if _research_only(data) else None,
        license_name="research-only" if _research_only(data) else None,
        library_name="minicliplib",
        pipeline_tag="zero-shot-image-classification",
        tags=["clip", "image-text-retrieval", "contrastive-learning"],
        datasets=names,
        metrics=["recall", "accuracy"],
        model_name=f"Mini-CLIP {data['name']}",
        eval_results=_eval_results(results) or None,
    )
    return header.to_yaml()


def _eval_results(results: list[dict[str, Any]]) -> list[EvalResult]:
    """Return the measured numbers in the hub's form, in percent."""
    found = []
    for result in results:
        task = "zero-shot-image-classification" if "classes" in result else "image-text-retrieval"
        for name, value in result["metrics"].items():
            found.append(
                EvalResult(
                    task_type=task,
                    dataset_type=result["dataset"],
                    dataset_name=result["dataset"],
                    dataset_split=result["split"],
                    metric_type="accuracy" if "classes" in result else "recall",
                    metric_name=name,
                    metric_value=round(100 * value, 1),
                )
            )
    return found


def _page(config: Config, data: dict[str, Any], results: list[dict[str, Any]]) -> str:
    """Return the card's page, as Markdown."""
    encoders = config.encoders
    parts = [
        f"# Mini-CLIP `{data['name']}`",
        "Small towers for images and for text that share one space: a sentence finds its "
        "image, an image finds its caption, and class names sort images without training on "
        "labels. It follows CLIP (Radford et al. 2021, https://arxiv.org/abs/2103.00020).",
        "## Use",
        '```python\nimport minicliplib as mc\n\nmodel = mc.load("PATH OR HUB ID OF THIS FOLDER")\n'
        'mc.Index(model).add_images(["cat.jpg", "dog.jpg"]).search("a dog in the snow", k=1)\n```',
        "## Training data and terms",
        _data(data),
        "## Model and recipe",
        f"- Image tower: {_tower(encoders.image)}. {_stages(encoders.image_trainable)} "
        f"{_reads(encoders.image_reads)}\n"
        f"- Text tower: {_tower(encoders.text)}. {_stages(encoders.text_trainable)} "
        f"{_reads(encoders.text_reads)}\n"
        f"- Heads: {config.heads.kind}, {config.heads.dim} wide. The file holds the heads, the "
        "logit scale and the trained stages; the frozen stages come from the towers' own files.",
        _recipe(config),
        "## Results",
        _results(results),
        "## Limits",
        _limits(config),
    ]
    return "\n\n".join(parts) + "\n"


def _tower(name: str) -> str:
    """Return what a tower is, or several side by side."""
    return ", side by side with ".join(TOWERS.get(part, part) for part in name.split("+"))


def _reads(reads: str) -> str:
    """Return which stages the head reads, as a sentence."""
    names = reads.split("+")
    if len(names) == 1:
        return f"The head reads its {names[0]} stage."
    return f"The head reads its stages {', '.join(names)}, each pooled."


def _stages(trainable: int) -> str:
    """Return how much of a tower was trained, as a sentence."""
    if trainable == 0:
        return "All of its stages are frozen."
    if trainable == -1:
        return "All of its stages were trained."
    stages = "stage was" if trainable == 1 else f"{trainable} stages were"
    return f"Its last {stages} trained, the others are frozen."


def _research_only(data: dict[str, Any]) -> bool:
    """Return whether the terms of the training data allow research only."""
    return any(name in RESEARCH_ONLY for name in data["name"].split("+"))


def _data(data: dict[str, Any]) -> str:
    """Return what the model learned from, and what that allows."""
    lines = []
    for name in data["name"].split("+"):
        lines.append(f"- Training pairs of {DATASETS.get(name, name)}.")
    if "images" in data:
        lines.append(f"- In all {data['images']:,} images with {data['captions']:,} captions.")
    if _research_only(data):
        lines.append(
            "\nThe model learned from photos and captions that are free for research only, "
            "so use it for research and education only."
        )
    return "\n".join(lines)


def _recipe(config: Config) -> str:
    """Return the settings that matter most, as a table."""
    train = config.train
    rows = {
        "loss": config.loss.name,
        "share of soft targets": f"{config.loss.soft:g}",
        "captions of an image in a batch": train.captions_per_image,
        "images in a batch": train.batch_size,
        "epochs": train.epochs,
        "image and text features dropped": (
            f"{config.heads.image_dropout:.0%}, {config.heads.text_dropout:.0%}"
        ),
        "learning rate of heads, image tower, text tower": (
            f"{train.lr_heads:g}, {train.lr_image:g}, {train.lr_text:g}"
        ),
        "cached views of an image": config.features.views,
        "runs whose weights are averaged": train.soup,
        "views averaged in use": config.inference.tta_views,
        "seed": config.seed,
    }
    lines = ["| setting | value |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in rows.items()]
    return "\n".join(lines)


def _results(results: list[dict[str, Any]]) -> str:
    """Return the measured numbers with their pools, as a table."""
    if not results:
        return "Nothing was measured with this checkpoint yet."
    lines = ["| dataset | pool | metric | value (%) |", "|---|---|---|---|"]
    for result in results:
        sizes = []
        for kind in ("images", "captions", "classes"):
            if kind in result:
                sizes.append(f"{result[kind]:,} {kind}")
        place = f"{result['dataset']}, {result['split']} | {' × '.join(sizes)}"
        for name, value in result["metrics"].items():
            lines.append(f"| {place} | {name} | {100 * value:.1f} |")
    note = (
        "Recall@K falls as the pool grows: compare it only with numbers from a pool of the same "
        "size. The dev split chose the epoch, so numbers on it are a little too good."
    )
    return "\n".join(lines) + f"\n\n{note}"


def _limits(config: Config) -> str:
    """Return what to be careful with."""
    lines = [
        "- It knows what its captions speak of. Classes that no caption names are guessed badly.",
        "- It reads word order, numbers, left and right poorly.",
        "- Its training captions describe people by their looks, with the errors and prejudices "
        "of the people who wrote them. Do not use it to judge or to identify people.",
    ]
    if config.encoders.text == "minilm":
        lines.append(
            "- Its text tower may have read captions of Flickr8k's and COCO's test images in its "
            "own pretraining, though never with an image."
        )
    if any(name in TRAINED_ON_IMAGENET for name in config.encoders.image.split("+")):
        lines.append(
            "- Its image side was trained on ImageNet's labels, so it is not zero-shot there."
        )
    return "\n".join(lines)
