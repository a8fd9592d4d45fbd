"""Measure ideas that are not in the package: a learned pooling, and distillation beside a soup.

    python benchmarks/ideas.py         writes report/results/benchmarks/ideas.json

(``make bench-ideas`` runs it.) Heads are trained on cached features of locked towers. 5,000 of
Flickr8k's training photos are learned from, and the other 1,000 judge, so neither dev nor test is
looked at. A difference is that of two candidates on the same photos, with a 95% interval over
photos, which does not cover the luck of a run.

- pooling: the last map of EfficientNet-Lite2 is averaged, or pooled by attention with learned
  queries (a simpler form of the pooling of CLIP's ResNet, Radford et al. 2021, section 2.4). The
  captions are read from MiniLM's last stage. Two seeds each, with the same batches.
- one from many: the towers and stages of the preset. Four runs that share their start and differ in
  batches and dropout; their soup; their ensemble, which costs four times as much in use; and
  students of an ensemble of three other runs. A student with its teachers takes the time of four
  runs as well. Half of its loss compares its cosines with those of its teachers (after CLIP-KD,
  Yang et al. 2024). Two students, with the batches of the first two runs.
"""

import argparse
import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import minicliplib as mc
from minicliplib.analysis.measures import recall_of_each_image
from minicliplib.features import Features
from minicliplib.metrics import bootstrap_mean
from minicliplib.model import ProjectionHead
from minicliplib.scale.averaging import mean_state
from minicliplib.scale.memory import keep_freed_memory
from minicliplib.training import learning_rate_share, parameter_groups

HELD_OUT = 1000  # of the training photos
EPOCHS = 12
RUNS = 4
TEACHER_SCALE = 20.0  # turns the teachers' cosines into logits


def main() -> None:
    """Measure both questions, and save the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--limit", type=int, help="of the training photos, for a quick try")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    options = parser.parse_args()
    started = time.perf_counter()
    keep_freed_memory()

    photos = mc.load_dataset("flickr8k", "train", limit=options.limit)
    order = np.random.default_rng(0).permutation(len(photos))
    held_out = min(HELD_OUT, len(photos) // 6)
    learned_from = photos.subset(sorted(order[held_out:].tolist()))
    judged_on = photos.subset(sorted(order[:held_out].tolist()))

    metrics = {
        "pooling": pooling(learned_from, judged_on, options.epochs),
        "one_from_many": one_from_many(learned_from, judged_on, options.epochs),
        "epochs": options.epochs,
        "photos": {"learned_from": len(learned_from), "judged_on": len(judged_on)},
    }
    seconds = time.perf_counter() - started
    mc.save_result("benchmarks", "ideas", metrics, mc.preset("flickr8k"), seconds)


# ---- the two questions --------------------------------------------------------------------------


def pooling(
    learned_from: mc.CaptionedImages, judged_on: mc.CaptionedImages, epochs: int
) -> dict[str, Any]:
    """Compare the mean over places with attention that learns where to look."""
    # With one trainable stage the cache holds the map before it. That stage stays as it is here.
    config = locked(
        image="efficientnet_lite2", image_trainable=1, image_reads="last", text_reads="last"
    )
    train = Cached(config, learned_from)
    judge = Cached(config, judged_on)

    found = {}
    for name in ("mean", "attention"):
        runs = []
        for seed in range(2):
            pool = AttentionPool(1280) if name == "attention" else MeanPool()
            runs.append(judge.finds(train_heads(config, train, seed, epochs, pool)))
        found[name] = np.mean(runs, axis=0)
    return compared(found, "mean")


def one_from_many(
    learned_from: mc.CaptionedImages, judged_on: mc.CaptionedImages, epochs: int
) -> dict[str, Any]:
    """Compare one run, a soup, an ensemble, and a student of an ensemble."""
    config = locked()
    train = Cached(config, learned_from)
    judge = Cached(config, judged_on)

    started = time.perf_counter()
    runs = [train_heads(config, train, 0, epochs, shuffle=k) for k in range(RUNS)]
    minutes = (time.perf_counter() - started) / 60

    soup = Heads(config, train)
    soup.load_state_dict(mean_state([run.state_dict() for run in runs]))

    # The students learn from three runs of other starts.
    started = time.perf_counter()
    teachers = [train_heads(config, train, seed, epochs) for seed in range(1, RUNS)]
    lessons = train.joined_vectors(teachers)
    students = [train_heads(config, train, 0, epochs, shuffle=0, teacher=lessons)]
    student_minutes = (time.perf_counter() - started) / 60
    students.append(train_heads(config, train, 0, epochs, shuffle=1, teacher=lessons))

    singles = [judge.finds(run) for run in runs]
    found = {
        "one run, the mean of four": np.mean(singles, axis=0),
        "soup of four runs": judge.finds(soup),
        "student of three teachers, the mean of two": np.mean(
            [judge.finds(student) for student in students], axis=0
        ),
        "ensemble of four runs": judge.found_by(*judge.joined_vectors(runs)),
    }
    result = compared(found, "one run, the mean of four")
    single_recalls = [float(single.mean()) for single in singles]
    minutes_of = {"four runs": minutes, "student and teachers": student_minutes}
    return result | {"single_runs": single_recalls, "minutes": minutes_of}


def locked(**encoders: Any) -> mc.Config:
    """Return the preset's settings with locked towers, and with other settings of the encoders."""
    one_view = mc.preset("flickr8k").with_locked_towers().updated(features={"views": 1})
    return one_view.updated(encoders=encoders)


