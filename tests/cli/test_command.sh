#!/usr/bin/env bash
# The hla command from a shell: every subcommand, its outputs read back by ffprobe, and what bad input gets.
# Usage: test_command.sh HLA MODEL ADAPTED: two checkpoints, with softmax attention and with an adapter in hla/.
# shellcheck disable=SC2012,SC2016 # our own file names; what is expanded by another shell
set -u
export LC_ALL=C.UTF-8
hla=$1 model=$2 adapted=$3
scratch=$(mktemp -d "${TMPDIR:-/tmp}/hla-command-XXXXXX")
trap 'rm -rf "$scratch"' EXIT
manual=$(realpath "$(dirname "$0")/../../docs/man/hla.1")
cd "$scratch" || exit 1
mkdir out
failures=0 checks=0

complain() {
    failures=$((failures + 1))
    printf 'FAILED: %.300s\n' "$1"
    sed 's/^/    stdout: /' stdout | head -5
    sed 's/^/    stderr: /' stderr | tail -4
}

# expect STATUS TEXT COMMAND...: runs the command; its exit status and a part of what it says must be these.
expect() {
    local status=$1 text=$2 got
    shift 2
    "$@" >stdout 2>stderr
    got=$?
    checks=$((checks + 1))
    [ "$got" -eq "$status" ] || complain "exit status $got, wanted $status: $*"
    [ -z "$text" ] || grep -qF -- "$text" stdout stderr || complain "not said: '$text': $*"
}

# refuse STATUS TEXT COMMAND...: the same, with nothing on standard output and nothing left in out/.
refuse() {
    expect "$@"
    [ -s stdout ] && complain "a failure wrote to standard output: ${*:3}"
    [ -z "$(ls -A out)" ] || complain "left behind: $(ls -A out): ${*:3}"
    rm -rf out && mkdir out
}

# probe FILE ENTRIES WANTED: one line of ffprobe's.
probe() {
    local got
    got=$(ffprobe -v error -count_frames -show_entries "$2" -of csv=p=0 "$1" 2>&1 | tr '\n' ' ')
    checks=$((checks + 1))
    [ "$got" = "$3 " ] || complain "ffprobe $1 $2: '$got', wanted '$3'"
}

same() {
    checks=$((checks + 1))
    cmp -s "$1" "$2" || complain "$1 and $2 differ"
}

valid_json() {
    checks=$((checks + 1))
    python3 -c "import json, sys; d = json.load(open(sys.argv[1])); assert ($2), d" "$1" 2>>stderr ||
        complain "$1: not JSON with $2"
}

# One thread: on so small a model more would only wait for each other.
tiny=(--model "$adapted" --size 16x8 --frames 5 --steps 2 --threads 1)
small=(--size 32x16 --frames 9 --steps 3 --seed 5 --threads 1 --model "$model")
clip=("$hla" generate "a cat flies" "${small[@]}")

help_and_usage() {
    expect 0 "Usage: hla COMMAND" "$hla" help
    expect 0 "Usage: hla COMMAND" "$hla" --help
    expect 0 "hla 0." "$hla" version
    expect 0 "hla 0." "$hla" --version
    expect 2 "Usage: hla COMMAND" "$hla"
    for command in generate attend "bench generate" "bench attention" inspect doctor; do
        # shellcheck disable=SC2086 # the words are meant to be split
        expect 0 "Usage: hla $command" "$hla" $command --help
        [ -s stderr ] && complain "--help of $command wrote to standard error"
        [ -z "$(awk 'length > 80' stdout)" ] || complain "--help of $command is wider than 80 columns"
        case $command in generate | attend)
            while read -r option; do
                sed 's/\\-/-/g' "$manual" | grep -q -- "$option" || complain "the manual lacks $option of $command"
            done < <(grep -oE '^ +(-., )?--[a-z-]+' stdout | grep -oE -- '--.*')
            ;;
        esac
        # shellcheck disable=SC2086
        expect 0 "Usage: hla $command" "$hla" help $command
        # shellcheck disable=SC2086
        refuse 2 "unknown option '--wrong'" "$hla" $command --wrong
    done
    expect 0 "Usage: hla bench generate" "$hla" bench --help
    refuse 2 "unknown command 'generat'" "$hla" generat
    refuse 2 "hla bench generate" "$hla" bench
    refuse 2 "hla bench attention" "$hla" bench nothing
    expect 1 "" bash -c '"$1" help >/dev/full' sh "$hla"
}

