"""Build the texts of a config: the text bank for training, and a detector's queries."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ovd.build.detector import resolve_device
from ovd.build.trained import TrainedDetector
from ovd.clip.load import Clip
from ovd.config.training import TrainConfig
from ovd.data.index import AnnotationIndex
from ovd.engine.step_texts import TextSampler
from ovd.experts.folder import read_expert
from ovd.format_count import format_count
from ovd.model.pair_scores import ScoreEnsemble
from ovd.model.query_texts import QueryTexts
from ovd.model.similarity import add_name_offsets
from ovd.text.bank import TextBank, build_bank
from ovd.text.encoder import encode_classes, text_tower_fingerprint, text_tower_on
from ovd.text.names import isin_names, name_key
from ovd.text.pair_texts import PairTexts
from ovd.text.prompts import TEMPLATES


def build_text_bank(config: TrainConfig, clip: Clip, index: AnnotationIndex) -> TextBank:
    """Build the text bank of the training vocabulary."""
    return build_class_bank(config, clip, index.names, index.synonyms)


def build_class_bank(
    config: TrainConfig, clip: Clip, names: Sequence[str], synonyms: Sequence[Sequence[str]]
) -> TextBank:
    """Build the text bank of any classes from the config's `bank` section, or open its `bank.file`.

    Raises:
        ValueError: `bank.file` comes from another text tower, or lacks a class.
    """
    bank = config.bank
    if bank.file is not None:
        return TextBank(bank.file, text_tower=text_tower_fingerprint(clip), names=names)
    paraphrases = read_paraphrases(bank.paraphrases, names) if bank.paraphrases else [()] * len(names)
    with text_tower_on(clip, resolve_device(config)):
        return build_bank(clip, names, synonyms, bank, folder=bank.cache, paraphrases=paraphrases)


def build_text_sampler(
    config: TrainConfig,
    bank: TextBank,
    image_counts: Int[Tensor, " C"],
    *,
    pair_texts: PairTexts | None = None,
    held_out: Bool[Tensor, " C"] | None = None,
) -> TextSampler:
    """Build the sampler of each step's texts.

    Args:
        bank: text bank of the training vocabulary.
        image_counts: number of training images per class.
        pair_texts: texts of the image-text pairs; None without pairs.
        held_out: whether each class's name is held out of training; None if none is.
    """
    return TextSampler(
        bank=bank,
        image_counts=image_counts,
        train=config.train,
        noise=config.bank.noise,
        pair_texts=pair_texts,
        sampled_texts=0 if config.data.pairs is None else config.data.pairs.sampled_texts,
        held_out=held_out,
    )


def check_bank(config: TrainConfig, clip: Clip, index: AnnotationIndex) -> None:
    """Check the files that a text bank would be built from, without building one.

    Raises:
        ValueError: as `build_class_bank`; a file cannot be read.
    """
    if config.bank.file is not None:
        TextBank(config.bank.file, text_tower=text_tower_fingerprint(clip), names=index.names)
    elif config.bank.paraphrases is not None:
        read_paraphrases(config.bank.paraphrases, index.names)


def read_paraphrases(path: Path, names: Sequence[str]) -> list[tuple[str, ...]]:
    """Read each class's texts from a JSON file {"class name": ["a text", ...]}; classes that are not in it have none.

    Raises:
        ValueError: the file is not of that form, or contains none of the classes.
    """
    try:
        texts = json.loads(path.read_text(encoding="utf-8-sig"))
        lists = list(texts.values()) if isinstance(texts, dict) else [None]
        if not all(
            isinstance(of_class, list) and all(isinstance(text, str) and name_key(text) for text in of_class)
            for of_class in lists
        ):
            raise TypeError("it does not map class names to lists of texts that are not blank")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ValueError(f'{path} must be JSON of the form {{"class name": ["a text", ...]}} ({error})') from None
    if not set(texts) & set(names):
        raise ValueError(
            f"{path} has texts for {format_count(len(texts), 'class', 'classes')}, but none for the vocabulary"
        )
    return [tuple(texts.get(name, ())) for name in names]


def evaluation_text(
    config: TrainConfig, clip: Clip, names: Sequence[str], synonyms: Sequence[Sequence[str]] | None = None
) -> Float[Tensor, "C D"]:
    """Return CLIP's unit row of each class: the mean over the config's templates and `num_synonyms` synonyms."""
    with text_tower_on(clip, resolve_device(config)):
        return encode_classes(clip, names, TEMPLATES[config.bank.templates], synonyms, config.bank.num_synonyms)


def text_of_names(
    trained: TrainedDetector, names: Sequence[str], synonyms: Sequence[Sequence[str]] | None = None
) -> Float[Tensor, "C D"]:
    """Return one unit row per name as a detector uses it: `evaluation_text`, moved by its learned offset."""
    return _add_name_offsets(trained, names, evaluation_text(trained.config, trained.clip, names, synonyms))


def queries_of_names(
    trained: TrainedDetector, names: Sequence[str], synonyms: Sequence[Sequence[str]] | None = None
) -> QueryTexts:
    """Return a detector's queries for these names: their rows (`text_of_names`), and its score ensemble."""
    return QueryTexts(text_of_names(trained, names, synonyms), score_ensemble(trained, names))


