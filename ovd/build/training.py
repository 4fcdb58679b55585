"""From a config to the settings of the training loop."""

from collections.abc import Mapping

from ovd.config import (
    TrainConfig,
)
from ovd.engine.train import Saving, Schedule


def build_schedule(config: TrainConfig) -> Schedule:
    pairs = config.data.pairs
    weight = pairs.image_label_weight if pairs is not None and pairs.use == "image_labels" else 0.0
    names = Schedule.__dataclass_fields__.keys() - {
        "text_noise",
        "sampled_texts",
        "pair_box_loss",
        "image_label_weight",
    }
    settings = {name: getattr(config.train, name) for name in names}
    return Schedule(
        **settings,
        text_noise=config.bank.noise,
        sampled_texts=pairs.sampled_texts if pairs is not None else 0,
        pair_box_loss=pairs is not None and pairs.box_loss,
        image_label_weight=weight,
    )


def build_saving(config: TrainConfig, first_samples: tuple[int, int], data: Mapping[str, str]) -> Saving:
    return Saving(
        run_dir=config.output,
        save_every=config.train.save_every,
        keep_checkpoints=config.train.keep_checkpoints,
        eval_every=config.train.eval_every,
        resolved_config=config.model_dump(mode="json"),
        wandb=config.train.wandb,
        first_samples=first_samples,
        data=data,
    )
