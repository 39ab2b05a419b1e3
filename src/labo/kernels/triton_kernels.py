"""The Triton kernels: one sweep over a row for its sums, a second that writes the gradient.

A row is summed online. Six numbers are kept: the largest logit and Z = sum exp(z - top), and over the prior's support,
with c its largest logit and x = (z - c) / beta,

    labels = sum r exp(x)        the normaliser of q*
    mass   = sum r               what renormalises the prior over the classes that are not masked
    pull   = sum r beta expm1(x) the inner problem's mean, free of cancellation; sum r (z - c) at beta = inf

One logit is such a record of itself, (z, 1, z, r, r, 0), so that one function, `_seen_from`, moves a logit, the sums so
far, or the sums of a part of the row to another maximum. Every term of the loss has one sign, and nothing cancels:

    V = log Z + (top - c) - beta log(labels / mass),   beta log(labels / mass) = beta log1p(pull / (beta mass))

Few rows of many classes are cut into parts, one program each: the sums of the parts, their combination, the gradient.
Arguments are as `labo.kernels.triton.solve` names them; `triton.py` prepares and launches.
"""

# Where Triton is missing (this module is then never imported) pyright takes the file triton.py beside this one for it;
# where it is there, its types do not describe what one jit function passes to another.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportIndexIssue=false
# pyright: reportCallIssue=false, reportArgumentType=false

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
# Sums weighed by a prior are kept 2^100 too large: a class of prior 1e-38 can be the best by far, and those that
# it beats by a factor near 1 must not be lost to underflow.
LIFT = tl.constexpr(2.0**100)
# Below this 1 / beta overflows; q* is the argmax long before.
SMALLEST_BETA = tl.constexpr(1e-37)


@triton.jit
def _exp(x):
    return tl.exp2(x * LOG2E)


@triton.jit
def _times_exp(factor, x):
    """Factor * exp(x), where exp(x) alone may underflow."""
    power = x * LOG2E
    low = power < -64.0
    return tl.where(low, factor * 2.0**-64, factor) * tl.exp2(tl.where(low, power + 64.0, power))


@triton.jit
def _stretched_expm1(d, inverse, beta):
    """Beta * expm1(d / beta) for d <= 0; d at beta = inf (where `inverse` and `beta` are 0)."""
    x = d * inverse
    # Half of x, by Taylor's series of (e^y - 1) / y to 1e-8; e^2y - 1 = (e^y - 1) (e^y + 1) makes it whole.
    y = 0.5 * tl.maximum(x, -1.0)
    series = 1 / 5040 + y * (1 / 40320)
    series = 1 / 120 + y * (1 / 720 + y * series)
    series = 1 / 6 + y * (1 / 24 + y * series)
    series = 1 + y * (0.5 + y * series)
    return tl.where(x < -1.0, (_exp(x) - 1) * beta, d * series * (1 + 0.5 * y * series))


@triton.jit
def _stretched_log1p(mean, inverse):
    """Beta * log1p(mean / beta) where mean / beta > -1/2; `mean` at beta = inf."""
    s = tl.maximum(mean * inverse, -0.5)
    # log1p(s) = 2 artanh(s / (2 + s)): a series in w <= 1/9, to 1e-8, whatever the accuracy of the device's log.
    w = s / (2 + s)
    w = w * w
    series = 1 / 9 + w * (1 / 11 + w * (1 / 13 + w * (1 / 15)))
    series = 1 + w * (1 / 3 + w * (1 / 5 + w * (1 / 7 + w * series)))
    return mean * (2 / (2 + s)) * series


@triton.jit
def _gap(value, top):
    """Value - top, but 0 where `value` is -inf: nothing was summed there."""
    top = tl.where(top == float("-inf"), 0.0, top)
    return tl.where(value == float("-inf"), 0.0, value - top)


@triton.jit
def _seen_from(new_top, new_best, top, z, best, labels, mass, pull, inverse, beta, prior, limit: tl.constexpr):
    """The sums (z, labels, mass, pull), measured from (top, best), measured from maxima that are no lower."""
    z = z * _exp(_gap(top, new_top))
    d = _gap(best, new_best)
    if limit:
        pull = pull + mass * d
    else:
        pull = pull * _exp(d * inverse) + mass * _stretched_expm1(d, inverse, beta)
        labels = labels * _exp(d * inverse) if prior is None else _times_exp(labels, d * inverse)
    return z, labels, mass, pull


