// An LSTM a step at a time, its weights packed once for all steps, for a CPU: see cpp_lstm_step.py.
//
// Threads and products as in recurrence.cpp; a step is a call, so that what comes between steps may be anything.
//
// Shapes: B batch, H hidden, Z latent (may be 0), G = 4 H gates in whichever order. All arrays are dense.

#include <algorithm>
#include <cstdint>

#include "cell.hpp"
#include "products.hpp"

namespace {

template <class T> struct Weights {
    Packed<T> h_to_g, z_to_g;
};

struct Sizes {
    int64_t batch, hidden, z, threads;
    Gates order;
    void* weights;  // of the type of the arrays; packed by `pack`, lent to `step`, gone after `release`
};

template <class T> struct Matrices {  // as cpp_lstm_step.py lists them
    const T *w_h_GH, *w_z_GZ;
};

template <class T> struct Step {
    const T *gx_BG, *z_BZ, *h_BH, *c_BH;
    T *h_next_BH, *c_next_BH;
};

template <class T> void pack(Sizes& s, const Matrices<T>& x) {
    const long H = s.hidden, Z = s.z, G = 4 * H;
    s.weights = new Weights<T>{{x.w_h_GH, H, G, 1, H, int(s.threads)}, {x.w_z_GZ, Z, G, 1, Z, int(s.threads)}};
}

template <class T> void step(const Sizes& s, const Step<T>& x) {
    const long B = s.batch, H = s.hidden, Z = s.z, G = 4 * H, rows_per_thread = rows_of_a_thread(B, s.threads);
    if (B == 0) return;
    const auto& weights = *static_cast<const Weights<T>*>(s.weights);
#pragma omp parallel for num_threads((B + rows_per_thread - 1) / rows_per_thread) schedule(static, 1)
    for (long first = 0; first < B; first += rows_per_thread) {
        const long rows = std::min(rows_per_thread, B - first);
        const Scratch<T> g(rows * G);
        weights.h_to_g.multiply(rows, x.h_BH + first * H, H, g, G);
        weights.z_to_g.multiply(rows, x.z_BZ + first * Z, Z, g, G, true);
        for (long r = 0; r < rows; ++r) {
            const long b = first + r;
            cell(H, s.order, g + r * G, x.gx_BG + b * G, x.c_BH + b * H, g + r * G, x.c_next_BH + b * H,
                 x.h_next_BH + b * H);
        }
    }
}

template <class T> void release(const Sizes& s) { delete static_cast<const Weights<T>*>(s.weights); }

}  // namespace

extern "C" {
void steps_pack_f32(Sizes* s, const void* x) { pack(*s, *static_cast<const Matrices<float>*>(x)); }
void steps_pack_f64(Sizes* s, const void* x) { pack(*s, *static_cast<const Matrices<double>*>(x)); }
void steps_step_f32(const Sizes* s, const void* x) { step(*s, *static_cast<const Step<float>*>(x)); }
void steps_step_f64(const Sizes* s, const void* x) { step(*s, *static_cast<const Step<double>*>(x)); }
void steps_release_f32(const Sizes* s, const void*) { release<float>(*s); }
void steps_release_f64(const Sizes* s, const void*) { release<double>(*s); }
}
