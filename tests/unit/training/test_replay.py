"""Replay buffer and checkpoints: what goes in comes out, and a kill at any moment leaves a whole checkpoint."""

import os
import resource
import shutil
from types import SimpleNamespace

import pytest
import torch

from qllm_exp.errors import UserError
from qllm_exp.training.checkpoint import CheckpointStore
from qllm_exp.training.replay import EpisodeStorage, ReplayBuffer

ENV = SimpleNamespace(
    episode_limit=4, n_agents=2, n_actions=3, obs_dim=2, state_dim=3, device=torch.device("cpu"), num_envs=3
)


def numbered_episodes(first: int, count: int) -> EpisodeStorage:
    """Episodes that carry their number in every field."""
    new = EpisodeStorage(ENV, count)
    number = torch.arange(first, first + count)
    for field in new.fields:
        shape = (1, count, *[1] * (field.dim() - 2))
        field.copy_(
            ((number if field.dtype.is_floating_point else number % 2).view(shape)).to(field.dtype).expand_as(field)
        )
    new.lengths.copy_(number % ENV.episode_limit + 1)
    return new


def contents(buffer: ReplayBuffer) -> list[float]:
    """The number of the episode in each slot."""
    return buffer.episodes.reward[0, : buffer.size].tolist()


def test_the_buffer_holds_the_latest_episodes():
    buffer = ReplayBuffer(ENV, 5)
    for first in range(0, 12, 3):
        buffer.add(numbered_episodes(first, 3))
    assert sorted(contents(buffer)) == [7, 8, 9, 10, 11]
    buffer.add(numbered_episodes(12, 9))
    assert sorted(contents(buffer)) == [16, 17, 18, 19, 20]
    assert [buffer.episodes.reward[0, s].item() for s in buffer.latest(5)] == [16, 17, 18, 19, 20]


def test_a_sample_is_whole_different_episodes_cut_to_the_longest():
    buffer = ReplayBuffer(ENV, 50)
    buffer.add(numbered_episodes(0, 40))
    g = torch.Generator().manual_seed(0)
    for _ in range(20):
        batch = buffer.sample(6, g)
        numbers = batch.reward[0]
        assert len(set(numbers.tolist())) == 6
        lengths = numbers % ENV.episode_limit + 1
        assert batch.steps == lengths.max() and batch.obs.shape[0] == batch.steps + 1
        assert torch.equal(batch.mask.sum(0), lengths.long())
        assert torch.equal(batch.obs[0, :, 0, 0], numbers) and torch.equal(batch.state[-1, :, 2], numbers)


def test_every_episode_is_sampled_equally_often():
    buffer = ReplayBuffer(ENV, 10)
    buffer.add(numbered_episodes(0, 10))
    g = torch.Generator().manual_seed(0)
    counts = torch.zeros(10)
    for _ in range(3000):
        counts[buffer.sample(3, g).reward[0].long()] += 1
    assert (counts - 900).abs().max() < 4 * (3000 * 0.3 * 0.7) ** 0.5


def make_store(path, capacity=5) -> tuple[ReplayBuffer, CheckpointStore]:
    buffer = ReplayBuffer(ENV, capacity)
    return buffer, CheckpointStore(path, buffer, 0.0, 1.0)


@pytest.mark.parametrize("amounts", [(2,), (3, 1), (5, 5, 5), (2, 4, 1, 1, 3, 2, 5, 1), (9, 1, 12, 3, 3, 3)])
def test_a_checkpoint_restores_every_slot(tmp_path, amounts):
    buffer, store = make_store(tmp_path / "c")
    first = 0
    for i, amount in enumerate(amounts):
        buffer.add(numbered_episodes(first, amount))
        first += amount
        store.save({"i": i})
        resumed, resumed_store = make_store(tmp_path / "c")
        assert resumed_store.load() == {"i": i}
        assert (resumed.next, resumed.size, resumed.added) == (buffer.next, buffer.size, buffer.added)
        for field, resumed_field in zip(buffer.episodes.fields, resumed.episodes.fields, strict=True):
            assert torch.equal(field[:, : buffer.size], resumed_field[:, : buffer.size])
        sample, resumed_sample = (b.sample(2, torch.Generator().manual_seed(1)) for b in (buffer, resumed))
        assert all(torch.equal(a, b) for a, b in zip(sample, resumed_sample, strict=True))
    assert (tmp_path / "c/episodes.bin").stat().st_size <= 2 * 5 * buffer.record_size()


@pytest.mark.parametrize("amounts", [(3, 4), (5, 5), (5, 9), (2, 1), (4, 4)])
@pytest.mark.parametrize("killed_in", ["episodes", "state"])
def test_a_kill_while_writing_leaves_the_checkpoint_before(tmp_path, monkeypatch, amounts, killed_in):
    buffer, store = make_store(tmp_path / "c")
    buffer.add(numbered_episodes(0, 3))
    store.save({"i": 0})
    buffer.add(numbered_episodes(3, amounts[0]))
    store.save({"i": 1})
    saved_contents = contents(buffer)
    buffer.add(numbered_episodes(3 + amounts[0], amounts[1]))

    def kill(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync" if killed_in == "episodes" else "replace", kill)
    with pytest.raises(KeyboardInterrupt):
        store.save({"i": 2})
    monkeypatch.undo()
    resumed, resumed_store = make_store(tmp_path / "c")
    assert resumed_store.load() == {"i": 1}
    assert contents(resumed) == saved_contents


@pytest.mark.parametrize("episodes", [0, 5])
def test_a_full_disk_is_an_error_of_the_system_and_leaves_the_checkpoint_before(tmp_path, episodes):
    """torch reports it with a line of its own source: 'enforce fail at inline_container.cc'."""
    buffer, store = make_store(tmp_path / "c")
    store.save({"i": 0})
    if episodes:
        buffer.add(numbered_episodes(0, episodes))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))  # a disk that takes no larger file
    try:
        with pytest.raises(OSError, match="File too large"):
            store.save({"i": 1, "weights": torch.zeros(1000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (tmp_path / "c" / "state.pt.part").exists()
    resumed, resumed_store = make_store(tmp_path / "c")
    assert resumed_store.load() == {"i": 0} and contents(resumed) == []


def test_a_removed_run_directory_is_not_created_again_for_a_checkpoint(tmp_path):
    (tmp_path / "run").mkdir()
    _, store = make_store(tmp_path / "run" / "c")
    store.save({"i": 0})
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(FileNotFoundError):
        store.save({"i": 1})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("size", [0, 3, 100, 700])
def test_a_truncated_checkpoint_is_named_without_the_text_of_torch(tmp_path, size):
    _, store = make_store(tmp_path / "c")
    store.save({"i": 0})
    path = tmp_path / "c" / "state.pt"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(UserError, match=r"state\.pt is truncated or damaged\. .* delete") as caught:
        make_store(tmp_path / "c")[1].load()
    assert "inline_container" not in str(caught.value) and "Pytorch" not in str(caught.value)


def test_a_slow_checkpoint_makes_the_next_one_wait(tmp_path, monkeypatch):
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    buffer = ReplayBuffer(ENV, 5)
    store = CheckpointStore(tmp_path / "c", buffer, every_s=10, max_share=0.02)
    assert not store.due()
    now = 11.0
    assert store.due()
    replace = os.replace

    def slow(*args):
        nonlocal now
        now += 3.0
        replace(*args)

    monkeypatch.setattr(os, "replace", slow)
    store.save({})
    now += 149.0
    assert not store.due()
    now += 2.0
    assert store.due()
