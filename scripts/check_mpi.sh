#!/usr/bin/env bash
# Builds with the feature `mpi` and runs on two ranks of this machine: every operation between ranks, that a rank that
# fails ends the others, a cut by gradients, which must be that of one process, and a few steps of training, whose losses
# must be those of one process to rounding. Installs what is missing with apt where it may. The tool needs ONNX Runtime,
# as `make venv` installs it.
#
# Exit code 3: skipped, for what is missing here.
set -euo pipefail
cd "$(dirname "$0")/.."

# What the build and the runs need that is not here, in words.
missing() {
    command -v mpicc >/dev/null || echo "an MPI library with its headers (mpicc)"
    command -v mpirun >/dev/null || echo "mpirun"
    compgen -G "${LIBCLANG_PATH:-/usr/lib/llvm-*/lib}/libclang*.so*" >/dev/null || echo "libclang"
}

if [ -n "$(missing)" ] && [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    log=$(mktemp)
    if ! { apt-get update && apt-get install -y --no-install-recommends openmpi-bin libopenmpi-dev libclang-dev; } \
        >"$log" 2>&1; then
        tail -n 3 "$log"
    fi
    rm -f "$log"
fi
if [ -n "$(missing)" ]; then
    echo "not here, and not installed: $(missing | paste -sd, | sed 's/,/, /g')"
    exit 3
fi

cargo build --features mpi --bin onnx-diffprune --example collective
tool=target/debug/onnx-diffprune
check=target/debug/examples/collective
flags=()
# Two ranks on a machine of any number of cores, as root in a container: Open MPI wants to be asked for both.
if mpirun --version 2>/dev/null | grep -qi 'open mpi\|openrte'; then
    flags=(--allow-run-as-root --oversubscribe)
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
output=$folder/output

# run SECONDS ARGUMENTS...: on two ranks; sets `code`, leaves what they print in $output.
run() {
    local limit=$1
    shift
    code=0
    timeout "$limit" mpirun "${flags[@]}" -n 2 "$@" >"$output" 2>&1 || code=$?
}

fail() {
    echo "FAILED: $*"
    cat "$output"
    exit 1
}

run 120 "$check"
[ "$code" -eq 0 ] && grep '^2 ranks' "$output" || fail "the operations, exit code $code"
run 30 "$check" error
[ "$code" -eq 3 ] && grep -q 'rank 1 fails' "$output" || fail "a rank that fails with code 3 ended the run with $code"
for how in panic kill leave; do
    run 30 "$check" "$how"
    # 124: it was still running at the limit.
    { [ "$code" -ne 0 ] && [ "$code" -ne 124 ]; } || fail "after '$how' of a rank the run ended with $code"
    [ -s "$output" ] || fail "after '$how' of a rank the run ended without a word"
done
echo "a rank that fails, panics, is killed or leaves ends the others"

model=fixtures/ddpm_fashion16
cut=(--scheduler-config $model/scheduler_config.json --data $model/train_images.npy --batch 2 --timesteps 8 --ratio 0.3
    --no-refit --no-latency)
"$tool" $model.onnx "$folder/one.onnx" "${cut[@]}" --quiet
run 300 "$tool" $model.onnx "$folder/two.onnx" "${cut[@]}"
[ "$code" -eq 0 ] || fail "a cut on two ranks, exit code $code"
[ "$(grep -c '^wrote ' "$output")" -eq 1 ] && grep -q 'on 2 ranks' "$output" || fail "one rank prints for all"
cmp "$folder/one.onnx" "$folder/two.onnx" || fail "two ranks make another cut than one process"
run 60 "$tool" inspect $model.onnx
[ "$code" -eq 2 ] && [ "$(grep -c 'runs in one process' "$output")" -eq 1 ] || fail "inspect on two ranks: $code"
echo "two ranks make the cut of one process"

train=(--teacher $model.onnx --data $model/train_images.npy --scheduler-config $model/scheduler_config.json --batch 8
    --steps 3 --warmup 0 --eval-samples 0 --threads 1)
"$tool" finetune $model.onnx "$folder/trained.onnx" "${train[@]}" --quiet
run 300 "$tool" finetune $model.onnx "$folder/shared.onnx" "${train[@]}"
[ "$code" -eq 0 ] || fail "training on two ranks, exit code $code"
[ "$(grep -c '^wrote ' "$output")" -eq 1 ] || fail "one rank prints for all"
# losses FOLDER: those of all steps, one a line.
losses() {
    grep -o '"loss":[^,}]*' "$1/metrics.jsonl" | cut -d: -f2
}
paste <(losses "$folder/trained.finetune") <(losses "$folder/shared.finetune") >"$output"
awk '{ if (!($1 > 0) || ($1 - $2) ^ 2 > (1e-5 * $1) ^ 2) exit 1 } END { if (NR != 3) exit 1 }' "$output" ||
    fail "two ranks have other losses than one process"
echo "two ranks train as one process"

short=(--refit-samples 32 --refit-timesteps 16 --criterion magnitude --ratio 0.3 --data $model/train_images.npy
    --scheduler-config $model/scheduler_config.json --no-latency --format json)
# refitted FILE: the held-out loss after the fit that a run says in JSON, its mean.
refitted() {
    awk '/"refitted": \[/ { inside = 1; next } inside && /\]/ { exit } inside { sum += $1; n += 1 } END { if (n) print sum / n }' "$1"
}
"$tool" $model.onnx "$folder/fit.onnx" "${short[@]}" --quiet >"$folder/fit.json"
run 300 "$tool" $model.onnx "$folder/fit2.onnx" "${short[@]}"
[ "$code" -eq 0 ] || fail "a refit on two ranks, exit code $code"
echo "$(refitted "$folder/fit.json") $(refitted "$output")" |
    awk '{ if (!($1 > 0) || ($1 - $2) ^ 2 > (1e-3 * $1) ^ 2) exit 1 }' || fail "two ranks fit other weights"
measure=(--data $model/heldout_images.npy --scheduler-config $model/scheduler_config.json --count 8 --timesteps 4 --batch 4)
"$tool" loss $model.onnx "${measure[@]}" | tail -n 1 >"$folder/loss"
run 120 "$tool" loss $model.onnx "${measure[@]}"
[ "$code" -eq 0 ] && grep -qxF "$(cat "$folder/loss")" "$output" || fail "loss on two ranks, exit code $code"
run 120 "$tool" evaluate "$folder/fit.onnx" --original $model.onnx "${measure[@]}" --samples 4 --steps 4
[ "$code" -eq 0 ] && [ "$(grep -c '^Quality and costs' "$output")" -eq 1 ] || fail "evaluate on two ranks, exit code $code"
echo "two ranks fit, measure and evaluate as one process"
