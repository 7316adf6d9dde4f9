"""An objective that the package does not know: the decoder network alone, trained as a language model of the texts.

It stands for the next objective: trained, validated, saved and resumed by the learner and the trainer as they are.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from small_corpus import write_small_corpus
from torch import Tensor, nn

from stateless_transducer.checkpoint import load_checkpoint
from stateless_transducer.commands import train
from stateless_transducer.data.batches import Batch, evaluation_batches
from stateless_transducer.model.transducer import Transducer
from stateless_transducer.training.distributed import Rank, sum_over_ranks
from stateless_transducer.training.objective import Losses, Objective
from stateless_transducer.training.progress import make_log_dir
from stateless_transducer.training.state import find_resumable
from stateless_transducer.training.stopping import StopRequest
from stateless_transducer.training.task import TransducerTask
from stateless_transducer.training.trainer import Trainer


class LanguageModelObjective(Objective):
    """Cross-entropy of each token, and of the end, after the tokens before it; the head predicts from the decoder."""

    def __init__(self, model: Transducer) -> None:
        super().__init__()
        self.model = model
        self.head = nn.Linear(model.encoder.output_dim, model.vocab_size)

    @property
    def stages(self) -> Sequence[nn.Module]:
        return self.model.encoder.stages

    @property
    def width(self) -> int:
        return self.model.encoder.width

    @property
    def has_idle_parameters(self) -> bool:
        return True  # those of encoder and joiner

    @property
    def options_of_heads(self) -> dict[str, bool | int | str]:
        return {"--language-model": True}

    def forward(self, batch: Batch, step: int, epoch: int) -> Losses:
        nll, num_predictions = self._nll(batch)
        entropy = nll.detach().double().sum()
        return Losses(nll.sum(), nll.detach().double(), num_predictions.sum(), {"text_nll": entropy})

    def evaluate(self, batch: Batch) -> tuple[Tensor, Tensor]:
        nll, num_predictions = self._nll(batch)
        return nll.double().sum(), num_predictions.sum().double()

    def extra_bytes(self, N: int, T: int, U: int) -> float:
        return 8.0 * N * (U + 1) * self.model.vocab_size

    def _nll(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Negative log-likelihood of each text, (N,), and its number of predictions, (N,)."""
        batch = batch.to(self.model.device)
        logits = self.head(self.model.decoder.all_prefixes(batch.tokens))  # (N, U+1, V)
        places = torch.arange(logits.shape[1], device=logits.device)
        # the blank stands for the end
        targets = nn.functional.pad(batch.tokens, (0, 1)).masked_fill(places >= batch.token_lens[:, None], 0)
        nll = nn.functional.cross_entropy(logits.transpose(1, 2).float(), targets, reduction="none")
        return nll.masked_fill(places > batch.token_lens[:, None], 0.0).sum(1), batch.token_lens + 1


class LanguageModelValidation:
    """Loss on the dev set; a language model has neither hypotheses nor lattices to show."""

    def __init__(self, task: TransducerTask, objective: Objective, rank: Rank) -> None:
        self._task, self._objective, self._rank = task, objective, rank

    @torch.no_grad()
    def loss(self, autocast) -> tuple[float, float]:
        self._objective.eval()
        data = self._task.data
        assert data.dev_set is not None
        sums = torch.zeros(2, dtype=torch.float64)
        with autocast:
            for batch in evaluation_batches(data.dev_set.index, self._task.start.token_table, data.config):
                sums += torch.stack(self._objective.evaluate(batch))
        total, weight = sum_over_ranks(sums).tolist()
        return total / weight, weight

    def samples(self) -> None:
        return None


@dataclass(frozen=True)
class LanguageModelTask(TransducerTask):
    """The data and the checkpoints of a transducer, with another objective."""

    def build_objective(self) -> LanguageModelObjective:  # pyright: ignore[reportIncompatibleMethodOverride]
        return LanguageModelObjective(super().build_objective().model)

    def validation(self, objective, rank) -> LanguageModelValidation:  # pyright: ignore[reportIncompatibleMethodOverride]
        return LanguageModelValidation(self, objective, rank)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Train for some epochs in a folder."""
    corpus = write_small_corpus(tmp_path_factory.mktemp("corpus"))
    fixed = [*corpus, "--max-duration", "6", "--peak-lr", "0.02", "--decay-epochs", "3", "--ema-decay", "0.5"]

    def train_in(folder, *flags):
        arguments = [*fixed, "--exp-dir", str(folder), *flags]
        options = train.parse_options(train.Options, "train", arguments, "", train.Options())
        task = train._task(options, "train", warn=pytest.fail, tell=lambda text: None)
        task = LanguageModelTask(task.config, task.start, task.data, task.command)
        make_log_dir(folder / "log")
        resumable = find_resumable(options.train)
        rank = Rank(0, 1, torch.device("cpu"))
        assert Trainer(task, rank, logging.getLogger("toy"), StopRequest(), resumable).run()
        return load_checkpoint(folder / f"epoch-{options.train.num_epochs - 1}.pt")

    return train_in


def test_objective_of_another_kind_is_trained_saved_and_resumed(run, tmp_path):
    whole = run(tmp_path / "whole", "--num-epochs", "3")
    run(tmp_path / "halves", "--num-epochs", "2")
    resumed = run(tmp_path / "halves", "--num-epochs", "3", "--resume", "true")
    for name, value in whole.weights.items():
        assert torch.equal(value, resumed.weights[name]), name
    states = [checkpoint.training_state for checkpoint in (whole, resumed)]
    assert states[0] is not None and states[1] is not None
    for name in ("head.weight", "head.bias"):
        assert torch.equal(states[0]["heads"][name], states[1]["heads"][name])
    rows = [json.loads(line) for line in (tmp_path / "whole" / "log" / "metrics.jsonl").read_text().splitlines()]
    losses = [row["valid_loss"] for row in rows if "valid_loss" in row]
    assert len(losses) == 3 and losses[2] < losses[0]
    # the named metric reaches the log: here, it is the loss
    assert all(row["text_nll"] == pytest.approx(row["current_loss"]) for row in rows if "text_nll" in row)
    # the decoder was trained, and the encoder, which the loss does not reach, was not
    first = load_checkpoint(tmp_path / "halves" / "epoch-0.pt").weights
    changed = {name.split(".")[0] for name, value in whole.weights.items() if not torch.equal(value, first[name])}
    assert changed == {"decoder"}
