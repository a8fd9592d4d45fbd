"""Training: the frozen trunks run once and are cached, then every epoch costs only the trainable tops.

A run is a folder: ``config.json`` + ``model.safetensors`` (the best epoch by dev mean recall),
``history.csv``, and ``state.safetensors`` + ``state.json`` (the last epoch, to resume from). All random
draws of an epoch follow from the seed and the epoch's number, so a resumed run repeats an unbroken one.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from filelock import FileLock
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm

from .config import Config, data_root, hidden, set_seed
from .data import CaptionedImages, load_dataset
from .loss import contrastive_loss
from .metrics import ranks_from_embeddings, summarise
from .model import MiniCLIP, load, write_atomically

IN_MEMORY = 2 * 2**30  # bytes; a larger cached array stays on disk, memory-mapped


# ---- the trunk's outputs ---------------------------------------------------------------------------


class TrunkOutputs:
    """Hidden states of a dataset's images and captions at the point where the trainable tops begin.

    With ``cache`` the trunks run once per view: the arrays are kept in half precision under
    ``data_root()/cache``, read into memory when small and memory-mapped when not. Without it they run on
    every call, which is what the cache is tested and timed against.
    """

    def __init__(self, model: MiniCLIP, data: CaptionedImages, views: int = 1, cache=True, progress=True):
        self.model, self.data, self.cache = model, data, cache
        self.captions = data.flat_captions
        self.first = np.searchsorted(
            data.owner, np.arange(len(data) + 1)
        )  # captions of i: first[i]:first[i+1]
        self.images = self.tokens = self.starts = None
        if cache:
            self._dtype = np.dtype(model.config.train.cache_dtype)
            folder = data_root() / "cache"
            folder.mkdir(parents=True, exist_ok=True)
            self.images = [self._cached_view(folder, view, progress) for view in range(views)]
            self.tokens, self.starts = self._cached_tokens(folder, progress)

    def image_batch(self, rows: np.ndarray, views: np.ndarray | None = None) -> Tensor:
        """Rows of images, each in its view (default: plain) -> hidden states (B, ...)."""
        views = np.zeros(len(rows), int) if views is None else views
        if self.cache:
            hidden = np.stack([self.images[v][i] for v, i in zip(views, rows, strict=True)])
            return torch.from_numpy(hidden).to(self.model.device).float()
        pixels = self.model.image_encoder.prepare([self.data.images[i] for i in rows], views, list(rows))
        return self.model.image_encoder.trunk(pixels)

    def text_batch(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Rows of captions -> hidden states (B, T, D), padded, and mask (B, T)."""
        if not self.cache:
            ids, mask = self.model.text_encoder.prepare([self.captions[j] for j in rows])
            return _as_sequence(self.model.text_encoder.trunk(ids, mask), mask)
        lengths = self.starts[rows + 1] - self.starts[rows]
        hidden = np.zeros((len(rows), lengths.max(), self.tokens.shape[1]), self._dtype)
        for row, (j, n) in enumerate(zip(rows, lengths, strict=True)):
            hidden[row, :n] = self.tokens[self.starts[j] : self.starts[j] + n]
        mask = torch.from_numpy(np.arange(hidden.shape[1]) < lengths[:, None])
        return torch.from_numpy(hidden).to(self.model.device).float(), mask.to(self.model.device).long()

    def _cached_view(self, folder: Path, view: int, progress: bool) -> np.ndarray:
        encoder, data = self.model.image_encoder, self.data
        key = _digest(self._setting("image"), view, *map(_image_identity, data.images))
        path = folder / f"{data.name}-{data.split}-view{view}-{key}.npy"

        def fill(part: Path):
            out = None
            bar = tqdm(total=len(data), desc=f"{data.split} images, view {view}", disable=hidden(progress))
            for start in range(0, len(data), 16):  # small batches stay in the processor's cache
                rows = range(start, min(start + 16, len(data)))
                hidden = encoder.trunk(
                    encoder.prepare([data.images[i] for i in rows], [view] * len(rows), rows)
                )
                if out is None:
                    shape = (len(data), *hidden.shape[1:])
                    out = np.lib.format.open_memmap(part, "w+", self._dtype, shape)
                out[start : rows.stop] = hidden.cpu().numpy()
                bar.update(len(rows))
            bar.close()
            out.flush()

        return _stored(path, fill)

    def _cached_tokens(self, folder: Path, progress: bool) -> tuple[np.ndarray, np.ndarray]:
        encoder = self.model.text_encoder
        key = _digest(self._setting("text"), *self.captions)
        path = folder / f"{self.data.name}-{self.data.split}-tokens-{key}.npy"
        starts_path = path.with_name(path.name.replace("-tokens-", "-starts-"))

        def fill(part: Path):
            states: list = [None] * len(self.captions)
            order = np.argsort([len(text) for text in self.captions], kind="stable")  # little padding
            bar = tqdm(total=len(order), desc=f"{self.data.split} captions", disable=hidden(progress))
            for start in range(0, len(order), 128):
                rows = order[start : start + 128]
                ids, mask = encoder.prepare([self.captions[j] for j in rows])
                hidden, mask = _as_sequence(encoder.trunk(ids, mask), mask)
                for j, state, length in zip(rows, hidden.cpu().numpy(), mask.sum(1).tolist(), strict=True):
                    states[j] = state[:length].astype(self._dtype)
                bar.update(len(rows))
            bar.close()
            starts = np.cumsum([0, *map(len, states)])
            write_atomically(starts_path, lambda p: _save_array(p, starts))
            _save_array(part, np.concatenate(states))

        return _stored(path, fill), np.load(starts_path)

    def _setting(self, tower: str) -> str:
        encoders, frozen = self.model.config.encoders, getattr(self.model, f"{tower}_encoder").frozen
        return f"{getattr(encoders, tower)} {frozen} {encoders.max_tokens} {self._dtype}"


