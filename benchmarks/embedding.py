"""Measure how fast the pair of towers embeds images and captions.

    python benchmarks/embedding.py     writes report/results/benchmarks/embedding.json

(``make bench-embedding`` runs it.) Beside us stand transformers, open_clip and the processor's
limit, each in a process of its own. The images are files of Flickr8k's test split in three sizes:

- 224x224: as they lie in our copy of Flickr8k.
- 500x375: enlarged to Flickr8k's usual size.
- 4000x3000: enlarged to 12 megapixels, as phones take photos. Grain is added, so that a file is as
  large as a phone's: a smooth image would be decoded faster. These are fewer, for they are large.

The ways to embed them:

- ours: the shipped checkpoint's ``encode_image`` (one view) and ``encode_text``.
- ours_lite0: the same calls with the towers and weights that the other libraries have, a smaller
  image tower than the shipped one. The heads are untrained, which does not change their speed.
- hugging_face: the image processor and ``get_image_features``; the tokenizer, with each batch
  padded to its longest text, and ``get_text_features``.
- open_clip: its transform and ``encode_image``; its tokenizer, which always pads, here to 40
  tokens, and ``encode_text``.
- limit: how many items a second the processor could embed if the shipped towers ran as fast as one
  large matrix product, without any padding, with images of the shipped tower's own size.

The other two libraries read images in a DataLoader with a worker for each thread. Batches are 32
images and 128 captions, and the best of three rounds counts. Three parts are also timed alone:
decoding (one file after another), resizing (with all that turns a picture into pixels), and the
tower.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peers import MINILM, Transformed, last_line, open_clip_model, save_vision_tower
from PIL import Image, ImageChops
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

import minicliplib as mc
from minicliplib.scale.memory import keep_freed_memory

# The width and height of the images.
SIZES = {"224x224": (224, 224), "500x375": (500, 375), "4000x3000": (4000, 3000)}
PHONE_SIZE = "4000x3000"
PHONE_IMAGES = 64  # at most; two batches, one for each worker of the other libraries
PHONE_GRAIN = 8.0  # the spread of the brightness that is added; a file then has about 4 MB
IMAGES_AT_A_TIME = 32
CAPTIONS_AT_A_TIME = 128
MATRIX_SIDE = 2048


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", nargs="?", help="measure one way only, and print it")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--limit", type=int, default=256, help="how many images, and the captions of as many"
    )
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part is None:
        measure_all(options)
    else:
        with torch.no_grad():
            if options.part == "limit":
                row = processor_limit(options.limit)
            else:
                row = measure(WAYS[options.part](options.folder), options.folder, options.limit)
        print(json.dumps(row))


def measure_all(options: argparse.Namespace) -> None:
    """Measure the limit and each way, and save the result."""
    started = time.perf_counter()
    metrics = {}
    with tempfile.TemporaryDirectory() as folder:
        save_vision_tower(folder)
        write_photos(folder, options.limit)
        for name in ("limit", *WAYS):
            arguments = [__file__, name, "--limit", str(options.limit), "--folder", folder]
            metrics[name] = json.loads(last_line(arguments, options.threads))
            print(name, json.dumps(metrics[name]), flush=True)
    torch.set_num_threads(options.threads)
    mc.save_result("benchmarks", "embedding", metrics, seconds=time.perf_counter() - started)


def write_photos(folder: str, limit: int) -> None:
    """Write the photos in each size, as JPEG."""
    photos = mc.load_dataset("flickr8k", "test", limit=limit).images
    for name, size in SIZES.items():
        place = Path(folder) / name
        place.mkdir()
        count = PHONE_IMAGES if name == PHONE_SIZE else limit
        for path in photos[:count]:
            assert isinstance(path, Path)
            resized = mc.load_image(path).resize(size, Image.Resampling.BICUBIC)
            if name == PHONE_SIZE:
                resized = with_grain(resized)
            resized.save(place / path.name, quality=90)


def with_grain(picture: Image.Image) -> Image.Image:
    """Return a picture whose pixels are a little darker or brighter at random."""
    grain = Image.effect_noise(picture.size, PHONE_GRAIN).convert("RGB")  # 128 changes nothing
    return ImageChops.add(picture, grain, offset=-128)


# ---- the ways to embed --------------------------------------------------------------------------


class Way:
    """How a library is used: the parts of its path, and the whole of it."""

    def decode(self, path: Path) -> Image.Image:
        """Path -> picture."""
        return Image.open(path).convert("RGB")

    def resize(self, pictures: list[Image.Image]) -> Tensor:
        """Pictures -> pixels (B, 3, size, size), in the tower's own size."""
        raise NotImplementedError

    def image_tower(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, size, size) -> vectors (B, E)."""
        raise NotImplementedError

    def embed_images(self, paths: list[Path]) -> Any:
        """All paths -> all vectors."""
        raise NotImplementedError

    def tokenize(self, texts: list[str]) -> Any:
        """Texts -> tokens."""
        raise NotImplementedError

    def text_tower(self, tokens: Any) -> Tensor:
        """Tokens -> vectors (M, E)."""
        raise NotImplementedError

    def embed_texts(self, texts: list[str]) -> Any:
        """All texts -> all vectors."""
        raise NotImplementedError


class Ours(Way):
    """The shipped checkpoint, with one view of each image."""

    def __init__(self, folder: str):
        keep_freed_memory()
        self.model = self.load_model()

    def load_model(self) -> mc.MiniCLIP:
        """Load the shipped checkpoint."""
        return mc.load("flickr8k", "cpu")

    def decode(self, path: Path) -> Image.Image:
        """Decode a large file at a fraction of its size."""
        return mc.load_image(path, hint=self.model.image_encoder.size)

    def resize(self, pictures: list[Image.Image]) -> Tensor:
        """Squeeze each picture to a square, in threads."""
        return self.model.image_encoder.prepare(pictures)

    def image_tower(self, pixels: Tensor) -> Tensor:
        """Embed one view of each image."""
        return self.model.encode_image(pixels, tta_views=1)

    def embed_images(self, paths: list[Path]) -> Tensor:
        """Decode the next batch while the tower runs on this one."""
        return self.model.encode_image(paths, tta_views=1)

    def tokenize(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Pad a batch to its longest text."""
        return self.model.text_encoder.prepare(texts)

    def text_tower(self, tokens: tuple[Tensor, Tensor]) -> Tensor:
        """Run the tower and its projection head."""
        ids, mask = tokens
        return self.model.project_text(self.model.text_encoder.trunk(ids, mask), mask)

    def embed_texts(self, texts: list[str]) -> Tensor:
        """Sort the texts by length, which saves padding."""
        return self.model.encode_text(texts)


