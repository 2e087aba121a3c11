//! From the frozen upperdir to the image.

use super::Error;
use super::progress::{Progress, Stage};
use crate::model::fault::Class;
use crate::model::snapshot::ImageReport;
use crate::store::Record;

pub(super) fn build(_: &Record, _: &dyn Progress) -> Result<ImageReport, Error> {
    Err(Error::stage(Stage::Chunk, Class::General, None, "not merged yet"))
}
