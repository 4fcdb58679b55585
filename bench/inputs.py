"""Inputs of the benchmarks: a config's fresh detector, its training step, random images, random unit text rows; and a
fresh teacher for captioned scenes of the embedded world."""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional as F

from ovd.build.detector import build_detector, load_configured_clip
from ovd.clip.load import Clip
from ovd.config.labeling import LabelOptions
from ovd.config.training import TrainConfig
from ovd.config_files import load_config
from ovd.data.images.read import read_image
from ovd.data.pairs.tar import PairShards
from ovd.data.pairs.write import write_pair_shards
from ovd.data.world.build import pair_scene
from ovd.data.world.settings import Settings
from ovd.engine.detector_groups import build_groups
from ovd.engine.ema import Ema
from ovd.engine.graphed import GraphedDetector, can_be_graphed
from ovd.engine.optim import build_optimizer, check_finite, gradient_norm, step_if_finite
from ovd.engine.step import Criterion, backward, set_initial_bias
from ovd.engine.step_texts import StepTexts
from ovd.heap import keep_freed_memory
from ovd.inference import Inference
from ovd.model.crop_encoder import CropEncoder
from ovd.model.detection_options import DetectionOptions
from ovd.model.detector import Detector
from ovd.model.similarity import initial_bias
from ovd.precision import Compute
from ovd.selftrain.teacher import OvdTeacher, TextVariants
from ovd.structures import Batch, Targets
from ovd.text.encoder import encode_tokens

BOXES = 3
"""Number of boxes per image."""
TEACHER_CONFIG = Path(__file__).parents[1] / "configs" / "three_ways.yaml"
PAIRS_PER_SHARD = 64


def argument_parser(
    description: str | None, *, config: str, batch_size: int | None = None, size: int | None = 192
) -> argparse.ArgumentParser:
    """Build the parser of detector, images and device, with these defaults; those of None depend on the device."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path(config), help="default: %(default)s")
    parser.add_argument("--size", type=int, default=size, help=f"side of the images in pixels ({size or '320 or 800'})")
    parser.add_argument("--batch-size", type=int, default=batch_size, help=f"default: {batch_size or '2 or 16'}")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="default: %(default)s")
    return parser


def parse_with_sizes(description: str | None, switches: Mapping[str, str] = MappingProxyType({})) -> argparse.Namespace:
    """Parse the same options for the LVIS recipe: by default 2 images of 320 px on a CPU, 16 of 800 px on a GPU.

    Args:
        switches: further options without a value, and their help.
    """
    parser = argument_parser(description, config="configs/lvis_base_rn50.yaml", size=None)
    for name, explanation in switches.items():
        parser.add_argument(name, action="store_true", help=explanation)
    arguments = parser.parse_args()
    batch_size, size = (16, 800) if arguments.device.type == "cuda" else (2, 320)
    arguments.batch_size = arguments.batch_size or batch_size
    arguments.size = arguments.size or size
    return arguments


@dataclass(frozen=True)
class BenchDetector:
    """A fresh detector on its device, and the generator of random images and texts for it."""

    config: TrainConfig
    clip: Clip
    """CLIP that the detector was built from."""
    detector: Detector
    compute: Compute
    generator: torch.Generator

    @property
    def device(self) -> torch.device:
        """Device that the detector is on."""
        return self.compute.device

    def inference(self, *, size: int, options: DetectionOptions, second_look: CropEncoder | None = None) -> Inference:
        """Build the inference of the frozen detector, as `build_own_inference` does."""
        return Inference(
            self.compute.freeze(self.detector),
            size=size,
            options=options,
            low_precision=self.compute.low_precision,
            second_look=second_look,
        )

    def batch(self, batch_size: int, size: int, num_classes: int) -> Batch:
        """Draw a batch of square noise images with random boxes, in the loader's memory layout."""
        corners = torch.rand(batch_size, BOXES, 2, generator=self.generator) * size * 0.6
        sides = (0.1 + 0.3 * torch.rand(batch_size, BOXES, 2, generator=self.generator)) * size
        images = torch.randint(0, 256, (batch_size, 3, size, size), dtype=torch.uint8, generator=self.generator)
        batch = Batch.without_pairs(
            images=images.contiguous(memory_format=torch.channels_last),
            sizes=torch.full((batch_size, 2), size),
            targets=tuple(
                replace(
                    Targets.empty(),
                    boxes=torch.cat([corner, corner + side], dim=1),
                    classes=torch.randint(num_classes, (BOXES,), generator=self.generator),
                )
                for corner, side in zip(corners, sides, strict=True)
            ),
            image_ids=tuple(range(batch_size)),
        )
        return batch.to(self.device)

    def text(self, count: int) -> Tensor:
        """Draw random unit rows of shape (count, dim)."""
        return F.normalize(torch.randn(count, self.clip.dim, generator=self.generator), dim=1).to(self.device)

    def step_texts(self, rows: Tensor, num_images: int) -> StepTexts:
        """Return the texts of a step that scores all classes, one per row, in every image."""
        mask = torch.ones(num_images, len(rows), dtype=torch.bool, device=self.device)
        return StepTexts(torch.arange(len(rows), device=self.device), rows, mask, mask, torch.zeros_like(mask[0]))


