"""What becomes of a group of processes, as far as one process shows."""

from __future__ import annotations

import atexit

import pytest
import torch
import torch.distributed as dist

from stateless_transducer.training import distributed


@pytest.fixture(params=["cuda:0", "cpu"])
def done(request, monkeypatch):
    """What is done about the group, in order; there is none."""
    done, device = [], torch.device(request.param)
    monkeypatch.setattr(distributed, "device_of", lambda local_rank: device)
    monkeypatch.setattr(dist, "init_process_group", lambda backend: done.append(backend))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: done.append("destroyed"))
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(atexit, "register", lambda function: done.append(function.__name__))
    return done


def test_group_ends_with_its_work(done):
    distributed.with_group(0, lambda rank: done.append(rank.world_size), (), None)
    assert done[1:] == [2, "destroyed"]


def test_error_of_one_process_does_not_wait_for_the_others(done):
    def fail(rank):
        raise ValueError("CUDA out of memory in a batch")

    with pytest.raises(ValueError, match="out of memory"):
        distributed.with_group(0, fail, (), None)
    # to destroy a group of nccl's is to wait for all its processes
    assert done in (["nccl", "_exit_at_once"], ["gloo", "destroyed"])


def test_more_processes_than_gpus_is_refused_under_torchrun(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    assert distributed.device_of(1) == torch.device("cuda", 1)
    with pytest.raises(ValueError, match=r"Process 2 .*LOCAL_RANK.* but 2 are visible; lower torchrun's"):
        distributed.device_of(2)
