// Both sweeps of the recurrence over time, for a CPU: formulas and letters of recurrent/recurrence.py
// and manual_backward.py.
//
// A worker thread takes some rows of the batch through all steps, so no step waits for another thread. Products are
// made from weights packed into panels that stream through the cache once for each step and thread; all else of a step
// happens on rows that are still in the cache. Same results for every number of threads.
//
// Shapes: T steps, B batch, H hidden, Z latent, Q = 2 Z, M hidden units of the posterior, G = 4 H gates in the order
// o, i, f, u. All arrays are dense, last letter fastest.

#include <algorithm>
#include <cstdint>

#include "cell.hpp"
#include "products.hpp"

namespace {

constexpr Gates ORDER{0, 1, 2, 3};

struct Sizes {
    int64_t steps, batch, hidden, z, mlp, threads, keep;  // keep: whether a backward sweep will follow
    double bound, clip, slope;
};

// --- forward ---------------------------------------------------------------------------------------------------------

template <class T> struct Forward {  // as cpp_recurrence.py lists them; act, c and a hold one step without `keep`
    const T *gx_TBG, *qb_TBM, *eps_TBZ, *w_h_GH, *w_z_GZ, *w_a_MH, *w_q_QM, *b_q_Q;
    T *act_TBG, *h_SBH, *c_SBH, *a_TBM, *q_TBQ, *z_TBZ;
};

template <class T> void forward(const Sizes& s, const Forward<T>& x) {
    const long B = s.batch, H = s.hidden, Z = s.z, M = s.mlp, Q = 2 * Z, G = 4 * H;
    const long rows_per_thread = rows_of_a_thread(B, s.threads);
    if (B == 0) return;
    const Packed<T> h_to_a(x.w_a_MH, H, M, 1, H, s.threads), a_to_q(x.w_q_QM, M, Q, 1, M, s.threads);
    const Packed<T> h_to_g(x.w_h_GH, H, G, 1, H, s.threads), z_to_g(x.w_z_GZ, Z, G, 1, Z, s.threads);
    const T clip = s.clip, slope = s.slope, bound = s.bound;
#pragma omp parallel for num_threads((B + rows_per_thread - 1) / rows_per_thread) schedule(static, 1)
    for (long first = 0; first < B; first += rows_per_thread) {
        const long rows = std::min(rows_per_thread, B - first);
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
                cell(H, ORDER, g + r * G, x.gx_TBG + (row + r) * G, x.c_SBH + (kept + r) * H, x.act_TBG + (kept + r) * G,
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

template <class T> void backward(const Sizes& s, const Backward<T>& x) {
    const long B = s.batch, H = s.hidden, Z = s.z, M = s.mlp, Q = 2 * Z, G = 4 * H;
    const long rows_per_thread = rows_of_a_thread(B, s.threads);
    if (B == 0) return;
    const Packed<T> g_to_h(x.w_h_GH, G, H, H, 1, s.threads), g_to_z(x.w_z_GZ, G, Z, Z, 1, s.threads);
    const Packed<T> a_to_h(x.w_a_MH, M, H, H, 1, s.threads), q_to_a(x.w_q_QM, Q, M, M, 1, s.threads);
    const T clip = s.clip, slope = s.slope, bound = s.bound;
#pragma omp parallel for num_threads((B + rows_per_thread - 1) / rows_per_thread) schedule(static, 1)
    for (long first = 0; first < B; first += rows_per_thread) {
        const long rows = std::min(rows_per_thread, B - first);
        const Scratch<T> dz(rows * Z);
        for (long t = s.steps - 1; t >= 0; --t) {
            const long row = t * B + first;
            for (long r = 0; r < rows; ++r)
                cell_back(H, ORDER, x.act_TBG + (row + r) * G, x.c_SBH + (row + r) * H, x.c_SBH + (row + B + r) * H,
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
