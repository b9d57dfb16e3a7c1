// Row kernels of a training step on a CPU: what lies between the matrix products, each in one pass over memory.
//
// Activations are bf16, sums fp32. A row belongs to one thread and is summed in a fixed order, so a result depends on
// the number of threads at most (rms_norm_backward's weight gradient), never on timing. The torch expressions beside
// them in reference.py say what each must compute. Plain C interface over pointers: it compiles in a second and needs
// no torch headers. Callers check shapes and labels. Legend as there: T rows, D width, F inner width, K choices, V vocabulary.

#include "bf16.h"

#include <cmath>

// e^x by 2^n * polynomial, relative error 2e-7: plain arithmetic, so that loops around it become vector code.
static inline float exp_(float x) {
    x = x > 88.0f ? 88.0f : x;
    x = x < -87.0f ? -87.0f : x;
    float n = std::nearbyint(x * 1.442695041f);
    float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    int32_t bits = (int32_t(n) + 127) << 23;
    float scale;
    std::memcpy(&scale, &bits, 4);
    return p * scale;
}

static inline float sigmoid(float x) { return 1.0f / (1.0f + exp_(-x)); }

#define ROWS _Pragma("omp parallel for schedule(static) num_threads(threads)")
#define LANES _Pragma("omp simd")

