//! The report's picture of a run as a sink.

use std::sync::Arc;

use super::Sink;
use crate::filter::Kinds;
use crate::record::{Kind, Record};
use crate::report::history::History;

impl Sink for History {
    fn kinds(&self) -> Kinds {
        [Kind::Exchange, Kind::Summary].into_iter().collect()
    }

    fn write(&mut self, record: &Arc<Record>) {
        self.observe(record);
    }
}
