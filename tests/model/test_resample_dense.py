"""The dense feature at a pyramid level: its normalization in training, against torch's own."""

import pytest
import torch
from torch.nn import functional as F

from ovd.model.resample import EPSILON, resample_dense


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_normalization_in_training_has_the_bits_of_torch_and_of_its_gradient(dtype, memory_format):
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(2, 96, 7, 5, generator=generator).to(dtype).to(memory_format=memory_format)
    dense[0, :, 0, 0] = 0  # a feature without a direction
    dense[1, :, 2, 3] = EPSILON / 100  # one that is too short to be scaled to unit length
    slope = torch.randn(2, 96, 7, 5, generator=generator).to(memory_format=memory_format)
    ours, theirs = dense.clone().requires_grad_(), dense.clone().requires_grad_()

    unit = resample_dense(ours, 16, (7, 5), 16)
    unit.backward(slope)
    expected = F.normalize(theirs.float(), dim=1, eps=EPSILON)
    expected.backward(slope)

    assert torch.equal(unit, expected)
    assert unit.dtype == torch.float32
    assert ours.grad is not None
    assert theirs.grad is not None
    assert ours.grad.dtype == dtype
    assert torch.equal(ours.grad, theirs.grad)
