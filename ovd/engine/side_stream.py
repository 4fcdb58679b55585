"""A second CUDA stream, for work that can overlap with work already launched."""

from functools import cache
from types import TracebackType

import torch


class SideStream:
    """A context that runs on a second CUDA stream.

    Work inside the context waits only for work launched before this object was made; work launched after the context
    waits for both. On a CPU the context does nothing.
    """

    def __init__(self, device: torch.device):
        self._side: torch.cuda.StreamContext | None = None
        if device.type == "cuda":
            self._main, side = torch.cuda.current_stream(device), _side_stream(device)
            side.wait_stream(self._main)
            self._stream, self._side = side, torch.cuda.stream(side)

    def __enter__(self) -> None:
        if self._side is not None:
            self._side.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._side is not None:
            self._side.__exit__(kind, error, traceback)
            self._main.wait_stream(self._stream)


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
