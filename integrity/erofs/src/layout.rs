//! The end of an image: directories, late link counts, block 0.
//!
//! Directories name each other in both directions, so all positions are decided before the first
//! of them is written. The rules are in `format.rs`.

use std::io::{Read, Seek, Write};

use hallmark_verity::Tree;

use crate::directory::{self, Target};
use crate::error::{Cause, Error};
use crate::format::{BLOCK, Data, FileType, INODE, Inode, Meta, NO_BLOCK, Nid, OPAQUE, ROOT};
use crate::image::{ImageWriter, Ino, blocks_and_tail, fit, root_fits};
use crate::layer::{Child, Layer, Leaf, Named, Node, NodeId};
use crate::xattr;

/// A directory on its way into the image.
struct Plan {
    id: NodeId,
    parent: NodeId,
    inode: Inode,
    xattrs: Vec<u8>,
    /// The end of its content that goes behind the inode; empty until the content is written.
    tail: Vec<u8>,
}

impl Plan {
    fn inode_len(&self) -> usize {
        INODE.saturating_add(self.xattrs.len())
    }

    /// Whether the inode with its attributes takes blocks of its own.
    fn is_long(&self) -> bool {
        self.inode_len() > BLOCK
    }

    fn tail_len(&self) -> usize {
        match self.inode.data {
            Data::Inline(_) => blocks_and_tail(self.inode.size).1,
            _ => 0,
        }
    }
}

/// Writes all that a layer's tar does not bring in order, and gives the tree over everything.
pub(crate) fn finish<W: Read + Write + Seek>(
    layer: &mut Layer,
    mut image: ImageWriter<W>,
    uuid: [u8; 16],
) -> Result<Tree, Error> {
    let (mut plans, whiteouts) = list(layer)?;
    let whiteout = write_whiteouts(&mut image, whiteouts)?;
    place(&mut plans, layer, &mut image)?;
    for plan in &mut plans {
        write_content(plan, layer, &mut image, whiteout)?;
    }
    for plan in plans.iter().filter(|plan| plan.id != NodeId::ROOT && !plan.is_long()) {
        let inode = Inode { ino: image.next_ino()?, ..plan.inode };
        image.place(&inode, &[&plan.xattrs, &plan.tail])?;
    }
    image.close()?;
    let links = late_links(layer, &image);
    image.patch_nlinks(&links)?;
    let leaves = layer.nodes().iter().filter(|node| leaf(node).is_some_and(|leaf| leaf.links > 0));
    let inos = plans.len().saturating_add(leaves.count()).saturating_add(whiteout.iter().len());
    // list() begins with the root
    let Some(root) = plans.first() else { return Err(Cause::Unplaced.into()) };
    let inode = Inode { ino: image.next_ino()?, ..root.inode };
    image.finish(&inode, &[&root.xattrs, &root.tail], inos as u64, uuid)
}

/// All directories in preorder, and the number of whiteouts in them.
fn list(layer: &Layer) -> Result<(Vec<Plan>, u32), Error> {
    let mut plans = Vec::new();
    let mut whiteouts = 0u32;
    let mut todo = vec![(NodeId::ROOT, NodeId::ROOT)];
    while let Some((id, parent)) = todo.pop() {
        let Some(dir) = layer.directory(id) else { continue };
        let mut nlink = 2u32;
        for child in dir.children.values().rev() {
            match child {
                Child::Whiteout => whiteouts = whiteouts.saturating_add(1),
                Child::Node { id: child, .. } if layer.directory(*child).is_some() => {
                    nlink = nlink.saturating_add(1);
                    todo.push((*child, id));
                }
                Child::Node { .. } => {}
            }
        }
        let mut xattrs = dir.xattrs.clone();
        if dir.opaque {
            xattrs.insert(OPAQUE.to_vec(), b"y".to_vec());
        }
        // The tar's own were measured against the limit when they came.
        let xattrs = xattr::encode(&xattrs, b"/", usize::MAX)?;
        let size = directory::size(dir.names().map(|(name, _)| name.len()));
        let inode = Inode { size, nlink, xattrs: xattrs.len(), ..directory_inode(dir.meta) };
        plans.push(Plan { id, parent, inode, xattrs, tail: Vec::new() });
    }
    Ok((plans, whiteouts))
}

fn directory_inode(meta: Meta) -> Inode {
    let kind = FileType::Directory;
    Inode { kind, meta, size: 0, data: Data::Empty, ino: 0, nlink: 2, xattrs: 0 }
}

/// The one inode of all whiteouts, if there are any.
fn write_whiteouts<W: Read + Write + Seek>(
    image: &mut ImageWriter<W>,
    count: u32,
) -> Result<Option<Ino>, Error> {
    if count == 0 {
        return Ok(None);
    }
    let inode = Inode {
        kind: FileType::CharDevice,
        meta: Meta::WHITEOUT,
        size: 0,
        data: Data::Device(0),
        ino: image.next_ino()?,
        nlink: count,
        xattrs: 0,
    };
    image.place(&inode, &[]).map(Some)
}

