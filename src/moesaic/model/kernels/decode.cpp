// One step of a decoder on a CPU, all layers in one call: the new rows of many requests over paged keys and values.
//
// The residual stream is fp32; weights, keys, values and what enters products are T, bf16 or fp32. Threads meet at a
// barrier between stages. Every number is computed by one thread in a fixed order that depends on its own row alone:
// results do not depend on the other rows of the step, nor on the number of threads. The torch modules say what each
// stage must compute. Plain C interface: compiles in seconds, no torch headers.
//
// Legend: T rows, D width, H query heads, G key/value heads, C head width, F inner width, K choices, V vocabulary.
// A block holds 16 positions of each key/value head: keys [C / PAIR][16][PAIR], values [16 / PAIR][C][PAIR].

#include "threads.h"
#include "tiles.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <vector>

constexpr Int BLOCK = LANES, HEADS = 4;  // query heads that one task of attention takes

extern "C" {
struct Layer {
    const float *attention_norm, *experts_norm, *q_norm, *k_norm, *b_qkv, *b_out;
    const void *w_qkv, *w_out, *router, *w_up, *w_down;  // packed; w_up has 16 gates, then 16 values a panel
    void *keys, *values;
    Int experts, inner;
};
struct Model {
    Int layers, width, heads, kv_heads, head_width, top_k, vocabulary, window;
    float eps, clip;
    int32_t renormalise, threads;
    const Layer* layer;
    const void *embedding, *head;
    const float *norm, *cosine, *sine;
};
struct Step {
    Int rows, wanted, table_width;
    const int32_t *tokens, *positions, *request, *tables, *wanted_rows;
    float* logits;    // [wanted, vocabulary]
    int32_t* chosen;  // [layers, rows, top_k]
    float* x;         // [rows, D]: the residual stream
    void *normed, *qkv, *attended, *inner;
    float *wide, *weights, *out, *scores;  // scores: [threads, HEADS, 2 * context]
    int32_t* place;
};
}

namespace {

// Rows of each expert, in the order of tokens: place[t * K + k] is the row of that choice, begins[e] the first of e.
void sort_by_expert(const int32_t* chosen, Int choices, Int experts, int32_t* place, std::vector<Int>& begins) {
    begins.assign(experts + 1, 0);
    for (Int i = 0; i < choices; i++) begins[chosen[i] + 1]++;
    for (Int e = 0; e < experts; e++) begins[e + 1] += begins[e];
    std::vector<Int> next(begins.begin(), begins.end() - 1);
    for (Int i = 0; i < choices; i++) place[i] = int32_t(next[chosen[i]]++);
}

template <class F>
class Decoder {
    using T = typename F::T;

  public:
    Decoder(const Model& m, const Step& s) : m(m), s(s), barrier(m.threads) {}

    // The work of one thread, from the embedding to the logits.
    void run(int thread) {
        Range mine = share(s.rows, thread, m.threads);
        for (Int t = mine.from; t < mine.to; t++) {
            const T* row = static_cast<const T*>(m.embedding) + s.tokens[t] * m.width;
            for (Int d = 0; d < m.width; d++) s.x[t * m.width + d] = F::wide(row[d]);
        }
        for (Int l = 0; l < m.layers; l++) {
            const Layer& layer = m.layer[l];
            for (Int t = mine.from; t < mine.to; t++) norm(s.x + t * m.width, layer.attention_norm, normed(t), nullptr);
            barrier.wait();
            project(layer, thread);
            if (thread == 0) task = 0;
            barrier.wait();
            for (Int t = mine.from; t < mine.to; t++) turn_and_keep(layer, t);
            barrier.wait();
            attend_all(layer, thread);
            barrier.wait();
            add_attended(layer, thread);
            barrier.wait();
            for (Int t = mine.from; t < mine.to; t++) {
                norm(s.x + t * m.width, layer.experts_norm, normed(t), s.wide + t * m.width);
                if (layer.router) route(layer, l, t);
            }
            barrier.wait();
            experts(layer, l, thread);
            barrier.wait();
            for (Int t = mine.from; t < mine.to; t++) combine(layer, t);
        }
        barrier.wait();
        Range wanted = share(s.wanted, thread, m.threads);
        for (Int r = wanted.from; r < wanted.to; r++) norm(s.x + s.wanted_rows[r] * m.width, m.norm, attended(r), nullptr);
        barrier.wait();
        head(thread);
    }

