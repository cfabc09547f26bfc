// The last tokens of one sequence over all its keys in bf16, causally or not: scores are never written out as a whole.
//
// 48 queries of a head are the lanes of three vectors, so that maxima and sums of the softmax cross no lanes. Products
// take two numbers a lane: of queries and keys, two neighbours; of weights and values, those of two neighbouring keys.
// The running softmax is that of Milakov & Gimelshein (arXiv:1805.02867), in powers of two. Leaves out CPUs that do not
// multiply bf16, and those with matrix units, which torch puts to use.

#include <algorithm>
#include <memory>
#include <vector>

#include "vectors.h"

#if HAS_BF16_DOTS && !defined(__AMX_BF16__)
namespace {

constexpr int VECTORS = 3;
constexpr int64_t QUERIES = VECTORS * LANES;  // taken at once
constexpr int64_t KEYS = 64;                  // the same of keys, at most
constexpr int ROWS = PREFILL_CHANNELS;        // keys or channels whose sums are in registers, times three vectors

// sums[r][c] = sums[r][c] * kept[c], or 0 without `kept`, + rows[r] times the lanes of vector c, over `pairs` of
// numbers. A function of its own, so that its sums have all registers.
__attribute__((noinline)) void multiply(const char* const* rows, int64_t row_step, const uint32_t* lanes, int64_t pairs,
                                        const Floats* kept, float* sums) {
    const char* at[ROWS];
    __m512 own[ROWS][VECTORS];
    for (int r = 0; r < ROWS; r++) {
        at[r] = rows[r];
        for (int c = 0; c < VECTORS; c++)
            own[r][c] = kept ? raw(load(sums + r * QUERIES + c * LANES) * kept[c]) : _mm512_setzero_ps();
    }
    for (int64_t i = 0, step = 0; i < pairs; i++, lanes += QUERIES, step += row_step) {
        __m512bh x[VECTORS];
        for (int c = 0; c < VECTORS; c++) x[c] = (__m512bh)_mm512_loadu_si512(lanes + c * LANES);
        for (int r = 0; r < ROWS; r++) {
            const __m512bh row = (__m512bh)everywhere(at[r] + step);
            for (int c = 0; c < VECTORS; c++) own[r][c] = _mm512_dpbf16_ps(own[r][c], x[c], row);
        }
    }
    for (int r = 0; r < ROWS; r++)
        for (int c = 0; c < VECTORS; c++) _mm512_storeu_ps(sums + r * QUERIES + c * LANES, own[r][c]);
}

// 2^x for x <= 0, to 4e-6 of the result, which is then rounded to bf16.
inline Floats weight(Floats x) {
    const __m512 whole = _mm512_roundscale_ps(raw(x), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const Floats f = x - floats(whole);  // [-0.5, 0.5]
    Floats value = splat(0.0095701014f);
    value = value * f + 0.05591786f;
    value = value * f + 0.24024745f;
    value = value * f + 0.69312181f;
    value = value * f + 0.99999926f;
    return floats(_mm512_scalef_ps(raw(value), whole));
}

// Values of 64 keys of a head in the order in which they are multiplied, [v_width / 8, keys / 2, 8], two neighbouring
// keys side by side; zeros beyond the last key.
void pair_up(const Prefill& p, int64_t head, int64_t key, uint32_t* to) {
    const bf16* first = p.v + head * p.v_head + key * p.v_token;
    for (int64_t pair = 0; pair < KEYS / 2; pair++, first += 2 * p.v_token, key += 2)
        for (int64_t c = 0; c < p.v_width; c++) {
            const uint32_t low = key < p.keys ? first[c].bits : 0;
            const uint32_t high = key + 1 < p.keys ? first[p.v_token + c].bits : 0;
            to[(c / ROWS * KEYS / 2 + pair) * ROWS + c % ROWS] = low | high << 16;
        }
}

class Block {
public:
    explicit Block(const Prefill& p)
        : p(p), q(p.k_width / 2 * QUERIES), weights(KEYS / 2 * QUERIES), out(p.v_width * QUERIES) {}

    // Queries `first` to `first` + 47 of a head; beyond the last, the last again.
    void attend(int64_t head, int64_t first, const uint32_t* values) {
        const int64_t last = std::min(first + QUERIES, p.tokens), seen = std::min(p.past + last, p.keys);
        begin(head, first);
        const bf16* keys = p.k + head / (p.heads / p.kv_heads) * p.k_head;
        for (int64_t key = 0; key < seen; key += KEYS) {
            const int64_t count = std::min(KEYS, up_to(seen - key, ROWS));
            score(keys, key, count);
            if (key + count > std::min(p.past + first + 1, p.keys)) hide(key, count, p.past + first);
            weigh(count);
            mix(values + key / 2 * p.v_width, count);
        }
        for (int64_t t = first; t < last; t += LANES) finish(t - first, std::min<int64_t>(last - t, LANES), head, t);
    }

private:
    const Prefill& p;
    std::vector<uint32_t> q, weights;  // [pairs of numbers, 48 queries]
    std::vector<float> out;            // [v_width, 48 queries]
    float scores[KEYS * QUERIES];      // not yet scaled
    Floats highest[VECTORS], total[VECTORS], kept[VECTORS];

    void begin(int64_t head, int64_t first) {
        const int64_t pairs = p.k_width / 2;
        for (int64_t lane = 0; lane < QUERIES; lane += LANES)
            for (int64_t pair = 0; pair < pairs; pair += LANES) {
                const int64_t count = std::min<int64_t>(pairs - pair, LANES);
                __m512i x[LANES];
                for (int i = 0; i < LANES; i++) {
                    const int64_t token = std::min(first + lane + i, p.tokens - 1);
                    const bf16* row = p.q + head * p.q_head + token * p.q_token + 2 * pair;
                    x[i] = _mm512_maskz_loadu_epi32(__mmask16((1u << count) - 1), row);
                }
                transpose(x);
                for (int64_t i = 0; i < count; i++) _mm512_storeu_si512(&q[(pair + i) * QUERIES + lane], x[i]);
            }
        std::fill(out.begin(), out.end(), 0.0f);
        for (int c = 0; c < VECTORS; c++) highest[c] = splat(NEVER), total[c] = splat(0.0f);
    }

    void score(const bf16* keys, int64_t key, int64_t count) {
        for (int64_t j = 0; j < count; j += ROWS) {
            const char* rows[ROWS];
            for (int r = 0; r < ROWS; r++)
                rows[r] = reinterpret_cast<const char*>(keys + std::min(key + j + r, p.keys - 1) * p.k_token);
            multiply(rows, 4, q.data(), p.k_width / 2, nullptr, scores + j * QUERIES);
        }
    }

    // Keys that come after a lane's query, the first of which is number `position`, as are those that are none.
    void hide(int64_t key, int64_t count, int64_t position) {
        const float never = p.scale < 0 ? -NEVER : NEVER;
        Floats lane;
        for (int i = 0; i < LANES; i++) lane[i] = float(i);
        for (int64_t j = 0; j < count; j++)
            for (int c = 0; c < VECTORS; c++) {
                float* at = scores + j * QUERIES + c * LANES;
                const Floats ahead = splat(float(key + j - position - c * LANES)) - lane;
                store(at, ahead > 0.0f || key + j >= p.keys ? splat(never) : load(at));
            }
    }

    // Scores to weights against the new maximum, those of two keys a number; `kept` is what earlier ones shrink to.
    void weigh(int64_t count) {
        alignas(64) uint16_t beside[2 * LANES];
        for (int i = 0; i < LANES; i++) beside[2 * i] = i, beside[2 * i + 1] = LANES + i;
        const __m512i order = _mm512_load_si512(beside);
        for (int c = 0; c < VECTORS; c++) {
            Floats top = highest[c], sum = splat(0.0f);
            const float* at = scores + c * LANES;
            for (int64_t j = 0; j < count; j++) top = larger(top, load(at + j * QUERIES) * p.scale);
            for (int64_t j = 0; j < count; j += 2, at += 2 * QUERIES) {
                const Floats low = weight(load(at) * p.scale - top), high = weight(load(at + QUERIES) * p.scale - top);
                sum += low + high;
                const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(raw(high), raw(low));
                _mm512_storeu_si512(&weights[j / 2 * QUERIES + c * LANES], _mm512_permutexvar_epi16(order, both));
            }
            kept[c] = weight(highest[c] - top);
            total[c] = total[c] * kept[c] + sum;
            highest[c] = top;
        }
    }

    void mix(const uint32_t* values, int64_t count) {
        for (int64_t channel = 0; channel < p.v_width; channel += ROWS) {
            const char* rows[ROWS];
            for (int r = 0; r < ROWS; r++) rows[r] = reinterpret_cast<const char*>(values + channel * KEYS / 2 + r);
            multiply(rows, 4 * ROWS, weights.data(), count / 2, kept, &out[channel * QUERIES]);
        }
    }

    // The results of `count` lanes from `lane` on, which are the tokens from `token` on.
    void finish(int64_t lane, int64_t count, int64_t head, int64_t token) const {
        const Floats share = 1.0f / total[lane / LANES];
        for (int64_t channel = 0; channel < p.v_width; channel += LANES) {
            const int64_t channels = std::min<int64_t>(p.v_width - channel, LANES);
            __m512i x[LANES];
            for (int i = 0; i < LANES; i++) {
                const float* at = &out[(channel + std::min<int64_t>(i, channels - 1)) * QUERIES + lane];
                x[i] = _mm512_castps_si512(raw(load(at) * share));
            }
            transpose(x);
            for (int64_t i = 0; i < count; i++) {
                bf16* to = p.out + ((token + i) * p.heads + head) * p.v_width + channel;
                const __m256i narrow = (__m256i)_mm512_cvtneps_pbh(_mm512_castsi512_ps(x[i]));
                _mm256_mask_storeu_epi16(to, __mmask16((1u << channels) - 1), narrow);
            }
        }
    }
};

}  // namespace

extern "C" int32_t serves_prefill() { return 1; }

// `p.scale` holds the logarithm's factor already: scores are exponents of two.
extern "C" void prefill(const Prefill* given, int32_t threads) {
    const Prefill& p = *given;
    const int64_t parts = (p.keys + KEYS - 1) / KEYS, part_size = KEYS / 2 * p.v_width;
    const int64_t blocks = (p.tokens + QUERIES - 1) / QUERIES, group = p.heads / p.kv_heads;
    const std::unique_ptr<uint32_t[]> values(new uint32_t[p.kv_heads * parts * part_size]);
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int64_t i = 0; i < p.kv_heads * parts; i++)
            pair_up(p, i / parts, i % parts * KEYS, &values[i * part_size]);
        Block block(p);
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < blocks * p.heads; i++) {  // the last blocks, which see most, first
            const int64_t head = i % p.heads;
            block.attend(head, (blocks - 1 - i / p.heads) * QUERIES, &values[head / group * parts * part_size]);
        }
    }
}
#else
extern "C" int32_t serves_prefill() { return 0; }
extern "C" void prefill(const Prefill*, int32_t) {}
#endif
