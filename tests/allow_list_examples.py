"""An example for every name of the allow-list of generated functions, as a language model would use it."""

import ast

from qllm_exp.utils.text import word_set

PREAMBLE = """
import functools
import itertools
import math
import numpy as np
import torch
import torch.nn.functional as F


def rows(value, batch):
    if isinstance(value, (tuple, list)):
        return sum(rows(part, batch) for part in value)
    flat = value.reshape(batch, -1).float()
    return (flat * torch.linspace(1.0, 2.0, flat.shape[1])).mean(1, keepdim=True)


def number(value):
    if isinstance(value, (tuple, list)):
        return sum(number(part) for part in value)
    flat = torch.as_tensor(value).reshape(-1).float()
    return (flat * torch.linspace(1.0, 2.0, flat.shape[0])).mean()


def credit_assignment(agents_q, global_state):
    q, s, batch = agents_q, global_state, agents_q.shape[0]
    w = s[:, :3]
    u = 0.8 * torch.sigmoid(q) + 0.1
    p = q.abs() + 1.0
    big = q > w
    outer = q[:, :, None] * w[:, None]
    order = w.argsort(1)
    whole = w.long() + 2
    fixed = torch.tensor([0.5, -1.0, 2.0])
    matrix = torch.tensor([[1.0, 0.5, -0.5], [0.0, 2.0, 1.0], [0.25, -1.0, 1.5]])
    numbers = np.array([0.25, 0.5, 0.75])
    total = q.mean(1, keepdim=True)
"""
"""The names that the examples use. q [B, 3] are the agents' values, s [B, 4] is the state, w [B, 3] is a part of it.

u [B, 3] lies between 0 and 1, p [B, 3] is at least 1, `big` [B, 3] holds truth values and `whole` [B, 3] integers from 1;
outer [B, 3, 3] are products, order [B, 3] numbers of columns. `rows` and `number` make one number of whatever an example is: of
each row, or of a constant.
"""


def _each(template: str, names: str) -> dict[str, str]:
    """Return the same example for several names; NAME stands for the name."""
    return {name: template.replace("NAME", name) for name in sorted(word_set(names))}


# Functions of torch that are methods of tensors too. Each is called as CALL(receiver, arguments).
_CALLS = {
    **_each(
        "NAME(q)",
        """abs absolute angle arctan asinh atan ceil clone cos deg2rad detach diag_embed erf erfc floor frac isfinite
        isinf isnan nan_to_num neg negative positive rad2deg relu round sgn sigmoid sign sin sinc square trunc""",
    ),
    **_each("NAME(u)", "acos arccos arcsin asin atanh cosh exp exp2 expm1 logit sinh tan"),
    **_each("NAME(p + 1)", "acosh log log10 log1p log2 reciprocal rsqrt sqrt"),
    **_each(
        "NAME(q, w)",
        """add arctan2 atan2 copysign eq fmax fmin ge greater greater_equal gt hypot le less less_equal logaddexp
        lt maximum minimum mul multiply ne not_equal sub subtract""",
    ),
    **_each("NAME(q, p)", "div divide fmod remainder true_divide"),
    **_each("NAME(big, w > 0)", "bitwise_and bitwise_or bitwise_xor logical_and logical_or logical_xor"),
    **_each("NAME(big)", "bitwise_not logical_not"),
    **_each(
        "NAME(q, 1)",
        """amax amin argmax argmin argsort cummax cummin cumprod cumsum log_softmax logcumsumexp logsumexp max mean median
        min nanmean nansum prod softmax sort std sum unbind unsqueeze var""",
    ),
    **_each("NAME(big, 1)", "all any count_nonzero"),
    **_each("NAME(q, -1.0, 1.0)", "clamp clip"),
    **_each("NAME(q, 0.5)", "clamp_max clamp_min"),
    **_each("NAME(outer, 1, 2)", "moveaxis movedim swapaxes swapdims transpose"),
    **_each("NAME(outer)", "tril triu"),
    **_each("NAME(q, 0.4, 1)", "quantile nanquantile"),
    **_each("NAME(q, matrix)", "matmul mm"),
    **_each("NAME(q, 2, 1)", "chunk repeat_interleave split tensor_split topk"),
    "baddbmm": "baddbmm(outer, outer, outer)",
    "bmm": "bmm(outer, q.unsqueeze(2))",
    "broadcast_to": "broadcast_to(q[:, None], (q.shape[0], 2, 3))",
    "cross": "cross(q, w, dim=1)",
    "diag": "diag(fixed)",
    "diagonal": "diagonal(outer, 0, 1, 2)",
    "diff": "diff(q, dim=1)",
    "dot": "dot(fixed, matrix[0])",
    "flatten": "flatten(outer, 1)",
    "flip": "flip(q, (1,))",
    "floor_divide": "floor_divide(w, 0.7)",
    "gather": "gather(q, 1, order)",
    "heaviside": "heaviside(w, fixed)",
    "index_select": "index_select(q, 1, torch.tensor([2, 0]))",
    "inner": "inner(q, fixed)",
    "isclose": "isclose(q, w, atol=1.0)",
    "kron": "kron(q, fixed)",
    "kthvalue": "kthvalue(q, 2, 1)",
    "lerp": "lerp(q, w, 0.3)",
    "masked_fill": "masked_fill(q, big, 0.5)",
    "mv": "mv(q, fixed)",
    "narrow": "narrow(q, 1, 1, 2)",
    "norm": "norm(q, dim=1)",
    "numel": "numel(fixed)",
    "outer": "outer(fixed, fixed)",
    "permute": "permute(outer, (0, 2, 1))",
    "pow": "pow(p, 1.5)",
    "ravel": "ravel(matrix)",
    "reshape": "reshape(outer, (-1, 9))",
    "roll": "roll(q, 1, 1)",
    "scatter": "scatter(q, 1, order, w)",
    "scatter_add": "scatter_add(q, 1, order, w)",
    "scatter_reduce": "scatter_reduce(q, 1, order, w, 'amax')",
    "select": "select(q, 1, 2)",
    "squeeze": "squeeze(outer[:, :1], 1)",
    "take_along_dim": "take_along_dim(q, order, 1)",
    "tanh": "tanh(q)",
    "tile": "tile(q, (1, 2))",
    "unflatten": "unflatten(q, 1, (3, 1))",
    "where": "where(big, q, w)",
    "xlogy": "xlogy(w, p)",
}
_CONSTANT_CALLS = word_set("diag dot numel outer ravel")  # of vectors and numbers of elements: not of a batch of rows