  private:
    T* normed(Int t) { return static_cast<T*>(s.normed) + t * m.width; }
    // Whole panels: what is computed past the last column must not be the next row's.
    Int qkv_panels() { return ((m.heads + 2 * m.kv_heads) * m.head_width + PANEL - 1) / PANEL; }
    T* qkv(Int t) { return static_cast<T*>(s.qkv) + t * qkv_panels() * PANEL; }
    // As wide as the wider of all heads and the model: the final norm uses it too.
    T* attended(Int t) { return static_cast<T*>(s.attended) + t * std::max(m.heads * m.head_width, m.width); }
    const T* weights(const void* w) { return static_cast<const T*>(w); }
    T* page(void* pages, Int block, Int head) {
        return static_cast<T*>(pages) + (block * m.kv_heads + head) * BLOCK * m.head_width;
    }

    // y = x / rms(x) * weight, rounded; `wide` takes the rounded numbers in fp32.
    void norm(const float* x, const float* weight, T* y, float* wide) {
        Vec squares{};
        Int D = m.width;
        for (Int d = 0; d < D; d += LANES) squares += load(x + d) * load(x + d);
        float r = 1.0f / std::sqrt(sum_of(squares) / D + m.eps);
        for (Int d = 0; d < D; d += LANES) {
            F::narrow(y + d, load(x + d) * r * load(weight + d));
            if (wide) store(wide + d, F::widen(y + d));
        }
    }

    // Rows of a buffer as products want them.
    const T* const* rows(std::vector<const T*>& pointers, Int n, auto row) {
        pointers.resize(n);
        for (Int i = 0; i < n; i++) pointers[i] = row(i);
        return pointers.data();
    }

    void project(const Layer& layer, int thread) {
        Range panels = share(qkv_panels(), thread, m.threads);
        std::vector<const T*> x;
        auto out = [&](Int t, Int p, Vec a, Vec b) {
            if (layer.b_qkv) {
                a += load(layer.b_qkv + p * PANEL);
                b += load(layer.b_qkv + p * PANEL + LANES);
            }
            if (m.clip > 0) a = clipped(a), b = clipped(b);
            F::narrow(qkv(t) + p * PANEL, a);
            F::narrow(qkv(t) + p * PANEL + LANES, b);
        };
        product<F>(rows(x, s.rows, [&](Int t) { return normed(t); }), s.rows, weights(layer.w_qkv), m.width, panels.from,
                   panels.to, out);
    }

    Vec clipped(Vec v) {
        v = v > m.clip ? Vec{} + m.clip : v;
        return v < -m.clip ? Vec{} - m.clip : v;
    }

    // Rotary positions on queries and keys (pairs i, i + C/2), each head normalised before where the model does; new
    // keys and values go into their block.
    void turn_and_keep(const Layer& layer, Int t) {
        Int C = m.head_width, position = s.positions[t];
        const float *cosine = m.cosine + position * C, *sine = m.sine + position * C;
        float head[1024];
        for (Int h = 0; h < m.heads + m.kv_heads; h++) {
            T* x = qkv(t) + h * C;
            const float* weight = h < m.heads ? layer.q_norm : layer.k_norm;
            float squares = 0;
            for (Int c = 0; c < C; c++) head[c] = F::wide(x[c]), squares += head[c] * head[c];
            if (weight) {
                float r = 1.0f / std::sqrt(squares / C + m.eps);
                for (Int c = 0; c < C; c++) head[c] = F::wide(F::narrow(head[c] * r * weight[c]));
            }
            for (Int c = 0; c < C / 2; c++) {
                x[c] = F::narrow(head[c] * cosine[c] - head[c + C / 2] * sine[c]);
                x[c + C / 2] = F::narrow(head[c + C / 2] * cosine[c + C / 2] + head[c] * sine[c + C / 2]);
            }
        }
        Int block = s.tables[s.request[t] * s.table_width + position / BLOCK], at = position % BLOCK;
        for (Int g = 0; g < m.kv_heads; g++) {
            const T *k = qkv(t) + (m.heads + g) * C, *v = k + m.kv_heads * C;
            T *keys = page(layer.keys, block, g), *values = page(layer.values, block, g);
            for (Int c = 0; c < C; c++) {
                keys[(c / F::PAIR * BLOCK + at) * F::PAIR + c % F::PAIR] = k[c];
                values[(at / F::PAIR * C + c) * F::PAIR + at % F::PAIR] = v[c];
            }
        }
    }

