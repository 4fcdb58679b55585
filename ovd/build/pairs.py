"""Build the labeled image-text pairs of a config."""

from pathlib import Path

from ovd.build.data_root import data_root
from ovd.build.world import world_folder
from ovd.clip.load import Clip
from ovd.config.training import FileData, PairsConfig, WorldData
from ovd.distributed import is_main
from ovd.format_count import format_count
from ovd.selftrain.labeled_pairs import LabeledPairs, limit_boxes_per_text, read_filtered_labels
from ovd.selftrain.labels import label_files
from ovd.selftrain.ledger import open_labeled_shards
from ovd.text.bank import TextBank
from ovd.text.encoder import text_tower_fingerprint
from ovd.text.pair_texts import PairTexts
from ovd.warn import warn


def pair_shards_folder(config: PairsConfig, source: WorldData | FileData) -> Path:
    """Return the folder of the pairs' shards; those of the embedded world are drawn on first use.

    Raises:
        ValueError: the config has no folder, and its data is not the world.
    """
    if config.shards is not None:
        return data_root() / config.shards
    if isinstance(source, FileData):
        raise ValueError(
            "data.pairs.shards is not set: it is optional only for the embedded world (data.source.kind=world)"
        )
    return world_folder(source, "pairs") / "pairs"


def load_labeled_pairs(config: PairsConfig, source: WorldData | FileData, clip: Clip, first_id: int) -> LabeledPairs:
    """Load the labeled pairs to train on. A warning counts the shards that have no labels.

    Args:
        first_id: id of the pairs' first text; lower ids belong to the training vocabulary.

    Raises:
        ValueError: there are no labels, they were made with another text tower or from other shards, or nothing passes
            the filters.
    """
    in_root = data_root() / config.labels
    if not any(config.labels.glob("*.safetensors")) and any(in_root.glob("*.safetensors")):
        raise ValueError(
            f"{config.labels} has no labels, but {in_root} has: data.pairs.labels starts at the current folder, not at "
            f"the data root, so set data.pairs.labels={in_root}"
        )
    files = label_files(config.labels)
    folder = pair_shards_folder(config, source)
    text_tower = text_tower_fingerprint(clip)
    shards = open_labeled_shards(folder, files, text_tower=text_tower)
    if (unlabeled := shards.left_out) and is_main():
        num_shards = len(unlabeled) + len(shards.file_names)
        warn(
            f"{folder}: {len(unlabeled)} of {format_count(num_shards, 'shard')} without labels are left out; "
            f"the first: {unlabeled[0]}"
        )
    kept, counts = read_filtered_labels(files, config, shards)
    banks = (TextBank(file, text_tower=text_tower) for file in files)
    texts = PairTexts(banks, [of_shard.pair_counts for of_shard in kept], first_id=first_id)
    num_left = counts.pop("kept")
    if config.max_per_text is not None:
        kept, counts["max_per_text"] = limit_boxes_per_text(kept, texts, config.max_per_text)
    counts["kept"] = num_left - counts["max_per_text"]
    return LabeledPairs(shards, kept, texts, with_boxes=config.use == "boxes", box_counts=counts)
