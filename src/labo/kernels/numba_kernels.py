"""The sweep over rows, compiled by Numba; numba.py launches it and describes its arguments.

bfloat16 is passed as int16, its bits. Loops are short and cover one chunk of a row, which fits in the cache, so that
LLVM vectorizes each.
"""
# pyright: reportGeneralTypeIssues=false, reportCallIssue=false, reportArgumentType=false, reportIndexIssue=false

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

CHUNK = 1024
# float32 numbers between arrays that a loop writes and others. Compiled loops test, by addresses, whether what they
# write may overlap what they read up to this many elements later, and if so sum in another order. In one scratch array
# with gaps, the result does not depend on where the memory lies.
GAP = 64
MIN_EXPONENT = np.float32(-126.0)
LOG2_E = np.float32(1 / math.log(2))
HALF, ONE, ZERO = np.float32(0.5), np.float32(1.0), np.float32(0.0)
# Taylor coefficients of 2^x on [-1/2, 1/2]: the first one left out is below half a rounding of float32.
C1, C2, C3, C4, C5, C6 = (np.float32(math.log(2) ** k / math.factorial(k)) for k in range(1, 7))
# Sums may be reordered (else loops over them are not vectorized); NaN and infinities keep their meaning.
FAST = {"contract", "reassoc", "nsz"}
# Keys of the infinities.
PLUS_INF, MINUS_INF = np.int32(0x7F800000), np.int32(-0x7F800001)
NO_PRIOR = np.empty(0, np.float32)
NO_STATISTICS = np.empty((5, 0), np.float32)
# Rows of the statistics, as in statistics.py.
NLL, LOGSUMEXP, ENTROPY, LABEL_ENTROPY, CORRECT = range(5)


def _compiled(function: Any) -> Any:
    options = {"nogil": True, "fastmath": FAST, "error_model": "numpy"}
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # no writable folder for the cache
        return njit(**options)(function)


_part = njit(inline="always")


@intrinsic
def _load(typing: Any, x: Any) -> Any:
    """A stored element as float32."""

    def widen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if x == types.float32:
            return arguments[0]
        bits = builder.shl(builder.zext(arguments[0], ir.IntType(32)), ir.Constant(ir.IntType(32), 16))
        return builder.bitcast(bits, ir.FloatType())

    return types.float32(x), widen


