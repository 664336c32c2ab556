"""The JSON form of a tensor program and its rules, which are checked without running anything.

Values are numbered in the order in which they are computed: 0 is agents_q [B, n_agents], 1 is global_state
[B, state_dim], 2 is the batch size B, then the constants, then one value per operation. As JSON:

    {"version": 1, "n_agents": 3, "state_dim": 12,
     "constants": [{"dtype": "float32", "shape": [3], "data": [1.0, 0.5, 0.5]}],
     "operations": [["mul.Tensor", [{"ref": 0}, {"ref": 3}], {}], ["sum.dim_IntList", [{"ref": 4}, [1], true], {}]],
     "output": 5}

An argument is a number, true, false, null, a string, {"ref": k}, {"dtype": "float32"}, {"float": "inf"} or a list.
Keyword arguments cannot refer to values.
"""

import json
import math
from typing import Any, NoReturn

import torch
from torch import Tensor

from qllm_exp.credit.operations import DTYPES, find_operation
from qllm_exp.credit.refused import Refused

VERSION = 1
AGENTS_Q, GLOBAL_STATE, BATCH_SIZE, FIRST_CONSTANT = range(4)  # numbers of the values that every program starts from
MAX_OPERATIONS = 2_000
MAX_CONSTANTS = 512
MAX_CONSTANT_ELEMENTS = 16_384  # all constants together
MAX_AGENTS, MAX_STATE_DIM = 1_024, 65_536
_MAX_LIST, _MAX_STRING, _MAX_DEPTH, _MAX_INT = 1_024, 64, 3, 2**63 - 1
_FLOATS = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}
_KEYS = {"version", "n_agents", "state_dim", "constants", "operations", "output"}


def refuse(reason: str) -> NoReturn:
    """Raise Refused('program', reason)."""
    raise Refused("program", reason)


