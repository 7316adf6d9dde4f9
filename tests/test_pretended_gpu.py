"""Training, losses and searches by a GPU's rules, on a machine that has none: see `pretended_gpu`."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from model_sizes import conformer_model
from pretended_gpu import GPU, GpuTensor, pretended_gpu
from small_corpus import write_small_corpus
from tiny_talker import say

from stateless_transducer import Recognizer
from stateless_transducer.cli import main
from stateless_transducer.data.batches import Batch, Update
from stateless_transducer.decoding.alignment import align
from stateless_transducer.decoding.beam import beam_search
from stateless_transducer.decoding.config import SearchConfig
from stateless_transducer.decoding.fusion import Hotwords
from stateless_transducer.decoding.greedy import greedy_search
from stateless_transducer.decoding.modified_beam import modified_beam_search
from stateless_transducer.decoding.options import LogitOptions
from stateless_transducer.model.frozen import FrozenTransducer
from stateless_transducer.model.transducer import build_model
from stateless_transducer.ops import kernels
from stateless_transducer.ops.joint_loss import joint_transducer_loss
from stateless_transducer.ops.transducer_loss import transducer_loss
from stateless_transducer.training.config import OptimConfig, PruneConfig, TrainConfig
from stateless_transducer.training.distributed import Rank
from stateless_transducer.training.learner import Learner
from stateless_transducer.training.objective import TransducerObjective

CPU = torch.device("cpu")
SIZES = conformer_model(
    vocab_size=9, num_layers=1, attention_dim=16, num_heads=2, feedforward_dim=16, joiner_dim=16, dropout=0
)
ADAMW = OptimConfig(optimizer="adamw", warm_step=1)


@pytest.fixture(autouse=True)
def no_other_device(device):
    if device.type != "cpu":
        pytest.skip("a GPU is there: the other tests run on it")


def test_pretended_gpu_refuses_what_a_gpu_refuses():
    with pretended_gpu():
        here, there = torch.ones(3), torch.ones(3, device="cuda:0")
        assert isinstance(there, GpuTensor)
        assert there.device == GPU
        for mixed in (
            lambda: here + there,
            lambda: there.index_select(0, torch.tensor([1])),
            lambda: here[there.long()],
        ):
            with pytest.raises(RuntimeError, match="same device"):
                mixed()
        with pytest.raises(TypeError):
            there.numpy()
        assert (there + torch.tensor(1.0)).tolist() == [2, 2, 2]


def test_pretended_gpu_notes_who_waits():
    with pretended_gpu() as gpu:
        x = torch.ones(3).to("cuda:0", non_blocking=True)
        y = x * 2 + x.new_zeros(3)
        assert not gpu.waits
        for wait in (y.sum().item, y.cpu, y.nonzero, y.tolist, lambda: y[y > 1], lambda: bool((y > 1).all())):
            gpu.waits.clear()
            wait()
            assert len(gpu.waits) == 1


def test_pretended_gpu_differentiates():
    x = torch.randn(4, 3)
    with pretended_gpu():
        there = x.to("cuda:0").requires_grad_()
        (there.tanh() @ there.T).sum().backward()
        found = there.grad.cpu()
    x.requires_grad_()
    (x.tanh() @ x.T).sum().backward()
    torch.testing.assert_close(found, x.grad)


def _batch(lens, tokens):
    said = torch.randint(1, 9, (len(tokens), max(tokens)))
    ids = tuple(f"u{n}" for n in range(len(lens)))
    return Batch(torch.randn(len(lens), max(lens), 80), torch.tensor(lens), said, torch.tensor(tokens), ids, ids, 0.01)


@pytest.fixture
def update():
    batches = [_batch([40, 35], [4, 3]), _batch([35, 25, 25], [3, 2, 1])]
    return Update(batches, sum(each.seconds for each in batches), 13)


def _learner(device, optim, prune, *, precision="fp32", recompute=False):
    torch.manual_seed(0)
    config = TrainConfig(optim=optim, prune=prune, precision=precision)
    objective = TransducerObjective(build_model(SIZES), config)
    objective.model.encoder.recompute_stages = recompute
    return Learner(objective.to(device), config, Rank(0, 1, device))


def _learn(learner, update, *, num_steps=2):
    return [learner.learn(update, step=step, epoch=0, done=0.0) for step in range(1, num_steps + 1)]


LEARNERS = {
    "noam": (OptimConfig(lr_factor=2.0, warm_step=20), PruneConfig(), {}),
    "adamw": (ADAMW, PruneConfig(), {}),
    "modified": (replace(ADAMW, modified_transducer_prob=1.0), PruneConfig(), {}),
    "ctc": (replace(ADAMW, ctc_loss_scale=0.5), PruneConfig(), {}),
    "pruned": (ADAMW, PruneConfig(prune_range=2, am_scale=0.1), {}),
    "running-mean": (replace(ADAMW, ema_decay=0.9), PruneConfig(), {}),
    "recomputed": (ADAMW, PruneConfig(), {"recompute": True}),
}


QUICK_LEARNERS = ("adamw", "pruned")


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind in QUICK_LEARNERS else pytest.mark.sweep) for kind in LEARNERS]
)
def test_updates_are_the_cpus(kind, update):
    optim, prune, options = LEARNERS[kind]
    wanted = _learn(_learner(CPU, optim, prune, **options), update)
    with pretended_gpu():
        found = _learn(_learner(GPU, optim, prune, **options), update)
    for mine, other in zip(found, wanted, strict=True):
        assert not mine.is_skipped
        assert (mine.total, mine.grad_norm) == pytest.approx((other.total, other.grad_norm), rel=1e-5)


@pytest.mark.parametrize("kind, each", [("adamw", 2), ("ctc", 2), ("pruned", 3)])
def test_update_waits_for_little(kind, each, update):
    """Of each batch for the number of cells that carry something, and all numbers; for the band."""
    optim, prune, _ = LEARNERS[kind]
    with pretended_gpu() as gpu:
        learner = _learner(GPU, optim, prune)
        gpu.waits.clear()
        learner.learn(update, step=1, epoch=0, done=0.0)
    # and for the norm of the gradient
    assert len(gpu.waits) == each * len(update.batches) + 1, gpu.waits


# Triton's interpreter takes the bits of bfloat16 for integers where it multiplies
@pytest.mark.parametrize(
    "precision, has_kernels",
    [
        ("bf16", False),
        ("fp16", False),
        *(pytest.param(name, True, marks=pytest.mark.sweep) for name in ("fp32", "fp16")),
    ],
    ids=str,
)
def test_updates_in_any_precision_are_near_the_cpus(precision, has_kernels, update):
    if has_kernels:
        pytest.importorskip("triton", reason="Triton is not installed")
    wanted = _learn(_learner(CPU, ADAMW, PruneConfig()), update, num_steps=1)[0]
    with pretended_gpu(has_kernels=has_kernels):
        found = _learn(_learner(GPU, ADAMW, PruneConfig(), precision=precision), update, num_steps=1)[0]
    # of bfloat16, eight bits count
    assert found.total == pytest.approx(wanted.total, rel=1e-5 if precision == "fp32" else 2**-8)


def test_loss_does_without_kernels_where_triton_has_no_compiler():
    lattice_triton = pytest.importorskip("stateless_transducer.ops.lattice_triton", reason="Triton is not installed")

    class NoCompiler:
        def __getitem__(self, grid):
            raise RuntimeError("Failed to find C compiler. Please specify via CC.")

    arguments = torch.randn(1, 6, 4), torch.tensor([6]), torch.randn(1, 3, 4), torch.tensor([[1, 2]]), torch.tensor([2])
    linear = torch.randn(5, 4), torch.randn(5)
    wanted = joint_transducer_loss(*arguments, *linear)
    kernels._starts_kernels.cache_clear()
    with pretended_gpu(has_kernels=True), pytest.MonkeyPatch.context() as patch:
        for name in ("_zero_kernel", "_walk_kernel"):
            patch.setattr(lattice_triton, name, NoCompiler())
        there = [each.to("cuda:0") for each in (*arguments, *linear)]
        with pytest.warns(RuntimeWarning, match="Triton cannot start a kernel .*C compiler") as warned:
            found = [joint_transducer_loss(*there).cpu() for _ in range(2)]
    kernels._starts_kernels.cache_clear()
    assert len(warned) == 1
    torch.testing.assert_close(found[0], wanted)


def _losses(folder):
    rows = map(json.loads, (folder / "log" / "metrics.jsonl").read_text().splitlines())
    return [each for row in rows for name, each in row.items() if name in ("current_loss", "valid_loss")]


@pytest.mark.sweep
def test_runs_are_the_cpus(tmp_path):
    """All that a run does, stopped and gone on with; then a finer one from its model."""
    run = [
        *["train", *write_small_corpus(tmp_path / "corpus", count=4), "--max-duration", "2", "--dropout", "0"],
        *["--precision", "fp32", "--tensorboard", "true", "--save-every", "2"],
        *["--ctc-loss-scale", "0.5", "--ema-decay", "0.9", "--prune-range", "2"],
    ]
    finer = ["--init-from", str(tmp_path / "cpu" / "epoch-1.pt"), "--freeze-layers", "1", "--num-epochs", "1"]
    for place in ("cpu", "gpu"):
        folder = tmp_path / place
        with pretended_gpu() if place == "gpu" else nullcontext():
            assert main([*run, "--exp-dir", str(folder), "--num-epochs", "1"]) == 0
            assert main([*run, "--exp-dir", str(folder), "--num-epochs", "2", "--resume", "true"]) == 0
            assert main([*run, *finer, "--exp-dir", str(folder / "finer")]) == 0
    for run_dir in ("", "finer"):
        found, wanted = (_losses(tmp_path / place / run_dir) for place in ("gpu", "cpu"))
        assert len(found) >= 3
        assert found == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("lens_on", ["cpu", "cuda:0"])
def test_losses_are_the_cpus(lens_on):
    encoder_out, decoder_out, weight, bias = (torch.randn(size) for size in ((2, 9, 6), (2, 5, 6), (7, 6), (7,)))
    tokens, lens, token_lens = torch.randint(1, 7, (2, 4)), torch.tensor([9, 7]), torch.tensor([4, 2])
    logits = torch.tanh(encoder_out[:, :, None] + decoder_out[:, None]) @ weight.T + bias

    def both(encoder_out, decoder_out, weight, bias, logits, tokens, lens, token_lens):
        joint = (
            joint_transducer_loss(encoder_out, lens, decoder_out, tokens, token_lens, weight, bias, impl=impl)
            for impl in ("auto", "reference")
        )
        return torch.stack([*joint, transducer_loss(logits, tokens, lens, token_lens, reduction="none").double()])

    tensors, integers = (encoder_out, decoder_out, weight, bias, logits), (tokens, lens, token_lens)
    with pretended_gpu() as gpu:
        there = [each.to("cuda:0") for each in tensors], [each.to(lens_on) for each in integers]
        found = both(*there[0], *there[1]).cpu()
        gpu.waits.clear()
        joint_transducer_loss(*[there[0][0], there[1][1], there[0][1], there[1][0], there[1][2]], *there[0][2:4])
        if lens_on == "cpu":
            # as the docstring promises
            assert not gpu.waits
    torch.testing.assert_close(found, both(*tensors, *integers))


def _searches(model, features, lens):
    """Each as lists of tokens, or numbers."""
    encoder_out, lens = model.encode(features, lens)
    hotwords = Hotwords([[((3, 4), 2.0)]], vocab_size=9)
    greedy = greedy_search(model, encoder_out, lens)
    yield [each.tokens for each in greedy]
    options = LogitOptions(blank_penalty=0.5, temperature=1.2)
    yield [each.tokens for each in greedy_search(model, encoder_out, lens, max_symbols_per_frame=3, options=options)]
    for scorer in (None, hotwords):
        for search in (modified_beam_search, beam_search):
            yield [own[0].tokens for own in search(model, encoder_out, lens, beam_size=2, scorer=scorer)]
    yield pytest.approx([each.confidence for each in align(model, encoder_out, lens, greedy)], rel=1e-3)


@pytest.mark.parametrize("layout", ["live", pytest.param("frozen", marks=pytest.mark.sweep)])
def test_searches_are_the_cpus(layout):
    model = build_model(SIZES).eval()
    with torch.no_grad():
        model.joiner.output_linear.weight *= 8
        model.joiner.output_linear.bias[0] += 1
    features, lens = torch.randn(3, 32, 80), torch.tensor([32, 24, 4])
    with torch.no_grad():
        wanted = list(_searches(model if layout == "live" else FrozenTransducer(model), features, lens))
        assert any(wanted[0])
        with pretended_gpu():
            model = model.to("cuda:0")
            model = model if layout == "live" else FrozenTransducer(model)
            found = list(_searches(model, features.to("cuda:0"), lens.to("cuda:0")))
    assert found[:-1] == wanted[:-1]
    assert found[-1].expected == wanted[-1]


def test_first_frame_to_last_nobody_waits():
    model, lens = build_model(SIZES).eval(), torch.tensor([12, 8])
    for search in (greedy_search, modified_beam_search):
        with pretended_gpu() as gpu, torch.no_grad():
            there = FrozenTransducer(model.to("cuda:0"))
            waits = []
            for frames in (4, 12):
                gpu.waits.clear()
                search(there, torch.randn(2, 12, 16).to("cuda:0"), lens.clamp(max=frames).to("cuda:0"))
                waits.append(len(gpu.waits))
        assert waits[0] == waits[1]


@pytest.mark.parametrize("method", ["greedy_search", pytest.param("modified_beam_search", marks=pytest.mark.sweep)])
def test_transcripts_are_the_cpus(method, talker):
    def transcribe(device):
        hotwords = () if method == "greedy_search" else ["很好"]
        recognizer = Recognizer.from_pretrained(
            talker / "model.pt", SearchConfig(method), device=device, hotwords=hotwords
        )
        assert str(recognizer.pipeline._model.transducer.device) == device.replace("auto", "cuda:0")
        return [(each.text, each.spans) for each in recognizer.transcribe(waves)]

    rng = np.random.default_rng(3)
    waves = [say(text, rng) for text in ("今天天气", "很好吗", "气")]
    wanted = transcribe("cpu")
    assert any(text for text, _ in wanted)
    with pretended_gpu():
        assert transcribe("auto") == wanted
