from __future__ import annotations

import os
import pickle
import resource
import threading
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from functools import cache

import pytest
import torch
from model_sizes import conformer_model, resized
from safetensors.torch import load_file, save_file

from stateless_transducer.checkpoint import (
    Checkpoint,
    batch_path,
    epoch_path,
    load_checkpoint,
    save_checkpoint,
)
from stateless_transducer.features import FbankConfig
from stateless_transducer.model.config import ConformerConfig
from stateless_transducer.model.transducer import build_model
from stateless_transducer.text.tokens import build_token_table
from stateless_transducer.training.averaging import Average
from stateless_transducer.training.weight_averages import average_checkpoints, mean_of_part
from stateless_transducer.weight_files import _allowing_only

TOKENS = build_token_table(["今天天气"], "char")
SIZES = conformer_model(len(TOKENS), num_layers=1, attention_dim=8, num_heads=2, feedforward_dim=8, joiner_dim=8)


@cache
def _weights(seed):
    torch.manual_seed(seed)
    return build_model(SIZES).state_dict()


def _checkpoint(seed=0, **changes):
    made = Checkpoint(
        weights={name: value.clone() for name, value in _weights(seed).items()},
        model_config=SIZES,
        fbank_config=FbankConfig(low_freq=30.0),
        token_table=TOKENS,
        provenance={"command": "transducer train", "epoch": seed},
        training_state={"step": 7, "random": {"python": (3, (1, 2), None), "torch": torch.get_rng_state()}},
    )
    return replace(made, **changes)


@pytest.mark.parametrize("name", ["m.pt", "m.safetensors"])
def test_heads_are_kept(tmp_path, name):
    saved = _checkpoint(heads={"ctc_head.bias": torch.arange(3.0)})
    save_checkpoint(tmp_path / name, saved)
    loaded = load_checkpoint(tmp_path / name)
    assert torch.equal(loaded.heads.pop("ctc_head.bias"), saved.heads["ctc_head.bias"])
    assert not loaded.heads and loaded.weights.keys() == saved.weights.keys()


def test_all_that_is_saved_is_loaded(tmp_path):
    saved = _checkpoint()
    save_checkpoint(tmp_path / "a" / "epoch-0.pt", saved)
    loaded = load_checkpoint(tmp_path / "a" / "epoch-0.pt")
    assert (loaded.model_config, loaded.fbank_config, loaded.token_table) == (SIZES, saved.fbank_config, TOKENS)
    assert loaded.provenance == saved.provenance and loaded.training_state["random"]["python"] == (3, (1, 2), None)
    for name, value in saved.weights.items():
        assert torch.equal(loaded.weights[name], value)
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["epoch-0.pt"]


def test_loaded_model_computes_what_the_saved_one_did(tmp_path):
    save_checkpoint(tmp_path / "m.pt", _checkpoint())
    features, lens = torch.randn(2, 50, 80), torch.tensor([50, 31])
    found, _ = load_checkpoint(tmp_path / "m.pt").model().encode(features, lens)
    wanted, _ = _checkpoint().model().encode(features, lens)
    assert torch.equal(found, wanted)


def test_average_is_the_mean(tmp_path):
    for epoch in range(4):
        save_checkpoint(epoch_path(tmp_path, epoch), _checkpoint(epoch))
    averaged = Average(epoch=3, avg=3).of(tmp_path)
    for name, value in averaged.weights.items():
        wanted = torch.stack([_checkpoint(epoch).weights[name].double() for epoch in (1, 2, 3)]).mean(0)
        torch.testing.assert_close(value.double(), wanted, rtol=1e-7, atol=1e-9)
    assert averaged.training_state is None
    assert averaged.provenance["averaged"] == ["epoch-1.pt", "epoch-2.pt", "epoch-3.pt"]
    assert Average().of(tmp_path).provenance["averaged"] == ["epoch-2.pt", "epoch-3.pt"]


