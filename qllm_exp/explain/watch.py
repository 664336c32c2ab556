"""`python -m qllm_exp.results watch`: an animation of a finished run's policy, with the credit of each agent."""

import argparse
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from qllm_exp.errors import UserError

if TYPE_CHECKING:  # torch, matplotlib and Pillow are imported only when something is drawn
    from PIL.Image import Image

    from qllm_exp.envs.base import TeamEnv
    from qllm_exp.explain.watch_episode import PlayedEpisode

_FINAL_FRAME_S = 2.0  # seconds for which the last frame of an episode is shown
_MAX_FPS = 50  # GIFs count time in hundredths of a second, and viewers slow down frames shorter than two of them


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register the command `watch`; `args.run(args)` runs it and returns the exit code."""
    text = "animate a finished run's policy, with the credit of each agent at every step"
    parser = commands.add_parser("watch", help=text, description=text, allow_abbrev=False)
    parser.add_argument("folder", metavar="RUN_FOLDER", type=Path, help="folder of a finished run")
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        type=Path,
        help=".gif, or .mp4 with ffmpeg; default: watch.gif in the run's folder",
    )
    parser.add_argument(
        "--policy", choices=("best", "last"), default="best", help="parameters: the run's best (default) or last"
    )
    parser.add_argument("--episodes", metavar="N", type=int, default=1, help="number of episodes; default: 1")
    parser.add_argument(
        "--seed",
        metavar="S",
        type=int,
        default=0,
        help="play the episodes of the run's evaluation number S; default: 0",
    )
    parser.add_argument("--fps", metavar="F", type=float, default=4.0, help="steps per second; default: 4")
    parser.set_defaults(run=main_watch)


def main_watch(args: argparse.Namespace) -> int:
    """Run the command: write the animation and print its path.

    Returns:
        The exit code, 0.

    Raises:
        UserError: as in `watch`.
    """
    print(watch(args.folder, args.output, args.policy, args.episodes, args.seed, args.fps))
    return 0


def watch(
    folder: Path, output: Path | None = None, policy: str = "best", episodes: int = 1, seed: int = 0, fps: float = 4.0
) -> Path:
    """Play a finished run's policy and write the animation.

    The episodes are the first ones of the run's evaluation number `seed`. Their returns are therefore those that this
    evaluation reports for the same parameters on the same kind of device. Every episode has a frame per step and a frame
    for its end, which is shown for two seconds.

    Args:
        folder: of a finished run.
        output: file that ends with .gif or .mp4; None: watch.gif in the run's folder.
        policy: 'best' or 'last' parameters of the run.
        episodes: number of episodes, from 1.
        seed: number of the evaluation, from 0.
        fps: steps per second.

    Returns:
        The path of the animation.

    Raises:
        UserError: the folder is not that of a finished run, the file cannot be written, ffmpeg is not installed, or a number
            is out of range.
    """
    import torch

    from qllm_exp.config.device import resolve_device
    from qllm_exp.config.load import method_name
    from qllm_exp.envs import env_module, make_env
    from qllm_exp.explain.policy import load_algorithm, policy_file
    from qllm_exp.explain.watch_episode import play_evaluation
    from qllm_exp.runs.run_directory import RunDirectory
    from qllm_exp.training.seeds import derive

    path = folder / "watch.gif" if output is None else output
    _check(path, episodes, seed, fps)
    directory = RunDirectory(folder)
    run = directory.read_config()
    policy_file(directory)
    env_module(run.env.name).check(run.env)
    device = "cpu" if run.device == "cpu" else resolve_device("auto")
    torch.set_num_threads(1)
    env = make_env(run.env, int(run.env.num_envs), derive(run.seed, "environment"), device)
    try:
        algorithm = load_algorithm(folder, env, policy)
        played = play_evaluation(env, algorithm, derive(run.seed, "evaluation", seed), episodes)
    finally:
        env.close()

    method = method_name(run.algorithm.name, run.mixer.name)
    titles = [
        f"{run.env.name} / {run.env.task}, {method}, seed {run.seed}: return {episode.episode_return:.4g}\n"
        f"{policy} policy, episode {number} of evaluation {seed}"
        for number, episode in enumerate(played, 1)
    ]
    seconds: list[float] = []
    for episode in played:
        seconds += [1 / fps] * len(episode.episode.rewards) + [_FINAL_FRAME_S]
    frames = _frames(env, played, titles)
    with _atomic_output(path) as part:
        if path.suffix == ".mp4":
            _write_mp4(part, frames, seconds, fps)
        else:
            _write_gif(part, frames, seconds)
    return path


def _frames(env: "TeamEnv", played: "Sequence[PlayedEpisode]", titles: Sequence[str]) -> "Iterator[Image]":
    """Draw the frames of all episodes, each under the title of its episode."""
    from matplotlib import rc_context

    from qllm_exp.explain.watch_frame import FONTS, FrameRenderer

    for episode, title in zip(played, titles, strict=True):
        with rc_context(FONTS):
            renderer = FrameRenderer(env, episode, title)
        for step in range(renderer.length + 1):
            with rc_context(FONTS):
                image = renderer.frame(step)
            yield image


def _check(path: Path, episodes: int, seed: int, fps: float) -> None:
    """Raise UserError for anything that would keep the animation from being written, before anything is played."""
    if path.suffix not in (".gif", ".mp4"):
        raise UserError(f"{path}: an animation is a .gif or an .mp4. Type e.g. -o {path.with_suffix('.gif')}")
    if path.suffix == ".mp4" and shutil.which("ffmpeg") is None:
        raise UserError(
            f"{path}: MP4 needs ffmpeg, which is not installed. Install it (Debian: apt-get install ffmpeg), "
            f"or type -o {path.with_suffix('.gif')}"
        )
    if path.parent.exists() and not path.parent.is_dir():
        raise UserError(f"{path.parent} is a file, not a folder. Type another path, e.g. -o {path.name}")
    if episodes < 1:
        raise UserError(f"--episodes {episodes}: give a whole number from 1.")
    if seed < 0:
        raise UserError(f"--seed {seed}: give the number of an evaluation of the run, from 0.")
    if not 0.1 <= fps <= _MAX_FPS:
        raise UserError(f"--fps {fps:g} is out of range: allowed are 0.1 to {_MAX_FPS} steps per second.")


@contextmanager
def _atomic_output(path: Path) -> Iterator[Path]:
    """Yield a temporary file that replaces `path` when the block ends without an error.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            part = Path(folder) / path.name
            yield part
            os.replace(part, path)
    except OSError as error:
        raise UserError(f"Cannot write {path}: {error.strerror}. Choose another file with -o FILE") from error


