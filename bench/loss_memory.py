"""Measure the class loss, forward and backward, against its matrix products alone and torchvision's focal loss.

    python bench/loss_memory.py                    # 8,525 points of 1,024 dimensions, 100, 1,203 and 13,000 classes
    python bench/loss_memory.py --device cuda --points 213488

Random unit embeddings, which ours normalizes all the same, and text rows; one point in 500 is a positive. The products
are the two that every such loss needs: logits, and the gradient of the embeddings. Ours and torchvision's are timed in
float32 and, where the device is fast at it, with autocast to bfloat16. Memory is what a step adds at its peak, in a
process of its own on a CPU, after a step of a few points, which loads the code. If torchvision's loss or gradient of
the embeddings differs from ours, no ratio is given.
"""

import argparse
from collections.abc import Callable

import torch
from measured import measure_added_bytes, measure_seconds, milliseconds, run_in_subprocess, save, time_ratio
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from ovd.heap import keep_freed_memory
from ovd.model.focal import point_focal_loss
from ovd.model.similarity import TextClassifier
from ovd.precision import describe_machine, fast_low_precision

DIM, CLASSES, SCALE, BIAS = 1024, (100, 1203, 13_000), 100.0, -20.0
POINTS_PER_POSITIVE, FEW_POINTS = 500, 64
ROUNDS = 3
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LARGEST_DIFFERENCE = {"float32": 1e-4, "bfloat16": 0.05}
"""Largest relative difference of the losses and of the gradients."""
MAX_LOGITS = 2**27
"""Number of logits above which torchvision's loss is left out, since it keeps many copies of them."""


class Case:
    """The tensors of one measurement, and the forms that are timed on them."""

    def __init__(self, points: int, classes: int, dtype: str, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(0)
        embeddings = F.normalize(torch.randn(points, DIM, generator=generator), dim=1)
        # On a GPU a detector's embeddings have the step's precision; on a CPU they are float32.
        self.embeddings = embeddings.to(device, DTYPES[dtype] if device.type == "cuda" else torch.float32)
        self.text = F.normalize(torch.randn(classes, DIM, generator=generator), dim=1).to(device)
        labels = torch.full((points,), -1)
        positives = torch.arange(0, points, POINTS_PER_POSITIVE)
        labels[positives] = torch.randint(classes, (len(positives),), generator=generator)
        self.labels, self.dtype, self.device = labels.to(device), DTYPES[dtype], device
        self.every_class = torch.ones(1, classes, dtype=torch.bool, device=device)  # all count at every point
        self.group = torch.zeros_like(self.labels)

    def _embeddings(self) -> Tensor:
        return self.embeddings.detach().requires_grad_()

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def ours(self) -> tuple[Tensor, Tensor | None]:
        embeddings = self._embeddings()
        ids = torch.arange(len(self.text), device=self.device)
        scale, bias = (torch.tensor(value, device=self.device) for value in (SCALE, BIAS))
        with self._autocast():
            classifier = TextClassifier(self.text, ids, scale, bias)
            loss = point_focal_loss(embeddings, classifier, self.labels, self.every_class, self.group)
        loss.backward()
        return loss.detach(), embeddings.grad

    def torchvision(self) -> tuple[Tensor, Tensor | None]:
        embeddings = self._embeddings()
        targets = torch.zeros(len(embeddings), len(self.text), device=self.device)
        positive = self.labels >= 0
        targets[positive, self.labels[positive]] = 1
        with self._autocast():
            logits = (SCALE * embeddings) @ self.text.to(embeddings.dtype).T + BIAS
            loss = sigmoid_focal_loss(logits, targets, reduction="sum")
        loss.backward()
        return loss.detach(), embeddings.grad

    def products(self) -> tuple[Tensor, Tensor]:
        embeddings, text = self.embeddings.to(self.dtype), self.text.to(self.dtype)
        logits = embeddings @ text.T
        return logits, logits @ text

    def forms(self) -> dict[str, Callable[[], object]]:
        forms: dict[str, Callable[[], object]] = {"ours": self.ours, "products": self.products}
        if len(self.embeddings) * len(self.text) <= MAX_LOGITS:
            forms["torchvision"] = self.torchvision
        return forms


def difference(case: Case) -> float:
    """Return the largest relative difference between our loss or gradient and torchvision's."""
    (loss, gradient), (expected, wanted) = case.ours(), case.torchvision()
    assert gradient is not None
    assert wanted is not None
    directions = case.embeddings.double()  # ours normalizes, so its gradient has no component along them
    wanted = wanted.double() - (wanted.double() * directions).sum(dim=1, keepdim=True) * directions
    of_gradient = (gradient.double() - wanted).norm() / wanted.norm()
    return max(float(of_gradient), abs(float(loss) / float(expected) - 1))


def peak_bytes(points: int, classes: int, dtype: str, device: torch.device, form: str) -> int:
    """Return the peak memory in bytes that a form adds to this process."""
    Case(FEW_POINTS, classes, dtype, device).forms()[form]()
    return measure_added_bytes(Case(points, classes, dtype, device).forms()[form], device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=8_525, help="default: %(default)s")
    parser.add_argument("--classes", type=int, nargs="+", default=CLASSES, help="default: %(default)s")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="default: %(default)s")
    parser.add_argument("--no-memory", action="store_true", help="measure time only")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    keep_freed_memory()  # as all tools do
    rows: list[dict[str, object]] = []
    ratio: dict[str, float] = {}
    dtypes = list(DTYPES) if fast_low_precision(arguments.device) else ["float32"]
    for classes in arguments.classes:
        for dtype in dtypes:
            settings = (arguments.points, classes, dtype, arguments.device)
            case = Case(*settings)
            forms = case.forms()
            if "torchvision" in forms and (found := difference(case)) > LARGEST_DIFFERENCE[dtype]:
                raise SystemExit(f"no ratio: at {classes} classes in {dtype} ours differs by {found}")
            seconds = measure_seconds(forms, arguments.device, rounds=ROUNDS)
            peak = (
                {}
                if arguments.no_memory
                else {form: run_in_subprocess(peak_bytes, *settings, form, device=arguments.device) for form in forms}
            )
            row = f"{classes:,} classes, {dtype}"
            ratio |= {f"time of {form}, {row}": time_ratio(seconds, "ours", form) for form in forms if form != "ours"}
            if "torchvision" in peak:
                ratio[f"memory of torchvision, {row}"] = round(peak["ours"] / peak["torchvision"], 3)
            rows.append(
                {
                    "classes": classes,
                    "dtype": dtype,
                    "milliseconds": milliseconds(seconds),
                    "peak_MB": {form: round(value / 2**20) for form, value in peak.items()},
                }
            )
            print(rows[-1], flush=True)
    print(ratio)
    result = {"machine": describe_machine(arguments.device), "settings": {"points": arguments.points, "dim": DIM}}
    save("loss_memory", result | {"ratio": ratio, "rows": rows}, arguments.device)


if __name__ == "__main__":
    main()
