"""An optional log of a run's scalars in Weights & Biases (`train.wandb`)."""

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ovd.extras import optional


class WandbLog:
    """One W&B run per run folder, continued on resume.

    Steps that a resumed run repeats are logged again, with the same values. W&B is configured by its own environment
    variables (WANDB_MODE, WANDB_ENTITY, WANDB_API_KEY).
    """

    def __init__(self, project: str, run_dir: Path, config: Mapping[str, Any], *, resumed: bool):
        """
        Args:
            config: the resolved config, shown beside the curves.
            resumed: whether to continue the run folder's W&B run instead of starting one.

        Raises:
            ValueError: the package wandb is not installed.
        """
        wandb = optional("wandb", "wandb")
        id_file = run_dir / "wandb_id"
        if not (resumed and id_file.exists()):
            id_file.write_text(uuid.uuid4().hex)
        self._run = wandb.init(
            project=project,
            name=run_dir.name,
            id=id_file.read_text(),
            resume="allow",
            dir=run_dir,
            config=dict(config),
        )
        self._run.define_metric("*", step_metric="step")  # W&B's own steps cannot repeat

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log values by name after `step` optimizer steps."""
        self._run.log({**values, "step": step})

    def close(self, *, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))
