"""Training: every epoch costs only the trainable tops, since the frozen trunks' outputs are cached.

A run is a folder: ``config.json`` + ``model.safetensors`` (the best epoch by dev mean recall), ``history.csv``, and
``state.safetensors`` (the last epoch, to resume from). All random draws of an epoch follow from the seed,
``train.shuffle`` and the epoch's number, so a resumed run repeats an unbroken one.
"""

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list
from filelock import FileLock
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm

from .config import Config, data_root, no_bar, set_seed, write_atomically
from .data import CaptionedImages, load_dataset
from .loss import contrastive_loss
from .metrics import alignment, modality_gap, ranks_from_embeddings, summarise, uniformity
from .model import MiniCLIP, best_device, load
from .trunk import TrunkOutputs

try:
    import resource
except ImportError:  # Windows
    resource = None


@dataclass
class Run:
    """What ``fit`` returns: the best model, where its files lie, and the history (of a soup: its first run's)."""

    model: MiniCLIP
    folder: Path
    history: pd.DataFrame


def run_folder(config: Config) -> Path:
    """Return where the run of a config lies: ``data_root()/runs/<dataset>-<digest of the config>``."""
    return data_root() / "runs" / f"{config.data.name}-{config.digest()}"


def fit(
    config: Config,
    folder: str | Path | None = None,
    train: CaptionedImages | None = None,
    dev: CaptionedImages | None = None,
    cache: bool = True,
    progress: bool = True,
    on_epoch: Callable[[pd.DataFrame], None] | None = None,
) -> Run:
    """Train a Mini-CLIP, keeping the epoch with the best dev mean recall; resume where a run was cut off.

    A finished run is loaded, not trained again; of two calls for one run the second waits for the first.

    Args:
        config: everything that makes the run.
        folder: where the run lies (default: :func:`run_folder`).
        train: pairs to learn from (default: the config's dataset, split "train").
        dev: pairs to choose the epoch on (default: split "dev"); never the test split.
        cache: run the frozen trunks once instead of in every step.
        progress: show progress bars.
        on_epoch: called with the history after each epoch, e.g. to redraw curves.

    Raises:
        ValueError: a setting does not fit the data or is unknown, or the folder holds another run.

    """
    folder, alone = Path(folder or run_folder(config)), os.environ.get("WORLD_SIZE", "1") == "1"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock") if alone else nullcontext():  # processes of one run must not wait for each other
        AcceleratorState._reset_state()  # or it would refuse another precision than that of an earlier run
        accelerator = Accelerator(mixed_precision=config.train.precision, cpu=best_device() == "cpu")
        train_it, progress = _soup if config.train.soup > 1 else _fit, progress and accelerator.is_main_process
        return train_it(config, folder, accelerator, train, dev, cache, progress, on_epoch)


def _fit(config: Config, folder: Path, accelerator: Accelerator, train, dev, cache, progress, on_epoch) -> Run:
    history = _read_history(folder, config)
    if history and _finished(history, config):
        return Run(load(folder), folder, pd.DataFrame(history))
    source = asdict(config.data) | {"on_bad": "skip" if "folder" in config.data.name.split("+") else "raise"}
    train = train or load_dataset(split="train", **source)
    dev = dev or load_dataset(split="dev", **source)
    _check(config, train, accelerator)
    set_seed(config.seed)
    model = MiniCLIP(config).to(accelerator.device)
    learner = Learner(config, model, accelerator, TrunkOutputs(model, train, config.train.views, cache, progress))
    dev_outputs = TrunkOutputs(model, dev, 1, cache, progress)
    if history:
        learner.load_state(folder / "state.safetensors", len(history))
    try:
        total = config.train.epochs * learner.steps
        with tqdm(total=total, initial=learner.step, disable=no_bar(progress)) as bar:
            while not _finished(history, config):
                row = learner.train_epoch(len(history), bar, max((r["dev_mean_recall"] for r in history), default=0))
                with learner.averaged_weights():
                    if accelerator.is_main_process:
                        row |= dev_recalls(model, dev_outputs)
                    [row] = broadcast_object_list([row])  # all processes stop after the same epoch
                    history.append(row)
                    if accelerator.is_main_process and _best(history) == len(history) - 1:
                        model.save(folder)
                if accelerator.is_main_process:
                    learner.save_state(folder / "state.safetensors", history)
                    pd.DataFrame(history).to_csv(folder / "history.csv", index=False)
                if on_epoch:
                    on_epoch(pd.DataFrame(history))
    except KeyboardInterrupt:
        print(f"Stopped after epoch {len(history)}. The same call goes on from there: {folder}")
        raise
    accelerator.wait_for_everyone()  # the main process may still be writing
    return Run(load(folder, accelerator.device), folder, pd.DataFrame(history))


