"""The sigmoid focal loss (arXiv:1708.02002) over large vocabularies, without a tensor of points x classes in memory.

The forward pass computes the gradients as well, block by block of points, with few buffers and few passes over them.
"""

import math
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from ovd import kernels
from ovd.model.similarity import EPSILON, TextClassifier
from ovd.precision import autocast, product_dtype
from ovd.structures import IGNORED

ALPHA, GAMMA = 0.25, 2
"""Weight of positives (negatives have 1 - ALPHA); focusing exponent, which `_background_focal_` and the kernel apply as
a square."""
CHUNKS_IN_BLOCK = 2
"""Number of chunks in a block. Matrix products run on blocks, the elementwise operations between them on chunks, whose
buffers should stay in a cache."""
MIN_POINTS_IN_BLOCK = 1024
"""Minimum number of points in a block; with fewer, a product waits for the text rows to arrive from memory."""
MIN_TEXT_NUMBERS = 2**16
"""Minimum number of elements of the text rows for low precision. Keeping float32 below it costs 7 of 280 ms in the
quick start's step."""
LARGE_LOGIT = 80
"""Logit at which the exponential is finite and the sigmoid is 1; larger logits have the same sigmoid."""


def _min_logit(dtype: torch.dtype) -> float:
    """Return the limit that lower logits are raised to: -25 in float32, where the loss of a pair is below 1e-32.

    Below the limit, losses and gradients would become denormal numbers, which CPUs multiply 20 times more slowly. It
    leaves room for the matrix products with the gradients.
    """
    return math.log(torch.finfo(dtype).tiny) / 3.5


def point_focal_loss(
    embeddings: Float[Tensor, "N D"],
    classifier: TextClassifier,
    labels: Int[Tensor, " N"],
    class_mask: Bool[Tensor, "G C"],
    group: Int[Tensor, " N"],
    *,
    low_precision: bool = False,
) -> Float[Tensor, ""]:
    """Compute `chunked_focal_loss`, on a GPU with a Triton kernel.

    Args:
        low_precision: whether to use bf16 autocast if the text rows are large. The kernel ignores it: its products are
            in autocast's dtype, or else in that of the embeddings.
    """
    if kernels.supports(embeddings):
        from ovd.kernels.focal import FocalLoss

        learned = (embeddings, classifier.text, classifier.scale, classifier.bias)
        return FocalLoss.apply(*learned, labels, class_mask, group, EPSILON, ALPHA)
    use_low = low_precision and classifier.text.numel() >= MIN_TEXT_NUMBERS
    with autocast(embeddings.device, True) if use_low else nullcontext():
        return chunked_focal_loss(embeddings, classifier, labels, class_mask, group)


