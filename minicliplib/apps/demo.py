"""The web page: images for a sentence, captions for an image, names for what an image shows.

``Demo`` is what the page does, without the page: it takes what a visitor gives, and returns what
the visitor sees. ``Server`` puts gradio's page in front of it. The page is served to this computer
alone unless you say otherwise, and it asks no other computer for anything.
"""

import hashlib
import math
import os
import re
import tempfile
import threading
import time
import warnings
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self

import gradio as gr
from gradio.data_classes import ImageData
from gradio.events import Dependency
from PIL import Image
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from ..analysis.relevance import overlay, relevance_map
from ..datasets.base import CaptionedImages
from ..datasets.images import EXTENSIONS, DataError, load_image
from ..datasets.load import load_dataset
from ..encoders import ImageLike
from ..model import MiniCLIP
from ..paths import data_root, short_hash
from ..scale.stored_index import stored_index
from ..zeroshot import PHOTO_TEMPLATES, ZeroShotClassifier

# Photos and scenes that need no download, and that may be shown to anyone. So many of each are
# enough to play with, and are embedded in seconds.
FREE = "photos+sample"
FREE_LIMIT = 120

# What the page offers before a visitor has typed anything.
QUERIES = (
    "A cat looks at the camera.",
    "Two dogs play in the snow.",
    "A surfer on a beach.",
    "Two rockets on a street.",
    "A person with a ball.",
)
LABELS = (
    "cat, dog, bird, person, astronaut, rocket, cup of coffee, clock, camera, bicycle, car, tree"
)

# Views of an image whose vectors are averaged. The four of the shipped model find a little better,
# but they take four times as long.
TTA_VIEWS = 1

# Limits of what a visitor may ask for.
MOST_RESULTS = 24
MOST_PROMPTS = 2000
MOST_MEGABYTES = 20

# How many images are offered to pick from: the first ones, and others spread over all.
FIRST_PICKS = 6
SPREAD_PICKS = 12

SIDE = 512  # pixels, of an image on the page

# Variables of the environment; gradio sets the second when it builds a page without analytics.
GRADIO_SETS = ("GRADIO_TEMP_DIR", "HF_HUB_DISABLE_TELEMETRY")

OPEN_HOSTS = ("0.0.0.0", "::")  # where the page is served to other computers, too

# A gallery has as many columns as fit. Gradio's own number would hide some of them on a phone.
CSS = """
.results div.grid-container {
    grid-template-columns: repeat(auto-fill, minmax(min(200px, 40vw), 1fr))
}
.picks div.grid-container {
    grid-template-columns: repeat(auto-fill, minmax(90px, 1fr))
}
"""


def collection(name: str | None = None, root: str | Path | None = None) -> CaptionedImages:
    """Load the images to search.

    Args:
        name: a dataset, of which the test split is taken, or "folder" for all images in ``root``.
            ``None`` takes Flickr8k if it has been downloaded, and else the free images.
        root: where the dataset lies; ``None`` is the data folder.

    Raises:
        DataError: the named dataset is not there, or it is damaged.

    """
    if name == "folder":
        return load_dataset("folder", "all", root)
    if name:
        return load_dataset(name, "test", root)
    try:
        return load_dataset("flickr8k", "test", root)
    except DataError:
        return load_dataset(FREE, "test", limit=FREE_LIMIT)


# ---- what the page does ----------------------------------------------------------------------


