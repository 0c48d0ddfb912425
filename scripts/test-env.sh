#!/usr/bin/env bash
# The real software the tests run against: Apache Kafka and the table readers.
#
# usage: scripts/test-env.sh [kafka] [python] [spark]       (all three without arguments)
#
# Installs what is missing into ${FINLAKE_CACHE:-~/.cache/finlake}, where it stays, and prints
# `export NAME=VALUE` lines for what is there:
#   TEST_JAVA, TEST_KAFKA_LIBS   a Java 17+ and the folder of Kafka's jars
#   TEST_KAFKA_TOOLS             the folder of the jars of Kafka's console tools
#   TEST_PYTHON                     a Python with pyiceberg, DuckDB and PySpark
#   TEST_SPARK_JARS                 a folder with Iceberg's Spark runtime and the SQLite driver
# Everything else goes to standard error. What cannot be had is named there, loudly, and its variable
# is left out; the exit code is then 3. Parallel runs wait for each other.
set -uo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${FINLAKE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/finlake}
harness=$root/tests/harness
source "$root/scripts/lib.sh"
mkdir -p "$cache"
missing=0

unavailable() {
  missing=3
  loud "NOT AVAILABLE: $1"
  loud "  $2"
}

# ready FOLDER STAMP: whether FOLDER was completed from the file STAMP as it is now.
ready() { [ -f "$1/.from" ] && cmp -s "$1/.from" "$2"; }

# complete TEMPORARY FOLDER STAMP: moves a finished folder into place, whole or not at all.
complete() {
  cp "$3" "$1/.from" && rm -rf "$2" && mv "$1" "$2"
}

java_major() { "$1" -version 2>&1 | sed -n 's/.*version "\([0-9]*\).*/\1/p' | head -n 1; }

# Sets `java` to a Java of at least 17, installing one where that takes no question.
need_java() {
  java=${TEST_JAVA:-${JAVA_HOME:+$JAVA_HOME/bin/java}}
  [ -x "${java:-}" ] || java=$(command -v java || true)
  if [ -z "$java" ] || [ "$(java_major "$java")" -lt 17 ] 2>/dev/null; then
    say "Java 17 is not here; installing it"
    apt_install openjdk-17-jdk-headless || return 1
    java=$(command -v java) || return 1
  fi
  [ "$(java_major "$java")" -ge 17 ]
}

# jars POM FOLDER: the runtime class path of a pom as a folder of jars.
jars() {
  ready "$2" "$1" && return
  command -v mvn >/dev/null || apt_install maven || return 1
  say "fetching $(basename "$2") with Maven"
  local work=$2.partial
  rm -rf "$work" && mkdir -p "$work" || return 1
  mvn -B -ntp -q -f "$1" org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies \
    -DoutputDirectory="$work" -DincludeScope=runtime >&2 < /dev/null || return 1
  complete "$work" "$2" "$1"
}

setup_kafka() {
  local libs=$cache/kafka-4.4.0 tools=$cache/kafka-tools-4.1.1
  if ! need_java; then
    unavailable "Apache Kafka" "needs Java 17 or newer: install openjdk-17-jdk-headless, or set JAVA_HOME"
  elif ! jars "$harness/kafka/pom.xml" "$libs"; then
    unavailable "Apache Kafka" "needs Maven ('mvn') and access to its central repository"
  else
    printf 'export TEST_JAVA=%q TEST_KAFKA_LIBS=%q\n' "$java" "$libs"
    if jars "$harness/kafka-tools/pom.xml" "$tools"; then
      printf 'export TEST_KAFKA_TOOLS=%q\n' "$tools"
    else
      unavailable "Kafka's console tools" "need Maven ('mvn') and access to its central repository"
    fi
  fi
}

setup_spark() {
  local jars=$cache/spark-jars
  if ! need_java; then
    unavailable "Spark" "needs Java 17 or newer: install openjdk-17-jdk-headless, or set JAVA_HOME"
  elif ! jars "$harness/spark/pom.xml" "$jars"; then
    unavailable "Spark's jars" "need Maven ('mvn') and access to its central repository"
  else
    printf 'export TEST_JAVA=%q TEST_SPARK_JARS=%q\n' "$java" "$jars"
  fi
}

setup_python() {
  local venv=$cache/python wanted=$harness/requirements.txt
  if ! ready "$venv" "$wanted"; then
    local python
    if ! python=$(new_enough_python); then
      unavailable "the Python readers" "need Python 3.10 or newer with its venv module"
      return
    fi
    say "installing the Python readers (pyiceberg, DuckDB, PySpark: some 700 MB, a few minutes)"
    # Not built beside its place and moved: a venv knows its own path.
    rm -rf "$venv"
    if ! make_venv "$python" "$venv" ||
      ! "$venv/bin/python" -m pip install -q --disable-pip-version-check -r "$wanted" >&2 < /dev/null; then
      unavailable "the Python readers" "could not be installed by pip; see the lines above"
      return
    fi
    cp "$wanted" "$venv/.from"
  fi
  printf 'export TEST_PYTHON=%q\n' "$venv/bin/python"
}

# One at a time: two clones may share the cache.
exec 9> "$cache/.lock"
if command -v flock >/dev/null; then
  flock 9
fi
[ $# -gt 0 ] || set -- kafka python spark
for part; do
  case $part in
    kafka | python | spark) "setup_$part" ;;
    *) loud "unknown part '$part'; known are kafka, python and spark"; exit 2 ;;
  esac
done
exit $missing