    // A task is one row and up to HEADS query heads that share keys; the next free thread takes it.
    void attend_all(const Layer& layer, int thread) {
        Int group = m.heads / m.kv_heads, parts = (group + HEADS - 1) / HEADS, each = m.kv_heads * parts;
        for (Int i; (i = task.fetch_add(1, std::memory_order_relaxed)) < s.rows * each;) {
            Int t = i / each, g = i % each / parts, first = i % parts * HEADS;
            Int head = g * group + first;
            switch (std::min(HEADS, group - first)) {
                case 4: attend<4>(layer, t, g, head, thread); break;
                case 3: attend<3>(layer, t, g, head, thread); break;
                case 2: attend<2>(layer, t, g, head, thread); break;
                case 1: attend<1>(layer, t, g, head, thread); break;
            }
        }
    }

    template <int N>
    void attend(const Layer& layer, Int t, Int g, Int head, int thread) {
        Int C = m.head_width, end = s.positions[t] + 1, begin = m.window > 0 ? std::max<Int>(0, end - m.window) : 0;
        Int first = begin / BLOCK, last = (end + BLOCK - 1) / BLOCK, span = (last - first) * BLOCK;
        const int32_t* table = s.tables + s.request[t] * s.table_width;
        const T* q = qkv(t) + head * C;
        Int room = s.table_width * BLOCK;
        float* scores = s.scores + thread * HEADS * 2 * room;
        T* p = reinterpret_cast<T*>(scores + HEADS * room);
        float scale = 1.0f / std::sqrt(float(C));
        Vec most[N];
        for (int n = 0; n < N; n++) most[n] = Vec{} - INFINITY;
        IntVec lane;
        for (int i = 0; i < LANES; i++) lane[i] = i;
        for (Int b = first; b < last; b++) {
            const T* keys = page(layer.keys, table[b], g);
            Vec sums[N];
            for (int n = 0; n < N; n++) sums[n] = Vec{};
            for (Int c = 0; c < C; c += F::PAIR)
#pragma GCC unroll 4
                for (int n = 0; n < N; n++) sums[n] = F::dot(sums[n], q + n * C + c, keys + c * BLOCK);
            IntVec at = lane + int32_t(b * BLOCK);
            for (int n = 0; n < N; n++) {
                Vec score = sums[n] * scale;
                score = at < int32_t(end) ? score : Vec{} - INFINITY;
                score = at >= int32_t(begin) ? score : Vec{} - INFINITY;
                most[n] = score > most[n] ? score : most[n];
                store(scores + n * room + (b - first) * BLOCK, score);
            }
        }
        float total[N];
        for (int n = 0; n < N; n++) {
            float top = most[n][0];
            for (int i = 1; i < LANES; i++) top = most[n][i] > top ? most[n][i] : top;
            Vec sum{};
            for (Int i = 0; i < span; i += LANES) {
                Vec score = load(scores + n * room + i);
                Vec weight = score > -INFINITY ? exp_(score - top) : Vec{};
                F::narrow(p + n * room + i, weight);
                sum += weight;
            }
            total[n] = sum_of(sum);
        }
        T* out = attended(t) + head * C;
        for (Int c = 0; c < C; c += LANES) {
            Vec sums[N];
            for (int n = 0; n < N; n++) sums[n] = Vec{};
            for (Int b = first; b < last; b++) {
                const T* values = page(layer.values, table[b], g) + c * F::PAIR;
                for (Int j = 0; j < BLOCK; j += F::PAIR)
#pragma GCC unroll 4
                    for (int n = 0; n < N; n++)
                        sums[n] = F::dot(sums[n], p + n * room + (b - first) * BLOCK + j, values + j * C);
            }
            for (int n = 0; n < N; n++) F::narrow(out + n * C + c, sums[n] / total[n]);
        }
    }

