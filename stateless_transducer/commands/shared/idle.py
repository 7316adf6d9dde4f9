"""Checks that refuse options without effect, which are likely mistakes.

An option set to its default is not detected.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from stateless_transducer.commands.shared.option_groups import as_written
from stateless_transducer.data.config import DataConfig
from stateless_transducer.decoding.config import SearchConfig
from stateless_transducer.training.config import TrainConfig

_OPTIONS_OF_OPTIMIZERS = {
    ("noam",): ["lr_factor"],
    ("adamw", "muon"): ["peak_lr", "weight_decay", "decay_epochs"],
    ("scaled-adam",): ["base_lr", "lr_batches", "lr_epochs"],
    ("noam", "adamw", "muon"): ["warm_step", "max_grad_norm"],
}
A_BEAM = "a beam: add `--decoding-method modified_beam_search`"


def refuse_idle(config: Any, needs: str, *, names: Sequence[str] = ()) -> None:
    """Refuse options of a dataclass that have no effect without something else.

    Args:
        config: Options to check.
        needs: Description of the missing option or model.
        names: Names of the fields to check; empty: all.

    Raises:
        ValueError: An option differs from its default.
    """
    for option in fields(config):
        value = getattr(config, option.name)
        if value != option.default and (not names or option.name in names):
            raise ValueError(f"`{option.name}` {as_written(value)} needs {needs}.")


def refuse_idle_search(search: SearchConfig, *, nbest: int = 1, sounds_have_hotwords: bool = False) -> None:
    """Refuse options of another search, and options of files that are not set.

    Args:
        search: Options of the search.
        nbest: Hypotheses to return.
        sounds_have_hotwords: Whether sounds may have hotwords of their own, without a file.

    Raises:
        ValueError: The option and what it needs.
    """
    if search.decoding_method != "greedy_search":
        refuse_idle(search, "`--decoding-method greedy_search`", names=["max_sym_per_frame"])
    else:
        refuse_idle(search, A_BEAM, names=["beam_size", "length_norm"])
        if nbest > 1:
            raise ValueError(f"`nbest` {nbest} needs {A_BEAM}.")
    if nbest > search.beam_size:
        raise ValueError(f"`nbest` {nbest} must be at most `beam_size` {search.beam_size}.")
    if search.hotwords_file is None:
        if not sounds_have_hotwords:
            refuse_idle(search, "`--hotwords-file`", names=["hotwords_score"])
        elif search.decoding_method == "greedy_search":
            refuse_idle(search, A_BEAM, names=["hotwords_score"])
    if search.ngram_lm is None:
        refuse_idle(search, "`--ngram-lm`", names=["lm_scale", "lodr_lm"])
    if search.lodr_lm is None:
        refuse_idle(search, "`--lodr-lm`", names=["lodr_scale"])


def refuse_idle_training(train: TrainConfig, data: DataConfig, *, encoder: str) -> None:
    """Refuse options of training without effect.

    Args:
        train: Options of training.
        data: Options of data.
        encoder: Kind of encoder; a model of ``init_from`` may have another one.

    Raises:
        ValueError: The option and what it needs.
    """
    optim, prune = train.optim, train.prune
    for (first, *others), names in _OPTIONS_OF_OPTIMIZERS.items():
        if optim.optimizer not in (first, *others):
            needs = " or ".join([f"`optimizer={first}`", *(f"`{other}`" for other in others)])
            refuse_idle(optim, needs, names=names)
    if encoder != "zipformer" and train.fine_tune.init_from is None:
        refuse_idle(optim, "`encoder=zipformer`", names=["ref_duration"])
    if not optim.ctc_loss_scale:
        refuse_idle(optim, "`ctc_loss_scale` above 0", names=["ctc_epochs"])
    if not prune.prune_range:
        refuse_idle(prune, "`prune_range` above 0")
    if train.world_size == 1:
        refuse_idle(train, "`world_size` above 1", names=["master_port"])
    if not train.save_every:
        refuse_idle(train, "`save_every` above 0", names=["keep_last"])
    if data.mix_prefix is None:
        refuse_idle(data, "`mix_prefix`", names=["mix_prob"])
    if not data.silence_s and not data.join_up_to_s:
        refuse_idle(data, "`silence_s` or `join_up_to_s`", names=["lengthen_from_epoch"])
    masks = data.spec_augment
    if not data.enable_spec_aug:
        refuse_idle(masks, "`enable_spec_aug=True`")
    if not masks.num_feature_masks:
        refuse_idle(masks, "`num_feature_masks` above 0", names=["features_mask_size"])
    if not masks.num_frame_masks:
        refuse_idle(masks, "`num_frame_masks` above 0", names=["frames_mask_size", "max_frames_mask_fraction"])
