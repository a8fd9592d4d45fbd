"""The web page: images for a sentence, captions for an image, names for what an image shows.

``Demo`` is what the page does, without the page: what a visitor gives goes in, what they see comes out. ``Server`` puts
gradio's page in front of it, for this computer alone unless told otherwise; it asks nothing of any other.
"""

import hashlib
import os
import re
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Self

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio loads

import gradio as gr
from gradio.events import Dependency
from PIL import Image

from .config import data_root
from .data import CaptionedImages, load_dataset
from .encoders import ImageLike
from .explain import overlay, relevance_map
from .images import EXTENSIONS, DataError, load_image
from .model import MiniCLIP
from .retrieval import stored_index
from .zeroshot import PHOTO_TEMPLATES, ZeroShotClassifier

FREE = "photos+sample"  # needs no download, and may be shown to anyone
FREE_LIMIT = 120  # of each: enough to play with, and embedded in seconds
QUERIES = (
    "A cat looks at the camera.",
    "Two dogs play in the snow.",
    "A surfer on a beach.",
    "Two rockets on a street.",
    "A person with a ball.",
)
LABELS = "cat, dog, bird, person, astronaut, rocket, cup of coffee, clock, camera, bicycle, car, tree"
LOOKS = 1  # at a picture; the four of the shipped model find a little better and take four times as long
# A gallery has as many columns as fit: gradio's own number would hide some of them on a phone.
CSS = """
.results div.grid-container {grid-template-columns: repeat(auto-fill, minmax(min(200px, 40vw), 1fr))}
.picks div.grid-container {grid-template-columns: repeat(auto-fill, minmax(90px, 1fr))}
"""
MOST_RESULTS, MOST_PROMPTS, MOST_MEGABYTES = 24, 2000, 20


def collection(name: str | None = None, root: str | Path | None = None) -> CaptionedImages:
    """Load what to search: a dataset by name, or else Flickr8k where it is there, or else the free pictures."""
    try:
        return load_dataset(name or "flickr8k", "all" if name == "folder" else "test", root)
    except DataError:
        if name:
            raise
        return load_dataset(FREE, "test", limit=FREE_LIMIT)


class Demo:
    """A model and a collection, searched: each method returns what to show and a sentence on how it was chosen.

    Where an image is wanted, its row in the collection will do, too. Images are embedded once and the vectors kept
    under ``data_root()/cache``, by the collection's name and ``root``, where it lies; ``faults`` has a sentence on each
    that cannot be read. Where no image has a caption, those of the free pictures are what to choose from. Bad input
    raises ValueError with one sentence.
    """

    def __init__(self, model: MiniCLIP, data: CaptionedImages, root: str | Path = "", progress: bool = False):
        captions = data.flat_captions or load_dataset(FREE, "test", limit=FREE_LIMIT).flat_captions
        place = Path(root).resolve() if root else data.name
        key = hashlib.sha256(f"{place} {model.fingerprint()} {LOOKS}".encode()).hexdigest()[:12]
        folder = data_root() / "cache" / f"index-{data.name}-{key}"
        self.index, self.faults = stored_index(model, data.images, captions, folder, progress, looks=LOOKS)
        if not len(self.index):
            raise DataError(f"No image in {place} can be read, of {len(data)}. The first: {self.faults[0]}")
        self.model, self.data = model, data.subset(self.index.names["images"])

    def find_images(self, query: str, k: int = 8, why: bool = False) -> tuple[list[tuple[Image.Image, str]], str]:
        """Rank the images for a sentence: (picture, score and name) each; with ``why`` under their relevance maps."""
        start = time.perf_counter()
        if not query.strip():
            raise ValueError("The sentence is empty: type what the image should show.")
        k = max(1, min(int(k), len(self.index)))
        scores, rows = self.index.search_vectors(self.model.encode_text(query), k)
        shown = [
            (self.shown(self.data.images[row], query if why else None), f"{score:.2f}  {self.called(row)}")
            for score, row in zip(scores[0], rows[0], strict=True)
        ]
        return shown, self._account(start, k, len(self.index), "images", query)

    def find_captions(
        self, image: int | ImageLike | None, k: int = 8, why: bool = False
    ) -> tuple[list[list[str]], Image.Image | None, str]:
        """Rank the captions for an image: rows of score, caption and tick, with ``why`` the map of the best caption.

        A tick marks a true caption, which is only known of an image of the collection.
        """
        start, picture = time.perf_counter(), self._opened(image)
        captions = self.index.names["captions"]
        k = max(1, min(int(k), len(captions)))
        scores, rows = self.index.search_vectors(self.model.encode_image(picture, looks=LOOKS), k, "captions")
        true = self.data.captions[image] if isinstance(image, int) else ()
        found = [(captions[row], score) for score, row in zip(scores[0], rows[0], strict=True)]
        table = [[f"{score:.2f}", caption, "✓" if caption in true else ""] for caption, score in found]
        shown = self.shown(picture, found[0][0]) if why else None
        return table, shown, self._account(start, k, len(captions), "captions")

    def name(
        self, image: int | ImageLike | None, labels: str, templates: str = "\n".join(PHOTO_TEMPLATES)
    ) -> tuple[dict[str, float], str]:
        """Give each label its probability; labels stand between commas or line ends, prompt templates in lines."""
        start, picture = time.perf_counter(), self._opened(image)
        names = [label for label in re.split(r"\s*[,\n]\s*", labels.strip()) if label]
        prompts = [line for line in map(str.strip, templates.splitlines()) if line]
        if len(names) * len(prompts) > MOST_PROMPTS:
            raise ValueError(
                f"{len(names)} labels in {len(prompts)} templates are over {MOST_PROMPTS:,} prompts: give fewer."
            )
        classifier = ZeroShotClassifier(self.model, names, prompts)
        (guess,) = classifier.predict(self.model.encode_image(picture, looks=LOOKS), len(names))
        return dict(guess), self._account(start, 1, len(names), "labels")

    def called(self, row: int) -> str:
        """Return what an image of the collection goes by: its file's name, or its number."""
        image = self.data.images[row]
        return image.name if isinstance(image, Path) else f"picture {row}"

    def _opened(self, image: int | ImageLike | None) -> ImageLike:
        if image is None:
            raise ValueError("There is no image yet: upload one, or pick one of those below.")
        if isinstance(image, int | Image.Image):
            return self.data.images[image] if isinstance(image, int) else image
        name = Path(image).name
        if Path(image).suffix.lower() not in EXTENSIONS:
            raise ValueError(f"{name} is not an image of a known kind: {' '.join(sorted(EXTENSIONS))}.")
        try:
            with warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning):
                return load_image(image, hint=512)
        except DataError as error:
            if isinstance(error.__cause__, Image.DecompressionBombWarning | Image.DecompressionBombError):
                most = Image.MAX_IMAGE_PIXELS / 1e6
                raise ValueError(f"{name} has more than {most:.0f} million pixels: make it smaller first.") from error
            raise ValueError(f"{name} cannot be read as an image: it is damaged, or something else.") from error

    def shown(self, image: ImageLike, why: str | None = None) -> Image.Image:
        """Return a picture for the page: at most 512 pixels high and wide, and nothing else of what its file holds."""
        picture = overlay(image, relevance_map(self.model, image, why), 512) if why else load_image(image, 512).copy()
        picture.thumbnail((512, 512))
        return picture

    def _account(self, start: float, k: int, size: int, kind: str, query: str = "") -> str:
        encoder, most = self.model.text_encoder, self.model.text_encoder.max_tokens
        pieces = encoder.tokenizer(query, truncation=True, max_length=most + 1)["input_ids"]
        cut = f" The sentence is long: only its first {most} word pieces were read." if len(pieces) > most else ""
        return f"The best {k} of {size:,} {kind}, in {time.perf_counter() - start:.2f} s.{cut}"


