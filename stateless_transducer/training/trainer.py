"""Training loop: epochs of updates, validation and checkpoints. It stops on request and resumes from a checkpoint."""

from __future__ import annotations

import contextlib
import logging
import math

import torch

from stateless_transducer import __version__
from stateless_transducer.checkpoint import Checkpoint, batch_path, epoch_path, save_checkpoint, saved_batches
from stateless_transducer.products import use_fastest_products
from stateless_transducer.training.distributed import Rank
from stateless_transducer.training.learner import Learner, UpdateResult
from stateless_transducer.training.optim import warm_up_fault
from stateless_transducer.training.progress import TrainingDisplay
from stateless_transducer.training.state import (
    Position,
    Resumable,
    best_path,
    link_or_copy,
    on_cpu,
    restore,
    set_aside_later,
    training_state,
)
from stateless_transducer.training.stopping import StopRequest
from stateless_transducer.training.task import Task
from stateless_transducer.training.validation import Samples
from stateless_transducer.wording import counted


class Trainer:
    """Train a task on one rank."""

    def __init__(
        self, task: Task, rank: Rank, logger: logging.Logger, stop: StopRequest, resumable: Resumable | None = None
    ) -> None:
        self._task, self._config, self._rank, self._logger, self._stop = task, task.config, rank, logger, stop
        # denormal numbers make backward passes on a CPU several times slower
        torch.set_flush_denormal(True)
        if rank.device.type == "cpu":
            logger.info(f"Matrix products: {use_fastest_products().reason}")
        logger.info("About to create model")
        objective = task.build_objective().to(rank.device)
        if resumable is None:
            task.take_statistics(objective)
        self._model, self._loader = objective.model, task.loader(rank)
        logger.info(f"Number of model parameters: {sum(p.numel() for p in self._model.parameters())}")
        if rank.world_size > 1:
            logger.info("Using DDP")
        self._learner = Learner(objective, task.config, rank, update_s=self._loader.update_s)
        self._position = Position()
        self._validation = task.validation(objective, rank)
        if resumable is not None:
            self._resume(resumable.take(), str(resumable.path))

    def _resume(self, checkpoint: Checkpoint, name: str) -> None:
        self._task.check_same_model(checkpoint, name)
        try:
            restore(checkpoint, self._learner, self._position, self._config, self._loader.contents)
        except ValueError as err:
            raise ValueError(f"{name}: {err}") from err
        position = self._position
        if self._config.start_epoch and self._rank.is_main:
            folder = set_aside_later(self._config.exp_dir, position, self._config.num_epochs)
            if folder is not None:
                self._logger.warning(f"Moved the checkpoints written after {name} to {folder}")
        self._logger.info(
            f"Loading checkpoint from {name}: resumes with epoch {position.epoch}, batch {position.batch}, "
            f"{position.step} in all"
        )

    def run(self) -> bool:
        """Train the remaining epochs; return whether all are done, and not stopped on request."""
        config, position = self._config, self._position
        if position.epoch >= config.num_epochs:
            self._logger.info(f"Already trained: {counted(config.num_epochs, 'epoch')}")
        display = contextlib.nullcontext()
        if self._rank.is_main:
            # all epochs are about equally long
            batches = self._loader.plan(position.epoch)
            seconds = self._loader.seconds(batches)
            if fault := warm_up_fault(config, len(batches), model_size=self._learner.objective.width):
                self._logger.warning(fault)
            display = TrainingDisplay(
                config.exp_dir,
                total_seconds=config.num_epochs * seconds,
                done_seconds=position.epoch * seconds + self._loader.seconds(batches[: position.batch]),
                tensorboard=config.tensorboard,
                device=self._rank.device,
            )
        with display as shown:
            while position.epoch < config.num_epochs:
                if not self._train_epoch(shown):
                    return False
                valid_loss = self._validate(shown)
                self._save_epoch(valid_loss)
        return True

    def _train_epoch(self, display: TrainingDisplay | None) -> bool:
        """Train the rest of an epoch; return whether it was completed."""
        config, position = self._config, self._position
        plan = self._loader.plan(position.epoch)
        self._logger.info(f"epoch {position.epoch}, learning rate {self._learner.rate:g}")
        done_s, total_s = self._loader.seconds(plan[: position.batch]), self._loader.seconds(plan)
        if display is not None:
            display.advance(0.0, where=f"epoch {position.epoch}", loss=position.recent.value)
        first_step = position.step + 1
        for update in self._loader.updates(position.epoch, first=position.batch, plan=plan):
            result = self._learner.learn(
                update,
                step=position.step + 1,
                epoch=position.epoch,
                done=(position.epoch + done_s / total_s) / (config.optim.decay_epochs or config.num_epochs),
                wants_stop=self._stop.name is not None,
            )
            done_s += update.seconds
            position.step, position.batch = position.step + 1, position.batch + 1
            self._note(result)
            if display is not None:
                where = f"epoch {position.epoch} ({position.epoch + 1} of {config.num_epochs}), batch {position.batch}"
                display.advance(update.seconds, where=f"{where} of {len(plan)}", loss=position.recent.value)
            if position.step % config.log_interval == 0 or position.step == first_step:
                self._log_batch(result, sum(len(batch.ids) for batch in update.batches), display)
            if result.is_told_to_stop:
                # at once: a validation may outlast the time that a scheduler gives
                self._save_batch()
                by = f" by {self._stop.name}" if self._stop.name else ""
                self._logger.info(f"Stopped{by}; resume with `--resume true`")
                return False
            # validation and checkpoint of the epoch follow its last batch
            if position.batch < len(plan):
                self._between_batches(display)
        return True

    def _between_batches(self, display: TrainingDisplay | None) -> None:
        """Validate and save within an epoch, when it is time."""
        config, step = self._config, self._position.step
        if step % config.valid_interval == 0:
            self._validate(display)
        if config.save_every and step % config.save_every == 0:
            self._save_batch()

    def _note(self, result: UpdateResult) -> None:
        """Note the loss of an update, or that it was skipped."""
        position = self._position
        if not result.is_skipped:
            position.num_bad = 0
            position.recent.add(result.total, result.weight)
            position.whole.add(result.total, result.weight)
            return
        if not result.num_bad and self._learner.scaler.get_scale() > 1:
            # fp16: the scaler searches for a scale without infinite gradients
            self._logger.debug(f"Batch {position.step}: gradient scale lowered to {self._learner.scaler.get_scale():g}")
            return
        position.num_bad += 1
        cause = f"the loss of {counted(result.num_bad, 'utterance')}" if result.num_bad else "the gradient"
        ids = f": {', '.join(result.bad_ids)}" if result.bad_ids else ""
        self._logger.warning(f"Batch {position.step} is skipped, {cause} is not finite{ids}")
        if position.num_bad >= self._config.max_bad_batches:
            raise ValueError(
                f"{counted(position.num_bad, 'consecutive batch')} without a finite loss or gradient; in the last one, "
                f"{cause} is not finite{ids}. If few utterances are affected, check their sound and text. If all are, "
                "lower `lr_factor`, `peak_lr` or `base_lr`, or raise `warm_step`, and resume from an earlier "
                "checkpoint with `start_epoch`."
            )

    def _log_batch(self, result: UpdateResult, num_utterances: int, display: TrainingDisplay | None) -> None:
        position, recent = self._position, self._position.recent
        self._logger.debug(
            f"Epoch {position.epoch}, batch {position.batch - 1}, loss[loss={result.loss:.4g}, "
            f"over {result.weight:.2f} frames. ], tot_loss[loss={recent.value:.4g}, over {recent.weight:.2f} "
            f"frames. ], batch size: {num_utterances}, learning rate: {result.rate:.3g}"
            + (f", {display.speed:.0f} s of speech/s, {display.memory:.1f} GiB" if display is not None else "")
        )
        if display is not None:
            display.record(
                position.step,
                epoch=position.epoch,
                current_loss=result.loss,
                tot_loss=recent.value,
                learning_rate=result.rate,
                grad_norm=result.grad_norm,
                **{name: total / result.weight for name, total in result.metrics.items()},
                speech_seconds_per_second=display.speed,
                memory_gib=display.memory,
            )

    def _validate(self, display: TrainingDisplay | None) -> float:
        """Return the loss per frame on the dev set; NaN without a dev set."""
        if self._validation is None:
            return math.nan
        position = self._position
        self._logger.info("Computing validation loss")
        loss, num_frames = self._validation.loss(self._learner.autocast())
        self._logger.info(f"Epoch {position.epoch}, validation: loss={loss:.4g}, over {num_frames:.2f} frames. ")
        if display is not None:
            samples = self._validation.samples()
            metrics = {} if samples is None else self._show_samples(samples, display)
            display.record(position.step, epoch=position.epoch, valid_loss=loss, **metrics)
        return loss

    def _show_samples(self, samples: Samples, display: TrainingDisplay) -> dict[str, float]:
        """Show the results and the picture, and return the metric that comes with them."""
        for id_, text, result in samples.texts:
            self._logger.debug(f"{id_} transcript: {text} | result: {result}")
        rows = "".join(f"| {id_} | {text} | {result} |\n" for id_, text, result in samples.texts)
        table = f"| id | transcript | result |\n|---|---|---|\n{rows}"
        display.show_samples(self._position.step, table, samples.occupations)
        return {"share_of_cells_kept": samples.share_of_cells}

    def _save_epoch(self, valid_loss: float) -> None:
        """Save ``epoch-N.pt``, link it if it is the best so far, and move to the next epoch."""
        position, train_loss = self._position, self._position.whole.value
        losses = {"train": train_loss, "valid": valid_loss}
        is_best = {name: loss < position.best[name] for name, loss in losses.items()}
        # a NaN is never lower
        position.best = {name: losses[name] if better else position.best[name] for name, better in is_best.items()}
        epoch = position.epoch
        position.best_epoch |= {name: epoch for name, better in is_best.items() if better}
        position.next_epoch()
        if not self._rank.is_main:
            return
        path = epoch_path(self._config.exp_dir, epoch)
        validation = "" if math.isnan(valid_loss) else f", validation loss {valid_loss:.4g}"
        self._logger.info(f"Saving checkpoint to {path}: train loss {train_loss:.4g}{validation}")
        save_checkpoint(path, self._checkpoint(epoch, train_loss, valid_loss))
        for name, better in is_best.items():
            if better:
                link_or_copy(path, best_path(self._config.exp_dir, name))

    def _save_batch(self) -> None:
        """Save ``checkpoint-N.pt`` within the epoch, and remove the oldest beyond `--keep-last`."""
        if not self._rank.is_main:
            return
        config, position = self._config, self._position
        path = batch_path(config.exp_dir, position.step)
        self._logger.info(f"Saving checkpoint to {path}")
        save_checkpoint(path, self._checkpoint(position.epoch, position.whole.value, math.nan))
        if config.keep_last:
            for step in saved_batches(config.exp_dir)[: -config.keep_last]:
                batch_path(config.exp_dir, step).unlink(missing_ok=True)

    def _checkpoint(self, epoch: int, train_loss: float, valid_loss: float) -> Checkpoint:
        return self._task.checkpoint(
            on_cpu(self._model.state_dict()),
            {
                "version": __version__,
                "torch": str(torch.__version__),
                "epoch": epoch,
                "step": self._position.step,
                "train_loss": train_loss,
                "valid_loss": valid_loss,
            },
            training_state(self._learner, self._position, self._config, self._loader.contents),
        )
