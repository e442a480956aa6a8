//! Big read buffers, lent by the thread for as long as they hold bytes: an idle connection owns none. One size for all,
//! because a read of a busy socket fills what it is given, and 16 records sealed at once cost half of 16 sealed one by one.

use std::{
    cell::RefCell,
    io,
    task::{Poll, ready},
};

use bytes::Bytes;

/// Bytes of one buffer.
pub(crate) const SIZE: usize = 256 << 10;

/// Buffers that a thread keeps for the next reads; the rest is given back to the allocator.
const KEPT: usize = 16;

/// Reads up to this are copied into memory of their own size, so that a few bytes never pin a big buffer.
const SMALL: usize = 16 << 10;

thread_local! {
    static FREE: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// One buffer; goes back to the thread that drops it.
#[derive(Debug)]
pub(super) struct Lent(Option<Box<[u8]>>);

impl Lent {
    pub(super) fn take() -> Self {
        let free = FREE.with_borrow_mut(Vec::pop);
        Self(Some(free.unwrap_or_else(|| vec![0; SIZE].into_boxed_slice())))
    }

    pub(super) fn bytes(&mut self) -> &mut [u8] {
        self.0.as_deref_mut().unwrap_or_default()
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(buffer) = self.0.take() {
            FREE.with_borrow_mut(|free| {
                if free.len() < KEPT {
                    free.push(buffer);
                }
            });
        }
    }
}

/// The read part of a buffer.
struct Filled(Lent, usize);

impl AsRef<[u8]> for Filled {
    fn as_ref(&self) -> &[u8] {
        self.0.0.as_deref().unwrap_or_default().get(..self.1).unwrap_or_default()
    }
}

/// Reads what is there, up to 256 KiB, into a buffer that is lent only if there is something. Empty bytes are the end.
///
/// # Errors
/// Those of `read`, which answers how many bytes it has put into the buffer.
pub fn read_chunk(read: impl FnOnce(&mut [u8]) -> Poll<io::Result<usize>>) -> Poll<io::Result<Bytes>> {
    let mut lent = Lent::take();
    let length = ready!(read(lent.bytes()))?;
    Poll::Ready(Ok(if length <= SMALL {
        Bytes::copy_from_slice(&lent.bytes()[..length])
    } else {
        Bytes::from_owner(Filled(lent, length))
    }))
}
