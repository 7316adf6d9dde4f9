from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from oracle import nll_by_enumeration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stateless_transducer import joint_transducer_loss, prune_joiner_inputs, prune_ranges
from stateless_transducer.ops.lattice import lattice_nll
from stateless_transducer.ops.pruned_loss import pruned_transducer_loss, simple_transducer_loss

TOPOLOGIES = {
    "standard": {},
    "modified": {"max_symbols_per_frame": 1},
    "modified_open": {"max_symbols_per_frame": 1, "last_arc_is_blank": False},
}
# (encoder frames, tokens) of each utterance, vocabulary
SHAPES = {
    "no-tokens": ([(3, 0), (1, 0)], 2),
    "one-frame-more": ([(4, 3), (3, 2)], 4),
    "unequal": ([(4, 2), (2, 1), (4, 3), (1, 0)], 5),
    "two-symbols": ([(4, 2), (3, 1)], 2),
}
SMOOTHINGS = {"plain": (0.0, 0.0), "lm": (0.25, 0.0), "am": (0.0, 0.3), "both": (0.25, 0.1), "no-joint": (0.75, 0.25)}
CASES = json.loads((Path(__file__).parents[1] / "golden" / "loss" / "pruned.json").read_text())


def _problem(sizes, vocab_size, device, dtype=torch.float64, scale=1.0):
    """Random arguments of `simple_transducer_loss`, both logits with gradient."""
    N, T, U = len(sizes), max(t for t, _ in sizes), max(u for _, u in sizes)
    lens = torch.tensor(sizes, device=device)
    return {
        "encoder_logits": (scale * torch.randn(N, T, vocab_size, dtype=dtype, device=device)).requires_grad_(),
        "encoder_out_lens": lens[:, 0],
        "decoder_logits": (scale * torch.randn(N, U + 1, vocab_size, dtype=dtype, device=device)).requires_grad_(),
        "tokens": torch.randint(1, vocab_size, (N, U), device=device),
        "token_lens": lens[:, 1],
    }


def _banded(problem, width):
    """Arguments of `pruned_transducer_loss` of the same utterances, for a random band from row 0 to the last."""
    names = "encoder_out_lens", "tokens", "token_lens"
    N, T, V = problem["encoder_logits"].shape
    U = problem["tokens"].shape[1]
    occupation = torch.rand(N, T, U + 1, device=problem["tokens"].device)
    lens = problem["encoder_out_lens"], problem["token_lens"]
    starts, width = prune_ranges(occupation, torch.zeros_like(occupation)[:, :, 1:], *lens, width=width)
    logits = torch.randn(N, T, width, V, dtype=torch.float64, device=starts.device, requires_grad=True)
    return {"logits": logits, "starts": starts, **{name: problem[name] for name in names}}


def _gradients(nll, *leaves):
    return torch.autograd.grad(nll.sum(), leaves)


def _arc_scores(logits, tokens, blank=0):
    """Both arguments of `lattice_nll`."""
    log_probs = logits.log_softmax(-1)
    index = tokens[:, None, :, None].expand(-1, logits.shape[1], -1, 1)
    return log_probs[..., blank], log_probs[:, :, :-1].gather(3, index)[..., 0]


def _by_enumeration(log_probs, problem, topology):
    rows = []
    for n, (t, u) in enumerate(zip(problem["encoder_out_lens"].tolist(), problem["token_lens"].tolist(), strict=True)):
        rows.append(nll_by_enumeration(log_probs[n, :t, : u + 1], problem["tokens"][n, :u].tolist(), topology))
    return torch.stack(rows)


