"""`python -m qllm_exp.results watch`: a finished run's policy playing, as an animation with the credit of each agent."""

import argparse
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from qllm_exp.errors import UserError

if TYPE_CHECKING:  # drawing is imported when something is drawn
    from PIL.Image import Image

    from qllm_exp.envs.base import TeamEnv
    from qllm_exp.explain.watch_episode import Played

_HOLD_S = 2.0  # for so long the last picture of an episode stays
_MOST_FPS = 50  # a GIF counts time in hundredths of a second, and viewers slow down pictures shorter than two of them


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register `watch`; `given.run(given)` runs it and returns the exit code."""
    text = "a finished run's policy playing, as an animation with the credit of each agent at every step"
    parser = commands.add_parser("watch", help=text, description=text, allow_abbrev=False)
    parser.add_argument("folder", metavar="RUN_FOLDER", type=Path, help="of a finished run")
    parser.add_argument(
        *("-o", "--output"),
        metavar="FILE",
        type=Path,
        help=".gif, or .mp4 with ffmpeg; default: watch.gif in the run's folder",
    )
    parser.add_argument(
        "--policy", choices=("best", "last"), default="best", help="parameters: the run's best (default) or its last"
    )
    parser.add_argument("--episodes", metavar="N", type=int, default=1, help="one after the other; default: 1")
    parser.add_argument(
        "--seed", metavar="S", type=int, default=0, help="the episodes of the run's evaluation number S; default: 0"
    )
    parser.add_argument("--fps", metavar="F", type=float, default=4.0, help="steps per second; default: 4")
    parser.set_defaults(run=main_watch)


def main_watch(given: argparse.Namespace) -> int:
    """Print the file's path. Returns 0; UserError as in `watch`."""
    print(watch(given.folder, given.output, given.policy, given.episodes, given.seed, given.fps))
    return 0


def watch(
    folder: Path, output: Path | None = None, policy: str = "best", episodes: int = 1, seed: int = 0, fps: float = 4.0
) -> Path:
    """Play a finished run and write the animation; returns its path.

    The episodes are the first ones of the run's evaluation number `seed`, from 0, so that the returns are those which
    that evaluation reports for the same parameters on the same kind of device. Every episode gives a picture per step and
    one for its end, which stays for two seconds.

    Args:
        output: .gif, or .mp4; None: watch.gif in the run's folder. policy: 'best' or 'last' parameters of the run.
        fps: steps per second.

    Raises:
        UserError: the folder is none of a finished run, the file cannot be written, ffmpeg is not there, or a number is
            out of bounds.
    """
    import torch

    from qllm_exp.config.device import resolve_device
    from qllm_exp.config.load import method_name
    from qllm_exp.envs import env_module, make_env
    from qllm_exp.explain.policy import kept_policy, load_algorithm
    from qllm_exp.explain.watch_episode import play_evaluation
    from qllm_exp.runs.run_directory import RunDirectory
    from qllm_exp.training.seeds import derive

    path = folder / "watch.gif" if output is None else output
    _check(path, episodes, seed, fps)
    directory = RunDirectory(folder)
    run = directory.read_config()
    kept_policy(directory)
    env_module(run.env.name).check(run.env)
    device = "cpu" if run.device == "cpu" else resolve_device("auto")
    torch.set_num_threads(1)
    env = make_env(run.env, int(run.env.num_envs), derive(run.seed, "environment"), device)
    try:
        algorithm = load_algorithm(folder, env, policy)
        played = play_evaluation(env, algorithm, derive(run.seed, "evaluation", seed), episodes)
    finally:
        env.close()

    def title(number: int) -> str:
        of = f"{run.env.name} / {run.env.task}, {method_name(run.algorithm.name, run.mixer.name)}, seed {run.seed}"
        return f"{of}: return {played[number].total:.4g}\n{policy} policy, episode {number + 1} of evaluation {seed}"

    images = _pictures(env, played, title)
    seconds: list[float] = []
    for one in played:
        seconds += [1 / fps] * len(one.episode.rewards) + [_HOLD_S]
    with _replacing(path) as part:
        if path.suffix == ".mp4":
            _write_mp4(part, images, seconds, fps)
        else:
            _write_gif(part, images, seconds)
    return path


