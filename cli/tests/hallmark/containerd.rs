//! An image in containerd: imported, sealed into a claims directory, verified, and refused when its blob is changed.
//!
//! Needs root, and containerd with ctr: from the components cache of the integration tests, else from the path.
//! A private daemon with its own root, state and socket is started and ended.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use crate::images::{Image, blob_name};

/// A containerd of our own, ended with the test.
struct Daemon {
    child: Child,
    socket: PathBuf,
    programs: PathBuf,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Daemon {
    /// `None` where the programs or the rights are missing.
    fn start(directory: &Path) -> Option<Self> {
        let programs = programs()?;
        let [root, state, config] =
            ["root", "state", "config.toml"].map(|name| directory.join(name));
        let socket = directory.join("containerd.sock");
        let text = format!(
            "version = 3\nroot = {root:?}\nstate = {state:?}\n\
             disabled_plugins = [\"io.containerd.cri.v1.images\", \"io.containerd.cri.v1.runtime\", \
             \"io.containerd.grpc.v1.cri\", \"io.containerd.nri.v1.nri\", \"io.containerd.internal.v1.opt\"]\n\
             [grpc]\naddress = {socket:?}\n[ttrpc]\naddress = \"{}.ttrpc\"\n",
            socket.display()
        );
        fs::write(&config, text).unwrap();
        let log = fs::File::create(directory.join("log")).unwrap();
        let child = Command::new(programs.join("containerd"))
            .arg("--config")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut daemon = Self { child, socket, programs };
        for _ in 0..100 {
            if daemon.ctr(&["version"]).status.success() {
                return Some(daemon);
            }
            if daemon.child.try_wait().unwrap().is_some() {
                break;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        panic!("containerd: {}", fs::read_to_string(directory.join("log")).unwrap());
    }

    fn ctr(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(self.programs.join("ctr"));
        command.arg("--address").arg(&self.socket).args(arguments).output().unwrap()
    }
}

fn programs() -> Option<PathBuf> {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: needs root");
        return None;
    }
    let cache = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.cache/components");
    let cached = fs::read_dir(cache).into_iter().flatten().flatten().map(|entry| entry.path());
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = cached
        .chain(std::env::split_paths(&path))
        .find(|folder| ["containerd", "ctr"].iter().all(|name| folder.join(name).is_file()));
    if found.is_none() {
        println!("skipped: needs containerd");
    }
    found
}

fn hallmark(directory: &Path, socket: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_hallmark"))
        .args(arguments)
        .args(["--address", socket.to_str().unwrap()])
        .current_dir(directory)
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(said).unwrap())
}

#[test]
fn an_image_in_containerd_is_sealed_verified_and_refused_when_changed() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path();
    let Some(daemon) = Daemon::start(path) else { return };
    let image = Image::new();
    image.write_archive(&path.join("app.tar"));
    for namespace in ["default", "k8s.io"] {
        let import = ["-n", namespace, "images", "import", "--local", "--no-unpack"];
        let output = daemon.ctr(&[&import[..], &[path.join("app.tar").to_str().unwrap()]].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let keygen = ["keygen", "--out", "a", "--algorithm", "p256"];
    let output =
        Command::new(env!("CARGO_BIN_EXE_hallmark")).args(keygen).current_dir(path).output();
    assert!(output.unwrap().status.success());

    let run = |arguments: &[&str]| hallmark(path, &daemon.socket, arguments);
    let seal = ["--key", "a/key.pem", "--cert", "a/cert.pem", "--claims-dir", "claims"];
    let verify = ["--keys", "a/cert.pem", "--claims-dir", "claims"];
    let name = "containerd://registry.example/app:1";
    let (code, said) = run(&[&["verify", name][..], &verify].concat());
    assert!(code == Some(1) && said.contains("found no seal"), "{said}");
    let (code, said) = run(&[&["seal", name][..], &seal].concat());
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains(&image.manifest) && said.contains("claim in claims/"), "{said}");
    for name in [name, "containerd://k8s.io/registry.example/app:1"] {
        let (code, said) = run(&[&["verify", name][..], &verify].concat());
        assert_eq!(code, Some(0), "{said}");
        assert!(said.contains("for registry.example/app\n"), "{said}");
    }
    let missing = "containerd://registry.example/other:1";
    let (code, said) = run(&[&["verify", missing][..], &verify].concat());
    assert_eq!(code, Some(3));
    assert!(said.contains("registry.example/other:1") && said.contains("images ls"), "{said}");

    // one byte of a layer in the content store
    let blobs = path.join("root/io.containerd.content.v1.content");
    let layer = blobs.join(blob_name(&image.layers[2]));
    let mut bytes = fs::read(&layer).unwrap();
    bytes[600] ^= 1;
    fs::write(&layer, &bytes).unwrap();
    let (code, said) = run(&[&["verify", name][..], &verify].concat());
    assert!(code == Some(1) && said.contains("layer 2"), "{said}");
    bytes[600] ^= 1;
    fs::write(&layer, &bytes).unwrap();
    let (code, said) = run(&[&["verify", name][..], &verify].concat());
    assert_eq!(code, Some(0), "{said}");
}
