// log N(value; mean, std) of rows, and its derivatives to the numbers that a net gives for them, in one pass.
//
// Shapes: N rows (time and batch), D values of a row, and 2 D numbers: m, then r.

#include "functions.hpp"

namespace {

struct Gaussian {  // as cpp_gaussian.py lists it
    int64_t rows, values, threads, squash;
    double floor, bound;
};

// An observation: mean = m, std = floor + exp(r).
template <class T> T observation(long D, T floor, const T* m, const T* x, T* dm) {
    const T *r = m + D;
    T *dr = dm + D, sum = 0;
#pragma omp simd reduction(+ : sum)
    for (long j = 0; j < D; ++j) {
        const T rise = exponential(r[j]), inverse = 1 / (floor + rise), scaled = (x[j] - m[j]) * inverse;
        sum += scaled * scaled / 2 + logarithm(floor + rise);
        dm[j] = scaled * inverse;
        dr[j] = (scaled * scaled - 1) * (inverse * rise);
    }
    return sum;
}

// A latent net's: mean = m or tanh(m), std = exp(r / 2), with m and r clamped to [-bound, bound] first.
template <bool SQUASH, class T> T latent(long D, T bound, const T* m, const T* x, T* dm) {
    const T *r = m + D;
    T *dr = dm + D, sum = 0;
#pragma omp simd reduction(+ : sum)
    for (long j = 0; j < D; ++j) {
        const T inner = clamped(m[j], bound), mean = SQUASH ? hyperbolic_tangent(inner) : inner;
        const T log_std = clamped(r[j], bound) / 2, inverse = exponential(-log_std), scaled = (x[j] - mean) * inverse;
        sum += scaled * scaled / 2 + log_std;
        dm[j] = m[j] == inner ? scaled * inverse * (SQUASH ? 1 - mean * mean : T(1)) : T(0);
        dr[j] = r[j] == 2 * log_std ? (scaled * scaled - 1) / 2 : T(0);
    }
    return sum;
}

template <class T> struct Arrays {  // as zfdist/model/kernels/cpp_gaussian.py lists them
    const T *numbers_N2D, *value_ND;
    T *log_prob_N, *slope_N2D;
};

template <class T> void gaussian(const Gaussian& g, const Arrays<T>& x) {
    const long D = g.values;
    const T half_log_2pi = T(0.91893853320467274178);
#pragma omp parallel for num_threads(g.threads)
    for (long n = 0; n < g.rows; ++n) {
        const T *numbers = x.numbers_N2D + n * 2 * D, *value = x.value_ND + n * D;
        T* slope = x.slope_N2D + n * 2 * D;
        const T sum = g.floor > 0 ? observation<T>(D, g.floor, numbers, value, slope)
                      : g.squash  ? latent<true, T>(D, g.bound, numbers, value, slope)
                                  : latent<false, T>(D, g.bound, numbers, value, slope);
        x.log_prob_N[n] = -(sum + D * half_log_2pi);
    }
}

}  // namespace

extern "C" {
void gaussian_f32(const Gaussian* g, const void* x) { gaussian(*g, *static_cast<const Arrays<float>*>(x)); }
void gaussian_f64(const Gaussian* g, const void* x) { gaussian(*g, *static_cast<const Arrays<double>*>(x)); }
}
