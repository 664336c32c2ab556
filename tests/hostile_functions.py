"""Hostile and broken functions for the verifier, most of them from templates, with the stages that may refuse them.

All are for 3 agents and a state of 18 columns (mpe simple_spread). CANARY in a source is replaced by a file to write.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

HEAD = "def credit_assignment(agents_q, global_state):\n"
MEAN = "agents_q.mean(1, keepdim=True)"
CANARY = "CANARY"


@dataclass(frozen=True)
class Hostile:
    """A function that must be refused.

    Attributes:
        kind: name of the attack.
        source: Python source.
        stages: stages that may refuse it with the IGM gate on.
        endless: whether only a time limit ends it.
    """

    kind: str
    source: str
    stages: frozenset[str]
    endless: bool = False


def _functions(kind: str, stages: str, *bodies: str, endless: bool = False) -> Iterator[Hostile]:
    """Make a function per body. A body without indentation is an expression that the function computes before it returns."""
    for body in bodies:
        lines = body if body.startswith("    ") else f"    x = {body}\n    return {MEAN} + 0 * x"
        yield Hostile(kind, HEAD + lines, frozenset(stages.split()), endless=endless)


MODULES = (
    "os",
    "sys",
    "subprocess",
    "socket",
    "ctypes",
    "builtins",
    "importlib",
    "pickle",
    "torch._C",
    "inspect",
)
IMPORTS = (
    "    import {0}\n    return {1}",
    "    import {0} as math\n    return {1}",
    "    from {0} import *\n    return {1}",
    "    x = __import__('{0}')\n    return {1}",
)
INNER = (  # members of torch, also tried as th.NAME
    "os.system('touch CANARY')",
    "sys.modules",
    "save(agents_q, 'CANARY')",
    "load('CANARY')",
    "hub.load('a/b', 'c')",
    "hub.download_url_to_file('http://127.0.0.1', 'CANARY')",
    "ops.aten.mul(agents_q, 2)",
    "ops.load_library('CANARY')",
    "classes.load_library('CANARY')",
    "_C._cuda_init()",
    "utils.cpp_extension.load_inline('x', '')",
    "jit.load('CANARY')",
    "jit.script(agents_q)",
    "package.PackageExporter('CANARY')",
    "multiprocessing.Process()",
    "distributed.init_process_group('gloo')",
    "from_file('CANARY', shared=True, size=4)",
    "from_dlpack(agents_q)",
    "frombuffer(agents_q, dtype=agents_q.dtype)",
    "UntypedStorage.from_file('CANARY', True, 4)",
    "serialization.os.environ",
    "autograd.Function",
    "fx.Interpreter",
    "library.Library('x', 'DEF')",
    "compile(agents_q)",
    "set_default_device('meta')",
    "set_num_threads(64)",
    "random.os",
    "__builtins__",
    "__loader__.get_data('/etc/passwd')",
)
DUNDER = (
    "{0}.__class__",
    "{0}.__class__.__mro__[-1].__subclasses__()",
    "{0}.__init__.__globals__",
    "{0}.__reduce__()",
    "{0}.__getattribute__('__class__')",
    "{0}._\uff3fclass\uff3f_",
    "f'{{{0}.__class__}}'",
    "f'{{{0}!r:{{{0}.__class__}}}}'",
    "'{{0.__class__}}'.format({0})",
    "'{{x.__globals__}}'.format_map({{'x': {0}}})",
)
OBJECTS = ("agents_q", "(1).real", "[]", "torch.tensor", "credit_assignment", "(lambda: 0)", "len", "agents_q.shape")
BUILTINS = (
    "eval('1')",
    "exec('1')",
    "compile('1', '', 'exec')",
    "open('CANARY', 'w')",
    "input()",
    "breakpoint()",
    "globals()",
    "locals()",
    "vars()",
    "dir()",
    "getattr(agents_q, 'data')",
    "setattr(agents_q, 'x', 1)",
    "type(1)",
    "object()",
    "super()",
    "hasattr(1, 'x')",
    "delattr(1, 'x')",
    "memoryview(b'')",
    "bytearray(9)",
    "id(1)",
    "help()",
    "classmethod(len)",
    "property(len)",
    "callable(1)",
    "hash(1)",
    "__builtins__['eval']",
    "__name__",
    "__file__",
    "__spec__",
    "__debug__",
    "exit()",
    "quit()",
    "copyright",
    "license()",
)
METHODS = (
    "numpy()",
    "data_ptr()",
    "storage()",
    "untyped_storage()",
    "data",
    "grad_fn",
    "tolist()",
    "item()",
    "apply_(len)",
    "map_(agents_q, len)",
    "map2_(agents_q, agents_q, len)",
    "register_hook(len)",
    "share_memory_()",
    "set_(agents_q)",
    "resize_(10**9)",
    "as_strided((9,), (1,), 10**9)",
    "as_subclass(len)",
    "backward()",
    "requires_grad_()",
    "cuda()",
    "to_dense()",
    "pin_memory()",
    "is_shared()",
    "names",
    "type('x')",
    "new(9)",
    "new_empty(9)",
    "random_()",
    "normal_()",
    "bernoulli()",
    "multinomial(1)",
    "nonzero()",
    "retain_grad()",
    "module_load(agents_q)",
    "dtype.to_complex()",
    "device.type",
    "T.mH",
    "char()",
    "index",
)
STATEMENTS = (
    "    class A(torch.Tensor):\n        pass\n    return {0}",
    "    @len\n    def h():\n        pass\n    return {0}",
    "    def h(x=open('CANARY', 'w')):\n        return x\n    return {0}",
    "    h = lambda x=().__class__: x\n    return {0}",
    "    try:\n        x = 1\n    finally:\n        pass\n    return {0}",
    "    with torch.inference_mode():\n        return {0}",
    "    global torch\n    return {0}",
    "    nonlocal agents_q\n    return {0}",
    "    def credit_assignment():\n        yield 1\n    yield {0}",
    "    async def h():\n        await h()\n    return {0}",
    "    while True:\n        pass\n    return {0}",
    "    raise SystemExit",
    "    torch.add = len\n    return {0}",
    "    math.pi += 1\n    return {0}",
    "    (math.e, F.relu) = (len, len)\n    return {0}",
    "    for math.isfinite in [len]:\n        pass\n    return {0}",
    "    agents_q.shape = 3\n    return {0}",
    "    len = 3\n    return {0}",
    "    torch = 3\n    return {0}",
    "    __builtins__ = {{}}\n    return {0}",
    "    import torch as len\n    return {0}",
    "    match agents_q:\n        case torch.Tensor(): return {0}\n    return {0}",
    "    for torch.x in [1]:\n        pass\n    return {0}",
    "    [agents_q for F in [1]]\n    return {0}",
    "    assert open('CANARY', 'w')\n    return {0}",
    "    return (*[{0}],)[0] * 1j",
)
FILES = (
    "",
    "\0",
    "Sure! Here is the function you asked for:",
    "```python\n" + HEAD + f"    return {MEAN}\n```",
    "def credit_assignment(agents_q, global_state)\n    return agents_q",
    HEAD + "return agents_q",
    HEAD + "    return (agents_q",
    HEAD + "\treturn agents_q\n        return 1",
    f"import os\n{HEAD}    return {MEAN}",
    f"x = open('CANARY', 'w')\n{HEAD}    return {MEAN}",
    f"if True:\n    {HEAD}        return {MEAN}",
    f"@torch.no_grad\n{HEAD}    return {MEAN}",
    f"class A:\n    {HEAD}        return {MEAN}",
    f"credit_assignment = lambda agents_q, global_state: {MEAN}",
    f"def credit_assignment(agents_q, global_state=open('CANARY')):\n    return {MEAN}",
    f"def credit_assignment(agents_q, *global_state):\n    return {MEAN}",
    f"def credit_assignment(torch, global_state):\n    return {MEAN}",
    f"def forward(agents_q, global_state):\n    return {MEAN}",
    f"async def credit_assignment(agents_q, global_state):\n    return {MEAN}",
    HEAD + "    return " + "-" * 15_000 + "agents_q",
    HEAD + "    return " + "(" * 300 + "agents_q" + ")" * 300,
    HEAD + "    return agents_q" + ".T" * 5_000,
    HEAD + "    return agents_q" + " + agents_q" * 900,
    HEAD + "    for i in range(" + "-" * 900 + "5):\n        pass\n    return agents_q",
    HEAD + f"    for i in range(-{'9' * 4299}, {'9' * 4299}):\n        pass\n    return agents_q",
    HEAD + "    return " + "a" * 18_000,
    HEAD + "    x = '" + "a" * 15_000 + "'\n    return agents_q",
    HEAD + "    x = [" + "1, " * 6_000 + "]\n    return agents_q",
    HEAD + f"    x = {'9' * 6_000}\n    return agents_q",
    HEAD + f"    return {MEAN}\n" + "#" * 30_000,
    HEAD + "    return \ud800",
)


def _refused_statically() -> Iterator[Hostile]:
    yield from _functions("import", "static", *(body.format(name, MEAN) for name, body in product(MODULES, IMPORTS)))
    for prefix in ("torch", "th"):
        yield from _functions("module of torch", "static", *(f"{prefix}.{path}" for path in INNER))
    yield from _functions(
        "module of torch", "static", *(f"F.{path}" for path in ("torch.save(1)", "os", "_VF", "Tensor", "math"))
    )
    yield from _functions(
        "attribute", "static", *(template.format(name) for name, template in product(OBJECTS, DUNDER))
    )
    yield from _functions("builtin", "static", *BUILTINS)
    yield from _functions("method", "static", *(f"agents_q.{name}" for name in METHODS))
    yield from _functions("statement", "static", *(template.format(MEAN) for template in STATEMENTS))
    for source in FILES:
        yield Hostile("file", source, frozenset({"static"}))
    yield from _functions(
        "bomb",
        "static",
        "[0 for i in range(90000)]",
        "{k: 0 for k in range(99999)}",
        "sum(1 for i in range(9999) for j in range(9999))",
        "9007199254740993",
    )


def _refused_when_run() -> Iterator[Hostile]:
    yield from _functions(
        "result",
        "run",
        "    return 1.0",
        "    return (agents_q.mean(1, keepdim=True), 0)",
        "    return [agents_q]",
        "    return {'q': agents_q}",
        "    return None",
        "    pass",
        "    return f'{agents_q}'",
        "    return len",
        "    return agents_q",
        "    return agents_q.sum()",
        "    return agents_q.mean(1, keepdim=True).double()",
        "    return agents_q.mean(1, keepdim=True).long()",
        "    return agents_q.mean(1, keepdim=True) > 0",
        "    return agents_q.mean(1, keepdim=True) * (-1) ** 0.5",
        "    return agents_q[:0]",
        "    return agents_q.detach().mean(1, keepdim=True)",
        "    return global_state[:, :1]",
        "    return torch.zeros(agents_q.shape[0], 1)",
        "    return agents_q[:1].mean(1, keepdim=True)",
        "    return agents_q.argmax(1, keepdim=True).float()",
    )
    yield from _functions(
        "in place",
        "run program static",
        f"    agents_q += 1\n    return {MEAN}",
        f"    agents_q[:, 0] = 0\n    return {MEAN}",
        f"    global_state[:] = 1\n    return {MEAN}",
        f"    x = agents_q.view(-1)\n    x[0] = 5\n    return {MEAN}",
        f"    x = global_state.T\n    x *= 2\n    return {MEAN}",
        f"    torch.add(agents_q, 1, out=global_state)\n    return {MEAN}",
        f"    x = agents_q.detach()\n    x[0, 0] = 7\n    return {MEAN}",
    )
    yield from _functions(
        "error",
        "run",
        "agents_q @ torch.ones(5)",
        "agents_q[:, 7]",
        "1 / len([])",
        "global_state.view(-1, 5)",
        "torch.tensor([1.0])[torch.tensor([5])]",
        "torch.einsum('ij,jk->', agents_q, agents_q)",
        "torch.zeros(3, **{'dtype': 'float'})",
        "(lambda f: f(f))(lambda f: f(f))",
        "[][0]",
        "{}['x']",
        "int('x')",
        "float('1e999x')",
        "agents_q.shape[0].shape",
        "global_state.to('cuda')",
        "torch.searchsorted(torch.arange(5.0), agents_q[0], sorter=torch.tensor([9**9, 1, 2, 3, 4]))",
        "'%s' % (1, 2)",
        "torch.zeros(-1)",
        "torch.tensor([[1, 2], [3]])",
        "    def h(k):\n        return h(k + 1)\n    return h(0)",
        "    assert 1 > 2, '\\ud800' + 'a' * 5000\n    return agents_q",
    )
    yield from _functions(
        "batch",
        "run trace",
        "    return (agents_q / agents_q.abs().sum()).sum(1, keepdim=True)",
        "    return agents_q.softmax(0).sum(1, keepdim=True)",
        "    return (agents_q - agents_q.mean(0)).sum(1, keepdim=True)",
        "    return agents_q.flip(0).sum(1, keepdim=True)",
        "    return agents_q.roll(1, 0).sum(1, keepdim=True)",
        "    return agents_q.cumsum(0).sum(1, keepdim=True)",
        "    return agents_q.sort(0).values.sum(1, keepdim=True)",
        "    return agents_q.sum(1, keepdim=True) * agents_q.shape[0]",
        "    return agents_q.sum(1, keepdim=True) / len(global_state)",
        "    return agents_q.sum(1, keepdim=True) + global_state.max()",
        "    return agents_q[:1].expand(agents_q.shape[0], 3).sum(1, keepdim=True)",
        "    return agents_q.sum(1, True) if agents_q.shape[0] > 3 else agents_q[:, :1]",
        "    w = torch.arange(agents_q.shape[0], device=agents_q.device).unsqueeze(1)\n    return (w * agents_q).sum(1, True)",
        "    return agents_q.T.reshape(-1, 3).sum(1, keepdim=True)",
        "    return sum(agents_q.unbind(0)).sum().expand(agents_q.shape[0], 1)",
    )
    yield from _functions(
        "branch",
        "trace convert",
        "    if agents_q.sum() > 0:\n        return agents_q[:, :1]\n    return agents_q[:, 1:2]",
        "    return agents_q[:, :1] if global_state[0, 0] > 0 else agents_q[:, 1:2]",
        "    return agents_q[:, :1] * float(global_state[0, 0])",
        "    return agents_q[:, :1] * int(global_state[0, 0])",
        "    return agents_q[:, :1] * max(global_state[0, 0], 0)",
        "    x = global_state[0, 0] > 0 and global_state[0, 1] > 0\n    return agents_q[:, :1] * x",
        "    x = [i for i in range(3) if global_state[0, i] > 0]\n    return agents_q[:, :1] + len(x)",
        "    return agents_q[agents_q[:, 0] > -99].mean(1, keepdim=True)",
    )
    yield from _functions(
        "bomb",
        "run limits program convert trace",
        "torch.zeros(10**12)",
        "torch.zeros(10**9).sum()",
        "torch.ones(10**6).sum()",
        "torch.arange(10**7).sum()",
        "torch.full((2**20, 2**20), 1.0)",
        "torch.eye(10**5).sum()",
        "torch.linspace(0, 1, 10**9).sum()",
        "torch.zeros(1).expand(10**9).contiguous().sum()",
        "torch.zeros(*[64] * 7)",
        "torch.tril_indices(10**5, 10**5)",
        "agents_q.repeat(1, 10**8).sum()",
        "agents_q.unsqueeze(2).tile(1, 10**4, 10**4).sum()",
        "F.pad(agents_q, (0, 10**9)).sum()",
        "F.one_hot(agents_q.long().clamp(0, 1), 10**9).sum()",
        "torch.cdist(torch.zeros(10**5, 1), torch.zeros(10**5, 1)).sum()",
        "torch.kron(torch.zeros(10**5), torch.zeros(10**5)).sum()",
        "torch.einsum('ij,kl->ijkl', agents_q.repeat(1, 200), agents_q.repeat(1, 200)).sum()",
        "[0.0] * 10**10",
        "'x' * 10**10",
        "len('%099999999999d' % 1)",
        "len(f'{1:99999999999}')",
        "(0,) * 10**10",
        "[[0] * 10**4] * 10**4 + [0] * 10**9",
        "list(range(4096)) * 10**7",
        "[range(4096) for i in range(4096)]",
        "10**5000 * agents_q",
        "    n = 1000\n    [[0 for j in range(n)] for i in range(n)]\n    return agents_q",
        "    for i in range(2050):\n        agents_q = agents_q + 1\n    return agents_q.mean(1, keepdim=True)",
        "    x = global_state[:, :1].expand(-1, 1024).reshape(-1, 32, 32)\n"
        "    return agents_q[:, :1] + torch.einsum('bij,bkl,bik,bjl->b', x, x, x, x).unsqueeze(1)",
        "    x = global_state[:, :1].expand(-1, 1024).reshape(-1, 32, 32)\n"
        "    return agents_q[:, :1] + F.cosine_similarity(x[:, :, None], x[:, None], dim=-1).sum((1, 2)).unsqueeze(1)",
    )
    yield from _functions(
        "machine",
        "run limits program convert trace static",
        "torch.div((global_state[:, :1] * float('inf')).long(), -1, rounding_mode='trunc')",
        "torch.div((global_state[:, :1] * 0).long(), -1, rounding_mode='trunc').float()",
        "torch.full((3, 3), float('inf')).norm(p='nuc')",
        "torch.linalg.norm(torch.full((3, 3), float('inf')), ord=2)",
        "torch.linalg.norm(global_state[:, :9].reshape(-1, 3, 3), ord=2, dim=(1, 2)).unsqueeze(1)",
        "global_state[:, :1].view(torch.int32).view(torch.bool).float()",
        "agents_q[:, :1] // torch.zeros(1, dtype=torch.int64)[global_state[:, :1].long()]",
        "torch.zeros(3, device='meta')",
        "torch.Tensor",
        "    T = torch.Tensor\n    return T(agents_q.shape[0], 1) + agents_q.mean(1, keepdim=True)",
        "    x = torch.bool\n    return agents_q.new_tensor([x]).sum()",
        "agents_q.new_zeros(3).scatter(0, torch.tensor([10**9]), 1.0)",
        "agents_q.repeat_interleave(torch.tensor([1, 2, 1]), dim=1, output_size=4)",
        "agents_q.unflatten(1, (-1, 0))",
        "agents_q.split(0)",
        "torch.std_mean(agents_q, correction=10**30)",
    )


def _refused_by_probes() -> Iterator[Hostile]:
    weighted = "    w = {0}\n    return (w * agents_q).sum(1, keepdim=True)"
    yield from _functions(
        "not finite",
        "probe run",
        *(
            weighted.format(weights)
            for weights in (
                "agents_q * float('nan')",
                "torch.full_like(agents_q, float('inf'))",
                "(global_state[:, :3] - 20).log()",
                "global_state[:, :3].exp().exp() / 1e3",
                "(global_state[:, :3].abs() - 100).clamp(min=0) * 1e38",
                "global_state[:, :3] / global_state[:, 3:6]",
                "1 / global_state[:, :3]",
                "(global_state[:, :3] * 50).exp() / (global_state[:, :3] * 50).exp().sum(1, keepdim=True)",
                "torch.where(global_state[:, :3].abs() > 500, float('nan'), 0.3)",
                "(1 / (global_state[:, :3] - global_state[:, 3:6]).norm(dim=1, keepdim=True)).expand(-1, 3)",
            )
        ),
        "    return agents_q.exp().mean(1, keepdim=True)",
        "    return (agents_q ** 20).mean(1, keepdim=True)",
        "    return agents_q.abs().sqrt().sum(1, keepdim=True)",
        "    return (agents_q + 1).log().sum(1, keepdim=True)",
        "    return agents_q.square().sum(1, keepdim=True).sqrt()",
    )
    yield from _functions(
        "scale",
        "probe",
        *(
            weighted.format(weights)
            for weights in (
                "torch.full_like(agents_q, 1e4)",
                "100 * torch.exp(global_state[:, :3].clamp(-4, 4))",
                "1 / (global_state[:, :3].abs() + 1e-9)",
                "torch.where(global_state[:, :3] == 0, 1e9, 0.3)",
            )
        ),
        f"    return {MEAN} + 1e6",
        f"    return {MEAN} + (50 * global_state[:, :1]).square()",
    )
    yield from _functions(
        "no credit",
        "probe",
        "    return agents_q[:, :1]",
        "    return agents_q[:, :2].mean(1, keepdim=True)",
        "    return agents_q[:, 1:].mean(1, keepdim=True) + 0 * agents_q[:, :1]",
        "    return (agents_q * torch.tensor([0.5, 0.5, 0.0])).sum(1, keepdim=True)",
        "    return agents_q.mean(1, keepdim=True) * (global_state[:, :1] > 5000)",
        "    return agents_q.mean(1, keepdim=True) - agents_q[:, 2:] / 3",
    )
    yield from _functions(
        "gate",
        "probe",
        "    return -agents_q.mean(1, keepdim=True)",
        "    return (agents_q * torch.tensor([1.0, 1.0, -1.0])).sum(1, keepdim=True)",
        weighted.format("global_state[:, :1].tanh().expand(-1, 3)"),
        weighted.format("-torch.softmax(global_state[:, :3], 1)"),
        "    return agents_q.max(1, keepdim=True).values",
        "    return agents_q.prod(1, keepdim=True)",
        "    return agents_q.logsumexp(1, keepdim=True)",
        "    return (torch.softmax(agents_q, 1) * agents_q).sum(1, keepdim=True)",
        "    return (torch.softmax(agents_q.detach(), 1) * agents_q).sum(1, keepdim=True)",
        "    return agents_q.relu().mean(1, keepdim=True)",
        "    return agents_q.clamp(-500, 500).mean(1, keepdim=True)",
        "    return torch.where(global_state[:, :1] > 900, agents_q.amin(1, True), agents_q.mean(1, True))",
        "    return agents_q.mean(1, keepdim=True) * agents_q[:, :1].tanh()",
    )
    yield from _functions(
        "index",
        "probe run",
        "    t = torch.tensor([0.1, 0.5, 0.9])\n    return (t[global_state[:, :3].long().abs()] * agents_q).sum(1, True)",
        "    t = torch.tensor([0.1, 0.5, 0.9])\n    return (t[agents_q.long().abs().clamp(max=5)] * agents_q).sum(1, True)",
        "    t = torch.ones(500)\n    return (t[agents_q.long().abs()] * agents_q).sum(1, True)",
        "    return agents_q.gather(1, global_state[:, :3].long()).sum(1, True)",
        "    return (F.one_hot(global_state[:, 0].long() + 2, 3) * agents_q).sum(1, True) + agents_q.mean(1, True)",
    )


def _endless() -> Iterator[Hostile]:
    yield from _functions(
        "endless",
        "limits",
        "9**9**9",
        "2 ** (10**11) % 7",
        "    x = [1]\n    for i in x:\n        x.append(i)\n    return agents_q",
        "    h = lambda k: k and h(k - 1) + h(k - 1)\n    return h(60)",
        "    x = 3\n    for i in range(60):\n        x = x * x\n    return agents_q * x",
        "    n = [0] * 3000\n    x = [0 for i in n for j in n for k in n if i > j]\n    return agents_q",
        endless=True,
    )


HOSTILE = (*_refused_statically(), *_refused_when_run(), *_refused_by_probes(), *_endless())
