// One query per sequence over keys and values in pages: read once, where they lie, by all heads that share them.
//
// A sequence's keys are cut into parts that threads take in turn; each part keeps a running maximum, sum and result per
// head (Milakov & Gimelshein, arXiv:1805.02867), and the parts of a sequence are put together in the end. Scores are
// taken in powers of two. Two ways to add a block of keys: `FloatBlock` for any CPU, and where the CPU multiplies bf16
// `HalfBlock`, whose lanes are heads, so that no sum crosses lanes. A key may have two parts (latent and rotated).

#include <algorithm>
#include <vector>

#include "vectors.h"

namespace {

constexpr int BLOCK = 32;       // keys taken at once
constexpr int64_t PART = 128;   // keys of a sequence that are worth a thread's while
constexpr int MOST_PARTS = 2;   // of a key
constexpr float NEVER = -1e30f;

}  // namespace

// Vectors in pages, see `_stored` in attention.py. Strides count elements.
struct Stored {
    int64_t kind;  // 0 fp32, 1 bf16, 2 int8
    int64_t width;
    const void* rows;
    int64_t page, token, head;
    const float* scales;
    int64_t scale_page, scale_token, scale_head;
};

struct Queries {
    const void* rows;
    int64_t sequence, head;
};

// Everything about a call but the queries' type, see `_DECODE` in attention.py.
struct Decode {
    int64_t sequences, heads, kv_heads, parts;
    Queries queries[MOST_PARTS];
    Stored keys[MOST_PARTS];
    Stored values;
    const int32_t* contexts;
    const int32_t* tables;
    int64_t table, page_size;
    float scale;
};

namespace {

inline int64_t whole_vectors(int64_t count) { return (count + LANES - 1) / LANES * LANES; }

// Some keys of a sequence, or none: where each one's place is in the pool.
struct Places {
    int count;
    int64_t page[BLOCK], token[BLOCK];

    Places(const Decode& d, int64_t sequence, int64_t first, int64_t last)
        : count(int(std::max<int64_t>(last - first, 0))) {
        const int32_t* table = d.tables + sequence * d.table + first / d.page_size;
        int64_t place = first % d.page_size;
        for (int j = 0; j < count; j++) {
            page[j] = *table;
            token[j] = place;
            if (++place == d.page_size) place = 0, table++;
        }
    }
    int64_t row(const Stored& s, int j, int64_t head) const {
        return page[j] * s.page + token[j] * s.token + head * s.head;
    }
    float scale(const Stored& s, int j, int64_t head) const {
        return s.scales ? s.scales[page[j] * s.scale_page + token[j] * s.scale_token + head * s.scale_head] : 1.0f;
    }
    // Let the rows of some keys come from memory while others are computed.
    void ask(const Stored& s, int first, int last, int64_t head) const {
        const int64_t size = s.kind == 0 ? 4 : s.kind == 1 ? 2 : 1;
        for (int j = first; j < std::min(last, count); j++) {
            const char* at = static_cast<const char*>(s.rows) + row(s, j, head) * size;
            for (int64_t byte = 0; byte < s.width * size; byte += 64) __builtin_prefetch(at + byte);
        }
    }
};

// The running state of a sequence's heads.
struct State {
    int64_t width;  // numbers kept per head
    std::vector<float> highest, total, out;