def compared(found: dict[str, np.ndarray], reference: str) -> dict[str, Any]:
    """Return each candidate's mean recall, and its lead over the reference with an interval."""
    rows = {}
    for name, values in found.items():
        lead = values - found[reference]
        rows[name] = {
            "mean_recall": float(values.mean()),
            "lead": float(lead.mean()),
            "interval": bootstrap_mean(lead),
        }
        print(name, f"{100 * values.mean():.1f}", flush=True)
    return {"rows": rows, "reference": reference}


# ---- features and heads -------------------------------------------------------------------------


class Cached:
    """All features of a set of photos in memory: the images' (N, ...), and the captions' (M, D)."""

    def __init__(self, config: mc.Config, data: mc.CaptionedImages):
        model = mc.MiniCLIP(config)
        features = Features(model, data, progress=False)
        self.captions_of = np.split(np.arange(len(features.captions)), features.first_caption[1:-1])
        self.image_of_caption = data.image_of_caption

        images = []
        with torch.no_grad():
            for rows in np.array_split(np.arange(len(data)), math.ceil(len(data) / 64)):
                hidden = features.image_batch(rows)
                if hidden.state.ndim == 4:  # the map after the last stage, place by place
                    maps = model.image_encoder.run(hidden.state, start=model.image_encoder.frozen)
                    images.append(maps.flatten(2).transpose(1, 2).half())  # (n, places, D)
                else:
                    images.append(hidden.pooled.half())
        self.images = torch.cat(images)
        text, _ = features.text_batch(np.arange(len(features.captions)))
        self.texts = text.pooled

    @torch.no_grad()
    def vectors(self, heads: "Heads") -> tuple[Tensor, Tensor]:
        """Return the unit vectors of all images and captions."""
        heads.eval()
        images = [heads.image(part.float()) for part in self.images.split(256)]
        return torch.cat(images), heads.text(self.texts)

    def joined_vectors(self, many: Sequence["Heads"]) -> tuple[Tensor, Tensor]:
        """Return the vectors of an ensemble: their product is the mean of its members' cosines."""
        images, texts = zip(*(self.vectors(heads) for heads in many), strict=True)
        root = math.sqrt(len(many))
        return torch.cat(images, 1) / root, torch.cat(texts, 1) / root

    def finds(self, heads: "Heads") -> np.ndarray:
        """Return the mean of the six recalls for each photo (N,)."""
        return self.found_by(*self.vectors(heads))

    def found_by(self, images: Tensor, texts: Tensor) -> np.ndarray:
        """Return, for each photo, the mean of the six recalls of vectors: (N,)."""
        ranked = mc.ranks_from_embeddings(images, texts, self.image_of_caption)
        return recall_of_each_image(ranked, self.image_of_caption)