def _as_sequence(hidden: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Make a locked tower's pooled features (B, D) look like sequences of one token (B, 1, D)."""
    return (hidden, mask) if hidden.ndim == 3 else (hidden.unsqueeze(1), torch.ones_like(mask[:, :1]))


def _image_identity(image) -> str:
    if isinstance(image, str | Path):
        stat = Path(image).stat()
        return f"{Path(image).name} {stat.st_size} {stat.st_mtime_ns}"
    return hashlib.sha256(image.tobytes()).hexdigest()


def _digest(*parts) -> str:
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:12]


def _save_array(path: Path, array: np.ndarray) -> None:
    with open(path, "wb") as file:  # np.save would add .npy to the name
        np.save(file, array)


def _stored(path: Path, fill: Callable[[Path], None]) -> np.ndarray:
    with FileLock(f"{path}.lock"):  # two notebooks may want the same trunk outputs at once
        if not path.exists():
            write_atomically(path, fill)
    return np.load(path, mmap_mode=None if path.stat().st_size <= IN_MEMORY else "r")


# ---- one epoch -------------------------------------------------------------------------------------


def epoch_batches(config: Config, outputs: TrunkOutputs, epoch: int):
    """Yield an epoch's batches as ``(image rows, views, caption rows, owner)``.

    Every image stands once in an epoch, with random captions of its own and a random view; the draws follow
    from ``(seed, epoch)``. The last, smaller batch is left out: its loss would have another ln(B).
    """
    rng = np.random.default_rng([config.seed, epoch])
    n, size, per_image = len(outputs.data), config.train.batch_size, config.loss.captions_per_image
    order = rng.permutation(n)
    for start in range(0, n - size + 1, size):
        rows = order[start : start + size]
        views = rng.integers(config.train.views, size=size)
        texts = [
            outputs.first[i] + rng.choice(outputs.first[i + 1] - outputs.first[i], per_image, replace=False)
            for i in rows
        ]
        yield rows, views, np.concatenate(texts), np.repeat(np.arange(size), per_image)


