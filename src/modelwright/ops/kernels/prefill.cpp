// The last tokens of one sequence over all its keys in bf16, causally: scores are never written out as a whole.
//
// 48 queries of a head are the lanes of three vectors, so that maxima and sums of the softmax cross no lanes. Products
// take two numbers a lane: of queries and keys, two neighbours; of weights and values, those of two neighbouring keys.
// The running softmax is that of Milakov & Gimelshein (arXiv:1805.02867), in powers of two. Leaves out CPUs that do not
// multiply bf16, and those with matrix units, which torch puts to use.

#include <algorithm>
#include <vector>

#include "vectors.h"

// Everything about a call, see `_PREFILL` in prefill.py. Strides count elements.
struct Prefill {
    int64_t heads, kv_heads, tokens, keys, k_width, v_width;
    const bf16* q;
    int64_t q_head, q_token;
    const bf16* k;
    int64_t k_head, k_token;
    const bf16* v;
    int64_t v_head, v_token;
    bf16* out;  // [tokens, heads, v_width]
    float scale;
};

#if HAS_BF16_DOTS && !defined(__AMX_BF16__)
namespace {

constexpr int VECTORS = 3;
constexpr int64_t QUERIES = VECTORS * LANES;  // taken at once
constexpr int64_t KEYS = 64;                  // the same of keys
constexpr int ROWS = 8;                       // keys or channels whose sums are in registers, times three vectors
constexpr float NEVER = -1e30f;

inline __m512bh two(const void* at) {  // the same two numbers in every lane
    int32_t both;
    std::memcpy(&both, at, 4);
    return (__m512bh)_mm512_set1_epi32(both);
}

inline __m512 raw(Floats x) {
    __m512 same;
    std::memcpy(&same, &x, sizeof same);
    return same;
}

// sums[r][c] += rows[r] times the lanes of vector c, over `pairs` of numbers.
inline void multiply(const char* const* rows, int64_t row_step, const uint32_t* lanes, int64_t pairs,
                     __m512 (*sums)[VECTORS]) {
    const char* at[ROWS];
    __m512 own[ROWS][VECTORS];
    for (int r = 0; r < ROWS; r++) {
        at[r] = rows[r];
        for (int c = 0; c < VECTORS; c++) own[r][c] = sums[r][c];
    }
    for (int64_t i = 0; i < pairs; i++, lanes += QUERIES) {
        __m512bh x[VECTORS];
        for (int c = 0; c < VECTORS; c++) x[c] = (__m512bh)_mm512_loadu_si512(lanes + c * LANES);
        for (int r = 0; r < ROWS; r++) {
            const __m512bh row = two(at[r] + i * row_step);
            for (int c = 0; c < VECTORS; c++) own[r][c] = _mm512_dpbf16_ps(own[r][c], x[c], row);
        }
    }
    for (int r = 0; r < ROWS; r++)
        for (int c = 0; c < VECTORS; c++) sums[r][c] = own[r][c];
}

// Values of a head with two neighbouring keys side by side, [keys / 2, v_width]; zeros beyond the last key.
void pair_up(const Prefill& p, int64_t head, int64_t pair, uint32_t* to) {
    const bf16* first = p.v + head * p.v_head + 2 * pair * p.v_token;
    for (int64_t c = 0; c < p.v_width; c++) {
        const uint32_t low = 2 * pair < p.keys ? first[c].bits : 0;
        const uint32_t high = 2 * pair + 1 < p.keys ? first[p.v_token + c].bits : 0;
        to[c] = low | high << 16;
    }
}

class Block {
public:
    explicit Block(const Prefill& p)
        : p(p), q(p.k_width / 2 * QUERIES), weights(KEYS / 2 * QUERIES), out(p.v_width * QUERIES) {}

    // Queries `first` to `first` + 47 of a head; beyond the last, the last again.
    void attend(int64_t head, int64_t first, const uint32_t* values) {
        const int64_t past = p.keys - p.tokens, last = std::min(first + QUERIES, p.tokens);
        begin(head, first);
        const bf16* keys = p.k + head / (p.heads / p.kv_heads) * p.k_head;
        for (int64_t key = 0; key < past + last; key += KEYS) {
            score(keys, key);
            if (key + KEYS > past + first + 1 || key + KEYS > p.keys) hide(key, past + first);
            weigh();
            mix(values + key / 2 * p.v_width);
        }
        for (int64_t t = first; t < last; t++) finish(t - first, p.out + (t * p.heads + head) * p.v_width);
    }

private:
    const Prefill& p;
    std::vector<uint32_t> q, weights;  // [pairs of numbers, 48 queries]
    std::vector<float> out;            // [v_width, 48 queries]
    Floats scores[KEYS][VECTORS], highest[VECTORS], total[VECTORS], kept[VECTORS];