def canonical_json(data: Any) -> str:
    """Return the canonical text of JSON data, from which hashes are computed."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)


def encode(value: Any) -> Any:
    """Encode a number, dtype, string, None or a list of them as a JSON argument.

    Raises:
        TypeError: `value` is anything else.
    """
    if isinstance(value, list | tuple):
        return [encode(element) for element in value]
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{type(value).__name__} is not an argument of a tensor program")


def decode(argument: Any) -> Any:
    """Decode a checked JSON argument that does not refer to other values."""
    if isinstance(argument, list):
        return [decode(element) for element in argument]
    if isinstance(argument, dict):
        return DTYPES[argument["dtype"]] if "dtype" in argument else _FLOATS[argument["float"]]
    return argument


def references(argument: Any) -> list[int]:
    """Return the numbers of the values that a JSON argument refers to."""
    if isinstance(argument, list):
        return [number for element in argument for number in references(element)]
    return [argument["ref"]] if isinstance(argument, dict) and "ref" in argument else []


def encode_constant(tensor: Tensor) -> dict[str, Any]:
    """Encode a fixed tensor as JSON: dtype, shape and the flat list of its elements."""
    flat = tensor.detach().cpu().flatten().tolist()
    return {"dtype": encode(tensor.dtype)["dtype"], "shape": list(tensor.shape), "data": [encode(x) for x in flat]}


def decode_constant(constant: dict[str, Any], device: torch.device) -> Tensor:
    """Build the tensor of a checked constant on `device`."""
    data = torch.tensor(decode(constant["data"]), dtype=DTYPES[constant["dtype"]])
    return data.reshape(constant["shape"]).to(device)


_ARITHMETIC = {"add.Tensor", "sub.Tensor", "mul.Tensor", "div.Tensor"}  # (tensor, number)


def literals_to_constants(data: dict[str, Any], smallest: float) -> dict[str, Any]:
    """Return a program in which the numbers of sums, differences, products and quotients are constants, all with a gradient.

    Args:
        data: the JSON of a checked program.
        smallest: numbers closer to 0 stay as they are.
    """
    operations: list[list[Any]] = []
    numbers: list[float] = []
    old_first = FIRST_CONSTANT + len(data["constants"])
    for name, arguments, keywords in data["operations"]:
        operand = arguments[0].get("ref", 0) if arguments and isinstance(arguments[0], dict) else 0
        if name == "detach.default" and FIRST_CONSTANT <= operand < old_first:  # as torch traces a tensor of numbers
            operations.append(["alias.default", arguments, keywords])
            continue
        literal: Any = arguments[1] if len(arguments) == 2 and not keywords else None
        # An integer beside a tensor of integers keeps it one; only a quotient is a fraction in any case.
        is_number = isinstance(literal, float) or (type(literal) is int and name == "div.Tensor")
        if not is_number or name not in {*_ARITHMETIC, "rsub.Scalar"} or abs(literal) < smallest:
            operations.append([name, arguments, keywords])
            continue
        constant = {"new": len(numbers)}
        numbers.append(float(literal))
        if name == "rsub.Scalar":
            operations.append(["sub.Tensor", [constant, arguments[0]], {}])
        else:
            operations.append([name, [arguments[0], constant], {}])

    def renumbered(argument: Any) -> Any:
        if isinstance(argument, list):
            return [renumbered(element) for element in argument]
        if isinstance(argument, dict) and "new" in argument:
            return {"ref": old_first + argument["new"]}
        if isinstance(argument, dict) and argument.get("ref", 0) >= old_first:
            return {"ref": argument["ref"] + len(numbers)}
        return argument

    constants = [{"dtype": "float32", "shape": [], "data": [number]} for number in numbers]
    output = data["output"]
    return data | {
        "constants": [*data["constants"], *constants],
        "operations": [[name, renumbered(arguments), keywords] for name, arguments, keywords in operations],
        "output": output + len(numbers) if output >= old_first else output,
    }


def check_program(data: Any) -> dict[str, Any]:
    """Check the JSON of a program against the rules above.

    Args:
        data: the parsed JSON.

    Returns:
        A copy of `data`.

    Raises:
        Refused: a rule is broken; the stage is 'program'.
    """
    try:
        data = json.loads(canonical_json(data))
    except (TypeError, ValueError, RecursionError) as error:
        refuse(f"the program is not plain JSON: {error}")
    if not isinstance(data, dict) or set(data) != _KEYS:
        refuse(f"a program must have exactly the keys {sorted(_KEYS)}")
    if type(data["version"]) is not int or data["version"] != VERSION:
        refuse(f"program version {data['version']!r} is unknown; this package reads version {VERSION}")
    _check_integer("n_agents", data["n_agents"], 1, MAX_AGENTS)
    _check_integer("state_dim", data["state_dim"], 0, MAX_STATE_DIM)
    constants, operations = data["constants"], data["operations"]
    if not isinstance(constants, list) or len(constants) > MAX_CONSTANTS:
        refuse(f"constants must be a list of at most {MAX_CONSTANTS}")
    if not isinstance(operations, list) or len(operations) > MAX_OPERATIONS:
        refuse(
            f"operations must be a list of at most {MAX_OPERATIONS}: write the function with fewer tensor operations"
        )
    if sum(_check_constant(constant) for constant in constants) > MAX_CONSTANT_ELEMENTS:
        refuse(f"the constants have more than {MAX_CONSTANT_ELEMENTS} elements together")
    first = FIRST_CONSTANT + len(constants)
    for number, operation in enumerate(operations, start=first):
        _check_operation(operation, number)
    _check_integer("output", data["output"], 0, first + len(operations) - 1)
    return data


def _check_integer(name: str, value: Any, low: int, high: int) -> int:
    """Return `value` if it is an integer from `low` to `high`; refuse anything else."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        refuse(f"{name} must be an integer from {low} to {high}, got {value!r}")
    return value