class _Golden:
    """One case of fast_rnnt 1.3 in float64; the joiner of its pruned loss is 3 * tanh of the sum."""

    def __init__(self, case, device):
        N, T, U, V = (case[name] for name in "BTSC")
        self.case, self.device = case, device
        boundary = torch.tensor(case["boundary"], device=device)
        lens = {"encoder_out_lens": boundary[:, 3], "token_lens": boundary[:, 2]}
        self.tokens = {"tokens": torch.tensor(case["symbols"], device=device), **lens}
        self.encoder_logits = self.of("am", N, T, V).requires_grad_()
        self.decoder_logits = self.of("lm", N, U + 1, V).requires_grad_()
        self.is_regular = case["rnnt_type"] == "regular"
        self.topology = TOPOLOGIES["standard" if self.is_regular else "modified_open"]

    def of(self, name, *shape):
        return torch.tensor(self.case[name], dtype=torch.float64, device=self.device).reshape(shape)

    def simple(self):
        scales = {name: self.case[name] for name in ("blank", "lm_only_scale", "am_only_scale")}
        return simple_transducer_loss(
            self.encoder_logits, decoder_logits=self.decoder_logits, **self.tokens, **scales, **self.topology
        )

    def pruned(self, starts, width):
        joiner_inputs = prune_joiner_inputs(self.encoder_logits, self.decoder_logits, starts, width=width)
        logits = 3 * torch.tanh(joiner_inputs[0] + joiner_inputs[1])
        return pruned_transducer_loss(logits, starts, **self.tokens, blank=self.case["blank"], **self.topology)

    def check(self, ours, name):
        # the file has 12 digits
        torch.testing.assert_close(ours, self.of(name, *ours.shape), rtol=1e-11, atol=1e-11)


@pytest.fixture(params=CASES, ids=lambda case: case["name"])
def published(request, device):
    return _Golden(request.param, device)


def test_simple_loss_equals_fast_rnnt(published):
    nll, blank_occupation, symbol_occupation = published.simple()
    published.check(nll, "simple_loss")
    gradients = _gradients(nll, published.encoder_logits, published.decoder_logits)
    for gradient, name in zip(gradients, ("simple_grad_am", "simple_grad_lm"), strict=True):
        published.check(gradient, name)
    published.check(blank_occupation.transpose(1, 2), "py_grad")
    wanted = published.of("px_grad", *published.case["px_grad_shape"])[:, :, : published.case["T"]]
    torch.testing.assert_close(symbol_occupation.transpose(1, 2), wanted, rtol=1e-11, atol=1e-11)


def test_ranges_equal_fast_rnnt(published):
    _, *occupations = published.simple()
    lens = published.tokens["encoder_out_lens"], published.tokens["token_lens"]
    symbols = None if published.is_regular else 1
    ours = prune_ranges(*occupations, *lens, width=published.case["s_range"], max_symbols_per_frame=symbols)
    wanted = torch.tensor(published.case["ranges"], device=published.device)
    assert ours.width == wanted.shape[2]
    assert ours.starts.dtype == torch.int64 and torch.equal(ours.starts, wanted[:, :, 0])


