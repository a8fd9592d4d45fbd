"""Mini-CLIP: a miniature CLIP that trains on a laptop CPU, retrieves both ways and can be rerun by anyone.

Data flows one way: config -> images, scenes, data -> encoders -> model -> trunk, loss, metrics -> training ->
retrieval, zeroshot, explain -> visualize, demo -> command line and notebooks.
"""

from .archives import download
from .config import PRESETS, Config, output_root, preset, save_result, set_seed
from .data import CaptionedImages, load_dataset, load_judgements
from .encoders import EncoderError
from .explain import altered, leave_one_out, randomised, relevance_map, word_relevance
from .images import DataError, image_files, load_image
from .interop import as_open_clip
from .labelled import LabelledImages, load_labelled
from .loss import contrastive_loss
from .metrics import bootstrap, chance, classification, ranks_from_embeddings, recall_at_k, summarise
from .model import CheckpointError, MiniCLIP, load
from .retrieval import Index, evaluate
from .training import Run, fit
from .zeroshot import PHOTO_TEMPLATES, SCENE_TEMPLATES, ZeroShotClassifier
