// Defines the arguments that both kernels of the loss share. kiloseg.ops.cpu.batch mirrors them.

#ifndef KILOSEG_BATCH_H
#define KILOSEG_BATCH_H

#include <stdint.h>

#define LOG2E 1.4426950408889634f
#define LN2 0.6931471805599453f
#define LEAST 1e-7f  // the smallest squared distance that is distinguished from 0
#define NORM_EPS 1e-12f

// `width` is D, padded to whole vectors. The strides are those of `pixels` and `grad_pixels`. `weight` is the share of each pixel in
// the loss. `labels` is (B, H, W), and `result` is one number.
#define BATCH                                                     \
    int64_t B, D, h, w, H, W, width;                              \
    int64_t threads, cosine, ignore, wants_grad, needs_top;       \
    int64_t image_stride, dim_stride, row_stride, column_stride;  \
    float tau, weight;                                            \
    const float *pixels;                                          \
    const int64_t *labels;                                        \
    float *grad_pixels;                                           \
    float *result;

#endif
