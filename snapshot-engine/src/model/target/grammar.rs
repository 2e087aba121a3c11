//! The texts that are targets.
//!
//! ```text
//!   oci:DIR:TAG                        the last colon is the tag's
//!   [docker://]REGISTRY/REPOSITORY:TAG REGISTRY has a dot, a port, or is localhost: a bare word is a typing error far more often than a
//!                                      repository of Docker Hub, to which nothing should go by accident
//!   oci-archive:FILE[:TAG]
//!   dir:DIR
//!   docker-daemon:NAME:TAG
//!   containerd:NAMESPACE/NAME:TAG      NAME with its registry, as `ctr images ls` shows it
//! ```

use std::str::FromStr;

use oci_client::Reference;

use super::{Error, ImageTarget};

/// What precedes a colon elsewhere (containers-transports(5)) and is not supported here.
const OTHERS: [&str; 6] = ["docker-archive", "containers-storage", "docker", "registry", "ostree", "sif"];

fn valid_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let mut bytes = tag.bytes();
    bytes.next().is_some_and(word) && bytes.all(|b| word(b) || b == b'.' || b == b'-') && tag.len() <= 128
}

fn tag_of(tag: &str) -> Result<String, Error> {
    if valid_tag(tag) { Ok(tag.to_owned()) } else { Err(Error::Tag(tag.escape_debug().to_string())) }
}

impl FromStr for ImageTarget {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        if let Some(rest) = text.strip_prefix("oci:") {
            return layout(text, rest);
        }
        if let Some(rest) = text.strip_prefix("oci-archive:") {
            return archive(text, rest);
        }
        if let Some(dir) = text.strip_prefix("dir:") {
            return match dir {
                "" => Err(Error::NoPath(text.to_owned())),
                dir => Ok(ImageTarget::Dir { dir: dir.into() }),
            };
        }
        if let Some(name) = text.strip_prefix("docker-daemon:") {
            named(name)?;
            return Ok(ImageTarget::DockerDaemon { name: name.to_owned() });
        }
        if let Some(rest) = text.strip_prefix("containerd:") {
            let (namespace, name) = rest.split_once('/').ok_or_else(|| Error::Namespace(text.to_owned()))?;
            let identifier = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
            if namespace.is_empty() || namespace.len() > 76 || !namespace.bytes().all(identifier) {
                return Err(Error::Namespace(text.escape_debug().to_string()));
            }
            named(name)?;
            return Ok(ImageTarget::Containerd { namespace: namespace.to_owned(), name: name.to_owned() });
        }
        match text.split_once(':') {
            Some(("docker", rest)) if rest.starts_with("//") => registry(&rest[2..]),
            // `localhost:5000/app` has a colon but no scheme: a scheme is a known word, or is followed by `//`.
            Some((scheme, rest)) if rest.starts_with("//") || OTHERS.contains(&scheme) => {
                Err(Error::Scheme(scheme.chars().filter(|c| !c.is_control()).take(32).collect()))
            }
            _ => registry(text),
        }
    }
}

fn layout(text: &str, rest: &str) -> Result<ImageTarget, Error> {
    let (dir, tag) = rest.rsplit_once(':').ok_or_else(|| Error::NoTag(text.to_owned()))?;
    if dir.is_empty() {
        return Err(Error::NoPath(text.to_owned()));
    }
    if tag.is_empty() {
        return Err(Error::NoTag(text.to_owned()));
    }
    Ok(ImageTarget::OciLayout { dir: dir.into(), tag: tag_of(tag)? })
}

fn archive(text: &str, rest: &str) -> Result<ImageTarget, Error> {
    // A colon before a slash is one of a directory's name.
    let (file, tag) = match rest.rsplit_once(':') {
        Some((file, tag)) if !tag.contains('/') => (file, Some(tag_of(tag)?)),
        _ => (rest, None),
    };
    if file.is_empty() {
        return Err(Error::NoPath(text.to_owned()));
    }
    Ok(ImageTarget::OciArchive { file: file.into(), tag })
}

/// A name of the form `[REGISTRY/]REPOSITORY:TAG`.
fn named(name: &str) -> Result<Reference, Error> {
    if name.contains('@') {
        return Err(if name.contains("@sha256:") { Error::Digest } else { Error::User });
    }
    let last = name.rsplit('/').next().unwrap_or(name);
    let Some((_, tag)) = last.split_once(':') else {
        return Err(Error::NoTag(name.escape_debug().to_string()));
    };
    tag_of(tag)?;
    name.parse().map_err(|_| Error::ImageName(name.escape_debug().to_string()))
}

