// Blocks of keys by AVX-512: the scores of 32 keys at once, whose numbers are turned so that lanes are keys and no sum
// crosses lanes, with up to 8 heads that share them; then their values, whose lanes are channels.
//
// Vectors of another type than the queries are made that type first; the integers of int8 are exact, and their scales
// meet the scores and the weights.
#pragma once

#include "decode_floats.h"
#include "lanes.h"

#if HAS_BF16_DOTS
template <typename X>  // the queries' type
class WideBlock {
    static constexpr int NUMBERS = Lane<X>::NUMBERS;
    static constexpr int HALVES = BLOCK / LANES;      // registers with a score of each key
    static constexpr int WEIGHTS = HALVES / NUMBERS;  // registers with a weight of each key

public:
    explicit WideBlock(const Decode& d)
        : d(d), group(group_of(d)), sets((group + LANES - 1) / LANES), width(d.values.width), turned(CHUNK * HALVES),
          sums(d.parts * group * HALVES), weights(group * WEIGHTS), kept(sets), tops(d.kv_heads * sets),
          totals(d.heads), out(d.heads * width / LANES) {
        for (int64_t i = 0; i < kinds_of(d); i++)
            if (!is_ready(i)) made[i].resize(BLOCK * kind_of(d, i).width);
    }

    // Whether this way serves: vectors fill pairs of registers, of a type that X holds.
    static bool serves(const Decode& d) {
        for (int64_t i = 0; i < kinds_of(d); i++)
            if (kind_of(d, i).width % (2 * LANES) || number_size(kind_of(d, i)) > int64_t(sizeof(X))) return false;
        return true;
    }

    void begin(int64_t of) {
        sequence = of;
        tops.fill(NEVER);
        totals.fill(0.0f);
        out.fill(0.0f);
    }

    void add(const Places& places, const Places& next) {
        Ahead ahead[] = {ahead_of(kind_of(d, 0), next.byte[0], d.kv_heads),
                         ahead_of(kind_of(d, 1), next.byte[1], d.kv_heads),
                         ahead_of(d.values, next.byte[d.parts], d.kv_heads)};
        for (int64_t head = 0; head < d.kv_heads; head++) {
            for (int64_t p = 0; p < d.parts; p++) score(places, ahead[p], head, p);
            weigh(places, head);
            mix(places, ahead[MOST_PARTS], head);
        }
    }

    float top(int64_t h) const { return tops.at(h / group * sets)[h % group]; }
    float total(int64_t h) const { return sum(load(totals.at(h))); }

    // A head's result.
    void finish(int64_t h, float* to) const {
        for (int64_t i = 0; i < width; i += 2 * LANES) {
            Floats both[2];
            in_order<X>(out.at((h * width + i) / LANES), both);
            store(to + i, both[0]);
            store(to + i + LANES, both[1]);
        }
    }

private:
    const Decode& d;
    const int64_t group, sets, width;
    Lines turned;   // [lanes of a chunk, keys]
    Lines sums;     // [parts, heads of a group, keys]
    Lines weights;  // [heads of a group, keys], of X
    Lines kept;     // [heads of a group]: what earlier results shrink to
    Lines tops;     // [key heads, heads of a group]: the highest scores so far
    Lines totals;   // [heads]: the weights so far, to be added up
    Lines out;      // [heads, channels]
    std::vector<X> made[MOST_PARTS + 1];
    int64_t sequence = 0;

    bool is_ready(int64_t kind) const { return number_size(kind_of(d, kind)) == sizeof(X); }

    // The vectors of a kind: where they lie, or made X while the next ones are asked for.
    Rows rows_of(const Places& places, Ahead& ahead, int64_t head, int64_t kind) {
        const Stored& s = kind_of(d, kind);
        const Rows rows = rows_of_head(s, places.byte[kind], head);
        if (is_ready(kind)) return rows;
        int64_t read = 0;
        for (int j = 0; j < BLOCK; j++) {
            for (read += s.width * number_size(s); read >= Ahead::STEP; read -= Ahead::STEP) ahead.ask();
            X* to = &made[kind][j * s.width];
            if (s.kind == StoredKind::bf16) widen(reinterpret_cast<const bf16*>(rows.at[j]), s.width, to);
            else widen(reinterpret_cast<const int8_t*>(rows.at[j]), s.width, to);
        }
        return Rows(made[kind].data(), s.width * sizeof(X));
    }

    template <typename T>
    static void widen(const T* from, int64_t width, X* to) {
        for (int64_t i = 0; i < width; i += 2 * LANES) Lane<X>::keep(to + i, wide(from + i), wide(from + i + LANES));
    }

