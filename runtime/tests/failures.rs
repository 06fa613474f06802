//! Bad input: refused before anything is made, or undone; the next good one works.

mod bundle;

use std::os::unix::process::ExitStatusExt;

use bundle::{Bundle, skipped, text};
use serde_json::{Value, json};

#[test]
fn bad_configurations_leave_nothing_and_the_next_good_one_works() {
    if skipped() {
        return;
    }
    type Change = fn(&mut Value);
    let changes: [(&str, Change); 12] = [
        ("linux property must not be empty", |c| drop(c.as_object_mut().unwrap().remove("linux"))),
        ("args must not be empty", |c| c["process"]["args"] = json!([])),
        ("cwd must be an absolute path", |c| c["process"]["cwd"] = json!("x")),
        ("without a private UTS namespace", |c| {
            c["linux"]["namespaces"] = json!([{"type": "mount"}])
        }),
        ("found a mount namespace joined by path", |c| {
            c["linux"]["namespaces"] =
                json!([{"type": "mount", "path": "/proc/self/ns/mnt"}, {"type": "uts"}])
        }),
        ("not in a separate kernel namespace", |c| {
            c["linux"]["sysctl"] = json!({"kernel.panic": "1"})
        }),
        ("not a valid action for seccomp", |c| {
            c["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_WHATEVER"})
        }),
        ("fsopen(nosuchfs)", |c| c["mounts"][1]["type"] = json!("nosuchfs")),
        ("no such file or directory", |c| {
            c["mounts"][0] =
                json!({"destination": "/x", "type": "bind", "source": "/no/such/source"});
        }),
        ("rootfs", |c| c["root"]["path"] = json!("nowhere")),
        ("tmpfs: Unknown parameter 'nonsense'", |c| {
            c["mounts"][1]["options"] = json!(["nonsense=1"])
        }),
        ("\"..\" is not allowed", |c| c["linux"]["cgroupsPath"] = json!("/a/../../b")),
    ];
    for (expected, change) in changes {
        let mut bundle = Bundle::new(&["true"]);
        let good = bundle.config.clone();
        change(&mut bundle.config);
        let error = bundle.refusal();
        assert!(error.contains(expected), "{expected}: {error}");
        bundle.config = good;
        let output = bundle.run();
        assert!(output.status.success(), "after {expected}: {}", text(&output));
    }
}

#[test]
fn what_is_no_json_is_refused() {
    if skipped() {
        return;
    }
    for bytes in [&b""[..], b"{", b"[1]", b"\xff", b"null"] {
        let bundle = Bundle::new(&["true"]);
        std::fs::write(bundle.path("config.json"), bytes).unwrap();
        let dir = bundle.path("");
        let output = bundle.runtime(&["create", "--bundle", dir.to_str().unwrap(), "ID"]);
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        bundle.assert_nothing_left();
    }
}

#[test]
fn a_damaged_state_file_is_said_to_be_one() {
    if skipped() {
        return;
    }
    let bundle = Bundle::new(&["sleep", "100"]);
    assert!(bundle.create().status.success());
    let file = bundle.path("state").join(bundle.id()).join("state.json");
    let good = std::fs::read_to_string(&file).unwrap();
    for bad in ["", "{}", &good.replace("\"schemaVersion\":1", "\"schemaVersion\":9")] {
        std::fs::write(&file, bad).unwrap();
        let output = bundle.runtime(&["state", "ID"]);
        assert_eq!(output.status.code(), Some(1));
        assert!(bundle.last_error().contains("state.json"), "{}", bundle.last_error());
    }
    std::fs::write(&file, good).unwrap();
    assert_eq!(bundle.status(), "created");
}

#[test]
fn a_reused_pid_is_not_taken_for_the_container() {
    if skipped() {
        return;
    }
    let bundle = Bundle::new(&["sleep", "100"]);
    assert!(bundle.create().status.success());
    let file = bundle.path("state").join(bundle.id()).join("state.json");
    let good = std::fs::read_to_string(&file).unwrap();
    let mut record: Value = serde_json::from_str(&good).unwrap();
    record["pid"] = json!(std::process::id());
    std::fs::write(&file, record.to_string()).unwrap();
    assert_eq!(bundle.status(), "stopped");
    let killed = bundle.runtime(&["kill", "ID", "TERM"]);
    assert_eq!(
        killed.status.code(),
        Some(1),
        "our own process was to be killed: {}",
        text(&killed)
    );
    std::fs::write(&file, good).unwrap();
}

#[test]
fn a_creation_that_was_killed_leaves_nothing_after_a_delete_by_force() {
    if skipped() {
        return;
    }
    let mut bundle = Bundle::new(&["true"]);
    let hook = bundle.hook("killer", "kill -9 $PPID");
    bundle.config["hooks"] = json!({"createRuntime": [hook]});
    let output = bundle.create();
    assert_eq!(output.status.signal(), Some(9), "{}", text(&output));
    assert!(!bundle.cgroups().is_empty(), "the creation was killed too early");
    let deleted = bundle.runtime(&["delete", "--force", "ID"]);
    assert!(deleted.status.success(), "{}", text(&deleted));
    bundle.assert_nothing_left();
}

#[test]
fn an_id_is_a_plain_name() {
    if skipped() {
        return;
    }
    let bundle = Bundle::new(&["true"]);
    bundle.write();
    let dir = bundle.path("");
    for id in ["../x", "a/b", "a b", "", ".."] {
        let output = bundle.runtime(&["run", "--bundle", dir.to_str().unwrap(), id]);
        assert_eq!(output.status.code(), Some(1), "{id:?}");
    }
}

#[test]
fn the_gates_refusal_is_the_last_word_and_leaves_nothing() {
    if skipped() {
        return;
    }
    let mut bundle = Bundle::new(&["true"]);
    bundle.mode = "enforce";
    let error = bundle.refusal();
    let expected = format!("hallmark: refused: container {}: ", bundle.id());
    assert!(error.starts_with(&expected), "{error}");
    bundle.mode = "audit";
    let output = bundle.run();
    assert!(output.status.success(), "{}", text(&output));
}
