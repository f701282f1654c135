#!/usr/bin/env bash
# Takes the profile that `profiled.sh` builds by, anew: a release build that counts how often each branch is taken is loaded with
# cases of the side-by-side benchmark. What it counted goes to benches/profile/, which is committed. Some five minutes.
# Needs, beside what a build needs: redis-server, wrk, h2load (Debian's nghttp2-client) and llvm-profdata, from
# `rustup component add llvm-tools` or Debian's llvm-19.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

folder=$PWD/target/profiled
host=$(rustc -vV | sed -n 's/^host: //p')
# What reads the counts is to be no older than the compiler's own, as far as there is a choice.
candidates=("$(rustc --print target-libdir)/../bin/llvm-profdata" /usr/lib/llvm-{25,24,23,22,21,20,19}/bin/llvm-profdata)
for profdata in "${candidates[@]}" "$(command -v llvm-profdata || true)"; do
    [ ! -x "$profdata" ] || break
done
for program in redis-server wrk h2load setpriv taskset "${profdata:-llvm-profdata}"; do
    command -v "$program" >/dev/null || { echo "$program is not installed: expected for a profile" >&2; exit 1; }
done

rm -rf "$folder/counts"
RUSTFLAGS="${RUSTFLAGS:-} -Cprofile-generate=$folder/counts" \
    cargo build --release --locked --target "$host" --target-dir "$folder/counting"
cpus=$(sed -n 's/^Cpus_allowed_list:\s*//p' /proc/self/status)
load() {
    CARGO_TARGET_DIR=$PWD/target cargo bench --locked --manifest-path benches/Cargo.toml --bench side_by_side -- \
        --binary "$folder/counting/$host/release/aside" --cpu "$cpus" --load-cpu "$cpus" --json "$folder/load.json" --alone "$@"
}
load --rounds 1 --seconds 2 --case hit-1k,hit-16k,hit-256k,keys,redis,http2,herd
# About as many misses as hits: the compiler takes what runs in the fewest of all requests for what matters least.
load --rounds 5 --seconds 6 --case miss
# Without the functions that never ran: the build is the same, the file a quarter.
"$profdata" merge --sparse -o "benches/profile/$host.profdata" "$folder/counts"
ls -l "benches/profile/$host.profdata"
