// What a call of decode attention says, the keys of a sequence that are taken at once, and what is kept of them.
#pragma once

#include <algorithm>
#include <vector>

#include "lanes.h"

constexpr int MOST_PARTS = 2;  // of a key

// Vectors in pages, see `_stored` in attention.py. Strides count elements.
struct Stored {
    int64_t kind;  // 0 fp32, 1 bf16, 2 int8
    int64_t width;
    const void* rows;
    int64_t page, token, head;
    const float* scales;
    int64_t scale_page, scale_token, scale_head;

    int64_t size() const { return kind == 0 ? 4 : kind == 1 ? 2 : 1; }
    // Those of one head; `byte` says where each key's first head is.
    Rows of_head(const int64_t* byte, int64_t h) const {
        return Rows(static_cast<const char*>(rows) + h * head * size(), byte);
    }
    // Those of all heads, which are side by side in a pool.
    Ahead ahead(const int64_t* byte, int64_t heads) const { return Ahead(Rows(rows, byte), heads * width * size()); }
};

struct Queries {
    const void* rows;
    int64_t sequence, head;
};

// Everything about a call but the queries' type, see `_DECODE` in attention.py.
struct Decode {
    int64_t sequences, heads, kv_heads, parts;
    Queries queries[MOST_PARTS];
    Stored keys[MOST_PARTS];
    Stored values;
    const int32_t* contexts;
    const int32_t* tables;
    int64_t table, page_size;
    float scale;

    int64_t group() const { return heads / kv_heads; }
    bool shared() const { return values.rows == keys[0].rows && values.width == keys[0].width; }
    // The kinds of vectors of a token: the parts of its key, then its value.
    int64_t kinds() const { return parts + 1; }
    const Stored& kind(int64_t i) const { return i < parts ? keys[i] : values; }
};

// Some keys of a sequence, one at least, and how far from a pool's beginning the vectors of each one lie. Beyond the
// last the last again, since a zero weight would not undo what stands in a page that was never written.
struct Places {
    int count;
    int64_t byte[MOST_PARTS + 1][BLOCK];
    int64_t scale[MOST_PARTS + 1][BLOCK];

    Places(const Decode& d, int64_t sequence, int64_t first, int64_t last) : count(int(last - first)) {
        int64_t page[BLOCK], token[BLOCK];
        const int32_t* table = d.tables + sequence * d.table + first / d.page_size;
        int64_t place = first % d.page_size;
        for (int j = 0; j < BLOCK; j++) {
            page[j] = *table;
            token[j] = place;
            if (j + 1 < count && ++place == d.page_size) place = 0, table++;
        }
        for (int64_t i = 0; i < d.kinds(); i++) {
            const Stored& s = d.kind(i);
            for (int j = 0; j < BLOCK; j++) byte[i][j] = (page[j] * s.page + token[j] * s.token) * s.size();
            for (int j = 0; s.scales && j < BLOCK; j++) scale[i][j] = page[j] * s.scale_page + token[j] * s.scale_token;
        }
    }

    // What 16 vectors of a kind, from the first-th on, are to be multiplied with.
    Floats scales(const Stored& s, int64_t kind, int64_t head, int first) const {
        if (!s.scales) return splat(1.0f);
        float factors[LANES];
        for (int j = 0; j < LANES; j++) factors[j] = s.scales[scale[kind][first + j] + head * s.scale_head];
        return load(factors);
    }
};