@triton.jit
def _as_sums(logits, prior, columns, classes):
    """Each logit of a tile as the sums of a row of one class: best, z, labels, mass."""
    z = tl.where(logits == float("-inf"), 0.0, 1.0)
    if prior is None:
        best, labels, mass = logits, z, z
    else:
        r = tl.load(prior + columns, mask=columns < classes, other=0.0)[None, :]
        best = tl.where(r > 0, logits, float("-inf"))
        mass = tl.where(best == float("-inf"), 0.0, r)
        labels = mass * LIFT
    return best, z, labels, mass


@triton.jit
def _tile_of(logits, rows, live, columns, classes, row_stride, class_stride):
    at = rows[:, None] * row_stride + columns[None, :].to(tl.int64) * class_stride
    inside = live[:, None] & (columns < classes)[None, :]
    return tl.load(logits + at, mask=inside, other=float("-inf")).to(tl.float32)


@triton.jit
def _options(rows, inside, shares, alphas, betas, alpha_stride, beta_stride):
    """What a row's loss counts, alpha, 1 / beta, and beta with 0 for inf."""
    share = tl.load(shares + rows, mask=inside, other=0.0)
    alpha = tl.load(alphas + rows * alpha_stride, mask=inside, other=0.0)
    beta = tl.maximum(tl.load(betas + rows * beta_stride, mask=inside, other=1.0), SMALLEST_BETA)
    return share, alpha, 1 / beta, tl.where(beta == float("inf"), 0.0, beta)


