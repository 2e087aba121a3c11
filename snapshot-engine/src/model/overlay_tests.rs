use proptest::prelude::*;

use super::*;
use crate::model::tree::{Content, Meta, Rdev};

pub(in crate::model) fn meta(tag: u32) -> Meta {
    Meta { mode: 0o644, uid: tag, ..Meta::default() }
}

pub(in crate::model) fn with(tag: u32, xattrs: &[(&str, &[u8])]) -> Meta {
    let mut xattrs: Xattrs = xattrs.iter().map(|(n, v)| (n.as_bytes().to_vec(), v.to_vec())).collect();
    xattrs.sort();
    Meta { xattrs, ..meta(tag) }
}

pub(in crate::model) fn dir(meta: Meta) -> Node {
    Node { meta, kind: Kind::Dir(BTreeMap::new()) }
}

/// A file whose size tells its content apart.
pub(in crate::model) fn file(meta: Meta, size: u64) -> Node {
    Node { meta, kind: Kind::File(Content { size, chunks: Vec::new() }) }
}

pub(in crate::model) fn whiteout() -> Node {
    Node { meta: meta(0), kind: Kind::Char(Rdev(0)) }
}

/// A tree from paths; parents come first.
pub(in crate::model) fn tree(entries: &[(&str, Node)]) -> Tree {
    let mut tree = Tree::new(meta(0));
    for (path, node) in entries {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let parent = tree.lookup(parent.as_bytes()).unwrap();
        tree.add(parent, name.as_bytes(), node.clone()).unwrap();
    }
    tree
}

/// Every path with its owner and, for a file, its size.
pub(in crate::model) fn listing(tree: &Tree) -> Vec<(String, u32, Option<u64>)> {
    let mut all = Vec::new();
    let mut todo = vec![(String::new(), NodeId::ROOT)];
    while let Some((path, id)) = todo.pop() {
        let node = tree.get(id).unwrap();
        match &node.kind {
            Kind::Dir(children) => {
                all.push((path.clone(), node.meta.uid, None));
                for (name, id) in children {
                    todo.push((format!("{path}/{}", String::from_utf8_lossy(name)), *id));
                }
            }
            Kind::File(c) => all.push((path, node.meta.uid, Some(c.size))),
            _ => all.push((path, node.meta.uid, None)),
        }
    }
    all.sort();
    all
}

fn merged(layers: &[&Tree]) -> Tree {
    merge(None, layers.iter().map(|t| (*t).clone()), Namespaces::Both).unwrap()
}

fn paths(tree: &Tree) -> Vec<String> {
    listing(tree).into_iter().map(|(path, ..)| path).collect()
}

#[test]
fn whiteouts_hide_and_upper_metadata_wins() {
    let lower = tree(&[
        ("a", dir(meta(1))),
        ("a/x", file(meta(1), 1)),
        ("a/y", file(meta(1), 2)),
        ("b", file(meta(1), 3)),
    ]);
    let upper = tree(&[("a", dir(meta(2))), ("a/x", whiteout()), ("b", whiteout()), ("none", whiteout())]);
    let got = listing(&merged(&[&lower, &upper]));
    assert_eq!(got, [(String::new(), 0, None), ("/a".into(), 2, None), ("/a/y".into(), 1, Some(2))]);
}

#[test]
fn the_xattr_form_of_a_whiteout_needs_its_directory_to_say_so() {
    for ns in ["trusted", "user"] {
        let w = format!("{ns}.overlay.whiteout");
        let o = format!("{ns}.overlay.opaque");
        let lower = tree(&[("a", dir(meta(1))), ("a/x", file(meta(1), 1)), ("a/z", file(meta(1), 1))]);
        let upper = |mark: &[u8]| {
            tree(&[("a", dir(with(2, &[(&o, mark)]))), ("a/x", file(with(2, &[(&w, b"")]), 0))])
        };
        assert_eq!(paths(&merged(&[&lower, &upper(b"x")])), ["", "/a", "/a/z"]);
        assert_eq!(paths(&merged(&[&lower, &upper(b"n")])), ["", "/a", "/a/x", "/a/z"]);
    }
}

