//! Standard streams, terminals, logs, exit codes.

use super::{Use, same};

pub(super) const USES: &[Use] = &[
    same("run: says, exits and removes", "once $ONE; nerdctl ps -aq | wc -l", "hello from one\n0"),
    same("run: exit code", "once $ONE sh -c 'exit 7'; echo $?", "7"),
    same(
        "run: standard error apart",
        "once $ONE sh -c 'echo out; echo err >&2' 2>err; grep -x err err",
        "out\nerr",
    ),
    same(
        "run: exit code of a signal",
        r#"once $ONE sh -c 'sh -c "kill -9 \$\$"; exit $?'; echo $?"#,
        "137",
    ),
    same(
        "run: a missing program is said to be missing",
        "once $ONE /no/such >out 2>&1; echo $?; grep -o 'no such file or directory' out | sort -u",
        "1\nno such file or directory",
    ),
    same(
        "run: a program that may not be executed",
        "once $ONE /etc/top >out 2>&1; echo $?; grep -o -i 'permission denied' out | sort -u",
        "1\npermission denied",
    ),
    // the client loses an end of input that comes before the task exists
    same("run -i: input to its end", "(echo abc; sleep 2) | once -i $ONE tr a-z A-Z", "ABC"),
    same(
        "run: a megabyte out",
        "once $ONE dd if=/dev/zero bs=1000 count=1000 2>/dev/null | wc -c",
        "1000000",
    ),
    same(
        "run -i: a megabyte in and out",
        "(head -c 1000000 /dev/zero; sleep 2) | once -i $ONE cat | wc -c",
        "1000000",
    ),
    same("run: no terminal", "once $ONE tty", "not a tty\nexit status: 1"),
    same("run -it: a terminal", r#"terminal "$RUN --rm -it $ONE tty""#, "/dev/pts/0"),
    same(
        "run -it: the size of the terminal",
        r#"terminal "stty rows 33 cols 77; $RUN --rm -it $ONE sh -c 'until stty size 2>/dev/null | grep \"33 77\"; do sleep 0.1; done'""#,
        "33 77",
    ),
    same(
        "run -it: typed words arrive",
        r#"(sleep 2; echo word; sleep 2) | typed "$RUN --rm -it $ONE sh -c 'read x; echo got:\$x'" | grep got"#,
        "got:word",
    ),
    same(
        "run -it: twenty thousand lines to the last",
        r#"terminal "$RUN --rm -it $ONE sh -c 'seq 1 20000; echo LAST; sleep 1'" | tail -n 1"#,
        "LAST",
    ),
    same(
        "run -it: detach, attach, detach",
        r#"(sleep 3; printf '\020\021'; sleep 1) | typed "$RUN -it --name aa $ONE sh -c 'while :; do echo tick; sleep 0.2; done'" >first
           grep -m 1 -o tick first; state aa
           (sleep 2; printf '\020\021'; sleep 1) | typed "$KIT/bin/nerdctl attach aa" >second
           grep -m 1 -o tick second; state aa"#,
        "tick\nrunning\ntick\nrunning",
    ),
    same(
        "logs: both streams",
        "up --name aa $ONE sh -c 'echo out; echo err >&2'; nerdctl wait aa; nerdctl logs aa 2>err; cat err",
        "0\nout\nerr",
    ),
    same(
        "logs -f: ends with the container",
        "up --name aa $ONE sh -c 'for i in 1 2 3; do echo $i; sleep 0.5; done'; nerdctl logs -f aa",
        "1\n2\n3",
    ),
    same(
        "logs --tail",
        "up --name aa $ONE seq 1 50; nerdctl wait aa; nerdctl logs --tail 2 aa",
        "0\n49\n50",
    ),
    same(
        "logs -t: a time before each line",
        "up --name aa $ONE echo line; nerdctl wait aa; nerdctl logs -t aa | grep -c '^20[0-9-]*T.* line$'",
        "0\n1",
    ),
    same(
        "logs: a container that was started twice",
        "run --name aa --net none $ONE echo once >/dev/null; nerdctl start -a aa >/dev/null; nerdctl logs aa",
        "once\nonce",
    ),
    same(
        "logs: none with --log-driver none",
        "up --name aa --log-driver none $ONE echo lost; nerdctl wait aa; nerdctl logs aa 2>/dev/null | wc -c",
        "0\n0",
    ),
];
