"""The sigmoid focal loss over points and classes: its matrix products, and one pass over the logits between them."""

from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from ovd.kernels import round_up
from ovd.precision import product_dtype

TILE = 4096
"""Number of products that a program computes at a time."""
CHUNK = 2**26
"""Maximum number of products in memory at a time."""


class FocalLoss(torch.autograd.Function):
    """Sum of `chunked_focal_loss`, for embeddings of any length, with all gradients computed in the forward pass.

    The products are in autocast's dtype, or else in the embeddings'; all sums are in float32 and in a fixed order. The
    products with the mean text row are added in float32: they make up most of CLIP's products, and the rest rounds
    less. An embedding e of length 1 / r has the cosine r * e @ t, so no normalized copy is needed: with the derivative
    g of the loss by a logit, the gradient is scale * r * (sum of g * t - r * e * sum of g * cosine).
    """

    @staticmethod
    def forward(
        ctx: Any,
        embeddings: Float[Tensor, "N D"],
        text: Float[Tensor, "C D"],
        scale: Float[Tensor, ""],
        bias: Float[Tensor, ""],
        labels: Int[Tensor, " N"],
        class_mask: Bool[Tensor, "G C"],
        group: Int[Tensor, " N"],
        epsilon: float,
        alpha: float,
    ) -> Float[Tensor, ""]:
        """Compute the loss, and its gradients for the backward pass.

        Args:
            embeddings: embeddings of any length.
            labels: text row that each point is a positive of, -1 for background, `IGNORED` for a point without a loss.
            class_mask, group: as for `chunked_focal_loss`.
            epsilon: length below which embeddings are not scaled to unit length.
            alpha: weight of positives; negatives have 1 - alpha.
        """
        device, dtype = embeddings.device.type, product_dtype(embeddings)
        ctx.dtypes = embeddings.dtype, text.dtype
        needs_embeddings, needs_text = ctx.needs_input_grad[:2]
        num_points, num_classes = len(embeddings), len(text)
        padded = round_up(num_classes)
        mean = text.mean(dim=0, dtype=torch.float32)
        rows, centered = text.new_zeros(2, padded, text.shape[1], dtype=dtype)
        rows[:num_classes] = text
        centered[:num_classes] = text - mean
        with torch.autocast(device, enabled=False):
            embeddings = embeddings.to(dtype).contiguous()
            measures = measure_rows(embeddings, mean, epsilon)
            sums = torch.empty(3, num_points, dtype=torch.float32, device=embeddings.device)
            grad_embeddings = torch.empty_like(embeddings) if needs_embeddings else None
            grad_text = torch.zeros_like(rows, dtype=torch.float32) if needs_text else None
            chunk_size = max(1, CHUNK // padded)
            for start in range(0, num_points, chunk_size):
                chunk = slice(start, start + chunk_size)
                slopes = embeddings[chunk] @ centered.T
                focal_rows_(
                    slopes, num_classes, measures[:, chunk], scale, bias, labels[chunk], class_mask, group[chunk],
                    sums[:, chunk], alpha,
                )  # fmt: skip
                if grad_embeddings is not None:
                    torch.mm(slopes, rows, out=grad_embeddings[chunk])
                if grad_text is not None:
                    grad_text += slopes.T @ embeddings[chunk]
            losses, slope, radial = sums
            # An embedding shorter than epsilon is not scaled to unit length, so its gradient has a part along it.
            is_unit = measures[0] < 1 / epsilon
            radial_factor = torch.where(is_unit, -scale * measures[0].square() * radial, 0.0)
        ctx.save_for_backward(grad_embeddings, embeddings, radial_factor, grad_text, radial.sum(), slope.sum())
        ctx.num_classes = num_classes
        return losses.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Float[Tensor, ""]) -> tuple[Tensor | None, ...]:
        grad_embeddings, embeddings, radial_factor, grad_text, grad_scale, grad_bias = ctx.saved_tensors
        of_dtype, text_dtype = ctx.dtypes
        if grad_embeddings is not None:
            out = torch.empty_like(embeddings)
            num_points, dim = out.shape
            if num_points > 0:
                block = triton.next_power_of_2(dim)
                _add_scaled[(num_points,)](grad_embeddings, embeddings, radial_factor, gradient, out, dim, BLOCK=block)
            grad_embeddings = out.to(of_dtype)
        if grad_text is not None:
            grad_text = (grad_text[: ctx.num_classes] * gradient).to(text_dtype)
        return grad_embeddings, grad_text, grad_scale * gradient, grad_bias * gradient, *[None] * 5


def measure_rows(embeddings: Float[Tensor, "N D"], row: Float[Tensor, " D"], epsilon: float) -> Float[Tensor, "2 N"]:
    """Compute 1 / length of each embedding, with lengths of at least `epsilon`, and its product with a float32 row."""
    num_points, dim = embeddings.shape
    measures = embeddings.new_empty(2, num_points, dtype=torch.float32)
    if num_points > 0:
        block = triton.next_power_of_2(dim)
        _measure[(num_points,)](embeddings, row, measures, measures.stride(0), dim, epsilon, BLOCK=block)
    return measures


