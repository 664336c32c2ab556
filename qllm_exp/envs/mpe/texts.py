"""The scenarios in words: what the team is to achieve, and the reward that an agent gets at each step."""

from typing import NamedTuple


class ScenarioText(NamedTuple):
    """Description of a scenario.

    Attributes:
        goal: what the team is to achieve.
        reward: the reward of one agent at one step, before the sum or mean over the team.
    """

    goal: str
    reward: str


TEXTS = {
    "simple_spread": ScenarioText(
        "Agents and as many landmarks lie in a plane. The agents are to cover all landmarks, each another one, without "
        "bumping into each other. Each agent sees where all others and all landmarks are, relative to itself.",
        "Every agent gets the same: minus the distance of each landmark to the agent nearest to it, summed over the "
        "landmarks and times the number of agents, and -2 for each pair of agents that overlap.",
    ),
    "simple_adversary": ScenarioText(
        "One landmark is the goal; the team's agents know which, the adversary does not. The team is to have one agent "
        "at the goal while the adversary stays away from it, so the agents should also cover the other landmarks to "
        "mislead the adversary.",
        "Every agent gets the same: the distance of the adversary from the goal, minus the distance from the goal of "
        "the team's agent that is nearest to it.",
    ),
    "simple_tag": ScenarioText(
        "The agents are chasers who are to catch the prey, which is faster than they are. Round obstacles, which "
        "cannot be passed through, stand at the landmarks, and all stay inside a square.",
        "Every chaser gets the same, unless the options say otherwise: 10 for each pair of a chaser and a prey that touch.",
    ),
    "simple": ScenarioText(
        "One agent is to go to the landmark.", "Minus the squared distance of the agent to the landmark."
    ),
    "simple_crypto": ScenarioText(
        "A speaker (alice) knows a secret and a key; a listener (bob) knows the key and hears the speaker's word. The "
        "listener is to say the secret; an eavesdropper, who hears the word but has no key, should not be able to.",
        "Every agent gets the same: the squared error of the eavesdropper's word against the secret, minus that of the "
        "listener's.",
    ),
    "simple_push": ScenarioText(
        "The team's agent knows which landmark is the goal and is to be there; the adversary can push it away.",
        "Minus the distance of the agent to the goal.",
    ),
    "simple_reference": ScenarioText(
        "Two agents are each to go to a landmark of their own, which only the other one knows: they must tell each "
        "other by the words that they say.",
        "Every agent gets the same: minus the sum of both agents' distances to their landmarks.",
    ),
    "simple_speaker_listener": ScenarioText(
        "The listener is to go to the goal landmark, known to the speaker alone. The speaker cannot move, only speak.",
        "Every agent gets the same: minus twice the distance of the listener to the goal.",
    ),
    "simple_world_comm": ScenarioText(
        "The agents are chasers who are to catch the prey, which are faster and may hide in forests, where only the "
        "leading chaser sees them. The leading chaser can speak to the others. A landmark is an obstacle, food that "
        "the prey like, or a forest.",
        "Every chaser gets the same: 5 for each pair of a chaser and a prey that touch.",
    ),
    "balance": ScenarioText(
        "Agents below a bar carry a package that lies on it, against gravity. They are to bring the package to the "
        "goal without letting it, or the bar, fall.",
        "How much nearer the package came to the goal (times 100), and -10 while it lies on the ground.",
    ),
    "ball_passage": ScenarioText(
        "Two agents are to push a ball through a gap in a wall to the goal on the other side.",
        "How much nearer the ball came to the gap or the goal, and penalties for touching walls.",
    ),
    "ball_trajectory": ScenarioText(
        "Two agents tied to a ball by rods are to keep the ball moving on a circle.",
        "How much nearer the ball's speed, and where the options say so its place, came to the wanted one.",
    ),
    "buzz_wire": ScenarioText(
        "Two agents tied to a ball are to bring it along a corridor to the goal without touching the walls.",
        "How much nearer the ball came to the goal, and -10 for touching a wall.",
    ),
    "discovery": ScenarioText(
        "The agents are to find targets and to be at each with several at the same time (two by default).",
        "1 for a target that the agent helped to cover, and penalties as the options set them.",
    ),
    "dispersion": ScenarioText(
        "All agents start in one place and are to eat every piece of food once, so each should go for another one.",
        "1 for a piece of food eaten, shared among the agents at it.",
    ),
    "dropout": ScenarioText(
        "One agent at the goal is enough; every movement costs all of them, so one should go and the others stay.",
        "1 when any agent reaches the goal, minus the energy that all agents use.",
    ),
    "flocking": ScenarioText(
        "The agents are to surround and follow a moving target without touching each other or the obstacles.",
        "How much nearer the agent's distances to the others and to the target came to the wanted one, and -0.1 for "
        "touching.",
    ),
    "football": ScenarioText(
        "The blue team is to score against a scripted red team and to keep the ball out of its own goal.",
        "100 for a goal, -100 for one conceded, and small amounts as the ball comes nearer to the red goal and an "
        "agent to the ball.",
    ),
    "give_way": ScenarioText(
        "Two agents must pass each other in a corridor that is wide enough at one place only, each to its own goal.",
        "How much nearer each agent came to its goal, and a bonus when both are there.",
    ),
    "joint_passage": ScenarioText(
        "Two agents tied together by a rod with a load are to pass a gap and lay the rod on the goal.",
        "How much nearer the rod came to the gap and then to the goal, and penalties as the options set them.",
    ),
    "joint_passage_size": ScenarioText(
        "Two agents of different size, tied together by a rod, are to pass gaps of different size and reach the goal.",
        "How much nearer the rod came to the gap and then to the goal, and penalties as the options set them.",
    ),
    "multi_give_way": ScenarioText(
        "Four agents start at the ends of a cross of corridors and must let each other pass to reach the opposite end.",
        "How much nearer each agent came to its goal, a bonus when all are there, and penalties for touching.",
    ),
    "navigation": ScenarioText(
        "Each agent is to go to its own goal without touching the others.",
        "How much nearer the agents came to their goals, a bonus when all are there, and -1 for touching another.",
    ),
    "passage": ScenarioText(
        "A formation of agents must pass a gap in a wall and form again on the other side, each at its own goal.",
        "How much nearer the agents came to their goals, and -10 for touching another agent or a wall.",
    ),
    "reverse_transport": ScenarioText(
        "The agents are inside a hollow package and are to push it to the goal from there.",
        "How much nearer the package came to the goal (times 100).",
    ),
    "road_traffic": ScenarioText(
        "Each agent drives a car along its own lane and must neither leave it nor hit another car.",
        "Progress and speed along the lane, and penalties for leaving it and for coming near to others.",
    ),
    "sampling": ScenarioText(
        "The agents are to sample as much as they can of a density that lies over the area; what was sampled is gone.",
        "The density of the cells that were newly visited at this step.",
    ),
    "transport": ScenarioText(
        "The agents are to push packages, which are too heavy for one alone, to the goal.",
        "How much nearer the packages came to the goal (times 100).",
    ),
    "wheel": ScenarioText(
        "The agents are to turn a heavy line, fixed in its middle, at the wanted speed.",
        "Minus the difference between the line's speed and the wanted one.",
    ),
    "wind_flocking": ScenarioText(
        "Two agents fly against the wind; one can shelter the other. They are to keep their formation and speed at the "
        "least energy.",
        "How much better speed, distance and shelter became.",
    ),
}

# simple_tag on the unbounded plane of PettingZoo's rules.
UNBOUNDED_TAG = ScenarioText(
    "The agents are chasers who are to catch the prey, which is faster than they are. Round obstacles, which cannot be passed "
    "through, stand at the landmarks. The plane has no border.",
    "Every chaser gets the same: 10 for each pair of a chaser and a prey that touch.",
)
