"""The detection losses of FCOS (arXiv:1904.01355), with a class loss made for large vocabularies."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torchvision.ops import generalized_box_iou_loss

from ovd.boxes import side_distances
from ovd.model.compiled import compiled
from ovd.model.similarity import unit_embeddings
from ovd.structures import Assignment, Points, Predictions, Targets


def loss_normalizers(
    assignment: Assignment, targets: tuple[Targets, ...], *, names_only: Bool[Tensor, " B"], points: Points
) -> Float[Tensor, "3"]:
    """What the losses `class`, `box` and `quality` are divided by; added up where a batch is spread over ranks.

    The number of matched points, the sum of their boxes' weights, and the number of points that teach the quality.
    """
    image, point, box, true_boxes = _matched(assignment, targets)
    exact = ~names_only[image]
    weights = _weights(assignment, image[exact], point[exact], points, true_boxes[box[exact]])
    num_quality = exact.sum() + _wrong_scale(assignment, names_only).sum()
    return torch.stack([torch.tensor(len(box), device=box.device), weights.sum(), num_quality]).float()


def _matched(
    assignment: Assignment, targets: tuple[Targets, ...]
) -> tuple[Int[Tensor, " M"], Int[Tensor, " M"], Int[Tensor, " M"], Float[Tensor, "R 4"]]:
    """Image and point of every match, its row among all the batch's boxes together, and these."""
    image, point = (assignment.matched >= 0).nonzero(as_tuple=True)
    first_box = torch.tensor([0, *(len(t.boxes) for t in targets[:-1])], device=image.device).cumsum(0)
    return image, point, first_box[image] + assignment.matched[image, point], torch.cat([t.boxes for t in targets])


def _weights(
    assignment: Assignment,
    image: Int[Tensor, " M"],
    point: Int[Tensor, " M"],
    points: Points,
    boxes: Float[Tensor, "M 4"],
) -> Float[Tensor, " M"]:
    """Of matched points: their alignment where the assignment has it, else the true centerness."""
    if assignment.alignment is not None:
        return assignment.alignment[image, point]
    return _centerness(side_distances(points.centers[point], boxes))


def _wrong_scale(assignment: Assignment, names_only: Bool[Tensor, " B"]) -> Bool[Tensor, "B P"]:
    return assignment.wrong_scale & ~assignment.ignored & ~names_only[:, None]


def detection_losses(
    predictions: Predictions,
    assignment: Assignment,
    targets: tuple[Targets, ...],
    *,
    text: Float[Tensor, "C D"],
    class_rows: Int[Tensor, " C"],
    class_mask: Bool[Tensor, "B C"],
    class_mask_in_boxes: Bool[Tensor, "B C"],
    names_only: Bool[Tensor, " B"],
    points: Points,
    normalizers: Float[Tensor, "3"],
    scale: Float[Tensor, ""],
    bias: Float[Tensor, ""],
    alpha: float = 0.25,
    gamma: float = 2.0,
    use_compiled: bool = False,
) -> dict[str, Tensor]:
    """The losses `class`, `box` and `quality` of a batch, for the log and to be summed.

    They are finite and reach every prediction in the graph even when no image has a box.

    Args:
        predictions: embeddings of any length; normalised here in float32.
        text: unit rows of the classes this step scores.
        class_rows: which row of the vocabulary each row of `text` is, ascending; it holds every class of `targets`.
        class_mask: which classes count at an image's unmatched points (`federated.class_mask`).
        class_mask_in_boxes: which count at points that are matched to a box of another class.
        names_only: images whose boxes teach what is in them but not where their sides are: `box` and `quality` leave
            them out.
        normalizers: `loss_normalizers`, of these images or of more that they are a part of.
        scale, bias: of the class logits, scale * cosine + bias.
        alpha, gamma: of the focal loss.
        use_compiled: compile the focal loss, see `chunked_focal_loss`.
    """
    positive = assignment.matched >= 0
    image, point, box, true_boxes = _matched(assignment, targets)
    exact = ~names_only[image]
    loss_box, loss_quality = box_and_quality_losses(
        predictions.boxes[image[exact], point[exact]],
        predictions.quality[image[exact], point[exact]],
        true_boxes=true_boxes[box[exact]],
        weights=_weights(assignment, image[exact], point[exact], points, true_boxes[box[exact]]),
        wrong_scale_quality=predictions.quality[_wrong_scale(assignment, names_only)],
    )

    labels = torch.full_like(assignment.matched, -1)
    labels[image, point] = _text_rows(torch.cat([t.classes for t in targets]), class_rows)[box]
    counts = ~assignment.ignored
    # Two groups of points an image: those matched to no box, then those matched to one.
    group = torch.arange(len(targets), device=positive.device)[:, None] + len(targets) * positive
    loss_class = chunked_focal_loss(
        unit_embeddings(predictions.embeddings[counts]),
        text,
        labels[counts],
        torch.cat([class_mask, class_mask_in_boxes]),
        group[counts],
        scale,
        bias,
        alpha=alpha,
        gamma=gamma,
        use_compiled=use_compiled and predictions.embeddings.device.type != "cpu",  # there it is slower
    )
    num_matched, sum_weights, num_quality = normalizers
    return {
        "class": loss_class / num_matched.clamp(min=1),
        "box": loss_box / sum_weights.clamp(min=1e-6),  # the limit matters for no box alone
        "quality": loss_quality / num_quality.clamp(min=1),
    }