def _soup(config: Config, folder: Path, accelerator: Accelerator, *options) -> Run:
    """Average the best weights of runs from one start, which lie in one valley: better than any, at the cost of one."""
    runs, first = [], config.train.shuffle * config.train.soup
    _read_history(folder, config)  # refuses a folder that holds another run
    at_home = folder == run_folder(config)  # where others look for a run, too
    for k in range(config.train.soup):
        one = config.updated(**{"train.soup": 1, "train.shuffle": first + k})
        runs.append(fit(one, None if at_home else folder / f"run{k}", *options))
    model, states = MiniCLIP(config), [run.model.cpu().learned_state() for run in runs]
    model.load_learned_state({name: torch.stack([s[name] for s in states]).mean(0) for name in states[0]})
    if accelerator.is_main_process:
        model.save(folder)
        histories = pd.concat([run.history.assign(run=k) for k, run in enumerate(runs)])
        histories.to_csv(folder / "history.csv", index=False)
    accelerator.wait_for_everyone()
    return Run(load(folder, accelerator.device), folder, runs[0].history)


def _check(config: Config, train: CaptionedImages, accelerator: Accelerator) -> None:
    """Refuse now, in one sentence, what would fail after minutes."""
    processes = accelerator.num_processes
    settings, per_image, size = config.train, config.loss.captions_per_image, config.train.batch_size
    for name in ("epochs", "patience", "views", "soup"):
        if getattr(settings, name) < 1:
            raise ValueError(f"train.{name} must be 1 or more, not {getattr(settings, name)}.")
    for name in ("temperature", "soft_temperature", "max_scale"):
        if getattr(config.loss, name) <= 0:
            raise ValueError(f"loss.{name} must be above 0, not {getattr(config.loss, name)}.")
    if not 0 <= config.loss.soft <= 1:
        raise ValueError(f"loss.soft is a share, from 0 to 1, not {config.loss.soft}.")
    if settings.cache_dtype not in ("float16", "float32"):
        raise ValueError(f"train.cache_dtype must be float16 or float32, not {settings.cache_dtype!r}.")
    if not 2 <= size <= len(train):
        raise ValueError(f"train.batch_size must be 2 to {len(train)}, the number of training images, not {size}.")
    if settings.chunk_size and settings.precision == "fp16":
        raise ValueError("train.chunk_size does not go with fp16, whose gradients are scaled: use bf16.")
    if size % processes:
        raise ValueError(f"train.batch_size must be a multiple of {processes}, the number of processes, not {size}.")
    fewest = min(map(len, train.captions))
    if not 1 <= per_image <= fewest:
        raise ValueError(f"An image of {train.name!r} has {fewest} captions; loss.captions_per_image is {per_image}.")
    two = torch.eye(2, device=accelerator.device)
    texts = torch.arange(2, device=two.device).repeat_interleave(per_image)
    contrastive_loss(config.loss.name, two, two[texts], two[0, 0], texts)


def _peak_gib() -> float:
    """Return the most memory that this process has held, in GiB (on Linux; macOS counts in bytes, not KiB)."""
    unit = 2**30 if sys.platform == "darwin" else 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit if resource else float("nan")


