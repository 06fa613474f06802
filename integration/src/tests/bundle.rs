//! A sealed image started by our runtime itself, with a specification of the test's own making: what no client lets
//! a person write into `config.json`.
//!
//! The snapshot and the hand-over file are those that containerd and the shim would make.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::cache::{remove_tree, sha256};
use crate::files;
use crate::images::oci::Image;
use crate::node::Node;
use crate::run::{Run, within};

/// Where the runtime keeps the state of these containers.
const ROOT: &str = "/run/hallmark/runtime/bundles";

/// A bundle with a root file system that the gate permits.
#[derive(Debug)]
pub(super) struct Bundle<'a> {
    node: &'a Node,
    name: &'static str,
    dir: PathBuf,
    /// `config.json`, written at each start.
    pub(super) spec: Value,
    /// The mount that is handed over, as containerd asks for it: `type`, `source`, `options`.
    pub(super) mount: Value,
}

impl<'a> Bundle<'a> {
    /// A snapshot of the image in `archive`, which must be loaded, under `name`.
    pub(super) fn new(node: &'a Node, archive: &Path, name: &'static str) -> Result<Self> {
        let dir = PathBuf::from("/tmp").join(name);
        fs::create_dir_all(dir.join("rootfs"))?;
        fs::create_dir_all(ROOT)?;
        files::set_mode(Path::new(ROOT), 0o700)?;
        let mut made = Self { node, name, dir, spec: Value::Null, mount: Value::Null };
        made.snapshots(&["prepare", name, &chain_id(&Image::read(archive)?)]).good()?;
        let mut shown = made.snapshots(&["mounts", "/target", name]);
        made.mount = mount(&shown.good()?)?;
        made.runtime(&["spec", "--bundle"]).arg(&made.dir).good()?;
        made.spec = serde_json::from_str(&files::text(&made.dir.join("config.json"))?)?;
        made.spec["process"]["terminal"] = json!(false);
        made.spec["root"]["readonly"] = json!(false);
        // beside those that containerd makes
        made.spec["linux"]["cgroupsPath"] = json!(format!("/default/{name}"));
        Ok(made)
    }

    fn snapshots(&self, arguments: &[&str]) -> Command {
        let of = ["snapshots", "--snapshotter", self.node.snapshotter_name()];
        self.node.ctr(&[&of[..], arguments].concat())
    }

    fn hand_over(&self) -> Result<()> {
        let mounts = json!({"schemaVersion": 1, "mounts": [self.mount]});
        let file = self.dir.join("hallmark-rootfs.json");
        files::write(&file, mounts.to_string())?;
        files::set_mode(&file, 0o600)
    }

    /// The program and its arguments.
    pub(super) fn set_args(&mut self, args: &[&str]) -> &mut Self {
        self.spec["process"]["args"] = json!(args);
        self
    }

    /// The runtime with `arguments`.
    pub(super) fn runtime(&self, arguments: &[&str]) -> Command {
        let mut command = within(120, self.node.kit.bin("hallmark-runtime"));
        command.args(["--root", ROOT]).args(arguments);
        command
    }

    /// The value of an option of the mount, `lowerdir` for example.
    pub(super) fn option(&self, key: &str) -> Result<String> {
        let options = self.mount["options"].as_array().context("no options")?;
        let values = options.iter().filter_map(Value::as_str);
        let found = values.filter_map(|option| option.split_once('=')).find(|(k, _)| *k == key);
        Ok(found.with_context(|| format!("no {key} in {options:?}"))?.1.to_owned())
    }

    /// The mount with another value of an option.
    pub(super) fn with_option(&self, key: &str, value: &str) -> Result<Value> {
        let old = format!("{key}={}", self.option(key)?);
        let text = self.mount.to_string().replace(&old, &format!("{key}={value}"));
        Ok(serde_json::from_str(&text)?)
    }

    /// The directory of the bundle.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// A verb that makes the container, with `config.json` as [`Self::spec`] is now.
    pub(super) fn starting(&self, verb: &[&str]) -> Result<Command> {
        self.hand_over()?;
        fs::write(self.dir.join("config.json"), self.spec.to_string())?;
        let mut command = self.runtime(verb);
        command.arg("--bundle").arg(&self.dir);
        command.arg("--rootfs-mounts").arg(self.dir.join("hallmark-rootfs.json")).arg(self.name);
        Ok(command)
    }

    /// Runs the program to its end; the container is gone afterwards.
    pub(super) fn run(&self) -> Result<Command> {
        self.starting(&["run"])
    }

    /// Makes a container whose program waits, and answers with its process.
    pub(super) fn create(&self) -> Result<u32> {
        self.starting(&["create"])?.status_of()?;
        self.pid()
    }

    /// Starts a container that goes on, and answers with its process.
    pub(super) fn start(&self) -> Result<u32> {
        self.starting(&["run", "--detach"])?.status_of()?;
        self.pid()
    }

    fn pid(&self) -> Result<u32> {
        let state = self.runtime(&["state", self.name]).good()?;
        let state: Value = serde_json::from_str(&state)?;
        let pid = state["pid"].as_u64().context("state without a pid")?;
        Ok(u32::try_from(pid)?)
    }

    /// `exec` with options and a command.
    pub(super) fn exec(&self, options: &[&str], command: &[&str]) -> Command {
        let mut exec = self.runtime(&["exec"]);
        exec.args(options).arg(self.name).args(command);
        exec
    }

    /// Removes the container, its snapshot and the bundle.
    pub(super) fn remove(self) -> Result<()> {
        self.runtime(&["delete", "--force", self.name]).good()?;
        self.snapshots(&["remove", self.name]).good()?;
        remove_tree(&self.dir)?;
        remove_tree(Path::new(ROOT))
    }
}

/// `mount -t overlay overlay /target -o index=off,…` as an object.
fn mount(shown: &str) -> Result<Value> {
    let words: Vec<&str> = shown.split_whitespace().collect();
    let [_, _, kind, source, _, _, options] = words.as_slice() else {
        anyhow::bail!("ctr snapshots mounts says {shown:?}");
    };
    let options: Vec<&str> = options.split(',').collect();
    Ok(json!({"type": kind, "source": source, "options": options}))
}

/// Running something whose children keep its outputs.
trait StatusOf {
    fn status_of(&mut self) -> Result<()>;
}

impl StatusOf for Command {
    fn status_of(&mut self) -> Result<()> {
        let null = std::process::Stdio::null;
        let status = self.stdin(null()).stdout(null()).status().context("start")?;
        ensure!(status.success(), "{self:?}: {status}");
        Ok(())
    }
}

/// The chain ID of all layers of an image, which is the key of its snapshot.
fn chain_id(image: &Image) -> String {
    let mut layers = image.layers.iter().map(|layer| layer.diff_id.clone());
    let first = layers.next().unwrap_or_default();
    layers.fold(first, |chain, layer| format!("sha256:{}", sha256(format!("{chain} {layer}"))))
}
