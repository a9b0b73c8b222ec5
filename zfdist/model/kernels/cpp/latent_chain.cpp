// Both sweeps over time of SRNN's chain of latents, for a CPU: formulas and letters of recurrent/latent_chain.py.
//
// Threads and products as in recurrence.cpp.
//
// Shapes: T steps, S = T + 1 latents, B batch, Z latent, Q = 2 Z, M hidden units of a net, P = 2 M those of both; a
// dimension of 2: the prior's net, the posterior's. All arrays are dense, last letter fastest.

#include <algorithm>
#include <cstdint>

#include "functions.hpp"
#include "products.hpp"

namespace {

struct Sizes {
    int64_t steps, batch, z, mlp, threads, keep;  // keep: whether a backward sweep will follow
    double bound, clip, slope;
};

// --- forward ---------------------------------------------------------------------------------------------------------

template <class T> struct Forward {  // as cpp_latent_chain.py lists them; a holds one step without `keep`
    const T *pq_TBP, *eps_TBZ, *w_z_PZ, *w_q_2QM, *b_q_2Q;
    T *a_TBP, *q_T2BQ, *z_SBZ;
};

template <class T> void forward(const Sizes& s, const Forward<T>& x) {
    const long B = s.batch, Z = s.z, M = s.mlp, Q = 2 * Z, P = 2 * M, rows_per_thread = rows_of_a_thread(B, s.threads);
    if (B == 0) return;
    const int threads = s.threads;
    const Packed<T> z_to_a(x.w_z_PZ, Z, P, 1, Z, threads);
    const Packed<T> a_to_q[] = {{x.w_q_2QM, M, Q, 1, M, threads}, {x.w_q_2QM + Q * M, M, Q, 1, M, threads}};
    const T clip = s.clip, slope = s.slope, bound = s.bound;
#pragma omp parallel for num_threads((B + rows_per_thread - 1) / rows_per_thread) schedule(static, 1)
    for (long first = 0; first < B; first += rows_per_thread) {
        const long rows = std::min(rows_per_thread, B - first);
        for (long t = 0; t < s.steps; ++t) {
            const long row = t * B + first;
            T* a_BP = x.a_TBP + (s.keep ? row : first) * P;
            z_to_a.multiply(rows, x.z_SBZ + row * Z, Z, a_BP, P);
            for (long r = 0; r < rows; ++r) {
                T* a = a_BP + r * P;
                const T* pq = x.pq_TBP + (row + r) * P;
#pragma omp simd
                for (long j = 0; j < P; ++j) {
                    const T sum = a[j] + pq[j];
                    a[j] = clamped(sum > 0 ? sum : sum * slope, clip);
                }
            }
            for (long net = 0; net < 2; ++net) {
                T* q_BQ = x.q_T2BQ + ((2 * t + net) * B + first) * Q;
                const T* b_q = x.b_q_2Q + net * Q;
                a_to_q[net].multiply(rows, a_BP + net * M, P, q_BQ, Q);
                for (long r = 0; r < rows; ++r) {
                    T* q = q_BQ + r * Q;
                    for (long j = 0; j < Q; ++j) q[j] += b_q[j];
                    if (bound > 0)
                        for (long j = 0; j < Q; ++j) q[j] = clamped(q[j], bound);
                }
            }
            for (long r = 0; r < rows; ++r) {
                const T *m = x.q_T2BQ + (2 * t * B + first + r) * Q, *residual = m + B * Q, *logvar = residual + Z;
                const T* eps = x.eps_TBZ + (row + r) * Z;
                T* z = x.z_SBZ + (row + B + r) * Z;
#pragma omp simd
                for (long j = 0; j < Z; ++j) z[j] = m[j] + residual[j] + exponential(logvar[j] / 2) * eps[j];
            }
        }
    }
}

// --- backward --------------------------------------------------------------------------------------------------------

template <class T> struct Backward {
    const T *eps_TBZ, *a_TBP, *q_T2BQ, *w_z_PZ, *w_q_2QM;
    const T *dz_TBZ, *direct_T2BQ;  // the gradients that come from outside
    T *d_TBP, *dq_2TBQ, *dz_BZ;  // of the sums before the activations; of the state, in and out
};

template <class T> void backward(const Sizes& s, const Backward<T>& x) {
    const long B = s.batch, Z = s.z, M = s.mlp, Q = 2 * Z, P = 2 * M, rows_per_thread = rows_of_a_thread(B, s.threads);
    if (B == 0) return;
    const int threads = s.threads;
    const Packed<T> a_to_z(x.w_z_PZ, P, Z, Z, 1, threads);
    const Packed<T> q_to_a[] = {{x.w_q_2QM, Q, M, M, 1, threads}, {x.w_q_2QM + Q * M, Q, M, M, 1, threads}};
    const T clip = s.clip, slope = s.slope, bound = s.bound;
#pragma omp parallel for num_threads((B + rows_per_thread - 1) / rows_per_thread) schedule(static, 1)
    for (long first = 0; first < B; first += rows_per_thread) {
        const long rows = std::min(rows_per_thread, B - first);
        T* dz_BZ = x.dz_BZ + first * Z;
        for (long t = s.steps - 1; t >= 0; --t) {
            const long row = t * B + first;
            for (long j = 0; j < rows * Z; ++j) dz_BZ[j] += x.dz_TBZ[row * Z + j];
            for (long net = 0; net < 2; ++net) {
                T *dq_BQ = x.dq_2TBQ + (net * s.steps * B + row) * Q, *d_BP = x.d_TBP + row * P;
                for (long r = 0; r < rows; ++r) {
                    const long at = ((2 * t + net) * B + first + r) * Q;
                    const T *q = x.q_T2BQ + at, *direct = x.direct_T2BQ + at;
                    const T *eps = x.eps_TBZ + (row + r) * Z, *dz = dz_BZ + r * Z;
                    T* dq = dq_BQ + r * Q;
                    for (long j = 0; j < Z; ++j) dq[j] = direct[j] + dz[j], dq[Z + j] = direct[Z + j];
                    if (net == 1)  // z is drawn with the posterior's variance
#pragma omp simd
                        for (long j = 0; j < Z; ++j) dq[Z + j] += dz[j] * (exponential(q[Z + j] / 2) * eps[j] / 2);
                    if (bound > 0)
                        for (long j = 0; j < Q; ++j) dq[j] = q[j] >= bound || q[j] <= -bound ? T(0) : dq[j];
                }
                q_to_a[net].multiply(rows, dq_BQ, Q, d_BP + net * M, P);
            }
            for (long r = row; r < row + rows; ++r) {
                T* d = x.d_TBP + r * P;
                const T* a = x.a_TBP + r * P;
                for (long j = 0; j < P; ++j) d[j] *= a[j] >= clip || a[j] <= -clip ? T(0) : a[j] > 0 ? T(1) : slope;
            }
            a_to_z.multiply(rows, x.d_TBP + row * P, P, dz_BZ, Z);
        }
    }
}

}  // namespace

extern "C" {
void chain_forward_f32(const Sizes* s, const void* x) { forward(*s, *static_cast<const Forward<float>*>(x)); }
void chain_forward_f64(const Sizes* s, const void* x) { forward(*s, *static_cast<const Forward<double>*>(x)); }
void chain_backward_f32(const Sizes* s, const void* x) { backward(*s, *static_cast<const Backward<float>*>(x)); }
void chain_backward_f64(const Sizes* s, const void* x) { backward(*s, *static_cast<const Backward<double>*>(x)); }
}
