"""Allow-list of generated functions: names of torch, math and Python that only do arithmetic on tensors.

Every name here is harmless on any object that it is looked up on; all other names are refused. `HINTS` explains the
refusal of names that language models use often, and what to write instead.
"""

from qllm_exp.utils.text import word_set

_SHARED = word_set("""
abs absolute acos acosh add all amax amin angle any arccos arcsin arctan arctan2 argmax argmin argsort asin asinh atan
atan2 atanh baddbmm bitwise_and bitwise_not bitwise_or bitwise_xor bmm broadcast_to ceil chunk clamp clamp_max
clamp_min clip clone copysign cos cosh count_nonzero cross cummax cummin cumprod cumsum deg2rad detach diag diag_embed
diagonal diff div divide dot eq erf erfc exp exp2 expm1 flatten flip floor floor_divide fmax fmin fmod frac gather ge
greater greater_equal gt heaviside hypot index_select inner isclose isfinite isinf isnan kron le lerp less less_equal
log log10 log1p log2 log_softmax logaddexp logcumsumexp logical_and logical_not logical_or logical_xor logit logsumexp
lt masked_fill matmul max maximum mean median min minimum mm moveaxis movedim mul multiply mv nan_to_num nanmean
nansum narrow ne neg negative norm not_equal numel outer permute positive pow prod rad2deg ravel reciprocal relu
remainder repeat_interleave reshape roll round rsqrt scatter scatter_add select sgn sigmoid sign sin sinc sinh softmax
sort split sqrt square squeeze std sub subtract sum swapaxes swapdims take_along_dim tan tanh tensor_split tile topk
transpose tril triu true_divide trunc unbind unflatten unsqueeze var where xlogy
""")

TORCH = _SHARED | word_set(
    """
Tensor arange as_tensor bool broadcast_tensors bucketize cat cdist column_stack concat concatenate
cosine_similarity dstack e einsum eye float float32 float64 full full_like hstack inf int int32 int64 linspace
logspace long meshgrid nan ones ones_like pi searchsorted stack std_mean tensor tensordot tril_indices triu_indices
var_mean vstack zeros zeros_like
"""
)
TORCH_LINALG = frozenset({"norm", "vector_norm"})
FUNCTIONAL = word_set("""
celu cosine_similarity elu gelu hardshrink hardsigmoid hardswish hardtanh huber_loss layer_norm leaky_relu linear
log_softmax logsigmoid mish mse_loss normalize one_hot pad pairwise_distance relu relu6 selu sigmoid silu
smooth_l1_loss softmax softmin softplus softshrink softsign tanh tanhshrink
""")
MATH = word_set("""
acos asin atan atan2 ceil copysign cos cosh degrees dist e erf exp expm1 fabs floor fmod fsum hypot inf isclose
isfinite isinf isnan log log10 log1p log2 nan pi pow prod radians sin sinh sqrt tan tanh tau
""")
METHODS = _SHARED | word_set(  # attributes of tensors, lists and dicts
    """
T append bool contiguous device dim double dtype expand expand_as extend float get indices int items keys long mT ndim
new_full new_ones new_tensor new_zeros repeat reshape_as shape size t to type_as values view view_as
"""
)
BUILTINS = word_set("""
abs all any bool dict enumerate float int len list max min range reversed round sum tuple zip
""")

MODULES = {  # every name that refers to a module, and the names that may be read from it
    "torch": TORCH,
    "th": TORCH,
    "torch.linalg": TORCH_LINALG,
    "torch.nn.functional": FUNCTIONAL,
    "F": FUNCTIONAL,
    "math": MATH,
}
IMPORTS = frozenset(  # (module, imported name or '', alias)
    {
        ("torch", "", "torch"),
        ("torch", "", "th"),
        ("math", "", "math"),
        ("torch.nn.functional", "", "torch"),
        ("torch.nn.functional", "", "F"),
        ("torch.nn", "functional", "F"),
    }
)


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
        "no_grad inference_mode set_grad_enabled enable_grad": "it switches gradients off: use tensor.detach() on "
        "values that carry no credit",
        "nonzero masked_select unique bincount histc argwhere": "the size of its result depends on tensor values: use "
        "torch.where, or multiply by a mask",
        "cpu cuda": "it moves tensors between devices: create tensors with device=agents_q.device",
        "empty empty_like new_empty": "its values are uninitialised: use zeros or ones",
        "batch_norm instance_norm group_norm": "it mixes the rows of the batch: each row is a time step of its own",
        "vmap compile jit func": "plain tensor arithmetic over the batch is all that is needed",
        "print input breakpoint": "the function only computes: it reads and writes nothing",
        "open exec eval compile __import__ globals locals vars getattr setattr delattr hasattr dir type object super "
        "memoryview bytearray id": "only arithmetic on the two inputs is allowed",
        "isinstance": "the inputs are always two float32 tensors",
        "ValueError RuntimeError TypeError Exception": "raise nothing: the shapes are guaranteed",
        "map filter sorted iter next": "use a list comprehension over range()",
        "np numpy scipy": "use torch",
        "List Tuple Optional Union Any Dict": "typing is not imported: leave the annotation out",
    }
    return {name: reason for names, reason in groups.items() for name in names.split()}


HINTS = _hints()
