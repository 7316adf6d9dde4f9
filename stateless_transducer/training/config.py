"""What the user chooses about training. Free of torch, so that ``--help`` need not load it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Interval
from tyro.conf import arg

from stateless_transducer.options import check_bounds


@dataclass(frozen=True)
class OptimConfig:
    """What is learnt from a batch, and how fast."""

    optimizer: Literal["noam", "adamw"] = "noam"
    """noam: the tutorial's; adamw: warm-up and cosine, for small data."""
    lr_factor: Annotated[float, Gt(0)] = 5.0
    """noam: factor of the learning rate."""
    warm_step: Annotated[int, Ge(1)] = 80000
    """Batches until the learning rate peaks."""
    peak_lr: Annotated[float, Gt(0)] = 1e-3
    """adamw: highest learning rate."""
    decay_epochs: Annotated[int, Ge(0)] = 0
    """adamw: epochs over which the learning rate falls. More than are trained leave it high at the end, which is better
    for a model that is only to be begun from; 0: as many as are trained."""
    weight_decay: Annotated[float, Ge(0)] = 0.01
    """adamw: pull of the weights to zero."""
    max_grad_norm: Annotated[float, Gt(0)] = 5.0
    """Gradients are clipped to this norm."""
    accumulate_grad: Annotated[int, Ge(1)] = 1
    """Batches of each process whose gradients make one update."""
    ema_decay: Annotated[float, Interval(ge=0, lt=1)] = 0.0
    """Keep a running mean of the weights that forgets by this factor a batch, for `--use-ema` later; 0: none."""
    modified_transducer_prob: Annotated[float, Interval(ge=0, le=1)] = 0.25
    """Share of batches with the modified loss (one symbol a frame)."""
    ctc_loss_scale: Annotated[float, Ge(0)] = 0.0
    """Weight of a CTC loss on a head of its own over the encoder, which small runs start faster with; 0: none."""
    ctc_epochs: Annotated[int, Ge(0)] = 1
    """Epochs with that CTC loss."""

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True)
class PruneConfig:
    """The pruned loss (arXiv 2206.13236): a simple loss says which rows of the lattice each frame needs."""

    prune_range: Annotated[int, Ge(0)] = 0
    """Rows of the lattice that each frame keeps; icefall's recipes keep 5. 0: all, without a simple loss."""
    simple_loss_scale: Annotated[float, Ge(0)] = 0.5
    """Weight of the simple loss."""
    lm_scale: Annotated[float, Interval(ge=0, le=1), arg(name="simple-lm-scale", aliases=("--lm-scale",))] = 0.25
    """Share of the decoder alone in the simple loss."""
    am_scale: Annotated[float, Interval(ge=0, le=1), arg(name="simple-am-scale", aliases=("--am-scale",))] = 0.0
    """Share of the encoder alone in the simple loss."""
    prune_warm_step: Annotated[int, Ge(0)] = 2000
    """Batches until the weights are those: of the simple loss from 1 on, of the pruned loss from 0.1 to 1."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.lm_scale + self.am_scale > 1:
            raise ValueError(
                f"`lm_scale` and `am_scale` must be at most 1 together, but are {self.lm_scale + self.am_scale:g}."
            )

    def weights(self, step: int) -> tuple[float, float]:
        """Of the pruned and of the simple loss in a batch, counted from 1 over all epochs."""
        done = min(1.0, (step - 1) / self.prune_warm_step) if self.prune_warm_step else 1.0
        return 0.1 + 0.9 * done, 1.0 - done * (1.0 - self.simple_loss_scale)


@dataclass(frozen=True)
class FineTuneConfig:
    """Starting from a trained model."""

    init_from: Path | None = None
    """Model or checkpoint to start from; sizes are its own, rows of tokens that it knows are kept."""
    freeze_layers: Annotated[int, Ge(0)] = 0
    """Subsampling and so many layers of the encoder, from the bottom, stay as they are; 0: all learn."""
    layer_lr_decay: Annotated[float, Interval(gt=0, le=1)] = 1.0
    """Each layer of the encoder learns slower than the one above it by this factor."""

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True)
class TrainConfig:
    """The tutorial's options, and what small data, many machines and a shared cluster want besides."""

    exp_dir: Path = Path("exp")
    """Folder for checkpoints, logs and TensorBoard."""
    num_epochs: Annotated[int, Ge(1)] = 30
    """Epochs in all: epoch-0.pt to epoch-<num_epochs - 1>.pt."""
    start_epoch: Annotated[int, Ge(0)] = 0
    """Go on from epoch-<start_epoch - 1>.pt."""
    resume: bool = False
    """Go on from the newest checkpoint of the folder; start if there is none."""
    save_every: Annotated[int, Ge(0)] = 4000
    """Batches between two checkpoint-<batch>.pt within an epoch; 0: none."""
    keep_last: Annotated[int, Ge(0)] = 3
    """How many checkpoint-<batch>.pt are kept; 0: all. epoch-*.pt are never removed."""
    world_size: Annotated[int, Ge(1)] = 1
    """Processes on this machine, one a GPU where there are any (DDP)."""
    master_port: Annotated[int, Interval(ge=0, le=65535)] = 0
    """Port on which the processes of `--world-size` meet; 0: a free one."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Of matrix products. auto: bf16 on GPUs that have it, else fp32."""
    compile: bool = False
    """Compile the encoder's layers with torch.compile."""
    recompute_layers: bool = False
    """Compute the encoder's layers again for the gradient instead of keeping all: less memory, a third slower."""
    seed: int = 42
    """Weights, dropout, order of the data."""
    log_interval: Annotated[int, Ge(1)] = 50
    """Batches between two lines of the log."""
    valid_interval: Annotated[int, Ge(1)] = 800
    """Batches between two computations of the validation loss; there is one at each epoch's end as well."""
    max_bad_batches: Annotated[int, Ge(1)] = 10
    """Batches in a row without a finite loss after which training stops; each is skipped."""
    tensorboard: bool = True
    """Write TensorBoard logs into <exp-dir>/tensorboard."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    prune: PruneConfig = field(default_factory=PruneConfig)
    fine_tune: FineTuneConfig = field(default_factory=FineTuneConfig)

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
