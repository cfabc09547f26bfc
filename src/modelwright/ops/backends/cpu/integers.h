// Products of rows of x with integers of 8 and 4 bits as they are stored: x becomes integers too, of 16 bits.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "matrices.h"

#if HAS_BF16_DOTS
// Numbers as steps of 16 bits. A block of them shares the step's size, a power of two: those from 2^-7 of the block's
// largest on are as exact as bf16 says them, smaller ones are within 2^-15 of the largest.
struct Steps {
    static constexpr int64_t BLOCK = 512;  // so few that the sums of their products with int8 fit 32 bits by far
    const int16_t* data;                   // whole blocks, with zeros behind
    const int32_t* centres;                // for int4, see below
    const float* sizes;
    const bf16* groups;                    // for int4: what the inputs of each group add up to, see below

    // Groups of 32 come first, then those of 64 and of 128; each sum is that of two bf16, the second padded / group on.
    static int64_t before(int64_t padded, int64_t group) { return group == 32 ? 0 : padded / 8 - 4 * padded / group; }
    static int64_t all(int64_t padded) { return 2 * (padded / 32 + padded / 64 + padded / 128); }
};

// Rows of x as steps. The 16 bits j of a run of 32 bytes of int4 hold the steps of inputs 2j, 32 + 2j, 2j + 1 and
// 33 + 2j, four bits each. So x is laid out for it: of 128 inputs, which are two runs, a vector of those that meet the
// lowest bits, one for the next bits and so on. Of the groups of 32 inputs, the first and third vector hold 0 (8 lanes)
// and 2, the others 1 and 3. Each such pair has its centre, -8 times its sum in each lane.
class Integers {
    static constexpr int64_t RUNS = 128;
    const int64_t in, padded;
    const bool for_int4;
    Room<int16_t> data;
    Room<int32_t> centres;
    std::vector<float> sizes;
    Room<bf16> groups;

public:
    std::vector<Steps> rows;

    Integers(int64_t count, int64_t in, bool for_int4)
        : in(in), padded(up_to(in, Steps::BLOCK)), for_int4(for_int4), data(count * padded),
          centres(for_int4 ? count * padded / 4 : 0), sizes(count * padded / Steps::BLOCK),
          groups(for_int4 ? count * Steps::all(padded) : 0) {
        for (int64_t m = 0; m < count; m++) {
            const int64_t skip = m * padded;
            const bf16* own = groups.get() + m * Steps::all(padded);
            rows.push_back({data.get() + skip, centres.get() + skip / 4, sizes.data() + skip / Steps::BLOCK, own});
        }
    }

