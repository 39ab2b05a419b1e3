"""The algebra of the Triton kernels: the sums of a row, its loss, and its gradient, tile by tile.

A tile is (A, N, V) classes: N lanes of V consecutive classes each, A times. Triton keeps A and V inside a thread, so
that each lane sums its own classes, relative to its own maximum, without a shuffle or a barrier; lanes are combined
once per row. A tile (1, R, V) is R whole rows, and its lanes are its rows.

With top the largest logit, best the largest in the support of the prior and x = (z - best) / beta, a lane keeps

    total  = sum exp(z - top)     the normaliser of p
    labels = sum r exp(x)         the normaliser of q*
    mass   = sum r                renormalises the prior over the unmasked classes
    pull   = sum r beta expm1(x)  the inner problem's mean, free of cancellation; sum r (z - best) at beta = inf

Every term of the loss has one sign, and nothing cancels:

    V = log total + (top - best) - beta log(labels / mass),   beta log(labels / mass) = beta log1p(pull / (beta mass))

Which sums are kept, and how exponentials are computed, depends on the compile-time `form` of beta: 2, 3 and 4 take p as
a power of q; PLAIN is any beta up to 16; SERIES is free of cancellation for every beta, also one per row; LIMIT is inf.
With z_loss * lse² in the loss, p has the factor 1 + 2 z_loss lse in the gradient. Soft-capped logits are capped where
they are loaded, and the gradient is multiplied by the derivative where it is stored; -inf stays.

Options of lanes, (N,) or (1,): alpha, beta (0 for inf), inverse = 1 / beta and scale = log2(e) / beta.
"""

# Without Triton (this module is then never imported) pyright resolves its name to the sibling file triton.py; with it,
# its types do not describe calls between jit functions.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportIndexIssue=false
# pyright: reportCallIssue=false, reportArgumentType=false, reportAssignmentType=false

from __future__ import annotations

import triton
import triton.language as tl

PLAIN = tl.constexpr(1)
SERIES = tl.constexpr(0)
LIMIT = tl.constexpr(-1)
LOG2E = tl.constexpr(1.4426950408889634)
# Initial maxima: finite, so that a masked logit needs no select before its exponential.
LOWEST = tl.constexpr(-3.4028234663852886e38)
# Sums weighted by a prior are scaled by 2^100: a class of prior 1e-38 can be the best by far, and classes close to it
# must not underflow.
LIFT = tl.constexpr(2.0**100)
# Below this 1 / beta overflows; q* is the argmax long before.
SMALLEST_BETA = tl.constexpr(1e-37)


@triton.jit
def over_lane(x):
    """Broadcast a value per lane (N,) over a tile (A, N, V)."""
    return x[None, :, None]


@triton.jit
def _sum(tile):
    return tl.sum(tl.sum(tile, 2), 0)


@triton.jit
def _max(tile):
    return tl.max(tl.max(tile, 2), 0)


@triton.jit
def _power(e, form: tl.constexpr):
    """exp(d) from e = exp(d / form)."""
    if form == 2:
        return e * e
    elif form == 3:
        return e * e * e
    else:
        square = e * e
        return square * square


@triton.jit
def _times_exp2(factor, power):
    """Factor * 2^power, where 2^power alone may underflow."""
    low = power < -64.0
    return tl.where(low, factor * 2.0**-64, factor) * tl.exp2(tl.where(low, power + 64.0, power))


@triton.jit
def _scaled_expm1(d, q, inverse, beta):
    """Beta * expm1(d / beta) for d <= 0 and q = exp(d / beta); d at beta = inf (where `inverse` and `beta` are 0)."""
    x = d * inverse
    # (e^y - 1) / y on [-1, 0] by a minimax polynomial, to 2e-9; below, nothing cancels.
    y = tl.maximum(x, -1.0)
    series = 0.00827550484 + y * (0.00130077496 + y * 0.00012907631)
    series = 0.166663403 + y * (0.0416468493 + y * series)
    series = 1.0 + y * (0.499999797 + y * series)
    return tl.where(x < -1.0, (q - 1) * beta, d * series)


@triton.jit
def _scaled_log1p(mean, inverse):
    """Beta * log1p(mean / beta) where mean / beta > -1/2; `mean` at beta = inf."""
    s = tl.maximum(mean * inverse, -0.5)
    # log1p(s) = 2 artanh(s / (2 + s)): a series in w <= 1/9, to 1e-8, whatever the accuracy of the device's log.
    w = s / (2 + s)
    w = w * w
    series = 1 / 9 + w * (1 / 11 + w * (1 / 13 + w * (1 / 15)))
    series = 1 + w * (1 / 3 + w * (1 / 5 + w * (1 / 7 + w * series)))
    return mean * (2 / (2 + s)) * series


