//! The part of the command line that says where an image is and which one of it is meant.

use std::path::PathBuf;

use clap::Args;
use hallmark_seal::referrer::Bundle;

use crate::error::{Error, Result};
use crate::image::archive::Archive;
use crate::image::containerd::Containerd;
use crate::image::layout::Layout;
use crate::image::oci::Platform;
use crate::image::{Location, Selection, Store};

#[derive(Debug, Args)]
pub(crate) struct Place {
    /// OCI layout directory, OCI archive (.tar), or containerd://[NAMESPACE/]NAME
    pub(crate) image: String,
    /// platform of an index to take
    #[arg(long, default_value = DEFAULT_PLATFORM, value_parser = Platform::parse)]
    platform: Platform,
    /// name or digest of the image, where there are several
    #[arg(long)]
    name: Option<String>,
    /// containerd's socket
    #[arg(long, value_name = "SOCKET", default_value = "/run/containerd/containerd.sock")]
    address: PathBuf,
}

#[cfg(target_arch = "aarch64")]
const DEFAULT_PLATFORM: &str = "linux/arm64";
#[cfg(not(target_arch = "aarch64"))]
const DEFAULT_PLATFORM: &str = "linux/amd64";

/// A place that was opened.
pub(crate) struct Opened {
    location: Location,
    image: AnyStore,
}

enum AnyStore {
    Archive(Archive),
    Containerd(Containerd),
    Layout(Layout),
}

impl Place {
    pub(crate) fn open(&self) -> Result<Opened> {
        let location = Location::parse(&self.image)?;
        let image = match &location {
            Location::Archive(path) => AnyStore::Archive(Archive::open(path)?),
            Location::Containerd(name) => {
                AnyStore::Containerd(Containerd::open(&self.address, name)?)
            }
            Location::Layout(path) => AnyStore::Layout(Layout::open(path)?),
        };
        Ok(Opened { location, image })
    }

    pub(crate) fn selection(&self) -> Selection {
        Selection { platform: self.platform.clone(), name: self.name.clone() }
    }
}

impl Opened {
    pub(crate) fn location(&self) -> &Location {
        &self.location
    }

    pub(crate) fn store(&self) -> &dyn Store {
        match &self.image {
            AnyStore::Archive(archive) => archive,
            AnyStore::Containerd(containerd) => containerd,
            AnyStore::Layout(layout) => layout,
        }
    }

    /// Adds a referrer to the image's index.
    pub(crate) fn add(&self, bundle: &Bundle) -> Result<()> {
        match &self.image {
            AnyStore::Archive(archive) => archive.add(bundle),
            AnyStore::Layout(layout) => layout.add(bundle),
            AnyStore::Containerd(_) => Err(Error::Usage {
                found: "an image in containerd".into(),
                expected: "a layout or an archive, which hold an index".into(),
            }),
        }
    }
}
