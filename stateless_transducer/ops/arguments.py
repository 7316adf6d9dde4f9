"""Argument checks of the public loss functions.

Letters: N utterances, T encoder frames, U tokens, V vocabulary with blank.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, ParamSpec, SupportsIndex, TypeVar

import torch
from torch import Tensor

from stateless_transducer.ops.cells import Topology, has_path

InfIs = Literal["raise", "inf", "zero"]


P = ParamSpec("P")
R = TypeVar("R")


def never_compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Exclude a function from `torch.compile`, which then compiles the code before and after it.

    A lattice's loop has as many steps as its utterances have frames; compiled, each batch would be a new program.
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        # at call time, since importing the compiler takes seconds
        if torch.compiler.is_compiling():
            return torch.compiler.disable(function)(*args, **kwargs)  # pyright: ignore[reportCallIssue]
        return function(*args, **kwargs)

    return run


def check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    """Raise ValueError unless the value is one of the choices."""
    if value not in choices:
        *most, last = (repr(choice).replace("'", '"') for choice in choices)
        raise ValueError(f"`{name}` must be {', '.join(most)} or {last}, but is {value!r}.".replace("'", '"'))


def check_tensor(name: str, value: object, shape: str) -> None:
    """Raise ValueError unless it is a tensor."""
    if not isinstance(value, Tensor):
        kind = "None" if value is None else f"a {type(value).__name__}"
        raise ValueError(f"`{name}` must be a tensor of shape {shape}, but is {kind}. Convert it with torch.as_tensor.")


def check_axes(name: str, tensor: Tensor, *axes: str, may_be_empty: bool = False) -> None:
    """Raise ValueError unless it is a tensor with as many axes as there are letters."""
    letters = f"({', '.join(axes)})"
    check_tensor(name, tensor, letters)
    if tensor.dim() != len(axes) or (0 in tensor.shape and not may_be_empty):
        bound = "" if may_be_empty else ", none of them 0"
        raise ValueError(f"`{name}` must be {letters}{bound}, but has shape {tuple(tensor.shape)}.")


def check_shapes(expected: Mapping[str, tuple[Tensor, tuple[int, ...]]]) -> None:
    """Raise ValueError unless each value is a tensor of its shape."""
    for name, (tensor, shape) in expected.items():
        check_tensor(name, tensor, str(shape))
        if tuple(tensor.shape) != shape:
            raise ValueError(f"`{name}` must have shape {shape}, but has {tuple(tensor.shape)}.")


def check_floating(tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless the named tensors hold floating-point numbers, all on one device."""
    first_name, first = next(iter(tensors.items()))
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise ValueError(f"`{name}` must be floating-point, but is {tensor.dtype}.")
        if tensor.is_meta:
            raise ValueError(f"`{name}` is on the meta device and holds no numbers.")
        if tensor.device != first.device:
            raise ValueError(f"`{name}` is on {tensor.device}, but `{first_name}` is on {first.device}.")


def _integers(name: str, values: Tensor) -> Tensor:
    """Convert to int64, since comparisons in narrower dtypes wrap around; raise ValueError for non-integers."""
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise ValueError(f"`{name}` must be integer, but is {values.dtype}.")
    if values.is_meta:
        raise ValueError(f"`{name}` is on the meta device and holds no numbers.")
    return values.long()


def check_integers(name: str, values: Tensor, low: int, high: int) -> None:
    """Raise ValueError unless the tensor holds integers within the bounds."""
    values = _integers(name, values)
    outside = (values < low) | (values > high)
    if bool(outside.any()):
        raise ValueError(f"`{name}` must be in {low}..{high}, but holds {values[outside].flatten()[0].item()}.")


