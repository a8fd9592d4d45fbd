"""Measure how the page stands many visitors at once.

    python benchmarks/robustness.py    writes report/results/benchmarks/robustness.json

(``make bench-robustness`` runs it.) The page is served on this computer, over the free images.
Visitors ask it for images at the same time, each as soon as the last answer is there, and fetch
the pictures of every answer. An answer is broken if it is no answer, or if one of its pictures is
not whole.
"""

import argparse
import io
import itertools
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import requests
import torch
from PIL import Image

import minicliplib as mc
from minicliplib.apps.demo import FREE, FREE_LIMIT, QUERIES, Demo, Server
from minicliplib.scale.memory import keep_freed_memory

RESULTS = 8  # images that a visitor asks for
PATIENCE = 60  # seconds that a visitor waits for one answer


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--visitors", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    keep_freed_memory()  # as `miniclip demo` does
    started = time.perf_counter()
    model = mc.load("everyday", "cpu")
    demo = Demo(model, mc.load_dataset(FREE, "test", limit=FREE_LIMIT))
    with Server(demo) as server:
        metrics = {"load": load(server.url, options.visitors, options.seconds)}
    print(json.dumps(metrics))
    mc.save_result("benchmarks", "robustness", metrics, model.config, time.perf_counter() - started)


def load(url: str, visitors: int, seconds: float) -> dict[str, Any]:
    """Let visitors ask for so many seconds; return what they got, and when.

    Memory is that of the server's process, which the visitors' threads belong to as well.
    """
    # One round before the clock starts: what is loaded at first use stays.
    ask(url, QUERIES[0])
    before = resident_mebibytes()

    end = time.monotonic() + seconds

    def visit(number: int) -> list[tuple[float, bool]]:
        answers = []
        while time.monotonic() <= end:
            query = QUERIES[(number + len(answers)) % len(QUERIES)]
            asked = time.monotonic()
            whole = ask(url, query)
            answers.append((time.monotonic() - asked, whole))
        return answers

    with ThreadPoolExecutor(visitors) as pool:
        answers = list(itertools.chain(*pool.map(visit, range(visitors))))

    waits = [wait for wait, _ in answers]
    return {
        "visitors": visitors,
        "seconds": seconds,
        "answers": len(answers),
        "broken": sum(not whole for _, whole in answers),
        "median_seconds": float(np.median(waits)),
        "percentile_95_seconds": float(np.percentile(waits, 95)),
        "mebibytes_before": before,
        "mebibytes_after": resident_mebibytes(),
    }


def ask(url: str, query: str) -> bool:
    """Ask for images, fetch each picture, and return whether all of it came whole."""
    api = f"{url}gradio_api/call/find_images"
    try:
        data = {"data": [query, RESULTS, False]}
        event = requests.post(api, json=data, timeout=PATIENCE).json()["event_id"]
        text = requests.get(f"{api}/{event}", timeout=PATIENCE).text
        found = json.loads(text.partition("data: ")[2])[0]
        for item in found:
            picture = requests.get(item["image"]["url"], timeout=PATIENCE)
            picture.raise_for_status()
            Image.open(io.BytesIO(picture.content)).load()
    except (requests.RequestException, ValueError, KeyError, TypeError, OSError) as error:
        print(f"broken: {error!r:.200}", flush=True)
        return False
    return len(found) == RESULTS


def resident_mebibytes() -> float:
    """Return the memory that this process holds now, by Linux's own account."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    kibibytes = next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]
    return int(kibibytes) / 1024


if __name__ == "__main__":
    main()
