#!/usr/bin/env bash
# Runs a command that must not outlive whoever started it.
#
# usage: leash.sh PIDFILE COMMAND...
#
# Writes the command's process id to PIDFILE and waits. The command gets no standard input; when
# ours ends, because the test closed it or because the test process died in whatever way, the
# command is killed. Exits with the command's code, 128 + n if signal n ended it.
pidfile=$1
shift
exec 3<&0 < /dev/null
"$@" 3<&- &
pid=$!
echo "$pid" > "$pidfile.new" && mv "$pidfile.new" "$pidfile"
(
  while read -r _ <&3; do :; done
  kill -9 "$pid" 2>/dev/null
) &
guard=$!
exec 3<&-
wait "$pid" 2>/dev/null
code=$?
kill "$guard" 2>/dev/null
exit "$code"
