"""Allow-list of generated functions: syntax of Python, and names of torch, math and Python that only compute.

Every name here is harmless on any object that it is looked up on; all other names are refused. `HINTS` explains the
refusal of names that language models use often, and what to write instead.
"""

import ast

from qllm_exp.utils.text import word_set

SYNTAX: tuple[type[ast.AST], ...] = (
    ast.Module,
    ast.FunctionDef,
    ast.arguments,
    ast.arg,
    ast.Return,
    ast.Assign,
    ast.AugAssign,
    ast.AnnAssign,
    ast.NamedExpr,
    ast.For,
    ast.If,
    ast.IfExp,
    ast.Expr,
    ast.Pass,
    ast.Break,
    ast.Continue,
    ast.Assert,
    ast.Raise,
    ast.With,
    ast.withitem,
    ast.Delete,
    ast.Nonlocal,
    ast.Import,
    ast.ImportFrom,
    ast.alias,
    ast.BinOp,
    ast.UnaryOp,
    ast.BoolOp,
    ast.Compare,
    ast.operator,
    ast.unaryop,
    ast.boolop,
    ast.cmpop,
    ast.Call,
    ast.keyword,
    ast.Starred,
    ast.Attribute,
    ast.Subscript,
    ast.Slice,
    ast.Constant,
    ast.Name,
    ast.expr_context,
    ast.Tuple,
    ast.List,
    ast.Set,
    ast.Dict,
    ast.ListComp,
    ast.SetComp,
    ast.DictComp,
    ast.GeneratorExp,
    ast.comprehension,
    ast.Lambda,
    ast.JoinedStr,
    ast.FormattedValue,
)
SYNTAX_HINTS: dict[type[ast.AST], str] = {
    ast.While: "while loops are not allowed: loop over range() of a fixed size",
    ast.ClassDef: "classes are not allowed: write functions",
    ast.AsyncFunctionDef: "async functions are not allowed",
    ast.Await: "await is not allowed",
    ast.Yield: "yield is not allowed: return one tensor",
    ast.YieldFrom: "yield is not allowed: return one tensor",
    ast.Try: "try is not allowed: do not hide errors",
    ast.Global: "global is not allowed: pass values as arguments and return them",
    ast.Match: "match is not allowed: use torch.where",
}

_SHARED = word_set("""
abs absolute acos acosh add all amax amin angle any arccos arcsin arctan arctan2 argmax argmin argsort asin asinh
atan atan2 atanh baddbmm bitwise_and bitwise_not bitwise_or bitwise_xor bmm broadcast_to ceil chunk clamp clamp_max
clamp_min clip clone copysign cos cosh count_nonzero cross cummax cummin cumprod cumsum deg2rad detach diag
diag_embed diagonal diff div divide dot eq erf erfc exp exp2 expm1 flatten flip floor floor_divide fmax fmin fmod
frac gather ge greater greater_equal gt heaviside hypot index_select inner isclose isfinite isinf isnan kron
kthvalue le lerp less less_equal log log10 log1p log2 log_softmax logaddexp logcumsumexp logical_and logical_not
logical_or logical_xor logit logsumexp lt masked_fill matmul max maximum mean median min minimum mm moveaxis movedim
mul multiply mv nan_to_num nanmean nanquantile nansum narrow ne neg negative norm not_equal numel outer permute
positive pow prod quantile rad2deg ravel reciprocal relu remainder repeat_interleave reshape roll round rsqrt
scatter scatter_add scatter_reduce select sgn sigmoid sign sin sinc sinh softmax sort split sqrt square squeeze std
sub subtract sum swapaxes swapdims take_along_dim tan tanh tensor_split tile topk transpose tril triu true_divide
trunc unbind unflatten unsqueeze var where xlogy
""")

