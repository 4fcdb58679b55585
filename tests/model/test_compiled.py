"""What torch.compile makes of the learned path, the class loss and the scores is what they are without it."""

import copy
import shutil

import pytest
import torch
from small_detector import build_detector
from torch.nn import functional as F

from ovd.model.compiled import compiled
from ovd.model.focal import _background_focal, _background_focal_, chunked_focal_loss
from ovd.model.postprocess import _join_scores
from ovd.model.similarity import TextClassifier

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU"),
    pytest.mark.filterwarnings("ignore"),  # torch's own, as it looks for compilers
]


@pytest.mark.parametrize("gamma", [2.0, 1.5])
def test_the_class_loss_and_its_derivative(gamma):
    generator = torch.Generator().manual_seed(0)
    for num_points in (7, 130):
        logits = 30 * torch.randn(num_points, 40, generator=generator)
        weight = torch.rand(num_points, 40, generator=generator)
        expected = _background_focal_(logits.clone(), [torch.empty_like(logits) for _ in range(3)], weight, gamma)
        for measured in (_background_focal(logits, weight, gamma), compiled(_background_focal)(logits, weight, gamma)):
            torch.testing.assert_close(measured, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("masked", [False, True])
def test_the_whole_class_loss_and_its_gradients(masked):
    generator = torch.Generator().manual_seed(0)
    text = F.normalize(torch.randn(40, 16, generator=generator), dim=1)
    labels = torch.randint(-1, 40, (130,), generator=generator)
    mask = torch.rand(3, 40, generator=generator) < 0.5 if masked else None
    group = torch.randint(0, 3, (130,), generator=generator) if masked else None
    found = []
    for use_compiled in (False, True):
        embeddings = F.normalize(torch.randn(130, 16, generator=generator.manual_seed(1)), dim=1).requires_grad_()
        scale, bias = torch.tensor(20.0, requires_grad=True), torch.tensor(-3.0, requires_grad=True)
        classifier = TextClassifier(text, torch.arange(40), scale, bias)
        loss = chunked_focal_loss(embeddings, classifier, labels, mask, group, chunk_size=50, use_compiled=use_compiled)
        loss.backward()
        found.append((loss.detach(), embeddings.grad, scale.grad, bias.grad))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)


def test_scores():
    named, quality = torch.rand(9, 5), torch.randn(9)
    torch.testing.assert_close(compiled(_join_scores)(named, quality), _join_scores(named, quality))


def test_a_detector_its_gradients_its_weights_names_and_its_copies(tiny_clip, monkeypatch, tmp_path):
    # Torch's cache hands out what it compiled for other sizes, with their strides written into it, and so does the
    # process that compiled it.
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
