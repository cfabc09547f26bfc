// Where a kernel changes its way of computing with the size of what it is given. Those that choose between a kernel and
// torch are in thresholds.py.
#pragma once

#include <cstdint>

// Rows of bf16 up to which a matrix meets them as it streams by; more of them meet it in blocks. Three and four rows then
// take 0.85 to 0.95 times as long (two cores with AVX-512 BF16, whose memory gave 32 GB/s), two as long.
constexpr int FEW_ROWS_OF_NUMBERS = 2;
constexpr int FEW_ROWS_OF_INT8 = 8;
constexpr int FEW_ROWS_OF_INT4 = 16;

// Rows that a linear layer takes at once: their copy as floats stays small.
constexpr int64_t ROWS_AT_ONCE = 512;

// Numbers from which on threads are woken for rows that are computed one by one.
constexpr int64_t ENOUGH_NUMBERS_IN_ROWS = 1 << 16;

// Keys of a sequence that are worth a thread's while.
constexpr int64_t KEYS_FOR_A_THREAD = 128;

// Tokens from which on the latent kernel turns the rows of values.
constexpr int64_t TOKENS_TO_TURN_ROWS = 8;
