// Products of a few rows with a weight that many steps use: packed once, and streamed through the cache at each step.
//
// A weight [depth, width] becomes panels of WIDE vectors; a panel is read in blocks of DEPTH rows, and while a block is
// multiplied with all rows of the batch the next one is fetched, so that no product waits for memory.

#pragma once
#include <algorithm>
#include <cstdlib>
#include <memory>

#if defined(__AVX512F__)
constexpr long BYTES = 64, TILE = 8;  // of a vector register; rows of a tile: sums that fit into the registers
#elif defined(__AVX__)
constexpr long BYTES = 32, TILE = 4;
#elif defined(__aarch64__)
constexpr long BYTES = 16, TILE = 8;
#else
constexpr long BYTES = 16, TILE = 4;
#endif
constexpr long WIDE = 3, DEPTH = 512;  // vectors of a panel; rows of a block, of which two fit into the second cache

template <class T> struct Scratch {
    struct Free { void operator()(T* data) const { std::free(data); } };
    std::unique_ptr<T, Free> data;
    explicit Scratch(long count) : data(static_cast<T*>(std::aligned_alloc(64, (count * sizeof(T) + 63) / 64 * 64))) {}
    operator T*() const { return data.get(); }
};

template <class T, int ROWS, int VECTORS>
void tile(const T* in, long ld_in, const T* block, long depth, T* out, long ld_out, long columns, bool add) {
    typedef T Vector __attribute__((vector_size(BYTES)));
    Vector sum[ROWS][VECTORS] = {};
    for (long k = 0; k < depth; ++k) {
        const Vector* w = reinterpret_cast<const Vector*>(block) + k * VECTORS;
#pragma GCC unroll 3
        for (int v = 0; v < VECTORS; ++v) __builtin_prefetch(w + depth * VECTORS + v, 0, 2);
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

// A matrix [depth, width] as panels, the last one narrower and filled up with zeros.
template <class T> class Packed {
    static constexpr long lanes = BYTES / sizeof(T), panel = WIDE * lanes;
    long depth, width;
    Scratch<T> data;

    template <int ROWS, int VECTORS>
    static void rows(long count, const T* in, long ld_in, const T* block, long depth, T* out, long ld_out, long columns,
                     bool add) {
        long r = 0;
        for (; r + ROWS <= count; r += ROWS)
            tile<T, ROWS, VECTORS>(in + r * ld_in, ld_in, block, depth, out + r * ld_out, ld_out, columns, add);
        if constexpr (ROWS > 1)
            if (r < count)
                rows<ROWS / 2, VECTORS>(count - r, in + r * ld_in, ld_in, block, depth, out + r * ld_out, ld_out, columns,
                                        add);
    }

    void pack(const T* weight, long first, long step_k, long step_n) {
        const long columns = std::min(panel, width - first), padded = (columns + lanes - 1) / lanes * lanes;
        T* to = data + first * depth;
        const auto copy = [&](long k, long n) {
            to[k * padded + n] = n < columns ? weight[k * step_k + (first + n) * step_n] : T(0);
        };
        if (step_n == 1)
            for (long k = 0; k < depth; ++k)
                for (long n = 0; n < padded; ++n) copy(k, n);
        else
            for (long k0 = 0; k0 < depth; k0 += lanes)  // so few that what is written stays in the first cache
                for (long n = 0; n < padded; ++n)
                    for (long k = k0; k < std::min(k0 + lanes, depth); ++k) copy(k, n);
    }

public:
    // Element (k, n) is weight[k * step_k + n * step_n].
    Packed(const T* weight, long depth, long width, long step_k, long step_n, int threads)
        : depth(depth), width(width), data((width + lanes - 1) / lanes * lanes * depth) {
#pragma omp parallel for num_threads(threads)
        for (long first = 0; first < width; first += panel) pack(weight, first, step_k, step_n);
    }

    // out = in x matrix, or added to it, for `count` rows.
    void multiply(long count, const T* in, long ld_in, T* out, long ld_out, bool add = false) const {
        for (long first = 0; first < width; first += panel) {
            const long columns = std::min(panel, width - first), vectors = (columns + lanes - 1) / lanes;
            for (long k = 0; k < depth || (k == 0 && !add); k += DEPTH) {  // a product of depth 0 is 0
                const auto product = vectors == 3   ? rows<TILE, 3>
                                     : vectors == 2 ? rows<TILE, 2>
                                                    : rows<TILE, 1>;
                product(count, in + k, ld_in, data + first * depth + k * vectors * lanes, std::min(DEPTH, depth - k),
                        out + first, ld_out, columns, add || k > 0);
            }
        }
    }
};

// Rows of the batch for each thread: as few threads as give each at least half a tile.
inline long rows_of_a_thread(long batch, long threads) {
    const long rows = (batch + threads - 1) / threads;
    return (rows + TILE / 2 - 1) / (TILE / 2) * (TILE / 2);
}
