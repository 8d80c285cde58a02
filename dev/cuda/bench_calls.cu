/* Times whole calls of Hadamard attention on a GPU through the public API, in bfloat16: medians of 21 by CUDA events,
 * and the relative error of twelve rows against sums in double. HLA_KERNEL forces a kernel. nvcc -std=c++17 -O2 -I
 * include dev/cuda/bench_calls.cu -L build -l:libhla.so.0 -o bench_calls bench_calls TOKENS HEADS VALUE_DIM RANKS
 * CAUSAL BATCH BACKWARD        such as 32760 12 128 64x64 0 1 1
 */
#include "hla/hadamard.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <vector>

namespace {

constexpr int SAMPLES = 21, WARM = 3, ROWS = 12;

void must(cudaError_t error) {
    if (error == cudaSuccess) return;
    fprintf(stderr, "bench_calls: %s\n", cudaGetErrorString(error));
    exit(1);
}

__global__ void fill_uniform(__nv_bfloat16 *to, int64_t count, uint32_t seed, float low) {
    const int64_t step = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < count; i += step) {
        uint32_t bits = (uint32_t)i * 2654435761u ^ seed;
        bits ^= bits >> 16, bits *= 0x85ebca6bu, bits ^= bits >> 13, bits *= 0xc2b2ae35u, bits ^= bits >> 16;
        to[i] = __float2bfloat16(low + (1 - low) * (float)(bits >> 8) / 16777216.0f);
    }
}

struct problem {
    int64_t T, H, V, B;
    bool causal;
    std::vector<int> rank;
};

/* [B,T,H,width] of numbers between low and 1. */
hla_tensor make(const problem &p, int64_t width, uint32_t seed, float low) {
    const int64_t count = p.B * p.T * p.H * width;
    __nv_bfloat16 *data;
    must(cudaMalloc(&data, (size_t)count * 2));
    fill_uniform<<<1024, 256>>>(data, count, seed, low);
    must(cudaDeviceSynchronize());
    return hla_tensor_bthd(data, HLA_BF16, p.B, p.T, p.H, width);
}

std::vector<float> fetch(const hla_tensor &of, int64_t first, int64_t count) {
    std::vector<__nv_bfloat16> pairs((size_t)count);
    must(cudaMemcpy(pairs.data(), (const __nv_bfloat16 *)of.data + first, (size_t)count * 2, cudaMemcpyDeviceToHost));
    return std::vector<float>(pairs.begin(), pairs.end());
}

double sampled_error(const problem &p, const std::vector<hla_tensor> &q, const std::vector<hla_tensor> &k,
                     const hla_tensor &v, const hla_tensor &out, double epsilon) {
    std::vector<std::vector<float>> keys;
    for (size_t i = 0; i < k.size(); i++)
        keys.push_back(fetch(k[i], 0, p.B * p.T * p.H * p.rank[i]));
    const std::vector<float> values = fetch(v, 0, p.B * p.T * p.H * p.V);
    double wrong = 0, size = 0;
    for (int64_t s = 0; s < ROWS; s++) {
        const int64_t t = s == 0 ? 0 : s == 1 ? p.T - 1 : s * 1037389 % p.T, h = s % p.H, b = s % p.B;
        const int64_t row = (b * p.T + t) * p.H + h;
        std::vector<std::vector<float>> query;
        for (size_t i = 0; i < q.size(); i++)
            query.push_back(fetch(q[i], row * p.rank[i], p.rank[i]));
        std::vector<double> sum((size_t)p.V);
        double denominator = epsilon;
        for (int64_t j = 0; j < (p.causal ? t + 1 : p.T); j++) {
            const int64_t key = (b * p.T + j) * p.H + h;
            double weight = 1;
            for (size_t i = 0; i < q.size(); i++) {
                double dot = 0;
                for (int r = 0; r < p.rank[i]; r++)
                    dot += (double)query[i][r] * keys[i][(size_t)(key * p.rank[i] + r)];
                weight *= dot;
            }
            denominator += weight;
            for (int64_t x = 0; x < p.V; x++)
                sum[(size_t)x] += weight * values[(size_t)(key * p.V + x)];
        }
        const std::vector<float> got = fetch(out, row * p.V, p.V);
        for (int64_t x = 0; x < p.V; x++) {
            const double wanted = sum[(size_t)x] / denominator;
            wrong += (got[(size_t)x] - wanted) * (got[(size_t)x] - wanted), size += wanted * wanted;
        }
    }
    return std::sqrt(wrong / size);
}