def chunked_focal_loss(
    embeddings: Float[Tensor, "N D"],
    classifier: TextClassifier,
    labels: Int[Tensor, " N"],
    class_mask: Bool[Tensor, "G C"],
    group: Int[Tensor, " N"],
    *,
    chunk_size: int | None = None,
) -> Float[Tensor, ""]:
    """Compute the sum of the sigmoid focal loss over points and classes, without N x C numbers in memory.

    The pair (point, class) counts iff `class_mask[group[point], class]` or `labels[point] == class`. Block by block of
    points, the forward pass computes logits, loss and gradients, and keeps only the gradients, which have the shapes
    of the inputs. The additional memory is that of a few blocks; there is no second derivative.

    Under autocast the matrix products take and return autocast's dtype. The bias is added, and the focal loss and its
    derivative are computed, in the classifier's dtype, from probabilities with errors of up to that dtype's epsilon.
    The result is deterministic, since there are no atomic additions.

    Args:
        embeddings: embeddings of any length, which are normalized here.
        classifier: classifier with at least one text row, in float32 or float64.
        labels: row of the classifier that each point is a positive of, -1 for background, `IGNORED` for a point without
            a loss.
        class_mask: whether each class counts for each group of points.
        group: row of `class_mask` for each point.
        chunk_size: number of points per chunk; None chooses it by device and number of classes.
    """
    assert len(classifier) > 0, "the focal loss needs at least one class"
    if chunk_size is None:
        elements = _elements_in_chunk(classifier.text)
        chunk_size = max(1, elements // len(classifier))
        block_size = max(MIN_POINTS_IN_BLOCK, CHUNKS_IN_BLOCK * elements // max(classifier.text.shape))
    else:
        block_size = CHUNKS_IN_BLOCK * chunk_size
    learned = (embeddings, classifier.text, classifier.scale, classifier.bias)
    arguments = (*learned, labels, class_mask, group, chunk_size, block_size)
    if torch.is_grad_enabled() and any(x.requires_grad for x in learned):
        return _FocalLoss.apply(*arguments)
    loss, _ = _focal_loss_and_gradients(*arguments, needs_gradient=(False,) * 4)
    return loss


def _elements_in_chunk(text: Float[Tensor, "C D"]) -> int:
    """Return the number of (point, class) pairs per chunk, the fastest of those that were tried."""
    if text.device.type != "cpu":
        return 2**24  # a GPU needs more work per kernel
    return 2**18 if product_dtype(text) == text.dtype else 2**19


class _FocalLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, embeddings, text, scale, bias, *fixed):
        loss, gradients = _focal_loss_and_gradients(
            embeddings, text, scale, bias, *fixed, needs_gradient=ctx.needs_input_grad[:4]
        )
        ctx.save_for_backward(*gradients)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        multiply = torch.mul if _graph_is_kept() else Tensor.mul_  # overwrites gradients that are not needed again
        gradients = [None if gradient is None else multiply(gradient, grad_output) for gradient in ctx.saved_tensors]
        return (*gradients, *[None] * (len(ctx.needs_input_grad) - len(gradients)))


def _graph_is_kept() -> bool:
    """Return whether the running backward pass keeps its graph (`retain_graph`), so that it may run again.

    torch reports this under a private name; in a version without it, the graph counts as kept.
    """
    is_kept = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return is_kept is None or is_kept()


@torch.no_grad()
def _focal_loss_and_gradients(
    embeddings: Float[Tensor, "N D"],
    text: Float[Tensor, "C D"],
    scale: Float[Tensor, ""],
    bias: Float[Tensor, ""],
    labels: Int[Tensor, " N"],
    class_mask: Bool[Tensor, "G C"],
    group: Int[Tensor, " N"],
    chunk_size: int,
    block_size: int,
    *,
    needs_gradient: tuple[bool, ...],
) -> tuple[Float[Tensor, ""], tuple[Tensor | None, ...]]:
    """Compute the loss, and its gradients with respect to embeddings, text, scale and bias where needed.

    The logits are rows @ text.T + bias, where the rows are the embeddings, scaled to length `scale`. With the slopes
    d loss / d logit, the gradient of the bias is the sum of the slopes, that of the text is slopes.T @ rows, and that
    of the rows is slopes @ text. The rows share memory with their gradient, and the logits with the slopes.
    """
    needs_embeddings, needs_text, needs_scale, needs_bias = needs_gradient
    text_rows = _TextRows.of(text)
    targets = _Targets.of(labels, class_mask, group, text.dtype)

    gradient_embeddings = torch.empty_like(embeddings) if needs_embeddings else None
    gradient_text = torch.zeros_like(text) if needs_text else None
    starts = range(0, len(embeddings), block_size)
    # Summing the sums of all blocks is more precise than one running total.
    sums_loss, sums_scale, sums_bias = text.new_zeros(3, len(starts))
    logits_of_block = text.new_empty(min(block_size, len(embeddings)), len(text), dtype=text_rows.rounded.dtype)
    row_buffers = _row_buffers(embeddings, gradient_embeddings, text, block_size)
    buffers = text.new_empty(3, min(chunk_size, len(embeddings)), len(text))

    with torch.autocast(embeddings.device.type, enabled=False):
        for i, start in enumerate(starts):
            block = slice(start, start + block_size)
            points = _NormalizedEmbeddings.of(embeddings[block].to(text.dtype), scale)
            rows = torch.mul(points.embeddings, points.factor, out=row_buffers[i])
            rounded = rows.to(text_rows.rounded.dtype)  # no copy, except in low precision
            logits = logits_of_block[: len(rows)]
            offsets = text_rows.logits(rows, rounded, bias, out=logits)
            sums_loss[i], sums_bias[i] = _focal_of_block_(
                logits, offsets, targets[block], buffers=buffers, chunk_size=chunk_size, needs_bias=needs_bias
            )
            slopes = logits  # overwritten by `_focal_of_block_`
            if gradient_text is not None:
                gradient_text += slopes.T @ rounded
            if needs_embeddings or needs_scale:
                torch.mm(slopes, text_rows.rounded, out=rounded)
                gradient_of_rows = rows.copy_(rounded)
                radial_gradient = points.radial_gradient(gradient_of_rows)
                sums_scale[i] = radial_gradient.sum()
                if gradient_embeddings is not None:
                    points.backward_(gradient_of_rows, radial_gradient, out=gradient_embeddings[block])

    gradients = (
        gradient_embeddings,
        gradient_text,
        sums_scale.sum() if needs_scale else None,
        sums_bias.sum() if needs_bias else None,
    )
    return sums_loss.sum(), gradients


@dataclass(frozen=True)
class _TextRows:
    """Text rows in the forms that the matrix products use."""

    exact: Float[Tensor, "C D"]
    rounded: Float[Tensor, "C D"]
    """Rows in the dtype of the products: autocast's in low precision, else the exact rows."""
    mean: Float[Tensor, " D"] | None
    """Mean of the rows; only in low precision. It makes up most of CLIP's logits, which round less without it."""
    centered: Float[Tensor, "C D"] | None
    """Rows minus their mean, rounded; only in low precision."""

    @classmethod
    def of(cls, text: Float[Tensor, "C D"]) -> "_TextRows":
        low_dtype = product_dtype(text)
        if low_dtype == text.dtype:
            return cls(text, text, None, None)
        mean = text.mean(dim=0)
        return cls(text, text.to(low_dtype), mean, (text - mean).to(low_dtype))

    def logits(
        self,
        rows: Float[Tensor, "n D"],
        rounded: Float[Tensor, "n D"],
        bias: Float[Tensor, ""],
        *,
        out: Float[Tensor, "n C"],
    ) -> Float[Tensor, " n"] | None:
        """Compute the logits of points into `out`.

        In low precision `out` lacks an offset per point, the bias plus the product with the mean row; it is returned.
        """
        if self.mean is None or self.centered is None:
            torch.addmm(bias, rounded, self.exact.T, out=out)
            return None
        torch.mm(rounded, self.centered.T, out=out)
        return torch.addmv(bias, rows, self.mean)


@dataclass(frozen=True)
class _NormalizedEmbeddings:
    """Embeddings e with their inverse lengths r: the cosines are r * e @ t, without a normalized copy."""

    embeddings: Float[Tensor, "n D"]
    length: Float[Tensor, "n 1"]
    inverse: Float[Tensor, "n 1"]
    factor: Float[Tensor, "n 1"]
    """Factor scale * r from embeddings to rows."""

    @classmethod
    def of(cls, embeddings: Float[Tensor, "n D"], scale: Float[Tensor, ""]) -> "_NormalizedEmbeddings":
        length = torch.linalg.vector_norm(embeddings, dim=1, keepdim=True)
        inverse = 1 / length.clamp(min=EPSILON)
        return cls(embeddings, length, inverse, scale * inverse)

    def radial_gradient(self, gradient: Float[Tensor, "n D"]) -> Float[Tensor, "n 1"]:
        """Compute the part of the rows' gradient along each unit row.

        It is the sum of a point's slopes times cosines; the sum over all points is the scale's gradient.
        """
        return self.inverse * torch.linalg.vecdot(gradient, self.embeddings)[:, None]

    def backward_(
        self, gradient: Float[Tensor, "n D"], radial_gradient: Float[Tensor, "n 1"], *, out: Float[Tensor, "n D"]
    ) -> None:
        """Compute the embeddings' gradient into `out`, from the rows' gradient, which is overwritten.

        Args:
            gradient: gradient of the rows.
            radial_gradient: its part along each unit row.
        """
        # The gradient has no part along an embedding, unless it is too short to be normalized.
        radial_gradient = radial_gradient.masked_fill(self.length < EPSILON, 0)
        gradient.addcmul_(self.embeddings, self.inverse * radial_gradient, value=-1)
        torch.mul(gradient, self.factor, out=out)


def _row_buffers(
    embeddings: Float[Tensor, "N D"], gradient: Float[Tensor, "N D"] | None, text: Float[Tensor, "C D"], block_size: int
) -> tuple[Float[Tensor, "n D"], ...]:
    """Return a buffer for each block's rows in the dtype of the text: parts of `gradient`, or one buffer for all."""
    if gradient is not None and gradient.dtype == text.dtype:
        return gradient.split(block_size)
    buffer = text.new_empty(min(block_size, len(embeddings)), text.shape[1])
    return tuple(buffer[: len(part)] for part in embeddings.split(block_size))


@dataclass(frozen=True)
class _Targets:
    """Targets of the points: each is a positive of at most one class, and a negative of others."""

    labels: Int[Tensor, " N"]
    """Class that each point is a positive of; a negative number for none."""
    group: Int[Tensor, " N"]
    weights: Float[Tensor, "H C"]
    """Weight of each class as a negative in each group of points."""

    @classmethod
    def of(
        cls, labels: Int[Tensor, " N"], class_mask: Bool[Tensor, "G C"], group: Int[Tensor, " N"], dtype: torch.dtype
    ) -> "_Targets":
        """Return the targets of `chunked_focal_loss`; ignored points get a group of their own, with weights of 0."""
        weights = (1 - ALPHA) * F.pad(class_mask, (0, 0, 0, 1)).to(dtype)
        return cls(labels, group.masked_fill(labels == IGNORED, len(class_mask)), weights)

    def __getitem__(self, points: slice) -> "_Targets":
        return _Targets(self.labels[points], self.group[points], self.weights)

    def weights_of(self, points: slice) -> Float[Tensor, "n C"]:
        """Return the weight of each class as a negative at some points."""
        return self.weights.index_select(0, self.group[points])


def _focal_of_block_(
    logits: Float[Tensor, "N C"],
    offsets: Float[Tensor, " N"] | None,
    targets: _Targets,
    *,
    buffers: Float[Tensor, "3 n C"],
    chunk_size: int,
    needs_bias: bool,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Compute the summed loss of a block of points, and the sum of its derivatives, which replace the logits.

    Args:
        logits: logits of all pairs, in the buffers' dtype; or in low precision, without `offsets`.
        offsets: number to add to all logits of each point; None for nothing.
        buffers: memory for n points at a time: `chunk_size`, or all if there are fewer.
        needs_bias: whether the sum of the derivatives is used.
    """
    # Nearly all pairs are negatives. Positives are computed below; here -inf has next to no loss and derivative.
    row = (targets.labels >= 0).nonzero().squeeze(1)
    own = (row, targets.labels[row])
    logits_of_positives = logits[own]
    logits[own] = -torch.inf
    loss, sum_of_slopes = buffers.new_zeros(2)
    for first in range(0, len(logits), chunk_size):
        chunk = slice(first, first + chunk_size)
        values, spare = logits[chunk], list(buffers[:, : len(logits[chunk])])
        if offsets is not None:  # a copy in one of the buffers, in their dtype
            values = spare.pop().copy_(values).add_(offsets[chunk, None])
        slopes, losses = _background_focal_(values, spare, targets.weights_of(chunk))
        loss += losses.sum()
        if needs_bias:
            sum_of_slopes += slopes.sum()
        if offsets is not None:
            logits[chunk] = slopes

    # The loss of a positive with logit z is that of a background with logit -z.
    negated = -logits_of_positives.to(buffers.dtype)
    if offsets is not None:
        negated -= offsets[row]
    spare = [torch.empty_like(negated) for _ in range(3 if offsets is None else 2)]
    slopes, losses = _background_focal_(negated, spare, ALPHA)
    logits[own] = -slopes.to(logits.dtype)
    return loss + losses.sum(), sum_of_slopes - slopes.sum()


def _background_focal_(
    logits: Float[Tensor, "*pairs"],
    spare: list[Float[Tensor, "*pairs"]],
    weight: Float[Tensor, "*pairs"] | float,
) -> tuple[Float[Tensor, "*pairs"], Float[Tensor, "*pairs"]]:
    """Compute the derivative and the value of weight * p**GAMMA * -log(1 - p), where p = sigmoid(logit).

    The derivative replaces `logits`; the value is in one of the `spare` buffers, which are overwritten. Three buffers
    give full relative precision; for two see `_rough_sigmoid_and_softplus_`.
    """
    sigmoid_and_softplus = _sigmoid_and_softplus if len(spare) == 3 else _rough_sigmoid_and_softplus_
    probability, losses = sigmoid_and_softplus(logits, *spare)
    modulation = torch.mul(probability, probability, out=logits).mul_(weight)
    losses.mul_(modulation)
    # d/dz = GAMMA * loss * (1 - p) + modulation * p = GAMMA * loss + p * (modulation - GAMMA * loss)
    slopes = modulation.sub_(losses, alpha=GAMMA).mul_(probability).add_(losses, alpha=GAMMA)
    return slopes, losses


def _sigmoid_and_softplus(
    x: Float[Tensor, "*pairs"],
    exponential: Float[Tensor, "*pairs"],
    rounded: Float[Tensor, "*pairs"],
    lost: Float[Tensor, "*pairs"],
) -> tuple[Float[Tensor, "*pairs"], Float[Tensor, "*pairs"]]:
    """Compute p = sigmoid(x) and log(1 + exp(x)) = -log(1 - p), with full relative precision for both signs.

    The results are in the first two of the three buffers, all of which are overwritten.
    """
    # With e = exp(x), p is e / (1 + e). On a CPU log1p(e) takes eight times as long as log, so it is computed as
    # log(s) + (e - (s - 1)) / s, where s is 1 + e after rounding, and the bracket is the rounding error.
    torch.clamp(x, min=_min_logit(x.dtype), max=LARGE_LOGIT, out=exponential).exp_()
    torch.add(exponential, 1, out=rounded)
    torch.sub(exponential, torch.sub(rounded, 1, out=lost), out=lost).div_(rounded)
    probability = exponential.div_(rounded)
    softplus = torch.maximum(rounded.log_().add_(lost), x, out=rounded)  # x itself beyond LARGE_LOGIT
    return probability, softplus


def _rough_sigmoid_and_softplus_(
    x: Float[Tensor, "*pairs"], probability: Float[Tensor, "*pairs"], complement: Float[Tensor, "*pairs"]
) -> tuple[Float[Tensor, "*pairs"], Float[Tensor, "*pairs"]]:
    """Compute sigmoid and softplus in fewer passes, with errors of up to an epsilon (1e-7) in both; overwrites x, too.

    Results of that size are mostly error, but the focal loss and its derivative are of the order of their cube. Above a
    logit of 87, where the derivative no longer depends on it, the softplus stays at 87.
    """
    torch.sigmoid(x.neg_(), out=complement)
    torch.sub(x.new_ones(()), complement, out=probability)
    return probability, complement.clamp_(min=torch.finfo(x.dtype).tiny).log_().neg_()