    void fill(int64_t m, const bf16* x) {
        for (int64_t k = 0; k < padded; k += Steps::BLOCK) {
            int16_t* to = data.get() + m * padded + k;
            const float size = fill_block(x + k, std::min(Steps::BLOCK, in - k), to);
            sizes[(m * padded + k) / Steps::BLOCK] = size;
            if (!for_int4) continue;
            add_up(to, size, k, groups.get() + m * Steps::all(padded));
            for (int64_t i = 0; i < Steps::BLOCK; i += RUNS)
                lay_out(to + i, centres.get() + (m * padded + k + i) / 4);
        }
    }

private:
    // Returns the size of a step, which is not a number where one of x is none, or infinite.
    static float fill_block(const bf16* x, int64_t some, int16_t* out) {
        __m512i most = _mm512_setzero_si512();
        for (int64_t k = 0; k < some; k += 32) {
            const __m512i magnitudes = _mm512_and_si512(load_halves(x + k, some - k), _mm512_set1_epi16(0x7FFF));
            most = _mm512_max_epu16(most, magnitudes);
        }
        const __m512i odd = _mm512_srli_epi32(most, 16), even = _mm512_and_si512(most, _mm512_set1_epi32(0xFFFF));
        const int largest = _mm512_reduce_max_epi32(_mm512_max_epi32(odd, even)) >> 7;
        const int exponent = std::max(largest, 15);  // for sizes that are normal numbers
        const __m512 per_size = _mm512_set1_ps(std::ldexp(1.0f, 14 + 127 - exponent));
        for (int64_t k = 0; k < Steps::BLOCK; k += LANES) {
            const __mmask16 own = __mmask16(first_of_32(std::max<int64_t>(some - k, 0)));
            const __m512i bits = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(own, x + k));
            const __m512 value = _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
            const __m512i steps = _mm512_cvtps_epi32(_mm512_mul_ps(value, per_size));
            _mm256_store_si256(reinterpret_cast<__m256i*>(out + k), _mm512_cvtepi32_epi16(steps));
        }
        return exponent == 255 ? NAN : std::ldexp(1.0f, exponent - 127 - 14);
    }

    // The sums of a block's groups, of whole numbers, which add up exactly.
    void add_up(const int16_t* x, float size, int64_t k, bf16* own) const {
        const __m512i ones = _mm512_set1_epi16(1);
        alignas(64) int sums[LANES];
        for (int i = 0; i < LANES; i++) {
            const __m512i pairs = _mm512_dpwssd_epi32(_mm512_setzero_si512(), _mm512_load_si512(x + 32 * i), ones);
            sums[i] = _mm512_reduce_add_epi32(pairs);
        }
        int count = LANES;
        for (int64_t group = 32; group <= 128; group *= 2, count /= 2) {
            const __mmask16 some = __mmask16(first_of_32(count));
            const __m512 sum = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_load_si512(sums)), _mm512_set1_ps(size));
            const __m256i high = (__m256i)_mm512_cvtneps_pbh(sum);
            const __m512 wide = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16));
            bf16* at = own + Steps::before(padded, group) + k / group;
            _mm256_mask_storeu_epi16(at, some, high);
            _mm256_mask_storeu_epi16(at + padded / group, some, (__m256i)_mm512_cvtneps_pbh(_mm512_sub_ps(sum, wide)));
            for (int i = 0; i < count / 2; i++) sums[i] = sums[2 * i] + sums[2 * i + 1];
        }
    }

    static void lay_out(int16_t* x, int32_t* centres) {
        const __m512i minus_8 = _mm512_set1_epi16(-8);
        __m512i v[4];
        for (int i = 0; i < 4; i++) v[i] = _mm512_load_si512(x + 32 * i);
        const auto evens = [](__m512i a, __m512i b) {
            return _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtepi32_epi16(a)), _mm512_cvtepi32_epi16(b), 1);
        };
        for (int i = 0; i < 2; i++) {
            const __m512i even = evens(v[i], v[i + 2]);
            const __m512i odd = evens(_mm512_srli_epi32(v[i], 16), _mm512_srli_epi32(v[i + 2], 16));
            _mm512_store_si512(x + 32 * i, even);
            _mm512_store_si512(x + 64 + 32 * i, odd);
            const __m512i sums = _mm512_dpwssd_epi32(_mm512_setzero_si512(), even, minus_8);
            _mm512_store_si512(centres + 16 * i, _mm512_dpwssd_epi32(sums, odd, minus_8));
        }
    }
};

// sums[r][m] = inputs `first` to `last` - 1 of row r times the steps xs[m].
template <int R, int M>
INLINE void dots_of_block(const Int8* rows, const Steps* xs, int64_t first, int64_t last, __m512 (&sums)[R][M]) {
    __m512i parts[R][M];
    each<R * M>([&](auto i) INLINED { parts[i / M][i % M] = _mm512_setzero_si512(); });
    const auto step = [&](int64_t k, int64_t some) INLINED {
        __m512i w[R];
        each<R>([&](auto r) INLINED { w[r] = _mm512_cvtepi8_epi16(load_bytes(rows[r].data + k, some)); });
        each<M>([&](auto m) INLINED {
            const __m512i x = _mm512_load_si512(xs[m].data + k);
            each<R>([&](auto r) INLINED { parts[r][m] = _mm512_dpwssd_epi32(parts[r][m], w[r], x); });
        });
    };
    int64_t k = first;
    for (; k + 64 <= last; k += 64) {
        each<R>([&](auto r) INLINED { rows[r].ask(k); });
        step(k, 32);
        step(k + 32, 32);
    }
    for (; k < last; k += 32) step(k, last - k);
    each<R * M>([&](auto i) INLINED { sums[i / M][i % M] = _mm512_cvtepi32_ps(parts[i / M][i % M]); });
}

// The scales of the groups that 128 inputs belong to, each in the lanes of its products.
class Spread {
    const int64_t group;
    const __mmask8 all;
    const __m512i even, odd;

    static __m512i places(int first, int second) {
        return _mm512_inserti64x4(_mm512_set1_epi16(first), _mm256_set1_epi16(second), 1);
    }

public:
    explicit Spread(int64_t group)
        : group(group), all(group == 32 ? 15 : group == 64 ? 3 : 1),
          even(group == 32 ? places(0, 2) : group == 64 ? places(0, 1) : places(0, 0)),
          odd(group == 32 ? places(1, 3) : even) {}

    // From the first of the groups on, of 128 inputs or `some`: for the first and third vector, and for the others.
    INLINE void operator()(const bf16* row, int64_t some, __m512 (&out)[2]) const {
        const __mmask8 own = some < 128 && group < 128 ? all >> (64 / group) : all;
        const __m512i few = _mm512_castsi128_si512(_mm_maskz_loadu_epi16(own, row));
        out[0] = _mm512_castsi512_ps(_mm512_maskz_permutexvar_epi16(0xAAAAAAAA, even, few));  // a float's upper half
        out[1] = _mm512_castsi512_ps(_mm512_maskz_permutexvar_epi16(0xAAAAAAAA, odd, few));
    }
};