    void begin(int64_t head, int64_t first) {
        for (int64_t lane = 0; lane < QUERIES; lane++) {
            const bf16* row = p.q + head * p.q_head + std::min(first + lane, p.tokens - 1) * p.q_token;
            for (int64_t i = 0; i < p.k_width / 2; i++) std::memcpy(&q[i * QUERIES + lane], row + 2 * i, 4);
        }
        std::fill(out.begin(), out.end(), 0.0f);
        for (int c = 0; c < VECTORS; c++) highest[c] = splat(NEVER), total[c] = splat(0.0f);
    }

    void score(const bf16* keys, int64_t key) {
        for (int64_t j = 0; j < KEYS; j += ROWS) {
            const char* rows[ROWS];
            __m512 sums[ROWS][VECTORS];
            for (int r = 0; r < ROWS; r++) {
                rows[r] = reinterpret_cast<const char*>(keys + std::min(key + j + r, p.keys - 1) * p.k_token);
                for (int c = 0; c < VECTORS; c++) sums[r][c] = _mm512_setzero_ps();
            }
            multiply(rows, 4, q.data(), p.k_width / 2, sums);
            for (int r = 0; r < ROWS; r++)
                for (int c = 0; c < VECTORS; c++) {
                    std::memcpy(&scores[j + r][c], &sums[r][c], sizeof(Floats));
                    scores[j + r][c] *= p.scale;
                }
        }
    }

    // Keys that come after a lane's query, the first of which is number `position`, and those that are none.
    void hide(int64_t key, int64_t position) {
        Floats lane;
        for (int i = 0; i < LANES; i++) lane[i] = float(i);
        for (int64_t j = 0; j < KEYS; j++)
            for (int c = 0; c < VECTORS; c++) {
                const Floats ahead = splat(float(key + j - position - c * LANES)) - lane;
                scores[j][c] = key + j >= p.keys ? splat(NEVER) : ahead > 0.0f ? splat(NEVER) : scores[j][c];
            }
    }

    // Scores to weights against the new maximum, those of two keys a number; `kept` is what earlier ones shrink to.
    void weigh() {
        for (int c = 0; c < VECTORS; c++) {
            Floats top = highest[c], sum = splat(0.0f);
            for (int64_t j = 0; j < KEYS; j++) top = larger(top, scores[j][c]);
            for (int64_t j = 0; j < KEYS; j += 2) {
                const Floats low = exp2_negative(scores[j][c] - top), high = exp2_negative(scores[j + 1][c] - top);
                sum += low + high;
                const __m512i first = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(raw(low)));
                const __m512i second = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(raw(high)));
                _mm512_storeu_si512(&weights[j / 2 * QUERIES + c * LANES],
                                    _mm512_or_si512(first, _mm512_slli_epi32(second, 16)));
            }
            kept[c] = exp2_negative(highest[c] - top);
            total[c] = total[c] * kept[c] + sum;
            highest[c] = top;
        }
    }

    void mix(const uint32_t* values) {
        for (int64_t channel = 0; channel < p.v_width; channel += ROWS) {
            const char* rows[ROWS];
            __m512 sums[ROWS][VECTORS];
            for (int r = 0; r < ROWS; r++) {
                rows[r] = reinterpret_cast<const char*>(values + channel + r);
                for (int c = 0; c < VECTORS; c++)
                    sums[r][c] = raw(load(&out[(channel + r) * QUERIES + c * LANES]) * kept[c]);
            }
            multiply(rows, 4 * p.v_width, weights.data(), KEYS / 2, sums);
            for (int r = 0; r < ROWS; r++)
                for (int c = 0; c < VECTORS; c++)
                    _mm512_storeu_ps(&out[(channel + r) * QUERIES + c * LANES], sums[r][c]);
        }
    }

    void finish(int64_t lane, bf16* to) const {
        const float share = 1.0f / total[lane / LANES][lane % LANES];
        for (int64_t c = 0; c < p.v_width; c++) store(to + c, out[c * QUERIES + lane] * share);
    }
};

}  // namespace

extern "C" int32_t serves_prefill() { return 1; }

// `p.scale` holds the logarithm's factor already: scores are exponents of two.
extern "C" void prefill(const Prefill* given, int32_t threads) {
    const Prefill& p = *given;
    const int64_t pairs = (p.keys + KEYS - 1) / KEYS * KEYS / 2, blocks = (p.tokens + QUERIES - 1) / QUERIES;
    const int64_t group = p.heads / p.kv_heads;
    std::vector<uint32_t> values(p.kv_heads * pairs * p.v_width);
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int64_t i = 0; i < p.kv_heads * pairs; i++) pair_up(p, i / pairs, i % pairs, &values[i * p.v_width]);
        Block block(p);
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < blocks * p.heads; i++) {  // the last blocks, which see most, first
            const int64_t head = i % p.heads;
            block.attend(head, (blocks - 1 - i / p.heads) * QUERIES, &values[head / group * pairs * p.v_width]);
        }
    }
}
#else
extern "C" int32_t serves_prefill() { return 0; }
extern "C" void prefill(const Prefill*, int32_t) {}
#endif