    State(int64_t heads, int64_t width) : width(width), highest(heads), total(heads), out(heads * width) { clear(); }
    void clear() {
        std::fill(highest.begin(), highest.end(), NEVER);
        std::fill(total.begin(), total.end(), 0.0f);
        std::fill(out.begin(), out.end(), 0.0f);
    }
};

#if defined(__clang__)
#define LANES_OF(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define LANES_OF(a, b, ...) __builtin_shuffle(a, b, Ints{__VA_ARGS__})
#endif

// The sums of 16 vectors, one a lane: halved four times, two vectors becoming one.
inline Floats sums(const Floats* x) {
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

// Calls act with a null pointer to the type that a kind of vectors is stored in.
template <typename Act>
inline void with_type(const Stored& s, Act act) {
    switch (s.kind) {
        case 0: return act(static_cast<const float*>(nullptr));
        case 1: return act(static_cast<const bf16*>(nullptr));
        case 2: return act(static_cast<const int8_t*>(nullptr));
    }
}

// Keys and values are made floats as they are read, where they lie.
template <typename X>
class FloatBlock {
public:
    State state;

    explicit FloatBlock(const Decode& d) : state(d.heads, whole_vectors(d.values.width)), d(d) {
        for (int64_t p = 0; p < d.parts; p++) k_width += whole_vectors(d.keys[p].width);
        q.resize(d.heads * k_width);
    }

    void begin(int64_t sequence) {
        state.clear();
        std::fill(q.begin(), q.end(), 0.0f);
        for (int64_t h = 0; h < d.heads; h++) {
            float* to = &q[h * k_width];
            for (int64_t p = 0; p < d.parts; p++) {
                const Queries& from = d.queries[p];
                const X* row = static_cast<const X*>(from.rows) + sequence * from.sequence + h * from.head;
                for (int64_t i = 0; i < d.keys[p].width; i++) to[i] = to_float(row[i]) * d.scale;
                to += whole_vectors(d.keys[p].width);
            }
        }
    }

    void add(const Places& places, const Places& next) {
        const int64_t group = d.heads / d.kv_heads;
        for (int64_t head = 0; head < d.kv_heads; head++) {
            for (int64_t p = 0; p < d.parts; p++) next.ask(d.keys[p], 0, BLOCK, head);
            next.ask(d.values, 0, BLOCK, head);
            for (int64_t h = head * group; h < (head + 1) * group; h++) {
                float weights[BLOCK] = {};
                const float* query = &q[h * k_width];
                for (int64_t p = 0; p < d.parts; p++) {
                    with_type(d.keys[p], [&](auto type) { score(type, d.keys[p], places, head, query, weights); });
                    query += whole_vectors(d.keys[p].width);
                }
                const float kept = weigh(h, places, head, weights);
                with_type(d.values, [&](auto type) { mix(type, places, head, h, weights, kept); });
            }
        }
    }

    void finish(int64_t h, float* to) const { std::copy_n(&state.out[h * state.width], d.values.width, to); }

private:
    const Decode& d;
    int64_t k_width = 0;
    std::vector<float> q;

    // A query times 16 keys at once; beyond the last, the last again.
    template <typename T>
    void score(const T*, const Stored& s, const Places& places, int64_t head, const float* query, float* scores) {
        for (int j = 0; j < places.count; j += LANES) {
            const T* rows[LANES];
            Floats each[LANES], scales;
            for (int r = 0; r < LANES; r++) {
                const int key = std::min(j + r, places.count - 1);
                rows[r] = static_cast<const T*>(s.rows) + places.row(s, key, head);
                scales[r] = places.scale(s, key, head);
                each[r] = splat(0.0f);
            }
            const int64_t whole = s.width / LANES * LANES;
            for (int64_t i = 0; i < whole; i += LANES) {
                const Floats x = load(query + i);
                for (int r = 0; r < LANES; r++) each[r] += x * load(rows[r] + i);
            }
            if (whole < s.width)
                for (int r = 0; r < LANES; r++)
                    each[r] += load(query + whole) * load_some(rows[r] + whole, s.width - whole);
            store(scores + j, load(scores + j) + sums(each) * scales);
        }
    }

    // Scores to what values are multiplied with; returns what earlier ones shrink to.
    float weigh(int64_t h, const Places& places, int64_t head, float* weights) {
        float highest = state.highest[h];
        for (int j = 0; j < places.count; j++) highest = std::max(highest, weights[j]);
        for (int j = places.count; j < BLOCK; j++) weights[j] = NEVER;
        float total = 0;
        for (int j = 0; j < BLOCK; j += LANES) {
            const Floats some = exp2_negative(load(weights + j) - highest);
            store(weights + j, some);
            total += sum(some);
        }
        for (int j = 0; d.values.scales && j < places.count; j++) weights[j] *= places.scale(d.values, j, head);
        const float kept = exp2_negative(splat(state.highest[h] - highest))[0];
        state.highest[h] = highest;
        state.total[h] = state.total[h] * kept + total;
        return kept;
    }

    template <typename T>
    void mix(const T*, const Places& places, int64_t head, int64_t h, const float* weights, float kept) {
        const int64_t width = d.values.width;
        const T* rows[BLOCK];
        for (int j = 0; j < places.count; j++)
            rows[j] = static_cast<const T*>(d.values.rows) + places.row(d.values, j, head);
        int64_t i = 0;
        for (; i + 4 * LANES <= width; i += 4 * LANES) {
            float* out = &state.out[h * state.width + i];
            Floats mixed[4];
            for (int c = 0; c < 4; c++) mixed[c] = load(out + c * LANES) * kept;
            for (int j = 0; j < places.count; j++)
                for (int c = 0; c < 4; c++) mixed[c] += load(rows[j] + i + c * LANES) * weights[j];
            for (int c = 0; c < 4; c++) store(out + c * LANES, mixed[c]);
        }
        for (; i < width; i += LANES) {
            float* out = &state.out[h * state.width + i];
            Floats mixed = load(out) * kept;
            for (int j = 0; j < places.count; j++)
                mixed += (i + LANES <= width ? load(rows[j] + i) : load_some(rows[j] + i, width - i)) * weights[j];
            store(out, mixed);
        }
    }
};

#if HAS_BF16_DOTS
// Up to 16 heads that share their keys are the lanes of a vector. A product takes two numbers a lane: of a key, two
// neighbours, the same for all heads; of the values, the same channel of two neighbouring keys.
class HalfBlock {
public:
    State state;

    explicit HalfBlock(const Decode& d)
        : state(d.heads, d.values.width), d(d), group(d.heads / d.kv_heads), sets((group + LANES - 1) / LANES) {
        for (int64_t p = 0; p < d.parts; p++) k_width += d.keys[p].width;
        q.resize(d.kv_heads * sets * k_width / 2 * LANES);
        for (int64_t p = 0; p < d.parts; p++)
            if (d.keys[p].kind == 2) rounded[p].resize(BLOCK * d.keys[p].width);
        shared = d.values.rows == d.keys[0].rows && d.values.width == d.keys[0].width;
        if (d.values.kind == 2 && !shared) rounded[MOST_PARTS].resize(BLOCK * d.values.width);
    }

    // Whether widths and types are such that this way serves, and enough heads share keys that it pays.
    static bool serves(const Decode& d) {
        bool fits = d.values.kind != 0 && d.values.width % 32 == 0 && d.heads / d.kv_heads >= 4;
        for (int64_t p = 0; p < d.parts; p++) fits = fits && d.keys[p].kind != 0 && d.keys[p].width % 32 == 0;
        return fits;
    }

    void begin(int64_t sequence) {
        state.clear();
        std::fill(q.begin(), q.end(), 0u);
        for (int64_t h = 0; h < d.heads; h++) {
            const int64_t lane = h % group % LANES;
            uint32_t* to = &q[(h / group * sets + h % group / LANES) * k_width / 2 * LANES];
            for (int64_t p = 0; p < d.parts; p++) {
                const Queries& from = d.queries[p];
                const bf16* row = static_cast<const bf16*>(from.rows) + sequence * from.sequence + h * from.head;
                for (int64_t i = 0; i < d.keys[p].width; i += 2, to += LANES) std::memcpy(to + lane, row + i, 4);
            }
        }
    }

    void add(const Places& places, const Places& next) {
        for (int64_t head = 0; head < d.kv_heads; head++) {
            const bf16* keys[MOST_PARTS][BLOCK];
            const bf16* values[BLOCK];
            for (int64_t p = 0; p < d.parts; p++) point(d.keys[p], places, head, rounded[p], keys[p]);
            if (shared) std::copy_n(keys[0], BLOCK, values);
            else point(d.values, places, head, rounded[MOST_PARTS], values);
            for (int64_t set = 0; set < sets; set++) {
                const int64_t lanes = std::min<int64_t>(LANES, group - set * LANES);
                add_set(places, set == 0 ? next : Places(d, 0, 0, 0), head, set, int(lanes), keys, values);
            }
        }
    }

    // The result of a head in the order of its channels; unpacking leaves each 32 as 4 of every 8, then the others.
    void finish(int64_t h, float* to) const {
        const float* from = &state.out[h * state.width];
        for (int64_t i = 0; i < d.values.width; i++)
            to[i] = from[i / 32 * 32 + (i % 8 / 4) * 16 + i % 32 / 8 * 4 + i % 4];
    }

private:
    const Decode& d;
    const int64_t group, sets;
    int64_t k_width = 0;
    bool shared;
    std::vector<uint32_t> q;  // [kv_heads, sets, k_width / 2, 16 heads], two numbers each
    std::vector<bf16> rounded[MOST_PARTS + 1];

    // Where each key's row is, as bf16: in the pool, or made from int8, whose integers are exact. Beyond the last, the
    // last again: a zero weight would not undo what stands in a page that was never written.
    void point(const Stored& s, const Places& places, int64_t head, std::vector<bf16>& room, const bf16** rows) {
        for (int j = 0; j < BLOCK; j++) {
            if (j >= places.count) {
                rows[j] = rows[places.count - 1];
            } else if (s.kind == 1) {
                rows[j] = static_cast<const bf16*>(s.rows) + places.row(s, j, head);
            } else {
                const int8_t* row = static_cast<const int8_t*>(s.rows) + places.row(s, j, head);
                bf16* to = &room[j * s.width];
                for (int64_t i = 0; i < s.width; i += 32) {
                    __m512 low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)(row + i))));
                    __m512 high =
                        _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)(row + i + 16))));
                    _mm512_storeu_si512(to + i, (__m512i)_mm512_cvtne2ps_pbh(high, low));
                }
                rows[j] = to;
            }
        }
    }

    void add_set(const Places& places, const Places& next, int64_t head, int64_t set, int lanes,
                 const bf16* const (*keys)[BLOCK], const bf16* const* values) {
        Floats scores[BLOCK];
        const uint32_t* query = &q[(head * sets + set) * k_width / 2 * LANES];
        for (int j = 0; j < BLOCK; j++) scores[j] = splat(0.0f);
        for (int64_t p = 0; p < d.parts; p++) {
            for (int j = 0; j < places.count; j += 8) {
                __m512 sums[8];
                next.ask(d.keys[p], j, j + 8, head);
                if (p == 0 && !shared) next.ask(d.values, j, j + 8, head);
                multiply(query, keys[p] + j, d.keys[p].width, sums);
                for (int i = 0; i < 8 && j + i < places.count; i++) {
                    Floats part;
                    std::memcpy(&part, &sums[i], sizeof part);
                    scores[j + i] += part * (places.scale(d.keys[p], j + i, head) * d.scale);
                }
            }
            query += d.keys[p].width / 2 * LANES;
        }
        const int64_t first = head * group + set * LANES;
        float kept[LANES];
        uint32_t weights[BLOCK / 2 * LANES];
        weigh(places, head, first, lanes, scores, kept, weights);
        int h = 0;
        for (; h + 8 <= lanes; h += 8) mix<8>(first + h, kept + h, weights + h, values, places.count);
        if (h + 4 <= lanes) mix<4>(first + h, kept + h, weights + h, values, places.count), h += 4;
        for (; h < lanes; h++) mix<1>(first + h, kept + h, weights + h, values, places.count);
    }

    // Eight keys with 16 heads; two pairs a turn go to sums of their own, so that no product waits for the one before.
    static void multiply(const uint32_t* query, const bf16* const* keys, int64_t width, __m512* sums) {
        __m512 even[8], odd[8];
        const bf16* k[8];
        for (int j = 0; j < 8; j++) even[j] = odd[j] = _mm512_setzero_ps(), k[j] = keys[j];
        for (int64_t i = 0; i < width; i += 4, query += 2 * LANES) {
            const __m512bh first = (__m512bh)_mm512_loadu_si512(query);
            const __m512bh second = (__m512bh)_mm512_loadu_si512(query + LANES);
            for (int j = 0; j < 8; j++) {
                even[j] = _mm512_dpbf16_ps(even[j], first, pair(k[j] + i));
                odd[j] = _mm512_dpbf16_ps(odd[j], second, pair(k[j] + i + 2));
            }
        }
        for (int j = 0; j < 8; j++) sums[j] = _mm512_add_ps(even[j], odd[j]);
    }

    // Two neighbouring numbers, the same in every lane.
    static __m512bh pair(const void* at) {
        int32_t both;
        std::memcpy(&both, at, 4);
        return (__m512bh)_mm512_set1_epi32(both);
    }

    // Scores to weights against the new maximum, two keys' bf16 weights a number; `kept` is what earlier ones shrink to.
    void weigh(const Places& places, int64_t head, int64_t first, int lanes, Floats* scores, float* kept,
               uint32_t* weights) {
        const Floats before = load_some(&state.highest[first], lanes);
        Floats highest = before, total = splat(0.0f);
        for (int j = 0; j < places.count; j++) highest = larger(highest, scores[j]);
        for (int j = 0; j < BLOCK; j += 2) {
            Floats pair[2];
            for (int i = 0; i < 2; i++) {
                pair[i] = splat(0.0f);
                if (j + i < places.count) {
                    pair[i] = exp2_negative(scores[j + i] - highest);
                    total += pair[i];
                    pair[i] = pair[i] * places.scale(d.values, j + i, head);
                }
            }
            __m512 low, high;
            std::memcpy(&low, &pair[0], sizeof low);
            std::memcpy(&high, &pair[1], sizeof high);
            __m512i first_half = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(low));
            __m512i second_half = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(high));
            _mm512_storeu_si512(weights + j / 2 * LANES,
                                _mm512_or_si512(first_half, _mm512_slli_epi32(second_half, 16)));
        }
        Floats shrunk = exp2_negative(before - highest);
        for (int h = 0; h < lanes; h++) {
            kept[h] = shrunk[h];
            state.highest[first + h] = highest[h];
            state.total[first + h] = state.total[first + h] * shrunk[h] + total[h];
        }
    }

    template <int HEADS>
    void mix(int64_t first, const float* kept, const uint32_t* weights, const bf16* const* values, int count) {
        for (int64_t i = 0; i < state.width; i += 32) {
            __m512 out[HEADS][2];
            for (int h = 0; h < HEADS; h++)
                for (int half = 0; half < 2; half++)
                    out[h][half] = _mm512_mul_ps(_mm512_loadu_ps(&state.out[(first + h) * state.width + i + half * 16]),
                                                 _mm512_set1_ps(kept[h]));
            const uint32_t* weight = weights;
            for (int j = 0; j < count; j += 2, weight += LANES) {
                const __m512i a = _mm512_loadu_si512(values[j] + i), b = _mm512_loadu_si512(values[j + 1] + i);
                const __m512bh low = (__m512bh)_mm512_unpacklo_epi16(a, b);
                const __m512bh high = (__m512bh)_mm512_unpackhi_epi16(a, b);
                for (int h = 0; h < HEADS; h++) {
                    out[h][0] = _mm512_dpbf16_ps(out[h][0], low, pair(weight + h));
                    out[h][1] = _mm512_dpbf16_ps(out[h][1], high, pair(weight + h));
                }
            }
            for (int h = 0; h < HEADS; h++)
                for (int half = 0; half < 2; half++)
                    _mm512_storeu_ps(&state.out[(first + h) * state.width + i + half * 16], out[h][half]);
        }
    }
};
#endif