def checked_integer(name: str, value: SupportsIndex, low: int, high: int | None = None) -> int:
    """Return an integer within the bounds; NumPy's and torch's integers become Python's."""
    try:
        number = operator.index(value)
    except TypeError as err:
        raise ValueError(f"`{name}` must be an integer, but is {value!r}.") from err
    if number < low or (high is not None and number > high):
        bounds = f"at least {low}" if high is None else f"in {low}..{high}"
        raise ValueError(f"`{name}` must be {bounds}, but is {number}.")
    return number


def checked_blank(blank: int, vocab_size: int) -> int:
    """Return the blank as an id in 0..V-1; a negative one counts from V."""
    return checked_integer("blank", blank, -vocab_size, vocab_size - 1) % vocab_size


def check_tokens(name: str, tokens: Tensor, lens_name: str, token_lens: Tensor, vocab_size: int, blank: int) -> Tensor:
    """Raise ValueError unless the tokens, without padding, are in the vocabulary and no blanks.

    Args:
        name: the caller's name for the tokens.
        tokens: (N, U), padded with anything.
        lens_name: the caller's name for the lengths.
        token_lens: (N,).
        vocab_size: V.
        blank: id of the blank.

    Returns:
        (N, U), int64, padded with blanks.
    """
    num_tokens = tokens.shape[1]
    check_integers(lens_name, token_lens, 0, num_tokens)
    used = torch.arange(num_tokens, device=tokens.device) < token_lens.to(tokens.device)[:, None]
    padded = torch.where(used, _integers(name, tokens), blank)
    check_integers(name, padded, 0, vocab_size - 1)
    if bool((used & (padded == blank)).any()):
        raise ValueError(f"`{name}` must not contain the blank ({blank}).")
    return padded


def choose_topology(
    max_symbols_per_frame: int | None, last_arc_is_blank: bool, *, remedy: str = "max_symbols_per_frame=1"
) -> Topology:
    """Return the topology of two arguments that all losses share.

    Args:
        max_symbols_per_frame: None or 1.
        last_arc_is_blank: see `joint_transducer_loss`.
        remedy: how to select the modified transducer in the calling function, for the error.
    """
    check_choice("max_symbols_per_frame", max_symbols_per_frame, (None, 1))
    if max_symbols_per_frame is None:
        if not last_arc_is_blank:
            raise ValueError(f"`last_arc_is_blank=False` is for the modified transducer only. Set `{remedy}`.")
        return "standard"
    return "modified" if last_arc_is_blank else "modified_open"


def check_paths(encoder_out_lens: Tensor, token_lens: Tensor, topology: Topology, inf_is: InfIs) -> None:
    """Raise ValueError for utterances without a path if `inf_is` is "raise"."""
    check_choice("inf_is", inf_is, ("raise", "inf", "zero"))
    encoder_out_lens, token_lens = encoder_out_lens.long(), token_lens.to(encoder_out_lens.device).long()
    possible = has_path(encoder_out_lens, token_lens, topology)
    if inf_is == "raise" and not bool(possible.all()):
        need = "T - 1 >= U" if topology == "modified" else "T >= U"
        utterances = [
            f"{n} (T={int(encoder_out_lens[n])}, U={int(token_lens[n])})" for n in (~possible).nonzero()[:, 0].tolist()
        ]
        remainder = f" and {len(utterances) - 5} more" if len(utterances) > 5 else ""
        raise ValueError(
            f"The modified transducer needs {need}, which does not hold for utterance {', '.join(utterances[:5])}"
            f'{remainder}. Remove them, or pass inf_is="inf" or "zero".'
        )


def check_delay_penalty(delay_penalty: float) -> None:
    """Raise ValueError unless the penalty is a finite number of at least 0."""
    if not 0 <= delay_penalty < float("inf"):
        raise ValueError(f"`delay_penalty` must be at least 0 and finite, but is {delay_penalty}.")


def finish_nll(nll: Tensor, inf_is: InfIs) -> Tensor:
    """Replace inf by 0 if `inf_is` is "zero"."""
    return torch.where(nll == torch.inf, 0, nll) if inf_is == "zero" else nll
