"""A run's scalars in Weights & Biases, too, for those who ask for it (`train.wandb`)."""

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class WandbLog:
    """One W&B run for a run folder, which a resumed run goes on with.

    W&B's own settings (WANDB_MODE, WANDB_ENTITY, WANDB_API_KEY) are environment variables.
    """

    def __init__(self, project: str, run_dir: Path, config: Mapping[str, Any]):
        """
        Args:
            config: the resolved config, shown beside the curves.

        Raises:
            ValueError: the package is not installed.
        """
        try:
            import wandb
        except ImportError as error:
            raise ValueError(f"train.wandb={project} needs the package wandb: pip install wandb ({error})") from error
        id_file = run_dir / "wandb_id"
        if not id_file.exists():
            id_file.write_text(uuid.uuid4().hex)
        self._run = wandb.init(
            project=project,
            name=run_dir.name,
            id=id_file.read_text(),
            resume="allow",
            dir=run_dir,
            config=dict(config),
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Values by name after `step` optimizer steps. Steps that a resumed run repeats are there already, and are the
        same: W&B takes none twice."""
        if step >= self._run.step:
            self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()
