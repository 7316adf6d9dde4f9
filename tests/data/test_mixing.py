"""A second corpus in training: its share, its order, and that all of it follows from the seed and the epoch."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from lhotse import CutSet
from model_sizes import SUBSAMPLING
from small_corpus import TOKENS, make_cut, write_small_corpus

from stateless_transducer.checkpoint import load_checkpoint
from stateless_transducer.cli import main
from stateless_transducer.data.batches import TrainingLoader, trainable
from stateless_transducer.data.config import DataConfig
from stateless_transducer.data.index import open_index

PLAIN = DataConfig(
    num_workers=0, max_duration=5.0, num_buckets=2, min_utterance_s=0.5, mix_prefix="other", mix_prob=0.25
)


def _set(folder, name, count):
    made = [make_cut(folder, f"{name}{n:02d}", 1.0 + 0.05 * n, "abc"[: 1 + n % 3]) for n in range(count)]
    path = folder / f"{name}.jsonl.gz"
    CutSet.from_cuts(made).to_file(path)
    return trainable(open_index(path), TOKENS, PLAIN, SUBSAMPLING)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """30 utterances of the first corpus, 9 of the other."""
    folder = tmp_path_factory.mktemp("sets")
    return _set(folder, "a", 30), _set(folder, "b", 9)


def _ids(sets, epoch, config=PLAIN, first=0, **options):
    """Of each update of one process."""
    loader = TrainingLoader(sets[0], TOKENS, config, seed=1, mixed=sets[1], **options)
    return [[id_ for batch in update.batches for id_ in batch.ids] for update in loader.updates(epoch, first=first)]


def _split(updates):
    """Updates of the first and of the other corpus; none is of both."""
    corpora = [{id_[0] for id_ in ids} for ids in updates]
    assert all(len(corpus) == 1 for corpus in corpora)
    return tuple([ids for ids, corpus in zip(updates, corpora, strict=True) if corpus == {name}] for name in "ab")


@pytest.mark.parametrize("prob", [0.01, 0.25, 0.5, 0.8])
def test_share_of_the_batches_is_the_asked_for_one(sets, prob):
    """And the first corpus is heard whole, once; the other as often as it must be."""
    for epoch in range(3):
        first, other = _split(_ids(sets, epoch, replace(PLAIN, mix_prob=prob)))
        assert sorted(id_ for ids in first for id_ in ids) == [f"a{n:02d}" for n in range(30)]
        assert len(other) == round(len(first) * prob / (1 - prob))


def test_other_corpus_is_gone_through_before_it_is_again(sets):
    _, other = _split(_ids(sets, 0, replace(PLAIN, mix_prob=0.8)))
    heard = [id_ for ids in other for id_ in ids]
    counts = [heard.count(f"b{n:02d}") for n in range(9)]
    assert min(counts) >= 2 and max(counts) - min(counts) <= 1


def test_epochs_differ_and_repeat(sets):
    assert _ids(sets, 0) == _ids(sets, 0) != _ids(sets, 1)
    assert _split(_ids(sets, 0))[1] != _split(_ids(sets, 1))[1], "other utterances of the second corpus, too"
    assert _ids(sets, 2, first=3) == _ids(sets, 2)[3:]


def test_first_corpus_is_planned_as_without_another(sets):
    loader = TrainingLoader(sets[0], TOKENS, PLAIN, seed=1)
    alone = [list(update.batches[0].ids) for update in loader.updates(0)]
    assert sorted(alone) == sorted(_split(_ids(sets, 0))[0])


def test_unshuffled_corpora_go_side_by_side(sets):
    updates = _ids(sets, 0, replace(PLAIN, shuffle=False, mix_prob=0.5))
    first, other = _split(updates)
    assert updates == [ids for pair in zip(first, other, strict=True) for ids in pair]
    assert [id_ for ids in first for id_ in ids] == [f"a{n:02d}" for n in range(29, -1, -1)]


def test_two_processes_share_each_update_of_either_corpus(sets):
    halves = [_ids(sets, 0, rank=rank, world_size=2) for rank in range(2)]
    whole = _ids(sets, 0, replace(PLAIN, max_duration=10.0))
    assert [sorted(mine + other) for mine, other in zip(*halves, strict=True)] == [sorted(ids) for ids in whole]


def test_updates_know_the_seconds_of_their_corpus(sets):
    loader = TrainingLoader(sets[0], TOKENS, PLAIN, seed=1, mixed=sets[1])
    plan = loader.plan(0)
    updates = list(loader.updates(0, plan=plan))
    for update in updates:
        assert update.seconds == pytest.approx(update.batches[0].seconds)
        assert update.num_tokens == update.batches[0].token_lens.sum()
    assert loader.seconds(plan) == pytest.approx(sum(update.seconds for update in updates))


def test_other_corpus_without_a_full_batch_is_an_error(sets):
    longest = sets[0].lengths.seconds.sum() / 3
    config = replace(PLAIN, max_duration=float(longest), drop_last=True, shuffle=False, num_buckets=1)
    few = replace(sets[1], numbers=sets[1].numbers[:1], lengths=sets[1].lengths.of(np.array([0])))
    with pytest.raises(ValueError, match="`mix_prefix` other does not fill a batch; lower `max_duration`"):
        TrainingLoader(sets[0], TOKENS, config, seed=1, mixed=few).plan(0)


def test_corpus_without_a_full_batch_is_an_error(sets):
    config = replace(PLAIN, max_duration=200.0, drop_last=True, shuffle=False)
    with pytest.raises(ValueError, match="An epoch has no batch: `max_duration` 200 s is more"):
        TrainingLoader(sets[0], TOKENS, config, seed=1).plan(0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mix_prob": 1.0}, "`mix_prob` must be above 0 and below 1, but is 1"),
        ({"mix_prefix": "aishell"}, "`mix_prefix` must name another corpus than `prefix`, but both are aishell"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(**options)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Options to train on two corpora, the other one with characters that the tokens lack."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("corpus")
    options = write_small_corpus(folder)
    cuts = [make_cut(folder / "feats", f"x{n}", 1.0, "abxy") for n in range(8)]
    CutSet.from_cuts(cuts).to_file(folder / "other_cuts_train.jsonl.gz")
    return ["train", *options, "--max-duration", "5", "--mix-prefix", "other", "--mix-prob", "0.4"]


@pytest.mark.sweep
def test_training_with_two_corpora_goes_on_bit_equal(corpus, tmp_path, capsys):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    parts.mkdir()
    assert main([*corpus, "--exp-dir", str(whole), "--num-epochs", "2", "--save-every", "4", "--keep-last", "0"]) == 0
    assert "16 of 32 tokens of other are not in " in capsys.readouterr().err
    within = max(whole.glob("checkpoint-*.pt"), key=lambda path: int(path.stem.split("-")[1]))
    assert load_checkpoint(within).training_state["position"]["epoch"] == 1
    shutil.copy(within, parts)
    assert main([*corpus, "--exp-dir", str(parts), "--num-epochs", "2", "--resume", "true"]) == 0
    weights = [load_checkpoint(folder / "epoch-1.pt").weights for folder in (whole, parts)]
    assert all(torch.equal(weights[1][name], value) for name, value in weights[0].items())


def test_other_corpus_that_is_not_prepared_is_named(corpus, tmp_path, capsys):
    assert main([*corpus, "--exp-dir", str(tmp_path), "--mix-prefix", "third"]) == 1
    printed = capsys.readouterr().err
    assert "third_cuts_train.jsonl.gz is missing" in printed and "pass `--mix-prefix " in printed


def test_dry_run_counts_both_corpora(corpus, tmp_path, capsys):
    assert main([*corpus, "--exp-dir", str(tmp_path), "--dry-run", "true"]) == 0
    assert "data          32 utterances" in capsys.readouterr().out