def _best(history: list[dict]) -> int:
    return int(np.argmax([row["dev_mean_recall"] for row in history]))


def _finished(history: list[dict], config: Config) -> bool:
    stale = len(history) - 1 - _best(history) if history else 0
    return len(history) >= config.train.epochs or stale >= config.train.patience


def _read_history(folder: Path, config: Config) -> list[dict]:
    """Return the rows so far, none of a soup; refuse a folder that holds a run of another config."""
    made, state = folder / "config.json", folder / "state.safetensors"
    if not made.exists():
        return []
    record = safe_open(state, "pt").metadata() if state.exists() else {}
    own = Config.from_dict(json.loads(made.read_text())["config"]).to_dict() == config.to_dict()
    if not own or record.get("digest", config.digest()) != config.digest():
        raise ValueError(f"{folder} holds a run of another config: name another folder, or delete this one.")
    return json.loads(record.get("history", "[]"))


def epoch_batches(config: Config, outputs: TrunkOutputs, epoch: int) -> Iterator[tuple[np.ndarray, ...]]:
    """Yield an epoch's batches as ``(image rows, views, caption rows, owner)``, each image once in an epoch.

    The last, smaller batch is left out: its loss would have another ln(B).
    """
    rng = np.random.default_rng([config.draws, epoch])
    size, per_image, first = config.train.batch_size, config.loss.captions_per_image, outputs.first
    order = rng.permutation(len(outputs.data))
    for start in range(0, len(order) - size + 1, size):
        rows = order[start : start + size]
        captions = [first[i] + rng.choice(first[i + 1] - first[i], per_image, replace=False) for i in rows]
        views = rng.integers(config.train.views, size=size)
        yield rows, views, np.concatenate(captions), np.repeat(np.arange(size), per_image)


