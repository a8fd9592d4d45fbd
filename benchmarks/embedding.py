"""Measure how fast the pair embeds images and captions: beside transformers and open_clip, and the processor's limit.

python benchmarks/embedding.py         writes report/results/benchmarks/embedding.json (make bench-embedding)

The same towers and weights, each way in a process of its own, on files of Flickr8k's test split as they are (224 x 224)
and on the same enlarged to 500 x 375, Flickr8k's usual size. Ours: ``encode_image`` (one look) and ``encode_text``.
hugging_face: image processor and ``get_image_features``, tokenizer (each batch padded to its longest) and
``get_text_features``. open_clip: its transform and ``encode_image``; its tokenizer (always padded, here to 40) and
``encode_text``. Both read images in a DataLoader with a worker for each thread. Batches of 32 images and 128 captions;
the best of three rounds. Decode (one file after another), resize (with all that makes pixels of pictures) and tower are
timed apart. The limit is the rate of a large matrix product over the towers' operations, without padding.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ |= {"TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false"}  # workers are forked

import torch
from peers import MINILM, Transformed, last_line, open_clip_model, save_vision_tower
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

import minicliplib as mc

SIZES = {"224x224": None, "500x375": (500, 375)}


def main(options: argparse.Namespace) -> None:
    started = time.perf_counter()
    metrics = {}
    with tempfile.TemporaryDirectory() as folder:
        save_vision_tower(folder)
        enlarge(folder, options.limit)
        for name in ("limit", *WAYS):
            arguments = [__file__, name, "--limit", str(options.limit), "--folder", folder]
            metrics[name] = json.loads(last_line(arguments, options.threads))
            print(name, json.dumps(metrics[name]), flush=True)
    torch.set_num_threads(options.threads)
    mc.save_result("benchmarks", "embedding", metrics, seconds=time.perf_counter() - started)


def enlarge(folder: str, limit: int) -> None:
    """Write the photos in each size, as JPEG."""
    for name, size in SIZES.items():
        (Path(folder) / name).mkdir()
        for path in mc.load_dataset("flickr8k", "test", limit=limit).images:
            picture = mc.load_image(path)
            picture.resize(size or picture.size, Image.Resampling.BICUBIC).save(
                Path(folder) / name / path.name, quality=90
            )


@dataclass
class Way:
    """How one library is used: the parts of its path, and the whole of it."""

    decode: Callable  # path -> picture
    resize: Callable  # pictures -> pixels (B, 3, 224, 224)
    image_tower: Callable  # pixels (B, 3, 224, 224) -> vectors
    images: Callable  # paths -> vectors
    tokenize: Callable  # texts -> tokens
    text_tower: Callable  # tokens -> vectors
    texts: Callable  # texts -> vectors


def ours(folder: str) -> Way:
    model = mc.load("flickr8k", "cpu")
    image, text = model.image_encoder, model.text_encoder
    return Way(
        decode=lambda path: mc.load_image(path, hint=image.size),
        resize=image.prepare,
        image_tower=lambda pixels: model.encode_image(pixels, tta_views=1),
        images=lambda paths: model.encode_image(paths, tta_views=1),
        tokenize=text.prepare,
        text_tower=lambda tokens: model.project_text(text.trunk(*tokens), tokens[1]),
        texts=model.encode_text,
    )


def hugging_face(folder: str) -> Way:
    from transformers import AutoImageProcessor, AutoTokenizer, VisionTextDualEncoderModel

    model = VisionTextDualEncoderModel.from_vision_text_pretrained(
        f"{folder}/vision", MINILM
    ).eval()
    processor, tokenizer = (
        AutoImageProcessor.from_pretrained(f"{folder}/vision"),
        AutoTokenizer.from_pretrained(MINILM),
    )
    resize = lambda pictures: processor(images=pictures, return_tensors="pt")["pixel_values"]
    image_tower = lambda pixels: model.get_image_features(pixels).pooler_output
    tokenize = lambda texts: tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    text_tower = lambda tokens: model.get_text_features(**tokens).pooler_output
    pixels_of = lambda picture: resize([picture])[0]
    return Way(
        decode=decode,
        resize=resize,
        image_tower=image_tower,
        images=lambda paths: [image_tower(pixels) for pixels, _ in loaded(paths, pixels_of)],
        tokenize=tokenize,
        text_tower=text_tower,
        texts=lambda texts: [text_tower(tokenize(batch)) for batch in batches(texts, 128)],
    )


def open_clip(folder: str) -> Way:
    model, _, transform, tokenizer = open_clip_model(folder)
    model.eval()
    return Way(
        decode=decode,
        resize=lambda pictures: torch.stack(list(map(transform, pictures))),
        image_tower=model.encode_image,
        images=lambda paths: [model.encode_image(pixels) for pixels, _ in loaded(paths, transform)],
        tokenize=tokenizer,
        text_tower=model.encode_text,
        texts=lambda texts: [model.encode_text(tokenizer(batch)) for batch in batches(texts, 128)],
    )


WAYS = {"ours": ours, "hugging_face": hugging_face, "open_clip": open_clip}


def loaded(paths: list[Path], pixels_of: Callable) -> DataLoader:
    files = Transformed(paths, range(len(paths)), lambda path: pixels_of(decode(path)))
    return DataLoader(files, batch_size=32, num_workers=torch.get_num_threads())


def decode(path: Path) -> Image.Image:
    return Image.open(path).convert("RGB")


def batches(items: list, size: int) -> list:
    return [items[i : i + size] for i in range(0, len(items), size)]


def measure(name: str, folder: str, limit: int) -> dict:
    """Return items a second of one way, and the milliseconds that an item spends in each part."""
    way, texts = WAYS[name](folder), mc.load_dataset("flickr8k", "test", limit=limit).flat_captions
    row = {size: measure_images(way, mc.image_files(f"{folder}/{size}")) for size in SIZES}
    tokenize, tokens = timed(lambda: [way.tokenize(batch) for batch in batches(texts, 128)])
    tower, _ = timed(lambda: [way.text_tower(batch) for batch in tokens])
    whole, _ = timed(lambda: way.texts(texts))
    parts = {"tokenize": 1000 * tokenize / len(texts), "tower": 1000 * tower / len(texts)}
    return row | {"captions": {"items_per_second": len(texts) / whole, "ms": parts}}


def measure_images(way: Way, paths: list[Path]) -> dict:
    decoded, pictures = timed(lambda: [way.decode(path) for path in paths])
    resized, pixels = timed(lambda: [way.resize(batch) for batch in batches(pictures, 32)])
    tower, _ = timed(lambda: [way.image_tower(batch) for batch in pixels])
    whole, _ = timed(lambda: way.images(paths))
    parts = {"decode": decoded, "resize": resized, "tower": tower}
    return {
        "items_per_second": len(paths) / whole,
        "ms": {k: 1000 * s / len(paths) for k, s in parts.items()},
    }


def timed(call: Callable, rounds: int = 3) -> tuple[float, object]:
    """Return the seconds of the quickest round, and what the last one gave."""
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        given = call()
        seconds.append(time.perf_counter() - started)
    return min(seconds), given


def limit(limit: int) -> dict:
    """Return the rate of a matrix product, the towers' operations an item, and the items a second that follow."""
    model, square = mc.load("flickr8k", "cpu"), torch.randn(2048, 2048)
    rate = 2 * 2048**3 / timed(lambda: square @ square, 10)[0]
    texts = mc.load_dataset("flickr8k", "test", limit=limit).flat_captions[:200]
    tokens = [model.text_encoder.prepare([text]) for text in texts]
    image = flops(lambda: model.image_encoder(torch.zeros(1, 3, 224, 224)))
    text = flops(lambda: [model.text_encoder(*pair) for pair in tokens]) / len(texts)
    return {
        "matrix_product_gflops": rate / 1e9,
        "gflops_an_item": {"images": image / 1e9, "captions": text / 1e9},
        "items_per_second": {"images": rate / image, "captions": rate / text},
    }


def flops(call) -> int:
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", nargs="?", help="one way only")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--limit", type=int, default=256, help="how many images, and the captions of as many"
    )
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        with torch.no_grad():
            one = (
                limit(options.limit)
                if options.part == "limit"
                else measure(options.part, options.folder, options.limit)
            )
            print(json.dumps(one))
    else:
        main(options)