def _text_rows(classes: Int[Tensor, " R"], class_rows: Int[Tensor, " C"]) -> Int[Tensor, " R"]:
    rows = torch.searchsorted(class_rows, classes).clamp(max=len(class_rows) - 1)
    assert torch.equal(class_rows[rows], classes), "a true box's class is not among class_rows, or they do not ascend"
    return rows


def box_and_quality_losses(
    boxes: Float[Tensor, "M 4"],
    quality: Float[Tensor, " M"],
    *,
    true_boxes: Float[Tensor, "M 4"],
    weights: Float[Tensor, " M"],
    wrong_scale_quality: Float[Tensor, " W"],
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Sums of the weighted GIoU loss and of the cross-entropy between the predicted quality and the weights.

    Unlike in FCOS, the quality of a point on a true box that belongs to another level is pushed to 0. A shortcut makes
    such a point sure of the class (at P7 of everything in the image), so that something must say "not at this scale".
    Empty background teaches the quality nothing, since it may hold objects that nobody annotated.

    Args:
        boxes, quality: predictions of the M positive points; quality is a logit.
        true_boxes: the box each of them is matched to.
        weights: of the points, 0 to 1: their true centerness, or their alignment.
        wrong_scale_quality: logits of the W points of the wrong level.
    """
    giou = generalized_box_iou_loss(boxes.float(), true_boxes)
    logits = torch.cat([quality, wrong_scale_quality]).float()
    wanted = torch.cat([weights, torch.zeros_like(wrong_scale_quality, dtype=weights.dtype)])
    loss_quality = F.binary_cross_entropy_with_logits(logits, wanted, reduction="sum")
    return (giou * weights).sum(), loss_quality


def _centerness(distances: Float[Tensor, "M 4"]) -> Float[Tensor, " M"]:
    """Equation 3 of arXiv:1904.01355: 1 at the box's centre, 0 at its sides."""
    left, top, right, bottom = distances.unbind(dim=1)
    across = torch.minimum(left, right) / torch.maximum(left, right)
    down = torch.minimum(top, bottom) / torch.maximum(top, bottom)
    return torch.sqrt(across * down)


def chunked_focal_loss(
    embeddings: Float[Tensor, "N D"],
    text: Float[Tensor, "C D"],
    labels: Int[Tensor, " N"],
    class_mask: Bool[Tensor, "G C"] | None,
    group: Int[Tensor, " N"] | None,
    scale: Float[Tensor, ""],
    bias: Float[Tensor, ""],
    *,
    alpha: float = 0.25,
    gamma: float = 2.0,
    chunk_size: int | None = None,
    use_compiled: bool = False,
) -> Float[Tensor, ""]:
    """Sum of the sigmoid focal loss (arXiv:1708.02002) over points and classes, without ever holding N x C numbers.

    The pair (point, class) counts iff `class_mask[group[point], class]` or `labels[point] == class`. Chunk by chunk of
    points, the forward pass computes logits, loss and gradients, and keeps only the gradients, which have the shapes
    of the inputs; so the memory beyond them is that of a few chunks, and a second derivative does not exist.

    Under autocast the matrix products take and return autocast's dtype; logits get their bias, and the focal loss and
    its derivative are computed, in the embeddings' dtype. The result does not depend on the run: no atomic additions.

    Args:
        embeddings: unit rows, float32 (or float64).
        text: unit rows, of the same dtype; at least one.
        labels: row of `text` that each point is a positive of, or -1 for background.
        class_mask: which classes count for a group of points; None if all do.
        group: row of `class_mask` that each point uses; None with a None mask.
        scale, bias: logit = scale * embedding . text + bias.
        alpha: weight of positives, and 1 - alpha that of the rest.
        gamma: focusing exponent, at least 0; 2 is computed faster than others.
        chunk_size: points per chunk; None chooses it by device and number of classes.
        use_compiled: on a GPU let torch.compile fuse what is computed for each pair; equal but for rounding. On a CPU
            the form below is faster than the compiler's.
    """
    assert len(text) > 0, "the focal loss needs at least one class"
    assert (class_mask is None) == (group is None), "class_mask and group come together"
    if chunk_size is None:
        # On a CPU 16 MiB of buffers, which a last-level cache holds; a GPU wants more work per kernel instead.
        chunk_size = max(1, (2**20 if embeddings.device.type == "cpu" else 2**24) // len(text))
    settings = (labels, class_mask, group, alpha, gamma, chunk_size, use_compiled)
    if torch.is_grad_enabled() and any(x.requires_grad for x in (embeddings, text, scale, bias)):
        return _FocalLoss.apply(embeddings, text, scale, bias, *settings)
    loss, _ = _focal_loss_and_gradients(embeddings, text, scale, bias, *settings, needs_gradient=(False,) * 4)
    return loss


class _FocalLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, embeddings, text, scale, bias, *settings):
        loss, gradients = _focal_loss_and_gradients(
            embeddings, text, scale, bias, *settings, needs_gradient=ctx.needs_input_grad[:4]
        )
        ctx.save_for_backward(*gradients)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        gradients = [None if gradient is None else gradient * grad_output for gradient in ctx.saved_tensors]
        return (*gradients, *[None] * (len(ctx.needs_input_grad) - len(gradients)))


@torch.no_grad()
def _focal_loss_and_gradients(
    embeddings: Float[Tensor, "N D"],
    text: Float[Tensor, "C D"],
    scale: Float[Tensor, ""],
    bias: Float[Tensor, ""],
    labels: Int[Tensor, " N"],
    class_mask: Bool[Tensor, "G C"] | None,
    group: Int[Tensor, " N"] | None,
    alpha: float,
    gamma: float,
    chunk_size: int,
    use_compiled: bool,
    *,
    needs_gradient: tuple[bool, ...],
) -> tuple[Float[Tensor, ""], tuple[Tensor | None, ...]]:
    """The loss, and its gradients with respect to embeddings, text, scale and bias where needed."""
    needs_embeddings, needs_text, needs_scale, needs_bias = needs_gradient
    device = embeddings.device.type
    product_dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else embeddings.dtype
    product_text = text.to(product_dtype)
    weights = None if class_mask is None else (1 - alpha) * class_mask.to(embeddings.dtype)

    gradient_embeddings = torch.empty_like(embeddings) if needs_embeddings else None
    gradient_text = torch.zeros_like(text) if needs_text else None
    chunk_starts = range(0, len(embeddings), chunk_size)
    # Float32 sums of float32 sums lose less than one running total.
    sums_loss, sums_scale, sums_bias = embeddings.new_zeros(3, len(chunk_starts))
    buffers = embeddings.new_empty(4, min(chunk_size, len(embeddings)), len(text))

    with torch.autocast(device, enabled=False):
        for i, start in enumerate(chunk_starts):
            chunk = slice(start, start + chunk_size)
            scaled = (embeddings[chunk] * scale).to(product_dtype)
            logits, *spare = buffers[:, : len(scaled)]
            _matmul(scaled, product_text.T, out=logits)
            logits.add_(bias)

            # Nearly all pairs are negatives: treat all as such, then put each point's own class right.
            label = labels[chunk, None]
            positive = label >= 0
            column = label.clamp(min=0)
            positive_logits = logits.gather(1, column)
            weight = 1 - alpha if weights is None or group is None else weights.index_select(0, group[chunk])
            if use_compiled:
                slopes, losses = compiled(_background_focal)(logits, weight, gamma)
            else:
                slopes, losses = _background_focal_(logits, spare, weight, gamma)
            # A positive of logit z is a background of logit -z.
            positive_slopes, positive_losses = _background_focal_(
                -positive_logits, [torch.empty_like(positive_logits) for _ in spare], alpha, gamma
            )
            losses.scatter_(1, column, torch.where(positive, positive_losses, losses.gather(1, column)))
            slopes.scatter_(1, column, torch.where(positive, -positive_slopes, slopes.gather(1, column)))
            sums_loss[i] = losses.sum()
            if not any(needs_gradient):
                continue

            if needs_bias:
                sums_bias[i] = slopes.sum()
            product_slopes = slopes.to(product_dtype)
            if needs_embeddings or needs_scale:
                gradient = (
                    torch.empty_like(embeddings[chunk]) if gradient_embeddings is None else gradient_embeddings[chunk]
                )
                _matmul(product_slopes, product_text, out=gradient)
                if needs_scale:
                    sums_scale[i] = (gradient * embeddings[chunk]).sum()
                gradient.mul_(scale)
            if gradient_text is not None:
                gradient_text += product_slopes.T @ scaled

    gradients = (
        gradient_embeddings,
        gradient_text,
        sums_scale.sum() if needs_scale else None,
        sums_bias.sum() if needs_bias else None,
    )
    return sums_loss.sum(), gradients


def _matmul(a: Float[Tensor, "N K"], b: Float[Tensor, "K M"], *, out: Float[Tensor, "N M"]) -> None:
    if a.dtype == out.dtype:
        torch.mm(a, b, out=out)
    else:
        out.copy_(a @ b)


def _background_focal_(
    logits: Float[Tensor, "N C"], spare: list[Float[Tensor, "N C"]], weight: Float[Tensor, "N C"] | float, gamma: float
) -> tuple[Float[Tensor, "N C"], Float[Tensor, "N C"]]:
    """Derivative and value of weight * p**gamma * -log(1 - p), p = sigmoid(logit).

    Overwrites `logits` and the three `spare` buffers; the results lie in two of them.
    """
    _, buffer, _ = spare
    losses = _softplus(logits, spare)  # -log(1 - p), also where 1 - p would round to 0 or 1
    probability = logits.sigmoid_()
    modulation = (
        torch.mul(probability, probability, out=buffer) if gamma == 2 else torch.pow(probability, gamma, out=buffer)
    )
    modulation.mul_(weight)
    losses.mul_(modulation)
    # d/dz = gamma * loss * (1 - p) + modulation * p = gamma * loss + p * (modulation - gamma * loss)
    slopes = probability.mul_(modulation.sub_(losses, alpha=gamma)).add_(losses, alpha=gamma)
    return slopes, losses


def _background_focal(
    logits: Float[Tensor, "N C"], weight: Float[Tensor, "N C"] | float, gamma: float
) -> tuple[Float[Tensor, "N C"], Float[Tensor, "N C"]]:
    """The same written down plainly, for the compiler to fuse."""
    probability = logits.sigmoid()
    modulation = weight * (probability * probability if gamma == 2 else probability**gamma)
    losses = F.softplus(logits, threshold=40) * modulation
    return gamma * losses + probability * (modulation - gamma * losses), losses


def _softplus(x: Float[Tensor, "N C"], spare: list[Float[Tensor, "N C"]]) -> Float[Tensor, "N C"]:
    """log(1 + exp(x)), with full relative precision for both signs; overwrites `spare`, may return the first of it."""
    if x.device.type != "cpu":
        return F.softplus(x, threshold=40)
    # log1p costs a CPU eight times as much as log, so max(x, 0) + log1p(e) with e = exp(-|x|) is computed as
    # max(x, 0) + log(s) + (e - (s - 1)), where s is 1 + e as rounded and the last bracket is what the rounding took.
    rounded, buffer, other = spare
    exponential = torch.minimum(x, torch.neg(x, out=buffer), out=other).exp_()
    torch.add(exponential, 1, out=rounded)
    lost = exponential.sub_(torch.sub(rounded, 1, out=buffer))
    return rounded.log_().add_(lost).add_(torch.clamp(x, min=0, out=buffer))
