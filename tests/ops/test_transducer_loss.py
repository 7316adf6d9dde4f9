from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from oracle import nll_by_enumeration

from stateless_transducer.ops.transducer_loss import transducer_loss

GOLDEN = Path(__file__).parents[1] / "golden" / "loss"
PUBLISHED = {case["name"]: case for case in json.loads((GOLDEN / "full_loss.json").read_text())}
# by k2's definition of the modified loss: of the same logits, and of some more
OPEN = json.loads((GOLDEN / "modified_open.json").read_text())
TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-9}
# (frames, tokens) of each utterance, vocabulary
SHAPES = {
    "one-frame": ([(1, 0), (1, 1)], 3),
    "no-tokens": ([(3, 0), (4, 0)], 2),
    "as-many-frames-as-tokens": ([(3, 3), (2, 2)], 4),
    "unequal": ([(4, 2), (2, 1), (3, 3), (1, 0)], 5),
    "two-symbols": ([(4, 4), (3, 1)], 2),
}
TOPOLOGIES = {
    "standard": {},
    "modified": {"one_sym_per_frame": True},
    "modified_open": {"one_sym_per_frame": True, "last_arc_is_blank": False},
}


def _sizes(problem):
    return list(zip(problem["logit_lengths"].tolist(), problem["target_lengths"].tolist(), strict=True))


def _per_utterance(rows, problem):
    """Rows of padded or packed logits, or of their gradient, that belong to each utterance: N of (T * (U+1), V)."""
    if rows.dim() == 4:
        return [rows[n, :t, : u + 1].flatten(0, 1) for n, (t, u) in enumerate(_sizes(problem))]
    return rows.split([t * (u + 1) for t, u in _sizes(problem)])


def _packed(problem):
    """The same problem, its padded logits packed; they are a new leaf."""
    return {**problem, "logits": torch.cat(_per_utterance(problem["logits"].detach(), problem)).requires_grad_()}


PACKINGS = {"padded": dict, "packed": _packed}
both_packings = pytest.mark.parametrize("pack", PACKINGS.values(), ids=PACKINGS)
all_topologies = pytest.mark.parametrize("topology", TOPOLOGIES)
both_precisions = pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
logits_and_log_probs = pytest.mark.parametrize("from_log_softmax", [False, True], ids=["logits", "log-probs"])


def _problem(device, sizes=((5, 3), (4, 2)), vocab_size=6, dtype=torch.float64):
    """Random arguments of `transducer_loss`, padded; the logits with gradient. By default 20 + 12 rows are in use."""
    N, T, U = len(sizes), max(t for t, _ in sizes), max(u for _, u in sizes)
    lens = torch.tensor(sizes, device=device)
    return {
        "logits": (2 * torch.randn(N, T, U + 1, vocab_size, dtype=dtype, device=device)).requires_grad_(),
        "targets": torch.randint(1, vocab_size, (N, U), device=device),
        "logit_lengths": lens[:, 0].clone(),
        "target_lengths": lens[:, 1].clone(),
    }


def _published(case, device, dtype):
    """Arguments of one golden case, packed, and its options."""
    logits = torch.tensor(case["logits"], dtype=dtype, device=device).view(-1, case["V"]).requires_grad_()
    targets, T, U = (torch.tensor(case[key], device=device) for key in ("targets", "T", "U"))
    options = {name: case[name] for name in ("blank", "one_sym_per_frame", "from_log_softmax")}
    return {"logits": logits, "targets": targets, "logit_lengths": T, "target_lengths": U}, options


def _nll(problem, **options):
    return transducer_loss(**problem, reduction="none", **options)


def _nll_and_gradient(problem, **options):
    nll = _nll(problem, **options)
    return nll.detach(), torch.autograd.grad(nll.sum(), problem["logits"])[0]


