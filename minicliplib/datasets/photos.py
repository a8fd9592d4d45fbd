"""Six free photos that come with scikit-image, with captions of our own."""

from importlib.resources import files
from pathlib import Path

from .base import CaptionedImages

# CC0, or public domain (NASA, SpaceX).
PHOTOS = {
    "astronaut.png": "A smiling astronaut in an orange suit before a flag.",
    "camera.png": "A man in a coat looks through a camera on a tripod.",
    "chelsea.png": "A ginger cat with green eyes.",
    "clock_motion.png": "A round clock on a wall.",
    "coffee.png": "A cup of coffee on a wooden table.",
    "rocket.jpg": "A rocket launches in a cloud of smoke.",
}


def load_photos(root: Path, split: str, limit: int | None) -> CaptionedImages:
    """Return the six photos with one caption each; they have no splits, and lie in scikit-image."""
    folder = Path(str(files("skimage") / "data"))
    images = [folder / name for name in PHOTOS]
    captions = [[caption] for caption in PHOTOS.values()]
    return CaptionedImages("photos", "all", images[:limit], captions[:limit])
