#!/bin/sh
# Runs the recipe of hla-tiny, or goes on with it, for at most SECONDS on one GPU. Run it again until it says "finished".
#     recipe.sh SECONDS [WORK]        CLIPS=8 RECIPE_ARGS=--smoke recipe.sh 600 tries it out anywhere
# hla-tiny's VAE began (VAE_INIT) with what 500 s on clips of 9 and 17 frames had left.
# WORK (default out/train) must hold sprites.npy (sprites.py). All stages start at once, compile, and wait for each other's
# files; a stage that is finished is not started again.
set -eu
seconds=$1
work=${2:-out/train}
start=$(date +%s)
until=$((start + seconds))
cd "$(dirname "$0")"
[ -e "$work/sprites.npy" ] || { echo "recipe.sh: no $work/sprites.npy: run sprites.py first" >&2; exit 1; }
[ -e "$work/tokenizer/tokenizer.json" ] || python3 train.py tokenizer --work "$work"

# stage FILE STAGE [options]: runs a stage in the background unless its last file is there.
running=""
stage() {
    file=$1 && shift
    [ ! -e "$work/$file" ] || return 0
    # shellcheck disable=SC2086 # RECIPE_ARGS is meant to be split
    python3 train.py "$@" --work "$work" --until "$until" ${RECIPE_ARGS:-} >>"$work/run_${file%.pt}.log" 2>&1 &
    running="$running $!"
}

stage vae_final.pt vae --seconds 440 ${VAE_INIT:+--init "$VAE_INIT"}
stage classifier_final.pt classifier --seconds 45
stage latents.pt latents --clips "${CLIPS:-20000}" --seconds 55
stage teacher_final.pt teacher --seconds 540
stage student_16x16_final.pt student --ranks 16,16 --seconds 135
stage student_256_final.pt student --ranks 256 --seconds 135 --after student_16x16_final.pt

# One stage that fails ends the rest: what they wait for will not come.
trap 'kill $running 2>/dev/null || :' EXIT
while [ -n "$running" ]; do
    sleep 1
    left=""
    for process in $running; do
        if kill -0 "$process" 2>/dev/null; then
            left="$left $process"
        elif ! wait "$process"; then
            tail -n 5 "$work"/run_*.log >&2
            exit 1
        fi
    done
    running=$left
done

if [ ! -e "$work/student_256_final.pt" ]; then
    echo "slice over after $(($(date +%s) - start)) s"
elif [ $(($(date +%s) + 110)) -gt "$until" ] && [ "$seconds" -gt 110 ]; then
    echo "trained; run again to evaluate"
else
    python3 evaluate.py --work "$work" ${EVALUATE_ARGS:---scan 1.5,3,5} | tee -a "$work/evaluate.log"
    echo "finished"
fi
