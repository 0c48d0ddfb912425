# Shared by the scripts of this project; sourced, never run. Defines functions only.
# Callers must not rely on anything but bash 3.2 and the tools of a bare Linux or macOS.

say() { printf '%s\n' "finlake: $*" >&2; }
loud() { printf '%s\n' "finlake: *** $*" >&2; }
die() { loud "$*"; exit 1; }

# target_dir: where cargo builds. One folder for all clones and all commands, outside the tree, so
# that nothing is compiled twice.
target_dir() {
  printf '%s\n' "${CARGO_TARGET_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/finlake/target}"
}

# own_sources CLONE TARGET: before a build. Cargo tells a crate of one clone from the same crate of
# another by neither path nor content, only by the age of the files: after a build of another clone,
# older files of this one would pass for built. So they are made newer whenever the clone changes.
own_sources() {
  local mark=$2/.clone
  [ "$(cat "$mark" 2>/dev/null)" != "$1" ] || return 0
  mkdir -p "$2"
  find "$1" -name target -prune -o -name '*.rs' -exec touch {} +
  printf '%s\n' "$1" > "$mark"
}

# apt_install PACKAGE...: by apt-get, if that works without a question.
apt_install() {
  command -v apt-get >/dev/null || return 1
  local as=()
  if [ "$(id -u)" != 0 ]; then
    sudo -n true 2>/dev/null || return 1
    as=(sudo -n)
  fi
  say "installing $* by apt-get"
  # A package list may be missing or old: refresh it only when the first try fails.
  local get=(${as[@]+"${as[@]}"} env DEBIAN_FRONTEND=noninteractive apt-get)
  "${get[@]}" install -y -q --no-install-recommends "$@" >&2 < /dev/null ||
    { "${get[@]}" update -q >&2 < /dev/null &&
      "${get[@]}" install -y -q --no-install-recommends "$@" >&2 < /dev/null; }
}

# new_enough_python: prints a Python 3.10 or newer.
new_enough_python() {
  local python
  for python in python3 python3.14 python3.13 python3.12 python3.11 python3.10; do
    if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
      command -v "$python"
      return
    fi
  done
  return 1
}

# make_venv PYTHON FOLDER
make_venv() {
  "$1" -m venv "$2" >&2 ||
    { apt_install python3-venv && "$1" -m venv "$2" >&2; }
}

# a_libclang PATTERN: whether a file of this pattern is libclang. Its namesake for C++ programs
# (libclang-cpp.so.14, which comes with LLVM's tools) is another library, and bindgen skips it.
a_libclang() {
  local file
  while IFS= read -r file; do
    case ${file##*/} in
      libclang-cpp* | *.a) ;;
      *) return 0 ;;
    esac
  done < <(compgen -G "$1")
  return 1
}

# has_libclang: whether RocksDB's bindgen will find a libclang, in the places it looks, which are
# below $1 where a test says so.
has_libclang() {
  local pattern below=${1:-}
  if [ -n "${LIBCLANG_PATH:-}" ]; then
    a_libclang "$LIBCLANG_PATH/libclang*" || [ -f "$LIBCLANG_PATH" ]
    return
  fi
  if [ -z "$below" ] && command -v llvm-config >/dev/null &&
    a_libclang "$(llvm-config --libdir)/libclang[.-]*"; then
    return
  fi
  for pattern in \
    '/usr/lib/llvm*/lib/libclang[.-]*so*' '/usr/lib*/libclang[.-]*so*' \
    '/usr/lib/*-linux-*/libclang[.-]*so*' '/usr/lib64/llvm*/lib*/libclang[.-]*so*' \
    '/usr/local/lib*/libclang[.-]*so*' '/usr/local/llvm*/lib*/libclang[.-]*so*' \
    '/Library/Developer/CommandLineTools/usr/lib/libclang.dylib' \
    '/Applications/Xcode.app/Contents/Developer/Toolchains/*/usr/lib/libclang.dylib' \
    '/opt/homebrew/opt/llvm*/lib/libclang.dylib' '/usr/local/opt/llvm*/lib/libclang.dylib'; do
    a_libclang "$below$pattern" && return
  done
  return 1
}

