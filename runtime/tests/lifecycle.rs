//! create, start, state, kill, delete, run, list: the order of a container's life, and the words callers look for.

mod bundle;

use bundle::{Bundle, skipped, text};
use serde_json::{Value, json};

#[test]
fn run_exits_as_the_program_does() {
    if skipped() {
        return;
    }
    for (script, expected) in [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137), ("exit 255", 255)]
    {
        let mut bundle = Bundle::new(&["sh", "-c", script]);
        if script.starts_with("kill") {
            // the first process of a PID namespace is immune to its own signals
            bundle.config["linux"]["namespaces"]
                .as_array_mut()
                .unwrap()
                .retain(|ns| ns["type"] != "pid");
        }
        let output = bundle.run();
        assert_eq!(output.status.code(), Some(expected), "{script}: {}", text(&output));
        bundle.assert_nothing_left();
    }
}

#[test]
fn a_container_is_created_started_and_deleted() {
    if skipped() {
        return;
    }
    let mut bundle = Bundle::new(&["sh", "-c", "echo started >/mark; exec sleep 100"]);
    bundle.config["root"]["readonly"] = json!(false);
    let (dir, pid_file) = (bundle.path(""), bundle.path("init.pid"));
    let output = bundle.create_with(&["--pid-file", pid_file.to_str().unwrap()]);
    assert!(output.status.success(), "{}", text(&output));
    let state = bundle.state();
    assert_eq!(state["status"], "created");
    assert_eq!(std::fs::read_to_string(&pid_file).unwrap(), state["pid"].to_string());
    assert_eq!(state["bundle"], dir.to_str().unwrap().trim_end_matches('/'));
    assert!(std::fs::metadata(bundle.in_root("mark")).is_err(), "the program ran before start");
    let second = bundle.create();
    assert!(text(&second).contains("container with given ID already exists"), "{}", text(&second));
    let started = bundle.runtime(&["start", "ID"]);
    assert!(started.status.success(), "{}", text(&started));
    bundle.until("running");
    let again = bundle.runtime(&["start", "ID"]);
    assert_eq!(again.status.code(), Some(1));
    assert!(text(&again).contains("cannot start an already running container"), "{}", text(&again));
    let delete = bundle.runtime(&["delete", "ID"]);
    assert!(text(&delete).contains("that is not stopped: running"), "{}", text(&delete));
    assert!(bundle.runtime(&["kill", "ID", "KILL"]).status.success());
    bundle.until("stopped");
    assert_eq!(bundle.state()["pid"], 0);
    let killed = bundle.runtime(&["kill", "ID", "15"]);
    assert!(text(&killed).contains("container not running"), "{}", text(&killed));
    assert!(bundle.runtime(&["kill", "--all", "ID", "15"]).status.success());
    let delete = bundle.runtime(&["delete", "ID"]);
    assert!(delete.status.success(), "{}", text(&delete));
    bundle.assert_nothing_left();
    let gone = bundle.runtime(&["state", "ID"]);
    assert!(text(&gone).contains("does not exist"), "{}", text(&gone));
    assert_eq!(bundle.last_error(), "container does not exist");
    assert!(bundle.runtime(&["delete", "--force", "ID"]).status.success());
}

#[test]
fn delete_ends_what_is_created_and_force_what_runs() {
    if skipped() {
        return;
    }
    let bundle = Bundle::new(&["sleep", "100"]);
    assert!(bundle.create().status.success());
    let delete = bundle.runtime(&["delete", "ID"]);
    assert!(delete.status.success(), "{}", text(&delete));
    bundle.assert_nothing_left();
    bundle.start();
    let delete = bundle.runtime(&["delete", "--force", "ID"]);
    assert!(delete.status.success(), "{}", text(&delete));
    bundle.assert_nothing_left();
}

/// The kernel drops a signal that the first process of a PID namespace has no handler for.
#[test]
fn what_is_only_created_ends_on_sigterm() {
    if skipped() {
        return;
    }
    let bundle = Bundle::new(&["sleep", "100"]);
    assert!(bundle.create().status.success());
    let killed = bundle.runtime(&["kill", "ID"]);
    assert!(killed.status.success(), "{}", text(&killed));
    bundle.until("stopped");
}

#[test]
fn a_bind_from_the_root_shows_what_was_mounted_there_before() {
    if skipped() {
        return;
    }
    let mut bundle = Bundle::new(&["sh", "-c", "cat /copy/file; ! test -e /copy/hidden"]);
    std::fs::create_dir(bundle.in_root("mnt")).unwrap();
    std::fs::write(bundle.in_root("mnt/hidden"), "").unwrap();
    let host = bundle.path("host");
    std::fs::create_dir(&host).unwrap();
    std::fs::write(host.join("file"), "the host's\n").unwrap();
    let mounts = bundle.config["mounts"].as_array_mut().unwrap();
    let inside = host.with_file_name("rootfs");
    for (source, destination) in [(host, inside.join("mnt")), (inside.join("mnt"), "/copy".into())]
    {
        mounts.push(json!({"type": "bind", "source": source, "destination": destination, "options": ["bind"]}));
    }
    bundle.config["root"]["readonly"] = json!(false);
    assert_eq!(bundle.output(), "the host's\n");
}