fn registry(name: &str) -> Result<ImageTarget, Error> {
    if name.contains('@') {
        // Nothing of it is repeated: a password may be part of it.
        return Err(if name.contains("@sha256:") { Error::Digest } else { Error::User });
    }
    let (host, _) = name.split_once('/').ok_or(Error::NoRegistry)?;
    if host != "localhost" && !host.contains(['.', ':']) {
        return Err(Error::NoRegistry);
    }
    let name = match named(name) {
        Ok(name) => name,
        Err(Error::ImageName(_)) => return Err(Error::Name),
        Err(e) => return Err(e),
    };
    let tag = name.tag().ok_or(Error::Name)?;
    Ok(ImageTarget::Registry {
        registry: name.registry().to_owned(),
        repository: name.repository().to_owned(),
        tag: tag.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::model::fault::Fault;

    fn parsed(text: &str) -> ImageTarget {
        text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
    }

    #[test]
    fn every_form_comes_back_as_it_was_written() {
        for text in [
            "oci:/a/b:v1.0",
            "oci:/a:b/c:t",
            "registry.example.com/app:1",
            "localhost/app:1",
            "localhost:5000/team/app:1",
            "127.0.0.1:5000/app:1.2-rc_3",
            "docker.io/library/web:1",
            "oci-archive:/tmp/x.tar",
            "oci-archive:/tmp/x.tar:v1",
            "oci-archive:/a:b/x.tar",
            "dir:/a/b:c",
            "docker-daemon:web:1",
            "docker-daemon:registry.example.com/team/web:1",
            "containerd:default/docker.io/library/web:1",
        ] {
            assert_eq!(parsed(text).to_string(), text);
        }
        assert_eq!(parsed("docker://localhost:5000/app:1"), parsed("localhost:5000/app:1"));
        let ImageTarget::Registry { registry, repository, tag } = parsed("localhost:5000/team/app:1") else {
            panic!("no registry")
        };
        assert_eq!((&*registry, &*repository, &*tag), ("localhost:5000", "team/app", "1"));
        assert_eq!(parsed("oci:/a:b/c:t").path(), Some(Path::new("/a:b/c")));
        assert_eq!(parsed("oci-archive:/a:b/x.tar").path(), Some(Path::new("/a:b/x.tar")));
        assert_eq!(parsed("dir:x").absolute().unwrap().path(), Some(&*std::path::absolute("x").unwrap()));
    }

    #[test]
    fn what_is_no_target_is_told_why() {
        for (text, error) in [
            ("docker-archive:/x.tar", Error::Scheme("docker-archive".into())),
            ("containers-storage:x:1", Error::Scheme("containers-storage".into())),
            ("docker:x:1", Error::Scheme("docker".into())),
            ("http://host/x:1", Error::Scheme("http".into())),
            ("nowhere", Error::NoRegistry),
            ("web:1", Error::NoRegistry),
            ("library/web:1", Error::NoRegistry),
            ("docker://web:1", Error::NoRegistry),
            ("localhost:5000/app", Error::NoTag("localhost:5000/app".into())),
            ("localhost:5000/app:", Error::Tag(String::new())),
            ("localhost:5000/App:1", Error::Name),
            ("localhost:5000/app@sha256:00", Error::Digest),
            ("docker://u:secret@host/app:1", Error::User),
            ("oci:/dir", Error::NoTag("oci:/dir".into())),
            ("oci:/dir:", Error::NoTag("oci:/dir:".into())),
            ("oci::tag", Error::NoPath("oci::tag".into())),
            ("oci:/d:-x", Error::Tag("-x".into())),
            ("oci:/d:a/b", Error::Tag("a/b".into())),
            ("oci-archive:", Error::NoPath("oci-archive:".into())),
            ("oci-archive::v1", Error::NoPath("oci-archive::v1".into())),
            ("oci-archive:/x.tar:", Error::Tag(String::new())),
            ("dir:", Error::NoPath("dir:".into())),
            ("docker-daemon:web", Error::NoTag("web".into())),
            ("docker-daemon:Web:1", Error::ImageName("Web:1".into())),
            ("containerd:web:1", Error::Namespace("containerd:web:1".into())),
            ("containerd:/web:1", Error::Namespace("containerd:/web:1".into())),
            ("containerd:a b/web:1", Error::Namespace("containerd:a b/web:1".into())),
        ] {
            let found = text.parse::<ImageTarget>();
            assert_eq!(found, Err(error.clone()), "{text}");
            assert!(error.remedy().is_some());
        }
    }

    #[test]
    fn a_password_is_not_repeated() {
        for text in [
            "docker://u:secret@host/app:1",
            "u:secret@host.example/app:1",
            "docker://u:secret@host:1/a@sha256:0",
        ] {
            let error = text.parse::<ImageTarget>().unwrap_err();
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }
}