@triton.jit
def _sum_rows(
    logits, prior, rows, live, inverse, beta, start, stop, classes, row_stride, class_stride, limit: tl.constexpr,
    together: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """The six sums of each row over the classes from start to stop; each (together,)."""
    inverse, beta = inverse[:, None], beta[:, None]
    top = tl.full((together, 1), float("-inf"), tl.float32)
    best = top
    # Summed lane by lane, and over the lanes once at the end.
    z = tl.zeros((together, block), tl.float32)
    labels, mass, pull = z, z, z
    for first in range(start, stop, block):
        columns = first + tl.arange(0, block)
        tile = _tile_of(logits, rows, live, columns, stop, row_stride, class_stride)
        here, ones, r_lifted, r = _as_sums(tile, prior, columns, classes)
        new_top = tl.maximum(top, tl.max(tile, 1, keep_dims=True))
        new_best = new_top if prior is None else tl.maximum(best, tl.max(here, 1, keep_dims=True))
        z, labels, mass, pull = _seen_from(
            new_top, new_best, top, z, best, labels, mass, pull, inverse, beta, prior, limit
        )
        more_z, more_labels, more_mass, more_pull = _seen_from(
            new_top, new_best, tile, ones, here, r_lifted, r, 0.0, inverse, beta, prior, limit
        )
        z, labels, mass, pull = z + more_z, labels + more_labels, mass + more_mass, pull + more_pull
        top, best = new_top, new_best
    top, best = tl.max(top, 1), tl.max(best, 1)
    return top, tl.sum(z, 1), best, tl.sum(labels, 1), tl.sum(mass, 1), tl.sum(pull, 1)


@triton.jit
def _chosen(logits, rows, target, live, classes, row_stride, class_stride):
    """The logits of the targets; NaN for a target that is no class, which is not looked for in a compiled graph."""
    known = (target >= 0) & (target < classes)
    found = tl.load(logits + rows * row_stride + target * class_stride, mask=live & known, other=0.0).to(tl.float32)
    return tl.where(live & (known == 0), float("nan"), found)


@triton.jit
def _losses(top, z, best, labels, mass, pull, chosen, share, alpha, inverse, beta, prior, limit: tl.constexpr):
    """Each row's share of the loss from its sums; `chosen` are the logits of the targets."""
    empty = z == 0.0
    log_z = tl.log(tl.where(empty, 1.0, z))
    top = tl.where(empty, 0.0, top)
    data = log_z + (top - chosen)
    feasible = mass != 0.0
    mass = tl.where(feasible, mass, 1.0)
    gained = pull / mass
    if not limit:
        lift = 1.0 if prior is None else LIFT
        ratio = tl.where(feasible, labels, 1.0) / (mass * lift)
        far = gained * inverse <= -0.5
        gained = tl.where(far, beta * tl.log(ratio), _stretched_log1p(gained, inverse))
    value = tl.where(feasible, log_z + (top - best) - gained, float("inf"))
    # A term of weight 0 is left out even where it is infinite.
    loss = (1 - alpha) * tl.where(alpha < 1.0, data, 0.0) + alpha * tl.where(alpha > 0.0, value, 0.0)
    return share * tl.where(share == 0.0, 0.0, loss)


@triton.jit
def _write_slopes(
    logits, prior, slopes, rows, inside, target, share, alpha, inverse, top, z, best, labels, mass, start, stop,
    classes, row_stride, class_stride, limit: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Write share * (p - (1 - alpha) * onehot(target) - alpha * q*) for the classes from start to stop."""
    live = inside & (share != 0.0)
    # Where all classes are masked there is nothing to learn, not even at the target.
    share = tl.where(z == 0.0, 0.0, share)[:, None]
    z = (1 / tl.where(z == 0.0, 1.0, z))[:, None]
    norm = mass if limit else labels
    norm = (alpha / tl.where(norm == 0.0, 1.0, norm))[:, None]
    for first in range(start, stop, block):
        columns = first + tl.arange(0, block)
        tile = _tile_of(logits, rows, live, columns, stop, row_stride, class_stride)
        here, p, q, r = _as_sums(tile, prior, columns, classes)
        p, q, r, _ = _seen_from(
            top[:, None], best[:, None], tile, p, here, q, r, 0.0, inverse[:, None], 0.0, prior, limit
        )
        slope = p * z - (r if limit else q) * norm
        slope = tl.where(columns[None, :] == target[:, None], slope - (1 - alpha)[:, None], slope)
        slope = share * tl.where(share == 0.0, 0.0, slope)
        at = rows[:, None] * classes + columns[None, :]
        written = inside[:, None] & (columns < stop)[None, :]
        tl.store(slopes + at, slope.to(slopes.dtype.element_ty), mask=written)


@triton.jit(do_not_specialize=["count"])
def whole_rows(
    logits, targets, shares, alphas, betas, prior, losses, slopes, row_stride, class_stride, alpha_stride,
    beta_stride, count, classes, limit: tl.constexpr, together: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Losses and gradient of `together` rows a program."""
    rows = tl.program_id(0).to(tl.int64) * together + tl.arange(0, together)
    inside = rows < count
    share, alpha, inverse, beta = _options(rows, inside, shares, alphas, betas, alpha_stride, beta_stride)
    live = inside & (share != 0.0)
    target = tl.load(targets + rows, mask=inside, other=0)
    top, z, best, labels, mass, pull = _sum_rows(
        logits, prior, rows, live, inverse, beta, 0, classes, classes, row_stride, class_stride, limit, together, block
    )
    chosen = _chosen(logits, rows, target, live, classes, row_stride, class_stride)
    loss = _losses(top, z, best, labels, mass, pull, chosen, share, alpha, inverse, beta, prior, limit)
    tl.store(losses + rows, loss, mask=inside)
    if slopes is not None:
        _write_slopes(
            logits, prior, slopes, rows, inside, target, share, alpha, inverse, top, z, best, labels, mass, 0,
            classes, classes, row_stride, class_stride, limit, block,
        )  # fmt: skip


@triton.jit(do_not_specialize=["count"])
def sums_of_parts(
    logits, targets, shares, alphas, betas, prior, sums, row_stride, class_stride, alpha_stride, beta_stride, count,
    classes, width, limit: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """The sums of one part of one row a program, as (6, rows, parts)."""
    rows = tl.program_id(0).to(tl.int64) + tl.arange(0, 1)
    part = tl.program_id(1)
    parts = tl.num_programs(1)
    share, _, inverse, beta = _options(rows, rows < count, shares, alphas, betas, alpha_stride, beta_stride)
    start = part * width
    top, z, best, labels, mass, pull = _sum_rows(
        logits, prior, rows, share != 0.0, inverse, beta, start, tl.minimum(start + width, classes), classes,
        row_stride, class_stride, limit, 1, block,
    )  # fmt: skip
    at = sums + rows * parts + part
    step = tl.num_programs(0).to(tl.int64) * parts
    _store_sums(at, step, top, z, best, labels, mass, pull)


@triton.jit
def _store_sums(at, step, top, z, best, labels, mass, pull):
    tl.store(at, top)
    tl.store(at + step, z)
    tl.store(at + 2 * step, best)
    tl.store(at + 3 * step, labels)
    tl.store(at + 4 * step, mass)
    tl.store(at + 5 * step, pull)


@triton.jit(do_not_specialize=["count"])
def combine(
    logits, targets, shares, alphas, betas, prior, sums, totals, losses, row_stride, class_stride, alpha_stride,
    beta_stride, count, classes, parts, limit: tl.constexpr, lanes: tl.constexpr,
):  # fmt: skip
    """The sums of a row from those of its parts, and its loss; `lanes` is no less than `parts`."""
    rows = tl.program_id(0).to(tl.int64) + tl.arange(0, 1)
    share, alpha, inverse, beta = _options(rows, rows < count, shares, alphas, betas, alpha_stride, beta_stride)
    lane = tl.arange(0, lanes)[None, :]
    at = sums + rows[:, None] * parts + lane
    step = tl.num_programs(0).to(tl.int64) * parts
    here = lane < parts
    tops = tl.load(at, mask=here, other=float("-inf"))
    z = tl.load(at + step, mask=here, other=0.0)
    bests = tl.load(at + 2 * step, mask=here, other=float("-inf"))
    labels = tl.load(at + 3 * step, mask=here, other=0.0)
    mass = tl.load(at + 4 * step, mask=here, other=0.0)
    pull = tl.load(at + 5 * step, mask=here, other=0.0)
    top, best = tl.max(tops, 1), tl.max(bests, 1)
    z, labels, mass, pull = _seen_from(
        top[:, None], best[:, None], tops, z, bests, labels, mass, pull, inverse[:, None], beta[:, None], prior, limit
    )
    z, labels, mass, pull = tl.sum(z, 1), tl.sum(labels, 1), tl.sum(mass, 1), tl.sum(pull, 1)
    _store_sums(totals + rows, tl.num_programs(0).to(tl.int64), top, z, best, labels, mass, pull)
    target = tl.load(targets + rows)
    live = share != 0.0
    chosen = _chosen(logits, rows, target, live, classes, row_stride, class_stride)
    loss = _losses(top, z, best, labels, mass, pull, chosen, share, alpha, inverse, beta, prior, limit)
    tl.store(losses + rows, loss)


@triton.jit(do_not_specialize=["count"])
def slopes_of_parts(
    logits, targets, shares, alphas, betas, prior, totals, slopes, row_stride, class_stride, alpha_stride,
    beta_stride, count, classes, width, limit: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """The gradient of one part of one row a program."""
    rows = tl.program_id(0).to(tl.int64) + tl.arange(0, 1)
    inside = rows < count
    share, alpha, inverse, _ = _options(rows, inside, shares, alphas, betas, alpha_stride, beta_stride)
    step = tl.num_programs(0).to(tl.int64)
    top, z = tl.load(totals + rows), tl.load(totals + step + rows)
    best, labels = tl.load(totals + 2 * step + rows), tl.load(totals + 3 * step + rows)
    mass = tl.load(totals + 4 * step + rows)
    target = tl.load(targets + rows)
    start = tl.program_id(1) * width
    _write_slopes(
        logits, prior, slopes, rows, inside, target, share, alpha, inverse, top, z, best, labels, mass, start,
        tl.minimum(start + width, classes), classes, row_stride, class_stride, limit, block,
    )  # fmt: skip
