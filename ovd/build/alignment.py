"""Build the parts of a backbone's alignment from its config: images, proposals, student and teacher."""

from typing import assert_never

from ovd.alignment.distillation import Distillation, sides_px
from ovd.alignment.images import UnlabeledImages, images_from_folder, images_from_index, images_from_shards
from ovd.alignment.proposals import DetectorProposals, EdgeProposals, Proposals
from ovd.build.crops import build_crop_encoder
from ovd.build.data import load_whole_training_set
from ovd.build.data_root import data_root
from ovd.build.detector import resolve_compute, resolve_device
from ovd.build.text import evaluation_text
from ovd.build.trained import build_own_inference, load_detector
from ovd.clip.load import Clip
from ovd.config.alignment import AlignConfig, AlignData, FolderData, ShardData
from ovd.config.training import FileData, WorldData
from ovd.data.report import DataReport
from ovd.model.backbone_families import backbone_from_visual


def load_unlabeled_images(data: AlignData) -> UnlabeledImages:
    """List the images of a config's source.

    Raises:
        ValueError: there are no images.
        DataError: an annotation file or a shard that cannot be used.
    """
    match data.source:
        case FolderData() as source:
            return images_from_folder(data_root() / source.images)
        case ShardData() as source:
            return images_from_shards(data_root() / source.shards, source.num_shards)
        case WorldData() | FileData() as source:
            return images_from_index(load_whole_training_set(source, DataReport()))
        case other:
            assert_never(other)


def build_proposals(config: AlignConfig) -> Proposals | None:
    """Build the source of boxes that may hold an object; return None if the config has random boxes only."""
    options, sides = config.boxes, sides_px(config)
    if options.proposals == 0:
        return None
    if options.detector is None:
        return EdgeProposals(sides_px=sides, count=options.proposals)
    trained = load_detector(options.detector, str(resolve_device(config)))
    text = evaluation_text(trained.config, trained.clip, trained.classes)
    inference = build_own_inference(trained, size=config.data.size)
    return DetectorProposals(inference, text, smallest_px=sides[0], count=options.proposals)


def build_distillation(config: AlignConfig, clip: Clip) -> Distillation:
    """Build student and teacher; the student's modules are those of `clip.model`.

    Raises:
        ValueError: the backbone's family is not supported, or CLIP does not take crops of the configured size.
    """
    compute = resolve_compute(config)
    teacher = build_crop_encoder(clip, config, compute, section="the config")
    return Distillation(backbone_from_visual(clip.model.visual), teacher, build_proposals(config), config, compute)