    void add_attended(const Layer& layer, int thread) {
        Range panels = share(m.width / PANEL, thread, m.threads);
        std::vector<const T*> x;
        auto out = [&](Int t, Int p, Vec a, Vec b) {
            float* to = s.x + t * m.width + p * PANEL;
            if (layer.b_out) {
                a += load(layer.b_out + p * PANEL);
                b += load(layer.b_out + p * PANEL + LANES);
            }
            store(to, load(to) + a);
            store(to + LANES, load(to + LANES) + b);
        };
        product<F>(rows(x, s.rows, [&](Int t) { return attended(t); }), s.rows, weights(layer.w_out),
                   m.heads * m.head_width, panels.from, panels.to, out);
    }

    // Softmax over experts in fp32, the k largest (the first of equals), renormalised where the model does.
    void route(const Layer& layer, Int l, Int t) {
        float p[1024 + PANEL];
        const float* x = s.wide + t * m.width;
        product<Fp32>(&x, 1, static_cast<const float*>(layer.router), m.width, 0, (layer.experts + PANEL - 1) / PANEL,
                      [&](Int, Int panel, Vec a, Vec b) {
                          store(p + panel * PANEL, a);
                          store(p + panel * PANEL + LANES, b);
                      });
        float most = p[0], sum = 0, kept = 0;
        for (Int e = 1; e < layer.experts; e++) most = p[e] > most ? p[e] : most;
        for (Int e = 0; e < layer.experts; e++) sum += p[e] = std::exp(p[e] - most);
        int32_t* chosen = s.chosen + (l * s.rows + t) * m.top_k;
        float* weight = s.weights + t * m.top_k;
        for (Int k = 0; k < m.top_k; k++) {
            Int best = 0;
            for (Int e = 1; e < layer.experts; e++) best = p[e] > p[best] ? e : best;
            chosen[k] = int32_t(best);
            kept += weight[k] = p[best] / sum;
            p[best] = -1;
        }
        if (m.renormalise)
            for (Int k = 0; k < m.top_k; k++) weight[k] /= kept;
    }

    // Every thread takes its share of the panels of every expert that has rows.
    void experts(const Layer& layer, Int l, int thread) {
        Int K = layer.router ? m.top_k : 1, D = m.width, inner = layer.inner;
        std::vector<Int> begins{0, s.rows};
        std::vector<int32_t> place;  // each thread sorts for itself: cheaper than another barrier
        std::vector<Int> source(s.rows * K);
        if (layer.router) {
            place.resize(s.rows * K);
            sort_by_expert(s.chosen + l * s.rows * K, s.rows * K, layer.experts, place.data(), begins);
            for (Int i = 0; i < s.rows * K; i++) source[place[i]] = i;
            if (thread == 0) std::copy(place.begin(), place.end(), s.place);
        } else {
            for (Int i = 0; i < s.rows; i++) source[i] = i;
        }
        T* hidden = static_cast<T*>(s.inner);
        std::vector<const T*> x;
        for (Int e = 0; e < layer.experts; e++) {
            Int from = begins[e], n = begins[e + 1] - from;
            if (!n) continue;
            Range panels = share(inner / LANES, thread, m.threads);
            auto out = [&](Int r, Int p, Vec gate, Vec value) {
                Vec act = gate / (1.0f + exp_(-gate)) * value;
                if (layer.router) act *= s.weights[source[from + r]];
                F::narrow(hidden + (from + r) * inner + p * LANES, act);
            };
            product<F>(rows(x, n, [&](Int r) { return normed(source[from + r] / K); }), n,
                       weights(layer.w_up) + e * 2 * inner * D, D, panels.from, panels.to, out);
        }
        barrier.wait();
        for (Int e = 0; e < layer.experts; e++) {
            Int from = begins[e], n = begins[e + 1] - from;
            if (!n) continue;
            Range panels = share(D / PANEL, thread, m.threads);
            auto out = [&](Int r, Int p, Vec a, Vec b) {
                store(s.out + (from + r) * D + p * PANEL, a);
                store(s.out + (from + r) * D + p * PANEL + LANES, b);
            };
            product<F>(rows(x, n, [&](Int r) { return hidden + (from + r) * inner; }), n,
                       weights(layer.w_down) + e * D * inner, inner, panels.from, panels.to, out);
        }
    }

