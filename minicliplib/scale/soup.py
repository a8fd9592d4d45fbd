"""A soup: one model whose weights are the average of several runs (Wortsman et al. 2022).

Runs that share their start end in one basin of the loss, so the average of their weights is
better than each of them, and costs no more to use.
"""

from pathlib import Path

import pandas as pd

from ..config import Config
from ..datasets.base import Splits
from ..model import MiniCLIP, load
from ..training import OnEpoch, Run, train_run
from .averaging import mean_state
from .runs import own_folder, read_history, run_folder, start_accelerator


def fit_soup(
    config: Config,
    folder: Path,
    data: Splits,
    cache: bool,
    progress: bool,
    on_epoch: OnEpoch | None,
) -> Run:
    """Train ``train.soup`` runs that differ in ``train.shuffle``, and average their weights.

    Each run keeps its best epoch. If the soup is in its default folder, the runs are in theirs too,
    and a run that was trained before is reused.
    """
    read_history(folder, config, data)  # refuses another run's folder
    in_default_place = folder == run_folder(config, data)
    count = config.train.soup

    # Train the runs.
    runs = []
    for k in range(count):
        # Every soup has its own block of shuffle numbers, so two soups share no run.
        one = config.updated(train={"soup": 1, "shuffle": config.train.shuffle * count + k})
        place = run_folder(one, data) if in_default_place else folder / f"run{k}"
        with own_folder(place):
            runs.append(train_run(one, place, data, cache, progress, on_epoch))

    # Average their weights.
    model = MiniCLIP(config)
    states = [run.model.cpu().learned_state() for run in runs]
    model.load_learned_state(mean_state(states))
    model.facts = {"trained_on": runs[0].model.facts["trained_on"]}

    # Only the main process writes.
    accelerator = start_accelerator(config)
    if accelerator.is_main_process:
        model.save(folder)
        histories = pd.concat([run.history.assign(run=k) for k, run in enumerate(runs)])
        histories.to_csv(folder / "history.csv", index=False)
    accelerator.wait_for_everyone()
    return Run(load(folder, accelerator.device), folder, runs[0].history)
