"""The static check: realistic functions pass, everything else is refused with a helpful reason."""

import pytest
from tfcaf_functions import ALL, Written

from qllm_exp.credit.refused import Refused
from qllm_exp.generation.static_check import check

HEAD = "def credit_assignment(agents_q, global_state):\n"


@pytest.mark.parametrize("written", ALL, ids=lambda written: written.name)
def test_realistic_functions_pass(written: Written) -> None:
    assert check(written.source) in ("credit_assignment", "QLLMNetwork")


@pytest.mark.parametrize(
    "body",
    [
        "    import math\n    return agents_q.mean(1, keepdim=True) * math.pi",
        "    return torch.nn.functional.softmax(global_state[..., :3], -1).mul(agents_q).sum(1, keepdim=True)",
        "    mean = lambda x: x.mean(dim=1, keepdim=True)\n    return mean(agents_q)",
        "    parts = {'near': global_state[:, 0], 'far': global_state[:, 1]}\n"
        "    total = sum(v for k, v in parts.items())\n    return agents_q * total.unsqueeze(-1)",
        "    for column in agents_q.unbind(dim=1):\n        pass\n    return column.view(-1, 1)",
        "    for i in reversed(range(3)):\n        for j in range(3):\n            if i == j:\n                continue\n"
        "    return agents_q",
        "    x: torch.Tensor = agents_q[:, :1]\n    x += 1\n    return x",
        "    import numpy as np\n    return agents_q * np.pi",
        "    import torch.nn as nn\n    return nn.functional.relu(agents_q)",
        "    from torch import Tensor\n    from typing import List, Optional\n    x: Optional[Tensor] = None\n    return agents_q",
        "    from itertools import permutations\n    return sum(agents_q[:, p[0]] for p in permutations(range(3)))",
        "    with torch.no_grad():\n        w = agents_q * 2\n    return w",
        "    if agents_q.dim() != 2:\n        raise ValueError('x')\n    assert agents_q.shape[1], 'none'\n    return agents_q",
        "    if (n := agents_q.shape[1]) > 2:\n        pass\n    return agents_q[:, sorted({2, 0, 1})] / n",
        "    w = torch.zeros(3)\n    w.clamp_(0.1, 1.0).mul_(2)\n    return agents_q * w.fill_(torch.finfo(w.dtype).eps)",
        "    isinstance(agents_q, torch.Tensor)\n    print('x')\n    for c in 'abc':\n        pass\n    return agents_q",
        "    return agents_q * torch.FloatTensor([1.0, 2.0, 3.0]) + int(agents_q.shape[0])",
    ],
)
def test_ordinary_python_around_the_tensors_passes(body: str) -> None:
    assert check(HEAD + body) == "credit_assignment"


def test_helpers_constants_and_a_script_block_may_stand_beside_the_function() -> None:
    source = (
        "from __future__ import annotations\nimport torch\nfrom functools import lru_cache\nEPS: float = 1e-6\n"
        "@lru_cache(None)\ndef helper(x: torch.Tensor, k=2):\n    return x * k\n"
        + HEAD.replace("global_state", "global_state, scale=1.0")
        + "    return helper(agents_q) + EPS\n\nif __name__ == '__main__':\n    open('x')\n"
    )
    assert check(source) == "credit_assignment"


def test_all_faults_are_named_at_once() -> None:
    body = "    x = torch.rand(1)\n    y = x.item()\n    import os\n    return open(y) * weight"
    with pytest.raises(Refused) as refused:
        check(HEAD + body)
    reason = refused.value.reason
    for fragment in (
        "line 2: torch.rand",
        "line 3: .item",
        "line 4: 'import os'",
        "line 5: 'open'",
        "line 5: 'weight' is not defined",
    ):
        assert fragment in reason
    with pytest.raises(Refused, match=r"and 12 more faults$"):
        check(HEAD + "".join(f"    a{k} = agents_q.item() + {k}\n" for k in range(20)) + "    return agents_q")


