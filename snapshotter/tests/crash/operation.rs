//! The calls that are cut off: what is there before each, and what must be true after it, answered or not.

use tonic::Code;

use crate::node::{Answer, CHAIN, Client, Layer, Node, below, done_or, expect_content};
use crate::proto::snapshots::Kind;
use crate::proto::types::Mount;

const BOX: &str = "default/9/box";
const MADE: &str = "default/10/made";

/// A call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    /// A layer becomes an image.
    Apply,
    /// A container's snapshot is made, and three layers are activated.
    Prepare,
    /// The same activated again, as after a reboot.
    Mounts,
    /// An applied layer is committed.
    Commit,
    /// What was written to a directory is packed and committed.
    CommitWritten,
    /// A container's snapshot goes, and three layers are deactivated.
    Remove,
    /// A layer goes, its image as well.
    RemoveLayer,
    /// What a former daemon left is adopted or removed.
    Start,
}

/// Every operation.
pub(crate) const ALL: [Operation; 8] = [
    Operation::Apply,
    Operation::Prepare,
    Operation::Mounts,
    Operation::Commit,
    Operation::CommitWritten,
    Operation::Remove,
    Operation::RemoveLayer,
    Operation::Start,
];

impl Operation {
    /// Brings the node, at rest before, to where the call can be made.
    pub(crate) fn arrange(self, node: &mut Node) {
        let extra = Layer::new(CHAIN);
        match self {
            Self::Apply => drop(node.run(node.client().prepare(extra.key(), below(&extra)))),
            Self::Prepare => {}
            Self::Mounts => {
                prepare_box(node);
                node.kill();
                for lower in crate::node::names(&node.directory.join("state/l")) {
                    let lower = node.directory.join("state/l").join(lower);
                    let flags = rustix::mount::UnmountFlags::NOFOLLOW;
                    rustix::mount::unmount(lower, flags).unwrap();
                }
                std::fs::remove_dir_all(node.directory.join("state")).unwrap();
                node.start();
            }
            Self::Commit => node.apply(&extra),
            Self::CommitWritten => write_box(&prepare_box(node)),
            Self::Remove => write_box(&prepare_box(node)),
            Self::RemoveLayer => {
                node.apply(&extra);
                node.run(node.client().commit(extra.key(), extra.name())).unwrap();
            }
            Self::Start => {
                prepare_box(node);
                node.kill();
                // of a call that was cut off
                let left = node.root().join("snapshots/999/fs");
                std::fs::create_dir_all(left).unwrap();
                std::fs::write(node.root().join("layers/.new-7"), "half").unwrap();
            }
        }
    }

    /// Whether the disk says that the call was made.
    pub(crate) fn leaves_a_trace(self) -> bool {
        !matches!(self, Self::Mounts | Self::Start)
    }

    /// The call.
    pub(crate) async fn call(self, client: Client) -> Answer<()> {
        let extra = Layer::new(CHAIN);
        match self {
            Self::Apply => {
                let mounts = client.clone().mounts(extra.key()).await?;
                client.apply(extra, mounts).await
            }
            Self::Prepare => client.prepare(BOX.to_owned(), top()).await.map(drop),
            Self::Mounts => client.mounts(BOX.to_owned()).await.map(drop),
            Self::Commit => client.commit(extra.key(), extra.name()).await,
            Self::CommitWritten => client.commit(BOX.to_owned(), MADE.to_owned()).await,
            Self::Remove => client.remove(BOX.to_owned()).await,
            Self::RemoveLayer => client.remove(extra.name()).await,
            Self::Start => until_it_answers(client).await,
        }
    }

