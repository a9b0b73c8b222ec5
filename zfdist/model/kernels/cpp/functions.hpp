// exp, log, sigmoid and tanh in the accuracy of T, without branches, so that a compiler can make vectors of loops over them.

#pragma once
#include <cstdint>
#include <cstring>

template <class T> struct Real;
template <> struct Real<float> {
    using Int = int32_t;
    static constexpr int degree = 7, odd_terms = 5, bias = 127, fraction = 23;
    static constexpr float most = 88.0f, round = 12582912.0f, ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
};
template <> struct Real<double> {
    using Int = int64_t;
    static constexpr int degree = 13, odd_terms = 11, bias = 1023, fraction = 52;
    static constexpr double most = 708.0, round = 6755399441055744.0, ln2_high = 6.93145751953125e-1,
                            ln2_low = 1.42860682030941723212e-6;
};

// Taylor's series after halving; saturates where T would overflow. NaN stays NaN.
template <class T> inline T exponential(T x) {
    using R = Real<T>;
    x = x > R::most ? R::most : x < 1 - R::most ? 1 - R::most : x;
    const T n = (x * T(1.44269504088896340736) + R::round) - R::round;
    const T rest = (x - n * R::ln2_high) - n * R::ln2_low;
    T sum = 1;
#pragma GCC unroll 16
    for (int k = R::degree; k > 0; --k) sum = sum * (rest * (T(1) / T(k))) + 1;
    const typename R::Int power = (static_cast<typename R::Int>(n) + R::bias) << R::fraction;
    T scale;
    std::memcpy(&scale, &power, sizeof(T));
    return sum * scale;
}

template <class T> inline T sigmoid(T x) { return 1 / (1 + exponential(-x)); }

// Near 0 the rational function of the Cephes library (S. L. Moshier), which keeps the digits of a small x.
template <class T> inline T hyperbolic_tangent(T x) {
    const T square = x * x, size = x < 0 ? -x : x;
    const T above = (T(-9.64399179425052238628e-1) * square - T(9.92877231001918586564e1)) * square
                    - T(1.61468768441708447952e3);
    const T below = ((square + T(1.12811678491632931402e2)) * square + T(2.23548839060100448583e3)) * square
                    + T(4.84406305325125486048e3);
    const T far = 1 - 2 / (exponential(2 * size) + 1);
    const T near = x + x * square * (above / below);
    return size < T(0.625) ? near : x < 0 ? -far : far;
}

template <class T> inline T clamped(T x, T bound) { return x > bound ? bound : x < -bound ? -bound : x; }

// Natural logarithm of a positive normal number: its power of two, and an odd series in (m - 1) / (m + 1).
template <class T> inline T logarithm(T x) {
    using R = Real<T>;
    using Int = typename R::Int;
    Int bits;
    std::memcpy(&bits, &x, sizeof(T));
    // Counted from sqrt(1/2), so that the rest m lies in [sqrt(1/2), sqrt(2)) and 1 itself is exact.
    const T half = T(0.70710678118654752440);
    Int low;
    std::memcpy(&low, &half, sizeof(T));
    const Int power = (bits - low) >> R::fraction;
    const Int rest = bits - (power << R::fraction);
    T m;
    std::memcpy(&m, &rest, sizeof(T));
    const T r = (m - 1) / (m + 1), square = r * r;
    T sum = 0;
#pragma GCC unroll 16
    for (int k = R::odd_terms; k > 0; --k) sum = (sum + T(1) / T(2 * k + 1)) * square;
    return T(power) * R::ln2_high + (2 * r + (2 * r * sum + T(power) * R::ln2_low));
}
