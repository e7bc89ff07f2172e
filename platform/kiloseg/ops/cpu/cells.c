// Computes the loss of a batch over shared candidates from scores at feature cells; cells.h explains the method.
// kiloseg.losses.cpu_cells calls it.

#include "cells_backward.h"
#include "cells_forward.h"

static void store_row(const struct cells *a, int64_t image, int64_t j) {
    float *to = a->grad_pixels + image * a->image_stride + j * a->row_stride;
    const float *from = a->grad_map + j * a->w * a->width;
    for (int64_t i = 0; i < a->w; ++i) {
        for (int64_t d = 0; d < a->D; ++d) to[d * a->dim_stride + i * a->column_stride] = from[i * a->width + d];
    }
}

// Walks over all chunks once, for their highest logits or their sums. The scores of the last chunk stay.
static void compare_block(struct team *team, struct block *b, int tops, int scored) {
    const struct cells *a = b->a;
    int64_t across = (intervals(a->w) + PATCHES - 1) / PATCHES, panels = all_panels(a);
    for (int64_t panel = 0; panel < panels; panel += a->chunk) {
        choose_chunk(b, panel);
        if (!scored || panels > a->chunk) score_chunk(team, b);
        int last = panel + a->chunk >= panels;
        for (int64_t task; (task = next_task(team)) < (b->last - b->first) * across;) {
            int64_t from = task % across * PATCHES, to = from + PATCHES < intervals(a->w) ? from + PATCHES : intervals(a->w);
            compare_patches(b, b->first + task / across, from, to, tops, last);
        }
        meet(team);
    }
}

static void differentiate_block(struct team *team, struct block *b) {
    const struct cells *a = b->a;
    int64_t panels = all_panels(a), rows = b->last - b->first;
    for (int parity = 0; a->rows && parity < 2; ++parity) {  // adjacent rows share cells
        for (int64_t task; 2 * (task = next_task(team)) + parity < rows;) differentiate_outside(b, b->first + 2 * task + parity);
        meet(team);
    }
    if (a->rows) {
        for (int64_t share; (share = next_task(team)) < team->threads;) add_outside(b, share, team->threads);
        meet(team);
    }
    for (int64_t panel = 0; panel < panels; panel += a->chunk) {
        choose_chunk(b, panel);
        if (panels > a->chunk) score_chunk(team, b);
        for (int64_t task; (task = next_task(team)) < b->panels;) differentiate_panel(b, b->panel + task);
        meet(team);
        for (int64_t task; (task = next_task(team)) * STRIP < b->count;) differentiate_cells(b, task * STRIP, panel == 0);
        meet(team);
    }
}

static void run(struct team *team, int thread) {
    struct block *shared = team->work, mine = {.a = shared->a}, *b = &mine;
    const struct cells *a = b->a;
    int64_t rows = intervals(a->h);
    for (int64_t image = 0; image < a->B; ++image) {
        b->image = image;
        for (int64_t j; (j = next_task(team)) < a->h;) load_row(a, image, j);
        meet(team);
        for (b->first = 0; b->first < rows; b->first = b->last) {
            choose_block(b);
            for (int64_t j; (j = next_task(team)) < b->last - b->first;) list_pixels(b, b->first + j);
            meet(team);
            if (a->needs_top) compare_block(team, b, 1, 0);
            compare_block(team, b, 0, (int)a->needs_top);
            if (thread == 0) {
                int64_t segments = (a->y_starts[b->last] - a->y_starts[b->first]) * intervals(a->w);
                for (int64_t k = 0; k < segments; ++k) shared->total += a->losses[k];
            }
            if (a->wants_grad) differentiate_block(team, b);
            meet(team);
        }
        if (a->wants_grad) {
            for (int64_t j; (j = next_task(team)) < a->h;) store_row(a, image, j);
        }
        meet(team);
    }
}

void kiloseg_cells(struct cells *a) {
    struct block shared = {.a = a};
    divide_axis(a->H, a->h, a->y_starts, a->y_parts);
    divide_axis(a->W, a->w, a->x_starts, a->x_parts);
    int64_t useful = a->B * a->H * a->W * a->S / 65536;  // starting a thread costs about this many scores
    run_team(run, &shared, a->threads < useful ? a->threads : useful);
    *a->result = (float)(shared.total * a->weight);
}

const int64_t kiloseg_cells_tile = TILE, kiloseg_cells_floats = FLOATS, kiloseg_cells_integers = INTEGERS;
