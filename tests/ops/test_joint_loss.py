from __future__ import annotations

import pytest
import torch
from oracle import nll_by_enumeration

from stateless_transducer.ops import joiner_scores, joint_loss, logit_scores
from stateless_transducer.ops.joint_loss import joint_transducer_loss

# (encoder frames, tokens) of each utterance, vocabulary
SHAPES = {
    "one-frame": ([(1, 0), (1, 1)], 3),
    "no-tokens": ([(3, 0), (4, 0)], 2),
    "as-many-frames-as-tokens": ([(3, 3), (2, 2)], 4),
    "one-frame-more": ([(4, 3), (3, 2)], 3),
    "unequal": ([(4, 2), (2, 1), (3, 3), (1, 0)], 5),
    "two-symbols": ([(4, 4), (3, 1)], 2),
}
TOPOLOGIES = {
    "standard": {},
    "modified": {"max_symbols_per_frame": 1},
    "modified_open": {"max_symbols_per_frame": 1, "last_arc_is_blank": False},
}
EXACT = {
    "reference": {"impl": "reference"},
    "chunked": {"impl": "chunked", "skip_below": 0.0},
    "triton": {"impl": "triton", "skip_below": 0.0},
}
# kernels are slow where they are interpreted
FEW_INTERPRETED = [
    pytest.param(impl, topology, marks=pytest.mark.sweep if impl == "triton" else ())
    for impl in EXACT
    for topology in TOPOLOGIES
]


def _problem(sizes, vocab_size, device, dtype=torch.float64, width=6):
    """Random arguments of `joint_transducer_loss`, all floats with gradient."""
    N, T, U = len(sizes), max(t for t, _ in sizes), max(u for _, u in sizes)

    def floats(*shape):
        return torch.randn(*shape, dtype=dtype, device=device, requires_grad=True)

    tokens = torch.randint(1, vocab_size, (N, U), device=device)
    lens = torch.tensor(sizes, device=device)
    return {
        "encoder_out": floats(N, T, width),
        "encoder_out_lens": lens[:, 0],
        "decoder_out": floats(N, U + 1, width),
        "tokens": tokens,
        "token_lens": lens[:, 1],
        "weight": floats(vocab_size, width),
        "bias": floats(vocab_size),
    }


def _by_enumeration(problem, topology, blank=0):
    hidden = torch.tanh(problem["encoder_out"][:, :, None] + problem["decoder_out"][:, None])
    log_probs = (hidden @ problem["weight"].T + problem["bias"]).log_softmax(-1)
    rows = []
    for n, (t, u) in enumerate(zip(problem["encoder_out_lens"].tolist(), problem["token_lens"].tolist(), strict=True)):
        rows.append(nll_by_enumeration(log_probs[n, :t, : u + 1], problem["tokens"][n, :u].tolist(), topology, blank))
    return torch.stack(rows)


def _require(impl):
    if impl == "triton":
        pytest.importorskip("triton", reason="Triton is not installed")


