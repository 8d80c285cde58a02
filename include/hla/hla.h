/* hla/hla.h - all of libhla: Hadamard linear attention, its feature maps, and softmax attention as the baseline. */
#ifndef HLA_HLA_H
#define HLA_HLA_H

#include "hla/core.h"
#include "hla/device.h"
#include "hla/feature_map.h"
#include "hla/hadamard.h"
#include "hla/softmax.h"
#include "hla/state.h"

#endif
