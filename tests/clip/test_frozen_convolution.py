"""The prepared weights that a convolution with frozen weights keeps, and its results with them on a CPU."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ovd.clip.frozen_convolution import FrozenWeights
from ovd.clip.onednn import has_prepacked_ops
from ovd.model.rounded_rows import RoundedRows

DTYPES = (torch.float32, torch.bfloat16)
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2**-7}
SHAPES = ((2, 32, 9, 14), (1, 32, 9, 14), (2, 32, 3, 1), (1, 32, 1, 1), (3, 32, 20, 20), (0, 32, 5, 5))


class Frozen(nn.Conv2d):
    """A convolution that keeps its prepared frozen weights."""

    def __init__(self, *arguments: int, num_shapes: int = 1, **options: int):
        super().__init__(*arguments, **options)  # type: ignore[arg-type]
        self.frozen = FrozenWeights(num_shapes)
        self.requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor, added: Tensor | None = None, *, relu: bool = False) -> Tensor:
        weights = self.frozen.get_or_compute((self.weight,), lambda: (self.weight, self.bias))
        return self.frozen.convolve(self, x, weights, added, relu=relu)


def random_map(*shape: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return values.to(dtype).contiguous(
        memory_format=torch.channels_last if len(shape) == 4 else torch.contiguous_format
    )


def precision(dtype: torch.dtype) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16)


def low_precision() -> torch.autocast:
    return precision(torch.bfloat16)


def exact(net: Frozen, x: Tensor) -> Tensor:
    weight = net.weight.to(x.dtype).double()
    bias = None if net.bias is None else net.bias.to(x.dtype).double()
    return F.conv2d(x.double(), weight, bias, net.stride, net.padding, net.dilation, net.groups)  # type: ignore[arg-type]


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("is_added", [False, True])
@pytest.mark.parametrize(
    "options",
    [{}, {"padding": 1}, {"stride": 2, "padding": 1}, {"padding": 1, "groups": 32}, {"bias": False}],
    ids=str,
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_results_are_those_of_float64_but_for_rounding(
    dtype: torch.dtype, options: dict[str, int], is_added: bool, relu: bool
) -> None:
    torch.manual_seed(0)
    net = Frozen(32, 64, 3, num_shapes=3, **options)
    for shape in SHAPES * 2:  # from the second input of a shape on, the kept layout is used
        x = random_map(*shape, dtype=dtype)
        if min(shape[2:]) < 3 and "padding" not in options:
            continue
        expected = exact(net, x)
        added = random_map(*expected.shape, dtype=dtype, seed=1) if is_added else None
        expected = expected if added is None else expected + added.double()
        expected = expected.relu() if relu else expected
        with precision(dtype):
            measured = net(x, added, relu=relu)
        assert measured.dtype == dtype
        tolerance = TOLERANCES[dtype]
        torch.testing.assert_close(measured.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_shapes", [1, 2, 5])
def test_results_do_not_depend_on_the_shapes_before(num_shapes: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    net = Frozen(32, 64, 3, num_shapes=num_shapes, padding=1)
    with precision(dtype):
        alone = [copy.deepcopy(net)(random_map(*shape, dtype=dtype)) for shape in SHAPES]
        for order in (SHAPES, SHAPES[::-1], SHAPES):
            for shape in order:
                for _ in range(2):
                    assert torch.equal(net(random_map(*shape, dtype=dtype)), alone[SHAPES.index(shape)])
    kept = list(net.frozen._layouts.kept.values())
    assert len(kept) == (min(num_shapes, 4) if has_prepacked_ops(dtype) else 0)  # none for one cell or an empty batch
    assert all(packed is not None for packed in kept)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_layout_is_made_for_a_shape_that_comes_again(dtype: torch.dtype) -> None:
    if not has_prepacked_ops(dtype):
        pytest.skip("this CPU or torch has no operations for it")
    net = Frozen(32, 64, 3)
    with precision(dtype):
        for width in (8, 9, 10):  # the input has another shape each time
            net(random_map(1, 32, 8, width, dtype=dtype))
            assert list(net.frozen._layouts.kept.values()) == [None]
        net(random_map(1, 32, 8, 10, dtype=dtype))
    assert [shape[3] for shape, packed in net.frozen._layouts.kept.items() if packed is not None] == [10]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_first_result_of_a_shape_has_the_bits_of_later_ones(
    dtype: torch.dtype, kernel: int, layout: torch.memory_format
) -> None:
    """The first input of a shape gives the same bits as later ones; otherwise a resumed run, where each shape is new,
    would end with other bits."""
    for shape in (*SHAPES[:-1], (4, 32, 1, 1)):
        net = Frozen(32, 64, kernel, padding=kernel // 2).to(memory_format=layout)
        x = random_map(*shape, dtype=dtype)
        with precision(dtype):
            first, *later = (net(x) for _ in range(3))
        assert all(torch.equal(first, other) for other in later), shape


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_an_image_in_a_batch_has_the_result_that_it_has_alone(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    net, batch = Frozen(32, 64, 3, padding=1), random_map(3, 32, 7, 12, dtype=dtype)
    with precision(dtype):
        together = net(batch)
        for number, image in enumerate(batch.split(1)):
            assert torch.equal(net(image)[0], together[number])


def test_a_changed_weight_is_seen() -> None:
    torch.manual_seed(0)
    net, x = Frozen(32, 64, 3), random_map(2, 32, 8, 8)
    with low_precision():
        net(x)
        nn.init.normal_(net.weight)
        measured = net(x)
    torch.testing.assert_close(measured.double(), exact(net, x), rtol=2**-7, atol=2**-6)


def assert_same_gradient(tensor: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """Check that the gradient is that of a tensor in float64, except for rounding."""
    assert tensor.grad is not None
    assert expected.grad is not None
    largest = float(expected.grad.abs().max())
    torch.testing.assert_close(tensor.grad.double() / largest, expected.grad / largest, rtol=0, atol=TOLERANCES[dtype])


def test_the_gradient_passes_through_to_the_input() -> None:
    torch.manual_seed(0)
    net, x = Frozen(32, 64, 3), random_map(2, 32, 8, 8).requires_grad_()
    with low_precision():
        net(x).float().square().sum().backward()
    expected = x.detach().double().requires_grad_()
    exact(net, expected).square().sum().backward()
    assert_same_gradient(x, expected, torch.bfloat16)


def test_maps_with_channels_first_are_computed_as_ever() -> None:
    torch.manual_seed(0)
    net, x = Frozen(32, 64, 3), torch.randn(2, 32, 8, 8)
    assert torch.equal(net(x), F.conv2d(x, net.weight, net.bias))
    with low_precision():
        expected = F.conv2d(x, net.weight, net.bias)
        assert torch.equal(net(x), expected)


def test_copies_are_without_what_is_kept() -> None:
    net = Frozen(32, 64, 3, num_shapes=4)
    with low_precision():
        net(random_map(2, 32, 8, 8))
    assert net.frozen.cached is not None
    for copied in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert copied.frozen.cached is None
        assert not copied.frozen._layouts.kept
        assert copied.frozen.num_shapes == 4


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("needs", ["weight", "added"])
def test_what_learns_has_a_gradient_after_frozen_use(dtype: torch.dtype, needs: str) -> None:
    torch.manual_seed(0)
    net, x = Frozen(32, 64, 3, padding=1), random_map(2, 32, 8, 8, dtype=dtype)
    added = random_map(2, 64, 8, 8, dtype=dtype, seed=1)
    with precision(dtype):
        with torch.no_grad():
            for _ in range(3):
                net(x, added)
        learned = (net.weight if needs == "weight" else added).requires_grad_()
        net(x, added).float().square().sum().backward()
    assert net.bias is not None
    weight, other = (tensor.detach().double().requires_grad_() for tensor in (net.weight, added))
    (F.conv2d(x.double(), weight, net.bias.double(), padding=1) + other).square().sum().backward()
    assert_same_gradient(learned, weight if needs == "weight" else other, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_weights_that_learned_meanwhile_are_seen(dtype: torch.dtype) -> None:
    """A step of the fused optimizer, which raises no tensor version, replaces the kept weights."""
    torch.manual_seed(0)
    net, x = Frozen(32, 64, 3), random_map(2, 32, 8, 8, dtype=dtype)
    with precision(dtype):
        for _ in range(3):
            net(x)
        net.requires_grad_(True)
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.1, fused=True)
        net(x).float().square().sum().backward()
        optimizer.step()
        net.requires_grad_(False)
        measured = net(x)
    torch.testing.assert_close(measured.double(), exact(net, x), rtol=2**-6, atol=2**-4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_use_in_inference_mode_leaves_nothing_that_fails_outside(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    net, x = Frozen(32, 64, 3), random_map(2, 32, 8, 8, dtype=dtype)
    with precision(dtype):
        expected = net(x)
        with torch.inference_mode():
            made_there = Frozen(32, 64, 3)
            made_there.load_state_dict(net.state_dict())
            for one in (net, made_there):
                for _ in range(2):
                    torch.testing.assert_close(one(x), expected)
        torch.testing.assert_close(net(x), expected)
        net(x.detach().requires_grad_()).float().sum().backward()


def test_layouts_are_copied_without_what_is_kept() -> None:
    rows = RoundedRows(F.normalize(torch.randn(64, 32), dim=1))
    expected = [rows.products(random_map(8, 32)) for _ in range(3)][-1]
    for copied in (copy.deepcopy(rows), pickle.loads(pickle.dumps(rows))):
        torch.testing.assert_close(copied.products(random_map(8, 32)), expected)
