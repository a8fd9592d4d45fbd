"""Training: ``fit``, the loop behind it, and what the loop is made of.

From top to bottom: :func:`fit` finds the data and the run's folder, :func:`train_run` goes from
epoch to epoch, and :meth:`Trainer.train_epoch` from batch to batch. An epoch costs only the
trainable stages and the heads, since the frozen stages' outputs are cached.

A run is a folder with ``config.json``, ``model.safetensors`` and a model card (the best epoch by
dev mean recall), ``history.csv``, and ``state.safetensors`` (the last epoch, to resume from). All
random draws of an epoch follow from the seed, ``train.shuffle`` and the epoch's number, so a
resumed run ends like an unbroken one (but for fp16, whose scaling of gradients starts anew).
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from tqdm.auto import tqdm

from .config import Config, set_seed
from .datasets.base import CaptionedImages, Splits
from .encoders import Hidden
from .features import Features
from .loss import config_loss
from .model import MiniCLIP, load
from .paths import show_bars

OnEpoch = Callable[[pd.DataFrame], None]


@dataclass
class Run:
    """What ``fit`` returns: the best model, its folder, and the history (of a soup: run 0's)."""

    model: MiniCLIP
    folder: Path
    history: pd.DataFrame


def fit(
    config: Config,
    folder: str | Path | None = None,
    train: CaptionedImages | None = None,
    dev: CaptionedImages | None = None,
    cache: bool = True,
    progress: bool = True,
    on_epoch: OnEpoch | None = None,
) -> Run:
    """Train a Mini-CLIP, and keep the epoch with the best dev mean recall.

    A run that was cut off goes on, a finished one is loaded. A run is known by its config *and*
    its data: other images or captions are another run. If two calls want the same run, the second
    one waits.

    Args:
        config: all settings.
        folder: where the run lies (default: :func:`run_folder`).
        train: pairs to learn from (default: the config's dataset, split "train").
        dev: pairs to choose the epoch on (default: that dataset's split "dev"); never the test
            split.
        cache: run the frozen stages once instead of in every step.
        progress: show progress bars.
        on_epoch: called with the history after each epoch, for example to redraw curves.

    Raises:
        ValueError: a setting does not fit the data, or the folder holds another run.

    """
    from .scale import memory, runs

    memory.keep_freed_memory()  # which halves the time of a step on a CPU
    train = runs.load_split(config, "train") if train is None else train
    dev = runs.load_split(config, "dev") if dev is None else dev
    data = Splits(train, dev)
    folder = Path(folder or runs.run_folder(config, data))
    with runs.own_folder(folder):
        if config.train.soup > 1:
            from .scale.soup import fit_soup

            return fit_soup(config, folder, data, cache, progress, on_epoch)
        return train_run(config, folder, data, cache, progress, on_epoch)


def train_run(
    config: Config,
    folder: Path,
    data: Splits,
    cache: bool,
    progress: bool,
    on_epoch: OnEpoch | None,
) -> Run:
    """Train one run, epoch by epoch, and return its best one; see :func:`fit`."""
    from .analysis.measures import dev_recalls
    from .scale import runs

    history = runs.read_history(folder, config, data)
    if runs.is_finished(history, config):
        return Run(load(folder), folder, pd.DataFrame(history))

    # Prepare the model, the features of both splits, and the optimiser.
    accelerator = runs.start_accelerator(config)
    is_main = accelerator.is_main_process
    progress = progress and is_main
    runs.check_settings(config, data, accelerator)
    readable = runs.leave_out_unreadable(data)  # the run's name is that of the data as given
    set_seed(config.seed)
    model = runs.model_to_train(config).to(accelerator.device)
    features = Features(model, readable.train, config.features.views, cache, progress)
    dev_features = Features(model, readable.dev, 1, cache, progress)
    trainer = Trainer(config, model, features, accelerator)
    if history:
        runs.load_state(trainer, folder, len(history))

    try:
        steps = config.train.epochs * trainer.steps_per_epoch
        with tqdm(total=steps, initial=trainer.steps_done, disable=not show_bars(progress)) as bar:
            while not runs.is_finished(history, config):
                # Go once through the images.
                row = trainer.train_epoch(len(history), bar)

                # Measure on dev, and keep the weights if they are the best so far.
                with trainer.averaged_weights():
                    if is_main:
                        row |= dev_recalls(model, dev_features)
                    row = broadcast_object_list([row])[0]  # all processes stop at the same epoch
                    history.append(row)
                    if is_main and runs.best_row(history) == len(history) - 1:
                        runs.save_best(model, folder, row, readable)

                # Save all that the next epoch needs.
                if is_main:
                    runs.save_state(trainer, folder, history, data)
                if on_epoch:
                    on_epoch(pd.DataFrame(history))
    except KeyboardInterrupt:
        if is_main:
            print(f"Stopped after epoch {len(history)}. The same call continues it: {folder}")
        raise
    accelerator.wait_for_everyone()  # the main process may still be writing
    return Run(load(folder, accelerator.device), folder, pd.DataFrame(history))


class Trainer:
    """A model that learns: its features, optimiser and averaged weights, one epoch at a time."""

    def __init__(
        self, config: Config, model: MiniCLIP, features: Features, accelerator: Accelerator
    ):
        self.config = config
        self.model = model
        self.features = features
        self.accelerator = accelerator
        self.steps_per_epoch = len(features.data) // config.train.batch_size
        self.steps_done = 0
        optimiser = torch.optim.AdamW(parameter_groups(config, model), betas=(0.9, 0.98))
        # The model itself, or, where several processes train, what keeps theirs alike.
        self.parallel_model, self.optimiser = accelerator.prepare(model, optimiser)
        # Vectors of the captions by the text tower as it is before training, for soft targets.
        self.teacher_text = features.teacher_text() if config.loss.soft else None
        self.average = None
        if config.train.average:
            from .scale.averaging import WeightAverage

            self.average = WeightAverage(model, config.train.average)

    def train_epoch(self, epoch: int, bar: tqdm | None = None) -> dict[str, Any]:
        """Go once through the images; return the epoch's row of history.

        ``seconds`` counts training only. ``log_batch`` is ln(B), the InfoNCE loss of a model that
        has learned nothing.
        """
        from .scale.memory import peak_gib

        config = self.config
        process = self.accelerator.process_index
        # The factors only keep the seeds of epochs and processes apart.
        rng = np.random.default_rng([config.epoch_seed, epoch, 1])  # crops and hidden words
        torch.manual_seed(config.epoch_seed * 100_003 + epoch + 1009 * process)  # dropout
        started = time.perf_counter()
        losses = []
        self.model.train()
        for whole_batch in epoch_batches(config, self.features, epoch):
            # Fetch the cached features of the batch, and vary them a little.
            batch = self._own_share(whole_batch)
            text, mask = self.features.text_batch(batch.caption_rows)
            image = self.features.image_batch(batch.image_rows, batch.views)
            image, mask = augment(config, image, mask, rng)
            image_of_caption, teacher_text = self._targets(batch)

            # Forward to two sets of unit vectors and their loss, and backward to the gradients.
            self.optimiser.zero_grad()
            if config.train.chunk_size:
                from .scale.two_pass import two_pass_backward

                hidden = (image, text, mask)
                targets = (image_of_caption, teacher_text)
                loss = two_pass_backward(config, self.model, hidden, *targets, self.accelerator)
            else:
                vectors = self.parallel_model(image, text, mask)  # of images and texts; the scale
                loss = config_loss(config.loss, vectors, image_of_caption, teacher_text)
                self.accelerator.backward(loss)  # loss.backward(), on one or several processes

            # Update the parameters.
            self.accelerator.clip_grad_norm_(self.model.parameters(), config.train.clip_norm)
            self._set_learning_rates()
            self.optimiser.step()
            self.model.bound_scale()
            self.steps_done += 1
            if self.average:
                self.average.update(self.model, self.steps_done)

            losses.append(loss.item())
            if bar is not None:
                bar.update()
                bar.set_postfix_str(f"epoch {epoch + 1} loss {np.mean(losses):.3f}")
        self.model.eval()
        return {
            "epoch": epoch + 1,
            "loss": float(np.mean(losses)),
            "log_batch": math.log(config.train.batch_size),
            "logit_scale": self.model.scale().item(),
            "seconds": time.perf_counter() - started,
            "peak_gib": peak_gib(),
        }

    def averaged_weights(self) -> AbstractContextManager[None]:
        """Put the averaged weights into the model for a while, if there are any."""
        return self.average.put_into(self.model) if self.average else nullcontext()

    def _own_share(self, batch: "Batch") -> "Batch":
        """Return this process's part of a batch: all of it where there is one process."""
        if self.accelerator.num_processes == 1:
            return batch
        from .scale.processes import share_of_batch

        return share_of_batch(batch, self.accelerator.num_processes, self.accelerator.process_index)

    def _targets(self, batch: "Batch") -> tuple[Tensor, Tensor | None]:
        """Return the image of each caption (M,), and the teacher's vectors of them (M, D)."""
        device = self.accelerator.device
        image_of_caption = torch.from_numpy(batch.image_of_caption).to(device)
        if self.teacher_text is None:
            return image_of_caption, None
        return image_of_caption, torch.from_numpy(self.teacher_text[batch.caption_rows]).to(device)

    def _set_learning_rates(self) -> None:
        """Give each group of parameters its learning rate for the coming step."""
        settings = self.config.train
        total = self.steps_per_epoch * settings.epochs
        share = learning_rate_share(self.steps_done, total, settings.warmup)
        for group in self.optimiser.param_groups:
            group["lr"] = group["peak"] * share


# ---- batches ------------------------------------------------------------------------------------


class Batch(NamedTuple):
    """Which images and captions a step learns from: B images, M captions."""

    image_rows: np.ndarray  # (B,)
    views: np.ndarray  # (B,) in which of its cached views each image is taken
    caption_rows: np.ndarray  # (M,)
    image_of_caption: np.ndarray  # (M,) counted within the batch, from 0 to B - 1


def epoch_batches(config: Config, features: Features, epoch: int) -> Iterator[Batch]:
    """Yield an epoch's batches, each image once, with captions of its own drawn at random.

    We leave out the last batch if it is smaller, because a smaller batch has a smaller loss.
    """
    rng = np.random.default_rng([config.epoch_seed, epoch])
    size = config.train.batch_size
    per_image = config.train.captions_per_image
    first = features.first_caption
    order = rng.permutation(len(features.data))
    for start in range(0, len(order) - size + 1, size):
        rows = order[start : start + size]
        captions = []
        for row in rows:
            count = first[row + 1] - first[row]
            captions.append(first[row] + rng.choice(count, min(per_image, count), replace=False))
        views = rng.integers(config.features.views, size=size)
        image_of_caption = np.repeat(np.arange(size), [len(own) for own in captions])
        yield Batch(rows, views, np.concatenate(captions), image_of_caption)


def augment(
    config: Config, image: Hidden, mask: Tensor, rng: np.random.Generator
) -> tuple[Hidden, Tensor]:
    """Vary cached states: cut maps (B, C, H, W) and hide words (B, T).

    A map is cut to a random window, and mirrored half of the time. A state that is not a map stays
    as it is, and so does what the head reads of the frozen stages.
    """
    share = config.train.map_crop
    if share < 1 and image.state.ndim == 4:
        maps = image.state
        height, width = maps.shape[-2:]
        h = round(height * share)
        w = round(width * share)
        y = rng.integers(height - h + 1)
        x = rng.integers(width - w + 1)
        maps = maps[:, :, y : y + h, x : x + w]
        if rng.random() < 0.5:
            maps = maps.flip(-1)
        image = Hidden(maps, image.pooled)
    if config.train.word_dropout:
        keep = torch.from_numpy(rng.random(mask.shape) >= config.train.word_dropout).to(mask)
        keep[:, 0] = 1  # every caption keeps a token
        mask = mask * keep
    return image, mask


# ---- the optimiser ------------------------------------------------------------------------------


def parameter_groups(config: Config, model: nn.Module) -> list[dict[str, Any]]:
    """Group what trains by learning rate (image tower, text tower, heads) and weight decay.

    Only matrices decay, not biases, norms or the logit scale.
    """
    rates = {"image_encoder": config.train.lr_image, "text_encoder": config.train.lr_text}
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = name.split(".")[0]
            rate = rates.get(part, config.train.lr_heads)
            decay = config.train.weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((rate, decay), []).append(parameter)
    return [
        {"params": parameters, "lr": rate, "peak": rate, "weight_decay": decay}
        for (rate, decay), parameters in groups.items()
    ]


def learning_rate_share(step: int, total: int, warmup: float) -> float:
    """Return the share of the peak learning rate at a step, counted from 0.

    It rises over the share ``warmup`` of all steps, and falls along a cosine after that. The
    cosine is as long as the whole run but starts after the warm-up, so a run ends before the
    cosine reaches 0: with a warm-up of 10%, at 2.4% of the peak.
    """
    warmup_steps = max(1, round(warmup * total))
    rising = (step + 1) / warmup_steps
    done = max(0, step - warmup_steps) / total
    falling = 0.5 + 0.5 * math.cos(math.pi * done)
    return min(rising, falling)
