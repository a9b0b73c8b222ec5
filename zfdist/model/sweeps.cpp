// Both sweeps of the recurrence over time, for a CPU: formulas and letters of zfdist/model/recurrence.py and bptt.py.
//
// A worker thread takes some rows of the batch through all steps, so no step waits for another thread. Products are
// made from weights packed into panels that stream through the cache once for each step and thread; all else of a step
// happens on rows that are still in the cache. Same results for every number of threads.
//
// Shapes: T steps, B batch, H hidden, Z latent, Q = 2 Z, M hidden units of the posterior, G = 4 H gates in the order
// o, i, f, u. All arrays are dense, last letter fastest.

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>

#include "functions.hpp"

namespace {

#if defined(__AVX512F__)
constexpr long BYTES = 64, TILE = 8;  // of a vector register; rows of a tile: sums that fit into the registers
#elif defined(__AVX__)
constexpr long BYTES = 32, TILE = 4;
#else
constexpr long BYTES = 16, TILE = 4;
#endif
constexpr long WIDE = 3;  // vectors of a panel

struct Sizes {
    int64_t steps, batch, hidden, z, mlp, threads, keep;  // keep: whether a backward sweep will follow
    double bound, clip, slope;
};

template <class T> struct Scratch {
    struct Free { void operator()(T* data) const { std::free(data); } };
    std::unique_ptr<T, Free> data;
    explicit Scratch(long count) : data(static_cast<T*>(std::aligned_alloc(64, (count * sizeof(T) + 63) / 64 * 64))) {}
    operator T*() const { return data.get(); }
};

// --- products --------------------------------------------------------------------------------------------------------

template <class T, int ROWS, int VECTORS>
void tile(const T* in, long ld_in, const T* panel, long depth, T* out, long ld_out, long columns, bool add) {
    typedef T Vector __attribute__((vector_size(BYTES)));
    Vector sum[ROWS][VECTORS] = {};
    for (long k = 0; k < depth; ++k) {
        const Vector* w = reinterpret_cast<const Vector*>(panel) + k * VECTORS;
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 3
            for (int v = 0; v < VECTORS; ++v) sum[r][v] += in[r * ld_in + k] * w[v];
    }
    for (int r = 0; r < ROWS; ++r) {
        const T* row = reinterpret_cast<const T*>(sum[r]);
        T* to = out + r * ld_out;
        if (add)
            for (long j = 0; j < columns; ++j) to[j] += row[j];
        else
            for (long j = 0; j < columns; ++j) to[j] = row[j];
    }
}

// A matrix [depth, width] as panels of WIDE vectors, the last one narrower and filled up with zeros.
template <class T> class Packed {
    static constexpr long lanes = BYTES / sizeof(T), panel = WIDE * lanes;
    long depth, width;
    Scratch<T> data;

    template <int ROWS, int VECTORS>
    void rows(long count, const T* in, long ld_in, long first, T* out, long ld_out, bool add) const {
        const long columns = std::min(panel, width - first);
        long r = 0;
        for (; r + ROWS <= count; r += ROWS)
            tile<T, ROWS, VECTORS>(in + r * ld_in, ld_in, data + first * depth, depth, out + r * ld_out + first, ld_out,
                                   columns, add);
        if constexpr (ROWS > 1)
            if (r < count) rows<ROWS / 2, VECTORS>(count - r, in + r * ld_in, ld_in, first, out + r * ld_out, ld_out, add);
    }

public:
    // Element (k, n) is weight[k * step_k + n * step_n].
    Packed(const T* weight, long depth, long width, long step_k, long step_n, int threads)
        : depth(depth), width(width), data((width + lanes - 1) / lanes * lanes * depth) {
#pragma omp parallel for num_threads(threads)
        for (long first = 0; first < width; first += panel) {
            const long columns = std::min(panel, width - first), padded = (columns + lanes - 1) / lanes * lanes;
            T* to = data + first * depth;
            for (long k = 0; k < depth; ++k, to += padded)
                for (long n = 0; n < padded; ++n)
                    to[n] = n < columns ? weight[k * step_k + (first + n) * step_n] : T(0);
        }
    }

    // out = in x matrix, or added to it, for `count` rows.
    void multiply(long count, const T* in, long ld_in, T* out, long ld_out, bool add = false) const {
        for (long first = 0; first < width; first += panel) {
            const long vectors = (std::min(panel, width - first) + lanes - 1) / lanes;
            if (vectors == 3) rows<TILE, 3>(count, in, ld_in, first, out, ld_out, add);
            else if (vectors == 2) rows<TILE, 2>(count, in, ld_in, first, out, ld_out, add);
            else rows<TILE, 1>(count, in, ld_in, first, out, ld_out, add);
        }
    }
};

// Rows of a thread: as few threads as give each at least half a tile.
long share(const Sizes& s) {
    const long rows = (s.batch + s.threads - 1) / s.threads;
    return (rows + TILE / 2 - 1) / (TILE / 2) * (TILE / 2);
}

// --- forward ---------------------------------------------------------------------------------------------------------

template <class T> struct Forward {  // as zfdist/model/native.py lists them; act, c and a hold one step without `keep`
    const T *gx_TBG, *qb_TBM, *eps_TBZ, *w_h_GH, *w_z_GZ, *w_a_MH, *w_q_QM, *b_q_Q;
    T *act_TBG, *h_SBH, *c_SBH, *a_TBM, *q_TBQ, *z_TBZ;
};

template <class T> void cell(long H, const T* g, const T* gx, const T* c, T* act, T* c_next, T* h) {
#pragma omp simd
    for (long j = 0; j < H; ++j) {
        const T o = sigmoid(g[j] + gx[j]), i = sigmoid(g[H + j] + gx[H + j]);
        const T f = sigmoid(g[2 * H + j] + gx[2 * H + j]), u = hyperbolic_tangent(g[3 * H + j] + gx[3 * H + j]);
        act[j] = o, act[H + j] = i, act[2 * H + j] = f, act[3 * H + j] = u;
        c_next[j] = f * c[j] + i * u;
        h[j] = o * hyperbolic_tangent(c_next[j]);
    }
}

template <class T> void forward(const Sizes& s, const Forward<T>& x) {
    const long B = s.batch, H = s.hidden, Z = s.z, M = s.mlp, Q = 2 * Z, G = 4 * H, some = share(s);
    const Packed<T> h_to_a(x.w_a_MH, H, M, 1, H, s.threads), a_to_q(x.w_q_QM, M, Q, 1, M, s.threads);
    const Packed<T> h_to_g(x.w_h_GH, H, G, 1, H, s.threads), z_to_g(x.w_z_GZ, Z, G, 1, Z, s.threads);
    const T clip = s.clip, slope = s.slope, bound = s.bound;
#pragma omp parallel for num_threads((B + some - 1) / some) schedule(static, 1)
    for (long first = 0; first < B; first += some) {
        const long rows = std::min(some, B - first);
        const Scratch<T> g(rows * G);
        for (long t = 0; t < s.steps; ++t) {
            const long row = t * B + first, kept = s.keep ? row : first;
            h_to_a.multiply(rows, x.h_SBH + row * H, H, x.a_TBM + kept * M, M);
            for (long r = 0; r < rows; ++r) {
                T* a = x.a_TBM + (kept + r) * M;
                const T* qb = x.qb_TBM + (row + r) * M;
#pragma omp simd
                for (long j = 0; j < M; ++j) {
                    const T sum = a[j] + qb[j];
                    a[j] = clamped(sum > 0 ? sum : sum * slope, clip);
                }
            }
            a_to_q.multiply(rows, x.a_TBM + kept * M, M, x.q_TBQ + row * Q, Q);
            for (long r = row; r < row + rows; ++r) {
                T *q = x.q_TBQ + r * Q, *z = x.z_TBZ + r * Z;
                const T* eps = x.eps_TBZ + r * Z;
                for (long j = 0; j < Q; ++j) q[j] += x.b_q_Q[j];
                if (bound > 0)
                    for (long j = 0; j < Q; ++j) q[j] = clamped(q[j], bound);
#pragma omp simd
                for (long j = 0; j < Z; ++j) z[j] = q[j] + exponential(q[Z + j] / 2) * eps[j];
            }
            h_to_g.multiply(rows, x.h_SBH + row * H, H, g, G);
            z_to_g.multiply(rows, x.z_TBZ + row * Z, Z, g, G, true);
            for (long r = 0; r < rows; ++r)
                cell(H, g + r * G, x.gx_TBG + (row + r) * G, x.c_SBH + (kept + r) * H, x.act_TBG + (kept + r) * G,
                     x.c_SBH + (kept + (s.keep ? B : 0) + r) * H, x.h_SBH + (row + B + r) * H);
        }
    }
}

// --- backward --------------------------------------------------------------------------------------------------------

template <class T> struct Backward {
    const T *eps_TBZ, *act_TBG, *c_SBH, *a_TBM, *q_TBQ, *w_h_GH, *w_z_GZ, *w_a_MH, *w_q_QM;
    const T *dh_TBH, *dz_TBZ, *direct_TBQ;  // the gradients that come from outside
    T *dg_TBG, *da_TBM, *dq_TBQ, *dh_BH, *dc_BH;  // of the sums before the activations; of the state, in and out
};

template <class T>
void cell_back(long H, const T* act, const T* c, const T* c_next, const T* direct, const T* dh, T* dc, T* dg) {
#pragma omp simd
    for (long j = 0; j < H; ++j) {
        const T o = act[j], i = act[H + j], f = act[2 * H + j], u = act[3 * H + j];
        const T tanh_c = hyperbolic_tangent(c_next[j]), dh_all = dh[j] + direct[j];
        const T dc_all = dc[j] + dh_all * o * (1 - tanh_c * tanh_c);
        dg[j] = dh_all * tanh_c * o * (1 - o);
        dg[H + j] = dc_all * u * i * (1 - i);
        dg[2 * H + j] = dc_all * c[j] * f * (1 - f);
        dg[3 * H + j] = dc_all * i * (1 - u * u);
        dc[j] = dc_all * f;
    }
}

template <class T> void backward(const Sizes& s, const Backward<T>& x) {
    const long B = s.batch, H = s.hidden, Z = s.z, M = s.mlp, Q = 2 * Z, G = 4 * H, some = share(s);
    const Packed<T> g_to_h(x.w_h_GH, G, H, H, 1, s.threads), g_to_z(x.w_z_GZ, G, Z, Z, 1, s.threads);
    const Packed<T> a_to_h(x.w_a_MH, M, H, H, 1, s.threads), q_to_a(x.w_q_QM, Q, M, M, 1, s.threads);
    const T clip = s.clip, slope = s.slope, bound = s.bound;
#pragma omp parallel for num_threads((B + some - 1) / some) schedule(static, 1)
    for (long first = 0; first < B; first += some) {
        const long rows = std::min(some, B - first);
        const Scratch<T> dz(rows * Z);
        for (long t = s.steps - 1; t >= 0; --t) {
            const long row = t * B + first;
            for (long r = 0; r < rows; ++r)
                cell_back(H, x.act_TBG + (row + r) * G, x.c_SBH + (row + r) * H, x.c_SBH + (row + B + r) * H,
                          x.dh_TBH + (row + r) * H, x.dh_BH + (first + r) * H, x.dc_BH + (first + r) * H,
                          x.dg_TBG + (row + r) * G);
            g_to_z.multiply(rows, x.dg_TBG + row * G, G, dz, Z);
            for (long r = 0; r < rows; ++r) {
                const T *q = x.q_TBQ + (row + r) * Q, *eps = x.eps_TBZ + (row + r) * Z;
                const T *direct = x.direct_TBQ + (row + r) * Q, *dz_direct = x.dz_TBZ + (row + r) * Z;
                T *dq = x.dq_TBQ + (row + r) * Q, *dz_r = dz + r * Z;
#pragma omp simd
                for (long j = 0; j < Z; ++j) {
                    const T both = dz_r[j] + dz_direct[j];
                    dq[j] = direct[j] + both;
                    dq[Z + j] = direct[Z + j] + both * (exponential(q[Z + j] / 2) * eps[j] / 2);
                }
                if (bound > 0)
                    for (long j = 0; j < Q; ++j) dq[j] *= T(q[j] < bound && q[j] > -bound);
            }
            q_to_a.multiply(rows, x.dq_TBQ + row * Q, Q, x.da_TBM + row * M, M);
            for (long r = row; r < row + rows; ++r) {
                T* da = x.da_TBM + r * M;
                const T* a = x.a_TBM + r * M;
                for (long j = 0; j < M; ++j) da[j] *= a[j] < clip && a[j] > -clip ? (a[j] > 0 ? T(1) : slope) : T(0);
            }
            g_to_h.multiply(rows, x.dg_TBG + row * G, G, x.dh_BH + first * H, H);
            a_to_h.multiply(rows, x.da_TBM + row * M, M, x.dh_BH + first * H, H, true);
        }
    }
}

}  // namespace

extern "C" {
void forward_f32(const Sizes* s, const void* arrays) { forward(*s, *static_cast<const Forward<float>*>(arrays)); }
void forward_f64(const Sizes* s, const void* arrays) { forward(*s, *static_cast<const Forward<double>*>(arrays)); }
void backward_f32(const Sizes* s, const void* arrays) { backward(*s, *static_cast<const Backward<float>*>(arrays)); }
void backward_f64(const Sizes* s, const void* arrays) { backward(*s, *static_cast<const Backward<double>*>(arrays)); }
}
