// Vectors of 16 floats that any compiler lowers to what the CPU has, and the stored types they are loaded from.
#pragma once

#include <cstring>
#include <memory>
#include <new>
#include <utility>

#include "layouts.h"
#include "thresholds.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#endif
#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512VNNI__)
#define HAS_BF16_DOTS 1
#else
#define HAS_BF16_DOTS 0
#endif

#define INLINED __attribute__((always_inline))  // behind a lambda's parameters
#define INLINE inline INLINED

typedef float Floats __attribute__((vector_size(LANES * sizeof(float)), aligned(4), may_alias));
typedef int32_t Ints __attribute__((vector_size(LANES * sizeof(int32_t)), aligned(4), may_alias));
typedef uint32_t Words __attribute__((vector_size(LANES * sizeof(uint32_t)), aligned(4), may_alias));
typedef uint16_t Halves __attribute__((vector_size(LANES * sizeof(uint16_t)), aligned(2), may_alias));
typedef int8_t Bytes __attribute__((vector_size(LANES * sizeof(int8_t)), aligned(1), may_alias));

struct bf16 {
    uint16_t bits;
};

inline float to_float(float x) { return x; }
inline float to_float(int8_t x) { return x; }
inline float to_float(bf16 x) {
    uint32_t wide = uint32_t(x.bits) << 16;
    float value;
    std::memcpy(&value, &wide, 4);
    return value;
}

inline void store(float* at, float value) { *at = value; }
inline void store(bf16* at, float value) {  // to the nearest, ties to even
    uint32_t wide;
    std::memcpy(&wide, &value, 4);
    at->bits = value != value ? 0x7FC0 : uint16_t((wide + 0x7FFF + ((wide >> 16) & 1)) >> 16);
}

inline Floats splat(float x) { return Floats{} + x; }

inline Floats load(const float* at) { return *reinterpret_cast<const Floats*>(at); }
inline Floats load(const bf16* at) {
#if HAS_BF16_DOTS  // one instruction, of which GCC makes several
    const __m512i widened = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
    Words wide;
    std::memcpy(&wide, &widened, sizeof wide);
    wide <<= 16;
#else
    Words wide = __builtin_convertvector(*reinterpret_cast<const Halves*>(at), Words) << 16;
#endif
    Floats value;
    std::memcpy(&value, &wide, sizeof value);
    return value;
}
inline Floats load(const int8_t* at) {
    return __builtin_convertvector(__builtin_convertvector(*reinterpret_cast<const Bytes*>(at), Ints), Floats);
}

// The first `count` <= 16 values, and zeros.
template <typename T>
inline Floats load_some(const T* at, int64_t count) {
    T whole[LANES] = {};
    std::memcpy(whole, at, count * sizeof(T));
    return load(whole);
}

inline void store(float* at, Floats value) { *reinterpret_cast<Floats*>(at) = value; }
inline void store(bf16* at, Floats value) {  // as one by one
    Words wide;
    std::memcpy(&wide, &value, sizeof wide);
    wide = (wide + 0x7FFF + ((wide >> 16) & 1)) >> 16;
    wide = value == value ? wide : Words{} + 0x7FC0;
#if HAS_BF16_DOTS
    __m512i words;
    std::memcpy(&words, &wide, sizeof words);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), _mm512_cvtepi32_epi16(words));
#else
    *reinterpret_cast<Halves*>(at) = __builtin_convertvector(wide, Halves);
#endif
}

inline float sum(Floats x) {
#if defined(__AVX512F__)
    __m512 whole;
    std::memcpy(&whole, &x, sizeof whole);
    return _mm512_reduce_add_ps(whole);
#else
    float total = 0;
    for (int i = 0; i < LANES; i++) total += x[i];
    return total;
#endif
}

constexpr float NEVER = -1e30f;  // a score that is below all others

inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }

// 2^x for x <= 0, to 2e-7 of the result; below -126 it is 0, and of NaN it is NaN.
inline Floats exp2_negative(Floats x) {
    Floats bounded = x < -126.0f ? splat(-126.0f) : x;
    Floats shifted = bounded + 12582912.0f;  // 1.5 * 2^23: the sum's last bits are the nearest integer
    Floats whole = shifted - 12582912.0f;
    Floats f = bounded - whole;  // [-0.5, 0.5]
    Floats value = splat(1.5353362e-4f);
    value = value * f + 1.3398874e-3f;
    value = value * f + 9.6184370e-3f;
    value = value * f + 5.5503324e-2f;
    value = value * f + 2.4022648e-1f;
    value = value * f + 6.9314720e-1f;
    value = value * f + 1.0f;
    Ints power = (__builtin_convertvector(whole, Ints) + 127) << 23;
    Floats scale;
    std::memcpy(&scale, &power, sizeof scale);
    return x < -126.0f ? splat(0.0f) : value * scale;
}

// x / (1 + exp(-x)), from exp(-|x|) so that nothing overflows.
inline Floats silu(Floats x) {
    const Floats least = exp2_negative((x < 0.0f ? x : -x) * 1.44269504f);
    return x * (x < 0.0f ? least : splat(1.0f)) / (1.0f + least);
}

// act(0), act(1) and so on up to N - 1, each number a constant: GCC leaves arrays of sums that nested loops index in
// memory, and keeps those of constant index in registers.
template <typename Act, int... I>
INLINE void each_of(Act act, std::integer_sequence<int, I...>) {
    (act(std::integral_constant<int, I>{}), ...);
}
template <int N, typename Act>
INLINE void each(Act act) {
    each_of(act, std::make_integer_sequence<int, N>{});
}

inline int64_t up_to(int64_t size, int64_t whole) { return (size + whole - 1) / whole * whole; }

// Uninitialised numbers from the start of a cache line on.
template <typename T>
class Room {
    struct Free {
        void operator()(T* at) const { ::operator delete[](at, std::align_val_t(64)); }
    };
    std::unique_ptr<T[], Free> data;

public:
    explicit Room(int64_t size) : data(static_cast<T*>(::operator new[](size * sizeof(T), std::align_val_t(64)))) {}
    T* get() const { return data.get(); }
};

#if HAS_BF16_DOTS
// 32 bits, which are two numbers in bf16 or one in fp32, in every lane.
inline __m512i everywhere(const void* at) {
    int32_t lane;
    std::memcpy(&lane, at, 4);
    return _mm512_set1_epi32(lane);
}

// 16 rows of 16 lanes of 32 bits each become columns.
INLINE void transpose(__m512i (&x)[LANES]) {
    __m512i t[LANES];
    for (int i = 0; i < LANES; i += 2) {
        t[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
    }
    for (int i = 0; i < LANES; i += 4)
        for (int half = 0; half < 2; half++) {
            x[i + 2 * half] = _mm512_unpacklo_epi64(t[i + half], t[i + half + 2]);
            x[i + 2 * half + 1] = _mm512_unpackhi_epi64(t[i + half], t[i + half + 2]);
        }
    for (int c = 0; c < 4; c++) {  // x[i + c] holds four rows of the columns c, c + 4, c + 8 and c + 12
        const __m512i even = _mm512_shuffle_i32x4(x[c], x[4 + c], 0x88);
        const __m512i odd = _mm512_shuffle_i32x4(x[c], x[4 + c], 0xDD);
        const __m512i more_even = _mm512_shuffle_i32x4(x[8 + c], x[12 + c], 0x88);
        const __m512i more_odd = _mm512_shuffle_i32x4(x[8 + c], x[12 + c], 0xDD);
        t[c] = _mm512_shuffle_i32x4(even, more_even, 0x88);
        t[8 + c] = _mm512_shuffle_i32x4(even, more_even, 0xDD);
        t[4 + c] = _mm512_shuffle_i32x4(odd, more_odd, 0x88);
        t[12 + c] = _mm512_shuffle_i32x4(odd, more_odd, 0xDD);
    }
    for (int i = 0; i < LANES; i++) x[i] = t[i];
}

inline __mmask32 first_of_32(int64_t some) { return some >= 32 ? ~__mmask32(0) : (__mmask32(1) << some) - 1; }

// The first 32 numbers, or as many as there are, and zeros.
inline __m512i load_halves(const bf16* at, int64_t some) {
    return some >= 32 ? _mm512_loadu_si512(at) : _mm512_maskz_loadu_epi16(first_of_32(some), at);
}
template <typename Byte>
inline __m256i load_bytes(const Byte* at, int64_t some) {
    return some >= 32 ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at))
                      : _mm256_maskz_loadu_epi8(first_of_32(some), at);
}
#endif
