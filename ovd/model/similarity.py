"""Class logits from class embeddings and text rows: logit = scale * cosine + bias."""

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, cached_property

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ovd import kernels
from ovd.distributed import sum_over_ranks
from ovd.model.rounded_rows import RoundedRows
from ovd.structures import IGNORED

EPSILON = 1e-6
"""Length below which embeddings are not scaled to unit length, so that a zero has a finite gradient."""

INITIAL_PROBABILITY = 0.01
"""Mean class probability of a fresh detector (the prior of arXiv:1708.02002, 3.3)."""

CHUNK_ELEMENTS = 2**24
"""Number of logits in memory at a time where points are processed chunk by chunk: 64 MiB."""
GPU_CHUNK_ELEMENTS = 2**27
"""`CHUNK_ELEMENTS` on a GPU, which needs more work at a time: 512 MiB."""
CACHED_ELEMENTS = 2**20
"""Number of elements of float32 embeddings in memory at a time on a CPU: 4 MiB, which stay in its cache."""


def unit_embeddings(embeddings: Float[Tensor, "*N D"]) -> Float[Tensor, "*N D"]:
    """Normalize in float32, whatever the input's dtype: the squares of half-precision embeddings may overflow."""
    return F.normalize(embeddings.float(), dim=-1, eps=EPSILON)


def text_cosines(embeddings: Float[Tensor, "*N D"], text: Float[Tensor, "C D"]) -> Float[Tensor, "*N C"]:
    """Compute the float32 cosines of embeddings of any length with unit rows.

    All are computed at once; for many points and classes, call it chunk by chunk.
    """
    if embeddings.dtype != torch.bfloat16 or torch.is_grad_enabled():
        return (unit_embeddings(embeddings) @ text.T).float()
    rows = embeddings.reshape(-1, embeddings.shape[-1])
    if rows.is_cuda:
        cosines = _products_on_tensor_cores(rows, text) / lengths(rows)[:, None]
    else:  # part by part, so that the float32 embeddings stay in the CPU's cache
        cosines = torch.cat([(part @ text.T).div_(lengths(part)[:, None]) for part in _parts_in_float32(rows)])
    return cosines.view(*embeddings.shape[:-1], len(text))


def lengths(rows: Float[Tensor, "N D"]) -> Float[Tensor, " N"]:
    """Compute the Euclidean norm of each row in float32, at least `EPSILON`."""
    parts = _parts_in_float32(rows)
    return torch.cat([torch.linalg.vector_norm(part, dim=1) for part in parts]).clamp_(min=EPSILON)


def _parts_in_float32(rows: Float[Tensor, "N D"]) -> Iterator[Float[Tensor, "n D"]]:
    """Yield the rows in float32, as many at a time as fit into a CPU's cache; on a GPU all at once."""
    at_a_time = len(rows) if rows.is_cuda else CACHED_ELEMENTS // max(1, rows.shape[1])
    return (part.float() for part in rows.split(max(1, at_a_time)))


def _products_on_tensor_cores(rows: Float[Tensor, "N D"], text: Float[Tensor, "C D"]) -> Float[Tensor, "N C"]:
    """Compute products that are as exact as in float32, with each text row as the sum of two bfloat16 rows."""
    padded = kernels.round_up(len(text))
    both = torch.zeros(2, padded, text.shape[1], dtype=torch.bfloat16, device=text.device)
    both[0, : len(text)] = text
    both[1, : len(text)] = text - both[0, : len(text)].float()
    products = torch.mm(rows, both.flatten(0, 1).T, out_dtype=torch.float32)
    return products[:, : len(text)] + products[:, padded : padded + len(text)]


