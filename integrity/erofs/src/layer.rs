//! What the entries of a layer's tar make: the tree of names.
//!
//! Rules, containerd's (`pkg/archive/tar.go`) except where noted:
//!
//! | entry | becomes |
//! |---|---|
//! | `/a`, `./a`, `a/`, `b/../a`, `../a` | `a`: cleaned as text, never above the root |
//! | below a symlink of the same layer | resolved inside the layer, at most 40 symlinks |
//! | below a symlink of a lower layer | a directory: lower layers are not known here |
//! | below a directory without entry | directories 0755 0:0 at time 0; a lower layer's owner and mode are not known here |
//! | below a file, device or FIFO | error |
//! | a directory where one is | merged: owner, mode, time replaced, attributes added |
//! | anything else where something is | replaced, with all that was below |
//! | the root, a directory | owner, mode, time and attributes of the image's root (containerd ignores them) |
//! | the root, anything else | error |
//! | hard link | another name of what the target names in this layer, symlinks themselves included; its own owner, mode, time and attributes are not applied (as GNU tar, unlike containerd) |
//! | hard link to a directory, a whiteout, nothing, or the name it replaces | error |
//! | character device 0:0 | error: overlayfs would take it for a whiteout |
//! | `.wh.NAME` of any type | a whiteout of `NAME`; if the layer has `NAME` too, in whatever order, that is kept and a directory is made opaque (as the OCI image-spec says) |
//! | `.wh..wh..opq` | its directory is opaque |
//! | `.wh.`, `.wh..`, `.wh...`, other `.wh..wh.*`, and names below a `.wh.*` | error |
//! | `trusted.overlay.*`, `user.overlay.*` attributes | left out, and counted |
//! | attributes that Linux does not have, or not on that type | left out, and counted |

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Slot;
use std::ops::Bound::{Excluded, Unbounded};

use crate::error::{Cause, Error};
use crate::format::{FileType, Meta, NAME_MAX, Nid, ROOT, SYMLINK_MAX};
use crate::image::Ino;
use crate::limits::Limits;
use crate::xattr::Xattrs;

const WHITEOUT: &[u8] = b".wh.";
const WHITEOUT_META: &[u8] = b".wh..wh.";
const WHITEOUT_OPAQUE: &[u8] = b".wh..wh..opq";

/// As many symlinks as Linux follows.
const SYMLINKS_MAX: u32 = 40;

/// The index of a node; the root is the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct NodeId(u32);

impl NodeId {
    pub(crate) const ROOT: Self = Self(0);

    fn index(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

/// Something with a name, or that lost its last one.
#[derive(Debug)]
pub(crate) enum Node {
    Directory(Box<Directory>),
    Symlink(Leaf, Box<[u8]>),
    Other(Leaf),
}

/// An inode that is already in the image.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Leaf {
    pub(crate) ino: Ino,
    pub(crate) kind: FileType,
    pub(crate) links: u32,
}

#[derive(Debug)]
pub(crate) struct Directory {
    pub(crate) meta: Meta,
    pub(crate) xattrs: Xattrs,
    /// Hides what lower layers have in it.
    pub(crate) opaque: bool,
    pub(crate) children: BTreeMap<Box<[u8]>, Child>,
    /// Where its inode is, once that is decided.
    pub(crate) nid: Nid,
    depth: usize,
}

/// What a name of a directory leads to, `.` and `..` included.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Named {
    Itself,
    Parent,
    Child(Child),
}

/// What a name in a directory is.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Child {
    Whiteout,
    Node {
        id: NodeId,
        /// Lower layers' directory of that name is hidden, should this become one.
        cut: bool,
    },
}

/// A parent directory that exists, and a name in it.
#[derive(Debug)]
pub(crate) struct Place<'a> {
    pub(crate) parent: NodeId,
    pub(crate) name: &'a [u8],
}

/// The tree of names.
#[derive(Debug)]
pub(crate) struct Layer {
    nodes: Vec<Node>,
    limits: Limits,
    /// Bytes of names, targets and attributes that were ever kept.
    metadata: u64,
    symlink_steps: u64,
    /// The parent of the entry before, and its path.
    last_parent: Option<(Vec<u8>, NodeId)>,
}

