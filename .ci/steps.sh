# Shared by .ci/run and .ci/long: steps with their seconds, one folder of build results, one temporary folder.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export CARGO_TERM_COLOR=never RUST_BACKTRACE=1
# One folder for all steps, also for those that build in a folder of their own.
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}
# Nothing is built twice here, so what is kept for the next build only costs time.
export CARGO_INCREMENTAL=0
# The binary that CI tries runs for seconds: it is built on all cores, the one that is installed on one.
export CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16

out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
UC=$CARGO_TARGET_DIR/release/uc
step_name= step_start=0 table=

step() {
    if [ -n "$step_name" ]; then
        printf -- '-- %s: %ss\n' "$step_name" $((SECONDS - step_start))
        table+=$(printf '%6ss  %s' $((SECONDS - step_start)) "$step_name")$'\n'
    fi
    step_name=$1 step_start=$SECONDS
    [ -z "$1" ] || printf '\n== %s\n' "$1"
}

finish() {
    step ''
    printf '\nseconds of each step\n%s%6ss  all\n' "$table" "$SECONDS"
}

# fuzz SECONDS TARGET ...: two at a time, as there are cores.
fuzz() {
    local seconds=$1 target failed=0
    shift
    command -v cargo-fuzz >/dev/null || cargo install --locked --quiet cargo-fuzz
    python3 fuzz/seeds.py
    # All targets at once; each run below finds its own.
    CARGO_TARGET_DIR=$FUZZ_FOLDER cargo +nightly fuzz build
    printf '%s\n' "$@" | xargs -P 2 -I {} bash -c '
        CARGO_TARGET_DIR=$FUZZ_FOLDER cargo +nightly fuzz run {} -- -max_total_time='"$seconds"' -dict=fuzz/uc.dict \
            -rss_limit_mb=2048 -timeout=20 -print_final_stats=1 >"$0/fuzz.{}.log" 2>&1 || touch "$0/fuzz.{}.failed"' "$out"
    for target in "$@"; do
        printf '%s: ' "$target"
        grep -E 'stat::number_of_executed_units' "$out/fuzz.$target.log" || failed=1
        if [ -e "$out/fuzz.$target.failed" ] || grep -qE 'ERROR: libFuzzer|panicked at' "$out/fuzz.$target.log"; then
            tail -n 60 "$out/fuzz.$target.log"
            failed=1
        fi
    done
    return $failed
}
FUZZ_FOLDER=$CARGO_TARGET_DIR/fuzz
export FUZZ_FOLDER out
FUZZ_TARGETS=(open index manifest receipt calibration shards decode exact overlay roundtrip safetensors signature)
