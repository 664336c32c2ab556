"""The animation of a finished run: its frames, return and credit, and invalid arguments."""

import argparse
import json
import os
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image
from torch import Tensor

from qllm_exp.algorithms.base import Algorithm
from qllm_exp.config.compose import CONF
from qllm_exp.config.load import load_run
from qllm_exp.credit import stored_function
from qllm_exp.envs import TeamEnv, make_env
from qllm_exp.envs.layout import StateField, StateLayout
from qllm_exp.errors import UserError
from qllm_exp.experiment import execute
from qllm_exp.explain import watch_frame
from qllm_exp.explain.attribution import credits
from qllm_exp.explain.policy import load_algorithm
from qllm_exp.explain.watch import add_parser, watch
from qllm_exp.explain.watch_episode import PlayedEpisode, credit, credit_share, play_evaluation
from qllm_exp.explain.watch_frame import FrameRenderer, StateValues
from qllm_exp.mixers.base import Mixer
from qllm_exp.runs.run_directory import RunDirectory
from qllm_exp.sweep.prepare import check, prepare
from qllm_exp.training.evaluation import evaluate
from qllm_exp.training.replay import EpisodeStorage
from qllm_exp.training.seeds import derive

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # gym's, where football is played
]

TINY = [
    "train=quick",
    "train.total_steps=200",
    "train.evaluation.every=100",
    "train.evaluation.episodes=3",
    "train.evaluation.absolute_episodes=2",
    "train.batch_episodes=2",
    "train.hidden=8",
    "device=cpu",
    "env.num_envs=2",
]
KINDS = {
    "lbf": ("env=lbf", "mixer=qmix", "env.episode_limit=12", "algorithm.last_action=true"),
    "mpe": ("env=mpe", "mixer=tfcaf", "env.episode_limit=10"),
    "matrix": ("env=matrix", "mixer=tfcaf", "env.episode_limit=10"),
    "sum": ("env=matrix", "mixer=vdn", "env.episode_limit=10"),
    "independent": ("env=matrix", "mixer=none", "env.episode_limit=10"),
    "unnamed": ("env=pettingzoo", "env.task=mpe2.simple_speaker_listener_v4", "mixer=vdn", "env.episode_limit=8"),
    "grf": (
        "env=grf",
        "mixer=tfcaf",
        "env.num_envs=1",
        "env.workers=1",
        "env.episode_limit=15",
        "train.total_steps=30",
    ),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a finished run of a kind, which is trained once."""
    folder, finished = tmp_path_factory.mktemp("runs"), dict[str, Path]()

    def run(kind: str) -> Path:
        if kind not in finished:
            with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
                composed = compose("config", [*TINY, *KINDS[kind], f"dir={folder}"])
            ready = prepare(check(load_run(composed)))
            ready.directory.create(ready.config, ready.tfcaf)
            finished[kind] = execute(ready.directory, show=False).path
        return finished[kind]

    return run


@dataclass
class Loaded:
    env: TeamEnv
    algorithm: Algorithm
    mixer: Mixer | None
    seed: int


def load(folder: Path, policy: str = "best") -> Loaded:
    run = RunDirectory(folder).read_config()
    env = make_env(run.env, int(run.env.num_envs), 77)
    algorithm = load_algorithm(folder, env, policy)
    return Loaded(env, algorithm, algorithm.mixer, run.seed)


def played(run: Loaded, evaluation: int = 0, count: int = 1) -> list[PlayedEpisode]:
    return play_evaluation(run.env, run.algorithm, derive(run.seed, "evaluation", evaluation), count)


@pytest.fixture
def titles(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The titles of the episodes that are drawn."""
    titles: list[str] = []

    class TitleRecorder(FrameRenderer):
        def __init__(self, env: TeamEnv, played: PlayedEpisode, title: str) -> None:
            super().__init__(env, played, title)
            titles.append(title)

    monkeypatch.setattr(watch_frame, "FrameRenderer", TitleRecorder)
    return titles


def frame_count(path: Path) -> int:
    with Image.open(path) as image:
        assert image.format == "GIF" and image.width == 900 and image.info["loop"] == 0
        return int(getattr(image, "n_frames"))  # noqa: B009 - missing in some versions of the type stubs


@pytest.mark.parametrize("kind", ["lbf", "mpe", "matrix", "unnamed"])
def test_returns_are_those_of_the_evaluation_and_every_step_is_a_frame(
    runs: Callable[[str], Path], kind: str, titles: list[str], tmp_path: Path
) -> None:
    folder = runs(kind)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    reported = [row for row in rows if row["kind"] == "evaluation"]
    last = len({row["env_step_exact"] for row in reported}) - 1
    run = load(folder, "last")
    storage = EpisodeStorage(run.env, run.env.num_envs)
    evaluation = evaluate(run.env, run.algorithm, storage, 3, derive(run.seed, "evaluation", last), lambda: None)
    assert evaluation.return_mean == pytest.approx(reported[-1]["return_mean"], rel=1e-6)

    path = watch(folder, tmp_path / "new" / "x.gif", "last", episodes=3, seed=last)
    assert frame_count(path) == sum(evaluation.lengths) + 3
    assert [title.split("return ")[1].split("\n")[0] for title in titles] == [
        f"{value:.4g}" for value in evaluation.returns
    ]
    assert all(f"seed {run.seed}" in title and run.env.task.task in title for title in titles)
    for number, episode in enumerate(played(run, last, 3)):
        assert episode.episode_return == evaluation.returns[number]
        assert float(episode.returns[-1]) == pytest.approx(episode.episode_return, rel=1e-5, abs=1e-6)


def test_football_can_be_watched(runs: Callable[[str], Path], tmp_path: Path) -> None:
    path = watch(runs("grf"), tmp_path / "x.gif")
    run = load(runs("grf"))
    try:
        (episode,) = played(run)
    finally:
        run.env.close()
    assert frame_count(path) == len(episode.episode.rewards) + 1
    assert episode.credit is not None and bool((episode.credit >= 0).all())  # the gate is on


def numerical_credit(q_tot: Callable[[Tensor], float], q: Tensor, delta: float) -> list[float]:
    """Central differences of Q_tot in each agent's Q."""
    slopes = []
    for agent in range(len(q)):
        step = torch.zeros_like(q)
        step[agent] = delta
        slopes.append((q_tot(q + step) - q_tot(q - step)) / (2 * delta))
    return slopes


@pytest.mark.parametrize("kind", ["lbf", "mpe", "matrix"])
def test_credit_is_the_slope_of_q_tot(runs: Callable[[str], Path], kind: str) -> None:
    run = load(runs(kind))
    (episode,) = played(run)
    assert run.mixer is not None and episode.credit is not None and episode.qs is not None
    mixer = run.mixer.double() if run.mixer.learns else run.mixer
    dtype = torch.float64 if run.mixer.learns else torch.float32
    state, q = episode.episode.states[4].to(dtype), episode.qs[4].to(dtype)
    slopes = numerical_credit(lambda qs: float(mixer(qs, state).detach()), q, 1e-6 if run.mixer.learns else 1e-2)
    torch.testing.assert_close(episode.credit[4], torch.tensor(slopes), rtol=5e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["mpe", "matrix"])
def test_credit_of_a_stored_function_is_that_of_explain(runs: Callable[[str], Path], kind: str) -> None:
    run = load(runs(kind))
    (episode,) = played(run)
    function: Any = run.mixer
    stored = stored_function.load(runs(kind) / "tfcaf.json")
    expected = credits(stored, function.affine, function.enforce, episode.episode.states[:-1], episode.qs)
    assert episode.credit is not None
    torch.testing.assert_close(episode.credit, expected)


def test_qs_are_those_of_the_actions_taken(runs: Callable[[str], Path]) -> None:
    run = load(runs("lbf"))
    (episode,) = played(run)
    algorithm: Any = run.algorithm
    run.env.seed(derive(run.seed, "evaluation", 0))
    obs, _, available = run.env.reset()
    memory = algorithm.initial_memory(run.env.num_envs)
    assert episode.qs is not None
    for step, actions in enumerate(episode.episode.actions):
        hidden, last = memory
        eye = torch.eye(run.env.n_agents).expand(run.env.num_envs, -1, -1)
        with torch.no_grad():
            q, _ = algorithm.agents.step(torch.cat([obs, eye, last], -1), hidden)
        q = q.view(available.shape)[0].masked_fill(~available[0], -torch.inf)
        assert torch.equal(q.argmax(-1), actions)
        torch.testing.assert_close(episode.qs[step], q.amax(-1), rtol=1e-4, atol=1e-5)
        taken, memory = algorithm.act(obs, available, memory, None, torch.Generator())
        result = run.env.step(taken)
        obs, available = result.obs, result.available_actions


def test_the_trained_mixer_is_loaded_unchanged(runs: Callable[[str], Path]) -> None:
    best, last = (load(runs("lbf"), policy).mixer for policy in ("best", "last"))
    saved = torch.load(runs("lbf") / "policy.pt", weights_only=True)
    assert best is not None and last is not None
    for policy, mixer in (("best", best), ("last", last)):
        for name, value in mixer.named_parameters():
            assert torch.equal(value, saved[policy][f"mixer.{name}"])
    initial = dict(initial_mixer(runs("lbf")).named_parameters())
    assert any(not torch.equal(value, initial[name]) for name, value in last.named_parameters())


def initial_mixer(folder: Path) -> Mixer:
    """The mixer before training."""
    from qllm_exp.experiment import build_algorithm

    directory = RunDirectory(folder)
    run = directory.read_config()
    mixer: Mixer = build_algorithm(run, directory, make_env(run.env, 1, 0)).mixer
    return mixer


def test_the_sum_gives_equal_bars(runs: Callable[[str], Path]) -> None:
    run = load(runs("sum"))
    (episode,) = played(run)
    assert episode.credit is not None and bool((episode.credit == 1).all())
    shown = FrameRenderer(run.env, episode, "").agent_values
    assert shown is not None and bool((shown == 0.5).all())


def test_without_mixing_the_individual_qs_are_shown_and_labelled(runs: Callable[[str], Path]) -> None:
    run = load(runs("independent"))
    (episode,) = played(run)
    renderer = FrameRenderer(run.env, episode, "")
    assert episode.credit is None and episode.qs is not None and "no credit" in renderer.bars.get_title()
    assert renderer.agent_values is not None and torch.equal(renderer.agent_values, episode.qs)


def test_a_run_of_a_version_with_other_networks_is_refused(runs: Callable[[str], Path], tmp_path: Path) -> None:
    for name in ("config.yaml", "policy.pt"):
        (tmp_path / name).write_bytes((runs("lbf") / name).read_bytes())
    saved = torch.load(tmp_path / "policy.pt", weights_only=True)
    for prefix in ("members.", "mixer."):
        older = {
            policy: {name: value for name, value in parameters.items() if not name.startswith(prefix)}
            for policy, parameters in saved.items()
        }
        torch.save(older, tmp_path / "policy.pt")
        with pytest.raises(UserError, match=r"policy\.pt does not fit the networks"):
            load(tmp_path)


def test_a_truncated_policy_is_named_without_the_text_of_torch(runs: Callable[[str], Path], tmp_path: Path) -> None:
    for name in ("config.yaml", "policy.pt"):
        (tmp_path / name).write_bytes((runs("lbf") / name).read_bytes())
    (tmp_path / "policy.pt").write_bytes((tmp_path / "policy.pt").read_bytes()[:1000])
    with pytest.raises(UserError, match=r"policy\.pt has no parameters of a policy: it is truncated or damaged\. Copy"):
        load(tmp_path)


def test_shares_keep_their_sign_and_are_parts_of_the_absolute_sum() -> None:
    values = torch.tensor([[1.0, -3.0, 0.0], [0.0, 0.0, 0.0]])
    assert credit_share(values).tolist() == [[0.25, -0.75, 0.0], [0.0, 0.0, 0.0]]


def test_credit_of_a_mixer_that_ignores_an_agent_is_zero() -> None:
    class First(Mixer):
        monotone, learns = True, False

        def forward(self, agent_qs: Tensor, state: Tensor) -> Tensor:
            return 2 * agent_qs[..., 0] - state.sum(-1)

    assert credit(First(), torch.randn(3, 2), torch.randn(3, 4)).tolist() == [[2, 0]] * 3


def test_state_values_that_change_are_named_and_scaled() -> None:
    fields = [StateField("door", None, "open", ("open",), 0, 1), StateField("robot", 1, "arm", ("x", "y"), -9, 9)]
    states = torch.tensor([[1.0, 5.0, 2.0], [1.0, 5.0, 4.0], [1.0, 7.0, 3.0]])
    shown = StateValues(StateLayout.from_fields(fields), states)
    assert shown.names == ["robot 1 arm x", "robot 1 arm y"] and "2 of 3" in shown.note
    assert shown.values.tolist() == [[0, 0, 1], [0, 1, 0.5]]
    wide = StateLayout.from_fields([StateField("sea", None, "level", tuple(f"at_{i}" for i in range(30)), 0, 9)])
    assert len(StateValues(wide, torch.rand(9, 30)).names) == 20


def test_a_frame_differs_from_the_next_and_is_reproducible(runs: Callable[[str], Path]) -> None:
    run = load(runs("lbf"))
    (episode,) = played(run)
    renderer = FrameRenderer(run.env, episode, "")
    frames = [renderer.frame(step).tobytes() for step in (3, 4, len(episode.episode.rewards))]
    assert len(set(frames)) == 3 and renderer.frame(3).tobytes() == frames[0]


def test_the_same_command_writes_the_same_file(runs: Callable[[str], Path], tmp_path: Path) -> None:
    first, second = (watch(runs("matrix"), tmp_path / f"{name}.gif").read_bytes() for name in "ab")
    assert first == second
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gif", "b.gif"]


def fake_ffmpeg(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An ffmpeg that runs a shell script, where $file is its last argument, the file to write."""
    folder.mkdir()
    (folder / "ffmpeg").write_text(f"#!/bin/sh\nfor file; do :; done\n{script}\n")
    (folder / "ffmpeg").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_ffmpeg_gets_every_frame_and_the_last_for_two_seconds(
    runs: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_ffmpeg(tmp_path / "bin", f'echo "$*" > {tmp_path}/arguments; cat > "$file"', monkeypatch)
    path = watch(runs("matrix"), tmp_path / "x.mp4", fps=5)
    arguments = (tmp_path / "arguments").read_text()
    width, height = map(int, re.search(r"-s (\d+)x(\d+) -r 5 ", arguments).groups())  # type: ignore[union-attr]
    assert width % 2 == height % 2 == 0 and path.stat().st_size == width * height * 3 * (10 + 2 * 5)


def test_a_video_has_a_portable_format_and_shows_the_same_as_the_gif(
    runs: Callable[[str], Path], tmp_path: Path
) -> None:
    video, gif = (watch(runs("matrix"), tmp_path / name, fps=5) for name in ("x.mp4", "x.gif"))
    entries = "stream=codec_name,pix_fmt,width,height,nb_read_frames,r_frame_rate,duration"
    command = ["ffprobe", "-v", "error", "-count_frames", "-show_entries", entries, "-of", "json", str(video)]
    (stream,) = json.loads(subprocess.check_output(command))["streams"]
    assert (stream["codec_name"], stream["pix_fmt"], stream["r_frame_rate"]) == ("h264", "yuv420p", "5/1")
    assert int(stream["nb_read_frames"]) == 10 + 2 * 5 and float(stream["duration"]) == pytest.approx(4.0)
    assert stream["width"] % 2 == stream["height"] % 2 == 0 and video.stat().st_size < gif.stat().st_size
    raw = subprocess.check_output(
        ["ffmpeg", "-v", "error", "-i", str(video), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    )
    shown = np.frombuffer(raw, np.uint8).reshape(-1, stream["height"], stream["width"], 3).astype(float)
    with Image.open(gif) as pictures:
        for frame in (0, 5, 10):
            pictures.seek(frame)
            assert np.abs(shown[frame] - np.asarray(pictures.convert("RGB"))).mean() < 3
    assert np.abs(shown[-1] - shown[10]).mean() < 1  # the last frame is repeated


def test_the_error_contains_the_message_of_ffmpeg(
    runs: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_ffmpeg(tmp_path / "bin", "echo no such encoder >&2; exit 1", monkeypatch)
    with pytest.raises(UserError, match="no such encoder"):
        watch(runs("matrix"), tmp_path / "x.mp4")
    assert not (tmp_path / "x.mp4").exists()


def call(*arguments: str) -> int:
    """Run the command with these arguments and return its exit code."""
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    args = parser.parse_args(["watch", *arguments])
    code: int = args.run(args)
    return code


def test_the_command_writes_into_the_run_folder_and_prints_the_path(
    runs: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(str(runs("sum")), "--policy", "last") == 0
    assert capsys.readouterr().out.strip() == str(runs("sum") / "watch.gif")
    assert frame_count(runs("sum") / "watch.gif") == 11


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["-o", "x.avi"], r"x\.avi: an animation is a \.gif or an \.mp4\. Type e\.g\. -o x\.gif"),
        (["-o", "x.mp4"], "apt-get install ffmpeg"),
        (["--episodes", "0"], "--episodes 0: give a whole number from 1"),
        (["--seed", "-1"], "--seed -1: give the number of an evaluation"),
        (["--fps", "0"], "--fps 0 is out of range"),
        (["--fps", "nan"], "--fps nan is out of range"),
    ],
)
def test_errors_of_invalid_calls_say_what_to_type(
    runs: Callable[[str], Path], arguments: list[str], error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = runs("sum")
    monkeypatch.setenv("PATH", str(tmp_path))  # has no ffmpeg
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=error):
        call(str(folder), *arguments)
    assert not list(tmp_path.iterdir())


def test_folders_that_cannot_be_watched_are_refused(runs: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run directory"):
        watch(tmp_path / "none")
    (tmp_path / "config.yaml").write_bytes((runs("sum") / "config.yaml").read_bytes())
    with pytest.raises(UserError, match=r"not finished\. To resume it: python -m qllm_exp\.experiment"):
        watch(tmp_path)
    with pytest.raises(UserError, match="is a file"):
        watch(runs("sum"), tmp_path / "config.yaml" / "x.gif")