#[test]
fn opaque_hides_what_is_below() {
    let lower = tree(&[("a", dir(meta(1))), ("a/x", file(meta(1), 1))]);
    let upper = tree(&[("a", dir(with(2, &[("trusted.overlay.opaque", b"y")]))), ("a/n", file(meta(2), 1))]);
    assert_eq!(paths(&merged(&[&lower, &upper])), ["", "/a", "/a/n"]);
}

#[test]
fn kinds_replace_each_other_through_three_layers() {
    let bottom = tree(&[("a", dir(meta(1))), ("a/x", file(meta(1), 1))]);
    let middle = tree(&[("a", file(meta(2), 5))]);
    let top = tree(&[("a", dir(meta(3))), ("a/n", file(meta(3), 1))]);
    assert_eq!(paths(&merged(&[&bottom, &middle, &top])), ["", "/a", "/a/n"]);
    assert_eq!(paths(&merged(&[&bottom, &middle])), ["", "/a"]);
}

#[test]
fn redirects_follow_the_merged_view_below() {
    let bottom = tree(&[
        ("old", dir(meta(1))),
        ("old/x", file(meta(1), 1)),
        ("old/sub", dir(meta(1))),
        ("old/sub/y", file(meta(1), 7)),
    ]);
    // Renamed twice, in two layers, once relative and once absolute, a file deleted in between.
    let middle = tree(&[
        ("old", whiteout()),
        ("mid", dir(with(2, &[("trusted.overlay.redirect", b"old")]))),
        ("mid/x", whiteout()),
    ]);
    let top = tree(&[
        ("mid", whiteout()),
        ("deep", dir(with(3, &[("trusted.overlay.opaque", b"y")]))),
        ("deep/new", dir(with(3, &[("trusted.overlay.redirect", b"/mid")]))),
        ("deep/new/n", file(meta(3), 9)),
    ]);
    assert_eq!(
        paths(&merged(&[&bottom, &middle, &top])),
        ["", "/deep", "/deep/new", "/deep/new/n", "/deep/new/sub", "/deep/new/sub/y"]
    );
}

#[test]
fn redirects_that_lead_nowhere_or_up_give_an_empty_lower() {
    let lower = tree(&[("a", dir(meta(1))), ("a/x", file(meta(1), 1))]);
    for bad in ["/../a", "..", "/a/x", "//a", "/nowhere", "a/x", ""] {
        let upper = tree(&[("n", dir(with(2, &[("user.overlay.redirect", bad.as_bytes())])))]);
        assert_eq!(paths(&merged(&[&lower, &upper])), ["", "/a", "/a/x", "/n"], "{bad}");
    }
}

#[test]
fn redirects_cannot_multiply_without_end() {
    // Each layer shows the whole view below twice: 2^40 entries.
    let mut layers = vec![tree(&[("f", file(meta(1), 1))])];
    for _ in 0..40 {
        layers.push(tree(&[
            ("a", dir(with(2, &[("trusted.overlay.redirect", b"/")]))),
            ("b", dir(with(2, &[("trusted.overlay.redirect", b"/a")]))),
        ]));
    }
    // "/" has an empty component and is refused as a path; "/a" is a directory of the view below.
    assert!(merge(None, layers, Namespaces::Both).is_ok());
    let mut layers = vec![tree(&[("a", dir(meta(1))), ("a/f", file(meta(1), 1))])];
    for _ in 0..40 {
        layers.push(tree(&[
            ("n", dir(meta(2))),
            ("n/p", dir(with(2, &[("trusted.overlay.redirect", b"/a")]))),
            ("n/q", dir(with(2, &[("trusted.overlay.redirect", b"/a")]))),
            ("a", dir(with(2, &[("trusted.overlay.redirect", b"/n")]))),
        ]));
    }
    assert!(matches!(merge_bounded(None, layers, Namespaces::Both, 100_000), Err(OverlayError::TooLarge)));
}

