// How the rows of a matrix are stored: as numbers, or as integers of 8 or 4 bits with scales.
//
// A matrix says up to how many rows of bf16 (`FEW`, of thresholds.h) are better met as it streams by than in the blocks
// of tiles.h, and with how many at once (`TILE`). It gives N inputs of a row as floats, for any
// CPU.
#pragma once

#include "vectors.h"

constexpr int STREAMS = 4;   // rows of the matrix read at once
constexpr int MOST = REGISTER == LANES ? 6 : 4;      // rows of x they are multiplied with at once, as many as registers allow
constexpr int AHEAD = 2048;  // bytes of each stream asked for early

// N numbers of a row from the k-th on, which are there if WHOLE, else with zeros behind the last.
template <int N, bool WHOLE, typename T>
INLINE typename Vector<N>::Type numbers(const T* row, int64_t k, int64_t in) {
    if constexpr (WHOLE) return load<N>(row + k);
    else return load_some<N>(row + k, in - k);
}

template <typename T>
struct Plain {
    static constexpr int TILE = MOST;
    static constexpr int FEW = FEW_ROWS_OF_NUMBERS;
    static constexpr bool INTEGERS = false;
    const T* data;
    int64_t in;

    Plain at(int64_t row) const { return {data + row * in, in}; }
    static int64_t row_bytes(int64_t in) { return in * sizeof(T); }
    INLINE void ask(int64_t k) const { __builtin_prefetch(reinterpret_cast<const char*>(data + k) + AHEAD); }
    template <int N, bool WHOLE>
    INLINE auto floats(int64_t k) const { return numbers<N, WHOLE>(data, k, in); }
    float finish(float sum) const { return sum; }
};

// int8 with a scale per row.
struct Int8 {
    static constexpr int TILE = 4;
    static constexpr int FEW = FEW_ROWS_OF_INT8;
    static constexpr bool INTEGERS = true;
    const int8_t* data;
    const float* scales;
    int64_t in;

    Int8 at(int64_t row) const { return {data + row * in, scales + row, in}; }
    static int64_t row_bytes(int64_t in) { return in; }
    INLINE void ask(int64_t k) const { __builtin_prefetch(data + k + AHEAD); }
    template <int N, bool WHOLE>
    INLINE auto floats(int64_t k) const { return numbers<N, WHOLE>(data, k, in); }
    float finish(float sum) const { return sum * *scales; }
};

// Two inputs a byte: byte j of each 32 holds inputs j (low) and 32 + j (high) of 64, each less 8. A group of 32, 64 or
// 128 inputs shares a scale and, where there are any, an offset that is added to each of its weights.
struct Int4 {
    static constexpr int TILE = REGISTER == LANES ? 2 : 4;
    static constexpr int FEW = FEW_ROWS_OF_INT4;
    static constexpr bool INTEGERS = true;
    const uint8_t* data;
    const bf16* scales;
    const bf16* offsets;
    int64_t in;
    int64_t group;

    Int4 at(int64_t row) const {
        int64_t skip = row * (in / group);
        return {data + row * (in / 2), scales + skip, offsets ? offsets + skip : nullptr, in, group};
    }
    static int64_t row_bytes(int64_t in) { return in / 2; }
    int64_t group_of(int64_t k) const { return k >> __builtin_ctzll(group); }
    INLINE void ask(int64_t k) const {
        __builtin_prefetch(data + k / 2 + AHEAD);
        __builtin_prefetch(scales + group_of(k) + AHEAD / 16);  // as far on in groups of 32
    }
    template <int N, bool>
    INLINE auto floats(int64_t k) const {
        const auto value = load<N>(Int4Numbers{data + k / 64 * 32 + k % 32, int(k % 64 / 32 * 4)});
        const auto scaled = value * to_float(scales[group_of(k)]);
        return offsets ? scaled + to_float(offsets[group_of(k)]) : scaled;
    }
    float finish(float sum) const { return sum; }
};

// A matrix as it comes from outside.
template <typename T>
inline void fill(const Weight& w, Plain<T>& m) { m = {static_cast<const T*>(w.data), w.in}; }
inline void fill(const Weight& w, Int8& m) {
    m = {static_cast<const int8_t*>(w.data), static_cast<const float*>(w.scales), w.in};
}
inline void fill(const Weight& w, Int4& m) {
    m = {static_cast<const uint8_t*>(w.data), static_cast<const bf16*>(w.scales), static_cast<const bf16*>(w.offsets),
         w.in, w.group};
}

// Calls act with an empty matrix of the type that `kind` says, among those that may meet x.
template <typename X, typename Act>
inline void with_kind(WeightKind kind, Act act) {
    switch (kind) {
        case WeightKind::int8: return act(Int8{});
        case WeightKind::int4: return act(Int4{});
        default: return act(Plain<X>{});
    }
}