options() {
    refuse 2 "no prompt" "$hla" generate -o out/a.gif
    refuse 2 "the prompt is empty" "$hla" generate "" -o out/a.gif
    refuse 2 "the prompt is empty" "$hla" generate "  " -o out/a.gif
    refuse 2 "no output" "$hla" generate "a cat"
    refuse 2 "'cat' is one word too many" "$hla" generate a cat -o out/a.gif
    refuse 2 "--steps needs a value" "$hla" generate "a cat" -o out/a.gif --steps
    for value in 0 -1 x 3.5 "" 3x 99999999999999999999 1001 " 3" 0x10; do
        refuse 2 "--steps is '$value'" "$hla" generate "a cat" -o out/a.gif --steps "$value"
    done
    for value in x -1 18446744073709551616 1.0 ""; do
        refuse 2 "--seed is '$value'" "$hla" generate "a cat" -o out/a.gif --seed "$value"
    done
    for value in nan inf 1e999 x "" 0x1p3; do
        refuse 2 "--guidance is '$value'" "$hla" generate "a cat" -o out/a.gif --guidance "$value"
    done
    for value in 32 32x 32x16x8 x16 -32x16 0x16 32X16 99999x16; do
        refuse 2 "--size is '$value'" "$hla" generate "a cat" -o out/a.gif --size "$value"
    done
    refuse 2 "--sampler is 'ddim', wanted one of: unipc, euler" "$hla" generate "a cat" -o out/a.gif --sampler ddim
    refuse 2 "--quiet takes no value" "$hla" generate "a cat" -o out/a.gif --quiet=yes
    refuse 2 "--memory-limit is '0'" "$hla" generate "a cat" -o out/a.gif --memory-limit 0
    refuse 2 "same file" "$hla" generate "a cat" -o out/a.png --preview out/a.png
    refuse 2 "--latents needs -o" "$hla" generate --latents x.safetensors
    refuse 2 "leave it out" "$hla" generate "a cat" --latents x.safetensors -o out/a.gif
    refuse 2 "wanted a name that ends in .safetensors" "$hla" generate "a cat" --resume out/l.npy -o out/a.gif
    refuse 2 "wanted a name that ends in .safetensors" "$hla" generate "a cat" --save-latents out/l.npy
    refuse 2 "must be one picture" "${clip[@]}" -o out/a.gif --preview out/p-%d.png
    refuse 2 "unknown option '-x3'" "$hla" generate "a cat" -o out/a.gif -x3
    refuse 2 "takes no value" "$hla" generate "a cat" -o out/a.gif -qv
    refuse 2 "--steps is '3x'" "$hla" generate "a cat" -o out/a.gif -n3x
    refuse 2 "wanted one of: gif" "$hla" bench generate --format avi
    refuse 2 "wanted a name that ends in .svg" "$hla" bench attention --plot out/a.png
    refuse 1 "no CUDA" "${clip[@]}" -o out/a.gif --device cuda
    refuse 2 "--tokens is '1,x'" "$hla" bench attention --tokens 1,x
    for value in 16x 0x4 257 16x16x16x16x16 16X16 ,16 16, "" x; do
        refuse 2 "--ranks is '$value'" "$hla" bench attention --ranks "$value"
    done
    refuse 2 "--methods is 'linear,fast'" "$hla" bench attention --methods linear,fast
    refuse 2 "threads is" "$hla" doctor --threads -1
}

sizes_and_prompts() {
    refuse 2 "width" "${clip[@]}" -o out/a.gif --size 30x16
    refuse 2 "height" "${clip[@]}" -o out/a.gif --size 32x20
    refuse 2 "frames" "${clip[@]}" -o out/a.gif --frames 8
    refuse 2 "UTF-8" "$hla" generate $'a \xff cat' "${small[@]}" -o out/a.gif
    refuse 2 "UTF-8" "${clip[@]}" --negative $'\xc3' -o out/a.gif
    refuse 1 "memory" "${clip[@]}" -o out/a.gif --memory-limit 10K
    refuse 1 "memory" "${clip[@]}" -o out/a.gif --size 8192x8192 --frames 401 --memory-limit 1G
    long=$(printf 'a cat %.0s' $(seq 3000))
    expect 0 "longer than 512 pieces" "$hla" generate "$long" "${small[@]}" -o out/long.gif
    expect 0 "out/long.gif" "$hla" generate "une caméra 🚀 猫" "${small[@]}" -o out/long.gif
    rm out/long.gif
}

