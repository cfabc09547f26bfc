// One query per sequence over keys and values in pages: read once, where they lie, by all heads that share them.
//
// A sequence's keys are cut into parts that threads take in turn; each part keeps a running maximum, sum and result per
// head (Milakov & Gimelshein, arXiv:1805.02867), and the parts of a sequence are put together in the end. Scores are
// taken in powers of two. Blocks of keys are added by `WideBlock` where vectors fill its registers, else by
// `FloatBlock`, and while one is added the next one, of whichever part, is asked for.

#include <atomic>
#include <memory>

#include "decode_floats.h"
#include "decode_wide.h"

namespace {

constexpr int64_t SHARES = 2;  // parts for each thread, if all were as long as the next: they shrink, and none is late

// Keys of a sequence.
struct Part {
    int64_t sequence, first, last;

    Places block(const Decode& d, int64_t key) const { return Places(d, sequence, key, std::min(key + BLOCK, last)); }
};

// The parts of all sequences in order, shorter and shorter; or each of so many keys, wherever other sequences end.
struct Parts {
    std::vector<Part> all;
    std::vector<int64_t> starts;  // where each sequence's begin

    Parts(const Decode& d, int threads) {
        int64_t keys = 0;  // that are left
        for (int64_t s = 0; s < d.sequences; s++) keys += d.contexts[s];
        for (int64_t s = 0; s < d.sequences; s++) {
            starts.push_back(all.size());
            for (int64_t first = 0, last; first < d.contexts[s]; first = last) {
                const int64_t share = std::max(KEYS_FOR_A_THREAD, keys / (SHARES * threads));
                const int64_t left = d.contexts[s] - first;
                const int64_t pieces = (left + share - 1) / share;
                last = pieces == 1 ? d.contexts[s] : first + (left / pieces + BLOCK - 1) / BLOCK * BLOCK;
                if (d.share) last = std::min<int64_t>(first + d.share, d.contexts[s]);
                all.push_back({s, first, last});
                keys -= last - first;
            }
        }
        starts.push_back(all.size());
    }
};

// What the parts say of each head, before it is put together.
class Said {
    const int64_t heads, width, padded;
    std::unique_ptr<float[]> tops, totals, out;

public:
    Said(int64_t parts, int64_t heads, int64_t width)
        : heads(heads), width(width), padded(up_to(width, LANES)), tops(new float[parts * heads]),
          totals(new float[parts * heads]), out(new float[parts * heads * padded]) {}

    template <typename Block>
    void keep(int64_t part, const Block& block) {
        for (int64_t h = 0; h < heads; h++) {
            tops[part * heads + h] = block.top(h);
            totals[part * heads + h] = block.total(h);
            block.finish(h, &out[(part * heads + h) * padded]);
        }
    }

    // A head's result from parts `first` to `last` - 1, those of its sequence.
    template <typename X>
    void put_together(int64_t first, int64_t last, int64_t h, X* to) {
        float top = NEVER, whole = 0;
        for (int64_t p = first; p < last; p++) top = std::max(top, tops[p * heads + h]);
        for (int64_t p = first; p < last; p++) {
            float& share = tops[p * heads + h];
            share = exp2_negative(splat(share - top))[0];
            whole += share * totals[p * heads + h];
        }
        for (int64_t c = 0; c < width; c += LANES) {
            Floats mixed = splat(0.0f);
            for (int64_t p = first; p < last; p++)
                mixed += load(&out[(p * heads + h) * padded + c]) * tops[p * heads + h];
            mixed = mixed / whole;
            if (c + LANES <= width) store(to + c, mixed);
            else for (int64_t i = 0; c + i < width; i++) store(to + c + i, mixed[i]);
        }
    }
};

// Adds a part's keys but those of its last block, which are returned.
template <typename Block>
Places add_most(const Decode& d, const Part& part, Block& block) {
    block.begin(part.sequence);
    Places places = part.block(d, part.first);
    for (int64_t key = part.first + BLOCK; key < part.last; key += BLOCK) {
        const Places next = part.block(d, key);
        block.add(places, next);
        places = next;
    }
    return places;
}

template <typename Block, typename X>
void decode(const Decode& d, X* out, int threads) {
    const Parts parts(d, threads);
    const int64_t count = parts.all.size();
    Said said(count, d.heads, d.values.width);
    std::atomic<int64_t> taken{0};
#pragma omp parallel num_threads(threads) if (count > 1)
    {
        Block block(d);
        for (int64_t i = taken++, next; i < count; i = next) {
            const Places last = add_most(d, parts.all[i], block);
            next = taken++;  // in time for its first keys to be asked for
            const Part& following = parts.all[next < count ? next : i];
            block.add(last, following.block(d, following.first));
            said.keep(i, block);
        }
#pragma omp barrier
#pragma omp for schedule(static)
        for (int64_t i = 0; i < d.sequences * d.heads; i++) {
            const int64_t s = i / d.heads;
            said.put_together(parts.starts[s], parts.starts[s + 1], i % d.heads, out + i * d.values.width);
        }
    }
}

}  // namespace

// `d.scale` holds the logarithm's factor already: scores are exponents of two.
extern "C" void paged_decode(const Decode* d, int32_t halves, void* out, int32_t threads) {
#if HAS_BF16_DOTS
    if (halves && WideBlock<bf16>::serves(*d)) return decode<WideBlock<bf16>>(*d, static_cast<bf16*>(out), threads);
    if (!halves && WideBlock<float>::serves(*d)) return decode<WideBlock<float>>(*d, static_cast<float*>(out), threads);
#endif
    if (halves) decode<FloatBlock<bf16>>(*d, static_cast<bf16*>(out), threads);
    else decode<FloatBlock<float>>(*d, static_cast<float*>(out), threads);
}
