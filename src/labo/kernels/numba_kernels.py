"""The sweep over rows, compiled by Numba: numba.py launches it and says what its arguments mean.

Half precision (bfloat16) comes as int16, the bits of it. Loops are short and over one chunk of a row, which lies in the
cache: LLVM turns each into vector instructions.
"""
# pyright: reportGeneralTypeIssues=false, reportCallIssue=false, reportArgumentType=false, reportIndexIssue=false

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

CHUNK = 1024
MIN_EXPONENT = np.float32(-126.0)
LOG2_E = np.float32(1 / math.log(2))
HALF, ONE, ZERO = np.float32(0.5), np.float32(1.0), np.float32(0.0)
# Taylor coefficients of 2^x on [-1/2, 1/2]: the first one left out is below half a rounding of float32.
C1, C2, C3, C4, C5, C6 = (np.float32(math.log(2) ** k / math.factorial(k)) for k in range(1, 7))
# Sums may be reordered (else no loop over them is vectorised); NaN and infinities keep their meaning.
FAST = {"contract", "reassoc", "nsz"}
# Keys of the infinities.
PLUS_INF, MINUS_INF = np.int32(0x7F800000), np.int32(-0x7F800001)
NO_PRIOR = np.empty(0, np.float32)


def _compiled(function: Any) -> Any:
    options = {"nogil": True, "fastmath": FAST, "error_model": "numpy"}
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # there is no folder that a cache could be written to
        return njit(**options)(function)


_part = njit(inline="always")


@intrinsic
def _load(typing: Any, x: Any) -> Any:
    """float32 of a stored element."""

    def widen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if x == types.float32:
            return arguments[0]
        bits = builder.shl(builder.zext(arguments[0], ir.IntType(32)), ir.Constant(ir.IntType(32), 16))
        return builder.bitcast(bits, ir.FloatType())

    return types.float32(x), widen


