#!/usr/bin/env bash
# Builds with the feature `mpi` and checks on two ranks of this machine: every operation between ranks; that a failed rank
# ends the others; that a cut by gradients equals that of one process; and that the losses of a few training steps equal
# those of one process up to rounding. Installs missing packages with apt if permitted. The tool needs ONNX Runtime, which
# `make venv` installs.
#
# Exit code 3: skipped because of missing requirements.
set -euo pipefail
cd "$(dirname "$0")/.."

# Prints the missing requirements of the build and the runs.
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
    echo "skipped: missing and not installed: $(missing | paste -sd, | sed 's/,/, /g')"
    exit 3
fi

cargo build --features mpi --bin onnx-diffprune --example collective
tool=target/debug/onnx-diffprune
check=target/debug/examples/collective
flags=()
# Open MPI needs these options to run two ranks on a single core, and to run as root in a container.
if mpirun --version 2>/dev/null | grep -qi 'open mpi\|openrte'; then
    flags=(--allow-run-as-root --oversubscribe)
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
output=$folder/output

# run SECONDS ARGUMENTS...: runs a program on two ranks; sets `code` and writes their output to $output.
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
[ "$code" -eq 0 ] && grep '^2 ranks' "$output" || fail "operations between ranks: exit code $code"
run 30 "$check" error
[ "$code" -eq 3 ] && grep -q 'rank 1 fails' "$output" || fail "a rank failed with code 3, but the run ended with $code"
for how in panic kill leave; do
    run 30 "$check" "$how"
    # 124: still running at the time limit.
    { [ "$code" -ne 0 ] && [ "$code" -ne 124 ]; } || fail "the run ended with $code after '$how' of a rank"
    [ -s "$output" ] || fail "the run ended without a message after '$how' of a rank"
done
echo "a rank that fails, panics, is killed or exits ends the others"

model=fixtures/ddpm_fashion16
cut=(--scheduler-config $model/scheduler_config.json --data $model/train_images.npy --batch 2 --timesteps 8 --ratio 0.3
    --no-refit --no-latency)
"$tool" $model.onnx "$folder/one.onnx" "${cut[@]}" --quiet
run 300 "$tool" $model.onnx "$folder/two.onnx" "${cut[@]}"
[ "$code" -eq 0 ] || fail "cut on two ranks: exit code $code"
[ "$(grep -c '^wrote ' "$output")" -eq 1 ] && grep -q 'on 2 ranks' "$output" || fail "expected the output of one rank"
cmp "$folder/one.onnx" "$folder/two.onnx" || fail "the cut of two ranks differs from that of one process"
run 60 "$tool" inspect $model.onnx
[ "$code" -eq 2 ] && [ "$(grep -c 'runs in one process' "$output")" -eq 1 ] || fail "inspect on two ranks: $code"
echo "the cut of two ranks equals that of one process"

train=(--teacher $model.onnx --data $model/train_images.npy --scheduler-config $model/scheduler_config.json --batch 8
    --steps 3 --warmup 0 --eval-samples 0 --threads 1)
"$tool" finetune $model.onnx "$folder/trained.onnx" "${train[@]}" --quiet
run 300 "$tool" finetune $model.onnx "$folder/shared.onnx" "${train[@]}"
[ "$code" -eq 0 ] || fail "fine-tuning on two ranks: exit code $code"
[ "$(grep -c '^wrote ' "$output")" -eq 1 ] || fail "expected the output of one rank"
# losses FOLDER: prints the losses of all steps, one per line.
losses() {
    grep -o '"loss":[^,}]*' "$1/metrics.jsonl" | cut -d: -f2
}
paste <(losses "$folder/trained.finetune") <(losses "$folder/shared.finetune") >"$output"
awk '{ if (!($1 > 0) || ($1 - $2) ^ 2 > (1e-5 * $1) ^ 2) exit 1 } END { if (NR != 3) exit 1 }' "$output" ||
    fail "the losses of two ranks differ from those of one process"
echo "the losses of two ranks equal those of one process"

short=(--refit-samples 32 --refit-timesteps 16 --criterion magnitude --ratio 0.3 --data $model/train_images.npy
    --scheduler-config $model/scheduler_config.json --no-latency --format json)
# refitted FILE: prints the mean held-out loss after the refit, from the JSON output of a run.
refitted() {
    awk '/"refitted": \[/ { inside = 1; next } inside && /\]/ { exit } inside { sum += $1; n += 1 } END { if (n) print sum / n }' "$1"
}
"$tool" $model.onnx "$folder/fit.onnx" "${short[@]}" --quiet >"$folder/fit.json"
run 300 "$tool" $model.onnx "$folder/fit2.onnx" "${short[@]}"
[ "$code" -eq 0 ] || fail "refit on two ranks: exit code $code"
echo "$(refitted "$folder/fit.json") $(refitted "$output")" |
    awk '{ if (!($1 > 0) || ($1 - $2) ^ 2 > (1e-3 * $1) ^ 2) exit 1 }' || fail "the refit on two ranks differs from that of one process"
measure=(--data $model/heldout_images.npy --scheduler-config $model/scheduler_config.json --count 8 --timesteps 4 --batch 4)
"$tool" loss $model.onnx "${measure[@]}" | tail -n 1 >"$folder/loss"
run 120 "$tool" loss $model.onnx "${measure[@]}"
[ "$code" -eq 0 ] && grep -qxF "$(cat "$folder/loss")" "$output" || fail "loss on two ranks: exit code $code"
run 120 "$tool" evaluate "$folder/fit.onnx" --original $model.onnx "${measure[@]}" --samples 4 --steps 4
[ "$code" -eq 0 ] && [ "$(grep -c '^Quality and costs' "$output")" -eq 1 ] || fail "evaluate on two ranks: exit code $code"
echo "refit, loss and evaluation on two ranks agree with one process"
