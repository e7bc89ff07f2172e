// This is the softmax over shared candidates, with scores taken at feature cells and upsampled inside a tile.
//
// A pixel's embedding is u = sum_i w_i z_i over four cells, so its score with class c is sum_i w_i (z_i . e_c): products cost in
// proportion to the cells, not the pixels. The backward pass works the same way: the weights of pixels and classes are brought to
// the cells (the transpose of upsampling) before they are multiplied with the table and the cells. Normalization removes the part
// of the gradient along u, -(sum_c g_c s_c) u / ||u||^2, which becomes a 4 x 4 matrix on the cells of each patch.
//
// An image is divided into blocks of rows of cells, and the table into chunks of panels of TILE classes. A patch holds the pixels between four
// cells; the pixels of one of its rows are a segment. Each sum has a fixed order, whatever the number of threads.

#ifndef KILOSEG_CELLS_H
#define KILOSEG_CELLS_H

#include "batch.h"
#include "geometry.h"
#include "matrix.h"
#include "team.h"

#define PIECE 32  // pixels of a segment whose sums are held at a time

struct cells {
    BATCH
    int64_t S;             // candidates that pixels are compared with
    int64_t block_rows;    // rows of intervals of a block
    int64_t chunk;         // panels whose scores are held at a time
    int64_t capacity;      // pixels of a block
    const float *candidates;   // (S, width) of unit length
    const float *panels;       // (panels, D, TILE): the same, transposed, padded to whole panels
    const float *rows;         // (C, width): the table; null where every target's score is a candidate's
    const int64_t *target;     // (C): the candidate that a class is, -1 - its id where it is none; null: all are
    const int64_t *left_out;   // (C): the candidate that pixels of a class are not compared with; null: their own
    float *grad_candidates;    // (S padded to whole panels, width), zeros
    float *grad_rows;          // (C, width), zeros; for targets that are not candidates
    // Buffers:
    float *map, *grad_map;     // (h * w + padding, width), zeros beyond D and in the padding
    float *scores, *grads;     // (chunk, cells of a block + padding, TILE)
    float *floats;             // FLOATS x capacity
    int32_t *integers;         // INTEGERS x capacity
    int32_t *segments;         // 2 x rows x intervals: first pixel, number of pixels
    float *losses;             // rows x intervals
    float *stencils;           // block_rows x intervals x 10: what normalization removes
    int32_t *y_starts, *x_starts;  // first pixel of each interval
    float *y_parts, *x_parts;      // share of the second cell of each pixel
};

// These are the values per pixel: factors of its two columns of cells for a logit, and for a gradient; share of the second column;
// 1 / length; the highest logit; sums of exponentials, and of these times slopes and what the gradient along the pixel needs; the
// target's logit, its slope and its cosine.
enum { LEFT, RIGHT, LEFT_GRAD, RIGHT_GRAD, SHARE, INVERSE, TOP, SUM, DOT, OWN, OWN_SLOPE, OWN_COSINE, FLOATS };
enum { TARGET, LEFT_OUT, INTEGERS };

struct block {
    const struct cells *a;
    int64_t image;
    int64_t first, last;       // rows of intervals
    int64_t cell, count;       // the first cell, and how many
    int64_t stride;            // cells between panels of scores, `count` padded
    int64_t panel, panels;     // the first panel of the chunk, and how many
    double total;
};

INLINE float *floats(const struct cells *a, int which) { return a->floats + which * a->capacity; }
INLINE int32_t *integers_of(const struct cells *a, int which) { return a->integers + which * a->capacity; }
INLINE int64_t all_panels(const struct cells *a) { return (a->S + TILE - 1) / TILE; }

// Returns the vectors of a panel that hold all its candidates: 1, 2 or VECTORS.
INLINE int64_t panel_vectors(const struct cells *a, int64_t panel) {
    int64_t left = (a->S - panel * TILE + LANES - 1) / LANES;
    return left > 2 ? VECTORS : left;
}

