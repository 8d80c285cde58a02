/* video/sampler/noise.c - standard normal numbers, each a function of the seed and its own index. */
#include "video/sampler/noise.h"

#include <math.h>

#include "video/sampler/sampler.h"

#define PHILOX_ROUNDS 10

static const double TWO_PI = 6.283185307179586476925286766559;

void hlv_philox(uint32_t out[4], const uint32_t counter[4], const uint32_t key[2]) {
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
    uint32_t k0 = key[0], k1 = key[1];
    for (int round = 0; round < PHILOX_ROUNDS; round++) {
        uint64_t product0 = (uint64_t)0xD2511F53u * c0, product1 = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(product1 >> 32) ^ c1 ^ k0;
        c2 = (uint32_t)(product0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)product1;
        c3 = (uint32_t)product0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[0] = c0, out[1] = c1, out[2] = c2, out[3] = c3;
}

/* Box-Muller on two 32-bit numbers; u1 in (0, 1], so that its logarithm is finite. */
static void normal_pair(float pair[2], uint32_t bits0, uint32_t bits1) {
    double u1 = ((double)bits0 + 1.0) * 0x1p-32, u2 = (double)bits1 * 0x1p-32;
    double radius = sqrt(-2.0 * log(u1));
    pair[0] = (float)(radius * cos(TWO_PI * u2));
    pair[1] = (float)(radius * sin(TWO_PI * u2));
}

void hlv_noise(float *out, int64_t count, uint64_t seed) {
    const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    for (int64_t first = 0; first < count; first += 4) { /* one Philox block makes four numbers */
        uint64_t block = (uint64_t)first / 4;
        const uint32_t counter[4] = {(uint32_t)block, (uint32_t)(block >> 32), 0, 0};
        uint32_t bits[4];
        float normal[4];
        hlv_philox(bits, counter, key);
        normal_pair(normal, bits[0], bits[1]);
        normal_pair(normal + 2, bits[2], bits[3]);
        for (int64_t i = first; i < count && i < first + 4; i++)
            out[i] = normal[i - first];
    }
}
