/* Checks and times the kernel that makes a state's ones column by itself (attention/ops/hadamard/cuda/gram.cu), against
 * sums in double on the host.
 *
 *     nvcc -O3 -std=c++17 -gencode arch=compute_90a,code=sm_90a -I. -Iinclude -o bench_gram \
 *         dev/cuda/bench_gram.cu attention/ops/hadamard/cuda/gram.cu
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

static uint32_t generator = 1;

static float uniform(void) {
    generator = generator * 1664525u + 1013904223u;
    return (float)(generator >> 8) / 16777216.0f;
}

/* Random numbers on the device, 16-bit, and what they are on the host. */
struct feature {
    std::vector<float> host;
    uint16_t *device;
    hla_cuda_view view;
};

static feature make_feature(int64_t batch, int64_t tokens, int64_t heads, int64_t width, bool half) {
    feature made;
    const int64_t stride = width + 8, count = batch * tokens * heads * stride;
    std::vector<uint16_t> bits(count);
    made.host.resize(count);
    for (int64_t i = 0; i < count; i++) {
        if (half) {
            __half_raw raw = __half_raw(__float2half_rn(uniform()));
            bits[i] = raw.x, made.host[i] = __half2float(__half(raw));
        } else {
            __nv_bfloat16_raw raw = __nv_bfloat16_raw(__float2bfloat16_rn(uniform()));
            bits[i] = raw.x, made.host[i] = __bfloat162float(__nv_bfloat16(raw));
        }
    }
    CHECK(cudaMalloc(&made.device, count * 2));
    CHECK(cudaMemcpy(made.device, bits.data(), count * 2, cudaMemcpyHostToDevice));
    made.view = {made.device, {tokens * heads * stride, heads * stride, stride, 1}};
    return made;
}