formats() {
    for format in mp4 webm gif png apng y4m; do
        expect 0 "out/a.$format" "${clip[@]}" -o out/a.$format
    done
    local show=stream=codec_name,width,height,nb_read_frames
    probe out/a.mp4 $show "h264,32,16,9"
    probe out/a.webm $show "vp9,32,16,9"
    probe out/a.gif $show "gif,32,16,9"
    probe out/a.png $show "apng,32,16,9"
    probe out/a.apng $show "apng,32,16,9"
    probe out/a.y4m $show "rawvideo,32,16,9"
    probe out/a.mp4 format_tags=prompt,seed "a cat flies,5"
    probe out/a.webm format_tags=PROMPT,SEED "a cat flies,5"
    expect 0 "steps 3" ffprobe -show_entries format_tags=settings out/a.mp4
    expect 0 "" "${clip[@]}" -o out/frame-%02d.png
    [ "$(ls out/frame-*.png | wc -l)" -eq 9 ] || complain "not 9 single pictures"
    probe out/frame-08.png stream=codec_name,width,height "png,32,16"
    expect 0 "" "${clip[@]}" --frames 1 -o out/still.png
    probe out/still.png stream=codec_name,nb_read_frames "png,1"
    [ "$(ls -A out | wc -l)" -eq 16 ] || complain "unexpected files: $(ls -A out)"
    rm -rf out && mkdir out
    refuse 2 ".mp4 .webm" "${clip[@]}" -o out/a.avi
    refuse 2 "exactly one %d" "${clip[@]}" -o out/a-%s.png
    refuse 1 "no/such" "${clip[@]}" -o no/such/a.gif
    mkdir out/b.gif
    expect 1 "directory" "${clip[@]}" -o out/b.gif
    rmdir out/b.gif
}

results() {
    expect 0 "" "${clip[@]}" --threads 1 --json --quiet -o out/one.y4m
    cp stdout one.json
    [ -s stderr ] && complain "--quiet was not quiet"
    valid_json one.json 'd["seed"] == 5 and d["steps"] == 3 and d["output"] == "out/one.y4m" and
        d["stage_seconds"]["decode"] >= 0'
    expect 0 "" "${clip[@]}" --threads 2 -o out/two.y4m
    same out/one.y4m out/two.y4m
    expect 0 "" "${clip[@]}" --seed 6 -o out/other.y4m
    cmp -s out/one.y4m out/other.y4m && complain "seeds 5 and 6 give the same video"
    expect 0 "" "${clip[@]}" --save-latents out/l.safetensors --preview out/p.png --preview-every 1 -o out/two.y4m
    same out/one.y4m out/two.y4m
    probe out/p.png stream=codec_name,width,height "png,32,16"
    expect 0 "" "$hla" generate --latents out/l.safetensors --model "$model" --threads 1 --quiet -o out/again.y4m
    same out/one.y4m out/again.y4m
    expect 0 "" "$hla" generate --latents out/l.safetensors --model "$model" --threads 1 -o out/again.mp4
    probe out/again.mp4 format_tags=prompt,seed "a cat flies,5"
    expect 0 "" "$hla" generate --latents out/l.safetensors --model "$model" -t1 --json -o out/again.gif
    valid_json stdout 'd["latents"] == "out/l.safetensors" and "seed" not in d and d["stage_seconds"]["decode"] > 0'
    expect 0 "l.safetensors" "${clip[@]}" --save-latents out/l.safetensors
    expect 1 "standard output" bash -c '"$@" >/dev/full' sh "${clip[@]}" -o out/full.gif
    for options in "--sampler euler" "--guidance 1" "--shift 2.5" "--dtype bf16" "--negative rain" "--fps 12.5"; do
        # shellcheck disable=SC2086 # the words are meant to be split
        expect 0 "" "${clip[@]}" $options -o out/two.y4m
        [ "$options" = "--negative rain" ] && continue # the tiny checkpoint may not tell prompts apart
        cmp -s out/one.y4m out/two.y4m && complain "$options changes nothing"
    done
    expect 0 "" "${clip[@]:0:2}" "${small[@]}" --frames 1 --json -o out/j.gif -- $'-a "cat"\\ \t\x01 🚀'
    valid_json stdout 'd["prompt"] == "-a \"cat\"\\ \t\x01 🚀" and d["frames"] == 1'
    rm -rf out && mkdir out
    refuse 1 "none.safetensors" "$hla" generate --latents none.safetensors --model "$model" -o out/a.gif
    printf 'too short' >bad.safetensors
    refuse 1 "bad.safetensors" "$hla" generate --latents bad.safetensors --model "$model" -o out/a.gif
    expect 0 "\"model\": \"$model\"" env HLA_MODEL="$model" "$hla" generate cat --size 32x16 --frames 1 --steps 1 \
        --threads 1 --json -o out/a.gif
    rm -rf out && mkdir out
    refuse 1 "none" "$hla" generate cat --model none -o out/a.gif
}

