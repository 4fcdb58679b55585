"""Training with CUDA graphs gives the results of training without them."""

import pytest
import torch
from run_files import losses_of
from small_run import small_config

from ovd.engine.graphed import GraphedDetector
from ovd.jobs.train import train_from_config

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_graphs_do_not_change_a_training(miniature_world, tmp_path, precision, monkeypatch):
    captured = []
    capture = GraphedDetector._capture

    def watched(self, images):
        captured.append(images.shape)
        return capture(self, images)

    monkeypatch.setattr(GraphedDetector, "_capture", watched)
    runs = {}
    for graphs in (False, True):
        train = {"cuda_graphs": graphs, "precision": precision, "device": "cuda", "steps": 8, "learning_rate": 3e-3}
        config = small_config(tmp_path / str(graphs), miniature_world, train=train, data={"scale": [0.5, 1.5]})
        train_from_config(config, evaluate=False)
        runs[graphs] = losses_of(tmp_path / str(graphs))
    assert captured
    assert len(captured) == len(set(captured))
    for step, (plain, graphed) in enumerate(zip(runs[False], runs[True], strict=True)):
        tolerance = 1e-3 if precision == "float32" else 2e-2
        assert graphed == pytest.approx(plain, rel=tolerance, abs=tolerance), step
    assert runs[True][-1]["quality"] < runs[True][0]["quality"]  # the quality loss falls