def _gradients(nll, problem):
    leaves = [value for value in problem.values() if value.requires_grad]
    return torch.autograd.grad(nll[nll.isfinite()].sum(), leaves)


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("impl", EXACT)
def test_loss_and_gradients_equal_enumeration_of_paths(impl, shape, topology, device):
    _require(impl)
    problem = _problem(*SHAPES[shape], device)
    ours = joint_transducer_loss(**problem, **TOPOLOGIES[topology], **EXACT[impl], inf_is="inf")
    truth = _by_enumeration(problem, topology)
    torch.testing.assert_close(ours, truth, rtol=1e-12, atol=1e-12)
    if not truth.requires_grad:  # no utterance has a path
        assert all((gradient == 0).all() for gradient in _gradients(ours, problem))
        return
    for mine, other in zip(_gradients(ours, problem), _gradients(truth, problem), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("impl", EXACT)
def test_no_bias_is_a_bias_of_zeros(impl, device):
    _require(impl)
    with_zeros = _problem([(4, 2), (3, 2)], 4, device)
    with_zeros["bias"] = torch.zeros_like(with_zeros["bias"])
    without = {name: value for name, value in with_zeros.items() if name != "bias"}
    wanted = joint_transducer_loss(**with_zeros, **EXACT[impl])
    wanted_gradients = _gradients(wanted, with_zeros)
    for given in (without, {**without, "bias": None}):
        ours = joint_transducer_loss(**given, **EXACT[impl])
        torch.testing.assert_close(ours, wanted, rtol=0, atol=0)
        for mine, other in zip(_gradients(ours, without), wanted_gradients, strict=True):
            torch.testing.assert_close(mine, other, rtol=0, atol=0)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_loss_with_another_blank_equals_enumeration(topology, device):
    problem = _problem([(4, 2), (3, 2)], 4, device)
    problem["tokens"] = torch.randint(0, 3, problem["tokens"].shape, device=device)
    ours = joint_transducer_loss(**problem, blank=3, **TOPOLOGIES[topology])
    truth = _by_enumeration(problem, topology, blank=3)
    torch.testing.assert_close(ours, truth, rtol=1e-12, atol=1e-12)


def test_loss_without_path_is_infinite_with_zero_gradient(device):
    problem = _problem([(2, 2), (3, 1)], 3, device)
    ours = joint_transducer_loss(**problem, max_symbols_per_frame=1, inf_is="inf")
    assert ours[0] == torch.inf and ours[1].isfinite()
    (gradient,) = torch.autograd.grad(ours.sum(), problem["encoder_out"])
    assert gradient.isfinite().all() and (gradient[0] == 0).all() and (gradient[1] != 0).any()


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_padding_changes_nothing(topology, device):
    problem = _problem([(5, 3), (7, 2)], 6, device)
    alone = joint_transducer_loss(**problem, **TOPOLOGIES[topology])
    wide = dict(problem)
    for name, axes in (("encoder_out", (0, 0, 0, 3)), ("decoder_out", (0, 0, 0, 2))):
        wide[name] = torch.nn.functional.pad(problem[name].detach(), axes, value=float("nan"))
    wide["tokens"] = torch.nn.functional.pad(problem["tokens"], (0, 2), value=1)
    padded = joint_transducer_loss(**wide, **TOPOLOGIES[topology])
    torch.testing.assert_close(padded, alone, rtol=0, atol=0)


def test_nan_stays_in_its_utterance(device):
    problem = _problem([(3, 2), (4, 1)], 4, device)
    problem["encoder_out"] = problem["encoder_out"].detach()
    problem["encoder_out"][0, 1] = torch.nan
    nll = joint_transducer_loss(**problem)
    assert nll[0].isnan() and nll[1].isfinite()


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_float32_error_is_that_of_its_inputs(topology, device):
    """The lattice in float64 adds nothing: what is left is the rounding of float32 logits."""
    exact = _problem([(60, 20), (41, 13)], 50, device, width=32)
    rounded = {k: v.detach().float().requires_grad_() if v.is_floating_point() else v for k, v in exact.items()}
    for name, value in rounded.items():
        if value.is_floating_point():
            exact[name] = value.detach().double().requires_grad_()
    truth = joint_transducer_loss(**exact, **TOPOLOGIES[topology])
    ours = joint_transducer_loss(**rounded, **TOPOLOGIES[topology])
    torch.testing.assert_close(ours, truth, rtol=1e-6, atol=0)
    for mine, other in zip(_gradients(ours, rounded), _gradients(truth, exact), strict=True):
        assert (mine - other).norm() <= 1e-5 * other.norm()


@pytest.mark.parametrize(("impl", "topology"), FEW_INTERPRETED)
def test_float32_implementations_agree(impl, topology, device):
    """Against float64, gradients within 1e-5, with cells skipped as by default."""
    _require(impl)
    sizes = [(13, 6), (11, 7)] if impl == "triton" and device.type == "cpu" else [(130, 40), (97, 51), (60, 0)]
    exact = _problem(sizes, 70, device, width=24)
    problem = {k: v.detach().float().requires_grad_() if v.is_floating_point() else v for k, v in exact.items()}
    exact = {k: v.detach().double().requires_grad_() if v.is_floating_point() else v for k, v in problem.items()}
    truth = joint_transducer_loss(**exact, **TOPOLOGIES[topology], impl="reference")
    ours = joint_transducer_loss(**problem, **TOPOLOGIES[topology], impl=impl)
    torch.testing.assert_close(ours, truth, rtol=1e-6, atol=0)
    for mine, other in zip(_gradients(ours, problem), _gradients(truth, exact), strict=True):
        assert (mine - other).norm() <= 1e-5 * other.norm()


def test_skipping_leaves_out_little(device):
    """A larger bound leaves out more cells, and the error of the gradient stays below the bound's share of cells."""
    problem = _problem([(80, 20), (60, 25)], 30, device, width=16)
    exact = _gradients(joint_transducer_loss(**problem, skip_below=0.0), problem)
    errors = []
    for bound in (1e-9, 1e-6, 1e-3):
        ours = _gradients(joint_transducer_loss(**problem, skip_below=bound), problem)
        errors.append(max(((a - b).norm() / b.norm()).item() for a, b in zip(ours, exact, strict=True)))
    assert 0 < errors[0] < errors[1] < errors[2]
    assert errors[1] < 1e-5


def test_chunks_make_no_difference(device, monkeypatch):
    problem = _problem([(40, 20), (30, 13)], 9, device)
    wanted = _gradients(joint_transducer_loss(**problem, skip_below=0.0), problem)
    cut = logit_scores.chunks

    def small(num_cells, *_):
        return (slice(start, start + 37) for start in range(0, num_cells, 37))

    monkeypatch.setattr(joiner_scores, "chunks", small)
    assert cut is not joiner_scores.chunks
    found = _gradients(joint_transducer_loss(**problem, skip_below=0.0), problem)
    for mine, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(("impl", "topology"), FEW_INTERPRETED)
def test_full_band_changes_nothing_and_a_narrow_one_keeps_fewer_paths(impl, topology, device):
    _require(impl)
    problem = _problem([(7, 3), (6, 2)], 5, device)
    options = {**TOPOLOGIES[topology], **EXACT[impl]}
    wanted = joint_transducer_loss(**problem, **options)
    starts = torch.zeros(2, 7, dtype=torch.int64, device=device)
    torch.testing.assert_close(joint_transducer_loss(**problem, **options, band=(starts, 4)), wanted)
    starts[:, 2:], starts[:, 4:] = 1, 2
    narrow = joint_transducer_loss(**problem, **options, band=(starts, 2))
    reference = joint_transducer_loss(**problem, **TOPOLOGIES[topology], impl="reference", band=(starts, 2))
    assert (narrow > wanted).all() and narrow.isfinite().all()
    torch.testing.assert_close(narrow, reference)


@pytest.mark.parametrize(("impl", "topology"), FEW_INTERPRETED)
def test_band_without_the_first_cell_has_no_path(impl, topology, device):
    _require(impl)
    problem = _problem([(6, 3), (6, 2)], 5, device)
    starts = torch.tensor([[1] * 6, [0] * 6], device=device)
    nll = joint_transducer_loss(**problem, **TOPOLOGIES[topology], **EXACT[impl], band=(starts, 3))
    assert nll[0] == torch.inf and nll[1].isfinite()


def test_narrow_lengths_do_not_wrap(device):
    problem = _problem([(100, 127)], 3, device)
    problem["token_lens"], problem["encoder_out_lens"] = torch.tensor([127], dtype=torch.int8), torch.tensor([100])
    with pytest.raises(ValueError, match="T=100, U=127"):
        joint_transducer_loss(**problem, max_symbols_per_frame=1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("impl", ["reference", "chunked"])
def test_autocast_keeps_log_sums_in_float32(impl, dtype, device):
    problem = _problem([(20, 6), (14, 3)], 30, device, dtype=torch.float32, width=16)
    plain = joint_transducer_loss(**problem)
    with torch.autocast(device.type, dtype):
        mixed = joint_transducer_loss(**problem, impl=impl)
    assert mixed.dtype == torch.float64
    # bfloat16 rounds each logit to 8 bits; over 26 arcs the errors average out
    torch.testing.assert_close(mixed, plain, rtol=2e-2, atol=0)
    for mine, other in zip(_gradients(mixed, problem), _gradients(plain, problem), strict=True):
        assert mine.dtype == torch.float32
        assert (mine - other).norm() <= 5e-2 * other.norm()


def test_half_precision_is_multiplied_as_it_is(monkeypatch, device):
    """As on a CPU that has instructions for it, or a GPU: the matrix products see bfloat16, the sums float32."""
    monkeypatch.setattr(joint_loss, "_is_emulated", lambda *_: False)
    problem = _problem([(20, 6), (14, 3)], 30, device, dtype=torch.float32, width=16)
    plain = joint_transducer_loss(**problem)
    wanted = _gradients(plain, problem)
    seen, linear = [], torch.nn.functional.linear
    monkeypatch.setattr(torch.nn.functional, "linear", lambda *args: seen.append(args[1].dtype) or linear(*args))
    with torch.autocast(device.type, torch.bfloat16):
        mixed = joint_transducer_loss(**problem, impl="chunked")
    found = _gradients(mixed, problem)
    assert set(seen) == {torch.bfloat16}
    torch.testing.assert_close(mixed, plain, rtol=2e-2, atol=0)
    assert all((mine - other).norm() <= 5e-2 * other.norm() for mine, other in zip(found, wanted, strict=True))


# torch's own compiler looks at .grad of tensors that are no leaves
@pytest.mark.sweep
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_torch_compile_around_the_loss(device):
    problem = _problem([(9, 3), (6, 2)], 5, device)
    wanted = joint_transducer_loss(**problem).sum()

    def step(encoder_out, rest):
        return joint_transducer_loss(encoder_out * 1.0, **rest).sum()

    rest = {key: value for key, value in problem.items() if key != "encoder_out"}
    found = torch.compile(step, backend="aot_eager")(problem["encoder_out"], rest)
    torch.testing.assert_close(found, wanted)
    for mine, other in zip(
        torch.autograd.grad(found, problem["encoder_out"]),
        torch.autograd.grad(wanted, problem["encoder_out"]),
        strict=True,
    ):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_around_the_loss(use_reentrant, device):
    problem = _problem([(9, 3), (6, 2)], 5, device)
    wanted = _gradients(joint_transducer_loss(**problem), problem)

    def step(*values):
        return joint_transducer_loss(**dict(zip(problem, values, strict=True)))

    nll = torch.utils.checkpoint.checkpoint(step, *problem.values(), use_reentrant=use_reentrant)
    nll.sum().backward()
    found = [value.grad for value in problem.values() if value.requires_grad]
    for mine, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, other)


def test_lengths_may_stay_on_the_cpu(device):
    problem = _problem([(9, 3), (6, 2)], 5, device)
    wanted = joint_transducer_loss(**problem)
    for name in ("encoder_out_lens", "token_lens", "tokens"):
        problem[name] = problem[name].cpu().int()
    torch.testing.assert_close(joint_transducer_loss(**problem), wanted)


def test_nothing_is_kept_without_gradient(device):
    problem = _problem([(9, 3), (6, 2)], 5, device)
    wanted = joint_transducer_loss(**problem)
    with torch.no_grad():
        found = joint_transducer_loss(**problem)
    assert not found.requires_grad
    torch.testing.assert_close(found, wanted)


def test_second_derivative_is_refused(device):
    problem = _problem([(3, 1)], 3, device)
    with pytest.raises(RuntimeError, match="differentiable once"):
        torch.autograd.grad(joint_transducer_loss(**problem).sum(), problem["bias"], create_graph=True)


def test_unwritten_memory_is_not_read(monkeypatch, device):
    problem = _problem([(4, 2), (2, 1)], 3, device)
    wanted = joint_transducer_loss(**problem)
    real = torch.empty

    def poisoned(*args, **kwargs):
        made = real(*args, **kwargs)
        return made.fill_(torch.nan) if made.is_floating_point() else made

    monkeypatch.setattr(torch, "empty", poisoned)
    torch.testing.assert_close(joint_transducer_loss(**problem), wanted, rtol=0, atol=0)


BAD = {
    "encoder_out-rank": (lambda p: p.update(encoder_out=p["encoder_out"][0]), r"`encoder_out` must be \(N, T, D\)"),
    "tokens-rank": (lambda p: p.update(tokens=p["tokens"][0]), r"`tokens` must be \(N, U\)"),
    "decoder_out-rows": (
        lambda p: p.update(decoder_out=p["decoder_out"][:, 1:]),
        r"`decoder_out` must have shape \(2, 3, 6\), but has \(2, 2, 6\)",
    ),
    "too-many-frames": (lambda p: p["encoder_out_lens"].__setitem__(0, 9), r"`encoder_out_lens` must be in 1..4, .* 9"),
    "no-frame": (lambda p: p["encoder_out_lens"].__setitem__(0, 0), r"`encoder_out_lens` must be in 1..4, .* 0"),
    "too-many-tokens": (lambda p: p["token_lens"].__setitem__(1, 3), r"`token_lens` must be in 0..2, .* 3"),
    "token-outside": (lambda p: p["tokens"].__setitem__((0, 0), 5), r"`tokens` must be in 0..4, .* 5"),
    "blank-among-tokens": (lambda p: p["tokens"].__setitem__((0, 1), 0), r"`tokens` must not contain the blank \(0\)"),
    "blank-outside": (lambda p: p.update(blank=5), r"`blank` must be in -5..4, but is 5"),
    "float-lengths": (lambda p: p.update(token_lens=p["token_lens"].float()), "`token_lens` must be integer"),
    "two-symbols": (lambda p: p.update(max_symbols_per_frame=2), "`max_symbols_per_frame` must be None or 1, but is 2"),
    "meta-device": (
        lambda p: p.update(weight=p["weight"].to("meta")),
        "`weight` is on the meta device and holds no numbers",
    ),
    "integer-weights": (
        lambda p: p.update(weight=p["weight"].long()),
        "`weight` must be floating-point, but is torch.int64",
    ),
    "k2-standard": (lambda p: p.update(last_arc_is_blank=False), "is for the modified transducer only"),
    "list": (lambda p: p.update(token_lens=[2, 2]), r"`token_lens` must be a tensor of shape \(2,\), but is a list"),
    "inf-is": (lambda p: p.update(inf_is="nan"), '`inf_is` must be "raise", "inf" or "zero", but is "nan"'),
    "skip-below": (lambda p: p.update(skip_below=1.5), "`skip_below` must be in 0..1, but is 1.5"),
    "band-shape": (lambda p: p.update(band=(torch.zeros(2, 3), 2)), r"`band\[0\]` must have shape \(2, 4\)"),
    "band-dtype": (lambda p: p.update(band=(torch.zeros(2, 4), 2)), r"`band\[0\]` must be integer"),
    "band-width": (lambda p: p.update(band=(torch.zeros(2, 4).long(), 0)), r"`band\[1\]` must be at least 1, but is 0"),
    "few-frames": (
        lambda p: p.update(
            max_symbols_per_frame=1, token_lens=torch.tensor([2, 2]), encoder_out_lens=torch.tensor([4, 2])
        ),
        r"needs T - 1 >= U, which does not hold for utterance 1 \(T=2, U=2\)",
    ),
    "implementation": (lambda p: p.update(impl="magic"), '`impl` must be .* but is "magic"'),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_argument_is_named(case, device):
    problem = _problem([(4, 2), (3, 2)], 5, device)
    spoil, message = BAD[case]
    spoil(problem)
    with pytest.raises(ValueError, match=message):
        joint_transducer_loss(**problem)


def test_padding_tokens_may_be_anything(device):
    problem = _problem([(4, 2), (3, 1)], 5, device)
    wanted = joint_transducer_loss(**problem)
    problem["tokens"][1, 1] = 0
    torch.testing.assert_close(joint_transducer_loss(**problem), wanted, rtol=0, atol=0)


def test_processor_that_torch_says_nothing_of_multiplies_in_float32(monkeypatch):
    """The query is private to torch, and may disappear."""
    monkeypatch.setattr(torch.ops, "mkldnn", object())
    assert joint_loss._is_emulated(torch.bfloat16) and joint_loss._is_emulated(torch.float16)
    assert not joint_loss._is_emulated(torch.float32) and not joint_loss._is_emulated(torch.float64)