def augment(config: Config, image: Tensor, mask: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Vary cached states for free: a random window of a convolution map (B, C, H, W), and hidden words."""
    if config.train.map_crop < 1 and image.ndim == 4:
        height, width = (round(side * config.train.map_crop) for side in image.shape[-2:])
        y, x = rng.integers(image.shape[-2] - height + 1), rng.integers(image.shape[-1] - width + 1)
        image = image[:, :, y : y + height, x : x + width]
        image = image.flip(-1) if rng.random() < 0.5 else image
    if config.train.word_dropout:
        keep = torch.from_numpy(rng.random(mask.shape) >= config.train.word_dropout).to(mask)
        keep[:, 0] = 1  # never a caption without a token
        mask = mask * keep
    return image, mask


def two_pass_backward(config: Config, model: MiniCLIP, image, text, mask, owner, meaning=None) -> Tensor:
    """Compute a batch's loss and gradients holding one chunk's activations only (GradCache, Gao et al. 2021).

    First all vectors without a graph, then the loss's gradient at the vectors (and at the logit scale, once), then
    each chunk again with the same dropout, receiving its part of that gradient.
    """
    size = config.train.chunk_size
    edges = torch.searchsorted(owner, torch.arange(0, len(image) + size, size, device=owner.device)).tolist()
    chunks = [(slice(i * size, (i + 1) * size), slice(*edges[i : i + 2])) for i in range(len(edges) - 1)]
    vectors, random_states, generators = [], [], [torch]
    if image.device.type != "cpu":
        generators.append(torch.get_device_module(image.device))
    with torch.no_grad():
        for rows, texts in chunks:
            random_states.append([generator.get_rng_state() for generator in generators])
            vectors.append(model(image[rows], text[texts], mask[texts])[:2])
    image_vectors, text_vectors = (torch.cat(part).requires_grad_() for part in zip(*vectors, strict=True))
    loss = _loss(config, image_vectors, text_vectors, model.scale(), owner, meaning)
    loss.backward()
    for (rows, texts), states in zip(chunks, random_states, strict=True):
        for generator, state in zip(generators, states, strict=True):
            generator.set_rng_state(state)
        part = model(image[rows], text[texts], mask[texts])[:2]
        torch.autograd.backward(part, [image_vectors.grad[rows], text_vectors.grad[texts]])
    return loss.detach()


def _loss(config: Config, image, text, scale, owner, meaning) -> Tensor:
    settings = config.loss
    return contrastive_loss(settings.name, image, text, scale, owner, meaning, settings.soft, settings.soft_temperature)


class Learner:
    """The optimiser's side of a run: learning rates, averaged weights, one epoch at a time."""

    def __init__(self, config: Config, model: MiniCLIP, accelerator: Accelerator, outputs: TrunkOutputs):
        self.config, self.model, self.accelerator, self.outputs = config, model, accelerator, outputs
        self.steps, self.step = len(outputs.data) // config.train.batch_size, 0
        self.log_batch = math.log(config.train.batch_size)  # the loss of a model that has learned nothing
        optimiser = torch.optim.AdamW(parameter_groups(config, model), betas=(0.9, 0.98))
        self.wrapped, self.optimiser = accelerator.prepare(model, optimiser)
        self.meanings = outputs.meanings() if config.loss.soft else None
        self.average = {n: p.clone() for n, p in model.learned_state().items()} if config.train.average else {}

    def train_epoch(self, epoch: int, bar: tqdm, best: float) -> dict:
        """Run one epoch and return its row of history; ``seconds`` counts training only."""
        losses, started = [], time.perf_counter()
        rng = np.random.default_rng([self.config.draws, epoch, 1])
        torch.manual_seed(self.config.draws * 100_003 + epoch + 1009 * self.accelerator.process_index)  # dropout
        self.model.train()
        for batch in epoch_batches(self.config, self.outputs, epoch):
            losses.append(self.train_step(*self._share(*batch), rng))
            bar.update()
            shown = f"epoch {epoch + 1} loss {np.mean(losses):.3f} (no learning {self.log_batch:.2f})"
            bar.set_postfix_str(f"{shown} scale {self.model.scale().item():.1f} best dev {best:.1%}")
        self.model.eval()
        return {
            "epoch": epoch + 1,
            "loss": float(np.mean(losses)),
            "log_batch": self.log_batch,
            "logit_scale": self.model.scale().item(),
            "seconds": time.perf_counter() - started,
            "peak_gib": _peak_gib(),
        }

    def train_step(self, rows, views, captions, owner, rng: np.random.Generator) -> float:
        """Take one optimiser step on a batch of :func:`epoch_batches`; return its loss."""
        text, mask = self.outputs.text_batch(captions)
        image, mask = augment(self.config, self.outputs.image_batch(rows, views), mask, rng)
        owner = torch.from_numpy(owner).to(image.device)
        meaning = None if self.meanings is None else torch.from_numpy(self.meanings[captions]).to(image.device)
        if self.config.train.chunk_size:
            loss = two_pass_backward(self.config, self.model, image, text, mask, owner, meaning)
            for parameter in [p for p in self.model.parameters() if p.grad is not None]:
                parameter.grad = self.accelerator.reduce(parameter.grad, "mean")  # as DistributedDataParallel does
        else:
            loss = _loss(self.config, *self.wrapped(image, text, mask), owner, meaning)
            self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.train.clip_norm)
        for group in self.optimiser.param_groups:
            group["lr"] = group["peak"] * self._warmup_and_cosine()
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.model.bound_scale()
        self.step += 1
        for name, mean in self.average.items():
            decay = min(self.config.train.average, self.step / (9 + self.step))  # a short memory at the start
            mean.lerp_(self.model.get_parameter(name).detach(), 1 - decay)
        return loss.item()

    def _warmup_and_cosine(self) -> float:
        total = self.steps * self.config.train.epochs
        warmup = max(1, round(self.config.train.warmup * total))
        return min((self.step + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * max(0, self.step - warmup) / total))

    def _share(self, *arrays: np.ndarray) -> list[np.ndarray]:
        """Cut this process's part out of a batch; the whole batch where there is one process."""
        processes, mine = self.accelerator.num_processes, self.accelerator.process_index
        *parts, owner = (np.array_split(array, processes)[mine] for array in arrays)
        return [*parts, owner - owner.min()]

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Put the averaged weights into the model for a while; without averaging, change nothing."""
        current = {name: self.model.get_parameter(name).detach().clone() for name in self.average}
        self.model.load_state_dict(self.average, strict=False)
        try:
            yield
        finally:
            self.model.load_state_dict(current, strict=False)

    def save_state(self, path: Path, history: list[dict]) -> None:
        """Write all that the next epoch needs, in full precision: weights, averages, Adam's moments and history."""
        tensors = {f"model.{n}": t for n, t in self.model.learned_state().items()}
        tensors |= {f"average.{n}": t for n, t in self.average.items()}
        for index, moments in self.optimiser.state_dict()["state"].items():
            tensors |= {f"adam.{index}.{name}": value for name, value in moments.items()}
        record = {"digest": self.config.digest(), "history": json.dumps(history)}
        tensors = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
        write_atomically(path, lambda part: save_file(tensors, part, metadata=record))

    def load_state(self, path: Path, epochs: int) -> None:
        """Take up what ``save_state`` wrote after so many epochs."""
        tensors, optimiser = load_file(path), self.optimiser.state_dict()
        part = lambda prefix: {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        self.model.load_learned_state(part("model."))
        for name, mean in part("average.").items():
            self.average[name].copy_(mean)
        for name, value in part("adam.").items():
            index, moment = name.split(".")
            optimiser["state"].setdefault(int(index), {})[moment] = value
        self.optimiser.load_state_dict(optimiser)
        self.step = epochs * self.steps


def parameter_groups(config: Config, model: MiniCLIP) -> list[dict]:
    """Group what trains by learning rate (image top, text top, heads) and by weight decay (matrices only)."""
    rates = {"image_encoder": config.train.lr_image, "text_encoder": config.train.lr_text}
    groups: dict[tuple, list] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            rate = rates.get(name.split(".")[0], config.train.lr_heads)
            groups.setdefault((rate, config.train.weight_decay * (parameter.ndim > 1)), []).append(parameter)
    return [{"params": p, "lr": rate, "peak": rate, "weight_decay": decay} for (rate, decay), p in groups.items()]


@torch.inference_mode()
def embed(model: MiniCLIP, outputs: TrunkOutputs, batch_size: int = 200) -> tuple[Tensor, Tensor]:
    """Embed a dataset from its trunk outputs, plain view: images (N, E) and captions (M, E), unit length."""
    model.eval()
    chunks = lambda n: np.array_split(np.arange(n), math.ceil(n / batch_size))
    images = [model.project_image(outputs.image_batch(rows)) for rows in chunks(len(outputs.data))]
    captions = [model.project_text(*outputs.text_batch(rows)) for rows in chunks(len(outputs.captions))]
    return torch.cat(images), torch.cat(captions)


def dev_recalls(model: MiniCLIP, outputs: TrunkOutputs) -> dict:
    """Return a flat row over the whole split: ``dev_mean_recall``, the six recalls that it averages, and the geometry.

    Geometry is measured on the images and the first caption of each: alignment, uniformity and modality gap.
    """
    images, captions = embed(model, outputs)
    scores = summarise(ranks_from_embeddings(images, captions, outputs.data.owner), len(outputs.data))
    row = {"dev_mean_recall": scores["mean_recall"]}
    for way, short in (("image_to_text", "i2t"), ("text_to_image", "t2i")):
        row |= {f"dev_{short}_{name}": value for name, value in scores[way].items() if name.startswith("R@")}
    firsts = captions[np.unique(outputs.data.owner, return_index=True)[1]]
    row |= {"alignment": alignment(images, firsts), "modality_gap": modality_gap(images, firsts)}
    return row | {"uniformity_image": uniformity(images), "uniformity_text": uniformity(firsts)}
