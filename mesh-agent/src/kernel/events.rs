//! The records that hooks write when connections of enrolled pods are closed or refused. Never blocks.

use std::os::fd::{AsFd, BorrowedFd};

use aya::maps::{Map, MapData, RingBuf};
use mesh_common::abi::Record;

use super::{Kernel, KernelError};

/// Reader of the ring buffer; one at a time in all processes: at a take-over the old agent stops first.
///
/// Hooks wake the reader only for refusals and when a quarter of the buffer is filled, so that a busy node is not woken
/// per connection: call [`Events::drain`] when the descriptor becomes readable, and every 250 ms besides.
pub struct Events {
    ring: RingBuf<MapData>,
}

impl Events {
    /// Hands every record that is there to `read`; how many it was. Lost ones are counted as `events_lost`.
    pub fn drain(&mut self, mut read: impl FnMut(&Record)) -> usize {
        let mut count = 0;
        while let Some(item) = self.ring.next() {
            if let Some(record) = record(&item) {
                read(&record);
                count += 1;
            }
        }
        count
    }
}

/// The record at the start of these bytes, whatever they are; none when they are too few.
pub(crate) fn record(bytes: &[u8]) -> Option<Record> {
    if bytes.len() < size_of::<Record>() {
        return None;
    }
    // SAFETY: long enough, any bytes are a value of a plain type, and the copy does not need alignment.
    Some(unsafe { bytes.as_ptr().cast::<Record>().read_unaligned() })
}

impl std::fmt::Debug for Events {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Events").finish_non_exhaustive()
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}

impl Kernel {
    /// Opens the reader of records.
    ///
    /// # Errors
    /// The ring buffer could not be mapped.
    pub fn events(&self) -> Result<Events, KernelError> {
        let failed = |source| KernelError::Load(Box::new(source));
        let map = MapData::from_pin(self.pins.map("EVENTS")).map_err(failed)?;
        let ring = RingBuf::try_from(Map::RingBuf(map)).map_err(failed)?;
        Ok(Events { ring })
    }
}
