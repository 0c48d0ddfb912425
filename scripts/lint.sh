#!/usr/bin/env bash
# What must hold before a change is offered: formatting, clippy without a warning, only known
# licences and sources among the dependencies, and the layering rules.
set -uo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/lib.sh
need_toolchain
failures=0
check() {
  say "$1"
  shift
  "$@" || { loud "failed: $*"; failures=$((failures + 1)); }
}

# cargo-deny, kept beside the build folder. Its advisories check needs the network and is left to
# whoever has one: 'cargo deny check advisories'.
deny() {
  local tools=${FINLAKE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/finlake}/tools
  PATH=$tools/bin:$PATH
  if ! command -v cargo-deny >/dev/null; then
    say "installing cargo-deny, once, some three minutes"
    CARGO_TARGET_DIR=$tools/target cargo install -q --locked --root "$tools" cargo-deny@0.20.2 || return
  fi
  cargo deny --log-level warn check licenses bans sources
}

check "rustfmt" cargo fmt --all --check
check "clippy" cargo clippy -q --locked --workspace --all-targets -- -D warnings
check "dependencies: licences, bans, sources" deny
check "layering" cargo test -q --locked --test layering
[ $failures = 0 ]