    // x += the outputs of a row's experts, in the order of its choices.
    void combine(const Layer& layer, Int t) {
        Int K = layer.router ? m.top_k : 1;
        float* x = s.x + t * m.width;
        for (Int k = 0; k < K; k++) {
            const float* y = s.out + (layer.router ? s.place[t * K + k] : t) * m.width;
            for (Int d = 0; d < m.width; d += LANES) store(x + d, load(x + d) + load(y + d));
        }
    }

    void head(int thread) {
        Range panels = share((m.vocabulary + PANEL - 1) / PANEL, thread, m.threads);
        std::vector<const T*> x;
        auto out = [&](Int r, Int p, Vec a, Vec b) {
            float* to = s.logits + r * m.vocabulary + p * PANEL;
            Int room = m.vocabulary - p * PANEL;
            if (room >= PANEL) {
                store(to, a);
                store(to + LANES, b);
            } else {
                for (Int i = 0; i < room; i++) to[i] = i < LANES ? a[i] : b[i - LANES];
            }
        };
        product<F>(rows(x, s.wanted, [&](Int r) { return attended(r); }), s.wanted, weights(m.head), m.width,
                   panels.from, panels.to, out);
    }

    const Model& m;
    const Step& s;
    Barrier barrier;
    std::atomic<Int> task{0};
};

template <class F>
void step(const Model& model, const Step& s) {
    Decoder<F> decoder(model, s);
#pragma omp parallel for schedule(static, 1) num_threads(model.threads)
    for (int thread = 0; thread < model.threads; thread++) {
        stay_apart(thread, model.threads);
        decoder.run(thread);
    }
}

// Panels of the rows of w [*, K] that `rows` names, 32 a panel; -1 is a row of zeros.
template <class F>
void pack(const typename F::T* w, const Int* rows, Int panels, Int K, typename F::T* out, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (Int p = 0; p < panels; p++)
        for (Int k = 0; k < K; k += F::PAIR)
            for (Int column = 0; column < PANEL; column++)
                for (Int i = 0; i < F::PAIR; i++) {
                    Int row = rows[p * PANEL + column];
                    out[p * PANEL * K + k * PANEL + column * F::PAIR + i] = row < 0 ? 0 : w[row * K + k + i];
                }
}

}  // namespace

extern "C" {
void pack_bf16(const void* w, const Int* rows, Int panels, Int K, void* out, int threads) {
    pack<Bf16>(static_cast<const uint16_t*>(w), rows, panels, K, static_cast<uint16_t*>(out), threads);
}
void pack_fp32(const void* w, const Int* rows, Int panels, Int K, void* out, int threads) {
    pack<Fp32>(static_cast<const float*>(w), rows, panels, K, static_cast<float*>(out), threads);
}
void step_bf16(const Model* model, const Step* s) { step<Bf16>(*model, *s); }
void step_fp32(const Model* model, const Step* s) { step<Fp32>(*model, *s); }
}
