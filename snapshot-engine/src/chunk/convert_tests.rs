use std::os::unix::fs::FileExt;
use std::os::unix::fs::MetadataExt;

use super::*;
use crate::model::chunk::{Blob, ChunkSize, Compressor, Digester};

/// What came of it, with the blob finished.
struct Done {
    blob: Option<(Blob, PathBuf)>,
    contents: Vec<Vec<ChunkRef>>,
    saved: u64,
}

struct Fixture {
    tree: tempfile::TempDir,
    blobs: tempfile::TempDir,
    files: Vec<Source>,
}

fn fixture(files: &[(&str, Vec<u8>)]) -> Fixture {
    let tree = tempfile::tempdir().unwrap();
    for (name, data) in files {
        std::fs::write(tree.path().join(name), data).unwrap();
    }
    let files = files.iter().map(|(name, _)| source(tree.path(), name)).collect();
    Fixture { tree, blobs: tempfile::tempdir().unwrap(), files }
}

fn source(tree: &Path, name: &str) -> Source {
    let meta = std::fs::metadata(tree.join(name)).unwrap();
    Source {
        dir: 0,
        name: CString::new(name).unwrap(),
        size: meta.len(),
        ino: meta.ino(),
        sparse: meta.blocks() * 512 < meta.len(),
    }
}

impl Fixture {
    fn convert(&self, format: Format, workers: usize, known: Known) -> Result<Done, ChunkError> {
        let root = Dir::open(self.tree.path()).unwrap();
        let job = Job {
            root: &root,
            dirs: &Places::default(),
            files: &self.files,
            format,
            known,
            own: BlobIndex(0),
            blob_dir: self.blobs.path(),
            workers,
        };
        let Converted { blob, contents, saved } = convert(job, &|_| {})?;
        Ok(Done { blob: blob.map(|b| b.finish(false)).transpose()?, contents, saved })
    }

    fn left(&self) -> usize {
        std::fs::read_dir(self.blobs.path()).unwrap().count()
    }
}

fn noise(seed: u32, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
    out
}

fn format(compressor: Compressor, digester: Digester) -> Format {
    Format { compressor, digester, chunk_size: ChunkSize::new(64 << 10).unwrap(), ..Format::default() }
}

fn content(converted: &Done, file: usize) -> Vec<u8> {
    let (blob, path) = converted.blob.as_ref().unwrap();
    let bytes = std::fs::read(path).unwrap();
    let mut out = Vec::new();
    for name in &converted.contents[file] {
        let info = blob.chunks[name.index as usize];
        let stored = &bytes[info.offset as usize..][..info.stored as usize];
        if !info.is_compressed() {
            out.extend_from_slice(stored);
        } else if blob.format.compressor == Compressor::zstd() {
            out.extend(zstd::bulk::decompress(stored, info.size as usize).unwrap());
        } else {
            out.extend(lz4_flex::block::decompress(stored, info.size as usize).unwrap());
        }
    }
    out
}

#[test]
fn files_come_back_and_the_blob_does_not_depend_on_the_workers() {
    let mut files: Vec<(String, Vec<u8>)> =
        (0..300).map(|i| (format!("s{i}"), noise(i, 100 + i as usize * 7))).collect();
    files.push(("text".into(), b"all work and no play ".repeat(40_000)));
    files.push(("noise".into(), noise(9999, 1_000_001)));
    files.push(("again".into(), noise(9999, 1_000_001)));
    files.push(("border".into(), noise(5, 64 << 10)));
    files.push(("empty".into(), Vec::new()));
    let named: Vec<(&str, Vec<u8>)> = files.iter().map(|(n, d)| (n.as_str(), d.clone())).collect();
    let fixture = fixture(&named);
    for compressor in [Compressor::None, Compressor::Lz4Block, Compressor::zstd()] {
        for digester in [Digester::Blake3, Digester::Sha256] {
            let mut ids = Vec::new();
            for workers in [1, 2, 5] {
                let converted = fixture.convert(format(compressor, digester), workers, Known::new()).unwrap();
                for (i, (_, data)) in files.iter().enumerate() {
                    assert_eq!(&content(&converted, i), data);
                }
                let (blob, path) = converted.blob.unwrap();
                assert_eq!(path.metadata().unwrap().len(), blob.file_size);
                let hash = <sha2::Sha256 as sha2::Digest>::digest(std::fs::read(path).unwrap());
                assert_eq!(blob.id.0, <[u8; 32]>::from(hash));
                assert_eq!(converted.saved, 1_000_001);
                ids.push(blob.id);
            }
            assert!(ids.iter().all(|id| *id == ids[0]));
        }
    }
}

#[test]
fn holes_are_one_chunk_and_are_not_read() {
    let mut fixture = fixture(&[]);
    let path = fixture.tree.path().join("sparse");
    let file = std::fs::File::create(path).unwrap();
    file.set_len(1 << 34).unwrap();
    file.write_all_at(b"data", 1 << 33).unwrap();
    fixture.files.push(source(fixture.tree.path(), "sparse"));
    let converted = fixture.convert(Format::default(), 2, Known::new()).unwrap();
    assert_eq!(converted.contents[0].len(), 1 << 14);
    assert_eq!(converted.blob.unwrap().0.chunks.len(), 2);
}

#[test]
fn known_chunks_are_not_stored_again() {
    let fixture = fixture(&[("a", noise(1, 5000))]);
    let first = fixture.convert(Format::default(), 1, Known::new()).unwrap();
    let (blob, _) = first.blob.unwrap();
    let theirs = ChunkRef { blob: BlobIndex(7), index: 3 };
    let known = blob.chunks.iter().map(|c| ((c.digest, c.size), theirs)).collect();
    let again = fixture.convert(Format::default(), 1, known).unwrap();
    assert!(again.blob.is_none());
    assert_eq!(again.contents, [[theirs]]);
}

#[test]
fn a_changed_file_is_named_and_nothing_is_left_behind() {
    for lie in [4999u64, 5001] {
        let mut fixture = fixture(&[("a", noise(1, 5000)), ("b", noise(2, 100))]);
        fixture.files[0].size = lie;
        let error = fixture.convert(Format::default(), 2, Known::new()).err().unwrap();
        assert!(matches!(&error, ChunkError::Changed { path, .. } if path.ends_with("a")), "{error:?}");
        assert_eq!(fixture.left(), 0);
    }
    let mut fixture = fixture(&[("a", noise(1, 5000))]);
    fixture.files[0].name = c"gone".to_owned();
    assert!(matches!(fixture.convert(Format::default(), 2, Known::new()), Err(ChunkError::Read { .. })));
    assert_eq!(fixture.left(), 0);
}
