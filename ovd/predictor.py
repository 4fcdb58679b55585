"""A trained detector for use from Python, which takes an image and class names and returns boxes.

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
from ovd.build.packaged import save_packaged
from ovd.build.prompts import Prompt, PromptEncoder
from ovd.build.trained import TrainedDetector, build_inference, load_detector
from ovd.choices import SamePlace
from ovd.data.images.pixels import AnyImage, pixels_of
from ovd.engine.checkpoint import CLIP_FOLDER
from ovd.experts.group import ExpertGroup
from ovd.model.query_texts import QueryTexts
from ovd.structures import Detections
from ovd.text.names import MAX_CACHED_NAME_LISTS, as_query_tuple, check_unique_names
from ovd.text.unit_rows import as_unit_rows


class Predictor(ModelHubMixin):
    """A trained detector that detects named classes in one image per call.

    The text embeddings of the last few lists of names are cached. A predictor is not thread-safe.

    `from_pretrained`, `save_pretrained` and `push_to_hub` follow huggingface_hub's mixin. They read and write a folder
    or a repository of the Hugging Face hub with weights, config, calibration, and a model card with the metrics.
    """

    def __init__(self, trained: TrainedDetector, *, size: int | None = None, prefilter: float | None = None):
        """
        Args:
            trained: a trained detector, which is moved to the device of its config.
            size: longest side in pixels that images are resized to; by default as in training.
            prefilter: share of the points at which all names are scored, see `load`.

        Raises:
            ValueError: `size` is under 32 px, or `prefilter` is not between 0 and 1.
        """
        self._trained = trained
        self._hub_mixin_config = {}  # written as config.json, by which the hub counts downloads
        self._inference = build_inference(trained, size=size, prefilter=prefilter)
        self._queries_of = _cached_encoder(trained)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the cached text embeddings, for copies in other processes."""
        return {name: value for name, value in vars(self).items() if name != "_queries_of"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._queries_of = _cached_encoder(self._trained)

    @property
    def threshold(self) -> float:
        """Recommended score threshold for reporting boxes.

        For a calibrated detector it is a probability, the threshold with the highest expected F1 on images held out of
        its training (`train.calibration`); otherwise it is 0.45.
        """
        return self._inference.shown_threshold

    @property
    def is_calibrated(self) -> bool:
        """Whether a score is the probability that the box is correct and has this name."""
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
        """Load a trained detector from a run folder or a checkpoint folder.

        Args:
            run: the run folder or checkpoint folder.
            experts: folders of experts of this detector (`ovd fine-tune`), or the run folders that contain them. Each
                expert detects its own names and their synonyms; the detector detects all other names.
            same_place: which box to keep if the detector and an expert find one at the same place. `base_stays` drops
                the expert's box if it is less probable; `surer` drops the less probable box; `both` keeps both.
            nearest: whether experts also detect other names whose text embeddings are near to those of their own names.
            device: device to run on, such as "cpu" or "cuda:1"; by default as in training.
            size: longest side in pixels that images are resized to; by default as in training.
            prefilter: share of the points of an image at which all names are scored, such as 0.15 for tens of thousands
                of names; by default as in the run's config, which is all points if it does not set it.

        Raises:
            ValueError: there is no intact checkpoint; an expert is missing, damaged or of another detector; or `size`
                is under 32 px.
        """
        folders = (experts,) if isinstance(experts, str | Path) else tuple(experts)
        if not folders and (same_place != "base_stays" or nearest):
            raise ValueError("same_place and nearest need experts; pass experts=[...], or leave both out")
        group = ExpertGroup(tuple(map(Path, folders)), same_place, nearest)
        return cls(load_detector(Path(run), device, experts=group), size=size, prefilter=prefilter)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> "Predictor":
        """Load a detector from the Hugging Face hub, or from a folder that `save_pretrained` wrote.

        Args:
            pretrained_model_name_or_path: name of the repository, or the folder.
            options: options of `load`, such as `device`, and of huggingface_hub's mixin, such as `revision`.

        Raises:
            ValueError: there is no such repository, the hub cannot be reached, or the folder has no complete detector.
        """
        if Path(pretrained_model_name_or_path).is_dir():
            return cls._from_pretrained(model_id=str(pretrained_model_name_or_path), **options)
        try:
            return super().from_pretrained(pretrained_model_name_or_path, **options)
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
            raise ValueError(
                f"{pretrained_model_name_or_path} is neither a folder nor a detector that can be downloaded "
                f"({error}); without a network, only detectors in the cache can be loaded (HF_HUB_OFFLINE, HF_HOME)"
            ) from error

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **options: Any) -> "Predictor":
        """Load a detector for the mixin's `from_pretrained`."""
        load_options = {name: options.pop(name) for name in signature(cls.load).parameters if name in options}
        if unknown := options.keys() - signature(ModelHubMixin.from_pretrained).parameters.keys():
            raise TypeError(f"from_pretrained got unknown arguments: {', '.join(sorted(unknown))}")
        folder = Path(model_id)
        return cls.load(folder if folder.is_dir() else snapshot_download(model_id, **options), **load_options)

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Write a folder that `from_pretrained` and `load` read; options of `load`, such as `size`, are not stored.

        Args:
            save_directory: the folder to write, whose name becomes the title of the model card.
            options: options of huggingface_hub's mixin, such as `push_to_hub`.

        Raises:
            ValueError: the detector has experts, or the folder already holds a detector, a run, or another config.json
                or metrics.json.
        """
        name = options.get("repo_id") or Path(save_directory).absolute().name
        options.setdefault("model_card_kwargs", {"repository": name})
        # The mixin would write the card last, and an interrupted call could not be repeated once there is a manifest.
        save_packaged(self._trained, Path(save_directory), self.generate_model_card(**options["model_card_kwargs"]))
        return super().save_pretrained(save_directory, **options)

    def _save_pretrained(self, save_directory: Path) -> None:
        """Do nothing: `save_pretrained` has written the files before it calls the mixin's, which calls this."""

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload the files of `save_pretrained` to the Hugging Face hub; needs a login (`hf auth login`) or `token`.

        Args:
            repo_id: repository, such as "name/detector"; created if it does not exist.
            options: options of huggingface_hub's mixin, such as `private`, `token` and `branch`.

        Returns:
            The URL of the commit.
        """
        options.setdefault("model_card_kwargs", {"repository": repo_id})
        # Files left over from an earlier detector in the repository would be read as part of this one.
        options.setdefault("delete_patterns", [METRICS, "attached.safetensors", f"{CLIP_FOLDER}/*"])
        return super().push_to_hub(repo_id, **options)

    def generate_model_card(self, repository: str = "FOLDER-OR-NAME", **_others: Any) -> ModelCard:
        """Return the model card that `save_pretrained` writes as README.md.

        Args:
            repository: name in the card's title and examples, set by `model_card_kwargs={"repository": ...}`.
        """
        return model_card(self._trained, repository)

    def __call__(self, image: AnyImage, names: str | Prompt | Sequence[str | Prompt]) -> Detections:
        """Detect named classes in one image.

        Args:
            image: an image file, a PIL image, an array or a tensor; `ovd.data.images.pixels` has the accepted forms.
            names: class names, or prompts of texts and example images; one alone, or a sequence of at least one.

        Returns:
            Detections with boxes in pixels of the image, best first; `classes` are positions in `names`.

        Raises:
            ImageError: the image file, or the file of an example, is missing or not an image.
            ValueError: an image in memory has none of the accepted forms, there are no names, or a name is blank or
                occurs twice.
        """
        queries = as_query_tuple(names, (str, Prompt))
        check_unique_names(map(_only_text, queries))
        return self._inference.image(self._queries_of(queries), pixels_of(image))

    def detect(self, image: AnyImage, text: Float[Tensor, "C D"] | np.ndarray) -> Detections:
        """Detect with given text embeddings, without score ensembling, which needs names.

        Args:
            image: an image, as for `__call__`.
            text: embeddings of unit length, one row per class; `classes` of the detections are row numbers.

        Raises:
            ImageError, ValueError: as for `__call__` and `as_unit_rows`.
        """
        given = text.detach().float().cpu().numpy() if isinstance(text, Tensor) else text
        rows = torch.from_numpy(as_unit_rows(given, self._trained.clip.dim))
        return self._inference.image(QueryTexts(rows), pixels_of(image))


def _cached_encoder(trained: TrainedDetector) -> Callable[[tuple[str | Prompt, ...]], QueryTexts]:
    """Return `PromptEncoder.queries` with a cache for the last few lists of names."""
    return lru_cache(MAX_CACHED_NAME_LISTS)(PromptEncoder(trained).queries)


def _only_text(prompt: str | Prompt) -> str | None:
    """Return the text of a prompt that is a single text; None if it has examples or several texts."""
    if isinstance(prompt, str):
        return prompt
    return prompt.texts[0] if len(prompt.texts) == 1 and not prompt.images else None
