"""A teacher from the transformers package: OWL-ViT, OWLv2, Grounding DINO or MM Grounding DINO.

    teacher = HuggingFaceTeacher("google/owlv2-base-patch16-ensemble", device=torch.device("cuda"), ...)

transformers is an optional dependency (the extra `teachers`), imported when a teacher is constructed.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor
from torchvision.ops import batched_nms, box_convert

from ovd.boxes import clip_boxes
from ovd.format_count import format_count
from ovd.join_first import join_first
from ovd.selftrain.labels import TeacherBoxes
from ovd.selftrain.teacher_settings import weights_fingerprint
from ovd.text.names import clean_name, fill_template

_OWL = ("owlvit", "owlv2")
_GROUNDING_DINO = ("grounding-dino", "mm-grounding-dino")

_PROMPTS_PER_PASS = 512
"""Prompts per pass of OWL models, which have no limit of their own. Memory grows with it; with fewer prompts there are
more passes, each of which runs the backbone again."""

_MAX_ASPECT = 32
"""Largest aspect ratio of an image; thinner ones are padded, since processors that keep the aspect ratio would shrink
their short side to zero."""

_NUM_LISTED = 20


@dataclass(frozen=True)
class _Pass:
    """The prompts of one forward pass."""

    inputs: dict[str, Tensor]
    spans: dict[int, slice]
    """Slice of the logits' last axis for each prompt, by its position among the prompts of the image."""