@triton.jit
def capped(x, softcap):
    """The soft-capped logits softcap * tanh(x / softcap); -inf stays. Without a softcap, x."""
    if softcap is None:
        return x
    else:
        by = -2.0 * LOG2E / softcap
        e = tl.exp2(tl.abs(x) * by)
        size = softcap * ((1 - e) / (1 + e))
        return tl.where(x == float("-inf"), x, tl.where(x < 0, -size, size))


@triton.jit
def through_cap(grad, x, softcap):
    """A gradient in soft-capped logits x as one in the logits: times 1 - (x / softcap)²."""
    if softcap is None:
        return grad
    else:
        inverse = 1 / softcap
        ratio = x * inverse
        return grad * tl.where(x == float("-inf"), 0.0, 1 - ratio * ratio)


@triton.jit
def _moved(
    total, labels, mass, pull, down, best_down, scale, inverse, beta, has_prior: tl.constexpr, form: tl.constexpr
):
    """Rescale sums to higher maxima: higher by -down for all classes, by -best_down on the support of the prior."""
    if form >= 2:
        factor = tl.exp2(down * (LOG2E / form))
        total, labels = total * _power(factor, form), labels * factor
    else:
        total = total * tl.exp2(down * LOG2E)
        if form == LIMIT:
            pull = pull + tl.where(mass == 0.0, 0.0, mass * best_down)
        else:
            # Without a summed class the old maximum is meaningless, and -inf / inf is NaN.
            best_down = tl.where(mass == 0.0, 0.0, best_down)
            if form == SERIES:
                factor = tl.exp2(best_down * scale)
                pull = pull * factor + mass * _scaled_expm1(best_down, factor, inverse, beta)
            power = best_down * scale
            labels = _times_exp2(labels, power) if has_prior else labels * tl.exp2(power)
    return total, labels, mass, pull


@triton.jit
def add_tile(
    x, r, top, total, best, labels, mass, pull, scale, inverse, beta, has_prior: tl.constexpr, form: tl.constexpr
):
    """Add a tile of logits (A, N, V) with prior r to the sums of lanes (N,)."""
    new_top = tl.maximum(top, _max(x))
    if has_prior:
        here = tl.where(r > 0, x, float("-inf"))
        new_best = tl.maximum(best, _max(here))
        r = tl.where(here == float("-inf"), 0.0, r)
    else:
        here, new_best = x, new_top
        r = tl.where(x == float("-inf"), 0.0, 1.0)
    total, labels, mass, pull = _moved(
        total, labels, mass, pull, top - new_top, best - new_best, scale, inverse, beta, has_prior, form
    )
    scale, inverse, beta = over_lane(scale), over_lane(inverse), over_lane(beta)
    d = x - over_lane(new_top)
    if form >= 2:
        e = tl.exp2(d * (LOG2E / form))
        labels += _sum(e)
        total += _sum(_power(e, form))
    else:
        total += _sum(tl.exp2(d * LOG2E))
        d = here - over_lane(new_best)
        if form == LIMIT:
            pull += _sum(tl.where(r == 0.0, 0.0, r * d if has_prior else d))
        elif form == PLAIN:
            labels += _sum(_times_exp2(r * LIFT, d * scale) if has_prior else tl.exp2(d * scale))
        else:
            d = tl.where(r == 0.0, 0.0, d)  # -inf / inf is NaN
            q = tl.exp2(d * scale)
            labels += _sum(_times_exp2(r * LIFT, d * scale) if has_prior else r * q)
            pull += _sum(r * _scaled_expm1(d, q, inverse, beta))
    return new_top, total, new_best, labels, mass + _sum(r), pull


@triton.jit
def meet(top, total, best, labels, mass, pull, scale, inverse, beta, has_prior: tl.constexpr, form: tl.constexpr):
    """Combine the sums of the lanes of a row; (1,) each."""
    row_top, row_best = tl.max(top, 0, keep_dims=True), tl.max(best, 0, keep_dims=True)
    total, labels, mass, pull = _moved(
        total, labels, mass, pull, top - row_top, best - row_best, scale, inverse, beta, has_prior, form
    )
    total, labels = tl.sum(total, 0, keep_dims=True), tl.sum(labels, 0, keep_dims=True)
    mass, pull = tl.sum(mass, 0, keep_dims=True), tl.sum(pull, 0, keep_dims=True)
    return row_top, total, row_best, labels, mass, pull


