"""Vision transformers as backbones: open_clip's own (ViT-B/16, ViT-L/14) and timm's (SigLIP, SigLIP 2, EVA)."""

import inspect
from abc import abstractmethod
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from open_clip.timm_model import TimmModel
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from timm.layers import Format, PatchEmbed, RotaryEmbeddingCat, drop_path, resample_abs_pos_embed
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ovd.model.backbone import Backbone, BackboneOutput, disable_drop_paths, timm_layers

MAX_LOCATIONS_PER_CHUNK = 2**15
"""Maximum number of sequences in one attention call: CUDA's kernels take fewer than 65,536."""

_BlockCall = tuple[Callable[..., Tensor], Tensor | None]
"""Function that runs a block, and the rotary position embeddings to run it with."""


class TransformerBackbone(Backbone):
    """Plain vision transformer with one feature map, which has the stride of the patches.

    For the dense feature, every location of the last map passes through the rest of CLIP as a sequence of its own. It
    attends to itself alone, so only the value path matters (MaskCLIP, arXiv:2112.01071, with the residual path and the
    MLP kept, as in CLIPSelf, arXiv:2310.01403). If CLIP's embedding is that of the class token, the rest includes the
    last block, whose input is the last map; if CLIP pools by attention (SigLIP) or by the mean, the last map is the
    output of all blocks.

    Position embeddings are resampled to the image's grid. With windows (ViTDet, arXiv:2203.16527), attention is limited
    to windows of patches, except in `global_blocks` evenly spread blocks. All windows have the same size, with sides of
    at most `window` patches; a window as large as the grid is global attention. Where windows do not divide the grid,
    neighboring windows share a row or a column. Each window has a copy of the class token, and the block's output for
    the class token is the mean of the copies.
    """

    num_prefix: int
    """Number of tokens before the patch tokens."""
    takes_class_token: bool
    """Whether the embedding is computed from the final class token."""

    def __init__(
        self,
        blocks: Iterable[nn.Module],
        *,
        width: int,
        patch_size: tuple[int, int],
        window: int,
        global_blocks: int,
    ):
        """
        Args:
            blocks: all of the transformer's blocks.
            width: channels of a token.
            patch_size: height and width of a patch in pixels.
            window: largest side, in patches, of the windows that attention is limited to; 0 for global attention.
            global_blocks: with `window`, number of blocks that keep global attention.

        Raises:
            ValueError: patches are not square.
        """
        super().__init__()
        side, other = patch_size
        if side != other:
            raise ValueError(f"patches of {side} x {other} pixels are not square")
        self.channels = (width,)
        self.strides = (side,)
        self.size_divisor = 2 * side
        self._blocks = list(blocks)  # registered by the subclass, under CLIP's own names
        self._window = window
        self._num_global = global_blocks
        self._drop_path_rate = 0.0

    @abstractmethod
    def embed(self, images: Float[Tensor, "B 3 H W"], grid: tuple[int, int]) -> Float[Tensor, "B N C"]:
        """Compute the first block's input: class token and other prefix tokens, then patch tokens row by row."""

    @abstractmethod
    def rotary(self, grid: tuple[int, int]) -> Tensor | None:
        """Return the rotary position embeddings for a grid of patches; None for a model without them."""

    @abstractmethod
    def run_block(self, block: nn.Module, tokens: Float[Tensor, "B N C"], rotary: Tensor | None) -> Tensor:
        """Compute the output tokens of one block."""

    @abstractmethod
    def pool(self, tokens: Float[Tensor, "B N C"]) -> Float[Tensor, "B D"]:
        """Compute the pooled embedding from all tokens after the last block."""

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> BackboneOutput:
        grid = self._grid(images)
        tokens = self._run(self.embed(images, grid), grid, len(self._blocks) - self.takes_class_token)
        last = tokens[:, self.num_prefix :].transpose(1, 2).unflatten(2, grid)
        return BackboneOutput((last,), last)

    def project_locations(self, last: Float[Tensor, "B C h w"]) -> Float[Tensor, "B D h w"]:
        batch, channels, height, width = last.shape
        sequences = last.permute(0, 2, 3, 1).reshape(-1, 1, channels)
        # A traced graph needs no limit for CUDA's kernels, and would fix the number of parts of its example input.
        parts = [sequences] if torch.jit.is_tracing() else sequences.split(MAX_LOCATIONS_PER_CHUNK)
        projected = torch.cat([self._project(some) for some in parts])
        return projected.reshape(batch, height, width, -1).permute(0, 3, 1, 2)

    def encode(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        grid = self._grid(images)
        return self.pool(self._run(self.embed(images, grid), grid, len(self._blocks)))

    def set_drop_path(self, rate: float) -> None:
        self._drop_path_rate = rate

    def _grid(self, images: Float[Tensor, "B 3 H W"]) -> tuple[int, int]:
        """Return the number of rows and columns of patches."""
        return images.shape[2] // self.strides[0], images.shape[3] // self.strides[0]

    def _project(self, sequences: Float[Tensor, "N 1 C"]) -> Float[Tensor, "N D"]:
        if self.takes_class_token:
            sequences = self.run_block(self._blocks[-1], sequences, None)
            return self.pool(sequences)
        return self.pool(sequences.expand(-1, self.num_prefix + 1, -1))

    def _run(self, tokens: Float[Tensor, "B N C"], grid: tuple[int, int], num_blocks: int) -> Float[Tensor, "B N C"]:
        """Run the first `num_blocks` blocks."""
        everywhere: _BlockCall = (self.run_block, self.rotary(grid))
        in_windows = everywhere
        if self._window:
            in_windows = (partial(self._run_in_windows, grid=grid), self.rotary(window_sides(grid, self._window)))
        windowed = self._windowed_blocks()
        for number, block in enumerate(self._blocks[:num_blocks]):
            run, rotary = in_windows if number in windowed else everywhere
            if self.recomputes and torch.is_grad_enabled():
                result = checkpoint(run, block, tokens, rotary, use_reentrant=False)
            else:
                result = run(block, tokens, rotary)
            rate = self._drop_path_rate * number / max(1, len(self._blocks) - 1)
            tokens = tokens + drop_path(result - tokens, rate, training=True) if self.drops_paths and rate else result
        return tokens

    def _windowed_blocks(self) -> set[int]:
        """Return the numbers of the blocks whose attention is limited to windows.

        Global blocks are evenly spread over the blocks before the last map and include the last of these. A block after
        the last map always has global attention.
        """
        if not self._window:
            return set()
        num_before = len(self._blocks) - self.takes_class_token
        attend_to_all = {round((place + 1) * num_before / self._num_global) - 1 for place in range(self._num_global)}
        return set(range(num_before)) - attend_to_all

    def _run_in_windows(
        self, block: nn.Module, tokens: Float[Tensor, "B N C"], rotary: Tensor | None, grid: tuple[int, int]
    ) -> Float[Tensor, "B N C"]:
        """Compute the output tokens of one block within each window."""
        windows = split_windows(tokens, grid, self._window, self.num_prefix)
        return join_windows(self.run_block(block, windows, rotary), grid, self._window, self.num_prefix)


def window_sides(grid: tuple[int, int], window: int) -> tuple[int, int]:
    """Return the rows and columns of a window: windows of equal size, as few as sides of at most `window` allow."""
    height, width = (_ceiling(length, _ceiling(length, window)) for length in grid)
    return height, width


def _ceiling(length: int, divisor: int) -> int:
    """Return the quotient, rounded up, using positive numbers only, since ONNX truncates negative quotients."""
    return (length + divisor - 1) // divisor


def split_windows(
    tokens: Float[Tensor, "B N C"], grid: tuple[int, int], window: int, num_prefix: int
) -> Float[Tensor, "BW M C"]:
    """Return the tokens of every window, with a copy of the prefix; a patch in a shared row or column is in each."""
    sides = window_sides(grid, window)
    rows, columns = (
        _starts(length, window, tokens.device)[:, None] + torch.arange(side, device=tokens.device)
        for length, side in zip(grid, sides, strict=True)
    )
    # Dimensions: row and column of the window, then row and column in the window.
    patch_indices = rows[:, None, :, None] * grid[1] + columns[None, :, None]
    patches = tokens[:, num_prefix:].index_select(1, patch_indices.flatten()).unflatten(1, (-1, sides[0] * sides[1]))
    prefix = tokens[:, None, :num_prefix].expand(-1, patches.shape[1], -1, -1)
    return torch.cat([prefix, patches], dim=2).flatten(0, 1)


def join_windows(
    windows: Float[Tensor, "BW M C"], grid: tuple[int, int], window: int, num_prefix: int
) -> Float[Tensor, "B N C"]:
    """Invert `split_windows`, with the mean of the prefix's copies; a patch in several windows is from the last."""
    (height, width), device = window_sides(grid, window), windows.device
    starts = [_starts(length, window, device) for length in grid]
    (row, y), (column, x) = (_window_of_each(length, of_axis) for length, of_axis in zip(grid, starts, strict=True))
    # Not `len`, which would be a constant in a traced graph.
    num_rows, num_columns = (of_axis.shape[0] for of_axis in starts)
    windows = windows.unflatten(0, (-1, num_rows * num_columns))
    prefix = windows[:, :, :num_prefix].mean(dim=1)
    in_windows = (row[:, None] * num_columns + column) * (height * width) + y[:, None] * width + x
    patches = windows[:, :, num_prefix:].flatten(1, 2).index_select(1, in_windows.flatten())
    return torch.cat([prefix, patches], dim=1)


def _starts(length: int, window: int, device: torch.device) -> Int[Tensor, " W"]:
    """Return the first row (or column) of each window."""
    number = _ceiling(length, window)
    return torch.arange(number, device=device) * length // number


def _window_of_each(length: int, starts: Int[Tensor, " W"]) -> tuple[Int[Tensor, " L"], Int[Tensor, " L"]]:
    """Return, for each row (or column) of a grid, the last window that contains it, and its position in that window."""
    places = torch.arange(length, device=starts.device)
    number = ((places + 1) * starts.shape[0] - 1) // length
    return number, places - starts[number]


class OpenClipTransformerBackbone(TransformerBackbone):
    """open_clip's own vision transformer."""

    num_prefix = 1

    def __init__(self, visual: VisionTransformer, *, window: int = 0, global_blocks: int = 0):
        """Adapt a vision transformer.

        Raises:
            ValueError: the blocks are not CLIP's own, or patches are not square.
        """
        if not all(isinstance(block, ResidualAttentionBlock) for block in visual.transformer.resblocks):
            raise ValueError("only open_clip's vision transformers with CLIP's own blocks are supported")
        super().__init__(
            visual.transformer.resblocks,
            width=visual.conv1.out_channels,
            patch_size=visual.patch_size,
            window=window,
            global_blocks=global_blocks,
        )
        self.visual = visual
        self.takes_class_token = visual.attn_pool is None and visual.pool_type == "tok"
        self.eval()

    def embed(self, images: Float[Tensor, "B 3 H W"], grid: tuple[int, int]) -> Float[Tensor, "B N C"]:
        visual = self.visual
        patches = visual.conv1(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([visual.class_embedding.to(patches.dtype).expand(images.shape[0], 1, -1), patches], dim=1)
        positions = resample_abs_pos_embed(visual.positional_embedding[None], list(grid), list(visual.grid_size))
        return visual.ln_pre(tokens + positions.to(tokens.dtype))

    def rotary(self, grid: tuple[int, int]) -> None:
        return None

    def run_block(self, block: nn.Module, tokens: Float[Tensor, "B N C"], rotary: Tensor | None) -> Tensor:
        return block(tokens)

    def pool(self, tokens: Float[Tensor, "B N C"]) -> Float[Tensor, "B D"]:
        pooled, _ = self.visual._pool(tokens)
        return pooled if self.visual.proj is None else pooled @ self.visual.proj

    def layers(self) -> list[list[nn.Parameter]]:
        kept = {id(parameter) for parameter in self.projection_parameters()}
        visual = self.visual
        first = [visual.class_embedding, visual.positional_embedding, *visual.conv1.parameters()]
        layers = [first + list(visual.ln_pre.parameters()), *(list(block.parameters()) for block in self._blocks)]
        return [layer for layer in layers if id(layer[0]) not in kept]

    def projection_parameters(self) -> list[nn.Parameter]:
        visual = self.visual
        last = list(self._blocks[-1].parameters()) if self.takes_class_token else []
        pool = [] if visual.attn_pool is None else list(visual.attn_pool.parameters())
        return [*last, *pool, *visual.ln_post.parameters(), *([] if visual.proj is None else [visual.proj])]

    def resampled_parameters(self) -> list[nn.Parameter]:
        return [self.visual.positional_embedding]


class TimmTransformerBackbone(TransformerBackbone):
    """timm's VisionTransformer (SigLIP, SigLIP 2) and Eva (EVA01, EVA02) in an open_clip model."""

    def __init__(self, visual: TimmModel, *, window: int = 0, global_blocks: int = 0):
        """Adapt a vision transformer.

        Raises:
            ValueError: patches are not square or not made by a single convolution, or the rotary embeddings are of
                another kind than EVA02's.
        """
        trunk = visual.trunk
        if not isinstance(trunk.patch_embed, PatchEmbed):
            raise ValueError(f"patches made by {type(trunk.patch_embed).__name__} are not supported")
        super().__init__(
            trunk.blocks,
            width=trunk.embed_dim,
            patch_size=trunk.patch_embed.patch_size,
            window=window,
            global_blocks=global_blocks,
        )
        self.trunk = trunk
        self.projection = visual.head
        self.num_prefix = trunk.num_prefix_tokens
        self.takes_class_token = trunk.attn_pool is None and trunk.global_pool == "token"
        disable_drop_paths(trunk)
        # These are the changes of timm's own option `dynamic_img_size`, so that timm's forward pass still works.
        patches = trunk.patch_embed
        patches.strict_img_size, patches.flatten, patches.output_fmt = False, False, Format.NHWC
        trunk.dynamic_img_size = True
        rope = getattr(trunk, "rope", None)
        self._rope = None if rope is None else rope_for_any_grid(rope).to(trunk.patch_embed.proj.weight.device)
        self.eval()

    def embed(self, images: Float[Tensor, "B 3 H W"], grid: tuple[int, int]) -> Float[Tensor, "B N C"]:
        embedded = self.trunk._pos_embed(self.trunk.patch_embed(images))
        # Eva also returns its rotary embeddings, or None.
        return self.trunk.norm_pre(embedded[0] if isinstance(embedded, tuple) else embedded)

    def rotary(self, grid: tuple[int, int]) -> Tensor | None:
        return None if self._rope is None else self._rope.get_embed(list(grid))

    def run_block(self, block: nn.Module, tokens: Float[Tensor, "B N C"], rotary: Tensor | None) -> Tensor:
        return block(tokens) if self._rope is None else block(tokens, rope=rotary)

    def pool(self, tokens: Float[Tensor, "B N C"]) -> Float[Tensor, "B D"]:
        return self.projection(self.trunk.forward_head(self.trunk.norm(tokens)))

    def layers(self) -> list[list[nn.Parameter]]:
        return timm_layers(self.trunk, without=self.projection_parameters())

    def projection_parameters(self) -> list[nn.Parameter]:
        trunk = self.trunk
        modules: list[Any] = [trunk.norm, trunk.fc_norm, trunk.head, trunk.attn_pool, self.projection]
        if self.takes_class_token:
            modules.append(self._blocks[-1])
        return [parameter for module in modules if module is not None for parameter in module.parameters()]

    def resampled_parameters(self) -> list[nn.Parameter]:
        positions = self.trunk.pos_embed
        return [] if positions is None else [positions]


def rope_for_any_grid(rope: nn.Module) -> RotaryEmbeddingCat:
    """Create rotary embeddings for grids of any size, with the settings of a model's own.

    timm creates a model's own for the grid of its native size only.

    Raises:
        ValueError: the model's own are of another kind than `RotaryEmbeddingCat`.
    """
    if not isinstance(rope, RotaryEmbeddingCat):
        raise ValueError(f"timm transformers with rotary embeddings of {type(rope).__name__} are not supported")
    settings = set(inspect.signature(RotaryEmbeddingCat).parameters) - {"feat_shape", "device", "dtype"}
    return RotaryEmbeddingCat(**{name: getattr(rope, name) for name in settings})
