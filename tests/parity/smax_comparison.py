"""Compares env=smax with the published jaxmarl, step by step: the test and the benchmark share it.

python tests/parity/smax_comparison.py --episodes 500             # all maps, as `make bench` does
python tests/parity/smax_comparison.py 3m 2s3z --episodes 50
"""

import argparse
import io
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from qllm_exp.envs.smax import kernel, tasks
from qllm_exp.envs.smax.battle import OWN_FEATURES, Battle, unit_attributes
from qllm_exp.envs.smax.maps import MAP_SIZE, MAPS, MAX_STEPS

HERE = Path(__file__).parent
PYTHON = HERE.parents[1] / ".venv-jaxmarl/bin/python"
JAXMARL_STEPS = MAX_STEPS + 1  # jaxmarl compares its limit with the number of the step before it counts it
TOLERANCE = 1e-5  # of features between -1 and 1: rounding of float32 in the 8 sub-steps of a step
CPU = torch.device("cpu")

Block = dict[str, Tensor]


@dataclass
class Comparison:
    """What was compared on a map.

    Attributes:
        episodes: compared from start to end.
        steps: of these episodes.
        wins: episodes that the allies won.
        limits: episodes that reached the limit of steps.
        largest: the largest difference of a number in an observation, a state or a reward.
        faults: the first steps that differ, one line each.
        starts: [episodes, U, 2] positions at the start, as jaxmarl drew them.
        types: [episodes, U] types of the units.
    """

    episodes: int = 0
    steps: int = 0
    wins: int = 0
    limits: int = 0
    largest: float = 0.0
    faults: list[str] = field(default_factory=list)
    starts: Tensor = field(default_factory=lambda: torch.empty(0))
    types: Tensor = field(default_factory=lambda: torch.empty(0))


def compare(task: str, episodes: int, compiled: bool = True) -> Comparison:
    """Play the episodes of jaxmarl again, with the same starts, actions and draws, and from the same places in each step.

    Args:
        task: the map.
        episodes: their number.
        compiled: use the compiled rules; else those in torch.
    """
    result = Comparison()
    starts, types = [], []
    battle: Battle | None = None
    for block in jaxmarl_blocks(task, episodes):
        if "types" in block:
            copies = len(block["positions"])
            battle = (kernel.CompiledBattle if compiled else Battle)(MAPS[task], copies, CPU)
            shown = battle.start(block["types"].long(), block["positions"])
            playing = torch.ones(copies, dtype=torch.bool)
            elapsed = 0
            starts.append(block["positions"])
            types.append(block["types"].long())
            result.episodes += copies
        else:
            assert battle is not None
            enemies, units = battle.n_enemies, battle.n_units
            draws = block["draws"].unsqueeze(1)
            shown, reward = battle.step(block["actions"].long(), draws.expand(-1, enemies), draws.expand(-1, units))
            elapsed += 1
            limit = elapsed == JAXMARL_STEPS
            ended = ~battle.playing | limit
            check(result, "reward", reward, block["reward"], playing, elapsed)
            check(result, "ending", ended, block["done"], playing, elapsed)
            result.steps += int(playing.sum())
            result.wins += int((battle.won() & ended & playing).sum())
            result.limits += int((battle.playing & playing).sum()) if limit else 0
        check(result, "obs", shown.obs, block["obs"], playing, elapsed)
        check(result, "state", shown.state, scaled(block["state"], types[-1]), playing, elapsed)
        check(result, "available actions", shown.available_actions, block["available"].bool(), playing, elapsed)
        if elapsed:
            playing &= ~block["done"]
            battle.positions = block["positions"]  # otherwise rounding grows from step to step where many units collide
    result.starts, result.types = torch.cat(starts), torch.cat(types)
    return result


def check(result: Comparison, name: str, ours: Tensor, theirs: Tensor, playing: Tensor, step: int) -> None:
    """Note in `result` how far two tensors differ in the copies that are playing."""
    if not playing.any():
        return
    difference = (ours.float() - theirs.float())[playing].abs().flatten(1 if ours.dim() > 1 else 0)
    largest = float(difference.max())
    result.largest = max(result.largest, largest)
    if largest > TOLERANCE:
        place = difference.view(int(playing.sum()), -1).amax(1).argmax()
        copy = int(playing.nonzero()[place])
        result.faults.append(f"{name} of copy {copy} after step {step} differs by {largest:.2g}")


def scaled(state: Tensor, types: Tensor) -> Tensor:
    """jaxmarl's global states [N, S], with positions and cooldowns scaled as in env=smax. types: [N, U]."""
    units = types.shape[1]
    rows = state[:, : units * OWN_FEATURES].view(len(state), units, OWN_FEATURES).clone()
    rows[..., 1:3] /= MAP_SIZE
    rows[..., 3] = (rows[..., 3] / unit_attributes()[types][..., -1]).clamp(0, 1)
    return torch.cat((rows.flatten(1), state[:, units * OWN_FEATURES :]), 1)


def jaxmarl_blocks(task: str, episodes: int) -> Iterator[Block]:
    """Yield what tests/parity/jaxmarl_smax.py writes.

    Raises:
        RuntimeError: jaxmarl is not installed, or its process failed.
    """
    if not PYTHON.exists():
        raise RuntimeError(
            f"{PYTHON} does not exist, and this comparison needs jaxmarl. Run tests/install_jaxmarl.sh first."
        )
    command = [str(PYTHON), "-W", "ignore", str(HERE / "jaxmarl_smax.py"), "play", task, "--episodes", str(episodes)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        while size := int.from_bytes(process.stdout.read(8), "little"):
            with np.load(io.BytesIO(process.stdout.read(size))) as arrays:
                yield {name: torch.from_numpy(arrays[name]) for name in arrays}
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with code {process.returncode}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", default=tasks())
    parser.add_argument("--episodes", type=int, default=500)
    parser.add_argument("--torch", action="store_true", help="compare the rules in torch instead of the compiled ones")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(
        "| map | episodes | steps | won | limit reached | largest difference | differing |\n|---|---|---|---|---|---|---|"
    )
    faults = 0
    for task in options.tasks:
        result = compare(task, options.episodes, not options.torch)
        faults += len(result.faults)
        counts = f"{result.episodes} | {result.steps} | {result.wins} | {result.limits}"
        print(f"| {task} | {counts} | {result.largest:.1e} | {len(result.faults)} |", flush=True)
        for line in result.faults[:5]:
            print(f"  {task}: {line}", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
