"""The Triton kernels, launched by triton.py; their algebra is in triton_algebra.py.

- `short_rows` holds whole rows in registers: one read of the logits, several rows per program.
- `long_rows` sweeps a row twice, by lanes: once for its sums, then backwards for its gradient.
- `sum_parts` and `write_parts` do the same for few rows: each program handles a part of a row.
- `scale_gradient` multiplies a gradient by a scalar on the device, and does nothing if it is 1.

Arguments have the names of `labo.kernels.triton.solve`; row strides and classes are in units of `unit` classes, so that
the compiler knows which addresses are multiples of 16 bytes.
"""

# Without Triton (this module is then never imported) pyright resolves its name to the sibling file triton.py; with it,
# its types do not describe calls between jit functions.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportIndexIssue=false
# pyright: reportCallIssue=false, reportArgumentType=false, reportAssignmentType=false

from __future__ import annotations

import triton
import triton.language as tl

from labo.kernels.triton_algebra import (
    LOG2E,
    LOWEST,
    SMALLEST_BETA,
    add_tile,
    capped,
    difference,
    entropies,
    entropy_sums,
    factors,
    losses_of,
    meet,
    over_lane,
    through_cap,
)


@triton.jit
def _offsets(columns, stride, contiguous: tl.constexpr):
    if contiguous:
        return columns
    else:
        return columns.to(tl.int64) * stride


@triton.jit
def _row_values(value, rows, inside, stride, of_rows: tl.constexpr):
    """The option of each row: loaded, or one number for all rows."""
    if of_rows:
        return tl.load(value + rows * stride, mask=inside, other=1.0).to(tl.float32)
    else:
        return tl.zeros_like(rows).to(tl.float32) + value


@triton.jit
def _scales(beta):
    """log2(e) / beta, 1 / beta, and beta with 0 for inf."""
    beta = tl.maximum(beta, SMALLEST_BETA)
    inverse = 1 / beta
    return inverse * LOG2E, inverse, tl.where(beta == float("inf"), 0.0, beta)


@triton.jit
def _chosen(logits, rows, target, live, classes, row_stride, class_stride, softcap):
    """The logits of the targets, and which are valid; NaN for invalid ones (compiled graphs do not check them)."""
    known = live & (target >= 0) & (target < classes)
    found = tl.load(logits + rows * row_stride + target * class_stride, mask=known, other=0.0).to(tl.float32)
    return tl.where(live & (known == 0), float("nan"), capped(found, softcap)), known


@triton.jit
def _columns(groups: tl.constexpr, lanes: tl.constexpr, unit: tl.constexpr):
    group, lane = tl.arange(0, groups)[:, None, None], tl.arange(0, lanes)[None, :, None]
    columns = group * (lanes * unit) + lane * unit + tl.arange(0, unit)[None, None, :]
    if unit > 2:
        # Lanes and groups are both strided. The hint orders lanes first, as else some versions give groups to threads;
        # vectors are along the last axis, whose hint is true.
        columns = tl.max_contiguous(columns, [1, 2, unit])
    return columns


@triton.jit
def _prior_at(prior, at, inside):
    """The probabilities of the prior; without a prior an unused 0."""
    if prior is None:
        return 0.0
    elif inside is None:
        return tl.load(prior + at)
    else:
        return tl.load(prior + at, mask=inside, other=0.0)


@triton.jit
def _logits_at(row, at, inside, class_stride, softcap, contiguous: tl.constexpr, eviction: tl.constexpr):
    at = _offsets(at, class_stride, contiguous)
    if inside is None:
        return capped(tl.load(row + at, eviction_policy=eviction).to(tl.float32), softcap)
    else:
        x = tl.load(row + at, mask=inside, other=float("-inf"), eviction_policy=eviction).to(tl.float32)
        return capped(x, softcap)


