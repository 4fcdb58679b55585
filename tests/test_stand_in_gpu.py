"""The stand-in for a GPU refuses what a GPU refuses, and a detector trains on it as on the CPU."""

import json

import pytest
import torch
from python_process import output_of
from run_files import losses_of

pytest.importorskip("triton")

NEED_A_GPU = (
    "tests/engine/test_graphed.py::test_graphs_do_not_change_a_training[float32]",
    "tests/text/test_encoder.py::test_on_a_gpu_the_rows_are_the_same",
    "tests/data/test_loader.py::test_for_a_gpu_batches_of_workers_lie_in_pinned_memory",
)
REFUSALS = """
import copy, numpy, pytest, torch, stand_in_gpu
stand_in_gpu.install()
x = torch.arange(3.0).to("cuda").requires_grad_()
assert x.is_cuda and x.device == torch.zeros(2, device="cuda").device == torch.zeros_like(x).device
assert copy.deepcopy(x).is_cuda and not x.cpu().is_cuda and x.detach().cpu().numpy().tolist() == [0, 1, 2]
for mixed in (lambda: x + torch.ones(3), lambda: torch.equal(x, torch.ones(3)), lambda: torch.cat([x, torch.ones(1)])):
    with pytest.raises(RuntimeError, match="same device"):
        mixed()
with pytest.raises(TypeError, match="numpy"):
    numpy.asarray(x.detach())
assert (x * torch.tensor(2.0) + 1)[torch.tensor([2])].item() == 5  # scalars and indices may be the CPU's

module = torch.nn.Linear(3, 2).to("cuda")
with torch.autocast("cuda", dtype=torch.bfloat16):
    assert module(x).dtype == torch.bfloat16
module(x[None]).cpu().sum().backward()
assert module.weight.grad.is_cuda and torch.equal(x.grad.cpu(), module.weight.detach().cpu().sum(0))

copies = lambda y: y + torch.tensor([1.0]).to("cuda")
for waits in (lambda y: y.item(), lambda y: y.nonzero(), lambda y: y.cpu(), copies):
    with pytest.raises(RuntimeError, match="captured"):
        torch.cuda.make_graphed_callables(waits, (x,))(x.detach()[:1])
assert torch.cuda.make_graphed_callables(lambda y: y + torch.ones(1, device="cuda"), (x,))(x).is_cuda
"""
ON_DEVICE = """
import sys
from pathlib import Path
if sys.argv[1] == "cuda":
    import stand_in_gpu
    stand_in_gpu.install()
"""
TRAINING = (
    ON_DEVICE
    + """
import json
import ovd.engine.train
from small_run import small_config
from ovd.jobs.train import train_from_config
run, world = map(Path, sys.argv[2:])
syncs, step = [], ovd.engine.train.train_step
def counted(*arguments):
    before = stand_in_gpu.Host.syncs.total() if sys.argv[1] == "cuda" else 0
    losses = step(*arguments)
    syncs.append(stand_in_gpu.Host.syncs.total() - before if sys.argv[1] == "cuda" else 0)
    return losses
ovd.engine.train.train_step = counted
train = {"device": sys.argv[1], "precision": "float32", "steps": 2, "sampled_classes": 5, "deterministic": False}
train_from_config(small_config(run, world, train=train, data={"size": 64}), evaluate=False)
(run / "syncs.json").write_text(json.dumps(syncs))
"""
)
DETECTION = (
    ON_DEVICE
    + """
import numpy, torch
from ovd.predictor import Predictor
run, output = map(Path, sys.argv[2:])
image = numpy.random.default_rng(0).integers(0, 256, (48, 64, 3)).astype(numpy.uint8)
found = Predictor.load(run, device=sys.argv[1])(image, ["umbrella", "anchor", "cat face"])
torch.save({name: getattr(found, name) for name in ("boxes", "scores", "classes")}, output)
"""
)


def test_it_refuses_what_a_gpu_does():
    output_of("-c", REFUSALS)


@pytest.mark.slow
def test_tests_that_need_a_gpu_run_on_the_stand_in():
    output = output_of("-m", "pytest", "-p", "stand_in_gpu", "-p", "no:cacheprovider", *NEED_A_GPU)
    assert f"{len(NEED_A_GPU)} passed" in output
    assert "skipped" not in output


@pytest.mark.slow
def test_with_kernels_and_graphs_a_detector_trains_and_detects_as_on_the_cpu(miniature_world, tmp_path):
    losses, found = {}, {}
    for device in ("cpu", "cuda"):
        output_of("-c", TRAINING, device, str(tmp_path / device), str(miniature_world), STAND_IN_KERNELS="1")
        losses[device] = losses_of(tmp_path / device)
        output = tmp_path / f"{device}.pt"
        output_of("-c", DETECTION, device, str(tmp_path / "cpu"), str(output), STAND_IN_KERNELS="1")
        found[device] = torch.load(output)
    assert len(losses["cpu"]) == 2
    for on_cpu, on_gpu in zip(losses["cpu"], losses["cuda"], strict=True):
        assert on_gpu == pytest.approx(on_cpu, rel=1e-4)
    # There are 14 copies (9 of the batch, 5 of its texts) and 4 waits (3 to match points, 1 for the logged numbers).
    assert json.loads((tmp_path / "cuda" / "syncs.json").read_text()) == [18, 18]
    assert len(found["cpu"]["scores"]) > 10
    torch.testing.assert_close(found["cuda"], found["cpu"], rtol=1e-4, atol=1e-3)