    /// What must be true of a daemon that was started after the call: nothing that was answered is lost, and the
    /// same request succeeds. The node is at rest afterwards.
    pub(crate) fn judge(self, node: &Node, answered: bool) {
        let extra = Layer::new(CHAIN);
        match self {
            Self::Apply => {
                let before = node.content.reads_of(&extra.digest());
                let mounts = node.run(node.client().mounts(extra.key())).unwrap();
                node.run(node.client().apply(extra.clone(), mounts)).unwrap();
                let reads = node.content.reads_of(&extra.digest()) - before;
                assert!(!answered || reads == 0, "answered, and read again");
                node.run(node.client().commit(extra.key(), extra.name())).unwrap();
                expect_view(node, &extra.name(), CHAIN + 1);
                node.run(node.client().remove(extra.name())).unwrap();
            }
            Self::Prepare | Self::Mounts | Self::Start => {
                expect_either(node, BOX, "", answered || self != Self::Prepare);
                let again = node.run(node.client().prepare(BOX.to_owned(), top())).map(drop);
                done_or(again, Code::AlreadyExists);
                let mounts = node.run(node.client().mounts(BOX.to_owned())).unwrap();
                expect_content(&mounts, CHAIN);
                node.run(node.client().remove(BOX.to_owned())).unwrap();
            }
            Self::Commit => {
                expect_either(node, &extra.name(), &extra.key(), answered);
                let again = node.run(node.client().commit(extra.key(), extra.name()));
                done_or(again, Code::AlreadyExists);
                expect_view(node, &extra.name(), CHAIN + 1);
                node.run(node.client().remove(extra.name())).unwrap();
            }
            Self::CommitWritten => {
                expect_either(node, MADE, BOX, answered);
                let again = node.run(node.client().commit(BOX.to_owned(), MADE.to_owned()));
                done_or(again, Code::AlreadyExists);
                expect_written(node);
                node.run(node.client().remove(MADE.to_owned())).unwrap();
            }
            Self::Remove => {
                let there = node.run(node.client().mounts(BOX.to_owned()));
                assert!(!(answered && there.is_ok()), "removed, and there again");
                if let Ok(mounts) = there {
                    assert!(upper(&mounts).join("written").is_file(), "half removed");
                }
                done_or(node.run(node.client().remove(BOX.to_owned())), Code::NotFound);
            }
            Self::RemoveLayer => {
                let there = node.run(node.client().stat(extra.name()));
                assert!(!(answered && there.is_ok()), "removed, and there again");
                if there.is_ok() {
                    expect_view(node, &extra.name(), CHAIN + 1);
                }
                done_or(node.run(node.client().remove(extra.name())), Code::NotFound);
            }
        }
    }
}

async fn until_it_answers(client: Client) -> Answer<()> {
    // it may be killed before it serves: then whoever waits for this is told otherwise
    while client.clone().names().await.is_err() {
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
    Ok(())
}

fn top() -> String {
    Layer::new(CHAIN - 1).name()
}

fn prepare_box(node: &Node) -> Vec<Mount> {
    node.run(node.client().prepare(BOX.to_owned(), top())).unwrap()
}

fn upper(mounts: &[Mount]) -> std::path::PathBuf {
    let option = mounts[0].options.iter().find_map(|option| option.strip_prefix("upperdir="));
    option.unwrap().into()
}

fn write_box(mounts: &[Mount]) {
    std::fs::create_dir(upper(mounts).join("dir")).unwrap();
    std::fs::write(upper(mounts).join("written"), "by the container").unwrap();
}

fn expect_view(node: &Node, name: &str, layers: usize) {
    let key = "default/11/look";
    let mounts = node.run(node.client().prepare(key.to_owned(), name.to_owned())).unwrap();
    expect_content(&mounts, layers);
    node.run(node.client().remove(key.to_owned())).unwrap();
}

fn expect_written(node: &Node) {
    let key = "default/11/look";
    let mounts = node.run(node.client().prepare(key.to_owned(), MADE.to_owned())).unwrap();
    let lowers = mounts[0].options.iter().find_map(|option| option.strip_prefix("lowerdir="));
    let topmost = lowers.unwrap().split(':').next().unwrap();
    let text = std::fs::read_to_string(std::path::Path::new(topmost).join("written"));
    assert_eq!(text.unwrap(), "by the container");
    node.run(node.client().remove(key.to_owned())).unwrap();
}

/// Exactly one of two is there: the one that the call makes, which must be it if the call was answered, or the one it
/// was made of (`""` for nothing).
fn expect_either(node: &Node, made: &str, of: &str, answered: bool) {
    let stat = |name: &str| node.run(node.client().stat(name.to_owned()));
    match stat(made) {
        Ok(info) => {
            let kind = if of.is_empty() { Kind::Active } else { Kind::Committed };
            assert_eq!(info.kind(), kind);
            if !of.is_empty() {
                assert_eq!(stat(of).unwrap_err().code(), Code::NotFound, "both are there");
            }
        }
        Err(status) => {
            assert_eq!(status.code(), Code::NotFound, "{status}");
            assert!(!answered, "{made} was answered, and is not there");
            if !of.is_empty() {
                stat(of).unwrap();
            }
        }
    }
}
