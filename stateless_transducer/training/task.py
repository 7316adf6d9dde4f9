"""Tasks: model, data and options of a training run, the same on every rank.

The trainer only knows a `Task`, so another kind of model (a language model, for example) is another task.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from stateless_transducer.checkpoint import Checkpoint
from stateless_transducer.data.batches import TrainingLoader, TrainingSet, Update, evaluation_batches
from stateless_transducer.data.config import DataConfig
from stateless_transducer.data.plan import Lengths
from stateless_transducer.features import FbankConfig
from stateless_transducer.model.config import ModelConfig
from stateless_transducer.model.transducer import Transducer, build_model
from stateless_transducer.text.tokens import TokenTable
from stateless_transducer.training.config import TrainConfig
from stateless_transducer.training.distributed import Rank
from stateless_transducer.training.finetune import adapted_weights
from stateless_transducer.training.objective import Objective, TransducerObjective
from stateless_transducer.training.optim import freeze
from stateless_transducer.training.validation import Samples, TransducerValidation

_NUM_FOR_STATISTICS = 500
"""Utterances from which the statistics of the features are taken."""


class Loader(Protocol):
    """Loader of the updates of each epoch, for one rank."""

    @property
    def contents(self) -> Mapping[str, Any]:
        """Contents of the epochs by the user's names; a run that resumes within an epoch must have the same."""
        ...

    @property
    def update_s(self) -> float:
        """Seconds of speech of an update that the options ask for, all ranks together."""
        ...

    def plan(self, epoch: int) -> list[np.ndarray]:
        """Plan the contents of each update of an epoch."""
        ...

    def seconds(self, plan: Sequence[np.ndarray]) -> float:
        """Return the seconds of speech in a plan, or another measure of its size."""
        ...

    def updates(self, epoch: int, *, first: int, plan: Sequence[np.ndarray]) -> Iterator[Update]:
        """Load the updates of an epoch from number ``first`` on."""
        ...


class Validation(Protocol):
    """Validation on the dev set."""

    def loss(self, autocast: contextlib.AbstractContextManager[Any]) -> tuple[float, float]:
        """Return the loss per frame, and the number of frames."""
        ...

    def samples(self) -> Samples | None:
        """Return a few results of the model on the dev set; None for a model without hypotheses and lattices."""
        ...


class Task(Protocol):
    """Interface of the trainer to a model and its data."""

    @property
    def config(self) -> TrainConfig:
        """Options of training."""
        ...

    def build_objective(self) -> Objective:
        """Build the objective with its initial weights, the same each time."""
        ...

    def take_statistics(self, objective: Objective) -> None:
        """Set what the initial model takes from the data. A run that resumes has it in its checkpoint."""
        ...

    def loader(self, rank: Rank) -> Loader:
        """Return the loader of one rank."""
        ...

    def validation(self, objective: Objective, rank: Rank) -> Validation | None:
        """Return the validation of one rank; None without a dev set."""
        ...

    def checkpoint(
        self, weights: Mapping[str, Tensor], provenance: Mapping[str, Any], training_state: Mapping[str, Any]
    ) -> Checkpoint:
        """Return a checkpoint with the given weights."""
        ...

    def check_same_model(self, checkpoint: Checkpoint, name: str) -> None:
        """Raise ValueError if a checkpoint to resume from holds another model."""
        ...


@dataclass(frozen=True)
class StartingModel:
    """The model before training."""

    model_config: ModelConfig
    fbank_config: FbankConfig
    token_table: TokenTable
    init_from: Checkpoint | None = None
    """Trained model to take the weights from; None: random weights."""


@dataclass(frozen=True)
class TrainingData:
    """The prepared corpora."""

    config: DataConfig
    training_set: TrainingSet
    mixed_set: TrainingSet | None = None
    """The second corpus."""
    dev_set: TrainingSet | None = None

    @property
    def lengths(self) -> Lengths:
        """Lengths of all utterances to train on."""
        lengths = self.training_set.lengths
        return lengths if self.mixed_set is None else lengths.then(self.mixed_set.lengths)