#[test]
fn a_program_that_is_missing_is_an_error_of_create() {
    if skipped() {
        return;
    }
    let bundle = Bundle::new(&["nosuch"]);
    let output = bundle.create();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert_eq!(
        bundle.last_error(),
        "hallmark-runtime create failed: unable to start container process: error during container init: exec: \"nosuch\": executable file not found in $PATH"
    );
    bundle.assert_nothing_left();
}

#[test]
fn a_program_that_the_kernel_refuses_is_an_error_of_start() {
    if skipped() {
        return;
    }
    let bundle = Bundle::new(&["/bin/garbage"]);
    std::fs::write(bundle.in_root("bin/garbage"), "\u{7f}ELF no").unwrap();
    std::fs::set_permissions(
        bundle.in_root("bin/garbage"),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    let output = bundle.create();
    assert!(output.status.success(), "{}", text(&output));
    let started = bundle.runtime(&["start", "ID"]);
    assert_eq!(started.status.code(), Some(1));
    assert!(text(&started).contains("exec /bin/garbage: exec format error"), "{}", text(&started));
    bundle.until("stopped");
}

#[test]
fn list_shows_what_is_there() {
    if skipped() {
        return;
    }
    let bundle = Bundle::new(&["sleep", "100"]);
    // as runc: no containers below the default root, a mistake where --root names nothing
    let none = bundle.runtime(&["list", "--format", "json"]);
    assert_eq!(none.status.code(), Some(1));
    assert!(text(&none).contains("no such directory"), "{}", text(&none));
    assert!(bundle.create().status.success());
    let quiet = bundle.runtime(&["list", "-q"]);
    assert_eq!(String::from_utf8_lossy(&quiet.stdout), format!("{}\n", bundle.id()));
    let json = bundle.runtime(&["list", "--format", "json"]);
    let list: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(
        (list[0]["status"].as_str(), list[0]["owner"].as_str()),
        (Some("created"), Some("root"))
    );
    let table = bundle.runtime(&["list"]);
    assert!(String::from_utf8_lossy(&table.stdout).starts_with("ID "), "{}", text(&table));
}

#[test]
fn detached_run_leaves_the_program_alone() {
    if skipped() {
        return;
    }
    let bundle = Bundle::new(&["sleep", "100"]);
    bundle.write();
    let dir = bundle.path("");
    let output = bundle.quiet(&["run", "--detach", "--bundle", dir.to_str().unwrap(), "ID"]);
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(bundle.status(), "running");
    let ps = bundle.runtime(&["ps", "--format", "json", "ID"]);
    let pids: Vec<i64> = serde_json::from_slice(&ps.stdout).unwrap();
    assert_eq!(pids, [bundle.state()["pid"].as_i64().unwrap()]);
}

#[test]
fn pause_and_resume_show_in_the_state() {
    if skipped() {
        return;
    }
    let bundle = Bundle::new(&["sleep", "100"]);
    bundle.start();
    let paused = bundle.runtime(&["pause", "ID"]);
    assert!(paused.status.success(), "{}", text(&paused));
    assert_eq!(bundle.status(), "paused");
    let exec = bundle.runtime(&["exec", "ID", "true"]);
    assert_eq!(exec.status.code(), Some(255));
    assert!(text(&exec).contains("cannot exec in a paused container"), "{}", text(&exec));
    assert!(bundle.runtime(&["resume", "ID"]).status.success());
    assert_eq!(bundle.status(), "running");
    assert!(bundle.runtime(&["pause", "ID"]).status.success());
    let delete = bundle.runtime(&["delete", "--force", "ID"]);
    assert!(delete.status.success(), "{}", text(&delete));
    bundle.assert_nothing_left();
}

#[test]
fn limits_are_set_and_changed() {
    if skipped() {
        return;
    }
    let mut bundle = Bundle::new(&["sleep", "100"]);
    bundle.config["linux"]["resources"]["pids"] = json!({"limit": 50});
    assert!(bundle.create().status.success());
    let pids = bundle.cgroups().into_iter().find(|path| path.join("pids.max").is_file()).unwrap();
    let read = || std::fs::read_to_string(pids.join("pids.max")).unwrap().trim().to_owned();
    assert_eq!(read(), "50");
    let update = bundle.runtime(&["update", "--pids-limit", "60", "ID"]);
    assert!(update.status.success(), "{}", text(&update));
    assert_eq!(read(), "60");
    let mut command = bundle.command(&["update", "--resources", "-", bundle.id()]);
    let mut child = command.stdin(std::process::Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"{\"pids\":{\"limit\":70}}")
        .unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(read(), "70");
}
