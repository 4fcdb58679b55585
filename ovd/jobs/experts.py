"""Write an expert after its training, and describe, check, compare and remove expert folders."""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ovd.build.experts import num_own_layers
from ovd.build.text import evaluation_text
from ovd.build.trained import TrainedDetector, build_inference, load_detector
from ovd.config.training import TrainConfig
from ovd.data.index import AnnotationIndex
from ovd.experts.folder import (
    BASE_TEXT,
    DESCRIPTION,
    LEARNED_TEXT,
    TENSORS,
    TEXT,
    TRAINED_TEXT,
    ExpertDescription,
    ExpertError,
    find_expert,
    read_expert,
    write_expert,
)
from ovd.experts.group import ExpertGroup
from ovd.experts.names import fit_margin, route
from ovd.files import sha256_of
from ovd.format_count import format_count
from ovd.join_first import join_first
from ovd.metric import per_cent
from ovd.model.low_rank import adapters_of, with_adapter_names
from ovd.model.score_calibration import nearness_to
from ovd.model.shared_layers import shared_parameters
from ovd.model.similarity import add_name_offsets
from ovd.text.names import name_key

MAX_NAMES_SHOWN = 8


def save_expert(
    folder: Path, config: TrainConfig, base: TrainedDetector, tuned: TrainedDetector, index: AnnotationIndex
) -> None:
    """Write an expert: the tensors that a fine-tuned detector does not share with the one that it started from.

    Args:
        config: config of the fine-tuning, with an `expert` section.
        index: the training set, for its names and their synonyms.

    Raises:
        ExpertError: training changed a parameter that should be shared.
    """
    assert config.expert is not None
    assert base.weights is not None
    num_own = num_own_layers(config.expert, tuned.detector.backbone)
    text, of_name = _own_text(base, index)
    base_text = evaluation_text(base.config, base.clip, base.classes)
    tensors = _own_tensors(base, tuned, num_own) | {TEXT: text, BASE_TEXT: base_text}
    if tuned.detector.name_offsets is not None:
        tensors[LEARNED_TEXT] = add_name_offsets(text, of_name, tuned.detector.name_offsets.detach().cpu())
    if tuned.calibration is not None:
        tensors[TRAINED_TEXT] = tuned.calibration.trained_text
    description = ExpertDescription(
        base_sha256=sha256_of(base.weights),
        base=str(config.init_from),
        learn=config.expert.learn,
        own_layers=num_own,
        rank=config.expert.rank,
        names=index.names,
        synonyms=index.synonyms,
        margin=fit_margin(text, of_name, base_text),
        config=config.model_dump(mode="json"),
        calibration=None if tuned.calibration is None else tuned.calibration.to_json(),
    )
    write_expert(folder, description, tensors)


def _own_tensors(base: TrainedDetector, tuned: TrainedDetector, num_own: int) -> dict[str, Tensor]:
    """Return the parameters that are not shared with the base detector, by name.

    Raises:
        ExpertError: a tensor that should be shared differs.
    """
    detector, own = tuned.detector, dict[str, Tensor]()
    if detector.name_offsets is None:  # with name_offsets, only the names were learned
        shared = {id(parameter) for parameter in shared_parameters(detector.backbone, num_own)}
        shared -= {id(parameter) for adapter in adapters_of(detector) for parameter in adapter.parameters()}
        own = {name: parameter for name, parameter in detector.named_parameters() if id(parameter) not in shared}
    before = with_adapter_names(dict(base.detector.state_dict()), detector)
    changed = [
        name
        for name, tensor in detector.state_dict().items()
        if name not in own and name in before and not torch.equal(tensor, before[name])
    ]
    if changed:
        raise ExpertError(
            f"{tuned.config.output} cannot be an expert of {base.config.output}: training changed "
            f"{format_count(len(changed), 'shared tensor')}, {join_first(changed)}"
        )
    return own


