/* hlv/hlv.h - all of libhlv: a Wan2.1-architecture text-to-video engine whose self-attention may be Hadamard linear
 * attention (hla/hla.h). */
#ifndef HLV_HLV_H
#define HLV_HLV_H

#include "hlv/arrays.h"
#include "hlv/context.h"
#include "hlv/generate.h"
#include "hlv/media.h"
#include "hlv/model.h"

#endif
