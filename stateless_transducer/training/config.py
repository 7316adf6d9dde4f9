"""What the user chooses about training. Free of torch, so that ``--help`` need not load it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class TrainConfig:
    """The tutorial's options, and what small data want instead."""

    exp_dir: Path = Path("transducer_stateless_modified/exp")
    """Folder for checkpoints, logs and TensorBoard."""
    num_epochs: int = 30
    """Epochs in all: epoch-0.pt to epoch-<num_epochs - 1>.pt."""
    start_epoch: int = 0
    """Go on from epoch-<start_epoch - 1>.pt."""
    world_size: int = 1
    """Processes on this machine, one a GPU where there are any (DDP)."""
    master_port: int = 12354
    """Port on which the processes meet."""
    modified_transducer_prob: float = 0.25
    """Share of batches with the modified loss (one symbol a frame)."""
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
    ctc_loss_scale: float = 0.0
    """Weight of a CTC loss on a head of its own over the encoder, which small runs start faster with; 0: none."""
    ctc_epochs: int = 1
    """Epochs with that CTC loss."""
    max_grad_norm: float = 5.0
    """Gradients are clipped to this norm."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 autocast on GPUs that have it, else fp32."""
    seed: int = 42
    """Weights, dropout, order of the data."""
    log_interval: int = 50
    """Batches between two lines of the log."""
    valid_interval: int = 800
    """Batches between two computations of the validation loss; there is one at each epoch's end as well."""
    tensorboard: bool = True
    """Write TensorBoard logs into <exp-dir>/tensorboard."""

    def __post_init__(self) -> None:
        for name in ("num_epochs", "world_size", "warm_step", "log_interval", "valid_interval"):
            if getattr(self, name) < 1:
                raise ValueError(f"`--{name.replace('_', '-')}` must be at least 1, but is {getattr(self, name)}.")
        if not 0 <= self.start_epoch < self.num_epochs:
            raise ValueError(
                f"`--start-epoch` must be in 0..{self.num_epochs - 1} (`--num-epochs` {self.num_epochs}), "
                f"but is {self.start_epoch}."
            )
        if not 0 <= self.modified_transducer_prob <= 1:
            raise ValueError(f"`--modified-transducer-prob` must be in 0..1, but is {self.modified_transducer_prob:g}.")
        for name in ("lr_factor", "peak_lr", "max_grad_norm"):
            if getattr(self, name) <= 0:
                raise ValueError(f"`--{name.replace('_', '-')}` must be above 0, but is {getattr(self, name):g}.")