class Server:
    """The page, served until ``close()``, or inside a ``with``; ``url`` is where to open it.

    It listens on loopback unless ``host`` says otherwise. Uploads are limited in size and kind, no path of this
    computer can be asked for, and what was uploaded or shown lies in a folder that goes with the server.
    """

    def __init__(self, demo: Demo, host: str = "127.0.0.1", port: int | None = None):
        self._folder, self._before = tempfile.TemporaryDirectory(prefix="miniclip-"), os.environ.get("GRADIO_TEMP_DIR")
        os.environ["GRADIO_TEMP_DIR"] = self._folder.name
        self._blocks = _page(demo)
        try:
            self._blocks.launch(
                server_name=host, server_port=port, prevent_thread_lock=True, inline=False, quiet=True, share=False,
                max_file_size=f"{MOST_MEGABYTES}mb", allowed_paths=[], footer_links=[], run_history=False,
                ssr_mode=False, mcp_server=False, enable_monitoring=False, css=CSS,
            )  # fmt: skip
        except OSError as error:
            self.close()
            place = f"{host}, port {port or 'of any number'}"
            raise ValueError(f"The page cannot be served on {place}: {error}.") from error
        self.url = self._blocks.local_url

    def close(self) -> None:
        """Free the port and delete what was uploaded and shown."""
        self._blocks.close(verbose=False)
        self._folder.cleanup()
        os.environ.pop("GRADIO_TEMP_DIR", None)
        if self._before:
            os.environ["GRADIO_TEMP_DIR"] = self._before

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _page(demo: Demo) -> gr.Blocks:
    with gr.Blocks(title="Mini-CLIP", analytics_enabled=False, delete_cache=(3600, 3600)) as blocks:
        images, words = len(demo.index), len(demo.index.names["captions"])
        gr.Markdown(
            f"# Mini-CLIP\n{images:,} images and {words:,} captions ({demo.data.name}); nothing leaves this computer."
        )
        rows = sorted({*range(images)[:6], *range(images)[:: -(-images // 12)]})  # the first, and some of all
        picks = {row: demo.shown(demo.data.images[row]) for row in rows}
        with gr.Tab("Find images"):
            _find_images_tab(demo)
        with gr.Tab("Find captions"):
            _find_captions_tab(demo, picks)
        with gr.Tab("Name it"):
            _name_tab(demo, picks)
    return blocks


def _find_images_tab(demo: Demo) -> None:
    with gr.Row():
        query = gr.Textbox(label="A sentence", placeholder="What should the image show?", submit_btn="Find", scale=3)
        k, why = _options(len(demo.index))
    examples = gr.Examples([[text] for text in QUERIES], query, label="For example")
    account = gr.Markdown(elem_classes="account")
    gallery = gr.Gallery(
        label="Images, best first", elem_classes="results", height="auto", object_fit="contain", interactive=False
    )
    find = _call(demo.find_images, [query, k, why], [gallery, account])
    gr.on([query.submit, k.release, why.input], api_name="find_images", **find)
    examples.load_input_event.then(api_visibility="private", **find)


def _find_captions_tab(demo: Demo, picks: dict[int, Image.Image]) -> None:
    with gr.Row():
        with gr.Column(min_width=380):
            image, row, chosen = _chooser(picks)
        with gr.Column(scale=2):
            with gr.Row():
                k, why = _options(len(demo.index.names["captions"]))
            account = gr.Markdown(elem_classes="account")
            headers, widths = ["score", "caption", "true"], ["15%", "70%", "15%"]
            table = gr.Dataframe(headers=headers, column_widths=widths, datatype="str", wrap=True, interactive=False)
            shown = gr.Image(label="Where the best caption is seen", buttons=["fullscreen"], height=300, visible=False)

    def find(path, row, k, why):
        rows, picture, account = demo.find_captions(path if row is None else row, k, why)
        return rows, gr.Image(picture, visible=why), account

    find = _call(find, [image, row, k, why], [table, shown, account])
    gr.on([k.release, why.input], api_name="find_captions", **find)
    for event in chosen:
        event.then(api_visibility="private", **find)


def _name_tab(demo: Demo, picks: dict[int, Image.Image]) -> None:
    with gr.Row():
        with gr.Column(min_width=380):
            image, row, chosen = _chooser(picks)
        with gr.Column(scale=2):
            labels = gr.Textbox(LABELS, label="Labels, with commas between", lines=2)
            with gr.Accordion("Prompt templates", open=False):
                info = "One a line; the label goes where {} stands. The vectors of all lines are averaged."
                templates = gr.Textbox("\n".join(PHOTO_TEMPLATES), label="Templates", info=info, lines=4)
            button, account = gr.Button("Name it", variant="primary"), gr.Markdown(elem_classes="account")
            bars = gr.Label(label="Probability", num_top_classes=12, show_heading=False)

    def name(path, row, *texts):
        return demo.name(path if row is None else row, *texts)

    name = _call(name, [image, row, labels, templates], [bars, account])
    button.click(api_name="name", **name)
    for event in chosen:
        event.then(api_visibility="private", **name)


def _options(most: int) -> tuple[gr.Slider, gr.Checkbox]:
    k = gr.Slider(1, max(2, min(most, MOST_RESULTS)), min(most, 8), step=1, label="How many", min_width=160)
    return k, gr.Checkbox(label="Show why", info="where in the image it is seen", min_width=160)


def _chooser(picks: dict[int, Image.Image]) -> tuple[gr.Image, gr.State, list[Dependency]]:
    """Place to upload or pick an image; also the row of the picked one, or None, and the events of a new image."""
    label = f"Upload an image, at most {MOST_MEGABYTES} MB"
    image, row = gr.Image(label=label, sources=["upload", "clipboard"], buttons=[], height=280), gr.State(None)
    # Gradio would decode whatever came, and fetch an address given for a file; here the demo looks at the file first.
    image.preprocess = lambda upload: upload.path if upload else None
    image.async_move_resource_to_block_cache = partial(_local, image.async_move_resource_to_block_cache)
    gr.Markdown("or pick one:")
    plain = {"show_label": False, "allow_preview": False, "interactive": False, "buttons": []}
    gallery = gr.Gallery([*picks.values()], label="Pick an image", elem_classes="picks", height=330, **plain)

    def pick(event: gr.SelectData):
        row = [*picks][event.index]
        return picks[row], row

    picked = gallery.select(pick, None, [image, row], api_visibility="private")
    given = gr.on([image.upload, image.clear], lambda: None, None, row, api_visibility="private")
    return image, row, [picked, given]


async def _local(move: Callable, path: str | None) -> str | None:
    if path and re.match(r"\w+://", path):
        raise gr.Error("Upload an image: none is fetched from an address.", print_exception=False)
    return await move(path)


def _call(method: Callable, inputs: list, outputs: list) -> dict:
    """What wires a method of the demo: of bad input the page shows its sentence, and no result."""

    def run(*values):
        try:
            return method(*values)
        except ValueError as error:
            return *[None] * (len(outputs) - 1), f"⚠ {error}"

    # One at a time: the model is one, and so are the cores.
    return {"fn": run, "inputs": inputs, "outputs": outputs, "concurrency_limit": 1, "concurrency_id": "model"}
