//! The real components, built from source at pinned versions and checksums.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cache::{Cache, remove_tree};
use crate::run::Run;

/// Who holds a module to its sum.
#[derive(Clone, Copy, PartialEq, Eq)]
enum CheckedBy {
    /// The checksum database, and the sum pinned here.
    DatabaseAndPin,
    /// The pin alone: the database served here lacks the module.
    Pin,
}

/// Whether C is linked in.
#[derive(Clone, Copy)]
enum Cgo {
    On,
    Off,
}

/// A Go module and what is built of it.
struct Module {
    name: &'static str,
    path: &'static str,
    version: &'static str,
    /// `h1:` sums of the module's zip and of its `go.mod`, pinned here.
    sum: &'static str,
    mod_sum: &'static str,
    checked_by: CheckedBy,
    cgo: Cgo,
    tags: &'static str,
    link_flags: &'static str,
    packages: &'static [&'static str],
    /// Packages whose test program is wanted.
    suites: &'static [&'static str],
    adapt: fn(&Path) -> Result<()>,
}

const MODULES: &[Module] = &[
    Module {
        name: "containerd-2.4.2",
        path: "github.com/containerd/containerd/v2",
        version: "v2.4.2",
        sum: "h1:p6Qg+xbEz8lvwdhHDx0U469xENvp4LgGBx+E7djXkGw=",
        mod_sum: "h1:vgLdtvl3prFk1d3ZVqQcsDD5Q9IKM+vAIdU54U85w+I=",
        checked_by: CheckedBy::DatabaseAndPin,
        cgo: Cgo::Off,
        tags: "",
        link_flags: "-X github.com/containerd/containerd/v2/version.Version=v2.4.2",
        packages: &["./cmd/containerd", "./cmd/ctr", "./cmd/containerd-shim-runc-v2"],
        suites: &[],
        adapt: as_it_is,
    },
    Module {
        name: "runc-1.5.2",
        path: "github.com/opencontainers/runc",
        version: "v1.5.2",
        sum: "h1:eUUowc2WJCnFYzI87C1WqRcu356Dk/wsoi90y+2wEfE=",
        mod_sum: "h1:xGf9+KlNJkiI1y/C4rLIyLFckqs8WOMo4FFplswY9sw=",
        checked_by: CheckedBy::DatabaseAndPin,
        cgo: Cgo::On,
        tags: "seccomp netgo osusergo",
        link_flags: "-X main.version=1.5.2 -extldflags -static",
        packages: &["."],
        suites: &[],
        adapt: as_it_is,
    },
    Module {
        name: "nerdctl-2.3.5",
        path: "github.com/containerd/nerdctl/v2",
        version: "v2.3.5",
        sum: "h1:auYeWpIM29NUvqWxFvar8HIbSVrGBn6dRPx45rrUApY=",
        mod_sum: "h1:j2i2sTqQ0Z9YaZDI8XroU+NYtP5C1jC4mjtuvYvV0TE=",
        checked_by: CheckedBy::Pin,
        cgo: Cgo::Off,
        tags: "",
        link_flags: "-X github.com/containerd/nerdctl/v2/pkg/version.Version=v2.3.5",
        packages: &["./cmd/nerdctl"],
        suites: &[],
        adapt: without_test_helper,
    },
    Module {
        name: "cni-1.9.1",
        path: "github.com/containernetworking/plugins",
        version: "v1.9.1",
        sum: "h1:8oU6WsIsU3bpnNZuvHp74a6cE1MJwbj2P7s4/yTUNlA=",
        mod_sum: "h1:fj7kS55qg3o/RgS+WGsF3+ZxwIImMPusQZKzBpcSr4c=",
        checked_by: CheckedBy::DatabaseAndPin,
        cgo: Cgo::Off,
        tags: "",
        link_flags: "",
        packages: &[
            "./plugins/main/bridge",
            "./plugins/main/loopback",
            "./plugins/ipam/host-local",
            "./plugins/meta/portmap",
            "./plugins/meta/firewall",
            "./plugins/meta/tuning",
        ],
        suites: &[],
        adapt: as_it_is,
    },
];

/// critest and crictl, for the one target that runs them.
const CRI_TOOLS: Module = Module {
    name: "cri-tools-1.37.0",
    path: "sigs.k8s.io/cri-tools",
    version: "v1.37.0",
    sum: "h1:BmTImEoTX3KPXCLwmIU9mfCC8umUqF4R8WibY9eVU9Y=",
    mod_sum: "h1:Zqqy+XYOMCADk/BjPPwhVjF6bxkSKeP14cFm5IoDfJE=",
    checked_by: CheckedBy::DatabaseAndPin,
    cgo: Cgo::Off,
    tags: "",
    link_flags: "-X sigs.k8s.io/cri-tools/pkg/version.Version=v1.37.0",
    packages: &["./cmd/crictl"],
    suites: &["./cmd/critest"],
    adapt: digest_from_environment,
};

