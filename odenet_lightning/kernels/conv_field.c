/* Steps of an explicit Runge-Kutta method for the post's field, f(y) = norm(conv(relu(norm(y)))), and their derivative,
   one image at a time in cache.

   y is [B, C, H, W] in float32, contiguous; the norm has one group a channel; the convolution is 3 x 3 with padding 1.
   The caller sees to shapes, dtypes and memory. Sums are taken in an order that depends on neither the number of
   threads nor their timing.

   An image's planes are kept with zeros around them, rows W + 1 apart with one zero in between, so that a convolution
   is a sum of shifted copies of a plane: nine taps, each a multiply-add of whole vectors across row ends. The value
   between rows is computed and never used. */

#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX512F__)
#define LANES 16 /* floats in a vector */
#define WIDE 4   /* vectors across that a convolution keeps in registers, for each of up to MOST_ROWS channels */
#define MOST_WEIGHTS 6 /* output channels whose kernel gradients are kept in registers */
#elif defined(__AVX__)
#define LANES 8
#define WIDE 2
#define MOST_WEIGHTS 3
#else
#define LANES 4
#define WIDE 2
#define MOST_WEIGHTS 3
#endif
#define MOST_ROWS 6 /* output channels that a convolution keeps in registers */
#define CHUNK 4        /* images whose parameter gradients one thread adds up */
#define MOST_POINTS 16 /* points of a step */

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef float loose __attribute__((vector_size(4 * LANES), aligned(4), may_alias)); /* anywhere in memory */
typedef float quad __attribute__((vector_size(16)));
typedef int mask __attribute__((vector_size(4 * LANES))); /* what comparing vectors gives: all bits, or none */
#define INLINE static inline __attribute__((always_inline))

/* Have a vector stay in a register: gcc would load it again for each product. */
#if defined(__aarch64__)
#define KEEP(x) __asm__("" : "+w"(x))
#elif defined(__SSE__)
#define KEEP(x) __asm__("" : "+v"(x))
#else
#define KEEP(x)
#endif

/* The field, and a step: the points p_i = y + h sum_j a_ij k_j with k_j = f(p_j), the last of which is the new state.

   a is [points, points], lower triangular, its first row empty; [f] marks what a forward pass fills in, [b] what a
   backward pass does. A pointer may be NULL: k_first, where k_0 is to be computed; k_last, where k of the new state is
   not wanted; error, where no error ratio is; h, where there is one point; inner and kept, where no backward pass
   follows; the gradients of what is not used or not wanted. */
typedef struct {
  const float *y, *k_first, *gamma, *beta, *weight, *bias;
  const double *a, *error, *h; /* error: [points]; h: of each image, [B] */
  double rtol, atol, eps;
  long images, channels, height, width, points, threads;
  float *inner, *y1, *k_last; /* [f] points between the first and the last, [points - 2, B, C, H, W] */
  float *kept; /* [f] of each evaluation: a row for each image, the convolution's result [C, H, W] and the norms' mean
                  and 1 / deviation [2, C, 2] */
  double *ratio; /* [f] of each image: sum of (error / (atol + rtol max(|y|, |y1|)))^2, [B] */
  const float *by_y1, *by_k_last;
  float *by_y, *by_k_first, *by_gamma, *by_beta, *by_weight, *by_bias; /* [b] */
} Step;

typedef struct {
  const Step *step;
  const float *turned; /* the weights of the transposed convolution */
  float *partial;      /* [tasks, parameters], the gradients of a task's images */
  long tasks, per_task, next;
  int failed, backward;
} Job;

typedef struct {
  long height, width, pixels, size; /* pixels of a channel; values of an image */
  long stride, flat; /* of a row and the zero after it; of a channel's rows, in whole blocks of vectors */
  long border, plane, all_planes; /* of zeros around a channel; of a channel and the border after it; of an image's */
} Layout;

static long up_to(long n, long multiple) { return (n + multiple - 1) / multiple * multiple; }

static Layout layout_of(const Step *s) {
  Layout l = {.height = s->height, .width = s->width, .pixels = s->height * s->width, .stride = s->width + 1};
  l.size = s->channels * l.pixels;
  l.flat = up_to(l.height * l.stride, WIDE * LANES);
  l.border = up_to(l.stride + 1, LANES);
  l.plane = l.flat + l.border;
  l.all_planes = l.border + s->channels * l.plane;
  return l;
}

INLINE vec load(const float *p) { return *(const loose *)p; }
INLINE void store(float *p, vec x) { *(loose *)p = x; }