def _check_constant(constant: Any) -> int:
    """Check a constant and return its number of elements. Numbers too large for float32 are infinite there."""
    if not isinstance(constant, dict) or set(constant) != {"dtype", "shape", "data"}:
        refuse("a constant must have exactly the keys dtype, shape and data")
    dtype, shape, data = constant["dtype"], constant["shape"], constant["data"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        refuse(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    if not isinstance(shape, list) or len(shape) > 8 or not isinstance(data, list):
        refuse("the shape of a constant must be a list of up to 8 sizes, and its data a flat list")
    size = math.prod(_check_integer("a size of a constant", length, 0, MAX_CONSTANT_ELEMENTS) for length in shape)
    if size != len(data):
        refuse(f"a constant of shape {shape} has {len(data)} elements, it must have {size}")
    for element in data:
        _check_argument(element, 0, _MAX_DEPTH)
        if dtype == "bool" and not isinstance(element, bool):
            refuse(f"a bool constant contains {element!r}")
        if element is None or isinstance(element, str | list) or (isinstance(element, dict) and "float" not in element):
            refuse(f"a constant contains {element!r}, which is not a number")
        if dtype.startswith("int"):
            limits = torch.iinfo(DTYPES[dtype])
            if not isinstance(element, int) or not limits.min <= element <= limits.max:
                refuse(f"an {dtype} constant contains {element!r}")
    return size


def _check_operation(operation: Any, number: int) -> None:
    """Check an operation whose result will be value `number`."""
    if not isinstance(operation, list) or len(operation) != 3:
        refuse("an operation must be [name, arguments, keyword arguments]")
    name, arguments, keywords = operation
    known = find_operation(name) if isinstance(name, str) else None
    if known is None:
        refuse(f"operation {name!r} is not allowed in a tensor program")
    if not isinstance(arguments, list) or not isinstance(keywords, dict):
        refuse(f"operation {name!r} needs a list of arguments and a dictionary of keyword arguments")
    if not set(keywords) <= known.keywords:
        refuse(f"operation {name!r} has no keyword argument {sorted(set(keywords) - known.keywords)}")
    _check_argument(arguments, number, 0)
    for value in keywords.values():
        _check_argument(value, 0, _MAX_DEPTH)
    passed: dict[int | str, Any] = {**dict(enumerate(arguments)), **keywords}
    for position in known.dtypes & set(passed):  # torch would accept an integer there, as its internal code of a dtype
        value = passed[position]
        if value is not None and not (isinstance(value, dict) and "dtype" in value):
            refuse(f"operation {name!r} has {value!r} in the place of a dtype")


def _check_argument(argument: Any, number: int, depth: int) -> None:
    """Check an argument.

    Args:
        argument: the JSON of the argument.
        number: the argument may refer to the values before this one.
        depth: nesting of lists around the argument.
    """
    if isinstance(argument, list):
        if depth > _MAX_DEPTH or len(argument) > _MAX_LIST:
            refuse(f"a list of arguments is nested deeper than {_MAX_DEPTH} or longer than {_MAX_LIST}")
        for element in argument:
            _check_argument(element, number, depth + 1)
    elif isinstance(argument, dict):
        if len(argument) != 1 or not argument.keys() <= {"ref", "dtype", "float"}:
            refuse(f"argument {argument!r} is not a ref, a dtype or a float")
        ((key, value),) = argument.items()
        if key == "ref":
            _check_integer("a reference", value, 0, number - 1)
        elif not isinstance(value, str) or value not in (DTYPES if key == "dtype" else _FLOATS):
            refuse(f"{key} {value!r} is not one of {', '.join(DTYPES if key == 'dtype' else _FLOATS)}")
    elif isinstance(argument, str):
        if len(argument) > _MAX_STRING:
            refuse(f"a string of {len(argument)} characters is too long; {_MAX_STRING} are allowed")
    elif isinstance(argument, int) and abs(argument) > _MAX_INT:
        refuse(f"the number {argument} does not fit 64 bits")
