"""A start for tuned towers: heads that were trained on locked ones first (Kumar et al. 2022).

Heads that know nothing send random gradients into the towers, which spoils what these have learned
before. Heads that come from a minute of training on cached features do not, and the tuned run needs
fewer of its costly epochs.
"""

from pathlib import Path

from ..config import Config, TrainConfig
from ..datasets.base import Splits
from ..model import MiniCLIP
from .runs import own_folder, run_folder


def start_from_locked_towers(
    model: MiniCLIP, folder: Path, data: Splits, cache: bool, progress: bool
) -> None:
    """Train heads on locked towers for ``train.locked_epochs``, and put them into the model.

    That is a run of its own. All runs of a soup start from the same one.
    """
    from ..training import train_run

    config = locked(model.config)
    if folder == run_folder(model.config, data):
        place = run_folder(config, data)
    else:
        place = folder / "locked"
    with own_folder(place):
        start = train_run(config, place, data, cache, progress, None).model.to(model.device)
    model.image_head.load_state_dict(start.image_head.state_dict())
    model.text_head.load_state_dict(start.text_head.state_dict())
    model.logit_scale.data.copy_(start.logit_scale.data)


def locked(config: Config) -> Config:
    """Return the settings of the run that trains the heads first."""
    # What only matters to stages that train goes back to its default.
    default = TrainConfig()
    return config.updated(
        encoders={"image_trainable": 0, "text_trainable": 0, "text_dropout": 0.0},
        features={"views": min(config.features.views, 2)},
        train={
            "epochs": config.train.locked_epochs,
            "locked_epochs": 0,
            "soup": 1,
            "shuffle": 0,
            "average": 0.0,
            "map_crop": default.map_crop,
            "word_dropout": default.word_dropout,
            "lr_image": default.lr_image,
            "lr_text": default.lr_text,
        },
    )
