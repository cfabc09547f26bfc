// Blocks of keys on any CPU: whatever type a vector is stored in and however wide it is, it is read as floats.
#pragma once

#include "decode.h"

#if defined(__clang__)
#define LANES_OF(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define LANES_OF(a, b, ...) __builtin_shuffle(a, b, Ints{__VA_ARGS__})
#endif

// Keys of which a query meets some numbers before the next: as many as leave their sums in registers.
constexpr int KEYS_AT_ONCE = REGISTER == LANES ? LANES : 4;

// The sums of 16 vectors, one a lane.
#if defined(__AVX512F__)
inline Floats sums(const Floats* x) {  // halved four times, two vectors becoming one
    Floats two[8], four[4], eight[2];
    for (int i = 0; i < 8; i++) {
        const Floats a = x[2 * i], b = x[2 * i + 1];
        two[i] = LANES_OF(a, b, 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30) +
                 LANES_OF(a, b, 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
    }
    for (int i = 0; i < 4; i++) {
        const Floats a = two[2 * i], b = two[2 * i + 1];
        four[i] = LANES_OF(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
                  LANES_OF(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
    }
    for (int i = 0; i < 2; i++) {
        const Floats a = four[2 * i], b = four[2 * i + 1];
        eight[i] = LANES_OF(a, b, 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27) +
                   LANES_OF(a, b, 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
    }
    return LANES_OF(eight[0], eight[1], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
           LANES_OF(eight[0], eight[1], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
}
#elif defined(__AVX__)
inline Register sums_of_eight(const Floats* x) {
    Register two[4], four[2];
    for (int i = 0; i < 4; i++) {
        const Register a = x[2 * i].low + x[2 * i].high, b = x[2 * i + 1].low + x[2 * i + 1].high;
        two[i] = LANES_OF(a, b, 0, 8, 2, 10, 4, 12, 6, 14) + LANES_OF(a, b, 1, 9, 3, 11, 5, 13, 7, 15);
    }
    for (int i = 0; i < 2; i++) {
        const Register a = two[2 * i], b = two[2 * i + 1];
        four[i] = LANES_OF(a, b, 0, 1, 8, 9, 4, 5, 12, 13) + LANES_OF(a, b, 2, 3, 10, 11, 6, 7, 14, 15);
    }
    return LANES_OF(four[0], four[1], 0, 1, 2, 3, 8, 9, 10, 11) +
           LANES_OF(four[0], four[1], 4, 5, 6, 7, 12, 13, 14, 15);
}
inline Floats sums(const Floats* x) { return {sums_of_eight(x), sums_of_eight(x + 8)}; }
#else
inline Floats sums(const Floats* x) {
    float each[LANES];
    for (int i = 0; i < LANES; i++) each[i] = sum(x[i]);
    return load(each);
}
#endif

// Calls act with a null pointer to the type that a kind of vectors is stored in.
template <typename Act>
inline void with_type(const Stored& s, Act act) {
    switch (s.kind) {
        case StoredKind::fp32: return act(static_cast<const float*>(nullptr));
        case StoredKind::bf16: return act(static_cast<const bf16*>(nullptr));
        case StoredKind::int8: return act(static_cast<const int8_t*>(nullptr));
    }
}

// Keys and values are made floats as they are read, where they lie.
template <typename X>
class FloatBlock {
public:
    explicit FloatBlock(const Decode& d)
        : d(d), v_width(up_to(d.values.width, LANES)), highest(d.heads), totals(d.heads), out(d.heads * v_width) {
        for (int64_t p = 0; p < d.parts; p++) k_width += up_to(d.keys[p].width, LANES);
        q.resize(d.heads * k_width);
    }

    void begin(int64_t sequence) {
        std::fill(highest.begin(), highest.end(), NEVER);
        std::fill(totals.begin(), totals.end(), 0.0f);
        std::fill(out.begin(), out.end(), 0.0f);
        std::fill(q.begin(), q.end(), 0.0f);
        for (int64_t h = 0; h < d.heads; h++) {
            float* to = &q[h * k_width];
            for (int64_t p = 0; p < d.parts; p++) {
                const QueryRows& from = d.queries[p];
                const X* row = static_cast<const X*>(from.rows) + sequence * from.sequence + h * from.head;
                for (int64_t i = 0; i < d.keys[p].width; i++) to[i] = to_float(row[i]) * d.scale;
                to += up_to(d.keys[p].width, LANES);
            }
        }
    }

    void add(const Places& places, const Places& next) {
        for (int64_t i = 0; i < kinds_of(d); i++) {
            const Stored& s = kind_of(d, i);
            Ahead ahead = ahead_of(s, next.byte[i], d.kv_heads);
            const int64_t bytes = BLOCK * d.kv_heads * s.width * number_size(s);
            for (int64_t byte = 0; byte < bytes; byte += Ahead::STEP) ahead.ask();
        }
        for (int64_t head = 0; head < d.kv_heads; head++) {
            for (int64_t h = head * group_of(d); h < (head + 1) * group_of(d); h++) {
                float weights[BLOCK] = {};
                const float* query = &q[h * k_width];
                for (int64_t p = 0; p < d.parts; p++) {
                    with_type(d.keys[p], [&](auto type) { score(type, p, places, head, query, weights); });
                    query += up_to(d.keys[p].width, LANES);
                }
                const float kept = weigh(h, places, head, weights);
                with_type(d.values, [&](auto type) { mix(type, places, head, h, weights, kept); });
            }
        }
    }

    float top(int64_t h) const { return highest[h]; }
    float total(int64_t h) const { return totals[h]; }
    void finish(int64_t h, float* to) const { std::copy_n(&out[h * v_width], v_width, to); }

private:
    const Decode& d;
    const int64_t v_width;
    int64_t k_width = 0;
    std::vector<float> q, highest, totals, out;

    // A query times some keys: what is to be summed up.
    template <typename T>
    static INLINE void products(const T* const* rows, int64_t width, const float* query, Floats* to) {
        Floats own[KEYS_AT_ONCE];
        each<KEYS_AT_ONCE>([&](auto r) INLINED { own[r] = Floats{}; });
        const int64_t whole = width / LANES * LANES;
        for (int64_t i = 0; i < whole; i += LANES) {
            const Floats x = load(query + i);
            each<KEYS_AT_ONCE>([&](auto r) INLINED { own[r] += x * load(rows[r] + i); });
        }
        if (whole < width)
            each<KEYS_AT_ONCE>([&](auto r) INLINED {
                own[r] += load(query + whole) * load_some(rows[r] + whole, width - whole);
            });
        each<KEYS_AT_ONCE>([&](auto r) INLINED { to[r] = own[r]; });
    }

    // A query times 16 keys.
    template <typename T>
    void score(const T*, int64_t part, const Places& places, int64_t head, const float* query, float* scores) {
        const Stored& s = d.keys[part];
        const Rows from = rows_of_head(s, places.byte[part], head);
        for (int j = 0; j < places.count; j += LANES) {
            const T* rows[LANES];
            Floats found[LANES];
            for (int r = 0; r < LANES; r++) rows[r] = reinterpret_cast<const T*>(from.at[j + r]);
            for (int r = 0; r < LANES; r += KEYS_AT_ONCE) products(rows + r, s.width, query, found + r);
            store(scores + j, load(scores + j) + sums(found) * places.scales(s, part, head, j));
        }
    }

    // Scores to what values are multiplied with; returns what earlier ones shrink to.
    float weigh(int64_t h, const Places& places, int64_t head, float* weights) {
        float top = highest[h];
        for (int j = 0; j < places.count; j++) top = std::max(top, weights[j]);
        for (int j = places.count; j < BLOCK; j++) weights[j] = NEVER;
        float total = 0;
        for (int j = 0; j < BLOCK; j += LANES) {
            const Floats some = exp2_negative(load(weights + j) - top);
            store(weights + j, some * places.scales(d.values, d.parts, head, j));
            total += sum(some);
        }
        const float kept = exp2_negative(splat(highest[h] - top))[0];
        highest[h] = top;
        totals[h] = totals[h] * kept + total;
        return kept;
    }

    template <typename T>
    void mix(const T*, const Places& places, int64_t head, int64_t h, const float* weights, float kept) {
        const int64_t width = d.values.width;
        const Rows from = rows_of_head(d.values, places.byte[d.parts], head);
        const T* rows[BLOCK];
        for (int j = 0; j < places.count; j++) rows[j] = reinterpret_cast<const T*>(from.at[j]);
        int64_t i = 0;
        for (; i + 4 * LANES <= width; i += 4 * LANES) {
            float* to = &out[h * v_width + i];
            Floats mixed[4];
            each<4>([&](auto c) INLINED { mixed[c] = load(to + c * LANES) * kept; });
            for (int j = 0; j < places.count; j++)
                each<4>([&](auto c) INLINED { mixed[c] += load(rows[j] + i + c * LANES) * weights[j]; });
            each<4>([&](auto c) INLINED { store(to + c * LANES, mixed[c]); });
        }
        for (; i < width; i += LANES) {
            float* to = &out[h * v_width + i];
            Floats mixed = load(to) * kept;
            for (int j = 0; j < places.count; j++)
                mixed += (i + LANES <= width ? load(rows[j] + i) : load_some(rows[j] + i, width - i)) * weights[j];
            store(to, mixed);
        }
    }
};
