// One step of an LSTM on a row of pre-activations, forward and backward; formulas and letters of lstm_cell.py.

#pragma once
#include "functions.hpp"

struct Gates { long o, i, f, u; };  // their places in a row

template <class T>
void cell(long H, Gates at, const T* g, const T* gx, const T* c, T* act, T* c_next, T* h) {
#pragma omp simd
    for (long j = 0; j < H; ++j) {
        const long oj = at.o * H + j, ij = at.i * H + j, fj = at.f * H + j, uj = at.u * H + j;
        const T o = sigmoid(g[oj] + gx[oj]), i = sigmoid(g[ij] + gx[ij]);
        const T f = sigmoid(g[fj] + gx[fj]), u = hyperbolic_tangent(g[uj] + gx[uj]);
        act[oj] = o, act[ij] = i, act[fj] = f, act[uj] = u;
        c_next[j] = f * c[j] + i * u;
        h[j] = o * hyperbolic_tangent(c_next[j]);
    }
}

// The gradient of the pre-activations, and of c in place; that of h comes directly and from the step after.
template <class T>
void cell_back(long H, Gates at, const T* act, const T* c, const T* c_next, const T* direct, const T* dh, T* dc, T* dg) {
#pragma omp simd
    for (long j = 0; j < H; ++j) {
        const long oj = at.o * H + j, ij = at.i * H + j, fj = at.f * H + j, uj = at.u * H + j;
        const T o = act[oj], i = act[ij], f = act[fj], u = act[uj];
        const T tanh_c = hyperbolic_tangent(c_next[j]), dh_all = dh[j] + direct[j];
        const T dc_all = dc[j] + dh_all * o * (1 - tanh_c * tanh_c);
        dg[oj] = dh_all * tanh_c * o * (1 - o);
        dg[ij] = dc_all * u * i * (1 - i);
        dg[fj] = dc_all * c[j] * f * (1 - f);
        dg[uj] = dc_all * i * (1 - u * u);
        dc[j] = dc_all * f;
    }
}
