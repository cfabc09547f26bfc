// Vectors of 16 floats, in as many registers as the CPU needs for them, and the stored types they are loaded from.
#pragma once

#include <cstring>
#include <memory>
#include <new>
#include <utility>

#include "layouts.h"
#include "thresholds.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif
#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512VNNI__)
#define HAS_BF16_DOTS 1
#else
#define HAS_BF16_DOTS 0
#endif

#define INLINED __attribute__((always_inline))  // behind a lambda's parameters
#define INLINE inline INLINED

// Floats that a register of the processor holds: 16, or of the 8 of AVX and the 4 of others several make a vector.
#if defined(__AVX512F__)
constexpr int REGISTER = 16;
#elif defined(__AVX__)
constexpr int REGISTER = 8;
#else
constexpr int REGISTER = 4;
#endif

typedef float Register __attribute__((vector_size(REGISTER * sizeof(float)), aligned(4), may_alias));
typedef int32_t Ints __attribute__((vector_size(REGISTER * sizeof(int32_t)), aligned(4), may_alias));
typedef uint32_t Words __attribute__((vector_size(REGISTER * sizeof(uint32_t)), aligned(4), may_alias));
typedef uint16_t Halves __attribute__((vector_size(REGISTER * sizeof(uint16_t)), aligned(2), may_alias));
typedef int8_t Bytes __attribute__((vector_size(REGISTER), aligned(1), may_alias));
typedef uint8_t Nibbles __attribute__((vector_size(REGISTER), aligned(1), may_alias));

// N floats: a register, or several that are named one by one, since GCC leaves a wider vector in memory.
template <int N>
struct Joined;
template <int N>
struct Vector {
    typedef Joined<N> Type;
};
template <>
struct Vector<REGISTER> {
    typedef Register Type;
};
typedef Vector<LANES>::Type Floats;

template <int N>
struct Joined {
    typedef typename Vector<N / 2>::Type Half;
    Half low, high;

    Joined() = default;
    Joined(float x) : low(Half{} + x), high(Half{} + x) {}
    Joined(Half low, Half high) : low(low), high(high) {}

    float operator[](int64_t i) const { return i < N / 2 ? low[i] : high[i - N / 2]; }
    Joined operator-() const { return {-low, -high}; }
    friend Joined operator+(Joined a, Joined b) { return {a.low + b.low, a.high + b.high}; }
    friend Joined operator-(Joined a, Joined b) { return {a.low - b.low, a.high - b.high}; }
    friend Joined operator*(Joined a, Joined b) { return {a.low * b.low, a.high * b.high}; }
    friend Joined operator/(Joined a, Joined b) { return {a.low / b.low, a.high / b.high}; }
    Joined& operator+=(Joined other) { return *this = *this + other; }
};

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

// int4 as matrices.h says: 16 bytes, of which the low or the high halves are numbers, each 8 too large.
struct Int4Numbers {
    const uint8_t* at;
    int shift;
    Int4Numbers operator+(int64_t count) const { return {at + count, shift}; }
};

inline Register load_register(const float* at) { return *reinterpret_cast<const Register*>(at); }
inline Register load_register(const bf16* at) {
#if HAS_BF16_DOTS  // one instruction, of which GCC makes several
    const __m512i widened = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
    Words wide;
    std::memcpy(&wide, &widened, sizeof wide);
    wide <<= 16;
#else
    Words wide = __builtin_convertvector(*reinterpret_cast<const Halves*>(at), Words) << 16;
#endif
    Register value;
    std::memcpy(&value, &wide, sizeof value);
    return value;
}
#if defined(__AVX2__) && !defined(__AVX512F__)  // eight bytes are half of the least vector: GCC takes them one by one
inline __m128i load_eight(const void* at) { return _mm_loadl_epi64(static_cast<const __m128i*>(at)); }
inline Register to_floats(__m256i x) {
    const __m256 value = _mm256_cvtepi32_ps(x);
    Register same;
    std::memcpy(&same, &value, sizeof same);
    return same;
}
inline Register load_register(const int8_t* at) { return to_floats(_mm256_cvtepi8_epi32(load_eight(at))); }
inline Register load_register(Int4Numbers from) {
    const __m256i steps = _mm256_srl_epi32(_mm256_cvtepu8_epi32(load_eight(from.at)), _mm_cvtsi32_si128(from.shift));
    return to_floats(_mm256_sub_epi32(_mm256_and_si256(steps, _mm256_set1_epi32(15)), _mm256_set1_epi32(8)));
}
#else
inline Register load_register(const int8_t* at) {
    return __builtin_convertvector(__builtin_convertvector(*reinterpret_cast<const Bytes*>(at), Ints), Register);
}
inline Register load_register(Int4Numbers from) {
    const Ints steps = __builtin_convertvector(*reinterpret_cast<const Nibbles*>(from.at), Ints);
    return __builtin_convertvector(((steps >> from.shift) & 15) - 8, Register);
}
#endif