static bool run(int64_t r1, int64_t inner, int64_t r2, int64_t tokens, int64_t heads, int64_t group, bool half,
                bool weighted, std::vector<int64_t> lengths, bool timed, int processors) {
    const int64_t batch = lengths.empty() ? 1 : (int64_t)lengths.size(), rank = r1 * inner * r2;
    const int64_t key_heads = heads / group, states = batch * key_heads;
    feature f1 = make_feature(batch, tokens, heads, r1, half), f2 = make_feature(batch, tokens, heads, r2, half);
    feature second = make_feature(batch, tokens, heads, inner > 1 ? inner : 8, half);
    std::vector<float> c(batch * heads * tokens);
    for (float &number : c)
        number = 1e-4f * (uniform() - 0.5f);
    std::vector<hla_hopper_span> spans;
    for (int64_t n = 0; n < batch; n++)
        spans.push_back({n, 0, lengths.empty() ? tokens : lengths[n], 0});
    hla_gram_call call = {};
    hla_hopper_span *device_spans;
    float *device_c, *z, *partial;
    CHECK(cudaMalloc(&device_spans, spans.size() * sizeof spans[0]));
    CHECK(cudaMemcpy(device_spans, spans.data(), spans.size() * sizeof spans[0], cudaMemcpyHostToDevice));
    CHECK(cudaMalloc(&device_c, c.size() * 4));
    CHECK(cudaMemcpy(device_c, c.data(), c.size() * 4, cudaMemcpyHostToDevice));
    CHECK(cudaMalloc(&z, states * rank * 4));
    const int64_t floats = hla_gram_partial(states, rank, processors);
    CHECK(cudaMalloc(&partial, floats * 4));
    CHECK(cudaMemset(partial, 0xff, floats * 4));
    call.f1 = f1.view, call.f2 = f2.view, call.rank1 = r1, call.rank1_inner = inner, call.rank2 = r2;
    if (inner > 1) call.f1_inner = second.view;
    call.tokens = tokens, call.heads = heads, call.group = group, call.spans = lengths.empty() ? NULL : device_spans;
    call.sequences = batch, call.c = weighted ? device_c : NULL, call.scale = 0.5f, call.half = half;
    call.processors = processors, call.z = z, call.partial = partial;
    CHECK(hla_gram(&call, cudaStreamLegacy));
    std::vector<float> found(states * rank);
    CHECK(cudaMemcpy(found.data(), z, states * rank * 4, cudaMemcpyDeviceToHost));
    double error = 0, norm = 0;
    const int64_t step = rank > 4096 || tokens > 5000 ? 97 : 1; /* of the numbers that are checked */
    for (int64_t n = 0; n < states; n++)
        for (int64_t i = 0; i < rank; i += step) {
            double sum = 0;
            const int64_t a = i / r2, b = i % r2, batch_at = n / key_heads;
            for (int64_t h = n % key_heads * group; h < (n % key_heads + 1) * group; h++)
                for (int64_t t = 0; t < spans[batch_at].count; t++) {
                    const int64_t row = (batch_at * tokens + t) * heads + h;
                    double product = (double)f1.host[row * (r1 + 8) + a / inner] * f2.host[row * (r2 + 8) + b];
                    if (inner > 1) product *= second.host[row * (inner + 8) + a % inner];
                    if (weighted) product *= c[(batch_at * heads + h) * tokens + t];
                    sum += product;
                }
            sum *= 0.5;
            error += (found[n * rank + i] - sum) * (found[n * rank + i] - sum), norm += sum * sum;
        }
    error = std::sqrt(error / norm);
    const bool good = error <= 5e-5;
    printf("%s %lldx%lldx%lld T %lld H %lld/%lld %s%s%s: %.1e", good ? "ok  " : "BAD ", (long long)r1, (long long)inner,
           (long long)r2, (long long)tokens, (long long)heads, (long long)group, half ? "f16" : "bf16",
           weighted ? " weighted" : "", lengths.empty() ? "" : " lengths", error);
    if (timed) {
        std::vector<float> times;
        cudaEvent_t begin, end;
        CHECK(cudaEventCreate(&begin));
        CHECK(cudaEventCreate(&end));
        for (int i = 0; i < 25; i++) {
            CHECK(cudaEventRecord(begin, cudaStreamLegacy));
            CHECK(hla_gram(&call, cudaStreamLegacy));
            CHECK(cudaEventRecord(end, cudaStreamLegacy));
            CHECK(cudaEventSynchronize(end));
            float ms;
            CHECK(cudaEventElapsedTime(&ms, begin, end));
            if (i >= 5) times.push_back(ms);
        }
        std::sort(times.begin(), times.end());
        printf("  %.4f ms", times[10]);
    }
    printf("\n");
    fflush(stdout);
    for (void *memory : {(void *)f1.device, (void *)f2.device, (void *)second.device, (void *)device_spans,
                         (void *)device_c, (void *)z, (void *)partial})
        CHECK(cudaFree(memory));
    return good;
}

int main() {
    cudaDeviceProp device;
    CHECK(cudaGetDeviceProperties(&device, 0));
    const int processors = device.multiProcessorCount;
    int bad = 0;
    for (bool half : {false, true}) {
        for (int64_t r1 : {16, 32, 64, 128})
            for (int64_t r2 : {16, 32, 64, 128})
                bad += !run(r1, 1, r2, 300, 2, 2, half, true, {300, 0, 65}, false, processors);
        for (int64_t r : {8, 16})
            bad += !run(r, r, r, 333, 2, 1, half, false, {}, false, processors);
        bad += !run(64, 1, 64, 1000, 2, 1, half, false, {}, false, processors);
    }
    bad += !run(64, 1, 64, 32760, 12, 1, false, true, {}, true, processors);
    bad += !run(32, 1, 32, 32760, 12, 1, false, true, {}, true, processors);
    bad += !run(16, 16, 16, 32760, 12, 1, false, false, {}, true, processors);
    printf("%d bad\n", bad);
    return bad > 0;
}