BODIES = [  # body of the function, fragment of the reason
    ("    import os\n    return agents_q", "'import os' is not allowed: import torch, math"),
    ("    import scipy\n    return agents_q", "use torch"),
    ("    import numpy as np\n    return np.load('x')", "np.load is not on the list"),
    ("    import numpy as torch\n    return agents_q", "'torch' already has another meaning"),
    ("    from torch import nn\n    return nn.Linear(3, 1)(agents_q)", "no trainable parameters"),
    ("    from os import system\n    return agents_q", "'from os import system'"),
    ("    from . import x\n    return agents_q", "not allowed"),
    ("    import subprocess, torch\n    return agents_q", "subprocess"),
    ("    return torch.os.system('true')", "torch.os.system is not on the list"),
    ("    torch.save(agents_q, 'x')\n    return agents_q", "torch.save is not on the list"),
    ("    return torch.load('x')", "torch.load"),
    ("    return torch.hub.load('a', 'b')", "not on the list"),
    ("    return torch.ops.aten.mul(agents_q, 2)", "not on the list"),
    ("    return torch.utils.cpp_extension.load(name='x', sources=[])", "not on the list"),
    ("    return torch.nn.functional.torch.save", "not on the list"),
    ("    return F.torch", "not on the list"),
    ("    return math.factorial(10**6)", "math.factorial"),
    ("    return torch", "may only be used to call a function"),
    ("    t = [torch][0]\n    return t.load('x')", "may only be used to call a function"),
    ("    torch = agents_q\n    return torch", "'torch' is reserved"),
    ("    F = 3\n    return agents_q", "'F' is reserved for torch.nn.functional"),
    ("    return eval('agents_q')", "'eval' is not allowed"),
    ("    exec('import os')\n    return agents_q", "'exec' is not allowed"),
    ("    open('/etc/passwd')\n    return agents_q", "'open' is not allowed"),
    ("    input(agents_q)\n    return agents_q", "reads and writes nothing"),
    ("    return getattr(agents_q, 'sum')()", "'getattr' is not allowed"),
    ("    return globals()['x']", "'globals' is not allowed"),
    ("    return __import__('os')", "'__import__' is not allowed"),
    ("    return __builtins__", "not defined"),
    ("    if __name__ == '__main__':\n        pass\n    return agents_q", "'__name__' is not defined"),
    ("    if __name__ != '__main__':\n        pass\n    return agents_q", "'__name__' is not defined"),
    ("    return agents_q.__class__", "private attribute '__class__'"),
    ("    return ().__class__.__base__.__subclasses__()", "private attribute"),
    ("    return agents_q._base", "private attribute"),
    ("    return f'{agents_q.__dict__}'", "private attribute"),
    ("    return '{0.__class__}'.format(agents_q)", r"\.format is not on the list"),
    ("    return agents_q.storage()", r"\.storage is not on the list"),
    ("    return agents_q.register_hook(print)", "register_hook|print"),
    ("    return agents_q.map_(agents_q, max)", "use tensor operations"),
    ("    return agents_q.unflatten_(1)", r"in place: write x = x.unflatten\(\.\.\.\)"),
    ("    return agents_q.fill_diagonal_(0)", "torch.eye"),
    ("    torch.add(agents_q, 1, out=agents_q)\n    return agents_q", r"out=\.\.\. is not allowed"),
    ("    return agents_q.data", "takes values out"),
    ("    agents_q.requires_grad = False\n    return agents_q", "not on the list|not allowed"),
    ("    agents_q.T = 3\n    return agents_q", "assigning to the attribute"),
    ("    return agents_q * global_state[0, 0].item()", "torch.where"),
    ("    return agents_q.tolist()", "takes values out"),
    ("    return agents_q * torch.rand(1)", "equal inputs must give equal outputs"),
    ("    return torch.randn_like(agents_q)", "random"),
    ("    return F.dropout(agents_q)", "random"),
    ("    return F.gumbel_softmax(agents_q)", "random"),
    ("    torch.manual_seed(0)\n    return agents_q", "random"),
    ("    return torch.empty(3)", "uninitialised"),
    ("    return torch.Tensor(3)", "uninitialised"),
    ("    T = torch.FloatTensor\n    return T(3)", "is a type"),
    ("    return torch.nn.Linear(3, 1)(agents_q)", "no trainable parameters"),
    ("    w = torch.nn.Parameter(torch.zeros(3))\n    return agents_q", "no trainable parameters"),
    ("    return agents_q.cuda()", "device=agents_q.device"),
    ("    return torch.nonzero(agents_q)", "depends on tensor values"),
    ("    with torch.enable_grad():\n        w = agents_q\n    return w", r"tensor.detach\(\)"),
    ("    with open('x') as f:\n        pass\n    return agents_q", "with blocks are not allowed"),
    ("    g = torch.no_grad()\n    return agents_q", "only allowed in 'with torch.no_grad"),
    ("    while True:\n        pass", "while loops are not allowed"),
    ("    for i in range(100000):\n        agents_q = agents_q + 1\n    return agents_q", "runs 100000 times"),
    ("    for i in range(300):\n        for j in range(300):\n            pass\n    return agents_q", "runs 90000 times"),
    ("    x = [i for i in range(270) for j in range(270)]\n    return agents_q", "runs 72900 times"),
    ("    for i in range(9999999999999999999):\n        pass\n    return agents_q", "runs 9999999999999999999 times"),
    ("    for c in agents_q.tolist():\n        pass\n    return agents_q", "takes values out"),
    ("    try:\n        pass\n    except:\n        pass\n    return agents_q", "try is not allowed"),
    ("    raise agents_q", "raise is only allowed with a built-in error"),
    ("    global x\n    x = 1\n    return agents_q", "global is not allowed"),
    ("    class A: pass\n    return agents_q", "classes are not allowed"),
    ("    yield agents_q", "yield is not allowed"),
    ("    match 1:\n        case 1: pass\n    return agents_q", "match is not allowed"),
    ("    @torch.no_grad()\n    def h(x): return x\n    return h(agents_q)", "decorators are not allowed|no_grad"),
    ("    range = 3\n    return agents_q", "must not be redefined"),
    ("    return agents_q * weight", "'weight' is not defined"),
    ("    return agents_q * 1j", "complex values"),
    ("    return b'x'", "bytes values"),
    ("    return '" + "x" * 300 + "'", "string of 300 characters"),
    ("    return agents_q * 9007199254740993", "beyond 2\\*\\*53"),
    ("    return agents_q +", "line 2: not valid Python"),
    ("    return " + "-" * 15000 + "agents_q", "nested too deeply"),
    ("    return " + "(" * 500 + ")" * 500, "not valid Python"),
    ("    x = [" + "1," * 6000 + "]\n    return agents_q", "too long"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "reason"), BODIES, ids=[str(number) for number in range(len(BODIES))])
