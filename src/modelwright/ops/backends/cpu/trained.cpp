// Attention whose gradients are wanted: forward, and back with the weights computed once more, of fp32 or bf16.
//
// The queries of a head are taken 60 at a time and its keys 512, so that no scores are kept but a block's. The running
// softmax is that of Milakov & Gimelshein (arXiv:1805.02867), the way back that of Dao et al. (arXiv:2205.14135), both
// in powers of two. Every key-value head is one thread's, with all queries that share it, so that sums have one order.

#include <cmath>

#include "panels.h"

#if defined(__AVX512F__)
namespace {

constexpr int64_t QUERIES = 5 * MOST_ROWS;
constexpr int64_t KEYS = 512;
constexpr int64_t ROW = KEYS + LANES;  // floats or bf16 of a row of scores: no power of two, which caches dislike

template <typename T>
T* of(const Tokens& x, int64_t batch, int64_t head, int64_t token) {
    return const_cast<T*>(static_cast<const T*>(x.data)) + batch * x.batch + head * x.head + token * x.token;
}

// The first `some` floats of a vector.
inline __mmask16 first_lanes(int64_t some) { return some >= LANES ? 0xFFFF : (1u << std::max<int64_t>(some, 0)) - 1; }

inline void put(float* at, __m512 x) { _mm512_storeu_ps(at, x); }
inline void put(bf16* at, __m512 x) { store(at, floats(x)); }

// A block of queries of one head, and of the keys they may see.
struct Block {
    const Trained& all;
    int64_t batch, head, token, rows, key, keys;

    // Which of 16 keys from `column` on query `row` sees.
    __mmask16 seen(int64_t row, int64_t column) const {
        int64_t some = keys - column;
        if (all.causal) some = std::min(some, token + row + 1 - key - column);
        const __mmask16 mask = first_lanes(some);
        if (!all.mask || !mask) return mask;
        const uint8_t* at = all.mask + batch * all.mask_batch + head * all.mask_head + (token + row) * all.mask_query +
                            key + column;
        uint8_t bytes[LANES] = {};
        std::memcpy(bytes, at, std::min<int64_t>(LANES, keys - column));
        const __m128i loaded = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes));
        return mask & _mm512_cmpneq_epi32_mask(_mm512_cvtepu8_epi32(loaded), _mm512_setzero_si512());
    }
};

// act(block) for the blocks of keys that some of the `rows` queries from `token` on see.
template <typename Act>
void by_keys(const Trained& all, int64_t batch, int64_t head, int64_t token, int64_t rows, Act act) {
    const int64_t seen = all.causal ? std::min(all.keys, token + rows) : all.keys;
    for (int64_t key = 0; key < seen; key += KEYS)
        act(Block{all, batch, head, token, rows, key, std::min(KEYS, seen - key)});
}

template <typename T>
Lanes queries_of(const Tokens& x, int64_t batch, int64_t head, int64_t token) {
    return {reinterpret_cast<const float*>(of<T>(x, batch, head, token)), x.token / IN_A_LANE<T>, 1};
}

template <typename T>
Side<T> rows_of(const Tokens& x, int64_t batch, int64_t head, int64_t token = 0) {
    return {of<T>(x, batch, head, token), x.token, false};
}
template <typename T>
Side<T> columns_of(const Tokens& x, int64_t batch, int64_t head, int64_t token = 0) {
    return {of<T>(x, batch, head, token), x.token, true};
}

template <typename T>
class Forward {
    const Trained& all;
    Panels keys, values;
    Scratch room_of_scores, room_of_weights, room_of_sums;

    // Scores become weights, of which each row's largest is 1 so far; what was summed before shrinks to that scale.
    void weigh(const Block& block, float* scores, T* weights, float* largest, float* total, float* sums,
               int64_t width) const {
        for (int64_t r = 0; r < block.rows; r++) {
            float* row = scores + r * ROW;
            __m512 most = _mm512_set1_ps(NEVER);
            for (int64_t c = 0; c < block.keys; c += LANES) {
                const __m512 own = _mm512_mul_ps(_mm512_loadu_ps(row + c), _mm512_set1_ps(all.scale2));
                const __m512 score = _mm512_mask_blend_ps(block.seen(r, c), _mm512_set1_ps(NEVER), own);
                _mm512_storeu_ps(row + c, score);
                most = _mm512_max_ps(most, score);
            }
            const float now = std::max(largest[r], _mm512_reduce_max_ps(most));
            __m512 sum = _mm512_setzero_ps();
            for (int64_t c = 0; c < up_to(block.keys, LANES); c += LANES) {
                const __m512 score = _mm512_loadu_ps(row + c);
                const __mmask16 seen = _mm512_cmp_ps_mask(score, _mm512_set1_ps(NEVER), _CMP_NEQ_UQ);
                const __m512 power = raw(exp2_negative(floats(_mm512_sub_ps(score, _mm512_set1_ps(now)))));
                const __m512 weight = _mm512_maskz_mov_ps(seen, power);
                sum = _mm512_add_ps(sum, weight);
                put(weights + r * ROW + c, weight);
            }
            if (now != largest[r]) {
                const float kept = largest[r] == NEVER ? 0.0f : std::exp2(largest[r] - now);
                total[r] *= kept;
                for (int64_t c = 0; c < width; c += LANES)
                    store(sums + r * width + c, load(sums + r * width + c) * splat(kept));
                largest[r] = now;
            }
            total[r] += _mm512_reduce_add_ps(sum);
        }
    }