/* The same of n values: LANES, 4 or 1. */
INLINE vec load_some(const float *p, long n) {
  if (n == LANES) return load(p);
  return n == 4 ? (vec){p[0], p[1], p[2], p[3]} : (vec){p[0]};
}
INLINE void store_some(float *p, vec x, long n) {
  if (n == LANES)
    store(p, x);
  else if (n == 4)
    memcpy(p, &x, 4 * sizeof *p);
  else
    *p = x[0];
}

/* Go through a row by n values from i on, as many as `load_some` takes. The last n end with the row: where n does not
   divide its width, they overlap those before. */
#define ALONG_ROW(i, n, width)                                                    \
  for (long i = 0, n = (width) >= LANES ? LANES : (width) >= 4 ? 4 : 1, end_ = n; \
       end_ < (width) + n; end_ += n, i = end_ < (width) ? end_ - n : (width) - n)

INLINE float total(vec x) {
  quad part[LANES / 4], sum = {0};
  memcpy(part, &x, sizeof x);
  for (int i = 0; i < LANES / 4; i++) sum += part[i];
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

/* Add up `of(i)`, a vector of values from the i-th on, over n values in vectors, four sums at a time. */
#define ADD_UP(sums, n, of)                                     \
  do {                                                          \
    long i = 0;                                                 \
    for (; i + 4 * LANES <= (n); i += 4 * LANES)                \
      for (int j = 0; j < 4; j++) sums[j] += of(i + j * LANES); \
    for (; i + LANES <= (n); i += LANES) sums[0] += of(i);      \
  } while (0)

INLINE float total4(const vec *sums) { return total((sums[0] + sums[1]) + (sums[2] + sums[3])); }

/* Mean and 1 / sqrt(variance + eps) of n values, summed from the first one on: of equal ones the mean is exact. */
static void moments(const float *x, long n, float eps, float *mean, float *scale) {
  const float start = x[0];
  vec sums[4] = {0}, squares[4] = {0};
  float sum = 0, square = 0;
#define VALUE(i) (load(x + (i)) - start)
  ADD_UP(sums, n, VALUE);
  for (long i = n / LANES * LANES; i < n; i++) sum += x[i] - start;
  const float m = start + (total4(sums) + sum) / n;
#define SQUARE(i) (load(x + (i)) - m) * (load(x + (i)) - m)
  ADD_UP(squares, n, SQUARE);
  for (long i = n / LANES * LANES; i < n; i++) square += (x[i] - m) * (x[i] - m);
  *mean = m;
  *scale = 1.0f / sqrtf((total4(squares) + square) / n + eps);
}

/* Sums of g and of g (x - mean) scale over n values. */
static void moments_of_gradient(const float *g, const float *x, long n, float mean, float scale, float sums[2]) {
  vec plain[4] = {0}, along[4] = {0};
  float rest[2] = {0};
#define GRADIENT(i) load(g + (i))
#define ALONG(i) load(g + (i)) * (load(x + (i)) - mean)
  ADD_UP(plain, n, GRADIENT);
  ADD_UP(along, n, ALONG);
  for (long i = n / LANES * LANES; i < n; i++) rest[0] += g[i], rest[1] += g[i] * (x[i] - mean);
  sums[0] = total4(plain) + rest[0];
  sums[1] = (total4(along) + rest[1]) * scale;
}

/* `rows` output channels of a convolution: out[o][p] = first[o] + sum over i, k of weight[o][i][k] in[i][p + shift k]. */
INLINE void convolve_rows(int rows, const Layout l, long channels, const float *in, const float *weight,
                          const float *first, float *out) {
  for (long p = 0; p < l.flat; p += WIDE * LANES) {
    vec sums[MOST_ROWS][WIDE];
    for (int o = 0; o < rows; o++)
      for (int j = 0; j < WIDE; j++) sums[o][j] = (vec){0} + (first ? first[o] : 0.0f);
    for (long i = 0; i < channels; i++)
      for (int row = 0; row < 3; row++) {
        const float *source = in + i * l.plane + p + (row - 1) * l.stride - 1, *w = weight + i * 9 + row * 3;
        for (int column = 0; column < 3; column++) {
          vec x[WIDE];
          for (int j = 0; j < WIDE; j++) x[j] = load(source + column + j * LANES);
          for (int o = 0; o < rows; o++)
            for (int j = 0; j < WIDE; j++) sums[o][j] += x[j] * w[o * channels * 9 + column];
        }
      }
    for (int o = 0; o < rows; o++)
      for (int j = 0; j < WIDE; j++) store(out + o * l.flat + p + j * LANES, sums[o][j]);
  }
}

static void convolve(const Layout l, long channels, const float *in, const float *weight, const float *first,
                     float *out) {
  for (long o = 0; o < channels; o += MOST_ROWS) {
    const float *w = weight + o * channels * 9, *f = first ? first + o : NULL;
    float *to = out + o * l.flat;
    switch (channels - o < MOST_ROWS ? channels - o : MOST_ROWS) {
      case 1: convolve_rows(1, l, channels, in, w, f, to); break;
      case 2: convolve_rows(2, l, channels, in, w, f, to); break;
      case 3: convolve_rows(3, l, channels, in, w, f, to); break;
      case 4: convolve_rows(4, l, channels, in, w, f, to); break;
      case 5: convolve_rows(5, l, channels, in, w, f, to); break;
      default: convolve_rows(6, l, channels, in, w, f, to);
    }
  }
}

/* Add to sums[o][column] the products of `rows` gradient planes with an input plane's row of taps, lane by lane. */
INLINE void correlate_rows(int rows, const Layout l, long channels, const float *grad, const float *in, vec *sums) {
  vec kept[MOST_WEIGHTS][3];
  for (int o = 0; o < rows; o++)
    for (int column = 0; column < 3; column++) kept[o][column] = sums[o * channels * 9 + column];
  for (long p = 0; p < l.flat; p += LANES) {
    const vec x[3] = {load(in + p - 1), load(in + p), load(in + p + 1)};
    for (int o = 0; o < rows; o++) {
      vec g = load(grad + o * l.plane + p);
      KEEP(g);
      for (int column = 0; column < 3; column++) kept[o][column] += g * x[column];
    }
  }
  for (int o = 0; o < rows; o++)
    for (int column = 0; column < 3; column++) sums[o * channels * 9 + column] = kept[o][column];
}

static void correlate(const Layout l, long channels, const float *grad, const float *in, vec *sums) {
  for (long o = 0; o < channels; o += MOST_WEIGHTS)
    for (long i = 0; i < channels; i++)
      for (int row = 0; row < 3; row++) {
        const float *g = grad + o * l.plane, *x = in + i * l.plane + (row - 1) * l.stride;
        vec *to = sums + (o * channels + i) * 9 + row * 3;
        switch (channels - o < MOST_WEIGHTS ? channels - o : MOST_WEIGHTS) {
          case 1: correlate_rows(1, l, channels, g, x, to); break;
          case 2: correlate_rows(2, l, channels, g, x, to); break;
#if MOST_WEIGHTS > 3
          case 3: correlate_rows(3, l, channels, g, x, to); break;
          case 4: correlate_rows(4, l, channels, g, x, to); break;
          case 5: correlate_rows(5, l, channels, g, x, to); break;
#endif
          default: correlate_rows(MOST_WEIGHTS, l, channels, g, x, to);
        }
      }
}

/* relu(gamma (y - mean) scale + beta) of a channel, its rows a stride apart; NaN stays NaN. */
static void activate(const float *y, const float *stats, float gamma, float beta, const Layout l, float *to) {
  const float mean = stats[0], slope = gamma * stats[1];
  for (long h = 0; h < l.height; h++, y += l.width, to += l.stride)
    ALONG_ROW(i, n, l.width) {
      const vec z = slope * (load_some(y + i, n) - mean) + beta;
      store_some(to + i, (vec)((mask)z & ~(z < 0)), n);
    }
}

/* f(y) of an image, and what its derivative needs: the convolution's result and, after it, the norms' moments. */
static void field(const Step *s, const Layout l, const float *y, float *f, float *conv, float *scratch) {
  float *stats = conv + l.size, *planes = scratch + l.border, *flat = scratch + l.all_planes;
  for (long c = 0; c < s->channels; c++, y += l.pixels, stats += 2) {
    moments(y, l.pixels, s->eps, stats, stats + 1);
    activate(y, stats, s->gamma[c], s->beta[c], l, planes + c * l.plane);
  }
  convolve(l, s->channels, planes, s->weight, s->bias, flat);
  for (long c = 0; c < s->channels; c++, conv += l.pixels, f += l.pixels, flat += l.flat, stats += 2) {
    for (long h = 0; h < l.height; h++)
      ALONG_ROW(i, n, l.width) store_some(conv + h * l.width + i, load_some(flat + h * l.stride + i, n), n);
    moments(conv, l.pixels, s->eps, stats, stats + 1);
    const float mean = stats[0], slope = s->gamma[c] * stats[1];
    ALONG_ROW(i, n, l.pixels) store_some(f + i, slope * (load_some(conv + i, n) - mean) + s->beta[c], n);
  }
}

/* One channel of a norm's derivative: to = slope (g - mean of g - x^ mean of g x^), rows of `to` a stride apart, and the
   sums of g x^ and g added to those by gamma and beta. */
INLINE void norm_derivative(const float *g, const float *x, const float *stats, float gamma, long height, long width,
                            long stride, float *to, float *by_gamma, float *by_beta) {
  const long pixels = height * width;
  const float mean = stats[0], slope = gamma * stats[1];
  float sums[2];
  moments_of_gradient(g, x, pixels, mean, stats[1], sums);
  *by_gamma += sums[1], *by_beta += sums[0];
  const float offset = slope * sums[0] / pixels, along = slope * stats[1] * sums[1] / pixels;
  for (long h = 0; h < height; h++, g += width, x += width, to += stride)
    ALONG_ROW(i, n, width)
      store_some(to + i, slope * load_some(g + i, n) - offset - along * (load_some(x + i, n) - mean), n);
}

/* by_y = the field's derivative by y, transposed, times grad; those by the parameters are added up. */
static void field_derivative(const Step *s, const float *turned, const Layout l, const float *y, const float *conv,
                             const float *grad, float *by_y, float *scratch, vec *by_weight, float *by_norm) {
  const long channels = s->channels;
  const float *stats = conv + l.size;
  float *by_gamma = by_norm, *by_beta = by_norm + channels;
  float *planes = scratch + l.border, *by_conv = planes + l.all_planes, *flat = scratch + 2 * l.all_planes;
  float *masked = flat + channels * l.flat;
  for (long c = 0; c < channels; c++) {
    norm_derivative(grad + c * l.pixels, conv + c * l.pixels, stats + 2 * (channels + c), s->gamma[c], l.height,
                    l.width, l.stride, by_conv + c * l.plane, by_gamma + c, by_beta + c);
    activate(y + c * l.pixels, stats + 2 * c, s->gamma[c], s->beta[c], l, planes + c * l.plane);
  }
  correlate(l, channels, by_conv, planes, by_weight);
  convolve(l, channels, by_conv, turned, NULL, flat);
  for (long c = 0; c < channels; c++, y += l.pixels, by_y += l.pixels, stats += 2) {
    for (long h = 0; h < l.height; h++) {
      const float *z = planes + c * l.plane + h * l.stride, *g = flat + c * l.flat + h * l.stride;
      ALONG_ROW(i, n, l.width)
        store_some(masked + h * l.width + i, (vec)((mask)load_some(g + i, n) & (load_some(z + i, n) > 0)), n);
    }
    norm_derivative(masked, y, stats, s->gamma[c], 1, l.pixels, 0, by_y, by_gamma + c, by_beta + c);
  }
}

/* to = base + sum_i weights_i xs_i over n values, base or not (NULL); those without weight are not read. */
static void combine(const float *base, const float *const *xs, const float *weights, long count, long n, float *to) {
  const float *used[MOST_POINTS];
  float by[MOST_POINTS];
  long m = 0;
  for (long i = 0; i < count; i++)
    if (weights[i] != 0) used[m] = xs[i], by[m++] = weights[i];
  long p = 0;
  for (; p + 4 * LANES <= n; p += 4 * LANES) {
    vec sums[4] = {0};
    if (base)
      for (int j = 0; j < 4; j++) sums[j] = load(base + p + j * LANES);
    for (long i = 0; i < m; i++)
      for (int j = 0; j < 4; j++) sums[j] += load(used[i] + p + j * LANES) * by[i];
    for (int j = 0; j < 4; j++) store(to + p + j * LANES, sums[j]);
  }
  for (; p < n; p++) {
    float sum = base ? base[p] : 0;
    for (long i = 0; i < m; i++) sum += used[i][p] * by[i];
    to[p] = sum;
  }
}

/* Whether a point's field is part of the step. */
static int has_slope(const Step *s, long point) {
  return point == 0 ? !s->k_first : point < s->points - 1 || s->k_last || s->by_k_last;
}

/* What an image's evaluation at a point leaves for the backward pass; there is none at a point whose slope is given. */
static float *kept_of(const Step *s, const Layout l, long point, long image) {
  const long evaluation = point - (s->k_first != NULL);
  return s->kept + (evaluation * s->images + image) * (l.size + 4 * s->channels);
}

/* Sum of (error / (atol + rtol max(|y|, |y1|)))^2 over an image; error is overwritten. */
static double squared_ratio(const Step *s, long n, const float *y, const float *y1, float *error) {
  const float rtol = s->rtol, atol = s->atol;
  for (long i = 0; i < n; i++) {
    const float before = fabsf(y[i]), after = fabsf(y1[i]);
    error[i] /= atol + rtol * (before > after ? before : after);
  }
  vec sums[4] = {0};
  float sum = 0;
#define OWN_SQUARE(i) load(error + (i)) * load(error + (i))
  ADD_UP(sums, n, OWN_SQUARE);
  for (long i = n / LANES * LANES; i < n; i++) sum += error[i] * error[i];
  return (double)total4(sums) + sum;
}

/* A step of one image. The scratch ends with the slopes, and with what is computed and not kept. */
static void forward_image(const Step *s, const Layout l, long image, float *scratch) {
  const long n = s->points, all = s->images * l.size, here = image * l.size;
  float *slopes = scratch + l.all_planes + s->channels * l.flat, *spare_point = slopes + n * l.size;
  float *spare = spare_point + l.size, weights[MOST_POINTS];
  const float *y = s->y + here, *point = y, *ks[MOST_POINTS];
  for (long i = 0; i < n; i++) {
    if (i > 0) {
      float *to = i == n - 1 ? s->y1 + here : s->inner ? s->inner + (i - 1) * all + here : spare_point;
      for (long j = 0; j < i; j++) weights[j] = s->h[image] * s->a[i * n + j];
      combine(y, ks, weights, i, l.size, to);
      point = to;
    }
    const int is_last = i == n - 1;
    ks[i] = i == 0 && s->k_first ? s->k_first + here : is_last && s->k_last ? s->k_last + here : slopes + i * l.size;
    if (has_slope(s, i))
      field(s, l, point, (float *)ks[i], s->kept ? kept_of(s, l, i, image) : spare, scratch);
  }
  if (s->error) {
    for (long i = 0; i < n; i++) weights[i] = s->h[image] * s->error[i];
    combine(NULL, ks, weights, n, l.size, spare);
    s->ratio[image] = squared_ratio(s, l.size, y, s->y1 + here, spare);
  }
}

/* The derivative of a step of one image: back over its points, each with the gradients by the later ones known. */
static void backward_image(const Job *job, const Layout l, long image, float *scratch, vec *by_weight, float *by_norm) {
  const Step *s = job->step;
  const long n = s->points, all = s->images * l.size, here = image * l.size;
  float *by_points = scratch + 2 * l.all_planes + s->channels * l.flat + up_to(l.pixels, LANES);
  float *by_slope = by_points + n * l.size, weights[MOST_POINTS];
  const float *gs[MOST_POINTS];
  for (long i = n - 1; i >= 0; i--) {
    float *by_point = i == 0 ? s->by_y + here : by_points + i * l.size;
    const int is_last = i == n - 1;
    const float *by_last = is_last && s->by_y1 ? s->by_y1 + here : NULL;
    for (long j = i + 1; j < n; j++)
      weights[j - i - 1] = s->h[image] * s->a[j * n + i], gs[j - i - 1] = by_points + j * l.size;
    const float *outside = is_last && s->by_k_last ? s->by_k_last + here : NULL;
    if (i == 0 && s->k_first) {
      combine(outside, gs, weights, n - 1, l.size, s->by_k_first + here);
      memset(by_point, 0, l.size * sizeof(float));
    } else if (has_slope(s, i)) {
      const float *by_k = outside;
      if (!is_last || !outside) combine(outside, gs, weights, n - 1 - i, l.size, by_slope), by_k = by_slope;
      const float *point = i == 0 ? s->y : is_last ? s->y1 : s->inner + (i - 1) * all;
      field_derivative(s, job->turned, l, point + here, kept_of(s, l, i, image), by_k, by_point, scratch, by_weight,
                       by_norm);
    } else {
      memset(by_point, 0, l.size * sizeof(float));
    }
    if (by_last) combine(by_last, (const float *[]){by_point}, (float[]){1}, 1, l.size, by_point);
  }
  for (long i = 1; i < n; i++) weights[i - 1] = 1, gs[i - 1] = by_points + i * l.size;
  if (n > 1) combine(s->by_y + here, gs, weights, n - 1, l.size, s->by_y + here);
}

/* One thread's work: take tasks until none is left. */
static void work(void *of) {
  Job *job = of;
  const Step *s = job->step;
  const Layout l = layout_of(s);
  const long kernel = s->channels * s->channels * 9, params = kernel + 2 * s->channels;
  const size_t lanes = job->backward ? kernel * LANES : 0;
  const size_t kept = (s->points + 2) * l.size + 4 * s->channels + up_to(l.pixels, LANES);
  const size_t size = 2 * l.all_planes + s->channels * l.flat + kept;
  vec *by_weight = aligned_alloc(64, ((lanes + size) * sizeof(float) + 63) / 64 * 64);
  if (!by_weight) {
    job->failed = 1;
    return;
  }
  float *scratch = (float *)by_weight + lanes;
  memset(scratch, 0, 2 * l.all_planes * sizeof(float)); /* the zeros in and around planes */
  for (long task; (task = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED)) < job->tasks;) {
    const long first = task * job->per_task, end = first + job->per_task;
    const long last = end < s->images ? end : s->images;
    if (!job->backward) {
      for (long image = first; image < last; image++) forward_image(s, l, image, scratch);
      continue;
    }
    float *partial = job->partial + task * params;
    memset(by_weight, 0, lanes * sizeof(float));
    memset(partial, 0, params * sizeof(float));
    for (long image = first; image < last; image++)
      backward_image(job, l, image, scratch, by_weight, partial + kernel);
    for (long i = 0; i < kernel; i++) partial[i] = total(by_weight[i]);
  }
  free(by_weight);
}

