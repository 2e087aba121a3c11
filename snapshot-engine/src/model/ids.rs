//! Owners as a container sees them (user_namespaces(7)).
//!
//! The files of a container in a user namespace have on the disk the ids that the host sees. An image holds those that the container sees: in owners, in
//! access control lists, and in capabilities, which name the root of the namespace they are for.
//!
//! A layer that is given to the container by an id-mapped mount has the container's ids on the disk already. Whether one is, no path tells; but the
//! root directory of every layer is the container's: where its owner is nobody in the container's namespace, the layer is such a one.

use serde::{Deserialize, Serialize};

use super::tree::{Meta, Tree, Xattrs};

/// What the kernel shows for an id that a namespace does not have (`/proc/sys/kernel/overflowuid`).
const OVERFLOW: u32 = 65534;
/// `POSIX_ACL_XATTR_VERSION` (linux/posix_acl_xattr.h).
const ACL_VERSION: u32 = 2;
/// `ACL_USER` and `ACL_GROUP` (linux/posix_acl.h): entries with an id.
const ACL_USER: u16 = 0x02;
const ACL_GROUP: u16 = 0x08;
/// `VFS_CAP_REVISION_3` and `VFS_CAP_REVISION_2`, in the high byte (linux/capability.h).
const CAP_REVISION_3: u8 = 3;
const CAP_REVISION_2: u8 = 2;

/// A run of ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    /// The first in the container.
    pub inside: u32,
    /// The same on the host.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

/// The ids of a user namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct IdMap(Vec<Range>);

impl IdMap {
    /// From `/proc/PID/uid_map` or `gid_map`; `None` if it is not in that form. The namespace that has every id as it is becomes the map of nothing.
    #[must_use]
    pub fn parse(text: &str) -> Option<IdMap> {
        let range = |line: &str| {
            let mut numbers = line.split_ascii_whitespace().map(str::parse);
            let mut next = || numbers.next()?.ok();
            Some(Range { inside: next()?, outside: next()?, count: next()? })
        };
        let ranges = text.lines().map(range).collect::<Option<Vec<Range>>>()?;
        let whole = Range { inside: 0, outside: 0, count: u32::MAX };
        Some(IdMap(if ranges == [whole] { Vec::new() } else { ranges }))
    }

    /// The id inside that a host's id has; `None` if it has none.
    #[must_use]
    pub fn inside(&self, outside: u32) -> Option<u32> {
        if self.0.is_empty() {
            return Some(outside);
        }
        self.0.iter().find_map(|range| {
            let at = outside.checked_sub(range.outside).filter(|at| *at < range.count)?;
            range.inside.checked_add(at)
        })
    }
}

/// How a container sees owners.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ids {
    /// Users.
    pub users: IdMap,
    /// Groups.
    pub groups: IdMap,
}

impl Ids {
    /// Whether it sees what the host sees.
    #[must_use]
    pub fn is_the_hosts(&self) -> bool {
        self.users.0.is_empty() && self.groups.0.is_empty()
    }

    /// Gives a layer the owners that the container sees.
    #[must_use]
    pub fn seen(&self, layer: Tree) -> Tree {
        let root = &layer.nodes()[0].meta;
        let mapped_already = self.users.inside(root.uid).is_none();
        if self.is_the_hosts() || mapped_already {
            return layer;
        }
        layer.map_metas(|meta| self.see(meta))
    }

    fn see(&self, meta: &mut Meta) {
        meta.uid = self.users.inside(meta.uid).unwrap_or(OVERFLOW);
        meta.gid = self.groups.inside(meta.gid).unwrap_or(OVERFLOW);
        self.see_attributes(&mut meta.xattrs);
    }

    fn see_attributes(&self, xattrs: &mut Xattrs) {
        for (name, value) in xattrs {
            match name.as_slice() {
                b"system.posix_acl_access" | b"system.posix_acl_default" => self.see_acl(value),
                b"security.capability" => self.see_capability(value),
                _ => {}
            }
        }
    }

    /// Entries of tag (2 bytes), permissions (2), id (4) behind a version of 4 bytes.
    fn see_acl(&self, value: &mut [u8]) {
        let Some((version, entries)) = value.split_first_chunk_mut::<4>() else { return };
        if u32::from_le_bytes(*version) != ACL_VERSION {
            return;
        }
        let (entries, _) = entries.as_chunks_mut::<8>();
        for [t0, t1, _, _, id @ ..] in entries {
            let map = match u16::from_le_bytes([*t0, *t1]) {
                ACL_USER => &self.users,
                ACL_GROUP => &self.groups,
                _ => continue,
            };
            *id = map.inside(u32::from_le_bytes(*id)).unwrap_or(OVERFLOW).to_le_bytes();
        }
    }

