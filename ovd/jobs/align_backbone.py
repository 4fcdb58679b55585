"""Align a CLIP model's dense feature with its embeddings of crops, without labels."""

import math
from typing import Any

import torch

from ovd.alignment.data import alignment_data
from ovd.alignment.train import align
from ovd.build.alignment import build_distillation, load_unlabeled_images
from ovd.build.detector import load_configured_clip
from ovd.build.trained import weights_file
from ovd.clip.save import check_aligned_folder, save_aligned
from ovd.config.alignment import AlignConfig
from ovd.data.report import DataReport
from ovd.distributed import device_of_rank, is_main, main_first, process_group, sum_over_ranks, world_size
from ovd.engine.checkpoint import Checkpoint
from ovd.engine.metric_records import METRICS_FILE, read_records
from ovd.engine.notes import Notes
from ovd.files import refuse_missing_run, sha256_of, write_json
from ovd.jobs.prerequisites import check_warmup
from ovd.jobs.resume import check_same_data, check_same_run
from ovd.jobs.run_folder import latest_on_all_ranks, open_run_folder
from ovd.precision import describe_machine, on_device

MUTABLE_ON_RESUME = (
    "output", "weights", "clip.activation", "data.workers", "train.save_every", "train.keep_checkpoints",
)  # fmt: skip


def align_backbone(config: AlignConfig, *, command: str) -> dict[str, Any]:
    """Align a CLIP backbone, and write the aligned model and `report.json` to the run folder.

    Under torchrun, every rank makes the call. A call with the settings of an interrupted run resumes it; with the
    settings of a finished run, it writes model and report again.

    Args:
        command: command line to record in the report.

    Returns:
        The content of `report.json` on the main process; an empty dict on the others.

    Raises:
        ValueError: the run folder holds a run with other settings or other images, or the model to align; there are no
            images; `boxes.detector` does not exist; or the batch cannot be divided among the ranks.
    """
    with process_group(), on_device(device_of_rank(config.train.device)):
        check_warmup(config)
        check_aligned_folder(config.clip.name, config.output)
        if config.boxes.detector is not None:
            refuse_missing_run(config.boxes.detector, "boxes.detector")
        checkpoint = latest_on_all_ranks(config.output)
        if checkpoint is not None:
            check_same_run(checkpoint.config, config, free=MUTABLE_ON_RESUME)
        torch.set_num_threads(config.train.threads)  # before the folder is opened, which prints their number
        with open_run_folder(config, checkpoint):
            return _align(config, checkpoint, command)


def _align(config: AlignConfig, checkpoint: Checkpoint | None, command: str) -> dict[str, Any]:
    report = DataReport()
    with main_first():  # loading may have to draw the embedded world
        images = load_unlabeled_images(config.data)
    data_of_run = {"images": images.fingerprint}
    if config.boxes.proposals and config.boxes.detector is not None:
        data_of_run["boxes.detector"] = sha256_of(weights_file(config.boxes.detector))
    if checkpoint is not None:
        check_same_data(checkpoint.notes.data, data_of_run, config.output)
    torch.manual_seed(config.train.seed)  # CLIP's weights may be random
    clip = load_configured_clip(config.clip)
    teacher = clip.visual_for_crops()
    distillation = build_distillation(config, clip)
    data = alignment_data(images, config, report, size_divisor=distillation.size_divisor)
    losses = align(distillation, data, checkpoint, Notes(data=data_of_run))
    num_left_out = int(sum_over_ranks(torch.tensor(report.num_seen() - report.num_used())))
    if not is_main():
        return {}
    save_aligned(clip, config.clip.name, config.output, teacher=teacher, weight_format=config.weights)
    content = {
        "command": command,
        "config": config.model_dump(mode="json"),
        "machine": describe_machine(device_of_rank(config.train.device)),
        "ranks": world_size(),
        "images": data.num_images,
        "held_out_images": data.num_held_out,
        "times_an_image_was_not_read": num_left_out,
        "training_s": round(_training_seconds(config), 1),
        "losses_before": losses.before,
        "losses_after": losses.after,
    }
    write_json(config.output / "report.json", content)
    return content


def format_report(report: dict[str, Any]) -> str:
    """Format the losses before and after training as a table for the console, with their angles in degrees."""
    measured_on = "held-out images" if report["held_out_images"] else "training images"  # a small set has none held out
    lines = [f"{measured_on:<16}{'before':>18}{'after':>18}"]
    for name, label in (("point", "center of a box"), ("box", "mean over a box")):
        values = [report["losses_before"][name], report["losses_after"][name]]
        cells = [f"{value:.4f} ({math.degrees(math.acos(max(-1.0, 1 - value))):.1f} deg)" for value in values]
        lines.append(f"{label:<16}" + "".join(f"{cell:>18}" for cell in cells))
    return "\n".join(lines)


def _training_seconds(config: AlignConfig) -> float:
    """Return the time spent in training steps, in seconds, over all starts of the run."""
    records = read_records(config.output / METRICS_FILE)
    return sum(config.train.batch_size / record["images_per_s"] for record in records if record["kind"] == "train")