/// Builds critest and crictl if they are missing; where they are.
pub(crate) fn cri_tools(cache: &Cache) -> Result<PathBuf> {
    once(cache, &CRI_TOOLS)
}

/// Where each component's binaries are.
#[derive(Clone, Debug)]
pub(crate) struct Components {
    pub(crate) containerd: PathBuf,
    pub(crate) runc: PathBuf,
    pub(crate) nerdctl: PathBuf,
    pub(crate) cni: PathBuf,
}

impl Components {
    /// Builds what is missing.
    pub(crate) fn build(cache: &Cache) -> Result<Self> {
        let mut places = Vec::new();
        for module in MODULES {
            places.push(once(cache, module)?);
        }
        let [containerd, runc, nerdctl, cni] = <[PathBuf; 4]>::try_from(places)
            .map_err(|places| anyhow::anyhow!("{} components", places.len()))?;
        Ok(Self { containerd, runc, nerdctl, cni })
    }
}

fn once(cache: &Cache, module: &Module) -> Result<PathBuf> {
    cache.once(&format!("components/{}", module.name), |dir| build(cache, module, dir))
}

fn build(cache: &Cache, module: &Module, target: &Path) -> Result<()> {
    let log = cache.log(module.name);
    let source = cache.root().join(format!("source-{}", module.name));
    remove_tree(&source)?;
    let downloaded = download(module)?;
    Command::new("cp").arg("-r").arg(&downloaded).arg(&source).good()?;
    Command::new("chmod").args(["-R", "u+w"]).arg(&source).good()?;
    (module.adapt)(&source)?;
    let out = format!("{}/", target.display());
    compile(module, &source, &["build"], &out).args(module.packages).logged(&log)?;
    for suite in module.suites {
        let name = suite.rsplit('/').next().unwrap_or(suite);
        compile(module, &source, &["test", "-c"], &format!("{out}{name}"))
            .arg(suite)
            .logged(&log)?;
    }
    remove_tree(&source)
}

fn compile(module: &Module, source: &Path, how: &[&str], out: &str) -> Command {
    let mut go = Command::new("go");
    go.current_dir(source)
        .env("CGO_ENABLED", if matches!(module.cgo, Cgo::On) { "1" } else { "0" })
        .args(how)
        .args(["-mod=mod", "-trimpath", "-tags", module.tags])
        .args(["-ldflags", &format!("-s -w {}", module.link_flags), "-o", out]);
    go
}

/// Downloads a module and holds it to our sums.
fn download(module: &Module) -> Result<PathBuf> {
    let mut go = Command::new("go");
    if module.checked_by == CheckedBy::Pin {
        go.env("GONOSUMDB", module.path.trim_end_matches("/v2"));
    }
    let printed = go
        .args(["mod", "download", "-json"])
        .arg(format!("{}@{}", module.path, module.version))
        .good()?;
    let answer: serde_json::Value = serde_json::from_str(&printed)?;
    for (key, pinned) in [("Sum", module.sum), ("GoModSum", module.mod_sum)] {
        let found = answer[key].as_str().unwrap_or("nothing");
        if found != pinned {
            bail!("{} {}: {key} is {found}, pinned {pinned}", module.path, module.version);
        }
    }
    answer["Dir"].as_str().map(PathBuf::from).context("go mod download names no directory")
}

fn as_it_is(_: &Path) -> Result<()> {
    Ok(())
}

/// nerdctl replaces a test helper by a directory that its module zip lacks.
fn without_test_helper(source: &Path) -> Result<()> {
    let helpers = source.join("cmd/nerdctl/helpers");
    for entry in std::fs::read_dir(&helpers)? {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("testing")) {
            std::fs::remove_file(path)?;
        }
    }
    let helper = "github.com/containerd/nerdctl/mod/tigron";
    Command::new("go")
        .current_dir(source)
        .args(["mod", "edit"])
        .arg(format!("-dropreplace={helper}@v0.0.0"))
        .arg(format!("-droprequire={helper}"))
        .good()?;
    Ok(())
}

/// One spec pulls an image by the digest that it has at its publisher. Ours has another one, which
/// the suite reads from its environment.
fn digest_from_environment(source: &Path) -> Result<()> {
    let file = source.join("pkg/validate/consts.go");
    let mut text = crate::files::text(&file)?;
    for (old, new) in [
        ("import (\n", "import (\n\t\"os\"\n"),
        (
            "testImageWithDigest = testLinuxImageWithDigest",
            "testImageWithDigest = registry + \"test-image-digest@\" + os.Getenv(\"CRITEST_DIGEST\")",
        ),
    ] {
        anyhow::ensure!(text.matches(old).count() == 1, "{}: no single {old:?}", file.display());
        text = text.replace(old, new);
    }
    crate::files::write(&file, text)
}