def _write_gif(path: Path, frames: "Iterator[Image]", seconds: Sequence[float]) -> None:
    """Write a GIF that plays in a loop.

    Args:
        path: file to write.
        frames: all frames.
        seconds: how long each frame is shown.
    """
    from PIL.Image import Dither

    palette = _palette()
    indexed = (frame.quantize(palette=palette, dither=Dither.NONE) for frame in frames)
    durations = [max(20, 10 * round(100 * duration)) for duration in seconds]  # milliseconds
    next(indexed).save(path, save_all=True, append_images=indexed, duration=durations, loop=0, optimize=False)


def _palette() -> "Image":
    """One palette for all frames, so that a colour is the same in all of them.

    It has the colours of scenes with paler shades of each for thin lines, greys, and the colour map of state values.
    """
    import numpy as np
    from matplotlib import colormaps
    from matplotlib.colors import to_rgb
    from PIL import Image

    from qllm_exp.explain.scene import scene_colours

    white = np.linspace(0, 1, 12, endpoint=False)[:, None]
    shades = [shade for colour in scene_colours() for shade in np.array(to_rgb(colour)) * (1 - white) + white]
    greys = [np.full(3, grey) for grey in np.linspace(0, 1, 40)]
    values = [colormaps["cividis"](level)[:3] for level in np.linspace(0, 1, 256 - len(shades) - len(greys))]
    palette = Image.new("P", (1, 1))
    palette.putpalette((255 * np.array([*shades, *greys, *values])).round().astype(int).flatten().tolist())
    return palette


def _write_mp4(path: Path, frames: "Iterator[Image]", seconds: Sequence[float], fps: float) -> None:
    """Write H.264 in the pixel format that every player supports; a frame that is shown for longer is repeated.

    Args:
        path: file to write.
        frames: all frames.
        seconds: how long each frame is shown.
        fps: frames per second of the video.

    Raises:
        UserError: ffmpeg failed.
    """
    first = next(frames)
    size = f"{first.width}x{first.height}"
    input_options = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", f"{fps:g}", "-i", "-"]
    output_options = ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-movflags", "+faststart", str(path)]
    command = ["ffmpeg", "-y", "-loglevel", "error", *input_options, *output_options]
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=errors)
        assert process.stdin is not None
        with suppress(BrokenPipeError), process.stdin as pipe:  # the pipe breaks if ffmpeg fails; its errors say why
            for frame, duration in zip(chain([first], frames), seconds, strict=True):
                pipe.write(frame.tobytes() * max(1, round(duration * fps)))
        if process.wait() != 0:
            errors.seek(0)
            message = errors.read().decode(errors="replace").strip()
            raise UserError(f"ffmpeg could not write {path.name}: {message[-500:]}")
