"""env=smax: the rules by hand-made situations, torch and the kernel alike. tests/parity compares them with jaxmarl."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from qllm_exp.envs import Observation, make_env
from qllm_exp.envs.smax import Config as SmaxConfig
from qllm_exp.envs.smax import kernel, tasks
from qllm_exp.envs.smax.battle import Battle, unit_attributes
from qllm_exp.envs.smax.env import SmaxEnv
from qllm_exp.envs.smax.maps import MAPS, UNIT_TYPES, Map
from qllm_exp.errors import UserError

CPU = torch.device("cpu")
NORTH, EAST, SOUTH, WEST, STOP, ATTACK = range(6)
TYPES = list(UNIT_TYPES)

# Observations, global states and actions of jaxmarl 0.2.0.
SIZES = {
    "3m": (75, 72, 8),
    "2s3z": (127, 120, 10),
    "5m_vs_6m": (140, 132, 11),
    "8m": (205, 192, 13),
    "3s5z": (205, 192, 13),
    "3s_vs_5z": (101, 96, 10),
    "6h_vs_8z": (179, 168, 13),
}
RULES: dict[str, Callable[[Map, int, torch.device], Battle]] = {"torch": Battle, "compiled": kernel.CompiledBattle}


def make(task: str = "3m", num_envs: int = 2, seed: int = 0, **options: object) -> SmaxEnv:
    env = make_env(SmaxConfig(task=task, **options), num_envs, seed)  # type: ignore[arg-type]
    assert isinstance(env, SmaxEnv)
    return env


def random_actions(available: Tensor, generator: torch.Generator, eager: bool = True) -> Tensor:
    """Actions [N, n]: attacks if any are available and `eager`, else mostly east; or any."""
    weights = available.float()
    if eager:
        weights[..., ATTACK:] *= 30
        weights[..., EAST] *= 4
    return torch.multinomial(weights.flatten(0, 1), 1, generator=generator).view(available.shape[:2])


class Arena:
    """A battle with chosen units and places, in one copy.

    Args:
        rules: key of RULES.
        allies: letter and place of each ally, e.g. ('m', 10, 16).
        enemies: the same of each enemy.
    """

    def __init__(
        self, rules: str, allies: list[tuple[str, float, float]], enemies: list[tuple[str, float, float]]
    ) -> None:
        units = [*allies, *enemies]
        battle_map = Map("".join(unit[0] for unit in allies), "".join(unit[0] for unit in enemies))
        self.battle = RULES[rules](battle_map, 1, CPU)
        types = torch.tensor([[TYPES.index(unit[0]) for unit in units]])
        self.shown = self.battle.start(types, torch.tensor([[unit[1:] for unit in units]]))
        self.reward = 0.0

    def step(self, *actions: int, follow: float = 0.0, draw: float = 1 / 3) -> Observation:
        """Advance by a step; a draw of 1/3 adds nothing to cooldowns."""
        enemies, units = self.battle.n_enemies, self.battle.n_units
        self.shown, reward = self.battle.step(
            torch.tensor([actions]), torch.full((1, enemies), follow), torch.full((1, units), draw)
        )
        self.reward = float(reward)
        return self.shown

    @property
    def health(self) -> list[float]:
        return [round(x, 4) for x in self.battle.health[0].tolist()]

    def place(self, unit: int) -> tuple[float, float]:
        x, y = self.battle.positions[0, unit].tolist()
        return round(x, 4), round(y, 4)


@pytest.fixture(params=RULES)
def rules(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_the_kernel_is_in_use_on_a_cpu() -> None:
    assert kernel.SOURCE.available(), kernel.SOURCE.status()
    assert isinstance(make().battle, kernel.CompiledBattle)


@pytest.mark.parametrize("task", tasks())
def test_the_kernel_and_torch_agree_bit_for_bit(task: str) -> None:
    compiled, plain = make(task, 12), make(task, 12)
    plain.battle = Battle(MAPS[task], 12, CPU)
    generator = torch.Generator().manual_seed(1)
    for eager in (True, False):
        moments = [env.reset() for env in (compiled, plain)]
        for step in range(40 if MAPS[task].size < 30 else 12):
            for name in moments[0]._fields:
                ours, theirs = (getattr(moment, name) for moment in moments)
                assert torch.equal(ours, theirs), f"{name} after step {step}"
            actions = random_actions(moments[0].available_actions, generator, eager)
            moments = [env.step(actions) for env in (compiled, plain)]  # type: ignore[misc]
        assert torch.equal(compiled.battle.health, plain.battle.health)


@pytest.mark.parametrize("task", SIZES)
def test_sizes_are_those_of_jaxmarl(task: str) -> None:
    env = make(task)
    assert (env.obs_dim, env.state_dim, env.n_actions) == SIZES[task]
    assert (env.n_agents, env.episode_limit) == (len(MAPS[task].allies), 100)


def test_the_table_of_types() -> None:
    expected = [
        [3.15, 9, 5, 9, 0.375, 45, 0.61],
        [2.25, 10, 6, 10, 0.5625, 125, 1.07],
        [4.13, 13, 6, 10, 0.625, 160, 1.87],
        [3.15, 8, 2, 9, 0.5, 150, 0.86],
        [4.13, 5, 2, 8, 0.375, 35, 0.5],
        [3.15, 12, 5, 9, 0.625, 80, 0.59],
    ]
    assert torch.equal(unit_attributes(), torch.tensor(expected))


@pytest.mark.parametrize(
    ("action", "x", "y"), [(NORTH, 0, 1), (EAST, 1, 0), (SOUTH, 0, -1), (WEST, -1, 0), (STOP, 0, 0)]
)
def test_a_move_is_half_a_second_at_the_speed_of_the_type(rules: str, action: int, x: int, y: int) -> None:
    arena = Arena(rules, [("m", 8, 16), ("s", 8, 20)], [("m", 24, 16)])
    arena.step(action, STOP)
    assert arena.place(0) == pytest.approx((8 + x * 3.15 / 2, 16 + y * 3.15 / 2), abs=1e-4)
    assert arena.place(1) == (8, 20)


def test_shots_take_health_at_the_rate_of_the_cooldown(rules: str) -> None:
    # A marauder, which an enemy zealot needs several steps to reach, shoots every 1.07 s, that is every 18 sub-steps of 1/16 s.
    arena = Arena(rules, [("M", 16, 16)], [("Z", 21.9, 16)])
    arena.step(ATTACK)
    assert arena.health == [125, 140]
    assert arena.reward == pytest.approx(10 / 150)
    arena.step(ATTACK)
    assert arena.health[1] == 140
    arena.step(ATTACK)
    assert arena.health[1] == 130, "17.12 sub-steps later: in the third step"


@pytest.mark.parametrize(("draw", "ready"), [(0.0, 8), (0.999, 11)])
def test_the_cooldown_of_a_shot_varies(rules: str, draw: float, ready: int) -> None:
    # A marine's 0.61 s, less 1/16 to more 2/16: 8.76 to 11.76 sub-steps, of which 7 are in the step of the shot.
    arena = Arena(rules, [("m", 16, 16)], [("s", 26, 16)])
    arena.battle.positions[0, 1, 0] = 20
    shown = arena.step(ATTACK, draw=draw)
    share = shown.obs[0, 0, 13 + 3].item()
    expected = (0.61 + (draw * 3 - 1) / 16 - 7 / 16) / 0.61
    assert share == pytest.approx(expected, abs=1e-4)
    assert ready == math.floor((0.61 + (draw * 3 - 1) / 16) * 16)


def test_attacks_out_of_range_and_on_the_dead_have_no_effect(rules: str) -> None:
    arena = Arena(rules, [("m", 8, 16), ("m", 8, 20)], [("m", 24, 16), ("m", 24, 20)])
    arena.step(ATTACK, ATTACK + 1)
    assert arena.health == [45, 45, 45, 45] and arena.reward == 0
    arena.battle.health[0, 2] = 0
    arena.battle.positions[0, 0] = torch.tensor([22.0, 16.0])
    arena.step(ATTACK, STOP)
    assert arena.health[2] == 0 and arena.reward == 0


def test_who_touches_the_border_dies(rules: str) -> None:
    arena = Arena(rules, [("m", 1, 16), ("m", 8, 16)], [("m", 24, 16)])
    shown = arena.step(WEST, STOP)
    assert arena.health == [0, 45, 45]
    assert shown.available_actions[0].tolist() == [[False] * 4 + [True, False], [True] * 5 + [False]]
    assert not shown.obs[0, 0].any() and not shown.state[0, :10].any()
    assert shown.obs[0, 1].any()
    place = arena.place(0)
    arena.step(EAST, STOP)
    assert arena.place(0) == place, "the dead do not move"


def test_overlapping_units_are_pushed_apart_by_half_of_the_overlap_each(rules: str) -> None:
    arena = Arena(rules, [("Z", 16, 16), ("Z", 16.4, 16)], [("m", 30, 30)])
    assert arena.place(0) == pytest.approx((15.7, 16), abs=1e-4)
    assert arena.place(1) == pytest.approx((16.7, 16), abs=1e-4)


def test_the_dead_do_not_collide(rules: str) -> None:
    arena = Arena(rules, [("Z", 16, 16), ("Z", 18, 16)], [("m", 31, 31)])
    arena.battle.health[0, 1] = 0
    arena.step(EAST, STOP)
    assert arena.place(0) == pytest.approx((16 + 3.15 / 2, 16), abs=1e-4) and arena.place(1) == (18, 16)


def test_a_battle_won_gives_two_and_a_draw_no_bonus(rules: str) -> None:
    arena = Arena(rules, [("m", 16, 16)], [("m", 20, 16)])
    arena.battle.health[0] = torch.tensor([45.0, 9.0])
    arena.step(ATTACK)
    assert arena.reward == pytest.approx(9 / 45 + 1)
    assert arena.battle.won().tolist() == [True] and arena.battle.playing.tolist() == [False]

    draw = Arena(rules, [("m", 16, 16)], [("m", 20, 16)])
    draw.battle.health[0] = torch.tensor([9.0, 9.0])
    draw.step(ATTACK)
    assert draw.health == [0, 0] and draw.reward == pytest.approx(9 / 45)
    assert draw.battle.won().tolist() == [False] and draw.battle.playing.tolist() == [False]


def test_the_enemy_attacks_the_closest_and_stays_with_it(rules: str) -> None:
    arena = Arena(rules, [("m", 16, 16), ("m", 16, 20)], [("s", 20, 17)])
    arena.step(STOP, STOP)
    assert arena.health[:2] == [32, 45]
    arena.battle.positions[0, 1] = torch.tensor([20.0, 18.5])
    for _ in range(4):
        arena.step(STOP, STOP)
    assert arena.health[:2] == [19, 45], "the other is closer now"
    arena.battle.positions[0, 0] = torch.tensor([4.0, 4.0])
    for _ in range(4):
        arena.step(STOP, STOP)
    assert arena.health[:2] == [19, 32], "the first is out of range"


@pytest.mark.parametrize(("follow", "direction"), [(0.0, "north"), (0.49, "north"), (0.5, "south"), (0.99, "south")])
def test_the_enemy_follows_one_of_those_it_sees(rules: str, follow: float, direction: str) -> None:
    # An enemy counts the allies from the last to the first; the one in the north is the last.
    arena = Arena(rules, [("m", 16, 9), ("m", 16, 23), ("m", 2, 2)], [("m", 16, 16)])
    arena.step(STOP, STOP, STOP, follow=follow)
    assert arena.place(3)[1] == pytest.approx(16 + (1 if direction == "north" else -1) * 3.15 / 2, abs=1e-4)


def test_an_enemy_that_sees_nobody_goes_to_the_place_opposite_its_start(rules: str) -> None:
    arena = Arena(rules, [("m", 2, 2)], [("m", 24, 15)])
    for _ in range(9):
        arena.step(STOP)
    assert arena.place(1) == pytest.approx((24 - 9 * 3.15 / 2, 15), abs=1e-3), "(8, 17) is opposite: west first"


def test_an_observation(rules: str) -> None:
    arena = Arena(rules, [("m", 10, 16), ("s", 16, 16)], [("Z", 14, 19), ("Z", 30, 16)])
    shown = arena.step(NORTH, ATTACK)
    first = shown.obs[0, 0]
    (x, y), (other_x, other_y) = arena.place(0), arena.place(1)
    stalker = [
        (160 - 0) / 160,
        (other_x - x) / 9,
        (other_y - y) / 9,
        0,
        0,
        5 / 6,
        (1.87 - 7 / 16) / 1.87,
        0,
        0,
        1,
        0,
        0,
        0,
    ]
    assert first[:13].tolist() == pytest.approx(stalker, abs=1e-4)
    assert first[13].item() == pytest.approx((150 - 13) / 150)
    assert first[26:39].tolist() == [0] * 13, "too far away"
    assert first[39:].tolist() == pytest.approx([1, x / 32, y / 32, 0, 1, 0, 0, 0, 0, 0], abs=1e-4)
    second = shown.obs[0, 1]
    assert second[3:5].tolist() == pytest.approx([0, 1]), "the marine moved north"


def test_the_state_has_the_columns_that_its_layout_names() -> None:
    env = make("2s3z", 1)
    state = env.reset().state[0]
    read = lambda kind, index, name: state[env.layout.find(kind, name, index).columns].tolist()  # noqa: E731
    for kind, first in (("agent", 0), ("enemy", 5)):
        for index in range(5):
            assert read(kind, index, "health") == [1.0] and read(kind, index, "cooldown") == [0.0]
            place = env.battle.positions[0, first + index] / 32
            assert read(kind, index, "position") == pytest.approx(place.tolist())
            assert read(kind, index, "is_type") == [float(letter == MAPS["2s3z"].allies[index]) for letter in TYPES]
            assert read(kind, index, "type") == [TYPES.index(MAPS["2s3z"].allies[index])]
            assert read(kind, index, "team") == [float(kind == "enemy")]


def test_copies_that_have_ended_wait() -> None:
    env = make("3m", 32)
    available, generator = env.reset().available_actions, torch.Generator().manual_seed(0)
    ended = torch.zeros(32, dtype=torch.bool)
    while not ended.any() or ended.all():
        step = env.step(random_actions(available, generator))
        available, ended = step.available_actions, ended | step.terminated
    health, wins = env.battle.health.clone(), env.episode_metrics()["win"]
    step = env.step(random_actions(available, generator))
    assert torch.equal(env.battle.health[ended], health[ended])
    assert torch.equal(env.episode_metrics()["win"][ended], wins[ended])
    assert not step.reward[ended].any() and not step.obs[ended].any() and not step.state[ended].any()
    assert not step.terminated[ended].any() and not step.truncated.any()


def test_the_limit_truncates_what_has_not_ended() -> None:
    env = make("3m", 4, episode_limit=2)
    env.reset()
    stop = torch.full((4, 3), STOP)
    assert not env.step(stop).truncated.any()
    step = env.step(stop)
    assert step.truncated.all() and not step.terminated.any()
    assert env.step(stop).truncated.tolist() == [False] * 4


def test_sum_adds_the_rewards_of_all_allies() -> None:
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    envs = [make("3m", 8, reward=reward) for reward in ("mean", "sum")]
    available = [env.reset().available_actions for env in envs]
    for _ in range(12):
        steps = [
            env.step(random_actions(mask, rng)) for env, mask, rng in zip(envs, available, generators, strict=True)
        ]
        available = [step.available_actions for step in steps]
        torch.testing.assert_close(steps[1].reward, 3 * steps[0].reward)
    assert "at most 2." in envs[0].task.reward and "at most 6." in envs[1].task.reward


def test_starts_of_fixed_maps_are_around_the_middle_of_each_half() -> None:
    env = make("8m", 2000)
    env.reset()
    centres = env.battle.positions.mean(0)
    torch.testing.assert_close(centres[:8], torch.tensor([8.0, 16.0]).expand(8, 2), rtol=0, atol=0.15)
    torch.testing.assert_close(centres[8:], torch.tensor([24.0, 16.0]).expand(8, 2), rtol=0, atol=0.15)


def test_starts_of_drawn_maps_are_half_mirrored_and_half_surrounded() -> None:
    env = make("smacv2_10_units", 1000)
    env.reset()
    types = env.battle._types
    assert torch.equal(types[:, :10], types[:, 10:]), "the enemy has the same types"
    assert torch.bincount(types.flatten(), minlength=6).min() > 20_000 / 6 * 0.9
    positions = env.battle.positions
    mirrored = ((positions[:, :10, 0] + positions[:, 10:, 0] - 32).abs().mean(1) < 0.5).float().mean()
    centre = ((positions - 16).abs().amax(2) < 3).float()
    inside = torch.maximum(centre[:, :10].mean(1), centre[:, 10:].mean(1)) > 0.85
    assert mirrored == pytest.approx(0.5, abs=0.06) and inside.float().mean() == pytest.approx(0.5, abs=0.06)


def test_actions_that_do_not_exist_are_refused_by_the_kernel() -> None:
    env = make("3m", 2)
    env.reset()
    health = env.battle.health.clone()
    for action in (-1, 8):
        with pytest.raises(ValueError, match="0 to 7"):
            env.step(torch.tensor([[0, 0, 0], [0, action, 0]]))
    with pytest.raises(ValueError, match=r"expected int64 \(2, 3\)"):
        env.step(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"expected int64 \(2, 3\)"):
        env.step(torch.zeros(3, 2, dtype=torch.int64))
    assert torch.equal(env.battle.health, health)


def test_an_unknown_map_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UserError, match=r"3s_vs_5z"):
        make("3s_vs_5Z")


@pytest.mark.parametrize("task", tasks())
def test_every_map_describes_its_units(task: str) -> None:
    text = make(task, 1).task
    for letter in TYPES if MAPS[task].drawn else set(MAPS[task].allies + MAPS[task].enemies):
        assert f"{UNIT_TYPES[letter].name}: health {UNIT_TYPES[letter].health:g}" in text.goal
    assert len(text.actions) == 5 + len(MAPS[task].enemies)
