#!/usr/bin/env bash
# Checks the tool on a GPU and writes the results as Markdown: gradients on the device against the CPU, the time of a
# timestep, PyTorch for comparison, steps of fine-tuning on the device against the CPU and PyTorch, the latency of pruned
# and original networks, TensorRT. Needs no network connection.
#
#   scripts/gpu_check.sh OUT_FOLDER
#
# Needs bash, the built tool and examples (`cargo build --release --bins --examples`), a folder with a GPU build of
# libonnxruntime (or a Python environment that has it) and the fixtures; Python with torch and diffusers is optional.
# Settings, as environment variables:
#   TOOL         the tool                              [target/release/onnx-diffprune]
#   EXAMPLES     the folder of the built examples      [examples/ beside the tool]
#   ONNXRUNTIME  the library or its folder             [as the tool finds it]
#   FIXTURES     the models                            [fixtures/ of this repository]
#   PYTHON       Python, for the comparison            [python3]
#   DEVICE       the device to check            [cuda]
#   TIMESTEPS    number of measured timesteps           [20]
#   BATCH        samples per timestep and per step      [32]
#   STEPS        steps of fine-tuning                  [20]
# OUT_FOLDER/gpu-check.md has PASS, FAIL or SKIPPED for every section, and no paths of this machine. Exit code 1 if a
# section failed, 2 for invalid usage.
set -uo pipefail

