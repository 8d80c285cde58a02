#!/bin/sh
# The kept measurements of the attention operators: bench/attention.sh PREFIX, e.g. bench/results/2026-11-24-epyc-zen5-2c.
# HLA: the command (default: build/hla). Some minutes on a quiet machine of 2 cores.
set -eu
prefix=$1
threads=2
ranks=16x16,32x32,64x64,16x16x16
bench() { # bench NAME OPTIONS...: writes $prefix-attention$NAME.json
    name=$1
    shift
    ${HLA:-build/hla} bench attention -q -t $threads --json "$prefix-attention$name.json" "$@"
}
bench "" --dim 128 --tokens 8192 --ranks $ranks --pass both --mode both
bench -length --dim 128 --tokens 256,512,1024,2048,4096,8192,16384 --ranks 32x32 --plot "$prefix-attention-length.svg"
bench -32k --dim 128 --tokens 32768 --ranks $ranks --pass both --mode both --methods hadamard_state --repeat 3
bench -v64 --dim 64 --tokens 8192 --ranks 16x16,32x32,64x64 --methods hadamard_state,hadamard_quadratic,materialised
bench -bf16 --dim 128 --tokens 8192,32768 --ranks 16x16,32x32,64x64 --dtype bf16 --methods hadamard_state,materialised
bench -growth --dim 128 --heads 1 --ranks 16x16,32x32 --methods hadamard_state --repeat 3 \
    --tokens 16384,32768,65536,131072,262144,524288,1048576
threads=1
bench -1t --dim 128 --tokens 8192 --ranks $ranks --pass both --methods hadamard_state,materialised