#[test]
fn metacopy_takes_data_from_below_and_metadata_from_above() {
    let lower = tree(&[("f", file(meta(1), 77)), ("g", file(meta(1), 88))]);
    let upper = tree(&[
        ("f", file(with(2, &[("trusted.overlay.metacopy", b"")]), 0)),
        ("g", whiteout()),
        (
            "moved",
            file(with(3, &[("trusted.overlay.metacopy", b""), ("trusted.overlay.redirect", b"/g")]), 0),
        ),
    ]);
    assert_eq!(
        listing(&merged(&[&lower, &upper]))[1..],
        [("/f".into(), 2, Some(77)), ("/moved".into(), 3, Some(88))]
    );
    let alone = merge(None, [upper], Namespaces::Both);
    assert!(matches!(alone, Err(OverlayError::NoData { name }) if name == b"f"));
}

#[test]
fn what_an_image_shows_has_no_marks() {
    let opaque = with(1, &[("trusted.overlay.opaque", b"y")]);
    let base = tree(&[("d", dir(opaque.clone())), ("d/gone", whiteout())]);
    let upper = tree(&[("d", dir(meta(2))), ("d/new", file(meta(2), 5))]);
    let seen = merge(Some(base.clone()), [tree(&[])], Namespaces::Both).unwrap();
    let d = seen.lookup(b"d").unwrap();
    assert_eq!(seen.get(d).unwrap().meta, opaque);
    assert!(seen.lookup(b"d/gone").is_some());
    let seen = merge(Some(base), [upper], Namespaces::Both).unwrap();
    assert!(seen.lookup(b"d/gone").is_some() && seen.lookup(b"d/new").is_some());
}

#[test]
fn private_attributes_never_reach_the_image() {
    let mut xattrs: Xattrs = [
        "trusted.overlay.origin",
        "trusted.overlay.impure",
        "trusted.overlay.uuid",
        "trusted.overlay.nlink",
        "trusted.overlay.upper",
        "trusted.overlay.protattr",
        "user.overlay.origin",
        "user.mine",
        "trusted.overlay.overlay.opaque",
        "user.overlay.overlay.overlay.x",
        "trusted.overlayx",
    ]
    .iter()
    .map(|n| (n.as_bytes().to_vec(), b"y".to_vec()))
    .collect();
    let marks = Marks::take(&mut xattrs, Namespaces::Both);
    assert_eq!(marks, Marks::default());
    let names: Vec<_> = xattrs.iter().map(|(n, _)| String::from_utf8_lossy(n).into_owned()).collect();
    assert_eq!(names, ["trusted.overlay.opaque", "trusted.overlayx", "user.mine", "user.overlay.overlay.x"]);
    let mut user = vec![(b"user.overlay.opaque".to_vec(), b"y".to_vec())];
    assert_eq!(Marks::take(&mut user, Namespaces::Trusted), Marks::default());
    assert_eq!(user.len(), 1, "the container's own data in a mount without userxattr");
}

#[test]
fn links_stay_links_within_their_layer() {
    let mut lower = tree(&[("a", file(meta(1), 1))]);
    let id = lower.lookup(b"a").unwrap();
    lower.link(NodeId::ROOT, b"b", id).unwrap();
    lower.link(NodeId::ROOT, b"c", id).unwrap();
    let upper = tree(&[("b", file(meta(2), 2))]);
    let got = merged(&[&lower, &upper]);
    assert_eq!(got.lookup(b"a"), got.lookup(b"c"));
    assert_ne!(got.lookup(b"a"), got.lookup(b"b"));
}

// --- against a model that knows nothing but paths ---

#[derive(Debug, Clone)]
enum Op {
    File(u64),
    Dir { opaque: bool },
    Whiteout,
}

type Layer = Vec<(Vec<u8>, Op)>;

fn layer() -> impl Strategy<Value = Layer> {
    let op = prop_oneof![
        (0u64..100).prop_map(Op::File),
        any::<bool>().prop_map(|opaque| Op::Dir { opaque }),
        Just(Op::Whiteout),
    ];
    prop::collection::vec((prop::collection::vec(0u8..3, 1..4), op), 0..20)
}