class OursLite0(Ours):
    """Our code with the towers of the other libraries, under untrained heads."""

    def load_model(self) -> mc.MiniCLIP:
        """Build a model with these towers."""
        towers = {"image": "efficientnet_lite0", "text": "minilm"}
        return mc.MiniCLIP(mc.Config().updated(encoders=towers)).eval()


class Peer(Way):
    """A library that has no call for many files: a loader reads them, and we cut the batches."""

    def pixels_of(self, picture: Image.Image) -> Tensor:
        """Picture -> pixels (3, 224, 224)."""
        raise NotImplementedError

    def embed_images(self, paths: list[Path]) -> list[Tensor]:
        """Read files in a worker for each thread."""

        def read(path: Path) -> Tensor:
            return self.pixels_of(self.decode(path))

        files = Transformed(paths, range(len(paths)), read)
        loader = DataLoader(files, batch_size=IMAGES_AT_A_TIME, num_workers=torch.get_num_threads())
        return [self.image_tower(pixels) for pixels, _ in loader]

    def embed_texts(self, texts: list[str]) -> list[Tensor]:
        """Take the texts in their order, batch by batch."""
        batches = in_batches(texts, CAPTIONS_AT_A_TIME)
        return [self.text_tower(self.tokenize(batch)) for batch in batches]


class HuggingFace(Peer):
    """A dual encoder of transformers."""

    def __init__(self, folder: str):
        from transformers import AutoImageProcessor, AutoTokenizer, VisionTextDualEncoderModel

        vision = f"{folder}/vision"
        model = VisionTextDualEncoderModel.from_vision_text_pretrained(vision, MINILM)
        self.model: Any = model.eval()
        self.processor = AutoImageProcessor.from_pretrained(vision)
        self.tokenizer = AutoTokenizer.from_pretrained(MINILM)

    def resize(self, pictures: list[Image.Image]) -> Tensor:
        """Call the image processor."""
        return self.processor(images=pictures, return_tensors="pt")["pixel_values"]

    def pixels_of(self, picture: Image.Image) -> Tensor:
        """Call the image processor for one picture."""
        return self.resize([picture])[0]

    def image_tower(self, pixels: Tensor) -> Tensor:
        """Call ``get_image_features``."""
        return self.model.get_image_features(pixels).pooler_output

    def tokenize(self, texts: list[str]) -> Any:
        """Pad a batch to its longest text."""
        return self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")

    def text_tower(self, tokens: Any) -> Tensor:
        """Call ``get_text_features``."""
        return self.model.get_text_features(**tokens).pooler_output