def build_bench_detector(path: Path, device: torch.device) -> BenchDetector:
    """Build a config's detector, with random weights unless its CLIP is the tiny one; on a CPU with two threads."""
    torch.set_num_threads(2)
    keep_freed_memory()  # as all tools do; peers in this process have the same
    is_tiny = load_config(path, [], TrainConfig).clip.name == "tiny"
    overrides = [f"train.device={device}", *([] if is_tiny else ["clip.weights=random"])]
    config = load_config(path, overrides, TrainConfig)
    compute = Compute.configured("auto", device)
    torch.manual_seed(0)
    clip = load_configured_clip(config.clip)
    detector = compute.place(build_detector(config, clip)).eval()
    return BenchDetector(config, clip, detector, compute, torch.Generator().manual_seed(0))


def build_training_step(bench: BenchDetector, batch: Batch, num_classes: int) -> Callable[[], object]:
    """Return a function that takes a whole training step as the loop does, with FCOS's assignment and all classes."""
    detector, settings, compute = bench.detector.train(), bench.config.train, bench.compute
    rows = bench.text(num_classes)
    texts = bench.step_texts(rows, len(batch.targets))
    set_initial_bias(detector, batch, rows, compute)
    optimizer = build_optimizer(build_groups(detector, settings), lr=1e-4)
    average = Ema(detector, settings.ema_decay)
    criterion = Criterion(settings.model_copy(update={"assignment": "fcos"}), bench.config.data.pairs)
    is_graphed = settings.cuda_graphs and can_be_graphed(detector, accumulate=settings.accumulate)
    forward = GraphedDetector(detector, compute) if is_graphed else detector

    def step() -> None:
        losses = backward(forward, detector, batch, texts, criterion, step=0, compute=compute)
        norm = gradient_norm(detector.parameters())
        numbers = step_if_finite(optimizer, losses, norm, max_norm=settings.clip_norm)
        optimizer.zero_grad()
        average.update(detector)
        check_finite(losses, numbers, batch.image_ids)

    return step


def write_scenes(folder: Path, count: int, size: int = Settings.image_size_px) -> None:
    """Write captioned scenes of the embedded world, of this side in pixels, as shards of image-text pairs."""
    settings = Settings(image_size_px=size)
    drawn = (pair_scene(index, part="pairs", settings=settings) for index in range(count))
    write_pair_shards(folder, drawn, pairs_per_shard=PAIRS_PER_SHARD)


@dataclass(frozen=True)
class BenchTeacher:
    """A detector that labels captioned images, fresh except for its bias."""

    clip: Clip
    inference: Inference
    texts: TextVariants
    teacher: OvdTeacher


def build_bench_teacher(
    device: torch.device, shards: Path, options: LabelOptions, path: Path = TEACHER_CONFIG
) -> BenchTeacher:
    """Build a config's teacher whose bias is solved on the first images and captions of shards.

    It has random weights unless its CLIP is the tiny one; on a CPU it uses two threads.
    """
    bench = build_bench_detector(path, device)
    clip, pairs = bench.clip, PairShards(shards)
    rows = range(min(options.batch_size, len(pairs)))
    images = torch.stack([torch.from_numpy(read_image(pairs[row].image)).permute(2, 0, 1) for row in rows])
    detection = DetectionOptions(
        score_threshold=options.score_threshold, nms_iou=0.6, max_detections=options.max_boxes + 1, candidates=2000
    )
    inference = bench.inference(size=max(images.shape[2:]), options=detection)
    detector = inference.detector
    with torch.no_grad(), inference.compute.autocast():
        embeddings = detector(images.to(device)).embeddings.flatten(0, 1).cpu()
    captions = encode_tokens(clip, clip.tokenizer([pairs.caption(row) for row in rows]))
    detector.set_bias(initial_bias(embeddings, captions, scale=detector.scale.item()))
    texts = TextVariants(clip, None)
    return BenchTeacher(clip, inference, texts, OvdTeacher(inference, texts, run="fresh"))