# An ffmpeg of our own stands in front of PATH.
fake_ffmpeg() {
    mkdir -p bin
    printf '#!/bin/sh\n%s\n' "$1" >bin/ffmpeg
    chmod +x bin/ffmpeg
}

# What OpenMP's runtime is told about waiting threads, as the encoder, a child of the command, sees it.
waiting() {
    fake_ffmpeg 'echo "spins ${GOMP_SPINCOUNT-unset}, policy ${OMP_WAIT_POLICY-unset}" >&2; exit 1'
    local run=(env -u OMP_WAIT_POLICY -u GOMP_SPINCOUNT PATH="$scratch/bin:$PATH")
    refuse 1 "spins 1000, policy unset" "${run[@]}" "${clip[@]}" -o out/a.mp4
    refuse 1 "spins 7, policy unset" "${run[@]}" GOMP_SPINCOUNT=7 "${clip[@]}" -o out/a.mp4
    refuse 1 "spins unset, policy active" "${run[@]}" OMP_WAIT_POLICY=active "${clip[@]}" -o out/a.mp4
    # A program whose file is gone cannot start itself again, and goes on as it is.
    cp "$hla" gone && exec 9<gone && rm gone
    expect 0 "out/a.gif" "${run[@]}" LD_LIBRARY_PATH="$(dirname "$hla")" /proc/self/fd/9 "${clip[@]:1}" -o out/a.gif
    exec 9<&-
    rm -rf out && mkdir out
}

# limited KIB COMMAND...: no file may grow beyond that. What it says goes through a pipe, which has no such limit.
limited() {
    local limit=$1
    shift
    (
        set -o pipefail
        {
            (ulimit -f "$limit" && exec "$@" 3>&-) 2>&1 >&3 | cat >&2
        } 3>&1 | cat
    )
}

encoder_and_disk() {
    mkdir -p empty
    refuse 1 "formats that need no ffmpeg" env PATH="$scratch/empty" "${clip[@]}" -o out/a.mp4
    expect 0 "out/a.gif" env PATH="$scratch/empty" "${clip[@]}" -o out/a.gif
    rm out/a.gif
    fake_ffmpeg 'echo "Unknown encoder" >&2; exit 1'
    refuse 1 "Unknown encoder" env PATH="$scratch/bin:$PATH" "${clip[@]}" -o out/a.mp4
    # Passes the trial before computing, then dies with half a file written.
    fake_ffmpeg 'case "$*" in *"-f null -") exec cat >/dev/null;; esac
for last; do :; done; head -c 3000 >"${last#file:}"; echo "encoder exploded" >&2; exit 3'
    refuse 1 "encoder exploded" env PATH="$scratch/bin:$PATH" "${clip[@]}" -o out/a.mp4
    expect 1 "Go on with: hla generate --latents" env PATH="$scratch/bin:$PATH" "${clip[@]}" -o out/a.mp4 \
        --save-latents out/l.safetensors
    [ "$(ls -A out)" = l.safetensors ] || complain "wanted the latents alone: $(ls -A out)"
    expect 0 "" "$hla" generate --latents out/l.safetensors --model "$model" --threads 1 -o out/a.mp4
    rm -rf out && mkdir out
    # A limit on file sizes stands in for a full disk: the latents fit, the video does not.
    expect 1 "File too large" limited 8 "${clip[@]}" --save-latents out/l.safetensors -o out/a.y4m
    [ "$(ls -A out)" = l.safetensors ] || complain "wanted the latents alone: $(ls -A out)"
    rm -rf out && mkdir out
    refuse 1 "ffmpeg stopped" limited 0 "${clip[@]}" -o out/a.mp4
    for name in a.gif a.png a-%d.png; do
        refuse 1 "File too large" limited 0 "${clip[@]}" -o "out/$name"
    done
    refuse 1 "l.safetensors" limited 0 "${clip[@]}" --save-latents out/l.safetensors
}

