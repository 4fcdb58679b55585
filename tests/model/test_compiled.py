"""The learned path gives the same results with and without torch.compile."""

import copy
import shutil

import pytest
import torch
from small_detector import build_detector

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU"),
    pytest.mark.filterwarnings("ignore"),  # torch warns while it looks for compilers
]


def test_a_detector_its_gradients_its_weights_names_and_its_copies(tiny_clip, monkeypatch, tmp_path):
    # Torch reuses what it compiled for other sizes, with their strides built in, from its cache on disk and within the
    # same process.
    torch.compiler.reset()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(torch._dynamo.config, "fail_on_recompile_limit_hit", True)
    plain = build_detector(tiny_clip, "pyramid", "head")
    fused = copy.deepcopy(plain)
    fused.compile_learned_path()
    assert fused.state_dict().keys() == plain.state_dict().keys()
    generator = torch.Generator().manual_seed(0)
    for batch_size, height, width in ((2, 64, 96), (1, 96, 64), (3, 64, 64)):
        images = torch.randint(0, 256, (batch_size, 3, height, width), dtype=torch.uint8, generator=generator)
        losses = []
        for detector in (plain, fused):
            detector.zero_grad()
            found = detector(images)
            loss = found.embeddings.square().sum() + 1e-3 * found.boxes.sum() + found.quality.square().sum()
            loss.backward()
            losses.append(loss)
        torch.testing.assert_close(losses[1], losses[0], rtol=1e-4, atol=1e-4)
        for (name, expected), (_, measured) in zip(plain.named_parameters(), fused.named_parameters(), strict=True):
            if expected.grad is not None:
                torch.testing.assert_close(measured.grad, expected.grad, rtol=1e-3, atol=1e-3, msg=name)
    copied = copy.deepcopy(fused)
    assert copied.head._compiled_call_impl is None