@pytest.mark.parametrize(
    ("epoch", "avg", "message"),
    [
        (5, 2, r"`epoch` 5 `avg` 2 needs epoch-4.pt, epoch-5.pt, but .*epoch-4.pt, epoch-5.pt.* holds epoch-0.pt"),
        (0, 3, r"`avg` must be at most 1, the number of epochs up to 0, but is 3"),
        (5, 10, r"`avg` must be at most 6, the number of epochs up to 5, but is 10"),
        (None, 2, r"`avg` must be at most 1, the number of epochs up to 0, but is 2"),
        (0, 0, "`avg` must be at least 1, but is 0"),
    ],
)
def test_missing_checkpoints_are_named_with_what_is_there(tmp_path, epoch, avg, message):
    save_checkpoint(epoch_path(tmp_path, 0), _checkpoint())
    with pytest.raises(ValueError, match=message):
        Average(epoch=epoch, avg=avg).of(tmp_path)


def test_empty_folder_is_explained(tmp_path):
    with pytest.raises(ValueError, match="holds no epoch-.*pt; train first"):
        Average().of(tmp_path)


def test_checkpoints_within_epochs_are_averaged_by_their_batch(tmp_path):
    for step in (10, 20, 30):
        save_checkpoint(batch_path(tmp_path, step), _checkpoint(step))
    averaged = Average(iter=20, avg=2).of(tmp_path)
    assert averaged.provenance["averaged"] == ["checkpoint-10.pt", "checkpoint-20.pt"]
    for name, value in averaged.weights.items():
        wanted = torch.stack([_checkpoint(step).weights[name].double() for step in (10, 20)]).mean(0)
        torch.testing.assert_close(value.double(), wanted, rtol=1e-7, atol=1e-9)
    with pytest.raises(ValueError, match=r"`iter` 25 `avg` 1 needs checkpoint-25.pt, but .*checkpoint-30.pt"):
        Average(iter=25).of(tmp_path)
    with pytest.raises(
        ValueError, match="`avg` 3 needs 3 .* up to `iter` 20, .* holds 2: checkpoint-10.pt, checkpoint-20"
    ):
        Average(iter=20, avg=3).of(tmp_path)
    with pytest.raises(ValueError, match="`epoch` 1 and `iter` 20"):
        Average(epoch=1, iter=20)


def test_running_means_are_averaged_where_they_are_wanted(tmp_path):
    for epoch in range(2):
        state = {"ema": dict(_checkpoint(epoch + 5).weights)}
        save_checkpoint(epoch_path(tmp_path, epoch), _checkpoint(epoch, training_state=state))
    found = Average(epoch=1, avg=2, use_ema=True).of(tmp_path)
    for name, value in found.weights.items():
        wanted = torch.stack([_checkpoint(seed).weights[name].double() for seed in (5, 6)]).mean(0)
        torch.testing.assert_close(value.double(), wanted, rtol=1e-7, atol=1e-9)
    save_checkpoint(epoch_path(tmp_path, 2), _checkpoint())
    with pytest.raises(ValueError, match="`use_ema`: .*epoch-2.pt holds no running mean"):
        Average(epoch=2, avg=1, use_ema=True).of(tmp_path)


def test_mean_over_a_part_of_a_run_follows_from_the_means_since_its_start(tmp_path):
    """Period 10: after epoch n, the mean is over the weights of steps 10, 20, ... up to 25 (n + 1)."""

    def mean(steps):
        weights = [_checkpoint(step).weights for step in steps]
        return {name: torch.stack([each[name].double() for each in weights]).mean(0) for name in weights[0]}

    for epoch in range(3):
        step = 25 * (epoch + 1)
        average = {"weights": mean(range(10, step + 1, 10)), "period": 10}
        checkpoint = _checkpoint(epoch, training_state={"average": average})
        save_checkpoint(epoch_path(tmp_path, epoch), replace(checkpoint, provenance={"step": step}))
    for epoch, avg, steps in ((2, 2, range(30, 71, 10)), (2, 3, range(10, 71, 10)), (1, 1, range(30, 51, 10))):
        found = Average(epoch=epoch, avg=avg, use_averaged_model=True).of(tmp_path)
        assert found.provenance["averaged"] == [f"epoch-{n}.pt" for n in range(epoch - avg + 1, epoch + 1)]
        for name, expected in mean(steps).items():
            torch.testing.assert_close(found.weights[name].double(), expected, rtol=1e-6, atol=1e-7)
    for step in (52, 58):
        average = {"weights": mean(range(10, 51, 10)), "period": 10}
        checkpoint = _checkpoint(step, training_state={"average": average})
        save_checkpoint(batch_path(tmp_path, step), replace(checkpoint, provenance={"step": step}))
    for average, fault in (
        (Average(iter=58), "no weights .* between .*checkpoint-52.pt and checkpoint-58.pt; raise `avg`"),
        (Average(iter=58, avg=2), "`iter` 58 and `avg` 2 needs a checkpoint before checkpoint-52.pt"),
        (Average(epoch=4, avg=1), "needs epoch-3.pt, epoch-4.pt"),
    ):
        with pytest.raises(ValueError, match=fault):
            replace(average, use_averaged_model=True).of(tmp_path)
    last = load_checkpoint(epoch_path(tmp_path, 2))
    late = {**last.training_state["average"], "since": 20}
    save_checkpoint(epoch_path(tmp_path, 2), replace(last, training_state={"average": late}))
    for avg in (2, 3):
        with pytest.raises(ValueError, match="mean in .*epoch-2.pt began after batch 20, .* Lower `avg`"):
            Average(epoch=2, avg=avg, use_averaged_model=True).of(tmp_path)
    save_checkpoint(epoch_path(tmp_path, 2), _checkpoint())
    with pytest.raises(ValueError, match="epoch-2.pt holds no mean .*`average_period`"):
        Average(epoch=2, avg=1, use_averaged_model=True).of(tmp_path)