class Demo:
    """A model and a collection of images to search.

    Each method returns what to show, and a sentence that says how it was chosen. Where a method
    takes an image, it also takes the row of an image in the collection. Bad input raises a
    ``ValueError`` with one sentence for the visitor.

    Args:
        model: the model that embeds images and sentences.
        data: the images. If they have no captions at all, those of the free images are offered.
        root: the folder in which the images lie. Their vectors are kept under
            ``data_root()/cache`` by the name of the collection and this folder, so they are
            computed only once.
        progress: whether to show a progress bar.

    Attributes:
        index: the vectors of all images and captions.
        faults: a sentence on each image that cannot be read, and is left out.

    Raises:
        DataError: no image of the collection can be read.

    """

    def __init__(
        self,
        model: MiniCLIP,
        data: CaptionedImages,
        root: str | Path = "",
        progress: bool = False,
    ):
        captions = data.flat_captions
        if not captions:
            captions = load_dataset(FREE, "test", limit=FREE_LIMIT).flat_captions

        # another place, another model or other views need another index
        place = Path(root).resolve() if root else data.name
        key = short_hash(f"{place} {model.fingerprint()} {TTA_VIEWS}")
        folder = data_root() / "cache" / f"index-{data.name}-{key}"
        self.index, self.faults = stored_index(
            model, data.images, captions, folder, progress, tta_views=TTA_VIEWS
        )
        if not len(self.index):
            raise DataError(
                f"No image in {place} can be read, of {len(data)}. The first: {self.faults[0]}"
            )

        # row i of the index is image i of the data that are left
        self.data = data.subset(self.index.names["images"])
        self.model = model

    def find_images(
        self, query: str, k: int = 8, why: bool = False
    ) -> tuple[list[tuple[Image.Image, str]], str]:
        """Rank the images for a sentence.

        Args:
            query: the sentence.
            k: how many images to return; a number out of range becomes the nearest one in it.
            why: whether to lay over each image the map of where the sentence is seen.

        Returns:
            Each image with its label, ``"<cosine>  <name>"``, best first; and the summary.

        """
        start = time.perf_counter()
        if not query.strip():
            raise ValueError("The sentence is empty: type what the image should show.")

        k = _clamp(k, len(self.index))
        vector = self.model.encode_text(query)
        scores, rows = self.index.search_vectors(vector, k)

        found = []
        for score, row in zip(scores[0], rows[0], strict=True):
            image = self.preview(self.data.images[row], query if why else None)
            found.append((image, f"{score:.2f}  {self.name_of(row)}"))
        summary = _summary(start, k, len(self.index), "images")
        return found, summary + self._note_if_cut(query)

    def find_captions(
        self, image: int | ImageLike | None, k: int = 8, why: bool = False
    ) -> tuple[list[list[str]], Image.Image | None, str]:
        """Rank the captions for an image.

        Args:
            image: the image, or the row of one in the collection.
            k: how many captions to return; a number out of range becomes the nearest one in it.
            why: whether to draw the map of where the best caption is seen.

        Returns:
            A row for each caption, ``[cosine, caption, tick]``, best first; the image under its
            map, or ``None``; and the summary. A tick marks a caption of this very image, which is
            only known of an image of the collection.

        """
        start = time.perf_counter()
        opened = self._opened(image)

        captions = self.index.names["captions"]
        k = _clamp(k, len(captions))
        vector = self.model.encode_image(opened, tta_views=TTA_VIEWS)
        scores, rows = self.index.search_vectors(vector, k, "captions")

        true_captions = self.data.captions[image] if isinstance(image, int) else []
        table = []
        for score, row in zip(scores[0], rows[0], strict=True):
            tick = "✓" if captions[row] in true_captions else ""
            table.append([f"{score:.2f}", captions[row], tick])

        best_caption = captions[rows[0][0]]
        shown = self.preview(opened, best_caption) if why else None
        return table, shown, _summary(start, k, len(captions), "captions")

    def name(
        self,
        image: int | ImageLike | None,
        labels: str,
        templates: str = "\n".join(PHOTO_TEMPLATES),
    ) -> tuple[dict[str, float], str]:
        """Give each label the probability that it names what the image shows.

        Args:
            image: the image, or the row of one in the collection.
            labels: the labels, with commas or line ends between them.
            templates: the prompts, one on each line, with ``{}`` where the label goes.

        Returns:
            The probability of each label, the most probable one first; and the summary.

        """
        start = time.perf_counter()
        opened = self._opened(image)

        names = [label for label in re.split(r"\s*[,\n]\s*", labels.strip()) if label]
        prompts = [line.strip() for line in templates.splitlines() if line.strip()]
        if len(names) * len(prompts) > MOST_PROMPTS:
            raise ValueError(
                f"{len(names)} labels in {len(prompts)} templates are over {MOST_PROMPTS:,} "
                "prompts: give fewer."
            )

        classifier = ZeroShotClassifier(self.model, names, prompts)
        vector = self.model.encode_image(opened, tta_views=TTA_VIEWS)
        guesses = classifier.predict(vector, len(names))[0]
        return dict(guesses), _summary(start, 1, len(names), "labels")

    def name_of(self, row: int) -> str:
        """Return the name of an image of the collection: that of its file, or its number."""
        image = self.data.images[row]
        return image.name if isinstance(image, Path) else f"image {row}"

    def preview(self, image: ImageLike, why: str | None = None) -> Image.Image:
        """Return an image for the page, at most ``SIDE`` pixels high and wide.

        With ``why`` the image is grey under the map of where this sentence is seen. The preview
        has the pixels of the file and nothing else that the file may hold, such as a place.
        """
        if why:
            preview = overlay(image, relevance_map(self.model, image, why), SIDE)
        else:
            # a copy: the collection keeps its own image as it is
            preview = load_image(image, SIDE).copy()
        preview.thumbnail((SIDE, SIDE))
        return preview

    def _opened(self, image: int | ImageLike | None) -> ImageLike:
        """Return the image that a visitor has picked by its row, or has uploaded."""
        if image is None:
            raise ValueError("There is no image yet: upload one, or pick one of those below.")
        if isinstance(image, int):
            return self.data.images[image]
        if isinstance(image, Image.Image):
            return image
        return _read_upload(Path(image))

    def _note_if_cut(self, query: str) -> str:
        """Return a sentence for the visitor if the text tower reads only the start of the query."""
        encoder = self.model.text_encoder
        most = encoder.max_tokens
        pieces = encoder.tokenizer(query, truncation=True, max_length=most + 1)["input_ids"]
        if len(pieces) <= most:
            return ""
        return f" The sentence is long: only its first {most} word pieces were read."


