#!/usr/bin/env bash
# The release build once more, laid out by where it spends its time (profile-guided optimisation): one that counts is loaded
# with cases of the side-by-side benchmark, then built again by what it counted: target/profiled/aside. Some ten minutes.
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
    command -v "$program" >/dev/null || { echo "$program is not installed: expected for a build by profile" >&2; exit 1; }
done

# $1: the compiler's flag; $2: where it builds. With a target named, build scripts are left as they are.
build() {
    RUSTFLAGS="${RUSTFLAGS:-} $1" cargo build --release --locked --target "$host" --target-dir "$folder/$2"
}

rm -rf "$folder/counts"
build "-Cprofile-generate=$folder/counts" counting
cpus=$(sed -n 's/^Cpus_allowed_list:\s*//p' /proc/self/status)
CARGO_TARGET_DIR=$PWD/target cargo bench --locked --manifest-path benches/Cargo.toml --bench side_by_side -- \
    --binary "$folder/counting/$host/release/aside" --cpu "$cpus" --load-cpu "$cpus" --json "$folder/load.json" \
    --rounds 1 --seconds 2 --case hit-1k,hit-16k,hit-256k,keys,redis,miss,http2,herd --alone
"$profdata" merge -o "$folder/aside.profdata" "$folder/counts"
build "-Cprofile-use=$folder/aside.profdata" using
cp "$folder/using/$host/release/aside" "$folder/aside"
ls -l "$folder/aside"
