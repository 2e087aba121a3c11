use proptest::prelude::*;

use super::*;
use crate::model::overlay::merge;
use crate::model::overlay::tests::{dir, file, listing, meta, tree, whiteout, with};

const OPAQUE: &str = "trusted.overlay.opaque";
const REDIRECT: &str = "trusted.overlay.redirect";
const METACOPY: &str = "trusted.overlay.metacopy";

/// The changeset as a layer again, with no other mark than opaque.
fn as_layer(set: &Changeset) -> Tree {
    let mut nodes = set.tree.nodes().to_vec();
    for id in &set.opaque {
        nodes[id.index()].meta.xattrs.push((OPAQUE.into(), b"y".to_vec()));
    }
    Tree::from_nodes(nodes).unwrap()
}

fn paths(tree: &Tree) -> Vec<String> {
    listing(tree).into_iter().map(|(path, ..)| path).collect()
}

#[test]
fn a_plain_layer_needs_nothing_below() {
    let layer = tree(&[
        ("a", dir(with(2, &[(OPAQUE, b"y")]))),
        ("a/gone", whiteout()),
        ("a/n", file(meta(2), 1)),
        ("gone", whiteout()),
    ]);
    assert!(!needs_below(&layer, Namespaces::Both));
    let set = changeset(None, layer, Namespaces::Both).unwrap();
    assert_eq!(paths(&set.tree), ["", "/a", "/a/n", "/gone"], "in an opaque directory nothing need be gone");
    assert_eq!(set.opaque.into_iter().collect::<Vec<_>>(), [set.tree.lookup(b"a").unwrap()]);
    assert!(set.tree.nodes().iter().all(|node| node.meta.xattrs.is_empty()));
    assert!(is_gone(&set.tree.get(set.tree.lookup(b"gone").unwrap()).unwrap().kind));
}

#[test]
fn a_moved_directory_is_there_whole() {
    let below = tree(&[
        ("old", dir(meta(1))),
        ("old/keep", dir(meta(1))),
        ("old/keep/x", file(meta(1), 7)),
        ("old/drop", file(meta(1), 8)),
        ("old/hide", dir(meta(1))),
        ("old/hide/y", file(meta(1), 9)),
    ]);
    let layer = tree(&[
        ("old", whiteout()),
        ("new", dir(with(2, &[(REDIRECT, b"/old")]))),
        ("new/drop", whiteout()),
        ("new/hide", dir(with(2, &[(OPAQUE, b"y")]))),
        ("new/hide/z", file(meta(2), 1)),
    ]);
    assert!(needs_below(&layer, Namespaces::Both));
    let set = changeset(Some(&below), layer, Namespaces::Both).unwrap();
    assert_eq!(
        paths(&set.tree),
        ["", "/new", "/new/hide", "/new/hide/z", "/new/keep", "/new/keep/x", "/old"]
    );
    assert_eq!(set.opaque.len(), 1, "what is within an opaque directory need not say it again");
}

#[test]
fn a_file_with_its_data_elsewhere_gets_it() {
    let below = tree(&[("f", file(meta(1), 77))]);
    let layer = tree(&[("f", file(with(2, &[(METACOPY, b"")]), 0))]);
    assert!(needs_below(&layer, Namespaces::Both));
    let set = changeset(Some(&below), layer.clone(), Namespaces::Both).unwrap();
    assert_eq!(listing(&set.tree)[1], ("/f".into(), 2, Some(77)));
    let alone = changeset(Some(&tree(&[])), layer, Namespaces::Both);
    assert!(matches!(alone, Err(OverlayError::NoData { name }) if name == b"f"));
}

#[test]
fn links_stay_links_also_in_what_was_moved() {
    let mut below = tree(&[("d", dir(meta(1))), ("d/a", file(meta(1), 1))]);
    let (d, a) = (below.lookup(b"d").unwrap(), below.lookup(b"d/a").unwrap());
    below.link(d, b"b", a).unwrap();
    let mut layer = tree(&[("m", dir(with(2, &[(REDIRECT, b"d")]))), ("x", file(meta(2), 5))]);
    let x = layer.lookup(b"x").unwrap();
    layer.link(NodeId::ROOT, b"y", x).unwrap();
    let set = changeset(Some(&below), layer, Namespaces::Both).unwrap();
    assert_eq!(set.tree.lookup(b"m/a"), set.tree.lookup(b"m/b"));
    assert_eq!(set.tree.lookup(b"x"), set.tree.lookup(b"y"));
}

