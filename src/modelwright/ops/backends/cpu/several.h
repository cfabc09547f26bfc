// Rows of x made ready for matrices, and their products: a few are used as they are or as integers, while the matrix
// streams by; more of them, where bf16 is multiplied, are packed for what multiplies them in blocks.
#pragma once

#include <optional>

#include "amx.h"

template <typename X>
class Several {
public:
    typedef typename Inputs<X>::Element Element;

    Several(std::vector<const Element*> rows, int64_t, Unit) : rows(std::move(rows)) {}

    // To be called for each type of matrix, then `pack` for each part, before the first product.
    template <typename Matrix>
    void meet() {}
    int64_t parts() const { return 0; }
    void pack(int64_t) {}

    // Whether packing is worth sharing out: integers of a few rows are done before other threads have come.
    bool blocks() const { return false; }

    // What a thread's share is to be a multiple of.
    template <typename Matrix>
    int64_t whole() const { return STREAMS; }

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
        : rows(std::move(rows)), in(in), count(this->rows.size()), unit(unit) {}

    template <typename Matrix>
    void meet() {
        if (in_blocks<Matrix>()) {
            if (!packed) with_unit([&](auto how) { packed.emplace(count, in, decltype(how)::Type::group(count)); });
        } else if constexpr (Matrix::INTEGERS) {
            constexpr bool int4 = std::is_same_v<Matrix, Int4>;
            if (!integers[int4]) integers[int4].emplace(count, in, int4);
        }
    }

    int64_t parts() const { return integer_rows() + (packed ? packed->groups : 0); }
    void pack(int64_t part) {
        const int64_t group = part - integer_rows();
        if (group >= 0) {
            with_unit([&](auto how) { packed->fill(group, rows.data(), decltype(how)::Type::pack); });
        } else {
            for (auto& own : integers)
                if (own) own->fill(part, rows[part]);
        }
    }

    bool blocks() const { return packed.has_value(); }

    template <typename Matrix>
    int64_t whole() const {
        return in_blocks<Matrix>() ? 96 : STREAMS;  // whole panels of each unit
    }

    template <typename Matrix, typename Sink>
    void times(const Matrix& matrix, int64_t first, int64_t last, Sink sink) const {
        const auto one = [&](int64_t row, int64_t m, float sum) { sink(row, m, &sum, int64_t(1)); };
        if (in_blocks<Matrix>()) {
            with_unit([&](auto how) {
                product_in_blocks<typename decltype(how)::Type>(matrix, first, last, *packed, sink);
            });
        } else if constexpr (Matrix::INTEGERS) {
            product(matrix, first, last, integers[std::is_same_v<Matrix, Int4>]->rows.data(), count, one);
        } else {
            product(matrix, first, last, rows.data(), count, one);
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

    int64_t integer_rows() const { return integers[0] || integers[1] ? count : 0; }

    template <typename Matrix>
    bool in_blocks() const { return unit != Unit::streams && count > Matrix::FEW; }

    std::vector<const bf16*> rows;
    int64_t in;
    int64_t count;
    Unit unit;
    std::optional<Integers> integers[2];  // for int8, for int4
    std::optional<Packed> packed;
};
#endif
