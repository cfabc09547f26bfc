// What a call of decode attention says, the keys of a sequence that are taken at once, and what is kept of them.
#pragma once

#include <algorithm>
#include <vector>

#include "lanes.h"

inline int64_t number_size(const Stored& s) {
    return s.kind == StoredKind::fp32 ? 4 : s.kind == StoredKind::bf16 ? 2 : 1;
}
// The vectors of one head; `byte` says where each key's first head is.
inline Rows rows_of_head(const Stored& s, const int64_t* byte, int64_t h) {
    return Rows(static_cast<const char*>(s.rows) + h * s.head * number_size(s), byte);
}
// Those of all heads, which are side by side in a pool.
inline Ahead ahead_of(const Stored& s, const int64_t* byte, int64_t heads) {
    return Ahead(Rows(s.rows, byte), heads * s.width * number_size(s));
}

// The heads that share a key.
inline int64_t group_of(const Decode& d) { return d.heads / d.kv_heads; }
// Whether values are the first part of the keys.
inline bool shares_rows(const Decode& d) {
    return d.values.rows == d.keys[0].rows && d.values.width == d.keys[0].width;
}
// The kinds of vectors of a token: the parts of its key, then its value.
inline int64_t kinds_of(const Decode& d) { return d.parts + 1; }
inline const Stored& kind_of(const Decode& d, int64_t i) { return i < d.parts ? d.keys[i] : d.values; }

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
        for (int64_t i = 0; i < kinds_of(d); i++) {
            const Stored& s = kind_of(d, i);
            for (int j = 0; j < BLOCK; j++) byte[i][j] = (page[j] * s.page + token[j] * s.token) * number_size(s);
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
