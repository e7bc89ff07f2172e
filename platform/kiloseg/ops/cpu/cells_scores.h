// Prepares an image's map, divides it into blocks and the table into chunks, and computes the scores of both.

#ifndef KILOSEG_CELLS_SCORES_H
#define KILOSEG_CELLS_SCORES_H

#include "cells.h"

#define PATCHES 4         // per task
#define CELLS (8 * ROWS)  // per task of scores; a multiple of ROWS

static void load_row(const struct cells *a, int64_t image, int64_t j) {
    const float *from = a->pixels + image * a->image_stride + j * a->row_stride;
    float *to = a->map + j * a->w * a->width;
    for (int64_t i = 0; i < a->w; ++i) {
        for (int64_t d = 0; d < a->D; ++d) to[i * a->width + d] = from[d * a->dim_stride + i * a->column_stride];
    }
    for (int64_t i = 0; a->wants_grad && i < a->w * a->width; ++i) a->grad_map[j * a->w * a->width + i] = 0;
}

// Sets `b` to the block that begins at its first row.
static void choose_block(struct block *b) {
    const struct cells *a = b->a;
    b->last = b->first + a->block_rows < intervals(a->h) ? b->first + a->block_rows : intervals(a->h);
    b->cell = b->first * a->w;
    b->count = (b->last - b->first + (a->h > 1)) * a->w;
    b->stride = (b->count + 23) / 24 * 24;  // a multiple of ROWS and of STRIP
}

// Computes the scores of one panel with some cells of the block.
static void score_panel(const struct block *b, int64_t panel, int64_t cell, int64_t count) {
    const struct cells *a = b->a;
    score_cells(
        a->map + (b->cell + cell) * a->width, a->width, count, a->panels + panel * a->D * TILE, a->D,
        a->S - panel * TILE, a->scores + ((panel - b->panel) * b->stride + cell) * TILE
    );
}

// Sets `b` to a chunk, in the same way in all threads.
static void choose_chunk(struct block *b, int64_t panel) {
    int64_t left = all_panels(b->a) - panel;
    b->panel = panel;
    b->panels = left < b->a->chunk ? left : b->a->chunk;
}

static void score_chunk(struct team *team, const struct block *b) {
    int64_t pieces = (b->stride + CELLS - 1) / CELLS;
    for (int64_t task; (task = next_task(team)) < b->panels * pieces;) {
        int64_t cell = task % pieces * CELLS, left = b->stride - cell;
        score_panel(b, b->panel + task / pieces, cell, left < CELLS ? left : CELLS);
    }
    meet(team);
}

#endif
