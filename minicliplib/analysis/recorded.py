"""What the notebooks measured before, on this dataset or on another.

A notebook that runs on the sample shows Flickr8k's charts beside its own. They are drawn from the
results that lie in ``report/results``, so nobody has to wait an hour for them.
"""

import json
from typing import Any

from ..paths import CHECKOUT


def recorded(dataset: str, topic: str) -> dict[str, Any]:
    """Return what ``save_result`` wrote for a dataset and a topic: its metrics, date and settings.

    Raises:
        FileNotFoundError: nothing is recorded there, or the package is not in a checkout.

    """
    path = CHECKOUT / "report" / "results" / dataset / f"{topic}.json"
    if not path.exists():
        command = f"python notebooks/run.py --dataset {dataset} --refresh --only {topic[:2]}"
        if dataset == "benchmarks":
            command = f"make bench-{topic}"
        raise FileNotFoundError(f"There is no record at {path}. In a checkout, run: {command}")
    return json.loads(path.read_text(encoding="utf-8"))