impl Layer {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            nodes: vec![Node::Directory(Box::new(Directory::new(0)))],
            limits: limits.clone(),
            metadata: 0,
            symlink_steps: 0,
            last_parent: None,
        }
    }

    pub(crate) fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    pub(crate) fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(id.index())
    }

    pub(crate) fn directory(&self, id: NodeId) -> Option<&Directory> {
        match self.node(id) {
            Some(Node::Directory(directory)) => Some(directory),
            _ => None,
        }
    }

    pub(crate) fn directory_mut(&mut self, id: NodeId) -> Option<&mut Directory> {
        match self.nodes.get_mut(id.index()) {
            Some(Node::Directory(directory)) => Some(directory),
            _ => None,
        }
    }

    /// Finds where an entry goes, making the directories above it; `None` is the root.
    pub(crate) fn place<'a>(&mut self, name: &'a [u8]) -> Result<Option<Place<'a>>, Error> {
        let components = clean(name, &self.limits)?;
        let Some((base, parents)) = components.split_last() else { return Ok(None) };
        if parents.iter().any(|component| component.starts_with(WHITEOUT)) {
            return Err(Cause::entry(name, "is below a whiteout"));
        }
        let parent = match &self.last_parent {
            Some((path, id)) if path.split(|b| *b == b'/').eq(parents.iter().copied()) => *id,
            _ => {
                let steps = self.resolve(name, parents)?;
                let id = self.make(name, &steps)?;
                // An empty path would split into one empty component.
                if !parents.is_empty() {
                    self.last_parent = Some((parents.join(&b'/'), id));
                }
                id
            }
        };
        Ok(Some(Place { parent, name: base }))
    }

    /// Gives a directory its owner, mode, time and attributes, made if it does not exist.
    pub(crate) fn add_directory(
        &mut self,
        place: Option<&Place<'_>>,
        meta: Meta,
        xattrs: Xattrs,
    ) -> Result<(), Error> {
        let kept = xattrs.iter().fold(0, |sum: usize, (name, value)| {
            sum.saturating_add(name.len()).saturating_add(value.len())
        });
        self.keep(kept)?;
        let id = match place {
            None => NodeId::ROOT,
            Some(place) => match self.child(place.parent, place.name) {
                Some(Child::Node { id, .. }) if self.directory(id).is_some() => id,
                _ => self.insert_directory(place.parent, place.name)?,
            },
        };
        if let Some(directory) = self.directory_mut(id) {
            directory.meta = meta;
            directory.xattrs.extend(xattrs);
        }
        Ok(())
    }

    /// Names an inode that was just written.
    pub(crate) fn add_leaf(&mut self, place: &Place<'_>, leaf: Leaf) -> Result<(), Error> {
        self.insert(place.parent, place.name, Node::Other(leaf)).map(drop)
    }

    /// Names a symlink that was just written.
    pub(crate) fn add_symlink(
        &mut self,
        place: &Place<'_>,
        leaf: Leaf,
        target: &[u8],
    ) -> Result<(), Error> {
        self.keep(target.len())?;
        self.insert(place.parent, place.name, Node::Symlink(leaf, target.into())).map(drop)
    }

    /// Gives what `target` names another name.
    pub(crate) fn add_hard_link(
        &mut self,
        entry: &[u8],
        place: &Place<'_>,
        target: &[u8],
    ) -> Result<(), Error> {
        let cut = self.remove(place.parent, place.name);
        let components = clean(target, &self.limits)?;
        let missing = || Cause::entry(entry, "is a hard link to what this layer does not have");
        let (base, parents) = components.split_last().ok_or_else(missing)?;
        let steps = self.resolve(entry, parents)?;
        let parent = match steps.last() {
            None => NodeId::ROOT,
            Some(step) => step.id.ok_or_else(missing)?,
        };
        let Some(Child::Node { id, .. }) = self.child(parent, base) else { return Err(missing()) };
        match self.nodes.get_mut(id.index()) {
            Some(Node::Symlink(leaf, _) | Node::Other(leaf)) => {
                leaf.links = leaf.links.saturating_add(1);
            }
            _ => return Err(Cause::entry(entry, "is a hard link to a directory")),
        }
        self.keep(place.name.len())?;
        if let Some(directory) = self.directory_mut(place.parent) {
            directory.children.insert(place.name.into(), Child::Node { id, cut });
        }
        Ok(())
    }

    /// Handles an entry with a whiteout's name; says whether it was one.
    pub(crate) fn add_whiteout(&mut self, entry: &[u8], place: &Place<'_>) -> Result<bool, Error> {
        if place.name == WHITEOUT_OPAQUE {
            if let Some(directory) = self.directory_mut(place.parent) {
                directory.opaque = true;
            }
            return Ok(true);
        }
        let Some(hidden) = place.name.strip_prefix(WHITEOUT) else { return Ok(false) };
        if place.name.starts_with(WHITEOUT_META) || matches!(hidden, b"" | b"." | b"..") {
            return Err(Cause::entry(entry, "is not a whiteout of anything"));
        }
        self.keep(hidden.len())?;
        let mut opaque = None;
        if let Some(directory) = self.directory_mut(place.parent) {
            match directory.children.entry(hidden.into()) {
                Slot::Vacant(slot) => {
                    slot.insert(Child::Whiteout);
                }
                Slot::Occupied(mut slot) => {
                    if let Child::Node { id, cut } = slot.get_mut() {
                        *cut = true;
                        opaque = Some(*id);
                    }
                }
            }
        }
        if let Some(directory) = opaque.and_then(|id| self.directory_mut(id)) {
            directory.opaque = true;
        }
        Ok(true)
    }

    fn child(&self, parent: NodeId, name: &[u8]) -> Option<Child> {
        self.directory(parent)?.children.get(name).copied()
    }

    fn insert_directory(&mut self, parent: NodeId, name: &[u8]) -> Result<NodeId, Error> {
        let depth = self.directory(parent).map_or(0, |parent| parent.depth).saturating_add(1);
        if depth > self.limits.depth {
            return Err(Cause::entry_limit(name, "directories above it", self.limits.depth));
        }
        self.insert(parent, name, Node::Directory(Box::new(Directory::new(depth))))
    }

    /// Puts a node under a name, in place of what was there.
    fn insert(&mut self, parent: NodeId, name: &[u8], mut node: Node) -> Result<NodeId, Error> {
        let cut = self.remove(parent, name);
        if let Node::Directory(directory) = &mut node {
            directory.opaque = cut;
        }
        self.keep(name.len())?;
        let limit = || Cause::Limit { what: "nodes", limit: u64::from(u32::MAX) };
        let id = NodeId(u32::try_from(self.nodes.len()).ok().ok_or_else(limit)?);
        self.nodes.push(node);
        if let Some(directory) = self.directory_mut(parent) {
            directory.children.insert(name.into(), Child::Node { id, cut });
        }
        Ok(id)
    }

    /// Takes a name away, with all that is below it; says whether lower layers' is hidden.
    fn remove(&mut self, parent: NodeId, name: &[u8]) -> bool {
        let removed = self.directory_mut(parent).and_then(|dir| dir.children.remove(name));
        let (id, cut) = match removed {
            None => return false,
            Some(Child::Whiteout) => return true,
            Some(Child::Node { id, cut }) => (id, cut),
        };
        self.last_parent = None;
        let opaque = self.directory(id).is_some_and(|directory| directory.opaque);
        let mut unnamed = vec![id];
        while let Some(id) = unnamed.pop() {
            match self.nodes.get_mut(id.index()) {
                Some(Node::Symlink(leaf, _) | Node::Other(leaf)) => {
                    leaf.links = leaf.links.saturating_sub(1);
                }
                Some(Node::Directory(directory)) => {
                    let children = std::mem::take(&mut directory.children);
                    unnamed.extend(children.into_values().filter_map(|child| match child {
                        Child::Node { id, .. } => Some(id),
                        Child::Whiteout => None,
                    }));
                }
                None => {}
            }
        }
        cut || opaque
    }

    /// Walks the names above an entry through the symlinks of this layer.
    fn resolve(&mut self, entry: &[u8], parents: &[&[u8]]) -> Result<Vec<Step>, Error> {
        let mut done: Vec<Step> = Vec::new();
        let mut todo: Vec<Box<[u8]>> = parents.iter().rev().map(|name| (*name).into()).collect();
        let mut symlinks = 0;
        while let Some(name) = todo.pop() {
            self.symlink_steps = self.symlink_steps.saturating_add(u64::from(symlinks > 0));
            if self.symlink_steps > self.limits.symlink_steps {
                let limit = self.limits.symlink_steps;
                return Err(Cause::Limit { what: "names below symlinks", limit }.into());
            }
            if matches!(&*name, b"" | b".") {
                continue;
            }
            if &*name == b".." {
                done.pop();
                continue;
            }
            let parent = done.last().map_or(Some(NodeId::ROOT), |step| step.id);
            match parent.and_then(|parent| self.child(parent, &name)) {
                None | Some(Child::Whiteout) => done.push(Step { name, id: None }),
                Some(Child::Node { id, .. }) => match self.node(id) {
                    Some(Node::Directory(_)) => done.push(Step { name, id: Some(id) }),
                    Some(Node::Symlink(_, target)) if symlinks < SYMLINKS_MAX => {
                        symlinks = symlinks.saturating_add(1);
                        if target.starts_with(b"/") {
                            done.clear();
                        }
                        todo.extend(target.rsplit(|byte| *byte == b'/').map(Box::from));
                    }
                    Some(Node::Symlink(..)) => {
                        return Err(Cause::entry(entry, "is below too many symlinks"));
                    }
                    _ => return Err(Cause::entry(entry, "is below what is not a directory")),
                },
            }
        }
        Ok(done)
    }

    /// Makes the directories that a walk found missing.
    fn make(&mut self, entry: &[u8], steps: &[Step]) -> Result<NodeId, Error> {
        let mut parent = NodeId::ROOT;
        for step in steps {
            if step.name.len() > NAME_MAX {
                return Err(Cause::entry_limit(entry, "bytes of a name", NAME_MAX));
            }
            parent = match step.id {
                Some(id) => id,
                None => self.insert_directory(parent, &step.name)?,
            };
        }
        Ok(parent)
    }

    /// Counts bytes that stay in memory.
    fn keep(&mut self, bytes: usize) -> Result<(), Error> {
        self.metadata = self.metadata.saturating_add(bytes as u64);
        if self.metadata > self.limits.metadata {
            let limit = self.limits.metadata;
            return Err(Cause::Limit { what: "bytes of names and attributes", limit }.into());
        }
        Ok(())
    }
}