def focal_rows_(
    products: Float[Tensor, "N K"],
    num_classes: int,
    measures: Float[Tensor, "2 N"],
    scale: Float[Tensor, ""],
    bias: Float[Tensor, ""],
    labels: Int[Tensor, " N"],
    class_mask: Bool[Tensor, "G C"],
    group: Int[Tensor, " N"],
    sums: Float[Tensor, "3 N"],
    alpha: float,
) -> None:
    """Replace the product of each embedding with each text row by the loss's derivative by this product.

    Args:
        products: columns from `num_classes` on are padding; they become 0.
        measures: the two rows r and m of `measure_rows`: cosine = (product + m) * r, logit = scale * cosine + bias.
        labels, class_mask, group, alpha: as for `FocalLoss`.
        sums: output, each row's sums over the classes: of the losses, of their derivatives by the logits, and of these
            derivatives times the cosines.
    """
    num_rows, padded = products.shape
    if num_rows > 0:
        columns = min(TILE, triton.next_power_of_2(padded))
        rows = max(1, TILE // columns)
        _focal[(triton.cdiv(num_rows, rows),)](
            products, measures, scale, bias, labels, class_mask, group, sums,
            measures.stride(0), sums.stride(0), num_rows, num_classes, padded,
            ALPHA=alpha, ROWS=rows, COLUMNS=columns,
        )  # fmt: skip


@triton.jit
def _background(logit):
    """Compute the derivative and the value of p**2 * -log(1 - p), where p = sigmoid(logit)."""
    small = tl.exp(-tl.abs(logit))
    probability = tl.where(logit >= 0, 1.0, small) / (1.0 + small)
    # log(1 + small); a plain logarithm would lose the last digits of a small number
    rest = tl.where(small > 1e-4, tl.log(1.0 + small), small * (1.0 - 0.5 * small))
    surprise = tl.maximum(logit, 0.0) + rest
    modulation = probability * probability
    loss = surprise * modulation
    focused = loss * 2.0  # in Triton's interpreter a constant on the left would not give a tensor
    return focused + probability * (modulation - focused), loss


@triton.jit
def _measure(embeddings, other, measures, stride, dim, epsilon, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < dim
    values = tl.load(embeddings + row * dim + column, mask=inside, other=0.0).to(tl.float32)
    length = tl.sqrt(tl.sum(values * values, axis=0))
    tl.store(measures + row, 1.0 / tl.maximum(length, epsilon))
    tl.store(measures + stride + row, tl.sum(values * tl.load(other + column, mask=inside, other=0.0), axis=0))


@triton.jit
def _focal(
    products, measures, scale, bias, labels, mask, group, sums, measures_stride, sums_stride, num_rows, num_classes,
    padded, ALPHA: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    is_row = row < num_rows
    factor = tl.load(measures + row, mask=is_row, other=0.0)
    shared = tl.load(measures + measures_stride + row, mask=is_row, other=0.0)
    label = tl.load(labels + row, mask=is_row, other=-2)
    multiplier = tl.load(scale).to(tl.float32)
    offset = tl.load(bias).to(tl.float32)
    of_group = tl.load(group + row, mask=is_row, other=0)
    losses = tl.zeros((ROWS,), dtype=tl.float32)
    slopes = tl.zeros((ROWS,), dtype=tl.float32)
    radial = tl.zeros((ROWS,), dtype=tl.float32)
    for start in range(0, padded, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        at = row[:, None] * padded + column[None, :]
        inside = is_row[:, None] & (column < padded)[None, :]
        product = tl.load(products + at, mask=inside, other=0.0).to(tl.float32) + shared[:, None]
        cosine = product * factor[:, None]
        positive = column[None, :] == label[:, None]
        counts = (column < num_classes)[None, :] & (label >= -1)[:, None]
        of_mask = of_group[:, None] * num_classes + column[None, :]
        counts = counts & (tl.load(mask + of_mask, mask=counts, other=0).to(tl.int1) | positive)
        logit = multiplier * cosine + offset
        # The loss of a positive with logit z is that of a background with logit -z.
        slope, loss = _background(tl.where(positive, -logit, logit))
        weight = tl.where(counts, tl.where(positive, ALPHA, 1.0 - ALPHA), 0.0)
        slope = slope * tl.where(positive, -weight, weight)
        losses += tl.sum(loss * weight, axis=1)
        slopes += tl.sum(slope, axis=1)
        radial += tl.sum(slope * cosine, axis=1)
        tl.store(products + at, slope * multiplier * factor[:, None], mask=inside)
    tl.store(sums + row, losses, mask=is_row)
    tl.store(sums + sums_stride + row, slopes, mask=is_row)
    tl.store(sums + 2 * sums_stride + row, radial, mask=is_row)


@triton.jit
def _add_scaled(gradient, embeddings, radial, factor, out, dim, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < dim
    at = row * dim + column
    values = tl.load(gradient + at, mask=inside, other=0.0).to(tl.float32)
    values += tl.load(embeddings + at, mask=inside, other=0.0).to(tl.float32) * tl.load(radial + row)
    tl.store(out + at, values * tl.load(factor).to(tl.float32), mask=inside)
