// Defines the arguments of one call of the loss, and what its threads share.
//
// Pixels that count are gathered into blocks,
// regardless of their rows; a block is a number of groups. For each group, one thread computes everything that concerns its pixels
// (kiloseg_group). Then, for each few classes and for each row of the map, one thread adds up the block's gradients (gather.h). So
// every sum has a fixed order, the result does not depend on the number of threads, and no thread needs separate gradients for the
// whole table.

#ifndef KILOSEG_LOSS_H
#define KILOSEG_LOSS_H

#include "batch.h"
#include "cells_nearest.h"
#include "geometry.h"
#include "search.h"
#include "team.h"

#define CHUNK 48  // classes whose weights fit in the L1 cache; a multiple of ROWS and of SUMS
#define SUMS 12   // registers in which a block's gradients of some classes are added up

struct loss {
    BATCH
    int64_t C, S;          // classes of the table; candidates shared by all pixels, 0 for none
    int64_t K, searched;   // negatives per pixel, and how many of those are its nearest; the others are drawn
    int64_t capacity;      // pixels of a block, a multiple of GROUP
    int64_t keeps_weights; // whether the weights of a block are kept, or recomputed for the table's gradient
    const float *rows;         // (C, width) of unit length, padded to whole tiles
    const float *candidates;   // (S, width), likewise, times `scale` below
    const int64_t *left_out;   // (C): the candidate that pixels of a class leave out; null: their own
    const int64_t *drawn;      // (num_drawn): ids of the drawn classes if each pixel also has nearest ones
    int64_t num_drawn;
    struct nearest_cells *search;  // the search for the nearest classes by scores at cells; null: by scores at pixels
    float *grad_rows;          // (C, width), zeros; of the targets and the pixels' own classes
    float *grad_candidates;    // (S, width), zeros; the same memory as grad_rows where candidates are all classes
    // Buffers; the part of a row beyond D holds zeros:
    float *map, *grad_map;     // (h, w, width): an image's embeddings and their gradient
    float *o, *grad;           // (capacity, width): pixels times their factor; the gradient of what was upsampled
    float *unit;               // (capacity / GROUP, D, GROUP): the pixels
    float *kept;               // (capacity / GROUP, S padded to whole tiles, GROUP), if keeps_weights
    float *scalars;            // SCALARS x capacity
    int32_t *integers;         // INTEGERS x 2 x capacity
    float *own_weights;        // (capacity / GROUP, K, GROUP)
    int32_t *own_ids;          // likewise
};

enum { FACTOR, OWN, TOP, PART, SCALARS };  // factor of a pixel's gradients; of its target's; highest logit; its loss
enum { ROW, COLUMN, TARGET, INTEGERS };

struct state {
    const struct loss *a;
    int64_t image;
    int64_t cursor;    // where in the image the next block begins
    int64_t first_row; // of the rows whose nearest classes are found
    int64_t end;       // where in the image these rows end
    int64_t count[2];  // pixels in this block and in the next, which take turns
    double total;
};

INLINE int32_t *integers(const struct loss *a, int parity, int which) {
    return a->integers + (which * 2 + parity) * a->capacity;
}

INLINE float *scalars(const struct loss *a, int which) { return a->scalars + which * a->capacity; }

INLINE int64_t whole_tiles(int64_t classes) { return (classes + SUMS - 1) / SUMS * SUMS; }

#endif