# Less and less address space: a sentence and nothing left behind, wherever it runs out; never a crash. (Sanitizers need
# more than any limit; 127: the libraries themselves did not fit.)
out_of_memory() {
    local kib got
    (ulimit -v 1000000 && "$hla" version >/dev/null 2>&1) || return
    for kib in $(seq 200000 -10000 60000); do
        (ulimit -v "$kib" && exec "${clip[@]}" -o out/a.gif) >stdout 2>stderr
        got=$?
        checks=$((checks + 1))
        case $got in
        0) rm out/a.gif ;;
        1) grep -qE "memory|mapped" stderr || complain "$kib KiB of memory: not said" ;;
        127) ;;
        *) complain "$kib KiB of memory: exit status $got" ;;
        esac
        [ -z "$(ls -A out)" ] || complain "$kib KiB of memory: left behind: $(ls -A out)"
        rm -rf out && mkdir out
    done
}

# damage TEXT COMMAND...: a copy of the model, changed by the command (run in its directory), is refused with TEXT.
damage() {
    local text=$1
    shift
    rm -rf bad && cp -r "$model" bad && chmod -R u+w bad
    (cd bad && "$@") || complain "damage: $*"
    refuse 1 "$text" "$hla" generate "a cat" "${small[@]}" --model bad -o out/a.gif
}

bad_checkpoints() {
    local weights=transformer/diffusion_pytorch_model.safetensors
    damage "$weights" truncate -s 1000 $weights
    damage "$weights" truncate -s -4 $weights
    damage "$weights" truncate -s 4 $weights
    # A header of 2^63 - 1 bytes.
    damage "$weights" bash -c "printf '\\377%.0s' 1 2 3 4 5 6 7 | dd of=$weights conv=notrunc status=none
        printf '\\177' | dd of=$weights bs=1 seek=7 conv=notrunc status=none"
    damage "bad/transformer" rm $weights
    damage "proj_out.weight" sed -i 's/"proj_out.weight"/"proj_oux.weight"/' $weights
    damage "proj_out.bias" sed -i 's/"proj_out.weight"/"proj_oux.weight"/; s/"proj_out.bias"/"proj_oux.bias"/' $weights
    damage "$weights" sed -i 's/blocks.0.attn1.to_q.weight/blocks.0.attn1.to_k.weight/' $weights
    damage "dtype I16" sed -i '0,/"BF16"/s//"I16" /' $weights
    damage "vae" truncate -s -4 vae/diffusion_pytorch_model.safetensors
    damage "text_encoder" truncate -s -4 text_encoder/model.safetensors
    damage "tokenizer" rm -r tokenizer
    damage "model_index.json" rm model_index.json
    damage "transformer/config.json" sh -c 'echo "{" >transformer/config.json'
    damage "vae/config.json" sh -c 'echo "[1, 2" >vae/config.json'
    damage "blocks.2." sed -i 's/"num_layers": 2/"num_layers": 3/' transformer/config.json
    damage "ffn" sed -i -E 's/"ffn_dim": [0-9]+/"ffn_dim": 7/' transformer/config.json
    damage "num_layers" sed -i 's/"num_layers": 2/"num_layers": -2/' transformer/config.json
    damage "StableDiffusionPipeline" sed -i 's/WanPipeline/StableDiffusionPipeline/' model_index.json
    rm -rf bad
    refuse 2 "adapter" "${clip[@]}" --attention hadamard -o out/a.gif
    refuse 1 "none" "${clip[@]}" --adapter none -o out/a.gif
}

# stop SIGNAL READY SAID LEFT COMMAND...: sends the signal as soon as the shell command READY succeeds. The command then
# ends with status 1, says SAID, and leaves LEFT in out/ (or nothing). Job control gives it the signals of a terminal.
stop() {
    local signal=$1 ready=$2 said=$3 left=$4 pid got
    shift 4
    set -m
    "$@" >stdout 2>stderr &
    pid=$!
    set +m
    for _ in $(seq 200); do
        eval "$ready" && break
        sleep 0.05
    done
    sleep 0.2
    kill "-$signal" $pid
    wait $pid
    got=$?
    checks=$((checks + 1))
    [ $got -eq 1 ] || complain "SIG$signal: exit status $got, wanted 1: $*"
    grep -qF -- "$said" stderr || complain "SIG$signal: not said: '$said': $*"
    [ "$(ls -A out)" = "$left" ] || complain "SIG$signal: left behind: $(ls -A out): $*"
    rm -rf out && mkdir out
}