#[derive(Debug, Clone)]
enum Op {
    File(u64),
    Dir { opaque: bool, redirect: Option<Vec<u8>> },
    Meta { redirect: Option<Vec<u8>> },
    Gone,
}

fn redirect() -> impl Strategy<Value = Option<Vec<u8>>> {
    let absolute = prop::collection::vec(0u8..3, 1..3)
        .prop_map(|path| path.into_iter().flat_map(|c| [b'/', b'a' + c]).collect::<Vec<u8>>());
    prop::option::of(prop_oneof![absolute, (0u8..3).prop_map(|c| vec![b'a' + c])])
}

fn layer() -> impl Strategy<Value = Vec<(Vec<u8>, Op)>> {
    let op = prop_oneof![
        (0u64..100).prop_map(Op::File),
        (prop::bool::weighted(0.2), redirect()).prop_map(|(opaque, redirect)| Op::Dir { opaque, redirect }),
        redirect().prop_map(|redirect| Op::Meta { redirect }),
        Just(Op::Gone),
    ];
    prop::collection::vec((prop::collection::vec(0u8..3, 1..4), op), 0..20)
}

/// Builds the layer; what does not fit, as a name below a file, is left out.
fn build(layer: &[(Vec<u8>, Op)], tag: u32) -> Tree {
    let mut made = Tree::new(meta(tag));
    for (path, op) in layer {
        let (name, parents) = path.split_last().unwrap();
        let at = parents.iter().try_fold(NodeId::ROOT, |at, component| {
            let name = [b'a' + component];
            match made.children(at)?.get(&name[..]).copied() {
                Some(id) => made.children(id).map(|_| id),
                None => made.add(at, &name, dir(meta(tag))).ok(),
            }
        });
        let Some(at) = at else { continue };
        let name = [b'a' + name];
        if made.children(at).unwrap().contains_key(&name[..]) {
            continue;
        }
        let marked = |opaque: bool, redirect: &Option<Vec<u8>>, metacopy: bool| {
            let mut marks: Vec<(&str, &[u8])> = Vec::new();
            if opaque {
                marks.push((OPAQUE, b"y"));
            }
            if let Some(path) = redirect {
                marks.push((REDIRECT, path));
            }
            if metacopy {
                marks.push((METACOPY, b""));
            }
            with(tag, &marks)
        };
        let node = match op {
            Op::File(size) => file(meta(tag), *size),
            Op::Dir { opaque, redirect } => dir(marked(*opaque, redirect, false)),
            Op::Meta { redirect } => file(marked(false, redirect, true), 0),
            Op::Gone => whiteout(),
        };
        made.add(at, &name, node).unwrap();
    }
    made
}

proptest! {
    /// Without redirects and data elsewhere, the layer shows the same over the same.
    #[test]
    fn a_changeset_shows_what_its_layer_shows(layers in prop::collection::vec(layer(), 2..5)) {
        let trees: Vec<Tree> = layers.iter().enumerate().map(|(i, l)| build(l, i as u32)).collect();
        let (top, lowers) = trees.split_last().unwrap();
        // A layer whose data is nowhere is refused either way.
        let Ok(below) = merge(None, lowers.to_vec(), Namespaces::Trusted) else { return Ok(()) };
        let Ok(whole) = merge(None, trees.clone(), Namespaces::Trusted) else {
            prop_assert!(changeset(Some(&below), top.clone(), Namespaces::Trusted).is_err());
            return Ok(());
        };
        let set = changeset(Some(&below), top.clone(), Namespaces::Trusted).unwrap();
        if !needs_below(top, Namespaces::Trusted) {
            prop_assert_eq!(&changeset(None, top.clone(), Namespaces::Trusted).unwrap(), &set);
        }
        let again = merge(Some(below), [as_layer(&set)], Namespaces::Trusted).unwrap();
        prop_assert_eq!(listing(&again), listing(&whole));
    }
}