    // The sums of products of one part of the keys with the queries, before any scale.
    void score(const Places& places, Ahead& ahead, int64_t head, int64_t part) {
        const Rows rows = rows_of(places, ahead, head, part);
        const bool asks = is_ready(part);
        const QueryRows& q = d.queries[part];
        const X* query = static_cast<const X*>(q.rows) + sequence * q.sequence + head * group * q.head;
        const int64_t lanes = d.keys[part].width / NUMBERS;
        if (group == 1) {  // for which turning the rows costs more than it saves
            if (asks) dots<true>(rows, lanes, query, ahead, sums.at(part * HALVES));
            else dots<false>(rows, lanes, query, ahead, sums.at(part * HALVES));
            return;
        }
        for (int64_t first = 0; first < lanes; first += CHUNK) {
            const int64_t some = std::min<int64_t>(CHUNK, lanes - first);
            turn(rows, first, some, turned.at(0));
            in_sets(group, [&](int64_t h, auto heads) {
                float* to = sums.at((part * group + h) * HALVES);
                const X* own = query + h * q.head + first * NUMBERS;
                if (h == 0 && asks) multiply<X, heads(), true>(turned.at(0), some, own, q.head, ahead, first == 0, to);
                else multiply<X, heads(), false>(turned.at(0), some, own, q.head, ahead, first == 0, to);
            });
        }
    }

    // The products of the rows with one query, summed up along each row.
    template <bool ASKS>
    static void dots(const Rows& rows, int64_t lanes, const X* query, Ahead& ahead, float* to) {
        for (int half = 0; half < BLOCK; half += LANES) {
            __m512 each[LANES];
            for (int r = 0; r < LANES; r++) each[r] = _mm512_setzero_ps();
            for (int64_t i = 0; i < lanes; i += LANES) {
                const __m512i own = _mm512_loadu_si512(query + i * NUMBERS);
                if (ASKS)
                    for (int asked = 0; asked < LANES / HALVES; asked++) ahead.ask();
                for (int r = 0; r < LANES; r++)
                    each[r] = Lane<X>::add(each[r], _mm512_loadu_si512(rows.at[half + r] + i * 4), own);
            }
            store(to + half, ::sums(reinterpret_cast<const Floats*>(each)));
        }
    }

    // The scores of heads that share a key to weights against their new maxima.
    void weigh(const Places& places, int64_t head) {
        float* top = tops.at(head * sets);
        float* shrunk = kept.at(0);
        std::copy_n(top, sets * LANES, shrunk);
        scale_scores(places, head, top);
        for (int64_t h = 0; h < group; h += LANES) store(shrunk + h, exp2_negative(load(shrunk + h) - load(top + h)));
        const Floats shares[] = {places.scales(d.values, d.parts, head, 0),
                                 places.scales(d.values, d.parts, head, LANES)};
        for (int64_t h = 0; h < group; h++) {
            const float* scores = sums.at(h * HALVES);
            const Floats low = exp2_negative(load(scores) - top[h]);
            const Floats high = exp2_negative(load(scores + LANES) - top[h]);
            float* total = totals.at(head * group + h);
            store(total, load(total) * shrunk[h] + low + high);
            Lane<X>::keep(reinterpret_cast<X*>(weights.at(h * WEIGHTS)), low * shares[0], high * shares[1]);
        }
    }

    // Sums of products to scores, in place of the first part's, and the maxima raised to them.
    void scale_scores(const Places& places, int64_t head, float* top) {
        Floats factors[MOST_PARTS][HALVES];
        __mmask16 there[HALVES];
        for (int half = 0; half < HALVES; half++) {
            for (int64_t p = 0; p < d.parts; p++)
                factors[p][half] = places.scales(d.keys[p], p, head, half * LANES) * d.scale;
            there[half] = __mmask16((1u << std::clamp(places.count - half * LANES, 0, LANES)) - 1);
        }
        for (int64_t h = 0; h < group; h++) {
            __m512 highest = _mm512_set1_ps(top[h]);
            for (int half = 0; half < HALVES; half++) {
                float* at = sums.at(h * HALVES + half);
                Floats scores = load(at) * factors[0][half];
                if (d.parts > 1) scores += load(at + group * BLOCK) * factors[1][half];
                const __m512 known = _mm512_mask_mov_ps(_mm512_set1_ps(NEVER), there[half], (__m512)scores);
                _mm512_store_ps(at, known);
                highest = _mm512_max_ps(highest, known);
            }
            top[h] = _mm512_reduce_max_ps(highest);
        }
    }

    // Results shrunk and the weighted values added; values that are the keys' first part were asked for and made there.
    void mix(const Places& places, Ahead& ahead, int64_t head) {
        const bool made_before = shares_rows(d) && !is_ready(0), asks = !shares_rows(d) && is_ready(d.parts);
        const Rows rows = made_before ? Rows(made[0].data(), width * sizeof(X)) : rows_of(places, ahead, head, d.parts);
        for (int64_t i = 0; i < width; i += 2 * LANES) {
            in_sets(group, [&](int64_t h, auto heads) {
                const X* shares = reinterpret_cast<const X*>(weights.at(h * WEIGHTS));
                float* to = out.at(((head * group + h) * width + i) / LANES);
                if (h == 0 && asks) add_up<X, heads(), true>(rows, i, shares, BLOCK, ahead, kept.at(0) + h, to, width);
                else add_up<X, heads(), false>(rows, i, shares, BLOCK, ahead, kept.at(0) + h, to, width);
            });
        }
    }
};
#endif