# Ctrl-C in each stage that lasts: trying the encoder, sampling, decoding, writing.
interrupt() {
    local signal path_with_fake=(env PATH="$scratch/bin:$PATH")
    local endless=("$hla" generate "a cat" --model "$model" --threads 1 --size 128x128 --frames 33 --steps 1000)
    for signal in INT TERM HUP; do
        stop $signal 'grep -q ^load stderr' "with --resume F.safetensors it goes on where it was stopped" "" \
            "${endless[@]}" -o out/a.mp4
    done
    stop INT 'grep -q ^load stderr' "The same command makes the same clip from the start" "" \
        "${endless[@]}" -o out/a.mp4 --save-latents out/l.safetensors
    stop INT '[ -e out/k.safetensors ]' "Go on with the same command: out/k.safetensors holds the steps" k.safetensors \
        "${endless[@]}" -o out/a.mp4 --resume out/k.safetensors
    expect 0 "" "${clip[@]}" --size 128x128 --frames 801 --guidance 1 --steps 1 --save-latents long.safetensors
    stop INT 'sleep 0.2' " decoding" "" \
        "$hla" generate --model "$model" --threads 1 --latents long.safetensors -o out/a.gif
    fake_ffmpeg 'touch started; exec sleep 9731'
    stop INT '[ -e started ]' "cancelled: 'out/a.mp4' was not written" "" \
        "${path_with_fake[@]}" "${clip[@]}" -o out/a.mp4
    fake_ffmpeg 'case "$*" in *"-f null -") exec cat >/dev/null;; esac
for last; do :; done; head -c 3000 >"${last#file:}"; touch writing; exec sleep 9731'
    stop INT '[ -e writing ]' "Go on with: hla generate --latents 'out/l.safetensors' -o 'out/a.mp4'" l.safetensors \
        "${path_with_fake[@]}" "${clip[@]}" --save-latents out/l.safetensors -o out/a.mp4
    [ -z "$(pgrep -fx "sleep 9731")" ] || complain "an encoder outlives the command"
}

# A live line on a terminal, plain lines without one.
progress() {
    expect 0 "sample: 3 of 3" "${clip[@]}" -o out/a.gif
    grep -q $'\r' stderr && complain "a live line without a terminal"
    if command -v script >/dev/null; then
        TERM=xterm script -qec "$(printf '%q ' "${clip[@]}" -o out/a.gif)" terminal.txt >/dev/null </dev/null
        grep -q $'\rsample .*3/3' terminal.txt || complain "no live line on a terminal: $(head -c 300 terminal.txt)"
    fi
    rm -rf out && mkdir out
}

