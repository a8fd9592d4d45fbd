"""Mini-CLIP: a miniature CLIP that trains on a laptop CPU, retrieves both ways and can be rerun by anyone.

Data flows one way: config -> scenes, data -> encoders -> model -> trunk, loss, metrics -> training -> retrieval ->
explain -> visualize -> command line and notebooks.
"""

from .archives import download
from .config import PRESETS, Config, output_root, preset, save_result, set_seed
from .data import CaptionedImages, DataError, image_files, load_dataset, load_image
from .explain import leave_one_out, randomised, relevance_map, word_relevance
from .loss import contrastive_loss
from .metrics import bootstrap, chance, ranks, ranks_from_embeddings, recall_at_k, summarise
from .model import CheckpointError, MiniCLIP, load
from .retrieval import Index, evaluate
from .training import Run, fit, load_or_fit

__all__ = [
    "PRESETS",
    "CaptionedImages",
    "CheckpointError",
    "Config",
    "DataError",
    "Index",
    "MiniCLIP",
    "Run",
    "bootstrap",
    "chance",
    "contrastive_loss",
    "download",
    "evaluate",
    "fit",
    "image_files",
    "leave_one_out",
    "load",
    "load_dataset",
    "load_image",
    "load_or_fit",
    "output_root",
    "preset",
    "randomised",
    "ranks",
    "ranks_from_embeddings",
    "recall_at_k",
    "relevance_map",
    "save_result",
    "set_seed",
    "summarise",
    "word_relevance",
]