/// Builds the layer's tree; what does not fit (a name below a file) is left out, and said in the second value.
fn build(layer: &Layer, tag: u32) -> (Tree, BTreeMap<Vec<u8>, Op>) {
    let mut tree = Tree::new(meta(tag));
    let mut kept: BTreeMap<Vec<u8>, Op> = BTreeMap::new();
    for (path, op) in layer {
        let (name, parents) = path.split_last().unwrap();
        let mut at = Some(NodeId::ROOT);
        for (i, component) in parents.iter().enumerate() {
            let key = path[..=i].to_vec();
            at = at.and_then(|at| match tree.children(at)?.get(&[b'a' + component][..]) {
                Some(id) => tree.children(*id).map(|_| *id),
                None => {
                    kept.insert(key, Op::Dir { opaque: false });
                    tree.add(at, &[b'a' + component], dir(meta(tag))).ok()
                }
            });
        }
        let Some(at) = at else { continue };
        let name = [b'a' + name];
        if tree.children(at).unwrap().contains_key(&name[..]) {
            continue;
        }
        let node = match op {
            Op::File(size) => file(meta(tag), *size),
            Op::Dir { opaque: true } => dir(with(tag, &[("trusted.overlay.opaque", b"y")])),
            Op::Dir { opaque: false } => dir(meta(tag)),
            Op::Whiteout => whiteout(),
        };
        tree.add(at, &name, node).unwrap();
        kept.insert(path.clone(), op.clone());
    }
    (tree, kept)
}

/// The trivial reference: a map of paths on which layers act like a script.
fn reference(layers: &[BTreeMap<Vec<u8>, Op>]) -> BTreeMap<Vec<u8>, (u32, Option<u64>)> {
    let mut view: BTreeMap<Vec<u8>, (u32, Option<u64>)> = BTreeMap::new();
    for (tag, layer) in layers.iter().enumerate() {
        for (path, op) in layer {
            let is_dir = view.get(path).is_some_and(|(_, size)| size.is_none());
            let keeps = matches!(op, Op::Dir { opaque: false }) && is_dir;
            if !keeps {
                view.retain(|p, _| !(p.len() >= path.len() && p.starts_with(path)));
            }
            match op {
                Op::File(size) => view.insert(path.clone(), (tag as u32, Some(*size))),
                Op::Dir { .. } => view.insert(path.clone(), (tag as u32, None)),
                Op::Whiteout => None,
            };
        }
    }
    view
}

proptest! {
    #[test]
    fn merges_as_the_reference_does(layers in prop::collection::vec(layer(), 1..5)) {
        let built: Vec<_> = layers.iter().enumerate().map(|(i, l)| build(l, i as u32)).collect();
        let got = merge(None, built.iter().map(|(t, _)| t.clone()), Namespaces::Trusted).unwrap();
        let want = reference(&built.into_iter().map(|(_, k)| k).collect::<Vec<_>>());
        let want: Vec<_> = want.into_iter().map(|(p, (tag, size))| {
            let path: String = p.iter().flat_map(|c| ['/', (b'a' + c) as char]).collect();
            (path, tag, size)
        }).collect();
        let mut got = listing(&got);
        got.remove(0);
        prop_assert_eq!(got, want);
    }

    /// What was merged can be built on: merging the lower layers first changes nothing.
    #[test]
    fn merging_the_lower_layers_first_changes_nothing(layers in prop::collection::vec(layer(), 2..5)) {
        let trees: Vec<Tree> = layers.iter().enumerate().map(|(i, l)| build(l, i as u32).0).collect();
        let whole = merge(None, trees.clone(), Namespaces::Both).unwrap();
        for cut in 1..trees.len() {
            let lower = merge(None, trees[..cut].to_vec(), Namespaces::Both).unwrap();
            let upper = trees[cut..].to_vec();
            let again = merge(Some(lower), upper, Namespaces::Both).unwrap();
            prop_assert_eq!(listing(&again), listing(&whole));
        }
        prop_assert_eq!(merge(None, [whole.clone()], Namespaces::Both).unwrap(), whole);
    }
}