others() {
    expect 0 "transformer" "$hla" inspect "$model" --size 32x16 --frames 9
    expect 0 "" "$hla" inspect "$model" --size 32x16 --frames 9 --json
    valid_json stdout 'len(d) > 2'
    expect 0 "proj_out.weight" "$hla" inspect "$model/transformer/diffusion_pytorch_model.safetensors"
    expect 0 "" "$hla" inspect "$adapted/hla/model.safetensors" --json
    valid_json stdout 'len(d) > 1'
    refuse 1 "nowhere" "$hla" inspect nowhere
    printf 'too short' >bad.safetensors
    refuse 1 "bad.safetensors" "$hla" inspect bad.safetensors

    expect 0 "All is well" env HLA_MODEL="$adapted" "$hla" doctor
    expect 0 "" env HLA_MODEL="$adapted" "$hla" doctor --json
    valid_json stdout 'd["good"] and not d["remarks"] and d["kernels"][0]["name"] == "reference" and
        d["machine"]["cores"] > 0'
    expect 0 "no .mp4 can be written" env HLA_MODEL="$adapted" PATH="$scratch/empty" "$hla" doctor
    expect 1 "none/model_index.json" env HLA_MODEL=none "$hla" doctor
    expect 1 "HLA_KERNEL is 'fastest'" env HLA_MODEL="$adapted" HLA_KERNEL=fastest "$hla" doctor

    expect 0 "hadamard" "$hla" bench generate "${tiny[@]}" --json out/b.json
    valid_json out/b.json '[r["attention"] for r in d["runs"]] == ["hadamard", "softmax"] and
        all(r["seconds_per_step"] > 0 and r["peak_bytes"] > 0 and "sample" in r["stage_seconds"] for r in d["runs"]) and
        d["machine"]["threads"] > 0'
    rm out/b.json
    refuse 2 "adapter" "$hla" bench generate --model "$model" --size 32x16 --frames 5 --steps 2 --json out/b.json
    refuse 1 "no/b.json" "$hla" bench generate "${tiny[@]}" --json no/b.json

    expect 0 "ratio" "$hla" bench attention --threads 1 --tokens 1,33,300 --heads 2 --batch 2 --dim 16 --value-dim 24 \
        --ranks 8x8,5 --repeat 1 --json out/a.json --plot out/a.svg
    valid_json out/a.json 'len(d["runs"]) == 30 and d["peak"]["gflops"] > 0 and all(r["relative_error"] <= 1e-5 and
        r["seconds"] > 0 and r["peak_share"] > 0 and abs(r["gflops"] * r["seconds"] - 1e-9 * r["flops"]) < 1e-9 and
        r["B"] == 2 and r["V"] == 24 and len(r["ratios"]) == 5 for r in d["runs"]) and
        {r["method"] for r in d["runs"]} == {"hadamard_state", "hadamard_quadratic", "materialised", "softmax", "linear"} and
        [r["flops"] for r in d["runs"] if r["T"] == 300 and r["ranks"] in (None, "8x8")] ==
        [4 * 64 * 24 * 300 * 4, 2 * 300**2 * 40 * 4, 4 * 64 * 24 * 300 * 4, 2 * 300**2 * 40 * 4, 2 * 300**2 * 40 * 4]'
    python3 -c 'import xml.dom.minidom; xml.dom.minidom.parse("out/a.svg")' 2>>stderr || complain "out/a.svg is no XML"
    rm out/a.json out/a.svg
    # Both passes and modes: what a method lacks is left out, with a word.
    expect 0 "materialised         has no" "$hla" bench attention --threads 1 --tokens 70 --heads 2 --dim 16 --rank 8 \
        --repeat 1 --pass both --mode both --json out/a.json
    valid_json out/a.json 'all((r["pass"], r["mode"]) in [(p, m) for p in ("forward", "backward")
        for m in ("bidirectional", "causal")] and r["seconds"] > 0 for r in d["runs"]) and
        sum(r["pass"] == "backward" for r in d["runs"]) == 6'
    rm out/a.json
    expect 0 "state_baseline" env HLA_KERNEL=state_baseline "$hla" bench attention --threads 1 --tokens 64 \
        --methods hadamard_state --repeat 1
    refuse 1 "no/a.svg" "$hla" bench attention --tokens 64 --plot no/a.svg
    refuse 1 "/dev/stdout': it exists and is not" "$hla" bench attention --tokens 64 --json /dev/stdout
    mkdir out/b.json && expect 1 "out/b.json': it exists and is not" "$hla" bench attention --json out/b.json
    rmdir out/b.json
    expect 1 "" bash -c '"$1" doctor --help >/dev/full' sh "$hla"
    for type in bf16 f16; do
        expect 0 "ratio" "$hla" bench attention --threads 1 --tokens 300 --dtype $type --form quadratic --factors 3 --rank 4
    done
    rm -rf out && mkdir out

    expect 0 "" "$hla" generate "a cat" "${tiny[@]}" -o out/h.y4m
    expect 0 "" "$hla" generate "a cat" "${tiny[@]}" -o out/s.y4m --attention softmax
    cmp -s out/h.y4m out/s.y4m && complain "hadamard and softmax give the same video"
    expect 0 "" "$hla" generate "a cat" "${tiny[@]}" --adapter "$adapted/hla" -o out/a.y4m --attention hadamard
    same out/h.y4m out/a.y4m
}

start=$SECONDS
for part in help_and_usage options sizes_and_prompts formats results encoder_and_disk waiting out_of_memory \
    bad_checkpoints interrupt progress others; do
    before=$failures
    $part
    [ $failures -eq $before ] && printf 'ok      %-20s %d s\n' $part $((SECONDS - start))
done
printf '%d checks, %d failures\n' $checks $failures
[ $failures -eq 0 ]