    void attend(int64_t batch, int64_t head, int64_t token) {
        const int64_t rows = std::min(QUERIES, all.tokens - token), width = up_to(all.v_width, PANEL);
        float largest[QUERIES], total[QUERIES] = {};
        std::fill_n(largest, rows, NEVER);
        float* sums = room_of_sums.of(QUERIES * width);
        std::fill_n(sums, rows * width, 0.0f);
        float* scores = room_of_scores.of(QUERIES * ROW);
        T* weights = reinterpret_cast<T*>(room_of_weights.of(QUERIES * ROW));
        by_keys(all, batch, head, token, rows, [&](const Block& block) {
            multiply<T>(queries_of<T>(all.q, batch, head, token), rows, keys, block.key, block.key + block.keys, 0,
                        keys.lanes, Sums<float>{scores, ROW, false});
            weigh(block, scores, weights, largest, total, sums, width);
            const Lanes a{reinterpret_cast<const float*>(weights), ROW / IN_A_LANE<T>, 1};
            multiply<T>(a, rows, values, 0, all.v_width, block.key / IN_A_LANE<T>, lanes_for<T>(block.keys),
                        Sums<float>{sums, width, true});
        });
        for (int64_t r = 0; r < rows; r++) {
            T* out = of<T>(all.out, batch, head, token + r);
            const float part = total[r] == 0.0f ? 0.0f : 1.0f / total[r];  // of a query that sees nothing it is 0
            for (int64_t c = 0; c < all.v_width; c++) store(out + c, sums[r * width + c] * part);
            all.sums[(batch * all.heads + head) * all.tokens + token + r] =
                total[r] == 0.0f ? -NEVER : largest[r] + std::log2(total[r]);
        }
    }

public:
    explicit Forward(const Trained& all) : all(all) {}

    void of_head(int64_t batch, int64_t kv_head) {
        keys.take(rows_of<T>(all.k, batch, kv_head), all.keys, all.k_width);
        values.take(columns_of<T>(all.v, batch, kv_head), all.v_width, all.keys);
        const int64_t group = all.heads / all.kv_heads;
        for (int64_t head = kv_head * group; head < (kv_head + 1) * group; head++)
            for (int64_t token = 0; token < all.tokens; token += QUERIES) attend(batch, head, token);
    }
};

template <typename T>
class Backward {
    const Trained& all;
    Panels keys, values, key_columns, query_columns, gradient_columns;
    Scratch room_of_scores, room_of_slopes, room_of_weights, room_of_turned, of_q, of_k, of_v;
    Scratch weights_by_key, slopes_by_key;

    // The weights of a block, and the gradients of its scores.
    void slopes_of(const Block& block, const float* scores, const float* gradients, const float* products, T* weights,
                   T* slopes) const {
        const float* sums = all.sums + (block.batch * all.heads + block.head) * all.tokens + block.token;
        for (int64_t r = 0; r < block.rows; r++)
            for (int64_t c = 0; c < up_to(block.keys, LANES); c += LANES) {
                const __mmask16 seen = block.seen(r, c);
                const __m512 score = _mm512_maskz_loadu_ps(seen, scores + r * ROW + c);
                const __m512 power = _mm512_fmsub_ps(score, _mm512_set1_ps(all.scale2), _mm512_set1_ps(sums[r]));
                const __m512 weight = _mm512_maskz_mov_ps(seen, raw(exp2_negative(floats(power))));
                const __m512 gradient = _mm512_maskz_loadu_ps(seen, gradients + r * ROW + c);
                const __m512 apart = _mm512_sub_ps(gradient, _mm512_set1_ps(products[r]));
                put(weights + r * ROW + c, weight);
                put(slopes + r * ROW + c,
                    _mm512_maskz_mov_ps(seen, _mm512_mul_ps(_mm512_mul_ps(weight, apart), _mm512_set1_ps(all.scale))));
            }
    }