@intrinsic
def _store(typing: Any, x: Any, like: Any) -> Any:
    """A finite float32 as an element of the kind of `like`, rounded to the nearest, ties to even."""

    def narrow(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if like == types.float32:
            return arguments[0]
        word = ir.IntType(32)
        bits = builder.bitcast(arguments[0], word)
        odd = builder.and_(builder.lshr(bits, ir.Constant(word, 16)), ir.Constant(word, 1))
        rounded = builder.add(bits, builder.add(odd, ir.Constant(word, 0x7FFF)))
        return builder.trunc(builder.lshr(rounded, ir.Constant(word, 16)), ir.IntType(16))

    return like(types.float32, like), narrow


@intrinsic
def _times_power_of_2(typing: Any, x: Any, power: Any) -> Any:
    """Adds `power` to the exponent of x: x times 2 to the `power`."""

    def add(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word = ir.IntType(32)
        bits = builder.bitcast(arguments[0], word)
        return builder.bitcast(builder.add(bits, builder.shl(arguments[1], ir.Constant(word, 23))), ir.FloatType())

    return types.float32(types.float32, types.int32), add


@intrinsic
def _key(typing: Any, x: Any) -> Any:
    """The bits of a float32 as a whole number in the order of the floats; NaN lies outside the infinities."""

    def order(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _ordered(builder, builder.bitcast(arguments[0], ir.IntType(32)))

    return types.int32(types.float32), order


@intrinsic
def _of_key(typing: Any, key: Any) -> Any:
    """The float32 that a key is of."""

    def back(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(_ordered(builder, arguments[0]), ir.FloatType())

    return types.float32(types.int32), back


def _ordered(builder: Any, bits: Any) -> Any:
    """Negative numbers the other way round; its own inverse."""
    word = ir.IntType(32)
    sign = builder.ashr(bits, ir.Constant(word, 31))
    return builder.xor(bits, builder.and_(sign, ir.Constant(word, 0x7FFFFFFF)))


@njit(inline="always")
def _exp2(x):
    """2 to the x for x <= 0; 0 below the least normal exponent."""
    held = max(x, MIN_EXPONENT)
    whole = np.floor(held + HALF)
    rest = held - whole
    series = ((((C6 * rest + C5) * rest + C4) * rest + C3) * rest + C2) * rest + C1
    power = _times_power_of_2(series * rest + ONE, np.int32(whole))
    return power if x >= MIN_EXPONENT else ZERO


@_part
def _top(logits, n):
    """(the largest logit of row n, whether none is NaN or +inf and one is finite, whether one is -inf)."""
    # Of whole numbers in the order of the floats: a maximum of floats is not vectorised, as it has to mind NaN.
    top = least = _key(_load(logits[n, 0]))
    for k in range(np.uint64(logits.shape[1])):
        key = _key(_load(logits[n, k]))
        top, least = max(top, key), min(least, key)
    return _of_key(top), least >= MINUS_INF and top > MINUS_INF and top < PLUS_INF, least == MINUS_INF


@_part
def _belief(logits, n, at, top, belief):
    """Leaves exp(z - top) of a chunk of row n in `belief`; its sum."""
    total = ZERO
    for k in range(at[0], at[1]):
        p = _exp2((_load(logits[n, k]) - top) * LOG2_E)
        belief[k] = p
        total += p
    return np.float64(total)


@_part
def _belief_and_label(logits, n, at, top, beta, belief, label):
    """Leaves exp(z - top) in `belief` and exp((z - top) / beta) in `label`; their sums over the chunk."""
    belief_total = label_total = ZERO
    scale = np.float32(LOG2_E / beta)
    if beta == 2.0 or beta == 3.0 or beta == 4.0:  # one exponential: the belief is a power of the label
        third, fourth = beta == 3.0, beta == 4.0
        for k in range(at[0], at[1]):
            q = _exp2((_load(logits[n, k]) - top) * scale)
            square = q * q
            p = square * (q if third else square if fourth else ONE)
            belief[k], label[k] = p, q
            belief_total += p
            label_total += q
    else:
        for k in range(at[0], at[1]):
            gap = _load(logits[n, k]) - top
            p, q = _exp2(gap * LOG2_E), _exp2(gap * scale)
            belief[k], label[k] = p, q
            belief_total += p
            label_total += q
    return np.float64(belief_total), np.float64(label_total)


@_part
def _dot(label, prior, at):
    total = ZERO
    for k in range(at[0], at[1]):
        total += label[k] * prior[k]
    return np.float64(total)


@_part
def _mass(logits, n, prior):
    """What the prior (ones, where there is none) leaves on the classes that row n does not mask."""
    total = 0.0
    for k in range(np.uint64(logits.shape[1])):
        if _load(logits[n, k]) > np.float32(-np.inf):
            total += prior[k] if prior.size else ONE
    return total


@_part
def _gaps(logits, n, at, top, prior):
    """The sum of top - z under the prior, under ones where there is none."""
    total = ZERO
    if prior.size:
        for k in range(at[0], at[1]):
            total += (top - _load(logits[n, k])) * prior[k]
    else:
        for k in range(at[0], at[1]):
            total += top - _load(logits[n, k])
    return np.float64(total)


@_part
def _write(belief, p_factor, label, q_factor, prior, out, n):
    """Makes row n belief * p_factor - label * q_factor * prior."""
    if prior.size:
        for k in range(np.uint64(out.shape[1])):
            out[n, k] = _store(belief[k] * p_factor - label[k] * q_factor * prior[k], out[n, k])
    else:
        for k in range(np.uint64(out.shape[1])):
            out[n, k] = _store(belief[k] * p_factor - label[k] * q_factor, out[n, k])


@_part
def _sums(logits, n, top, alpha, beta, prior, belief, label):
    """Leaves exp(z - top) in `belief` and exp((z - top) / beta) in `label`, ones for the label that is the prior.

    Returns (the sum of the first, the sum of the second under the prior (under ones: there is none), the sum of the
    gaps top - z under it where the label is the prior, else 0).
    """
    classes = logits.shape[1]
    labelled, limit = alpha != 0.0, beta == np.inf
    if not labelled or limit:
        label[:] = ONE
    belief_sum = label_sum = gaps = 0.0
    for start in range(0, classes, CHUNK):
        at = (np.uint64(start), np.uint64(min(start + CHUNK, classes)))
        if labelled and not limit:
            belief_part, label_part = _belief_and_label(logits, n, at, top, beta, belief, label)
            label_sum += _dot(label, prior, at) if prior.size else label_part
        else:
            belief_part = _belief(logits, n, at, top, belief)
            if labelled:
                gaps += _gaps(logits, n, at, top, prior)
        belief_sum += belief_part
    if not labelled or limit:
        label_sum = 1.0 if prior.size else np.float64(classes)
    return belief_sum, label_sum, gaps


@_compiled
def sweep(logits, target, row_weights, strengths, prior, gradient, out, losses, done):
    """Losses times weights of all rows, and the gradient of their sum.

    Returns how many rows it cannot do; `done` is False for them.
    """
    classes = logits.shape[1]
    left = 0
    belief = np.empty(classes, np.float32)
    label = np.empty(classes, np.float32)
    for n in range(np.uint64(logits.shape[0])):
        share = np.float64(row_weights[n])
        if share == 0.0:
            done[n] = True
            losses[n] = ZERO
            if gradient:
                for k in range(np.uint64(classes)):
                    out[n, k] = 0
            continue
        own = target[n]
        if not 0 <= own < classes:  # which is not looked for in a compiled graph; the reference tells it
            done[n] = False
            left += 1
            continue
        at = n if strengths.shape[1] > 1 else np.uint64(0)
        alpha, beta = strengths[0, at], strengths[1, at]
        top, fine, masked = _top(logits, n)
        gap = np.float64(top) - np.float64(_load(logits[n, own]))
        # A label that is the prior over what is not masked is not made here.
        done[n] = fine and gap < np.inf and not (masked and beta == np.inf)
        if not done[n]:
            left += 1
            continue
        belief_sum, label_sum, gaps = _sums(logits, n, top, alpha, beta, prior, belief, label)
        mass = 1.0 if prior.size else np.float64(classes)
        if masked:
            mass = _mass(logits, n, prior)
        pull = 0.0
        if alpha != 0.0:
            pull = gaps / mass if beta == np.inf else -beta * math.log(label_sum / mass)
        losses[n] = np.float32(share * (math.log(belief_sum) + (1.0 - alpha) * gap + alpha * pull))
        if gradient:
            _write(belief, np.float32(share / belief_sum), label, np.float32(alpha * share / label_sum), prior, out, n)
            own_label = label[own] * (prior[own] if prior.size else ONE) / label_sum
            slope = belief[own] / belief_sum - (1.0 - alpha) - alpha * own_label
            out[n, own] = _store(np.float32(share * slope), out[n, own])
    return left


def pair(alpha: float, beta: float) -> np.ndarray:
    """Both as (2, 1)."""
    return np.array(((alpha,), (beta,)), np.float64)


@_compiled
def largest(z, values, classes):
    """Leaves the largest entries of each row of finite float32 logits in `values`, the first the largest."""
    count = values.shape[1]
    for n in range(z.shape[0]):
        for j in range(count):
            values[n, j] = -np.inf
            classes[n, j] = 0
        least = np.float32(-np.inf)
        for start in range(np.uint64(0), np.uint64(z.shape[1]), np.uint64(64)):
            end = min(start + np.uint64(64), np.uint64(z.shape[1]))
            top = _key(z[n, start])
            for k in range(start, end):  # of whole numbers in the order of the floats: see `_top`
                top = max(top, _key(z[n, k]))
            if _of_key(top) <= least:
                continue
            for k in range(start, end):
                value = z[n, k]
                if value > least:
                    j = count - 1
                    while j > 0 and values[n, j - 1] < value:
                        values[n, j] = values[n, j - 1]
                        classes[n, j] = classes[n, j - 1]
                        j -= 1
                    values[n, j] = value
                    classes[n, j] = k
                    least = values[n, count - 1]