template <class F> double median_ms(cudaStream_t stream, F call) {
    cudaEvent_t begin, end;
    must(cudaEventCreate(&begin)), must(cudaEventCreate(&end));
    std::vector<float> ms;
    for (int i = -WARM; i < SAMPLES; i++) {
        float time = 0;
        must(cudaEventRecord(begin, stream));
        call();
        must(cudaEventRecord(end, stream)), must(cudaEventSynchronize(end));
        must(cudaEventElapsedTime(&time, begin, end));
        if (i >= 0) ms.push_back(time);
    }
    std::sort(ms.begin(), ms.end());
    return ms[SAMPLES / 2];
}

} // namespace

int main(int argc, char **argv) {
    if (argc != 8) return fprintf(stderr, "bench_calls: TOKENS HEADS VALUE_DIM RANKS CAUSAL BATCH BACKWARD\n"), 2;
    problem p = {atoll(argv[1]), atoll(argv[2]), atoll(argv[3]), atoll(argv[6]), atoi(argv[5]) != 0, {}};
    for (char *at = argv[4]; *at; at += *at == 'x')
        p.rank.push_back((int)strtol(at, &at, 10));
    hla_context *context;
    cudaStream_t stream;
    must(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    if (hla_context_create(&context, NULL) != HLA_OK) return 1;
    auto check = [&](hla_status status) {
        if (status == HLA_OK) return;
        fprintf(stderr, "bench_calls: %s\n", hla_context_error(context));
        exit(1);
    };
    check(hla_context_use_cuda(context, 0));
    check(hla_context_set_stream(context, stream));
    hla_hadamard_problem description;
    hla_hadamard_problem_init(&description);
    description.batch = p.B, description.heads = p.H, description.queries = description.keys = p.T;
    description.value_dim = p.V, description.factors = (int)p.rank.size(), description.dtype = HLA_BF16;
    description.causal = p.causal;
    std::copy(p.rank.begin(), p.rank.end(), description.rank);
    hla_hadamard_plan *plan;
    check(hla_hadamard_plan_create(context, &description, &plan));

    std::vector<hla_tensor> q, k, dq, dk;
    double flops = 4.0 * (double)(p.V * p.T * p.H * p.B);
    for (size_t i = 0; i < p.rank.size(); i++) {
        q.push_back(make(p, p.rank[i], 1 + (uint32_t)i, 0)), k.push_back(make(p, p.rank[i], 11 + (uint32_t)i, 0));
        dq.push_back(make(p, p.rank[i], 1, 0)), dk.push_back(make(p, p.rank[i], 1, 0));
        flops *= p.rank[i];
    }
    const hla_tensor v = make(p, p.V, 31, -1), out = make(p, p.V, 32, 0), d_out = make(p, p.V, 33, -1);
    const hla_tensor dv = make(p, p.V, 34, 0);
    const size_t forward = hla_hadamard_plan_workspace(plan), kept = hla_hadamard_plan_kept_workspace(plan);
    const size_t backward = hla_hadamard_plan_backward_workspace(plan);
    void *workspace, *other;
    must(cudaMalloc(&workspace, forward + 1)), must(cudaMalloc(&other, backward + 1));
    hla_hadamard_inputs in = {};
    in.q_features = q.data(), in.k_features = k.data(), in.v = &v;
    hla_hadamard_gradients gradients = {};
    gradients.dq_features = dq.data(), gradients.dk_features = dk.data(), gradients.dv = &dv;

    const double ms =
        median_ms(stream, [&]() { check(hla_hadamard_forward(plan, &out, NULL, &in, workspace, forward)); });
    printf("B %lld, T %lld, H %lld, V %lld, %s%s, %s: forward %.4f ms (%.0f TFLOP/s)", (long long)p.B, (long long)p.T,
           (long long)p.H, (long long)p.V, argv[4], p.causal ? " causal" : "", hla_hadamard_plan_kernel(plan), ms,
           flops / ms * 1e-9);
    if (atoi(argv[7]) != 0) {
        in.forward_workspace = workspace;
        const double back = median_ms(
            stream, [&]() { check(hla_hadamard_backward(plan, &gradients, &d_out, NULL, &in, other, backward)); });
        printf(", backward %.4f ms (%.0f)", back, 2.5 * flops / back * 1e-9);
    }
    printf(", workspace %.1f MiB, %.1f of it kept, backward's %.1f; error %.1e\n", (double)forward / 0x1p20,
           (double)kept / 0x1p20, (double)backward / 0x1p20,
           sampled_error(p, q, k, v, out, (double)description.epsilon));
    return 0;
}