    void go_back(int64_t batch, int64_t head, int64_t token, float* of_keys, float* of_values) {
        const int64_t rows = std::min(QUERIES, all.tokens - token);
        const int64_t k_room = up_to(all.k_width, PANEL), v_room = up_to(all.v_width, PANEL);
        query_columns.take(columns_of<T>(all.q, batch, head, token), all.k_width, rows);
        gradient_columns.take(columns_of<T>(all.gradient, batch, head, token), all.v_width, rows);
        float products[QUERIES];  // of the result and its gradient
        for (int64_t r = 0; r < rows; r++) {
            const T *out = of<T>(all.out, batch, head, token + r), *gradient = of<T>(all.gradient, batch, head, token + r);
            Floats sum{};
            for (int64_t c = 0; c < all.v_width; c += LANES)
                sum += load_some(out + c, std::min<int64_t>(LANES, all.v_width - c)) *
                       load_some(gradient + c, std::min<int64_t>(LANES, all.v_width - c));
            products[r] = ::sum(sum);
        }
        float* of_queries = of_q.of(QUERIES * k_room);
        std::fill_n(of_queries, rows * k_room, 0.0f);
        float *scores = room_of_scores.of(QUERIES * ROW), *gradients = room_of_slopes.of(QUERIES * ROW);
        T* weights = reinterpret_cast<T*>(room_of_weights.of(2 * QUERIES * ROW));
        T* slopes = weights + QUERIES * ROW;
        by_keys(all, batch, head, token, rows, [&](const Block& block) {
            const int64_t last = block.key + block.keys, whole = up_to(block.keys, IN_A_LANE<T>);
            multiply<T>(queries_of<T>(all.q, batch, head, token), rows, keys, block.key, last, 0, keys.lanes,
                        Sums<float>{scores, ROW, false});
            multiply<T>(queries_of<T>(all.gradient, batch, head, token), rows, values, block.key, last, 0, values.lanes,
                        Sums<float>{gradients, ROW, false});
            slopes_of(block, scores, gradients, products, weights, slopes);
            const Lanes a{reinterpret_cast<const float*>(slopes), ROW / IN_A_LANE<T>, 1};
            multiply<T>(a, rows, key_columns, 0, all.k_width, block.key / IN_A_LANE<T>, lanes_for<T>(whole),
                        Sums<float>{of_queries, k_room, true});
            const Lanes by_weight = lanes_of(Side<T>{weights, ROW, true}, block.keys, rows, weights_by_key);
            multiply<T>(by_weight, block.keys, gradient_columns, 0, all.v_width, 0, gradient_columns.lanes,
                        Sums<float>{of_values + block.key * v_room, v_room, true});
            const Lanes by_slope = lanes_of(Side<T>{slopes, ROW, true}, block.keys, rows, slopes_by_key);
            multiply<T>(by_slope, block.keys, query_columns, 0, all.k_width, 0, query_columns.lanes,
                        Sums<float>{of_keys + block.key * k_room, k_room, true});
        });
        write(of_queries, rows, k_room, all.k_width, all.of_q, batch, head, token);
    }

    static void write(const float* from, int64_t rows, int64_t room, int64_t width, const Tokens& to, int64_t batch,
                      int64_t head, int64_t token) {
        for (int64_t r = 0; r < rows; r++) {
            T* out = of<T>(to, batch, head, token + r);
            for (int64_t c = 0; c < width; c++) store(out + c, from[r * room + c]);
        }
    }

public:
    explicit Backward(const Trained& all) : all(all) {}

    void of_head(int64_t batch, int64_t kv_head) {
        const int64_t k_room = up_to(all.k_width, PANEL), v_room = up_to(all.v_width, PANEL);
        keys.take(rows_of<T>(all.k, batch, kv_head), all.keys, all.k_width);
        values.take(rows_of<T>(all.v, batch, kv_head), all.keys, all.v_width);
        key_columns.take(columns_of<T>(all.k, batch, kv_head), all.k_width, all.keys);
        float *of_keys = of_k.of(all.keys * k_room), *of_values = of_v.of(all.keys * v_room);
        std::fill_n(of_keys, all.keys * k_room, 0.0f);
        std::fill_n(of_values, all.keys * v_room, 0.0f);
        const int64_t group = all.heads / all.kv_heads;
        for (int64_t head = kv_head * group; head < (kv_head + 1) * group; head++)
            for (int64_t token = 0; token < all.tokens; token += QUERIES) go_back(batch, head, token, of_keys, of_values);
        write(of_keys, all.keys, k_room, all.k_width, all.of_k, batch, kv_head, 0);
        write(of_values, all.keys, v_room, all.v_width, all.of_v, batch, kv_head, 0);
    }
};

template <typename Way>
void by_heads(const Trained& all, int threads) {
#pragma omp parallel num_threads(threads)
    {
        Way way(all);
#pragma omp for schedule(dynamic)
        for (int64_t one = 0; one < all.batch * all.kv_heads; one++) way.of_head(one / all.kv_heads, one % all.kv_heads);
    }
}

template <template <typename> class Way>
void in_type(const Trained& all, bool halves, int threads) {
#if HAS_BF16_DOTS
    if (halves) return by_heads<Way<bf16>>(all, threads);
#endif
    by_heads<Way<float>>(all, threads);
}

}  // namespace
#endif

extern "C" {

int32_t serves_training() { return REGISTER == LANES; }

#if defined(__AVX512F__)
void attend_forward(const Trained* all, int32_t halves, int32_t threads) { in_type<Forward>(*all, halves, threads); }
void attend_backward(const Trained* all, int32_t halves, int32_t threads) { in_type<Backward>(*all, halves, threads); }
#else
void attend_forward(const Trained*, int32_t, int32_t) {}
void attend_backward(const Trained*, int32_t, int32_t) {}
#endif
}