// A segment holds the pixels of one row of a patch, and the scores that they lie between.
struct segment {
    int64_t first, count;
    float part;                // share of the lower cells
    int64_t upper_left, upper_right, lower_left, lower_right;  // cells of the block, times TILE
};

INLINE int64_t patch_number(const struct block *b, int64_t j, int64_t i) { return (j - b->first) * intervals(b->a->w) + i; }

INLINE int64_t segment_number(const struct block *b, int64_t y, int64_t i) {
    return (y - b->a->y_starts[b->first]) * intervals(b->a->w) + i;
}

// Describes a row of a patch without its pixels.
INLINE struct segment segment_at(const struct block *b, int64_t j, int64_t i, int64_t y) {
    const struct cells *a = b->a;
    int64_t below = a->h > 1 ? a->w : 0, beside = a->w > 1, corner = (j - b->first) * a->w + i;
    return (struct segment){
        0, 0, a->y_parts[y], corner * TILE, (corner + beside) * TILE, (corner + below) * TILE,
        (corner + below + beside) * TILE
    };
}

INLINE struct segment segment_of(const struct block *b, int64_t j, int64_t i, int64_t y) {
    struct segment s = segment_at(b, j, i, y);
    const int32_t *at = b->a->segments + 2 * segment_number(b, y, i);
    s.first = at[0], s.count = at[1];
    return s;
}

// Computes the scores of a segment's two columns of cells at its row.
INLINE void columns_of(const float *scores, const struct segment *s, int vectors, vec left[VECTORS], vec right[VECTORS]) {
    vec part = splat(s->part);
    for (int u = 0; u < vectors; ++u) {
        vec upper = load(scores + s->upper_left + u * LANES), lower = load(scores + s->lower_left + u * LANES);
        left[u] = upper + part * (lower - upper);
        upper = load(scores + s->upper_right + u * LANES), lower = load(scores + s->lower_right + u * LANES);
        right[u] = upper + part * (lower - upper);
    }
}

// These are the constants of a distance's logit: with t = tau log2(e), a product of scores and -2 t^2 / length is -2 t^2 cosine.
struct distances {
    float constant;  // 2 t^2, which makes the product a squared distance times t^2
    float least;     // t^2 LEAST
};

INLINE struct distances distances_of(const struct cells *a) {
    float scale = a->tau * LOG2E * a->tau * LOG2E;
    return (struct distances){2 * scale, LEAST * scale};
}

// Computes logits to base 2 of one pixel minus its highest. `slope` is 1 / (t distance), or 1 for cosines; `along` is the cosine,
// or for cosine logits the logit.
INLINE vec logit_of(
    vec left, vec right, float left_factor, float right_factor, float top, const struct distances *distances, int cosine,
    vec *slope, vec *along
) {
    if (cosine) {
        *slope = splat(1);
        return *along = splat(left_factor) * left + (splat(right_factor) * right - splat(top));
    }
    vec product = splat(left_factor) * left + splat(right_factor) * right;
    *along = product * (-1 / distances->constant);
    product = vmax(splat(distances->least), product + distances->constant);
    *slope = rsqrt(product);
    return -product * *slope - splat(top);
}

// Returns all ones for columns that are not compared with: the one that a pixel leaves out, and those from S on.
INLINE ivec excluded(int64_t column, int32_t left_out, int64_t S) {
    ivec ids;
    for (int l = 0; l < LANES; ++l) ids[l] = l;
    ids += isplat((int32_t)column);
    return (ids == isplat(left_out)) | (ids >= isplat((int32_t)S));
}

// Returns whether a panel holds a column that a pixel is not compared with.
INLINE int masked(const struct cells *a, int64_t panel, int32_t left_out) {
    return left_out / TILE == panel || (panel + 1) * TILE > a->S;
}

#endif
