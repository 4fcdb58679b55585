"""The detector: backbone, pyramid, head, and the shortcuts that keep every point's embedding in the text space."""

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from ovd import kernels
from ovd.model.backbone import Backbone, BackboneOutput
from ovd.model.fcos_head import FcosHead, make_points
from ovd.model.fpn import FeaturePyramid, SimplePyramid
from ovd.model.gates import GatedShortcuts, PlainProjection
from ovd.model.normalization import Normalization
from ovd.model.resample import resample_dense
from ovd.model.side_branch import SideBranch
from ovd.model.similarity import TextClassifier, add_name_offsets
from ovd.model.t_head import TaskAlignedHead
from ovd.precision import product_dtype
from ovd.structures import Points, Predictions

MAX_RECOMPILATIONS = 128


class Detector(nn.Module):
    """Detector that predicts an embedding, a box and a quality at every point of P3..P7.

    The text rows are not part of the detector: `classifier` makes a classifier of any rows. The logit scale starts at
    CLIP's; the bias is solved for on the first training batch.

    With gated shortcuts the embeddings of a fresh detector are exactly the dense CLIP feature. Without shortcuts they
    are a projection of the class tower, as in an ordinary detector.
    """

    def __init__(
        self,
        backbone: Backbone,
        pyramid: FeaturePyramid | SimplePyramid,
        head: FcosHead | TaskAlignedHead,
        shortcuts: GatedShortcuts | PlainProjection,
        *,
        normalization: Normalization,
        logit_scale: float,
        keeps_dense: bool = False,
        learned_names: tuple[int, int] | None = None,
        side: SideBranch | None = None,
    ):
        """
        Args:
            backbone: computes the pyramid's input features and the dense feature.
            pyramid: computes levels of one width from the backbone's features.
            head: computes class features, boxes and quality at every point of these levels.
            shortcuts: compute class embeddings from the dense feature, the levels and the class features.
            normalization: normalizes the backbone's input.
            logit_scale: CLIP's factor from cosine to logit, where the learned scale starts.
            keeps_dense: whether predictions in eval mode include the dense feature, for score ensembling.
            learned_names: shape (number of classes, D) of learned offsets to text rows, which start at zero; None for
                no offsets.
            side: branch whose outputs are added to the backbone's features before the pyramid; None for no branch.
        """
        super().__init__()
        self.normalization = normalization
        self.backbone = backbone
        self.pyramid = pyramid
        self.head = head
        self.shortcuts = shortcuts
        self.side = side
        self.strides = pyramid.strides
        self.keeps_dense = keeps_dense
        # Parts that the shortcuts do not use would get no gradient.
        if not shortcuts.uses_class_features:
            head.class_tower.requires_grad_(False)
        if not shortcuts.uses_dense:
            for parameter in backbone.projection_parameters():
                parameter.requires_grad_(False)
        self.log_scale = nn.Parameter(torch.tensor(logit_scale).log())
        self.threshold = nn.Parameter(torch.tensor(0.0))
        self.name_offsets = None if learned_names is None else nn.Parameter(torch.zeros(learned_names))

    @property
    def size_divisor(self) -> int:
        """Number that the sides of the input images must be multiples of."""
        return self.backbone.size_divisor

    @property
    def is_gated(self) -> bool:
        """Whether class embeddings start as the dense feature."""
        return isinstance(self.shortcuts, GatedShortcuts)

    @property
    def device(self) -> torch.device:
        """Device of the detector's weights."""
        return self.threshold.device

    @property
    def scale(self) -> Float[Tensor, ""]:
        """Factor from cosine to logit."""
        return self.log_scale.exp()

    @property
    def bias(self) -> Float[Tensor, ""]:
        """Bias added to the scaled cosine.

        It is learned as a threshold on the cosine, logit = scale * (cosine - threshold), so that the scale can grow
        without moving every logit: CLIP's embeddings share a direction, so all cosines are high and only their
        differences separate classes.
        """
        return -self.scale * self.threshold

    def set_bias(self, bias: float) -> None:
        """Set the threshold that gives this bias at the current scale."""
        with torch.no_grad():
            self.threshold.copy_(-bias / self.scale)

    def classifier_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that `classifier` depends on besides the text rows."""
        offsets = [] if self.name_offsets is None else [self.name_offsets]
        return [self.log_scale, self.threshold, *offsets]

    def classifier(self, text: Float[Tensor, "C D"], class_ids: Int[Tensor, " C"] | None = None) -> TextClassifier:
        """Return the classifier of these text rows, with the detector's scale and bias.

        Args:
            text: unit rows; moved to the detector's device.
            class_ids: class of each row in the training vocabulary, ascending; the rows are moved by the learned
                `name_offsets` of these classes. By default the rows may be of any texts and are used as they are.
        """
        if class_ids is None:
            class_ids = torch.arange(len(text))
        elif self.name_offsets is not None:
            text = add_name_offsets(text.to(self.device), class_ids.to(self.device), self.name_offsets)
        return TextClassifier(text.to(self.device), class_ids.to(self.device), self.scale, self.bias)

    def forward(self, images: UInt8[Tensor, "B 3 H W"]) -> Predictions:
        """Predict for RGB images, 0..255, with sides that are multiples of `size_divisor`."""
        pixels = self.normalize(images)
        return self.predict_from(self.backbone(pixels), pixels)

    def predict_from(self, output: BackboneOutput, pixels: Float[Tensor, "B 3 H W"]) -> Predictions:
        """Predict from the backbone's output for normalized images."""
        features = output.features if self.side is None else self.side(pixels, output.features)
        pyramid = self.pyramid(features)
        class_features, boxes, quality = self.head(pyramid)
        keeps_dense = self.keeps_dense and not self.training
        dense = self._dense(output.last, pyramid) if self.shortcuts.uses_dense or keeps_dense else []
        embeddings = self.shortcuts(dense, pyramid, class_features)
        kept = _concatenate(dense).float() if keeps_dense else None
        return Predictions(_concatenate(embeddings), boxes, quality, kept)

    def normalize(self, images: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
        """Normalize the images that `forward` takes for the backbone, in the memory format of the weights.

        Raises:
            ValueError: an image side is no multiple of `size_divisor`.
        """
        divisor = self.size_divisor
        if images.shape[-2] % divisor or images.shape[-1] % divisor:
            raise ValueError(f"image sides {tuple(images.shape[-2:])} are not multiples of {divisor}; pad them")
        pixels = self.normalization(images)
        pixels = pixels.to(product_dtype(pixels))  # once for backbone and side branch
        is_channels_last = self.head.distances.weight.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if is_channels_last else torch.contiguous_format
        return pixels.contiguous(memory_format=layout)

    def _dense(
        self, last: Float[Tensor, "B K h w"], pyramid: list[Float[Tensor, "B C ..."]]
    ) -> list[Float[Tensor, "B D ..."]]:
        """Compute the dense feature, resampled to every level."""
        dense = self.backbone.project_locations(last)
        return [
            resample_dense(dense, self.backbone.strides[-1], (level.shape[2], level.shape[3]), stride)
            for level, stride in zip(pyramid, self.strides, strict=True)
        ]

    def compile_learned_path(self) -> None:
        """Compile pyramid, head and shortcuts, but not the backbone; copies of the detector are not compiled.

        Compilation takes seconds for the first shape of a batch, and minutes for the second, which then serves all
        further sizes.
        """
        # torch counts all parts as one function, which it compiles at most eight times by default.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MAX_RECOMPILATIONS)
        parts: list[nn.Module | None] = [self.pyramid, self.head]
        if isinstance(self.shortcuts, GatedShortcuts):
            parts += [self.shortcuts.pyramid, self.shortcuts.head]
        for part in parts:
            if part is not None:
                part.compile()

    def points(self, images: UInt8[Tensor, "B 3 H W"]) -> Points:
        """Return the points of the predictions for these images."""
        return make_points((images.shape[-2], images.shape[-1]), self.strides, images.device)


def _concatenate(levels: list[Float[Tensor, "B D ..."]]) -> Float[Tensor, "B P D"]:
    last = [level.permute(0, 2, 3, 1) for level in levels]
    if kernels.supports(last[0]):
        from ovd.kernels.rows import ConcatenateLevels

        return ConcatenateLevels.apply(*last)
    return torch.cat([level.flatten(1, 2) for level in last], dim=1)
