"""What the user chooses about training. Free of torch, so that ``--help`` need not load it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class OptimConfig:
    """What is learnt from a batch, and how fast."""

    optimizer: Literal["noam", "adamw"] = "noam"
    """noam: the tutorial's; adamw: warm-up and cosine, for small data."""
    lr_factor: float = 5.0
    """noam: factor of the learning rate."""
    warm_step: int = 80000
    """Batches until the learning rate peaks."""
    peak_lr: float = 1e-3
    """adamw: highest learning rate."""
    decay_epochs: int = 0
    """adamw: epochs over which the learning rate falls. More than are trained leave it high at the end, which is better
    for a model that is only to be begun from; 0: as many as are trained."""
    weight_decay: float = 0.01
    """adamw: pull of the weights to zero."""
    max_grad_norm: float = 5.0
    """Gradients are clipped to this norm."""
    accumulate_grad: int = 1
    """Batches of each process whose gradients make one update."""
    ema_decay: float = 0.0
    """Keep a running mean of the weights that forgets by this factor a batch, for `--use-ema` later; 0: none."""
    modified_transducer_prob: float = 0.25
    """Share of batches with the modified loss (one symbol a frame)."""
    ctc_loss_scale: float = 0.0
    """Weight of a CTC loss on a head of its own over the encoder, which small runs start faster with; 0: none."""
    ctc_epochs: int = 1
    """Epochs with that CTC loss."""

    def __post_init__(self) -> None:
        for name in ("warm_step", "accumulate_grad"):
            if getattr(self, name) < 1:
                raise ValueError(f"`--{name.replace('_', '-')}` must be at least 1, but is {getattr(self, name)}.")
        for name in ("lr_factor", "peak_lr", "max_grad_norm"):
            if getattr(self, name) <= 0:
                raise ValueError(f"`--{name.replace('_', '-')}` must be above 0, but is {getattr(self, name):g}.")
        for name in ("weight_decay", "ctc_loss_scale", "ctc_epochs", "decay_epochs"):
            if getattr(self, name) < 0:
                raise ValueError(f"`--{name.replace('_', '-')}` must be at least 0, but is {getattr(self, name):g}.")
        if not 0 <= self.modified_transducer_prob <= 1:
            raise ValueError(f"`--modified-transducer-prob` must be in 0..1, but is {self.modified_transducer_prob:g}.")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"`--ema-decay` must be in [0, 1), but is {self.ema_decay:g}.")


@dataclass(frozen=True)
class PruneConfig:
    """The pruned loss (arXiv 2206.13236): a simple loss says which rows of the lattice each frame needs."""

    prune_range: int = 0
    """Rows of the lattice that each frame keeps; icefall's recipes keep 5. 0: all, without a simple loss."""
    simple_loss_scale: float = 0.5
    """Weight of the simple loss."""
    lm_scale: float = 0.25
    """Share of the decoder alone in the simple loss."""
    am_scale: float = 0.0
    """Share of the encoder alone in the simple loss."""
    prune_warm_step: int = 2000
    """Batches until the weights are those: of the simple loss from 1 on, of the pruned loss from 0.1 to 1."""

    def __post_init__(self) -> None:
        for name, least in (("prune_range", 0), ("simple_loss_scale", 0), ("prune_warm_step", 0)):
            if getattr(self, name) < least:
                raise ValueError(
                    f"`--{name.replace('_', '-')}` must be at least {least}, but is {getattr(self, name):g}."
                )
        for name in ("lm_scale", "am_scale"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`--{name.replace('_', '-')}` must be in 0..1, but is {getattr(self, name):g}.")
        if self.lm_scale + self.am_scale > 1:
            raise ValueError(
                f"`--lm-scale` and `--am-scale` must be at most 1 together, but are {self.lm_scale + self.am_scale:g}."
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
    freeze_layers: int = 0
    """Subsampling and so many layers of the encoder, from the bottom, stay as they are; 0: all learn."""
    layer_lr_decay: float = 1.0
    """Each layer of the encoder learns slower than the one above it by this factor."""

    def __post_init__(self) -> None:
        if self.freeze_layers < 0:
            raise ValueError(f"`--freeze-layers` must be at least 0, but is {self.freeze_layers}.")
        if not 0 < self.layer_lr_decay <= 1:
            raise ValueError(f"`--layer-lr-decay` must be in (0, 1], but is {self.layer_lr_decay:g}.")


@dataclass(frozen=True)
class TrainConfig:
    """The tutorial's options, and what small data, many machines and a shared cluster want besides."""

    exp_dir: Path = Path("transducer_stateless_modified/exp")
    """Folder for checkpoints, logs and TensorBoard."""
    num_epochs: int = 30
    """Epochs in all: epoch-0.pt to epoch-<num_epochs - 1>.pt."""
    start_epoch: int = 0
    """Go on from epoch-<start_epoch - 1>.pt."""
    resume: bool = False
    """Go on from the newest checkpoint of the folder; start if there is none."""
    save_every: int = 4000
    """Batches between two checkpoint-<batch>.pt within an epoch; 0: none."""
    keep_last: int = 3
    """How many checkpoint-<batch>.pt are kept; 0: all. epoch-*.pt are never removed."""
    world_size: int = 1
    """Processes on this machine, one a GPU where there are any (DDP)."""
    master_port: int = 0
    """Port on which the processes of `--world-size` meet; 0: a free one."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Of matrix products. auto: bf16 on GPUs that have it, else fp32."""
    compile: bool = False
    """Compile the encoder's layers with torch.compile."""
    recompute_layers: bool = False
    """Compute the encoder's layers again for the gradient instead of keeping all: less memory, a third slower."""
    seed: int = 42
    """Weights, dropout, order of the data."""
    log_interval: int = 50
    """Batches between two lines of the log."""
    valid_interval: int = 800
    """Batches between two computations of the validation loss; there is one at each epoch's end as well."""
    max_bad_batches: int = 10
    """Batches in a row without a finite loss after which training stops; each is skipped."""
    tensorboard: bool = True
    """Write TensorBoard logs into <exp-dir>/tensorboard."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    prune: PruneConfig = field(default_factory=PruneConfig)
    fine_tune: FineTuneConfig = field(default_factory=FineTuneConfig)

    def __post_init__(self) -> None:
        for name in ("num_epochs", "world_size", "log_interval", "valid_interval", "max_bad_batches"):
            if getattr(self, name) < 1:
                raise ValueError(f"`--{name.replace('_', '-')}` must be at least 1, but is {getattr(self, name)}.")
        for name in ("save_every", "keep_last"):
            if getattr(self, name) < 0:
                raise ValueError(f"`--{name.replace('_', '-')}` must be at least 0, but is {getattr(self, name)}.")
        if not 0 <= self.master_port <= 65535:
            raise ValueError(f"`--master-port` must be in 0..65535, but is {self.master_port}.")
        if not 0 <= self.start_epoch < self.num_epochs:
            raise ValueError(
                f"`--start-epoch` must be in 0..{self.num_epochs - 1} (`--num-epochs` {self.num_epochs}), "
                f"but is {self.start_epoch}."
            )
        if self.resume and self.start_epoch:
            raise ValueError("`--resume` and `--start-epoch` both say where to go on: give one of them.")