def _pictures(env: "TeamEnv", played: "Sequence[Played]", title: Callable[[int], str]) -> "Iterator[Image]":
    """The pictures of all episodes. title: of the episode with that number, from 0."""
    from matplotlib import rc_context

    from qllm_exp.explain.watch_frame import FONTS, Picture

    for number, one in enumerate(played):
        with rc_context(FONTS):
            picture = Picture(env, one, title(number))
        for step in range(picture.length + 1):
            with rc_context(FONTS):
                image = picture.image(step)
            yield image


def _check(path: Path, episodes: int, seed: int, fps: float) -> None:
    """UserError for what would keep the animation from being written, before anything is played."""
    if path.suffix not in (".gif", ".mp4"):
        raise UserError(f"{path}: an animation is a .gif or an .mp4. Type e.g. -o {path.with_suffix('.gif')}")
    if path.suffix == ".mp4" and shutil.which("ffmpeg") is None:
        raise UserError(
            f"{path}: MP4 needs ffmpeg, which is not installed. Install it (Debian: apt-get install ffmpeg), "
            f"or type -o {path.with_suffix('.gif')}"
        )
    if path.parent.exists() and not path.parent.is_dir():
        raise UserError(f"{path.parent} is a file: give another folder, e.g. -o {path.name}")
    if episodes < 1:
        raise UserError(f"--episodes {episodes}: give a whole number from 1.")
    if seed < 0:
        raise UserError(f"--seed {seed}: give the number of an evaluation of the run, from 0.")
    if not 0.1 <= fps <= _MOST_FPS:
        raise UserError(f"--fps {fps:g} is out of bounds: it goes from 0.1 to {_MOST_FPS} steps per second.")


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A file to write in place of `path`, which it becomes when all went well. UserError where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            part = Path(folder) / path.name
            yield part
            os.replace(part, path)
    except OSError as error:
        raise UserError(f"Cannot write {path}: {error.strerror}. Choose another file with -o FILE") from error


def _write_gif(path: Path, images: "Iterator[Image]", seconds: Sequence[float]) -> None:
    """An endless GIF; each picture stays for its number of seconds."""
    from PIL.Image import Dither

    palette = _palette()
    few = (image.quantize(palette=palette, dither=Dither.NONE) for image in images)
    durations = [max(20, 10 * round(100 * one)) for one in seconds]
    next(few).save(path, save_all=True, append_images=few, duration=durations, loop=0, optimize=False)


def _palette() -> "Image":
    """The colours of scenes and paler ones of each for what is thin, greys, and the map of state values.

    One palette for all pictures: a colour stays what it is from one to the next.
    """
    import numpy as np
    from matplotlib import colormaps
    from matplotlib.colors import to_rgb
    from PIL import Image

    from qllm_exp.explain.scene import scene_colours

    white = np.linspace(0, 1, 12, endpoint=False)[:, None]
    shades = [shade for colour in scene_colours() for shade in np.array(to_rgb(colour)) * (1 - white) + white]
    greys = [np.full(3, grey) for grey in np.linspace(0, 1, 40)]
    values = [colormaps["cividis"](place)[:3] for place in np.linspace(0, 1, 256 - len(shades) - len(greys))]
    palette = Image.new("P", (1, 1))
    palette.putpalette((255 * np.array([*shades, *greys, *values])).round().astype(int).flatten().tolist())
    return palette


def _write_mp4(path: Path, images: "Iterator[Image]", seconds: Sequence[float], fps: float) -> None:
    """H.264 in the pixel format that every player knows; a picture that stays is repeated."""
    first = next(images)
    size, colours = f"{first.width}x{first.height}", ("-f", "rawvideo", "-pix_fmt", "rgb24")
    given = (*colours, "-s", size, "-r", f"{fps:g}", "-i", "-")
    made = ("-c:v", "libx264", "-pix_fmt", "yuv420p", "-movflags", "+faststart", str(path))
    command = ("ffmpeg", "-y", "-loglevel", "error", *given, *made)
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=said)
        assert process.stdin is not None
        with suppress(BrokenPipeError), process.stdin as pipe:  # broken when ffmpeg has ended early; it says why
            for image, stays in zip(chain([first], images), seconds, strict=True):
                pipe.write(image.tobytes() * max(1, round(stays * fps)))
        if process.wait() != 0:
            said.seek(0)
            raise UserError(
                f"ffmpeg could not write {path.name}: {said.read().decode(errors='replace').strip()[-500:]}"
            )