if [ $# -ne 1 ] || [ "${1:0:1}" = - ]; then
    echo "usage: scripts/gpu_check.sh OUT_FOLDER" >&2
    exit 2
fi
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
tool=${TOOL:-$here/target/release/onnx-diffprune}
examples=${EXAMPLES:-$(dirname "$tool")/examples}
fixtures=${FIXTURES:-$here/fixtures}
python=${PYTHON:-python3}
device=${DEVICE:-cuda}
timesteps=${TIMESTEPS:-20}
batch=${BATCH:-32}
steps_of_training=${STEPS:-20}
library=()
[ -n "${ONNXRUNTIME:-}" ] && library=(--onnxruntime "$ONNXRUNTIME")
tolerance=1e-3
half_tolerance=2e-2
loss_tolerance=2e-3

for file in "$tool" "$examples/gradients" "$examples/latency" "$examples/training_step"; do
    if [ ! -x "$file" ]; then
        echo "error: $file does not exist: build it with cargo build --release --bins --examples" >&2
        exit 2
    fi
done
mkdir -p "$1" || exit 2
report=$1/gpu-check.md
work=$(mktemp -d) || exit 2
trap 'rm -rf "$work"' EXIT
failed=0

# say TEXT: prints a line and appends it to the report.
say() { printf '%s\n' "$1" | tee -a "$report"; }
# verdict PASS|FAIL|SKIPPED [REASON]
verdict() {
    [ "$1" = FAIL ] && failed=1
    say ""
    say "**$1**${2:+: $2}"
}
# value NAME FILE: prints the value of a name in a file of names and values.
value() { awk -v name="$1" '$1 == name { sub(/^[^ ]+ /, ""); print; exit }' "$2"; }
# reason LOG: prints the last error of a log on one line, without folders of this machine.
reason() {
    { grep -a '^error' "$1" || tail -n 1 "$1"; } | tail -n 1 | tr '\n' ' ' |
        sed -E "s#(^|[ (\"'])/[^ ,:;)\"']*/#\\1#g; s/hostname=[^ ;]*/hostname=-/g; s/ +\$//"
}
# ratio A B: A / B
ratio() { awk -v a="$1" -v b="$2" 'BEGIN { if (b > 0) printf "%.2f", a / b; else print "-" }'; }
gradients() { "$examples/gradients" run "$@" ${library[@]+"${library[@]}"}; }
latency() { "$examples/latency" "$@" ${library[@]+"${library[@]}"}; }
# usable DEVICE: succeeds if the tool can use it; otherwise writes the reason to $work/lacks.
usable() {
    "$tool" runtime ${library[@]+"${library[@]}"} >"$work/runtime" 2>"$work/runtime.log" || cp "$work/runtime.log" "$work/runtime"
    if grep -q "^  ${1%%:*}: usable" "$work/runtime"; then return 0; fi
    grep -a "^  ${1%%:*}: not usable" "$work/runtime" | sed 's/^ *//' >"$work/lacks"
    [ -s "$work/lacks" ] || cp "$work/runtime" "$work/lacks"
    return 1
}

models=()
for file in "$fixtures"/*.onnx; do [ -f "$file" ] && models+=("$file"); done
: >"$report"
say "# GPU check"
say ""
say "Written by \`scripts/gpu_check.sh\` on $(date -u +%Y-%m-%d), device \`$device\`, $("$tool" --version)."
gpu=$(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null | head -n 1 || true)
say "GPU (name, driver, memory): ${gpu:-none found by nvidia-smi}. CPU: $(nproc 2>/dev/null || echo '?') cores of $(awk -F': ' '/model name/ { print $2; exit }' /proc/cpuinfo 2>/dev/null)."

say ""
say "## Device"
say ""
ready=1
if usable "$device"; then
    say "Execution providers of the library: $(sed -n 's/^ONNX Runtime .*execution providers: //p' "$work/runtime" | head -n 1)."
    verdict PASS
else
    ready=0
    verdict SKIPPED "$(reason "$work/lacks")"
fi

say ""
say "## Gradients: $device against cpu"
say ""
say "\`gradients run MODEL --timesteps 3 --batch 4 --micro-batch 2\` on both devices. Error: the largest difference in an"
say "array relative to its largest element, worst of all arrays; it must be below $tolerance (float16 networks are"
say "differentiated in float32). \`float16\`: products in float16 on the device only (\`--half\`), below $half_tolerance."
say "Sums are kept on the device."
if [ $ready = 0 ]; then
    verdict SKIPPED "the device can't be used"
elif [ ${#models[@]} = 0 ]; then
    verdict SKIPPED "no models in the fixtures folder"
else
    say ""
    say "| model | sums | arrays | worst error | placement | result |"
    say "|---|---|---|---|---|---|"
    good=1
    for model in "${models[@]}"; do
        name=$(basename "$model" .onnx)
        for kind in gradients squares float16; do
            more=() half=() within=$tolerance
            [ $kind = squares ] && more=(--squared)
            [ $kind = float16 ] && half=(--half) within=$half_tolerance
            common=(--timesteps 3 --batch 4 --micro-batch 2 ${more[@]+"${more[@]}"})
            row="| $name | $kind | - | - | - |"
            if ! gradients "$model" "$work/cpu.npz" "${common[@]}" >"$work/cpu.txt" 2>&1; then
                result="FAIL: cpu: $(reason "$work/cpu.txt")"
            elif ! gradients "$model" "$work/device.npz" --device "$device" --bound "${common[@]}" ${half[@]+"${half[@]}"} >"$work/device.txt" 2>&1; then
                result="FAIL: $device: $(reason "$work/device.txt")"
            else
                result=PASS
                "$examples/gradients" compare "$work/cpu.npz" "$work/device.npz" $within >"$work/compare.txt" 2>&1 ||
                    result="FAIL: $(value worst_array "$work/compare.txt") $(reason "$work/compare.txt")"
                row="| $name | $kind | $(value arrays "$work/compare.txt") | $(value worst "$work/compare.txt") | $(value execution "$work/device.txt") |"
            fi
            [ "$result" = PASS ] || good=0
            say "$row $result |"
        done
    done
    if [ $good = 1 ]; then verdict PASS; else verdict FAIL "see the table"; fi
fi

say ""
say "## Time of a timestep"
say ""
say "Loss and gradients of \`ddpm_fashion16.onnx\`, $batch samples in one run, median of $timesteps timesteps without the"
say "first two. The time includes inputs, run and sum."
trained=$fixtures/ddpm_fashion16.onnx
on_cpu= on_device=
if [ ! -f "$trained" ]; then
    verdict SKIPPED "ddpm_fashion16.onnx is missing"
else
    steps=(--timesteps $((timesteps + 2)) --batch "$batch" --micro-batch "$batch")
    say ""
    say "| device | median ms | fastest ms | first ms |"
    say "|---|---|---|---|"
    outcome=PASS why=
    for where in cpu "$device" "$device float16"; do
        [ "$where" != cpu ] && [ $ready = 0 ] && continue
        [ "$where" = cpu ] && [ "$device" = cpu ] && [ -n "$on_cpu" ] && continue
        half=()
        [ "$where" = "$device float16" ] && half=(--half)
        if gradients "$trained" "$work/time.npz" --device "${where%% *}" "${steps[@]}" ${half[@]+"${half[@]}"} >"$work/time.txt" 2>&1; then
            say "| $where | $(value median_ms "$work/time.txt") | $(value min_ms "$work/time.txt") | $(value first_ms "$work/time.txt") |"
            case $where in
            cpu) on_cpu=$(value median_ms "$work/time.txt") ;;
            "$device") on_device=$(value median_ms "$work/time.txt") ;;
            esac
        else
            outcome=FAIL why="$where: $(reason "$work/time.txt")"
        fi
    done
    if [ -n "$on_device" ]; then
        say ""
        say "The device takes 1/$(ratio "$on_cpu" "$on_device") of the CPU's time."
    elif [ $outcome = PASS ] && [ "$device" != cpu ]; then
        outcome=SKIPPED why="only the CPU was measured, the device can't be used"
    fi
    verdict $outcome "$why"
fi

say ""
say "## PyTorch"
say ""
say "\`scripts/gpu_check_torch.py\`: the same architecture, batch and loss, forward and backward, float32 without TF32."
if ! command -v "$python" >/dev/null 2>&1; then
    verdict SKIPPED "Python was not found"
elif [ $ready = 0 ]; then
    verdict SKIPPED "the device can't be used"
else
    torch_device=$device
    [ "${device%%:*}" = tensorrt ] && torch_device=cuda${device#tensorrt}
    "$python" "$here/scripts/gpu_check_torch.py" --device "$torch_device" --batch "$batch" --steps "$timesteps" >"$work/torch.txt" 2>"$work/torch.log"
    code=$?
    if [ $code = 3 ]; then
        verdict SKIPPED "$(value reason "$work/torch.txt")"
    elif [ $code != 0 ]; then
        verdict FAIL "$(reason "$work/torch.log")"
    else
        in_torch=$(value median_ms "$work/torch.txt")
        ours=${on_device:-$on_cpu}
        say ""
        say "PyTorch $(value torch "$work/torch.txt") on $torch_device: median $in_torch ms; the tool: ${ours:--} ms, $(ratio "${ours:-0}" "$in_torch") of PyTorch's time."
        if [ -n "$ours" ]; then verdict PASS; else verdict FAIL "the tool was not measured"; fi
    fi
fi

# peak FILE: prints the largest GPU memory in MiB that nvidia-smi reports until the file is removed.
peak() {
    local most=0 now
    while [ -e "$1" ]; do
        now=$(nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits 2>/dev/null | sort -n | tail -n 1)
        [ "${now:-0}" -gt "$most" ] 2>/dev/null && most=$now
        sleep 0.2
    done
    echo "$most"
}
# training KIND [OPTION...]: runs steps from the same start for all kinds; writes losses and times to $work/KIND.txt, and the
# peak GPU memory to $work/KIND.peak.
training() {
    local kind=$1 code
    shift
    touch "$work/running"
    peak "$work/running" >"$work/$kind.peak" &
    "$examples/training_step" "$trained" "$trained" --batch "$batch" --losses "$steps_of_training" "$@" \
        ${library[@]+"${library[@]}"} >"$work/$kind.txt" 2>&1
    code=$?
    rm -f "$work/running"
    wait $!
    return $code
}
# differing A B: prints the largest relative difference between the losses of two files.
differing() {
    awk '$1 ~ /^loss_/ { if (FNR == NR) a[$1] = $2; else if ($1 in a) { d = ($2 - a[$1]) / a[$1]; if (d < 0) d = -d
        n++; if (!(d <= worst)) worst = d } } END { if (n == 0) print "nan"; else printf "%.2e\n", worst }' "$1" "$2"
}
within() { awk -v found="$1" -v most="$2" 'BEGIN { exit !(found == found + 0 && found <= most + 0) }'; }

say ""
say "## Fine-tuning: $device against cpu"
say ""
say "\`training_step ddpm_fashion16.onnx --losses $steps_of_training\`: $steps_of_training steps (teacher output, forward, backward, clipping, AdamW,"
say "average) of $batch samples, from the same weights, samples and noise. Difference: the largest relative difference of a"
say "loss; it must be below $loss_tolerance. \`graph\`: weight update by graphs of standard operators,"
say "\`kernel\`: by the CPU kernel. PyTorch: \`scripts/bench_finetune.py --serve\`, float32, the same architecture."
if [ ! -f "$trained" ]; then
    verdict SKIPPED "ddpm_fashion16.onnx is missing"
elif ! training kernel --update kernel; then
    verdict FAIL "cpu: $(reason "$work/kernel.txt")"
else
    say ""
    say "| steps on | update | median ms | steps/s | peak of GPU memory | largest difference | placement | result |"
    say "|---|---|---|---|---|---|---|---|"
    # row DEVICE KIND DIFFERENCE RESULT
    row() {
        local ms
        ms=$(value median_ms "$work/$2.txt")
        say "| $1 | $2 | $ms | $(ratio 1000 "${ms:-0}") | $(cat "$work/$2.peak") MiB | $3 | $(value execution "$work/$2.txt") | $4 |"
    }
    row cpu kernel - PASS
    good=1
    for where in cpu "$device"; do
        { [ "$where" != cpu ] && [ $ready = 0 ]; } && continue
        { [ "$where" = cpu ] && [ "$device" = cpu ] && [ -f "$work/graph.txt" ]; } && continue
        if ! training graph --device "$where" --update graph; then
            say "| $where | graph | - | - | - | - | - | FAIL: $(reason "$work/graph.txt") |"
            good=0
        else
            found=$(differing "$work/kernel.txt" "$work/graph.txt")
            result=PASS
            within "$found" $loss_tolerance || { result="FAIL: above $loss_tolerance"; good=0; }
            row "$where" graph "$found" "$result"
        fi
    done
    if command -v "$python" >/dev/null 2>&1; then
        place=$device
        [ $ready = 0 ] && place=cpu
        touch "$work/running"
        peak "$work/running" >"$work/torch.peak" &
        (cd "$here/scripts" && seq "$steps_of_training" |
            "$python" bench_finetune.py --serve ddpm_fashion16 "$batch" "$(nproc 2>/dev/null || echo 1)" eager --device "$place") \
            >"$work/torch_steps.txt" 2>"$work/torch_steps.log"
        code=$?
        rm -f "$work/running"
        wait $!
        ms=$(awk '/^[0-9.]+$/ { n++; if (n > 2) print }' "$work/torch_steps.txt" | sort -n | awk '{ t[NR] = $1 } END { if (NR) print t[int((NR + 1) / 2)] }')
        if [ $code = 0 ] && [ -n "$ms" ]; then
            say "| $place | PyTorch eager | $ms | $(ratio 1000 "$ms") | $(cat "$work/torch.peak") MiB | - | $(grep -m 1 '^torch ' "$work/torch_steps.txt") | - |"
        else
            say "| $place | PyTorch eager | - | - | - | - | - | SKIPPED: $(reason "$work/torch_steps.log") |"
        fi
    fi
    if [ $good = 0 ]; then
        verdict FAIL "see the table"
    elif [ $ready = 0 ]; then
        verdict SKIPPED "only the CPU was measured, the device can't be used"
    else
        verdict PASS
    fi
fi

# latencies DEVICE: prints a table of the latencies of original and pruned models.
latencies() {
    say ""
    say "| model | ratio | original ms | pruned ms | speedup | placement | result |"
    say "|---|---|---|---|---|---|---|"
    local good=1 model name share
    for model in "${models[@]}"; do
        name=$(basename "$model" .onnx)
        for share in 0.3 0.5; do
            if ! "$tool" "$model" "$work/pruned.onnx" --ratio $share --criterion magnitude --no-verify --quiet >"$work/prune.log" 2>&1; then
                say "| $name | $share | - | - | - | - | FAIL: $(reason "$work/prune.log") |"
                good=0
            elif latency "$model" "$work/pruned.onnx" --device "$1" --batch "$batch" --runs 100 >"$work/latency.txt" 2>&1; then
                say "| $name | $share | $(value original_ms "$work/latency.txt") | $(value pruned_ms "$work/latency.txt") | $(value speedup "$work/latency.txt") | $(value execution "$work/latency.txt") | PASS |"
            else
                say "| $name | $share | - | - | - | - | FAIL: $(reason "$work/latency.txt") |"
                good=0
            fi
            rm -f "$work"/pruned*
        done
    done
    if [ $good = 1 ]; then verdict PASS; else verdict FAIL "see the table"; fi
}

say ""
say "## Latency of pruned models: $device"
say ""
say "Original and pruned (\`--criterion magnitude\`) in turn, batch $batch, median of 100 runs with inputs and outputs in CPU memory."
say "There is no required speedup, because small networks do not fill a GPU."
if [ $ready = 0 ]; then
    verdict SKIPPED "the device can't be used"
elif [ ${#models[@]} = 0 ]; then
    verdict SKIPPED "no models in the fixtures folder"
else
    latencies "$device"
fi

say ""
say "## Latency of pruned models: tensorrt"
say ""
say "The same with TensorRT, which builds its engines before the first measured run."
if [ "${device%%:*}" = tensorrt ]; then
    verdict SKIPPED "the section above measures this device"
elif ! usable tensorrt; then
    verdict SKIPPED "$(reason "$work/lacks")"
elif [ ${#models[@]} = 0 ]; then
    verdict SKIPPED "no models in the fixtures folder"
else
    latencies tensorrt
fi
exit $failed