def _example(call: str, is_constant: bool) -> str:
    """Return the expression of a value of each row that an example contributes."""
    return f"number({call}) * q[:, :1]" if is_constant else f"rows({call}, batch)"


def _functions(module: str, calls: dict[str, str]) -> dict[str, str]:
    return {name: _example(f"{module}.{call}", name in _CONSTANT_CALLS) for name, call in calls.items()}


def _methods(calls: dict[str, str]) -> dict[str, str]:
    """Return examples in which the first argument of each call is the receiver of a method."""
    examples = {}
    for name, call in calls.items():
        receiver, *arguments = (ast.unparse(argument) for argument in _arguments(call))
        examples[name] = _example(f"({receiver}).{name}({', '.join(arguments)})", name in _CONSTANT_CALLS)
    return examples


def _arguments(call: str) -> list[ast.expr | ast.keyword]:
    expression = ast.parse(call, mode="eval").body
    assert isinstance(expression, ast.Call)
    return [*expression.args, *expression.keywords]


def _rows(calls: dict[str, str]) -> dict[str, str]:
    return {name: _example(call, False) for name, call in calls.items()}


def _constants(calls: dict[str, str]) -> dict[str, str]:
    return {name: _example(call, True) for name, call in calls.items()}


TORCH = {
    **_functions("torch", _CALLS),
    **_rows(
        {
            **_each("torch.NAME([q, w], 1)", "cat concat concatenate stack"),
            **_each("torch.NAME([q, w])", "column_stack hstack dstack"),
            **_each("torch.NAME(q, dim=1)", "std_mean var_mean"),
            **_each("torch.full_like(q, 2.0, dtype=torch.NAME)", "bool float float32 float64 int int32 int64 long"),
            **_each("q * torch.NAME(q)", "ones_like zeros_like"),
            **_each("q * torch.NAME", "e pi"),
            "broadcast_tensors": "torch.broadcast_tensors(q, w[:, :1])",
            "bucketize": "torch.bucketize(q, torch.tensor([-1.0, 0.0, 1.0]))",
            "cdist": "torch.cdist(outer, matrix.expand(batch, 3, 3))",
            "cosine_similarity": "torch.cosine_similarity(q, w, dim=1)",
            "einsum": "torch.einsum('bi,ij->bj', q, matrix)",
            "full_like": "torch.full_like(q, 2.0)",
            "inf": "torch.where(big, q, -torch.inf).amax(1).clamp(min=-5.0)",
            "nan": "torch.where(big, q, torch.nan).nan_to_num(0.5)",
            "searchsorted": "torch.searchsorted(torch.tensor([-1.0, 0.0, 1.0]), q)",
            "tensordot": "torch.tensordot(q, matrix, dims=([1], [0]))",
            "vstack": "torch.stack([torch.vstack((a, b)) for a, b in zip(q, w)])",
        }
    ),
    **_constants(
        {
            **_each(
                "torch.NAME([1, 0, 2])",
                "BoolTensor DoubleTensor FloatTensor IntTensor LongTensor Tensor as_tensor tensor",
            ),
            **_each("torch.NAME(3)", "arange eye ones zeros"),
            **_each("torch.NAME(0.0, 1.0, 3)", "linspace logspace"),
            **_each("torch.NAME(3, 3)", "tril_indices triu_indices"),
            "broadcast_shapes": "torch.broadcast_shapes((3, 1), (1, 2))",
            "cartesian_prod": "torch.cartesian_prod(fixed, fixed)",
            "finfo": "torch.finfo(torch.float32).eps",
            "from_numpy": "torch.from_numpy(np.array([1.0, 2.0]))",
            "full": "torch.full((3,), 0.5)",
            "iinfo": "torch.iinfo(torch.int32).max",
            "is_tensor": "1 if torch.is_tensor(q) else 2",
            "meshgrid": "torch.meshgrid(fixed, fixed, indexing='ij')",
        }
    ),
    "no_grad": "    with torch.no_grad():\n        held = q * w\n    total = total + rows(q * held, batch)",
}
TORCH_LINALG = _rows(
    {
        "cross": "torch.linalg.cross(q, w)",
        "norm": "torch.linalg.norm(q, dim=1)",
        "vecdot": "torch.linalg.vecdot(q, w)",
        "vector_norm": "torch.linalg.vector_norm(q, dim=1)",
    }
)
TORCH_SPECIAL = _rows(
    {
        **_each("torch.special.NAME(q)", "erf erfc expit round sinc"),
        **_each("torch.special.NAME(u)", "exp2 expm1 log1p logit"),
        **_each("torch.special.NAME(q, 1)", "log_softmax logsumexp softmax"),
        "xlogy": "torch.special.xlogy(w, p)",
    }
)
FUNCTIONAL = _rows(
    {
        **_each(
            "F.NAME(q)",
            """celu elu gelu hardshrink hardsigmoid hardswish hardtanh leaky_relu logsigmoid mish relu relu6 selu sigmoid
            silu softplus softshrink softsign tanh tanhshrink""",
        ),
        **_each("F.NAME(q, dim=1)", "log_softmax normalize softmax softmin"),
        **_each("F.NAME(q, w, reduction='none')", "huber_loss mse_loss smooth_l1_loss"),
        "cosine_similarity": "F.cosine_similarity(q, w, dim=1)",
        "layer_norm": "F.layer_norm(q, (3,))",
        "linear": "F.linear(q, matrix, fixed)",
        "one_hot": "F.one_hot(whole, 8)",
        "pad": "F.pad(q, (1, 1))",
        "pairwise_distance": "F.pairwise_distance(q, w)",
    }
)
METHODS = {
    **_methods({name: call for name, call in _CALLS.items() if name != "where"}),
    **_rows(
        {
            **_each(
                "q.clone().NAME()",
                "abs_ atan_ ceil_ cos_ erf_ floor_ neg_ relu_ round_ sigmoid_ sign_ sin_ square_ tanh_ trunc_ zero_",
            ),
            **_each("u.clone().NAME()", "exp_ expm1_"),
            **_each("p.clone().NAME()", "log_ log1p_ reciprocal_ rsqrt_ sqrt_"),
            **_each("q.clone().NAME(w)", "add_ copy_ eq_ ge_ gt_ le_ lt_ mul_ multiply_ ne_ sub_ subtract_"),
            **_each("q.clone().NAME(p)", "div_ divide_ fmod_ remainder_"),
            **_each("q.clone().NAME(-1.0, 1.0)", "clamp_ clip_"),
            **_each("q.clone().NAME(0.5)", "clamp_max_ clamp_min_ fill_"),
            **_each("big.clone().NAME(w > 0)", "logical_and_ logical_or_"),
            **_each("outer.clone().NAME()", "tril_ triu_"),
            **_each("q.NAME()", "bool contiguous double float int long"),
            **_each("q.max(1).NAME", "indices values"),
            "real": "q.real",
            **_each("q.NAME((3,), 2.0) * q", "new_full"),
            **_each("q.NAME((3,)) * q", "new_ones new_zeros"),
            **_each("q[:, :1].NAME(outer[:, 0])", "expand_as"),
            **_each("outer[:, 0].NAME(q)", "reshape_as view_as"),
            "T": "q.T.T",
            "cumsum_": "q.clone().cumsum_(1)",
            "expand": "outer[:, :1].expand(-1, 3, -1)",
            "index_add": "q.index_add(1, torch.tensor([0, 2]), w[:, :2])",
            "index_copy": "q.index_copy(1, torch.tensor([0, 2]), w[:, :2])",
            "index_fill": "q.index_fill(1, torch.tensor([0, 2]), 0.5)",
            "index_fill_": "q.clone().index_fill_(1, torch.tensor([0, 2]), 0.5)",
            "index_put": "q.index_put((torch.arange(batch), torch.tensor(1)), w[:, 0])",
            "lerp_": "q.clone().lerp_(w, 0.3)",
            "logical_not_": "big.clone().logical_not_()",
            "mT": "outer.mT",
            "masked_fill_": "q.clone().masked_fill_(big, 0.5)",
            "nan_to_num_": "q.clone().nan_to_num_(0.0)",
            "new_tensor": "q.new_tensor([1.0, 2.0, 3.0]) * q",
            "pow_": "p.clone().pow_(1.5)",
            "repeat": "q.repeat(1, 2)",
            "scatter_": "q.clone().scatter_(1, order, w)",
            "scatter_add_": "q.clone().scatter_add_(1, order, w)",
            "squeeze_": "outer[:, :1].clone().squeeze_(1)",
            "t": "q.t().t()",
            "to": "q.to(torch.float64)",
            "transpose_": "outer.clone().transpose_(1, 2)",
            "type_as": "big.type_as(q)",
            "unsqueeze_": "q.clone().unsqueeze_(1)",
            "view": "outer.contiguous().view(-1, 9)",
            "where": "q.where(big, w)",
        }
    ),
    **_constants(
        {
            **_each("torch.finfo(torch.float32).NAME", "eps smallest_normal tiny"),
            **_each("fixed.NAME()", "dim is_floating_point"),
            "keys": "list({1: 2, 3: 4}.keys())",
            **_each("torch.zeros(2, dtype=q.NAME)", "dtype"),
            **_each("torch.zeros(2, device=q.NAME)", "device"),
            "astype": "np.array([1.5, 2.5]).astype(np.int64)",
            "count": "[1, 2, 1].count(1)",
            "get": "{1: 2}.get(1, 3)",
            "imag": "q.shape[1].imag",
            "itemsize": "fixed.dtype.itemsize",
            "items": "[k + v for k, v in {1: 2, 3: 4}.items()]",
            "ndim": "fixed.ndim",
            "ndimension": "fixed.ndimension()",
            "shape": "fixed.shape",
            "size": "fixed.size(0)",
            "union": "sorted({1, 2}.union({3}))",
        }
    ),
    **_each("    held = [q]\n    held.NAME(w)\n    total = total + rows(held, batch)", "append"),
    **_each("    held = [q, w]\n    held.NAME()\n    total = total + rows(held, batch)", "clear reverse"),
    "clear": "    held = [q]\n    held.clear()\n    total = total + len(held) * q[:, :1]",
    "copy": "    held = [q].copy()\n    total = total + rows(held, batch)",
    "extend": "    held = [q]\n    held.extend([w])\n    total = total + rows(held, batch)",
    "insert": "    held = [q]\n    held.insert(0, w)\n    total = total + rows(held, batch)",
    "pop": "    held = [q, w]\n    total = total + rows(held.pop(), batch)",
    "remove": "    held = [1, 2]\n    held.remove(1)\n    total = total + held[0] * q[:, :1]",
    "setdefault": "    held = {}\n    total = total + rows(held.setdefault('w', w), batch)",
    "update": "    held = {}\n    held.update(w=w)\n    total = total + rows(held['w'], batch)",
}
MATH = _constants(
    {
        **_each(
            "math.NAME(0.5)",
            """acos asin atan ceil cos cosh degrees erf exp expm1 fabs floor isfinite isinf isnan log log10 log1p log2
            radians sin sinh sqrt tan tanh""",
        ),
        **_each("math.NAME(2.5, 2.0)", "atan2 copysign fmod hypot isclose pow"),
        **_each("math.NAME", "e pi tau"),
        **_each("math.NAME([0.5, 1.5])", "fsum prod"),
        "dist": "math.dist((0.0, 1.0), (1.0, 3.0))",
        "inf": "min(math.inf, 2.0)",
        "nan": "math.isnan(math.nan)",
    }
)
NUMPY = _constants(
    {
        **_each(
            "np.NAME(numbers)",
            """abs arccos arcsin arctan array asarray ceil cos cumsum deg2rad diag exp floor log log10 log1p log2 max mean
            min prod rad2deg round sin sqrt square sum tan tanh""",
        ),
        **_each("np.NAME(numbers, 2.0)", "hypot maximum minimum power"),
        **_each("np.NAME(numbers, numbers)", "outer"),
        **_each("np.NAME((numbers, numbers))", "concatenate stack"),
        **_each("np.NAME(3)", "arange eye identity ones zeros"),
        **_each("np.NAME", "e pi"),
        **_each("np.ones(2, dtype=np.NAME)", "bool_ float32 float64 int32 int64"),
        **_each("np.NAME(np.outer(numbers, numbers))", "tril triu"),
        "full": "np.full(3, 0.5)",
        "inf": "np.minimum(np.inf, 2.0)",
        "linspace": "np.linspace(0.0, 1.0, 3)",
        "nan": "np.where(numbers == np.nan, 1.0, 2.0)",
        "newaxis": "numbers[np.newaxis]",
        "where": "np.where(numbers > 0.3, 1.0, 2.0)",
    }
)
BUILTINS = {
    **_rows(
        {
            "abs": "abs(q)",
            "enumerate": "[k * column for k, column in enumerate(q.unbind(1))]",
            "filter": "list(filter(lambda value: value is not None, [q, None, w]))",
            "isinstance": "q if isinstance(q, torch.Tensor) else w",
            "iter": "next(iter([q]))",
            "list": "list(q.unbind(1))",
            "map": "list(map(torch.exp, [u, -u]))",
            "next": "next(iter([w]))",
            "pow": "pow(p, 2)",
            "range": "[k * q[:, k] for k in range(3)]",
            "reversed": "[k * column for k, column in enumerate(reversed([q, w]))]",
            "round": "q * round(1.6)",
            "slice": "q[:, slice(1, 3)]",
            "sum": "sum(q.unbind(1))",
            "tuple": "tuple(q.unbind(1))",
            "zip": "[a * b for a, b in zip(q.unbind(1), w.unbind(1))]",
        }
    ),
    **_constants(
        {
            **_each("NAME([1, 2])", "all any len max min sorted"),
            **_each("sorted(NAME([1, 2]))", "frozenset set"),
            **_each("NAME(2.5)", "bool float int"),
            "dict": "dict(a=1.0)['a']",
            "divmod": "divmod(7, 2)",
            "str": "len(str(12))",
        }
    ),
    "print": "    print(batch)\n    total = total + q[:, :1]",
}
ITERTOOLS = _rows(
    {
        "accumulate": "list(itertools.accumulate(q.unbind(1)))",
        "chain": "list(itertools.chain([q], [w]))",
        "combinations": "[a * b for a, b in itertools.combinations(q.unbind(1), 2)]",
        "islice": "list(itertools.islice(q.unbind(1), 2))",
        "pairwise": "[a - b for a, b in itertools.pairwise(q.unbind(1))]",
        "permutations": "[a / (b.abs() + 1) for a, b in itertools.permutations(q.unbind(1), 2)]",
        "product": "[a * b for a, b in itertools.product(q.unbind(1), w.unbind(1))]",
        "repeat": "list(itertools.repeat(q, 2))",
        "zip_longest": "[a + b for a, b in itertools.zip_longest([q, w], [w], fillvalue=1.0)]",
    }
)
FUNCTOOLS = {
    **_rows(
        {
            "partial": "functools.partial(torch.add, q)(w)",
            "reduce": "functools.reduce(torch.maximum, q.unbind(1))",
        }
    ),
    **_each(
        "    @functools.NAME\n    def weight(k):\n        return 1.0 / (k + 1)\n    total = total + weight(1) * q[:, :1]",
        "cache lru_cache",
    ),
}
# Other forms of calls that language models write.
OTHER_FORMS = [
    *_rows(
        {
            **_each(
                "torch.stack([number(torch.NAME(row)) for row in q])",
                """amax amin argmax argmin argsort count_nonzero diag max mean median min nanmean nansum norm numel prod sort
                std std_mean sum var var_mean""",
            ),
            **_each("torch.stack([number(row.NAME()) for row in big])", "all any"),
            **_each("torch.stack([number(torch.NAME(a, b)) for a, b in zip(q, w)])", "dot inner kron"),
            **_each("torch.stack([torch.NAME(a, b) for a, b in zip(q, w)])", "outer"),
            **_each("torch.stack([torch.NAME(row, 0.4) for row in q])", "quantile nanquantile"),
            **_each("torch.stack([F.NAME(a, b) for a, b in zip(q, w)])", "huber_loss mse_loss smooth_l1_loss"),
            **_each("torch.stack([part.NAME() for part in outer])", "flatten ravel t tril triu"),
        }
    ).values(),
    *_rows(
        {
            name + " keepdim": example
            for name, example in _each(
                "torch.NAME(q, dim=1, keepdim=True)",
                """amax amin argmax argmin logsumexp max mean median min nanmean nansum norm prod std std_mean sum var
                var_mean""",
            ).items()
        }
    ).values(),
    *(
        _example(call, False)
        for call in (
            "torch.var(q, dim=1, unbiased=False)",
            "q.std(1, correction=0)",
            "torch.std_mean(q, 1, correction=0)",
            "torch.quantile(q, torch.tensor([0.25, 0.75]), dim=1).T",
            "q.quantile(0.25, dim=1, keepdim=True, interpolation='nearest')",
            "torch.nanquantile(torch.where(big, q, torch.nan).nan_to_num(1.0), 0.3, dim=1, interpolation='lower')",
            "torch.nanmean(torch.where(w > 0, q, torch.nan), 1).nan_to_num(0.0)",
            "torch.nansum(torch.where(w > 0, q, torch.nan), 1)",
            "q.norm(p=1, dim=1)",
            "torch.norm(q, float('inf'), 1)",
            "torch.linalg.norm(q, ord=1, dim=1)",
            "torch.linalg.norm(q, ord=float('inf'), dim=-1)",
            "torch.stack([torch.linalg.norm(row) for row in q])",
            "torch.linalg.norm(outer, dim=(1, 2))",
            "torch.linalg.vector_norm(q, ord=3, dim=1)",
            "q.scatter_reduce(1, order, w, 'sum')",
            "q.scatter_reduce(1, order, w, 'mean', include_self=False)",
            "q.scatter_reduce(1, order, p, 'prod')",
            "q.scatter_reduce(1, order, w, reduce='amin')",
            "torch.scatter(q, 1, order[:, :1], 2.0)",
            "torch.zeros(batch, 3).scatter_(1, order[:, :1], 1.0) * q",
            "torch.zeros_like(q).scatter_add_(1, order, q)",
            "torch.where(big, q, 0.0)",
            "torch.where(big, 1.0, 0.5) * q",
            "2.0 ** u",
            "p ** w",
            "torch.pow(2.0, u)",
            "torch.clamp(q, w, w + 1)",
            "q.clamp(min=0.5)",
            "q.clamp(max=w)",
            "torch.clip(q, max=1.0)",
            "torch.div(q, p, rounding_mode='floor')",
            "torch.div(q, p, rounding_mode='trunc')",
            "whole // 2",
            "whole % 2",
            "q % 2.0",
            "w // 2.0",
            "2.0 // (w + 4.0)",
            "torch.round(q, decimals=1)",
            "q.lerp(w, u)",
            "torch.softmax(whole, 1, dtype=torch.float32)",
            "whole.sum(1, dtype=torch.float32)",
            "whole.float().cumsum(1, dtype=torch.float64)",
            "F.gelu(q, approximate='tanh')",
            "F.celu(q, 0.5)",
            "F.elu(q, alpha=0.5)",
            "F.leaky_relu(q, 0.2)",
            "F.softplus(q, beta=2.0, threshold=5.0)",
            "F.hardtanh(q, -2.0, 2.0)",
            "F.relu(q.clone(), inplace=True)",
            "F.smooth_l1_loss(q, w, reduction='none', beta=0.5)",
            "F.huber_loss(q, w, reduction='none', delta=0.5)",
            "F.normalize(q, p=1, dim=1)",
            "F.normalize(q)",
            "F.pad(q, (0, 2), value=1.5)",
            "F.pairwise_distance(q, w, p=1.0, keepdim=True)",
            "F.layer_norm(q, q.shape[1:], weight=fixed, bias=fixed)",
            "F.layer_norm(outer, (3, 3))",
            "F.cosine_similarity(q.unsqueeze(1), outer, dim=-1)",
            "F.one_hot(order, num_classes=3)",
            "F.linear(q, matrix)",
            "F.logsigmoid(outer)",
            "torch.cdist(outer, outer.flip(1), p=1.0)",
            "torch.cdist(outer, outer)",
            "torch.searchsorted(w.sort(1).values, q, right=True)",
            "torch.bucketize(w, torch.tensor([0.0, 1.0]), right=True)",
            "q.topk(2, dim=1, largest=False)",
            "torch.topk(q, k=2, dim=-1).values",
            "q.sort(dim=1, descending=True)",
            "q.argsort(dim=1, descending=True)",
            "torch.sort(q, stable=True, dim=1)",
            "q[torch.arange(batch).unsqueeze(1), order]",
            "q[:, [2, 0]]",
            "q[:, order[0] * 0]",
            "q[..., None, :].squeeze(-2)",
            "q.index_add(1, torch.tensor([0, 0]), w[:, :2], alpha=2.0)",
            "q.index_put((torch.arange(batch)[:, None], order), w, accumulate=True)",
            "torch.index_select(outer, -1, torch.tensor([1, 1]))",
            "torch.max(q, w)",
            "torch.min(q, w)",
            "q.max(w)",
            "torch.tensor_split(q, (1, 2), dim=1)",
            "torch.split(q, [1, 2], dim=1)",
            "torch.meshgrid(fixed, fixed)[0].flatten()[:3] * q",
            "outer[:, torch.triu_indices(3, 3, 1)[0], torch.triu_indices(3, 3, 1)[1]]",
            "torch.einsum('bi,bj->bij', q, w)",
            "torch.einsum('bi,bi->b', [q, w])",
            "torch.einsum('bii->bi', outer)",
            "torch.diff(q, n=2, dim=1)",
            "torch.diff(q, dim=1, prepend=w[:, :1])",
            "torch.nan_to_num(q.detach() / 0.0, nan=0.0, posinf=1.0, neginf=-1.0)",
            "torch.logical_not(q)",
            "torch.logical_and(q, w)",
            "outer.sum((1, 2))",
            "outer.mean(dim=[1, 2], keepdim=True)",
            "outer.amax((1, 2))",
            "torch.all(outer > 0, dim=2)",
            "outer.flip(dims=[1, 2])",
            "torch.roll(outer, shifts=(1, 1), dims=(1, 2))",
            "outer.transpose(-1, -2) @ q.unsqueeze(-1)",
            "q @ matrix.T",
            "matrix @ q.unsqueeze(-1)",
            "torch.matmul(w.unsqueeze(1), outer)",
            "torch.tensordot(q, matrix, dims=1)",
            "torch.inner(q, matrix)",
            "q.view(batch, 3, 1)",
            "q.reshape(batch, -1)",
            "q.repeat_interleave(2, 1)",
            "q.tile(2)",
            "torch.isclose(q, q + 1e-7)",
            "torch.heaviside(w.long().float(), torch.tensor(0.5))",
            "torch.xlogy(2.0, p)",
            "torch.xlogy(w, 2.0)",
            "torch.copysign(q, -1.0)",
            "torch.add(q, w, alpha=0.5)",
            "torch.sub(q, w, alpha=0.5)",
            "1.0 - q",
            "torch.eq(order, 1)",
            "torch.logit(u, eps=0.2)",
            "q.masked_fill(big, float('-inf')).softmax(1).nan_to_num(0.0)",
            "q.masked_fill(w < 0, -1e9).amax(1)",
            "torch.linspace(0.0, 1.0, steps=3) * q",
            "torch.arange(3.0) * q",
            "torch.arange(0, 6, 2).float() * q",
            "torch.full((batch, 3), 2.0) * q",
            "torch.ones(batch, 1) * q",
            "torch.zeros(3).index_fill(0, torch.tensor([1]), 2.0) * q",
            "q.new_zeros(batch, 3) + q",
            "q.new_full((batch, 1), 1.5) * q",
            "torch.tensor(np.exp(-numbers)).float() * q",
            "torch.as_tensor(numbers.astype(np.float32)) * q",
            "torch.from_numpy(np.eye(3)).float() @ q.unsqueeze(-1)",
            "(~big).float() * q",
            "big.logical_xor(w > 0)",
            "(whole & 1) + (whole | 2) - (whole ^ 1)",
            "whole.bitwise_and(1)",
            "torch.unbind(outer, dim=1)",
            "q.cumsum(-1).flip(-1)",
            "torch.cummax(q, dim=-1)[0]",
            "q.kthvalue(1, dim=1).values",
            "torch.median(q, dim=1).values",
            "torch.stack([w, q], dim=-1).max(-1).values",
            "torch.take_along_dim(q, q.argmax(1, keepdim=True), dim=1)",
            "torch.gather(q, 1, order[:, :1])",
            "torch.bmm(outer, outer.mT)",
            "torch.count_nonzero(big, dim=1)",
            "max(q.unbind(1), key=lambda value: 0)",
            "torch.finfo(q.dtype).max / torch.finfo(q.dtype).max * q",
        )
    ),
    # Changes of what may be a view.
    *(
        f"    held = q.clone()\n    held{view}.mul_(2.0)\n    total = total + rows(held, batch)"
        for view in (
            "[:, 1:]",
            "[:, [0, 2]]",
            "[..., 0]",
            ".T",
            ".mT",
            ".broadcast_to((batch, 3))",
            ".clone()",
            ".contiguous()",
            ".double()",
            ".expand(batch, 3)",
            ".expand_as(q)",
            ".flatten()",
            ".float()",
            ".index_select(1, torch.tensor([0]))",
            ".movedim(0, 1)",
            ".narrow(1, 0, 2)",
            ".permute(1, 0)",
            ".positive()",
            ".ravel()",
            ".real",
            ".reshape(-1)",
            ".reshape_as(q)",
            ".select(1, 0)",
            ".squeeze()",
            ".swapaxes(0, 1)",
            ".swapdims(0, 1)",
            ".t()",
            ".tensor_split(3, 1)[0]",
            ".tile(1)",
            ".to(torch.float32)",
            ".transpose(0, 1)",
            ".type_as(q)",
            ".unflatten(1, (3, 1))",
            ".unsqueeze(1)",
            ".view(-1)",
            ".view_as(q)",
        )
    ),
    *(
        f"    held = {value}.clone()\n    {change}\n    total = total + rows(held, batch)"
        for value, change in (
            ("q", "torch.as_tensor(held).mul_(2.0)"),
            ("q", "torch.broadcast_tensors(held, w)[0].mul_(2.0)"),
            ("outer", "held.diagonal(0, 1, 2).fill_(0.5)"),
            ("outer", "held.diagonal(dim1=1, dim2=2).copy_(q)"),
            ("q", "held += w"),
            ("q", "held -= w"),
            ("q", "held *= w"),
            ("q", "held /= p"),
            ("q", "held **= 2"),
            ("q", "held %= p"),
            ("w", "held //= 2.0"),
            ("q", "held[:, 1:] *= w[:, 1:]"),
            ("w", "held[:, 1:] //= 2.0"),
            ("big", "held &= w > 0"),
            ("big", "held |= w > 0"),
            ("big", "held ^= w > 0"),
            ("big", "held[:, 1:] &= w[:, 1:] > 0"),
            ("whole", "held &= 1"),
            ("whole", "held //= 2"),
            ("q", "held[big] = 0.0"),
            ("q", "held[torch.arange(batch), order[:, 0]] += 5.0"),
        )
    ),
]
EXAMPLES = {
    "torch": TORCH,
    "torch.linalg": TORCH_LINALG,
    "torch.special": TORCH_SPECIAL,
    "torch.nn.functional": FUNCTIONAL,
    "tensor": METHODS,
    "math": MATH,
    "numpy": NUMPY,
    "builtins": BUILTINS,
    "itertools": ITERTOOLS,
    "functools": FUNCTOOLS,
}