/// Decides where every directory and its content goes.
fn place<W: Read + Write + Seek>(
    plans: &mut [Plan],
    layer: &mut Layer,
    image: &mut ImageWriter<W>,
) -> Result<(), Error> {
    let limit = || Cause::Limit { what: "blocks", limit: u64::from(NO_BLOCK) };
    let mut next = image.next_block()?;
    for plan in plans.iter_mut() {
        let (full, tail) = blocks_and_tail(plan.inode.size);
        let inlined = match plan.id {
            NodeId::ROOT if !root_fits(plan.xattrs.len(), 0) => {
                return Err(Cause::unsupported(b"/", "has more attributes than fit into block 0"));
            }
            NodeId::ROOT => root_fits(plan.xattrs.len(), tail),
            _ => plan.inode_len().saturating_add(tail) <= BLOCK,
        };
        let inlined = inlined && tail > 0;
        let mut take = |blocks: u64| {
            let first = next;
            let blocks = u32::try_from(blocks).ok().ok_or_else(limit)?;
            next = next.checked_add(blocks).filter(|next| *next < NO_BLOCK).ok_or_else(limit)?;
            Ok::<_, Error>(first)
        };
        if plan.is_long() {
            let first = take(plan.inode_len().div_ceil(BLOCK) as u64)?;
            set_nid(layer, plan.id, Nid::at(first.into(), 0));
        }
        let start = take(full.saturating_add(u64::from(tail > 0 && !inlined)))?;
        plan.inode.data = match (inlined, full) {
            (true, 0) => Data::Inline(NO_BLOCK),
            (true, _) => Data::Inline(start),
            (false, _) => Data::Plain(start),
        };
    }
    image.announce(next);
    let mut block = u64::from(next);
    let mut used = image.open_len();
    for plan in plans.iter().filter(|plan| plan.id != NodeId::ROOT && !plan.is_long()) {
        let len = plan.inode_len().saturating_add(plan.tail_len());
        let at = match fit(used, len) {
            Some(at) => at,
            None => {
                block = block.saturating_add(1);
                0
            }
        };
        used = at.saturating_add(len);
        set_nid(layer, plan.id, Nid::at(block, at));
    }
    Ok(())
}

fn set_nid(layer: &mut Layer, id: NodeId, nid: Nid) {
    if let Some(directory) = layer.directory_mut(id) {
        directory.nid = nid;
    }
}

/// Writes the blocks of a directory, and those of its inode if that needs its own.
fn write_content<W: Read + Write + Seek>(
    plan: &mut Plan,
    layer: &Layer,
    image: &mut ImageWriter<W>,
    whiteout: Option<Ino>,
) -> Result<(), Error> {
    if plan.is_long() {
        let inode = Inode { ino: image.next_ino()?, ..plan.inode };
        image.place(&inode, &[&plan.xattrs])?;
    }
    let Some(dir) = layer.directory(plan.id) else { return Ok(()) };
    let at = |ino| image.nid(ino);
    let mut targets = Vec::with_capacity(dir.children.len().saturating_add(2));
    for (name, named) in dir.names() {
        let target = match named {
            Named::Itself => directory_target(layer, plan.id),
            Named::Parent => directory_target(layer, plan.parent),
            Named::Child(Child::Whiteout) => {
                whiteout.and_then(at).map(|nid| Target { nid, kind: FileType::CharDevice })
            }
            Named::Child(Child::Node { id, .. }) => match layer.node(id) {
                Some(Node::Directory(_)) => directory_target(layer, id),
                Some(Node::Symlink(leaf, _) | Node::Other(leaf)) => {
                    at(leaf.ino).map(|nid| Target { nid, kind: leaf.kind })
                }
                None => None,
            },
        };
        // Every inode that is named was written or announced before.
        targets.push((name, target.ok_or(Cause::Unplaced)?));
    }
    let tail = directory::encode(targets.into_iter(), |block| image.blocks(block))?;
    match plan.inode.data {
        Data::Inline(_) => plan.tail = tail,
        _ if !tail.is_empty() => image.padded(&tail)?,
        _ => {}
    }
    Ok(())
}

fn directory_target(layer: &Layer, id: NodeId) -> Option<Target> {
    let nid = if id == NodeId::ROOT { ROOT } else { layer.directory(id)?.nid };
    Some(Target { nid, kind: FileType::Directory })
}

fn leaf(node: &Node) -> Option<&Leaf> {
    match node {
        Node::Symlink(leaf, _) | Node::Other(leaf) => Some(leaf),
        Node::Directory(_) => None,
    }
}

/// Inodes whose number of names is not the 1 that was written, sorted by position.
fn late_links<W: Read + Write + Seek>(layer: &Layer, image: &ImageWriter<W>) -> Vec<(Nid, u32)> {
    let late = layer.nodes().iter().filter_map(leaf).filter(|leaf| leaf.links > 1);
    let mut late: Vec<_> =
        late.filter_map(|leaf| Some((image.nid(leaf.ino)?, leaf.links))).collect();
    late.sort_unstable();
    late
}
