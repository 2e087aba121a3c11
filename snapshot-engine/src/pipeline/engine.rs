//! The real stages.

use super::Error;
use super::progress::{Progress, Stage};
use super::stages::{CutRequest, Stages};
use crate::model::fault::Class;
use crate::model::snapshot::{Cut, ImageReport};
use crate::store::Record;

/// The engine's own stages.
#[derive(Debug, Default, Clone, Copy)]
pub struct Engine;

/// This build has no such stage.
#[derive(Debug, thiserror::Error)]
#[error("this build has no stage for it")]
struct Absent;

impl Stages for Engine {
    fn cut(&self, _: &CutRequest, _: &dyn Progress) -> Result<Cut, Error> {
        Err(Error::stage(Stage::Resolve, Class::General, None, Absent))
    }

    fn image(&self, _: &Record, _: &dyn Progress) -> Result<ImageReport, Error> {
        Err(Error::stage(Stage::Chunk, Class::General, None, Absent))
    }
}
