// Computes the whole loss of a batch, forward and backward, on CPU threads. kiloseg.losses.cpu_backend calls it; loss.h explains
// the division of work.

#include "gather.h"

// Gathers the next pixels that count.
static void fill(struct state *now, int parity) {
    const struct loss *a = now->a;
    int32_t *rows = integers(a, parity, ROW), *columns = integers(a, parity, COLUMN);
    int32_t *targets = integers(a, parity, TARGET);
    int64_t count = 0, cursor = now->cursor;
    for (; cursor < now->end && count < a->capacity; ++cursor) {
        int64_t label = a->labels[now->image * a->H * a->W + cursor];
        if (label == a->ignore) continue;
        rows[count] = (int32_t)(cursor / a->W);
        columns[count] = (int32_t)(cursor % a->W);
        targets[count++] = (int32_t)label;
    }
    now->cursor = cursor;
    now->count[parity] = count;
}

static void load_map_row(const struct loss *a, int64_t image, int64_t j) {
    const float *from = a->pixels + image * a->image_stride + j * a->row_stride;
    float *to = a->map + j * a->w * a->width;
    for (int64_t d = 0; d < a->D; ++d) {
        for (int64_t i = 0; i < a->w; ++i) to[i * a->width + d] = from[d * a->dim_stride + i * a->column_stride];
    }
    for (int64_t i = 0; i < a->w * a->width; ++i) a->grad_map[j * a->w * a->width + i] = 0;
}

static void store_map_row(const struct loss *a, int64_t image, int64_t j) {
    float *to = a->grad_pixels + image * a->image_stride + j * a->row_stride;
    const float *from = a->grad_map + j * a->w * a->width;
    for (int64_t d = 0; d < a->D; ++d) {
        for (int64_t i = 0; i < a->w; ++i) to[d * a->dim_stride + i * a->column_stride] = from[i * a->width + d];
    }
}

// Runs the tasks of the second phase: some classes each (or a share of them, if the classes are not contiguous), then rows of the
// map.
static void gather(struct team *team, struct group *g, const struct state *now, int parity) {
    const struct loss *a = now->a;
    int64_t count = now->count[parity], whole = whole_tiles(a->S);
    int64_t size = (whole / (4 * team->threads) + SUMS - 1) / SUMS * SUMS;
    size = size < SUMS ? SUMS : size > CHUNK ? CHUNK : size;
    int64_t chunks = (whole + size - 1) / size;
    int all = a->S && a->grad_candidates == a->grad_rows;  // then a task of classes also handles their targets
    int64_t shares = all ? 0 : team->threads;
    int64_t top = between(integers(a, parity, ROW)[0], a->H, a->h).first;
    int64_t bottom = between(integers(a, parity, ROW)[count - 1], a->H, a->h).second;
    for (;;) {
        int64_t task = next_task(team);
        if (task < chunks) {
            int64_t first = task * size, last = first + size < whole ? first + size : whole;
            gather_classes(a, g, now, parity, first, last);
            if (all) gather_targets(a, now, parity, first, last, 0, 0);
        } else if (task < chunks + shares) {
            gather_targets(a, now, parity, 0, 0, task - chunks, shares);
            if (!a->S) gather_own(a, now, parity, task - chunks, shares);
        } else if (task <= chunks + shares + bottom - top) {
            gather_map_row(a, now, parity, top + task - chunks - shares);
        } else {
            break;
        }
    }
}

// Computes all blocks of the pixels from the cursor to `now->end`.
static void compute_blocks(struct team *team, struct group *g, struct state *now, int thread) {
    const struct loss *a = now->a;
    if (thread == 0) fill(now, 0);
    meet(team);
    for (int parity = 0; now->count[parity]; parity = !parity) {
        int64_t count = now->count[parity];
        for (int64_t number; (number = next_task(team)) * GROUP < count;) compute_group(now, g, parity, number);
        meet(team);
        if (thread == 0) {
            for (int64_t p = 0; p < count; ++p) now->total += scalars(a, PART)[p];
            fill(now, !parity);
        }
        if (a->wants_grad) gather(team, g, now, parity);
        meet(team);
    }
}

static void loss_run(struct team *team, int thread) {
    struct state *now = team->work;
    const struct loss *a = now->a;
    struct group g;
    for (int64_t image = 0; image < a->B; ++image) {
        for (int64_t j; (j = next_task(team)) < a->h;) load_map_row(a, image, j);
        meet(team);
        for (int64_t interval = 0, next; interval < intervals(a->h); interval = next) {
            next = a->search ? kiloseg_nearest_block(team, a->search, image, interval) : intervals(a->h);
            if (thread == 0) {
                now->image = image;
                now->first_row = a->search ? kiloseg_nearest_row(a->search, interval) : 0;
                now->cursor = now->first_row * a->W;
                now->end = (a->search ? kiloseg_nearest_row(a->search, next) : a->H) * a->W;
            }
            compute_blocks(team, &g, now, thread);
            meet(team);
        }
        if (a->wants_grad) {
            for (int64_t j; (j = next_task(team)) < a->h;) store_map_row(a, image, j);
        }
        meet(team);
    }
}

void kiloseg_loss(struct loss *a) {
    struct state state = {.a = a};
    if (a->search) kiloseg_nearest_prepare(a->search);
    // Starting a thread costs about this many scores.
    int64_t useful = a->B * a->H * a->W * (a->S ? a->S : a->C) / (a->search ? 65536 : 16384);
    run_team(loss_run, &state, a->threads < useful ? a->threads : useful);
    *a->result = (float)(state.total * a->weight);
}

// Returns the sizes that Python needs to make the buffers.
const int64_t kiloseg_lanes = LANES, kiloseg_group = GROUP, kiloseg_max_dim = MAX_DIM, kiloseg_max_nearest = MAX_NEAREST;
const int64_t kiloseg_scalars = SCALARS, kiloseg_integers = INTEGERS, kiloseg_tile = SUMS;