class HuggingFaceTeacher:
    """A zero-shot detector of transformers as a Teacher.

    Images are processed one at a time, in float32, so that an image's labels do not depend on its batch: padding a
    batch changes some models' boxes, and OWL models score the queries that pad a batch like real ones. bf16 would round
    box corners by up to 4 pixels in 1,000.

    Every (box, query) pair is scored, not only each box's best query. Grounding DINO scores tokens; a query's score is
    the mean over its tokens, as in its authors' COCO evaluation. OWL models read 16 tokens per prompt, Grounding DINO
    256 tokens of all prompts in a pass; a longer prompt is cut, and more prompts take several passes.

    The boxes of OWL models do not depend on the queries, so a query can be put into several templates; a box's score is
    then its mean probability over these prompts, a choice of this toolkit. The boxes of Grounding DINO depend on the
    text, so different prompts have no boxes in common to average over; it takes a single template.
    """

    def __init__(
        self,
        name_or_folder: str | Path,
        *,
        device: torch.device,
        score_threshold: float,
        candidates: int,
        nms_iou: float,
        templates: tuple[str, ...] | None = None,
    ):
        """Load the model and its processor.

        Args:
            name_or_folder: a model name on the Hugging Face hub (downloaded once; with HF_HUB_OFFLINE=1 read only from
                the cache), or a folder that `save_pretrained` wrote, with the processor.
            score_threshold: only boxes with a higher score are kept.
            candidates: number of (box, query) pairs per image that enter non-maximum suppression, those with the
                highest scores.
            nms_iou: IoU above which the lower-scoring of two boxes of the same query is dropped.
            templates: prompt templates for names and phrases, which are cleaned first (text/names.py), for example
                ("a photo of {article} {}",); with None, the model reads queries unchanged, for captions.

        Raises:
            ValueError: transformers is not installed, the model is neither cached nor downloadable, it is not of a
                supported family, its weights are incomplete, a template has no {}, or there are no templates or more
                than the model takes.
        """
        prompts_per_query = 1 if templates is None else len(templates)
        if not prompts_per_query:
            raise ValueError(
                "templates is an empty tuple; give at least one template, or None to use queries unchanged"
            )
        for template in templates or ():
            if "{}" not in template:
                raise ValueError(f"template {template!r} has no {{}} for the query")
        self._family, self._processor, model = _load(str(name_or_folder), prompts_per_query)
        self._model = model.to(device).eval()
        self._device = device
        self._score_threshold = score_threshold
        self._candidates = candidates
        self._nms_iou = nms_iou
        self._templates = templates
        self._prompts_per_query = prompts_per_query
        self._name_or_folder = name_or_folder
        preparation = self._processor.image_processor.to_json_string().encode()
        # Without the path, since the model's folder may be moved between runs.
        self.name = (
            f"{self._family} sha256 {weights_fingerprint(model)} on images prepared by sha256 "
            f"{hashlib.sha256(preparation).hexdigest()[:16]} in transformers {version('transformers')}, "
            f"templates {templates!r}, score_threshold {score_threshold}, candidates {candidates}, nms_iou {nms_iou}"
        )

    def detect(self, images: list[UInt8[np.ndarray, "_ _ 3"]], queries: list[tuple[str, ...]]) -> list[TeacherBoxes]:
        """Detect in RGB images of any size, each with its own queries; `texts` are positions in the image's queries.

        Raises:
            ValueError: a box or score of the model is NaN.
        """
        return [self._detect_image(image, texts) for image, texts in zip(images, queries, strict=True)]

    @torch.no_grad()
    def _detect_image(self, image: UInt8[np.ndarray, "H W 3"], queries: tuple[str, ...]) -> TeacherBoxes:
        found_boxes, found_scores, found_texts = [torch.zeros(0, 4)], [torch.zeros(0)], [torch.zeros(0).long()]
        for boxes, scores, positions in self._score(image, queries):
            if boxes.isnan().any() or scores.isnan().any():
                raise ValueError(
                    f"{self._name_or_folder} gave NaN for an image; its weights or its input contain NaN or infinity"
                )
            visible = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
            rows, columns = (visible[:, None] & (scores > self._score_threshold)).nonzero().unbind(dim=1)
            found_boxes.append(boxes[rows])
            found_scores.append(scores[rows, columns])
            found_texts.append(torch.tensor(positions)[columns])
        boxes, scores, texts = torch.cat(found_boxes), torch.cat(found_scores), torch.cat(found_texts)
        best = scores.argsort(descending=True, stable=True)[: self._candidates]
        boxes, scores, texts = boxes[best], scores[best], texts[best]
        kept = batched_nms(boxes.double(), scores.double(), texts, self._nms_iou).sort().values
        return TeacherBoxes(boxes[kept].numpy(), scores[kept].numpy(), texts[kept].numpy())

    def _score(
        self, image: UInt8[np.ndarray, "H W 3"], queries: tuple[str, ...]
    ) -> Iterator[tuple[Float[Tensor, "P 4"], Float[Tensor, "P C"], list[int]]]:
        """Yield for each pass the boxes in the image, their scores for C of the queries, and these queries' positions.

        A query is scored after the pass that reads the last of its prompts.
        """
        num_prompts = self._prompts_per_query
        height, width = image.shape[:2]
        least = -(-max(height, width) // _MAX_ASPECT)
        seen = np.pad(image, ((0, max(0, least - height)), (0, max(0, least - width)), (0, 0)))
        pixels = self._processor.image_processor(images=Image.fromarray(seen), return_tensors="pt")
        read: list[tuple[int, Tensor]] = []  # positions of prompts, and the boxes' probabilities for them
        for of_pass in self._passes(queries):
            inputs = {name: tensor.to(self._device) for name, tensor in (of_pass.inputs | dict(pixels)).items()}
            outputs = self._model(**inputs)
            boxes = self._to_pixels(outputs.pred_boxes[0].cpu(), seen.shape[:2])
            boxes = clip_boxes(boxes, torch.tensor([height, width]))
            probabilities = outputs.logits[0].sigmoid().cpu()
            read += [(prompt, probabilities[:, span].mean(dim=1)) for prompt, span in of_pass.spans.items()]
            num_whole = len(read) - len(read) % num_prompts
            whole, read = read[:num_whole], read[num_whole:]
            if whole:
                by_prompt = torch.stack([of_prompt for _, of_prompt in whole], dim=1)
                scores = by_prompt.unflatten(1, (-1, num_prompts)).mean(dim=2)
                yield boxes, scores, [prompt // num_prompts for prompt, _ in whole[::num_prompts]]

    def _passes(self, queries: tuple[str, ...]) -> Iterator[_Pass]:
        """Divide the prompts of an image into passes: the first query in every template, then the second, and so on."""
        prompts = list(queries)
        if self._templates is not None:
            prompts = [fill_template(template, clean_name(query)) for query in queries for template in self._templates]
        if self._family in _OWL:
            return _owl_passes(self._processor.tokenizer, prompts, self._model.config.text_config)
        return _grounding_dino_passes(self._processor.tokenizer, prompts, self._model.config.max_text_len)

    def _to_pixels(self, boxes: Float[Tensor, "P 4"], size: tuple[int, int]) -> Float[Tensor, "P 4"]:
        """Convert the model's boxes (center and size, relative to its input) to corners in pixels of the image.

        The model's input is the whole image; OWLv2's processor first pads it to a square at the right and bottom.
        """
        if self._family == "owlv2" and self._processor.image_processor.do_pad:
            size = (max(size), max(size))
        height, width = size
        return box_convert(boxes, "cxcywh", "xyxy") * torch.tensor([width, height, width, height])


def _load(name: str, prompts_per_query: int) -> tuple[str, Any, Any]:
    """Load family, processor and model (classes without a common typed base), in float32 on the CPU."""
    try:
        from transformers import AutoConfig, AutoModelForZeroShotObjectDetection, AutoProcessor
    except ImportError as error:
        raise ValueError(
            f"the teacher {name} needs the package transformers, which cannot be imported ({error}); install it: "
            "pip install transformers, or pip install 'ovd[teachers]'"
        ) from error
    family = _read(AutoConfig, name).model_type
    if family not in _OWL + _GROUNDING_DINO:
        known = ", ".join(_OWL + _GROUNDING_DINO)
        raise ValueError(f"the teacher {name} is a {family!r}; supported zero-shot detectors are: {known}")
    if family in _GROUNDING_DINO and prompts_per_query > 1:
        raise ValueError(
            f"the teacher {name} is a {family!r}, whose boxes depend on the text, so it cannot use "
            f"{prompts_per_query} templates; use a single one (--templates none), leave --templates out, or use an "
            "OWL-ViT or OWLv2"
        )
    processor = _read(AutoProcessor, name)
    # By default, transformers keeps the precision of the file, and initializes missing weights at random.
    model, report = _read(AutoModelForZeroShotObjectDetection, name, dtype=torch.float32, output_loading_info=True)
    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(
            f"the teacher {name} lacks {format_count(len(missing), 'weight')}: {join_first(missing, _NUM_LISTED)}"
        )
    return family, processor, model


def _read(kind: Any, name: str, **options: Any) -> Any:
    try:
        return kind.from_pretrained(name, **options)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"the teacher {name} cannot be loaded ({reason}); it must be a folder with model and processor, written "
            "by save_pretrained, or a model in the cache (HF_HOME) or on the hub (with HF_HUB_OFFLINE unset)"
        ) from error


def _owl_passes(tokenizer: Any, prompts: list[str], text_config: Any) -> Iterator[_Pass]:
    """Yield the passes of an OWL model: every prompt is a sequence and a column of the logits."""
    for start in range(0, len(prompts), _PROMPTS_PER_PASS):
        chunk = prompts[start : start + _PROMPTS_PER_PASS]
        tokens = tokenizer(
            chunk,
            padding="max_length",
            truncation=True,
            max_length=text_config.max_position_embeddings,
            return_tensors="pt",
        )
        yield _Pass(
            {name: tokens[name] for name in ("input_ids", "attention_mask")},
            {start + column: slice(column, column + 1) for column in range(len(chunk))},
        )


def _grounding_dino_passes(tokenizer: Any, prompts: list[str], max_tokens: int) -> Iterator[_Pass]:
    """Yield the passes of Grounding DINO: prompts are joined into one sequence, each followed by a full stop.

    Every token of the sequence is a column of the logits. The model splits at full stops and question marks, so those
    inside a prompt are removed. A prompt without any other token is left out.
    """
    begin, end = tokenizer.cls_token_id, tokenizer.sep_token_id
    stop, question = tokenizer.convert_tokens_to_ids([".", "?"])
    ids: list[int] = [begin]
    spans: dict[int, slice] = {}
    for position, prompt in enumerate(prompts):
        tokens = tokenizer(prompt, add_special_tokens=False).input_ids
        kept = [token for token in tokens if token not in (begin, end, stop, question)][: max_tokens - 3]
        if not kept:
            continue
        if len(ids) + len(kept) + 2 > max_tokens:
            yield _one_sequence([*ids, end], spans)
            ids, spans = [begin], {}
        spans[position] = slice(len(ids), len(ids) + len(kept))
        ids += [*kept, stop]
    if spans:
        yield _one_sequence([*ids, end], spans)


def _one_sequence(ids: list[int], spans: dict[int, slice]) -> _Pass:
    input_ids = torch.tensor([ids])
    inputs = {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "token_type_ids": torch.zeros_like(input_ids),
    }
    return _Pass(inputs, spans)