@dataclass(frozen=True)
class TransducerTask:
    """A transducer to train."""

    config: TrainConfig
    start: StartingModel
    data: TrainingData
    command: str
    """Command line, for the provenance of checkpoints."""

    def build_objective(self) -> TransducerObjective:
        """Build the model and its losses, with weights drawn from the seed or taken from a trained model."""
        torch.manual_seed(self.config.seed)
        start, config = self.start, self.config
        model = build_model(start.model_config)
        if start.init_from is not None:
            model.load_state_dict(adapted_weights(start.init_from, start.token_table, model.state_dict()))
        model.encoder.recompute_stages = config.recompute_layers
        if config.compile:
            for stage in model.encoder.stages:
                stage.compile(dynamic=True)
        objective = TransducerObjective(model, config, self.data.config.spec_augment)
        freeze(objective, config.fine_tune.freeze_layers)
        return objective

    def take_statistics(self, objective: Objective) -> None:
        """Set the statistics of the features, unless a trained model has brought its own."""
        assert isinstance(objective.model, Transducer)
        if self.start.init_from is None and objective.model.normalizer.norm == "global":
            objective.model.normalizer.fit(self._some_features())

    def _some_features(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Load features and their lengths of utterances from all over the training set, the same ones on each rank."""
        numbers = self.data.training_set.numbers
        some = numbers[np.linspace(0, len(numbers) - 1, min(len(numbers), _NUM_FOR_STATISTICS)).astype(int)]
        config = replace(self.data.config, num_workers=0)
        for batch in evaluation_batches(self.data.training_set.index, self.start.token_table, config, numbers=some):
            yield batch.features, batch.feature_lens

    def loader(self, rank: Rank) -> TrainingLoader:
        """Return the loader of one rank."""
        data = self.data.config
        if self.config.optim.cr_loss_scale:
            # the objective masks the copies
            masks = replace(data.spec_augment, num_feature_masks=0, num_frame_masks=0)
            data = replace(data, enable_spec_aug=True, spec_augment=masks)
        return TrainingLoader(
            self.data.training_set,
            self.start.token_table,
            data,
            seed=self.config.seed,
            rank=rank.rank,
            world_size=rank.world_size,
            accumulate=self.config.optim.accumulate_grad,
            mixed=self.data.mixed_set,
        )

    def validation(self, objective: Objective, rank: Rank) -> TransducerValidation | None:
        """Return the validation of one rank; None without a dev set."""
        if self.data.dev_set is None:
            return None
        assert isinstance(objective, TransducerObjective)
        return TransducerValidation(self.data.dev_set, self.start.token_table, self.data.config, rank, objective)

    def checkpoint(
        self, weights: Mapping[str, Tensor], provenance: Mapping[str, Any], training_state: Mapping[str, Any]
    ) -> Checkpoint:
        """Return a checkpoint with the given weights."""
        return Checkpoint(
            weights=weights,
            model_config=self.start.model_config,
            fbank_config=self.start.fbank_config,
            token_table=self.start.token_table,
            provenance={**provenance, "command": self.command},
            training_state=training_state,
        )

    def check_same_model(self, checkpoint: Checkpoint, name: str) -> None:
        """Raise ValueError if a checkpoint to resume from holds a model of other sizes or tokens."""
        saved, current = checkpoint.model_config.sizes(), self.start.model_config.sizes()
        changed = [
            f"{size} was {saved.get(size)} and is {current.get(size)}"
            for size in {**current, **saved}
            if saved.get(size) != current.get(size)
        ]
        tokens = self.start.token_table
        if checkpoint.token_table != tokens:
            changed.append(f"the token table changed ({len(checkpoint.token_table)} tokens before, {len(tokens)} now)")
        if changed:
            raise ValueError(
                f"{name} holds another model than the options ask for: {'; '.join(changed)}. Pass the options and the "
                "`lang_dir` that it was trained with, or another `exp_dir`."
            )