def _clamp(k: int, size: int) -> int:
    """Return the number from 1 to ``size`` that is nearest to ``k``."""
    return max(1, min(int(k), size))


def _summary(start: float, k: int, size: int, kind: str) -> str:
    """Say how many were chosen from how many, and in what time since ``start``."""
    seconds = time.perf_counter() - start
    return f"The best {k} of {size:,} {kind}, in {seconds:.2f} s."


def _read_upload(path: Path) -> Image.Image:
    """Decode an uploaded file.

    The file may be anything, so each error names it by its own name alone, without its folder.

    Raises:
        ValueError: it is not an image, it is damaged, or it would take too much memory.

    """
    if path.suffix.lower() not in EXTENSIONS:
        kinds = " ".join(sorted(EXTENSIONS))
        raise ValueError(f"{path.name} is not an image of a known kind: {kinds}.")
    try:
        # Pillow warns of an image so large that it may be an attack; here that is an error
        with warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning):
            return load_image(path, hint=SIDE)
    except DataError as error:
        bomb = Image.DecompressionBombWarning | Image.DecompressionBombError
        if isinstance(error.__cause__, bomb):
            most = Image.MAX_IMAGE_PIXELS or 0
            raise ValueError(
                f"{path.name} has more than {most / 1e6:.0f} million pixels: make it smaller first."
            ) from error
        raise ValueError(
            f"{path.name} cannot be read as an image: it is damaged, or something else."
        ) from error


# ---- the server ------------------------------------------------------------------------------