def _by_enumeration(problem, topology, blank=0, from_log_softmax=False):
    """Nll, and the gradient of the sum of those that are finite, with padded logits."""
    logits, losses = problem["logits"], []
    log_probs = logits if from_log_softmax else logits.log_softmax(-1)
    for n, (t, u) in enumerate(_sizes(problem)):
        tokens = problem["targets"][n, :u].tolist()
        losses.append(nll_by_enumeration(log_probs[n, :t, : u + 1], tokens, topology, blank))
    finite = [loss for loss in losses if loss.isfinite()]
    gradient = torch.autograd.grad(sum(finite), logits)[0] if finite else torch.zeros_like(logits)
    return torch.stack(losses).detach(), gradient


def _assert_same(ours, wanted, rtol=0.0, atol=0.0):
    for mine, other in zip(ours, wanted, strict=True):
        torch.testing.assert_close(mine, other, rtol=rtol, atol=atol)


@both_precisions
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_packed_loss_equals_published(name, reduction, dtype, device):
    problem, options = _published(PUBLISHED[name], device, dtype)
    wanted = torch.tensor(PUBLISHED[name]["loss"], dtype=dtype, device=device)
    wanted = {"none": wanted, "mean": wanted.mean(), "sum": wanted.sum()}[reduction]
    _assert_same([transducer_loss(**problem, reduction=reduction, **options)], [wanted], rtol=TOLERANCES[dtype])


@both_precisions
@pytest.mark.parametrize("name", PUBLISHED)
def test_packed_gradient_equals_published(name, dtype, device):
    problem, options = _published(PUBLISHED[name], device, dtype)
    _, gradient = _nll_and_gradient(problem, **options)
    wanted = pytest.approx(PUBLISHED[name]["gradient_sumsq"], rel=TOLERANCES[dtype])
    assert gradient.double().pow(2).sum().item() == wanted
    first = torch.tensor(PUBLISHED[name]["gradient_first20"], dtype=dtype, device=device)
    # the file has seven digits; 1e-20 is what exp leaves of what is next to nothing
    rtol, atol = (6e-7, 1e-20) if dtype == torch.float64 else (0, 1e-5)
    _assert_same([gradient.flatten()[:20]], [first], rtol, atol)


@pytest.mark.parametrize("name", PUBLISHED)
def test_negative_blank_counts_from_the_end(name, device):
    problem, options = _published(PUBLISHED[name], device, torch.float64)
    wanted = _nll_and_gradient(problem, **options)
    options["blank"] -= PUBLISHED[name]["V"]
    _assert_same(_nll_and_gradient(problem, **options), wanted)


@both_precisions
@pytest.mark.parametrize("name", OPEN)
def test_loss_without_closing_blank_equals_published(name, dtype, device):
    """fast_rnnt 1.3 in float64, and k2's definition in an independent forward-backward."""
    case = PUBLISHED.get(name, {}) | OPEN[name]
    problem, options = _published(case, device, dtype)
    wanted = torch.tensor([float(loss) for loss in case["loss"]], dtype=dtype, device=device)
    _assert_same([_nll(problem, **options, last_arc_is_blank=False, inf_is="inf")], [wanted], rtol=TOLERANCES[dtype])


@logits_and_log_probs
@all_topologies
@pytest.mark.parametrize("shape", SHAPES)
def test_loss_and_gradient_equal_enumeration_of_paths(shape, topology, from_log_softmax, device):
    problem = _problem(device, *SHAPES[shape])
    ours = _nll_and_gradient(problem, **TOPOLOGIES[topology], from_log_softmax=from_log_softmax, inf_is="inf")
    _assert_same(ours, _by_enumeration(problem, topology, 0, from_log_softmax), rtol=1e-10, atol=1e-12)


