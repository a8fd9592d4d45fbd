"""Mini-CLIP: a miniature CLIP that trains on a laptop CPU, and retrieves both ways.

Data flow one way: config -> datasets -> encoders -> features -> model -> training -> checkpoint
-> retrieval, zero-shot classification, analysis and apps -> report.

The names below are loaded when they are first used, so that importing the package is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for editors and type checkers, which do not run the code
    from . import config as config
    from . import encoders as encoders
    from . import features as features
    from . import loss as loss
    from . import metrics as metrics
    from . import model as model
    from . import paths as paths
    from . import retrieval as retrieval
    from . import training as training
    from . import zeroshot as zeroshot
    from .analysis.measures import classification as classification
    from .analysis.probes import altered as altered
    from .analysis.recorded import recorded as recorded
    from .analysis.relevance import leave_one_out as leave_one_out
    from .analysis.relevance import randomised as randomised
    from .analysis.relevance import relevance_map as relevance_map
    from .analysis.relevance import word_relevance as word_relevance
    from .config import PRESETS as PRESETS
    from .config import Config as Config
    from .config import preset as preset
    from .config import set_seed as set_seed
    from .datasets.base import CaptionedImages as CaptionedImages
    from .datasets.download import download as download
    from .datasets.flickr8k import load_judgements as load_judgements
    from .datasets.images import DataError as DataError
    from .datasets.images import image_files as image_files
    from .datasets.images import load_image as load_image
    from .datasets.labelled import LabelledImages as LabelledImages
    from .datasets.labelled import load_labelled as load_labelled
    from .datasets.load import load_dataset as load_dataset
    from .interop.open_clip import as_open_clip as as_open_clip
    from .interop.pretrained import EncoderError as EncoderError
    from .loss import contrastive_loss as contrastive_loss
    from .metrics import bootstrap as bootstrap
    from .metrics import chance as chance
    from .metrics import evaluate as evaluate
    from .metrics import ranks_from_embeddings as ranks_from_embeddings
    from .metrics import recall_at_k as recall_at_k
    from .metrics import summarise as summarise
    from .model import CheckpointError as CheckpointError
    from .model import MiniCLIP as MiniCLIP
    from .model import load as load
    from .paths import output_root as output_root
    from .paths import save_result as save_result
    from .retrieval import Index as Index
    from .training import Run as Run
    from .training import fit as fit
    from .zeroshot import PHOTO_TEMPLATES as PHOTO_TEMPLATES
    from .zeroshot import SCENE_TEMPLATES as SCENE_TEMPLATES
    from .zeroshot import ZeroShotClassifier as ZeroShotClassifier

# Where each public name is defined.
_HOMES = {
    "config": ("PRESETS", "Config", "preset", "set_seed"),
    "paths": ("output_root", "save_result"),
    "datasets.base": ("CaptionedImages",),
    "datasets.download": ("download",),
    "datasets.flickr8k": ("load_judgements",),
    "datasets.images": ("DataError", "image_files", "load_image"),
    "datasets.labelled": ("LabelledImages", "load_labelled"),
    "datasets.load": ("load_dataset",),
    "model": ("CheckpointError", "MiniCLIP", "load"),
    "loss": ("contrastive_loss",),
    "metrics": (
        *("bootstrap", "chance", "evaluate"),
        *("ranks_from_embeddings", "recall_at_k", "summarise"),
    ),
    "training": ("Run", "fit"),
    "retrieval": ("Index",),
    "zeroshot": ("PHOTO_TEMPLATES", "SCENE_TEMPLATES", "ZeroShotClassifier"),
    "analysis.measures": ("classification",),
    "analysis.probes": ("altered",),
    "analysis.recorded": ("recorded",),
    "analysis.relevance": ("leave_one_out", "randomised", "relevance_map", "word_relevance"),
    "interop.open_clip": ("as_open_clip",),
    "interop.pretrained": ("EncoderError",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}
_MODULES = (*(module for module in _HOMES if "." not in module), "encoders", "features")

__all__ = sorted(_HOME_OF)


if not TYPE_CHECKING:  # a type checker reads the imports above instead, and knows wrong names

    def __getattr__(name: str) -> Any:
        """Load a public name, or a module of the core, when it is first used."""
        if name in _HOME_OF:
            value = getattr(import_module(f".{_HOME_OF[name]}", __name__), name)
        elif name in _MODULES:
            value = import_module(f".{name}", __name__)
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return [*globals(), *__all__, *_MODULES]
