# Thin aliases; every recipe is a command that also stands in the README.

_default:
    @just --list

# The demo, or any command: just run query "SELECT …"
run *ARGS="demo":
    ./finlake {{ ARGS }}

# All tests; just test --only PATTERN, --chaos
test *ARGS:
    ./test {{ ARGS }}

# Formatting, clippy, licences and sources of dependencies, layering
lint:
    scripts/lint.sh

# Micro-benchmarks (criterion), in the one build profile
bench *ARGS:
    ./test --bench {{ ARGS }}

# The seeded soak: a failing run prints FINLAKE_SEED; just sim SEED replays it
sim SEED="" ROUNDS="200":
    {{ if SEED == "" { "" } else { "FINLAKE_SEED=" + SEED } }} FINLAKE_SOAK_ROUNDS={{ ROUNDS }} ./test --only random_deaths_moves_and_cuts
