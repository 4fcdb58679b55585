"""Check on a GPU what no machine without one can show, before anything is timed there.

    python bench/gpu_checks.py --device cuda

Each check is an assertion about sizes that neither Triton's interpreter nor the stand-in of the tests can hold: maps of
more than 2**31 numbers, the class loss of a whole batch, and suppression in 16 images. It takes seconds and 20 GiB.
"""

import argparse
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from ovd import kernels
from ovd.kernels.bias_relu import BiasRelu
from ovd.kernels.focal import FocalLoss
from ovd.kernels.group_norm import GroupNormRelu
from ovd.kernels.rows import NormalizeRows
from ovd.model.focal import ALPHA, chunked_focal_loss
from ovd.model.similarity import EPSILON, TextClassifier
from ovd.model.suppression import best_after_nms
from ovd.precision import describe_machine, on_device

LARGE = 2**31
"""Number of elements that an index of 32 bits cannot reach."""


def kernels_are_used(device: torch.device, _share: float) -> None:
    """Check that the kernels are used, since without them all times would be those of torch's operations."""
    assert kernels.supports(torch.zeros(1, device=device)), "the kernels are not used; is Triton installed?"


def last_rows_of_large_tensors(device: torch.device, share: float) -> None:
    """Check that the last row of a tensor is computed as it is alone."""
    rows = torch.zeros(int(share * LARGE) // 1024 + 5, 1024, dtype=torch.bfloat16, device=device)
    rows[-1] = torch.linspace(-1, 1, 1024, device=device)
    unit = NormalizeRows.apply(rows, 1e-12)
    assert torch.equal(unit[-1:], NormalizeRows.apply(rows[-1:].clone(), 1e-12))
    assert not unit[:-1].any()


def last_images_of_large_batches(device: torch.device, share: float) -> None:
    """Check that the last image of a batch has the values and gradients that it has alone."""
    channels, side = 64, 512
    shape = (int(share * LARGE) // (channels * side * side) + 2, channels, side, side)
    maps = torch.randn(1, *shape[1:], device=device).bfloat16().expand(shape)
    maps = maps.contiguous(memory_format=torch.channels_last)
    weight, bias = torch.rand(channels, device=device), torch.rand(channels, device=device)
    forms: tuple[Callable[[Tensor], Tensor], ...] = (
        lambda x: GroupNormRelu.apply(x, weight, bias, 8, 1e-5, True),
        lambda x: BiasRelu.apply(x.clone(memory_format=torch.preserve_format), bias, None, True),
    )
    for form in forms:
        ends = []
        for given in (maps, maps[-1:].clone(memory_format=torch.preserve_format)):
            x = given.detach().requires_grad_()
            out = form(x)
            (gradient,) = torch.autograd.grad(out, x, out.detach())
            ends.append((out.detach()[-1].clone(), gradient[-1].clone()))
        assert all(torch.equal(*pair) for pair in zip(*ends, strict=True))


def class_loss_of_a_batch(device: torch.device, share: float) -> None:
    """Check that the kernel's loss and gradient in bf16 are near to those of torch's operations in float32."""
    num_points, num_classes, dim = int(share * 213_488) + 1, 1203, 1024
    embeddings = torch.randn(num_points, dim, device=device).bfloat16()
    text = F.normalize(torch.randn(num_classes, dim, device=device), dim=1)
    scale, bias = torch.tensor(50.0, device=device), torch.tensor(-5.0, device=device)
    labels = torch.arange(num_points, device=device) % (3 * num_classes) - 2
    labels[labels >= num_classes] = -1
    mask = torch.ones(1, num_classes, dtype=torch.bool, device=device)
    group = torch.zeros_like(labels)
    low, exact = embeddings.clone().requires_grad_(), embeddings.float().requires_grad_()
    found = FocalLoss.apply(low, text, scale, bias, labels, mask, group, EPSILON, ALPHA)
    classifier = TextClassifier(text, torch.arange(num_classes, device=device), scale, bias)
    expected = chunked_focal_loss(exact, classifier, labels, mask, group)
    torch.testing.assert_close(found, expected, rtol=5e-3, atol=0)
    gradients = [torch.autograd.grad(loss, x)[0].float() for loss, x in ((found, low), (expected, exact))]
    assert (gradients[0] - gradients[1]).norm() < 2e-2 * gradients[1].norm()


def suppression_in_16_images(device: torch.device, share: float) -> None:
    """Check that suppression of all images at once keeps the boxes that torchvision keeps in each on a CPU."""
    generator = torch.Generator().manual_seed(0)
    corners = 800 * torch.rand(16, int(share * 5000) + 1, 2, generator=generator, dtype=torch.float64)
    boxes = torch.cat([corners, corners + 20 + 200 * torch.rand(corners.shape, generator=generator)], dim=2)
    scores = torch.linspace(1, 0, boxes.shape[1], dtype=torch.float64).expand(16, -1)
    expected = best_after_nms(list(boxes), list(scores), 0.6, 1000, together=False)
    found = best_after_nms(list(boxes.to(device)), list(scores.to(device)), 0.6, 1000, together=True)
    assert [rows.tolist() for rows in found] == [rows.tolist() for rows in expected]


CHECKS = (
    kernels_are_used,
    suppression_in_16_images,
    class_loss_of_a_batch,
    last_rows_of_large_tensors,
    last_images_of_large_batches,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--share", type=float, default=1.0, help="share of the full sizes (default: 1)")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    print(describe_machine(device))
    torch.manual_seed(0)
    with on_device(device):
        for check in CHECKS:
            check(device, arguments.share)
            print(f"{check.__name__}: passed", flush=True)


if __name__ == "__main__":
    main()