class AttentionPool(nn.Module):
    """Pools places (B, P, D) to (B, D) by attention: a learned query for each of eight heads.

    A query meets the features themselves: a matrix between them could be a part of the query. The
    queries start at 0, so that the pooling starts as the mean.
    """

    def __init__(self, width: int, heads: int = 8):
        super().__init__()
        self.queries = nn.Parameter(torch.zeros(heads, width))

    def forward(self, places: Tensor) -> Tensor:
        """(B, P, D) -> (B, D): each head weighs the places for its own part of the channels."""
        weights = (places @ self.queries.T).softmax(1)  # (B, P, heads)
        parts = places.unflatten(2, (len(self.queries), -1))  # (B, P, heads, D / heads)
        return torch.einsum("bph,bphd->bhd", weights, parts).flatten(1)


class MeanPool(nn.Module):
    """Pools places (B, P, D) to (B, D) by their mean."""

    def forward(self, places: Tensor) -> Tensor:
        """(B, P, D) -> (B, D)."""
        return places.mean(1)


class Heads(nn.Module):
    """The two projection heads of a config, the logit scale, and a pooling of the image's map."""

    def __init__(self, config: mc.Config, cached: Cached, pool: nn.Module | None = None):
        super().__init__()
        heads = config.heads
        self.pool = pool or nn.Identity()
        self.image_head = ProjectionHead(cached.images.shape[-1], heads, heads.image_dropout)
        self.text_head = ProjectionHead(cached.texts.shape[-1], heads, heads.text_dropout)
        self.logit_scale = nn.Parameter(torch.tensor(-math.log(heads.temperature)))

    def image(self, features: Tensor) -> Tensor:
        """Features (B, D), or places (B, P, D), which are pooled -> unit vectors (B, E)."""
        return F.normalize(self.image_head(self.pool(features)), dim=-1)

    def text(self, features: Tensor) -> Tensor:
        """Features (M, D) -> unit vectors (M, E)."""
        return F.normalize(self.text_head(features), dim=-1)


def train_heads(
    config: mc.Config,
    cached: Cached,
    seed: int,
    epochs: int,
    pool: nn.Module | None = None,
    shuffle: int = 0,
    teacher: tuple[Tensor, Tensor] | None = None,
) -> Heads:
    """Train heads with the preset's loss, and with a teacher's cosines as half of it, if given."""
    torch.manual_seed(seed)  # the start
    heads = Heads(config, cached, pool)
    rng = np.random.default_rng([seed, shuffle])  # batches
    torch.manual_seed(1000 * seed + shuffle)  # dropout
    settings = config.train
    optimiser = torch.optim.AdamW(parameter_groups(config, heads), betas=(0.9, 0.98))
    size = min(settings.batch_size, len(cached.images))
    per_image = settings.captions_per_image
    image_of_caption = torch.arange(size).repeat_interleave(per_image)
    steps_an_epoch = len(cached.images) // size
    step = 0

    heads.train()
    for _ in range(epochs):
        order = rng.permutation(len(cached.images))[: size * steps_an_epoch]
        for rows in order.reshape(-1, size):
            # Draw captions of each image.
            own = [cached.captions_of[row] for row in rows]
            drawn = [rng.choice(captions, per_image, replace=False) for captions in own]
            captions = np.concatenate(drawn)

            # The loss of the preset, without its soft targets.
            images = heads.image(cached.images[rows].float())
            texts = heads.text(cached.texts[captions])
            scale = heads.logit_scale.clamp(max=math.log(config.heads.max_scale)).exp()
            loss = mc.contrastive_loss(config.loss.name, images, texts, scale, image_of_caption)
            if teacher is not None:
                teacher_logits = TEACHER_SCALE * teacher[0][rows] @ teacher[1][captions].T
                loss = (loss + imitation(scale * images @ texts.T, teacher_logits)) / 2

            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(heads.parameters(), settings.clip_norm)
            share = learning_rate_share(step, epochs * steps_an_epoch, settings.warmup)
            for group in optimiser.param_groups:
                group["lr"] = group["peak"] * share
            optimiser.step()
            step += 1
    return heads


def imitation(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Cross-entropy in both directions, with the teacher's probabilities as targets."""
    image_to_text = F.cross_entropy(logits, teacher_logits.softmax(1))
    text_to_image = F.cross_entropy(logits.T, teacher_logits.T.softmax(1))
    return (image_to_text + text_to_image) / 2


if __name__ == "__main__":
    main()
