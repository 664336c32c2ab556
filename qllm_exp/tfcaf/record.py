"""From a language model's answer to a stored function, with the conversation that led to it."""

import torch
from torch import Tensor

from qllm_exp.envs.base import TeamEnv
from qllm_exp.tfcaf.entry import Entry
from qllm_exp.tfcaf.export import export
from qllm_exp.tfcaf.prompt import extract_code, render
from qllm_exp.tfcaf.static_check import check


def record(env: TeamEnv, answer: str, model: str, date: str) -> Entry:
    """The entry for an answer to exactly the coder's prompt for `env`; raises Refused when the answer is not usable.

    Args:
        answer: the model's whole answer, unedited. model, date: who gave it and when, in words.
    """
    prompts = render(env)
    source = extract_code(answer)
    return Entry(
        env=env.task.env,
        task=env.task.task,
        source=source,
        function=check(source),
        program=export(source, env.n_agents, env.state_dim, states=sample_states(env, 64)),
        prompt_hash=prompts.hash,
        provenance={"model": model, "date": date, "procedure": "one answer to the coder's prompt"},
        transcript=(
            {"role": "system", "content": prompts.coder_system},
            {"role": "user", "content": prompts.coder_request},
            {"role": "assistant", "content": answer},
        ),
        verdict="the only candidate",
    )


def sample_states(env: TeamEnv, count: int) -> Tensor:
    """[count, state_dim] states of the task itself, met by acting at random; the same ones for equal seeds of `env`."""
    generator = torch.Generator(env.device).manual_seed(0)
    seen = env.reset()
    states, available = [seen.state], seen.available_actions
    while sum(map(len, states)) < count:
        draw = torch.rand(available.shape, generator=generator, device=env.device)
        step = env.step(torch.where(available, draw, -1.0).argmax(-1))
        states.append(step.state)
        available = step.available_actions
        if bool((step.terminated | step.truncated).any()):
            available = env.reset().available_actions
    return torch.cat(states)[:count]
