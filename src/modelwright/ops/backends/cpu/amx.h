// The processor's matrix unit (AMX): tiles of 16 rows of 64 bytes, and the system's permission to use them.
#pragma once

#include "tiles.h"

#if HAS_BF16_DOTS && defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__linux__)
#define HAS_TILES 1

#include <sys/syscall.h>
#include <unistd.h>

// Whether the system lets this process use tiles; it must be asked once before the first.
inline bool tiles_permitted() {
    constexpr long REQUEST = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
}

// Two tiles of the matrix, as it lies, times one or two of x, whose pairs of inputs stand in columns: 16 rows of x.
class Tiles {
    struct alignas(64) Shape {
        uint8_t palette = 1;
        uint8_t start = 0;
        uint8_t reserved[14] = {};
        uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
        uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    };

public:
    static constexpr int64_t PANEL = 32;
    static constexpr int64_t DEPTH = 512;
    static constexpr int64_t WHOLE = 32;
    static constexpr int64_t WIDTH = 16;

    Tiles() {
        const Shape shape;
        asm volatile("" ::: "memory");  // GCC 12 does not see that the shape is read, nor what a tile is loaded from
        _tile_loadconfig(&shape);
    }
    ~Tiles() { _tile_release(); }
    Tiles(const Tiles&) = delete;
    Tiles& operator=(const Tiles&) = delete;

    static int64_t group(int64_t) { return WIDTH; }

    // Turns 16 rows of 16 pairs into 16 pairs of 16 rows.
    static void pack(const __m512i* rows, int64_t, bf16* out) {
        __m512i columns[LANES];
        std::copy_n(rows, LANES, columns);
        transpose(columns);
        for (int j = 0; j < LANES; j++) _mm512_store_si512(out + 2 * LANES * j, columns[j]);
    }

    // sums[(group * PANEL + row) * WIDTH + row in the group] += the block's rows times x from input k on.
    void multiply(const Block& block, const Packed& x, int64_t k, const NextBlock& ahead, float* sums) const {
        const int64_t turns = (x.groups + 1) / 2;
        for (int64_t turn = 0; turn < turns; turn++) {
            float* out = sums + 2 * turn * PANEL * WIDTH;
            asm volatile("" ::: "memory");
            if (2 * turn + 1 < x.groups) {
                pair(block, x.at(2 * turn, k), x.at(2 * turn + 1, k), ahead, turn, turns, out);
            } else {
                single(block, x.at(2 * turn, k), ahead, turn, turns, out);
            }
        }
    }

private:
    static void ask(const NextBlock& ahead, int64_t turn, int64_t turns, int64_t k) {
        if (!ahead.data) return;
        for (int64_t row = turn; row < PANEL; row += turns) ahead.ask(row, k);
    }

    static void pair(const Block& block, const bf16* x, const bf16* y, const NextBlock& ahead, int64_t turn,
                     int64_t turns, float* out) {
        const int64_t stride = block.stride * sizeof(bf16), line = WIDTH * sizeof(float);
        _tile_loadd(0, out, line);
        _tile_loadd(1, out + 16 * WIDTH, line);
        _tile_loadd(2, out + 32 * WIDTH, line);
        _tile_loadd(3, out + 48 * WIDTH, line);
        for (int64_t k = 0; k < block.depth; k += 32) {
            ask(ahead, turn, turns, k);
            _tile_loadd(4, block.data + k, stride);
            _tile_loadd(6, x + k * WIDTH, line);
            _tile_loadd(5, block.data + 16 * block.stride + k, stride);
            _tile_loadd(7, y + k * WIDTH, line);
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 5, 6);
            _tile_dpbf16ps(2, 4, 7);
            _tile_dpbf16ps(3, 5, 7);
        }
        _tile_stored(0, out, line);
        _tile_stored(1, out + 16 * WIDTH, line);
        _tile_stored(2, out + 32 * WIDTH, line);
        _tile_stored(3, out + 48 * WIDTH, line);
    }

    static void single(const Block& block, const bf16* x, const NextBlock& ahead, int64_t turn, int64_t turns,
                       float* out) {
        const int64_t stride = block.stride * sizeof(bf16), line = WIDTH * sizeof(float);
        _tile_loadd(0, out, line);
        _tile_loadd(1, out + 16 * WIDTH, line);
        for (int64_t k = 0; k < block.depth; k += 32) {
            ask(ahead, turn, turns, k);
            _tile_loadd(4, block.data + k, stride);
            _tile_loadd(6, x + k * WIDTH, line);
            _tile_loadd(5, block.data + 16 * block.stride + k, stride);
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 5, 6);
        }
        _tile_stored(0, out, line);
        _tile_stored(1, out + 16 * WIDTH, line);
    }
};
#else
#define HAS_TILES 0
#endif
