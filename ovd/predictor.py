"""A trained detector for use from Python: image and class names in, boxes out.

    predictor = Predictor.load("runs/quickstart")         # or Predictor.from_pretrained("name/detector")
    found = predictor("photo.jpg", ["umbrella", "coffee cup"])
    print(found.boxes, found.scores, found.classes)

Whole jobs, such as evaluating on a data set, are in `ovd/jobs/`.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import ModelCard, ModelHubMixin, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from jaxtyping import Float
from torch import Tensor

from ovd.build.model_card import METRICS, model_card
from ovd.build.packaged import check_packable, save_packaged
from ovd.build.prompts import Prompt, PromptEncoder
from ovd.build.trained import TrainedDetector, build_inference, load_detector
from ovd.choices import SamePlace
from ovd.data.images.pixels import AnyImage, pixels_of
from ovd.engine.checkpoint import CLIP_FOLDER
from ovd.experts.group import ExpertGroup
from ovd.model.query_texts import QueryTexts
from ovd.structures import Detections
from ovd.text.names import NAME_LISTS_KEPT, check_each_once, names_asked
from ovd.text.unit_rows import as_unit_rows


class Predictor(ModelHubMixin):
    """Detects named classes in one image per call; text embeddings of the last few lists of names are cached.

    One thread at a time may use it.

    `from_pretrained`, `save_pretrained` and `push_to_hub` are those of huggingface_hub's mixin: a folder, or a
    repository of the Hugging Face hub, with weights, config, calibration, and a model card of what was measured.
    """

    def __init__(self, trained: TrainedDetector, *, size: int | None = None, prefilter: float | None = None):
        """
        Args:
            trained: a detector, which is moved to the device of its config.
            size: longest side in pixels that images are resized to; by default as in training.
            prefilter: as for `load`.

        Raises:
            ValueError: a size under 32 px; a prefilter that is no share.
        """
        self._trained = trained
        self._hub_mixin_config = {}  # config.json, by which the hub counts downloads
        self._inference = build_inference(trained, size=size, prefilter=prefilter)
        self._queries_of = _kept_queries(trained)

    def __getstate__(self) -> dict[str, Any]:
        """Without what is kept of names, for copies in other processes."""
        return {name: value for name, value in vars(self).items() if name != "_queries_of"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._queries_of = _kept_queries(self._trained)

    @property
    def threshold(self) -> float:
        """The score above which boxes are best reported: of a calibrated detector a probability, which has the highest
        expected F1 on images held out of its training (`train.calibration`); else 0.45."""
        return self._inference.shown_threshold

    @property
    def is_calibrated(self) -> bool:
        """Whether scores are probabilities of a box of this name being there."""
        return self._inference.is_calibrated

    @classmethod
    def load(
        cls,
        run: Path | str,
        *,
        experts: Path | str | Sequence[Path | str] = (),
        same_place: SamePlace = "base_stays",
        nearest: bool = False,
        device: str | None = None,
        size: int | None = None,
        prefilter: float | None = None,
    ) -> "Predictor":
        """Load a run folder or a checkpoint folder.

        Args:
            experts: folders of experts of this detector (`ovd fine-tune`), or the run folders that they are in.
                Each answers for its own names and their synonyms, the detector for all others.
            same_place: what becomes of boxes of the detector and of an expert at one place. `base_stays` drops the
                expert's if it is the less probable; `surer` drops the less probable; `both` keeps both.
            nearest: whether experts answer queries in other words, too, that are near to their names.
            device: such as "cpu" or "cuda:1"; by default as in training.
            size: as in `__init__`.
            prefilter: share of the points of an image at which all names are scored, for tens of thousands of names,
                such as 0.15; by default as in the run's config, which is all points unless it says otherwise.

        Raises:
            ValueError: no intact checkpoint there, or an expert is missing, damaged or of another detector; a size
                under 32 px.
        """
        folders = (experts,) if isinstance(experts, str | Path) else tuple(experts)
        if not folders and (same_place != "base_stays" or nearest):
            raise ValueError("same_place and nearest are for experts; give some, or leave both out")
        group = ExpertGroup(tuple(map(Path, folders)), same_place, nearest)
        return cls(load_detector(Path(run), device, experts=group), size=size, prefilter=prefilter)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> "Predictor":
        """Load a detector of the Hugging Face hub, or of a folder that `save_pretrained` wrote.

        Args:
            options: those of `load`, such as `device`, and those of huggingface_hub's mixin, such as `revision`.

        Raises:
            ValueError: there is no such repository, the hub cannot be reached, or the folder has no whole detector.
        """
        if Path(pretrained_model_name_or_path).is_dir():
            return cls._from_pretrained(model_id=str(pretrained_model_name_or_path), **options)
        try:
            return super().from_pretrained(pretrained_model_name_or_path, **options)
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
            raise ValueError(
                f"{pretrained_model_name_or_path} is neither a folder nor a detector that the hub gives out ({error}); "
                "without a network only what was downloaded before is there (HF_HUB_OFFLINE, HF_HOME)"
            ) from error

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **options: Any) -> "Predictor":
        """What the mixin's `from_pretrained` calls."""
        load_options = {name: options.pop(name) for name in signature(cls.load).parameters if name in options}
        if unknown := options.keys() - signature(ModelHubMixin.from_pretrained).parameters.keys():
            raise TypeError(f"from_pretrained does not know {', '.join(sorted(unknown))}")
        folder = Path(model_id)
        return cls.load(folder if folder.is_dir() else snapshot_download(model_id, **options), **load_options)

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Write a folder that `from_pretrained` and `load` take; options of `load`, such as `size`, are not in it.

        Args:
            save_directory: the folder; the card is called by its name.
            options: those of huggingface_hub's mixin, such as `push_to_hub`.

        Raises:
            ValueError: the detector has experts, or the folder holds a detector, or something else.
        """
        check_packable(self._trained, Path(save_directory))  # here, since the mixin begins by deleting a config.json
        name = options.get("repo_id") or Path(save_directory).absolute().name
        options.setdefault("model_card_kwargs", {"repository": name})
        return super().save_pretrained(save_directory, **options)

    def _save_pretrained(self, save_directory: Path) -> None:
        """What `save_pretrained` calls."""
        save_packaged(self._trained, save_directory)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload what `save_pretrained` writes; needs a login (`hf auth login`) or `token`.

        Args:
            repo_id: such as "name/detector"; made if it does not exist.
            options: those of huggingface_hub's mixin, such as `private`, `token` and `branch`.

        Returns:
            The address of the commit.
        """
        options.setdefault("model_card_kwargs", {"repository": repo_id})
        # What an earlier detector has left there would be taken for this one's.
        options.setdefault("delete_patterns", [METRICS, "attached.safetensors", f"{CLIP_FOLDER}/*"])
        return super().push_to_hub(repo_id, **options)

    def generate_model_card(self, repository: str = "FOLDER-OR-NAME", **_others: Any) -> ModelCard:
        """The card that `save_pretrained` writes as README.md (`model_card_kwargs={"repository": ...}`)."""
        return model_card(self._trained, repository)

    def __call__(self, image: AnyImage, names: str | Prompt | Sequence[str | Prompt]) -> Detections:
        """Detect in one image: boxes in pixels of the image, best first; `classes` are positions in `names`.

        Args:
            image: a file, or a PIL image, an array or a tensor, which are read by the rules of
                `ovd.data.images.pixels`.
            names: any class names, or prompts of texts and example pictures, at least one; one may stand alone.

        Raises:
            ImageError: the file, or that of an example, is missing or not an image.
            ValueError: an image in memory that the rules do not read, no names, a blank one, or one twice.
        """
        asked = names_asked(names, (str, Prompt))
        check_each_once(map(_only_text, asked))
        return self._inference.image(self._queries_of(asked), pixels_of(image))

    def detect(self, image: AnyImage, text: Float[Tensor, "C D"] | np.ndarray) -> Detections:
        """Detect with text rows of one's own, without score ensembling, which needs names.

        Args:
            image: as for `__call__`.
            text: unit rows; `classes` are their positions.

        Raises:
            ImageError, ValueError: as `__call__`; or as `as_unit_rows`.
        """
        given = text.detach().float().cpu().numpy() if isinstance(text, Tensor) else text
        rows = torch.from_numpy(as_unit_rows(given, self._trained.clip.dim))
        return self._inference.image(QueryTexts(rows), pixels_of(image))


def _kept_queries(trained: TrainedDetector) -> Callable[[tuple[str | Prompt, ...]], QueryTexts]:
    """`PromptEncoder.queries`, which keeps those of the last few lists of names."""
    return lru_cache(NAME_LISTS_KEPT)(PromptEncoder(trained).queries)


def _only_text(prompt: str | Prompt) -> str | None:
    """The one text that a class is asked for by; None if examples or further texts make another row of it."""
    if isinstance(prompt, str):
        return prompt
    return prompt.texts[0] if len(prompt.texts) == 1 and not prompt.images else None