class OpenCLIP(Peer):
    """open_clip's model and its transform without augmentation."""

    def __init__(self, folder: str):
        self.model, _, self.transform, self.tokenizer = open_clip_model(folder)
        self.model.eval()

    def resize(self, pictures: list[Image.Image]) -> Tensor:
        """Transform one picture after another."""
        return torch.stack([self.transform(picture) for picture in pictures])

    def pixels_of(self, picture: Image.Image) -> Tensor:
        """Transform one picture."""
        return self.transform(picture)

    def image_tower(self, pixels: Tensor) -> Tensor:
        """Call the model's ``encode_image``."""
        return self.model.encode_image(pixels)

    def tokenize(self, texts: list[str]) -> Tensor:
        """Pad every text to 40 tokens."""
        return self.tokenizer(texts)

    def text_tower(self, tokens: Tensor) -> Tensor:
        """Call the model's ``encode_text``."""
        return self.model.encode_text(tokens)


WAYS: dict[str, Callable[[str], Way]] = {
    "ours": Ours,
    "ours_lite0": OursLite0,
    "hugging_face": HuggingFace,
    "open_clip": OpenCLIP,
}


def in_batches(items: list, size: int) -> list[list]:
    return [items[i : i + size] for i in range(0, len(items), size)]


# ---- measuring ----------------------------------------------------------------------------------


def measure(way: Way, folder: str, limit: int) -> dict[str, Any]:
    """Return items a second of one way, and the milliseconds that an item spends in each part."""
    texts = mc.load_dataset("flickr8k", "test", limit=limit).flat_captions
    row = {}
    for size in SIZES:
        row[size] = measure_images(way, mc.image_files(Path(folder) / size))
    row["captions"] = measure_texts(way, texts)
    return row


def measure_images(way: Way, paths: list[Path]) -> dict[str, Any]:
    decode, pictures = timed(lambda: [way.decode(path) for path in paths])
    batches = in_batches(pictures, IMAGES_AT_A_TIME)
    resize, pixels = timed(lambda: [way.resize(batch) for batch in batches])
    tower, _ = timed(lambda: [way.image_tower(batch) for batch in pixels])
    whole, _ = timed(lambda: way.embed_images(paths))
    return per_item(len(paths), whole, {"decode": decode, "resize": resize, "tower": tower})


def measure_texts(way: Way, texts: list[str]) -> dict[str, Any]:
    batches = in_batches(texts, CAPTIONS_AT_A_TIME)
    tokenize, tokens = timed(lambda: [way.tokenize(batch) for batch in batches])
    tower, _ = timed(lambda: [way.text_tower(batch) for batch in tokens])
    whole, _ = timed(lambda: way.embed_texts(texts))
    return per_item(len(texts), whole, {"tokenize": tokenize, "tower": tower})


def per_item(count: int, whole: float, parts: dict[str, float]) -> dict[str, Any]:
    """Turn the seconds of so many items into items a second and milliseconds an item."""
    milliseconds = {part: 1000 * seconds / count for part, seconds in parts.items()}
    return {"items_per_second": count / whole, "ms": milliseconds}


def timed(call: Callable[[], Any], rounds: int = 3) -> tuple[float, Any]:
    """Return the seconds of the quickest round, and what the last one gave."""
    seconds = []
    given = None
    for _ in range(rounds):
        given = None  # free what the last round gave, which may be large
        started = time.perf_counter()
        given = call()
        seconds.append(time.perf_counter() - started)
    return min(seconds), given


def processor_limit(limit: int) -> dict[str, Any]:
    """Return the rate of a matrix product, and how many items a second it would allow."""
    keep_freed_memory()
    model = mc.load("flickr8k", "cpu")

    # A product of two n x n matrices takes n^3 multiplications and as many additions.
    square = torch.randn(MATRIX_SIDE, MATRIX_SIDE)
    seconds, _ = timed(lambda: square @ square, rounds=10)
    rate = 2 * MATRIX_SIDE**3 / seconds

    # Count the operations of one image, and of captions one by one, so that none is padded.
    texts = mc.load_dataset("flickr8k", "test", limit=limit).flat_captions[:200]
    tokens = [model.text_encoder.prepare([text]) for text in texts]
    size = model.image_encoder.size
    image = flops(lambda: model.image_encoder(torch.zeros(1, 3, size, size)))
    text = flops(lambda: [model.text_encoder(ids, mask) for ids, mask in tokens]) / len(texts)
    return {
        "matrix_product_gflops": rate / 1e9,
        "image_size": size,
        "gflops_an_item": {"images": image / 1e9, "captions": text / 1e9},
        "items_per_second": {"images": rate / image, "captions": rate / text},
    }


def flops(call: Callable[[], object]) -> int:
    # The counter does not know the fused kernels of attention.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


if __name__ == "__main__":
    main()
