"""What a tower weighs and costs: the table of its stages, and the dial."""

import math

import pytest
import torch

from minicliplib.analysis.costs import freeze_dial, stage_costs


def test_the_stages_add_up_to_the_tower(tuned):
    tower = tuned.image_encoder
    costs = stage_costs(tower, torch.zeros(2, 3, 224, 224))
    assert list(costs.index) == [name for name, _ in tower.stages]
    assert costs["parameters"].sum() == sum(p.numel() for p in tower.parameters())
    assert costs["frozen"].sum() == tower.frozen
    assert costs["shape"].iloc[-1] == (2, 1280, 7, 7)
    assert costs["gflops"].sum() == pytest.approx(0.77, abs=0.02)  # twice timm's 0.39 GMACs


def test_a_text_layer_costs_what_one_computes_by_hand(tuned):
    tower = tuned.text_encoder
    ids, mask = tower.prepare(["a dog " * 15, "two cats"])
    costs = stage_costs(tower, ids, mask)
    tokens = ids.shape[1]
    # Four maps of attention and two layers of the perceptron, then tokens with tokens, twice.
    by_hand = (24 * tokens * 384**2 + 4 * tokens**2 * 384) / 1e9
    assert costs["gflops"].iloc[1:].to_numpy() == pytest.approx(by_hand, rel=1e-3)
    assert costs["gflops"].iloc[0] == 0  # embeddings are looked up


def test_the_dial_runs_from_locked_to_all(tuned):
    costs = stage_costs(tuned.image_encoder, torch.zeros(1, 3, 224, 224))
    dial = freeze_dial(costs, reads=[15, 17])
    assert len(dial["gflops"]) == len(costs) + 1
    assert dial["million_parameters"][0] == dial["gflops"][0] == 0
    assert dial["gflops"][-1] == pytest.approx(3 * costs["gflops"].sum(), abs=1e-3)

    # Locked, the means of both stages that are read are kept; one stage up, a map and one mean.
    widths = [shape[1] for shape in costs["shape"]]
    assert dial["kilobytes"][0] == pytest.approx(2 * (widths[15] + widths[17]) / 1e3, abs=0.01)
    map_and_mean = math.prod(costs["shape"].iloc[16][1:]) + widths[15]
    assert dial["kilobytes"][1] == pytest.approx(2 * map_and_mean / 1e3, abs=0.01)
    assert dial["kilobytes"][-1] is None


def test_a_captions_cache_grows_with_its_tokens(tuned):
    ids, mask = tuned.text_encoder.prepare(["a dog runs"])
    costs = stage_costs(tuned.text_encoder, ids, mask)
    dial = freeze_dial(costs, reads=[6], tokens=14)
    assert dial["kilobytes"][0] == pytest.approx(2 * 384 / 1e3, abs=0.01)
    assert dial["kilobytes"][1] == pytest.approx(2 * 14 * 384 / 1e3, abs=0.01)