def test_pruned_loss_equals_fast_rnnt(published):
    ranges = torch.tensor(published.case["ranges"], device=published.device)
    nll = published.pruned(ranges[:, :, 0], ranges.shape[2])
    published.check(nll, "pruned_loss")
    gradients = _gradients(nll, published.encoder_logits, published.decoder_logits)
    for gradient, name in zip(gradients, ("pruned_grad_am", "pruned_grad_lm"), strict=True):
        published.check(gradient, name)
    N, T, U = (published.case[name] for name in "BTS")
    published.check(published.pruned(ranges.new_zeros(N, T), U + 1), "unpruned_loss")


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("shape", SHAPES)
def test_simple_loss_and_occupations_equal_dense_sum(shape, topology, device):
    problem = _problem(*SHAPES[shape], device)
    ours = simple_transducer_loss(**problem, **TOPOLOGIES[topology], inf_is="inf")
    leaves = problem["encoder_logits"], problem["decoder_logits"]
    logits = leaves[0][:, :, None] + leaves[1][:, None]
    arcs = _arc_scores(logits, problem["tokens"])
    truth = lattice_nll(*arcs, problem["encoder_out_lens"], problem["token_lens"], topology)
    by_hand = _by_enumeration(logits.log_softmax(-1), problem, topology)
    torch.testing.assert_close(ours.nll, by_hand, rtol=1e-12, atol=1e-12)
    occupations = [-each for each in torch.autograd.grad(truth.sum(), arcs, retain_graph=True)]
    for mine, other in zip(ours[1:], occupations, strict=True):
        assert not mine.requires_grad
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-12)
    for mine, other in zip(_gradients(ours.nll, *leaves), _gradients(truth, *leaves), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
def test_smoothed_loss_equals_its_formula(smoothing, device):
    problem = _problem([(5, 3), (4, 1)], 6, device)
    lm, am = SMOOTHINGS[smoothing]
    leaves = problem["encoder_logits"], problem["decoder_logits"]
    lm_only = leaves[1].log_softmax(-1)
    # four rows of the first utterance, two of the second
    unigram = torch.cat([lm_only[0], lm_only[1, :2]]).exp().mean(0).log()
    logits = leaves[0][:, :, None] + leaves[1][:, None]
    scores = (1 - lm - am) * logits.log_softmax(-1) + lm * lm_only[:, None]
    scores = scores + am * (leaves[0] + unigram).log_softmax(-1)[:, :, None]
    index = problem["tokens"][:, None, :, None].expand(-1, scores.shape[1], -1, 1)
    arcs = scores[..., 0], scores[:, :, :-1].gather(3, index)[..., 0]
    truth = lattice_nll(*arcs, problem["encoder_out_lens"], problem["token_lens"])
    ours = simple_transducer_loss(**problem, lm_only_scale=lm, am_only_scale=am).nll
    torch.testing.assert_close(ours, truth, rtol=1e-12, atol=0)
    for mine, other in zip(_gradients(ours, *leaves), _gradients(truth, *leaves), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_simple_loss_passes_gradcheck(topology, smoothing, device):
    problem = _problem([(3, 2), (2, 1)], 3, device)
    lm, am = SMOOTHINGS[smoothing]

    def nll(encoder_logits, decoder_logits):
        changed = {**problem, "encoder_logits": encoder_logits, "decoder_logits": decoder_logits}
        return simple_transducer_loss(**changed, lm_only_scale=lm, am_only_scale=am, **TOPOLOGIES[topology]).nll

    assert torch.autograd.gradcheck(nll, (problem["encoder_logits"], problem["decoder_logits"]))


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_pruned_loss_passes_gradcheck(topology, device):
    problem = _banded(_problem([(4, 2), (3, 2)], 3, device), width=2)
    logits = problem.pop("logits")
    assert torch.autograd.gradcheck(
        lambda each: pruned_transducer_loss(each, **problem, **TOPOLOGIES[topology], inf_is="zero"), (logits,)
    )


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("shape", SHAPES)
def test_pruned_loss_equals_enumeration_of_paths_in_band(shape, topology, device):
    problem = _banded(_problem(*SHAPES[shape], device), width=2)
    N, T, S, V = problem["logits"].shape
    ours = pruned_transducer_loss(**problem, **TOPOLOGIES[topology], inf_is="inf")
    outside = torch.full((N, T, problem["tokens"].shape[1] + 1, V), -torch.inf, dtype=ours.dtype, device=device)
    rows = problem["starts"][:, :, None] + torch.arange(S, device=device)
    log_probs = outside.scatter(2, rows[..., None].expand(-1, -1, -1, V), problem["logits"].log_softmax(-1))
    truth = _by_enumeration(log_probs, problem, topology)
    torch.testing.assert_close(ours, truth, rtol=1e-12, atol=1e-12)
    possible = truth.isfinite()
    wanted = _gradients(truth[possible], problem["logits"]) if possible.any() else [torch.zeros_like(problem["logits"])]
    torch.testing.assert_close(_gradients(ours, problem["logits"])[0], wanted[0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_band_of_all_rows_equals_full_loss(topology, device):
    lens = {"encoder_out_lens": torch.tensor([7, 5, 6]), "token_lens": torch.tensor([4, 2, 0])}
    tokens = torch.randint(1, 6, (3, 4), device=device)
    sizes = (3, 7, 8), (3, 5, 8), (6, 8), (6,)
    leaves = [torch.randn(size, dtype=torch.float64, device=device, requires_grad=True) for size in sizes]
    encoder_out, decoder_out, weight, bias = leaves
    arguments = {"encoder_out": encoder_out, "decoder_out": decoder_out, "weight": weight, "bias": bias}
    truth = joint_transducer_loss(**arguments, tokens=tokens, **lens, impl="reference", **TOPOLOGIES[topology])
    pruned = prune_joiner_inputs(encoder_out, decoder_out, torch.zeros(3, 7, dtype=torch.int64, device=device), width=5)
    logits = torch.tanh(pruned[0] + pruned[1]) @ weight.T + bias
    # a row behind the last of the lattice may hold anything
    logits = torch.nn.functional.pad(logits, (0, 0, 0, 1), value=torch.nan)
    starts = torch.zeros(3, 7, dtype=torch.int64)
    ours = pruned_transducer_loss(logits, starts, tokens=tokens, **lens, **TOPOLOGIES[topology])
    torch.testing.assert_close(ours, truth, rtol=1e-12, atol=0)
    for mine, other in zip(_gradients(ours, *leaves), _gradients(truth, *leaves), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("symbols", [None, 1])
@pytest.mark.parametrize("width", [1, 2, 4, 30])
def test_ranges_always_leave_a_path(width, symbols, device):
    sizes = [(9, 8), (12, 3), (20, 19), (1, 0), (15, 0), (3, 2)]
    problem = _problem(sizes, 4, device)
    N, T, _ = problem["encoder_logits"].shape
    lens, U = (problem["encoder_out_lens"], problem["token_lens"]), problem["tokens"].shape[1]
    on_blank, on_symbol = torch.rand(N, T, U + 1, device=device), torch.rand(N, T, U, device=device)
    starts, width = prune_ranges(on_blank, on_symbol, *lens, width=width, max_symbols_per_frame=symbols)
    assert (starts[:, 0] == 0).all() and (starts >= 0).all() and (starts + width <= U + 1).all()
    logits = torch.zeros(N, T, width, 4, device=device)
    for topology in ("modified", "modified_open") if symbols else ("standard",):
        arguments = {name: problem[name] for name in ("encoder_out_lens", "tokens", "token_lens")}
        assert pruned_transducer_loss(logits, starts, **arguments, **TOPOLOGIES[topology]).isfinite().all()


def test_width_is_raised_until_all_tokens_fit(device):
    occupation, lens = torch.rand(2, 3, 9, device=device), torch.tensor([[3, 2], [5, 5]])
    ranges = prune_ranges(occupation, occupation[:, :, 1:], *lens, width=1)
    # five tokens in two frames: three and two
    assert ranges.width == 4
    modified = prune_ranges(occupation, occupation[:, :, 1:], *lens, width=1, max_symbols_per_frame=1)
    assert modified.width == 1


def test_prune_gathers_rows_and_views_frames(device):
    encoder_out, decoder_out = torch.randn(1, 3, 4, device=device), torch.randn(1, 5, 4, device=device)
    ours = prune_joiner_inputs(encoder_out, decoder_out, torch.tensor([[0, 2, 3]], device=device), width=2)
    assert ours[0].shape == ours[1].shape == (1, 3, 2, 4)
    assert ours[0].data_ptr() == encoder_out.data_ptr()
    assert torch.equal(ours[0][0, 1, 1], encoder_out[0, 1])
    assert torch.equal(ours[1][0], torch.stack([decoder_out[0, :2], decoder_out[0, 2:4], decoder_out[0, 3:]]))


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_padding_changes_nothing_in_simple_loss(topology, smoothing, device):
    problem = _problem([(5, 3), (7, 2)], 6, device)
    scales = dict(zip(("lm_only_scale", "am_only_scale"), SMOOTHINGS[smoothing], strict=True))
    alone = simple_transducer_loss(**problem, **scales, **TOPOLOGIES[topology])
    names = "encoder_logits", "decoder_logits"
    gradients = _gradients(alone.nll, *(problem[name] for name in names))
    wide = {**problem, "tokens": torch.nn.functional.pad(problem["tokens"], (0, 2), value=99)}
    for name, lens in zip(names, (problem["encoder_out_lens"], problem["token_lens"] + 1), strict=True):
        padded = torch.nn.functional.pad(problem[name].detach(), (0, 0, 0, 2))
        for n, length in enumerate(lens.tolist()):
            padded[n, length:] = torch.nan
        wide[name] = padded.requires_grad_()
    ours = simple_transducer_loss(**wide, **scales, **TOPOLOGIES[topology])
    torch.testing.assert_close(ours.nll, alone.nll, rtol=1e-14, atol=0)
    T, U = problem["encoder_logits"].shape[1], problem["tokens"].shape[1]
    torch.testing.assert_close(ours.blank_occupation[:, :T, : U + 1], alone.blank_occupation, rtol=1e-13, atol=1e-14)
    for mine, other in zip(_gradients(ours.nll, *(wide[name] for name in names)), gradients, strict=True):
        torch.testing.assert_close(mine[:, : other.shape[1]], other, rtol=1e-12, atol=1e-14)
        assert (mine[:, other.shape[1] :] == 0).all()


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_padding_changes_nothing_in_pruned_loss(topology, device):
    problem = _banded(_problem([(5, 3), (7, 2)], 6, device), width=3)
    alone = pruned_transducer_loss(**problem, **TOPOLOGIES[topology], inf_is="zero")
    (wanted,) = _gradients(alone, problem["logits"])
    padded = torch.nn.functional.pad(problem["logits"].detach(), (0, 0, 0, 0, 0, 1), value=torch.nan)
    padded[0, 5:] = torch.nan
    wide = {**problem, "logits": padded.requires_grad_()}
    wide["starts"] = torch.nn.functional.pad(problem["starts"], (0, 1), value=-99)
    wide["tokens"] = torch.nn.functional.pad(problem["tokens"], (0, 2), value=99)
    ours = pruned_transducer_loss(**wide, **TOPOLOGIES[topology], inf_is="zero")
    torch.testing.assert_close(ours, alone, rtol=0, atol=0)
    (gradient,) = _gradients(ours, padded)
    torch.testing.assert_close(gradient[:, :7], wanted, rtol=0, atol=0)
    assert (gradient[:, 7:] == 0).all()


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
@pytest.mark.parametrize("spoilt", ["encoder_logits", "decoder_logits"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_nan_stays_in_its_utterance_of_simple_loss(value, spoilt, smoothing, device):
    problem = _problem([(3, 2), (4, 1)], 4, device)
    with torch.no_grad():
        problem[spoilt][0, 1, 2] = value
    lm, am = SMOOTHINGS[smoothing]
    ours = simple_transducer_loss(**problem, lm_only_scale=lm, am_only_scale=am)
    assert ours.nll[0].isnan() and ours.nll[1].isfinite()
    assert (ours.blank_occupation[0] == 0).all() and (ours.symbol_occupation[0] == 0).all()
    on_encoder, on_decoder = _gradients(ours.nll, problem["encoder_logits"], problem["decoder_logits"])
    assert (on_encoder[0] == 0).all() and on_encoder.isfinite().all() and on_encoder[1].any()
    # the batch's mean decoder distribution has a gradient in the other rows of the utterance
    assert on_decoder.isfinite().all() and (am or (on_decoder[0] == 0).all()) and on_decoder[1].any()


def test_row_with_nan_is_no_part_of_the_mean(device):
    problem = _problem([(3, 2), (4, 1)], 4, device)
    problem["decoder_logits"] = logits = problem["decoder_logits"].detach()
    # as if it were not there: the mean of the others
    logits[0, 1] = logits[[0, 0, 1, 1], [0, 2, 0, 1]].softmax(-1).mean(0).log()
    wanted = simple_transducer_loss(**problem, am_only_scale=0.3).nll[1]
    logits[0, 1, 2] = torch.nan
    ours = simple_transducer_loss(**problem, am_only_scale=0.3).nll[1]
    torch.testing.assert_close(ours, wanted, rtol=1e-13, atol=0)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_nan_stays_in_its_utterance_of_pruned_loss(value, device):
    problem = _banded(_problem([(3, 2), (4, 1)], 4, device), width=2)
    with torch.no_grad():
        problem["logits"][0, 1, 1, 2] = value
    nll = pruned_transducer_loss(**problem)
    assert nll[0].isnan() and nll[1].isfinite()
    (gradient,) = _gradients(nll, problem["logits"])
    assert (gradient[0] == 0).all() and gradient.isfinite().all() and gradient[1].any()


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("smoothing", ["plain", "both"])
def test_simple_loss_of_float32_is_that_of_float64(smoothing, topology, device):
    rounded = _problem([(60, 20), (41, 13)], 50, device, dtype=torch.float32, scale=3.0)
    names = "encoder_logits", "decoder_logits"
    exact = {**rounded, **{name: rounded[name].detach().double().requires_grad_() for name in names}}
    scales = dict(zip(("lm_only_scale", "am_only_scale"), SMOOTHINGS[smoothing], strict=True))
    ours, truth = (simple_transducer_loss(**each, **scales, **TOPOLOGIES[topology]).nll for each in (rounded, exact))
    torch.testing.assert_close(ours, truth, rtol=1e-12, atol=0)
    for name, mine in zip(names, _gradients(ours, *(rounded[name] for name in names)), strict=True):
        (other,) = torch.autograd.grad(truth.sum(), exact[name], retain_graph=True)
        assert (mine - other).norm() <= 1e-6 * other.norm()


@pytest.mark.parametrize("gap", [90.0, 500.0])
def test_simple_loss_is_exact_where_float32_exponentials_underflow(gap, device):
    """The encoder is sure of one token, the decoder of another."""
    problem = _problem([(4, 2)], 3, device, dtype=torch.float32)
    with torch.no_grad():
        problem["encoder_logits"][..., 0] += gap
        problem["decoder_logits"][..., 1] += gap
    logits = (problem["encoder_logits"][:, :, None].double() + problem["decoder_logits"][:, None]).detach()
    truth = lattice_nll(*_arc_scores(logits, problem["tokens"]), problem["encoder_out_lens"], problem["token_lens"])
    torch.testing.assert_close(simple_transducer_loss(**problem).nll, truth, rtol=1e-6, atol=0)


def test_simple_loss_of_huge_logits_is_finite(device):
    problem = _problem([(4, 2), (3, 1)], 3, device, dtype=torch.float32, scale=1e5)
    nll = simple_transducer_loss(**problem, lm_only_scale=0.25, am_only_scale=0.25).nll
    gradients = _gradients(nll, problem["encoder_logits"], problem["decoder_logits"])
    assert all(each.isfinite().all() for each in (nll, *gradients))


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.bfloat16, 4e-3)])
def test_pruned_loss_rounds_only_its_gradient(dtype, tolerance, device):
    """Log-sums in float32 at least: what is left is the rounding of the gradient to its dtype."""
    problem = _banded(_problem([(60, 20), (41, 13)], 50, device), width=4)
    rounded = problem["logits"].detach().to(dtype).requires_grad_()
    exact = rounded.detach().double().requires_grad_()
    nlls = [pruned_transducer_loss(**{**problem, "logits": each}) for each in (rounded, exact)]
    torch.testing.assert_close(*nlls, rtol=1e-6, atol=0)
    (mine,), (other,) = _gradients(nlls[0], rounded), _gradients(nlls[1], exact)
    assert mine.dtype == dtype and (mine - other).norm() <= tolerance * other.norm()


def test_autocast_changes_nothing(device):
    problem = _problem([(20, 6)], 30, device, dtype=torch.float32)
    banded = _banded(problem, width=3)
    wanted = simple_transducer_loss(**problem, am_only_scale=0.1).nll, pruned_transducer_loss(**banded)
    with torch.autocast(device.type, torch.bfloat16):
        ours = simple_transducer_loss(**problem, am_only_scale=0.1).nll, pruned_transducer_loss(**banded)
    torch.testing.assert_close(ours, wanted, rtol=0, atol=0)


class _LargestTensor(TorchDispatchMode):
    """Elements of the largest tensor that any operation returns."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        sizes = [each.numel() for each in tree_leaves(out) if isinstance(each, torch.Tensor)]
        self.numel = max([self.numel, *sizes])
        return out


def test_simple_loss_holds_nothing_larger_than_its_input(device):
    problem = _problem([(30, 10), (20, 9)], 200, device)
    with _LargestTensor() as largest:
        nll = simple_transducer_loss(**problem, lm_only_scale=0.25, am_only_scale=0.1).nll
        _gradients(nll, problem["encoder_logits"], problem["decoder_logits"])
    assert largest.numel == problem["encoder_logits"].numel()


def test_impossible_utterance_is_infinite_with_zero_gradient(device):
    problem = _problem([(2, 2), (3, 1)], 3, device)
    modified = TOPOLOGIES["modified"]
    ours = simple_transducer_loss(**problem, **modified, am_only_scale=0.1, inf_is="inf")
    assert ours.nll[0] == torch.inf and ours.nll[1].isfinite() and (ours.blank_occupation[0] == 0).all()
    (gradient,) = _gradients(ours.nll, problem["encoder_logits"])
    assert (gradient[0] == 0).all() and gradient[1].any()
    banded = _banded(problem, width=3)
    nll = pruned_transducer_loss(**banded, **modified, inf_is="zero")
    assert nll[0] == 0 and nll[1] > 0
    (gradient,) = _gradients(nll, banded["logits"])
    assert (gradient[0] == 0).all() and gradient[1].any()


def test_band_without_a_path_is_infinite_with_zero_gradient(device):
    problem = _banded(_problem([(3, 2)], 3, device), width=2)
    problem["starts"] = torch.tensor([[1, 1, 1]], device=device)
    nll = pruned_transducer_loss(**problem)
    assert nll[0] == torch.inf and (_gradients(nll, problem["logits"])[0] == 0).all()


def test_second_derivative_is_refused(device):
    problem = _problem([(3, 1)], 3, device)
    with pytest.raises(RuntimeError, match="differentiable once"):
        nll = simple_transducer_loss(**problem).nll
        torch.autograd.grad(nll.sum(), problem["encoder_logits"], create_graph=True)
    banded = _banded(problem, width=2)
    with pytest.raises(RuntimeError, match="differentiable once"):
        torch.autograd.grad(pruned_transducer_loss(**banded).sum(), banded["logits"], create_graph=True)


BAD = {
    "simple-rank": ({"encoder_logits": torch.zeros(2, 4)}, r"`encoder_logits` must be \(N, T, V\)"),
    "simple-rows": ({"decoder_logits": torch.zeros(2, 2, 5)}, r"`decoder_logits` must have shape \(2, 3, 5\), but has"),
    "simple-dtype": ({"decoder_logits": torch.zeros(2, 3, 5).long()}, "`decoder_logits` must be floating-point"),
    "simple-lm": ({"lm_only_scale": -0.1}, r"`lm_only_scale` must be in 0\.\.1, but is -0\.1"),
    "simple-scales": ({"lm_only_scale": 0.6, "am_only_scale": 0.6}, "`lm_only_scale` .* at most 1, but is 0.6 . 0.6"),
    "simple-length": ({"encoder_out_lens": torch.tensor([4, 9])}, r"`encoder_out_lens` must be in 1\.\.4, .* 9"),
    "simple-token": ({"tokens": torch.tensor([[1, 0], [1, 1]])}, r"`tokens` must not contain the blank \(0\)"),
    "simple-path": (
        {"encoder_out_lens": torch.tensor([4, 2]), "max_symbols_per_frame": 1},
        r"utterance 1 \(T=2, U=2\)",
    ),
    "pruned-rank": ({"logits": torch.zeros(2, 4, 5)}, r"`logits` must be \(N, T, S, V\)"),
    "pruned-starts": ({"starts": torch.full((2, 4), 3)}, r"`starts` must be in 0\.\.2, but holds 3"),
    "pruned-float": ({"starts": torch.zeros(2, 4)}, "`starts` must be integer"),
    "pruned-frames": ({"starts": torch.zeros(2, 3).long()}, r"`starts` must have shape \(2, 4\), but has \(2, 3\)"),
    "pruned-blank": ({"blank": 5}, r"`blank` must be in -5\.\.4, but is 5"),
    "ranges-width": ({"width": 0}, "`width` must be at least 1, but is 0"),
    "ranges-symbols": ({"symbol_occupation": torch.zeros(2, 4, 3)}, r"`symbol_occupation` must have shape \(2, 4, 2\)"),
    "ranges-two": ({"max_symbols_per_frame": 2}, "`max_symbols_per_frame` must be None or 1, but is 2"),
    "prune-width": ({"width": 4}, r"`width` must be in 1\.\.3, but is 4"),
    "prune-starts": ({"starts": torch.full((2, 4), 2)}, r"`starts` must be in 0\.\.1, but holds 2"),
    "prune-rank": ({"decoder_out": torch.zeros(3, 5)}, r"`decoder_out` must be \(N, U\+1, D\)"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_argument_is_named(case):
    simple = _problem([(4, 2), (3, 2)], 5, torch.device("cpu"))
    banded, lens = _banded(simple, width=2), {name: simple[name] for name in ("encoder_out_lens", "token_lens")}
    occupations = {"blank_occupation": torch.zeros(2, 4, 3), "symbol_occupation": torch.zeros(2, 4, 2)}
    outs = {"encoder_out": torch.zeros(2, 4, 5), "decoder_out": torch.zeros(2, 3, 5), "starts": banded["starts"]}
    function, arguments = {
        "simple": (simple_transducer_loss, simple),
        "pruned": (pruned_transducer_loss, banded),
        "ranges": (prune_ranges, {**occupations, **lens, "width": 2}),
        "prune": (prune_joiner_inputs, {**outs, "width": 2}),
    }[case.split("-")[0]]
    with pytest.raises(ValueError, match=BAD[case][1]):
        function(**{**arguments, **BAD[case][0]})