@logits_and_log_probs
@all_topologies
@pytest.mark.parametrize("blank", [0, 2, 4, -1, -5])
def test_loss_and_gradient_with_any_blank_equal_enumeration(blank, topology, from_log_softmax, device):
    problem = _problem(device, [(4, 2), (3, 2)], 5)
    problem["targets"] = (problem["targets"] + blank) % 5
    ours = _nll_and_gradient(problem, **TOPOLOGIES[topology], blank=blank, from_log_softmax=from_log_softmax)
    _assert_same(ours, _by_enumeration(problem, topology, blank % 5, from_log_softmax), rtol=1e-10, atol=1e-12)


@logits_and_log_probs
@all_topologies
@both_packings
def test_gradient_equals_finite_differences(pack, topology, from_log_softmax, device):
    problem = pack(_problem(device, [(3, 2), (2, 1)], 3))
    options = {**TOPOLOGIES[topology], "from_log_softmax": from_log_softmax}
    assert torch.autograd.gradcheck(lambda logits: _nll({**problem, "logits": logits}, **options), problem["logits"])


@both_precisions
@all_topologies
def test_padded_equals_packed(topology, dtype, device):
    problem = _problem(device, [(9, 4), (7, 5), (6, 0)], 11, dtype)
    nll, gradient = _nll_and_gradient(problem, **TOPOLOGIES[topology])
    packed = _nll_and_gradient(_packed(problem), **TOPOLOGIES[topology])
    atol = 1e-6 if dtype == torch.float32 else 1e-14
    _assert_same([nll, torch.cat(_per_utterance(gradient, problem))], packed, rtol=atol, atol=atol)


@all_topologies
def test_nan_in_padding_changes_nothing_and_gets_no_gradient(topology, device):
    problem = _problem(device, [(5, 3), (4, 2), (7, 1)])
    wanted = _nll_and_gradient(problem, **TOPOLOGIES[topology])
    logits = torch.full_like(problem["logits"], torch.nan)
    for n, (t, u) in enumerate(_sizes(problem)):
        logits[n, :t, : u + 1] = problem["logits"].detach()[n, :t, : u + 1]
    ours = _nll_and_gradient({**problem, "logits": logits.requires_grad_()}, **TOPOLOGIES[topology])
    _assert_same(ours, wanted)
    assert (ours[1][logits.isnan()] == 0).all()


@both_packings
@all_topologies
def test_batch_equals_one_by_one(topology, pack, device):
    problem = _problem(device, [(5, 3), (9, 2), (4, 0)])
    alone = [_nll({k: v[n : n + 1] for k, v in problem.items()}, **TOPOLOGIES[topology]) for n in range(3)]
    _assert_same([_nll(pack(problem), **TOPOLOGIES[topology])], [torch.cat(alone)], rtol=1e-14)


@both_packings
def test_chunks_change_nothing(pack, monkeypatch, device):
    problem = pack(_problem(device))
    wanted = _nll_and_gradient(problem)
    by_three = lambda count, *_: (slice(start, start + 3) for start in range(0, count, 3))  # noqa: E731
    monkeypatch.setattr("stateless_transducer.ops.logit_scores.chunks", by_three)
    _assert_same(_nll_and_gradient(problem), wanted, 1e-14, 1e-14)


@both_packings
def test_unwritten_memory_is_not_read(pack, monkeypatch, device):
    problem = pack(_problem(device, [(5, 3), (9, 2)]))
    wanted, real = _nll_and_gradient(problem), torch.empty
    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: real(*args, **kwargs).fill_(77))
    _assert_same(_nll_and_gradient(problem), wanted)


@pytest.mark.parametrize("options", [{}, {"reduction": "mean"}, {"reduction": "sum"}], ids=["default", "mean", "sum"])
@both_packings
def test_reduction_is_over_the_utterances(pack, options, device):
    problem = pack(_problem(device))
    nll, gradient = _nll_and_gradient(problem)
    ours = transducer_loss(**problem, **options)
    ours = [ours.detach(), torch.autograd.grad(ours, problem["logits"])[0]]
    count = 1 if options == {"reduction": "sum"} else 2
    _assert_same(ours, [nll.sum() / count, gradient / count], 1e-14, 1e-14)


