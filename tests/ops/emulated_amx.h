// The processor's tiles in plain C++, for machines without them: forced in front of a kernel's source by a compiler flag.
#include <immintrin.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace emulated {

struct Tile {
    int rows, bytes;
    alignas(64) unsigned char data[16][64];
};

inline thread_local Tile tiles[8];
inline thread_local bool ready = false;

inline void configure(const void* from) {  // palette, start row, 14 reserved, 16 widths in bytes, 16 heights
    unsigned char shape[64];
    std::memcpy(shape, from, 64);
    if (shape[0] != 1 || shape[1] != 0) std::abort();
    for (int t = 0; t < 8; t++) {
        uint16_t bytes;
        std::memcpy(&bytes, shape + 16 + 2 * t, 2);
        tiles[t].bytes = bytes;
        tiles[t].rows = shape[48 + t];
        if (tiles[t].bytes > 64 || tiles[t].rows > 16) std::abort();
    }
    ready = true;
}

inline void release() { ready = false; }

inline Tile& tile(int t) {
    if (!ready) std::abort();
    return tiles[t];
}

inline void load(int t, const void* from, long stride) {
    Tile& to = tile(t);
    for (int r = 0; r < to.rows; r++) std::memcpy(to.data[r], static_cast<const char*>(from) + r * stride, to.bytes);
}

inline void store(int t, void* to, long stride) {
    const Tile& from = tile(t);
    for (int r = 0; r < from.rows; r++) std::memcpy(static_cast<char*>(to) + r * stride, from.data[r], from.bytes);
}

inline float half(const Tile& from, int row, int place) {
    uint16_t bits;
    std::memcpy(&bits, from.data[row] + 2 * place, 2);
    const uint32_t wide = uint32_t(bits) << 16;
    float value;
    std::memcpy(&value, &wide, 4);
    return value;
}

// sums[m][n] += left[m][2k] * right[k][2n] + left[m][2k + 1] * right[k][2n + 1]
inline void multiply(int sums, int left, int right) {
    Tile &c = tile(sums), &a = tile(left), &b = tile(right);
    for (int m = 0; m < c.rows; m++) {
        for (int n = 0; n < c.bytes / 4; n++) {
            float sum;
            std::memcpy(&sum, c.data[m] + 4 * n, 4);
            for (int k = 0; k < a.bytes / 4; k++)
                sum += half(a, m, 2 * k) * half(b, k, 2 * n) + half(a, m, 2 * k + 1) * half(b, k, 2 * n + 1);
            std::memcpy(c.data[m] + 4 * n, &sum, 4);
        }
    }
}

}  // namespace emulated

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#define _tile_loadconfig(from) emulated::configure(from)
#define _tile_release() emulated::release()
#define _tile_loadd(t, from, stride) emulated::load(t, from, stride)
#define _tile_stored(t, to, stride) emulated::store(t, to, stride)
#define _tile_dpbf16ps(sums, left, right) emulated::multiply(sums, left, right)
