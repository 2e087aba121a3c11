//! What is damaged, noted while reading goes on.

use crate::model::tree::{Kind, Node, NodeId};

use super::ReadError;

/// The most faults that are noted: a damaged image has one or a million.
pub const MAX_FAULTS: usize = 1000;

/// Faults in the order they were found, the first [`MAX_FAULTS`] of them.
#[derive(Debug, Default)]
pub(super) struct Faults(Vec<ReadError>);

impl Faults {
    pub(super) fn note(&mut self, fault: ReadError) {
        if self.0.len() < MAX_FAULTS {
            self.0.push(fault);
        }
    }

    /// A fault at one file; its path is put together only if it is noted.
    pub(super) fn note_at(&mut self, path: impl FnOnce() -> Vec<u8>, fault: ReadError) {
        if self.0.len() < MAX_FAULTS {
            self.0.push(ReadError::In { path: path(), source: Box::new(fault) });
        }
    }

    pub(super) fn into_vec(self) -> Vec<ReadError> {
        self.0
    }
}

/// The path of a name in a directory, or of the directory itself. The directory's own name and those above it must have been
/// entered where they belong.
pub(super) fn path_of(nodes: &[Node], parents: &[NodeId], dir: NodeId, name: Option<&[u8]>) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = name.into_iter().collect();
    let mut at = dir;
    // A name for each directory at most: parents lead to the root.
    while at != NodeId::ROOT
        && let Some(parent) = parents.get(at.index())
    {
        let found = nodes.get(parent.index()).and_then(|node| match &node.kind {
            Kind::Dir(children) => children.iter().find(|(_, id)| **id == at).map(|(name, _)| &**name),
            _ => None,
        });
        parts.push(found.unwrap_or(b"?"));
        at = *parent;
    }
    parts.push(b"");
    if parts.len() == 1 {
        return b"/".to_vec();
    }
    parts.reverse();
    parts.join(&b'/')
}
