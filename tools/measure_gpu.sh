#!/usr/bin/env bash
# Measures on a machine with GPUs what docs/performance.md, docs/scaling.md and docs/server.md say, with random weights of
# the 8B shape (MODEL=tiny DEVICE=cpu tries the script itself):
#
#     tools/measure_gpu.sh WORK several|serve|start|table|awq ...
#
# WORK is a folder with 40 GB of room for weights, pages and outputs; what a stage prints goes to WORK/STAGE.log too.
#   several: one GPU, then as many as there are, with --gpus and over Ray where it is installed: PAGES a GPU (640)
#   serve:   clients at once, ask through the server, bench beside it, and `transformers serve` where it is installed
#   start:   prepare, and the first answer from a prepared folder beside one that is quantized as it is loaded
#   table:   bench --table; awq: its rows of AWQ weights
set -u
cd "$(dirname "$0")/.."
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHON=${PYTHON:-python3} HF_HUB_OFFLINE=1 RAY_AUTH_MODE=disabled
unset PYTHONDONTWRITEBYTECODE # starts are measured as installed packages start
work=$1 cli="$PYTHON -m idefics_cli" model=${MODEL:-$1/full} device="--device ${DEVICE:-auto}"
gpus=${GPUS:-$($PYTHON -c 'import torch; print(torch.cuda.device_count())')}
shift
mkdir -p "$work"
$PYTHON -m compileall -q idefics_cli
[ -n "${MODEL:-}" ] || [ -e "$model/model.safetensors.index.json" ] || $PYTHON tools/write_full_shape.py "$model"
fixed="--max-new-tokens 16 --split always --model $model $device"
exact="$fixed --min-new-tokens 16"

timed() { # a command: its seconds, and the last line that it prints
    local began ended code
    began=$(date +%s.%N)
    timeout 300 "$@" >"$work/out" 2>"$work/err"
    code=$?
    ended=$(date +%s.%N)
    awk "BEGIN { printf \"%.2f s, exit code $code: \", $ended - $began }"
    echo "${*: -9}"
    [ $code = 0 ] || tail -n 3 "$work/err"
}

several() {
    local pages=${PAGES:-640} counts=(1) count way ways has_ray=
    $PYTHON tools/write_letters.py "$work/letters" $((pages * gpus))
    for count in 2 4 8; do [ "$count" -le "$gpus" ] && counts+=("$count"); done
    ways=("${counts[@]/#/--gpus }")
    # Not where a cluster runs already: it belongs to someone, and would be stopped below.
    if $PYTHON -c 'import ray' 2>/dev/null && ! pgrep -x gcs_server >/dev/null; then
        $PYTHON -m ray.scripts.scripts start --head --num-gpus "$gpus" --include-dashboard=false >/dev/null 2>&1 && has_ray=yes
        [ -n "$has_ray" ] && ways+=("--ray auto --gpus $gpus")
    fi
    # Kernels are compiled once on a machine: not in what is measured first.
    $cli ask "$work/letters/letter-0000.pdf" "What is the total?" $exact --no-server >/dev/null
    for way in "${ways[@]}"; do
        count=${way##* }
        head -n $((pages * count + 1)) "$work/letters/questions.csv" >"$work/letters/some.csv"
        echo "== $way, $((pages * count)) pages"
        timed $cli run "$work/letters" -q "$work/letters/some.csv" -o "$work/${way//[ -]/}.csv" --overwrite $exact $way
        grep -v "passed over" "$work/err"
        $PYTHON tools/compare_outputs.py "$work/gpus1.csv" "$work/${way//[ -]/}.csv"
    done
    [ -n "$has_ray" ] && $PYTHON -m ray.scripts.scripts stop --force >/dev/null 2>&1
}

wait_for() { # an address
    for _ in $(seq 1500); do curl -s "$1" >/dev/null && return; sleep 0.2; done
}

load() { # an address, a model, then clients:pages:questions[:together]...
    local first=${FIRST:-0} one
    for one in "${@:3}"; do
        IFS=: read -r clients pages questions together <<<"$one"
        timeout 200 $PYTHON tools/load_server.py load "$1/v1" --model "$2" --max-tokens 16 --stream --processes 8 \
            --first "$first" --clients "$clients" --pages "$pages" --questions "$questions" ${together:+--together}
        first=$((first + pages))
    done
}

serve() {
    local server number
    $PYTHON tools/write_letters.py "$work/asked" 12
    echo "== ask without a server"
    for number in 0 1 2; do timed $cli ask "$work/asked/letter-000$number.pdf" "What is the total?" $fixed --no-server; done
    $cli serve --port 8017 $fixed >"$work/serve.log" 2>&1 &
    server=$!
    wait_for 127.0.0.1:8017/health
    echo "== serve"
    # The first two warm up: graphs of prefills are recorded once their sizes have come a few times.
    load http://127.0.0.1:8017 any ${LOAD:-4:8:1 64:64:10 1:5:10 16:64:10 64:512:10 64:192:10:together 256:256:10 1:32:1 16:96:1 64:256:1 256:512:1}
    echo "== ask through it: new pages, then a page that it knows"
    for number in 3 4 5 6 6 6; do timed $cli ask "$work/asked/letter-000$number.pdf" "What is word $RANDOM?" $fixed; done
    kill "$server" && wait "$server"
    echo "== bench"
    timeout 300 $cli bench ${MODEL:+--model $MODEL} ${DEVICE:---random-weights} --no-reference --pages ${BENCH_PAGES:-96}
    if $PYTHON -c 'import fastapi, openai' 2>/dev/null; then
        echo "== transformers serve"
        $PYTHON -c 'from transformers.cli.transformers import main; main()' serve "$model" --port 8018 >"$work/other.log" 2>&1 &
        server=$!
        wait_for 127.0.0.1:8018/health
        load http://127.0.0.1:8018 "$model" ${LOAD:-1:1:2 1:2:10 16:4:4:together 64:8:4:together 64:24:1}
        kill "$server"
        sleep 3
        kill -9 "$server" 2>/dev/null
    fi
}

start() {
    local form turn
    $PYTHON tools/write_letters.py "$work/asked" 12
    for form in int4 int8; do
        rm -rf "$work/$form"
        timed $cli prepare "$model" -o "$work/$form" --quantize $form $device
        du -sb "$model/" "$work/$form"
        for turn in 1 2 3; do
            timed $cli ask "$work/asked/letter-0001.pdf" "What is the total?" --no-server $exact --model "$work/$form"
            timed $cli ask "$work/asked/letter-0001.pdf" "What is the total?" --no-server $exact --quantize $form
            timed $cli ask "$work/asked/letter-0001.pdf" "What is the total?" --no-server $exact
        done
        rm -rf "${work:?}/$form"
    done
}

table() {
    timeout 1500 $cli bench --table --model "$model" $device --json >"$work/table.json"
}

awq() {
    [ -e "$work/awq" ] || $PYTHON tools/write_full_shape.py "$work/awq" --awq
    timeout 300 $cli bench --table --model "$work/awq" --quantize int4
    timeout 300 $cli bench --table --model "$work/awq" --dtype bfloat16
}

for stage in "$@"; do
    echo "#### $stage, $(date)"
    $stage 2>&1 | tee "$work/$stage.log"
done
