// Rows of x made ready for a matrix, and their product: a few are used as they are, while the matrix streams by; more
// of them, where bf16 is multiplied, are packed for what multiplies them in blocks.
#pragma once

#include <optional>

#include "amx.h"

template <typename X>
class Several {
public:
    typedef typename Inputs<X>::Element Element;

    Several(std::vector<const Element*> rows, int64_t, Unit) : rows(std::move(rows)) {}

    int64_t parts() const { return 0; }  // `pack` is to be called for each part before the first product
    void pack(int64_t) {}

    // Rows `first` to `last` - 1 of the matrix: sink(row, row of x, sums, how many rows of the matrix from `row` on).
    template <typename Matrix, typename Sink>
    void times(const Matrix& matrix, int64_t first, int64_t last, Sink sink) const {
        product(matrix, first, last, rows.data(), rows.size(),
                [&](int64_t row, int64_t m, float sum) { sink(row, m, &sum, int64_t(1)); });
    }

private:
    std::vector<const Element*> rows;
};

#if HAS_BF16_DOTS
template <>
class Several<bf16> {
public:
    typedef bf16 Element;

    Several(std::vector<const bf16*> rows, int64_t in, Unit unit)
        : rows(std::move(rows)), count(this->rows.size()), unit(unit) {
        if (unit == Unit::streams || count <= Plain<bf16>::FEW) return;  // no matrix wants fewer in blocks
        with_unit([&](auto how) { packed.emplace(count, in, decltype(how)::Type::group(count)); });
    }

    int64_t parts() const { return packed ? packed->groups : 0; }
    void pack(int64_t part) {
        with_unit([&](auto how) { packed->fill(part, rows.data(), decltype(how)::Type::pack); });
    }

    template <typename Matrix, typename Sink>
    void times(const Matrix& matrix, int64_t first, int64_t last, Sink sink) const {
        if (packed && count > Matrix::FEW) {
            with_unit([&](auto how) {
                product_in_blocks<typename decltype(how)::Type>(matrix, first, last, *packed, sink);
            });
        } else {
            product(matrix, first, last, rows.data(), count,
                    [&](int64_t row, int64_t m, float sum) { sink(row, m, &sum, int64_t(1)); });
        }
    }

private:
    template <typename T>
    struct Named {
        typedef T Type;
    };

    template <typename Act>
    void with_unit(Act act) const {
#if HAS_TILES
        if (unit == Unit::tiles) return act(Named<Tiles>{});
#endif
        act(Named<Dots>{});
    }

    std::vector<const bf16*> rows;
    int64_t count;
    Unit unit;
    std::optional<Packed> packed;
};
#endif

// So many rows of `out` does a thread take at a time where a product is made in blocks: whole blocks of any kind, so
// few that `pieces` of them are shared out, so many that most blocks were asked for early.
inline int64_t rows_of_piece(int64_t out, int64_t pieces) {
    constexpr int64_t PANELS = 96;
    const int64_t share = (out / std::max<int64_t>(pieces, 1) + PANELS - 1) / PANELS * PANELS;
    return std::min(std::max(share, PANELS), 4 * PANELS);
}