@triton.jit
def _sum_range(
    row, prior, start, stop, class_stride, scale, inverse, beta, softcap, contiguous: tl.constexpr,
    form: tl.constexpr, groups: tl.constexpr, lanes: tl.constexpr, unit: tl.constexpr,
):  # fmt: skip
    """The six sums, (1,) each, of one row over the classes from start to stop."""
    tile: tl.constexpr = groups * lanes * unit
    has_prior: tl.constexpr = prior is not None
    columns = _columns(groups, lanes, unit)
    top = tl.full((lanes,), LOWEST, tl.float32)
    total = tl.zeros((lanes,), tl.float32)
    best, labels, mass, pull = top, total, total, total
    whole = (stop - start) // tile
    for index in range(whole):
        at = start + index * tile + columns
        x = _logits_at(row, at, None, class_stride, softcap, contiguous, "evict_last")
        r = _prior_at(prior, at, None)
        top, total, best, labels, mass, pull = add_tile(
            x, r, top, total, best, labels, mass, pull, scale, inverse, beta, has_prior, form
        )
    if start + whole * tile < stop:
        at = start + whole * tile + columns
        x = _logits_at(row, at, at < stop, class_stride, softcap, contiguous, "evict_last")
        r = _prior_at(prior, at, at < stop)
        top, total, best, labels, mass, pull = add_tile(
            x, r, top, total, best, labels, mass, pull, scale, inverse, beta, has_prior, form
        )
    return meet(top, total, best, labels, mass, pull, scale, inverse, beta, has_prior, form)


@triton.jit
def _write_range(
    row, prior, grad_logits, grad_start, start, stop, class_stride, weight, top, best, p_factor, q_factor, scale,
    softcap, contiguous: tl.constexpr, form: tl.constexpr, groups: tl.constexpr, lanes: tl.constexpr,
    unit: tl.constexpr, has_statistics: tl.constexpr,
):  # fmt: skip
    """Write weight * (p - alpha q*) for the classes from start to stop, the last first: they are still in the cache.

    Returns the sums of `entropy_sums` over these classes, (1,) each, if there are statistics.
    """
    tile: tl.constexpr = groups * lanes * unit
    has_prior: tl.constexpr = prior is not None
    columns = _columns(groups, lanes, unit)
    top, best, weight = over_lane(top), over_lane(best), over_lane(weight)
    p_factor, q_factor, scale = over_lane(p_factor), over_lane(q_factor), over_lane(scale)
    spread = tl.zeros((lanes,), tl.float32)
    label_spread = spread
    grad_row = grad_logits
    if grad_logits is not None:
        grad_row = grad_logits + grad_start
    whole = (stop - start) // tile
    if start + whole * tile < stop:
        at = start + whole * tile + columns
        inside = at < stop
        x = _logits_at(row, at, inside, class_stride, softcap, contiguous, "evict_first")
        r = _prior_at(prior, at, inside)
        if has_statistics:
            spread, label_spread = entropy_sums(x, r, top, best, scale, has_prior, form)
        if grad_logits is not None:
            grad = weight * difference(x, r, top, best, p_factor, q_factor, scale, has_prior, form)
            grad = through_cap(grad, x, softcap)
            tl.store(grad_row + at, grad.to(grad_row.dtype.element_ty), mask=inside, eviction_policy="evict_first")
    for index in range(whole):
        at = start + (whole - 1 - index) * tile + columns
        x = _logits_at(row, at, None, class_stride, softcap, contiguous, "evict_first")
        r = _prior_at(prior, at, None)
        if has_statistics:
            more, more_label = entropy_sums(x, r, top, best, scale, has_prior, form)
            spread, label_spread = spread + more, label_spread + more_label
        if grad_logits is not None:
            grad = weight * difference(x, r, top, best, p_factor, q_factor, scale, has_prior, form)
            grad = through_cap(grad, x, softcap)
            tl.store(grad_row + at, grad.to(grad_row.dtype.element_ty), eviction_policy="evict_first")
    if has_statistics:
        spread, label_spread = tl.sum(spread, 0, keep_dims=True), tl.sum(label_spread, 0, keep_dims=True)
    return spread, label_spread


@triton.jit
def _write_target(
    grad_logits, rows, grad_stride, target, known, chosen, prior, weight, alpha, top, best, p_factor, q_factor, scale,
    softcap, form: tl.constexpr,
):  # fmt: skip
    """Overwrite the entries of the targets, including -(1 - alpha), rounded once."""
    has_prior: tl.constexpr = prior is not None
    r = _prior_at(prior, target, known)
    grad = difference(chosen, r, top, best, p_factor, q_factor, scale, has_prior, form)
    grad = through_cap(weight * (grad - (1 - alpha)), chosen, softcap)
    tl.debug_barrier()  # other threads have written these entries
    tl.store(grad_logits + rows * grad_stride + target, grad.to(grad_logits.dtype.element_ty), mask=known)


