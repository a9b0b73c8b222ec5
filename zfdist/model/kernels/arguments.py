"""What compiled code is given, checked and made ready: it reads memory as it was told to, and a wrong size is silent.

One rule for all entries. The weights say type and device, and must agree. Data (inputs, noise, states, gradients) of
another type of float are converted, and what is not dense is copied, both as autograd can follow. All else that does
not fit is an error in one sentence.

Arguments are named as everywhere in this folder, with the shape after the last underscore: a letter for a size, the
same one wherever it stands; a digit for itself.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

_UNKNOWN = -1  # a size that no argument has the right number of dimensions to say
_DIGITS = {str(digit): digit for digit in range(10)}
Multiples = Mapping[str, tuple[int, str]]
"""Sizes that are a multiple of another: {"G": (4, "H")} says G = 4 H."""


def prepared(
    entry: str,
    data: Mapping[str, Any],
    weights: Mapping[str, Any],
    *,
    whole: Mapping[str, Any] | None = None,
    multiples: Multiples | None = None,
) -> list[Tensor]:
    """Return all arguments, in this order: data, whole numbers (as int64), weights; dense, of one device and one type.

    Raises:
        TypeError: naming the argument that is no tensor or not of a type that can be converted.
        ValueError: naming the argument of another shape or device, or without a step in time (T = 0).
    """
    whole, multiples = whole or {}, multiples or {}
    arguments = {**data, **whole, **weights}
    for name, value in arguments.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{entry}: {name} should be a tensor, is {type(value).__name__}")
    sizes = _sizes(arguments, multiples)
    if sizes.get("T") == 0:
        raise ValueError(f"{entry}: no steps to run, T = 0")
    like = next(iter(weights))
    dtype, device, result = weights[like].dtype, weights[like].device, []
    for name, value in arguments.items():
        shape = tuple([sizes.get(letter, _UNKNOWN) for letter in _letters(name)])
        if value.shape != shape:
            raise ValueError(f"{entry}: {_misfit(name, arguments, sizes, multiples)}")
        if value.dtype != dtype and name in weights:
            raise TypeError(f"{entry}: {name} should be {dtype} as {like}, is {value.dtype}")
        result.append(ready(entry, name, value, shape, torch.int64 if name in whole else dtype, device, like))
    return result


def gradients(entry: str, results: Mapping[str, Tensor], given: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradients of `results`, of which each has the shape, type and device, as compiled code reads them.

    Autograd gives them expanded, transposed and, called directly, of another type.

    Raises:
        TypeError: or ValueError, as `ready`.
    """
    pairs = zip(results.items(), given, strict=True)
    return [ready(entry, f"gradient of {name}", value, r.shape, r.dtype, r.device) for (name, r), value in pairs]


def rows(
    entry: str, given: Sequence[tuple[str, Tensor, int]], dtype: torch.dtype, device: torch.device
) -> list[Tensor]:
    """Return what one step is given, by name, value and width: [B, width] each; a single row stands for all B.

    Raises:
        TypeError: or ValueError, as `ready`.
    """
    lengths = [len(value) for _, value, _ in given]
    batch = max(lengths)
    if min(lengths) != batch:
        if any(length not in (1, batch) for length in lengths):
            names = ", ".join(name for name, _, _ in given)
            raise ValueError(f"{entry}: {names} should have as many rows as each other or one, have {lengths}")
        given = [(name, _repeated(value, batch), width) for name, value, width in given]
    return [ready(entry, name, value, (batch, width), dtype, device) for name, value, width in given]


def ready(
    entry: str, name: str, value: Tensor, shape: Sequence[int], dtype: torch.dtype, device: torch.device, like: str = ""
) -> Tensor:
    """Return one argument dense and of this type, itself if it is; converts between floats and between integers.

    `like` names, for the messages, the argument that type and device are those of.

    Raises:
        TypeError: of another kind of type, or sparse.
        ValueError: of another shape or on another device.
    """
    if (
        value.shape == shape and value.dtype is dtype and value.device == device and value.layout is torch.strided
        and value.is_contiguous() and not value.is_neg()
    ):  # fmt: skip
        return value
    if value.shape != shape:
        raise ValueError(f"{entry}: {name} should be {list(shape)}, is {list(value.shape)}")
    if value.device != device:
        raise ValueError(f"{entry}: {name} should be on {device}{like and f' as {like}'}, is on {value.device}")
    if value.layout != torch.strided:
        raise TypeError(f"{entry}: {name} should be dense, is {value.layout}")
    if value.dtype != dtype:
        if _kind(value.dtype) != _kind(dtype):
            raise TypeError(f"{entry}: {name} should be {dtype}{like and f' as {like}'}, is {value.dtype}")
        value = value.to(dtype)
    return value.resolve_neg().contiguous()  # a view of complex numbers may have its sign in a flag


def _repeated(value: Tensor, batch: int) -> Tensor:
    return value.expand(batch, -1) if value.ndim == 2 and len(value) == 1 else value


def _kind(dtype: torch.dtype) -> str:
    if dtype.is_complex or dtype == torch.bool:
        return str(dtype)
    return "float" if dtype.is_floating_point else "integer"


@functools.cache
def _letters(name: str) -> str:
    return name.rpartition("_")[2]


def _sizes(arguments: Mapping[str, Tensor], multiples: Multiples) -> dict[str, int]:
    """Return the size of each letter as the last argument has it: the weights come last, and know best."""
    sizes: dict[str, int] = {}
    for name, value in arguments.items():
        letters, shape = _letters(name), value.shape
        if len(letters) == len(shape):
            sizes.update(zip(letters, shape, strict=True))
    sizes.update(_DIGITS)
    for letter, (factor, of) in multiples.items():
        sizes[letter] = factor * sizes.get(of, _UNKNOWN)
    return sizes


def _misfit(name: str, arguments: Mapping[str, Tensor], sizes: Mapping[str, int], multiples: Multiples) -> str:
    """Say what is wrong with a shape, and which other argument it does not go with."""
    letters, given = _letters(name), arguments[name].shape
    should = [sizes.get(letter, _UNKNOWN) for letter in letters]
    text = f"{name} should be [{', '.join(letters)}] = {should}, is {list(given)}"
    wrong = next((letter for letter, a, b in zip(letters, given, should, strict=False) if a != b), "")
    factor, of = multiples.get(wrong, (1, wrong))
    source = next((other for other in reversed(tuple(arguments)) if of in _letters(other)), name)
    if len(given) != len(letters) or source == name:
        return text
    return f"{text}; {of} is that of {source}" + (f", {wrong} = {factor} {of}" if factor > 1 else "")
