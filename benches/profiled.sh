#!/usr/bin/env bash
# The release build laid out by where it spends its time under load (profile-guided optimisation): target/profiled/aside.
# The profile is benches/profile/, one for each target that has one; `profile.sh` takes it. What has changed since is built as ever.
# TARGET_CPU is the least processor that it is for, as rustc names it (`x86-64-v3`, `native`); without, any of the target's.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

folder=$PWD/target/profiled
host=$(rustc -vV | sed -n 's/^host: //p')
profile=$PWD/benches/profile/$host.profdata
flags=(${RUSTFLAGS:-} ${TARGET_CPU:+"-Ctarget-cpu=$TARGET_CPU"})
if [ -f "$profile" ]; then
    flags+=("-Cprofile-use=$profile" -Cllvm-args=-no-pgo-warn-mismatch)
else
    echo "there is no profile of $host: this is the plain release build" >&2
fi

# With a target named the flags are not those of build scripts, and names are the same as when the profile was taken.
CARGO_ENCODED_RUSTFLAGS=$(IFS=$'\x1f'; printf %s "${flags[*]}") \
    cargo build --release --locked --target "$host" --target-dir "$folder"
cp "$folder/$host/release/aside" "$folder/aside"
"$folder/aside" --version
ls -l "$folder/aside"