@triton.jit
def _write_statistics(statistics, stride, rows, mask, chosen, top, total, entropy, label_entropy):
    """Write the statistics of rows in the order of statistics.py."""
    empty = total == 0.0
    logsumexp = tl.where(empty, float("-inf"), top + tl.log(tl.where(empty, 1.0, total)))
    nll = tl.where(empty, float("inf"), (top - chosen) + tl.log(tl.where(empty, 1.0, total)))
    tl.store(statistics + rows, nll, mask=mask)
    tl.store(statistics + stride + rows, logsumexp, mask=mask)
    tl.store(statistics + 2 * stride + rows, entropy, mask=mask)
    tl.store(statistics + 3 * stride + rows, label_entropy, mask=mask)
    tl.store(statistics + 4 * stride + rows, ((chosen == top) & (empty == 0)).to(tl.float32), mask=mask)


@triton.jit
def _write_zeros(grad_row, start, stop, block: tl.constexpr):
    for first in range(start, stop, block):
        at = first + tl.arange(0, block)
        tl.store(grad_row + at, tl.zeros((block,), grad_row.dtype.element_ty), mask=at < stop)


@triton.jit(do_not_specialize=["count"])
def short_rows(
    logits, targets, row_weights, alpha, beta, prior, z_loss, softcap, losses, grad_logits, statistics, row_units,
    class_stride, grad_units, alpha_stride, beta_stride, statistics_stride, count, class_units,
    contiguous: tl.constexpr, alpha_of_rows: tl.constexpr, beta_of_rows: tl.constexpr, form: tl.constexpr,
    unit: tl.constexpr, together: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Losses and gradient of `together` rows per program, each held in registers."""
    row_stride, grad_stride, classes = row_units * unit, grad_units * unit, class_units * unit
    has_prior: tl.constexpr = prior is not None
    rows = tl.program_id(0).to(tl.int64) * together + tl.arange(0, together)
    inside = rows < count
    weight = tl.load(row_weights + rows, mask=inside, other=0.0)
    row_alpha = _row_values(alpha, rows, inside, alpha_stride, alpha_of_rows)
    scale, inverse, row_beta = _scales(_row_values(beta, rows, inside, beta_stride, beta_of_rows))
    live = inside & (weight != 0.0)
    target = tl.load(targets + rows, mask=inside, other=0)
    chosen, known = _chosen(logits, rows, target, live, classes, row_stride, class_stride, softcap)
    columns = tl.arange(0, block)[None, None, :]
    places = over_lane(rows) * row_stride + _offsets(columns, class_stride, contiguous)
    x = tl.load(logits + places, mask=over_lane(live) & (columns < classes), other=float("-inf")).to(tl.float32)
    x = capped(x, softcap)
    r = _prior_at(prior, columns, columns < classes)
    lowest, zero = tl.full((together,), LOWEST, tl.float32), tl.zeros((together,), tl.float32)
    top, total, best, labels, mass, pull = add_tile(
        x, r, lowest, zero, lowest, zero, zero, zero, scale, inverse, row_beta, has_prior, form
    )
    loss = losses_of(
        chosen, weight, row_alpha, row_beta, inverse, top, total, best, labels, mass, pull, z_loss, has_prior, form
    )  # fmt: skip
    tl.store(losses + rows, loss, mask=inside)
    if statistics is not None:
        sums = entropy_sums(x, r, over_lane(top), over_lane(best), over_lane(scale), has_prior, form)
        entropy, label_entropy = entropies(sums[0], sums[1], total, labels, mass, has_prior, form, True)
        _write_statistics(statistics, statistics_stride, rows, live, chosen, top, total, entropy, label_entropy)
    if grad_logits is not None:
        p_factor, q_factor = factors(row_alpha, top, total, labels, mass, z_loss, form)
        # If all classes are masked the gradient is 0, also at the target.
        weight = tl.where(total == 0.0, 0.0, weight)
        grad = over_lane(weight) * difference(
            x, r, over_lane(top), over_lane(best), over_lane(p_factor), over_lane(q_factor), over_lane(scale),
            has_prior, form,
        )  # fmt: skip
        grad = through_cap(grad, x, softcap)
        places = over_lane(rows) * grad_stride + columns
        written = over_lane(inside) & (columns < classes)
        tl.store(grad_logits + places, grad.to(grad_logits.dtype.element_ty), mask=written)
        _write_target(
            grad_logits, rows, grad_stride, target, known, chosen, prior, weight, row_alpha, top, best, p_factor,
            q_factor, scale, softcap, form,
        )  # fmt: skip


@triton.jit
def long_rows(
    logits, targets, row_weights, alpha, beta, prior, z_loss, softcap, losses, grad_logits, statistics, row_units,
    class_stride, grad_units, alpha_stride, beta_stride, statistics_stride, class_units, contiguous: tl.constexpr,
    alpha_of_rows: tl.constexpr, beta_of_rows: tl.constexpr, form: tl.constexpr, unit: tl.constexpr,
    groups: tl.constexpr, lanes: tl.constexpr,
):  # fmt: skip
    """Loss and gradient of one row per program."""
    row_stride, grad_stride, classes = row_units * unit, grad_units * unit, class_units * unit
    has_prior: tl.constexpr = prior is not None
    index = tl.program_id(0).to(tl.int64)
    rows = index + tl.arange(0, 1)
    if tl.load(row_weights + index) == 0.0:
        tl.store(losses + index, 0.0)
        if grad_logits is not None:
            _write_zeros(grad_logits + index * grad_stride, 0, classes, lanes * unit)
    else:
        inside = rows >= 0
        weight = tl.load(row_weights + rows)
        row_alpha = _row_values(alpha, rows, inside, alpha_stride, alpha_of_rows)
        scale, inverse, row_beta = _scales(_row_values(beta, rows, inside, beta_stride, beta_of_rows))
        target = tl.load(targets + rows)
        chosen, known = _chosen(logits, rows, target, inside, classes, row_stride, class_stride, softcap)
        row = logits + index * row_stride
        top, total, best, labels, mass, pull = _sum_range(
            row, prior, 0, classes, class_stride, scale, inverse, row_beta, softcap, contiguous, form, groups, lanes,
            unit,
        )  # fmt: skip
        loss = losses_of(
            chosen, weight, row_alpha, row_beta, inverse, top, total, best, labels, mass, pull, z_loss, has_prior, form
        )  # fmt: skip
        tl.store(losses + rows, loss)
        if grad_logits is not None or statistics is not None:
            p_factor, q_factor = factors(row_alpha, top, total, labels, mass, z_loss, form)
            weight = tl.where(total == 0.0, 0.0, weight)  # all classes masked: zero gradient
            spread, label_spread = _write_range(
                row, prior, grad_logits, index * grad_stride, 0, classes, class_stride, weight, top, best, p_factor,
                q_factor, scale, softcap, contiguous, form, groups, lanes, unit, statistics is not None,
            )  # fmt: skip
            if statistics is not None:
                entropy, label_entropy = entropies(spread, label_spread, total, labels, mass, has_prior, form, True)
                _write_statistics(
                    statistics, statistics_stride, rows, inside, chosen, top, total, entropy, label_entropy
                )  # fmt: skip
            if grad_logits is not None:
                _write_target(
                    grad_logits, rows, grad_stride, target, known, chosen, prior, weight, row_alpha, top, best,
                    p_factor, q_factor, scale, softcap, form,
                )  # fmt: skip


@triton.jit(do_not_specialize=["count"])
def sum_parts(
    logits, row_weights, beta, prior, softcap, sums, row_units, class_stride, beta_stride, count, class_units, width,
    contiguous: tl.constexpr, beta_of_rows: tl.constexpr, form: tl.constexpr, unit: tl.constexpr,
    groups: tl.constexpr, lanes: tl.constexpr,
):  # fmt: skip
    """The sums of a part of `width` tiles of a row per program, as (6, rows, parts) of `sums`."""
    classes = class_units * unit
    index, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    if tl.load(row_weights + index) != 0.0:
        rows = index + tl.arange(0, 1)
        scale, inverse, row_beta = _scales(_row_values(beta, rows, rows >= 0, beta_stride, beta_of_rows))
        start = part * (groups * lanes * unit) * width
        stop = tl.minimum(start + (groups * lanes * unit) * width, classes)
        top, total, best, labels, mass, pull = _sum_range(
            logits + index * (row_units * unit), prior, start, stop, class_stride, scale, inverse, row_beta, softcap,
            contiguous, form, groups, lanes, unit,
        )  # fmt: skip
        parts = tl.num_programs(1)
        at = sums + rows * parts + part
        step = count.to(tl.int64) * parts
        tl.store(at, top)
        tl.store(at + step, total)
        tl.store(at + 2 * step, best)
        tl.store(at + 3 * step, labels)
        tl.store(at + 4 * step, mass)
        tl.store(at + 5 * step, pull)


@triton.jit(do_not_specialize=["count", "parts"])
def write_parts(
    logits, targets, row_weights, alpha, beta, prior, z_loss, softcap, sums, losses, grad_logits, statistics,
    row_units, class_stride, grad_units, alpha_stride, beta_stride, statistics_stride, count, class_units, width, parts,
    contiguous: tl.constexpr, alpha_of_rows: tl.constexpr, beta_of_rows: tl.constexpr, form: tl.constexpr,
    unit: tl.constexpr, groups: tl.constexpr, lanes: tl.constexpr, places: tl.constexpr,
):  # fmt: skip
    """The gradient of a part of a row per program, from the sums of all parts (`places` is at least their number).

    The program with the target also writes the loss of the row and its statistics, without the terms of the entropies:
    these follow the sums, as (2, rows, parts). It reads the target's logit before it writes, because the gradient may
    overwrite the logits.
    """
    row_stride, grad_stride, classes = row_units * unit, grad_units * unit, class_units * unit
    has_prior: tl.constexpr = prior is not None
    index, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    rows = index + tl.arange(0, 1)
    start = part * (groups * lanes * unit) * width
    stop = tl.minimum(start + (groups * lanes * unit) * width, classes)
    if tl.load(row_weights + index) == 0.0:
        tl.store(losses + index, 0.0, mask=part == 0)
        if grad_logits is not None:
            _write_zeros(grad_logits + index * grad_stride, start, stop, lanes * unit)
    else:
        inside = rows >= 0
        weight = tl.load(row_weights + rows)
        row_alpha = _row_values(alpha, rows, inside, alpha_stride, alpha_of_rows)
        scale, inverse, row_beta = _scales(_row_values(beta, rows, inside, beta_stride, beta_of_rows))
        target = tl.load(targets + rows)
        chosen, known = _chosen(logits, rows, target, inside, classes, row_stride, class_stride, softcap)
        place = tl.arange(0, places)
        at = sums + index * parts + place
        step = count.to(tl.int64) * parts
        there = place < parts
        top, total, best, labels, mass, pull = meet(
            tl.load(at, mask=there, other=LOWEST), tl.load(at + step, mask=there, other=0.0),
            tl.load(at + 2 * step, mask=there, other=LOWEST), tl.load(at + 3 * step, mask=there, other=0.0),
            tl.load(at + 4 * step, mask=there, other=0.0), tl.load(at + 5 * step, mask=there, other=0.0),
            scale, inverse, row_beta, has_prior, form,
        )  # fmt: skip
        loss = losses_of(
            chosen, weight, row_alpha, row_beta, inverse, top, total, best, labels, mass, pull, z_loss, has_prior, form
        )  # fmt: skip
        written = tl.where(known, target, 0)
        here = (written >= start) & (written < stop)
        tl.store(losses + rows, loss, mask=here)
        if grad_logits is not None or statistics is not None:
            p_factor, q_factor = factors(row_alpha, top, total, labels, mass, z_loss, form)
            weight = tl.where(total == 0.0, 0.0, weight)
            spread, label_spread = _write_range(
                logits + index * row_stride, prior, grad_logits, index * grad_stride, start, stop, class_stride,
                weight, top, best, p_factor, q_factor, scale, softcap, contiguous, form, groups, lanes, unit,
                statistics is not None,
            )  # fmt: skip
            if statistics is not None:
                term, label_term = entropies(spread, label_spread, total, labels, mass, has_prior, form, False)
                tl.store(sums + 6 * step + rows * parts + part, term)
                tl.store(sums + 7 * step + rows * parts + part, label_term)
                nothing = tl.zeros_like(total)
                entropy, label_entropy = entropies(nothing, nothing, total, labels, mass, has_prior, form, True)
                _write_statistics(
                    statistics, statistics_stride, rows, here, chosen, top, total, entropy, label_entropy
                )  # fmt: skip
            if grad_logits is not None:
                _write_target(
                    grad_logits, rows, grad_stride, target, here & known, chosen, prior, weight, row_alpha, top, best,
                    p_factor, q_factor, scale, softcap, form,
                )  # fmt: skip


@triton.jit
def scale_gradient(grads, factor, count, block: tl.constexpr):
    """Multiply `count` numbers by a scalar on the device, rounded once; a scalar of 1 costs only its read."""
    by = tl.load(factor).to(tl.float32)
    if by != 1.0:
        step = tl.num_programs(0).to(tl.int64) * block
        for first in range(tl.program_id(0).to(tl.int64) * block, count, step):
            at = first + tl.arange(0, block)
            value = tl.load(grads + at, mask=at < count, other=0.0).to(tl.float32) * by
            tl.store(grads + at, value.to(grads.dtype.element_ty), mask=at < count)