@triton.jit
def losses_of(
    chosen, weight, alpha, beta, inverse, top, total, best, labels, mass, pull, z_loss, has_prior: tl.constexpr,
    form: tl.constexpr,
):  # fmt: skip
    """Each row's loss times its weight; `chosen` are the logits of the targets."""
    empty = total == 0.0
    log_total = tl.log(tl.where(empty, 1.0, total))
    top = tl.where(empty, 0.0, top)
    data = log_total + (top - chosen)
    feasible = mass != 0.0
    mass = tl.where(feasible, mass, 1.0)
    gained = pull / mass
    if form != LIMIT:
        plain = beta * tl.log(tl.where(feasible, labels, 1.0) / (mass * (LIFT if has_prior else 1.0)))
        near = _scaled_log1p(gained, inverse)
        gained = tl.where(gained * inverse <= -0.5, plain, near) if form == SERIES else plain
    gap = top - best if has_prior else 0.0
    value = tl.where(feasible, log_total + gap - gained, float("inf"))
    # A term of weight 0 is 0 even if it is infinite.
    loss = (1 - alpha) * tl.where(alpha < 1.0, data, 0.0) + alpha * tl.where(alpha > 0.0, value, 0.0)
    if z_loss is not None:
        loss += z_loss * (log_total + top) * (log_total + top)  # without a class the loss is infinite already
    return weight * tl.where(weight == 0.0, 0.0, loss)


@triton.jit
def factors(alpha, top, total, labels, mass, z_loss, form: tl.constexpr):
    """The factors that turn exponentials into p (with the z-loss's factor) and into alpha q*."""
    norm = mass if form == LIMIT else labels
    total = tl.where(total == 0.0, 1.0, total)
    p_factor = 1 / total
    if z_loss is not None:
        p_factor *= 1 + 2 * z_loss * (tl.log(total) + top)
    return p_factor, alpha / tl.where(norm == 0.0, 1.0, norm)


@triton.jit
def entropy_sums(x, r, top, best, scale, has_prior: tl.constexpr, form: tl.constexpr):
    """Of a tile (A, N, V) the sums per lane of exp(d) d, and of r exp(u) (u + log r), where u = (x - best) / beta.

    The second has the factor of `labels`: LIFT with a prior, 1 at beta = inf.
    """
    masked = x == float("-inf")
    d = tl.where(masked, 0.0, x - top)
    spread = _sum(tl.where(masked, 0.0, tl.exp2(d * LOG2E) * d))
    if has_prior:
        inside = (masked == 0) & (r > 0)
        u = tl.where(inside, x - best, 0.0) * scale
        label = r if form == LIMIT else _times_exp2(r * LIFT, u)
        log_label = u + tl.log2(tl.where(inside, r, 1.0))
        label_spread = _sum(tl.where(inside, label * log_label, 0.0)) * (1 / LOG2E)
    elif form == LIMIT:
        label_spread = tl.zeros_like(spread)
    else:
        u = d * scale
        label_spread = _sum(tl.where(masked, 0.0, tl.exp2(u) * u)) * (1 / LOG2E)
    return spread, label_spread


@triton.jit
def entropies(
    spread, label_spread, total, labels, mass, has_prior: tl.constexpr, form: tl.constexpr, whole: tl.constexpr
):  # fmt: skip
    """The entropies of p and q* from the sums of a row, (N,); of a part of a row (not `whole`), its terms alone."""
    norm = mass if form == LIMIT else labels
    lift = 1.0
    if has_prior and form != LIMIT:
        lift = LIFT
    entropy, label_entropy = -spread / total, -label_spread / norm
    if whole:
        entropy, label_entropy = entropy + tl.log(total), label_entropy + tl.log(norm / lift)
    nan = float("nan")
    return tl.where(total == 0.0, nan, entropy), tl.where((mass == 0.0) | (norm == 0.0), nan, label_entropy)


@triton.jit
def difference(x, r, top, best, p_factor, q_factor, scale, has_prior: tl.constexpr, form: tl.constexpr):
    """The gradient of logits x without the term of the target: p - alpha q*."""
    d = x - top
    if form >= 2:
        e = tl.exp2(d * (LOG2E / form))
        less = e if form == 2 else (e * e if form == 3 else e * e * e)
        return e * (less * p_factor - q_factor)
    else:
        p = tl.exp2(d * LOG2E) * p_factor
        masked = x == float("-inf")
        if has_prior:
            r = tl.where(masked, 0.0, r)
            d = tl.where(r > 0, x - best, 0.0)
            q = r if form == LIMIT else _times_exp2(r * LIFT, d * scale)
        elif form == LIMIT:
            q = tl.where(masked, 0.0, 1.0)
        elif form == PLAIN:
            q = tl.exp2(d * scale)
        else:
            q = tl.where(masked, 0.0, tl.exp2(tl.where(masked, 0.0, d) * scale))
        return p - q * q_factor