typedef void (*Parallel)(void (*)(void *), void *, unsigned, unsigned); /* GOMP_parallel */

static int run(Job *job, Parallel parallel) {
  const long threads = job->step->threads < job->tasks ? job->step->threads : job->tasks;
  if (threads > 1 && parallel)
    parallel(work, job, threads, 0);
  else
    work(job);
  return job->failed;
}

/* Take a step. Returns 0, or 1 out of memory. */
int conv_field_step(const Step *step, Parallel parallel) {
  Job job = {.step = step, .tasks = step->images, .per_task = 1};
  return step->points > MOST_POINTS || run(&job, parallel);
}

/* Differentiate a step, given what its forward pass has left. Returns 0, or 1 out of memory. */
int conv_field_step_backward(const Step *step, Parallel parallel) {
  const long channels = step->channels, kernel = channels * channels * 9, params = kernel + 2 * channels;
  const long tasks = (step->images + CHUNK - 1) / CHUNK;
  float *turned = malloc((kernel + tasks * params) * sizeof(float)), *partial = turned + kernel;
  if (!turned) return 1;
  for (long o = 0; o < channels; o++)
    for (long i = 0; i < channels; i++)
      for (int k = 0; k < 9; k++) turned[(i * channels + o) * 9 + 8 - k] = step->weight[(o * channels + i) * 9 + k];
  Job job = {.step = step, .turned = turned, .partial = partial, .tasks = tasks, .per_task = CHUNK, .backward = 1};
  const int failed = run(&job, parallel);
  for (long i = 0; i < params && !failed; i++) {
    const long of_norm = i - kernel;
    double sum = 0;
    for (long task = 0; task < tasks; task++) sum += partial[task * params + i];
    *(of_norm < 0          ? step->by_weight + i
      : of_norm < channels ? step->by_gamma + of_norm
                           : step->by_beta + of_norm - channels) = sum;
  }
  memset(step->by_bias, 0, channels * sizeof(float)); /* a norm follows */
  free(turned);
  return failed;
}

/* As many multiply-adds as a core can do: of MOST_ROWS * WIDE vectors, `rounds` times. Returns their number. */
double multiply_adds(long rounds, float *out) {
  vec sums[MOST_ROWS][WIDE], x = (vec){0} + 0.999f, y = (vec){0} + 0.001f;
  for (int o = 0; o < MOST_ROWS; o++)
    for (int j = 0; j < WIDE; j++) sums[o][j] = (vec){0} + (float)(o * WIDE + j);
  for (long round = 0; round < rounds; round++)
    for (int o = 0; o < MOST_ROWS; o++)
      for (int j = 0; j < WIDE; j++) sums[o][j] = sums[o][j] * x + y;
  for (int o = 0; o < MOST_ROWS; o++)
    for (int j = 0; j < WIDE; j++) out[o * WIDE + j] = total(sums[o][j]);
  return (double)rounds * MOST_ROWS * WIDE * LANES;
}