def augment(config: Config, image: Tensor, mask: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Vary cached states for free: a random window of a convolution map (B, C, H, W), and hidden words."""
    if config.train.map_crop < 1 and image.ndim == 4:
        height, width = (round(side * config.train.map_crop) for side in image.shape[-2:])
        y, x = (int(rng.integers(s - w + 1)) for s, w in zip(image.shape[-2:], (height, width), strict=True))
        image = image[:, :, y : y + height, x : x + width]
        if rng.random() < 0.5:
            image = image.flip(-1)
    if config.train.word_dropout:
        keep = torch.from_numpy(rng.random(mask.shape) >= config.train.word_dropout).to(mask)
        keep[:, 0] = 1  # never a caption without a token
        mask = mask * keep
    return image, mask


def backward(config: Config, model, batch, accelerator: Accelerator) -> float:
    """Compute the loss of one batch of trunk outputs and its gradients; return the loss."""
    image, text, mask, owner = batch
    if config.train.chunk_size:
        return two_pass_backward(config, accelerator.unwrap_model(model), batch)
    loss = contrastive_loss(config.loss.name, *model(image, text, mask), owner)
    accelerator.backward(loss)
    return loss.item()


def two_pass_backward(config: Config, model: MiniCLIP, batch) -> float:
    """Do the same in chunks, holding the activations of one chunk only (GradCache, Gao et al. 2021).

    First all vectors without a graph, then the loss's gradient at the vectors (and at the logit scale, once),
    then each chunk again with the same dropout, receiving its part of that gradient. The result is the
    whole batch's gradient, where summing chunk losses would lose the negatives between chunks.
    """
    image, text, mask, owner = batch
    cuts = range(0, len(image), config.train.chunk_size)
    chunks = [
        (slice(a, a + config.train.chunk_size), _captions_of(owner, a, config.train.chunk_size)) for a in cuts
    ]
    vectors, random_states = [], []
    with torch.no_grad():
        for rows, texts in chunks:
            random_states.append(torch.get_rng_state())
            vectors.append(model(image[rows], text[texts], mask[texts])[:2])
    image_vectors, text_vectors = (torch.cat(part).requires_grad_() for part in zip(*vectors, strict=True))
    loss = contrastive_loss(config.loss.name, image_vectors, text_vectors, model.scale(), owner)
    loss.backward()
    for (rows, texts), state in zip(chunks, random_states, strict=True):
        torch.set_rng_state(state)
        part = model(image[rows], text[texts], mask[texts])[:2]
        torch.autograd.backward(part, [image_vectors.grad[rows], text_vectors.grad[texts]])
    return loss.item()


def _captions_of(owner: Tensor, start: int, count: int) -> slice:
    first, last = torch.searchsorted(
        owner, torch.tensor([start, start + count], device=owner.device)
    ).tolist()
    return slice(first, last)


# ---- a run -----------------------------------------------------------------------------------------


@dataclass
class Run:
    """What ``fit`` returns: the best model, where its files lie, and the history, one row per epoch."""

    model: MiniCLIP
    folder: Path
    history: pd.DataFrame
    seconds: float  # spent in epochs, over all sessions of this run


@dataclass
class _Progress:
    """Where a run stands after an epoch; saved with it."""

    epoch: int = 0
    best: float = -1.0
    since_best: int = 0
    seconds: float = 0.0
    finished: bool = False
    history: list[dict] = field(default_factory=list)


def run_folder(config: Config) -> Path:
    """Return where the run of a config lies: ``data_root()/runs/<dataset>-<digest of the config>``."""
    return data_root() / "runs" / f"{config.data.name}-{config.digest()}"


def load_or_fit(config: Config, **options) -> Run:
    """Return the finished run of a config, training it first where it does not exist yet."""
    folder = run_folder(config)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):  # of two notebooks that need a run, one trains and the other waits
        return fit(config, folder, **options)


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

    Args:
        config: everything that makes the run.
        folder: where the run lies (default: :func:`run_folder`). A finished run there is loaded, an
            interrupted one goes on after its last whole epoch.
        train: pairs to learn from (default: the config's dataset, split "train").
        dev: pairs to choose the epoch on (default: split "dev"); never the test split.
        cache: run the frozen trunks once instead of in every step.
        progress: show progress bars.
        on_epoch: called with the history after each epoch, e.g. to redraw curves.

    Raises:
        ValueError: the batch is larger than the training set, or a setting is unknown.

    """
    folder = Path(folder or run_folder(config))
    folder.mkdir(parents=True, exist_ok=True)
    state = _read_progress(folder, config)
    if state.finished:
        return Run(load(folder), folder, pd.DataFrame(state.history), state.seconds)

    source = {"name": config.data.name, "root": config.data.root, "limit": config.data.limit}
    train = train or load_dataset(split="train", **source)
    dev = dev or load_dataset(split="dev", **source)
    _check(config, train)
    set_seed(config.seed)
    accelerator = Accelerator(mixed_precision=config.train.precision)
    model = MiniCLIP(config).to(accelerator.device)
    learner = Learner(
        config, model, accelerator, TrunkOutputs(model, train, config.train.views, cache, progress)
    )
    dev_outputs = TrunkOutputs(model, dev, 1, cache, progress)
    if state.epoch:
        learner.load_state(folder / "state.safetensors")
    bar = tqdm(
        total=config.train.epochs * learner.steps,
        initial=state.epoch * learner.steps,
        disable=hidden(progress),
    )
    try:
        while not state.finished:
            row = learner.train_epoch(state.epoch, bar, state.best)
            with learner.averaged_weights():
                row |= evaluate(model, dev_outputs, prefix="dev_")
                _note(state, row, config)
                if accelerator.is_main_process and state.since_best == 0:
                    model.save(folder)
            if accelerator.is_main_process:
                learner.save_state(folder / "state.safetensors")
                _write_progress(folder, state, config)
            if on_epoch:
                on_epoch(pd.DataFrame(state.history))
    except KeyboardInterrupt:
        print(f"Stopped after epoch {state.epoch}. Call fit again to go on from there: {folder}")
        raise
    finally:
        bar.close()
    return Run(load(folder, accelerator.device), folder, pd.DataFrame(state.history), state.seconds)


class Learner:
    """The optimiser's side of a run: parameters, schedule, averaged weights, one epoch at a time."""

    def __init__(self, config: Config, model: MiniCLIP, accelerator: Accelerator, outputs: TrunkOutputs):
        self.config, self.model, self.accelerator, self.outputs = config, model, accelerator, outputs
        self.steps = len(outputs.data) // config.train.batch_size
        total = self.steps * config.train.epochs
        warmup = max(1, round(config.train.warmup * total))

        def schedule(step: int) -> float:  # linear warm-up, then a cosine to zero
            return min(
                (step + 1) / warmup,
                0.5 * (1 + math.cos(math.pi * max(0, step - warmup) / (total - warmup + 1))),
            )

        optimiser = torch.optim.AdamW(parameter_groups(config, model), betas=(0.9, 0.98))
        self.wrapped, self.optimiser = accelerator.prepare(model, optimiser)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, schedule)
        self.average = (
            {n: p.clone() for n, p in model.learned_state().items()} if config.train.average else None
        )

    def train_epoch(self, epoch: int, bar: tqdm, best: float) -> dict:
        """Run one epoch and return its row of history; ``seconds`` counts training only."""
        config, losses, started = self.config, [], time.perf_counter()
        rng = np.random.default_rng([config.seed, epoch, 1])
        torch.manual_seed(config.seed * 100_003 + epoch)  # dropout
        self.model.train()
        for rows, views, captions, owner in epoch_batches(config, self.outputs, epoch):
            rows, views, captions, owner = self._share(rows, views, captions, owner)
            image = self.outputs.image_batch(rows, views)
            text, mask = self.outputs.text_batch(captions)
            image, mask = augment(config, image, mask, rng)
            batch = image, text, mask, torch.from_numpy(owner).to(image.device)
            losses.append(backward(config, self.wrapped, batch, self.accelerator))
            self._step()
            bar.update()
            bar.set_postfix_str(
                f"epoch {epoch + 1} loss {np.mean(losses):.3f} (no learning {self.log_batch:.2f}) "
                f"scale {self.model.scale().item():.1f} best dev {max(best, 0):.1%}"
            )
        self.model.eval()
        return {
            "epoch": epoch + 1,
            "loss": float(np.mean(losses)),
            "log_batch": self.log_batch,
            "logit_scale": self.model.scale().item(),
            "seconds": time.perf_counter() - started,
        }

    @property
    def log_batch(self) -> float:
        """ln(B): the loss of a model that has learned nothing."""
        return math.log(self.config.train.batch_size)

    def _share(self, *arrays: np.ndarray) -> list[np.ndarray]:
        """Cut this process's part out of a batch; the whole batch where there is one process."""
        n, k = self.accelerator.num_processes, self.accelerator.process_index
        parts = [np.array_split(array, n)[k] for array in arrays]
        parts[-1] = parts[-1] - parts[-1].min()
        return parts

    def _step(self) -> None:
        self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.train.clip_norm)
        self.optimiser.step()
        self.schedule.step()
        self.optimiser.zero_grad()
        if self.average:
            done = self.schedule.last_epoch
            decay = min(self.config.train.average, (1 + done) / (10 + done))  # a short memory at the start
            for name, value in self.model.learned_state().items():
                self.average[name].lerp_(value, 1 - decay)

    @contextmanager
    def averaged_weights(self):
        """Put the averaged weights into the model for a while; without averaging, change nothing."""
        if not self.average:
            yield
            return
        current = {name: value.clone() for name, value in self.model.learned_state().items()}
        self.model.load_learned_state(self.average)
        yield
        self.model.load_learned_state(current)

    def save_state(self, path: Path) -> None:
        """Write all that the next epoch needs, in full precision: weights, averages and Adam's moments."""
        tensors = {f"model.{n}": t for n, t in self.model.learned_state().items()}
        tensors |= {f"average.{n}": t for n, t in (self.average or {}).items()}
        for index, moments in self.optimiser.state_dict()["state"].items():
            tensors |= {f"adam.{index}.{name}": value for name, value in moments.items()}
        tensors["steps"] = torch.tensor(self.schedule.last_epoch)
        write_atomically(path, lambda p: save_file({n: t.contiguous().cpu() for n, t in tensors.items()}, p))

    def load_state(self, path: Path) -> None:
        """Take up what ``save_state`` wrote."""
        tensors = load_file(path)
        part = lambda prefix: {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        self.model.load_learned_state(part("model."))
        for name, value in part("average.").items():
            self.average[name].copy_(value)
        optimiser = self.optimiser.state_dict()
        for name, value in part("adam.").items():
            index, moment = name.split(".", 1)
            optimiser["state"].setdefault(int(index), {})[moment] = value
        self.optimiser.load_state_dict(optimiser)
        self.schedule.last_epoch = int(tensors["steps"]) - 1
        self.schedule.step()


def parameter_groups(config: Config, model: MiniCLIP) -> list[dict]:
    """Group what trains by learning rate (image top, text top, heads) and by weight decay (matrices only)."""
    rates = {"image_encoder": config.train.lr_image, "text_encoder": config.train.lr_text}
    groups: dict[tuple, list] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            rate = rates.get(name.split(".")[0], config.train.lr_heads)
            decay = config.train.weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((rate, decay), []).append(parameter)
    return [{"params": p, "lr": rate, "weight_decay": decay} for (rate, decay), p in groups.items()]


@torch.inference_mode()
def embed(model: MiniCLIP, outputs: TrunkOutputs, batch_size: int = 200) -> tuple[Tensor, Tensor]:
    """Embed a dataset from its trunk outputs, plain view: images (N, E) and captions (M, E), unit length."""
    model.eval()
    images = torch.empty(len(outputs.data), model.dim)
    texts = torch.empty(len(outputs.captions), model.dim)
    for rows in np.array_split(np.arange(len(images)), math.ceil(len(images) / batch_size)):
        images[rows] = model.project_image(outputs.image_batch(rows)).cpu()
    by_length = np.argsort([len(text) for text in outputs.captions], kind="stable")
    for rows in np.array_split(by_length, math.ceil(len(texts) / batch_size)):
        texts[rows] = model.project_text(*outputs.text_batch(rows)).cpu()
    return images, texts


def evaluate(model: MiniCLIP, outputs: TrunkOutputs, prefix: str = "") -> dict:
    """Return the flat row of recalls over a whole split: ``{prefix}mean_recall`` and the six it averages."""
    scores = summarise(ranks_from_embeddings(*embed(model, outputs), outputs.data.owner), len(outputs.data))
    row = {f"{prefix}mean_recall": scores["mean_recall"]}
    for way, short in (("image_to_text", "i2t"), ("text_to_image", "t2i")):
        row |= {
            f"{prefix}{short}_{name}": value for name, value in scores[way].items() if name.startswith("R@")
        }
    return row


def _check(config: Config, train: CaptionedImages) -> None:
    if config.train.batch_size < 2:
        raise ValueError("train.batch_size must be at least 2: one pair has no negatives.")
    if config.train.batch_size > len(train):
        raise ValueError(
            f"train.batch_size is {config.train.batch_size}, but there are only {len(train)} training images."
        )
    fewest = min(map(len, train.captions))
    if fewest < config.loss.captions_per_image:
        raise ValueError(
            f"loss.captions_per_image is {config.loss.captions_per_image}, but an image of {train.name} has "
            f"{fewest} caption(s)."
        )


def _note(state: _Progress, row: dict, config: Config) -> None:
    state.epoch, state.seconds = row["epoch"], state.seconds + row["seconds"]
    better = row["dev_mean_recall"] > state.best
    state.best, state.since_best = (
        (row["dev_mean_recall"], 0) if better else (state.best, state.since_best + 1)
    )
    state.finished = state.epoch >= config.train.epochs or state.since_best >= config.train.patience
    state.history.append(row)


def _read_progress(folder: Path, config: Config) -> _Progress:
    if not (folder / "state.json").exists():
        return _Progress()
    record = json.loads((folder / "state.json").read_text())
    if record.pop("digest") != config.digest():
        raise ValueError(f"{folder} holds a run of another config: name another folder, or delete this one.")
    return _Progress(**record)


def _write_progress(folder: Path, state: _Progress, config: Config) -> None:
    history = pd.DataFrame(state.history)
    write_atomically(folder / "history.csv", lambda path: history.to_csv(path, index=False))
    record = json.dumps(vars(state) | {"digest": config.digest()})
    write_atomically(folder / "state.json", lambda path: path.write_text(record))