def _own_text(base: TrainedDetector, index: AnnotationIndex) -> tuple[Float[Tensor, "K D"], Int[Tensor, " K"]]:
    """Return the text embeddings that identify an expert's own queries, and the row of the name that each belongs to.

    They are encoded as queries are: each name with its synonyms, each name alone, and each synonym alone.
    """
    names = [category.name for category in index.categories]
    synonyms = [
        (row, synonym)
        for row, category in enumerate(index.categories)
        for synonym in category.synonyms
        if name_key(synonym)
    ]
    parts = [
        evaluation_text(base.config, base.clip, index.names, index.synonyms),
        evaluation_text(base.config, base.clip, names),
        *([evaluation_text(base.config, base.clip, [synonym for _, synonym in synonyms])] if synonyms else []),
    ]
    each = torch.arange(len(names))
    of_name = torch.cat([each, each, torch.tensor([row for row, _ in synonyms], dtype=torch.int64)])
    return torch.cat(parts), of_name


def describe_expert(folder: Path) -> str:
    """Describe in a few lines which names an expert answers and which detector it needs."""
    expert = read_expert(folder)
    found = expert.description
    size = sum(path.stat().st_size for path in expert.folder.iterdir()) / 1e6
    measured = "".join(
        f", AP {per_cent(values['AP'], 1)} on {of}" for of, values in found.metrics.items() if "AP" in values
    )
    calibrated = "calibrated" if found.calibration is not None else "not calibrated"
    return (
        f"{folder}: {format_count(len(found.names), 'name')} ({join_first(found.names, MAX_NAMES_SHOWN)})\n"
        f"  of {found.base}, weights sha256 {found.base_sha256[:16]}; "
        f"{format_count(found.own_layers, 'own backbone layer')}"
        f"{f', adapters of rank {found.rank}' if found.rank else ''}; {size:.1f} MB; {calibrated}{measured}"
    )


def check_expert(run: Path, folder: Path) -> None:
    """Check that an expert is complete and belongs to the detector of a run.

    Raises:
        ExpertError: it is missing or damaged, or belongs to another detector.
        ValueError: `run` has no intact checkpoint.
    """
    build_inference(load_detector(run, experts=ExpertGroup((folder,))))


def format_routing(run: Path, folders: Sequence[Path], names: Sequence[str]) -> str:
    """Format a table of who answers each query, by default and with `nearest`, and its cosine with the nearest names.

    Raises:
        ExpertError: an expert is missing or damaged, or belongs to another detector.
        ValueError: there is no query, `run` has no intact checkpoint, or an expert is given twice.
    """
    if not names:
        raise ValueError("give at least one query")
    if len({path.resolve() for path in map(find_expert, folders)}) < len(folders):
        raise ValueError("an expert is given twice; give each only once")
    base = load_detector(run, experts=ExpertGroup(tuple(folders)))
    experts = [read_expert(folder).names for folder in folders]
    text = evaluation_text(base.config, base.clip, names)
    detectors = [str(run), *map(str, folders)]
    by_mode = [route(text, experts, nearest=nearest) for nearest in (False, True)]
    rows_of_table: list[tuple[str, ...]] = [
        ("query", "answered by", "with --nearest", "cosine with the nearest name of the detector and each expert")
    ]
    for row, name in enumerate(names):
        by = [
            " and ".join(detector for detector, rows in zip(detectors, routed, strict=True) if row in rows.tolist())
            for routed in by_mode
        ]
        nearnesses = [
            nearness_to(text[row : row + 1], rows) for rows in (experts[0].base_text, *(e.text for e in experts))
        ]
        cosines = ", ".join(f"{float(nearness):.3f}" for nearness in nearnesses)
        rows_of_table.append((name, *by, cosines))
    widths = [max(map(len, column)) + 2 for column in zip(*rows_of_table, strict=True)]
    return "\n".join(
        "".join(f"{cell:{width}}" for cell, width in zip(cells, widths, strict=True)).rstrip()
        for cells in rows_of_table
    )


def remove_expert(folder: Path) -> Path:
    """Remove an expert's two files, and its folder if nothing else is in it; its run stays.

    Raises:
        ExpertError: there is no expert.
    """
    found = find_expert(folder)
    for name in (DESCRIPTION, TENSORS):
        (found / name).unlink(missing_ok=True)
    if not any(found.iterdir()):
        found.rmdir()
    return found
