//! An operation: what is done to the real tree, and what it then must look like.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::PathBuf;

use rustix::fs::{CWD, Mode, OFlags};
use snapshot_engine::kernel::words::Words;

use super::dice::Dice;
use super::log::Ended;
use super::post::Post;
use super::tree::{Handle, Tree};
use crate::raw::{Aio, Ring};

/// The real call. Whatever else it does must change nothing.
pub type Call = Box<dyn FnOnce(&mut Hands) -> io::Result<u64>>;
/// What the call does to the model, with the number it gave. Not called if it failed.
pub type Apply = Box<dyn FnOnce(&mut Tree, u64)>;

/// One operation of a thread: one system call that changes its tree, or one store of an aligned word.
pub struct Op {
    /// For messages.
    pub what: String,
    /// The real call.
    pub call: Call,
    /// The model's.
    pub apply: Apply,
    /// What the call does to the model when it fails: mostly nothing.
    pub failed: Option<Apply>,
}

impl std::fmt::Debug for Op {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.what)
    }
}

impl Op {
    /// Puts one together.
    pub fn new(
        what: String,
        call: impl FnOnce(&mut Hands) -> io::Result<u64> + 'static,
        apply: impl FnOnce(&mut Tree, u64) + 'static,
    ) -> Op {
        Op { what, call: Box::new(call), apply: Box::new(apply), failed: None }
    }

    /// The same operation by another call.
    #[must_use]
    pub fn by(self, call: impl FnOnce(&mut Hands) -> io::Result<u64> + 'static) -> Op {
        Op { call: Box::new(call), ..self }
    }

    /// An operation that leaves a trace also when it fails, such as a new modification time.
    #[must_use]
    pub fn even_failed(self, failed: impl FnOnce(&mut Tree, u64) + 'static) -> Op {
        Op { failed: Some(Box::new(failed)), ..self }
    }

    /// Does to the model what the real call has done.
    pub fn done(self, tree: &mut Tree, ended: Ended) {
        match (ended, self.failed) {
            (Ended::Done(n), _) => (self.apply)(tree, n),
            (Ended::Failed(_), Some(failed)) => failed(tree, 0),
            (Ended::Failed(_), None) => {}
        }
    }
}

/// A kind of writer. There is no code that judges it: the model does.
#[derive(Clone, Copy)]
pub struct Kind {
    /// Its name on the command line.
    pub name: &'static str,
    /// Its next operation, which depends on nothing but the thread's model and the dice; `None` if there is nothing it can do now.
    pub plan: fn(&Tree, &mut Dice) -> Option<Op>,
    /// Only the freezer holds it (a shared mapping, io_uring), so nobody does this from outside.
    pub freezer_only: bool,
}

impl std::fmt::Debug for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// Where the containers' threads work.
pub const HOME: &str = "torture";
/// Bytes of a record in the shared log. The first four are the thread's number.
pub const RECORD: usize = 64;
/// Bytes of a page of the shared file, and how many each thread has.
pub const PAGE: usize = 4096;
/// Pages of a thread.
pub const PAGES: usize = 4;

/// What a thread has in hand: its place in the container's tree, and its open files.
#[derive(Debug)]
pub struct Hands {
    /// The thread.
    pub thread: u64,
    /// How many there are.
    pub threads: u64,
    /// Where it finds [`HOME`].
    pub home: String,
    /// Its open files.
    pub files: BTreeMap<Handle, File>,
    /// Those that are mapped.
    pub maps: BTreeMap<Handle, Words>,
    aio: Option<Aio>,
    /// By calls, and by a thread of the kernel.
    rings: [Option<Ring>; 2],
}

impl Hands {
    /// Empty ones.
    #[must_use]
    pub fn new(thread: u64, threads: u64) -> Hands {
        let (files, maps) = (BTreeMap::new(), BTreeMap::new());
        Hands { thread, threads, home: format!("/{HOME}"), files, maps, aio: None, rings: [None, None] }
    }

    /// Its context of the kernel's AIO.
    ///
    /// # Errors
    /// As `io_setup(2)`.
    pub fn aio(&mut self) -> io::Result<&mut Aio> {
        if self.aio.is_none() {
            self.aio = Some(Aio::new()?);
        }
        self.aio.as_mut().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// One of its rings.
    ///
    /// # Errors
    /// As `io_uring_setup(2)`.
    pub fn ring(&mut self, polled: bool) -> io::Result<&mut Ring> {
        let place = &mut self.rings[usize::from(polled)];
        if place.is_none() {
            *place = Some(Ring::new(polled)?);
        }
        place.as_mut().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Where a path of the model is for the container's processes.
    #[must_use]
    pub fn real(&self, path: &str) -> PathBuf {
        let (t, home) = (self.thread, &self.home);
        PathBuf::from(match path.split_once('/') {
            Some(("own", rest)) => format!("{home}/t{t}/{rest}"),
            Some(("shared", rest)) => format!("{home}/shared/t{t}.{rest}"),
            _ if path == "own" => format!("{home}/t{t}"),
            _ => format!("{home}/{path}"),
        })
    }

    /// Opens a file; without O_CREAT and O_TRUNC this changes nothing that anybody could see.
    ///
    /// # Errors
    /// As `openat(2)`.
    pub fn file(&self, path: &str, flags: OFlags) -> io::Result<File> {
        let flags = flags | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOFOLLOW;
        Ok(File::from(rustix::fs::openat(CWD, self.real(path), flags, Mode::empty())?))
    }

    /// An open file.
    ///
    /// # Errors
    /// When the thread has none of that number.
    pub fn open(&self, handle: Handle) -> io::Result<&File> {
        self.files.get(&handle).ok_or_else(|| io::Error::other(format!("no open file {handle}")))
    }
}

/// Operations of a process that is born to do them.
pub const LIFE: u64 = 8;

/// Operation `k` of a thread: the index of its kind, and the operation.
#[must_use]
pub fn plan(seed: u64, k: u64, tree: &Tree, kinds: &[Kind]) -> (usize, Op) {
    if tree.post == Post::Born && k % LIFE == LIFE - 1 {
        // Its process ends, and the next is born.
        return (0, Op::new("exit".into(), |_| Ok(0), |tree, _| tree.close_all()));
    }
    let mut dice = Dice::new(&[seed, tree.thread, k]);
    for _ in 0..32 {
        let at = usize::try_from(dice.below(kinds.len() as u64)).unwrap_or(0);
        let kind = kinds.get(at).filter(|kind| !kind.freezer_only || tree.post.is_held());
        if let Some(op) = kind.and_then(|kind| (kind.plan)(tree, &mut dice)) {
            return (at, op);
        }
    }
    (0, Op::new("rest".into(), |_| Ok(0), |_, _| {}))
}
