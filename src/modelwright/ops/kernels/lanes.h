// AVX-512 for blocks of keys: lanes of 32 bits that hold two numbers in bf16 or one in fp32, and rows turned into them.
#pragma once

#include <type_traits>

#include "decode.h"

#if HAS_BF16_DOTS

// How products are made of lanes that hold numbers of type X.
template <typename X>
struct Lane;

template <>
struct Lane<bf16> {
    static constexpr int NUMBERS = 2;  // of a key in a lane; and so many keys' weights
    static __m512 add(__m512 sum, __m512i a, __m512i b) {
        return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
    }
    static void keep(bf16* to, Floats low, Floats high) {
        _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low));
    }
};

template <>
struct Lane<float> {
    static constexpr int NUMBERS = 1;
    static __m512 add(__m512 sum, __m512i a, __m512i b) {
        return _mm512_fmadd_ps((__m512)a, (__m512)b, sum);
    }
    static void keep(float* to, Floats low, Floats high) {
        store(to, low);
        store(to + LANES, high);
    }
};

// 16 numbers as floats; of int8 in two instructions, of which GCC makes many.
inline Floats wide(const bf16* at) { return load(at); }
inline Floats wide(const int8_t* at) {
    return (Floats)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at))));
}

inline __m512i everywhere(const void* at) {
    int32_t lane;
    std::memcpy(&lane, at, 4);
    return _mm512_set1_epi32(lane);
}

// 16 lanes of each of 16 rows: lane j of the i-th vector at `to`, 32 lanes apart, is lane i of row j.
inline void turn(const Rows& rows, int first, int64_t beyond, float* to) {
    __m512i a[16], b[16];
    for (int j = 0; j < 16; j++) a[j] = _mm512_loadu_si512(rows.at[first + j] + beyond);
    for (int j = 0; j < 16; j += 2) {
        b[j] = _mm512_unpacklo_epi32(a[j], a[j + 1]);
        b[j + 1] = _mm512_unpackhi_epi32(a[j], a[j + 1]);
    }
    for (int j = 0; j < 16; j += 4) {
        for (int i = 0; i < 2; i++) {
            a[j + 2 * i] = _mm512_unpacklo_epi64(b[j + i], b[j + 2 + i]);
            a[j + 2 * i + 1] = _mm512_unpackhi_epi64(b[j + i], b[j + 2 + i]);
        }
    }  // a[4g + i]: of each four lanes the i-th, of rows 4g to 4g + 3
    for (int i = 0; i < 4; i++) {
        for (int g = 0; g < 2; g++) {
            b[4 * g + i] = _mm512_shuffle_i32x4(a[8 * g + i], a[8 * g + 4 + i], 0x88);
            b[8 + 4 * g + i] = _mm512_shuffle_i32x4(a[8 * g + i], a[8 * g + 4 + i], 0xDD);
        }
    }
    for (int i = 0; i < 4; i++) {
        _mm512_store_si512(to + (0 + i) * BLOCK, _mm512_shuffle_i32x4(b[i], b[4 + i], 0x88));
        _mm512_store_si512(to + (8 + i) * BLOCK, _mm512_shuffle_i32x4(b[i], b[4 + i], 0xDD));
        _mm512_store_si512(to + (4 + i) * BLOCK, _mm512_shuffle_i32x4(b[8 + i], b[12 + i], 0x88));
        _mm512_store_si512(to + (12 + i) * BLOCK, _mm512_shuffle_i32x4(b[8 + i], b[12 + i], 0xDD));
    }
}

// Calls act with the numbers 8, 4, 2 and 1 as constants, as many heads from `first` on, until `count` are through.
template <typename Act>
inline void in_sets(int64_t count, Act act) {
    int64_t first = 0;
    for (; first + 8 <= count; first += 8) act(first, std::integral_constant<int, 8>());
    if (count - first >= 4) act(first, std::integral_constant<int, 4>()), first += 4;
    if (count - first >= 2) act(first, std::integral_constant<int, 2>()), first += 2;
    if (count - first >= 1) act(first, std::integral_constant<int, 1>());
}

// Whole registers of numbers.
class Lines {
    struct alignas(64) Line {
        float lanes[LANES];
    };
    std::vector<Line> lines;

public:
    explicit Lines(int64_t count) : lines(count) {}
    float* at(int64_t i) { return lines[i].lanes; }
    const float* at(int64_t i) const { return lines[i].lanes; }
    void fill(float x) {
        for (Line& line : lines) std::fill_n(line.lanes, LANES, x);
    }
};
#endif