// The scale of a group is applied to the sum over the group.
template <int R, int M>
INLINE void dots_of_block(const Int4* rows, const Steps* xs, int64_t first, int64_t last, __m512 (&sums)[R][M]) {
    const __m512i low = _mm512_set1_epi16(15);
    const Spread spread(rows[0].group);
    each<R * M>([&](auto i) INLINED { sums[i / M][i % M] = _mm512_setzero_ps(); });
    const auto step = [&](int64_t k, int64_t some) INLINED {
        const int64_t group = rows[0].group_of(k);
        each<R>([&](auto r) INLINED {
            rows[r].ask(k);
            const uint8_t* at = rows[r].data + k / 2;
            const __m512i bytes = some < 128 ? _mm512_maskz_loadu_epi8(0xFFFFFFFF, at) : _mm512_loadu_si512(at);
            const __m512i w[4] = {_mm512_and_si512(bytes, low), _mm512_and_si512(_mm512_srli_epi16(bytes, 4), low),
                                  _mm512_and_si512(_mm512_srli_epi16(bytes, 8), low), _mm512_srli_epi16(bytes, 12)};
            __m512 scales[2];
            spread(rows[r].scales + group, some, scales);
            each<2 * M>([&](auto n) INLINED {
                constexpr int m = n / 2, i = n % 2;
                const int16_t* x = xs[m].data + k + 32 * i;
                const __m512i centre = _mm512_load_si512(xs[m].centres + k / 4 + 16 * i);
                const __m512i half = _mm512_dpwssd_epi32(centre, w[i], _mm512_load_si512(x));
                const __m512i part = _mm512_dpwssd_epi32(half, w[i + 2], _mm512_load_si512(x + 64));
                sums[r][m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(part), scales[i], sums[r][m]);
            });
        });
    };
    int64_t k = first;
    for (; k + 128 <= last; k += 128) step(k, 128);
    if (k < last) step(k, 64);
}

// out[r][m] += the offsets of row r times the sums of xs[m] over their groups.
template <int R, int M>
__attribute__((noinline)) void add_offsets(const Int4* rows, const Steps* xs, float (*out)[MOST]) {
    const int64_t in = rows[0].in, group = rows[0].group, groups = in / group;
    const int64_t padded = up_to(in, Steps::BLOCK), before = Steps::before(padded, group);
    __m512 totals[R][M];
    each<R * M>([&](auto i) INLINED { totals[i / M][i % M] = _mm512_setzero_ps(); });
    const auto step = [&](int64_t g, int64_t some) INLINED {
        __m512bh offsets[R];
        each<R>([&](auto r) INLINED {
            __builtin_prefetch(rows[r].offsets + g + AHEAD / 16);
            offsets[r] = (__m512bh)load_halves(rows[r].offsets + g, some);
        });
        each<M>([&](auto m) INLINED {
            const bf16* sums = xs[m].groups + before + g;
            const __m512bh high = (__m512bh)load_halves(sums, some);
            const __m512bh low = (__m512bh)load_halves(sums + padded / group, some);
            each<R>([&](auto r) INLINED {
                totals[r][m] = _mm512_dpbf16_ps(_mm512_dpbf16_ps(totals[r][m], offsets[r], high), offsets[r], low);
            });
        });
    };
    int64_t g = 0;
    for (; g + 32 <= groups; g += 32) step(g, 32);
    if (g < groups) step(g, groups - g);
    each<R * M>([&](auto i) INLINED { out[i / M][i % M] += _mm512_reduce_add_ps(totals[i / M][i % M]); });
}

// As of floats, see linear.h.
template <int R, int M, typename Matrix>
inline void dots(const Matrix* rows, const Steps* xs, float (*out)[MOST]) {
    __m512 totals[R][M], sums[R][M];
    each<R * M>([&](auto i) INLINED { totals[i / M][i % M] = _mm512_setzero_ps(); });
    const int64_t in = rows[0].in;
    for (int64_t k = 0; k < in; k += Steps::BLOCK) {
        dots_of_block<R, M>(rows, xs, k, std::min(k + Steps::BLOCK, in), sums);
        each<R * M>([&](auto i) INLINED {
            const __m512 size = _mm512_set1_ps(xs[i % M].sizes[k / Steps::BLOCK]);
            totals[i / M][i % M] = _mm512_fmadd_ps(sums[i / M][i % M], size, totals[i / M][i % M]);
        });
    }
    each<R * M>([&](auto i) INLINED {
        out[i / M][i % M] = rows[i / M].finish(_mm512_reduce_add_ps(totals[i / M][i % M]));
    });
    if constexpr (std::is_same_v<Matrix, Int4>)
        if (rows[0].offsets) add_offsets<R, M>(rows, xs, out);
}
#endif
