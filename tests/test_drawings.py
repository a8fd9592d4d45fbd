"""Drawings hold all their text, and are the same file on every machine."""

import os
import subprocess
import sys
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import drawings
import matplotlib.pyplot as plt
import pytest
from matplotlib.figure import Figure

REPORT = Path(drawings.__file__).parent
NOISE = 1e-12  # far more than rounding leaves in the last digits of a float


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    """Return a folder with all drawings."""
    folder = tmp_path_factory.mktemp("drawings")
    for name in drawings.FIGURES:
        drawings.write(name, folder / f"{name}.svg")
    return folder


def noisy(value: Any) -> Any:
    """Return results with each float a little larger; whole numbers and texts stay."""
    if isinstance(value, float):
        return value * (1 + NOISE)
    if isinstance(value, list):
        return [noisy(item) for item in value]
    if isinstance(value, dict):
        return {key: noisy(item) for key, item in value.items()}
    return value


def with_noisy_places(draw: Callable[[], Figure]) -> Callable[[], Figure]:
    """Let a function draw with its panels a little larger, and a little to the right."""

    def draw_elsewhere() -> Figure:
        fig = draw()
        for ax in fig.axes:
            bounds = ax.get_position().bounds
            ax.set_position([length * (1 + NOISE) for length in bounds])
        return fig

    return draw_elsewhere


@pytest.mark.slow
@pytest.mark.parametrize("name", drawings.FIGURES)
def test_the_last_digits_of_a_number_change_no_byte(name, drawn, tmp_path, monkeypatch):
    measured = drawings.measured
    monkeypatch.setattr(drawings, "measured", lambda *source: noisy(measured(*source)))
    draw_elsewhere = with_noisy_places(drawings.FIGURES[name])
    monkeypatch.setitem(drawings.FIGURES, name, draw_elsewhere)
    again = tmp_path / "again.svg"
    drawings.write(name, again)
    assert again.read_bytes() == (drawn / f"{name}.svg").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("processor", ["Haswell", "Prescott"])
def test_another_processor_draws_the_same(processor, drawn, tmp_path):
    """NumPy's matrix library computes as on another processor, with other last digits."""
    code = """
import sys
from pathlib import Path
import drawings
for name in drawings.FIGURES:
    drawings.write(name, Path(sys.argv[1]) / f"{name}.svg")
"""
    settings = {"OPENBLAS_CORETYPE": processor, "PYTHONPATH": str(REPORT)}
    command = [sys.executable, "-c", code, str(tmp_path)]
    subprocess.run(command, env=os.environ | settings, check=True)
    for name in drawings.FIGURES:
        file = f"{name}.svg"
        assert (tmp_path / file).read_bytes() == (drawn / file).read_bytes(), name


@pytest.mark.parametrize("name", drawings.FIGURES)
def test_a_drawing_says_nothing_of_the_machine(name, drawn):
    svg = (drawn / f"{name}.svg").read_text(encoding="utf-8")
    assert "<svg" in svg
    assert "Matplotlib" not in svg
    assert "dc:date" not in svg


@pytest.mark.parametrize("name", drawings.FIGURES)
def test_all_text_fits_and_no_panel_covers_another(name):
    with plt.rc_context(drawings.viz.THEME):
        fig = drawings.FIGURES[name]()
        fig.draw_without_rendering()
        renderer = fig.canvas.get_renderer()
        used = fig.get_tightbbox(renderer)  # in inches
        panels = [ax.get_tightbbox(renderer) for ax in fig.axes]
        plt.close(fig)

    width, height = fig.get_size_inches()
    assert used.x0 >= 0
    assert used.y0 >= 0
    assert used.x1 <= width
    assert used.y1 <= height
    for one, other in combinations(panels, 2):
        assert not one.overlaps(other)