    /// Revision 3 ends with the host's id of the namespace's root: to that root it is one of revision 2 (`cap_inode_getsecurity`,
    /// security/commoncap.c).
    fn see_capability(&self, value: &mut Vec<u8>) {
        let [_, _, _, revision, .., r0, r1, r2, r3] = value.as_mut_slice() else { return };
        if *revision == CAP_REVISION_3
            && self.users.inside(u32::from_le_bytes([*r0, *r1, *r2, *r3])) == Some(0)
        {
            *revision = CAP_REVISION_2;
            value.truncate(value.len() - 4);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::tree::{Content, Kind, Node, NodeId};

    fn map(text: &str) -> IdMap {
        IdMap::parse(text).unwrap()
    }

    fn ids() -> Ids {
        Ids { users: map("0 100000 1000\n 1000 5 1\n"), groups: map("0 200000 65536") }
    }

    #[test]
    fn maps_are_read_and_used() {
        let ids = ids();
        let inside = |id| ids.users.inside(id);
        assert_eq!((inside(100_000), inside(100_999), inside(5)), (Some(0), Some(999), Some(1000)));
        assert_eq!((inside(101_000), inside(0), inside(6)), (None, None, None));
        let host = map("         0          0 4294967295\n");
        assert_eq!((host.inside(4_000_000_000), host.clone()), (Some(4_000_000_000), IdMap::default()));
        for bad in ["x", "0 0", "0 -1 5"] {
            assert_eq!(IdMap::parse(bad), None, "{bad}");
        }
    }

    fn layer(root: u32, uid: u32, xattrs: Xattrs) -> Tree {
        let mut tree = Tree::new(Meta { uid: root, gid: root + 100_000, ..Meta::default() });
        let meta = Meta { uid, gid: 200_007, xattrs, ..Meta::default() };
        tree.add(NodeId::ROOT, b"f", Node { meta, kind: Kind::File(Content::default()) }).unwrap();
        tree
    }

    #[test]
    fn owners_lists_and_capabilities_are_those_of_the_container() {
        let entry = |tag: u16, id: u32| [&tag.to_le_bytes()[..], &[4, 0], &id.to_le_bytes()].concat();
        let acl = [
            2u32.to_le_bytes().to_vec(),
            entry(1, u32::MAX),
            entry(2, 100_003),
            entry(8, 200_004),
            entry(2, 7),
        ]
        .concat();
        let cap = [&[1u8, 0, 0, 3][..], &[7; 16], &100_000u32.to_le_bytes()].concat();
        let tree = ids().seen(layer(
            100_000,
            100_042,
            vec![(b"security.capability".to_vec(), cap), (b"system.posix_acl_access".to_vec(), acl)],
        ));
        let meta = &tree.nodes()[1].meta;
        assert_eq!((meta.uid, meta.gid), (42, 7));
        assert_eq!(meta.xattrs[0].1, [&[1u8, 0, 0, 2][..], &[7; 16]].concat());
        let expected =
            [2u32.to_le_bytes().to_vec(), entry(1, u32::MAX), entry(2, 3), entry(8, 4), entry(2, OVERFLOW)]
                .concat();
        assert_eq!(meta.xattrs[1].1, expected);
        assert_eq!((tree.nodes()[0].meta.uid, tree.nodes()[0].meta.gid), (0, 0));
    }

    #[test]
    fn a_layer_behind_an_id_mapped_mount_stays_as_it_is() {
        let tree = layer(0, 33, Vec::new());
        assert_eq!(ids().seen(tree.clone()), tree);
        assert_eq!(Ids::default().seen(tree.clone()), tree);
        // In a mapped layer an id that the container does not have is nobody's.
        assert_eq!(ids().seen(layer(100_000, 33, Vec::new())).nodes()[1].meta.uid, OVERFLOW);
    }

    #[test]
    fn damaged_attributes_are_left_alone() {
        let ids = ids();
        for value in [vec![], vec![2, 0, 0], vec![2, 0, 0, 0, 2], vec![9; 30]] {
            let mut seen = vec![
                (b"system.posix_acl_access".to_vec(), value.clone()),
                (b"security.capability".to_vec(), value.clone()),
            ];
            ids.see_attributes(&mut seen);
            assert_eq!(seen[0].1, value);
        }
    }
}
