"""What stands between the matrix products of one time step, fused into single kernels: three forward, three backward.

Formulas and letters are those of zfdist.model.recurrent.recurrence. Every kernel computes in the type of the tensors
that it reads (float32, or float64 in a double model), whatever type the products came out in; where NARROW, it writes
its result a second time, rounded, as the operand of the next product. A NaN is never clamped away: what is not finite
must reach the loss. Importing this module imports triton, so `triton_recurrence` does it at first use.

A program is one row of the batch and one block of columns. All tensors are dense row by row; `stride` arguments are
the elements from one row to the next where a tensor has more columns than the kernel's own.
"""

import triton
import triton.language as tl


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def _tanh(x):
    # Of a number that cannot overflow; the sign comes back at the end.
    shrunk = tl.exp(-2.0 * tl.abs(x))
    size = (1.0 - shrunk) / (1.0 + shrunk)
    return tl.where(x < 0, -size, size)


@triton.jit
def _clamp(x, bound):
    x = tl.where(x > bound, bound, x)
    return tl.where(x < -bound, -bound, x)


@triton.jit
def _multiple(size, GRAIN: tl.constexpr):
    # The same number, so that the compiler sees what divides it and loads several values at once.
    return size // GRAIN * GRAIN


@triton.jit
def hidden_layer(
    p_BP, qb_BM, a_BM, narrow_a_BM, gates, mlp_dim,
    SLOPE: tl.constexpr, CLIP: tl.constexpr, NARROW: tl.constexpr, GRAIN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Fill a = clip(lrelu(p + qb)), with p in the last `mlp_dim` columns of p_BP."""
    gates, mlp_dim = _multiple(gates, GRAIN), _multiple(mlp_dim, GRAIN)
    row, col = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = col < mlp_dim
    at = row * mlp_dim + col
    a = tl.load(qb_BM + at, mask=inside)
    a += tl.load(p_BP + row * (gates + mlp_dim) + gates + col, mask=inside).to(a.dtype)
    a = _clamp(tl.where(a > 0, a, a * SLOPE), CLIP)
    tl.store(a_BM + at, a, mask=inside)
    if NARROW:
        tl.store(narrow_a_BM + at, a.to(narrow_a_BM.dtype.element_ty), mask=inside)


@triton.jit
def latent(
    r_BQ, b_q_Q, eps_BZ, q_BQ, noise_BZ, z_BZ, narrow_z_BZ, z_dim,
    BOUND: tl.constexpr, NARROW: tl.constexpr, GRAIN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Fill [mu, v] = clamp(r + b), noise = exp(v / 2) * eps, z = mu + noise."""
    z_dim = _multiple(z_dim, GRAIN)
    row, col = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = col < z_dim
    at, at_mu = row * z_dim + col, row * 2 * z_dim + col
    eps = tl.load(eps_BZ + at, mask=inside)
    mu = tl.load(b_q_Q + col, mask=inside) + tl.load(r_BQ + at_mu, mask=inside).to(eps.dtype)
    logvar = tl.load(b_q_Q + z_dim + col, mask=inside) + tl.load(r_BQ + at_mu + z_dim, mask=inside).to(eps.dtype)
    if BOUND > 0:
        mu = _clamp(mu, BOUND)
        logvar = _clamp(logvar, BOUND)
    noise = tl.exp(0.5 * logvar) * eps
    z = mu + noise
    tl.store(q_BQ + at_mu, mu, mask=inside)
    tl.store(q_BQ + at_mu + z_dim, logvar, mask=inside)
    tl.store(noise_BZ + at, noise, mask=inside)
    tl.store(z_BZ + at, z, mask=inside)
    if NARROW:
        tl.store(narrow_z_BZ + at, z.to(narrow_z_BZ.dtype.element_ty), mask=inside)


@triton.jit
def cell(
    p_BP, gx_BG, g_BG, c_BH, act_BG, next_c_BH, h_BH, narrow_h_BH, hidden, p_stride,
    NARROW: tl.constexpr, GRAIN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Run the LSTM cell on the sum of three pre-activations; keeps the gates after their activations."""
    hidden, p_stride = _multiple(hidden, GRAIN), _multiple(p_stride, GRAIN)
    row, col = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = col < hidden
    at, gate, product = row * hidden + col, row * 4 * hidden + col, row * p_stride + col
    c = tl.load(c_BH + at, mask=inside)
    o = tl.load(p_BP + product, mask=inside).to(c.dtype) + tl.load(gx_BG + gate, mask=inside)
    i = tl.load(p_BP + product + hidden, mask=inside).to(c.dtype) + tl.load(gx_BG + gate + hidden, mask=inside)
    f = tl.load(p_BP + product + 2 * hidden, mask=inside).to(c.dtype) + tl.load(gx_BG + gate + 2 * hidden, mask=inside)
    u = tl.load(p_BP + product + 3 * hidden, mask=inside).to(c.dtype) + tl.load(gx_BG + gate + 3 * hidden, mask=inside)
    o = _sigmoid(o + tl.load(g_BG + gate, mask=inside).to(c.dtype))
    i = _sigmoid(i + tl.load(g_BG + gate + hidden, mask=inside).to(c.dtype))
    f = _sigmoid(f + tl.load(g_BG + gate + 2 * hidden, mask=inside).to(c.dtype))
    u = _tanh(u + tl.load(g_BG + gate + 3 * hidden, mask=inside).to(c.dtype))
    c = f * c + i * u
    h = o * _tanh(c)
    tl.store(act_BG + gate, o, mask=inside)
    tl.store(act_BG + gate + hidden, i, mask=inside)
    tl.store(act_BG + gate + 2 * hidden, f, mask=inside)
    tl.store(act_BG + gate + 3 * hidden, u, mask=inside)
    tl.store(next_c_BH + at, c, mask=inside)
    tl.store(h_BH + at, h, mask=inside)
    if NARROW:
        tl.store(narrow_h_BH + at, h.to(narrow_h_BH.dtype.element_ty), mask=inside)


@triton.jit
def cell_backward(
    carried_dh_BH, dh_BH, dc_BH, act_BG, c_BH, next_c_BH, d_BP, narrow_d_BP, hidden, d_stride,
    NARROW: tl.constexpr, GRAIN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Fill the gradients of the gates' pre-activations into d_BP, and move dc_BH to the step before."""
    hidden, d_stride = _multiple(hidden, GRAIN), _multiple(d_stride, GRAIN)
    row, col = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = col < hidden
    at, gate, out = row * hidden + col, row * 4 * hidden + col, row * d_stride + col
    dh = tl.load(dh_BH + at, mask=inside)
    dh += tl.load(carried_dh_BH + at, mask=inside).to(dh.dtype)
    o, i = tl.load(act_BG + gate, mask=inside), tl.load(act_BG + gate + hidden, mask=inside)
    f, u = tl.load(act_BG + gate + 2 * hidden, mask=inside), tl.load(act_BG + gate + 3 * hidden, mask=inside)
    tanh_c = _tanh(tl.load(next_c_BH + at, mask=inside))
    dc = tl.load(dc_BH + at, mask=inside) + dh * o * (1.0 - tanh_c * tanh_c)
    d_o = dh * tanh_c * o * (1.0 - o)
    d_i = dc * u * i * (1.0 - i)
    d_f = dc * tl.load(c_BH + at, mask=inside) * f * (1.0 - f)
    d_u = dc * i * (1.0 - u * u)
    tl.store(dc_BH + at, dc * f, mask=inside)
    tl.store(d_BP + out, d_o, mask=inside)
    tl.store(d_BP + out + hidden, d_i, mask=inside)
    tl.store(d_BP + out + 2 * hidden, d_f, mask=inside)
    tl.store(d_BP + out + 3 * hidden, d_u, mask=inside)
    if NARROW:
        kind = narrow_d_BP.dtype.element_ty
        tl.store(narrow_d_BP + out, d_o.to(kind), mask=inside)
        tl.store(narrow_d_BP + out + hidden, d_i.to(kind), mask=inside)
        tl.store(narrow_d_BP + out + 2 * hidden, d_f.to(kind), mask=inside)
        tl.store(narrow_d_BP + out + 3 * hidden, d_u.to(kind), mask=inside)


@triton.jit
def latent_backward(
    carried_dz_BZ, dz_BZ, direct_dq_BQ, q_BQ, noise_BZ, dq_BQ, narrow_dq_BQ, z_dim,
    BOUND: tl.constexpr, NARROW: tl.constexpr, GRAIN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Fill dq from what reaches z through the gates and what reaches z, mu and v directly; 0 where clamped."""
    z_dim = _multiple(z_dim, GRAIN)
    row, col = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = col < z_dim
    at, at_mu = row * z_dim + col, row * 2 * z_dim + col
    dz = tl.load(dz_BZ + at, mask=inside)
    dz += tl.load(carried_dz_BZ + at, mask=inside).to(dz.dtype)
    dmu = tl.load(direct_dq_BQ + at_mu, mask=inside) + dz
    dlogvar = tl.load(direct_dq_BQ + at_mu + z_dim, mask=inside) + 0.5 * dz * tl.load(noise_BZ + at, mask=inside)
    if BOUND > 0:  # products, so that a NaN stays one
        dmu *= (tl.abs(tl.load(q_BQ + at_mu, mask=inside)) < BOUND).to(dz.dtype)
        dlogvar *= (tl.abs(tl.load(q_BQ + at_mu + z_dim, mask=inside)) < BOUND).to(dz.dtype)
    tl.store(dq_BQ + at_mu, dmu, mask=inside)
    tl.store(dq_BQ + at_mu + z_dim, dlogvar, mask=inside)
    if NARROW:
        tl.store(narrow_dq_BQ + at_mu, dmu.to(narrow_dq_BQ.dtype.element_ty), mask=inside)
        tl.store(narrow_dq_BQ + at_mu + z_dim, dlogvar.to(narrow_dq_BQ.dtype.element_ty), mask=inside)


@triton.jit
def hidden_layer_backward(
    da_BM, a_BM, d_BP, narrow_d_BP, gates, mlp_dim,
    SLOPE: tl.constexpr, CLIP: tl.constexpr, NARROW: tl.constexpr, GRAIN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Fill the gradient of the hidden layer's pre-activation into the last `mlp_dim` columns of d_BP."""
    gates, mlp_dim = _multiple(gates, GRAIN), _multiple(mlp_dim, GRAIN)
    row, col = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = col < mlp_dim
    a = tl.load(a_BM + row * mlp_dim + col, mask=inside)
    # Decided on the stored wide value, before any rounding could move it onto the edge.
    d = tl.load(da_BM + row * mlp_dim + col, mask=inside).to(a.dtype) * (tl.abs(a) < CLIP).to(a.dtype)
    d = tl.where(a > 0, d, d * SLOPE)
    out = row * (gates + mlp_dim) + gates + col
    tl.store(d_BP + out, d, mask=inside)
    if NARROW:
        tl.store(narrow_d_BP + out, d.to(narrow_d_BP.dtype.element_ty), mask=inside)