TORCH = _SHARED | word_set(
    """
BoolTensor DoubleTensor FloatTensor IntTensor LongTensor Tensor arange as_tensor bool broadcast_shapes
broadcast_tensors bucketize cartesian_prod cat cdist column_stack concat concatenate cosine_similarity
dstack e einsum eye finfo float float32 float64 from_numpy full full_like hstack iinfo inf int int32 int64 is_tensor
linspace logspace long meshgrid nan no_grad numel ones ones_like pi searchsorted stack std_mean tensor tensordot
tril_indices triu_indices var_mean vstack zeros zeros_like
"""
)
TORCH_LINALG = frozenset({"cross", "norm", "vecdot", "vector_norm"})
TORCH_SPECIAL = word_set("erf erfc exp2 expit expm1 log1p log_softmax logit logsumexp round sinc softmax xlogy")
FUNCTIONAL = word_set("""
celu cosine_similarity elu gelu hardshrink hardsigmoid hardswish hardtanh huber_loss layer_norm leaky_relu linear
log_softmax logsigmoid mish mse_loss normalize one_hot pad pairwise_distance relu relu6 selu sigmoid silu
smooth_l1_loss softmax softmin softplus softshrink softsign tanh tanhshrink
""")
MATH = word_set("""
acos asin atan atan2 ceil copysign cos cosh degrees dist e erf exp expm1 fabs floor fmod fsum hypot inf isclose
isfinite isinf isnan log log10 log1p log2 nan pi pow prod radians sin sinh sqrt tan tanh tau
""")
_IN_PLACE = word_set("""
abs_ add_ atan_ ceil_ clamp_ clamp_max_ clamp_min_ clip_ copy_ cos_ cumsum_ div_ divide_ eq_ erf_
exp_ expm1_ fill_ floor_ fmod_ ge_ gt_ index_fill_ le_ lerp_ log1p_ log_ logical_and_ logical_not_ logical_or_ lt_
masked_fill_ mul_ multiply_ nan_to_num_ ne_ neg_ pow_ reciprocal_ relu_ remainder_ round_ rsqrt_ scatter_
scatter_add_ sigmoid_ sign_ sin_ sqrt_ square_ squeeze_ sub_ subtract_ tanh_ transpose_ tril_ triu_ trunc_
unsqueeze_ zero_
""")
METHODS = (  # attributes of tensors, lists, dicts, sets and of torch.finfo
    _SHARED
    | _IN_PLACE
    | word_set("""
T append astype bool clear contiguous copy count device dim double dtype eps expand expand_as extend float get imag
index_add index_copy index_fill index_put indices insert int is_floating_point items itemsize keys long mT max min
ndim ndimension new_full new_ones new_tensor new_zeros pop real remove repeat reshape_as reverse setdefault shape
size smallest_normal t tiny to type_as union update values view view_as
""")
)
BUILTINS = word_set("""
abs all any bool dict divmod enumerate filter float frozenset int isinstance iter len list map max min next pow
print range reversed round set slice sorted str sum tuple zip
""")
EXCEPTIONS = word_set(
    "ArithmeticError AssertionError Exception IndexError NotImplementedError RuntimeError TypeError ValueError"
)
NUMPY = word_set("""
abs arange arccos arcsin arctan array asarray bool_ ceil concatenate cos cumsum deg2rad diag e exp eye float32
float64 floor full hypot identity inf int32 int64 linspace log log10 log1p log2 max maximum mean min minimum nan
newaxis ones outer pi power prod rad2deg round sin sqrt square stack sum tan tanh tril triu where zeros
""")
TYPING = word_set("""
Any Callable Dict Final Iterable Iterator List Literal Mapping NamedTuple Optional Sequence Set Tuple Type TypeAlias
Union
""")

MODULES = {  # every module that may be named, and the names that may be read from it
    "torch": TORCH,
    "torch.linalg": TORCH_LINALG,
    "torch.special": TORCH_SPECIAL,
    "torch.nn": frozenset({"functional"}),
    "torch.nn.functional": FUNCTIONAL,
    "math": MATH,
    "numpy": NUMPY,
    "itertools": word_set("accumulate chain combinations islice pairwise permutations product repeat zip_longest"),
    "functools": word_set("cache lru_cache partial reduce"),
    "typing": TYPING,
    "collections.abc": TYPING,
    "__future__": frozenset({"annotations"}),
}
PREDEFINED = {"torch": "torch", "th": "torch", "math": "math", "F": "torch.nn.functional"}  # names that need no import


def _hints() -> dict[str, str]:
    """Map each name to the reason why it is not allowed and what to use instead."""
    groups = {
        "rand randn rand_like randn_like randint randint_like randperm normal bernoulli multinomial poisson dropout "
        "gumbel_softmax manual_seed seed random rrelu alpha_dropout Generator": "it is random, and equal inputs must "
        "give equal outputs",
        "item tolist numpy data": "it takes values out of the tensors: keep to tensor arithmetic, and choose between "
        "values with torch.where(condition, a, b)",
        "nn Parameter Linear Module Sequential Conv1d Embedding ReLU requires_grad requires_grad_ backward grad "
        "autograd optim": "the function has no trainable parameters and no layers: use fixed numbers and functions "
        "such as torch.softmax",
        "inference_mode set_grad_enabled enable_grad": "it switches gradients on or off: use tensor.detach() on values "
        "that carry no credit",
        "nonzero masked_select unique bincount histc argwhere": "the size of its result depends on tensor values: use "
        "torch.where, or multiply by a mask",
        "cpu cuda": "it moves tensors between devices: create tensors with device=agents_q.device",
        "empty empty_like new_empty": "its values are uninitialised: use zeros or ones",
        "batch_norm instance_norm group_norm": "it mixes the rows of the batch: each row is a time step of its own",
        "vmap compile jit func": "plain tensor arithmetic over the batch is all that is needed",
        "input breakpoint": "the function only computes: it reads and writes nothing",
        "open exec eval compile __import__ globals locals vars getattr setattr delattr hasattr dir type object super "
        "memoryview bytearray id": "only arithmetic on the two inputs is allowed",
        "scipy sklearn jax": "use torch",
        "List Tuple Optional Union Any Dict": "import it from typing, or leave the annotation out",
        "np": "import numpy as np, or use torch",
        "fill_diagonal_ fill_diagonal": "multiply by (1 - torch.eye(n)), or use torch.where(torch.eye(n) > 0, value, x)",
        "resize_ resize": "use reshape",
        "apply_ map_ apply": "use tensor operations on the whole tensor",
        "uniform_ normal_ random_ bernoulli_ exponential_": "it is random, and equal inputs must give equal outputs",
        "requires_grad_ share_memory_ retain_grad set_": "only the values of tensors may change",
    }
    return {name: reason for names, reason in groups.items() for name in names.split()}


HINTS = _hints()