def points_per_chunk(num_classes: int, device: torch.device) -> int:
    """Return the number of points whose logits are in memory at a time."""
    elements = GPU_CHUNK_ELEMENTS if device.type == "cuda" else CHUNK_ELEMENTS
    return max(1, elements // max(1, num_classes))


def add_name_offsets(
    text: Float[Tensor, "C D"], class_ids: Int[Tensor, " C"], offsets: Float[Tensor, "N D"]
) -> Float[Tensor, "C D"]:
    """Return unit rows moved by the learned offsets of their classes.

    Args:
        class_ids: class of each row; classes from N on, which are texts of pairs, have no offset.
    """
    own = offsets[class_ids.clamp(max=len(offsets) - 1)] * (class_ids < len(offsets))[:, None]
    return unit_embeddings(text + own)


@dataclass(frozen=True)
class TextClassifier:
    """Text rows, one per class, that class embeddings are compared with, and the scale and bias of the logits."""

    text: Float[Tensor, "C D"]
    """Unit rows."""
    class_ids: Int[Tensor, " C"]
    """Class of each row, ascending: its position in the vocabulary, or the id of a pair's text."""
    scale: Float[Tensor, ""]
    bias: Float[Tensor, ""]
    name_penalty: Float[Tensor, " C"] | None = None
    """Number subtracted from the cosines with each row, against a bias towards trained names; None for nothing."""

    def __len__(self) -> int:
        """Return C, the number of classes."""
        return len(self.text)

    def cosines(self, embeddings: Float[Tensor, "*N D"]) -> Float[Tensor, "*N C"]:
        """Compute the cosines of embeddings of any length, minus `name_penalty`, all at once."""
        cosines = text_cosines(embeddings, self.text)
        return cosines if self.name_penalty is None else cosines - self.name_penalty

    def pair_cosines(
        self,
        embeddings: Float[Tensor, "P D"],
        lengths: Float[Tensor, " P"],
        points: Int[Tensor, " N"],
        rows: Int[Tensor, " N"],
    ) -> Float[Tensor, " N"]:
        """Compute the cosines of some pairs of an embedding and a text row, minus `name_penalty`.

        Args:
            lengths: lengths of the embeddings.
            points: each pair's row of the embeddings, ascending.
            rows: each pair's text row.
        """
        ends = F.pad(torch.bincount(points, minlength=len(embeddings)).cumsum(0), (1, 0))
        _silence_sparse()
        size, zeros = (len(embeddings), len(self)), self.text.new_zeros(len(rows))
        pairs = torch.sparse_csr_tensor(ends, rows, zeros, size, check_invariants=False)
        products = torch.sparse.sampled_addmm(pairs, embeddings.float(), self.text.T).values()
        cosines = products / lengths[points]
        return cosines if self.name_penalty is None else cosines - self.name_penalty[rows]

    @cached_property
    def rounded(self) -> RoundedRows:
        """Text rows in bfloat16."""
        return RoundedRows(self.text)

    def logits(self, embeddings: Float[Tensor, "*N D"]) -> Float[Tensor, "*N C"]:
        """Compute the class logits of embeddings of any length, all at once."""
        return self.scale * self.cosines(embeddings) + self.bias

    def labels(self, class_ids: Int[Tensor, " R"]) -> Int[Tensor, " R"]:
        """Return the rows of these classes, `IGNORED` for a class without one."""
        if len(self) == 0:
            return torch.full_like(class_ids, IGNORED)
        rows = torch.searchsorted(self.class_ids, class_ids).clamp(max=len(self) - 1)
        return torch.where(self.class_ids[rows] == class_ids, rows, IGNORED)

    def select(self, rows: Bool[Tensor, " C"] | Int[Tensor, " R"]) -> "TextClassifier":
        """Return the classifier of only these rows, by mask or by number; for `labels` the numbers must ascend."""
        name_penalty = None if self.name_penalty is None else self.name_penalty[rows]
        return replace(self, text=self.text[rows], class_ids=self.class_ids[rows], name_penalty=name_penalty)


@cache
def _silence_sparse() -> None:
    """Use up torch's one-time warning that sparse matrices are in beta, with warnings ignored."""
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        torch.sparse_csr_tensor(torch.zeros(1, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), [], (0, 0))


@torch.no_grad()
def best_scores(
    embeddings: Float[Tensor, "P D"], quality: Float[Tensor, " P"], classifier: TextClassifier
) -> Float[Tensor, " P"]:
    """Compute for each point the geometric mean of its highest class probability and its quality; 0 without any class.

    Args:
        quality: quality logits.
    """
    if len(classifier) == 0:
        return torch.zeros_like(quality, dtype=torch.float32)
    chunks = embeddings.split(points_per_chunk(len(classifier), embeddings.device))
    best = torch.cat([classifier.logits(chunk).amax(dim=1) for chunk in chunks])
    return (best.sigmoid() * quality.float().sigmoid()).sqrt()


@torch.no_grad()
def initial_bias(embeddings: Float[Tensor, "N D"], text: Float[Tensor, "C D"], *, scale: float) -> float:
    """Find the bias at which a fresh detector's mean class probability is `INITIAL_PROBABILITY`.

    Setting the mean logit instead would give a far larger mean probability, since the dense CLIP feature is confident
    on background too. The cosines are counted chunk by chunk in bins of width 1.2e-4; the bisection uses the counts of
    all ranks together.

    Args:
        embeddings: embeddings of any length at the points of the first batch, except points in the padding.
        text: unit rows.
        scale: initial logit scale.

    Raises:
        ValueError: no embeddings, no text, or NaN among them.
    """
    num_bins = 2**14
    counts = torch.zeros(num_bins, dtype=torch.float64)
    for chunk in embeddings.split(points_per_chunk(len(text), embeddings.device)):
        cosines = text_cosines(chunk, text).clamp(-1, 1)
        if cosines.isnan().any():
            raise ValueError("the initial bias cannot be computed: embeddings or text rows contain NaN")
        counts += torch.histc(cosines.cpu(), bins=num_bins, min=-1, max=1)
    counts = sum_over_ranks(counts)
    if counts.sum() == 0:
        raise ValueError(f"the initial bias needs points and classes, but there are {len(embeddings)} and {len(text)}")
    bin_width = 2 / num_bins
    cosines = -1 + bin_width * (torch.arange(num_bins, dtype=torch.float64) + 0.5)

    def mean_probability(bias: float) -> float:
        return float((counts * torch.sigmoid(scale * cosines + bias)).sum() / counts.sum())

    # The solutions if every cosine were 1, and if every cosine were -1.
    target_logit = math.log(INITIAL_PROBABILITY / (1 - INITIAL_PROBABILITY))
    low, high = target_logit - abs(scale), target_logit + abs(scale)
    for _ in range(50):
        middle = (low + high) / 2
        if mean_probability(middle) < INITIAL_PROBABILITY:
            low = middle
        else:
            high = middle
    return (low + high) / 2