def test_positions_are_those_of_optimized_transducer(device):
    problem = _packed(_problem(device))
    wanted = transducer_loss(**problem, blank=-6, reduction="sum", one_sym_per_frame=True, from_log_softmax=False)
    _assert_same([transducer_loss(*problem.values(), -6, "sum", True, False)], [wanted])


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32], ids=str)
@pytest.mark.parametrize("name", ["targets", "logit_lengths", "target_lengths"])
@both_packings
def test_any_integer_dtype_gives_the_same_loss(pack, name, dtype, device):
    # the blank, and the number of rows, are too large for the narrowest
    problem = pack(_problem(device, [(3, 120), (2, 90)], 300))
    problem["targets"] %= 100
    wanted = _nll_and_gradient(problem, blank=299)
    _assert_same(_nll_and_gradient({**problem, name: problem[name].to(dtype)}, blank=299), wanted)


@logits_and_log_probs
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@both_packings
def test_half_precision_logits_are_computed_in_float32(pack, dtype, from_log_softmax, device):
    halves = pack(_problem(device, dtype=dtype))
    singles = {**halves, "logits": halves["logits"].float()}
    nll, gradient = _nll_and_gradient(singles, from_log_softmax=from_log_softmax)
    _assert_same(_nll_and_gradient(halves, from_log_softmax=from_log_softmax), [nll, gradient.to(dtype)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@both_packings
def test_autocast_changes_nothing(pack, dtype, device):
    problem = pack(_problem(device, dtype=dtype))
    wanted = _nll_and_gradient(problem)
    with torch.autocast(device.type, torch.bfloat16):
        _assert_same(_nll_and_gradient(problem), wanted)


STRIDES = {
    "last-axis-first": lambda x: x.movedim(-1, 0).contiguous().movedim(0, -1),
    "inner-part": lambda x: torch.nn.functional.pad(x, (1, 1, 2, 2), value=torch.nan)[..., 2:-2, 1:-1],
}


@pytest.mark.parametrize("stride", STRIDES)
@both_packings
def test_any_strides_give_the_same_loss(pack, stride, device):
    problem = pack(_problem(device))
    wanted = _nll_and_gradient(problem)
    problem["logits"] = STRIDES[stride](problem["logits"].detach()).requires_grad_()
    assert not problem["logits"].is_contiguous()
    # sums over a vocabulary that lies apart are added in another order
    _assert_same(_nll_and_gradient(problem), wanted, 1e-14, 1e-14)


@pytest.mark.parametrize("has_gradient", [True, False], ids=["backward", "no_grad"])
@logits_and_log_probs
@both_packings
def test_logits_are_not_changed(pack, from_log_softmax, has_gradient, device):
    problem = pack(_problem(device))
    before = problem["logits"].detach().clone()
    with torch.set_grad_enabled(has_gradient):
        loss = transducer_loss(**problem, from_log_softmax=from_log_softmax)
    if has_gradient:
        loss.backward()
    _assert_same([problem["logits"].detach()], [before])


@both_packings
def test_no_grad_gives_the_same_loss_without_a_graph(pack, device):
    problem = pack(_problem(device))
    with torch.no_grad():
        ours = _nll(problem)
    assert not ours.requires_grad
    _assert_same([ours], [_nll(problem).detach()])


@logits_and_log_probs
@both_packings
def test_second_backward_gives_the_same_gradient(pack, from_log_softmax, device):
    problem = pack(_problem(device))
    loss = transducer_loss(**problem, from_log_softmax=from_log_softmax)
    first = torch.autograd.grad(loss, problem["logits"], retain_graph=True)
    _assert_same(torch.autograd.grad(loss, problem["logits"]), first)


@both_packings
def test_second_derivative_is_refused(pack, device):
    problem = pack(_problem(device))
    with pytest.raises(RuntimeError, match="differentiable once"):
        torch.autograd.grad(transducer_loss(**problem), problem["logits"], create_graph=True)


@both_packings
def test_backward_of_logits_changed_since_is_refused(pack, device):
    problem = pack(_problem(device))
    loss = transducer_loss(**problem)
    problem["logits"].detach().mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("width", [0, 2])
@all_topologies
@both_packings
def test_loss_of_empty_targets_is_that_of_the_blanks(pack, topology, width, device):
    problem = _problem(device, [(5, 0), (3, 0)])
    blanks = -problem["logits"].detach().log_softmax(-1)[:, :, 0, 0]
    problem["targets"] = torch.full((2, width), 999, device=device)
    ours = _nll(pack(problem), **TOPOLOGIES[topology])
    _assert_same([ours], [torch.stack([blanks[0].sum(), blanks[1, :3].sum()])], rtol=1e-13)


@pytest.mark.parametrize("garbage", [0, 6, 999, -7])
@pytest.mark.parametrize("width", [3, 5], ids=["as-wide", "wider"])
@both_packings
def test_padding_of_targets_may_be_anything(pack, width, garbage, device):
    problem = pack(_problem(device))
    wanted = _nll_and_gradient(problem)
    problem["targets"] = torch.nn.functional.pad(problem["targets"], (0, width - 3), value=garbage)
    problem["targets"][1, 2:] = garbage
    _assert_same(_nll_and_gradient(problem), wanted)


def test_frames_behind_all_lengths_are_padding(device):
    problem = _problem(device, [(5, 3), (4, 3)])
    problem["logit_lengths"] -= 2
    _assert_same([_nll(problem)], [_nll({**problem, "logits": problem["logits"][:, :3]})])


FEW_FRAMES = {
    "modified": ([(9, 2), (3, 3), *[(2, 5)] * 6], r"T - 1 >= U, .* 1 \(T=3, U=3\), 2 .* 5 \(T=2, U=5\) and 2 more\."),
    "modified_open": ([(3, 5), (4, 4), (4, 6)], r"T >= U, .* utterance 0 \(T=3, U=5\), 2 \(T=4, U=6\)\. .*inf_is"),
}


@pytest.mark.parametrize("topology", FEW_FRAMES)
@both_packings
def test_utterances_with_too_few_frames_are_named(pack, topology, device):
    problem = pack(_problem(device, FEW_FRAMES[topology][0]))
    with pytest.raises(ValueError, match=FEW_FRAMES[topology][1]):
        transducer_loss(**problem, **TOPOLOGIES[topology])


@pytest.mark.parametrize("inf_is", ["inf", "zero"])
@pytest.mark.parametrize("topology", FEW_FRAMES)
@both_packings
def test_utterances_with_too_few_frames_carry_no_gradient(pack, topology, inf_is, device):
    problem = pack(_problem(device, FEW_FRAMES[topology][0]))
    nll, gradient = _nll_and_gradient(problem, **TOPOLOGIES[topology], inf_is=inf_is)
    for (t, u), loss, own in zip(_sizes(problem), nll, _per_utterance(gradient, problem), strict=True):
        if t < u + (topology == "modified"):
            assert loss == (torch.inf if inf_is == "inf" else 0) and (own == 0).all()
        else:
            assert loss > 0 and own.isfinite().all() and (own != 0).any()


# entries of the cell on frame 1 of utterance 0, where the first token has been said and 4 is the next
ENTRIES = {"blank": (0, 1, 1, 0), "token": (0, 1, 1, 4), "other": (0, 1, 1, 3)}


def _spoilt(device, place, value, dtype=torch.float64):
    """A problem, and the same with a value at some place of its first utterance."""
    clean = _problem(device, dtype=dtype)
    clean["targets"][0] = torch.tensor([2, 4, 1], device=device)
    logits = clean["logits"].detach().clone()
    logits[place] = value
    return clean, {**clean, "logits": logits.requires_grad_()}


# place, value, options, nll
SPOILERS = {
    **{f"{bad}-{name}": (ENTRIES[name], bad, {}, torch.nan) for name in ENTRIES for bad in (torch.nan, torch.inf)},
    "log-prob-nan": (ENTRIES["token"], torch.nan, {"from_log_softmax": True}, torch.nan),
    "log-prob-inf": (ENTRIES["blank"], torch.inf, {"from_log_softmax": True}, torch.nan),
    "all-impossible": ((0, 1, 1), -torch.inf, {"inf_is": "zero"}, torch.nan),
    "no-path": ((0, slice(None), 0, 2), -torch.inf, {}, torch.inf),
    "no-path-zero": ((0, slice(None), 0, 2), -torch.inf, {"inf_is": "zero"}, 0.0),
}


@pytest.mark.parametrize("spoiler", SPOILERS)
@both_packings
def test_nan_and_inf_spoil_their_utterance_only(pack, spoiler, device):
    place, value, options, wanted = SPOILERS[spoiler]
    clean, spoilt = (pack(each) for each in _spoilt(device, place, value))
    nll, gradient = _nll_and_gradient(spoilt, **options)
    wanted_nll, wanted_gradient = _nll_and_gradient(clean, **options)
    own, other = _per_utterance(gradient, spoilt)
    assert str(nll[0].item()) == str(wanted) and (own == 0).all()
    _assert_same([nll[1], other], [wanted_nll[1], _per_utterance(wanted_gradient, clean)[1]])


@logits_and_log_probs
@pytest.mark.parametrize("entry", ENTRIES)
@all_topologies
def test_minus_infinity_takes_its_arc_out(topology, entry, from_log_softmax, device):
    _, problem = _spoilt(device, ENTRIES[entry], -torch.inf)
    ours = _nll_and_gradient(problem, **TOPOLOGIES[topology], from_log_softmax=from_log_softmax)
    _assert_same(ours, _by_enumeration(problem, topology, 0, from_log_softmax), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("value", [-1e2, -1e3, -1e4, -1e30])
@pytest.mark.parametrize("entry", ENTRIES)
def test_unlikely_arc_keeps_float32_gradient_exact(entry, value, device):
    _, problem = _spoilt(device, ENTRIES[entry], value, torch.float32)
    nll, gradient = _by_enumeration({**problem, "logits": problem["logits"].double()}, "standard")
    _assert_same(_nll_and_gradient(problem), [nll.float(), gradient.float()], 1e-6, 1e-5)


@pytest.mark.parametrize("size", [(500, 100), pytest.param((4000, 800), marks=pytest.mark.sweep)], ids=str)
def test_long_float32_loss_equals_float64(size, device):
    problem = _packed(_problem(device, [size], 3, torch.float32))
    nll, gradient = _nll_and_gradient(problem)
    wanted_nll, wanted_gradient = _nll_and_gradient({**problem, "logits": problem["logits"].double()})
    assert nll.item() == pytest.approx(wanted_nll.item(), rel=1e-6)
    assert (gradient - wanted_gradient).norm() <= 1e-5 * wanted_gradient.norm()


def _change(names, value):
    return lambda p: p.update({name: value(p[name]) if callable(value) else value for name in names.split()})


def _put(name, value, *place):
    return lambda p: p[name].__setitem__(place or 0, value)


BAD = {
    "blank-among-targets": (_put("targets", 0, 0, 1), r"`targets` must not contain the blank \(0\)"),
    "target-is-V": (_put("targets", 6, 0, 1), r"`targets` must be in 0\.\.5, but holds 6"),
    "negative-target": (_put("targets", -1, 0, 1), r"`targets` must be in 0\.\.5, but holds -1"),
    "blank-is-V": (_change("blank", 6), r"`blank` must be in -6\.\.5, but is 6"),
    "no-frame": (_put("logit_lengths", 0), r"`logit_lengths` must be in 1\.\.(5|32), but holds 0"),
    "more-frames-than-rows": (_put("logit_lengths", 33), r"`logit_lengths` must be in 1\.\.(5|32), but holds 33"),
    "negative-tokens": (_put("target_lengths", -1), r"`target_lengths` must be in 0\.\.3, but holds -1"),
    "too-many-tokens": (_put("target_lengths", 4), r"`target_lengths` must be in 0\.\.3, but holds 4"),
    "targets-too-narrow": (_change("targets", lambda x: x[:, :2]), r"`target_lengths` must be in 0\.\.2, but holds 3"),
    "targets-concatenated": (_change("targets", torch.flatten), r"`targets` must be \(N, U\), but has shape \(6,\)"),
    "frames-rank": (_change("logit_lengths", lambda x: x[:, None]), r"`logit_lengths` must have shape \(2,\)"),
    "tokens-rank": (_change("target_lengths", lambda x: x[:, None]), r"`target_lengths` must have shape \(2,\)"),
    "bool-lengths": (_change("target_lengths", torch.Tensor.bool), "`target_lengths` must be integer, .* torch.bool"),
    "logits-rank": (_change("logits", lambda x: x[None, None, None]), r"`logits` must be \(N, T, U\+1, V\) or packed"),
    "no-logits": (_change("logits", lambda x: x[..., :0]), "`logits` must be .* none of them 0"),
    "meta-logits": (_change("logits", lambda x: x.to("meta")), "`logits` is on the meta device"),
    "integer-logits": (_change("logits", torch.Tensor.int), "`logits` must be floating-point, but is torch.int32"),
    "reduction": (_change("reduction", "avg"), '`reduction` must be "none", "mean" or "sum", but is "avg"'),
    "inf_is": (_change("inf_is", "nan"), '`inf_is` must be "raise", "inf" or "zero", but is "nan"'),
    "standard-open": (_change("last_arc_is_blank", False), "`last_arc_is_blank=False` .* `one_sym_per_frame=True`"),
}
for _name in ("targets", "logit_lengths", "target_lengths"):
    BAD[f"float-{_name}"] = (_change(_name, torch.Tensor.float), f"`{_name}` must be integer, but is torch.float32")
    BAD[f"meta-{_name}"] = (_change(_name, lambda x: x.to("meta")), f"`{_name}` is on the meta device")
PADDED_BAD = {
    "logits-of-one-utterance": (_change("logits", lambda x: x[:1]), "`logits` hold 1 utterances, .*`logit_lengths` 2"),
    "logits-too-low": (_change("logits", lambda x: x[:, :, :3]), r"`target_lengths` must be in 0\.\.2, but holds 3"),
}
PACKED_BAD = {
    "more-frames-than-packed": (_put("logit_lengths", 7), "= 40 cells, but have 32 rows"),
    "fewer-frames-than-packed": (_put("logit_lengths", 3), "= 24 cells, but have 32 rows"),
    "no-utterance": (_change("targets logit_lengths target_lengths", lambda x: x[:0]), "`targets` must hold an utt"),
    "row-lost": (_change("logits", lambda x: x[1:]), r"sum\(T \* \(U\+1\)\) = 32 cells, but have 31 rows"),
}
FAULTS = [
    pytest.param(PACKINGS[packing], *fault, id=f"{packing}-{case}")
    for packing, faults in {"padded": BAD | PADDED_BAD, "packed": BAD | PACKED_BAD}.items()
    for case, fault in faults.items()
]


@pytest.mark.parametrize(("pack", "spoil", "message"), FAULTS)
def test_bad_argument_is_named(pack, spoil, message, device):
    problem = pack(_problem(device))
    spoil(problem)
    with pytest.raises(ValueError, match=message):
        transducer_loss(**problem)