def test_mean_over_a_part_of_a_run_is_icefalls(zipformer_golden):
    folder = zipformer_golden / "train" / "average"
    files = {n: torch.load(folder / f"epoch-{n}.pt", weights_only=True) for n in range(1, 5)}
    expected = load_file(folder / "expected.safetensors")
    for start, end in ((1, 4), (2, 3), (3, 4)):
        ends = [(files[n]["model_avg"], files[n]["batch_idx_train"] // 10 * 10) for n in (start, end)]
        found = mean_of_part(*ends[0], *ends[1])
        for name in found:
            if found[name].is_floating_point():
                value = expected[f"averaged_model_start{start}_end{end}.{name}"]
                torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6)


def test_models_of_other_sizes_are_not_averaged(tmp_path):
    save_checkpoint(tmp_path / "a.pt", _checkpoint())
    save_checkpoint(tmp_path / "b.pt", _checkpoint(model_config=resized(SIZES, dropout=0.3)))
    with pytest.raises(ValueError, match="b.pt cannot be averaged with a.pt: other sizes or tokens"):
        average_checkpoints([tmp_path / "a.pt", tmp_path / "b.pt"])


def test_wrong_weights_are_named():
    weights = dict(_checkpoint().weights)
    weights["joiner.surplus"] = weights.pop("joiner.output_linear.bias")
    weights["decoder.embedding.weight"] = torch.zeros(3, 3)
    with pytest.raises(ValueError) as caught:
        _checkpoint(weights=weights).model()
    for fault in (
        "joiner.output_linear.bias is missing",
        "joiner.surplus is left over",
        "decoder.embedding.weight has shape (3, 3) instead of (6, 8)",
    ):
        assert fault in str(caught.value)


class _Malice:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


def _truncated(folder):
    save_checkpoint(folder / "m.pt", _checkpoint())
    data = (folder / "m.pt").read_bytes()
    (folder / "m.pt").write_bytes(data[: len(data) // 2])


BAD = {
    "absent": (lambda folder: None, "m.pt: no such file"),
    "truncated": (_truncated, "m.pt is not a checkpoint, or is truncated"),
    "empty": (lambda folder: (folder / "m.pt").touch(), r"m.pt: is empty \(0 bytes\)"),
    "text": (lambda folder: (folder / "m.pt").write_text("hello"), "m.pt is not a checkpoint"),
    "other-program": (lambda folder: torch.save({"model": {}}, folder / "m.pt"), "not a checkpoint of stateless-tran"),
    "malicious": (lambda folder: torch.save(_Malice(str(folder / "x")), folder / "m.pt"), "m.pt is refused: it holds"),
    "malicious-pickle": (
        lambda folder: (folder / "m.pt").write_bytes(pickle.dumps(_Malice(str(folder / "x")))),
        "m.pt is not a checkpoint",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_checkpoint_is_refused_and_not_executed(tmp_path, case):
    make, message = BAD[case]
    make(tmp_path)
    with pytest.raises(ValueError, match=message):
        load_checkpoint(tmp_path / "m.pt")
    assert not (tmp_path / "x").exists()


@dataclass(frozen=True)
class _LaterConfig(ConformerConfig):
    wings: int = 2


@pytest.mark.parametrize("name", ["m.pt", "m.safetensors"])
def test_checkpoint_with_an_unknown_size_may_be_of_a_later_version(tmp_path, name):
    later = replace(SIZES, encoder=_LaterConfig(**asdict(SIZES.encoder)))
    save_checkpoint(tmp_path / name, _checkpoint(model_config=later))
    with pytest.raises(ValueError, match=rf"{name}: .* later version .* than this one, \S+: `wings` is no size"):
        load_checkpoint(tmp_path / name)


def test_checkpoint_of_a_later_layout_says_so(tmp_path):
    save_checkpoint(tmp_path / "m.pt", _checkpoint())
    content = torch.load(tmp_path / "m.pt", weights_only=True)
    torch.save({**content, "format": "stateless-transducer-9"}, tmp_path / "m.pt")
    with pytest.raises(ValueError, match=r"m.pt: written by a later version .* \(layout 9; this one reads 1 to 2\)"):
        load_checkpoint(tmp_path / "m.pt")


def test_what_else_the_process_allows_is_refused_all_the_same(tmp_path):
    save_checkpoint(tmp_path / "m.pt", _checkpoint(provenance={"path": Fraction(1, 2)}))
    with torch.serialization.safe_globals([Fraction]):
        allowed = set(torch.serialization.get_safe_globals())
        with pytest.raises(
            ValueError, match=r"m.pt is refused: it holds objects .* \(fractions.Fraction\), which could"
        ):
            load_checkpoint(tmp_path / "m.pt")
        assert set(torch.serialization.get_safe_globals()) == allowed


def test_scripted_model_is_refused(tmp_path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "cpu_jit.pt")
    with pytest.raises(ValueError, match="cpu_jit.pt is a scripted model, which holds code; pass the checkpoint that"):
        load_checkpoint(tmp_path / "cpu_jit.pt")


@pytest.mark.sweep
def test_program_of_torch_export_is_refused(tmp_path):
    torch.export.save(torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),)), tmp_path / "encoder.pt2")
    with pytest.raises(ValueError, match="encoder.pt2 is a program of torch.export; pass the checkpoint that it was"):
        load_checkpoint(tmp_path / "encoder.pt2")


def test_full_disk_keeps_the_old_checkpoint(tmp_path):
    path = tmp_path / "epoch-0.pt"
    save_checkpoint(path, _checkpoint(0))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # a write beyond the limit fails, as on a full disk, since Python ignores SIGXFSZ
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError, match=r"epoch-0\.pt cannot be written.*file is unchanged.*Free space"):
            save_checkpoint(path, _checkpoint(1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert load_checkpoint(path).provenance["epoch"] == 0
    assert [p.name for p in tmp_path.iterdir()] == ["epoch-0.pt"]


BAD_SAFETENSORS = {
    "absent": (lambda path: None, "m.safetensors: no such file"),
    "text": (lambda path: path.write_text("hello, hello"), "m.safetensors is not a file of safetensors, or is damaged"),
    "truncated": (
        lambda path: (save_checkpoint(path, _checkpoint()), path.write_bytes(path.read_bytes()[:-9])),
        "m.safetensors is not a file of safetensors, or is damaged",
    ),
    "other-program": (
        lambda path: save_file({"w": torch.zeros(2)}, path),
        "m.safetensors is not a checkpoint of stateless-transducer",
    ),
}


@pytest.mark.parametrize("case", BAD_SAFETENSORS)
def test_bad_safetensors_are_refused(tmp_path, case):
    make, message = BAD_SAFETENSORS[case]
    make(tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match=message):
        load_checkpoint(tmp_path / "m.safetensors")


def test_threads_allow_their_classes_one_after_another():
    """A process has one list of classes: one read would allow what another does, or lose those of the process."""
    entered, leave = ([threading.Event() for _ in range(2)] for _ in range(2))

    def read(number):
        with _allowing_only([]):
            entered[number].set()
            leave[number].wait(9)

    threads = [threading.Thread(target=read, args=(number,)) for number in range(2)]
    threads[0].start()
    assert entered[0].wait(9)
    threads[1].start()
    is_together = entered[1].wait(0.2)
    for event, thread in zip(leave, threads, strict=True):
        event.set()
        thread.join()
    assert not is_together and entered[1].is_set()