/// A name walked over: a directory, or nothing yet.
struct Step {
    name: Box<[u8]>,
    id: Option<NodeId>,
}

impl Directory {
    fn new(depth: usize) -> Self {
        Self {
            meta: Meta::IMPLIED,
            xattrs: Xattrs::new(),
            opaque: false,
            children: BTreeMap::new(),
            nid: ROOT,
            depth,
        }
    }

    /// All names, sorted bytewise.
    pub(crate) fn names(&self) -> impl Iterator<Item = (&[u8], Named)> {
        let (dot, dots) = (&b"."[..], &b".."[..]);
        let range = |from, to| {
            let range = self.children.range::<[u8], _>((from, to));
            range.map(|(name, child)| (&**name, Named::Child(*child)))
        };
        range(Unbounded, Excluded(dot))
            .chain([(dot, Named::Itself)])
            .chain(range(Excluded(dot), Excluded(dots)))
            .chain([(dots, Named::Parent)])
            .chain(range(Excluded(dots), Unbounded))
    }
}

/// The components of a path, `.` and `..` worked out as text, which no path leaves the root by.
fn clean<'a>(path: &'a [u8], limits: &Limits) -> Result<Vec<&'a [u8]>, Error> {
    if path.len() > limits.path {
        return Err(Cause::entry_limit(path, "bytes of a path", limits.path));
    }
    let mut components = Vec::new();
    for component in path.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => {
                components.pop();
            }
            name if name.len() > NAME_MAX => {
                return Err(Cause::entry_limit(path, "bytes of a name", NAME_MAX));
            }
            name => components.push(name),
        }
    }
    Ok(components)
}

/// Whether a symlink can have this target.
pub(crate) fn symlink_target(entry: &[u8], target: &[u8]) -> Result<(), Error> {
    match target.len() {
        0 => Err(Cause::entry(entry, "is a symlink to nothing")),
        1..=SYMLINK_MAX => Ok(()),
        _ => Err(Cause::entry_limit(entry, "bytes of a symlink's target", SYMLINK_MAX)),
    }
}
