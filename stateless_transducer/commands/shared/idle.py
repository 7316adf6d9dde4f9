"""Options that would choose nothing are errors: who gives one means something by it.

A value that equals the default cannot be told from none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from stateless_transducer.data.config import DataConfig
from stateless_transducer.decoding.config import SearchConfig
from stateless_transducer.training.config import TrainConfig

A_BEAM = "a beam: add `--decoding-method modified_beam_search`"


def refuse_idle(config: Any, needs: str, *, names: Sequence[str] = ()) -> None:
    """Of a dataclass of options, none of which chooses anything for want of something.

    Args:
        config: the dataclass.
        needs: what they want.
        names: of the fields that are meant; none: all.

    Raises:
        ValueError: one is not what it is by default.
    """
    for each in fields(config):
        value = getattr(config, each.name)
        if value != each.default and (not names or each.name in names):
            raise ValueError(f"`{each.name}` {_as_written(value)} needs {needs}.")


def _as_written(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def refuse_idle_search(search: SearchConfig, *, nbest: int = 1, sounds_have_hotwords: bool = False) -> None:
    """Options of a search that belong to another one, or to a file that is not given.

    Args:
        search: the options.
        nbest: another one.
        sounds_have_hotwords: whether there may be hotwords without a file.

    Raises:
        ValueError: there is one.
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


def refuse_idle_training(train: TrainConfig, data: DataConfig) -> None:
    """Refuse options of training that choose nothing beside the others.

    Raises:
        ValueError: names the option and what it needs.
    """
    optim, prune = train.optim, train.prune
    if optim.optimizer == "noam":
        refuse_idle(optim, "`optimizer=adamw`", names=["peak_lr", "weight_decay", "decay_epochs"])
    else:
        refuse_idle(optim, "`optimizer=noam`", names=["lr_factor"])
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
