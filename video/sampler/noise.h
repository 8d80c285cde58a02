/* video/sampler/noise.h - the counter-based generator under hlv_noise. */
#ifndef HLV_SAMPLER_NOISE_H
#define HLV_SAMPLER_NOISE_H

#include <stdint.h>

/* Philox 4x32-10: four 32-bit numbers that depend on counter and key alone.
 * Source: Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011. */
void hlv_philox(uint32_t out[4], const uint32_t counter[4], const uint32_t key[2]);

#endif