def queries_of_index(
    trained: TrainedDetector, index: AnnotationIndex, *, clip_text: Float[Tensor, "C D"] | None = None
) -> QueryTexts:
    """Return the queries of a detector and its experts for the classes of a data set, in its order.

    Args:
        clip_text: CLIP's rows of the classes (`evaluation_text`), if they are known already.
    """
    if clip_text is None:
        clip_text = evaluation_text(trained.config, trained.clip, index.names, index.synonyms)
    text = _add_name_offsets(trained, index.names, clip_text)
    return QueryTexts(_use_expert_names(trained, index.names, text), score_ensemble(trained, index.names))


def score_ensemble(trained: TrainedDetector, asked: Sequence[str | Sequence[str]]) -> ScoreEnsemble | None:
    """Build the combination of the detector's and CLIP's scores for some classes; return None if not configured.

    Args:
        asked: texts of each class, none for a class given by pictures only; a single text may be a plain string.
    """
    config = trained.config.eval.ensemble
    if config is None:
        return None
    known = set(map(name_key, trained.classes))
    texts = [(of_class,) if isinstance(of_class, str) else of_class for of_class in asked]
    is_base = [any(name_key(text) in known for text in of_class) for of_class in texts]
    weights = torch.tensor([config.base if base else config.novel for base in is_base])
    return ScoreEnsemble(weights, trained.clip.model.logit_scale.exp().item())


def _add_name_offsets(
    trained: TrainedDetector, names: Sequence[str], text: Float[Tensor, "C D"]
) -> Float[Tensor, "C D"]:
    """Move unit rows of names by the offsets that the detector has learned for its trained names (`expert.learn`)."""
    offsets = trained.detector.name_offsets
    if offsets is None or len(names) == 0:
        return text
    rows = {name_key(name): row for row, name in enumerate(trained.classes)}
    ids = torch.tensor([rows.get(name_key(name), len(offsets)) for name in names])
    return add_name_offsets(text, ids, offsets.detach().cpu())


def _use_expert_names(
    trained: TrainedDetector, names: Sequence[str], text: Float[Tensor, "C D"]
) -> Float[Tensor, "C D"]:
    """Replace rows of a data set's classes so that experts recognize those that have one of their names.

    An expert does not recognize a row that is the mean of a name and of synonyms that it was not trained with; the row
    of the name alone replaces it.

    Args:
        text: unit rows of the names with the data set's synonyms.
    """
    for folder in trained.experts.folders:
        expert = read_expert(folder)
        known = torch.tensor(isin_names(names, expert.description.names_and_synonyms), dtype=torch.bool)
        unknown_rows = (known & ~expert.names.are_own_names(text)).nonzero().squeeze(1).tolist()
        if unknown_rows:
            alone = evaluation_text(trained.config, trained.clip, [names[row] for row in unknown_rows])
            text = text.index_copy(0, torch.tensor(unknown_rows), alone)
    return text
