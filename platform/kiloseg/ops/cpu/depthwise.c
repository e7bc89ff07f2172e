// Computes the gradient of the weights of a depthwise convolution, for kiloseg.ops.depthwise. Maps are channels-last.
//
// A task is one row of the kernel for CHANNELS channels. The products of a row of cells are added up in registers; rows are then added
// to each other, so that a sum over millions of cells does not lose small terms. The rows of cells that the columns of the kernel
// share stay in the innermost cache.

#include <stdint.h>
#include <string.h>

#include "team.h"

#define CHANNELS 64
#define MAX_SIDE 32  // limits the stack memory of a thread; kiloseg.ops.depthwise allows less

struct depthwise {
    int64_t B, C, H, W;          // inputs (B, H, W, C)
    int64_t h, w;                // gradient of the outputs (B, h, w, C)
    int64_t K;                   // side of the kernel
    int64_t stride, padding, dilation, threads, bfloat16;
    const void *inputs, *gradient;
    float *weights;              // (C, K, K)
};

// The range of outputs for which this tap of the kernel lies inside the input: start <= output < stop.
struct range {
    int64_t start, stop;
};

static struct range inside(int64_t offset, int64_t stride, int64_t size, int64_t outputs) {
    int64_t start = offset < 0 ? (-offset + stride - 1) / stride : 0;
    int64_t stop = size > offset ? (size - offset - 1) / stride + 1 : 0;
    return (struct range){start, stop < outputs ? stop : outputs};
}

static inline float from_float(float value) { return value; }

static inline float from_bfloat16(uint16_t bits) {
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, sizeof value);
    return value;
}

// The number of channels is a constant wherever it is CHANNELS, so that the sums of a row stay in registers.
#define ADD_ROW(CONVERT, COUNT)                                                                                      \
    for (int64_t x = columns.start; x < columns.stop; ++x, input += a->stride * a->C, output += a->C)                \
        for (int c = 0; c < (COUNT); ++c) row[c] += CONVERT(input[c]) * CONVERT(output[c]);

#define DEFINE_TASK(NAME, TYPE, CONVERT)                                                                             \
    static void NAME(const struct depthwise *a, int64_t first, int count, int64_t i) {                               \
        float sums[MAX_SIDE][CHANNELS];                                                                              \
        int64_t above = i * a->dilation - a->padding;                                                                \
        struct range rows = inside(above, a->stride, a->H, a->h);                                                    \
        memset(sums, 0, sizeof sums);                                                                                \
        for (int64_t b = 0; b < a->B; ++b) {                                                                         \
            for (int64_t y = rows.start; y < rows.stop; ++y) {                                                       \
                for (int64_t j = 0; j < a->K; ++j) {                                                                 \
                    int64_t left = j * a->dilation - a->padding;                                                     \
                    struct range columns = inside(left, a->stride, a->W, a->w);                                      \
                    int64_t from = ((b * a->H + y * a->stride + above) * a->W + columns.start * a->stride + left);   \
                    const TYPE *restrict input = (const TYPE *)a->inputs + from * a->C + first;                      \
                    const TYPE *restrict output =                                                                    \
                        (const TYPE *)a->gradient + ((b * a->h + y) * a->w + columns.start) * a->C + first;          \
                    float row[CHANNELS] = {0};                                                                       \
                    if (count == CHANNELS) {                                                                         \
                        ADD_ROW(CONVERT, CHANNELS)                                                                   \
                    } else {                                                                                         \
                        ADD_ROW(CONVERT, count)                                                                      \
                    }                                                                                                \
                    for (int c = 0; c < CHANNELS; ++c) sums[j][c] += row[c];                                         \
                }                                                                                                    \
            }                                                                                                        \
        }                                                                                                            \
        for (int64_t j = 0; j < a->K; ++j)                                                                           \
            for (int c = 0; c < count; ++c) a->weights[((first + c) * a->K + i) * a->K + j] = sums[j][c];            \
    }

DEFINE_TASK(task_of_floats, float, from_float)
DEFINE_TASK(task_of_bfloat16s, uint16_t, from_bfloat16)

static void depthwise_run(struct team *team, int thread) {
    (void)thread;
    const struct depthwise *a = team->work;
    int64_t blocks = (a->C + CHANNELS - 1) / CHANNELS;
    for (;;) {
        int64_t task = next_task(team);
        if (task >= blocks * a->K) break;
        int64_t first = task / a->K * CHANNELS;
        int count = a->C - first < CHANNELS ? (int)(a->C - first) : CHANNELS;
        (a->bfloat16 ? task_of_bfloat16s : task_of_floats)(a, first, count, task % a->K);
    }
}

void kiloseg_depthwise(struct depthwise *a) {
    int64_t tasks = (a->C + CHANNELS - 1) / CHANNELS * a->K;
    int64_t products = a->B * a->h * a->w * a->K * a->K * a->C;
    int64_t useful = products / 262144;  // starting a thread costs about this many products
    int64_t threads = a->threads < tasks ? a->threads : tasks;
    run_team(depthwise_run, a, threads < useful ? threads : useful);
}