@intrinsic
def _store(typing: Any, x: Any, like: Any) -> Any:
    """A finite float32 as an element of the type of `like`, rounded to nearest, ties to even."""

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
    """The bits of a float32 as an integer with the same order; NaN lies outside the infinities."""

    def order(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _ordered(builder, builder.bitcast(arguments[0], ir.IntType(32)))

    return types.int32(types.float32), order


@intrinsic
def _of_key(typing: Any, key: Any) -> Any:
    """The float32 of a key."""

    def back(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(_ordered(builder, arguments[0]), ir.FloatType())

    return types.float32(types.int32), back


def _ordered(builder: Any, bits: Any) -> Any:
    """Reverse the order of negative numbers; its own inverse."""
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
    # Compares integer keys, because NaN keeps LLVM from vectorizing a maximum of floats.
    top = least = _key(_load(logits[n, 0]))
    for k in range(np.uint64(logits.shape[1])):
        key = _key(_load(logits[n, k]))
        top, least = max(top, key), min(least, key)
    return _of_key(top), least >= MINUS_INF and top > MINUS_INF and top < PLUS_INF, least == MINUS_INF


@_part
def _exp_z(logits, n, at, top, exp_z):
    """Write exp(z - top) of a chunk of row n into `exp_z`; returns its sum."""
    total = ZERO
    for k in range(at[0], at[1]):
        p = _exp2((_load(logits[n, k]) - top) * LOG2_E)
        exp_z[k] = p
        total += p
    return np.float64(total)


@_part
def _exp_z_and_label(logits, n, at, top, beta, exp_z, label):
    """Write exp(z - top) into `exp_z` and exp((z - top) / beta) into `label`; returns their sums over the chunk."""
    exp_z_total = label_total = ZERO
    scale = np.float32(LOG2_E / beta)
    if beta == 2.0 or beta == 3.0 or beta == 4.0:  # one exponential: exp_z is a power of the label
        third, fourth = beta == 3.0, beta == 4.0
        for k in range(at[0], at[1]):
            q = _exp2((_load(logits[n, k]) - top) * scale)
            square = q * q
            p = square * (q if third else square if fourth else ONE)
            exp_z[k], label[k] = p, q
            exp_z_total += p
            label_total += q
    else:
        for k in range(at[0], at[1]):
            gap = _load(logits[n, k]) - top
            p, q = _exp2(gap * LOG2_E), _exp2(gap * scale)
            exp_z[k], label[k] = p, q
            exp_z_total += p
            label_total += q
    return np.float64(exp_z_total), np.float64(label_total)


@_part
def _exponentials_and_gaps(logits, n, at, top, beta, exp_z, label):
    """Like `_exp_z_and_label`; also returns the sums of the gaps top - z, weighted by the first and by the second.

    It reads the logits once; masked classes have weight 0.
    """
    exp_z_total = label_total = exp_z_gaps = label_gaps = ZERO
    scale = np.float32(LOG2_E / beta)
    power_of_label = beta == 2.0 or beta == 3.0 or beta == 4.0
    third, fourth = beta == 3.0, beta == 4.0
    if power_of_label:
        for k in range(at[0], at[1]):
            gap = _load(logits[n, k]) - top
            q = _exp2(gap * scale)
            square = q * q
            p = square * (q if third else square if fourth else ONE)
            finite_gap = gap if gap > np.float32(-np.inf) else ZERO
            exp_z[k], label[k] = p, q
            exp_z_total += p
            label_total += q
            exp_z_gaps -= p * finite_gap
            label_gaps -= q * finite_gap
    else:
        for k in range(at[0], at[1]):
            gap = _load(logits[n, k]) - top
            p, q = _exp2(gap * LOG2_E), _exp2(gap * scale)
            finite_gap = gap if gap > np.float32(-np.inf) else ZERO
            exp_z[k], label[k] = p, q
            exp_z_total += p
            label_total += q
            exp_z_gaps -= p * finite_gap
            label_gaps -= q * finite_gap
    return np.float64(exp_z_total), np.float64(label_total), np.float64(exp_z_gaps), np.float64(label_gaps)


@_part
def _dot(label, prior, at):
    total = ZERO
    for k in range(at[0], at[1]):
        total += label[k] * prior[k]
    return np.float64(total)


@_part
def _mass(logits, n, prior):
    """The prior mass (ones without a prior) of the unmasked classes of row n."""
    total = 0.0
    for k in range(np.uint64(logits.shape[1])):
        if _load(logits[n, k]) > np.float32(-np.inf):
            total += prior[k] if prior.size else ONE
    return total


@_part
def _gaps(logits, n, at, top, prior):
    """The sum of top - z weighted by the prior (by ones without a prior)."""
    total = ZERO
    if prior.size:
        for k in range(at[0], at[1]):
            total += (top - _load(logits[n, k])) * prior[k]
    else:
        for k in range(at[0], at[1]):
            total += top - _load(logits[n, k])
    return np.float64(total)


@_part
def _gap_sums(logits, n, at, top, exp_z, label, prior):
    """The sums of the gaps top - z of a chunk of row n, weighted by `exp_z` and by `label` times the prior.

    Masked classes have weight 0.
    """
    exp_z_gaps = label_gaps = ZERO
    for k in range(at[0], at[1]):
        gap = top - _load(logits[n, k])
        gap = gap if gap < np.float32(np.inf) else ZERO
        exp_z_gaps += exp_z[k] * gap
    if prior.size:
        for k in range(at[0], at[1]):
            gap = top - _load(logits[n, k])
            gap = gap if gap < np.float32(np.inf) else ZERO
            label_gaps += label[k] * prior[k] * gap
    return np.float64(exp_z_gaps), np.float64(label_gaps)


@_part
def _write_zeros(out, n, wanted):
    for k in range(np.uint64(out.shape[1]) if wanted else np.uint64(0)):
        out[n, k] = 0


@_part
def _fill_surprise(surprise, prior, wanted):
    """Write -r log r of each class into `surprise`."""
    for k in range(prior.size if wanted else 0):
        surprise[k] = -prior[k] * math.log(prior[k]) if prior[k] > ZERO else ZERO


@_part
def _write_statistics(statistics, n, nll, logsumexp, entropy, label_entropy, correct):
    statistics[NLL, n] = np.float32(nll)
    statistics[LOGSUMEXP, n] = np.float32(logsumexp)
    statistics[ENTROPY, n] = np.float32(entropy)
    statistics[LABEL_ENTROPY, n] = np.float32(label_entropy)
    statistics[CORRECT, n] = ONE if correct else ZERO


@_part
def _write(exp_z, p_factor, label, q_factor, prior, out, n):
    """Write exp_z * p_factor - label * q_factor * prior into row n."""
    if prior.size:
        for k in range(np.uint64(out.shape[1])):
            out[n, k] = _store(exp_z[k] * p_factor - label[k] * q_factor * prior[k], out[n, k])
    else:
        for k in range(np.uint64(out.shape[1])):
            out[n, k] = _store(exp_z[k] * p_factor - label[k] * q_factor, out[n, k])


@_part
def _sums(logits, n, top, alpha, beta, prior, surprise, exp_z, label, statistics):
    """Write exp(z - top) into `exp_z` and exp((z - top) / beta) into `label` (ones if the label is the prior).

    Returns (the sum of the first, the sum of the second weighted by the prior or by ones, the weighted sum of the gaps
    top - z if the label is the prior, else 0; and for `statistics` the sums of the first times the gaps, and of the
    second times gaps / beta - log prior, weighted by the prior).
    """
    classes = logits.shape[1]
    labelled, limit = alpha != 0.0 or statistics, beta == np.inf
    if not labelled or limit:
        label[:] = ONE
    exp_z_sum = label_sum = gaps = exp_z_gaps = label_gaps = 0.0
    for start in range(0, classes, CHUNK):
        at = (np.uint64(start), np.uint64(min(start + CHUNK, classes)))
        if statistics and not limit and not prior.size:
            exp_z_part, label_part, exp_z_gap, label_gap = _exponentials_and_gaps(
                logits, n, at, top, beta, exp_z, label
            )
            label_sum += label_part
            exp_z_gaps += exp_z_gap
            label_gaps += label_gap / beta
        elif labelled and not limit:
            exp_z_part, label_part = _exp_z_and_label(logits, n, at, top, beta, exp_z, label)
            label_sum += _dot(label, prior, at) if prior.size else label_part
        else:
            exp_z_part = _exp_z(logits, n, at, top, exp_z)
            if labelled:
                gaps += _gaps(logits, n, at, top, prior)
        exp_z_sum += exp_z_part
        if statistics and (limit or prior.size):  # the chunk and its exponentials are still in the cache
            exp_z_gap, label_gap = _gap_sums(logits, n, at, top, exp_z, label, prior)
            exp_z_gaps += exp_z_gap
            label_gaps += label_gap / beta  # 0 at beta = inf
            if prior.size:
                label_gaps += _dot(label, surprise, at)
    if not labelled or limit:
        label_sum = 1.0 if prior.size else np.float64(classes)
    return exp_z_sum, label_sum, gaps, exp_z_gaps, label_gaps


@_compiled
def sweep(
    logits, target, row_weights, strengths, given_prior, gradient, out, losses, done, scratch, z_loss, statistics
):
    """Losses times weights of all rows, and the gradient of their sum; `scratch` is one of `scratch_of`.

    `statistics` is (5, N), or (5, 0) if none are wanted. Returns the number of unsupported rows; `done` is False for
    them.
    """
    has_statistics = statistics.shape[1] > 0
    classes = logits.shape[1]
    remaining = 0
    step = classes + GAP
    exp_z = scratch[GAP:step]
    label = scratch[step + GAP : 2 * step]
    prior = scratch[2 * step + GAP : 2 * step + GAP + given_prior.size]
    prior[:] = given_prior
    surprise = scratch[3 * step + GAP : 3 * step + GAP + given_prior.size]
    _fill_surprise(surprise, prior, has_statistics)
    for n in range(np.uint64(logits.shape[0])):
        share = np.float64(row_weights[n])
        if share == 0.0:
            done[n] = True
            losses[n] = ZERO
            _write_zeros(out, n, gradient)
            continue
        own = target[n]
        if not 0 <= own < classes:  # not checked in a compiled graph; the reference raises the error
            done[n] = False
            remaining += 1
            continue
        at = n if strengths.shape[1] > 1 else np.uint64(0)
        alpha, beta = strengths[0, at], strengths[1, at]
        top, finite, masked = _top(logits, n)
        gap = np.float64(top) - np.float64(_load(logits[n, own]))
        # A prior renormalized over the unmasked classes as label is not implemented here.
        done[n] = finite and gap < np.inf and not (masked and beta == np.inf)
        if not done[n]:
            remaining += 1
            continue
        exp_z_sum, label_sum, gaps, exp_z_gaps, label_gaps = _sums(
            logits, n, top, alpha, beta, prior, surprise, exp_z, label, has_statistics
        )
        mass = 1.0 if prior.size else np.float64(classes)
        if masked:
            mass = _mass(logits, n, prior)
        pull = 0.0
        if alpha != 0.0:
            pull = gaps / mass if beta == np.inf else -beta * math.log(label_sum / mass)
        log_exp_z_sum = math.log(exp_z_sum)
        logsumexp = np.float64(top) + log_exp_z_sum
        z_term = z_loss * logsumexp * logsumexp
        losses[n] = np.float32(share * (log_exp_z_sum + (1.0 - alpha) * gap + alpha * pull + z_term))
        if has_statistics:
            entropy = log_exp_z_sum + exp_z_gaps / exp_z_sum
            label_entropy = math.log(label_sum) + label_gaps / label_sum
            _write_statistics(statistics, n, log_exp_z_sum + gap, logsumexp, entropy, label_entropy, gap == 0.0)
        if gradient:
            of_z_loss = 1.0 + 2.0 * z_loss * logsumexp
            _write(
                exp_z,
                np.float32(share * of_z_loss / exp_z_sum),
                label,
                np.float32(alpha * share / label_sum),
                prior,
                out,
                n,
            )
            own_label = label[own] * (prior[own] if prior.size else ONE) / label_sum
            slope = exp_z[own] / exp_z_sum * of_z_loss - (1.0 - alpha) - alpha * own_label
            out[n, own] = _store(np.float32(share * slope), out[n, own])
    return remaining


def scratch_of(classes: int) -> np.ndarray:
    """Memory for four rows of float32, with gaps."""
    return np.empty(4 * (classes + GAP) + GAP, np.float32)


@lru_cache(maxsize=64)
def pair(alpha: float, beta: float) -> np.ndarray:
    """The pair (alpha, beta) as a (2, 1) array, which is not to be written."""
    return np.array(((alpha,), (beta,)), np.float64)


@_compiled
def largest(z, values, classes):
    """Write the largest entries of each row of finite float32 logits into `values`, in descending order."""
    count = values.shape[1]
    for n in range(z.shape[0]):
        for j in range(count):
            values[n, j] = -np.inf
            classes[n, j] = 0
        least = np.float32(-np.inf)
        for start in range(np.uint64(0), np.uint64(z.shape[1]), np.uint64(64)):
            end = min(start + np.uint64(64), np.uint64(z.shape[1]))
            top = _key(z[n, start])
            for k in range(start, end):  # integer keys: see `_top`
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
