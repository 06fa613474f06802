//! Tests on this machine's own cgroups, whatever their layout. Needs root.

use std::collections::BTreeSet;
use std::os::fd::{AsFd as _, AsRawFd as _, RawFd};
use std::process::{Child, Command, Output, Stdio};

use hallmark_sys::bpf::attached_device_programs;
use rustix::process::Signal;

use super::*;

/// A container's path of its own in each test, below a folder of this process.
fn path(test: &str) -> CgroupPath {
    CgroupPath::parse(Some(&format!("/hallmark-test-{}-{test}/group", std::process::id())), "")
        .unwrap()
}

fn root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        #[expect(clippy::print_stderr, reason = "a skipped test says so")]
        {
            eprintln!("skipped: needs root");
        }
    }
    root
}

fn create(test: &str) -> NewCgroup {
    Cgroup::create(Place::Directory(path(test)), &Resources::default()).unwrap()
}

fn parse(json: &str) -> Resources {
    serde_json::from_str(json).unwrap()
}

/// A shell that enters as a container's first process does, then runs `script`.
fn shell(join: &Join, script: &str) -> Command {
    let ours = |fd: RawFd, file: &str| format!("/proc/{}/fd/{fd}{file}", std::process::id());
    let mut command = Command::new("sh");
    command.args(["-c", &format!(r#"for f; do echo 0 > "$f" || exit 9; done; {script}"#), "sh"]);
    command.args(join.tasks.iter().map(|fd| ours(fd.as_raw_fd(), "")));
    command.args(join.clone_into().map(|fd| ours(fd.as_raw_fd(), "/cgroup.procs")));
    command
}

/// A process inside, killed at the end of the test.
struct Inside(Child);

impl Inside {
    fn new(cgroup: &Cgroup) -> Self {
        let join = cgroup.join().unwrap();
        let mut child =
            shell(&join, "echo in; exec sleep 60").stdout(Stdio::piped()).spawn().unwrap();
        let mut line = [0; 3];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut line).unwrap();
        Self(child)
    }

    fn pid(&self) -> i32 {
        self.0.id().cast_signed()
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn pids(cgroup: &Cgroup) -> Vec<i32> {
    cgroup.pids().unwrap().into_iter().map(|pid| pid.as_raw_nonzero().get()).collect()
}

fn there(cgroup: &Cgroup) -> usize {
    cgroup.paths().values().filter(|path| std::fs::metadata(path).is_ok()).count()
}

#[test]
fn a_container_lives_freezes_dies_and_is_deleted() {
    if !root() {
        return;
    }
    let cgroup = create("life").commit();
    let paths = cgroup.paths();
    assert_eq!(there(&cgroup), paths.len());
    let mut inside = Inside::new(&cgroup);
    assert_eq!(pids(&cgroup), [inside.pid()]);
    let own = std::fs::read_to_string(format!("/proc/{}/cgroup", inside.pid())).unwrap();
    for controller in paths.keys() {
        let line = own
            .lines()
            .find(|line| line.split(':').nth(1).unwrap().split(',').any(|name| name == controller));
        assert!(line.unwrap().ends_with("life/group"), "{controller}: {own}");
    }
    assert_eq!(cgroup.freezer_state().unwrap(), FreezerState::Thawed);
    cgroup.freeze().unwrap();
    assert_eq!(cgroup.freezer_state().unwrap(), FreezerState::Frozen);
    cgroup.thaw().unwrap();
    assert_eq!(cgroup.freezer_state().unwrap(), FreezerState::Thawed);
    let again = Cgroup::from_paths(&paths, Driver::Cgroupfs).unwrap();
    assert_eq!(again.paths(), paths);
    again.freeze().unwrap();
    // also what is frozen dies
    again.kill_all(Signal::KILL).unwrap();
    again.thaw().unwrap();
    assert!(!inside.0.wait().unwrap().success());
    again.delete().unwrap();
    assert_eq!(there(&cgroup), 0);
    // a second time there is nothing to do
    cgroup.delete().unwrap();
    assert_eq!(Cgroup::from_paths(&paths, Driver::Cgroupfs).unwrap().paths().len(), 0);
    assert_eq!(cgroup.freezer_state().unwrap(), FreezerState::Undefined);
    drop_folder(&paths);
}

/// The folder above is kept when a container is deleted: others may be in it.
fn drop_folder(paths: &BTreeMap<String, String>) {
    for path in paths.values() {
        match std::fs::remove_dir(std::path::Path::new(path).parent().unwrap()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => panic!("{error}"),
            _ => {}
        }
    }
}

#[test]
fn a_start_that_fails_leaves_nothing_behind() {
    if !root() {
        return;
    }
    let new = create("undo");
    // co-mounted controllers share one
    let paths: BTreeSet<String> = new.paths().into_values().collect();
    let folder = |path: &String| std::path::Path::new(path).parent().unwrap().to_owned();
    // another container that is about to start in the same folder
    for path in &paths {
        drop(std::fs::create_dir(folder(path).join("other")));
    }
    drop(new);
    for path in &paths {
        assert!(std::fs::metadata(path).is_err(), "{path}");
        std::fs::remove_dir(folder(path).join("other")).unwrap();
        std::fs::remove_dir(folder(path)).unwrap();
    }
    let paths = create("undo").paths();
    for path in paths.values() {
        assert!(std::fs::metadata(folder(path)).is_err(), "{path}");
    }
}

#[test]
fn sub_groups_are_deleted_with_the_container() {
    if !root() {
        return;
    }
    let cgroup = create("sub");
    for group in &cgroup.groups {
        let (above, _) = group.dir.make_child("a").unwrap();
        let (below, _) = above.make_child("b").unwrap();
        if group.has("cpuset") {
            v1::inherit_cpuset(&group.dir, &above).unwrap();
            v1::inherit_cpuset(&above, &below).unwrap();
        }
    }
    let join = cgroup.join_sub("a/b").unwrap();
    let mut child = shell(&join, "echo in; exec sleep 60").stdout(Stdio::piped()).spawn().unwrap();
    let mut line = [0; 3];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut line).unwrap();
    assert_eq!(pids(&cgroup), [child.id().cast_signed()]);
    let missing = cgroup.join_sub("a/c").unwrap_err();
    assert!(missing.to_string().ends_with("a/c"), "{missing}");
    cgroup.kill_all(Signal::KILL).unwrap();
    child.wait().unwrap();
    cgroup.delete().unwrap();
    assert_eq!(there(&cgroup), 0);
}

/// A container with control groups of its own names them, and must not get out of reach by that.
#[test]
fn sub_groups_whose_name_is_no_text_are_reached() {
    if !root() {
        return;
    }
    let cgroup = create("bytes");
    let sleeping = Inside::new(&cgroup);
    for group in &cgroup.groups {
        let name: &std::ffi::OsStr = std::os::unix::ffi::OsStrExt::from_bytes(b"\xff");
        let below = std::path::Path::new(group.dir.path()).join(name);
        std::fs::create_dir(&below).unwrap();
        if group.has("cpuset") {
            let below = group.dir.child(name).unwrap().unwrap();
            v1::inherit_cpuset(&group.dir, &below).unwrap();
        }
        std::fs::write(below.join("cgroup.procs"), sleeping.pid().to_string()).unwrap();
    }
    assert_eq!(pids(&cgroup), [sleeping.pid()]);
    drop(sleeping);
    cgroup.delete().unwrap();
    assert_eq!(there(&cgroup), 0);
}

#[test]
fn a_group_with_processes_is_not_taken_and_not_removed() {
    if !root() {
        return;
    }
    let first = create("busy");
    let inside = Inside::new(&first);
    let error = Cgroup::create(Place::Directory(path("busy")), &Resources::default()).unwrap_err();
    assert_eq!(error.to_string(), "container's cgroup is not empty: 1 process(es) found");
    assert_eq!(there(&first), first.paths().len());
    let error = first.delete().unwrap_err();
    assert!(matches!(error, Error::Busy { left: 1, .. }), "{error}");
    drop(inside);
}

#[test]
fn a_frozen_group_is_not_taken() {
    if !root() {
        return;
    }
    let first = create("frozen");
    first.freeze().unwrap();
    let error =
        Cgroup::create(Place::Directory(path("frozen")), &Resources::default()).unwrap_err();
    assert_eq!(error.to_string(), "container's cgroup unexpectedly frozen");
    first.thaw().unwrap();
    // empty and thawed it is taken
    drop(Cgroup::create(Place::Directory(path("frozen")), &Resources::default()).unwrap());
    assert_eq!(there(&first), first.paths().len());
}

/// The machine of the tests has another first process; where it is systemd, the guest's tests meet it.
#[test]
fn systemds_driver_says_that_there_is_no_systemd() {
    if std::fs::symlink_metadata("/run/systemd/system").is_ok() {
        return;
    }
    let none = BTreeMap::new();
    let place = Place::parse(Driver::Systemd, (None, "x"), (&none, Trust::Harmless)).unwrap();
    let error = Cgroup::create(place, &Resources::default()).unwrap_err();
    let text = "systemd not running on this host, cannot use systemd cgroups manager";
    assert_eq!(error.to_string(), text);
}

/// A state file that names a place outside of the hierarchy.
#[test]
fn saved_paths_must_lie_in_their_hierarchy() {
    let cgroup = create("saved");
    for (key, good) in cgroup.paths() {
        for bad in ["/etc", "/sys/fs/cgroup/../../etc", "", &format!("{good}/../../..")] {
            let error = Cgroup::from_paths(
                &BTreeMap::from([(key.clone(), bad.to_owned())]),
                Driver::Cgroupfs,
            );
            assert!(matches!(error, Err(Error::Path { .. })), "{key}: {bad}");
        }
    }
}

#[test]
fn limits_reach_the_kernel_and_come_off_again() {
    if !root() {
        return;
    }
    let cgroup = create("limits");
    if cgroup.version == Version::V2 {
        return limits_of_v2(&cgroup);
    }
    // a kernel may lack some of the controllers in v1
    for (controller, json, files) in [
        (
            "cpu",
            r#"{"cpu":{"shares":512,"quota":20000,"period":50000,"burst":1000}}"#,
            &[
                ("cpu.shares", "512"),
                ("cpu.cfs_quota_us", "20000"),
                ("cpu.cfs_period_us", "50000"),
                ("cpu.cfs_burst_us", "1000"),
            ][..],
        ),
        (
            "cpu",
            r#"{"cpu":{"quota":5000,"period":10000,"burst":0}}"#,
            &[("cpu.cfs_quota_us", "5000")],
        ),
        (
            "cpuset",
            r#"{"cpu":{"cpus":"0","mems":"0"}}"#,
            &[("cpuset.cpus", "0"), ("cpuset.mems", "0")],
        ),
        ("pids", r#"{"pids":{"limit":17}}"#, &[("pids.max", "17")]),
        ("pids", r#"{"pids":{"limit":0}}"#, &[("pids.max", "1")]),
        ("pids", r#"{"pids":{"limit":-1}}"#, &[("pids.max", "max")]),
        ("net_cls", r#"{"network":{"classID":17}}"#, &[("net_cls.classid", "17")]),
    ] {
        let Ok(dir) = cgroup.v1(controller) else { continue };
        cgroup.write_limits(&parse(json)).unwrap();
        for (file, value) in files {
            assert_eq!(dir.read(file).unwrap().trim(), *value, "{file} by {json}");
        }
    }
    let shares = parse(r#"{"cpu":{"shares":512}}"#);
    let error = cgroup.update(&shares, &parse(r#"{"cpu":{"shares":1}}"#)).unwrap_err();
    assert_eq!(error.to_string(), "the minimum allowed cpu-shares is 2");
    let now = cgroup.v1("cpu").unwrap().read("cpu.shares").unwrap();
    assert_eq!(now, "512\n", "as before the update");
    let error = cgroup.apply(&parse(r#"{"unified":{"memory.high":"1"}}"#)).unwrap_err();
    assert_eq!(error.to_string(), "invalid configuration: cannot use unified on cgroup v1");
}

#[test]
fn a_disk_is_throttled() {
    let whole =
        |entry: &std::fs::DirEntry| std::fs::metadata(entry.path().join("partition")).is_err();
    let disk = std::fs::read_dir("/sys/dev/block").unwrap().map(Result::unwrap).find(whole);
    let Some(disk) = disk.filter(|_| root()) else { return };
    let disk = disk.file_name().into_string().unwrap();
    let (major, minor) = disk.split_once(':').unwrap();
    let cgroup = create("disk");
    let dir = match cgroup.version {
        Version::V1 => cgroup.v1("blkio").ok(),
        Version::V2 => cgroup.v2().ok().map(|group| &group.dir).filter(|dir| dir.has("io.max")),
    };
    let Some(dir) = dir else { return };
    let json = format!(
        r#"{{"blockIO":{{"throttleReadBpsDevice":[{{"major":{major},"minor":{minor},"rate":1048576}}]}}}}"#
    );
    cgroup.write_limits(&parse(&json)).unwrap();
    let (file, line) = match cgroup.version {
        Version::V1 => ("blkio.throttle.read_bps_device", format!("{disk} 1048576\n")),
        Version::V2 => ("io.max", format!("{disk} rbps=1048576 wbps=max riops=max wiops=max\n")),
    };
    assert_eq!(dir.read(file).unwrap(), line);
}

/// Larger, smaller, and none at all, each from what was before: the kernel takes them in one order only.
#[test]
fn memory_limits_of_v1_move_in_every_direction() {
    let first = parse(
        r#"{"memory":{"limit":67108864,"swap":134217728,"reservation":33554432,"swappiness":10}}"#,
    );
    if !root() {
        return;
    }
    let cgroup = create("memory");
    let Ok(dir) = cgroup.v1("memory") else { return };
    cgroup.write_limits(&first).unwrap();
    for (file, value) in [
        ("memory.limit_in_bytes", "67108864"),
        ("memory.soft_limit_in_bytes", "33554432"),
        ("memory.swappiness", "10"),
    ] {
        assert_eq!(dir.read(file).unwrap().trim(), value, "{file}");
    }
    for (limit, swap) in [(268_435_456_i64, 536_870_912_i64), (16_777_216, 33_554_432), (-1, 0)] {
        let json = format!(r#"{{"memory":{{"limit":{limit},"swap":{swap}}}}}"#);
        cgroup.update(&first, &first.updated_by(&parse(&json))).unwrap();
        let now = dir.read_number("memory.limit_in_bytes").unwrap();
        assert!(u64::try_from(limit).map_or(now > 1 << 60, |limit| now == limit), "{limit}: {now}");
    }
    let wrong = parse(r#"{"memory":{"swappiness":101}}"#);
    assert_eq!(
        cgroup.write_limits(&wrong).unwrap_err().to_string(),
        "invalid memory swappiness value: 101 (valid range is 0-100)"
    );
}

/// Without controllers in cgroup2 (a hybrid machine's) a limit is refused by name.
fn limits_of_v2(cgroup: &Cgroup) {
    let limits = parse(
        r#"{"pids":{"limit":17},"memory":{"limit":67108864,"swap":134217728,"reservation":33554432},
            "cpu":{"shares":512,"quota":20000,"period":50000,"burst":1000,"cpus":"0","mems":"0"},
            "unified":{"memory.high":"50331648"}}"#,
    );
    let dir = &cgroup.v2().unwrap().dir;
    if !dir.read("cgroup.controllers").unwrap().contains("pids") {
        let text = "cannot set pids limit: container could not join or create cgroup";
        assert_eq!(cgroup.write_limits(&limits).unwrap_err().to_string(), text);
        return;
    }
    cgroup.write_limits(&limits).unwrap();
    for (file, value) in [
        ("pids.max", "17"),
        ("memory.max", "67108864"),
        ("memory.low", "33554432"),
        ("memory.high", "50331648"),
        ("cpu.weight", "59"),
        ("cpu.max", "20000 50000"),
        ("cpu.max.burst", "1000"),
        ("cpuset.cpus", "0"),
        ("cpuset.mems", "0"),
    ] {
        assert_eq!(dir.read(file).unwrap().trim(), value, "{file}");
    }
    let next = limits.updated_by(&parse(r#"{"memory":{"limit":-1},"pids":{"limit":-1}}"#));
    cgroup.update(&limits, &next).unwrap();
    assert_eq!(dir.read("memory.max").unwrap(), "max\n");
    assert_eq!(dir.read("pids.max").unwrap(), "max\n");
    let bad = limits.updated_by(&parse(r#"{"pids":{"limit":5},"cpu":{"cpus":"4000"}}"#));
    assert!(matches!(cgroup.update(&next, &bad), Err(Error::Write { .. })));
}

/// An exec beside a process that went below its container's own group.
#[test]
fn an_exec_finds_its_way_beside_the_first_process() {
    if !root() {
        return;
    }
    let cgroup = create("beside");
    let inside = Inside::new(&cgroup);
    let init = Pid::from_raw(inside.pid()).unwrap();
    let Ok(group) = cgroup.v2() else { return };
    let (below, _) = group.dir.make_child("below").unwrap();
    below.write("cgroup.procs", &inside.pid().to_string()).unwrap();
    let join = cgroup.join_beside(init).unwrap();
    let here = shell(&join, "cat /proc/self/cgroup").output().unwrap();
    let here = String::from_utf8(here.stdout).unwrap();
    let line = here.lines().find(|line| line.starts_with("0::")).unwrap();
    assert!(line.ends_with("-beside/group/below"), "{here}");
    let stranger = Pid::from_raw(std::process::id().cast_signed()).unwrap();
    assert!(matches!(cgroup.join_beside(stranger), Err(Error::SubPath(_))));
}

/// Runs `script` inside, with `$dm` a node of device-mapper's control device, and `$zero` one of /dev/zero.
fn inside(cgroup: &Cgroup, folder: &std::path::Path, script: &str) -> Output {
    let join = cgroup.join().unwrap();
    let mut command = shell(&join, script);
    command.env("dm", folder.join("dm")).env("zero", folder.join("zero")).output().unwrap()
}

fn nodes() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, numbers) in [("dm", ["10", "236"]), ("zero", ["1", "5"])] {
        let status =
            Command::new("mknod").arg(folder.path().join(name)).arg("c").args(numbers).status();
        assert!(status.unwrap().success());
    }
    folder
}

const OPEN_DM: &str = r#"exec < "$dm""#;
const DENIED: &str = "Operation not permitted";

/// Applies the device rules; `false` where bpf(2) is closed, as on a hybrid machine's cgroup2.
fn devices_apply(cgroup: &Cgroup, json: &str) -> bool {
    match cgroup.set_devices(parse(json).devices.as_deref().unwrap_or_default()) {
        Err(Error::Bpf { source, .. }) if source.kind() == hallmark_sys::ErrorKind::Denied => {
            #[expect(clippy::print_stderr, reason = "a skipped test says so")]
            {
                eprintln!("skipped: needs bpf(2)");
            }
            false
        }
        other => other.is_ok(),
    }
}

#[test]
fn device_rules_hold_inside() {
    if !root() {
        return;
    }
    let (cgroup, folder) = (create("devices"), nodes());
    if !devices_apply(&cgroup, r#"{"devices":[{"allow":false,"access":"rwm"}]}"#) {
        return;
    }
    let denied = inside(&cgroup, folder.path(), OPEN_DM);
    assert!(String::from_utf8_lossy(&denied.stderr).contains(DENIED), "{denied:?}");
    let allowed = inside(&cgroup, folder.path(), r#"head -c 3 "$zero" && mknod "$dm.2" c 10 236"#);
    assert_eq!(allowed.stdout, [0; 3], "{allowed:?}");
    assert!(allowed.status.success(), "{allowed:?}");
    let open = r#"{"devices":[{"allow":false,"access":"rwm"},{"allow":true,"type":"c","major":10,"minor":236,"access":"r"}]}"#;
    assert!(devices_apply(&cgroup, open));
    if let (Version::V2, Ok(group)) = (cgroup.version, cgroup.v2()) {
        assert_eq!(attached_device_programs(group.dir.as_fd()).unwrap().len(), 1, "the last one");
    }
    let open = inside(&cgroup, folder.path(), OPEN_DM);
    assert!(!String::from_utf8_lossy(&open.stderr).contains(DENIED), "{open:?}");
    let write = inside(&cgroup, folder.path(), r#"exec 3<> "$dm""#);
    assert!(String::from_utf8_lossy(&write.stderr).contains(DENIED), "{write:?}");
}

/// The denial above holds against a container that may use every device, and that allows itself the device again.
#[test]
fn device_mapper_stays_denied_from_above() {
    if !root() {
        return;
    }
    let (cgroup, folder) = (create("above"), nodes());
    if !devices_apply(&cgroup, r#"{"devices":[{"allow":true,"access":"rwm"}]}"#) {
        return;
    }
    let before = inside(&cgroup, folder.path(), OPEN_DM);
    assert!(!String::from_utf8_lossy(&before.stderr).contains(DENIED), "{before:?}");
    let expected = match cgroup.version {
        Version::V1 => ParentDenial::DevicesController,
        Version::V2 => ParentDenial::Ebpf,
    };
    for _ in 0..2 {
        assert_eq!(cgroup.deny_device_mapper_on_parent().unwrap(), expected);
    }
    if cgroup.version == Version::V2 {
        let parent = cgroup.v2().unwrap().parent.as_fd();
        assert_eq!(attached_device_programs(parent).unwrap().len(), 1, "once for all containers");
    }
    let after = inside(&cgroup, folder.path(), OPEN_DM);
    assert!(String::from_utf8_lossy(&after.stderr).contains(DENIED), "{after:?}");
    if cgroup.version == Version::V1 {
        let error =
            cgroup.v1("devices").unwrap().write("devices.allow", "c 10:236 rwm").unwrap_err();
        assert_eq!(error.errno(), Some(rustix::io::Errno::PERM));
    }
    let others = inside(&cgroup, folder.path(), r#"head -c 3 "$zero""#);
    assert_eq!(others.stdout, [0; 3], "{others:?}");
}

/// Containers that start later below the same parent: with rules of their own, and with every device.
#[test]
fn later_containers_start_below_the_denial() {
    if !root() {
        return;
    }
    let (first, folder) = (create("later"), nodes());
    let place = format!("/hallmark-test-{}-later/second", std::process::id());
    let second = CgroupPath::parse(Some(&place), "").unwrap();
    let second = Cgroup::create(Place::Directory(second), &Resources::default()).unwrap();
    if !devices_apply(&first, r#"{"devices":[{"allow":false,"access":"rwm"}]}"#) {
        return;
    }
    first.deny_device_mapper_on_parent().unwrap();
    for rules in [
        r#"{"devices":[{"allow":false,"access":"rwm"}]}"#,
        r#"{"devices":[{"allow":true,"access":"rwm"}]}"#,
        r#"{"devices":[{"allow":false,"access":"rwm"},{"allow":true,"type":"c","access":"rwm"},{"allow":true,"type":"b","access":"rwm"}]}"#,
        r#"{"devices":[{"allow":true,"type":"c","access":"rw"}]}"#,
    ] {
        second.apply(&parse(rules)).unwrap();
        let denied = inside(&second, folder.path(), OPEN_DM);
        assert!(String::from_utf8_lossy(&denied.stderr).contains(DENIED), "{rules}: {denied:?}");
        let other = inside(
            &second,
            folder.path(),
            r#"head -c 3 "$zero" && mknod "$zero.2" c 1 5 && rm "$zero.2""#,
        );
        assert!(other.status.success(), "{rules}: {other:?}");
    }
}

/// A denial that would hit the node's own daemons is refused.
#[test]
fn the_denial_never_hits_the_node() {
    if !root() {
        return;
    }
    let place = format!("/hallmark-test-{}-top", std::process::id());
    let top = CgroupPath::parse(Some(&place), "").unwrap();
    let cgroup = Cgroup::create(Place::Directory(top), &Resources::default()).unwrap();
    let error = cgroup.deny_device_mapper_on_parent().unwrap_err();
    assert!(error.to_string().contains("the group above is the root"), "{error}");
}

#[test]
fn a_limit_without_its_controller_is_an_error() {
    let nothing = Cgroup { groups: Vec::new(), version: Version::V1, unit: None };
    for (json, controller) in [
        (r#"{"memory":{"limit":1}}"#, "memory"),
        (r#"{"cpu":{"shares":2}}"#, "cpu"),
        (r#"{"cpu":{"cpus":"0"}}"#, "cpuset"),
        (r#"{"pids":{"limit":0}}"#, "pids"),
        (r#"{"blockIO":{"weight":10}}"#, "blkio"),
        (r#"{"hugepageLimits":[{"pageSize":"2MB","limit":1}]}"#, "hugetlb"),
        (r#"{"network":{"classID":1}}"#, "net_cls"),
        (r#"{"network":{"priorities":[{"name":"lo","priority":1}]}}"#, "net_prio"),
        (r#"{"rdma":{"x":{"hcaHandles":1}}}"#, "rdma"),
        (r#"{"pids":{"limit":-1}}"#, "pids"),
    ] {
        let error = nothing.write_limits(&parse(json)).unwrap_err();
        let text =
            format!("cannot set {controller} limit: container could not join or create cgroup");
        assert_eq!(error.to_string(), text);
    }
    for unset in
        [r#"{"memory":{"limit":0}}"#, r#"{"cpu":{"quota":0,"cpus":""}}"#, r#"{"blockIO":{}}"#, "{}"]
    {
        nothing.write_limits(&parse(unset)).unwrap();
    }
    assert!(nothing.apply(&Resources::default()).is_err(), "no devices controller, no container");
}

/// A container that may make control groups may make many: more than there are descriptors, deeper than a stack.
#[test]
fn groups_nested_deep_and_wide_are_removed() {
    if !root() {
        return;
    }
    let cgroup = create("nested");
    let top = cgroup.groups[0].dir.again().unwrap();
    let mut here = top.again().unwrap();
    for _ in 0..1500 {
        here = here.make_child("n").unwrap().0;
    }
    for number in 0..1500 {
        let (wide, _) = top.make_child(&format!("w{number}")).unwrap();
        wide.make_child("n").unwrap();
    }
    drop((here, top));
    assert_eq!(pids(&cgroup), [0; 0]);
    cgroup.delete().unwrap();
    assert_eq!(there(&cgroup), 0);
}