def test_refuses_with_a_helpful_reason(body: str, reason: str) -> None:
    with pytest.raises(Refused, match=reason) as refused:
        check(HEAD + body)
    assert refused.value.stage == "static"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("", "no function at its top level"),
        ("torch.save(1, 'x')\n" + HEAD + "    return agents_q", "line 1: torch.save"),
        (HEAD + "    return agents_q\n\n" + HEAD + "    return agents_q", "exactly one function must be called"),
        ("def f(x):\n    return x\n\ndef g(x):\n    return x", "the functions are: f, g"),
        ("def mixer(agents_q, global_state):\n    return agents_q", "call it 'credit_assignment'"),
        ("def credit_assignment(agents_q):\n    return agents_q", r"must be \(agents_q, global_state\)"),
        ("def credit_assignment(agents_q, state, k=open('x')):\n    return agents_q", "'open' is not allowed"),
        ("def credit_assignment(agents_q, state, k):\n    return agents_q", "others only with defaults"),
        ("def credit_assignment(*args):\n    return args", r"must be \(agents_q"),
        ("async def credit_assignment(agents_q, state):\n    return agents_q", "async"),
        (
            "@torch.compile\ndef credit_assignment(agents_q, state):\n    return agents_q",
            "torch.compile is not allowed",
        ),
        ("class M:\n    def credit_assignment(self, q): pass", "classes"),
        ("from torch import *\n" + HEAD + "    return agents_q", r"'from torch import \*'"),
        ("\0", "null bytes"),
        ("#" * 30_000, "30000 characters"),
        ("Here is the function you asked for.", "not valid Python"),
    ],
)
def test_refuses_what_is_not_a_single_function(source: str, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        check(source)


def test_reasons_name_the_line() -> None:
    with pytest.raises(Refused, match=r"^line 3: "):
        check(HEAD + "    x = agents_q\n    return x.numpy()")
