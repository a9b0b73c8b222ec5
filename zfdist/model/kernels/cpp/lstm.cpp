// Both sweeps over time of an LSTM whose inputs are projected already, for a CPU: see recurrent/lstm.py.
//
// Threads and products as in recurrence.cpp. Backwards, each row begins with a state of 0 at its own last step, and
// its steps beyond that are 0.
//
// Shapes: T steps, S = T + 1 states, B batch, H hidden, G = 4 H gates in torch's order. All arrays are dense.

#include <algorithm>
#include <cstdint>

#include "cell.hpp"
#include "products.hpp"

namespace {

constexpr Gates TORCH{3, 0, 1, 2};

struct Sizes {
    int64_t steps, batch, hidden, threads, keep, backwards;  // keep: whether a backward sweep will follow
};

template <class T> struct Forward {  // as recurrent/lstm.py lists them; act and c hold one step without `keep`
    const T *gx_TBG, *w_GH;
    const int64_t* lengths_B;
    T *act_TBG, *h_SBH, *c_SBH;
};

template <class T> struct Backward {
    const T *act_TBG, *c_SBH, *w_GH;
    const int64_t* lengths_B;
    const T* dh_TBH;
    T *dg_TBG, *dh_BH, *dc_BH;  // of the pre-activations; of the state, in and out
};

// The steps in the order of reading; and where the states before and after a step are kept.
struct Walk {
    const Sizes& s;
    long step(long n) const { return s.backwards ? s.steps - 1 - n : n; }
    long before(long t) const { return s.backwards ? t + 1 : t; }
    long after(long t) const { return s.backwards ? t : t + 1; }
    bool skips(long t, int64_t length) const { return s.backwards && t >= length; }
};

template <class T> void forward(const Sizes& s, const Forward<T>& x) {
    const long B = s.batch, H = s.hidden, G = 4 * H, rows_per_thread = rows_of_a_thread(B, s.threads);
    if (B == 0) return;
    const Packed<T> h_to_g(x.w_GH, H, G, 1, H, s.threads);
    const Walk walk{s};
#pragma omp parallel for num_threads((B + rows_per_thread - 1) / rows_per_thread) schedule(static, 1)
    for (long first = 0; first < B; first += rows_per_thread) {
        const long rows = std::min(rows_per_thread, B - first);
        const Scratch<T> g(rows * G);
        for (long n = 0; n < s.steps; ++n) {
            const long t = walk.step(n), before = walk.before(t) * B, after = walk.after(t) * B;
            const long c_before = s.keep ? before : 0, c_after = s.keep ? after : 0;
            h_to_g.multiply(rows, x.h_SBH + (before + first) * H, H, g, G);
            for (long b = first; b < first + rows; ++b) {
                T *h = x.h_SBH + (after + b) * H, *c = x.c_SBH + (c_after + b) * H;
                cell(H, TORCH, g + (b - first) * G, x.gx_TBG + (t * B + b) * G, x.c_SBH + (c_before + b) * H,
                     x.act_TBG + ((s.keep ? t * B : 0) + b) * G, c, h);
                if (walk.skips(t, x.lengths_B[b])) std::fill_n(h, H, T(0)), std::fill_n(c, H, T(0));
            }
        }
    }
}

template <class T> void backward(const Sizes& s, const Backward<T>& x) {
    const long B = s.batch, H = s.hidden, G = 4 * H, rows_per_thread = rows_of_a_thread(B, s.threads);
    if (B == 0) return;
    const Packed<T> g_to_h(x.w_GH, G, H, H, 1, s.threads);
    const Walk walk{s};
#pragma omp parallel for num_threads((B + rows_per_thread - 1) / rows_per_thread) schedule(static, 1)
    for (long first = 0; first < B; first += rows_per_thread) {
        const long rows = std::min(rows_per_thread, B - first);
        for (long n = s.steps - 1; n >= 0; --n) {
            const long t = walk.step(n), before = walk.before(t) * B, after = walk.after(t) * B;
            for (long b = first; b < first + rows; ++b) {
                T *dg = x.dg_TBG + (t * B + b) * G, *dc = x.dc_BH + b * H;
                cell_back(H, TORCH, x.act_TBG + (t * B + b) * G, x.c_SBH + (before + b) * H, x.c_SBH + (after + b) * H,
                          x.dh_TBH + (t * B + b) * H, x.dh_BH + b * H, dc, dg);
                if (walk.skips(t, x.lengths_B[b])) std::fill_n(dg, G, T(0)), std::fill_n(dc, H, T(0));
            }
            g_to_h.multiply(rows, x.dg_TBG + (t * B + first) * G, G, x.dh_BH + first * H, H);
        }
    }
}

}  // namespace

extern "C" {
void lstm_forward_f32(const Sizes* s, const void* x) { forward(*s, *static_cast<const Forward<float>*>(x)); }
void lstm_forward_f64(const Sizes* s, const void* x) { forward(*s, *static_cast<const Forward<double>*>(x)); }
void lstm_backward_f32(const Sizes* s, const void* x) { backward(*s, *static_cast<const Backward<float>*>(x)); }
void lstm_backward_f64(const Sizes* s, const void* x) { backward(*s, *static_cast<const Backward<double>*>(x)); }
}
