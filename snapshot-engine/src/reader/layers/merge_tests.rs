use proptest::prelude::*;

use super::*;

fn entry(path: &str, what: What) -> Entry {
    Entry { path: path.as_bytes().into(), what, meta: Meta { mode: 0o700, ..Meta::default() } }
}

/// An entry as `d PATH`, `f PATH` with the layer's number as size, `l PATH TARGET` (hard), `s PATH TARGET`.
fn said(text: &str, layer: u64) -> (Entry, Content) {
    let words: Vec<&str> = text.split(' ').collect();
    let what = match words[0] {
        "d" => What::Dir,
        "l" => What::Link(words[2].as_bytes().into()),
        "s" => What::Symlink(words[2].as_bytes().into()),
        _ => What::File(layer),
    };
    (entry(words[1], what), Content { size: layer, chunks: Vec::new() })
}

/// The paths of the tree, of files with their sizes, and what was wrong with entries.
fn merged(layers: &[&[&str]]) -> (Vec<String>, Vec<String>) {
    let mut merge = Merge::new(1 << 20);
    let mut wrong = Vec::new();
    for (number, layer) in layers.iter().enumerate() {
        merge.next_layer();
        for text in *layer {
            let (entry, content) = said(text, number as u64 + 1);
            if let Err(what) = merge.apply(entry, content) {
                wrong.push(format!("{text}: {what}"));
            }
        }
    }
    let tree = merge.into_tree();
    tree.check().unwrap();
    let mut all = Vec::new();
    crate::reader::walk::walk(&tree, NodeId::ROOT, Vec::new(), &mut |path, id| {
        let path = String::from_utf8_lossy(path);
        match &tree.get(id).unwrap().kind {
            Kind::Dir(_) => all.push(format!("{path}/")),
            Kind::File(content) => all.push(format!("{path} {}", content.size)),
            _ => all.push(path.into_owned()),
        }
    });
    (all, wrong)
}

fn shows(layers: &[&[&str]], expected: &[&str]) {
    let (all, wrong) = merged(layers);
    assert!(wrong.is_empty(), "{wrong:?}");
    assert_eq!(all, expected, "{layers:?}");
}

#[test]
fn layers_lie_on_one_another() {
    shows(&[&["f a", "d b/", "f b/c"], &["f b/c", "f ./b/d"]], &["/", "/a 1", "/b/", "/b/c 2", "/b/d 2"]);
    // A directory for a file, a file for a directory, and what is missing on the way.
    shows(
        &[&["f a", "d b", "f b/c"], &["d a", "f b", "f x/y/z"]],
        &["/", "/a/", "/b 2", "/x/", "/x/y/", "/x/y/z 2"],
    );
    // A link of a layer below in the way of a file: what this layer says is there is there.
    shows(&[&["s lib usr/lib"], &["f lib/so"]], &["/", "/lib/", "/lib/so 2"]);
    // Absolute, and with more slashes than needed.
    shows(&[&["f /a//b", "f ././c"]], &["/", "/a/", "/a/b 1", "/c 1"]);
}

#[test]
fn what_is_gone_is_gone() {
    let below: &[&str] = &["f a", "d b", "f b/c", "d b/d", "f b/d/e"];
    shows(&[below, &["f .wh.a", "f .wh.b"]], &["/"]);
    shows(&[below, &["f b/d/.wh.e"]], &["/", "/a 1", "/b/", "/b/c 1", "/b/d/"]);
    shows(&[below, &["f b/.wh..wh..opq"]], &["/", "/a 1", "/b/"]);
    // What the layer itself has stays, whatever comes first.
    for layer in
        [["f b/d/new", "f b/.wh..wh..opq"], ["f b/.wh..wh..opq", "f b/d/new"], ["f b/d/new", "f .wh.b"]]
    {
        shows(&[below, &layer], &["/", "/a 1", "/b/", "/b/d/", "/b/d/new 2"]);
    }
    shows(&[below, &["f a", "f .wh.a"]], &["/", "/a 2", "/b/", "/b/c 1", "/b/d/", "/b/d/e 1"]);
    // Of nothing, and what aufs keeps for itself.
    shows(&[&["f .wh.x", "f no/.wh.x", "f no/.wh..wh..opq", "f .wh..wh.plnk", "f .wh..wh.aufs/x"]], &["/"]);
    // Gone in one layer, there again in the next.
    shows(&[below, &["f .wh.b"], &["d b", "f b/f"]], &["/", "/a 1", "/b/", "/b/f 3"]);
}