// Part `part` of `parts` of a sequence's keys: where it begins and ends, whole blocks each but the last.
inline int64_t cut(int64_t keys, int64_t part, int64_t parts) {
    const int64_t blocks = (keys + BLOCK - 1) / BLOCK;
    return std::min(keys, blocks * part / parts * BLOCK);
}

template <typename Block, typename X>
void decode(const Decode& d, X* out, int threads) {
    const int64_t v_width = d.values.width, wanted = 8 * int64_t(threads);
    std::vector<int64_t> starts{0};  // where the parts of each sequence stand among all
    for (int64_t s = 0; s < d.sequences; s++) {
        const int64_t useful = std::max<int64_t>((d.contexts[s] + PART - 1) / PART, 1);
        starts.push_back(starts.back() + std::clamp<int64_t>((wanted + d.sequences - 1) / d.sequences, 1, useful));
    }
    const int64_t parts = starts.back();
    std::vector<float> highest(parts * d.heads), total(parts * d.heads), said(parts * d.heads * v_width);
#pragma omp parallel num_threads(threads) if (parts > 1)
    {
        Block block(d);
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < parts; i++) {
            const int64_t s = std::upper_bound(starts.begin(), starts.end(), i) - starts.begin() - 1;
            const int64_t part = i - starts[s], of = starts[s + 1] - starts[s];
            const int64_t last = cut(d.contexts[s], part + 1, of);
            int64_t key = cut(d.contexts[s], part, of);
            Places places(d, s, key, std::min(key + BLOCK, last));
            block.begin(s);
            while (places.count) {
                key += BLOCK;
                const Places next(d, s, key, std::min(key + BLOCK, last));
                block.add(places, next);
                places = next;
            }
            for (int64_t h = 0; h < d.heads; h++) block.finish(h, &said[(i * d.heads + h) * v_width]);
            std::copy_n(block.state.highest.begin(), d.heads, &highest[i * d.heads]);
            std::copy_n(block.state.total.begin(), d.heads, &total[i * d.heads]);
        }
#pragma omp for schedule(static)
        for (int64_t i = 0; i < d.sequences * d.heads; i++) {
            const int64_t s = i / d.heads, h = i % d.heads;
            float top = NEVER, whole = 0;
            for (int64_t p = starts[s]; p < starts[s + 1]; p++) top = std::max(top, highest[p * d.heads + h]);
            std::vector<float> mixed(v_width);
            for (int64_t p = starts[s]; p < starts[s + 1]; p++) {
                const float share = exp2_negative(splat(highest[p * d.heads + h] - top))[0];
                whole += share * total[p * d.heads + h];
                for (int64_t c = 0; c < v_width; c++) mixed[c] += share * said[(p * d.heads + h) * v_width + c];
            }
            for (int64_t c = 0; c < v_width; c++) store(out + i * v_width + c, mixed[c] / whole);
        }
    }
}

}  // namespace

// `d.scale` holds the logarithm's factor already: scores are exponents of two.
extern "C" void paged_decode(const Decode* d, int32_t halves, void* out, int32_t threads) {
#if HAS_BF16_DOTS
    if (halves && HalfBlock::serves(*d)) return decode<HalfBlock>(*d, static_cast<bf16*>(out), threads);
#endif
    if (halves) decode<FloatBlock<bf16>>(*d, static_cast<bf16*>(out), threads);
    else decode<FloatBlock<float>>(*d, static_cast<float*>(out), threads);
}
