//! The torture harness: containers full of writers, cut while they write, and a checker that decides of each frozen tree whether one instant
//! explains all of it.
//!
//! ```text
//!   seed ─► plan (op, writers/) ─► writer: a process inside the container ── calls ──► the container's tree
//!              │                      │ before and after each call                          │ the engine cuts
//!              │                      ▼                                                     ▼
//!              │                     log (memory outside)                       frozen tree, mounted over the lowers (view)
//!              ▼                      │                                                     │
//!           the same operations ◄─────┘ results, times                                      │
//!              │ applied to the model (tree)                                                │
//!              └──────────────────────────► check: which states equal the tree? ◄───────────┘
//! ```
//!
//! | file | what |
//! |---|---|
//! | `dice` | chance that can be repeated |
//! | `tree`, `lower` | the model; what it begins with |
//! | `op`, `writers/` | operations: the call, and what it does to the model |
//! | `log`, `writer` | who does them, and writes down when |
//! | `post` | where a process of writers stands: in the container, in namespaces below it, outside |
//! | `view`, `check` | what a frozen tree shows, and the verdict |
//! | `scene`, `run`, `report` | a container at work, many of them, the figures |
//!
//! A new kind of writer is a function in `writers/` that plans an operation: there is no code that judges a kind.

pub mod check;
pub mod dice;
pub mod log;
pub mod lower;
pub mod op;
pub mod post;
pub mod report;
pub mod run;
pub mod scene;
pub mod tree;
pub mod view;
pub mod writer;
pub mod writers;
