// Small matrix products over packed weights: the one loop that all products of a decoder step go through.
//
// Weights lie in panels of 32 columns, [K / PAIR][32][PAIR], read once from front to back; up to ROWS rows are kept in
// registers meanwhile. Each sum runs over k in order in one accumulator, so a row's numbers do not depend on how many
// rows come with it.

#pragma once
#include "bf16.h"

#include <cstring>
#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

typedef float Vec __attribute__((vector_size(64)));     // 16 numbers
typedef int32_t IntVec __attribute__((vector_size(64)));
constexpr int LANES = 16, PANEL = 32, ROWS = 8;

static inline Vec load(const float* p) {
    Vec v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
static inline void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }

// Numbers in fp32: products are multiply-adds.
struct Fp32 {
    using T = float;
    static constexpr int PAIR = 1;
    static inline float wide(T x) { return x; }
    static inline T narrow(float x) { return x; }
    static inline Vec dot(Vec sum, const T* x, const T* w) { return sum + *x * load(w); }
    static inline Vec widen(const T* p) { return load(p); }
    static inline void narrow(T* p, Vec v) { store(p, v); }
};

// Numbers in bf16, two a product; sums in fp32.
struct Bf16 {
    using T = uint16_t;
    static constexpr int PAIR = 2;
    static inline float wide(T x) { return up(x); }
    static inline T narrow(float x) { return down(x); }
    static inline Vec dot(Vec sum, const T* x, const T* w) {
#if defined(__AVX512BF16__)
        int32_t pair;
        std::memcpy(&pair, x, 4);
        return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(pair), (__m512bh)_mm512_loadu_si512(w));
#else
        IntVec bits;
        std::memcpy(&bits, w, sizeof bits);
        return sum + up(x[0]) * (Vec)(bits << 16) + up(x[1]) * (Vec)(bits & int32_t(0xFFFF0000));
#endif
    }
    static inline Vec widen(const T* p) {
        Vec v;
        for (int i = 0; i < LANES; i++) v[i] = up(p[i]);
        return v;
    }
    static inline void narrow(T* p, Vec v) {
#if defined(__AVX512BF16__)
        __m256bh small = _mm512_cvtneps_pbh((__m512)v);
        std::memcpy(p, &small, sizeof small);
#else
        for (int i = 0; i < LANES; i++) p[i] = down(v[i]);
#endif
    }
};

// a[m], b[m] = x[m] . panel, for M rows at once: the first and the last 16 columns.
template <int M>
struct Sums {
    Vec a[M], b[M];
};

template <class F, int M>
static inline __attribute__((always_inline)) Sums<M> tile(const typename F::T* const* x, const typename F::T* panel,
                                                          Int K) {
    Vec a[M], b[M];  // registers: nothing may hold their address
    const typename F::T* row[M];
#pragma GCC unroll 16
    for (int m = 0; m < M; m++) a[m] = b[m] = Vec{}, row[m] = x[m];
    for (Int k = 0; k < K; k += F::PAIR) {
        const typename F::T* w = panel + k * PANEL;
#pragma GCC unroll 16
        for (int m = 0; m < M; m++) {
            a[m] = F::dot(a[m], row[m] + k, w);
            b[m] = F::dot(b[m], row[m] + k, w + LANES * F::PAIR);
        }
    }
    Sums<M> sums;
#pragma GCC unroll 16
    for (int m = 0; m < M; m++) sums.a[m] = a[m], sums.b[m] = b[m];
    return sums;
}

// out(row, panel, first 16 columns, last 16) for rows 0 .. n of x and panels `from` .. `to`.
template <class F, class Out>
static inline void product(const typename F::T* const* x, Int n, const typename F::T* panels, Int K, Int from, Int to,
                           Out out) {
    for (Int p = from; p < to; p++) {
        const typename F::T* panel = panels + p * K * PANEL;
        Int r = 0;
        auto some = [&]<int M>() {
            Sums<M> sums = tile<F, M>(x + r, panel, K);
            for (int m = 0; m < M; m++) out(r + m, p, sums.a[m], sums.b[m]);
            r += M;
        };
        while (n - r >= ROWS) some.template operator()<ROWS>();
        switch (n - r) {
            case 7: some.template operator()<7>(); break;
            case 6: some.template operator()<6>(); break;
            case 5: some.template operator()<5>(); break;
            case 4: some.template operator()<4>(); break;
            case 3: some.template operator()<3>(); break;
            case 2: some.template operator()<2>(); break;
            case 1: some.template operator()<1>(); break;
        }
    }
}

// e^x, relative error 2e-7.
static inline Vec exp_(Vec x) {
    x = x > 88.0f ? Vec{} + 88.0f : x;
    x = x < -87.0f ? Vec{} - 87.0f : x;
    IntVec n = __builtin_convertvector(x * 1.442695041f + (x < 0.0f ? Vec{} - 0.5f : Vec{} + 0.5f), IntVec);
    Vec whole = __builtin_convertvector(n, Vec);
    Vec r = x - whole * 0.693359375f + whole * 2.12194440e-4f;
    Vec p = Vec{} + 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return p * (Vec)((n + 127) << 23);
}

static inline float sum_of(Vec v) {  // always in this order
    float sum = 0;
    for (int i = 0; i < LANES; i++) sum += v[i];
    return sum;
}