// N numbers, 16 or fewer that a register holds.
template <int N = LANES, typename From>
INLINE typename Vector<N>::Type load(From from) {
    if constexpr (N == REGISTER) return load_register(from);
    else return {load<N / 2>(from), load<N / 2>(from + N / 2)};
}

// The first `count` <= N values, none where it is negative, and zeros.
template <int N = LANES, typename T>
inline typename Vector<N>::Type load_some(const T* at, int64_t count) {
    T whole[N] = {};
    if (count > 0) std::memcpy(whole, at, count * sizeof(T));
    return load<N>(static_cast<const T*>(whole));
}

inline void store(float* at, Register value) { *reinterpret_cast<Register*>(at) = value; }
inline void store(bf16* at, Register value) {  // as one by one
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
template <int N, typename T>
INLINE void store(T* at, Joined<N> value) {
    store(at, value.low);
    store(at + N / 2, value.high);
}

inline float sum(Register x) {
#if defined(__AVX512F__)
    __m512 whole;
    std::memcpy(&whole, &x, sizeof whole);
    return _mm512_reduce_add_ps(whole);
#else
    float total = 0;
    for (int i = 0; i < REGISTER; i++) total += x[i];
    return total;
#endif
}
template <int N>
inline float sum(Joined<N> x) { return sum(x.low + x.high); }

constexpr float NEVER = -1e30f;  // a score that is below all others

inline Register larger(Register a, Register b) { return a > b ? a : b; }
template <int N>
inline Joined<N> larger(Joined<N> a, Joined<N> b) { return {larger(a.low, b.low), larger(a.high, b.high)}; }

// 2^x for x <= 0, to 2e-7 of the result; below -126 it is 0, and of NaN it is NaN.
inline Register exp2_negative(Register x) {
    Register bounded = x < -126.0f ? Register{} - 126.0f : x;
    Register shifted = bounded + 12582912.0f;  // 1.5 * 2^23: the sum's last bits are the nearest integer
    Register whole = shifted - 12582912.0f;
    Register f = bounded - whole;  // [-0.5, 0.5]
    Register value = Register{} + 1.5353362e-4f;
    value = value * f + 1.3398874e-3f;
    value = value * f + 9.6184370e-3f;
    value = value * f + 5.5503324e-2f;
    value = value * f + 2.4022648e-1f;
    value = value * f + 6.9314720e-1f;
    value = value * f + 1.0f;
    Ints power = (__builtin_convertvector(whole, Ints) + 127) << 23;
    Register scale;
    std::memcpy(&scale, &power, sizeof scale);
    return x < -126.0f ? Register{} : value * scale;
}
template <int N>
inline Joined<N> exp2_negative(Joined<N> x) { return {exp2_negative(x.low), exp2_negative(x.high)}; }

// 1 / (1 + exp(-x)), from exp(-|x|) so that nothing overflows; and x times that.
inline Register sigmoid(Register x) {
    const Register least = exp2_negative((x < 0.0f ? x : -x) * 1.44269504f);
    return (x < 0.0f ? least : Register{} + 1.0f) / (1.0f + least);
}
inline Register silu(Register x) {
    const Register least = exp2_negative((x < 0.0f ? x : -x) * 1.44269504f);
    return x * (x < 0.0f ? least : Register{} + 1.0f) / (1.0f + least);
}
template <int N>
inline Joined<N> sigmoid(Joined<N> x) { return {sigmoid(x.low), sigmoid(x.high)}; }
template <int N>
inline Joined<N> silu(Joined<N> x) { return {silu(x.low), silu(x.high)}; }

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

#if defined(__AVX512F__)
// A vector as intrinsics take it, and back.
inline __m512 raw(Floats x) {
    __m512 same;
    std::memcpy(&same, &x, sizeof same);
    return same;
}
inline Floats floats(__m512 x) {
    Floats same;
    std::memcpy(&same, &x, sizeof same);
    return same;
}

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

#endif

#if HAS_BF16_DOTS
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
