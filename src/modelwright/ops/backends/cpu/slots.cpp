// One query per row and head over keys and values that lie in slots made beforehand; the new ones are written first.
//
// Keys stand in blocks of 16 slots, channel by channel, so that the lanes of a vector are keys and no sum crosses them.
// Values stand slot by slot, each filled up to whole vectors. Arithmetic is in fp32, scores in powers of two.

#include <algorithm>
#include <vector>

#include "vectors.h"

namespace {

constexpr int CHAINS = 4;            // sums that do not wait for each other

// Scores of 16 keys: `keys` [dim, 16], `query` scaled already.
template <typename T>
inline Floats scores_of(const T* keys, const float* query, int64_t dim) {
    Floats sums[CHAINS] = {};
    int64_t i = 0;
    for (; i + CHAINS <= dim; i += CHAINS)
        for (int c = 0; c < CHAINS; c++) sums[c] += load(keys + (i + c) * LANES) * query[i + c];
    for (; i < dim; i++) sums[0] += load(keys + i * LANES) * query[i];
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// `out` [WIDTH vectors] is the weighted sum of `values` [count, padded], divided by `total`.
template <int WIDTH, typename T>
inline void mix(const T* values, int64_t padded, const float* weights, int64_t count, float total, float* out) {
    Floats even[WIDTH] = {}, odd[WIDTH] = {};
    int64_t j = 0;
    for (; j + 2 <= count; j += 2)
        for (int w = 0; w < WIDTH; w++) {
            even[w] += load(values + j * padded + w * LANES) * weights[j];
            odd[w] += load(values + (j + 1) * padded + w * LANES) * weights[j + 1];
        }
    if (j < count)
        for (int w = 0; w < WIDTH; w++) even[w] += load(values + j * padded + w * LANES) * weights[j];
    for (int w = 0; w < WIDTH; w++) store(out + w * LANES, (even[w] + odd[w]) / total);
}

inline void copy(float* to, float from) { *to = from; }
inline void copy(bf16* to, bf16 from) { *to = from; }
inline void copy(float* to, bf16 from) { *to = to_float(from); }

// Room of one thread: a scaled query, the scores of all slots, a result.
struct Room {
    std::vector<float> query, scores, out;
};

template <typename T, typename X>
void attend_row(const Slots& s, int64_t row, const X* q, const X* k, const X* v, int64_t known, X* out, Room& room) {
    const int64_t blocks = (s.slots + LANES - 1) / LANES, count = known + 1;
    T* keys = static_cast<T*>(s.keys) + row * blocks * s.dim * LANES;
    T* values = static_cast<T*>(s.values) + row * s.slots * s.padded;
    T* key = keys + known / LANES * s.dim * LANES + known % LANES;
    for (int64_t i = 0; i < s.dim; i++) {
        copy(key + i * LANES, k[i]);
        copy(values + known * s.padded + i, v[i]);
        room.query[i] = to_float(q[i]) * s.scale;
    }
    float* scores = room.scores.data();
    const int64_t filled = up_to(count, LANES);
    Floats highest = splat(NEVER);
    for (int64_t j = 0; j < filled; j += LANES) {
        store(scores + j, scores_of(keys + j * s.dim, room.query.data(), s.dim));
        if (j + LANES > count) std::fill(scores + count, scores + filled, NEVER);
        highest = larger(highest, load(scores + j));
    }
    float top = NEVER;
    for (int i = 0; i < LANES; i++) top = std::max(top, highest[i]);
    Floats totals = {};
    for (int64_t j = 0; j < filled; j += LANES) {
        const Floats weights = exp2_negative(load(scores + j) - top);
        store(scores + j, weights);
        totals += weights;
    }
    const float total = sum(totals);
    int64_t i = 0;
    for (; i + 4 * LANES <= s.padded; i += 4 * LANES) mix<4>(values + i, s.padded, scores, count, total, &room.out[i]);
    for (; i < s.padded; i += LANES) mix<1>(values + i, s.padded, scores, count, total, &room.out[i]);
    for (i = 0; i < s.dim; i++) store(out + i, room.out[i]);
}

template <typename T, typename X>
void attend(const Slots& s, const X* joined, int64_t known, X* out, int threads) {
    const int64_t width = s.heads * s.dim, rows = s.batch * s.heads;
#pragma omp parallel num_threads(threads) if (rows * (known + 1) * s.dim >= ENOUGH_NUMBERS_IN_SLOTS && rows > 1)
    {
        Room room;
        room.query.resize(s.dim);
        room.scores.resize((known + LANES) / LANES * LANES);
        room.out.resize(s.padded);
#pragma omp for schedule(static)
        for (int64_t row = 0; row < rows; row++) {
            const int64_t head = row % s.heads * s.dim;
            const X* q = joined + row / s.heads * 3 * width + head;
            attend_row<T>(s, row, q, q + width, q + 2 * width, known, out + row * s.dim, room);
        }
    }
}

}  // namespace

// `joined` is [batch, 3 * heads * dim]: queries, keys, values; `out` [batch, heads * dim]. `s.scale` holds the
// logarithm's factor already: scores are exponents of two.
extern "C" void attend_slots(const Slots* s, int32_t halves, int32_t stored_halves, const void* joined, int64_t known,
                             void* out, int32_t threads) {
    if (!halves) attend<float>(*s, static_cast<const float*>(joined), known, static_cast<float*>(out), threads);
    else if (stored_halves) attend<bf16>(*s, static_cast<const bf16*>(joined), known, static_cast<bf16*>(out), threads);
    else attend<float>(*s, static_cast<const bf16*>(joined), known, static_cast<bf16*>(out), threads);
}
