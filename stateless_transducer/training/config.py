"""Options of training. Free of torch, so that ``--help`` stays fast."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Interval, Unit
from tyro.conf import arg

from stateless_transducer.options import ADVANCED, check_bounds

Share = Annotated[float, Interval(ge=0, le=1)]


@dataclass(frozen=True)
class OptimConfig:
    """Optimizer, learning rate and loss weights."""

    optimizer: Literal["noam", "adamw", "muon", "scaled-adam"] = "noam"
    """noam: the tutorial's optimizer. adamw: warm-up and cosine decay, for small data. muon: the same, with matrices
    that learn faster. scaled-adam: Zipformer's."""
    lr_factor: Annotated[float, Gt(0)] = 5.0
    """noam: factor of the learning rate."""
    warm_step: Annotated[int, Ge(1)] = 80000
    """noam, adamw, muon: batches until the learning rate peaks."""
    peak_lr: Annotated[float, Gt(0)] = 1e-3
    """adamw, muon: highest learning rate."""
    decay_epochs: Annotated[int, Ge(0), ADVANCED] = 0
    """adamw, muon: epochs of learning rate decay; 0: `--num-epochs`. Set above `--num-epochs` to keep the learning rate
    high at the end, for a model that only initializes another."""
    weight_decay: Annotated[float, Ge(0), ADVANCED] = 0.01
    """adamw, muon: weight decay."""
    base_lr: Annotated[float, Gt(0)] = 0.045
    """scaled-adam: learning rate before its decay. Weights move in proportion to the size of their matrix."""
    lr_batches: Annotated[float, Gt(0), ADVANCED] = 7500.0
    """scaled-adam: number of batches after which the learning rate falls with their square root."""
    lr_epochs: Annotated[float, Gt(0), ADVANCED] = 3.5
    """scaled-adam: number of epochs after which the learning rate falls with their square root."""
    ref_duration: Annotated[float, Gt(0), ADVANCED, Unit("s")] = 600.0
    """Seconds of speech per batch that the Zipformer's schedules of dropout and skipped layers assume. An update with
    twice as many seconds counts as two batches."""
    max_grad_norm: Annotated[float, Gt(0), ADVANCED] = 5.0
    """noam, adamw, muon: gradients are clipped to this norm."""
    accumulate_grad: Annotated[int, Ge(1), ADVANCED] = 1
    """Batches per process and update: their gradients are summed."""
    ema_decay: Annotated[float, Interval(ge=0, lt=1), ADVANCED] = 0.0
    """Decay per batch of a running mean of the weights, for `--use-ema` of decode and average; 0: no mean."""
    average_period: Annotated[int, Ge(0), ADVANCED] = 0
    """Batches between two updates of the mean of all weights since the start of the run, for `--use-averaged-model` of
    decode and average; 0: no mean."""
    modified_transducer_prob: Share = 0.25
    """Share of batches trained with the modified loss: at most one symbol per frame."""
    delay_penalty: Annotated[float, Ge(0), ADVANCED] = 0.0
    """Reward for each encoder frame by which a token comes earlier (k2's delay penalty). It begins after `--warm-step`,
    with scaled-adam after `--prune-warm-step`, and not before `--whole-epochs`. 0: none."""
    whole_epochs: Annotated[int, Ge(0), ADVANCED] = 0
    """Number of epochs at the beginning in which a causal model sees only whole utterances; small models learn to
    listen sooner this way."""
    ctc_loss_scale: Annotated[float, Ge(0)] = 0.0
    """Weight of an auxiliary CTC loss on the encoder, with which small runs start faster; 0: no CTC."""
    ctc_epochs: Annotated[int, Ge(0)] = 1
    """Epochs with the CTC loss."""
    cr_loss_scale: Annotated[float, Ge(0), ADVANCED] = 0.0
    """Weight of CR-CTC, the consistency of the CTC outputs for two differently masked copies of each batch; icefall's
    recipes use 0.2. 0: one copy. It needs as many `--ctc-epochs` as epochs, and takes twice the time and memory per
    batch."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.ema_decay and self.average_period:
            raise ValueError(
                f"`ema_decay` {self.ema_decay:g} and `average_period` {self.average_period} are two means of the "
                "weights: pass one of them."
            )
        if self.cr_loss_scale and not self.ctc_loss_scale:
            raise ValueError(f"`cr_loss_scale` {self.cr_loss_scale:g} needs `ctc_loss_scale` above 0.")

    @property
    def has_cosine(self) -> bool:
        """Whether the learning rate rises to `peak_lr` and falls by a cosine, for the mean loss of a token."""
        return self.optimizer in ("adamw", "muon")


@dataclass(frozen=True)
class PruneConfig:
    """Pruned loss (arXiv 2206.13236): a simple loss selects the rows of the lattice that each frame keeps."""

    prune_range: Annotated[int, Ge(0)] = 0
    """Rows of the lattice per frame; icefall's recipes keep 5. 0: all rows, without a simple loss."""
    simple_loss_scale: Annotated[float, Ge(0), ADVANCED] = 0.5
    """Weight of the simple loss."""
    lm_scale: Annotated[Share, arg(name="simple-lm-scale", aliases=("--lm-scale",)), ADVANCED] = 0.25
    """Share of the decoder alone in the simple loss."""
    am_scale: Annotated[Share, arg(name="simple-am-scale", aliases=("--am-scale",)), ADVANCED] = 0.0
    """Share of the encoder alone in the simple loss."""
    prune_warm_step: Annotated[int, Ge(0), ADVANCED] = 2000
    """Batches over which the weight of the simple loss falls from 1 to its value, and that of the pruned loss rises
    from 0.1 to 1."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.lm_scale + self.am_scale > 1:
            raise ValueError(
                f"`lm_scale` and `am_scale` must be at most 1 together, but are {self.lm_scale + self.am_scale:g}."
            )

    def weights(self, step: int) -> tuple[float, float]:
        """Return the weights of the pruned and the simple loss in a batch, counted from 1 over all epochs."""
        progress = min(1.0, step / self.prune_warm_step) if self.prune_warm_step else 1.0
        return 0.1 + 0.9 * progress, 1.0 - progress * (1.0 - self.simple_loss_scale)


@dataclass(frozen=True)
class FineTuneConfig:
    """Fine-tuning."""

    init_from: Annotated[str | None, arg(metavar="MODEL")] = None
    """Model to start from: a checkpoint, a folder with one, or owner/name of a published one. It determines the sizes;
    the weights of tokens that it knows are kept."""
    freeze_layers: Annotated[int, Ge(0), ADVANCED] = 0
    """Encoder layers to freeze, from the bottom, with the subsampling; 0: none."""
    layer_lr_decay: Annotated[float, Interval(gt=0, le=1), ADVANCED] = 1.0
    """Factor of the learning rate from each encoder layer to the layer below it."""

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True)
class TrainConfig:
    """Training run: length, checkpoints, devices and logs."""

    exp_dir: Path = Path("exp")
    """Folder for checkpoints, logs and TensorBoard."""
    num_epochs: Annotated[int, Ge(1)] = 30
    """Total number of epochs: epoch-0.pt to epoch-<num_epochs - 1>.pt."""
    start_epoch: Annotated[int, Ge(0)] = 0
    """Resume from epoch-<start_epoch - 1>.pt; 0: start anew."""
    resume: bool = False
    """Resume from the newest checkpoint in `--exp-dir`; start anew if there is none."""
    save_every: Annotated[int, Ge(0), arg(aliases=("--save-every-n",)), ADVANCED] = 4000
    """Batches between two checkpoint-<batch>.pt within an epoch; 0: none."""
    keep_last: Annotated[int, Ge(0), arg(aliases=("--keep-last-k",)), ADVANCED] = 3
    """Number of checkpoint-<batch>.pt to keep; 0: all. epoch-*.pt are never removed."""
    world_size: Annotated[int, Ge(1)] = 1
    """Processes on this machine (DDP): one per GPU, or on the CPU."""
    master_port: Annotated[int, Interval(ge=0, le=65535), ADVANCED] = 0
    """TCP port on which the processes meet; 0: a free one."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Precision of matrix products. auto: bf16 on GPUs that support it, else fp32."""
    compile: Annotated[bool, ADVANCED] = False
    """Compile the encoder's layers with torch.compile."""
    recompute_layers: Annotated[bool, ADVANCED] = False
    """Recompute the encoder's layers for the gradient instead of storing them: less memory, a third slower."""
    seed: int = 42
    """Seed of weights, dropout and the order of the data."""
    log_interval: Annotated[int, Ge(1), ADVANCED] = 50
    """Batches between two log lines."""
    valid_interval: Annotated[int, Ge(1), ADVANCED] = 800
    """Batches between two validations; each epoch ends with one as well."""
    max_bad_batches: Annotated[int, Ge(1), ADVANCED] = 10
    """Consecutive batches without a finite loss after which training stops; each is skipped."""
    tensorboard: Annotated[bool, ADVANCED] = True
    """Write TensorBoard logs to <exp-dir>/tensorboard."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    prune: PruneConfig = field(default_factory=PruneConfig)
    fine_tune: FineTuneConfig = field(default_factory=FineTuneConfig)

    def delay_penalty_at(self, step: int, epoch: int) -> float:
        """Return the delay penalty in a batch, counted from 1 over all epochs: none during the warm-up."""
        optim = self.optim
        warm_step = self.prune.prune_warm_step if optim.optimizer == "scaled-adam" else optim.warm_step
        return optim.delay_penalty if step > warm_step and epoch >= optim.whole_epochs else 0.0

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.start_epoch >= self.num_epochs:
            raise ValueError(
                f"`start_epoch` must be in 0..{self.num_epochs - 1} (`num_epochs` {self.num_epochs}), "
                f"but is {self.start_epoch}."
            )
        if self.resume and self.start_epoch:
            raise ValueError(
                f"`resume` and `start_epoch` {self.start_epoch} both set where to resume: pass one of them."
            )
