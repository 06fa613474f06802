//! nerdctl compose.

use super::{Use, same};

pub(super) const USES: &[Use] = &[
    same(
        "compose: up, ps, exec, logs, down",
        r#"cat >compose.yaml <<END
services:
  web: {image: $NGINX, runtime: $RUNTIME, ports: ["18090:8080"]}
  job: {image: $ONE, runtime: $RUNTIME, command: ["sleep", "60"], stop_grace_period: 1s, depends_on: [web], environment: {A: b}}
END
           nerdctl compose -p pp up -d >/dev/null 2>&1; echo $?
           until_is 'hello from a sealed nginx' busybox wget -q -O - http://127.0.0.1:18090/; echo $?
           nerdctl compose -p pp ps --format json | grep -o '"Service":"[a-z]*"' | sort
           nerdctl compose -p pp exec -T job sh -c 'echo $A'
           until_is 'hello from a sealed nginx' nerdctl compose -p pp exec -T job wget -q -O - http://web:8080/; echo $?
           nerdctl compose -p pp down >/dev/null 2>&1; echo $?; nerdctl ps -aq | wc -l"#,
        "0\n0\n\"Service\":\"job\"\n\"Service\":\"web\"\nb\n0\n0\n0",
    ),
    same(
        "compose: a volume, a bind, limits",
        r#"mkdir d; echo bound >d/f; cat >compose.yaml <<END
services:
  s:
    image: $ONE
    runtime: $RUNTIME
    network_mode: none
    command: ["sh", "-c", "cat /mnt/d/f; echo kept > /data/f; ulimit -n; sleep 60"]
    read_only: true
    stop_grace_period: 1s
    pids_limit: 30
    cap_drop: [ALL]
    ulimits: {nofile: 99}
    volumes: [{type: volume, source: v, target: /data}, {type: bind, source: ./d, target: /mnt/d, read_only: true}]
volumes: {v: {}}
END
           nerdctl compose -p pp up -d >/dev/null 2>&1; echo $?
           until_is kept nerdctl compose -p pp exec -T s cat /data/f
           nerdctl compose -p pp exec -T s sh -c 'grep CapEff /proc/self/status; touch /etc/x 2>&1 | grep -o Read-only'
           nerdctl compose -p pp logs --no-color s 2>/dev/null | sed 's/.*| *//' | grep -v '^$'
           nerdctl compose -p pp down -v >/dev/null 2>&1; echo $?; nerdctl volume ls -q | wc -l"#,
        "0\nCapEff:\t0000000000000000\nRead-only\nbound\n99\n0\n0",
    ),
    same(
        "compose: stop, start, restart, kill",
        r#"cat >compose.yaml <<END
services:
  s: {image: $ONE, runtime: $RUNTIME, network_mode: none, command: ["sleep", "60"], stop_grace_period: 1s}
END
           c="nerdctl compose -p pp"
           $c up -d >/dev/null 2>&1; $c stop >/dev/null 2>&1; state pp-s-1; $c start >/dev/null 2>&1; state pp-s-1
           $c restart >/dev/null 2>&1; state pp-s-1; $c kill >/dev/null 2>&1; until_is exited state pp-s-1; state pp-s-1
           $c down >/dev/null 2>&1; echo $?"#,
        "exited\nrunning\nrunning\nexited\n0",
    ),
];