# need_toolchain: everything a build needs, or an end with the name of what is missing. Exports
# CARGO_TARGET_DIR, and LIBCLANG_PATH where libclang had to be brought in. Every command of the
# project that builds goes through here: another LIBCLANG_PATH would compile RocksDB once more.
need_toolchain() {
  local tool cache=${FINLAKE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/finlake}
  CARGO_TARGET_DIR=$(target_dir)
  export CARGO_TARGET_DIR
  own_sources "$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)" "$CARGO_TARGET_DIR"
  command -v cargo >/dev/null || [ ! -x "$HOME/.cargo/bin/cargo" ] || PATH=$HOME/.cargo/bin:$PATH
  command -v cargo >/dev/null ||
    die "Rust is missing: install it with rustup (see rustup.rs), then run this again."
  for tool in cc c++ make; do
    command -v $tool >/dev/null || apt_install build-essential ||
      die "'$tool' is missing: install a C and C++ compiler and make (Debian: build-essential, Fedora: gcc-c++ make, macOS: xcode-select --install)."
  done
  local venv=$cache/libclang
  if [ -z "${LIBCLANG_PATH:-}" ] && [ -f "$venv/.path" ]; then
    use_libclang "$venv"
  fi
  if has_libclang; then
    need_clang_headers
    return
  fi
  [ -z "${LIBCLANG_PATH:-}" ] || die "LIBCLANG_PATH is $LIBCLANG_PATH, and there is no libclang: correct or unset it."
  say "libclang, which RocksDB's build reads headers with, is missing."
  if apt_install libclang-dev && has_libclang; then
    return
  fi
  say "trying PyPI's libclang, in $venv"
  local python
  if python=$(new_enough_python) && make_venv "$python" "$venv" &&
    "$venv/bin/python" -m pip install -q --disable-pip-version-check libclang==18.1.1 >&2 < /dev/null &&
    "$venv/bin/python" -c 'import os, clang.native; print(os.path.dirname(clang.native.__file__))' \
      > "$venv/.path.new" && mv "$venv/.path.new" "$venv/.path"; then
    use_libclang "$venv"
    has_libclang && return
  fi
  rm -f "$venv/.path"
  die "libclang is missing and could not be installed: install it (Debian: libclang-dev, Fedora: clang-devel, macOS: brew install llvm), or set LIBCLANG_PATH to the folder that holds it."
}

# use_libclang VENV: PyPI's libclang.
use_libclang() {
  LIBCLANG_PATH=$(cat "$1/.path")
  export LIBCLANG_PATH
  need_clang_headers
}

# need_clang_headers: where libclang came without its own headers (stdbool.h and its kind), as from
# PyPI or as Debian's bare libclang1, the C compiler's are named.
need_clang_headers() {
  local pattern
  [ "$(uname)" = Linux ] && [ -z "${BINDGEN_EXTRA_CLANG_ARGS:-}" ] || return 0
  if [ -z "${LIBCLANG_PATH:-}" ]; then
    for pattern in '/usr/lib/llvm*/lib/clang/*/include' '/usr/lib*/clang/*/include' '/usr/local/lib*/clang/*/include'; do
      compgen -G "$pattern/stdbool.h" >/dev/null && return
    done
  elif compgen -G "$LIBCLANG_PATH/clang/*/include/stdbool.h" >/dev/null; then
    return
  fi
  BINDGEN_EXTRA_CLANG_ARGS="-isystem $(cc -print-file-name=include)"
  export BINDGEN_EXTRA_CLANG_ARGS
}

# build LABEL ARGUMENTS...: cargo with these arguments. On a terminal cargo draws its own progress;
# elsewhere one plain line now and then, so that a log stays short and a long silence is none.
build() {
  local label=$1
  shift
  if [ -t 2 ]; then
    cargo "$@" >&2 < /dev/null
    return
  fi
  local start=$SECONDS crates=0 told=$SECONDS line status=1
  while IFS= read -r line; do
    case $line in
      *' Compiling '* | *' Checking '*) crates=$((crates + 1)) ;;
      *' Blocking '*) say "$label: waiting, another cargo builds in the same folder" ;;
      *' Downloading '* | *' Downloaded '* | *' Fresh '* | *' Locking '* | *' Adding '* | *' Updating '*) ;;
      'finlake-build-tick') ;;
      'finlake-build-status '*) status=${line#* } && break ;;
      *) printf '%s\n' "$line" >&2 ;;
    esac
    if [ $((SECONDS - told)) -ge 60 ]; then
      told=$SECONDS
      say "$label: $(((SECONDS - start) / 60)) min, $crates crates so far"
    fi
  done < <(
    # One crate may take ten minutes without a line: the ticks keep the loop going meanwhile.
    (while sleep 20; do echo finlake-build-tick; done) 2> /dev/null &
    ticker=$! built=0
    cargo "$@" 2>&1 < /dev/null || built=$?
    kill $ticker
    printf 'finlake-build-status %s\n' $built
  )
  [ "$crates" = 0 ] || say "$label: done, $crates crates in $((SECONDS - start)) s"
  return "$status"
}
