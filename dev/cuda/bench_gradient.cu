/* Checks and times the gradient kernel for Hopper by itself (attention/ops/hadamard/cuda/gradient_sm90.cu), on random
 * numbers; states are random too. A token's gradients are compared with a plain kernel's, in double, for every head of
 * some tokens of each sequence; everything that is not written must stay as it was.
 *
 *     nvcc -O3 -std=c++17 -gencode arch=compute_90a,code=sm_90a -I. -Iinclude -o bench_gradient \
 *         dev/cuda/bench_gradient.cu attention/ops/hadamard/cuda/{gradient_sm90,tensor_map}.cu
 *     bench_gradient [T [R1 R2 V]]
 */
#include "attention/ops/hadamard/cuda/backward.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <vector>

#define CHECK(x)                                                                                                       \
    do {                                                                                                               \
        int error_ = (int)(x);                                                                                         \
        if (error_) {                                                                                                  \
            printf("%s:%d: %s\n", #x, __LINE__, cudaGetErrorString((cudaError_t)error_));                              \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

__host__ __device__ static float number(const uint16_t *at, bool half) {
#if defined(__CUDA_ARCH__)
    return half ? __half2float(*(const __half *)at) : __bfloat162float(*(const __nv_bfloat16 *)at);
#else
    __half_raw bits;
    bits.x = *at;
    uint32_t wide = (uint32_t)*at << 16;
    float f;
    memcpy(&f, &wide, 4);
    return half ? __half2float(__half(bits)) : f;
#endif
}

__global__ void fill(uint16_t *to, int64_t count, uint64_t seed, float low, float high, bool half) {
    int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x;
    if (i >= count) return;
    uint64_t x = (i + 1) * 0x9E3779B97F4A7C15ull + seed * 0xD1B54A32D192ED03ull;
    x ^= x >> 30, x *= 0xBF58476D1CE4E5B9ull, x ^= x >> 27, x *= 0x94D049BB133111EBull, x ^= x >> 31;
    float value = low + (high - low) * ((float)(x >> 40) / 16777216.0f);
    if (half)
        *(__half *)(to + i) = __float2half_rn(value);
    else
        *(__nv_bfloat16 *)(to + i) = __float2bfloat16_rn(value);
}

/* One block a (row, head): row b, t; results d1 [R1], d2 [R2], w, -w s as doubles. One thread a value of b. */
__global__ void plain(double *result, hla_gradient_call call, int r1, int r2, int v, bool half, const int64_t *rows) {
    extern __shared__ double shared[]; /* sums of r2 threads */
    const hla_hopper_side side = call.side;
    int64_t n = rows[3 * blockIdx.x], b_index = rows[3 * blockIdx.x + 1], t = rows[3 * blockIdx.x + 2];
    int h = blockIdx.y, b = threadIdx.x;
    int64_t state = n * (side.heads / side.group) + h / side.group, rank = (int64_t)r1 * r2;
    auto at = [&](const hla_cuda_view &view, int64_t x) {
        return (double)number(
            (const uint16_t *)view.data + b_index * view.stride[0] + t * view.stride[1] + h * view.stride[2] + x, half);
    };
    auto total = [&](double mine) {
        __syncthreads();
        shared[b] = mine;
        __syncthreads();
        double sum = 0;
        for (int i = 0; i < r2; i++)
            sum += shared[i];
        return sum;
    };
    double q = 0, y = 0, f2 = at(side.f2, b), denominator = call.epsilon, product = 0;
    double *to = result + (blockIdx.x * (int64_t)gridDim.y + h) * (2 * r1 + r2 + 2);
    for (int a = 0; a < r1; a++) {
        double sum = 0;
        const uint16_t *s = (const uint16_t *)call.s + (state * rank + a * r2 + b) * v;
        for (int c = 0; c < v; c++) {
            int value = c / 32 * 32 + 8 * (c % 8 / 2) + 2 * (c % 32 / 8) + c % 2;
            sum += (double)number(s + c, half) * at(side.rows, value);
        }
        const uint16_t *z = (const uint16_t *)call.z_split + 2 * state * rank + a * r2 + b;
        double z_ab = (double)number(z, half) + (double)number(z + rank, half), f1 = at(side.f1, a);
        q += f1 * sum, y += f1 * z_ab;
        double p = total(f2 * sum), z_a = total(f2 * z_ab);
        if (b == 0) to[a] = p, to[r1 + a] = z_a;
        denominator += f1 * z_a, product += f1 * p;
    }
    double w = call.scale, s = call.mode == HLA_GRADIENT_KEYS ? -1 : 0;
    if (call.mode == HLA_GRADIENT_QUERIES) w = 1 / denominator, s = w * product;
    to[2 * r1 + b] = w * (q - s * y);
    if (b == 0) {
        for (int a = 0; a < r1; a++)
            to[a] = w * (to[a] - s * to[r1 + a]);
        to[2 * r1 + r2] = w, to[2 * r1 + r2 + 1] = -w * s;
    }
}

struct trial {
    int r1, r2, v;
    bool half;
    int64_t batch, tokens, heads, group;
    std::vector<int64_t> lengths; /* empty: all tokens; packed: of all sequences */
    bool packed;
    hla_gradient_mode mode;
    bool timed;
};

static uint16_t *random_numbers(int64_t count, uint64_t seed, float low, float high, bool half) {
    uint16_t *to;
    CHECK(cudaMalloc(&to, count * 2));
    fill<<<(unsigned)((count + 255) / 256), 256>>>(to, count, seed, low, high, half);
    CHECK(cudaGetLastError());
    return to;
}

static hla_cuda_view view_of(void *data, int64_t t, int64_t h, int64_t x, int64_t pad) {
    return {data, {t * h * (x + pad), h * (x + pad), x + pad, 1}};
}

template <class T> static T *upload(const std::vector<T> &from) {
    T *to;
    CHECK(cudaMalloc(&to, from.size() * sizeof(T) + 1));
    CHECK(cudaMemcpy(to, from.data(), from.size() * sizeof(T), cudaMemcpyHostToDevice));
    return to;
}

template <class T> static std::vector<T> download(const T *from, int64_t count) {
    std::vector<T> to(count);
    CHECK(cudaMemcpy(to.data(), from, count * sizeof(T), cudaMemcpyDeviceToHost));
    return to;
}

static bool run(const trial &in, int processors) {
    hla_hopper_shape shape = {};
    shape.rank1 = in.r1, shape.rank2 = in.r2, shape.value_dim = in.v, shape.half = in.half;
    shape.sigma = 1, shape.processors = processors;
    const int64_t unit = HLA_HOPPER_TILE, rank = (int64_t)in.r1 * in.r2;
    std::vector<hla_hopper_span> spans;
    int64_t sequences = in.packed ? (int64_t)in.lengths.size() : in.batch, first = 0, units = 0;
    for (int64_t n = 0; n < sequences; n++) {
        int64_t count = in.lengths.empty() ? in.tokens : in.lengths[n];
        hla_hopper_span span = {};
        span.b = in.packed ? 0 : n, span.first = in.packed ? first : 0, span.count = count, span.units = units;
        spans.push_back(span);
        first += count, units += (count + unit - 1) / unit;
    }
    hla_hopper_span last = {};
    last.units = units;
    spans.push_back(last);
    const int64_t states = sequences * in.heads / in.group, rows = in.batch * in.tokens * in.heads, pad = 8;
    hla_gradient_call call = {};
    uint16_t *f1 = random_numbers(rows * (in.r1 + pad), 1, 0, 1, in.half),
             *f2 = random_numbers(rows * (in.r2 + pad), 2, 0, 1, in.half);
    uint16_t *x = random_numbers(rows * (in.v + pad), 3, -1, 1, in.half),
             *s = random_numbers(states * rank * in.v, 4, -1, 1.5f, in.half);
    /* coarse parts of z of ordinary size, fine ones small */
    uint16_t *z = random_numbers(states * 2 * rank, 5, 0.5f, 1.5f, in.half);
    for (int64_t n = 0; n < states; n++)
        fill<<<(unsigned)((rank + 255) / 256), 256>>>(z + (2 * n + 1) * rank, rank, 6 + n, -0.01f, 0.01f, in.half);
    uint16_t *d1 = random_numbers(rows * (in.r1 + pad), 7, 0, 1, in.half),
             *d2 = random_numbers(rows * (in.r2 + pad), 8, 0, 1, in.half);
    CHECK(cudaMemset(d1, 0xff, rows * (in.r1 + pad) * 2));
    CHECK(cudaMemset(d2, 0xff, rows * (in.r2 + pad) * 2));
    CHECK(cudaMalloc(&call.weight, rows * 4));
    CHECK(cudaMalloc(&call.moment, rows * 4));
    hla_hopper_span *device_spans = upload(spans);
    call.side.f1 = view_of(f1, in.tokens, in.heads, in.r1, pad),
    call.side.f2 = view_of(f2, in.tokens, in.heads, in.r2, pad);
    call.side.rows = view_of(x, in.tokens, in.heads, in.v, pad);
    call.d1 = view_of(d1, in.tokens, in.heads, in.r1, pad), call.d2 = view_of(d2, in.tokens, in.heads, in.r2, pad);
    call.side.batch = in.batch, call.side.tokens = in.tokens, call.side.heads = in.heads, call.side.group = in.group;
    call.side.spans = in.lengths.empty() ? NULL : device_spans, call.side.sequences = sequences,
    call.side.units = units;
    call.side.units_each = (in.tokens + unit - 1) / unit;
    call.states = states, call.s = s, call.z_split = z, call.mode = in.mode, call.epsilon = 1e-3f, call.scale = 0.75f;
    cudaStream_t stream;
    CHECK(cudaStreamCreate(&stream));
    CHECK(cudaDeviceSynchronize());
    CHECK(hla_gradient(&shape, &call, stream));
    CHECK(cudaStreamSynchronize(stream));

    std::vector<int64_t> samples; /* sequence, b, t */
    std::vector<bool> owned(in.batch * in.tokens);
    for (int64_t n = 0; n < sequences; n++) {
        const hla_hopper_span &span = spans[n];
        int64_t step = std::max<int64_t>(1, span.count / 40);
        for (int64_t i = 0; i < span.count; i++)
            owned[span.b * in.tokens + span.first + i] = true;
        for (int64_t i = 0; i < span.count;
             i += i + step < span.count ? step : std::max<int64_t>(1, span.count - 1 - i))
            samples.insert(samples.end(), {n, span.b, span.first + i});
    }
    int64_t count = (int64_t)samples.size() / 3, width = 2 * in.r1 + in.r2 + 2;
    int64_t *device_samples = upload(samples);
    double *result;
    CHECK(cudaMalloc(&result, count * in.heads * width * 8));
    plain<<<dim3((unsigned)count, (unsigned)in.heads), in.r2, in.r2 * 8>>>(result, call, in.r1, in.r2, in.v, in.half,
                                                                           device_samples);
    CHECK(cudaGetLastError());
    auto wanted = download(result, count * in.heads * width);
    auto found1 = download(d1, rows * (in.r1 + pad)), found2 = download(d2, rows * (in.r2 + pad));
    auto weight = download(call.weight, rows), moment = download(call.moment, rows);
    double error[4] = {}, norm[4] = {};
    for (int64_t i = 0; i < count; i++)
        for (int64_t h = 0; h < in.heads; h++) {
            int64_t b = samples[3 * i + 1], t = samples[3 * i + 2], row = (b * in.tokens + t) * in.heads + h;
            const double *right = &wanted[(i * in.heads + h) * width];
            auto compare = [&](int what, double value, double truth) {
                error[what] += (value - truth) * (value - truth), norm[what] += truth * truth;
            };
            for (int a = 0; a < in.r1; a++)
                compare(0, number(&found1[row * (in.r1 + pad) + a], in.half), right[a]);
            for (int a = 0; a < in.r2; a++)
                compare(1, number(&found2[row * (in.r2 + pad) + a], in.half), right[2 * in.r1 + a]);
            if (in.mode != HLA_GRADIENT_QUERIES) continue;
            compare(2, weight[(b * in.heads + h) * in.tokens + t], right[2 * in.r1 + in.r2]);
            compare(3, moment[(b * in.heads + h) * in.tokens + t], right[2 * in.r1 + in.r2 + 1]);
        }
    int64_t wrong = 0; /* unwritten, or written outside */
    for (int64_t row = 0; row < rows; row++) {
        bool inside = owned[row / in.heads];
        auto count_wrong = [&](const std::vector<uint16_t> &found, int64_t x) {
            for (int64_t i = 0; i < x + pad; i++)
                wrong += (found[row * (x + pad) + i] != 0xffff) != (inside && i < x);
        };
        count_wrong(found1, in.r1), count_wrong(found2, in.r2);
    }
    CHECK(hla_gradient(&shape, &call, stream));
    CHECK(cudaStreamSynchronize(stream));
    bool same = download(d1, rows * (in.r1 + pad)) == found1 && download(d2, rows * (in.r2 + pad)) == found2;
    double worst = 0, bound = in.half ? 1e-3 : 4e-3;
    for (int i = 0; i < 4; i++)
        if (norm[i] > 0) error[i] = std::sqrt(error[i] / norm[i]);
    bool good = wrong == 0 && same;
    for (int i = 0; i < 4; i++) {
        if (!(error[i] <= (i < 2 ? bound : 1e-4))) good = false;
        worst = std::max(worst, error[i]);
    }
    const char *modes[] = {"queries", "keys", "plain"};
    printf("%s %dx%d V %d %s %s B %lld T %lld H %lld/%lld %s: d1 %.1e d2 %.1e w %.1e ws %.1e, %lld wrong%s",
           good ? "ok  " : "BAD ", in.r1, in.r2, in.v, in.half ? "f16" : "bf16", modes[in.mode], (long long)in.batch,
           (long long)in.tokens, (long long)in.heads, (long long)in.group,
           in.packed            ? "packed"
           : in.lengths.empty() ? ""
                                : "lengths",
           error[0], error[1], error[2], error[3], (long long)wrong, same ? "" : ", differs from run to run");
    if (in.timed) {
        std::vector<float> times;
        cudaEvent_t begin, end;
        CHECK(cudaEventCreate(&begin));
        CHECK(cudaEventCreate(&end));
        for (int i = 0; i < 25; i++) {
            CHECK(cudaEventRecord(begin, stream));
            CHECK(hla_gradient(&shape, &call, stream));
            CHECK(cudaEventRecord(end, stream));
            CHECK(cudaEventSynchronize(end));
            float ms;
            CHECK(cudaEventElapsedTime(&ms, begin, end));
            if (i >= 5) times.push_back(ms);
        }
        std::sort(times.begin(), times.end());
        double flops = 2.0 * (double)rank * in.v * (double)(in.batch * in.tokens * in.heads);
        printf("  %.4f ms (%.4f to %.4f)  %.0f TFLOP/s", times[10], times[0], times[19], flops / times[10] / 1e9);
    }
    printf("\n");
    fflush(stdout);
    for (void *memory :
         {(void *)f1, (void *)f2, (void *)x, (void *)s, (void *)z, (void *)d1, (void *)d2, (void *)call.weight,
          (void *)call.moment, (void *)device_spans, (void *)device_samples, (void *)result})
        CHECK(cudaFree(memory));
    CHECK(cudaStreamDestroy(stream));
    return good;
}

int main(int count, char **arguments) {
    cudaDeviceProp device;
    CHECK(cudaGetDeviceProperties(&device, 0));
    printf("%s, %d multiprocessors\n", device.name, device.multiProcessorCount);
    const int processors = device.multiProcessorCount;
    const int64_t tokens = count > 1 ? atoll(arguments[1]) : 32760;
    const hla_gradient_mode QUERIES = HLA_GRADIENT_QUERIES, KEYS = HLA_GRADIENT_KEYS, PLAIN = HLA_GRADIENT_PLAIN;
    std::vector<trial> trials;
    const int ranks[][2] = {{64, 64}, {32, 32}, {16, 16}, {64, 32}, {128, 128}, {16, 128}, {128, 16}, {32, 64}};
    if (count > 4) {
        trials.push_back({atoi(arguments[2]),
                          atoi(arguments[3]),
                          atoi(arguments[4]),
                          false,
                          1,
                          tokens,
                          12,
                          1,
                          {},
                          false,
                          QUERIES,
                          true});
    } else {
        for (auto &rank : ranks)
            for (int v : {128, 64})
                for (bool half : {false, true}) {
                    trials.push_back({rank[0], rank[1], v, half, 1, 200, 2, 1, {}, false, QUERIES, false});
                    trials.push_back({rank[0], rank[1], v, half, 2, 700, 4, 2, {700, 3}, false, KEYS, false});
                    trials.push_back(
                        {rank[0], rank[1], v, half, 1, 1500, 3, 3, {1, 383, 0, 385, 731}, true, PLAIN, false});
                    trials.push_back(
                        {rank[0], rank[1], v, half, 1, 1500, 3, 1, {1, 383, 0, 385, 731}, true, QUERIES, false});
                }
        for (auto &rank : ranks)
            for (int v : {128, 64})
                trials.push_back({rank[0], rank[1], v, false, 1, tokens, 12, 1, {}, false, QUERIES, true});
        trials.push_back({64, 64, 128, false, 1, tokens, 12, 1, {}, false, KEYS, true});
        trials.push_back({64, 64, 128, false, 1, tokens, 12, 1, {}, false, PLAIN, true});
        trials.push_back({64, 64, 128, true, 1, tokens, 12, 1, {}, false, QUERIES, true});
    }
    int bad = 0;
    for (const trial &in : trials)
        bad += !run(in, processors);
    printf("%d of %zu bad\n", bad, trials.size());
    return bad > 0;
}
