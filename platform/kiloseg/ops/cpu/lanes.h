// Defines vectors of LANES floats, and how many of them fit into the registers of the CPU that this is compiled for.
//
// A group is VECTORS vectors of pixels side by side. A tile is ROWS classes of a group, whose ROWS x VECTORS sums stay in registers
// while products are added up.

#ifndef KILOSEG_LANES_H
#define KILOSEG_LANES_H

#include <math.h>
#include <stdint.h>

#if defined(__AVX512F__) && defined(__AVX512DQ__)
#include <immintrin.h>
#define LANES 16
#define VECTORS 4
#elif defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>
#define LANES 8
#define VECTORS 2
#elif defined(__aarch64__)
#define LANES 4
#define VECTORS 4
#else
#define LANES 4
#define VECTORS 2
#endif

#define ROWS 6
#define GROUP (LANES * VECTORS)
#define MAX_DIM 256  // limits the stack memory of a thread
#define ALIGNED __attribute__((aligned(64)))
#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(4 * LANES), may_alias));
typedef int32_t ivec __attribute__((vector_size(4 * LANES), may_alias));

INLINE vec load(const float *from) { return *(const vec *)from; }
INLINE void store(float *to, vec value) { *(vec *)to = value; }
INLINE vec splat(float value) { return value - (vec){0}; }
INLINE ivec isplat(int32_t value) { return value - (ivec){0}; }

// Returns the second value if either is NaN, so a NaN among scores is not lost.
#if LANES == 16
INLINE vec vmax(vec a, vec b) { return (vec)_mm512_max_ps((__m512)a, (__m512)b); }
INLINE vec vmin(vec a, vec b) { return (vec)_mm512_min_ps((__m512)a, (__m512)b); }
INLINE unsigned at_least(vec a, vec b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GE_OQ); }
#elif LANES == 8
INLINE vec vmax(vec a, vec b) { return (vec)_mm256_max_ps((__m256)a, (__m256)b); }
INLINE vec vmin(vec a, vec b) { return (vec)_mm256_min_ps((__m256)a, (__m256)b); }
INLINE unsigned at_least(vec a, vec b) {
    return (unsigned)_mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_GE_OQ));
}
#else
INLINE vec choose(ivec which, vec yes, vec no) { return (vec)((which & (ivec)yes) | (~which & (ivec)no)); }
INLINE vec vmax(vec a, vec b) { return choose(a > b, a, b); }
INLINE vec vmin(vec a, vec b) { return choose(a < b, a, b); }
INLINE unsigned at_least(vec a, vec b) {
    ivec which = a >= b;
    unsigned bits = 0;
    for (int l = 0; l < LANES; ++l) bits |= (which[l] ? 1u : 0u) << l;
    return bits;
}
#endif

// Returns 0 where `which` is all ones, and otherwise the value.
INLINE vec unless(ivec which, vec value) { return (vec)(~which & (ivec)value); }

// Computes 1 / sqrt(x) with a relative error of 2e-7.
INLINE vec rsqrt(vec x) {
#if LANES == 16
    vec y = (vec)_mm512_rsqrt14_ps((__m512)x);  // plus a Newton step: cheaper than root and division
    return y * (1.5f - (0.5f * x) * (y * y));
#else
    vec y;
    for (int l = 0; l < LANES; ++l) y[l] = 1.0f / sqrtf(x[l]);
    return y;
#endif
}

// Computes 2^x with a relative error of 2e-7, for x below 127; the result is 0 or nearly (2^-126) if it would be smaller.
INLINE vec exp2v(vec x) {
#if LANES == 16
    vec whole = (vec)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
    x = vmax(splat(-126.0f), x);
    const vec magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer, which is in the low bits
    vec shifted = x + magic;
    vec whole = shifted - magic;
#endif
    vec part = x - whole;
    // This is the minimax polynomial on -1/2 to 1/2; its relative error is 7.5e-8.
    vec y = splat(1.3276471257e-3f);
    y = y * part + 9.6755413286e-3f;
    y = y * part + 5.5507132758e-2f;
    y = y * part + 2.4022119724e-1f;
    y = y * part + 6.9314696706e-1f;
    y = y * part + 1.0000000717f;
#if LANES == 16
    return (vec)_mm512_scalef_ps((__m512)y, (__m512)whole);
#else
    return (vec)((ivec)y + ((ivec)shifted << 23));
#endif
}

// Adds up the values of a vector.
INLINE float sum_of(vec value) {
#if LANES == 16
    return _mm512_reduce_add_ps((__m512)value);
#else
    float sum = 0;
    for (int l = 0; l < LANES; ++l) sum += value[l];
    return sum;
#endif
}

// Returns the highest value of a vector without NaN.
INLINE float max_of(vec value) {
#if LANES == 16
    return _mm512_reduce_max_ps((__m512)value);
#else
    float highest = value[0];
    for (int l = 1; l < LANES; ++l) highest = value[l] > highest ? value[l] : highest;
    return highest;
#endif
}

// Computes the length of a vector between two, `share` of the way. An error of the length is one of all the pixel's distances,
// whose digits cancel where a class is near. So without fused multiply-adds, which round once, the squares are added in double.
INLINE float length_between(const float *left, const float *right, float share, int64_t width) {
#if defined(__FMA__) || defined(__aarch64__)
    vec squares = {0};
    for (int64_t d = 0; d < width; d += LANES) {
        vec u = splat(1 - share) * load(left + d) + splat(share) * load(right + d);
        squares += u * u;
    }
    return sqrtf(sum_of(squares));
#else
    typedef double wide __attribute__((vector_size(8 * LANES)));
    wide squares = {0};
    for (int64_t d = 0; d < width; d += LANES) {
        wide first = __builtin_convertvector(load(left + d), wide), second = __builtin_convertvector(load(right + d), wide);
        wide u = first + (double)share * (second - first);
        squares += u * u;
    }
    double sum = 0;
    for (int l = 0; l < LANES; ++l) sum += squares[l];
    return (float)sqrt(sum);
#endif
}

#endif