class Server:
    """The page, served until ``close()``, or inside a ``with``.

    The size and the kind of uploads are limited, and a visitor cannot ask for any file of this
    computer. A page of another site cannot reach it under that site's name. What was uploaded or
    shown lies in a folder that is deleted when the server closes.

    Args:
        demo: what the page does.
        host: the address to listen on; the default is for this computer alone.
        port: the port; ``None`` takes the first free one from 7860 on.

    Attributes:
        url: the address to open in a browser.
        folder: where uploads and shown images lie.

    Raises:
        ValueError: the page cannot be served there, for example because the port is taken.

    """

    def __init__(self, demo: Demo, host: str = "127.0.0.1", port: int | None = None):
        # If one step fails, the steps before it are undone. If all go well, close() undoes them.
        with ExitStack() as cleanup:
            self.folder = Path(cleanup.enter_context(_folder_for_gradio()))
            blocks = _page(demo, Pictures(self.folder / "shown"))
            cleanup.callback(blocks.close, verbose=False)
            _launch(blocks, host, port)
            self.url: str = blocks.local_url or ""
            self._cleanup = cleanup.pop_all()

    def close(self) -> None:
        """Free the port, and delete what was uploaded and shown."""
        self._cleanup.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


@contextmanager
def _folder_for_gradio() -> Iterator[str]:
    """Let gradio keep its files in a folder of our own, which is deleted in the end.

    The variables that this and gradio itself set are in the end what they were.
    """
    before = {name: os.environ.get(name) for name in GRADIO_SETS}
    with tempfile.TemporaryDirectory(prefix="miniclip-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        try:
            yield folder
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


class Pictures:
    """Pictures that the page shows, each written once and whole.

    Gradio would encode a picture anew for each visitor, into the file that others are reading.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.folder.mkdir()

    def file_of(self, picture: Image.Image) -> str:
        """Return the path of a file that shows a picture."""
        content = hashlib.sha256(f"{picture.size}".encode() + picture.tobytes()).hexdigest()
        path = self.folder / f"{content[:24]}.jpg"
        if not path.exists():
            # Two visitors may write the same picture, each into a file of their own.
            part = path.with_name(f"{path.stem}-{threading.get_ident()}.part")
            picture.save(part, "JPEG", quality=90)
            part.replace(path)
        return str(path)


def _launch(blocks: gr.Blocks, host: str, port: int | None) -> None:
    """Serve a page from a thread of its own, with all that would reach beyond it switched off."""
    # A site may let its own name lead to this computer, and then ask from the visitor's browser
    # (DNS rebinding). So only requests to our own names are answered. Who lets other computers in
    # has a name that we do not know.
    names = ["*"] if host in OPEN_HOSTS else [host, "127.0.0.1", "localhost"]
    our_names = Middleware(TrustedHostMiddleware, allowed_hosts=names, www_redirect=False)
    try:
        blocks.launch(
            server_name=host,
            server_port=port,
            css=CSS,
            app_kwargs={"middleware": [our_names]},
            prevent_thread_lock=True,
            inline=False,
            quiet=True,
            share=False,
            max_file_size=f"{MOST_MEGABYTES}mb",
            allowed_paths=[],
            footer_links=[],
            run_history=False,
            ssr_mode=False,
            mcp_server=False,
            enable_monitoring=False,
        )
    except OSError as error:
        place = f"{host}, port {port or 'of any number'}"
        raise ValueError(f"The page cannot be served on {place}: {error}.") from error


# ---- the page --------------------------------------------------------------------------------


def _page(demo: Demo, pictures: Pictures) -> gr.Blocks:
    """Lay out the page: a heading, and a tab for each method of the demo."""
    images = len(demo.index)
    captions = len(demo.index.names["captions"])
    picks = {}
    for row in _rows_to_pick(images):
        picks[row] = demo.preview(demo.data.images[row])

    with gr.Blocks(title="Mini-CLIP", analytics_enabled=False, delete_cache=(3600, 3600)) as blocks:
        gr.Markdown(
            f"# Mini-CLIP\n{images:,} images and {captions:,} captions ({demo.data.name}); "
            "nothing leaves this computer."
        )
        with gr.Tab("Find images"):
            _find_images_tab(demo, pictures)
        with gr.Tab("Find captions"):
            _find_captions_tab(demo, picks)
        with gr.Tab("Name it"):
            _name_tab(demo, picks)
    return blocks


def _rows_to_pick(images: int) -> list[int]:
    """Return the rows of the images that a visitor may pick: the first ones, and some of all."""
    first = range(min(images, FIRST_PICKS))
    spread = range(0, images, math.ceil(images / SPREAD_PICKS))
    return sorted(set(first) | set(spread))


def _find_images_tab(demo: Demo, pictures: Pictures) -> None:
    # what the visitor gives
    with gr.Row():
        query = gr.Textbox(
            label="A sentence",
            placeholder="What should the image show?",
            submit_btn="Find",
            scale=3,
        )
        k, why = _options(len(demo.index))
    examples = gr.Examples([[text] for text in QUERIES], query, label="For example")

    # what the visitor sees
    summary = gr.Markdown(elem_classes="summary")
    gallery = gr.Gallery(
        label="Images, best first",
        elem_classes="results",
        height="auto",
        object_fit="contain",
        interactive=False,
    )

    def find_images(query: str, k: int, why: bool) -> tuple[list[tuple[str, str]], str]:
        found, text = demo.find_images(query, k, why)
        return [(pictures.file_of(image), label) for image, label in found], text

    # what starts a search
    find = _listener(find_images, [query, k, why], [gallery, summary])
    gr.on([query.submit, k.release, why.input], api_name="find_images", **find)
    examples.load_input_event.then(api_visibility="private", **find)


def _find_captions_tab(demo: Demo, picks: dict[int, Image.Image]) -> None:
    # what the visitor gives on the left, and sees on the right
    with gr.Row():
        with gr.Column(min_width=380):
            chooser = _chooser(picks)
        with gr.Column(scale=2):
            with gr.Row():
                k, why = _options(len(demo.index.names["captions"]))
            summary = gr.Markdown(elem_classes="summary")
            table = gr.Dataframe(
                headers=["score", "caption", "true"],
                column_widths=["15%", "70%", "15%"],
                datatype="str",
                wrap=True,
                interactive=False,
            )
            shown = gr.Image(
                label="Where the best caption is seen",
                buttons=["fullscreen"],
                height=300,
                visible=False,
            )

    def find_captions(path: str | None, row: int | None, k: int, why: bool) -> tuple:
        image = path if row is None else row
        rows, image_under_map, text = demo.find_captions(image, k, why)
        return rows, gr.Image(image_under_map, visible=why), text

    # what starts a search
    inputs = [chooser.image, chooser.row, k, why]
    find = _listener(find_captions, inputs, [table, shown, summary])
    gr.on([k.release, why.input], api_name="find_captions", **find)
    for event in chooser.events:
        event.then(api_visibility="private", **find)


def _name_tab(demo: Demo, picks: dict[int, Image.Image]) -> None:
    # what the visitor gives on the left, and sees on the right
    with gr.Row():
        with gr.Column(min_width=380):
            chooser = _chooser(picks)
        with gr.Column(scale=2):
            labels = gr.Textbox(LABELS, label="Labels, with commas between", lines=2)
            with gr.Accordion("Prompt templates", open=False):
                templates = gr.Textbox(
                    "\n".join(PHOTO_TEMPLATES),
                    label="Templates",
                    info="One a line; the label goes where {} stands. "
                    "The vectors of all lines are averaged.",
                    lines=4,
                )
            button = gr.Button("Name it", variant="primary")
            summary = gr.Markdown(elem_classes="summary")
            bars = gr.Label(label="Probability", num_top_classes=12, show_heading=False)

    def name_image(path: str | None, row: int | None, label_text: str, prompts: str) -> tuple:
        image = path if row is None else row
        return demo.name(image, label_text, prompts)

    # what starts the naming
    inputs = [chooser.image, chooser.row, labels, templates]
    name_it = _listener(name_image, inputs, [bars, summary])
    button.click(api_name="name", **name_it)
    for event in chooser.events:
        event.then(api_visibility="private", **name_it)


def _options(most: int) -> tuple[gr.Slider, gr.Checkbox]:
    """Lay out what two tabs share: how many of ``most`` results to show, and whether to say why."""
    highest = max(2, min(most, MOST_RESULTS))
    k = gr.Slider(1, highest, min(most, 8), step=1, label="How many", min_width=160)
    why = gr.Checkbox(label="Show why", info="where in the image it is seen", min_width=160)
    return k, why


class Chooser(NamedTuple):
    """A place to upload an image, above a gallery to pick one from."""

    image: gr.Image
    row: gr.State  # of the image that was picked, or None for an upload
    events: list[Dependency]  # when there is another image


def _chooser(picks: dict[int, Image.Image]) -> Chooser:
    """Lay out a chooser; ``picks`` are the images of its gallery, by their rows in the index."""
    # a place to upload an image
    label = f"Upload an image, at most {MOST_MEGABYTES} MB"
    image = gr.Image(label=label, sources=["upload", "clipboard"], buttons=[], height=280)
    row = gr.State(None)
    _leave_unread(image)

    # a gallery to pick one from
    gr.Markdown("or pick one:")
    gallery = gr.Gallery(
        list(picks.values()),
        label="Pick an image",
        elem_classes="picks",
        height=330,
        show_label=False,
        allow_preview=False,
        interactive=False,
        buttons=[],
    )

    def pick(event: gr.SelectData) -> tuple[Image.Image, int]:
        row = list(picks)[event.index]
        return picks[row], row

    def forget_row() -> None:
        return None

    picked = gallery.select(pick, None, [image, row], api_visibility="private")
    changed = [image.upload, image.clear]
    uploaded = gr.on(changed, forget_row, None, row, api_visibility="private")
    return Chooser(image, row, [picked, uploaded])


def _leave_unread(image: gr.Image) -> None:
    """Give the demo an upload as the path of its file, so that the demo checks it first.

    Gradio would decode whatever came, and would fetch an address that was given for a file.
    """
    image.preprocess = _path_of_upload
    move = image.async_move_resource_to_block_cache
    image.async_move_resource_to_block_cache = partial(_move_local_file, move)


def _path_of_upload(payload: ImageData | None) -> str | None:
    return payload.path if payload else None


async def _move_local_file(
    move: Callable[[str | Path | None], Awaitable[str | None]],
    url_or_file_path: str | Path | None,
) -> str | None:
    """Let gradio ``move`` a file into its folder, but refuse an address."""
    if url_or_file_path and re.match(r"\w+://", str(url_or_file_path)):
        raise gr.Error("Upload an image: none is fetched from an address.", print_exception=False)
    return await move(url_or_file_path)


def _listener(
    method: Callable[..., Sequence[Any]],
    inputs: list[gr.components.Component],
    outputs: list[gr.components.Component],
) -> dict[str, Any]:
    """Return what gradio needs to call a method of the demo when a visitor asks.

    The last output is the summary. After bad input the page shows the error's sentence there, and
    no result.
    """

    def run(*values: Any) -> Sequence[Any]:
        try:
            return method(*values)
        except ValueError as error:
            results: list[Any] = [None] * len(outputs)
            results[-1] = f"⚠ {error}"
            return results

    # There is one model for all visitors, so it answers one question at a time.
    return {
        "fn": run,
        "inputs": inputs,
        "outputs": outputs,
        "concurrency_limit": 1,
        "concurrency_id": "model",
    }
