"""Triton's kernels: against the plain code (interpreted on the CPU, compiled on a GPU), and through the compiler."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from stateless_transducer.ops.cells import list_cells
from stateless_transducer.ops.kernels import has_triton
from stateless_transducer.ops.lattice import sum_over_paths

triton = pytest.importorskip("triton", reason="Triton is not installed")

SIZES = {"small": ([5, 3, 7, 1], [3, 2, 0, 0]), "not-powers-of-two": ([13, 11], [9, 7]), "no-path": ([3, 2], [5, 2])}


@pytest.mark.parametrize("has_occupations", [True, False], ids=["two-way", "one-way"])
@pytest.mark.parametrize("topology", ["standard", "modified", "modified_open"])
@pytest.mark.parametrize(
    "size", ["small", *(pytest.param(size, marks=pytest.mark.sweep) for size in ("not-powers-of-two", "no-path"))]
)
def test_lattice_kernel_equals_plain_code(size, topology, has_occupations, device):
    lens, token_lens = (torch.tensor(each) for each in SIZES[size])
    cells = list_cells(lens, token_lens, int(lens.max()) + 1, topology, device)
    scores = [torch.randn(len(cells), device=device) - 1 for _ in range(2)]
    plain, ours = (
        sum_over_paths(cells, *scores, has_occupations=has_occupations, has_kernel=has_kernel)
        for has_kernel in (False, True)
    )
    for mine, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-12)


def test_lattice_kernel_keeps_bad_scores_in_their_utterance(device):
    cells = list_cells(torch.tensor([4, 5, 3, 4]), torch.tensor([2, 3, 2, 2]), 5, "standard", device)
    scores = [torch.randn(len(cells), device=device) - 1 for _ in range(2)]
    clean = sum_over_paths(cells, *scores, has_kernel=True)
    for n, bad in enumerate((torch.nan, torch.inf, -torch.inf)):
        scores[0][(cells.n == n) & (cells.u == 0)] = bad
    plain, ours = (sum_over_paths(cells, *scores, has_kernel=has_kernel) for has_kernel in (False, True))
    torch.testing.assert_close(ours.nll, plain.nll, rtol=1e-10, atol=1e-12, equal_nan=True)
    others = cells.n == 3
    for mine, before in zip(ours[1:], clean[1:], strict=True):
        assert (mine[others] == before[others]).all()
        assert mine.isfinite().all()


@pytest.mark.parametrize("sizes", [(5, 7, 6), (70, 130, 40), (130, 67, 33)], ids=str)
def test_joiner_kernels_equal_plain_code(sizes, device):
    from stateless_transducer.ops.joiner_triton import logits_to_gradient_triton_, scores_of_hidden

    (C, V, D), blank = sizes, 2
    hidden, weight = torch.randn(C, D, device=device).tanh(), 0.5 * torch.randn(V, D, device=device)
    bias, tokens = torch.randn(V, device=device), torch.randint(0, V, (C,), device=device)
    scores = scores_of_hidden(hidden, weight, bias, blank, tokens)
    logits = hidden.double() @ weight.double().T + bias.double()
    log_probs = logits.log_softmax(1)
    wanted = log_probs[:, blank], log_probs.gather(1, tokens[:, None])[:, 0], logits.logsumexp(1)
    for mine, truth in zip(scores, wanted, strict=True):
        torch.testing.assert_close(mine.double(), truth, rtol=1e-5, atol=1e-5)

    logits, shares = hidden @ weight.T + bias, torch.rand(2, C, device=device)
    shift = -1 - logits.logsumexp(1)
    gradient = (logits + shift[:, None]).clamp(min=-60).exp()
    gradient[:, blank] -= shares[0]
    gradient.scatter_add_(1, tokens[:, None], -shares[1][:, None])
    ours = logits_to_gradient_triton_(logits, blank, tokens, shift, shares[0], shares[1], -60.0)
    torch.testing.assert_close(ours, gradient)


COMPILE = """
import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from stateless_transducer.ops.joiner_triton import _gradient_kernel, _scores_kernel
from stateless_transducer.ops.lattice_triton import _walk_kernel

POINTERS = {
    "*i64": "first_cell first_row encoder_out_lens token_lens next_tokens",
    "*fp32": "shift blank_share symbol_share blank_scores symbol_scores normalizers",
    "*fp64": "blank symbol alpha beta by_blank by_symbol",
    "i32": "C V D T",
    "*bf16": "hidden weight bias logits",
}
KIND = {name: kind for kind, names in POINTERS.items() for name in names.split()}
CASES = [
    (_walk_kernel, {"IS_STANDARD": True, "LANES": 128}, {}, (1, 4)),
    (_walk_kernel, {"IS_STANDARD": False, "LANES": 128}, {}, (1, 4)),
    (_scores_kernel, {"BLOCK_C": 128, "BLOCK_V": 128, "BLOCK_D": 64, "PRECISION": "ieee"}, {"blank": "i32"}, (3, 8)),
    (_gradient_kernel, {"SMALLEST": -60.0, "BLOCK_V": 4096}, {"blank": "i32"}, (3, 4)),
]
architecture = int(sys.argv[1])
for kernel, constants, kinds, (num_stages, num_warps) in CASES:
    signature = {name: "constexpr" if name in constants else {**KIND, **kinds}[name] for name in kernel.arg_names}
    # as torch's tensors are, and the sizes of models: only then are loads made ahead, which takes memory
    even = [i for i, name in enumerate(kernel.arg_names) if signature[name][0] == "*" or name in ("V", "D")]
    source = ASTSource(kernel, signature, constants, {(i,): [["tt.divisibility", 16]] for i in even})
    options = {"num_stages": num_stages, "num_warps": num_warps}
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    # what an RTX 3090 has is the least
    assert compiled.metadata.shared <= 99 * 1024, (kernel, compiled.metadata.shared)
    assert len(compiled.asm["cubin"]) > 0
    if kernel is _walk_kernel:
        # a barrier for each direction, and no load before it of what is stored behind it
        assert compiled.asm["ptx"].count("bar.sync") == 2
        assert "cp.async" not in compiled.asm["ptx"] and "ld.global.nc" not in compiled.asm["ptx"]
    print(kernel.__name__, architecture)
"""


@pytest.mark.parametrize(
    ("version", "is_new_enough"), [("3.1.0", False), ("3.4.0", True), ("3.11.0+git1", True), ("4.0", True)]
)
def test_tritons_before_those_of_these_tests_are_not_used(monkeypatch, version, is_new_enough):
    monkeypatch.setattr(triton, "__version__", version)
    assert has_triton.__wrapped__() == is_new_enough


@pytest.mark.sweep
@pytest.mark.parametrize("architecture", [80, 90])
def test_kernels_compile(architecture, tmp_path):
    """Down to machine code, without a GPU: what the interpreter lets pass, the compiler may refuse."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    (tmp_path / "compile_kernels.py").write_text(COMPILE)
    run = subprocess.run(
        [sys.executable, tmp_path / "compile_kernels.py", str(architecture)],
        env={**environment, "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.count("_kernel") == 4
