//! The rules of ARCHITECTURE.md about who may depend on whom, held against `cargo metadata`.

#![expect(clippy::unwrap_used, reason = "a test that cannot read its input has failed")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// What each package links: normal dependencies only, by name.
struct Graph {
    edges: BTreeMap<String, BTreeSet<String>>,
}

impl Graph {
    fn read() -> Self {
        let output = Command::new(env!("CARGO"))
            .current_dir(root())
            .args(["metadata", "--format-version=1", "--filter-platform"])
            .arg("x86_64-unknown-linux-musl")
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
        let packages = metadata["packages"].as_array().unwrap();
        let name: BTreeMap<&str, &str> = packages
            .iter()
            .map(|package| (package["id"].as_str().unwrap(), package["name"].as_str().unwrap()))
            .collect();
        let mut edges: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for node in metadata["resolve"]["nodes"].as_array().unwrap() {
            let from = edges.entry(name[node["id"].as_str().unwrap()].to_owned()).or_default();
            for dependency in node["deps"].as_array().unwrap() {
                let kinds = dependency["dep_kinds"].as_array().unwrap();
                if kinds.iter().any(|kind| kind["kind"].is_null()) {
                    from.insert(name[dependency["pkg"].as_str().unwrap()].to_owned());
                }
            }
        }
        Self { edges }
    }

    /// Everything that ends up in a package's binary, itself not counted.
    fn links(&self, package: &str) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        let mut next = vec![package.to_owned()];
        while let Some(package) = next.pop() {
            for dependency in &self.edges[&package] {
                if found.insert(dependency.clone()) {
                    next.push(dependency.clone());
                }
            }
        }
        found
    }

    fn ours(&self, package: &str) -> BTreeSet<String> {
        let links = self.links(package);
        links.into_iter().filter(|name| name.starts_with("hallmark-")).collect()
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn libraries_depend_one_way() {
    let graph = Graph::read();
    for (package, allowed) in [
        ("hallmark-verity", &[][..]),
        ("hallmark-sys", &[]),
        ("hallmark-erofs", &["hallmark-verity"]),
        ("hallmark-seal", &["hallmark-verity"]),
    ] {
        let beyond: Vec<_> = graph.ours(package).difference(&names(allowed)).cloned().collect();
        assert!(beyond.is_empty(), "{package} links {beyond:?}");
    }
    let programs = ["hallmark-cli", "hallmark-runtime", "hallmark-snapshotter", "hallmark-shim"];
    for program in programs {
        for library in graph.ours("hallmark-trust") {
            assert!(!graph.ours(&library).contains(program), "{library} links {program}");
        }
    }
}

#[test]
fn pure_crates_know_no_system_call() {
    let graph = Graph::read();
    for package in ["hallmark-verity", "hallmark-erofs", "hallmark-seal"] {
        let links = graph.links(package);
        for forbidden in ["rustix", "nix", "tokio", "hallmark-sys", "hallmark-trust"] {
            assert!(!links.contains(forbidden), "{package} links {forbidden}");
        }
        assert!(!graph.edges[package].contains("libc"), "{package} depends on libc");
    }
}

#[test]
fn tokio_is_at_the_edges_only() {
    let graph = Graph::read();
    for package in ["hallmark-runtime", "hallmark-trust", "hallmark-sys"] {
        assert!(!graph.links(package).contains("tokio"), "{package} links tokio");
    }
}

#[test]
fn the_shim_links_no_integrity_crate() {
    let ours = Graph::read().ours("hallmark-shim");
    for crate_ in ["hallmark-verity", "hallmark-erofs", "hallmark-seal", "hallmark-trust"] {
        assert!(!ours.contains(crate_), "the shim links {crate_}");
    }
}

#[test]
fn only_sys_lifts_the_ban_on_unsafe() {
    let mut lifted = Vec::new();
    for folder in ["integrity", "snapshotter", "runtime", "shim", "cli", "integration"] {
        collect(&root().join(folder), &mut lifted);
    }
    let sys = root().join("integrity/sys");
    assert!(lifted.iter().any(|file| file.starts_with(&sys)), "sys does not lift it: {lifted:?}");
    let others: Vec<_> = lifted.iter().filter(|file| !file.starts_with(&sys)).collect();
    assert!(others.is_empty(), "lifted elsewhere: {others:?}");
}

/// Files with an attribute that lets unsafe code through.
fn collect(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            if !path.ends_with("target") {
                collect(&path, found);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            let lifts = ["allow", "expect"].map(|how| format!("{how}(unsafe_code"));
            if lifts.iter().any(|attribute| text.contains(attribute)) {
                found.push(path);
            }
        }
    }
}
