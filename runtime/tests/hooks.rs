//! The six lists of hooks: order, namespaces, state, and what a failure undoes.

mod bundle;

use bundle::{Bundle, skipped, text};
use serde_json::{Value, json};

#[test]
fn hooks_run_in_their_order_with_the_state_they_are_promised() {
    if skipped() {
        return;
    }
    let mut bundle = Bundle::new(&["sh", "-c", "echo program >>/trace"]);
    bundle.config["root"]["readonly"] = json!(false);
    let trace = bundle.in_root("trace");
    let outside = format!("echo $0 $(cat) >>{}", trace.display());
    let hook = |name: &str, script: &str| bundle.hook(name, script);
    let start =
        json!({"path": "/bin/sh", "args": ["sh", "-c", "echo startContainer $(cat) >>/trace"]});
    bundle.config["hooks"] = json!({
        "prestart": [hook("prestart", &outside)],
        "createRuntime": [hook("createRuntime", &outside)],
        "createContainer": [hook("createContainer", &outside)],
        "startContainer": [start],
        "poststart": [hook("poststart", &outside)],
        "poststop": [hook("poststop", &outside)],
    });
    bundle.output();
    let text = std::fs::read_to_string(trace).unwrap();
    let mut names = Vec::new();
    for line in text.lines() {
        let (name, state) = line.split_once(' ').unwrap_or((line, ""));
        names.push(name.to_owned());
        if name == "program" {
            continue;
        }
        let state: Value = serde_json::from_str(state).unwrap();
        let expected = match name {
            "poststart" => "running",
            "poststop" => "stopped",
            "startContainer" => "created",
            _ => "creating",
        };
        assert_eq!(state["status"], expected, "{name}: {state}");
        assert_eq!(state["id"], bundle.id());
    }
    let before = ["prestart", "createRuntime", "createContainer", "startContainer"];
    assert_eq!(names[..4], before);
    // the program and poststart run at the same time
    assert!(
        names[4..6].contains(&"program".to_owned())
            && names[4..6].contains(&"poststart".to_owned())
    );
    assert_eq!(names[6..], ["poststop"]);
}

#[test]
fn container_hooks_run_in_the_containers_namespaces() {
    if skipped() {
        return;
    }
    let mut bundle = Bundle::new(&["true"]);
    let at = bundle.path("namespaces");
    let script = format!("readlink /proc/self/ns/uts >>{}", at.display());
    bundle.config["hooks"] = json!({
        "createRuntime": [bundle.hook("a", &script)],
        "createContainer": [bundle.hook("b", &script)],
    });
    bundle.output();
    let text = std::fs::read_to_string(at).unwrap();
    let own = std::fs::read_link("/proc/self/ns/uts").unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], own.to_str().unwrap());
    assert_ne!(lines[1], lines[0]);
}

#[test]
fn a_failing_hook_undoes_the_container() {
    if skipped() {
        return;
    }
    for point in ["prestart", "createRuntime", "createContainer", "startContainer"] {
        let mut bundle = Bundle::new(&["true"]);
        let hook = json!({"path": "/bin/sh", "args": ["sh", "-c", "echo broken >&2; exit 3"]});
        bundle.config["hooks"] = json!({point: [hook]});
        let error = bundle.refusal();
        assert!(
            error.starts_with("hallmark-runtime run failed: ")
                && error
                    .contains(&format!("error running {point} hook #0: /bin/sh: exit status 3")),
            "{error}"
        );
        assert!(error.contains("broken"), "{error}");
    }
}

#[test]
fn a_failing_poststart_hook_ends_the_container() {
    if skipped() {
        return;
    }
    let mut bundle = Bundle::new(&["sleep", "100"]);
    bundle.config["hooks"] = json!({"poststart": [bundle.hook("x", "exit 4")]});
    assert!(bundle.create().status.success());
    let started = bundle.runtime(&["start", "ID"]);
    assert_eq!(started.status.code(), Some(1), "{}", text(&started));
    assert!(bundle.last_error().contains("poststart hook #0"), "{}", bundle.last_error());
    bundle.until("stopped");
}

#[test]
fn a_hook_that_takes_too_long_is_killed() {
    if skipped() {
        return;
    }
    let mut bundle = Bundle::new(&["true"]);
    let mut hook = bundle.hook("x", "exec sleep 60");
    hook["timeout"] = json!(1);
    bundle.config["hooks"] = json!({"prestart": [hook]});
    let error = bundle.refusal();
    assert!(error.contains("hook ran past specified timeout of 1.0s"), "{error}");
}