#[test]
fn hard_links_lead_to_one_inode() {
    let (all, wrong) = merged(&[&["f a", "l b a"], &["l d/c /a", "f a", "l a2 ./b"]]);
    assert_eq!(
        (all, wrong),
        (["/", "/a 2", "/a2 1", "/b 1", "/d/", "/d/c 1"].map(str::to_owned).to_vec(), vec![])
    );
    let mut merge = Merge::new(100);
    merge.next_layer();
    for text in ["f a", "l b a", "s s a", "l t s"] {
        let (entry, content) = said(text, 1);
        merge.apply(entry, content).unwrap();
    }
    assert_eq!(merge.into_tree().link_counts(), [1, 2, 2]);
}

#[test]
fn nothing_leads_out() {
    let out: &[&str] = &[
        "f ../a",
        "f a/../../b",
        "d ..",
        "f .wh...",
        "l a ../../etc/passwd",
        "l b /etc/passwd",
        "f b/.wh..",
    ];
    let (all, wrong) = merged(&[out]);
    assert_eq!((all, wrong.len()), (vec!["/".to_owned()], out.len()), "{wrong:?}");
    // Through a link of the same layer.
    let (all, wrong) = merged(&[&["s a /etc", "f a/passwd", "l x a/passwd", "f f", "f f/g", "l d/h /"]]);
    assert_eq!(
        (all, wrong.len()),
        (vec!["/".to_owned(), "/a".to_owned(), "/f 1".to_owned()], 4),
        "{wrong:?}"
    );
    let (_, wrong) = merged(&[&["f .", "f .wh.", "f .wh.a/b", &format!("f {}", "n".repeat(256))]]);
    assert_eq!(wrong.len(), 4, "{wrong:?}");
    assert_eq!(names(b"a\0b"), Err("a name in its path has a NUL"));
}

#[test]
fn there_is_an_end_to_directories_that_nobody_names() {
    let mut merge = Merge::new(1000);
    merge.next_layer();
    let deep = "a/".repeat(5000);
    let (entry, content) = said(&format!("f {deep}f"), 1);
    assert!(merge.apply(entry, content).is_err());
    assert_eq!(merge.into_tree().nodes().len(), 1000);
}

/// Opaque directories in one another, said again and again, take time by their number.
#[test]
fn the_same_is_not_done_twice() {
    let mut merge = Merge::new(1 << 20);
    let deep: Vec<String> = (1..2000).map(|n| "d/".repeat(n)).collect();
    for _ in 0..3 {
        merge.next_layer();
        for path in deep.iter().rev() {
            merge
                .apply(entry(&format!("{path}{}", ".wh..wh..opq"), What::File(0)), Content::default())
                .unwrap();
            merge.apply(entry(path, What::Dir), Content::default()).unwrap();
        }
    }
    assert_eq!(merge.into_tree().nodes().len(), 2000);
}

proptest! {
    /// Whatever layers say, what comes of it is a tree.
    #[test]
    fn any_entries_make_a_tree(
        layers in proptest::collection::vec(
            proptest::collection::vec(("[dfls]", "(\\.?/)?([abc]|\\.\\.|\\.wh\\.[ab]|\\.wh\\.\\.wh\\.\\.opq)(/([abc]|\\.\\.|\\.wh\\.[ab]|\\.wh\\.\\.wh\\.\\.opq)){0,3}", "[abc](/[abc]){0,2}"), 0..30),
            0..4,
        )
    ) {
        let mut merge = Merge::new(200);
        for (number, layer) in layers.iter().enumerate() {
            merge.next_layer();
            for (kind, path, target) in layer {
                let (entry, content) = said(&format!("{kind} {path} {target}"), number as u64);
                let _ = merge.apply(entry, content);
            }
        }
        let tree = merge.into_tree();
        prop_assert!(tree.check().is_ok());
        let shown = |node: &Node| match &node.kind {
            Kind::Dir(names) => names.keys().all(|name| !name.starts_with(GONE)),
            _ => true,
        };
        prop_assert!(tree.nodes().iter().all(shown));
    }
}
