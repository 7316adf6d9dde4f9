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
        if not 0 <= self.modified_transducer_prob <= 1:
            raise ValueError(f"`--modified-transducer-prob` must be in 0..1, but is {self.modified_transducer_prob:g}.")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"`--ema-decay` must be in [0, 1), but is {self.ema_decay:g}.")


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
    master_port: int = 12354
    """Port on which the processes meet."""
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
    fine_tune: FineTuneConfig = field(default_factory=FineTuneConfig)

    def __post_init__(self) -> None:
        for name in ("num_epochs", "world_size", "log_interval", "valid_interval", "max_bad_batches"):
            if getattr(self, name) < 1:
                raise ValueError(f"`--{name.replace('_', '-')}` must be at least 1, but is {getattr(self, name)}.")
        for name in ("save_every", "keep_last"):
            if getattr(self, name) < 0:
                raise ValueError(f"`--{name.replace('_', '-')}` must be at least 0, but is {getattr(self, name)}.")
        if not 0 <= self.start_epoch < self.num_epochs:
            raise ValueError(
                f"`--start-epoch` must be in 0..{self.num_epochs - 1} (`--num-epochs` {self.num_epochs}), "
                f"but is {self.start_epoch}."
            )
        if self.resume and self.start_epoch:
            raise ValueError("`--resume` and `--start-epoch` both say where to go on: give one of them.")
