"""Options that ``--size`` sets: sizes of the model, batches and schedule. Options on the command line win."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from stateless_transducer.commands.shared.flags import named_options
from stateless_transducer.commands.shared.option_groups import as_written
from stateless_transducer.files import parse_json

if TYPE_CHECKING:
    from stateless_transducer.commands.train import Options
    from stateless_transducer.training.task import TransducerTask

Config = TypeVar("Config")
TrainOptions = TypeVar("TrainOptions", bound="Options")


def sized(
    options: TrainOptions,
    arguments: Sequence[str],
    build_task: Callable[[TrainOptions], TransducerTask],
    tell: Callable[[str], None],
) -> TrainOptions:
    """Return the options with those that ``--size`` sets; a run that resumes keeps those of its beginning.

    Args:
        options: parsed options, with a size.
        arguments: command line, whose options win.
        build_task: builds the task of options.
        tell: called with lines that report what was chosen and why.

    Raises:
        ValueError: the size cannot be chosen, see `training.sizing.choose`, or another option excludes it.
    """
    from torch.distributed import is_torchelastic_launched

    from stateless_transducer.training.sizing import choose, this_machine

    assert options.size is not None
    init_from = options.train.fine_tune.init_from
    if init_from is not None:
        raise ValueError(
            f"`size` is {options.size}, but the sizes are those of `init_from` {init_from}. Remove `size`."
        )
    if is_torchelastic_launched():
        raise ValueError(
            f"`size` is {options.size}, but processes of torchrun may see different memory. Run the command once with "
            "`dry_run=True` and without torchrun, and pass the options that it prints."
        )
    named = named_options(arguments)
    given = {name: value for name, value in _flat(options).items() if name in named}
    settings = _recalled(options)
    if settings is not None:
        tell(f"size          that of {options.train.exp_dir}/config.json, whose run resumes")
    else:
        choice = choose(
            options.size,
            options.encoder,
            lambda settings: build_task(replaced(options, {**settings, **given})),
            given,
            this_machine(),
        )
        tell(f"size          {choice.reason}")
        before = _flat(options)
        settings = {
            name: value for name, value in choice.settings.items() if name not in given and value != before[name]
        }
        flags = (f"--{name.replace('_', '-')} {as_written(value)}" for name, value in settings.items())
        tell(f"chosen        {' '.join(flags)}")
    return replaced(options, {**settings, **given, "chosen": tuple(settings)})


def replaced(config: Config, values: Mapping[str, Any]) -> Config:
    """Return a dataclass with other values of its fields and those of inner dataclasses, by the names of the fields."""
    changes: dict[str, Any] = {}
    for item in fields(config):  # pyright: ignore[reportArgumentType]
        value = getattr(config, item.name)
        if is_dataclass(value):
            changes[item.name] = replaced(value, values)
        elif item.name in values:
            changes[item.name] = values[item.name]
    return replace(config, **changes)  # pyright: ignore[reportArgumentType]


def _recalled(options: Options) -> dict[str, Any] | None:
    """Return the settings of the run that these options resume; None for a new run, or one of another size."""
    from stateless_transducer.checkpoint import saved_batches, saved_epochs

    config, path = options.train, options.train.exp_dir / "config.json"
    is_resumed = config.resume or config.start_epoch
    if not is_resumed or not (saved_epochs(config.exp_dir) or saved_batches(config.exp_dir)) or not path.is_file():
        return None
    try:
        saved = parse_json(path.read_bytes())
        if saved.get("size") != options.size:
            return None
        # JSON has no tuples
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in _flat(saved).items()}
        return {name: values[name] for name in saved["chosen"]}
    except (ValueError, AttributeError, KeyError, TypeError) as err:
        raise ValueError(f"{path} is damaged ({err}). Pass the options of its run instead of `size`.") from err


def _flat(values: Any) -> dict[str, Any]:
    """Return the values in nested dataclasses or mappings by the names of their fields."""
    items = (
        values.items() if isinstance(values, Mapping) else ((f.name, getattr(values, f.name)) for f in fields(values))
    )
    flat: dict[str, Any] = {}
    for name, value in items:
        flat |= _flat(value) if is_dataclass(value) or isinstance(value, Mapping) else {name: value}
    return flat
