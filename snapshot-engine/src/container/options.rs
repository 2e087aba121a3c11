//! The options of an overlay mount as the kernel prints them in mountinfo, parsed without I/O.
//!
//! Two layers of escapes lie over each other. mountinfo writes `,` `=` white space and `\` in octal (`seq_show_option`).
//! Below that, `upperdir`, `workdir` and the classic `lowerdir` list keep the escapes the mounter wrote: `\:` `\,` `\\`
//! (`ovl_unescape`, fs/overlayfs/params.c). Three spellings of the lowers exist:
//!
//! ```text
//! lowerdir=/a:/b\134:c          as the mounter wrote it (before 6.5, and mount(2) since 6.7)
//! lowerdir=/a:/b\072c::/data    rebuilt by the kernel (6.5, 6.6): a colon in a name is octal
//! lowerdir+=/a,datadir+=/data   one option a layer, set with fsconfig(2): no escapes of overlayfs at all
//! ```

use super::mountinfo::{octal, unescape};

/// The options that matter, paths as bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Options {
    /// The writable layer, still with overlayfs escapes.
    pub(super) upper: Option<Vec<u8>>,
    /// The work directory, still with overlayfs escapes.
    pub(super) work: Option<Vec<u8>>,
    /// The merged lower layers, top first.
    pub(super) lowers: Vec<Vec<u8>>,
    /// Layers only reached through metacopy redirects.
    pub(super) data: Vec<Vec<u8>>,
    /// Whether `user.overlay.*` attributes are used.
    pub(super) userxattr: bool,
    /// Every other option: key and value (empty for flags).
    pub(super) rest: Vec<(String, String)>,
}

/// Parses the super options of a mountinfo line, still escaped.
pub(super) fn parse(text: &[u8]) -> Options {
    let mut options = Options::default();
    for option in text.split(|b| *b == b',') {
        // `lowerdir+=` is the key `lowerdir+`.
        let (key, value) = match option.iter().position(|b| *b == b'=') {
            Some(at) => (&option[..at], &option[at + 1..]),
            None => (option, &[][..]),
        };
        match key {
            b"upperdir" => options.upper = Some(unescape(value)),
            b"workdir" => options.work = Some(unescape(value)),
            b"lowerdir" => lower_list(value, &mut options),
            b"lowerdir+" => options.lowers.push(unescape(value)),
            b"datadir+" => options.data.push(unescape(value)),
            b"userxattr" => options.userxattr = true,
            b"" => {}
            _ => options.rest.push((lossy(key), lossy(value))),
        }
    }
    options
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&unescape(bytes)).into_owned()
}

/// Splits at colons; after an empty component (`::`) only data layers follow.
fn lower_list(value: &[u8], options: &mut Options) {
    let mut rest = value;
    let mut name = Vec::new();
    let mut data_only = false;
    let mut escaped = false;
    let mut finish = |name: &mut Vec<u8>| {
        if name.is_empty() {
            data_only = true;
        } else if data_only {
            options.data.push(std::mem::take(name));
        } else {
            options.lowers.push(std::mem::take(name));
        }
    };
    while let Some(&first) = rest.first() {
        let decoded = octal(rest);
        rest = &rest[if decoded.is_some() { 4 } else { 1 }..];
        match decoded.unwrap_or(first) {
            byte if escaped => {
                name.push(byte);
                escaped = false;
            }
            b'\\' => escaped = true,
            // Only a bare colon separates; an octal one is part of a name.
            b':' if decoded.is_none() => finish(&mut name),
            byte => name.push(byte),
        }
    }
    if !name.is_empty() {
        finish(&mut name);
    }
}

/// The names an `upperdir` or `workdir` value may mean, likeliest first: with overlayfs escapes undone, and as it stands (set with
/// fsconfig(2), where the kernel undoes nothing).
pub(super) fn meanings(value: &[u8]) -> Vec<Vec<u8>> {
    let mut plain = Vec::with_capacity(value.len());
    let mut bytes = value.iter();
    while let Some(&byte) = bytes.next() {
        match byte {
            b'\\' => plain.extend(bytes.next()),
            byte => plain.push(byte),
        }
    }
    if plain == value { vec![plain] } else { vec![plain, value.to_vec()] }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn names(layers: &[Vec<u8>]) -> Vec<&str> {
        layers.iter().map(|l| std::str::from_utf8(l).unwrap()).collect()
    }

    #[test]
    fn the_classic_list() {
        let o = parse(br"rw,lowerdir=/a\040b:/c\134:d\054e:l/XY,upperdir=/u\134\054v,workdir=/w,index=off,redirect_dir=on,nouserxattr");
        assert_eq!(names(&o.lowers), ["/a b", "/c:d,e", "l/XY"]);
        assert_eq!(meanings(o.upper.as_ref().unwrap()), [b"/u,v".to_vec(), br"/u\,v".to_vec()]);
        assert_eq!(o.work.as_deref(), Some(&b"/w"[..]));
        assert!(!o.userxattr);
        assert!(o.rest.contains(&("index".into(), "off".into())));
        assert!(o.rest.contains(&("redirect_dir".into(), "on".into())));
    }

    #[test]
    fn the_list_rebuilt_by_the_kernel() {
        let o = parse(br"ro,lowerdir=/a\072b:/c::/d::/e,metacopy=on");
        assert_eq!(names(&o.lowers), ["/a:b", "/c"]);
        assert_eq!(names(&o.data), ["/d", "/e"]);
        assert_eq!(o.upper, None);
    }

    #[test]
    fn one_option_a_layer() {
        let o = parse(br"rw,lowerdir+=/a\134b:c,lowerdir+=/d,datadir+=/e,upperdir=/u,workdir=/w,userxattr");
        assert_eq!(names(&o.lowers), [r"/a\b:c", "/d"]);
        assert_eq!(names(&o.data), ["/e"]);
        assert!(o.userxattr);
    }

    #[test]
    fn many_lowers() {
        let list: Vec<String> = (0..300).map(|i| format!("l/{i:026}")).collect();
        let o = parse(format!("rw,lowerdir={},upperdir=x/diff,workdir=x/work", list.join(":")).as_bytes());
        assert_eq!(names(&o.lowers), list);
    }

    proptest! {
        #[test]
        fn never_panics(text in prop::collection::vec(any::<u8>(), 0..300)) {
            parse(&text);
            meanings(&text);
        }

        #[test]
        fn any_lower_survives_both_layers_of_escapes(
            lowers in prop::collection::vec(prop::collection::vec(1u8.., 1..12), 1..8)
        ) {
            let mut text = b"rw,lowerdir=".to_vec();
            for (i, name) in lowers.iter().enumerate() {
                if i > 0 {
                    text.push(b':');
                }
                for byte in name {
                    // The mounter escapes for overlayfs, the kernel for mountinfo.
                    if matches!(byte, b':' | b',' | b'\\') {
                        text.extend(br"\134");
                    }
                    match byte {
                        b',' | b'=' | b' ' | b'\t' | b'\n' | b'\\' => text.extend(format!("\\{byte:03o}").bytes()),
                        byte => text.push(*byte),
                    }
                }
            }
            prop_assert_eq!(parse(&text).lowers, lowers);
        }
    }
}