extern "C" {

// y = x / rms(x) * weight; 1 / rms(x) of each row is kept.
void rms_norm(const float* x, const float* weight, float eps, bf16* y, float* rstd, Int T, Int D, int threads) {
    ROWS for (Int t = 0; t < T; t++) {
        const float* row = x + t * D;
        float sum = 0;
        _Pragma("omp simd reduction(+ : sum)") for (Int d = 0; d < D; d++) sum += row[d] * row[d];
        float r = 1.0f / std::sqrt(sum / D + eps);
        rstd[t] = r;
        LANES for (Int d = 0; d < D; d++) y[t * D + d] = down(row[d] * r * weight[d]);
    }
}

// dx, and each thread's share of the weight gradient in dweight[threads, D] (zeroed by the caller).
void rms_norm_backward(const float* x, const float* weight, const float* rstd, const bf16* dy, float* dx,
                       float* dweight, Int T, Int D, int threads) {
    ROWS for (int thread = 0; thread < threads; thread++) {
        float* share = dweight + thread * D;
        for (Int t = T * thread / threads; t < T * (thread + 1) / threads; t++) {
            const float* row = x + t * D;
            const bf16* grad = dy + t * D;
            float r = rstd[t], dot = 0;
            _Pragma("omp simd reduction(+ : dot)") for (Int d = 0; d < D; d++) {
                float g = up(grad[d]), normed = row[d] * r;
                share[d] += g * normed;
                dot += g * weight[d] * normed;
            }
            dot /= D;
            LANES for (Int d = 0; d < D; d++)
                dx[t * D + d] = r * (up(grad[d]) * weight[d] - row[d] * r * dot);
        }
    }
}

// Turn pairs (i, i + C/2) of H heads a row; sign -1 turns back. Rows of x are stride_x apart, of y H * C.
void rotate(const bf16* x, const bf16* cosine, const bf16* sine, bf16* y, float sign, Int T, Int H, Int C,
            Int stride_x, int threads) {
    Int half = C / 2;
    ROWS for (Int t = 0; t < T; t++) {
        const bf16 *c = cosine + t * C, *s = sine + t * C;
        for (Int h = 0; h < H; h++) {
            const bf16* in = x + t * stride_x + h * C;
            bf16* out = y + (t * H + h) * C;
            LANES for (Int i = 0; i < half; i++) {
                float a = up(in[i]), b = up(in[i + half]), co = up(c[i]), si = sign * up(s[i]);
                out[i] = down(a * co - b * si);
                out[i + half] = down(b * co + a * si);
            }
        }
    }
}

// In place: softmax of each row over the keys it may see, zero elsewhere. scores [N, queries * group, keys]; the query
// at position p of sequence n / kv_heads sees keys starts[sequence, p] .. p; columns begin at key `first`.
void visible_softmax(bf16* scores, const Int* starts, Int N, Int queries, Int group, Int keys, Int kv_heads,
                     Int seq, Int lo, Int first, int threads) {
    ROWS for (Int row = 0; row < N * queries * group; row++) {
        Int n = row / (queries * group), position = lo + row / group % queries;
        Int begin = starts[n / kv_heads * seq + position] - first, end = position + 1 - first;
        bf16* p = scores + row * keys;
        float most = -INFINITY, sum = 0;
        _Pragma("omp simd reduction(max : most)") for (Int i = begin; i < end; i++) {
            float value = up(p[i]);
            most = value > most ? value : most;
        }
        _Pragma("omp simd reduction(+ : sum)") for (Int i = begin; i < end; i++) sum += exp_(up(p[i]) - most);
        float scale = 1.0f / sum;
        LANES for (Int i = begin; i < end; i++) p[i] = down(exp_(up(p[i]) - most) * scale);
        if (begin > 0) std::memset(p, 0, begin * sizeof(bf16));
        if (end < keys) std::memset(p + end, 0, (keys - end) * sizeof(bf16));
    }
}

// In place: dp [N, rows, keys] becomes the gradient of the scores, (dp - delta) * p; row r of p and delta as of dp.
void softmax_backward(bf16* dp, const bf16* p, const float* delta, Int N, Int rows, Int keys, Int delta_stride,
                      int threads) {
    ROWS for (Int row = 0; row < N * rows; row++) {
        float d = delta[row / rows * delta_stride + row % rows];
        bf16* out = dp + row * keys;
        const bf16* in = p + row * keys;
        LANES for (Int i = 0; i < keys; i++) out[i] = down((up(out[i]) - d) * up(in[i]));
    }
}

// a = silu(gate) * up * weight, where a row of h is [gate, up].
void swiglu(const bf16* h, const float* weight, bf16* a, Int T, Int F, int threads) {
    ROWS for (Int t = 0; t < T; t++) {
        const bf16 *gate = h + t * 2 * F, *value = gate + F;
        float w = weight[t];
        LANES for (Int f = 0; f < F; f++) {
            float g = up(gate[f]);
            a[t * F + f] = down(g * sigmoid(g) * up(value[f]) * w);
        }
    }
}

// From da, the gradient of a: dh, the gradient of the row's weight, and a itself once more.
void swiglu_backward(const bf16* h, const float* weight, const bf16* da, bf16* a, bf16* dh, float* dweight, Int T,
                     Int F, int threads) {
    ROWS for (Int t = 0; t < T; t++) {
        const bf16 *gate = h + t * 2 * F, *value = gate + F;
        bf16 *dgate = dh + t * 2 * F, *dvalue = dgate + F;
        float w = weight[t], dot = 0;
        _Pragma("omp simd reduction(+ : dot)") for (Int f = 0; f < F; f++) {
            float g = up(gate[f]), u = up(value[f]), d = up(da[t * F + f]);
            float s = sigmoid(g), act = g * s;
            dot += d * act * u;
            a[t * F + f] = down(act * u * w);
            d *= w;
            dvalue[f] = down(d * act);
            dgate[f] = down(d * u * s * (1.0f + g * (1.0f - s)));
        }
        dweight[t] = dot;
    }
}

// out[t] = sum over k of y[place[t, k]].
void sum_rows(const bf16* y, const Int* place, bf16* out, Int T, Int K, Int D, int threads) {
    constexpr Int BLOCK = 64;
    ROWS for (Int t = 0; t < T; t++) {
        for (Int from = 0; from < D; from += BLOCK) {
            float sum[BLOCK] = {};
            Int width = D - from < BLOCK ? D - from : BLOCK;
            for (Int k = 0; k < K; k++) {
                const bf16* row = y + place[t * K + k] * D + from;
                LANES for (Int d = 0; d < width; d++) sum[d] += up(row[d]);
            }
            LANES for (Int d = 0; d < width; d++) out[t * D + from + d] = down(sum[d]);
        }
    }
}

// Logits become d loss / d logits, loss[t] the cross entropy in nats; rows labelled -100 give zeros.
void cross_entropy(bf16* logits, const Int* labels, float* loss, Int T, Int V, int threads) {
    ROWS for (Int t = 0; t < T; t++) {
        bf16* row = logits + t * V;
        Int label = labels[t];
        if (label < 0) {
            std::memset(row, 0, V * sizeof(bf16));
            loss[t] = 0;
            continue;
        }
        float most = -INFINITY, sum = 0, wanted = up(row[label]);
        _Pragma("omp simd reduction(max : most)") for (Int v = 0; v < V; v++) {
            float value = up(row[v]);
            most = value > most ? value : most;
        }
        _Pragma("omp simd reduction(+ : sum)") for (Int v = 0; v < V; v++) sum += exp_(up(row[v]) - most);
        float scale = 1.0f / sum;
        LANES for (Int v = 0; v < V; v++) row[v] = down(exp_(up(row[v]) - most) * scale);
        row[label] = down(exp_(wanted - most) * scale - 1.0f);
        loss[t] = std::log(sum) + most - wanted;
    }
}
}
